//! What a partition remembers of its idempotent producers, as Kafka does: an epoch and the last five batches.
//!
//! A pure table, fed by accepted batches in log order, so that replaying frame headers rebuilds it.

use std::collections::HashMap;

use ringmain_wire::{ErrorCode, Offset, ProducerId};

use crate::request::transaction::ProducerKey;

/// Batches remembered per producer: a client may have so many requests unanswered.
pub const BATCHES_REMEMBERED: usize = 5;
/// A producer idle for so long is forgotten.
pub const EXPIRES_AFTER_MS: i64 = 24 * 60 * 60 * 1000;

/// One batch as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The producer.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub epoch: u16,
    /// Sequence of the first record.
    pub first_sequence: i32,
    /// At least 1.
    pub record_count: u32,
}

/// What is to be done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one: append it.
    Accept,
    /// Stored before: answer with its offset.
    Duplicate(Offset),
}

/// A batch that was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its first record.
    pub base_offset: u64,
}

/// One producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Newest epoch seen.
    pub epoch: u16,
    /// Time of the last batch, ms since the Unix epoch.
    pub last_append_ms: i64,
    /// First offset of its open transaction in this partition.
    pub transaction_start: Option<Offset>,
    /// Order of use within the partition; larger = more recent.
    used: u64,
    /// Oldest first; the first `stored_count` are valid.
    stored: [Stored; BATCHES_REMEMBERED],
    stored_count: u8,
}

/// The producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerTable {
    producers: HashMap<i64, ProducerState>,
    uses: u64,
}

impl ProducerTable {
    /// Judges a batch; changes nothing.
    ///
    /// Errors: `StaleProducerEpoch`, `UnknownProducer` (not known or expired, and not at sequence 0),
    /// `OutOfOrderSequence` (a gap, or a batch cut differently than before), `DuplicateSequence` (stored too
    /// long ago to know its offset), `InvalidBatch` (no sequence).
    pub fn judge(&self, batch: Batch, now_ms: i64) -> Result<Verdict, ErrorCode> {
        if batch.first_sequence < 0 || batch.record_count == 0 || batch.record_count > i32::MAX as u32 {
            return Err(ErrorCode::InvalidBatch);
        }
        let known = self.producers.get(&batch.producer_id.0).filter(|state| !state.is_expired(now_ms));
        let Some(state) = known else {
            return if batch.first_sequence == 0 { Ok(Verdict::Accept) } else { Err(ErrorCode::UnknownProducer) };
        };
        if batch.epoch < state.epoch {
            return Err(ErrorCode::StaleProducerEpoch);
        }
        if batch.epoch > state.epoch {
            return if batch.first_sequence == 0 { Ok(Verdict::Accept) } else { Err(ErrorCode::OutOfOrderSequence) };
        }
        state.judge(batch.first_sequence, last_sequence(batch.first_sequence, batch.record_count))
    }

    /// Remembers a batch that was appended. `limit`: producers kept; the least recently used goes.
    pub fn record(&mut self, batch: Batch, base_offset: Offset, append_time_ms: i64, limit: usize) {
        self.uses += 1;
        let used = self.uses;
        if !self.producers.contains_key(&batch.producer_id.0) && self.producers.len() >= limit {
            self.evict_least_recent();
        }
        let stored = Stored {
            first_sequence: batch.first_sequence,
            last_sequence: last_sequence(batch.first_sequence, batch.record_count),
            base_offset: base_offset.0,
        };
        let state = self.producers.entry(batch.producer_id.0).or_insert_with(|| ProducerState::new(batch.epoch));
        if state.epoch != batch.epoch || state.is_expired(append_time_ms) {
            *state = ProducerState::new(batch.epoch);
        }
        state.push(stored);
        state.used = used;
        state.last_append_ms = append_time_ms;
    }

    /// One producer.
    pub fn get(&self, producer_id: ProducerId) -> Option<&ProducerState> {
        self.producers.get(&producer_id.0)
    }

    /// Whether one more producer finds room: by eviction if need be, but never of one with an open transaction.
    pub fn has_room_for(&self, producer_id: ProducerId, limit: usize) -> bool {
        self.producers.len() < limit
            || self.producers.contains_key(&producer_id.0)
            || self.producers.values().any(|state| state.transaction_start.is_none())
    }

    /// The batch recorded last is its producer's first of a transaction.
    pub fn begin_transaction(&mut self, producer_id: ProducerId, first_offset: Offset) {
        if let Some(state) = self.producers.get_mut(&producer_id.0) {
            state.transaction_start = Some(first_offset);
        }
    }

    /// A marker: where the transaction began that it ends, if one was open. The producer goes on in the marker's
    /// epoch; what is older is stale from now on.
    pub fn end_transaction(&mut self, producer_id: ProducerId, epoch: u16, now_ms: i64) -> Option<Offset> {
        let state = self.producers.get_mut(&producer_id.0)?;
        let start = state.transaction_start.take();
        if epoch > state.epoch {
            *state = ProducerState { used: state.used, ..ProducerState::new(epoch) };
        }
        state.last_append_ms = now_ms;
        start
    }

    /// Forgets producers that have been idle too long; how many.
    pub fn expire(&mut self, now_ms: i64) -> usize {
        let before = self.producers.len();
        self.producers.retain(|_, state| !state.is_expired(now_ms));
        before - self.producers.len()
    }

    /// Producers remembered.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Every producer, least recently used first: what a checkpoint stores.
    pub fn in_order_of_use(&self) -> Vec<(ProducerId, &ProducerState)> {
        let mut producers: Vec<_> = self.producers.iter().map(|(id, state)| (ProducerId(*id), state)).collect();
        producers.sort_unstable_by_key(|(_, state)| state.used);
        producers
    }

    /// From a checkpoint: the most recently used so far.
    pub fn restore(&mut self, producer: ProducerKey, last_append_ms: i64, transaction_start: Option<Offset>, stored: &[Stored]) {
        self.uses += 1;
        let ProducerKey { id: producer_id, epoch } = producer;
        let mut state = ProducerState { transaction_start, ..ProducerState::new(epoch) };
        stored.iter().for_each(|batch| state.push(*batch));
        state.used = self.uses;
        state.last_append_ms = last_append_ms;
        self.producers.insert(producer_id.0, state);
    }

    fn evictable(&self) -> impl Iterator<Item = (&i64, &ProducerState)> {
        self.producers.iter().filter(|(_, state)| state.transaction_start.is_none())
    }

    /// A linear search: it only runs when a partition has as many producers as it may and one more comes.
    fn evict_least_recent(&mut self) {
        if let Some(oldest) = self.evictable().min_by_key(|(_, state)| state.used).map(|(id, _)| *id) {
            self.producers.remove(&oldest);
        }
    }
}

impl ProducerState {
    fn new(epoch: u16) -> ProducerState {
        ProducerState {
            epoch,
            last_append_ms: 0,
            transaction_start: None,
            used: 0,
            stored: [Stored::default(); BATCHES_REMEMBERED],
            stored_count: 0,
        }
    }

    /// Batches remembered, oldest first.
    pub fn stored(&self) -> &[Stored] {
        &self.stored[..usize::from(self.stored_count)]
    }

    fn is_expired(&self, now_ms: i64) -> bool {
        self.transaction_start.is_none() && now_ms.saturating_sub(self.last_append_ms) > EXPIRES_AFTER_MS
    }

    fn push(&mut self, stored: Stored) {
        if usize::from(self.stored_count) == BATCHES_REMEMBERED {
            self.stored.rotate_left(1);
            self.stored[BATCHES_REMEMBERED - 1] = stored;
        } else {
            self.stored[usize::from(self.stored_count)] = stored;
            self.stored_count += 1;
        }
    }

    fn judge(&self, first: i32, last: i32) -> Result<Verdict, ErrorCode> {
        let (Some(oldest), Some(newest)) = (self.stored().first(), self.stored().last()) else {
            return if first == 0 { Ok(Verdict::Accept) } else { Err(ErrorCode::OutOfOrderSequence) };
        };
        if first == next_sequence(newest.last_sequence) {
            return Ok(Verdict::Accept);
        }
        if let Some(same) = self.stored().iter().find(|batch| batch.first_sequence == first && batch.last_sequence == last) {
            return Ok(Verdict::Duplicate(Offset(same.base_offset)));
        }
        if is_before(first, oldest.first_sequence) { Err(ErrorCode::DuplicateSequence) } else { Err(ErrorCode::OutOfOrderSequence) }
    }
}

/// Sequences wrap from `i32::MAX` to 0.
fn next_sequence(sequence: i32) -> i32 {
    if sequence == i32::MAX { 0 } else { sequence + 1 }
}

fn last_sequence(first: i32, record_count: u32) -> i32 {
    ((i64::from(first) + i64::from(record_count) - 1) & i64::from(i32::MAX)) as i32
}

/// On the circle of 2³¹ sequences: `a` lies in the half before `b`.
fn is_before(a: i32, b: i32) -> bool {
    let ahead = (i64::from(b) - i64::from(a)) & i64::from(i32::MAX);
    ahead != 0 && ahead < 1 << 30
}
