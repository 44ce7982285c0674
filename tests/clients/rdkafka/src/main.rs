//! The rdkafka crate against a broker: `rdkafka-check HOST:PORT SCENARIO`. `endure` and `endure-transactions` go on until their input
//! closes, while somebody kills the broker again and again, and then compare what they were told with what is there.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(60);
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let address = &arguments[1];
    match &*arguments[2] {
        "roundtrip" => roundtrip(address),
        "transactions" => transactions(address),
        "endure" => endure(address, &arguments[3]),
        "endure-transactions" => endure_transactions(address, &arguments[3]),
        "compare" => compare(address, &arguments[3], &arguments[4]),
        other => panic!("no scenario {other}"),
    }
    println!("ok {}", arguments[2]);
}

/// Remembers what became of each record: its number, then its offset.
#[derive(Clone, Default)]
struct Outcomes {
    acknowledged: Arc<Mutex<Vec<(i32, u64, i64)>>>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl ClientContext for Outcomes {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<u64>) {
        match result {
            Ok(message) => self.acknowledged.lock().unwrap().push((message.partition(), *number, message.offset())),
            Err((error, message)) => self.failed.lock().unwrap().push(format!("{} of {}: {error}", *number, message.partition())),
        }
    }
}

type Sender = ThreadedProducer<Outcomes>;

fn producer(address: &str, settings: &[(&str, &str)]) -> (Sender, Outcomes) {
    let outcomes = Outcomes::default();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("linger.ms", "5");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    (config.create_with_context(outcomes.clone()).unwrap(), outcomes)
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

fn consumer(address: &str, isolation: &str) -> BaseConsumer<Quiet> {
    ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "rdkafka-check")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "100")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .create_with_context(Quiet)
        .unwrap()
}

/// Each record of a partition up to its end.
fn read(address: &str, topic: &str, partition: i32, isolation: &str, mut take: impl FnMut(&BorrowedMessage<'_>)) {
    let reader = consumer(address, isolation);
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    reader.assign(&places).unwrap();
    let mut last = Instant::now();
    loop {
        match reader.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                take(&message);
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return,
            Some(Err(KafkaError::MessageConsumption(code))) if is_passing(code) => {}
            Some(Err(error)) => panic!("{topic}/{partition}: {error}"),
            None => {}
        }
        assert!(last.elapsed() < PATIENCE, "{topic}/{partition}: no end");
    }
}

fn is_passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve)
}

/// Sends, waiting while the queue is full.
fn send(sender: &Sender, topic: &str, partition: i32, number: u64, payload: Option<&[u8]>, key: Option<&[u8]>, headers: Option<OwnedHeaders>) {
    let mut record = BaseRecord::with_opaque_to(topic, Box::new(number)).partition(partition);
    record.payload = payload;
    record.key = key;
    record.headers = headers;
    loop {
        match sender.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((error, _)) => panic!("{topic}/{partition}: {error}"),
        }
    }
}

fn content(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| if at % 64 < 32 { 0 } else { (number.wrapping_mul(0x9e37_79b9) ^ at.wrapping_mul(0x85eb_ca6b)) as u8 }).collect()
}

fn roundtrip(address: &str) {
    type Record = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);
    let mut records: Vec<Record> = vec![
        (None, None, vec![("only".into(), Some(b"headers".to_vec()))]),
        (Some(vec![]), Some(vec![]), vec![]),
        (Some(b"key".to_vec()), None, vec![("a".into(), Some(b"1".to_vec())), ("a".into(), None), ("a".into(), Some(vec![]))]),
        (None, Some(content(1, 900 * 1024)), vec![]),
    ];
    records.extend((0..3000).map(|n| (Some(n.to_string().into_bytes()), Some(content(n, n as usize % 700)), vec![])));
    for (partition, codec) in CODECS.into_iter().enumerate() {
        // Partitions of one topic each, made by being named.
        let topic = format!("rdkafka-{codec}");
        let settings = [("compression.type", codec), ("enable.idempotence", "true"), ("message.max.bytes", "1000000")];
        let (sender, outcomes) = producer(address, &settings);
        for (number, (key, payload, headers)) in records.iter().enumerate() {
            let headers = (!headers.is_empty()).then(|| {
                headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: value.as_ref() }))
            });
            send(&sender, &topic, 0, number as u64, payload.as_deref(), key.as_deref(), headers);
        }
        sender.flush(PATIENCE).unwrap();
        assert_eq!(*outcomes.failed.lock().unwrap(), Vec::<String>::new(), "{codec}");
        let mut next = 0;
        read(address, &topic, 0, "read_committed", |message| {
            let headers = message.headers().map_or(Vec::new(), |headers| {
                headers.iter().map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec))).collect()
            });
            let found = (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec), headers);
            assert!(found == records[next], "{codec}, record {next} isn't what was sent");
            assert_eq!(message.offset(), next as i64, "{codec}");
            next += 1;
        });
        assert_eq!(next, records.len(), "{codec}");
        let acknowledged = outcomes.acknowledged.lock().unwrap();
        assert!(acknowledged.iter().all(|(_, number, offset)| *number as i64 == *offset), "{codec}: offsets of acknowledgements, {partition}");
    }
}

fn transactions(address: &str) {
    let settings = [("transactional.id", "rdkafka-one"), ("transaction.timeout.ms", "30000")];
    let (sender, _) = producer(address, &settings);
    sender.init_transactions(PATIENCE).unwrap();
    for (number, commit) in [(1, true), (2, false), (3, true)] {
        sender.begin_transaction().unwrap();
        send(&sender, "rdkafka-tx", 0, number, Some(number.to_string().as_bytes()), None, None);
        sender.flush(PATIENCE).unwrap();
        if commit { sender.commit_transaction(PATIENCE).unwrap() } else { sender.abort_transaction(PATIENCE).unwrap() }
    }
    // Left open; the next of its name aborts it.
    sender.begin_transaction().unwrap();
    send(&sender, "rdkafka-tx", 0, 4, Some(b"4"), None, None);
    sender.flush(PATIENCE).unwrap();
    let (next, _) = producer(address, &settings);
    next.init_transactions(PATIENCE).unwrap();
    assert!(sender.commit_transaction(PATIENCE).is_err(), "the fenced producer could commit");
    next.begin_transaction().unwrap();
    send(&next, "rdkafka-tx", 0, 5, Some(b"5"), None, None);
    next.commit_transaction(PATIENCE).unwrap();
    let values = |isolation| {
        let mut values = Vec::new();
        read(address, "rdkafka-tx", 0, isolation, |message| values.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap()));
        values
    };
    assert_eq!(values("read_committed"), ["1", "3", "5"]);
    assert_eq!(values("read_uncommitted"), ["1", "2", "3", "4", "5"]);
}

/// True once this program's input has closed.
fn input_closes() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
    });
    closed
}

const PARTITIONS: i32 = 4;

/// An idempotent producer that sends 0, 1, 2, … to each partition, and a reader beside it. In the end each partition holds exactly
/// that, each acknowledged number is where its acknowledgement said, and the reader saw nothing that isn't there.
fn endure(address: &str, topic: &str) {
    let closed = input_closes();
    let settings = [("enable.idempotence", "true"), ("message.timeout.ms", "180000"), ("compression.type", "lz4"), ("retry.backoff.ms", "20"), ("reconnect.backoff.max.ms", "200")];
    let (sender, outcomes) = producer(address, &settings);
    let live = Arc::new(Mutex::new(BTreeMap::<(i32, i64), u64>::new()));
    let read_live = Arc::new(AtomicU64::new(0));
    let follower = {
        let (address, topic, live, closed, read_live) =
            (address.to_string(), topic.to_string(), Arc::clone(&live), Arc::clone(&closed), Arc::clone(&read_live));
        std::thread::spawn(move || {
            let reader = consumer(&address, "read_uncommitted");
            let mut places = TopicPartitionList::new();
            for partition in 0..PARTITIONS {
                places.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
            }
            reader.assign(&places).unwrap();
            while !closed.load(Ordering::Relaxed) {
                if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
                    let number = number(&message);
                    if let Some(before) = live.lock().unwrap().insert((message.partition(), message.offset()), number) {
                        assert_eq!(before, number, "offset {} of partition {} changed", message.offset(), message.partition());
                    }
                    read_live.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let mut sent = 0;
    let mut next = Instant::now();
    while !closed.load(Ordering::Relaxed) {
        for partition in 0..PARTITIONS {
            for _ in 0..25 {
                let payload = format!("{:020}{}", sent, "x".repeat(sent as usize % 100));
                send(&sender, topic, partition, sent, Some(payload.as_bytes()), None, None);
                sent += 1;
            }
            sent -= 25;
        }
        sent += 25;
        // 10,000 a second.
        next = (next + Duration::from_millis(10)).max(Instant::now() - Duration::from_millis(500));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sender.flush(Duration::from_secs(180)).unwrap();
    follower.join().unwrap();
    assert_eq!(outcomes.failed.lock().unwrap().first(), None, "a delivery failed");
    let acknowledged: BTreeMap<(i32, u64), i64> =
        outcomes.acknowledged.lock().unwrap().iter().map(|(partition, number, offset)| ((*partition, *number), *offset)).collect();
    assert_eq!(acknowledged.len() as u64, sent * PARTITIONS as u64, "every record was acknowledged");
    let mut live = std::mem::take(&mut *live.lock().unwrap());
    for partition in 0..PARTITIONS {
        let mut expected = 0;
        read(address, topic, partition, "read_uncommitted", |message| {
            let number = number(message);
            assert_eq!(number, expected, "partition {partition}, offset {}: lost, duplicated or out of order", message.offset());
            // -1: acknowledged as a duplicate of which the broker no longer knew the place.
            let told = acknowledged[&(partition, number)];
            assert!(told == message.offset() || told == -1, "record {number} is at {}, not at {told}", message.offset());
            if let Some(seen) = live.remove(&(partition, message.offset())) {
                assert_eq!(seen, number, "what the reader saw at {} of partition {partition}", message.offset());
            }
            expected += 1;
        });
        assert_eq!(expected, sent, "partition {partition}: acknowledged records are lost at the end");
    }
    assert!(live.is_empty(), "the reader saw records that aren't there: {:?}", live.first_key_value());
    println!("{} records, {} read meanwhile", sent * PARTITIONS as u64, read_live.load(Ordering::Relaxed));
}

/// Both topics hold the same, partition by partition.
fn compare(address: &str, from: &str, to: &str) {
    for partition in 0..PARTITIONS {
        let numbers = |topic| {
            let mut numbers = Vec::new();
            read(address, topic, partition, "read_committed", |message| numbers.push(number(message)));
            numbers
        };
        let (from, to) = (numbers(from), numbers(to));
        let different = from.iter().zip(&to).position(|(from, to)| from != to);
        assert_eq!(different, None, "partition {partition}: the copy has {:?} there", different.map(|at| to[at]));
        assert_eq!(from.len(), to.len(), "partition {partition}");
    }
}

fn number(message: &BorrowedMessage<'_>) -> u64 {
    std::str::from_utf8(&message.payload().unwrap()[..20]).unwrap().parse().unwrap()
}

/// Transactions of one record to each partition, one in four aborted. In the end a committed reader finds all of a transaction or
/// nothing, all that were said to be committed, and none that was said to be aborted.
fn endure_transactions(address: &str, topic: &str) {
    let closed = input_closes();
    let settings = [("transactional.id", topic), ("transaction.timeout.ms", "60000"), ("retry.backoff.ms", "20"), ("reconnect.backoff.max.ms", "200")];
    let (mut committed, mut aborted, mut unknown, mut number) = (Vec::new(), Vec::new(), Vec::new(), 0);
    'producer: while !closed.load(Ordering::Relaxed) {
        let (sender, _) = producer(address, &settings);
        let began = Instant::now();
        while let Err(error) = sender.init_transactions(Duration::from_secs(5)) {
            assert!(began.elapsed() < PATIENCE, "init_transactions: {error}");
        }
        while !closed.load(Ordering::Relaxed) {
            if sender.begin_transaction().is_err() {
                continue 'producer;
            }
            for partition in 0..PARTITIONS {
                send(&sender, topic, partition, number, Some(format!("{number:020}").as_bytes()), None, None);
            }
            let abort = number % 4 == 3;
            let outcome = end(&sender, abort);
            match outcome {
                Some(true) => committed.push(number),
                Some(false) => aborted.push(number),
                None => unknown.push(number),
            }
            number += 1;
            if outcome.is_none() {
                continue 'producer;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut found: Vec<Vec<u64>> = Vec::new();
    for partition in 0..PARTITIONS {
        let mut numbers = Vec::new();
        read(address, topic, partition, "read_committed", |message| numbers.push(self::number(message)));
        found.push(numbers);
    }
    assert!(found[0].is_sorted_by(|a, b| a < b), "duplicated or out of order: {:?}", found[0].windows(2).find(|pair| pair[0] >= pair[1]));
    for other in &found[1..] {
        assert_eq!(other.len(), found[0].len(), "partitions of the same transactions");
        let different = other.iter().zip(&found[0]).find(|(a, b)| a != b);
        assert_eq!(different, None, "a transaction is in one partition and not in another");
    }
    let is_there = |number: &u64| found[0].binary_search(number).is_ok();
    assert_eq!(committed.iter().find(|number| !is_there(number)), None, "a committed transaction is lost");
    assert_eq!(aborted.iter().find(|number| is_there(number)), None, "an aborted transaction is seen");
    println!("{} committed, {} aborted, {} unknown", committed.len(), aborted.len(), unknown.len());
}

/// Commits or aborts, as often as the library says to try again. `None`: nobody knows.
fn end(sender: &Sender, abort: bool) -> Option<bool> {
    let began = Instant::now();
    let mut abort = abort;
    let mut commit_tried = false;
    loop {
        let ended = if abort { sender.abort_transaction(Duration::from_secs(5)) } else { sender.commit_transaction(Duration::from_secs(5)) };
        commit_tried |= !abort;
        match ended {
            Ok(()) => return Some(!abort),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => abort = true,
            Err(KafkaError::Transaction(error)) if error.is_retriable() && began.elapsed() < PATIENCE => {}
            Err(error) => {
                eprintln!("{} ends with {error}", if commit_tried { "a commit" } else { "an abort" });
                return None;
            }
        }
    }
}
