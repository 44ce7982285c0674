//! Transactions as doors ask about them, and what shards ask each other for them.
//!
//! A transactional producer has a name of its own choice, the *transactional id*. The shard of the id's slot
//! *coordinates* its transactions: it knows who takes part, decides, and sees to it that everybody hears of it.
//! Partitions and groups *take part*. What a transaction wrote can be read by committed-only readers once its *marker*
//! is in the partition's log.
//!
//! Requests own what they name: none of this is on a message's way, and it crosses cores without a copy.

use ringmain_wire::frame::flags;
use ringmain_wire::transaction::CheckBack;
use ringmain_wire::{ErrorCode, Frame, Offset, PartitionId, ProducerId, ShardId};

use super::group::Commit;

/// Bits of a producer id that hold its slot.
const SLOT_BITS: u32 = 6;
/// Set in the ids of transactional producers. Below 2⁵³, so that clients whose numbers are floats keep them.
const TRANSACTIONAL: i64 = 1 << 48;

/// The id of a transactional producer: it says where its transactions are coordinated, so that a partition knows whom
/// to ask about a batch. `number`: given away once, by shard 0. `None` = no such number can be.
pub fn transactional_producer(number: i64, slot: usize) -> Option<ProducerId> {
    let is_possible = (0..TRANSACTIONAL >> SLOT_BITS).contains(&number) && slot < 1 << SLOT_BITS;
    is_possible.then_some(ProducerId(TRANSACTIONAL | number << SLOT_BITS | slot as i64))
}

/// The slot whose shard coordinates this producer's transactions; `None` = it can't have any.
pub fn slot_of_producer(producer: ProducerId) -> Option<usize> {
    (producer.0 >= TRANSACTIONAL && producer.0 < TRANSACTIONAL << 1).then_some((producer.0 & ((1 << SLOT_BITS) - 1)) as usize)
}

/// A producer in one of its lives: whoever takes its name over gets the next epoch, and the old one is *fenced*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerKey {
    /// Its number.
    pub id: ProducerId,
    /// Which life.
    pub epoch: u16,
}

/// A request about the transactions of one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionRequest {
    /// Which.
    pub transactional_id: String,
    /// What.
    pub action: TransactionAction,
}

/// What can be asked about the transactions of one id.
///
/// Errors of all but `Init` and `Describe`: `ProducerMismatch` (the id belongs to another producer id, or to none),
/// `ProducerFenced`, `ConcurrentTransactions` (retry: the last step isn't complete), `InvalidTransactionState`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionAction {
    /// Take the id over: what another had open is aborted, and its producer fenced → [`TransactionReply::Producer`].
    Init {
        /// A transaction open for longer is aborted.
        timeout_ms: u32,
        /// Who is asked about one that stays open.
        check: Option<CheckBack>,
        /// The producer that asks for its own next epoch; `ProducerFenced` if it isn't the last.
        current: Option<ProducerKey>,
    },
    /// These are about to be written to; the first of them begins the transaction → [`TransactionReply::Done`].
    AddPartitions {
        /// Who.
        producer: ProducerKey,
        /// They exist: the router looks.
        partitions: Vec<PartitionId>,
    },
    /// Offsets of this group are about to be committed → [`TransactionReply::Done`].
    AddGroup {
        /// Who.
        producer: ProducerKey,
        /// Its name.
        group: String,
    },
    /// Positions that take effect with the transaction; the group was added before → the answer of
    /// `GroupAction::Commit`, or an error from here.
    CommitOffsets {
        /// Who.
        producer: ProducerKey,
        /// Whose positions.
        group: String,
        /// `transaction` is filled in here.
        commit: Commit,
    },
    /// Decide → [`TransactionReply::Done`] once that is durable, and as a rule everybody has heard of it.
    End {
        /// Who.
        producer: ProducerKey,
        /// It takes effect; else it is aborted.
        commit: bool,
        /// The epoch ends with the transaction → [`TransactionReply::Producer`] for the next one. Asking again gets the same answer.
        renews: bool,
    },
    /// → [`TransactionReply::Description`], or `TransactionNotFound`.
    Describe,
}

/// Asks one shard for open transactions that somebody has to decide → `Reply::ToCheck` when there are some, or when the wait is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToCheck {
    /// Of this group.
    pub group: String,
    /// Which shard.
    pub shard: ShardId,
    /// At most so many.
    pub max: u32,
    /// 0 = answer at once.
    pub max_wait_ms: u32,
}

/// From the shard of a partition to the coordinator: may this producer write there now, as part of a transaction?
/// → [`TransactionReply::Done`] or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionCheck {
    /// Who wants to write.
    pub producer: ProducerKey,
    /// Where.
    pub partition: PartitionId,
    /// The producer doesn't say by itself who takes part: the partition joins.
    pub joins: bool,
}

/// From the coordinator to the shard of a partition that took part: the transaction is decided →
/// [`TransactionReply::Done`] once that is durable there. Repeating it does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionMarker {
    /// Where.
    pub partition: PartitionId,
    /// Whose. The epoch is above that of the batches if the producer was fenced.
    pub producer: ProducerKey,
    /// It takes effect.
    pub commit: bool,
}

/// Answers about transactions; errors come as `Reply::Failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionReply {
    /// The id is this producer's, durably.
    Producer(ProducerKey),
    /// Durable.
    Done,
    /// All there is to see.
    Description(TransactionDescription),
}

/// Where the transactions of an id are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransactionPhase {
    /// There was none since its producer came.
    #[default]
    Empty,
    /// Open.
    Ongoing,
    /// Decided: takes effect; not everybody has heard of it.
    Committing,
    /// Decided: takes no effect; not everybody has heard of it.
    Aborting,
    /// The last one took effect.
    Committed,
    /// The last one was aborted.
    Aborted,
}

/// The transactions of an id, in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionListing {
    /// Its name.
    pub transactional_id: String,
    /// Its producer.
    pub producer: ProducerKey,
    /// Phase.
    pub phase: TransactionPhase,
    /// When the open or undone one began, ms since the Unix epoch; −1 = there is none.
    pub begun_ms: i64,
}

/// The transactions of an id, from the inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionDescription {
    /// As in a list.
    pub listing: TransactionListing,
    /// A transaction open for longer is aborted.
    pub timeout_ms: u32,
    /// Who takes part now.
    pub partitions: Vec<PartitionId>,
    /// Whose offsets take part now.
    pub groups: Vec<String>,
}

/// A producer as a partition remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerDescription {
    /// Who.
    pub producer: ProducerKey,
    /// Sequence of its last record; −1 = unknown.
    pub last_sequence: i32,
    /// Time of its last batch, ms since the Unix epoch.
    pub last_append_ms: i64,
    /// Where its open transaction begins.
    pub transaction_start: Option<Offset>,
}

/// A transaction that was aborted, in one partition: its producer's transactional records from `first_offset` to the
/// marker at `last_offset` are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose.
    pub producer_id: ProducerId,
    /// Its first record.
    pub first_offset: Offset,
    /// Its marker.
    pub last_offset: Offset,
}

/// Whether a committed-only reader leaves this frame out: a marker, or part of one of these aborted transactions.
pub fn is_void(frame: &Frame<'_>, aborted: &[AbortedTransaction]) -> bool {
    let producer = &frame.header.producer;
    let is_of = |transaction: &AbortedTransaction| {
        transaction.producer_id.0 == producer.producer_id
            && (transaction.first_offset..=transaction.last_offset).contains(&frame.base_offset())
    };
    producer.flags & flags::CONTROL != 0 || (producer.flags & flags::TRANSACTIONAL != 0 && aborted.iter().any(is_of))
}

/// Errors that mean: the coordinator or a participant can't now, and may later.
pub fn is_passing(code: ErrorCode) -> bool {
    code.is_retriable() || matches!(code, ErrorCode::ShardFenced)
}
