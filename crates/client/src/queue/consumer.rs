//! A queue's consumer without sockets or clock: receives out, messages in, settlements out, confirmations in.
//!
//! Of each partition a few receives are open at the broker, for as many messages as the prefetch leaves: delivered and not
//! settled plus asked for never exceed it. Settlements gather per partition; they leave when there are enough, when
//! the first has waited long enough, before the next receive of that partition, or when a flush asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmain_wire::control::{CONTROL_VERSION, write_open};
use ringmain_wire::queue::{
    Deliveries, ListQueues, QueueList, QueueReceive, QueueReceived, QueueSettle, QueueSettled, QueueStage, RECEIVE_MESSAGES_MAX,
    RECEIVE_WAIT_MAX_MS, Settlement, Verb, read_config,
};
use ringmain_wire::transaction::TransactionProducer;
use ringmain_wire::{ErrorCode, Op};

use super::{Message, QueueError, QueueMap};
use crate::error::{BrokerError, ConnectionError};
use crate::links::{Action, Heard, LinkConfig, Links, Machine};
use crate::session::{Reply, ReplyBody};
use crate::transaction::{Decision, Outcome, TransactionError};

/// How far ahead a queue consumer is given messages, and how it settles them.
#[derive(Clone, Debug)]
pub struct QueueConsumerConfig {
    /// Messages delivered and not settled, over all partitions, which share it evenly. 0 = nothing comes by itself, only what
    /// `get` asks for. Default 1,000.
    pub prefetch: u32,
    /// Likewise in bytes; one message is always taken whole. Default 16 MiB.
    pub prefetch_bytes: usize,
    /// Consumers of higher priority are served first; others only while those wait for nothing. Default 0.
    pub priority: i16,
    /// Indexes of the partitions to serve; `None` (default) = all.
    pub partitions: Option<Vec<u32>>,
    /// Settlements of a partition leave when there are so many; at least 1. Default 256.
    pub settle_batch: usize,
    /// … or when the first has waited so long. Default 1 ms.
    pub settle_linger: Duration,
    /// How long the broker may hold a receive that finds nothing; at most 60 s. Default 30 s.
    pub max_wait: Duration,
    /// How connections are made and kept; its back-off also paces repeats.
    pub links: LinkConfig,
}

impl Default for QueueConsumerConfig {
    fn default() -> QueueConsumerConfig {
        QueueConsumerConfig {
            prefetch: 1_000,
            prefetch_bytes: 16 << 20,
            priority: 0,
            partitions: None,
            settle_batch: 256,
            settle_linger: Duration::from_millis(1),
            max_wait: Duration::from_secs(30),
            links: LinkConfig::default(),
        }
    }
}

/// What became of settlements since the last flush, in messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Taken by the broker, durable.
    pub settled: u64,
    /// The broker didn't know them as this consumer's any more: their deadline had passed, say.
    pub refused: u64,
    /// Dropped here, because the connection they were delivered over has ended.
    pub void: u64,
    /// Sent, and the connection ended before the answer: taken or not.
    pub unknown: u64,
}

/// The consumer's state. See the module's text for its rules, [`Machine`] for how to drive it.
#[derive(Debug)]
pub struct QueueConsumerMachine {
    config: QueueConsumerConfig,
    map: QueueMap,
    links: Links<Purpose>,
    partitions: Vec<Partition>,
    /// Indexes of the partitions that are served, the one that asked longest ago first.
    order: VecDeque<u32>,
    /// Answers with messages that weren't handed out yet.
    arrived: VecDeque<Arrived>,
    errors: VecDeque<QueueError>,
    confirmed: Confirmed,
    next_ask: u64,
    /// Messages asked for and not answered, over all partitions.
    asked: u32,
    /// Messages delivered and not settled, over all partitions.
    held: u32,
    pull: Option<Pull>,
    is_flushing: bool,
    /// Acknowledgements in a transaction that somebody waits for.
    stage: Option<Stage>,
    next_stage: u64,
    /// Acknowledged in transactions that may be open.
    staged: Vec<StagedMessage>,
    metadata_wanted: bool,
    metadata_asked: bool,
    metadata_not_before: Option<Instant>,
    is_gone: bool,
    looked_at: Option<Instant>,
    /// Partitions where something has happened that may make something due.
    touched: Vec<u32>,
    /// Nothing becomes due by time alone before.
    due_at: Option<Instant>,
    /// Some partition is.
    is_halted: bool,
}

/// Why a request was made.
#[derive(Clone, Debug)]
enum Purpose {
    Metadata,
    Receive { partition_index: u32, ask: u64 },
    Settle { partition_index: u32, request: Arc<SettleRequest> },
}

#[derive(Debug)]
struct Stage {
    number: u64,
    /// Requests without an answer.
    open: usize,
    asked: u64,
    taken: u64,
    error: Option<BrokerError>,
}

#[derive(Debug)]
struct StagedMessage {
    outcome: Arc<Outcome>,
    partition_index: u32,
    epoch: u32,
    offset: u64,
    held: Held,
}

#[derive(Debug)]
struct SettleRequest {
    op: Op,
    /// [`Stage::number`], of those in a transaction.
    stage: u64,
    messages: u64,
    body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Partition {
    is_served: bool,
    asks: Vec<Ask>,
    /// By offset.
    held: BTreeMap<u64, Held>,
    held_bytes: usize,
    /// Delivered and not handed out yet.
    waiting: usize,
    pending: Vec<Settlement>,
    pending_messages: u64,
    pending_since: Option<Instant>,
    /// Refused for now: sent again first.
    again: VecDeque<Arc<SettleRequest>>,
    settles_in_flight: usize,
    /// Counts the connections: deliveries of an earlier one can't be settled any more.
    epoch: u32,
    failures: u32,
    retry_at: Option<Instant>,
    /// An error was reported: nothing is asked for until it was taken.
    is_halted: bool,
    is_touched: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    ask: u64,
    messages: u32,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u32,
    is_handed_out: bool,
}

#[derive(Debug)]
struct Arrived {
    partition_index: u32,
    epoch: u32,
    body: Arc<ReplyBody>,
    at: usize,
    left: u32,
}

/// Messages asked for one partition after the other, so that none comes unasked.
#[derive(Clone, Copy, Debug)]
struct Pull {
    left: u32,
    deadline: Instant,
    /// Answers without a message.
    empty: u32,
}

impl QueueConsumerMachine {
    /// A consumer of the queue. Errors: `NoSuchPartition`.
    pub fn new(config: QueueConsumerConfig, map: QueueMap) -> Result<QueueConsumerMachine, QueueError> {
        let partition_count = map.partitions.len() as u32;
        if let Some(index) = config.partitions.iter().flatten().copied().find(|index| *index >= partition_count) {
            return Err(QueueError::NoSuchPartition { index, partition_count });
        }
        let longest = Duration::from_millis(u64::from(RECEIVE_WAIT_MAX_MS));
        let config = QueueConsumerConfig {
            settle_batch: config.settle_batch.clamp(1, SETTLE_MAX),
            max_wait: config.max_wait.clamp(Duration::from_millis(1), longest),
            ..config
        };
        let mut machine = QueueConsumerMachine {
            links: Links::new(config.links.clone()),
            partitions: Vec::new(),
            order: VecDeque::new(),
            arrived: VecDeque::new(),
            errors: VecDeque::new(),
            confirmed: Confirmed::default(),
            next_ask: 0,
            asked: 0,
            held: 0,
            pull: None,
            is_flushing: false,
            stage: None,
            next_stage: 1,
            staged: Vec::new(),
            metadata_wanted: false,
            metadata_asked: false,
            metadata_not_before: None,
            is_gone: false,
            looked_at: None,
            touched: Vec::new(),
            due_at: None,
            is_halted: false,
            map,
            config,
        };
        machine.add_partitions();
        Ok(machine)
    }

    fn add_partitions(&mut self) {
        for index in self.partitions.len() as u32..self.map.partitions.len() as u32 {
            let is_served = self.config.partitions.as_ref().is_none_or(|chosen| chosen.contains(&index));
            self.partitions.push(Partition { is_served, ..Partition::default() });
            if is_served {
                self.order.push_front(index);
            }
            self.touch(index);
        }
    }

    /// The next message, if one has arrived.
    ///
    /// Errors: see [`QueueError`]; each is given once, and asking again makes the consumer try again.
    pub fn poll_message(&mut self) -> Result<Option<Message>, QueueError> {
        if let Some(error) = self.errors.pop_front() {
            return Err(error);
        }
        if self.is_gone {
            return Err(QueueError::Gone { queue: self.map.name.clone() });
        }
        while let Some(front) = self.arrived.front_mut() {
            let partition = &mut self.partitions[front.partition_index as usize];
            let deliveries = front.body.get(front.at..).unwrap_or_default();
            let next = ringmain_wire::queue::DeliveryView::read(deliveries).filter(|_| front.left > 0 && front.epoch == partition.epoch);
            let Some((view, bytes)) = next else {
                self.arrived.pop_front();
                continue;
            };
            let message = Message::new(Arc::clone(&front.body), front.at, front.partition_index, front.epoch);
            if let Some(held) = partition.held.get_mut(&view.offset) {
                held.is_handed_out = true;
            }
            partition.waiting -= 1;
            front.at += bytes;
            front.left -= 1;
            let (index, is_last) = (front.partition_index, partition.waiting == 0);
            if is_last {
                self.touch(index);
            }
            return Ok(Some(message));
        }
        // Whoever comes back after an error wants another try.
        if std::mem::take(&mut self.is_halted) {
            for index in 0..self.partitions.len() {
                if std::mem::take(&mut self.partitions[index].is_halted) {
                    self.touch(index as u32);
                }
            }
        }
        Ok(None)
    }

    /// Says what becomes of a message; whether it is still this consumer's. `delay`: for [`Verb::Requeue`] and [`Verb::Extend`].
    pub fn settle(&mut self, message: &Message, verb: Verb, delay: Duration, now: Instant) -> bool {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.settle_at(message.partition_index(), message.epoch(), message.offset(), verb, delay_ms, now)
    }

    /// Acknowledges every message of the same partition that was handed out and lies no later than this one; how many.
    pub fn ack_up_to(&mut self, message: &Message, now: Instant) -> u64 {
        let (partition_index, epoch) = (message.partition_index(), message.epoch());
        let Some(partition) = self.partitions.get(partition_index as usize).filter(|partition| partition.epoch == epoch) else {
            self.confirmed.void += 1;
            return 0;
        };
        let offsets: Vec<u64> =
            partition.held.range(..=message.offset()).filter(|(_, held)| held.is_handed_out).map(|(offset, _)| *offset).collect();
        for offset in &offsets {
            self.settle_at(partition_index, epoch, *offset, Verb::Ack, 0, now);
        }
        offsets.len() as u64
    }

    fn settle_at(&mut self, partition_index: u32, epoch: u32, offset: u64, verb: Verb, delay_ms: u64, now: Instant) -> bool {
        self.look_at_outcomes();
        let partition = self.partitions.get_mut(partition_index as usize).filter(|partition| partition.epoch == epoch);
        let Some((partition, held)) = partition.and_then(|partition| {
            let held = *partition.held.get(&offset)?;
            Some((partition, held))
        }) else {
            self.confirmed.void += 1;
            return false;
        };
        if verb != Verb::Extend {
            partition.held.remove(&offset);
            partition.held_bytes -= held.bytes as usize;
            self.held -= 1;
        }
        partition.pending_messages += 1;
        if partition.pending_since.is_none() {
            partition.pending_since = Some(now);
            let at = now + self.config.settle_linger;
            self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
        }
        match partition.pending.last_mut() {
            Some(last) if last.verb == verb && last.delay_ms == delay_ms && last.first.checked_add(last.count.into()) == Some(offset) => {
                last.count += 1;
            }
            _ => partition.pending.push(Settlement { first: offset, count: 1, verb, delay_ms }),
        }
        self.touch(partition_index);
        true
    }

    fn touch(&mut self, index: u32) {
        if let Some(partition) = self.partitions.get_mut(index as usize)
            && !std::mem::replace(&mut partition.is_touched, true)
        {
            self.touched.push(index);
        }
    }

    /// Acknowledges messages in a transaction; wait for [`QueueConsumerMachine::take_staged`]. Until it is decided they are neither
    /// settled nor held; aborted, they are held again.
    ///
    /// Errors: `NotHeld`; then nothing is sent.
    pub fn begin_stage(
        &mut self,
        producer: TransactionProducer,
        outcome: &Arc<Outcome>,
        messages: &[Message],
    ) -> Result<(), TransactionError> {
        self.look_at_outcomes();
        let (mut chosen, mut asked, mut taken) = (BTreeMap::<u32, BTreeSet<u64>>::new(), 0, 0);
        for message in messages {
            let (index, offset) = (message.partition_index(), message.offset());
            if !chosen.entry(index).or_default().insert(offset) {
                continue;
            }
            let partition = self.partitions.get(index as usize).filter(|partition| partition.epoch == message.epoch());
            asked += 1;
            taken += u64::from(partition.is_some_and(|partition| partition.held.contains_key(&offset)));
        }
        if taken < asked {
            return Err(TransactionError::NotHeld { queue: self.map.name.clone(), asked, taken });
        }
        let number = self.next_stage;
        self.next_stage += 1;
        let mut open = 0;
        for (index, offsets) in chosen {
            let partition = &mut self.partitions[index as usize];
            let head = QueueStage {
                version: CONTROL_VERSION,
                producer_epoch: producer.epoch,
                queue: self.map.queue,
                partition: self.map.partitions[index as usize].partition,
                consumer: CONSUMER,
                producer_id: producer.producer_id,
                reserved: 0,
            };
            let mut settlements: Vec<Settlement> = Vec::new();
            for offset in offsets {
                match settlements.last_mut() {
                    Some(last) if last.first + u64::from(last.count) == offset => last.count += 1,
                    _ => settlements.push(Settlement { first: offset, count: 1, verb: Verb::Ack, delay_ms: 0 }),
                }
                if let Some(held) = partition.held.remove(&offset) {
                    partition.held_bytes -= held.bytes as usize;
                    self.held -= 1;
                    let (outcome, epoch) = (Arc::clone(outcome), partition.epoch);
                    self.staged.push(StagedMessage { outcome, partition_index: index, epoch, offset, held });
                }
            }
            for chunk in settlements.chunks(SETTLE_MAX) {
                let mut body = head.to_bytes().to_vec();
                chunk.iter().for_each(|settlement| body.extend_from_slice(&settlement.to_bytes()));
                let messages = chunk.iter().map(|settlement| u64::from(settlement.count)).sum();
                partition.again.push_back(Arc::new(SettleRequest { op: Op::QueueStage, stage: number, messages, body }));
                open += 1;
            }
            self.touch(index);
        }
        self.stage = Some(Stage { number, open, asked, taken: 0, error: None });
        Ok(())
    }

    /// What became of [`QueueConsumerMachine::begin_stage`], once every answer is there.
    ///
    /// Errors: `Broker`, `NotHeld`.
    pub fn take_staged(&mut self) -> Option<Result<(), TransactionError>> {
        let Stage { asked, taken, error, .. } = self.stage.take_if(|stage| stage.open == 0)?;
        Some(match error {
            Some(error) => Err(TransactionError::Broker(error)),
            None if taken < asked => Err(TransactionError::NotHeld { queue: self.map.name.clone(), asked, taken }),
            None => Ok(()),
        })
    }

    /// Nobody waits for it any more.
    pub fn forget_stage(&mut self) {
        self.stage = None;
    }

    fn staged(&mut self, number: u64, result: Result<u64, BrokerError>) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.number == number) else { return };
        stage.open -= 1;
        match result {
            Ok(taken) => stage.taken += taken,
            Err(error) => stage.error = Some(error),
        }
    }

    /// What was acknowledged in a transaction that was aborted is held again.
    fn look_at_outcomes(&mut self) {
        for at in (0..self.staged.len()).rev() {
            let decision = self.staged[at].outcome.get();
            if decision == Decision::Open {
                continue;
            }
            let StagedMessage { partition_index, epoch, offset, held, .. } = self.staged.swap_remove(at);
            let partition = &mut self.partitions[partition_index as usize];
            if decision == Decision::Aborted && partition.epoch == epoch && !partition.held.contains_key(&offset) {
                partition.held.insert(offset, held);
                partition.held_bytes += held.bytes as usize;
                self.held += 1;
            }
        }
    }

    /// Lets every settlement leave at once. Confirmed when [`QueueConsumerMachine::settles_open`] is `false`.
    pub fn begin_flush(&mut self) {
        self.is_flushing = true;
        (0..self.partitions.len() as u32).for_each(|index| self.touch(index));
    }

    /// Whether settlements weren't sent, or sent and not answered.
    pub fn settles_open(&self) -> bool {
        let is_open =
            |partition: &Partition| partition.pending_messages > 0 || partition.settles_in_flight > 0 || !partition.again.is_empty();
        self.partitions.iter().any(is_open)
    }

    /// What became of settlements since the last call; ends the flush.
    ///
    /// Errors: the first refusal met.
    pub fn take_confirmed(&mut self) -> Result<Confirmed, QueueError> {
        self.is_flushing = false;
        let confirmed = std::mem::take(&mut self.confirmed);
        match self.errors.pop_front() {
            Some(error) => {
                self.confirmed = confirmed;
                Err(error)
            }
            None => Ok(confirmed),
        }
    }

    /// Nothing comes but by [`QueueConsumerMachine::begin_pull`].
    pub fn pulls(&self) -> bool {
        self.config.prefetch == 0
    }

    /// Asks for at most `max` messages, one partition after the other, until something comes or `deadline`. For
    /// consumers without prefetch.
    pub fn begin_pull(&mut self, max: u32, deadline: Instant) {
        self.pull = Some(Pull { left: max.clamp(1, RECEIVE_MESSAGES_MAX), deadline, empty: 0 });
    }

    /// Whether what [`QueueConsumerMachine::begin_pull`] asked for is still to come.
    pub fn is_pulling(&self) -> bool {
        self.pull.is_some() || (self.config.prefetch == 0 && self.asked > 0)
    }

    /// Something should leave soon: call [`Machine::transmit`]. Looks only at partitions where something has happened, and at all of them
    /// when time has made something due.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.due_at.is_some_and(|at| at <= now) {
            self.due_at = self.times().filter(|at| *at > now).min();
            (0..self.partitions.len() as u32).for_each(|index| self.touch(index));
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&index| {
            let partition = &self.partitions[index as usize];
            let is_due = self.pending_is_due(partition, now) || (partition.is_served && self.next_ask(index as usize, now).is_some());
            self.partitions[index as usize].is_touched = is_due;
            is_due
        });
        self.touched = touched;
        !self.touched.is_empty() || self.next_in_turn_is_due(now)
    }

    /// The same, by looking at everything.
    #[cfg(test)]
    pub(super) fn is_due_anywhere(&self, now: Instant) -> bool {
        let is_due =
            |(index, partition)| self.pending_is_due(partition, now) || (partition.is_served && self.next_ask(index, now).is_some());
        self.partitions.iter().enumerate().any(is_due)
    }

    /// With more partitions than prefetch, room that one makes is for the next; so is a pull that found nothing.
    fn next_in_turn_is_due(&self, now: Instant) -> bool {
        if self.config.prefetch == 0 {
            return self.order.front().is_some_and(|index| self.next_ask(*index as usize, now).is_some());
        }
        let has_turns = (self.config.prefetch as usize) < self.order.len() && self.config.prefetch > self.held + self.asked;
        has_turns && self.order.iter().any(|index| self.next_ask(*index as usize, now).is_some())
    }

    /// When time alone makes something due.
    fn times(&self) -> impl Iterator<Item = Instant> {
        let linger = self.config.settle_linger;
        let of = move |partition: &Partition| [partition.retry_at, partition.pending_since.map(|since| since + linger)];
        self.partitions.iter().flat_map(of).flatten()
    }

    /// Messages delivered and not settled.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The queue as known now.
    pub fn map(&self) -> &QueueMap {
        &self.map
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<&ConnectionError> {
        self.links.problem()
    }

    fn pending_is_due(&self, partition: &Partition, now: Instant) -> bool {
        let is_old = || partition.pending_since.is_some_and(|since| since + self.config.settle_linger <= now);
        let wants = partition.pending_messages > 0
            && (self.is_flushing || partition.pending_messages >= self.config.settle_batch as u64 || is_old());
        (wants || !partition.again.is_empty()) && partition.retry_at.is_none_or(|at| at <= now)
    }

    /// What the next receive of a partition would ask for: messages, bytes, and how long it may wait.
    fn next_ask(&self, index: usize, now: Instant) -> Option<(u32, usize, Duration)> {
        let partition = &self.partitions[index];
        if partition.is_halted || partition.retry_at.is_some_and(|at| at > now) || partition.asks.len() >= ASKS_MAX {
            return None;
        }
        let served = self.order.len().max(1);
        if self.config.prefetch == 0 {
            let pull = self.pull.filter(|_| self.asked == 0 && self.order.front() == Some(&(index as u32)))?;
            let left = pull.deadline.saturating_duration_since(now);
            let wait = match pull.empty as usize {
                empty if empty < served => Duration::ZERO,
                _ if served == 1 => left.min(self.config.max_wait),
                _ => left.min(PULL_TURN),
            };
            return Some((pull.left, ASK_MAX_BYTES, wait));
        }
        let quota = (self.config.prefetch / served as u32).max(1);
        let asked: u32 = partition.asks.iter().map(|ask| ask.messages).sum();
        let asked_bytes: usize = partition.asks.iter().map(|ask| ask.bytes).sum();
        let free =
            quota.saturating_sub(partition.held.len() as u32 + asked).min(self.config.prefetch.saturating_sub(self.held + self.asked));
        let quota_bytes = self.config.prefetch_bytes / served;
        let free_bytes = quota_bytes.saturating_sub(partition.held_bytes + asked_bytes);
        // Not for every message that is settled: by the quarter, or when there is nothing else.
        let is_idle = asked == 0 && partition.waiting == 0;
        let is_worth_it = (free >= quota.div_ceil(4) && free_bytes >= quota_bytes / 4) || is_idle;
        let has_room = free > 0 && (free_bytes > 0 || partition.held.is_empty());
        let wait = if (self.config.prefetch as usize) < served { self.config.max_wait.min(TURN) } else { self.config.max_wait };
        (is_worth_it && has_room).then_some((free.min(RECEIVE_MESSAGES_MAX), free_bytes.clamp(1, ASK_MAX_BYTES), wait))
    }

    /// Queues settlements and receives for the partitions on `port` while the session has room.
    fn fill(&mut self, port: u16, now: Instant) {
        for index in 0..self.partitions.len() {
            if self.map.partitions[index].port == port
                && self.pending_is_due(&self.partitions[index], now)
                && !self.send_settlements(index, port, now)
            {
                return;
            }
        }
        for index in self.order.clone() {
            if self.map.partitions[index as usize].port != port {
                continue;
            }
            while let Some((messages, bytes, wait)) = self.next_ask(index as usize, now) {
                // First what makes room, so that the broker never sees more than the prefetch.
                if !self.send_settlements(index as usize, port, now) {
                    return;
                }
                let Some(session) = self.links.ready_session(port).filter(|session| session.has_room()) else { return };
                let ask = self.next_ask;
                self.next_ask += 1;
                let request = QueueReceive {
                    version: CONTROL_VERSION,
                    consumer_priority: self.config.priority,
                    queue: self.map.queue,
                    partition: self.map.partitions[index as usize].partition,
                    consumer: CONSUMER,
                    max_messages: messages,
                    max_bytes: bytes as u32,
                    max_wait_ms: wait.as_millis() as u32,
                    reserved: 0,
                    reserved_too: 0,
                };
                session.request(Op::QueueReceive, Purpose::Receive { partition_index: index, ask }, now, wait, &request.to_bytes());
                let partition = &mut self.partitions[index as usize];
                partition.asks.push(Ask { ask, messages, bytes });
                self.asked += messages;
                if self.config.prefetch > 0 {
                    self.order.retain(|other| *other != index);
                    self.order.push_back(index);
                }
            }
        }
    }

    /// Sends what is pending in a partition; `false` = there was no room for all of it.
    fn send_settlements(&mut self, index: usize, port: u16, now: Instant) -> bool {
        let partition_index = index as u32;
        let partition = &mut self.partitions[index];
        if partition.retry_at.is_some_and(|at| at > now) {
            return true;
        }
        while partition.pending_messages > 0 || !partition.again.is_empty() {
            let Some(session) = self.links.ready_session(port).filter(|session| session.has_room()) else { return false };
            let request = partition.again.pop_front().unwrap_or_else(|| {
                let count = partition.pending.len().min(SETTLE_MAX);
                let head = QueueSettle {
                    version: CONTROL_VERSION,
                    reserved: 0,
                    queue: self.map.queue,
                    partition: self.map.partitions[index].partition,
                    consumer: CONSUMER,
                };
                let mut body = Vec::with_capacity(QueueSettle::BYTES + count * Settlement::BYTES);
                body.extend_from_slice(&head.to_bytes());
                let mut messages = 0;
                for settlement in partition.pending.drain(..count) {
                    body.extend_from_slice(&settlement.to_bytes());
                    messages += u64::from(settlement.count);
                }
                partition.pending_messages -= messages;
                partition.pending_since = partition.pending_since.filter(|_| partition.pending_messages > 0);
                Arc::new(SettleRequest { op: Op::QueueSettle, stage: 0, messages, body })
            });
            partition.settles_in_flight += 1;
            let purpose = Purpose::Settle { partition_index, request: Arc::clone(&request) };
            session.request(request.op, purpose, now, Duration::ZERO, &request.body);
        }
        true
    }

    fn ask_metadata(&mut self, port: u16, now: Instant) {
        if !self.metadata_wanted || self.metadata_asked || self.metadata_not_before.is_some_and(|at| at > now) || port != 0 {
            return;
        }
        let Some(session) = self.links.ready_session(0).filter(|session| session.has_room()) else { return };
        let mut body = Vec::new();
        write_open(&ListQueues { names: Some(vec![self.map.name.clone()]) }, &mut body);
        session.request(Op::ListQueues, Purpose::Metadata, now, Duration::ZERO, &body);
        (self.metadata_wanted, self.metadata_asked) = (false, true);
        self.metadata_not_before = Some(now + METADATA_PAUSE);
    }

    fn on_reply(&mut self, port: u16, reply: Reply<Purpose>, now: Instant) {
        self.metadata_wanted |= reply.moved && port != 0;
        match reply.context {
            Purpose::Metadata => self.on_metadata(reply.result),
            Purpose::Receive { partition_index, ask } => {
                self.touch(partition_index);
                let asks = &mut self.partitions[partition_index as usize].asks;
                let Some(at) = asks.iter().position(|known| known.ask == ask) else { return };
                self.asked -= asks.swap_remove(at).messages;
                match reply.result {
                    Ok(body) => {
                        if let Err(problem) = self.on_received(partition_index, body) {
                            // What it has delivered can't be settled without being known: a new connection brings it back.
                            let partition = &mut self.partitions[partition_index as usize];
                            partition.is_halted = true;
                            self.is_halted = true;
                            self.errors.push_back(QueueError::BadReply { partition_index, problem });
                            let lost = self.links.fail(port, ConnectionError::Closed, now);
                            self.on_lost(port, lost);
                        }
                    }
                    Err(error) => self.on_refused(partition_index, error, now),
                }
            }
            Purpose::Settle { partition_index, request } => {
                self.touch(partition_index);
                let partition = &mut self.partitions[partition_index as usize];
                partition.settles_in_flight -= 1;
                match reply.result.map(|body| QueueSettled::read(&body)) {
                    Ok(Ok(answer)) if request.stage > 0 => {
                        partition.failures = 0;
                        self.staged(request.stage, Ok(answer.settled.into()));
                    }
                    Err(error) if request.stage > 0 && !error.code.is_retriable() => self.staged(request.stage, Err(error)),
                    Ok(Ok(answer)) => {
                        partition.failures = 0;
                        self.confirmed.settled += u64::from(answer.settled);
                        self.confirmed.refused += u64::from(answer.refused);
                    }
                    Ok(Err(error)) => {
                        self.lose(&request);
                        let problem = format!("the answer to settlements can't be read: {error}");
                        self.errors.push_back(QueueError::BadReply { partition_index, problem });
                    }
                    Err(error) if error.code.is_retriable() => {
                        partition.again.push_back(request);
                        self.on_refused(partition_index, error, now);
                    }
                    Err(error) => {
                        self.confirmed.refused += request.messages;
                        self.on_refused(partition_index, error, now);
                    }
                }
            }
        }
    }

    fn on_received(&mut self, partition_index: u32, body: ReplyBody) -> Result<(), String> {
        let head = QueueReceived::read(&body).map_err(|error| format!("the answer can't be read: {error}"))?;
        let number = self.map.partitions[partition_index as usize].partition;
        if head.partition != number {
            return Err(format!("messages of partition number {} came, {number} was asked for", head.partition));
        }
        let partition = &mut self.partitions[partition_index as usize];
        partition.failures = 0;
        for delivery in Deliveries::new(&body[QueueReceived::BYTES..], head.count) {
            let view = delivery.ok_or("a message's lengths are impossible")?;
            let bytes = view.wire_bytes() as u32;
            match partition.held.insert(view.offset, Held { bytes, is_handed_out: false }) {
                // Its deadline has passed, and it came back here.
                Some(before) => partition.held_bytes -= before.bytes as usize,
                None => self.held += 1,
            }
            partition.held_bytes += bytes as usize;
            partition.waiting += 1;
        }
        match &mut self.pull {
            Some(pull) if head.count == 0 => {
                pull.empty += 1;
                self.order.rotate_left(1);
            }
            Some(_) => self.pull = None,
            None => {}
        }
        if head.count > 0 {
            let epoch = partition.epoch;
            let arrived = Arrived { partition_index, epoch, body: Arc::new(body), at: QueueReceived::BYTES, left: head.count };
            self.arrived.push_back(arrived);
        }
        Ok(())
    }

    fn on_refused(&mut self, partition_index: u32, error: BrokerError, now: Instant) {
        let partition = &mut self.partitions[partition_index as usize];
        partition.failures += 1;
        let at = now + self.links.backoff(partition.failures);
        partition.retry_at = Some(at);
        self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
        match error.code {
            ErrorCode::UnknownPartition | ErrorCode::UnknownQueue => self.metadata_wanted = true,
            // Worth waiting for, but not without a word.
            ErrorCode::QueueInUse => {}
            code if code.is_retriable() => return,
            _ => {}
        }
        if error.code != ErrorCode::UnknownPartition && !partition.is_halted {
            partition.is_halted = true;
            self.is_halted = true;
            self.errors.push_back(QueueError::Broker { partition_index, error });
        }
    }

    fn on_metadata(&mut self, result: Result<ReplyBody, BrokerError>) {
        self.metadata_asked = false;
        let Some(list) = result.ok().and_then(|body| read_config::<QueueList>(&body).ok()) else {
            self.metadata_wanted = true;
            return;
        };
        match QueueMap::find(&list, &self.map.name) {
            Some(map) if map.queue == self.map.queue && map.partitions.len() >= self.partitions.len() => {
                let moved: Vec<u32> = (0..self.partitions.len() as u32)
                    .filter(|index| map.partitions[*index as usize].port != self.map.partitions[*index as usize].port)
                    .collect();
                self.map = map;
                moved.into_iter().for_each(|index| self.forget(index));
                self.add_partitions();
            }
            _ => self.is_gone = true,
        }
    }

    /// The connection of a partition is another one now: what came over the old one isn't this consumer's any more.
    fn forget(&mut self, partition_index: u32) {
        self.touch(partition_index);
        let partition = &mut self.partitions[partition_index as usize];
        partition.epoch += 1;
        self.asked -= partition.asks.drain(..).map(|ask| ask.messages).sum::<u32>();
        self.held -= partition.held.len() as u32;
        partition.held.clear();
        (partition.held_bytes, partition.waiting) = (0, 0);
        self.confirmed.void += std::mem::take(&mut partition.pending_messages);
        partition.pending.clear();
        partition.pending_since = None;
        let again = std::mem::take(&mut partition.again);
        self.staged.retain(|staged| staged.partition_index != partition_index);
        for request in again {
            match request.stage {
                0 => self.confirmed.void += request.messages,
                number => self.staged(number, Ok(0)),
            }
        }
        self.arrived.retain(|arrived| arrived.partition_index != partition_index);
    }

    /// A request's answer doesn't come any more, or can't be read.
    fn lose(&mut self, request: &SettleRequest) {
        match request.stage {
            0 => self.confirmed.unknown += request.messages,
            number => self.staged(number, Ok(0)),
        }
    }

    fn on_lost(&mut self, port: u16, lost: Vec<Purpose>) {
        self.metadata_wanted = true;
        for purpose in lost {
            match purpose {
                Purpose::Metadata => self.metadata_asked = false,
                Purpose::Receive { .. } => {}
                Purpose::Settle { partition_index, request } => {
                    self.partitions[partition_index as usize].settles_in_flight -= 1;
                    self.lose(&request);
                }
            }
        }
        for index in 0..self.partitions.len() as u32 {
            if self.map.partitions[index as usize].port == port {
                self.forget(index);
            }
        }
    }
}

impl Machine for QueueConsumerMachine {
    fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.links.want_none();
        if !self.is_gone {
            for index in &self.order {
                self.links.want(self.map.partitions[*index as usize].port);
            }
            if self.metadata_wanted {
                self.links.want(0);
            }
        }
        self.links.poll_action(now)
    }

    fn connected(&mut self, port: u16, now: Instant) {
        self.links.connected(port, now);
    }

    fn disconnected(&mut self, port: u16, error: ConnectionError, now: Instant) {
        let lost = self.links.lost(port, error, now);
        self.on_lost(port, lost);
    }

    fn read_buffer(&mut self, port: u16) -> &mut [u8] {
        self.links.session(port).map_or(&mut [], |session| session.read_buffer())
    }

    fn received(&mut self, port: u16, n: usize, now: Instant) {
        if let Some(session) = self.links.session(port) {
            session.received(n);
        }
        while let Some(heard) = self.links.poll(port, now) {
            match heard {
                Heard::Ready(_) | Heard::FetchHead { .. } => {}
                Heard::Reply(reply) => self.on_reply(port, reply, now),
                Heard::Lost(lost) => self.on_lost(port, lost),
            }
        }
    }

    fn transmit(&mut self, port: u16, now: Instant, out: &mut Vec<u8>) -> bool {
        if !self.is_gone {
            self.ask_metadata(port, now);
            self.fill(port, now);
        }
        self.links.session(port).is_some_and(|session| session.poll_transmit(out))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let of_metadata = self.metadata_not_before.filter(|_| self.metadata_wanted && !self.metadata_asked);
        let ahead = |at: &Instant| self.looked_at.is_none_or(|looked_at| *at > looked_at);
        self.times().chain(of_metadata).filter(ahead).chain(self.links.poll_timeout()).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let was_driven = self.looked_at.is_none_or(|looked_at| now.saturating_duration_since(looked_at) < UNDRIVEN);
        self.looked_at = Some(now);
        if let Some(pull) = self.pull
            && self.asked == 0
            && pull.deadline <= now
            && (pull.empty as usize >= self.order.len() || self.links.problem().is_some())
        {
            self.pull = None;
        }
        // A caller that worked on a message for minutes hasn't read the answers that have come meanwhile.
        if !was_driven {
            return;
        }
        for (port, error) in self.links.overdue(now) {
            let lost = self.links.fail(port, error, now);
            self.on_lost(port, lost);
        }
    }
}

/// Each consumer has connections of its own.
const CONSUMER: u32 = 1;
/// Receives open per partition.
const ASKS_MAX: usize = 3;
/// Most bytes of one receive, messages larger than that excepted.
const ASK_MAX_BYTES: usize = 4 << 20;
/// Settlements of one request: well within what a broker takes.
const SETTLE_MAX: usize = 16_384;
/// How long a receive waits where there are more partitions than prefetch, and in a pull: then others have their turn.
const TURN: Duration = Duration::from_millis(200);
const PULL_TURN: Duration = Duration::from_millis(20);
/// A machine that nobody has driven for so long has read nothing either.
const UNDRIVEN: Duration = Duration::from_secs(1);
/// Least pause between two requests for metadata.
const METADATA_PAUSE: Duration = Duration::from_millis(50);
