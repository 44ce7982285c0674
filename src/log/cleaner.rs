//! Turns sealed segments that are half dead, or mix partitions, into store segments: clustered by partition,
//! ordered by offset, frames unchanged, those that the shard has said to be dead left out.
//!
//! One operation at a time, at a byte rate of its own. The store is complete and flushed before the swap
//! record is appended; the sources are released after that record is flushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringmain_wire::frame::frames;
use ringmain_wire::{Offset, PartitionId};

use crate::device::{BLOCK_BYTES, Fault, Operation, Outcome, SegmentFile};
use crate::request::Extent;

use super::dead::{self, Ranges};
use super::format::{
    DATA_START, DIRECTORY_ENTRY_BYTES, EpochEnd, FORMAT_VERSION, LogPoint, Run, SEAL_MAGIC, SEGMENT_MAGIC, SealBlock, SegmentHeader,
    SegmentKind, block_up, seed,
};
use super::index::{Footer, Place, RunIndex};
use super::segment::{PendingSwap, Segment, State};
use super::{Log, Pending, Stop};

/// The cleaner looks again after this, while it isn't told all that is dead.
const PARTIAL_US: u64 = 10_000;
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
    /// Some of them mix partitions, and are to be rewritten for that alone.
    any_mixed: bool,
    /// What was dead when the job began.
    dead: BTreeMap<u32, Ranges>,
    /// Somebody wants that again.
    is_revoked: bool,
    /// Partitions with frames in the sources.
    partitions: BTreeSet<u32>,
    /// Sources whose live runs are in `runs`, and the bytes of what is alive in those: where a run is dead in part, about so many.
    gathered: usize,
    gathered_bytes: u64,
    /// Of dead frames left out.
    dropped_bytes: u64,
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

    pub fn is_busy(&self) -> bool {
        self.job.is_some()
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
            // What is dead is being told: nearly all of it is known soon.
            let wait_us = if self.dead.is_partial { PARTIAL_US } else { u64::MAX };
            self.cleaner.next_us = self.now.monotonic_us + self.config.clean_check_us.min(wait_us);
            self.pick_sources();
            return;
        };
        if job.in_flight {
            return;
        }
        if job.is_revoked {
            return self.abandon_cleaning();
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
        // Passed over once, it waits until it has lost half of what it had then.
        let half_dead =
            |s: &Segment| s.alive_bytes() * 2 < s.written_bytes && (s.passed_over_bytes == 0 || s.alive_bytes() * 2 < s.passed_over_bytes);
        self.dead.were_seen |= !self.dead.is_partial;
        let free = |s: &Segment| {
            s.is_sealed()
                && !s.damaged
                && s.alive_bytes() > 0
                && (s.kind == SegmentKind::Store || s.number < self.anchored.segment)
                && !self.swaps.iter().any(|swap| swap.sources.contains(&s.number))
        };
        let room = self.store_room();
        let (mut sources, mut bytes, mut any_mixed) = (Vec::new(), 0, false);
        for segment in self.segments.values().filter(|s| free(s) && (mixed(s) || half_dead(s))) {
            if sources.is_empty() || (sources.len() < SOURCES_MAX && bytes + segment.alive_bytes() <= room) {
                bytes += segment.alive_bytes();
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
            any_mixed,
            dead: self.dead.snapshot(),
            is_revoked: false,
            partitions: BTreeSet::new(),
            gathered: 0,
            gathered_bytes: 0,
            dropped_bytes: 0,
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

    /// What one segment held, one store holds: frames lie closer there. More must leave room for a footer.
    fn store_room(&self) -> u64 {
        u64::from(self.config.segment_bytes) / 8 * 7 - u64::from(DATA_START)
    }

    /// Source by source, as their footers come: what is alive. Then all of it by partition and offset.
    fn clean_footers(&mut self) {
        let room = self.store_room();
        let Some(job) = self.cleaner.job.as_mut() else { return };
        while let Some(&source) = job.sources.get(job.gathered) {
            let Some(footer) = self.footers.get(source) else { return self.read_footer(source) };
            let (before, mut bytes, mut dropped_bytes) = (job.runs.len(), 0, 0);
            for entry in &footer.directory {
                let Some(places) = self.partitions.get(entry.partition as usize) else { continue };
                let mut met = places.places.range(places.first_after(entry.base_offset)..).take_while(|p| p.base_offset < entry.end_offset);
                if met.any(|p: &Place| p.segment == source) {
                    job.partitions.insert(entry.partition);
                    let dead = job.dead.get(&entry.partition).map_or(&[][..], |ranges| ranges.as_slice());
                    for run in footer.runs_of_entry(entry).iter().filter(|run| run.end_offset() > places.start_offset) {
                        if dead::covers(dead, run.base_offset, run.end_offset()) {
                            dropped_bytes += u64::from(run.len);
                        } else {
                            bytes += u64::from(run.len) - dead_bytes_in(run, dead, self.config.hole_bytes_min);
                            job.runs.push_back((entry.partition, source, *run));
                        }
                    }
                }
            }
            // More is alive than it seemed: the rest is for another time.
            if job.gathered > 0 && job.gathered_bytes + bytes > room {
                job.runs.truncate(before);
                job.sources.truncate(job.gathered);
                break;
            }
            job.dropped_bytes += dropped_bytes;
            job.gathered += 1;
            job.gathered_bytes += bytes;
        }
        if job.runs.is_empty() {
            return self.clean_swap_out();
        }
        if job.sources.len() < 2 && !job.any_mixed {
            return self.pass_over();
        }
        let runs = job.runs.make_contiguous();
        runs.sort_unstable_by_key(|(partition, _, run)| (*partition, run.base_offset));
        let stretches = runs.chunk_by(|a, b| a.0 == b.0 && a.2.end_offset() == b.2.base_offset).count();
        let footer_bytes = runs.len() * super::format::RUN_BYTES + stretches * DIRECTORY_ENTRY_BYTES;
        let blocks = |bytes: u64| bytes.next_multiple_of(BLOCK_BYTES as u64);
        job.total_bytes = blocks(u64::from(DATA_START) + job.gathered_bytes) + blocks(footer_bytes as u64);
        job.phase = Phase::Acquire;
        if job.total_bytes > u64::from(self.config.segment_bytes) {
            self.pass_over();
        }
    }

    /// It isn't worth while: another time, when less is alive.
    fn pass_over(&mut self) {
        let now_ms = self.now.wall_ms;
        let Some(job) = self.cleaner.job.take() else { return };
        for source in &job.sources {
            if let Some(segment) = self.segments.get_mut(source) {
                segment.sealed_ms = now_ms;
                segment.passed_over_bytes = segment.alive_bytes().max(1);
            }
        }
        if let Some(file) = job.file {
            self.submit(Pending::Release, Operation::Release { file: file.file });
        }
    }

    /// The store needs more than it has: false, and the file is made longer, or the job given up. Frames go whole, so more may be alive
    /// than seemed.
    fn has_bytes(&mut self, needed: u64) -> bool {
        let Some((job, file)) = self.cleaner.job.as_mut().and_then(|job| job.file.map(|file| (job, file))) else { return false };
        if needed <= file.written_bytes {
            return true;
        }
        if needed > u64::from(self.config.segment_bytes) {
            self.pass_over();
            return false;
        }
        job.total_bytes = needed;
        job.phase = Phase::Extend;
        false
    }

    /// Nothing in the sources is alive.
    fn clean_swap_out(&mut self) {
        let Some(job) = self.cleaner.job.take() else { return };
        self.swap(job, Vec::new());
    }

    fn swap(&mut self, job: Job, stores: Vec<(Segment, Footer)>) {
        let (sources, partitions) = (job.sources.clone(), job.partitions.iter().copied().collect());
        self.counters.segments_cleaned += job.sources.len() as u64;
        if !self.log_swap(PendingSwap { sequence: 0, sources, partitions, dropped_bytes: job.dropped_bytes, stores }) {
            // No room for the record now: the same job again from its last step.
            self.counters.segments_cleaned -= job.sources.len() as u64;
            self.cleaner.job = Some(job);
            self.clean_later(10_000);
        }
    }

    /// A job that leaves records of `partition` from `offset` on out isn't finished.
    pub(super) fn revoke_cleaning(&mut self, partition: PartitionId, offset: Offset) {
        if let Some(job) = self.cleaner.job.as_mut() {
            job.is_revoked |= job.dead.get(&partition.0).is_some_and(|ranges| dead::reaches(ranges, offset.0));
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
            let needed = u64::from(job.written_to) + padded as u64;
            if !self.has_bytes(needed) {
                return;
            }
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
        let needed = u64::from(block_up(job.end_position)) + padded as u64;
        if !self.has_bytes(needed) {
            return;
        }
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
            dead_bytes: 0,
            passed_over_bytes: 0,
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
        self.swap(job, vec![(store, footer)]);
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
                let has_room = job.index.run_count() < self.config.active_runs_max;
                let dead = job.dead.get(&partition).filter(|_| has_room).map_or(&[][..], |ranges| ranges.as_slice());
                let list = job.index.list_of(PartitionId(partition));
                let mut copy_frames = |stretch: &[u8]| {
                    for frame in frames(stretch).flatten() {
                        let bytes = frame.padded_bytes() as u32;
                        let copy = super::recovery::run_of(&frame.header, frame.largest_timestamp_ms(), job.end_position, bytes);
                        job.index.push(list, copy, self.config.run_bytes);
                        job.end_position += bytes;
                    }
                    job.out.extend_from_slice(stretch);
                };
                let mut from = 0;
                for (start, end) in dead_stretches(bytes, dead) {
                    if (end - start) as u32 >= self.config.hole_bytes_min {
                        copy_frames(&bytes[from..start]);
                        job.dropped_bytes += (end - start) as u64;
                        from = end;
                    }
                }
                copy_frames(&bytes[from..]);
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
        self.clean_later(self.config.clean_check_us);
    }
}

/// Where in `bytes`, whole frames, neighbouring ones lie whose records are all in `dead`.
fn dead_stretches(bytes: &[u8], dead: &[(u64, u64)]) -> Vec<(usize, usize)> {
    let mut stretches: Vec<(usize, usize)> = Vec::new();
    if dead.is_empty() {
        return stretches;
    }
    let mut at = 0;
    for frame in frames(bytes).flatten() {
        let end = at + frame.padded_bytes();
        if dead::covers(dead, frame.base_offset().0, frame.end_offset().0) {
            match stretches.last_mut() {
                Some((_, last)) if *last == at => *last = end,
                _ => stretches.push((at, end)),
            }
        }
        at = end;
    }
    stretches
}

/// Bytes of a run in `dead` where frames are equally long, and holes no smaller than `hole_bytes_min`.
fn dead_bytes_in(run: &Run, dead: &[(u64, u64)], hole_bytes_min: u32) -> u64 {
    let first = dead.partition_point(|(_, end)| *end <= run.base_offset);
    let within = dead[first..].iter().take_while(|(start, _)| *start < run.end_offset());
    let holes = within.map(|(start, end)| {
        let records = (*end).min(run.end_offset()) - (*start).max(run.base_offset);
        u64::from(run.len) * records / u64::from(run.record_count.max(1))
    });
    holes.filter(|bytes| *bytes >= u64::from(hole_bytes_min)).sum::<u64>().min(u64::from(run.len))
}
