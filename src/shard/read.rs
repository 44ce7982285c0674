//! Fetches and offsets by time: from the tail cache where the records are there, from the device where not.

use ringmain_wire::control::{EARLIEST, LATEST, NEWEST};
use ringmain_wire::{ErrorCode, Format, Offset, PartitionId, Records, frame};

use super::Shard;
use super::fetch::Wait;
use super::partition::NONE;
use super::queue::serve::QueueRead;
use crate::device::{Fault, Slice};
use crate::log::{Located, LocatedTime, ReadError};
use crate::request::{Extent, Failure, Fetch, FetchData, Fetched, Now, Origin, Reply, Watch};

/// What a read from the device is for.
#[derive(Debug)]
pub enum ReadFor {
    /// A fetch reply.
    Fetch {
        origin: Origin,
        head: Fetched,
        /// Frames from here on were read and aren't readable yet.
        below: Offset,
        /// What it is made of, leased.
        extents: Vec<Extent>,
    },
    /// An extent of a reply that left the tail cache before it was sent.
    Extent { ticket: u64 },
    /// The record of a time.
    Time { origin: Origin, query: TimeQuery },
    /// Messages of a queue.
    Queue { read: QueueRead, bytes: u32 },
}

/// An offset by time is asked for.
#[derive(Clone, Copy, Debug)]
pub struct TimeQuery {
    /// Where.
    pub partition: PartitionId,
    /// At least so young.
    pub timestamp_ms: i64,
    /// Of what committed-only readers see.
    pub committed_only: bool,
}

/// A request that waits for a footer.
#[derive(Clone, Copy, Debug)]
pub enum FooterWait {
    /// A fetch.
    Fetch(Wait),
    /// An offset by time.
    Time { origin: Origin, query: TimeQuery },
}

impl FooterWait {
    /// Who asked.
    pub fn origin(&self) -> Origin {
        match self {
            FooterWait::Fetch(wait) => wait.origin,
            FooterWait::Time { origin, .. } => *origin,
        }
    }
}

/// Readable frames found for a fetch.
struct Found {
    extents: Vec<Extent>,
    next_offset: Offset,
    bytes: u32,
    /// The last extent reaches beyond what is readable, and isn't in memory to be cut.
    is_overlong: bool,
}

impl Shard {
    pub(super) fn fetch_request(&mut self, origin: Origin, fetch: Fetch, now: Now) {
        let deadline_us = now.monotonic_us + u64::from(fetch.max_wait_ms) * 1000;
        let fetch = Fetch { max_bytes: fetch.max_bytes.min(self.config.fetch_bytes_max), ..fetch };
        self.fetch(Wait { origin, fetch, deadline_us, wake_at_bytes: 0 }, now);
    }

    /// Waits for more, unless there is more already.
    pub(super) fn watch(&mut self, origin: Origin, watch: &Watch, now: Now) {
        let missing_bytes = u64::from(watch.missing_bytes.max(1));
        let mut partitions = Vec::with_capacity(watch.partitions.len());
        let mut is_due = self.stopping || watch.max_wait_ms == 0;
        for (id, seen) in &watch.partitions {
            match self.partitions.get(*id) {
                Some(partition) if partition.readable_end(watch.committed_only) <= *seen => {
                    // With bytes on their way, or in an open transaction, the next step of the high watermark decides.
                    let has_unread = partition.next_offset > partition.readable_end(watch.committed_only);
                    let unread_bytes = if has_unread { missing_bytes } else { 0 };
                    partitions.push((*id, partition.appended_bytes.saturating_sub(unread_bytes)));
                }
                _ => is_due = true,
            }
        }
        if is_due {
            return self.reply(origin, Reply::Watched { is_due: true });
        }
        if self.fetches_waiting() >= self.config.waiting_fetches_max {
            return self.fail(origin, Failure::new(ErrorCode::Overloaded, format!("{} fetches wait already", self.fetches_waiting())));
        }
        let deadline_us = now.monotonic_us + u64::from(watch.max_wait_ms) * 1000;
        if let Some(replaced) = self.watches.insert(origin, deadline_us, missing_bytes, &partitions) {
            self.reply(replaced, Reply::Watched { is_due: false });
        }
    }

    /// Answers a fetch, or lets it wait for records, a footer or the device.
    fn fetch(&mut self, wait: Wait, now: Now) {
        let Wait { origin, fetch, deadline_us, .. } = wait;
        let Some(partition) = self.partitions.get(fetch.partition) else {
            return self.fail(origin, ErrorCode::UnknownPartition.into());
        };
        let (log_start, high_watermark) = (partition.log_start, partition.high_watermark);
        let end = partition.readable_end(fetch.committed_only);
        let unread_bytes = partition.next_offset > end;
        let appended_bytes = partition.appended_bytes;
        if fetch.from < log_start || fetch.from > high_watermark {
            let message = format!("offset {} of partition {}: stored are {log_start} to {high_watermark}", fetch.from, fetch.partition);
            return self.fail(origin, Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let found = if fetch.from >= end || fetch.max_bytes == 0 {
            Found { extents: Vec::new(), next_offset: fetch.from, bytes: 0, is_overlong: false }
        } else {
            match self.log.locate(fetch.partition, fetch.from, end, fetch.max_bytes) {
                Located::Wait { segment } => return self.wait_for_footer(segment, FooterWait::Fetch(wait)),
                Located::Runs { extents, next_offset, bytes } => {
                    self.readable(Found { extents, next_offset, bytes, is_overlong: false }, fetch.from, end, high_watermark)
                }
            }
        };
        let min_bytes = fetch.min_bytes.min(fetch.max_bytes);
        let is_cut = found.bytes > 0 && found.next_offset < end;
        let is_enough = found.bytes >= min_bytes || is_cut;
        if is_enough || now.monotonic_us >= deadline_us || self.stopping {
            return self.answer_fetch(wait, found, end);
        }
        if self.fetches_waiting() >= self.config.waiting_fetches_max {
            return self.fail(origin, Failure::new(ErrorCode::Overloaded, format!("{} fetches wait already", self.fetches_waiting())));
        }
        // With bytes on their way, or in an open transaction, the next step of the high watermark decides; else so many
        // must come first.
        let missing_bytes = u64::from(min_bytes - found.bytes);
        let wake_at_bytes = if unread_bytes { 0 } else { appended_bytes + missing_bytes };
        if let Some(partition) = self.partitions.get_mut(fetch.partition) {
            self.waits.insert(Wait { wake_at_bytes, ..wait }, &mut partition.waiting);
        }
    }

    /// Cuts off what isn't readable yet: the last run may go beyond `end` while its group, or a transaction, is open.
    fn readable(&self, mut found: Found, from: Offset, end: Offset, high_watermark: Offset) -> Found {
        while found.next_offset > end {
            let Some(last) = found.extents.pop() else { break };
            found.bytes -= last.len;
            let Some(bytes) = self.log.hot_bytes(last) else {
                if end < high_watermark {
                    found.extents.push(last);
                    return Found { next_offset: end, bytes: found.bytes + last.len, is_overlong: true, ..found };
                }
                // Written, gone from the tail cache, and its flush isn't reported yet: it is soon.
                return Found { extents: Vec::new(), next_offset: from, bytes: 0, is_overlong: false };
            };
            let (mut len, mut cut) = (0, None);
            for frame in frame::frames(bytes).map_while(Result::ok) {
                if frame.end_offset() > end {
                    break;
                }
                len += frame.padded_bytes() as u32;
                cut = Some(frame.end_offset());
            }
            if let Some(cut) = cut {
                found.extents.push(Extent { len, ..last });
                found.bytes += len;
                found.next_offset = cut;
                break;
            }
            found.next_offset = end;
        }
        if found.extents.is_empty() {
            // A gap up to the end (offsets reserved before a crash): the reader goes on behind it.
            found.next_offset = end;
        }
        found
    }

    fn answer_fetch(&mut self, wait: Wait, found: Found, end: Offset) {
        let Wait { origin, fetch, .. } = wait;
        let hot_count = found.extents.iter().take_while(|extent| self.log.hot_bytes(**extent).is_some()).count();
        let cold_count = found.extents.iter().take_while(|extent| self.log.hot_bytes(**extent).is_none()).count();
        let mut found = found;
        if hot_count < found.extents.len() && cold_count < found.extents.len() {
            found = self.first_part(found, hot_count.max(cold_count));
        }
        let Some(partition) = self.partitions.get(fetch.partition) else {
            return self.fail(origin, ErrorCode::UnknownPartition.into());
        };
        let head = Fetched {
            partition: fetch.partition,
            high_watermark: partition.high_watermark,
            last_stable: partition.last_stable(),
            log_start: partition.log_start,
            next_offset: found.next_offset,
            bytes: found.bytes,
            aborted: match partition.transactions.as_deref() {
                Some(transactions) if fetch.committed_only => transactions.aborted_in(fetch.from, found.next_offset),
                _ => Box::default(),
            },
        };
        if hot_count > 0 || found.extents.is_empty() {
            self.counters.fetches += u64::from(found.bytes > 0);
            self.counters.bytes_out += u64::from(found.bytes);
            self.lease(&found.extents);
            return self.reply(origin, Reply::Fetched { head, data: FetchData::Extents(found.extents) });
        }
        if self.cold_read_bytes > 0 && self.cold_read_bytes + u64::from(found.bytes) > self.config.cold_read_bytes_max {
            if self.fetches_waiting() >= self.config.waiting_fetches_max {
                return self.fail(origin, Failure::new(ErrorCode::Overloaded, format!("{} fetches wait already", self.fetches_waiting())));
            }
            return self.cold_waits.push_back(wait);
        }
        self.cold_read_bytes += u64::from(found.bytes);
        self.counters.fetches_cold += 1;
        let below = if found.is_overlong { end } else { Offset(u64::MAX) };
        // The reply's own lease: its bytes may have to be read once more.
        self.lease(&found.extents);
        self.read(found.extents.clone(), ReadFor::Fetch { origin, head, below, extents: found.extents });
    }

    fn lease(&mut self, extents: &[Extent]) {
        extents.iter().for_each(|extent| self.log.lease(extent.segment));
    }

    /// The first `count` extents: a reply is sent either from the tail cache or from the device, not from both.
    fn first_part(&self, mut found: Found, count: usize) -> Found {
        let rest = found.extents.split_off(count);
        found.bytes -= rest.iter().map(|extent| extent.len).sum::<u32>();
        // Where the part ends: before the first hot frame that follows, or after the last hot frame in it.
        let before = rest.first().and_then(|extent| self.log.hot_bytes(*extent)).and_then(|bytes| frame::frames(bytes).next()?.ok());
        let last = found.extents.last().and_then(|extent| self.log.hot_bytes(*extent));
        let after = last.and_then(|bytes| frame::frames(bytes).map_while(Result::ok).last());
        found.is_overlong = false;
        found.next_offset = before.map(|frame| frame.base_offset()).or(after.map(|frame| frame.end_offset())).unwrap_or(found.next_offset);
        found
    }

    /// Reads an extent that left the tail cache; [`Shard::poll_read`] has the result.
    pub fn read_extent(&mut self, extent: Extent, ticket: u64) {
        self.read(vec![extent], ReadFor::Extent { ticket });
    }

    pub(super) fn read(&mut self, extents: Vec<Extent>, read_for: ReadFor) {
        self.next_ticket += 1;
        self.reads.insert(self.next_ticket, read_for);
        self.log.read(self.next_ticket, extents);
    }

    pub(super) fn read_done(&mut self, ticket: u64, result: Result<Vec<Slice>, ReadError>, now: Now) {
        let Some(read_for) = self.reads.remove(&ticket) else { return };
        match read_for {
            ReadFor::Fetch { origin, mut head, below, mut extents } => {
                self.cold_read_bytes -= u64::from(head.bytes);
                match result {
                    Ok(mut blocks) => {
                        cut_blocks(&mut blocks, below);
                        self.release_extents(&extents.split_off(blocks.len()));
                        extents.iter_mut().zip(&blocks).for_each(|(extent, block)| extent.len = block.len() as u32);
                        head.bytes = extents.iter().map(|extent| extent.len).sum();
                        self.counters.fetches += 1;
                        self.counters.bytes_out += u64::from(head.bytes);
                        self.reply(origin, Reply::Fetched { head, data: FetchData::Blocks { extents, blocks } });
                    }
                    Err(error) => {
                        self.release_extents(&extents);
                        self.fail(origin, read_failure(&error));
                    }
                }
                self.retry_cold_waits(now);
            }
            ReadFor::Queue { read, bytes } => {
                self.cold_read_bytes -= u64::from(bytes);
                self.queue_read_done(read, result);
                self.retry_cold_waits(now);
            }
            ReadFor::Extent { ticket } => self.reads_done.push_back((ticket, result.map_err(|error| read_failure(&error)))),
            ReadFor::Time { origin, query } => match result {
                Ok(blocks) => {
                    let found = blocks.iter().find_map(|block| first_record_since(block, query.timestamp_ms));
                    self.answer_time(origin, query, found);
                }
                Err(error) => self.fail(origin, read_failure(&error)),
            },
        }
    }

    fn retry_cold_waits(&mut self, now: Now) {
        self.queues.retry_cold();
        while self.cold_read_bytes < self.config.cold_read_bytes_max {
            let Some(wait) = self.cold_waits.pop_front() else { break };
            let waiting = self.cold_waits.len();
            // It was going to be answered: it doesn't wait for more bytes now.
            self.fetch(Wait { deadline_us: 0, ..wait }, now);
            if self.cold_waits.len() > waiting {
                break;
            }
        }
    }

    fn wait_for_footer(&mut self, segment: u64, wait: FooterWait) {
        if self.fetches_waiting() >= self.config.waiting_fetches_max {
            let failure = Failure::new(ErrorCode::Overloaded, format!("{} fetches wait already", self.fetches_waiting()));
            return self.fail(wait.origin(), failure);
        }
        self.footer_waits.push((segment, wait));
    }

    pub(super) fn footer_ready(&mut self, segment: u64, result: Result<(), Fault>, now: Now) {
        let waits = std::mem::take(&mut self.footer_waits);
        let (ready, others) = waits.into_iter().partition(|(waits_for, _)| *waits_for == segment);
        self.footer_waits = others;
        let ready: Vec<(u64, FooterWait)> = ready;
        let failure = result.err().map(|fault| Failure::new(ErrorCode::CorruptLog, format!("index of segment {segment}: {fault}")));
        self.queue_footer_ready(segment, failure.as_ref());
        for (_, wait) in ready {
            match (result, wait) {
                (Err(fault), wait) => {
                    self.fail(wait.origin(), Failure::new(ErrorCode::CorruptLog, format!("index of segment {segment}: {fault}")))
                }
                (Ok(()), FooterWait::Fetch(wait)) => self.fetch(wait, now),
                (Ok(()), FooterWait::Time { origin, query }) => self.offset_by_time(origin, query),
            }
        }
    }

    pub(super) fn list_offset(&mut self, origin: Origin, partition: PartitionId, timestamp_ms: i64, committed_only: bool) {
        self.offset_by_time(origin, TimeQuery { partition, timestamp_ms, committed_only });
    }

    fn offset_by_time(&mut self, origin: Origin, query: TimeQuery) {
        let TimeQuery { partition: id, timestamp_ms, committed_only } = query;
        let Some(partition) = self.partitions.get(id) else {
            return self.fail(origin, ErrorCode::UnknownPartition.into());
        };
        let end_of = |offset| Reply::Offset { offset, timestamp_ms: -1, found: true };
        let end = partition.readable_end(committed_only);
        if timestamp_ms == LATEST {
            return self.reply(origin, end_of(end));
        }
        if timestamp_ms == EARLIEST {
            let log_start = partition.log_start;
            return self.reply(origin, end_of(log_start));
        }
        // The largest time among what is readable: the search below then finds the record that has it.
        let timestamp_ms = match timestamp_ms {
            NEWEST => match self.log.newest_time(id, end) {
                Some(timestamp_ms) => timestamp_ms,
                None => return self.answer_time(origin, query, None),
            },
            timestamp_ms => timestamp_ms,
        };
        let query = TimeQuery { timestamp_ms, ..query };
        match self.log.locate_time(id, timestamp_ms, end) {
            LocatedTime::Wait { segment } => self.wait_for_footer(segment, FooterWait::Time { origin, query }),
            LocatedTime::None => self.answer_time(origin, query, None),
            LocatedTime::Run(extent) => match self.log.hot_bytes(extent) {
                Some(bytes) => {
                    let found = first_record_since(bytes, timestamp_ms);
                    self.answer_time(origin, query, found);
                }
                None => self.read(vec![extent], ReadFor::Time { origin, query }),
            },
        }
    }

    fn answer_time(&mut self, origin: Origin, query: TimeQuery, found: Option<(Offset, i64)>) {
        let Some(partition) = self.partitions.get(query.partition) else {
            return self.fail(origin, ErrorCode::UnknownPartition.into());
        };
        let end = partition.readable_end(query.committed_only);
        let reply = match found.filter(|(offset, _)| *offset < end) {
            Some((offset, timestamp_ms)) => Reply::Offset { offset: offset.max(partition.log_start), timestamp_ms, found: true },
            None => Reply::Offset { offset: end, timestamp_ms: -1, found: false },
        };
        self.reply(origin, reply);
    }

    /// Takes a wait out of everything.
    pub(super) fn take_wait(&mut self, index: u32) -> Option<Wait> {
        let id = self.waits.get(index)?.fetch.partition;
        let mut gone = NONE;
        let head = self.partitions.get_mut(id).map_or(&mut gone, |partition| &mut partition.waiting);
        self.waits.remove(index, head)
    }

    /// Takes a wait out and serves it, or lets it wait again.
    pub(super) fn look_again(&mut self, index: u32, now: Now) {
        if let Some(wait) = self.take_wait(index) {
            self.fetch(wait, now);
        }
    }

    /// Looks at the waiting fetches of every partition in `woken`.
    pub(super) fn wake(&mut self, now: Now) {
        while let Some(id) = self.woken.pop() {
            let Some(partition) = self.partitions.get(id) else { continue };
            if partition.has_queues {
                self.queues.wake(id);
            }
            let (mut index, appended_bytes) = (partition.waiting, partition.appended_bytes);
            let mut due = Vec::new();
            while index != NONE {
                if self.waits.get(index).is_some_and(|wait| wait.wake_at_bytes <= appended_bytes) {
                    due.push(index);
                }
                index = self.waits.next_of_partition(index);
            }
            // The list runs from the youngest wait to the oldest; the oldest is served first.
            due.into_iter().rev().for_each(|index| self.look_again(index, now));
            let mut ended = Vec::new();
            self.watches.advance(id, appended_bytes, &mut ended);
            ended.into_iter().for_each(|origin| self.reply(origin, Reply::Watched { is_due: true }));
        }
    }
}

/// Cuts off the frames from `below` on.
fn cut_blocks(blocks: &mut Vec<Slice>, below: Offset) {
    if below == Offset(u64::MAX) {
        return;
    }
    for at in 0..blocks.len() {
        let kept = frame::frames(&blocks[at]).map_while(Result::ok).take_while(|frame| frame.end_offset() <= below);
        let kept_bytes: usize = kept.map(|frame| frame.padded_bytes()).sum();
        if kept_bytes < blocks[at].len() {
            blocks[at] = blocks[at].slice(0..kept_bytes);
            blocks.truncate(at + usize::from(kept_bytes > 0));
            return;
        }
    }
}

/// Offset and time of the first record in `bytes` (whole frames) that is at least as young as `timestamp_ms`.
/// A frame that isn't native is taken as a whole.
fn first_record_since(bytes: &[u8], timestamp_ms: i64) -> Option<(Offset, i64)> {
    let frames = frame::frames(bytes).map_while(Result::ok);
    let mut young = frames.filter(|frame| frame.largest_timestamp_ms() >= timestamp_ms);
    young.find_map(|frame| {
        let producer = &frame.header.producer;
        if producer.format != Format::Native as u8 {
            return Some((frame.base_offset(), frame.largest_timestamp_ms()));
        }
        let records = Records::new(frame.body(), producer.record_count).ok()?;
        let mut numbered = records.map_while(Result::ok).zip(frame.base_offset().0..);
        numbered.find(|(record, _)| record.timestamp_ms >= timestamp_ms).map(|(record, offset)| (Offset(offset), record.timestamp_ms))
    })
}

pub(super) fn read_failure(error: &ReadError) -> Failure {
    match error {
        ReadError::Corrupt { file, segment, position, what } => {
            Failure::new(ErrorCode::CorruptLog, format!("segment {segment} ({file}) at byte {position}: {what}; run 'ringmain log verify'"))
        }
        ReadError::Device(fault) => Failure::new(ErrorCode::CorruptLog, format!("reading from the disk failed: {fault}")),
        ReadError::Gone => Failure::new(ErrorCode::OffsetOutOfRange, "retention has removed these records; list the offsets and seek"),
    }
}
