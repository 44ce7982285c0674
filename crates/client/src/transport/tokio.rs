//! Native async on tokio: a producer is one spawned task, consumers and calls run in the caller's. No threads.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::tokio::io::{AsyncReadExt, AsyncWriteExt};
use ::tokio::net::TcpStream;
use ::tokio::sync::{Mutex as AsyncMutex, Notify};
use ::tokio::time::{Sleep, sleep_until, timeout};
use ringmain_wire::PartitionId;
use ringmain_wire::control::{
    AlterTopic, CommitOffset, CreateTopic, HelloReply, ListOffsetsReply, MetadataReply, ProducerGrant, ReadOffset, ReadOffsetReply,
    StatsReply, StatsRequest, TopicDescription, TopicInfo,
};

pub use self::queue::{QueueConsumer, Replier, Requester};
pub use self::transaction::{Transaction, Transactor};
pub use super::OpenConsumerError;
use super::{Access, READ_BYTES_PER_TURN, wall_ms};
use crate::admin::{self, Call, ClientConfig, DeleteTopic, DescribeTopic, InitProducer};
use crate::consumer::{ConsumerConfig, ConsumerMachine, Position, RecordBatch};
use crate::error::{CallError, ConnectionError, ConsumeError, FlushError, MetadataError, ProducerEnd, SendError};
use crate::links::{Action, Machine as _, TopicMap};
use crate::producer::{Delivery, ProducerConfig, ProducerMachine, Receipt, Record};
use crate::session::{Event, Session};

/// A connection to a broker, for administrative calls and as the origin of producers and consumers.
///
/// Cheap to clone; clones share the connection and take turns on it. Made again when it breaks.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    /// Taken out during a call: a call that is dropped halfway takes its connection along.
    line: Arc<AsyncMutex<Option<Line>>>,
    bootstrap: Arc<Mutex<Option<SocketAddr>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.config.address).finish_non_exhaustive()
    }
}

struct Line {
    stream: TcpStream,
    session: Session<()>,
}

impl Client {
    /// Connects to `address` (`HOST:PORT`) with everything else as by default. Errors: `Connection`.
    pub async fn connect(address: &str) -> Result<Client, CallError> {
        Client::connect_with(ClientConfig { address: address.into(), ..ClientConfig::default() }).await
    }

    /// Connects as `config` says. Errors: `Connection`.
    pub async fn connect_with(config: ClientConfig) -> Result<Client, CallError> {
        let client = Client { config: Arc::new(config), line: Arc::default(), bootstrap: Arc::default() };
        let line = client.open().await?;
        *client.line.lock().await = Some(line);
        Ok(client)
    }

    async fn open(&self) -> Result<Line, CallError> {
        let connecting = timeout(self.config.connect_timeout, TcpStream::connect(&self.config.address));
        let stream = match connecting.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(stream) => stream,
            Err(error) => {
                let (address, error) = (self.config.address.clone(), Arc::new(error));
                let refused = self.config.address.parse().map(|address| ConnectionError::Connect { address, error: Arc::clone(&error) });
                return Err(CallError::Connection(refused.unwrap_or(ConnectionError::Resolve { address, error })));
            }
        };
        stream.set_nodelay(true).map_err(ConnectionError::from)?;
        let peer = stream.peer_addr().map_err(ConnectionError::from)?;
        *self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
        let mut line = Line { stream, session: Session::new(self.config.links.session.clone(), Instant::now()) };
        line.exchange(&self.config, ringmain_wire::Op::Hello).await?;
        Ok(line)
    }

    /// What the broker said to the hello: its version and limits. Errors: `Connection`.
    pub async fn hello(&self) -> Result<HelloReply, CallError> {
        let mut line = self.line.lock().await;
        if line.is_none() {
            *line = Some(self.open().await?);
        }
        line.as_ref().and_then(|line| line.session.hello().cloned()).ok_or(CallError::Connection(ConnectionError::Closed))
    }

    /// Sends one request and waits for its answer. Asked again once over a new connection if the old one breaks
    /// and asking twice does no harm.
    ///
    /// Errors: see [`CallError`].
    pub async fn call<R: Call>(&self, request: &R) -> Result<R::Answer, CallError> {
        let mut body = Vec::new();
        request.encode(&mut body);
        let mut slot = self.line.lock().await;
        loop {
            let (mut line, fresh) = match slot.take() {
                Some(line) => (line, false),
                None => (self.open().await?, true),
            };
            line.session.request(R::OP, (), Instant::now(), Duration::ZERO, &body);
            match line.exchange(&self.config, R::OP).await {
                Err(CallError::Connection(_)) if R::REPEATABLE && !fresh => {}
                Err(error @ (CallError::Connection(_) | CallError::TimedOut { .. })) => return Err(error),
                result => {
                    *slot = Some(line);
                    return R::decode(&result?).map_err(|error| CallError::Malformed { op: R::OP, error });
                }
            }
        }
    }

    async_calls!();

    async fn driver(&self) -> Result<Driver, CallError> {
        self.hello().await?;
        let bootstrap = *self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        let bootstrap = bootstrap.ok_or(CallError::Connection(ConnectionError::Closed))?;
        Ok(Driver::new(bootstrap, self.config.connect_timeout))
    }

    /// A producer for one topic, sending from a task of the current runtime. Errors: `UnknownTopic`, `Connection`, `Broker`.
    pub async fn producer(&self, topic: &str, config: ProducerConfig) -> Result<Producer, CallError> {
        self.producer_with(topic, config, |_| {}).await
    }

    /// A producer that calls `on_delivery` for every batch, in order per partition, in its task: whatever it does
    /// delays the sending.
    ///
    /// Errors: as [`Client::producer`].
    pub async fn producer_with(
        &self,
        topic: &str,
        config: ProducerConfig,
        on_delivery: impl FnMut(&Delivery) + Send + 'static,
    ) -> Result<Producer, CallError> {
        let map = self.topic_map(topic).await?;
        let grant = if config.idempotent { Some(self.init_producer().await?) } else { None };
        let mut machine = ProducerMachine::new(config, map, grant);
        machine.limit_request_bytes(self.hello().await?.max_request_bytes);
        let state = State { machine, task: None, delivering: false, stop: false, awaited: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
        ::tokio::spawn(run_producer(Arc::clone(&shared), self.driver().await?, on_delivery));
        Ok(Producer { shared })
    }

    /// A consumer of one topic. Errors: see [`OpenConsumerError`].
    pub async fn consumer(&self, topic: &str, config: ConsumerConfig) -> Result<Consumer, OpenConsumerError> {
        let commit_timeout = config.links.session.request_timeout;
        let machine = ConsumerMachine::new(config, self.topic_map(topic).await?).map_err(OpenConsumerError::Consume)?;
        Ok(Consumer { machine, driver: self.driver().await?, commit_timeout })
    }
}

impl Line {
    /// Sends what is queued and waits for one answer; its body (of a hello: nothing).
    async fn exchange(&mut self, config: &ClientConfig, op: ringmain_wire::Op) -> Result<Vec<u8>, CallError> {
        let after = config.links.session.request_timeout;
        timeout(after, self.exchange_without_end()).await.unwrap_or(Err(CallError::TimedOut { op, after }))
    }

    async fn exchange_without_end(&mut self) -> Result<Vec<u8>, CallError> {
        let mut out = Vec::new();
        while self.session.poll_transmit(&mut out) {}
        self.stream.write_all(&out).await.map_err(ConnectionError::from)?;
        loop {
            match self.session.poll_event().map_err(ConnectionError::Session)? {
                Some(Event::Reply(reply)) => return Ok(reply.result?.into_vec()),
                Some(Event::Ready(_)) => return Ok(Vec::new()),
                Some(Event::FetchHead { .. }) => continue,
                None => {}
            }
            match self.stream.read(self.session.read_buffer()).await.map_err(ConnectionError::from)? {
                0 => return Err(CallError::Connection(ConnectionError::Closed)),
                n => self.session.received(n),
            }
        }
    }
}

/// The connections of one state machine, polled together.
struct Driver {
    bootstrap: SocketAddr,
    connect_timeout: Duration,
    sockets: BTreeMap<u16, Socket>,
    sleep: Option<Pin<Box<Sleep>>>,
    scratch: Vec<u8>,
}

struct Socket {
    address: SocketAddr,
    state: SocketState,
    out: Vec<u8>,
    out_at: usize,
}

enum SocketState {
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Open(TcpStream),
}

impl Driver {
    fn new(bootstrap: SocketAddr, connect_timeout: Duration) -> Driver {
        Driver { bootstrap, connect_timeout, sockets: BTreeMap::new(), sleep: None, scratch: Vec::new() }
    }

    /// Does all that can be done at once. Ready = something happened, or `until` or a timeout of the machine is over;
    /// pending = the task is woken when there is more to do.
    fn poll(&mut self, cx: &mut Context<'_>, access: &mut impl Access, until: Option<Instant>) -> Poll<()> {
        let now = Instant::now();
        let mut actions = Vec::new();
        access.with(|machine| {
            machine.handle_timeout(now);
            while let Some(action) = machine.poll_action(now) {
                actions.push(action);
            }
        });
        for action in actions {
            match action {
                Action::Close { port } => drop(self.sockets.remove(&port)),
                Action::Connect { port } => self.connect(port),
            }
        }
        access.with(|machine| {
            for (port, socket) in &mut self.sockets {
                if matches!(socket.state, SocketState::Open(_)) && socket.out_at == socket.out.len() {
                    socket.out.clear();
                    socket.out_at = 0;
                    machine.transmit(*port, now, &mut socket.out);
                }
            }
        });
        let (mut failed, mut progress) = (Vec::new(), false);
        for (port, socket) in &mut self.sockets {
            match socket.poll(cx, *port, access, &mut self.scratch, now) {
                Ok(happened) => progress |= happened,
                Err(error) => failed.push((*port, error)),
            }
        }
        for (port, error) in failed {
            progress = true;
            self.sockets.remove(&port);
            access.with(|machine| machine.disconnected(port, error, now));
        }
        if progress {
            return Poll::Ready(());
        }
        let deadline = access.with(|machine| machine.poll_timeout()).into_iter().chain(until).min();
        let Some(deadline) = deadline else { return Poll::Pending };
        if deadline <= now {
            // The runtime's timer would round this up to its next tick.
            return Poll::Ready(());
        }
        let deadline = ::tokio::time::Instant::from_std(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    fn connect(&mut self, port: u16) {
        let address = SocketAddr::new(self.bootstrap.ip(), if port == 0 { self.bootstrap.port() } else { port });
        let limit = self.connect_timeout;
        let connecting = Box::pin(async move {
            let stream = timeout(limit, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        self.sockets.insert(port, Socket { address, state: SocketState::Connecting(connecting), out: Vec::new(), out_at: 0 });
    }
}

impl Socket {
    /// Connects, writes and reads as far as it goes; whether the machine may have more to do.
    fn poll<A: Access>(
        &mut self,
        cx: &mut Context<'_>,
        port: u16,
        access: &mut A,
        scratch: &mut Vec<u8>,
        now: Instant,
    ) -> Result<bool, ConnectionError> {
        let stream = match &mut self.state {
            SocketState::Open(stream) => stream,
            SocketState::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(ConnectionError::Connect { address: self.address, error: Arc::new(error) }),
                Poll::Ready(Ok(stream)) => {
                    self.state = SocketState::Open(stream);
                    access.with(|machine| machine.connected(port, now));
                    return Ok(true);
                }
            },
        };
        let mut progress = false;
        while self.out_at < self.out.len() {
            match stream.try_write(&self.out[self.out_at..]) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(n) => {
                    self.out_at += n;
                    // There may be more to send than a session gives at once.
                    progress |= self.out_at == self.out.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stream.poll_write_ready(cx)?.is_pending() {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut read_bytes = 0;
        while read_bytes < READ_BYTES_PER_TURN {
            if stream.poll_read_ready(cx)?.is_pending() {
                break;
            }
            let got = if A::DIRECT {
                access.with(|machine| match machine.read_buffer(port) {
                    // The machine gave this connection up while its earlier bytes were read; it says so next.
                    [] => None,
                    buffer => Some(stream.try_read(buffer)),
                })
            } else {
                scratch.resize(SCRATCH_BYTES, 0);
                Some(stream.try_read(scratch))
            };
            match got {
                None => return Ok(true),
                Some(Ok(0)) => return Err(ConnectionError::Closed),
                Some(Ok(n)) => {
                    (read_bytes, progress) = (read_bytes + n, true);
                    access
                        .with(|machine| if A::DIRECT { machine.received(port, n, now) } else { machine.receive(port, &scratch[..n], now) });
                }
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
        Ok(progress)
    }
}

/// Sends records to one topic. Its task gathers, sends and repeats; see [`ProducerConfig`] for the knobs.
///
/// Dropping it gives up what isn't acknowledged; call [`Producer::flush`] before.
pub struct Producer {
    shared: Arc<Shared>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.shared.lock().machine.topic().name).finish_non_exhaustive()
    }
}

struct Shared {
    /// Never held across an await.
    state: Mutex<State>,
    /// Notified when batches were delivered or the task ended.
    changed: Notify,
}

struct State {
    machine: ProducerMachine,
    /// The task's, while it waits.
    task: Option<Waker>,
    /// Callbacks are running.
    delivering: bool,
    stop: bool,
    /// Receipts somebody waits for, and what became of them.
    awaited: Vec<(Receipt, Option<Delivery>)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something, looking again at every change.
    async fn wait_for<T>(&self, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = found(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
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
    /// Takes a record into the buffer; waits while that is full. Not acknowledged when this returns: the receipt names
    /// the record in its delivery, and [`Producer::flush`] waits for all. Dropped while waiting: nothing was taken.
    ///
    /// Errors: `RecordTooLarge`, `NoSuchPartition` (nothing of it is sent), `Ended`.
    pub async fn send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        let attempt = |state: &mut State| match Producer::offer(state, record) {
            Err(SendError::BufferFull { .. }) if !state.stop => None,
            result => Some(result),
        };
        self.shared.wait_for(attempt).await
    }

    /// Like [`Producer::send`], but `BufferFull` instead of waiting.
    pub fn try_send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        Producer::offer(&mut self.shared.lock(), record)
    }

    fn offer(state: &mut State, record: Record<'_>) -> Result<Receipt, SendError> {
        let result = state.machine.send(record, Instant::now(), wall_ms());
        if !matches!(&result, Ok(accepted) if accepted.look_at.is_none()) {
            state.wake();
        }
        result.map(|accepted| accepted.receipt)
    }

    /// Sends a record without linger and waits until it is acknowledged; its delivery, see [`Delivery::offset_of`].
    ///
    /// Errors: as [`Producer::send`]; a record that was taken and not acknowledged is an `Err` in the delivery.
    pub async fn send_and_wait(&mut self, record: Record<'_>) -> Result<(Receipt, Delivery), SendError> {
        let receipt = self.send(record).await?;
        {
            let mut state = self.shared.lock();
            state.awaited.retain(|(_, delivery)| delivery.is_none());
            state.awaited.push((receipt, None));
            state.machine.begin_flush();
            state.wake();
        }
        let found = |state: &mut State| {
            let at = state.awaited.iter().position(|(awaited, delivery)| *awaited == receipt && delivery.is_some());
            match at.map(|at| state.awaited.swap_remove(at)) {
                Some((_, Some(delivery))) => Some(Ok((receipt, delivery))),
                _ => state.stop.then_some(Err(SendError::Ended(ProducerEnd::Closed))),
            }
        };
        self.shared.wait_for(found).await
    }

    /// Sends everything at once and waits until nothing is open, callbacks included. Acknowledged as durably as the
    /// topic asks when this returns `Ok`.
    ///
    /// Errors: records since the last flush that weren't acknowledged.
    pub async fn flush(&mut self) -> Result<(), FlushError> {
        {
            let mut state = self.shared.lock();
            state.machine.begin_flush();
            state.wake();
        }
        let done = |state: &mut State| {
            let open = state.machine.open_records() > 0 || state.machine.has_deliveries() || state.delivering;
            (!open || state.stop).then(|| state.machine.take_failures())
        };
        self.shared.wait_for(done).await
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
        let mut state = self.shared.lock();
        state.stop = true;
        state.wake();
    }
}

async fn run_producer(shared: Arc<Shared>, mut driver: Driver, mut on_delivery: impl FnMut(&Delivery)) {
    /// Whatever ends the task, nobody may go on waiting for it.
    struct AtEnd(Arc<Shared>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.stop = true;
            state.delivering = false;
            state.machine.end(ProducerEnd::Closed);
            drop(state);
            self.0.changed.notify_waiters();
        }
    }
    let at_end = AtEnd(shared);
    let shared = &*at_end.0;
    let mut access = shared;
    poll_fn(|cx| {
        // Left before looking: a record that comes in between wakes the task again.
        shared.lock().task = Some(cx.waker().clone());
        for _ in 0..TURNS_PER_POLL {
            let happened = driver.poll(cx, &mut access, None).is_ready();
            deliver(shared, &mut on_delivery);
            if shared.lock().stop {
                return Poll::Ready(());
            }
            if !happened {
                return Poll::Pending;
            }
        }
        // Others on this runtime get their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn deliver(shared: &Shared, on_delivery: &mut impl FnMut(&Delivery)) {
    let mut delivered = Vec::new();
    let mut state = shared.lock();
    while let Some(delivery) = state.machine.poll_delivery() {
        for (_, result) in state.awaited.iter_mut().filter(|(receipt, _)| delivery.covers(*receipt)) {
            *result = Some(delivery.clone());
        }
        delivered.push(delivery);
    }
    if delivered.is_empty() {
        return;
    }
    state.delivering = true;
    drop(state);
    delivered.iter().for_each(on_delivery);
    shared.lock().delivering = false;
    shared.changed.notify_waiters();
}

/// Reads one topic, in the caller's task. Fetches ahead while the caller works, as far as the sockets' buffers reach;
/// further when it polls.
pub struct Consumer {
    machine: ConsumerMachine,
    driver: Driver,
    commit_timeout: Duration,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Consumer {
    /// The next records of some partition; waits at most `timeout`. `None` = nothing came in time, which includes
    /// that there is no connection at the moment ([`Consumer::connection_problem`]). Dropped while waiting: nothing is lost.
    ///
    /// Errors: see [`ConsumeError`]; polling again goes on.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Option<RecordBatch>, ConsumeError> {
        let deadline = Instant::now() + timeout;
        loop {
            // First without waiting: requests for more leave before the records at hand are worked on.
            self.turn(Some(Instant::now())).await;
            if let Some(batch) = self.machine.poll_batch()? {
                return Ok(Some(batch));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.turn(Some(deadline)).await;
        }
    }

    async fn turn(&mut self, until: Option<Instant>) {
        let (driver, mut machine) = (&mut self.driver, &mut self.machine);
        poll_fn(|cx| driver.poll(cx, &mut machine, until)).await;
    }

    /// Takes back the memory of a batch that was read; optional, spares an allocation per fetch.
    pub fn recycle(&mut self, batch: RecordBatch) {
        self.machine.recycle(batch);
    }

    /// Commits where this consumer is: every record of every batch that [`Consumer::poll`] returned counts as done.
    /// Durable when this returns.
    ///
    /// Errors: `NoName`, `Broker`, `CommitTimedOut`.
    pub async fn commit(&mut self) -> Result<(), ConsumeError> {
        self.machine.begin_commit()?;
        let deadline = Instant::now() + self.commit_timeout;
        while self.machine.commits_open() > 0 {
            if Instant::now() >= deadline {
                self.machine.abandon_commits();
                let last_problem = self.machine.connection_problem().map(ToString::to_string);
                return Err(ConsumeError::CommitTimedOut { after: self.commit_timeout, last_problem });
            }
            self.turn(Some(deadline)).await;
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

const SCRATCH_BYTES: usize = 64 << 10;
/// Rounds a producer's task takes before it lets others run.
const TURNS_PER_POLL: usize = 16;

mod queue;
#[cfg(test)]
mod tests;
mod transaction;
