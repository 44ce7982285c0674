//! Disk is freed as messages are acknowledged, also behind some that nobody acknowledges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmain_client::Outgoing;
use ringmain_client::wire::queue::QueueConfig;

use crate::harness::{Broker, Start, free_ports, ringmain};
use crate::queue::{consumer, create, json, next, publish, state, text};

const MESSAGES: u64 = 150_000;
/// Never acknowledged before the kill.
const STAY: [u64; 5] = [0, 7, 40_000, 77_777, 123_456];
/// Rounds of retention are 5 s apart, and the cleaner waits for a checkpoint.
const PATIENCE: Duration = Duration::from_secs(90);

/// Segments in use, and bytes of all files in the directory.
fn used(broker: &Broker) -> (u64, u64) {
    let status = json(&broker.run(&["status", "--format", "json"]));
    let segments = status["shards"].as_array().unwrap().iter().map(|shard| shard["segments"].as_u64().unwrap()).sum();
    let files = std::fs::read_dir(broker.data().join("segments")).unwrap();
    (segments, files.map(|file| file.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum())
}

#[test]
fn disk_is_freed_behind_messages_that_nobody_acknowledges_and_they_outlive_a_kill() {
    let native = Some(SocketAddr::from(([127, 0, 0, 1], free_ports(2))));
    let mut broker = Broker::start("stragglers", Start { native, ..Start::with(&["--shards", "1"]) });
    let client = broker.client();
    create(&client, "q", 1, QueueConfig { drop_acked: true, ack_timeout_ms: 3_600_000, ..QueueConfig::default() });
    let values: Vec<String> = (0..MESSAGES).map(|number| format!("{number} {}", "x".repeat(1_000))).collect();
    publish(&client, "q", values.iter().map(|value| Outgoing::new(value.as_bytes())));
    let (segments_full, bytes_full) = used(&broker);
    assert!(segments_full > 35 && bytes_full > 150_000_000, "{segments_full} segments, {bytes_full} bytes");

    let mut worker = consumer(&client, "q", 2_000);
    let mut acked = 0;
    for number in 0..MESSAGES {
        let message = next(&mut worker);
        assert_eq!(message.offset(), number);
        if !STAY.contains(&number) {
            worker.ack(&message);
        }
        if number % 1_000 == 999 {
            acked += worker.flush().unwrap().settled;
        }
    }
    assert_eq!(acked, MESSAGES - STAY.len() as u64);
    let deadline = Instant::now() + PATIENCE;
    let (segments, bytes) = loop {
        let (segments, bytes) = used(&broker);
        if segments <= 6 && bytes < bytes_full / 3 * 2 {
            break (segments, bytes);
        }
        assert!(
            Instant::now() < deadline,
            "{segments} segments of {segments_full}, {bytes} bytes of {bytes_full}: {:?}",
            state(&client, "q")
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    println!("{segments} segments of {segments_full}, {bytes} bytes of {bytes_full}");
    let before = state(&client, "q");
    assert_eq!((before.floor, before.acked, before.in_flight, before.enqueued), (0, acked, 5, MESSAGES));

    // Whoever reads the topic gets what there is, and comes to its end.
    let listed = text(broker.run(&["consume", "q", "--from", "beginning", "--exit-at-end", "--print", "%o %v\\n"]));
    let read: BTreeMap<u64, &str> =
        listed.lines().filter_map(|line| line.split_once(' ')).map(|(offset, value)| (offset.parse().unwrap(), value)).collect();
    assert!(read.len() < MESSAGES as usize / 5, "{} records are left", read.len());
    assert!(STAY.iter().chain([&(MESSAGES - 1)]).all(|offset| read.contains_key(offset)), "{:?}", read.keys());
    assert!(read.iter().all(|(offset, value)| *value == values[*offset as usize]));

    broker.kill();
    broker.restart();
    let mut again = consumer(&client, "q", 2_000);
    for number in STAY {
        let message = next(&mut again);
        assert_eq!((message.offset(), message.value()), (number, Some(values[number as usize].as_bytes())));
        assert!(message.deliveries() > 1);
        again.ack(&message);
    }
    assert!(again.recv(Duration::from_secs(2)).unwrap().is_none(), "nothing else comes");
    assert_eq!(again.flush().unwrap().settled, 5);
    let after = state(&client, "q");
    assert_eq!((after.acked, after.dropped, after.enqueued), (MESSAGES, 0, MESSAGES));
    assert_eq!(after.floor, MESSAGES);
    again.close().unwrap();
    broker.stop();
    let data = broker.data();
    let verified = ringmain(&["log", "verify", data.to_str().unwrap()], b"");
    assert!(verified.status.success(), "{verified:?}");
}
