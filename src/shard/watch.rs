//! Watches: a reader of many partitions asks for all of them at once, and where it got too little waits here for more. One
//! watch with one deadline, however many partitions; a step of one partition costs the watches of that partition only.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use ringmain_wire::PartitionId;

use crate::request::Origin;

/// One watch per connection: the next one takes the place of the last.
type ConnectionKey = (u16, u32, u32);

#[derive(Debug)]
struct Entry {
    origin: Origin,
    /// Still to come.
    missing_bytes: u64,
    partitions: Vec<PartitionId>,
}

/// One watch in the list of a partition.
#[derive(Clone, Copy, Debug)]
struct Watcher {
    watch: u64,
    /// Bytes the partition had appended when it was last looked at.
    seen_bytes: u64,
}

/// The watches of a shard. Their number is bounded by the connections, their size by one request.
#[derive(Debug, Default)]
pub struct Watches {
    entries: HashMap<u64, Entry>,
    by_partition: HashMap<PartitionId, Vec<Watcher>>,
    by_connection: HashMap<ConnectionKey, u64>,
    deadlines: BinaryHeap<Reverse<(u64, u64)>>,
    next: u64,
}

impl Watches {
    /// Watching.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a watch over `(partition, bytes appended so far)`. Returns who had the connection's last one.
    pub fn insert(&mut self, origin: Origin, deadline_us: u64, missing_bytes: u64, partitions: &[(PartitionId, u64)]) -> Option<Origin> {
        let replaced = self.by_connection.get(&connection_key(&origin)).copied().and_then(|watch| self.remove(watch));
        let watch = self.next;
        self.next += 1;
        for (partition, seen_bytes) in partitions {
            self.by_partition.entry(*partition).or_default().push(Watcher { watch, seen_bytes: *seen_bytes });
        }
        let partitions = partitions.iter().map(|(partition, _)| *partition).collect();
        self.entries.insert(watch, Entry { origin, missing_bytes, partitions });
        self.by_connection.insert(connection_key(&origin), watch);
        self.deadlines.push(Reverse((deadline_us, watch)));
        self.sweep();
        replaced
    }

    /// The partition is readable further, and has appended so many bytes: whose watches that ends.
    pub fn advance(&mut self, partition: PartitionId, appended_bytes: u64, ended: &mut Vec<Origin>) {
        let Some(watchers) = self.by_partition.get_mut(&partition) else { return };
        let mut done = Vec::new();
        for watcher in watchers {
            let Some(entry) = self.entries.get_mut(&watcher.watch) else { continue };
            entry.missing_bytes = entry.missing_bytes.saturating_sub(appended_bytes - watcher.seen_bytes);
            watcher.seen_bytes = appended_bytes;
            if entry.missing_bytes == 0 {
                done.push(watcher.watch);
            }
        }
        ended.extend(done.into_iter().filter_map(|watch| self.remove(watch)));
    }

    /// The partition is gone: whose watches that ends.
    pub fn drop_partition(&mut self, partition: PartitionId, ended: &mut Vec<Origin>) {
        let watchers = self.by_partition.remove(&partition).unwrap_or_default();
        ended.extend(watchers.into_iter().filter_map(|watcher| self.remove(watcher.watch)));
    }

    /// A watch whose time is up.
    pub fn expired(&mut self, now_us: u64) -> Option<Origin> {
        while let Some(Reverse((deadline_us, watch))) = self.deadlines.peek().copied() {
            if deadline_us > now_us && self.entries.contains_key(&watch) {
                return None;
            }
            self.deadlines.pop();
            if let Some(origin) = self.remove(watch) {
                return Some(origin);
            }
        }
        None
    }

    /// Any watch at all; it is taken out.
    pub fn pop(&mut self) -> Option<Origin> {
        let watch = *self.entries.keys().next()?;
        self.remove(watch)
    }

    /// The connection has gone.
    pub fn cancel(&mut self, core: u16, connection: u32, generation: u32) {
        if let Some(watch) = self.by_connection.get(&(core, connection, generation)).copied() {
            self.remove(watch);
        }
    }

    /// Whether anybody watches a partition.
    pub fn has(&self, partition: PartitionId) -> bool {
        !self.by_partition.is_empty() && self.by_partition.contains_key(&partition)
    }

    /// The first deadline. May name one whose watch has ended: then a turn is spent on nothing.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((deadline_us, _))| *deadline_us)
    }

    fn remove(&mut self, watch: u64) -> Option<Origin> {
        let entry = self.entries.remove(&watch)?;
        for partition in entry.partitions {
            if let Some(watchers) = self.by_partition.get_mut(&partition) {
                watchers.retain(|watcher| watcher.watch != watch);
                if watchers.is_empty() {
                    self.by_partition.remove(&partition);
                }
            }
        }
        self.by_connection.remove(&connection_key(&entry.origin));
        Some(entry.origin)
    }

    fn sweep(&mut self) {
        if self.deadlines.len() > 2 * self.entries.len() + 64 {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|Reverse((_, watch))| self.entries.contains_key(watch));
            self.deadlines = deadlines;
        }
    }
}

fn connection_key(origin: &Origin) -> ConnectionKey {
    (origin.core, origin.connection, origin.generation)
}
