//! The bytes that Ringmain's broker and its clients agree on.
//!
//! No runtime, no I/O, no clock: only layouts and their checks. A frame has the same bytes on the
//! wire, in memory and on disk.
//!
//! | module | what it fixes |
//! |---|---|
//! | [`id`] | distinct types over integers |
//! | [`envelope`] | the 16 bytes before every request and reply |
//! | [`frame`] | the 64-byte header before every batch of records, and its two checksums |
//! | [`record`] | records inside a native batch |
//! | [`control`] | requests and replies other than the records themselves |
//! | [`group`] | consumer groups |
//! | [`queue`] | queues |
//! | [`transaction`] | transactions |
//! | [`code`] | stable error numbers |
//! | [`murmur2`] | key → partition, the same as Kafka's default partitioner |

pub mod code;
pub mod control;
pub mod crc;
pub mod envelope;
pub mod frame;
pub mod group;
pub mod id;
pub mod marker;
pub mod murmur2;
pub mod queue;
pub mod record;
pub mod transaction;

pub use code::ErrorCode;
pub use envelope::{Envelope, Op};
pub use frame::{BrokerHalf, Format, Frame, FrameError, FrameHeader, ProducerHalf};
pub use id::{Offset, PartitionId, ProducerId, ShardId, TopicId};
pub use record::{RecordBatchBuilder, RecordView, Records};

/// The protocol version this crate speaks; `Hello` negotiates down to the smaller of both sides.
pub const PROTOCOL_VERSION: u16 = 1;
/// Largest frame a broker accepts unless its topic says otherwise, header included, in bytes.
pub const DEFAULT_MAX_MESSAGE_BYTES: u32 = 1 << 20;
/// Largest `max.message.bytes` that can be configured, in bytes.
pub const MAX_MESSAGE_BYTES_LIMIT: u32 = 64 << 20;
/// Frames and records start at multiples of this many bytes.
pub const ALIGNMENT_BYTES: usize = 8;

/// `bytes` rounded up to the alignment of frames and records.
pub const fn align_up(bytes: usize) -> usize {
    (bytes + ALIGNMENT_BYTES - 1) & !(ALIGNMENT_BYTES - 1)
}
