//! Topics come and go: shard 0 decides and logs, every shard applies what is durable.

use ringmain_wire::control::{AlterTopic, CreateTopic, Durability, PartitionPlace};
use ringmain_wire::{ErrorCode, Offset, PartitionId, TopicId};

use super::catalog::{Catalog, CatalogChange, CatalogLimits, partition_config};
use super::partition::{NONE, Partition};
use super::queue::catalog::QueuePiece;
use super::state_record::StateRecord;
use super::{Busy, DEFERRED_MAX, Deferred, Shard};
use crate::log::AppendError;
use crate::request::queue::{QueueId, QueueReply};
use crate::request::{Failure, Now, Origin, PartitionConfig, Reply};

impl Shard {
    /// Once at start, when all shards are open: makes this shard's partitions those of the catalog.
    pub fn set_catalog(&mut self, catalog: &Catalog, now: Now) {
        for id in self.partitions.ids() {
            if catalog.partition(id).is_none_or(|entry| entry.shard != self.config.shard) {
                self.drop_partition(id);
            }
        }
        for topic in catalog.topics() {
            self.configure(&topic.partitions, partition_config(&topic.config));
        }
        self.groups.add_partitions(catalog.partitions().map(|(id, _)| id));
        self.groups.keep_existing();
        self.set_queues(catalog, now);
        // Of what was deleted before the last checkpoint only the log still knows: dead space.
        let (_, next_partition) = catalog.next_numbers();
        for id in (1..next_partition).map(PartitionId) {
            if self.log.partition_bytes(id) > 0 && self.partitions.get(id).is_none() {
                self.log.drop_partition(id);
            }
        }
        self.resume_transactions(now);
    }

    /// A change that is durable. On every shard, in order.
    pub fn apply_catalog(&mut self, change: &CatalogChange, now: Now) {
        match change {
            CatalogChange::TopicCreated { config, partitions, .. } | CatalogChange::TopicAltered { config, partitions, .. } => {
                self.configure(partitions, partition_config(config));
                self.groups.add_partitions(partitions.iter().map(|place| PartitionId(place.partition)));
                if let CatalogChange::TopicAltered { topic, .. } = change {
                    self.queues_of_topic_grow(TopicId(*topic), partitions, now);
                }
            }
            CatalogChange::QueuePut { queue, partitions } => self.queue_put(&QueuePiece::from(&**queue), partitions, now),
            CatalogChange::QueueSet { queue, partitions } => self.queue_put(queue, partitions, now),
            CatalogChange::QueueDeleted { queue } => self.queue_deleted(QueueId(*queue)),
            CatalogChange::TopicDeleted { topic, partitions } => {
                self.queues_of_topic_deleted(TopicId(*topic));
                let shard = self.config.shard.0;
                for place in partitions.iter().filter(|place| place.shard == shard) {
                    self.drop_partition(PartitionId(place.partition));
                }
                let gone: Vec<PartitionId> = partitions.iter().map(|place| PartitionId(place.partition)).collect();
                self.groups.drop_partitions(&gone);
            }
            CatalogChange::SlotsPlaced { .. } => {}
        }
    }

    /// Shard 0: every core and shard has the change: whoever asked for it gets the answer.
    pub fn catalog_acknowledged(&mut self, change_id: u64) {
        if let Some((Some(origin), answer)) = self.catalog_pending.remove(&change_id) {
            self.reply(origin, answer);
        }
    }

    pub(super) fn create_topic(&mut self, origin: Origin, create: &CreateTopic, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_create(create, self.catalog_limits());
        self.change_catalog(origin, decided, now)
    }

    pub(super) fn alter_topic(&mut self, origin: Origin, alter: &AlterTopic, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_alter(alter, self.catalog_limits());
        self.change_catalog(origin, decided, now)
    }

    pub(super) fn delete_topic(&mut self, origin: Origin, name: &str, now: Now) -> Result<(), Busy> {
        let decided = self.catalog.decide_delete(name);
        self.change_catalog(origin, decided, now)
    }

    pub(super) fn catalog_limits(&self) -> CatalogLimits {
        CatalogLimits { partitions_max: self.config.partitions_max, shard_count: self.config.shard_count }
    }

    /// Logs a decided change. Later decisions build on it at once; everybody else sees it when it is durable.
    pub(super) fn change_catalog(&mut self, origin: Origin, decided: Result<CatalogChange, Failure>, now: Now) -> Result<(), Busy> {
        let refusal =
            if self.config.is_catalog { self.refusal() } else { Some(Failure::new(ErrorCode::Internal, "topics are changed on shard 0")) };
        let change = match refusal.map_or(decided, Err) {
            Ok(change) => change,
            Err(failure) => {
                self.fail(origin, failure);
                return Ok(());
            }
        };
        if self.deferred.len() >= DEFERRED_MAX {
            return Err(Busy);
        }
        self.log_catalog_change(Some(origin), change, now)?;
        Ok(())
    }

    /// Logs and applies a change, whoever waits for it. False = it couldn't be logged, and whoever waits knows.
    pub(super) fn log_catalog_change(&mut self, origin: Option<Origin>, change: CatalogChange, now: Now) -> Result<bool, Busy> {
        let record = StateRecord::Catalog(change);
        let sequence = match (self.log_state(&record, None, now), origin) {
            (Ok(sequence), _) => sequence,
            (Err(AppendError::Busy), _) => return Err(Busy),
            (Err(error), Some(origin)) => return self.append_failed(origin, error).map(|()| false),
            (Err(_), None) => return Ok(false),
        };
        let StateRecord::Catalog(change) = record else { return Ok(true) };
        self.catalog.apply(&change);
        let answer = match &change {
            CatalogChange::QueueSet { queue, .. } => match self.catalog.queues().get(QueueId(queue.queue)) {
                Some(queue) => match self.catalog.queue_info(queue) {
                    Some(info) => Reply::Queue(Box::new(QueueReply::Info(info.into()))),
                    None => Reply::Deleted,
                },
                None => Reply::Deleted,
            },
            change => match change.topic().and_then(|topic| self.catalog.topic_by_id(topic)) {
                Some(topic) => Reply::Topic(Box::new(topic.info())),
                None => Reply::Deleted,
            },
        };
        self.deferred.push_back((sequence, Deferred::Catalog { origin, change, answer }));
        Ok(true)
    }

    /// Creates or reconfigures those of `places` that belong to this shard.
    fn configure(&mut self, places: &[PartitionPlace], config: PartitionConfig) {
        let shard = self.config.shard.0;
        for place in places.iter().filter(|place| place.shard == shard) {
            let id = PartitionId(place.partition);
            let Some(partition) = self.partitions.get_mut(id) else {
                self.partitions.insert(Partition::new(id, config));
                continue;
            };
            partition.config = config;
            partition.plan_reservation();
            if config.durability == Durability::Durable && partition.reserved_end_logged > Offset(0) {
                self.background.void_reservation(id);
            }
        }
    }

    fn drop_partition(&mut self, id: PartitionId) {
        while let Some(index) = self.partitions.get(id).map(|partition| partition.waiting).filter(|index| *index != NONE) {
            if let Some(wait) = self.take_wait(index) {
                self.fail(wait.origin, ErrorCode::UnknownPartition.into());
            }
        }
        let mut ended = Vec::new();
        self.watches.drop_partition(id, &mut ended);
        ended.into_iter().for_each(|origin| self.reply(origin, Reply::Watched { is_due: true }));
        let Some(partition) = self.partitions.remove(id) else { return };
        self.counters.producers -= partition.producers.map_or(0, |table| table.len() as u64);
        self.counters.message_ids -= partition.message_ids.map_or(0, |ids| ids.len() as u64);
        let (open, aborted) = partition.transactions.map_or((0, 0), |transactions| transactions.counts());
        self.counters.transactions_open -= open as u64;
        self.counters.transactions_aborted -= aborted as u64;
        self.log.drop_partition(id);
    }
}
