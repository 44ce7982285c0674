//! Queues in the catalog: their names, numbers and settings. Shard 0 decides, every core has a copy.
//!
//! Numbers start at 1 and are never used again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ringmain_wire::queue::{AlterQueue, Backoff, CreateQueue, FILTER_MAX_BYTES, Overflow, QueueConfig};
use ringmain_wire::{ErrorCode, TopicId};
use rkyv::{Archive, Deserialize, Serialize};

use super::super::catalog::{Catalog, check_name, shown};
use crate::request::Failure;
use crate::request::queue::QueueId;

/// Queues there can be.
pub const QUEUES_LIMIT: usize = 100_000;
/// Queues over one topic: each looks at every record.
const QUEUES_PER_TOPIC_MAX: usize = 1_000;
/// Longest times that are taken: a century in ms.
const TIME_MAX_MS: u64 = 100 * 366 * 86_400_000;
/// Least time after which a queue that nobody uses is deleted.
const EXPIRES_LEAST_MS: u64 = 1_000;

/// Settings of a queue as earlier builds logged them.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `QueueConfig`")]
pub struct QueueConfigV1 {
    pub from_beginning: bool,
    pub drop_acked: bool,
    pub ack_timeout_ms: u64,
    pub delivery_limit: Option<u32>,
    pub dead_letter: Option<String>,
    pub backoff: Backoff,
    pub priorities: u16,
    pub ttl_ms: Option<u64>,
    pub max_length: Option<u64>,
    pub overflow: Overflow,
    pub redirect: Option<String>,
    pub key_ordered: bool,
    pub single_active: bool,
    pub exclusive: bool,
    pub rate_per_second: Option<u32>,
    pub paused: bool,
    pub filter: String,
}

/// A queue as earlier builds logged it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueuePieceV1 {
    /// Its number.
    pub queue: u32,
    /// Its name.
    pub name: String,
    /// What it reads.
    pub topic: u32,
    /// Its settings.
    pub config: QueueConfigV1,
}

impl From<&QueuePieceV1> for QueuePiece {
    fn from(old: &QueuePieceV1) -> QueuePiece {
        let QueueConfigV1 { from_beginning, drop_acked, ack_timeout_ms, delivery_limit, dead_letter, backoff, priorities, .. } =
            old.config.clone();
        let QueueConfigV1 { ttl_ms, max_length, overflow, redirect, key_ordered, single_active, exclusive, .. } = old.config.clone();
        let QueueConfigV1 { rate_per_second, paused, filter, .. } = old.config.clone();
        let config = QueueConfig {
            from_beginning,
            drop_acked,
            ack_timeout_ms,
            delivery_limit,
            dead_letter,
            backoff,
            priorities,
            ttl_ms,
            max_length,
            overflow,
            redirect,
            key_ordered,
            single_active,
            exclusive,
            rate_per_second,
            paused,
            filter,
            ..QueueConfig::default()
        };
        QueuePiece { queue: old.queue, name: old.name.clone(), topic: old.topic, config }
    }
}

/// A queue, whole.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueuePiece {
    /// Its number.
    pub queue: u32,
    /// Its name.
    pub name: String,
    /// What it reads.
    pub topic: u32,
    /// Its settings.
    pub config: QueueConfig,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its number.
    pub queue: QueueId,
    /// Its name.
    pub name: Arc<str>,
    /// What it reads.
    pub topic: TopicId,
    /// Its settings.
    pub config: Arc<QueueConfig>,
}

/// Every queue.
#[derive(Clone, Debug, Default)]
pub struct Queues {
    names: BTreeMap<Arc<str>, QueueId>,
    queues: BTreeMap<QueueId, Queue>,
    by_topic: HashMap<TopicId, Vec<QueueId>>,
    /// Numbers below have been used.
    next: u32,
}

impl Queues {
    /// The queue of that name.
    pub fn named(&self, name: &str) -> Option<&Queue> {
        self.queues.get(self.names.get(name)?)
    }

    /// The queue of that number.
    pub fn get(&self, queue: QueueId) -> Option<&Queue> {
        self.queues.get(&queue)
    }

    /// Every queue, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Queue> {
        self.names.values().filter_map(|queue| self.queues.get(queue))
    }

    /// The queues over a topic, in order of number.
    pub fn of_topic(&self, topic: TopicId) -> impl Iterator<Item = &Queue> {
        self.by_topic.get(&topic).into_iter().flatten().filter_map(|queue| self.queues.get(queue))
    }

    /// The first queue whose number is at least `from`.
    pub fn next_from(&self, from: QueueId) -> Option<&Queue> {
        self.queues.range(from..).next().map(|(_, queue)| queue)
    }

    /// Numbers below have been used.
    pub fn next_number(&self) -> u32 {
        self.next
    }

    /// From a checkpoint.
    pub(in super::super) fn put_next(&mut self, next: u32) {
        self.next = self.next.max(next);
    }

    pub(in super::super) fn put(&mut self, piece: &QueuePiece) {
        let (queue, topic, name) = (QueueId(piece.queue), TopicId(piece.topic), Arc::<str>::from(piece.name.as_str()));
        self.next = self.next.max(piece.queue + 1);
        self.names.insert(name.clone(), queue);
        let config = Arc::new(piece.config.clone());
        if self.queues.insert(queue, Queue { queue, name, topic, config }).is_none() {
            self.by_topic.entry(topic).or_default().push(queue);
        }
    }

    pub(in super::super) fn delete(&mut self, queue: QueueId) {
        let Some(gone) = self.queues.remove(&queue) else { return };
        self.names.remove(&gone.name);
        if let Some(queues) = self.by_topic.get_mut(&gone.topic) {
            queues.retain(|of_topic| *of_topic != queue);
            if queues.is_empty() {
                self.by_topic.remove(&gone.topic);
            }
        }
    }

    pub(in super::super) fn delete_of_topic(&mut self, topic: TopicId) {
        for queue in self.by_topic.remove(&topic).unwrap_or_default() {
            if let Some(gone) = self.queues.remove(&queue) {
                self.names.remove(&gone.name);
            }
        }
    }
}

impl Catalog {
    /// Decides a queue over a topic that exists; changes nothing.
    ///
    /// Errors: `InvalidTopic` for its name, `QueueExists`, `UnknownTopic`, `InvalidArgument`, `InvalidFilter`, `LimitExceeded`.
    pub fn decide_create_queue(&self, create: &CreateQueue, topic: TopicId) -> Result<QueuePiece, Failure> {
        self.check_new_queue(create)?;
        let queues = self.queues();
        if queues.by_topic.get(&topic).is_some_and(|queues| queues.len() >= QUEUES_PER_TOPIC_MAX) {
            return Err(Failure::new(ErrorCode::LimitExceeded, format!("a topic has at most {QUEUES_PER_TOPIC_MAX} queues")));
        }
        Ok(QueuePiece { queue: queues.next.max(1), name: create.name.clone(), topic: topic.0, config: create.config.clone() })
    }

    /// What can be said about a new queue before its topic is there.
    pub fn check_new_queue(&self, create: &CreateQueue) -> Result<(), Failure> {
        check_name(&create.name)?;
        check_config(&create.config)?;
        let queues = self.queues();
        if queues.names.contains_key(create.name.as_str()) {
            return Err(Failure::new(ErrorCode::QueueExists, format!("queue '{}' exists already", create.name)));
        }
        if queues.queues.len() >= QUEUES_LIMIT || queues.next == u32::MAX {
            return Err(Failure::new(ErrorCode::LimitExceeded, format!("{QUEUES_LIMIT} queues exist")));
        }
        self.check_targets(&create.config)
    }

    /// Decides new settings; changes nothing. Errors: `UnknownQueue`, `InvalidArgument`, `InvalidFilter`, `UnknownTopic`.
    pub fn decide_alter_queue(&self, alter: &AlterQueue) -> Result<QueuePiece, Failure> {
        let queue = self.queues().named(&alter.name).ok_or_else(|| unknown_queue(&alter.name))?;
        check_config(&alter.config)?;
        self.check_targets(&alter.config)?;
        if alter.config.priorities.max(1) > 1 && queue.config.priorities.max(1) == 1 {
            let message = "a queue gets priorities when it is created: what it has delivered already wasn't in their order";
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        Ok(QueuePiece { queue: queue.queue.0, name: alter.name.clone(), topic: queue.topic.0, config: alter.config.clone() })
    }

    /// Whether a queue that nobody has used for so long is to go. Errors: `UnknownQueue`, `InvalidArgument` (it doesn't expire any more).
    pub fn decide_expire_queue(&self, queue: QueueId) -> Result<QueueId, Failure> {
        let known = self.queues().get(queue).ok_or_else(|| Failure::from(ErrorCode::UnknownQueue))?;
        match known.config.expires_ms {
            Some(_) => Ok(queue),
            None => Err(Failure::new(ErrorCode::InvalidArgument, format!("queue '{}' doesn't expire", known.name))),
        }
    }

    /// The number of a queue that is to go. Errors: `UnknownQueue`.
    pub fn decide_delete_queue(&self, name: &str) -> Result<QueueId, Failure> {
        self.queues().named(name).map(|queue| queue.queue).ok_or_else(|| unknown_queue(name))
    }

    fn check_targets(&self, config: &QueueConfig) -> Result<(), Failure> {
        for topic in [&config.dead_letter, &config.redirect].into_iter().flatten() {
            if self.topic(topic).is_none() {
                let message = format!("no topic '{}' to send messages to; create it first (ringmain topic create)", shown(topic));
                return Err(Failure::new(ErrorCode::UnknownTopic, message));
            }
        }
        Ok(())
    }
}

fn unknown_queue(name: &str) -> Failure {
    Failure::new(ErrorCode::UnknownQueue, format!("no queue '{}'; create it first (ringmain queue create)", shown(name)))
}

fn check_config(config: &QueueConfig) -> Result<(), Failure> {
    let invalid = |message: String| Err(Failure::new(ErrorCode::InvalidArgument, message));
    if !(1..=256).contains(&config.priorities) {
        return invalid(format!("{} levels of priority; a queue has 1 to 256", config.priorities));
    }
    let (backoff_ms, cap_ms) = match config.backoff {
        Backoff::None => (0, 0),
        Backoff::Fixed { ms } => (ms, ms),
        Backoff::Linear { ms, cap_ms } | Backoff::Exponential { ms, cap_ms } => (ms, cap_ms),
    };
    let optional = [config.ttl_ms, config.expires_ms, config.dedup_window_ms].map(|ms| ms.unwrap_or(0));
    let mut times = [config.ack_timeout_ms, backoff_ms, cap_ms].into_iter().chain(optional);
    if let Some(ms) = times.find(|ms| *ms > TIME_MAX_MS) {
        return invalid(format!("{ms} ms is longer than a century; leave a limit out instead"));
    }
    if config.ack_timeout_ms < 100 {
        return invalid(format!("an acknowledgement timeout of {} ms; at least 100 are needed", config.ack_timeout_ms));
    }
    if config.delivery_limit == Some(0) || config.rate_per_second == Some(0) || config.max_length == Some(0) || config.max_bytes == Some(0)
    {
        return invalid("a limit of 0 lets nothing through; leave it out, or pause the queue".into());
    }
    if let Some(ms) = config.expires_ms.filter(|ms| *ms < EXPIRES_LEAST_MS) {
        return invalid(format!("a queue that expires after {ms} ms; at least {EXPIRES_LEAST_MS} are needed for consumers to come back"));
    }
    if config.dedup_window_ms == Some(0) {
        return invalid("a window of 0 ms recognises nothing; leave it out".into());
    }
    if (config.overflow == Overflow::Redirect) != config.redirect.is_some() {
        return invalid("to redirect what is too much takes a topic, and a topic to redirect to takes that rule".into());
    }
    if config.key_ordered && config.priorities > 1 {
        return invalid("a queue is ordered by key or by priority, not by both".into());
    }
    if config.filter.len() > FILTER_MAX_BYTES {
        return invalid(format!("a filter of {} bytes; at most {FILTER_MAX_BYTES} are taken", config.filter.len()));
    }
    super::filter::Filter::parse(&config.filter).map(|_| ())
}
