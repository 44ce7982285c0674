//! Requests and replies other than the records themselves: rkyv archives, little-endian and unaligned.
//!
//! Two kinds. *Fixed* messages (produce, fetch, list offsets) are a struct of known size. *Open* messages
//! hold strings and lists. On the wire either begins with the version of its layout, a u16; an open
//! message's archive follows 4 bytes after the start: `[version u16][0 u16][archive]`.
//! A reader refuses versions it doesn't know, and checks every byte before it looks at one.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Error, Failure, Strategy};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::ser::writer::Buffer;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

/// Version of the layouts in this module.
pub const CONTROL_VERSION: u16 = 1;
const PREFIX_BYTES: usize = 4;

/// Why a control message can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Fewer bytes than a version and an archive.
    Truncated,
    /// A layout this build doesn't know.
    UnknownVersion { got: u16 },
    /// The archive's bytes are inconsistent.
    Malformed,
}

impl std::fmt::Display for ControlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ControlError::Truncated => f.write_str("control message cut short"),
            ControlError::UnknownVersion { got } => {
                write!(f, "control message of version {got}; this build reads another: use a client and a broker of the same age")
            }
            ControlError::Malformed => f.write_str("control message with inconsistent bytes"),
        }
    }
}

impl std::error::Error for ControlError {}

/// The bytes of a fixed-size archive. `N` must be its size.
pub fn fixed_bytes<const N: usize, T>(value: &T) -> [u8; N]
where
    T: for<'a> Serialize<Strategy<Buffer<'a>, Failure>>,
{
    let mut bytes = [0; N];
    let written = rkyv::api::serialize_using::<_, Failure>(value, &mut Buffer::from(&mut bytes)).is_ok();
    debug_assert!(written, "fixed archive larger than its constant");
    bytes
}

/// Reads a fixed-size archive from the start of `bytes`.
pub fn read_fixed<T>(bytes: &[u8]) -> Result<T, ControlError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>> + Deserialize<T, HighDeserializer<Failure>>,
{
    let archived = bytes.get(..size_of::<T::Archived>()).ok_or(ControlError::Truncated)?;
    rkyv::from_bytes::<T, Failure>(archived).map_err(|_| ControlError::Malformed)
}

/// Appends an open message to `out`: version, archive.
pub fn write_open<T>(value: &T, out: &mut Vec<u8>)
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    write_open_as(CONTROL_VERSION, value, out);
}

/// The same with a version of its own.
pub fn write_open_as<T>(version: u16, value: &T, out: &mut Vec<u8>)
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    out.extend_from_slice(&u32::from(version).to_le_bytes());
    // Serialising owned strings and lists into memory has no error but exhausted memory.
    let archive = rkyv::to_bytes::<Error>(value).unwrap_or_default();
    out.extend_from_slice(&archive);
}

/// Reads an open message that fills `bytes`.
pub fn read_open<T>(bytes: &[u8]) -> Result<T, ControlError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>> + Deserialize<T, HighDeserializer<Failure>>,
{
    read_open_as(CONTROL_VERSION, bytes)
}

/// The same where its version must be this one.
pub fn read_open_as<T>(version: u16, bytes: &[u8]) -> Result<T, ControlError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>> + Deserialize<T, HighDeserializer<Failure>>,
{
    let (prefix, archive) = bytes.split_at_checked(PREFIX_BYTES).ok_or(ControlError::Truncated)?;
    let got = u16::from_le_bytes([prefix[0], prefix[1]]);
    if got != version {
        return Err(ControlError::UnknownVersion { got });
    }
    rkyv::from_bytes::<T, Failure>(archive).map_err(|_| ControlError::Malformed)
}

macro_rules! open {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
    )*};
}

macro_rules! fixed {
    ($($(#[$doc:meta])* $name:ident / $archived:ident [$bytes:literal] { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        impl $name {
            /// Size on the wire.
            pub const BYTES: usize = $bytes;
            /// The bytes on the wire.
            pub fn to_bytes(&self) -> [u8; $bytes] { fixed_bytes(self) }
            /// Reads it from the start of `bytes`; refuses other versions than [`CONTROL_VERSION`].
            pub fn read(bytes: &[u8]) -> Result<$name, ControlError> {
                let value: $name = read_fixed(bytes)?;
                if value.version != CONTROL_VERSION { return Err(ControlError::UnknownVersion { got: value.version }); }
                Ok(value)
            }
        }
        const _: () = assert!(size_of::<$archived>() == $bytes);
    )*};
}

pub(crate) use {fixed, open};

fixed! {
    /// Answer to a produce request, once the batch is as durable as its topic asks.
    ProduceReply / ArchivedProduceReply [24] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 1 = the batch had been stored before (idempotence); `base_offset` is the original's.
        duplicate: u16,
        /// So many of the batch's last records found a queue over the topic full: that queue passes them on to the topic that it redirects
        /// to, and they are as safe as the others. In the answer to a repeated batch those are missing that have been passed on already.
        redirected: u32,
        /// Offset of the batch's first record.
        base_offset: u64,
        /// When the broker appended it, ms since the Unix epoch.
        append_time_ms: i64,
    }
    /// Asks for records of one partition, from an offset on. Several may be pipelined.
    FetchRequest / ArchivedFetchRequest [32] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// The partition, from the metadata.
        partition: u32,
        /// First offset wanted. The reply may begin with records before it: skip them.
        offset: u64,
        /// Wait until so many bytes are there …
        min_bytes: u32,
        /// … but return no more than this, except that one batch is always returned whole.
        max_bytes: u32,
        /// … and answer after this many ms whatever there is.
        max_wait_ms: u32,
        /// [`TRANSCODE`], or 0.
        flags: u32,
    }
    /// Precedes the frames of a fetch reply; they fill the rest of the body.
    FetchReply / ArchivedFetchReply [32] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// The partition asked for.
        partition: u32,
        /// First offset that isn't readable yet.
        high_watermark: u64,
        /// First offset still stored.
        log_start: u64,
        /// Where to fetch next: the offset after the last record of this reply.
        next_offset: u64,
    }
    /// Asks for an offset of one partition.
    ListOffsets / ArchivedListOffsets [16] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// The partition, from the metadata.
        partition: u32,
        /// ≥ 0: the first record whose timestamp (ms since the Unix epoch) is at least this.
        /// −1 = the end (high watermark), −2 = the log start.
        timestamp_ms: i64,
    }
    /// Answer to [`ListOffsets`].
    ListOffsetsReply / ArchivedListOffsetsReply [24] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 1 = found; 0 = no record is that young, `offset` is the end.
        found: u16,
        /// 0.
        reserved: u32,
        /// The offset.
        offset: u64,
        /// Timestamp of the record found, ms since the Unix epoch; −1 for the end and the log start.
        timestamp_ms: i64,
    }
    /// A new idempotent producer.
    ProducerGrant / ArchivedProducerGrant [16] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// Epoch to send with it.
        producer_epoch: u16,
        /// 0.
        reserved: u32,
        /// Its id.
        producer_id: i64,
    }
}

/// In `FetchRequest::flags`: batches of another protocol are wanted as native ones.
pub const TRANSCODE: u32 = 1;
/// `ListOffsets::timestamp_ms` for the end.
pub const LATEST: i64 = -1;
/// `ListOffsets::timestamp_ms` for the log start.
pub const EARLIEST: i64 = -2;
/// As a timestamp between doors and shards: the record with the largest one. Not in the native protocol.
pub const NEWEST: i64 = -3;

open! {
    /// First request of a connection.
    Hello {
        /// Newest protocol version the client speaks.
        protocol_version: u16,
        /// Free text for logs, at most 256 bytes.
        client_name: String,
        /// Authentication mechanism; empty = none. No mechanism is served yet.
        auth_mechanism: String,
        /// Its first message.
        auth_data: Vec<u8>,
    }
    /// What the connection speaks from now on.
    HelloReply {
        /// The version in force.
        protocol_version: u16,
        /// The broker's version, for logs.
        broker_version: String,
        /// Identifies the data directory: changes when the client talks to another one.
        cluster_id: u64,
        /// Largest request body the broker takes, in bytes.
        max_request_bytes: u32,
        /// Most requests a connection may have unanswered; more are read only when replies leave.
        max_in_flight: u32,
    }
    /// Asks for topics and the shard map.
    MetadataRequest {
        /// `None` = every topic.
        topics: Option<Vec<String>>,
    }
    /// Where everything is.
    MetadataReply {
        /// Indexed by shard: the port (same host) of the core that owns it, 0 = the bootstrap port.
        shard_ports: Vec<u16>,
        /// The topics found; one that was asked for and doesn't exist is missing.
        topics: Vec<TopicInfo>,
    }
    /// A topic as the catalog has it.
    TopicInfo {
        /// Never reused.
        topic: u32,
        /// Its name.
        name: String,
        /// In order of their index within the topic.
        partitions: Vec<PartitionPlace>,
        /// Its settings.
        config: TopicConfig,
    }
    /// Where one partition lives.
    PartitionPlace {
        /// Number to put into frames and fetches.
        partition: u32,
        /// Index into `shard_ports`.
        shard: u16,
    }
    /// Settings of a topic. `None` = the broker's default.
    TopicConfig {
        /// When a produce is acknowledged.
        durability: Durability,
        /// Records older than this (by append time) may go. `None` = kept.
        retention_ms: Option<u64>,
        /// Bytes kept per partition. `None` = no limit.
        retention_bytes: Option<u64>,
        /// Largest frame, header included.
        max_message_bytes: u32,
        /// What is to become of old records.
        cleanup: Cleanup,
        /// A record's time is that of its appending, whatever its producer says. Only where the producer's protocol allows
        /// that to be changed.
        append_time: bool,
        /// Settings that have no effect here: kept for clients of other brokers, in order of name.
        notes: Vec<TopicNote>,
    }
    /// A setting that is kept and given back.
    TopicNote {
        /// At most 249 bytes.
        name: String,
        /// At most 1,024 bytes.
        value: String,
    }
    /// Sets a note, or takes it away.
    NoteChange {
        /// Which.
        name: String,
        /// `None` = away.
        value: Option<String>,
    }
    /// Creates a topic.
    CreateTopic {
        /// 1 to 249 characters of `a-z A-Z 0-9 . _ -`.
        name: String,
        /// At least 1.
        partition_count: u32,
        /// Its settings.
        config: TopicConfig,
    }
    /// Changes a topic; `None` = stays as it is.
    AlterTopic {
        /// Which.
        name: String,
        /// More partitions than now (never fewer).
        partition_count: Option<u32>,
        /// New durability.
        durability: Option<Durability>,
        /// `Some(None)` = no limit from now on.
        retention_ms: Option<Option<u64>>,
        /// `Some(None)` = no limit from now on.
        retention_bytes: Option<Option<u64>>,
        /// New limit.
        max_message_bytes: Option<u32>,
        /// New rule.
        cleanup: Option<Cleanup>,
        /// From now on.
        append_time: Option<bool>,
        /// Notes that change.
        notes: Vec<NoteChange>,
    }
    /// Names a topic.
    TopicName {
        /// The name.
        name: String,
    }
    /// A topic and the state of its partitions.
    TopicDescription {
        /// The catalog's view.
        info: TopicInfo,
        /// In order of index; the state of an unreachable (fenced) shard's partition is missing.
        partitions: Vec<PartitionState>,
    }
    /// One partition as its shard has it.
    PartitionState {
        /// Its number.
        partition: u32,
        /// First offset still stored.
        log_start: u64,
        /// First offset that isn't readable yet.
        high_watermark: u64,
        /// Bytes of its frames in the log.
        size_bytes: u64,
    }
    /// Remembers where a consumer is; answered when durable.
    CommitOffset {
        /// Name of the consumer, 1 to 255 bytes.
        consumer: String,
        /// The partition.
        partition: u32,
        /// The next offset it wants to read.
        offset: u64,
        /// Anything, at most 4,096 bytes; comes back with the offset.
        metadata: String,
    }
    /// Asks where a consumer is.
    ReadOffset {
        /// Name of the consumer.
        consumer: String,
        /// The partition.
        partition: u32,
    }
    /// Where a consumer is.
    ReadOffsetReply {
        /// `None` = nothing committed.
        offset: Option<u64>,
        /// As committed.
        metadata: String,
    }
    /// Asks for the broker's state.
    StatsRequest {
        /// 0.
        reserved: u32,
    }
    /// The broker's state, for `ringmain status`.
    StatsReply {
        /// The broker's version.
        broker_version: String,
        /// How it does I/O: `uring`, `fallback`.
        io: String,
        /// Why not io_uring, if not.
        io_note: String,
        /// Seconds since start.
        uptime_seconds: u64,
        /// One per shard.
        shards: Vec<ShardStats>,
        /// Open connections.
        connections: u64,
        /// Topics in the catalog.
        topics: u64,
        /// Partitions in the catalog.
        partitions: u64,
        /// Bytes charged to the memory budget.
        memory_used_bytes: u64,
        /// The memory budget.
        memory_limit_bytes: u64,
    }
    /// Counters of one shard since start.
    ShardStats {
        /// Which.
        shard: u16,
        /// The core it runs on.
        core: u16,
        /// Records appended.
        records_in: u64,
        /// Payload bytes appended (frames).
        bytes_in: u64,
        /// Bytes of frames sent to readers.
        bytes_out: u64,
        /// Commit groups written.
        commits: u64,
        /// Bytes written to the device, zero-fill included.
        device_bytes_written: u64,
        /// Bytes read from the device.
        device_bytes_read: u64,
        /// Segment files it owns.
        segments: u64,
        /// Why it refuses writes; empty = it doesn't.
        fenced: String,
    }
    /// What went wrong.
    ErrorReply {
        /// A number of [`crate::ErrorCode`].
        code: u16,
        /// For people: what was expected, what came, what to do.
        message: String,
    }
}

/// When a produce to a topic is acknowledged.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Durability {
    /// After the batch is on stable media.
    #[default]
    Durable = 0,
    /// After the device took the write; flushed within 10 ms or 4 MiB.
    Written = 1,
    /// At once; written in the background.
    Memory = 2,
}

/// What is to become of a topic's old records.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Cleanup {
    /// Retention by time and size.
    #[default]
    Delete = 0,
    /// The last record of every key is to stay. Until brokers can do that every record stays.
    Compact = 1,
    /// Both.
    CompactAndDelete = 2,
}

impl std::fmt::Display for Cleanup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cleanup::Delete => "delete",
            Cleanup::Compact => "compact",
            Cleanup::CompactAndDelete => "compact,delete",
        })
    }
}

impl AlterTopic {
    /// Changes nothing yet.
    pub fn nothing(name: impl Into<String>) -> AlterTopic {
        AlterTopic {
            name: name.into(),
            partition_count: None,
            durability: None,
            retention_ms: None,
            retention_bytes: None,
            max_message_bytes: None,
            cleanup: None,
            append_time: None,
            notes: Vec::new(),
        }
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Durability::Durable => "durable",
            Durability::Written => "written",
            Durability::Memory => "memory",
        })
    }
}

impl std::str::FromStr for Durability {
    type Err = String;
    fn from_str(text: &str) -> Result<Durability, String> {
        match text {
            "durable" => Ok(Durability::Durable),
            "written" => Ok(Durability::Written),
            "memory" => Ok(Durability::Memory),
            other => Err(format!("'{other}' is no durability; choose durable, written or memory")),
        }
    }
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        TopicConfig {
            durability: Durability::Durable,
            retention_ms: None,
            retention_bytes: None,
            max_message_bytes: crate::DEFAULT_MAX_MESSAGE_BYTES,
            cleanup: Cleanup::Delete,
            append_time: false,
            notes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_message_round_trips_and_refuses_other_versions() {
        let message = CreateTopic {
            name: "orders".into(),
            partition_count: 4,
            config: TopicConfig { retention_ms: Some(5), ..TopicConfig::default() },
        };
        let mut bytes = Vec::new();
        write_open(&message, &mut bytes);
        assert_eq!(read_open::<CreateTopic>(&bytes).unwrap(), message);
        bytes[0] = 9;
        assert_eq!(read_open::<CreateTopic>(&bytes), Err(ControlError::UnknownVersion { got: 9 }));
        assert_eq!(read_open::<CreateTopic>(&bytes[..2]), Err(ControlError::Truncated));
    }

    #[test]
    fn fixed_message_round_trips_and_starts_with_its_version() {
        let message = FetchRequest {
            version: CONTROL_VERSION,
            reserved: 0,
            partition: 3,
            offset: 1 << 40,
            min_bytes: 1,
            max_bytes: 2,
            max_wait_ms: 3,
            flags: 0,
        };
        let bytes = message.to_bytes();
        assert_eq!(bytes[..2], CONTROL_VERSION.to_le_bytes());
        assert_eq!(FetchRequest::read(&bytes).unwrap(), message);
        assert_eq!(FetchRequest::read(&bytes[..31]), Err(ControlError::Truncated));
    }

    proptest::proptest! {
        /// Random bytes are refused or read; they never panic.
        #[test]
        fn read_random_bytes_never_panics(mut input in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if input.len() > 2 { input[0] = 1; input[1] = 0; }
            let _ = read_open::<MetadataReply>(&input);
            let _ = read_open::<Hello>(&input);
            let _ = read_open::<AlterTopic>(&input);
            let _ = FetchRequest::read(&input);
        }
    }
}
