//! Runs whole lives of the log on the simulated disk, one per seed, on every core.
//!
//! `cargo run --release --example simulate -- --seeds 0..1000000`
//! `cargo run --release --example simulate -- --seeds 4711..4712 --trace`
//! `cargo run --release --example simulate -- --plant no-mark-group --seeds 0..1000`

use std::cell::Cell;
use std::panic;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Parser;
use ringmain::log::Plant;
use ringmain::simulation::{PLANTS, Summary, Violation, run};

/// From so many seeds on, everything must have happened.
const SEEDS_FOR_COVERAGE: u64 = 1_000;

#[derive(Parser)]
struct Arguments {
    /// First seed and the one after the last.
    #[arg(long, default_value = "0..10000", value_parser = seeds)]
    seeds: (u64, u64),
    /// A mistake to plant, by name; the run succeeds when it is caught.
    #[arg(long, value_parser = plant)]
    plant: Option<Plant>,
    /// Tell what happens, on standard error; for one seed.
    #[arg(long)]
    trace: bool,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Threads; default: one per core.
    #[arg(long)]
    threads: Option<usize>,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parse = |text: &str| text.replace('_', "").parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    match text.split_once("..") {
        Some((first, end)) => Ok((parse(first)?, parse(end)?)),
        None => parse(text).map(|seed| (seed, seed + 1)),
    }
}

fn plant(name: &str) -> Result<Plant, String> {
    let found = PLANTS.iter().find(|(other, _)| *other == name);
    let names: Vec<&str> = PLANTS.iter().map(|(name, _)| *name).collect();
    found.map(|&(_, plant)| plant).ok_or_else(|| format!("one of {}", names.join(", ")))
}

thread_local! {
    /// For the message of a panic.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        eprintln!("seed {}: panic", SEED.get());
        usual(what);
    }));
    let (first, end) = arguments.seeds;
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Summary::default());
    let violations: Mutex<Vec<Violation>> = Mutex::new(Vec::new());
    let threads = arguments.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |count| count.get()));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sum = Summary::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    SEED.set(seed);
                    match run(seed, arguments.plant, arguments.trace) {
                        Ok(summary) => sum.add(&summary),
                        Err(violation) => {
                            eprintln!("{violation}");
                            violations.lock().unwrap().push(violation);
                            stop.fetch_or(!arguments.keep_going, Ordering::Relaxed);
                        }
                    }
                }
                total.lock().unwrap().add(&sum);
            });
        }
    });
    let (total, violations) = (total.into_inner().unwrap(), violations.into_inner().unwrap());
    for (name, count) in total.rows() {
        println!("{name:>24} {count}");
    }
    println!("{} violations, {:.1} s", violations.len(), started.elapsed().as_secs_f64());
    if arguments.plant.is_some() {
        return ExitCode::from(u8::from(violations.is_empty()));
    }
    let never_seen = if end - first >= SEEDS_FOR_COVERAGE { total.never_seen() } else { Vec::new() };
    if !never_seen.is_empty() {
        println!("never seen, so nothing is proven about it: {}", never_seen.join(", "));
    }
    ExitCode::from(u8::from(!violations.is_empty() || !never_seen.is_empty()))
}
