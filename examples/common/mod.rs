//! What the examples share: a broker of their own, as a child process, and the table they print.

#![allow(dead_code, reason = "each example uses a part of it")]

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringmain_client::wire::control::Durability;
use ringmain_client::wire::queue::{CreateQueue, QueueConfig};
use ringmain_client::{CallError, Client, Message, QueueConsumer, QueueConsumerConfig};

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A broker in a directory of its own; both go when this goes.
pub struct Broker {
    program: PathBuf,
    directory: PathBuf,
    /// Stays the same over restarts, so that clients of before go on.
    address: SocketAddr,
    child: Child,
}

impl Broker {
    /// Starts `program serve`; returns once it listens.
    pub fn start(program: &Path) -> Result<Broker> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let directory = program.parent().unwrap_or(Path::new(".")).join(format!("example-{}-{}", std::process::id(), address.port()));
        let child = serve(program, &directory, address)?;
        Ok(Broker { program: program.into(), directory, address, child })
    }

    /// kill -9, and another start on the same directory.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = serve(&self.program, &self.directory, self.address)?;
        Ok(())
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.address.to_string())?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn serve(program: &Path, directory: &Path, address: SocketAddr) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["serve", "--exit-with-parent", "--kafka", "off", "--admin", "off", "--shards", "1", "--memory", "256M"]);
    command.args(["--native", &address.to_string(), "--data"]).arg(directory);
    // Its standard input ends with this process, and it ends with its standard input.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().ok_or("the broker has no standard error")?).lines();
    for line in lines.by_ref() {
        let line = line?;
        if line.starts_with("ready ") {
            std::thread::spawn(move || lines.map_while(std::result::Result::ok).for_each(drop));
            return Ok(child);
        }
        said = said + &line + "\n";
    }
    Err(format!("the broker didn't start: {said}").into())
}

/// The broker's program, beside this one; under cargo it is built first, so that it is of the same source.
pub fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let directory = here.parent().and_then(Path::parent).ok_or("this program has no place")?;
    let program = directory.join("ringmain");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = directory.file_name().filter(|name| *name != "debug").unwrap_or("dev".as_ref());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--bin", "ringmain", "--profile"]).arg(profile).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !build.status()?.success() {
            return Err("the broker doesn't build".into());
        }
    }
    if !program.is_file() {
        return Err(format!("no broker at {}; build it with cargo build --release", program.display()).into());
    }
    Ok(program)
}

/// A queue over a topic; `topic` empty = of the same name.
pub fn create_queue(client: &Client, name: &str, topic: &str, config: QueueConfig) -> std::result::Result<(), CallError> {
    let (name, topic, durability) = (name.into(), topic.into(), Durability::Durable);
    client.create_queue(&CreateQueue { name, topic, partition_count: 1, durability, config }).map(drop)
}

pub fn consumer(client: &Client, queue: &str, prefetch: u32) -> Result<QueueConsumer> {
    Ok(client.queue_consumer(queue, QueueConsumerConfig { prefetch, ..QueueConsumerConfig::default() })?)
}

pub fn text(message: &Message) -> String {
    String::from_utf8_lossy(message.value().unwrap_or_default()).into_owned()
}

/// Nothing comes for so long: there is nothing.
pub const QUIET: Duration = Duration::from_millis(300);

/// Rows of equal length, in columns; the first row is the head.
pub fn print_table(rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in rows {
        let cells: Vec<String> = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column))).collect();
        println!("  {}", cells.join("   ").trim_end());
    }
}

pub fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}
