//! Requests that aren't records: what they look like, what their answers are. Every transport sends these.

use std::time::Duration;

use ringmain_wire::control::{
    AlterTopic, CONTROL_VERSION, CommitOffset, ControlError, CreateTopic, ListOffsets, ListOffsetsReply, MetadataReply, MetadataRequest,
    ProducerGrant, ReadOffset, ReadOffsetReply, StatsReply, StatsRequest, TopicDescription, TopicInfo, TopicName, read_open, write_open,
};
use ringmain_wire::group::{GroupAnswer, GroupList, GroupRequest, ListGroups};
use ringmain_wire::queue::{
    AlterQueue, CreateQueue, ListQueues, QueueAnswer, QueueInfo, QueueList, QueueName, QueueRequest, read_config, write_config,
};
use ringmain_wire::transaction::{
    ListTransactions, TransactionAnswer, TransactionList, TransactionRequest, TransactionsChecked, TransactionsToCheck,
};
use ringmain_wire::{Op, PartitionId};

use crate::links::LinkConfig;

/// How a client connects.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `HOST:PORT` of the broker's native door. Default `127.0.0.1:7171`.
    pub address: String,
    /// How long a connection may take to be made. Default 5 s.
    pub connect_timeout: Duration,
    /// How connections of its producers and consumers are made and kept; its
    /// [`request_timeout`](crate::session::SessionConfig::request_timeout) applies to administrative calls too.
    pub links: LinkConfig,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig { address: format!("127.0.0.1:{DEFAULT_PORT}"), connect_timeout: Duration::from_secs(5), links: LinkConfig::default() }
    }
}

/// The native door's port, unless the broker is told otherwise.
pub const DEFAULT_PORT: u16 = 7171;

/// A request with one answer.
pub trait Call {
    /// Its operation.
    const OP: Op;
    /// Whether asking twice is the same as asking once, so that a lost answer may be asked for again.
    const REPEATABLE: bool;
    /// What the broker answers.
    type Answer;
    /// Appends the request's body.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the answer's body. Errors: the bytes aren't that answer.
    fn decode(body: &[u8]) -> Result<Self::Answer, ControlError>;
}

/// Asks for an id for an idempotent producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitProducer;

macro_rules! open_calls {
    ($($request:ident = $op:ident, $repeatable:literal => $answer:ident;)*) => {$(
        impl Call for $request {
            const OP: Op = Op::$op;
            const REPEATABLE: bool = $repeatable;
            type Answer = $answer;
            fn encode(&self, out: &mut Vec<u8>) {
                write_open(self, out);
            }
            fn decode(body: &[u8]) -> Result<$answer, ControlError> {
                read_open(body)
            }
        }
    )*};
}

open_calls! {
    MetadataRequest = Metadata, true => MetadataReply;
    CreateTopic = CreateTopic, false => TopicInfo;
    AlterTopic = AlterTopic, false => TopicInfo;
    StatsRequest = Stats, true => StatsReply;
    ReadOffset = ReadOffset, true => ReadOffsetReply;
    GroupRequest = Group, false => GroupAnswer;
    ListGroups = ListGroups, true => GroupList;
    QueueRequest = Queue, true => QueueAnswer;
    TransactionRequest = Transaction, true => TransactionAnswer;
    ListTransactions = ListTransactions, true => TransactionList;
    TransactionsToCheck = TransactionsToCheck, true => TransactionsChecked;
}

macro_rules! config_calls {
    ($($request:ident = $op:ident, $repeatable:literal, $write:ident => $answer:ident;)*) => {$(
        impl Call for $request {
            const OP: Op = Op::$op;
            const REPEATABLE: bool = $repeatable;
            type Answer = $answer;
            fn encode(&self, out: &mut Vec<u8>) {
                $write(self, out);
            }
            fn decode(body: &[u8]) -> Result<$answer, ControlError> {
                read_config(body)
            }
        }
    )*};
}

config_calls! {
    CreateQueue = CreateQueue, false, write_config => QueueInfo;
    AlterQueue = AlterQueue, true, write_config => QueueInfo;
    ListQueues = ListQueues, true, write_open => QueueList;
}

impl Call for CommitOffset {
    const OP: Op = Op::CommitOffset;
    const REPEATABLE: bool = true;
    type Answer = ();
    fn encode(&self, out: &mut Vec<u8>) {
        write_open(self, out);
    }
    fn decode(_: &[u8]) -> Result<(), ControlError> {
        Ok(())
    }
}

impl Call for ListOffsets {
    const OP: Op = Op::ListOffsets;
    const REPEATABLE: bool = true;
    type Answer = ListOffsetsReply;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }
    fn decode(body: &[u8]) -> Result<ListOffsetsReply, ControlError> {
        ListOffsetsReply::read(body)
    }
}

impl Call for InitProducer {
    const OP: Op = Op::InitProducer;
    // An id that nobody uses costs nothing.
    const REPEATABLE: bool = true;
    type Answer = ProducerGrant;
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(body: &[u8]) -> Result<ProducerGrant, ControlError> {
        ProducerGrant::read(body)
    }
}

/// Deletes a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteTopic(
    /// Its name.
    pub String,
);

impl Call for DeleteTopic {
    const OP: Op = Op::DeleteTopic;
    const REPEATABLE: bool = false;
    type Answer = ();
    fn encode(&self, out: &mut Vec<u8>) {
        write_open(&TopicName { name: self.0.clone() }, out);
    }
    fn decode(_: &[u8]) -> Result<(), ControlError> {
        Ok(())
    }
}

/// Deletes a queue; its topic stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteQueue(
    /// Its name.
    pub String,
);

impl Call for DeleteQueue {
    const OP: Op = Op::DeleteQueue;
    const REPEATABLE: bool = false;
    type Answer = ();
    fn encode(&self, out: &mut Vec<u8>) {
        write_open(&QueueName { name: self.0.clone() }, out);
    }
    fn decode(_: &[u8]) -> Result<(), ControlError> {
        Ok(())
    }
}

/// Asks for a topic and the state of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeTopic(
    /// Its name.
    pub String,
);

impl Call for DescribeTopic {
    const OP: Op = Op::DescribeTopic;
    const REPEATABLE: bool = true;
    type Answer = TopicDescription;
    fn encode(&self, out: &mut Vec<u8>) {
        write_open(&TopicName { name: self.0.clone() }, out);
    }
    fn decode(body: &[u8]) -> Result<TopicDescription, ControlError> {
        read_open(body)
    }
}

/// Asks for every topic, or for those named.
pub fn metadata(topics: Option<&[&str]>) -> MetadataRequest {
    MetadataRequest { topics: topics.map(|names| names.iter().map(|name| (*name).to_string()).collect()) }
}

/// Asks for every queue, or for those named.
pub fn list_queues(names: Option<&[&str]>) -> ListQueues {
    ListQueues { names: names.map(|names| names.iter().map(|name| (*name).to_string()).collect()) }
}

/// Asks for an offset by time; see [`ListOffsets::timestamp_ms`] for the two special times.
pub fn list_offset(partition: PartitionId, timestamp_ms: i64) -> ListOffsets {
    ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: partition.0, timestamp_ms }
}
