//! Records that nobody needs any more while older ones are still needed: told by the shard as ranges of offsets, left out by the cleaner.
//!
//! A range is a promise of the shard: what makes its records dead is in the log already. The swap record that takes them away comes
//! behind that, so whoever finds them missing after a crash finds the reason, too. Nothing of a range is on disk; after a start the
//! shard tells it again.

use std::collections::BTreeMap;
use std::rc::Rc;

use ringmain_wire::{Offset, PartitionId};

use super::Log;
use super::index::Place;

/// Ranges of one partition in order, apart from each other.
pub(super) type Ranges = Rc<Vec<(u64, u64)>>;

/// What is known to be dead above the partitions' starts.
#[derive(Debug, Default)]
pub(super) struct DeadRanges {
    partitions: BTreeMap<u32, Ranges>,
    count: usize,
    /// Not all has been told since something was forgotten.
    pub is_partial: bool,
    /// The cleaner has looked for work when all had been told.
    pub were_seen: bool,
}

impl DeadRanges {
    /// Partitions of which something is dead.
    pub fn partitions(&self) -> impl Iterator<Item = u32> {
        self.partitions.keys().copied()
    }

    /// All of them, for one job of the cleaner.
    pub fn snapshot(&self) -> BTreeMap<u32, Ranges> {
        self.partitions.clone()
    }

    fn forget(&mut self, partition: u32) {
        if let Some(ranges) = self.partitions.remove(&partition) {
            self.count -= ranges.len();
        }
    }

    fn push(&mut self, partition: u32, start: u64, end: u64) {
        let ranges = Rc::make_mut(self.partitions.entry(partition).or_default());
        debug_assert!(start < end && ranges.last().is_none_or(|(_, last)| *last <= start), "in order, apart");
        match ranges.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => {
                ranges.push((start, end));
                self.count += 1;
            }
        }
    }
}

/// Whether all of `start..end` is in one range.
pub(super) fn covers(ranges: &[(u64, u64)], start: u64, end: u64) -> bool {
    let at = ranges.partition_point(|(_, until)| *until <= start);
    ranges.get(at).is_some_and(|(from, until)| *from <= start && end <= *until)
}

/// Whether something at `offset` or behind is in the ranges.
pub(super) fn reaches(ranges: &[(u64, u64)], offset: u64) -> bool {
    ranges.last().is_some_and(|(_, end)| *end > offset)
}

impl Log {
    /// What is dead in `partition` is told anew, from the first range on.
    pub fn dead_begin(&mut self, partition: PartitionId) {
        self.forget_dead(partition);
        self.dead.is_partial = true;
    }

    /// Nothing is dead in `partition`, as far as anybody has said.
    pub(super) fn forget_dead(&mut self, partition: PartitionId) {
        if !self.dead.partitions.contains_key(&partition.0) {
            return;
        }
        self.dead.forget(partition.0);
        let Some(places) = self.partitions.get_mut(partition.0 as usize) else { return };
        for place in &mut places.places {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.dead_bytes -= place.dead_bytes();
            }
            place.covered = 0;
        }
    }

    /// The records in `start..end` are dead, and what says so is in the log. Ranges come in order. Only frames whose records are all dead
    /// go, and only where that frees enough.
    pub fn dead_push(&mut self, partition: PartitionId, start: Offset, end: Offset) {
        if start >= end {
            return;
        }
        self.dead.push(partition.0, start.0, end.0);
        let Some(places) = self.partitions.get_mut(partition.0 as usize) else { return };
        let first = places.first_after(start.0);
        for place in places.places.range_mut(first..).take_while(|place| place.base_offset < end.0) {
            // The active segment grows; it is asked about again when it is sealed.
            if place.segment == self.active {
                continue;
            }
            let before = place.dead_bytes();
            place.covered += end.0.min(place.end_offset) - start.0.max(place.base_offset);
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.dead_bytes += place.dead_bytes() - before;
            }
        }
    }

    /// Everything has been told for now: segments without a live record go.
    pub fn dead_end(&mut self) {
        self.dead.is_partial = false;
        self.retire_dead_segments();
    }

    /// Somebody wants records of `partition` from `offset` on: what isn't gone yet stays.
    pub fn dead_revoke(&mut self, partition: PartitionId, offset: Offset) {
        if self.dead.partitions.get(&partition.0).is_some_and(|ranges| reaches(ranges, offset.0)) {
            self.forget_dead(partition);
        }
        self.revoke_cleaning(partition, offset);
    }

    /// Forgets everything that was said to be dead: other ranges have their turn.
    pub fn dead_next_turn(&mut self) {
        for partition in self.dead.partitions().collect::<Vec<u32>>() {
            self.forget_dead(PartitionId(partition));
        }
        self.dead.were_seen = false;
        self.dead.is_partial = true;
    }

    /// Ranges that may still be told.
    pub fn dead_room(&self) -> usize {
        self.config.dead_ranges_max.saturating_sub(self.dead.count)
    }

    /// The cleaner has chosen among what was told last, and has nothing in hand.
    pub fn dead_was_used(&self) -> bool {
        self.dead.were_seen && !self.cleaner.is_busy()
    }

    /// Bytes of frames that are dead and still stored, as far as known without reading them.
    pub fn dead_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.dead_bytes).sum()
    }
}

impl Place {
    /// Bytes of dead frames in it, where frames are equally long. `covered` counts offsets, and some of them have no record any more.
    pub fn dead_bytes(&self) -> u64 {
        let gone = (self.end_offset - self.base_offset).saturating_sub(self.records);
        let dead = self.covered.saturating_sub(gone).min(self.records);
        (u128::from(self.bytes) * u128::from(dead) / u128::from(self.records.max(1))) as u64
    }
}
