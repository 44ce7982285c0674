//! The one vocabulary between doors and shards. Kafka's words stop at `frontend::kafka`, AMQP's at
//! `frontend::amqp`; what travels from a frontend through the router to a shard, and back, is in this folder.

pub mod group;
pub mod queue;
pub mod transaction;

use std::sync::Arc;

use ringmain_wire::control::{AlterTopic, CreateTopic, Durability, PartitionState, ShardStats, StatsReply, TopicDescription, TopicInfo};
use ringmain_wire::queue::{AlterQueue, CreateQueue};
use ringmain_wire::{ErrorCode, Frame, Offset, PartitionId, ProducerId, ShardId};

use group::{GroupListing, GroupReply, GroupRequest};
use queue::{Forward, QueueId, QueueReply, QueueRequest, Receive, Settle};
use transaction::{
    AbortedTransaction, ProducerDescription, ToCheck, TransactionCheck, TransactionListing, TransactionMarker, TransactionReply,
    TransactionRequest,
};

/// Two clocks, read once per turn of a core thread and passed down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since an arbitrary start; only grows. For timeouts and intervals.
    pub monotonic_us: u64,
    /// Milliseconds since the Unix epoch. Data, never a timeout.
    pub wall_ms: i64,
}

/// Who asked: where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Index of the core thread that holds the connection.
    pub core: u16,
    /// Its slot there; the generation tells a reused slot from the one that asked.
    pub connection: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// Chosen by the connection's session; comes back with the reply.
    pub request: u64,
}

/// What a door can ask. Borrowed from the connection's input buffer.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// Store one batch. Its body checksum has been verified by the frontend.
    Produce { frame: Frame<'a> },
    /// Read from one partition.
    Fetch(Fetch),
    /// Answered when a shard has more for a reader of several partitions, or when it has waited long enough. One at a time
    /// per connection and shard: the next one ends the last.
    Watch(Arc<Watch>),
    /// Offset by time; `ringmain_wire::control::{LATEST, EARLIEST}` for the ends.
    ListOffset {
        /// Where.
        partition: PartitionId,
        /// At least so young.
        timestamp_ms: i64,
        /// The end is that of what committed-only readers see.
        committed_only: bool,
    },
    /// About one consumer group. Served by the shard of the group's slot.
    Group(Arc<GroupRequest>),
    /// Router: gathered from every shard.
    ListGroups,
    /// From the router to one shard, for `ListGroups`.
    ShardGroups,
    /// Answered by the router: which shards coordinate the groups or transactions of these ids.
    Coordinators { ids: Vec<String> },
    /// About the transactions of one id. Served by the shard of the id's slot.
    Transaction(Arc<TransactionRequest>),
    /// Router: gathered from every shard.
    ListTransactions,
    /// From the router to one shard, for `ListTransactions`.
    ShardTransactions,
    /// Who has written to a partition.
    DescribeProducers { partition: PartitionId },
    /// Open transactions to be decided.
    ToCheck(Arc<ToCheck>),
    /// From one shard to another.
    CheckTransaction(TransactionCheck),
    /// From one shard to another.
    EndTransaction(TransactionMarker),
    /// Messages of a queue.
    Receive(Receive),
    /// What becomes of messages of a queue.
    Settle(Arc<Settle>),
    /// About a queue in one partition.
    Queue(Arc<QueueRequest>),
    /// From one shard to another: store this, acknowledged as the topic asks → `Produced`.
    Forward(Arc<Forward>),
    /// From a router to shards of other cores: a connection that used queues there has gone → `Deleted`.
    ConnectionGone { connection: u32, generation: u32 },
    /// Served by shard 0 → [`QueueReply::Info`].
    CreateQueue(Arc<CreateQueue>),
    /// Served by shard 0 → [`QueueReply::Info`].
    AlterQueue(Arc<AlterQueue>),
    /// Served by shard 0 → `Deleted`.
    DeleteQueue { name: &'a str },
    /// From one shard to another: how much longer a queue has to be idle in a partition to expire → `Count` of ms.
    QueueIdle { queue: QueueId, partition: PartitionId },
    /// From a shard to shard 0: nobody uses the queue → `Deleted`.
    ExpireQueue { queue: QueueId },
    /// Answered by the router from this core's catalog → [`QueueReply::List`]. `None` = all queues.
    Queues { names: Option<Vec<String>> },
    /// Forget the records of a partition below an offset; `None` = below its high watermark.
    DeleteBefore { partition: PartitionId, before: Option<Offset> },
    /// Remember a consumer's position: a group without members.
    CommitOffset { consumer: &'a str, partition: PartitionId, offset: Offset, metadata: &'a str },
    /// Read it back.
    ReadOffset { consumer: &'a str, partition: PartitionId },
    /// A new idempotent producer. Served by shard 0.
    InitProducer,
    /// Served by shard 0, the catalog's only writer.
    CreateTopic(CreateTopic),
    /// Served by shard 0.
    AlterTopic(AlterTopic),
    /// Served by shard 0.
    DeleteTopic { name: &'a str },
    /// Answered by the router from this core's catalog. `None` = all topics.
    Metadata { topics: Option<Vec<String>> },
    /// Router: the catalog's view plus `PartitionStates` of the shards.
    DescribeTopic { name: &'a str },
    /// From the router to one shard, for `DescribeTopic`.
    PartitionStates { partitions: Vec<PartitionId> },
    /// Router: gathered from every shard.
    Stats,
    /// From the router to one shard, for `Stats`.
    ShardStats,
}

/// Reads records of one partition, waiting for them if asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which.
    pub partition: PartitionId,
    /// First offset wanted.
    pub from: Offset,
    /// Answer once so many bytes are there …
    pub min_bytes: u32,
    /// … with no more than this, except that one run is always returned whole.
    pub max_bytes: u32,
    /// … or after this time.
    pub max_wait_ms: u32,
    /// Nothing of a transaction that is still open; and say which were aborted.
    pub committed_only: bool,
}

/// Waits for records in any of several partitions of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Theirs.
    pub shard: ShardId,
    /// Each with the end that the reader has seen.
    pub partitions: Vec<(PartitionId, Offset)>,
    /// So much more is wanted.
    pub missing_bytes: u32,
    /// At most this long.
    pub max_wait_ms: u32,
    /// The ends are those of what committed-only readers see.
    pub committed_only: bool,
}

/// A place in a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// Number of the segment within its shard.
    pub segment: u64,
    /// Byte position in the segment.
    pub position: u32,
    /// Length in bytes: whole frames, padding included.
    pub len: u32,
}

/// The answers.
#[derive(Debug)]
pub enum Reply {
    /// As durable as the topic asks.
    ///
    /// `redirected`: so many of the last records go from a queue that is full to another topic.
    Produced { base_offset: Offset, append_time_ms: i64, duplicate: bool, redirected: u32 },
    /// Frames, whole.
    Fetched { head: Fetched, data: FetchData },
    /// For `DeleteBefore`: durable. The first offset still stored.
    LogStart { offset: Offset },
    /// For `Watch`. Else the time is up.
    Watched { is_due: bool },
    /// `found` = a record that young exists.
    Offset { offset: Offset, timestamp_ms: i64, found: bool },
    /// Durable.
    Committed,
    /// `None` = nothing committed.
    ConsumerOffset { offset: Option<Offset>, metadata: String },
    /// For requests about queues.
    Queue(Box<QueueReply>),
    /// For `Group`.
    Group(Box<GroupReply>),
    /// For `ListGroups` and `ShardGroups`, in order of name.
    Groups(Vec<GroupListing>),
    /// For `Coordinators`, in the order asked.
    Coordinators(Vec<ShardId>),
    /// For `Transaction`, `CheckTransaction` and `EndTransaction`.
    Transaction(Box<TransactionReply>),
    /// For `ListTransactions` and `ShardTransactions`, in order of id.
    Transactions(Vec<TransactionListing>),
    /// For `ToCheck`, the one that has waited longest first.
    ToCheck(Vec<TransactionListing>),
    /// For `DescribeProducers`, in order of id.
    Producers(Vec<ProducerDescription>),
    /// A new idempotent producer.
    Producer { producer_id: ProducerId, producer_epoch: u16 },
    /// Created, altered: durable, and known on every core.
    Topic(Box<TopicInfo>),
    /// Deleted: durable, and known on every core.
    Deleted,
    /// For `Metadata`; the shard ports are added by the frontend's caller.
    Metadata { topics: Vec<TopicInfo>, shard_ports: Vec<u16> },
    /// For `DescribeTopic`.
    Description(Box<TopicDescription>),
    /// For `PartitionStates`.
    PartitionStates(Vec<PartitionState>),
    /// For `Stats`.
    Stats(Box<StatsReply>),
    /// For `ShardStats`.
    ShardStats(Box<ShardStats>),
    /// It didn't work.
    Failed(Failure),
}

/// Head of a fetch reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// As asked.
    pub partition: PartitionId,
    /// First offset that isn't readable yet.
    pub high_watermark: Offset,
    /// First offset that a committed-only reader can't have yet.
    pub last_stable: Offset,
    /// First offset still stored.
    pub log_start: Offset,
    /// Where the next fetch goes on.
    pub next_offset: Offset,
    /// Bytes of frames that follow.
    pub bytes: u32,
    /// For a committed-only reader: aborted transactions that reach into these frames, in order of their ends.
    pub aborted: Box<[AbortedTransaction]>,
}

/// The frames of a fetch reply.
#[derive(Debug)]
pub enum FetchData {
    /// In the log's tail cache when the reply was made: sent straight from the chunk, re-read if it has gone.
    Extents(Vec<Extent>),
    /// Read from the device and verified: the bytes of every extent. When memory is short and the peer doesn't take them, they
    /// are given up, and what is left is `Extents`.
    Blocks { extents: Vec<Extent>, blocks: Vec<crate::device::Slice> },
    /// From a shard of another core: a copy owned by the receiver.
    Owned(Vec<u8>),
}

impl FetchData {
    /// What must be released when the frames have been sent, or won't be.
    pub fn extents(&self) -> &[Extent] {
        match self {
            FetchData::Extents(extents) | FetchData::Blocks { extents, .. } => extents,
            FetchData::Owned(_) => &[],
        }
    }
}

/// An error and what people should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// To branch on.
    pub code: ErrorCode,
    /// To show; empty = the code's own text.
    pub message: String,
}

impl Failure {
    /// An error with a text of its own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Failure {
        Failure { code, message: String::new() }
    }
}

impl Request<'_> {
    /// The partition whose shard serves this request, if there is one.
    pub fn partition(&self) -> Option<PartitionId> {
        match self {
            Request::Produce { frame } => Some(frame.partition()),
            Request::Fetch(fetch) => Some(fetch.partition),
            Request::DeleteBefore { partition, .. } | Request::ListOffset { partition, .. } | Request::DescribeProducers { partition } => {
                Some(*partition)
            }
            Request::EndTransaction(marker) => Some(marker.partition),
            Request::Receive(receive) => Some(receive.partition),
            Request::Settle(settle) => Some(settle.partition),
            Request::Queue(request) => Some(request.partition),
            Request::QueueIdle { partition, .. } => Some(*partition),
            Request::Forward(forward) => Some(forward.partition),
            _ => None,
        }
    }
}

/// Settings of a partition that its shard needs on the message path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionConfig {
    /// When a produce is acknowledged.
    pub durability: Durability,
    /// By append time; `None` = kept.
    pub retention_ms: Option<u64>,
    /// `None` = no limit.
    pub retention_bytes: Option<u64>,
    /// Largest frame, header included.
    pub max_message_bytes: u32,
    /// Record times are those of appending.
    pub append_time: bool,
}
