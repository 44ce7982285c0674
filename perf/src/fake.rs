//! A broker for the harness's own tests: keeps frames in memory, one thread per connection, and can be told
//! to lose, repeat, swap, damage or delay.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringmain_wire::control::*;
use ringmain_wire::frame::{BODY_CRC_FROM, BrokerHalf, HALF_BYTES};
use ringmain_wire::{Envelope, ErrorCode, Frame, Offset, Op, envelope};

/// What the fake does wrong, to batch number `at` of each partition.
#[derive(Clone, Copy, Debug, Default)]
pub enum Fault {
    #[default]
    None,
    /// Acknowledged, offsets taken, never stored.
    Lose { at: u64 },
    /// Acknowledged and forgotten: the next batch gets its offsets.
    Forget { at: u64 },
    /// Stored twice.
    Repeat { at: u64 },
    /// Stored after the batch that follows it.
    Swap { at: u64 },
    /// One bit of the stored batch flipped.
    Flip { at: u64 },
    /// Refused with an error reply.
    Refuse { at: u64 },
    /// Everything stands still so long after the start, for so long.
    Stall { after: Duration, length: Duration },
    /// Delivered again by the fetch that delivered it.
    DeliverTwice { at: u64 },
}

#[derive(Default)]
struct Stored {
    batches: u64,
    end: u64,
    /// By base offset; what is delivered in its place.
    frames: BTreeMap<u64, Vec<u8>>,
    last: Option<u64>,
}

struct State {
    topics: BTreeMap<String, TopicInfo>,
    partitions: BTreeMap<u32, Stored>,
    records: u64,
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    fault: Fault,
    /// Frames aren't kept: for measuring the generator alone.
    discards: bool,
    started: Mutex<Option<Instant>>,
}

/// A fake at work; its threads end with the test's process.
pub struct Fake {
    pub address: SocketAddr,
}

impl Fake {
    pub fn start(fault: Fault, discards: bool) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { topics: BTreeMap::new(), partitions: BTreeMap::new(), records: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new(), fault, discards, started: Mutex::new(None) });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, stream) = (Arc::clone(&shared), stream.unwrap());
                stream.set_nodelay(true).unwrap();
                // A connection that breaks off ends its thread.
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Fake { address }
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut output = BufWriter::with_capacity(256 << 10, stream);
    let mut input = vec![0; 4 << 20];
    let (mut begin, mut end) = (0, 0);
    loop {
        while let Some(request) = Envelope::read(&input[begin..end]) {
            let whole = Envelope::BYTES + request.len as usize;
            if end - begin < whole {
                break;
            }
            stall(shared);
            let (flags, body) = match answer(&request, &input[begin + Envelope::BYTES..begin + whole], shared) {
                Ok(body) => (envelope::flags::REPLY, body),
                Err(code) => {
                    let mut body = Vec::new();
                    write_open(&ErrorReply { code: code as u16, message: "as told".into() }, &mut body);
                    (envelope::flags::REPLY | envelope::flags::ERROR, body)
                }
            };
            let reply = Envelope { len: body.len() as u32, op: request.op, flags, correlation: request.correlation };
            output.write_all(&reply.to_bytes())?;
            output.write_all(&body)?;
            begin += whole;
        }
        output.flush()?;
        input.copy_within(begin..end, 0);
        (begin, end) = (0, end - begin);
        match (&mut &*stream).read(&mut input[end..])? {
            0 => return Ok(()),
            bytes => end += bytes,
        }
    }
}

fn stall(shared: &Shared) {
    let Fault::Stall { after, length } = shared.fault else { return };
    let started = *shared.started.lock().unwrap().get_or_insert_with(Instant::now);
    let since = started.elapsed();
    if since >= after && since < after + length {
        std::thread::sleep(after + length - since);
    }
}

fn open<T>(value: &T) -> Result<Vec<u8>, ErrorCode>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<rkyv::util::AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Error>,
        >,
{
    let mut body = Vec::new();
    write_open(value, &mut body);
    Ok(body)
}

fn answer(request: &Envelope, body: &[u8], shared: &Shared) -> Result<Vec<u8>, ErrorCode> {
    let mut state = shared.state.lock().unwrap();
    match Op::from_number(request.op) {
        Some(Op::Hello) => open(&HelloReply {
            protocol_version: 1,
            broker_version: "fake".into(),
            cluster_id: 1,
            max_request_bytes: 64 << 20,
            max_in_flight: 1_024,
        }),
        Some(Op::Metadata) => {
            let asked: MetadataRequest = read_open(body).unwrap();
            let topics =
                state.topics.values().filter(|t| asked.topics.as_ref().is_none_or(|names| names.contains(&t.name))).cloned().collect();
            open(&MetadataReply { shard_ports: vec![0], topics })
        }
        Some(Op::CreateTopic) => {
            let asked: CreateTopic = read_open(body).unwrap();
            let first = state.partitions.len() as u32 + 1;
            let partitions: Vec<PartitionPlace> =
                (first..first + asked.partition_count).map(|partition| PartitionPlace { partition, shard: 0 }).collect();
            for place in &partitions {
                state.partitions.insert(place.partition, Stored::default());
            }
            let info = TopicInfo { topic: first, name: asked.name.clone(), partitions, config: asked.config };
            state.topics.insert(asked.name, info.clone());
            open(&info)
        }
        Some(Op::DeleteTopic) => {
            let asked: TopicName = read_open(body).unwrap();
            state.topics.remove(&asked.name).map(|_| Vec::new()).ok_or(ErrorCode::UnknownTopic)
        }
        Some(Op::ListOffsets) => {
            let asked = ListOffsets::read(body).unwrap();
            let end = state.partitions.get(&asked.partition).ok_or(ErrorCode::UnknownPartition)?.end;
            let offset = if asked.timestamp_ms == LATEST { end } else { 0 };
            Ok(ListOffsetsReply { version: CONTROL_VERSION, found: 1, reserved: 0, offset, timestamp_ms: -1 }.to_bytes().to_vec())
        }
        Some(Op::Stats) => {
            let shard = ShardStats {
                shard: 0,
                core: 0,
                records_in: state.records,
                bytes_in: 0,
                bytes_out: 0,
                commits: 0,
                device_bytes_written: state.records * 200,
                device_bytes_read: 0,
                segments: 0,
                fenced: String::new(),
            };
            open(&StatsReply {
                broker_version: "fake".into(),
                io: "memory".into(),
                io_note: String::new(),
                uptime_seconds: 1,
                shards: vec![shard],
                connections: 1,
                topics: 1,
                partitions: 1,
                memory_used_bytes: 0,
                memory_limit_bytes: 0,
            })
        }
        Some(Op::Produce) => {
            let base_offset = produce(body, &mut state, shared)?;
            shared.arrived.notify_all();
            Ok(ProduceReply { version: CONTROL_VERSION, duplicate: 0, redirected: 0, base_offset, append_time_ms: 5 }.to_bytes().to_vec())
        }
        Some(Op::Fetch) => fetch(FetchRequest::read(body).unwrap(), state, shared),
        _ => Err(ErrorCode::UnsupportedOp),
    }
}

fn produce(body: &[u8], state: &mut State, shared: &Shared) -> Result<u64, ErrorCode> {
    let frame = Frame::parse(body).map_err(|_| ErrorCode::MalformedRequest)?;
    if frame.len_bytes() != body.len() {
        return Err(ErrorCode::MalformedRequest);
    }
    if !shared.discards {
        frame.verify_body().map_err(|_| ErrorCode::CorruptFrame)?;
    }
    let count = u64::from(frame.header.producer.record_count);
    state.records += count;
    let stored = state.partitions.get_mut(&frame.partition().0).ok_or(ErrorCode::UnknownPartition)?;
    let (number, base) = (stored.batches, stored.end);
    stored.batches += 1;
    if matches!(shared.fault, Fault::Refuse { at } if at == number) {
        return Err(ErrorCode::DiskFull);
    }
    stored.end = base + count;
    if shared.discards {
        return Ok(base);
    }
    let stamped = |at: u64| {
        let mut bytes = body.to_vec();
        bytes[..HALF_BYTES].copy_from_slice(&BrokerHalf::stamp(body.len() as u32, Offset(at), 5, 1));
        bytes.resize(body.len().next_multiple_of(8), 0);
        bytes
    };
    match shared.fault {
        Fault::Lose { at } if at == number => {}
        Fault::Forget { at } if at == number => stored.end = base,
        Fault::Repeat { at } if at == number => {
            stored.frames.insert(base, stamped(base));
            stored.frames.insert(base + count, stamped(base + count));
            stored.end += count;
        }
        Fault::Swap { at } if at + 1 == number => {
            let previous = stored.last.unwrap();
            let mut bytes = stored.frames.remove(&previous).unwrap();
            let len = bytes.len() as u32;
            bytes[..HALF_BYTES].copy_from_slice(&BrokerHalf::stamp(len, Offset(base), 5, 1));
            stored.frames.insert(previous, stamped(previous));
            stored.frames.insert(base, bytes);
        }
        Fault::Flip { at } if at == number => {
            let mut bytes = stamped(base);
            bytes[BODY_CRC_FROM + 100] ^= 4;
            stored.frames.insert(base, bytes);
        }
        _ => drop(stored.frames.insert(base, stamped(base))),
    }
    stored.last = Some(base);
    Ok(base)
}

fn fetch(asked: FetchRequest, mut state: MutexGuard<'_, State>, shared: &Shared) -> Result<Vec<u8>, ErrorCode> {
    let deadline = Instant::now() + Duration::from_millis(u64::from(asked.max_wait_ms));
    loop {
        let stored = state.partitions.get(&asked.partition).ok_or(ErrorCode::UnknownPartition)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if stored.frames.range(asked.offset..).next().is_some() || left.is_zero() {
            let mut frames = Vec::new();
            let mut next_offset = asked.offset;
            for (number, (_, bytes)) in stored.frames.range(asked.offset..).enumerate() {
                if !frames.is_empty() && frames.len() + bytes.len() > asked.max_bytes as usize {
                    break;
                }
                next_offset = Frame::parse(bytes).unwrap().end_offset().0;
                frames.extend_from_slice(bytes);
                if matches!(shared.fault, Fault::DeliverTwice { at } if at == number as u64) {
                    frames.extend_from_slice(bytes);
                }
            }
            let head = FetchReply {
                version: CONTROL_VERSION,
                reserved: 0,
                partition: asked.partition,
                high_watermark: stored.end,
                log_start: 0,
                next_offset,
            };
            let mut body = head.to_bytes().to_vec();
            body.extend_from_slice(&frames);
            return Ok(body);
        }
        state = shared.arrived.wait_timeout(state, left).unwrap().0;
    }
}
