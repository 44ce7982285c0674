//! The log on the simulated disk, one property at a time; `crate::simulation` takes them all together.

use ringmain_wire::control::Durability;
use ringmain_wire::frame::{Identity, frames};
use ringmain_wire::{Frame, FrameHeader, Offset, PartitionId, RecordBatchBuilder, ShardId};

use super::*;
use crate::device::sim::{SimDisk, SimOptions};
use crate::device::{Disk, SegmentFile, Volume};

const SEGMENT: u32 = 256 << 10;

#[derive(Default)]
struct Collected {
    frames: Vec<(PartitionId, u64, u32)>,
    states: Vec<Vec<u8>>,
}

impl Replay for Collected {
    fn frame(&mut self, header: &FrameHeader, _largest_timestamp_ms: i64, body: &[u8]) {
        if header.producer.partition == 0 {
            self.states.push(body.to_vec());
        } else {
            self.frames.push((PartitionId(header.producer.partition), header.broker.base_offset, header.producer.record_count));
        }
    }
}

/// A log, its disk, and what a shard would do around them.
struct Rig {
    disk: SimDisk,
    log: Log,
    now: Now,
    arena: Arena,
    config: LogConfig,
    ends: Vec<u64>,
    events: Vec<LogEvent>,
    checkpointing: bool,
}

fn config() -> LogConfig {
    LogConfig {
        chunk_bytes: 32 << 10,
        tail_cache_bytes: 256 << 10,
        clean_mixed_after_ms: 0,
        clean_bytes_per_second: 1 << 40,
        hole_bytes_min: 1,
        entropy: 7,
        ..LogConfig::new(ShardId(0), SEGMENT, 1 << 20)
    }
}

fn batch(partition: PartitionId, records: u32, value: &[u8]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    for i in 0..records {
        builder.push(1_000 + i64::from(i), None, Some(value), b"");
    }
    builder.finish(Identity::plain(partition)).to_vec()
}

impl Rig {
    fn new() -> Rig {
        let disk = SimDisk::new(1, SimOptions::default());
        Rig::open(disk, config(), &mut Collected::default()).unwrap()
    }

    fn open(mut disk: SimDisk, config: LogConfig, replay: &mut dyn Replay) -> Result<Rig, OpenError> {
        let arena = Arena::new(64 << 20);
        let files: Vec<SegmentFile> = disk.list()?;
        let now = Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let Opened { log, .. } = Log::open(config.clone(), arena.clone(), &mut disk, &files, replay, now)?;
        let live = log.live_files();
        disk.set_pool(files.iter().map(|f| f.file).filter(|f| !live.contains(f)).collect());
        Ok(Rig { disk, log, now, arena, config, ends: vec![0; 16], events: Vec::new(), checkpointing: false })
    }

    fn reopen(self, replay: &mut dyn Replay) -> Result<Rig, OpenError> {
        let Rig { disk, config, ends, .. } = self;
        Rig::open(disk, config, replay).map(|rig| Rig { ends, ..rig })
    }

    fn try_append(&mut self, partition: u32, bytes: &[u8], durability: Durability) -> Result<Appended, AppendError> {
        let frame = Frame::parse(bytes).unwrap();
        let count = frame.header.producer.record_count;
        let appended = self.log.append(Append {
            frame,
            partition: PartitionId(partition),
            base_offset: Offset(self.ends[partition as usize]),
            record_count: count,
            largest_timestamp_ms: frame.largest_timestamp_ms(),
            append_time_ms: self.now.wall_ms,
            durability,
        })?;
        self.ends[partition as usize] += u64::from(count);
        Ok(appended)
    }

    /// Appends, waiting for room.
    fn append(&mut self, partition: u32, records: u32, value: &[u8]) -> Appended {
        let bytes = batch(PartitionId(partition), records, value);
        for _ in 0..10_000 {
            match self.try_append(partition, &bytes, Durability::Durable) {
                Ok(appended) => return appended,
                Err(AppendError::Busy) => self.turn(100),
                Err(error) => panic!("{error:?}"),
            }
        }
        panic!("no room after 10,000 turns");
    }

    /// One turn of a core thread, `us` later; a shard's answer to `Rolled` (a checkpoint) included.
    fn turn(&mut self, us: u64) {
        self.now.monotonic_us += us;
        self.now.wall_ms += (us / 1_000) as i64;
        self.log.pump(self.now);
        while let Some((token, operation)) = self.log.poll_operation() {
            self.disk.submit(token, operation);
        }
        self.disk.kick();
        let mut completions = Vec::new();
        self.disk.poll(&mut completions);
        for completion in completions {
            self.log.complete(completion, self.now);
        }
        while let Some(event) = self.log.poll_event() {
            self.checkpointing |= matches!(event, LogEvent::Rolled { .. });
            self.events.push(event);
        }
        if self.checkpointing && self.log.checkpoint_begin(self.now).is_ok() && self.log.checkpoint_end(self.now).is_ok() {
            self.checkpointing = false;
        }
    }

    fn settle(&mut self) {
        for _ in 0..300 {
            self.turn(1_000);
        }
    }

    fn flush(&mut self, sequence: u64) {
        for _ in 0..10_000 {
            if self.log.flushed() >= sequence {
                return;
            }
            self.turn(100);
        }
        panic!("group {sequence} isn't flushed after 10,000 turns");
    }

    /// Reads everything of a partition from the device; offsets of the first records of the frames.
    fn read_all(&mut self, partition: u32, from: u64) -> Vec<u64> {
        let (mut offset, mut found) = (Offset(from), Vec::new());
        for _ in 0..1_000 {
            match self.log.locate(PartitionId(partition), offset, Offset(self.ends[partition as usize]), 64 << 10) {
                Located::Runs { extents, .. } if extents.is_empty() => return found,
                Located::Runs { extents, next_offset, .. } => {
                    self.log.read(1, extents);
                    let pieces = loop {
                        self.turn(100);
                        let at = self.events.iter().position(|e| matches!(e, LogEvent::ReadDone { .. }));
                        if let Some(LogEvent::ReadDone { result, .. }) = at.map(|at| self.events.remove(at)) {
                            break result.unwrap();
                        }
                    };
                    for frame in pieces.iter().flat_map(|piece| frames(piece)) {
                        found.push(frame.unwrap().base_offset().0);
                    }
                    offset = next_offset;
                }
                Located::Wait { .. } => self.turn(1_000),
            }
        }
        panic!("still reading after 1,000 steps");
    }
}

#[test]
fn append_flushed_is_read_back_hot_and_cold() {
    let mut rig = Rig::new();
    let first = rig.append(1, 3, b"hello");
    let second = rig.append(2, 1, b"world");
    rig.flush(second.sequence);
    let hot = rig.log.hot_bytes(first.extent).unwrap().to_vec();
    assert_eq!(frames(&hot).next().unwrap().unwrap().base_offset(), Offset(0));
    assert_eq!(rig.read_all(1, 0), [0]);
    assert_eq!(rig.read_all(2, 0), [0]);
    assert_eq!(
        rig.log.locate(PartitionId(1), Offset(3), Offset(3), 100),
        Located::Runs { extents: vec![], next_offset: Offset(3), bytes: 0 }
    );
}

#[test]
fn groups_survive_power_loss_once_flushed() {
    let mut rig = Rig::new();
    let mut last = 0;
    for i in 0..200u32 {
        last = rig.append(1 + i % 3, 1 + i % 4, &[b'x'; 300]).sequence;
    }
    rig.flush(last);
    let ends = rig.ends.clone();
    rig.disk.power_cut();
    let mut replayed = Collected::default();
    let mut rig = rig.reopen(&mut replayed).unwrap();
    assert!(replayed.frames.len() <= 200 && !replayed.frames.is_empty());
    for partition in 1..4u32 {
        let offsets = rig.read_all(partition, 0);
        assert!(offsets.is_sorted() && !offsets.is_empty());
        assert_eq!(
            rig.log.locate(PartitionId(partition), Offset(ends[partition as usize]), Offset(u64::MAX), 1),
            Located::Runs { extents: vec![], next_offset: Offset(ends[partition as usize]), bytes: 0 }
        );
    }
}

#[test]
fn segments_roll_and_stay_readable() {
    let mut rig = Rig::new();
    let mut count = 0;
    while rig.log.counters().segments_rolled < 5 {
        rig.append(1, 1, &[b'y'; 2_000]);
        count += 1;
        assert!(count < 5_000, "no roll");
    }
    rig.settle();
    assert_eq!(rig.read_all(1, 0), (0..count).collect::<Vec<u64>>());
    // From the middle: whole runs, the first holding the offset.
    let middle = rig.read_all(1, count / 2);
    assert!(middle[0] <= count / 2 && *middle.last().unwrap() == count - 1);
}

#[test]
fn truncated_segments_are_released_and_reused() {
    let mut rig = Rig::new();
    for _ in 0..2_000 {
        let end = rig.ends[1];
        rig.append(1, 1, &[b'z'; 2_000]);
        if end > 200 {
            rig.log.truncate_before(PartitionId(1), Offset(end - 200));
        }
    }
    rig.settle();
    assert!(rig.log.counters().segments_released > 10, "{:?}", rig.log.counters());
    assert!(rig.log.depth().0 < 8, "{} segments for 400 KB", rig.log.depth().0);
    let end = rig.ends[1];
    assert_eq!(rig.read_all(1, end - 100).last(), Some(&(end - 1)));
    let rig = rig.reopen(&mut Collected::default()).unwrap();
    assert!(rig.log.depth().0 < 9);
}

#[test]
fn mixed_segments_are_clustered_and_nothing_is_lost() {
    let mut rig = Rig::new();
    for i in 0..3_000u32 {
        rig.append(1 + i % 8, 1, &[b'm'; 500]);
    }
    for _ in 0..20 {
        rig.now.monotonic_us += 2_000_000;
        rig.settle();
    }
    assert!(rig.log.counters().segments_cleaned > 2, "{:?}", rig.log.counters());
    for partition in 1..9 {
        assert_eq!(rig.read_all(partition, 0).len() as u64, rig.ends[partition as usize], "partition {partition}");
    }
    let ends = rig.ends.clone();
    rig.disk.power_cut();
    let mut rig = rig.reopen(&mut Collected::default()).unwrap();
    for partition in 1..9 {
        assert_eq!(rig.read_all(partition, 0).len() as u64, ends[partition as usize], "partition {partition} after a power cut");
    }
}

/// What is dead but for these records, told anew.
fn all_dead_but(rig: &mut Rig, partition: u32, stay: &[u64]) {
    let (id, mut from) = (PartitionId(partition), 0);
    rig.log.dead_begin(id);
    for offset in stay.iter().copied().chain([rig.ends[partition as usize] - 1]) {
        rig.log.dead_push(id, Offset(from), Offset(offset));
        from = offset + 1;
    }
    rig.log.dead_end();
}

fn clean(rig: &mut Rig) {
    for _ in 0..20 {
        rig.now.monotonic_us += 2_000_000;
        rig.settle();
    }
}

/// Every record that isn't dead, one per frame: wherever a reader begins, it finds the next one.
fn check_stragglers(rig: &mut Rig, partition: u32, from: u64, stay: &[u64]) {
    let found = rig.read_all(partition, from);
    let expected: Vec<u64> = stay.iter().copied().filter(|offset| *offset >= from).collect();
    let kept: Vec<u64> = found.iter().copied().filter(|offset| expected.contains(offset)).collect();
    assert_eq!(kept, expected, "partition {partition} from {from}");
    assert!(found.is_sorted(), "{found:?}");
}

#[test]
fn dead_records_are_left_out_and_readers_go_over_the_gaps() {
    let mut rig = Rig::new();
    for _ in 0..3_000u32 {
        rig.append(1, 1, &[b's'; 800]);
    }
    let stay: Vec<u64> = (0..2_000).step_by(90).collect();
    rig.settle();
    let segments = rig.log.depth().0;
    all_dead_but(&mut rig, 1, &stay);
    assert!(rig.log.dead_bytes() > 2_400 * 800, "{}", rig.log.dead_bytes());
    clean(&mut rig);
    assert!(rig.log.depth().0 < segments / 3, "{} segments of {segments}", rig.log.depth().0);
    assert!(rig.log.counters().bytes_dropped > 1_900 * 800, "{:?}", rig.log.counters());
    // What is stored is what stays, and what only the segment still open and the one before it hold.
    let stored_bytes = rig.log.partition_bytes(PartitionId(1));
    assert!(stored_bytes < 700 * 1_000, "{stored_bytes}");
    assert_eq!(rig.log.bytes_from(PartitionId(1), Offset(0)), stored_bytes);
    for from in [0, 1, 89, 90, 91, 500, 1_979, 1_980, 1_981, 2_500] {
        check_stragglers(&mut rig, 1, from, &stay);
    }
    // By time, too: the first run with a record so young.
    let extent = loop {
        match rig.log.locate_time(PartitionId(1), 1_000, Offset(3_000)) {
            LocatedTime::Run(extent) => break extent,
            LocatedTime::Wait { .. } => rig.turn(1_000),
            LocatedTime::None => panic!("no record of that time"),
        }
    };
    assert_eq!(
        rig.log.locate(PartitionId(1), Offset(0), Offset(1), 1),
        Located::Runs { extents: vec![extent], next_offset: Offset(1), bytes: extent.len }
    );
    // The same is found again without another round of copying, and nothing is found twice.
    let (released, cleaned) = (rig.log.counters().segments_released, rig.log.counters().bytes_cleaned);
    for _ in 0..3 {
        all_dead_but(&mut rig, 1, &stay);
        clean(&mut rig);
    }
    let more = rig.log.counters().bytes_cleaned - cleaned;
    assert!(more < 300 << 10, "{more} bytes copied again, {} segments given back", rig.log.counters().segments_released - released);
    let ends = rig.ends.clone();
    rig.disk.power_cut();
    let mut rig = rig.reopen(&mut Collected::default()).unwrap();
    assert_eq!(rig.log.partition_bytes(PartitionId(1)), stored_bytes);
    assert_eq!(rig.ends, ends);
    for from in [0, 1, 1_980, 1_981] {
        check_stragglers(&mut rig, 1, from, &stay);
    }
    let files = rig.disk.list().unwrap();
    let report = tool::verify_volume(&mut rig.disk, &files).unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    // All of them are settled in the end.
    all_dead_but(&mut rig, 1, &[]);
    clean(&mut rig);
    assert!(rig.log.depth().0 <= 3, "{} segments", rig.log.depth().0);
}

#[test]
fn dead_records_among_others_go_frame_by_frame() {
    for hole_bytes_min in [1, 100 << 10] {
        let mut rig = Rig::new();
        rig.config.hole_bytes_min = hole_bytes_min;
        let mut rig = rig.reopen(&mut Collected::default()).unwrap();
        for i in 0..6_000u32 {
            rig.append(1 + i % 3, 1 + i % 2, &[b'f'; 300]);
        }
        // Partition 2 is nobody's queue; of 3 all is needed but a few records, which share their frames with others.
        let stay: Vec<u64> = (0..rig.ends[1]).step_by(10).collect();
        all_dead_but(&mut rig, 1, &stay);
        let all: Vec<u64> = (0..rig.ends[3]).filter(|offset| offset % 40 != 1).collect();
        all_dead_but(&mut rig, 3, &all);
        clean(&mut rig);
        check_stragglers(&mut rig, 1, 0, &[]);
        let (kept, dropped) = (rig.read_all(1, 0), rig.log.counters().bytes_dropped);
        let holding: Vec<u64> =
            stay.iter().copied().filter(|offset| kept.contains(offset) || kept.contains(&offset.wrapping_sub(1))).collect();
        assert_eq!(holding, stay);
        let whole = rig.ends[2];
        let records: u64 = rig.read_all(2, 0).len() as u64;
        assert_eq!(records, 2_000, "partition 2 has {whole} records in as many batches");
        if hole_bytes_min == 1 {
            assert!(kept.len() < 700 && dropped > 1_000 * 300, "{} frames of 2,000 are left, {dropped} bytes dropped", kept.len());
        }
    }
}

#[test]
fn what_is_wanted_again_stays() {
    let mut rig = Rig::new();
    for _ in 0..2_000u32 {
        rig.append(1, 1, &[b'w'; 800]);
    }
    rig.settle();
    all_dead_but(&mut rig, 1, &[]);
    // Segments without a live record are on their way out already; the others stay whole.
    rig.settle();
    let gone = rig.read_all(1, 0)[0];
    assert!(gone > 1_000, "{gone}");
    let mut rig = Rig::new();
    for _ in 0..2_000u32 {
        rig.append(1, 1, &[b'w'; 800]);
    }
    rig.settle();
    let stay: Vec<u64> = (0..2_000).step_by(100).collect();
    all_dead_but(&mut rig, 1, &stay);
    // In the middle of a job.
    rig.now.monotonic_us += 2_000_000;
    for _ in 0..4 {
        rig.turn(100);
    }
    assert!(!rig.log.dead_was_used(), "the cleaner is at work");
    rig.log.dead_revoke(PartitionId(1), Offset(500));
    clean(&mut rig);
    assert_eq!(rig.log.dead_bytes(), 0);
    assert_eq!(rig.read_all(1, 0).len(), 2_000);
    // Whoever begins behind all that is dead wants nothing of it.
    all_dead_but(&mut rig, 1, &stay);
    rig.log.dead_revoke(PartitionId(1), Offset(1_999));
    clean(&mut rig);
    assert!(rig.read_all(1, 0).len() < 600);
}

#[test]
fn clean_stop_reads_little_at_start() {
    let mut rig = Rig::new();
    for _ in 0..500 {
        rig.append(1, 1, &[b'c'; 2_000]);
    }
    rig.settle();
    rig.log.checkpoint_begin(rig.now).unwrap();
    rig.log.checkpoint_end(rig.now).unwrap();
    rig.log.stop(rig.now);
    rig.settle();
    assert!(rig.log.is_stopped());
    let (mut disk, config) = (rig.disk.clone(), rig.config.clone());
    let files = disk.list().unwrap();
    let mut replayed = Collected::default();
    let opened = Log::open(config, rig.arena.clone(), &mut disk, &files, &mut replayed, rig.now).unwrap();
    assert!(opened.report.was_clean && opened.report.torn_tail.is_none());
    assert_eq!((replayed.frames.len(), opened.report.frames_replayed), (0, 0));
}

#[test]
fn rot_in_an_acknowledged_group_is_reported_and_not_cut() {
    let mut rig = Rig::new();
    let appended = rig.append(1, 1, &[b'r'; 3_000]);
    rig.flush(appended.sequence);
    rig.settle();
    let file = rig.log.segments[&appended.extent.segment].file;
    rig.disk.rot(file, u64::from(appended.extent.position) + 100, 3);
    let error = rig.reopen(&mut Collected::default()).err();
    assert!(matches!(error, Some(OpenError::Rot { .. })), "{error:?}");
}

#[test]
fn flipped_bit_is_found_on_reading() {
    let mut rig = Rig::new();
    let appended = rig.append(1, 1, &[b'f'; 3_000]);
    rig.flush(appended.sequence);
    let file = rig.log.segments[&appended.extent.segment].file;
    rig.disk.rot(file, u64::from(appended.extent.position) + 200, 1);
    rig.log.read(9, vec![appended.extent]);
    rig.settle();
    let failed = rig.events.iter().any(|e| matches!(e, LogEvent::ReadDone { ticket: 9, result: Err(ReadError::Corrupt { .. }) }));
    assert!(failed, "{:?}", rig.events);
}

#[test]
fn memory_group_is_readable_at_once_and_flushed_in_time() {
    let mut rig = Rig::new();
    let bytes = batch(PartitionId(1), 1, b"lazy");
    let appended = rig.try_append(1, &bytes, Durability::Memory).unwrap();
    assert!(rig.log.hot_bytes(appended.extent).is_some());
    rig.turn(1_000);
    assert_eq!(rig.log.written(), 0);
    rig.settle();
    assert!(rig.log.flushed() >= appended.sequence);
}

#[test]
fn verify_names_whole_torn_and_damaged_logs() {
    let mut rig = Rig::new();
    let mut appended = Vec::new();
    for i in 0..600u32 {
        appended.push(rig.append(1 + i % 2, 1, &[b'v'; 1_000]));
    }
    rig.settle();
    let mut disk = rig.disk.clone();
    let files = disk.list().unwrap();
    let whole = tool::verify_volume(&mut disk, &files).unwrap();
    assert!(whole.damage.is_empty() && whole.torn_tails.is_empty() && whole.frames >= 600, "{whole:?}");
    let damaged = appended[10].extent;
    rig.disk.rot(rig.log.segments[&damaged.segment].file, u64::from(damaged.position) + 300, 0);
    let report = tool::verify_volume(&mut disk, &files).unwrap();
    let place = report.damage[0].place.unwrap();
    assert!(place.segment == damaged.segment && place.position <= damaged.position, "{report:?}");
}

#[test]
fn accepted_loss_cuts_before_the_damage_and_goes_on() {
    let mut rig = Rig::new();
    // What lies in the checkpoint itself can't be given up: let it be complete first.
    rig.settle();
    let kept = rig.append(1, 1, &[b'k'; 3_000]);
    rig.flush(kept.sequence);
    let lost = rig.append(1, 1, &[b'l'; 3_000]);
    rig.flush(lost.sequence);
    rig.settle();
    rig.disk.rot(rig.log.segments[&lost.extent.segment].file, u64::from(lost.extent.position) + 100, 3);
    let (disk, config) = (rig.disk.clone(), rig.config.clone());
    let accepting = LogConfig { accept_loss: true, ..config.clone() };
    drop(Rig::open(disk.clone(), accepting, &mut Collected::default()).unwrap());
    let mut replayed = Collected::default();
    let mut rig = Rig::open(disk, config, &mut replayed).unwrap();
    assert_eq!(replayed.frames, [(PartitionId(1), 0, 1)]);
    rig.ends[1] = 1;
    let next = rig.append(1, 1, b"next");
    rig.flush(next.sequence);
    assert_eq!(rig.read_all(1, 0), [0, 1]);
}

#[test]
fn cold_read_larger_than_memory_fails_and_a_smaller_one_takes_the_cache() {
    let disk = SimDisk::new(1, SimOptions::default());
    let mut rig = Rig::open(disk, LogConfig { tail_cache_bytes: 1 << 20, ..config() }, &mut Collected::default()).unwrap();
    let mut extents = Vec::new();
    for _ in 0..40 {
        extents.push(rig.append(1, 1, &vec![b'o'; 20_000]).extent);
    }
    rig.settle();
    let held: usize = rig.arena.used_bytes();
    // What is left of the arena can't hold the read, but the cache can give way to it.
    let hog = rig.arena.allocate(rig.arena.limit_bytes() - held - (64 << 10)).unwrap();
    rig.log.read(1, extents[..8].to_vec());
    rig.settle();
    assert!(rig.events.iter().any(|e| matches!(e, LogEvent::ReadDone { ticket: 1, result: Ok(_) })), "the cache did not give way");
    drop(hog);
    rig.events.clear();
    let all = Extent { segment: extents[0].segment, position: extents[0].position, len: 128 << 20 };
    rig.log.read(2, vec![all]);
    rig.settle();
    assert!(rig.events.iter().any(|e| matches!(e, LogEvent::ReadDone { ticket: 2, result: Err(_) })), "an impossible read still waits");
}

#[test]
fn the_tail_cache_gives_way_to_what_the_log_must_write() {
    let mut rig = Rig::new();
    for i in 0..32 {
        rig.append(1, 1, &[i; 8 << 10]);
    }
    rig.settle();
    // Others take all the memory that is left.
    let mut others = Vec::new();
    for size in [1 << 20, 64 << 10, 4 << 10] {
        others.extend(std::iter::from_fn(|| rig.arena.allocate(size).ok()));
    }
    let rolled = rig.log.counters().segments_rolled;
    for i in 0..64 {
        rig.append(1, 1, &[i; 8 << 10]);
    }
    rig.settle();
    assert!(rig.log.counters().segments_rolled > rolled + 1, "headers, footers and seals found memory");
    assert!(rig.arena.allocate(16 << 20).is_err(), "others still have theirs: {} buffers", others.len());
}

#[test]
fn a_read_that_waits_for_memory_asks_for_a_pump_when_some_is_given_back() {
    let disk = SimDisk::new(1, SimOptions::default());
    let mut rig = Rig::open(disk, LogConfig { tail_cache_bytes: 1 << 20, ..config() }, &mut Collected::default()).unwrap();
    let extents: Vec<Extent> = (0..80).map(|_| rig.append(1, 1, &vec![b'o'; 20_000]).extent).collect();
    rig.settle();
    // Everything is somebody else's, also what the tail cache and earlier reads give.
    let mut hogs = Vec::new();
    for (ticket, extent) in (1..).zip(&extents) {
        while let Ok(hog) = rig.arena.allocate(4 << 10) {
            hogs.push(hog);
        }
        rig.log.read(ticket, vec![*extent]);
        if rig.log.reads_wait_for_memory() {
            break;
        }
        rig.settle_reads(&[ticket]);
    }
    assert!(rig.log.reads_wait_for_memory(), "80 reads found memory");
    assert!(!rig.log.has_backlog(), "nothing was given back yet");
    drop(hogs);
    assert!(rig.log.has_backlog(), "memory was given back, and the log doesn't ask for a pump");
    rig.settle();
    assert!(!rig.log.reads_wait_for_memory());
}

/// Reads `extents` under `ticket`, waits for the answer, and tells how many bytes the device gave for it.
fn cold(rig: &mut Rig, ticket: u64, extents: &[Extent]) -> u64 {
    let before = rig.log.counters().bytes_read;
    rig.log.read(ticket, extents.to_vec());
    rig.settle_reads(&[ticket]);
    rig.log.counters().bytes_read - before
}

impl Rig {
    /// Turns until every ticket has its pieces.
    fn settle_reads(&mut self, tickets: &[u64]) {
        let done = |events: &[LogEvent], wanted| {
            events.iter().any(|e| matches!(e, LogEvent::ReadDone { ticket, result: Ok(_) } if *ticket == wanted))
        };
        for _ in 0..1_000 {
            if tickets.iter().all(|ticket| done(&self.events, *ticket)) {
                return;
            }
            self.turn(100);
        }
        panic!("reads {tickets:?} aren't done after 1,000 turns: {:?}", self.events);
    }
}

#[test]
fn partitions_side_by_side_are_read_from_the_device_once() {
    let mut rig = Rig::new();
    let appended: Vec<Extent> = (0..30u32).map(|i| rig.append(1 + i % 3, 1, &[b's'; 1_000]).extent).collect();
    rig.settle();
    let of = |partition: usize| appended.iter().copied().skip(partition).step_by(3).collect::<Vec<_>>();
    // Two at once: the second joins what the first has begun.
    let before = rig.log.counters().bytes_read;
    rig.log.read(1, of(0));
    let first = rig.log.counters().bytes_read - before;
    // Its last extent lies behind the span.
    rig.log.read(2, of(1)[..9].to_vec());
    rig.settle_reads(&[1, 2]);
    assert!(first > 0);
    assert_eq!(rig.log.counters().bytes_read - before, first, "bytes under way were asked for again");
    assert_eq!(cold(&mut rig, 3, &of(2)[..9]), 0, "bytes just read were asked for again");
    // Given up after a while, and with them their memory.
    let held = rig.arena.used_bytes();
    rig.events.clear();
    for _ in 0..20 {
        rig.turn(100_000);
    }
    assert!(rig.arena.used_bytes() < held, "{} bytes are still held", rig.arena.used_bytes());
    assert_eq!(cold(&mut rig, 4, &of(0)), first);
}

#[test]
fn damage_in_a_span_that_others_read_from_is_reported_and_the_device_asked_again() {
    let mut rig = Rig::new();
    let extents: Vec<Extent> = (0..4u32).map(|i| rig.append(1 + i % 2, 1, &[b'd'; 3_000]).extent).collect();
    rig.settle();
    let file = rig.log.segments[&extents[1].segment].file;
    rig.disk.rot(file, u64::from(extents[1].position) + 200, 1);
    // The damaged frame lies between those of the other partition: they are whole.
    assert!(cold(&mut rig, 1, &[extents[0], extents[2]]) > 0);
    for ticket in [2, 3] {
        let before = rig.log.counters().bytes_read;
        rig.log.read(ticket, vec![extents[1]]);
        rig.settle();
        let failed = |e: &LogEvent| matches!(e, LogEvent::ReadDone { ticket: of, result: Err(ReadError::Corrupt { .. }) } if *of == ticket);
        assert!(rig.events.iter().any(failed), "{:?}", rig.events);
        assert_eq!(rig.log.counters().bytes_read > before, ticket == 3, "read {ticket}");
    }
}

#[test]
fn spans_for_later_readers_give_way_before_the_tail_cache() {
    let mut rig = Rig::new();
    let extents: Vec<Extent> = (0..4u32).map(|_| rig.append(1, 1, &[b'w'; 9_000]).extent).collect();
    let other = rig.append(2, 1, &[b'o'; 9_000]).extent;
    rig.settle();
    assert!(cold(&mut rig, 1, &extents) > 0);
    assert_eq!(cold(&mut rig, 2, &extents[2..]), 0);
    rig.events.clear();
    let (chunks, mut hogs) = (rig.log.chunks.len(), Vec::new());
    for kib in [2048, 256, 64, 16, 4] {
        hogs.extend(std::iter::from_fn(|| rig.arena.allocate(kib << 10).ok()));
    }
    assert!(cold(&mut rig, 3, &[other]) > 0);
    assert_eq!(rig.log.chunks.len(), chunks, "the tail cache gave way");
    assert!(cold(&mut rig, 4, &extents[2..]) > 0, "the span did not give way");
}
