//! Native async on monoio: everything stays on the caller's core. A producer or consumer has one driving task and two
//! tasks per connection (monoio's reads and writes own their buffers until they complete). No threads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use ::monoio::io::{AsyncReadRent, AsyncWriteRentExt, CancelableAsyncReadRent, Canceller, Splitable};
use ::monoio::net::TcpStream;
use ::monoio::time::timeout;
use ringmain_wire::control::{
    AlterTopic, CommitOffset, CreateTopic, HelloReply, ListOffsetsReply, MetadataReply, ProducerGrant, ReadOffset, ReadOffsetReply,
    StatsReply, StatsRequest, TopicDescription, TopicInfo,
};
use ringmain_wire::{Op, PartitionId};

pub use self::queue::{QueueConsumer, Replier, Requester};
pub use self::transaction::{Transaction, Transactor};
pub use super::OpenConsumerError;
use super::wall_ms;
use crate::admin::{self, Call, ClientConfig, DeleteTopic, DescribeTopic, InitProducer};
use crate::consumer::{ConsumerConfig, ConsumerMachine, Position, RecordBatch};
use crate::error::{CallError, ConnectionError, ConsumeError, FlushError, MetadataError, ProducerEnd, SendError};
use crate::links::{Action, Machine, TopicMap};
use crate::producer::{Delivery, ProducerConfig, ProducerMachine, Receipt, Record};
use crate::session::{Event, Session};

/// A connection to a broker, for administrative calls and as the origin of producers and consumers.
///
/// Cheap to clone; clones share the connection and must take turns on it: a call made while another is under way
/// opens a connection of its own. Made again when it breaks. The runtime needs its timer enabled.
#[derive(Clone)]
pub struct Client {
    config: Rc<ClientConfig>,
    /// Taken out during a call: a call that is dropped halfway takes its connection along.
    line: Rc<RefCell<Option<Line>>>,
    bootstrap: Rc<Cell<Option<SocketAddr>>>,
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

    /// Connects as `config` says; a name (rather than an IP address) is looked up before, which blocks.
    ///
    /// Errors: `Connection`.
    pub async fn connect_with(config: ClientConfig) -> Result<Client, CallError> {
        let client = Client { config: Rc::new(config), line: Rc::default(), bootstrap: Rc::default() };
        let line = client.open().await?;
        client.line.replace(Some(line));
        Ok(client)
    }

    async fn open(&self) -> Result<Line, CallError> {
        let resolved = self.config.address.to_socket_addrs().and_then(|mut found| found.next().ok_or_else(|| ErrorKind::NotFound.into()));
        let address =
            resolved.map_err(|error| ConnectionError::Resolve { address: self.config.address.clone(), error: Arc::new(error) })?;
        let stream = connect(address, self.config.connect_timeout).await?;
        self.bootstrap.set(Some(address));
        let mut line = Line { stream, session: Session::new(self.config.links.session.clone(), Instant::now()) };
        line.exchange(&self.config, Op::Hello).await?;
        Ok(line)
    }

    /// What the broker said to the hello: its version and limits. Errors: `Connection`.
    pub async fn hello(&self) -> Result<HelloReply, CallError> {
        let known = self.line.borrow().as_ref().and_then(|line| line.session.hello().cloned());
        if let Some(known) = known {
            return Ok(known);
        }
        let line = self.open().await?;
        let hello = line.session.hello().cloned();
        self.line.replace(Some(line));
        hello.ok_or(CallError::Connection(ConnectionError::Closed))
    }

    /// Sends one request and waits for its answer. Asked again once over a new connection if the old one breaks
    /// and asking twice does no harm.
    ///
    /// Errors: see [`CallError`].
    pub async fn call<R: Call>(&self, request: &R) -> Result<R::Answer, CallError> {
        let mut body = Vec::new();
        request.encode(&mut body);
        loop {
            let kept = self.line.borrow_mut().take();
            let (mut line, fresh) = match kept {
                Some(line) => (line, false),
                None => (self.open().await?, true),
            };
            line.session.request(R::OP, (), Instant::now(), Duration::ZERO, &body);
            match line.exchange(&self.config, R::OP).await {
                Err(CallError::Connection(_)) if R::REPEATABLE && !fresh => {}
                Err(error @ (CallError::Connection(_) | CallError::TimedOut { .. })) => return Err(error),
                result => {
                    self.line.replace(Some(line));
                    return R::decode(&result?).map_err(|error| CallError::Malformed { op: R::OP, error });
                }
            }
        }
    }

    async_calls!();

    async fn bootstrap(&self) -> Result<SocketAddr, CallError> {
        self.hello().await?;
        self.bootstrap.get().ok_or(CallError::Connection(ConnectionError::Closed))
    }

    /// A producer for one topic, sending from tasks of this core. Errors: `UnknownTopic`, `Connection`, `Broker`.
    pub async fn producer(&self, topic: &str, config: ProducerConfig) -> Result<Producer, CallError> {
        self.producer_with(topic, config, |_| {}).await
    }

    /// A producer that calls `on_delivery` for every batch, in order per partition, in its task: whatever it does
    /// delays the sending. It must not use the producer itself.
    ///
    /// Errors: as [`Client::producer`].
    pub async fn producer_with(
        &self,
        topic: &str,
        config: ProducerConfig,
        on_delivery: impl FnMut(&Delivery) + 'static,
    ) -> Result<Producer, CallError> {
        let map = self.topic_map(topic).await?;
        let grant = if config.idempotent { Some(self.init_producer().await?) } else { None };
        let mut machine = ProducerMachine::new(config, map, grant);
        machine.limit_request_bytes(self.hello().await?.max_request_bytes);
        let hub = Hub::new(machine, self.bootstrap().await?, self.config.connect_timeout);
        let desk = Rc::new(Desk { awaited: RefCell::default(), on_delivery: RefCell::new(Box::new(on_delivery)) });
        let for_task = Rc::clone(&desk);
        ::monoio::spawn(drive(Rc::clone(&hub), move |hub| for_task.deliver(hub)));
        Ok(Producer { hub, desk })
    }

    /// A consumer of one topic. Errors: see [`OpenConsumerError`].
    pub async fn consumer(&self, topic: &str, config: ConsumerConfig) -> Result<Consumer, OpenConsumerError> {
        let commit_timeout = config.links.session.request_timeout;
        let machine = ConsumerMachine::new(config, self.topic_map(topic).await?).map_err(OpenConsumerError::Consume)?;
        let hub = Hub::new(machine, self.bootstrap().await?, self.config.connect_timeout);
        ::monoio::spawn(drive(Rc::clone(&hub), |_| {}));
        Ok(Consumer { hub, commit_timeout })
    }
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectionError> {
    let connected: io::Result<TcpStream> =
        timeout(limit, TcpStream::connect_addr(address)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    let stream = connected.map_err(|error| ConnectionError::Connect { address, error: Arc::new(error) })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Line {
    /// Sends what is queued and waits for one answer; its body (of a hello: nothing).
    async fn exchange(&mut self, config: &ClientConfig, op: Op) -> Result<Vec<u8>, CallError> {
        let after = config.links.session.request_timeout;
        timeout(after, self.exchange_without_end()).await.unwrap_or(Err(CallError::TimedOut { op, after }))
    }

    async fn exchange_without_end(&mut self) -> Result<Vec<u8>, CallError> {
        let mut out = Vec::new();
        while self.session.poll_transmit(&mut out) {}
        self.stream.write_all(out).await.0.map_err(ConnectionError::from)?;
        let mut buffer = vec![0; CALL_READ_BYTES];
        loop {
            match self.session.poll_event().map_err(ConnectionError::Session)? {
                Some(Event::Reply(reply)) => return Ok(reply.result?.into_vec()),
                Some(Event::Ready(_)) => return Ok(Vec::new()),
                Some(Event::FetchHead { .. }) => continue,
                None => {}
            }
            let (read, returned) = self.stream.read(buffer).await;
            buffer = returned;
            match read.map_err(ConnectionError::from)? {
                0 => return Err(CallError::Connection(ConnectionError::Closed)),
                n => self.session.receive(&buffer[..n]),
            }
        }
    }
}

/// Wakes the local tasks that wait for it; remembers one signal nobody waited for.
#[derive(Default)]
struct Signal {
    raised: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    fn raise(&self) {
        self.raised.set(true);
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Until the next signal, or one that came since the last wait.
    fn wait(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            if self.raised.take() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

/// One state machine and its connections' tasks.
struct Hub<M> {
    machine: RefCell<M>,
    bootstrap: SocketAddr,
    connect_timeout: Duration,
    /// The connections in force; a task whose number is another's has been given up.
    connections: RefCell<BTreeMap<u16, Connection>>,
    next_number: Cell<u64>,
    /// For the driving task: something came, or was added.
    stirred: Signal,
    /// For the owner: look at the machine again.
    changed: Signal,
    stop: Cell<bool>,
    /// Rounds of the driving task so far.
    #[cfg(test)]
    turns: Cell<u64>,
}

struct Connection {
    number: u64,
    /// For its writing task.
    writable: Rc<Signal>,
    canceller: Canceller,
}

impl<M: Machine + 'static> Hub<M> {
    fn new(machine: M, bootstrap: SocketAddr, connect_timeout: Duration) -> Rc<Hub<M>> {
        Rc::new(Hub {
            machine: RefCell::new(machine),
            bootstrap,
            connect_timeout,
            connections: RefCell::default(),
            next_number: Cell::new(0),
            stirred: Signal::default(),
            changed: Signal::default(),
            stop: Cell::new(false),
            #[cfg(test)]
            turns: Cell::new(0),
        })
    }

    fn is_current(&self, port: u16, number: u64) -> bool {
        self.connections.borrow().get(&port).is_some_and(|connection| connection.number == number)
    }

    /// Lets the tasks do what can be done, and waits for more until then at the latest.
    async fn wait(&self, until: Instant) {
        let mut has_yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut has_yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            // Over or not, the caller looks again.
            let _ = timeout(left, self.changed.wait()).await;
        }
    }

    /// Ends the tasks of a connection.
    fn close(&self, port: u16) {
        if let Some(connection) = self.connections.borrow_mut().remove(&port) {
            connection.canceller.cancel();
            connection.writable.raise();
        }
    }

    fn lost(&self, port: u16, number: u64, error: ConnectionError) {
        if self.is_current(port, number) {
            self.close(port);
            self.machine.borrow_mut().disconnected(port, error, Instant::now());
            self.stirred.raise();
        }
    }

    fn open(self: &Rc<Self>, port: u16) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let (writable, canceller) = (Rc::<Signal>::default(), Canceller::new());
        self.connections.borrow_mut().insert(port, Connection { number, writable: Rc::clone(&writable), canceller });
        let hub = Rc::clone(self);
        ::monoio::spawn(async move {
            if let Err(error) = hub.connection(port, number, &writable).await {
                hub.lost(port, number, error);
            }
        });
    }

    /// Connects, starts the reading task, then writes until the connection ends.
    async fn connection(self: &Rc<Self>, port: u16, number: u64, writable: &Signal) -> Result<(), ConnectionError> {
        let address = SocketAddr::new(self.bootstrap.ip(), if port == 0 { self.bootstrap.port() } else { port });
        let stream = connect(address, self.connect_timeout).await?;
        let handle = self.connections.borrow().get(&port).filter(|c| c.number == number).map(|c| c.canceller.handle());
        let Some(handle) = handle else { return Ok(()) };
        self.machine.borrow_mut().connected(port, Instant::now());
        self.stirred.raise();
        let (mut reader, mut writer) = stream.into_split();
        let hub = Rc::clone(self);
        ::monoio::spawn(async move {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let (read, returned) = reader.cancelable_read(buffer, handle.clone()).await;
                buffer = returned;
                if !hub.is_current(port, number) {
                    return;
                }
                match read {
                    Ok(0) => return hub.lost(port, number, ConnectionError::Closed),
                    Ok(n) => {
                        hub.machine.borrow_mut().receive(port, &buffer[..n], Instant::now());
                        hub.stirred.raise();
                    }
                    Err(error) => return hub.lost(port, number, error.into()),
                }
            }
        });
        let mut out = Vec::new();
        while self.is_current(port, number) {
            out.clear();
            if self.machine.borrow_mut().transmit(port, Instant::now(), &mut out) {
                let (written, returned) = writer.write_all(out).await;
                written?;
                out = returned;
            } else {
                writable.wait().await;
            }
        }
        Ok(())
    }
}

/// Runs the machine until its owner is gone: what is due, connections, and waking those who may have work now.
async fn drive<M: Machine + 'static>(hub: Rc<Hub<M>>, mut look: impl FnMut(&Hub<M>)) {
    while !hub.stop.get() {
        #[cfg(test)]
        hub.turns.set(hub.turns.get() + 1);
        let now = Instant::now();
        hub.machine.borrow_mut().handle_timeout(now);
        loop {
            let action = hub.machine.borrow_mut().poll_action(now);
            match action {
                Some(Action::Connect { port }) => hub.open(port),
                Some(Action::Close { port }) => hub.close(port),
                None => break,
            }
        }
        let writers: Vec<Rc<Signal>> = hub.connections.borrow().values().map(|connection| Rc::clone(&connection.writable)).collect();
        writers.iter().for_each(|writable| writable.raise());
        look(&hub);
        hub.changed.raise();
        let deadline = hub.machine.borrow().poll_timeout();
        match deadline {
            // Over or not, the loop looks at everything.
            Some(at) => drop(timeout(at.saturating_duration_since(Instant::now()), hub.stirred.wait()).await),
            None => hub.stirred.wait().await,
        }
    }
    let ports: Vec<u16> = hub.connections.borrow().keys().copied().collect();
    ports.into_iter().for_each(|port| hub.close(port));
}

type OnDelivery = Box<dyn FnMut(&Delivery)>;

/// What a producer's owner and its task share besides the machine.
struct Desk {
    /// Receipts somebody waits for, and what became of them.
    awaited: RefCell<Vec<(Receipt, Option<Delivery>)>>,
    on_delivery: RefCell<OnDelivery>,
}

impl Desk {
    fn deliver(&self, hub: &Hub<ProducerMachine>) {
        loop {
            let delivery = hub.machine.borrow_mut().poll_delivery();
            let Some(delivery) = delivery else { return };
            for (_, result) in self.awaited.borrow_mut().iter_mut().filter(|(receipt, _)| delivery.covers(*receipt)) {
                *result = Some(delivery.clone());
            }
            (self.on_delivery.borrow_mut())(&delivery);
        }
    }
}

/// Sends records to one topic. Its tasks gather, send and repeat; see [`ProducerConfig`] for the knobs.
///
/// Dropping it gives up what isn't acknowledged; call [`Producer::flush`] before.
pub struct Producer {
    hub: Rc<Hub<ProducerMachine>>,
    desk: Rc<Desk>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.hub.machine.borrow().topic().name).finish_non_exhaustive()
    }
}

impl Producer {
    /// Takes a record into the buffer; waits while that is full. Not acknowledged when this returns: the receipt names
    /// the record in its delivery, and [`Producer::flush`] waits for all. Dropped while waiting: nothing was taken.
    ///
    /// Errors: `RecordTooLarge`, `NoSuchPartition` (nothing of it is sent), `Ended`.
    pub async fn send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        loop {
            match self.try_send(record) {
                Err(SendError::BufferFull { .. }) => self.hub.changed.wait().await,
                result => return result,
            }
        }
    }

    /// Like [`Producer::send`], but `BufferFull` instead of waiting.
    pub fn try_send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        let result = self.hub.machine.borrow_mut().send(record, Instant::now(), wall_ms());
        if !matches!(&result, Ok(accepted) if accepted.look_at.is_none()) {
            self.hub.stirred.raise();
        }
        result.map(|accepted| accepted.receipt)
    }

    /// Sends a record without linger and waits until it is acknowledged; its delivery, see [`Delivery::offset_of`].
    ///
    /// Errors: as [`Producer::send`]; a record that was taken and not acknowledged is an `Err` in the delivery.
    pub async fn send_and_wait(&mut self, record: Record<'_>) -> Result<(Receipt, Delivery), SendError> {
        let receipt = self.send(record).await?;
        self.desk.awaited.borrow_mut().retain(|(_, delivery)| delivery.is_none());
        self.desk.awaited.borrow_mut().push((receipt, None));
        self.hub.machine.borrow_mut().begin_flush();
        self.hub.stirred.raise();
        loop {
            let found = {
                let mut awaited = self.desk.awaited.borrow_mut();
                let at = awaited.iter().position(|(waiting, delivery)| *waiting == receipt && delivery.is_some());
                at.and_then(|at| awaited.swap_remove(at).1)
            };
            match found {
                Some(delivery) => return Ok((receipt, delivery)),
                None => self.hub.changed.wait().await,
            }
        }
    }

    /// Sends everything at once and waits until nothing is open, callbacks included. Acknowledged as durably as the
    /// topic asks when this returns `Ok`.
    ///
    /// Errors: records since the last flush that weren't acknowledged.
    pub async fn flush(&mut self) -> Result<(), FlushError> {
        self.hub.machine.borrow_mut().begin_flush();
        self.hub.stirred.raise();
        loop {
            let open = {
                let machine = self.hub.machine.borrow();
                machine.open_records() > 0 || machine.has_deliveries()
            };
            if !open {
                return self.hub.machine.borrow_mut().take_failures();
            }
            self.hub.changed.wait().await;
        }
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.hub.machine.borrow().acknowledged_records()
    }

    /// Of them, those that found a queue full, which passes them on to the topic that it redirects to.
    pub fn redirected(&self) -> u64 {
        self.hub.machine.borrow().redirected_records()
    }

    /// Records taken and neither acknowledged nor given up.
    pub fn open_records(&self) -> u64 {
        self.hub.machine.borrow().open_records()
    }

    /// Number of partitions of the topic, as known now.
    pub fn partition_count(&self) -> u32 {
        self.hub.machine.borrow().topic().partitions.len() as u32
    }

    /// Why the producer ended, if it did.
    pub fn ended(&self) -> Option<ProducerEnd> {
        self.hub.machine.borrow().ended().cloned()
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<ConnectionError> {
        self.hub.machine.borrow().connection_problem().cloned()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.hub.stop.set(true);
        self.hub.stirred.raise();
    }
}

/// Reads one topic. Its tasks fetch ahead while the caller works.
pub struct Consumer {
    hub: Rc<Hub<ConsumerMachine>>,
    commit_timeout: Duration,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("machine", &self.hub.machine.borrow()).finish_non_exhaustive()
    }
}

impl Consumer {
    /// The next records of some partition; waits at most `timeout`. `None` = nothing came in time, which includes
    /// that there is no connection at the moment ([`Consumer::connection_problem`]). Dropped while waiting: nothing is lost.
    ///
    /// Errors: see [`ConsumeError`]; polling again goes on.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Option<RecordBatch>, ConsumeError> {
        let deadline = Instant::now() + timeout;
        // Another try after an error: the task may have something to ask for.
        self.hub.stirred.raise();
        loop {
            let freed = self.hub.machine.borrow().has_arrivals();
            let batch = self.hub.machine.borrow_mut().poll_batch()?;
            if freed {
                // Room in the budget. Not raised otherwise: the task answers every turn of its own with a signal.
                self.hub.stirred.raise();
            }
            if batch.is_some() {
                return Ok(batch);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left).await;
        }
    }

    async fn wait(&self, limit: Duration) {
        // Over or not, the caller looks again.
        let _ = timeout(limit, self.hub.changed.wait()).await;
    }

    /// Takes back the memory of a batch that was read; optional, spares an allocation per fetch.
    pub fn recycle(&mut self, batch: RecordBatch) {
        self.hub.machine.borrow_mut().recycle(batch);
    }

    /// Commits where this consumer is: every record of every batch that [`Consumer::poll`] returned counts as done.
    /// Durable when this returns.
    ///
    /// Errors: `NoName`, `Broker`, `CommitTimedOut`.
    pub async fn commit(&mut self) -> Result<(), ConsumeError> {
        self.hub.machine.borrow_mut().begin_commit()?;
        self.hub.stirred.raise();
        let deadline = Instant::now() + self.commit_timeout;
        while self.hub.machine.borrow().commits_open() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut machine = self.hub.machine.borrow_mut();
                machine.abandon_commits();
                let last_problem = machine.connection_problem().map(ToString::to_string);
                return Err(ConsumeError::CommitTimedOut { after: self.commit_timeout, last_problem });
            }
            self.wait(left).await;
        }
        self.hub.machine.borrow_mut().take_commit_error().map_or(Ok(()), Err)
    }

    /// Goes on at `offset` in one partition. Errors: `NoSuchPartition`.
    pub fn seek(&mut self, partition_index: u32, offset: u64) -> Result<(), ConsumeError> {
        let result = self.hub.machine.borrow_mut().seek(partition_index, offset);
        self.hub.stirred.raise();
        result
    }

    /// Where this consumer is, per partition it reads.
    pub fn positions(&self) -> Vec<Position> {
        self.hub.machine.borrow().positions().collect()
    }

    /// Whether every partition was read up to the high watermark that its last answer named. Never true before the
    /// first answer of every partition.
    pub fn at_end(&self) -> bool {
        self.hub.machine.borrow().at_end()
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<ConnectionError> {
        self.hub.machine.borrow().connection_problem().cloned()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.hub.stop.set(true);
        self.hub.stirred.raise();
    }
}

const CALL_READ_BYTES: usize = 16 << 10;
const READ_BYTES: usize = 256 << 10;

mod queue;
#[cfg(test)]
mod tests;
mod transaction;
