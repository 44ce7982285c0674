//! The native door, byte by byte, without the client crate's session: what it answers, and what it does with input that
//! isn't the protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringmain_client::wire::control::*;
use ringmain_client::wire::frame::{HALF_BYTES, Identity, frames};
use ringmain_client::wire::{
    DEFAULT_MAX_MESSAGE_BYTES, Envelope, ErrorCode, Op, PROTOCOL_VERSION, PartitionId, ProducerId, RecordBatchBuilder, Records, envelope,
};

use crate::harness::{Broker, Start};

/// A connection that knows envelopes and nothing else.
pub struct Wire {
    pub stream: TcpStream,
    correlation: u64,
}

/// A reply's body, or the error in its place.
pub type Answer = Result<Vec<u8>, (ErrorCode, String)>;

impl Wire {
    pub fn connect(broker: &Broker) -> Wire {
        let stream = TcpStream::connect(broker.ready().native).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire { stream, correlation: 0 }
    }

    /// Connects and says hello.
    pub fn greet(broker: &Broker) -> Wire {
        let mut wire = Wire::connect(broker);
        wire.call(Op::Hello, &hello()).unwrap();
        wire
    }

    fn bytes(&mut self, op: u16, body: &[u8]) -> Vec<u8> {
        self.correlation += 1;
        let envelope = Envelope { len: body.len() as u32, op, flags: 0, correlation: self.correlation };
        [&envelope.to_bytes()[..], body].concat()
    }

    pub fn send(&mut self, op: Op, body: &[u8]) -> u64 {
        let bytes = self.bytes(op as u16, body);
        self.stream.write_all(&bytes).unwrap();
        self.correlation
    }

    pub fn receive(&mut self) -> (Envelope, Answer) {
        let mut head = [0; Envelope::BYTES];
        self.stream.read_exact(&mut head).expect("a reply");
        let envelope = Envelope::read(&head).unwrap();
        assert_ne!(envelope.flags & envelope::flags::REPLY, 0, "{envelope:?}");
        let mut body = vec![0; envelope.len as usize];
        self.stream.read_exact(&mut body).expect("a reply's body");
        if envelope.flags & envelope::flags::ERROR == 0 {
            return (envelope, Ok(body));
        }
        let error: ErrorReply = read_open(&body).unwrap();
        (envelope, Err((ErrorCode::from_number(error.code), error.message)))
    }

    pub fn call(&mut self, op: Op, body: &[u8]) -> Answer {
        let correlation = self.send(op, body);
        let (envelope, answer) = self.receive();
        assert_eq!((envelope.correlation, envelope.op), (correlation, op as u16));
        answer
    }

    fn error(&mut self, op: Op, body: &[u8]) -> ErrorCode {
        match self.call(op, body) {
            Ok(body) => panic!("{op:?} was accepted with {} bytes", body.len()),
            Err((code, _)) => code,
        }
    }

    /// Whether the broker closes the connection within its patience; replies before that are read over.
    fn closes(mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    fn create(&mut self, name: &str, config: TopicConfig) -> PartitionId {
        let body = self.call(Op::CreateTopic, &open(&CreateTopic { name: name.into(), partition_count: 1, config })).unwrap();
        PartitionId(read_open::<TopicInfo>(&body).unwrap().partitions[0].partition)
    }

    fn produce(&mut self, frame: &[u8]) -> Result<ProduceReply, ErrorCode> {
        self.call(Op::Produce, frame).map(|body| ProduceReply::read(&body).unwrap()).map_err(|(code, _)| code)
    }

    /// Everything that is readable: a single answer may hold less than there is.
    fn fetch_all(&mut self, partition: PartitionId) -> Vec<Vec<u8>> {
        let (mut values, mut offset) = (Vec::new(), 0);
        loop {
            let (head, more) = self.fetch(partition, offset, 1, 0).unwrap();
            assert!(head.next_offset > offset || head.next_offset == head.high_watermark, "no progress: {head:?}");
            values.extend(more);
            offset = head.next_offset;
            if offset >= head.high_watermark {
                return values;
            }
        }
    }

    fn fetch(
        &mut self,
        partition: PartitionId,
        offset: u64,
        min_bytes: u32,
        max_wait_ms: u32,
    ) -> Result<(FetchReply, Vec<Vec<u8>>), ErrorCode> {
        let body = self.call(Op::Fetch, &fetch_request(partition, offset, min_bytes, max_wait_ms)).map_err(|(code, _)| code)?;
        Ok((FetchReply::read(&body).unwrap(), values(&body[FetchReply::BYTES..])))
    }
}

fn open<T>(message: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<rkyv::util::AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Error>,
        >,
{
    let mut bytes = Vec::new();
    write_open(message, &mut bytes);
    bytes
}

fn hello() -> Vec<u8> {
    let hello =
        Hello { protocol_version: PROTOCOL_VERSION, client_name: "raw".into(), auth_mechanism: String::new(), auth_data: Vec::new() };
    open(&hello)
}

fn fetch_request(partition: PartitionId, offset: u64, min_bytes: u32, max_wait_ms: u32) -> [u8; FetchRequest::BYTES] {
    let version = CONTROL_VERSION;
    FetchRequest { version, reserved: 0, partition: partition.0, offset, min_bytes, max_bytes: 1 << 20, max_wait_ms, flags: 0 }.to_bytes()
}

fn list_request(partition: PartitionId, timestamp_ms: i64) -> [u8; ListOffsets::BYTES] {
    ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: partition.0, timestamp_ms }.to_bytes()
}

/// One frame; the first value's timestamp is 1,000, the next one's 1,001 and so on.
fn frame(identity: Identity, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for (timestamp_ms, value) in (1_000..).zip(values) {
        builder.push(timestamp_ms, None, Some(value), &[]);
    }
    builder.finish(identity).to_vec()
}

fn plain(partition: PartitionId, values: &[&[u8]]) -> Vec<u8> {
    frame(Identity::plain(partition), values)
}

/// The values in the frames of a fetch reply, all checksums verified.
fn values(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    for frame in frames(bytes) {
        let frame = frame.unwrap();
        frame.verify_header().unwrap();
        frame.verify_body().unwrap();
        let records = Records::new(frame.body(), frame.header.producer.record_count).unwrap();
        values.extend(records.map(|record| record.unwrap().value.unwrap().to_vec()));
    }
    values
}

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn hello_answers_with_version_and_limits() {
    let broker = Broker::start("hello", Start::default());
    let reply: HelloReply = read_open(&Wire::connect(&broker).call(Op::Hello, &hello()).unwrap()).unwrap();
    assert_eq!(reply.protocol_version, PROTOCOL_VERSION);
    assert_eq!(reply.broker_version, env!("CARGO_PKG_VERSION"));
    assert!(reply.max_request_bytes >= DEFAULT_MAX_MESSAGE_BYTES && reply.max_in_flight > 0, "{reply:?}");
}

#[test]
fn bad_requests_get_typed_errors_and_the_connection_goes_on() {
    let broker = Broker::start("bad-requests", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig { max_message_bytes: 4_096, ..TopicConfig::default() });

    let unknown = wire.bytes(999, b"body");
    wire.stream.write_all(&unknown).unwrap();
    let (envelope, answer) = wire.receive();
    assert_eq!((envelope.op, envelope.correlation), (999, wire.correlation));
    assert_eq!(answer.unwrap_err().0, ErrorCode::UnsupportedOp);

    assert_eq!(wire.error(Op::Metadata, b"\x01\0\0\0nonsense"), ErrorCode::MalformedRequest);
    assert_eq!(wire.error(Op::Fetch, b""), ErrorCode::MalformedRequest);
    assert_eq!(wire.error(Op::DescribeTopic, &open(&TopicName { name: "nobody".into() })), ErrorCode::UnknownTopic);
    let twin = CreateTopic { name: "t".into(), partition_count: 1, config: TopicConfig::default() };
    assert_eq!(wire.error(Op::CreateTopic, &open(&twin)), ErrorCode::TopicExists);
    for name in ["", "a/b", "é", &"x".repeat(250)] {
        assert_eq!(
            wire.error(Op::CreateTopic, &open(&CreateTopic { name: name.into(), ..twin.clone() })),
            ErrorCode::InvalidTopic,
            "{name}"
        );
    }
    assert_eq!(wire.produce(&plain(PartitionId(4_000_000), &[b"x"])), Err(ErrorCode::UnknownPartition));
    assert_eq!(wire.produce(&plain(PartitionId::STATE, &[b"x"])), Err(ErrorCode::UnknownPartition));
    assert_eq!(wire.produce(&plain(partition, &[&[b'x'; 5_000]])), Err(ErrorCode::MessageTooLarge));
    assert_eq!(wire.fetch(partition, 1, 1, 0).unwrap_err(), ErrorCode::OffsetOutOfRange);

    // After all that nothing is stored, and everything works.
    assert_eq!(wire.produce(&plain(partition, &[b"good"])).unwrap().base_offset, 0);
    assert_eq!(wire.fetch(partition, 0, 1, 0).unwrap().1, [b"good"]);
}

#[test]
fn frame_with_any_bit_flipped_is_refused_and_not_stored() {
    let broker = Broker::start("flip", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig::default());
    let good = plain(partition, &[b"one", b"two"]);
    for at in HALF_BYTES..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        let code = wire.produce(&bad).unwrap_err();
        let fits =
            matches!(code, ErrorCode::CorruptFrame | ErrorCode::MalformedRequest | ErrorCode::InvalidBatch | ErrorCode::UnknownPartition);
        assert!(fits, "byte {at}: {code:?}");
    }
    assert_eq!(wire.produce(&good).unwrap().base_offset, 0);
}

#[test]
fn lost_framing_closes_this_connection_and_no_other() {
    let broker = Broker::start("framing", Start::default());
    let mut other = Wire::greet(&broker);
    let too_long = Envelope { len: u32::MAX, op: Op::Produce as u16, flags: 0, correlation: 1 };
    for garbage in [&b"GET / HTTP/1.1\r\nHost: ringmain\r\n\r\n"[..], &too_long.to_bytes(), &[0xff; 64]] {
        let mut before_hello = Wire::connect(&broker);
        before_hello.stream.write_all(garbage).unwrap();
        assert!(before_hello.closes(), "before hello: {}", garbage.escape_ascii());
        let mut after_hello = Wire::greet(&broker);
        after_hello.stream.write_all(garbage).unwrap();
        assert!(after_hello.closes(), "after hello: {}", garbage.escape_ascii());
    }
    other.call(Op::Stats, &open(&StatsRequest { reserved: 0 })).unwrap();
}

#[test]
fn silent_connection_closes_before_hello() {
    let broker = Broker::start("silent", Start::default());
    let wire = Wire::connect(&broker);
    let began = Instant::now();
    assert!(wire.closes());
    assert!(began.elapsed() > Duration::from_secs(1), "closed after {:?}", began.elapsed());
}

#[test]
fn request_in_single_bytes_is_understood() {
    let broker = Broker::start("single-bytes", Start::default());
    let mut wire = Wire::connect(&broker);
    let bytes = wire.bytes(Op::Hello as u16, &hello());
    for byte in bytes {
        wire.stream.write_all(&[byte]).unwrap();
    }
    wire.receive().1.unwrap();
}

#[test]
fn pipelined_batches_keep_their_order_and_are_all_answered() {
    let broker = Broker::start("pipelined", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig::default());
    let expected: Vec<Vec<u8>> = (0..500_u32).map(|i| i.to_le_bytes().to_vec()).collect();
    let (mut bytes, mut open) = (Vec::new(), std::collections::BTreeMap::new());
    for (offset, value) in (0_u64..).zip(&expected) {
        bytes.extend(wire.bytes(Op::Produce as u16, &plain(partition, &[value])));
        open.insert(wire.correlation, offset);
    }
    let mut writer = wire.stream.try_clone().unwrap();
    // On a thread of its own: the broker stops reading when too much is unanswered.
    let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    while !open.is_empty() {
        let (envelope, answer) = wire.receive();
        let offset = open.remove(&envelope.correlation).expect("one answer per request");
        assert_eq!(ProduceReply::read(&answer.unwrap()).unwrap().base_offset, offset);
    }
    writing.join().unwrap();
    assert_eq!(wire.fetch_all(partition), expected);
}

#[test]
fn fetch_waits_for_data_and_no_longer_than_asked() {
    let broker = Broker::start("long-poll", Start::default());
    let (mut reader, mut writer) = (Wire::greet(&broker), Wire::greet(&broker));
    let partition = reader.create("t", TopicConfig::default());

    let began = Instant::now();
    let (head, nothing) = reader.fetch(partition, 0, 1, 300).unwrap();
    assert!(nothing.is_empty() && head.high_watermark == 0 && head.next_offset == 0, "{head:?}");
    assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&began.elapsed()), "{:?}", began.elapsed());

    let began = Instant::now();
    reader.send(Op::Fetch, &fetch_request(partition, 0, 1, 8_000));
    std::thread::sleep(Duration::from_millis(100));
    writer.produce(&plain(partition, &[b"news"])).unwrap();
    let body = reader.receive().1.unwrap();
    assert_eq!(values(&body[FetchReply::BYTES..]), [b"news"]);
    assert!(began.elapsed() < Duration::from_secs(3), "the fetch slept on after the data came: {:?}", began.elapsed());
}

#[test]
fn offsets_are_listed_by_time_and_for_both_ends() {
    let broker = Broker::start("list-offsets", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig::default());
    let mut list = |timestamp_ms: i64| {
        let reply = ListOffsetsReply::read(&wire.call(Op::ListOffsets, &list_request(partition, timestamp_ms)).unwrap()).unwrap();
        (reply.offset, reply.found)
    };
    assert_eq!((list(EARLIEST).0, list(LATEST).0), (0, 0));
    let mut writer = Wire::greet(&broker);
    // Timestamps 1,000 to 1,003.
    writer.produce(&plain(partition, &[b"a", b"b", b"c", b"d"])).unwrap();
    assert_eq!((list(EARLIEST).0, list(LATEST).0), (0, 4));
    assert_eq!((list(0), list(1_000), list(1_002), list(1_003)), ((0, 1), (0, 1), (2, 1), (3, 1)));
    assert_eq!(list(1_004), (4, 0));
}

#[test]
fn idempotent_batch_is_stored_once_also_after_a_crash() {
    let mut broker = Broker::start("idempotence", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig::default());
    let grant = ProducerGrant::read(&wire.call(Op::InitProducer, b"").unwrap()).unwrap();
    let batch = |sequence: i32, values: &[&[u8]]| {
        let identity = Identity {
            producer_id: ProducerId(grant.producer_id),
            producer_epoch: grant.producer_epoch,
            sequence,
            ..Identity::plain(partition)
        };
        frame(identity, values)
    };
    let first = wire.produce(&batch(0, &[b"a", b"b"])).unwrap();
    assert_eq!((first.base_offset, first.duplicate), (0, 0));
    let again = wire.produce(&batch(0, &[b"a", b"b"])).unwrap();
    assert_eq!((again.base_offset, again.duplicate), (0, 1));
    assert_eq!(wire.produce(&batch(3, &[b"d"])), Err(ErrorCode::OutOfOrderSequence));
    assert_eq!(wire.produce(&batch(2, &[b"c"])).unwrap().base_offset, 2);

    broker.kill();
    broker.restart();
    let mut wire = Wire::greet(&broker);
    let again = wire.produce(&batch(2, &[b"c"])).unwrap();
    assert_eq!((again.base_offset, again.duplicate), (2, 1));
    assert_eq!(wire.produce(&batch(4, &[b"e"])), Err(ErrorCode::OutOfOrderSequence));
    assert_eq!(wire.produce(&batch(3, &[b"d"])).unwrap().base_offset, 3);
    assert_eq!(wire.fetch_all(partition), [b"a", b"b", b"c", b"d"]);
}

#[test]
fn committed_offset_survives_a_crash() {
    let mut broker = Broker::start("commit", Start::default());
    let mut wire = Wire::greet(&broker);
    let partition = wire.create("t", TopicConfig::default()).0;
    let read = |wire: &mut Wire, consumer: &str| -> ReadOffsetReply {
        read_open(&wire.call(Op::ReadOffset, &open(&ReadOffset { consumer: consumer.into(), partition })).unwrap()).unwrap()
    };
    assert_eq!(read(&mut wire, "c").offset, None);
    for offset in [7, 42] {
        let commit = CommitOffset { consumer: "c".into(), partition, offset, metadata: "é".into() };
        wire.call(Op::CommitOffset, &open(&commit)).unwrap();
    }
    broker.kill();
    broker.restart();
    let mut wire = Wire::greet(&broker);
    let reply = read(&mut wire, "c");
    assert_eq!((reply.offset, reply.metadata.as_str()), (Some(42), "é"));
    assert_eq!(read(&mut wire, "other").offset, None);
}

#[test]
fn deleted_topic_is_gone_and_its_partition_is_never_reused() {
    let mut broker = Broker::start("delete", Start::default());
    let mut wire = Wire::greet(&broker);
    let old = wire.create("t", TopicConfig::default());
    wire.produce(&plain(old, &[b"old"])).unwrap();
    wire.call(Op::DeleteTopic, &open(&TopicName { name: "t".into() })).unwrap();
    assert_eq!(wire.fetch(old, 0, 1, 0).unwrap_err(), ErrorCode::UnknownPartition);
    let new = wire.create("t", TopicConfig::default());
    assert_ne!(new, old);
    broker.kill();
    broker.restart();
    let mut wire = Wire::greet(&broker);
    assert_eq!(wire.produce(&plain(old, &[b"x"])), Err(ErrorCode::UnknownPartition));
    assert!(wire.fetch(new, 0, 1, 0).unwrap().1.is_empty());
}
