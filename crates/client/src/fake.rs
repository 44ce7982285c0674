//! A broker in memory for tests: bytes in, bytes out, with the contract's rules on sequences and offsets.

use std::collections::{BTreeMap, BTreeSet};

use ringmain_wire::control::*;
use ringmain_wire::envelope::flags;
use ringmain_wire::frame::{BrokerHalf, HEADER_BYTES};
use ringmain_wire::queue::{
    DeliveryView, ListQueues, QueueAnswer, QueueCall, QueueConfig, QueueInfo, QueueList, QueueReceive, QueueReceived, QueueRequest,
    QueueSettle, QueueSettled, QueueStage, Settlement, Verb,
};
use ringmain_wire::transaction::{TransactionAnswer, TransactionCall, TransactionProducer, TransactionRequest};
use ringmain_wire::{Envelope, ErrorCode, Frame, Offset, Op, Records, align_up};

/// A small generator; every failure prints the seed it began with.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

#[derive(Clone, Default)]
pub struct StoredProducer {
    next_sequence: i32,
    recent: Vec<(i32, u32, u64)>,
}

#[derive(Default)]
pub struct FakePartition {
    pub port: u16,
    /// Padded frames.
    pub frames: Vec<(u64, Vec<u8>)>,
    pub end: u64,
    pub log_start: u64,
    producers: BTreeMap<i64, StoredProducer>,
    pub queue: FakeQueue,
}

/// The queue `q` in one partition; the value of a message is its offset.
#[derive(Default)]
pub struct FakeQueue {
    pub ready: BTreeSet<u64>,
    /// By offset: the port it was delivered over.
    pub held: BTreeMap<u64, u16>,
    pub deliveries: BTreeMap<u64, u16>,
    pub acked: Vec<u64>,
    pub rejected: Vec<u64>,
    pub extended: Vec<u64>,
    pub most_held: usize,
    pub receives: u64,
    pub settles: u64,
}

impl FakeTransactions {
    fn next(&mut self, previous: Option<TransactionProducer>) {
        self.previous = previous;
        self.producer.epoch += 1;
        self.outcome = false;
        self.written.clear();
        self.sequences.clear();
        self.staged.clear();
    }
}

pub struct FakeBroker {
    pub topic: String,
    pub topic_id: u32,
    pub cluster_id: u64,
    pub shard_ports: Vec<u16>,
    /// By index; numbers begin at 10.
    pub partitions: Vec<FakePartition>,
    pub commits: BTreeMap<(String, u32), u64>,
    pub next_producer: i64,
    pub max_message_bytes: u32,
    pub max_in_flight: u32,
    pub append_time_ms: i64,
    /// One in so many produce requests is refused with a retriable code; 0 = none.
    pub refuse_one_in: u64,
    /// One in so many is refused for good; 0 = none.
    pub refuse_for_good_one_in: u64,
    /// One in so many batches is said to hold messages that are stored already, and others; 0 = none.
    pub mixed_one_in: u64,
    /// The acknowledgements of a burst come in a random order.
    pub shuffle: bool,
    /// Fetches are never answered.
    pub hold_fetches: bool,
    pub random: Random,
    pub produce_requests: u64,
    pub duplicates: u64,
    pub moved: u64,
    pub max_fetches_seen: usize,
    /// 0 = there is no such queue.
    pub queue_id: u32,
    /// Its queue takes no more.
    pub is_full: bool,
    pub transactions: BTreeMap<String, FakeTransactions>,
    /// What was published and committed in transactions: partition, value.
    pub committed: Vec<(usize, Vec<u8>)>,
}

/// The transactions of one id.
pub struct FakeTransactions {
    pub producer: TransactionProducer,
    pub previous: Option<TransactionProducer>,
    pub outcome: bool,
    /// Partition, values of a frame; by partition the next sequence.
    pub written: Vec<(usize, Vec<Vec<u8>>)>,
    pub sequences: BTreeMap<usize, i32>,
    pub staged: BTreeSet<(usize, u64)>,
}

pub const FIRST_NUMBER: u32 = 10;

impl FakeBroker {
    pub fn new(ports: &[u16], partition_count: usize, seed: u64) -> FakeBroker {
        let partitions = (0..partition_count).map(|i| FakePartition { port: ports[i % ports.len()], ..FakePartition::default() }).collect();
        FakeBroker {
            topic: "t".into(),
            topic_id: 1,
            cluster_id: 77,
            shard_ports: ports.to_vec(),
            partitions,
            commits: BTreeMap::new(),
            next_producer: 100,
            max_message_bytes: 1 << 20,
            max_in_flight: 64,
            append_time_ms: 5_000,
            refuse_one_in: 0,
            refuse_for_good_one_in: 0,
            mixed_one_in: 0,
            shuffle: false,
            hold_fetches: false,
            random: Random::new(seed),
            produce_requests: 0,
            duplicates: 0,
            moved: 0,
            max_fetches_seen: 0,
            queue_id: 5,
            is_full: false,
            transactions: BTreeMap::new(),
            committed: Vec::new(),
        }
    }

    /// Serves every whole request at the front of `input`.
    pub fn serve(&mut self, port: u16, input: &mut Vec<u8>, out: &mut Vec<u8>) {
        let (mut at, mut replies, mut fetches) = (0, Vec::new(), 0);
        while let Some(envelope) = Envelope::read(&input[at..]) {
            let to = at + Envelope::BYTES + envelope.len as usize;
            if input.len() < to {
                break;
            }
            let body = input[at + Envelope::BYTES..to].to_vec();
            at = to;
            fetches += usize::from(envelope.op == Op::Fetch as u16);
            if self.hold_fetches && envelope.op == Op::Fetch as u16 {
                continue;
            }
            let (result, moved) = self.answer(port, envelope.op, &body);
            let (body, error) = match result {
                Ok(body) => (body, 0),
                Err(code) => {
                    let mut body = Vec::new();
                    write_open(&ErrorReply { code: code as u16, message: "fake".into() }, &mut body);
                    (body, flags::ERROR)
                }
            };
            self.moved += u64::from(moved);
            let flags = flags::REPLY | error | if moved { flags::MOVED } else { 0 };
            let head = Envelope { len: body.len() as u32, flags, ..envelope };
            replies.push([&head.to_bytes()[..], &body].concat());
        }
        self.max_fetches_seen = self.max_fetches_seen.max(fetches);
        input.drain(..at);
        while !replies.is_empty() {
            let next = if self.shuffle { self.random.below(replies.len() as u64) as usize } else { 0 };
            out.extend_from_slice(&replies.remove(next));
        }
    }

    fn answer(&mut self, port: u16, op: u16, body: &[u8]) -> (Result<Vec<u8>, ErrorCode>, bool) {
        let mut out = Vec::new();
        let result = match Op::from_number(op) {
            Some(Op::Hello) => {
                read_open::<Hello>(body).unwrap();
                let reply = HelloReply {
                    protocol_version: 1,
                    broker_version: "fake".into(),
                    cluster_id: self.cluster_id,
                    max_request_bytes: 64 << 20,
                    max_in_flight: self.max_in_flight,
                };
                write_open(&reply, &mut out);
                Ok(out)
            }
            Some(Op::Metadata) => {
                write_open(&self.metadata(), &mut out);
                Ok(out)
            }
            Some(Op::InitProducer) => {
                self.next_producer += 1;
                let grant = ProducerGrant { version: 1, producer_epoch: 0, reserved: 0, producer_id: self.next_producer };
                Ok(grant.to_bytes().to_vec())
            }
            Some(Op::Produce) => {
                let frame = Frame::parse(body).unwrap();
                assert_eq!(frame.len_bytes(), body.len(), "a produce body is exactly one frame");
                let Some(index) = self.index(frame.partition().0) else { return (Err(ErrorCode::UnknownPartition), false) };
                let moved = self.partitions[index].port != port;
                if frame.header.producer.flags & ringmain_wire::frame::flags::TRANSACTIONAL != 0 {
                    return (self.produce_in_transaction(index, frame), moved);
                }
                return (self.produce(index, frame), moved);
            }
            Some(Op::Fetch) => {
                let request = FetchRequest::read(body).unwrap();
                let Some(index) = self.index(request.partition) else { return (Err(ErrorCode::UnknownPartition), false) };
                let moved = self.partitions[index].port != port;
                return (self.fetch(index, &request), moved);
            }
            Some(Op::ListOffsets) => {
                let request = ListOffsets::read(body).unwrap();
                let partition = &self.partitions[self.index(request.partition).unwrap()];
                let offset = match request.timestamp_ms {
                    LATEST => partition.end,
                    EARLIEST => partition.log_start,
                    // Record timestamps in the tests are their offsets.
                    timestamp_ms => (timestamp_ms as u64).clamp(partition.log_start, partition.end),
                };
                Ok(ListOffsetsReply { version: 1, found: 1, reserved: 0, offset, timestamp_ms: -1 }.to_bytes().to_vec())
            }
            Some(Op::CommitOffset) => {
                let request: CommitOffset = read_open(body).unwrap();
                self.commits.insert((request.consumer, request.partition), request.offset);
                Ok(out)
            }
            Some(Op::ReadOffset) => {
                let request: ReadOffset = read_open(body).unwrap();
                let offset = self.commits.get(&(request.consumer, request.partition)).copied();
                write_open(&ReadOffsetReply { offset, metadata: String::new() }, &mut out);
                Ok(out)
            }
            Some(Op::ListQueues) => {
                let ListQueues { names } = read_open(body).unwrap();
                let partitions = self.metadata().topics.remove(0).partitions;
                let info =
                    QueueInfo { queue: self.queue_id, name: "q".into(), topic: "t".into(), partitions, config: QueueConfig::default() };
                let is_asked = self.queue_id > 0 && names.is_none_or(|names| names.contains(&info.name));
                let queues = if is_asked { vec![info] } else { Vec::new() };
                ringmain_wire::queue::write_config(&QueueList { shard_ports: self.shard_ports.clone(), queues }, &mut out);
                Ok(out)
            }
            Some(Op::QueueReceive) => return (self.queue_receive(port, &QueueReceive::read(body).unwrap()), false),
            Some(Op::QueueSettle) => return (self.queue_settle(port, body), false),
            Some(Op::QueueStage) => return (self.queue_stage(port, body), false),
            Some(Op::Transaction) => {
                let answer = self.transaction(read_open(body).unwrap());
                answer.map(|producer| {
                    write_open(&TransactionAnswer::Producer(producer), &mut out);
                    out
                })
            }
            Some(Op::Queue) => {
                let QueueRequest { partition, call, .. } = read_open(body).unwrap();
                let queue = &mut self.partitions[(partition - FIRST_NUMBER) as usize].queue;
                let answer = match call {
                    QueueCall::Purge => QueueAnswer::Count(std::mem::take(&mut queue.ready).len() as u64),
                    QueueCall::ListUnsettled { from, max } => {
                        QueueAnswer::Unsettled(queue.ready.range(from..).take(max as usize).map(|offset| (*offset, 0)).collect())
                    }
                    other => panic!("{other:?}"),
                };
                write_open(&answer, &mut out);
                Ok(out)
            }
            _ => Err(ErrorCode::UnsupportedOp),
        };
        (result, false)
    }

    fn index(&self, number: u32) -> Option<usize> {
        let index = number.checked_sub(FIRST_NUMBER)? as usize;
        (index < self.partitions.len()).then_some(index)
    }

    pub fn metadata(&self) -> MetadataReply {
        let shard = |port: u16| self.shard_ports.iter().position(|p| *p == port).unwrap() as u16;
        let partitions =
            (FIRST_NUMBER..).zip(&self.partitions).map(|(partition, p)| PartitionPlace { partition, shard: shard(p.port) }).collect();
        let config = TopicConfig { max_message_bytes: self.max_message_bytes, ..TopicConfig::default() };
        let info = TopicInfo { topic: self.topic_id, name: self.topic.clone(), partitions, config };
        MetadataReply { shard_ports: self.shard_ports.clone(), topics: vec![info] }
    }

    fn produce(&mut self, index: usize, frame: Frame<'_>) -> Result<Vec<u8>, ErrorCode> {
        self.produce_requests += 1;
        if self.is_full {
            return Err(ErrorCode::QueueFull);
        }
        frame.verify_body().map_err(|_| ErrorCode::CorruptFrame)?;
        if self.random.one_in(self.refuse_one_in) {
            return Err([ErrorCode::Overloaded, ErrorCode::UnknownPartition, ErrorCode::DiskFull][self.random.below(3) as usize]);
        }
        if frame.len_bytes() > self.max_message_bytes as usize || self.random.one_in(self.refuse_for_good_one_in) {
            return Err(ErrorCode::MessageTooLarge);
        }
        let (producer, append_time_ms) = (frame.header.producer, self.append_time_ms);
        let partition = &mut self.partitions[index];
        let acknowledge = |base_offset, duplicate| {
            Ok(ProduceReply { version: 1, duplicate, redirected: 0, base_offset, append_time_ms }.to_bytes().to_vec())
        };
        if producer.producer_id >= 0 {
            let known = partition.producers.contains_key(&producer.producer_id);
            if !known && producer.sequence != 0 {
                return Err(ErrorCode::UnknownProducer);
            }
            let state = partition.producers.entry(producer.producer_id).or_default();
            if let Some((.., base_offset)) =
                state.recent.iter().find(|(sequence, count, _)| *sequence == producer.sequence && *count == producer.record_count)
            {
                self.duplicates += 1;
                return acknowledge(*base_offset, 1);
            }
            if producer.sequence != state.next_sequence {
                return Err(if producer.sequence < state.next_sequence {
                    ErrorCode::DuplicateSequence
                } else {
                    ErrorCode::OutOfOrderSequence
                });
            }
            if producer.record_count > 1 && self.random.one_in(self.mixed_one_in) {
                return Err(ErrorCode::KnownMessages);
            }
            state.next_sequence += producer.record_count as i32;
            state.recent.push((producer.sequence, producer.record_count, partition.end));
            if state.recent.len() > 5 {
                state.recent.remove(0);
            }
        }
        let mut bytes = frame.to_vec();
        let stamp = BrokerHalf::stamp(bytes.len() as u32, Offset(partition.end), append_time_ms, 1);
        bytes[..stamp.len()].copy_from_slice(&stamp);
        bytes.resize(align_up(bytes.len()), 0);
        let base_offset = partition.end;
        partition.end += u64::from(producer.record_count);
        partition.frames.push((base_offset, bytes));
        acknowledge(base_offset, 0)
    }

    fn fetch(&mut self, index: usize, request: &FetchRequest) -> Result<Vec<u8>, ErrorCode> {
        let partition = &self.partitions[index];
        if request.offset < partition.log_start || request.offset > partition.end {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        let (mut frames, mut next_offset) = (Vec::new(), request.offset);
        // Begins with the frame that holds the offset, at times with the one before: the contract allows it.
        let first = partition.frames.partition_point(|(base, _)| *base <= request.offset).saturating_sub(1);
        let first = if self.random.one_in(3) { first.saturating_sub(1) } else { first };
        for (base, bytes) in &partition.frames[first..] {
            if *base >= request.offset && !frames.is_empty() && frames.len() + bytes.len() > request.max_bytes as usize {
                break;
            }
            let count = Frame::parse(bytes).unwrap().header.producer.record_count;
            if base + u64::from(count) <= request.offset && request.offset == partition.end {
                continue;
            }
            frames.extend_from_slice(bytes);
            next_offset = next_offset.max(base + u64::from(count));
        }
        let head = FetchReply {
            version: 1,
            reserved: 0,
            partition: request.partition,
            high_watermark: partition.end,
            log_start: partition.log_start,
            next_offset,
        };
        Ok([&head.to_bytes()[..], &frames].concat())
    }

    fn queue_receive(&mut self, port: u16, request: &QueueReceive) -> Result<Vec<u8>, ErrorCode> {
        assert!(request.max_messages > 0 && request.max_bytes > 0);
        if request.queue != self.queue_id {
            return Err(ErrorCode::UnknownQueue);
        }
        if self.random.one_in(self.refuse_one_in) {
            return Err(ErrorCode::Overloaded);
        }
        let index = self.index(request.partition).ok_or(ErrorCode::UnknownPartition)?;
        let queue = &mut self.partitions[index].queue;
        queue.receives += 1;
        let (mut messages, mut count) = (Vec::new(), 0);
        while count < request.max_messages
            && messages.len() < request.max_bytes as usize
            && let Some(offset) = queue.ready.pop_first()
        {
            queue.held.insert(offset, port);
            let deliveries = queue.deliveries.entry(offset).or_default();
            *deliveries += 1;
            let value = offset.to_string();
            let view = DeliveryView {
                offset,
                append_time_ms: 1,
                timestamp_ms: 2,
                deliveries: *deliveries,
                key: None,
                value: Some(value.as_bytes()),
                headers: b"",
            };
            view.write(&mut messages);
            count += 1;
        }
        queue.most_held = queue.most_held.max(queue.held.len());
        let head = QueueReceived { version: 1, reserved: 0, partition: request.partition, count, reserved_too: 0 };
        Ok([&head.to_bytes()[..], &messages].concat())
    }

    fn queue_settle(&mut self, port: u16, body: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let head = QueueSettle::read(body).unwrap();
        if self.random.one_in(self.refuse_one_in) {
            return Err(ErrorCode::Overloaded);
        }
        let index = self.index(head.partition).unwrap();
        let queue = &mut self.partitions[index].queue;
        queue.settles += 1;
        let (mut settled, mut refused) = (0, 0);
        for bytes in body[QueueSettle::BYTES..].chunks(Settlement::BYTES) {
            let settlement = Settlement::read(bytes).unwrap();
            for offset in settlement.first..settlement.first + u64::from(settlement.count) {
                if queue.held.get(&offset) != Some(&port) {
                    refused += 1;
                    continue;
                }
                settled += 1;
                match settlement.verb {
                    Verb::Ack => queue.acked.push(offset),
                    Verb::Reject => queue.rejected.push(offset),
                    Verb::Requeue => {
                        queue.ready.insert(offset);
                    }
                    Verb::Extend => {
                        queue.extended.push(offset);
                        continue;
                    }
                }
                queue.held.remove(&offset);
            }
        }
        Ok(QueueSettled { version: 1, reserved: 0, settled, refused, reserved_too: 0 }.to_bytes().to_vec())
    }

    fn transaction(&mut self, request: TransactionRequest) -> Result<TransactionProducer, ErrorCode> {
        if self.random.one_in(self.refuse_one_in) {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        let TransactionRequest { transactional_id, call } = request;
        let number = 1_000 + self.transactions.len() as i64;
        match call {
            TransactionCall::Init { current, .. } => {
                let known = self.transactions.entry(transactional_id).or_insert_with(|| FakeTransactions {
                    producer: TransactionProducer { producer_id: number, epoch: 0 },
                    previous: None,
                    outcome: false,
                    written: Vec::new(),
                    sequences: BTreeMap::new(),
                    staged: BTreeSet::new(),
                });
                if current.is_some() && current == known.previous {
                    return Ok(known.producer);
                }
                if current.is_some_and(|current| current != known.producer) {
                    return Err(ErrorCode::ProducerFenced);
                }
                known.next(current);
                Ok(known.producer)
            }
            TransactionCall::End { producer, commit } => {
                let known = self.transactions.get_mut(&transactional_id).ok_or(ErrorCode::ProducerMismatch)?;
                if known.previous == Some(producer) {
                    return if known.outcome == commit { Ok(known.producer) } else { Err(ErrorCode::InvalidTransactionState) };
                }
                if known.producer != producer {
                    return Err(ErrorCode::ProducerFenced);
                }
                if commit {
                    let written = std::mem::take(&mut known.written);
                    self.committed
                        .extend(written.into_iter().flat_map(|(index, values)| values.into_iter().map(move |value| (index, value))));
                    for (index, offset) in std::mem::take(&mut known.staged) {
                        let queue = &mut self.partitions[index].queue;
                        queue.held.remove(&offset);
                        queue.ready.remove(&offset);
                        queue.acked.push(offset);
                    }
                }
                known.next(Some(producer));
                known.outcome = commit;
                Ok(known.producer)
            }
            TransactionCall::Describe => Err(ErrorCode::UnsupportedOp),
        }
    }

    fn open_transaction(&mut self, producer_id: i64, epoch: u16) -> Result<&mut FakeTransactions, ErrorCode> {
        let producer = TransactionProducer { producer_id, epoch };
        self.transactions.values_mut().find(|known| known.producer == producer).ok_or(ErrorCode::InvalidTransactionState)
    }

    fn produce_in_transaction(&mut self, index: usize, frame: Frame<'_>) -> Result<Vec<u8>, ErrorCode> {
        if self.random.one_in(self.refuse_one_in) {
            return Err(ErrorCode::Overloaded);
        }
        frame.verify_body().map_err(|_| ErrorCode::CorruptFrame)?;
        let header = frame.header.producer;
        let known = self.open_transaction(header.producer_id, header.producer_epoch)?;
        let next = known.sequences.entry(index).or_default();
        let is_repeated = header.sequence < *next;
        if header.sequence > *next {
            return Err(ErrorCode::OutOfOrderSequence);
        }
        if !is_repeated {
            *next += header.record_count as i32;
            let records = Records::new(frame.body(), header.record_count).unwrap();
            let values = records.map(|record| record.unwrap().value.unwrap().to_vec()).collect();
            known.written.push((index, values));
        }
        self.duplicates += u64::from(is_repeated);
        Ok(ProduceReply { version: 1, duplicate: is_repeated.into(), redirected: 0, base_offset: 0, append_time_ms: 1 }.to_bytes().to_vec())
    }

    fn queue_stage(&mut self, port: u16, body: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        if self.random.one_in(self.refuse_one_in) {
            return Err(ErrorCode::ConcurrentTransactions);
        }
        let head = QueueStage::read(body).unwrap();
        let index = self.index(head.partition).unwrap();
        let held = self.partitions[index].queue.held.clone();
        let known = self.open_transaction(head.producer_id, head.producer_epoch)?;
        let mut settled = 0;
        for bytes in body[QueueStage::BYTES..].chunks(Settlement::BYTES) {
            let settlement = Settlement::read(bytes).unwrap();
            assert_eq!(settlement.verb, Verb::Ack);
            for offset in settlement.first..settlement.first + u64::from(settlement.count) {
                if held.get(&offset) == Some(&port) {
                    settled += 1;
                    known.staged.insert((index, offset));
                }
            }
        }
        Ok(QueueSettled { version: 1, reserved: 0, settled, refused: 0, reserved_too: 0 }.to_bytes().to_vec())
    }

    /// What was delivered over a connection that is gone comes back.
    pub fn connection_gone(&mut self, port: u16) {
        for queue in self.partitions.iter_mut().map(|partition| &mut partition.queue) {
            let back: Vec<u64> = queue.held.iter().filter(|(_, over)| **over == port).map(|(offset, _)| *offset).collect();
            back.iter().for_each(|offset| {
                queue.held.remove(offset);
            });
            queue.ready.extend(back);
        }
    }

    /// The values in a partition's log, in order.
    pub fn values(&self, index: usize) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        for (_, bytes) in &self.partitions[index].frames {
            let frame = Frame::parse(bytes).unwrap();
            for record in Records::new(&bytes[HEADER_BYTES..frame.len_bytes()], frame.header.producer.record_count).unwrap() {
                values.push(record.unwrap().value.unwrap().to_vec());
            }
        }
        values
    }
}

/// Machine and broker joined by a network that cuts and drops, on virtual time.
pub mod network {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use super::{FakeBroker, Random};
    use crate::error::ConnectionError;
    use crate::links::{Action, Machine};

    #[derive(Default)]
    struct Wires {
        to_broker: Vec<u8>,
        at_broker: Vec<u8>,
        to_client: Vec<u8>,
    }

    pub struct Network {
        pub now: Instant,
        pub random: Random,
        wires: BTreeMap<u16, Wires>,
        /// One in so many steps a connection ends, with whatever is in its wires; 0 = never.
        pub drop_one_in: u64,
        /// Bytes travel in pieces of random size.
        pub cut: bool,
        pub down: bool,
        pub connects: u64,
    }

    impl Network {
        pub fn new(seed: u64) -> Network {
            let (now, random) = (Instant::now(), Random::new(seed ^ 0xabcd));
            Network { now, random, wires: BTreeMap::new(), drop_one_in: 0, cut: false, down: false, connects: 0 }
        }

        pub fn drop_all(&mut self, machine: &mut impl Machine) {
            for (port, _) in std::mem::take(&mut self.wires) {
                machine.disconnected(port, ConnectionError::Closed, self.now);
            }
        }

        /// One turn; time moves on to what is due next if nothing happened.
        pub fn step(&mut self, machine: &mut impl Machine, broker: &mut FakeBroker) {
            let mut busy = false;
            machine.handle_timeout(self.now);
            while let Some(action) = machine.poll_action(self.now) {
                match action {
                    Action::Close { port } => {
                        self.wires.remove(&port);
                        broker.connection_gone(port);
                    }
                    Action::Connect { port } if self.down => machine.disconnected(port, ConnectionError::Closed, self.now),
                    Action::Connect { port } => {
                        self.connects += 1;
                        self.wires.insert(port, Wires::default());
                        machine.connected(port, self.now);
                        busy = true;
                    }
                }
            }
            let ports: Vec<u16> = self.wires.keys().copied().collect();
            for port in ports {
                let Some(wires) = self.wires.get_mut(&port) else { continue };
                let mut sent = Vec::new();
                busy |= machine.transmit(port, self.now, &mut sent);
                wires.to_broker.extend_from_slice(&sent);
                let arrived = if self.cut { self.random.below(wires.to_broker.len() as u64 + 1) as usize } else { wires.to_broker.len() };
                wires.at_broker.extend(wires.to_broker.drain(..arrived));
                broker.serve(port, &mut wires.at_broker, &mut wires.to_client);
                let arrived = if self.cut { self.random.below(wires.to_client.len() as u64 + 1) as usize } else { wires.to_client.len() };
                let input: Vec<u8> = wires.to_client.drain(..arrived).collect();
                busy |= !input.is_empty() || !wires.to_client.is_empty() || (self.cut && !wires.to_broker.is_empty());
                if !input.is_empty() {
                    machine.receive(port, &input, self.now);
                }
                if self.random.one_in(self.drop_one_in) {
                    self.wires.remove(&port);
                    broker.connection_gone(port);
                    machine.disconnected(port, ConnectionError::Closed, self.now);
                }
            }
            let next = machine.poll_timeout().filter(|at| *at > self.now);
            self.now = match (busy, next) {
                (false, Some(at)) => at,
                _ => self.now + Duration::from_micros(50),
            };
        }
    }
}

/// The broker on real sockets of this machine; one thread per connection, which is fine for tests.
pub mod server {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::FakeBroker;

    pub struct Server {
        pub broker: Arc<Mutex<FakeBroker>>,
        pub port: u16,
        streams: Arc<Mutex<Vec<TcpStream>>>,
        served: Arc<AtomicUsize>,
    }

    impl Server {
        /// `shards`: number of ports; partitions go round them.
        pub fn start(shards: usize, partition_count: usize) -> Server {
            let listeners: Vec<TcpListener> = (0..shards).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
            let named: Vec<u16> = std::iter::once(0).chain(ports[1..].iter().copied()).collect();
            let broker = Arc::new(Mutex::new(FakeBroker::new(&named, partition_count, 1)));
            let streams = Arc::new(Mutex::new(Vec::new()));
            let served = Arc::new(AtomicUsize::new(0));
            for (listener, name) in listeners.into_iter().zip(named) {
                let (broker, streams, served) = (Arc::clone(&broker), Arc::clone(&streams), Arc::clone(&served));
                thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        stream.set_nodelay(true).unwrap();
                        streams.lock().unwrap().push(stream.try_clone().unwrap());
                        let (broker, served) = (Arc::clone(&broker), Arc::clone(&served));
                        served.fetch_add(1, Ordering::SeqCst);
                        thread::spawn(move || {
                            serve(stream, name, &broker);
                            served.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
            Server { broker, port: ports[0], streams, served }
        }

        pub fn address(&self) -> String {
            format!("127.0.0.1:{}", self.port)
        }

        /// Until no more than so many connections are served: what others have sent is dealt with.
        pub fn wait_until_served(&self, at_most: usize) {
            while self.served() > at_most {
                thread::yield_now();
            }
        }

        pub fn served(&self) -> usize {
            self.served.load(Ordering::SeqCst)
        }

        /// Ends every connection where it is.
        pub fn cut_connections(&self) {
            for stream in self.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn serve(mut stream: TcpStream, port: u16, broker: &Mutex<FakeBroker>) {
        let (mut input, mut out, mut buffer) = (Vec::new(), Vec::new(), vec![0; 256 << 10]);
        while let Ok(n) = stream.read(&mut buffer) {
            input.extend_from_slice(&buffer[..n]);
            broker.lock().unwrap().serve(port, &mut input, &mut out);
            if n == 0 || stream.write_all(&out).is_err() {
                return;
            }
            out.clear();
        }
    }
}
