//! Appending a batch: look up, judge, append, remember who waits for which commit group.

use ringmain_wire::control::Durability;
use ringmain_wire::frame::{self, HEADER_BYTES, Identity, KAFKA_CHECKED_FROM, flags};
use ringmain_wire::{ErrorCode, Format, Frame, FrameHeader, Offset, PartitionId, ProducerId, record};

use super::message_ids::{self, Recognised};
use super::participant::Admission;
use super::partition::{NONE, RESERVED_AHEAD};
use super::producer_state::{Batch, ProducerTable, Verdict};
use super::queue::persist;
use super::state_record::StateRecord;
use super::{ACKS_MAX, Busy, Deferred, Shard};
use crate::log::{Append, AppendError};
use crate::request::queue::QueueId;
use crate::request::transaction::ProducerKey;
use crate::request::{Failure, Now, Origin};

impl Shard {
    /// Appends a batch whose body checksum the frontend has verified.
    ///
    /// The way of a batch without idempotence allocates and hashes nothing.
    pub(super) fn produce(&mut self, origin: Origin, frame: &Frame<'_>, now: Now) -> Result<(), Busy> {
        self.produce_batch(origin, frame, false, now)
    }

    /// `is_confirmed`: the coordinator says that the batch may begin a transaction here.
    pub(super) fn produce_batch(&mut self, origin: Origin, frame: &Frame<'_>, is_confirmed: bool, now: Now) -> Result<(), Busy> {
        let header = &frame.header.producer;
        let id = PartitionId(header.partition);
        if self.fault.is_some() || self.stopping {
            let failure = self.refusal().unwrap_or(ErrorCode::Internal.into());
            self.fail(origin, failure);
            return Ok(());
        }
        let Some(partition) = self.partitions.get(id) else {
            self.fail(origin, ErrorCode::UnknownPartition.into());
            return Ok(());
        };
        // A batch of another protocol is measured as its sender does: without the header around it.
        let measured_bytes = if header.format == Format::Native as u8 { frame.len_bytes() } else { frame.body().len() };
        if measured_bytes > partition.config.max_message_bytes as usize {
            let message =
                format!("a batch of {measured_bytes} bytes; max.message.bytes of the topic is {}", partition.config.max_message_bytes);
            self.fail(origin, Failure::new(ErrorCode::MessageTooLarge, message));
            return Ok(());
        }
        if self.acks_waiting() >= ACKS_MAX {
            return Err(Busy);
        }
        let is_transactional = header.flags & flags::TRANSACTIONAL != 0;
        if header.flags & flags::CONTROL != 0 || (is_transactional && header.producer_id <= ProducerId::NONE.0) {
            let message = "markers are written by the broker, and transactional batches by transactional producers";
            self.fail(origin, Failure::new(ErrorCode::InvalidBatch, message));
            return Ok(());
        }
        let bytes_from = |from: u64| if from < partition.next_offset.0 { self.log.bytes_from(id, Offset(from)) } else { 0 };
        let full = if partition.has_queues { self.queues.is_full(id, partition.next_offset, bytes_from) } else { None };
        if let Some(queue) = full {
            let message = format!("queue '{queue}' is full: its consumers are behind; publish later");
            self.fail(origin, Failure::new(ErrorCode::QueueFull, message));
            return Ok(());
        }
        let mut idempotent = None;
        if header.producer_id > ProducerId::NONE.0 {
            let batch = Batch {
                producer_id: ProducerId(header.producer_id),
                epoch: header.producer_epoch,
                first_sequence: header.sequence,
                record_count: header.record_count,
            };
            let producer = ProducerKey { id: batch.producer_id, epoch: batch.epoch };
            if self.is_parked(id, producer) {
                self.park(origin, id, producer, frame);
                return Ok(());
            }
            match self.judge(id, batch, header.format == Format::Kafka as u8, now) {
                Ok(Verdict::Accept) => match self.admit(id, producer, is_transactional, is_confirmed) {
                    Ok(Admission::Admitted) => idempotent = Some(batch),
                    Ok(Admission::Unknown) => {
                        self.park(origin, id, producer, frame);
                        return Ok(());
                    }
                    Err(failure) => {
                        self.fail(origin, failure);
                        return Ok(());
                    }
                },
                Ok(Verdict::Duplicate(base_offset)) => {
                    self.acknowledge_duplicate(origin, id, base_offset, header.record_count, now);
                    return Ok(());
                }
                Err(code) => {
                    self.fail(origin, code.into());
                    return Ok(());
                }
            }
        }
        let ids = match self.recognise(id, frame, now) {
            Ok(None) => Vec::new(),
            Ok(Some(Recognised::New(ids))) => ids,
            Ok(Some(Recognised::Stored(base))) => return self.acknowledge_known(origin, id, base, header.record_count, idempotent, now),
            Ok(Some(Recognised::Mixed { index, offset })) => {
                self.fail(origin, message_ids::mixed(index, offset));
                return Ok(());
            }
            Err(failure) => {
                self.fail(origin, failure);
                return Ok(());
            }
        };
        if self.partitions.get(id).is_some_and(|partition| partition.config.append_time) {
            let stamped = match Format::from_number(header.format) {
                Some(Format::Kafka) => stamped_batch(frame, now.wall_ms),
                Some(Format::Native) => stamped_records(frame, now.wall_ms),
                _ => None,
            };
            let Some((header, body)) = stamped else {
                let failure =
                    Failure::new(ErrorCode::InvalidBatch, "the records can't be read, and their topic gives them its own timestamps");
                self.fail(origin, failure);
                return Ok(());
            };
            return self.append(origin, id, &Frame::of_parts(header, &body), idempotent, &ids, now);
        }
        self.append(origin, id, frame, idempotent, &ids, now)
    }

    /// `ids`: message ids by index of the record, where they are to be remembered.
    fn append(
        &mut self,
        origin: Origin,
        id: PartitionId,
        frame: &Frame<'_>,
        idempotent: Option<Batch>,
        ids: &[(u32, Vec<u8>)],
        now: Now,
    ) -> Result<(), Busy> {
        let record_count = frame.header.producer.record_count;
        let next_offset = self.partitions.get(id).map_or(Offset(0), |partition| partition.next_offset);
        let end = next_offset.plus(u64::from(record_count));
        if self.partitions.get(id).is_some_and(|partition| end > partition.reserve_at)
            && let Err(error) = self.reserve_offsets(id, end, now)
        {
            return self.append_failed(origin, error);
        }
        let redirects = match self.log_redirects(id, next_offset, frame, now) {
            Ok(redirects) => redirects,
            Err(error) => return self.append_failed(origin, error),
        };
        if let Err(error) = self.log_message_ids(id, next_offset, frame, ids, now) {
            return self.append_failed(origin, error);
        }
        let Some(partition) = self.partitions.get_mut(id) else { return Ok(()) };
        let appended = self.log.append(Append {
            frame: *frame,
            partition: id,
            base_offset: next_offset,
            record_count,
            largest_timestamp_ms: frame.largest_timestamp_ms(),
            append_time_ms: now.wall_ms,
            durability: partition.config.durability,
        });
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => return self.append_failed(origin, error),
        };
        let sequence = appended.sequence;
        self.last_sequence = sequence;
        let mut redirected = 0;
        for (index, _, start) in redirects.into_iter().filter(|(_, _, start)| *start < end.0) {
            self.queues.redirect(index, start, end.0);
            redirected = redirected.max((end.0 - start) as u32);
        }
        partition.next_offset = end;
        partition.appended_bytes += frame.padded_bytes() as u64;
        self.counters.frames_in += 1;
        self.counters.records_in += u64::from(record_count);
        self.counters.bytes_in += frame.len_bytes() as u64;
        let is_reserved = end <= partition.reserved_end;
        match partition.config.durability {
            Durability::Memory if is_reserved => {
                partition.high_watermark = partition.high_watermark.max(end);
                self.acks_now.push(0, now.wall_ms, origin, next_offset, false, redirected);
                if partition.waiting != NONE || partition.has_queues || self.watches.has(id) {
                    self.woken.push(id);
                }
            }
            Durability::Written if is_reserved => {
                self.acks_on_write.push(sequence, now.wall_ms, origin, next_offset, false, redirected);
                self.advances_on_write.push(sequence, id, end);
            }
            // Not durably reserved yet: what `memory` needs is the reservation alone, …
            Durability::Memory => {
                let sequence = partition.reserved_sequence;
                self.acks_on_flush.push(sequence, now.wall_ms, origin, next_offset, false, redirected);
                self.advances_on_flush.push(sequence, id, end);
            }
            // … and it lies before this frame in the log, so a flush of the frame covers both.
            Durability::Durable | Durability::Written => {
                self.acks_on_flush.push(sequence, now.wall_ms, origin, next_offset, false, redirected);
                self.advances_on_flush.push(sequence, id, end);
            }
        }
        if !ids.is_empty() {
            self.remember_ids(id, next_offset, ids, now);
        }
        if let Some(batch) = idempotent {
            self.remember(id, batch, next_offset, now);
            if frame.header.producer.flags & flags::TRANSACTIONAL != 0 {
                self.begin_transaction(id, batch.producer_id, next_offset);
            }
        }
        if !self.woken.is_empty() {
            self.wake(now);
        }
        Ok(())
    }

    /// Says in the log which of the records about to be appended go from queues that are full to other topics: before the records are, so
    /// that whoever finds those finds this. By cursor: its queue and the first of them.
    fn log_redirects(
        &mut self,
        id: PartitionId,
        base: Offset,
        frame: &Frame<'_>,
        now: Now,
    ) -> Result<Vec<(u32, QueueId, u64)>, AppendError> {
        if !self.partitions.get(id).is_some_and(|partition| partition.has_queues) {
            return Ok(Vec::new());
        }
        let (count, bytes) = (frame.header.producer.record_count, frame.body().len() as u64);
        let bytes_from = |from: u64| if from < base.0 { self.log.bytes_from(id, Offset(from)) } else { 0 };
        let redirects = self.queues.redirects(id, base.0, count, bytes, bytes_from);
        let end = base.0 + u64::from(count);
        for (index, queue, start) in &redirects {
            let ranges = if *start < end { vec![(*start, end)] } else { Vec::new() };
            self.log_state(&persist::redirected((id, *queue), base.0, ranges), None, now)?;
            self.queues.redirect_logged(*index, if *start < end { end } else { 0 });
        }
        Ok(redirects)
    }

    /// `resumes`: a producer that isn't known any more may go on wherever it was, as Kafka has it since 2.5 (`ProducerAppendInfo`): its clients
    /// are idle for days and then send the next batch. Ours begin anew instead, and so never store a batch twice.
    fn judge(&self, id: PartitionId, batch: Batch, resumes: bool, now: Now) -> Result<Verdict, ErrorCode> {
        let nobody = ProducerTable::default();
        let table = self.partitions.get(id).and_then(|partition| partition.producers.as_deref()).unwrap_or(&nobody);
        let verdict = match table.judge(batch, now.wall_ms) {
            Err(ErrorCode::UnknownProducer) if resumes => Verdict::Accept,
            verdict => verdict?,
        };
        // Nobody to evict in this partition, and it or the shard remembers as many as it may.
        let shard_is_full = self.counters.producers >= self.config.producers_max as u64;
        let limit = if shard_is_full { table.len() } else { self.config.producers_per_partition_max };
        if !table.has_room_for(batch.producer_id, limit) {
            return Err(ErrorCode::Overloaded);
        }
        Ok(verdict)
    }

    pub(super) fn remember(&mut self, id: PartitionId, batch: Batch, base_offset: Offset, now: Now) {
        let Some(partition) = self.partitions.get_mut(id) else { return };
        let table = partition.producers.get_or_insert_default();
        let before = table.len();
        let shard_is_full = self.counters.producers >= self.config.producers_max as u64;
        let limit =
            if shard_is_full { before.clamp(1, self.config.producers_per_partition_max) } else { self.config.producers_per_partition_max };
        table.record(batch, base_offset, now.wall_ms, limit);
        self.counters.producers = self.counters.producers + table.len() as u64 - before as u64;
    }

    /// The original may still be on its way to the disk: then its duplicate waits as long.
    pub(super) fn acknowledge_duplicate(&mut self, origin: Origin, id: PartitionId, base_offset: Offset, record_count: u32, now: Now) {
        self.counters.duplicates += 1;
        let readable = self.partitions.get(id).map_or(Offset(0), |partition| partition.high_watermark);
        let end = base_offset.plus(u64::from(record_count));
        let has_queues = self.partitions.get(id).is_some_and(|partition| partition.has_queues);
        let redirected = if has_queues { self.queues.redirected_in(id, base_offset.0, end.0) as u32 } else { 0 };
        if end <= readable {
            self.acks_now.push(0, now.wall_ms, origin, base_offset, true, redirected);
        } else {
            // The group of the last append: the original's own, or a later one.
            self.acks_on_flush.push(self.last_sequence, now.wall_ms, origin, base_offset, true, redirected);
        }
    }

    /// Logs that offsets up to beyond `end` may be used. While the last reservation lasts, a failure can wait.
    pub(super) fn reserve_offsets(&mut self, id: PartitionId, end: Offset, now: Now) -> Result<(), AppendError> {
        let reserved_end = end.plus(RESERVED_AHEAD);
        let record = StateRecord::Reserved { partition: id.0, end: reserved_end.0 };
        let logged = self.log_state(&record, Some(Deferred::Reserved { partition: id, end: reserved_end }), now);
        let Some(partition) = self.partitions.get_mut(id) else { return Ok(()) };
        match logged {
            Ok(sequence) => {
                partition.reserved_end_logged = reserved_end;
                partition.reserved_sequence = sequence;
                partition.plan_reservation();
                Ok(())
            }
            Err(_) if end <= partition.reserved_end => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Header and body of a record batch of Kafka that says when it was appended, with its own checksum made anew. Beside
/// [`stamped_records`] the only batches whose bytes the broker changes. `None` = it isn't one.
fn stamped_batch(frame: &Frame<'_>, now_ms: i64) -> Option<(FrameHeader, Vec<u8>)> {
    if frame.body().len() < KAFKA_LEAST_BYTES {
        return None;
    }
    let mut body = frame.body().to_vec();
    body[KAFKA_ATTRIBUTES_AT + 1] |= KAFKA_APPEND_TIME;
    body[KAFKA_MAX_TIMESTAMP_AT..KAFKA_MAX_TIMESTAMP_AT + 8].copy_from_slice(&now_ms.to_be_bytes());
    let crc = crc32c::crc32c(&body[KAFKA_CHECKED_FROM..]);
    body[KAFKA_CRC_AT..KAFKA_CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    let mut header = frame.header;
    header.producer.seal_kafka(&body, crc);
    Some((header, body))
}

/// The same for a native batch: every record gets the time of appending. `None` = its records can't be read.
fn stamped_records(frame: &Frame<'_>, now_ms: i64) -> Option<(FrameHeader, Vec<u8>)> {
    let producer = &frame.header.producer;
    let mut bytes = frame.to_vec();
    record::set_timestamps(&mut bytes[HEADER_BYTES..], producer.record_count, now_ms).ok()?;
    let identity = Identity {
        partition: PartitionId(producer.partition),
        producer_id: ProducerId(producer.producer_id),
        producer_epoch: producer.producer_epoch,
        sequence: producer.sequence,
        flags: producer.flags,
    };
    frame::seal(&mut bytes, Format::Native, producer.record_count, identity);
    let header = FrameHeader::read(&bytes)?;
    Some((header, bytes.split_off(HEADER_BYTES)))
}

/// Fields of a record batch of format [`Format::Kafka`] that depend on when it was appended.
const KAFKA_CRC_AT: usize = 17;
const KAFKA_ATTRIBUTES_AT: usize = 21;
const KAFKA_MAX_TIMESTAMP_AT: usize = 35;
const KAFKA_LEAST_BYTES: usize = 61;
/// In the low byte of the attributes.
const KAFKA_APPEND_TIME: u8 = 0x08;
