//! Transactions over several shards, each on a disk of its own, with questions between them that take their time.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use ringmain_wire::frame::flags;
use ringmain_wire::transaction::CheckBack;

use super::*;
use crate::device::sim::Rng;
use crate::request::transaction::{
    AbortedTransaction, ProducerDescription, ProducerKey, ToCheck, TransactionAction, TransactionDescription, TransactionListing,
    TransactionPhase, TransactionReply, TransactionRequest, is_void, slot_of_producer, transactional_producer,
};
use crate::shard::catalog::Catalog;
use crate::shard::state_record::TransactionPiece;

/// `Origin::connection` of a shard's own questions; `generation` is its number.
const SHARD: u32 = u32::MAX - 1;
const TIMEOUT_MS: u32 = 200;
const PARTITIONS: u32 = 4;

struct Node {
    disk: SimDisk,
    shard: Shard,
    config: ShardConfig,
}

enum Letter {
    Question { from: u16, ticket: u64, request: Request<'static> },
    Answer { to: u16, ticket: u64, reply: Reply },
}

/// Shards, and what the routers of their cores would do.
struct World {
    nodes: Vec<Node>,
    catalog: Catalog,
    now: Now,
    rng: Rng,
    mail: Vec<Letter>,
    /// Groups are somebody else's: what was decided about them.
    decided: Vec<(String, ProducerKey, bool)>,
    answers: HashMap<u64, Reply>,
    next_request: u64,
    /// Questions aren't delivered while set.
    is_mail_stopped: bool,
}

fn node_config(shard: u16, count: u16) -> ShardConfig {
    let log = LogConfig {
        chunk_bytes: 32 << 10,
        tail_cache_bytes: 256 << 10,
        entropy: u64::from(shard) + 7,
        ..LogConfig::new(ShardId(shard), SEGMENT_BYTES, 1 << 20)
    };
    ShardConfig { checkpoint_after_state_bytes: 4 << 10, ..ShardConfig::new(ShardId(shard), count, log) }
}

fn open_node(mut disk: SimDisk, config: ShardConfig, now: Now) -> Node {
    let Opened { shard, live_files, .. } = Shard::open(config.clone(), Arena::new(64 << 20), &mut disk, now).unwrap();
    let files = disk.list().unwrap();
    disk.set_pool(files.iter().map(|file| file.file).filter(|file| !live_files.contains(file)).collect());
    Node { disk, shard, config }
}

impl World {
    /// Shards with one topic whose partitions 1..=4 are spread over them.
    fn new(seed: u64, count: u16) -> World {
        World::with_durability(seed, count, Durability::Durable)
    }

    fn with_durability(seed: u64, count: u16, durability: Durability) -> World {
        let nodes = (0..count)
            .map(|shard| open_node(SimDisk::new(seed * 31 + u64::from(shard), SimOptions::default()), node_config(shard, count), start()))
            .collect();
        let mut world = World {
            nodes,
            catalog: Catalog::default(),
            now: start(),
            rng: Rng::new(seed),
            mail: Vec::new(),
            decided: Vec::new(),
            answers: HashMap::new(),
            next_request: 0,
            is_mail_stopped: false,
        };
        world.begin();
        let config = TopicConfig { durability, ..TopicConfig::default() };
        let create = CreateTopic { name: "t".into(), partition_count: PARTITIONS, config };
        assert!(matches!(world.ask(&Request::CreateTopic(create)), Reply::Topic(_)));
        world
    }

    /// After every shard is open.
    fn begin(&mut self) {
        self.catalog = self.nodes[0].shard.catalog().clone();
        for node in &mut self.nodes {
            node.shard.set_catalog(&self.catalog, self.now);
        }
    }

    /// Everything dies at once. `is_power_cut`: what wasn't flushed may be lost.
    fn crash(&mut self, is_power_cut: bool) {
        self.mail.clear();
        self.answers.clear();
        for node in std::mem::take(&mut self.nodes) {
            let Node { disk, shard, config } = node;
            drop(shard);
            if is_power_cut {
                disk.power_cut();
            } else {
                disk.process_crash();
                disk.lock();
            }
            self.nodes.push(open_node(disk, config, self.now));
        }
        self.begin();
    }

    fn target(&self, request: &Request<'_>) -> u16 {
        let shard = match request {
            Request::Transaction(asked) => Some(self.catalog.coordinator(&asked.transactional_id)),
            Request::ToCheck(ask) => Some(ask.shard),
            Request::CheckTransaction(check) => Some(self.catalog.slots()[slot_of_producer(check.producer.id).unwrap()]),
            Request::InitProducer | Request::CreateTopic(_) | Request::DeleteTopic { .. } => Some(ShardId(0)),
            request => self.catalog.partition(request.partition().unwrap()).map(|entry| entry.shard),
        };
        shard.map_or(u16::MAX, |shard| shard.0)
    }

    fn turn(&mut self) {
        let us = if self.rng.one_in(50) { 3_000 } else { TURN_US };
        self.pass(us);
        for index in 0..self.nodes.len() {
            if self.rng.one_in(4) {
                continue;
            }
            let node = &mut self.nodes[index];
            node.shard.pump(self.now);
            while let Some((token, operation)) = node.shard.poll_operation() {
                node.disk.submit(token, operation);
            }
            node.disk.kick();
            let mut completions = Vec::new();
            node.disk.poll(&mut completions);
            completions.into_iter().for_each(|completion| node.shard.complete(completion, self.now));
        }
        self.collect();
        if !self.is_mail_stopped {
            self.deliver();
        }
        self.collect();
    }

    fn pass(&mut self, us: u64) {
        let before_ms = self.now.monotonic_us / 1000;
        self.now.monotonic_us += us;
        self.now.wall_ms += (self.now.monotonic_us / 1000 - before_ms) as i64;
    }

    fn collect(&mut self) {
        for index in 0..self.nodes.len() {
            while let Some(event) = self.nodes[index].shard.poll_event() {
                match event {
                    ShardEvent::Ask { ticket, request } => self.mail.push(Letter::Question { from: index as u16, ticket, request }),
                    ShardEvent::CatalogChanged { change_id, change } => {
                        self.catalog.apply(&change);
                        for node in &mut self.nodes {
                            node.shard.apply_catalog(&change, self.now);
                        }
                        self.nodes[0].shard.catalog_acknowledged(change_id);
                    }
                }
            }
            while let Some((origin, reply)) = self.nodes[index].shard.poll_reply() {
                if origin.connection == SHARD {
                    self.mail.push(Letter::Answer { to: origin.generation as u16, ticket: origin.request, reply });
                } else {
                    let twice = self.answers.insert(origin.request, reply);
                    assert!(twice.is_none(), "request {} answered twice: {twice:?}", origin.request);
                }
            }
        }
    }

    /// Letters arrive in any order.
    fn deliver(&mut self) {
        let mut letters = std::mem::take(&mut self.mail);
        self.rng.shuffle(&mut letters);
        for letter in letters {
            if self.rng.one_in(3) {
                self.mail.push(letter);
                continue;
            }
            match letter {
                Letter::Answer { to, ticket, reply } => self.nodes[usize::from(to)].shard.answered(ticket, reply, self.now),
                Letter::Question { from, ticket, request } => self.question(from, ticket, request),
            }
        }
    }

    fn question(&mut self, from: u16, ticket: u64, request: Request<'static>) {
        use crate::request::group::{GroupAction, GroupReply};
        if let Request::Group(asked) = &request {
            let reply = match &asked.action {
                GroupAction::Decide { producer_id, producer_epoch, commit } => {
                    self.decided.push((asked.group.clone(), ProducerKey { id: *producer_id, epoch: *producer_epoch }, *commit));
                    GroupReply::Decided
                }
                GroupAction::Commit(commit) => {
                    assert!(commit.transaction.is_some());
                    GroupReply::Committed { refused: Vec::new() }
                }
                other => panic!("{other:?}"),
            };
            return self.mail.push(Letter::Answer { to: from, ticket, reply: Reply::Group(Box::new(reply)) });
        }
        let origin = Origin { core: 0, connection: SHARD, generation: u32::from(from), request: ticket };
        let target = self.target(&request);
        if target == u16::MAX {
            let reply = Reply::Failed(ErrorCode::UnknownPartition.into());
            return self.mail.push(Letter::Answer { to: from, ticket, reply });
        }
        if self.nodes[usize::from(target)].shard.handle(origin, &request, self.now).is_err() {
            self.mail.push(Letter::Question { from, ticket, request });
        }
    }

    /// Hands a request in; `None` = busy.
    fn try_send(&mut self, request: &Request<'_>) -> Option<u64> {
        self.next_request += 1;
        let origin = Origin { core: 0, connection: 1, generation: 0, request: self.next_request };
        let target = self.target(request);
        let taken = self.nodes[usize::from(target)].shard.handle(origin, request, self.now);
        self.collect();
        taken.is_ok().then_some(self.next_request)
    }

    fn send(&mut self, request: &Request<'_>) -> u64 {
        for _ in 0..TURNS_MAX {
            if let Some(sent) = self.try_send(request) {
                return sent;
            }
            self.turn();
        }
        panic!("busy for {TURNS_MAX} turns");
    }

    fn answer(&mut self, request: u64) -> Reply {
        for _ in 0..TURNS_MAX {
            if let Some(reply) = self.answers.remove(&request) {
                return reply;
            }
            self.turn();
        }
        panic!("no answer after {TURNS_MAX} turns");
    }

    fn ask(&mut self, request: &Request<'_>) -> Reply {
        let sent = self.send(request);
        self.answer(sent)
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    fn act(&mut self, id: &str, action: TransactionAction) -> Reply {
        self.ask(&transaction(id, action))
    }

    fn init(&mut self, id: &str, current: Option<ProducerKey>) -> Result<ProducerKey, ErrorCode> {
        match self.act(id, TransactionAction::Init { timeout_ms: TIMEOUT_MS, check: None, current }) {
            Reply::Transaction(reply) => match *reply {
                TransactionReply::Producer(producer) => Ok(producer),
                other => panic!("{other:?}"),
            },
            reply => Err(failure(&reply)),
        }
    }

    /// Ids and producers of what is to be checked at the coordinator of [`A`].
    fn offered(&mut self, group: &str) -> Vec<(String, ProducerKey)> {
        let sent = self.send_to_check(group, 0);
        to_check(&self.answer(sent))
    }

    fn send_to_check(&mut self, group: &str, max_wait_ms: u32) -> u64 {
        let ask = ToCheck { group: group.into(), shard: self.catalog.coordinator(A), max: 9, max_wait_ms };
        self.send(&Request::ToCheck(Arc::new(ask)))
    }

    fn add(&mut self, id: &str, producer: ProducerKey, partitions: &[u32]) -> Result<(), ErrorCode> {
        let partitions = partitions.iter().copied().map(PartitionId).collect();
        done(&self.act(id, TransactionAction::AddPartitions { producer, partitions }))
    }

    fn end(&mut self, id: &str, producer: ProducerKey, commit: bool) -> Result<(), ErrorCode> {
        done(&self.act(id, TransactionAction::End { producer, commit, renews: false }))
    }

    /// As a native producer does: who it is in the next transaction.
    fn renew(&mut self, id: &str, producer: ProducerKey, commit: bool) -> Result<ProducerKey, ErrorCode> {
        match self.act(id, TransactionAction::End { producer, commit, renews: true }) {
            Reply::Transaction(reply) => match *reply {
                TransactionReply::Producer(producer) => Ok(producer),
                other => panic!("{other:?}"),
            },
            reply => Err(failure(&reply)),
        }
    }

    fn produce(&mut self, producer: ProducerKey, partition: u32, sequence: i32, values: &[&str]) -> Result<u64, ErrorCode> {
        self.store(&transactional(producer, partition, sequence, values))
    }

    fn write(&mut self, producer: ProducerKey, partition: u32, sequence: i32, values: &[&str]) -> Result<u64, ErrorCode> {
        self.store(&native(producer, partition, sequence, values))
    }

    fn store(&mut self, bytes: &[u8]) -> Result<u64, ErrorCode> {
        match self.ask(&Request::Produce { frame: Frame::parse(bytes).unwrap() }) {
            Reply::Produced { base_offset, .. } => Ok(base_offset.0),
            reply => Err(failure(&reply)),
        }
    }

    fn describe(&mut self, id: &str) -> Option<TransactionDescription> {
        match self.act(id, TransactionAction::Describe) {
            Reply::Transaction(reply) => match *reply {
                TransactionReply::Description(description) => Some(description),
                other => panic!("{other:?}"),
            },
            reply => {
                assert_eq!(failure(&reply), ErrorCode::TransactionNotFound);
                None
            }
        }
    }

    fn producers(&mut self, partition: u32) -> Vec<ProducerDescription> {
        match self.ask(&Request::DescribeProducers { partition: PartitionId(partition) }) {
            Reply::Producers(producers) => producers,
            other => panic!("{other:?}"),
        }
    }

    fn list(&mut self) -> Vec<TransactionListing> {
        let mut all = Vec::new();
        for index in 0..self.nodes.len() {
            self.next_request += 1;
            let origin = Origin { core: 0, connection: 1, generation: 0, request: self.next_request };
            self.nodes[index].shard.handle(origin, &Request::ShardTransactions, self.now).unwrap();
            match self.answer(origin.request) {
                Reply::Transactions(transactions) => all.extend(transactions),
                other => panic!("{other:?}"),
            }
        }
        all.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
        all
    }

    fn shard_of(&self, partition: u32) -> usize {
        usize::from(self.catalog.partition(PartitionId(partition)).unwrap().shard.0)
    }

    fn fetch(&mut self, fetch: Fetch) -> (Fetched, Vec<u8>) {
        let node = self.shard_of(fetch.partition.0);
        let reply = self.ask(&Request::Fetch(fetch));
        let Reply::Fetched { head, data } = reply else { panic!("{reply:?}") };
        let shard = &mut self.nodes[node].shard;
        let bytes: Vec<u8> = match &data {
            FetchData::Extents(extents) => {
                let bytes = extents.iter().flat_map(|extent| shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
                shard.release_extents(extents);
                bytes
            }
            FetchData::Blocks { blocks, .. } => blocks.iter().flat_map(|block| block.to_vec()).collect(),
            FetchData::Owned(bytes) => bytes.clone(),
        };
        assert_eq!(bytes.len(), head.bytes as usize);
        (head, bytes)
    }

    /// What a committed-only reader gets of a partition.
    fn committed(&mut self, partition: u32) -> Vec<String> {
        let (mut at, mut all) = (0, Vec::new());
        loop {
            let max_bytes = self.rng.range(1..20_000) as u32;
            let (head, bytes) = self.fetch(Fetch { committed_only: true, max_bytes, ..now_fetch(partition, at) });
            for frame in frames(&bytes).map(Result::unwrap) {
                frame.verify_header().unwrap();
                frame.verify_body().unwrap();
                assert!(frame.end_offset() <= head.last_stable, "beyond the last stable offset");
                if frame.base_offset().0 >= at && !is_void(&frame, &head.aborted) {
                    all.extend(values_of(&frame));
                }
            }
            if head.next_offset.0 == at {
                return all;
            }
            at = head.next_offset.0;
        }
    }

    /// Every frame of a partition.
    fn everything(&mut self, partition: u32) -> Vec<(u64, u8, ProducerKey, Vec<String>)> {
        let (mut at, mut all) = (0, Vec::new());
        loop {
            let (head, bytes) = self.fetch(now_fetch(partition, at));
            for frame in frames(&bytes).map(Result::unwrap).filter(|frame| frame.base_offset().0 >= at) {
                let header = &frame.header.producer;
                let key = ProducerKey { id: ProducerId(header.producer_id), epoch: header.producer_epoch };
                let values = if header.flags & flags::CONTROL != 0 { Vec::new() } else { values_of(&frame) };
                all.push((frame.base_offset().0, header.flags, key, values));
            }
            if head.next_offset.0 == at {
                return all;
            }
            at = head.next_offset.0;
        }
    }

    /// Every aborted transaction that the partition remembers.
    fn aborted(&self, partition: u32) -> Box<[AbortedTransaction]> {
        let node = &self.nodes[self.shard_of(partition)];
        let transactions = node.shard.partitions.get(PartitionId(partition)).and_then(|partition| partition.transactions.as_deref());
        transactions.map_or_else(Box::default, |transactions| transactions.aborted_in(Offset(0), Offset(u64::MAX)))
    }

    /// (last stable, high watermark)
    fn ends(&self, partition: u32) -> (u64, u64) {
        let partition_id = PartitionId(partition);
        let partition = self.nodes[self.shard_of(partition)].shard.partitions.get(partition_id).unwrap();
        (partition.last_stable().0, partition.high_watermark.0)
    }
}

fn transaction(id: &str, action: TransactionAction) -> Request<'static> {
    Request::Transaction(Arc::new(TransactionRequest { transactional_id: id.into(), action }))
}

/// A batch as from Kafka's door, as far as shards look at it: its producer has told the coordinator about the partition.
fn transactional(producer: ProducerKey, partition: u32, sequence: i32, values: &[&str]) -> Vec<u8> {
    let (identity, mut bytes) = (identity_of(producer, partition, sequence), native(producer, partition, sequence, values));
    ringmain_wire::frame::seal(&mut bytes, ringmain_wire::Format::Kafka, values.len() as u32, identity);
    bytes
}

/// A native batch: its partition joins by itself.
fn native(producer: ProducerKey, partition: u32, sequence: i32, values: &[&str]) -> Vec<u8> {
    batch_of(identity_of(producer, partition, sequence), values)
}

fn identity_of(producer: ProducerKey, partition: u32, sequence: i32) -> Identity {
    Identity {
        producer_id: producer.id,
        producer_epoch: producer.epoch,
        sequence,
        flags: flags::TRANSACTIONAL,
        ..Identity::plain(PartitionId(partition))
    }
}

fn values_of(frame: &Frame<'_>) -> Vec<String> {
    let records = Records::new(frame.body(), frame.header.producer.record_count).unwrap();
    records.map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap()).collect()
}

fn to_check(reply: &Reply) -> Vec<(String, ProducerKey)> {
    let Reply::ToCheck(listings) = reply else { panic!("{reply:?}") };
    listings.iter().map(|listing| (listing.transactional_id.clone(), listing.producer)).collect()
}

fn done(reply: &Reply) -> Result<(), ErrorCode> {
    match reply {
        Reply::Transaction(reply) => {
            assert_eq!(**reply, TransactionReply::Done);
            Ok(())
        }
        reply => Err(failure(reply)),
    }
}

/// Two ids coordinated on different shards of two.
const A: &str = "producer-a";

#[test]
fn committed_transaction_becomes_visible_everywhere_and_not_before() {
    for seed in 0..10 {
        let mut world = World::new(seed, 2);
        let producer = world.init(A, None).unwrap();
        assert_eq!(producer.epoch, 0);
        world.add(A, producer, &[1, 2, 3]).unwrap();
        for partition in 1..=3 {
            assert_eq!(world.produce(producer, partition, 0, &["x", "y"]).unwrap(), 0);
            assert_eq!(world.ends(partition), (0, 2));
            assert!(world.committed(partition).is_empty());
        }
        let uncommitted: Vec<_> = world.everything(1).into_iter().map(|(offset, _, _, values)| (offset, values.len())).collect();
        assert_eq!(uncommitted, [(0, 2)], "others read it at once");
        world.end(A, producer, true).unwrap();
        for partition in 1..=3 {
            assert_eq!(world.committed(partition), ["x", "y"], "the answer came when everybody had heard");
            assert_eq!(world.ends(partition), (3, 3), "the marker takes an offset");
        }
        assert_eq!(world.ends(4), (0, 0));
    }
}

#[test]
fn aborted_transaction_is_told_to_committed_readers_and_others_see_it() {
    let mut world = World::new(1, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1, 2]).unwrap();
    world.produce(producer, 1, 0, &["gone"]).unwrap();
    world.end(A, producer, false).unwrap();
    world.add(A, producer, &[1]).unwrap();
    world.produce(producer, 1, 1, &["stays"]).unwrap();
    world.end(A, producer, true).unwrap();
    assert_eq!(world.committed(1), ["stays"]);
    let (head, _) = world.fetch(Fetch { committed_only: true, ..now_fetch(1, 0) });
    let aborted: Vec<_> = head.aborted.iter().map(|a| (a.producer_id, a.first_offset.0, a.last_offset.0)).collect();
    assert_eq!(aborted, [(producer.id, 0, 1)]);
    let (head, _) = world.fetch(Fetch { committed_only: true, ..now_fetch(1, 2) });
    assert!(head.aborted.is_empty(), "it ends before what was asked for");
    let (head, _) = world.fetch(now_fetch(1, 0));
    assert!(head.aborted.is_empty(), "nobody asked");
    let kinds: Vec<_> = world.everything(1).into_iter().map(|(offset, flags, ..)| (offset, flags)).collect();
    use flags::{ABORTED, CONTROL, TRANSACTIONAL};
    assert_eq!(kinds, [(0, TRANSACTIONAL), (1, TRANSACTIONAL | CONTROL | ABORTED), (2, TRANSACTIONAL), (3, TRANSACTIONAL | CONTROL)]);
    assert!(world.everything(2).is_empty(), "nothing was written there, so nothing ends there");
}

#[test]
fn open_transaction_holds_back_what_comes_after_it() {
    let mut world = World::new(2, 2);
    let producer = world.init(A, None).unwrap();
    let other = world.init("b", None).unwrap();
    world.add(A, producer, &[1]).unwrap();
    world.add("b", other, &[1]).unwrap();
    let plain = batch(1, &["before"]);
    world.ask(&Request::Produce { frame: Frame::parse(&plain).unwrap() });
    world.produce(producer, 1, 0, &["a"]).unwrap();
    world.produce(other, 1, 0, &["b"]).unwrap();
    world.end("b", other, true).unwrap();
    assert_eq!(world.ends(1).0, 1);
    assert_eq!(world.committed(1), ["before"]);
    let list = Request::ListOffset { partition: PartitionId(1), timestamp_ms: control::LATEST, committed_only: true };
    assert!(matches!(world.ask(&list), Reply::Offset { offset: Offset(1), .. }));
    // A committed-only reader waits for the end of the transaction.
    let waiting = world.send(&Request::Fetch(Fetch { committed_only: true, max_wait_ms: 60_000, min_bytes: 1, ..now_fetch(1, 1) }));
    world.turns(100);
    assert!(!world.answers.contains_key(&waiting));
    world.end(A, producer, true).unwrap();
    assert!(matches!(world.answer(waiting), Reply::Fetched { head, .. } if head.bytes > 0));
    assert_eq!(world.committed(1), ["before", "a", "b"]);
}

#[test]
fn batch_of_a_partition_that_was_not_added_is_refused() {
    let mut world = World::new(3, 2);
    let producer = world.init(A, None).unwrap();
    assert_eq!(world.produce(producer, 1, 0, &["x"]), Err(ErrorCode::InvalidTransactionState), "no transaction");
    world.add(A, producer, &[1]).unwrap();
    assert_eq!(world.produce(producer, 2, 0, &["x"]), Err(ErrorCode::InvalidTransactionState));
    world.produce(producer, 1, 0, &["x"]).unwrap();
    world.end(A, producer, true).unwrap();
    // Late, of the transaction that is over.
    assert_eq!(world.produce(producer, 1, 1, &["late"]), Err(ErrorCode::InvalidTransactionState));
    let stranger = ProducerKey { id: ProducerId(5), epoch: 0 };
    assert_eq!(world.produce(stranger, 1, 0, &["x"]), Err(ErrorCode::ProducerMismatch));
    let unknown = ProducerKey { id: transactional_producer(5_000_000, 3).unwrap(), epoch: 0 };
    assert_eq!(world.produce(unknown, 1, 0, &["x"]), Err(ErrorCode::ProducerMismatch));
    assert_eq!(world.ends(1), (2, 2));
}

#[test]
fn batches_that_come_while_the_coordinator_is_asked_keep_their_order() {
    let mut world = World::new(4, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1, 2]).unwrap();
    world.is_mail_stopped = true;
    let sent: Vec<u64> = (0..5)
        .map(|n| {
            let bytes = transactional(producer, 1, n, &[&n.to_string()]);
            world.send(&Request::Produce { frame: Frame::parse(&bytes).unwrap() })
        })
        .collect();
    world.turns(50);
    assert!(sent.iter().all(|request| !world.answers.contains_key(request)));
    world.is_mail_stopped = false;
    let offsets: Vec<u64> = sent.into_iter().map(|request| produced(&world.answer(request)).0).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
    // Twice the same while it is open, and after.
    assert_eq!(world.produce(producer, 1, 4, &["4"]), Ok(4));
    world.end(A, producer, true).unwrap();
    assert_eq!(world.produce(producer, 1, 4, &["4"]), Ok(4));
    assert_eq!(world.committed(1), ["0", "1", "2", "3", "4"]);
}

#[test]
fn producer_that_was_taken_over_is_fenced_everywhere() {
    let mut world = World::new(5, 2);
    let old = world.init(A, None).unwrap();
    world.add(A, old, &[1, 2]).unwrap();
    world.produce(old, 1, 0, &["old"]).unwrap();
    let new = world.init(A, None).unwrap();
    assert_eq!(new, ProducerKey { epoch: 2, ..old }, "one epoch for the abort, one for the successor");
    assert_eq!(world.produce(old, 1, 1, &["old"]), Err(ErrorCode::StaleProducerEpoch));
    assert_eq!(world.produce(old, 2, 0, &["old"]), Err(ErrorCode::StaleProducerEpoch));
    assert_eq!(world.add(A, old, &[3]), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.end(A, old, true), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.init(A, Some(old)), Err(ErrorCode::ProducerFenced));
    assert!(world.committed(1).is_empty());
    world.add(A, new, &[1]).unwrap();
    world.produce(new, 1, 0, &["new"]).unwrap();
    world.end(A, new, true).unwrap();
    assert_eq!(world.committed(1), ["new"]);
    assert_eq!(world.add("nobody", new, &[1]), Err(ErrorCode::ProducerMismatch));
}

#[test]
fn own_next_epoch_is_given_once_and_repeated_on_demand() {
    let mut world = World::new(6, 2);
    let first = world.init(A, None).unwrap();
    let second = world.init(A, Some(first)).unwrap();
    assert_eq!(second.epoch, 1);
    assert_eq!(world.init(A, Some(first)), Ok(second), "the answer got lost");
    let third = world.init(A, Some(second)).unwrap();
    assert_eq!(third.epoch, 2);
    assert_eq!(world.init(A, Some(first)), Err(ErrorCode::ProducerFenced));
    assert_eq!(
        world.act(A, TransactionAction::Init { timeout_ms: 0, check: None, current: None }).code(),
        ErrorCode::InvalidTransactionTimeout
    );
    assert_eq!(
        world.act("", TransactionAction::Init { timeout_ms: 1, check: None, current: None }).code(),
        ErrorCode::InvalidTransactionalId
    );
}

#[test]
fn used_up_epochs_lead_to_a_new_producer_id() {
    let mut world = World::new(7, 2);
    let first = world.init(A, None).unwrap();
    let shard = usize::from(world.catalog.coordinator(A).0);
    let set_epoch = |world: &mut World, epoch: u16| {
        let piece = TransactionPiece { epoch, ..world.nodes[shard].shard.coordinator.pieces_after(None).next().unwrap() };
        world.nodes[shard].shard.coordinator.restore(piece);
    };
    set_epoch(&mut world, i16::MAX as u16 - 2);
    let last = world.init(A, None).unwrap();
    assert_eq!(last, ProducerKey { epoch: i16::MAX as u16 - 1, ..first });
    // Even the last one can be fenced.
    world.add(A, last, &[1]).unwrap();
    world.produce(last, 1, 0, &["x"]).unwrap();
    let new = world.init(A, Some(last)).unwrap();
    assert_ne!(new.id, first.id);
    assert_eq!(new.epoch, 0);
    assert_eq!(slot_of_producer(new.id), slot_of_producer(first.id));
    assert_eq!(world.produce(last, 1, 1, &["x"]), Err(ErrorCode::StaleProducerEpoch));
    world.add(A, new, &[1]).unwrap();
    world.produce(new, 1, 0, &["y"]).unwrap();
    world.end(A, new, true).unwrap();
    assert_eq!(world.committed(1), ["y"]);
    world.crash(true);
    assert_eq!(world.describe(A).unwrap().listing.producer, new);
}

#[test]
fn transaction_that_lasts_too_long_is_aborted() {
    let mut world = World::new(8, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1]).unwrap();
    world.produce(producer, 1, 0, &["slow"]).unwrap();
    world.pass(u64::from(TIMEOUT_MS) * 1000 + 1);
    world.turns(200);
    assert_eq!(world.ends(1), (2, 2));
    assert_eq!(world.end(A, producer, true), Err(ErrorCode::ProducerFenced));
    assert_eq!(world.produce(producer, 1, 1, &["slow"]), Err(ErrorCode::StaleProducerEpoch));
    assert!(world.committed(1).is_empty());
    // It isn't taken over by anybody: it may go on.
    let next = world.init(A, Some(producer)).unwrap();
    assert_eq!(next.epoch, 1);
    world.add(A, next, &[1]).unwrap();
    world.produce(next, 1, 0, &["again"]).unwrap();
    world.end(A, next, true).unwrap();
    assert_eq!(world.committed(1), ["again"]);
}

#[test]
fn idle_transactional_id_is_forgotten_after_a_week() {
    let mut world = World::new(9, 2);
    world.init(A, None).unwrap();
    world.pass(6 * 24 * 3600 * 1_000_000);
    world.turns(20);
    world.crash(false);
    assert!(world.describe(A).is_some());
    world.pass(2 * 24 * 3600 * 1_000_000);
    world.turns(50);
    assert!(world.describe(A).is_none());
    world.crash(true);
    assert!(world.describe(A).is_none());
    let again = world.init(A, None).unwrap();
    assert_eq!(again.epoch, 0);
}

#[test]
fn transactions_can_be_seen_from_outside() {
    let mut world = World::new(10, 2);
    let producer = world.init(A, None).unwrap();
    let other = world.init("b", None).unwrap();
    world.add(A, producer, &[2, 1]).unwrap();
    done(&world.act(A, TransactionAction::AddGroup { producer, group: "g".into() })).unwrap();
    world.produce(producer, 1, 0, &["x", "y"]).unwrap();
    let described = world.describe(A).unwrap();
    assert_eq!((described.partitions, described.groups), (vec![PartitionId(1), PartitionId(2)], vec!["g".to_owned()]));
    assert_eq!((described.listing.phase, described.timeout_ms), (TransactionPhase::Ongoing, TIMEOUT_MS));
    let listed: Vec<_> = world.list().into_iter().map(|l| (l.transactional_id, l.producer, l.phase)).collect();
    assert_eq!(listed, [("b".into(), other, TransactionPhase::Empty), (A.into(), producer, TransactionPhase::Ongoing)]);
    let [seen] = world.producers(1)[..] else { panic!() };
    assert_eq!((seen.producer, seen.last_sequence, seen.transaction_start), (producer, 1, Some(Offset(0))));
    world.end(A, producer, true).unwrap();
    assert_eq!(world.decided, [("g".to_owned(), producer, true)]);
    assert_eq!(world.producers(1)[0].transaction_start, None);
    assert_eq!(world.describe(A).unwrap().listing.phase, TransactionPhase::Committed);
    assert!(world.describe("nobody").is_none());
}

#[test]
fn offsets_of_a_group_travel_through_the_coordinator_and_hold_back_the_decision() {
    use crate::request::group::{Commit, GroupOffset, GroupReply, MemberRef, NO_GENERATION};
    let mut world = World::new(11, 2);
    let producer = world.init(A, None).unwrap();
    let offset = GroupOffset { partition: PartitionId(1), offset: Offset(7), leader_epoch: -1, metadata: String::new() };
    let commit = Commit { member: MemberRef::default(), generation: NO_GENERATION, transaction: None, offsets: vec![offset] };
    let offsets = || TransactionAction::CommitOffsets { producer, group: "g".into(), commit: commit.clone() };
    assert_eq!(world.act(A, offsets()).code(), ErrorCode::InvalidTransactionState);
    done(&world.act(A, TransactionAction::AddGroup { producer, group: "g".into() })).unwrap();
    world.is_mail_stopped = true;
    let sent = world.send(&transaction(A, offsets()));
    assert_eq!(world.end(A, producer, true), Err(ErrorCode::ConcurrentTransactions), "they are on their way");
    world.is_mail_stopped = false;
    assert!(matches!(world.answer(sent), Reply::Group(reply) if *reply == GroupReply::Committed { refused: Vec::new() }));
    world.end(A, producer, true).unwrap();
    assert_eq!(world.decided, [("g".to_owned(), producer, true)]);
}

#[test]
fn decision_survives_a_crash_and_is_told_by_the_next_life() {
    let mut world = World::new(12, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1, 2]).unwrap();
    world.produce(producer, 1, 0, &["x"]).unwrap();
    world.produce(producer, 2, 0, &["x"]).unwrap();
    world.is_mail_stopped = true;
    let sent = world.send(&transaction(A, TransactionAction::End { producer, commit: true, renews: false }));
    world.turns(50);
    // Nobody hears of it; the answer comes all the same, because it is decided.
    world.pass(2_000_000);
    let reply = world.answer(sent);
    done(&reply).unwrap();
    assert_eq!(world.describe(A).unwrap().listing.phase, TransactionPhase::Committing);
    assert_eq!(world.add(A, producer, &[1]), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(world.ends(1), (0, 1));
    world.crash(true);
    world.is_mail_stopped = false;
    world.turns(100);
    assert_eq!(world.committed(1), ["x"]);
    assert_eq!(world.committed(2), ["x"]);
    assert_eq!(world.end(A, producer, true), Ok(()), "asked again");
    assert_eq!(world.end(A, producer, false), Err(ErrorCode::InvalidTransactionState));
}

#[test]
fn participant_that_is_gone_does_not_hold_a_transaction_up() {
    let mut world = World::new(13, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1, 2]).unwrap();
    world.produce(producer, 1, 0, &["x"]).unwrap();
    assert!(matches!(world.ask(&Request::DeleteTopic { name: "t" }), Reply::Deleted));
    world.end(A, producer, true).unwrap();
    assert_eq!(world.describe(A).unwrap().listing.phase, TransactionPhase::Committed);
}

#[test]
fn producer_outside_of_its_open_transaction_is_refused() {
    let mut world = World::new(14, 2);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1]).unwrap();
    world.produce(producer, 1, 0, &["x"]).unwrap();
    let plain = idempotent(1, producer.id.0, producer.epoch, 1, 1);
    let reply = world.ask(&Request::Produce { frame: Frame::parse(&plain).unwrap() });
    assert_eq!(failure(&reply), ErrorCode::InvalidTransactionState);
    for flags in [flags::CONTROL, flags::CONTROL | flags::TRANSACTIONAL] {
        let identity = Identity { producer_id: producer.id, sequence: 1, flags, ..Identity::plain(PartitionId(1)) };
        let marker = batch_of(identity, &["x"]);
        let reply = world.ask(&Request::Produce { frame: Frame::parse(&marker).unwrap() });
        assert_eq!(failure(&reply), ErrorCode::InvalidBatch);
    }
}

/// The last readable run lies on the disk only, and goes on beyond the last stable offset.
#[test]
fn cold_records_below_an_open_transaction_are_read() {
    let mut world = World::new(15, 1);
    let producer = world.init(A, None).unwrap();
    world.add(A, producer, &[1]).unwrap();
    let plain = batch(1, &["first"]);
    let frame = Frame::parse(&plain).unwrap();
    let sent = world.try_send(&Request::Produce { frame }).unwrap();
    let open = transactional(producer, 1, 0, &["open"]);
    world.try_send(&Request::Produce { frame: Frame::parse(&open).unwrap() }).unwrap();
    world.answer(sent);
    let filler = "x".repeat(8 << 10);
    for _ in 0..80 {
        let plain = batch(2, &[&filler]);
        world.ask(&Request::Produce { frame: Frame::parse(&plain).unwrap() });
    }
    assert_eq!(world.ends(1), (1, 2));
    assert_eq!(world.committed(1), ["first"]);
}

#[test]
fn marker_of_a_topic_without_durability_is_durable() {
    for durability in [Durability::Memory, Durability::Written] {
        let mut world = World::with_durability(16, 2, durability);
        let producer = world.init(A, None).unwrap();
        world.add(A, producer, &[1, 2]).unwrap();
        world.produce(producer, 1, 0, &["x"]).unwrap();
        world.produce(producer, 2, 0, &["x"]).unwrap();
        world.end(A, producer, true).unwrap();
        world.crash(true);
        assert_eq!((world.committed(1), world.committed(2)), (vec!["x".to_owned()], vec!["x".to_owned()]));
        let (stable, end) = world.ends(1);
        assert_eq!(stable, end);
    }
}

#[test]
fn restart_keeps_what_is_open_and_what_was_aborted() {
    for (seed, is_power_cut) in [(17, true), (18, false)] {
        let mut world = World::new(seed, 2);
        let producer = world.init(A, None).unwrap();
        let other = world.init("b", None).unwrap();
        // Enough for checkpoints and more than one segment.
        let filler = "x".repeat(4 << 10);
        for round in 0..40 {
            world.add(A, producer, &[1]).unwrap();
            world.produce(producer, 1, round, &[&filler]).unwrap();
            world.end(A, producer, round % 4 == 0).unwrap();
        }
        world.add("b", other, &[1]).unwrap();
        world.produce(other, 1, 0, &["open"]).unwrap();
        world.turns(200);
        let before = (world.ends(1), world.committed(1).len(), world.aborted(1));
        assert_eq!((before.0.0, before.1), (80, 10));
        world.crash(is_power_cut);
        let after = (world.ends(1), world.committed(1).len(), world.aborted(1));
        assert_eq!(after, before);
        world.produce(other, 1, 1, &["more"]).unwrap();
        world.end("b", other, true).unwrap();
        assert_eq!(world.committed(1).len(), 12);
    }
}

#[test]
fn aborted_transactions_die_with_the_records() {
    let mut transactions = super::participant::PartitionTransactions::default();
    for n in 0..10 {
        transactions.begin(Offset(n * 10), ProducerId(n as i64));
    }
    // 0 ends last, so everything else overlaps with it.
    for n in (0..10).rev() {
        transactions.end(ProducerId(n as i64), Offset(n * 10), Offset(200 - n), false, 1);
    }
    assert_eq!(transactions.first_unstable(), Some(Offset(0)));
    transactions.settle(1);
    assert_eq!(transactions.first_unstable(), None);
    assert_eq!(transactions.aborted_in(Offset(0), Offset(1)).len(), 1);
    assert_eq!(transactions.aborted_in(Offset(50), Offset(51)).len(), 6);
    assert_eq!(transactions.aborted_in(Offset(195), Offset(300)).len(), 6);
    assert_eq!(transactions.prune(Offset(195)), 4);
    assert_eq!(transactions.counts(), (0, 6));
    transactions.begin(Offset(300), ProducerId(1));
    transactions.end(ProducerId(1), Offset(300), Offset(301), false, 2);
    assert_eq!(transactions.aborted_in(Offset(195), Offset(201)).len(), 6, "stops where everything was decided");
}

#[test]
fn ids_of_transactional_producers_say_their_slot() {
    for slot in [0, 1, 63] {
        for number in [0, 1, 1_000_000, (1 << 42) - 1] {
            let id = transactional_producer(number, slot).unwrap();
            assert_eq!(slot_of_producer(id), Some(slot));
            assert!(id.0 < 1 << 53);
        }
    }
    assert_eq!(transactional_producer(1 << 42, 0), None);
    assert_eq!(transactional_producer(-1, 0), None);
    for id in [-1, 0, 5, (1 << 48) - 1, 1 << 49, i64::MAX] {
        assert_eq!(slot_of_producer(ProducerId(id)), None);
    }
}

impl Reply {
    fn code(&self) -> ErrorCode {
        failure(self)
    }
}

// ---- random lives --------------------------------------------------------------------------------------

/// What a client tried in one transaction, and what it knows of the end.
#[derive(Debug, Default)]
struct Tried {
    /// Batches that were acknowledged.
    written: BTreeSet<(u32, String)>,
    asked_to_commit: bool,
    committed: bool,
    aborted: bool,
}

#[derive(Clone, Debug)]
enum Doing {
    Init,
    Add,
    Produce { partition: u32, sequence: i32, value: String },
    End { commit: bool },
}

/// A native producer: its partitions join by themselves, and every transaction has an epoch of its own.
#[test]
fn partitions_join_by_themselves_and_an_epoch_is_one_transaction() {
    for seed in 0..10 {
        let mut world = World::new(seed, 2);
        let first = world.init(A, None).unwrap();
        for partition in 1..=3 {
            world.write(first, partition, 0, &["x"]).unwrap();
            assert!(world.committed(partition).is_empty());
        }
        assert_eq!(world.describe(A).unwrap().partitions, [1, 2, 3].map(PartitionId));
        let second = world.renew(A, first, true).unwrap();
        assert_eq!((second.id, second.epoch), (first.id, first.epoch + 1));
        assert_eq!(world.renew(A, first, true), Ok(second), "the answer didn't arrive: asked again");
        // What comes late begins nothing: where the transaction was, and where it wasn't.
        assert_eq!(world.write(first, 1, 1, &["late"]), Err(ErrorCode::StaleProducerEpoch));
        assert_eq!(world.write(first, 4, 0, &["late"]), Err(ErrorCode::InvalidTransactionState));
        assert_eq!(world.write(second, 1, 0, &["gone"]), Ok(2));
        assert_eq!(world.renew(A, first, true), Err(ErrorCode::InvalidTransactionState), "another one is open");
        world.crash(true);
        let third = world.renew(A, second, false).unwrap();
        let empty = third;
        let third = world.renew(A, empty, true).unwrap();
        assert_eq!(third.epoch, empty.epoch + 1, "nothing was done in it; nothing late begins it");
        assert_eq!(world.renew(A, empty, true), Ok(third));
        assert_eq!(world.write(empty, 4, 0, &["late"]), Err(ErrorCode::InvalidTransactionState));
        world.write(third, 2, 0, &["y"]).unwrap();
        world.pass(u64::from(TIMEOUT_MS) * 1_000);
        world.turns(200);
        assert_eq!(world.renew(A, third, true), Err(ErrorCode::InvalidTransactionState), "its timeout has aborted it");
        let fourth = world.init(A, Some(third)).unwrap();
        assert_eq!(fourth.epoch, third.epoch + 1);
        world.write(fourth, 2, 0, &["z"]).unwrap();
        let other = world.init(A, None).unwrap();
        assert_eq!(world.renew(A, fourth, true), Err(ErrorCode::ProducerFenced));
        assert_eq!(world.init(A, Some(fourth)), Err(ErrorCode::ProducerFenced));
        world.write(other, 3, 0, &["w"]).unwrap();
        world.renew(A, other, true).unwrap();
        let seen: Vec<Vec<String>> = (1..=4).map(|partition| world.committed(partition)).collect();
        assert_eq!(seen, [vec!["x"], vec!["x"], vec!["x", "w"], vec![]]);
    }
}

/// Many partitions at once: none is refused because another one is about to join.
#[test]
fn partitions_that_join_at_once_all_do() {
    for seed in 0..20 {
        let mut world = World::new(seed, 2);
        let producer = world.init(A, None).unwrap();
        let sent: Vec<u64> = (1..=PARTITIONS)
            .map(|partition| world.send(&Request::Produce { frame: Frame::parse(&native(producer, partition, 0, &["x"])).unwrap() }))
            .collect();
        for request in sent {
            let reply = world.answer(request);
            assert!(matches!(reply, Reply::Produced { .. }), "{reply:?}");
        }
        world.renew(A, producer, true).unwrap();
        (1..=PARTITIONS).for_each(|partition| assert_eq!(world.committed(partition), ["x"]));
    }
}

#[test]
fn open_transaction_is_offered_to_its_group_until_it_is_decided() {
    const AFTER_MS: u32 = 50;
    for seed in 0..5 {
        let mut world = World::new(seed, 2);
        let check = Some(CheckBack { group: "g".into(), after_ms: AFTER_MS });
        let init = TransactionAction::Init { timeout_ms: TIMEOUT_MS, check, current: None };
        let Reply::Transaction(reply) = world.act(A, init) else { panic!("no producer") };
        let TransactionReply::Producer(producer) = *reply else { panic!("{reply:?}") };
        let later = |world: &mut World| {
            world.pass(u64::from(AFTER_MS) * 1_000);
            world.turns(20);
        };
        world.write(producer, 1, 0, &["x"]).unwrap();
        assert_eq!(world.offered("g"), []);
        let (waits, others) = (world.send_to_check("g", 10_000), world.send_to_check("other", 10_000));
        later(&mut world);
        assert_eq!(to_check(&world.answer(waits)), [(A.to_string(), producer)]);
        assert_eq!(world.offered("g"), [], "not to two at once");
        assert!(!world.answers.contains_key(&others));
        later(&mut world);
        assert_eq!(world.offered("g"), [(A.to_string(), producer)], "nobody has decided");
        // Decided by somebody else: its own producer hears the same, or that it is late.
        let next = world.renew(A, producer, true).unwrap();
        assert_eq!(world.renew(A, producer, true), Ok(next));
        assert_eq!(world.renew(A, producer, false), Err(ErrorCode::InvalidTransactionState));
        assert_eq!(world.committed(1), ["x"]);
        later(&mut world);
        assert_eq!(world.offered("g"), [], "decided");
        // Also after a crash; then nobody decides, and its time is over.
        world.write(next, 1, 0, &["gone"]).unwrap();
        later(&mut world);
        world.crash(true);
        world.turns(50);
        assert_eq!(world.offered("g"), [], "its time begins anew");
        later(&mut world);
        assert_eq!(world.offered("g"), [(A.to_string(), next)]);
        later(&mut world);
        world.pass(u64::from(TIMEOUT_MS) * 1_000);
        world.turns(300);
        assert_eq!(world.offered("g"), [], "aborted");
        assert_eq!(world.committed(1), ["x"]);
        // From now on nobody is asked, through a checkpoint and a crash.
        let plain = world.init(A, None).unwrap();
        world.crash(false);
        world.write(plain, 1, 0, &["y"]).unwrap();
        later(&mut world);
        assert_eq!(world.offered("g"), []);
        world.renew(A, plain, true).unwrap();
        assert_eq!(world.committed(1), ["x", "y"]);
    }
}

#[test]
fn waits_for_transactions_to_check_end_with_their_time_and_their_connection() {
    let mut world = World::new(1, 2);
    let waits = world.send_to_check("g", 20);
    world.turns(5);
    assert!(!world.answers.contains_key(&waits));
    world.pass(20_000);
    assert_eq!(to_check(&world.answer(waits)), []);
    let gone = world.send_to_check("g", 20);
    let node = usize::from(world.catalog.coordinator(A).0);
    world.nodes[node].shard.cancel(0, 1, 0, world.now);
    world.pass(100_000);
    world.turns(50);
    assert!(!world.answers.contains_key(&gone), "nobody is there to hear it");
    let stopped = world.send_to_check("g", 10_000);
    world.nodes[node].shard.stop(world.now);
    assert_eq!(failure(&world.answer(stopped)), ErrorCode::ShuttingDown);
}

/// An application with one transactional producer; two may use the same id.
struct Client {
    id: &'static str,
    /// It leaves it to the partitions to join.
    is_native: bool,
    producer: Option<ProducerKey>,
    /// Key of the last one, to ask for the next epoch with.
    last: Option<ProducerKey>,
    sequences: HashMap<u32, i32>,
    /// Number of the open transaction, and its partitions.
    open: Option<(usize, Vec<u32>)>,
    batches_left: u32,
    doing: Option<(u64, Doing)>,
    /// To be sent again as it was.
    again: Option<Doing>,
    wait_turns: u64,
}

struct Life {
    world: World,
    clients: Vec<Client>,
    tried: Vec<Tried>,
    /// By id: the newest producer that somebody was given.
    newest: HashMap<&'static str, ProducerKey>,
    /// Requests sent by a producer that somebody had taken over already.
    stale: HashSet<u64>,
    crashes: u32,
}

impl Life {
    fn new(seed: u64, shards: u16) -> Life {
        let durability = if seed % 5 == 4 { Durability::Written } else { Durability::Durable };
        // Without durability what was acknowledged may be gone after a power cut: those lives see kills only.
        let world = World::with_durability(seed, shards, durability);
        let client = |id| Client {
            id,
            is_native: matches!(id, "b" | "d"),
            producer: None,
            last: None,
            sequences: HashMap::new(),
            open: None,
            batches_left: 0,
            doing: None,
            again: None,
            wait_turns: 0,
        };
        let clients = ["a", "b", "c", "d", "d"].into_iter().map(client).collect();
        Life { world, clients, tried: Vec::new(), newest: HashMap::new(), stale: HashSet::new(), crashes: 0 }
    }

    fn run(&mut self, turns: usize, is_power_cut: bool) {
        for _ in 0..turns {
            for client in 0..self.clients.len() {
                self.step(client);
            }
            self.world.turn();
            if self.world.rng.one_in(400) {
                let victim = self.world.rng.index(self.world.nodes.len());
                let count = self.world.rng.range(1..12);
                self.world.nodes[victim].disk.cut_after(count);
            }
            if self.world.nodes.iter().any(|node| node.disk.is_cut()) {
                self.crash(is_power_cut);
            }
            if self.world.rng.one_in(300) {
                self.look();
            }
        }
    }

    fn crash(&mut self, is_power_cut: bool) {
        self.crashes += 1;
        self.world.crash(is_power_cut);
        for client in &mut self.clients {
            // The client doesn't know what became of its last request: it asks again, or begins anew.
            if let Some((_, doing)) = client.doing.take() {
                client.again = (!matches!(doing, Doing::Init)).then_some(doing);
            }
        }
    }

    fn step(&mut self, index: usize) {
        let Life { world, clients, tried, newest, stale, .. } = self;
        let client = &mut clients[index];
        if let Some((request, doing)) = &client.doing {
            let Some(reply) = world.answers.remove(request) else { return };
            let (request, doing) = (*request, doing.clone());
            client.doing = None;
            let was_stale = stale.remove(&request);
            Life::answered(client, doing, &reply, was_stale, tried, newest);
            return;
        }
        if client.wait_turns > 0 {
            client.wait_turns -= 1;
            return;
        }
        let doing = client.again.take().unwrap_or_else(|| Life::next(client, &mut world.rng, tried));
        let Some(producer) =
            client.producer.or_else(|| matches!(doing, Doing::Init).then_some(ProducerKey { id: ProducerId(0), epoch: 0 }))
        else {
            return;
        };
        let sent = match &doing {
            Doing::Init => {
                let current = client.last.filter(|_| world.rng.one_in(2));
                world.try_send(&transaction(client.id, TransactionAction::Init { timeout_ms: TIMEOUT_MS, check: None, current }))
            }
            Doing::Add => {
                let partitions = client.open.iter().flat_map(|(_, partitions)| partitions).map(|p| PartitionId(*p)).collect();
                world.try_send(&transaction(client.id, TransactionAction::AddPartitions { producer, partitions }))
            }
            Doing::Produce { partition, sequence, value } => {
                let batch = if client.is_native { native } else { transactional };
                let bytes = batch(producer, *partition, *sequence, &[value]);
                world.try_send(&Request::Produce { frame: Frame::parse(&bytes).unwrap() })
            }
            Doing::End { commit } => {
                if *commit && let Some((number, _)) = client.open {
                    tried[number].asked_to_commit = true;
                }
                world.try_send(&transaction(client.id, TransactionAction::End { producer, commit: *commit, renews: client.is_native }))
            }
        };
        match sent {
            None => client.again = Some(doing),
            Some(request) => {
                if client.producer.is_some() && newest.get(client.id).is_some_and(|newest| *newest > producer) {
                    stale.insert(request);
                }
                client.doing = Some((request, doing));
            }
        }
    }

    fn next(client: &mut Client, rng: &mut Rng, tried: &mut Vec<Tried>) -> Doing {
        if client.producer.is_none() || rng.one_in(200) {
            (client.producer, client.open) = (None, None);
            return Doing::Init;
        }
        let Some((number, partitions)) = &client.open else {
            let partitions: Vec<u32> = (1..=PARTITIONS).filter(|_| rng.one_in(2)).collect();
            client.open = Some((tried.len(), if partitions.is_empty() { vec![1] } else { partitions }));
            client.batches_left = rng.range(0..6) as u32;
            tried.push(Tried::default());
            // A native one says nothing before it writes.
            return if client.is_native { Life::next(client, rng, tried) } else { Doing::Add };
        };
        if client.batches_left == 0 {
            if rng.one_in(10) {
                // Takes its time, maybe too much.
                client.wait_turns = rng.range(100..2_000);
                client.batches_left = 1;
            }
            return Doing::End { commit: !rng.one_in(4) };
        }
        client.batches_left -= 1;
        let partition = partitions[rng.index(partitions.len())];
        let sequence = client.sequences.get(&partition).copied().unwrap_or(0);
        Doing::Produce { partition, sequence, value: format!("{number}:{partition}:{sequence}:{}", client.producer.unwrap().epoch) }
    }

    fn answered(
        client: &mut Client,
        doing: Doing,
        reply: &Reply,
        was_stale: bool,
        tried: &mut [Tried],
        newest: &mut HashMap<&'static str, ProducerKey>,
    ) {
        if let Reply::Failed(failure) = reply {
            match failure.code {
                ErrorCode::ConcurrentTransactions => {
                    client.wait_turns = 20;
                    client.again = Some(doing);
                    if matches!(client.again, Some(Doing::Init)) {
                        client.again = None;
                        client.producer = None;
                    }
                }
                ErrorCode::ProducerFenced => {
                    (client.producer, client.last, client.open) = (None, None, None);
                    client.wait_turns = 300;
                }
                _ => {
                    // Whatever it is, the next life of the producer begins with a clean slate.
                    (client.producer, client.open) = (None, None);
                }
            }
            return;
        }
        let open = client.open.as_ref().map(|(number, _)| *number);
        match (doing, reply) {
            (Doing::Init, Reply::Transaction(reply)) => {
                let TransactionReply::Producer(producer) = **reply else { panic!("{reply:?}") };
                if newest.get(client.id).is_none_or(|newest| *newest < producer) {
                    newest.insert(client.id, producer);
                }
                (client.producer, client.last, client.open) = (Some(producer), Some(producer), None);
                client.sequences.clear();
            }
            (Doing::Add, Reply::Transaction(_)) => assert!(!was_stale, "a fenced producer began a transaction"),
            (Doing::Produce { partition, sequence, value }, Reply::Produced { duplicate, .. }) => {
                assert!(!was_stale || *duplicate, "a fenced producer wrote {value}");
                client.sequences.insert(partition, sequence + 1);
                tried[open.unwrap()].written.insert((partition, value));
            }
            (Doing::End { commit }, Reply::Transaction(reply)) => {
                assert!(!was_stale, "a fenced producer ended a transaction");
                if let TransactionReply::Producer(producer) = **reply {
                    (client.producer, client.last) = (Some(producer), Some(producer));
                    newest.insert(client.id, producer);
                    client.sequences.clear();
                }
                let tried = &mut tried[open.unwrap()];
                (tried.committed, tried.aborted) = (commit, !commit);
                client.open = None;
            }
            other => panic!("{other:?}"),
        }
    }

    /// What a committed-only reader sees now is nothing that was not asked to be committed.
    fn look(&mut self) {
        let partition = self.world.rng.range(1..u64::from(PARTITIONS) + 1) as u32;
        let nodes = self.world.nodes.iter().map(|node| node.disk.is_cut()).collect::<Vec<_>>();
        if nodes.contains(&true) {
            return;
        }
        let bytes_of = |world: &mut World| {
            let (from, mut all) = (0, Vec::new());
            let node = world.shard_of(partition);
            let request = Request::Fetch(Fetch { committed_only: true, ..now_fetch(partition, from) });
            if let Some(sent) = world.try_send(&request)
                && let Some(Reply::Fetched { head, data: FetchData::Extents(extents) }) = world.answers.remove(&sent)
            {
                let shard = &mut world.nodes[node].shard;
                let bytes: Vec<u8> = extents.iter().flat_map(|extent| shard.hot_bytes(*extent).expect("hot").to_vec()).collect();
                shard.release_extents(&extents);
                let visible = frames(&bytes).map(Result::unwrap).filter(|frame| !is_void(frame, &head.aborted));
                all.extend(visible.flat_map(|frame| values_of(&frame)));
            }
            all
        };
        for value in bytes_of(&mut self.world) {
            let number: usize = value.split(':').next().unwrap().parse().unwrap();
            assert!(self.tried[number].asked_to_commit, "{value} is visible: {:?}", self.tried[number]);
        }
    }

    /// Lets everything come to its end and judges it.
    fn judge(mut self) {
        for node in &self.world.nodes {
            node.disk.set_options(|options| options.completion = 1_000_000);
        }
        for round in 0..6 {
            self.world.turns(300);
            self.world.pass(u64::from(TIMEOUT_MS) * 1_000 + 1);
            if round == 2 {
                self.world.crash(true);
            }
        }
        self.world.turns(500);
        for listing in self.world.list() {
            assert!(
                !matches!(listing.phase, TransactionPhase::Ongoing | TransactionPhase::Committing | TransactionPhase::Aborting),
                "{listing:?}"
            );
        }
        let mut visible: HashMap<usize, BTreeSet<(u32, String)>> = HashMap::new();
        for partition in 1..=PARTITIONS {
            let (stable, end) = self.world.ends(partition);
            assert_eq!(stable, end, "partition {partition} has an open transaction");
            for value in self.world.committed(partition) {
                let number = value.split(':').next().unwrap().parse().unwrap();
                let is_new = visible.entry(number).or_default().insert((partition, value.clone()));
                assert!(is_new, "{value} is there twice");
            }
            let mut open: HashSet<ProducerId> = HashSet::new();
            for (offset, flags, producer, _) in self.world.everything(partition) {
                if flags & flags::CONTROL != 0 {
                    assert!(open.remove(&producer.id), "marker at {offset} of partition {partition} ends nothing");
                } else {
                    open.insert(producer.id);
                }
            }
            assert!(open.is_empty(), "missing markers in partition {partition}");
        }
        for (number, tried) in self.tried.iter().enumerate() {
            let seen = visible.remove(&number).unwrap_or_default();
            assert!(seen.is_empty() || tried.asked_to_commit, "{number}: {tried:?} shows {seen:?}");
            assert!(seen.is_empty() || !tried.aborted, "{number}: {tried:?} shows {seen:?}");
            assert!(seen.is_empty() || tried.written.is_subset(&seen), "{number}: {tried:?} shows only {seen:?}");
            assert!(!tried.committed || tried.written == seen, "{number}: {tried:?} shows {seen:?}");
        }
    }
}

fn live(seeds: std::ops::Range<u64>, turns: usize) {
    let (mut transactions, mut committed, mut crashes) = (0, 0, 0);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut life = Life::new(seed, 2 + (seed % 2) as u16);
            life.run(turns, seed % 5 != 4);
            let sums = (life.tried.len(), life.tried.iter().filter(|tried| tried.committed).count(), life.crashes);
            life.judge();
            sums
        });
        let Ok(sums) = outcome else { panic!("seed {seed}") };
        (transactions, committed, crashes) = (transactions + sums.0, committed + sums.1, crashes + sums.2);
    }
    println!("{transactions} transactions, {committed} committed, {crashes} crashes");
    assert!(committed > 0 && crashes > 0);
}

#[test]
fn transactions_are_all_or_nothing_whatever_happens() {
    live(0..12, 6_000);
}

#[test]
#[ignore = "minutes; for the long run"]
fn transactions_are_all_or_nothing_in_many_lives() {
    live(1_000..1_400, 8_000);
}
