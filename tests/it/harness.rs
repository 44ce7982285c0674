//! A broker to be tested: the real program as a child process, in a directory of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringmain_client::Client;
use rustix::process::{Pid, Signal, kill_process};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ringmain");

/// A directory under `target/` (a real disk, unlike /tmp on many machines), removed at the end of a test that passed.
pub struct Directory {
    pub path: PathBuf,
}

impl Directory {
    pub fn new(name: &str) -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Directory { path }
    }

    /// Writes a file in it.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for a look: {}", self.path.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// How the program is started.
#[derive(Clone, Default)]
pub struct Start {
    /// Arguments of `serve` beside the directory and the doors.
    pub arguments: Vec<String>,
    /// `None` = port 0.
    pub native: Option<SocketAddr>,
    /// `None` = port 0.
    pub kafka: Option<SocketAddr>,
    /// Through the trampoline that forbids io_uring.
    pub without_io_uring: bool,
}

impl Start {
    pub fn with(arguments: &[&str]) -> Start {
        Start { arguments: arguments.iter().map(ToString::to_string).collect(), ..Start::default() }
    }
}

/// A running broker, or one that was killed and can be started again.
pub struct Broker {
    pub directory: Directory,
    pub start: Start,
    child: Option<Child>,
    ready: Option<Ready>,
    said: Arc<Mutex<String>>,
}

/// The ready line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub native: SocketAddr,
    pub kafka: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub io: String,
    pub shards: u16,
    /// From the start of the process to the line.
    pub after: Duration,
}

impl Broker {
    /// Starts one in a fresh directory and waits until it is ready.
    pub fn start(name: &str, start: Start) -> Broker {
        let mut broker = Broker { directory: Directory::new(name), start, child: None, ready: None, said: Arc::default() };
        broker.restart();
        broker
    }

    /// Starts it on its directory and waits until it is ready.
    pub fn restart(&mut self) -> Duration {
        let ready = self.launch();
        let ready =
            ready.recv_timeout(READY_PATIENCE).unwrap_or_else(|_| panic!("the broker didn't become ready; it said:\n{}", self.said()));
        let after = ready.after;
        self.ready = Some(ready);
        after
    }

    /// Starts it and doesn't wait.
    pub fn launch(&mut self) -> std::sync::mpsc::Receiver<Ready> {
        assert!(self.child.is_none(), "the broker is running");
        let [native, kafka] =
            [self.start.native, self.start.kafka].map(|door| door.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))).to_string());
        let mut command = if self.start.without_io_uring { crate::roundtrip::trampoline() } else { Command::new(PROGRAM) };
        command.args(["serve", "--exit-with-parent", "--admin", "127.0.0.1:0", "--kafka", &kafka, "--native", &native, "--data"]);
        command.arg(self.data()).args(&self.start.arguments);
        if !self.start.arguments.iter().any(|a| a == "--memory") {
            command.args(["--memory", "256M"]);
        }
        if !self.start.arguments.iter().any(|a| a == "--segment-bytes") {
            command.args(["--segment-bytes", "4M"]);
        }
        let began = Instant::now();
        // Its standard input ends with this process, and it ends with its standard input.
        let mut child = clean(&mut command).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, receiver) = channel();
        let said = Arc::clone(&self.said);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(ready) = parse_ready(&line, began.elapsed()) {
                    // Nobody listens if the broker is to be killed before it is ready.
                    let _ = sender.send(ready);
                }
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        self.child = Some(child);
        receiver
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path.join("data")
    }

    /// Everything it has written to standard error, over all its lives.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("the broker was started")
    }

    pub fn address(&self) -> String {
        self.ready().native.to_string()
    }

    /// Where Kafka's clients begin.
    pub fn kafka(&self) -> String {
        self.ready().kafka.expect("the Kafka door is open").to_string()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the broker runs"))
    }

    /// kill -9, and wait until it is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the broker runs");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the broker ended by itself ({status}); it said:\n{}", self.said());
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; has to end with exit code 0. How long it took.
    pub fn stop(&mut self) -> Duration {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let asked = Instant::now();
        let mut child = self.child.take().expect("the broker runs");
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "after SIGTERM: {status}; the broker said:\n{}", self.said());
                return asked.elapsed();
            }
            if asked.elapsed() > STOP_PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("still running {STOP_PATIENCE:?} after SIGTERM; the broker said:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.address()).unwrap()
    }

    /// Runs `ringmain ARGUMENTS --connect` this broker, which has to succeed; its standard output.
    pub fn run(&self, arguments: &[&str]) -> Vec<u8> {
        self.run_with_input(arguments, b"")
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = ringmain(&[arguments, &["--connect", &self.address()]].concat(), input);
        assert!(
            output.status.success(),
            "ringmain {} ended with {}: {}\nthe broker said:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.said()
        );
        output.stdout
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the broker said:\n{}", self.said());
        }
    }
}

/// Runs the program to its end.
pub fn ringmain(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(PROGRAM);
    let command = clean(command.args(arguments)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // On a thread of its own: a program that answers while it reads must not block on us. One that has seen enough
    // closes its end.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Nothing of the developer's own configuration reaches the program.
pub fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RINGMAIN_")) {
        command.env_remove(name);
    }
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).process_group(0)
}

/// `ready native=H:P admin=H:P io=… shards=N`; unknown fields are passed over.
fn parse_ready(line: &str, after: Duration) -> Option<Ready> {
    let fields = line.strip_prefix("ready ")?;
    let field = |name: &str| fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    Some(Ready {
        native: field("native")?.parse().ok()?,
        kafka: field("kafka").and_then(|kafka| kafka.parse().ok()),
        admin: field("admin")?.parse().ok(),
        io: field("io")?.into(),
        shards: field("shards")?.parse().ok()?,
        after,
    })
}

/// `count` free ports in a row, below the range that the kernel takes ports for connections from.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..1_000 {
        let step = NEXT.fetch_add(u32::from(count), Ordering::Relaxed);
        let first = 20_000 + ((std::process::id() * 101 + step) % 12_000) as u16;
        if (first..first + count).all(free) {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The seed is `RINGMAIN_TEST_SEED`, else the clock; printed, so that a failure can be run again.
    pub fn seeded() -> Random {
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let seed =
            std::env::var("RINGMAIN_TEST_SEED").map_or_else(|_| clock(), |seed| seed.parse().expect("RINGMAIN_TEST_SEED is a number"));
        eprintln!("RINGMAIN_TEST_SEED={seed}");
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to `limit`, exclusive.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

const READY_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(10);
