//! Transactions of native clients end to end, with the broker killed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringmain_client::wire::ErrorCode;
use ringmain_client::wire::queue::QueueConfig;
use ringmain_client::wire::transaction::CheckBack;
use ringmain_client::{
    CallError, Client, ConsumerConfig, Message, OutOfRange, Outgoing, QueueConsumer, QueueConsumerConfig, StartFrom, TransactionConfig,
    TransactionError,
};
use serde_json::Value;

use crate::harness::{Random, ringmain};
use crate::queue::{PATIENCE, consumer, create, json, next, publish, start, state, text, until, value};

fn config() -> TransactionConfig {
    TransactionConfig { timeout: Duration::from_secs(10), ..TransactionConfig::default() }
}

/// Two queues, of which each shard has a part.
fn two_queues(client: &Client) {
    for queue in ["a", "b"] {
        create(client, queue, 4, QueueConfig { delivery_limit: None, ..QueueConfig::default() });
        let map = client.queue_map(queue).unwrap();
        let ports: BTreeSet<u16> = map.partitions.iter().map(|place| place.port).collect();
        assert_eq!(ports.len(), 2, "one port per shard: {map:?}");
    }
}

/// Every value of a topic, as native readers get it.
fn committed(client: &Client, topic: &str) -> Vec<String> {
    let config = ConsumerConfig { from: StartFrom::Beginning, out_of_range: OutOfRange::Beginning, ..ConsumerConfig::default() };
    let mut reader = client.consumer(topic, config).unwrap();
    let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while !reader.at_end() {
        assert!(Instant::now() < deadline, "{topic} has no end");
        if let Some(batch) = reader.poll(Duration::from_millis(200)).unwrap() {
            all.extend(batch.records().map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
        }
    }
    all
}

#[test]
fn commit_takes_effect_everywhere_and_abort_nowhere() {
    let broker = start("transaction");
    let client = broker.client();
    two_queues(&client);
    publish(&client, "a", (0..4).map(|partition| Outgoing::new(b"from a").partition(partition)));
    let mut worker = consumer(&client, "a", 10);
    let mut reader = consumer(&client, "b", 10);
    let held: Vec<Message> = (0..4).map(|_| next(&mut worker)).collect();
    let mut transactor = client.transactor("worker", config()).unwrap();

    let mut transaction = transactor.begin().unwrap();
    for (message, index) in held.iter().zip(0..) {
        transaction.publish("b", Outgoing::new(b"never").partition(index).record()).unwrap();
        transaction.ack(&mut worker, std::slice::from_ref(message)).unwrap();
    }
    transaction.prepare().unwrap();
    assert_eq!(state(&client, "a").in_flight, 4);
    assert!(committed(&client, "b").is_empty());
    transaction.abort().unwrap();
    assert_eq!((state(&client, "a").acked, state(&client, "a").in_flight), (0, 4));

    // Held as before: two are given back, the others go into the next transaction.
    worker.nack(&held[0], Duration::ZERO);
    worker.nack(&held[1], Duration::ZERO);
    assert_eq!(worker.flush().unwrap().settled, 2);
    let again: Vec<Message> = (0..2).map(|_| next(&mut worker)).collect();
    assert!(again.iter().all(|message| message.deliveries() == 2), "{again:?}");
    let mut transaction = transactor.begin().unwrap();
    let large = vec![b'x'; 100 << 10];
    transaction.publish("b", Outgoing::new(&large).partition(0).record()).unwrap();
    transaction.publish("b", Outgoing::new(b"small").partition(0).record()).unwrap();
    transaction.publish("b", Outgoing::new(b"other").partition(3).priority(3).record()).unwrap();
    transaction.ack(&mut worker, &[held[2].clone(), held[3].clone(), again[0].clone(), again[1].clone()]).unwrap();
    transaction.commit().unwrap();
    assert_eq!((state(&client, "a").acked, state(&client, "a").in_flight), (4, 0));
    let mut seen: Vec<usize> = committed(&client, "b").iter().map(String::len).collect();
    seen.sort_unstable();
    assert_eq!(seen, [5, 5, 100 << 10]);
    let delivered: BTreeSet<usize> = (0..3).map(|_| next(&mut reader).value().unwrap().len()).collect();
    assert_eq!(delivered, BTreeSet::from([5, 100 << 10]));

    // Not this consumer's any more, and nothing at all.
    let mut transaction = transactor.begin().unwrap();
    let refused = transaction.ack(&mut worker, &held[..1]).unwrap_err();
    assert!(matches!(refused, TransactionError::NotHeld { asked: 1, taken: 0, .. }), "{refused}");
    let refused = transaction.publish("missing", Outgoing::new(b"x").record()).unwrap_err();
    assert!(matches!(refused, TransactionError::Call(CallError::UnknownTopic { .. })), "{refused}");
    transaction.commit().unwrap();
}

#[test]
fn who_takes_the_name_over_fences_the_other_and_time_aborts() {
    let broker = start("transaction-fence");
    let client = broker.client();
    two_queues(&client);
    publish(&client, "a", [Outgoing::new(b"m").partition(0)]);
    let mut worker = consumer(&client, "a", 10);
    let message = next(&mut worker);
    let mut first = client.transactor("worker", config()).unwrap();
    let mut transaction = first.begin().unwrap();
    transaction.publish("b", Outgoing::new(b"first").record()).unwrap();
    transaction.ack(&mut worker, std::slice::from_ref(&message)).unwrap();
    let listed = json(&broker.run(&["transaction", "list", "--format", "json"]));
    assert_eq!((&listed[0]["transactional_id"], &listed[0]["state"]), (&Value::from("worker"), &Value::from("Ongoing")), "{listed}");

    let mut second = client.transactor("worker", config()).unwrap();
    let fenced = transaction.commit().unwrap_err();
    assert!(matches!(&fenced, TransactionError::Fenced { transactional_id } if transactional_id == "worker"), "{fenced}");
    assert!(matches!(first.begin().unwrap_err(), TransactionError::Fenced { .. }));
    assert_eq!(state(&client, "a").in_flight, 1, "it is as it was");
    let mut transaction = second.begin().unwrap();
    transaction.publish("b", Outgoing::new(b"second").record()).unwrap();
    transaction.commit().unwrap();

    // Aborted from outside, and by time.
    let mut transaction = second.begin().unwrap();
    transaction.publish("b", Outgoing::new(b"by hand").record()).unwrap();
    transaction.prepare().unwrap();
    assert_eq!(text(broker.run(&["transaction", "abort", "worker"])), "aborted worker\n");
    assert!(matches!(transaction.commit().unwrap_err(), TransactionError::Fenced { .. }));
    let missing = ringmain(&["transaction", "abort", "nobody", "--connect", &broker.address()], b"");
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let short = TransactionConfig { timeout: Duration::from_millis(100), ..config() };
    let mut late = client.transactor("late", short).unwrap();
    let mut transaction = late.begin().unwrap();
    transaction.publish("b", Outgoing::new(b"late").record()).unwrap();
    transaction.prepare().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while client.transactions().unwrap().transactions.iter().any(|listed| listed.phase == "Ongoing") {
        assert!(Instant::now() < deadline, "the timeout aborts it");
    }
    let aborted = transaction.commit().unwrap_err();
    assert!(matches!(aborted, TransactionError::Aborted { .. }), "{aborted}");
    let mut transaction = late.begin().unwrap();
    transaction.publish("b", Outgoing::new(b"in time").record()).unwrap();
    transaction.commit().unwrap();
    let seen: BTreeSet<String> = committed(&client, "b").into_iter().collect();
    assert_eq!(seen, BTreeSet::from(["second".to_string(), "in time".to_string()]));
}

/// A producer that dies in between: another of its group says what becomes of its messages.
#[test]
fn transactions_left_open_are_decided_by_whoever_checks_also_after_a_kill() {
    let mut broker = start("transaction-check");
    let client = broker.client();
    two_queues(&client);
    let check = CheckBack { group: "payments".into(), after_ms: 100 };
    let config = TransactionConfig { check: Some(check), ..config() };
    let mut transactor = client.transactor("order 0", config).unwrap();
    for order in 0..6 {
        let name = format!("order {order}");
        transactor.rename(&name).unwrap();
        let mut transaction = transactor.begin().unwrap();
        transaction.publish("b", Outgoing::new(name.as_bytes()).key(name.as_bytes()).record()).unwrap();
        transaction.leave().unwrap();
    }
    drop(transactor);
    assert!(client.transactions_to_check("others", 10, Duration::ZERO).unwrap().is_empty());
    broker.kill();
    broker.restart();
    let client = broker.client();
    let (mut decided, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
    while decided.len() < 6 {
        assert!(Instant::now() < deadline, "only {decided:?} were offered");
        for open in client.transactions_to_check("payments", 2, Duration::from_millis(500)).unwrap() {
            let order: u32 = open.transactional_id.rsplit(' ').next().unwrap().parse().unwrap();
            // Not known at the first time.
            if order == 5 && decided.len() < 5 {
                continue;
            }
            client.decide_transaction(&open, order.is_multiple_of(2)).unwrap();
            assert!(decided.insert(order), "{order} was decided before");
        }
    }
    let paid: BTreeSet<String> = committed(&client, "b").into_iter().collect();
    assert_eq!(paid, [0, 2, 4].map(|order| format!("order {order}")).into());
    assert!(client.transactions_to_check("payments", 10, Duration::from_millis(300)).unwrap().is_empty());
}

/// What a worker does: some messages from one queue to the other, all in one transaction. How many have moved for certain.
fn move_some(worker: &mut QueueConsumer, transactor: &mut ringmain_client::Transactor, most: usize) -> usize {
    let mut messages = Vec::new();
    while messages.len() < most {
        match worker.recv(Duration::from_millis(100)) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => break,
            Err(error) => {
                eprintln!("receiving: {error}");
                break;
            }
        }
    }
    if messages.is_empty() {
        return 0;
    }
    let result = transactor.begin().and_then(|mut transaction| {
        for message in &messages {
            transaction.publish("b", message.again().partition(message.offset() as u32 % 4).record())?;
        }
        transaction.ack(worker, &messages)?;
        transaction.commit()
    });
    match result {
        Ok(()) => messages.len(),
        Err(error @ TransactionError::Fenced { .. }) => panic!("{error}"),
        Err(error) => {
            eprintln!("moving {}: {error}", messages.len());
            // What is still held, if anything, comes again.
            for message in &messages {
                worker.nack(message, Duration::ZERO);
            }
            0
        }
    }
}

/// Moved in transactions with the broker killed again and again, until most have moved: each is in exactly one of the queues.
#[test]
fn moved_messages_are_in_one_queue_whenever_the_broker_is_killed() {
    const MESSAGES: usize = 4_000;
    let mut broker = start("transaction-kill");
    let client = broker.client();
    two_queues(&client);
    let values: Vec<String> = (0..MESSAGES).map(|i| i.to_string()).collect();
    publish(&client, "a", values.iter().zip(0..).map(|(value, i)| Outgoing::new(value.as_bytes()).partition(i % 4)));
    let mut random = Random::seeded();
    let seed = random.number();
    let (moved, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let kills = std::thread::scope(|scope| {
        let movers: Vec<_> = (0..2u64)
            .map(|mover| {
                let (client, moved, is_over) = (client.clone(), &moved, &is_over);
                scope.spawn(move || {
                    let mut random = Random(seed + mover);
                    let config = QueueConsumerConfig { prefetch: 40, ..QueueConsumerConfig::default() };
                    let mut worker = client.queue_consumer("a", config).unwrap();
                    let mut transactor = client.transactor(&format!("mover {mover}"), self::config()).unwrap();
                    let began = Instant::now();
                    while moved.load(Ordering::Relaxed) < MESSAGES * 9 / 10 {
                        assert!(began.elapsed() < 6 * PATIENCE, "{} have moved", moved.load(Ordering::Relaxed));
                        let most = 1 + random.below(20) as usize;
                        moved.fetch_add(move_some(&mut worker, &mut transactor, most), Ordering::Relaxed);
                    }
                    // One more, left open.
                    if let Ok(Some(message)) = worker.recv(Duration::from_millis(500)) {
                        let mut transaction = transactor.begin().unwrap();
                        transaction.publish("b", message.again().record()).unwrap();
                        transaction.ack(&mut worker, &[message]).unwrap();
                        transaction.prepare().unwrap();
                    }
                    is_over.store(true, Ordering::Relaxed);
                })
            })
            .collect();
        let mut kills = 0;
        while !movers.iter().all(|mover| mover.is_finished()) {
            std::thread::sleep(Duration::from_millis(random.below(150)));
            if !is_over.load(Ordering::Relaxed) {
                broker.kill();
                broker.restart();
                kills += 1;
            }
        }
        kills
    });
    assert!(kills >= 5, "{kills} kills");
    // Whoever takes the names over aborts what was left open.
    for mover in 0..2 {
        client.transactor(&format!("mover {mover}"), config()).unwrap();
    }
    let moved: Vec<String> = committed(&client, "b");
    let mut places: BTreeMap<String, Vec<&str>> = values.iter().map(|value| (value.clone(), Vec::new())).collect();
    moved.into_iter().for_each(|value| places.get_mut(&value).expect("nobody else publishes").push("b"));
    until(&client, "a", |state| state.in_flight == 0);
    let left = state(&client, "a").ready + state(&client, "a").delayed;
    let mut rest = consumer(&client, "a", 100);
    for _ in 0..left {
        let message = next(&mut rest);
        places.get_mut(&value(&message)).expect("nobody else publishes").push("a");
        assert!(rest.ack(&message));
    }
    rest.close().unwrap();
    let wrong: BTreeMap<_, _> = places.iter().filter(|(_, places)| places.len() != 1).collect();
    assert!(wrong.is_empty(), "in none or in two after {kills} kills: {wrong:?}");
    assert_eq!(state(&client, "a").acked, MESSAGES as u64);
    // The queue over what has moved has each of them once, too.
    let arrived = MESSAGES as u64 - left;
    let mut all = consumer(&client, "b", 1_000);
    let mut once = BTreeSet::new();
    for _ in 0..arrived {
        let message = next(&mut all);
        assert!(once.insert(value(&message)), "{} twice", value(&message));
        all.ack(&message);
    }
    all.close().unwrap();
    // Markers and what was aborted have been passed over.
    let of_b = until(&client, "b", |state| state.ready == 0);
    assert_eq!((of_b.enqueued, of_b.acked, of_b.dropped), (arrived, arrived, 0), "{of_b:?}");
    println!("{arrived} of {MESSAGES} moved through {kills} kills");
}

#[test]
fn names_and_timeouts_out_of_bounds_are_refused() {
    let broker = start("transaction-refused");
    let client = broker.client();
    let ask = ringmain_client::wire::transaction::TransactionRequest {
        transactional_id: String::new(),
        call: ringmain_client::wire::transaction::TransactionCall::Init { timeout_ms: 1, check: None, current: None },
    };
    match client.call(&ask).unwrap_err() {
        CallError::Broker(error) => assert_eq!(error.code, ErrorCode::InvalidTransactionalId),
        other => panic!("{other}"),
    }
    let too_long = ringmain_client::wire::transaction::TransactionRequest {
        transactional_id: "x".into(),
        call: ringmain_client::wire::transaction::TransactionCall::Init { timeout_ms: 900_001, check: None, current: None },
    };
    match client.call(&too_long).unwrap_err() {
        CallError::Broker(error) => assert_eq!(error.code, ErrorCode::InvalidTransactionTimeout),
        other => panic!("{other}"),
    }
}
