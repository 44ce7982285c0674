//! Consumers: several fetches under way, frames verified where they were received.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use ringmain_wire::control::{CONTROL_VERSION, FetchReply, FetchRequest};
use ringmain_wire::frame::{Format, HEADER_BYTES};
use ringmain_wire::record::BATCH_PREFIX_BYTES;
use ringmain_wire::{Envelope, Frame, Op, Records, align_up, envelope};

use super::{Shared, Target};
use crate::control::error_text;
use crate::workload::{Assignment, RecordShape, STAMPED_PAYLOAD_BYTES, WRITER_SHIFT, assign};

/// Bytes read at a time: what has been received should still be in the cache when it is verified.
const INPUT_BYTES: usize = 512 << 10;
/// Less room than this at the buffer's end: what is left moves to its start.
const ROOM_BYTES: usize = 64 << 10;
/// Reads of one connection before the others get their turn.
const READS: usize = 4;
const REPLY_BYTES: usize = Envelope::BYTES + FetchReply::BYTES;

/// Consumers that do the same.
#[derive(Clone, Debug)]
pub struct ConsumeLoad {
    /// Connections.
    pub connections: usize,
    /// Fetches a connection may have unanswered, at most one per partition.
    pub in_flight: usize,
    /// `max_bytes` of a fetch.
    pub fetch_bytes: u32,
    /// How long a fetch may wait for data, in ms.
    pub max_wait_ms: u32,
    /// The partitions.
    pub targets: Vec<Target>,
    /// What the records look like; `None` = unknown.
    pub record: Option<RecordShape>,
    /// Messages carry sequence words; their writers are numbered below this. 0 = they don't.
    pub writer_count: usize,
    /// Checksums, offsets and sequence are checked.
    pub verify: bool,
    /// The data is written during the run, and each message has its intended time: end-to-end latency.
    /// Otherwise the data is there, and is read over and over.
    pub follows: bool,
}

impl ConsumeLoad {
    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let ports: Vec<u16> = self.targets.iter().map(|t| t.port).collect();
        // What is followed must be received once.
        let connections = if self.follows { self.connections.min(ports.len()) } else { self.connections };
        assign(&ports, connections)
    }
}

/// One partition as one connection reads it.
#[derive(Debug)]
struct Lane {
    target: Target,
    /// Where the next fetch begins.
    fetch_from: u64,
    is_asked: bool,
    asked_ns: u64,
    /// Offset of the next record to arrive.
    expected: u64,
    /// The reply being read has brought something new: what comes again now is a duplicate.
    has_advanced: bool,
    /// By writer: sequence of its next message.
    sequences: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The next bytes are an envelope.
    Head,
    /// The next bytes are frames.
    Frames { lane: usize, remaining_bytes: usize, asked_ns: u64 },
}

/// One connection that reads.
#[derive(Debug)]
pub(super) struct Consumer {
    stream: TcpStream,
    token: u64,
    lanes: Vec<Lane>,
    next_lane: usize,
    asked: usize,
    in_flight: usize,
    stage: Stage,
    input: Vec<u8>,
    begin: usize,
    end: usize,
    output: Vec<u8>,
    watches_writable: bool,
    judge: Judge,
    received: u64,
}

/// What the consumer knows about the data beforehand.
#[derive(Clone, Copy, Debug)]
struct Judge {
    fetch_bytes: u32,
    max_wait_ms: u32,
    record: Option<RecordShape>,
    writer_count: usize,
    verify: bool,
    follows: bool,
}

impl Consumer {
    pub(super) fn new(stream: TcpStream, token: u64, plan: &ConsumeLoad, assignment: Assignment) -> Consumer {
        let lanes: Vec<Lane> = assignment
            .partitions
            .into_iter()
            .map(|p| {
                let target = plan.targets[p];
                // What was there before has one writer, whose sequence is the offset.
                let (from, sequence) = if plan.follows { (target.end, 0) } else { (target.start, target.start) };
                let sequences = vec![sequence; plan.writer_count];
                Lane { target, fetch_from: from, is_asked: false, asked_ns: 0, expected: from, has_advanced: false, sequences }
            })
            .collect();
        let judge = Judge {
            fetch_bytes: plan.fetch_bytes,
            max_wait_ms: plan.max_wait_ms,
            record: plan.record,
            writer_count: plan.writer_count,
            verify: plan.verify,
            follows: plan.follows,
        };
        Consumer {
            stream,
            token,
            in_flight: plan.in_flight.clamp(1, lanes.len().max(1)),
            lanes,
            next_lane: 0,
            asked: 0,
            stage: Stage::Head,
            input: vec![0; INPUT_BYTES],
            begin: 0,
            end: 0,
            output: Vec::with_capacity(1 << 10),
            watches_writable: false,
            judge,
            received: 0,
        }
    }

    /// Messages received in the whole run.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Sends as many fetches as may be under way.
    pub(super) fn ask(&mut self, shared: &mut Shared, now_ns: u64) -> Result<()> {
        if shared.stopping && !self.judge.follows {
            return Ok(());
        }
        let mut tries = self.lanes.len();
        while self.asked < self.in_flight && tries > 0 {
            let index = self.next_lane;
            self.next_lane = if index + 1 < self.lanes.len() { index + 1 } else { 0 };
            tries -= 1;
            let lane = &mut self.lanes[index];
            if lane.is_asked {
                continue;
            }
            let request = FetchRequest {
                version: CONTROL_VERSION,
                reserved: 0,
                partition: lane.target.number,
                offset: lane.fetch_from,
                min_bytes: 1,
                max_bytes: self.judge.fetch_bytes,
                max_wait_ms: self.judge.max_wait_ms,
                flags: 0,
            };
            let envelope = Envelope { len: FetchRequest::BYTES as u32, op: Op::Fetch as u16, flags: 0, correlation: index as u64 };
            self.output.extend_from_slice(&envelope.to_bytes());
            self.output.extend_from_slice(&request.to_bytes());
            lane.is_asked = true;
            lane.asked_ns = now_ns;
            self.asked += 1;
        }
        self.flush(shared)
    }

    pub(super) fn flush(&mut self, shared: &Shared) -> Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => bail!("the broker closed a connection"),
                Ok(bytes) => drop(self.output.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
            }
        }
        let blocked = !self.output.is_empty();
        if blocked != self.watches_writable {
            self.watches_writable = blocked;
            shared.watch(&self.stream, self.token, blocked)?;
        }
        Ok(())
    }

    /// Reads and verifies what has arrived.
    pub(super) fn receive(&mut self, shared: &mut Shared) -> Result<()> {
        for _ in 0..READS {
            if self.begin == self.end {
                (self.begin, self.end) = (0, 0);
            } else if self.input.len() - self.end < ROOM_BYTES {
                self.input.copy_within(self.begin..self.end, 0);
                (self.begin, self.end) = (0, self.end - self.begin);
            }
            let room = self.input.len() - self.end;
            let bytes = match self.stream.read(&mut self.input[self.end..]) {
                Ok(0) => bail!("the broker closed a connection"),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
            };
            self.end += bytes;
            self.parse(shared)?;
            if bytes < room {
                return Ok(());
            }
        }
        Ok(())
    }

    fn parse(&mut self, shared: &mut Shared) -> Result<()> {
        let now_ns = shared.clock.now_ns();
        loop {
            match self.stage {
                Stage::Head => {
                    if !self.parse_head(shared, now_ns)? {
                        return Ok(());
                    }
                }
                Stage::Frames { remaining_bytes: 0, asked_ns, .. } => {
                    if !self.judge.follows && shared.window.is_open(now_ns) {
                        shared.recorder.record(now_ns - asked_ns, 1);
                    }
                    self.stage = Stage::Head;
                }
                Stage::Frames { lane, remaining_bytes, asked_ns } => {
                    let input = &self.input[self.begin..self.end];
                    let Some(length) = input.get(4..8) else { return Ok(()) };
                    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
                    let padded = align_up(length).min(remaining_bytes);
                    if length < HEADER_BYTES || length > remaining_bytes {
                        bail!("a frame of {length} bytes in the last {remaining_bytes} bytes of a fetch reply");
                    }
                    let Some(bytes) = input.get(..padded) else {
                        if padded > self.input.len() - ROOM_BYTES {
                            self.input.resize(padded + INPUT_BYTES, 0);
                        }
                        return Ok(());
                    };
                    let (messages, payload_bytes) = self.lanes[lane].take(bytes, self.judge, shared, now_ns);
                    self.received += messages;
                    shared.count(now_ns, messages, payload_bytes);
                    self.begin += padded;
                    self.stage = Stage::Frames { lane, remaining_bytes: remaining_bytes - padded, asked_ns };
                }
            }
        }
    }

    /// Reads the head of a reply and sends the next fetch before its frames have arrived; false = it isn't all there.
    fn parse_head(&mut self, shared: &mut Shared, now_ns: u64) -> Result<bool> {
        let input = &self.input[self.begin..self.end];
        let Some(envelope) = Envelope::read(input) else { return Ok(false) };
        if envelope.flags & envelope::flags::ERROR != 0 {
            let Some(body) = input.get(Envelope::BYTES..Envelope::BYTES + envelope.len as usize) else { return Ok(false) };
            bail!("the broker refused a fetch: {}", error_text(body));
        }
        let index = envelope.correlation as usize;
        if envelope.op != Op::Fetch as u16
            || (envelope.len as usize) < FetchReply::BYTES
            || !self.lanes.get(index).is_some_and(|l| l.is_asked)
        {
            bail!("the reply to a fetch is none: {envelope:?}");
        }
        let Some(body) = input.get(Envelope::BYTES..REPLY_BYTES) else { return Ok(false) };
        let reply = FetchReply::read(body)?;
        let lane = &mut self.lanes[index];
        lane.is_asked = false;
        lane.has_advanced = false;
        let asked_ns = lane.asked_ns;
        lane.fetch_from = reply.next_offset;
        if !self.judge.follows && reply.next_offset >= lane.target.end {
            lane.fetch_from = lane.target.start;
        }
        self.asked -= 1;
        self.begin += REPLY_BYTES;
        self.stage = Stage::Frames { lane: index, remaining_bytes: envelope.len as usize - FetchReply::BYTES, asked_ns };
        self.ask(shared, now_ns)?;
        Ok(true)
    }
}

impl Lane {
    /// Judges one frame; returns its new messages and their payload bytes.
    fn take(&mut self, bytes: &[u8], judge: Judge, shared: &mut Shared, now_ns: u64) -> (u64, u64) {
        let number = self.target.number;
        let frame = match Frame::parse(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                shared.faults.note(|| format!("partition {number}, offset {}: {error}", self.expected));
                return (0, 0);
            }
        };
        let (base, end) = (frame.base_offset().0, frame.end_offset().0);
        // A fetch may begin with records before its offset, but only begin.
        if base < self.expected && self.has_advanced && judge.verify {
            shared.faults.note(|| format!("partition {number}: offsets {base}..{end} came again, {} was next", self.expected));
        }
        if end <= self.expected {
            return (0, 0);
        }
        self.has_advanced = true;
        let skipped = self.expected.saturating_sub(base);
        if judge.verify {
            if let Err(error) = frame.verify_header().and_then(|()| frame.verify_body()) {
                shared.faults.note(|| format!("partition {number}, offset {base}: {error}"));
            }
            if frame.partition().0 != number {
                shared.faults.note(|| format!("partition {number}, offset {base}: the frame belongs to partition {}", frame.partition()));
            }
            if base > self.expected {
                shared.faults.note(|| format!("partition {number}: offsets {}..{base} are missing", self.expected));
            }
        }
        let payload_bytes = self.records(&frame, skipped, judge, shared, now_ns);
        self.expected = end;
        if !judge.follows && end >= self.target.end {
            if judge.verify && judge.writer_count > 0 && end > self.target.end {
                shared.faults.note(|| format!("partition {number}: ends at {end} instead of {}", self.target.end));
            }
            self.expected = self.target.start;
            self.sequences.fill(self.target.start);
        }
        (end - base - skipped, payload_bytes)
    }

    /// Walks a frame's records; returns the payload bytes of those after `skipped`.
    fn records(&mut self, frame: &Frame<'_>, skipped: u64, judge: Judge, shared: &mut Shared, now_ns: u64) -> u64 {
        let (number, base) = (self.target.number, frame.base_offset().0);
        let count = frame.header.producer.record_count;
        let Some(record) = judge.record else {
            return foreign_records(frame, skipped).unwrap_or_else(|words| {
                shared.faults.note(|| format!("partition {number}, offset {base}: {words}"));
                0
            });
        };
        let value_bytes = record.len as usize - record.value_at;
        let payload_bytes = (u64::from(count) - skipped) * value_bytes as u64;
        let body = frame.body();
        if body.len() != BATCH_PREFIX_BYTES + count as usize * record.stride {
            shared.faults.note(|| format!("partition {number}, offset {base}: a body of {} bytes for {count} records", body.len()));
            return payload_bytes;
        }
        let records = &body[BATCH_PREFIX_BYTES..];
        let word_at = |bytes: &[u8], at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b));
        if judge.verify {
            let mut wrong = 0;
            if judge.writer_count > 0 && value_bytes >= STAMPED_PAYLOAD_BYTES {
                let first = word_at(records, record.value_at);
                let (writer, sequence) = ((first >> WRITER_SHIFT) as usize, first & ((1 << WRITER_SHIFT) - 1));
                for (word, bytes) in (first..).zip(records.chunks_exact(record.stride)) {
                    wrong |= word ^ word_at(bytes, record.value_at);
                    wrong |= u64::from(record.len ^ u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                }
                match self.sequences.get_mut(writer) {
                    Some(next) if *next == sequence => *next += u64::from(count),
                    Some(next) => {
                        let expected = std::mem::replace(next, sequence + u64::from(count));
                        shared.faults.note(|| {
                            format!("partition {number}, offset {base}: message {sequence} of writer {writer}, {expected} was next")
                        });
                    }
                    None => wrong = 1,
                }
            } else {
                for bytes in records.chunks_exact(record.stride) {
                    wrong |= u64::from(record.len ^ u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                }
            }
            if wrong != 0 {
                shared.faults.note(|| format!("partition {number}, offset {base}: the batch isn't one of this run"));
            }
        }
        if judge.follows {
            let opened_ns = shared.window.opened_ns.unwrap_or(u64::MAX);
            for bytes in records.chunks_exact(record.stride) {
                let intended_ns = word_at(bytes, record.value_at + 8);
                if intended_ns >= opened_ns && intended_ns < shared.window.close_at_ns {
                    shared.recorder.record(now_ns.saturating_sub(intended_ns), 1);
                }
            }
        }
        payload_bytes
    }
}

/// Payload bytes of records whose sizes aren't known beforehand.
fn foreign_records(frame: &Frame<'_>, skipped: u64) -> Result<u64, String> {
    if frame.header.producer.format != Format::Native as u8 {
        return Ok(frame.body().len() as u64);
    }
    let count = frame.header.producer.record_count;
    let mut payload_bytes = 0;
    for (index, record) in (0..).zip(Records::new(frame.body(), count).map_err(|e| e.to_string())?) {
        let record = record.map_err(|e| e.to_string())?;
        if index >= skipped {
            payload_bytes += record.value.map_or(0, <[u8]>::len) as u64;
        }
    }
    Ok(payload_bytes)
}
