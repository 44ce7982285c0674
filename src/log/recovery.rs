//! From segment files to a log: find the last checkpoint, replay, judge the tail, open a new epoch.
//!
//! Blocking, before anything is answered. It changes nothing on disk until the header of the new epoch's
//! first segment is written; recovery cut anywhere before that, or done twice, comes to the same end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::{fmt, io};

use ringmain_wire::control::read_open;
use ringmain_wire::{Frame, FrameHeader, PartitionId, ShardId};

use crate::device::{Arena, BLOCK_BYTES, Buffer, FileId, SegmentFile, Volume};
use crate::request::Now;

use super::commit::CommitQueue;
use super::format::{
    COMMIT_HEADER_BYTES, CommitHeader, DATA_START, DIRECTORY_ENTRY_BYTES, EpochEnd, LOG_RECORD_FLAG, LogPoint, LogRecord, Run, SealBlock,
    SegmentHeader, SegmentKind, block_up, read_directory, seed,
};
use super::index::{Footer, FooterCache, PartitionPlaces, Place, RunIndex};
use super::segment::{Next, Segment, State};
use super::{Log, LogConfig, LogCounters, Plant, Replay, Stop};

/// A log and how it was found.
pub struct Opened {
    /// Ready to append.
    pub log: Log,
    /// For the operator.
    pub report: RecoveryReport,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The epoch opened.
    pub epoch: u32,
    /// Segments alive.
    pub segments: usize,
    /// Bytes read from the device.
    pub bytes_read: u64,
    /// Frames replayed after the checkpoint.
    pub frames_replayed: u64,
    /// Where an unfinished group was cut off: file, segment, position.
    pub torn_tail: Option<(FileId, u64, u32)>,
    /// The last segment is sealed, and nothing was cut off: after a clean stop, now and then after a crash.
    pub was_clean: bool,
    /// Blocks that look like groups but belong to an earlier life of the file.
    pub stale_groups: u64,
    /// Valid groups found behind the first bad one (written, never acknowledged).
    pub groups_after_bad: u64,
}

/// Why a log can't be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The device refused.
    Io(io::Error),
    /// A group that was on stable media is damaged: nothing is cut, nothing is served.
    Rot {
        /// The file.
        file: FileId,
        /// Its segment.
        segment: u64,
        /// Byte position of the first bad group.
        position: u32,
        /// What is wrong there.
        what: String,
    },
    /// A segment that must be there isn't.
    MissingSegment {
        /// Its number.
        number: u64,
    },
    /// Not enough memory for a read buffer.
    Memory,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io(error) => write!(f, "reading the log failed: {error}"),
            OpenError::Rot { file, segment, position, what } => write!(
                f,
                "the log is damaged at byte {position} of {file} (segment {segment}): {what}. It was on stable media, so this is no torn tail; nothing was changed. \
                 Restore the file, or accept the loss with 'ringmain log repair'"
            ),
            OpenError::MissingSegment { number } => {
                write!(
                    f,
                    "segment {number} is missing: a file was deleted from the data directory. Restore it, or accept the loss with 'ringmain log repair'"
                )
            }
            OpenError::Memory => f.write_str("not enough memory to read the log; raise --memory"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> OpenError {
        OpenError::Io(error)
    }
}

/// A segment file with a valid header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub file: SegmentFile,
    pub header: SegmentHeader,
    pub seal: Option<SealBlock>,
    /// Where it says the last checkpoint is.
    pub checkpoint: LogPoint,
    /// The header could be read without its copy.
    pub header_whole: bool,
}

/// A group whose checksums hold.
pub(super) struct Group {
    pub header: CommitHeader,
    pub position: u32,
}

/// Reads one segment file through a window.
pub(super) struct SegmentReader<'a> {
    volume: &'a mut dyn Volume,
    arena: &'a Arena,
    file: SegmentFile,
    window: Option<Buffer>,
    start: u64,
    len: usize,
    pub bytes_read: u64,
}

const WINDOW_BYTES: usize = 1 << 20;

impl<'a> SegmentReader<'a> {
    pub fn new(volume: &'a mut dyn Volume, arena: &'a Arena, file: SegmentFile) -> SegmentReader<'a> {
        SegmentReader { volume, arena, file, window: None, start: 0, len: 0, bytes_read: 0 }
    }

    /// `len` bytes at `position`; `None` = beyond the end of the file.
    pub fn bytes(&mut self, position: u32, len: usize) -> Result<Option<&[u8]>, OpenError> {
        let position = u64::from(position);
        if position + len as u64 > self.file.written_bytes {
            return Ok(None);
        }
        if position < self.start || position + len as u64 > self.start + self.len as u64 {
            let start = position / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let needed = block_up((position - start) as u32 + len as u32) as usize;
            let wanted = needed.max(WINDOW_BYTES).min((self.file.written_bytes - start) as usize);
            let wanted = wanted / BLOCK_BYTES * BLOCK_BYTES;
            if wanted < needed {
                return Ok(None);
            }
            if self.window.as_ref().is_none_or(|w| w.len() < wanted) {
                self.window = None;
                self.window = Some(self.arena.allocate(wanted).map_err(|_| OpenError::Memory)?);
            }
            let Some(window) = self.window.as_mut() else { return Err(OpenError::Memory) };
            // A cut in the middle of a read leaves no window behind.
            self.len = 0;
            self.volume.read(self.file.file, start, &mut window[..wanted])?;
            self.bytes_read += wanted as u64;
            (self.start, self.len) = (start, wanted);
        }
        let from = (position - self.start) as usize;
        Ok(self.window.as_ref().and_then(|w| w.get(from..from + len)))
    }

    /// The group at `position`, if every checksum of it holds under `header`'s salt; else why not.
    pub fn group(&mut self, position: u32, header: &SegmentHeader, any_epoch: bool) -> Result<Result<Group, String>, OpenError> {
        let Some(bytes) = self.bytes(position, COMMIT_HEADER_BYTES)? else { return Ok(Err("the file ends here".into())) };
        let Ok(commit) = CommitHeader::read(bytes) else { return Ok(Err("no group begins here".into())) };
        if commit.shard != header.shard || (commit.epoch != header.epoch && !any_epoch) || (commit.bytes as usize) < COMMIT_HEADER_BYTES {
            return Ok(Err("a group of another shard or epoch".into()));
        }
        let Some(bytes) = self.bytes(position, commit.bytes as usize)? else { return Ok(Err("the group is longer than the file".into())) };
        let mut crc = seed(header.salt);
        let mut at = COMMIT_HEADER_BYTES;
        for _ in 0..commit.frame_count {
            let Ok(frame) = Frame::parse(&bytes[at.min(bytes.len())..]) else {
                return Ok(Err(format!("no frame at byte {at} of the group")));
            };
            crc = crc32c::crc32c_append(crc, &frame.header.to_bytes());
            if let Err(error) = frame.verify_body() {
                return Ok(Err(format!("frame at byte {at} of the group: {error}")));
            }
            at += frame.padded_bytes();
        }
        crc = crc32c::crc32c_append(crc, &bytes[8..COMMIT_HEADER_BYTES]);
        if at != commit.bytes as usize || crc != commit.crc {
            return Ok(Err(format!("group checksum {crc:#010x}, its header says {:#010x}", commit.crc)));
        }
        Ok(Ok(Group { header: commit, position }))
    }

    /// Whether the footer that the seal block names is as it was written.
    pub fn footer_is_whole(&mut self, found: &Found) -> Result<bool, OpenError> {
        let Some(seal) = found.seal else { return Ok(true) };
        let bytes = self.bytes(seal.footer_position, seal.footer_len as usize)?.unwrap_or_default();
        Ok(crc32c::crc32c_append(seed(found.header.salt), bytes) == seal.footer_crc && Footer::read(bytes, seal.directory_count).is_some())
    }

    /// The frames of a group just returned by `group`.
    pub fn group_bytes(&mut self, group: &Group) -> Result<&[u8], OpenError> {
        Ok(self.bytes(group.position, group.header.bytes as usize)?.and_then(|b| b.get(COMMIT_HEADER_BYTES..)).unwrap_or_default())
    }
}

/// Reads headers and seal blocks of the shard's files.
pub(super) fn find(
    volume: &mut dyn Volume,
    arena: &Arena,
    files: &[SegmentFile],
    shard: ShardId,
    bytes_read: &mut u64,
) -> Result<Vec<Found>, OpenError> {
    let mut found = Vec::new();
    let mut buffer = arena.allocate(DATA_START as usize).map_err(|_| OpenError::Memory)?;
    for &file in files.iter().filter(|f| f.written_bytes >= u64::from(DATA_START)) {
        volume.read(file.file, 0, &mut buffer)?;
        *bytes_read += u64::from(DATA_START);
        if let Some(header) = SegmentHeader::read(&buffer[..BLOCK_BYTES])
            && header.shard == shard.0
        {
            let block = SealBlock::read(&buffer[BLOCK_BYTES..], seed(header.salt), header.number);
            let checkpoint = block.map(|b| b.checkpoint).filter(|c| c.sequence > header.checkpoint.sequence).unwrap_or(header.checkpoint);
            found.push(Found {
                file,
                header,
                seal: block.filter(|b| !b.is_note()),
                checkpoint,
                header_whole: SegmentHeader::is_whole(&buffer),
            });
        }
    }
    found.sort_by_key(|f| f.header.number);
    Ok(found)
}

/// Log segments that belong to an epoch's dead end: behind the point where the next epoch says it ended.
pub(super) fn dead_numbers(found: &[Found]) -> BTreeSet<u64> {
    // Numbers grow with time, so these are the segments between that point and the epoch's first. After a repair there
    // may be whole epochs among them.
    let gaps: Vec<(u64, u64)> =
        found.iter().filter(|f| f.header.previous.epoch > 0).map(|f| (f.header.previous.segment, f.header.number)).collect();
    let dead = |f: &&Found| {
        let number = f.header.number;
        f.header.segment_kind() == SegmentKind::Log && gaps.iter().any(|&(end, first)| end < number && number < first)
    };
    found.iter().filter(dead).map(|f| f.header.number).collect()
}

/// Where a scan stands: the last good group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Good {
    pub sequence: u64,
    pub crc: u32,
    /// Nothing has been scanned yet, so the first group's `previous_crc` can't be judged.
    unknown: bool,
    pub segment: u64,
    pub position: u32,
}

/// What the files of a shard hold, before anything is changed.
pub(super) struct Survey {
    pub report: RecoveryReport,
    /// Every segment file of the shard, dead ones too, in order of number.
    pub found: Vec<Found>,
    /// Numbers of the segments that count.
    pub live: BTreeSet<u64>,
    /// The lowest number that names nothing, and never has as far as anybody remembers.
    pub next_number: u64,
    pub good: Good,
    /// Of live segments without a footer: runs, end of groups, last sequence, last checksum.
    pub indexes: HashMap<u64, (RunIndex, u32, u64, u32)>,
    pub checkpoint: LogPoint,
    pub newest_epoch: u32,
}

/// Finds the shard's segments, replays them from the last complete checkpoint, judges the tail. Changes nothing.
pub(super) fn survey(
    config: &LogConfig,
    arena: &Arena,
    volume: &mut dyn Volume,
    files: &[SegmentFile],
    replay: &mut dyn Replay,
) -> Result<Survey, OpenError> {
    let mut report = RecoveryReport::default();
    let found = find(volume, arena, files, config.shard, &mut report.bytes_read)?;
    let dead = dead_numbers(&found);
    let log_segments: Vec<Found> =
        found.iter().copied().filter(|f| f.header.segment_kind() == SegmentKind::Log && !dead.contains(&f.header.number)).collect();
    let checkpoint = found.iter().map(|f| f.checkpoint).filter(|p| p.segment > 0).max_by_key(|p| p.sequence).unwrap_or_default();
    let newest_epoch = found.iter().map(|f| f.header.epoch).max().unwrap_or(0);

    let mut scan = Scan {
        config,
        arena,
        report,
        good: Good { unknown: true, ..Good::default() },
        declared: BTreeSet::new(),
        swapped_in: BTreeSet::new(),
        swapped_out: BTreeSet::new(),
        checkpoint,
        checkpoint_whole: checkpoint.segment == 0,
        scanned: BTreeSet::new(),
        cut: false,
        indexes: HashMap::new(),
    };
    if checkpoint.segment > 0 && !log_segments.iter().any(|f| f.header.number == checkpoint.segment) {
        return Err(OpenError::MissingSegment { number: checkpoint.segment });
    }
    let chain: Vec<Found> = log_segments.iter().copied().filter(|f| f.header.number >= checkpoint.segment).collect();
    // What a dead process wrote may be in the device's cache only: readable now, and gone with the next power cut.
    for segment in &chain {
        volume.flush(segment.file.file)?;
    }
    for (at, segment) in chain.iter().enumerate() {
        scan.segment(volume, segment, &chain[at + 1..], checkpoint, replay)?;
        if scan.cut {
            break;
        }
    }
    // Cut off inside its last checkpoint, a log would come up without most of its state.
    if !scan.checkpoint_whole
        && let Some(segment) = chain.first()
    {
        let what = "the last checkpoint is damaged".into();
        return Err(OpenError::Rot { file: segment.file.file, segment: checkpoint.segment, position: checkpoint.position, what });
    }
    let Scan { mut report, good, declared, swapped_in, swapped_out, scanned, indexes, .. } = scan;
    report.was_clean = chain.last().is_some_and(|f| f.seal.is_some()) && report.torn_tail.is_none();

    // A segment opened and left without a valid group lies behind the end that the next epoch will name.
    let scanned: BTreeSet<u64> = scanned.into_iter().filter(|&number| number <= good.segment).collect();
    let live: BTreeSet<u64> = declared.iter().chain(&swapped_in).chain(&scanned).copied().filter(|n| !swapped_out.contains(n)).collect();
    // A file that another shard has overwritten meanwhile can't tell its old number any more, but a record may.
    let named = declared.iter().chain(&swapped_in).chain(&swapped_out).max().copied().unwrap_or(0);
    let next_number = found.last().map_or(0, |f| f.header.number).max(named) + 1;
    Ok(Survey { report, found, live, next_number, good, indexes, checkpoint, newest_epoch })
}

struct Scan<'a> {
    config: &'a LogConfig,
    arena: &'a Arena,
    report: RecoveryReport,
    good: Good,
    declared: BTreeSet<u64>,
    swapped_in: BTreeSet<u64>,
    swapped_out: BTreeSet<u64>,
    checkpoint: LogPoint,
    /// Its end has been replayed.
    checkpoint_whole: bool,
    scanned: BTreeSet<u64>,
    /// The end was found: segments behind it are dead.
    cut: bool,
    /// Of scanned segments without a footer: runs, and where their groups end.
    indexes: HashMap<u64, (RunIndex, u32, u64, u32)>,
}

impl Log {
    /// Opens the log of `config.shard` among `files` (all segment files of the directory), or a new one.
    ///
    /// Calls `replay` with every frame after the last complete checkpoint, in log order. Reads at most the
    /// headers, the directories, and the segments since that checkpoint. When it returns, a new epoch's
    /// first segment is on stable media.
    pub fn open(
        config: LogConfig,
        arena: Arena,
        volume: &mut dyn Volume,
        files: &[SegmentFile],
        replay: &mut dyn Replay,
        now: Now,
    ) -> Result<Opened, OpenError> {
        let Survey { mut report, found, live, next_number, good, mut indexes, checkpoint, newest_epoch } =
            survey(&config, &arena, volume, files, replay)?;
        let by_number: HashMap<u64, &Found> = found.iter().map(|f| (f.header.number, f)).collect();
        let mut log = Log {
            epoch: newest_epoch + 1,
            now,
            segments: BTreeMap::new(),
            active: 0,
            position: DATA_START,
            next: Next::None,
            next_number,
            salts: 0,
            index: RunIndex::default(),
            chunks: VecDeque::new(),
            group: None,
            sequence: good.sequence,
            previous_crc: good.crc,
            commits: CommitQueue::starting_at(good.sequence),
            flushed_on_disk: good.sequence,
            last_frames_sequence: 0,
            last_sealed_us: now.monotonic_us,
            partitions: Vec::new(),
            footers: FooterCache::new(config.footer_cache_bytes),
            reads: Default::default(),
            cleaner: Default::default(),
            dead: Default::default(),
            checkpoint,
            anchored: checkpoint,
            note: None,
            active_first_sequence: 0,
            checkpoint_begun: LogPoint::default(),
            checkpoint_ending: None,
            swaps: VecDeque::new(),
            dying: BTreeMap::new(),
            operations: VecDeque::new(),
            pending: HashMap::new(),
            next_token: 0,
            events: VecDeque::new(),
            blocked: false,
            disk_full: false,
            state_starved: false,
            reserve_next: false,
            reserve_active: false,
            retry_us: 0,
            fence: None,
            stop: Stop::No,
            counters: LogCounters::default(),
            arena: arena.clone(),
            config: config.clone(),
        };
        for number in &live {
            let Some(found) = by_number.get(number) else { return Err(OpenError::MissingSegment { number: *number }) };
            let segment = log.recovered_segment(volume, found, indexes.remove(number), now, &mut report)?;
            log.segments.insert(*number, segment);
        }
        log.partitions.iter_mut().for_each(PartitionPlaces::join);
        log.open_epoch(volume, &found, &live, newest_epoch, good)?;
        if config.accept_loss {
            // Scanned all the same, so it counts as unsealed from now on, and gets another footer.
            let mut unsealed = arena.allocate(BLOCK_BYTES).map_err(|_| OpenError::Memory)?;
            unsealed.fill(0);
            for segment in live.iter().filter_map(|number| by_number.get(number)).filter(|f| log.is_unsealed(f.header.number)) {
                if !SegmentReader::new(volume, &arena, segment.file).footer_is_whole(segment)? {
                    volume.write_durable(segment.file.file, BLOCK_BYTES as u64, &unsealed)?;
                }
            }
        }
        report.epoch = log.epoch;
        report.segments = log.segments.len();
        Ok(Opened { log, report })
    }

    fn is_unsealed(&self, number: u64) -> bool {
        self.segments.get(&number).is_some_and(|segment| !segment.is_sealed())
    }

    /// A live segment with its places: from its footer's directory, or from the scan.
    fn recovered_segment(
        &mut self,
        volume: &mut dyn Volume,
        found: &Found,
        scanned: Option<(RunIndex, u32, u64, u32)>,
        now: Now,
        report: &mut RecoveryReport,
    ) -> Result<Segment, OpenError> {
        let number = found.header.number;
        let seed = seed(found.header.salt);
        let mut segment = Segment {
            number,
            file: found.file.file,
            written_bytes: found.file.written_bytes,
            kind: found.header.segment_kind(),
            seed,
            last_sequence: 0,
            last_group_crc: 0,
            end_position: DATA_START,
            live_bytes: 0,
            dead_bytes: 0,
            passed_over_bytes: 0,
            sealed_ms: now.wall_ms,
            partition_count: 0,
            leases: 0,
            extending: false,
            damaged: false,
            state: State::Active,
        };
        let directory = if let Some((index, end_position, last_sequence, last_group_crc)) = scanned {
            (segment.end_position, segment.last_sequence, segment.last_group_crc) = (end_position, last_sequence, last_group_crc);
            let directory = index.directory();
            segment.state = State::Sealing { index, footer: Vec::new(), directory_count: 0, written: 0, in_flight: false, sealing: false };
            directory
        } else if let Some(seal) = found.seal {
            let len = seal.directory_count as usize * DIRECTORY_ENTRY_BYTES;
            let mut reader = SegmentReader::new(volume, &self.arena, found.file);
            let bytes = reader.bytes(seal.footer_position, len)?.unwrap_or_default();
            let directory =
                (crc32c::crc32c_append(seed, bytes) == seal.directory_crc).then(|| read_directory(bytes, seal.directory_count)).flatten();
            let Some(directory) = directory else {
                let what = "the directory of its footer does not match its checksum".into();
                return Err(OpenError::Rot { file: found.file.file, segment: number, position: seal.footer_position, what });
            };
            report.bytes_read += reader.bytes_read;
            (segment.end_position, segment.last_sequence, segment.last_group_crc) = (seal.end_position, seal.last_sequence, seal.group_crc);
            segment.state = State::Sealed {
                footer_position: seal.footer_position,
                footer_len: seal.footer_len,
                footer_crc: seal.footer_crc,
                directory_count: seal.directory_count,
            };
            directory
        } else {
            let what = "it has no footer though a later checkpoint relies on it".into();
            return Err(OpenError::Rot { file: found.file.file, segment: number, position: BLOCK_BYTES as u32, what });
        };
        segment.partition_count = directory.len() as u32;
        for entry in &directory {
            segment.live_bytes += entry.bytes;
            self.places(PartitionId(entry.partition)).insert(Place::from_directory(number, entry));
        }
        Ok(segment)
    }

    /// Writes the header of the new epoch's first segment: from then on the old end is settled.
    fn open_epoch(
        &mut self,
        volume: &mut dyn Volume,
        found: &[Found],
        live: &BTreeSet<u64>,
        newest_epoch: u32,
        good: Good,
    ) -> Result<(), OpenError> {
        let own_free = found.iter().filter(|f| !live.contains(&f.header.number)).map(|f| f.file).max_by_key(|f| f.written_bytes);
        let file = match own_free {
            Some(file) => file,
            None => volume.create(self.config.acquire_bytes.min(u64::from(self.config.segment_bytes)))?,
        };
        let previous =
            EpochEnd { epoch: newest_epoch, segment: good.segment, position: good.position, sequence: good.sequence, group_crc: good.crc };
        let header = self.open_segment(file, previous, None);
        let mut block = self.arena.allocate(BLOCK_BYTES).map_err(|_| OpenError::Memory)?;
        block.copy_from_slice(&header.to_block());
        volume.write_durable(file.file, 0, &block)?;
        Ok(())
    }
}

impl Scan<'_> {
    /// Scans one segment of the chain; `later`: the ones after it.
    fn segment(
        &mut self,
        volume: &mut dyn Volume,
        found: &Found,
        later: &[Found],
        checkpoint: LogPoint,
        replay: &mut dyn Replay,
    ) -> Result<(), OpenError> {
        let number = found.header.number;
        let (file, header) = (found.file.file, found.header);
        let next = later.first();
        let across = self.config.plant == Some(Plant::SequencesAcrossEpochs);
        // What the epoch's first header says of the end before must be what was found there.
        if header.previous.epoch > 0 && !self.good.unknown && header.previous.sequence != self.good.sequence && !across {
            let what = format!(
                "its epoch begins after group {}, and group {} is the last before it",
                header.previous.sequence, self.good.sequence
            );
            if !self.config.accept_loss {
                return Err(OpenError::Rot { file, segment: number, position: 0, what });
            }
            self.cut = true;
            self.report.torn_tail = Some((file, number, 0));
            return Ok(());
        }
        // An epoch without a valid group ended in its first segment.
        if self.good.segment == 0 || header.previous.epoch > 0 {
            if header.previous.epoch > 0 && self.good.unknown {
                (self.good.sequence, self.good.crc) = (header.previous.sequence, header.previous.group_crc);
                self.good.unknown = false;
            }
            (self.good.segment, self.good.position) = (number, DATA_START);
        }
        // A sealed segment brings its index in its footer: only what the checkpoint doesn't cover is replayed.
        let known_end = later.iter().map(|f| f.header.previous).find(|end| end.epoch > 0 && end.segment == number && !across);
        // … unless a repair has cut it short.
        let sealed = found.seal.filter(|s| !self.config.accept_loss && known_end.is_none_or(|end| end.position >= s.end_position));
        let mut position = DATA_START;
        if number == checkpoint.segment && sealed.is_some() {
            position = checkpoint.position;
            self.good = Good { sequence: checkpoint.sequence - 1, unknown: true, segment: number, position, crc: 0 };
        } else if self.good.unknown {
            self.good.sequence = header.first_sequence - 1;
        }
        let end = sealed.map(|s| s.end_position).or(known_end.map(|end| end.position));
        let mut index = RunIndex::default();
        let arena = self.arena.clone();
        let mut reader = SegmentReader::new(volume, &arena, found.file);
        self.scanned.insert(number);
        let mut bad = None;
        while end.is_none_or(|end| position < end) {
            let group = match reader.group(position, &header, false)? {
                Ok(group) => group,
                Err(what) => {
                    bad = Some(what);
                    break;
                }
            };
            let chained = self.good.unknown || group.header.previous_crc == self.good.crc;
            if group.header.sequence != self.good.sequence + 1 || !chained {
                bad = Some(format!("group {} where {} was expected", group.header.sequence, self.good.sequence + 1));
                break;
            }
            let replayed = group.header.sequence >= checkpoint.sequence;
            self.group_frames(reader.group_bytes(&group)?, &group, sealed.is_none(), replayed, &mut index, replay);
            position += group.header.padded_bytes();
            self.good = Good { sequence: group.header.sequence, crc: group.header.crc, unknown: false, segment: number, position };
        }
        self.report.bytes_read += std::mem::take(&mut reader.bytes_read);
        drop(reader);
        if sealed.is_none() {
            let end_position = if self.good.segment == number { self.good.position } else { DATA_START };
            self.indexes.insert(number, (index, end_position, self.good.sequence, self.good.crc));
        }
        let Some(what) = bad else { return Ok(()) };
        // The writer went on in the next segment of the same epoch: nothing is missing here.
        if end.is_none() && next.is_some_and(|n| n.header.epoch == header.epoch && n.header.first_sequence == self.good.sequence + 1) {
            return Ok(());
        }
        if self.config.accept_loss {
            self.cut = true;
            self.report.torn_tail = Some((file, number, position));
            return Ok(());
        }
        if end.is_some() || (next.is_some_and(|n| n.header.epoch != header.epoch) && !across) {
            return Err(OpenError::Rot { file, segment: number, position, what });
        }
        self.judge(volume, found, later, position, what)
    }

    fn group_frames(&mut self, bytes: &[u8], group: &Group, indexed: bool, replayed: bool, index: &mut RunIndex, replay: &mut dyn Replay) {
        let mut at = COMMIT_HEADER_BYTES as u32;
        for frame in ringmain_wire::frame::frames(bytes).flatten() {
            let padded = frame.padded_bytes() as u32;
            let is_state = frame.partition() == PartitionId::STATE;
            if is_state && frame.header.producer.flags & LOG_RECORD_FLAG != 0 {
                if replayed {
                    self.log_record(frame.body());
                }
            } else if replayed {
                self.report.frames_replayed += 1;
                replay.frame(&frame.header, frame.largest_timestamp_ms(), if is_state { frame.body() } else { &[] });
            }
            if indexed && !is_state {
                let list = index.list_of(frame.partition());
                index.push(list, run_of(&frame.header, frame.largest_timestamp_ms(), group.position + at, padded), self.config.run_bytes);
            }
            at += padded;
        }
    }

    fn log_record(&mut self, body: &[u8]) {
        match read_open::<LogRecord>(body) {
            Ok(LogRecord::CheckpointBegin { live_segments }) => self.declared = live_segments.into_iter().collect(),
            Ok(LogRecord::Swap { sources, stores }) => {
                self.swapped_out.extend(sources);
                self.swapped_in.extend(stores);
            }
            Ok(LogRecord::CheckpointEnd { segment, position, sequence }) => {
                self.checkpoint_whole |= LogPoint { segment, position, sequence } == self.checkpoint;
            }
            Err(_) => {}
        }
    }

    /// Torn or rotten? The first bad group lies at `position`, behind the last good one. If any valid group
    /// further on knows it (or a later one) as flushed, it was on stable media.
    fn judge(&mut self, volume: &mut dyn Volume, found: &Found, later: &[Found], position: u32, what: String) -> Result<(), OpenError> {
        let across = self.config.plant == Some(Plant::SequencesAcrossEpochs);
        let places = std::iter::once((found, position)).chain(later.iter().map(|f| (f, DATA_START)));
        let arena = self.arena.clone();
        let mut torn = false;
        for (segment, from) in places {
            let mut reader = SegmentReader::new(volume, &arena, segment.file);
            let mut at = from;
            while u64::from(at) + BLOCK_BYTES as u64 <= segment.file.written_bytes.min(u64::from(segment.header.segment_bytes)) {
                let looks_like_one = reader.bytes(at, COMMIT_HEADER_BYTES)?.is_some_and(|b| CommitHeader::read(b).is_ok());
                if looks_like_one {
                    torn = true;
                    match reader.group(at, &segment.header, across)? {
                        Ok(group) if group.header.sequence > self.good.sequence => {
                            self.report.groups_after_bad += 1;
                            if group.header.flushed_sequence > self.good.sequence {
                                self.report.bytes_read += reader.bytes_read;
                                return Err(OpenError::Rot { file: found.file.file, segment: found.header.number, position, what });
                            }
                        }
                        Ok(_) => {}
                        Err(_) => self.report.stale_groups += 1,
                    }
                }
                at += BLOCK_BYTES as u32;
            }
            self.report.bytes_read += reader.bytes_read;
        }
        self.cut = true;
        // Zeros behind the last group are no torn group, only the end.
        if torn {
            self.report.torn_tail = Some((found.file.file, found.header.number, position));
        }
        Ok(())
    }
}

pub(super) fn run_of(header: &FrameHeader, largest_timestamp_ms: i64, position: u32, len: u32) -> Run {
    Run {
        base_offset: header.broker.base_offset,
        largest_timestamp_ms,
        append_time_ms: header.broker.append_time_ms,
        position,
        len,
        record_count: header.producer.record_count,
    }
}
