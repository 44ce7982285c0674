//! A record batch of Kafka, magic 2: its header, and what is checked before it goes into the log.
//!
//! ```text
//!  0 base offset i64      8 length i32 (of what follows)   12 leader epoch i32    16 magic i8      17 crc u32
//! 21 attributes i16      23 last offset delta i32          27 base timestamp i64  35 max timestamp i64
//! 43 producer id i64     51 producer epoch i16             53 base sequence i32   57 record count i32   61 records
//! ```
//! All big-endian; the checksum (CRC32C) covers everything from byte 21. The records stay unread.

use ringmain_wire::frame::{self, KAFKA_CHECKED_FROM};
use ringmain_wire::{BrokerHalf, Format, Frame, FrameHeader, PartitionId, ProducerHalf, ProducerId};

use super::errors::{self, Refused};

/// Bytes before the records.
pub const HEADER_BYTES: usize = 61;
/// Bytes of the base offset and the length, which the length doesn't count.
const LENGTH_FROM: usize = 12;
const MAGIC: u8 = 2;
/// A record's fields at their shortest: length, attributes, two deltas, two lengths, a count.
const LEAST_RECORD_BYTES: usize = 7;
/// Most that the records of one batch may be when they are inflated.
pub const INFLATED_MAX_BYTES: usize = 128 << 20;

/// Bits of the attributes.
pub mod attributes {
    /// Which codec.
    pub const CODEC: i16 = 0x07;
    /// The timestamps are those of appending.
    pub const APPEND_TIME: i16 = 0x08;
    /// Part of a transaction.
    pub const TRANSACTIONAL: i16 = 0x10;
    /// A marker; never from a client.
    pub const CONTROL: i16 = 0x20;
    /// The base timestamp is something else; never from a client.
    pub const DELETE_HORIZON: i16 = 0x40;
}

/// How the records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    /// From the attributes of a batch.
    pub fn of(attributes: i16) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd].get((attributes & attributes::CODEC) as usize).copied()
    }
}

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    pub length: i32,
    pub leader_epoch: i32,
    pub magic: u8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    /// `None` = fewer bytes than a header has.
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        let h: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let short = |at: usize| i16::from_be_bytes([h[at], h[at + 1]]);
        let word = |at: usize| i32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let long = |at: usize| (i64::from(word(at)) << 32) | i64::from(word(at + 4) as u32);
        Some(BatchHeader {
            base_offset: long(0),
            length: word(8),
            leader_epoch: word(12),
            magic: h[16],
            crc: word(17) as u32,
            attributes: short(21),
            last_offset_delta: word(23),
            base_timestamp_ms: long(27),
            max_timestamp_ms: long(35),
            producer_id: long(43),
            producer_epoch: short(51),
            base_sequence: word(53),
            record_count: word(57),
        })
    }
}

fn refused<T>(code: i16, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::new(code, message))
}

/// Checks what a client wants stored in a partition, and frames it: `records` is one batch, whole.
///
/// `version`: of the Produce request; before 7 a client doesn't know zstd.
pub fn frame(records: &[u8], partition: PartitionId, version: i16) -> Result<Frame<'_>, Refused> {
    let Some(header) = BatchHeader::read(records) else {
        return refused(errors::CORRUPT_MESSAGE, format!("{} bytes of records; a batch has at least {HEADER_BYTES}", records.len()));
    };
    if header.magic != MAGIC {
        return refused(errors::INVALID_RECORD, format!("a batch of magic {}; only magic 2 is taken", header.magic as i8));
    }
    match usize::try_from(header.length).ok().map(|length| length.saturating_add(LENGTH_FROM)) {
        Some(length) if length == records.len() => {}
        Some(length) if (HEADER_BYTES..records.len()).contains(&length) => {
            return refused(errors::INVALID_RECORD, "a partition's records must be exactly one batch");
        }
        _ => {
            let message = format!("a batch of length {} in {} bytes of records", header.length, records.len());
            return refused(errors::CORRUPT_MESSAGE, message);
        }
    }
    let crc = crc32c::crc32c(&records[KAFKA_CHECKED_FROM..]);
    if crc != header.crc {
        return refused(errors::CORRUPT_MESSAGE, format!("the batch's checksum is {crc:#010x}, its header says {:#010x}", header.crc));
    }
    check_attributes(header.attributes, version)?;
    let record_bytes = records.len() - HEADER_BYTES;
    let room = if Codec::of(header.attributes) == Some(Codec::None) { record_bytes } else { INFLATED_MAX_BYTES };
    let count = header.record_count;
    if count < 1 || header.last_offset_delta != count - 1 || (count as usize).saturating_mul(LEAST_RECORD_BYTES) > room {
        let message = format!("{count} records up to offset delta {} in {record_bytes} bytes", header.last_offset_delta);
        return refused(errors::INVALID_RECORD, message);
    }
    let is_idempotent = header.producer_id != ProducerId::NONE.0;
    if is_idempotent && (header.producer_id < 0 || header.producer_epoch < 0 || header.base_sequence < 0) {
        let message = format!("producer id {}, epoch {}, sequence {}", header.producer_id, header.producer_epoch, header.base_sequence);
        return refused(errors::INVALID_RECORD, message);
    }
    let is_transactional = header.attributes & attributes::TRANSACTIONAL != 0;
    if is_transactional && !is_idempotent {
        return refused(errors::INVALID_RECORD, "a transactional batch without a producer id");
    }
    let mut producer = ProducerHalf {
        body_crc: 0,
        partition: partition.0,
        record_count: count as u32,
        format: Format::Kafka as u8,
        flags: if is_transactional { frame::flags::TRANSACTIONAL } else { 0 },
        producer_epoch: if is_idempotent { header.producer_epoch as u16 } else { 0 },
        producer_id: header.producer_id,
        sequence: if is_idempotent { header.base_sequence } else { -1 },
        reserved: 0,
    };
    producer.seal_kafka(records, crc);
    let broker = BrokerHalf { magic: frame::MAGIC, len: 0, base_offset: 0, append_time_ms: 0, epoch: 0, header_crc: 0 };
    Ok(Frame::of_parts(FrameHeader { broker, producer }, records))
}

fn check_attributes(bits: i16, version: i16) -> Result<(), Refused> {
    match Codec::of(bits) {
        None => return refused(errors::INVALID_RECORD, format!("codec {} is unknown", bits & attributes::CODEC)),
        Some(Codec::Zstd) if version < 7 => {
            return refused(errors::UNSUPPORTED_COMPRESSION_TYPE, "zstd needs Produce version 7 or later");
        }
        Some(_) => {}
    }
    if bits & attributes::APPEND_TIME != 0 {
        return refused(errors::INVALID_TIMESTAMP, "only the broker may say that timestamps are those of appending");
    }
    if bits & (attributes::CONTROL | attributes::DELETE_HORIZON) != 0 {
        return refused(errors::INVALID_RECORD, format!("attributes {bits:#06x} are the broker's own"));
    }
    Ok(())
}
