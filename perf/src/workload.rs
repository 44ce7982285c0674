//! What is sent: payloads, prebuilt requests, the schedule of an open loop, and which connection talks to
//! which partition.
//!
//! A request is built once and then only stamped: correlation, partition, times, sequence numbers, checksum.
//! That keeps one core of load ahead of one core of broker.
//!
//! ```text
//! request = envelope 16 · frame header 64 · batch prefix 16 · records (header 24 · key · payload · padding)
//! payload of ≥ 16 bytes = sequence word u64 · time u64 · random bytes
//! ```

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ringmain_wire::frame::{self, BODY_CRC_FROM, HEADER_BYTES, Identity};
use ringmain_wire::queue::name;
use ringmain_wire::record::{BATCH_PREFIX_BYTES, HeadersBuilder, RECORD_HEADER_BYTES};
use ringmain_wire::{Envelope, Op, PartitionId, RecordBatchBuilder};

/// Payloads of at least this size carry a sequence word and a time.
pub const STAMPED_PAYLOAD_BYTES: usize = 16;
/// Keys are `k` and seven digits.
pub const KEY_BYTES: usize = 8;
/// A request buffer holds as many requests as fit in this, at least one: one write call each.
const BUFFER_BYTES: usize = 256 << 10;
/// The upper bits of a sequence word say which connection wrote it.
pub const WRITER_SHIFT: u32 = 48;
/// Of an encoded header, before its name.
const HEADER_HEAD_BYTES: usize = 6;
const FRAME_AT: usize = Envelope::BYTES;
const PREFIX_AT: usize = FRAME_AT + HEADER_BYTES;
const RECORDS_AT: usize = PREFIX_AT + BATCH_PREFIX_BYTES;
const CORRELATION_AT: usize = 8;
const PARTITION_AT: usize = FRAME_AT + 36;
const RECORD_COUNT_AT: usize = FRAME_AT + 40;

/// The number that a message carries: who wrote it and which of the writer's it is in its partition.
pub fn sequence_word(writer: u16, sequence: u64) -> u64 {
    u64::from(writer) << WRITER_SHIFT | sequence & ((1 << WRITER_SHIFT) - 1)
}

/// Where payloads come from.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Random bytes, all messages of one size.
    Random {
        /// Bytes per message.
        size: usize,
    },
    /// The lines of a file, one message each, over and over.
    Lines(Vec<Vec<u8>>),
}

impl Payload {
    /// The file's lines; only the final LF separates, so every other byte is kept.
    pub fn from_file(path: &Path) -> Result<Payload> {
        let bytes = std::fs::read(path).with_context(|| format!("reading the payload file {}", path.display()))?;
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if bytes.is_empty() {
            bail!("the payload file {} is empty", path.display());
        }
        Ok(Payload::Lines(text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect()))
    }

    /// Mean payload bytes per message.
    pub fn mean_bytes(&self) -> f64 {
        match self {
            Payload::Random { size } => *size as f64,
            Payload::Lines(lines) => lines.iter().map(Vec::len).sum::<usize>() as f64 / lines.len().max(1) as f64,
        }
    }
}

/// What messages for queues carry besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueShape {
    /// Levels of priority; 1 or less = no priority. Each message has one of them.
    pub priorities: u16,
    /// Each message is due so many ms after it is sent, between these two.
    pub delay_ms: Option<(u64, u64)>,
}

impl QueueShape {
    /// A header with a value of 1 byte, then one of 8: `[name length u16][value length i32][name][value]` each.
    fn priority_bytes(self) -> usize {
        if self.priorities > 1 { HEADER_HEAD_BYTES + name::PRIORITY.len() + 1 } else { 0 }
    }

    fn bytes(self) -> usize {
        self.priority_bytes() + self.delay_ms.map_or(0, |_| HEADER_HEAD_BYTES + name::DUE_MS.len() + 8)
    }

    fn encode(self, random: &mut Random) -> HeadersBuilder {
        let mut headers = HeadersBuilder::default();
        if self.priorities > 1 {
            headers.push(name::PRIORITY, Some(&[(random.next_word() % u64::from(self.priorities)) as u8]));
        }
        if let Some((from, to)) = self.delay_ms {
            // The delay; the time it is sent is added then.
            let delay_ms = from + random.next_word() % (to.saturating_sub(from) + 1);
            headers.push(name::DUE_MS, Some(&delay_ms.to_le_bytes()));
        }
        headers
    }
}

/// The layout of the requests of one run.
#[derive(Clone, Debug)]
pub struct Shape {
    payload: Payload,
    /// Messages of a full batch.
    pub batch: u32,
    /// Messages have a key of [`KEY_BYTES`].
    pub keyed: bool,
    seed: u64,
    /// Headers for queues.
    headers: QueueShape,
    /// Requests that one buffer holds.
    pub requests_per_buffer: usize,
}

impl Shape {
    /// `in_flight`: no buffer needs to hold more requests than a connection may have unanswered.
    pub fn new(payload: Payload, batch: u32, keyed: bool, seed: u64, in_flight: usize) -> Shape {
        let mut shape = Shape { payload, batch, keyed, seed, headers: QueueShape::default(), requests_per_buffer: 1 };
        shape.requests_per_buffer = (BUFFER_BYTES / shape.mean_request_bytes().max(1)).clamp(1, in_flight.max(1));
        shape
    }

    /// The same with headers for queues.
    pub fn with_headers(self, headers: QueueShape) -> Shape {
        Shape { headers, ..self }
    }

    fn key_bytes(&self) -> usize {
        if self.keyed { KEY_BYTES } else { 0 }
    }

    fn mean_request_bytes(&self) -> usize {
        let record = RecordBatchBuilder::record_bytes(self.key_bytes(), self.payload.mean_bytes() as usize, self.headers.bytes());
        RECORDS_AT + self.batch as usize * record
    }

    /// Bytes of the largest frame that can be built.
    pub fn largest_frame_bytes(&self) -> usize {
        let largest = match &self.payload {
            Payload::Random { size } => *size,
            Payload::Lines(lines) => lines.iter().map(Vec::len).max().unwrap_or(0),
        };
        HEADER_BYTES
            + BATCH_PREFIX_BYTES
            + self.batch as usize * RecordBatchBuilder::record_bytes(self.key_bytes(), largest, self.headers.bytes())
    }

    /// The size of every payload; `None` = they differ.
    pub fn uniform_payload_bytes(&self) -> Option<usize> {
        match &self.payload {
            Payload::Random { size } => Some(*size),
            Payload::Lines(_) => None,
        }
    }

    /// Messages carry a sequence word.
    pub fn is_stamped(&self) -> bool {
        self.uniform_payload_bytes().is_some_and(|size| size >= STAMPED_PAYLOAD_BYTES)
    }

    /// What every record of these batches looks like; `None` = they differ.
    pub fn record_shape(&self) -> Option<RecordShape> {
        let size = self.uniform_payload_bytes()?;
        let key = self.key_bytes();
        Some(RecordShape {
            len: (RECORD_HEADER_BYTES + key + self.headers.bytes() + size) as u32,
            stride: RecordBatchBuilder::record_bytes(key, size, self.headers.bytes()),
            value_at: RECORD_HEADER_BYTES + key + self.headers.bytes(),
            due_at: self.headers.delay_ms.map(|_| RECORD_HEADER_BYTES + key + self.headers.bytes() - 8),
        })
    }

    /// Builds the requests of buffer number `index`; other numbers hold other payloads.
    pub fn buffer(&self, index: usize) -> RequestBuffer {
        let mut random = Random::new(self.seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut line = index * self.requests_per_buffer * self.batch as usize;
        let mut bytes = Vec::with_capacity(self.requests_per_buffer * self.mean_request_bytes());
        let mut requests = Vec::with_capacity(self.requests_per_buffer);
        let mut builder = RecordBatchBuilder::new();
        let mut value = Vec::new();
        for _ in 0..self.requests_per_buffer {
            builder.clear();
            let mut record_ends = Vec::new();
            let mut payload_ends = Vec::new();
            let mut payload_bytes = 0;
            for _ in 0..self.batch {
                let key = self.keyed.then_some(&b"k0000000"[..]);
                match &self.payload {
                    Payload::Random { size } => {
                        value.resize(*size, 0);
                        random.fill(&mut value);
                        builder.push(0, key, Some(&value), self.headers.encode(&mut random).as_bytes());
                    }
                    Payload::Lines(lines) => {
                        let text = &lines[line % lines.len()];
                        line += 1;
                        builder.push(0, key, Some(text), self.headers.encode(&mut random).as_bytes());
                        payload_bytes += text.len() as u64;
                        record_ends.push(builder.frame_bytes() as u32);
                        payload_ends.push(payload_bytes);
                    }
                }
            }
            let start = bytes.len();
            let flags = if self.headers.bytes() > 0 { frame::flags::QUEUE_HEADERS } else { 0 };
            let frame = builder.finish(Identity { flags, ..Identity::plain(PartitionId(0)) });
            let mut delays_ms = Vec::new();
            if let Some(RecordShape { due_at: Some(due_at), stride, .. }) = self.record_shape() {
                let delay =
                    |record: &[u8]| record.get(due_at..).and_then(<[u8]>::first_chunk).map_or(0, |delay| i64::from_le_bytes(*delay));
                delays_ms = frame[HEADER_BYTES + BATCH_PREFIX_BYTES..].chunks_exact(stride).map(delay).collect();
            }
            bytes.extend_from_slice(&Envelope { len: frame.len() as u32, op: Op::Produce as u16, flags: 0, correlation: 0 }.to_bytes());
            bytes.extend_from_slice(frame);
            requests.push(Request { start, record_ends, payload_ends, delays_ms });
        }
        RequestBuffer { bytes, requests, record: self.record_shape(), keyed: self.keyed }
    }
}

/// Where things are in a record, when all records of a run are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordShape {
    /// The record's own `len` field.
    pub len: u32,
    /// Distance of two records.
    pub stride: usize,
    /// Where the payload begins in the record.
    pub value_at: usize,
    /// Where its due time is, if it has one.
    pub due_at: Option<usize>,
}

#[derive(Debug)]
struct Request {
    start: usize,
    /// For payloads of different sizes: the frame's length after each record.
    record_ends: Vec<u32>,
    payload_ends: Vec<u64>,
    /// By record, if messages are due later.
    delays_ms: Vec<i64>,
}

/// What changes from request to request.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Comes back in the reply.
    pub correlation: u64,
    /// The partition, from the metadata.
    pub partition: u32,
    /// Messages; at most the shape's batch.
    pub count: u32,
    /// Time of the records, ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// When the run's clock began, ms since the Unix epoch.
    pub clock_start_ms: i64,
    /// Sequence word of the first message.
    pub sequence_word: u64,
}

/// The times that go into the payloads.
#[derive(Clone, Copy, Debug)]
pub enum Times<'a> {
    /// None: nobody reads them.
    Absent,
    /// The same for all messages of the request, in ns of the run's clock.
    Same(u64),
    /// Each message's intended time; the first is the schedule's number `first`.
    Intended {
        /// When messages are due.
        schedule: &'a Schedule,
        /// Number of the first message.
        first: u64,
    },
}

/// A row of prebuilt requests that goes out in one write.
#[derive(Debug)]
pub struct RequestBuffer {
    /// The bytes that the ranges of [`RequestBuffer::stamp`] point into.
    pub bytes: Vec<u8>,
    requests: Vec<Request>,
    record: Option<RecordShape>,
    keyed: bool,
}

impl RequestBuffer {
    /// Makes request `index` a new one; returns where its bytes are, and its payload bytes.
    pub fn stamp(&mut self, index: usize, stamp: Stamp, times: Times<'_>, keys: &mut KeyRing) -> (Range<usize>, u64) {
        let request = &self.requests[index];
        let count = stamp.count as usize;
        let (frame_len, payload_bytes) = match self.record {
            Some(record) => {
                (HEADER_BYTES + BATCH_PREFIX_BYTES + count * record.stride, count as u64 * (record.len as usize - record.value_at) as u64)
            }
            None => (request.record_ends[count - 1] as usize, request.payload_ends[count - 1]),
        };
        let range = request.start..request.start + FRAME_AT + frame_len;
        let bytes = &mut self.bytes[range.clone()];
        let (head, records) = bytes.split_at_mut(RECORDS_AT);
        head[..4].copy_from_slice(&(frame_len as u32).to_le_bytes());
        head[CORRELATION_AT..CORRELATION_AT + 8].copy_from_slice(&stamp.correlation.to_le_bytes());
        head[FRAME_AT + 4..FRAME_AT + 8].copy_from_slice(&(frame_len as u32).to_le_bytes());
        head[PARTITION_AT..PARTITION_AT + 4].copy_from_slice(&stamp.partition.to_le_bytes());
        head[RECORD_COUNT_AT..RECORD_COUNT_AT + 4].copy_from_slice(&stamp.count.to_le_bytes());
        head[PREFIX_AT..PREFIX_AT + 8].copy_from_slice(&stamp.timestamp_ms.to_le_bytes());
        head[PREFIX_AT + 8..PREFIX_AT + 16].copy_from_slice(&stamp.timestamp_ms.to_le_bytes());
        if let Some(record) = self.record
            && record.len as usize - record.value_at >= STAMPED_PAYLOAD_BYTES
        {
            let mut word = stamp.sequence_word;
            match times {
                Times::Absent => {
                    for bytes in records.chunks_exact_mut(record.stride) {
                        put(bytes, record.value_at, word);
                        word += 1;
                    }
                }
                Times::Same(ns) => {
                    for bytes in records.chunks_exact_mut(record.stride) {
                        put(bytes, record.value_at, word);
                        put(bytes, record.value_at + 8, ns);
                        word += 1;
                    }
                }
                Times::Intended { schedule, first } => {
                    for (number, bytes) in (first..).zip(records.chunks_exact_mut(record.stride)) {
                        put(bytes, record.value_at, word);
                        put(bytes, record.value_at + 8, schedule.intended_ns(number));
                        word += 1;
                    }
                }
            }
        }
        if let Some(RecordShape { due_at: Some(due_at), stride, value_at, len }) = self.record {
            for (bytes, delay_ms) in records.chunks_exact_mut(stride).zip(&request.delays_ms) {
                let due_ms = stamp.timestamp_ms + delay_ms;
                put(bytes, due_at, due_ms as u64);
                if len as usize - value_at >= STAMPED_PAYLOAD_BYTES {
                    // Timed is from when it is due.
                    put(bytes, value_at + 8, (due_ms - stamp.clock_start_ms).max(0) as u64 * 1_000_000);
                }
            }
        }
        if self.keyed {
            let mut at = 0;
            for j in 0..count {
                records[at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + KEY_BYTES].copy_from_slice(keys.next());
                at = match self.record {
                    Some(record) => at + record.stride,
                    None => request.record_ends[j] as usize - HEADER_BYTES - BATCH_PREFIX_BYTES,
                };
            }
        }
        let crc = crc32c::crc32c(&bytes[FRAME_AT + BODY_CRC_FROM..]);
        bytes[FRAME_AT + frame::HALF_BYTES..FRAME_AT + BODY_CRC_FROM].copy_from_slice(&crc.to_le_bytes());
        (range, payload_bytes)
    }
}

/// Writes `word` at `at`. By way of an array: a copy of two equal slices becomes a call of memmove here.
fn put(bytes: &mut [u8], at: usize, word: u64) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = word.to_le_bytes();
    }
}

/// The keys of one partition, in turn.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Vec<[u8; KEY_BYTES]>,
    at: usize,
}

impl KeyRing {
    /// Deals `key_count` keys to `partition_count` rings as the client's partitioner would; a partition that
    /// no key falls to gets an empty ring and must not be written.
    pub fn deal(key_count: u64, partition_count: u32) -> Vec<KeyRing> {
        let mut rings = vec![KeyRing::default(); partition_count as usize];
        for number in 0..key_count.min(10_000_000) {
            let mut key = *b"k0000000";
            let mut rest = number;
            for digit in key[1..].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            rings[ringmain_wire::murmur2::partition_for_key(&key, partition_count) as usize].keys.push(key);
        }
        rings
    }

    /// No key falls to this partition.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn next(&mut self) -> &[u8; KEY_BYTES] {
        self.at = if self.at + 1 < self.keys.len() { self.at + 1 } else { 0 };
        &self.keys[self.at]
    }
}

/// When the messages of one connection are due in an open loop: the connections take turns, so message
/// number `k` of connection `lane` is the `k × lanes + lane`-th of all.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    first_ns: f64,
    step_ns: f64,
}

impl Schedule {
    /// `rate`: messages per second over all `lanes` connections.
    pub fn new(start_ns: u64, rate: f64, lane: usize, lanes: usize) -> Schedule {
        let interval_ns = 1e9 / rate;
        Schedule { first_ns: start_ns as f64 + interval_ns * lane as f64, step_ns: interval_ns * lanes as f64 }
    }

    /// When message `number` is due, in ns of the run's clock.
    pub fn intended_ns(&self, number: u64) -> u64 {
        (self.first_ns + self.step_ns * number as f64) as u64
    }

    /// How many messages are due at `now_ns`.
    pub fn due(&self, now_ns: u64) -> u64 {
        let past = now_ns as f64 - self.first_ns;
        if past < 0.0 { 0 } else { (past / self.step_ns) as u64 + 1 }
    }
}

/// What one connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Port of the core that owns its partitions.
    pub port: u16,
    /// Indexes into the topic's partitions.
    pub partitions: Vec<usize>,
}

/// Deals partitions to connections so that a connection talks to one core. `ports[i]` = port of partition
/// `i`'s owner. With fewer connections than partitions a connection takes several; with more, some share one.
/// Fewer connections than cores: partitions of several cores share a connection, and the broker forwards.
pub fn assign(ports: &[u16], connections: usize) -> Vec<Assignment> {
    let mut distinct: Vec<u16> = ports.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    if connections < distinct.len() {
        return (0..connections)
            .map(|c| Assignment { port: ports[c % ports.len()], partitions: (0..ports.len()).filter(|p| p % connections == c).collect() })
            .collect();
    }
    (0..connections)
        .map(|c| {
            let port = distinct[c % distinct.len()];
            let (turn, siblings) = (c / distinct.len(), (connections - c % distinct.len()).div_ceil(distinct.len()));
            let owned: Vec<usize> = (0..ports.len()).filter(|p| ports[*p] == port).collect();
            let partitions = if owned.len() >= siblings {
                owned.iter().copied().enumerate().filter(|(i, _)| i % siblings == turn).map(|(_, p)| p).collect()
            } else {
                vec![owned[turn % owned.len()]]
            };
            Assignment { port, partitions }
        })
        .collect()
}

/// Seeded random bytes (splitmix64): incompressible, and the same in every run.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next 64 bits.
    pub fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use ringmain_wire::{Frame, Records};

    use super::*;

    fn check_stamped(shape: &Shape, count: u32) {
        let mut buffer = shape.buffer(3);
        let mut rings = KeyRing::deal(100, 1);
        let schedule = Schedule::new(1_000, 1e6, 0, 1);
        let last = shape.requests_per_buffer - 1;
        for turn in 0..2_u64 {
            let stamp = Stamp {
                correlation: 77 + turn,
                partition: 9,
                count,
                timestamp_ms: 123,
                clock_start_ms: 0,
                sequence_word: sequence_word(5, 10 * turn),
            };
            let (range, payload_bytes) = buffer.stamp(last, stamp, Times::Intended { schedule: &schedule, first: 4 }, &mut rings[0]);
            let bytes = &buffer.bytes[range];
            let envelope = Envelope::read(bytes).unwrap();
            assert_eq!((envelope.correlation, envelope.len as usize), (77 + turn, bytes.len() - Envelope::BYTES));
            let frame = Frame::parse(&bytes[Envelope::BYTES..]).unwrap();
            frame.verify_body().unwrap();
            assert_eq!(
                (frame.len_bytes(), frame.partition(), frame.header.producer.record_count),
                (envelope.len as usize, PartitionId(9), count)
            );
            let mut seen_bytes = 0;
            for (i, record) in Records::new(frame.body(), count).unwrap().enumerate() {
                let record = record.unwrap();
                let value = record.value.unwrap();
                assert_eq!((record.timestamp_ms, record.key.is_some()), (123, shape.keyed));
                seen_bytes += value.len() as u64;
                if shape.is_stamped() {
                    assert_eq!(value[..8], sequence_word(5, 10 * turn + i as u64).to_le_bytes());
                    assert_eq!(value[8..16], schedule.intended_ns(4 + i as u64).to_le_bytes());
                }
            }
            assert_eq!(seen_bytes, payload_bytes);
        }
    }

    #[test]
    fn stamped_requests_are_whole_frames() {
        for (size, batch, keyed) in [(100, 1, false), (100, 100, true), (15, 3, false), (0, 2, false), (1_024, 128, false), (16, 7, true)] {
            let shape = Shape::new(Payload::Random { size }, batch, keyed, 1, 64);
            check_stamped(&shape, batch);
            check_stamped(&shape, batch.div_ceil(2));
        }
        let lines = Payload::Lines(vec![b"a".to_vec(), b"".to_vec(), b"a longer line than the others\r".to_vec()]);
        check_stamped(&Shape::new(lines.clone(), 7, false, 1, 2), 5);
        check_stamped(&Shape::new(lines, 7, true, 1, 2), 7);
    }

    #[test]
    fn schedule_gives_every_message_its_own_time() {
        let schedules: Vec<Schedule> = (0..3).map(|lane| Schedule::new(500, 1e6, lane, 3)).collect();
        let mut times: Vec<u64> = (0..12).map(|i| schedules[i % 3].intended_ns((i / 3) as u64)).collect();
        times.dedup();
        assert_eq!(times, (0..12).map(|i| 500 + i * 1_000).collect::<Vec<u64>>());
        assert_eq!((schedules[1].due(1_499), schedules[1].due(1_500), schedules[1].due(4_500)), (0, 1, 2));
    }

    #[test]
    fn assignment_covers_every_partition_and_keeps_to_one_core() {
        for (partitions, cores, connections) in [(1, 1, 16), (16, 1, 16), (64, 2, 3), (5, 2, 16), (4, 4, 4), (8, 4, 2), (7, 3, 5)] {
            let ports: Vec<u16> = (0..partitions).map(|p| 7_000 + (p % cores) as u16).collect();
            let plan = assign(&ports, connections);
            assert_eq!(plan.len(), connections);
            for p in 0..partitions {
                assert!(plan.iter().any(|a| a.partitions.contains(&p)), "partition {p} of {partitions} on {connections}");
            }
            if connections >= cores.min(partitions) {
                assert!(plan.iter().all(|a| !a.partitions.is_empty() && a.partitions.iter().all(|p| ports[*p] == a.port)), "{plan:?}");
            }
        }
    }

    #[test]
    fn keys_fall_to_the_partition_of_the_partitioner() {
        let rings = KeyRing::deal(1_000, 4);
        assert_eq!(rings.iter().map(|r| r.keys.len()).sum::<usize>(), 1_000);
        assert!(
            rings.iter().enumerate().all(|(p, r)| r.keys.iter().all(|k| ringmain_wire::murmur2::partition_for_key(k, 4) as usize == p))
        );
    }
}
