//! Start and stop of the whole broker: data directory, self-test, memory, threads, doors, signals.
//!
//! ```text
//! lock the directory ─▶ bind every port ─▶ core threads open their shards ─▶ shard 0's catalog to all ─▶ accept ─▶ ready
//! signal ─▶ close the doors ─▶ shards commit, checkpoint, seal ─▶ last answers ─▶ threads end
//! ```

pub mod data_dir;
pub mod memory;

use std::fmt;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use ringmain_wire::ShardId;

use crate::admin::{self, Admin};
use crate::config::{IoMode, Listen, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, ServeConfig};
use crate::device::fallback::ThreadDisk;
use crate::device::janitor::{Janitor, JanitorHandle, JanitorOptions};
use crate::device::probe::{Probe, RingRefused, raise_nofile};
use crate::device::region::Supplier;
use crate::device::schedule;
use crate::device::uring::UringDisk;
use crate::device::volume::{Directory, FileVolume};
use crate::device::wake::Waker;
use crate::device::{Arena, Disk, FileId, SegmentFile};
use crate::frontend::kafka::{KafkaConfig, KafkaSession, Node};
use crate::frontend::native::transcode;
use crate::frontend::native::{NativeConfig, NativeSession};
use crate::log::LogConfig;
use crate::net::core::{Clock, Control, CoreSetup, Shared, WakeSource};
use crate::net::listener::{self, BindError};
use crate::net::runtime::{self, Driver};
use crate::router::letter::{Answer, Question};
use crate::router::mailbox::{self, Mailboxes};
use crate::router::shards::Shards;
use crate::router::{Broker, Gauges, Router};
use crate::shard::{self, Catalog, GroupsConfig, Shard, ShardConfig};
use data_dir::{DataDir, DataDirError};
use memory::CoreMemory;

/// A stop that takes longer has no use for more patience: the disk doesn't answer.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// A core thread that has failed at start ends within this time.
const FAILED_PATIENCE: Duration = Duration::from_secs(5);
/// Files kept for a full disk, at most.
const RESERVE_FILES_MAX: usize = 8;
/// Most requests a native connection may have unanswered.
const NATIVE_IN_FLIGHT_MAX: u32 = 1024;

/// Why the broker doesn't start.
#[derive(Debug)]
pub enum StartError {
    /// The data directory.
    DataDir(DataDirError),
    /// A door.
    Bind(BindError),
    /// A door that others could reach, and no authentication.
    NotLoopback { flag: &'static str, address: SocketAddr },
    /// `--io uring`, but rings can't be used.
    NoUring(RingRefused),
    /// `--cores` names one that doesn't exist or isn't allowed.
    NoSuchCore { core: usize, allowed: Vec<usize> },
    /// A shard's log.
    Shard { shard: ShardId, error: shard::OpenError },
    /// The operating system refused something.
    System { what: &'static str, error: io::Error },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::DataDir(error) => write!(f, "{error}"),
            StartError::Bind(error) => write!(f, "{error}"),
            StartError::NotLoopback { flag, address } => write!(
                f,
                "{flag} {address}: other machines can reach this address and there is no authentication yet; listen on 127.0.0.1, or accept that with --insecure"
            ),
            StartError::NoUring(refused) => write!(f, "--io uring: {refused}; {}; or start with --io auto", refused.remedy()),
            StartError::NoSuchCore { core, allowed } => write!(f, "--cores: this process can't run on core {core}; it may use {allowed:?}"),
            StartError::Shard { shard, error } => write!(f, "shard {shard} can't be opened: {error}"),
            StartError::System { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}

/// Runs the broker until a signal stops it. Prints one `ready …` line on standard error when every door listens.
pub fn run(config: &ServeConfig) -> Result<(), StartError> {
    let signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(system("installing signal handlers"))?;
    let running = start(config)?;
    let stopper = running.stopper();
    spawn_detached("signals", move || heed_signals(signals, &stopper))?;
    if config.exit_with_parent {
        let stopper = running.stopper();
        spawn_detached("parent", move || {
            // Nobody writes to it; its end is the parent's.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            stopper.stop();
        })?;
    }
    eprintln!("{}", running.ready_line());
    running.wait()
}

/// The first signal stops, the second ends the process at once.
fn heed_signals(mut signals: signal_hook::iterator::Signals, stopper: &Stopper) {
    let mut is_stopping = false;
    for _ in signals.forever() {
        if std::mem::replace(&mut is_stopping, true) {
            std::process::exit(1);
        }
        tracing::info!("stopping; a second signal ends the process at once");
        stopper.stop();
    }
}

fn spawn_detached(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(system("starting a thread"))
}

/// A broker that serves.
pub struct Running {
    threads: Vec<JoinHandle<Result<(), StartError>>>,
    stopper: Stopper,
    admin: Option<Admin>,
    /// Stops last: the disks' files belong to it.
    _janitor: Janitor,
    native: Option<SocketAddr>,
    kafka: Option<SocketAddr>,
    admin_address: Option<SocketAddr>,
    io: &'static str,
    shard_count: u16,
}

/// Stops a broker, from any thread.
#[derive(Clone)]
pub struct Stopper {
    controls: Arc<[Arc<Control>]>,
    is_ready: Arc<AtomicBool>,
    /// Every core's thread has ended.
    is_over: Arc<AtomicBool>,
}

impl Stopper {
    /// Begins a clean stop; gives up on it, and ends the process, when it takes too long.
    pub fn stop(&self) {
        if !self.is_ready.swap(false, Ordering::AcqRel) {
            return;
        }
        for control in self.controls.iter() {
            control.stop();
        }
        // If no thread can be had there is no watchdog: the stop itself doesn't need one.
        let is_over = self.is_over.clone();
        let _ = spawn_detached("stop-watch", move || {
            std::thread::sleep(STOP_PATIENCE);
            if is_over.load(Ordering::Acquire) {
                return;
            }
            tracing::error!("the disk has not answered for {} s: ending without a clean stop", STOP_PATIENCE.as_secs());
            std::process::exit(1);
        });
    }
}

impl Running {
    /// For stopping it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Where the native door listens.
    pub fn native(&self) -> Option<SocketAddr> {
        self.native
    }

    /// Where Kafka's clients connect first.
    pub fn kafka(&self) -> Option<SocketAddr> {
        self.kafka
    }

    /// Where the admin door listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// What scripts wait for.
    pub fn ready_line(&self) -> String {
        let door = |address: Option<SocketAddr>| address.map_or("off".into(), |address| address.to_string());
        format!(
            "ready native={} kafka={} admin={} io={} shards={}",
            door(self.native),
            door(self.kafka),
            door(self.admin_address),
            self.io,
            self.shard_count
        )
    }

    /// Until it has stopped.
    pub fn wait(self) -> Result<(), StartError> {
        let mut result = Ok(());
        for thread in self.threads {
            // A panic aborts the process, so a thread always ends with a result.
            if let Ok(Err(error)) = thread.join() {
                result = Err(error);
            }
        }
        self.stopper.is_over.store(true, Ordering::Release);
        drop(self.admin);
        result
    }
}

/// Starts every thread and opens every door.
pub fn start(config: &ServeConfig) -> Result<Running, StartError> {
    let started = Instant::now();
    for (flag, door) in [("--native", config.native), ("--kafka", config.kafka), ("--admin", config.admin)] {
        if let Listen::Addr(address) = door
            && !address.ip().is_loopback()
            && !config.insecure
        {
            return Err(StartError::NotLoopback { flag, address });
        }
    }
    let waiting = &mut |what: &str| tracing::warn!("{what}");
    // What it returns is in the self-test.
    raise_nofile().map_err(system("raising the limit of open files"))?;
    let cores = choose_cores(config.cores.as_deref())?;
    let data_dir = DataDir::open(&config.data_dir, config.shards, cores.len() as u16, waiting).map_err(StartError::DataDir)?;
    let shard_count = data_dir.shard_count;
    let directory = data_dir.directory.clone();
    let probe = Probe::run(Some(&directory)).map_err(system("self-test"))?;
    for line in probe.to_string().lines() {
        tracing::info!("{line}");
    }
    let io = choose_io(config.io, &probe)?;
    // A core without a shard would have nothing to do.
    let cores = &cores[..cores.len().min(usize::from(shard_count))];
    let core_of_shard: Vec<u16> = (0..shard_count).map(|shard| shard % cores.len() as u16).collect();

    let memory_bytes = config.memory_bytes.unwrap_or_else(|| memory::default_bytes(cores.len()));
    let segment_bytes = choose_segment_bytes(config.segment_bytes, &directory)?;
    tracing::info!(
        "{} shards on cores {cores:?}, {} MiB of memory, segments of {} MiB, data in {}",
        shard_count,
        memory_bytes >> 20,
        segment_bytes >> 20,
        directory.path().display()
    );

    let mut doors = open_doors(config, &core_of_shard, cores.len(), waiting)?;
    let defaults = JanitorOptions::default();
    // A file longer than a segment would keep blocks that nobody writes.
    let janitor_options = JanitorOptions {
        file_bytes: defaults.file_bytes.min(u64::from(segment_bytes)),
        // A start on a full disk needs one for each shard.
        reserve_files: usize::from(shard_count).min(RESERVE_FILES_MAX),
        ..defaults
    };
    let janitor = Janitor::start(directory.clone(), janitor_options).map_err(system("starting the janitor"))?;
    let supplier = Supplier::start().map_err(system("starting the memory thread"))?;
    let broker = Arc::new(Broker {
        io: io.name,
        io_note: io.note.clone(),
        started,
        core_of_shard: core_of_shard.clone(),
        shard_ports: std::mem::take(&mut doors.shard_ports),
        memory_limit_bytes: memory_bytes,
        gauges: cores.iter().map(|_| CachePadded::new(Gauges::default())).collect(),
    });

    let mut wakers = Vec::new();
    for _ in cores {
        wakers.push(waker(io.driver).map_err(system("making a wake descriptor"))?);
    }
    let mails = mailbox::mesh(wakers.iter().map(|(waker, _)| waker.clone()).collect());
    let controls: Arc<[Arc<Control>]> = wakers.iter().map(|(waker, _)| Arc::new(Control::new(waker.clone()))).collect();
    let active_cores = Arc::new(AtomicUsize::new(cores.len()));
    let clock = Clock::new(started);
    let (opened_sender, opened) = mpsc::channel();
    let (ready_sender, ready) = mpsc::channel();

    let mut threads = Vec::new();
    let mut gates = Vec::new();
    for (index, ((mail, (_, wake)), listeners)) in mails.into_iter().zip(wakers).zip(doors.listeners).enumerate() {
        let core = index as u16;
        let (gate, entry) = mpsc::channel();
        gates.push(gate);
        let shards: Vec<ShardId> = (0..shard_count).filter(|shard| core_of_shard[usize::from(*shard)] == core).map(ShardId).collect();
        let memory = CoreMemory::divide(memory_bytes, cores.len(), shards.len());
        let native = NativeConfig {
            cluster_id: data_dir.cluster_id,
            max_request_bytes: memory.request_bytes_max,
            max_in_flight: NATIVE_IN_FLIGHT_MAX,
        };
        let kafka = KafkaConfig {
            cluster_id: data_dir.cluster_id,
            max_request_bytes: memory.request_bytes_max as usize,
            nodes: doors.kafka_nodes.clone(),
            epochs: Vec::new(),
            node: 0,
            data_dir: directory.path().display().to_string(),
            creates_topics: config.kafka_creates_topics,
            default_partitions: config.kafka_partitions,
        };
        let thread = CoreThread {
            core,
            cpu: cores[index],
            shards,
            shard_count,
            segment_bytes,
            groups: GroupsConfig {
                initial_rebalance_delay_us: u64::from(config.initial_rebalance_delay_ms) * 1000,
                offset_retention_ms: config.offset_retention_ms,
                ..GroupsConfig::default()
            },
            memory,
            driver: io.driver,
            directory: directory.clone(),
            janitor: janitor.handle().clone(),
            supplier: supplier.clone(),
            broker: broker.clone(),
            mail,
            wake,
            control: controls[index].clone(),
            active_cores: active_cores.clone(),
            clock,
            spin_us: config.spin_us,
            listeners,
            native,
            kafka,
            opened: opened_sender.clone(),
            entry,
            ready: ready_sender.clone(),
        };
        let spawned = std::thread::Builder::new().name(format!("core-{core}")).spawn(move || thread.run());
        threads.push(spawned.map_err(system("starting a core thread"))?);
    }
    drop((opened_sender, ready_sender));

    let (catalog, epochs, live_files) = match collect(&opened, cores.len(), shard_count) {
        Ok(collected) => collected,
        // Dropping the gates ends the other threads.
        Err(error) => {
            drop(gates);
            return Err(join_failed(threads, error));
        }
    };
    let all_files = directory.list().map_err(system("listing segment files"))?;
    janitor.give(spare_files(all_files, live_files));
    for gate in &gates {
        // A thread that has failed meanwhile is noticed below.
        let _ = gate.send((catalog.clone(), epochs.clone()));
    }
    for _ in cores {
        if ready.recv().is_err() {
            drop(gates);
            return Err(join_failed(threads, None));
        }
    }
    let is_ready = Arc::new(AtomicBool::new(true));
    let admin = match doors.admin {
        Some(listener) => Some(
            admin::start(
                listener,
                admin::Sources {
                    controls: controls.clone(),
                    broker: broker.clone(),
                    janitor: janitor.handle().clone(),
                    is_ready: is_ready.clone(),
                },
            )
            .map_err(system("starting the admin thread"))?,
        ),
        None => None,
    };
    tracing::info!("ready after {} ms, {} topics", started.elapsed().as_millis(), catalog.topic_count());
    Ok(Running {
        threads,
        stopper: Stopper { controls, is_ready, is_over: Arc::default() },
        admin,
        _janitor: janitor,
        native: doors.native,
        kafka: doors.kafka,
        admin_address: doors.admin_address,
        io: io.name,
        shard_count,
    })
}

/// Cores to run on, in order.
fn choose_cores(wanted: Option<&[usize]>) -> Result<Vec<usize>, StartError> {
    let allowed: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let Some(wanted) = wanted else {
        // Without a list from the system: one thread, pinned nowhere in particular.
        return Ok(if allowed.is_empty() { vec![0] } else { allowed });
    };
    match wanted.iter().find(|core| !allowed.contains(core)) {
        Some(core) if !allowed.is_empty() => Err(StartError::NoSuchCore { core: *core, allowed }),
        _ => Ok(wanted.to_vec()),
    }
}

/// How disk and sockets are driven, and why not otherwise.
struct Io {
    driver: Driver,
    name: &'static str,
    note: String,
}

fn choose_io(mode: IoMode, probe: &Probe) -> Result<Io, StartError> {
    let fallback = |note: String| Io { driver: Driver::Epoll, name: "fallback", note };
    match (mode, &probe.io_uring) {
        (IoMode::Auto | IoMode::Uring, Ok(_)) => Ok(Io { driver: Driver::Uring, name: "uring", note: String::new() }),
        (IoMode::Uring, Err(refused)) => Err(StartError::NoUring(*refused)),
        (IoMode::Fallback, _) => Ok(fallback("asked for by --io fallback".into())),
        (IoMode::Auto, Err(refused)) => {
            let note = format!("{refused}; remedy: {}", refused.remedy());
            tracing::warn!(
                "io_uring can't be used: {refused}. Disk and sockets go through threads and epoll instead: the same guarantees at more CPU and latency per commit. Remedy: {}",
                refused.remedy()
            );
            Ok(fallback(note))
        }
    }
}

fn choose_segment_bytes(wanted: Option<u32>, directory: &Directory) -> Result<u32, StartError> {
    if let Some(wanted) = wanted {
        return Ok(wanted);
    }
    let bytes = directory.filesystem_bytes().map_err(system("asking for the size of the file system"))? / 64;
    let bytes = bytes.clamp(u64::from(SEGMENT_BYTES_MIN), u64::from(SEGMENT_BYTES_DEFAULT)) as u32;
    Ok(bytes >> 20 << 20)
}

fn waker(driver: Driver) -> io::Result<(Waker, WakeSource)> {
    Ok(match driver {
        Driver::Uring => {
            let (waker, reader) = Waker::eventfd()?;
            (waker, WakeSource::Eventfd(reader))
        }
        Driver::Epoll => {
            let (waker, reader) = Waker::stream()?;
            (waker, WakeSource::Stream(reader))
        }
    })
}

/// Which protocol a listener's connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Native,
    /// The node that clients think they are talking to.
    Kafka {
        node: i32,
    },
}

struct Doors {
    /// By core: what its thread accepts on.
    listeners: Vec<Vec<(Door, TcpListener)>>,
    shard_ports: Vec<u16>,
    native: Option<SocketAddr>,
    kafka: Option<SocketAddr>,
    kafka_nodes: Vec<Node>,
    admin: Option<TcpListener>,
    admin_address: Option<SocketAddr>,
}

fn open_doors(config: &ServeConfig, core_of_shard: &[u16], core_count: usize, waiting: &mut dyn FnMut(&str)) -> Result<Doors, StartError> {
    let address_of = |listener: &TcpListener| listener.local_addr().map_err(system("asking for a door's address"));
    let mut doors = Doors {
        listeners: (0..core_count).map(|_| Vec::new()).collect(),
        shard_ports: vec![0; core_of_shard.len()],
        native: None,
        kafka: None,
        kafka_nodes: Vec::new(),
        admin: None,
        admin_address: None,
    };
    if let Listen::Addr(address) = config.native {
        let bootstrap = listener::bind("--native", address, waiting).map_err(StartError::Bind)?;
        doors.native = Some(address_of(&bootstrap)?);
        doors.listeners[0].push((Door::Native, bootstrap));
        // With one core the bootstrap port leads to every shard's owner.
        for (shard, core) in core_of_shard.iter().enumerate().filter(|_| core_count > 1) {
            let port = match address.port() {
                0 => 0,
                base => u16::try_from(usize::from(base) + 1 + shard).map_err(|_| {
                    let error = io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("shard {shard} would need port {}, beyond the last", usize::from(base) + 1 + shard),
                    );
                    StartError::Bind(BindError { flag: "--native", address, error })
                })?,
            };
            let listener =
                listener::bind("--native (its shard ports)", SocketAddr::new(address.ip(), port), waiting).map_err(StartError::Bind)?;
            doors.shard_ports[shard] = address_of(&listener)?.port();
            doors.listeners[usize::from(*core)].push((Door::Native, listener));
        }
    }
    if let Listen::Addr(address) = config.kafka {
        open_kafka_doors(&mut doors, address, config, core_of_shard, core_count, waiting)?;
    }
    if let Listen::Addr(address) = config.admin {
        let listener = listener::bind("--admin", address, waiting).map_err(StartError::Bind)?;
        doors.admin_address = Some(address_of(&listener)?);
        doors.admin = Some(listener);
    }
    Ok(doors)
}

/// The bootstrap port, which is node 0's, and a port per further shard where clients can be led to another core.
fn open_kafka_doors(
    doors: &mut Doors,
    address: SocketAddr,
    config: &ServeConfig,
    core_of_shard: &[u16],
    core_count: usize,
    waiting: &mut dyn FnMut(&str),
) -> Result<(), StartError> {
    let address_of = |listener: &TcpListener| listener.local_addr().map_err(system("asking for a door's address"));
    let bootstrap = listener::bind("--kafka", address, waiting).map_err(StartError::Bind)?;
    let bound = address_of(&bootstrap)?;
    doors.kafka = Some(bound);
    doors.listeners[0].push((Door::Kafka { node: 0 }, bootstrap));
    let mut ports = vec![bound.port()];
    let shards = if core_count > 1 && !config.kafka_single_port { core_of_shard } else { &core_of_shard[..1] };
    for (shard, core) in shards.iter().enumerate().skip(1) {
        let base = if address.port() == 0 { 0 } else { config.kafka_shard_base };
        let port = match base {
            0 => 0,
            base => u16::try_from(usize::from(base) + shard).map_err(|_| {
                let error = io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("shard {shard} would need port {}, beyond the last", usize::from(base) + shard),
                );
                StartError::Bind(BindError { flag: "--kafka-shard-base", address, error })
            })?,
        };
        let listener = listener::bind("--kafka-shard-base", SocketAddr::new(address.ip(), port), waiting).map_err(StartError::Bind)?;
        ports.push(address_of(&listener)?.port());
        doors.listeners[usize::from(*core)].push((Door::Kafka { node: shard as i32 }, listener));
    }
    // An address that stands for all of them can't be told; the one by which a client has come can.
    let listened = (!address.ip().is_unspecified()).then(|| address.ip().to_string());
    let advertise = config.kafka_advertise.as_ref();
    let host = advertise.map(|advertise| advertise.host.clone()).or(listened);
    let first = advertise.and_then(|advertise| advertise.port);
    for (node, port) in ports.into_iter().enumerate() {
        let port = first.map_or(port, |first| first.saturating_add(node as u16));
        doors.kafka_nodes.push(Node { host: host.clone(), port });
    }
    Ok(())
}

/// What a core thread says when its shards are open.
struct CoreOpened {
    live_files: Vec<FileId>,
    /// Of its shards' logs.
    epochs: Vec<(ShardId, u32)>,
    /// From the core of shard 0.
    catalog: Option<Arc<Catalog>>,
}

/// Waits until every core's shards are open. `Err(None)` = a thread ended; its result tells why.
fn collect(opened: &Receiver<CoreOpened>, core_count: usize, shard_count: u16) -> Result<Collected, Option<StartError>> {
    let (mut catalog, mut live_files) = (None, Vec::new());
    let mut epochs = vec![0; usize::from(shard_count)];
    for _ in 0..core_count {
        let core = opened.recv().map_err(|_| None)?;
        live_files.extend(core.live_files);
        core.epochs.into_iter().for_each(|(shard, epoch)| epochs[usize::from(shard.0)] = epoch);
        catalog = catalog.or(core.catalog);
    }
    catalog.map(|catalog| (catalog, epochs, live_files)).ok_or(None)
}

/// The catalog, every shard's epoch, and the files that are in use.
type Collected = (Arc<Catalog>, Vec<u32>, Vec<FileId>);

/// The error of the thread that failed. Others may serve already, and end with the process.
fn join_failed(mut threads: Vec<JoinHandle<Result<(), StartError>>>, error: Option<StartError>) -> StartError {
    let since = Instant::now();
    while error.is_none() && since.elapsed() < FAILED_PATIENCE {
        if let Some(index) = threads.iter().position(JoinHandle::is_finished)
            && let Ok(Err(error)) = threads.swap_remove(index).join()
        {
            return error;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    error.unwrap_or_else(|| StartError::System { what: "starting the core threads", error: io::ErrorKind::Other.into() })
}

/// Files that no shard keeps.
fn spare_files(all: Vec<SegmentFile>, mut live: Vec<FileId>) -> Vec<SegmentFile> {
    live.sort_unstable();
    all.into_iter().filter(|segment| live.binary_search(&segment.file).is_err()).collect()
}

/// 64 random bits.
fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// What a core thread begins with.
struct CoreThread {
    core: u16,
    cpu: usize,
    shards: Vec<ShardId>,
    shard_count: u16,
    segment_bytes: u32,
    groups: GroupsConfig,
    memory: CoreMemory,
    driver: Driver,
    directory: Arc<Directory>,
    janitor: JanitorHandle,
    supplier: Supplier,
    broker: Arc<Broker>,
    mail: Mailboxes<Question, Answer>,
    wake: WakeSource,
    control: Arc<Control>,
    active_cores: Arc<AtomicUsize>,
    clock: Clock,
    spin_us: u32,
    listeners: Vec<(Door, TcpListener)>,
    native: NativeConfig,
    /// Without the epochs, which come with the catalog.
    kafka: KafkaConfig,
    opened: Sender<CoreOpened>,
    /// Opens when every core's shards are open; closed = the start has failed elsewhere.
    entry: Receiver<(Arc<Catalog>, Vec<u32>)>,
    ready: Sender<()>,
}

impl CoreThread {
    fn run(self) -> Result<(), StartError> {
        if !core_affinity::set_for_current(core_affinity::CoreId { id: self.cpu }) {
            tracing::warn!("core thread {} can't be pinned to core {}; it runs wherever the system puts it", self.core, self.cpu);
        }
        if let Err(error) = schedule::let_others_in() {
            tracing::debug!("core thread {} keeps the default time slice ({error}); flushes may wait for it", self.core);
        }
        let arena = Arena::with_supply(self.memory.arena_bytes, self.supplier.supply());
        let mut volume = FileVolume::new(self.directory.clone());
        let (mut shards, mut live_files, mut catalog) = (Vec::new(), Vec::new(), None);
        let mut epochs = Vec::new();
        for shard in &self.shards {
            let opened = self.open_shard(*shard, &arena, &mut volume)?;
            live_files.extend(opened.live_files);
            epochs.push((*shard, opened.report.epoch));
            if *shard == ShardId(0) {
                catalog = Some(Arc::new(opened.shard.catalog().clone()));
            }
            shards.push((*shard, opened.shard));
        }
        let disk = self.make_disk()?;
        // The main thread waits for exactly one of these per core.
        let _ = self.opened.send(CoreOpened { live_files, epochs, catalog });
        // Held to the end they would keep the main thread waiting for a core that has failed.
        drop(self.opened);
        let Ok((catalog, epochs)) = self.entry.recv() else { return Ok(()) };

        let mut router = Router::new(self.core, self.broker, Shards::new(shards, self.shard_count, disk), self.mail);
        router.set_catalog(&catalog, self.clock.now());
        drop(catalog);
        let setup = CoreSetup {
            core: self.core,
            router,
            connection_bytes: self.memory.connection_bytes,
            arena,
            request_bytes_max: self.memory.request_bytes_max as usize + ringmain_wire::Envelope::BYTES,
            spin_us: self.spin_us,
            clock: self.clock,
            control: self.control,
            active_cores: self.active_cores,
        };
        let (listeners, native, wake, ready) = (self.listeners, self.native, self.wake, self.ready);
        let kafka = KafkaConfig { epochs, ..self.kafka };
        let served = runtime::run(self.driver, async move {
            let shared = Shared::new(setup);
            let native_session: Rc<listener::MakeSession> = Rc::new(move |_| Box::new(NativeSession::new(native)));
            for (door, listener) in listeners {
                shared.register_listener(listener.try_clone()?);
                let session: Rc<listener::MakeSession> = match door {
                    Door::Native => native_session.clone(),
                    Door::Kafka { node } => {
                        let config = Rc::new(KafkaConfig { node, ..kafka.clone() });
                        Rc::new(move |ends| Box::new(KafkaSession::new(config.clone(), ends)))
                    }
                };
                runtime::spawn(listener::accept(shared.clone(), listener, session));
            }
            let _ = ready.send(());
            drop(ready);
            shared.run(wake).await
        });
        served.and_then(|result| result).map_err(system("running a core thread"))
    }

    fn open_shard(&self, shard: ShardId, arena: &Arena, volume: &mut FileVolume) -> Result<shard::Opened, StartError> {
        let mut log = LogConfig::new(shard, self.segment_bytes, self.memory.shard_bytes);
        log.entropy = random_u64().map_err(system("reading /dev/urandom"))?;
        let mut config = ShardConfig::new(shard, self.shard_count, log);
        config.cold_read_bytes_max = config.log.read_bytes_max as u64;
        config.transcode = transcode::for_queues;
        config.queue_bytes_max = (self.memory.shard_bytes / 8).max(256 << 10);
        config.queue_pieces_bytes_max = self.memory.shard_bytes / 32;
        config.queue_spots_bytes_max = self.memory.shard_bytes / 64;
        config.groups = GroupsConfig { entropy: config.log.entropy, ..self.groups.clone() };
        let opened = Shard::open(config, arena.clone(), volume, self.clock.now()).map_err(|error| StartError::Shard { shard, error })?;
        let report = &opened.report;
        let before = match report.epoch {
            1 => "new",
            _ if report.was_clean => "stopped cleanly before",
            _ => "not stopped cleanly before",
        };
        tracing::info!(
            "shard {shard}: epoch {}, {} segments, {} frames replayed, {} KiB read, {before}",
            report.epoch,
            report.segments,
            report.frames_replayed,
            report.bytes_read >> 10
        );
        if let Some((file, segment, position)) = report.torn_tail {
            tracing::warn!("shard {shard}: a write that was never acknowledged is cut off: {file}, segment {segment}, byte {position}");
        }
        Ok(opened)
    }

    fn make_disk(&self) -> Result<Box<dyn Disk>, StartError> {
        let waker = self.control.waker.clone();
        Ok(match self.driver {
            Driver::Uring => {
                Box::new(UringDisk::new(&self.janitor, waker).map_err(system("making the log's ring (--io fallback works without)"))?)
            }
            Driver::Epoll => Box::new(ThreadDisk::new(&self.janitor, waker).map_err(system("starting the disk's threads"))?),
        })
    }
}
