//! Records as Kafka's clients read them, from frames of any format; and the records inside a Kafka batch.

use std::borrow::Cow;
use std::io::Read;

use ringmain_wire::record::headers;
use ringmain_wire::{Format, Frame, Offset, Records};

pub use super::batch::INFLATED_MAX_BYTES;
use super::batch::{BatchHeader, Codec, HEADER_BYTES, attributes};

/// Why a frame can't be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Appends a stored frame as a record batch: as it is, if it came as one.
pub fn append_batch(frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    match Format::from_number(frame.header.producer.format) {
        Some(Format::Kafka) => {
            out.extend_from_slice(frame.body());
            Ok(())
        }
        Some(Format::Native) => append_native(frame, out),
        _ => Err(Unreadable),
    }
}

/// A native batch, uncompressed, with the same offsets.
fn append_native(frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let producer = &frame.header.producer;
    let (start, count) = (out.len(), producer.record_count);
    let (base_timestamp_ms, max_timestamp_ms) = ringmain_wire::record::batch_timestamps(frame.body()).ok_or(Unreadable)?;
    out.resize(start + HEADER_BYTES, 0);
    let mut record_bytes = Vec::new();
    let records = Records::new(frame.body(), count).map_err(|_| Unreadable)?;
    let mut seen = 0;
    for (record, delta) in records.zip(0i64..) {
        let record = record.map_err(|_| Unreadable)?;
        record_bytes.clear();
        record_bytes.push(0);
        put_varint(record.timestamp_ms.wrapping_sub(base_timestamp_ms), &mut record_bytes);
        put_varint(delta, &mut record_bytes);
        put_bytes(record.key, &mut record_bytes);
        put_bytes(record.value, &mut record_bytes);
        put_varint(headers(record.headers).count() as i64, &mut record_bytes);
        for header in headers(record.headers) {
            let (name, value) = header.ok_or(Unreadable)?;
            // Kafka's names are text; what isn't is shown as near to it as can be.
            put_bytes(Some(String::from_utf8_lossy(name).as_bytes()), &mut record_bytes);
            put_bytes(value, &mut record_bytes);
        }
        put_varint(record_bytes.len() as i64, out);
        out.extend_from_slice(&record_bytes);
        seen += 1;
    }
    if seen != count {
        return Err(Unreadable);
    }
    let length = (out.len() - start - 12) as u32;
    let bits = if producer.flags & ringmain_wire::frame::flags::TRANSACTIONAL != 0 { attributes::TRANSACTIONAL } else { 0 };
    let header = &mut out[start..start + HEADER_BYTES];
    header[0..8].copy_from_slice(&frame.base_offset().0.to_be_bytes());
    header[8..12].copy_from_slice(&length.to_be_bytes());
    header[12..16].copy_from_slice(&frame.header.broker.epoch.to_be_bytes());
    header[16] = 2;
    header[21..23].copy_from_slice(&bits.to_be_bytes());
    header[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    header[27..35].copy_from_slice(&base_timestamp_ms.to_be_bytes());
    header[35..43].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    header[43..51].copy_from_slice(&producer.producer_id.to_be_bytes());
    // Without a producer the epoch is -1.
    let epoch = if producer.producer_id < 0 { u16::MAX } else { producer.producer_epoch };
    header[51..53].copy_from_slice(&epoch.to_be_bytes());
    header[53..57].copy_from_slice(&producer.sequence.to_be_bytes());
    header[57..61].copy_from_slice(&count.to_be_bytes());
    let crc = crc32c::crc32c(&out[start + 21..]);
    out[start + 17..start + 21].copy_from_slice(&crc.to_be_bytes());
    Ok(())
}

/// A signed integer in zigzag and groups of seven bits.
fn put_varint(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Length and bytes; -1 = null.
fn put_bytes(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    put_varint(bytes.map_or(-1, |bytes| bytes.len() as i64), out);
    out.extend_from_slice(bytes.unwrap_or_default());
}

/// Offset and time of the first record of a frame, from `from` on, that is at least as young as `since_ms`.
pub fn first_since(frame: &Frame<'_>, from: Offset, since_ms: i64) -> Result<Option<(Offset, i64)>, Unreadable> {
    let numbered = |delta: u64| Offset(frame.base_offset().0 + delta);
    match Format::from_number(frame.header.producer.format) {
        Some(Format::Native) => {
            let records = Records::new(frame.body(), frame.header.producer.record_count).map_err(|_| Unreadable)?;
            let mut records = records.map_while(Result::ok).zip(0..);
            let found = records.find(|(record, delta)| numbered(*delta) >= from && record.timestamp_ms >= since_ms);
            Ok(found.map(|(record, delta)| (numbered(delta), record.timestamp_ms)))
        }
        Some(Format::Kafka) => {
            let batch = Batch::read(frame.body())?;
            for record in batch.records() {
                let record = record?;
                let offset = numbered(record.offset_delta as u64);
                if offset >= from && record.timestamp_ms >= since_ms {
                    return Ok(Some((offset, record.timestamp_ms)));
                }
            }
            Ok(None)
        }
        _ => Err(Unreadable),
    }
}

/// Checks a whole batch for a topic whose records are told apart by their keys. The only reason to look into a batch before it is stored.
///
/// Errors: what is wrong with it, for people.
pub fn all_have_keys(body: &[u8], limit_bytes: usize) -> Result<(), &'static str> {
    let unreadable = |Unreadable| "the batch can't be read, and its topic has to be able to tell records by their keys";
    let batch = Batch::read_within(body, limit_bytes).map_err(unreadable)?;
    let mut records = batch.records().map(|record| record.map(|record| record.key.is_some()));
    match records.find(|has_key| *has_key != Ok(true)) {
        None => Ok(()),
        Some(Err(error)) => Err(unreadable(error)),
        Some(Ok(_)) => Err("a record without a key, in a topic with cleanup.policy=compact"),
    }
}

/// A Kafka batch, its records inflated.
pub struct Batch<'a> {
    /// As stored.
    pub header: BatchHeader,
    records: Cow<'a, [u8]>,
}

/// One record of a Kafka batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KafkaRecord<'a> {
    /// From the batch's base offset; at least 0.
    pub offset_delta: i64,
    /// As the producer set it, or the time of appending if the topic says so.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub header_count: usize,
    headers: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Inflates the records of a whole batch, at most [`INFLATED_MAX_BYTES`].
    pub fn read(body: &'a [u8]) -> Result<Batch<'a>, Unreadable> {
        Batch::read_within(body, INFLATED_MAX_BYTES)
    }

    /// The same, within another limit.
    pub fn read_within(body: &'a [u8], limit_bytes: usize) -> Result<Batch<'a>, Unreadable> {
        let header = BatchHeader::read(body).ok_or(Unreadable)?;
        let codec = Codec::of(header.attributes).ok_or(Unreadable)?;
        Ok(Batch { header, records: inflate(codec, &body[HEADER_BYTES..], limit_bytes)? })
    }

    /// Its records in order. An error ends them.
    pub fn records(&self) -> impl Iterator<Item = Result<KafkaRecord<'_>, Unreadable>> {
        let mut rest = &self.records[..];
        let mut left = self.header.record_count.max(0);
        let append_time_ms = (self.header.attributes & attributes::APPEND_TIME != 0).then_some(self.header.max_timestamp_ms);
        std::iter::from_fn(move || {
            left = left.checked_sub(1).filter(|left| *left >= 0)?;
            let record = next_record(&mut rest, self.header.base_timestamp_ms, append_time_ms).ok_or(Unreadable);
            if record.is_err() {
                left = 0;
            }
            Some(record)
        })
    }
}

impl<'a> KafkaRecord<'a> {
    /// Names and values; `None` in place of an item = the bytes are malformed from here on.
    pub fn headers(&self) -> impl Iterator<Item = Option<(&'a [u8], Option<&'a [u8]>)>> {
        let (mut rest, mut left) = (self.headers, self.header_count);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let header = take_bytes(&mut rest).and_then(|name| Some((name?, take_bytes(&mut rest)?)));
            if header.is_none() {
                left = 0;
            }
            Some(header)
        })
    }
}

fn next_record<'a>(rest: &mut &'a [u8], base_timestamp_ms: i64, append_time_ms: Option<i64>) -> Option<KafkaRecord<'a>> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (mut record, after) = rest.split_at_checked(length)?;
    *rest = after;
    record = record.get(1..)?;
    let timestamp_delta = take_varint(&mut record)?;
    let offset_delta = take_varint(&mut record).filter(|delta| (0..i64::from(i32::MAX)).contains(delta))?;
    let (key, value) = (take_bytes(&mut record)?, take_bytes(&mut record)?);
    let header_count = usize::try_from(take_varint(&mut record)?).ok().filter(|count| *count <= record.len())?;
    let timestamp_ms = append_time_ms.unwrap_or(base_timestamp_ms.wrapping_add(timestamp_delta));
    Some(KafkaRecord { offset_delta, timestamp_ms, key, value, header_count, headers: record })
}

fn take_varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (at, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *rest = &rest[at + 1..];
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Bytes after their length; `Some(None)` = null.
fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_varint(rest)?;
    if length < 0 {
        return (length == -1).then_some(None);
    }
    let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(Some(bytes))
}

/// What `bytes` hold, if that is no more than `limit_bytes`.
fn inflate(codec: Codec, bytes: &[u8], limit_bytes: usize) -> Result<Cow<'_, [u8]>, Unreadable> {
    let read = |reader: &mut dyn Read| {
        let mut out = Vec::new();
        reader.take(limit_bytes as u64 + 1).read_to_end(&mut out).ok().filter(|read| *read <= limit_bytes).map(|_| out)
    };
    let inflated = match codec {
        Codec::None => return Ok(Cow::Borrowed(bytes)),
        Codec::Gzip => read(&mut flate2::read::MultiGzDecoder::new(bytes)),
        Codec::Snappy => inflate_snappy(bytes, limit_bytes),
        Codec::Lz4 => read(&mut lz4_flex::frame::FrameDecoder::new(bytes)),
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(bytes).ok().and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).ok()?;
            read(&mut decoder)
        }),
    };
    inflated.map(Cow::Owned).ok_or(Unreadable)
}

/// Snappy as Java's library frames it (a magic number, two versions, then blocks with a length each), or one raw block.
fn inflate_snappy(bytes: &[u8], limit_bytes: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut block = |block: &[u8]| -> Option<()> {
        let length = snap::raw::decompress_len(block).ok()?;
        if length > limit_bytes - out.len().min(limit_bytes) {
            return None;
        }
        let from = out.len();
        out.resize(from + length, 0);
        let written = snap::raw::Decoder::new().decompress(block, &mut out[from..]).ok()?;
        (written == length).then_some(())
    };
    let Some(mut rest) = bytes.strip_prefix(JAVA_SNAPPY_MAGIC) else {
        block(bytes)?;
        return Some(out);
    };
    rest = rest.get(8..)?;
    while let Some((length, after)) = rest.split_first_chunk() {
        let (compressed, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        block(compressed)?;
        rest = after;
    }
    rest.is_empty().then_some(out)
}

const JAVA_SNAPPY_MAGIC: &[u8] = b"\x82SNAPPY\0";
/// 2²⁷ bytes of window is what the strongest level uses.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
