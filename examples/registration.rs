//! Asynchronous processing: a registration also sends an e-mail and a text message, 50 ms each.
//!
//! Done one after the other, a visitor waits for all three; side by side, for two; with a queue, for their own row only.
//!
//! `cargo run --release --example registration`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::wire::queue::QueueConfig;
use ringmain_client::{Outgoing, ProducerConfig};

mod common;
use common::{Broker, Result, consumer, create_queue, print_table, row};

/// Each of the three steps takes so long.
const STEP: Duration = Duration::from_millis(50);
/// Visitors at a time.
const DESKS: u32 = 4;

pub struct Outcome {
    pub registrations: u64,
    pub serial: Waited,
    pub parallel: Waited,
    pub queued: Waited,
    pub emails: u64,
    pub texts: u64,
}

/// How long visitors wait for their answer.
#[derive(Clone, Copy)]
pub struct Waited {
    pub mean: Duration,
    pub least: Duration,
}

/// Registers so many visitors in one of the three ways, several at a time.
fn measure(visitors: u32, register: impl Fn(u32) -> Result<()> + Sync) -> Result<Waited> {
    let register = &register;
    let waited = thread::scope(|scope| {
        let desks: Vec<_> = (0..DESKS)
            .map(|desk| {
                scope.spawn(move || -> Result<Vec<Duration>> {
                    let mut waited = Vec::new();
                    for visitor in (desk..visitors).step_by(DESKS as usize) {
                        let asked = Instant::now();
                        register(visitor)?;
                        waited.push(asked.elapsed());
                    }
                    Ok(waited)
                })
            })
            .collect();
        desks.into_iter().map(|desk| desk.join().unwrap_or_else(|_| Err("a desk panicked".into()))).collect::<Result<Vec<_>>>()
    })?;
    let waited = waited.concat();
    let least = waited.iter().min().copied().unwrap_or_default();
    Ok(Waited { mean: waited.iter().sum::<Duration>() / visitors, least })
}

pub fn run(program: &Path, visitors: u32) -> Result<Outcome> {
    let broker = Broker::start(program)?;
    let client = broker.client()?;
    // One topic, two queues over it: each kind of worker sees every registration.
    create_queue(&client, "emails", "registrations", QueueConfig::default())?;
    create_queue(&client, "texts", "registrations", QueueConfig::default())?;

    let serial = measure(visitors, |_| {
        (0..3).for_each(|_| thread::sleep(STEP));
        Ok(())
    })?;
    let parallel = measure(visitors, |_| {
        thread::sleep(STEP);
        thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(|| thread::sleep(STEP)))));
        Ok(())
    })?;

    let sent = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let mut workers = Vec::new();
    for (queue, sent) in ["emails", "texts"].iter().zip(&sent) {
        for _ in 0..DESKS * 2 {
            let (mut consumer, sent) = (consumer(&client, queue, 2)?, Arc::clone(sent));
            workers.push(thread::spawn(move || -> Result<()> {
                while sent.load(Ordering::SeqCst) < u64::from(visitors) {
                    let Some(message) = consumer.recv(Duration::from_millis(50))? else { continue };
                    thread::sleep(STEP);
                    consumer.ack(&message);
                    // Counted once the acknowledgement is safe.
                    sent.fetch_add(consumer.flush()?.settled, Ordering::SeqCst);
                }
                Ok(())
            }));
        }
    }
    let queued = measure(visitors, |visitor| {
        thread_local! { static DESK: std::cell::RefCell<Option<ringmain_client::Producer>> = const { std::cell::RefCell::new(None) }; }
        thread::sleep(STEP);
        DESK.with_borrow_mut(|desk| -> Result<()> {
            if desk.is_none() {
                *desk = Some(client.producer("registrations", ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() })?);
            }
            let producer = desk.as_mut().ok_or("no producer")?;
            let (_, delivery) = producer.send_and_wait(Outgoing::new(format!("visitor {visitor}").as_bytes()).record())?;
            delivery.result?;
            Ok(())
        })
    })?;
    for worker in workers {
        worker.join().unwrap_or_else(|_| Err("a worker panicked".into()))?;
    }
    let [emails, texts] = sent.map(|sent| sent.load(Ordering::SeqCst));
    Ok(Outcome { registrations: visitors.into(), serial, parallel, queued, emails, texts })
}

impl Outcome {
    /// Every visitor got both messages. Nobody was faster than the steps that they wait for, and with the queue somebody was faster
    /// than with any other way: how much faster depends on what else the machine does.
    pub fn check(&self) {
        assert_eq!((self.emails, self.texts), (self.registrations, self.registrations));
        assert!(self.serial.least >= STEP * 3 && self.parallel.least >= STEP * 2 && self.queued.least >= STEP);
        assert!(self.queued.least < STEP * 2, "{:?} at best", self.queued.least);
    }
}

fn main() -> Result<()> {
    let outcome = run(&common::program()?, 200)?;
    let line = |name: &str, Waited { mean, .. }: Waited| {
        let per_second = f64::from(DESKS) / mean.as_secs_f64();
        row(&[name, &format!("{:.1} ms", mean.as_secs_f64() * 1e3), &format!("{per_second:.0}")])
    };
    print_table(&[
        row(&["registration", "response", "per second"]),
        line("one after the other", outcome.serial),
        line("side by side", outcome.parallel),
        line("with a queue", outcome.queued),
    ]);
    println!("{} registrations, {} e-mails and {} text messages sent", outcome.registrations, outcome.emails, outcome.texts);
    outcome.check();
    Ok(())
}
