//! Blocking calls. A producer owns one thread for all its connections; everything else runs on the caller's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::Waker;
use ringmain_wire::control::{
    AlterTopic, CommitOffset, CreateTopic, FetchReply, FetchRequest, HelloReply, ListOffsetsReply, MetadataReply, ProduceReply,
    ProducerGrant, ReadOffset, ReadOffsetReply, StatsReply, StatsRequest, TopicDescription, TopicInfo,
};
use ringmain_wire::{Op, PartitionId};

use super::sockets::Sockets;
use super::{Access, wall_ms};
use crate::admin::{self, Call, ClientConfig, DeleteTopic, DescribeTopic, InitProducer};
use crate::consumer::{ConsumerConfig, ConsumerMachine, Position, RecordBatch};
use crate::error::{CallError, ConnectionError, ConsumeError, FlushError, MetadataError, ProducerEnd, SendError};
use crate::links::{Machine as _, TopicMap};
use crate::producer::{Delivery, ProducerConfig, ProducerMachine, Receipt, Record};
use crate::session::{Event, Session};

/// A connection to a broker, for administrative calls and as the origin of producers and consumers.
///
/// Cheap to clone; clones share the connection and take turns on it. Made again when it breaks.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.inner.config.address).finish_non_exhaustive()
    }
}

struct Inner {
    config: ClientConfig,
    state: Mutex<Lines>,
}

/// The client's own connections by port (0 = the bootstrap port).
#[derive(Default)]
struct Lines {
    lines: BTreeMap<u16, Line>,
    /// The bootstrap port's address as it last answered.
    bootstrap: Option<SocketAddr>,
    /// Port of each partition number in the metadata seen so far.
    routes: BTreeMap<u32, u16>,
}

impl Client {
    /// Connects to `address` (`HOST:PORT`) with everything else as by default.
    ///
    /// Errors: `Connection` (nothing there, not a broker, refused).
    pub fn connect(address: &str) -> Result<Client, CallError> {
        Client::connect_with(ClientConfig { address: address.into(), ..ClientConfig::default() })
    }

    /// Connects as `config` says. Errors: `Connection`.
    pub fn connect_with(config: ClientConfig) -> Result<Client, CallError> {
        let client = Client { inner: Arc::new(Inner { config, state: Mutex::default() }) };
        client.lines().line(0, &client.inner.config)?;
        Ok(client)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the broker said to the hello: its version and limits. Errors: `Connection`.
    pub fn hello(&self) -> Result<HelloReply, CallError> {
        let mut lines = self.lines();
        let line = lines.line(0, &self.inner.config)?;
        line.session.hello().cloned().ok_or(CallError::Connection(ConnectionError::Closed))
    }

    /// Sends one request and waits for its answer. Asked again once over a new connection if the old one breaks
    /// and asking twice does no harm.
    ///
    /// Errors: see [`CallError`].
    pub fn call<R: Call>(&self, request: &R) -> Result<R::Answer, CallError> {
        self.call_waiting(request, Duration::ZERO)
    }

    /// As [`Client::call`], once, with an answer that may take so much longer than the usual.
    pub fn call_waiting<R: Call>(&self, request: &R, extra_wait: Duration) -> Result<R::Answer, CallError> {
        let mut body = Vec::new();
        request.encode(&mut body);
        let reply = self.request(0, R::OP, &body, R::REPEATABLE, extra_wait)?;
        R::decode(&reply).map_err(|error| CallError::Malformed { op: R::OP, error })
    }

    /// The body of the broker's answer to a request with this body, over the connection to `port`.
    fn request(&self, port: u16, op: Op, body: &[u8], repeatable: bool, extra_wait: Duration) -> Result<Vec<u8>, CallError> {
        let mut lines = self.lines();
        let known = lines.lines.contains_key(&port);
        let result = lines.request(port, &self.inner.config, op, body, extra_wait);
        match result {
            // A connection that was open before may have gone stale meanwhile; a fresh one that fails is news.
            Err(CallError::Connection(_)) if repeatable && known => lines.request(port, &self.inner.config, op, body, extra_wait),
            result => result,
        }
    }

    /// Topics (`None` = all) and the shard map; a topic that doesn't exist is missing in the answer.
    pub fn metadata(&self, topics: Option<&[&str]>) -> Result<MetadataReply, CallError> {
        let reply = self.call(&admin::metadata(topics))?;
        let mut lines = self.lines();
        for partition in reply.topics.iter().flat_map(|topic| &topic.partitions) {
            let port = reply.shard_ports.get(usize::from(partition.shard)).copied().unwrap_or(0);
            lines.routes.insert(partition.partition, port);
        }
        Ok(reply)
    }

    /// Creates a topic; durable when this returns. Errors: `Broker` (`TopicExists`, `InvalidTopic`, …).
    pub fn create_topic(&self, topic: &CreateTopic) -> Result<TopicInfo, CallError> {
        self.call(topic)
    }

    /// Changes a topic's settings or adds partitions. Errors: `Broker`.
    pub fn alter_topic(&self, change: &AlterTopic) -> Result<TopicInfo, CallError> {
        self.call(change)
    }

    /// Deletes a topic and its records. Errors: `Broker` (`UnknownTopic`).
    pub fn delete_topic(&self, name: &str) -> Result<(), CallError> {
        self.call(&DeleteTopic(name.into()))
    }

    /// A topic and the state of its partitions. Errors: `Broker` (`UnknownTopic`).
    pub fn describe_topic(&self, name: &str) -> Result<TopicDescription, CallError> {
        self.call(&DescribeTopic(name.into()))
    }

    /// The broker's counters.
    pub fn stats(&self) -> Result<StatsReply, CallError> {
        self.call(&StatsRequest { reserved: 0 })
    }

    /// The first offset at or after a time (ms since the Unix epoch), or one of
    /// [`LATEST`](ringmain_wire::control::LATEST), [`EARLIEST`](ringmain_wire::control::EARLIEST).
    /// `partition`: its number from the metadata, not its index.
    pub fn list_offset(&self, partition: PartitionId, timestamp_ms: i64) -> Result<ListOffsetsReply, CallError> {
        self.call(&admin::list_offset(partition, timestamp_ms))
    }

    /// Remembers `offset`, the next one wanted, for the consumer of that name; durable when this returns.
    /// `metadata`: anything, at most 4,096 bytes.
    pub fn commit_offset(&self, consumer: &str, partition: PartitionId, offset: u64, metadata: &str) -> Result<(), CallError> {
        self.call(&CommitOffset { consumer: consumer.into(), partition: partition.0, offset, metadata: metadata.into() })
    }

    /// What the consumer of that name committed.
    pub fn read_offset(&self, consumer: &str, partition: PartitionId) -> Result<ReadOffsetReply, CallError> {
        self.call(&ReadOffset { consumer: consumer.into(), partition: partition.0 })
    }

    /// An id for an idempotent producer. [`Client::producer`] gets its own.
    pub fn init_producer(&self) -> Result<ProducerGrant, CallError> {
        self.call(&InitProducer)
    }

    /// Sends one frame and waits for its acknowledgement, without batching and without repeating.
    /// `frame`: exactly one, sealed, without padding.
    ///
    /// Errors: `Broker`; after `Connection` or `TimedOut` it isn't known whether the frame is stored.
    pub fn produce_frame(&self, frame: &[u8]) -> Result<ProduceReply, CallError> {
        let header = ringmain_wire::FrameHeader::read(frame);
        let port = header.and_then(|header| self.lines().routes.get(&header.producer.partition).copied()).unwrap_or(0);
        let body = self.request(port, Op::Produce, frame, false, Duration::ZERO)?;
        ProduceReply::read(&body).map_err(|error| CallError::Malformed { op: Op::Produce, error })
    }

    /// One fetch: its head, and the whole reply body (the head's 32 bytes, then padded frames, unchecked).
    pub fn fetch_frames(&self, request: &FetchRequest) -> Result<(FetchReply, Vec<u8>), CallError> {
        let port = self.lines().routes.get(&request.partition).copied().unwrap_or(0);
        let wait = Duration::from_millis(u64::from(request.max_wait_ms));
        let body = self.request(port, Op::Fetch, &request.to_bytes(), true, wait)?;
        let head = FetchReply::read(&body).map_err(|error| CallError::Malformed { op: Op::Fetch, error })?;
        Ok((head, body))
    }

    /// Where a topic is. Errors: `UnknownTopic`.
    pub fn topic_map(&self, topic: &str) -> Result<TopicMap, CallError> {
        TopicMap::find(&self.metadata(Some(&[topic]))?, topic).map_err(|error| match error {
            MetadataError::UnknownTopic { topic } => CallError::UnknownTopic { topic },
            other => CallError::Metadata(other),
        })
    }

    fn sockets(&self) -> Result<Sockets, CallError> {
        let bootstrap = self.lines().bootstrap.ok_or(CallError::Connection(ConnectionError::Closed))?;
        Sockets::new(bootstrap, self.inner.config.connect_timeout).map_err(|error| CallError::Connection(error.into()))
    }

    /// A producer for one topic. Errors: `UnknownTopic`, `Connection`, `Broker`.
    pub fn producer(&self, topic: &str, config: ProducerConfig) -> Result<Producer, CallError> {
        self.start_producer(topic, config, None)
    }

    /// A producer that calls `on_delivery` for every batch, in order per partition, on the producer's own thread:
    /// whatever it does delays the sending.
    ///
    /// Errors: as [`Client::producer`].
    pub fn producer_with(
        &self,
        topic: &str,
        config: ProducerConfig,
        on_delivery: impl FnMut(&Delivery) + Send + 'static,
    ) -> Result<Producer, CallError> {
        self.start_producer(topic, config, Some(Box::new(on_delivery)))
    }

    fn start_producer(&self, topic: &str, config: ProducerConfig, on_delivery: Option<OnDelivery>) -> Result<Producer, CallError> {
        let map = self.topic_map(topic)?;
        let grant = if config.idempotent { Some(self.init_producer()?) } else { None };
        let sockets = self.sockets()?;
        let waker = sockets.waker().map_err(|error| CallError::Connection(error.into()))?;
        let mut machine = ProducerMachine::new(config, map, grant);
        machine.limit_request_bytes(self.hello()?.max_request_bytes);
        Producer::start(machine, sockets, waker, on_delivery)
    }

    /// A consumer of one topic. Errors: see [`OpenConsumerError`].
    pub fn consumer(&self, topic: &str, config: ConsumerConfig) -> Result<Consumer, OpenConsumerError> {
        let commit_timeout = config.links.session.request_timeout;
        let machine = ConsumerMachine::new(config, self.topic_map(topic)?).map_err(OpenConsumerError::Consume)?;
        Ok(Consumer { machine, sockets: self.sockets()?, commit_timeout })
    }
}

pub use super::OpenConsumerError;
pub use group::{GroupConsumeError, GroupConsumer};
pub use queue::{QueueConsumer, Replier, Requester};
pub use transaction::{Transaction, Transactor};

mod group;
mod queue;
mod transaction;

/// One connection of a [`Client`]: requests go out one at a time.
struct Line {
    stream: TcpStream,
    session: Session<()>,
    out: Vec<u8>,
}

impl Lines {
    /// The connection to `port`, made if it isn't there.
    fn line(&mut self, port: u16, config: &ClientConfig) -> Result<&mut Line, CallError> {
        if !self.lines.contains_key(&port) {
            let mut line = Line::connect(self.addresses(port, config)?, config)?;
            line.greet(config)?;
            if port == 0 {
                self.bootstrap = line.stream.peer_addr().ok().or(self.bootstrap);
            }
            self.lines.insert(port, line);
        }
        self.lines.get_mut(&port).ok_or(CallError::Connection(ConnectionError::Closed))
    }

    fn addresses(&self, port: u16, config: &ClientConfig) -> Result<Vec<SocketAddr>, ConnectionError> {
        if let (Some(bootstrap), true) = (self.bootstrap, port != 0) {
            return Ok(vec![SocketAddr::new(bootstrap.ip(), port)]);
        }
        let address = || config.address.clone();
        let resolved =
            config.address.to_socket_addrs().map_err(|error| ConnectionError::Resolve { address: address(), error: Arc::new(error) })?;
        let found: Vec<SocketAddr> = resolved.collect();
        if found.is_empty() {
            return Err(ConnectionError::Resolve { address: address(), error: Arc::new(ErrorKind::NotFound.into()) });
        }
        Ok(found)
    }

    fn request(&mut self, port: u16, config: &ClientConfig, op: Op, body: &[u8], extra_wait: Duration) -> Result<Vec<u8>, CallError> {
        let line = self.line(port, config)?;
        let result = line.request(config, op, body, extra_wait);
        if matches!(result, Err(CallError::Connection(_) | CallError::TimedOut { .. })) {
            self.lines.remove(&port);
        }
        result
    }
}

impl Line {
    fn connect(addresses: Vec<SocketAddr>, config: &ClientConfig) -> Result<Line, ConnectionError> {
        let mut last = ConnectionError::Closed;
        for address in addresses {
            match TcpStream::connect_timeout(&address, config.connect_timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let session = Session::new(config.links.session.clone(), Instant::now());
                    return Ok(Line { stream, session, out: Vec::new() });
                }
                Err(error) => last = ConnectionError::Connect { address, error: Arc::new(error) },
            }
        }
        Err(last)
    }

    fn greet(&mut self, config: &ClientConfig) -> Result<(), CallError> {
        self.send()?;
        let deadline = Instant::now() + config.links.session.request_timeout;
        match self.next_event(Op::Hello, deadline, config)? {
            Event::Ready(_) => Ok(()),
            _ => Err(CallError::Connection(ConnectionError::Closed)),
        }
    }

    fn request(&mut self, config: &ClientConfig, op: Op, body: &[u8], extra_wait: Duration) -> Result<Vec<u8>, CallError> {
        if let Some(hello) = self.session.hello()
            && body.len() > hello.max_request_bytes as usize
        {
            return Err(CallError::RequestTooLarge { bytes: body.len(), limit_bytes: hello.max_request_bytes });
        }
        let now = Instant::now();
        self.session.request(op, (), now, extra_wait, body);
        self.send()?;
        let deadline = now + config.links.session.request_timeout + extra_wait;
        loop {
            if let Event::Reply(reply) = self.next_event(op, deadline, config)? {
                return Ok(reply.result?.into_vec());
            }
        }
    }

    fn send(&mut self) -> Result<(), ConnectionError> {
        self.out.clear();
        while self.session.poll_transmit(&mut self.out) {}
        // A broker that doesn't read for so long is as good as gone.
        Ok(self.stream.write_all(&self.out)?)
    }

    fn next_event(&mut self, op: Op, deadline: Instant, config: &ClientConfig) -> Result<Event<()>, CallError> {
        loop {
            if let Some(event) = self.session.poll_event().map_err(ConnectionError::Session)? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::TimedOut { op, after: config.links.session.request_timeout });
            }
            self.stream.set_read_timeout(Some(left)).map_err(ConnectionError::from)?;
            match self.stream.read(self.session.read_buffer()) {
                Ok(0) => return Err(CallError::Connection(ConnectionError::Closed)),
                Ok(n) => self.session.received(n),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(CallError::Connection(error.into())),
            }
        }
    }
}

type OnDelivery = Box<dyn FnMut(&Delivery) + Send>;

/// Sends records to one topic. Its thread gathers, sends and repeats; see [`ProducerConfig`] for the knobs.
///
/// Dropping it gives up what isn't acknowledged; call [`Producer::flush`] or [`Producer::close`] before.
pub struct Producer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.shared.lock().machine.topic().name).finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when batches were delivered (room, acknowledgements) or the thread ended.
    changed: Condvar,
    waker: Waker,
}

struct State {
    machine: ProducerMachine,
    /// The thread waits, until then if nothing comes; `None` = it is at work and looks at `dirty` before it waits.
    parked_until: Option<Option<Instant>>,
    /// Something was added that is due now.
    dirty: bool,
    /// Callbacks are running.
    delivering: bool,
    stop: bool,
    /// Rounds of the thread so far.
    #[cfg(test)]
    turns: u64,
    /// Receipts somebody waits for, and what became of them.
    awaited: Vec<(Receipt, Option<Delivery>)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread look at `at` at the latest.
    fn look_at(&self, state: &mut State, at: Option<Instant>, now: Instant) {
        let Some(at) = at else { return };
        match state.parked_until {
            None => state.dirty |= at <= now,
            Some(until) if until.is_none_or(|until| at < until) => {
                state.parked_until = None;
                state.dirty = true;
                // The eventfd's counter can't overflow from this: one wake per wait.
                let _ = self.waker.wake();
            }
            Some(_) => {}
        }
    }
}

impl Access for &Shared {
    type Machine = ProducerMachine;
    fn with<R>(&mut self, f: impl FnOnce(&mut ProducerMachine) -> R) -> R {
        f(&mut self.lock().machine)
    }
    const DIRECT: bool = false;
}

impl Producer {
    fn start(machine: ProducerMachine, sockets: Sockets, waker: Waker, on_delivery: Option<OnDelivery>) -> Result<Producer, CallError> {
        let state = State {
            machine,
            parked_until: None,
            dirty: false,
            delivering: false,
            stop: false,
            #[cfg(test)]
            turns: 0,
            awaited: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), waker });
        let for_thread = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("ringmain-producer".into());
        let thread = builder.spawn(move || run_producer(&for_thread, sockets, on_delivery));
        Ok(Producer { shared, thread: Some(thread.map_err(|error| CallError::Connection(error.into()))?) })
    }

    /// Takes a record into the buffer; waits while that is full. Not acknowledged when this returns: the receipt names
    /// the record in its delivery, and [`Producer::flush`] waits for all.
    ///
    /// Errors: `RecordTooLarge`, `NoSuchPartition` (nothing of it is sent), `Ended`.
    pub fn send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        let mut state = self.shared.lock();
        loop {
            let now = Instant::now();
            match state.machine.send(record, now, wall_ms()) {
                Ok(accepted) => {
                    self.shared.look_at(&mut state, accepted.look_at, now);
                    return Ok(accepted.receipt);
                }
                Err(SendError::BufferFull { .. }) => {
                    self.shared.look_at(&mut state, Some(now), now);
                    state = self.shared.wait(state);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Like [`Producer::send`], but `BufferFull` instead of waiting.
    pub fn try_send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let result = state.machine.send(record, now, wall_ms());
        let look_at = result.as_ref().map_or(Some(now), |accepted| accepted.look_at);
        self.shared.look_at(&mut state, look_at, now);
        result.map(|accepted| accepted.receipt)
    }

    /// Sends a record without linger and waits until it is acknowledged; its delivery, see [`Delivery::offset_of`].
    ///
    /// Errors: as [`Producer::send`]; a record that was taken and not acknowledged is an `Err` in the delivery.
    pub fn send_and_wait(&mut self, record: Record<'_>) -> Result<(Receipt, Delivery), SendError> {
        let receipt = self.send(record)?;
        let mut state = self.shared.lock();
        state.awaited.push((receipt, None));
        state.machine.begin_flush();
        let now = Instant::now();
        self.shared.look_at(&mut state, Some(now), now);
        loop {
            if let Some(at) = state.awaited.iter().position(|(awaited, delivery)| *awaited == receipt && delivery.is_some())
                && let (_, Some(delivery)) = state.awaited.swap_remove(at)
            {
                return Ok((receipt, delivery));
            }
            if state.stop {
                return Err(SendError::Ended(ProducerEnd::Closed));
            }
            state = self.shared.wait(state);
        }
    }

    /// Sends everything at once and waits until nothing is open, callbacks included. Acknowledged as durably as the
    /// topic asks when this returns `Ok`.
    ///
    /// Errors: records since the last flush that weren't acknowledged.
    pub fn flush(&mut self) -> Result<(), FlushError> {
        let mut state = self.shared.lock();
        state.machine.begin_flush();
        let now = Instant::now();
        self.shared.look_at(&mut state, Some(now), now);
        while !state.stop && (state.machine.open_records() > 0 || state.machine.has_deliveries() || state.delivering || state.dirty) {
            state = self.shared.wait(state);
        }
        state.machine.take_failures()
    }

    /// Flushes, then ends the thread. Errors: as [`Producer::flush`].
    pub fn close(mut self) -> Result<(), FlushError> {
        self.flush()
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.lock().machine.acknowledged_records()
    }

    /// Of them, those that found a queue full, which passes them on to the topic that it redirects to.
    pub fn redirected(&self) -> u64 {
        self.shared.lock().machine.redirected_records()
    }

    /// Records taken and neither acknowledged nor given up.
    pub fn open_records(&self) -> u64 {
        self.shared.lock().machine.open_records()
    }

    /// Number of partitions of the topic, as known now.
    pub fn partition_count(&self) -> u32 {
        self.shared.lock().machine.topic().partitions.len() as u32
    }

    /// Why the producer ended, if it did.
    pub fn ended(&self) -> Option<ProducerEnd> {
        self.shared.lock().machine.ended().cloned()
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<ConnectionError> {
        self.shared.lock().machine.connection_problem().cloned()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        let _ = self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in a callback was reported by that thread already.
            let _ = thread.join();
        }
    }
}

fn run_producer(shared: &Arc<Shared>, mut sockets: Sockets, mut on_delivery: Option<OnDelivery>) {
    /// Whatever ends the thread, nobody may go on waiting for it.
    struct AtEnd<'a>(&'a Shared);
    impl Drop for AtEnd<'_> {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.stop = true;
            state.delivering = false;
            state.machine.end(ProducerEnd::Closed);
            self.0.changed.notify_all();
        }
    }
    let at_end = AtEnd(shared);
    let mut access: &Shared = at_end.0;
    let mut delivered = Vec::new();
    loop {
        shared.lock().dirty = false;
        #[cfg(test)]
        {
            shared.lock().turns += 1;
        }
        sockets.advance(&mut access);
        let mut state = shared.lock();
        while let Some(delivery) = state.machine.poll_delivery() {
            for (_, result) in state.awaited.iter_mut().filter(|(receipt, _)| delivery.covers(*receipt)) {
                *result = Some(delivery.clone());
            }
            delivered.push(delivery);
        }
        if let (Some(on_delivery), false) = (&mut on_delivery, delivered.is_empty()) {
            state.delivering = true;
            drop(state);
            delivered.iter().for_each(&mut *on_delivery);
            state = shared.lock();
            state.delivering = false;
        }
        if !delivered.is_empty() || state.machine.open_records() == 0 {
            delivered.clear();
            shared.changed.notify_all();
        }
        if state.stop {
            return;
        }
        let until = if state.dirty { Some(Instant::now()) } else { state.machine.poll_timeout() };
        state.parked_until = Some(until);
        drop(state);
        let waited = sockets.wait_and_read(&mut access, until);
        shared.lock().parked_until = None;
        if let Err(error) = waited {
            let reason = format!("waiting for its connections failed: {error}");
            shared.lock().machine.end(ProducerEnd::Ambiguous { partition_index: 0, reason });
            return;
        }
    }
}

/// Reads one topic. Fetches ahead while the caller works, as far as the sockets' buffers reach; further when it polls.
#[derive(Debug)]
pub struct Consumer {
    machine: ConsumerMachine,
    sockets: Sockets,
    commit_timeout: Duration,
}

impl Consumer {
    /// The next records of some partition; waits at most `timeout`. `None` = nothing came in time, which includes
    /// that there is no connection at the moment ([`Consumer::connection_problem`]).
    ///
    /// Errors: see [`ConsumeError`]; polling again goes on.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<RecordBatch>, ConsumeError> {
        let deadline = Instant::now() + timeout;
        let mut access = &mut self.machine;
        self.sockets.advance(&mut access);
        let mut until = Instant::now();
        loop {
            // First without waiting: requests for more leave before the records at hand are worked on.
            if self.sockets.wait_and_read(&mut access, Some(until)).map_err(wait_failed)? {
                self.sockets.advance(&mut access);
            }
            if let Some(batch) = access.poll_batch()? {
                return Ok(Some(batch));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            self.sockets.advance(&mut access);
            until = access.poll_timeout().map_or(deadline, |at| at.min(deadline));
        }
    }

    /// Takes back the memory of a batch that was read; optional, spares an allocation per fetch.
    pub fn recycle(&mut self, batch: RecordBatch) {
        self.machine.recycle(batch);
    }

    /// Commits where this consumer is: every record of every batch that [`Consumer::poll`] returned counts as done.
    /// Durable when this returns.
    ///
    /// Errors: `NoName`, `Broker`, `CommitTimedOut`.
    pub fn commit(&mut self) -> Result<(), ConsumeError> {
        self.machine.begin_commit()?;
        let deadline = Instant::now() + self.commit_timeout;
        let mut access = &mut self.machine;
        while access.commits_open() > 0 {
            self.sockets.advance(&mut access);
            if Instant::now() >= deadline {
                access.abandon_commits();
                let last_problem = access.connection_problem().map(ToString::to_string);
                return Err(ConsumeError::CommitTimedOut { after: self.commit_timeout, last_problem });
            }
            let until = access.poll_timeout().map_or(deadline, |at| at.min(deadline));
            self.sockets.wait_and_read(&mut access, Some(until)).map_err(wait_failed)?;
        }
        self.machine.take_commit_error().map_or(Ok(()), Err)
    }

    /// Goes on at `offset` in one partition. Errors: `NoSuchPartition`.
    pub fn seek(&mut self, partition_index: u32, offset: u64) -> Result<(), ConsumeError> {
        self.machine.seek(partition_index, offset)
    }

    /// Where this consumer is, per partition it reads.
    pub fn positions(&self) -> Vec<Position> {
        self.machine.positions().collect()
    }

    /// Whether every partition was read up to the high watermark that its last answer named. Never true before the
    /// first answer of every partition.
    pub fn at_end(&self) -> bool {
        self.machine.at_end()
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<&ConnectionError> {
        self.machine.connection_problem()
    }
}

/// Only a broken process (no memory, no descriptors) makes waiting fail.
fn wait_failed(error: std::io::Error) -> ConsumeError {
    ConsumeError::BadReply { partition_index: 0, offset: 0, problem: format!("waiting for connections failed: {error}") }
}

#[cfg(test)]
mod tests;
