//! Queues of whole shards on the simulated disk, and a naive model that they must agree with, through crashes.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_wire::control::{Durability, TopicConfig};
use ringmain_wire::frame::{Identity, flags, frames};
use ringmain_wire::queue::{
    AlterQueue, Backoff, CreateQueue, Deliveries, Overflow, QueueAnswer, QueueCall, QueueConfig, QueueState, Settlement, Verb, name,
};
use ringmain_wire::record::{HeadersBuilder, headers};
use ringmain_wire::{ErrorCode, PartitionId, ProducerId, RecordBatchBuilder, Records};

use crate::device::sim::{SimDisk, SimOptions};
use crate::log::LogConfig;
use crate::request::queue::{QueueId, QueueReply, QueueRequest, Receive, Settle};
use crate::request::transaction::{ProducerKey, TransactionAction, TransactionPhase, TransactionReply, TransactionRequest};
use crate::request::{FetchData, Reply, Request};
use crate::shard::ShardConfig;
use crate::shard::queue::persist::SavedCursors;
use crate::shard::state_record::{QueueHeadPiece, QueuePartsPiece, QueueSettledPiece, QueueStagedPiece, ReturnedPiece, StateRecord};
use crate::shard::tests::{Rig, shard_config, start};

/// What is published.
#[derive(Clone, Debug, Default)]
struct Message {
    value: String,
    key: Option<String>,
    priority: u8,
    due_ms: Option<i64>,
    ttl_ms: Option<u64>,
    id: Option<String>,
}

fn message(value: &str) -> Message {
    Message { value: value.into(), ..Message::default() }
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    offset: u64,
    deliveries: u16,
    value: String,
}

const QUEUE: QueueId = QueueId(1);

fn frame_of(partition: u32, messages: &[Message]) -> Vec<u8> {
    frame_as(Identity { flags: flags::QUEUE_HEADERS, ..Identity::plain(PartitionId(partition)) }, messages)
}

fn frame_as(identity: Identity, messages: &[Message]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for message in messages {
        let mut headers = HeadersBuilder::default();
        if message.priority > 0 {
            headers.push(name::PRIORITY, Some(&[message.priority]));
        }
        if let Some(due_ms) = message.due_ms {
            headers.push(name::DUE_MS, Some(&due_ms.to_le_bytes()));
        }
        if let Some(ttl_ms) = message.ttl_ms {
            headers.push(name::TTL_MS, Some(&ttl_ms.to_le_bytes()));
        }
        if let Some(id) = &message.id {
            headers.push(name::MESSAGE_ID, Some(id.as_bytes()));
        }
        builder.push(0, message.key.as_deref().map(str::as_bytes), Some(message.value.as_bytes()), headers.as_bytes());
    }
    builder.finish(identity).to_vec()
}

impl Rig {
    fn create_queue(&mut self, config: QueueConfig) -> Reply {
        let create = CreateQueue { name: "work".into(), topic: String::new(), partition_count: 1, durability: Durability::Durable, config };
        self.ask(&Request::CreateQueue(create.into()))
    }

    fn publish(&mut self, messages: &[Message]) -> Reply {
        let bytes = frame_of(self.queue_partition(), messages);
        self.produce(&bytes)
    }

    fn queue_partition(&self) -> u32 {
        self.shard.catalog().topic("work").expect("the queue's topic").partitions[0].partition
    }

    fn send_receive(&mut self, connection: u32, consumer: u32, max_messages: u32, max_wait_ms: u32) -> u64 {
        let partition = PartitionId(self.queue_partition());
        let receive = Receive { queue: QUEUE, partition, consumer, priority: 0, max_messages, max_bytes: 1 << 20, max_wait_ms };
        self.send_from(connection, &Request::Receive(receive))
    }

    fn receive(&mut self, connection: u32, consumer: u32, max_messages: u32) -> Vec<Got> {
        let sent = self.send_receive(connection, consumer, max_messages, 0);
        let reply = self.answer(sent);
        received(&reply)
    }

    fn send_settle(&mut self, connection: u32, consumer: u32, settlements: Vec<Settlement>) -> u64 {
        let partition = PartitionId(self.queue_partition());
        self.send_from(connection, &Request::Settle(Settle { queue: QUEUE, partition, consumer, transaction: None, settlements }.into()))
    }

    fn settle_one(&mut self, connection: u32, consumer: u32, offset: u64, verb: Verb) -> (u32, u32) {
        let sent = self.send_settle(connection, consumer, vec![Settlement { first: offset, count: 1, verb, delay_ms: 0 }]);
        settled(&self.answer(sent))
    }

    fn call(&mut self, call: QueueCall) -> QueueAnswer {
        let partition = PartitionId(self.queue_partition());
        match self.ask(&Request::Queue(QueueRequest { queue: QUEUE, partition, call }.into())) {
            Reply::Queue(reply) => match *reply {
                QueueReply::Answer(answer) => answer,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn queue_state(&mut self) -> QueueState {
        match self.call(QueueCall::Describe) {
            QueueAnswer::State(state) => {
                let sum = state.ready + state.delayed + state.in_flight + state.acked + state.dead_lettered + state.dropped;
                assert_eq!(sum, state.enqueued, "{state:?}");
                state
            }
            other => panic!("{other:?}"),
        }
    }

    /// Values and headers of everything in a topic.
    fn topic_records(&mut self, topic: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let partition = self.shard.catalog().topic(topic).expect("the topic").partitions[0].partition;
        let (mut from, mut all) = (0, Vec::new());
        loop {
            let fetch = crate::request::Fetch {
                partition: PartitionId(partition),
                from: ringmain_wire::Offset(from),
                min_bytes: 0,
                max_bytes: 1 << 20,
                max_wait_ms: 0,
                committed_only: true,
            };
            let Reply::Fetched { head, data } = self.ask(&Request::Fetch(fetch)) else { panic!("no fetch") };
            let bytes: Vec<u8> = match &data {
                FetchData::Extents(extents) => {
                    let bytes = extents.iter().flat_map(|extent| self.shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
                    self.shard.release_extents(extents);
                    bytes
                }
                FetchData::Blocks { blocks, .. } => blocks.iter().flat_map(|block| block.to_vec()).collect(),
                FetchData::Owned(bytes) => bytes.clone(),
            };
            for frame in frames(&bytes).map(|frame| frame.expect("a frame")) {
                let records = Records::new(frame.body(), frame.header.producer.record_count).expect("records");
                for (record, offset) in records.zip(frame.base_offset().0..) {
                    let record = record.expect("a record");
                    if offset >= from {
                        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                        let of = headers(record.headers).map_while(|it| it).map(|(name, value)| (text(name), text(value.unwrap_or(b""))));
                        all.push((text(record.value.unwrap_or(b"")), of.collect()));
                    }
                }
            }
            if head.next_offset.0 == from {
                return all;
            }
            from = head.next_offset.0;
        }
    }
}

fn received(reply: &Reply) -> Vec<Got> {
    let Reply::Queue(reply) = reply else { panic!("{reply:?}") };
    let QueueReply::Received { count, bytes, .. } = &**reply else { panic!("{reply:?}") };
    let got: Vec<Got> = Deliveries::new(bytes, *count)
        .map(|view| view.expect("whole"))
        .map(|view| Got {
            offset: view.offset,
            deliveries: view.deliveries,
            value: String::from_utf8_lossy(view.value.expect("a value")).into(),
        })
        .collect();
    assert_eq!(got.len(), *count as usize);
    got
}

fn settled(reply: &Reply) -> (u32, u32) {
    let Reply::Queue(reply) = reply else { panic!("{reply:?}") };
    let QueueReply::Settled { settled, refused } = **reply else { panic!("{reply:?}") };
    (settled, refused)
}

fn failed(reply: &Reply) -> ErrorCode {
    match reply {
        Reply::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

/// Of a dead letter from queue `work`, whose topic has one partition: its offset there.
fn place_of(headers: &BTreeMap<String, String>) -> u64 {
    headers["dead-letter-place"].strip_prefix("work:0:").and_then(|at| at.parse().ok()).expect("topic, partition, offset")
}

fn rig(config: QueueConfig) -> Rig {
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), shard_config(), start());
    rig.create("dead", 1, TopicConfig::default());
    assert!(matches!(rig.create_queue(config), Reply::Queue(_)));
    rig
}

fn values(got: &[Got]) -> Vec<&str> {
    got.iter().map(|got| got.value.as_str()).collect()
}

#[test]
fn messages_are_delivered_in_order_once_and_settled_for_good() {
    let mut rig = rig(QueueConfig::default());
    rig.publish(&["a", "b", "c", "d"].map(message));
    let first = rig.receive(1, 1, 3);
    assert_eq!(values(&first), ["a", "b", "c"]);
    assert!(first.iter().all(|got| got.deliveries == 1));
    let second = rig.receive(2, 1, 9);
    assert_eq!(values(&second), ["d"]);
    assert_eq!(rig.settle_one(1, 1, 1, Verb::Ack), (1, 0));
    // Not its own, and settled already.
    assert_eq!(rig.settle_one(2, 1, 0, Verb::Ack), (0, 1));
    assert_eq!(rig.settle_one(1, 1, 1, Verb::Ack), (0, 1));
    let state = rig.queue_state();
    assert_eq!((state.in_flight, state.acked, state.ready, state.floor), (3, 1, 0, 0));
    let mut rig = rig.power_cut();
    let again = rig.receive(1, 1, 9);
    assert_eq!(values(&again), ["a", "c", "d"]);
    assert!(again.iter().all(|got| got.deliveries == 2), "{again:?}");
    rig.stop();
    let mut rig = rig.kill();
    let again = rig.receive(1, 1, 9);
    assert!(again.iter().all(|got| got.deliveries == 3), "a clean stop counts what was in flight: {again:?}");
    let sent = rig.send_settle(1, 1, vec![Settlement { first: 0, count: 100, verb: Verb::Ack, delay_ms: 0 }]);
    assert_eq!(settled(&rig.answer(sent)), (3, 0));
    assert_eq!(rig.queue_state().floor, 4);
}

#[test]
fn a_receive_waits_for_messages_and_for_its_time() {
    let mut rig = rig(QueueConfig::default());
    let waits = rig.send_receive(1, 1, 5, 50);
    rig.turns(10);
    assert!(!rig.is_answered(waits));
    rig.publish(&[message("a")]);
    assert_eq!(values(&received(&rig.answer(waits))), ["a"]);
    let waits = rig.send_receive(1, 1, 5, 20);
    assert_eq!(received(&rig.answer(waits)), []);
}

#[test]
fn what_comes_back_is_delivered_first_and_says_how_often() {
    let mut rig = rig(QueueConfig::default());
    rig.publish(&["a", "b", "c"].map(message));
    rig.receive(1, 1, 2);
    assert_eq!(rig.settle_one(1, 1, 0, Verb::Requeue), (1, 0));
    let got = rig.receive(1, 1, 9);
    assert_eq!(values(&got), ["a", "c"]);
    assert_eq!((got[0].deliveries, got[1].deliveries), (2, 1));
    // The connection goes: everything it has comes back.
    rig.shard.cancel(0, 1, 0, rig.now);
    let got = rig.receive(2, 1, 9);
    assert_eq!(values(&got), ["a", "b", "c"]);
    assert_eq!(got.iter().map(|got| got.deliveries).collect::<Vec<_>>(), [3, 2, 2]);
}

#[test]
fn a_message_nobody_settles_in_time_comes_back() {
    let mut rig = rig(QueueConfig { ack_timeout_ms: 100, ..QueueConfig::default() });
    rig.publish(&[message("a"), message("b")]);
    rig.receive(1, 1, 2);
    rig.pass(80_000);
    let sent = rig.send_settle(1, 1, vec![Settlement { first: 1, count: 1, verb: Verb::Extend, delay_ms: 1000 }]);
    assert_eq!(settled(&rig.answer(sent)), (1, 0));
    rig.pass(80_000);
    rig.turns(20);
    let got = rig.receive(2, 1, 2);
    assert_eq!((values(&got), got[0].deliveries), (vec!["a"], 2));
    assert_eq!(rig.settle_one(1, 1, 0, Verb::Ack), (0, 1), "it is another's now");
}

#[test]
fn poison_goes_to_the_dead_letter_topic_and_says_why() {
    let config = QueueConfig { delivery_limit: Some(2), dead_letter: Some("dead".into()), ..QueueConfig::default() };
    let mut rig = rig(config);
    rig.publish(&[message("poison"), message("bad"), message("good")]);
    for _ in 0..2 {
        let got = rig.receive(1, 1, 9);
        assert!(got.iter().any(|got| got.value == "poison"));
        for got in got {
            let verb = match got.value.as_str() {
                "poison" => Verb::Requeue,
                "bad" => Verb::Reject,
                _ => Verb::Ack,
            };
            assert_eq!(rig.settle_one(1, 1, got.offset, verb), (1, 0));
        }
    }
    rig.settle();
    assert_eq!(rig.receive(1, 1, 9), []);
    let mut dead = rig.topic_records("dead");
    dead.sort_by(|a, b| a.0.cmp(&b.0));
    let seen: Vec<(&str, &str, &str)> =
        dead.iter().map(|(value, headers)| (value.as_str(), &*headers["dead-letter-reason"], &*headers["dead-letter-count"])).collect();
    assert_eq!(seen, [("bad", "rejected", "1"), ("poison", "delivery-limit", "2")]);
    assert_eq!(dead[0].1["dead-letter-queue"], "work");
    assert_eq!((dead[0].1["dead-letter-place"].as_str(), dead[1].1["dead-letter-place"].as_str()), ("work:0:1", "work:0:0"));
    let state = rig.queue_state();
    assert_eq!((state.dead_lettered, state.acked, state.enqueued), (2, 1, 3));
    let mut rig = rig.power_cut();
    assert_eq!(rig.receive(1, 1, 9), []);
}

#[test]
fn a_message_without_a_place_to_go_stays() {
    let config = QueueConfig { dead_letter: Some("dead".into()), ..QueueConfig::default() };
    let mut rig = rig(config);
    rig.ask(&Request::DeleteTopic { name: "dead" });
    rig.publish(&[message("a")]);
    rig.receive(1, 1, 1);
    rig.settle_one(1, 1, 0, Verb::Reject);
    rig.settle();
    assert_eq!(rig.queue_state().delayed, 1);
    rig.create("dead", 1, TopicConfig::default());
    rig.pass(1_100_000);
    rig.turns(50);
    assert_eq!(rig.topic_records("dead").len(), 1);
    assert_eq!(rig.queue_state().dead_lettered, 1);
}

#[test]
fn higher_priorities_go_first_each_in_order() {
    let mut rig = rig(QueueConfig { priorities: 3, ..QueueConfig::default() });
    let of = |value: &str, priority| Message { priority, ..message(value) };
    rig.publish(&[of("a0", 0), of("a2", 2), of("b0", 0), of("b9", 9), of("c1", 1)]);
    let got = rig.receive(1, 1, 2);
    assert_eq!(values(&got), ["a2", "b9"]);
    rig.settle_one(1, 1, got[0].offset, Verb::Requeue);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a2", "c1", "a0", "b0"]);
    let mut rig = rig.power_cut();
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a2", "b9", "c1", "a0", "b0"]);
}

#[test]
fn delayed_messages_come_when_it_is_time() {
    let mut rig = rig(QueueConfig::default());
    let due = |value: &str, ms: i64| Message { due_ms: Some(start().wall_ms + ms), ..message(value) };
    rig.publish(&[due("late", 500), message("now"), due("soon", 300), due("never", 1_000_000)]);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["now"]);
    let QueueAnswer::Delayed(waits) = rig.call(QueueCall::ListDelayed { after: None, max: 9 }) else { panic!() };
    assert_eq!(waits.iter().map(|it| it.offset).collect::<Vec<_>>(), [2, 0, 3]);
    let waiting = rig.send_receive(1, 1, 9, 10_000);
    rig.pass(320_000);
    assert_eq!(values(&received(&rig.answer(waiting))), ["soon"]);
    assert_eq!(rig.call(QueueCall::DeliverNow { offset: 0 }), QueueAnswer::Count(1));
    assert_eq!(values(&rig.receive(1, 1, 9)), ["late"]);
    assert_eq!(rig.call(QueueCall::Cancel { offset: 3 }), QueueAnswer::Count(1));
    assert_eq!(rig.call(QueueCall::Cancel { offset: 3 }), QueueAnswer::Count(0));
    let mut rig = rig.power_cut();
    rig.pass(2_000_000_000);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["late", "now", "soon"]);
}

#[test]
fn a_retry_waits_and_blocks_nobody() {
    let mut rig = rig(QueueConfig { backoff: Backoff::Exponential { ms: 100, cap_ms: 1_000 }, ..QueueConfig::default() });
    rig.publish(&[message("a"), message("b")]);
    rig.receive(1, 1, 1);
    rig.settle_one(1, 1, 0, Verb::Requeue);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b"]);
    rig.pass(110_000);
    let got = rig.receive(1, 1, 9);
    assert_eq!((values(&got), got[0].deliveries), (vec!["a"], 2));
    rig.settle_one(1, 1, 0, Verb::Requeue);
    // The wait survives a crash.
    let mut rig = rig.power_cut();
    rig.pass(110_000);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b"]);
    rig.pass(110_000);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a"]);
}

#[test]
fn messages_expire() {
    let mut rig = rig(QueueConfig { ttl_ms: Some(500), dead_letter: Some("dead".into()), ..QueueConfig::default() });
    rig.publish(&[message("a"), Message { ttl_ms: Some(50), ..message("short") }]);
    rig.pass(100_000);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a"]);
    rig.settle_one(1, 1, 0, Verb::Requeue);
    rig.pass(1_000_000);
    assert_eq!(rig.receive(1, 1, 9), []);
    rig.settle();
    let dead = rig.topic_records("dead");
    assert_eq!(dead.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["short", "a"]);
    assert!(dead.iter().all(|it| it.1["dead-letter-reason"] == "expired"));
}

#[test]
fn expired_messages_leave_when_nobody_receives() {
    for priorities in [1, 3] {
        let mut rig = rig(QueueConfig { ttl_ms: Some(5_000), priorities, dead_letter: Some("dead".into()), ..QueueConfig::default() });
        rig.publish(&[message("a"), Message { ttl_ms: Some(50), priority: 1, ..message("short") }]);
        rig.settle();
        rig.pass(1_000_000);
        rig.turns(100);
        // A head is looked at; what is behind one that lives longer isn't.
        assert_eq!(rig.topic_records("dead").len(), usize::from(priorities > 1));
        rig.pass(4_000_000);
        rig.turns(100);
        assert_eq!(rig.topic_records("dead").len(), 2, "{priorities} priorities");
        let state = rig.queue_state();
        assert_eq!((state.dead_lettered, state.ready), (2, 0));
    }
    // Where only the message says so, and after a crash; what doesn't expire stays.
    let mut rig = rig(QueueConfig { dead_letter: Some("dead".into()), ..QueueConfig::default() });
    rig.publish(&[Message { ttl_ms: Some(50), ..message("short") }, message("stays")]);
    let mut rig = rig.power_cut();
    rig.pass(62_000_000);
    rig.turns(100);
    rig.pass(2_000_000);
    rig.turns(100);
    assert_eq!(rig.topic_records("dead").len(), 1);
    assert_eq!(rig.queue_state().ready, 1);
    assert_eq!(rig.shard.queues.next_deadline_us(), None, "a queue where nothing expires costs nothing");
}

#[test]
fn a_queue_that_waits_for_room_goes_on_when_there_is_some() {
    let shard = crate::shard::ShardConfig { queue_bytes_max: 100, ..shard_config() };
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), shard, start());
    rig.create_queue(QueueConfig::default());
    let other = CreateQueue {
        name: "other".into(),
        topic: "work".into(),
        partition_count: 1,
        durability: Durability::Durable,
        config: QueueConfig::default(),
    };
    rig.ask(&Request::CreateQueue(other.into()));
    rig.publish(&["a", "b", "c"].map(message));
    assert_eq!(rig.receive(1, 1, 3).len(), 3);
    let partition = PartitionId(rig.queue_partition());
    let receive =
        Receive { queue: QueueId(2), partition, consumer: 1, priority: 0, max_messages: 2, max_bytes: 1 << 20, max_wait_ms: 60_000 };
    let waits = rig.send_from(2, &Request::Receive(receive));
    rig.turns(100);
    assert!(!rig.is_answered(waits), "three are remembered, as many as may be");
    let sent = rig.send_settle(1, 1, vec![Settlement { first: 0, count: 3, verb: Verb::Ack, delay_ms: 0 }]);
    rig.answer(sent);
    rig.turns(20);
    assert!(rig.is_answered(waits), "there is room, and nobody woke the queue");
    assert_eq!(values(&received(&rig.answer(waits))), ["a", "b"]);
}

#[test]
fn a_receive_whose_messages_are_being_read_wakes_nobody_meanwhile() {
    let mut rig = rig(QueueConfig::default());
    rig.publish(&[message("a")]);
    let partition = rig.queue_partition();
    rig.fill(partition, 900 << 10);
    rig.settle();
    rig.disk.stall(true);
    let waits = rig.send_receive(1, 1, 1, 10);
    rig.turn();
    rig.pass(20_000);
    rig.turn();
    let in_us = rig.shard.queues.next_deadline_us().expect("the end of its grace") - rig.now.monotonic_us;
    assert!(in_us > 500_000, "woken again in {in_us} µs");
    rig.disk.stall(false);
    assert_eq!(values(&received(&rig.answer(waits))), ["a"]);
}

#[test]
fn a_full_queue_refuses_drops_or_redirects() {
    let mut full = rig(QueueConfig { max_length: Some(2), ..QueueConfig::default() });
    full.publish(&[message("a"), message("b")]);
    assert_eq!(failed(&full.publish(&[message("c")])), ErrorCode::QueueFull);
    full.receive(1, 1, 1);
    full.settle_one(1, 1, 0, Verb::Ack);
    assert!(matches!(full.publish(&[message("c")]), Reply::Produced { .. }));

    let config =
        QueueConfig { max_length: Some(2), overflow: Overflow::DropHead, dead_letter: Some("dead".into()), ..QueueConfig::default() };
    let mut dropping = rig(config);
    dropping.publish(&["a", "b", "c", "d"].map(message));
    dropping.settle();
    assert_eq!(values(&dropping.receive(1, 1, 9)), ["c", "d"]);
    assert_eq!(dropping.topic_records("dead").len(), 2);

    let config = QueueConfig { max_length: Some(2), overflow: Overflow::Redirect, redirect: Some("dead".into()), ..QueueConfig::default() };
    let mut redirecting = rig(config);
    redirecting.publish(&["a", "b", "c", "d"].map(message));
    redirecting.settle();
    assert_eq!(values(&redirecting.receive(1, 1, 9)), ["a", "b"]);
    let away = redirecting.topic_records("dead");
    assert_eq!(away.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    assert_eq!(redirecting.queue_state().dead_lettered, 2);
}

fn redirected(reply: &Reply) -> u32 {
    let Reply::Produced { redirected, .. } = reply else { panic!("{reply:?}") };
    *redirected
}

#[test]
fn who_finds_a_queue_full_is_told_at_once_and_it_stays_so() {
    let config = QueueConfig { max_length: Some(3), overflow: Overflow::Redirect, redirect: Some("dead".into()), ..QueueConfig::default() };
    let mut rig = rig(config.clone());
    let told: Vec<u32> = [&["a", "b"][..], &["c", "d", "e"], &["f"]]
        .map(|values| redirected(&rig.publish(&values.iter().map(|value| message(value)).collect::<Vec<_>>())))
        .into();
    assert_eq!(told, [0, 2, 1]);
    // Room that comes later changes nothing, nor does a crash before they are passed on.
    let mut rig = rig.power_cut();
    assert_eq!(values(&rig.receive(1, 1, 2)), ["a", "b"]);
    rig.settle_one(1, 1, 0, Verb::Ack);
    rig.settle_one(1, 1, 1, Verb::Ack);
    rig.settle();
    let away: Vec<String> = rig.topic_records("dead").into_iter().map(|it| it.0).collect();
    assert_eq!(away, ["d", "e", "f"]);
    assert_eq!(redirected(&rig.publish(&["g", "h", "i"].map(message))), 1, "c is there, and two more find room");
    assert_eq!(values(&rig.receive(1, 1, 9)), ["c", "g", "h"]);
    let state = rig.queue_state();
    assert_eq!((state.in_flight, state.acked), (3, 2));
    rig.settle();
    assert_eq!(rig.queue_state().dead_lettered, 4);
    // A repeated batch is told the same.
    let mut rig = rig.power_cut();
    let mut builder = RecordBatchBuilder::new();
    ["x", "y"].iter().for_each(|value| builder.push(0, None, Some(value.as_bytes()), b""));
    let producer_id = ringmain_wire::ProducerId(9);
    let identity = Identity { producer_id, sequence: 0, ..Identity::plain(PartitionId(rig.queue_partition())) };
    let batch = builder.finish(identity).to_vec();
    rig.ask(&Request::DeleteTopic { name: "dead" });
    for _ in 0..2 {
        assert_eq!(redirected(&rig.produce(&batch)), 2, "they can't be passed on, and still are to be");
    }
    rig.create("dead", 1, TopicConfig::default());
    rig.pass(1_100_000);
    rig.turns(100);
    assert_eq!(rig.topic_records("dead").len(), 2);
}

#[test]
fn a_queue_is_bounded_in_bytes() {
    let value = |letter: &str| letter.repeat(100);
    let three = || ["a", "b", "c"].map(|letter| message(&value(letter)));
    let mut full = rig(QueueConfig { max_bytes: Some(300), ..QueueConfig::default() });
    full.publish(&three());
    full.settle();
    assert_eq!(failed(&full.publish(&[message("d")])), ErrorCode::QueueFull);
    full.receive(1, 1, 1);
    full.settle_one(1, 1, 0, Verb::Ack);
    assert!(matches!(full.publish(&[message(&value("d"))]), Reply::Produced { .. }));
    full.settle();
    // Counted anew after a crash.
    let mut full = full.power_cut();
    full.settle();
    assert_eq!(failed(&full.publish(&[message("e")])), ErrorCode::QueueFull);

    let config =
        QueueConfig { max_bytes: Some(250), overflow: Overflow::DropHead, dead_letter: Some("dead".into()), ..QueueConfig::default() };
    let mut dropping = rig(config);
    dropping.publish(&three());
    dropping.settle();
    assert_eq!(dropping.topic_records("dead").len(), 1);
    assert_eq!(values(&dropping.receive(1, 1, 9)), [value("b"), value("c")]);
    // What is in flight stays, however much it is.
    dropping.publish(&[message(&value("d"))]);
    dropping.settle();
    let state = dropping.queue_state();
    assert_eq!((state.in_flight, state.dead_lettered, state.ready), (2, 2, 0));

    let config =
        QueueConfig { max_bytes: Some(200), overflow: Overflow::Redirect, redirect: Some("dead".into()), ..QueueConfig::default() };
    let mut redirecting = rig(config);
    assert_eq!(redirected(&redirecting.publish(&three()[..2])), 0);
    redirecting.settle();
    assert_eq!(redirected(&redirecting.publish(&three())), 3);
    redirecting.settle();
    assert_eq!(redirecting.topic_records("dead").len(), 3);
    assert_eq!(values(&redirecting.receive(1, 1, 9)), [value("a"), value("b")]);
}

#[test]
fn a_queue_that_nobody_uses_is_deleted() {
    let is_there = |rig: &Rig| rig.shard.catalog().queues().named("work").is_some();
    let wait = |rig: &mut Rig, ms: u64| {
        rig.pass(ms * 1_000);
        rig.turns(50);
    };
    let config = QueueConfig { expires_ms: Some(2_000), ..QueueConfig::default() };
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), shard_config(), start());
    rig.create("work", 2, TopicConfig::default());
    assert!(matches!(rig.create_queue(config), Reply::Queue(_)));
    wait(&mut rig, 1_900);
    assert!(is_there(&rig));
    rig.queue_state();
    wait(&mut rig, 1_900);
    assert!(is_there(&rig), "it was asked about");
    // In the other partition.
    let partition = PartitionId(rig.shard.catalog().topic("work").expect("it").partitions[1].partition);
    let receive = Receive { queue: QUEUE, partition, consumer: 1, priority: 0, max_messages: 1, max_bytes: 1 << 20, max_wait_ms: 0 };
    let sent = rig.send_from(3, &Request::Receive(receive));
    assert_eq!(received(&rig.answer(sent)), []);
    wait(&mut rig, 30_000);
    assert!(is_there(&rig), "it has a consumer");
    rig.shard.cancel(0, 3, 0, rig.now);
    wait(&mut rig, 1_900);
    assert!(is_there(&rig), "a consumer may come back");
    let mut rig = rig.power_cut();
    rig.turns(5);
    wait(&mut rig, 1_900);
    assert!(is_there(&rig), "the time counts anew");
    wait(&mut rig, 200);
    assert!(!is_there(&rig));
    let sent = rig.send_receive(1, 1, 1, 0);
    assert_eq!(failed(&rig.answer(sent)), ErrorCode::UnknownQueue);
    let rig = rig.power_cut();
    assert!(!is_there(&rig));
}

/// Offset, and whether it was there before.
fn stored(reply: &Reply) -> (u64, bool) {
    let Reply::Produced { base_offset, duplicate, .. } = reply else { panic!("{reply:?}") };
    (base_offset.0, *duplicate)
}

fn with_ids(ids: &[&str]) -> Vec<Message> {
    ids.iter().map(|id| Message { id: (!id.is_empty()).then(|| id.to_string()), ..message(id) }).collect()
}

#[test]
fn a_message_is_recognised_by_its_id_within_the_window() {
    let mut rig = rig(QueueConfig { dedup_window_ms: Some(5_000), ..QueueConfig::default() });
    assert_eq!(stored(&rig.publish(&with_ids(&["a", "", "b"]))), (0, false));
    assert_eq!(stored(&rig.publish(&with_ids(&["b"]))), (2, true));
    assert_eq!(stored(&rig.publish(&with_ids(&[""]))), (3, false), "no id, no memory");
    assert_eq!(failed(&rig.publish(&with_ids(&["c", "a"]))), ErrorCode::KnownMessages);
    assert_eq!(failed(&rig.publish(&with_ids(&["c", "c"]))), ErrorCode::KnownMessages);
    assert_eq!(failed(&rig.publish(&with_ids(&["x".repeat(256).as_str()]))), ErrorCode::InvalidArgument);
    assert_eq!(stored(&rig.publish(&with_ids(&["c", "d"]))), (4, false), "what was refused isn't remembered");
    assert_eq!(stored(&rig.publish(&with_ids(&["c", "d"]))), (4, true), "a whole batch again");
    // By the log alone, then by a checkpoint.
    for round in 0..2 {
        rig = rig.power_cut();
        assert_eq!(stored(&rig.publish(&with_ids(&["a"]))), (0, true), "crash {round}");
        assert_eq!(stored(&rig.publish(&with_ids(&["c", "d"]))), (4, true), "crash {round}");
        rig.stop();
        rig = rig.kill();
    }
    assert_eq!(rig.queue_state().enqueued, 6);
    rig.pass(5_100_000);
    assert_eq!(stored(&rig.publish(&with_ids(&["a"]))), (6, false), "the window is over");
    assert_eq!(stored(&rig.publish(&with_ids(&["a"]))), (6, true));
    let altered = AlterQueue { name: "work".into(), config: QueueConfig::default() };
    assert!(matches!(rig.ask(&Request::AlterQueue(altered.into())), Reply::Queue(_)));
    assert_eq!(stored(&rig.publish(&with_ids(&["a"]))), (7, false), "nobody asks for it any more");
}

#[test]
fn a_producer_goes_on_behind_messages_that_were_recognised() {
    let mut rig = rig(QueueConfig { dedup_window_ms: Some(60_000), ..QueueConfig::default() });
    let partition = rig.queue_partition();
    let batch = |producer: i64, sequence: i32, id: &str| {
        let mut headers = HeadersBuilder::default();
        headers.push(name::MESSAGE_ID, Some(id.as_bytes()));
        let mut builder = RecordBatchBuilder::new();
        builder.push(0, None, Some(id.as_bytes()), headers.as_bytes());
        let producer_id = ringmain_wire::ProducerId(producer);
        let identity = Identity { producer_id, sequence, flags: flags::QUEUE_HEADERS, ..Identity::plain(PartitionId(partition)) };
        builder.finish(identity).to_vec()
    };
    assert_eq!(stored(&rig.produce(&batch(7, 0, "a"))), (0, false));
    // Another life of the publisher doesn't know what the last one has sent.
    assert_eq!(stored(&rig.produce(&batch(8, 0, "a"))), (0, true));
    let mut rig = rig.power_cut();
    assert_eq!(stored(&rig.produce(&batch(8, 0, "a"))), (0, true), "by its sequence");
    assert_eq!(stored(&rig.produce(&batch(8, 1, "b"))), (1, false));
    assert_eq!(stored(&rig.produce(&batch(8, 2, "a"))), (0, true));
    rig.stop();
    let mut rig = rig.kill();
    assert_eq!(stored(&rig.produce(&batch(8, 3, "c"))), (2, false));
}

#[test]
fn ids_of_a_batch_that_never_came_are_not_remembered() {
    use crate::shard::message_ids::MessageIds;
    use crate::shard::state_record::MessageIdsPiece;
    let piece = |base, body_crc| Box::new(MessageIdsPiece { partition: 1, base, body_crc, time_ms: 1, ids: vec![(0, b"a".to_vec())] });
    let mut ids = MessageIds::default();
    ids.announce(piece(5, 77));
    ids.arrived(5, 78);
    assert_eq!(ids.summary(), [], "another batch came to its place");
    ids.announce(piece(5, 77));
    ids.announce(piece(6, 79));
    ids.arrived(6, 79);
    assert_eq!(ids.summary(), [(b"a".to_vec(), 6, 1)]);
}

#[test]
fn a_queue_begins_with_the_last_records() {
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), shard_config(), start());
    rig.create("work", 1, TopicConfig::default());
    rig.publish(&["a", "b", "c"].map(message));
    assert!(matches!(rig.create_queue(QueueConfig { from_last: Some(1), ..QueueConfig::default() }), Reply::Queue(_)));
    rig.publish(&[message("d")]);
    let mut rig = rig.power_cut();
    assert_eq!([rig.receive(1, 1, 9), rig.receive(1, 1, 9)].map(|got| got[0].value.clone()), ["c", "d"]);
    assert_eq!(rig.queue_state().enqueued, 2);
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), shard_config(), start());
    rig.create("work", 1, TopicConfig::default());
    rig.publish(&["a", "b"].map(message));
    rig.create_queue(QueueConfig { from_last: Some(9), from_beginning: false, ..QueueConfig::default() });
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a", "b"]);
}

#[test]
fn keys_are_in_flight_one_at_a_time() {
    let mut rig = rig(QueueConfig { key_ordered: true, ..QueueConfig::default() });
    let of = |key: &str, value: &str| Message { key: Some(key.into()), ..message(value) };
    rig.publish(&[of("k", "k1"), of("k", "k2"), of("l", "l1"), of("k", "k3"), message("free")]);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["k1", "l1", "free"]);
    assert_eq!(rig.receive(2, 1, 9), []);
    rig.settle_one(1, 1, 0, Verb::Requeue);
    assert_eq!(values(&rig.receive(2, 1, 9)), ["k1"]);
    rig.settle_one(2, 1, 0, Verb::Ack);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["k2"]);
    rig.settle_one(1, 1, 1, Verb::Ack);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["k3"]);
}

#[test]
fn exclusive_and_single_active_consumers() {
    let mut alone = rig(QueueConfig { exclusive: true, ..QueueConfig::default() });
    alone.receive(1, 1, 1);
    let sent = alone.send_receive(2, 1, 1, 0);
    assert_eq!(failed(&alone.answer(sent)), ErrorCode::QueueInUse);
    alone.shard.cancel(0, 1, 0, alone.now);
    alone.receive(2, 1, 1);

    let mut active = rig(QueueConfig { single_active: true, ..QueueConfig::default() });
    let first = active.send_receive(1, 1, 1, 60_000);
    let second = active.send_receive(2, 1, 9, 60_000);
    active.publish(&["a", "b", "c"].map(message));
    active.settle();
    assert_eq!(values(&received(&active.answer(first))), ["a"]);
    assert!(!active.is_answered(second));
    active.shard.cancel(0, 1, 0, active.now);
    // What comes back isn't overtaken.
    assert_eq!(values(&received(&active.answer(second))), ["a", "b", "c"]);
}

#[test]
fn paused_purged_moved_and_altered() {
    let mut rig = rig(QueueConfig { paused: true, ..QueueConfig::default() });
    rig.publish(&["a", "b", "c"].map(message));
    assert_eq!(rig.receive(1, 1, 9), []);
    rig.ask(&Request::AlterQueue(AlterQueue { name: "work".into(), config: QueueConfig::default() }.into()));
    assert_eq!(values(&rig.receive(1, 1, 1)), ["a"]);
    assert_eq!(rig.call(QueueCall::Purge), QueueAnswer::Count(2));
    assert_eq!(rig.receive(1, 1, 9), []);
    let state = rig.queue_state();
    assert_eq!((state.in_flight, state.acked, state.ready), (1, 2, 0));
    assert_eq!(rig.call(QueueCall::Seek { offset: 1 }), QueueAnswer::Count(1));
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b", "c"]);
    assert_eq!(rig.settle_one(1, 1, 0, Verb::Ack), (0, 1));
    let mut rig = rig.power_cut();
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b", "c"]);
    assert!(matches!(rig.ask(&Request::DeleteQueue { name: "work" }), Reply::Deleted));
    let sent = rig.send_receive(1, 1, 1, 0);
    assert_eq!(failed(&rig.answer(sent)), ErrorCode::UnknownQueue);
}

#[test]
fn the_log_goes_as_messages_are_acknowledged() {
    let mut rig = rig(QueueConfig { drop_acked: true, ..QueueConfig::default() });
    for round in 0..20 {
        let value = format!("{round}{}", "x".repeat(8 << 10));
        rig.publish(&[message(&value), message(&value)]);
        let got = rig.receive(1, 1, 9);
        assert_eq!(got.len(), 2);
        let sent = rig.send_settle(1, 1, vec![Settlement { first: 0, count: 1_000, verb: Verb::Ack, delay_ms: 0 }]);
        assert_eq!(settled(&rig.answer(sent)), (2, 0));
    }
    rig.pass(6_000_000);
    rig.turns(100);
    let partition = rig.queue_partition();
    assert_eq!(rig.shard.partition_state(PartitionId(partition)).expect("it").log_start, 40);
}

/// Small segments, and a cleaner that doesn't wait.
fn small_segments() -> ShardConfig {
    let mut config = shard_config();
    config.log = LogConfig { segment_bytes: 64 << 10, clean_check_us: 5_000, hole_bytes_min: 1, ..config.log };
    config.retention_interval_us = 20_000;
    config
}

/// A queue whose topic has `count` messages that tell their offset, all acknowledged but for some that connection 1 holds.
fn with_stragglers(config: ShardConfig, drop_acked: bool, count: u64, stays: impl Fn(u64) -> bool) -> Rig {
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("dead", 1, TopicConfig::default());
    rig.create_queue(QueueConfig { drop_acked, ack_timeout_ms: 3_600_000, ..QueueConfig::default() });
    for first in (0..count).step_by(10) {
        let messages: Vec<Message> = (first..first + 10).map(|number| message(&format!("{number} {}", "x".repeat(1_000)))).collect();
        rig.publish(&messages);
        let got = rig.receive(1, 1, 10);
        assert_eq!(got.len(), 10);
        ack_all_but(&mut rig, QUEUE, &got, &stays);
    }
    rig
}

fn ack_all_but(rig: &mut Rig, queue: QueueId, got: &[Got], stays: impl Fn(u64) -> bool) {
    let goes = got.iter().filter(|got| !stays(got.offset));
    let settlements: Vec<Settlement> = goes.map(|got| Settlement { first: got.offset, count: 1, verb: Verb::Ack, delay_ms: 0 }).collect();
    let (count, partition) = (settlements.len() as u32, PartitionId(rig.queue_partition()));
    let settle = Settle { queue, partition, consumer: 1, transaction: None, settlements };
    assert_eq!(settled(&rig.ask(&Request::Settle(settle.into()))), (count, 0));
}

/// Rounds of retention, and the cleaner after each.
fn let_it_clean(rig: &mut Rig) {
    for _ in 0..60 {
        rig.pass(25_000);
        rig.turns(150);
    }
}

/// Offsets of messages, which say the same themselves.
fn offsets(got: &[Got]) -> Vec<u64> {
    let said = got.iter().map(|got| got.value.split(' ').next().and_then(|said| said.parse().ok()));
    assert!(said.eq(got.iter().map(|got| Some(got.offset))), "a message is where another was");
    got.iter().map(|got| got.offset).collect()
}

fn stored_bytes(rig: &Rig) -> u64 {
    rig.shard.log.partition_bytes(PartitionId(rig.queue_partition()))
}

impl Rig {
    fn receive_as(&mut self, queue: QueueId, max_messages: u32) -> Vec<Got> {
        let partition = PartitionId(self.queue_partition());
        let receive = Receive { queue, partition, consumer: 1, priority: 0, max_messages, max_bytes: 8 << 20, max_wait_ms: 0 };
        received(&self.ask(&Request::Receive(receive)))
    }

    /// As much as there is.
    fn drain_as(&mut self, queue: QueueId) -> Vec<Got> {
        let mut all = Vec::new();
        loop {
            let more = self.receive_as(queue, 1_000);
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }
}

#[test]
fn the_log_goes_between_messages_that_stay() {
    let stays = |offset: u64| [0, 77, 300, 301, 599].contains(&offset);
    let mut rig = with_stragglers(small_segments(), true, 800, stays);
    let_it_clean(&mut rig);
    assert!(stored_bytes(&rig) < 160_000, "{} bytes are left, {:?}", stored_bytes(&rig), rig.shard.log_counters());
    let partition = PartitionId(rig.queue_partition());
    let (state, stored) = (rig.queue_state(), rig.shard.partition_state(partition).expect("it"));
    assert_eq!((state.acked, state.in_flight, state.floor, state.dropped), (795, 5, 0, 0));
    assert_eq!((stored.log_start, stored.high_watermark), (0, 800));
    // What isn't acknowledged comes again after a crash, and nothing else does.
    let mut rig = rig.power_cut();
    let got = rig.drain_as(QUEUE);
    assert_eq!(offsets(&got), [0, 77, 300, 301, 599]);
    assert!(got.iter().all(|got| got.deliveries == 2), "{:?}", got.iter().map(|got| got.deliveries).collect::<Vec<_>>());
    // Given back it is still there.
    assert_eq!(rig.settle_one(1, 1, 300, Verb::Requeue), (1, 0));
    assert_eq!(offsets(&rig.drain_as(QUEUE)), [300]);

    // A queue that is made later gets what there is, and counts nothing else.
    let create = CreateQueue {
        name: "late".into(),
        topic: "work".into(),
        partition_count: 1,
        durability: Durability::Durable,
        config: QueueConfig { from_beginning: true, ack_timeout_ms: 3_600_000, ..QueueConfig::default() },
    };
    assert!(matches!(rig.ask(&Request::CreateQueue(create.into())), Reply::Queue(_)));
    let late = QueueId(2);
    let there = offsets(&rig.drain_as(late));
    assert!(there.len() < 180 && [0, 77, 300, 301, 599, 799].iter().all(|offset| there.contains(offset)), "{there:?}");
    let describe = Request::Queue(QueueRequest { queue: late, partition, call: QueueCall::Describe }.into());
    let Reply::Queue(reply) = rig.ask(&describe) else { panic!("no state") };
    let QueueReply::Answer(QueueAnswer::State(state)) = *reply else { panic!("{reply:?}") };
    assert_eq!((state.enqueued, state.in_flight, state.ready, state.dropped), (there.len() as u64, there.len() as u64, 0, 0));
    // While it has something to say, nothing more goes.
    let bytes = stored_bytes(&rig);
    let_it_clean(&mut rig);
    assert_eq!(stored_bytes(&rig), bytes);

    // Moved back, the other one gets the same.
    assert_eq!(rig.call(QueueCall::Seek { offset: 0 }), QueueAnswer::Count(0));
    let got = rig.drain_as(QUEUE);
    assert_eq!(offsets(&got), there);
    assert_eq!(rig.queue_state().enqueued, there.len() as u64);
    // Who drops goes: nobody says any more that records do.
    ack_all_but(&mut rig, QUEUE, &got, |offset| offset == 0);
    assert!(matches!(rig.ask(&Request::DeleteQueue { name: "work" }), Reply::Deleted));
    let_it_clean(&mut rig);
    assert_eq!(stored_bytes(&rig), bytes);
    let mut rig = rig.power_cut();
    assert_eq!(offsets(&rig.drain_as(late)), there);
}

#[test]
fn only_what_every_queue_has_settled_goes_and_only_where_one_says_so() {
    let mut rig = with_stragglers(small_segments(), false, 400, |offset| offset == 0);
    let_it_clean(&mut rig);
    assert_eq!(rig.shard.log_counters().bytes_dropped, 0, "nobody says that records go");
    // More ranges than the log is told of in one turn.
    let mut config = small_segments();
    config.log.dead_ranges_max = 2;
    let mut rig = with_stragglers(config, true, 400, |offset| offset.is_multiple_of(50));
    for _ in 0..4 {
        let_it_clean(&mut rig);
    }
    let bytes = stored_bytes(&rig);
    assert!(bytes < 170_000, "{bytes} bytes are left, {:?}", rig.shard.log_counters());
    let create = CreateQueue {
        name: "other".into(),
        topic: "work".into(),
        partition_count: 1,
        durability: Durability::Durable,
        config: QueueConfig { from_beginning: true, ack_timeout_ms: 3_600_000, ..QueueConfig::default() },
    };
    assert!(matches!(rig.ask(&Request::CreateQueue(create.into())), Reply::Queue(_)));
    let other = QueueId(2);
    for first in (400..800).step_by(10) {
        let messages: Vec<Message> = (first..first + 10).map(|number| message(&format!("{number} {}", "x".repeat(1_000)))).collect();
        rig.publish(&messages);
    }
    // One settles the lower half of them, the other the upper one; both hold one from before.
    let got = rig.drain_as(QUEUE);
    assert_eq!(got.len(), 400);
    ack_all_but(&mut rig, QUEUE, &got, |offset| offset >= 600);
    let all = rig.drain_as(other);
    let new: Vec<Got> = all.iter().filter(|got| got.offset >= 400).cloned().collect();
    ack_all_but(&mut rig, other, &new, |offset| offset < 600);
    let_it_clean(&mut rig);
    let dropped = rig.shard.log_counters().bytes_dropped;
    assert!(stored_bytes(&rig) > bytes + 400_000, "{} bytes are left", stored_bytes(&rig));
    ack_all_but(&mut rig, other, &all, |offset| offset == all[0].offset || offset >= 600);
    let_it_clean(&mut rig);
    let more = rig.shard.log_counters().bytes_dropped - dropped;
    assert!(more > 100_000, "{more} bytes more dropped of 200,000 that both have settled");
    let mut rig = rig.power_cut();
    assert_eq!(offsets(&rig.drain_as(other)), [all[0].offset]);
    let left: Vec<u64> = (0..400).step_by(50).chain(600..800).collect();
    assert_eq!(offsets(&rig.drain_as(QUEUE)), left);
}

/// A reader that wants only what is committed is told which transactions were aborted, and finds where each of them ends.
#[test]
fn where_an_aborted_transaction_ends_stays_and_so_does_the_newest_record() {
    let mut rig = with_stragglers(small_segments(), true, 10, |offset| offset == 0);
    let mut producer = rig.init("t");
    let (mut aborted, mut committed) = (0, Vec::new());
    for round in 0..40 {
        let identity = Identity {
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            sequence: 0,
            flags: flags::TRANSACTIONAL,
            ..Identity::plain(PartitionId(rig.queue_partition()))
        };
        let messages: Vec<Message> = (0..8).map(|number| message(&format!("{round} {number} {}", "x".repeat(1_000)))).collect();
        assert!(matches!(rig.produce(&frame_as(identity, &messages)), Reply::Produced { .. }));
        let commit = round % 4 == 0;
        producer = rig.end("t", producer, commit).expect("ended");
        aborted += usize::from(!commit);
        let got = rig.drain_as(QUEUE);
        assert_eq!(got.len(), if commit { 8 } else { 0 });
        ack_all_but(&mut rig, QUEUE, &got, |_| false);
        committed.extend(got.iter().map(|got| got.offset));
    }
    rig.publish(&[message("last")]);
    let last = rig.drain_as(QUEUE);
    ack_all_but(&mut rig, QUEUE, &last, |_| false);
    // Two segments of another topic, so that even the newest record isn't in the one that is written.
    let filler = rig.create("filler", 1, TopicConfig::default()).partitions[0].partition;
    rig.fill(filler, 200 << 10);
    let_it_clean(&mut rig);
    assert!(stored_bytes(&rig) < 100_000, "{} bytes are left, {:?}", stored_bytes(&rig), rig.shard.log_counters());
    let (mut from, mut told, mut ends, mut records) = (0, BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    loop {
        let fetch = crate::request::Fetch {
            partition: PartitionId(rig.queue_partition()),
            from: ringmain_wire::Offset(from),
            min_bytes: 0,
            max_bytes: 1 << 20,
            max_wait_ms: 0,
            committed_only: true,
        };
        let Reply::Fetched { head, data } = rig.ask(&Request::Fetch(fetch)) else { panic!("no fetch") };
        let bytes: Vec<u8> = match &data {
            FetchData::Extents(extents) => {
                let bytes = extents.iter().flat_map(|extent| rig.shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
                rig.shard.release_extents(extents);
                bytes
            }
            FetchData::Blocks { blocks, .. } => blocks.iter().flat_map(|block| block.to_vec()).collect(),
            FetchData::Owned(bytes) => bytes.clone(),
        };
        told.extend(head.aborted.iter().map(|it| (it.last_offset.0, it.first_offset.0)));
        for frame in frames(&bytes).map(|frame| frame.expect("a frame")) {
            let at = if frame.header.producer.flags & flags::CONTROL != 0 { &mut ends } else { &mut records };
            at.insert(frame.base_offset().0);
        }
        if head.next_offset.0 == from {
            assert_eq!(head.high_watermark.0, from, "nobody waits before the end for what never comes");
            break;
        }
        from = head.next_offset.0;
    }
    assert_eq!(told.len(), aborted);
    assert!(told.keys().all(|marker| ends.contains(marker)), "{told:?} and {ends:?}");
    assert!(records.contains(&0) && records.contains(&last[0].offset), "{records:?}");
    assert!(committed.iter().filter(|offset| records.contains(offset)).count() < committed.len() / 2, "{records:?}");
    assert_eq!((rig.queue_state().in_flight, rig.queue_state().dropped), (1, 0));
}

/// A crash in the middle of a checkpoint leaves pieces without an end: whoever replays from the one before loses nothing by them.
#[test]
fn a_checkpoint_without_an_end_takes_nothing_away() {
    let head = |floor, acked, void| {
        let piece =
            QueueHeadPiece { queue: 1, partition: 2, begin: 0, floor, mark: 64, crashes: Vec::new(), acked, dead: 0, dropped: 0, void };
        Box::new(piece)
    };
    let parts = |settled: &[(u64, u64)], returned: &[u64]| {
        let returned = returned.iter().map(|offset| ReturnedPiece { offset: *offset, deliveries: 3, due_ms: 0 }).collect();
        StateRecord::QueueParts(Box::new(QueuePartsPiece { queue: 1, partition: 2, settled: settled.to_vec(), returned }))
    };
    let acked = |acked: &[(u64, u64)]| {
        let piece = QueueSettledPiece {
            queue: 1,
            partition: 2,
            acked: acked.to_vec(),
            dead: Vec::new(),
            dropped: Vec::new(),
            returned: Vec::new(),
        };
        StateRecord::QueueSettled(Box::new(piece))
    };
    let staged = QueueStagedPiece { queue: 1, partition: 2, producer_id: 7, producer_epoch: 1, staged: vec![(20, 21)] };
    let lived = [
        // Between the begin of the checkpoint that counts and its piece.
        acked(&[(9, 10)]),
        StateRecord::QueueKept(head(3, 6, 0)),
        parts(&[(5, 7), (9, 10)], &[4]),
        acked(&[(11, 13)]),
        StateRecord::QueueStaged(Box::new(staged)),
    ];
    let replayed = |records: &[StateRecord]| {
        let mut saved = SavedCursors::default();
        records.iter().for_each(|record| saved.replay(record.clone()));
        saved.take(PartitionId(2), QueueId(1)).expect("the queue")
    };
    let before = replayed(&lived);
    assert_eq!(before.settled.ranges_from(0).collect::<Vec<_>>(), [(5, 7), (9, 10), (11, 13)]);
    assert_eq!((before.tally.acked, before.history.len(), before.staged.len()), (8, 1, 1));
    for more in [vec![], vec![parts(&[(5, 7)], &[])]] {
        let cut = [&lived[..], &[StateRecord::QueueKept(head(3, 9, 0))], &more].concat();
        assert_eq!(replayed(&cut), before);
    }
    // What begins anew forgets, and so did checkpoints of earlier builds.
    let anew = [&lived[..], &[StateRecord::QueueHead(head(0, 0, 0)), parts(&[(30, 31)], &[])]].concat();
    assert_eq!(replayed(&anew).settled.ranges_from(0).collect::<Vec<_>>(), [(30, 31)]);
}

#[test]
fn cold_messages_are_read_again() {
    let mut rig = rig(QueueConfig { priorities: 2, ..QueueConfig::default() });
    rig.publish(&[message("a"), Message { priority: 1, ..message("b") }]);
    let partition = rig.queue_partition();
    rig.fill(partition, 900 << 10);
    rig.settle();
    assert_eq!(values(&rig.receive(1, 1, 2)), ["b", "a"]);
}

#[test]
fn what_is_staged_waits_for_the_decision_through_everything() {
    let mut rig = rig(QueueConfig { ack_timeout_ms: 100, ..QueueConfig::default() });
    rig.publish(&["a", "b", "c", "d"].map(message));
    assert_eq!(rig.receive(1, 1, 3).len(), 3);
    let first = rig.init("t");
    assert_eq!(rig.stage(1, 1, first, &[0, 1]), Ok((2, 0)));
    assert_eq!(rig.stage(1, 1, first, &[1]), Ok((1, 0)), "said twice");
    assert_eq!(rig.stage(2, 1, first, &[2]), Ok((0, 1)), "another's");
    let other = rig.init("other");
    assert_eq!(rig.stage(1, 1, other, &[1]), Ok((0, 1)), "in another transaction");
    assert_eq!(rig.settle_one(1, 1, 0, Verb::Ack), (0, 1), "nobody but the decision changes it");
    assert_eq!(rig.settle_one(1, 1, 1, Verb::Requeue), (0, 1));
    // Its time is over: what isn't staged comes back.
    rig.pass(200_000);
    rig.turns(20);
    let got = rig.receive(2, 1, 9);
    assert_eq!((values(&got), got[0].deliveries), (vec!["c", "d"], 2));
    assert_eq!(rig.queue_state().in_flight, 4);
    // Aborted: it is as it was, at its consumer, whose time is over.
    let second = rig.end("t", first, false).expect("aborted");
    assert_eq!(rig.stage(1, 1, first, &[0]), Err(ErrorCode::InvalidTransactionState), "late");
    rig.pass(60_000);
    rig.turns(20);
    let got = rig.receive(1, 1, 9);
    assert_eq!(values(&got), ["a", "b"]);
    assert!(got.iter().all(|got| got.deliveries == 2), "{got:?}");
    // The consumer goes, and the broker; the acknowledgement stays.
    assert_eq!(rig.stage(1, 1, second, &[0]), Ok((1, 0)));
    rig.shard.cancel(0, 1, 0, rig.now);
    assert_eq!(values(&rig.receive(3, 1, 9)), ["b"]);
    let mut rig = rig.power_cut();
    let got = rig.receive(1, 1, 9);
    assert_eq!(values(&got), ["b", "c", "d"]);
    assert_eq!(rig.queue_state().in_flight, 4);
    rig.stop();
    let mut rig = rig.kill();
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b", "c", "d"]);
    let third = rig.end("t", second, true).expect("committed");
    let state = rig.queue_state();
    assert_eq!((state.acked, state.in_flight, state.floor), (1, 3, 1));
    assert_eq!(rig.end("t", second, true), Ok(third), "asked again");
    let mut rig = rig.power_cut();
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b", "c", "d"], "what is committed stays so");
}

#[test]
fn what_was_staged_comes_back_when_its_transaction_is_open_for_too_long() {
    for crashes in [false, true] {
        let mut rig =
            rig(QueueConfig { priorities: 3, delivery_limit: Some(2), dead_letter: Some("dead".into()), ..QueueConfig::default() });
        rig.publish(&[message("low"), Message { priority: 2, ..message("high") }]);
        assert_eq!(rig.receive(1, 1, 2).len(), 2);
        let producer = rig.init("t");
        assert_eq!(rig.stage(1, 1, producer, &[0, 1]), Ok((2, 0)));
        if crashes {
            rig = rig.power_cut();
            assert_eq!(rig.receive(1, 1, 2), []);
        } else {
            rig.shard.cancel(0, 1, 0, rig.now);
        }
        rig.pass(u64::from(TRANSACTION_TIMEOUT_MS) * 1_000);
        rig.turns(100);
        let got = rig.receive(2, 1, 2);
        assert_eq!(values(&got), ["high", "low"]);
        assert!(got.iter().all(|got| got.deliveries == 2), "{got:?}");
        assert_eq!(rig.end("t", producer, true), Err(ErrorCode::InvalidTransactionState));
        // Delivered as often as they may be.
        let next = rig.init("t");
        assert_eq!(rig.stage(2, 1, next, &[0, 1]), Ok((2, 0)));
        rig.shard.cancel(0, 2, 0, rig.now);
        rig.end("t", next, false).expect("aborted");
        rig.settle();
        assert_eq!(rig.topic_records("dead").len(), 2);
        assert_eq!(rig.queue_state().dead_lettered, 2);
    }
}

#[test]
fn a_key_stays_busy_until_the_decision() {
    let mut rig = rig(QueueConfig { key_ordered: true, ..QueueConfig::default() });
    let of = |value: &str| Message { key: Some("k".into()), ..message(value) };
    rig.publish(&[of("a"), of("b")]);
    assert_eq!(values(&rig.receive(1, 1, 9)), ["a"]);
    let producer = rig.init("t");
    assert_eq!(rig.stage(1, 1, producer, &[0]), Ok((1, 0)));
    let mut rig = rig.kill();
    assert_eq!(rig.receive(1, 1, 9), []);
    rig.end("t", producer, true).expect("committed");
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b"]);
}

#[test]
fn purged_cut_and_moved_with_something_staged() {
    let mut rig = rig(QueueConfig::default());
    rig.publish(&["a", "b", "c", "d"].map(message));
    assert_eq!(rig.receive(1, 1, 2).len(), 2);
    let producer = rig.init("t");
    assert_eq!(rig.stage(1, 1, producer, &[1]), Ok((1, 0)));
    let mut rig = rig.kill();
    assert_eq!(rig.call(QueueCall::Purge), QueueAnswer::Count(3), "all but what is staged");
    let producer = rig.end("t", producer, false).expect("aborted");
    assert_eq!(values(&rig.receive(1, 1, 9)), ["b"]);
    assert_eq!(rig.stage(1, 1, producer, &[1]), Ok((1, 0)));
    assert_eq!(rig.call(QueueCall::Seek { offset: 0 }), QueueAnswer::Count(0));
    let got = rig.receive(1, 1, 9);
    assert_eq!(values(&got), ["a", "b", "c", "d"], "moved: nothing is staged any more");
    let producer = rig.end("t", producer, true).expect("committed");
    assert_eq!(rig.queue_state().acked, 0);
    assert_eq!(rig.stage(1, 1, producer, &[0, 3]), Ok((2, 0)));
    let partition = PartitionId(rig.queue_partition());
    rig.ask(&Request::DeleteBefore { partition, before: Some(ringmain_wire::Offset(2)) });
    assert_eq!(rig.receive(1, 1, 9), [], "the cursor has seen that the log begins later");
    rig.end("t", producer, true).expect("committed");
    let state = rig.queue_state();
    assert_eq!((state.acked, state.dropped, state.in_flight), (1, 2, 1));
}

#[test]
fn only_acknowledgements_of_transactional_producers_can_be_staged() {
    let mut rig = rig(QueueConfig::default());
    rig.publish(&[message("a")]);
    rig.receive(1, 1, 1);
    let producer = rig.init("t");
    assert_eq!(rig.stage_as(1, 1, producer, &[0], Verb::Reject), Err(ErrorCode::InvalidArgument));
    let plain = ProducerKey { id: ProducerId(7), epoch: 0 };
    assert_eq!(rig.stage(1, 1, plain, &[0]), Err(ErrorCode::ProducerMismatch));
    let unknown = ProducerKey { id: ProducerId(producer.id.0 + 64), epoch: 0 };
    assert_eq!(rig.stage(1, 1, unknown, &[0]), Err(ErrorCode::ProducerMismatch));
    rig.init("t");
    assert_eq!(rig.stage(1, 1, producer, &[0]), Err(ErrorCode::ProducerFenced));
    assert_eq!(rig.settle_one(1, 1, 0, Verb::Ack), (1, 0));
}

/// Long enough for the model, where nothing times out.
const TRANSACTION_TIMEOUT_MS: u32 = 900_000;

impl Rig {
    fn transaction(&mut self, id: &str, action: TransactionAction) -> Result<ProducerKey, ErrorCode> {
        let sent = self.send_transaction(id, action);
        transactional(&self.answer(sent))
    }

    fn send_transaction(&mut self, id: &str, action: TransactionAction) -> u64 {
        self.send(&Request::Transaction(TransactionRequest { transactional_id: id.into(), action }.into()))
    }

    fn init(&mut self, id: &str) -> ProducerKey {
        for _ in 0..100 {
            let action = TransactionAction::Init { timeout_ms: TRANSACTION_TIMEOUT_MS, check: None, current: None };
            match self.transaction(id, action) {
                // The log had no room just then: to be asked again.
                Err(ErrorCode::ConcurrentTransactions) => self.turns(5),
                answer => return answer.expect("a producer"),
            }
        }
        panic!("no producer");
    }

    fn end(&mut self, id: &str, producer: ProducerKey, commit: bool) -> Result<ProducerKey, ErrorCode> {
        self.transaction(id, TransactionAction::End { producer, commit, renews: true })
    }

    fn stage(&mut self, connection: u32, consumer: u32, producer: ProducerKey, offsets: &[u64]) -> Result<(u32, u32), ErrorCode> {
        self.stage_as(connection, consumer, producer, offsets, Verb::Ack)
    }

    fn stage_as(
        &mut self,
        connection: u32,
        consumer: u32,
        producer: ProducerKey,
        offsets: &[u64],
        verb: Verb,
    ) -> Result<(u32, u32), ErrorCode> {
        let sent = self.send_stage(connection, consumer, producer, offsets, verb);
        match self.answer(sent) {
            Reply::Failed(failure) => Err(failure.code),
            reply => Ok(settled(&reply)),
        }
    }

    fn send_stage(&mut self, connection: u32, consumer: u32, producer: ProducerKey, offsets: &[u64], verb: Verb) -> u64 {
        let partition = PartitionId(self.queue_partition());
        let settlements = offsets.iter().map(|first| Settlement { first: *first, count: 1, verb, delay_ms: 0 }).collect();
        let settle = Settle { queue: QUEUE, partition, consumer, transaction: Some(producer), settlements };
        self.send_from(connection, &Request::Settle(settle.into()))
    }
}

fn transactional(reply: &Reply) -> Result<ProducerKey, ErrorCode> {
    match reply {
        Reply::Transaction(reply) => match **reply {
            TransactionReply::Producer(producer) => Ok(producer),
            ref other => panic!("{other:?}"),
        },
        reply => Err(failed(reply)),
    }
}

/// One message as the model has it.
#[derive(Clone, Debug)]
struct Known {
    value: String,
    priority: u8,
    due_ms: i64,
    /// Deliveries that were made.
    deliveries: u16,
    /// Crashes before it was published.
    crashes: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    InFlight {
        connection: u32,
    },
    /// Published in a transaction that is open.
    Pending,
    /// Acknowledged in one; at its consumer, unless that has gone.
    Staged {
        connection: Option<u32>,
        id: usize,
    },
    /// Published in one that was aborted.
    Void,
    Done,
    /// Rejected, or delivered as often as it may be.
    Dead,
    /// Said to be settled, and a crash came before the answer.
    Unsure,
}

struct Model {
    rig: Rig,
    seed: u64,
    known: BTreeMap<u64, Known>,
    crashes: u16,
    config: QueueConfig,
    /// Bytes that a message is longer than it need be.
    filler: usize,
    /// Left out by cleaners of former lives.
    dropped_bytes: u64,
    operations: u64,
    /// Settles without an answer: request, offsets.
    unanswered: Vec<(u64, Vec<u64>)>,
    /// Published when the power went: stored whole, or not at all.
    maybe: Vec<Message>,
    maybe_base: u64,
    crashes_by_chance: bool,
    cuts: u64,
    producers: [Option<ProducerKey>; 2],
    /// Of their open transactions: next sequence, what was published, what was acknowledged.
    open: [(i32, Vec<u64>, Vec<u64>); 2],
    ended: u64,
}

/// By number of the producer.
const IDS: [&str; 2] = ["one", "two"];

const LIMIT: u32 = 4;

impl Model {
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn new(seed: u64) -> Model {
        let kind = seed % 6;
        let config = QueueConfig {
            delivery_limit: Some(LIMIT),
            dead_letter: Some("dead".into()),
            priorities: if kind == 1 { 4 } else { 1 },
            backoff: if kind == 2 { Backoff::Fixed { ms: 3 } } else { Backoff::None },
            drop_acked: kind == 3 || kind == 5,
            dedup_window_ms: (kind == 0).then_some(3_600_000),
            max_length: (kind == 4).then_some(12),
            max_bytes: (kind == 4 && seed.is_multiple_of(2)).then_some(90),
            overflow: if kind == 4 { Overflow::Redirect } else { Overflow::Reject },
            redirect: (kind == 4).then(|| "dead".into()),
            ..QueueConfig::default()
        };
        // In small segments with long messages some are never acknowledged while the log is cleaned around them.
        let mut shard = if kind == 5 { small_segments() } else { shard_config() };
        shard.checkpoint_after_state_bytes = 4 << 10;
        shard.retention_interval_us = 20_000;
        let mut rig = Rig::open(SimDisk::new(seed, SimOptions::default()), shard, start());
        rig.create("dead", 1, TopicConfig::default());
        assert!(matches!(rig.create_queue(config.clone()), Reply::Queue(_)));
        Model {
            rig,
            seed,
            known: BTreeMap::new(),
            crashes: 0,
            config,
            filler: if kind == 5 { 3_000 } else { 0 },
            dropped_bytes: 0,
            operations: 0,
            unanswered: Vec::new(),
            maybe: Vec::new(),
            maybe_base: 0,
            crashes_by_chance: true,
            cuts: 0,
            producers: [None; 2],
            open: Default::default(),
            ended: 0,
        }
    }

    fn messages(&mut self) -> Vec<Message> {
        let now_ms = self.rig.now.wall_ms;
        let count = 1 + self.random(4);
        (0..count)
            .map(|_| {
                let number = self.known.len() as u64 + self.random(1 << 30);
                let priority = if self.config.priorities > 1 { self.random(4) as u8 } else { 0 };
                let due_ms = (self.random(4) == 0).then_some(now_ms + self.random(12) as i64);
                let value = format!("m{number}{}", " ".repeat(self.filler));
                Message { id: (!number.is_multiple_of(4)).then(|| value.clone()), value, priority, due_ms, ..Message::default() }
            })
            .collect()
    }

    fn publish(&mut self) {
        let messages = self.messages();
        let bytes = frame_of(self.rig.queue_partition(), &messages);
        self.maybe_base = self.end_offset();
        let sent = self.rig.send(&Request::Produce { frame: ringmain_wire::Frame::parse(&bytes).expect("a frame") });
        let Some(reply) = self.rig.answer_unless_cut(sent) else {
            self.maybe = messages;
            return;
        };
        let Reply::Produced { base_offset, redirected, .. } = reply else { panic!("refused: {reply:?}") };
        let stays = messages.len() - redirected as usize;
        self.published(messages, base_offset.0, self.crashes, State::Ready, stays);
    }

    fn end_offset(&self) -> u64 {
        let partition = PartitionId(self.rig.queue_partition());
        self.rig.shard.partition_state(partition).expect("the queue's").high_watermark
    }

    /// `stays`: who was told that the others go elsewhere finds them there, and nobody else does.
    fn published(&mut self, messages: Vec<Message>, base_offset: u64, crashes: u16, state: State, stays: usize) {
        for (message, offset) in messages.into_iter().zip(base_offset..) {
            let (due_ms, priority) = (message.due_ms.unwrap_or(0), message.priority);
            let state = if offset < base_offset + stays as u64 { state } else { State::Dead };
            self.known.insert(offset, Known { value: message.value, priority, due_ms, deliveries: 0, crashes, state });
        }
    }

    /// `None` = the power went before there is one.
    fn producer(&mut self, id: usize) -> Option<ProducerKey> {
        while self.producers[id].is_none() {
            let init = TransactionAction::Init { timeout_ms: TRANSACTION_TIMEOUT_MS, check: None, current: None };
            let sent = self.rig.send_transaction(IDS[id], init);
            self.producers[id] = match transactional(&self.rig.answer_unless_cut(sent)?) {
                Err(ErrorCode::ConcurrentTransactions) => None,
                answer => Some(answer.expect("a producer")),
            };
        }
        self.until_heard(id).then_some(self.producers[id]?)
    }

    /// After a crash the last decision may have to be told again; until then nothing new begins. False = the power went.
    fn until_heard(&mut self, id: usize) -> bool {
        for _ in 0..1_000 {
            let sent = self.rig.send_transaction(IDS[id], TransactionAction::Describe);
            let Some(reply) = self.rig.answer_unless_cut(sent) else { return false };
            let is_told = match reply {
                Reply::Transaction(reply) => match *reply {
                    TransactionReply::Description(it) => {
                        matches!(it.listing.phase, TransactionPhase::Committing | TransactionPhase::Aborting)
                    }
                    other => panic!("{other:?}"),
                },
                reply => panic!("{reply:?}"),
            };
            if !is_told {
                return true;
            }
            self.rig.turns(5);
        }
        panic!("nobody hears of the decision");
    }

    /// Publishes in a transaction; after a crash once more, as it was.
    fn publish_in(mut self, id: usize) -> Model {
        let Some(producer) = self.producer(id) else { return self };
        let (messages, crashes) = (self.messages(), self.crashes);
        let identity = Identity {
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            sequence: self.open[id].0,
            flags: flags::QUEUE_HEADERS | flags::TRANSACTIONAL,
            ..Identity::plain(PartitionId(self.rig.queue_partition()))
        };
        let bytes = frame_as(identity, &messages);
        let sent = self.rig.send(&Request::Produce { frame: ringmain_wire::Frame::parse(&bytes).expect("a frame") });
        let answer = if self.crashes_by_chance && self.random(20) == 0 {
            let turns = self.random(20) as usize;
            self.rig.turns(turns);
            None
        } else {
            self.rig.answer_unless_cut(sent)
        };
        let reply = match answer {
            Some(reply) => reply,
            None => {
                self = self.crash();
                self.until_heard(id);
                self.rig.produce(&bytes)
            }
        };
        let Reply::Produced { base_offset, redirected, .. } = reply else { panic!("{reply:?}") };
        let stays = messages.len() - redirected as usize;
        self.open[id].0 += messages.len() as i32;
        self.open[id].1.extend((base_offset.0..).take(messages.len()));
        self.published(messages, base_offset.0, crashes, State::Pending, stays);
        self
    }

    /// Acknowledges some of what a connection has, in a transaction.
    fn stage(&mut self, id: usize) {
        let connection = 1 + self.random(3) as u32;
        let held = self.known.iter().filter(|(_, known)| known.state == State::InFlight { connection }).map(|(offset, _)| *offset);
        let held: Vec<u64> = held.collect();
        let chosen: Vec<u64> = held.into_iter().filter(|_| self.random(2) == 0).collect();
        if chosen.is_empty() {
            return;
        }
        let Some(producer) = self.producer(id) else { return };
        let sent = self.rig.send_stage(connection, 1, producer, &chosen, Verb::Ack);
        self.open[id].2.extend(&chosen);
        for offset in &chosen {
            self.known.get_mut(offset).expect("held").state = State::Staged { connection: Some(connection), id };
        }
        let first = chosen[0];
        self.unanswered.push((sent, chosen));
        if self.random(2) == 0 {
            self.answers();
            if self.crashes_by_chance {
                assert_eq!(self.rig.settle_one(connection, 1, first, Verb::Ack), (0, 1), "staged");
            }
        }
    }

    /// Ends a transaction; after a crash once more.
    fn end(mut self, id: usize) -> Model {
        self.answers();
        let Some(producer) = self.producer(id).filter(|_| self.unanswered.is_empty()) else { return self };
        let commit = self.random(2) == 0;
        let sent = self.rig.send_transaction(IDS[id], TransactionAction::End { producer, commit, renews: true });
        let answer = if self.crashes_by_chance && self.random(6) == 0 {
            let turns = self.random(30) as usize;
            self.rig.turns(turns);
            None
        } else {
            self.rig.answer_unless_cut(sent)
        };
        let next = match answer {
            Some(reply) => transactional(&reply),
            None => {
                self = self.crash();
                // Where it was decided before, it waits until everybody has heard; where the one before wasn't heard of, it is to be asked again.
                match self.rig.end(IDS[id], producer, commit) {
                    Err(ErrorCode::ConcurrentTransactions) => {
                        self.until_heard(id);
                        self.rig.end(IDS[id], producer, commit)
                    }
                    next => next,
                }
            }
        };
        self.producers[id] = Some(next.expect("decided"));
        self.decided(id, commit);
        self
    }

    fn decided(&mut self, id: usize, commit: bool) {
        let (_, pending, staged) = std::mem::take(&mut self.open[id]);
        self.ended += u64::from(!pending.is_empty() && !staged.is_empty());
        for offset in pending {
            let known = self.known.get_mut(&offset).expect("published");
            known.state = match known.state {
                State::Pending if commit => State::Ready,
                State::Pending | State::Dead if !commit => State::Void,
                // There was no room for it: it goes elsewhere.
                State::Dead => State::Dead,
                other => panic!("{offset} is {other:?}"),
            };
        }
        for offset in staged {
            let known = self.known.get_mut(&offset).expect("held");
            known.state = match known.state {
                State::Staged { id: of, .. } if of != id => known.state,
                State::Staged { .. } if commit => State::Done,
                State::Staged { connection: Some(connection), .. } => State::InFlight { connection },
                State::Staged { connection: None, .. } => State::Ready,
                other => other,
            };
        }
    }

    fn receive(&mut self) -> usize {
        let (connection, count) = (1 + self.random(3) as u32, 1 + self.random(5) as u32);
        let is_quiet = self.random(2) == 0;
        if is_quiet {
            self.answers();
            self.rig.turns(30);
        }
        let sent = self.rig.send_receive(connection, 1, count, 0);
        let Some(reply) = self.rig.answer_unless_cut(sent) else { return 0 };
        let got = received(&reply);
        let now_ms = self.rig.now.wall_ms;
        for got in &got {
            let (priorities, crashes) = (self.config.priorities, self.crashes);
            // Nothing that is ready for certain goes before it.
            let order = |offset: u64, known: &Known| (if priorities > 1 { 255 - known.priority } else { 0 }, offset);
            let pending = self.known.iter().find(|(_, known)| known.state == State::Pending);
            // Nothing behind the first record of an open transaction can be had.
            let stable = pending.map_or(u64::MAX, |(offset, _)| *offset);
            let first = self
                .known
                .range(..stable)
                .filter(|(_, known)| known.state == State::Ready && known.deliveries == 0 && known.due_ms == 0)
                // Every crash may have counted a delivery, as many as make it poison.
                .filter(|(_, known)| u32::from(self.crashes - known.crashes) < LIMIT)
                .map(|(offset, known)| order(*offset, known))
                .min();
            let known = self.known.get_mut(&got.offset).expect("never invented");
            assert_eq!(known.value, got.value, "offset {}", got.offset);
            assert!(matches!(known.state, State::Ready | State::Unsure), "offset {} is {:?}", got.offset, known.state);
            assert!(known.due_ms <= now_ms, "{} ms too soon", known.due_ms - now_ms);
            let (least, crashes) = (known.deliveries + 1, crashes - known.crashes);
            assert!((least..=least + crashes).contains(&got.deliveries), "{got:?}, {known:?}, {crashes} crashes");
            assert!(u32::from(got.deliveries) <= LIMIT, "{got:?}");
            if let Some(first) = first {
                assert!(order(got.offset, known) <= first || known.deliveries > 0, "{got:?} before {first:?}");
            }
            known.deliveries += 1;
            known.due_ms = 0;
            known.state = State::InFlight { connection };
        }
        got.len()
    }

    fn settle(&mut self) {
        let connection = 1 + self.random(3) as u32;
        let held: Vec<u64> =
            self.known.iter().filter(|(_, known)| known.state == State::InFlight { connection }).map(|(offset, _)| *offset).collect();
        let mut chosen = Vec::new();
        for offset in held {
            if self.random(2) == 0 {
                chosen.push(offset);
            }
        }
        if chosen.is_empty() {
            return;
        }
        let verb = match self.random(8) {
            0 | 1 => Verb::Requeue,
            2 => Verb::Reject,
            _ => Verb::Ack,
        };
        let settlements = chosen.iter().map(|offset| Settlement { first: *offset, count: 1, verb, delay_ms: 0 }).collect();
        let sent = self.rig.send_settle(connection, 1, settlements);
        for offset in &chosen {
            let known = self.known.get_mut(offset).expect("held");
            known.state = match verb {
                Verb::Ack => State::Done,
                Verb::Reject => State::Dead,
                _ => State::Ready,
            };
        }
        self.unanswered.push((sent, chosen));
        if verb == Verb::Requeue || self.random(2) == 0 {
            self.answers();
        }
    }

    fn answers(&mut self) {
        for (sent, offsets) in std::mem::take(&mut self.unanswered) {
            match self.rig.answer_unless_cut(sent) {
                Some(reply) => assert_eq!(settled(&reply), (offsets.len() as u32, 0)),
                None => self.unanswered.push((sent, offsets)),
            }
        }
    }

    fn hang_up(&mut self) {
        let connection = 1 + self.random(3) as u32;
        self.answers();
        if self.rig.disk.is_cut() {
            return;
        }
        self.rig.shard.cancel(0, connection, 0, self.rig.now);
        for known in self.known.values_mut() {
            if known.state == (State::InFlight { connection }) {
                known.state = State::Ready;
            }
            if let State::Staged { connection: Some(of), id } = known.state
                && of == connection
            {
                known.state = State::Staged { connection: None, id };
            }
        }
        self.rig.turns(30);
    }

    /// Of records that went from between others.
    fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes + self.rig.shard.log_counters().bytes_dropped
    }

    fn crash(mut self) -> Model {
        self.dropped_bytes = self.dropped_bytes();
        let was_cut = self.rig.disk.is_cut();
        self.cuts += u64::from(was_cut);
        let how = if was_cut { 1 + self.cuts % 2 } else { self.random(3) };
        if how == 0 {
            self.answers();
        }
        for (sent, offsets) in std::mem::take(&mut self.unanswered) {
            let is_answered = self.rig.answers.get(&sent).is_some_and(|reply| !matches!(reply, Reply::Failed(_)));
            if !is_answered {
                offsets.iter().for_each(|offset| self.known.get_mut(offset).expect("known").state = State::Unsure);
            }
        }
        for known in self.known.values_mut() {
            known.state = match known.state {
                State::InFlight { .. } => State::Ready,
                State::Staged { id, .. } => State::Staged { connection: None, id },
                other => other,
            };
        }
        let rig = match how {
            0 => {
                self.rig.stop();
                self.rig.kill()
            }
            1 => self.rig.kill(),
            _ => self.rig.power_cut(),
        };
        self.crashes += u16::from(how != 0);
        let mut model = Model { rig, ..self };
        model.take_maybe();
        model
    }

    /// What was published when the power went is there as a whole, or it isn't.
    fn take_maybe(&mut self) {
        let messages = std::mem::take(&mut self.maybe);
        if messages.is_empty() {
            return;
        }
        // Markers take offsets, too.
        let (base, end) = (self.maybe_base, self.end_offset());
        if self.config.dedup_window_ms.is_some() && messages.iter().any(|message| message.id.is_some()) && messages.len() == 1 {
            // Published again, as a publisher does who has had no answer: it is there once.
            let reply = self.rig.publish(&messages);
            assert_eq!(stored(&reply), (base, end > base));
        }
        let end = self.end_offset();
        let stored = if end == base { Vec::new() } else { messages };
        assert_eq!(end, base + stored.len() as u64, "half a batch, or something nobody has published");
        for (message, offset) in stored.into_iter().zip(base..) {
            let Message { value, priority, due_ms, .. } = message;
            // Nobody was told whether it goes elsewhere.
            let state = if self.config.overflow == Overflow::Redirect { State::Unsure } else { State::Ready };
            // It came before the crash, which may have counted a delivery.
            let (due_ms, crashes) = (due_ms.unwrap_or(0), self.crashes - 1);
            self.known.insert(offset, Known { value, priority, due_ms, deliveries: 0, crashes, state });
        }
    }

    fn step(mut self) -> Model {
        self.operations += 1;
        let id = self.random(2) as usize;
        match self.random(46) {
            0..=11 => self.publish(),
            12..=23 => drop(self.receive()),
            24..=33 => self.settle(),
            40..=41 => self = self.publish_in(id),
            42..=43 => self.stage(id),
            44..=45 => self = self.end(id),
            34 => self.hang_up(),
            35 if !self.rig.disk.is_cut() => {
                let partition = PartitionId(self.rig.queue_partition());
                let call = Request::Queue(QueueRequest { queue: QUEUE, partition, call: QueueCall::Describe }.into());
                let sent = self.rig.send(&call);
                self.rig.answer_unless_cut(sent);
            }
            36..=37 => {
                let us = 1_000 + self.random(9) * 1_000;
                self.rig.pass(us);
                self.rig.turns(3);
            }
            38 => {
                let turns = self.random(4) as usize;
                self.rig.turns(turns);
            }
            39 if self.crashes_by_chance && self.random(3) == 0 => return self.crash(),
            _ => {}
        }
        if self.rig.disk.is_cut() {
            return self.crash();
        }
        self
    }

    /// Everything that is left is delivered and acknowledged, or dead.
    fn finish(mut self) {
        self.answers();
        for (id, name) in IDS.iter().enumerate() {
            // Whoever takes the name over aborts what is open.
            self.rig.init(name);
            self.decided(id, false);
        }
        for connection in 1..=3 {
            self.rig.shard.cancel(0, connection, 0, self.rig.now);
        }
        for known in self.known.values_mut() {
            if matches!(known.state, State::InFlight { .. }) {
                known.state = State::Ready;
            }
        }
        for _ in 0..1_000 {
            self.rig.pass(20_000);
            self.rig.turns(30);
            let count = self.receive();
            self.answers();
            let held: Vec<(u32, u64)> = self
                .known
                .iter()
                .filter_map(|(offset, known)| match known.state {
                    State::InFlight { connection } => Some((connection, *offset)),
                    _ => None,
                })
                .collect();
            for (connection, offset) in held {
                assert_eq!(self.rig.settle_one(connection, 1, offset, Verb::Ack), (1, 0));
                self.known.get_mut(&offset).expect("held").state = State::Done;
            }
            let state = self.rig.queue_state();
            if count == 0 && state.ready + state.delayed + state.in_flight == 0 {
                break;
            }
        }
        let state = self.rig.queue_state();
        assert_eq!(state.ready + state.delayed + state.in_flight, 0, "{state:?}");
        assert_eq!(state.dropped, 0, "{state:?}");
        let messages = self.known.values().filter(|known| known.state != State::Void).count();
        assert_eq!(state.enqueued, messages as u64);
        let dead = self.rig.topic_records("dead");
        let places: BTreeSet<u64> = dead.iter().map(|it| place_of(&it.1)).collect();
        for (value, headers) in &dead {
            assert_eq!(self.known[&place_of(headers)].value, *value);
        }
        for (offset, known) in &self.known {
            let limit_reached = u32::from(known.deliveries + self.crashes - known.crashes) >= LIMIT;
            match known.state {
                State::Done => assert!(!places.contains(offset), "{offset} is done and dead"),
                State::Dead => assert!(places.contains(offset), "{offset} was rejected and isn't there"),
                State::Ready => assert!(limit_reached && places.contains(offset), "{offset} is lost: {known:?}"),
                State::Unsure => {}
                State::Void => assert!(!places.contains(offset), "{offset} was never published"),
                State::InFlight { .. } | State::Pending | State::Staged { .. } => panic!("{offset} is still {:?}", known.state),
            }
        }
    }
}

/// Random lives of queues, each with several crashes, compared with a naive model. `RINGMAIN_TEST_SEEDS=A..B` for others.
#[test]
fn queues_agree_with_a_naive_model() {
    let seeds = std::env::var("RINGMAIN_TEST_SEEDS").ok();
    let given = seeds.and_then(|text| text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))));
    let (from, below): (u64, u64) = given.unwrap_or((0, 4_200));
    let (mut operations, mut crashes, mut ended, mut dropped) = (0, 0u64, 0, 0u64);
    for seed in from..below {
        let outcome = std::panic::catch_unwind(|| {
            let mut model = Model::new(seed);
            for _ in 0..250 {
                model = model.step();
            }
            let counts = (model.operations, u64::from(model.crashes), model.ended, model.dropped_bytes());
            model.finish();
            counts
        });
        match outcome {
            Ok((more, cuts, ends, bytes)) => {
                (operations, crashes, ended, dropped) = (operations + more, crashes + cuts, ended + ends, dropped + bytes);
            }
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let is_enough = operations > 1_000_000 && crashes > 1_000 && ended > 1_000 && dropped > 1 << 20;
    println!("{crashes} crashes in {operations} operations, {ended} transactions moved something, {dropped} bytes went");
    assert!(given.is_some() || is_enough);
}

/// One history after the other, and each again and again: the power goes, or the process, at its first disk operation, at its second, and so
/// on to its last. `RINGMAIN_TEST_SEEDS=A..B` for others.
#[test]
fn queues_agree_with_the_model_after_a_crash_at_every_disk_operation() {
    let seeds = std::env::var("RINGMAIN_TEST_SEEDS").ok();
    let given = seeds.and_then(|text| text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))));
    let (from, below): (u64, u64) = given.unwrap_or((0, 60));
    let (mut points, mut dropped) = (0, 0);
    for seed in from..below {
        for at in 1.. {
            let outcome = std::panic::catch_unwind(|| {
                let mut model = Model::new(seed);
                model.crashes_by_chance = false;
                // Odd and even ones begin with the other kind of crash.
                model.cuts = (seed + at) % 2;
                let before = model.cuts;
                model.rig.disk.cut_after(at);
                for _ in 0..100 {
                    model = model.step();
                }
                let was_cut = model.cuts > before;
                if !was_cut {
                    model.rig.disk.cut_after(u64::MAX / 2);
                }
                let bytes = model.dropped_bytes();
                model.finish();
                (was_cut, bytes)
            });
            match outcome {
                Ok((true, bytes)) => (points, dropped) = (points + 1, dropped + bytes),
                Ok((false, _)) => break,
                Err(panic) => {
                    eprintln!("seed {seed}, cut at operation {at}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    println!("{points} crashes, {dropped} bytes went");
    assert!(given.is_some() || (points > 2_000 && dropped > 0), "{points} crashes, {dropped} bytes went");
}
