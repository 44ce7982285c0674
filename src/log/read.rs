//! Finding and reading frames: from the tail cache, or from the device through footers.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ringmain_wire::frame::frames;
use ringmain_wire::{Offset, PartitionId};

use crate::device::{Arena, ArenaFull, BLOCK_BYTES, Buffer, Fault, FileId, Operation, Slice};
use crate::request::Extent;

use super::format::{Run, block_up};
use super::index::{Footer, Place};
use super::segment::State;
use super::spans::{Found, Spans};
use super::{Located, LocatedTime, Log, LogEvent, Pending, ReadError};

/// Reads nearer to each other than this are done in one.
const MERGE_GAP_BYTES: u32 = 64 << 10;
/// … unless that makes one larger than this.
///
/// Four reads of 1 MiB under way kept a flushed write of 128 KiB waiting for 50–70 ms on the device that this was measured on
/// (2026-11-21, with a bare program); two of 256 KiB for 1.1 ms, at nine tenths of the reader's speed.
const READ_BYTES_MAX: u32 = 256 << 10;
/// Runs next to each other are one extent up to so much: in whole blocks it is one read.
const EXTENT_BYTES_MAX: u32 = READ_BYTES_MAX - 2 * BLOCK_BYTES as u32;
/// What is asked of the device at a time: bytes and reads, of which one may be larger …
const WITH_DEVICE_MAX: (usize, usize) = (2 << 20, 64);
/// … and while commits are under way.
const WITH_DEVICE_BESIDE_COMMITS: (usize, usize) = (512 << 10, 16);
/// Commits are under way if one was so lately.
const COMMITS_LATELY_US: u64 = 10_000;

/// Where in memory the log was read last: a hint for reading there again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Near(usize);

/// Cold reads under way and waiting for memory.
#[derive(Debug, Default)]
pub(super) struct Reads {
    active: HashMap<u64, ColdRead>,
    waiting: VecDeque<(u64, Vec<Extent>)>,
    spans: Spans,
    /// Device reads that wait for their turn; they have their memory.
    queued: VecDeque<DeviceRead>,
    /// Device reads under way, and their bytes.
    with_device: usize,
    with_device_bytes: usize,
    /// Segments whose footer is being read.
    footers: Vec<u64>,
    /// Footers that wait for memory.
    footers_waiting: VecDeque<u64>,
    /// What the arena had in use when there wasn't enough for a read that waits.
    short_at_bytes: Option<usize>,
}

impl Reads {
    /// Memory for the log; spans that nobody waits for give way to it.
    pub fn allocate(&mut self, arena: &Arena, bytes: usize) -> Result<Buffer, ArenaFull> {
        loop {
            match arena.allocate(bytes) {
                Err(_) if self.spans.drop_oldest() => {}
                result => return result,
            }
        }
    }

    /// When spans are given up.
    pub fn deadline_us(&self) -> Option<u64> {
        self.spans.deadline_us()
    }
}

#[derive(Debug)]
struct ColdRead {
    extents: Vec<Extent>,
    /// For each extent, where in `spans` the one is that holds it.
    places: Vec<usize>,
    spans: Vec<Found>,
    missing: usize,
    failed: Option<ReadError>,
}

#[derive(Debug)]
struct DeviceRead {
    span: u64,
    file: FileId,
    position: u32,
    into: Buffer,
}

/// What a cold read needs.
struct Plan {
    /// Per extent: a span that is there or coming, or the number of a new one.
    places: Vec<Result<Found, usize>>,
    /// To be read: segment, start and end, in whole blocks.
    new: Vec<(u64, u32, u32)>,
}

/// Runs of one segment, wherever its index is.
enum Runs<'a> {
    Memory(&'a super::index::RunIndex),
    Footer(Rc<Footer>),
    Missing,
}

impl Log {
    fn runs_of_segment(&mut self, number: u64) -> Runs<'_> {
        if number == self.active && self.segments.get(&number).is_some_and(|s| matches!(s.state, State::Active)) {
            return Runs::Memory(&self.index);
        }
        if let Some(footer) = self.footers.get(number) {
            return Runs::Footer(footer);
        }
        match self.segments.get(&number).map(|s| &s.state) {
            Some(State::Sealing { index, .. }) => Runs::Memory(index),
            _ => Runs::Missing,
        }
    }

    /// Whole runs of `partition` from `from` on and below `below`, together at most `max_bytes` (one run at least).
    ///
    /// The first may begin before `from`, the last may end after `below` only where a run does.
    pub fn locate(&mut self, partition: PartitionId, from: Offset, below: Offset, max_bytes: u32) -> Located {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut bytes, mut next) = (0u32, from.0);
        let Some(places) = self.partitions.get(partition.0 as usize) else {
            return Located::Runs { extents, next_offset: from, bytes };
        };
        let first = places.first_after(from.0);
        for at in first..places.places.len() {
            let place = self.partitions[partition.0 as usize].places[at];
            if place.base_offset >= below.0 {
                break;
            }
            let mut more = true;
            let mut missing = false;
            let mut take = |run: &Run| {
                if run.base_offset >= below.0 || (bytes > 0 && bytes.saturating_add(run.len) > max_bytes) {
                    more = false;
                    return false;
                }
                match extents.last_mut() {
                    Some(last)
                        if last.segment == place.segment
                            && last.position + last.len == run.position
                            && last.len.saturating_add(run.len) <= EXTENT_BYTES_MAX =>
                    {
                        last.len += run.len;
                    }
                    _ => extents.push(Extent { segment: place.segment, position: run.position, len: run.len }),
                }
                bytes += run.len;
                next = run.end_offset();
                bytes < max_bytes
            };
            match self.runs_of_segment(place.segment) {
                Runs::Memory(index) => {
                    let runs = index.runs_after(partition, from.0.max(place.base_offset));
                    for run in runs.take_while(|run| run.base_offset < place.end_offset) {
                        if !take(run) {
                            break;
                        }
                    }
                }
                Runs::Footer(footer) => {
                    let runs = footer.runs_of(partition);
                    let skip = runs.partition_point(|run| run.end_offset() <= from.0.max(place.base_offset));
                    for run in runs[skip..].iter().take_while(|run| run.base_offset < place.end_offset) {
                        if !take(run) {
                            break;
                        }
                    }
                }
                Runs::Missing => missing = true,
            }
            if missing {
                self.read_footer(place.segment);
                if extents.is_empty() {
                    return Located::Wait { segment: place.segment };
                }
                // What is known is served; the next fetch finds the footer.
                break;
            }
            if !more || bytes >= max_bytes {
                break;
            }
        }
        Located::Runs { extents, next_offset: Offset(next), bytes }
    }

    /// The largest record time in runs of `partition` that begin below `below`; `None` without any.
    pub fn newest_time(&self, partition: PartitionId, below: Offset) -> Option<i64> {
        let places = &self.partitions.get(partition.0 as usize)?.places;
        let of_place = |place: &Place| {
            // Only what is still in memory can reach beyond what is readable.
            if place.end_offset <= below.0 || place.segment != self.active {
                return Some(place.largest_timestamp_ms);
            }
            let runs = self.index.runs_of(partition).filter(|run| run.base_offset < below.0 && run.base_offset >= place.base_offset);
            runs.map(|run| run.largest_timestamp_ms).max()
        };
        places.iter().filter(|place| place.base_offset < below.0).filter_map(of_place).max()
    }

    /// The first run of `partition` below `below` with a record of `timestamp_ms` or later.
    pub fn locate_time(&mut self, partition: PartitionId, timestamp_ms: i64, below: Offset) -> LocatedTime {
        let Some(places) = self.partitions.get(partition.0 as usize) else { return LocatedTime::None };
        let found = places.places.iter().find(|p| p.largest_timestamp_ms >= timestamp_ms && p.base_offset < below.0).copied();
        let Some(place) = found else { return LocatedTime::None };
        let within = place.base_offset..place.end_offset.min(below.0);
        let wanted = |run: &&Run| run.largest_timestamp_ms >= timestamp_ms && within.contains(&run.base_offset);
        let mut missing = false;
        let run = match self.runs_of_segment(place.segment) {
            Runs::Memory(index) => index.runs_of(partition).find(wanted).copied(),
            Runs::Footer(footer) => footer.runs_of(partition).iter().find(wanted).copied(),
            Runs::Missing => {
                missing = true;
                None
            }
        };
        if missing {
            self.read_footer(place.segment);
            return LocatedTime::Wait { segment: place.segment };
        }
        run.map_or(LocatedTime::None, |run| LocatedTime::Run(Extent { segment: place.segment, position: run.position, len: run.len }))
    }

    /// The bytes of `extent`, if they are still in memory (unsealed groups included).
    pub fn hot_bytes(&self, extent: Extent) -> Option<&[u8]> {
        let at = self.chunks.partition_point(|t| (t.segment, t.base_position) <= (extent.segment, extent.position));
        let tail = self.chunks.get(at.checked_sub(1)?)?;
        if tail.segment != extent.segment {
            return None;
        }
        let start = (extent.position - tail.base_position) as usize;
        let end = start + extent.len as usize;
        (end <= tail.chunk.len()).then(|| tail.chunk.bytes(start..end))
    }

    /// What is still in memory from a position in a segment on (unsealed groups included). `near`: looked at first.
    pub fn hot_from(&self, segment: u64, position: u32, near: &mut Near) -> Option<&[u8]> {
        let bytes_of = |at: usize| {
            let tail = self.chunks.get(at).filter(|tail| tail.segment == segment)?;
            let start = position.checked_sub(tail.base_position)? as usize;
            (start < tail.chunk.len()).then(|| tail.chunk.bytes(start..tail.chunk.len()))
        };
        bytes_of(near.0).or_else(|| {
            near.0 = self.chunks.partition_point(|t| (t.segment, t.base_position) <= (segment, position)).checked_sub(1)?;
            bytes_of(near.0)
        })
    }

    /// Reads extents from the device, every frame verified; the answer is [`LogEvent::ReadDone`].
    pub fn read(&mut self, ticket: u64, extents: Vec<Extent>) {
        for extent in &extents {
            self.lease(extent.segment);
        }
        self.reads.waiting.push_back((ticket, extents));
        self.pump_reads();
    }

    /// Starts waiting reads for which there is memory.
    pub(super) fn pump_reads(&mut self) {
        self.reads.spans.expire(self.now.monotonic_us);
        self.reads.short_at_bytes = None;
        while let Some(segment) = self.reads.footers_waiting.pop_front() {
            if self.start_footer(segment) {
                continue;
            }
            // The tail cache gives way.
            if self.evict_oldest_chunk() {
                self.reads.footers_waiting.push_front(segment);
                continue;
            }
            if self.is_memory_hopeless() {
                self.footer_ready(segment, Err(Fault::Os(libc::ENOMEM)));
                continue;
            }
            self.reads.footers_waiting.push_front(segment);
            self.reads.short_at_bytes = Some(self.arena.used_bytes());
            break;
        }
        while let Some((ticket, extents)) = self.reads.waiting.pop_front() {
            if extents.iter().any(|extent| self.segment(extent.segment).is_none()) {
                self.finish_read(ticket, &extents, Err(ReadError::Gone));
                continue;
            }
            let plan = self.plan_read(&extents);
            let needed: usize = plan.new.iter().map(|(_, start, end)| (end - start) as usize).sum();
            // Spans that nobody waits for give way.
            while needed > 0 && self.bytes_beside_tail_cache() + needed > self.config.read_bytes_max && self.reads.spans.drop_oldest() {}
            let used = self.bytes_beside_tail_cache();
            // A read larger than the budget goes alone.
            if needed > 0 && used + needed > self.config.read_bytes_max && used > 0 && !self.reads.active.is_empty() {
                self.reads.waiting.push_front((ticket, extents));
                break;
            }
            if let Err(extents) = self.start_read(ticket, extents, plan) {
                // The tail cache gives way to a read; a read that memory can't hold even so fails.
                if self.evict_oldest_chunk() {
                    self.reads.waiting.push_front((ticket, extents));
                    continue;
                }
                if self.is_memory_hopeless() || needed > self.arena.limit_bytes().saturating_sub(self.config.chunk_bytes as usize) {
                    self.finish_read(ticket, &extents, Err(ReadError::Device(Fault::Os(libc::ENOMEM))));
                    continue;
                }
                self.reads.waiting.push_front((ticket, extents));
                self.reads.short_at_bytes = Some(self.arena.used_bytes());
                break;
            }
        }
    }

    /// A read waits until somebody gives memory back. Nothing tells the log when that has happened: see [`Log::has_backlog`].
    pub fn reads_wait_for_memory(&self) -> bool {
        self.reads.short_at_bytes.is_some()
    }

    /// Less memory is in use than when there wasn't enough.
    pub(super) fn has_memory_again(&self) -> bool {
        self.reads.short_at_bytes.is_some_and(|at_bytes| self.arena.used_bytes() < at_bytes)
    }

    /// Nothing will be given back, now that the tail cache gives no more: only the open chunk is left, or chunks that a fenced log
    /// doesn't write any more.
    fn is_memory_hopeless(&self) -> bool {
        (self.chunks.len() <= 1 || self.fence.is_some()) && self.bytes_beside_tail_cache() == 0
    }

    /// Charged to the arena by readers, this log's and others'.
    fn bytes_beside_tail_cache(&self) -> usize {
        let held: usize = self.chunks.iter().map(|tail| tail.chunk.charged_bytes()).sum();
        self.arena.used_bytes().saturating_sub(held)
    }

    /// Which spans hold the extents, and which are to be read for the others.
    fn plan_read(&self, extents: &[Extent]) -> Plan {
        let mut new: Vec<(u64, u32, u32)> = Vec::new();
        let place = |extent: &Extent| {
            if let Some(found) = self.reads.spans.find(extent, READ_BYTES_MAX) {
                return Ok(found);
            }
            let start = extent.position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32;
            let end = block_up(extent.position + extent.len);
            match new.last_mut() {
                Some((segment, from, to))
                    if *segment == extent.segment && start >= *from && start <= *to + MERGE_GAP_BYTES && end - *from <= READ_BYTES_MAX =>
                {
                    *to = end.max(*to);
                }
                _ => new.push((extent.segment, start, end)),
            }
            Err(new.len() - 1)
        };
        let places = extents.iter().map(place).collect();
        Plan { places, new }
    }

    fn start_read(&mut self, ticket: u64, extents: Vec<Extent>, plan: Plan) -> Result<(), Vec<Extent>> {
        let mut buffers: Vec<Buffer> = Vec::with_capacity(plan.new.len());
        for (_, start, end) in &plan.new {
            match self.reads.allocate(&self.arena, (end - start) as usize) {
                Ok(buffer) => buffers.push(buffer),
                Err(_) => return Err(extents),
            }
        }
        let mut spans: Vec<Found> = Vec::with_capacity(buffers.len());
        for (into, (segment, start, end)) in buffers.into_iter().zip(plan.new) {
            let span = self.reads.spans.begin(segment, start, end, ticket);
            spans.push(Found { id: span, start, bytes: None });
            if let Some(file) = self.segment(segment).map(|s| s.file) {
                self.reads.queued.push_back(DeviceRead { span, file, position: start, into });
            }
        }
        let mut missing = spans.len();
        let mut places = Vec::with_capacity(extents.len());
        for place in plan.places {
            places.push(match place {
                Err(new) => new,
                Ok(found) => match spans.iter().rposition(|span| span.id == found.id) {
                    Some(at) => at,
                    None => {
                        if found.bytes.is_none() {
                            self.reads.spans.join(found.id, ticket);
                            missing += 1;
                        }
                        spans.push(found);
                        spans.len() - 1
                    }
                },
            });
        }
        let read = ColdRead { extents, places, spans, missing, failed: None };
        if missing == 0 {
            self.complete_read(ticket, read);
        } else {
            self.reads.active.insert(ticket, read);
            self.submit_reads();
        }
        Ok(())
    }

    /// Gives reads to the device, as many as leave room for commits.
    fn submit_reads(&mut self) {
        let commits_lately = self.commits.in_flight() > 0 || self.now.monotonic_us < self.last_sealed_us.saturating_add(COMMITS_LATELY_US);
        let (bytes_max, reads_max) = if commits_lately { WITH_DEVICE_BESIDE_COMMITS } else { WITH_DEVICE_MAX };
        while let Some(next) = self.reads.queued.front() {
            let bytes = self.reads.with_device_bytes + next.into.len();
            if self.reads.with_device > 0 && (bytes > bytes_max || self.reads.with_device >= reads_max) {
                break;
            }
            let Some(DeviceRead { span, file, position, into }) = self.reads.queued.pop_front() else { break };
            self.reads.with_device += 1;
            self.reads.with_device_bytes = bytes;
            self.submit(Pending::Read { span, bytes: into.len() }, Operation::Read { file, position: u64::from(position), into });
        }
    }

    pub(super) fn span_read(&mut self, span: u64, bytes: usize, result: Result<Buffer, Fault>) {
        self.reads.with_device -= 1;
        self.reads.with_device_bytes -= bytes;
        self.submit_reads();
        let result = result.map(Buffer::freeze);
        let kept_bytes_max = self.config.read_bytes_max / 2;
        for ticket in self.reads.spans.arrived(span, result.as_ref().ok(), kept_bytes_max, self.now.monotonic_us) {
            let Some(read) = self.reads.active.get_mut(&ticket) else { continue };
            match &result {
                Ok(bytes) => read.spans.iter_mut().filter(|found| found.id == span).for_each(|found| found.bytes = Some(bytes.clone())),
                Err(fault) => read.failed = Some(ReadError::Device(*fault)),
            }
            read.missing -= 1;
            if read.missing == 0
                && let Some(read) = self.reads.active.remove(&ticket)
            {
                self.complete_read(ticket, read);
            }
        }
    }

    /// Everything is there, or has failed.
    fn complete_read(&mut self, ticket: u64, mut read: ColdRead) {
        let result = match read.failed.take() {
            Some(error) => Err(error),
            None => read.extents.iter().zip(&read.places).map(|(extent, at)| self.verified_piece(&read.spans[*at], extent)).collect(),
        };
        if result.is_ok() {
            self.counters.reads_cold += 1;
        }
        self.finish_read(ticket, &read.extents, result);
    }

    fn finish_read(&mut self, ticket: u64, extents: &[Extent], result: Result<Vec<Slice>, ReadError>) {
        for extent in extents {
            self.release(extent.segment);
        }
        self.events.push_back(LogEvent::ReadDone { ticket, result });
    }

    fn verified_piece(&mut self, span: &Found, extent: &Extent) -> Result<Slice, ReadError> {
        let Some(bytes) = &span.bytes else { return Err(ReadError::Gone) };
        let from = (extent.position - span.start) as usize;
        let piece = bytes.slice(from..from + extent.len as usize);
        let verified = self.verify_frames(&piece, extent);
        if verified.is_err() {
            self.reads.spans.forget(span.id);
        }
        verified.map(|()| piece)
    }

    /// Checks both checksums of every frame in `bytes`, which lie at `extent`.
    pub(super) fn verify_frames(&mut self, bytes: &[u8], extent: &Extent) -> Result<(), ReadError> {
        let mut at = 0;
        for frame in frames(bytes) {
            let judged = frame.and_then(|frame| {
                frame.verify_header()?;
                frame.verify_body()?;
                Ok(frame.padded_bytes())
            });
            match judged {
                Ok(padded) => at += padded,
                Err(error) => {
                    self.counters.corrupt_frames += 1;
                    let file = self.segment(extent.segment).map_or(FileId(0), |s| s.file);
                    return Err(ReadError::Corrupt {
                        file,
                        segment: extent.segment,
                        position: extent.position + at as u32,
                        what: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Asks for the footer of a sealed segment, once.
    pub(super) fn read_footer(&mut self, number: u64) {
        if !self.reads.footers.contains(&number) {
            self.reads.footers.push(number);
            if !self.start_footer(number) {
                self.reads.footers_waiting.push_back(number);
            }
        }
    }

    fn start_footer(&mut self, number: u64) -> bool {
        let Some((file, State::Sealed { footer_position, footer_len, .. })) = self.segments.get(&number).map(|s| (s.file, &s.state)) else {
            self.footer_ready(number, Ok(()));
            return true;
        };
        let (position, len) = (*footer_position, *footer_len);
        if len == 0 {
            self.footers.insert(number, Footer::empty());
            self.footer_ready(number, Ok(()));
            return true;
        }
        let Ok(buffer) = self.reads.allocate(&self.arena, block_up(len) as usize) else { return false };
        self.lease(number);
        self.submit(Pending::Footer { segment: number }, Operation::Read { file, position: u64::from(position), into: buffer });
        true
    }

    pub(super) fn footer_read(&mut self, number: u64, result: Result<Buffer, Fault>) {
        self.release(number);
        let Some((seed, State::Sealed { footer_len, footer_crc, directory_count, .. })) =
            self.segments.get(&number).map(|s| (s.seed, &s.state))
        else {
            return self.footer_ready(number, Ok(()));
        };
        let judged = result.and_then(|buffer| {
            let bytes = &buffer[..*footer_len as usize];
            let whole = crc32c::crc32c_append(seed, bytes) == *footer_crc;
            whole.then(|| Footer::read(bytes, *directory_count)).flatten().ok_or(Fault::Os(libc::EBADMSG))
        });
        let result = judged.map(|footer| self.footers.insert(number, footer));
        if result.is_err() {
            self.counters.corrupt_frames += 1;
        }
        self.footer_ready(number, result);
    }

    fn footer_ready(&mut self, segment: u64, result: Result<(), Fault>) {
        self.reads.footers.retain(|&s| s != segment);
        self.cleaner.footer_ready(segment, result.is_ok());
        self.events.push_back(LogEvent::FooterReady { segment, result });
    }
}
