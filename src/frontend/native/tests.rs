//! Bytes in, requests and bytes out; no socket, no shard.

use proptest::prelude::*;
use ringmain_wire::control::{
    self, AlterTopic, CONTROL_VERSION, CommitOffset, CreateTopic, ErrorReply, FetchReply, FetchRequest, Hello, HelloReply, ListOffsets,
    MetadataReply, MetadataRequest, ProduceReply, ReadOffset, ReadOffsetReply, StatsRequest, TopicConfig, TopicName,
};
use ringmain_wire::envelope::flags;
use ringmain_wire::frame::Identity;
use ringmain_wire::queue::{
    AlterQueue, CreateQueue, ListQueues, QueueAnswer, QueueCall, QueueConfig, QueueInfo, QueueList, QueueName, QueueReceive, QueueReceived,
    QueueRequest, QueueSettle, QueueSettled, QueueStage, RECEIVE_MESSAGES_MAX, RECEIVE_WAIT_MAX_MS, SETTLEMENTS_MAX, Settlement, Verb,
};
use ringmain_wire::transaction::{
    CheckBack, ListTransactions, TO_CHECK_MAX, TransactionCall, TransactionProducer, TransactionRequest, TransactionsToCheck,
};
use ringmain_wire::{Envelope, ErrorCode, Op, PartitionId, RecordBatchBuilder, frame};

use super::*;
use crate::frontend::Piece;
use crate::request::queue::QueueReply;
use crate::request::{Extent, FetchData, Fetched, Now};
use crate::shard::Catalog;

const MAX_REQUEST_BYTES: u32 = 64 << 10;

macro_rules! view {
    () => {
        &View { now: Now::default(), catalog: &Catalog::default(), memory_bytes: usize::MAX }
    };
}

fn session() -> NativeSession {
    NativeSession::new(NativeConfig { cluster_id: 7, max_request_bytes: MAX_REQUEST_BYTES, max_in_flight: 8 })
}

/// A session that has said hello; its reply has been taken out.
fn established() -> NativeSession {
    let mut session = session();
    let mut out = Outbox::default();
    let hello = request(Op::Hello, 1, &open_body(&hello()));
    session.receive(&hello, view!(), &mut out).unwrap();
    assert!(session.is_established());
    session
}

fn hello() -> Hello {
    Hello { protocol_version: 9, client_name: "test".into(), auth_mechanism: String::new(), auth_data: Vec::new() }
}

fn open_body<T>(message: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<rkyv::util::AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Error>,
        >,
{
    let mut body = Vec::new();
    control::write_open(message, &mut body);
    body
}

/// The same for a message with settings of a queue.
fn config_body<T>(message: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<rkyv::util::AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Error>,
        >,
{
    let mut body = Vec::new();
    ringmain_wire::queue::write_config(message, &mut body);
    body
}

fn request(op: Op, correlation: u64, body: &[u8]) -> Vec<u8> {
    raw_request(op as u16, 0, correlation, body)
}

fn raw_request(op: u16, request_flags: u16, correlation: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Envelope { len: body.len() as u32, op, flags: request_flags, correlation }.to_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn batch(records: u32) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    (0..records).for_each(|i| builder.push(i64::from(i), None, Some(b"value"), b""));
    builder.finish(Identity::plain(PartitionId(3))).to_vec()
}

/// The bytes of an outbox without frames.
fn sent(out: &Outbox) -> Vec<u8> {
    let bytes: Vec<u8> =
        out.pieces.iter().flat_map(|piece| if let Piece::Bytes(bytes) = piece { bytes.clone() } else { panic!("{piece:?}") }).collect();
    assert_eq!(bytes.len(), out.len_bytes);
    bytes
}

/// The one reply in an outbox: its envelope and body.
fn one_reply(out: &Outbox) -> (Envelope, Vec<u8>) {
    let bytes = sent(out);
    let envelope = Envelope::read(&bytes).unwrap();
    assert_eq!(envelope.len as usize + Envelope::BYTES, bytes.len());
    (envelope, bytes[Envelope::BYTES..].to_vec())
}

fn error_of(out: &Outbox) -> (Envelope, ErrorCode, String) {
    let (envelope, body) = one_reply(out);
    assert_eq!(envelope.flags & (flags::REPLY | flags::ERROR), flags::REPLY | flags::ERROR);
    let error: ErrorReply = control::read_open(&body).unwrap();
    (envelope, ErrorCode::from_number(error.code), error.message)
}

/// `body` of `op` is answered with `code` and the session goes on.
fn check_refused(op: Op, body: &[u8], code: ErrorCode) {
    let mut session = established();
    let mut out = Outbox::default();
    let bytes = request(op, 77, body);
    let received = session.receive(&bytes, view!(), &mut out).unwrap();
    assert!(matches!(received, Received::Handled { consumed_bytes } if consumed_bytes == bytes.len()), "{received:?}");
    let (envelope, got, message) = error_of(&out);
    assert_eq!((envelope.op, envelope.correlation, got), (op as u16, 77, code), "{message}");
    assert!(!message.is_empty());
    assert_eq!(session.in_flight(), 0);
}

/// `bytes` end the connection after an error reply.
fn check_closed(mut session: NativeSession, bytes: &[u8], code: ErrorCode) {
    let mut out = Outbox::default();
    let error = session.receive(bytes, view!(), &mut out).expect_err("the connection must close");
    assert_eq!(error_of(&out).1, code, "{}", error.message);
}

fn every_request() -> Vec<(Op, Vec<u8>)> {
    let fetch = FetchRequest {
        version: CONTROL_VERSION,
        reserved: 0,
        partition: 3,
        offset: 9,
        min_bytes: 1,
        max_bytes: 2,
        max_wait_ms: 4,
        flags: 0,
    };
    let list = ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: 3, timestamp_ms: -2 };
    let alter = AlterTopic { retention_ms: Some(None), ..AlterTopic::nothing("t") };
    vec![
        (Op::Produce, batch(2)),
        (Op::Fetch, fetch.to_bytes().to_vec()),
        (Op::ListOffsets, list.to_bytes().to_vec()),
        (Op::CommitOffset, open_body(&CommitOffset { consumer: "reader".into(), partition: 3, offset: 8, metadata: "note".into() })),
        (Op::ReadOffset, open_body(&ReadOffset { consumer: "a consumer with a long name".into(), partition: 3 })),
        (Op::Metadata, open_body(&MetadataRequest { topics: Some(vec!["t".into()]) })),
        (Op::CreateTopic, open_body(&CreateTopic { name: "t".into(), partition_count: 2, config: TopicConfig::default() })),
        (Op::AlterTopic, open_body(&alter)),
        (Op::DeleteTopic, open_body(&TopicName { name: "orders".into() })),
        (Op::DescribeTopic, open_body(&TopicName { name: "a topic with a longer name".into() })),
        (Op::Stats, open_body(&StatsRequest { reserved: 0 })),
        (Op::InitProducer, Vec::new()),
        (
            Op::CreateQueue,
            config_body(&CreateQueue {
                name: "q".into(),
                topic: String::new(),
                partition_count: 2,
                durability: control::Durability::Durable,
                config: QueueConfig { filter: "TAGS = 'red'".into(), ..QueueConfig::default() },
            }),
        ),
        (Op::AlterQueue, config_body(&AlterQueue { name: "q".into(), config: QueueConfig { paused: true, ..QueueConfig::default() } })),
        (Op::DeleteQueue, open_body(&QueueName { name: "a queue with a longer name".into() })),
        (Op::ListQueues, open_body(&ListQueues { names: Some(vec!["q".into()]) })),
        (Op::QueueReceive, queue_receive(10, 20).to_bytes().to_vec()),
        (Op::QueueSettle, queue_settle(&[settlement(7, 2, Verb::Ack), settlement(9, 1, Verb::Requeue)])),
        (
            Op::Transaction,
            open_body(&TransactionRequest {
                transactional_id: "a mover with a long name".into(),
                call: TransactionCall::End { producer: TransactionProducer { producer_id: 1 << 48, epoch: 3 }, commit: true },
            }),
        ),
        (Op::ListTransactions, open_body(&ListTransactions { reserved: 0 })),
        (Op::TransactionsToCheck, open_body(&to_check("orders", 5))),
        (Op::QueueStage, queue_stage(&[settlement(7, 2, Verb::Ack)])),
        (Op::Queue, open_body(&QueueRequest { queue: 5, partition: 3, call: QueueCall::Seek { offset: 4 } })),
    ]
}

fn queue_receive(max_messages: u32, max_wait_ms: u32) -> QueueReceive {
    QueueReceive {
        version: CONTROL_VERSION,
        consumer_priority: -1,
        queue: 5,
        partition: 3,
        consumer: 2,
        max_messages,
        max_bytes: 1000,
        max_wait_ms,
        reserved: 0,
        reserved_too: 0,
    }
}

fn settlement(first: u64, count: u32, verb: Verb) -> Settlement {
    Settlement { first, count, verb, delay_ms: 0 }
}

fn queue_settle(settlements: &[Settlement]) -> Vec<u8> {
    let head = QueueSettle { version: CONTROL_VERSION, reserved: 0, queue: 5, partition: 3, consumer: 2 };
    let mut body = head.to_bytes().to_vec();
    settlements.iter().for_each(|settlement| body.extend_from_slice(&settlement.to_bytes()));
    body
}

fn to_check(group: &str, max: u32) -> TransactionsToCheck {
    TransactionsToCheck { group: group.into(), shard: 1, max, max_wait_ms: u32::MAX }
}

#[test]
fn checks_out_of_their_bounds_are_refused() {
    check_refused(Op::TransactionsToCheck, &open_body(&to_check("", 1)), ErrorCode::InvalidArgument);
    check_refused(Op::TransactionsToCheck, &open_body(&to_check("g", 0)), ErrorCode::InvalidArgument);
    check_refused(Op::TransactionsToCheck, &open_body(&to_check("g", TO_CHECK_MAX + 1)), ErrorCode::InvalidArgument);
    let init = |group: &str, after_ms| {
        let call = TransactionCall::Init { timeout_ms: 100, check: Some(CheckBack { group: group.into(), after_ms }), current: None };
        open_body(&TransactionRequest { transactional_id: "order 4711".into(), call })
    };
    check_refused(Op::Transaction, &init("g", 0), ErrorCode::InvalidArgument);
    check_refused(Op::Transaction, &init("g", 101), ErrorCode::InvalidArgument);
    check_refused(Op::Transaction, &init(&"g".repeat(256), 1), ErrorCode::InvalidArgument);
}

fn queue_stage(settlements: &[Settlement]) -> Vec<u8> {
    let head =
        QueueStage { version: CONTROL_VERSION, producer_epoch: 4, queue: 5, partition: 3, consumer: 2, producer_id: 99, reserved: 0 };
    let mut body = head.to_bytes().to_vec();
    settlements.iter().for_each(|settlement| body.extend_from_slice(&settlement.to_bytes()));
    body
}

#[test]
fn hello_is_answered_with_the_lower_version_and_the_limits() {
    let mut session = session();
    let mut out = Outbox::default();
    let bytes = request(Op::Hello, 5, &open_body(&hello()));
    assert!(
        matches!(session.receive(&bytes, view!(), &mut out), Ok(Received::Handled { consumed_bytes }) if consumed_bytes == bytes.len())
    );
    let (envelope, body) = one_reply(&out);
    assert_eq!((envelope.op, envelope.flags, envelope.correlation), (Op::Hello as u16, flags::REPLY, 5));
    let reply: HelloReply = control::read_open(&body).unwrap();
    assert_eq!((reply.protocol_version, reply.cluster_id, reply.max_request_bytes, reply.max_in_flight), (1, 7, MAX_REQUEST_BYTES, 8));
}

#[test]
fn anything_before_hello_closes() {
    for (op, body) in every_request() {
        check_closed(session(), &request(op, 1, &body), ErrorCode::MalformedRequest);
    }
    check_closed(session(), &raw_request(999, 0, 1, b""), ErrorCode::MalformedRequest);
}

#[test]
fn unacceptable_hello_closes() {
    let refused = |change: &dyn Fn(&mut Hello), code| {
        let mut hello = hello();
        change(&mut hello);
        check_closed(session(), &request(Op::Hello, 1, &open_body(&hello)), code);
    };
    refused(&|hello| hello.protocol_version = 0, ErrorCode::UnsupportedVersion);
    refused(&|hello| hello.client_name = "x".repeat(257), ErrorCode::InvalidArgument);
    refused(&|hello| hello.auth_mechanism = "PLAIN".into(), ErrorCode::Unauthenticated);
    check_closed(session(), &request(Op::Hello, 1, b"\x01\0\0\0nonsense"), ErrorCode::MalformedRequest);
    check_closed(session(), &request(Op::Hello, 1, b"\x09\0\0\0"), ErrorCode::UnsupportedVersion);
}

#[test]
fn second_hello_is_refused_and_the_session_goes_on() {
    check_refused(Op::Hello, &open_body(&hello()), ErrorCode::MalformedRequest);
}

/// The length alone decides: nothing of the body has to come first.
#[test]
fn envelope_beyond_the_limit_closes_before_its_body() {
    let envelope = |len: u32| Envelope { len, op: Op::Hello as u16, flags: 0, correlation: 1 }.to_bytes();
    let limit = (HELLO_LIMIT_BYTES - Envelope::BYTES) as u32;
    check_closed(session(), &envelope(limit + 1), ErrorCode::MalformedRequest);
    check_closed(session(), &envelope(u32::MAX), ErrorCode::MalformedRequest);
    check_closed(established(), &envelope(MAX_REQUEST_BYTES + 1), ErrorCode::MessageTooLarge);
    check_closed(established(), &envelope(u32::MAX), ErrorCode::MessageTooLarge);
    let mut out = Outbox::default();
    let waits = session()
        .receive(&envelope(limit), view!(), &mut out)
        .is_ok_and(|received| matches!(received, Received::More { needed_bytes: HELLO_LIMIT_BYTES }));
    assert!(waits && out.is_empty());
    let largest = envelope(MAX_REQUEST_BYTES);
    let waits = established().receive(&largest, view!(), &mut out);
    assert!(matches!(waits, Ok(Received::More { needed_bytes }) if needed_bytes == MAX_REQUEST_BYTES as usize + Envelope::BYTES));
}

#[test]
fn request_cut_anywhere_waits_for_the_rest() {
    for (op, body) in every_request() {
        let bytes = request(op, 9, &body);
        let mut session = established();
        let mut out = Outbox::default();
        for cut in 0..bytes.len() {
            let needed = if cut < Envelope::BYTES { 0 } else { bytes.len() };
            let received = session.receive(&bytes[..cut], view!(), &mut out).unwrap();
            assert!(matches!(received, Received::More { needed_bytes } if needed_bytes == needed), "{op:?} cut at {cut}: {received:?}");
        }
        let mut two = bytes.clone();
        two.extend_from_slice(&bytes);
        let received = session.receive(&two, view!(), &mut out).unwrap();
        assert!(matches!(received, Received::Request { consumed_bytes, .. } if consumed_bytes == bytes.len()), "{op:?}: {received:?}");
        assert!(out.is_empty());
        assert_eq!(session.in_flight(), 1);
    }
}

#[test]
fn requests_arrive_with_what_was_sent() {
    let mut session = established();
    let mut out = Outbox::default();
    let mut seen = Vec::new();
    for (op, body) in every_request() {
        let bytes = request(op, 9, &body);
        let Ok(Received::Request { request, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!("{op:?}") };
        seen.push(match request {
            Request::Produce { frame } => format!("produce {} {}", frame.partition(), frame.header.producer.record_count),
            Request::Fetch(f) => format!("fetch {} {} {} {} {}", f.partition, f.from, f.min_bytes, f.max_bytes, f.max_wait_ms),
            Request::ListOffset { partition, timestamp_ms, .. } => format!("list {partition} {timestamp_ms}"),
            Request::CommitOffset { consumer, partition, offset, metadata } => format!("commit {consumer} {partition} {offset} {metadata}"),
            Request::ReadOffset { consumer, partition } => format!("read {consumer} {partition}"),
            Request::Metadata { topics } => format!("metadata {topics:?}"),
            Request::CreateTopic(create) => format!("create {} {}", create.name, create.partition_count),
            Request::AlterTopic(alter) => format!("alter {} {:?}", alter.name, alter.retention_ms),
            Request::DeleteTopic { name } => format!("delete {name}"),
            Request::DescribeTopic { name } => format!("describe {name}"),
            Request::Stats => "stats".into(),
            Request::InitProducer => "producer".into(),
            Request::CreateQueue(create) => format!("create queue {} {}", create.name, create.config.filter),
            Request::AlterQueue(alter) => format!("alter queue {} {}", alter.name, alter.config.paused),
            Request::DeleteQueue { name } => format!("delete queue {name}"),
            Request::Queues { names } => format!("queues {names:?}"),
            Request::Receive(r) => {
                format!(
                    "receive {} {} {} {} {} {} {}",
                    r.queue, r.partition, r.consumer, r.priority, r.max_messages, r.max_bytes, r.max_wait_ms
                )
            }
            Request::Settle(settle) => {
                let of = |s: &Settlement| format!("{}+{} {:?}", s.first, s.count, s.verb);
                let settlements: Vec<_> = settle.settlements.iter().map(of).collect();
                let transaction = settle.transaction.map_or(String::new(), |of| format!(" in {}/{}", of.id.0, of.epoch));
                format!("settle {} {} {} {}{transaction}", settle.queue, settle.partition, settle.consumer, settlements.join(", "))
            }
            Request::Transaction(request) => format!("transaction {} {:?}", request.transactional_id, request.action),
            Request::ListTransactions => "transactions".into(),
            Request::ToCheck(ask) => format!("to check {} {} {} {}", ask.group, ask.shard, ask.max, ask.max_wait_ms),
            Request::Queue(request) => format!("queue {} {} {:?}", request.queue, request.partition, request.call),
            other => format!("{other:?}"),
        });
    }
    let expected = [
        "produce 3 2",
        "fetch 3 9 1 2 4",
        "list 3 -2",
        "commit reader 3 8 note",
        "read a consumer with a long name 3",
        "metadata Some([\"t\"])",
        "create t 2",
        "alter t Some(None)",
        "delete orders",
        "describe a topic with a longer name",
        "stats",
        "producer",
        "create queue q TAGS = 'red'",
        "alter queue q true",
        "delete queue a queue with a longer name",
        "queues Some([\"q\"])",
        "receive 5 3 2 -1 10 1000 20",
        "settle 5 3 2 7+2 Ack, 9+1 Requeue",
        "transaction a mover with a long name End { producer: ProducerKey { id: ProducerId(281474976710656), epoch: 3 }, commit: true, renews: true }",
        "transactions",
        "to check orders 1 5 60000",
        "settle 5 3 2 7+2 Ack in 99/4",
        "queue 5 3 Seek { offset: 4 }",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn malformed_bodies_are_refused_one_by_one() {
    for (op, body) in every_request() {
        let mut longer = body.clone();
        longer.push(0);
        let (cut, code) = match op {
            Op::Produce => (body[..body.len() - 1].to_vec(), ErrorCode::CorruptFrame),
            Op::InitProducer => (vec![0], ErrorCode::MalformedRequest),
            _ => (body[..body.len() - 1].to_vec(), ErrorCode::MalformedRequest),
        };
        check_refused(op, &cut, code);
        if matches!(op, Op::Fetch | Op::ListOffsets) {
            check_refused(op, &longer, ErrorCode::MalformedRequest);
        }
        if !matches!(op, Op::Produce | Op::InitProducer) {
            let mut newer = body.clone();
            newer[0] = 9;
            check_refused(op, &newer, ErrorCode::UnsupportedVersion);
        }
    }
    let before_earliest = ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: 3, timestamp_ms: -3 };
    check_refused(Op::ListOffsets, &before_earliest.to_bytes(), ErrorCode::InvalidArgument);
}

#[test]
fn damaged_batch_is_refused_wherever_it_is_damaged() {
    let whole = batch(2);
    let mut longer = whole.clone();
    longer.push(0);
    check_refused(Op::Produce, &longer, ErrorCode::CorruptFrame);
    for at in (0..8).chain(frame::HALF_BYTES..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        check_refused(Op::Produce, &damaged, ErrorCode::CorruptFrame);
    }
}

/// Sealed with a right checksum, so damage on the way is no excuse.
#[test]
fn batch_that_never_was_native_is_invalid() {
    let sealed = |body_bytes: usize, format, records, change: &dyn Fn(&mut Identity)| {
        let mut identity = Identity::plain(PartitionId(3));
        change(&mut identity);
        let mut bytes = vec![0; frame::HEADER_BYTES + body_bytes];
        frame::seal(&mut bytes, format, records, identity);
        bytes
    };
    let plain = |_: &mut Identity| {};
    check_refused(Op::Produce, &sealed(100, Format::Kafka, 1, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(100, Format::State, 1, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(100, Format::Native, 0, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(8, Format::Native, 1, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(16 + 2 * 24 - 1, Format::Native, 2, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(100, Format::Native, u32::MAX, &plain), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(100, Format::Native, 1, &|i| i.flags = frame::flags::CONTROL), ErrorCode::InvalidBatch);
    check_refused(Op::Produce, &sealed(100, Format::Native, 1, &|i| i.producer_id = ProducerId(-2)), ErrorCode::InvalidBatch);
    let mut unknown_format = sealed(100, Format::Native, 1, &plain);
    unknown_format[44] = 77;
    let crc = crc32c::crc32c(&unknown_format[frame::BODY_CRC_FROM..]);
    unknown_format[frame::HALF_BYTES..frame::BODY_CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    check_refused(Op::Produce, &unknown_format, ErrorCode::InvalidBatch);
    let mut session = established();
    let accepted = request(Op::Produce, 1, &sealed(16 + 2 * 24, Format::Native, 2, &|i| i.flags = frame::flags::QUEUE_HEADERS));
    assert!(matches!(session.receive(&accepted, view!(), &mut Outbox::default()), Ok(Received::Request { .. })));
}

#[test]
fn unknown_op_is_answered_with_its_number_and_the_session_goes_on() {
    let mut session = established();
    let mut out = Outbox::default();
    let bytes = raw_request(4242, 0, 3, b"whatever");
    assert!(matches!(session.receive(&bytes, view!(), &mut out), Ok(Received::Handled { consumed_bytes: 24 })));
    let (envelope, code, _) = error_of(&out);
    assert_eq!((envelope.op, envelope.correlation, code), (4242, 3, ErrorCode::UnsupportedOp));
    let mut out = Outbox::default();
    let bytes = raw_request(Op::InitProducer as u16, flags::REPLY, 3, b"");
    session.receive(&bytes, view!(), &mut out).unwrap();
    assert_eq!(error_of(&out).1, ErrorCode::MalformedRequest);
}

/// Sends one request and answers it; what goes out.
fn answer(op: Op, body: &[u8], reply: Reply, moved: bool) -> Outbox {
    let mut session = established();
    let mut out = Outbox::default();
    let bytes = request(op, 0xDEAD_BEEF_0123, body);
    let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!("{op:?} refused") };
    session.reply(id, reply, moved, view!(), &mut out);
    assert_eq!(session.in_flight(), 0);
    out
}

#[test]
fn produced_reply_written_by_hand_is_the_archive() {
    for (moved, duplicate, redirected) in [(false, false, 0), (true, false, 3), (false, true, 0)] {
        let reply = Reply::Produced { base_offset: Offset(1 << 40), append_time_ms: 1_700_000_000_123, duplicate, redirected };
        let (envelope, body) = one_reply(&answer(Op::Produce, &batch(1), reply, moved));
        let expected_flags = if moved { flags::REPLY | flags::MOVED } else { flags::REPLY };
        assert_eq!(envelope, Envelope { len: 24, op: Op::Produce as u16, flags: expected_flags, correlation: 0xDEAD_BEEF_0123 });
        let expected = ProduceReply {
            version: CONTROL_VERSION,
            duplicate: duplicate.into(),
            redirected,
            base_offset: 1 << 40,
            append_time_ms: 1_700_000_000_123,
        };
        assert_eq!(body, expected.to_bytes());
    }
}

#[test]
fn fetched_reply_announces_its_frames_and_leaves_them_where_they_lie() {
    let body = every_request()[1].1.clone();
    let head = Fetched {
        partition: PartitionId(3),
        high_watermark: Offset(25),
        last_stable: Offset(20),
        log_start: Offset(1),
        next_offset: Offset(15),
        bytes: 4096,
        aborted: Box::default(),
    };
    let extent = Extent { segment: 2, position: 64, len: 4096 };
    let out = answer(Op::Fetch, &body, Reply::Fetched { head: head.clone(), data: FetchData::Extents(vec![extent]) }, false);
    let pieces: Vec<&Piece> = out.pieces.iter().collect();
    let [Piece::Bytes(bytes), Piece::Frames { data: FetchData::Extents(extents), bytes: 4096, .. }] = pieces[..] else {
        panic!("{:?}", out.pieces)
    };
    assert_eq!(extents[..], [extent]);
    assert_eq!(Envelope::read(bytes).unwrap().len, 32 + 4096);
    let reply = FetchReply::read(&bytes[Envelope::BYTES..]).unwrap();
    assert_eq!((reply.partition, reply.high_watermark, reply.log_start, reply.next_offset), (3, 20, 1, 15));
    assert_eq!(out.len_bytes, bytes.len() + 4096);
    let nothing = Reply::Fetched { head: Fetched { bytes: 0, ..head }, data: FetchData::Extents(Vec::new()) };
    assert_eq!(one_reply(&answer(Op::Fetch, &body, nothing, false)).0.len, 32);
}

#[test]
fn replies_carry_the_op_and_body_of_their_request() {
    let ask = every_request();
    let body_of = |op: Op| ask.iter().find(|(o, _)| *o == op).unwrap().1.clone();
    let reply = |op, reply| {
        let (envelope, body) = one_reply(&answer(op, &body_of(op), reply, false));
        assert_eq!((envelope.op, envelope.flags), (op as u16, flags::REPLY));
        body
    };
    assert!(reply(Op::CommitOffset, Reply::Committed).is_empty());
    assert!(reply(Op::DeleteTopic, Reply::Deleted).is_empty());
    let body = reply(Op::ReadOffset, Reply::ConsumerOffset { offset: Some(Offset(4)), metadata: "m".into() });
    assert_eq!(control::read_open::<ReadOffsetReply>(&body).unwrap(), ReadOffsetReply { offset: Some(4), metadata: "m".into() });
    let body = reply(Op::Metadata, Reply::Metadata { topics: Vec::new(), shard_ports: vec![7172, 7173] });
    assert_eq!(control::read_open::<MetadataReply>(&body).unwrap().shard_ports, [7172, 7173]);
    let body = reply(Op::ListOffsets, Reply::Offset { offset: Offset(6), timestamp_ms: 9, found: true });
    let read = control::ListOffsetsReply::read(&body).unwrap();
    assert_eq!((read.offset, read.timestamp_ms, read.found), (6, 9, 1));
    let body = reply(Op::InitProducer, Reply::Producer { producer_id: ProducerId(12), producer_epoch: 1 });
    let read = control::ProducerGrant::read(&body).unwrap();
    assert_eq!((read.producer_id, read.producer_epoch), (12, 1));
}

#[test]
fn receive_keeps_to_its_bounds() {
    let waits = |max_wait_ms| {
        let bytes = request(Op::QueueReceive, 1, &queue_receive(1, max_wait_ms).to_bytes());
        match established().receive(&bytes, view!(), &mut Outbox::default()) {
            Ok(Received::Request { request: Request::Receive(receive), .. }) => receive.max_wait_ms,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([waits(0), waits(RECEIVE_WAIT_MAX_MS), waits(u32::MAX)], [0, RECEIVE_WAIT_MAX_MS, RECEIVE_WAIT_MAX_MS]);
    for max_messages in [0, RECEIVE_MESSAGES_MAX + 1] {
        check_refused(Op::QueueReceive, &queue_receive(max_messages, 0).to_bytes(), ErrorCode::InvalidArgument);
    }
    check_refused(Op::QueueReceive, &queue_receive(1, 0).to_bytes()[..39], ErrorCode::MalformedRequest);
    check_refused(Op::QueueReceive, &QueueReceive { version: 9, ..queue_receive(1, 0) }.to_bytes(), ErrorCode::UnsupportedVersion);
}

#[test]
fn receives_are_worth_nothing_to_a_peer_that_has_gone() {
    let mut session = established();
    let mut out = Outbox::default();
    assert!(!session.holds_messages());
    let mut ids = Vec::new();
    for (op, body) in [(Op::QueueReceive, queue_receive(1, 9).to_bytes().to_vec()), (Op::Produce, batch(1))] {
        let bytes = request(op, 1, &body);
        let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!("{op:?}") };
        ids.push(id);
    }
    assert_eq!((session.in_flight(), session.idle_in_flight()), (2, 1));
    let received = Reply::Queue(Box::new(QueueReply::Received { partition: PartitionId(3), count: 0, bytes: Vec::new() }));
    session.reply(ids[0], received, false, view!(), &mut out);
    assert_eq!((session.in_flight(), session.idle_in_flight(), session.holds_messages()), (1, 0, true));
}

#[test]
fn settlements_are_whole_and_not_too_many() {
    let whole = queue_settle(&[settlement(1, 1, Verb::Reject)]);
    for cut in [0, 15, 17, whole.len() - 1] {
        check_refused(Op::QueueSettle, &whole[..cut], ErrorCode::MalformedRequest);
    }
    let mut unknown = whole.clone();
    *unknown.last_mut().unwrap() = 0;
    unknown[16 + 20] = 9;
    check_refused(Op::QueueSettle, &unknown, ErrorCode::MalformedRequest);
    check_refused(Op::QueueSettle, &queue_settle(&[]), ErrorCode::InvalidArgument);
    check_refused(Op::QueueSettle, &queue_settle(&[settlement(1, 0, Verb::Ack)]), ErrorCode::InvalidArgument);
    // Larger than these tests' sessions take a request.
    let many = |count| queue::settle(&queue_settle(&vec![settlement(1, 1, Verb::Ack); count])).map(|_| ()).map_err(|failure| failure.code);
    assert_eq!([many(SETTLEMENTS_MAX), many(SETTLEMENTS_MAX + 1)], [Ok(()), Err(ErrorCode::InvalidArgument)]);
}

#[test]
fn queue_without_partitions_is_refused() {
    let create = CreateQueue {
        name: "q".into(),
        topic: String::new(),
        partition_count: 0,
        durability: control::Durability::Durable,
        config: QueueConfig::default(),
    };
    check_refused(Op::CreateQueue, &config_body(&create), ErrorCode::InvalidArgument);
}

#[test]
fn queue_replies_carry_the_op_and_body_of_their_request() {
    let ask = every_request();
    let reply = |op: Op, reply| {
        let body = &ask.iter().find(|(o, _)| *o == op).unwrap().1;
        let (envelope, body) = one_reply(&answer(op, body, Reply::Queue(Box::new(reply)), false));
        assert_eq!((envelope.op, envelope.flags), (op as u16, flags::REPLY));
        body
    };
    // Copied behind the head, or left as they are: the same bytes.
    for messages in [Vec::new(), vec![1; 80], vec![2; 100_000]] {
        let received = QueueReply::Received { partition: PartitionId(3), count: 2, bytes: messages.clone() };
        let body = reply(Op::QueueReceive, received);
        let head = QueueReceived::read(&body).unwrap();
        assert_eq!((head.partition, head.count, &body[QueueReceived::BYTES..]), (3, 2, &messages[..]));
    }
    let head = QueueSettled::read(&reply(Op::QueueSettle, QueueReply::Settled { settled: 8, refused: 1 })).unwrap();
    assert_eq!((head.settled, head.refused), (8, 1));
    let body = reply(Op::Queue, QueueReply::Answer(QueueAnswer::Count(12)));
    assert_eq!(control::read_open::<QueueAnswer>(&body).unwrap(), QueueAnswer::Count(12));
    let info = QueueInfo { queue: 5, name: "q".into(), topic: "t".into(), partitions: Vec::new(), config: QueueConfig::default() };
    let body = reply(Op::CreateQueue, QueueReply::Info(info.clone().into()));
    assert_eq!(ringmain_wire::queue::read_config::<QueueInfo>(&body).unwrap(), info);
    let list = QueueList { shard_ports: vec![7172], queues: vec![info] };
    let body = reply(Op::ListQueues, QueueReply::List { queues: list.queues.clone(), shard_ports: list.shard_ports.clone() });
    assert_eq!(ringmain_wire::queue::read_config::<QueueList>(&body).unwrap(), list);
}

#[test]
fn failure_carries_its_code_and_a_text() {
    let failed = |failure| error_of(&answer(Op::Produce, &batch(1), Reply::Failed(failure), true));
    let (envelope, code, message) = failed(ErrorCode::DiskFull.into());
    assert_eq!((envelope.op, envelope.flags), (Op::Produce as u16, flags::REPLY | flags::ERROR | flags::MOVED));
    assert_eq!((code, message.as_str()), (ErrorCode::DiskFull, ErrorCode::DiskFull.text()));
    assert_eq!(failed(Failure::new(ErrorCode::Internal, "own words")).2, "own words");
}

#[test]
fn replies_in_another_order_find_their_requests() {
    let mut session = established();
    let mut out = Outbox::default();
    let mut ids = Vec::new();
    for correlation in [10, 20, 30] {
        let bytes = request(Op::Produce, correlation, &batch(1));
        let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!() };
        ids.push(id);
    }
    assert_eq!(session.in_flight(), 3);
    let produced = || Reply::Produced { base_offset: Offset(0), append_time_ms: 0, duplicate: false, redirected: 0 };
    session.reply(ids[1], produced(), false, view!(), &mut out);
    let bytes = request(Op::Produce, 40, &batch(1));
    let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!() };
    assert_eq!(id, ids[1], "ids are used again");
    for id in [ids[2], id, ids[0]] {
        session.reply(id, produced(), false, view!(), &mut out);
    }
    let correlations: Vec<u64> = sent(&out).chunks_exact(40).map(|reply| Envelope::read(reply).unwrap().correlation).collect();
    assert_eq!(correlations, [20, 30, 40, 10]);
    assert_eq!(session.in_flight(), 0);
}

proptest! {
    /// No input makes a session panic, hand out more than there is, or stand still without saying so.
    #[test]
    fn random_bytes_never_panic(mut input in proptest::collection::vec(any::<u8>(), 0..400), op in 0u16..40, says_hello: bool, fits: bool) {
        if input.len() >= Envelope::BYTES {
            input[4..6].copy_from_slice(&op.to_le_bytes());
            if fits {
                let len = (input.len() - Envelope::BYTES) as u32;
                input[0..4].copy_from_slice(&len.to_le_bytes());
            }
        }
        let mut session = if says_hello { established() } else { session() };
        let mut out = Outbox::default();
        match session.receive(&input, view!(), &mut out) {
            Ok(Received::More { .. }) => prop_assert!(out.is_empty()),
            Ok(Received::Request { consumed_bytes, .. }) => prop_assert!(consumed_bytes <= input.len()),
            Ok(Received::Handled { consumed_bytes }) => prop_assert!(consumed_bytes >= Envelope::BYTES && consumed_bytes <= input.len()),
            Err(_) => prop_assert!(!out.is_empty(), "an answer says why"),
        }
    }

    /// A valid request with any bytes changed is taken, refused or closes; it never panics.
    #[test]
    fn damaged_requests_never_panic(which in 0usize..19, at in 0usize..400, value: u8) {
        let (op, body) = every_request().swap_remove(which);
        let mut bytes = request(op, 1, &body);
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = established().receive(&bytes, view!(), &mut Outbox::default());
    }
}

/// A batch of another door, as a shard returns it: `count` records at `offset`, gzip, with a header each.
fn foreign_frame(count: i64, offset: u64, producer_id: i64, frame_flags: u8) -> Vec<u8> {
    use std::io::Write;
    let mut records = Vec::new();
    for delta in 0..count {
        // Zigzag: attributes, time delta, offset delta, key "k", value null, one header "h" without a value.
        let record = [0, 2 * delta as u8, 2 * delta as u8, 2, b'k', 1, 2, 2, b'h', 1];
        records.push(2 * record.len() as u8);
        records.extend(record);
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&records).unwrap();
    let mut body = vec![0; 61];
    body.extend(gzip.finish().unwrap());
    (body[16], body[22]) = (2, 1);
    body[23..27].copy_from_slice(&(count as u32 - 1).to_be_bytes());
    body[27..35].copy_from_slice(&1_000i64.to_be_bytes());
    body[57..61].copy_from_slice(&(count as u32).to_be_bytes());
    let mut bytes = [vec![0; 64], body].concat();
    let identity = Identity { producer_id: ProducerId(producer_id), flags: frame_flags, ..Identity::plain(PartitionId(3)) };
    frame::seal(&mut bytes, Format::Kafka, count as u32, identity);
    let stamp = ringmain_wire::BrokerHalf::stamp(bytes.len() as u32, Offset(offset), 5, 1);
    bytes[..32].copy_from_slice(&stamp);
    bytes.resize(ringmain_wire::align_up(bytes.len()), 0);
    bytes
}

/// The frames that a fetch with these flags gets for what a shard returned.
fn fetched_with(request_flags: u32, frames: Vec<u8>, aborted: Vec<crate::request::transaction::AbortedTransaction>) -> Vec<u8> {
    let mut session = established();
    let mut out = Outbox::default();
    let fetch = FetchRequest {
        version: CONTROL_VERSION,
        reserved: 0,
        partition: 3,
        offset: 0,
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 0,
        flags: request_flags,
    };
    let bytes = request(Op::Fetch, 9, &fetch.to_bytes());
    let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!("refused") };
    let head = Fetched {
        partition: PartitionId(3),
        high_watermark: Offset(100),
        last_stable: Offset(100),
        log_start: Offset(0),
        next_offset: Offset(100),
        bytes: frames.len() as u32,
        aborted: aborted.into(),
    };
    let is_read = session.reads_frames(id, &head);
    session.reply(id, Reply::Fetched { head, data: FetchData::Owned(frames.clone()) }, false, view!(), &mut out);
    let mut sent = Vec::new();
    for piece in out.pieces {
        match piece {
            Piece::Bytes(bytes) | Piece::Frames { data: FetchData::Owned(bytes), .. } => sent.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    let envelope = Envelope::read(&sent).unwrap();
    assert_eq!(envelope.len as usize, sent.len() - Envelope::BYTES);
    let sent = sent[Envelope::BYTES + FetchReply::BYTES..].to_vec();
    assert!(is_read || sent == frames, "what isn't read isn't changed");
    sent
}

/// A shard knows the batch of another door that has it; the first record so young is found in the batch.
#[test]
fn offset_by_time_is_the_exact_record_of_a_foreign_batch() {
    let since = |since_ms: i64, reply: Reply, frames: Option<Vec<u8>>| {
        let mut session = established();
        let mut out = Outbox::default();
        let list = ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: 3, timestamp_ms: since_ms };
        let bytes = request(Op::ListOffsets, 9, &list.to_bytes());
        let Ok(Received::Request { id, .. }) = session.receive(&bytes, view!(), &mut out) else { panic!("refused") };
        session.reply(id, reply, false, view!(), &mut out);
        let asked = session.poll_request();
        assert_eq!(asked.is_some(), frames.is_some());
        if let (Some((id, OwnedRequest::Fetch(fetch))), Some(frames)) = (asked, frames) {
            assert_eq!((fetch.partition, fetch.from, session.in_flight()), (PartitionId(3), Offset(10), 1));
            let head = Fetched {
                partition: PartitionId(3),
                high_watermark: Offset(100),
                last_stable: Offset(100),
                log_start: Offset(0),
                next_offset: Offset(100),
                bytes: frames.len() as u32,
                aborted: Box::default(),
            };
            assert!(out.is_empty() && session.reads_frames(id, &head));
            session.reply(id, Reply::Fetched { head, data: FetchData::Owned(frames) }, false, view!(), &mut out);
        }
        assert!(session.in_flight() == 0 && session.poll_request().is_none());
        let (envelope, body) = one_reply(&out);
        assert_eq!((envelope.op, envelope.correlation), (Op::ListOffsets as u16, 9));
        let reply = control::ListOffsetsReply::read(&body).unwrap();
        (reply.found == 1, reply.offset, reply.timestamp_ms)
    };
    // Its records are of 1000, 1001, 1002.
    let found = || Reply::Offset { offset: Offset(10), timestamp_ms: 1_002, found: true };
    assert_eq!(since(1_001, found(), Some(foreign_frame(3, 10, -1, 0))), (true, 11, 1_001));
    assert_eq!(since(7, found(), Some(foreign_frame(3, 10, -1, 0))), (true, 10, 1_000));
    // Cut away meanwhile, or unreadable: the batch is near enough.
    assert_eq!(since(1_001, found(), Some(Vec::new())), (true, 10, 1_002));
    assert_eq!(since(1_001, Reply::Offset { offset: Offset(50), timestamp_ms: -1, found: false }, None), (false, 50, -1));
    assert_eq!(since(-1, found(), None), (true, 10, 1_002));
}

#[test]
fn foreign_batches_come_as_native_ones_to_who_asks_for_that() {
    let frames = [foreign_frame(3, 10, -1, 0), foreign_frame(2, 13, -1, 0)].concat();
    assert_eq!(fetched_with(0, frames.clone(), Vec::new()), frames);
    let sent = fetched_with(control::TRANSCODE, frames, Vec::new());
    let mut read = Vec::new();
    for frame in frame::frames(&sent).map(Result::unwrap) {
        frame.verify_header().and_then(|()| frame.verify_body()).unwrap();
        assert_eq!((frame.header.producer.format, frame.partition()), (Format::Native as u8, PartitionId(3)));
        let records = ringmain_wire::Records::new(frame.body(), frame.header.producer.record_count).unwrap();
        for (record, offset) in records.map(Result::unwrap).zip(frame.base_offset().0..) {
            let headers: Vec<_> = ringmain_wire::record::headers(record.headers).map(Option::unwrap).collect();
            assert_eq!((record.key, record.value, headers), (Some(&b"k"[..]), None, vec![(&b"h"[..], None)]));
            read.push((offset, record.timestamp_ms));
        }
    }
    assert_eq!(read, [(10, 1_000), (11, 1_001), (12, 1_002), (13, 1_000), (14, 1_001)]);
}

#[test]
fn foreign_batch_that_lies_about_its_records_is_an_error_behind_the_good_ones() {
    let mut lying = foreign_frame(2, 13, -1, 0);
    // Another number of records than are in it; the log's checksums are right.
    lying.truncate(FrameHeader::read(&lying).unwrap().broker.len as usize);
    frame::seal(&mut lying, Format::Kafka, 5, Identity::plain(PartitionId(3)));
    let stamp = ringmain_wire::BrokerHalf::stamp(lying.len() as u32, Offset(13), 5, 1);
    lying[..32].copy_from_slice(&stamp);
    lying.resize(ringmain_wire::align_up(lying.len()), 0);
    let sent = fetched_with(control::TRANSCODE, [foreign_frame(3, 10, -1, 0), lying].concat(), Vec::new());
    let offsets: Vec<_> = frame::frames(&sent).map(|frame| frame.unwrap().base_offset().0).collect();
    assert_eq!(offsets, [10]);
}

#[test]
fn what_aborted_transactions_wrote_is_left_out() {
    let transactional = frame::flags::TRANSACTIONAL;
    let frames = [foreign_frame(1, 10, 7, transactional), foreign_frame(1, 11, 8, transactional), foreign_frame(1, 12, 7, 0)].concat();
    let aborted =
        crate::request::transaction::AbortedTransaction { producer_id: ProducerId(7), first_offset: Offset(10), last_offset: Offset(14) };
    for request_flags in [0, control::TRANSCODE] {
        let sent = fetched_with(request_flags, frames.clone(), vec![aborted]);
        let offsets: Vec<_> = frame::frames(&sent).map(|frame| frame.unwrap().base_offset().0).collect();
        assert_eq!(offsets, [11, 12]);
    }
}
