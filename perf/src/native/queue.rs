//! Consumers of a queue: receives kept open up to the prefetch, acknowledgements in batches, every message checked.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use ringmain_wire::control::CONTROL_VERSION;
use ringmain_wire::queue::{Deliveries, QueueReceive, QueueReceived, QueueSettle, QueueSettled, Settlement, Verb};
use ringmain_wire::{Envelope, Op, envelope};

use super::{Shared, Target};
use crate::control::error_text;
use crate::workload::{Assignment, STAMPED_PAYLOAD_BYTES, WRITER_SHIFT, assign};

const INPUT_BYTES: usize = 512 << 10;
/// Less room than this at the buffer's end: what is left moves to its start.
const ROOM_BYTES: usize = 64 << 10;
/// Reads of one connection before the others get their turn.
const READS: usize = 4;
/// Receives that a consumer has unanswered per partition.
const ASKS: u32 = 3;
const RECEIVE_BYTES: u32 = 1 << 20;
/// Closed loop: so many messages may wait for their time.
const DELAYED: u64 = 1_000_000;
/// Settlements of one request.
const SETTLEMENTS: usize = 16_384;
/// Due times are whole ms, and so is the clock they are compared with.
const EARLY_NS: u64 = 2_000_000;

/// Consumers of one queue.
#[derive(Clone, Debug)]
pub struct QueueLoad {
    /// Its number.
    pub queue: u32,
    /// Connections; each is one consumer.
    pub consumers: usize,
    /// Messages delivered to a consumer and not settled.
    pub prefetch: u32,
    /// Messages acknowledged in one request.
    pub ack_batch: u32,
    /// How long a receive may wait, in ms.
    pub max_wait_ms: u32,
    /// The partitions of its topic.
    pub targets: Vec<Target>,
    /// Writers are numbered below this.
    pub writer_count: usize,
    /// Payloads carry sequence word and time.
    pub is_stamped: bool,
    /// Messages of a writer come in order: no priorities, no delays, one consumer per partition.
    pub is_ordered: bool,
    /// What is delivered is checked.
    pub verify: bool,
    /// Messages wait so long for their time.
    pub longest_delay_ms: u64,
}

impl QueueLoad {
    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let ports: Vec<u16> = self.targets.iter().map(|target| target.port).collect();
        assign(&ports, self.consumers)
    }

    /// Closed loop: no more messages than this are published and not acknowledged.
    pub(super) fn backlog(&self) -> u64 {
        let delayed = if self.longest_delay_ms > 0 { DELAYED } else { 0 };
        4 * u64::from(self.prefetch) * self.consumers as u64 + delayed
    }
}

/// Which messages have been delivered, over all consumers: by partition and writer, a bit per message.
#[derive(Debug, Default)]
pub(super) struct Seen {
    bits: Vec<Vec<u64>>,
}

impl Seen {
    pub(super) fn new(plan: &QueueLoad) -> Seen {
        Seen { bits: vec![Vec::new(); plan.targets.len() * plan.writer_count] }
    }

    /// Notes one; whether it is new.
    fn note(&mut self, of: usize, sequence: u64) -> bool {
        let Some(bits) = self.bits.get_mut(of) else { return false };
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if bits.len() <= word {
            bits.resize((word + 1).max(bits.len() * 2), 0);
        }
        let is_new = bits[word] & bit == 0;
        bits[word] |= bit;
        is_new
    }
}

/// One partition as one consumer has it.
#[derive(Debug)]
struct Lane {
    /// Its index.
    index: usize,
    target: Target,
    quota: u32,
    /// Messages asked for, and in how many receives.
    asked: u32,
    asks: u32,
    /// Delivered, and no acknowledgement has left yet.
    held: u32,
    pending: Vec<Settlement>,
    pending_messages: u32,
    /// A receive has ended empty.
    is_dry: bool,
    /// By writer: the next message, where they come in order.
    sequences: Vec<u64>,
}

/// One consumer.
#[derive(Debug)]
pub(super) struct QueueConsumer {
    stream: TcpStream,
    token: u64,
    plan: QueueLoad,
    lanes: Vec<Lane>,
    input: Vec<u8>,
    begin: usize,
    end: usize,
    output: Vec<u8>,
    watches_writable: bool,
    acknowledged: u64,
    /// Mean payload bytes of what was delivered.
    delivered: u64,
    delivered_bytes: u64,
}

impl QueueConsumer {
    pub(super) fn new(stream: TcpStream, token: u64, plan: &QueueLoad, assignment: Assignment) -> QueueConsumer {
        let quota = (plan.prefetch / assignment.partitions.len().max(1) as u32).max(1);
        let lane = |index: usize| Lane {
            index,
            target: plan.targets[index],
            quota,
            asked: 0,
            asks: 0,
            held: 0,
            pending: Vec::new(),
            pending_messages: 0,
            is_dry: false,
            sequences: vec![0; plan.writer_count],
        };
        QueueConsumer {
            stream,
            token,
            lanes: assignment.partitions.into_iter().map(lane).collect(),
            plan: QueueLoad { ack_batch: plan.ack_batch.clamp(1, quota), ..plan.clone() },
            input: vec![0; INPUT_BYTES],
            begin: 0,
            end: 0,
            output: Vec::with_capacity(1 << 10),
            watches_writable: false,
            acknowledged: 0,
            delivered: 0,
            delivered_bytes: 0,
        }
    }

    /// Messages whose acknowledgement was confirmed, in the whole run.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Acknowledges and asks for what may be asked for.
    pub(super) fn ask(&mut self, shared: &Shared) -> Result<()> {
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let free = lane.quota.saturating_sub(lane.held + lane.asked);
            let is_worth_it = free >= lane.quota.div_ceil(4) || lane.asks == 0;
            if free == 0 || !is_worth_it || lane.asks >= ASKS {
                continue;
            }
            let request = QueueReceive {
                version: CONTROL_VERSION,
                consumer_priority: 0,
                queue: self.plan.queue,
                partition: lane.target.number,
                consumer: 1,
                max_messages: free,
                max_bytes: RECEIVE_BYTES,
                max_wait_ms: self.plan.max_wait_ms,
                reserved: 0,
                reserved_too: 0,
            };
            let correlation = (index as u64) << 32 | u64::from(free);
            let envelope = Envelope { len: QueueReceive::BYTES as u32, op: Op::QueueReceive as u16, flags: 0, correlation };
            self.output.extend_from_slice(&envelope.to_bytes());
            self.output.extend_from_slice(&request.to_bytes());
            let lane = &mut self.lanes[index];
            lane.asked += free;
            lane.asks += 1;
        }
        self.flush(shared)
    }

    pub(super) fn flush(&mut self, shared: &Shared) -> Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(0) => bail!("the broker closed a connection"),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
            }
        }
        self.output.drain(..written);
        let blocked = !self.output.is_empty();
        if blocked != self.watches_writable {
            self.watches_writable = blocked;
            shared.watch(&self.stream, self.token, blocked)?;
        }
        Ok(())
    }

    /// Reads what has arrived, acknowledges it and asks for more.
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
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(anyhow::Error::new(error).context("the broker broke a connection off")),
            };
            self.end += bytes;
            while self.reply(shared)? {}
            if bytes < room {
                break;
            }
        }
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            // What makes no whole batch waits for more messages, unless there may be none.
            if (shared.stopping || lane.is_dry || lane.held >= lane.quota) && lane.pending_messages > 0 {
                acknowledge(lane, index, self.plan.queue, &mut self.output);
            }
            lane.is_dry = false;
        }
        self.ask(shared)
    }

    /// One answer; false = it isn't all there.
    fn reply(&mut self, shared: &mut Shared) -> Result<bool> {
        let input = &self.input[self.begin..self.end];
        let Some(envelope) = Envelope::read(input) else { return Ok(false) };
        let whole = Envelope::BYTES + envelope.len as usize;
        let Some(body) = input.get(Envelope::BYTES..whole) else {
            if whole > self.input.len() - ROOM_BYTES {
                self.input.resize(whole + INPUT_BYTES, 0);
            }
            return Ok(false);
        };
        let now_ns = shared.clock.now_ns();
        if envelope.flags & envelope::flags::ERROR != 0 {
            bail!("the broker refused a receive or an acknowledgement: {}", error_text(body));
        }
        let (index, asked) = ((envelope.correlation >> 32) as usize, envelope.correlation as u32);
        let Some(lane) = self.lanes.get_mut(index) else { bail!("a reply to nothing that was asked: {envelope:?}") };
        if envelope.op == Op::QueueSettle as u16 {
            let answer = QueueSettled::read(body)?;
            if answer.refused > 0 || answer.settled != asked {
                let number = lane.target.number;
                shared.faults.note(|| format!("partition {number}: {answer:?} for {asked} messages acknowledged"));
            }
            let messages = u64::from(answer.settled);
            self.acknowledged += messages;
            shared.acknowledged += messages;
            shared.count(now_ns, messages, messages * self.delivered_bytes / self.delivered.max(1));
            self.begin += whole;
            return Ok(true);
        }
        if envelope.op != Op::QueueReceive as u16 || lane.asks == 0 {
            bail!("the reply to a receive is none: {envelope:?}");
        }
        let head = QueueReceived::read(body)?;
        lane.asked -= asked;
        lane.asks -= 1;
        lane.is_dry |= head.count == 0;
        if head.count > asked || head.partition != lane.target.number {
            bail!("{head:?} for {asked} messages of partition {}", lane.target.number);
        }
        for delivery in Deliveries::new(&body[QueueReceived::BYTES..], head.count) {
            let Some(view) = delivery else { bail!("a message's lengths are impossible") };
            let value = view.value.unwrap_or_default();
            self.delivered += 1;
            self.delivered_bytes += value.len() as u64;
            lane.held += 1;
            lane.pending_messages += 1;
            match lane.pending.last_mut() {
                Some(last) if last.first + u64::from(last.count) == view.offset => last.count += 1,
                _ => lane.pending.push(Settlement { first: view.offset, count: 1, verb: Verb::Ack, delay_ms: 0 }),
            }
            if self.plan.verify && view.deliveries != 1 {
                shared.faults.note(|| format!("partition {}, offset {}: delivery {}", head.partition, view.offset, view.deliveries));
            }
            if self.plan.is_stamped {
                lane.judge(&self.plan, value, view.offset, shared, now_ns);
            }
            if lane.pending_messages >= self.plan.ack_batch {
                acknowledge(lane, index, self.plan.queue, &mut self.output);
            }
        }
        self.begin += whole;
        Ok(true)
    }
}

/// Writes a request for everything pending.
fn acknowledge(lane: &mut Lane, index: usize, queue: u32, output: &mut Vec<u8>) {
    let mut pending = std::mem::take(&mut lane.pending);
    for settlements in pending.chunks(SETTLEMENTS) {
        let messages: u32 = settlements.iter().map(|settlement| settlement.count).sum();
        let len = (QueueSettle::BYTES + settlements.len() * Settlement::BYTES) as u32;
        let correlation = (index as u64) << 32 | u64::from(messages);
        output.extend_from_slice(&Envelope { len, op: Op::QueueSettle as u16, flags: 0, correlation }.to_bytes());
        let head = QueueSettle { version: CONTROL_VERSION, reserved: 0, queue, partition: lane.target.number, consumer: 1 };
        output.extend_from_slice(&head.to_bytes());
        settlements.iter().for_each(|settlement| output.extend_from_slice(&settlement.to_bytes()));
        lane.held -= messages;
        lane.pending_messages -= messages;
    }
    pending.clear();
    lane.pending = pending;
}

impl Lane {
    /// Times a message by what its payload says, and looks whether it comes once, and in its turn.
    fn judge(&mut self, plan: &QueueLoad, value: &[u8], offset: u64, shared: &mut Shared, now_ns: u64) {
        let number = self.target.number;
        let (Some(word), Some(due_ns)) = (word(value, 0), word(value, 8)) else {
            return shared.faults.note(|| format!("partition {number}, offset {offset}: a payload of {} bytes", value.len()));
        };
        debug_assert!(value.len() >= STAMPED_PAYLOAD_BYTES);
        if shared.window.is_open(now_ns) {
            shared.recorder.record(now_ns.saturating_sub(due_ns), 1);
        }
        if !plan.verify {
            return;
        }
        if due_ns > now_ns + EARLY_NS {
            shared.faults.note(|| format!("partition {number}, offset {offset}: {} µs before its time", (due_ns - now_ns) / 1_000));
        }
        let (writer, sequence) = ((word >> WRITER_SHIFT) as usize, word & ((1 << WRITER_SHIFT) - 1));
        if writer >= plan.writer_count || !shared.seen.note(self.index * plan.writer_count + writer, sequence) {
            shared.faults.note(|| format!("partition {number}, offset {offset}: message {sequence} of writer {writer} came again"));
        } else if plan.is_ordered {
            let next = &mut self.sequences[writer];
            if *next != sequence {
                let expected = *next;
                shared.faults.note(|| format!("partition {number}: message {sequence} of writer {writer} instead of {expected}"));
            }
            *next = sequence + 1;
        }
    }
}

fn word(value: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*value.get(at..)?.first_chunk()?))
}
