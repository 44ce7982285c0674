//! Stable error numbers of the native protocol. A number is never reused.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $retry:literal, $text:literal;)*) => {
        /// What went wrong, as a number that stays the same for ever.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }

        impl ErrorCode {
            /// The code with this number; `Unknown` for numbers of newer brokers.
            pub fn from_number(number: u16) -> ErrorCode {
                match number { $($number => ErrorCode::$name,)* _ => ErrorCode::Unknown }
            }
            /// Whether the same request may succeed later without a change by the caller.
            pub fn is_retriable(self) -> bool {
                match self { $(ErrorCode::$name => $retry,)* }
            }
            /// One clause for people: what happened and what to do.
            pub fn text(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
            /// Every code, for tables and tests.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];
        }
    };
}

codes! {
    /// Not in this list: from a newer broker.
    Unknown = 1, false, "unknown error; the broker may be newer than this client";
    /// The bytes don't parse; the connection closes when framing is lost.
    MalformedRequest = 2, false, "the request could not be parsed";
    /// The op isn't known to this broker.
    UnsupportedOp = 3, false, "the broker does not know this operation; it may be older than the client";
    /// Hello asked for a version that can't be served.
    UnsupportedVersion = 4, false, "no common protocol version";
    /// A frame's checksum doesn't match its bytes.
    CorruptFrame = 5, true, "a checksum did not match: the batch was damaged on its way; send it again";
    /// Frame larger than the topic's max.message.bytes.
    MessageTooLarge = 6, false, "the batch exceeds max.message.bytes of the topic; send smaller batches or raise it";
    /// No topic of that name.
    UnknownTopic = 7, false, "no such topic; create it first (ringmain topic create)";
    /// No partition of that number.
    UnknownPartition = 8, true, "no such partition; refresh the metadata";
    /// The topic name is taken.
    TopicExists = 9, false, "the topic exists already";
    /// Name empty, too long (249) or with characters outside [a-zA-Z0-9._-].
    InvalidTopic = 10, false, "a topic name has 1 to 249 characters of a-z A-Z 0-9 . _ -";
    /// A value out of its bounds.
    InvalidArgument = 11, false, "an argument is out of its bounds";
    /// Fetch below the log start or above the end.
    OffsetOutOfRange = 12, false, "the offset is outside the partition; list its offsets and seek";
    /// Idempotent sequence has a gap.
    OutOfOrderSequence = 13, false, "the producer's sequence has a gap: an earlier batch is missing";
    /// Idempotent batch already stored and no longer remembered exactly.
    DuplicateSequence = 14, false, "the batch is stored already, longer ago than the broker remembers offsets";
    /// Producer epoch is older than the newest seen.
    StaleProducerEpoch = 15, false, "a newer instance of this producer exists";
    /// Producer id isn't known in this partition (expired or never seen) and the sequence isn't 0.
    UnknownProducer = 16, false, "the producer's state has expired; start a new producer";
    /// The disk is full; writes resume by themselves.
    DiskFull = 17, true, "the broker's disk is full; free space (delete topics, lower retention) and retry";
    /// A device error fenced the shard: no writes until restart.
    ShardFenced = 18, false, "a write to the broker's disk failed; this shard refuses writes until it is restarted";
    /// A stored record doesn't match its checksum.
    CorruptLog = 19, false, "stored data does not match its checksum; run 'ringmain log verify'";
    /// The memory budget or a queue is full.
    Overloaded = 20, true, "the broker is at its memory or queue limit; retry";
    /// The broker is stopping.
    ShuttingDown = 21, true, "the broker is stopping; reconnect and retry";
    /// Too many topics or partitions.
    LimitExceeded = 22, false, "a configured limit is reached";
    /// An internal inconsistency that cost only this request.
    Internal = 23, false, "internal error; see the broker's log";
    /// The record count or the structure of the batch is wrong.
    InvalidBatch = 24, false, "the batch's records do not match its header";
    /// Authentication is required or failed.
    Unauthenticated = 25, false, "authentication failed";
    /// A group's name is empty or longer than 255 bytes.
    InvalidGroup = 26, false, "a group's name has 1 to 255 bytes";
    /// No group of that name.
    GroupNotFound = 27, false, "no such group";
    /// Only an empty group can be deleted.
    GroupNotEmpty = 28, false, "the group has members; stop them first";
    /// The group has as many members as it may.
    GroupFull = 29, false, "the group has as many members as it may";
    /// The member isn't in the group (any more).
    UnknownMember = 30, false, "the group does not know this member; join again without a member id";
    /// The generation isn't the group's.
    IllegalGeneration = 31, false, "the group is in another generation; join again";
    /// The group waits for its members to join the next generation.
    RebalanceInProgress = 32, true, "the group is rebalancing; join again";
    /// Another member uses this static instance id.
    FencedInstance = 33, false, "another member has taken over this instance id";
    /// The member has no protocol, or none that the others know.
    InconsistentProtocol = 34, false, "the member's protocols don't match those of the group";
    /// Session timeout out of its bounds.
    InvalidSessionTimeout = 35, false, "the session timeout is out of its bounds";
    /// The metadata of an offset is longer than 4,096 bytes.
    OffsetMetadataTooLarge = 36, false, "the metadata of an offset has at most 4096 bytes";
    /// A transaction that commits this offset is still undecided.
    UnstableOffset = 37, true, "a transaction that commits this offset is not decided yet; retry";
    /// A newer instance has taken the transactional id over.
    ProducerFenced = 40, false, "another instance has taken over this transactional id; this one must stop";
    /// The last step of this transactional id isn't complete.
    ConcurrentTransactions = 41, true, "the last transaction of this producer is not completed yet; retry";
    /// Not what can come now.
    InvalidTransactionState = 42, false, "the transaction is not in a state that allows this";
    /// Nobody uses this transactional id.
    TransactionNotFound = 43, false, "no such transactional id";
    /// The producer id isn't that of the transactional id.
    ProducerMismatch = 44, false, "the producer id does not belong to this transactional id; initialize again";
    /// Timeout out of its bounds.
    InvalidTransactionTimeout = 45, false, "the transaction timeout has 1 to 900000 ms";
    /// A transactional id is empty or too long.
    InvalidTransactionalId = 46, false, "a transactional id has 1 to 1024 bytes";
    /// No queue of that name or number.
    UnknownQueue = 50, false, "no such queue; create it first (ringmain queue create)";
    /// The queue's name is taken.
    QueueExists = 51, false, "the queue exists already";
    /// The queue is as long as it may be.
    QueueFull = 52, true, "the queue is full: its consumers are behind; publish later";
    /// Another consumer has the queue for itself.
    QueueInUse = 53, true, "the queue is exclusive and has a consumer";
    /// The filter doesn't parse.
    InvalidFilter = 54, false, "the filter is no valid expression";
    /// Some messages of a batch are stored already, by their ids, and others aren't.
    KnownMessages = 55, false, "some messages of the batch were stored before; send them one by one";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
