//! Connections by themselves, and a whole broker seen from its sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringmain_wire::control::{
    CreateTopic, Durability, ErrorReply, FetchReply, FetchRequest, Hello, HelloReply, MetadataReply, MetadataRequest, ProduceReply,
    StatsReply, StatsRequest, TopicConfig, TopicInfo, read_open, write_open,
};
use ringmain_wire::envelope::flags;
use ringmain_wire::frame::{Identity, frames};
use ringmain_wire::{Envelope, ErrorCode, Op, PROTOCOL_VERSION, PartitionId, RecordBatchBuilder};

use super::connection::{BASE_BYTES, Budget, Filled, Input, Output, READ_BYTES, Sent, Spares};
use crate::config::{IoMode, Listen, ServeConfig};
use crate::frontend::Piece;
use crate::request::FetchData;
use crate::router::shards::Shards;
use crate::server::{self, Running};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    b.set_nonblocking(true).unwrap();
    a.set_nodelay(true).unwrap();
    (a, b)
}

/// Reads until something has arrived: on loopback that is soon, not at once.
fn read(input: &mut Input, socket: &TcpStream, shared: &mut [u8], limit: usize, budget: &mut Budget) -> Filled {
    let started = Instant::now();
    loop {
        match input.read(socket, shared, limit, budget).unwrap() {
            Filled::Nothing if started.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(1)),
            filled => return filled,
        }
    }
}

#[test]
fn idle_connection_holds_no_buffer() {
    let (mut peer, socket) = pair();
    let (mut input, mut shared, mut budget) = (Input::default(), vec![0; READ_BYTES], Budget::new(1 << 20));
    assert_eq!(input.read(&socket, &mut shared, 1 << 20, &mut budget), Ok(Filled::Nothing));
    peer.write_all(b"whole request").unwrap();
    assert_eq!(read(&mut input, &socket, &mut shared, 1 << 20, &mut budget), Filled::Shared { bytes: 13, is_full: false });
    assert_eq!(&shared[..13], b"whole request");
    assert!(!input.holds_any());
    drop(peer);
    assert_eq!(read(&mut input, &socket, &mut shared, 1 << 20, &mut budget), Filled::End);
}

#[test]
fn partial_request_is_completed_in_order_and_within_its_allowance() {
    let (mut peer, socket) = pair();
    let (mut input, mut shared, mut budget) = (Input::default(), vec![0; READ_BYTES], Budget::new(0));
    peer.write_all(b"abc").unwrap();
    assert_eq!(read(&mut input, &socket, &mut shared, 1 << 20, &mut budget), Filled::Shared { bytes: 3, is_full: false });
    input.hold(&shared[1..3], &mut budget);
    input.expect(4);
    assert_eq!(budget.used_bytes(), 0, "the first bytes are in every connection's allowance");
    peer.write_all(b"de").unwrap();
    assert_eq!(read(&mut input, &socket, &mut shared, 1 << 20, &mut budget), Filled::Shared { bytes: 4, is_full: false });
    assert_eq!(&shared[..4], b"bcde");
}

#[test]
fn long_request_is_reserved_whole_before_it_is_read() {
    let (mut peer, socket) = pair();
    let (mut input, mut shared, mut budget) = (Input::default(), vec![0; READ_BYTES], Budget::new(512 << 10));
    let long: Vec<u8> = (0..400 << 10).map(|n: u32| (n % 251) as u8).collect();
    let writer = std::thread::spawn({
        let long = long.clone();
        move || peer.write_all(&long).map(|()| peer)
    });
    let Filled::Shared { bytes, .. } = read(&mut input, &socket, &mut shared, 1 << 20, &mut budget) else { panic!() };
    input.hold(&shared[..bytes], &mut budget);
    input.expect(long.len());
    while !input.is_whole() {
        let filled = read(&mut input, &socket, &mut shared, 1 << 20, &mut budget);
        assert!(matches!(filled, Filled::Held { .. }), "{filled:?}");
    }
    assert_eq!(input.held(), long);
    assert_eq!(budget.used_bytes(), (400 << 10) - BASE_BYTES);
    let held = input.take();
    input.put_back(held, long.len());
    input.trim(&mut budget);
    assert_eq!(budget.used_bytes(), 0);
    drop(writer.join().unwrap());
}

#[test]
fn long_request_without_room_stays_in_the_socket() {
    let (mut peer, socket) = pair();
    let (mut input, mut shared, mut budget) = (Input::default(), vec![0; READ_BYTES], Budget::new(8 << 10));
    peer.write_all(&[7; 64 << 10]).unwrap();
    let Filled::Shared { bytes, .. } = read(&mut input, &socket, &mut shared, 1 << 20, &mut budget) else { panic!() };
    assert!(bytes <= BASE_BYTES + (8 << 10), "{bytes} bytes can't all be held");
    input.hold(&shared[..bytes], &mut budget);
    input.expect(200 << 10);
    assert_eq!(input.read(&socket, &mut shared, 1 << 20, &mut budget), Ok(Filled::NoMemory));
    assert!(budget.used_bytes() <= 8 << 10);
}

#[test]
fn reads_end_where_requests_probably_end() {
    let (mut peer, socket) = pair();
    let (mut input, mut shared, mut budget) = (Input::default(), vec![0; READ_BYTES], Budget::new(1 << 20));
    peer.write_all(&[1; 120 << 10]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    input.note_request(50 << 10);
    assert_eq!(read(&mut input, &socket, &mut shared, 1 << 20, &mut budget), Filled::Shared { bytes: 100 << 10, is_full: true });
}

#[test]
fn pieces_are_sent_in_order_through_a_socket_that_is_full_again_and_again() {
    let (mut peer, socket) = pair();
    let (mut output, mut shards, mut spares) = (Output::default(), Shards::closed(), Spares::default());
    let frames: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 253) as u8).collect();
    let mut expected = Vec::new();
    for _ in 0..3 {
        spares.begin(&mut output.outbox);
        output.outbox.push_bytes(b"head");
        output.outbox.push_frames(FetchData::Owned(frames.clone()), frames.len() as u32, 0);
        output.outbox.push_bytes(b"middle");
        // More parts than go into one call.
        let ranges: Vec<_> = (0..150).map(|n| n * 9_000 + 64..(n + 1) * 9_000).collect();
        output.outbox.push_ranges(frames.clone(), ranges.clone());
        output.outbox.push_bytes(b"tail");
        expected.extend([&b"head"[..], &frames, b"middle"].concat());
        ranges.into_iter().for_each(|range| expected.extend_from_slice(&frames[range]));
        expected.extend(b"tail");
    }
    assert_eq!(output.len_bytes(), expected.len());
    let mut got = Vec::new();
    let mut buffer = vec![0; 100_000];
    let mut blocked = 0;
    loop {
        match output.send(&socket, &mut shards, &mut spares).unwrap() {
            (Sent::All, _) => break,
            (Sent::More, _) => {}
            (Sent::Blocked, _) => {
                blocked += 1;
                let count = peer.read(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    socket.shutdown(Shutdown::Write).unwrap();
    peer.read_to_end(&mut got).unwrap();
    assert!(blocked > 0, "nothing was tested");
    assert!(got == expected);
    assert_eq!((output.len_bytes(), output.outbox.pieces.len()), (0, 0));
}

#[test]
fn reply_buffer_is_used_again() {
    let (_peer, socket) = pair();
    let (mut output, mut shards, mut spares) = (Output::default(), Shards::closed(), Spares::default());
    output.outbox.push_bytes(&[1; 1000]);
    assert_eq!(output.send(&socket, &mut shards, &mut spares).unwrap(), (Sent::All, 1000));
    spares.begin(&mut output.outbox);
    let Some(Piece::Bytes(bytes)) = output.outbox.pieces.front() else { panic!() };
    assert!(bytes.is_empty() && bytes.capacity() >= 1000);
    assert_eq!(output.send(&socket, &mut shards, &mut spares).unwrap(), (Sent::All, 0), "an empty piece is nothing to send");
}

/// A broker in a directory of its own, gone with this value.
struct Broker {
    running: Option<Running>,
    path: PathBuf,
}

impl Broker {
    fn start(name: &str, change: impl FnOnce(&mut ServeConfig)) -> Broker {
        // Where cargo builds there is a disk; /tmp may be memory.
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target").join(format!("net-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut config = ServeConfig {
            data_dir: path.clone(),
            native: Listen::Addr(SocketAddr::from(([127, 0, 0, 1], 0))),
            kafka: Listen::Addr(SocketAddr::from(([127, 0, 0, 1], 0))),
            admin: Listen::Off,
            memory_bytes: Some(128 << 20),
            segment_bytes: Some(8 << 20),
            ..ServeConfig::default()
        };
        change(&mut config);
        Broker { running: Some(server::start(&config).unwrap()), path }
    }

    fn connect(&self) -> Peer {
        let mut peer = Peer::connect(self.running.as_ref().unwrap().native().unwrap());
        peer.hello();
        peer
    }

    fn stop(mut self) {
        let running = self.running.take().unwrap();
        running.stopper().stop();
        running.wait().unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stopper().stop();
            let _ = running.wait();
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A client that knows nothing but envelopes.
struct Peer {
    socket: TcpStream,
    next: u64,
}

impl Peer {
    fn connect(address: SocketAddr) -> Peer {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer { socket, next: 0 }
    }

    fn hello(&mut self) -> HelloReply {
        let mut body = Vec::new();
        write_open(
            &Hello { protocol_version: PROTOCOL_VERSION, client_name: "test".into(), auth_mechanism: String::new(), auth_data: Vec::new() },
            &mut body,
        );
        read_open(&self.ask(Op::Hello, &body).1).unwrap()
    }

    fn send(&mut self, op: Op, body: &[u8]) {
        self.next += 1;
        let envelope = Envelope { len: body.len() as u32, op: op as u16, flags: 0, correlation: self.next };
        self.socket.write_all(&[&envelope.to_bytes(), body].concat()).unwrap();
    }

    fn receive(&mut self) -> (Envelope, Vec<u8>) {
        let mut head = [0; Envelope::BYTES];
        self.socket.read_exact(&mut head).unwrap();
        let envelope = Envelope::read(&head).unwrap();
        let mut body = vec![0; envelope.len as usize];
        self.socket.read_exact(&mut body).unwrap();
        (envelope, body)
    }

    fn ask(&mut self, op: Op, body: &[u8]) -> (Envelope, Vec<u8>) {
        self.send(op, body);
        let answer = self.receive();
        assert_eq!(answer.0.correlation, self.next);
        answer
    }

    fn create(&mut self, name: &str, partition_count: u32, durability: Durability) -> TopicInfo {
        let mut body = Vec::new();
        write_open(
            &CreateTopic { name: name.into(), partition_count, config: TopicConfig { durability, ..TopicConfig::default() } },
            &mut body,
        );
        let (envelope, body) = self.ask(Op::CreateTopic, &body);
        assert_eq!(envelope.flags & flags::ERROR, 0, "{:?}", read_open::<ErrorReply>(&body));
        read_open(&body).unwrap()
    }

    fn fetch(&mut self, partition: u32, offset: u64, max_bytes: u32, max_wait_ms: u32) -> (Envelope, Vec<u8>) {
        let request = FetchRequest { version: 1, reserved: 0, partition, offset, min_bytes: 1, max_bytes, max_wait_ms, flags: 0 };
        self.ask(Op::Fetch, &request.to_bytes())
    }

    /// Until the broker closes; whatever else it says first.
    fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn batch(partition: u32, value: &[u8], count: usize) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for _ in 0..count {
        builder.push(1, None, Some(value), b"");
    }
    builder.finish(Identity::plain(PartitionId(partition))).to_vec()
}

fn produce_and_fetch(broker: &Broker) {
    let mut peer = broker.connect();
    let topic = peer.create("t", 4, Durability::Durable);
    for place in &topic.partitions {
        for round in 0..10u64 {
            let (envelope, body) = peer.ask(Op::Produce, &batch(place.partition, b"value", 7));
            assert_eq!(envelope.flags & flags::ERROR, 0);
            assert_eq!(ProduceReply::read(&body).unwrap().base_offset, round * 7);
        }
        let (_, body) = peer.fetch(place.partition, 0, 1 << 20, 0);
        let head = FetchReply::read(&body).unwrap();
        assert_eq!((head.high_watermark, head.next_offset), (70, 70));
        let records: u32 = frames(&body[FetchReply::BYTES..]).map(|frame| frame.unwrap().header.producer.record_count).sum();
        assert_eq!(records, 70);
    }
}

#[test]
fn broker_stores_and_returns_on_io_uring() {
    let broker = Broker::start("uring", |config| config.cores = Some(vec![0]));
    produce_and_fetch(&broker);
    broker.stop();
}

#[test]
fn broker_stores_and_returns_on_the_fallback() {
    let broker = Broker::start("fallback", |config| {
        config.cores = Some(vec![0]);
        config.io = IoMode::Fallback;
    });
    produce_and_fetch(&broker);
    broker.stop();
}

#[test]
fn broker_that_spins_stores_and_returns() {
    let broker = Broker::start("spin", |config| {
        config.cores = Some(vec![0]);
        config.spin_us = 50;
    });
    produce_and_fetch(&broker);
    broker.stop();
}

/// Two cores, each with a shard; none if the machine has only one.
fn broker_on_two_cores(name: &str, io: IoMode) -> Option<Broker> {
    let cores: Vec<usize> = core_affinity::get_core_ids()?.into_iter().map(|core| core.id).take(2).collect();
    (cores.len() == 2).then(|| {
        Broker::start(name, |config| {
            config.cores = Some(cores);
            config.io = io;
        })
    })
}

#[test]
fn misrouted_requests_are_served_by_way_of_the_mailbox_and_say_so() {
    for io in [IoMode::Auto, IoMode::Fallback] {
        let Some(broker) = broker_on_two_cores("misrouted", io) else { return };
        produce_and_fetch(&broker);
        let mut peer = broker.connect();
        let mut body = Vec::new();
        write_open(&MetadataRequest { topics: None }, &mut body);
        let metadata: MetadataReply = read_open(&peer.ask(Op::Metadata, &body).1).unwrap();
        assert!(metadata.shard_ports.len() == 2 && metadata.shard_ports.iter().all(|port| *port != 0));
        for place in &metadata.topics[0].partitions {
            let mut moved = Vec::new();
            for port in &metadata.shard_ports {
                let mut peer = Peer::connect(SocketAddr::from(([127, 0, 0, 1], *port)));
                peer.hello();
                let (envelope, _) = peer.ask(Op::Produce, &batch(place.partition, b"v", 1));
                assert_eq!(envelope.flags & flags::ERROR, 0);
                moved.push(envelope.flags & flags::MOVED != 0);
            }
            let expected: Vec<bool> = (0..2).map(|shard| shard != place.shard).collect();
            assert_eq!(moved, expected, "shard {}", place.shard);
        }
        let mut body = Vec::new();
        write_open(&StatsRequest { reserved: 0 }, &mut body);
        let stats: StatsReply = read_open(&peer.ask(Op::Stats, &body).1).unwrap();
        let seen: Vec<_> = stats.shards.iter().map(|shard| (shard.shard, shard.core)).collect();
        assert_eq!(seen, [(0, 0), (1, 1)]);
        assert_eq!((stats.topics, stats.partitions), (1, 4));
        broker.stop();
    }
}

#[test]
fn waiting_fetch_is_answered_when_something_comes_also_across_cores() {
    let Some(broker) = broker_on_two_cores("long-poll", IoMode::Auto) else { return };
    let topic = broker.connect().create("t", 2, Durability::Memory);
    for place in &topic.partitions {
        let mut waiting = broker.connect();
        let request = FetchRequest {
            version: 1,
            reserved: 0,
            partition: place.partition,
            offset: 0,
            min_bytes: 1,
            max_bytes: 1000,
            max_wait_ms: 9000,
            flags: 0,
        };
        waiting.send(Op::Fetch, &request.to_bytes());
        std::thread::sleep(Duration::from_millis(50));
        broker.connect().ask(Op::Produce, &batch(place.partition, b"v", 1));
        let started = Instant::now();
        let (_, body) = waiting.receive();
        assert_eq!(FetchReply::read(&body).unwrap().next_offset, 1);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    broker.stop();
}

#[test]
fn pipelined_requests_beyond_the_limit_are_all_answered() {
    let broker = Broker::start("pipelined", |config| config.cores = Some(vec![0]));
    let mut peer = broker.connect();
    let topic = peer.create("t", 1, Durability::Durable);
    let frame = batch(topic.partitions[0].partition, &[5; 100], 1);
    const COUNT: u64 = 5_000;
    let mut reader = Peer { socket: peer.socket.try_clone().unwrap(), next: 0 };
    let reading =
        std::thread::spawn(move || (0..COUNT).map(|_| ProduceReply::read(&reader.receive().1).unwrap().base_offset).collect::<Vec<_>>());
    for _ in 0..COUNT {
        peer.send(Op::Produce, &frame);
    }
    let offsets = reading.join().unwrap();
    assert_eq!(offsets, (0..COUNT).collect::<Vec<_>>());
    broker.stop();
}

/// One counter of core 0, as the admin door tells it.
fn metric(broker: &Broker, name: &str) -> u64 {
    let mut socket = TcpStream::connect(broker.running.as_ref().unwrap().admin().unwrap()).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let line = format!("ringmain_{name}{{core=\"0\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&line)).unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn slow_reader_gets_everything_and_others_are_served_meanwhile() {
    let broker = Broker::start("slow", |config| {
        config.cores = Some(vec![0]);
        config.admin = Listen::Addr(SocketAddr::from(([127, 0, 0, 1], 0)));
    });
    let mut peer = broker.connect();
    let partition = peer.create("t", 1, Durability::Memory).partitions[0].partition;
    let value = vec![9; 64 << 10];
    // More than the tail cache holds.
    const BATCHES: u64 = 1_500;
    for _ in 0..BATCHES {
        let (envelope, body) = peer.ask(Op::Produce, &batch(partition, &value, 1));
        assert_eq!(envelope.flags & flags::ERROR, 0, "{:?}", read_open::<ErrorReply>(&body));
    }
    let mut slow = broker.connect();
    // Asks for far more than a socket takes, and doesn't read.
    let (from, step) = (BATCHES - 460, 10);
    let asked = (from..BATCHES).step_by(step);
    for offset in asked.clone() {
        let request =
            FetchRequest { version: 1, reserved: 0, partition, offset, min_bytes: 1, max_bytes: 700 << 10, max_wait_ms: 0, flags: 0 };
        slow.send(Op::Fetch, &request.to_bytes());
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(metric(&broker, "sends_blocked_total") > 0, "the socket took everything: nothing is tested");
    // Pushes what the slow one waits for out of the tail cache.
    for _ in 0..BATCHES {
        assert_eq!(peer.ask(Op::Produce, &batch(partition, &value, 1)).0.flags & flags::ERROR, 0);
    }
    let mut next = from;
    for _ in asked {
        let (envelope, body) = slow.receive();
        assert_eq!(envelope.flags & flags::ERROR, 0, "{:?}", read_open::<ErrorReply>(&body));
        for frame in frames(&body[FetchReply::BYTES..]) {
            let frame = frame.unwrap();
            frame.verify_body().unwrap();
            frame.verify_header().unwrap();
            next = next.max(frame.end_offset().0);
        }
    }
    assert!(next >= BATCHES);
    assert!(metric(&broker, "sends_cold_total") > 0, "nothing left the tail cache: nothing was tested");
    broker.stop();
}

#[test]
fn peer_that_does_not_introduce_itself_is_cut_off() {
    let broker = Broker::start("introduction", |config| config.cores = Some(vec![0]));
    let address = broker.running.as_ref().unwrap().native().unwrap();
    let mut silent = Peer::connect(address);
    let started = Instant::now();
    let mut long = Peer::connect(address);
    let envelope = Envelope { len: 1 << 20, op: Op::Hello as u16, flags: 0, correlation: 1 };
    long.socket.write_all(&envelope.to_bytes()).unwrap();
    assert!(long.is_closed_within(Duration::from_secs(3)), "a long introduction");
    assert!(silent.is_closed_within(Duration::from_secs(10)), "no introduction");
    assert!(started.elapsed() >= Duration::from_secs(4));
    broker.stop();
}

#[test]
fn broken_framing_is_answered_then_closed_and_a_finished_peer_gets_its_answers() {
    let broker = Broker::start("broken", |config| config.cores = Some(vec![0]));
    let mut peer = broker.connect();
    let partition = peer.create("t", 1, Durability::Durable).partitions[0].partition;
    let envelope = Envelope { len: u32::MAX, op: Op::Produce as u16, flags: 0, correlation: 9 };
    peer.socket.write_all(&envelope.to_bytes()).unwrap();
    let (envelope, body) = peer.receive();
    assert_ne!(envelope.flags & flags::ERROR, 0);
    assert_eq!(read_open::<ErrorReply>(&body).unwrap().code, ErrorCode::MessageTooLarge as u16);
    assert!(peer.is_closed_within(Duration::from_secs(3)));

    let mut peer = broker.connect();
    for _ in 0..20 {
        peer.send(Op::Produce, &batch(partition, b"v", 1));
    }
    peer.socket.shutdown(Shutdown::Write).unwrap();
    for offset in 0..20 {
        assert_eq!(ProduceReply::read(&peer.receive().1).unwrap().base_offset, offset);
    }
    assert!(peer.is_closed_within(Duration::from_secs(3)));
    broker.stop();
}

#[test]
fn taken_port_and_open_address_are_start_errors_that_name_the_flag() {
    let config = ServeConfig { native: Listen::Addr(SocketAddr::from(([0, 0, 0, 0], 0))), ..ServeConfig::default() };
    let Err(error) = server::start(&config) else { panic!("started") };
    assert!(error.to_string().contains("--native 0.0.0.0:0") && error.to_string().contains("--insecure"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut told = Vec::new();
    let freeing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(taken);
    });
    super::listener::bind("--native", address, &mut |what| told.push(what.to_owned())).unwrap();
    freeing.join().unwrap();
    assert!(told.len() == 1 && told[0].contains("--native"), "{told:?}");
}
