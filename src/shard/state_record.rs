//! What a shard writes into its own log, as bodies of state frames: `[version u16][0 u16][archive]`.
//!
//! Old versions stay readable for ever: a new layout gets a new number, and the old types stay, frozen.

use ringmain_wire::control::{PartitionPlace, TopicConfig};
use rkyv::rancor::{Error, Failure};
use rkyv::{Archive, Deserialize, Serialize};

use super::catalog::CatalogChange;
use super::queue::catalog::{QueuePiece, QueuePieceV1};

/// Version of the layouts in this module.
pub const STATE_VERSION: u16 = 1;
const PREFIX_BYTES: usize = 4;

/// One record. Until a checkpoint begins they are deltas; its pieces are whole entities and override.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum StateRecord {
    /// Shard 0: a change of topics.
    Catalog(CatalogChange),
    /// No offset at or above `end` has named anything yet; 0 = the reservation is void.
    Reserved {
        /// Which.
        partition: u32,
        /// First offset that isn't reserved.
        end: u64,
    },
    /// Shard 0: producer ids below this may have been given away.
    ProducerIds {
        /// First id that certainly hasn't.
        end: i64,
    },
    /// Everything below is dead.
    LogStart {
        /// Which.
        partition: u32,
        /// First offset that stays.
        offset: u64,
    },
    /// Where a consumer is: a group's offset in one partition. Written by earlier builds.
    ConsumerOffset {
        /// Which.
        partition: u32,
        /// The consumer's entry.
        offset: OffsetPiece,
    },
    /// Checkpoint, shard 0: numbers used so far.
    CatalogNumbers {
        /// Topic numbers below are used.
        next_topic: u32,
        /// Partition numbers below are used.
        next_partition: u32,
    },
    /// Checkpoint, shard 0: topics or parts of them.
    Topics(Vec<TopicPiece>),
    /// Checkpoint: partitions.
    Partitions(Vec<PartitionPiece>),
    /// Checkpoint: all producers of one partition, least recently used first.
    Producers {
        /// Which.
        partition: u32,
        /// Its producers.
        producers: Vec<ProducerPiece>,
    },
    /// Checkpoint: some consumers of one partition. Written by earlier builds.
    ConsumerOffsets {
        /// Which.
        partition: u32,
        /// Its consumers.
        offsets: Vec<OffsetPiece>,
    },
    /// A group without its offsets; its members follow.
    Group(Box<GroupPiece>),
    /// Members of a group.
    GroupMembers {
        /// Which.
        group: String,
        /// That of the [`GroupPiece`] they belong to.
        stamp: u64,
        /// Some or all.
        members: Vec<MemberPiece>,
    },
    /// Committed offsets of a group.
    GroupOffsets {
        /// Which.
        group: String,
        /// By partition.
        offsets: Vec<GroupOffsetPiece>,
    },
    /// Offsets that a transaction will commit.
    GroupStaged {
        /// Which.
        group: String,
        /// Whose.
        producer_id: i64,
        /// Of which incarnation.
        producer_epoch: u16,
        /// By partition.
        offsets: Vec<GroupOffsetPiece>,
    },
    /// That transaction is decided.
    GroupDecided {
        /// Which group.
        group: String,
        /// Whose transaction.
        producer_id: i64,
        /// Of which incarnation.
        producer_epoch: u16,
        /// What was staged takes effect.
        commit: bool,
    },
    /// Offsets of a group are forgotten.
    GroupOffsetsForgotten {
        /// Which.
        group: String,
        /// Where.
        partitions: Vec<u32>,
    },
    /// A group and its offsets are gone.
    GroupDeleted {
        /// Which.
        group: String,
    },
    /// A step of a transaction: its head as it is now, and who joined in this step.
    Transaction(Box<TransactionPiece>),
    /// A transactional id is forgotten.
    TransactionGone {
        /// Which.
        transactional_id: String,
    },
    /// Checkpoint: transactional ids, each with all that takes part.
    Transactions(Vec<TransactionPiece>),
    /// Checkpoint: some aborted transactions of one partition.
    Aborted {
        /// Which.
        partition: u32,
        /// In order of their markers.
        transactions: Vec<AbortedPiece>,
    },
    /// Checkpoint, shard 0: queues. Written by earlier builds.
    Queues(Vec<QueuePieceV1>),
    /// A queue in one partition that begins, or begins anew. Also checkpoints of earlier builds, where [`QueuePartsPiece`]s follow.
    QueueHead(Box<QueueHeadPiece>),
    /// Checkpoint: some of what a queue remembers one by one.
    QueueParts(Box<QueuePartsPiece>),
    /// What became of messages of a queue.
    QueueSettled(Box<QueueSettledPiece>),
    /// Messages of a queue up to a place may be delivered from now on.
    QueueMark(Box<QueueMarkPiece>),
    /// Checkpoint, shard 0: numbers of queues used so far.
    QueueNumbers {
        /// Numbers below are used.
        next_queue: u32,
    },
    /// Checkpoint, shard 0: queues.
    QueueList(Vec<QueuePiece>),
    /// Messages of a queue that go to another topic, because it was full when they came. Logged before them: it counts when they are there.
    QueueRedirected(Box<QueueRedirectedPiece>),
    /// Message ids of a batch. Logged before it: they count when it is there.
    MessageIds(Box<MessageIdsPiece>),
    /// Checkpoint: some of the message ids that a partition remembers, in the order in which they came.
    KnownIds(Box<KnownIdsPiece>),
    /// A batch of an idempotent producer that wasn't stored, because its messages were already.
    ProducerAdvanced(Box<ProducerAdvancedPiece>),
    /// Messages of a queue were acknowledged in a transaction.
    QueueStaged(Box<QueueStagedPiece>),
    /// The transaction was aborted: they aren't any more. Committed they are settled, in a [`QueueSettledPiece`].
    QueueUnstaged(Box<QueueUnstagedPiece>),
    /// Offsets of a queue that are no messages, before the records that say so are gone.
    QueueVoid(Box<QueueVoidPiece>),
    /// Who is asked about the transactions of an id from now on.
    TransactionCheckBack(Box<TransactionCheckBackPiece>),
    /// Checkpoint: what a [`StateRecord::QueueHead`] says, of a queue that goes on as it is. Nothing is new to who knows the queue already:
    /// where the checkpoint doesn't come to its end, its parts are missing.
    QueueKept(Box<QueueHeadPiece>),
}

/// Message ids of a batch that comes next.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MessageIdsPiece {
    /// Where.
    pub partition: u32,
    /// Its first offset …
    pub base: u64,
    /// … and its checksum.
    pub body_crc: u32,
    /// When it came, ms since the Unix epoch.
    pub time_ms: i64,
    /// Index of the record, id.
    pub ids: Vec<(u32, Vec<u8>)>,
}

/// Some of the message ids that a partition remembers.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct KnownIdsPiece {
    /// Where.
    pub partition: u32,
    /// Nothing older is remembered.
    pub is_first: bool,
    /// They, oldest first.
    pub ids: Vec<MessageIdPiece>,
}

/// A message id.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MessageIdPiece {
    /// As published.
    pub id: Vec<u8>,
    /// Of its message.
    pub offset: u64,
    /// When that came, ms since the Unix epoch.
    pub time_ms: i64,
}

/// A batch of an idempotent producer that wasn't stored.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerAdvancedPiece {
    /// Where.
    pub partition: u32,
    /// Whose.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: u16,
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Its records.
    pub record_count: u32,
    /// Where they had been stored.
    pub base_offset: u64,
    /// When it came, ms since the Unix epoch.
    pub time_ms: i64,
}

/// Messages that found a queue full.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueRedirectedPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// What was said before about offsets from here on is void.
    pub from: u64,
    /// They: start, end.
    pub ranges: Vec<(u64, u64)>,
}

/// Who is asked about the transactions of an id.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionCheckBackPiece {
    /// The id.
    pub transactional_id: String,
    /// A group; empty = nobody is asked.
    pub group: String,
    /// About one that is open for so long, and again after so long.
    pub after_ms: u32,
}

/// Offsets of a queue that are no messages.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueVoidPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Start, end.
    pub void: Vec<(u64, u64)>,
}

/// Messages of a queue that were acknowledged in a transaction.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueStagedPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Whose transaction.
    pub producer_id: i64,
    /// Of which incarnation.
    pub producer_epoch: u16,
    /// Start, end.
    pub staged: Vec<(u64, u64)>,
}

/// A transaction that was aborted, for a queue.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueUnstagedPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Whose transaction.
    pub producer_id: i64,
    /// That of the decision; what was staged in earlier ones is meant, too.
    pub producer_epoch: u16,
}

/// Some of what a queue remembers one by one.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueuePartsPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Settled messages above the floor: start, end.
    pub settled: Vec<(u64, u64)>,
    /// Messages that came back.
    pub returned: Vec<ReturnedPiece>,
}

/// What became of messages of a queue. Ranges: start, end.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueSettledPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Acknowledged, or purged.
    pub acked: Vec<(u64, u64)>,
    /// Stored in another topic.
    pub dead: Vec<(u64, u64)>,
    /// Gone.
    pub dropped: Vec<(u64, u64)>,
    /// Came back.
    pub returned: Vec<ReturnedPiece>,
}

/// How far messages of a queue may have been delivered.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueMarkPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Below it.
    pub mark: u64,
    /// Marks at which crashes found the queue, and how many.
    pub crashes: Vec<(u64, u16)>,
}

/// A queue in one partition.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueHeadPiece {
    /// Which.
    pub queue: u32,
    /// Where.
    pub partition: u32,
    /// Its first offset.
    pub begin: u64,
    /// Everything below is settled.
    pub floor: u64,
    /// As in [`QueueMarkPiece`].
    pub mark: u64,
    /// As in [`QueueMarkPiece`].
    pub crashes: Vec<(u64, u16)>,
    /// Messages acknowledged so far.
    pub acked: u64,
    /// Messages stored in another topic so far.
    pub dead: u64,
    /// Messages gone otherwise.
    pub dropped: u64,
    /// Offsets that were no message.
    pub void: u64,
}

/// A message that came back.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnedPiece {
    /// Which.
    pub offset: u64,
    /// Deliveries in vain; with 2^15 added: rejected.
    pub deliveries: u16,
    /// Not before, ms since the Unix epoch.
    pub due_ms: i64,
}

/// A group without offsets and members.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupPiece {
    /// Its name.
    pub group: String,
    /// Tells one picture of it from another.
    pub stamp: u64,
    /// 0 empty, 1 preparing, 2 completing, 3 stable.
    pub phase: u8,
    /// 0 = there was none.
    pub generation: i32,
    /// Kind.
    pub protocol_type: String,
    /// Of the generation.
    pub protocol: String,
    /// Member id.
    pub leader: String,
    /// When it lost its last member, ms since the Unix epoch.
    pub empty_since_ms: i64,
    /// Members that follow.
    pub member_count: u32,
}

/// A member of a group.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct MemberPiece {
    /// Its id.
    pub member_id: String,
    /// Its own name, if it is static.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Silent for longer = gone.
    pub session_timeout_ms: u32,
    /// Longest time to rejoin.
    pub rebalance_timeout_ms: u32,
    /// For the generation's protocol.
    pub metadata: Vec<u8>,
    /// Its share.
    pub assignment: Vec<u8>,
}

/// A committed offset.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupOffsetPiece {
    /// Where.
    pub partition: u32,
    /// The next offset wanted.
    pub offset: u64,
    /// Of the last record read; −1 = unknown.
    pub leader_epoch: i32,
    /// As sent.
    pub metadata: String,
    /// When, ms since the Unix epoch.
    pub commit_ms: i64,
}

/// The transactions of an id.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionPiece {
    /// Its name.
    pub transactional_id: String,
    /// Its producer.
    pub producer_id: i64,
    /// The producer's epoch.
    pub epoch: u16,
    /// The producer that became this one, and its epoch.
    pub previous: Option<(i64, u16)>,
    /// A transaction open for longer is aborted.
    pub timeout_ms: u32,
    /// A number of `transaction::phase_number`.
    pub phase: u8,
    /// When the transaction began, ms since the Unix epoch.
    pub begun_ms: i64,
    /// When this was logged.
    pub changed_ms: i64,
    /// Partitions that take part.
    pub partitions: Vec<u32>,
    /// Groups that take part.
    pub groups: Vec<String>,
}

/// A transaction that was aborted, in one partition.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedPiece {
    /// Its producer.
    pub producer_id: i64,
    /// Its first record.
    pub first_offset: u64,
    /// Its marker.
    pub last_offset: u64,
    /// First offset below which everything was decided then.
    pub stable: u64,
}

/// Part of a topic.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TopicPiece {
    /// Its number.
    pub topic: u32,
    /// Its name.
    pub name: String,
    /// Its settings.
    pub config: TopicConfig,
    /// Index of the first partition in `partitions`.
    pub first_index: u32,
    /// In order of index.
    pub partitions: Vec<PartitionPlace>,
}

/// A partition.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionPiece {
    /// Which.
    pub partition: u32,
    /// First offset still stored.
    pub log_start: u64,
    /// Offset of the next record.
    pub next_offset: u64,
    /// As in [`StateRecord::Reserved`].
    pub reserved_end: u64,
}

/// An idempotent producer in one partition.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ProducerPiece {
    /// Its id.
    pub producer_id: i64,
    /// Newest epoch.
    pub epoch: u16,
    /// Time of its last batch, ms since the Unix epoch.
    pub last_append_ms: i64,
    /// Last batches, oldest first.
    pub batches: Vec<BatchPiece>,
    /// First offset of its open transaction.
    pub transaction_start: Option<u64>,
}

/// A batch of an idempotent producer.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPiece {
    /// Sequence of the first record.
    pub first_sequence: i32,
    /// Sequence of the last record.
    pub last_sequence: i32,
    /// Offset of the first record.
    pub base_offset: u64,
}

/// Where a consumer is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct OffsetPiece {
    /// Its name.
    pub consumer: String,
    /// The next offset it wants.
    pub offset: u64,
    /// As sent.
    pub metadata: String,
}

/// Why a state record can't be read: the log says more than this build understands, or it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// Shorter than its version.
    Truncated,
    /// Written by a newer build.
    UnknownVersion { got: u16 },
    /// The archive's bytes are inconsistent.
    Malformed,
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateError::Truncated => f.write_str("state record cut short"),
            StateError::UnknownVersion { got } => {
                write!(f, "state record of version {got}; this build reads up to {STATE_VERSION}: start a newer build")
            }
            StateError::Malformed => f.write_str("state record with inconsistent bytes"),
        }
    }
}

impl std::error::Error for StateError {}

impl StateRecord {
    /// The body of its state frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serialising owned data into memory has no error but exhausted memory.
        let archive = rkyv::to_bytes::<Error>(self).unwrap_or_default();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + archive.len());
        bytes.extend_from_slice(&u32::from(STATE_VERSION).to_le_bytes());
        bytes.extend_from_slice(&archive);
        bytes
    }

    /// Reads the body of a state frame.
    pub fn read(bytes: &[u8]) -> Result<StateRecord, StateError> {
        let (prefix, archive) = bytes.split_at_checked(PREFIX_BYTES).ok_or(StateError::Truncated)?;
        let version = u16::from_le_bytes([prefix[0], prefix[1]]);
        if version != STATE_VERSION {
            return Err(StateError::UnknownVersion { got: version });
        }
        rkyv::from_bytes::<StateRecord, Failure>(archive).map_err(|_| StateError::Malformed)
    }
}
