use std::time::{Duration, Instant};

use ringmain_wire::queue::{QueueHeaders, QueueList, Verb};
use ringmain_wire::record::HeadersBuilder;

use super::*;
use crate::fake::FakeBroker;
use crate::fake::network::Network;

struct Run {
    machine: QueueConsumerMachine,
    broker: FakeBroker,
    network: Network,
    received: Vec<Message>,
}

fn map(broker: &FakeBroker) -> QueueMap {
    let config = QueueConfig::default();
    let partitions = broker.metadata().topics.remove(0).partitions;
    let info = QueueInfo { queue: broker.queue_id, name: "q".into(), topic: "t".into(), partitions, config };
    QueueMap::find(&QueueList { shard_ports: broker.shard_ports.clone(), queues: vec![info] }, "q").unwrap()
}

/// `messages` in each of `partition_count` partitions, behind two ports.
fn broker(partition_count: usize, messages: u64, seed: u64) -> FakeBroker {
    let mut broker = FakeBroker::new(&[0, 7], partition_count, seed);
    broker.partitions.iter_mut().for_each(|partition| partition.queue.ready = (0..messages).collect());
    broker
}

impl Run {
    fn new(config: QueueConsumerConfig, broker: FakeBroker) -> Run {
        let machine = QueueConsumerMachine::new(config, map(&broker)).unwrap();
        Run { machine, broker, network: Network::new(3), received: Vec::new() }
    }

    fn now(&self) -> Instant {
        self.network.now
    }

    /// One turn; what has come is taken out.
    fn step(&mut self) -> Result<(), QueueError> {
        self.network.step(&mut self.machine, &mut self.broker);
        self.check_due();
        while let Some(message) = self.machine.poll_message()? {
            self.received.push(message);
            self.check_due();
        }
        self.check_due();
        Ok(())
    }

    /// Nothing that is due is overlooked, and nothing is seen that isn't there.
    fn check_due(&mut self) {
        let now = self.now();
        assert_eq!(self.machine.is_due(now), self.machine.is_due_anywhere(now), "{:?}", self.machine);
    }

    fn until(&mut self, done: impl Fn(&mut Run) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.step().unwrap();
        }
        panic!("not done: {:?}", self.machine);
    }

    fn settle_all(&mut self, verb: Verb) -> u64 {
        let now = self.now();
        let messages = std::mem::take(&mut self.received);
        messages.iter().filter(|message| self.machine.settle(message, verb, Duration::ZERO, now)).count() as u64
    }

    fn flush(&mut self) -> Confirmed {
        self.machine.begin_flush();
        self.until(|run| !run.machine.settles_open());
        self.machine.take_confirmed().unwrap()
    }

    fn queues<T>(&self, of: impl Fn(&crate::fake::FakeQueue) -> T) -> Vec<T> {
        self.broker.partitions.iter().map(|partition| of(&partition.queue)).collect()
    }
}

fn config(prefetch: u32) -> QueueConsumerConfig {
    QueueConsumerConfig { prefetch, ..QueueConsumerConfig::default() }
}

#[test]
fn every_message_is_delivered_and_acknowledged_once_within_the_prefetch() {
    let mut run = Run::new(config(40), broker(3, 500, 1));
    run.network.cut = true;
    let mut settled = 0;
    while settled < 1_500 {
        run.step().unwrap();
        settled += run.settle_all(Verb::Ack);
    }
    assert_eq!(run.flush(), Confirmed { settled: 1_500, ..Confirmed::default() });
    for (acked, most_held) in run.queues(|queue| (queue.acked.clone(), queue.most_held)) {
        assert_eq!(acked, (0..500).collect::<Vec<_>>());
        assert!((1..=13).contains(&most_held), "{most_held} of a third of 40");
    }
}

#[test]
fn prefetch_is_filled_and_waits_for_settlements() {
    let mut run = Run::new(config(10), broker(1, 100, 1));
    run.until(|run| run.received.len() == 10);
    for _ in 0..200 {
        run.step().unwrap();
    }
    assert_eq!((run.received.len(), run.machine.held()), (10, 10));
    let first = run.received.remove(0);
    assert_eq!((first.offset(), first.value(), first.deliveries()), (0, Some(&b"0"[..]), 1));
    assert!(run.machine.settle(&first, Verb::Ack, Duration::ZERO, run.now()));
    run.until(|run| run.received.len() == 10);
    assert_eq!(run.broker.partitions[0].queue.acked, [0], "settled before more was asked for");
    assert!(!run.machine.settle(&first, Verb::Ack, Duration::ZERO, run.now()), "settled twice");
}

#[test]
fn prefetch_of_bytes_bounds_what_comes_at_once() {
    let bytes = 10 * 48;
    let mut run = Run::new(QueueConsumerConfig { prefetch_bytes: bytes, ..config(1_000) }, broker(1, 100, 1));
    run.until(|run| run.received.len() >= 10);
    for _ in 0..200 {
        run.step().unwrap();
    }
    assert_eq!(run.received.len(), 10);
}

#[test]
fn fewer_credits_than_partitions_still_serve_all() {
    let mut run = Run::new(config(1), broker(4, 5, 1));
    let mut settled = 0;
    while settled < 20 {
        run.step().unwrap();
        assert!(run.machine.held() <= 1);
        settled += run.settle_all(Verb::Ack);
    }
    run.flush();
    assert!(run.queues(|queue| queue.acked.len()).iter().all(|acked| *acked == 5));
}

#[test]
fn acknowledgements_gather() {
    let mut run = Run::new(config(100), broker(1, 1_000, 1));
    let mut settled = 0;
    while settled < 1_000 {
        run.step().unwrap();
        settled += run.settle_all(Verb::Ack);
    }
    run.flush();
    let queue = &run.broker.partitions[0].queue;
    assert!(queue.settles <= 45 && queue.receives <= 45 + 1_000, "{} {}", queue.settles, queue.receives);
    assert_eq!(queue.acked.len(), 1_000);
}

#[test]
fn settlement_leaves_by_itself_after_its_linger() {
    let mut run = Run::new(QueueConsumerConfig { settle_linger: Duration::from_millis(20), ..config(10) }, broker(1, 10, 1));
    run.until(|run| run.received.len() == 10);
    let (message, began) = (run.received[3].clone(), run.now());
    // It makes no room, so that nothing else is to be sent.
    assert!(run.machine.settle(&message, Verb::Extend, Duration::ZERO, began));
    run.until(|run| run.broker.partitions[0].queue.extended == [3]);
    assert!(run.now() - began >= Duration::from_millis(20), "{:?}", run.now() - began);
}

#[test]
fn each_verb_does_what_it_says() {
    let mut run = Run::new(config(4), broker(1, 4, 1));
    run.until(|run| run.received.len() == 4);
    let messages = std::mem::take(&mut run.received);
    let now = run.now();
    for (message, verb) in messages.iter().zip([Verb::Ack, Verb::Requeue, Verb::Reject, Verb::Extend]) {
        assert!(run.machine.settle(message, verb, Duration::ZERO, now));
    }
    assert_eq!(run.machine.held(), 1, "what is extended is still held");
    assert_eq!(run.flush().settled, 4);
    run.until(|run| !run.received.is_empty());
    assert_eq!((run.received[0].offset(), run.received[0].deliveries(), run.received[0].is_redelivered()), (1, 2, true));
    let queue = &run.broker.partitions[0].queue;
    assert_eq!((&queue.acked[..], &queue.rejected[..], &queue.extended[..]), (&[0][..], &[2][..], &[3][..]));
}

#[test]
fn cumulative_ack_takes_what_was_handed_out_and_nothing_else() {
    let mut run = Run::new(config(10), broker(1, 10, 1));
    run.network.step(&mut run.machine, &mut run.broker);
    let mut out = Vec::new();
    for _ in 0..100 {
        run.network.step(&mut run.machine, &mut run.broker);
        while out.len() < 6
            && let Some(message) = run.machine.poll_message().unwrap()
        {
            out.push(message);
        }
    }
    let now = run.now();
    assert!(run.machine.settle(&out[1], Verb::Reject, Duration::ZERO, now));
    assert_eq!(run.machine.ack_up_to(&out[4], now), 4);
    assert_eq!(run.flush().settled, 5);
    assert_eq!(run.broker.partitions[0].queue.acked, [0, 2, 3, 4]);
}

#[test]
fn lost_connection_voids_its_deliveries_and_the_rest_goes_on() {
    let mut run = Run::new(config(10), broker(1, 20, 1));
    run.until(|run| run.received.len() == 10);
    let old = std::mem::take(&mut run.received);
    run.network.drop_all(&mut run.machine);
    run.broker.connection_gone(0);
    let now = run.now();
    assert!(old.iter().all(|message| !run.machine.settle(message, Verb::Ack, Duration::ZERO, now)));
    run.until(|run| run.received.len() == 10);
    assert!(run.received.iter().all(|message| message.deliveries() == 2));
    assert_eq!(run.settle_all(Verb::Ack), 10);
    assert_eq!(run.flush(), Confirmed { settled: 10, void: 10, ..Confirmed::default() });
}

/// Connections drop at random, the broker refuses at random: everything is acknowledged in the end, and every settlement is
/// accounted for.
#[test]
fn everything_is_settled_through_drops_and_refusals() {
    for seed in 1..30 {
        let mut broker = broker(3, 200, seed);
        broker.refuse_one_in = 20;
        let mut run = Run::new(config(30), broker);
        run.network = Network::new(seed);
        (run.network.drop_one_in, run.network.cut) = (60, true);
        let mut called = 0;
        for step in 0.. {
            assert!(step < 200_000, "seed {seed}: {:?}", run.machine);
            run.step().unwrap();
            called += run.received.len() as u64;
            run.settle_all(Verb::Ack);
            if run.queues(|queue| queue.acked.len()).iter().all(|acked| *acked == 200) {
                break;
            }
        }
        run.network.drop_one_in = 0;
        let confirmed = run.flush();
        let sum = confirmed.settled + confirmed.refused + confirmed.void + confirmed.unknown;
        assert_eq!(sum, called, "seed {seed}: {confirmed:?}");
        for mut acked in run.queues(|queue| queue.acked.clone()) {
            acked.sort_unstable();
            assert_eq!(acked, (0..200).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

#[test]
fn pull_gives_what_was_asked_for_and_nothing_more() {
    let mut run = Run::new(config(0), broker(2, 5, 1));
    for _ in 0..100 {
        run.step().unwrap();
    }
    assert!(run.received.is_empty() && run.queues(|queue| queue.receives) == [0, 0]);
    for (max, sizes) in [(3, 3), (3, 2), (9, 5)] {
        run.machine.begin_pull(max, run.now() + Duration::from_secs(1));
        run.until(|run| !run.machine.is_pulling());
        run.step().unwrap();
        assert_eq!(run.received.len(), sizes, "at most {max}");
        run.settle_all(Verb::Ack);
        run.flush();
    }
    let (from, wait) = (run.now(), Duration::from_millis(300));
    run.machine.begin_pull(5, from + wait);
    run.until(|run| !run.machine.is_pulling());
    assert!(run.received.is_empty());
}

#[test]
fn queue_that_is_gone_ends_its_consumer() {
    for queue_id in [0, 6] {
        let mut run = Run::new(config(10), broker(1, 0, 1));
        run.until(|run| run.broker.partitions[0].queue.receives > 0);
        run.broker.queue_id = queue_id;
        let error = (0..10_000).find_map(|_| run.step().err().filter(|error| matches!(error, QueueError::Gone { .. })));
        assert!(error.is_some_and(|error| error.to_string().contains("'q'")));
        assert!(matches!(run.machine.poll_message(), Err(QueueError::Gone { .. })), "for ever");
    }
}

#[test]
fn hour_of_work_on_one_message_keeps_the_connection() {
    let mut run = Run::new(config(1), broker(1, 2, 1));
    run.until(|run| run.received.len() == 1);
    run.network.now += Duration::from_secs(3_600);
    let message = run.received.pop().unwrap();
    assert!(run.machine.settle(&message, Verb::Ack, Duration::ZERO, run.now()));
    run.until(|run| run.received.len() == 1);
    assert_eq!((run.network.connects, run.received[0].deliveries()), (1, 1));
}

#[test]
fn partition_that_does_not_exist_is_refused() {
    let config = QueueConsumerConfig { partitions: Some(vec![3]), ..config(1) };
    let refused = QueueConsumerMachine::new(config, map(&broker(3, 0, 1)));
    assert!(matches!(refused, Err(QueueError::NoSuchPartition { index: 3, partition_count: 3 })));
}

#[test]
fn outgoing_headers_are_those_that_queues_read() {
    let message = Outgoing::new(b"v").key(b"k").due_ms(77).priority(9).ttl(Duration::from_secs(2)).tag("red").message_id("m-1");
    let message = message.header(b"colour", Some(b"blue")).partition(3).timestamp_ms(5);
    let record = message.record();
    let expected = QueueHeaders { due_ms: Some(77), priority: 9, ttl_ms: Some(2_000), tag: Some(b"red"), message_id: Some(b"m-1") };
    assert_eq!(QueueHeaders::read(record.headers), expected);
    assert_eq!((record.key, record.value, record.partition, record.timestamp_ms), (Some(&b"k"[..]), Some(&b"v"[..]), Some(3), Some(5)));
    let delayed = Outgoing::new(b"v").delay(Duration::from_secs(60));
    let due_ms = QueueHeaders::read(delayed.record().headers).due_ms.unwrap();
    let now_ms = crate::transport::wall_ms();
    assert!((now_ms + 50_000..=now_ms + 60_000).contains(&due_ms));
}

#[test]
fn answers_find_their_requests() {
    let (mut mine, others) = (Numbering::random(), Numbering::random());
    let (id, correlation) = mine.next();
    let to = ReplyTo { topic: "a:b".into(), partition_index: 12, correlation };
    let request = Outgoing::new(b"").reply_to(&to);
    let read = |name: &[u8]| {
        let mut found = ringmain_wire::record::headers(request.record().headers).map(Option::unwrap);
        found.find(|(header, _)| *header == name).and_then(|(_, value)| value).unwrap().to_vec()
    };
    assert_eq!(ReplyTo::read(&read(b"reply-to"), &read(b"correlation-id")), Some(to.clone()));
    let (name, value) = to.answer_header();
    let mut headers = HeadersBuilder::default();
    headers.push(b"x", None).push(name, Some(value));
    assert_eq!(mine.answered(headers.as_bytes()), Some(id));
    assert_eq!(others.answered(headers.as_bytes()), None);
    assert_eq!(mine.answered(b""), None);
    assert_eq!(ReplyTo::read(b"no place", b"x"), None);
}
