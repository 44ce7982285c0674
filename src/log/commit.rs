//! Groups on their way to stable media: completed in any order, acknowledged strictly in sequence.

use std::collections::VecDeque;

use crate::device::{Fault, FileId, Operation};

use super::{Log, LogEvent, Pending, Plant};

/// One write on the way: a group, or the header of a segment (which carries the sequence before it).
#[derive(Debug)]
struct Entry {
    sequence: u64,
    file: FileId,
    bytes: u32,
    /// Written with DSYNC.
    durable: bool,
    done: bool,
    /// On stable media.
    stable: bool,
}

/// Writes in order of sequence, and how far they have come.
#[derive(Debug, Default)]
pub(super) struct CommitQueue {
    entries: VecDeque<Entry>,
    /// Id of `entries[0]`.
    first: u64,
    /// Entries from the front that are done.
    done_prefix: usize,
    written: u64,
    flushed: u64,
    in_flight: usize,
    flushes_in_flight: usize,
    /// Bytes done and not stable, and when the first of them was done.
    unstable_bytes: u64,
    unstable_since_us: Option<u64>,
}

impl CommitQueue {
    /// A queue after recovery: everything up to `sequence` is stable.
    pub fn starting_at(sequence: u64) -> CommitQueue {
        CommitQueue { written: sequence, flushed: sequence, ..CommitQueue::default() }
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn push(&mut self, entry: Entry) -> u64 {
        self.in_flight += 1;
        self.entries.push_back(entry);
        self.first + self.entries.len() as u64 - 1
    }

    /// Moves `written` and `flushed` over everything in order; `true` if either moved.
    fn advance(&mut self, now_us: u64) -> bool {
        let before = (self.written, self.flushed);
        while let Some(entry) = self.entries.get(self.done_prefix)
            && entry.done
        {
            self.written = entry.sequence;
            if !entry.stable {
                self.unstable_bytes += u64::from(entry.bytes);
                self.unstable_since_us.get_or_insert(now_us);
            }
            self.done_prefix += 1;
        }
        while self.done_prefix > 0 && self.entries.front().is_some_and(|e| e.stable) {
            if let Some(entry) = self.entries.pop_front() {
                self.flushed = entry.sequence;
                self.first += 1;
                self.done_prefix -= 1;
            }
        }
        before != (self.written, self.flushed)
    }
}

impl Log {
    /// Submits a group or a segment header; `sequence` is acknowledged when it and all before are done.
    pub(super) fn submit_commit(&mut self, sequence: u64, file: FileId, position: u32, data: crate::device::Slice, durable: bool) {
        let bytes = data.len() as u32;
        let entry = self.commits.push(Entry { sequence, file, bytes, durable, done: false, stable: false });
        self.counters.commits += 1;
        self.counters.commit_bytes += u64::from(bytes);
        let pending = Pending::Commit { entry, submitted_us: self.now.monotonic_us };
        self.submit(pending, Operation::Write { file, position: u64::from(position), data, durable });
        if self.config.plant == Some(Plant::AckBeforeFlush) {
            self.events.push_back(LogEvent::Written { sequence });
            self.events.push_back(LogEvent::Flushed { sequence });
        }
    }

    pub(super) fn commit_done(&mut self, id: u64, submitted_us: u64, result: Result<(), Fault>) {
        self.commits.in_flight -= 1;
        let took_us = self.now.monotonic_us.saturating_sub(submitted_us);
        self.counters.commit_us += took_us;
        let bucket = (64 - took_us.leading_zeros() as usize).min(self.counters.commit_us_buckets.len() - 1);
        self.counters.commit_us_buckets[bucket] += 1;
        if let Err(fault) = result {
            return self.fence_off(fault);
        }
        if let Some(entry) = id.checked_sub(self.commits.first).and_then(|at| self.commits.entries.get_mut(at as usize)) {
            entry.done = true;
            entry.stable = entry.durable;
        }
        self.advance_commits();
    }

    pub(super) fn flush_done(&mut self, entry: u64, result: Result<(), Fault>) {
        self.commits.flushes_in_flight -= 1;
        if let Err(fault) = result {
            return self.fence_off(fault);
        }
        // With several files under flush, only the last one to finish settles everything.
        if self.commits.flushes_in_flight == 0 {
            for at in 0..self.commits.entries.len().min(entry.saturating_sub(self.commits.first) as usize) {
                self.commits.entries[at].stable = true;
            }
            self.commits.unstable_bytes = 0;
            self.commits.unstable_since_us = None;
            let rest = self.commits.entries.iter().take(self.commits.done_prefix).filter(|e| !e.stable).map(|e| u64::from(e.bytes)).sum();
            if rest > 0 {
                self.commits.unstable_bytes = rest;
                self.commits.unstable_since_us = Some(self.now.monotonic_us);
            }
        }
        self.advance_commits();
    }

    fn advance_commits(&mut self) {
        if self.fence.is_some() {
            return;
        }
        if self.commits.advance(self.now.monotonic_us) {
            let (written, flushed) = (self.commits.written, self.commits.flushed);
            if self.config.plant != Some(Plant::AckBeforeFlush) {
                self.events.push_back(LogEvent::Written { sequence: written });
                self.events.push_back(LogEvent::Flushed { sequence: flushed });
            }
        }
        self.unblock();
    }

    /// Flushes what was written without DSYNC: after its time or bytes, or when a durable group waits behind it.
    pub(super) fn pump_flush(&mut self) {
        let queue = &self.commits;
        if self.fence.is_some() || queue.unstable_bytes == 0 || queue.flushes_in_flight > 0 {
            return;
        }
        let waited_for = queue.entries.iter().skip(queue.done_prefix).any(|e| e.durable)
            || queue.entries.iter().take(queue.done_prefix).any(|e| e.durable);
        let due = self.flush_deadline_us().is_some_and(|at| self.now.monotonic_us >= at);
        if !(waited_for || due || queue.unstable_bytes >= self.config.flush_after_bytes || self.stop != super::Stop::No) {
            return;
        }
        let mut files: Vec<FileId> = queue.entries.iter().take(queue.done_prefix).filter(|e| !e.stable).map(|e| e.file).collect();
        files.dedup();
        let entry = queue.first + queue.done_prefix as u64;
        self.commits.flushes_in_flight = files.len();
        for file in files {
            self.submit(Pending::Flush { entry }, Operation::Flush { file });
        }
    }

    pub(super) fn flush_deadline_us(&self) -> Option<u64> {
        if self.commits.flushes_in_flight > 0 {
            return None;
        }
        self.commits.unstable_since_us.map(|since| since + self.config.flush_after_us)
    }
}
