//! Records inside a native batch: flat bytes, so that they can be sliced, appended to and streamed.
//!
//! A batch body (frame format 0) is a [`BatchPrefix`] of 16 bytes, then `record_count` records, each
//! `RecordHeader` (24 bytes) + key + headers + value, padded with zeros to a multiple of 8.

use crate::{ALIGNMENT_BYTES, align_up, frame};

/// Bytes before the first record of a native batch: `[base timestamp i64][largest timestamp i64]`, both
/// in milliseconds since the Unix epoch, little-endian.
pub const BATCH_PREFIX_BYTES: usize = 16;
/// `[len u32][key_len i32][value_len i32][headers_len u32][timestamp delta i64]`, little-endian.
///
/// `len` counts the header, key, headers and value, without padding; −1 as a length = null.
pub const RECORD_HEADER_BYTES: usize = 24;

/// Why a batch's records can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The body ends inside a record.
    Truncated { at_bytes: usize },
    /// A length is negative beyond −1, or the parts don't add up to `len`.
    BadLength { at_bytes: usize },
    /// The header announced another number of records.
    WrongCount { expected: u32, got: u32 },
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecordError::Truncated { at_bytes } => write!(f, "the batch ends inside the record at byte {at_bytes}"),
            RecordError::BadLength { at_bytes } => write!(f, "the record at byte {at_bytes} has impossible lengths"),
            RecordError::WrongCount { expected, got } => write!(f, "the header announced {expected} records, the body holds {got}"),
        }
    }
}

impl std::error::Error for RecordError {}

/// One record, borrowed from a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Milliseconds since the Unix epoch, as the producer set it.
    pub timestamp_ms: i64,
    /// `None` = null; an empty key is `Some(&[])`.
    pub key: Option<&'a [u8]>,
    /// `None` = null (a tombstone); an empty message is `Some(&[])`.
    pub value: Option<&'a [u8]>,
    /// Encoded headers, read with [`headers`].
    pub headers: &'a [u8],
}

/// The records of one native batch body, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    body: &'a [u8],
    at_bytes: usize,
    base_timestamp_ms: i64,
    expected: u32,
    seen: u32,
}

impl<'a> Records<'a> {
    /// Reads `body` (a frame's bytes after its 64-byte header) as `record_count` records.
    pub fn new(body: &'a [u8], record_count: u32) -> Result<Records<'a>, RecordError> {
        let (base_timestamp_ms, _) = batch_timestamps(body).ok_or(RecordError::Truncated { at_bytes: 0 })?;
        Ok(Records { body, at_bytes: BATCH_PREFIX_BYTES, base_timestamp_ms, expected: record_count, seen: 0 })
    }

    /// Goes on with a reading of `body` that had come to `position` ([`Records::position`]).
    pub fn resume(body: &'a [u8], record_count: u32, position: (usize, u32)) -> Result<Records<'a>, RecordError> {
        let (at_bytes, seen) = position;
        if at_bytes < BATCH_PREFIX_BYTES || at_bytes > body.len() {
            return Err(RecordError::Truncated { at_bytes });
        }
        Ok(Records { at_bytes, seen, ..Records::new(body, record_count)? })
    }

    /// Byte in the body and number of the next record.
    pub fn position(&self) -> (usize, u32) {
        (self.at_bytes, self.seen)
    }

    /// Passes over `count` records without looking into them.
    pub fn skip_records(&mut self, count: u32) -> Result<(), RecordError> {
        for _ in 0..count {
            let at_bytes = self.at_bytes;
            let rest = &self.body[at_bytes..];
            let len = u32::from_le_bytes(*rest.first_chunk().ok_or(RecordError::Truncated { at_bytes })?) as usize;
            if len < RECORD_HEADER_BYTES {
                return Err(RecordError::BadLength { at_bytes });
            }
            if len > rest.len() {
                return Err(RecordError::Truncated { at_bytes });
            }
            self.at_bytes = (at_bytes + align_up(len)).min(self.body.len());
            self.seen += 1;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<RecordView<'a>, RecordError> {
        let at_bytes = self.at_bytes;
        let rest = &self.body[at_bytes..];
        let header: &[u8; RECORD_HEADER_BYTES] = rest.first_chunk().ok_or(RecordError::Truncated { at_bytes })?;
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (len, key_len, value_len, headers_len) = (word(0) as usize, word(4) as i32, word(8) as i32, word(12) as usize);
        let delta = i64::from_le_bytes([header[16], header[17], header[18], header[19], header[20], header[21], header[22], header[23]]);
        if key_len < -1 || value_len < -1 {
            return Err(RecordError::BadLength { at_bytes });
        }
        let (key_bytes, value_bytes) = (key_len.max(0) as usize, value_len.max(0) as usize);
        let sum =
            RECORD_HEADER_BYTES.checked_add(key_bytes).and_then(|s| s.checked_add(headers_len)).and_then(|s| s.checked_add(value_bytes));
        if sum != Some(len) {
            return Err(RecordError::BadLength { at_bytes });
        }
        let record = rest.get(..len).ok_or(RecordError::Truncated { at_bytes })?;
        let (key, tail) = record[RECORD_HEADER_BYTES..].split_at(key_bytes);
        let (headers, value) = tail.split_at(headers_len);
        self.at_bytes = (at_bytes + align_up(len)).min(self.body.len());
        self.seen += 1;
        Ok(RecordView {
            timestamp_ms: self.base_timestamp_ms.wrapping_add(delta),
            key: (key_len >= 0).then_some(key),
            value: (value_len >= 0).then_some(value),
            headers,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.seen == self.expected {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.seen = self.expected;
        }
        Some(item)
    }
}

/// Gives every record of a native batch body the same timestamp, ms since the Unix epoch. The frame has to be sealed again.
///
/// Errors: the records can't be read; those before are changed.
pub fn set_timestamps(body: &mut [u8], record_count: u32, timestamp_ms: i64) -> Result<(), RecordError> {
    let mut at_bytes = BATCH_PREFIX_BYTES;
    for seen in 0..record_count {
        let mut records = Records { at_bytes, seen, ..Records::new(body, record_count)? };
        records.read()?;
        let delta = at_bytes + RECORD_HEADER_BYTES - size_of::<i64>();
        at_bytes = records.at_bytes;
        body[delta..delta + size_of::<i64>()].fill(0);
    }
    let prefix = body.get_mut(..BATCH_PREFIX_BYTES).ok_or(RecordError::Truncated { at_bytes: 0 })?;
    prefix[..8].copy_from_slice(&timestamp_ms.to_le_bytes());
    prefix[8..].copy_from_slice(&timestamp_ms.to_le_bytes());
    Ok(())
}

/// `(base, largest)` record timestamp of a native batch body, in ms since the Unix epoch.
pub fn batch_timestamps(body: &[u8]) -> Option<(i64, i64)> {
    let prefix: &[u8; BATCH_PREFIX_BYTES] = body.first_chunk()?;
    let (base, largest) = prefix.split_at(8);
    Some((i64::from_le_bytes(base.try_into().ok()?), i64::from_le_bytes(largest.try_into().ok()?)))
}

/// Builds one native batch: a whole frame whose producer half is sealed by [`RecordBatchBuilder::finish`].
#[derive(Debug)]
pub struct RecordBatchBuilder {
    bytes: Vec<u8>,
    record_count: u32,
    base_timestamp_ms: i64,
    largest_timestamp_ms: i64,
}

impl Default for RecordBatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordBatchBuilder {
    /// An empty batch.
    pub fn new() -> RecordBatchBuilder {
        let mut builder = RecordBatchBuilder { bytes: Vec::new(), record_count: 0, base_timestamp_ms: 0, largest_timestamp_ms: 0 };
        builder.clear();
        builder
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(frame::HEADER_BYTES + BATCH_PREFIX_BYTES, 0);
        self.record_count = 0;
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes of the frame so far, header included.
    pub fn frame_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What one more record with these parts would add, in bytes.
    pub fn record_bytes(key_len: usize, value_len: usize, headers_len: usize) -> usize {
        align_up(RECORD_HEADER_BYTES + key_len + value_len + headers_len)
    }

    /// Appends one record. `timestamp_ms`: since the Unix epoch. `headers`: from [`HeadersBuilder`], or empty.
    pub fn push(&mut self, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) {
        if self.record_count == 0 {
            self.base_timestamp_ms = timestamp_ms;
            self.largest_timestamp_ms = timestamp_ms;
        }
        self.largest_timestamp_ms = self.largest_timestamp_ms.max(timestamp_ms);
        let length = |part: Option<&[u8]>| part.map_or(-1, |p| p.len() as i32);
        let (key_bytes, value_bytes) = (key.unwrap_or_default(), value.unwrap_or_default());
        let len = RECORD_HEADER_BYTES + key_bytes.len() + headers.len() + value_bytes.len();
        self.bytes.reserve(align_up(len));
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0..4].copy_from_slice(&(len as u32).to_le_bytes());
        header[4..8].copy_from_slice(&length(key).to_le_bytes());
        header[8..12].copy_from_slice(&length(value).to_le_bytes());
        header[12..16].copy_from_slice(&(headers.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&timestamp_ms.wrapping_sub(self.base_timestamp_ms).to_le_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(key_bytes);
        self.bytes.extend_from_slice(headers);
        self.bytes.extend_from_slice(value_bytes);
        self.bytes.extend_from_slice(&[0; ALIGNMENT_BYTES][..align_up(len) - len]);
        self.record_count += 1;
    }

    /// Seals the batch: writes its header and checksum; the frame's bytes, ready to send.
    ///
    /// May be called again with another identity (after a reconnect, say): the records stay.
    pub fn finish(&mut self, identity: frame::Identity) -> &[u8] {
        let prefix = &mut self.bytes[frame::HEADER_BYTES..frame::HEADER_BYTES + BATCH_PREFIX_BYTES];
        prefix[..8].copy_from_slice(&self.base_timestamp_ms.to_le_bytes());
        prefix[8..].copy_from_slice(&self.largest_timestamp_ms.to_le_bytes());
        frame::seal(&mut self.bytes, frame::Format::Native, self.record_count, identity);
        &self.bytes
    }
}

/// Encoded record headers: repeated `[name_len u16][value_len i32][name][value]`; −1 = null value.
#[derive(Clone, Debug, Default)]
pub struct HeadersBuilder {
    bytes: Vec<u8>,
}

impl HeadersBuilder {
    /// Adds a header; names may repeat. `name`: at most 65,535 bytes.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) -> &mut Self {
        debug_assert!(name.len() <= usize::from(u16::MAX));
        self.bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&value.map_or(-1, |v| v.len() as i32).to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads encoded headers; `None` in place of an item = the bytes are malformed from here on.
pub fn headers(mut bytes: &[u8]) -> impl Iterator<Item = Option<(&[u8], Option<&[u8]>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let parsed = (|| {
            let name_len = usize::from(u16::from_le_bytes(*bytes.first_chunk()?));
            let value_len = i32::from_le_bytes(bytes.get(2..6)?.try_into().ok()?);
            let name = bytes.get(6..6 + name_len)?;
            let value = match value_len {
                -1 => None,
                len => Some(bytes.get(6 + name_len..)?.get(..usize::try_from(len).ok()?)?),
            };
            bytes = &bytes[6 + name_len + value.map_or(0, <[u8]>::len)..];
            Some((name, value))
        })();
        if parsed.is_none() {
            bytes = &[];
        }
        Some(parsed)
    })
}
