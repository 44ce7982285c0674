//! Log processing: programs write lines to one topic; errors are routed to an alert queue by a filter at the broker, everything
//! else is counted by level.
//!
//! `cargo run --release --example logs`

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::wire::queue::QueueConfig;
use ringmain_client::{Client, Outgoing, ProducerConfig};

mod common;
use common::{Broker, QUIET, Result, consumer, create_queue, print_table, row};

const SOURCES: u64 = 3;
const COUNTERS: u32 = 2;

pub struct Outcome {
    pub written: BTreeMap<&'static str, u64>,
    pub alerts: u64,
    pub counted: BTreeMap<String, u64>,
    pub took: Duration,
}

fn level(line: u64) -> &'static str {
    match line % 100 {
        0..2 => "ERROR",
        2..10 => "WARN",
        10..60 => "INFO",
        _ => "DEBUG",
    }
}

/// Takes everything from a queue; how many of each level.
fn count(client: &Client, queue: &str) -> Result<BTreeMap<String, u64>> {
    let mut lines = consumer(client, queue, 2_000)?;
    let mut counted = BTreeMap::new();
    while let Some(line) = lines.recv(QUIET)? {
        let level = String::from_utf8_lossy(line.header(b"level").unwrap_or_default()).into_owned();
        *counted.entry(level).or_default() += 1;
        lines.ack(&line);
    }
    lines.close()?;
    Ok(counted)
}

pub fn run(program: &Path, lines: u64) -> Result<Outcome> {
    let broker = Broker::start(program)?;
    let client = broker.client()?;
    let filtered = |filter: &str| QueueConfig { filter: filter.into(), ..QueueConfig::default() };
    create_queue(&client, "alerts", "log", filtered("level = 'ERROR'"))?;
    create_queue(&client, "lines", "log", filtered("level <> 'ERROR'"))?;
    let began = Instant::now();
    let panicked = || Box::<dyn std::error::Error + Send + Sync>::from("a thread panicked");
    let (alerts, counted) = thread::scope(|scope| -> Result<_> {
        let mut sources = Vec::new();
        for source in 0..SOURCES {
            let client = &client;
            sources.push(scope.spawn(move || -> Result<()> {
                let mut writer = client.producer("log", ProducerConfig::default())?;
                for line in (source..lines).step_by(SOURCES as usize) {
                    let text = format!("source {source}: line {line}");
                    writer.send(Outgoing::new(text.as_bytes()).header(b"level", Some(level(line).as_bytes())).record())?;
                }
                Ok(writer.close()?)
            }));
        }
        let alerts = scope.spawn(|| count(&client, "alerts"));
        let counters: Vec<_> = (0..COUNTERS).map(|_| scope.spawn(|| count(&client, "lines"))).collect();
        for source in sources {
            source.join().map_err(|_| panicked())??;
        }
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        for counter in counters {
            for (level, count) in counter.join().map_err(|_| panicked())?? {
                *counted.entry(level).or_default() += count;
            }
        }
        Ok((alerts.join().map_err(|_| panicked())??, counted))
    })?;
    let mut written = BTreeMap::new();
    (0..lines).for_each(|line| *written.entry(level(line)).or_default() += 1);
    let took = began.elapsed();
    assert!(alerts.keys().all(|level| level == "ERROR"), "{alerts:?}");
    Ok(Outcome { written, alerts: alerts.values().sum(), counted, took })
}

impl Outcome {
    /// Every line is counted once, in its place.
    pub fn check(&self) {
        let mut expected = self.written.clone();
        assert_eq!(expected.remove("ERROR"), Some(self.alerts));
        let counted: BTreeMap<&str, u64> = self.counted.iter().map(|(level, count)| (level.as_str(), *count)).collect();
        assert_eq!(counted, expected);
    }
}

fn main() -> Result<()> {
    let outcome = run(&common::program()?, 300_000)?;
    let mut rows = vec![row(&["level", "written", "to the alert queue", "counted by the others"])];
    for (level, written) in &outcome.written {
        let (alerts, counted) =
            if *level == "ERROR" { (outcome.alerts, 0) } else { (0, outcome.counted.get(*level).copied().unwrap_or(0)) };
        rows.push(row(&[level, &written.to_string(), &alerts.to_string(), &counted.to_string()]));
    }
    print_table(&rows);
    let lines: u64 = outcome.written.values().sum();
    println!("{lines} lines in {:.2?}; a reader of errors without the filter would have read them all", outcome.took);
    outcome.check();
    Ok(())
}
