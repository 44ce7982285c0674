//! kill -9 in a loop under load. What was acknowledged is there, once, in order; what wasn't sent isn't; offsets are
//! dense; what a reader has seen stays as it was.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmain_client::wire::control::{CreateTopic, TopicConfig};
use ringmain_client::{Client, Consumer, ConsumerConfig, LinkConfig, Producer, ProducerConfig, Record};

use crate::harness::{Broker, Random, Start, free_ports};

const PARTITIONS: u32 = 4;
const PRODUCERS: u8 = 3;
const TOPIC: &str = "crash";

/// The name of a message: who sent it, and its number among those of that producer in that partition.
type Name = (u8, u64);

#[test]
fn kill_in_a_loop_under_load_loses_and_invents_nothing() {
    let kills: u32 = std::env::var("RINGMAIN_TEST_KILLS").map_or(200, |kills| kills.parse().expect("RINGMAIN_TEST_KILLS is a number"));
    let mut random = Random::seeded();
    // Fixed ports: the producers of before go on after the restart. One for bootstrap, one per shard.
    let native = SocketAddr::from(([127, 0, 0, 1], free_ports(3)));
    let mut broker = Broker::start("crash", Start { native: Some(native), ..Start::with(&["--shards", "2"]) });
    let topic = CreateTopic { name: TOPIC.into(), partition_count: PARTITIONS, config: TopicConfig::default() };
    broker.client().create_topic(&topic).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..PRODUCERS).map(|name| Sender::start(&broker.client(), name, random.number(), &stop)).collect();
    let reader = Reader::start(&broker.client(), &stop);
    let (mut slowest, mut in_recovery, began) = (Duration::ZERO, 0, Instant::now());
    for kill in 1..=kills {
        std::thread::sleep(Duration::from_millis(20 + random.below(300)));
        broker.kill();
        // Every eighth start is cut short, too: recovery must survive its own interruption.
        if kill % 8 == 0 {
            drop(broker.launch());
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            broker.kill();
            in_recovery += 1;
        }
        slowest = slowest.max(broker.restart());
        if let Some(failure) = senders.iter().find_map(Sender::failure) {
            panic!("after kill {kill}: {failure}");
        }
        // Every fiftieth time it may stop in peace; that path must not lose anything either.
        if kill % 50 == 0 {
            broker.stop();
            broker.restart();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent: Vec<Sent> = senders.into_iter().map(Sender::finish).collect();
    let read = reader.finish();
    broker.kill();
    broker.restart();

    let stored = read_all(&broker.client());
    let total: usize = stored.values().map(Vec::len).sum();
    eprintln!("{kills} kills and {in_recovery} in recovery in {:?}, {total} messages, slowest start {slowest:?}", began.elapsed());
    check_sent(&sent, &stored);
    check_read(&read, &stored);
    assert!(total as u64 > u64::from(kills) * 10, "hardly any load: {total} messages");
    assert!(slowest < Duration::from_secs(5), "a start took {slowest:?}");
}

/// Every partition holds every producer's messages, each once, in the order they were sent, and each acknowledged batch
/// lies where its acknowledgement said.
fn check_sent(sent: &[Sent], stored: &BTreeMap<u32, Vec<Name>>) {
    for (producer, sent) in (0..).zip(sent) {
        for (partition, count) in (0..).zip(&sent.counts) {
            let numbers = stored[&partition].iter().filter(|(p, _)| *p == producer).map(|(_, number)| *number);
            let mut expected = 0;
            for number in numbers {
                assert_eq!(number, expected, "producer {producer}, partition {partition}: lost, repeated or out of order");
                expected += 1;
            }
            assert_eq!(expected, *count, "producer {producer}, partition {partition}: so many were acknowledged");
        }
        for acknowledged in &sent.acknowledged {
            let Some(base_offset) = acknowledged.base_offset else { continue };
            for i in 0..acknowledged.count {
                let there = stored[&acknowledged.partition].get((base_offset + i) as usize);
                let name = (producer, acknowledged.first_number + i);
                assert_eq!(there, Some(&name), "partition {}, offset {}", acknowledged.partition, base_offset + i);
            }
        }
    }
    let names: usize = sent.iter().flat_map(|sent| &sent.counts).map(|count| *count as usize).sum();
    assert_eq!(stored.values().map(Vec::len).sum::<usize>(), names, "messages were invented");
}

/// What the reader saw between the crashes is what is stored: nothing readable was taken back.
fn check_read(read: &BTreeMap<u32, Vec<Name>>, stored: &BTreeMap<u32, Vec<Name>>) {
    let mut seen = 0;
    for (partition, read) in read {
        let stored = &stored[partition][..read.len().min(stored[partition].len())];
        assert!(read == stored, "partition {partition}: a reader saw what isn't stored");
        seen += read.len();
    }
    assert!(seen > 0, "the reader saw nothing");
}

/// A producer under load, on a thread of its own.
struct Sender {
    thread: JoinHandle<Result<Vec<u64>, String>>,
    acknowledged: Arc<Mutex<Acknowledgements>>,
}

#[derive(Default)]
struct Acknowledgements {
    batches: Vec<Acknowledged>,
    failure: Option<String>,
}

/// One acknowledged batch.
struct Acknowledged {
    partition: u32,
    first_number: u64,
    count: u64,
    base_offset: Option<u64>,
}

/// What a sender did.
struct Sent {
    /// Messages per partition, all acknowledged.
    counts: Vec<u64>,
    acknowledged: Vec<Acknowledged>,
}

impl Sender {
    fn start(client: &Client, name: u8, seed: u64, stop: &Arc<AtomicBool>) -> Sender {
        let acknowledged = Arc::new(Mutex::new(Acknowledgements::default()));
        let notes = Arc::clone(&acknowledged);
        // Small batches and a small buffer: many are open at any moment, none waits long.
        let config = ProducerConfig { batch_bytes: 4 << 10, buffer_bytes: 1 << 20, links: links(), ..ProducerConfig::default() };
        let note = move |delivery: &ringmain_client::Delivery| {
            let mut notes = notes.lock().unwrap();
            match &delivery.result {
                Ok(stored) => notes.batches.push(Acknowledged {
                    partition: delivery.partition_index,
                    first_number: delivery.first_number,
                    count: delivery.record_count.into(),
                    base_offset: stored.base_offset,
                }),
                Err(error) => notes.failure = Some(format!("producer {name}: {error}")),
            }
        };
        let producer = client.producer_with(TOPIC, config, note).unwrap();
        let stop = Arc::clone(stop);
        Sender { thread: std::thread::spawn(move || send(producer, name, Random(seed), &stop)), acknowledged }
    }

    fn failure(&self) -> Option<String> {
        self.acknowledged.lock().unwrap().failure.clone()
    }

    fn finish(self) -> Sent {
        let counts = self.thread.join().unwrap().unwrap_or_else(|error| panic!("{error}"));
        let notes = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        assert_eq!(notes.failure, None);
        let acknowledged: u64 = notes.batches.iter().map(|batch| batch.count).sum();
        assert_eq!(acknowledged, counts.iter().sum::<u64>(), "the flush was fine, so everything is acknowledged");
        Sent { counts, acknowledged: notes.batches }
    }
}

/// Sends until told to stop, then waits for every acknowledgement; messages sent per partition.
fn send(mut producer: Producer, name: u8, mut random: Random, stop: &AtomicBool) -> Result<Vec<u64>, String> {
    let mut counts = vec![0; PARTITIONS as usize];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..5 {
            let partition = random.below(PARTITIONS.into()) as u32;
            let number = counts[partition as usize];
            // Now and then a message larger than a batch, and than a commit group.
            let padding = if random.below(3_000) == 0 { 200_000 + random.below(500_000) } else { random.below(300) };
            let value = write_name(name, number, padding as usize);
            let record = Record { value: Some(&value), partition: Some(partition), ..Record::default() };
            let receipt = producer.send(record).map_err(|error| format!("producer {name}: {error}"))?;
            assert_eq!((receipt.partition_index, receipt.number), (partition, number));
            counts[partition as usize] += 1;
        }
        // Enough that every kill hits something, and not so much that checking takes longer than the test.
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush().map_err(|error| format!("producer {name}: {error}"))?;
    Ok(counts)
}

/// A consumer that follows through all the crashes.
struct Reader {
    thread: JoinHandle<BTreeMap<u32, Vec<Name>>>,
}

impl Reader {
    fn start(client: &Client, stop: &Arc<AtomicBool>) -> Reader {
        let mut consumer = consumer(client);
        let stop = Arc::clone(stop);
        let thread = std::thread::spawn(move || {
            let mut names = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                take(&mut consumer, &mut names);
            }
            names
        });
        Reader { thread }
    }

    fn finish(self) -> BTreeMap<u32, Vec<Name>> {
        self.thread.join().unwrap()
    }
}

/// Everything that is stored, by partition, in order.
fn read_all(client: &Client) -> BTreeMap<u32, Vec<Name>> {
    let description = client.describe_topic(TOPIC).unwrap();
    let ends: Vec<u64> = description.partitions.iter().map(|partition| partition.high_watermark).collect();
    assert_eq!(ends.len(), PARTITIONS as usize);
    let (mut consumer, mut names) = (consumer(client), BTreeMap::new());
    let began = Instant::now();
    let is_whole = |names: &BTreeMap<u32, Vec<Name>>| {
        (0..).zip(&ends).all(|(partition, end)| names.get(&partition).map_or(0, Vec::len) as u64 >= *end)
    };
    while !is_whole(&names) {
        take(&mut consumer, &mut names);
        assert!(began.elapsed() < Duration::from_secs(120), "reading back doesn't end");
    }
    names
}

fn consumer(client: &Client) -> Consumer {
    client.consumer(TOPIC, ConsumerConfig { links: links(), max_wait: Duration::from_millis(50), ..ConsumerConfig::default() }).unwrap()
}

/// Adds the next records; offsets have no gaps.
fn take(consumer: &mut Consumer, names: &mut BTreeMap<u32, Vec<Name>>) {
    let Some(batch) = consumer.poll(Duration::from_millis(50)).unwrap() else { return };
    let seen: &mut Vec<Name> = names.entry(batch.partition_index()).or_default();
    for record in batch.records() {
        assert_eq!(record.offset, seen.len() as u64, "partition {}: offsets aren't dense", record.partition_index);
        seen.push(read_name(record.value.unwrap_or_default()));
    }
}

/// Reconnects fast: a restart takes a fraction of a second here.
fn links() -> LinkConfig {
    LinkConfig { max_backoff: Duration::from_millis(50), ..LinkConfig::default() }
}

/// `[producer u8][number u64]`, then bytes that follow from both.
fn write_name(producer: u8, number: u64, padding: usize) -> Vec<u8> {
    let mut value = vec![producer];
    value.extend_from_slice(&number.to_le_bytes());
    value.extend((0..padding).map(|i| filler(producer, number, i)));
    value
}

fn read_name(value: &[u8]) -> Name {
    let (head, padding) = value.split_at_checked(9).unwrap_or_else(|| panic!("a message nobody sent: {value:?}"));
    let (producer, number) = (head[0], u64::from_le_bytes(head[1..].try_into().unwrap()));
    let is_intact = producer < PRODUCERS && padding.iter().enumerate().all(|(i, byte)| *byte == filler(producer, number, i));
    assert!(is_intact, "a message nobody sent: producer {producer}, number {number}, {} bytes", value.len());
    (producer, number)
}

fn filler(producer: u8, number: u64, at: usize) -> u8 {
    (number as usize).wrapping_mul(31).wrapping_add(usize::from(producer)).wrapping_add(at) as u8
}
