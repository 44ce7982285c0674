//! Queues end to end: through the command line and the client, with the broker killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::control::{CreateTopic, Durability, TopicConfig};
use ringmain_client::wire::queue::{CreateQueue, Overflow, QueueConfig, QueueState};
use ringmain_client::{
    CallError, Client, Message, Outgoing, ProducerConfig, QueueConsumer, QueueConsumerConfig, QueueError, RequesterConfig,
};
use serde_json::Value;

use crate::harness::{Broker, PROGRAM, Start, clean, free_ports, ringmain};

/// A message that doesn't come within this doesn't come.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("not one JSON value ({e}): {}", String::from_utf8_lossy(bytes)))
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// A broker whose ports stay the same, so that clients of before go on after a restart.
pub fn start(name: &str) -> Broker {
    let native = SocketAddr::from(([127, 0, 0, 1], free_ports(3)));
    Broker::start(name, Start { native: Some(native), ..Start::with(&["--shards", "2"]) })
}

pub fn create(client: &Client, name: &str, partition_count: u32, config: QueueConfig) {
    let durability = Durability::Durable;
    client.create_queue(&CreateQueue { name: name.into(), topic: String::new(), partition_count, durability, config }).unwrap();
}

pub fn publish<'a>(client: &Client, queue: &str, messages: impl IntoIterator<Item = Outgoing<'a>>) {
    let mut producer = client.queue_producer(queue, ProducerConfig::default()).unwrap();
    for message in messages {
        producer.send(message.record()).unwrap();
    }
    producer.close().unwrap();
}

pub fn consumer(client: &Client, queue: &str, prefetch: u32) -> QueueConsumer {
    client.queue_consumer(queue, QueueConsumerConfig { prefetch, ..QueueConsumerConfig::default() }).unwrap()
}

pub fn next(consumer: &mut QueueConsumer) -> Message {
    consumer.recv(PATIENCE).unwrap().unwrap_or_else(|| panic!("no message came: {consumer:?}"))
}

pub fn value(message: &Message) -> String {
    String::from_utf8(message.value().unwrap().to_vec()).unwrap()
}

/// The states of all partitions, added up; and that each adds up in itself.
pub fn state(client: &Client, queue: &str) -> QueueState {
    let states = client.describe_queue(queue).unwrap();
    for state in &states {
        let sum = state.ready + state.delayed + state.in_flight + state.acked + state.dead_lettered + state.dropped;
        assert_eq!(sum, state.enqueued, "{state:?}");
    }
    let first = states[0].clone();
    states[1..].iter().fold(first, |sum, state| QueueState {
        enqueued: sum.enqueued + state.enqueued,
        ready: sum.ready + state.ready,
        delayed: sum.delayed + state.delayed,
        in_flight: sum.in_flight + state.in_flight,
        acked: sum.acked + state.acked,
        dead_lettered: sum.dead_lettered + state.dead_lettered,
        dropped: sum.dropped + state.dropped,
        consumers: sum.consumers + state.consumers,
        ..sum
    })
}

/// Waits until the queue is in a state.
pub fn until(client: &Client, queue: &str, is_it: impl Fn(&QueueState) -> bool) -> QueueState {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = state(client, queue);
        if is_it(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "{queue} stays {state:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn queue_lives_through_the_command_line() {
    let broker = Broker::start("queue-cli", Start::default());
    broker.run(&["queue", "create", "jobs", "--partitions", "2", "--priorities", "3", "--filter", "kind IS NULL OR kind <> 'noise'"]);
    broker.run(&["queue", "create", "jobs", "--if-not-exists"]);
    broker.run_with_input(&["produce", "jobs", "--partition", "0"], b"low 1\nlow 2\n");
    broker.run_with_input(&["produce", "jobs", "--partition", "0", "--priority", "2"], b"high\n");
    broker.run_with_input(&["produce", "jobs", "--partition", "1", "--header", "kind=noise"], b"unheard\n");
    broker.run_with_input(&["produce", "jobs", "--partition", "1", "--delay-ms", "3600000"], b"late\nlater\n");
    assert_eq!(text(broker.run(&["queue", "peek", "jobs", "--partition", "0"])), "0/0\tlow 1\n0/1\tlow 2\n0/2\thigh\n");

    let described = json(&broker.run(&["queue", "describe", "jobs", "--format", "json"]));
    assert_eq!((&described["priorities"], &described["partitions"][0]["ready"]), (&Value::from(3), &Value::from(3)));
    assert_eq!((&described["partitions"][1]["delayed"], &described["partitions"][1]["dropped"]), (&Value::from(2), &Value::from(1)));

    // Looked at and given back, then taken.
    for (deliveries, arguments) in [(1, &[][..]), (2, &["--ack"])] {
        let consume = [&["consume", "--queue", "jobs", "--exit-at-end", "--format", "json"], arguments].concat();
        let lines = text(broker.run(&consume));
        let messages: Vec<Value> = lines.lines().map(|line| json(line.as_bytes())).collect();
        let values: Vec<&str> = messages.iter().map(|message| message["value"].as_str().unwrap()).collect();
        assert_eq!(values, ["high", "low 1", "low 2"]);
        assert!(messages.iter().all(|message| message["deliveries"] == deliveries), "{lines}");
        until(&broker.client(), "jobs", |state| state.in_flight == 0 && state.consumers == 0);
    }
    let delayed = json(&broker.run(&["queue", "delayed", "jobs", "--format", "json"]));
    let offsets: Vec<u64> = delayed.as_array().unwrap().iter().map(|message| message["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [1, 2]);
    broker.run(&["queue", "delayed", "jobs", "--partition", "1", "--deliver-now", "1"]);
    broker.run(&["queue", "delayed", "jobs", "--partition", "1", "--cancel", "2"]);
    let again = ringmain(&["queue", "delayed", "jobs", "--partition", "1", "--cancel", "2", "--connect", &broker.address()], b"");
    assert_eq!(again.status.code(), Some(1), "it waits no more");
    broker.run(&["queue", "pause", "jobs"]);
    assert!(json(&broker.run(&["queue", "list", "--format", "json"]))[0]["paused"].as_bool().unwrap());
    broker.run(&["queue", "resume", "jobs"]);
    assert_eq!(text(broker.run(&["consume", "--queue", "jobs", "--count", "1", "--ack"])), "late\n");

    broker.run_with_input(&["produce", "jobs", "--partition", "0"], b"more\n");
    assert_eq!(text(broker.run(&["queue", "purge", "jobs"])), "purged=1\n");
    broker.run(&["queue", "seek", "jobs", "--to", "1", "--partition", "0"]);
    assert_eq!(text(broker.run(&["consume", "--queue", "jobs", "--exit-at-end", "--ack"])), "high\nlow 2\nmore\n");
    broker.run(&["queue", "alter", "jobs", "--filter", "", "--ttl-ms", "5"]);
    assert_eq!(json(&broker.run(&["queue", "list", "--format", "json"]))[0]["ttl_ms"], 5);
    broker.run(&["queue", "delete", "jobs"]);
    broker.run(&["queue", "delete", "jobs", "--if-exists"]);

    for (arguments, code, said) in [
        (&["queue", "describe", "jobs"][..], 1, "ringmain queue create"),
        (&["consume", "--queue", "jobs"], 1, "ringmain queue create"),
        (&["queue", "create", "x", "--filter", "a ="], 1, "the filter at column 4"),
        (&["queue", "create", "x", "--backoff", "often"], 2, "exponential:MS..LONGEST"),
        (&["consume", "jobs", "--queue", "jobs"], 2, "cannot be used with"),
        (&["consume"], 2, "required"),
    ] {
        let output = ringmain(&[arguments, &["--connect", &broker.address()]].concat(), b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && stderr.contains(said), "{arguments:?}: {:?} {stderr}", output.status.code());
    }
}

#[test]
fn request_is_answered_through_the_command_line_and_the_client() {
    let broker = Broker::start("queue-request", Start::default());
    let client = broker.client();
    create(&client, "upper", 1, QueueConfig::default());
    let mut command = std::process::Command::new(PROGRAM);
    let arguments = ["reply", "upper", "--count", "3", "--connect", &broker.address(), "--", "tr", "a-z", "A-Z"];
    let mut worker = clean(&mut command).args(arguments).spawn().unwrap();
    assert_eq!(text(broker.run_with_input(&["request", "upper"], b"hello")), "HELLO\n");
    let mut requester = client.requester(RequesterConfig::default()).unwrap();
    // Two at a time, and the answers asked for the other way round.
    let ids = ["one", "two"].map(|request| requester.send("upper", Outgoing::new(request.as_bytes())).unwrap());
    assert_eq!(requester.answer(ids[1], PATIENCE).unwrap(), b"TWO");
    assert_eq!(requester.answer(ids[0], PATIENCE).unwrap(), b"ONE");
    assert!(worker.wait().unwrap().success());
    let unanswered = ringmain(&["request", "upper", "x", "--timeout-ms", "50", "--connect", &broker.address()], b"");
    assert_eq!(unanswered.status.code(), Some(75), "{unanswered:?}");
}

#[test]
fn order_is_that_of_priority_then_time() {
    let broker = Broker::start("queue-order", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { priorities: 10, ..QueueConfig::default() });
    let values: Vec<(u8, String)> = (0..300).map(|i| ((i * 7 % 10) as u8, format!("{}-{i:03}", i * 7 % 10))).collect();
    publish(&client, "q", values.iter().map(|(priority, value)| Outgoing::new(value.as_bytes()).priority(*priority)));
    let mut consumer = consumer(&client, "q", 50);
    let mut received: Vec<String> = Vec::new();
    while received.len() < values.len() {
        let message = next(&mut consumer);
        received.push(value(&message));
        consumer.ack(&message);
    }
    assert_eq!(consumer.close().unwrap().settled, 300);
    let mut expected: Vec<String> = values.into_iter().map(|(_, value)| value).collect();
    expected.sort_by(|a, b| b.as_bytes()[0].cmp(&a.as_bytes()[0]).then(a.cmp(b)));
    assert_eq!(received, expected);
}

#[test]
fn delayed_messages_come_in_order_of_their_time_and_not_before() {
    let broker = Broker::start("queue-delay", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig::default());
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let due: Vec<(i64, String)> = [900, 300, 600, 0].iter().map(|delay| (now_ms + delay, delay.to_string())).collect();
    publish(&client, "q", due.iter().map(|(due_ms, value)| Outgoing::new(value.as_bytes()).due_ms(*due_ms)));
    let mut consumer = consumer(&client, "q", 10);
    for expected in ["0", "300", "600", "900"] {
        let message = next(&mut consumer);
        let arrived_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        assert_eq!(value(&message), expected);
        assert!(arrived_ms >= message.queue_headers().due_ms.unwrap(), "{expected} came early");
        consumer.ack(&message);
    }
    assert_eq!(consumer.close().unwrap().settled, 4);
}

#[test]
fn consumer_that_leaves_gives_back_what_it_holds() {
    let broker = start("queue-leave");
    let client = broker.client();
    create(&client, "q", 2, QueueConfig::default());
    publish(&client, "q", (0..20).map(|i| Outgoing::new(b"m").partition(i % 2)));
    let mut first = consumer(&client, "q", 20);
    let held: Vec<Message> = (0..20).map(|_| next(&mut first)).collect();
    assert!(held.iter().all(|message| message.deliveries() == 1));
    assert_eq!(until(&client, "q", |state| state.in_flight == 20).consumers, 2, "one per partition");
    drop(first);
    until(&client, "q", |state| (state.ready, state.in_flight, state.consumers) == (20, 0, 0));
    let mut second = consumer(&client, "q", 20);
    for _ in 0..20 {
        let message = next(&mut second);
        assert_eq!(message.deliveries(), 2);
        second.ack(&message);
    }
    assert_eq!(second.close().unwrap().settled, 20);
    assert_eq!(state(&client, "q").acked, 20);
}

#[test]
fn poison_message_is_dead_lettered_at_its_limit_through_kills_and_redriven() {
    let mut broker = start("queue-poison");
    let client = broker.client();
    let dead = CreateTopic { name: "dead".into(), partition_count: 1, config: TopicConfig::default() };
    client.create_topic(&dead).unwrap();
    create(&client, "dead", 1, QueueConfig::default());
    let config = QueueConfig { delivery_limit: Some(3), dead_letter: Some("dead".into()), ..QueueConfig::default() };
    create(&client, "jobs", 1, config);
    publish(&client, "jobs", [Outgoing::new(b"good"), Outgoing::new(b"poison").key(b"k").header(b"h", Some(b"x"))]);

    let mut deliveries = 0;
    let mut kills = 0u16;
    while state(&client, "jobs").dead_lettered == 0 {
        assert!(deliveries <= 4, "at most limit + 1 deliveries");
        let mut worker = consumer(&client, "jobs", 1);
        while let Some(message) = worker.recv(Duration::from_millis(300)).unwrap() {
            if value(&message) == "good" {
                worker.ack(&message);
                continue;
            }
            deliveries += 1;
            if kills < 2 {
                // The worker and the broker die over it.
                kills += 1;
                broker.kill();
                broker.restart();
                break;
            }
            worker.nack(&message, Duration::ZERO);
        }
        drop(worker);
    }
    let mut reader = consumer(&client, "dead", 1);
    let message = next(&mut reader);
    let dead = message.dead_letter().unwrap();
    assert_eq!((value(&message).as_str(), dead.reason.as_str(), dead.queue.as_str()), ("poison", "delivery-limit", "jobs"));
    assert_eq!((message.key(), message.header(b"h")), (Some(&b"k"[..]), Some(&b"x"[..])));
    assert!(dead.place.ends_with(":1"), "its offset: {dead:?}");
    assert!((3..=4).contains(&dead.deliveries), "{dead:?}");
    drop(reader);
    until(&client, "dead", |state| state.in_flight == 0);

    let moved = text(broker.run(&["queue", "redrive", "dead"]));
    assert_eq!(moved, "moved=1\n");
    let mut worker = consumer(&client, "jobs", 1);
    let back = next(&mut worker);
    assert_eq!((value(&back).as_str(), back.offset(), back.dead_letter()), ("poison", 2, None));
    assert_eq!(back.deliveries(), 1, "it was published after the kills: {back:?}");
    assert_eq!(back.header(b"h"), Some(&b"x"[..]));
    worker.ack(&back);
    worker.close().unwrap();
    assert_eq!((state(&client, "dead").acked, state(&client, "jobs").ready), (1, 0));
}

#[test]
fn reject_goes_to_the_dead_letters_at_once_and_nack_waits() {
    let broker = Broker::start("queue-nack", Start::default());
    let client = broker.client();
    create(&client, "dead", 1, QueueConfig::default());
    create(&client, "q", 1, QueueConfig { dead_letter: Some("dead".into()), ..QueueConfig::default() });
    publish(&client, "q", [Outgoing::new(b"bad"), Outgoing::new(b"later"), Outgoing::new(b"now")]);
    let mut worker = consumer(&client, "q", 3);
    let messages: Vec<Message> = (0..3).map(|_| next(&mut worker)).collect();
    worker.reject(&messages[0]);
    let returned = Instant::now();
    worker.nack(&messages[1], Duration::from_millis(400));
    worker.nack(&messages[2], Duration::ZERO);
    let again = next(&mut worker);
    assert_eq!((value(&again).as_str(), again.deliveries()), ("now", 2));
    let later = next(&mut worker);
    assert_eq!((value(&later).as_str(), later.deliveries()), ("later", 2));
    assert!(returned.elapsed() >= Duration::from_millis(390), "{:?}", returned.elapsed());
    worker.extend(&later, Duration::from_secs(60));
    worker.ack_up_to(&again);
    worker.close().unwrap();
    let mut reader = consumer(&client, "dead", 1);
    let dead = next(&mut reader);
    assert_eq!((value(&dead).as_str(), dead.dead_letter().unwrap().reason.as_str()), ("bad", "rejected"));
}

/// Acknowledged and confirmed stays so, and nothing else is lost, whenever the broker is killed.
#[test]
fn kills_lose_no_message_and_undo_no_confirmed_acknowledgement() {
    const MESSAGES: u32 = 6_000;
    let mut broker = start("queue-kill");
    let client = broker.client();
    create(&client, "q", 4, QueueConfig { delivery_limit: None, ..QueueConfig::default() });
    let values: Vec<String> = (0..MESSAGES).map(|i| i.to_string()).collect();
    publish(&client, "q", values.iter().zip(0..).map(|(value, i)| Outgoing::new(value.as_bytes()).partition(i % 4)));
    let (mut confirmed, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut worker = consumer(&client, "q", 400);
    let mut open: Vec<Message> = Vec::new();
    let (mut kills, began) = (0, Instant::now());
    loop {
        match worker.recv(Duration::from_millis(300)) {
            Ok(Some(message)) => {
                let value = value(&message);
                assert!(!confirmed.contains(&value), "{value} came again after its acknowledgement was confirmed");
                seen.insert(value);
                worker.ack(&message);
                open.push(message);
                if open.len() < 97 {
                    continue;
                }
            }
            Ok(None) if open.is_empty() && state(&client, "q").acked == u64::from(MESSAGES) => break,
            Ok(None) => assert!(began.elapsed() < 3 * PATIENCE, "{} of {MESSAGES}: {:?}", seen.len(), state(&client, "q")),
            Err(QueueError::Broker { error, .. }) if error.code.is_retriable() => continue,
            Err(error) => panic!("{error}"),
        }
        if kills < 5 && seen.len() > kills * 1_000 + 500 {
            kills += 1;
            broker.kill();
            broker.restart();
        }
        // Where anything was lost on the way, it isn't known which: those may come again.
        let confirms = worker.flush().unwrap_or_else(|error| panic!("{error}: {worker:?}"));
        if confirms.settled == open.len() as u64 {
            confirmed.extend(open.iter().map(self::value));
        }
        open.clear();
    }
    assert_eq!(kills, 5);
    assert_eq!(seen.len(), MESSAGES as usize, "every message was delivered");
    worker.close().unwrap();
    assert_eq!(until(&client, "q", |state| state.acked == u64::from(MESSAGES)).in_flight, 0);
}

#[test]
fn full_queue_tells_its_publisher() {
    let broker = Broker::start("queue-full", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { max_length: Some(10), ..QueueConfig::default() });
    let config = ProducerConfig { batch_bytes: 1, waits_for_room: false, ..ProducerConfig::default() };
    let mut producer = client.queue_producer("q", config).unwrap();
    for _ in 0..25 {
        producer.send(Outgoing::new(b"m").record()).unwrap();
    }
    let refused = producer.flush().unwrap_err();
    assert_eq!((refused.failed_records, producer.acknowledged()), (15, 10), "{refused}");
    assert_eq!(state(&client, "q").ready, 10);
    let mut exclusive = consumer(&client, "q", 1);
    next(&mut exclusive);
    let missing = client.queue_consumer("nobody", QueueConsumerConfig::default());
    assert!(matches!(missing, Err(QueueError::Call(CallError::UnknownQueue { .. }))));
}

#[test]
fn exclusive_queue_refuses_a_second_consumer() {
    let broker = Broker::start("queue-exclusive", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { exclusive: true, ..QueueConfig::default() });
    publish(&client, "q", [Outgoing::new(b"m")]);
    let mut first = consumer(&client, "q", 1);
    next(&mut first);
    let mut second = consumer(&client, "q", 1);
    match second.recv(PATIENCE) {
        Err(QueueError::Broker { error, .. }) => assert_eq!(error.code, ErrorCode::QueueInUse),
        other => panic!("{other:?}"),
    }
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while !matches!(second.recv(Duration::from_millis(200)), Ok(Some(_))) {
        assert!(Instant::now() < deadline, "the second takes over");
    }
}

#[test]
fn every_queue_over_a_topic_sees_all_of_it_and_the_topic_keeps_it() {
    let broker = Broker::start("queue-fan-out", Start::default());
    let client = broker.client();
    create(&client, "a", 2, QueueConfig::default());
    let over_a = |name: &str, from_beginning| CreateQueue {
        name: name.into(),
        topic: "a".into(),
        partition_count: 1,
        durability: Durability::Durable,
        config: QueueConfig { from_beginning, ..QueueConfig::default() },
    };
    publish(&client, "a", (0..100).map(|i| Outgoing::new(b"m").partition(i % 2)));
    client.create_queue(&over_a("b", true)).unwrap();
    client.create_queue(&over_a("late", false)).unwrap();
    for queue in ["a", "b"] {
        let mut reader = consumer(&client, queue, 10);
        for _ in 0..100 {
            let message = next(&mut reader);
            reader.ack(&message);
        }
        assert_eq!(reader.close().unwrap().settled, 100);
    }
    assert_eq!((state(&client, "a").acked, state(&client, "b").acked, state(&client, "late").ready), (100, 100, 0));
    assert_eq!(text(broker.run(&["consume", "a", "--exit-at-end"])).lines().count(), 100);
}

#[test]
fn messages_of_one_key_are_at_one_consumer_at_a_time_and_in_order() {
    const KEYS: u32 = 7;
    const EACH: u32 = 40;
    let broker = Broker::start("queue-keys", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { key_ordered: true, ..QueueConfig::default() });
    let messages: Vec<(String, String)> = (0..KEYS * EACH).map(|i| (format!("k{}", i % KEYS), (i / KEYS).to_string())).collect();
    publish(&client, "q", messages.iter().map(|(key, value)| Outgoing::new(value.as_bytes()).key(key.as_bytes())));
    // By key: the next message, and whether one is being worked on.
    let keys = std::sync::Mutex::new(BTreeMap::<Vec<u8>, (u32, bool)>::new());
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let (keys, client) = (&keys, &client);
            scope.spawn(move || {
                let mut consumer = consumer(client, "q", 5);
                while let Some(message) = consumer.recv(Duration::from_millis(500)).unwrap() {
                    let key = message.key().unwrap().to_vec();
                    {
                        let mut keys = keys.lock().unwrap();
                        let (next, is_busy) = keys.entry(key.clone()).or_default();
                        // Its others wait here too, handed out in order.
                        assert_eq!(value(&message), next.to_string(), "{key:?}");
                        assert!(!std::mem::replace(is_busy, true), "{key:?} is at two consumers");
                    }
                    std::thread::sleep(Duration::from_micros(200 * (worker + 1)));
                    let mut keys = keys.lock().unwrap();
                    let (next, is_busy) = keys.get_mut(&key).unwrap();
                    (*next, *is_busy) = (*next + 1, false);
                    drop(keys);
                    consumer.ack(&message);
                }
                consumer.close().unwrap();
            });
        }
    });
    assert!(keys.into_inner().unwrap().values().all(|(next, _)| *next == EACH));
    assert_eq!(state(&client, "q").acked, u64::from(KEYS * EACH));
}

#[test]
fn next_consumer_takes_over_where_one_is_active() {
    let broker = Broker::start("queue-single", Start::default());
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { single_active: true, ..QueueConfig::default() });
    let values: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    publish(&client, "q", values.iter().map(|value| Outgoing::new(value.as_bytes())));
    let mut first = consumer(&client, "q", 1);
    for expected in &values[..5] {
        let message = next(&mut first);
        assert_eq!(value(&message), *expected);
        first.ack(&message);
    }
    first.flush().unwrap();
    let mut second = consumer(&client, "q", 1);
    assert!(second.recv(Duration::from_millis(300)).unwrap().is_none(), "it isn't its turn");
    drop(first);
    for expected in &values[5..] {
        let message = next(&mut second);
        assert_eq!(value(&message), *expected);
        second.ack(&message);
    }
}

#[test]
fn expired_and_pushed_out_messages_go_to_the_dead_letters() {
    let broker = Broker::start("queue-dead", Start::default());
    let client = broker.client();
    create(&client, "dead", 1, QueueConfig::default());
    let dead_letter = Some("dead".to_string());
    create(&client, "short-lived", 1, QueueConfig { dead_letter: dead_letter.clone(), ..QueueConfig::default() });
    create(&client, "short", 1, QueueConfig { dead_letter, max_length: Some(2), overflow: Overflow::DropHead, ..QueueConfig::default() });
    publish(&client, "short-lived", [Outgoing::new(b"late").ttl(Duration::from_millis(50)), Outgoing::new(b"in time")]);
    // Seen when its turn comes.
    std::thread::sleep(Duration::from_millis(60));
    let mut reader = consumer(&client, "short-lived", 10);
    assert_eq!(value(&next(&mut reader)), "in time");
    until(&client, "short-lived", |state| state.dead_lettered == 1);
    let values: Vec<String> = (0..5).map(|i| i.to_string()).collect();
    publish(&client, "short", values.iter().map(|value| Outgoing::new(value.as_bytes())));
    until(&client, "short", |state| state.dead_lettered == 3);
    let mut dead = consumer(&client, "dead", 10);
    let reasons: Vec<(String, String)> = (0..4)
        .map(|_| {
            let message = next(&mut dead);
            (value(&message), message.dead_letter().unwrap().reason)
        })
        .collect();
    let expected = [("late", "expired"), ("0", "queue-full"), ("1", "queue-full"), ("2", "queue-full")];
    assert_eq!(reasons, expected.map(|(value, reason)| (value.to_string(), reason.to_string())));
    let mut left = consumer(&client, "short", 10);
    assert_eq!([value(&next(&mut left)), value(&next(&mut left))], ["3", "4"]);
}

#[test]
fn what_is_too_much_is_redirected_and_nothing_is_lost() {
    let broker = Broker::start("queue-redirect", Start::default());
    let client = broker.client();
    create(&client, "rest", 1, QueueConfig::default());
    let config = QueueConfig { max_length: Some(5), overflow: Overflow::Redirect, redirect: Some("rest".into()), ..QueueConfig::default() };
    create(&client, "q", 1, config);
    let mut producer = client.queue_producer("q", ProducerConfig { batch_bytes: 1, ..ProducerConfig::default() }).unwrap();
    for i in 0..12 {
        producer.send(Outgoing::new(i.to_string().as_bytes()).record()).unwrap();
    }
    producer.flush().unwrap();
    assert_eq!(producer.acknowledged(), 12, "safe, here or there");
    assert_eq!((state(&client, "q").ready, until(&client, "rest", |state| state.ready == 7).ready), (5, 7));
    let mut all = BTreeSet::new();
    for (queue, count) in [("q", 5), ("rest", 7)] {
        let mut reader = consumer(&client, queue, 20);
        all.extend((0..count).map(|_| value(&next(&mut reader))));
    }
    assert_eq!(all, (0..12).map(|i| i.to_string()).collect());
}

/// The harness at its smallest.
#[test]
fn queue_bench_prints_the_promised_json_and_verifies() {
    let broker = Broker::start("queue-bench", Start::default());
    for more in [
        &["--consumers", "1"][..],
        &["--consumers", "3", "--producers", "2", "--ack-batch", "1", "--prefetch", "10"],
        &["--priorities", "10"],
        &["--delay-ms", "5..60"],
        &["--rate", "5000", "--partitions", "2"],
    ] {
        let arguments =
            [&["bench", "queue", "--size", "100", "--publish-batch", "10", "--count", "2000", "--format", "json"], more].concat();
        let report = json(&broker.run(&arguments));
        assert_eq!((&report["mode"], &report["verified"]), (&Value::from("queue"), &Value::Bool(true)), "{more:?}: {report}");
        assert!(report["messages"].as_u64().unwrap() >= 2_000 && report["latency_us"]["p99"].as_f64().is_some(), "{report}");
    }
}

#[test]
fn publishers_are_told_what_was_redirected_and_messages_are_recognised() {
    let mut broker = start("told");
    let client = broker.client();
    create(&client, "over", 1, QueueConfig::default());
    broker.run(&["queue", "create", "line", "--max-length", "3", "--overflow", "redirect:over"]);
    assert_eq!(text(broker.run_with_input(&["produce", "line"], b"a\nb\nc\nd\ne\n")), "acknowledged=5 redirected=2\n");
    let told = json(&broker.run_with_input(&["produce", "line", "--format", "json"], b"f\n"));
    assert_eq!((&told["acknowledged"], &told["redirected"]), (&1.into(), &1.into()));
    let mut consumer = consumer(&client, "over", 10);
    assert_eq!([0; 3].map(|_| value(&next(&mut consumer))), ["d", "e", "f"]);

    broker.run(&["queue", "create", "once", "--dedup-window-ms", "600000"]);
    let publish = |broker: &Broker, lines: &[u8]| broker.run_with_input(&["produce", "once", "--message-id", "line"], lines);
    publish(&broker, b"a\nb\nc\n");
    assert_eq!(text(publish(&broker, b"b\nc\nd\n")), "acknowledged=3\n");
    broker.kill();
    broker.restart();
    publish(&broker, b"a\nd\n");
    assert_eq!(state(&broker.client(), "once").enqueued, 4);
    broker.run(&["queue", "create", "last", "--topic", "once", "--from-last", "1"]);
    assert_eq!(text(broker.run(&["consume", "--queue", "last", "--ack", "--exit-at-end", "--print", "%v\\n"])), "d\n");
}

#[test]
fn a_queue_that_nobody_uses_is_gone_on_every_shard() {
    let broker = start("unused");
    let client = broker.client();
    create(&client, "mine", 4, QueueConfig { expires_ms: Some(1_000), exclusive: true, ..QueueConfig::default() });
    let mut consumer = consumer(&client, "mine", 10);
    let is_there = || !client.queues(Some(&["mine"])).unwrap().queues.is_empty();
    publish(&client, "mine", [Outgoing::new(b"a")]);
    next(&mut consumer);
    // As long as it has a consumer it stays, however quiet that is.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1_500) {
        assert!(consumer.recv(Duration::from_millis(100)).unwrap().is_none() && is_there());
    }
    drop(consumer);
    let deadline = Instant::now() + PATIENCE;
    while is_there() {
        assert!(Instant::now() < deadline, "still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(client.topic_map("mine").is_ok(), "its topic stays");
}
