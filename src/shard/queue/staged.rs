//! Acknowledgements in transactions: *staged* until their transaction is decided. A staged message is still in flight, whatever its
//! deadline says and whoever goes; nobody but the decision changes that. Committed, it is acknowledged. Aborted, it is
//! what it would be without: in flight at its consumer, or back because that has gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::request::transaction::ProducerKey;

/// Staged messages of one queue in one partition; more are refused.
pub const STAGED_MAX: usize = 65_536;

/// Where a staged message is, but for its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In flight at its consumer.
    Held,
    /// The consumer has gone: a delivery in vain, unless the transaction is committed.
    Left {
        /// Deliveries, that one included.
        deliveries: u16,
        /// Its level.
        priority: u8,
    },
    /// As recovered: what was in flight has been counted as delivered. The feeder has yet to come to it, …
    Unseen,
    /// … or was there.
    Seen {
        /// Its level.
        priority: u8,
    },
}

/// The staged messages of a cursor.
#[derive(Debug, Default)]
pub struct Staged {
    messages: BTreeMap<u64, (ProducerKey, Where)>,
    /// By number of the producer: one has a single transaction open at a time.
    of_producer: BTreeMap<i64, BTreeSet<u64>>,
    /// Of them, those that nobody holds.
    away: usize,
}

impl Staged {
    /// As recovered.
    pub fn restore(saved: &BTreeMap<u64, ProducerKey>) -> Option<Box<Staged>> {
        let mut staged = Box::<Staged>::default();
        for (offset, producer) in saved {
            staged.insert(*offset, *producer);
            staged.put(*offset, Where::Unseen);
        }
        (!saved.is_empty()).then_some(staged)
    }

    /// The message is in flight and acknowledged in a transaction of `producer` now.
    pub fn insert(&mut self, offset: u64, producer: ProducerKey) {
        self.messages.insert(offset, (producer, Where::Held));
        self.of_producer.entry(producer.id.0).or_default().insert(offset);
    }

    /// Whose transaction the message is in.
    pub fn of(&self, offset: u64) -> Option<ProducerKey> {
        self.messages.get(&offset).map(|(producer, _)| *producer)
    }

    /// Whether the message is staged.
    pub fn contains(&self, offset: u64) -> bool {
        self.messages.contains_key(&offset)
    }

    /// Whether a transaction of this producer is open here.
    pub fn has(&self, producer: ProducerKey) -> bool {
        let first = self.of_producer.get(&producer.id.0).and_then(|offsets| offsets.first());
        first.and_then(|offset| self.of(*offset)) == Some(producer)
    }

    /// A staged message has moved.
    pub fn put(&mut self, offset: u64, to: Where) {
        if let Some((_, at)) = self.messages.get_mut(&offset) {
            self.away += usize::from(to != Where::Held);
            self.away -= usize::from(*at != Where::Held);
            *at = to;
        }
    }

    /// Staged messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Of them, those that nobody holds.
    pub fn away(&self) -> usize {
        self.away
    }

    /// Settled otherwise: dropped from the log, or of a committed transaction.
    pub fn remove(&mut self, from: u64, until: u64) {
        while let Some((&offset, &(producer, at))) = self.messages.range(from..until).next() {
            self.messages.remove(&offset);
            self.away -= usize::from(at != Where::Held);
            if let Some(offsets) = self.of_producer.get_mut(&producer.id.0) {
                offsets.remove(&offset);
                if offsets.is_empty() {
                    self.of_producer.remove(&producer.id.0);
                }
            }
        }
    }

    /// Takes out what is staged by `producer` in its epoch or an earlier one: its transaction is decided.
    pub fn take(&mut self, producer: ProducerKey) -> Vec<(u64, Where)> {
        let offsets: Vec<u64> = self.of_producer.get(&producer.id.0).into_iter().flatten().copied().collect();
        let mut taken = Vec::new();
        for offset in offsets {
            if let Some((_, at)) = self.messages.get(&offset).filter(|(of, _)| of.epoch <= producer.epoch).copied() {
                taken.push((offset, at));
                self.remove(offset, offset + 1);
            }
        }
        taken
    }

    /// Staged messages from `from` on, in order.
    pub fn from(&self, from: u64) -> impl Iterator<Item = (u64, ProducerKey)> {
        self.messages.range(from..).map(|(offset, (producer, _))| (*offset, *producer))
    }

    /// … and where they are.
    pub fn places(&self) -> impl Iterator<Item = (u64, Where)> {
        self.messages.iter().map(|(offset, (_, at))| (*offset, *at))
    }
}
