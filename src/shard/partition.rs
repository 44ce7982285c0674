//! One partition as its shard has it, and the table that finds it by number.

use ringmain_wire::control::Durability;
use ringmain_wire::{Offset, PartitionId};

use super::id_table::IdTable;
use super::message_ids::MessageIds;
use super::participant::PartitionTransactions;
use super::producer_state::ProducerTable;
use crate::request::PartitionConfig;

/// Offsets reserved at a time by `written` and `memory` partitions.
pub const RESERVED_AHEAD: u64 = 65_536;
/// End of a list of waiting fetches.
pub const NONE: u32 = u32::MAX;

/// A partition. `log_start ≤ high_watermark ≤ next_offset`; each only grows.
#[derive(Debug)]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// First of its waiting fetches, or [`NONE`].
    pub waiting: u32,
    /// Settings, from the catalog.
    pub config: PartitionConfig,
    /// Queues read it.
    pub has_queues: bool,
    /// First offset still stored.
    pub log_start: Offset,
    /// `log_start` once the record that says so is durable.
    pub log_start_logged: Offset,
    /// Offset of the next record.
    pub next_offset: Offset,
    /// First offset that isn't readable yet.
    pub high_watermark: Offset,
    /// A durable record says that no offset from here on has named anything. 0 in `durable` partitions.
    pub reserved_end: Offset,
    /// `reserved_end` once the newest record about it is durable.
    pub reserved_end_logged: Offset,
    /// Commit group of that record.
    pub reserved_sequence: u64,
    /// Reserve more when `next_offset` comes here; out of reach in `durable` partitions.
    pub reserve_at: Offset,
    /// Bytes of frames appended since start, padding included: tells waiting fetches when to look.
    pub appended_bytes: u64,
    /// Idempotent producers; `None` until there is one.
    pub producers: Option<Box<ProducerTable>>,
    /// What it recognises messages by; `None` while no queue asks for that.
    pub message_ids: Option<Box<MessageIds>>,
    /// Open and aborted transactions; `None` until there is one.
    pub transactions: Option<Box<PartitionTransactions>>,
}

// 100,000 partitions at less than 1 KiB each, table entry included (issue: memory).
const _: () = assert!(size_of::<Partition>() <= 256);

impl Partition {
    /// Nothing stored yet.
    pub fn new(id: PartitionId, config: PartitionConfig) -> Partition {
        let mut partition = Partition {
            id,
            waiting: NONE,
            config,
            has_queues: false,
            log_start: Offset(0),
            log_start_logged: Offset(0),
            next_offset: Offset(0),
            high_watermark: Offset(0),
            reserved_end: Offset(0),
            reserved_end_logged: Offset(0),
            reserved_sequence: 0,
            reserve_at: Offset(0),
            appended_bytes: 0,
            producers: None,
            message_ids: None,
            transactions: None,
        };
        partition.plan_reservation();
        partition
    }

    /// First offset that a committed-only reader can't have yet.
    pub fn last_stable(&self) -> Offset {
        let unstable = self.transactions.as_deref().and_then(PartitionTransactions::first_unstable);
        unstable.map_or(self.high_watermark, |offset| offset.clamp(self.log_start, self.high_watermark))
    }

    /// First offset that such a reader can't have yet.
    pub fn readable_end(&self, committed_only: bool) -> Offset {
        if committed_only { self.last_stable() } else { self.high_watermark }
    }

    /// Says when the next reservation is due: half a step before the last one ends, so that nobody waits for it.
    pub fn plan_reservation(&mut self) {
        self.reserve_at = match self.config.durability {
            Durability::Durable => Offset(u64::MAX),
            Durability::Written | Durability::Memory => Offset(self.reserved_end_logged.0.saturating_sub(RESERVED_AHEAD / 2)),
        };
    }
}

const CHUNK_BITS: u32 = 9;
const CHUNK_PARTITIONS: usize = 1 << CHUNK_BITS;

/// The partitions of one shard. Found without hashing; never moved by growth.
#[derive(Debug, Default)]
pub struct PartitionTable {
    slots: IdTable<u32>,
    chunks: Vec<Vec<Option<Partition>>>,
    free: Vec<u32>,
}

impl PartitionTable {
    /// The partition of that number.
    #[inline]
    pub fn get(&self, id: PartitionId) -> Option<&Partition> {
        let slot = self.slots.get(id.0)? as usize;
        self.chunks[slot >> CHUNK_BITS][slot & (CHUNK_PARTITIONS - 1)].as_ref()
    }

    /// The partition of that number.
    #[inline]
    pub fn get_mut(&mut self, id: PartitionId) -> Option<&mut Partition> {
        let slot = self.slots.get(id.0)? as usize;
        self.chunks[slot >> CHUNK_BITS][slot & (CHUNK_PARTITIONS - 1)].as_mut()
    }

    /// Adds a partition whose number isn't there.
    pub fn insert(&mut self, partition: Partition) -> &mut Partition {
        let id = partition.id;
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK_PARTITIONS) {
                // Full-sized from the second on: a shard with a handful of partitions stays small.
                let capacity = if self.chunks.is_empty() { 0 } else { CHUNK_PARTITIONS };
                self.chunks.push(Vec::with_capacity(capacity));
            }
            let chunk = self.chunks.len() - 1;
            self.chunks[chunk].push(None);
            (chunk << CHUNK_BITS | (self.chunks[chunk].len() - 1)) as u32
        });
        let old = self.slots.insert(id.0, slot);
        assert!(old.is_none(), "partition {id} exists");
        self.chunks[slot as usize >> CHUNK_BITS][slot as usize & (CHUNK_PARTITIONS - 1)].insert(partition)
    }

    /// Takes a partition out.
    pub fn remove(&mut self, id: PartitionId) -> Option<Partition> {
        let slot = self.slots.remove(id.0)?;
        self.free.push(slot);
        self.chunks[slot as usize >> CHUNK_BITS][slot as usize & (CHUNK_PARTITIONS - 1)].take()
    }

    /// The first partition whose number is at least `from`.
    pub fn next_from(&self, from: PartitionId) -> Option<&Partition> {
        let (id, _) = self.slots.next_from(from.0)?;
        self.get(PartitionId(id))
    }

    /// Every partition, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.slots.iter().filter_map(|(id, _)| self.get(PartitionId(id)))
    }

    /// Every number, in order.
    pub fn ids(&self) -> Vec<PartitionId> {
        self.slots.iter().map(|(id, _)| PartitionId(id)).collect()
    }

    /// Partitions.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}
