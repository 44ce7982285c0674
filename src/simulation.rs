//! Whole lives of a log on the simulated disk: appended, cleaned, crashed, recovered, and compared with a model.
//!
//! One run = one seed = one history:
//!
//! ```text
//! open ─▶ verify ─▶ operations ─▶ crash ─▶ open (cut, and cut again) ─▶ verify ─▶ operations ─▶ … ─▶ ending
//! ```
//! *Verify*: the log holds a prefix of what was appended, group by group; everything acknowledged is in it;
//! offsets are dense; bytes, epochs and append times are those appended; the shard's state rebuilt from checkpoint
//! and replay is the state at that point; a second recovery comes to the same end. While it lives, hot and cold
//! reads are compared with the model, before and after cleaning, under leases, over retention.
//!
//! The *ending* is one of: a clean stop, a flipped bit (which must be reported or be without effect, never served and
//! never cut off), or a disk that lied about flushing (which may cost records, but not invent any).

pub mod model;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::mem;

use ringmain_wire::control::Durability;
use ringmain_wire::frame::{self, Format, HEADER_BYTES, Identity, frames};
use ringmain_wire::{Frame, Offset, PartitionId, ShardId};

use crate::device::sim::{Rng, SimDisk, SimOptions};
use crate::device::{Arena, BLOCK_BYTES, Completion, Disk, Fault, FileId, Operation, Slice, Volume};
use crate::log::format::{CommitHeader, EpochEnd, FORMAT_VERSION, LogPoint, SEGMENT_MAGIC, SegmentHeader, seed as crc_seed};
use crate::log::tool::{Damage, verify_volume};
use crate::log::{Append, AppendError, Located, LocatedTime, Log, LogConfig, LogEvent, OpenError, Plant, ReadError, RecoveryReport};
use crate::request::{Extent, Now};

use model::{Batch, Change, MiniShard, Partition, Rebuild, state_body};

/// Memory of one run: more than it can use …
const ARENA_BYTES: usize = 32 << 20;
/// … or hardly more than its tail cache.
const TIGHT_BYTES: usize = 320 << 10;
/// Steps after which the log is stuck, if nothing else happened.
const PATIENCE_STEPS: usize = 20_000;
/// Before it ends, a run of the default kind has seen at least this.
const OPERATIONS_MIN: u64 = 200;
const CRASHES_MIN: u64 = 3;
const SEGMENTS_MIN: u64 = 4;

/// A promise that wasn't kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of the run.
    pub seed: u64,
    /// Crashes before it.
    pub crashes: u64,
    /// Operations before it.
    pub operations: u64,
    /// What was promised, and what was found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, crashes, operations, what } = self;
        write!(f, "seed {seed}, after {operations} operations and {crashes} crashes: {what}")
    }
}

macro_rules! summary {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// What happened in a run, or in many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Summary { $($(#[$doc])* pub $field: u64,)* }

        impl Summary {
            /// Adds another run's.
            pub fn add(&mut self, other: &Summary) {
                $(self.$field += other.$field;)*
            }

            /// Names and values.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)*]
            }
        }
    };
}

summary! {
    /// Runs that kept every promise.
    runs,
    /// Things done to a log.
    operations,
    /// Batches appended.
    batches,
    /// Frames read back and compared.
    frames_compared,
    /// Power cuts and kills.
    crashes,
    /// Power cuts.
    power_cuts,
    /// Logs opened.
    recoveries,
    /// Recoveries that were cut, in turn.
    recoveries_cut,
    /// Pairs of recoveries compared.
    recoveries_compared,
    /// Unfinished groups cut off.
    torn_tails_cut,
    /// Openings refused because of a flipped bit.
    rot_reported_on_open,
    /// Reads refused because of a flipped bit.
    rot_reported_on_read,
    /// Flipped bits without effect.
    rot_without_effect,
    /// Disks read by `verify`.
    verified_offline,
    /// Logs repaired.
    repairs,
    /// Logs that `repair` couldn't save.
    repairs_refused,
    /// Blocks that look like groups of an earlier life of the file.
    stale_groups_skipped,
    /// Valid groups behind a bad one.
    valid_groups_after_bad,
    /// Times that two groups or more were in flight.
    groups_overlapped,
    /// Batches lost that nobody had been told of.
    batches_lost,
    /// Segments opened for appending.
    segments_rolled,
    /// Segments given back.
    segments_released,
    /// Segments rewritten.
    segments_cleaned,
    /// Ranges of records said to be dead while older ones stay.
    dead_ranges,
    /// Bytes of frames left out because of that.
    bytes_dropped,
    /// Reads that went over a gap.
    gaps_read,
    /// Files given back whose content was destroyed on a copy of the disk, without loss.
    releases_checked,
    /// Files of the pool that another shard used in between.
    files_lent,
    /// Files used again with old content.
    files_recycled,
    /// Checkpoints completed.
    checkpoints,
    /// Reads answered from memory.
    reads_hot,
    /// Reads answered from the device.
    reads_cold,
    /// Reads refused for want of memory.
    reads_without_memory,
    /// Fenced logs that were read.
    reads_fenced,
    /// Batches that imitate groups.
    imitations,
    /// Logs that stopped writing after an error.
    fences,
    /// Appends refused for want of space.
    disk_full,
    /// Logs stopped cleanly.
    clean_stops,
    /// Disks that lied.
    lies,
    /// Writes that crashes tore.
    torn_writes,
}

impl Summary {
    /// What many runs together must have seen and didn't: a suite in which it never happens proves nothing about it.
    pub fn never_seen(&self) -> Vec<&'static str> {
        self.rows().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Only crashes.
    Fair,
    /// Operations fail now and then.
    Errors,
    /// Space runs out.
    Full,
    /// Flushes are answered and not done.
    Lies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop,
    Rot,
    RotInLastGroup,
}

/// Lives through the history of `seed`. `plant`: a mistake to find; `trace`: tell what happens, on standard error.
pub fn run(seed: u64, plant: Option<Plant>, trace: bool) -> Result<Summary, Violation> {
    let mut world = World::new(seed, plant, trace);
    match world.live() {
        Ok(()) => {
            world.summary.runs = 1;
            Ok(world.summary)
        }
        Err(what) => Err(Violation { seed, crashes: world.summary.crashes, operations: world.summary.operations, what }),
    }
}

/// A checkpoint on its way.
#[derive(Clone, Copy, Debug)]
enum Checkpoint {
    /// None wanted.
    Idle,
    /// The log has opened a segment.
    Wanted,
    /// Begun; the next piece.
    Piece(usize),
}

/// Refusals met by one append.
#[derive(Default)]
struct Patience {
    busy: usize,
    full: usize,
}

struct ReadUnderWay {
    partition: u32,
    from: u64,
    next_offset: u64,
    extents: Vec<Extent>,
}

struct Item {
    sequence: u64,
    change: Change,
}

struct World {
    rng: Rng,
    trace: bool,
    weather: Weather,
    disk: SimDisk,
    arena: Arena,
    /// Reads may be refused for want of memory.
    tight: bool,
    /// For logs that aren't in use.
    copy_arena: Arena,
    config: LogConfig,
    log: Option<Log>,
    now: Now,
    summary: Summary,
    /// Everything appended and not known to be lost, in log order.
    items: Vec<Item>,
    partitions: BTreeMap<u32, Partition>,
    next_partition: u32,
    shard: MiniShard,
    /// Reported by the log.
    written: u64,
    flushed: u64,
    /// Last sequence given out.
    appended: u64,
    epoch: u32,
    fenced: bool,
    checkpoint: Checkpoint,
    /// State records whose effect waits for their flush: sequence and change.
    effects: VecDeque<(u64, Change)>,
    reads: HashMap<u64, ReadUnderWay>,
    next_ticket: u64,
    /// Reads that were answered; their memory has been given back.
    reads_done: HashSet<u64>,
    footers_failed: u64,
    leases: Vec<ReadUnderWay>,
    completions: Vec<Completion>,
    /// Files just given back, to be looked into.
    released: Vec<FileId>,
    /// What the last opening found.
    last_report: RecoveryReport,
    /// Recoveries that failed with an error of the device.
    refusals: u64,
    /// A bit has been flipped.
    rotten: bool,
}

type Outcome<T> = Result<T, String>;

impl World {
    fn new(seed: u64, plant: Option<Plant>, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let weather = match rng.below(20) {
            0..13 => Weather::Fair,
            13..16 => Weather::Errors,
            16..19 => Weather::Full,
            _ => Weather::Lies,
        };
        let segment_bytes = 64 << (10 + rng.below(3));
        let chunk_bytes = 16 << (10 + rng.below(3));
        let step_bytes = 16 << (10 + rng.below(5));
        let config = LogConfig {
            acquire_bytes: step_bytes,
            ahead_bytes: step_bytes * (1 + rng.below(4)),
            extend_step_bytes: step_bytes,
            chunk_bytes,
            commits_in_flight_max: 2 + rng.index(3),
            tail_cache_bytes: chunk_bytes as usize * (4 + rng.index(4)),
            run_bytes: 1 << (12 + rng.below(4)),
            footer_cache_bytes: if rng.one_in(2) { 1 << 10 } else { 64 << 10 },
            active_runs_max: if rng.one_in(4) { 32 } else { 1 << 10 },
            mark_after_us: 10_000,
            flush_after_us: 10_000,
            flush_after_bytes: 32 << (10 + rng.below(3)),
            read_bytes_max: 256 << 10,
            clean_mixed_after_ms: if rng.one_in(2) { 20 } else { 600_000 },
            clean_check_us: if rng.one_in(2) { 1_000_000 } else { 20_000 },
            clean_bytes_per_second: 1 << 30,
            hole_bytes_min: if rng.one_in(2) { 1 } else { 4 << 10 },
            entropy: rng.next_u64(),
            plant,
            ..LogConfig::new(ShardId(rng.below(3) as u16), segment_bytes, 1 << 20)
        };
        let options = SimOptions {
            completion: 200_000 + rng.below(700_000) as u32,
            in_order: rng.one_in(4),
            laggard: if rng.one_in(3) { rng.below(60_000) as u32 } else { 0 },
            ..SimOptions::default()
        };
        let disk = SimDisk::new(rng.next_u64(), options);
        let tight = rng.one_in(6);
        World {
            trace,
            weather,
            disk,
            arena: Arena::new(if tight { config.tail_cache_bytes + TIGHT_BYTES + rng.index(TIGHT_BYTES) } else { ARENA_BYTES }),
            tight,
            copy_arena: Arena::new(ARENA_BYTES),
            config,
            log: None,
            now: Now { monotonic_us: rng.below(1 << 40), wall_ms: 1_700_000_000_000 },
            summary: Summary::default(),
            items: Vec::new(),
            partitions: BTreeMap::new(),
            next_partition: 1,
            shard: MiniShard::default(),
            written: 0,
            flushed: 0,
            appended: 0,
            epoch: 0,
            fenced: false,
            checkpoint: Checkpoint::Idle,
            effects: VecDeque::new(),
            reads: HashMap::new(),
            next_ticket: 0,
            reads_done: HashSet::new(),
            footers_failed: 0,
            leases: Vec::new(),
            completions: Vec::new(),
            released: Vec::new(),
            last_report: RecoveryReport::default(),
            refusals: 0,
            rotten: false,
            rng,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>6} {:>9} | {}", self.summary.operations, self.now.monotonic_us % 1_000_000_000, what());
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("the log is open")
    }

    /// The whole history.
    fn live(&mut self) -> Outcome<()> {
        self.say(|| format!("{:?}, {:?}", self.weather, self.config));
        self.open_whole()?;
        let lives = CRASHES_MIN + self.rng.below(3);
        for life in 0..=lives {
            let operations = match self.rng.below(4) {
                0 => 1 + self.rng.below(8),
                _ => OPERATIONS_MIN / CRASHES_MIN + self.rng.below(60),
            };
            self.set_weather(life);
            let cut = self.rng.one_in(2);
            if cut && life < lives {
                self.disk.cut_after(1 + self.rng.below(operations * 4));
            }
            for _ in 0..operations {
                if self.fenced || self.disk.is_cut() {
                    break;
                }
                self.operate()?;
            }
            if self.fenced && !self.disk.is_cut() {
                self.read_fenced()?;
            }
            let retried = self.disk.counters().flushes_after_error;
            self.require(retried == 0, "a failed flush is never tried again")?;
            if life == lives {
                break;
            }
            self.crash();
            if self.weather == Weather::Lies {
                return self.end_with_lies();
            }
            self.recover(true)?;
        }
        self.fill_quota()?;
        self.end()
    }

    fn set_weather(&mut self, life: u64) {
        let (weather, segment_bytes, rng) = (self.weather, u64::from(self.config.segment_bytes), &mut self.rng);
        let bad_luck = 500 + rng.below(4_000) as u32;
        let kind = rng.below(5);
        let blocking_errors = rng.one_in(3);
        let segments = 7 + rng.below(6);
        self.disk.set_options(|options| match weather {
            Weather::Fair => {}
            Weather::Errors => {
                (options.write_error, options.short_write, options.read_error, options.flush_error) = (0, 0, 0, 0);
                match kind {
                    0 => options.write_error = bad_luck,
                    1 => options.short_write = bad_luck,
                    2 => options.read_error = bad_luck * 4,
                    3 => options.flush_error = bad_luck * 8,
                    _ => options.disk_full = bad_luck * 16,
                }
                options.blocking_errors = blocking_errors;
            }
            Weather::Full => options.capacity_bytes = segments.max(options.capacity_bytes.min(1 << 40) / segment_bytes) * segment_bytes,
            Weather::Lies if life == 0 => options.flush_lie = if kind == 0 { 1_000_000 } else { 50_000 },
            Weather::Lies => {}
        });
    }

    /// Goes on in fair weather until the run has seen what every run must see.
    fn fill_quota(&mut self) -> Outcome<()> {
        self.disk.set_options(|options| {
            let SimOptions { completion, in_order, laggard, .. } = *options;
            *options = SimOptions { completion, in_order, laggard, ..SimOptions::default() };
        });
        if self.weather != Weather::Fair {
            self.crash();
            self.weather = Weather::Fair;
            self.recover(true)?;
        }
        self.config.clean_mixed_after_ms = 20;
        for _ in 0..4_000 {
            let counters = self.log().counters().clone();
            let cleaned = self.summary.segments_cleaned + counters.segments_cleaned;
            let rolled = self.summary.segments_rolled + counters.segments_rolled;
            let whole = self.summary.operations >= OPERATIONS_MIN
                && self.summary.groups_overlapped > 0
                && self.summary.checkpoints > 0
                && self.disk.counters().recycled_files > 0
                && rolled >= SEGMENTS_MIN
                && cleaned > 0;
            if whole {
                return Ok(());
            }
            if self.summary.operations % 512 == 511 {
                // Its cleaner may have been told to wait for ten minutes.
                self.crash();
                self.recover(false)?;
            }
            self.operate()?;
        }
        let counters = self.log().counters().clone();
        Err(format!("4,000 operations in fair weather, and still: {:?} {counters:?}", self.summary))
    }

    fn pass_time(&mut self, us: u64) {
        self.now.monotonic_us += us;
        self.now.wall_ms = 1_700_000_000_000 + (self.now.monotonic_us / 1_000) as i64;
    }

    // ------------------------------------------------------------------------------------------ operations

    fn operate(&mut self) -> Outcome<()> {
        self.summary.operations += 1;
        match self.rng.below(100) {
            0..40 => self.append_some(1)?,
            40..50 => {
                let count = 2 + self.rng.index(12);
                self.append_some(count)?;
            }
            50..56 => self.set_value()?,
            56..60 => self.truncate()?,
            60 => self.drop_partition()?,
            61..64 => self.imitate()?,
            64..78 => self.read_somewhere()?,
            78..80 => self.look_up_time()?,
            80..82 => self.lease_somewhere()?,
            82..84 => self.use_lease()?,
            84 => {
                self.settle("an idle log")?;
                self.idle()?;
            }
            85 => self.lend_a_file()?,
            87..90 => self.tell_dead()?,
            90 => self.revoke_dead(),
            86 => {
                let stalled = self.rng.one_in(2);
                self.disk.stall(stalled);
            }
            _ => {
                for _ in 0..self.rng.below(6) {
                    self.step()?;
                }
            }
        }
        self.go_on_with_checkpoint()?;
        if self.rng.one_in(3) {
            self.step()?;
        }
        Ok(())
    }

    /// Pumps the log, moves operations to the disk and completions back, takes events.
    fn step(&mut self) -> Outcome<()> {
        let us = self.rng.below(400);
        self.pass_time(us);
        let now = self.now;
        let World { log, disk, completions, rng, summary, released, .. } = self;
        let log = log.as_mut().expect("the log is open");
        log.pump(now);
        summary.groups_overlapped += u64::from(log.depth().1 > 1);
        while let Some((token, operation)) = log.poll_operation() {
            if let Operation::Release { file } = operation
                && rng.one_in(8)
            {
                released.push(file);
            }
            disk.submit(token, operation);
        }
        if !rng.one_in(8) {
            disk.kick();
        }
        disk.poll(completions);
        for completion in completions.drain(..) {
            log.complete(completion, now);
        }
        self.take_events()?;
        while let Some(file) = self.released.pop() {
            self.do_without(file)?;
        }
        Ok(())
    }

    /// A file that was given back isn't needed, even if the power fails now and somebody has overwritten it.
    fn do_without(&mut self, file: FileId) -> Outcome<()> {
        if self.disk.is_cut() || self.fenced {
            return Ok(());
        }
        if self.weather == Weather::Lies {
            return Ok(());
        }
        let mut copy = self.disk.fork();
        copy.set_options(|options| *options = SimOptions::default());
        copy.power_cut();
        copy.write_durable(file, 0, &[0xa5; 2 * BLOCK_BYTES]).map_err(|error| error.to_string())?;
        let Some((log, ..)) = self.open_copy(copy).map_err(|wrong| format!("{file} was released, and overwritten: {wrong}"))? else {
            return Err("the disk refuses in fair weather".to_owned());
        };
        let found = log.flushed();
        self.require(found >= self.flushed, &format!("nothing acknowledged lives in {file}, which was released (without it: {found})"))?;
        self.summary.releases_checked += 1;
        Ok(())
    }

    fn take_events(&mut self) -> Outcome<()> {
        while let Some(event) = self.log().poll_event() {
            match event {
                LogEvent::Written { sequence } => {
                    self.require(!self.fenced, "nothing is acknowledged after a fault")?;
                    self.require(sequence >= self.written, "written grows")?;
                    self.written = sequence;
                }
                LogEvent::Flushed { sequence } => {
                    self.require(!self.fenced, "nothing is acknowledged after a fault")?;
                    self.require(sequence >= self.flushed && sequence <= self.written, "flushed grows, up to what is written")?;
                    self.flushed = sequence;
                    self.apply_effects();
                }
                LogEvent::Rolled { segment } => {
                    self.say(|| format!("rolled to segment {segment}"));
                    if matches!(self.checkpoint, Checkpoint::Idle) {
                        self.checkpoint = Checkpoint::Wanted;
                    }
                }
                LogEvent::FooterReady { result, .. } => self.footers_failed += u64::from(result.is_err()),
                LogEvent::ReadDone { ticket, result } => self.read_done(ticket, result)?,
                LogEvent::Fenced { fault } => {
                    self.say(|| format!("fenced: {fault}"));
                    let deserved = self.weather == Weather::Errors || self.disk.is_cut();
                    self.require(deserved, "only a failed write or flush fences the log")?;
                    self.fenced = true;
                    self.summary.fences += 1;
                }
                LogEvent::Unblocked => {}
            }
        }
        Ok(())
    }

    fn require(&self, kept: bool, promise: &str) -> Outcome<()> {
        if kept {
            Ok(())
        } else {
            Err(format!("promised: {promise}; appended {} written {} flushed {}", self.appended, self.written, self.flushed))
        }
    }

    /// Retention takes effect when its record is durable.
    fn apply_effects(&mut self) {
        while let Some((_, change)) = self.effects.pop_front_if(|(sequence, _)| *sequence <= self.flushed) {
            self.apply_to_log(&change);
        }
    }

    fn apply_to_log(&mut self, change: &Change) {
        let log = self.log.as_mut().expect("the log is open");
        match *change {
            Change::Start { partition, start } => {
                log.truncate_before(PartitionId(partition), Offset(start));
                if let Some(partition) = self.partitions.get_mut(&partition) {
                    partition.applied_start = partition.applied_start.max(start);
                }
            }
            Change::Drop { partition } => log.drop_partition(PartitionId(partition)),
            Change::End { .. } | Change::Set { .. } => {}
        }
    }

    fn remember(&mut self, sequence: u64, change: Change) -> Outcome<()> {
        self.require(sequence >= self.appended, "sequences only grow")?;
        self.appended = sequence;
        self.shard.apply(&change);
        if matches!(change, Change::Start { .. } | Change::Drop { .. }) {
            self.effects.push_back((sequence, change.clone()));
        }
        self.items.push(Item { sequence, change });
        Ok(())
    }

    /// A partition to write to or read from; made on first use.
    fn pick_partition(&mut self) -> u32 {
        let alive: Vec<u32> = self.partitions.keys().copied().filter(|id| !self.shard.dropped.contains(id)).collect();
        if alive.len() < 2 || (alive.len() < 6 && self.rng.one_in(20)) {
            let id = self.next_partition;
            self.next_partition += 1 + self.rng.below(2) as u32;
            let durability = match self.rng.below(8) {
                0 => Durability::Written,
                1 => Durability::Memory,
                _ => Durability::Durable,
            };
            self.partitions.insert(id, Partition::new(durability));
            return id;
        }
        // Some partitions are busier than others.
        let busiest = self.rng.index(alive.len()).min(self.rng.index(alive.len()));
        alive[busiest]
    }

    fn append_some(&mut self, count: usize) -> Outcome<()> {
        let mut partition = self.pick_partition();
        for _ in 0..count {
            let len = match self.rng.below(12) {
                0 => self.rng.range(8 << 10..u64::from(self.config.segment_bytes) / 3),
                1..4 => self.rng.range(1 << 10..8 << 10),
                _ => self.rng.range(1..1 << 10),
            };
            if !self.append_batch(partition, len as usize, None)? {
                return Ok(());
            }
            if self.rng.one_in(3) {
                partition = self.pick_partition();
            }
            if self.rng.one_in(6) {
                self.step()?;
            }
        }
        Ok(())
    }

    /// Appends one batch; `false` = refused for a good reason.
    fn append_batch(&mut self, id: u32, payload_bytes: usize, imitation: Option<u64>) -> Outcome<bool> {
        let record_count = 1 + self.rng.below(20);
        let timestamp_ms = self.now.wall_ms + self.rng.below(2_000) as i64 - 1_000;
        let mut bytes = vec![0; HEADER_BYTES + 16 + payload_bytes];
        bytes[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&timestamp_ms.to_le_bytes());
        bytes[HEADER_BYTES + 8..HEADER_BYTES + 16].copy_from_slice(&timestamp_ms.to_le_bytes());
        for word in bytes[HEADER_BYTES + 16..].chunks_mut(8) {
            word.copy_from_slice(&self.rng.next_u64().to_le_bytes()[..word.len()]);
        }
        if let Some(sequence) = imitation {
            self.imitate_groups(&mut bytes, sequence);
        }
        frame::seal(&mut bytes, Format::Native, record_count as u32, Identity::plain(PartitionId(id)));
        let append_time_ms = self.now.wall_ms;
        let partition = &self.partitions[&id];
        let (base, durability) = (partition.end, partition.durability);
        let mut patience = Patience::default();
        loop {
            let append = Append {
                frame: Frame::parse(&bytes).expect("sealed above"),
                partition: PartitionId(id),
                base_offset: Offset(base),
                record_count: record_count as u32,
                largest_timestamp_ms: timestamp_ms,
                append_time_ms,
                durability,
            };
            match self.log().append(append) {
                Ok(appended) => {
                    self.say(|| format!("partition {id}: {base} +{record_count}, {} bytes at {appended:?}", bytes.len()));
                    self.remember(appended.sequence, Change::End { partition: id, base, end: base + record_count })?;
                    let epoch = self.epoch;
                    let batch = Batch { bytes, record_count, timestamp_ms, append_time_ms, epoch, sequence: appended.sequence };
                    let partition = self.partitions.get_mut(&id).expect("picked above");
                    partition.batches.insert(base, batch);
                    partition.end = base + record_count;
                    self.summary.batches += 1;
                    return Ok(true);
                }
                Err(error) => {
                    if !self.wait_after(error, &mut patience)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn append_change(&mut self, change: Change) -> Outcome<bool> {
        let filler = if self.rng.one_in(4) { self.rng.index(500) } else { 0 };
        let body = state_body(&change, filler);
        let mut patience = Patience::default();
        loop {
            // Waiting on a full disk has truncated further meanwhile.
            if let Change::Start { partition, start } = change
                && self.shard.starts.get(&partition).is_some_and(|&further| further >= start)
            {
                return Ok(false);
            }
            let now = self.now;
            match self.log().append_state(&body, now) {
                Ok(appended) => {
                    self.say(|| format!("{change:?} at {appended:?}"));
                    self.remember(appended.sequence, change)?;
                    return Ok(true);
                }
                Err(error) => {
                    if !self.wait_after(error, &mut patience)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// After a refusal: `true` = try again. Refusals that pass must pass.
    fn wait_after(&mut self, error: AppendError, patience: &mut Patience) -> Outcome<bool> {
        match error {
            AppendError::Busy if patience.busy < PATIENCE_STEPS => {
                patience.busy += 1;
                self.disk.stall(false);
                if self.disk.is_cut() {
                    return Ok(false);
                }
                self.step()?;
                self.pass_time(20);
                Ok(!self.fenced)
            }
            AppendError::Busy => Err(format!("busy for {PATIENCE_STEPS} steps: {:?}", self.log().counters())),
            AppendError::DiskFull => {
                self.summary.disk_full += 1;
                let deserved = matches!(self.weather, Weather::Full | Weather::Errors) || self.disk.is_cut();
                self.require(deserved, "only a full disk refuses appends as full")?;
                self.disk.stall(false);
                if patience.full == 0 && !self.disk.is_cut() {
                    self.free_space()?;
                }
                // The log asks again by itself; how soon is its business.
                self.pass_time(10_000);
                self.step()?;
                patience.full += 1;
                if patience.full > 2_000 {
                    return Err("the disk has space again, and appends are still refused".to_owned());
                }
                Ok(!self.fenced && !self.disk.is_cut())
            }
            AppendError::TooLarge { .. } => Ok(false),
            AppendError::Fenced(_) => {
                self.require(self.fenced, "a fence is announced")?;
                Ok(false)
            }
        }
    }

    /// What an operator does on a full disk: deletes old records. That must be possible, and must help.
    fn free_space(&mut self) -> Outcome<()> {
        self.say(|| "disk full: truncating everything".to_owned());
        let all: Vec<(u32, u64)> = self.partitions.iter().map(|(&id, partition)| (id, partition.end)).collect();
        for (partition, start) in all {
            if self.shard.dropped.contains(&partition) || self.shard.starts.get(&partition).copied().unwrap_or(0) == start {
                continue;
            }
            let body = state_body(&Change::Start { partition, start }, 0);
            let now = self.now;
            for _ in 0..200 {
                match self.log().append_state(&body, now) {
                    Ok(appended) => {
                        self.remember(appended.sequence, Change::Start { partition, start })?;
                        break;
                    }
                    Err(AppendError::Busy | AppendError::DiskFull) if !self.disk.is_cut() => self.step()?,
                    Err(_) => return Ok(()),
                }
            }
        }
        if matches!(self.checkpoint, Checkpoint::Idle) {
            self.checkpoint = Checkpoint::Wanted;
        }
        for _ in 0..100 {
            self.go_on_with_checkpoint()?;
            self.step()?;
            if self.fenced || self.disk.is_cut() {
                break;
            }
        }
        if self.weather == Weather::Full && self.rng.one_in(4) {
            let more = u64::from(self.config.segment_bytes) * 2;
            self.disk.set_options(|options| options.capacity_bytes += more);
        }
        Ok(())
    }

    /// The pool is the directory's: another shard takes a file, writes its own header, and gives it back.
    fn lend_a_file(&mut self) -> Outcome<()> {
        let pool = self.disk.pool();
        if pool.is_empty() || self.disk.is_cut() {
            return Ok(());
        }
        let file = pool[self.rng.index(pool.len())];
        let header = SegmentHeader {
            magic: SEGMENT_MAGIC,
            version: FORMAT_VERSION,
            shard: self.config.shard.0 + 1,
            kind: 0,
            reserved: 0,
            number: 1 + self.rng.below(50),
            salt: self.rng.next_u64(),
            epoch: 1 + self.rng.below(5) as u32,
            segment_bytes: self.config.segment_bytes,
            first_sequence: 1 + self.rng.below(500),
            previous: EpochEnd::default(),
            checkpoint: LogPoint::default(),
            crc: 0,
        };
        // Faults of this write are the other shard's business.
        if self.disk.write_durable(file, 0, &header.to_block()).is_ok() {
            self.summary.files_lent += 1;
        }
        Ok(())
    }

    fn set_value(&mut self) -> Outcome<()> {
        let change = Change::Set { key: self.rng.below(24) as u8, value: self.rng.next_u64() };
        self.append_change(change).map(drop)
    }

    fn truncate(&mut self) -> Outcome<()> {
        let id = self.pick_partition();
        let partition = &self.partitions[&id];
        let bound = self.readable_end(partition);
        let from = self.shard.starts.get(&id).copied().unwrap_or(0);
        let starts: Vec<u64> = partition.batches.range(from..bound.max(from)).map(|(&base, _)| base).chain([bound]).collect();
        let start = starts[self.rng.index(starts.len())];
        if start <= from {
            return Ok(());
        }
        self.append_change(Change::Start { partition: id, start }).map(drop)
    }

    fn drop_partition(&mut self) -> Outcome<()> {
        let partition = self.pick_partition();
        if self.partitions[&partition].end == 0 {
            return Ok(());
        }
        self.append_change(Change::Drop { partition }).map(drop)
    }

    /// Nobody needs some records any more, and older ones are still needed. The newest stays.
    fn tell_dead(&mut self) -> Outcome<()> {
        let id = self.pick_partition();
        let partition = &self.partitions[&id];
        let below = self.readable_end(partition);
        let Some((&newest, _)) = partition.batches.range(..below).next_back() else { return Ok(()) };
        let mut from = self.shard.starts.get(&id).copied().unwrap_or(0);
        let most = 1 << self.rng.below(9);
        self.log().dead_begin(PartitionId(id));
        while from < newest {
            let start = from + self.rng.below(4);
            let end = (start + 1 + self.rng.below(most)).min(newest);
            self.log().dead_push(PartitionId(id), Offset(start), Offset(end));
            self.summary.dead_ranges += 1;
            if let Some(partition) = self.partitions.get_mut(&id) {
                partition.tell_dead(start, end);
            }
            from = end.max(start) + 1;
        }
        self.log().dead_end();
        Ok(())
    }

    /// Somebody wants again what isn't gone yet.
    fn revoke_dead(&mut self) {
        let (id, offset) = (self.pick_partition(), self.rng.below(200));
        self.log().dead_revoke(PartitionId(id), Offset(offset));
    }

    /// A batch whose payload imitates commit groups at block boundaries: no client must get away with that.
    fn imitate(&mut self) -> Outcome<()> {
        if self.rng.one_in(2) {
            self.settle("a log before an imitation")?;
        }
        if self.fenced || self.disk.is_cut() {
            return Ok(());
        }
        let partition = self.pick_partition();
        let blocks = 2 + self.rng.index(5);
        let sequence = self.appended;
        if self.append_batch(partition, blocks * BLOCK_BYTES, Some(sequence))? {
            self.summary.imitations += 1;
            self.step()?;
        }
        Ok(())
    }

    fn imitate_groups(&mut self, frame: &mut [u8], sequence: u64) {
        // The frame follows the 64 bytes of its own group's header.
        let mut at = BLOCK_BYTES - 64;
        while at + 64 <= frame.len() {
            let ahead = sequence + 2 + self.rng.below(8);
            let group = CommitHeader {
                magic: crate::log::format::COMMIT_MAGIC,
                crc: 0,
                shard: self.config.shard.0,
                flags: 1,
                epoch: self.epoch,
                sequence: ahead,
                bytes: 64,
                frame_count: 0,
                previous_crc: 0,
                reserved: 0,
                flushed_sequence: ahead - 1,
                time_ms: self.now.wall_ms,
                reserved2: 0,
            };
            frame[at..at + 64].copy_from_slice(&group.to_bytes(crc_seed(0)));
            at += BLOCK_BYTES;
        }
    }

    fn go_on_with_checkpoint(&mut self) -> Outcome<()> {
        if self.fenced || self.disk.is_cut() {
            return Ok(());
        }
        let now = self.now;
        let per_piece = 4;
        match self.checkpoint {
            Checkpoint::Idle => {
                if self.rng.one_in(60) {
                    self.checkpoint = Checkpoint::Wanted;
                }
            }
            Checkpoint::Wanted => {
                if let Ok(appended) = self.log().checkpoint_begin(now) {
                    self.say(|| format!("checkpoint begins at {appended:?}"));
                    self.appended = appended.sequence;
                    self.checkpoint = Checkpoint::Piece(0);
                }
            }
            Checkpoint::Piece(index) => {
                if let Some(body) = self.shard.piece(index, per_piece) {
                    if let Ok(appended) = self.log().append_state(&body, now) {
                        self.appended = appended.sequence;
                        self.checkpoint = Checkpoint::Piece(index + 1);
                    }
                } else if let Ok(appended) = self.log().checkpoint_end(now) {
                    self.say(|| format!("checkpoint ends at {appended:?}"));
                    self.appended = appended.sequence;
                    self.summary.checkpoints += 1;
                    self.checkpoint = Checkpoint::Idle;
                }
            }
        }
        Ok(())
    }

    /// Runs the log until the disk has nothing to do and everything appended is flushed.
    fn settle(&mut self, who: &str) -> Outcome<()> {
        self.disk.stall(false);
        for step in 0.. {
            if self.fenced || self.disk.is_cut() {
                return Ok(());
            }
            self.step()?;
            let quiet = self.disk.in_flight() == 0 && self.flushed >= self.appended && !self.log().has_backlog();
            if quiet {
                return Ok(());
            }
            if step > 50 {
                self.pass_time(200);
            }
            if step > PATIENCE_STEPS {
                let (in_flight, depth) = (self.disk.in_flight(), self.log().depth());
                let state = format!("appended {} written {} flushed {}", self.appended, self.written, self.flushed);
                return Err(format!("{who} doesn't settle: {in_flight} operations in flight, {depth:?} segments and groups, {state}"));
            }
        }
        Ok(())
    }

    /// Lets the log's timers run out: pumped all the time, or only when it has asked to be.
    fn idle(&mut self) -> Outcome<()> {
        let end_us = self.now.monotonic_us + 36_000;
        let only_when_asked = self.rng.one_in(2);
        let mut steps = 0;
        while self.now.monotonic_us < end_us && !self.fenced && !self.disk.is_cut() {
            let deadline_us = self.log().next_deadline_us().filter(|_| only_when_asked);
            let at_us = if only_when_asked { deadline_us.unwrap_or(end_us) } else { self.now.monotonic_us + 1_500 };
            let wait_us = at_us.min(end_us).saturating_sub(self.now.monotonic_us);
            steps += 1;
            self.require(steps < PATIENCE_STEPS, "a log doesn't ask for a pump again and again that changes nothing")?;
            self.pass_time(wait_us);
            self.step()?;
            while self.disk.in_flight() > 0 && !self.disk.is_cut() {
                self.step()?;
            }
        }
        Ok(())
    }

    // ----------------------------------------------------------------------------------------------- reads

    /// Offset below which readers may see `partition`.
    fn readable_end(&self, partition: &Partition) -> u64 {
        match partition.durability {
            Durability::Durable => partition.end_at(self.flushed),
            Durability::Written => partition.end_at(self.written),
            Durability::Memory => partition.end,
        }
    }

    fn pick_read(&mut self) -> Option<(u32, u64, u64)> {
        let id = self.pick_partition();
        let partition = &self.partitions[&id];
        let end = self.readable_end(partition);
        let start = self.shard.starts.get(&id).copied().unwrap_or(0).max(partition.applied_start);
        (start < end).then(|| (id, self.rng.range(start..end), end))
    }

    /// Finds runs, waiting for footers. `None` = the device (or a flipped bit) won't let us.
    fn locate(&mut self, id: u32, from: u64, below: u64, max_bytes: u32) -> Outcome<Option<(Vec<Extent>, u64)>> {
        for _ in 0..PATIENCE_STEPS {
            let failed = self.footers_failed;
            match self.log().locate(PartitionId(id), Offset(from), Offset(below), max_bytes) {
                Located::Runs { extents, next_offset, bytes } => {
                    let sum: u32 = extents.iter().map(|extent| extent.len).sum();
                    self.require(sum == bytes, "located bytes are those of the extents")?;
                    return Ok(Some((extents, next_offset.0)));
                }
                Located::Wait { .. } => {
                    self.disk.stall(false);
                    self.step()?;
                    if self.disk.is_cut()
                        || (self.footers_failed > failed && (self.rotten || self.tight || self.weather == Weather::Errors))
                    {
                        return Ok(None);
                    }
                }
            }
        }
        Err(format!("the footer for partition {id} offset {from} doesn't come"))
    }

    fn read_somewhere(&mut self) -> Outcome<()> {
        let Some((id, from, below)) = self.pick_read() else { return Ok(()) };
        let max_bytes = 1 << (8 + self.rng.below(10));
        let Some((extents, next_offset)) = self.locate(id, from, below, max_bytes)? else { return Ok(()) };
        self.require(next_offset > from, &format!("partition {id} has records at {from} below {below}, and they are found"))?;
        let read = ReadUnderWay { partition: id, from, next_offset, extents };
        self.read_hot(&read)?;
        self.start_read(read);
        Ok(())
    }

    /// A log that can't write any more still reads.
    fn read_fenced(&mut self) -> Outcome<()> {
        self.disk.stall(false);
        for _ in 0..4 {
            self.read_somewhere()?;
        }
        for step in 0.. {
            if self.reads.is_empty() || self.disk.is_cut() {
                break;
            }
            self.require(step < PATIENCE_STEPS, "reads of a fenced log come to an end")?;
            self.step()?;
        }
        self.summary.reads_fenced += 1;
        Ok(())
    }

    /// Compares what is in memory.
    fn read_hot(&mut self, read: &ReadUnderWay) -> Outcome<()> {
        let mut pieces = Vec::new();
        for extent in &read.extents {
            match self.log().hot_bytes(*extent) {
                Some(bytes) => pieces.push(bytes.to_vec()),
                None => return Ok(()),
            }
        }
        self.summary.reads_hot += 1;
        self.compare(read, pieces.iter().map(Vec::as_slice))
    }

    /// Starts a read from the device, unless some of it hasn't been written.
    fn start_read(&mut self, read: ReadUnderWay) -> Option<u64> {
        let partition = &self.partitions[&read.partition];
        let newest = partition.batches.range(..read.next_offset).next_back().map_or(0, |(_, batch)| batch.sequence);
        if newest > self.written {
            return None;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let extents = read.extents.clone();
        self.reads.insert(ticket, read);
        self.log().read(ticket, extents);
        Some(ticket)
    }

    fn read_done(&mut self, ticket: u64, result: Result<Vec<Slice>, ReadError>) -> Outcome<()> {
        let Some(read) = self.reads.remove(&ticket) else { return Err(format!("read {ticket} is answered twice")) };
        match &result {
            Ok(pieces) => {
                self.require(pieces.len() == read.extents.len(), "one piece per extent")?;
                let lens = pieces.iter().zip(&read.extents).all(|(piece, extent)| piece.len() == extent.len as usize);
                self.require(lens, "each piece is as long as its extent")?;
                self.summary.reads_cold += 1;
                self.compare(&read, pieces.iter().map(|piece| &piece[..]))?;
            }
            Err(ReadError::Device(_)) if self.weather == Weather::Errors || self.disk.is_cut() => {}
            Err(ReadError::Device(Fault::Os(libc::ENOMEM))) if self.tight => self.summary.reads_without_memory += 1,
            Err(ReadError::Corrupt { .. }) if self.rotten => self.summary.rot_reported_on_read += 1,
            Err(error) => return Err(format!("partition {} from {}: {error:?}", read.partition, read.from)),
        }
        self.reads_done.insert(ticket);
        Ok(())
    }

    /// Whole runs, one after the other, the first reaching `from`, the last ending at `next_offset`; dense but for what is dead.
    fn compare<'a>(&mut self, read: &ReadUnderWay, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome<()> {
        let Some(partition) = self.partitions.get(&read.partition) else { return Ok(()) };
        let mut next = None;
        let (mut compared, mut gaps) = (0, 0);
        for frame in pieces.flat_map(frames) {
            let frame = frame.map_err(|error| format!("partition {}: {error}", read.partition))?;
            let base = frame.base_offset().0;
            if frame.partition().0 != read.partition {
                return Err(format!("partition {} was read, partition {} came", read.partition, frame.partition()));
            }
            let expected = next.unwrap_or(read.from);
            let is_over_a_gap = base > expected && partition.may_be_gone(expected, base);
            gaps += u64::from(is_over_a_gap);
            if next.map_or(base > expected, |next| base != next) && !is_over_a_gap {
                return Err(format!("partition {} from {}: offset {base} follows {next:?}", read.partition, read.from));
            }
            partition.compare(&frame).map_err(|wrong| format!("partition {}: {wrong}", read.partition))?;
            next = Some(frame.end_offset().0);
            compared += 1;
        }
        self.summary.frames_compared += compared;
        self.summary.gaps_read += gaps;
        if next.is_some_and(|next| next != read.next_offset) {
            return Err(format!("partition {} from {}: ends at {next:?}, announced {}", read.partition, read.from, read.next_offset));
        }
        Ok(())
    }

    fn look_up_time(&mut self) -> Outcome<()> {
        let Some((id, at, below)) = self.pick_read() else { return Ok(()) };
        let partition = &self.partitions[&id];
        let found = partition.batches.range(..=at).next_back().filter(|(base, _)| !partition.dead.contains(base));
        let Some((_, batch)) = found else { return Ok(()) };
        let wanted = batch.timestamp_ms - self.rng.below(3) as i64;
        for _ in 0..PATIENCE_STEPS {
            let failed = self.footers_failed;
            match self.log().locate_time(PartitionId(id), wanted, Offset(below)) {
                LocatedTime::Wait { .. } => {
                    self.disk.stall(false);
                    self.step()?;
                    if self.disk.is_cut() || (self.footers_failed > failed && (self.tight || self.weather == Weather::Errors)) {
                        return Ok(());
                    }
                }
                LocatedTime::None => return Err(format!("partition {id}: no record of {wanted} or later, offset {at} is one")),
                LocatedTime::Run(extent) => return self.check_time(id, wanted, extent),
            }
        }
        Err(format!("the footer to find time {wanted} in partition {id} doesn't come"))
    }

    /// The run holds a record that young, and no earlier one does.
    fn check_time(&mut self, id: u32, wanted: i64, extent: Extent) -> Outcome<()> {
        let Some(bytes) = self.log().hot_bytes(extent).map(<[u8]>::to_vec) else { return Ok(()) };
        let partition = &self.partitions[&id];
        let bases: Vec<u64> = frames(&bytes).flatten().map(|frame| frame.base_offset().0).collect();
        let young = |base: &u64| partition.batches.get(base).is_some_and(|batch| batch.timestamp_ms >= wanted);
        let is_kept = |base: &u64| !partition.dead.contains(base);
        let Some(&first) = bases.first() else { return Err("a run without frames".to_owned()) };
        let earlier = partition
            .batches
            .range(partition.applied_start..first.max(partition.applied_start))
            .find(|(base, _)| young(base) && is_kept(base));
        if let Some((base, _)) = earlier {
            return Err(format!("partition {id}: offset {base} is as young as {wanted}, {first} was found"));
        }
        self.require(bases.iter().any(young), "the run found by time has such a record")
    }

    /// A slow reader: its extents stay readable however long it takes.
    fn lease_somewhere(&mut self) -> Outcome<()> {
        let Some((id, from, below)) = self.pick_read() else { return Ok(()) };
        let Some((extents, next_offset)) = self.locate(id, from, below, 16 << 10)? else { return Ok(()) };
        for extent in &extents {
            self.log().lease(extent.segment);
        }
        self.leases.push(ReadUnderWay { partition: id, from, next_offset, extents });
        if self.leases.len() > 3 {
            self.use_lease()?;
        }
        Ok(())
    }

    fn use_lease(&mut self) -> Outcome<()> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let read = self.leases.remove(0);
        self.read_hot(&read)?;
        let extents = read.extents.clone();
        let ticket = self.start_read(read);
        let mut steps = 0;
        while let Some(ticket) = ticket
            && self.reads.contains_key(&ticket)
            && !self.disk.is_cut()
            && !self.fenced
        {
            steps += 1;
            self.require(steps < PATIENCE_STEPS, "a read under a lease comes to an end")?;
            self.disk.stall(false);
            self.step()?;
        }
        for extent in &extents {
            self.log().release(extent.segment);
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------- crash and recovery

    fn crash(&mut self) {
        let power = self.rng.one_in(2);
        self.crash_by(power);
    }

    fn crash_by(&mut self, power: bool) {
        if let Some(log) = self.log.take() {
            let counters = log.counters();
            self.summary.segments_rolled += counters.segments_rolled;
            self.summary.segments_released += counters.segments_released;
            self.summary.segments_cleaned += counters.segments_cleaned;
            self.summary.bytes_dropped += counters.bytes_dropped;
        }
        self.say(|| format!("CRASH, power {power}; appended {} written {} flushed {}", self.appended, self.written, self.flushed));
        self.summary.crashes += 1;
        self.summary.power_cuts += u64::from(power);
        if power {
            self.disk.power_cut();
        } else {
            self.disk.process_crash();
        }
        // What was written and never flushed outlives a kill, but not a failed flush.
        if power || self.fenced {
            self.written = self.flushed;
        }
        self.reads.clear();
        self.reads_done.clear();
        self.leases.clear();
        self.effects.clear();
        self.checkpoint = Checkpoint::Idle;
        self.fenced = false;
        let downtime_us = self.rng.below(60_000_000);
        self.pass_time(downtime_us);
    }

    /// Opens the log after a crash: twice on a copy, cut some times, then for good.
    fn recover(&mut self, cuts: bool) -> Outcome<()> {
        self.disk.lock();
        if self.rng.one_in(8) {
            let damage = self.verify_offline()?;
            self.require(damage.is_empty(), &format!("a crash damages nothing; verify says {damage:?}"))?;
        }
        let refusals = self.refusals;
        let expected = if self.rng.one_in(2) { Some(self.recover_copy_twice()?) } else { None };
        let mut comparable = true;
        let cuts = if cuts { 1 + self.rng.below(2) } else { 0 };
        for _ in 0..cuts {
            // The same recovery uncut tells how many operations it takes.
            let copy = self.disk.fork();
            let before = copy.operations();
            let Some(_) = self.open_copy(copy.clone())? else { continue };
            let operations = copy.operations() - before;
            self.disk.cut_after(1 + self.rng.below(operations));
            let opened = self.open_on(self.disk.clone())?;
            self.require(opened.is_none() && self.disk.is_cut(), "recovery is deterministic")?;
            self.summary.recoveries_cut += 1;
            let power = self.rng.one_in(2);
            // What only the device's cache had may be gone now.
            comparable &= !power || self.disk.is_stable();
            self.crash_by(power);
            self.disk.lock();
        }
        let found = self.open_whole()?;
        if let Some(expected) = expected
            && comparable
            && self.refusals == refusals
        {
            self.summary.recoveries_compared += 1;
            let got = (found, self.shard.clone());
            if got != expected {
                return Err(format!("recovered to {}, after cuts; uncut to {}; {}", got.0, expected.0, got.1.difference(&expected.1)));
            }
        }
        Ok(())
    }

    /// Recovers a copy of the disk, kills it, recovers it again; both must come to the same end.
    fn recover_copy_twice(&mut self) -> Outcome<(u64, MiniShard)> {
        let copy = self.disk.fork();
        let mut ends = Vec::new();
        for _ in 0..2 {
            for _ in 0..50 {
                if let Some((log, rebuild, _)) = self.open_copy(copy.clone())? {
                    ends.push((log.flushed(), rebuild.shard));
                    break;
                }
            }
            // What recovery has answered for is on stable media.
            if self.rng.one_in(2) {
                copy.power_cut();
            } else {
                copy.process_crash();
            }
        }
        if ends.len() == 2 && ends[0] != ends[1] {
            let difference = ends[1].1.difference(&ends[0].1);
            return Err(format!("recovered to {}, and a second time to {}; {difference}", ends[0].0, ends[1].0));
        }
        ends.pop().ok_or_else(|| "recovery fails 50 times".to_owned())
    }

    /// Opens a log on a copy of the disk, in memory of its own.
    fn open_copy(&mut self, copy: SimDisk) -> Outcome<Option<(Log, Rebuild, RecoveryReport)>> {
        let arena = mem::replace(&mut self.arena, self.copy_arena.clone());
        let opened = self.open_on(copy);
        self.arena = arena;
        opened
    }

    /// One attempt. `None` = the disk refused, as it was told to.
    fn open_on(&mut self, mut disk: SimDisk) -> Outcome<Option<(Log, Rebuild, RecoveryReport)>> {
        let mut rebuild = Rebuild::default();
        let config = LogConfig { entropy: self.rng.next_u64(), ..self.config.clone() };
        let files = match disk.list() {
            Ok(files) => files,
            Err(_) if disk.is_cut() => return Ok(None),
            Err(error) => return Err(format!("list: {error}")),
        };
        match Log::open(config, self.arena.clone(), &mut disk, &files, &mut rebuild, self.now) {
            Ok(opened) => Ok(Some((opened.log, rebuild, opened.report))),
            Err(OpenError::Io(_)) if disk.is_cut() => Ok(None),
            Err(OpenError::Io(_)) if self.weather == Weather::Errors => {
                // The broker gives up; whoever starts it again is another process, and what a failed flush
                // was to save may be gone.
                disk.process_crash();
                self.refusals += 1;
                self.written = self.flushed;
                Ok(None)
            }
            Err(OpenError::Io(error)) if self.weather == Weather::Full && error.raw_os_error() == Some(libc::ENOSPC) => {
                disk.set_options(|options| options.capacity_bytes += 1 << 20);
                Ok(None)
            }
            Err(error) => Err(format!("the log can't be opened: {error}")),
        }
    }

    /// Opens the log and compares what it holds; returns the last group found.
    fn open_whole(&mut self) -> Outcome<u64> {
        for _ in 0..50 {
            let Some((log, rebuild, report)) = self.open_on(self.disk.clone())? else { continue };
            let found = log.flushed();
            self.adopt(log, &report)?;
            self.verify(rebuild, &report)?;
            return Ok(found);
        }
        Err("recovery fails 50 times".to_owned())
    }

    /// Takes an opened log into use; the directory's other files go to the pool.
    fn adopt(&mut self, log: Log, report: &RecoveryReport) -> Outcome<()> {
        self.say(|| format!("opened: sequence {}, {report:?}", log.flushed()));
        self.summary.recoveries += 1;
        self.last_report = report.clone();
        self.summary.torn_tails_cut += u64::from(report.torn_tail.is_some());
        self.summary.stale_groups_skipped += report.stale_groups;
        self.summary.valid_groups_after_bad += report.groups_after_bad;
        let mut used = log.live_files();
        used.sort_unstable();
        let all = self.disk.list().map_err(|error| format!("list: {error}"))?;
        let missing = used.iter().find(|file| !all.iter().any(|other| other.file == **file));
        self.require(missing.is_none() && used.windows(2).all(|pair| pair[0] != pair[1]), "the log's files exist, one segment each")?;
        let free: Vec<FileId> = all.iter().map(|file| file.file).filter(|file| used.binary_search(file).is_err()).collect();
        self.disk.set_pool(free);
        // A disk that lied about every flush may have forgotten every epoch too.
        let is_new = log.epoch() > self.epoch || self.weather == Weather::Lies;
        self.require(is_new, "every opening makes an epoch of its own")?;
        self.epoch = log.epoch();
        self.log = Some(log);
        Ok(())
    }

    /// What was found is a prefix of what was appended, with everything acknowledged in it.
    fn verify(&mut self, rebuild: Rebuild, report: &RecoveryReport) -> Outcome<()> {
        if let Some(wrong) = rebuild.wrong {
            return Err(format!("replay: {wrong}"));
        }
        let found = self.log().flushed();
        let floor = self.written.max(self.flushed);
        if found < floor {
            return Err(format!("acknowledged up to group {floor}, recovered up to {found}: {report:?}"));
        }
        if found > self.appended {
            self.require(self.items.last().is_none_or(|item| item.sequence <= found), "sequences only grow")?;
        }
        let batches = self.partitions.values().map(|partition| partition.batches.len()).sum::<usize>();
        self.items.retain(|item| item.sequence <= found);
        self.partitions.values_mut().for_each(|partition| partition.cut(found));
        self.summary.batches_lost += (batches - self.partitions.values().map(|partition| partition.batches.len()).sum::<usize>()) as u64;
        let mut expected = MiniShard::default();
        self.items.iter().for_each(|item| expected.apply(&item.change));
        if rebuild.shard != expected {
            let difference = rebuild.shard.difference(&expected);
            return Err(format!("recovered up to group {found}, and its state isn't what was appended: {difference}"));
        }
        self.shard = expected;
        (self.appended, self.written, self.flushed) = (found, found, found);
        for (&partition, &start) in &self.shard.starts.clone() {
            self.apply_to_log(&Change::Start { partition, start });
        }
        for &partition in &self.shard.dropped.clone() {
            self.apply_to_log(&Change::Drop { partition });
        }
        self.take_events()?;
        // Now and then nobody reads: the log dies again before it has done anything for its old segments.
        if self.rng.one_in(4) && !self.rotten { Ok(()) } else { self.read_everything() }
    }

    /// Every record alive is there.
    fn read_everything(&mut self) -> Outcome<()> {
        let ids: Vec<u32> = self.partitions.keys().copied().filter(|id| !self.shard.dropped.contains(id)).collect();
        for id in ids {
            let mut next = self.shard.starts.get(&id).copied().unwrap_or(0);
            let end = self.partitions[&id].end;
            while next < end {
                let Some((extents, next_offset)) = self.locate(id, next, end, 64 << 10)? else {
                    // Reported: the device won't give the footer.
                    self.summary.rot_reported_on_read += u64::from(self.rotten);
                    break;
                };
                self.require(next_offset > next, &format!("partition {id} holds its records: {next} of {end} is missing"))?;
                let read = ReadUnderWay { partition: id, from: next, next_offset, extents };
                let Some(ticket) = self.start_read(read) else { return Err("recovered records aren't written".to_owned()) };
                for step in 0.. {
                    if self.reads_done.remove(&ticket) {
                        break;
                    }
                    if self.fenced || self.disk.is_cut() {
                        return Ok(());
                    }
                    self.require(step < PATIENCE_STEPS, "reads come to an end")?;
                    self.step()?;
                }
                next = next_offset;
            }
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------- endings

    fn end(&mut self) -> Outcome<()> {
        let ending = match self.rng.below(3) {
            0 => Ending::Stop,
            1 => Ending::Rot,
            _ => Ending::RotInLastGroup,
        };
        self.say(|| format!("ending: {ending:?}"));
        match ending {
            Ending::Stop => self.stop_cleanly()?,
            Ending::Rot | Ending::RotInLastGroup => self.flip_a_bit(ending)?,
        }
        let files_recycled = self.disk.counters().recycled_files;
        self.summary.files_recycled = files_recycled;
        self.summary.torn_writes = self.disk.counters().torn_writes;
        self.crash();
        let held = self.arena.used_bytes();
        if held > 0 {
            return Err(format!("{held} bytes of the arena are still in use when the log is gone"));
        }
        Ok(())
    }

    fn stop_cleanly(&mut self) -> Outcome<()> {
        self.settle("a log before its stop")?;
        let now = self.now;
        self.log().stop(now);
        let mut steps = 0;
        while !self.log().is_stopped() {
            self.step()?;
            self.pass_time(100);
            steps += 1;
            self.require(steps < PATIENCE_STEPS, "a stop comes to an end")?;
        }
        let appended = self.appended;
        self.summary.clean_stops += 1;
        self.crash();
        self.recover(false)?;
        self.require(self.last_report.was_clean && self.last_report.torn_tail.is_none(), "a clean stop is seen as one")?;
        self.require(
            self.items.last().is_none_or(|last| last.sequence <= self.flushed) && self.flushed >= appended,
            "a clean stop loses nothing",
        )
    }

    /// Segment number → file, as the headers on disk say.
    fn segment_file(&self, number: u64, files: &[FileId]) -> Option<FileId> {
        let mut block = [0; BLOCK_BYTES];
        files.iter().copied().find(|&file| {
            self.disk.peek(file, 0, &mut block);
            SegmentHeader::read(&block).is_some_and(|header| header.number == number)
        })
    }

    fn flip_a_bit(&mut self, ending: Ending) -> Outcome<()> {
        if ending == Ending::RotInLastGroup {
            // So that there is a last group, and it isn't a mark.
            let partition = self.pick_partition();
            self.append_batch(partition, 700, None)?;
        }
        self.settle("a log before rot")?;
        self.idle()?;
        self.settle("a log before rot")?;
        let files = self.log().live_files();
        let target = match ending {
            Ending::RotInLastGroup => self.last_frame(&files),
            _ => {
                let file = files[self.rng.index(files.len())];
                let lengths = self.disk.list().map_err(|error| error.to_string())?;
                let bytes = lengths.iter().find(|other| other.file == file).map_or(0, |file| file.written_bytes);
                Some((file, self.rng.below(bytes)))
            }
        };
        let Some((file, position)) = target else { return Ok(()) };
        let bit = self.rng.below(8) as u8;
        self.say(|| format!("flipping bit {bit} of byte {position} in {file}"));
        self.crash();
        // What the log itself wrote a moment ago, with no mark behind it yet, may be taken for a torn tail.
        let last = self.items.last().map_or(0, |item| item.sequence);
        (self.written, self.flushed) = (last.min(self.flushed), last.min(self.flushed));
        self.disk.lock();
        self.disk.rot(file, position, bit);
        self.rotten = true;
        let before = self.summary.rot_reported_on_read;
        let damage = self.verify_offline()?;
        for _ in 0..2 {
            let opened = self.open_on(self.disk.clone());
            match opened {
                Ok(Some((log, rebuild, report))) => {
                    self.adopt(log, &report)?;
                    self.verify(rebuild, &report)
                        .map_err(|wrong| format!("after bit {bit} of byte {position} in {file} flipped: {wrong}"))?;
                    self.crash();
                    self.disk.lock();
                }
                Ok(None) => return Err("the disk refuses in fair weather".to_owned()),
                Err(_) => {
                    self.summary.rot_reported_on_open += 1;
                    self.require(!damage.is_empty(), "what refuses to open is damaged offline too")?;
                    return self.repair();
                }
            }
        }
        let without_effect = self.summary.rot_reported_on_read == before;
        self.summary.rot_without_effect += u64::from(without_effect);
        self.require(without_effect || !damage.is_empty(), "what can't be read is damaged offline too")
    }

    /// What `ringmain log verify` says of the disk now.
    fn verify_offline(&mut self) -> Outcome<Vec<Damage>> {
        let mut copy = self.disk.fork();
        copy.set_options(|options| *options = SimOptions::default());
        let files = copy.list().map_err(|error| error.to_string())?;
        let report = verify_volume(&mut copy, &files).map_err(|error| error.to_string())?;
        self.summary.verified_offline += 1;
        // The other shard's log is only a stand-in.
        Ok(report.damage.into_iter().filter(|damage| damage.place.is_none_or(|place| place.shard == self.config.shard.0)).collect())
    }

    /// `ringmain log repair`: refuses, or leaves a log that holds a prefix and opens without further ado.
    fn repair(&mut self) -> Outcome<()> {
        (self.written, self.flushed) = (0, 0);
        self.config.accept_loss = true;
        let opened = self.open_on(self.disk.clone());
        self.config.accept_loss = false;
        let Ok(Some((log, ..))) = opened else {
            self.summary.repairs_refused += 1;
            return Ok(());
        };
        drop(log);
        self.summary.repairs += 1;
        self.crash();
        self.open_whole().map(drop).map_err(|wrong| format!("after a repair: {wrong}"))
    }

    /// A byte that some checksum covers, in the last batch appended or in its group's header.
    fn last_frame(&mut self, files: &[FileId]) -> Option<(FileId, u64)> {
        let (id, base) = self.items.iter().rev().find_map(|item| match item.change {
            Change::End { partition, base, .. } if !self.shard.dropped.contains(&partition) => Some((partition, base)),
            _ => None,
        })?;
        let end = self.partitions[&id].end;
        let Ok(Some((extents, _))) = self.locate(id, base, end, 1 << 20) else { return None };
        let extent = *extents.last()?;
        let file = self.segment_file(extent.segment, files)?;
        let group = extent.position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32;
        let position = match self.rng.below(3) {
            0 => u64::from(group) + self.rng.below(64),
            1 => u64::from(extent.position) + self.rng.below(64),
            _ => u64::from(extent.position) + self.rng.below(u64::from(extent.len)),
        };
        Some((file, position))
    }

    /// The device has lied: records may be gone, and that may even be noticed. None may be invented.
    fn end_with_lies(&mut self) -> Outcome<()> {
        self.summary.lies += 1;
        self.disk.lock();
        self.rotten = true;
        match self.open_on(self.disk.clone()) {
            Ok(Some((log, _, report))) => {
                (self.appended, self.written, self.flushed) = (log.flushed(), log.flushed(), log.flushed());
                self.adopt(log, &report)?;
                let ids: Vec<u32> = self.partitions.keys().copied().filter(|id| !self.shard.dropped.contains(id)).collect();
                for id in ids {
                    let (start, end) = (self.shard.starts.get(&id).copied().unwrap_or(0), self.partitions[&id].end);
                    if let Some((extents, next_offset)) = self.locate(id, start, end, 1 << 20)? {
                        self.start_read(ReadUnderWay { partition: id, from: end, next_offset, extents });
                    }
                }
                for _ in 0..200 {
                    self.step()?;
                }
                Ok(())
            }
            Ok(None) => Err("the disk refuses in fair weather".to_owned()),
            Err(_) => Ok(()),
        }
    }
}

/// The kinds of mistake that can be planted, with their names on a command line.
pub const PLANTS: [(&str, Plant); 5] = [
    ("ack-before-flush", Plant::AckBeforeFlush),
    ("salt-unchecked", Plant::SaltUnchecked),
    ("no-mark-group", Plant::NoMarkGroup),
    ("recycle-early", Plant::RecycleEarly),
    ("sequences-across-epochs", Plant::SequencesAcrossEpochs),
];
