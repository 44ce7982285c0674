//! Producers: closed loop (a fixed number of requests unanswered) and open loop (a fixed schedule).

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use anyhow::{Result, bail};
use ringmain_wire::control::ProduceReply;
use ringmain_wire::{Envelope, Op, envelope};

use super::{Length, Shared, Target};
use crate::control::error_text;
use crate::workload::{Assignment, KeyRing, RequestBuffer, Schedule, Shape, Stamp, Times, assign, sequence_word};

/// Replies are 40 bytes; this holds those of 1,600 requests.
const INPUT_BYTES: usize = 64 << 10;
/// Pieces of one vectored write.
const SLICES: usize = 64;
const REPLY_BYTES: usize = Envelope::BYTES + ProduceReply::BYTES;

/// Producers that do the same.
#[derive(Clone, Debug)]
pub struct ProduceLoad {
    /// Connections; each is one writer.
    pub connections: usize,
    /// Requests a connection may have unanswered.
    pub in_flight: usize,
    /// What a request looks like.
    pub shape: Shape,
    /// Messages per second over all connections; `None` = closed loop.
    pub rate: Option<f64>,
    /// Open loop: an incomplete batch leaves when its first message is due for so long.
    pub linger_ns: u64,
    /// Distinct keys, 0 = no keys.
    pub key_count: u64,
    /// The partitions.
    pub targets: Vec<Target>,
    /// Nobody else writes there.
    pub exclusive: bool,
    /// A consumer of this run reads the times in the payloads.
    pub timed: bool,
}

/// A [`ProduceLoad`] at work.
#[derive(Debug)]
pub(super) struct Group {
    plan: ProduceLoad,
    /// Its latencies are the run's result.
    recorded: bool,
    /// Messages not sent yet (closed loop).
    budget: u64,
    in_flight: u64,
    /// Sent in the whole run.
    published: u64,
    pool: Pool,
    /// By partition.
    pub(super) acknowledged: Vec<u64>,
    pub(super) acknowledged_bytes: u64,
    pub(super) acknowledged_in_window: u64,
    /// Open loop: messages before this number belong to the warm-up.
    warmup_messages: u64,
}

/// Request buffers nobody is writing from. The last one back is the first one out: it is in the cache.
#[derive(Debug)]
struct Pool {
    free: Vec<RequestBuffer>,
    made: usize,
}

impl Pool {
    fn take(&mut self, shape: &Shape) -> RequestBuffer {
        self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            shape.buffer(self.made - 1)
        })
    }
}

impl Group {
    pub(super) fn new(plan: ProduceLoad, recorded: bool, length: &Length) -> Group {
        let budget = if length.warmup.is_zero() { length.count.unwrap_or(u64::MAX) } else { u64::MAX };
        let warmup_messages = plan.rate.map_or(0, |rate| (rate * length.warmup.as_secs_f64()) as u64);
        let pool = Pool { free: (0..plan.connections.min(16)).map(|i| plan.shape.buffer(i)).collect(), made: plan.connections.min(16) };
        let acknowledged = vec![0; plan.targets.len()];
        Group {
            plan,
            recorded,
            budget,
            in_flight: 0,
            published: 0,
            pool,
            acknowledged,
            acknowledged_bytes: 0,
            acknowledged_in_window: 0,
            warmup_messages,
        }
    }

    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let ports: Vec<u16> = self.plan.targets.iter().map(|t| t.port).collect();
        assign(&ports, self.plan.connections)
    }

    /// From now on exactly `count` messages are acknowledged: those under way and the rest.
    pub(super) fn open_window(&mut self, count: Option<u64>) {
        if let Some(count) = count
            && self.budget > count
        {
            self.budget = count.saturating_sub(self.in_flight);
        }
    }
}

/// One partition as one connection writes it.
#[derive(Debug)]
struct Lane {
    target: usize,
    number: u32,
    /// Nobody else writes this partition: every offset is known beforehand.
    sole: bool,
    first_offset: u64,
    sent: u64,
    /// The latest batch in order of sending whose offset is known: its first message, its end offset.
    known: (u64, u64),
    keys: KeyRing,
}

/// A request without answer.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// 0 = the slot is free.
    count: u32,
    generation: u32,
    lane: u32,
    payload_bytes: u64,
    sent_ns: u64,
    /// Which of the lane's messages is the first.
    sequence: u64,
    /// Which of the connection's messages is the first (open loop).
    number: u64,
}

/// Requests on their way into the socket.
#[derive(Debug)]
struct Outgoing {
    buffer: RequestBuffer,
    /// Piece being written.
    at: usize,
}

/// One connection that writes.
#[derive(Debug)]
pub(super) struct Producer {
    stream: TcpStream,
    token: u64,
    pub(super) group: usize,
    writer: u16,
    lanes: Vec<Lane>,
    next_lane: usize,
    schedule: Option<Schedule>,
    /// Open loop: messages handed out, and how many there are in all.
    scheduled: u64,
    schedule_end: u64,
    pending: Vec<Pending>,
    free: Vec<u32>,
    outgoing: Option<Outgoing>,
    /// Pieces of the outgoing buffer, in order; neighbours are merged.
    pieces: Vec<Range<usize>>,
    watches_writable: bool,
    input: Vec<u8>,
    filled: usize,
}

impl Producer {
    pub(super) fn new(
        stream: TcpStream,
        token: u64,
        group_index: usize,
        writer: u16,
        group: &mut Group,
        assignment: Assignment,
    ) -> Producer {
        let plan = &group.plan;
        let everyone = group.assignments();
        let mut rings = if plan.key_count > 0 {
            KeyRing::deal(plan.key_count, plan.targets.len() as u32)
        } else {
            vec![KeyRing::default(); plan.targets.len()]
        };
        let written: Vec<usize> = assignment.partitions.into_iter().filter(|p| plan.key_count == 0 || !rings[*p].is_empty()).collect();
        let lanes = written
            .into_iter()
            .map(|target| Lane {
                target,
                number: plan.targets[target].number,
                sole: plan.exclusive && everyone.iter().filter(|a| a.partitions.contains(&target)).count() == 1,
                first_offset: plan.targets[target].end,
                sent: 0,
                known: (0, plan.targets[target].end),
                keys: std::mem::take(&mut rings[target]),
            })
            .collect();
        Producer {
            stream,
            token,
            group: group_index,
            writer,
            lanes,
            next_lane: 0,
            schedule: None,
            scheduled: 0,
            schedule_end: u64::MAX,
            pending: vec![Pending::default(); plan.in_flight],
            free: (0..plan.in_flight as u32).rev().collect(),
            outgoing: None,
            pieces: Vec::with_capacity(plan.in_flight.min(1 << 10)),
            watches_writable: false,
            input: vec![0; INPUT_BYTES],
            filled: 0,
        }
    }

    /// The clock has started.
    pub(super) fn start(&mut self, group: &Group, length: &Length) {
        let Some(rate) = group.plan.rate else { return };
        let (lane, lanes) = (u64::from(self.writer), group.plan.connections as u64);
        self.schedule = Some(Schedule::new(0, rate, lane as usize, lanes as usize));
        let measured = match length.count {
            Some(count) if group.recorded => count,
            // The consumer's window closes the run.
            Some(_) => u64::MAX / 2,
            None => (rate * length.duration.as_secs_f64()) as u64,
        };
        let all = group.warmup_messages + measured;
        self.schedule_end = (all + lanes - 1 - lane) / lanes;
    }

    pub(super) fn is_paced(&self) -> bool {
        self.schedule.is_some()
    }

    /// Messages sent and not acknowledged.
    pub(super) fn unanswered(&self) -> u64 {
        self.pending.iter().map(|p| u64::from(p.count)).sum()
    }

    /// Nothing is under way and nothing more will be sent.
    pub(super) fn is_idle(&self, group: &Group, shared: &Shared) -> bool {
        let all_sent =
            self.schedule.is_none() || self.lanes.is_empty() || self.scheduled >= self.schedule_end || !group.must_end_schedule(shared);
        all_sent && self.free.len() == self.pending.len()
    }

    /// Sends what may be sent now. Returns when to call again at the latest, in ns of the run's clock.
    pub(super) fn pump(&mut self, group: &mut Group, shared: &mut Shared, now_ns: u64) -> Result<u64> {
        if self.lanes.is_empty() {
            return Ok(u64::MAX);
        }
        loop {
            if self.outgoing.is_some() && !self.flush(group, shared)? {
                return Ok(u64::MAX);
            }
            let mut buffer: Option<RequestBuffer> = None;
            let mut wake_ns = u64::MAX;
            for index in 0..group.plan.shape.requests_per_buffer {
                let Some(slot) = self.free.last().copied() else { break };
                let count = match self.take(group, shared, now_ns) {
                    Ok(count) => count,
                    Err(later_ns) => {
                        wake_ns = later_ns;
                        break;
                    }
                };
                self.free.pop();
                let lane_index = self.next_lane;
                self.next_lane = if lane_index + 1 < self.lanes.len() { lane_index + 1 } else { 0 };
                let lane = &mut self.lanes[lane_index];
                let number = self.scheduled;
                let times = match &self.schedule {
                    _ if !group.plan.timed => Times::Absent,
                    Some(schedule) => Times::Intended { schedule, first: number },
                    None => Times::Same(now_ns),
                };
                let pending = &mut self.pending[slot as usize];
                let generation = pending.generation.wrapping_add(1);
                let stamp = Stamp {
                    correlation: u64::from(generation) << 32 | u64::from(slot),
                    partition: lane.number,
                    count,
                    timestamp_ms: shared.clock.unix_ms(now_ns),
                    clock_start_ms: shared.clock.start_ms,
                    sequence_word: sequence_word(self.writer, lane.sent),
                };
                let buffer = buffer.get_or_insert_with(|| group.pool.take(&group.plan.shape));
                let (piece, payload_bytes) = buffer.stamp(index, stamp, times, &mut lane.keys);
                *pending =
                    Pending { count, generation, lane: lane_index as u32, payload_bytes, sent_ns: now_ns, sequence: lane.sent, number };
                lane.sent += u64::from(count);
                self.scheduled += u64::from(count);
                group.in_flight += u64::from(count);
                group.published += u64::from(count);
                match self.pieces.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => self.pieces.push(piece),
                }
            }
            let Some(buffer) = buffer else { return Ok(wake_ns) };
            self.outgoing = Some(Outgoing { buffer, at: 0 });
        }
    }

    /// How many messages the next request gets, or when to ask again.
    fn take(&mut self, group: &mut Group, shared: &Shared, now_ns: u64) -> Result<u32, u64> {
        let batch = u64::from(group.plan.shape.batch);
        let Some(schedule) = &self.schedule else {
            // Of a queue, what its consumers are behind.
            let open = group.published.saturating_sub(shared.acknowledged);
            let count = if shared.stopping || open + batch > shared.backlog { 0 } else { batch.min(group.budget) };
            if count == 0 {
                return Err(u64::MAX);
            }
            if group.budget != u64::MAX {
                group.budget -= count;
            }
            return Ok(count as u32);
        };
        if self.scheduled >= self.schedule_end || (shared.stopping && !group.must_end_schedule(shared)) {
            return Err(u64::MAX);
        }
        let due = schedule.due(now_ns).min(self.schedule_end);
        let waiting = due.saturating_sub(self.scheduled);
        if waiting >= batch {
            return Ok(batch as u32);
        }
        let oldest_ns = schedule.intended_ns(self.scheduled);
        let leaves_ns = if batch == 1 { oldest_ns } else { oldest_ns + group.plan.linger_ns };
        if waiting > 0 && (now_ns >= leaves_ns || due == self.schedule_end) {
            return Ok(waiting as u32);
        }
        Err(leaves_ns.min(schedule.intended_ns(self.scheduled + batch - 1)))
    }

    /// Writes what is outgoing; false = the socket takes no more for now.
    fn flush(&mut self, group: &mut Group, shared: &Shared) -> Result<bool> {
        let Some(outgoing) = &mut self.outgoing else { return Ok(true) };
        loop {
            let pieces = &self.pieces[outgoing.at..];
            let written = match pieces {
                [] => break,
                [piece] => self.stream.write(&outgoing.buffer.bytes[piece.clone()]),
                pieces => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = pieces.len().min(SLICES);
                    for (slice, piece) in slices.iter_mut().zip(pieces) {
                        *slice = IoSlice::new(&outgoing.buffer.bytes[piece.clone()]);
                    }
                    self.stream.write_vectored(&slices[..count])
                }
            };
            match written {
                Ok(0) => bail!("the broker closed a connection"),
                Ok(mut bytes) => {
                    while bytes > 0 {
                        let piece = &mut self.pieces[outgoing.at];
                        let step = bytes.min(piece.len());
                        piece.start += step;
                        bytes -= step;
                        if piece.start == piece.end {
                            outgoing.at += 1;
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.watches_writable {
                        self.watches_writable = true;
                        shared.watch(&self.stream, self.token, true)?;
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
            }
        }
        if let Some(outgoing) = self.outgoing.take() {
            group.pool.free.push(outgoing.buffer);
        }
        self.pieces.clear();
        if self.watches_writable {
            self.watches_writable = false;
            shared.watch(&self.stream, self.token, false)?;
        }
        Ok(true)
    }

    /// Reads replies.
    pub(super) fn receive(&mut self, group: &mut Group, shared: &mut Shared) -> Result<()> {
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => bail!("the broker closed a connection"),
            Ok(bytes) => self.filled += bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
        }
        let now_ns = shared.clock.now_ns();
        let mut at = 0;
        while let Some(envelope) = Envelope::read(&self.input[at..self.filled]) {
            let end = at + Envelope::BYTES + envelope.len as usize;
            if end - at > INPUT_BYTES {
                bail!("a reply of {} bytes to a produce request", envelope.len);
            }
            let Some(body) = self.input[..self.filled].get(at + Envelope::BYTES..end) else { break };
            if envelope.flags & envelope::flags::ERROR != 0 {
                bail!("the broker refused a batch: {}", error_text(body));
            }
            if envelope.op != Op::Produce as u16 || end - at < REPLY_BYTES {
                bail!("the reply to a produce request is none: {envelope:?}");
            }
            let reply = ProduceReply::read(body)?;
            let (slot, generation) = (envelope.correlation as u32, (envelope.correlation >> 32) as u32);
            match self.pending.get_mut(slot as usize) {
                Some(pending) if pending.count > 0 && pending.generation == generation => {
                    let done = *pending;
                    pending.count = 0;
                    self.free.push(slot);
                    self.acknowledge(done, reply, group, shared, now_ns);
                }
                _ => shared.faults.note(|| format!("a reply to a request that is not under way, correlation {:#x}", envelope.correlation)),
            }
            at = end;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn acknowledge(&mut self, done: Pending, reply: ProduceReply, group: &mut Group, shared: &mut Shared, now_ns: u64) {
        let count = u64::from(done.count);
        let lane = &mut self.lanes[done.lane as usize];
        if lane.sole {
            let expected = lane.first_offset + done.sequence;
            if reply.base_offset != expected {
                let number = lane.number;
                shared.faults.note(|| format!("partition {number}: a batch got offset {}, {expected} was next", reply.base_offset));
            }
        } else if done.sequence >= lane.known.0 {
            if reply.base_offset < lane.known.1 {
                let (number, known) = (lane.number, lane.known.1);
                shared
                    .faults
                    .note(|| format!("partition {number}: a batch got offset {}, an earlier one ended at {known}", reply.base_offset));
            }
            lane.known = (done.sequence, reply.base_offset + count);
        }
        if reply.duplicate != 0 {
            shared.faults.note(|| "a batch without idempotence was taken for a duplicate".into());
        }
        group.in_flight -= count;
        group.acknowledged[lane.target] += count;
        group.acknowledged_bytes += done.payload_bytes;
        shared.last_progress_ns = now_ns;
        if shared.window.is_open(now_ns) {
            group.acknowledged_in_window += count;
        }
        if !group.recorded {
            return;
        }
        shared.count(now_ns, count, done.payload_bytes);
        match &self.schedule {
            None if shared.window.is_open(now_ns) => shared.recorder.record(now_ns - done.sent_ns, count),
            None => {}
            // Every message of the schedule after the warm-up counts, however late it is acknowledged.
            Some(schedule) => {
                let lanes = group.plan.connections as u64;
                for number in done.number..done.number + count {
                    if number * lanes + u64::from(self.writer) >= group.warmup_messages {
                        shared.recorder.record(now_ns.saturating_sub(schedule.intended_ns(number)), 1);
                    }
                }
            }
        }
    }
}

impl Group {
    /// A schedule in the background ends with the window; a measured one is seen to its end.
    fn must_end_schedule(&self, shared: &Shared) -> bool {
        self.recorded || (self.plan.timed && shared.window.count.is_none())
    }
}
