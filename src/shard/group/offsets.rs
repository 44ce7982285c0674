//! Where one group is in its partitions.
//!
//! A committed offset is readable once it is durable; until then the value before it is. A checkpoint stores what was
//! logged last, durable or not: it lies behind that in the log.
//!
//! The later of two commits counts, by the order in which they came: a transaction's comes when it is staged, not when it is decided. So a
//! commit makes void what was staged for the partition before it. Source: Apache Kafka 4, `OffsetMetadataManager`, which
//! compares the offsets of both records in its own log.

use std::collections::BTreeMap;
use std::ops::Bound;

use ringmain_wire::{Offset, PartitionId, ProducerId};

/// Longest metadata.
pub const METADATA_MAX_BYTES: usize = 4096;
/// Charged per entry beside its metadata.
pub const ENTRY_BYTES: usize = 128;

/// A position and what the consumer noted with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset wanted.
    pub offset: Offset,
    /// Leader epoch of the last record read; −1 = unknown.
    pub leader_epoch: i32,
    /// As sent.
    pub metadata: Box<str>,
    /// When, ms since the Unix epoch.
    pub commit_ms: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    durable: Option<Committed>,
    /// Logged after `durable`, with the commit group it is in.
    pending: Option<(u64, Committed)>,
}

/// What a transaction will commit if it is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Of the producer, when it staged this.
    pub producer_epoch: u16,
    /// By partition, each with its place in the order of all that was staged in this group.
    pub offsets: BTreeMap<PartitionId, (u64, Committed)>,
}

impl Staged {
    fn charge(&self) -> usize {
        self.offsets.values().map(|(_, committed)| ENTRY_BYTES + committed.metadata.len()).sum()
    }
}

/// A group's offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOffsets {
    entries: BTreeMap<PartitionId, Entry>,
    staged: BTreeMap<i64, Staged>,
    /// Counts what was staged since the start.
    staged_count: u64,
    charged_bytes: usize,
}

impl GroupOffsets {
    /// Nothing is committed or staged.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.staged.is_empty()
    }

    /// What all of it is charged.
    pub fn charged_bytes(&self) -> usize {
        self.charged_bytes
    }

    /// What was committed last that is durable.
    pub fn durable(&self, partition: PartitionId) -> Option<&Committed> {
        self.entries.get(&partition)?.durable.as_ref()
    }

    /// Everything durable, in order of partition.
    pub fn all_durable(&self) -> impl Iterator<Item = (PartitionId, &Committed)> {
        self.entries.iter().filter_map(|(partition, entry)| Some((*partition, entry.durable.as_ref()?)))
    }

    /// An undecided transaction commits something there.
    pub fn is_unstable(&self, partition: PartitionId) -> bool {
        self.staged.values().any(|staged| staged.offsets.contains_key(&partition))
    }

    /// Partitions about which transactions are undecided.
    pub fn unstable(&self) -> impl Iterator<Item = PartitionId> {
        self.staged.values().flat_map(|staged| staged.offsets.keys().copied())
    }

    /// Logged in commit group `sequence`.
    pub fn logged(&mut self, partition: PartitionId, sequence: u64, committed: Committed) {
        self.change(partition, |entry| entry.pending = Some((sequence, committed)));
    }

    /// Commit group `sequence` is durable. Forgotten meanwhile = stays so.
    pub fn flushed(&mut self, partition: PartitionId, sequence: u64, committed: Committed) {
        if self.entries.contains_key(&partition) {
            self.change(partition, |entry| {
                entry.durable = Some(committed);
                if entry.pending.as_ref().is_some_and(|(pending, _)| *pending <= sequence) {
                    entry.pending = None;
                }
            });
        }
    }

    /// From the log: durable.
    pub fn restore(&mut self, partition: PartitionId, committed: Committed) {
        self.change(partition, |entry| *entry = Entry { durable: Some(committed), pending: None });
    }

    /// Forgets a partition, staged or not.
    pub fn forget(&mut self, partition: PartitionId) {
        if let Some(entry) = self.entries.remove(&partition) {
            self.charged_bytes -= charge(&entry);
        }
        self.overtake(partition, u64::MAX);
    }

    /// A commit is logged: what was staged there before it will have no effect.
    pub fn supersede(&mut self, partition: PartitionId) {
        self.overtake(partition, u64::MAX);
    }

    /// Drops what was staged for a partition before `order`.
    fn overtake(&mut self, partition: PartitionId, order: u64) {
        let mut is_empty = false;
        for staged in self.staged.values_mut() {
            if staged.offsets.get(&partition).is_some_and(|(staged, _)| *staged < order)
                && let Some((_, committed)) = staged.offsets.remove(&partition)
            {
                self.charged_bytes -= ENTRY_BYTES + committed.metadata.len();
                is_empty |= staged.offsets.is_empty();
            }
        }
        if is_empty {
            self.staged.retain(|_, staged| !staged.offsets.is_empty());
        }
    }

    /// Forgets every partition that `keeps` doesn't name.
    pub fn retain(&mut self, keeps: impl Fn(PartitionId) -> bool) {
        let partitions: Vec<PartitionId> = self.entries.keys().copied().chain(self.unstable()).filter(|p| !keeps(*p)).collect();
        partitions.into_iter().for_each(|partition| self.forget(partition));
    }

    /// To take effect when the producer's transaction is committed. Another incarnation's leftovers give way.
    pub fn stage(&mut self, producer_id: ProducerId, producer_epoch: u16, offsets: impl IntoIterator<Item = (PartitionId, Committed)>) {
        let staged = self.staged.entry(producer_id.0).or_default();
        let mut gone = 0;
        if staged.producer_epoch != producer_epoch {
            gone += staged.charge();
            *staged = Staged { producer_epoch, offsets: BTreeMap::new() };
        }
        for (partition, committed) in offsets {
            self.charged_bytes += ENTRY_BYTES + committed.metadata.len();
            self.staged_count += 1;
            let before = staged.offsets.insert(partition, (self.staged_count, committed));
            gone += before.map_or(0, |(_, old)| ENTRY_BYTES + old.metadata.len());
        }
        self.charged_bytes -= gone;
    }

    /// The epoch in which a producer staged something here.
    pub fn staged_epoch(&self, producer_id: ProducerId) -> Option<u16> {
        self.staged.get(&producer_id.0).map(|staged| staged.producer_epoch)
    }

    /// The producer's transaction is decided: what it had staged and no commit has overtaken. If that takes effect, it overtakes what
    /// others had staged before it.
    pub fn unstage(&mut self, producer_id: ProducerId, takes_effect: bool) -> Vec<(PartitionId, Committed)> {
        let staged = self.staged.remove(&producer_id.0).unwrap_or_default();
        self.charged_bytes -= staged.charge();
        for (partition, (order, _)) in staged.offsets.iter().filter(|_| takes_effect) {
            self.overtake(*partition, *order);
        }
        staged.offsets.into_iter().map(|(partition, (_, committed))| (partition, committed)).collect()
    }

    /// The partitions after `after`, with what was logged last about each.
    pub fn logged_after(&self, after: Option<PartitionId>) -> impl Iterator<Item = (PartitionId, &Committed)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded)).filter_map(|(partition, entry)| {
            let latest = entry.pending.as_ref().map(|(_, committed)| committed).or(entry.durable.as_ref())?;
            Some((*partition, latest))
        })
    }

    /// What transactions have staged, in the order in which it came: producer and its epoch, partition, offset.
    pub fn all_staged(&self) -> Vec<(ProducerId, u16, PartitionId, &Committed)> {
        let each = self.staged.iter().flat_map(|(producer_id, staged)| {
            staged
                .offsets
                .iter()
                .map(|(partition, (order, committed))| (*order, ProducerId(*producer_id), staged.producer_epoch, *partition, committed))
        });
        let mut all: Vec<_> = each.collect();
        all.sort_unstable_by_key(|(order, ..)| *order);
        all.into_iter().map(|(_, producer_id, epoch, partition, committed)| (producer_id, epoch, partition, committed)).collect()
    }

    fn change(&mut self, partition: PartitionId, change: impl FnOnce(&mut Entry)) {
        let entry = self.entries.entry(partition).or_default();
        let before = if *entry == Entry::default() { 0 } else { charge(entry) };
        change(entry);
        self.charged_bytes = self.charged_bytes + charge(entry) - before;
    }
}

fn charge(entry: &Entry) -> usize {
    let metadata = |committed: &Committed| committed.metadata.len();
    ENTRY_BYTES + entry.durable.as_ref().map_or(0, metadata) + entry.pending.as_ref().map_or(0, |(_, committed)| metadata(committed))
}
