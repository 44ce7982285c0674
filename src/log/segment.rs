//! Segments: opening the next one, sealing the last one, letting dead ones go.

use ringmain_wire::{Offset, PartitionId};

use crate::device::{BLOCK_BYTES, Fault, FileId, Operation, SegmentFile};

use super::format::{EpochEnd, LogPoint, LogRecord, SealBlock, SegmentHeader, SegmentKind, block_up};
use super::index::RunIndex;
use super::{Log, LogEvent, Pending, Plant, Stop};

/// One segment that is alive.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub file: FileId,
    /// The file's written blocks end here.
    pub written_bytes: u64,
    pub kind: SegmentKind,
    /// Of its checksums.
    pub seed: u32,
    pub last_sequence: u64,
    pub last_group_crc: u32,
    /// The byte after the last group or frame.
    pub end_position: u32,
    /// Bytes of frames above their partitions' starts.
    pub live_bytes: u64,
    /// Of them, those that are dead all the same, as far as known.
    pub dead_bytes: u64,
    /// What was alive when the cleaner found that it isn't worth its while; 0 = it hasn't.
    pub passed_over_bytes: u64,
    /// When it was sealed, ms since the Unix epoch (at recovery: when it was read).
    pub sealed_ms: i64,
    /// Partitions with frames in it.
    pub partition_count: u32,
    /// Replies and reads that still need its bytes.
    pub leases: u32,
    pub extending: bool,
    /// The cleaner leaves it alone: it holds a damaged frame.
    pub damaged: bool,
    pub state: State,
}

/// Life of a segment.
#[derive(Debug)]
pub(super) enum State {
    /// Takes groups; its runs are in `Log::index`.
    Active,
    /// Full; its footer is being written.
    Sealing { index: RunIndex, footer: Vec<u8>, directory_count: u32, written: usize, in_flight: bool, sealing: bool },
    /// Has a footer.
    Sealed { footer_position: u32, footer_len: u32, footer_crc: u32, directory_count: u32 },
}

/// The file that becomes the next active segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    None,
    Acquiring,
    Ready(SegmentFile),
    Extending(SegmentFile),
}

/// A swap record on its way to stable media.
#[derive(Debug)]
pub(super) struct PendingSwap {
    pub sequence: u64,
    pub sources: Vec<u64>,
    /// Partitions with places in the sources.
    pub partitions: Vec<u32>,
    /// Of dead frames that are left out.
    pub dropped_bytes: u64,
    /// Filled by the cleaner: complete on disk, not yet in use.
    pub stores: Vec<(Segment, super::index::Footer)>,
}

/// A footer leaves in pieces of this.
const FOOTER_PIECE_BYTES: usize = 256 << 10;
/// After the disk was full, a file is asked for again after so long.
const RETRY_US: u64 = 250_000;

impl Segment {
    pub fn is_sealed(&self) -> bool {
        matches!(self.state, State::Sealed { .. })
    }

    /// Bytes of frames not known to be dead.
    pub fn alive_bytes(&self) -> u64 {
        self.live_bytes - self.dead_bytes
    }
}

/// A well-mixed number from a counter (splitmix64): salts only need to be unlike each other and unknown outside.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Log {
    pub(super) fn segment(&self, number: u64) -> Option<&Segment> {
        self.segments.get(&number).or_else(|| self.dying.get(&number))
    }

    /// A salt nobody outside knows.
    pub(super) fn new_salt(&mut self) -> u64 {
        if self.config.plant == Some(Plant::SaltUnchecked) {
            return 0;
        }
        self.salts += 1;
        mix(self.config.entropy ^ mix(self.salts ^ (u64::from(self.epoch) << 32)))
    }

    /// Replaces the active segment by the next one, if that is ready.
    pub(super) fn roll(&mut self) -> bool {
        let Next::Ready(file) = self.next else { return false };
        let Ok(buffer) = self.allocate(BLOCK_BYTES) else { return false };
        self.seal_active();
        self.next = Next::None;
        self.reserve_active = std::mem::take(&mut self.reserve_next);
        self.open_segment(file, EpochEnd::default(), Some(buffer));
        true
    }

    /// Makes `file` the active segment; with a `buffer`, its header is written through the commit queue.
    pub(super) fn open_segment(&mut self, file: SegmentFile, previous: EpochEnd, buffer: Option<crate::device::Buffer>) -> SegmentHeader {
        let number = self.next_number;
        self.next_number += 1;
        let salt = self.new_salt();
        let header = SegmentHeader {
            magic: super::format::SEGMENT_MAGIC,
            version: super::format::FORMAT_VERSION,
            shard: self.config.shard.0,
            kind: SegmentKind::Log as u16,
            reserved: 0,
            number,
            salt,
            epoch: self.epoch,
            segment_bytes: self.config.segment_bytes,
            first_sequence: self.sequence + 1,
            previous,
            checkpoint: self.checkpoint,
            crc: 0,
        };
        let segment = Segment {
            number,
            file: file.file,
            written_bytes: file.written_bytes,
            kind: SegmentKind::Log,
            seed: super::format::seed(salt),
            last_sequence: self.sequence,
            last_group_crc: self.previous_crc,
            end_position: super::format::DATA_START,
            live_bytes: 0,
            dead_bytes: 0,
            passed_over_bytes: 0,
            sealed_ms: 0,
            partition_count: 0,
            leases: 0,
            extending: false,
            damaged: false,
            state: State::Active,
        };
        self.segments.insert(number, segment);
        self.active = number;
        self.active_first_sequence = self.sequence + 1;
        self.position = super::format::DATA_START;
        if let Some(mut buffer) = buffer {
            buffer.copy_from_slice(&header.to_block());
            self.submit_commit(self.sequence, file.file, 0, buffer.freeze(), true);
        }
        self.counters.segments_rolled += 1;
        self.events.push_back(LogEvent::Rolled { segment: number });
        header
    }

    /// The active segment takes no more groups; its footer follows when its last group is flushed.
    pub(super) fn seal_active(&mut self) {
        let index = std::mem::take(&mut self.index);
        let now_ms = self.now.wall_ms;
        if let Some(segment) = self.segments.get_mut(&self.active) {
            segment.partition_count = index.partition_count();
            segment.sealed_ms = now_ms;
            segment.state = State::Sealing { index, footer: Vec::new(), directory_count: 0, written: 0, in_flight: false, sealing: false };
        }
    }

    /// Writes footers, a piece at a time, then seal blocks.
    pub(super) fn pump_seals(&mut self) {
        if self.fence.is_some() {
            return;
        }
        let flushed = self.flushed();
        let ready = self
            .segments
            .values()
            .find(|s| s.last_sequence <= flushed && matches!(s.state, State::Sealing { in_flight: false, .. }))
            .map(|s| s.number);
        let Some(number) = ready else { return };
        let checkpoint = self.checkpoint;
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let footer_position = block_up(segment.end_position);
        let (file, seed) = (segment.file, segment.seed);
        let State::Sealing { index, footer, directory_count, written, sealing, .. } = &mut segment.state else { return };
        if footer.is_empty() && index.run_count() > 0 {
            (*footer, *directory_count) = index.footer();
        }
        let (position, bytes) = if *written < footer.len() {
            let piece = &footer[*written..footer.len().min(*written + FOOTER_PIECE_BYTES)];
            (footer_position + *written as u32, piece.to_vec())
        } else if self.note == Some(number) {
            return;
        } else {
            let seal = SealBlock {
                magic: super::format::SEAL_MAGIC,
                number,
                end_position: segment.end_position,
                footer_position,
                footer_len: footer.len() as u32,
                footer_crc: crc32c::crc32c_append(seed, footer),
                directory_count: *directory_count,
                directory_crc: crc32c::crc32c_append(seed, &footer[..*directory_count as usize * super::format::DIRECTORY_ENTRY_BYTES]),
                group_crc: segment.last_group_crc,
                last_sequence: segment.last_sequence,
                checkpoint,
                crc: 0,
            };
            *sealing = true;
            (BLOCK_BYTES as u32, seal.to_block(seed).to_vec())
        };
        // The footer lies beyond the written end only if the file is shorter than its segment.
        let end = u64::from(position) + u64::from(block_up(bytes.len() as u32));
        if end > segment.written_bytes {
            if !segment.extending {
                segment.extending = true;
                let to_bytes = (segment.written_bytes + self.config.extend_step_bytes).min(u64::from(self.config.segment_bytes)).max(end);
                self.submit(Pending::Extend { file }, Operation::Extend { file, to_bytes });
            }
            if let Some(Segment { state: State::Sealing { sealing, .. }, .. }) = self.segments.get_mut(&number) {
                *sealing = false;
            }
            return;
        }
        let allocated = self.allocate(block_up(bytes.len() as u32) as usize);
        let Some(Segment { state: State::Sealing { in_flight, sealing, .. }, .. }) = self.segments.get_mut(&number) else { return };
        let Ok(mut buffer) = allocated else {
            *sealing = false;
            return;
        };
        buffer.fill(0);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        *in_flight = true;
        self.submit(
            Pending::Seal { segment: number, point: checkpoint },
            Operation::Write { file, position: u64::from(position), data: buffer.freeze(), durable: true },
        );
    }

    pub(super) fn seal_written(&mut self, number: u64, point: LogPoint, result: Result<(), Fault>) {
        if let Err(fault) = result {
            return self.fence_off(fault);
        }
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let footer_position = block_up(segment.end_position);
        let seed = segment.seed;
        let State::Sealing { footer, directory_count, written, in_flight, sealing, .. } = &mut segment.state else { return };
        *in_flight = false;
        if !*sealing {
            *written = footer.len().min(*written + FOOTER_PIECE_BYTES);
            return;
        }
        let (footer, directory_count) = (std::mem::take(footer), *directory_count);
        segment.state = State::Sealed {
            footer_position,
            footer_len: footer.len() as u32,
            footer_crc: crc32c::crc32c_append(seed, &footer),
            directory_count,
        };
        if let Some(footer) = super::index::Footer::read(&footer, directory_count) {
            self.footers.insert(number, footer);
        }
        self.checkpoint_anchored(point);
    }

    /// Asks for written blocks ahead of the writer, and for the next file in time.
    pub(super) fn pump_segments(&mut self) {
        if self.fence.is_some() || self.stop != Stop::No || self.now.monotonic_us < self.retry_us {
            return;
        }
        let segment_bytes = u64::from(self.config.segment_bytes);
        let position = u64::from(self.position);
        let Some(active) = self.segments.get(&self.active) else { return };
        if active.written_bytes < segment_bytes && active.written_bytes < position + self.config.ahead_bytes {
            self.extend_wanted();
        }
        match self.next {
            Next::None if self.blocked || position > segment_bytes / 2 => {
                self.next = Next::Acquiring;
                self.reserve_next = self.disk_full && std::mem::take(&mut self.state_starved);
                let at_least_bytes = if self.reserve_next { 0 } else { self.config.acquire_bytes.min(segment_bytes) };
                self.submit(Pending::Acquire, Operation::Acquire { at_least_bytes });
            }
            Next::Ready(file) if file.written_bytes < segment_bytes.min(self.config.ahead_bytes) && position > segment_bytes / 4 * 3 => {
                self.next = Next::Extending(file);
                let to_bytes = (file.written_bytes + self.config.extend_step_bytes).min(segment_bytes);
                self.submit(Pending::Extend { file: file.file }, Operation::Extend { file: file.file, to_bytes });
            }
            _ => {}
        }
    }

    /// Asks for more written blocks in the active segment, unless that is under way.
    pub(super) fn extend_wanted(&mut self) {
        let segment_bytes = u64::from(self.config.segment_bytes);
        let Some(active) = self.segments.get_mut(&self.active) else { return };
        if active.extending || active.written_bytes >= segment_bytes || self.now.monotonic_us < self.retry_us {
            return;
        }
        active.extending = true;
        let (file, to_bytes) = (active.file, (active.written_bytes + self.config.extend_step_bytes).min(segment_bytes));
        self.submit(Pending::Extend { file }, Operation::Extend { file, to_bytes });
    }

    pub(super) fn acquired(&mut self, result: Result<SegmentFile, Fault>) {
        match result {
            Ok(file) => {
                self.next = Next::Ready(file);
                self.disk_full = self.reserve_next;
                if self.reserve_next {
                    // Taken for records that wait; data stays refused until a file that isn't from the reserve is had.
                    self.seal_group();
                    self.roll();
                }
                self.unblock();
            }
            Err(_) => {
                self.next = Next::None;
                self.no_file();
            }
        }
    }

    pub(super) fn extended(&mut self, file: FileId, result: Result<SegmentFile, Fault>) {
        if let Next::Extending(next) = self.next
            && next.file == file
        {
            self.next = Next::Ready(result.unwrap_or(next));
            return self.unblock();
        }
        if let Some(segment) = self.segments.values_mut().find(|s| s.file == file) {
            segment.extending = false;
            if let Ok(longer) = result {
                segment.written_bytes = longer.written_bytes;
            }
        }
        match result {
            Ok(_) => {
                self.disk_full = false;
                self.unblock();
            }
            Err(_) => self.no_file(),
        }
    }

    /// Failing to make a segment is no device fault: writes that need it are refused until it works.
    fn no_file(&mut self) {
        self.disk_full = true;
        self.retry_us = self.now.monotonic_us + RETRY_US;
        self.unblock();
    }

    pub(super) fn retry_deadline_us(&self) -> Option<u64> {
        (self.disk_full && self.fence.is_none()).then_some(self.retry_us.max(self.now.monotonic_us + 1_000))
    }

    /// Numbers of the segments that are alive as far as the log's records say, swaps on their way included.
    pub(super) fn live_segments(&self) -> Vec<u64> {
        let swapped = |number: &u64| self.swaps.iter().any(|swap| swap.sources.contains(number));
        let stores = self.swaps.iter().flat_map(|swap| swap.stores.iter().map(|(store, _)| store.number));
        let mut live: Vec<u64> = self.segments.keys().copied().filter(|number| !swapped(number)).chain(stores).collect();
        live.sort_unstable();
        live
    }

    /// Everything of `partition` below `offset` is dead. The caller has made that durable.
    pub fn truncate_before(&mut self, partition: PartitionId, offset: Offset) {
        let Some(places) = self.partitions.get_mut(partition.0 as usize) else { return };
        places.start_offset = places.start_offset.max(offset.0);
        while let Some(first) = places.places.front().copied()
            && first.end_offset <= offset.0
        {
            places.places.pop_front();
            places.bytes -= first.bytes;
            if places.active_segment == first.segment {
                places.active_segment = 0;
            }
            if let Some(segment) = self.segments.get_mut(&first.segment) {
                segment.live_bytes = segment.live_bytes.saturating_sub(first.bytes);
                segment.dead_bytes = segment.dead_bytes.saturating_sub(first.dead_bytes());
            }
        }
        self.retire_dead_segments();
    }

    /// Everything of `partition` is dead.
    pub fn drop_partition(&mut self, partition: PartitionId) {
        self.forget_dead(partition);
        self.truncate_before(partition, Offset(u64::MAX));
    }

    /// The oldest place of `partition`: (offset after it, largest append time in ms, bytes). `None` = nothing stored.
    pub fn oldest(&self, partition: PartitionId) -> Option<(Offset, i64, u64)> {
        let place = self.partitions.get(partition.0 as usize)?.places.front()?;
        Some((Offset(place.end_offset), place.append_time_ms, place.bytes))
    }

    /// Logs that sealed segments without a live byte are dead; they are released when that is flushed.
    pub(super) fn retire_dead_segments(&mut self) {
        if self.fence.is_some() || self.stop != Stop::No {
            return;
        }
        let dead =
            |s: &Segment| s.alive_bytes() == 0 && s.is_sealed() && (s.kind == SegmentKind::Store || s.number < self.anchored.segment);
        let swapped = |number: u64| self.swaps.iter().any(|swap| swap.sources.contains(&number));
        let sources: Vec<u64> =
            self.segments.values().filter(|s| dead(s) && !swapped(s.number) && !self.cleaner.uses(s.number)).map(|s| s.number).collect();
        if !sources.is_empty() {
            // What is below its partition's start has no place any more; what is dead above it has.
            let holds = |partition: &u32| {
                self.partitions.get(*partition as usize).is_some_and(|p| p.places.iter().any(|place| sources.contains(&place.segment)))
            };
            let partitions = self.dead.partitions().filter(holds).collect();
            let dropped_bytes = sources.iter().filter_map(|number| self.segments.get(number)).map(|segment| segment.dead_bytes).sum();
            self.log_swap(PendingSwap { sequence: 0, sources, partitions, dropped_bytes, stores: Vec::new() });
        }
    }

    /// Appends a swap record; the sequence is still to be given. False = there was no room: nothing has changed.
    pub(super) fn log_swap(&mut self, swap: PendingSwap) -> bool {
        let record = LogRecord::Swap { sources: swap.sources.clone(), stores: swap.stores.iter().map(|(s, _)| s.number).collect() };
        let Ok(appended) = self.append_log_record(&record) else { return false };
        self.swaps.push_back(PendingSwap { sequence: appended.sequence, ..swap });
        if self.config.plant == Some(Plant::RecycleEarly) {
            self.apply_swaps(u64::MAX);
        }
        true
    }

    /// Makes swaps effective whose records are flushed.
    pub(super) fn apply_swaps(&mut self, flushed: u64) {
        while let Some(swap) = self.swaps.pop_front_if(|swap| swap.sequence <= flushed) {
            for &partition in &swap.partitions {
                if let Some(places) = self.partitions.get_mut(partition as usize) {
                    places.remove_segments(&swap.sources);
                }
            }
            for &source in &swap.sources {
                self.footers.remove(source);
                if let Some(segment) = self.segments.remove(&source) {
                    self.dying.insert(source, segment);
                }
            }
            for (mut store, footer) in swap.stores {
                self.place_store(&mut store, &footer);
                self.footers.insert(store.number, footer);
                self.segments.insert(store.number, store);
            }
            self.counters.bytes_dropped += swap.dropped_bytes;
            self.release_dying();
        }
    }

    fn place_store(&mut self, store: &mut Segment, footer: &super::index::Footer) {
        store.live_bytes = 0;
        for entry in &footer.directory {
            let place = super::index::Place::from_directory(store.number, entry);
            let places = self.places(PartitionId(entry.partition));
            // What was truncated while the cleaner copied stays dead.
            if place.end_offset > places.start_offset {
                places.insert_joined(place);
                store.live_bytes += place.bytes;
            }
        }
    }

    pub(super) fn release_dying(&mut self) {
        let gone: Vec<u64> = self.dying.values().filter(|s| s.leases == 0 && !s.extending).map(|s| s.number).collect();
        for number in gone {
            if let Some(segment) = self.dying.remove(&number) {
                // Its chunks may outlive it in the tail cache, but no place names them any more.
                self.counters.segments_released += 1;
                self.submit(Pending::Release, Operation::Release { file: segment.file });
            }
        }
    }

    /// A reply still needs the bytes of `segment`: its file isn't reused until [`Log::release`].
    pub fn lease(&mut self, segment: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.leases += 1;
        } else if let Some(segment) = self.dying.get_mut(&segment) {
            segment.leases += 1;
        }
    }

    /// Ends a lease.
    pub fn release(&mut self, segment: u64) {
        let found = match self.segments.get_mut(&segment) {
            Some(segment) => Some(segment),
            None => self.dying.get_mut(&segment),
        };
        if let Some(segment) = found {
            debug_assert!(segment.leases > 0, "a lease was ended twice");
            segment.leases = segment.leases.saturating_sub(1);
        }
        if self.dying.contains_key(&segment) {
            self.release_dying();
        }
    }
}
