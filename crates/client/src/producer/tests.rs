use std::time::Duration;

use super::*;
use crate::error::DeliveryError;
use crate::fake::network::Network;
use crate::fake::{FakeBroker, Random};
use crate::links::TopicMap;

struct Run {
    machine: ProducerMachine,
    broker: FakeBroker,
    network: Network,
    /// Values offered, by partition, and what became of them.
    sent: Vec<Vec<(Receipt, Vec<u8>)>>,
    deliveries: Vec<Delivery>,
}

fn grant() -> ProducerGrant {
    ProducerGrant { version: 1, producer_epoch: 0, reserved: 0, producer_id: 7 }
}

impl Run {
    fn new(config: ProducerConfig, ports: &[u16], partition_count: usize, seed: u64) -> Run {
        let broker = FakeBroker::new(ports, partition_count, seed);
        let topic = TopicMap::find(&broker.metadata(), "t").unwrap();
        let machine = ProducerMachine::new(config, topic, Some(grant()));
        Run { machine, broker, network: Network::new(seed), sent: vec![Vec::new(); partition_count], deliveries: Vec::new() }
    }

    fn send(&mut self, record: Record<'_>) -> Result<Receipt, SendError> {
        let receipt = self.machine.send(record, self.network.now, 1)?.receipt;
        self.sent[receipt.partition_index as usize].push((receipt, record.value.unwrap().to_vec()));
        Ok(receipt)
    }

    fn step(&mut self) {
        self.network.step(&mut self.machine, &mut self.broker);
        while let Some(delivery) = self.machine.poll_delivery() {
            self.deliveries.push(delivery);
        }
    }

    fn run_until_done(&mut self) {
        self.machine.begin_flush();
        for _ in 0..200_000 {
            if self.machine.open_records() == 0 {
                return;
            }
            self.step();
        }
        panic!("not done: {} records open, {:?}", self.machine.open_records(), self.machine);
    }

    /// Every record not refused is in the log once, in order, where its delivery says; refused ones aren't.
    fn check(&self) {
        for (index, sent) in self.sent.iter().enumerate() {
            let log = self.broker.values(index);
            let mut expected = Vec::new();
            for (receipt, value) in sent {
                let delivery = self.deliveries.iter().filter(|d| d.covers(*receipt)).collect::<Vec<_>>();
                assert_eq!(delivery.len(), 1, "{receipt:?} has one delivery");
                match &delivery[0].result {
                    Ok(stored) => {
                        expected.push(value.clone());
                        if stored.base_offset.is_some() {
                            let offset = delivery[0].offset_of(*receipt).unwrap();
                            assert_eq!(&log[offset as usize], value, "{receipt:?} at {offset}");
                        }
                    }
                    Err(DeliveryError::Refused { maybe_stored: false, .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            assert_eq!(log.len(), expected.len(), "partition {index}: no loss, no duplicates");
            assert_eq!(log, expected, "partition {index}: in order");
        }
        assert_eq!(self.machine.buffered_bytes(), 0);
    }
}

fn small() -> ProducerConfig {
    ProducerConfig {
        batch_bytes: 400,
        linger: Duration::from_millis(1),
        delivery_timeout: Duration::from_secs(3_600),
        ..ProducerConfig::default()
    }
}

/// Many runs with everything going wrong that may: lost connections at any byte, retriable refusals, partitions that
/// move, acknowledgements in any order.
#[test]
fn producer_under_faults_neither_loses_nor_repeats_nor_reorders() {
    let mut duplicates = 0;
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let ports = [0, 7172, 7173];
        let mut run = Run::new(small(), &ports[..1 + random.below(3) as usize], 1 + random.below(4) as usize, seed);
        run.network.cut = random.one_in(2);
        run.network.drop_one_in = [0, 40, 15][random.below(3) as usize];
        run.broker.refuse_one_in = [0, 10, 3][random.below(3) as usize];
        run.broker.shuffle = random.one_in(2);
        run.broker.mixed_one_in = [0, 20, 3][random.below(3) as usize];
        for i in 0..400u64 {
            let value = format!("{i:0width$}", width = 1 + random.below(120) as usize).into_bytes();
            let key = random.below(9).to_string();
            let key = (!random.one_in(3)).then_some(key.as_bytes());
            run.send(Record { key, value: Some(&value), ..Record::default() }).unwrap();
            for _ in 0..random.below(3) {
                run.step();
            }
            if random.one_in(100) {
                let ports = run.broker.shard_ports.clone();
                for partition in &mut run.broker.partitions {
                    partition.port = ports[random.below(ports.len() as u64) as usize];
                }
            }
            if random.one_in(150) {
                run.network.down = true;
                run.network.drop_all(&mut run.machine);
            }
            if random.one_in(50) {
                run.network.down = false;
            }
        }
        run.network.down = false;
        run.run_until_done();
        run.check();
        assert_eq!(run.machine.acknowledged_records(), 400);
        duplicates += run.broker.duplicates;
    }
    assert!(duplicates > 100, "the faults hit: {duplicates} batches were sent again after they had been stored");
}

/// Batches refused for good leave no gap behind them: the others arrive, in order, once.
#[test]
fn refused_batch_is_reported_and_the_rest_goes_on() {
    let mut refused = 0;
    for seed in 0..200 {
        println!("seed {seed}");
        let mut run = Run::new(small(), &[0, 7172], 2, seed);
        run.broker.refuse_for_good_one_in = 12;
        run.broker.refuse_one_in = if seed % 2 == 0 { 9 } else { 0 };
        run.broker.shuffle = seed % 3 == 0;
        run.network.cut = seed % 5 == 0;
        for i in 0..300u64 {
            let value = format!("{i:050}").into_bytes();
            run.send(Record { value: Some(&value), partition: Some((i % 2) as u32), ..Record::default() }).unwrap();
            if i % 4 == 0 {
                run.step();
            }
        }
        run.run_until_done();
        run.check();
        refused += run.machine.take_failures().map_or_else(|error| error.failed_records, |()| 0);
    }
    assert!(refused > 1_000);
}

#[test]
fn lost_reply_is_asked_for_again_with_the_same_sequence() {
    let mut run = Run::new(small(), &[0], 1, 1);
    let receipt = run.send(Record { value: Some(b"once"), ..Record::default() }).unwrap();
    run.machine.begin_flush();
    while run.broker.produce_requests == 0 {
        // The reply is put into the wire within the step that serves the request, so cut it off there.
        run.network.cut = run.network.connects > 0;
        run.step();
    }
    run.network.drop_all(&mut run.machine);
    run.network.cut = false;
    run.run_until_done();
    run.check();
    assert_eq!((run.deliveries.len(), run.deliveries[0].offset_of(receipt)), (1, Some(0)));
}

#[test]
fn linger_over_sends_the_open_batch() {
    let config = ProducerConfig { linger: Duration::from_millis(20), ..ProducerConfig::default() };
    let mut run = Run::new(config, &[0], 1, 1);
    let begin = run.network.now;
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    run.send(Record { value: Some(b"b"), ..Record::default() }).unwrap();
    while run.machine.open_records() > 0 {
        run.step();
    }
    let took = run.network.now - begin;
    assert!(took >= Duration::from_millis(20) && took < Duration::from_millis(22), "{took:?}");
    assert_eq!((run.broker.produce_requests, run.deliveries[0].record_count), (1, 2));
}

#[test]
fn window_bounds_the_batches_in_flight() {
    let config = ProducerConfig { max_in_flight: 3, linger: Duration::ZERO, batch_bytes: 1, ..ProducerConfig::default() };
    let mut run = Run::new(config, &[0], 1, 1);
    for _ in 0..20 {
        run.send(Record { value: Some(b"x"), ..Record::default() }).unwrap();
    }
    let mut out = Vec::new();
    run.machine.handle_timeout(run.network.now);
    while run.machine.poll_action(run.network.now).is_some() {}
    run.machine.connected(0, run.network.now);
    run.machine.transmit(0, run.network.now, &mut out);
    let (mut replies, mut input) = (Vec::new(), out);
    run.broker.serve(0, &mut input, &mut replies);
    run.machine.receive(0, &replies, run.network.now);
    let mut out = Vec::new();
    run.machine.transmit(0, run.network.now, &mut out);
    run.broker.serve(0, &mut out, &mut Vec::new());
    assert_eq!(run.broker.produce_requests, 3);
}

#[test]
fn full_buffer_refuses_and_takes_again_after_acknowledgement() {
    let config = ProducerConfig { buffer_bytes: 1_000, linger: Duration::from_secs(60), ..ProducerConfig::default() };
    let mut run = Run::new(config, &[0], 1, 1);
    let value = [7; 200];
    let mut taken = 0;
    let full = loop {
        match run.send(Record { value: Some(&value), ..Record::default() }) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SendError::BufferFull { limit_bytes: 1_000, .. }) && taken == 4, "{full} after {taken}");
    // A sender that waits for room must not also wait for the linger.
    let begin = run.network.now;
    while run.machine.open_records() > 0 {
        run.step();
    }
    assert!(run.network.now - begin < Duration::from_secs(1));
    run.send(Record { value: Some(&value), ..Record::default() }).unwrap();
}

#[test]
fn too_large_record_and_wrong_partition_are_refused_at_once() {
    let mut run = Run::new(ProducerConfig::default(), &[0], 2, 1);
    let value = vec![0; 1 << 20];
    assert!(matches!(
        run.send(Record { value: Some(&value), ..Record::default() }),
        Err(SendError::RecordTooLarge { limit_bytes: 1_048_576, .. })
    ));
    let wrong = run.send(Record { value: Some(b""), partition: Some(2), ..Record::default() });
    assert!(matches!(wrong, Err(SendError::NoSuchPartition { index: 2, partition_count: 2 })));
    assert_eq!(run.machine.buffered_bytes(), 0);
}

#[test]
fn lost_sequence_ends_the_producer() {
    let mut run = Run::new(small(), &[0], 1, 1);
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    run.run_until_done();
    // The broker forgets every producer.
    run.broker.partitions[0] = crate::fake::FakePartition::default();
    run.send(Record { value: Some(b"b"), ..Record::default() }).unwrap();
    run.run_until_done();
    assert!(matches!(run.machine.ended(), Some(ProducerEnd::SequenceLost { partition_index: 0, .. })));
    assert!(matches!(run.send(Record { value: Some(b"c"), ..Record::default() }), Err(SendError::Ended(_))));
    assert_eq!(run.machine.take_failures().unwrap_err().failed_records, 1);
}

#[test]
fn unreachable_broker_times_out_and_says_so() {
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(3), ..small() };
    let mut run = Run::new(config, &[0], 1, 1);
    run.network.down = true;
    let begin = run.network.now;
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    run.run_until_done();
    let took = run.network.now - begin;
    assert!(took >= Duration::from_secs(3) && took < Duration::from_millis(3_500), "{took:?}");
    let error = run.machine.take_failures().unwrap_err();
    assert!(matches!(error.first, DeliveryError::TimedOut { maybe_stored: false, .. }), "{error}");
    // Never sent, so nothing is in doubt: the producer goes on.
    run.network.down = false;
    run.send(Record { value: Some(b"b"), ..Record::default() }).unwrap();
    run.run_until_done();
    assert_eq!(run.broker.values(0), [b"b"]);
}

#[test]
fn moved_partition_is_followed_to_its_new_port() {
    let mut run = Run::new(small(), &[0, 7172], 1, 1);
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    run.run_until_done();
    run.broker.partitions[0].port = 7172;
    for _ in 0..3 {
        run.send(Record { value: Some(b"b"), ..Record::default() }).unwrap();
        run.run_until_done();
        for _ in 0..5 {
            run.step();
        }
        run.network.now += Duration::from_millis(100);
    }
    assert!(run.broker.moved <= 2, "{} requests took the long way", run.broker.moved);
    assert_eq!(run.machine.topic().partitions[0].port, 7172);
}

/// Two connections have no order between them: also without idempotence nothing may overtake what is in flight.
#[test]
fn moved_partition_waits_for_what_is_in_flight() {
    let mut run = Run::new(ProducerConfig { idempotent: false, linger: Duration::ZERO, batch_bytes: 1, ..small() }, &[0, 7172], 1, 1);
    let (now, mut hello, mut requests) = (run.network.now, Vec::new(), Vec::new());
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    for port in [0, 7172] {
        run.machine.links.want(port);
        while run.machine.links.poll_action(now).is_some() {}
        run.machine.connected(port, now);
        let mut greeting = Vec::new();
        run.machine.transmit(port, now, &mut greeting);
        run.broker.serve(port, &mut greeting, &mut hello);
        run.machine.receive(port, &std::mem::take(&mut hello), now);
    }
    assert!(run.machine.transmit(0, now, &mut requests));
    run.machine.topic.partitions[0].port = 7172;
    run.send(Record { value: Some(b"b"), ..Record::default() }).unwrap();
    assert!(!run.machine.transmit(7172, now, &mut Vec::new()), "the first is still on its way");
    let mut replies = Vec::new();
    run.broker.serve(0, &mut requests, &mut replies);
    run.machine.receive(0, &replies, now);
    assert!(run.machine.transmit(7172, now, &mut Vec::new()));
}

#[test]
fn deleted_topic_ends_the_producer() {
    let mut run = Run::new(small(), &[0], 1, 1);
    run.broker.topic_id = 2;
    run.broker.refuse_one_in = 1;
    run.send(Record { value: Some(b"a"), ..Record::default() }).unwrap();
    run.run_until_done();
    assert!(matches!(run.machine.ended(), Some(ProducerEnd::Topic(_))), "{:?}", run.machine.ended());
}

#[test]
fn records_without_key_go_round_in_whole_batches() {
    let mut run = Run::new(small(), &[0], 3, 1);
    for _ in 0..90 {
        run.send(Record { value: Some(&[1; 30]), ..Record::default() }).unwrap();
    }
    run.run_until_done();
    run.check();
    let counts: Vec<usize> = (0..3).map(|index| run.broker.values(index).len()).collect();
    assert!(counts.iter().all(|count| *count >= 25), "{counts:?}");
    assert!(run.broker.produce_requests <= 19, "{} batches", run.broker.produce_requests);
}

#[test]
fn sequence_wraps_after_the_largest() {
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
    assert!(sequence_is_before(i32::MAX, 0) && !sequence_is_before(0, i32::MAX) && !sequence_is_before(5, 5));
}

#[test]
fn frames_say_when_queues_have_to_look_at_their_headers() {
    use crate::queue::Outgoing;
    use ringmain_wire::Frame;
    let mut run = Run::new(ProducerConfig { batch_bytes: 1, ..small() }, &[0], 1, 1);
    for message in [Outgoing::new(b"plain"), Outgoing::new(b"own").header(b"h", Some(b"x")), Outgoing::new(b"late").priority(3)] {
        run.send(message.record()).unwrap();
    }
    run.run_until_done();
    let frames = run.broker.partitions[0].frames.iter().map(|(_, bytes)| Frame::parse(bytes).unwrap().header.producer.flags);
    assert_eq!(frames.collect::<Vec<_>>(), [0, 0, flags::QUEUE_HEADERS]);
}

#[test]
fn full_queue_is_waited_for_or_told_at_once() {
    for waits_for_room in [true, false] {
        let mut run = Run::new(ProducerConfig { waits_for_room, ..small() }, &[0], 1, 1);
        run.broker.is_full = true;
        run.send(Record { value: Some(b"1"), ..Record::default() }).unwrap();
        run.machine.begin_flush();
        for _ in 0..100 {
            run.step();
        }
        run.broker.is_full = false;
        let told = run.deliveries.iter().filter(|delivery| {
            matches!(&delivery.result, Err(DeliveryError::Refused { error, maybe_stored: false }) if error.code == ErrorCode::QueueFull)
        });
        assert_eq!(told.count(), usize::from(!waits_for_room));
        run.send(Record { value: Some(b"2"), ..Record::default() }).unwrap();
        run.run_until_done();
        run.check();
    }
}
