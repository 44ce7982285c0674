//! What can go wrong, one enum per operation; every variant carries the values somebody needs to act.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringmain_wire::control::ControlError;
use ringmain_wire::{ErrorCode, FrameError, Op, record::RecordError};

/// The broker understood a request and refused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// What was asked.
    pub op: Op,
    /// Why it was refused; `Unknown` for the numbers of newer brokers.
    pub code: ErrorCode,
    /// The number as it came, for logs.
    pub number: u16,
    /// The broker's own words: what was expected, what came, what to do.
    pub message: String,
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} refused: {}", self.op, self.code)?;
        if self.code == ErrorCode::Unknown {
            write!(f, " (number {})", self.number)?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}

impl std::error::Error for BrokerError {}

/// What comes in isn't the native protocol, or not in this version of it. The connection is of no further use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// A reply announces more bytes than [`crate::session::SessionConfig::max_reply_bytes`].
    ReplyTooLarge {
        /// Bytes announced.
        len: u32,
        /// Bytes allowed.
        limit_bytes: u32,
    },
    /// The bytes at a reply's place aren't marked as one; most likely the port belongs to something else.
    NotAReply {
        /// The operation number found.
        op: u16,
        /// The flags found.
        flags: u16,
    },
    /// A reply to a question that wasn't asked or is answered already.
    UnknownCorrelation {
        /// The number in the reply.
        correlation: u64,
    },
    /// The reply to a question has another operation number.
    WrongOp {
        /// What was asked.
        expected: Op,
        /// The number in the reply.
        got: u16,
    },
    /// The body of a reply isn't what its operation says.
    Malformed {
        /// What was asked.
        op: Op,
        /// What is wrong with the bytes.
        error: ControlError,
    },
    /// The broker chose a protocol version that this build doesn't speak.
    VersionTooNew {
        /// The newest this build speaks.
        offered: u16,
        /// The broker's choice.
        got: u16,
    },
    /// The broker refused the connection's hello.
    Refused(BrokerError),
    /// The broker's data directory is another one than before: its partitions and offsets mean something else.
    OtherCluster {
        /// Number of the data directory before.
        expected: u64,
        /// Number of the data directory now.
        got: u64,
    },
    /// No answer came in time.
    TimedOut {
        /// What was asked.
        op: Op,
        /// How long ago.
        after: Duration,
    },
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::ReplyTooLarge { len, limit_bytes } => {
                write!(
                    f,
                    "a reply of {len} bytes was announced, at most {limit_bytes} are taken; raise max_reply_bytes if the topic's max.message.bytes is that large"
                )
            }
            SessionError::NotAReply { op, flags } => {
                write!(
                    f,
                    "expected a reply, got operation {op} with flags {flags:#06x}; is this the broker's native port (7171 by default)?"
                )
            }
            SessionError::UnknownCorrelation { correlation } => {
                write!(f, "reply to request {correlation}, which isn't open on this connection")
            }
            SessionError::WrongOp { expected, got } => write!(f, "reply of operation {got} to a request of operation {expected:?}"),
            SessionError::Malformed { op, error } => write!(f, "the reply to {op:?} can't be read: {error}"),
            SessionError::VersionTooNew { offered, got } => {
                write!(f, "the broker chose protocol version {got}, this client speaks up to {offered}; update the client")
            }
            SessionError::Refused(error) => write!(f, "the broker refused the connection: {error}"),
            SessionError::OtherCluster { expected, got } => {
                write!(
                    f,
                    "another broker answers: cluster {got:#x} instead of {expected:#x}; start again with a new client if that is meant"
                )
            }
            SessionError::TimedOut { op, after } => write!(f, "no answer to {op:?} for {after:?}"),
        }
    }
}

impl std::error::Error for SessionError {}

/// Why a connection couldn't be made or ended.
#[derive(Clone, Debug)]
pub enum ConnectionError {
    /// The address names no host.
    Resolve {
        /// As given.
        address: String,
        /// From the resolver.
        error: Arc<io::Error>,
    },
    /// Nothing answers there.
    Connect {
        /// Where.
        address: SocketAddr,
        /// From the system.
        error: Arc<io::Error>,
    },
    /// Reading or writing failed.
    Io(Arc<io::Error>),
    /// The other side closed it.
    Closed,
    /// The bytes that came are wrong.
    Session(SessionError),
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Resolve { address, error } => write!(f, "'{address}' is no address: {error}; expected HOST:PORT"),
            ConnectionError::Connect { address, error } => write!(f, "no connection to {address}: {error}; is the broker running there?"),
            ConnectionError::Io(error) => write!(f, "the connection failed: {error}"),
            ConnectionError::Closed => f.write_str("the broker closed the connection"),
            ConnectionError::Session(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConnectionError::Resolve { error, .. } | ConnectionError::Connect { error, .. } | ConnectionError::Io(error) => Some(&**error),
            ConnectionError::Session(error) => Some(error),
            ConnectionError::Closed => None,
        }
    }
}

impl From<SessionError> for ConnectionError {
    fn from(error: SessionError) -> ConnectionError {
        ConnectionError::Session(error)
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> ConnectionError {
        ConnectionError::Io(Arc::new(error))
    }
}

/// Why a single request (an administrative call, a frame produced by hand) has no answer.
#[derive(Clone, Debug)]
pub enum CallError {
    /// The broker refused it.
    Broker(BrokerError),
    /// There is no connection, or it ended before the answer. Whether a change was made isn't known then.
    Connection(ConnectionError),
    /// No answer within the timeout. Whether a change was made isn't known.
    TimedOut {
        /// What was asked.
        op: Op,
        /// How long was waited.
        after: Duration,
    },
    /// The answer can't be read.
    Malformed {
        /// What was asked.
        op: Op,
        /// What is wrong with the bytes.
        error: ControlError,
    },
    /// The request is larger than the broker takes.
    RequestTooLarge {
        /// Its size.
        bytes: usize,
        /// What the broker takes.
        limit_bytes: u32,
    },
    /// There is no topic of that name.
    UnknownTopic {
        /// The name.
        topic: String,
    },
    /// There is no queue of that name.
    UnknownQueue {
        /// The name.
        queue: String,
    },
    /// The answer is one to another question.
    UnexpectedAnswer {
        /// What was asked.
        op: Op,
    },
    /// The broker's metadata contradict themselves.
    Metadata(MetadataError),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Broker(error) => error.fmt(f),
            CallError::Connection(error) => error.fmt(f),
            CallError::TimedOut { op, after } => write!(f, "no answer to {op:?} within {after:?}"),
            CallError::Malformed { op, error } => write!(f, "the reply to {op:?} can't be read: {error}"),
            CallError::RequestTooLarge { bytes, limit_bytes } => write!(f, "the request has {bytes} bytes, the broker takes {limit_bytes}"),
            CallError::UnknownTopic { topic } => write!(f, "there is no topic '{topic}'; create it first (ringmain topic create)"),
            CallError::UnknownQueue { queue } => write!(f, "there is no queue '{queue}'; create it first (ringmain queue create)"),
            CallError::UnexpectedAnswer { op } => write!(f, "the reply to {op:?} answers another question"),
            CallError::Metadata(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CallError::Broker(error) => Some(error),
            CallError::Connection(error) => Some(error),
            CallError::Malformed { error, .. } => Some(error),
            CallError::Metadata(error) => Some(error),
            _ => None,
        }
    }
}

impl From<BrokerError> for CallError {
    fn from(error: BrokerError) -> CallError {
        CallError::Broker(error)
    }
}

impl From<ConnectionError> for CallError {
    fn from(error: ConnectionError) -> CallError {
        CallError::Connection(error)
    }
}

impl From<MetadataError> for CallError {
    fn from(error: MetadataError) -> CallError {
        CallError::Metadata(error)
    }
}

/// Why a topic can't be worked with according to the broker's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataError {
    /// It isn't there.
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// It was deleted, and another topic of the same name created since.
    Replaced {
        /// Its name.
        topic: String,
        /// The number it had.
        expected: u32,
        /// The number it has.
        got: u32,
    },
    /// It has no partitions, or fewer than before.
    PartitionsMissing {
        /// Its name.
        topic: String,
        /// Least number expected.
        expected: u32,
        /// Number found.
        got: u32,
    },
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataError::UnknownTopic { topic } => {
                write!(f, "there is no topic '{topic}' (any more); create it first (ringmain topic create)")
            }
            MetadataError::Replaced { topic, expected, got } => {
                write!(
                    f,
                    "topic '{topic}' was deleted and created again (number {expected} became {got}); start again with a new producer or consumer"
                )
            }
            MetadataError::PartitionsMissing { topic, expected, got } => {
                write!(f, "the broker lists {got} partitions for topic '{topic}', at least {expected} were expected")
            }
        }
    }
}

impl std::error::Error for MetadataError {}

/// Why a record wasn't taken into the producer's buffer. Nothing of it is sent.
#[derive(Clone, Debug)]
pub enum SendError {
    /// The record alone exceeds the topic's `max.message.bytes`, the broker's largest request, or the buffer.
    RecordTooLarge {
        /// Size of a batch with only this record.
        batch_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The buffer has no room. Blocking and async senders wait instead of returning this.
    BufferFull {
        /// Bytes in the buffer.
        buffered_bytes: usize,
        /// Its size.
        limit_bytes: usize,
    },
    /// The topic has no partition of that index.
    NoSuchPartition {
        /// Index asked for.
        index: u32,
        /// Partitions of the topic; valid are 0 up to this, exclusive.
        partition_count: u32,
    },
    /// This producer has ended.
    Ended(ProducerEnd),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::RecordTooLarge { batch_bytes, limit_bytes } => {
                write!(
                    f,
                    "the record makes a batch of {batch_bytes} bytes, at most {limit_bytes} are taken; raise max.message.bytes of the topic or send less"
                )
            }
            SendError::BufferFull { buffered_bytes, limit_bytes } => {
                write!(f, "{buffered_bytes} of {limit_bytes} bytes are waiting to be acknowledged; wait, or raise buffer_bytes")
            }
            SendError::NoSuchPartition { index, partition_count } => {
                write!(f, "partition {index} was asked for, the topic has {partition_count} (counted from 0)")
            }
            SendError::Ended(end) => end.fmt(f),
        }
    }
}

impl std::error::Error for SendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SendError::Ended(end) => Some(end),
            _ => None,
        }
    }
}

/// Why a producer takes and sends nothing any more. Make a new one to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProducerEnd {
    /// The broker no longer knows this producer, or sees a gap in its sequence, although every batch before
    /// was acknowledged: records may be lost at the broker.
    SequenceLost {
        /// Index of the partition.
        partition_index: u32,
        /// The broker's answer.
        error: BrokerError,
    },
    /// A newer instance took over this producer's id.
    Superseded {
        /// The broker's answer.
        error: BrokerError,
    },
    /// A batch that may or may not be stored had to be given up; going on could repeat or reorder records.
    Ambiguous {
        /// Index of the partition.
        partition_index: u32,
        /// Why it was given up.
        reason: String,
    },
    /// The topic is gone or isn't the same any more.
    Topic(MetadataError),
    /// It was closed by its owner.
    Closed,
}

impl fmt::Display for ProducerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProducerEnd::SequenceLost { partition_index, error } => {
                write!(
                    f,
                    "the broker lost track of this producer in partition {partition_index}: {error}; check the last records, then start a new producer"
                )
            }
            ProducerEnd::Superseded { error } => write!(f, "another instance of this producer took over: {error}"),
            ProducerEnd::Ambiguous { partition_index, reason } => write!(
                f,
                "a batch for partition {partition_index} was given up ({reason}) and may or may not be stored; check the last records, then start a new producer"
            ),
            ProducerEnd::Topic(error) => error.fmt(f),
            ProducerEnd::Closed => f.write_str("the producer is closed"),
        }
    }
}

impl std::error::Error for ProducerEnd {}

/// Why a batch wasn't acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryError {
    /// The broker refused it for good.
    Refused {
        /// The broker's answer.
        error: BrokerError,
        /// Whether it may be stored all the same (the storage failed while it was written, say).
        maybe_stored: bool,
    },
    /// It wasn't acknowledged within the delivery timeout.
    TimedOut {
        /// The timeout.
        after: Duration,
        /// Whether it was sent at least once, so that it may be stored all the same.
        maybe_stored: bool,
        /// The last problem met on the way, if any.
        last_problem: Option<String>,
    },
    /// The producer ended first.
    Ended {
        /// Why.
        end: ProducerEnd,
        /// Whether it was sent at least once, so that it may be stored all the same.
        maybe_stored: bool,
    },
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = |maybe_stored: bool| if maybe_stored { "it may be stored all the same" } else { "it isn't stored" };
        match self {
            DeliveryError::Refused { error, maybe_stored } => write!(f, "{error}; {}", fate(*maybe_stored)),
            DeliveryError::TimedOut { after, maybe_stored, last_problem } => {
                write!(f, "the batch wasn't acknowledged within {after:?}; {}", fate(*maybe_stored))?;
                last_problem.as_ref().map_or(Ok(()), |problem| write!(f, "; last problem: {problem}"))
            }
            DeliveryError::Ended { end, maybe_stored } => write!(f, "the batch wasn't acknowledged; {}: {end}", fate(*maybe_stored)),
        }
    }
}

impl std::error::Error for DeliveryError {}

/// Records that were taken but not acknowledged, found by a flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushError {
    /// How many since the flush before.
    pub failed_records: u64,
    /// Why the first of them wasn't.
    pub first: DeliveryError,
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records weren't acknowledged; the first: {}", self.failed_records, self.first)
    }
}

impl std::error::Error for FlushError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.first)
    }
}

/// Why a consumer can't give the next records. Polling again retries, except where the variant says otherwise.
#[derive(Clone, Debug)]
pub enum ConsumeError {
    /// The broker refused a fetch, a look-up or a commit for good.
    Broker {
        /// Index of the partition.
        partition_index: u32,
        /// The broker's answer.
        error: BrokerError,
    },
    /// The position isn't in the partition any more (or not yet), and the consumer was told to fail then.
    /// Seek, or choose another `out_of_range`; polling again asks again.
    OutOfRange {
        /// Index of the partition.
        partition_index: u32,
        /// The position asked for.
        offset: u64,
    },
    /// A batch doesn't match its checksums or isn't whole. Polling again fetches it again.
    Frame {
        /// Index of the partition.
        partition_index: u32,
        /// Position it was expected at.
        offset: u64,
        /// What is wrong.
        error: FrameError,
    },
    /// A batch has a valid checksum but its records are inconsistent: a faulty producer wrote it.
    /// Seek to `next_offset` to go past it.
    Records {
        /// Index of the partition.
        partition_index: u32,
        /// Offset of the batch's first record.
        offset: u64,
        /// The offset after the batch.
        next_offset: u64,
        /// What is wrong.
        error: RecordError,
    },
    /// A batch was written through another door and can't be read by this client yet.
    /// Seek to `next_offset` to go past it.
    UnsupportedFormat {
        /// Index of the partition.
        partition_index: u32,
        /// Offset of the batch's first record.
        offset: u64,
        /// The offset after the batch.
        next_offset: u64,
        /// A number of [`ringmain_wire::Format`].
        format: u8,
    },
    /// A reply's parts contradict each other. Polling again fetches it again.
    BadReply {
        /// Index of the partition.
        partition_index: u32,
        /// Position asked for.
        offset: u64,
        /// What was expected, what came.
        problem: String,
    },
    /// The topic is gone or isn't the same any more: this consumer has ended.
    Topic(MetadataError),
    /// Committing needs a consumer name, and none was configured.
    NoName,
    /// A commit wasn't answered in time; it may be stored all the same.
    CommitTimedOut {
        /// How long was waited.
        after: Duration,
        /// The last problem met with a connection, if any.
        last_problem: Option<String>,
    },
    /// The topic has no partition of that index, or this consumer doesn't read it.
    NoSuchPartition {
        /// Index asked for.
        index: u32,
        /// Partitions of the topic.
        partition_count: u32,
    },
}

impl fmt::Display for ConsumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsumeError::Broker { partition_index, error } => write!(f, "partition {partition_index}: {error}"),
            ConsumeError::OutOfRange { partition_index, offset } => {
                write!(f, "offset {offset} isn't in partition {partition_index}; list its offsets and seek, or set out_of_range")
            }
            ConsumeError::Frame { partition_index, offset, error } => {
                write!(f, "partition {partition_index}, batch at offset {offset}: {error}")
            }
            ConsumeError::Records { partition_index, offset, next_offset, error } => {
                write!(f, "partition {partition_index}, batch at offset {offset}: {error}; seek to {next_offset} to go past it")
            }
            ConsumeError::UnsupportedFormat { partition_index, offset, next_offset, format } => write!(
                f,
                "partition {partition_index}, batch at offset {offset} has format {format} (1 = Kafka, 2 = AMQP), this client reads format 0; read it through that protocol, or seek to {next_offset} to go past it"
            ),
            ConsumeError::BadReply { partition_index, offset, problem } => {
                write!(f, "partition {partition_index}, fetch from offset {offset}: {problem}")
            }
            ConsumeError::Topic(error) => error.fmt(f),
            ConsumeError::NoName => f.write_str("a commit needs the consumer's name; set ConsumerConfig::name (1 to 255 bytes)"),
            ConsumeError::CommitTimedOut { after, last_problem } => {
                write!(f, "the commit wasn't answered within {after:?}; it may be stored all the same")?;
                last_problem.as_ref().map_or(Ok(()), |problem| write!(f, "; last problem: {problem}"))
            }
            ConsumeError::NoSuchPartition { index, partition_count } => {
                write!(f, "partition {index} isn't read by this consumer; the topic has {partition_count} (counted from 0)")
            }
        }
    }
}

impl std::error::Error for ConsumeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConsumeError::Broker { error, .. } => Some(error),
            ConsumeError::Frame { error, .. } => Some(error),
            ConsumeError::Records { error, .. } => Some(error),
            ConsumeError::Topic(error) => Some(error),
            _ => None,
        }
    }
}
