//! The shard's side of queues: requests in, messages out, records into the log, timers.

use std::sync::Arc;

use ringmain_wire::control::PartitionPlace;
use ringmain_wire::frame::{HEADER_BYTES, Identity, flags};
use ringmain_wire::queue::{AlterQueue, CreateQueue, DeliveryView, Overflow, QueueAnswer, QueueCall, Verb, name};
use ringmain_wire::record::{HeadersBuilder, headers};
use ringmain_wire::{ErrorCode, Frame, Offset, PartitionId, RecordBatchBuilder, TopicId, control};

use super::catalog::QueuePiece;
use super::cursor::{Admission, ConsumerKey, Cursor, Dying, End, Place, RecordInfo, Returned};
use super::feed::{Found, Reading, Shown, Walker, info, record_at};
use super::filter::Filter;
use super::spots::Spot;
use super::staged::STAGED_MAX;
use super::{Piece, Queue, Slot, Waiter, idle, persist};
use crate::device::Slice;
use crate::log::{Located, ReadError};
use crate::request::queue::{Forward, QueueId, QueueReply, QueueRequest, Receive, Settle};
use crate::request::transaction::{ProducerKey, slot_of_producer};
use crate::request::{Extent, Failure, Now, Origin, Reply, Request};
use crate::shard::catalog::{Catalog, CatalogChange};
use crate::shard::read::ReadFor;
use crate::shard::state_record::{QueueMarkPiece, StateRecord};
use crate::shard::transaction::Asked;
use crate::shard::{Busy, DEFERRED_MAX, Deferred, Shard};

/// Records looked at in one turn, over all queues: a turn of a core thread stays short.
const RECORDS_PER_TURN: usize = 1_024;
/// Cursors served in one turn.
const CURSORS_PER_TURN: usize = 256;
/// Messages that are asked for together before they are delivered.
const LOOK_AHEAD: usize = 16;
/// What comes from memory at a time.
const CACHE_LINE_BYTES: usize = 64;
/// Messages of one queue in one partition that are on their way to another topic.
const LEAVING_MAX: usize = 64;
/// What couldn't be stored in another topic is tried again after this.
const LEAVE_AGAIN_US: u64 = 1_000_000;
/// Receives of one queue in one partition that wait; more get `Overloaded`.
const WAITERS_MAX: usize = 10_000;
/// A receive whose wait is over while its messages are being read gets them within this.
const READ_GRACE_US: u64 = 1_000_000;
/// Bytes of a batch of another protocol, cut into records.
const TRANSCODED_MAX_BYTES: usize = 64 << 20;
/// Answers to lists.
const LIST_MAX: usize = 10_000;

/// What waits for a record of a cursor to be durable.
#[derive(Debug)]
pub struct Logged {
    index: u32,
    generation: u64,
    age: u64,
    mark: Option<u64>,
    returned: Vec<Returned>,
    /// Who settled: origin, settled, refused.
    pub answers: Vec<(Origin, u32, u32)>,
    /// Who waits for a count.
    pub counts: Vec<(Origin, u64)>,
}

/// A message on its way to another topic, for the answer.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    index: u32,
    generation: u64,
    age: u64,
    dying: Dying,
}

/// A read from the device for a cursor.
#[derive(Clone, Copy, Debug)]
pub struct QueueRead {
    index: u32,
    generation: u64,
    is_feed: bool,
    from: u64,
    until: u64,
}

/// What was found of a record.
pub(super) enum Got<T> {
    It(T),
    /// It isn't a message, or is gone.
    Gone,
    /// It is being read.
    Later,
}

impl Shard {
    // ---- the catalog ----------------------------------------------------------------------------------

    pub(in crate::shard) fn create_queue(&mut self, origin: Origin, create: &CreateQueue, now: Now) -> Result<(), Busy> {
        if let Err(failure) = self.catalog.check_new_queue(create) {
            self.fail(origin, failure);
            return Ok(());
        }
        let topic = if create.topic.is_empty() { &create.name } else { &create.topic };
        if self.catalog.topic(topic).is_none() {
            let config = control::TopicConfig { durability: create.durability, ..control::TopicConfig::default() };
            let create = control::CreateTopic { name: topic.clone(), partition_count: create.partition_count, config };
            let decided = self.catalog.decide_create(&create, self.catalog_limits());
            match decided {
                Ok(change) if self.deferred.len() + 2 <= DEFERRED_MAX => {
                    if !self.log_catalog_change(None, change, now)? {
                        self.fail(origin, ErrorCode::DiskFull.into());
                        return Ok(());
                    }
                }
                Ok(_) => return Err(Busy),
                Err(failure) => {
                    self.fail(origin, failure);
                    return Ok(());
                }
            }
        }
        let decided = match self.catalog.topic(topic) {
            Some(topic) => self.catalog.decide_create_queue(create, topic.topic),
            None => Err(ErrorCode::UnknownTopic.into()),
        };
        self.put_queue(origin, decided, now)
    }

    pub(in crate::shard) fn alter_queue(&mut self, origin: Origin, alter: &AlterQueue, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_alter_queue(alter);
        self.put_queue(origin, decided, now)
    }

    fn put_queue(&mut self, origin: Origin, decided: Result<QueuePiece, Failure>, now: Now) -> Result<(), Busy> {
        let decided = decided.map(|queue| {
            let partitions = self.catalog.topic_by_id(TopicId(queue.topic)).map(|topic| topic.partitions.clone()).unwrap_or_default();
            CatalogChange::QueueSet { queue: Box::new(queue), partitions }
        });
        self.change_catalog(origin, decided, now)
    }

    pub(in crate::shard) fn delete_queue(&mut self, origin: Origin, name: &str, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_delete_queue(name).map(|queue| CatalogChange::QueueDeleted { queue: queue.0 });
        self.change_catalog(origin, decided, now)
    }

    /// Once at start: cursors as they were, or new ones.
    pub(in crate::shard) fn set_queues(&mut self, catalog: &Catalog, now: Now) {
        for queue in catalog.queues().iter() {
            let Some(topic) = catalog.topic_by_id(queue.topic) else { continue };
            let known = Queue {
                name: queue.name.clone(),
                topic: queue.topic,
                filter: Arc::new(Filter::parse(&queue.config.filter).unwrap_or_default()),
                config: queue.config.clone(),
                partitions: idle::partitions(&queue.config, &topic.partitions),
            };
            self.queues.queues.insert(queue.queue, known);
            self.add_cursors(queue.queue, &topic.partitions, queue.config.from_beginning, now);
        }
        self.saved_cursors = persist::SavedCursors::default();
        self.partitions.ids().into_iter().for_each(|partition| self.set_dedup_window(partition));
    }

    /// A queue is new, or has other settings.
    pub(in crate::shard) fn queue_put(&mut self, piece: &QueuePiece, partitions: &[PartitionPlace], now: Now) {
        let queue = QueueId(piece.queue);
        let (config, filter) = (Arc::new(piece.config.clone()), Arc::new(Filter::parse(&piece.config.filter).unwrap_or_default()));
        let known = Queue {
            name: piece.name.as_str().into(),
            topic: TopicId(piece.topic),
            config: config.clone(),
            filter: filter.clone(),
            partitions: idle::partitions(&config, partitions),
        };
        self.queues.queues.insert(queue, known);
        for place in partitions {
            if let Some(index) = self.queues.slot_of(PartitionId(place.partition), queue) {
                if let Some(slot) = self.queues.get_mut(index) {
                    slot.cursor.configure(config.clone());
                    slot.filter = filter.clone();
                    slot.idle.used(now);
                }
                self.queues.mark_dirty(index);
                self.keep_what_is_acked(PartitionId(place.partition));
            }
        }
        self.add_cursors(queue, partitions, piece.config.from_beginning, now);
        partitions.iter().for_each(|place| self.set_dedup_window(PartitionId(place.partition)));
    }

    /// A topic has more partitions: its queues read them from their beginning.
    pub(in crate::shard) fn queues_of_topic_grow(&mut self, topic: TopicId, partitions: &[PartitionPlace], now: Now) {
        let mut queues = Vec::new();
        for (queue, known) in self.queues.queues.iter_mut().filter(|(_, known)| known.topic == topic) {
            known.partitions = idle::partitions(&known.config, partitions);
            queues.push(*queue);
        }
        queues.into_iter().for_each(|queue| self.add_cursors(queue, partitions, true, now));
        partitions.iter().for_each(|place| self.set_dedup_window(PartitionId(place.partition)));
    }

    fn add_cursors(&mut self, queue: QueueId, partitions: &[PartitionPlace], from_beginning: bool, now: Now) {
        let shard = self.config.shard.0;
        let Some(config) = self.queues.queues.get(&queue).map(|known| known.config.clone()) else { return };
        for place in partitions.iter().filter(|place| place.shard == shard) {
            let id = PartitionId(place.partition);
            let Some(partition) = self.partitions.get_mut(id) else { continue };
            if self.queues.slot_of(id, queue).is_some() {
                continue;
            }
            partition.has_queues = true;
            let (start, end) = (partition.log_start.0, partition.next_offset.0);
            let begin = match config.from_last {
                Some(last) => end.saturating_sub(last).max(start),
                None if from_beginning => start,
                None => end,
            };
            match self.saved_cursors.take(id, queue) {
                Some(mut saved) => {
                    // The mark is ahead of what there was to deliver: what comes from now on counts nothing.
                    saved.mark = saved.mark.min(end);
                    let mut cursor = Cursor::restore(config.clone(), saved);
                    cursor.redirect_before(end);
                    self.queues.insert(id, queue, cursor, true);
                }
                None => {
                    self.log.dead_revoke(id, Offset(begin));
                    self.queues.insert(id, queue, Cursor::new(config.clone(), begin), false);
                    self.log_new_head(id, queue, now);
                }
            }
        }
    }

    /// Before anything else is: whatever is durable later, where the queue begins is, too.
    fn log_new_head(&mut self, partition: PartitionId, queue: QueueId, now: Now) {
        let Some(index) = self.queues.slot_of(partition, queue) else { return };
        let Some(mut slot) = self.queues.slots[index as usize].take() else { return };
        self.log_head(&mut slot, now);
        self.queues.slots[index as usize] = Some(slot);
    }

    /// A queue is gone.
    pub(in crate::shard) fn queue_deleted(&mut self, queue: QueueId) {
        self.queues.queues.remove(&queue);
        let keys: Vec<(PartitionId, QueueId)> = self.queues.index.keys().copied().filter(|(_, of)| *of == queue).collect();
        keys.into_iter().for_each(|(partition, queue)| self.drop_cursor(partition, queue));
    }

    /// A topic is gone, and its queues with it.
    pub(in crate::shard) fn queues_of_topic_deleted(&mut self, topic: TopicId) {
        let queues: Vec<QueueId> = self.queues.queues.iter().filter(|(_, known)| known.topic == topic).map(|(queue, _)| *queue).collect();
        queues.into_iter().for_each(|queue| self.queue_deleted(queue));
    }

    fn drop_cursor(&mut self, partition: PartitionId, queue: QueueId) {
        let Some(mut slot) = self.queues.remove(partition, queue) else { return };
        self.queues.room_again(self.config.queue_bytes_max);
        for waiter in slot.waiters.drain(..) {
            self.fail(waiter.origin, ErrorCode::UnknownQueue.into());
        }
        let unlogged = slot.cursor.take_unlogged();
        for origin in unlogged.answers.iter().map(|it| it.0).chain(unlogged.counts.iter().map(|it| it.0)) {
            self.fail(origin, ErrorCode::UnknownQueue.into());
        }
        if self.queues.of_partition(partition).next().is_none()
            && let Some(partition) = self.partitions.get_mut(partition)
        {
            partition.has_queues = false;
        }
        self.set_dedup_window(partition);
        self.keep_what_is_acked(partition);
    }

    // ---- requests -------------------------------------------------------------------------------------

    fn queue_slot(&mut self, partition: PartitionId, queue: QueueId) -> Result<u32, Failure> {
        if let Some(failure) = self.refusal() {
            return Err(failure);
        }
        if self.partitions.get(partition).is_none() {
            return Err(ErrorCode::UnknownPartition.into());
        }
        self.queues.slot_of(partition, queue).ok_or_else(|| ErrorCode::UnknownQueue.into())
    }

    /// Messages, now or later.
    pub(in crate::shard) fn receive(&mut self, origin: Origin, receive: &Receive, now: Now) {
        let index = match self.queue_slot(receive.partition, receive.queue) {
            Ok(index) => index,
            Err(failure) => return self.fail(origin, failure),
        };
        if self.fetches_waiting() >= self.config.waiting_fetches_max {
            return self.fail(origin, Failure::new(ErrorCode::Overloaded, format!("{} requests wait already", self.fetches_waiting())));
        }
        let Some(slot) = self.queues.get_mut(index) else { return };
        if slot.waiters.len() >= WAITERS_MAX {
            return self.fail(origin, Failure::new(ErrorCode::Overloaded, format!("{WAITERS_MAX} receives wait for this queue")));
        }
        let Some(consumer) = slot.cursor.attach(ConsumerKey::new(&origin, receive.consumer), receive.priority) else {
            return self.fail(origin, ErrorCode::QueueInUse.into());
        };
        slot.waiters.push_back(Waiter {
            origin,
            consumer,
            priority: receive.priority,
            max_messages: receive.max_messages.max(1),
            max_bytes: receive.max_bytes.min(self.config.fetch_bytes_max),
            deadline_us: now.monotonic_us + u64::from(receive.max_wait_ms) * 1_000,
        });
        slot.idle.used(now);
        self.queues.waiting += 1;
        let used = self.queues.by_connection.entry((origin.core, origin.connection, origin.generation)).or_default();
        if !used.contains(&index) {
            used.push(index);
        }
        self.queues.mark_dirty(index);
    }

    /// What becomes of messages.
    pub(in crate::shard) fn settle(&mut self, origin: Origin, settle: &Arc<Settle>, now: Now) {
        if let Some(producer) = settle.transaction {
            return self.stage_settled(origin, settle, producer, false, now);
        }
        let index = match self.queue_slot(settle.partition, settle.queue) {
            Ok(index) => index,
            Err(failure) => return self.fail(origin, failure),
        };
        let Some(slot) = self.queues.get_mut(index) else { return };
        slot.idle.used(now);
        let consumer = slot.cursor.consumer(&ConsumerKey::new(&origin, settle.consumer));
        let (settled, refused) = slot.cursor.settle_all(consumer, &settle.settlements, now);
        slot.cursor.answer_later(origin, settled, refused);
        self.queues.settled += u64::from(settled);
        self.queues.mark_dirty(index);
    }

    /// Acknowledged in a transaction. `is_confirmed`: the coordinator says that the partition takes part.
    pub(in crate::shard) fn stage_settled(
        &mut self,
        origin: Origin,
        settle: &Arc<Settle>,
        producer: ProducerKey,
        is_confirmed: bool,
        now: Now,
    ) {
        let index = match self.queue_slot(settle.partition, settle.queue) {
            Ok(index) => index,
            Err(failure) => return self.fail(origin, failure),
        };
        if slot_of_producer(producer.id).is_none() {
            return self.fail(origin, ErrorCode::ProducerMismatch.into());
        }
        if settle.settlements.iter().any(|settlement| settlement.verb != Verb::Ack) {
            let message = "a transaction takes acknowledgements; give back or reject the message without it";
            return self.fail(origin, Failure::new(ErrorCode::InvalidArgument, message));
        }
        let is_open = self.queues.get_mut(index).is_some_and(|slot| slot.cursor.has_staged(producer));
        if !is_confirmed && (!is_open || self.is_parked(settle.partition, producer)) {
            return self.park_settle(origin, settle, producer);
        }
        let Some(slot) = self.queues.get_mut(index) else { return };
        slot.idle.used(now);
        let named = settle.settlements.iter().map(|settlement| settlement.count as usize).sum::<usize>();
        if slot.cursor.staged_count() + named.min(slot.cursor.unstaged_count()) > STAGED_MAX {
            let message = format!("a queue takes up to {STAGED_MAX} acknowledgements in open transactions per partition; end some");
            return self.fail(origin, Failure::new(ErrorCode::LimitExceeded, message));
        }
        let consumer = slot.cursor.consumer(&ConsumerKey::new(&origin, settle.consumer));
        let (mut settled, mut refused) = (0u32, 0u32);
        for settlement in &settle.settlements {
            let (more, less) = slot.cursor.stage(consumer, settlement, producer);
            settled = settled.saturating_add(more);
            refused = refused.saturating_add(less);
        }
        slot.cursor.answer_later(origin, settled, refused);
        self.queues.mark_dirty(index);
    }

    /// A transaction is decided for every queue over the partition. Logged when this returns true; else it is to be done again.
    pub(in crate::shard) fn decide_staged(&mut self, partition: PartitionId, producer: ProducerKey, commit: bool, now: Now) -> bool {
        let range = self.queues.index.range((partition, QueueId(0))..=(partition, QueueId(u32::MAX)));
        let slots: Vec<u32> = range.map(|(_, slot)| *slot).collect();
        for index in slots {
            let Some(mut slot) = self.queues.slots.get_mut(index as usize).and_then(Option::take) else { continue };
            let before = slot.cursor.staged_count();
            slot.cursor.decide(producer, commit, now);
            if commit {
                self.queues.settled += (before - slot.cursor.staged_count()) as u64;
            }
            // Also what a try before has left unlogged.
            let is_logged = !slot.cursor.has_unlogged()
                || ((slot.is_head_logged || self.log_head(&mut slot, now)) && self.log_settled(index, &mut slot, now));
            self.queues.slots[index as usize] = Some(slot);
            self.queues.mark_dirty(index);
            if !is_logged {
                return false;
            }
        }
        true
    }

    /// Anything else about a queue.
    pub(in crate::shard) fn queue_request(&mut self, origin: Origin, request: &QueueRequest, now: Now) {
        let index = match self.queue_slot(request.partition, request.queue) {
            Ok(index) => index,
            Err(failure) => return self.fail(origin, failure),
        };
        let Some(partition) = self.partitions.get(request.partition) else { return };
        let (log_start, end) = (partition.log_start.0, partition.readable_end(true).0);
        let Some(slot) = self.queues.get_mut(index) else { return };
        slot.idle.used(now);
        let answer = match &request.call {
            QueueCall::Describe => Some(QueueAnswer::State(slot.cursor.state(end, slot.waiters.len() as u32))),
            QueueCall::ListDelayed { after, max } => {
                Some(QueueAnswer::Delayed(slot.cursor.list_delayed(*after, (*max as usize).min(LIST_MAX))))
            }
            QueueCall::ListUnsettled { from, max } => {
                let from = (*from).max(log_start);
                Some(QueueAnswer::Unsettled(slot.cursor.list_unsettled(from, end, (*max as usize).min(LIST_MAX))))
            }
            QueueCall::Purge => {
                let count = slot.cursor.purge(end);
                slot.feed = Piece::default();
                slot.cursor.count_later(origin, count);
                None
            }
            QueueCall::Seek { offset } => {
                if *offset < log_start || *offset > end {
                    let message = format!("offset {offset} of partition {}: stored are {log_start} to {end}", request.partition);
                    return self.fail(origin, Failure::new(ErrorCode::OffsetOutOfRange, message));
                }
                slot.cursor.seek(*offset);
                slot.feed = Piece::default();
                slot.spots.iter_mut().for_each(|spots| spots.clear());
                slot.is_head_logged = false;
                slot.leaving = 0;
                slot.cursor.count_later(origin, offset - log_start);
                self.log.dead_revoke(request.partition, Offset(*offset));
                None
            }
            QueueCall::DeliverNow { offset } | QueueCall::Cancel { offset } => {
                let is_cancel = matches!(request.call, QueueCall::Cancel { .. });
                let found = slot.cursor.hurry(*offset, is_cancel);
                slot.cursor.count_later(origin, u64::from(found));
                None
            }
            QueueCall::Leave { consumer } => {
                let leaves = ConsumerKey::new(&origin, *consumer);
                let gone = slot.cursor.consumer(&leaves);
                let count = slot.cursor.detach(|key| *key == leaves, now);
                slot.cursor.count_later(origin, count);
                let waiters: Vec<Waiter> = slot.waiters.iter().copied().filter(|waiter| Some(waiter.consumer) == gone).collect();
                slot.waiters.retain(|waiter| Some(waiter.consumer) != gone);
                let partition = slot.partition;
                self.queues.waiting -= waiters.len();
                waiters.into_iter().for_each(|waiter| self.reply_messages(waiter.origin, partition, 0, Vec::new()));
                None
            }
        };
        self.queues.mark_dirty(index);
        if let Some(answer) = answer {
            self.reply(origin, Reply::Queue(Box::new(QueueReply::Answer(answer))));
        }
    }

    /// A connection has gone: what it holds comes back.
    pub(in crate::shard) fn cancel_queues(&mut self, core: u16, connection: u32, generation: u32, now: Now) {
        for index in self.queues.by_connection.remove(&(core, connection, generation)).unwrap_or_default() {
            let Some(slot) = self.queues.get_mut(index) else { continue };
            let is_gone = |key: &ConsumerKey| (key.core, key.connection, key.generation) == (core, connection, generation);
            slot.cursor.detach(is_gone, now);
            slot.idle.used(now);
            let before = slot.waiters.len();
            slot.waiters.retain(|waiter| {
                let origin = &waiter.origin;
                (origin.core, origin.connection, origin.generation) != (core, connection, generation)
            });
            let ended = before - slot.waiters.len();
            self.queues.waiting -= ended;
            self.queues.mark_dirty(index);
        }
    }

    /// A message that comes from a queue, maybe of another shard.
    pub(in crate::shard) fn forwarded(&mut self, origin: Origin, forward: &Forward, now: Now) -> Result<(), Busy> {
        let mut builder = RecordBatchBuilder::new();
        builder.push(forward.timestamp_ms, forward.key.as_deref(), forward.value.as_deref(), &forward.headers);
        let queue_flags = if forward.has_queue_headers { flags::QUEUE_HEADERS } else { 0 };
        let bytes = builder.finish(Identity { flags: queue_flags, ..Identity::plain(forward.partition) });
        match Frame::parse(bytes) {
            Ok(frame) => self.produce(origin, &frame, now),
            Err(error) => {
                self.fail(origin, Failure::new(ErrorCode::Internal, error.to_string()));
                Ok(())
            }
        }
    }

    // ---- turns ----------------------------------------------------------------------------------------

    /// Serves cursors that have something to do, a bounded number of records in all.
    pub(in crate::shard) fn queues_step(&mut self, now: Now) {
        while let Some(index) = self.queues.timers.first().filter(|(at, _)| *at <= now.monotonic_us).map(|(_, index)| *index) {
            self.queues.set_timer(index, None);
            self.queues.mark_dirty(index);
        }
        if self.queues.is_blocked || self.fault.is_some() {
            return;
        }
        let mut budget = RECORDS_PER_TURN;
        for _ in 0..self.queues.dirty.len().min(CURSORS_PER_TURN) {
            if budget == 0 || self.queues.is_blocked {
                break;
            }
            let Some(index) = self.queues.dirty.pop_front() else { break };
            self.serve_cursor(index, &mut budget, now);
        }
    }

    fn serve_cursor(&mut self, index: u32, budget: &mut usize, now: Now) {
        let Some(mut slot) = self.queues.slots.get_mut(index as usize).and_then(Option::take) else { return };
        slot.is_dirty = false;
        let is_done = self.serve_slot(index, &mut slot, budget, now);
        self.let_go(&mut slot);
        let entries = slot.cursor.entry_count();
        self.queues.entries = self.queues.entries + entries - slot.entries;
        slot.entries = entries;
        let memory_bytes = slot.cursor.memory_bytes();
        self.queues.memory_bytes = self.queues.memory_bytes + memory_bytes - slot.memory_bytes;
        slot.memory_bytes = memory_bytes;
        self.queues.room_again(self.config.queue_bytes_max);
        let deadline = self.deadline_of(&slot, now);
        self.queues.slots[index as usize] = Some(slot);
        self.queues.set_timer(index, deadline);
        if !is_done {
            self.queues.mark_dirty(index);
        }
    }

    /// Pieces of the log that aren't needed soon.
    fn let_go(&mut self, slot: &mut Slot) {
        let end = self.partitions.get(slot.partition).map_or(0, |partition| partition.readable_end(true).0);
        let is_too_much = self.queues.piece_bytes > self.config.queue_pieces_bytes_max;
        if slot.cursor.next() >= end || (slot.waiters.is_empty() && is_too_much) {
            slot.feed = Piece::default();
        }
        if slot.cursor.first_ready().is_none() || (slot.waiters.is_empty() && is_too_much) {
            (slot.again, slot.hot) = (Piece::default(), None);
        }
        if let Some(spots) = &mut slot.spots {
            let others = self.queues.spot_bytes - slot.spot_bytes;
            spots.forget_below(slot.cursor.floor());
            spots.shrink(self.config.queue_spots_bytes_max.saturating_sub(others));
            slot.spot_bytes = spots.bytes();
            self.queues.spot_bytes = others + slot.spot_bytes;
        }
        let held = slot.feed.bytes.capacity() + slot.again.bytes.capacity();
        self.queues.piece_bytes = self.queues.piece_bytes + held - slot.piece_bytes;
        slot.piece_bytes = held;
    }

    fn deadline_of(&self, slot: &Slot, now: Now) -> Option<u64> {
        if self.stopping || self.fault.is_some() {
            return None;
        }
        let grace_us = self.grace_us(slot);
        let ends = |waiter: &Waiter| if waiter.deadline_us > now.monotonic_us { waiter.deadline_us } else { waiter.deadline_us + grace_us };
        let waiter = slot.waiters.iter().map(ends).min();
        // A rate lets the next one through soon.
        let rate = (slot.cursor.config().rate_per_second.is_some() && !slot.waiters.is_empty()).then_some(now.monotonic_us + 10_000);
        let leave = slot.cursor.has_dying().then_some(slot.leave_after_us.max(now.monotonic_us + 1_000));
        [slot.cursor.next_deadline_us(now), waiter, rate, leave, self.head_deadline_us(slot, now), self.idle_deadline_us(slot, now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// False = there is more to do at once.
    fn serve_slot(&mut self, index: u32, slot: &mut Slot, budget: &mut usize, now: Now) -> bool {
        let Some(partition) = self.partitions.get(slot.partition) else { return true };
        let (log_start, end) = (partition.log_start.0, partition.readable_end(true).0);
        if !slot.is_head_logged && !self.log_head(slot, now) {
            return false;
        }
        let mut is_done = true;
        if !self.stopping {
            slot.cursor.tick(now);
            slot.cursor.truncate(log_start);
            self.drop_head(slot, end);
            is_done = self.dispatch(index, slot, end, budget, now);
            // Once it was looked at it is known how large it is.
            self.drop_head(slot, end);
            is_done &= self.expire_heads(index, slot, end, budget, now);
            self.end_waits(slot, now);
            self.send_away(index, slot, now);
            self.expire_queue(index, slot, now);
            is_done &= self.log_mark(index, slot, now);
        }
        self.log_settled(index, slot, now) && is_done
    }

    fn drop_head(&mut self, slot: &mut Slot, end: u64) {
        let config = slot.cursor.config();
        if config.overflow == Overflow::DropHead && (config.max_length.is_some() || config.max_bytes.is_some()) {
            let tail_bytes = if slot.cursor.next() < end { self.log.bytes_from(slot.partition, Offset(slot.cursor.next())) } else { 0 };
            slot.cursor.drop_head(end, tail_bytes);
        }
    }

    fn log_head(&mut self, slot: &mut Slot, now: Now) -> bool {
        let record = persist::head((slot.partition, slot.queue), &slot.cursor);
        slot.is_head_logged = self.log_state(&record, None, now).is_ok();
        self.queues.is_blocked |= !slot.is_head_logged;
        slot.is_head_logged
    }

    /// Keeps the delivery mark ahead of who asks.
    fn log_mark(&mut self, index: u32, slot: &mut Slot, now: Now) -> bool {
        if slot.waiters.is_empty() && slot.cursor.mark() > slot.cursor.next() {
            return true;
        }
        if slot.waiters.is_empty() && slot.cursor.mark() == 0 {
            return true;
        }
        let Some((mark, crashes)) = slot.cursor.mark_due(slot.cursor.next()) else { return true };
        let piece = QueueMarkPiece { queue: slot.queue.0, partition: slot.partition.0, mark, crashes };
        let record = StateRecord::QueueMark(Box::new(piece));
        let logged = Logged {
            index,
            generation: slot.generation,
            age: slot.cursor.age(),
            mark: Some(mark),
            returned: Vec::new(),
            answers: Vec::new(),
            counts: Vec::new(),
        };
        match self.log_state(&record, Some(Deferred::Queue(Box::new(logged))), now) {
            Ok(_) => {
                slot.cursor.mark_logged(mark);
                true
            }
            Err(_) => {
                self.queues.is_blocked = true;
                false
            }
        }
    }

    /// Logs what became of messages; the answers come when that is durable.
    fn log_settled(&mut self, index: u32, slot: &mut Slot, now: Now) -> bool {
        if !slot.cursor.has_unlogged() {
            return true;
        }
        if self.deferred.len() >= DEFERRED_MAX {
            self.queues.is_blocked = true;
            return false;
        }
        let unlogged = slot.cursor.take_unlogged();
        let records = persist::settled((slot.partition, slot.queue), &unlogged);
        let mut sequence = None;
        for record in &records {
            match self.log_state(record, None, now) {
                Ok(logged) => sequence = Some(logged),
                Err(_) => {
                    // What is logged already says the same when it comes again.
                    slot.cursor.put_back(unlogged);
                    self.queues.is_blocked = true;
                    return false;
                }
            }
        }
        unlogged.returned.iter().for_each(|returned| slot.cursor.returned_logged(returned));
        // Nothing to log, as when a deadline moves: but what was settled before may still be on its way.
        let sequence = sequence.unwrap_or(self.last_sequence);
        let logged = Logged {
            index,
            generation: slot.generation,
            age: slot.cursor.age(),
            mark: None,
            returned: unlogged.returned,
            answers: unlogged.answers,
            counts: unlogged.counts,
        };
        if sequence <= self.flushed {
            self.answer_settled(&logged);
        } else {
            self.deferred.push_back((sequence, Deferred::Queue(Box::new(logged))));
        }
        true
    }

    /// Logs whatever of a cursor isn't logged yet. False = there is no room now.
    pub(super) fn log_cursor(&mut self, index: u32, now: Now) -> bool {
        let Some(mut slot) = self.queues.slots.get_mut(index as usize).and_then(Option::take) else { return true };
        let is_logged = (slot.is_head_logged || self.log_head(&mut slot, now)) && self.log_settled(index, &mut slot, now);
        self.queues.slots[index as usize] = Some(slot);
        is_logged
    }

    fn answer_settled(&mut self, logged: &Logged) {
        for (origin, settled, refused) in &logged.answers {
            self.reply(*origin, Reply::Queue(Box::new(QueueReply::Settled { settled: *settled, refused: *refused })));
        }
        for (origin, count) in &logged.counts {
            self.reply(*origin, Reply::Queue(Box::new(QueueReply::Answer(QueueAnswer::Count(*count)))));
        }
    }

    /// A record of a cursor is durable.
    pub(in crate::shard) fn queue_durable(&mut self, logged: &Logged, now: Now) {
        self.answer_settled(logged);
        let Some(slot) = self.queues.get_mut(logged.index) else { return };
        if slot.generation != logged.generation || slot.cursor.age() != logged.age {
            return;
        }
        if let Some(mark) = logged.mark {
            slot.cursor.mark_durable(mark);
        }
        for returned in &logged.returned {
            slot.cursor.returned_durable(returned, now);
        }
        self.queues.mark_dirty(logged.index);
    }

    /// The broker stops: nobody gets more messages; what is settled still becomes durable.
    pub(in crate::shard) fn stop_queues(&mut self) {
        let slots: Vec<u32> = self.queues.index.values().copied().collect();
        for index in slots {
            let Some(slot) = self.queues.get_mut(index) else { continue };
            let waiters = std::mem::take(&mut slot.waiters);
            let partition = slot.partition;
            slot.cursor.settle_down();
            self.queues.waiting -= waiters.len();
            waiters.into_iter().for_each(|waiter| self.reply_messages(waiter.origin, partition, 0, Vec::new()));
            self.queues.mark_dirty(index);
        }
    }

    /// Nothing more is written: who waits is told.
    pub(in crate::shard) fn fail_queues(&mut self, failure: &Failure) {
        let slots: Vec<u32> = self.queues.index.values().copied().collect();
        for index in slots {
            let Some(slot) = self.queues.get_mut(index) else { continue };
            let waiters = std::mem::take(&mut slot.waiters);
            let unlogged = slot.cursor.take_unlogged();
            self.queues.waiting -= waiters.len();
            let waits = waiters.iter().map(|waiter| waiter.origin);
            let answers = unlogged.answers.iter().map(|it| it.0).chain(unlogged.counts.iter().map(|it| it.0));
            let origins: Vec<Origin> = waits.chain(answers).collect();
            origins.into_iter().for_each(|origin| self.fail(origin, failure.clone()));
        }
    }

    // ---- messages -------------------------------------------------------------------------------------

    fn reply_messages(&mut self, origin: Origin, partition: PartitionId, count: u32, bytes: Vec<u8>) {
        self.reply(origin, Reply::Queue(Box::new(QueueReply::Received { partition, count, bytes })));
    }

    /// Gives messages to those who wait. False = the turn's budget ended it.
    fn dispatch(&mut self, index: u32, slot: &mut Slot, end: u64, budget: &mut usize, now: Now) -> bool {
        if slot.cursor.feeds_ahead() {
            match self.feed_ahead(index, slot, end, budget, now) {
                Got::It(()) => {}
                Got::Gone => return false,
                // What comes first isn't known yet; the read wakes the cursor.
                Got::Later => return true,
            }
        }
        while !slot.cursor.config().paused && !slot.cursor.holds_back() {
            let Some(at) = next_waiter(slot) else { return true };
            let waiter = slot.waiters[at];
            let (count, bytes) = self.collect(index, slot, &waiter, end, budget, now);
            if count > 0 {
                slot.waiters.remove(at);
                self.queues.waiting -= 1;
                self.queues.delivered += u64::from(count);
                slot.cursor.spend(u64::from(count));
                self.counters.bytes_out += bytes.len() as u64;
                let partition = slot.partition;
                self.reply_messages(waiter.origin, partition, count, bytes);
            }
            if *budget == 0 {
                return false;
            }
            if count == 0 {
                return true;
            }
        }
        true
    }

    /// Looks at everything that is there, in a queue whose order isn't the log's. `Gone` = the turn's budget is.
    fn feed_ahead(&mut self, index: u32, slot: &mut Slot, end: u64, budget: &mut usize, now: Now) -> Got<()> {
        while slot.cursor.next() < end && slot.cursor.takes_more() && self.has_room(index, slot) {
            if *budget == 0 {
                return Got::Gone;
            }
            *budget -= 1;
            match self.feed_one(index, slot, end, now, keep) {
                Got::It(()) | Got::Gone => {}
                Got::Later => return Got::Later,
            }
        }
        Got::It(())
    }

    /// Whether another message may be remembered; if not, the cursor is woken when it may.
    pub(super) fn has_room(&mut self, index: u32, slot: &mut Slot) -> bool {
        let has_room = self.queues.memory_bytes < self.config.queue_bytes_max;
        if !has_room && !slot.waits_for_room {
            slot.waits_for_room = true;
            self.queues.room_waits.push_back(index);
        }
        has_room
    }

    /// As many messages as one receive may have.
    fn collect(&mut self, index: u32, slot: &mut Slot, waiter: &Waiter, end: u64, budget: &mut usize, now: Now) -> (u32, Vec<u8>) {
        let (mut count, mut out) = (0u32, Vec::new());
        let most = u64::from(waiter.max_messages).min(slot.cursor.allowance(now));
        let feeds_ahead = slot.cursor.feeds_ahead();
        let (filter, config) = (slot.filter.clone(), slot.cursor.config());
        let (ttl_ms, key_ordered) = (config.ttl_ms, config.key_ordered);
        let mut ahead = 0;
        while u64::from(count) < most && (out.is_empty() || out.len() < waiter.max_bytes as usize) && *budget > 0 {
            if let Some(place) = slot.cursor.first_ready() {
                if place.offset() >= slot.cursor.mark() {
                    break;
                }
                if ahead == 0 {
                    ahead = LOOK_AHEAD;
                    self.look_ahead(slot);
                }
                ahead -= 1;
                *budget -= 1;
                let got = self.with_record(index, slot, place.offset(), |cursor, shown| {
                    if cursor.recheck(place, info(shown, &filter, ttl_ms, key_ordered), now) {
                        let view = view(shown, 0);
                        reserve(&mut out, &view, most.min(cursor.ready_count() as u64), waiter);
                        let deliveries = cursor.deliver(place, waiter.consumer, now);
                        DeliveryView { deliveries, ..view }.write(&mut out);
                        count += 1;
                    }
                });
                match got {
                    Got::It(()) => slot.forget_spot(place.offset()),
                    Got::Gone => slot.cursor.lose(place.offset(), Some(place)),
                    Got::Later => break,
                }
                continue;
            }
            let next = slot.cursor.next();
            if feeds_ahead || next >= end || next >= slot.cursor.mark() || !slot.cursor.takes_more() || !self.has_room(index, slot) {
                break;
            }
            *budget -= 1;
            let (max_bytes, consumer) = (waiter.max_bytes as usize, waiter.consumer);
            let got = self.feed_one(index, slot, end, now, |cursor, shown, place| {
                let view = view(shown, 0);
                if !out.is_empty() && out.len() + view.wire_bytes() > max_bytes {
                    return keep(cursor, shown, place);
                }
                reserve(&mut out, &view, most.min(end - shown.offset), waiter);
                let deliveries = cursor.deliver(place, consumer, now);
                DeliveryView { deliveries, ..view }.write(&mut out);
                count += 1;
                false
            });
            if matches!(got, Got::Later) || slot.cursor.first_ready().is_some() && !out.is_empty() {
                break;
            }
        }
        (count, out)
    }

    /// Messages that were put in another order lie here and there in memory, each some 100 ns away. The next ones are asked for together, so
    /// that they come together.
    fn look_ahead(&self, slot: &mut Slot) {
        let Some(spots) = &mut slot.spots else { return };
        let mut next = [None; LOOK_AHEAD];
        next.iter_mut().zip(slot.cursor.ready()).for_each(|(spot, place)| *spot = spots.get(place.offset()));
        let mut seen = 0;
        for spot in next.into_iter().flatten() {
            let Some(bytes) = self.log.hot_from(spot.segment, spot.frame, &mut spots.near) else { continue };
            let body = HEADER_BYTES + spot.record as usize;
            let lines = [0, HEADER_BYTES, body, body + CACHE_LINE_BYTES, body + 2 * CACHE_LINE_BYTES];
            seen ^= lines.into_iter().filter_map(|at| bytes.get(at)).fold(0, |seen, byte| seen ^ byte);
        }
        std::hint::black_box(seen);
    }

    /// Shows the next record to the cursor; `ready` decides what becomes of one that is ready, and whether it is read again.
    fn feed_one(
        &mut self,
        index: u32,
        slot: &mut Slot,
        end: u64,
        now: Now,
        ready: impl FnOnce(&mut Cursor, &Shown<'_>, Place) -> bool,
    ) -> Got<()> {
        let got = self.look_at_next(index, slot, end, |cursor, shown, info| {
            let is_read_again = match cursor.admit(info, now) {
                Admission::Ready(place) => ready(cursor, shown, place),
                Admission::Waits => true,
                Admission::Done => false,
            };
            shown.at.filter(|_| is_read_again).map(|at| (shown.offset, at))
        });
        match got {
            Got::It(Some((offset, (frame, record)))) => {
                if let Some((segment, position)) = slot.feed_place {
                    let spot = Spot { segment, frame: position + frame as u32, record: record as u32 };
                    slot.spots.get_or_insert_default().note(offset, spot);
                }
                Got::It(())
            }
            Got::It(None) => Got::It(()),
            Got::Gone => Got::Gone,
            Got::Later => Got::Later,
        }
    }

    /// What the cursor wants to know of the next record, and the record; `work` may admit it.
    pub(super) fn look_at_next<T>(
        &mut self,
        index: u32,
        slot: &mut Slot,
        end: u64,
        work: impl FnOnce(&mut Cursor, &Shown<'_>, RecordInfo) -> T,
    ) -> Got<T> {
        let mut is_fresh = false;
        loop {
            let next = slot.cursor.next();
            if slot.feed.bytes.is_empty() || !(slot.feed.from..slot.feed.until).contains(&next) {
                match self.fill(index, slot, next, end) {
                    Got::It(()) => is_fresh = true,
                    Got::Gone => return Got::Gone,
                    Got::Later => return Got::Later,
                }
            }
            let Slot { feed, cursor, filter, partition, .. } = slot;
            let transactions = self.partitions.get(*partition).and_then(|partition| partition.transactions.as_deref());
            let is_aborted = |frame: &Frame<'_>| transactions.is_some_and(|transactions| transactions.is_aborted(frame));
            let reading = Reading { transcode: self.config.transcode, transcode_bytes_max: TRANSCODED_MAX_BYTES, is_aborted: &is_aborted };
            match feed.walker.find(&feed.bytes, next, reading) {
                Found::Record(shown) => {
                    let config = cursor.config();
                    let info = info(&shown, filter, config.ttl_ms, config.key_ordered);
                    return Got::It(work(cursor, &shown, info));
                }
                Found::Skip { until, end: how } => {
                    cursor.skip_to(until.min(end), how);
                    return Got::Gone;
                }
                Found::Nothing => {
                    let until = feed.until;
                    *feed = Piece::default();
                    if is_fresh {
                        // The log says that it is there, and it isn't.
                        cursor.skip_to(until.clamp(next + 1, end), End::Dropped);
                        return Got::Gone;
                    }
                }
            }
        }
    }

    /// Gets the piece of the log in which `next` is.
    fn fill(&mut self, index: u32, slot: &mut Slot, next: u64, end: u64) -> Got<()> {
        if slot.is_reading {
            return Got::Later;
        }
        match self.log.locate(slot.partition, Offset(next), Offset(end), self.config.queue_feed_bytes) {
            Located::Wait { segment } => {
                slot.is_reading = true;
                self.queues.footer_waits.push((segment, index));
                Got::Later
            }
            Located::Runs { extents, next_offset, .. } => match extents.first() {
                None => {
                    slot.cursor.skip_to(next_offset.0.clamp(next + 1, end), End::Void);
                    Got::Gone
                }
                Some(extent) => {
                    let until = if extents.len() == 1 { next_offset.0 } else { u64::MAX };
                    match self.log.hot_bytes(*extent) {
                        Some(bytes) => {
                            let mut buffer = std::mem::take(&mut slot.feed.bytes);
                            buffer.clear();
                            buffer.extend_from_slice(bytes);
                            slot.feed = Piece { bytes: buffer, walker: Walker::default(), from: next, until, asked: None };
                            slot.feed_place = Some((extent.segment, extent.position));
                            Got::It(())
                        }
                        None => self.read_for_queue(index, slot, *extent, true, next, until),
                    }
                }
            },
        }
    }

    fn read_for_queue(&mut self, index: u32, slot: &mut Slot, extent: Extent, is_feed: bool, from: u64, until: u64) -> Got<()> {
        if self.cold_read_bytes > 0 && self.cold_read_bytes + u64::from(extent.len) > self.config.cold_read_bytes_max {
            self.queues.cold_waits.push(index);
            return Got::Later;
        }
        slot.is_reading = true;
        self.cold_read_bytes += u64::from(extent.len);
        let read = QueueRead { index, generation: slot.generation, is_feed, from, until };
        self.read(vec![extent], ReadFor::Queue { read, bytes: extent.len });
        Got::Later
    }

    /// A piece of the log has been read for a cursor.
    pub(in crate::shard) fn queue_read_done(&mut self, read: QueueRead, result: Result<Vec<Slice>, ReadError>) {
        if let Some(slot) = self.queues.get_mut(read.index)
            && slot.generation == read.generation
        {
            slot.is_reading = false;
            match result {
                Ok(slices) => {
                    let piece = Piece {
                        bytes: Slice::concat(&slices),
                        walker: Walker::default(),
                        from: read.from,
                        until: read.until,
                        asked: Some(read.from),
                    };
                    if read.is_feed {
                        (slot.feed, slot.feed_place) = (piece, None);
                    } else {
                        slot.again = piece;
                    }
                }
                // Retention took it: the cursor moves to where the log begins. Else it is tried again: a damaged record is
                // never passed over in silence.
                Err(error) => {
                    self.counters.failures += 1;
                    let failure = super::super::read::read_failure(&error);
                    slot.heads.read_failed();
                    let waiters = std::mem::take(&mut slot.waiters);
                    self.queues.waiting -= waiters.len();
                    waiters.into_iter().for_each(|waiter| self.fail(waiter.origin, failure.clone()));
                }
            }
            self.queues.mark_dirty(read.index);
        }
    }

    /// A footer that cursors waited for is there, or can't be read.
    pub(in crate::shard) fn queue_footer_ready(&mut self, segment: u64, failure: Option<&Failure>) {
        let waits = std::mem::take(&mut self.queues.footer_waits);
        for (waits_for, index) in waits {
            if waits_for != segment {
                self.queues.footer_waits.push((waits_for, index));
                continue;
            }
            let Some(slot) = self.queues.get_mut(index) else { continue };
            slot.is_reading = false;
            if let Some(failure) = failure {
                slot.heads.read_failed();
                let waiters = std::mem::take(&mut slot.waiters);
                self.queues.waiting -= waiters.len();
                waiters.into_iter().for_each(|waiter| self.fail(waiter.origin, failure.clone()));
            } else {
                self.queues.mark_dirty(index);
            }
        }
    }

    /// One record again, wherever it is.
    pub(super) fn with_record<T>(
        &mut self,
        index: u32,
        slot: &mut Slot,
        offset: u64,
        work: impl FnOnce(&mut Cursor, &Shown<'_>) -> T,
    ) -> Got<T> {
        if let Some(spots) = &mut slot.spots
            && let Some(Spot { segment, frame, record }) = spots.get(offset)
        {
            let bytes = self.log.hot_from(segment, frame, &mut spots.near);
            match bytes.and_then(|bytes| record_at(bytes, slot.partition, offset, record as usize)) {
                Some(shown) => return Got::It(work(&mut slot.cursor, &shown)),
                None => spots.forget(offset),
            }
        }
        let transcode = self.config.transcode;
        let reading = Reading { transcode, transcode_bytes_max: TRANSCODED_MAX_BYTES, is_aborted: &|_| false };
        let Slot { again, cursor, .. } = slot;
        if offset < again.until {
            again.walker.go_back(offset);
            if let Found::Record(shown) = again.walker.find(&again.bytes, offset, reading)
                && shown.offset == offset
            {
                return Got::It(work(cursor, &shown));
            }
        }
        // The run that the last one was in, as far as that one.
        if let Some((extent, walker)) = &mut slot.hot
            && let Some(bytes) = self.log.hot_bytes(*extent)
            && let Found::Record(shown) = walker.find(bytes, offset, reading)
            && shown.offset == offset
        {
            return Got::It(work(&mut slot.cursor, &shown));
        }
        match self.log.locate(slot.partition, Offset(offset), Offset(offset + 1), 1) {
            Located::Wait { segment } => {
                if !slot.is_reading {
                    slot.is_reading = true;
                    self.queues.footer_waits.push((segment, index));
                }
                Got::Later
            }
            Located::Runs { extents, next_offset, .. } => {
                let Some(extent) = extents.first().copied() else { return Got::Gone };
                match self.log.hot_bytes(extent) {
                    Some(bytes) => match slot.hot.insert((extent, Walker::default())).1.find(bytes, offset, reading) {
                        Found::Record(shown) if shown.offset == offset => Got::It(work(&mut slot.cursor, &shown)),
                        _ => Got::Gone,
                    },
                    None if slot.is_reading => Got::Later,
                    // It was read just now, and doesn't have it.
                    None if slot.again.asked == Some(offset) => Got::Gone,
                    None => match self.read_for_queue(index, slot, extent, false, offset, next_offset.0) {
                        Got::Later => Got::Later,
                        _ => Got::Gone,
                    },
                }
            }
        }
    }

    /// How much longer than it asked a receive waits: its messages may be on their way from the disk.
    fn grace_us(&self, slot: &Slot) -> u64 {
        let cursor = &slot.cursor;
        let end = self.partitions.get(slot.partition).map_or(0, |partition| partition.readable_end(true).0);
        let has_more = cursor.first_ready().is_some() || cursor.next() < end;
        let is_coming = cursor.returning() > 0 || (has_more && (slot.is_reading || cursor.mark() <= cursor.next()));
        if is_coming && !cursor.config().paused { READ_GRACE_US } else { 0 }
    }

    /// Answers receives whose wait is over.
    fn end_waits(&mut self, slot: &mut Slot, now: Now) {
        let grace_us = self.grace_us(slot);
        let mut at = 0;
        while at < slot.waiters.len() {
            let waiter = slot.waiters[at];
            if waiter.deadline_us + grace_us <= now.monotonic_us {
                slot.waiters.remove(at);
                self.queues.waiting -= 1;
                let partition = slot.partition;
                self.reply_messages(waiter.origin, partition, 0, Vec::new());
            } else {
                at += 1;
            }
        }
    }

    // ---- to other topics ------------------------------------------------------------------------------

    fn send_away(&mut self, index: u32, slot: &mut Slot, now: Now) {
        while slot.leaving < LEAVING_MAX && slot.leave_after_us <= now.monotonic_us {
            let Some((dying, topic)) = slot.cursor.pop_dying() else { return };
            let (name, partition) = (slot.name.clone(), slot.partition);
            let got = self.with_record(index, slot, dying.offset, |_, shown| forward(shown, &dying, &topic, &name, partition, now));
            match got {
                Got::It(forward) => {
                    slot.leaving += 1;
                    let leaving = Leaving { index, generation: slot.generation, age: slot.cursor.age(), dying };
                    self.ask(Asked::Forward(leaving), Request::Forward(Arc::new(forward)));
                }
                Got::Gone => slot.cursor.left(dying.offset, End::Dropped),
                Got::Later => return slot.cursor.not_yet(dying),
            }
        }
    }

    /// Whether a message is safe in its new topic.
    pub(in crate::shard) fn forward_answered(&mut self, leaving: Leaving, reply: &Reply, now: Now) {
        let Some(slot) = self.queues.get_mut(leaving.index) else { return };
        if slot.generation != leaving.generation || slot.cursor.age() != leaving.age {
            return;
        }
        slot.leaving = slot.leaving.saturating_sub(1);
        match reply {
            Reply::Produced { .. } => slot.cursor.left(leaving.dying.offset, End::Dead),
            _ => {
                // The topic is gone, full, or its shard is fenced: the message stays here until there is a place for it.
                slot.cursor.stays(leaving.dying);
                slot.leave_after_us = now.monotonic_us + LEAVE_AGAIN_US;
            }
        }
        self.queues.mark_dirty(leaving.index);
    }
}

/// A message that isn't delivered yet.
fn keep(cursor: &mut Cursor, _: &Shown<'_>, place: Place) -> bool {
    cursor.keep(place);
    true
}

/// Who is served next: the highest priority, then who came first; only the active one where there is one.
fn next_waiter(slot: &Slot) -> Option<usize> {
    let served = slot.waiters.iter().zip(0..).filter(|(waiter, _)| slot.cursor.serves(waiter.consumer));
    served.min_by_key(|(waiter, at)| (std::cmp::Reverse(waiter.priority), *at)).map(|(_, at)| at)
}

fn view<'a>(shown: &Shown<'a>, deliveries: u16) -> DeliveryView<'a> {
    DeliveryView {
        offset: shown.offset,
        append_time_ms: shown.append_time_ms,
        timestamp_ms: shown.record.timestamp_ms,
        deliveries,
        key: shown.record.key,
        value: shown.record.value,
        headers: shown.record.headers,
    }
}

/// Before the first of at most `count` messages: room for as many of its size, so that an answer isn't copied again and again as it grows.
fn reserve(out: &mut Vec<u8>, first: &DeliveryView<'_>, count: u64, waiter: &Waiter) {
    if out.is_empty() {
        let count = count.min(RECORDS_PER_TURN as u64) as usize;
        out.reserve((first.wire_bytes() * count).min(waiter.max_bytes as usize));
    }
}

/// The message as it goes to another topic: without what only this queue was to look at, with what happened to it.
fn forward(shown: &Shown<'_>, dying: &Dying, topic: &str, queue: &str, partition: PartitionId, now: Now) -> Forward {
    let mut kept = HeadersBuilder::default();
    let mut has_queue_headers = false;
    for (header, value) in headers(shown.record.headers).map_while(|header| header) {
        let ours = [name::DUE_MS, name::PRIORITY, name::TTL_MS];
        let old = [name::DEAD_REASON, name::DEAD_QUEUE, name::DEAD_PLACE, name::DEAD_TIME, name::DEAD_COUNT];
        if (shown.has_queue_headers && ours.contains(&header)) || old.contains(&header) {
            continue;
        }
        has_queue_headers |= shown.has_queue_headers && [name::TAG, name::MESSAGE_ID].contains(&header);
        kept.push(header, value);
    }
    kept.push(name::DEAD_REASON, Some(dying.death.text().as_bytes()))
        .push(name::DEAD_QUEUE, Some(queue.as_bytes()))
        .push(name::DEAD_TIME, Some(now.wall_ms.to_string().as_bytes()))
        .push(name::DEAD_COUNT, Some(dying.deliveries.to_string().as_bytes()));
    Forward {
        from: (partition, dying.offset),
        topic: topic.to_owned(),
        partition: PartitionId::STATE,
        spread: shown.record.key.map_or(dying.offset as u32, ringmain_wire::murmur2::murmur2),
        timestamp_ms: shown.record.timestamp_ms,
        key: shown.record.key.map(<[u8]>::to_vec),
        value: shown.record.value.map(<[u8]>::to_vec),
        headers: kept.as_bytes().to_vec(),
        has_queue_headers,
    }
}
