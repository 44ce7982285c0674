//! Turns sealed segments that are half dead, or mix partitions, into store segments: clustered by partition,
//! ordered by offset, frames unchanged.
//!
//! One operation at a time, at a byte rate of its own. The store is complete and flushed before the swap
//! record is appended; the sources are released after that record is flushed.

use std::collections::VecDeque;

use ringmain_wire::PartitionId;
use ringmain_wire::frame::frames;

use crate::device::{BLOCK_BYTES, Fault, Operation, Outcome, SegmentFile};
use crate::request::Extent;

use super::format::{
    DATA_START, DIRECTORY_ENTRY_BYTES, EpochEnd, FORMAT_VERSION, LogPoint, Run, SEAL_MAGIC, SEGMENT_MAGIC, SealBlock, SegmentHeader,
    SegmentKind, block_up, seed,
};
use super::index::{Footer, Place, RunIndex};
use super::segment::{Segment, State};
use super::{Log, Pending, Stop};

/// Looks for work so often.
const CHECK_US: u64 = 1_000_000;
/// Copied per step, at least one run.
const STEP_BYTES: u32 = 256 << 10;
/// Sources of one store segment.
const SOURCES_MAX: usize = 64;

/// The cleaner of one log.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    job: Option<Job>,
    next_us: u64,
}

#[derive(Debug)]
struct Job {
    sources: Vec<u64>,
    /// Sources whose live runs are in `runs`.
    gathered: usize,
    phase: Phase,
    in_flight: bool,
    number: u64,
    salt: u64,
    file: Option<SegmentFile>,
    /// Bytes the store will take, footer included.
    total_bytes: u64,
    /// What is still to be copied, in order.
    runs: VecDeque<(u32, u64, Run)>,
    index: RunIndex,
    /// Bytes read and not written yet; begins at `written_to`.
    out: Vec<u8>,
    written_to: u32,
    end_position: u32,
    footer: Vec<u8>,
    directory_count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Footers,
    Acquire,
    Extend,
    Copy,
    Footer,
    Seal,
    Header,
    Swap,
}

impl Cleaner {
    /// Whether a job relies on this segment.
    pub fn uses(&self, number: u64) -> bool {
        self.job.as_ref().is_some_and(|job| job.sources.contains(&number))
    }

    pub fn wants_step(&self) -> bool {
        self.job.as_ref().is_some_and(|job| !job.in_flight && job.phase != Phase::Footers) && self.next_us == 0
    }

    pub fn footer_ready(&mut self, segment: u64, is_ok: bool) {
        // Later phases need no footers, and may have an operation in flight.
        if !is_ok && self.uses(segment) && self.job.as_ref().is_some_and(|job| job.phase == Phase::Footers) {
            self.job = None;
        }
    }
}

impl Log {
    pub(super) fn cleaner_deadline_us(&self) -> Option<u64> {
        let idle = self.cleaner.job.as_ref().is_none_or(|job| !job.in_flight);
        (idle && self.fence.is_none() && self.stop == Stop::No && self.segments.len() > 1).then_some(self.cleaner.next_us)
    }

    /// One step of background work: at most one operation.
    pub(super) fn pump_cleaner(&mut self) {
        if self.fence.is_some() || self.stop != Stop::No || self.now.monotonic_us < self.cleaner.next_us {
            return;
        }
        let Some(job) = &self.cleaner.job else {
            self.cleaner.next_us = self.now.monotonic_us + CHECK_US;
            self.pick_sources();
            return;
        };
        if job.in_flight {
            return;
        }
        match job.phase {
            Phase::Footers => self.clean_footers(),
            Phase::Acquire => {
                // On a full disk the cleaner may take the reserve: it gives more back.
                let at_least_bytes = if self.disk_full { 0 } else { self.config.acquire_bytes.min(u64::from(self.config.segment_bytes)) };
                self.clean_submit(Operation::Acquire { at_least_bytes });
            }
            Phase::Extend => self.clean_extend(),
            Phase::Copy => self.clean_copy(),
            Phase::Footer => self.clean_footer(),
            Phase::Seal => self.clean_seal(),
            Phase::Header => self.clean_header(),
            Phase::Swap => self.clean_swap(),
        }
    }

    fn pick_sources(&mut self) {
        let now_ms = self.now.wall_ms;
        let mixed =
            |s: &Segment| s.kind == SegmentKind::Log && s.partition_count > 1 && now_ms - s.sealed_ms >= self.config.clean_mixed_after_ms;
        let half_dead = |s: &Segment| s.live_bytes * 2 < s.written_bytes;
        let free = |s: &Segment| {
            s.is_sealed()
                && !s.damaged
                && s.live_bytes > 0
                && (s.kind == SegmentKind::Store || s.number < self.anchored.segment)
                && !self.swaps.iter().any(|swap| swap.sources.contains(&s.number))
        };
        // What one segment held, one store holds: frames lie closer there. More must leave room for a footer.
        let room = u64::from(self.config.segment_bytes) / 8 * 7 - u64::from(DATA_START);
        let (mut sources, mut bytes, mut any_mixed) = (Vec::new(), 0, false);
        for segment in self.segments.values().filter(|s| free(s) && (mixed(s) || half_dead(s))) {
            if sources.is_empty() || (sources.len() < SOURCES_MAX && bytes + segment.live_bytes <= room) {
                bytes += segment.live_bytes;
                any_mixed |= mixed(segment);
                sources.push(segment.number);
            }
        }
        // One half-dead segment alone would become another one.
        if sources.len() < 2 && !any_mixed {
            return;
        }
        let (number, salt) = (self.next_number, self.new_salt());
        self.next_number += 1;
        self.cleaner.next_us = 0;
        self.cleaner.job = Some(Job {
            sources,
            gathered: 0,
            phase: Phase::Footers,
            in_flight: false,
            number,
            salt,
            file: None,
            total_bytes: 0,
            runs: VecDeque::new(),
            index: RunIndex::default(),
            out: Vec::new(),
            written_to: DATA_START,
            end_position: DATA_START,
            footer: Vec::new(),
            directory_count: 0,
        });
    }

    /// Source by source, as their footers come: what is alive. Then all of it by partition and offset.
    fn clean_footers(&mut self) {
        let Some(job) = self.cleaner.job.as_mut() else { return };
        while let Some(&source) = job.sources.get(job.gathered) {
            let Some(footer) = self.footers.get(source) else { return self.read_footer(source) };
            for entry in &footer.directory {
                let Some(places) = self.partitions.get(entry.partition as usize) else { continue };
                let within = |p: &Place| p.segment == source && p.base_offset < entry.end_offset && entry.base_offset < p.end_offset;
                if places.places.iter().any(within) {
                    let alive = footer.runs_of_entry(entry).iter().filter(|run| run.end_offset() > places.start_offset);
                    job.runs.extend(alive.map(|run| (entry.partition, source, *run)));
                }
            }
            job.gathered += 1;
        }
        let runs = job.runs.make_contiguous();
        runs.sort_unstable_by_key(|(partition, _, run)| (*partition, run.base_offset));
        let stretches = runs.chunk_by(|a, b| a.0 == b.0 && a.2.end_offset() == b.2.base_offset).count();
        let footer_bytes = runs.len() * super::format::RUN_BYTES + stretches * DIRECTORY_ENTRY_BYTES;
        let blocks = |bytes: u64| bytes.next_multiple_of(BLOCK_BYTES as u64);
        job.total_bytes =
            blocks(u64::from(DATA_START) + runs.iter().map(|(_, _, run)| u64::from(run.len)).sum::<u64>()) + blocks(footer_bytes as u64);
        job.phase = Phase::Acquire;
        if job.total_bytes > u64::from(self.config.segment_bytes) || job.runs.is_empty() {
            let now_ms = self.now.wall_ms;
            for source in self.cleaner.job.take().into_iter().flat_map(|job| job.sources) {
                if let Some(segment) = self.segments.get_mut(&source) {
                    segment.sealed_ms = now_ms;
                }
            }
        }
    }

    fn clean_submit(&mut self, operation: Operation) {
        if let Some(job) = self.cleaner.job.as_mut() {
            job.in_flight = true;
        }
        self.submit(Pending::Clean, operation);
    }

    fn clean_extend(&mut self) {
        let Some(job) = self.cleaner.job.as_mut() else { return };
        let Some(file) = job.file else { return };
        if file.written_bytes >= job.total_bytes {
            job.phase = Phase::Copy;
            return;
        }
        let to_bytes = (file.written_bytes + self.config.extend_step_bytes).min(job.total_bytes.next_multiple_of(BLOCK_BYTES as u64));
        self.clean_submit(Operation::Extend { file: file.file, to_bytes });
    }

    /// Reads the next stretch of one source, or writes what has been read, or goes on to the footer.
    fn clean_copy(&mut self) {
        let Some(job) = self.cleaner.job.as_mut() else { return };
        let Some(file) = job.file else { return };
        if job.out.len() >= STEP_BYTES as usize || (job.runs.is_empty() && !job.out.is_empty()) {
            let whole = if job.runs.is_empty() { job.out.len() } else { job.out.len() / BLOCK_BYTES * BLOCK_BYTES };
            let padded = block_up(whole as u32) as usize;
            let Ok(mut buffer) = self.allocate(padded) else { return self.clean_later(10_000) };
            let Some(job) = self.cleaner.job.as_mut() else { return };
            buffer[..whole].copy_from_slice(&job.out[..whole]);
            buffer[whole..].fill(0);
            job.out.drain(..whole);
            let position = u64::from(job.written_to);
            job.written_to += padded as u32;
            let rate = self.config.clean_bytes_per_second.max(1);
            self.clean_later(padded as u64 * 1_000_000 / rate);
            self.counters.bytes_cleaned += whole as u64;
            return self.clean_submit(Operation::Write { file: file.file, position, data: buffer.freeze(), durable: false });
        }
        let Some((_, source, first)) = job.runs.front().copied() else {
            job.phase = Phase::Footer;
            return;
        };
        let start = first.position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32;
        let mut end = first.position + first.len;
        for (_, number, run) in job.runs.iter().skip(1) {
            if *number != source || run.position != end || run.position + run.len - start > STEP_BYTES {
                break;
            }
            end = run.position + run.len;
        }
        let Some(file) = self.segments.get(&source).map(|source| source.file) else { return self.abandon_cleaning() };
        let Ok(into) = self.allocate((block_up(end) - start) as usize) else { return self.clean_later(10_000) };
        self.clean_submit(Operation::Read { file, position: u64::from(start), into });
    }

    fn clean_later(&mut self, us: u64) {
        self.cleaner.next_us = self.now.monotonic_us + us;
    }

    fn clean_footer(&mut self) {
        let Some(job) = self.cleaner.job.as_mut() else { return };
        let Some(file) = job.file else { return };
        if job.footer.is_empty() {
            (job.footer, job.directory_count) = job.index.footer();
        }
        let padded = block_up(job.footer.len() as u32) as usize;
        let Ok(mut buffer) = self.allocate(padded) else { return self.clean_later(10_000) };
        let Some(job) = self.cleaner.job.as_ref() else { return };
        buffer.fill(0);
        buffer[..job.footer.len()].copy_from_slice(&job.footer);
        let position = u64::from(block_up(job.end_position));
        self.clean_submit(Operation::Write { file: file.file, position, data: buffer.freeze(), durable: false });
    }

    fn clean_seal(&mut self) {
        let Some(job) = self.cleaner.job.as_ref() else { return };
        let Some(file) = job.file else { return };
        let seed = seed(job.salt);
        let directory = &job.footer[..job.directory_count as usize * DIRECTORY_ENTRY_BYTES];
        let seal = SealBlock {
            magic: SEAL_MAGIC,
            number: job.number,
            end_position: job.end_position,
            footer_position: block_up(job.end_position),
            footer_len: job.footer.len() as u32,
            footer_crc: crc32c::crc32c_append(seed, &job.footer),
            directory_count: job.directory_count,
            directory_crc: crc32c::crc32c_append(seed, directory),
            group_crc: 0,
            last_sequence: 0,
            checkpoint: LogPoint::default(),
            crc: 0,
        };
        let header = SegmentHeader {
            magic: SEGMENT_MAGIC,
            version: FORMAT_VERSION,
            shard: self.config.shard.0,
            kind: SegmentKind::Store as u16,
            reserved: 0,
            number: job.number,
            salt: job.salt,
            epoch: self.epoch,
            segment_bytes: self.config.segment_bytes,
            first_sequence: 0,
            previous: EpochEnd::default(),
            checkpoint: LogPoint::default(),
            crc: 0,
        };
        let Ok(mut buffer) = self.allocate(DATA_START as usize) else { return self.clean_later(10_000) };
        buffer[..BLOCK_BYTES].copy_from_slice(&header.to_block());
        buffer[BLOCK_BYTES..].copy_from_slice(&seal.to_block(seed));
        self.clean_submit(Operation::Write { file: file.file, position: 0, data: buffer.freeze(), durable: false });
    }

    /// Everything of the store is written: one flush makes it stable.
    fn clean_header(&mut self) {
        if let Some(file) = self.cleaner.job.as_ref().and_then(|job| job.file) {
            self.clean_submit(Operation::Flush { file: file.file });
        }
    }

    fn clean_swap(&mut self) {
        let Some(job) = self.cleaner.job.take() else { return };
        let (Some(file), Some(footer)) = (job.file, Footer::read(&job.footer, job.directory_count)) else { return };
        let seed = seed(job.salt);
        let store = Segment {
            number: job.number,
            file: file.file,
            written_bytes: file.written_bytes,
            kind: SegmentKind::Store,
            seed,
            last_sequence: 0,
            last_group_crc: 0,
            end_position: job.end_position,
            live_bytes: 0,
            sealed_ms: self.now.wall_ms,
            partition_count: footer.directory.len() as u32,
            leases: 0,
            extending: false,
            damaged: false,
            state: State::Sealed {
                footer_position: block_up(job.end_position),
                footer_len: job.footer.len() as u32,
                footer_crc: crc32c::crc32c_append(seed, &job.footer),
                directory_count: job.directory_count,
            },
        };
        self.counters.segments_cleaned += job.sources.len() as u64;
        if self.log_swap(job.sources.clone(), vec![(store, footer)]).is_some() {
            // No room for the record now: the same job again from its last step.
            self.counters.segments_cleaned -= job.sources.len() as u64;
            self.cleaner.job = Some(job);
            self.clean_later(10_000);
        }
    }

    pub(super) fn cleaner_done(&mut self, outcome: Outcome) {
        let Some(job) = self.cleaner.job.as_mut() else { return };
        job.in_flight = false;
        match (job.phase, outcome) {
            (Phase::Acquire, Outcome::Acquired(Ok(file))) => {
                job.file = Some(file);
                job.phase = Phase::Extend;
            }
            (Phase::Extend, Outcome::Extended(Ok(file))) => job.file = Some(file),
            (Phase::Acquire | Phase::Extend, _) => self.abandon_cleaning(),
            (Phase::Copy, Outcome::Read(result)) => self.clean_read_done(result),
            (_, Outcome::Written(Err(fault)) | Outcome::Flushed(Err(fault))) => {
                self.cleaner.job = None;
                self.fence_off(fault);
            }
            (Phase::Footer, Outcome::Written(Ok(()))) => job.phase = Phase::Seal,
            (Phase::Seal, Outcome::Written(Ok(()))) => job.phase = Phase::Header,
            (Phase::Header, Outcome::Flushed(Ok(()))) => job.phase = Phase::Swap,
            _ => {}
        }
    }

    fn clean_read_done(&mut self, result: Result<crate::device::Buffer, Fault>) {
        let Some(mut job) = self.cleaner.job.take() else { return };
        let Some((_, source, first)) = job.runs.front().copied() else { return };
        let start = first.position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32;
        let verified = result.map_err(|_| ()).and_then(|buffer| {
            while let Some((partition, number, run)) = job.runs.front().copied()
                && number == source
                && run.position >= start
                && let Some(bytes) = buffer.get((run.position - start) as usize..(run.position - start + run.len) as usize)
            {
                self.verify_frames(bytes, &Extent { segment: source, position: run.position, len: run.len }).map_err(|_| ())?;
                let list = job.index.list_of(PartitionId(partition));
                for frame in frames(bytes).flatten() {
                    let copy =
                        super::recovery::run_of(&frame.header, frame.largest_timestamp_ms(), job.end_position, frame.padded_bytes() as u32);
                    job.index.push(list, copy, self.config.run_bytes);
                    job.end_position += copy.len;
                }
                job.out.extend_from_slice(bytes);
                job.runs.pop_front();
            }
            Ok(())
        });
        self.cleaner.job = Some(job);
        if verified.is_err() {
            // The damage stays where it is, for 'log verify' to show; the segment is left alone from now on.
            if let Some(segment) = self.segments.get_mut(&source) {
                segment.damaged = true;
            }
            self.abandon_cleaning();
        }
    }

    fn abandon_cleaning(&mut self) {
        if let Some(job) = self.cleaner.job.take()
            && let Some(file) = job.file
        {
            self.submit(Pending::Release, Operation::Release { file: file.file });
        }
        self.clean_later(CHECK_US);
    }
}
