//! Work that nobody waits for, in steps small enough for one turn of a core thread: checkpoints, retention,
//! expiry, reservations that are no longer needed; and the stop, which ends with a checkpoint.

use std::collections::VecDeque;

use ringmain_wire::control::Durability;
use ringmain_wire::{ErrorCode, Offset, PartitionId};

use super::checkpoint::{Cursor, Source, next_piece};
use super::state_record::StateRecord;
use super::{Busy, Deferred, Shard, ShardConfig};
use crate::log::AppendError;
use crate::request::{Failure, Now, Origin, Reply};

/// Partitions passed in one step of a round …
const PASSED_PER_STEP: usize = 1024;
/// … and of those, looked at closely.
const EXAMINED_PER_STEP: usize = 32;
/// Idempotent producers are looked through so often: much less than they live.
const EXPIRY_INTERVAL_US: u64 = 600_000_000;

/// Where the background work is.
#[derive(Debug)]
pub struct Background {
    /// The checkpoint being written.
    checkpoint: Option<Checkpoint>,
    checkpoint_wanted: bool,
    /// Its end is in the log and not durable yet: was it the final one?
    checkpoint_ending: Option<bool>,
    /// The log took no more: wait for progress.
    is_blocked: bool,
    state_bytes: u64,
    state_bytes_max: u64,
    /// The round over all partitions: where it goes on.
    round: Option<PartitionId>,
    round_expires: bool,
    next_round_us: u64,
    next_expiry_us: u64,
    interval_us: u64,
    /// Partitions that have become durable and still have offsets reserved.
    void: VecDeque<PartitionId>,
    is_final_done: bool,
    is_log_stopping: bool,
    is_fenced: bool,
}

#[derive(Debug)]
struct Checkpoint {
    cursor: Cursor,
    is_final: bool,
}

impl Background {
    /// Nothing to do before the first interval has passed.
    pub fn new(config: &ShardConfig, now: Now) -> Background {
        Background {
            checkpoint: None,
            checkpoint_wanted: false,
            checkpoint_ending: None,
            is_blocked: false,
            state_bytes: 0,
            state_bytes_max: config.checkpoint_after_state_bytes,
            round: None,
            round_expires: false,
            next_round_us: now.monotonic_us + config.retention_interval_us,
            next_expiry_us: now.monotonic_us + EXPIRY_INTERVAL_US,
            interval_us: config.retention_interval_us,
            void: VecDeque::new(),
            is_final_done: false,
            is_log_stopping: false,
            is_fenced: false,
        }
    }

    /// The log has begun a new segment: a checkpoint and a look at retention are due. A checkpoint under way is
    /// enough: if one that is larger than a segment asked for the next, there would be no end of them.
    pub fn rolled(&mut self) {
        self.checkpoint_wanted |= self.checkpoint.is_none() && self.checkpoint_ending.is_none();
        self.next_round_us = 0;
    }

    /// So many bytes of state more to replay.
    pub fn state_logged(&mut self, bytes: u64) {
        self.state_bytes += bytes;
        self.checkpoint_wanted |= self.state_bytes >= self.state_bytes_max;
    }

    /// The log may take more again.
    pub fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Nothing can be written any more.
    pub fn fenced(&mut self) {
        self.is_fenced = true;
        self.checkpoint = None;
        self.checkpoint_ending = None;
        self.round = None;
        self.void.clear();
    }

    /// The checkpoint that ended last is durable.
    pub fn checkpoint_durable(&mut self) {
        self.is_final_done |= self.checkpoint_ending.take() == Some(true);
    }

    /// The partition is `durable` now: its reservation is to be voided.
    pub fn void_reservation(&mut self, id: PartitionId) {
        self.void.push_back(id);
    }

    /// When the next round begins. While the log takes nothing, its progress is what to wait for.
    pub fn deadline_us(&self) -> Option<u64> {
        (!self.is_fenced && !self.is_blocked && self.round.is_none()).then_some(self.next_round_us)
    }

    /// Something is under way and not blocked.
    pub fn has_backlog(&self) -> bool {
        let wants_checkpoint = self.checkpoint.is_some() || (self.checkpoint_wanted && self.checkpoint_ending.is_none());
        !self.is_fenced && !self.is_blocked && (wants_checkpoint || self.round.is_some() || !self.void.is_empty())
    }
}

impl Shard {
    /// One bounded step of everything.
    pub(super) fn background_step(&mut self, now: Now) {
        if self.background.is_fenced {
            return;
        }
        if !self.background.is_blocked {
            self.log_slots(now);
            self.void_reservations(now);
            self.checkpoint_step(now);
            self.round_step(now);
        }
        if self.stopping && self.background.is_final_done && !self.background.is_log_stopping && !self.queues.has_backlog() {
            self.background.is_log_stopping = true;
            self.log.stop(now);
        }
    }

    /// The log didn't take a record: waits, or does without.
    fn background_failed(&mut self, error: AppendError) {
        if error != AppendError::Busy && self.stopping {
            // No room for the final checkpoint: the next start replays from the last one.
            self.background.checkpoint = None;
            self.background.is_final_done = true;
        }
        self.background.is_blocked = true;
    }

    /// At the first start of a data directory.
    fn log_slots(&mut self, now: Now) {
        let Some(slots) = self.slots_unlogged.take() else { return };
        if let Err(error) = self.log_state(&StateRecord::Catalog(slots.clone()), None, now) {
            self.slots_unlogged = Some(slots);
            self.background_failed(error);
        }
    }

    fn checkpoint_step(&mut self, now: Now) {
        let Some(checkpoint) = &self.background.checkpoint else {
            return self.begin_checkpoint(now);
        };
        let is_final = checkpoint.is_final;
        if checkpoint.cursor == Cursor::Done {
            return self.end_checkpoint(is_final, now);
        }
        let source = Source {
            catalog: self.config.is_catalog.then_some(&self.catalog),
            producer_ids_end: self.producer_ids_end_logged,
            coordinator: &self.coordinator,
            partitions: &self.partitions,
            groups: &self.groups,
            queues: &self.queues,
            is_final,
        };
        let (records, next) = next_piece(&checkpoint.cursor, source);
        for record in records {
            if let Err(error) = self.log_state(&record, None, now) {
                // The step is repeated: a piece that is there twice says the same twice.
                return self.background_failed(error);
            }
        }
        self.background.checkpoint = Some(Checkpoint { cursor: next, is_final });
    }

    fn begin_checkpoint(&mut self, now: Now) {
        let is_final = self.stopping && !self.background.is_final_done;
        let is_due = is_final || (self.background.checkpoint_wanted && !self.stopping);
        if !is_due || self.background.checkpoint_ending.is_some() {
            return;
        }
        match self.log.checkpoint_begin(now) {
            Ok(appended) => {
                self.last_sequence = appended.sequence;
                self.background.checkpoint = Some(Checkpoint { cursor: Cursor::Numbers, is_final });
                self.background.checkpoint_wanted = false;
                self.background.state_bytes = 0;
            }
            Err(error) => self.background_failed(error),
        }
    }

    fn end_checkpoint(&mut self, is_final: bool, now: Now) {
        match self.log.checkpoint_end(now) {
            Ok(appended) => {
                self.last_sequence = appended.sequence;
                self.background.checkpoint = None;
                self.background.checkpoint_ending = Some(is_final);
                self.deferred.push_back((appended.sequence, Deferred::CheckpointEnd));
            }
            Err(error) => self.background_failed(error),
        }
    }

    /// One step of the round over all partitions: retention, and now and then expiry.
    fn round_step(&mut self, now: Now) {
        if self.stopping {
            (self.background.round, self.background.next_round_us) = (None, u64::MAX);
            return;
        }
        if self.background.round.is_some() && self.dead_step(now) {
            return;
        }
        let mut from = match self.background.round {
            Some(from) => from,
            None if now.monotonic_us >= self.background.next_round_us => {
                self.background.next_round_us = now.monotonic_us + self.background.interval_us;
                self.background.round_expires = now.monotonic_us >= self.background.next_expiry_us;
                self.dead_round(now);
                if self.background.round_expires {
                    self.background.next_expiry_us = now.monotonic_us + EXPIRY_INTERVAL_US;
                }
                PartitionId(0)
            }
            None => return,
        };
        let (mut passed, mut examined) = (0, 0);
        self.background.round = loop {
            if passed == PASSED_PER_STEP || examined == EXAMINED_PER_STEP {
                break Some(from);
            }
            let Some(partition) = self.partitions.next_from(from) else { break None };
            let id = partition.id;
            let is_limited = partition.config.retention_ms.is_some() || partition.config.retention_bytes.is_some();
            let expires = self.background.round_expires && partition.producers.is_some();
            let is_read = partition.has_queues;
            if is_limited {
                self.retain(id, now);
            }
            let drops = is_read && self.drop_acked(id, now);
            if expires {
                self.expire_producers(id, now);
            }
            passed += 1;
            examined += usize::from(is_limited || expires || is_read);
            from = PartitionId(id.0 + 1);
            if drops && self.dead_begin(id) {
                break Some(from);
            }
        };
        if self.background.round.is_none() {
            self.log.dead_end();
        }
    }

    /// Logs a new log start if all queues over the partition have settled more, and one of them says that records go then: whether one does.
    fn drop_acked(&mut self, id: PartitionId, now: Now) -> bool {
        let Some(floor) = self.queues.dropped_below(id) else { return false };
        let Some(partition) = self.partitions.get(id) else { return false };
        let (offset, logged) = (floor.min(partition.readable_end(true)), partition.log_start_logged);
        // In the log what was settled comes before what it takes away.
        if offset > logged && self.cursors_are_logged(id, now) {
            self.log_start(id, offset, now);
        }
        true
    }

    fn log_start(&mut self, id: PartitionId, offset: Offset, now: Now) {
        let record = StateRecord::LogStart { partition: id.0, offset: offset.0 };
        match self.log_state(&record, Some(Deferred::LogStart { partition: id, offset }), now) {
            Ok(_) => {
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.log_start_logged = offset;
                }
            }
            Err(error) => self.background_failed(error),
        }
    }

    /// Logs a new log start if the partition's oldest piece has outlived its time or its share of bytes.
    fn retain(&mut self, id: PartitionId, now: Now) {
        let Some(partition) = self.partitions.get(id) else { return };
        let (config, high_watermark) = (partition.config, partition.high_watermark);
        if partition.log_start_logged > partition.log_start || partition.log_start == high_watermark {
            return;
        }
        let log_start = partition.log_start;
        let Some((offset, append_time_ms, oldest_bytes)) = self.log.oldest(id) else { return };
        let age_ms = u64::try_from(now.wall_ms.saturating_sub(append_time_ms)).unwrap_or(0);
        let is_too_old = config.retention_ms.is_some_and(|ms| age_ms > ms);
        let rest_bytes = self.log.partition_bytes(id).saturating_sub(oldest_bytes);
        let is_too_much = config.retention_bytes.is_some_and(|bytes| rest_bytes >= bytes);
        if !(is_too_old || is_too_much) || offset > high_watermark || offset <= log_start {
            return;
        }
        self.log_start(id, offset, now);
    }

    /// Somebody wants records gone.
    pub(super) fn delete_before(&mut self, origin: Origin, id: PartitionId, before: Option<Offset>, now: Now) -> Result<(), Busy> {
        if let Some(failure) = self.refusal() {
            self.fail(origin, failure);
            return Ok(());
        }
        let Some(partition) = self.partitions.get(id) else {
            self.fail(origin, ErrorCode::UnknownPartition.into());
            return Ok(());
        };
        let (log_start, high_watermark) = (partition.log_start, partition.high_watermark);
        let offset = before.unwrap_or(high_watermark);
        if offset > high_watermark {
            let message = format!("offset {offset} of partition {id}: stored are {log_start} to {high_watermark}");
            self.fail(origin, Failure::new(ErrorCode::OffsetOutOfRange, message));
            return Ok(());
        }
        if offset <= log_start {
            self.reply(origin, Reply::LogStart { offset: log_start });
            return Ok(());
        }
        // One that is on its way may go further.
        let offset = offset.max(partition.log_start_logged);
        let record = StateRecord::LogStart { partition: id.0, offset: offset.0 };
        match self.log_state(&record, Some(Deferred::DeletedBefore { origin, partition: id, offset }), now) {
            Ok(_) => {
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.log_start_logged = offset;
                }
                Ok(())
            }
            Err(error) => self.append_failed(origin, error),
        }
    }

    /// The new log start is durable; the next piece may be due as well.
    pub(super) fn cut(&mut self, id: PartitionId, offset: Offset, now: Now) {
        let Some(partition) = self.partitions.get_mut(id) else { return };
        partition.log_start = partition.log_start.max(offset);
        if let Some(transactions) = partition.transactions.as_deref_mut() {
            self.counters.transactions_aborted -= transactions.prune(partition.log_start) as u64;
        }
        self.log.truncate_before(id, offset);
        self.counters.retention_cuts += 1;
        if !self.stopping {
            self.retain(id, now);
        }
    }

    fn expire_producers(&mut self, id: PartitionId, now: Now) {
        let Some(partition) = self.partitions.get_mut(id) else { return };
        let Some(table) = partition.producers.as_deref_mut() else { return };
        self.counters.producers -= table.expire(now.wall_ms) as u64;
        if table.is_empty() {
            partition.producers = None;
        }
    }

    fn void_reservations(&mut self, now: Now) {
        for _ in 0..EXAMINED_PER_STEP {
            let Some(id) = self.background.void.front().copied() else { return };
            let is_due = |partition: &super::Partition| {
                partition.config.durability == Durability::Durable && partition.reserved_end_logged > Offset(0)
            };
            if self.partitions.get(id).is_some_and(is_due) {
                let record = StateRecord::Reserved { partition: id.0, end: 0 };
                if let Err(error) = self.log_state(&record, Some(Deferred::Reserved { partition: id, end: Offset(0) }), now) {
                    return self.background_failed(error);
                }
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.reserved_end_logged = Offset(0);
                }
            }
            self.background.void.pop_front();
        }
    }
}
