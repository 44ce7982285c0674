//! From frames to groups: chunks, the open group, sealing.

use ringmain_wire::control::{Durability, write_open};
use ringmain_wire::frame::{self, Format, HEADER_BYTES, Identity, STAMPED_BYTES};
use ringmain_wire::{BrokerHalf, Frame, FrameHeader, Offset, PartitionId};

use crate::device::{ArenaFull, BLOCK_BYTES, Buffer, Chunk, Fault, Operation};
use crate::request::{Extent, Now};

use super::format::{
    self, COMMIT_HEADER_BYTES, COMMIT_MAGIC, CommitHeader, DIRECTORY_ENTRY_BYTES, LOG_RECORD_FLAG, LogRecord, RUN_BYTES, Run, SealBlock,
    block_up,
};
use super::index::Place;
use super::segment::{Next, State};
use super::{Append, AppendError, Appended, Log, Pending, Plant, Stop};

/// A piece of the log in memory: appended to while it is the last, read from until it is wanted back.
#[derive(Debug)]
pub(super) struct TailChunk {
    pub chunk: Chunk,
    pub segment: u64,
    /// Position in the segment of the chunk's first byte.
    pub base_position: u32,
    /// Sequence of its last group.
    pub last_sequence: u64,
}

/// The group being filled; its header's 64 bytes are reserved in the last chunk.
#[derive(Debug)]
pub(super) struct OpenGroup {
    pub sequence: u64,
    /// Offset of its header in the last chunk.
    pub chunk_at: usize,
    /// Its position in the active segment.
    pub position: u32,
    pub frame_count: u32,
    /// Salted checksum of the frame headers so far.
    pub crc: u32,
    /// Strictest mode of its frames.
    pub durability: Durability,
    pub opened_us: u64,
}

/// A lone group waits for company only when so much is pending behind writes in flight.
const OVERLAP_BYTES: usize = 64 << 10;
/// A group without frames.
const MARK_BYTES: u32 = BLOCK_BYTES as u32;
/// A group of `memory` frames is written when it has so many bytes, or after the flush time.
const LAZY_GROUP_BYTES: usize = 256 << 10;

impl Log {
    /// Appends one frame: stamps its broker half, copies it into the open group.
    ///
    /// It is in memory when this returns, on stable media when `flushed()` reaches the sequence returned.
    /// Errors: `Busy` and `DiskFull` pass, `Fenced` doesn't. Nothing has changed after an error.
    pub fn append(&mut self, append: Append<'_>) -> Result<Appended, AppendError> {
        let frame = &append.frame;
        let len = frame.padded_bytes() as u32;
        self.make_room(len, append.partition == PartitionId::STATE)?;
        let (Some(group), Some(tail)) = (self.group.as_mut(), self.chunks.back_mut()) else {
            return Err(AppendError::Busy);
        };
        let at = tail.chunk.len();
        let stamp = BrokerHalf::stamp(frame.len_bytes() as u32, append.base_offset, append.append_time_ms, self.epoch);
        tail.chunk.append(&stamp);
        tail.chunk.append(&frame.header.producer.to_bytes());
        match frame.body().split_at_checked(STAMPED_BYTES) {
            Some((head, rest)) if frame.header.producer.format == Format::Kafka as u8 => {
                // The batch's own offset and leader epoch, which no checksum covers.
                tail.chunk.append(&append.base_offset.0.to_be_bytes());
                tail.chunk.append(&head[8..12]);
                tail.chunk.append(&self.epoch.to_be_bytes());
                tail.chunk.append(rest);
            }
            _ => tail.chunk.append(frame.body()),
        }
        tail.chunk.append_zeros(len as usize - frame.len_bytes());
        group.crc = crc32c::crc32c_append(group.crc, tail.chunk.bytes(at..at + HEADER_BYTES));
        group.frame_count += 1;
        if strictness(append.durability) > strictness(group.durability) {
            group.durability = append.durability;
        }
        let sequence = group.sequence;
        let extent = Extent { segment: tail.segment, position: tail.base_position + at as u32, len };
        if append.partition != PartitionId::STATE {
            self.index_frame(&append, extent);
        }
        Ok(Appended { sequence, extent })
    }

    /// Appends a state record of the shard: durable, not in the index, and with a reserve for full disks.
    pub fn append_state(&mut self, body: &[u8], now: Now) -> Result<Appended, AppendError> {
        self.now = now;
        self.append_record(body, 0)
    }

    pub(super) fn append_log_record(&mut self, record: &LogRecord) -> Result<Appended, AppendError> {
        let mut body = Vec::new();
        write_open(record, &mut body);
        self.append_record(&body, LOG_RECORD_FLAG)
    }

    fn append_record(&mut self, body: &[u8], flags: u8) -> Result<Appended, AppendError> {
        let mut bytes = vec![0; HEADER_BYTES + body.len()];
        bytes[HEADER_BYTES..].copy_from_slice(body);
        frame::seal(&mut bytes, Format::State, 1, Identity { flags, ..Identity::plain(PartitionId::STATE) });
        let header = FrameHeader::read(&bytes).ok_or(AppendError::Busy)?;
        self.append(Append {
            frame: Frame::of_parts(header, &bytes[HEADER_BYTES..]),
            partition: PartitionId::STATE,
            base_offset: Offset(0),
            record_count: 1,
            largest_timestamp_ms: self.now.wall_ms,
            append_time_ms: self.now.wall_ms,
            durability: Durability::Durable,
        })
    }

    /// Largest frame this log can take, in bytes: it must fit into an empty segment.
    pub fn max_frame_bytes(&self) -> u32 {
        self.config.segment_bytes / 2
    }

    fn index_frame(&mut self, append: &Append<'_>, extent: Extent) {
        let run = Run {
            base_offset: append.base_offset.0,
            largest_timestamp_ms: append.largest_timestamp_ms,
            append_time_ms: append.append_time_ms,
            position: extent.position,
            len: extent.len,
            record_count: append.record_count,
        };
        let at = append.partition.0 as usize;
        if self.partitions.len() <= at {
            self.partitions.resize_with(at + 1, Default::default);
        }
        let places = &mut self.partitions[at];
        places.bytes += u64::from(extent.len);
        if places.active_segment == self.active {
            if let Some(place) = places.places.back_mut() {
                place.end_offset = run.end_offset();
                place.records += u64::from(run.record_count);
                place.bytes += u64::from(extent.len);
                place.largest_timestamp_ms = place.largest_timestamp_ms.max(run.largest_timestamp_ms);
                place.append_time_ms = run.append_time_ms;
            }
        } else {
            places.active_segment = self.active;
            places.active_list = self.index.list_of(append.partition);
            places.places.push_back(Place {
                segment: self.active,
                base_offset: run.base_offset,
                end_offset: run.end_offset(),
                records: u64::from(run.record_count),
                covered: 0,
                bytes: u64::from(extent.len),
                largest_timestamp_ms: run.largest_timestamp_ms,
                append_time_ms: run.append_time_ms,
            });
        }
        self.index.push(places.active_list, run, self.config.run_bytes);
        if let Some(segment) = self.segments.get_mut(&self.active) {
            segment.live_bytes += u64::from(extent.len);
        }
    }

    /// After this the open group has room for `len` bytes.
    fn make_room(&mut self, len: u32, is_state: bool) -> Result<(), AppendError> {
        if let Some(fault) = self.fence {
            return Err(AppendError::Fenced(fault));
        }
        if self.stop == Stop::Sealing || self.stop == Stop::Done {
            return Err(AppendError::Busy);
        }
        if len > self.max_frame_bytes() {
            return Err(AppendError::TooLarge { limit_bytes: self.max_frame_bytes() });
        }
        loop {
            if let (Some(group), Some(tail)) = (&self.group, self.chunks.back()) {
                let end = group.position + (tail.chunk.len() - group.chunk_at) as u32 + len;
                if tail.chunk.remaining() >= len as usize
                    && block_up(end) <= self.data_limit(is_state)
                    && self.index.run_count() < self.config.active_runs_max
                {
                    return Ok(());
                }
                self.seal_group();
            }
            let needed = block_up(COMMIT_HEADER_BYTES as u32 + len);
            if self.position + needed > self.data_limit(is_state) || self.index.run_count() >= self.config.active_runs_max {
                self.roll_or_wait(needed, is_state)?;
                continue;
            }
            self.begin_group(needed)?;
        }
    }

    /// First position in the active segment that a group may not reach. One block is kept for the mark that says that
    /// the last of them was flushed.
    fn data_limit(&self, is_state: bool) -> u32 {
        self.limit(is_state, MARK_BYTES)
    }

    fn limit(&self, is_state: bool, mark: u32) -> u32 {
        let Some(segment) = self.segments.get(&self.active) else { return 0 };
        // A file from the reserve is for what frees space, not for more data.
        if self.reserve_active && self.disk_full && !is_state {
            return 0;
        }
        let footer = block_up((self.index.footer_bytes() + DIRECTORY_ENTRY_BYTES + RUN_BYTES) as u32);
        // While there is no next segment, acks, offsets and deletes must find room in this one.
        let reserve = if is_state || matches!(self.next, Next::Ready(_) | Next::Extending(_)) { 0 } else { self.state_reserve_bytes() };
        (self.config.segment_bytes.saturating_sub(footer + reserve + mark)).min(segment.written_bytes.min(u64::from(u32::MAX)) as u32)
    }

    fn state_reserve_bytes(&self) -> u32 {
        (self.config.segment_bytes / 16).min(4 << 20)
    }

    /// The active segment can't take `needed` bytes: more written blocks, or the next segment.
    fn roll_or_wait(&mut self, needed: u32, is_state: bool) -> Result<(), AppendError> {
        let Some(segment) = self.segments.get(&self.active) else { return Err(AppendError::Busy) };
        let footer = block_up((self.index.footer_bytes() + DIRECTORY_ENTRY_BYTES + RUN_BYTES) as u32);
        let fits = self.position + needed + footer + MARK_BYTES <= self.config.segment_bytes
            && self.index.run_count() < self.config.active_runs_max;
        let only_reserve_left = fits && !is_state && u64::from(self.position + needed) <= segment.written_bytes;
        if fits && !only_reserve_left {
            self.blocked = true;
            self.extend_wanted();
            return Err(if self.disk_full { AppendError::DiskFull } else { AppendError::Busy });
        }
        // A file that isn't from the reserve serves data too, whatever else the disk has refused since.
        let for_states_only = self.disk_full && self.reserve_next;
        if (is_state || !for_states_only) && self.roll() {
            return Ok(());
        }
        self.blocked = true;
        self.state_starved |= is_state;
        self.pump_segments();
        Err(if self.disk_full { AppendError::DiskFull } else { AppendError::Busy })
    }

    fn begin_group(&mut self, needed: u32) -> Result<(), AppendError> {
        let fits = self.chunks.back().is_some_and(|tail| {
            tail.segment == self.active
                && tail.chunk.remaining() >= needed as usize
                && tail.base_position + tail.chunk.len() as u32 == self.position
        });
        if !fits {
            self.add_chunk(needed)?;
        }
        let (Some(tail), Some(segment)) = (self.chunks.back_mut(), self.segments.get(&self.active)) else { return Err(AppendError::Busy) };
        self.sequence += 1;
        tail.last_sequence = self.sequence;
        let chunk_at = tail.chunk.len();
        tail.chunk.append_zeros(COMMIT_HEADER_BYTES);
        self.group = Some(OpenGroup {
            sequence: self.sequence,
            chunk_at,
            position: self.position,
            frame_count: 0,
            crc: segment.seed,
            durability: Durability::Memory,
            opened_us: self.now.monotonic_us,
        });
        Ok(())
    }

    /// Makes the last chunk one with room for a group of `needed` bytes, taking the oldest back if memory is used up.
    fn add_chunk(&mut self, needed: u32) -> Result<(), AppendError> {
        let wanted = needed.max(self.config.chunk_bytes) as usize;
        let mut held: usize = self.chunks.iter().map(|t| t.chunk.capacity()).sum();
        while held + wanted > self.config.tail_cache_bytes {
            match self.chunks.front() {
                // A group larger than the whole cache goes alone.
                None => break,
                Some(oldest) if self.is_evictable(oldest) => {
                    held -= oldest.chunk.capacity();
                    self.chunks.pop_front();
                }
                Some(_) => {
                    self.blocked = true;
                    return Err(AppendError::Busy);
                }
            }
        }
        // The arena charges by size class, and others live in it too: it may be full before the tail cache is.
        let Ok(buffer) = self.allocate(wanted) else {
            self.blocked = true;
            return Err(AppendError::Busy);
        };
        self.chunks.push_back(TailChunk {
            chunk: Chunk::new(buffer),
            segment: self.active,
            base_position: self.position,
            last_sequence: 0,
        });
        Ok(())
    }

    /// On the device, and nobody holds a slice of it.
    fn is_evictable(&self, chunk: &TailChunk) -> bool {
        chunk.last_sequence <= self.commits.written() && !chunk.chunk.is_shared()
    }

    /// Memory for what the log must write to go on: spans that nobody waits for give way to it, then the tail cache.
    pub(super) fn allocate(&mut self, bytes: usize) -> Result<Buffer, ArenaFull> {
        loop {
            match self.reads.allocate(&self.arena, bytes) {
                Err(_) if self.chunks.front().is_some_and(|oldest| self.is_evictable(oldest)) => drop(self.chunks.pop_front()),
                result => return result,
            }
        }
    }

    /// Drops the oldest chunk of the tail cache, if it is on the device, unread, and not the one being filled.
    pub(super) fn evict_oldest_chunk(&mut self) -> bool {
        let evictable = self.chunks.len() > 1 && self.chunks.front().is_some_and(|oldest| self.is_evictable(oldest));
        if evictable {
            self.chunks.pop_front();
        }
        evictable
    }

    /// Closes the open group and submits its write.
    pub(super) fn seal_group(&mut self) {
        let (Some(group), Some(tail)) = (self.group.take(), self.chunks.back_mut()) else { return };
        let bytes = tail.chunk.len() - group.chunk_at;
        let padded = block_up(bytes as u32) as usize;
        let header = CommitHeader {
            magic: COMMIT_MAGIC,
            crc: 0,
            shard: self.config.shard.0,
            flags: u16::from(group.frame_count == 0),
            epoch: self.epoch,
            sequence: group.sequence,
            bytes: bytes as u32,
            frame_count: group.frame_count,
            previous_crc: self.previous_crc,
            reserved: 0,
            flushed_sequence: self.commits.flushed(),
            time_ms: self.now.wall_ms,
            reserved2: 0,
        }
        .to_bytes(group.crc);
        self.previous_crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        tail.chunk.patch(group.chunk_at, &header);
        tail.chunk.append_zeros(padded - bytes);
        tail.chunk.seal_to(group.chunk_at + padded);
        let data = tail.chunk.slice(group.chunk_at..group.chunk_at + padded);
        debug_assert_eq!(data.len() % BLOCK_BYTES, 0);
        self.position = group.position + padded as u32;
        self.flushed_on_disk = self.commits.flushed();
        self.last_sealed_us = self.now.monotonic_us;
        if group.frame_count > 0 {
            self.last_frames_sequence = group.sequence;
        }
        let Some(segment) = self.segments.get_mut(&self.active) else { return };
        segment.end_position = self.position;
        segment.last_sequence = group.sequence;
        segment.last_group_crc = self.previous_crc;
        let file = segment.file;
        // A mark says what is flushed; it must reach stable media itself to be of use.
        let durable = group.durability == Durability::Durable || group.frame_count == 0;
        self.submit_commit(group.sequence, file, group.position, data, durable);
    }

    /// Group commit, self-clocking: the next group leaves when none is in flight, or when enough is pending.
    pub(super) fn pump_group(&mut self) {
        let (Some(group), Some(tail)) = (&self.group, self.chunks.back()) else { return };
        if self.fence.is_some() {
            return;
        }
        let bytes = tail.chunk.len() - group.chunk_at;
        let leaves = match group.durability {
            Durability::Memory => {
                bytes >= LAZY_GROUP_BYTES || self.stop != Stop::No || self.group_deadline_us().is_some_and(|at| self.now.monotonic_us >= at)
            }
            Durability::Durable | Durability::Written => {
                let in_flight = self.commits.in_flight();
                in_flight == 0 || (in_flight < self.config.commits_in_flight_max && bytes >= OVERLAP_BYTES)
            }
        };
        if leaves && self.commits.in_flight() < self.config.commits_in_flight_max {
            self.seal_group();
        }
    }

    pub(super) fn group_deadline_us(&self) -> Option<u64> {
        let group = self.group.as_ref()?;
        (group.durability == Durability::Memory && self.fence.is_none()).then_some(group.opened_us + self.config.flush_after_us)
    }

    /// After a pause, an empty group says on disk that the last one was flushed: then rot in it can't pass for a torn tail.
    pub(super) fn pump_mark(&mut self) {
        let due = self.mark_deadline_us().is_some_and(|at| self.now.monotonic_us >= at || self.stop != Stop::No);
        if due && self.config.plant != Some(Plant::NoMarkGroup) && self.mark_room() && self.begin_group(BLOCK_BYTES as u32).is_ok() {
            self.seal_group();
        }
    }

    fn mark_room(&self) -> bool {
        self.position + MARK_BYTES <= self.limit(true, 0)
    }

    pub(super) fn mark_deadline_us(&self) -> Option<u64> {
        let idle = self.group.is_none()
            && self.commits.in_flight() == 0
            && self.fence.is_none()
            && self.stop != Stop::Sealing
            && self.stop != Stop::Done;
        // A mark itself needs no mark: nobody was told of it.
        let unknown = self.flushed() == self.sequence && self.flushed_on_disk < self.last_frames_sequence;
        (idle && unknown && self.config.plant != Some(Plant::NoMarkGroup) && self.mark_room())
            .then_some(self.last_sealed_us + self.config.mark_after_us)
    }

    /// Begins a checkpoint; the shard's pieces follow as state records, then [`Log::checkpoint_end`].
    pub fn checkpoint_begin(&mut self, now: Now) -> Result<Appended, AppendError> {
        self.now = now;
        let record = LogRecord::CheckpointBegin { live_segments: self.live_segments() };
        let appended = self.append_log_record(&record)?;
        // Replay starts at a group: the whole one that holds the record.
        let position = self.group.as_ref().map_or(appended.extent.position, |g| g.position);
        self.checkpoint_begun = format::LogPoint { segment: appended.extent.segment, position, sequence: appended.sequence };
        Ok(appended)
    }

    /// Completes it: recovery starts from its begin once this record is flushed.
    pub fn checkpoint_end(&mut self, now: Now) -> Result<Appended, AppendError> {
        self.now = now;
        let point = self.checkpoint_begun;
        let appended = self.append_log_record(&LogRecord::CheckpointEnd {
            segment: point.segment,
            position: point.position,
            sequence: point.sequence,
        })?;
        self.checkpoint_ending = Some((point, appended.sequence));
        Ok(appended)
    }

    pub(super) fn pump_checkpoint(&mut self) {
        // Segments before the checkpoint aren't scanned by recovery, so they need their footers first.
        if let Some((point, sequence)) = self.checkpoint_ending
            && self.flushed() >= sequence
            && self.segments.range(..point.segment).all(|(_, s)| s.is_sealed())
        {
            self.checkpoint = point;
            self.checkpoint_ending = None;
        }
        self.anchor_checkpoint();
    }

    /// Segments before the checkpoint may go only when recovery is sure to find it. The next header or seal block will
    /// say where it is; until then the active segment's block 1 does, where the seal block comes later.
    fn anchor_checkpoint(&mut self) {
        let is_active = self.segments.get(&self.active).is_some_and(|s| matches!(s.state, State::Active));
        let known = self.checkpoint.sequence <= self.anchored.sequence;
        // A flushed group of the segment says that its header is on stable media too.
        if known || self.note.is_some() || !is_active || self.flushed() < self.active_first_sequence || self.stop != Stop::No {
            return;
        }
        let Ok(mut buffer) = self.allocate(BLOCK_BYTES) else { return };
        let Some(segment) = self.segments.get(&self.active) else { return };
        let file = segment.file;
        buffer.copy_from_slice(&SealBlock::note(segment.number, self.checkpoint).to_block(segment.seed));
        self.note = Some(self.active);
        let pending = Pending::Note { point: self.checkpoint };
        self.submit(pending, Operation::Write { file, position: BLOCK_BYTES as u64, data: buffer.freeze(), durable: true });
    }

    pub(super) fn note_written(&mut self, point: format::LogPoint, result: Result<(), Fault>) {
        self.note = None;
        match result {
            Ok(()) => self.checkpoint_anchored(point),
            Err(fault) => self.fence_off(fault),
        }
    }

    /// Stable media say where the checkpoint is.
    pub(super) fn checkpoint_anchored(&mut self, point: format::LogPoint) {
        if point.sequence > self.anchored.sequence {
            self.anchored = point;
        }
        self.retire_dead_segments();
    }
}

fn strictness(durability: Durability) -> u8 {
    match durability {
        Durability::Memory => 0,
        Durability::Written => 1,
        Durability::Durable => 2,
    }
}
