//! Transactions without sockets or clock: publishes to several topics and acknowledgements of several queues that take effect
//! together, or not at all, also when they are on different shards and whatever crashes in between.
//!
//! ```no_run
//! use std::time::Duration;
//! use ringmain_client::{Client, Outgoing, QueueConsumerConfig, TransactionConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7171")?;
//! let mut consumer = client.queue_consumer("paid", QueueConsumerConfig::default())?;
//! // One name for each worker: who takes a name over ends what its last owner had open.
//! let mut transactor = client.transactor("packer 1", TransactionConfig::default())?;
//! while let Some(message) = consumer.recv(Duration::from_secs(1))? {
//!     let mut transaction = transactor.begin()?;
//!     transaction.publish("to-pack", message.again().record())?;
//!     transaction.publish("invoices", Outgoing::new(b"one invoice").record())?;
//!     transaction.ack(&mut consumer, &[message])?;
//!     transaction.commit()?; // the message is done, and its two successors are there
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **What others see.** Queues and readers get what was published when it is committed, and never what was aborted; until
//! then they get nothing behind it in that partition, so keep transactions short. What was acknowledged in a transaction stays in flight until that
//! is decided: aborted, it is this consumer's as before, or another's if this one has gone meanwhile.
//!
//! **What crashes do.** A transaction whose worker is gone is aborted after its timeout, or when another worker takes the name. A broker that
//! is killed knows afterwards what was decided; what is asked is asked again until it answers. An error from
//! [`TransactionError::Unknown`] alone leaves it open whether a commit took effect.

//! **Publish, then find out whether it counts.** RocketMQ's users know this as half messages with check-back. The transaction is named after what it
//! is about; [`prepare`](crate::Transaction::prepare) stores the messages, hidden; then comes the producer's own work, and the end. If the
//! producer is gone, or doesn't know either and [leaves](crate::Transaction::leave) it, whoever asks for the group's open transactions decides:
//!
//! ```no_run
//! use std::time::Duration;
//! use ringmain_client::wire::transaction::CheckBack;
//! use ringmain_client::{Client, Outgoing, TransactionConfig};
//!
//! # fn pay(order: &str) -> bool { order.len() > 3 }
//! # fn is_paid(order: &str) -> Option<bool> { Some(order.len() > 3) }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7171")?;
//! let check = CheckBack { group: "payments".into(), after_ms: 6_000 };
//! let config = TransactionConfig { check: Some(check), timeout: Duration::from_secs(60), ..TransactionConfig::default() };
//! let mut transactor = client.transactor("order 4711", config)?;
//! let mut transaction = transactor.begin()?;
//! transaction.publish("paid", Outgoing::new(b"order 4711").record())?;
//! transaction.prepare()?; // stored, and seen by nobody
//! if pay("order 4711") { transaction.commit()? } else { transaction.abort()? }
//! transactor.rename("order 4712")?; // for the next one
//!
//! // In every process of the group, on a thread of its own:
//! for open in client.transactions_to_check("payments", 100, Duration::from_secs(10))? {
//!     if let Some(is_paid) = is_paid(&open.transactional_id) {
//!         client.decide_transaction(&open, is_paid)?;
//!     } // else it is offered again; after its timeout it is aborted
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use ringmain_wire::control::{ProduceReply, read_open, write_open};
use ringmain_wire::frame::{HEADER_BYTES, Identity, flags};
use ringmain_wire::murmur2::partition_for_key;
use ringmain_wire::queue::QueueHeaders;
use ringmain_wire::record::BATCH_PREFIX_BYTES;
use ringmain_wire::transaction::{CheckBack, EPOCH_LAST, TransactionAnswer, TransactionCall, TransactionProducer, TransactionRequest};
use ringmain_wire::{ErrorCode, Op, PartitionId, ProducerId, RecordBatchBuilder};

use crate::error::{BrokerError, CallError, ConnectionError, SendError};
use crate::links::{Action, Heard, LinkConfig, Links, Machine, TopicMap};
use crate::producer::Record;
use crate::queue::QueueError;
use crate::session::{Reply, ReplyBody};

/// How a transactor works.
#[derive(Clone, Debug)]
pub struct TransactionConfig {
    /// A transaction that is open for longer is aborted by the broker; at most 15 min. Default 60 s.
    pub timeout: Duration,
    /// Who is asked about a transaction that stays open, when this transactor is gone; see [the module's text](self). Default: nobody.
    pub check: Option<CheckBack>,
    /// Records of a partition gather up to so many bytes. Default 64 KiB.
    pub batch_bytes: usize,
    /// Bytes gathered or on their way, over all partitions; when full, publishing waits. Default 32 MiB.
    pub buffer_bytes: usize,
    /// How long each step is repeated while there is no connection, or no room. Default 30 s.
    pub patience: Duration,
    /// How connections are made and kept; its back-off also paces repeats.
    pub links: LinkConfig,
}

impl Default for TransactionConfig {
    fn default() -> TransactionConfig {
        TransactionConfig {
            timeout: Duration::from_secs(60),
            check: None,
            batch_bytes: 64 << 10,
            buffer_bytes: 32 << 20,
            patience: Duration::from_secs(30),
            links: LinkConfig::default(),
        }
    }
}

/// Why a transaction, or a step of it, failed. But for `Unknown` nothing of it takes effect: the transaction is aborted when
/// it is dropped, at the latest by the next one or by its timeout.
#[derive(Clone, Debug)]
pub enum TransactionError {
    /// Another transactor has taken this one's name over: this one has ended.
    Fenced {
        /// The name.
        transactional_id: String,
    },
    /// The broker has aborted it, because it was open for longer than its timeout.
    Aborted {
        /// The broker's words.
        message: String,
    },
    /// A message to be acknowledged isn't the consumer's any more: its deadline has passed, or its connection has ended.
    NotHeld {
        /// The consumer's queue.
        queue: String,
        /// How many messages were to be acknowledged in the call.
        asked: u64,
        /// How many of them were.
        taken: u64,
    },
    /// No answer to the commit: whether it takes effect isn't known.
    Unknown {
        /// How long was waited.
        after: Duration,
        /// The last problem met with a connection, if any.
        last_problem: Option<String>,
    },
    /// A step other than the commit wasn't answered in time.
    TimedOut {
        /// How long was waited.
        after: Duration,
        /// The last problem met with a connection, if any.
        last_problem: Option<String>,
    },
    /// The record can't be published.
    Record(SendError),
    /// The broker refused a step.
    Broker(BrokerError),
    /// An answer can't be read.
    BadReply {
        /// To what.
        op: Op,
        /// What is wrong.
        problem: String,
    },
    /// A topic couldn't be looked up, or there is no connection.
    Call(CallError),
    /// A queue's consumer failed.
    Queue(QueueError),
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_problem = |f: &mut fmt::Formatter<'_>, problem: &Option<String>| {
            problem.as_ref().map_or(Ok(()), |problem| write!(f, "; last problem: {problem}"))
        };
        match self {
            TransactionError::Fenced { transactional_id } => {
                write!(f, "another transactor has taken the name '{transactional_id}' over; this one must stop")
            }
            TransactionError::Aborted { message } => write!(f, "the broker has aborted the transaction: {message}"),
            TransactionError::NotHeld { queue, asked, taken } => {
                write!(f, "{taken} of {asked} messages of queue '{queue}' are still this consumer's; the others are another's, or will be")
            }
            TransactionError::Unknown { after, last_problem } => {
                write!(f, "no answer to the commit within {after:?}: whether it takes effect isn't known")?;
                with_problem(f, last_problem)
            }
            TransactionError::TimedOut { after, last_problem } => {
                write!(f, "the broker didn't take a step of the transaction within {after:?}")?;
                with_problem(f, last_problem)
            }
            TransactionError::Record(error) => error.fmt(f),
            TransactionError::Broker(error) => error.fmt(f),
            TransactionError::BadReply { op, problem } => write!(f, "the answer to {op:?} can't be read: {problem}"),
            TransactionError::Call(error) => error.fmt(f),
            TransactionError::Queue(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TransactionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TransactionError::Record(error) => Some(error),
            TransactionError::Broker(error) => Some(error),
            TransactionError::Call(error) => Some(error),
            TransactionError::Queue(error) => Some(error),
            _ => None,
        }
    }
}

impl From<CallError> for TransactionError {
    fn from(error: CallError) -> TransactionError {
        TransactionError::Call(error)
    }
}

impl From<QueueError> for TransactionError {
    fn from(error: QueueError) -> TransactionError {
        TransactionError::Queue(error)
    }
}

/// What became of a transaction, for the consumers whose messages are in it.
#[derive(Debug, Default)]
pub struct Outcome(AtomicU8);

/// The values of [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// None yet.
    Open,
    /// It took effect, or may have.
    Committed,
    /// It didn't.
    Aborted,
}

impl Outcome {
    fn decide(&self, decision: Decision) {
        self.0.store(decision as u8, Ordering::Release);
    }

    /// As known now.
    pub fn get(&self) -> Decision {
        match self.0.load(Ordering::Acquire) {
            0 => Decision::Open,
            1 => Decision::Committed,
            _ => Decision::Aborted,
        }
    }
}

/// A transactor's state: one transaction after the other. See [`Machine`] for how to drive it.
#[derive(Debug)]
pub struct TransactionMachine {
    config: TransactionConfig,
    transactional_id: String,
    /// As last heard.
    producer: Option<TransactionProducer>,
    /// The name is to be taken, or asked for again, before the next transaction.
    must_init: bool,
    is_fenced: bool,
    links: Links<Purpose>,
    topics: Vec<TopicMap>,
    /// By number of the partition.
    lanes: BTreeMap<u32, Lane>,
    /// Counts the transactions: answers to an earlier one are of no interest.
    round: u64,
    is_open: bool,
    /// Why the open transaction can't be committed.
    failure: Option<TransactionError>,
    control: Option<Control>,
    done: Option<Result<(), TransactionError>>,
    outcome: Arc<Outcome>,
    buffered_bytes: usize,
    next_partition: u32,
    max_request_bytes: u32,
    looked_at: Option<Instant>,
}

/// Why a request was made.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Produce { partition: u32, round: u64 },
    Control,
}

/// What a transaction writes into one partition.
#[derive(Debug)]
struct Lane {
    port: u16,
    open: RecordBatchBuilder,
    flags: u8,
    /// Sealed; the first one may be in flight.
    frames: VecDeque<Vec<u8>>,
    is_in_flight: bool,
    next_sequence: i32,
    failures: u32,
    retry_at: Option<Instant>,
}

/// A step that the coordinator takes.
#[derive(Debug)]
struct Control {
    call: TransactionCall,
    is_in_flight: bool,
    failures: u32,
    retry_at: Option<Instant>,
}

impl TransactionMachine {
    /// A transactor of that name; [`TransactionMachine::begin`] takes the name.
    pub fn new(config: TransactionConfig, transactional_id: &str) -> TransactionMachine {
        TransactionMachine {
            links: Links::new(config.links.clone()),
            config,
            transactional_id: transactional_id.into(),
            producer: None,
            must_init: true,
            is_fenced: false,
            topics: Vec::new(),
            lanes: BTreeMap::new(),
            round: 0,
            is_open: false,
            failure: None,
            control: None,
            done: None,
            outcome: Arc::default(),
            buffered_bytes: 0,
            next_partition: 0,
            max_request_bytes: u32::MAX,
            looked_at: None,
        }
    }

    /// No batch becomes larger than the broker takes; it says so in its hello.
    pub fn limit_request_bytes(&mut self, max_request_bytes: u32) {
        self.max_request_bytes = max_request_bytes;
    }

    /// How long each step is repeated.
    pub fn patience(&self) -> Duration {
        self.config.patience
    }

    /// What has to be done before a transaction can begin: `true` = wait for [`TransactionMachine::take_done`] first. An
    /// abandoned one is aborted, and the name is taken if it isn't this transactor's.
    ///
    /// Errors: `Fenced`.
    pub fn begin(&mut self) -> Result<bool, TransactionError> {
        if self.is_fenced {
            return Err(self.fenced());
        }
        if self.must_init {
            let timeout_ms = self.config.timeout.as_millis().clamp(1, ringmain_wire::transaction::TRANSACTION_TIMEOUT_MAX_MS.into()) as u32;
            // Whoever was it last, and nobody since, gets an answer: what is open is aborted, what is decided stays so.
            let check = self.config.check.clone();
            self.ask(TransactionCall::Init { timeout_ms, check, current: self.producer });
            return Ok(true);
        }
        if self.is_open {
            self.end(false);
            return Ok(true);
        }
        Ok(false)
    }

    /// A transaction is open from now on; [`TransactionMachine::begin`] has nothing to do before.
    pub fn open(&mut self) {
        (self.is_open, self.failure, self.outcome) = (true, None, Arc::default());
    }

    /// Whether a transaction is open.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The producer of the open transaction, for acknowledgements in it, and what becomes of it.
    pub fn current(&self) -> Option<(TransactionProducer, Arc<Outcome>)> {
        self.producer.filter(|_| self.is_open).map(|producer| (producer, Arc::clone(&self.outcome)))
    }

    /// Whether the topic's places are known.
    pub fn knows(&self, topic: &str) -> bool {
        self.topics.iter().any(|map| map.name == topic)
    }

    /// Says where a topic is.
    pub fn learn(&mut self, map: TopicMap) {
        self.topics.retain(|known| known.name != map.name);
        self.topics.push(map);
    }

    /// Takes a record into the open transaction. `wall_ms`: now, for records without a time. False = wait for room first; nothing
    /// was taken.
    ///
    /// Errors: `Record`; why the transaction has failed before.
    pub fn publish(&mut self, topic: &str, record: &Record<'_>, wall_ms: i64) -> Result<bool, TransactionError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let (Some(map), Some(producer)) = (self.topics.iter().find(|map| map.name == topic), self.producer) else {
            return Err(CallError::UnknownTopic { topic: topic.into() }.into());
        };
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let record_bytes = RecordBatchBuilder::record_bytes(length(record.key), length(record.value), record.headers.len());
        let batch_bytes = HEADER_BYTES + BATCH_PREFIX_BYTES + record_bytes;
        let limit_bytes = (map.max_message_bytes.min(self.max_request_bytes) as usize).min(self.config.buffer_bytes);
        if batch_bytes > limit_bytes {
            return Err(TransactionError::Record(SendError::RecordTooLarge { batch_bytes, limit_bytes }));
        }
        if self.buffered_bytes + batch_bytes > self.config.buffer_bytes {
            self.seal_all();
            return Ok(false);
        }
        let partition_count = map.partitions.len() as u32;
        let index = match (record.partition, record.key) {
            (Some(index), _) if index >= partition_count => {
                return Err(TransactionError::Record(SendError::NoSuchPartition { index, partition_count }));
            }
            (Some(index), _) => index,
            (None, Some(key)) => partition_for_key(key, partition_count),
            // One transaction after the other goes to one partition each.
            (None, None) => self.next_partition % partition_count,
        };
        let place = map.partitions[index as usize];
        let lane = self.lanes.entry(place.partition).or_insert_with(|| Lane {
            port: place.port,
            open: RecordBatchBuilder::new(),
            flags: flags::TRANSACTIONAL,
            frames: VecDeque::new(),
            is_in_flight: false,
            next_sequence: 0,
            failures: 0,
            retry_at: None,
        });
        let full_bytes = self.config.batch_bytes.min(limit_bytes);
        let before = lane.bytes();
        if lane.open.record_count() > 0 && lane.open.frame_bytes() + record_bytes > full_bytes {
            lane.seal(place.partition, producer);
        }
        if !record.headers.is_empty() && QueueHeaders::read(record.headers) != QueueHeaders::default() {
            lane.flags |= flags::QUEUE_HEADERS;
        }
        lane.open.push(record.timestamp_ms.unwrap_or(wall_ms), record.key, record.value, record.headers);
        if lane.open.frame_bytes() >= full_bytes {
            lane.seal(place.partition, producer);
        }
        self.buffered_bytes = self.buffered_bytes + lane.bytes() - before;
        Ok(true)
    }

    /// Lets everything that was published leave.
    pub fn seal_all(&mut self) {
        let Some(producer) = self.producer else { return };
        for (partition, lane) in &mut self.lanes {
            let before = lane.bytes();
            lane.seal(*partition, producer);
            self.buffered_bytes = self.buffered_bytes + lane.bytes() - before;
        }
    }

    /// Whether something published isn't durable yet.
    pub fn is_publishing(&self) -> bool {
        self.failure.is_none() && self.lanes.values().any(|lane| !lane.is_empty())
    }

    /// Why the open transaction can't be committed, if it can't.
    pub fn failure(&self) -> Option<&TransactionError> {
        self.failure.as_ref()
    }

    /// Ends the open transaction; wait for [`TransactionMachine::take_done`].
    pub fn end(&mut self, commit: bool) {
        let Some(producer) = self.producer.filter(|_| self.is_open) else {
            self.done = Some(Ok(()));
            return;
        };
        if !commit {
            self.forget_lanes();
            self.outcome.decide(Decision::Aborted);
        }
        self.ask(TransactionCall::End { producer, commit });
    }

    /// The open transaction is given up: it is aborted before the next one.
    pub fn abandon(&mut self) {
        if self.is_open {
            self.forget_lanes();
            self.outcome.decide(Decision::Aborted);
        }
    }

    /// The open transaction stays as it is, for somebody else to decide, or its timeout.
    pub fn leave(&mut self) {
        if self.is_open {
            self.forget_lanes();
            // Whatever is decided, the messages acknowledged in it are nobody's to settle.
            self.outcome.decide(Decision::Committed);
            (self.is_open, self.must_init) = (false, true);
        }
    }

    /// Another name, from the next transaction on.
    pub fn rename(&mut self, transactional_id: &str) {
        self.transactional_id = transactional_id.into();
        (self.producer, self.must_init, self.is_fenced) = (None, true, false);
    }

    /// The result of the step that was asked for, once it is there.
    pub fn take_done(&mut self) -> Option<Result<(), TransactionError>> {
        self.done.take()
    }

    /// Nobody waits any more for the step that was asked for, or for what was published: why.
    pub fn give_up(&mut self) -> TransactionError {
        let (after, last_problem) = (self.config.patience, self.links.problem().map(ToString::to_string));
        let is_commit = matches!(self.control.take(), Some(Control { call: TransactionCall::End { commit: true, .. }, .. }));
        self.must_init = true;
        self.is_open = false;
        self.forget_lanes();
        let error = match is_commit {
            true => TransactionError::Unknown { after, last_problem },
            false => TransactionError::TimedOut { after, last_problem },
        };
        self.outcome.decide(if is_commit { Decision::Committed } else { Decision::Aborted });
        error
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<&ConnectionError> {
        self.links.problem()
    }

    fn fenced(&self) -> TransactionError {
        TransactionError::Fenced { transactional_id: self.transactional_id.clone() }
    }

    fn forget_lanes(&mut self) {
        self.lanes.clear();
        self.buffered_bytes = 0;
        self.round += 1;
    }

    fn ask(&mut self, call: TransactionCall) {
        self.done = None;
        self.control = Some(Control { call, is_in_flight: false, failures: 0, retry_at: None });
    }

    fn fill(&mut self, port: u16, now: Instant) {
        if port == 0
            && let Some(control) =
                self.control.as_mut().filter(|control| !control.is_in_flight && control.retry_at.is_none_or(|at| at <= now))
            && let Some(session) = self.links.ready_session(0).filter(|session| session.has_room())
        {
            let mut body = Vec::new();
            write_open(&TransactionRequest { transactional_id: self.transactional_id.clone(), call: control.call.clone() }, &mut body);
            session.request(Op::Transaction, Purpose::Control, now, Duration::ZERO, &body);
            control.is_in_flight = true;
        }
        if self.failure.is_some() {
            return;
        }
        for (partition, lane) in &mut self.lanes {
            let is_due = lane.port == port && !lane.is_in_flight && lane.retry_at.is_none_or(|at| at <= now);
            let Some(frame) = lane.frames.front().filter(|_| is_due) else { continue };
            let Some(session) = self.links.ready_session(port).filter(|session| session.has_room()) else { return };
            let purpose = Purpose::Produce { partition: *partition, round: self.round };
            session.request(Op::Produce, purpose, now, Duration::ZERO, frame);
            lane.is_in_flight = true;
        }
    }

    fn on_reply(&mut self, reply: Reply<Purpose>, now: Instant) {
        match reply.context {
            Purpose::Control => self.on_control(reply.result, now),
            Purpose::Produce { partition, round } => {
                let Some(lane) = self.lanes.get_mut(&partition).filter(|_| round == self.round) else { return };
                lane.is_in_flight = false;
                match reply.result.map(|body| ProduceReply::read(&body)) {
                    Ok(Ok(_)) => {
                        lane.failures = 0;
                        self.buffered_bytes -= lane.frames.pop_front().map_or(0, |frame| frame.len());
                    }
                    Ok(Err(error)) => self.fail(TransactionError::BadReply { op: Op::Produce, problem: error.to_string() }),
                    Err(error) if error.code.is_retriable() => {
                        lane.failures += 1;
                        lane.retry_at = Some(now + self.links.backoff(lane.failures));
                    }
                    Err(error) => {
                        let failure = self.failure_of(error);
                        self.fail(failure);
                    }
                }
            }
        }
    }

    fn fail(&mut self, failure: TransactionError) {
        self.failure.get_or_insert(failure);
    }

    /// What a refusal of a step inside a transaction means.
    pub(crate) fn failure_of(&self, error: BrokerError) -> TransactionError {
        match error.code {
            ErrorCode::ProducerFenced => self.fenced(),
            // Of two reasons the ending of the transaction tells which.
            ErrorCode::StaleProducerEpoch | ErrorCode::InvalidTransactionState => TransactionError::Aborted { message: error.message },
            _ => TransactionError::Broker(error),
        }
    }

    fn on_control(&mut self, result: Result<ReplyBody, BrokerError>, now: Instant) {
        let Some(control) = &mut self.control else { return };
        control.is_in_flight = false;
        let is_commit = match control.call {
            TransactionCall::End { commit, .. } => Some(commit),
            _ => None,
        };
        let outcome = match result {
            Err(error) if error.code.is_retriable() => {
                control.failures += 1;
                control.retry_at = Some(now + self.links.backoff(control.failures));
                return;
            }
            Err(error) if error.code == ErrorCode::ProducerFenced => {
                self.is_fenced = true;
                Err(self.fenced())
            }
            // It was decided before; whether by its timeout, the next Init tells.
            Err(error) if error.code == ErrorCode::InvalidTransactionState && is_commit.is_some() => {
                self.must_init = true;
                if is_commit == Some(true) { Err(TransactionError::Aborted { message: error.message }) } else { Ok(()) }
            }
            Err(error) => {
                self.must_init = true;
                Err(TransactionError::Broker(error))
            }
            Ok(body) => match read_open::<TransactionAnswer>(&body) {
                Ok(TransactionAnswer::Producer(producer)) => {
                    self.producer = Some(producer);
                    self.must_init = producer.epoch >= EPOCH_LAST;
                    Ok(())
                }
                Ok(_) => Err(TransactionError::Call(CallError::UnexpectedAnswer { op: Op::Transaction })),
                Err(error) => Err(TransactionError::BadReply { op: Op::Transaction, problem: error.to_string() }),
            },
        };
        self.control = None;
        if is_commit.is_some() {
            let is_committed = is_commit == Some(true) && outcome.is_ok();
            self.outcome.decide(if is_committed { Decision::Committed } else { Decision::Aborted });
            self.next_partition = self.next_partition.wrapping_add(1);
        }
        self.is_open = false;
        self.forget_lanes();
        self.done = Some(outcome);
    }

    fn on_lost(&mut self, port: u16, lost: Vec<Purpose>) {
        for purpose in lost {
            match purpose {
                Purpose::Control => {
                    if let Some(control) = &mut self.control {
                        control.is_in_flight = false;
                    }
                }
                Purpose::Produce { partition, round } => {
                    if let Some(lane) = self.lanes.get_mut(&partition).filter(|_| round == self.round) {
                        lane.is_in_flight = false;
                    }
                }
            }
        }
        // The ports may be others after a restart: the bootstrap port serves everything.
        for lane in self.lanes.values_mut().filter(|lane| lane.port == port) {
            lane.port = 0;
        }
        for place in self.topics.iter_mut().flat_map(|map| &mut map.partitions).filter(|place| place.port == port) {
            place.port = 0;
        }
    }
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.open.record_count() == 0
    }

    fn bytes(&self) -> usize {
        let open = if self.open.record_count() > 0 { self.open.frame_bytes() } else { 0 };
        open + self.frames.iter().map(Vec::len).sum::<usize>()
    }

    fn seal(&mut self, partition: u32, producer: TransactionProducer) {
        let count = self.open.record_count();
        if count == 0 {
            return;
        }
        let identity = Identity {
            partition: PartitionId(partition),
            producer_id: ProducerId(producer.producer_id),
            producer_epoch: producer.epoch,
            sequence: self.next_sequence,
            flags: self.flags,
        };
        let frame = self.open.finish(identity).to_vec();
        self.open.clear();
        self.flags = flags::TRANSACTIONAL;
        self.next_sequence = ((i64::from(self.next_sequence) + i64::from(count)) & i64::from(i32::MAX)) as i32;
        self.frames.push_back(frame);
    }
}

impl Machine for TransactionMachine {
    fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.links.want_none();
        if self.control.is_some() {
            self.links.want(0);
        }
        for lane in self.lanes.values().filter(|lane| !lane.frames.is_empty()) {
            self.links.want(lane.port);
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
                Heard::Reply(reply) => self.on_reply(reply, now),
                Heard::Lost(lost) => self.on_lost(port, lost),
            }
        }
    }

    fn transmit(&mut self, port: u16, now: Instant, out: &mut Vec<u8>) -> bool {
        self.fill(port, now);
        self.links.session(port).is_some_and(|session| session.poll_transmit(out))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let lanes = self.lanes.values().filter_map(|lane| lane.retry_at);
        let control = self.control.as_ref().and_then(|control| control.retry_at);
        let ahead = |at: &Instant| self.looked_at.is_none_or(|looked_at| *at > looked_at);
        lanes.chain(control).filter(ahead).chain(self.links.poll_timeout()).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        // A caller that worked for a while hasn't read the answers that have come meanwhile.
        let was_driven = self.looked_at.is_none_or(|looked_at| now.saturating_duration_since(looked_at) < UNDRIVEN);
        self.looked_at = Some(now);
        if !was_driven {
            return;
        }
        for (port, error) in self.links.overdue(now) {
            let lost = self.links.fail(port, error, now);
            self.on_lost(port, lost);
        }
    }
}

/// A machine that nobody has driven for so long has read nothing either.
const UNDRIVEN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
