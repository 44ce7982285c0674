//! Bytes that no client sends. Each gets the right error or a closed connection at once, costs no memory to speak of, and no other
//! connection notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use kafka_protocol::messages as k;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::clients::broker;
use crate::harness::{Broker, Random};

/// Most that the answer to nonsense may take.
const AT_ONCE: Duration = Duration::from_millis(100);
/// A machine that is busy with other tests can delay any one answer, but not all of so many.
const TRIES: u32 = 10;
/// For an answer that is late.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `run` gives, which must take less than [`AT_ONCE`] at best.
fn at_once<T>(what: &str, mut run: impl FnMut() -> T) -> T {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let began = Instant::now();
        let outcome = run();
        best = best.min(began.elapsed());
        if best < AT_ONCE {
            return outcome;
        }
    }
    panic!("{what}: {best:?} at best in {TRIES} tries; {AT_ONCE:?} is allowed");
}

struct Peer(TcpStream);

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Closed,
    /// The bytes after the length.
    Answer(Vec<u8>),
    Nothing,
}

impl Peer {
    fn connect(broker: &Broker) -> Peer {
        let stream = TcpStream::connect(broker.kafka()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }

    /// It may close in the middle.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn outcome(&mut self) -> Outcome {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Ok(()) => {
                let mut answer = vec![0; u32::from_be_bytes(length) as usize];
                self.0.read_exact(&mut answer).unwrap();
                Outcome::Answer(answer)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Outcome::Nothing,
            Err(_) => Outcome::Closed,
        }
    }

    /// Says hello as a client does, so that the connection is no stranger's.
    fn greet(&mut self) {
        self.send(&message(k::ApiKey::ApiVersions, 0, &k::ApiVersionsRequest::default()));
        assert!(matches!(self.outcome(), Outcome::Answer(_)));
    }
}

fn message(key: k::ApiKey, version: i16, request: &impl Encodable) -> Vec<u8> {
    let header = k::RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(5)
        .with_client_id(Some(StrBytes::from_static_str("hostile")));
    let mut bytes = vec![0; 4];
    header.encode(&mut bytes, key.request_header_version(version)).unwrap();
    request.encode(&mut bytes, version).unwrap();
    with_length(bytes)
}

/// Fills in the length before `bytes`.
fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A request by hand: the body as it is.
fn raw(key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(key.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend([0, 0, 0, 5, 0xff, 0xff]);
    bytes.extend(body);
    with_length(bytes)
}

fn resident_bytes(broker: &Broker) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", broker.pid().as_raw_nonzero())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn nonsense_closes_the_connection_and_nothing_else() {
    let broker = broker("kafka-nonsense");
    let mut bystander = Peer::connect(&broker);
    bystander.greet();
    let before = resident_bytes(&broker);
    let sizes = [-1, 0, 1, 7, i32::MIN, i32::MAX, i32::MAX - 1, 0x7000_0000, 0x1603_0100, 0x4745_5420];
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for size in sizes {
        let follows = [0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff];
        cases.push((format!("a length of {size}"), [&size.to_be_bytes()[..], &follows].concat()));
    }
    let most = [0x7f, 0xff, 0xff, 0xff];
    let varint = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let overlong = [0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    for (what, key, version, body) in [
        ("an unknown API", 999, 0, &[][..]),
        ("an API of -1", -1, 0, &[]),
        ("an API that isn't served", 4, 0, &[]),
        ("a version that isn't", 3, 99, &[0, 0, 0, 0]),
        ("a version of -1", 3, -1, &[0, 0, 0, 0]),
        ("Metadata of 2^31-1 topics", 3, 1, &most),
        ("Metadata of 2^32-2 topics", 3, 9, &[&[0][..], &varint, &[0; 3]].concat()),
        ("an overlong varint", 3, 9, &[&[0][..], &overlong, &[0; 3]].concat()),
        ("2^32-1 tagged fields in the header", 3, 9, &varint),
        ("no body", 0, 3, &[]),
        ("Produce of 2^31-1 topics", 0, 3, &[&[0xff, 0xff, 0, 1, 0, 0, 0, 9][..], &most].concat()),
        ("Fetch cut short", 1, 4, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0]),
        ("a string longer than the message", 17, 0, &[0x7f, 0xff, b'x']),
        ("a string that isn't UTF-8", 17, 0, &[0, 2, 0xc3, 0x28]),
        ("null for a name", 17, 0, &[0xff, 0xff]),
        ("null bytes", 36, 0, &[0xff, 0xff, 0xff, 0xff]),
    ] {
        cases.push((what.into(), raw(key, version, body)));
    }
    for greeted in [false, true] {
        for (what, bytes) in &cases {
            let outcome = at_once(what, || {
                let mut peer = Peer::connect(&broker);
                if greeted {
                    peer.greet();
                }
                peer.send(bytes);
                peer.outcome()
            });
            assert_eq!(outcome, Outcome::Closed, "{what}, greeted: {greeted}");
        }
    }
    bystander.greet();
    let grown = resident_bytes(&broker).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
}

#[test]
fn unknown_version_of_api_versions_is_told_the_versions() {
    let broker = broker("kafka-versions");
    let mut peer = Peer::connect(&broker);
    // Whatever this version's body may be.
    let outcome = at_once("an unknown version of ApiVersions", || {
        peer.send(&raw(18, 77, &[1, 2, 3, 4, 5]));
        peer.outcome()
    });
    let Outcome::Answer(answer) = outcome else { panic!("no answer") };
    assert_eq!(&answer[..4], [0, 0, 0, 5]);
    let versions = k::ApiVersionsResponse::decode(&mut &answer[4..], 0).unwrap();
    assert_eq!(versions.error_code, 35);
    assert!(versions.api_keys.iter().any(|api| api.api_key == 18 && api.max_version == 4), "{versions:?}");
    peer.greet();
}

/// A record batch as a client makes it, of one record `x`.
fn batch() -> Vec<u8> {
    let records = [14, 0, 0, 0, 1, 2, b'x', 0];
    let mut batch = Vec::new();
    batch.extend(0i64.to_be_bytes());
    batch.extend((49 + records.len() as i32).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.push(2);
    batch.extend([0; 4]);
    batch.extend(0i16.to_be_bytes());
    batch.extend(0i32.to_be_bytes());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    batch.extend(now.to_be_bytes());
    batch.extend(now.to_be_bytes());
    batch.extend((-1i64).to_be_bytes());
    batch.extend((-1i16).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.extend(1i32.to_be_bytes());
    batch.extend(records);
    sealed(batch)
}

/// With the checksum that it has to have.
fn sealed(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// Error code and offset.
fn produce(peer: &mut Peer, records: Option<Vec<u8>>) -> (i16, i64) {
    use k::produce_request::{PartitionProduceData, TopicProduceData};
    let partition = PartitionProduceData::default().with_index(0).with_records(records.map(Into::into));
    let topic =
        TopicProduceData::default().with_name(k::TopicName(StrBytes::from_static_str("hostile"))).with_partition_data(vec![partition]);
    let request = k::ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![topic]);
    peer.send(&message(k::ApiKey::Produce, 7, &request));
    let Outcome::Answer(answer) = peer.outcome() else { panic!("no answer to a batch") };
    let response = k::ProduceResponse::decode(&mut &answer[4..], 7).unwrap();
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

#[test]
fn batches_that_are_wrong_are_refused_and_leave_no_trace() {
    const CORRUPT: i16 = 2;
    let broker = broker("kafka-batches");
    broker.run(&["topic", "create", "hostile"]);
    let mut peer = Peer::connect(&broker);
    assert_eq!(produce(&mut peer, Some(batch())), (0, 0));
    let with = |at: usize, bytes: &[u8]| {
        let mut batch = batch();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        batch
    };
    let mut refused = |what: &str, records: Option<Vec<u8>>, codes: &[i16]| {
        let (code, _) = at_once(what, || produce(&mut peer, records.clone()));
        assert!(codes.contains(&code), "{what}: error {code}, not one of {codes:?}");
    };
    refused("no records", None, &[CORRUPT, 42, 87]);
    refused("nothing", Some(vec![]), &[CORRUPT, 42, 87]);
    refused("half a header", Some(batch()[..30].to_vec()), &[CORRUPT, 87]);
    refused("one byte less", Some(batch()[..68].to_vec()), &[CORRUPT, 87]);
    refused("one byte more", Some([batch(), vec![0]].concat()), &[CORRUPT, 87]);
    refused("two batches", Some([batch(), batch()].concat()), &[CORRUPT, 87]);
    for length in [-1i32, 0, 48, i32::MAX, i32::MIN] {
        refused("a wrong length", Some(with(8, &length.to_be_bytes())), &[CORRUPT, 87]);
    }
    refused("magic 1", Some(with(16, &[1])), &[CORRUPT, 43, 87]);
    refused("magic 3", Some(with(16, &[3])), &[CORRUPT, 43, 87]);
    refused("a wrong checksum", Some(with(17, &[1, 2, 3, 4])), &[CORRUPT]);
    refused("a changed record", Some(with(67, b"y")), &[CORRUPT]);
    refused("an unknown codec", Some(sealed(with(21, &[0, 7]))), &[CORRUPT, 76, 87]);
    refused("a control batch", Some(sealed(with(21, &[0, 0x20]))), &[CORRUPT, 87]);
    for count in [0, -1, 2, i32::MAX] {
        refused("a wrong count", Some(sealed(with(57, &count.to_be_bytes()))), &[CORRUPT, 87]);
    }
    for delta in [-1, 1, i32::MAX] {
        refused("a wrong last offset", Some(sealed(with(23, &delta.to_be_bytes()))), &[CORRUPT, 87]);
    }
    // Count and last offset agree, but so many records don't fit in these bytes.
    let mut many = with(57, &1_000_000i32.to_be_bytes());
    many[23..27].copy_from_slice(&999_999i32.to_be_bytes());
    refused("a million records in eight bytes", Some(sealed(many)), &[CORRUPT, 87]);
    assert_eq!(produce(&mut peer, Some(batch())), (0, 1), "the next offset after all that was refused");
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let broker = broker("kafka-unread");
    broker.run(&["topic", "create", "hostile"]);
    let mut writer = Peer::connect(&broker);
    for _ in 0..20 {
        let mut large = batch();
        large.truncate(61);
        let value = vec![b'v'; 200_000];
        let mut record = vec![0, 0, 0, 1];
        put_varint(value.len() as i64, &mut record);
        record.extend(&value);
        record.push(0);
        put_varint(record.len() as i64, &mut large);
        large.extend(record);
        let length = (large.len() - 12) as i32;
        large[8..12].copy_from_slice(&length.to_be_bytes());
        assert_eq!(produce(&mut writer, Some(sealed(large))).0, 0);
    }
    let before = resident_bytes(&broker);
    use k::fetch_request::{FetchPartition, FetchTopic};
    let partition = FetchPartition::default().with_partition(0).with_partition_max_bytes(50 << 20);
    let topic = FetchTopic::default().with_topic(k::TopicName(StrBytes::from_static_str("hostile"))).with_partitions(vec![partition]);
    let fetch = k::FetchRequest::default().with_max_wait_ms(0).with_min_bytes(1).with_max_bytes(50 << 20).with_topics(vec![topic]);
    let fetch = message(k::ApiKey::Fetch, 4, &fetch);
    let metadata = message(k::ApiKey::Metadata, 1, &k::MetadataRequest::default().with_topics(None));
    let mut peers: Vec<Peer> = (0..16).map(|_| Peer::connect(&broker)).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        peer.0.set_nonblocking(true).unwrap();
        let request = if n % 2 == 0 { &fetch } else { &metadata };
        // As much as the broker takes in half a second.
        let (pipelined, began) = (request.repeat(2000), Instant::now());
        let mut at = 0;
        while at < pipelined.len() && began.elapsed() < Duration::from_millis(500) {
            match peer.0.write(&pipelined[at..]) {
                Ok(taken) => at += taken,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
    // Durable, with a flush of the disk in it.
    assert_eq!(at_once("another connection", || produce(&mut writer, Some(batch())).0), 0);
    let grown = resident_bytes(&broker).saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes more for 16 connections");
    for peer in &peers {
        let _ = peer.0.shutdown(Shutdown::Both);
    }
}

fn put_varint(value: i64, out: &mut Vec<u8>) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits > 0x7f {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

/// What the fuzzer found worth keeping, at the real program: alone, as the second message, and with wrong bytes in it.
#[test]
fn corpus_on_real_connections() {
    let broker = broker("kafka-corpus");
    broker.run(&["topic", "create", "hostile"]);
    let mut random = Random::seeded();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/kafka_request");
    let before = resident_bytes(&broker);
    let mut inputs: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    for (n, path) in inputs.iter().enumerate() {
        let mut input = std::fs::read(path).unwrap();
        // What takes its time or ends something by right is for other tests.
        let key = input.first_chunk().map_or(-1, |key| i16::from_be_bytes(*key));
        if n % 3 == 2 && !input.is_empty() {
            let at = random.below(input.len() as u64) as usize;
            input[at] = random.number() as u8;
        }
        let mut peer = Peer::connect(&broker);
        peer.0.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        peer.send(&with_length([&[0; 4], &input[..]].concat()));
        let outcome = peer.outcome();
        if let Outcome::Answer(answer) = outcome {
            assert!(answer.len() >= 4, "{}: an answer of {} bytes to API {key}", path.display(), answer.len());
        }
    }
    let mut peer = Peer::connect(&broker);
    peer.greet();
    assert_eq!(produce(&mut peer, Some(batch())).0, 0);
    let grown = resident_bytes(&broker).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more after {} inputs", inputs.len());
}
