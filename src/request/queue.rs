//! Queues as doors ask about them. A queue is a cursor over a topic's partitions; a request is about one of those and is served
//! by the partition's shard.

use std::sync::Arc;

use ringmain_wire::PartitionId;
use ringmain_wire::queue::{QueueAnswer, QueueCall, QueueInfo, Settlement, name};
use ringmain_wire::record::HeadersBuilder;

use super::transaction::ProducerKey;

/// Number of a queue; never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u32);

impl std::fmt::Display for QueueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Asks for messages → [`QueueReply::Received`] when there is one, or when the wait is over.
///
/// Who asks is a connection and the number of a consumer on it. What it is given is its own until it settles it, its
/// deadline passes, or the connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// Which.
    pub queue: QueueId,
    /// Where.
    pub partition: PartitionId,
    /// On this connection.
    pub consumer: u32,
    /// Higher is served first.
    pub priority: i16,
    /// At least 1.
    pub max_messages: u32,
    /// One message excepted.
    pub max_bytes: u32,
    /// 0 = answer at once.
    pub max_wait_ms: u32,
}

/// Says what becomes of messages → [`QueueReply::Settled`] once durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Which.
    pub queue: QueueId,
    /// Where.
    pub partition: PartitionId,
    /// Who received them.
    pub consumer: u32,
    /// Acknowledged in this producer's transaction: they are *staged*, and settled if that is committed.
    pub transaction: Option<ProducerKey>,
    /// In order.
    pub settlements: Vec<Settlement>,
}

/// Anything else about a queue in one partition → [`QueueReply::Answer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRequest {
    /// Which.
    pub queue: QueueId,
    /// Where.
    pub partition: PartitionId,
    /// What.
    pub call: QueueCall,
}

/// A message that goes from a queue to another topic. From shard to shard, by way of a router, which finds the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The partition that it comes from, and its offset there.
    pub from: (PartitionId, u64),
    /// Where to.
    pub topic: String,
    /// The partition there, once it is known; 0 before.
    pub partition: PartitionId,
    /// Which of its partitions, modulo their number.
    pub spread: u32,
    /// ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// `None` = null.
    pub key: Option<Vec<u8>>,
    /// `None` = null.
    pub value: Option<Vec<u8>>,
    /// Encoded.
    pub headers: Vec<u8>,
    /// Some of them are for queues.
    pub has_queue_headers: bool,
}

impl Forward {
    /// As it is stored in partition `to`: with a header that says where it is from, in words that people have, too. `topic`, `index`: of the
    /// partition that it comes from.
    pub fn addressed(&self, to: PartitionId, topic: &str, index: u32) -> Forward {
        let mut place = HeadersBuilder::default();
        place.push(name::DEAD_PLACE, Some(format!("{topic}:{index}:{}", self.from.1).as_bytes()));
        let headers = [&self.headers, place.as_bytes()].concat();
        Forward { partition: to, headers, ..self.clone() }
    }
}

/// Answers about queues; errors come as `Reply::Failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueReply {
    /// Messages in the wire's layout ([`ringmain_wire::queue::Deliveries`]).
    Received {
        /// Where they are from.
        partition: PartitionId,
        /// How many.
        count: u32,
        /// Theirs.
        bytes: Vec<u8>,
    },
    /// Durable.
    Settled {
        /// Messages settled.
        settled: u32,
        /// Single messages that this consumer doesn't hold.
        refused: u32,
    },
    /// For [`QueueRequest`].
    Answer(QueueAnswer),
    /// Created, altered: durable, and known on every core.
    Info(Arc<QueueInfo>),
    /// Every queue that was asked for; answered by the router.
    List {
        /// In order of name.
        queues: Vec<QueueInfo>,
        /// By shard.
        shard_ports: Vec<u16>,
    },
}
