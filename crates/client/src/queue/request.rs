//! Requests and their answers over queues. A request says in its headers where its answer is expected; answers go to a
//! topic in memory that many share, whose records expire by themselves: whoever goes away leaves nothing behind.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use ringmain_wire::control::{CreateTopic, Durability, TopicConfig};

use super::QueueError;
use crate::error::{CallError, ConsumeError, DeliveryError, SendError};

/// Where answers go unless another topic is named.
pub const REPLY_TOPIC: &str = "replies";
/// Header: `topic:partition index`.
pub(super) const REPLY_TO: &[u8] = b"reply-to";
/// Header: what the requester knows its request by.
pub(super) const CORRELATION_ID: &[u8] = b"correlation-id";
/// A requester reads one of these, and what others in the same one are answered.
const REPLY_PARTITIONS: u32 = 16;
/// Answers are read at once or never.
const REPLY_RETENTION_MS: u64 = 10 * 60_000;

/// How a requester works.
#[derive(Clone, Debug)]
pub struct RequesterConfig {
    /// Topic for the answers; created in memory if it isn't there. Default [`REPLY_TOPIC`].
    pub reply_topic: String,
    /// How long setting it up may take. Default 10 s.
    pub timeout: Duration,
}

impl Default for RequesterConfig {
    fn default() -> RequesterConfig {
        RequesterConfig { reply_topic: REPLY_TOPIC.into(), timeout: Duration::from_secs(10) }
    }
}

/// Names a request of one requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Where an answer is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The topic …
    pub topic: String,
    /// … and the index of the partition.
    pub partition_index: u32,
    /// What the requester knows its request by.
    pub correlation: String,
}

impl ReplyTo {
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.topic, self.partition_index)
    }

    /// Reads the two headers; `None` = they make no sense.
    pub(super) fn read(place: &[u8], correlation: &[u8]) -> Option<ReplyTo> {
        let (topic, index) = std::str::from_utf8(place).ok()?.rsplit_once(':')?;
        let correlation = std::str::from_utf8(correlation).ok()?.to_owned();
        Some(ReplyTo { topic: topic.to_owned(), partition_index: index.parse().ok()?, correlation })
    }

    /// The header that an answer carries.
    pub(crate) fn answer_header(&self) -> (&'static [u8], &[u8]) {
        (CORRELATION_ID, self.correlation.as_bytes())
    }
}

/// A requester's own numbers.
#[derive(Clone, Debug)]
pub(crate) struct Numbering {
    requester: u64,
    next: u64,
}

impl Numbering {
    /// Under a number that nobody else is likely to have.
    pub(crate) fn random() -> Numbering {
        // The standard library seeds these from the system's randomness.
        let requester = RandomState::new().build_hasher().finish() ^ RandomState::new().build_hasher().finish().rotate_left(32);
        Numbering { requester, next: 0 }
    }

    pub(crate) fn requester(&self) -> u64 {
        self.requester
    }

    pub(crate) fn next(&mut self) -> (RequestId, String) {
        self.next += 1;
        (RequestId(self.next), format!("{:016x}-{}", self.requester, self.next))
    }

    /// The request that encoded headers answer; `None` = somebody else's.
    pub(crate) fn answered(&self, headers: &[u8]) -> Option<RequestId> {
        let found = ringmain_wire::record::headers(headers).map_while(|header| header).find(|(name, _)| *name == CORRELATION_ID);
        let (requester, number) = std::str::from_utf8(found?.1?).ok()?.split_once('-')?;
        (u64::from_str_radix(requester, 16) == Ok(self.requester)).then_some(RequestId(number.parse().ok()?))
    }
}

/// Which of a reply topic's partitions a requester reads.
pub(crate) fn reply_partition(requester: u64, partition_count: u32) -> u32 {
    (requester % u64::from(partition_count.max(1))) as u32
}

/// The topic for answers.
pub(crate) fn reply_topic(name: &str) -> CreateTopic {
    let config = TopicConfig { durability: Durability::Memory, retention_ms: Some(REPLY_RETENTION_MS), ..TopicConfig::default() };
    CreateTopic { name: name.to_owned(), partition_count: REPLY_PARTITIONS, config }
}

/// Why a request has no answer, or a message can't be looked at or moved.
#[derive(Clone, Debug)]
pub enum RequestError {
    /// The queue or the reply topic couldn't be looked up or made.
    Call(CallError),
    /// The request wasn't taken.
    Send(SendError),
    /// The request wasn't stored, as far as is known.
    Delivery(DeliveryError),
    /// The answers can't be read.
    Consume(ConsumeError),
    /// No answer came in time; the request may still be worked on.
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// An answer can't be sent: the message expects none.
    NotARequest,
    /// The queue's consumer failed.
    Queue(QueueError),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Call(error) => error.fmt(f),
            RequestError::Send(error) => error.fmt(f),
            RequestError::Delivery(error) => error.fmt(f),
            RequestError::Consume(error) => error.fmt(f),
            RequestError::TimedOut { after } => write!(f, "no answer within {after:?}; the request may still be worked on"),
            RequestError::NotARequest => f.write_str("the message doesn't say where an answer is expected"),
            RequestError::Queue(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RequestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RequestError::Call(error) => Some(error),
            RequestError::Send(error) => Some(error),
            RequestError::Delivery(error) => Some(error),
            RequestError::Consume(error) => Some(error),
            RequestError::Queue(error) => Some(error),
            RequestError::TimedOut { .. } | RequestError::NotARequest => None,
        }
    }
}

macro_rules! from {
    ($($error:ident => $variant:ident;)*) => {$(
        impl From<$error> for RequestError {
            fn from(error: $error) -> RequestError { RequestError::$variant(error) }
        }
    )*};
}

from! {
    CallError => Call;
    SendError => Send;
    DeliveryError => Delivery;
    ConsumeError => Consume;
    QueueError => Queue;
}

impl From<crate::transport::OpenConsumerError> for RequestError {
    fn from(error: crate::transport::OpenConsumerError) -> RequestError {
        match error {
            crate::transport::OpenConsumerError::Call(error) => RequestError::Call(error),
            crate::transport::OpenConsumerError::Consume(error) => RequestError::Consume(error),
        }
    }
}
