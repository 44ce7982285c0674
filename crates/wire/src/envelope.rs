//! The 16 bytes before every native request and reply.

use rkyv::{Archive, Deserialize, Serialize};

/// Precedes every request and every reply; all integers little-endian.
///
/// `[len u32][op u16][flags u16][correlation u64]`, then `len` bytes of body.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Bytes of the body that follows; the envelope's own 16 aren't counted.
    pub len: u32,
    /// What is asked or answered: a number of [`Op`].
    pub op: u16,
    /// [`flags`].
    pub flags: u16,
    /// Chosen by the client, repeated in the reply. Replies may come in another order than requests.
    pub correlation: u64,
}

const _: () = assert!(size_of::<ArchivedEnvelope>() == Envelope::BYTES);

/// Bits of [`Envelope::flags`].
pub mod flags {
    /// This is a reply.
    pub const REPLY: u16 = 1;
    /// The reply's body is a [`crate::control::ErrorReply`] instead of the op's own.
    pub const ERROR: u16 = 2;
    /// The request was served, but by way of another core: refresh the metadata and use the owner's port.
    pub const MOVED: u16 = 4;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// The operations of the native protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Op { $($(#[$doc])* $name = $number,)* }
        impl Op {
            /// The operation with this number, if this version knows it.
            pub fn from_number(number: u16) -> Option<Op> {
                match number { $($number => Some(Op::$name),)* _ => None }
            }
        }
    };
}

ops! {
    /// First request of a connection. Body: [`crate::control::Hello`] → [`crate::control::HelloReply`].
    Hello = 1;
    /// Topics, partitions, shard map. [`crate::control::MetadataRequest`] → [`crate::control::MetadataReply`].
    Metadata = 2;
    /// [`crate::control::CreateTopic`] → [`crate::control::TopicInfo`], once it is durable.
    CreateTopic = 3;
    /// [`crate::control::AlterTopic`] → [`crate::control::TopicInfo`].
    AlterTopic = 4;
    /// [`crate::control::TopicName`] → empty body.
    DeleteTopic = 5;
    /// [`crate::control::TopicName`] → [`crate::control::TopicDescription`].
    DescribeTopic = 6;
    /// [`crate::control::StatsRequest`] → [`crate::control::StatsReply`].
    Stats = 7;
    /// Empty body → [`crate::control::ProducerGrant`].
    InitProducer = 8;
    /// Body: one frame (see [`crate::frame`]) → [`crate::control::ProduceReply`].
    Produce = 16;
    /// [`crate::control::FetchRequest`] → [`crate::control::FetchReply`], then whole frames.
    Fetch = 17;
    /// [`crate::control::ListOffsets`] → [`crate::control::ListOffsetsReply`].
    ListOffsets = 18;
    /// [`crate::control::CommitOffset`] → empty body, once it is durable.
    CommitOffset = 19;
    /// [`crate::control::ReadOffset`] → [`crate::control::ReadOffsetReply`].
    ReadOffset = 20;
    /// [`crate::group::GroupRequest`] → [`crate::group::GroupAnswer`].
    Group = 21;
    /// [`crate::group::ListGroups`] → [`crate::group::GroupList`].
    ListGroups = 22;
    /// [`crate::transaction::TransactionRequest`] → [`crate::transaction::TransactionAnswer`].
    Transaction = 23;
    /// [`crate::transaction::ListTransactions`] → [`crate::transaction::TransactionList`].
    ListTransactions = 24;
    /// [`crate::transaction::TransactionsToCheck`] → [`crate::transaction::TransactionsChecked`].
    TransactionsToCheck = 25;
    /// [`crate::queue::CreateQueue`] → [`crate::queue::QueueInfo`], once it is durable.
    CreateQueue = 32;
    /// [`crate::queue::AlterQueue`] → [`crate::queue::QueueInfo`].
    AlterQueue = 33;
    /// [`crate::queue::QueueName`] → empty body. Its topic stays.
    DeleteQueue = 34;
    /// [`crate::queue::ListQueues`] → [`crate::queue::QueueList`].
    ListQueues = 35;
    /// [`crate::queue::QueueReceive`] → [`crate::queue::QueueReceived`], then messages.
    QueueReceive = 36;
    /// [`crate::queue::QueueSettle`], then [`crate::queue::Settlement`]s → [`crate::queue::QueueSettled`], once it is durable.
    QueueSettle = 37;
    /// [`crate::queue::QueueRequest`] → [`crate::queue::QueueAnswer`].
    Queue = 38;
    /// [`crate::queue::QueueStage`], then [`crate::queue::Settlement`]s, acknowledgements all → [`crate::queue::QueueSettled`], once it is
    /// durable.
    QueueStage = 39;
}

impl Envelope {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// Reads an envelope from the first 16 bytes of `input`; `None` = more bytes are needed.
    pub fn read(input: &[u8]) -> Option<Envelope> {
        let archived = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Failure>(input.get(..Self::BYTES)?).ok()?;
        Some(Envelope {
            len: archived.len.to_native(),
            op: archived.op.to_native(),
            flags: archived.flags.to_native(),
            correlation: archived.correlation.to_native(),
        })
    }

    /// The 16 bytes of this envelope.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        crate::control::fixed_bytes(self)
    }
}
