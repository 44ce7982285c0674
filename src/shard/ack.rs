//! Produce requests that wait for their commit group: in order of sequence, 32 bytes each.

use std::collections::VecDeque;

use ringmain_wire::{Offset, PartitionId};

use crate::request::{Origin, Reply};

/// One produce request whose batch is appended.
#[derive(Clone, Copy, Debug)]
struct PendingAck {
    request: u64,
    base_offset: u64,
    connection: u32,
    generation: u32,
    redirected: u32,
    core: u16,
    duplicate: bool,
}

const _: () = assert!(size_of::<PendingAck>() <= 32);

/// What requests next to each other share.
#[derive(Clone, Copy, Debug)]
struct Run {
    sequence: u64,
    append_time_ms: i64,
    count: u32,
}

/// Acknowledgements waiting for one kind of progress.
#[derive(Debug, Default)]
pub struct AckQueue {
    acks: VecDeque<PendingAck>,
    runs: VecDeque<Run>,
}

impl AckQueue {
    /// To be acknowledged when commit group `sequence` is, and not before any that was pushed earlier.
    #[inline]
    pub fn push(&mut self, sequence: u64, append_time_ms: i64, origin: Origin, base_offset: Offset, duplicate: bool, redirected: u32) {
        match self.runs.back_mut() {
            Some(run) if run.sequence >= sequence && run.append_time_ms == append_time_ms => run.count += 1,
            back => {
                let sequence = back.map_or(sequence, |run| run.sequence.max(sequence));
                self.runs.push_back(Run { sequence, append_time_ms, count: 1 });
            }
        }
        self.acks.push_back(PendingAck {
            request: origin.request,
            base_offset: base_offset.0,
            connection: origin.connection,
            generation: origin.generation,
            core: origin.core,
            duplicate,
            redirected,
        });
    }

    /// The next one that progress up to `sequence` covers.
    #[inline]
    pub fn pop(&mut self, sequence: u64) -> Option<(Origin, Reply)> {
        let run = self.runs.front_mut()?;
        if run.sequence > sequence {
            return None;
        }
        let append_time_ms = run.append_time_ms;
        run.count -= 1;
        if run.count == 0 {
            self.runs.pop_front();
        }
        let ack = self.acks.pop_front()?;
        let PendingAck { base_offset, duplicate, redirected, .. } = ack;
        Some((ack.origin(), Reply::Produced { base_offset: Offset(base_offset), append_time_ms, duplicate, redirected }))
    }

    /// Gives up on everything beyond `sequence`: who waited for it.
    pub fn drain_beyond(&mut self, sequence: u64) -> Vec<Origin> {
        let kept_runs = self.runs.iter().take_while(|run| run.sequence <= sequence).count();
        let kept: usize = self.runs.iter().take(kept_runs).map(|run| run.count as usize).sum();
        self.runs.truncate(kept_runs);
        self.acks.drain(kept..).map(|ack| ack.origin()).collect()
    }

    /// Waiting.
    pub fn len(&self) -> usize {
        self.acks.len()
    }
}

impl PendingAck {
    fn origin(&self) -> Origin {
        Origin { core: self.core, connection: self.connection, generation: self.generation, request: self.request }
    }
}

/// High watermarks that move with commit groups, in order of sequence.
#[derive(Debug, Default)]
pub struct Advances {
    queue: VecDeque<Advance>,
}

#[derive(Clone, Copy, Debug)]
struct Advance {
    sequence: u64,
    end: Offset,
    partition: PartitionId,
}

impl Advances {
    /// `partition` is readable up to `end` once group `sequence` is acknowledged, and not before what was pushed earlier.
    #[inline]
    pub fn push(&mut self, sequence: u64, partition: PartitionId, end: Offset) {
        match self.queue.back_mut() {
            Some(back) if back.sequence >= sequence && back.partition == partition => back.end = end,
            back => {
                let sequence = back.map_or(sequence, |back| back.sequence.max(sequence));
                self.queue.push_back(Advance { sequence, end, partition });
            }
        }
    }

    /// The next one that progress up to `sequence` covers.
    #[inline]
    pub fn pop(&mut self, sequence: u64) -> Option<(PartitionId, Offset)> {
        let front = self.queue.front()?;
        if front.sequence > sequence {
            return None;
        }
        self.queue.pop_front().map(|advance| (advance.partition, advance.end))
    }
}
