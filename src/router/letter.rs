//! What crosses between cores: requests and replies that own their bytes.
//!
//! Slices and extents belong to a core's arena and log, so they stay there; frames cross as a copy.

use std::sync::Arc;

use ringmain_wire::control::{AlterTopic, CreateTopic, PartitionState, ShardStats, TopicInfo};
use ringmain_wire::queue::{AlterQueue, CreateQueue};
use ringmain_wire::{ErrorCode, Frame, Offset, PartitionId, ProducerId, ShardId};

use crate::request::group::{GroupListing, GroupReply, GroupRequest};
use crate::request::queue::{Forward, QueueId, QueueReply, QueueRequest, Receive, Settle};
use crate::request::transaction::{
    ProducerDescription, ToCheck, TransactionCheck, TransactionListing, TransactionMarker, TransactionReply, TransactionRequest,
};
use crate::request::{Failure, Fetch, FetchData, Fetched, Origin, Reply, Request, Watch};
use crate::shard::CatalogChange;

/// From one core to another.
#[derive(Debug)]
pub enum Question {
    /// For a shard of the receiver. Wants an answer.
    Request { origin: Origin, shard: ShardId, request: OwnedRequest },
    /// Shard 0 has made this change durable.
    Catalog { change_id: u64, change: Arc<CatalogChange> },
    /// The sender has applied it.
    CatalogApplied { change_id: u64 },
}

/// The answer to [`Question::Request`].
#[derive(Debug)]
pub struct Answer {
    /// Who asked.
    pub origin: Origin,
    /// Who answers.
    pub shard: ShardId,
    /// The answer.
    pub reply: OwnedReply,
}

/// A [`Request`] that owns what it names.
#[derive(Clone, Debug)]
pub enum OwnedRequest {
    /// The whole frame, its body checksum verified.
    Produce { frame: Vec<u8> },
    /// As in [`Request`].
    Fetch(Fetch),
    /// As in [`Request`].
    Watch(Arc<Watch>),
    /// As in [`Request`].
    DeleteBefore { partition: PartitionId, before: Option<Offset> },
    /// As in [`Request`].
    ListOffset { partition: PartitionId, timestamp_ms: i64, committed_only: bool },
    /// As in [`Request`].
    CommitOffset { consumer: String, partition: PartitionId, offset: Offset, metadata: String },
    /// As in [`Request`].
    ReadOffset { consumer: String, partition: PartitionId },
    /// As in [`Request`].
    InitProducer,
    /// As in [`Request`].
    CreateTopic(Box<CreateTopic>),
    /// As in [`Request`].
    AlterTopic(Box<AlterTopic>),
    /// As in [`Request`].
    DeleteTopic { name: String },
    /// As in [`Request`].
    PartitionStates { partitions: Vec<PartitionId> },
    /// As in [`Request`].
    ShardStats,
    /// As in [`Request`]; for this core's router.
    Metadata { topics: Option<Vec<String>> },
    /// As in [`Request`]; for this core's router.
    DescribeTopic { name: String },
    /// As in [`Request`]; for this core's router.
    Stats,
    /// As in [`Request`].
    Group(Arc<GroupRequest>),
    /// As in [`Request`].
    ShardGroups,
    /// As in [`Request`]; for this core's router.
    ListGroups,
    /// As in [`Request`]; for this core's router.
    Coordinators { ids: Vec<String> },
    /// As in [`Request`].
    Transaction(Arc<TransactionRequest>),
    /// As in [`Request`].
    ShardTransactions,
    /// As in [`Request`].
    DescribeProducers { partition: PartitionId },
    /// As in [`Request`].
    ToCheck(Arc<ToCheck>),
    /// As in [`Request`].
    CheckTransaction(TransactionCheck),
    /// As in [`Request`].
    EndTransaction(TransactionMarker),
    /// As in [`Request`]; for this core's router.
    ListTransactions,
    /// As in [`Request`].
    Receive(Receive),
    /// As in [`Request`].
    Settle(Arc<Settle>),
    /// As in [`Request`].
    Queue(Arc<QueueRequest>),
    /// As in [`Request`].
    Forward(Arc<Forward>),
    /// As in [`Request`].
    ConnectionGone { connection: u32, generation: u32 },
    /// As in [`Request`].
    CreateQueue(Arc<CreateQueue>),
    /// As in [`Request`].
    AlterQueue(Arc<AlterQueue>),
    /// As in [`Request`].
    DeleteQueue { name: String },
    /// As in [`Request`].
    QueueIdle { queue: QueueId, partition: PartitionId },
    /// As in [`Request`].
    ExpireQueue { queue: QueueId },
    /// As in [`Request`]; for this core's router.
    Queues { names: Option<Vec<String>> },
}

impl OwnedRequest {
    /// A copy of a request.
    pub fn copy(request: &Request<'_>) -> OwnedRequest {
        match request {
            Request::Produce { frame } => OwnedRequest::Produce { frame: frame.to_vec() },
            Request::Fetch(fetch) => OwnedRequest::Fetch(*fetch),
            Request::Watch(watch) => OwnedRequest::Watch(watch.clone()),
            Request::DeleteBefore { partition, before } => OwnedRequest::DeleteBefore { partition: *partition, before: *before },
            Request::ListOffset { partition, timestamp_ms, committed_only } => {
                OwnedRequest::ListOffset { partition: *partition, timestamp_ms: *timestamp_ms, committed_only: *committed_only }
            }
            Request::CommitOffset { consumer, partition, offset, metadata } => OwnedRequest::CommitOffset {
                consumer: (*consumer).into(),
                partition: *partition,
                offset: *offset,
                metadata: (*metadata).into(),
            },
            Request::ReadOffset { consumer, partition } => OwnedRequest::ReadOffset { consumer: (*consumer).into(), partition: *partition },
            Request::InitProducer => OwnedRequest::InitProducer,
            Request::CreateTopic(create) => OwnedRequest::CreateTopic(Box::new(create.clone())),
            Request::AlterTopic(alter) => OwnedRequest::AlterTopic(Box::new(alter.clone())),
            Request::DeleteTopic { name } => OwnedRequest::DeleteTopic { name: (*name).into() },
            Request::PartitionStates { partitions } => OwnedRequest::PartitionStates { partitions: partitions.clone() },
            Request::ShardStats => OwnedRequest::ShardStats,
            Request::Group(request) => OwnedRequest::Group(request.clone()),
            Request::ShardGroups => OwnedRequest::ShardGroups,
            Request::Metadata { topics } => OwnedRequest::Metadata { topics: topics.clone() },
            Request::DescribeTopic { name } => OwnedRequest::DescribeTopic { name: (*name).into() },
            Request::Stats => OwnedRequest::Stats,
            Request::ListGroups => OwnedRequest::ListGroups,
            Request::Coordinators { ids } => OwnedRequest::Coordinators { ids: ids.clone() },
            Request::Transaction(request) => OwnedRequest::Transaction(request.clone()),
            Request::ShardTransactions => OwnedRequest::ShardTransactions,
            Request::DescribeProducers { partition } => OwnedRequest::DescribeProducers { partition: *partition },
            Request::ToCheck(ask) => OwnedRequest::ToCheck(ask.clone()),
            Request::CheckTransaction(check) => OwnedRequest::CheckTransaction(*check),
            Request::EndTransaction(marker) => OwnedRequest::EndTransaction(*marker),
            Request::ListTransactions => OwnedRequest::ListTransactions,
            Request::Receive(receive) => OwnedRequest::Receive(*receive),
            Request::Settle(settle) => OwnedRequest::Settle(settle.clone()),
            Request::Queue(request) => OwnedRequest::Queue(request.clone()),
            Request::Forward(forward) => OwnedRequest::Forward(forward.clone()),
            Request::ConnectionGone { connection, generation } => {
                OwnedRequest::ConnectionGone { connection: *connection, generation: *generation }
            }
            Request::CreateQueue(create) => OwnedRequest::CreateQueue(create.clone()),
            Request::AlterQueue(alter) => OwnedRequest::AlterQueue(alter.clone()),
            Request::DeleteQueue { name } => OwnedRequest::DeleteQueue { name: (*name).into() },
            Request::QueueIdle { queue, partition } => OwnedRequest::QueueIdle { queue: *queue, partition: *partition },
            Request::ExpireQueue { queue } => OwnedRequest::ExpireQueue { queue: *queue },
            Request::Queues { names } => OwnedRequest::Queues { names: names.clone() },
        }
    }

    /// The request again, borrowed from this copy.
    ///
    /// # Panics
    /// If the frame isn't one: copies are made of parsed frames only.
    pub fn borrow(&self) -> Request<'_> {
        match self {
            OwnedRequest::Produce { frame } => Request::Produce { frame: Frame::parse(frame).expect("a copy of a parsed frame") },
            OwnedRequest::Fetch(fetch) => Request::Fetch(*fetch),
            OwnedRequest::Watch(watch) => Request::Watch(watch.clone()),
            OwnedRequest::DeleteBefore { partition, before } => Request::DeleteBefore { partition: *partition, before: *before },
            OwnedRequest::ListOffset { partition, timestamp_ms, committed_only } => {
                Request::ListOffset { partition: *partition, timestamp_ms: *timestamp_ms, committed_only: *committed_only }
            }
            OwnedRequest::CommitOffset { consumer, partition, offset, metadata } => {
                Request::CommitOffset { consumer, partition: *partition, offset: *offset, metadata }
            }
            OwnedRequest::ReadOffset { consumer, partition } => Request::ReadOffset { consumer, partition: *partition },
            OwnedRequest::InitProducer => Request::InitProducer,
            OwnedRequest::CreateTopic(create) => Request::CreateTopic(CreateTopic::clone(create)),
            OwnedRequest::AlterTopic(alter) => Request::AlterTopic(AlterTopic::clone(alter)),
            OwnedRequest::DeleteTopic { name } => Request::DeleteTopic { name },
            OwnedRequest::PartitionStates { partitions } => Request::PartitionStates { partitions: partitions.clone() },
            OwnedRequest::ShardStats => Request::ShardStats,
            OwnedRequest::Metadata { topics } => Request::Metadata { topics: topics.clone() },
            OwnedRequest::DescribeTopic { name } => Request::DescribeTopic { name },
            OwnedRequest::Stats => Request::Stats,
            OwnedRequest::Group(request) => Request::Group(request.clone()),
            OwnedRequest::ShardGroups => Request::ShardGroups,
            OwnedRequest::ListGroups => Request::ListGroups,
            OwnedRequest::Coordinators { ids } => Request::Coordinators { ids: ids.clone() },
            OwnedRequest::Transaction(request) => Request::Transaction(request.clone()),
            OwnedRequest::ShardTransactions => Request::ShardTransactions,
            OwnedRequest::DescribeProducers { partition } => Request::DescribeProducers { partition: *partition },
            OwnedRequest::ToCheck(ask) => Request::ToCheck(ask.clone()),
            OwnedRequest::CheckTransaction(check) => Request::CheckTransaction(*check),
            OwnedRequest::EndTransaction(marker) => Request::EndTransaction(*marker),
            OwnedRequest::ListTransactions => Request::ListTransactions,
            OwnedRequest::Receive(receive) => Request::Receive(*receive),
            OwnedRequest::Settle(settle) => Request::Settle(settle.clone()),
            OwnedRequest::Queue(request) => Request::Queue(request.clone()),
            OwnedRequest::Forward(forward) => Request::Forward(forward.clone()),
            OwnedRequest::ConnectionGone { connection, generation } => {
                Request::ConnectionGone { connection: *connection, generation: *generation }
            }
            OwnedRequest::CreateQueue(create) => Request::CreateQueue(create.clone()),
            OwnedRequest::AlterQueue(alter) => Request::AlterQueue(alter.clone()),
            OwnedRequest::DeleteQueue { name } => Request::DeleteQueue { name },
            OwnedRequest::QueueIdle { queue, partition } => Request::QueueIdle { queue: *queue, partition: *partition },
            OwnedRequest::ExpireQueue { queue } => Request::ExpireQueue { queue: *queue },
            OwnedRequest::Queues { names } => Request::Queues { names: names.clone() },
        }
    }
}

/// A [`Reply`] of a shard that owns its bytes.
#[derive(Debug)]
pub enum OwnedReply {
    /// As in [`Reply`].
    Produced { base_offset: Offset, append_time_ms: i64, duplicate: bool, redirected: u32 },
    /// The frames as a copy.
    Fetched { head: Box<Fetched>, frames: Vec<u8> },
    /// As in [`Reply`].
    Watched { is_due: bool },
    /// As in [`Reply`].
    LogStart { offset: Offset },
    /// As in [`Reply`].
    Offset { offset: Offset, timestamp_ms: i64, found: bool },
    /// As in [`Reply`].
    Committed,
    /// As in [`Reply`].
    ConsumerOffset { offset: Option<Offset>, metadata: String },
    /// As in [`Reply`].
    Producer { producer_id: ProducerId, producer_epoch: u16 },
    /// As in [`Reply`].
    Topic(Box<TopicInfo>),
    /// As in [`Reply`].
    Deleted,
    /// As in [`Reply`].
    PartitionStates(Vec<PartitionState>),
    /// As in [`Reply`].
    ShardStats(Box<ShardStats>),
    /// As in [`Reply`].
    Group(Box<GroupReply>),
    /// As in [`Reply`].
    Groups(Vec<GroupListing>),
    /// As in [`Reply`].
    Transaction(Box<TransactionReply>),
    /// As in [`Reply`].
    Transactions(Vec<TransactionListing>),
    /// As in [`Reply`].
    ToCheck(Vec<TransactionListing>),
    /// As in [`Reply`].
    Producers(Vec<ProducerDescription>),
    /// As in [`Reply`].
    Queue(Box<QueueReply>),
    /// As in [`Reply`].
    Failed(Failure),
}

impl OwnedReply {
    /// Makes a reply fit to travel. `copy` takes the frames of a fetch out of the shard, `None` if they have just gone.
    pub fn new(reply: Reply, copy: impl FnOnce(FetchData) -> Option<Vec<u8>>) -> OwnedReply {
        match reply {
            Reply::Produced { base_offset, append_time_ms, duplicate, redirected } => {
                OwnedReply::Produced { base_offset, append_time_ms, duplicate, redirected }
            }
            Reply::Fetched { head, data } => match copy(data) {
                Some(frames) => OwnedReply::Fetched { head: Box::new(head), frames },
                None => OwnedReply::Failed(ErrorCode::Overloaded.into()),
            },
            Reply::Offset { offset, timestamp_ms, found } => OwnedReply::Offset { offset, timestamp_ms, found },
            Reply::Watched { is_due } => OwnedReply::Watched { is_due },
            Reply::LogStart { offset } => OwnedReply::LogStart { offset },
            Reply::Committed => OwnedReply::Committed,
            Reply::ConsumerOffset { offset, metadata } => OwnedReply::ConsumerOffset { offset, metadata },
            Reply::Producer { producer_id, producer_epoch } => OwnedReply::Producer { producer_id, producer_epoch },
            Reply::Topic(info) => OwnedReply::Topic(info),
            Reply::Deleted => OwnedReply::Deleted,
            Reply::PartitionStates(states) => OwnedReply::PartitionStates(states),
            Reply::ShardStats(stats) => OwnedReply::ShardStats(stats),
            Reply::Group(reply) => OwnedReply::Group(reply),
            Reply::Groups(groups) => OwnedReply::Groups(groups),
            Reply::Transaction(reply) => OwnedReply::Transaction(reply),
            Reply::Transactions(transactions) => OwnedReply::Transactions(transactions),
            Reply::ToCheck(transactions) => OwnedReply::ToCheck(transactions),
            Reply::Producers(producers) => OwnedReply::Producers(producers),
            Reply::Queue(reply) => OwnedReply::Queue(reply),
            Reply::Failed(failure) => OwnedReply::Failed(failure),
            Reply::Metadata { .. } | Reply::Description(_) | Reply::Stats(_) | Reply::Coordinators(_) => {
                OwnedReply::Failed(Failure::new(ErrorCode::Internal, "a shard gave an answer that only a router gives"))
            }
        }
    }

    /// As the connection's session takes it.
    pub fn into_reply(self) -> Reply {
        match self {
            OwnedReply::Produced { base_offset, append_time_ms, duplicate, redirected } => {
                Reply::Produced { base_offset, append_time_ms, duplicate, redirected }
            }
            OwnedReply::Fetched { head, frames } => Reply::Fetched { head: *head, data: FetchData::Owned(frames) },
            OwnedReply::Offset { offset, timestamp_ms, found } => Reply::Offset { offset, timestamp_ms, found },
            OwnedReply::Watched { is_due } => Reply::Watched { is_due },
            OwnedReply::LogStart { offset } => Reply::LogStart { offset },
            OwnedReply::Committed => Reply::Committed,
            OwnedReply::ConsumerOffset { offset, metadata } => Reply::ConsumerOffset { offset, metadata },
            OwnedReply::Producer { producer_id, producer_epoch } => Reply::Producer { producer_id, producer_epoch },
            OwnedReply::Topic(info) => Reply::Topic(info),
            OwnedReply::Deleted => Reply::Deleted,
            OwnedReply::PartitionStates(states) => Reply::PartitionStates(states),
            OwnedReply::ShardStats(stats) => Reply::ShardStats(stats),
            OwnedReply::Group(reply) => Reply::Group(reply),
            OwnedReply::Groups(groups) => Reply::Groups(groups),
            OwnedReply::Transaction(reply) => Reply::Transaction(reply),
            OwnedReply::Transactions(transactions) => Reply::Transactions(transactions),
            OwnedReply::ToCheck(transactions) => Reply::ToCheck(transactions),
            OwnedReply::Producers(producers) => Reply::Producers(producers),
            OwnedReply::Queue(reply) => Reply::Queue(reply),
            OwnedReply::Failed(failure) => Reply::Failed(failure),
        }
    }
}
