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

pub mod format;
mod cleaner;
mod index;
mod recovery;
mod segment;
mod writer;

use ringmain_wire::control::Durability;
use ringmain_wire::{FrameHeader, Offset, PartitionId, ShardId};

use crate::device::{Fault, FileId, Slice};
use crate::request::Extent;

/// Bounds and sizes of one shard's log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Whose log.
    pub shard: ShardId,
    /// Length of a segment file.
    pub segment_bytes: u32,
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
    /// A deliberate mistake, for the simulator to catch.
    pub plant: Option<Plant>,
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
    /// The whole frame, padding excluded.
    pub bytes: &'a [u8],
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
