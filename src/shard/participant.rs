//! A partition's part in transactions: what is open in it, which were aborted, and the marker that ends one.
//!
//! The first transactional batch of a producer in a partition waits (*parked*) until the coordinator has confirmed
//! that the partition takes part; those that follow find the transaction open. So nothing is left open by a client
//! that never told the coordinator, or told it to end meanwhile. A native producer's partition joins with that question.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ringmain_wire::control::Durability;
use ringmain_wire::marker::marker_frame;
use ringmain_wire::queue::Settlement;
use ringmain_wire::{ErrorCode, Format, Frame, Offset, PartitionId, ProducerId};

use super::partition::NONE;
use super::transaction::Asked;
use super::{Busy, DEFERRED_MAX, Deferred, Shard};
use crate::log::Append;
use crate::request::queue::Settle;
use crate::request::transaction::{
    AbortedTransaction, ProducerDescription, ProducerKey, TransactionCheck, TransactionMarker, TransactionReply, slot_of_producer,
};
use crate::request::{Failure, Now, Origin, Reply, Request};

/// Batches that wait for a coordinator's word, over all partitions; more get `Overloaded`. Few: some of them came from
/// other cores and hold slots of mailboxes that the question needs, too …
const PARKED_MAX: usize = 128;
/// … and so do more bytes of them.
const PARKED_BYTES_MAX: usize = 16 << 20;
/// A confirmed batch for which the log had no room is tried again after this time.
const RETRY_US: u64 = 1_000;

/// Transactions in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionTransactions {
    /// First offset and producer of each that has no marker.
    open: BTreeMap<u64, i64>,
    /// Those whose marker isn't durable yet: first offset, and the commit group of the marker.
    ending: BTreeMap<u64, u64>,
    /// By offset of the marker.
    aborted: BTreeMap<u64, Aborted>,
}

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// Its producer.
    pub producer_id: ProducerId,
    /// Its first record.
    pub first_offset: Offset,
    /// No transaction that ended later begins below this.
    pub stable: Offset,
}

impl PartitionTransactions {
    /// The producer's first record of a transaction.
    pub fn begin(&mut self, first_offset: Offset, producer_id: ProducerId) {
        self.open.insert(first_offset.0, producer_id.0);
    }

    /// Its marker is in the log at `marker`, durable with commit group `sequence`.
    pub fn end(&mut self, producer_id: ProducerId, first_offset: Offset, marker: Offset, commit: bool, sequence: u64) {
        self.open.remove(&first_offset.0);
        self.ending.insert(first_offset.0, sequence);
        if !commit {
            let stable = self.open.keys().next().copied().unwrap_or(marker.0 + 1);
            self.aborted.insert(marker.0, Aborted { producer_id, first_offset, stable: Offset(stable) });
        }
    }

    /// Commit groups up to `sequence` are durable.
    pub fn settle(&mut self, sequence: u64) {
        self.ending.retain(|_, marker| *marker > sequence);
    }

    /// Some marker isn't durable yet.
    pub fn is_settling(&self) -> bool {
        !self.ending.is_empty()
    }

    /// First record of a transaction whose end isn't durable.
    pub fn first_unstable(&self) -> Option<Offset> {
        self.open.keys().next().into_iter().chain(self.ending.keys().next()).min().copied().map(Offset)
    }

    /// Aborted transactions with records in `from..below`, in order of their markers.
    pub fn aborted_in(&self, from: Offset, below: Offset) -> Box<[AbortedTransaction]> {
        let mut found = Vec::new();
        for (last_offset, aborted) in self.aborted.range(from.0..) {
            if aborted.first_offset < below {
                let Aborted { producer_id, first_offset, .. } = *aborted;
                found.push(AbortedTransaction { producer_id, first_offset, last_offset: Offset(*last_offset) });
            }
            if aborted.stable >= below {
                break;
            }
        }
        found.into_boxed_slice()
    }

    /// Whether a transactional frame took no effect. What isn't decided is nobody's to ask about.
    pub fn is_aborted(&self, frame: &Frame<'_>) -> bool {
        let (offset, producer_id) = (frame.base_offset(), frame.header.producer.producer_id);
        for aborted in self.aborted.range(offset.0..).map(|(_, aborted)| aborted) {
            if aborted.producer_id.0 == producer_id && aborted.first_offset <= offset {
                return true;
            }
            // Whatever ended later began later.
            if aborted.stable > offset {
                return false;
            }
        }
        false
    }

    /// Forgets aborted transactions that end below `log_start`; how many.
    pub fn prune(&mut self, log_start: Offset) -> usize {
        let kept = self.aborted.split_off(&log_start.0);
        std::mem::replace(&mut self.aborted, kept).len()
    }

    /// From a checkpoint: replaces what is open.
    pub fn restore_open(&mut self, open: impl Iterator<Item = (Offset, ProducerId)>) {
        self.open = open.map(|(first_offset, producer_id)| (first_offset.0, producer_id.0)).collect();
    }

    /// From a checkpoint. It knows better than the markers replayed before it.
    pub fn restore_aborted(&mut self, marker: Offset, aborted: Aborted) {
        self.aborted.insert(marker.0, aborted);
    }

    /// Aborted transactions whose marker is at `from` or behind, in order.
    pub fn aborted_from(&self, from: Offset) -> impl Iterator<Item = (Offset, &Aborted)> {
        self.aborted.range(from.0..).map(|(marker, aborted)| (Offset(*marker), aborted))
    }

    /// Open, and aborted and remembered.
    pub fn counts(&self) -> (usize, usize) {
        (self.open.len(), self.aborted.len())
    }
}

/// Batches and acknowledgements of one producer for one partition that wait for the coordinator.
#[derive(Debug)]
struct Parked {
    /// In the order they came.
    batches: VecDeque<(Origin, Waiting)>,
    /// The partition is to join the transaction by itself.
    joins: bool,
    progress: Progress,
}

#[derive(Debug)]
enum Waiting {
    /// A whole frame.
    Batch(Vec<u8>),
    Settle(Arc<Settle>),
}

impl Waiting {
    fn len_bytes(&self) -> usize {
        match self {
            Waiting::Batch(frame) => frame.len(),
            Waiting::Settle(settle) => settle.settlements.len() * Settlement::BYTES,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The coordinator was asked.
    Asked,
    /// … and its answer won't count: a marker has come since.
    AskAgain,
    /// It says yes; the log had no room.
    Confirmed,
}

/// Every parked batch of a shard.
#[derive(Debug, Default)]
pub struct ParkedBatches {
    waiting: BTreeMap<(PartitionId, ProducerKey), Parked>,
    count: usize,
    bytes: usize,
    /// When confirmed ones are tried again.
    retry_us: Option<u64>,
}

impl ParkedBatches {
    /// When the next pump has something to do for them.
    pub fn deadline_us(&self) -> Option<u64> {
        self.retry_us
    }

    fn push(&mut self, key: (PartitionId, ProducerKey), origin: Origin, waiting: Waiting, joins: bool) -> bool {
        (self.count, self.bytes) = (self.count + 1, self.bytes + waiting.len_bytes());
        let is_first = !self.waiting.contains_key(&key);
        let parked = self.waiting.entry(key).or_insert_with(|| Parked { batches: VecDeque::new(), joins, progress: Progress::Asked });
        parked.batches.push_back((origin, waiting));
        is_first
    }

    fn take(&mut self, key: &(PartitionId, ProducerKey)) -> VecDeque<(Origin, Waiting)> {
        let batches = self.waiting.remove(key).map(|parked| parked.batches).unwrap_or_default();
        self.count -= batches.len();
        self.bytes -= batches.iter().map(|(_, waiting)| waiting.len_bytes()).sum::<usize>();
        batches
    }

    fn put_back(&mut self, key: (PartitionId, ProducerKey), batches: VecDeque<(Origin, Waiting)>, joins: bool) {
        self.count += batches.len();
        self.bytes += batches.iter().map(|(_, waiting)| waiting.len_bytes()).sum::<usize>();
        self.waiting.insert(key, Parked { batches, joins, progress: Progress::Confirmed });
    }
}

/// How a transactional batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its transaction is open here, or it is none.
    Admitted,
    /// The coordinator must be asked.
    Unknown,
}

impl Shard {
    /// Whether a batch that was judged next in order may be appended. `is_confirmed`: the coordinator has been asked.
    pub(super) fn admit(
        &self,
        id: PartitionId,
        producer: ProducerKey,
        is_transactional: bool,
        is_confirmed: bool,
    ) -> Result<Admission, Failure> {
        let table = self.partitions.get(id).and_then(|partition| partition.producers.as_deref());
        let state = table.and_then(|table| table.get(producer.id));
        let is_open = state.is_some_and(|state| state.transaction_start.is_some());
        if !is_transactional {
            let message = "a batch outside of the transaction that its producer has open here";
            return if is_open { Err(Failure::new(ErrorCode::InvalidTransactionState, message)) } else { Ok(Admission::Admitted) };
        }
        if is_open && state.is_some_and(|state| state.epoch == producer.epoch) {
            return Ok(Admission::Admitted);
        }
        if slot_of_producer(producer.id).is_none() {
            return Err(Failure::new(ErrorCode::ProducerMismatch, "a transactional batch of a producer without transactional id"));
        }
        let remembered = self.counters.transactions_open + self.counters.transactions_aborted;
        if remembered >= self.config.transactions_max {
            let message = format!("{remembered} transactions are open, or aborted and still stored; shorten the topics' retention");
            return Err(Failure::new(ErrorCode::LimitExceeded, message));
        }
        Ok(if is_confirmed { Admission::Admitted } else { Admission::Unknown })
    }

    /// Whether batches of this producer wait already, so that others must queue behind them.
    pub(super) fn is_parked(&self, id: PartitionId, producer: ProducerKey) -> bool {
        !self.parked.waiting.is_empty() && self.parked.waiting.contains_key(&(id, producer))
    }

    /// Keeps a batch until the coordinator has answered.
    pub(super) fn park(&mut self, origin: Origin, id: PartitionId, producer: ProducerKey, frame: &Frame<'_>) {
        // Kafka's clients have told the coordinator before; ours leave it to the partition.
        let joins = frame.header.producer.format != Format::Kafka as u8;
        if self.has_room_to_park(origin, frame.len_bytes())
            && self.parked.push((id, producer), origin, Waiting::Batch(frame.to_vec()), joins)
        {
            self.ask_coordinator(id, producer, joins);
        }
    }

    /// The same for acknowledgements.
    pub(super) fn park_settle(&mut self, origin: Origin, settle: &Arc<Settle>, producer: ProducerKey) {
        let waiting = Waiting::Settle(settle.clone());
        let is_kept = self.has_room_to_park(origin, waiting.len_bytes());
        if is_kept && self.parked.push((settle.partition, producer), origin, waiting, true) {
            self.ask_coordinator(settle.partition, producer, true);
        }
    }

    fn has_room_to_park(&mut self, origin: Origin, bytes: usize) -> bool {
        let is_full = self.parked.count >= PARKED_MAX || (self.parked.bytes + bytes > PARKED_BYTES_MAX && self.parked.count > 0);
        if is_full {
            self.fail(origin, Failure::new(ErrorCode::Overloaded, "too many first batches of transactions at once"));
        }
        !is_full
    }

    fn ask_coordinator(&mut self, partition: PartitionId, producer: ProducerKey, joins: bool) {
        let check = TransactionCheck { producer, partition, joins };
        self.ask(Asked::Check { partition, producer }, Request::CheckTransaction(check));
    }

    /// The coordinator's word on a parked batch.
    pub(super) fn checked(&mut self, partition: PartitionId, producer: ProducerKey, reply: Reply, now: Now) {
        let key = (partition, producer);
        let Some(parked) = self.parked.waiting.get_mut(&key) else { return };
        if parked.progress == Progress::AskAgain {
            parked.progress = Progress::Asked;
            let joins = parked.joins;
            return self.ask_coordinator(partition, producer, joins);
        }
        let failure = match reply {
            Reply::Transaction(_) => return self.append_parked(key, now),
            Reply::Failed(failure) => failure,
            _ => ErrorCode::Internal.into(),
        };
        for (origin, _) in self.parked.take(&key) {
            self.fail(origin, failure.clone());
        }
    }

    fn append_parked(&mut self, key: (PartitionId, ProducerKey), now: Now) {
        let joins = self.parked.waiting.get(&key).is_some_and(|parked| parked.joins);
        let mut batches = self.parked.take(&key);
        while let Some((origin, waiting)) = batches.pop_front() {
            let bytes = match waiting {
                Waiting::Batch(bytes) => bytes,
                Waiting::Settle(settle) => {
                    self.stage_settled(origin, &settle, key.1, true, now);
                    continue;
                }
            };
            let Ok(frame) = Frame::parse(&bytes) else {
                self.fail(origin, ErrorCode::Internal.into());
                continue;
            };
            if self.produce_batch(origin, &frame, true, now).is_err() {
                batches.push_front((origin, Waiting::Batch(bytes)));
                self.parked.put_back(key, batches, joins);
                self.parked.retry_us = Some(now.monotonic_us + RETRY_US);
                return;
            }
        }
    }

    /// Tries confirmed batches again for which the log had no room.
    pub(super) fn retry_parked(&mut self, now: Now) {
        if self.parked.retry_us.is_none_or(|at| at > now.monotonic_us) {
            return;
        }
        self.parked.retry_us = None;
        let is_confirmed = |parked: &&Parked| parked.progress == Progress::Confirmed;
        let keys: Vec<_> = self.parked.waiting.iter().filter(|(_, parked)| is_confirmed(parked)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.append_parked(key, now));
    }

    /// Gives up on every parked batch.
    pub(super) fn fail_parked(&mut self, failure: &Failure) {
        let keys: Vec<_> = self.parked.waiting.keys().copied().collect();
        for key in keys {
            for (origin, _) in self.parked.take(&key) {
                self.fail(origin, failure.clone());
            }
        }
        self.parked.retry_us = None;
    }

    /// A transactional batch is appended at `base_offset`.
    pub(super) fn begin_transaction(&mut self, id: PartitionId, producer_id: ProducerId, base_offset: Offset) {
        let Some(partition) = self.partitions.get_mut(id) else { return };
        let Some(table) = partition.producers.as_deref_mut() else { return };
        if table.get(producer_id).is_some_and(|state| state.transaction_start.is_none()) {
            table.begin_transaction(producer_id, base_offset);
            partition.transactions.get_or_insert_default().begin(base_offset, producer_id);
            self.counters.transactions_open += 1;
        }
    }

    /// The coordinator's decision: a marker in the log, if there is anything to end. The answer waits for its flush.
    pub(super) fn write_marker(&mut self, origin: Origin, marker: TransactionMarker, now: Now) -> Result<(), Busy> {
        if let Some(failure) = self.refusal() {
            self.fail(origin, failure);
            return Ok(());
        }
        let TransactionMarker { partition: id, producer, commit } = marker;
        let Some(partition) = self.partitions.get(id) else {
            self.fail(origin, ErrorCode::UnknownPartition.into());
            return Ok(());
        };
        if self.deferred.len() >= DEFERRED_MAX {
            return Err(Busy);
        }
        let state = partition.producers.as_deref().and_then(|table| table.get(producer.id));
        let is_open = state.is_some_and(|state| state.transaction_start.is_some() && state.epoch <= producer.epoch);
        let end = partition.next_offset.plus(1);
        if is_open {
            if end > partition.reserve_at
                && let Err(error) = self.reserve_offsets(id, end, now)
            {
                return self.append_failed(origin, error);
            }
            if let Err(error) = self.append_marker(id, producer, commit, now) {
                return self.append_failed(origin, error);
            }
        }
        let has_queues = self.partitions.get(id).is_some_and(|partition| partition.has_queues);
        if has_queues && !self.decide_staged(id, producer, commit, now) {
            return Err(Busy);
        }
        self.recheck_parked(id, producer.id);
        let partition = self.partitions.get(id);
        let is_settling = partition.and_then(|partition| partition.transactions.as_deref()).is_some_and(PartitionTransactions::is_settling);
        if is_settling || (has_queues && self.last_sequence > self.flushed) {
            // Also if there was nothing to end: the marker of an earlier attempt may still be on its way.
            self.deferred.push_back((self.last_sequence, Deferred::Marker { origin, partition: id }));
        } else {
            self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Done)));
        }
        Ok(())
    }

    fn append_marker(&mut self, id: PartitionId, producer: ProducerKey, commit: bool, now: Now) -> Result<(), crate::log::AppendError> {
        let Some(partition) = self.partitions.get_mut(id) else { return Ok(()) };
        let at = partition.next_offset;
        let bytes = marker_frame(id, producer.id, producer.epoch, commit, now.wall_ms);
        let Ok(frame) = Frame::parse(&bytes) else { return Ok(()) };
        let appended = self.log.append(Append {
            frame,
            partition: id,
            base_offset: at,
            record_count: 1,
            largest_timestamp_ms: now.wall_ms,
            append_time_ms: now.wall_ms,
            // Also in topics that aren't: nobody would write a lost marker again.
            durability: Durability::Durable,
        })?;
        self.last_sequence = appended.sequence;
        self.counters.markers += 1;
        partition.next_offset = at.plus(1);
        partition.appended_bytes += u64::from(appended.extent.len);
        self.advances_on_flush.push(appended.sequence, id, at.plus(1));
        let table = partition.producers.get_or_insert_default();
        if let Some(first_offset) = table.end_transaction(producer.id, producer.epoch, now.wall_ms) {
            partition.transactions.get_or_insert_default().end(producer.id, first_offset, at, commit, appended.sequence);
            self.counters.transactions_open -= 1;
            self.counters.transactions_aborted += u64::from(!commit);
        }
        Ok(())
    }

    /// What the coordinator said before a marker says nothing about the time after it.
    fn recheck_parked(&mut self, id: PartitionId, producer_id: ProducerId) {
        let lives = |epoch| (id, ProducerKey { id: producer_id, epoch });
        let mut confirmed = Vec::new();
        for (key, parked) in self.parked.waiting.range_mut(lives(0)..=lives(u16::MAX)) {
            match parked.progress {
                Progress::Asked => parked.progress = Progress::AskAgain,
                Progress::AskAgain => {}
                Progress::Confirmed => {
                    parked.progress = Progress::Asked;
                    confirmed.push((*key, parked.joins));
                }
            }
        }
        confirmed.into_iter().for_each(|((partition, producer), joins)| self.ask_coordinator(partition, producer, joins));
    }

    /// Commit groups up to `sequence` are durable: their markers count from now on.
    pub(super) fn marker_durable(&mut self, origin: Origin, id: PartitionId, sequence: u64) {
        if let Some(partition) = self.partitions.get_mut(id) {
            if let Some(transactions) = partition.transactions.as_deref_mut() {
                transactions.settle(sequence);
            }
            if partition.waiting != NONE || partition.has_queues || self.watches.has(id) {
                self.woken.push(id);
            }
        }
        self.reply(origin, Reply::Transaction(Box::new(TransactionReply::Done)));
    }

    pub(super) fn describe_producers(&mut self, origin: Origin, id: PartitionId) {
        let Some(partition) = self.partitions.get(id) else {
            return self.fail(origin, ErrorCode::UnknownPartition.into());
        };
        let table = partition.producers.as_deref();
        let producers = table.map(|table| table.in_order_of_use()).unwrap_or_default();
        let mut producers: Vec<ProducerDescription> = producers
            .into_iter()
            .map(|(producer_id, state)| ProducerDescription {
                producer: ProducerKey { id: producer_id, epoch: state.epoch },
                last_sequence: state.stored().last().map_or(-1, |stored| stored.last_sequence),
                last_append_ms: state.last_append_ms,
                transaction_start: state.transaction_start,
            })
            .collect();
        producers.sort_unstable_by_key(|description| description.producer);
        self.reply(origin, Reply::Producers(producers));
    }
}
