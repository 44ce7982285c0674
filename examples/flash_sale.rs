//! Traffic shaping: a flash sale. Far more buyers than pieces come at once; a place in line is given to as many as there
//! are pieces, everybody else is told at once, and the workers sell at their own pace.
//!
//! `cargo run --release --example flash_sale`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::control::{CreateTopic, TopicConfig};
use ringmain_client::wire::queue::{AlterQueue, QueueConfig};
use ringmain_client::{Delivery, DeliveryError, Outgoing, ProducerConfig};

mod common;
use common::{Broker, QUIET, Result, consumer, create_queue, print_table, row};

/// Selling one piece takes so long.
const SALE: Duration = Duration::from_millis(1);
const WORKERS: u32 = 4;

pub struct Outcome {
    pub buyers: u64,
    pub pieces: u64,
    pub accepted: u64,
    pub refused: u64,
    pub sold: u64,
    /// Until the last buyer had an answer.
    pub answered: Duration,
    pub sold_out: Duration,
}

pub fn run(program: &Path, buyers: u64, pieces: u64) -> Result<Outcome> {
    let broker = Broker::start(program)?;
    let client = broker.client()?;
    client.create_topic(&CreateTopic { name: "buyers".into(), partition_count: 1, config: TopicConfig::default() })?;
    // As long as there are pieces, and closed while it is sold from: what is sold makes no room for more.
    let config = QueueConfig { max_length: Some(pieces), paused: true, ..QueueConfig::default() };
    create_queue(&client, "line", "buyers", config.clone())?;

    let (accepted, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counts = (Arc::clone(&accepted), Arc::clone(&refused));
    let count = move |delivery: &Delivery| match &delivery.result {
        Ok(_) => drop(counts.0.fetch_add(1, Ordering::SeqCst)),
        Err(DeliveryError::Refused { error, .. }) if error.code == ErrorCode::QueueFull => {
            counts.1.fetch_add(1, Ordering::SeqCst);
        }
        Err(_) => {}
    };
    // Each buyer is a request of their own, and is told at once.
    let door = ProducerConfig { batch_bytes: 1, max_in_flight: 200, idempotent: false, waits_for_room: false, ..ProducerConfig::default() };
    let mut door = client.producer_with("buyers", door, count)?;
    let began = Instant::now();
    for buyer in 0..buyers {
        door.send(Outgoing::new(buyer.to_string().as_bytes()).record())?;
    }
    // The flush reports those who were refused; they are counted.
    let _ = door.flush();
    let answered = began.elapsed();

    client.alter_queue(&AlterQueue { name: "line".into(), config: QueueConfig { paused: false, ..config } })?;
    let stock = Arc::new(AtomicU64::new(pieces));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let (mut line, stock) = (consumer(&client, "line", 10)?, Arc::clone(&stock));
        workers.push(thread::spawn(move || -> Result<u64> {
            let mut sold = 0;
            while let Some(buyer) = line.recv(QUIET)? {
                if stock.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    thread::sleep(SALE);
                    sold += 1;
                }
                line.ack(&buyer);
            }
            line.close()?;
            Ok(sold)
        }));
    }
    let mut sold = 0;
    for worker in workers {
        sold += worker.join().unwrap_or_else(|_| Err("a worker panicked".into()))?;
    }
    let sold_out = began.elapsed();
    let (accepted, refused) = (accepted.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
    Ok(Outcome { buyers, pieces, accepted, refused, sold, answered, sold_out })
}

impl Outcome {
    /// Everybody has an answer, and nothing is sold twice or left.
    pub fn check(&self) {
        assert_eq!(self.accepted + self.refused, self.buyers, "everybody was told");
        assert_eq!((self.accepted, self.sold), (self.pieces, self.pieces));
    }
}

fn main() -> Result<()> {
    let outcome = run(&common::program()?, 100_000, 1_000)?;
    let (buyers, pieces) = (outcome.buyers, outcome.pieces);
    // What the same workers would need to tell every buyer by serving them.
    let before = SALE * (buyers as u32 / WORKERS);
    print_table(&[
        row(&["", "without a queue", "with a queue"]),
        row(&["until the last buyer has an answer", &format!("{before:.1?} at best"), &format!("{:.2?}", outcome.answered)]),
        row(&["at the workers' door at once", &format!("{buyers}"), &format!("{WORKERS}")]),
        row(&["sold", "", &format!("{} of {pieces}, in {:.2?}", outcome.sold, outcome.sold_out)]),
    ]);
    println!("{} in line, {} told at once that it is full", outcome.accepted, outcome.refused);
    outcome.check();
    Ok(())
}
