//! One core thread: its connections, its router, and the order in which they work.
//!
//! ```text
//! reader tasks:  readable ─▶ recv ─▶ session.receive ─▶ router.submit ──┐ (as many as are ready)
//! turn task:     mailboxes and disk ─▶ shards work ─▶ replies ─▶ outboxes ─▶ send      ◀──┘ once for all of them
//! writer tasks:  only while a socket is full: writable ─▶ send
//! wake task:     the wake descriptor (log ring, mailboxes, janitor, admin, signals) ─▶ turn
//! timer task:    the earliest deadline ─▶ turn
//! ```
//! Everything between two waits is synchronous, on one [`Core`] borrowed once; nothing is borrowed over a wait.
//! Each of these steps ends within [`STEP_US`] or so and leaves the rest to the next turn.
//!
//! The turn never wakes itself (see `net::runtime`): a relay task does it when there is a backlog.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringmain_wire::control::Cleanup;
use ringmain_wire::{ErrorCode, Frame};

use super::connection::{
    BASE_BYTES, Budget, Connection, ConnectionId, Ending, Filled, INTRODUCTION_BYTES, Input, OUTBOX_FULL_BYTES, Output, Pause, READ_BYTES,
    Sent, Spares, Stalled,
};
use super::runtime::{self, Readiness, Signal};
use crate::device::wake::Waker;
use crate::frontend::{Piece, Received, Session, View};
use crate::request::{FetchData, Now, Origin, Reply, Request};
use crate::router::letter::OwnedRequest;
use crate::router::{Delivery, Router};

/// A step that has taken so long leaves the rest to the next turn; what it does between two looks at the clock
/// fits into the 250 µs that a turn may take.
const STEP_US: u64 = 120;
/// Requests parsed between two looks at the clock.
const REQUESTS_PER_LOOK: usize = 64;
/// So many answers are sent before the disk is given its work.
const ANSWERS_BEFORE_DISK: usize = 3;
/// Answers given to their connections between two looks at the clock.
const DELIVERIES_PER_LOOK: usize = 256;
/// Sent on one connection per turn at most.
const SEND_PER_TURN_BYTES: usize = 512 << 10;
/// Paused readers let go per turn.
const RESUMED_PER_TURN: usize = 64;
/// Readers that found the shards busy try again after so long at the latest.
const BUSY_RETRY_US: u64 = 1_000;
/// Connections are looked at so often for timeouts and unused memory, while there are any that moved.
const SWEEP_US: u64 = 1_000_000;
/// A peer must introduce itself within this time.
const INTRODUCTION_US: u64 = 5_000_000;
/// A peer that takes or sends nothing although it should is cut off after this time …
const STUCK_US: u64 = 300_000_000;
/// … or this, while memory is short.
const STUCK_SHORT_US: u64 = 30_000_000;
/// Reads from the device that wait for memory get that of a peer that has taken nothing for so long.
const TAKES_NOTHING_US: u64 = 20_000;
/// After the shards have stopped, peers get this long to take their last answers.
const LAST_ANSWERS_US: u64 = 300_000;
/// With more active connections than this there is always something to do, and spinning would keep it waiting.
const SPIN_CONNECTIONS_MAX: usize = 4;
/// A stopping core looks so often whether the others are done.
const STOP_POLL_US: u64 = 5_000;

/// The two clocks, from a start common to all cores.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Monotonic time counts from `start`.
    pub fn new(start: Instant) -> Clock {
        Clock { start }
    }

    /// Both.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_us: self.monotonic_us(), wall_ms: wall.as_millis() as i64 }
    }

    /// The monotonic one.
    pub fn monotonic_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// How other threads reach a core, besides its mailboxes. Fill in, then wake.
pub struct Control {
    /// Wakes the core.
    pub waker: Waker,
    /// Begin a clean stop.
    stop: AtomicBool,
    /// Somebody waits for `snapshot`.
    wanted: AtomicBool,
    /// Grows with every snapshot taken.
    snapshot: Mutex<(u64, Snapshot)>,
    taken: Condvar,
}

impl Control {
    /// For one core.
    pub fn new(waker: Waker) -> Control {
        Control { waker, stop: AtomicBool::new(false), wanted: AtomicBool::new(false), snapshot: Mutex::default(), taken: Condvar::new() }
    }

    /// Begins a clean stop of the core.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// What the core counts, as of now; `None` if it doesn't answer in time. Blocks.
    pub fn snapshot(&self, timeout: Duration) -> Option<Snapshot> {
        let guard = self.snapshot.lock().ok()?;
        let before = guard.0;
        self.wanted.store(true, Ordering::Release);
        self.waker.wake();
        let (guard, result) = self.taken.wait_timeout_while(guard, timeout, |snapshot| snapshot.0 == before).ok()?;
        (!result.timed_out()).then(|| guard.1.clone())
    }
}

/// What a core counts. Plain integers: nobody else looks at them while they change.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Turns taken.
    pub turns: u64,
    /// The longest step between two waits, in µs.
    pub step_longest_us: u64,
    /// Requests given to the router.
    pub requests: u64,
    /// Received from peers.
    pub bytes_in: u64,
    /// Sent to peers.
    pub bytes_out: u64,
    /// Reads that brought something.
    pub reads: u64,
    /// Sends that took something.
    pub sends: u64,
    /// Sends that found the socket full.
    pub sends_blocked: u64,
    /// Extents read from the device because they left the tail cache before they were sent.
    pub sends_cold: u64,
    /// Times that a connection's blocks were given up because reads waited for memory.
    pub given_up: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections cut off for breaking the protocol.
    pub broken: u64,
    /// Connections cut off because they didn't move.
    pub stuck: u64,
    /// Reads put off because a shard or mailbox was busy.
    pub paused_busy: u64,
    /// Reads put off because of the peer's unanswered requests or unsent answers.
    pub paused_full: u64,
    /// Reads put off because memory was short.
    pub paused_memory: u64,
    /// Time to read and hand on what a connection brought.
    pub receive: Histogram,
    /// Time of a turn: mailboxes, disk, shards, replies, sends.
    pub turn: Histogram,
}

/// Durations in µs, by powers of two.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Bucket `n` counts durations below 2ⁿ µs that the one before doesn't; the last everything longer.
    pub buckets: [u64; 16],
    /// Sum of all.
    pub sum_us: u64,
}

impl Histogram {
    fn record(&mut self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)] += 1;
        self.sum_us += us;
    }
}

/// A core's counters at one moment, for the metrics.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Its own.
    pub counters: Counters,
    /// Connections open.
    pub connections: u64,
    /// Connections that aren't read at the moment.
    pub paused: u64,
    /// Memory of connections.
    pub connection_bytes: u64,
    /// Its limit.
    pub connection_limit_bytes: u64,
    /// Memory of the arena.
    pub arena_bytes: u64,
    /// Its limit.
    pub arena_limit_bytes: u64,
    /// Operations at the disk.
    pub disk_in_flight: u64,
    /// Questions to other cores without an answer.
    pub mail_unanswered: u64,
    /// Letters of other cores not taken.
    pub mail_waiting: u64,
    /// Topics that are to be compacted, which isn't done yet: they keep every record.
    pub topics_not_compacted: Vec<Arc<str>>,
    /// Its shards.
    pub shards: Vec<ShardSnapshot>,
}

/// A shard's counters at one moment.
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// Which.
    pub shard: u16,
    /// It refuses writes because the device failed.
    pub is_fenced: bool,
    /// Its own.
    pub counters: crate::shard::Counters,
    /// Its log's.
    pub log: crate::log::LogCounters,
    /// Bytes that wait for its log's cleaner.
    pub dead_bytes: u64,
}

/// What a core is made of.
pub struct CoreSetup {
    /// Its number.
    pub core: u16,
    /// Its shards are open, its catalog is set.
    pub router: Router,
    /// Memory for connections.
    pub connection_bytes: usize,
    /// For the metrics only.
    pub arena: crate::device::Arena,
    /// Largest request of any door, framing included.
    pub request_bytes_max: usize,
    /// An idle core looks for work this long before it sleeps.
    pub spin_us: u32,
    /// The clocks.
    pub clock: Clock,
    /// How others reach it.
    pub control: Arc<Control>,
    /// Cores whose shards haven't stopped.
    pub active_cores: Arc<AtomicUsize>,
}

/// What a reader's task does next.
enum Step {
    /// Wait until the socket has more.
    Wait,
    /// Wait for `resume`.
    Pause,
    /// The connection has gone.
    Closed,
}

/// State of a core; see the module.
struct Core {
    core: u16,
    router: Router,
    clock: Clock,
    control: Arc<Control>,
    arena: crate::device::Arena,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    connections: usize,
    paused: usize,
    /// Shared by all reads.
    buffer: Vec<u8>,
    budget: Budget,
    spares: Spares,
    request_bytes_max: usize,
    /// Connections with something to send.
    dirty: VecDeque<ConnectionId>,
    /// Readers to let go on: shards were busy, or memory was short.
    waiting: VecDeque<ConnectionId>,
    /// Connections whose session's own request a shard was too busy for.
    asking: VecDeque<ConnectionId>,
    /// Readers whose share of the turn was used up.
    unfinished: Vec<ConnectionId>,
    /// Connections whose socket is full: a writer's task is to be started.
    blocked: Vec<ConnectionId>,
    /// Connections that kept blocks without sending them when last seen, each once.
    holders: Vec<ConnectionId>,
    /// Connections that were read since the last spin; only with `spin_us`.
    recent: Vec<ConnectionId>,
    sweep_at_us: Option<u64>,
    stop: Stop,
    active_cores: Arc<AtomicUsize>,
    spin_us: u32,
    counters: Counters,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
    readiness: Option<Rc<Readiness>>,
}

/// How far a clean stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    /// The shards commit what they have.
    Shards,
    /// This core's are done (since when); others may still need it.
    Done(u64),
    /// Everything is.
    Finished,
}

/// A core and the signals of its tasks.
pub struct Shared {
    core: RefCell<Core>,
    turn: Signal,
    relay: Signal,
    timer: Signal,
    finished: Signal,
    /// When the timer's task will wake.
    armed_us: std::cell::Cell<Option<u64>>,
    /// Doors, to be closed first.
    listeners: RefCell<Vec<std::net::TcpListener>>,
}

impl Shared {
    /// A core without tasks.
    pub fn new(setup: CoreSetup) -> Rc<Shared> {
        let core = Core {
            core: setup.core,
            router: setup.router,
            clock: setup.clock,
            control: setup.control,
            arena: setup.arena,
            slots: Vec::new(),
            free_slots: Vec::new(),
            connections: 0,
            paused: 0,
            buffer: vec![0; READ_BYTES],
            budget: Budget::new(setup.connection_bytes),
            spares: Spares::default(),
            request_bytes_max: setup.request_bytes_max,
            dirty: VecDeque::new(),
            waiting: VecDeque::new(),
            asking: VecDeque::new(),
            unfinished: Vec::new(),
            blocked: Vec::new(),
            holders: Vec::new(),
            recent: Vec::new(),
            sweep_at_us: None,
            stop: Stop::No,
            active_cores: setup.active_cores,
            spin_us: setup.spin_us,
            counters: Counters::default(),
        };
        Rc::new(Shared {
            core: RefCell::new(core),
            turn: Signal::default(),
            relay: Signal::default(),
            timer: Signal::default(),
            finished: Signal::default(),
            armed_us: std::cell::Cell::new(None),
            listeners: RefCell::default(),
        })
    }

    /// Runs the core's own tasks until it has stopped. `wake`: the readable end of its waker.
    pub async fn run(self: Rc<Shared>, wake: WakeSource) -> std::io::Result<()> {
        let readiness = Readiness::new(wake.duplicate()?)?;
        runtime::spawn(self.clone().take_turns());
        runtime::spawn(self.clone().relay_turns());
        runtime::spawn(self.clone().keep_time());
        runtime::spawn(self.clone().listen_for_wakes(wake, readiness));
        self.turn.raise();
        self.finished.wait().await;
        self.close_all();
        // The tasks see their sockets closed and end; what is left of them goes with the process.
        runtime::sleep_or(Duration::from_millis(2), &Signal::default()).await;
        Ok(())
    }

    /// Closed when the core stops.
    pub fn register_listener(&self, listener: std::net::TcpListener) {
        self.listeners.borrow_mut().push(listener);
    }

    /// Whether connections are still welcome.
    pub fn is_open(&self) -> bool {
        self.core.borrow().stop == Stop::No
    }

    /// Takes over an accepted socket, non-blocking. False = no memory for another connection: it is closed.
    pub fn open(self: &Rc<Shared>, socket: TcpStream, session: Box<dyn Session>) -> std::io::Result<bool> {
        let readiness = Rc::new(Readiness::new(socket.try_clone()?.into())?);
        let opened = self.core.borrow_mut().open(socket, session, readiness.clone());
        let Some((id, resume)) = opened else { return Ok(false) };
        runtime::spawn(self.clone().read(id, resume, readiness));
        self.arm();
        Ok(true)
    }

    async fn read(self: Rc<Shared>, id: ConnectionId, resume: Rc<Signal>, readiness: Rc<Readiness>) {
        loop {
            let step = self.receive(id);
            match step {
                Step::Wait => {
                    // The signal: a turn that looked for input itself has paused or closed the connection.
                    if readiness.readable_or(&resume).await.is_err() {
                        break;
                    }
                }
                Step::Pause => resume.wait().await,
                Step::Closed => break,
            }
        }
        self.core.borrow_mut().close(id);
        self.request_turn();
    }

    fn receive(&self, id: ConnectionId) -> Step {
        let mut core = self.core.borrow_mut();
        let (step, wants_turn) = core.receive(id);
        if wants_turn {
            core.router.attend();
            self.turn.raise();
        }
        step
    }

    /// A full socket takes more.
    async fn write(self: Rc<Shared>, id: ConnectionId, readiness: Rc<Readiness>) {
        loop {
            // An error shows itself at the next send.
            let _ = readiness.writable().await;
            let is_blocked = self.core.borrow_mut().write(id);
            self.request_turn();
            if !is_blocked {
                break;
            }
        }
    }

    async fn take_turns(self: Rc<Shared>) {
        loop {
            self.turn.wait().await;
            let mut core = self.core.borrow_mut();
            let wants_another = core.turn();
            let blocked = std::mem::take(&mut core.blocked);
            let (stop, wake_us) = (core.stop, core.next_wake_us());
            let blocked: Vec<_> =
                blocked.into_iter().filter_map(|id| Some((id, core.slots.get(id.slot as usize)?.readiness.clone()?))).collect();
            drop(core);
            for (id, readiness) in blocked {
                runtime::spawn(self.clone().write(id, readiness));
            }
            if stop != Stop::No {
                self.close_doors();
            }
            if stop == Stop::Finished {
                self.finished.raise();
            }
            self.arm_at(wake_us);
            if wants_another {
                self.relay.raise();
            }
        }
    }

    async fn relay_turns(self: Rc<Shared>) {
        loop {
            self.relay.wait().await;
            self.turn.raise();
        }
    }

    async fn keep_time(self: Rc<Shared>) {
        let clock = self.core.borrow().clock;
        loop {
            match self.armed_us.get() {
                None => self.timer.wait().await,
                Some(at_us) => {
                    let now_us = clock.monotonic_us();
                    if at_us > now_us {
                        runtime::sleep_or(Duration::from_micros(at_us - now_us), &self.timer).await;
                    }
                    // Raised earlier, the turn sees what is due, and arms again.
                    if self.armed_us.get().is_some_and(|at_us| at_us <= clock.monotonic_us()) {
                        self.armed_us.set(None);
                        self.request_turn();
                    }
                }
            }
        }
    }

    async fn listen_for_wakes(self: Rc<Shared>, wake: WakeSource, readiness: Readiness) {
        let waker = self.core.borrow().control.waker.clone();
        loop {
            if readiness.readable().await.is_err() {
                break;
            }
            wake.empty();
            waker.rearm();
            self.request_turn();
        }
    }

    fn request_turn(&self) {
        self.core.borrow().router.attend();
        self.turn.raise();
    }

    fn arm(&self) {
        let wake_us = self.core.borrow().next_wake_us();
        self.arm_at(wake_us);
    }

    /// Wakes the timer's task only for an earlier time; a later one it finds by itself when it wakes too early.
    fn arm_at(&self, at_us: Option<u64>) {
        let Some(at_us) = at_us else { return };
        if self.armed_us.get().is_none_or(|armed_us| at_us < armed_us) {
            self.armed_us.set(Some(at_us));
            self.timer.raise();
        }
    }

    fn close_doors(&self) {
        for listener in self.listeners.borrow_mut().drain(..) {
            // Wakes the task that waits at it.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }

    fn close_all(&self) {
        let mut core = self.core.borrow_mut();
        for slot in 0..core.slots.len() as u32 {
            let generation = core.slots[slot as usize].generation;
            core.close(ConnectionId { slot, generation });
        }
        // The disk finishes what it is in, the files are closed and unlocked.
        core.router.close();
    }
}

/// The readable end of a core's waker.
pub enum WakeSource {
    /// Read 8 bytes.
    Eventfd(std::os::fd::OwnedFd),
    /// Read bytes.
    Stream(std::os::unix::net::UnixStream),
}

impl WakeSource {
    fn duplicate(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        match self {
            WakeSource::Eventfd(fd) => fd.try_clone(),
            WakeSource::Stream(stream) => Ok(stream.try_clone()?.into()),
        }
    }

    /// Called when it is readable, so that even a blocking descriptor answers at once.
    fn empty(&self) {
        let mut bytes = [0; 64];
        let _ = match self {
            WakeSource::Eventfd(fd) => rustix::io::read(fd, &mut bytes[..8]),
            WakeSource::Stream(stream) => rustix::io::read(stream, &mut bytes),
        };
    }
}

/// What parsing came to.
struct Parsed {
    consumed_bytes: usize,
    end: ParseEnd,
}

enum ParseEnd {
    /// No whole request is left.
    More,
    Pause(Pause),
    Broken(String),
    /// The session wants no more.
    Ended,
}

impl Core {
    fn open(&mut self, socket: TcpStream, session: Box<dyn Session>, readiness: Rc<Readiness>) -> Option<(ConnectionId, Rc<Signal>)> {
        if !self.budget.charge(BASE_BYTES) {
            return None;
        }
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let id = ConnectionId { slot, generation: entry.generation };
        let resume = Rc::new(Signal::default());
        let now_us = self.clock.monotonic_us();
        entry.readiness = Some(readiness);
        entry.connection = Some(Box::new(Connection {
            id,
            socket,
            session,
            input: Input::default(),
            stalled: None,
            held_ask: None,
            answer_bytes: 0,
            output: Output::default(),
            resume: resume.clone(),
            pause: None,
            ending: None,
            is_unparsed: false,
            is_dirty: false,
            is_blocked: false,
            is_holder: false,
            opened_us: now_us,
            progress_us: now_us,
        }));
        self.connections += 1;
        self.counters.opened += 1;
        self.sweep_at_us.get_or_insert(now_us + SWEEP_US);
        Some((id, resume))
    }

    /// Lets the connection go, whatever it was doing. Its task ends when it next looks.
    fn close(&mut self, id: ConnectionId) {
        let Some(mut connection) = self.take(id) else { return };
        connection.output.drop_all(self.router.shards_mut(), &mut self.spares);
        if connection.session.in_flight() > 0 || connection.session.holds_messages() {
            self.router.cancel(id.slot, id.generation);
        }
        connection.input.clear(&mut self.budget);
        self.budget.release(BASE_BYTES + connection.answer_bytes);
        self.paused -= usize::from(connection.pause.is_some());
        let _ = connection.socket.shutdown(Shutdown::Both);
        connection.resume.raise();
        self.slots[id.slot as usize].readiness = None;
        self.free_slots.push(id.slot);
        self.connections -= 1;
        self.counters.closed += 1;
    }

    fn take(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?.connection.take()
    }

    fn put(&mut self, connection: Box<Connection>) {
        let slot = connection.id.slot as usize;
        self.slots[slot].connection = Some(connection);
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?.connection.as_deref_mut()
    }

    /// Reads and hands on what a connection has; also tells whether a turn is wanted.
    fn receive(&mut self, id: ConnectionId) -> (Step, bool) {
        let Some(mut connection) = self.take(id) else { return (Step::Closed, false) };
        let now = self.clock.now();
        let requests_before = self.counters.requests;
        self.set_pause(&mut connection, None);
        let step = self.receive_from(&mut connection, now);
        if connection.output.is_ready() && !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push_back(id);
        }
        self.sweep_at_us.get_or_insert(now.monotonic_us + SWEEP_US);
        let wants_turn = self.counters.requests != requests_before
            || !self.dirty.is_empty()
            || !self.unfinished.is_empty()
            || connection.ending.is_some();
        let step = if is_over(&connection) { Step::Closed } else { step };
        self.put(connection);
        if self.spin_us > 0 && self.recent.len() <= SPIN_CONNECTIONS_MAX && !self.recent.contains(&id) {
            self.recent.push(id);
        }
        let took_us = self.clock.monotonic_us() - now.monotonic_us;
        self.counters.receive.record(took_us);
        self.counters.step_longest_us = self.counters.step_longest_us.max(took_us);
        (step, wants_turn)
    }

    fn receive_from(&mut self, connection: &mut Connection, now: Now) -> Step {
        if connection.ending.is_some() {
            // Nothing more is read; the turn closes it when everything is sent.
            return Step::Pause;
        }
        if let Some(stalled) = connection.stalled.take()
            && !self.retry(connection, stalled, now)
        {
            return self.pause(connection, Pause::Busy);
        }
        loop {
            if connection.is_unparsed {
                let held = connection.input.take();
                let parsed = self.parse(connection, &held, now);
                connection.input.put_back(held, parsed.consumed_bytes);
                match self.parsed(connection, parsed.end) {
                    Some(step) => return step,
                    None => connection.is_unparsed = false,
                }
            }
            if self.clock.monotonic_us() - now.monotonic_us > STEP_US {
                return self.pause(connection, Pause::Turn);
            }
            if is_full(connection) {
                return self.pause(connection, Pause::Full);
            }
            let limit_bytes = if connection.session.is_established() { self.request_bytes_max } else { INTRODUCTION_BYTES };
            let before = connection.input.held().len();
            let is_full = match connection.input.read(&connection.socket, &mut self.buffer, limit_bytes, &mut self.budget) {
                Ok(Filled::Shared { bytes, is_full }) => {
                    self.count_read(connection, bytes - before, now);
                    let buffer = std::mem::take(&mut self.buffer);
                    let parsed = self.parse(connection, &buffer[..bytes], now);
                    if parsed.consumed_bytes < bytes {
                        connection.input.hold(&buffer[parsed.consumed_bytes..bytes], &mut self.budget);
                    }
                    self.buffer = buffer;
                    if let Some(step) = self.parsed(connection, parsed.end) {
                        connection.is_unparsed = !connection.input.held().is_empty();
                        return step;
                    }
                    is_full
                }
                Ok(Filled::Held { is_full }) => {
                    self.count_read(connection, connection.input.held().len() - before, now);
                    connection.is_unparsed = true;
                    is_full || connection.input.is_whole()
                }
                Ok(Filled::Nothing) => return Step::Wait,
                Ok(Filled::End) => {
                    connection.ending = Some(Ending::PeerDone);
                    return Step::Pause;
                }
                Ok(Filled::NoMemory) if !connection.session.is_established() => return Step::Closed,
                Ok(Filled::NoMemory) => return self.pause(connection, Pause::Memory),
                Err(_) => return Step::Closed,
            };
            if !is_full && !connection.is_unparsed {
                return Step::Wait;
            }
        }
    }

    fn count_read(&mut self, connection: &mut Connection, bytes: usize, now: Now) {
        connection.progress_us = now.monotonic_us;
        self.counters.reads += 1;
        self.counters.bytes_in += bytes as u64;
    }

    /// Hands on every whole request at the start of `input`.
    fn parse(&mut self, connection: &mut Connection, input: &[u8], now: Now) -> Parsed {
        let mut consumed_bytes = 0;
        let mut is_waiting_long = 0;
        let end = loop {
            if connection.ending.is_some() {
                break ParseEnd::Ended;
            }
            if is_full(connection) {
                break ParseEnd::Pause(Pause::Full);
            }
            is_waiting_long += 1;
            if is_waiting_long % REQUESTS_PER_LOOK == 0 && self.clock.monotonic_us() - now.monotonic_us > STEP_US {
                break ParseEnd::Pause(Pause::Turn);
            }
            let rest = &input[consumed_bytes..];
            let view = View { now, catalog: self.router.catalog(), memory_bytes: self.budget.available_bytes() };
            match connection.session.receive(rest, &view, &mut connection.output.outbox) {
                Ok(Received::More { needed_bytes }) => {
                    connection.input.expect(needed_bytes);
                    break ParseEnd::More;
                }
                Ok(Received::Handled { consumed_bytes: bytes }) => {
                    consumed_bytes += bytes;
                    self.ask(connection, now);
                }
                Ok(Received::Request { consumed_bytes: bytes, id, request }) => {
                    self.counters.requests += 1;
                    let origin = self.origin(connection.id, id);
                    match self.router.submit(origin, &request, now) {
                        Ok(None) => consumed_bytes += bytes,
                        Ok(Some(reply)) => {
                            consumed_bytes += bytes;
                            self.reply(connection, id, reply, now);
                        }
                        Err(_) => {
                            let (stalled, left_bytes) = stall(id, &request, rest, bytes);
                            connection.stalled = Some(stalled);
                            consumed_bytes += left_bytes;
                            break ParseEnd::Pause(Pause::Busy);
                        }
                    }
                    if bytes > 0 {
                        connection.input.note_request(bytes);
                    }
                    self.ask(connection, now);
                }
                Err(error) => break ParseEnd::Broken(error.message),
            }
        };
        if !matches!(end, ParseEnd::More) {
            connection.input.expect(0);
        }
        Parsed { consumed_bytes, end }
    }

    fn parsed(&mut self, connection: &mut Connection, end: ParseEnd) -> Option<Step> {
        match end {
            ParseEnd::More => None,
            ParseEnd::Pause(pause) => Some(self.pause(connection, pause)),
            ParseEnd::Ended => Some(Step::Pause),
            ParseEnd::Broken(message) => {
                tracing::debug!(peer = ?connection.socket.peer_addr().ok(), "connection closed: {message}");
                self.counters.broken += 1;
                connection.ending = Some(Ending::Broken);
                Some(Step::Pause)
            }
        }
    }

    /// Tries a refused request again. False = refused again, and kept.
    fn retry(&mut self, connection: &mut Connection, stalled: Stalled, now: Now) -> bool {
        let (id, result) = match &stalled {
            Stalled::Frame { id, header, body, .. } => match connection.input.held().get(body.clone()) {
                Some(body) => {
                    let request = Request::Produce { frame: Frame::of_parts(**header, body) };
                    (*id, self.router.submit(self.origin(connection.id, *id), &request, now))
                }
                None => (*id, Ok(Some(Reply::Failed(ErrorCode::Internal.into())))),
            },
            Stalled::Owned { id, request } => (*id, self.router.submit(self.origin(connection.id, *id), &request.borrow(), now)),
        };
        let Ok(answer) = result else {
            connection.stalled = Some(stalled);
            return false;
        };
        self.counters.requests += 1;
        if let Some(reply) = answer {
            self.reply(connection, id, reply, now);
        }
        self.ask(connection, now);
        if let Stalled::Frame { consumed_bytes, .. } = stalled {
            let held = connection.input.take();
            connection.input.put_back(held, consumed_bytes);
        }
        connection.is_unparsed = !connection.input.held().is_empty();
        true
    }

    /// Gives the session an answer that needed no shard.
    fn reply(&mut self, connection: &mut Connection, id: u64, reply: Reply, now: Now) {
        let view = View { now, catalog: self.router.catalog(), memory_bytes: self.budget.available_bytes() };
        connection.session.reply(id, reply, false, &view, &mut connection.output.outbox);
    }

    /// Hands on what the session itself wants to know. What the router is too busy for is kept, and tried again.
    fn ask(&mut self, connection: &mut Connection, now: Now) {
        while let Some((id, request)) = connection.held_ask.take().or_else(|| connection.session.poll_request()) {
            self.counters.requests += 1;
            match self.router.submit(self.origin(connection.id, id), &request.borrow(), now) {
                Ok(None) => {}
                Ok(Some(reply)) => self.reply(connection, id, reply, now),
                Err(_) => {
                    connection.held_ask = Some((id, request));
                    self.asking.push_back(connection.id);
                    break;
                }
            }
        }
        if connection.ending.is_none()
            && let Some(reason) = connection.session.closing()
        {
            tracing::debug!(peer = ?connection.socket.peer_addr().ok(), "connection closed: {reason}");
            self.counters.broken += 1;
            connection.ending = Some(Ending::Broken);
        }
    }

    /// Tries refused requests of sessions again.
    fn ask_again(&mut self, now: Now) {
        for _ in 0..self.asking.len().min(RESUMED_PER_TURN) {
            let Some(id) = self.asking.pop_front() else { break };
            if let Some(mut connection) = self.take(id) {
                self.ask(&mut connection, now);
                self.answered(connection);
            }
        }
    }

    /// After answers outside of reading: sends what there is, and lets the reader go on if it waited for that.
    fn answered(&mut self, mut connection: Box<Connection>) {
        self.charge_answers(&mut connection);
        self.note_holder(&mut connection);
        if (connection.output.is_ready() || connection.ending.is_some()) && !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push_back(connection.id);
        }
        // An answer may be nothing to send, and then nothing else would wake the reader.
        if connection.pause == Some(Pause::Full) && !is_full(&connection) {
            connection.resume.raise();
        }
        self.put(connection);
    }

    /// Answers in memory count against the budget; they are bounded where they are made.
    fn charge_answers(&mut self, connection: &mut Connection) {
        if !connection.session.makes_answers() {
            return;
        }
        let bytes = connection.session.held_bytes() + connection.output.len_bytes();
        if bytes > connection.answer_bytes {
            // What doesn't fit stays uncharged: refusing more answers is `deliver`'s matter.
            if self.budget.charge(bytes - connection.answer_bytes) {
                connection.answer_bytes = bytes;
            }
        } else {
            self.budget.release(connection.answer_bytes - bytes);
            connection.answer_bytes = bytes;
        }
    }

    fn origin(&self, id: ConnectionId, request: u64) -> Origin {
        Origin { core: self.core, connection: id.slot, generation: id.generation, request }
    }

    fn pause(&mut self, connection: &mut Connection, pause: Pause) -> Step {
        self.set_pause(connection, Some(pause));
        match pause {
            Pause::Full => self.counters.paused_full += 1,
            Pause::Busy => self.counters.paused_busy += 1,
            Pause::Memory => self.counters.paused_memory += 1,
            Pause::Turn => {}
        }
        match pause {
            Pause::Full => {}
            Pause::Busy | Pause::Memory => self.waiting.push_back(connection.id),
            Pause::Turn => self.unfinished.push(connection.id),
        }
        Step::Pause
    }

    fn set_pause(&mut self, connection: &mut Connection, pause: Option<Pause>) {
        self.paused += usize::from(pause.is_some());
        self.paused -= usize::from(connection.pause.is_some());
        connection.pause = pause;
    }

    /// Everything that isn't reading. Returns whether another turn is wanted soon.
    fn turn(&mut self) -> bool {
        let now = self.clock.now();
        self.counters.turns += 1;
        self.heed_control(now);
        self.router.pump(now);
        // Giving the disk its work takes as long as a send. A lone answer goes first; with many of them the disk would
        // idle meanwhile.
        let is_few = self.deliver_up_to(ANSWERS_BEFORE_DISK, now);
        self.ask_again(now);
        self.take_cold_reads();
        if is_few {
            self.flush_dirty(now);
        }
        self.router.shards_mut().kick();
        if !is_few {
            self.deliver_all(now);
            self.flush_dirty(now);
        }
        self.resume_readers();
        if self.router.shards().reads_wait_for_memory() {
            self.give_up_blocks(now);
        }
        if self.sweep_at_us.is_some_and(|at_us| at_us <= now.monotonic_us) {
            self.sweep(now);
        }
        self.router.end_turn();
        self.publish_gauges();
        self.advance_stop(now);
        let took_us = self.clock.monotonic_us() - now.monotonic_us;
        self.counters.turn.record(took_us);
        self.counters.step_longest_us = self.counters.step_longest_us.max(took_us);
        // Last of all: from here on the others wake this core if they have something for it.
        let has_backlog = !self.dirty.is_empty() || self.router.has_backlog();
        has_backlog || self.spin() || self.router.listen()
    }

    /// Looks for work for `spin_us` before the core goes to sleep: at the few connections that were active last, the
    /// disk and the mailboxes. Returns whether there is any.
    fn spin(&mut self) -> bool {
        let recent = std::mem::take(&mut self.recent);
        if self.spin_us == 0 || recent.is_empty() || recent.len() > SPIN_CONNECTIONS_MAX {
            return false;
        }
        let until_us = self.clock.monotonic_us() + u64::from(self.spin_us);
        while self.clock.monotonic_us() < until_us {
            if self.router.has_arrivals() {
                // Whoever was active may still be the next.
                self.recent = recent;
                return true;
            }
            for id in &recent {
                let reads_before = self.counters.reads;
                let (step, wants_turn) = self.receive(*id);
                if !matches!(step, Step::Wait)
                    && let Some(connection) = self.connection(*id)
                {
                    // Its task waits for input and must see what came of it.
                    connection.resume.raise();
                }
                if wants_turn || self.counters.reads != reads_before {
                    return true;
                }
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Gives at most `count` answers to their connections. Returns whether there were fewer.
    fn deliver_up_to(&mut self, count: usize, now: Now) -> bool {
        for _ in 0..count {
            let Some(delivery) = self.router.poll_delivery() else { return true };
            self.deliver(delivery, now);
        }
        false
    }

    /// Gives answers to their connections, until the turn is used up; the rest stays with the shards.
    fn deliver_all(&mut self, now: Now) {
        let mut count = 0;
        while let Some(delivery) = self.router.poll_delivery() {
            self.deliver(delivery, now);
            count += 1;
            if count % DELIVERIES_PER_LOOK == 0 && self.clock.monotonic_us() - now.monotonic_us > STEP_US {
                break;
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery, now: Now) {
        let Delivery { origin, shard, mut reply, moved } = delivery;
        let id = ConnectionId { slot: origin.connection, generation: origin.generation };
        let Some(mut connection) = self.take(id) else {
            // Nobody is there to read it.
            if let Reply::Fetched { data, .. } = &reply {
                self.router.shards_mut().release_extents(shard, data.extents());
            }
            return;
        };
        if let Reply::Fetched { head, .. } = &reply
            && connection.session.reads_frames(origin.request, head)
        {
            reply = self.owned(shard, reply);
        }
        let outbox = &mut connection.output.outbox;
        if !connection.session.makes_answers() {
            self.spares.begin(outbox);
        }
        let pieces_before = outbox.pieces.len();
        let view = View { now, catalog: self.router.catalog(), memory_bytes: self.budget.available_bytes() };
        connection.session.reply(origin.request, reply, moved, &view, outbox);
        // The session knows no shards.
        for piece in outbox.pieces.iter_mut().skip(pieces_before) {
            if let Piece::Frames { shard: of, .. } = piece {
                *of = shard.0;
            }
        }
        self.ask(&mut connection, now);
        self.answered(connection);
    }

    /// An answer whose frames are a copy, if there is memory for one.
    fn owned(&mut self, shard: ringmain_wire::ShardId, reply: Reply) -> Reply {
        let Reply::Fetched { head, data } = reply else { return reply };
        let is_affordable = self.budget.available_bytes() >= head.bytes as usize;
        if !is_affordable {
            self.router.shards_mut().release_extents(shard, data.extents());
        }
        match is_affordable.then(|| self.router.shards_mut().copy_frames(shard, data)).flatten() {
            Some(frames) => Reply::Fetched { head, data: FetchData::Owned(frames) },
            None => Reply::Failed(ErrorCode::Overloaded.into()),
        }
    }

    /// Sends what waits, until the turn is used up.
    fn flush_dirty(&mut self, now: Now) {
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else { break };
            if let Some(connection) = self.connection(id) {
                connection.is_dirty = false;
                if !connection.is_blocked {
                    self.send(id, now);
                }
            }
            if self.clock.monotonic_us() - now.monotonic_us > STEP_US {
                break;
            }
        }
    }

    /// Sends what the socket takes, within this turn's share.
    fn send(&mut self, id: ConnectionId, now: Now) {
        let Some(mut connection) = self.take(id) else { return };
        let mut total_bytes = 0;
        let is_alive = loop {
            match connection.output.send(&connection.socket, self.router.shards_mut(), &mut self.spares) {
                Ok((sent, bytes)) => {
                    self.counters.sends += u64::from(bytes > 0);
                    self.counters.bytes_out += bytes as u64;
                    total_bytes += bytes;
                    match sent {
                        Sent::All | Sent::Waiting => break true,
                        Sent::More if total_bytes < SEND_PER_TURN_BYTES => {}
                        Sent::More => {
                            connection.is_dirty = true;
                            self.dirty.push_back(id);
                            break true;
                        }
                        Sent::Blocked => {
                            self.counters.sends_blocked += 1;
                            if !connection.is_blocked {
                                connection.is_blocked = true;
                                self.blocked.push(id);
                            }
                            break true;
                        }
                        Sent::Cold(shard, extent) => {
                            self.counters.sends_cold += 1;
                            if let Some(owner) = self.router.shards_mut().shard_mut(shard) {
                                owner.read_extent(extent, ticket(id));
                            }
                            break true;
                        }
                    }
                }
                Err(_) => break false,
            }
        };
        if total_bytes > 0 {
            connection.progress_us = now.monotonic_us;
        }
        if connection.pause == Some(Pause::Full) && !is_full(&connection) {
            connection.resume.raise();
        }
        self.charge_answers(&mut connection);
        self.note_holder(&mut connection);
        let is_over = is_over(&connection);
        self.put(connection);
        if is_over || !is_alive {
            self.close(id);
        }
    }

    fn note_holder(&mut self, connection: &mut Connection) {
        let is_waiting = connection.is_blocked || connection.output.is_reading();
        if is_waiting && !connection.is_holder && connection.output.holds_blocks() {
            connection.is_holder = true;
            self.holders.push(connection.id);
        }
    }

    /// Takes the memory of what was read for peers that don't take it. Without this, some that never read would keep everybody
    /// else's reads waiting until they are cut off.
    fn give_up_blocks(&mut self, now: Now) {
        for id in std::mem::take(&mut self.holders) {
            let Some(connection) = self.connection(id) else { continue };
            let takes_nothing = now.monotonic_us.saturating_sub(connection.progress_us) >= TAKES_NOTHING_US;
            connection.is_holder = connection.is_blocked && !takes_nothing;
            if connection.is_holder {
                self.holders.push(id);
            } else if connection.is_blocked || connection.output.is_reading() {
                connection.output.give_up_blocks();
                self.counters.given_up += 1;
            }
        }
    }

    /// The socket takes more. Returns whether it is full again.
    fn write(&mut self, id: ConnectionId) -> bool {
        let now = self.clock.now();
        let Some(connection) = self.connection(id) else { return false };
        connection.is_blocked = false;
        self.send(id, now);
        let is_blocked = self.blocked.contains(&id);
        // This task goes on waiting for it.
        self.blocked.retain(|blocked| *blocked != id);
        is_blocked
    }

    fn take_cold_reads(&mut self) {
        let mut done = Vec::new();
        for (shard, owner) in self.router.shards_mut().each_mut() {
            while let Some((ticket, result)) = owner.poll_read() {
                done.push((shard, ticket, result));
            }
        }
        for (shard, ticket, result) in done {
            let id = ConnectionId { slot: (ticket >> 32) as u32, generation: ticket as u32 };
            let Some(connection) = self.connection(id) else { continue };
            match result {
                Ok(slices) => {
                    connection.output.put_cold(slices);
                    if !connection.is_dirty {
                        connection.is_dirty = true;
                        self.dirty.push_back(id);
                    }
                }
                Err(failure) => {
                    // Its head has been sent: nothing but closing tells the peer that the rest won't come.
                    tracing::error!("shard {shard}: stored records can't be read again: {} {}", failure.code, failure.message);
                    self.close(id);
                }
            }
        }
    }

    fn resume_readers(&mut self) {
        for id in std::mem::take(&mut self.unfinished) {
            if let Some(connection) = self.connection(id) {
                connection.resume.raise();
            }
        }
        for _ in 0..self.waiting.len().min(RESUMED_PER_TURN) {
            if let Some(id) = self.waiting.pop_front()
                && let Some(connection) = self.connection(id)
            {
                connection.resume.raise();
            }
        }
    }

    /// Cuts off who doesn't move, and takes back memory that isn't used.
    fn sweep(&mut self, now: Now) {
        let is_short = self.budget.available_bytes() < (self.budget.available_bytes() + self.budget.used_bytes()) / 8;
        let stuck_us = if is_short { STUCK_SHORT_US } else { STUCK_US };
        let mut gone = Vec::new();
        let mut is_needed = false;
        for slot in &mut self.slots {
            let Some(connection) = slot.connection.as_deref_mut() else { continue };
            let idle_us = now.monotonic_us.saturating_sub(connection.progress_us);
            if idle_us >= SWEEP_US {
                connection.input.trim(&mut self.budget);
            }
            let is_new = !connection.session.is_established();
            let is_owing = connection.is_blocked || connection.ending.is_some() || connection.input.holds_extra();
            if (is_new && now.monotonic_us.saturating_sub(connection.opened_us) >= INTRODUCTION_US) || (is_owing && idle_us >= stuck_us) {
                gone.push(connection.id);
            }
            is_needed |= is_new || is_owing || idle_us < SWEEP_US || connection.input.holds_any();
        }
        self.counters.stuck += gone.len() as u64;
        for id in gone {
            self.close(id);
        }
        self.sweep_at_us = is_needed.then_some(now.monotonic_us + SWEEP_US);
    }

    fn publish_gauges(&self) {
        let gauges = &self.router.broker().gauges[usize::from(self.core)];
        gauges.connections.store(self.connections as u64, Ordering::Relaxed);
        gauges.memory_used_bytes.store((self.budget.used_bytes() + self.arena.used_bytes()) as u64, Ordering::Relaxed);
    }

    fn heed_control(&mut self, now: Now) {
        if self.stop == Stop::No && self.control.stop.load(Ordering::Relaxed) {
            self.stop = Stop::Shards;
            self.router.shards_mut().stop(now);
        }
        if self.control.wanted.load(Ordering::Relaxed) && self.control.wanted.swap(false, Ordering::AcqRel) {
            let snapshot = self.snapshot();
            if let Ok(mut place) = self.control.snapshot.lock() {
                *place = (place.0 + 1, snapshot);
                self.control.taken.notify_all();
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let (mail_unanswered, mail_waiting) = self.router.mail_depth();
        let shards = self.router.shards_mut().each_mut().map(|(shard, owner)| ShardSnapshot {
            shard: shard.0,
            is_fenced: owner.fault().is_some(),
            counters: owner.counters(),
            log: owner.log_counters().clone(),
            dead_bytes: owner.dead_bytes(),
        });
        let shards = shards.collect();
        let compacted = self.router.catalog().topics().filter(|topic| topic.config.cleanup != Cleanup::Delete);
        Snapshot {
            topics_not_compacted: compacted.map(|topic| topic.name.clone()).collect(),
            shards,
            counters: self.counters.clone(),
            connections: self.connections as u64,
            paused: self.paused as u64,
            connection_bytes: self.budget.used_bytes() as u64,
            connection_limit_bytes: (self.budget.used_bytes() + self.budget.available_bytes()) as u64,
            arena_bytes: self.arena.used_bytes() as u64,
            arena_limit_bytes: self.arena.limit_bytes() as u64,
            disk_in_flight: self.router.shards().in_flight() as u64,
            mail_unanswered: mail_unanswered as u64,
            mail_waiting: mail_waiting as u64,
        }
    }

    fn advance_stop(&mut self, now: Now) {
        if self.stop == Stop::Shards && self.router.shards().is_stopped() {
            self.stop = Stop::Done(now.monotonic_us);
            self.active_cores.fetch_sub(1, Ordering::AcqRel);
        }
        if let Stop::Done(since_us) = self.stop
            && self.active_cores.load(Ordering::Acquire) == 0
            && (self.unsent_bytes() == 0 || now.monotonic_us - since_us > LAST_ANSWERS_US)
        {
            self.stop = Stop::Finished;
        }
    }

    fn unsent_bytes(&self) -> usize {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).map(|connection| connection.output.len_bytes()).sum()
    }

    /// When the next turn is due without anything coming in.
    fn next_wake_us(&self) -> Option<u64> {
        let soon_us = |after_us| self.clock.monotonic_us() + after_us;
        let busy = (!self.waiting.is_empty() || !self.asking.is_empty()).then(|| soon_us(BUSY_RETRY_US));
        let stopping = (self.stop != Stop::No).then(|| soon_us(STOP_POLL_US));
        let is_short = !self.holders.is_empty() && self.router.shards().reads_wait_for_memory();
        let short = is_short.then(|| soon_us(TAKES_NOTHING_US));
        [self.router.shards().next_deadline_us(), self.sweep_at_us, busy, stopping, short].into_iter().flatten().min()
    }
}

/// As many requests unanswered as the session allows, or too much unsent.
fn is_full(connection: &Connection) -> bool {
    connection.session.in_flight() >= connection.session.max_in_flight() || connection.output.len_bytes() >= OUTBOX_FULL_BYTES
}

/// Nothing more will be received, and everything that can be sent is.
fn is_over(connection: &Connection) -> bool {
    connection.output.len_bytes() == 0
        && match connection.ending {
            None => false,
            Some(Ending::Broken) => true,
            Some(Ending::PeerDone) => connection.session.in_flight() == connection.session.idle_in_flight(),
        }
}

/// Names a connection's cold read.
fn ticket(id: ConnectionId) -> u64 {
    u64::from(id.slot) << 32 | u64::from(id.generation)
}

/// Keeps a refused request for later; also tells how many bytes leave the input already. A frame stays where it is;
/// anything else is small and copied.
fn stall(id: u64, request: &Request<'_>, input: &[u8], consumed_bytes: usize) -> (Stalled, usize) {
    if let Request::Produce { frame } = request {
        let from = (frame.body().as_ptr() as usize).wrapping_sub(input.as_ptr() as usize);
        let body = from..from.wrapping_add(frame.body().len());
        if body.start <= body.end && body.end <= input.len() {
            return (Stalled::Frame { id, header: Box::new(frame.header), body, consumed_bytes }, 0);
        }
    }
    (Stalled::Owned { id, request: OwnedRequest::copy(request) }, consumed_bytes)
}
