//! The 64-byte header before every batch of records, and its two checksums.
//!
//! ```text
//!  0 magic u32        4 len u32           8 base offset u64      16 append time i64 (ms)
//! 24 epoch u32       28 header crc u32                                        ↑ broker half
//! 32 body crc u32    36 partition u32    40 record count u32     44 format u8  45 flags u8  46 producer epoch u16
//! 48 producer id i64 56 sequence i32     60 reserved u32                      ↑ producer half
//! 64 body: `len` − 64 bytes, then zeros up to a multiple of 8
//! ```
//! `body crc` (CRC32C) covers bytes 36.. up to `len`: the rest of the producer half and the body. It is made
//! by the producer, verified when the broker takes the frame in, never recomputed, and checked again by the
//! consumer. `header crc` covers bytes 0..28 and is made by the broker.
//!
//! A [`Format::Kafka`] body is a record batch (magic 2) with a checksum of its own. The broker stamps two of its
//! fields, base offset and leader epoch, which lie in the body's first 16 bytes: `body crc` takes those 16 as zeros
//! whatever they are. So it stays true when they are stamped, and is made from the batch's own, verified
//! checksum without summing the batch again.

use rkyv::{Archive, Deserialize, Serialize};

use crate::control::fixed_bytes;
use crate::id::{Offset, PartitionId, ProducerId};

/// Size of the header.
pub const HEADER_BYTES: usize = 64;
/// Size of each half of the header.
pub const HALF_BYTES: usize = 32;
/// `RMF1`, little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RMF1");
/// Where the bytes covered by the producer's checksum begin.
pub const BODY_CRC_FROM: usize = 36;
/// First bytes of a Kafka batch, which the checksum takes as zeros: base offset, length, leader epoch.
pub const STAMPED_BYTES: usize = 16;
/// Where the bytes covered by a Kafka batch's own checksum begin.
pub const KAFKA_CHECKED_FROM: usize = 21;

/// The half that the broker stamps, once, before the frame is written.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerHalf {
    /// [`MAGIC`].
    pub magic: u32,
    /// Bytes of the whole frame, header included, padding excluded.
    pub len: u32,
    /// Offset of the first record.
    pub base_offset: u64,
    /// When the broker appended it, ms since the Unix epoch.
    pub append_time_ms: i64,
    /// Leader epoch of the shard's log.
    pub epoch: u32,
    /// CRC32C of the 28 bytes before.
    pub header_crc: u32,
}

/// The half that the producer fills in and seals with its checksum.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerHalf {
    /// CRC32C of everything from byte 36 to the end of the frame.
    pub body_crc: u32,
    /// The partition, from the metadata.
    pub partition: u32,
    /// Records in the body; at least 1.
    pub record_count: u32,
    /// A number of [`Format`].
    pub format: u8,
    /// [`flags`].
    pub flags: u8,
    /// Epoch of the idempotent producer.
    pub producer_epoch: u16,
    /// The idempotent producer, −1 = none.
    pub producer_id: i64,
    /// Sequence of the first record among all of this producer's in this partition; wraps after 2³¹ − 1.
    pub sequence: i32,
    /// 0.
    pub reserved: u32,
}

/// Both halves.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes 0..32.
    pub broker: BrokerHalf,
    /// Bytes 32..64.
    pub producer: ProducerHalf,
}

const _: () = assert!(size_of::<ArchivedBrokerHalf>() == HALF_BYTES);
const _: () = assert!(size_of::<ArchivedProducerHalf>() == HALF_BYTES);
const _: () = assert!(size_of::<ArchivedFrameHeader>() == HEADER_BYTES);

/// Bits of [`ProducerHalf::flags`].
pub mod flags {
    /// Some record carries a reserved header (delay, priority, TTL …).
    pub const QUEUE_HEADERS: u8 = 1;
    /// Part of a transaction.
    pub const TRANSACTIONAL: u8 = 2;
    /// A transaction marker.
    pub const CONTROL: u8 = 4;
    /// On a marker: the transaction was aborted.
    pub const ABORTED: u8 = 8;
}

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    /// [`crate::record`].
    Native = 0,
    /// A Kafka record batch, magic 2, verbatim.
    Kafka = 1,
    /// An AMQP message.
    Amqp = 2,
    /// A state record of the shard; never from or to a client.
    State = 8,
}

impl Format {
    /// The format with this number.
    pub fn from_number(number: u8) -> Option<Format> {
        match number {
            0 => Some(Format::Native),
            1 => Some(Format::Kafka),
            2 => Some(Format::Amqp),
            8 => Some(Format::State),
            _ => None,
        }
    }
}

/// Who sends a batch, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// From the metadata.
    pub partition: PartitionId,
    /// `ProducerId::NONE` = not idempotent.
    pub producer_id: ProducerId,
    /// 0 unless transactional.
    pub producer_epoch: u16,
    /// Sequence of the first record; −1 without idempotence.
    pub sequence: i32,
    /// [`flags`].
    pub flags: u8,
}

impl Identity {
    /// A batch without idempotence.
    pub fn plain(partition: PartitionId) -> Identity {
        Identity { partition, producer_id: ProducerId::NONE, producer_epoch: 0, sequence: -1, flags: 0 }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than the header or than `len`.
    Truncated { needed_bytes: usize, got_bytes: usize },
    /// Not [`MAGIC`].
    BadMagic { got: u32 },
    /// `len` is less than a header, or another length than announced around it.
    BadLength { len: u32 },
    /// The producer's checksum doesn't match.
    BodyCrc { expected: u32, got: u32 },
    /// The broker's checksum doesn't match.
    HeaderCrc { expected: u32, got: u32 },
    /// A number outside [`Format`], or no records.
    BadFormat { format: u8, record_count: u32 },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Truncated { needed_bytes, got_bytes } => {
                write!(f, "frame cut short: {needed_bytes} bytes needed, {got_bytes} there")
            }
            FrameError::BadMagic { got } => write!(f, "not a frame: magic {got:#010x}, expected {MAGIC:#010x}"),
            FrameError::BadLength { len } => write!(f, "frame length {len} is impossible"),
            FrameError::BodyCrc { expected, got } => write!(f, "body checksum {got:#010x}, the header says {expected:#010x}"),
            FrameError::HeaderCrc { expected, got } => write!(f, "header checksum {got:#010x}, the header says {expected:#010x}"),
            FrameError::BadFormat { format, record_count } => write!(f, "format {format} with {record_count} records is not a batch"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A whole frame, borrowed: header parsed, then exactly `len` − 64 bytes (padding excluded), checksums not judged.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Both halves of the header.
    pub header: FrameHeader,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Parses the frame at the start of `input`: magic, length, format. Call `verify_body` before trusting it.
    pub fn parse(input: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let header = FrameHeader::read(input).ok_or(FrameError::Truncated { needed_bytes: HEADER_BYTES, got_bytes: input.len() })?;
        if header.broker.magic != MAGIC {
            return Err(FrameError::BadMagic { got: header.broker.magic });
        }
        let len = header.broker.len as usize;
        if len < HEADER_BYTES {
            return Err(FrameError::BadLength { len: header.broker.len });
        }
        let bytes = input.get(..len).ok_or(FrameError::Truncated { needed_bytes: len, got_bytes: input.len() })?;
        if Format::from_number(header.producer.format).is_none() || header.producer.record_count == 0 {
            return Err(FrameError::BadFormat { format: header.producer.format, record_count: header.producer.record_count });
        }
        Ok(Frame { header, body: &bytes[HEADER_BYTES..] })
    }

    /// A frame of a header and a body that lie apart; the header's length is the body's with its own.
    pub fn of_parts(header: FrameHeader, body: &'a [u8]) -> Frame<'a> {
        let broker = BrokerHalf { magic: MAGIC, len: (HEADER_BYTES + body.len()) as u32, ..header.broker };
        Frame { header: FrameHeader { broker, ..header }, body }
    }

    /// Checks the producer's CRC32C.
    pub fn verify_body(&self) -> Result<(), FrameError> {
        let expected = self.header.producer.body_crc;
        let head = crc32c::crc32c(&self.header.producer.to_bytes()[BODY_CRC_FROM - HALF_BYTES..]);
        let got = match self.body.split_at_checked(STAMPED_BYTES) {
            Some((_, rest)) if self.header.producer.format == Format::Kafka as u8 => {
                crc32c::crc32c_append(crc32c::crc32c_append(head, &[0; STAMPED_BYTES]), rest)
            }
            _ => crc32c::crc32c_append(head, self.body),
        };
        if expected == got { Ok(()) } else { Err(FrameError::BodyCrc { expected, got }) }
    }

    /// Checks the broker's CRC32C.
    pub fn verify_header(&self) -> Result<(), FrameError> {
        let (expected, got) = (self.header.broker.header_crc, crc32c::crc32c(&self.header.broker.to_bytes()[..28]));
        if expected == got { Ok(()) } else { Err(FrameError::HeaderCrc { expected, got }) }
    }

    /// Bytes of the whole frame, padding excluded.
    pub fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// The whole frame in one piece, as a copy; padding excluded.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(self.body);
        bytes
    }

    /// The bytes after the header.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Bytes this frame takes in a log or a fetch reply, padding included.
    pub fn padded_bytes(&self) -> usize {
        crate::align_up(self.len_bytes())
    }

    /// Offset of the first record (as stamped by the broker).
    pub fn base_offset(&self) -> Offset {
        Offset(self.header.broker.base_offset)
    }

    /// The offset after the last record; the largest there is in a header that lies.
    pub fn end_offset(&self) -> Offset {
        Offset(self.header.broker.base_offset.saturating_add(u64::from(self.header.producer.record_count)))
    }

    /// The partition it is for.
    pub fn partition(&self) -> PartitionId {
        PartitionId(self.header.producer.partition)
    }

    /// Largest record timestamp in ms since the Unix epoch: from the batch prefix (native) or the batch
    /// header (Kafka, `maxTimestamp` at byte 35 of magic 2); otherwise the append time.
    pub fn largest_timestamp_ms(&self) -> i64 {
        let found = match Format::from_number(self.header.producer.format) {
            Some(Format::Native) => crate::record::batch_timestamps(self.body()).map(|(_, largest)| largest),
            Some(Format::Kafka) => self.body().get(35..43).and_then(|b| b.try_into().ok()).map(i64::from_be_bytes),
            _ => None,
        };
        found.unwrap_or(self.header.broker.append_time_ms)
    }
}

/// The frames in `bytes` (a fetch reply, a run of a log), one after the other, each padded to 8 bytes.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, FrameError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let frame = Frame::parse(bytes);
        bytes = match &frame {
            Ok(frame) => bytes.get(frame.padded_bytes()..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(frame)
    })
}

impl FrameHeader {
    /// The 64 bytes as they are.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..HALF_BYTES].copy_from_slice(&self.broker.to_bytes());
        bytes[HALF_BYTES..].copy_from_slice(&self.producer.to_bytes());
        bytes
    }

    /// Reads a header from the first 64 bytes; `None` if there are fewer.
    pub fn read(input: &[u8]) -> Option<FrameHeader> {
        let a = rkyv::access::<ArchivedFrameHeader, rkyv::rancor::Failure>(input.get(..HEADER_BYTES)?).ok()?;
        Some(FrameHeader {
            broker: BrokerHalf {
                magic: a.broker.magic.to_native(),
                len: a.broker.len.to_native(),
                base_offset: a.broker.base_offset.to_native(),
                append_time_ms: a.broker.append_time_ms.to_native(),
                epoch: a.broker.epoch.to_native(),
                header_crc: a.broker.header_crc.to_native(),
            },
            producer: ProducerHalf {
                body_crc: a.producer.body_crc.to_native(),
                partition: a.producer.partition.to_native(),
                record_count: a.producer.record_count.to_native(),
                format: a.producer.format,
                flags: a.producer.flags,
                producer_epoch: a.producer.producer_epoch.to_native(),
                producer_id: a.producer.producer_id.to_native(),
                sequence: a.producer.sequence.to_native(),
                reserved: a.producer.reserved.to_native(),
            },
        })
    }
}

impl ProducerHalf {
    /// The 32 bytes as they lie in a frame. By hand for the same reason as [`BrokerHalf::stamp`].
    #[inline]
    pub fn to_bytes(&self) -> [u8; HALF_BYTES] {
        let mut bytes = [0; HALF_BYTES];
        bytes[0..4].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.partition.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.record_count.to_le_bytes());
        (bytes[12], bytes[13]) = (self.format, self.flags);
        bytes[14..16].copy_from_slice(&self.producer_epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.producer_id.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.reserved.to_le_bytes());
        bytes
    }

    /// Seals the half for a Kafka batch whose own checksum is verified, without another look at the batch:
    /// `body` is the whole batch, at least [`KAFKA_CHECKED_FROM`] bytes; `batch_crc` covers it from there.
    pub fn seal_kafka(&mut self, body: &[u8], batch_crc: u32) {
        self.body_crc = 0;
        let head = crc32c::crc32c(&self.to_bytes()[BODY_CRC_FROM - HALF_BYTES..]);
        let head = crc32c::crc32c_append(head, &[0; STAMPED_BYTES]);
        let head = crc32c::crc32c_append(head, &body[STAMPED_BYTES..KAFKA_CHECKED_FROM]);
        self.body_crc = crate::crc::combine(head, batch_crc, (body.len() - KAFKA_CHECKED_FROM) as u64);
    }
}

impl BrokerHalf {
    /// The 32 bytes as they are.
    pub fn to_bytes(&self) -> [u8; HALF_BYTES] {
        let mut bytes = [0; HALF_BYTES];
        bytes[0..4].copy_from_slice(&self.magic.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.append_time_ms.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.header_crc.to_le_bytes());
        bytes
    }

    /// The 32 bytes of a stamped broker half, its checksum computed.
    ///
    /// Written field by field: this runs for every frame, and a general serializer costs twice the checksum.
    /// A test holds it against the archive's own layout.
    #[inline]
    pub fn stamp(len: u32, base_offset: Offset, append_time_ms: i64, epoch: u32) -> [u8; HALF_BYTES] {
        let mut bytes = [0; HALF_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&base_offset.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&append_time_ms.to_le_bytes());
        bytes[24..28].copy_from_slice(&epoch.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Writes the header of the frame in `bytes` (64 reserved bytes, then the body) and seals it with the
/// producer's checksum. The broker half gets magic and length only.
///
/// # Panics
/// If `bytes` is shorter than a header.
pub fn seal(bytes: &mut [u8], format: Format, record_count: u32, identity: Identity) {
    let producer = ProducerHalf {
        body_crc: 0,
        partition: identity.partition.0,
        record_count,
        format: format as u8,
        flags: identity.flags,
        producer_epoch: identity.producer_epoch,
        producer_id: identity.producer_id.0,
        sequence: identity.sequence,
        reserved: 0,
    };
    let broker = BrokerHalf { magic: MAGIC, len: bytes.len() as u32, base_offset: 0, append_time_ms: 0, epoch: 0, header_crc: 0 };
    bytes[..HEADER_BYTES].copy_from_slice(&fixed_bytes::<HEADER_BYTES, _>(&FrameHeader { broker, producer }));
    let crc = match bytes[HEADER_BYTES..].split_at_checked(STAMPED_BYTES) {
        Some((_, rest)) if format == Format::Kafka => {
            let head = crc32c::crc32c(&bytes[BODY_CRC_FROM..HEADER_BYTES]);
            crc32c::crc32c_append(crc32c::crc32c_append(head, &[0; STAMPED_BYTES]), rest)
        }
        _ => crc32c::crc32c(&bytes[BODY_CRC_FROM..]),
    };
    bytes[HALF_BYTES..BODY_CRC_FROM].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{HeadersBuilder, RecordBatchBuilder, RecordView, Records, headers};

    fn batch() -> Vec<u8> {
        let mut h = HeadersBuilder::default();
        h.push(b"a", Some(b"1")).push(b"a", None);
        let mut builder = RecordBatchBuilder::new();
        builder.push(1_000, Some(b"key"), Some(b"value"), h.as_bytes());
        builder.push(999, None, Some(b""), b"");
        builder.push(1_002, Some(b""), None, b"");
        builder.finish(Identity::plain(PartitionId(7))).to_vec()
    }

    #[test]
    fn frame_built_and_parsed_is_the_same() {
        let bytes = batch();
        let frame = Frame::parse(&bytes).unwrap();
        frame.verify_body().unwrap();
        assert_eq!((frame.partition(), frame.header.producer.record_count, frame.largest_timestamp_ms()), (PartitionId(7), 3, 1_002));
        let records: Vec<RecordView<'_>> = Records::new(frame.body(), 3).unwrap().map(Result::unwrap).collect();
        assert_eq!((records[0].key, records[0].value, records[0].timestamp_ms), (Some(&b"key"[..]), Some(&b"value"[..]), 1_000));
        assert_eq!((records[1].key, records[1].value, records[1].timestamp_ms), (None, Some(&b""[..]), 999));
        assert_eq!((records[2].key, records[2].value, records[2].timestamp_ms), (Some(&b""[..]), None, 1_002));
        let read: Vec<_> = headers(records[0].headers).map(Option::unwrap).collect();
        assert_eq!(read, [(&b"a"[..], Some(&b"1"[..])), (&b"a"[..], None)]);
    }

    #[test]
    fn frame_with_any_byte_flipped_is_refused() {
        let bytes = batch();
        for at in HALF_BYTES..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let refused = Frame::parse(&bad).and_then(|f| f.verify_body()).is_err();
            assert!(refused, "flip at {at} passed");
        }
    }

    #[test]
    fn stamp_is_the_archive_of_its_fields() {
        let stamp = BrokerHalf::stamp(77, Offset(1 << 40), -5, 9);
        let crc = u32::from_le_bytes([stamp[28], stamp[29], stamp[30], stamp[31]]);
        let half = BrokerHalf { magic: MAGIC, len: 77, base_offset: 1 << 40, append_time_ms: -5, epoch: 9, header_crc: crc };
        assert_eq!(stamp, fixed_bytes::<HALF_BYTES, _>(&half));
    }

    #[test]
    fn stamped_half_with_any_byte_flipped_is_refused() {
        let mut bytes = batch();
        let stamp = BrokerHalf::stamp(bytes.len() as u32, Offset(9), 5, 2);
        bytes[..HALF_BYTES].copy_from_slice(&stamp);
        Frame::parse(&bytes).unwrap().verify_header().unwrap();
        for at in 0..HALF_BYTES {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Frame::parse(&bad).and_then(|f| f.verify_header()).is_err(), "flip at {at} passed");
        }
    }

    proptest::proptest! {
        /// No input makes the parsers panic or read outside their bytes.
        #[test]
        fn parse_random_bytes_never_panics(input in proptest::collection::vec(proptest::num::u8::ANY, 0..300), count in 0u32..10) {
            for frame in frames(&input) {
                let _ = frame.map(|f| (f.verify_body(), f.largest_timestamp_ms()));
            }
            if let Ok(records) = Records::new(&input, count) {
                for record in records { let _ = record.map(|r| headers(r.headers).count()); }
            }
            let _ = headers(&input).count();
        }
    }
}
