//! Where consumers are in one partition.
//!
//! A committed offset is readable once it is durable; until then the value before it is. A checkpoint
//! stores what was logged last, durable or not: it lies behind that in the log.

use std::collections::BTreeMap;
use std::ops::Bound;

use ringmain_wire::Offset;

/// Longest consumer name.
pub const CONSUMER_NAME_MAX_BYTES: usize = 255;
/// Longest metadata.
pub const METADATA_MAX_BYTES: usize = 4096;
/// Charged per entry beside its strings.
const ENTRY_BYTES: usize = 128;

/// A position and what the consumer noted with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset it wants.
    pub offset: Offset,
    /// As sent.
    pub metadata: Box<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    durable: Option<Committed>,
    /// Logged after `durable`, with the commit group it is in.
    pending: Option<(u64, Committed)>,
}

/// Consumers' offsets in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerOffsets {
    consumers: BTreeMap<Box<str>, Entry>,
}

impl ConsumerOffsets {
    /// What `consumer` committed last that is durable.
    pub fn durable(&self, consumer: &str) -> Option<&Committed> {
        self.consumers.get(consumer)?.durable.as_ref()
    }

    /// Bytes that logging this may charge beyond what is charged now.
    pub fn growth_bytes(&self, consumer: &str, metadata: &str) -> usize {
        let entry_bytes = if self.consumers.contains_key(consumer) { 0 } else { ENTRY_BYTES + consumer.len() };
        entry_bytes + metadata.len()
    }

    /// Logged in commit group `sequence`. The change in charged bytes.
    pub fn logged(&mut self, consumer: &str, sequence: u64, committed: Committed) -> isize {
        self.change(consumer, |entry| entry.pending = Some((sequence, committed)))
    }

    /// Commit group `sequence` is durable. The change in charged bytes.
    pub fn flushed(&mut self, consumer: &str, sequence: u64, committed: Committed) -> isize {
        self.change(consumer, |entry| {
            entry.durable = Some(committed);
            if entry.pending.as_ref().is_some_and(|(pending, _)| *pending <= sequence) {
                entry.pending = None;
            }
        })
    }

    /// From the log: durable. The change in charged bytes.
    pub fn restore(&mut self, consumer: &str, committed: Committed) -> isize {
        self.change(consumer, |entry| *entry = Entry { durable: Some(committed), pending: None })
    }

    /// The consumers after `after`, in order of name, with what each logged last.
    pub fn logged_after(&self, after: Option<&str>) -> impl Iterator<Item = (&str, &Committed)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.consumers.range::<str, _>((from, Bound::Unbounded)).filter_map(|(consumer, entry)| {
            let latest = entry.pending.as_ref().map(|(_, committed)| committed).or(entry.durable.as_ref())?;
            Some((&**consumer, latest))
        })
    }

    /// What all entries are charged.
    pub fn charged_bytes(&self) -> usize {
        self.consumers.iter().map(|(consumer, entry)| charge(consumer, entry)).sum()
    }

    fn change(&mut self, consumer: &str, change: impl FnOnce(&mut Entry)) -> isize {
        if let Some(entry) = self.consumers.get_mut(consumer) {
            let before = charge(consumer, entry);
            change(entry);
            return charge(consumer, entry) as isize - before as isize;
        }
        let mut entry = Entry::default();
        change(&mut entry);
        let charged = charge(consumer, &entry) as isize;
        self.consumers.insert(consumer.into(), entry);
        charged
    }
}

fn charge(consumer: &str, entry: &Entry) -> usize {
    let metadata = |committed: &Committed| committed.metadata.len();
    ENTRY_BYTES
        + consumer.len()
        + entry.durable.as_ref().map_or(0, metadata)
        + entry.pending.as_ref().map_or(0, |(_, committed)| metadata(committed))
}
