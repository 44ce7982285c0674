//! How long a message takes through a broker with Kafka's protocol, by librdkafka: from the moment it is meant to leave to the moment a
//! consumer in the same process has it. Producer and consumer are threads; the topic has one partition and exists or is made by the
//! broker. Prints one line of JSON; ends with 1 if a message is missing or comes out of order.
//!
//! Without `--rate` one message is in flight at a time; with it every message has its own time to leave, whatever became of those
//! before it, so a stall shows in all that should have left meanwhile.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);
/// What a message begins with: its number and its time to leave, in nanoseconds since the run began; both little endian.
const STAMP_BYTES: usize = 16;
/// Messages before the run, which make the topic, the connections and the consumer's place in it.
const FIRST: u64 = 50;

#[derive(Parser)]
struct Arguments {
    /// Address of the broker: HOST:PORT.
    #[arg(long)]
    broker: String,
    #[arg(long)]
    topic: String,
    /// Bytes of a message's value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=1_000_000))]
    size: u32,
    /// Messages per second; without it one message at a time.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Left out of the result, in seconds.
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    #[arg(long, default_value_t = 0)]
    linger_ms: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("kafka-latency: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, String> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &arguments.broker)
        .set("acks", "all")
        .set("linger.ms", arguments.linger_ms.to_string())
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .map_err(said("a producer"))?;
    let load = Load { arguments, producer, start: Instant::now() };
    for _ in 0..FIRST {
        load.send(u64::MAX, Duration::ZERO)?;
        load.producer.flush(PATIENCE).map_err(said("the first messages"))?;
    }
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &arguments.broker)
        .set("group.id", "kafka-latency")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .create()
        .map_err(said("a consumer"))?;
    let (_, end) = consumer.fetch_watermarks(&arguments.topic, 0, PATIENCE).map_err(said("the end of the topic"))?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&arguments.topic, 0, Offset::Offset(end)).map_err(said("a place"))?;
    consumer.assign(&place).map_err(said("a place"))?;
    // The consumer waits at the end before the first message leaves.
    consumer.poll(Duration::from_secs(1));

    let load = Load { start: Instant::now(), ..load };
    let (arrived, arrivals) = channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| receive(&consumer, load.start, arrived, &stop));
        let result = measure(&load, &arrivals);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn said<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

struct Load<'a> {
    arguments: &'a Arguments,
    producer: BaseProducer,
    start: Instant,
}

impl Load<'_> {
    /// Hands one message to the client, waiting while its queue is full.
    fn send(&self, number: u64, due: Duration) -> Result<(), String> {
        let mut value = vec![b'.'; self.arguments.size as usize];
        value[..8].copy_from_slice(&number.to_le_bytes());
        value[8..STAMP_BYTES].copy_from_slice(&(due.as_nanos() as u64).to_le_bytes());
        let mut record = BaseRecord::<(), [u8]>::to(&self.arguments.topic).partition(0).payload(&value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    self.producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(format!("message {number}: {error}")),
            }
        }
    }
}

/// A message that came: its number and how long it took since it was to leave.
struct Arrival {
    number: u64,
    due: Duration,
    took: Duration,
}

fn receive(consumer: &BaseConsumer, start: Instant, arrived: Sender<Arrival>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = start.elapsed();
        let Some(stamp) = message.payload().and_then(|value| value.first_chunk::<STAMP_BYTES>()) else { continue };
        let (number, due) = stamp.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let due = Duration::from_nanos(word(due));
        if arrived.send(Arrival { number: word(number), due, took: now.saturating_sub(due) }).is_err() {
            return;
        }
    }
}

fn measure(load: &Load, arrivals: &Receiver<Arrival>) -> Result<String, String> {
    let (warmup, whole) = (Duration::from_secs(load.arguments.warmup), Duration::from_secs(load.arguments.warmup + load.arguments.seconds));
    let mut tally = Tally { next: 0, warmup, histogram: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("fair bounds") };
    let mut sent = 0;
    match load.arguments.rate {
        None => {
            while load.start.elapsed() < whole {
                load.send(sent, load.start.elapsed())?;
                sent += 1;
                tally.take(arrivals.recv_timeout(PATIENCE).map_err(|_| format!("message {} didn't come", sent - 1))?)?;
                load.producer.poll(Duration::ZERO);
            }
        }
        Some(rate) => {
            let gap = Duration::from_secs(1) / rate;
            let total = whole.as_nanos() / gap.as_nanos();
            while u128::from(sent) < total {
                let due = gap * sent as u32;
                while let Some(early) = due.checked_sub(load.start.elapsed()) {
                    load.producer.poll(Duration::ZERO);
                    thread::sleep(early.min(Duration::from_micros(50)));
                }
                load.send(sent, due)?;
                sent += 1;
            }
            load.producer.flush(PATIENCE).map_err(said("the last messages"))?;
            while tally.next < sent {
                tally.take(arrivals.recv_timeout(PATIENCE).map_err(|_| format!("{} of {sent} messages came", tally.next))?)?;
            }
        }
    }
    let seconds = load.arguments.seconds as f64;
    let us = |quantile: f64| tally.histogram.value_at_quantile(quantile) as f64 / 1e3;
    Ok(format!(
        "{{\"messages\":{sent},\"messages_per_second\":{:.0},\"latency_us\":{{\"p50\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}}}",
        tally.histogram.len() as f64 / seconds,
        us(0.5),
        us(0.99),
        us(0.999),
        tally.histogram.max() as f64 / 1e3
    ))
}

struct Tally {
    /// The number that must come next.
    next: u64,
    warmup: Duration,
    /// Nanoseconds.
    histogram: Histogram<u64>,
}

impl Tally {
    fn take(&mut self, arrival: Arrival) -> Result<(), String> {
        if arrival.number != self.next {
            return Err(format!("message {} came where {} was due", arrival.number, self.next));
        }
        self.next += 1;
        if arrival.due >= self.warmup {
            self.histogram.saturating_record((arrival.took.as_nanos() as u64).max(1));
        }
        Ok(())
    }
}
