//! Records that all queues over a partition have settled, above one that they haven't: told to the log, so that its cleaner leaves them out.
//!
//! A record is dead when every queue over its partition has settled it, one of them says `drop_acked`, and what settled it is in the log.
//! Never dead are the newest record of a partition, so that readers come to its end, and the marker of an aborted transaction, so that
//! they see where it ends. A queue that is made later, or moved back, gets what there is; what is gone is no message to it.

use ringmain_wire::{Offset, PartitionId};

use super::cursor::Cursor;
use crate::request::Now;
use crate::request::queue::QueueId;
use crate::shard::Shard;

/// Questions to cursors in one step of the search.
const QUESTIONS_PER_STEP: usize = 1_024;

/// How far the search for dead records is.
#[derive(Debug, Default)]
pub struct DeadSearch {
    /// In this partition, from this offset on.
    at: Option<(PartitionId, u64)>,
    /// There were more than the log remembers: the next turn goes on here.
    rest: Option<(PartitionId, u64)>,
    /// No more until the next one.
    is_over: bool,
    /// Not in this round: the last search was a moment ago.
    is_out: bool,
    not_before_us: u64,
}

/// What one step has found.
enum Step {
    /// From here on.
    More(u64),
    /// Everything in this partition.
    Done,
    /// The log remembers no more.
    Full(u64),
}

impl Shard {
    /// A round over all partitions begins.
    pub(in crate::shard) fn dead_round(&mut self, now: Now) {
        let search = &mut self.dead_search;
        search.at = None;
        // Every new segment asks for a round; this is more work than the others.
        search.is_out = now.monotonic_us < search.not_before_us;
        if search.is_out {
            return;
        }
        search.not_before_us = now.monotonic_us + self.config.retention_interval_us;
        if !search.is_over {
            search.rest = None;
        }
        // Who has had no turn yet has it when the cleaner has made use of the last one.
        search.is_over = search.rest.is_some() && !self.log.dead_was_used();
        if search.rest.is_some() && !search.is_over {
            self.log.dead_next_turn();
        }
    }

    /// Begins with a partition of which records go. False = there is nothing to look for, or its turn is another one.
    pub(in crate::shard) fn dead_begin(&mut self, id: PartitionId) -> bool {
        let search = &mut self.dead_search;
        if search.is_out || search.is_over || search.rest.is_some_and(|(rest, _)| id < rest) {
            return false;
        }
        let from = search.rest.take().filter(|(rest, _)| id == *rest).map_or(0, |(_, from)| from);
        self.log.dead_begin(id);
        // What the first of them hasn't settled is all there is: the log's start is what moves.
        let first = self.queues.of_partition(id).map(|slot| &slot.cursor).min_by_key(|cursor| cursor.floor());
        if first.is_none_or(|cursor| cursor.settled_from(0).next().is_none()) {
            return false;
        }
        self.dead_search.at = Some((id, from));
        true
    }

    /// One step. False = no partition is under way.
    pub(in crate::shard) fn dead_step(&mut self, now: Now) -> bool {
        let Some((id, from)) = self.dead_search.at.take() else { return false };
        match self.find_dead(id, from, now) {
            Step::More(from) => self.dead_search.at = Some((id, from)),
            Step::Done => {}
            Step::Full(from) => {
                self.dead_search.rest = Some((id, from));
                self.dead_search.is_over = true;
            }
        }
        true
    }

    fn find_dead(&mut self, id: PartitionId, mut from: u64, now: Now) -> Step {
        if self.queues.dropped_below(id).is_none() || !self.cursors_are_logged(id, now) {
            return Step::Done;
        }
        let Some(partition) = self.partitions.get(id) else { return Step::Done };
        let below = partition.readable_end(true).0.saturating_sub(1);
        let cursors: Vec<&Cursor> = self.queues.of_partition(id).map(|slot| &slot.cursor).collect();
        let mut questions = 0;
        while let Some((start, end)) = settled_by_all(&cursors, from, below, &mut questions) {
            let markers = partition.transactions.as_deref().into_iter().flat_map(|it| it.aborted_from(Offset(start)));
            let marker = markers.map(|(marker, _)| marker.0).next().filter(|marker| *marker < end);
            let until = marker.unwrap_or(end);
            if start < until && self.log.dead_room() == 0 {
                return Step::Full(start);
            }
            self.log.dead_push(id, Offset(start), Offset(until));
            from = marker.map_or(end, |marker| marker + 1);
            questions += 1;
            if questions >= QUESTIONS_PER_STEP {
                return Step::More(from);
            }
        }
        Step::Done
    }

    /// Whether what all cursors over the partition have settled is in the log, now if it wasn't before.
    pub(in crate::shard) fn cursors_are_logged(&mut self, id: PartitionId, now: Now) -> bool {
        let range = self.queues.index.range((id, QueueId(0))..=(id, QueueId(u32::MAX)));
        let is_logged = |slot: &super::Slot| slot.is_head_logged && !slot.cursor.has_unlogged();
        let behind: Vec<u32> =
            range.map(|(_, index)| *index).filter(|index| !self.queues.slots[*index as usize].as_deref().is_some_and(is_logged)).collect();
        behind.into_iter().all(|index| self.log_cursor(index, now))
    }

    /// A queue over the partition is gone or has other settings: without one that says so, no record goes.
    pub(super) fn keep_what_is_acked(&mut self, id: PartitionId) {
        if self.queues.dropped_below(id).is_none() {
            self.log.dead_revoke(id, Offset(0));
        }
    }
}

/// The first range at or after `from` and below `below` that all of them have settled; an empty one = ask on from there. `questions` counts
/// what was asked.
fn settled_by_all(cursors: &[&Cursor], from: u64, below: u64, questions: &mut usize) -> Option<(u64, u64)> {
    let mut start = from;
    'from_start: while start < below {
        let mut end = below;
        for cursor in cursors {
            *questions += 1;
            let (first, until) = cursor.settled_run(start)?;
            if first > start {
                start = first;
                if *questions >= QUESTIONS_PER_STEP {
                    return Some((start, start));
                }
                continue 'from_start;
            }
            end = end.min(until);
        }
        return Some((start, end));
    }
    None
}
