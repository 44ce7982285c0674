//! Whole shards on the simulated disk, sans-IO: requests in, answers out, time by hand.

mod transactions;

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use ringmain_wire::control::{AlterTopic, CreateTopic, Durability, TopicConfig, TopicInfo};
use ringmain_wire::frame::{self, Identity, frames};
use ringmain_wire::{Frame, RecordBatchBuilder, Records};

use super::catalog::{CatalogLimits, partition_config};
use super::id_table::IdTable;
use super::partition::RESERVED_AHEAD;
use super::producer_state::{Batch, EXPIRES_AFTER_MS, ProducerTable, Verdict};
use super::state_record::{OffsetPiece, PartitionPiece};
use super::*;
use crate::device::Disk;
use crate::device::sim::{Kind, SimDisk, SimOptions};
use crate::request::queue::Forward;
use crate::request::{Fetch, FetchData, Fetched};

const SEGMENT_BYTES: u32 = 256 << 10;
const TURN_US: u64 = 100;
const TURNS_MAX: usize = 20_000;

pub(super) fn shard_config() -> ShardConfig {
    let log =
        LogConfig { chunk_bytes: 32 << 10, tail_cache_bytes: 256 << 10, entropy: 7, ..LogConfig::new(ShardId(0), SEGMENT_BYTES, 1 << 20) };
    ShardConfig::new(ShardId(0), 1, log)
}

/// Connection of questions that the shard itself asks.
const SHARD: u32 = u32::MAX;

/// A shard, its disk, and what a core thread would do around them.
pub(super) struct Rig {
    pub(super) disk: SimDisk,
    pub(super) shard: Shard,
    pub(super) now: Now,
    config: ShardConfig,
    next_request: u64,
    pub(super) answers: HashMap<u64, Reply>,
    /// Requests in the order of their answers.
    answered: Vec<u64>,
    events: Vec<ShardEvent>,
    was_clean: bool,
    /// Questions of the shard on their way.
    mail: VecDeque<(u64, Request<'static>)>,
}

impl Rig {
    fn new() -> Rig {
        Rig::open(SimDisk::new(1, SimOptions::default()), shard_config(), start())
    }

    /// A rig with one topic `t` of one partition, which is number 1.
    fn with_topic(durability: Durability) -> Rig {
        let mut rig = Rig::new();
        rig.create("t", 1, TopicConfig { durability, ..TopicConfig::default() });
        rig
    }

    pub(super) fn open(mut disk: SimDisk, config: ShardConfig, now: Now) -> Rig {
        let arena = Arena::new(64 << 20);
        let Opened { mut shard, live_files, report } = Shard::open(config.clone(), arena, &mut disk, now).unwrap();
        let files = disk.list().unwrap();
        disk.set_pool(files.iter().map(|file| file.file).filter(|file| !live_files.contains(file)).collect());
        let catalog = shard.catalog().clone();
        shard.set_catalog(&catalog, now);
        Rig {
            disk,
            shard,
            now,
            config,
            next_request: 0,
            answers: HashMap::new(),
            answered: Vec::new(),
            events: Vec::new(),
            mail: VecDeque::new(),
            was_clean: report.was_clean,
        }
    }

    /// The process dies; what had completed stays.
    pub(super) fn kill(self) -> Rig {
        let Rig { disk, config, now, shard, .. } = self;
        drop(shard);
        disk.process_crash();
        disk.lock();
        Rig::open(disk, config, now)
    }

    /// The power fails.
    pub(super) fn power_cut(self) -> Rig {
        let Rig { disk, config, now, shard, .. } = self;
        drop(shard);
        disk.power_cut();
        Rig::open(disk, config, now)
    }

    pub(super) fn stop(&mut self) {
        self.shard.stop(self.now);
        self.turns_until(|rig| rig.shard.is_stopped());
    }

    /// One turn of a core thread.
    pub(super) fn turn(&mut self) {
        self.pass(TURN_US);
        for (ticket, request) in std::mem::take(&mut self.mail) {
            let origin = Origin { core: 0, connection: SHARD, generation: 0, request: ticket };
            if self.shard.handle(origin, &request, self.now).is_err() {
                self.mail.push_back((ticket, request));
            }
        }
        self.shard.pump(self.now);
        while let Some((token, operation)) = self.shard.poll_operation() {
            self.disk.submit(token, operation);
        }
        self.disk.kick();
        let mut completions = Vec::new();
        self.disk.poll(&mut completions);
        for completion in completions {
            self.shard.complete(completion, self.now);
        }
        self.collect();
    }

    /// Takes out answers and events; a catalog change is applied and acknowledged like the router would.
    fn collect(&mut self) {
        while let Some(event) = self.shard.poll_event() {
            match &event {
                ShardEvent::CatalogChanged { change_id, change } => {
                    self.shard.apply_catalog(change, self.now);
                    self.shard.catalog_acknowledged(*change_id);
                }
                ShardEvent::Ask { ticket, request: Request::Forward(forward) } => self.forward(*ticket, forward),
                ShardEvent::Ask { ticket, request: request @ (Request::QueueIdle { .. } | Request::ExpireQueue { .. }) } => {
                    let origin = Origin { core: 0, connection: SHARD, generation: 0, request: *ticket };
                    self.shard.handle(origin, request, self.now).expect("room");
                }
                // To itself, by way of a router: later.
                ShardEvent::Ask { ticket, request } => self.mail.push_back((*ticket, request.clone())),
            }
            self.events.push(event);
        }
        while let Some((origin, reply)) = self.shard.poll_reply() {
            if origin.connection == SHARD {
                self.shard.answered(origin.request, reply, self.now);
                continue;
            }
            let twice = self.answers.insert(origin.request, reply);
            assert!(twice.is_none(), "request {} answered twice: {twice:?}", origin.request);
            self.answered.push(origin.request);
        }
    }

    /// What a router does with a message that goes to another topic.
    fn forward(&mut self, ticket: u64, forward: &Forward) {
        let Some(topic) = self.shard.catalog().topic(&forward.topic) else {
            return self.shard.answered(ticket, Reply::Failed(ErrorCode::UnknownTopic.into()), self.now);
        };
        let place = &topic.partitions[forward.spread as usize % topic.partitions.len()];
        let catalog = self.shard.catalog();
        let from = catalog.partition(forward.from.0).expect("the queue's partition");
        let name = &catalog.topic_by_id(from.topic).expect("its topic").name;
        let forward = forward.addressed(PartitionId(place.partition), name, from.index);
        let origin = Origin { core: 0, connection: SHARD, generation: 0, request: ticket };
        if self.shard.handle(origin, &Request::Forward(forward.into()), self.now).is_err() {
            self.shard.answered(ticket, Reply::Failed(ErrorCode::Overloaded.into()), self.now);
        }
    }

    pub(super) fn pass(&mut self, us: u64) {
        let before_ms = self.now.monotonic_us / 1000;
        self.now.monotonic_us += us;
        self.now.wall_ms += (self.now.monotonic_us / 1000 - before_ms) as i64;
    }

    pub(super) fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    pub(super) fn turns_until(&mut self, done: impl Fn(&Rig) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("not done after {TURNS_MAX} turns");
    }

    /// Until nothing is under way.
    pub(super) fn settle(&mut self) {
        self.turns_until(|rig| rig.disk.in_flight() == 0 && rig.shard.log.flushed() == rig.shard.flushed && !rig.shard.has_backlog());
        self.turns(300);
    }

    fn origin(&mut self, connection: u32) -> Origin {
        self.next_request += 1;
        Origin { core: 0, connection, generation: 0, request: self.next_request }
    }

    /// Hands a request in, waiting out `Busy`; its number.
    pub(super) fn send_from(&mut self, connection: u32, request: &Request<'_>) -> u64 {
        let origin = self.origin(connection);
        for _ in 0..TURNS_MAX {
            if self.shard.handle(origin, request, self.now).is_ok() {
                self.collect();
                return origin.request;
            }
            self.turn();
        }
        panic!("busy for {TURNS_MAX} turns");
    }

    /// Hands a request in; `None` = busy.
    pub(super) fn try_send(&mut self, request: &Request<'_>) -> Option<u64> {
        let origin = self.origin(1);
        self.shard.handle(origin, request, self.now).ok()?;
        self.collect();
        Some(origin.request)
    }

    pub(super) fn send(&mut self, request: &Request<'_>) -> u64 {
        self.send_from(1, request)
    }

    pub(super) fn answer(&mut self, request: u64) -> Reply {
        self.turns_until(|rig| rig.answers.contains_key(&request));
        self.answers.remove(&request).unwrap()
    }

    /// `None` = the power went before.
    pub(super) fn answer_unless_cut(&mut self, request: u64) -> Option<Reply> {
        for _ in 0..TURNS_MAX {
            match self.answers.remove(&request) {
                // A fenced shard's word: it may be stored or not.
                Some(Reply::Failed(_)) if self.disk.is_cut() => return None,
                Some(reply) => return Some(reply),
                None if self.disk.is_cut() => return None,
                None => self.turn(),
            }
        }
        panic!("no answer after {TURNS_MAX} turns");
    }

    pub(super) fn ask(&mut self, request: &Request<'_>) -> Reply {
        let sent = self.send(request);
        self.answer(sent)
    }

    pub(super) fn is_answered(&self, request: u64) -> bool {
        self.answers.contains_key(&request)
    }

    pub(super) fn create(&mut self, name: &str, partition_count: u32, config: TopicConfig) -> TopicInfo {
        match self.ask(&Request::CreateTopic(CreateTopic { name: name.into(), partition_count, config })) {
            Reply::Topic(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    fn send_batch(&mut self, bytes: &[u8]) -> u64 {
        self.send(&Request::Produce { frame: Frame::parse(bytes).unwrap() })
    }

    pub(super) fn produce(&mut self, bytes: &[u8]) -> Reply {
        let sent = self.send_batch(bytes);
        self.answer(sent)
    }

    fn produce_parts(&mut self, header: ringmain_wire::FrameHeader, body: &[u8]) -> Reply {
        let sent = self.send(&Request::Produce { frame: Frame::of_parts(header, body) });
        self.answer(sent)
    }

    /// Appends and waits for the acknowledgement; the offset.
    fn store(&mut self, partition: u32, values: &[&str]) -> u64 {
        produced(&self.produce(&batch(partition, values))).0
    }

    fn send_fetch(&mut self, fetch: Fetch) -> u64 {
        self.send(&Request::Fetch(fetch))
    }

    fn fetch(&mut self, partition: u32, from: u64) -> (Fetched, Vec<(u64, String)>) {
        let reply = self.ask(&Request::Fetch(now_fetch(partition, from)));
        self.open_fetched(reply)
    }

    /// The head and the records (offset, value) of a fetch reply; its extents are released.
    fn open_fetched(&mut self, reply: Reply) -> (Fetched, Vec<(u64, String)>) {
        let Reply::Fetched { head, data } = reply else { panic!("{reply:?}") };
        let bytes: Vec<u8> = match &data {
            FetchData::Extents(extents) => {
                let bytes = extents.iter().flat_map(|extent| self.shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
                self.shard.release_extents(extents);
                bytes
            }
            FetchData::Blocks { blocks, .. } => blocks.iter().flat_map(|block| block.to_vec()).collect(),
            FetchData::Owned(bytes) => bytes.clone(),
        };
        assert_eq!(bytes.len(), head.bytes as usize);
        (head, values(&bytes))
    }

    /// Everything readable of a partition, from `from` on.
    pub(super) fn read_all(&mut self, partition: u32, from: u64) -> Vec<(u64, String)> {
        let (mut at, mut all) = (from, Vec::new());
        loop {
            let (head, records) = self.fetch(partition, at);
            all.extend(records.into_iter().filter(|(offset, _)| *offset >= at));
            if head.next_offset.0 == at {
                return all;
            }
            at = head.next_offset.0;
        }
    }

    fn list(&mut self, partition: u32, timestamp_ms: i64) -> (u64, i64, bool) {
        match self.ask(&Request::ListOffset { partition: PartitionId(partition), timestamp_ms, committed_only: false }) {
            Reply::Offset { offset, timestamp_ms, found } => (offset.0, timestamp_ms, found),
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, consumer: &str, partition: u32, offset: u64) -> Reply {
        self.ask(&Request::CommitOffset { consumer, partition: PartitionId(partition), offset: Offset(offset), metadata: "note" })
    }

    fn committed(&mut self, consumer: &str, partition: u32) -> Option<u64> {
        match self.ask(&Request::ReadOffset { consumer, partition: PartitionId(partition) }) {
            Reply::ConsumerOffset { offset, metadata } => {
                assert_eq!(metadata, if offset.is_some() { "note" } else { "" });
                offset.map(|offset| offset.0)
            }
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, partition: u32) -> (u64, u64) {
        let state = self.shard.partition_state(PartitionId(partition)).unwrap();
        (state.log_start, state.high_watermark)
    }

    /// Makes the log roll and everything before cold.
    pub(super) fn fill(&mut self, partition: u32, bytes: usize) {
        let value = "x".repeat(8 << 10);
        for _ in 0..bytes.div_ceil(8 << 10) {
            self.store(partition, &[&value]);
        }
    }

    /// What another start must come to: everything that replay rebuilds.
    pub(super) fn summary(&self) -> Summary {
        let shard = &self.shard;
        let partitions = shard.partitions.iter().map(|partition| {
            let producers = partition.producers.iter().flat_map(|table| table.in_order_of_use());
            PartitionSummary {
                id: partition.id.0,
                log_start: partition.log_start_logged.0,
                next_offset: partition.next_offset.0,
                reserved_end: partition.reserved_end_logged.0,
                producers: producers.map(|(id, state)| (id.0, state.epoch, state.last_append_ms, state.stored().to_vec())).collect(),
                message_ids: partition.message_ids.as_deref().map(message_ids::MessageIds::summary).unwrap_or_default(),
            }
        });
        Summary {
            partitions: partitions.collect(),
            topics: shard.catalog.topics().map(catalog::Topic::info).collect(),
            numbers: shard.catalog.next_numbers(),
            producer_ids_end: shard.producer_ids_end_logged,
            groups: shard.groups.summary(),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Summary {
    groups: Vec<group::GroupSummary>,
    partitions: Vec<PartitionSummary>,
    topics: Vec<TopicInfo>,
    numbers: (u32, u32),
    producer_ids_end: i64,
}

#[derive(Debug, PartialEq)]
struct PartitionSummary {
    id: u32,
    log_start: u64,
    next_offset: u64,
    reserved_end: u64,
    producers: Vec<(i64, u16, i64, Vec<producer_state::Stored>)>,
    message_ids: Vec<(Vec<u8>, u64, i64)>,
}

pub(super) fn start() -> Now {
    Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 }
}

fn batch(partition: u32, values: &[&str]) -> Vec<u8> {
    batch_of(Identity::plain(PartitionId(partition)), values)
}

/// Record times are 1,000 ms, 1,001 ms …
fn batch_of(identity: Identity, values: &[&str]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for (time, value) in (1_000..).zip(values) {
        builder.push(time, None, Some(value.as_bytes()), b"");
    }
    builder.finish(identity).to_vec()
}

fn idempotent(partition: u32, producer: i64, epoch: u16, sequence: i32, count: usize) -> Vec<u8> {
    let identity =
        Identity { producer_id: ProducerId(producer), producer_epoch: epoch, sequence, ..Identity::plain(PartitionId(partition)) };
    batch_of(identity, &vec!["v"; count])
}

fn now_fetch(partition: u32, from: u64) -> Fetch {
    Fetch { partition: PartitionId(partition), from: Offset(from), min_bytes: 0, max_bytes: 1 << 20, max_wait_ms: 0, committed_only: false }
}

fn long_fetch(partition: u32, from: u64, min_bytes: u32, max_wait_ms: u32) -> Fetch {
    Fetch { min_bytes, max_wait_ms, ..now_fetch(partition, from) }
}

fn values(bytes: &[u8]) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for frame in frames(bytes).map(Result::unwrap) {
        frame.verify_header().unwrap();
        frame.verify_body().unwrap();
        let records = Records::new(frame.body(), frame.header.producer.record_count).unwrap();
        for (record, offset) in records.map(Result::unwrap).zip(frame.base_offset().0..) {
            all.push((offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
        }
    }
    all
}

fn produced(reply: &Reply) -> (u64, bool) {
    match reply {
        Reply::Produced { base_offset, duplicate, .. } => (base_offset.0, *duplicate),
        other => panic!("{other:?}"),
    }
}

fn failure(reply: &Reply) -> ErrorCode {
    match reply {
        Reply::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

// ---- produce ------------------------------------------------------------------------------------------

#[test]
fn durable_batch_is_acknowledged_and_readable_only_when_flushed() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.disk.stall(true);
    let first = rig.send_batch(&batch(1, &["a", "b"]));
    let second = rig.send_batch(&batch(1, &["c"]));
    rig.turns(50);
    assert!(!rig.is_answered(first) && !rig.is_answered(second));
    assert_eq!(rig.state(1), (0, 0));
    assert!(rig.fetch(1, 0).1.is_empty());
    rig.disk.stall(false);
    assert_eq!(produced(&rig.answer(first)), (0, false));
    assert_eq!(produced(&rig.answer(second)), (2, false));
    assert_eq!(rig.state(1), (0, 3));
    assert_eq!(rig.read_all(1, 0), [(0, "a".into()), (1, "b".into()), (2, "c".into())]);
}

/// What is flushed is acknowledged and readable; what was appended meanwhile isn't.
#[test]
fn flush_of_one_group_says_nothing_of_the_next() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.settle();
    let first = rig.send_batch(&batch(1, &["a"]));
    rig.shard.pump(rig.now);
    while let Some((token, operation)) = rig.shard.poll_operation() {
        rig.disk.submit(token, operation);
    }
    rig.disk.kick();
    let second = rig.send_batch(&batch(1, &["b"]));
    let mut completions = Vec::new();
    rig.disk.settle(&mut completions);
    completions.into_iter().for_each(|completion| rig.shard.complete(completion, rig.now));
    rig.collect();
    assert!(rig.is_answered(first) && !rig.is_answered(second));
    assert_eq!(rig.state(1), (0, 1));
    assert_eq!(rig.fetch(1, 0).1, [(0, "a".into())]);
}

#[test]
fn acknowledgements_come_in_order_of_append_over_partitions() {
    let mut rig = Rig::new();
    rig.create("t", 3, TopicConfig::default());
    let mut sent = Vec::new();
    for i in 0..300 {
        sent.push(rig.send_batch(&batch(1 + i % 3, &["v"])));
        if i % 7 == 0 {
            rig.turn();
        }
    }
    rig.turns_until(|rig| sent.iter().all(|request| rig.answers.contains_key(request)));
    rig.answered.retain(|request| sent.contains(request));
    assert_eq!(rig.answered, sent);
    assert_eq!((1..=3).map(|partition| rig.state(partition).1).collect::<Vec<_>>(), [100, 100, 100]);
}

#[test]
fn append_time_of_an_acknowledgement_is_that_of_its_append() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.disk.stall(true);
    let mut expected = Vec::new();
    for _ in 0..4 {
        expected.push((rig.send_batch(&batch(1, &["v"])), rig.now.wall_ms));
        rig.turns(25);
    }
    rig.disk.stall(false);
    for (request, time_ms) in expected {
        assert!(matches!(rig.answer(request), Reply::Produced { append_time_ms, .. } if append_time_ms == time_ms));
    }
}

#[test]
fn memory_batch_waits_for_the_reservation_and_then_for_nothing() {
    let mut rig = Rig::with_topic(Durability::Memory);
    rig.disk.stall(true);
    let first = rig.send_batch(&batch(1, &["a"]));
    rig.turns(50);
    assert!(!rig.is_answered(first), "its offset isn't reserved yet");
    assert_eq!(rig.state(1), (0, 0));
    rig.disk.stall(false);
    rig.answer(first);
    rig.disk.stall(true);
    let second = rig.send_batch(&batch(1, &["b"]));
    assert!(rig.is_answered(second), "nothing to wait for");
    assert_eq!(rig.state(1), (0, 2));
    assert_eq!(rig.read_all(1, 0).len(), 2);
}

#[test]
fn written_batch_is_acknowledged_before_its_flush() {
    let mut rig = Rig::with_topic(Durability::Written);
    rig.store(1, &["first, waits for its reservation"]);
    rig.settle();
    let sent = rig.send_batch(&batch(1, &["a"]));
    assert!(!rig.is_answered(sent), "not written yet");
    assert_eq!(rig.state(1), (0, 1));
    rig.turns_until(|rig| rig.is_answered(sent));
    assert!(rig.shard.written > rig.shard.flushed, "written {} flushed {}", rig.shard.written, rig.shard.flushed);
    assert_eq!(rig.state(1), (0, 2));
}

#[test]
fn unsuitable_batches_get_typed_errors() {
    let mut rig = Rig::new();
    rig.create("t", 1, TopicConfig { max_message_bytes: 1024, ..TopicConfig::default() });
    assert_eq!(failure(&rig.produce(&batch(2, &["a"]))), ErrorCode::UnknownPartition);
    assert_eq!(failure(&rig.produce(&batch(0, &["a"]))), ErrorCode::UnknownPartition);
    let exact = batch(1, &["x".repeat(1024 - batch(1, &[""]).len()).as_str()]);
    assert_eq!(exact.len(), 1024);
    assert_eq!(produced(&rig.produce(&exact)), (0, false));
    assert_eq!(failure(&rig.produce(&batch(1, &["x".repeat(1024).as_str()]))), ErrorCode::MessageTooLarge);
    assert_eq!(rig.state(1), (0, 1));
}

#[test]
fn batch_larger_than_a_segment_takes_is_refused() {
    let mut rig = Rig::new();
    rig.create("t", 1, TopicConfig { max_message_bytes: 1 << 20, ..TopicConfig::default() });
    assert_eq!(failure(&rig.produce(&batch(1, &["x".repeat(SEGMENT_BYTES as usize).as_str()]))), ErrorCode::MessageTooLarge);
}

// ---- idempotence --------------------------------------------------------------------------------------

/// `history`: (epoch, sequence, count) accepted so far. What comes of one more.
fn check_sequence(history: &[(u16, i32, u32)], next: (u16, i32, u32), expected: Result<Verdict, ErrorCode>) {
    let mut table = ProducerTable::default();
    let batch = |(epoch, first_sequence, record_count)| Batch { producer_id: ProducerId(4), epoch, first_sequence, record_count };
    let mut offset = 0;
    for stored in history {
        table.record(batch(*stored), Offset(offset), 0, 10);
        offset += u64::from(stored.2);
    }
    assert_eq!(table.judge(batch(next), 0), expected, "{history:?} then {next:?}");
}

#[test]
fn sequences_are_judged_as_kafka_does() {
    let six: Vec<(u16, i32, u32)> = (0..6).map(|i| (0, i * 10, 10)).collect();
    check_sequence(&[], (0, 0, 1), Ok(Verdict::Accept));
    check_sequence(&[], (0, 1, 1), Err(ErrorCode::UnknownProducer));
    check_sequence(&[], (0, -1, 1), Err(ErrorCode::InvalidBatch));
    check_sequence(&six, (0, 60, 5), Ok(Verdict::Accept));
    check_sequence(&six, (0, 61, 5), Err(ErrorCode::OutOfOrderSequence));
    check_sequence(&six, (0, 50, 10), Ok(Verdict::Duplicate(Offset(50))));
    check_sequence(&six, (0, 10, 10), Ok(Verdict::Duplicate(Offset(10))));
    check_sequence(&six, (0, 0, 10), Err(ErrorCode::DuplicateSequence));
    check_sequence(&six, (0, 50, 9), Err(ErrorCode::OutOfOrderSequence));
    check_sequence(&six, (0, 55, 5), Err(ErrorCode::OutOfOrderSequence));
    check_sequence(&[(3, 0, 1)], (2, 1, 1), Err(ErrorCode::StaleProducerEpoch));
    check_sequence(&[(3, 0, 1)], (4, 0, 1), Ok(Verdict::Accept));
    check_sequence(&[(3, 0, 1)], (4, 1, 1), Err(ErrorCode::OutOfOrderSequence));
    check_sequence(&[(3, 7, 1), (4, 0, 1)], (4, 1, 1), Ok(Verdict::Accept));
    check_sequence(&[(0, i32::MAX - 1, 2)], (0, 0, 1), Ok(Verdict::Accept));
    check_sequence(&[(0, i32::MAX - 1, 4)], (0, 2, 1), Ok(Verdict::Accept));
    check_sequence(&[(0, i32::MAX - 1, 4)], (0, i32::MAX - 1, 4), Ok(Verdict::Duplicate(Offset(0))));
    check_sequence(&[(0, 5, 1)], (0, i32::MAX, 1), Err(ErrorCode::DuplicateSequence));
}

#[test]
fn idle_producer_is_forgotten_and_so_is_the_least_recently_used() {
    let mut table = ProducerTable::default();
    let batch = |producer, first_sequence| Batch { producer_id: ProducerId(producer), epoch: 0, first_sequence, record_count: 1 };
    for (time_ms, producer) in [(0, 1), (1, 2), (2, 3)] {
        table.record(batch(producer, 0), Offset(0), time_ms, 3);
    }
    table.record(batch(1, 1), Offset(3), 3, 3);
    table.record(batch(4, 0), Offset(4), 4, 3);
    assert_eq!(table.judge(batch(2, 1), 4), Err(ErrorCode::UnknownProducer), "the least recently used");
    assert_eq!(table.judge(batch(1, 2), 4), Ok(Verdict::Accept));
    assert_eq!(table.judge(batch(3, 1), 2 + EXPIRES_AFTER_MS), Ok(Verdict::Accept));
    assert_eq!(table.judge(batch(3, 1), 3 + EXPIRES_AFTER_MS), Err(ErrorCode::UnknownProducer));
    assert_eq!(table.judge(batch(3, 0), 3 + EXPIRES_AFTER_MS), Ok(Verdict::Accept), "a new life");
    assert_eq!(table.expire(3 + EXPIRES_AFTER_MS), 1);
    assert_eq!(table.len(), 2);
}

#[test]
fn duplicate_waits_until_its_original_is_durable() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.disk.stall(true);
    let original = rig.send_batch(&idempotent(1, 9, 0, 0, 3));
    let duplicate = rig.send_batch(&idempotent(1, 9, 0, 0, 3));
    rig.turns(50);
    assert!(!rig.is_answered(duplicate), "the original may still be lost");
    rig.disk.stall(false);
    assert_eq!(produced(&rig.answer(original)), (0, false));
    assert_eq!(produced(&rig.answer(duplicate)), (0, true));
    rig.disk.stall(true);
    let late = rig.send_batch(&idempotent(1, 9, 0, 0, 3));
    assert_eq!(produced(&rig.answers.remove(&late).expect("answered at once")), (0, true));
    assert_eq!(rig.state(1), (0, 3));
}

#[test]
fn refused_batch_changes_nothing() {
    let mut rig = Rig::with_topic(Durability::Durable);
    assert_eq!(failure(&rig.produce(&idempotent(1, 9, 0, 5, 1))), ErrorCode::UnknownProducer);
    assert_eq!(produced(&rig.produce(&idempotent(1, 9, 0, 0, 1))), (0, false));
    assert_eq!(failure(&rig.produce(&idempotent(1, 9, 0, 2, 1))), ErrorCode::OutOfOrderSequence);
    assert_eq!(produced(&rig.produce(&idempotent(1, 9, 0, 1, 1))), (1, false));
    assert_eq!(rig.state(1), (0, 2));
}

#[test]
fn producers_beyond_the_shards_memory_are_refused_or_replace_older_ones() {
    let mut config = shard_config();
    config.producers_max = 2;
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("t", 2, TopicConfig::default());
    for producer in [1, 2, 3] {
        rig.produce(&idempotent(1, producer, 0, 0, 1));
    }
    assert_eq!(rig.shard.counters().producers, 2);
    assert_eq!(failure(&rig.produce(&idempotent(1, 1, 0, 1, 1))), ErrorCode::UnknownProducer, "producer 1 made room for 3");
    assert_eq!(failure(&rig.produce(&idempotent(2, 7, 0, 0, 1))), ErrorCode::Overloaded, "nobody to replace in this partition");
}

#[test]
fn producer_ids_are_never_given_twice_whatever_happens() {
    let mut rig = Rig::new();
    let mut last = -1;
    for round in 0..3 {
        for _ in 0..700 {
            let Reply::Producer { producer_id, producer_epoch: 0 } = rig.ask(&Request::InitProducer) else { panic!("no grant") };
            assert!(producer_id.0 > last, "round {round}: {producer_id} after {last}");
            last = producer_id.0;
        }
        rig = rig.kill();
    }
}

#[test]
fn producer_ids_wait_for_their_durable_block() {
    let mut rig = Rig::new();
    rig.disk.stall(true);
    let sent: Vec<u64> = (0..3).map(|_| rig.send(&Request::InitProducer)).collect();
    rig.turns(50);
    assert!(sent.iter().all(|request| !rig.is_answered(*request)));
    rig.disk.stall(false);
    let ids = sent.iter().map(|request| match rig.answer(*request) {
        Reply::Producer { producer_id, .. } => producer_id.0,
        other => panic!("{other:?}"),
    });
    assert_eq!(ids.collect::<Vec<_>>(), [0, 1, 2]);
}

// ---- fetch --------------------------------------------------------------------------------------------

#[test]
fn fetch_outside_the_partition_is_out_of_range() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["a", "b"]);
    assert_eq!(failure(&rig.ask(&Request::Fetch(now_fetch(1, 3)))), ErrorCode::OffsetOutOfRange);
    assert_eq!(failure(&rig.ask(&Request::Fetch(now_fetch(9, 0)))), ErrorCode::UnknownPartition);
    let (head, records) = rig.fetch(1, 2);
    assert_eq!((head.high_watermark.0, head.next_offset.0, head.log_start.0, records.len()), (2, 2, 0, 0));
}

#[test]
fn waiting_fetch_is_answered_by_the_flush_that_brings_records() {
    let mut rig = Rig::with_topic(Durability::Durable);
    let waiting = rig.send_fetch(long_fetch(1, 0, 1, 60_000));
    rig.turns(50);
    assert!(!rig.is_answered(waiting));
    rig.disk.stall(true);
    rig.send_batch(&batch(1, &["a"]));
    rig.turns(50);
    assert!(!rig.is_answered(waiting), "not durable, not readable");
    rig.disk.stall(false);
    let reply = rig.answer(waiting);
    assert_eq!(rig.open_fetched(reply).1, [(0, "a".into())]);
    assert_eq!(rig.shard.counters().waiting_fetches, 0);
}

#[test]
fn fetch_that_finds_a_batch_on_its_way_is_answered_when_it_arrives() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.disk.stall(true);
    rig.send_batch(&batch(1, &["a"]));
    let waiting = rig.send_fetch(long_fetch(1, 0, 1, 60_000));
    rig.turns(50);
    assert!(!rig.is_answered(waiting));
    rig.disk.stall(false);
    let reply = rig.answer(waiting);
    assert_eq!(rig.open_fetched(reply).1.len(), 1);
}

#[test]
fn waiting_fetch_is_answered_at_its_deadline_with_what_there_is() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["a"]);
    let waiting = rig.send_fetch(long_fetch(1, 0, 1 << 19, 50));
    rig.turns(100);
    assert!(!rig.is_answered(waiting), "after 10 of 50 ms");
    let deadline_us = rig.shard.next_deadline_us().unwrap();
    assert!(deadline_us <= rig.now.monotonic_us + 40_000, "the core thread is woken in time");
    rig.turns(500);
    let reply = rig.answer(waiting);
    assert_eq!(rig.open_fetched(reply).1.len(), 1);
    let empty = rig.send_fetch(long_fetch(1, 1, 1, 50));
    rig.turns(600);
    let reply = rig.answer(empty);
    assert_eq!(rig.open_fetched(reply).1.len(), 0);
}

#[test]
fn waiting_fetch_waits_for_its_least_bytes() {
    for durability in [Durability::Durable, Durability::Memory] {
        let mut rig = Rig::with_topic(durability);
        rig.store(1, &["start"]);
        let frame_bytes = batch(1, &["v"]).len().next_multiple_of(8) as u32;
        let waiting = rig.send_fetch(long_fetch(1, 1, 3 * frame_bytes, 60_000));
        for stored in 1..=3 {
            rig.store(1, &["v"]);
            rig.turns(20);
            assert_eq!(rig.is_answered(waiting), stored == 3, "{durability}: after {stored} of 3");
        }
        let reply = rig.answer(waiting);
        assert_eq!(rig.open_fetched(reply).1.len(), 3);
    }
}

#[test]
fn waiting_fetches_are_bounded_and_go_with_their_connection() {
    let mut config = shard_config();
    config.waiting_fetches_max = 3;
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("t", 2, TopicConfig::default());
    let long = |partition| Request::Fetch(long_fetch(partition, 0, 1, 60_000));
    let mine: Vec<u64> = vec![rig.send_from(7, &long(1)), rig.send_from(7, &long(2))];
    let other = rig.send_from(8, &long(1));
    let refused = rig.send_from(8, &long(1));
    assert_eq!(failure(&rig.answer(refused)), ErrorCode::Overloaded);
    rig.shard.cancel(0, 7, 1, rig.now);
    assert_eq!(rig.shard.counters().waiting_fetches, 3, "another generation's");
    rig.shard.cancel(0, 7, 0, rig.now);
    assert_eq!(rig.shard.counters().waiting_fetches, 1);
    rig.store(1, &["a"]);
    rig.answer(other);
    rig.store(2, &["a"]);
    rig.turns(100);
    assert!(mine.iter().all(|request| !rig.is_answered(*request)));
}

#[test]
fn fetch_returns_no_more_than_asked_but_one_run() {
    let mut rig = Rig::with_topic(Durability::Durable);
    for i in 0..20 {
        rig.store(1, &[&format!("{i}")]);
    }
    let reply = rig.ask(&Request::Fetch(Fetch { max_bytes: 1, ..now_fetch(1, 5) }));
    let (head, records) = rig.open_fetched(reply);
    assert_eq!(records, [(5, "5".into())]);
    assert_eq!(head.next_offset.0, 6);
    assert_eq!(rig.read_all(1, 0).len(), 20);
}

#[test]
fn cold_records_are_the_same_as_hot_ones_and_verified() {
    let mut rig = Rig::with_topic(Durability::Durable);
    for i in 0..50 {
        rig.store(1, &[&format!("value {i}")]);
    }
    let hot = rig.read_all(1, 0);
    assert_eq!(hot.len(), 50);
    rig.fill(1, 600 << 10);
    let before = rig.shard.counters().fetches_cold;
    assert_eq!(rig.read_all(1, 0)[..50], hot[..]);
    assert!(rig.shard.counters().fetches_cold > before, "it was cold");
}

/// A reply's data comes either from memory or from the device; the reader sees no seam.
#[test]
fn fetch_across_the_edge_of_the_tail_cache_misses_nothing() {
    let mut rig = Rig::with_topic(Durability::Durable);
    for i in 0..1500 {
        rig.store(1, &[&format!("{i:0300}")]);
    }
    let (mut at, mut seen, mut kinds) = (0, Vec::new(), Vec::new());
    while at < 1500 {
        let reply = rig.ask(&Request::Fetch(Fetch { max_bytes: 1 << 20, ..now_fetch(1, at) }));
        let Reply::Fetched { data, .. } = &reply else { panic!("{reply:?}") };
        kinds.push(matches!(data, FetchData::Blocks { .. }));
        let (head, records) = rig.open_fetched(reply);
        seen.extend(records.into_iter().filter(|(offset, _)| *offset >= at).map(|(offset, _)| offset));
        assert!(head.next_offset.0 > at);
        at = head.next_offset.0;
    }
    assert_eq!(seen, (0..1500).collect::<Vec<_>>());
    assert!(kinds.first() == Some(&true) && kinds.last() == Some(&false), "cold, then hot: {kinds:?}");
}

#[test]
fn evicted_extent_is_read_again() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["a"]);
    let Reply::Fetched { data: FetchData::Extents(extents), .. } = rig.ask(&Request::Fetch(now_fetch(1, 0))) else { panic!("cold") };
    rig.fill(1, 600 << 10);
    assert!(rig.shard.hot_bytes(extents[0]).is_none());
    rig.shard.read_extent(extents[0], 77);
    for _ in 0..TURNS_MAX {
        rig.turn();
        if let Some((ticket, result)) = rig.shard.poll_read() {
            assert_eq!(ticket, 77);
            let bytes: Vec<u8> = result.unwrap().iter().flat_map(|block| block.to_vec()).collect();
            assert_eq!(values(&bytes), [(0, "a".into())]);
            rig.shard.release_extents(&extents);
            return;
        }
    }
    panic!("no result");
}

#[test]
fn damaged_record_is_reported_with_its_place_and_never_served() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["needle in a log"]);
    let Reply::Fetched { data: FetchData::Extents(extents), .. } = rig.ask(&Request::Fetch(now_fetch(1, 0))) else { panic!("cold") };
    rig.shard.release_extents(&extents);
    rig.fill(1, 600 << 10);
    let mut damaged = 0;
    for file in rig.disk.list().unwrap() {
        let mut bytes = vec![0; file.written_bytes as usize];
        rig.disk.peek(file.file, 0, &mut bytes);
        if let Some(at) = bytes.windows(6).position(|window| window == b"needle") {
            rig.disk.rot(file.file, at as u64, 3);
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let reply = rig.ask(&Request::Fetch(now_fetch(1, 0)));
    assert_eq!(failure(&reply), ErrorCode::CorruptLog);
    let Reply::Failed(Failure { message, .. }) = reply else { unreachable!() };
    assert!(message.contains("segment 1") && message.contains(".seg"), "{message}");
}

#[test]
fn offset_by_time_is_exact_to_the_record() {
    for cold in [false, true] {
        let mut rig = Rig::with_topic(Durability::Durable);
        let timed = |times: &[i64]| {
            let mut builder = RecordBatchBuilder::new();
            times.iter().for_each(|time| builder.push(*time, None, Some(b"v"), b""));
            builder.finish(Identity::plain(PartitionId(1))).to_vec()
        };
        for times in [&[100, 200, 150][..], &[160, 300], &[50], &[400, 500]] {
            rig.produce(&timed(times));
        }
        if cold {
            // Records of time 1,000: younger than all of these.
            rig.fill(1, 600 << 10);
        }
        let found = |offset, time| (offset, time, true);
        assert_eq!(rig.list(1, 0), found(0, 100));
        assert_eq!(rig.list(1, 101), found(1, 200));
        assert_eq!(rig.list(1, 200), found(1, 200));
        assert_eq!(rig.list(1, 201), found(4, 300));
        assert_eq!(rig.list(1, 301), found(6, 400));
        assert_eq!(rig.list(1, 500), found(7, 500));
        let end = rig.state(1).1;
        assert_eq!(rig.list(1, 1001), (end, -1, false));
        assert_eq!(rig.list(1, control::LATEST), (end, -1, true));
        assert_eq!(rig.list(1, control::EARLIEST), (0, -1, true));
        assert_eq!(rig.list(1, 999).2, cold);
    }
}

// ---- consumers' offsets -------------------------------------------------------------------------------

#[test]
fn committed_offset_is_answered_and_readable_only_when_durable() {
    let mut rig = Rig::with_topic(Durability::Durable);
    assert_eq!(rig.committed("c", 1), None);
    assert!(matches!(rig.commit("c", 1, 5), Reply::Committed));
    rig.disk.stall(true);
    let commit = Request::CommitOffset { consumer: "c", partition: PartitionId(1), offset: Offset(6), metadata: "note" };
    let sent = rig.send(&commit);
    rig.turns(50);
    assert!(!rig.is_answered(sent));
    assert_eq!(rig.committed("c", 1), Some(5));
    rig.disk.stall(false);
    assert!(matches!(rig.answer(sent), Reply::Committed));
    assert_eq!(rig.committed("c", 1), Some(6));
    let mut rig = rig.power_cut();
    assert_eq!((rig.committed("c", 1), rig.committed("d", 1)), (Some(6), None));
}

#[test]
fn unsuitable_commits_get_typed_errors() {
    let mut config = shard_config();
    config.groups.bytes_max = 13_000;
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("t", 1, TopicConfig::default());
    let ask = |rig: &mut Rig, consumer: &str, partition, metadata: &str| {
        let request = Request::CommitOffset { consumer, partition: PartitionId(partition), offset: Offset(0), metadata };
        match rig.ask(&request) {
            Reply::Failed(failure) => Some(failure.code),
            _ => None,
        }
    };
    assert_eq!(ask(&mut rig, "", 1, ""), Some(ErrorCode::InvalidArgument));
    assert_eq!(ask(&mut rig, &"c".repeat(256), 1, ""), Some(ErrorCode::InvalidArgument));
    assert_eq!(ask(&mut rig, &"c".repeat(255), 1, ""), None);
    assert_eq!(ask(&mut rig, "c", 1, &"m".repeat(4097)), Some(ErrorCode::InvalidArgument));
    assert_eq!(ask(&mut rig, "c", 1, &"m".repeat(4096)), None);
    assert_eq!(ask(&mut rig, "c", 2, ""), Some(ErrorCode::UnknownPartition));
    assert_eq!(ask(&mut rig, "d", 1, &"m".repeat(4096)), None);
    assert_eq!(ask(&mut rig, "e", 1, &"m".repeat(4096)), Some(ErrorCode::LimitExceeded));
    assert_eq!(failure(&rig.ask(&Request::ReadOffset { consumer: "", partition: PartitionId(1) })), ErrorCode::InvalidArgument);
    let counted = rig.shard.groups.counted_bytes();
    assert_eq!(rig.shard.counters().group_bytes, counted as u64);
    rig.ask(&Request::DeleteTopic { name: "t" });
    let counted_after = rig.shard.groups.counted_bytes();
    assert_eq!(rig.shard.counters().group_bytes, counted_after as u64);
    assert!(counted_after < counted - 8000, "{counted_after} of {counted} bytes stay");
}

// ---- catalog ------------------------------------------------------------------------------------------

fn limits() -> CatalogLimits {
    CatalogLimits { partitions_max: 10, shard_count: 3 }
}

fn create(name: &str, partition_count: u32) -> CreateTopic {
    CreateTopic { name: name.into(), partition_count, config: TopicConfig::default() }
}

fn alter(name: &str) -> AlterTopic {
    AlterTopic::nothing(name)
}

#[test]
fn catalog_refuses_what_breaks_its_rules() {
    let catalog = {
        let mut catalog = Catalog::default();
        let change = catalog.decide_create(&create("taken", 4), limits()).unwrap();
        catalog.apply(&change);
        catalog
    };
    let refused = |create: CreateTopic| catalog.decide_create(&create, limits()).unwrap_err().code;
    for name in ["", ".", "..", "a b", "ä", "a/b", "x\n", &"x".repeat(250)] {
        assert_eq!(refused(create(name, 1)), ErrorCode::InvalidTopic, "{name:?}");
    }
    for name in ["a", "...", "A-z_0.9", &"x".repeat(249)] {
        assert!(catalog.decide_create(&create(name, 1), limits()).is_ok(), "{name:?}");
    }
    assert_eq!(refused(create("taken", 1)), ErrorCode::TopicExists);
    assert_eq!(refused(create("t", 0)), ErrorCode::InvalidArgument);
    assert_eq!(refused(create("t", 100_001)), ErrorCode::InvalidArgument);
    assert_eq!(refused(create("t", 7)), ErrorCode::LimitExceeded);
    assert!(catalog.decide_create(&create("t", 6), limits()).is_ok());
    for bytes in [0, 1023, (64 << 20) + 1] {
        let config = TopicConfig { max_message_bytes: bytes, ..TopicConfig::default() };
        assert_eq!(refused(CreateTopic { config, ..create("t", 1) }), ErrorCode::InvalidArgument);
    }
    let config = TopicConfig { retention_ms: Some(u64::MAX), ..TopicConfig::default() };
    assert_eq!(refused(CreateTopic { config, ..create("t", 1) }), ErrorCode::InvalidArgument);
    let altered = |alter: AlterTopic| catalog.decide_alter(&alter, limits()).unwrap_err().code;
    assert_eq!(altered(alter("missing")), ErrorCode::UnknownTopic);
    assert_eq!(altered(AlterTopic { partition_count: Some(3), ..alter("taken") }), ErrorCode::InvalidArgument);
    assert_eq!(altered(AlterTopic { partition_count: Some(11), ..alter("taken") }), ErrorCode::LimitExceeded);
    assert_eq!(altered(AlterTopic { max_message_bytes: Some(1), ..alter("taken") }), ErrorCode::InvalidArgument);
    assert_eq!(catalog.decide_delete("missing").unwrap_err().code, ErrorCode::UnknownTopic);
}

#[test]
fn catalog_spreads_partitions_and_never_uses_a_number_again() {
    let mut catalog = Catalog::default();
    let apply = |catalog: &mut Catalog, change: Result<CatalogChange, Failure>| {
        let change = change.unwrap();
        catalog.apply(&change);
        catalog.apply(&change);
        change
    };
    let change = catalog.decide_create(&create("a", 4), limits());
    apply(&mut catalog, change);
    let places = |catalog: &Catalog, name| {
        catalog.topic(name).unwrap().partitions.iter().map(|place| (place.partition, place.shard)).collect::<Vec<_>>()
    };
    assert_eq!(places(&catalog, "a"), [(1, 0), (2, 1), (3, 2), (4, 0)]);
    let change = catalog.decide_create(&create("b", 2), limits());
    apply(&mut catalog, change);
    assert_eq!(places(&catalog, "b"), [(5, 1), (6, 2)]);
    let change = catalog.decide_delete("a");
    let change = apply(&mut catalog, change);
    assert!(matches!(change, CatalogChange::TopicDeleted { topic: 1, partitions } if partitions.len() == 4));
    assert_eq!((catalog.topic_count(), catalog.partition_count()), (1, 2));
    assert!(catalog.partition(PartitionId(1)).is_none() && catalog.topic("a").is_none());
    let change = catalog.decide_create(&create("a", 1), limits());
    apply(&mut catalog, change);
    assert_eq!(places(&catalog, "a"), [(7, 0)]);
    assert_eq!(catalog.topic("a").unwrap().topic.0, 3);
    let more = AlterTopic { partition_count: Some(3), durability: Some(Durability::Memory), ..alter("b") };
    let change = catalog.decide_alter(&more, limits());
    apply(&mut catalog, change);
    assert_eq!(places(&catalog, "b"), [(5, 1), (6, 2), (8, 0)]);
    assert_eq!(catalog.partition_config(PartitionId(8)).unwrap().durability, Durability::Memory);
    assert_eq!(catalog.partition(PartitionId(8)).unwrap().index, 2);
    assert_eq!(catalog.partition_config(PartitionId(8)), Some(partition_config(&catalog.topic("b").unwrap().config)));
}

#[test]
fn topic_is_answered_when_durable_and_known_everywhere() {
    let mut rig = Rig::new();
    rig.disk.stall(true);
    let sent = rig.send(&Request::CreateTopic(create("t", 2)));
    rig.turns(50);
    assert!(!rig.is_answered(sent) && rig.events.is_empty());
    assert_eq!(failure(&rig.produce(&batch(1, &["early"]))), ErrorCode::UnknownPartition);
    let second = rig.send(&Request::CreateTopic(create("t", 2)));
    assert_eq!(failure(&rig.answer(second)), ErrorCode::TopicExists, "the first is on its way");
    rig.disk.stall(false);
    rig.turns_until(|rig| rig.shard.flushed > 0 && rig.is_answered(sent));
    assert!(matches!(&rig.events[..], [ShardEvent::CatalogChanged { change: CatalogChange::TopicCreated { .. }, .. }]));
    assert_eq!(rig.store(2, &["a"]), 0);
}

#[test]
fn topic_answer_waits_for_every_core() {
    let mut rig = Rig::new();
    let origin = rig.origin(1);
    rig.shard.handle(origin, &Request::CreateTopic(create("t", 1)), rig.now).unwrap();
    let event = loop {
        rig.pass(TURN_US);
        rig.shard.pump(rig.now);
        while let Some((token, operation)) = rig.shard.poll_operation() {
            rig.disk.submit(token, operation);
        }
        rig.disk.kick();
        let mut completions = Vec::new();
        rig.disk.poll(&mut completions);
        completions.into_iter().for_each(|completion| rig.shard.complete(completion, rig.now));
        if let Some(event) = rig.shard.poll_event() {
            break event;
        }
    };
    assert!(rig.shard.poll_reply().is_none());
    let ShardEvent::CatalogChanged { change_id, .. } = event else { panic!("{event:?}") };
    rig.shard.catalog_acknowledged(change_id + 1);
    assert!(rig.shard.poll_reply().is_none());
    rig.shard.catalog_acknowledged(change_id);
    assert!(matches!(rig.shard.poll_reply(), Some((answered, Reply::Topic(_))) if answered == origin));
}

#[test]
fn deleted_topic_takes_its_partitions_and_waits_along() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["a"]);
    let waiting = rig.send_fetch(long_fetch(1, 1, 1, 60_000));
    assert!(matches!(rig.ask(&Request::DeleteTopic { name: "t" }), Reply::Deleted));
    assert_eq!(failure(&rig.answer(waiting)), ErrorCode::UnknownPartition);
    assert_eq!(failure(&rig.produce(&batch(1, &["a"]))), ErrorCode::UnknownPartition);
    assert_eq!(failure(&rig.ask(&Request::DeleteTopic { name: "t" })), ErrorCode::UnknownTopic);
    rig.create("t", 1, TopicConfig::default());
    assert_eq!(rig.store(2, &["new"]), 0);
    let mut rig = rig.kill();
    assert_eq!(failure(&rig.ask(&Request::Fetch(now_fetch(1, 0)))), ErrorCode::UnknownPartition);
    assert_eq!(rig.read_all(2, 0), [(0, "new".into())]);
}

#[test]
fn ten_thousand_topics_are_made_in_no_time_and_found_again() {
    let mut rig = Rig::new();
    let began = std::time::Instant::now();
    for i in 0..10_000 {
        rig.send(&Request::CreateTopic(create(&format!("topic-{i}"), 1)));
        if i % 100 == 99 {
            rig.turn();
        }
    }
    rig.turns_until(|rig| rig.answers.len() == 10_000);
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    rig.settle();
    let expected = rig.summary();
    let rig = rig.power_cut();
    assert_eq!(rig.summary(), expected);
    assert_eq!(rig.shard.catalog().topic_count(), 10_000);
}

// ---- durability modes over a crash --------------------------------------------------------------------

#[test]
fn offsets_of_memory_partitions_never_name_two_records() {
    let mut rig = Rig::with_topic(Durability::Memory);
    rig.store(1, &["a", "b"]);
    let mut rig = rig.power_cut();
    let (_, high_watermark) = rig.state(1);
    assert_eq!(high_watermark, 2 + RESERVED_AHEAD, "behind everything that may have been seen");
    assert_eq!(rig.store(1, &["c"]), high_watermark);
    let (head, _) = rig.fetch(1, high_watermark - 1);
    assert_eq!(head.next_offset.0, high_watermark + 1);
}

/// A reader stands before the gap, and nothing has come after it.
#[test]
fn reader_is_led_over_the_gap_at_the_end() {
    let mut rig = Rig::with_topic(Durability::Memory);
    rig.store(1, &["a"]);
    rig.settle();
    let mut rig = rig.kill();
    let (_, high_watermark) = rig.state(1);
    assert!(high_watermark > 1);
    let (head, records) = rig.fetch(1, 1);
    assert_eq!((head.next_offset.0, records.len()), (high_watermark, 0));
}

#[test]
fn clean_stop_leaves_no_gap_and_later_crashes_do() {
    let mut rig = Rig::with_topic(Durability::Memory);
    rig.store(1, &["a", "b"]);
    rig.stop();
    let mut rig = rig.kill();
    assert!(rig.was_clean);
    assert_eq!(rig.state(1), (0, 2));
    assert_eq!(rig.store(1, &["c"]), 2);
    rig.disk.stall(true);
    let seen = rig.send_batch(&batch(1, &["seen, then lost"]));
    assert!(rig.is_answered(seen));
    let rig = rig.power_cut();
    assert_eq!(rig.state(1).1, 3 + RESERVED_AHEAD);
}

#[test]
fn reservation_follows_in_time_so_that_no_batch_waits_for_it() {
    let mut rig = Rig::with_topic(Durability::Memory);
    let values = vec!["v"; 1000];
    rig.store(1, &["first"]);
    for i in 0..200 {
        let sent = rig.send_batch(&batch(1, &values));
        assert!(rig.is_answered(sent), "batch {i} waited");
        rig.turns(5);
    }
    let partition = rig.shard.partitions.get(PartitionId(1)).unwrap();
    assert!(partition.reserved_end > partition.next_offset);
}

#[test]
fn partition_altered_to_durable_is_dense_again() {
    let mut rig = Rig::with_topic(Durability::Memory);
    rig.store(1, &["a"]);
    rig.ask(&Request::AlterTopic(AlterTopic { durability: Some(Durability::Durable), ..alter("t") }));
    rig.settle();
    rig.store(1, &["b"]);
    let mut rig = rig.power_cut();
    assert_eq!(rig.state(1), (0, 2));
    rig.ask(&Request::AlterTopic(AlterTopic { durability: Some(Durability::Written), ..alter("t") }));
    rig.store(1, &["c"]);
    let rig = rig.power_cut();
    assert!(rig.state(1).1 >= 3 + RESERVED_AHEAD);
}

// ---- faults -------------------------------------------------------------------------------------------

#[test]
fn failed_write_fences_the_shard_and_reads_go_on() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["kept"]);
    rig.settle();
    rig.disk.fail_next(Kind::Write, Fault::Os(libc::EIO));
    let lost = [rig.send_batch(&batch(1, &["lost"])), {
        let commit = Request::CommitOffset { consumer: "c", partition: PartitionId(1), offset: Offset(1), metadata: "" };
        rig.send(&commit)
    }];
    for request in lost {
        assert_eq!(failure(&rig.answer(request)), ErrorCode::ShardFenced);
    }
    assert_eq!(failure(&rig.produce(&batch(1, &["refused"]))), ErrorCode::ShardFenced);
    assert_eq!(failure(&rig.commit("c", 1, 1)), ErrorCode::ShardFenced);
    assert_eq!(failure(&rig.ask(&Request::CreateTopic(create("u", 1)))), ErrorCode::ShardFenced);
    assert_eq!(failure(&rig.ask(&Request::InitProducer)), ErrorCode::ShardFenced);
    assert_eq!(rig.read_all(1, 0), [(0, "kept".into())]);
    let Reply::ShardStats(stats) = rig.ask(&Request::ShardStats) else { panic!() };
    assert!(!stats.fenced.is_empty());
    rig.shard.stop(rig.now);
    assert!(rig.shard.is_stopped());
    let mut rig = rig.power_cut();
    assert_eq!(rig.read_all(1, 0)[0], (0, "kept".into()));
    rig.store(1, &["goes on"]);
}

#[test]
fn full_disk_refuses_batches_and_takes_what_frees_space() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.create("u", 1, TopicConfig::default());
    rig.disk.set_options(|options| options.disk_full = 1_000_000);
    let value = "x".repeat(8 << 10);
    let full = (0..200).find_map(|_| match rig.produce(&batch(1, &[&value])) {
        Reply::Failed(failure) => Some(failure.code),
        _ => None,
    });
    assert_eq!(full, Some(ErrorCode::DiskFull));
    assert!(matches!(rig.commit("c", 1, 1), Reply::Committed));
    assert!(matches!(rig.ask(&Request::DeleteTopic { name: "u" }), Reply::Deleted));
    assert!(!rig.read_all(1, 0).is_empty());
    rig.disk.set_options(|options| options.disk_full = 0);
    rig.turns_until(|rig| rig.now.monotonic_us > start().monotonic_us + 5_000_000 || !rig.shard.log.has_backlog());
    for _ in 0..TURNS_MAX {
        if let Reply::Produced { .. } = rig.produce(&batch(1, &[&value])) {
            return;
        }
        rig.turns(10);
    }
    panic!("writes didn't resume");
}

#[test]
fn busy_consumes_nothing() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.disk.stall(true);
    let value = "x".repeat(8 << 10);
    let identity = Identity { producer_id: ProducerId(9), sequence: 0, ..Identity::plain(PartitionId(1)) };
    let bytes = batch_of(identity, &[&value]);
    let mut sent = 0;
    loop {
        let origin = rig.origin(1);
        let bytes = batch(1, &[&value]);
        match rig.shard.handle(origin, &Request::Produce { frame: Frame::parse(&bytes).unwrap() }, rig.now) {
            Ok(()) => sent += 1,
            Err(Busy) => break,
        }
        rig.turn();
        assert!(sent < 1000, "never busy");
    }
    let before = rig.shard.counters();
    let origin = rig.origin(1);
    assert_eq!(rig.shard.handle(origin, &Request::Produce { frame: Frame::parse(&bytes).unwrap() }, rig.now), Err(Busy));
    assert_eq!(rig.shard.counters(), Counters { busy: before.busy + 1, ..before });
    rig.disk.stall(false);
    assert_eq!(produced(&rig.produce(&bytes)), (sent, false));
}

// ---- stop, checkpoints, replay ------------------------------------------------------------------------

#[test]
fn stop_acknowledges_what_was_appended_and_refuses_the_rest() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.settle();
    let before = rig.shard.counters().checkpoints;
    let waiting = rig.send_fetch(long_fetch(1, 0, 1, 60_000));
    let last = rig.send_batch(&batch(1, &["last"]));
    rig.shard.stop(rig.now);
    rig.collect();
    assert!(rig.is_answered(waiting), "nobody waits for a broker that goes");
    assert_eq!(failure(&rig.produce(&batch(1, &["late"]))), ErrorCode::ShuttingDown);
    assert_eq!(failure(&rig.commit("c", 1, 1)), ErrorCode::ShuttingDown);
    assert_eq!(failure(&rig.ask(&Request::CreateTopic(create("u", 1)))), ErrorCode::ShuttingDown);
    assert_eq!(produced(&rig.answer(last)), (0, false));
    rig.turns_until(|rig| rig.shard.is_stopped());
    assert_eq!(rig.shard.counters().checkpoints, before + 1);
    let expected = rig.summary();
    let mut rig = rig.power_cut();
    assert!(rig.was_clean);
    assert_eq!(rig.summary(), expected);
    assert_eq!(rig.read_all(1, 0), [(0, "last".into())]);
}

#[test]
fn rolled_log_brings_a_checkpoint() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.commit("c", 1, 1);
    rig.produce(&idempotent(1, 9, 0, 0, 1));
    rig.fill(1, 300 << 10);
    rig.settle();
    assert!(rig.shard.counters().checkpoints >= 1);
    rig.fill(1, 600 << 10);
    let expected = rig.summary();
    let mut rig = rig.power_cut();
    assert_eq!(rig.summary(), expected);
    assert_eq!(rig.committed("c", 1), Some(1));
    assert_eq!(produced(&rig.produce(&idempotent(1, 9, 0, 0, 1))), (0, true));
}

#[test]
fn much_state_brings_a_checkpoint() {
    const CHECKPOINT_AFTER_BYTES: u64 = 4096;
    let mut config = shard_config();
    config.checkpoint_after_state_bytes = CHECKPOINT_AFTER_BYTES;
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("t", 1, TopicConfig::default());
    for offset in 0..100 {
        rig.commit("c", 1, offset);
    }
    rig.settle();
    let Counters { checkpoints, state_bytes, .. } = rig.shard.counters();
    // One for so much state, and one for a segment: a commit alone in its group fills a block of it.
    let due = state_bytes / CHECKPOINT_AFTER_BYTES + rig.shard.log_counters().segments_rolled;
    assert!(checkpoints >= state_bytes / (2 * CHECKPOINT_AFTER_BYTES), "{checkpoints} checkpoints of {state_bytes} bytes");
    assert!((1..=due).contains(&checkpoints), "{checkpoints} checkpoints of {state_bytes} bytes, {due} due");
    // A commit of one position is small.
    assert!(state_bytes < 5 * CHECKPOINT_AFTER_BYTES, "{state_bytes} bytes");
}

#[test]
fn checkpoint_larger_than_a_piece_is_whole() {
    let mut rig = Rig::new();
    rig.create("wide", 10_000, TopicConfig::default());
    for i in 0..600 {
        rig.create(&format!("{i:0200}"), 1, TopicConfig::default());
    }
    for i in 0..40 {
        let metadata = "m".repeat(4096);
        let consumer = format!("consumer {i}");
        rig.ask(&Request::CommitOffset { consumer: &consumer, partition: PartitionId(5), offset: Offset(i), metadata: &metadata });
    }
    rig.stop();
    let expected = rig.summary();
    let rig = rig.power_cut();
    assert!(rig.was_clean);
    assert_eq!(rig.summary(), expected);
}

#[test]
fn checkpoint_piece_overrides_what_was_replayed_before_it() {
    let mut recovery = Recovery::new(10);
    let bytes = idempotent(1, 9, 0, 0, 3);
    let mut header = Frame::parse(&bytes).unwrap().header;
    crate::log::Replay::frame(&mut recovery, &header, 0, b"");
    header.producer.partition = 0;
    let piece = PartitionPiece { partition: 1, log_start: 2, next_offset: 7, reserved_end: 0 };
    for record in [StateRecord::Partitions(vec![piece]), StateRecord::Producers { partition: 1, producers: Vec::new() }] {
        crate::log::Replay::frame(&mut recovery, &header, 0, &record.to_bytes());
    }
    recovery.finish();
    let partition = recovery.partitions.get(PartitionId(1)).unwrap();
    assert_eq!((partition.log_start, partition.next_offset, partition.high_watermark), (Offset(2), Offset(7), Offset(7)));
    assert!(partition.producers.as_ref().unwrap().is_empty(), "evicted before the piece was made");
}

#[test]
fn checkpoint_pieces_stay_below_their_limit() {
    let mut partitions = PartitionTable::default();
    let mut catalog = Catalog::default();
    let change =
        catalog.decide_create(&create(&"x".repeat(249), 100_000), CatalogLimits { partitions_max: 100_000, shard_count: 64 }).unwrap();
    catalog.apply(&change);
    for id in 1..=5_000 {
        partitions.insert(Partition::new(PartitionId(id), catalog.partition_config(PartitionId(1)).unwrap()));
    }
    let partition = partitions.get_mut(PartitionId(7)).unwrap();
    let table = partition.producers.get_or_insert_default();
    for producer in 0..PRODUCERS_PER_PARTITION_LIMIT as i64 {
        for sequence in 0..5 {
            let batch = Batch { producer_id: ProducerId(producer), epoch: 0, first_sequence: sequence, record_count: 1 };
            table.record(batch, Offset(0), 0, PRODUCERS_PER_PARTITION_LIMIT);
        }
    }
    let groups = group::tests::many_offsets();
    let coordinator = Coordinator::default();
    let source = checkpoint::Source {
        catalog: Some(&catalog),
        producer_ids_end: 9,
        coordinator: &coordinator,
        partitions: &partitions,
        groups: &groups,
        queues: &QueueTable::default(),
        is_final: false,
    };
    let (mut cursor, mut recovery) = (checkpoint::Cursor::Numbers, Recovery::new(PRODUCERS_PER_PARTITION_LIMIT));
    let header = Frame::parse(&{
        let mut bytes = vec![0; 64];
        ringmain_wire::frame::seal(&mut bytes, ringmain_wire::Format::State, 1, Identity::plain(PartitionId::STATE));
        bytes
    })
    .unwrap()
    .header;
    let mut pieces = 0;
    while cursor != checkpoint::Cursor::Done {
        let (records, next) = checkpoint::next_piece(&cursor, source);
        for record in records {
            let bytes = record.to_bytes();
            assert!(bytes.len() <= 256 << 10, "{} bytes at {cursor:?}", bytes.len());
            crate::log::Replay::frame(&mut recovery, &header, 0, &bytes);
            pieces += 1;
        }
        cursor = next;
    }
    assert!(pieces > 20);
    assert_eq!(recovery.error, None);
    assert_eq!((recovery.partitions.len(), recovery.catalog.partition_count(), recovery.producer_ids_end), (5_000, 100_000, 9));
    assert_eq!(
        recovery.catalog.topics().map(catalog::Topic::info).collect::<Vec<_>>(),
        catalog.topics().map(catalog::Topic::info).collect::<Vec<_>>()
    );
    let (live, replayed) = (partitions.get(PartitionId(7)).unwrap(), recovery.partitions.get(PartitionId(7)).unwrap());
    assert_eq!(live.producers.as_ref().unwrap().in_order_of_use().len(), PRODUCERS_PER_PARTITION_LIMIT);
    assert_eq!(groups.summary(), recovery.groups.summary());
    let batches = |p: &Partition| {
        p.producers.as_ref().unwrap().in_order_of_use().into_iter().map(|(id, s)| (id, s.stored().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(batches(live), batches(replayed));
}

// ---- retention ----------------------------------------------------------------------------------------

fn retained(retention_ms: Option<u64>, retention_bytes: Option<u64>) -> Rig {
    let mut config = shard_config();
    config.retention_interval_us = 100_000;
    let mut rig = Rig::open(SimDisk::new(1, SimOptions::default()), config, start());
    rig.create("t", 1, TopicConfig { retention_ms, retention_bytes, ..TopicConfig::default() });
    rig
}

#[test]
fn retention_by_bytes_keeps_at_least_so_many_and_not_much_more() {
    let mut rig = retained(None, Some(300 << 10));
    rig.fill(1, 1200 << 10);
    rig.settle();
    let (log_start, end) = rig.state(1);
    let bytes = rig.shard.log.partition_bytes(PartitionId(1));
    assert!(log_start > 0 && bytes >= 300 << 10 && bytes <= (300 << 10) + u64::from(SEGMENT_BYTES), "{bytes} bytes from {log_start}");
    assert_eq!(failure(&rig.ask(&Request::Fetch(now_fetch(1, log_start - 1)))), ErrorCode::OffsetOutOfRange);
    assert_eq!(rig.list(1, control::EARLIEST).0, log_start);
    assert_eq!(rig.read_all(1, log_start).len() as u64, end - log_start);
    let mut rig = rig.power_cut();
    assert_eq!(rig.state(1), (log_start, end));
    assert_eq!(rig.read_all(1, log_start).len() as u64, end - log_start);
}

/// Another partition keeps the segments alive, so the dead bytes are found again.
#[test]
fn log_is_told_at_the_next_start_what_is_dead() {
    let mut rig = retained(None, Some(100 << 10));
    rig.create("kept", 1, TopicConfig::default());
    for _ in 0..60 {
        rig.fill(1, 8 << 10);
        rig.fill(2, 1);
    }
    rig.settle();
    let (log_start, bytes) = (rig.state(1).0, rig.shard.log.partition_bytes(PartitionId(1)));
    assert!(log_start > 0);
    let mut rig = rig.power_cut();
    assert_eq!((rig.state(1).0, rig.shard.log.partition_bytes(PartitionId(1))), (log_start, bytes));
    rig.ask(&Request::DeleteTopic { name: "t" });
    let rig = rig.power_cut();
    assert_eq!(rig.shard.log.partition_bytes(PartitionId(1)), 0);
}

#[test]
fn retention_by_time_drops_what_is_older() {
    let mut rig = retained(Some(10_000), None);
    rig.fill(1, 600 << 10);
    rig.settle();
    assert_eq!(rig.state(1).0, 0, "young");
    rig.pass(20_000_000);
    rig.settle();
    let (log_start, end) = rig.state(1);
    assert_eq!(log_start, end, "all of it is old");
    assert_eq!(rig.store(1, &["next"]), end);
}

#[test]
fn retention_leaves_alone_what_nobody_could_read_yet() {
    let mut rig = retained(Some(10_000), None);
    rig.store(1, &["a"]);
    rig.disk.stall(true);
    let unread = rig.send_batch(&batch(1, &["b"]));
    rig.pass(20_000_000);
    rig.turns(50);
    assert!(!rig.is_answered(unread));
    assert_eq!(rig.shard.partitions.get(PartitionId(1)).unwrap().log_start_logged, Offset(0));
}

#[test]
fn log_start_moves_only_when_durable() {
    let mut rig = retained(None, Some(100 << 10));
    rig.fill(1, 100 << 10);
    rig.turns(50);
    rig.disk.stall(true);
    rig.pass(1_000_000);
    let value = "x".repeat(8 << 10);
    while rig.shard.partitions.get(PartitionId(1)).unwrap().log_start_logged == Offset(0) {
        let origin = rig.origin(1);
        let bytes = batch(1, &[&value]);
        let busy = rig.shard.handle(origin, &Request::Produce { frame: Frame::parse(&bytes).unwrap() }, rig.now).is_err();
        rig.turns(20);
        if busy {
            rig.disk.stall(false);
            rig.turns(20);
            rig.disk.stall(true);
        }
    }
    assert_eq!(rig.state(1).0, 0);
    rig.disk.stall(false);
    rig.settle();
    assert!(rig.state(1).0 > 0);
}

// ---- records and tables -------------------------------------------------------------------------------

#[test]
fn a_checkpoint_that_is_cut_takes_no_message_ids() {
    let mut known = message_ids::MessageIds::default();
    let id = |n: u8| state_record::MessageIdPiece { id: vec![n], offset: n.into(), time_ms: n.into() };
    let mut restore = |ids: std::ops::Range<u8>| {
        known.restore(&state_record::KnownIdsPiece { partition: 1, is_first: true, ids: ids.map(id).collect() });
    };
    restore(0..10);
    // Of a later one only the first piece is there; three had been forgotten by then.
    restore(3..5);
    let offsets: Vec<u64> = known.summary().into_iter().map(|(_, offset, _)| offset).collect();
    assert_eq!(offsets, [3, 4, 5, 6, 7, 8, 9]);
}

/// The bytes of every state record of version 1: a directory written today must open for ever.
#[test]
fn state_records_keep_their_bytes() {
    let place = |partition| ringmain_wire::control::PartitionPlace { partition, shard: 2 };
    let config = TopicConfig { durability: Durability::Written, retention_ms: Some(5), max_message_bytes: 4096, ..TopicConfig::default() };
    let offset = || OffsetPiece { consumer: "reader".into(), offset: 9, metadata: "a note longer than eight".into() };
    let group_offset = || state_record::GroupOffsetPiece {
        partition: 1,
        offset: 9,
        leader_epoch: 2,
        metadata: "a note longer than eight".into(),
        commit_ms: 11,
    };
    let producer = state_record::ProducerPiece {
        transaction_start: Some(8),
        producer_id: 3,
        epoch: 1,
        last_append_ms: 77,
        batches: vec![state_record::BatchPiece { first_sequence: 4, last_sequence: 6, base_offset: 8 }],
    };
    let transaction = state_record::TransactionPiece {
        transactional_id: "app".into(),
        producer_id: 3,
        epoch: 3,
        previous: Some((3, 2)),
        timeout_ms: 60_000,
        phase: 1,
        begun_ms: 5,
        changed_ms: 6,
        partitions: vec![1, 2],
        groups: vec!["readers".into()],
    };
    let records = [
        StateRecord::Catalog(CatalogChange::TopicCreated {
            topic: 1,
            name: "orders".into(),
            config: config.clone(),
            partitions: vec![place(1)],
        }),
        StateRecord::Catalog(CatalogChange::TopicAltered { topic: 1, config: config.clone(), partitions: vec![place(1), place(2)] }),
        StateRecord::Catalog(CatalogChange::TopicDeleted { topic: 1, partitions: vec![place(1)] }),
        StateRecord::Reserved { partition: 1, end: 65_536 },
        StateRecord::ProducerIds { end: 1_000 },
        StateRecord::LogStart { partition: 1, offset: 10 },
        StateRecord::ConsumerOffset { partition: 1, offset: offset() },
        StateRecord::CatalogNumbers { next_topic: 2, next_partition: 3 },
        StateRecord::Topics(vec![state_record::TopicPiece {
            topic: 1,
            name: "orders".into(),
            config,
            first_index: 0,
            partitions: vec![place(1)],
        }]),
        StateRecord::Partitions(vec![PartitionPiece { partition: 1, log_start: 2, next_offset: 3, reserved_end: 4 }]),
        StateRecord::Producers { partition: 1, producers: vec![producer] },
        StateRecord::ConsumerOffsets { partition: 1, offsets: vec![offset()] },
        StateRecord::Catalog(CatalogChange::SlotsPlaced { shards: vec![0, 1] }),
        StateRecord::Group(Box::new(state_record::GroupPiece {
            group: "billing".into(),
            stamp: 7,
            phase: 3,
            generation: 2,
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            leader: "member-1".into(),
            empty_since_ms: 5,
            member_count: 1,
        })),
        StateRecord::GroupMembers {
            group: "billing".into(),
            stamp: 7,
            members: vec![state_record::MemberPiece {
                member_id: "member-1".into(),
                instance_id: Some("first of them".into()),
                client_id: "c".into(),
                client_host: "127.0.0.1".into(),
                session_timeout_ms: 6_000,
                rebalance_timeout_ms: 60_000,
                metadata: vec![1, 2],
                assignment: vec![3],
            }],
        },
        StateRecord::GroupOffsets { group: "billing".into(), offsets: vec![group_offset()] },
        StateRecord::GroupStaged { group: "billing".into(), producer_id: 4, producer_epoch: 1, offsets: vec![group_offset()] },
        StateRecord::GroupDecided { group: "billing".into(), producer_id: 4, producer_epoch: 1, commit: true },
        StateRecord::GroupOffsetsForgotten { group: "billing".into(), partitions: vec![1, 2] },
        StateRecord::GroupDeleted { group: "billing".into() },
        StateRecord::Transaction(Box::new(transaction.clone())),
        StateRecord::TransactionGone { transactional_id: "app".into() },
        StateRecord::Transactions(vec![transaction]),
        StateRecord::Aborted {
            partition: 1,
            transactions: vec![state_record::AbortedPiece { producer_id: 3, first_offset: 1, last_offset: 5, stable: 6 }],
        },
    ];
    assert_eq!(layout_of(&records), STATE_RECORDS_V1, "the layout has changed: it needs a new version");
    let (queue, partition) = (1, 2);
    let returned = || vec![state_record::ReturnedPiece { offset: 5, deliveries: 2, due_ms: 7 }];
    let piece = || queue::catalog::QueuePieceV1 { queue, name: "work".into(), topic: 1, config: queue_config_v1() };
    let records = [
        StateRecord::Catalog(CatalogChange::QueuePut { queue: Box::new(piece()), partitions: vec![place(1)] }),
        StateRecord::Catalog(CatalogChange::QueueDeleted { queue }),
        StateRecord::Queues(vec![piece()]),
        StateRecord::QueueNumbers { next_queue: 4 },
        StateRecord::QueueHead(Box::new(state_record::QueueHeadPiece {
            queue,
            partition,
            begin: 1,
            floor: 3,
            mark: 9,
            crashes: vec![(8, 1)],
            acked: 2,
            dead: 1,
            dropped: 4,
            void: 5,
        })),
        StateRecord::QueueParts(Box::new(state_record::QueuePartsPiece { queue, partition, settled: vec![(5, 7)], returned: returned() })),
        StateRecord::QueueSettled(Box::new(state_record::QueueSettledPiece {
            queue,
            partition,
            acked: vec![(1, 2)],
            dead: vec![(2, 3)],
            dropped: vec![(3, 4)],
            returned: returned(),
        })),
        StateRecord::QueueMark(Box::new(state_record::QueueMarkPiece { queue, partition, mark: 9, crashes: vec![(8, 1)] })),
    ];
    assert_eq!(layout_of(&records), QUEUE_RECORDS_V1, "the layout has changed: it needs a new version");
    assert_eq!(queue::catalog::QueuePiece::from(&piece()).config, ringmain_wire::queue::QueueConfig::default());
    let config = ringmain_wire::queue::QueueConfig {
        max_bytes: Some(1),
        expires_ms: Some(2),
        from_last: Some(3),
        dedup_window_ms: Some(4),
        filter: "a = 1".into(),
        ..Default::default()
    };
    let piece = || queue::catalog::QueuePiece { queue, name: "work".into(), topic: 1, config: config.clone() };
    let records = [
        StateRecord::Catalog(CatalogChange::QueueSet { queue: Box::new(piece()), partitions: vec![place(1)] }),
        StateRecord::QueueList(vec![piece()]),
        StateRecord::QueueRedirected(Box::new(state_record::QueueRedirectedPiece { queue, partition, from: 3, ranges: vec![(4, 6)] })),
    ];
    assert_eq!(layout_of(&records), QUEUE_RECORDS_V2, "the layout has changed: it needs a new version");
    let records = [
        StateRecord::MessageIds(Box::new(state_record::MessageIdsPiece {
            partition,
            base: 7,
            body_crc: 8,
            time_ms: 9,
            ids: vec![(0, b"id".to_vec())],
        })),
        StateRecord::KnownIds(Box::new(state_record::KnownIdsPiece {
            partition,
            is_first: true,
            ids: vec![state_record::MessageIdPiece { id: b"id".to_vec(), offset: 7, time_ms: 9 }],
        })),
        StateRecord::ProducerAdvanced(Box::new(state_record::ProducerAdvancedPiece {
            partition,
            producer_id: 1,
            epoch: 2,
            first_sequence: 3,
            record_count: 4,
            base_offset: 5,
            time_ms: 6,
        })),
    ];
    assert_eq!(layout_of(&records), MESSAGE_ID_RECORDS_V1, "the layout has changed: it needs a new version");
    let (producer_id, producer_epoch) = (1 << 48, 3);
    let staged = vec![(4, 6)];
    let records = [
        StateRecord::QueueStaged(Box::new(state_record::QueueStagedPiece { queue, partition, producer_id, producer_epoch, staged })),
        StateRecord::QueueUnstaged(Box::new(state_record::QueueUnstagedPiece { queue, partition, producer_id, producer_epoch })),
        StateRecord::QueueVoid(Box::new(state_record::QueueVoidPiece { queue, partition, void: vec![(7, 9)] })),
        StateRecord::TransactionCheckBack(Box::new(state_record::TransactionCheckBackPiece {
            transactional_id: "order 4711".into(),
            group: "orders".into(),
            after_ms: 6_000,
        })),
    ];
    assert_eq!(layout_of(&records), STAGED_RECORDS_V1, "the layout has changed: it needs a new version");
    let records = [StateRecord::QueueKept(Box::new(state_record::QueueHeadPiece {
        queue,
        partition,
        begin: 1,
        floor: 3,
        mark: 9,
        crashes: vec![(8, 1)],
        acked: 2,
        dead: 1,
        dropped: 4,
        void: 5,
    }))];
    assert_eq!(layout_of(&records), QUEUE_RECORDS_V3, "the layout has changed: it needs a new version");
}

/// The settings that a queue had by default when they were first logged.
fn queue_config_v1() -> queue::catalog::QueueConfigV1 {
    queue::catalog::QueueConfigV1 {
        from_beginning: true,
        drop_acked: false,
        ack_timeout_ms: 30 * 60_000,
        delivery_limit: Some(20),
        dead_letter: None,
        backoff: ringmain_wire::queue::Backoff::None,
        priorities: 1,
        ttl_ms: None,
        max_length: None,
        overflow: ringmain_wire::queue::Overflow::Reject,
        redirect: None,
        key_ordered: false,
        single_active: false,
        exclusive: false,
        rate_per_second: None,
        paused: false,
        filter: String::new(),
    }
}

fn layout_of(records: &[StateRecord]) -> (usize, u32) {
    let mut all = Vec::new();
    for record in records {
        let bytes = record.to_bytes();
        assert_eq!(StateRecord::read(&bytes).as_ref(), Ok(record));
        all.extend_from_slice(&bytes);
    }
    (all.len(), crc32c::crc32c(&all))
}

/// The same of records about queues in transactions, and about who checks those.
const STAGED_RECORDS_V1: (usize, u32) = (358, 1_683_237_401);
/// The same of records about queues.
const QUEUE_RECORDS_V1: (usize, u32) = (966, 1_353_097_280);
/// … of those that came later.
const QUEUE_RECORDS_V2: (usize, u32) = (503, 2_060_397_562);
/// … of those in checkpoints that add nothing.
const QUEUE_RECORDS_V3: (usize, u32) = (141, 1_876_268_790);
/// … of message ids.
const MESSAGE_ID_RECORDS_V1: (usize, u32) = (300, 1_778_922_610);
/// Length and CRC32C of the records above, one after the other.
const STATE_RECORDS_V1: (usize, u32) = (2_113, 1_201_410_856);

#[test]
fn state_record_of_a_newer_build_stops_the_start() {
    let mut bytes = StateRecord::ProducerIds { end: 1 }.to_bytes();
    bytes[0] = 2;
    assert_eq!(StateRecord::read(&bytes), Err(state_record::StateError::UnknownVersion { got: 2 }));
    assert_eq!(StateRecord::read(&bytes[..3]), Err(state_record::StateError::Truncated));
}

proptest! {
    #[test]
    fn random_state_records_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if bytes.len() > 4 { bytes[..4].copy_from_slice(&[1, 0, 0, 0]); }
        let _ = StateRecord::read(&bytes);
    }

    /// The paged table is a map.
    #[test]
    fn id_table_is_a_map(operations in proptest::collection::vec((0u32..5000, any::<Option<u16>>()), 0..200), from in 0u32..6000) {
        let (mut table, mut map) = (IdTable::default(), BTreeMap::new());
        for (id, value) in operations {
            match value {
                Some(value) => prop_assert_eq!(table.insert(id, value), map.insert(id, value)),
                None => prop_assert_eq!(table.remove(id), map.remove(&id)),
            }
        }
        prop_assert_eq!(table.len(), map.len());
        prop_assert_eq!(table.next_from(from), map.range(from..).next().map(|(id, value)| (*id, *value)));
        prop_assert_eq!(table.iter().collect::<Vec<_>>(), map.into_iter().collect::<Vec<_>>());
    }

    /// Waits are found by partition, by connection and by deadline as long as they wait, and not after.
    #[test]
    fn waits_are_found_every_way(operations in proptest::collection::vec((0u32..4, 0u32..3, 0u64..50, any::<bool>()), 1..120)) {
        let mut waits = Waits::default();
        let (mut heads, mut model): ([u32; 3], Vec<(u32, fetch::Wait)>) = ([NONE; 3], Vec::new());
        for (request, (connection, partition, deadline_us, removes)) in operations.into_iter().enumerate() {
            if removes && !model.is_empty() {
                let (index, wait) = model.remove(deadline_us as usize % model.len());
                let removed = waits.remove(index, &mut heads[wait.fetch.partition.0 as usize]).unwrap();
                prop_assert_eq!(removed.origin, wait.origin);
                prop_assert!(waits.remove(index, &mut heads[wait.fetch.partition.0 as usize]).is_none());
            } else {
                let origin = Origin { core: 0, connection, generation: 0, request: request as u64 };
                let wait = fetch::Wait { origin, fetch: now_fetch(partition, 0), deadline_us, wake_at_bytes: 0 };
                waits.insert(wait, &mut heads[partition as usize]);
                model.push((heads[partition as usize], wait));
            }
            prop_assert_eq!(waits.len(), model.len());
            for (partition, head) in heads.iter().enumerate() {
                let (mut index, mut found) = (*head, Vec::new());
                while index != NONE {
                    found.push(waits.get(index).unwrap().origin.request);
                    index = waits.next_of_partition(index);
                }
                let mut expected: Vec<u64> =
                    model.iter().filter(|(_, wait)| wait.fetch.partition.0 as usize == partition).map(|(_, wait)| wait.origin.request).collect();
                expected.reverse();
                prop_assert_eq!(found, expected);
            }
            for connection in 0..4 {
                let expected = model.iter().any(|(_, wait)| wait.origin.connection == connection);
                prop_assert_eq!(waits.of_connection(0, connection, 0).is_some(), expected);
            }
            let earliest = model.iter().map(|(_, wait)| wait.deadline_us).min();
            prop_assert_eq!(waits.expired(u64::MAX).map(|index| waits.get(index).unwrap().deadline_us), earliest);
            prop_assert_eq!(waits.next_deadline_us(), earliest);
        }
    }
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    Produce { partition: u32, count: usize },
    Idempotent { partition: u32, producer: i64 },
    Large { partition: u32 },
    Commit { consumer: u8, partition: u32, offset: u64 },
    Create { topic: u8, partitions: u32, durability: Durability },
    Alter { topic: u8, durability: Durability, more: bool },
    Delete { topic: u8 },
    InitProducer,
    Turn { count: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    let durability = || prop_oneof![Just(Durability::Durable), Just(Durability::Written), Just(Durability::Memory)];
    prop_oneof![
        6 => (1u32..12, 1usize..4).prop_map(|(partition, count)| Step::Produce { partition, count }),
        6 => (1u32..12, 0i64..6).prop_map(|(partition, producer)| Step::Idempotent { partition, producer }),
        4 => (1u32..12).prop_map(|partition| Step::Large { partition }),
        4 => (0u8..4, 1u32..12, 0u64..100).prop_map(|(consumer, partition, offset)| Step::Commit { consumer, partition, offset }),
        3 => (0u8..5, 1u32..4, durability()).prop_map(|(topic, partitions, durability)| Step::Create { topic, partitions, durability }),
        1 => (0u8..5, durability(), any::<bool>()).prop_map(|(topic, durability, more)| Step::Alter { topic, durability, more }),
        1 => (0u8..5).prop_map(|topic| Step::Delete { topic }),
        1 => Just(Step::InitProducer),
        3 => (0usize..10).prop_map(|count| Step::Turn { count }),
    ]
}

impl Rig {
    fn step(&mut self, step: &Step, sequences: &mut HashMap<(u32, i64), i32>) {
        let name = |topic: &u8| format!("topic-{topic}");
        match step {
            Step::Produce { partition, count } => drop(self.send_batch(&batch(*partition, &vec!["v"; *count]))),
            Step::Large { partition } => drop(self.send_batch(&batch(*partition, &["x".repeat(12 << 10).as_str()]))),
            Step::Idempotent { partition, producer } => {
                let sequence = sequences.entry((*partition, *producer)).or_default();
                if self.shard.partitions.get(PartitionId(*partition)).is_some() {
                    let bytes = idempotent(*partition, *producer, 0, *sequence, 2);
                    *sequence += 2;
                    self.send_batch(&bytes);
                }
            }
            Step::Commit { consumer, partition, offset } => {
                let consumer = format!("consumer-{consumer}");
                let partition = PartitionId(*partition);
                self.send(&Request::CommitOffset { consumer: &consumer, partition, offset: Offset(*offset), metadata: "note" });
            }
            Step::Create { topic, partitions, durability } => {
                let config = TopicConfig { durability: *durability, ..TopicConfig::default() };
                self.send(&Request::CreateTopic(CreateTopic { name: name(topic), partition_count: *partitions, config }));
            }
            Step::Alter { topic, durability, more } => {
                let partition_count = more.then(|| self.shard.catalog.topic(&name(topic)).map_or(1, |t| t.partitions.len() as u32 + 1));
                self.send(&Request::AlterTopic(AlterTopic { partition_count, durability: Some(*durability), ..alter(&name(topic)) }));
            }
            Step::Delete { topic } => drop(self.send(&Request::DeleteTopic { name: &name(topic) })),
            Step::InitProducer => drop(self.send(&Request::InitProducer)),
            Step::Turn { count } => self.turns(*count),
        }
    }
}

/// After an unclean stop: offsets continue behind what was reserved.
fn after_crash(mut summary: Summary) -> Summary {
    for partition in &mut summary.partitions {
        partition.next_offset = partition.next_offset.max(partition.reserved_end);
    }
    summary
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 5, ..ProptestConfig::default() })]

    /// Whatever a shard did, checkpoints in the middle included: the next start comes to the same state from
    /// the log alone, and so does the one after it.
    #[test]
    fn replay_comes_to_the_live_state(steps in proptest::collection::vec(any_step(), 1..150), clean: bool) {
        let mut config = shard_config();
        config.checkpoint_after_state_bytes = 2048;
        config.producers_per_partition_max = 4;
        let mut rig = Rig::open(SimDisk::new(3, SimOptions::default()), config, start());
        rig.create("topic-0", 3, TopicConfig::default());
        let mut sequences = HashMap::new();
        for step in &steps {
            rig.step(step, &mut sequences);
        }
        if clean {
            rig.stop();
        } else {
            rig.settle();
        }
        let mut expected = rig.summary();
        if clean {
            // The reservations end with the last checkpoint.
            expected.partitions.iter_mut().filter(|p| p.reserved_end > 0).for_each(|p| p.reserved_end = p.next_offset);
        }
        let expected = after_crash(expected);
        let rig = rig.power_cut();
        // A log that ends with a segment just sealed looks like one that was stopped, and needs no more than that.
        prop_assert!(rig.was_clean || !clean);
        prop_assert_eq!(rig.summary(), after_crash(expected));
        let again = rig.summary();
        let rig = rig.kill();
        prop_assert_eq!(rig.summary(), again);
    }

    /// Power fails at any moment: what was acknowledged is there, once, in order; nothing else is.
    #[test]
    fn acknowledged_records_survive_a_power_cut(counts in proptest::collection::vec((1u32..4, 0usize..6), 1..60), seed: u64) {
        let mut rig = Rig::open(SimDisk::new(seed, SimOptions::default()), shard_config(), start());
        rig.create("t", 3, TopicConfig::default());
        let mut sent: Vec<(u64, u32, String)> = Vec::new();
        for (i, (partition, turns)) in counts.into_iter().enumerate() {
            let value = format!("{i}:{}", "x".repeat(i * 40 % 3000));
            sent.push((rig.send_batch(&batch(partition, &[&value])), partition, value));
            rig.turns(turns);
        }
        let acknowledged: Vec<bool> = sent.iter().map(|(request, ..)| rig.is_answered(*request)).collect();
        let mut rig = rig.power_cut();
        for partition in 1..=3 {
            let stored: Vec<String> = rig.read_all(partition, 0).into_iter().map(|(_, value)| value).collect();
            let of_partition = || sent.iter().zip(&acknowledged).filter(|((_, p, _), _)| *p == partition);
            let all: Vec<&String> = of_partition().map(|((.., value), _)| value).collect();
            prop_assert_eq!(stored.iter().collect::<Vec<_>>(), &all[..stored.len()], "a prefix of what was sent");
            let acked = of_partition().filter(|(_, acked)| **acked).count();
            prop_assert!(stored.len() >= acked, "{} stored, {} acknowledged", stored.len(), acked);
        }
    }
}

/// A record batch of format [`Format::Kafka`] as a door frames it: `count` records that nobody looks into.
fn foreign_batch(count: u32, filler: u8) -> (ringmain_wire::FrameHeader, Vec<u8>) {
    let mut body = vec![0; 61];
    body[16] = 2;
    body[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    body[35..43].copy_from_slice(&1_234i64.to_be_bytes());
    body[43..51].copy_from_slice(&[0xff; 8]);
    body[57..61].copy_from_slice(&count.to_be_bytes());
    body.extend(vec![filler; 10 * count as usize]);
    let length = (body.len() - 12) as u32;
    body[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&body[21..]);
    body[17..21].copy_from_slice(&crc.to_be_bytes());
    let mut sealed = [vec![0; 64], body.clone()].concat();
    frame::seal(&mut sealed, ringmain_wire::Format::Kafka, count, frame::Identity::plain(PartitionId(1)));
    let header = ringmain_wire::FrameHeader::read(&sealed).unwrap();
    // Made from the batch's checksum it is the same as summed up.
    let mut producer = header.producer;
    producer.seal_kafka(&body, crc);
    assert_eq!(producer, header.producer);
    (header, body)
}

/// Frames of a fetch, header and body.
fn frames_of(rig: &mut Rig, from: u64) -> Vec<(ringmain_wire::FrameHeader, Vec<u8>)> {
    let Reply::Fetched { data, .. } = rig.ask(&Request::Fetch(now_fetch(1, from))) else { panic!("no frames") };
    let bytes: Vec<u8> = match &data {
        FetchData::Extents(extents) => {
            let bytes = extents.iter().flat_map(|extent| rig.shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
            rig.shard.release_extents(extents);
            bytes
        }
        FetchData::Blocks { blocks, .. } => blocks.iter().flat_map(|block| block.to_vec()).collect(),
        FetchData::Owned(bytes) => bytes.clone(),
    };
    frame::frames(&bytes)
        .map(|frame| {
            let frame = frame.unwrap();
            frame.verify_header().and_then(|()| frame.verify_body()).unwrap();
            (frame.header, frame.body().to_vec())
        })
        .collect()
}

#[test]
fn foreign_batch_is_stored_as_it_is_but_for_offset_and_epoch() {
    let mut rig = Rig::with_topic(Durability::Durable);
    rig.store(1, &["native"]);
    for filler in [1, 2] {
        let (header, body) = foreign_batch(3, filler);
        assert!(matches!(rig.produce_parts(header, &body), Reply::Produced { .. }));
    }
    let check = |rig: &mut Rig| {
        let frames = frames_of(rig, 1);
        let foreign: Vec<_> = frames.iter().filter(|(header, _)| header.producer.format == 1).collect();
        assert_eq!(foreign.len(), 2);
        for ((header, body), (filler, offset)) in foreign.into_iter().zip([(1, 1u64), (2, 4)]) {
            let (_, sent) = foreign_batch(3, filler);
            assert_eq!(body[..8], offset.to_be_bytes(), "base offset");
            assert_eq!(body[12..16], header.broker.epoch.to_be_bytes(), "leader epoch");
            assert_eq!((&body[8..12], &body[16..]), (&sent[8..12], &sent[16..]));
            assert_eq!((header.broker.base_offset, header.producer.record_count), (offset, 3));
        }
    };
    check(&mut rig);
    assert_eq!(rig.list(1, 1_200).1, 1_234);
    let mut rig = rig.kill();
    check(&mut rig);
    assert_eq!(rig.state(1), (0, 7));
}

#[test]
fn foreign_batch_in_a_topic_with_append_times_says_when_it_was_appended() {
    let mut rig = Rig::new();
    rig.create("t", 1, TopicConfig { append_time: true, ..TopicConfig::default() });
    let (header, body) = foreign_batch(2, 9);
    let Reply::Produced { append_time_ms, .. } = rig.produce_parts(header, &body) else { panic!("refused") };
    let (header, stored) = frames_of(&mut rig, 0).remove(0);
    assert_eq!((stored[22], &stored[35..43]), (0x08, &append_time_ms.to_be_bytes()[..]));
    assert_eq!(stored[17..21], crc32c::crc32c(&stored[21..]).to_be_bytes(), "its own checksum");
    assert_eq!(Frame::of_parts(header, &stored).largest_timestamp_ms(), append_time_ms);
    assert_eq!(stored[43..], body[43..]);
}

#[test]
fn native_batch_in_a_topic_with_append_times_gets_them_too() {
    let mut rig = Rig::new();
    rig.create("t", 1, TopicConfig { append_time: true, ..TopicConfig::default() });
    let mut builder = RecordBatchBuilder::new();
    builder.push(50, Some(b"k"), Some(b"x"), b"");
    builder.push(90, None, None, b"");
    let Reply::Produced { append_time_ms, .. } = rig.produce(builder.finish(frame::Identity::plain(PartitionId(1)))) else { panic!() };
    let (header, stored) = frames_of(&mut rig, 0).remove(0);
    let frame = Frame::of_parts(header, &stored);
    frame.verify_body().unwrap();
    assert_eq!(frame.largest_timestamp_ms(), append_time_ms);
    let records: Vec<_> = ringmain_wire::Records::new(&stored, 2).unwrap().map(Result::unwrap).collect();
    assert!(records.iter().all(|record| record.timestamp_ms == append_time_ms));
    assert_eq!((records[0].key, records[0].value, records[1].value), (Some(&b"k"[..]), Some(&b"x"[..]), None));
    assert_eq!(rig.list(1, 60), (0, append_time_ms, true));
    // Its records have to be looked at for that.
    let mut lying = builder.finish(frame::Identity::plain(PartitionId(1))).to_vec();
    frame::seal(&mut lying, ringmain_wire::Format::Native, 3, frame::Identity::plain(PartitionId(1)));
    assert_eq!(failure(&rig.produce(&lying)), ErrorCode::InvalidBatch);
}

/// Kafka's clients go on after days of silence; a native one must not store a batch twice.
#[test]
fn forgotten_producer_goes_on_if_it_is_a_kafka_client() {
    let mut rig = Rig::with_topic(Durability::Durable);
    let (_, body) = foreign_batch(2, 9);
    let sealed = |format, sequence| {
        let mut bytes = [vec![0; 64], body.clone()].concat();
        let identity = frame::Identity { producer_id: ProducerId(9), sequence, ..frame::Identity::plain(PartitionId(1)) };
        frame::seal(&mut bytes, format, 2, identity);
        ringmain_wire::FrameHeader::read(&bytes).unwrap()
    };
    let mut send = |format, sequence| rig.produce_parts(sealed(format, sequence), &body);
    assert_eq!(failure(&send(ringmain_wire::Format::Native, 7)), ErrorCode::UnknownProducer);
    assert!(matches!(send(ringmain_wire::Format::Kafka, 7), Reply::Produced { duplicate: false, .. }));
    assert!(matches!(send(ringmain_wire::Format::Kafka, 7), Reply::Produced { duplicate: true, .. }));
    assert_eq!(failure(&send(ringmain_wire::Format::Kafka, 10)), ErrorCode::OutOfOrderSequence);
    assert!(matches!(send(ringmain_wire::Format::Kafka, 9), Reply::Produced { duplicate: false, .. }));
}

#[test]
fn watch_ends_with_enough_bytes_with_its_time_or_with_the_next() {
    let mut rig = Rig::new();
    rig.create("t", 2, TopicConfig::default());
    let watch = |missing_bytes, ends: [u64; 2]| {
        let partitions = vec![(PartitionId(1), Offset(ends[0])), (PartitionId(2), Offset(ends[1]))];
        let shard = ShardId(0);
        Request::Watch(crate::request::Watch { shard, partitions, missing_bytes, max_wait_ms: 50, committed_only: false }.into())
    };
    let ended = |reply: Reply| if let Reply::Watched { is_due } = reply { is_due } else { panic!("{reply:?}") };
    let first = rig.send(&watch(1, [0, 0]));
    assert!(!rig.is_answered(first));
    rig.store(2, &["a"]);
    assert!(ended(rig.answer(first)));
    // It has come before it was asked for.
    assert!(ended(rig.ask(&watch(1, [0, 0]))));
    // Several batches together are enough; one isn't.
    let second = rig.send(&watch(200, [0, 1]));
    rig.store(1, &["b"]);
    rig.turn();
    assert!(!rig.is_answered(second));
    rig.store(2, &["c"]);
    assert!(ended(rig.answer(second)));
    // Nothing comes.
    let third = rig.send(&watch(1, [1, 2]));
    rig.pass(49_000);
    rig.turn();
    assert!(!rig.is_answered(third));
    rig.pass(2_000);
    assert!(!ended(rig.answer(third)));
    // The next of the same connection.
    let fourth = rig.send(&watch(1, [1, 2]));
    let fifth = rig.send(&watch(1, [1, 2]));
    assert!(!ended(rig.answer(fourth)));
    // A connection that goes is forgotten, a topic that goes ends the watch.
    let other = rig.send_from(2, &watch(1, [1, 2]));
    rig.shard.cancel(0, 2, 0, rig.now);
    rig.ask(&Request::DeleteTopic { name: "t" });
    assert!(ended(rig.answer(fifth)));
    rig.turns(300);
    assert!(!rig.is_answered(other));
}

#[test]
fn records_deleted_by_hand_stay_deleted() {
    let mut rig = Rig::with_topic(Durability::Durable);
    for _ in 0..5 {
        rig.store(1, &["a", "b"]);
    }
    let delete = |rig: &mut Rig, before: Option<u64>| match rig
        .ask(&Request::DeleteBefore { partition: PartitionId(1), before: before.map(Offset) })
    {
        Reply::LogStart { offset } => Ok(offset.0),
        Reply::Failed(failure) => Err(failure.code),
        other => panic!("{other:?}"),
    };
    assert_eq!(delete(&mut rig, Some(3)), Ok(3));
    assert_eq!(delete(&mut rig, Some(1)), Ok(3));
    assert_eq!(delete(&mut rig, Some(11)), Err(ErrorCode::OffsetOutOfRange));
    assert_eq!(rig.state(1), (3, 10));
    let mut rig = rig.kill();
    assert_eq!(rig.state(1), (3, 10));
    assert_eq!(rig.read_all(1, 3).len(), 7);
    assert_eq!(delete(&mut rig, None), Ok(10));
    assert_eq!(rig.kill().state(1), (10, 10));
}

#[test]
fn largest_time_is_that_of_what_can_be_read() {
    let mut rig = Rig::with_topic(Durability::Durable);
    let newest = ringmain_wire::control::NEWEST;
    assert_eq!(rig.list(1, newest), (0, -1, false));
    for time in [50, 90, 70] {
        let mut builder = RecordBatchBuilder::new();
        builder.push(time - 1, None, Some(b"x"), b"");
        builder.push(time, None, Some(b"x"), b"");
        rig.produce(builder.finish(frame::Identity::plain(PartitionId(1))));
    }
    assert_eq!(rig.list(1, newest), (3, 90, true));
}
