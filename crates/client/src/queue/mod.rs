//! Queues: messages that are handed out one by one, to be settled one by one.
//!
//! Published is with a producer of the queue's topic; [`Outgoing`] writes the headers that queues look at. A queue consumer
//! ([`QueueConsumerMachine`]) keeps receives open at the broker, so that messages are pushed to it as far as its prefetch
//! goes, and gathers what becomes of them into few requests.
//!
//! **At least once.** What a consumer was given is its own until it settles it, until the queue's acknowledgement timeout, or
//! until its connection ends; then another gets it, with a higher [`Message::deliveries`]. A settlement for a delivery that isn't
//! this consumer's any more is dropped and counted ([`Confirmed`]).

mod consumer;
mod message;
mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use ringmain_wire::queue::{QueueConfig, QueueInfo, QueueList};

use crate::error::{BrokerError, CallError};
use crate::links::Place;

pub use consumer::{Confirmed, QueueConsumerConfig, QueueConsumerMachine};
pub use message::{DeadLetter, Message, Outgoing};
pub(crate) use request::{Numbering, reply_partition, reply_topic};
pub use request::{REPLY_TOPIC, ReplyTo, RequestError, RequestId, RequesterConfig};

/// A queue as a consumer needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueMap {
    /// Its number; another one under the same name is another queue.
    pub queue: u32,
    /// Its name.
    pub name: String,
    /// What it reads.
    pub topic: String,
    /// Where each partition is, by index.
    pub partitions: Vec<Place>,
    /// Its settings.
    pub config: QueueConfig,
}

impl QueueMap {
    /// Finds `name` in the broker's answer.
    pub fn find(list: &QueueList, name: &str) -> Option<QueueMap> {
        list.queues.iter().find(|queue| queue.name == name).map(|queue| QueueMap::of(queue, &list.shard_ports))
    }

    /// One queue of the broker's answer.
    pub fn of(info: &QueueInfo, shard_ports: &[u16]) -> QueueMap {
        let port = |shard: u16| shard_ports.get(usize::from(shard)).copied().unwrap_or(0);
        let partitions = info.partitions.iter().map(|place| Place { partition: place.partition, port: port(place.shard) }).collect();
        QueueMap { queue: info.queue, name: info.name.clone(), topic: info.topic.clone(), partitions, config: info.config.clone() }
    }
}

/// A message that was looked at without taking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Index of the partition within the topic.
    pub partition_index: u32,
    /// Its position in the partition.
    pub offset: u64,
    /// Deliveries so far.
    pub deliveries: u32,
    /// As the publisher set it, ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// `None` = null.
    pub key: Option<Vec<u8>>,
    /// `None` = null.
    pub value: Option<Vec<u8>>,
    /// Encoded; read with [`ringmain_wire::record::headers`].
    pub headers: Vec<u8>,
}

/// What a redrive has done, in messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Published again.
    pub moved: u64,
    /// Of them, those that may still be among the dead letters too: their acknowledgement wasn't confirmed.
    pub twice: u64,
    /// Left where they are, because the queue they were in is gone.
    pub left: u64,
}

/// Why a queue's consumer can't give the next message, or confirm what became of the last.
#[derive(Clone, Debug)]
pub enum QueueError {
    /// The broker refused a receive or a settlement. Going on asks again.
    Broker {
        /// Index of the partition.
        partition_index: u32,
        /// The broker's answer.
        error: BrokerError,
    },
    /// An answer's parts contradict each other; its messages come back when their connection has ended. Going on asks again.
    BadReply {
        /// Index of the partition.
        partition_index: u32,
        /// What was expected, what came.
        problem: String,
    },
    /// The queue is gone, or another one has its name: this consumer has ended.
    Gone {
        /// The queue's name.
        queue: String,
    },
    /// The queue has no partition of that index.
    NoSuchPartition {
        /// Index asked for.
        index: u32,
        /// Partitions of the queue.
        partition_count: u32,
    },
    /// Settlements weren't confirmed in time; they may have been taken all the same.
    FlushTimedOut {
        /// How long was waited.
        after: Duration,
        /// The last problem met with a connection, if any.
        last_problem: Option<String>,
    },
    /// The queue couldn't be looked up.
    Call(CallError),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueueError::Broker { partition_index, error } => write!(f, "partition {partition_index}: {error}"),
            QueueError::BadReply { partition_index, problem } => write!(f, "partition {partition_index}: {problem}"),
            QueueError::Gone { queue } => write!(f, "there is no queue '{queue}' (any more); create it first (ringmain queue create)"),
            QueueError::NoSuchPartition { index, partition_count } => {
                write!(f, "partition {index} was asked for, the queue has {partition_count} (counted from 0)")
            }
            QueueError::FlushTimedOut { after, last_problem } => {
                write!(f, "the settlements weren't confirmed within {after:?}; they may have been taken all the same")?;
                last_problem.as_ref().map_or(Ok(()), |problem| write!(f, "; last problem: {problem}"))
            }
            QueueError::Call(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for QueueError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            QueueError::Broker { error, .. } => Some(error),
            QueueError::Call(error) => Some(error),
            _ => None,
        }
    }
}

impl From<CallError> for QueueError {
    fn from(error: CallError) -> QueueError {
        QueueError::Call(error)
    }
}
