use ringmain_wire::RecordBatchBuilder;
use ringmain_wire::frame::{BrokerHalf, Identity, seal};
use ringmain_wire::{Offset, PartitionId};

use super::*;
use crate::fake::network::Network;
use crate::fake::{FIRST_NUMBER, FakeBroker, Random};

/// Appends a batch of records whose values and timestamps are their offsets.
fn append(broker: &mut FakeBroker, index: usize, record_count: u64, padding: usize) {
    let partition = &mut broker.partitions[index];
    let mut builder = RecordBatchBuilder::new();
    for offset in partition.end..partition.end + record_count {
        let digits = offset.to_string();
        let value = "0".repeat(padding.saturating_sub(digits.len())) + &digits;
        builder.push(offset as i64, Some(b"k"), Some(value.as_bytes()), b"");
    }
    let mut bytes = builder.finish(Identity::plain(PartitionId(FIRST_NUMBER + index as u32))).to_vec();
    stamp(&mut bytes, partition.end);
    bytes.resize(ringmain_wire::align_up(bytes.len()), 0);
    partition.frames.push((partition.end, bytes));
    partition.end += record_count;
}

fn stamp(bytes: &mut [u8], base_offset: u64) {
    let half = BrokerHalf::stamp(bytes.len() as u32, Offset(base_offset), 5, 1);
    bytes[..half.len()].copy_from_slice(&half);
}

struct Run {
    machine: ConsumerMachine,
    broker: FakeBroker,
    network: Network,
    /// Offsets handed out, by partition.
    read: Vec<Vec<u64>>,
}

impl Run {
    fn new(config: ConsumerConfig, broker: FakeBroker, seed: u64) -> Run {
        let topic = TopicMap::find(&broker.metadata(), "t").unwrap();
        let read = vec![Vec::new(); 16];
        Run { machine: ConsumerMachine::new(config, topic).unwrap(), broker, network: Network::new(seed), read }
    }

    fn step(&mut self) -> Result<(), ConsumeError> {
        self.network.step(&mut self.machine, &mut self.broker);
        while let Some(batch) = self.machine.poll_batch()? {
            let before = self.read.iter().map(Vec::len).sum::<usize>();
            for record in batch.records() {
                let value: u64 = std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
                assert_eq!((value, record.timestamp_ms, record.key), (record.offset, record.offset as i64, Some(&b"k"[..])));
                self.read[record.partition_index as usize].push(record.offset);
            }
            assert_eq!(batch.record_count(), (self.read.iter().map(Vec::len).sum::<usize>() - before) as u64);
            self.machine.recycle(batch);
        }
        Ok(())
    }

    fn until(&mut self, done: impl Fn(&Run) -> bool) -> Result<(), ConsumeError> {
        for _ in 0..100_000 {
            if done(self) {
                return Ok(());
            }
            self.step()?;
        }
        panic!("not done: {:?}", self.machine);
    }

    fn until_end(&mut self) -> Result<(), ConsumeError> {
        self.until(|run| run.machine.at_end())
    }
}

fn broker(batches: u64) -> FakeBroker {
    let mut broker = FakeBroker::new(&[0], 1, 1);
    for _ in 0..batches {
        append(&mut broker, 0, 3, 0);
    }
    broker
}

fn from(from: StartFrom) -> ConsumerConfig {
    ConsumerConfig { from, name: Some("c".into()), ..ConsumerConfig::default() }
}

/// Lost connections at any byte, moved partitions, replies that begin early: each record comes once, in order.
#[test]
fn consumer_under_faults_reads_every_record_once_in_order() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let partitions = 1 + random.below(4) as usize;
        let mut broker = FakeBroker::new(&[0, 7172], partitions, seed);
        broker.shuffle = random.one_in(3);
        for index in 0..partitions {
            for _ in 0..random.below(60) {
                append(&mut broker, index, 1 + random.below(9), random.below(80) as usize);
            }
        }
        let config = ConsumerConfig {
            fetch_max_bytes: [300, 2_000, 1 << 20][random.below(3) as usize],
            fetch_ahead_bytes: [1, 5_000, 8 << 20][random.below(3) as usize],
            fetches_ahead: 1 + random.below(4) as usize,
            links: LinkConfig { first_backoff: std::time::Duration::from_micros(100), ..LinkConfig::default() },
            ..ConsumerConfig::default()
        };
        let mut run = Run::new(config, broker, seed);
        run.network.cut = random.one_in(2);
        run.network.drop_one_in = [0, 60, 20][random.below(3) as usize];
        for _ in 0..200 {
            run.step().unwrap();
            let index = random.below(partitions as u64) as usize;
            if random.one_in(4) {
                append(&mut run.broker, index, 1 + random.below(9), 0);
            }
            if random.one_in(60) {
                run.broker.partitions[index].port = [0, 7172][random.below(2) as usize];
            }
        }
        run.until(|run| (0..partitions).all(|index| run.read[index].len() as u64 >= run.broker.partitions[index].end)).unwrap();
        for index in 0..partitions {
            assert_eq!(run.read[index], (0..run.broker.partitions[index].end).collect::<Vec<_>>(), "partition {index}");
        }
        run.until_end().unwrap();
        run.network.drop_all(&mut run.machine);
        run.machine.restart(0);
        let left: usize = run
            .machine
            .partitions
            .iter()
            .flat_map(|p| &p.fetches)
            .chain(run.machine.arrived.iter().map(|a| &a.fetch))
            .map(|f| f.reserved_bytes)
            .sum();
        assert_eq!(run.machine.reserved_bytes, left, "every byte of the budget is accounted for");
    }
}

#[test]
fn start_is_where_it_was_asked_for() {
    for (start, first) in [
        (StartFrom::Beginning, 0),
        (StartFrom::Offset(4), 4),
        (StartFrom::Timestamp(7), 7),
        (StartFrom::End, 30),
        (StartFrom::Committed, 5),
    ] {
        let mut broker = broker(10);
        broker.commits.insert(("c".into(), FIRST_NUMBER), 5);
        let mut run = Run::new(from(start), broker, 1);
        run.until_end().unwrap();
        append(&mut run.broker, 0, 2, 0);
        run.until(|run| run.read[0].last() == Some(&31)).unwrap();
        assert_eq!(run.read[0], (first..32).collect::<Vec<_>>(), "{start:?}");
    }
}

#[test]
fn committed_without_a_commit_begins_at_the_beginning() {
    let mut run = Run::new(from(StartFrom::Committed), broker(2), 1);
    run.until_end().unwrap();
    assert_eq!(run.read[0].len(), 6);
}

#[test]
fn commit_stores_what_was_handed_out() {
    let mut run = Run::new(from(StartFrom::Beginning), broker(5), 1);
    run.until_end().unwrap();
    run.network.drop_one_in = 3;
    run.machine.begin_commit().unwrap();
    run.until(|run| run.machine.commits_open() == 0).unwrap();
    assert_eq!(run.broker.commits[&("c".to_string(), FIRST_NUMBER)], 15);
    assert_eq!(run.machine.positions().next().unwrap().committed, Some(15));
    run.machine.begin_commit().unwrap();
    assert_eq!(run.machine.commits_open(), 0, "nothing moved since");
}

#[test]
fn commit_without_a_name_is_refused() {
    let mut run = Run::new(ConsumerConfig::default(), broker(1), 1);
    assert!(matches!(run.machine.begin_commit(), Err(ConsumeError::NoName)));
}

#[test]
fn position_outside_the_partition_fails_or_moves_as_configured() {
    for (out_of_range, expected) in [(OutOfRange::Beginning, Some(9)), (OutOfRange::End, Some(30)), (OutOfRange::Fail, None)] {
        let mut broker = broker(10);
        broker.partitions[0].log_start = 9;
        broker.partitions[0].frames.drain(..3);
        let mut run = Run::new(ConsumerConfig { out_of_range, ..from(StartFrom::Offset(2)) }, broker, 1);
        match (run.until_end(), expected) {
            (Ok(()), Some(first)) => assert_eq!(run.read[0], (first..30).collect::<Vec<_>>()),
            (Err(ConsumeError::OutOfRange { partition_index: 0, offset: 2 }), None) => {
                run.machine.seek(0, 12).unwrap();
                run.until_end().unwrap();
                assert_eq!(run.read[0], (12..30).collect::<Vec<_>>());
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[test]
fn damaged_batch_is_an_error_after_the_good_ones_and_mends() {
    let mut run = Run::new(from(StartFrom::Beginning), broker(10), 1);
    let good = run.broker.partitions[0].frames[4].1.clone();
    let last = good.len() - 9;
    run.broker.partitions[0].frames[4].1[last] ^= 1;
    assert!(matches!(
        run.until_end(),
        Err(ConsumeError::Frame { partition_index: 0, offset: 12, error: ringmain_wire::FrameError::BodyCrc { .. } })
    ));
    assert_eq!(run.read[0], (0..12).collect::<Vec<_>>());
    run.broker.partitions[0].frames[4].1 = good;
    run.until_end().unwrap();
    assert_eq!(run.read[0], (0..30).collect::<Vec<_>>());
}

#[test]
fn other_formats_are_a_typed_error_that_says_where_to_go_on() {
    let mut run = Run::new(from(StartFrom::Beginning), broker(3), 1);
    let bytes = &mut run.broker.partitions[0].frames[1].1;
    seal(bytes, Format::Kafka, 3, Identity::plain(PartitionId(FIRST_NUMBER)));
    stamp(bytes, 3);
    match run.until_end() {
        Err(ConsumeError::UnsupportedFormat { offset: 3, next_offset, format: 1, .. }) => run.machine.seek(0, next_offset).unwrap(),
        other => panic!("{other:?}"),
    }
    run.until_end().unwrap();
    assert_eq!(run.read[0], [0, 1, 2, 6, 7, 8]);
}

#[test]
fn records_that_contradict_their_header_are_a_typed_error() {
    let mut run = Run::new(from(StartFrom::Beginning), broker(1), 1);
    let bytes = &mut run.broker.partitions[0].frames[0].1;
    seal(bytes, Format::Native, 4, Identity::plain(PartitionId(FIRST_NUMBER)));
    stamp(bytes, 0);
    assert!(matches!(run.until_end(), Err(ConsumeError::Records { offset: 0, next_offset: 4, .. })));
}

/// Whatever a reply's body is, it is refused or read, and reading what was accepted finds every record.
#[test]
fn mangled_replies_never_panic() {
    let broker = broker(4);
    let frames: Vec<u8> = broker.partitions[0].frames.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let head = FetchReply { version: 1, reserved: 0, partition: FIRST_NUMBER, high_watermark: 12, log_start: 0, next_offset: 12 };
    let whole = [&head.to_bytes()[..], &frames].concat();
    let mut random = Random::new(1);
    for _ in 0..20_000 {
        let mut body = whole.clone();
        for _ in 0..random.below(4) {
            let at = FetchReply::BYTES + random.below((body.len() - FetchReply::BYTES) as u64) as usize;
            body[at] = random.below(256) as u8;
        }
        if random.one_in(3) {
            body.truncate(FetchReply::BYTES + random.below((body.len() - FetchReply::BYTES) as u64) as usize);
        }
        let position = random.below(14);
        if let Ok(opened) = open_reply(0, FIRST_NUMBER, position, &head, body.into()) {
            assert_eq!(opened.batch.records().count() as u64, opened.batch.record_count());
            assert!(opened.batch.records().all(|record| record.offset >= position));
        }
    }
    let mut bytes = broker.partitions[0].frames[0].1.clone();
    let len = bytes.len();
    stamp(&mut bytes[..len], u64::MAX - 1);
    let body = [&head.to_bytes()[..], &bytes].concat();
    assert!(open_reply(0, FIRST_NUMBER, 0, &head, body.into()).is_err());
}

#[test]
fn fetches_run_ahead_within_their_budget() {
    let mut broker = FakeBroker::new(&[0], 1, 1);
    for _ in 0..200 {
        append(&mut broker, 0, 1, 60_000);
    }
    let config = ConsumerConfig { fetch_max_bytes: 64 << 10, fetch_ahead_bytes: 256 << 10, ..ConsumerConfig::default() };
    let topic = TopicMap::find(&broker.metadata(), "t").unwrap();
    let mut machine = ConsumerMachine::new(config, topic).unwrap();
    let mut network = Network::new(1);
    for _ in 0..500 {
        network.step(&mut machine, &mut broker);
        assert!(machine.reserved_bytes <= 256 << 10);
    }
    // Nobody takes them: some replies wait, the broker isn't asked for more.
    assert!((3..=4).contains(&machine.arrived.len()), "{} replies wait", machine.arrived.len());
    assert!(machine.poll_batch().unwrap().is_some());
    for _ in 0..10 {
        network.step(&mut machine, &mut broker);
    }
    assert!((3..=4).contains(&machine.arrived.len()), "{} replies wait", machine.arrived.len());
}

#[test]
fn next_fetch_leaves_when_the_head_of_the_last_has_arrived() {
    let mut broker = FakeBroker::new(&[0], 1, 1);
    for _ in 0..4 {
        append(&mut broker, 0, 1, 100_000);
    }
    let config = ConsumerConfig { from: StartFrom::Offset(0), fetch_max_bytes: 100_000, ..ConsumerConfig::default() };
    let mut machine = ConsumerMachine::new(config, TopicMap::find(&broker.metadata(), "t").unwrap()).unwrap();
    let now = Instant::now();
    while machine.poll_action(now).is_some() {}
    machine.connected(0, now);
    let exchange = |machine: &mut ConsumerMachine, broker: &mut FakeBroker| {
        let (mut requests, mut replies) = (Vec::new(), Vec::new());
        machine.transmit(0, now, &mut requests);
        broker.serve(0, &mut requests, &mut replies);
        replies
    };
    let hello = exchange(&mut machine, &mut broker);
    machine.receive(0, &hello, now);
    let first = exchange(&mut machine, &mut broker);
    assert!(first.len() > 100_000);
    let head_bytes = ringmain_wire::Envelope::BYTES + FetchReply::BYTES;
    machine.receive(0, &first[..head_bytes - 1], now);
    assert!(exchange(&mut machine, &mut broker).is_empty());
    machine.receive(0, &first[head_bytes - 1..head_bytes], now);
    assert!(exchange(&mut machine, &mut broker).len() > 100_000, "the next reply is under way before the first is complete");
}

#[test]
fn added_partition_is_read_from_its_beginning() {
    let mut run = Run::new(from(StartFrom::End), broker(3), 1);
    run.until_end().unwrap();
    run.broker.partitions.push(crate::fake::FakePartition::default());
    append(&mut run.broker, 1, 4, 0);
    run.network.drop_all(&mut run.machine);
    run.until(|run| run.read[1].len() == 4).unwrap();
    assert!(run.read[0].is_empty());
}
