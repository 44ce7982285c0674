//! The layout of a segment file, drawn here and asserted below.
//!
//! ```text
//! block 0        SegmentHeader   (and a copy at 2048) whose segment, salt, where the epoch before ended, last checkpoint
//! block 1        SealBlock       written once, when the segment is full: end of data, footer
//! block 2 …      log segment:    groups, each at a block boundary: CommitHeader, frames, zeros
//!                store segment:  frames, packed
//! then           Footer          directory entries, then runs; at a block boundary
//! ```
//! Every checksum of a group, seal block and footer is seeded by the segment's random salt, which is never
//! sent to anyone: neither a recycled block nor a payload that imitates a header can pass.

use ringmain_wire::control::{ControlError, fixed_bytes, read_fixed};
use rkyv::{Archive, Deserialize, Serialize};

use crate::device::BLOCK_BYTES;

/// Where groups (or the frames of a store segment) begin.
pub const DATA_START: u32 = 2 * BLOCK_BYTES as u32;
/// Version of this layout.
pub const FORMAT_VERSION: u16 = 1;
/// Size of a commit header.
pub const COMMIT_HEADER_BYTES: usize = 64;
/// `RMSEGMNT`.
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"RMSEGMNT");
/// `RMSEALED`.
pub const SEAL_MAGIC: u64 = u64::from_le_bytes(*b"RMSEALED");
/// `RMCG`.
pub const COMMIT_MAGIC: u32 = u32::from_le_bytes(*b"RMCG");
/// [`ringmain_wire::frame::ProducerHalf::flags`] of the log's own state records.
pub const LOG_RECORD_FLAG: u8 = 0x80;

/// A point in a shard's log between two groups.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPoint {
    /// Segment number; 0 = no such point.
    pub segment: u64,
    /// Byte position of the group.
    pub position: u32,
    /// Sequence of the group at this point.
    pub sequence: u64,
}

/// Where an epoch ended.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochEnd {
    /// The epoch; 0 = there was none.
    pub epoch: u32,
    /// Its last segment with a valid group (or its first segment, if it had none).
    pub segment: u64,
    /// The byte after its last group.
    pub position: u32,
    /// Its last valid sequence.
    pub sequence: u64,
    /// Checksum of its last group.
    pub group_crc: u32,
}

/// Log segments take appends; store segments are made by the cleaner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Groups in commit order.
    Log = 0,
    /// Frames by partition and offset.
    Store = 1,
}

/// Block 0.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: u64,
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// Whose.
    pub shard: u16,
    /// A [`SegmentKind`].
    pub kind: u16,
    /// 0.
    pub reserved: u16,
    /// Number within the shard: grows with every segment of either kind, never reused.
    pub number: u64,
    /// Seeds the checksums inside; random.
    pub salt: u64,
    /// The epoch that writes it.
    pub epoch: u32,
    /// Bytes the segment may take.
    pub segment_bytes: u32,
    /// Sequence of its first group.
    pub first_sequence: u64,
    /// In the first segment of an epoch: where the epoch before ended.
    pub previous: EpochEnd,
    /// Begin of the last complete checkpoint when this was written.
    pub checkpoint: LogPoint,
    /// CRC32C of the bytes before.
    pub crc: u32,
}

/// Block 1. See also [`SealBlock::note`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealBlock {
    /// [`SEAL_MAGIC`].
    pub magic: u64,
    /// As in the header.
    pub number: u64,
    /// The byte after the last group or frame.
    pub end_position: u32,
    /// Where the footer begins.
    pub footer_position: u32,
    /// Its length, padding excluded.
    pub footer_len: u32,
    /// Its salted checksum.
    pub footer_crc: u32,
    /// Directory entries at its start.
    pub directory_count: u32,
    /// Salted checksum of the directory alone, for readers that need no more.
    pub directory_crc: u32,
    /// Checksum of the last group (chain).
    pub group_crc: u32,
    /// Sequence of the last group.
    pub last_sequence: u64,
    /// Begin of the last complete checkpoint when this was written.
    pub checkpoint: LogPoint,
    /// Salted CRC32C of the bytes before.
    pub crc: u32,
}

/// Opens every group.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// [`COMMIT_MAGIC`].
    pub magic: u32,
    /// Salted CRC32C of every frame header of the group, then of this header's bytes 8..64.
    pub crc: u32,
    /// Whose.
    pub shard: u16,
    /// 1 = mark: no frames, only knowledge.
    pub flags: u16,
    /// The epoch.
    pub epoch: u32,
    /// Grows by 1 with every group of the shard.
    pub sequence: u64,
    /// Bytes of header and frames, the padding to the block excluded.
    pub bytes: u32,
    /// Frames.
    pub frame_count: u32,
    /// `crc` of the group before.
    pub previous_crc: u32,
    /// 0.
    pub reserved: u32,
    /// Highest sequence known to be on stable media when this was sealed.
    pub flushed_sequence: u64,
    /// When it was sealed, ms since the Unix epoch.
    pub time_ms: i64,
    /// 0.
    pub reserved2: u64,
}

/// A partition's part of a segment.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Whose.
    pub partition: u32,
    /// Index of its first run in the footer.
    pub first_run: u32,
    /// Its runs.
    pub run_count: u32,
    /// Bytes of its frames.
    pub bytes: u64,
    /// First offset.
    pub base_offset: u64,
    /// Offset after the last.
    pub end_offset: u64,
    /// Largest record time, ms.
    pub largest_timestamp_ms: i64,
    /// Largest append time, ms.
    pub append_time_ms: i64,
}

/// Adjacent frames of one partition in a group.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Largest record time, ms.
    pub largest_timestamp_ms: i64,
    /// Append time of its last frame, ms.
    pub append_time_ms: i64,
    /// Byte position in the segment.
    pub position: u32,
    /// Bytes, frame padding included.
    pub len: u32,
    /// Records.
    pub record_count: u32,
}

const _: () = assert!(size_of::<ArchivedCommitHeader>() == COMMIT_HEADER_BYTES);
const _: () = assert!(size_of::<ArchivedRun>() == RUN_BYTES);
const _: () = assert!(size_of::<ArchivedDirectoryEntry>() == DIRECTORY_ENTRY_BYTES);
const _: () = assert!(size_of::<ArchivedSegmentHeader>() == SEGMENT_HEADER_BYTES);
const _: () = assert!(size_of::<ArchivedSealBlock>() == SEAL_BLOCK_BYTES);
const _: () = assert!(SEGMENT_HEADER_BYTES <= BLOCK_BYTES && SEAL_BLOCK_BYTES <= 512);

/// Size of a run in a footer.
pub const RUN_BYTES: usize = 36;
/// Size of a directory entry in a footer.
pub const DIRECTORY_ENTRY_BYTES: usize = 52;
/// Block 0 holds the header twice, in different sectors.
const HEADER_COPY_AT: usize = 2048;
const SEGMENT_HEADER_BYTES: usize = 8 + 8 + 8 + 8 + 8 + 8 + 28 + 20 + 4;
const SEAL_BLOCK_BYTES: usize = 16 + 28 + 8 + 20 + 4;

/// `bytes` rounded up to a block.
pub const fn block_up(bytes: u32) -> u32 {
    let block = BLOCK_BYTES as u32;
    bytes.div_ceil(block) * block
}

/// The seed of a segment's checksums.
pub fn seed(salt: u64) -> u32 {
    crc32c::crc32c(&salt.to_le_bytes())
}

impl SegmentHeader {
    /// Block 0.
    pub fn to_block(mut self) -> [u8; BLOCK_BYTES] {
        self.crc = 0;
        let mut block = [0; BLOCK_BYTES];
        let bytes: [u8; SEGMENT_HEADER_BYTES] = fixed_bytes(&self);
        block[..SEGMENT_HEADER_BYTES].copy_from_slice(&bytes);
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        block[SEGMENT_HEADER_BYTES - 4..SEGMENT_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        block.copy_within(..SEGMENT_HEADER_BYTES, HEADER_COPY_AT);
        block
    }

    /// Reads block 0; `None` = no segment (free, torn, or of another layout). A damaged header is read from its copy:
    /// without it nothing in the segment can be judged, and the last one would be missed by nobody.
    pub fn read(block: &[u8]) -> Option<SegmentHeader> {
        SegmentHeader::read_one(block).or_else(|| SegmentHeader::read_one(block.get(HEADER_COPY_AT..)?))
    }

    /// Whether the header itself is good, or was never written: a crash may leave only the copy.
    pub fn is_whole(block: &[u8]) -> bool {
        SegmentHeader::read_one(block).is_some() || block[..SEGMENT_HEADER_BYTES].iter().all(|&byte| byte == 0)
    }

    fn read_one(bytes: &[u8]) -> Option<SegmentHeader> {
        let header: SegmentHeader = read_fixed(bytes).ok()?;
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        (header.magic == SEGMENT_MAGIC && header.crc == crc && header.version == FORMAT_VERSION).then_some(header)
    }

    /// Log or store.
    pub fn segment_kind(&self) -> SegmentKind {
        if self.kind == SegmentKind::Store as u16 { SegmentKind::Store } else { SegmentKind::Log }
    }
}

impl SealBlock {
    /// What block 1 of an unsealed segment may hold: no end, no footer, only where the last checkpoint is. Both
    /// lie in one sector, so one of the two is always there when the seal block takes its place.
    pub fn note(number: u64, checkpoint: LogPoint) -> SealBlock {
        SealBlock {
            magic: SEAL_MAGIC,
            number,
            end_position: 0,
            footer_position: 0,
            footer_len: 0,
            footer_crc: 0,
            directory_count: 0,
            directory_crc: 0,
            group_crc: 0,
            last_sequence: 0,
            checkpoint,
            crc: 0,
        }
    }

    /// Only a [`SealBlock::note`].
    pub fn is_note(&self) -> bool {
        self.end_position == 0
    }

    /// Block 1.
    pub fn to_block(mut self, seed: u32) -> [u8; BLOCK_BYTES] {
        self.crc = 0;
        let mut block = [0; BLOCK_BYTES];
        let bytes: [u8; SEAL_BLOCK_BYTES] = fixed_bytes(&self);
        block[..SEAL_BLOCK_BYTES].copy_from_slice(&bytes);
        let crc = crc32c::crc32c_append(seed, &bytes[..SEAL_BLOCK_BYTES - 4]);
        block[SEAL_BLOCK_BYTES - 4..SEAL_BLOCK_BYTES].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads block 1; `None` = not sealed under this salt.
    pub fn read(block: &[u8], seed: u32, number: u64) -> Option<SealBlock> {
        let seal: SealBlock = read_fixed(block).ok()?;
        let crc = crc32c::crc32c_append(seed, &block[..SEAL_BLOCK_BYTES - 4]);
        (seal.magic == SEAL_MAGIC && seal.crc == crc && seal.number == number).then_some(seal)
    }
}

impl CommitHeader {
    /// The 64 bytes, its checksum computed; `frames_crc`: salted checksum of the frame headers.
    pub fn to_bytes(mut self, frames_crc: u32) -> [u8; COMMIT_HEADER_BYTES] {
        self.crc = 0;
        let mut bytes: [u8; COMMIT_HEADER_BYTES] = fixed_bytes(&self);
        let crc = crc32c::crc32c_append(frames_crc, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`; the checksum is judged by the caller, who has the frames.
    pub fn read(bytes: &[u8]) -> Result<CommitHeader, ControlError> {
        let header: CommitHeader = read_fixed(bytes)?;
        if header.magic == COMMIT_MAGIC { Ok(header) } else { Err(ControlError::Malformed) }
    }

    /// Bytes of the group on disk.
    pub fn padded_bytes(&self) -> u32 {
        block_up(self.bytes)
    }
}

impl Run {
    /// The offset after its last record.
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.record_count)
    }
    /// The bytes in a footer.
    pub fn to_bytes(&self) -> [u8; RUN_BYTES] {
        fixed_bytes(self)
    }
}

impl DirectoryEntry {
    /// The bytes in a footer.
    pub fn to_bytes(&self) -> [u8; DIRECTORY_ENTRY_BYTES] {
        fixed_bytes(self)
    }
}

/// The directory of a footer; `None` = impossible.
pub fn read_directory(footer: &[u8], directory_count: u32) -> Option<Vec<DirectoryEntry>> {
    let bytes = footer.get(..directory_count as usize * DIRECTORY_ENTRY_BYTES)?;
    bytes.chunks_exact(DIRECTORY_ENTRY_BYTES).map(|entry| read_fixed(entry).ok()).collect()
}

/// The runs of a footer; `None` = impossible.
pub fn read_runs(footer: &[u8], directory_count: u32) -> Option<Vec<Run>> {
    let bytes = footer.get(directory_count as usize * DIRECTORY_ENTRY_BYTES..)?;
    bytes.chunks_exact(RUN_BYTES).map(|run| read_fixed(run).ok()).collect()
}

/// The log's own state records: bodies of state frames flagged [`LOG_RECORD_FLAG`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// A checkpoint begins: the segments that were alive, besides the one this record is in.
    CheckpointBegin {
        /// Numbers.
        live_segments: Vec<u64>,
    },
    /// The checkpoint that began there is complete.
    CheckpointEnd {
        /// Segment of its begin.
        segment: u64,
        /// Position of the group it began in.
        position: u32,
        /// Sequence of that group.
        sequence: u64,
    },
    /// Store segments take the place of others, atomically.
    Swap {
        /// Dead from here on.
        sources: Vec<u64>,
        /// Alive from here on; empty = the sources held nothing alive.
        stores: Vec<u64>,
    },
}
