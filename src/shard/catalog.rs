//! Topics and partitions: a pure, deterministic state machine. Shard 0 decides changes and logs them;
//! every core applies them to a copy of its own once they are durable.
//!
//! Topic and partition numbers start at 1 and are never used again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmain_wire::control::{AlterTopic, Cleanup, CreateTopic, NoteChange, PartitionPlace, TopicConfig, TopicInfo, TopicNote};
use ringmain_wire::murmur2::murmur2;
use ringmain_wire::queue::{QueueConfig, QueueInfo};
use ringmain_wire::{ErrorCode, MAX_MESSAGE_BYTES_LIMIT, PartitionId, ShardId, TopicId, frame};
use rkyv::{Archive, Deserialize, Serialize};

use super::id_table::IdTable;
use super::queue::catalog::{Queue, QueuePiece, QueuePieceV1, Queues};
use crate::request::queue::QueueId;
use crate::request::{Failure, PartitionConfig};

/// Longest topic name.
pub const TOPIC_NAME_MAX_BYTES: usize = 249;
/// Partitions there can be at all: what one topic may ask for.
pub const PARTITIONS_LIMIT: u32 = 100_000;
/// Smallest `max.message.bytes`: room for a header and one small record.
pub const MAX_MESSAGE_BYTES_LEAST: u32 = 1024;
/// Notes that a topic keeps.
const NOTES_MAX: usize = 64;
const NOTE_VALUE_MAX_BYTES: usize = 1024;
/// Slots onto which groups and transactional ids hash.
pub const SLOT_COUNT: usize = 64;

/// Every topic and partition. Cheap to change: no change copies what it doesn't touch.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    names: BTreeMap<Arc<str>, TopicId>,
    topics: BTreeMap<TopicId, Topic>,
    partitions: IdTable<PartitionEntry>,
    /// Partitions per shard, to fill the emptiest first.
    load: Vec<u32>,
    /// Numbers below these have been used.
    next_topic: u32,
    next_partition: u32,
    /// By slot: the shard of its groups and transactional ids; empty until placed.
    slots: Vec<ShardId>,
    queues: Queues,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its number.
    pub topic: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// In order of index.
    pub partitions: Vec<PartitionPlace>,
    /// Its settings.
    pub config: TopicConfig,
}

/// Where a partition belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionEntry {
    /// The topic.
    pub topic: TopicId,
    /// Its index there.
    pub index: u32,
    /// The shard that owns it.
    pub shard: ShardId,
}

/// One decided change, complete in itself: applying it needs no decision.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// A new topic.
    TopicCreated {
        /// Its number.
        topic: u32,
        /// Its name.
        name: String,
        /// Its settings.
        config: TopicConfig,
        /// In order of index.
        partitions: Vec<PartitionPlace>,
    },
    /// New settings and more partitions, at once.
    TopicAltered {
        /// Which.
        topic: u32,
        /// All settings, changed or not.
        config: TopicConfig,
        /// All partitions in order of index, the new ones last.
        partitions: Vec<PartitionPlace>,
    },
    /// It and its partitions are gone.
    TopicDeleted {
        /// Which.
        topic: u32,
        /// What belonged to it.
        partitions: Vec<PartitionPlace>,
    },
    /// Which shard coordinates the groups and transactional ids of each slot. Decided once, when the data directory is
    /// new; shards added later get none.
    SlotsPlaced {
        /// By slot.
        shards: Vec<u16>,
    },
    /// A queue is new or has new settings. Written by earlier builds.
    QueuePut {
        /// It.
        queue: Box<QueuePieceV1>,
        /// Of its topic, in order of index.
        partitions: Vec<PartitionPlace>,
    },
    /// It is gone.
    QueueDeleted {
        /// Which.
        queue: u32,
    },
    /// A queue is new or has new settings.
    QueueSet {
        /// It.
        queue: Box<QueuePiece>,
        /// Of its topic, in order of index.
        partitions: Vec<PartitionPlace>,
    },
}

impl CatalogChange {
    /// The topic it is about, if it is about one.
    pub fn topic(&self) -> Option<TopicId> {
        match self {
            CatalogChange::TopicCreated { topic, .. }
            | CatalogChange::TopicAltered { topic, .. }
            | CatalogChange::TopicDeleted { topic, .. } => Some(TopicId(*topic)),
            CatalogChange::SlotsPlaced { .. }
            | CatalogChange::QueuePut { .. }
            | CatalogChange::QueueSet { .. }
            | CatalogChange::QueueDeleted { .. } => None,
        }
    }
}

/// The slot of a group's name or a transactional id.
pub fn slot(id: &str) -> usize {
    murmur2(id.as_bytes()) as usize % SLOT_COUNT
}

/// Bounds that a decision keeps to.
#[derive(Clone, Copy, Debug)]
pub struct CatalogLimits {
    /// Partitions of all topics.
    pub partitions_max: u32,
    /// Shards to spread them over.
    pub shard_count: u16,
}

impl Catalog {
    /// Decides a creation; changes nothing.
    ///
    /// Errors: `InvalidTopic`, `InvalidArgument`, `TopicExists`, `LimitExceeded`.
    pub fn decide_create(&self, create: &CreateTopic, limits: CatalogLimits) -> Result<CatalogChange, Failure> {
        check_name(&create.name)?;
        check_config(&create.config)?;
        if !(1..=PARTITIONS_LIMIT).contains(&create.partition_count) {
            let message = format!("{} partitions; a topic has 1 to {PARTITIONS_LIMIT}", create.partition_count);
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        if self.names.contains_key(create.name.as_str()) {
            return Err(Failure::new(ErrorCode::TopicExists, format!("topic '{}' exists already", create.name)));
        }
        let partitions = self.place(create.partition_count, limits)?;
        Ok(CatalogChange::TopicCreated {
            topic: self.next_topic.max(1),
            name: create.name.clone(),
            config: create.config.clone(),
            partitions,
        })
    }

    /// Decides an alteration; changes nothing.
    ///
    /// Errors: `UnknownTopic`, `InvalidArgument`, `LimitExceeded`.
    pub fn decide_alter(&self, alter: &AlterTopic, limits: CatalogLimits) -> Result<CatalogChange, Failure> {
        let topic = self.topic(&alter.name).ok_or_else(|| unknown_topic(&alter.name))?;
        let old = &topic.config;
        let config = TopicConfig {
            durability: alter.durability.unwrap_or(old.durability),
            retention_ms: alter.retention_ms.unwrap_or(old.retention_ms),
            retention_bytes: alter.retention_bytes.unwrap_or(old.retention_bytes),
            max_message_bytes: alter.max_message_bytes.unwrap_or(old.max_message_bytes),
            cleanup: alter.cleanup.unwrap_or(old.cleanup),
            append_time: alter.append_time.unwrap_or(old.append_time),
            notes: changed_notes(&old.notes, &alter.notes),
        };
        check_config(&config)?;
        let count = topic.partitions.len() as u32;
        let wanted = alter.partition_count.unwrap_or(count);
        if wanted < count || wanted > PARTITIONS_LIMIT {
            let message = format!(
                "topic '{}' has {count} partitions; it can have more, up to {PARTITIONS_LIMIT}, never fewer (got {wanted})",
                alter.name
            );
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        let mut partitions = topic.partitions.clone();
        partitions.extend(self.place(wanted - count, limits)?);
        Ok(CatalogChange::TopicAltered { topic: topic.topic.0, config, partitions })
    }

    /// Decides a deletion; changes nothing. Errors: `UnknownTopic`.
    pub fn decide_delete(&self, name: &str) -> Result<CatalogChange, Failure> {
        let topic = self.topic(name).ok_or_else(|| unknown_topic(name))?;
        Ok(CatalogChange::TopicDeleted { topic: topic.topic.0, partitions: topic.partitions.clone() })
    }

    /// Makes a decided change. Applying one twice, or one about a topic that has gone, does no harm.
    pub fn apply(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::TopicCreated { topic, name, config, partitions } => self.put(TopicId(*topic), name, config, 0, partitions),
            CatalogChange::TopicAltered { topic, config, partitions } => {
                if let Some(entry) = self.topics.get_mut(&TopicId(*topic)) {
                    entry.config = config.clone();
                    self.put_partitions(TopicId(*topic), 0, partitions);
                }
            }
            CatalogChange::TopicDeleted { topic, .. } => self.delete(TopicId(*topic)),
            CatalogChange::SlotsPlaced { shards } => {
                if self.slots.is_empty() {
                    self.slots = shards.iter().copied().map(ShardId).collect();
                }
            }
            CatalogChange::QueuePut { queue, .. } => self.queues.put(&QueuePiece::from(&**queue)),
            CatalogChange::QueueSet { queue, .. } => self.queues.put(queue),
            CatalogChange::QueueDeleted { queue } => self.queues.delete(QueueId(*queue)),
        }
    }

    /// Decides where the slots are, unless that was decided before.
    pub fn decide_slots(&self, shard_count: u16) -> Option<CatalogChange> {
        let shards = (0..SLOT_COUNT).map(|slot| (slot % usize::from(shard_count.max(1))) as u16).collect();
        self.slots.is_empty().then_some(CatalogChange::SlotsPlaced { shards })
    }

    /// By slot: its shard; empty until placed.
    pub fn slots(&self) -> &[ShardId] {
        &self.slots
    }

    /// The shard that coordinates the group or transaction of that name.
    pub fn coordinator(&self, id: &str) -> ShardId {
        self.slots.get(slot(id)).copied().unwrap_or(ShardId(0))
    }

    /// Part of a topic, from a checkpoint: creates it, or overrides what is known of it.
    pub fn put(&mut self, topic: TopicId, name: &str, config: &TopicConfig, first_index: u32, partitions: &[PartitionPlace]) {
        let entry =
            self.topics.entry(topic).or_insert_with(|| Topic { topic, name: name.into(), partitions: Vec::new(), config: config.clone() });
        entry.config = config.clone();
        let name = entry.name.clone();
        self.names.insert(name, topic);
        self.next_topic = self.next_topic.max(topic.0 + 1);
        self.put_partitions(topic, first_index, partitions);
    }

    /// From a checkpoint: numbers used so far, also by topics that have gone.
    pub fn put_next_numbers(&mut self, next_topic: u32, next_partition: u32) {
        self.next_topic = self.next_topic.max(next_topic);
        self.next_partition = self.next_partition.max(next_partition);
    }

    /// The queues.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// From a checkpoint.
    pub fn put_queue(&mut self, queue: &QueuePiece) {
        self.queues.put(queue);
    }

    /// From a checkpoint: numbers of queues below have been used.
    pub fn put_next_queue(&mut self, next_queue: u32) {
        self.queues.put_next(next_queue);
    }

    /// The queues of these names, or all, as clients see them.
    pub fn queue_infos(&self, names: Option<&[String]>) -> Vec<QueueInfo> {
        match names {
            Some(names) => names.iter().filter_map(|name| self.queue_info(self.queues.named(name)?)).collect(),
            None => self.queues.iter().filter_map(|queue| self.queue_info(queue)).collect(),
        }
    }

    /// A queue as clients see it.
    pub fn queue_info(&self, queue: &Queue) -> Option<QueueInfo> {
        let topic = self.topics.get(&queue.topic)?;
        Some(QueueInfo {
            queue: queue.queue.0,
            name: queue.name.to_string(),
            topic: topic.name.to_string(),
            partitions: topic.partitions.clone(),
            config: QueueConfig::clone(&queue.config),
        })
    }

    /// `(topic, partition)`: numbers below these have been used.
    pub fn next_numbers(&self) -> (u32, u32) {
        (self.next_topic, self.next_partition)
    }

    /// The topic of that name.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.names.get(name)?)
    }

    /// The topic of that number.
    pub fn topic_by_id(&self, topic: TopicId) -> Option<&Topic> {
        self.topics.get(&topic)
    }

    /// The first topic whose number is at least `from`.
    pub fn next_topic_from(&self, from: TopicId) -> Option<&Topic> {
        self.topics.range(from..).next().map(|(_, topic)| topic)
    }

    /// Every topic, in order of name.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.names.values().filter_map(|topic| self.topics.get(topic))
    }

    /// Where a partition belongs.
    #[inline]
    pub fn partition(&self, partition: PartitionId) -> Option<PartitionEntry> {
        self.partitions.get(partition.0)
    }

    /// Settings its shard needs.
    pub fn partition_config(&self, partition: PartitionId) -> Option<PartitionConfig> {
        Some(partition_config(&self.topics.get(&self.partition(partition)?.topic)?.config))
    }

    /// Every partition, in order of number.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, PartitionEntry)> {
        self.partitions.iter().map(|(partition, entry)| (PartitionId(partition), entry))
    }

    /// Topics.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Partitions of all topics.
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// New partitions, each on the shard with the fewest; among equals the lowest number.
    fn place(&self, count: u32, limits: CatalogLimits) -> Result<Vec<PartitionPlace>, Failure> {
        let used = self.partitions.len() as u64;
        if used + u64::from(count) > u64::from(limits.partitions_max) {
            let message = format!("{count} more partitions; {used} of {} exist", limits.partitions_max);
            return Err(Failure::new(ErrorCode::LimitExceeded, message));
        }
        let first = self.next_partition.max(1);
        if first.checked_add(count).is_none() {
            return Err(Failure::new(ErrorCode::LimitExceeded, "every partition number has been used"));
        }
        let mut load = self.load.clone();
        load.resize(usize::from(limits.shard_count.max(1)), 0);
        let places = (first..first + count).map(|partition| {
            let shard = load.iter().enumerate().min_by_key(|(_, partitions)| **partitions).map_or(0, |(shard, _)| shard);
            load[shard] += 1;
            PartitionPlace { partition, shard: shard as u16 }
        });
        Ok(places.collect())
    }

    fn put_partitions(&mut self, topic: TopicId, first_index: u32, places: &[PartitionPlace]) {
        let Some(entry) = self.topics.get_mut(&topic) else { return };
        let end = first_index as usize + places.len();
        if entry.partitions.len() < end {
            // A gap is filled by a later piece of the same checkpoint.
            entry.partitions.resize(end, PartitionPlace { partition: 0, shard: 0 });
        }
        for (index, place) in (first_index..).zip(places) {
            entry.partitions[index as usize] = place.clone();
            let old = self.partitions.insert(place.partition, PartitionEntry { topic, index, shard: ShardId(place.shard) });
            if let Some(old) = old {
                self.load[usize::from(old.shard.0)] -= 1;
            }
            let shard = usize::from(place.shard);
            if self.load.len() <= shard {
                self.load.resize(shard + 1, 0);
            }
            self.load[shard] += 1;
            self.next_partition = self.next_partition.max(place.partition + 1);
        }
    }

    fn delete(&mut self, topic: TopicId) {
        let Some(gone) = self.topics.remove(&topic) else { return };
        self.names.remove(&gone.name);
        self.queues.delete_of_topic(topic);
        for place in &gone.partitions {
            if let Some(entry) = self.partitions.remove(place.partition) {
                self.load[usize::from(entry.shard.0)] -= 1;
            }
        }
    }
}

impl Topic {
    /// As clients see it.
    pub fn info(&self) -> TopicInfo {
        TopicInfo { topic: self.topic.0, name: self.name.to_string(), partitions: self.partitions.clone(), config: self.config.clone() }
    }
}

/// What a shard needs of a topic's settings.
pub fn partition_config(config: &TopicConfig) -> PartitionConfig {
    // The last record of a key must stay however old it is, and nobody knows yet which one that is.
    let deletes = config.cleanup == Cleanup::Delete;
    PartitionConfig {
        durability: config.durability,
        retention_ms: config.retention_ms.filter(|_| deletes),
        retention_bytes: config.retention_bytes.filter(|_| deletes),
        max_message_bytes: config.max_message_bytes,
        append_time: config.append_time,
    }
}

/// Notes in order of name.
fn changed_notes(old: &[TopicNote], changes: &[NoteChange]) -> Vec<TopicNote> {
    let mut notes: BTreeMap<&str, &str> = old.iter().map(|note| (note.name.as_str(), note.value.as_str())).collect();
    for change in changes {
        match &change.value {
            Some(value) => notes.insert(&change.name, value),
            None => notes.remove(change.name.as_str()),
        };
    }
    notes.into_iter().map(|(name, value)| TopicNote { name: name.into(), value: value.into() }).collect()
}

pub(super) fn unknown_topic(name: &str) -> Failure {
    Failure::new(ErrorCode::UnknownTopic, format!("no topic '{}'; create it first (ringmain topic create)", shown(name)))
}

/// A foreign name in an error text: bounded, and without control characters.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(TOPIC_NAME_MAX_BYTES).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether a topic can have that name.
pub fn is_topic_name(name: &str) -> bool {
    check_name(name).is_ok()
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let invalid = |message: String| Err(Failure::new(ErrorCode::InvalidTopic, message));
    if name.is_empty() || name.len() > TOPIC_NAME_MAX_BYTES {
        return invalid(format!("a topic name has 1 to {TOPIC_NAME_MAX_BYTES} characters, got {}", name.len()));
    }
    if name == "." || name == ".." {
        return invalid(format!("'{name}' can't be a topic name"));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(bad) => invalid(format!("{bad:?} in topic name '{}': only a-z A-Z 0-9 . _ - are allowed", shown(name))),
        None => Ok(()),
    }
}

fn check_config(config: &TopicConfig) -> Result<(), Failure> {
    let bytes = config.max_message_bytes;
    if !(MAX_MESSAGE_BYTES_LEAST..=MAX_MESSAGE_BYTES_LIMIT).contains(&bytes) {
        let message = format!("max.message.bytes {bytes}; allowed are {MAX_MESSAGE_BYTES_LEAST} to {MAX_MESSAGE_BYTES_LIMIT}");
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    if config.notes.len() > NOTES_MAX {
        return Err(Failure::new(ErrorCode::InvalidArgument, format!("{} notes; a topic keeps {NOTES_MAX}", config.notes.len())));
    }
    let is_too_long = |note: &&TopicNote| note.name.len() > TOPIC_NAME_MAX_BYTES || note.value.len() > NOTE_VALUE_MAX_BYTES;
    if let Some(note) = config.notes.iter().find(is_too_long) {
        let message = format!("{}: {} bytes; {NOTE_VALUE_MAX_BYTES} are kept", shown(&note.name), note.value.len());
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    debug_assert!(MAX_MESSAGE_BYTES_LEAST as usize > frame::HEADER_BYTES);
    if config.retention_ms.is_some_and(|ms| i64::try_from(ms).is_err()) {
        return Err(Failure::new(ErrorCode::InvalidArgument, "retention.ms exceeds 2^63 - 1; leave it out to keep records for ever"));
    }
    Ok(())
}
