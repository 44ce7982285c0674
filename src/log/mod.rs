//! One shard's log, sans-IO: everything that must survive, in commit order.
//!
//! *Appended* frames lie in the open group of the current chunk. A group is *sealed* (commit header,
//! checksum), *submitted* (one write) and *flushed*; groups become flushed strictly in sequence order, and
//! only then does [`Log::durable`] move past them.
//!
//! ```text
//! append ─▶ chunk ─▶ seal ─▶ Operation::Write ─▶ Completion ─▶ LogEvent::Flushed(sequence)
//!             └────────── tail cache ──▶ hot reads;  footers ─▶ cold reads
//! ```

mod append;
mod cleaner;
mod commit;
mod dead;
pub mod format;
mod index;
mod read;
mod recovery;
mod segment;
mod spans;
pub mod tool;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use ringmain_wire::control::Durability;
use ringmain_wire::{Frame, FrameHeader, Offset, PartitionId, ShardId};

use crate::device::{Arena, Completion, Fault, FileId, Operation, Outcome, Slice, Token};
use crate::request::{Extent, Now};

pub use read::Near;
pub use recovery::{OpenError, Opened, RecoveryReport};

use append::{OpenGroup, TailChunk};
use cleaner::Cleaner;
use commit::CommitQueue;
use dead::DeadRanges;
use format::LogPoint;
use index::{FooterCache, PartitionPlaces, Place, RunIndex};
use read::Reads;
use segment::{Next, PendingSwap, Segment};

/// Bounds and sizes of one shard's log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Whose log.
    pub shard: ShardId,
    /// Length of a segment file.
    pub segment_bytes: u32,
    /// A new file is asked for with at least so many written blocks.
    pub acquire_bytes: u64,
    /// Written blocks are kept so far ahead of the writer …
    pub ahead_bytes: u64,
    /// … and made in steps of this.
    pub extend_step_bytes: u64,
    /// Length of an append buffer.
    pub chunk_bytes: u32,
    /// Written groups not yet flushed, at most.
    pub commits_in_flight_max: usize,
    /// Memory of the tail cache, chunks in flight included.
    pub tail_cache_bytes: usize,
    /// A run in the index is cut after so many bytes.
    pub run_bytes: u32,
    /// Memory of cached footers.
    pub footer_cache_bytes: usize,
    /// Runs of the active segment held in memory; the segment is rolled early when they are used up.
    pub active_runs_max: usize,
    /// An empty mark group is written after so long without a commit.
    pub mark_after_us: u64,
    /// `written` and `memory` groups are flushed after so long …
    pub flush_after_us: u64,
    /// … or so many bytes.
    pub flush_after_bytes: u64,
    /// Memory of reads from the device that haven't been sent yet; half of it may hold spans for later readers.
    pub read_bytes_max: usize,
    /// A sealed segment that mixes partitions is rewritten when it is older than this.
    pub clean_mixed_after_ms: i64,
    /// The cleaner looks for work so often.
    pub clean_check_us: u64,
    /// Bytes the cleaner copies per second, at most.
    pub clean_bytes_per_second: u64,
    /// Dead frames inside a run are left out from so many bytes on: each such place costs an entry in the footer and its directory.
    pub hole_bytes_min: u32,
    /// Ranges of dead records remembered, 16 bytes each; who has more tells them in turns.
    pub dead_ranges_max: usize,
    /// Random; seeds the salts of new segments.
    pub entropy: u64,
    /// `ringmain log repair`: a damaged group is cut off with everything behind it, acknowledged or not.
    pub accept_loss: bool,
    /// A deliberate mistake, for the simulator to catch.
    pub plant: Option<Plant>,
}

impl LogConfig {
    /// Sizes of a log with `memory_bytes` for its chunks, reads and footers.
    pub fn new(shard: ShardId, segment_bytes: u32, memory_bytes: usize) -> LogConfig {
        // Two chunks in flight, one being filled and one to read from are the least that works.
        let chunk_bytes = (memory_bytes / 16).next_power_of_two().clamp(64 << 10, 2 << 20) as u32;
        LogConfig {
            shard,
            segment_bytes,
            acquire_bytes: 8 << 20,
            ahead_bytes: 64 << 20,
            extend_step_bytes: 16 << 20,
            chunk_bytes,
            commits_in_flight_max: 3,
            tail_cache_bytes: (memory_bytes * 5 / 8).max(4 * chunk_bytes as usize),
            run_bytes: 64 << 10,
            footer_cache_bytes: memory_bytes / 16,
            active_runs_max: (memory_bytes / 16 / size_of::<format::Run>()).clamp(1 << 10, 400_000),
            mark_after_us: 10_000,
            flush_after_us: 10_000,
            flush_after_bytes: 4 << 20,
            read_bytes_max: (memory_bytes / 4).max(256 << 10),
            clean_mixed_after_ms: 600_000,
            clean_check_us: 1_000_000,
            clean_bytes_per_second: 64 << 20,
            hole_bytes_min: 4 << 10,
            dead_ranges_max: 65_536,
            entropy: 0,
            accept_loss: false,
            plant: None,
        }
    }
}

/// Deliberate mistakes: the simulator must catch each of them (see `crate::simulation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// Report a group as flushed when it is submitted.
    AckBeforeFlush,
    /// Don't seed group checksums with the segment's salt.
    SaltUnchecked,
    /// Never write mark groups.
    NoMarkGroup,
    /// Release a segment before the record that retires it is durable.
    RecycleEarly,
    /// Judge groups of older epochs by their sequence.
    SequencesAcrossEpochs,
}

/// One frame to append: the broker half is stamped while it is copied.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// Its own broker half doesn't matter.
    pub frame: Frame<'a>,
    /// Whose.
    pub partition: PartitionId,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Records in it.
    pub record_count: u32,
    /// Largest record time, ms since the Unix epoch.
    pub largest_timestamp_ms: i64,
    /// ms since the Unix epoch.
    pub append_time_ms: i64,
    /// A group with one durable frame is written durably.
    pub durability: Durability,
}

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The commit group it is in.
    pub sequence: u64,
    /// Its place.
    pub extent: Extent,
}

/// Why a frame can't be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Every chunk is in flight, or the next segment isn't there yet: try again after progress.
    Busy,
    /// No space for another segment; resumes by itself.
    DiskFull,
    /// More than a segment can hold.
    TooLarge { limit_bytes: u32 },
    /// A write or flush failed: no more writes until the next start.
    Fenced(Fault),
}

/// What the log tells its shard.
#[derive(Debug)]
pub enum LogEvent {
    /// Every group up to this sequence is written (full length).
    Written { sequence: u64 },
    /// Every group up to this sequence is on stable media.
    Flushed { sequence: u64 },
    /// A new segment was opened: time for a checkpoint.
    Rolled { segment: u64 },
    /// A footer that `locate` waited for is there (or failed): locate again.
    FooterReady { segment: u64, result: Result<(), Fault> },
    /// A cold read is done: one piece per extent, verified.
    ReadDone { ticket: u64, result: Result<Vec<Slice>, ReadError> },
    /// A write or flush failed.
    Fenced { fault: Fault },
    /// Bytes are free again after `AppendError::Busy` or `DiskFull`.
    Unblocked,
}

/// Why stored bytes can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The device refused.
    Device(Fault),
    /// A checksum doesn't match: where.
    Corrupt { file: FileId, segment: u64, position: u32, what: String },
    /// The segment is gone (retention).
    Gone,
}

/// Where records are.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// Whole runs in order, first one containing (or following) the offset asked for; `next_offset` is the offset
    /// after the last of them. Empty = nothing at or after the offset.
    Runs { extents: Vec<Extent>, next_offset: Offset, bytes: u32 },
    /// A footer must be read first; `LogEvent::FooterReady` tells when.
    Wait { segment: u64 },
}

/// What recovery tells its shard, in log order.
pub trait Replay {
    /// One frame of the log. `body` is there for state frames (partition 0) only.
    fn frame(&mut self, header: &FrameHeader, largest_timestamp_ms: i64, body: &[u8]);
}

/// A run found by time.
#[derive(Debug, PartialEq, Eq)]
pub enum LocatedTime {
    /// The first run with a record that young.
    Run(Extent),
    /// No record is that young.
    None,
    /// A footer must be read first.
    Wait { segment: u64 },
}

/// Plain counters since start; only grow.
#[derive(Clone, Debug, Default)]
pub struct LogCounters {
    /// Groups written and flushed, marks included.
    pub commits: u64,
    /// Bytes of groups, padding included.
    pub commit_bytes: u64,
    /// Sum of the times from submission to completion of groups, µs.
    pub commit_us: u64,
    /// Groups by time from submission to completion: bucket i counts those below 2^i µs.
    pub commit_us_buckets: [u64; 24],
    /// All bytes written by this log (zero-fill is counted by the janitor).
    pub bytes_written: u64,
    /// All bytes read from the device.
    pub bytes_read: u64,
    /// Segments opened for appending.
    pub segments_rolled: u64,
    /// Segments given back to the pool.
    pub segments_released: u64,
    /// Segments the cleaner has rewritten.
    pub segments_cleaned: u64,
    /// Bytes the cleaner has copied.
    pub bytes_cleaned: u64,
    /// Bytes of frames that were left out because their records are dead.
    pub bytes_dropped: u64,
    /// Reads answered from the tail cache.
    pub reads_hot: u64,
    /// Reads answered from the device.
    pub reads_cold: u64,
    /// Frames found damaged on reading.
    pub corrupt_frames: u64,
}

/// What an operation in flight was for.
#[derive(Debug)]
enum Pending {
    /// A commit-queue entry (group or segment header).
    Commit { entry: u64, submitted_us: u64 },
    /// Everything done up to this entry becomes stable.
    Flush { entry: u64 },
    /// The next segment's file.
    Acquire,
    /// More written blocks for the active segment or the next one.
    Extend { file: FileId },
    /// Part of a footer, or the seal block, of a segment.
    Seal { segment: u64, point: LogPoint },
    /// Where the checkpoint is, in the active segment.
    Note { point: LogPoint },
    /// A span for cold reads, and its length.
    Read { span: u64, bytes: usize },
    /// A footer.
    Footer { segment: u64 },
    /// The cleaner's.
    Clean,
    /// Back to the pool.
    Release,
}

/// One shard's log.
pub struct Log {
    config: LogConfig,
    arena: Arena,
    epoch: u32,
    now: Now,
    segments: BTreeMap<u64, Segment>,
    active: u64,
    /// Where the next group goes in the active segment; a block boundary.
    position: u32,
    next: Next,
    next_number: u64,
    salts: u64,
    index: RunIndex,
    chunks: VecDeque<TailChunk>,
    group: Option<OpenGroup>,
    /// Sequence of the last group begun.
    sequence: u64,
    previous_crc: u32,
    commits: CommitQueue,
    /// `flushed_sequence` of the last group sealed.
    flushed_on_disk: u64,
    /// Sequence of the last group that wasn't a mark.
    last_frames_sequence: u64,
    last_sealed_us: u64,
    partitions: Vec<PartitionPlaces>,
    footers: FooterCache,
    reads: Reads,
    cleaner: Cleaner,
    dead: DeadRanges,
    checkpoint: LogPoint,
    /// The newest checkpoint that recovery is sure to find.
    anchored: LogPoint,
    /// Segment whose block 1 is being written to say where the checkpoint is.
    note: Option<u64>,
    /// First sequence in the active segment.
    active_first_sequence: u64,
    checkpoint_begun: LogPoint,
    /// Begin of a checkpoint whose end was appended, and the sequence of that end.
    checkpoint_ending: Option<(LogPoint, u64)>,
    /// Swaps appended and not flushed yet, in order.
    swaps: VecDeque<PendingSwap>,
    /// Replaced or emptied, but still being read from.
    dying: BTreeMap<u64, Segment>,
    operations: VecDeque<(Token, Operation)>,
    pending: HashMap<u64, Pending>,
    next_token: u64,
    events: VecDeque<LogEvent>,
    blocked: bool,
    disk_full: bool,
    /// A state record found no room: a file from the reserve is asked for.
    state_starved: bool,
    /// The last file acquired came from the reserve, …
    reserve_next: bool,
    /// … and has become the active segment.
    reserve_active: bool,
    /// When to ask for a file again after the disk was full.
    retry_us: u64,
    fence: Option<Fault>,
    stop: Stop,
    counters: LogCounters,
}

/// How far a clean stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    Flushing,
    Sealing,
    Done,
}

impl Log {
    /// Stamped into frames as leader epoch; grows with every start.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Files this shard keeps; the directory's others belong to the pool.
    pub fn live_files(&self) -> Vec<FileId> {
        let next = match self.next {
            Next::Ready(file) | Next::Extending(file) => Some(file.file),
            Next::None | Next::Acquiring => None,
        };
        self.segments.values().map(|s| s.file).chain(next).collect()
    }

    /// Every group up to this sequence is written.
    pub fn written(&self) -> u64 {
        self.commits.written()
    }

    /// Every group up to this sequence is on stable media.
    pub fn flushed(&self) -> u64 {
        self.commits.flushed()
    }

    /// Counters since start.
    pub fn counters(&self) -> &LogCounters {
        &self.counters
    }

    /// Segments alive, and groups in flight.
    pub fn depth(&self) -> (usize, usize) {
        (self.segments.len(), self.commits.in_flight())
    }

    /// Why the log refuses writes.
    pub fn fence(&self) -> Option<Fault> {
        self.fence
    }

    /// Bytes of frames stored for `partition` from `offset` on. In the segment where the offset is, records count as equally long.
    pub fn bytes_from(&self, partition: PartitionId, offset: Offset) -> u64 {
        let Some(places) = self.partitions.get(partition.0 as usize) else { return 0 };
        let of = |place: &Place| {
            let (count, left) = (place.end_offset - place.base_offset, place.end_offset - offset.0.max(place.base_offset));
            (u128::from(place.bytes) * u128::from(left) / u128::from(count.max(1))) as u64
        };
        places.places.range(places.first_after(offset.0)..).map(of).sum()
    }

    /// Bytes of frames stored for `partition`.
    pub fn partition_bytes(&self, partition: PartitionId) -> u64 {
        self.partitions.get(partition.0 as usize).map_or(0, |p| p.bytes)
    }

    /// The next operation for the disk.
    pub fn poll_operation(&mut self) -> Option<(Token, Operation)> {
        self.operations.pop_front()
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<LogEvent> {
        self.events.pop_front()
    }

    fn submit(&mut self, pending: Pending, operation: Operation) {
        self.next_token += 1;
        match &operation {
            Operation::Write { data, .. } => self.counters.bytes_written += data.len() as u64,
            Operation::Read { into, .. } => self.counters.bytes_read += into.len() as u64,
            _ => {}
        }
        self.pending.insert(self.next_token, pending);
        self.operations.push_back((Token(self.next_token), operation));
    }

    /// Seals and submits what policy allows, writes marks, runs timers and one step of background work.
    pub fn pump(&mut self, now: Now) {
        self.now = now;
        self.pump_group();
        self.pump_flush();
        self.pump_mark();
        self.pump_segments();
        self.apply_swaps(self.flushed());
        // A checkpoint just complete travels with the next seal block.
        self.pump_checkpoint();
        self.pump_seals();
        self.pump_reads();
        self.pump_cleaner();
        self.pump_stop();
    }

    /// Takes the result of an operation.
    pub fn complete(&mut self, completion: Completion, now: Now) {
        self.now = now;
        let Some(pending) = self.pending.remove(&completion.token.0) else {
            debug_assert!(false, "completion of an unknown operation");
            return;
        };
        match (pending, completion.outcome) {
            (Pending::Commit { entry, submitted_us }, Outcome::Written(result)) => self.commit_done(entry, submitted_us, result),
            (Pending::Flush { entry }, Outcome::Flushed(result)) => self.flush_done(entry, result),
            (Pending::Acquire, Outcome::Acquired(result)) => self.acquired(result),
            (Pending::Extend { file }, Outcome::Extended(result)) => self.extended(file, result),
            (Pending::Seal { segment, point }, Outcome::Written(result)) => self.seal_written(segment, point, result),
            (Pending::Note { point }, Outcome::Written(result)) => self.note_written(point, result),
            (Pending::Read { span, bytes }, Outcome::Read(result)) => self.span_read(span, bytes, result),
            (Pending::Footer { segment }, Outcome::Read(result)) => self.footer_read(segment, result),
            (Pending::Clean, outcome) => self.cleaner_done(outcome),
            (Pending::Release, Outcome::Released) => {}
            (pending, outcome) => debug_assert!(false, "{pending:?} completed as {outcome:?}"),
        }
    }

    /// When `pump` must be called again at the latest, µs; `None` = after the next append or completion.
    pub fn next_deadline_us(&self) -> Option<u64> {
        let commits = [self.group_deadline_us(), self.flush_deadline_us(), self.mark_deadline_us()];
        let others = [self.retry_deadline_us(), self.cleaner_deadline_us(), self.reads.deadline_us()];
        commits.into_iter().chain(others).flatten().min()
    }

    /// Background work, or a read for which there is memory again, wants another `pump` soon.
    pub fn has_backlog(&self) -> bool {
        (self.fence.is_none() && self.cleaner.wants_step()) || self.has_memory_again()
    }

    /// Stops writing for ever: nothing is acknowledged from here on.
    fn fence_off(&mut self, fault: Fault) {
        if self.fence.is_none() {
            self.fence = Some(fault);
            self.events.push_back(LogEvent::Fenced { fault });
        }
    }

    fn unblock(&mut self) {
        if self.blocked {
            self.blocked = false;
            self.events.push_back(LogEvent::Unblocked);
        }
    }

    fn places(&mut self, partition: PartitionId) -> &mut PartitionPlaces {
        let at = partition.0 as usize;
        if self.partitions.len() <= at {
            self.partitions.resize_with(at + 1, PartitionPlaces::default);
        }
        &mut self.partitions[at]
    }

    /// Begins a clean stop: everything appended is flushed, the active segment sealed. Append nothing after.
    pub fn stop(&mut self, now: Now) {
        if self.stop == Stop::No {
            self.stop = Stop::Flushing;
        }
        self.pump(now);
    }

    /// Everything is on stable media and sealed (or the log is fenced and can't).
    pub fn is_stopped(&self) -> bool {
        self.stop == Stop::Done || (self.stop != Stop::No && self.fence.is_some())
    }

    fn pump_stop(&mut self) {
        if self.fence.is_some() {
            return;
        }
        if self.stop == Stop::Flushing
            && self.group.is_none()
            && self.commits.in_flight() == 0
            && self.flushed() == self.sequence
            && self.checkpoint_ending.is_none()
        {
            self.stop = Stop::Sealing;
            self.seal_active();
        }
        if self.stop == Stop::Sealing && self.segments.values().all(Segment::is_sealed) {
            self.stop = Stop::Done;
        }
    }
}
