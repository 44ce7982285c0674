//! From our errors to Kafka's numbers: nothing else in the tree knows them.

use ringmain_wire::ErrorCode;

use crate::request::Failure;

pub const UNKNOWN_SERVER_ERROR: i16 = -1;
pub const NONE: i16 = 0;
pub const OFFSET_OUT_OF_RANGE: i16 = 1;
pub const CORRUPT_MESSAGE: i16 = 2;
pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
pub const NOT_LEADER_OR_FOLLOWER: i16 = 6;
pub const REQUEST_TIMED_OUT: i16 = 7;
pub const MESSAGE_TOO_LARGE: i16 = 10;
pub const OFFSET_METADATA_TOO_LARGE: i16 = 12;
pub const COORDINATOR_NOT_AVAILABLE: i16 = 15;
pub const INVALID_TOPIC: i16 = 17;
pub const INVALID_REQUIRED_ACKS: i16 = 21;
pub const ILLEGAL_GENERATION: i16 = 22;
pub const INCONSISTENT_GROUP_PROTOCOL: i16 = 23;
pub const INVALID_GROUP_ID: i16 = 24;
pub const UNKNOWN_MEMBER_ID: i16 = 25;
pub const INVALID_SESSION_TIMEOUT: i16 = 26;
pub const REBALANCE_IN_PROGRESS: i16 = 27;
pub const INVALID_TIMESTAMP: i16 = 32;
pub const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
pub const ILLEGAL_SASL_STATE: i16 = 34;
pub const UNSUPPORTED_VERSION: i16 = 35;
pub const TOPIC_ALREADY_EXISTS: i16 = 36;
pub const INVALID_PARTITIONS: i16 = 37;
pub const INVALID_REPLICATION_FACTOR: i16 = 38;
pub const INVALID_REPLICA_ASSIGNMENT: i16 = 39;
pub const INVALID_CONFIG: i16 = 40;
pub const INVALID_REQUEST: i16 = 42;
pub const POLICY_VIOLATION: i16 = 44;
pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
pub const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;
pub const INVALID_PRODUCER_EPOCH: i16 = 47;
pub const INVALID_TXN_STATE: i16 = 48;
pub const INVALID_PRODUCER_ID_MAPPING: i16 = 49;
pub const INVALID_TRANSACTION_TIMEOUT: i16 = 50;
pub const CONCURRENT_TRANSACTIONS: i16 = 51;
pub const OPERATION_NOT_ATTEMPTED: i16 = 55;
pub const KAFKA_STORAGE_ERROR: i16 = 56;
pub const UNKNOWN_PRODUCER_ID: i16 = 59;
pub const NON_EMPTY_GROUP: i16 = 68;
pub const GROUP_ID_NOT_FOUND: i16 = 69;
pub const FETCH_SESSION_ID_NOT_FOUND: i16 = 70;
pub const FENCED_LEADER_EPOCH: i16 = 74;
pub const UNKNOWN_LEADER_EPOCH: i16 = 75;
pub const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
pub const MEMBER_ID_REQUIRED: i16 = 79;
pub const GROUP_MAX_SIZE_REACHED: i16 = 81;
pub const FENCED_INSTANCE_ID: i16 = 82;
pub const GROUP_SUBSCRIBED_TO_TOPIC: i16 = 86;
pub const INVALID_RECORD: i16 = 87;
pub const UNSTABLE_OFFSET_COMMIT: i16 = 88;
pub const PRODUCER_FENCED: i16 = 90;
pub const UNKNOWN_TOPIC_ID: i16 = 100;
pub const TRANSACTIONAL_ID_NOT_FOUND: i16 = 105;
pub const MISMATCHED_ENDPOINT_TYPE: i16 = 114;
pub const UNSUPPORTED_ENDPOINT_TYPE: i16 = 115;

/// Why something that a client wants isn't done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Kafka's number.
    pub code: i16,
    /// What came, and what was expected.
    pub message: String,
}

impl Refused {
    /// An error with a text of its own.
    pub fn new(code: i16, message: impl Into<String>) -> Refused {
        Refused { code, message: message.into() }
    }

    /// A shard's answer.
    pub fn of(failure: &Failure) -> Refused {
        let message = if failure.message.is_empty() { failure.code.text().to_owned() } else { failure.message.clone() };
        Refused { code: code(failure), message }
    }
}

/// Kafka's number for a failure.
///
/// What passes by itself gets a number that all clients retry; what the client must change gets its own.
pub fn code(failure: &Failure) -> i16 {
    match failure.code {
        ErrorCode::OffsetOutOfRange => OFFSET_OUT_OF_RANGE,
        ErrorCode::CorruptFrame => CORRUPT_MESSAGE,
        ErrorCode::MessageTooLarge => MESSAGE_TOO_LARGE,
        ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode::TopicExists => TOPIC_ALREADY_EXISTS,
        ErrorCode::InvalidTopic => INVALID_TOPIC,
        ErrorCode::InvalidArgument | ErrorCode::MalformedRequest => INVALID_REQUEST,
        ErrorCode::OutOfOrderSequence => OUT_OF_ORDER_SEQUENCE_NUMBER,
        ErrorCode::DuplicateSequence => DUPLICATE_SEQUENCE_NUMBER,
        ErrorCode::StaleProducerEpoch => INVALID_PRODUCER_EPOCH,
        ErrorCode::UnknownProducer => UNKNOWN_PRODUCER_ID,
        // Retried by every client: room comes back by itself or by an operator's hand, a restarted broker serves again.
        ErrorCode::DiskFull | ErrorCode::ShardFenced | ErrorCode::CorruptLog => KAFKA_STORAGE_ERROR,
        ErrorCode::ShuttingDown => NOT_LEADER_OR_FOLLOWER,
        ErrorCode::Overloaded => REQUEST_TIMED_OUT,
        ErrorCode::InvalidGroup => INVALID_GROUP_ID,
        ErrorCode::GroupNotFound => GROUP_ID_NOT_FOUND,
        ErrorCode::GroupNotEmpty => NON_EMPTY_GROUP,
        ErrorCode::GroupFull => GROUP_MAX_SIZE_REACHED,
        ErrorCode::UnknownMember => UNKNOWN_MEMBER_ID,
        ErrorCode::IllegalGeneration => ILLEGAL_GENERATION,
        ErrorCode::RebalanceInProgress => REBALANCE_IN_PROGRESS,
        ErrorCode::FencedInstance => FENCED_INSTANCE_ID,
        ErrorCode::InconsistentProtocol => INCONSISTENT_GROUP_PROTOCOL,
        ErrorCode::InvalidSessionTimeout => INVALID_SESSION_TIMEOUT,
        ErrorCode::OffsetMetadataTooLarge => OFFSET_METADATA_TOO_LARGE,
        ErrorCode::UnstableOffset => UNSTABLE_OFFSET_COMMIT,
        ErrorCode::ProducerFenced => PRODUCER_FENCED,
        ErrorCode::ConcurrentTransactions => CONCURRENT_TRANSACTIONS,
        ErrorCode::InvalidTransactionState => INVALID_TXN_STATE,
        ErrorCode::TransactionNotFound => TRANSACTIONAL_ID_NOT_FOUND,
        ErrorCode::ProducerMismatch => INVALID_PRODUCER_ID_MAPPING,
        ErrorCode::InvalidTransactionTimeout => INVALID_TRANSACTION_TIMEOUT,
        ErrorCode::InvalidTransactionalId => INVALID_REQUEST,
        ErrorCode::LimitExceeded | ErrorCode::QueueFull => POLICY_VIOLATION,
        ErrorCode::InvalidBatch => INVALID_RECORD,
        ErrorCode::UnsupportedOp | ErrorCode::UnsupportedVersion => UNSUPPORTED_VERSION,
        _ => UNKNOWN_SERVER_ERROR,
    }
}
