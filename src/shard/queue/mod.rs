//! Queues: cursors over partitions. A message is published into a topic like any record; a queue remembers what it has delivered
//! and what became of it.
//!
//! ```text
//! partition ─▶ feed ─▶ cursor ─▶ a receive that waits ─▶ settle ─▶ state record ─▶ answer
//!    (log)     reads    decides         ▲                    │
//!                                       └── comes back ◀─────┘
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `catalog` | names, numbers and settings of queues |
//! | `cursor` | one queue in one partition: the states of its messages |
//! | `settled`, `calendar` | what is settled; what waits for its time |
//! | `ranges`, `packed` | ranges, sets and maps of messages |
//! | `dead` | records that every queue has settled, for the log to leave out |
//! | `staged` | acknowledgements in transactions |
//! | `feed`, `spots` | records out of stored frames; where they were |
//! | `expiry` | messages that expire while nobody receives |
//! | `filter` | which messages a queue takes |
//! | `idle` | queues that are deleted because nobody uses them |
//! | `serve` | the shard's side: requests in, messages out, records into the log, timers |
//! | `persist` | cursors as state records, and back |
//!
//! What must survive is logged: what is settled, what came back and how often it was delivered, and a *mark* below which
//! messages may have been delivered: after a crash each of those that isn't settled counts one delivery. The mark is logged
//! ahead, so that a first delivery waits for nothing.

mod calendar;
pub mod catalog;
pub mod cursor;
pub mod dead;
mod expiry;
pub mod feed;
pub mod filter;
pub mod idle;
mod packed;
pub mod persist;
mod ranges;
pub mod serve;
mod settled;
mod spots;
mod staged;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use ringmain_wire::queue::{Overflow, QueueConfig};
use ringmain_wire::{Offset, PartitionId, TopicId};

use crate::request::queue::QueueId;
use crate::request::{Extent, Origin};
use cursor::Cursor;
use expiry::Heads;
use feed::Walker;
use filter::Filter;
use idle::Idle;
use spots::Spots;

/// A message that is remembered takes about so much or less.
const ENTRY_BYTES: usize = 64;

/// A connection of a core.
type ConnectionKey = (u16, u32, u32);

/// The queues of one shard.
#[derive(Debug, Default)]
pub struct QueueTable {
    queues: HashMap<QueueId, Queue>,
    slots: Vec<Option<Box<Slot>>>,
    free: Vec<u32>,
    index: BTreeMap<(PartitionId, QueueId), u32>,
    /// Cursors with something to do.
    dirty: VecDeque<u32>,
    timers: BTreeSet<(u64, u32)>,
    by_connection: HashMap<ConnectionKey, Vec<u32>>,
    /// Cursors that wait for a footer of a segment, and for room to read.
    footer_waits: Vec<(u64, u32)>,
    cold_waits: Vec<u32>,
    /// … and for room to remember more, the first that came to wait first.
    room_waits: VecDeque<u32>,
    /// Things remembered one by one by all cursors, …
    entries: usize,
    /// … and what they take of the memory.
    memory_bytes: usize,
    /// Bytes of pieces of the log.
    piece_bytes: usize,
    /// Bytes of notes where messages are.
    spot_bytes: usize,
    /// Receives that wait.
    waiting: usize,
    /// The log took no more: wait for progress.
    is_blocked: bool,
    next_generation: u64,
    /// Deliveries since the start.
    delivered: u64,
    /// Settlements since the start.
    settled: u64,
}

/// A queue as every shard knows it.
#[derive(Clone, Debug)]
struct Queue {
    name: Arc<str>,
    topic: TopicId,
    config: Arc<QueueConfig>,
    filter: Arc<Filter>,
    /// Of its topic, in order of index; empty where the queue doesn't expire.
    partitions: Vec<PartitionId>,
}

/// A receive that waits.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    origin: Origin,
    consumer: u32,
    priority: i16,
    max_messages: u32,
    max_bytes: u32,
    deadline_us: u64,
}

/// A piece of the log that is being read.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    walker: Walker,
    /// It has nothing before …
    from: u64,
    /// … and nothing from here on.
    until: u64,
    /// For this record.
    asked: Option<u64>,
}

// A queue that nobody uses: 100,000 of them take less than 200 MiB.
const _: () = assert!(size_of::<Slot>() <= 3 << 9);

/// One cursor and what is around it.
#[derive(Debug)]
struct Slot {
    queue: QueueId,
    partition: PartitionId,
    name: Arc<str>,
    filter: Arc<Filter>,
    /// Tells this cursor from others that had the slot.
    generation: u64,
    cursor: Cursor,
    /// What comes next.
    feed: Piece,
    /// Segment and position where that was, if it may still be in memory.
    feed_place: Option<(u64, u32)>,
    /// What came back, or was put in another order.
    again: Piece,
    /// The same, where it is in memory: the run that the last one was in.
    hot: Option<(Extent, Walker)>,
    /// Where messages are that are read again.
    spots: Option<Box<Spots>>,
    waiters: VecDeque<Waiter>,
    is_head_logged: bool,
    is_dirty: bool,
    waits_for_room: bool,
    heads: Heads,
    /// A read from the device is under way, or a footer.
    is_reading: bool,
    /// Messages on their way to another topic.
    leaving: usize,
    /// Not before this are more sent there.
    leave_after_us: u64,
    timer_us: Option<u64>,
    idle: Idle,
    entries: usize,
    memory_bytes: usize,
    piece_bytes: usize,
    spot_bytes: usize,
}

impl Slot {
    /// A message isn't read again, or not from there.
    fn forget_spot(&mut self, offset: u64) {
        if let Some(spots) = &mut self.spots {
            spots.forget(offset);
        }
    }
}

impl QueueTable {
    /// The first cursor at or after `from`, and whether the log knows where it begins.
    pub fn next_from(&self, from: (PartitionId, QueueId)) -> Option<((PartitionId, QueueId), &Cursor, bool)> {
        let (key, index) = self.index.range(from..).next()?;
        let slot = self.slots[*index as usize].as_deref()?;
        Some((*key, &slot.cursor, slot.is_head_logged))
    }

    /// Records below may go, as far as queues are concerned: `None` = no queue has a say.
    pub fn dropped_below(&self, partition: PartitionId) -> Option<Offset> {
        let (mut floor, mut drops) = (u64::MAX, false);
        for slot in self.of_partition(partition) {
            floor = floor.min(slot.cursor.floor());
            drops |= slot.cursor.config().drop_acked;
        }
        drops.then_some(Offset(floor))
    }

    /// Whether some queue over the partition is full and refuses more. `end`: the partition's; `bytes_from`: stored there from an offset on.
    pub fn is_full(&self, partition: PartitionId, end: Offset, bytes_from: impl Fn(u64) -> u64) -> Option<&str> {
        let refuses = |slot: &&Slot| slot.cursor.config().overflow == Overflow::Reject && slot.cursor.is_full(end.0, &bytes_from);
        self.of_partition(partition).find(refuses).map(|slot| &*slot.name)
    }

    /// For queues that redirect what is too much: which of `count` records with `bytes` in all that come at `base` go elsewhere, by cursor
    /// the first one; all before the end that is logged anew. Allocates only where there is something to say.
    pub fn redirects(
        &self,
        partition: PartitionId,
        base: u64,
        count: u32,
        bytes: u64,
        bytes_from: impl Fn(u64) -> u64,
    ) -> Vec<(u32, QueueId, u64)> {
        let range = self.index.range((partition, QueueId(0))..=(partition, QueueId(u32::MAX)));
        let slots = range.filter_map(|((_, queue), index)| Some((*index, *queue, self.slots[*index as usize].as_deref()?)));
        slots.filter_map(|(index, queue, slot)| Some((index, queue, slot.cursor.redirect_from(base, count, bytes, &bytes_from)?))).collect()
    }

    /// What [`QueueTable::redirects`] said is in the log.
    pub fn redirect_logged(&mut self, index: u32, end: u64) {
        if let Some(slot) = self.get_mut(index) {
            slot.cursor.redirect_logged(end);
        }
    }

    /// The records have come.
    pub fn redirect(&mut self, index: u32, start: u64, end: u64) {
        if let Some(slot) = self.get_mut(index) {
            slot.cursor.redirect(start, end);
        }
    }

    /// Of the records in `start..end`, so many go from some queue to another topic.
    pub fn redirected_in(&self, partition: PartitionId, start: u64, end: u64) -> u64 {
        self.of_partition(partition).map(|slot| slot.cursor.redirected_in(start, end)).max().unwrap_or(0)
    }

    /// The longest time for which a queue over the partition wants messages recognised by their ids.
    pub fn dedup_window_ms(&self, partition: PartitionId) -> Option<u64> {
        self.of_partition(partition).filter_map(|slot| slot.cursor.config().dedup_window_ms).max()
    }

    /// Cursors, things they remember, receives that wait, deliveries, settlements; for metrics.
    pub fn counts(&self) -> (usize, usize, usize, u64, u64) {
        (self.index.len(), self.entries, self.waiting, self.delivered, self.settled)
    }

    /// The partition is readable further: its cursors have something to do.
    pub fn wake(&mut self, partition: PartitionId) {
        let mut from = (partition, QueueId(0));
        while let Some((&(of, queue), &slot)) = self.index.range(from..).next()
            && of == partition
        {
            self.mark_dirty(slot);
            from = (of, QueueId(queue.0 + 1));
        }
    }

    /// There is room for reads again.
    pub fn retry_cold(&mut self) {
        for index in std::mem::take(&mut self.cold_waits) {
            self.mark_dirty(index);
        }
    }

    /// Cursors that wait for room, as many as there is room for, if what is remembered may take `most_bytes`.
    fn room_again(&mut self, most_bytes: usize) {
        let room = most_bytes.saturating_sub(self.memory_bytes).div_ceil(ENTRY_BYTES);
        for _ in 0..room.min(self.room_waits.len()) {
            let Some(index) = self.room_waits.pop_front() else { return };
            if let Some(slot) = self.get_mut(index) {
                slot.waits_for_room = false;
            }
            self.mark_dirty(index);
        }
    }

    /// The log may take more again.
    pub fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// When the next cursor has something to do.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Cursors have something to do now.
    pub fn has_backlog(&self) -> bool {
        !self.is_blocked && !self.dirty.is_empty()
    }

    /// Receives that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn of_partition(&self, partition: PartitionId) -> impl Iterator<Item = &Slot> {
        let range = self.index.range((partition, QueueId(0))..=(partition, QueueId(u32::MAX)));
        range.filter_map(|(_, slot)| self.slots[*slot as usize].as_deref())
    }

    fn slot_of(&self, partition: PartitionId, queue: QueueId) -> Option<u32> {
        self.index.get(&(partition, queue)).copied()
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize)?.as_deref_mut()
    }

    fn mark_dirty(&mut self, index: u32) {
        if let Some(slot) = self.get_mut(index)
            && !slot.is_dirty
        {
            slot.is_dirty = true;
            self.dirty.push_back(index);
        }
    }

    fn insert(&mut self, partition: PartitionId, queue: QueueId, cursor: Cursor, is_head_logged: bool) {
        let Some(known) = self.queues.get(&queue) else { return };
        self.next_generation += 1;
        let slot = Slot {
            queue,
            partition,
            name: known.name.clone(),
            filter: known.filter.clone(),
            generation: self.next_generation,
            cursor,
            feed: Piece::default(),
            feed_place: None,
            again: Piece::default(),
            hot: None,
            spots: None,
            waiters: VecDeque::new(),
            is_head_logged,
            is_dirty: false,
            waits_for_room: false,
            heads: Heads::new(is_head_logged),
            is_reading: false,
            leaving: 0,
            leave_after_us: 0,
            timer_us: None,
            idle: Idle::default(),
            entries: 0,
            memory_bytes: 0,
            piece_bytes: 0,
            spot_bytes: 0,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[index as usize] = Some(Box::new(slot));
        self.index.insert((partition, queue), index);
        self.mark_dirty(index);
    }

    /// Takes a cursor out; who waits for it, and for its log records, is the caller's to tell.
    fn remove(&mut self, partition: PartitionId, queue: QueueId) -> Option<Box<Slot>> {
        let index = self.index.remove(&(partition, queue))?;
        let slot = self.slots[index as usize].take()?;
        if let Some(at) = slot.timer_us {
            self.timers.remove(&(at, index));
        }
        self.dirty.retain(|dirty| *dirty != index);
        self.footer_waits.retain(|(_, waits)| *waits != index);
        self.cold_waits.retain(|waits| *waits != index);
        self.room_waits.retain(|waits| *waits != index);
        self.by_connection.values_mut().for_each(|slots| slots.retain(|used| *used != index));
        self.entries -= slot.entries;
        self.memory_bytes -= slot.memory_bytes;
        self.piece_bytes -= slot.piece_bytes;
        self.spot_bytes -= slot.spot_bytes;
        self.waiting -= slot.waiters.len();
        self.free.push(index);
        Some(slot)
    }

    fn set_timer(&mut self, index: u32, at: Option<u64>) {
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_deref_mut) else { return };
        if slot.timer_us == at {
            return;
        }
        if let Some(old) = slot.timer_us.take() {
            self.timers.remove(&(old, index));
        }
        slot.timer_us = at;
        if let Some(at) = at {
            self.timers.insert((at, index));
        }
    }
}
