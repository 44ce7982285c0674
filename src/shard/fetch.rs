//! Fetches that wait for records: found by partition when its high watermark moves, by connection when that
//! goes, by deadline when they have waited long enough. One heap serves all deadlines; an entry whose wait
//! has ended is skipped when it comes up, and swept when such entries are the majority.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::partition::NONE;
use crate::request::{Fetch, Origin};

/// A fetch that waits.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Who asked.
    pub origin: Origin,
    /// For what.
    pub fetch: Fetch,
    /// Answer at this time at the latest.
    pub deadline_us: u64,
    /// Look again when the partition has appended so many bytes.
    pub wake_at_bytes: u64,
}

/// A connection of one core.
type ConnectionKey = (u16, u32, u32);

/// Position in one of the two lists that a wait is in.
#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE };

#[derive(Clone, Copy, Debug)]
struct Slot {
    wait: Option<Wait>,
    generation: u32,
    by_partition: Link,
    by_connection: Link,
}

/// Every waiting fetch of a shard; the shard bounds their number.
#[derive(Debug, Default)]
pub struct Waits {
    slots: Vec<Slot>,
    free: Vec<u32>,
    connections: HashMap<ConnectionKey, u32>,
    deadlines: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

/// Stale deadlines tolerated before a sweep.
const STALE_DEADLINES: usize = 64;

impl Waits {
    /// Waiting.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a wait to the list of its partition that begins at `head`.
    pub fn insert(&mut self, wait: Wait, head: &mut u32) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { wait: None, generation: 0, by_partition: UNLINKED, by_connection: UNLINKED });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.wait = Some(wait);
        self.deadlines.push(Reverse((wait.deadline_us, index, slot.generation)));
        self.link(index, *head, |slot| &mut slot.by_partition);
        *head = index;
        let first = self.connections.insert(connection_key(&wait.origin), index).unwrap_or(NONE);
        self.link(index, first, |slot| &mut slot.by_connection);
        self.sweep();
    }

    /// Takes one out of everything. `head`: the list of its partition.
    pub fn remove(&mut self, index: u32, head: &mut u32) -> Option<Wait> {
        let slot = self.slots.get_mut(index as usize)?;
        let wait = slot.wait.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        let (by_partition, by_connection) = (slot.by_partition, slot.by_connection);
        self.unlink(by_partition, |slot| &mut slot.by_partition);
        if *head == index {
            *head = by_partition.next;
        }
        self.unlink(by_connection, |slot| &mut slot.by_connection);
        let key = connection_key(&wait.origin);
        if self.connections.get(&key) == Some(&index) {
            match by_connection.next {
                NONE => self.connections.remove(&key),
                next => self.connections.insert(key, next),
            };
        }
        self.free.push(index);
        Some(wait)
    }

    /// The wait at `index`, if there still is one.
    pub fn get(&self, index: u32) -> Option<&Wait> {
        self.slots.get(index as usize)?.wait.as_ref()
    }

    /// The wait after `index` in its partition's list.
    pub fn next_of_partition(&self, index: u32) -> u32 {
        self.slots[index as usize].by_partition.next
    }

    /// Some wait of a connection.
    pub fn of_connection(&self, core: u16, connection: u32, generation: u32) -> Option<u32> {
        self.connections.get(&(core, connection, generation)).copied()
    }

    /// A wait whose deadline has come; it stays until removed.
    pub fn expired(&mut self, now_us: u64) -> Option<u32> {
        while let Some(Reverse((deadline_us, index, generation))) = self.deadlines.peek().copied() {
            if !self.is_current(index, generation) {
                self.deadlines.pop();
            } else if deadline_us <= now_us {
                return Some(index);
            } else {
                return None;
            }
        }
        None
    }

    /// The first deadline. May name one whose wait has ended: then a turn is spent on nothing.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((deadline_us, ..))| *deadline_us)
    }

    /// Any wait at all.
    pub fn first(&self) -> Option<u32> {
        self.connections.values().next().copied()
    }

    fn is_current(&self, index: u32, generation: u32) -> bool {
        let slot = &self.slots[index as usize];
        slot.wait.is_some() && slot.generation == generation
    }

    fn link(&mut self, index: u32, next: u32, list: fn(&mut Slot) -> &mut Link) {
        *list(&mut self.slots[index as usize]) = Link { previous: NONE, next };
        if next != NONE {
            list(&mut self.slots[next as usize]).previous = index;
        }
    }

    fn unlink(&mut self, link: Link, list: fn(&mut Slot) -> &mut Link) {
        if link.previous != NONE {
            list(&mut self.slots[link.previous as usize]).next = link.next;
        }
        if link.next != NONE {
            list(&mut self.slots[link.next as usize]).previous = link.previous;
        }
    }

    fn sweep(&mut self) {
        if self.deadlines.len() > 2 * self.len() + STALE_DEADLINES {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|Reverse((_, index, generation))| self.is_current(*index, *generation));
            self.deadlines = deadlines;
        }
    }
}

fn connection_key(origin: &Origin) -> ConnectionKey {
    (origin.core, origin.connection, origin.generation)
}
