//! Messages that a partition recognises by their publishers' ids, for a time: what a queue's `dedup_window_ms` asks for.
//!
//! The ids of a batch are logged right before it, with its checksum: they count when the batch behind them is the one they belong to. A
//! checkpoint holds the whole table.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use ringmain_wire::frame::flags;
use ringmain_wire::queue::QueueHeaders;
use ringmain_wire::{ErrorCode, Format, Frame, Offset, PartitionId, ProducerId, Records};

use super::producer_state::Batch;
use super::state_record::{KnownIdsPiece, MessageIdPiece, MessageIdsPiece, ProducerAdvancedPiece, StateRecord};
use super::{Busy, Shard};
use crate::log::AppendError;
use crate::request::{Failure, Now, Origin};

/// Longest id that is compared, in bytes.
pub const MESSAGE_ID_MAX_BYTES: usize = 255;
/// Ids remembered per partition; beyond, the oldest is forgotten before its time.
pub const IDS_PER_PARTITION_MAX: usize = 100_000;
/// Ids remembered by a shard; beyond, the oldest of the partition is forgotten for the new one, which finds no room where there is none.
pub const IDS_PER_SHARD_MAX: usize = 1_000_000;

/// The ids that a partition remembers.
#[derive(Debug, Default)]
pub struct MessageIds {
    window_ms: u64,
    known: HashMap<Rc<[u8]>, u64>,
    /// In the order in which they came.
    order: VecDeque<Entry>,
    /// Entries that have left `order` at the front.
    forgotten: u64,
    /// Logged, and the batch hasn't come yet: replay only.
    announced: Option<Box<MessageIdsPiece>>,
}

#[derive(Debug)]
struct Entry {
    id: Rc<[u8]>,
    offset: u64,
    time_ms: i64,
}

/// What is known of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// All of it is new; the ids in it, by index of the record.
    New(Vec<(u32, Vec<u8>)>),
    /// All of it is stored, one record after the other from here on.
    Stored(Offset),
    /// Some of it is; the index of the first that is, and where.
    Mixed { index: u32, offset: u64 },
}

impl MessageIds {
    /// Ids remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    fn forget_old(&mut self, now_ms: i64) {
        let since_ms = now_ms.saturating_sub(i64::try_from(self.window_ms).unwrap_or(i64::MAX));
        while self.order.front().is_some_and(|entry| entry.time_ms < since_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.order.pop_front() {
            self.forgotten += 1;
            if self.known.get(&entry.id) == Some(&entry.offset) {
                self.known.remove(&entry.id);
            }
        }
    }

    fn insert(&mut self, id: &[u8], offset: u64, time_ms: i64) {
        let id: Rc<[u8]> = id.into();
        // A piece of a checkpoint may say again what a batch behind its begin has said.
        if self.known.insert(id.clone(), offset) != Some(offset) {
            self.order.push_back(Entry { id, offset, time_ms });
        }
        if self.order.len() > IDS_PER_PARTITION_MAX {
            self.forget_oldest();
        }
    }

    /// What is known of a batch whose records have these ids. `None` = a record without one.
    fn recognise(&self, ids: Vec<Option<&[u8]>>) -> Recognised {
        let known = |id: &Option<&[u8]>| id.and_then(|id| self.known.get(id).copied());
        let first = ids.first().and_then(known);
        if let Some(base) = first
            && ids.iter().zip(base..).all(|(id, offset)| known(id) == Some(offset))
        {
            return Recognised::Stored(Offset(base));
        }
        let mut new = HashSet::new();
        for (index, id) in (0..).zip(&ids) {
            let Some(bytes) = id else { continue };
            match known(id) {
                Some(offset) => return Recognised::Mixed { index, offset },
                // Twice in one batch: the second is stored once the first is.
                None if !new.insert(*bytes) => return Recognised::Mixed { index, offset: u64::MAX },
                None => {}
            }
        }
        Recognised::New((0..).zip(ids).filter_map(|(index, id)| Some((index, id?.to_vec()))).collect())
    }

    /// Ids from place `from` on, in the order in which they came, and the place of the first of them.
    pub fn entries_from(&self, from: u64) -> (u64, impl Iterator<Item = MessageIdPiece>) {
        let from = from.max(self.forgotten);
        let entries = self.order.iter().skip((from - self.forgotten) as usize);
        (from, entries.map(|entry| MessageIdPiece { id: entry.id.to_vec(), offset: entry.offset, time_ms: entry.time_ms }))
    }

    /// Replay: ids of a batch that comes next.
    pub fn announce(&mut self, piece: Box<MessageIdsPiece>) {
        self.announced = Some(piece);
    }

    /// Replay: a batch.
    pub fn arrived(&mut self, base_offset: u64, body_crc: u32) {
        let Some(piece) = self.announced.take_if(|piece| piece.base == base_offset) else { return };
        if piece.body_crc == body_crc {
            piece.ids.iter().for_each(|(index, id)| self.insert(id, base_offset + u64::from(*index), piece.time_ms));
        }
    }

    /// Replay: part of a checkpoint, which begins with the oldest that is remembered. Who knows those behind it keeps them: the checkpoint
    /// may not come to its end.
    pub fn restore(&mut self, piece: &KnownIdsPiece) {
        if let (true, Some(oldest)) = (piece.is_first, piece.ids.first()) {
            while self.order.front().is_some_and(|entry| entry.time_ms < oldest.time_ms) {
                self.forget_oldest();
            }
        }
        piece.ids.iter().for_each(|it| self.insert(&it.id, it.offset, it.time_ms));
    }

    #[cfg(test)]
    pub fn summary(&self) -> Vec<(Vec<u8>, u64, i64)> {
        self.order.iter().map(|entry| (entry.id.to_vec(), entry.offset, entry.time_ms)).collect()
    }
}

/// The ids of a batch's records. Errors: they can't be read, or one is too long.
fn ids_of<'a>(frame: &Frame<'a>) -> Result<Vec<Option<&'a [u8]>>, Failure> {
    let unreadable = || Failure::new(ErrorCode::InvalidBatch, "the records can't be read, and their topic recognises them by their ids");
    let records = Records::new(frame.body(), frame.header.producer.record_count).map_err(|_| unreadable())?;
    let ids: Vec<Option<&[u8]>> = records
        .map(|record| record.map(|record| QueueHeaders::read(record.headers).message_id))
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    match ids.iter().flatten().find(|id| id.len() > MESSAGE_ID_MAX_BYTES) {
        Some(id) => {
            let message = format!("a message id of {} bytes; up to {MESSAGE_ID_MAX_BYTES} are compared", id.len());
            Err(Failure::new(ErrorCode::InvalidArgument, message))
        }
        None => Ok(ids),
    }
}

impl Shard {
    /// The longest time for which a queue over the partition wants ids remembered. Without any they are forgotten.
    pub(super) fn set_dedup_window(&mut self, id: PartitionId) {
        let window_ms = self.queues.dedup_window_ms(id);
        let Some(partition) = self.partitions.get_mut(id) else { return };
        match window_ms {
            Some(window_ms) => partition.message_ids.get_or_insert_default().window_ms = window_ms,
            None => self.counters.message_ids -= partition.message_ids.take().map_or(0, |ids| ids.len() as u64),
        }
    }

    /// What the partition knows of a batch; `None` = it doesn't look. A batch of a transaction isn't looked at: it may come to nothing.
    pub(super) fn recognise(&mut self, id: PartitionId, frame: &Frame<'_>, now: Now) -> Result<Option<Recognised>, Failure> {
        let Some(ids) = self.partitions.get_mut(id).and_then(|partition| partition.message_ids.as_deref_mut()) else { return Ok(None) };
        let producer = &frame.header.producer;
        let has_ids = producer.flags & flags::QUEUE_HEADERS != 0 && producer.flags & flags::TRANSACTIONAL == 0;
        if !has_ids || producer.format != Format::Native as u8 {
            return Ok(None);
        }
        let before = ids.len();
        ids.forget_old(now.wall_ms);
        self.counters.message_ids -= (before - ids.len()) as u64;
        ids_of(frame).map(|of_batch| Some(ids.recognise(of_batch)))
    }

    /// All of a batch is stored already. Its producer goes on behind it, also after a crash.
    pub(super) fn acknowledge_known(
        &mut self,
        origin: Origin,
        id: PartitionId,
        base: Offset,
        record_count: u32,
        idempotent: Option<Batch>,
        now: Now,
    ) -> Result<(), Busy> {
        if let Some(batch) = idempotent {
            let piece = Box::new(ProducerAdvancedPiece {
                partition: id.0,
                producer_id: batch.producer_id.0,
                epoch: batch.epoch,
                first_sequence: batch.first_sequence,
                record_count,
                base_offset: base.0,
                time_ms: now.wall_ms,
            });
            if let Err(error) = self.log_state(&StateRecord::ProducerAdvanced(piece), None, now) {
                return self.append_failed(origin, error);
            }
            self.remember(id, batch, base, now);
            self.counters.duplicates += 1;
            self.acks_on_flush.push(self.last_sequence, now.wall_ms, origin, base, true, 0);
        } else {
            self.acknowledge_duplicate(origin, id, base, record_count, now);
        }
        Ok(())
    }

    /// Says in the log which ids the batch has that comes next.
    pub(super) fn log_message_ids(
        &mut self,
        id: PartitionId,
        base: Offset,
        frame: &Frame<'_>,
        ids: &[(u32, Vec<u8>)],
        now: Now,
    ) -> Result<(), AppendError> {
        if ids.is_empty() {
            return Ok(());
        }
        let body_crc = frame.header.producer.body_crc;
        let piece = MessageIdsPiece { partition: id.0, base: base.0, body_crc, time_ms: now.wall_ms, ids: ids.to_vec() };
        self.log_state(&StateRecord::MessageIds(Box::new(piece)), None, now).map(|_| ())
    }

    /// The batch has come.
    pub(super) fn remember_ids(&mut self, id: PartitionId, base: Offset, ids: &[(u32, Vec<u8>)], now: Now) {
        let Some(table) = self.partitions.get_mut(id).and_then(|partition| partition.message_ids.as_deref_mut()) else { return };
        for (index, message_id) in ids {
            let is_over = table.len() >= IDS_PER_PARTITION_MAX || self.counters.message_ids >= IDS_PER_SHARD_MAX as u64;
            if is_over && table.len() == 0 {
                return;
            }
            if is_over {
                table.forget_oldest();
                self.counters.message_ids -= 1;
            }
            table.insert(message_id, base.0 + u64::from(*index), now.wall_ms);
            self.counters.message_ids += 1;
        }
    }
}

/// Why a batch isn't taken.
pub fn mixed(index: u32, offset: u64) -> Failure {
    let before = if offset == u64::MAX { "another of the batch".into() } else { format!("the one at offset {offset}") };
    Failure::new(ErrorCode::KnownMessages, format!("record {index} of the batch has the message id of {before}; send them one by one"))
}

/// What replay knows of a producer whose batch was recognised.
pub fn advanced(piece: &ProducerAdvancedPiece) -> Batch {
    Batch {
        producer_id: ProducerId(piece.producer_id),
        epoch: piece.epoch,
        first_sequence: piece.first_sequence,
        record_count: piece.record_count,
    }
}
