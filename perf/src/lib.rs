//! Ringmain's benchmark harness: what `ringmain bench` links.
//!
//! ```text
//! options → broker (child) → workload → native (one thread of load) → histogram → report
//! ```
//! | module | what it does |
//! |---|---|
//! | [`workload`] | payloads, prebuilt requests, open-loop schedule, partitions → connections |
//! | [`native`] | the load generator over the native protocol |
//! | [`histogram`] | latencies of a run, per interval of time |
//! | [`report`] | table, percentile plot, JSON, `.hgrm`, `.hlog`, HTML |
//! | [`compare`] | two reports side by side |
//! | [`broker`] | the broker as a child process, CPU time and memory |
//! | [`limits`] | what this machine can do at best |
//! | [`tour`] | the main job: everything in half a minute |
//!
//! The method, and what the numbers mean, is in `perf/README.md`.

pub mod broker;
pub mod compare;
pub mod control;
#[cfg(test)]
mod fake;
pub mod histogram;
pub mod limits;
pub mod native;
pub mod report;
mod scenario;
#[cfg(test)]
mod tests;
pub mod tour;
pub mod workload;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmain_wire::control::Durability;

pub use native::Progress;
pub use report::{Output, RunReport};
pub use scenario::Session;

/// What to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A bit of everything, in about 30 s.
    #[default]
    Tour,
    /// Producers only.
    Produce,
    /// Consumers only, of data that is there.
    Consume,
    /// Producers and consumers: from a message's intended time to its arrival.
    EndToEnd,
    /// One message at a time on one connection.
    Ping,
    /// Producers and consumers of a queue: published, delivered, acknowledged.
    Queue,
    /// The machine without a broker.
    Limits,
}

impl Mode {
    /// As in the command and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Tour => "tour",
            Mode::Produce => "produce",
            Mode::Consume => "consume",
            Mode::EndToEnd => "e2e",
            Mode::Ping => "ping",
            Mode::Queue => "queue",
            Mode::Limits => "limits",
        }
    }
}

/// How to print results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Tables and plots.
    #[default]
    Human,
    /// One JSON object on standard output and nothing else there.
    Json,
}

/// Everything `ringmain bench` can be told. `Default` is the tour; every field has a meaning of its own for `None`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What to measure. Default: the tour.
    pub mode: Mode,
    /// `HOST:PORT` of a running broker. `None` = start one as a child process.
    pub connect: Option<String>,
    /// Topic to use; made if missing, and removed at the end only if made. `None` = a fresh one, removed at the end.
    pub topic: Option<String>,
    /// Payload bytes per message. From 16 bytes on each message carries a sequence number. Default: 100.
    pub size: usize,
    /// Payloads are the lines of this file instead of random bytes. `None` = random.
    pub payload_file: Option<PathBuf>,
    /// Messages per batch; 1 = one request, one frame and one reply per message. Default: 100.
    pub batch: u32,
    /// Requests per connection without an answer. `None` = 64 for batches of 1, otherwise 8.
    pub in_flight: Option<usize>,
    /// Connections. `None` = 16 (produce), 4 (consume, e2e), 1 (ping).
    pub connections: Option<usize>,
    /// Partitions of the topic. `None` = one per connection.
    pub partitions: Option<u32>,
    /// Distinct keys; a key decides the partition. 0 = messages have no key. Default: 0.
    pub keys: u64,
    /// Durability of the topic. Default: durable.
    pub durability: Durability,
    /// Open loop: messages per second over all connections. `None` = closed loop.
    pub rate: Option<f64>,
    /// Open loop: an incomplete batch leaves when its first message is due for so many µs. Default: 200.
    pub linger_us: u64,
    /// Before the window opens. `None` = 2 s with a duration, 0 with a count.
    pub warmup: Option<Duration>,
    /// Length of the window. `None` = 10 s (2.5 s per run of the tour).
    pub duration: Option<Duration>,
    /// The window closes after so many messages. `None` = by time.
    pub count: Option<u64>,
    /// Checksums, offsets and sequence numbers of consumed data are checked. Default: true.
    pub verify: bool,
    /// Seed of the payloads. Default: 1.
    pub seed: u64,
    /// Consume, e2e: `max_bytes` of a fetch. Default: 1 MiB.
    pub fetch_bytes: u32,
    /// Consume: bytes of frames written before reading. `None` = 64 MiB, or 3 GiB if `cold`.
    pub preload_bytes: Option<u64>,
    /// Consume: write more than the broker has memory for, so that reads come from the disk. Default: false.
    pub cold: bool,
    /// Consume: fill the partitions in turn with batches of so many bytes, then read only the first partition. `None` = off.
    pub preload_round_robin: Option<u32>,
    /// Consume: messages per second written meanwhile, to another topic. `None` = none.
    pub produce_rate: Option<f64>,
    /// Queue: consumers. `None` = one per partition.
    pub consumers: Option<usize>,
    /// Queue: messages delivered to a consumer and not settled. Default: 1,000.
    pub prefetch: u32,
    /// Queue: messages acknowledged in one request. Default: 100.
    pub ack_batch: u32,
    /// Queue: levels of priority; each message has one of them. Default: 1.
    pub priorities: u16,
    /// Queue: each message is due so many ms after it is published, between these. `None` = at once.
    pub delay_ms: Option<(u64, u64)>,
    /// TCP congestion control of the load's sockets. `None` = the kernel's default.
    pub tcp_congestion: Option<String>,
    /// Default: for people.
    pub format: Format,
    /// Directory for JSON, `.hgrm`, `.hlog` and the HTML page. `None` = none are written.
    pub out: Option<PathBuf>,
    /// Where the broker's data directory is made. `None` = beside the current directory.
    pub directory: Option<PathBuf>,
    /// Program that is started as `PROGRAM serve …`. `None` = this one.
    pub program: Option<PathBuf>,
    /// `serve --cores`. `None` = all but the load's, on a machine with one core that one.
    pub broker_cores: Option<String>,
    /// Core of the load. `None` = the first; with `connect`, wherever the kernel likes.
    pub client_core: Option<usize>,
    /// `serve --io`. `None` = the broker's default.
    pub io: Option<String>,
    /// `serve --memory`. `None` = the broker's default.
    pub memory: Option<String>,
    /// `serve --spin-us`. `None` = the broker's default.
    pub spin_us: Option<u32>,
    /// Further arguments of `serve`. Default: none.
    pub serve_arguments: Vec<String>,
}

impl Default for BenchOptions {
    fn default() -> BenchOptions {
        BenchOptions {
            mode: Mode::Tour,
            connect: None,
            topic: None,
            size: 100,
            payload_file: None,
            batch: 100,
            in_flight: None,
            connections: None,
            partitions: None,
            keys: 0,
            durability: Durability::Durable,
            rate: None,
            linger_us: 200,
            warmup: None,
            duration: None,
            count: None,
            verify: true,
            seed: 1,
            fetch_bytes: 1 << 20,
            preload_bytes: None,
            cold: false,
            preload_round_robin: None,
            produce_rate: None,
            consumers: None,
            prefetch: 1_000,
            ack_batch: 100,
            priorities: 1,
            delay_ms: None,
            tcp_congestion: None,
            format: Format::Human,
            out: None,
            directory: None,
            program: None,
            broker_cores: None,
            client_core: None,
            io: None,
            memory: None,
            spin_us: None,
            serve_arguments: Vec::new(),
        }
    }
}

impl BenchOptions {
    /// Refuses what can't be run, in words that name the flag.
    pub fn check(&self) -> Result<()> {
        let positive = [
            (self.batch as usize, "--batch"),
            (self.in_flight.unwrap_or(1), "--in-flight"),
            (self.connections.unwrap_or(1), "--connections"),
        ];
        if let Some((_, flag)) = positive.iter().find(|(value, _)| *value == 0) {
            bail!("{flag} must be at least 1");
        }
        if self.partitions == Some(0) {
            bail!("--partitions must be at least 1");
        }
        if self.connections() > usize::from(u16::MAX) {
            bail!("--connections is at most {}", u16::MAX);
        }
        if self.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) || self.produce_rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0)
        {
            bail!("a rate must be more than 0 messages per second");
        }
        if self.count == Some(0) || self.duration.is_some_and(|d| d.is_zero()) {
            bail!("--count and --duration must be more than 0");
        }
        if self.prefetch == 0 || self.ack_batch == 0 || self.consumers == Some(0) {
            bail!("--prefetch, --ack-batch and --consumers must be at least 1");
        }
        if !(1..=256).contains(&self.priorities) {
            bail!("--priorities is 1 to 256");
        }
        if self.mode == Mode::Queue && (self.payload_file.is_some() || self.size < workload::STAMPED_PAYLOAD_BYTES) {
            bail!(
                "queue keeps number and time in the payload: --size must be at least {}, without --payload-file",
                workload::STAMPED_PAYLOAD_BYTES
            );
        }
        if self.mode == Mode::EndToEnd && (self.payload_file.is_some() || self.size < workload::STAMPED_PAYLOAD_BYTES) {
            bail!("e2e keeps the time in the payload: --size must be at least {}, without --payload-file", workload::STAMPED_PAYLOAD_BYTES);
        }
        if self.mode == Mode::Ping && self.rate.is_some() {
            bail!("ping sends when the last answer is there; --rate goes with produce and e2e");
        }
        let frame_bytes = self.size.saturating_add(64).saturating_mul(self.batch as usize);
        if self.payload_file.is_none() && frame_bytes > ringmain_wire::MAX_MESSAGE_BYTES_LIMIT as usize {
            bail!("--size × --batch is {} MiB; a frame has at most {}", frame_bytes >> 20, ringmain_wire::MAX_MESSAGE_BYTES_LIMIT >> 20);
        }
        Ok(())
    }

    /// Connections, by default by mode.
    pub fn connections(&self) -> usize {
        match (self.connections, self.mode) {
            (_, Mode::Ping) => 1,
            (Some(connections), _) => connections,
            (None, Mode::Consume) if self.preload_round_robin.is_some() => 1,
            (None, Mode::Consume | Mode::EndToEnd) => 4,
            (None, Mode::Queue) => 1,
            (None, _) => 16,
        }
    }

    /// Requests in flight, by default by batch.
    pub fn in_flight(&self) -> usize {
        match (self.in_flight, self.mode) {
            (_, Mode::Ping) => 1,
            (Some(in_flight), _) => in_flight,
            (None, _) => {
                if self.batch == 1 {
                    64
                } else {
                    8
                }
            }
        }
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        match (self.partitions, self.mode) {
            (Some(partitions), _) => partitions,
            (None, Mode::Consume) if self.preload_round_robin.is_some() => 64,
            (None, Mode::Queue) => 1,
            (None, _) => self.connections() as u32,
        }
    }

    /// Consumers of the queue.
    pub fn consumers(&self) -> usize {
        self.consumers.unwrap_or(self.partitions() as usize)
    }

    /// How long.
    pub fn length(&self) -> native::Length {
        let warmup = if self.count.is_some() { Duration::ZERO } else { Duration::from_secs(2) };
        native::Length {
            warmup: self.warmup.unwrap_or(warmup),
            duration: self.duration.unwrap_or(Duration::from_secs(10)),
            count: self.count,
        }
    }
}

/// Everything a call of [`run`] measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// In the order they ran.
    pub runs: Vec<RunReport>,
}

impl Outcome {
    /// Every run's data was as it had to be: the process may exit with 0.
    pub fn is_verified(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.verified)
    }
}

/// The command: measures, prints to standard output, writes `--out`. Ctrl-C stops it and cleans up.
pub fn run(options: &BenchOptions) -> Result<Outcome> {
    options.check()?;
    let progress = Arc::new(Progress::default());
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second Ctrl-C ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&progress.interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&progress.interrupted))?;
    }
    let mut output = Output::new(options);
    let outcome = match options.mode {
        Mode::Tour => tour::tour(options, &progress, &mut output)?,
        _ => Outcome { runs: vec![measure(options, &progress)?] },
    };
    output.finish(&outcome, options)?;
    Ok(outcome)
}

/// One mode other than the tour, without printing: what tests and other programs call.
pub fn measure(options: &BenchOptions, progress: &Arc<Progress>) -> Result<RunReport> {
    options.check()?;
    if options.mode == Mode::Limits {
        let (limits, place) = with_bar(options, progress, "limits", || limits::measure(options))?;
        return Ok(RunReport::of_limits(limits, place.as_ref()));
    }
    let mut session = Session::open(options)?;
    let report = session.measure(options, progress);
    let stopped = session.close();
    let report = report?;
    stopped?;
    Ok(report)
}

/// Runs `work` on a thread of its own, so that it can be pinned, while this one draws how far it is.
pub(crate) fn with_bar<T: Send>(
    options: &BenchOptions,
    progress: &Arc<Progress>,
    name: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    progress.messages.store(0, Ordering::Relaxed);
    progress.elapsed_ns.store(0, Ordering::Relaxed);
    let length = options.length();
    let (total, by_time) = match length.count {
        Some(count) => (count, false),
        None => ((length.warmup + length.duration).as_millis() as u64, true),
    };
    let is_drawn = std::io::stderr().is_terminal() && options.format == Format::Human;
    let target = if is_drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{prefix:32} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name.to_owned());
    let done = std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        let (mut last, mut polls) = ((0, 0), 0_u32);
        while !worker.is_finished() {
            // Short runs end soon; long ones aren't disturbed often.
            std::thread::sleep(Duration::from_millis(if polls < 20 { 5 } else { 100 }));
            polls += 1;
            if is_drawn && polls > 20 {
                let now = (progress.messages.load(Ordering::Relaxed), progress.elapsed_ns.load(Ordering::Relaxed));
                bar.set_position(if by_time { now.1 / 1_000_000 } else { now.0 });
                if now.1 > last.1 {
                    let rate = now.0.saturating_sub(last.0) as f64 * 1e9 / (now.1 - last.1) as f64;
                    bar.set_message(if now.0 == 0 { "warming up".to_owned() } else { format!("{} messages/s", report::thousands(rate)) });
                }
                last = now;
            }
        }
        worker.join()
    });
    bar.finish_and_clear();
    match done {
        Ok(result) => result,
        Err(_) => bail!("the load generator panicked"),
    }
}
