//! The broker under test: a child process of the harness, in a directory of its own that goes when it goes.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::workload::Random;

/// The least free space that a run is started with.
pub const FREE_BYTES_NEEDED: u64 = 8 << 30;
/// Recovering and listening may take so long.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// A clean stop takes 2 s at most; after this it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Lines of the broker's log kept for an error message.
const LOG_LINES: usize = 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// How to start it.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Program; its first argument will be `serve`.
    pub program: PathBuf,
    /// `--cores`.
    pub cores: String,
    /// More arguments of `serve`.
    pub arguments: Vec<String>,
    /// Directory to make the data directory in; `None` = beside the current one.
    pub parent: Option<PathBuf>,
}

/// A running child.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// The native door.
    pub native: SocketAddr,
    /// How it does I/O, as it says.
    pub io: String,
    directory: DataDirectory,
}

impl Broker {
    /// Starts it; returns once every door listens.
    pub fn start(options: &BrokerOptions) -> Result<Broker> {
        let directory = DataDirectory::create(options.parent.as_deref())?;
        let mut child = Command::new(&options.program)
            .args([
                "serve",
                "--native",
                "127.0.0.1:0",
                "--admin",
                "off",
                "--kafka",
                "off",
                "--exit-with-parent",
                "--cores",
                &options.cores,
                "--data",
            ])
            .arg(&directory.path)
            .args(&options.arguments)
            // The broker ends when this pipe does: it can't outlive the harness, however that dies.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the harness, which then stops the broker and removes the directory.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {} serve", options.program.display()))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, ready) = channel();
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            // Reads to the end, so that the broker never waits for a full pipe.
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(|line| line.ok()) {
                    if let Some(fields) = parse_ready(&line) {
                        let _ = sender.send(fields);
                    }
                    let Ok(mut log) = log.lock() else { return };
                    log.push_back(line);
                    if log.len() > LOG_LINES {
                        log.pop_front();
                    }
                }
            });
        }
        let answer = ready.recv_timeout(START_PATIENCE);
        let mut broker = Broker { child, native: SocketAddr::from(([127, 0, 0, 1], 0)), io: String::new(), directory };
        match answer {
            Ok(fields) => {
                broker.native = fields.native;
                broker.io = fields.io;
                Ok(broker)
            }
            Err(reason) => {
                let said = log.lock().map(|log| log.iter().map(|line| format!("\n  {line}")).collect::<String>()).unwrap_or_default();
                let what = if reason == RecvTimeoutError::Timeout { "did not become ready" } else { "ended before it was ready" };
                bail!("the broker {what}; it said:{said}")
            }
        }
    }

    /// To measure its CPU time and memory.
    pub fn meter(&self) -> Meter {
        Meter { pid: Some(self.child.id()) }
    }

    /// Where its data is.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Stops it and removes its directory.
    pub fn stop(mut self) -> Result<()> {
        self.end().context("stopping the broker")
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::TERM)?;
            }
            let asked = Instant::now();
            while self.child.try_wait()?.is_none() {
                if asked.elapsed() > STOP_PATIENCE {
                    self.child.kill()?;
                    self.child.wait()?;
                    bail!("it did not end within {} s of SIGTERM and was killed", STOP_PATIENCE.as_secs());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The directory goes after this; what can't be stopped can't be helped here.
        let _ = self.end();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Ready {
    native: SocketAddr,
    io: String,
}

/// `ready native=H:P admin=… io=… shards=N`; fields in any order, unknown ones are passed over.
fn parse_ready(line: &str) -> Option<Ready> {
    let fields = line.strip_prefix("ready ")?;
    let field = |name: &str| fields.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    Some(Ready { native: field("native")?.parse().ok()?, io: field("io").unwrap_or("unknown").to_owned() })
}

/// A fresh directory that is removed when this is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    /// Where it is.
    pub path: PathBuf,
}

impl DataDirectory {
    /// Makes `ringmain-bench-XXXXXXXX` in `parent`, or beside the current directory, or in it.
    pub fn create(parent: Option<&Path>) -> Result<DataDirectory> {
        let here = std::env::current_dir()?;
        let candidates: Vec<PathBuf> = match parent {
            Some(parent) => vec![parent.to_owned()],
            None => here.parent().map(Path::to_owned).into_iter().chain([here.clone()]).collect(),
        };
        let mut refused = String::new();
        for candidate in candidates {
            match Self::create_in(&candidate) {
                Ok(directory) => return Ok(directory),
                Err(error) => refused += &format!("\n  {}: {error:#}", candidate.display()),
            }
        }
        bail!("no place for the benchmark's data; name a directory on a real disk with --dir:{refused}")
    }

    fn create_in(parent: &Path) -> Result<DataDirectory> {
        let file_system = rustix::fs::statfs(parent)?;
        let magic = file_system.f_type as u64 & 0xffff_ffff;
        if magic == TMPFS_MAGIC || magic == RAMFS_MAGIC {
            bail!("it is in memory (tmpfs): nothing there is durable, so nothing measured there means anything");
        }
        let space = rustix::fs::statvfs(parent)?;
        let free_bytes = space.f_bavail * space.f_frsize;
        if free_bytes < FREE_BYTES_NEEDED {
            bail!("{:.1} GiB free, {} GiB needed", free_bytes as f64 / (1_u64 << 30) as f64, FREE_BYTES_NEEDED >> 30);
        }
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let mut random = Random::new(nanos ^ u64::from(std::process::id()) << 32);
        let path = parent.join(format!("ringmain-bench-{:08x}", random.next_word() as u32));
        fs::create_dir(&path)?;
        Ok(DataDirectory { path })
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// File system and device of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `ext4`, say.
    pub file_system: String,
    /// `/dev/vda`, say.
    pub device: String,
}

impl Place {
    /// Looks `path` up among the mounts.
    pub fn of(path: &Path) -> Option<Place> {
        let path = fs::canonicalize(path).ok()?;
        Self::among(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
    }

    /// The longest mount point that `path` lies under wins; the later of two equal ones hides the earlier.
    fn among(mounts: &str, path: &Path) -> Option<Place> {
        let mut best: Option<(usize, Place)> = None;
        for line in mounts.lines() {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.replace("\\040", " ");
            let mut source = right.split(' ');
            let (file_system, device) = (source.next()?.to_owned(), source.next()?.to_owned());
            if path.starts_with(&point) && best.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
                best = Some((point.len(), Place { file_system, device }));
            }
        }
        best.map(|(_, place)| place)
    }
}

/// Reads a process's CPU time and memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    /// `None` = the broker isn't ours: nothing is known.
    pub pid: Option<u32>,
}

impl Meter {
    /// CPU time of all its threads, to the ns.
    pub fn broker_cpu(&self) -> Option<Duration> {
        let mut total_ns = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid?)).ok()? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            total_ns += text.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(total_ns))
    }

    /// Its resident size.
    pub fn rss_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
        Some(kib.trim().parse::<u64>().ok()? << 10)
    }
}

/// CPU time of the calling thread: the load generator is one.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_line_is_read_and_logs_are_not() {
        let ready = parse_ready("ready native=127.0.0.1:4000 admin=off io=uring shards=1 kafka=off").unwrap();
        assert_eq!(ready, Ready { native: "127.0.0.1:4000".parse().unwrap(), io: "uring".into() });
        assert_eq!(parse_ready("INFO ready native=127.0.0.1:4000"), None);
        assert_eq!(parse_ready("ready native=nowhere"), None);
    }

    #[test]
    fn place_is_the_deepest_mount() {
        let mounts = "1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /tmp rw shared:1 - tmpfs tmpfs rw\n3 1 0:6 / /tmp/a\\040b rw - xfs /dev/vdb rw\n";
        let place = |path: &str| Place::among(mounts, Path::new(path)).unwrap().device;
        assert_eq!((place("/tmpx"), place("/tmp/x"), place("/tmp/a b/c")), ("/dev/vda".into(), "tmpfs".into(), "/dev/vdb".into()));
    }

    #[test]
    fn tmpfs_is_refused() {
        if Place::of(Path::new("/dev/shm")).is_some_and(|p| p.file_system == "tmpfs") {
            let error = DataDirectory::create(Some(Path::new("/dev/shm"))).unwrap_err();
            assert!(format!("{error:#}").contains("tmpfs"), "{error:#}");
        }
    }

    #[test]
    fn meter_reads_this_process() {
        let meter = Meter { pid: Some(std::process::id()) };
        assert!(meter.rss_bytes().unwrap() > 1 << 20);
        assert!(meter.broker_cpu().is_some() && own_cpu() > Duration::ZERO);
        assert_eq!((Meter::default().broker_cpu(), Meter::default().rss_bytes()), (None, None));
    }
}
