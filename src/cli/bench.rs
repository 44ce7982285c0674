//! `ringmain bench`: flags onto [`ringmain_perf::BenchOptions`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use ringmain_client::wire::control::Durability;
use ringmain_perf::BenchOptions;

use super::{Format, output};

/// Without a mode: a tour of about 30 s, every mode once. Exits with 0 only if all data that came back was right.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArguments {
    #[command(subcommand)]
    compare: Option<Verb>,
    /// What to measure [default: a tour of all]
    #[arg(value_enum)]
    mode: Option<Mode>,
    #[command(flatten)]
    workload: Workload,
    #[command(flatten)]
    broker: Broker,
    /// Also write JSON, .hgrm, .hlog and an HTML page to this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Compare two results: directories made by --out, or their JSON files
    Compare {
        /// The result to compare with
        before: PathBuf,
        /// The newer result
        after: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Producers only
    Produce,
    /// Consumers only, of data written before
    Consume,
    /// From a message's intended time to its arrival at a consumer
    E2e,
    /// One message at a time on one connection
    Ping,
    /// A queue: published, delivered, acknowledged; timed from a message's intended (or due) time to its delivery
    Queue,
    /// This machine without a broker: device flush and bandwidth, TCP echo, memory copy, checksum
    Limits,
}

#[derive(Args)]
#[command(next_help_heading = "Workload")]
struct Workload {
    /// Payload bytes per message
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = size)]
    size: usize,
    /// Payloads are the lines of this file instead of random bytes
    #[arg(long, value_name = "FILE")]
    payload_file: Option<PathBuf>,
    /// Messages per request; 1 = one request, one frame and one reply per message
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: u32,
    /// Requests per connection without an answer [default: 64 for batches of 1, else 8]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Connections [default: 16, consume and e2e 4, ping 1]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Partitions of the topic [default: one per connection]
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// Distinct keys; a key decides the partition; 0 = messages have none
    #[arg(long, value_name = "N", default_value_t = 0)]
    keys: u64,
    /// Durability of the topic
    #[arg(long, value_name = "durable|written|memory", default_value_t = Durability::Durable)]
    durability: Durability,
    /// Open loop: messages per second over all connections, each with a time of its own [default: closed loop]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Open loop: an incomplete batch leaves when its first message has been due for so long
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 200)]
    linger_us: u64,
    /// Before the window opens, as 2s or 500ms [default: 2s, with --count 0s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    warmup: Option<Duration>,
    /// Length of the window, as 10s or 1m [default: 10s, 2.5s per run of the tour]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "count")]
    duration: Option<Duration>,
    /// Close the window after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Don't check checksums, offsets and order of what is consumed
    #[arg(long)]
    no_verify: bool,
    /// Seed of the payloads
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// consume, e2e: largest answer to a fetch
    #[arg(long, value_name = "BYTES", default_value = "1M", value_parser = fetch_bytes)]
    fetch_bytes: u32,
    /// consume: bytes written before reading [default: 64M, with --cold 3G]
    #[arg(long, value_name = "BYTES", value_parser = ringmain::config::parse_bytes)]
    preload: Option<u64>,
    /// consume: write more than the broker has memory for, so that reads come from the disk
    #[arg(long)]
    cold: bool,
    /// consume: fill the partitions in turn with batches of so many bytes, then read only the first
    #[arg(long, value_name = "BYTES", value_parser = fetch_bytes)]
    preload_round_robin: Option<u32>,
    /// consume: messages per second written meanwhile, to another topic
    #[arg(long, value_name = "N")]
    produce_rate: Option<f64>,
    /// queue: consumers [default: one per partition]
    #[arg(long, value_name = "N")]
    consumers: Option<usize>,
    /// queue: connections that publish; the same as --connections [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "connections")]
    producers: Option<usize>,
    /// queue: messages per publish; the same as --batch
    #[arg(long, value_name = "N", conflicts_with = "batch")]
    publish_batch: Option<u32>,
    /// queue: messages delivered to a consumer and not settled
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    prefetch: u32,
    /// queue: messages acknowledged in one request
    #[arg(long, value_name = "N", default_value_t = 100)]
    ack_batch: u32,
    /// queue: levels of priority; each message has one of them
    #[arg(long, value_name = "N", default_value_t = 1)]
    priorities: u16,
    /// queue: each message is due so many ms after it is published, as 10..100 or 50
    #[arg(long, value_name = "A..B", value_parser = delay)]
    delay_ms: Option<(u64, u64)>,
}

#[derive(Args)]
#[command(next_help_heading = "Broker and machine")]
struct Broker {
    /// Measure a running broker [default: one of its own, in a fresh directory]. RINGMAIN_CONNECT is ignored here: a load
    /// goes where the command line says
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// Use this topic; made if missing, removed at the end only if made [default: a fresh one, removed at the end]
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Where the broker's data directory is made; not a RAM disk [default: beside the current directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Program to start as PROGRAM serve … [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// serve --cores [default: all but the load's]
    #[arg(long, value_name = "LIST")]
    broker_cores: Option<String>,
    /// TCP congestion control of the load's connections, as reno [default: the system's]
    #[arg(long, value_name = "NAME")]
    tcp_congestion: Option<String>,
    /// Core of the load [default: the first]
    #[arg(long, value_name = "N")]
    client_core: Option<usize>,
    /// serve --io
    #[arg(long, value_name = "auto|uring|fallback")]
    io: Option<String>,
    /// serve --memory
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,
    /// serve --spin-us
    #[arg(long, value_name = "MICROSECONDS")]
    spin_us: Option<u32>,
    /// One more argument for serve; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    serve_argument: Vec<String>,
}

pub fn run(arguments: Box<BenchArguments>, format: Format) -> Result<ExitCode> {
    let format = match format {
        Format::Text => ringmain_perf::Format::Human,
        Format::Json => ringmain_perf::Format::Json,
    };
    if let Some(Verb::Compare { before, after }) = &arguments.compare {
        output::line(ringmain_perf::compare::compare(before, after, format)?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    // The load looks for replies without sleeping, and often on the core that takes the disk's interrupts: unless it lets the kernel's
    // threads in, it measures how long flushes wait for it. Its thread inherits this; it matters to nothing else if it is refused.
    let _ = ringmain::device::schedule::let_others_in();
    let outcome = ringmain_perf::run(&options(*arguments, format))?;
    Ok(if outcome.is_verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(arguments: BenchArguments, format: ringmain_perf::Format) -> BenchOptions {
    let BenchArguments { compare: _, mode, workload, broker, out } = arguments;
    BenchOptions {
        mode: match mode {
            None => ringmain_perf::Mode::Tour,
            Some(Mode::Produce) => ringmain_perf::Mode::Produce,
            Some(Mode::Consume) => ringmain_perf::Mode::Consume,
            Some(Mode::E2e) => ringmain_perf::Mode::EndToEnd,
            Some(Mode::Ping) => ringmain_perf::Mode::Ping,
            Some(Mode::Queue) => ringmain_perf::Mode::Queue,
            Some(Mode::Limits) => ringmain_perf::Mode::Limits,
        },
        connect: broker.connect,
        topic: broker.topic,
        size: workload.size,
        payload_file: workload.payload_file,
        batch: workload.publish_batch.unwrap_or(workload.batch),
        in_flight: workload.in_flight,
        connections: workload.producers.or(workload.connections),
        partitions: workload.partitions,
        keys: workload.keys,
        durability: workload.durability,
        rate: workload.rate,
        linger_us: workload.linger_us,
        warmup: workload.warmup,
        duration: workload.duration,
        count: workload.count,
        verify: !workload.no_verify,
        seed: workload.seed,
        fetch_bytes: workload.fetch_bytes,
        preload_bytes: workload.preload,
        cold: workload.cold,
        preload_round_robin: workload.preload_round_robin,
        produce_rate: workload.produce_rate,
        consumers: workload.consumers,
        prefetch: workload.prefetch,
        ack_batch: workload.ack_batch,
        priorities: workload.priorities,
        delay_ms: workload.delay_ms,
        tcp_congestion: broker.tcp_congestion,
        format,
        out,
        directory: broker.dir,
        program: broker.program,
        broker_cores: broker.broker_cores,
        client_core: broker.client_core,
        io: broker.io,
        memory: broker.memory,
        spin_us: broker.spin_us,
        serve_arguments: broker.serve_argument,
    }
}

/// `10s`, `500ms`, `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[digits..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(DURATION_MISTAKE.into()),
    };
    let number: f64 = text[..digits].parse().map_err(|_| DURATION_MISTAKE)?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| DURATION_MISTAKE.into())
}

fn delay(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
        _ => Err("two times in ms, as 10..100".into()),
    }
}

fn size(text: &str) -> Result<usize, String> {
    ringmain::config::parse_bytes(text).map(|bytes| bytes as usize)
}

fn fetch_bytes(text: &str) -> Result<u32, String> {
    u32::try_from(ringmain::config::parse_bytes(text)?).map_err(|_| "less than 4G".into())
}

const DURATION_MISTAKE: &str = "write a time as 10s, 500ms or 2m";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn parsed(line: &str) -> BenchOptions {
        match Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}")).command {
            Command::Bench(arguments) => options(*arguments, ringmain_perf::Format::Human),
            _ => panic!("{line}: not a bench"),
        }
    }

    /// What isn't given is what the harness itself would choose.
    #[test]
    fn defaults_are_those_of_the_harness() {
        assert_eq!(format!("{:?}", parsed("ringmain bench")), format!("{:?}", BenchOptions::default()));
    }

    #[test]
    fn contract_line_is_understood() {
        let options = parsed(
            "ringmain bench produce --connect h:1 --size 1K --batch 1 --in-flight 64 --connections 16 --partitions 4 --durability memory --rate 1000 --duration 10s --format json",
        );
        assert_eq!(
            (options.mode, options.connect.as_deref(), options.size, options.batch),
            (ringmain_perf::Mode::Produce, Some("h:1"), 1024, 1)
        );
        assert_eq!((options.in_flight, options.connections, options.partitions), (Some(64), Some(16), Some(4)));
        assert_eq!((options.durability, options.rate, options.duration), (Durability::Memory, Some(1000.0), Some(Duration::from_secs(10))));
        assert_eq!(parsed("ringmain bench ping --count 5 --warmup 250ms").warmup, Some(Duration::from_millis(250)));
        assert!(
            matches!(Cli::try_parse_from("ringmain bench compare a b".split(' ')).unwrap().command, Command::Bench(b) if b.compare.is_some())
        );
    }

    #[test]
    fn contract_line_of_queues_is_understood() {
        let options = parsed(
            "ringmain bench queue --size 100 --prefetch 50 --consumers 3 --producers 2 --publish-batch 7 --ack-batch 9 --priorities 10 --delay-ms 5..60 --rate 1000 --duration 10s",
        );
        assert_eq!((options.mode, options.batch, options.connections()), (ringmain_perf::Mode::Queue, 7, 2));
        assert_eq!((options.prefetch, options.consumers(), options.ack_batch), (50, 3, 9));
        assert_eq!((options.priorities, options.delay_ms), (10, Some((5, 60))));
        assert!(Cli::try_parse_from("ringmain bench queue --delay-ms 9..1".split(' ')).is_err());
    }

    #[test]
    fn duration_is_read_with_its_unit() {
        for (text, expected) in [
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1.5", Some(1_500)),
            ("s", None),
            ("1d", None),
            ("", None),
        ] {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
    }
}
