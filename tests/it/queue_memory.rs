//! What queues take of the broker's memory. Minutes and gigabytes, so not in every run:
//! `cargo test --release --test it -- --ignored queue_memory --nocapture --test-threads 1`.

use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::wire::control::{CreateTopic, Durability, TopicConfig};
use ringmain_client::wire::frame::{Identity, flags};
use ringmain_client::wire::queue::{CreateQueue, QueueConfig, name};
use ringmain_client::wire::record::HeadersBuilder;
use ringmain_client::wire::{Op, PartitionId, RecordBatchBuilder};
use ringmain_client::{Client, QueueConsumer, QueueConsumerConfig};

use crate::harness::{Broker, Start};
use crate::limits::{peak_rss, rss};
use crate::native::Wire;

const MIB: u64 = 1 << 20;
const MILLION: u64 = 1_000_000;
/// Requests on their way while a topic is filled.
const IN_FLIGHT: u64 = 16;

fn create(client: &Client, name: &str, topic: &str, config: QueueConfig) {
    let create = CreateQueue { name: name.into(), topic: topic.into(), partition_count: 1, durability: Durability::Durable, config };
    client.create_queue(&create).unwrap();
}

/// Records of one batch.
const BATCH: u64 = 10_000;

/// A topic of `count` records of 8 bytes, with these headers by the number in its batch.
fn fill(broker: &Broker, topic: &str, count: u64, headers: impl Fn(u64) -> HeadersBuilder) {
    let create = CreateTopic { name: topic.into(), partition_count: 1, config: TopicConfig::default() };
    let partition = broker.client().create_topic(&create).unwrap().partitions[0].partition;
    let mut builder = RecordBatchBuilder::new();
    (0..BATCH).for_each(|number| builder.push(1_000, None, Some(&number.to_le_bytes()), headers(number).as_bytes()));
    let batch = builder.finish(Identity { flags: flags::QUEUE_HEADERS, ..Identity::plain(PartitionId(partition)) }).to_vec();
    let mut wire = Wire::greet(broker);
    let batches = count / BATCH;
    for sent in 0..batches + IN_FLIGHT {
        if sent < batches {
            wire.send(Op::Produce, &batch);
        }
        if sent >= IN_FLIGHT {
            wire.receive().1.unwrap();
        }
    }
}

/// The broker's memory once it doesn't grow any more.
fn settled_rss(broker: &Broker) -> u64 {
    let mut last = rss(broker);
    loop {
        thread::sleep(Duration::from_millis(700));
        let now = rss(broker);
        if now <= last + MIB / 4 {
            return now;
        }
        last = now;
    }
}

fn consumer(client: &Client, queue: &str, prefetch: u64) -> QueueConsumer {
    let config = QueueConsumerConfig { prefetch: prefetch as u32, prefetch_bytes: 1 << 30, ..QueueConsumerConfig::default() };
    client.queue_consumer(queue, config).unwrap()
}

/// So many messages, which stay in flight as long as the consumer lives; `ack`: which don't.
fn receive(client: &Client, queue: &str, count: u64, ack: impl Fn(u64) -> bool) -> QueueConsumer {
    let mut consumer = consumer(client, queue, count);
    for number in 0..count {
        let message = consumer.recv(Duration::from_secs(20)).unwrap();
        let message = message.unwrap_or_else(|| panic!("{number} messages came, then none: {:?}", client.describe_queue(queue)));
        if ack(number) {
            assert!(consumer.ack(&message));
        }
    }
    consumer.flush().unwrap();
    consumer
}

/// A broker and what it takes when it has read `count` records of topic `t` once. `header`: of each, with this value by its number.
fn filled(name: &str, count: u64, header: Option<&[u8]>, value: impl Fn(u64) -> Vec<u8>) -> (Broker, Client, u64) {
    let broker = Broker::start(name, Start::with(&["--cores", "0", "--memory", "1G", "--segment-bytes", "64M"]));
    let client = broker.client();
    fill(&broker, "t", count, |number| {
        let mut headers = HeadersBuilder::default();
        if let Some(name) = header {
            headers.push(name, Some(&value(number)));
        }
        headers
    });
    create(&client, "first", "t", QueueConfig::default());
    // A reader's own buffers are there before.
    if header.is_none() {
        drop(receive(&client, "first", 1_000, |_| true));
    }
    client.delete_queue("first").unwrap();
    let before = settled_rss(&broker);
    (broker, client, before)
}

#[test]
#[ignore = "minutes"]
fn hundred_million_ready_messages_take_sixteen_mebibytes() {
    let (broker, client, before) = filled("ready", 100 * MILLION, None, |_| Vec::new());
    create(&client, "many", "t", QueueConfig::default());
    drop(receive(&client, "many", 1_000, |_| false));
    assert_eq!(client.describe_queue("many").unwrap()[0].enqueued, 100 * MILLION);
    let after = settled_rss(&broker);
    println!("100 M ready: {} KiB more", after.saturating_sub(before) >> 10);
    assert!(after <= before + 16 * MIB, "{} MiB before, {} after", before / MIB, after / MIB);
}

#[test]
#[ignore = "minutes"]
fn messages_remembered_one_by_one_take_so_much() {
    let each = |what: &str, broker: &Broker, before: u64, most: u64| {
        let bytes = settled_rss(broker).saturating_sub(before) / MILLION;
        println!("{what}: {bytes} B for each of a million");
        assert!(bytes <= most, "{what}: {bytes} B each, more than {most}");
    };
    let (broker, client, before) = filled("flight", 2 * MILLION, None, |_| Vec::new());
    create(&client, "q", "t", QueueConfig::default());
    let consumer = receive(&client, "q", MILLION, |_| false);
    each("in flight", &broker, before, 32);
    drop((broker, consumer));

    let (broker, client, before) = filled("apart", 2 * MILLION, None, |_| Vec::new());
    create(&client, "q", "t", QueueConfig::default());
    let consumer = receive(&client, "q", MILLION, |number| number % 2 == 1);
    // With what the log's own records of so many acknowledgements take of the tail cache.
    each("every second acknowledged, the others in flight", &broker, before, 40);
    drop((broker, consumer));

    let levels = |number: u64| vec![(number * 7 % 10) as u8];
    let (broker, client, before) = filled("prior", MILLION, Some(name::PRIORITY), levels);
    create(&client, "q", "t", QueueConfig { priorities: 10, ..QueueConfig::default() });
    // Such a queue gives none before it has looked at all.
    drop(receive(&client, "q", 1, |_| true));
    each("ready, of ten priorities", &broker, before, 16);
    drop(broker);

    let times = |number: u64| (i64::MAX / 2 + (number * 7_919 % BATCH) as i64).to_le_bytes().to_vec();
    let (broker, client, before) = filled("later", MILLION, Some(name::DUE_MS), times);
    create(&client, "q", "t", QueueConfig { priorities: 2, ..QueueConfig::default() });
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.describe_queue("q").unwrap()[0].delayed < MILLION {
        assert!(Instant::now() < deadline, "{:?}", client.describe_queue("q"));
        thread::sleep(Duration::from_millis(50));
    }
    each("delayed, to ten thousand times", &broker, before, 64);
}

#[test]
#[ignore = "minutes"]
fn hundred_thousand_queues_take_less_than_two_gibibytes() {
    let mut broker = Broker::start("queues", Start::with(&["--cores", "0", "--memory", "1G", "--segment-bytes", "64M"]));
    let empty = rss(&broker);
    let began = Instant::now();
    thread::scope(|scope| {
        for part in 0..8 {
            let client = broker.client();
            scope.spawn(move || {
                for topic in (part..100).step_by(8) {
                    for queue in 0..1_000 {
                        create(&client, &format!("q{topic}-{queue}"), &format!("t{topic}"), QueueConfig::default());
                    }
                }
            });
        }
    });
    let created = began.elapsed();
    let with_queues = peak_rss(&broker);
    broker.stop();
    let opened = broker.restart();
    let reopened = settled_rss(&broker);
    let each = |bytes: u64| bytes.saturating_sub(empty) / 100_000;
    println!(
        "100,000 queues: created in {created:?}, {} MiB at the peak ({} B each); open again after {opened:?}, {} MiB ({} B each)",
        with_queues / MIB,
        each(with_queues),
        reopened / MIB,
        each(reopened)
    );
    assert!(with_queues < 2048 * MIB && peak_rss(&broker) < 2048 * MIB);
    let client = broker.client();
    let mut producer = client.queue_producer("q50-0", Default::default()).unwrap();
    producer.send(ringmain_client::Outgoing::new(b"to a thousand").record()).unwrap();
    producer.close().unwrap();
    for queue in ["q50-0", "q50-999"] {
        drop(receive(&client, queue, 1, |_| true));
    }
}
