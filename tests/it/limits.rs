//! Bounds that an operator counts on: memory with many peers and topics, many partitions and shards on one core, a disk that is full.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::wire::control::{CreateTopic, Durability, FetchRequest, TopicConfig};
use ringmain_client::wire::frame::Identity;
use ringmain_client::wire::{Op, PartitionId, RecordBatchBuilder};

use crate::harness::{Broker, Start};
use crate::native::Wire;

const MIB: u64 = 1 << 20;
/// What `--memory 256M` may use in all: the limit, and an eighth for code, stacks and the allocator.
const RSS_MAX_BYTES: u64 = 288 * MIB;

/// One line of `/proc/PID/status`, in bytes.
fn status_bytes(broker: &Broker, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

pub fn rss(broker: &Broker) -> u64 {
    status_bytes(broker, "VmRSS")
}

pub fn peak_rss(broker: &Broker) -> u64 {
    status_bytes(broker, "VmHWM")
}

fn topic(name: &str, partition_count: u32, durability: Durability) -> CreateTopic {
    CreateTopic { name: name.to_owned(), partition_count, config: TopicConfig { durability, ..TopicConfig::default() } }
}

/// A batch of `count` records of `value`.
fn batch(partition: u32, value: &[u8], count: usize) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    (0..count).for_each(|_| builder.push(1_000, None, Some(value), b""));
    builder.finish(Identity::plain(PartitionId(partition))).to_vec()
}

fn fetch(partition: u32, offset: u64, max_bytes: u32) -> Vec<u8> {
    FetchRequest { version: 1, reserved: 0, partition, offset, min_bytes: 1, max_bytes, max_wait_ms: 0, flags: 0 }.to_bytes().to_vec()
}

/// 2,000 connections, 10,000 topics, 100 readers that ask for much and read nothing, producers at full speed.
#[test]
fn memory_stays_within_its_limit() {
    let broker = Broker::start("memory", Start::with(&["--cores", "0", "--memory", "256M", "--segment-bytes", "64M"]));
    let client = broker.client();
    for number in 0..10_000 {
        client.create_topic(&topic(&format!("t{number}"), 1, Durability::Memory)).unwrap();
    }
    let partition = client.create_topic(&topic("hot", 1, Durability::Memory)).unwrap().partitions[0].partition;
    let mut idle: Vec<Wire> = (0..1_890).map(|_| Wire::greet(&broker)).collect();
    let with_connections = rss(&broker);

    let (is_over, produced) = (AtomicBool::new(false), AtomicU64::new(0));
    let slow: Vec<TcpStream> = thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let (mut wire, batch) = (Wire::greet(&broker), batch(partition, &[7; 1000], 64));
                while !is_over.load(Ordering::Relaxed) {
                    for _ in 0..8 {
                        wire.send(Op::Produce, &batch);
                    }
                    for _ in 0..8 {
                        wire.receive().1.unwrap();
                        produced.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        // More than the tail cache holds.
        while produced.load(Ordering::Relaxed) < 512 * MIB {
            thread::sleep(Duration::from_millis(10));
        }
        let slow = (0..100)
            .map(|reader| {
                let mut wire = Wire::greet(&broker);
                for request in 0..64 {
                    wire.send(Op::Fetch, &fetch(partition, reader * 64 + request, 8 << 20));
                }
                wire.stream
            })
            .collect();
        let end = produced.load(Ordering::Relaxed) + 1024 * MIB;
        while produced.load(Ordering::Relaxed) < end {
            thread::sleep(Duration::from_millis(10));
        }
        is_over.store(true, Ordering::Relaxed);
        slow
    });
    let peak = peak_rss(&broker);
    println!("RSS {} MiB with connections and topics, {} MiB at the peak", with_connections / MIB, peak / MIB);
    assert!(peak <= RSS_MAX_BYTES, "{} MiB at the peak, {} MiB with connections and topics", peak / MIB, with_connections / MIB);
    // Nobody was thrown out, and a slow reader is served when it reads.
    for wire in &mut idle {
        wire.stream.set_nonblocking(true).unwrap();
        assert_eq!(wire.stream.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "an idle connection was closed");
    }
    // Whoever asked last reads first: what was read for the others doesn't keep it waiting.
    for mut stream in slow.into_iter().rev() {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.read_exact(&mut [0; 256 << 10]).unwrap();
    }
}

#[test]
fn hundred_thousand_partitions_cost_less_than_a_kibibyte_each_and_open_again() {
    const PARTITIONS: u64 = 100_000;
    let mut broker = Broker::start("partitions", Start::with(&["--cores", "0", "--memory", "256M", "--segment-bytes", "64M"]));
    let before = rss(&broker);
    let client = broker.client();
    let began = Instant::now();
    for number in 0..10 {
        client.create_topic(&topic(&format!("t{number}"), PARTITIONS as u32 / 10, Durability::Durable)).unwrap();
    }
    let created = began.elapsed();
    let each = rss(&broker).saturating_sub(before) / PARTITIONS;
    broker.stop();
    let opened = broker.restart();
    let reopened = rss(&broker).saturating_sub(before) / PARTITIONS;
    println!("created in {created:?}, {each} B each; open again after {opened:?}, {reopened} B each");
    assert!(each < 1024 && reopened < 1024, "{each} bytes a partition when created, {reopened} when opened");
    let client = broker.client();
    let last = client.describe_topic("t9").unwrap();
    assert_eq!(last.info.partitions.len() as u64, PARTITIONS / 10);
    let mut wire = Wire::greet(&broker);
    for number in [1, 50_000, PARTITIONS as u32] {
        wire.call(Op::Produce, &batch(number, b"x", 1)).unwrap();
    }
}

#[test]
fn sixty_four_shards_serve_on_one_core() {
    let mut broker = Broker::start("shards", Start::with(&["--shards", "64", "--cores", "0", "--memory", "256M"]));
    assert_eq!(broker.ready().shards, 64);
    let info = broker.client().create_topic(&topic("spread", 256, Durability::Durable)).unwrap();
    for _ in 0..2 {
        let mut wire = Wire::greet(&broker);
        for place in &info.partitions {
            wire.send(Op::Produce, &batch(place.partition, &[b'v'; 1000], 100));
        }
        info.partitions.iter().for_each(|_| drop(wire.receive().1.unwrap()));
        for place in &info.partitions {
            let body = wire.call(Op::Fetch, &fetch(place.partition, 0, 1 << 20)).unwrap();
            assert!(body.len() > 100_000, "partition {}: {} bytes", place.partition, body.len());
        }
        assert!(peak_rss(&broker) <= RSS_MAX_BYTES, "{} MiB", peak_rss(&broker) / MIB);
        broker.kill();
        broker.restart();
    }
}

/// A file system of its own, gone with this value. `None` = we may not mount here.
struct LoopImage<'a> {
    at: &'a Path,
}

impl LoopImage<'_> {
    fn mount<'a>(image: &Path, at: &'a Path, bytes: u64) -> Option<LoopImage<'a>> {
        fs::File::create(image).unwrap().set_len(bytes).unwrap();
        fs::create_dir_all(at).unwrap();
        let run =
            |program: &str, arguments: &[&std::ffi::OsStr]| {
                Command::new(program).args(arguments).output().map_err(|error| error.to_string()).and_then(|output| {
                    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
                })
            };
        let made = run("mkfs.ext4", &["-q".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_ref()])
            .and_then(|()| run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]));
        match made {
            Ok(()) => Some(LoopImage { at }),
            Err(error) => {
                println!("SKIPPED: a file system in a file needs root, mkfs.ext4 and loop devices: {error}");
                None
            }
        }
    }
}

impl Drop for LoopImage<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at).output();
    }
}

/// A disk of 256 MiB: the broker starts, fills it, says so, still serves reads and deletes, and goes on when there is room.
#[test]
fn full_disk_refuses_serves_and_resumes() {
    let mut broker = Broker::start("full", Start::with(&["--segment-bytes", "4M"]));
    broker.stop();
    let (image, at) = (broker.data().with_file_name("disk.img"), broker.data());
    fs::remove_dir_all(&at).unwrap();
    let Some(_image) = LoopImage::mount(&image, &at, 256 * MIB) else { return };
    broker.start.arguments = vec!["--segment-bytes".to_owned(), "4M".to_owned()];
    // What mkfs leaves in the root of a file system is no foreign data.
    broker.restart();
    let client = broker.client();
    let fill = client.create_topic(&topic("fill", 1, Durability::Durable)).unwrap().partitions[0].partition;
    let keep = client.create_topic(&topic("keep", 1, Durability::Durable)).unwrap().partitions[0].partition;
    let mut wire = Wire::greet(&broker);
    wire.call(Op::Produce, &batch(keep, b"kept", 10)).unwrap();
    let frame = batch(fill, &[1; 1000], 256);
    let mut stored = 0_u64;
    let refused = loop {
        match wire.call(Op::Produce, &frame) {
            Ok(_) => stored += 1,
            Err((code, message)) => break (code, message),
        }
        assert!(stored * frame.len() as u64 <= 256 * MIB, "more than the disk holds");
    };
    assert_eq!(refused.0, ringmain_client::wire::ErrorCode::DiskFull, "{}", refused.1);
    assert!(stored * frame.len() as u64 > 128 * MIB, "full after {stored} batches");
    // Reads, also of what isn't in memory any more.
    let body = wire.call(Op::Fetch, &fetch(keep, 0, 1 << 20)).unwrap();
    assert!(body.len() > 10 * 24);
    let body = wire.call(Op::Fetch, &fetch(fill, 0, 1 << 20)).unwrap();
    assert!(body.len() > 256_000);
    // Offsets are still committed, and a restart finds everything.
    client.commit_offset("reader", PartitionId(keep), 5, "").unwrap();
    broker.kill();
    broker.restart();
    let client = broker.client();
    assert_eq!(client.read_offset("reader", PartitionId(keep)).unwrap().offset, Some(5));
    let mut wire = Wire::greet(&broker);
    // The file that the start lives on takes a little more.
    let refused = loop {
        match wire.call(Op::Produce, &frame) {
            Ok(_) => stored += 1,
            Err((code, _)) => break code,
        }
    };
    assert_eq!(refused, ringmain_client::wire::ErrorCode::DiskFull);
    assert_eq!(client.list_offset(PartitionId(fill), -1).unwrap().offset, stored * 256, "acknowledged and lost");
    // Room comes back, and writing goes on by itself.
    client.delete_topic("fill").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let frame = batch(keep, &[2; 1000], 256);
    let mut resumed = 0;
    while resumed < 200 {
        match wire.call(Op::Produce, &frame) {
            Ok(_) => resumed += 1,
            Err((code, message)) => {
                assert_eq!(code, ringmain_client::wire::ErrorCode::DiskFull, "{message}");
                assert!(Instant::now() < deadline, "room was made, and the disk stays full: {}", broker.said());
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
    broker.stop();
}
