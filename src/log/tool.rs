//! Offline: verify, dump and repair the logs of a stopped broker.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use ringmain_wire::frame::frames;
use ringmain_wire::{FrameHeader, ShardId};

use crate::device::volume::{Directory, FileVolume};
use crate::device::{Arena, BLOCK_BYTES, FileId, SegmentFile, Volume};
use crate::request::Now;

use super::format::{COMMIT_HEADER_BYTES, DATA_START, SegmentHeader, SegmentKind};
use super::recovery::{Found, SegmentReader, Survey, survey};
use super::{Log, LogConfig, OpenError, Replay};

/// Memory for reading: a window, and the largest group.
const MEMORY_BYTES: usize = 256 << 20;

/// How a directory's logs are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Shards found.
    pub shards: u16,
    /// Segments alive.
    pub segments: u64,
    /// Commit groups read.
    pub groups: u64,
    /// Frames read, each with both its checksums.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Unfinished groups at the end of a shard's log: normal after a crash, cut at the next start.
    pub torn_tails: Vec<Place>,
    /// Damage: data that was on stable media and doesn't match its checksum.
    pub damage: Vec<Damage>,
}

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The shard.
    pub shard: u16,
    /// The file in `segments/`.
    pub file: FileId,
    /// Number of the segment.
    pub segment: u64,
    /// Byte in the file.
    pub position: u32,
}

/// A damaged place and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where; `None` = a whole segment is missing.
    pub place: Option<Place>,
    /// For people.
    pub what: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segments/{} byte {} (shard {}, segment {})", self.file, self.position, self.shard, self.segment)
    }
}

/// Why a tool couldn't work.
#[derive(Debug)]
pub enum ToolError {
    /// A broker has the directory open.
    InUse,
    /// There is no log there.
    NotADirectory(String),
    /// The device refused.
    Io(io::Error),
    /// The log can't be opened; for `repair`.
    Open(OpenError),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::InUse => f.write_str("the data directory is in use by a running broker; stop it first"),
            ToolError::NotADirectory(path) => write!(f, "{path} is no Ringmain data directory (it has no segments/)"),
            ToolError::Io(error) => write!(f, "reading failed: {error}"),
            ToolError::Open(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ToolError {}

impl From<io::Error> for ToolError {
    fn from(error: io::Error) -> ToolError {
        if error.kind() == io::ErrorKind::WouldBlock { ToolError::InUse } else { ToolError::Io(error) }
    }
}

impl From<OpenError> for ToolError {
    fn from(error: OpenError) -> ToolError {
        match error {
            OpenError::Io(error) => error.into(),
            other => ToolError::Open(other),
        }
    }
}

struct Ignore;

impl Replay for Ignore {
    fn frame(&mut self, _header: &FrameHeader, _largest_timestamp_ms: i64, _body: &[u8]) {}
}

fn open(path: &Path) -> Result<(FileVolume, Vec<SegmentFile>), ToolError> {
    if !path.join("segments").is_dir() {
        return Err(ToolError::NotADirectory(path.display().to_string()));
    }
    let directory = Directory::open_with_patience(path, Duration::ZERO, &mut |_| {})?;
    let mut volume = FileVolume::new(directory);
    let files = volume.list()?;
    Ok((volume, files))
}

/// Reads every live byte of the logs in `path` and checks every checksum. Changes nothing.
pub fn verify(path: &Path) -> Result<VerifyReport, ToolError> {
    let (mut volume, files) = open(path)?;
    verify_volume(&mut volume, &files)
}

/// As [`verify`], on any volume.
pub fn verify_volume(volume: &mut dyn Volume, files: &[SegmentFile]) -> Result<VerifyReport, ToolError> {
    let arena = Arena::new(MEMORY_BYTES);
    let mut report = VerifyReport::default();
    for shard in shards(volume, files)? {
        report.shards += 1;
        let config = LogConfig::new(ShardId(shard), 1 << 30, MEMORY_BYTES);
        match survey(&config, &arena, volume, files, &mut Ignore) {
            Ok(found) => verify_shard(volume, &arena, shard, &found, &mut report)?,
            Err(OpenError::Rot { file, segment, position, what }) => {
                report.damage.push(Damage { place: Some(Place { shard, file, segment, position }), what });
            }
            Err(OpenError::MissingSegment { number }) => {
                report.damage.push(Damage { place: None, what: format!("segment {number} of shard {shard} is missing") })
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(report)
}

fn shards(volume: &mut dyn Volume, files: &[SegmentFile]) -> Result<BTreeSet<u16>, ToolError> {
    let mut shards = BTreeSet::new();
    let mut block = vec![0; BLOCK_BYTES];
    for file in files.iter().filter(|f| f.written_bytes >= u64::from(DATA_START)) {
        volume.read(file.file, 0, &mut block)?;
        shards.extend(SegmentHeader::read(&block).map(|header| header.shard));
    }
    Ok(shards)
}

fn verify_shard(volume: &mut dyn Volume, arena: &Arena, shard: u16, survey: &Survey, report: &mut VerifyReport) -> Result<(), ToolError> {
    if let Some((file, segment, position)) = survey.report.torn_tail {
        report.torn_tails.push(Place { shard, file, segment, position });
    }
    for number in &survey.live {
        let Some(found) = survey.found.iter().find(|f| f.header.number == *number) else {
            report.damage.push(Damage { place: None, what: format!("segment {number} of shard {shard} is missing") });
            continue;
        };
        report.segments += 1;
        let end = match (survey.indexes.get(number), found.seal) {
            (Some((_, end, _, _)), _) => *end,
            (None, Some(seal)) => seal.end_position,
            (None, None) => {
                let place = Place { shard, file: found.file.file, segment: *number, position: BLOCK_BYTES as u32 };
                let what = "it has no footer though a later checkpoint relies on it".into();
                report.damage.push(Damage { place: Some(place), what });
                continue;
            }
        };
        let mut reader = SegmentReader::new(volume, arena, found.file);
        let place = |position| Some(Place { shard, file: found.file.file, segment: *number, position });
        if !found.header_whole {
            report.damage.push(Damage { place: place(0), what: "its header is damaged; the copy is good".into() });
        }
        if let Some((position, what)) = verify_footer(&mut reader, found)? {
            report.damage.push(Damage { place: place(position), what });
        }
        let damage = match found.header.segment_kind() {
            SegmentKind::Log => verify_groups(&mut reader, &found.header, end, report)?,
            SegmentKind::Store => verify_frames(&mut reader, end, report)?,
        };
        if let Some((position, what)) = damage {
            report.damage.push(Damage { place: place(position), what });
        }
        report.bytes += reader.bytes_read;
    }
    Ok(())
}

fn verify_groups(
    reader: &mut SegmentReader<'_>,
    header: &SegmentHeader,
    end: u32,
    report: &mut VerifyReport,
) -> Result<Option<(u32, String)>, ToolError> {
    let mut position = DATA_START;
    while position < end {
        match reader.group(position, header, false)? {
            Ok(group) => {
                report.groups += 1;
                report.frames += u64::from(group.header.frame_count);
                position += group.header.padded_bytes();
            }
            Err(what) => return Ok(Some((position, what))),
        }
    }
    Ok(None)
}

fn verify_frames(reader: &mut SegmentReader<'_>, end: u32, report: &mut VerifyReport) -> Result<Option<(u32, String)>, ToolError> {
    let mut position = DATA_START;
    while position < end {
        let header = reader.bytes(position, ringmain_wire::frame::HEADER_BYTES)?.and_then(FrameHeader::read);
        let len = header.map_or(0, |h| h.broker.len as usize);
        let judged = match reader.bytes(position, len)? {
            Some(bytes) => ringmain_wire::Frame::parse(bytes).and_then(|frame| {
                frame.verify_header()?;
                frame.verify_body()?;
                Ok(frame.padded_bytes() as u32)
            }),
            None => return Ok(Some((position, "a frame is longer than the file".into()))),
        };
        match judged {
            Ok(padded) => position += padded,
            Err(error) => return Ok(Some((position, error.to_string()))),
        }
        report.frames += 1;
    }
    Ok(None)
}

fn verify_footer(reader: &mut SegmentReader<'_>, found: &Found) -> Result<Option<(u32, String)>, ToolError> {
    let Some(seal) = found.seal else { return Ok(None) };
    let whole = reader.footer_is_whole(found)?;
    Ok((!whole).then(|| (seal.footer_position, "the footer does not match its checksum".into())))
}

/// Writes a line per segment and group (and per frame, if `with_frames`) of every shard to `out`.
pub fn dump(path: &Path, with_frames: bool, out: &mut dyn Write) -> Result<(), ToolError> {
    let (mut volume, files) = open(path)?;
    let arena = Arena::new(MEMORY_BYTES);
    for shard in shards(&mut volume, &files)? {
        let mut bytes_read = 0;
        for found in super::recovery::find(&mut volume, &arena, &files, ShardId(shard), &mut bytes_read)? {
            let Found { file, header, seal, .. } = found;
            let kind = if header.segment_kind() == SegmentKind::Log { "log" } else { "store" };
            let end = seal.map_or("open".into(), |s| format!("ends at {}", s.end_position));
            writeln!(out, "shard {shard} segment {} {kind} {} epoch {} {end}", header.number, file.file, header.epoch)?;
            let mut reader = SegmentReader::new(&mut volume, &arena, file);
            let mut position = DATA_START;
            while header.segment_kind() == SegmentKind::Log {
                let Ok(group) = reader.group(position, &header, false)? else { break };
                let h = group.header;
                writeln!(
                    out,
                    "  {position:>10} group {} frames {} bytes {} flushed {}",
                    h.sequence, h.frame_count, h.bytes, h.flushed_sequence
                )?;
                if with_frames {
                    let mut at = position + COMMIT_HEADER_BYTES as u32;
                    for frame in frames(reader.group_bytes(&group)?).flatten() {
                        let p = frame.header.producer;
                        writeln!(
                            out,
                            "  {at:>10}   partition {} offset {} records {} bytes {}",
                            p.partition,
                            frame.base_offset(),
                            p.record_count,
                            frame.len_bytes()
                        )?;
                        at += frame.padded_bytes() as u32;
                    }
                }
                position += h.padded_bytes();
            }
        }
    }
    Ok(())
}

/// Accepts the loss of damaged groups: each shard's log is cut before its first damaged group, with everything
/// behind it. Returns where it was cut. Damage in older segments, which start-up doesn't read, stays and is
/// refused when it is read.
pub fn repair(path: &Path) -> Result<Vec<Place>, ToolError> {
    let (mut volume, files) = open(path)?;
    let mut cuts = Vec::new();
    for shard in shards(&mut volume, &files)? {
        let segment_bytes = files.iter().map(|f| f.written_bytes).max().unwrap_or(0).clamp(4 << 20, 1 << 30) as u32;
        let mut config = LogConfig::new(ShardId(shard), segment_bytes, MEMORY_BYTES);
        config.accept_loss = true;
        let opened = Log::open(config, Arena::new(MEMORY_BYTES), &mut volume, &files, &mut Ignore, Now::default())?;
        cuts.extend(opened.report.torn_tail.map(|(file, segment, position)| Place { shard, file, segment, position }));
    }
    Ok(cuts)
}
