//! The load generator: one thread, non-blocking sockets, epoll, prebuilt requests.
//!
//! It has to outrun the broker on one core, so nothing here allocates, formats or locks per message: requests
//! are stamped in place and written from where they were built, replies are read where they were received,
//! and a message costs its stamp, its checksum and its share of two system calls.

mod consume;
mod ping;
mod produce;
mod queue;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_tcp_congestion;

pub use consume::ConsumeLoad;
pub use ping::ping;
pub use produce::ProduceLoad;
pub use queue::QueueLoad;

use crate::broker::Meter;
use crate::control::Control;
use crate::histogram::{Recorder, Recording};
use consume::Consumer;
use produce::{Group, Producer};
use queue::{QueueConsumer, Seen};

/// Without any progress for so long the broker is taken for hung.
const PATIENCE_NS: u64 = 30_000_000_000;
/// After the last acknowledgement a consumer gets so long to receive the rest.
const LAST_MESSAGES_NS: u64 = 10_000_000_000;
/// Nobody sleeps longer than this: the window's edges have to be seen.
const LONGEST_SLEEP_NS: u64 = 20_000_000;
/// A wait shorter than this is spun: a sleeping thread wakes some 60 µs late.
const SHORTEST_SLEEP_NS: u64 = 150_000;
/// Where the load has a core of its own, it looks for replies so long before it sleeps.
const SPIN_NS: u64 = 60_000;

/// One partition under load.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its number, from the metadata.
    pub number: u32,
    /// Port of the core that owns it.
    pub port: u16,
    /// First offset to read.
    pub start: u64,
    /// The end before the run: the first offset a batch will get, the end of what can be read.
    pub end: u64,
}

/// How long a run takes.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// Before the window opens.
    pub warmup: Duration,
    /// Of the window, unless `count` is given.
    pub duration: Duration,
    /// Closes the window after so many messages.
    pub count: Option<u64>,
}

impl Length {
    /// What to prepare histograms for.
    fn expected(&self) -> Duration {
        if self.count.is_some() { Duration::from_secs(30) } else { self.duration }
    }
}

/// How the measured connections reach the broker.
#[derive(Clone, Debug)]
pub struct Door {
    /// Its host.
    pub host: IpAddr,
    /// TCP congestion control of the load's side; `None` = the kernel's default.
    pub congestion: Option<String>,
}

impl Door {
    /// A connection that has said hello.
    fn connect(&self, port: u16) -> Result<TcpStream> {
        let stream = Control::connect(SocketAddr::new(self.host, port))?.into_stream();
        if let Some(name) = &self.congestion {
            set_tcp_congestion(&stream, name).with_context(|| format!("TCP congestion control '{name}' is not to be had here"))?;
        }
        Ok(stream)
    }
}

/// What goes on in one run.
#[derive(Debug)]
pub struct Load<'a> {
    /// How to reach the broker.
    pub door: Door,
    /// The measured producers, then any in the background.
    pub produce: Vec<ProduceLoad>,
    /// The consumers.
    pub consume: Option<ConsumeLoad>,
    /// Consumers of a queue over what is produced.
    pub queue: Option<QueueLoad>,
    /// How long.
    pub length: Length,
    /// Broker's and own CPU time and memory.
    pub meter: Meter,
    /// Told how far it is; may interrupt.
    pub progress: &'a Arc<Progress>,
}

/// How far a run is, for a progress bar on another thread; and the way to stop it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages since the window opened.
    pub messages: AtomicU64,
    /// ns since the run began.
    pub elapsed_ns: AtomicU64,
    /// Set this and the run ends with an error.
    pub interrupted: Arc<AtomicBool>,
}

/// What a run measured.
#[derive(Debug)]
pub struct Measured {
    /// Messages within the window.
    pub messages: u64,
    /// Their payload bytes.
    pub payload_bytes: u64,
    /// Length of the window.
    pub window: Duration,
    /// Latencies and curves.
    pub recording: Recording,
    /// When the window opened.
    pub opened: SystemTime,
    /// CPU time within the window; `None` = unknown.
    pub broker_cpu: Option<Duration>,
    /// CPU time of this process within the window.
    pub client_cpu: Duration,
    /// Largest resident size seen within the window.
    pub broker_rss_bytes: Option<u64>,
    /// Acknowledged in the whole run, by group of producers, by partition.
    pub acknowledged: Vec<Vec<u64>>,
    /// Payload bytes acknowledged in the whole run, all producers.
    pub acknowledged_bytes: u64,
    /// Messages acknowledged within the window, by group.
    pub acknowledged_in_window: Vec<u64>,
    /// What was wrong.
    pub faults: Faults,
}

/// What was wrong with the answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How many faults.
    pub count: u64,
    /// The first, for people.
    pub first: Option<String>,
}

impl Faults {
    /// Notes a fault; only the first is put into words.
    #[cold]
    pub fn note(&mut self, words: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(words());
        }
    }
}

/// The run's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    start_ms: i64,
}

impl Clock {
    fn new() -> Clock {
        let start_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        Clock { start: Instant::now(), start_ms }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn unix_ms(&self, now_ns: u64) -> i64 {
        self.start_ms + (now_ns / 1_000_000) as i64
    }
}

/// The stretch of time that counts.
#[derive(Debug)]
struct Window {
    open_at_ns: u64,
    close_at_ns: u64,
    count: Option<u64>,
    opened_ns: Option<u64>,
    closed_ns: Option<u64>,
    messages: u64,
    payload_bytes: u64,
}

impl Window {
    fn new(length: &Length) -> Window {
        let open_at_ns = length.warmup.as_nanos() as u64;
        let close_at_ns = if length.count.is_some() { u64::MAX } else { open_at_ns + length.duration.as_nanos() as u64 };
        Window { open_at_ns, close_at_ns, count: length.count, opened_ns: None, closed_ns: None, messages: 0, payload_bytes: 0 }
    }

    fn is_open(&self, now_ns: u64) -> bool {
        self.opened_ns.is_some() && self.closed_ns.is_none() && now_ns < self.close_at_ns
    }
}

/// CPU times at an edge of the window.
#[derive(Clone, Copy, Debug)]
struct Edge {
    broker_cpu: Option<Duration>,
    client_cpu: Duration,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    epoll: OwnedFd,
    /// Busy waiting before each sleep: 0 where load and broker share a core.
    spin_ns: u64,
    window: Window,
    recorder: Recorder,
    faults: Faults,
    /// Of a queue: what was delivered, how much was acknowledged, and how much may be published and not acknowledged.
    seen: Seen,
    acknowledged: u64,
    backlog: u64,
    longest_delay_ns: u64,
    /// Nothing new is asked for; what is under way may end.
    stopping: bool,
    last_progress_ns: u64,
}

impl Shared {
    /// `messages` of `payload_bytes` count as done now.
    fn count(&mut self, now_ns: u64, messages: u64, payload_bytes: u64) {
        self.last_progress_ns = now_ns;
        if self.window.is_open(now_ns) {
            self.window.messages += messages;
            self.window.payload_bytes += payload_bytes;
            self.recorder.count(messages);
        }
    }

    fn watch(&self, stream: &TcpStream, token: u64, writable: bool) -> Result<()> {
        let flags = if writable { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        Ok(epoll::modify(&self.epoll, stream, epoll::EventData::new_u64(token), flags)?)
    }
}

/// Runs a load to its end.
pub fn run(load: Load<'_>) -> Result<Measured> {
    let mut engine = Engine::new(load)?;
    engine.run()?;
    engine.finish()
}

struct Engine<'a> {
    shared: Shared,
    groups: Vec<Group>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    queue_consumers: Vec<QueueConsumer>,
    /// Messages count when they are received, not when they are acknowledged.
    counts_received: bool,
    /// The consumers follow the producers and must receive all of it.
    follows: bool,
    meter: Meter,
    progress: &'a Arc<Progress>,
    opened: SystemTime,
    at_open: Option<Edge>,
    at_close: Option<Edge>,
    drained_ns: Option<u64>,
}

impl<'a> Engine<'a> {
    fn new(load: Load<'a>) -> Result<Engine<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let follows = load.queue.is_some() || load.consume.as_ref().is_some_and(|c| c.follows);
        let counts_received = load.consume.is_some() || load.queue.is_some();
        let recorder = Recorder::new(load.length.expected());
        let mut producers = Vec::new();
        let mut groups = Vec::new();
        let mut consumers = Vec::new();
        // Connecting takes a while; the clock starts when all are there.
        for (index, plan) in load.produce.into_iter().enumerate() {
            let recorded = index == 0 && !counts_received;
            let mut group = Group::new(plan, recorded, &load.length);
            for (assignment, writer) in group.assignments().into_iter().zip(0_u16..) {
                let stream = connect(&load.door, assignment.port, &epoll, producers.len() as u64)?;
                producers.push(Producer::new(stream, producers.len() as u64, index, writer, &mut group, assignment));
            }
            groups.push(group);
        }
        if let Some(plan) = load.consume {
            for assignment in plan.assignments() {
                let token = (producers.len() + consumers.len()) as u64;
                let stream = connect(&load.door, assignment.port, &epoll, token)?;
                consumers.push(Consumer::new(stream, token, &plan, assignment));
            }
        }
        let (seen, backlog) = load.queue.as_ref().map_or((Seen::default(), u64::MAX), |plan| (Seen::new(plan), plan.backlog()));
        let longest_delay_ns = load.queue.as_ref().map_or(0, |plan| plan.longest_delay_ms * 1_000_000);
        let mut queue_consumers = Vec::new();
        if let Some(plan) = load.queue {
            for assignment in plan.assignments() {
                let token = (producers.len() + consumers.len() + queue_consumers.len()) as u64;
                let stream = connect(&load.door, assignment.port, &epoll, token)?;
                queue_consumers.push(QueueConsumer::new(stream, token, &plan, assignment));
            }
        }
        let clock = Clock::new();
        let shared = Shared {
            clock,
            epoll,
            spin_ns: if has_several_cpus() { SPIN_NS } else { 0 },
            window: Window::new(&load.length),
            recorder,
            faults: Faults::default(),
            seen,
            acknowledged: 0,
            backlog,
            longest_delay_ns,
            stopping: false,
            last_progress_ns: 0,
        };
        for producer in &mut producers {
            producer.start(&groups[producer.group], &load.length);
        }
        Ok(Engine {
            shared,
            groups,
            producers,
            consumers,
            queue_consumers,
            counts_received,
            follows,
            meter: load.meter,
            progress: load.progress,
            opened: SystemTime::now(),
            at_open: None,
            at_close: None,
            drained_ns: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events: Vec<epoll::Event> =
            Vec::with_capacity(self.producers.len() + self.consumers.len() + self.queue_consumers.len() + 1);
        let paced: Vec<usize> = (0..self.producers.len()).filter(|i| self.producers[*i].is_paced()).collect();
        self.edges(0);
        for producer in &mut self.producers {
            producer.pump(&mut self.groups[producer.group], &mut self.shared, 0)?;
        }
        for consumer in &mut self.consumers {
            consumer.ask(&mut self.shared, 0)?;
        }
        for consumer in &mut self.queue_consumers {
            consumer.ask(&self.shared)?;
        }
        loop {
            let now_ns = self.shared.clock.now_ns();
            self.edges(now_ns);
            if self.is_finished(now_ns)? {
                return Ok(());
            }
            let mut wake_ns = u64::MAX;
            for index in &paced {
                let producer = &mut self.producers[*index];
                wake_ns = wake_ns.min(producer.pump(&mut self.groups[producer.group], &mut self.shared, now_ns)?);
            }
            self.wait(wake_ns, &mut events)?;
            for event in &events {
                let (token, flags) = (event.data.u64() as usize, event.flags);
                let readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                if let Some(producer) = self.producers.get_mut(token) {
                    let group = &mut self.groups[producer.group];
                    if readable {
                        producer.receive(group, &mut self.shared)?;
                    }
                    let now_ns = self.shared.clock.now_ns();
                    producer.pump(group, &mut self.shared, now_ns)?;
                } else if let Some(consumer) = self.consumers.get_mut(token - self.producers.len()) {
                    if readable {
                        consumer.receive(&mut self.shared)?;
                    } else {
                        consumer.flush(&self.shared)?;
                    }
                } else {
                    let consumer = &mut self.queue_consumers[token - self.producers.len() - self.consumers.len()];
                    let before = self.shared.acknowledged;
                    if readable {
                        consumer.receive(&mut self.shared)?;
                    } else {
                        consumer.flush(&self.shared)?;
                    }
                    if self.shared.acknowledged > before {
                        // There is room in the backlog.
                        let now_ns = self.shared.clock.now_ns();
                        for producer in &mut self.producers {
                            producer.pump(&mut self.groups[producer.group], &mut self.shared, now_ns)?;
                        }
                    }
                }
            }
        }
    }

    /// Looks for events without sleeping, for a short while: a load that sleeps between replies makes the broker pay
    /// for waking it. `true` = `events` has some.
    fn spin(&self, wake_ns: u64, events: &mut Vec<epoll::Event>) -> Result<bool> {
        let until_ns = wake_ns.min(self.shared.clock.now_ns() + self.shared.spin_ns);
        while self.shared.clock.now_ns() < until_ns {
            events.clear();
            ignore_interrupt(epoll::wait(&self.shared.epoll, spare_capacity(events), Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
            if !events.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fills `events`; returns when there are some, or a little before `wake_ns`.
    fn wait(&self, wake_ns: u64, events: &mut Vec<epoll::Event>) -> Result<()> {
        if self.spin(wake_ns, events)? {
            return Ok(());
        }
        let sleep_ns = wake_ns.saturating_sub(self.shared.clock.now_ns());
        if sleep_ns > SHORTEST_SLEEP_NS {
            // Waiting for the set itself is exact to the ns; the wait below rounds up to whole ms.
            let timeout = Timespec { tv_sec: 0, tv_nsec: (sleep_ns - SHORTEST_SLEEP_NS / 2).min(LONGEST_SLEEP_NS) as i64 };
            if wake_ns != u64::MAX {
                ignore_interrupt(poll(&mut [PollFd::new(&self.shared.epoll, PollFlags::IN)], Some(&timeout)))?;
            }
        }
        let timeout_ns = if wake_ns == u64::MAX { LONGEST_SLEEP_NS as i64 } else { 0 };
        events.clear();
        ignore_interrupt(epoll::wait(&self.shared.epoll, spare_capacity(events), Some(&Timespec { tv_sec: 0, tv_nsec: timeout_ns })))
    }

    /// Opens and closes the window when its time has come, and tells how far the run is.
    fn edges(&mut self, now_ns: u64) {
        let window = &mut self.shared.window;
        if window.opened_ns.is_none() && now_ns >= window.open_at_ns {
            window.opened_ns = Some(now_ns);
            if window.close_at_ns != u64::MAX {
                window.close_at_ns = now_ns + (window.close_at_ns - window.open_at_ns);
            }
            self.opened = SystemTime::now();
            self.at_open = Some(self.meter.edge());
            self.shared.recorder.open(now_ns);
            if !self.counts_received {
                self.groups[0].open_window(window.count);
            }
        }
        if window.opened_ns.is_some() && window.closed_ns.is_none() {
            self.shared.recorder.tick(now_ns);
            let counted = window.count.is_some_and(|count| window.messages >= count);
            if counted || now_ns >= window.close_at_ns {
                window.closed_ns = Some(now_ns.min(window.close_at_ns));
                self.at_close = Some(self.meter.edge());
                self.shared.stopping = true;
            }
        }
        self.progress.messages.store(window.messages, Ordering::Relaxed);
        self.progress.elapsed_ns.store(now_ns, Ordering::Relaxed);
    }

    fn is_finished(&mut self, now_ns: u64) -> Result<bool> {
        if self.progress.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if now_ns.saturating_sub(self.shared.last_progress_ns) > PATIENCE_NS {
            let unanswered: u64 = self.producers.iter().map(Producer::unanswered).sum();
            self.shared.faults.note(|| format!("no progress for {} s; {unanswered} messages are unanswered", PATIENCE_NS / 1_000_000_000));
            if self.shared.window.opened_ns.is_none() {
                bail!("the broker acknowledged and delivered nothing for {} s", PATIENCE_NS / 1_000_000_000);
            }
            return Ok(true);
        }
        if self.shared.window.closed_ns.is_none() || !self.producers.iter().all(|p| p.is_idle(&self.groups[p.group], &self.shared)) {
            return Ok(false);
        }
        if !self.follows {
            return Ok(true);
        }
        let received: u64 = self.consumers.iter().map(Consumer::received).sum::<u64>()
            + self.queue_consumers.iter().map(QueueConsumer::acknowledged).sum::<u64>();
        let acknowledged: u64 = self.groups.iter().flat_map(|g| g.acknowledged.iter()).sum();
        let drained_ns = *self.drained_ns.get_or_insert(now_ns);
        if received < acknowledged && now_ns - drained_ns > LAST_MESSAGES_NS + self.shared.longest_delay_ns {
            self.shared.faults.note(|| format!("{acknowledged} messages were acknowledged and {received} received"));
            return Ok(true);
        }
        if received > acknowledged {
            self.shared.faults.note(|| format!("{acknowledged} messages were acknowledged and {received} received"));
        }
        Ok(received >= acknowledged)
    }

    fn finish(self) -> Result<Measured> {
        let window = self.shared.window;
        let (Some(opened_ns), Some(at_open)) = (window.opened_ns, self.at_open) else { bail!("the run ended before its window opened") };
        let closed_ns = window.closed_ns.unwrap_or(self.shared.last_progress_ns.max(opened_ns));
        let at_close = self.at_close.unwrap_or_else(|| self.meter.edge());
        Ok(Measured {
            messages: window.messages,
            payload_bytes: window.payload_bytes,
            window: Duration::from_nanos(closed_ns - opened_ns),
            recording: self.shared.recorder.finish(closed_ns),
            opened: self.opened,
            broker_cpu: at_open.broker_cpu.zip(at_close.broker_cpu).map(|(a, b)| b.saturating_sub(a)),
            client_cpu: at_close.client_cpu.saturating_sub(at_open.client_cpu),
            broker_rss_bytes: self.meter.rss_bytes(),
            acknowledged_bytes: self.groups.iter().map(|g| g.acknowledged_bytes).sum(),
            acknowledged_in_window: self.groups.iter().map(|g| g.acknowledged_in_window).collect(),
            acknowledged: self.groups.into_iter().map(|g| g.acknowledged).collect(),
            faults: self.shared.faults,
        })
    }
}

/// A signal that arrives while waiting is no error: the flag it sets is looked at in every turn.
fn ignore_interrupt(result: rustix::io::Result<usize>) -> Result<()> {
    match result {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Meter {
    fn edge(&self) -> Edge {
        Edge { broker_cpu: self.broker_cpu(), client_cpu: crate::broker::own_cpu() }
    }
}

/// A connection that has said hello, non-blocking and in the set.
fn connect(door: &Door, port: u16, epoll: &OwnedFd, token: u64) -> Result<TcpStream> {
    let stream = door.connect(port)?;
    stream.set_nonblocking(true)?;
    epoll::add(epoll, &stream, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
    Ok(stream)
}

/// Whether this machine has more than one processor, whatever this thread is pinned to.
fn has_several_cpus() -> bool {
    std::fs::read_to_string("/sys/devices/system/cpu/online").is_ok_and(|online| online.trim() != "0")
}
