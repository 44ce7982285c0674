//! Queues that expire: without consumers and acknowledgements in open transactions, and neither received from nor settled in nor asked about
//! for a time. Every partition knows when it was used last. That of index 0 asks the others, one after the other; when nobody uses any, shard 0
//! deletes the queue. Nothing of this is logged: after a start the time counts anew.

use ringmain_wire::PartitionId;
use ringmain_wire::control::PartitionPlace;
use ringmain_wire::queue::{QueueAnswer, QueueConfig};

use super::Slot;
use crate::request::queue::{QueueId, QueueReply};
use crate::request::{Now, Origin, Reply, Request};
use crate::shard::catalog::CatalogChange;
use crate::shard::transaction::Asked;
use crate::shard::{Busy, Shard};

/// A question that wasn't answered as it should is asked again after this.
const AGAIN_US: u64 = 1_000_000;

/// When a queue was used in a partition, and whom that has asked.
#[derive(Debug)]
pub(super) struct Idle {
    /// Monotonic µs; 0 = not served yet.
    used_us: u64,
    /// Not before this are others asked.
    ask_us: u64,
    /// Index of the partition that is asked next.
    next: usize,
    is_asking: bool,
}

impl Default for Idle {
    fn default() -> Idle {
        Idle { used_us: 0, ask_us: 0, next: 1, is_asking: false }
    }
}

impl Idle {
    /// The queue is used.
    pub(super) fn used(&mut self, now: Now) {
        (self.used_us, self.next) = (now.monotonic_us, 1);
    }
}

/// For the answer to a question about a queue, or its deletion.
#[derive(Clone, Copy, Debug)]
pub struct IdleQueue {
    index: u32,
    generation: u64,
}

/// What a queue that expires has to know.
pub(super) fn partitions(config: &QueueConfig, places: &[PartitionPlace]) -> Vec<PartitionId> {
    let places = if config.expires_ms.is_some() { places } else { &[] };
    places.iter().map(|place| PartitionId(place.partition)).collect()
}

/// So much longer must nobody use the queue here; `None` = it doesn't expire.
fn left_us(slot: &Slot, now: Now) -> Option<u64> {
    let expires_us = slot.cursor.config().expires_ms?.saturating_mul(1_000);
    let is_used = slot.cursor.consumer_count() > 0 || slot.cursor.staged_count() > 0 || !slot.waiters.is_empty();
    let used_us = if is_used || slot.idle.used_us == 0 { now.monotonic_us } else { slot.idle.used_us };
    Some(used_us.saturating_add(expires_us).saturating_sub(now.monotonic_us))
}

impl Shard {
    /// Takes the next step towards the end of a queue that nobody uses.
    pub(super) fn expire_queue(&mut self, index: u32, slot: &mut Slot, now: Now) {
        let Some(left_us) = left_us(slot, now) else { return };
        if slot.idle.used_us == 0 || slot.cursor.consumer_count() > 0 || slot.cursor.staged_count() > 0 {
            slot.idle.used(now);
        }
        if left_us > 0 || slot.idle.is_asking || slot.idle.ask_us > now.monotonic_us {
            return;
        }
        let Some(known) = self.queues.queues.get(&slot.queue).filter(|known| known.partitions.first() == Some(&slot.partition)) else {
            return;
        };
        let request = match known.partitions.get(slot.idle.next) {
            Some(partition) => Request::QueueIdle { queue: slot.queue, partition: *partition },
            None => Request::ExpireQueue { queue: slot.queue },
        };
        slot.idle.is_asking = true;
        self.ask(Asked::Idle(IdleQueue { index, generation: slot.generation }), request);
    }

    /// When the next step is due, monotonic µs.
    pub(super) fn idle_deadline_us(&self, slot: &Slot, now: Now) -> Option<u64> {
        let at_us = now.monotonic_us.saturating_add(left_us(slot, now)?).max(slot.idle.ask_us);
        let decides = || self.queues.queues.get(&slot.queue).is_some_and(|known| known.partitions.first() == Some(&slot.partition));
        // A consumer that leaves wakes the cursor.
        (slot.cursor.consumer_count() == 0 && slot.cursor.staged_count() == 0 && !slot.idle.is_asking && decides()).then_some(at_us)
    }

    /// How much longer the queue must be idle here to expire.
    pub(in crate::shard) fn queue_idle(&mut self, origin: Origin, queue: QueueId, partition: PartitionId, now: Now) {
        let slot = self.queues.slot_of(partition, queue).and_then(|index| self.queues.get_mut(index));
        let left_ms = slot.map_or(Some(0), |slot| left_us(slot, now)).map_or(u64::MAX, |us| us.div_ceil(1_000));
        self.reply(origin, Reply::Queue(Box::new(QueueReply::Answer(QueueAnswer::Count(left_ms)))));
    }

    /// Shard 0: nobody uses the queue.
    pub(in crate::shard) fn queue_expired(&mut self, origin: Origin, queue: QueueId, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_expire_queue(queue).map(|queue| CatalogChange::QueueDeleted { queue: queue.0 });
        self.change_catalog(origin, decided, now)
    }

    /// What another partition, or shard 0, says.
    pub(in crate::shard) fn idle_answered(&mut self, asked: IdleQueue, reply: &Reply, now: Now) {
        let Some(slot) = self.queues.get_mut(asked.index).filter(|slot| slot.generation == asked.generation) else { return };
        slot.idle.is_asking = false;
        let left_ms = match reply {
            Reply::Queue(reply) => match **reply {
                QueueReply::Answer(QueueAnswer::Count(left_ms)) => Some(left_ms),
                _ => None,
            },
            _ => None,
        };
        match left_ms {
            Some(0) => slot.idle.next += 1,
            left_ms => {
                slot.idle.next = 1;
                slot.idle.ask_us = now.monotonic_us.saturating_add(left_ms.map_or(AGAIN_US, |ms| ms.saturating_mul(1_000)));
            }
        }
        self.queues.mark_dirty(asked.index);
    }
}
