//! Where the clients are, and how one is run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use crate::harness::{Broker, Start};

/// Set it to anything to pass over every test with a foreign client, where there is no network to get them from.
const SKIP: &str = "RINGMAIN_SKIP_CLIENTS";

pub struct Clients {
    directory: PathBuf,
}

/// The clients, fetched by the first test that wants them. `None`: the tester doesn't want them. A client that can't be had fails the
/// tests; they must not pass because nothing was tested.
pub fn clients() -> Option<&'static Clients> {
    static CLIENTS: OnceLock<Option<Clients>> = OnceLock::new();
    CLIENTS
        .get_or_init(|| {
            if std::env::var_os(SKIP).is_some() {
                eprintln!("\n*** {SKIP} is set: NOTHING is tested with Kafka's clients ***\n");
                return None;
            }
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../clients");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/install.sh");
            let output = Command::new(script).arg(&directory).stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "a client can't be had ({SKIP}=1 passes over all of these tests):\n{said}");
            Some(Clients { directory: directory.canonicalize().unwrap() })
        })
        .as_ref()
}

impl Clients {
    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A Python program of `tests/clients`.
    pub fn python(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join("python/bin/python"));
        // No cache of compiled code in the source tree.
        command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(program));
        command
    }

    /// The program `tests/clients/node.js`, for Node.
    pub fn node(&self) -> Command {
        let mut command = Command::new("node");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/node.js")).arg(self.directory.join("node"));
        command
    }

    pub fn rdkafka(&self) -> Command {
        Command::new(self.directory.join("rdkafka-check"))
    }

    /// The search engine of `tests/clients/Search.java`; its arguments are a directory and a port.
    pub fn search(&self) -> Command {
        let mut command = Command::new("java");
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx384m", "-cp"]);
        command.arg(format!("{0}/search/*:{0}/search", self.directory.display())).arg("Search");
        command
    }

    /// One of Kafka's command-line tools, or `Check` or `Streams`, the programs of `tests/clients`.
    pub fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        // Short lives: no second compiler, no parallel collector.
        command.args([
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xshare:auto",
            "-Xmx256m",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        ]);
        command.arg("-cp").arg(format!("{0}/java/*:{0}/java", self.directory.display())).arg(class);
        command
    }
}

/// A broker with two cores' shards for clients, so that leaders and coordinators are on different ports.
pub fn broker(name: &str) -> Broker {
    Broker::start(name, Start::with(&["--shards", "2"]))
}

/// Runs a client to its end, which has to be success within [`PATIENCE`]; what it said on standard output.
pub fn run(command: &mut Command) -> String {
    run_with_input(command, b"")
}

pub fn run_with_input(command: &mut Command, input: &[u8]) -> String {
    let output = output(command, input);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}{}", output.status, tail(&output.stderr));
    said
}

/// Runs a client to its end, whatever that is.
pub fn output(command: &mut Command, input: &[u8]) -> Output {
    let mut running = start(command);
    // On a thread of its own: a client that answers while it reads must not block on us.
    let (mut stdin, input) = (running.child.as_mut().unwrap().stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = running.finish(PATIENCE);
    writer.join().unwrap();
    output.unwrap_or_else(|said| panic!("{command:?} isn't done after {PATIENCE:?}:\n{said}"))
}

/// A client that runs; killed with all its children when this is dropped.
pub struct Running {
    child: Option<Child>,
}

pub fn start(command: &mut Command) -> Running {
    use std::os::unix::process::CommandExt;
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Running { child: Some(child) }
}

impl Running {
    /// Closes its input, which ends the programs that go on until then; its output, or what it had said when patience ended.
    pub fn finish(&mut self, patience: Duration) -> Result<Output, String> {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        let group = rustix::process::Pid::from_child(&child);
        let (done, watched) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let late = watched.recv_timeout(patience).is_err();
            if late {
                let _ = kill_process_group(group, Signal::KILL);
            }
            late
        });
        let output = child.wait_with_output().unwrap();
        let _ = done.send(());
        if watch.join().unwrap() {
            return Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), tail(&output.stderr)));
        }
        Ok(output)
    }

    /// Whether it has ended, which it should not have.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process_group(rustix::process::Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }
}

/// The end of what a program said: a client's complaints about a broker that is away can be long.
pub fn tail(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

pub const PATIENCE: Duration = Duration::from_secs(180);
