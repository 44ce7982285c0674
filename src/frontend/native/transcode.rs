//! Fetched frames as native clients read them, where they came through another door: lazily, for who asks for it. Also leaves
//! out what aborted transactions wrote.

use ringmain_wire::frame::{HALF_BYTES, Identity, flags, frames};
use ringmain_wire::record::HeadersBuilder;
use ringmain_wire::{BrokerHalf, ErrorCode, Format, Frame, ProducerId, RecordBatchBuilder, align_up};

use crate::frontend::kafka::records::{Batch, INFLATED_MAX_BYTES, Unreadable};
use crate::request::{Failure, Fetched};

/// A reply has no more bytes than this, one batch excepted.
const REPLY_BYTES: usize = 1 << 20;

/// The frames of `bytes`, in order: batches of Kafka as native ones with the same offsets if `transcodes`, others as they
/// are. Stops, and says so in `head`, when the reply is long enough.
///
/// Errors: the first batch can't be read, or there is no memory for it.
pub fn native_frames(bytes: &[u8], transcodes: bool, head: &mut Fetched, memory_bytes: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut at_bytes = 0;
    for frame in frames(bytes).map_while(Result::ok) {
        let from_bytes = at_bytes;
        at_bytes += frame.padded_bytes();
        if is_aborted(&frame, head) {
            continue;
        }
        if out.len() >= REPLY_BYTES {
            head.next_offset = frame.base_offset();
            break;
        }
        let producer = &frame.header.producer;
        if !transcodes || producer.format != Format::Kafka as u8 || producer.flags & flags::CONTROL != 0 {
            // The last frame of a reply may come without its padding.
            out.extend_from_slice(&bytes[from_bytes..at_bytes.min(bytes.len())]);
            out.resize(align_up(out.len()), 0);
            continue;
        }
        let limit_bytes = INFLATED_MAX_BYTES.min(memory_bytes / 4);
        match native_frame(&frame, limit_bytes) {
            Ok(frame) => {
                out.extend_from_slice(&frame);
                out.resize(align_up(out.len()), 0);
            }
            // What is good before it goes out first.
            Err(_) if !out.is_empty() => {
                head.next_offset = frame.base_offset();
                break;
            }
            Err(Unreadable) => {
                let message = format!("the batch at offset {} can't be read, or not within {limit_bytes} bytes", frame.base_offset());
                return Err(Failure::new(ErrorCode::InvalidBatch, message));
            }
        }
    }
    head.bytes = out.len() as u32;
    Ok(out)
}

/// Written by a transaction that took no effect.
fn is_aborted(frame: &Frame<'_>, head: &Fetched) -> bool {
    let producer = &frame.header.producer;
    let is_data = producer.flags & (flags::TRANSACTIONAL | flags::CONTROL) == flags::TRANSACTIONAL;
    let offset = frame.base_offset();
    let covers = |of: &crate::request::transaction::AbortedTransaction| {
        of.producer_id.0 == producer.producer_id && (of.first_offset..of.last_offset).contains(&offset)
    };
    is_data && head.aborted.iter().any(covers)
}

/// One batch of Kafka as a native one with the same offsets, for a queue; `None` = it can't be read, or not within the limit.
pub fn for_queues(frame: &Frame<'_>, limit_bytes: usize) -> Option<Vec<u8>> {
    native_frame(frame, limit_bytes.min(INFLATED_MAX_BYTES)).ok()
}

fn native_frame(frame: &Frame<'_>, limit_bytes: usize) -> Result<Vec<u8>, Unreadable> {
    let batch = Batch::read_within(frame.body(), limit_bytes)?;
    let mut builder = RecordBatchBuilder::new();
    for (record, delta) in batch.records().zip(0..) {
        let record = record?;
        let mut headers = HeadersBuilder::default();
        for header in record.headers() {
            let (name, value) = header.ok_or(Unreadable)?;
            if name.len() > usize::from(u16::MAX) {
                return Err(Unreadable);
            }
            headers.push(name, value);
        }
        if record.offset_delta != delta || builder.frame_bytes() > limit_bytes {
            return Err(Unreadable);
        }
        builder.push(record.timestamp_ms, record.key, record.value, headers.as_bytes());
    }
    let (broker, producer) = (&frame.header.broker, &frame.header.producer);
    if builder.record_count() != producer.record_count {
        return Err(Unreadable);
    }
    let identity = Identity {
        partition: frame.partition(),
        producer_id: ProducerId(producer.producer_id),
        producer_epoch: producer.producer_epoch,
        sequence: producer.sequence,
        flags: producer.flags,
    };
    let mut bytes = builder.finish(identity).to_vec();
    let stamp = BrokerHalf::stamp(bytes.len() as u32, frame.base_offset(), broker.append_time_ms, broker.epoch);
    bytes[..HALF_BYTES].copy_from_slice(&stamp);
    Ok(bytes)
}
