//! Queues in the native protocol. A queue is a cursor over a topic: what it has delivered, what was acknowledged. Any number
//! of queues can read one topic, and its records stay readable by offset.
//!
//! Published is with [`crate::Op::Produce`], into the queue's topic; what a queue looks at besides (delay, priority, time to
//! live) are headers with the reserved names of [`name`], and the frame says so with
//! [`crate::frame::flags::QUEUE_HEADERS`]. Received is with [`QueueReceive`], a request that waits: a client that keeps some
//! unanswered has messages pushed to it, as many as it has asked for. Every message is then settled ([`Settlement`]).
//!
//! A queue over several partitions is as many cursors: order, priority and limits hold for each.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Error, Failure};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::align_up;
use crate::control::{
    CONTROL_VERSION, ControlError, Durability, PartitionPlace, fixed, fixed_bytes, open, read_fixed, read_open_as, write_open_as,
};

/// Names of record headers that queues look at.
pub mod name {
    /// Not before: i64, little-endian, ms since the Unix epoch.
    pub const DUE_MS: &[u8] = &[1];
    /// u8; higher goes first.
    pub const PRIORITY: &[u8] = &[2];
    /// Expires so long after it was appended: u64, little-endian, ms.
    pub const TTL_MS: &[u8] = &[3];
    /// A word to filter by, UTF-8.
    pub const TAG: &[u8] = &[4];
    /// The publisher's name for the message, UTF-8.
    pub const MESSAGE_ID: &[u8] = &[5];

    /// On a dead-lettered message: `rejected`, `delivery-limit`, `expired`, `queue-full`.
    pub const DEAD_REASON: &[u8] = b"dead-letter-reason";
    /// … the queue it was in.
    pub const DEAD_QUEUE: &[u8] = b"dead-letter-queue";
    /// … where, as `topic:partition:offset`, the partition counted from 0: the same message has the same place, also if it comes twice.
    pub const DEAD_PLACE: &[u8] = b"dead-letter-place";
    /// … when, decimal ms since the Unix epoch.
    pub const DEAD_TIME: &[u8] = b"dead-letter-time";
    /// … how often it had been delivered, decimal.
    pub const DEAD_COUNT: &[u8] = b"dead-letter-count";
}

/// Longest name of a queue, in bytes; the characters are those of topics.
pub const QUEUE_NAME_MAX_BYTES: usize = 249;
/// Most messages of one [`QueueReceive`].
pub const RECEIVE_MESSAGES_MAX: u32 = 65_536;
/// Longest wait of one [`QueueReceive`], in ms.
pub const RECEIVE_WAIT_MAX_MS: u32 = 60_000;
/// Most settlements of one request.
pub const SETTLEMENTS_MAX: usize = 65_536;
/// Longest filter, in bytes.
pub const FILTER_MAX_BYTES: usize = 4_096;

/// What is done with a message that would make a queue longer than it may be.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Overflow {
    /// The publisher is told (`QueueFull`), and the topic doesn't get it.
    #[default]
    Reject = 0,
    /// The oldest ready message goes, to the dead-letter topic if there is one.
    DropHead = 1,
    /// It is stored in another topic instead; the publisher is told that it is safe there.
    Redirect = 2,
}

/// How long a message that comes back waits for its next delivery.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backoff {
    /// Not at all.
    #[default]
    None,
    /// So long.
    Fixed { ms: u64 },
    /// So long times the deliveries so far, at most `cap_ms`.
    Linear { ms: u64, cap_ms: u64 },
    /// So long, doubled with every delivery but the first, at most `cap_ms`.
    Exponential { ms: u64, cap_ms: u64 },
}

impl Backoff {
    /// Wait after `deliveries` ≥ 1 in vain, in ms.
    pub fn wait_ms(self, deliveries: u32) -> u64 {
        let deliveries = u64::from(deliveries.max(1));
        match self {
            Backoff::None => 0,
            Backoff::Fixed { ms } => ms,
            Backoff::Linear { ms, cap_ms } => ms.saturating_mul(deliveries).min(cap_ms),
            Backoff::Exponential { ms, cap_ms } => {
                let factor = 1u64.checked_shl(deliveries.min(64) as u32 - 1).unwrap_or(u64::MAX);
                ms.saturating_mul(factor).min(cap_ms)
            }
        }
    }
}

/// Settings of a queue.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// A new queue begins with what its topic has stored; else with what comes after its creation.
    pub from_beginning: bool,
    /// A record of the topic goes when every queue over it has settled it, also from between others that stay: offsets then have gaps.
    pub drop_acked: bool,
    /// A message not settled so long after its delivery comes back.
    pub ack_timeout_ms: u64,
    /// A message delivered so often goes to `dead_letter`, or away, instead of being delivered again. `None` = no limit.
    pub delivery_limit: Option<u32>,
    /// Topic for messages that are rejected, expired, delivered too often or pushed out. `None` = they go away.
    pub dead_letter: Option<String>,
    /// Before a message is delivered again.
    pub backoff: Backoff,
    /// Levels of priority, 1 to 256; 1 = first come, first served. Higher levels go first, each in order.
    pub priorities: u16,
    /// A ready message expires so long after it was appended, unless it says sooner itself.
    pub ttl_ms: Option<u64>,
    /// Messages not settled yet, per partition; beyond, `overflow`.
    pub max_length: Option<u64>,
    /// What becomes of a message too many.
    pub overflow: Overflow,
    /// For [`Overflow::Redirect`]: the topic.
    pub redirect: Option<String>,
    /// Messages of one key are in flight at one consumer at a time, in order.
    pub key_ordered: bool,
    /// Only one consumer is served at a time; the next one takes over when it leaves.
    pub single_active: bool,
    /// A second consumer is refused.
    pub exclusive: bool,
    /// Deliveries per second and partition. `None` = no limit.
    pub rate_per_second: Option<u32>,
    /// Nothing is delivered.
    pub paused: bool,
    /// Only messages for which this holds; others count as settled. Empty = all.
    pub filter: String,
    /// Bytes of keys, values and headers of messages not settled yet, per partition; beyond, `overflow`. Such a queue looks at every message
    /// when it comes and remembers its size; what it hasn't looked at yet counts with the bytes of its frames.
    pub max_bytes: Option<u64>,
    /// A queue without consumers that nobody has received from, settled in or asked about for so long is deleted. Counts anew when the broker
    /// starts.
    pub expires_ms: Option<u64>,
    /// A new queue begins with the last so many records of each partition, whatever `from_beginning` says. 1 = with a retained message.
    pub from_last: Option<u64>,
    /// A message with a [`name::MESSAGE_ID`] that the partition took less than so long ago isn't stored again, for all queues over the topic.
    /// Messages published in transactions are always stored.
    pub dedup_window_ms: Option<u64>,
}

impl Default for QueueConfig {
    fn default() -> QueueConfig {
        QueueConfig {
            from_beginning: true,
            drop_acked: false,
            ack_timeout_ms: 30 * 60_000,
            delivery_limit: Some(20),
            dead_letter: None,
            backoff: Backoff::None,
            priorities: 1,
            ttl_ms: None,
            max_length: None,
            overflow: Overflow::Reject,
            redirect: None,
            key_ordered: false,
            single_active: false,
            exclusive: false,
            rate_per_second: None,
            paused: false,
            filter: String::new(),
            max_bytes: None,
            expires_ms: None,
            from_last: None,
            dedup_window_ms: None,
        }
    }
}

/// Version of the layouts of [`CreateQueue`], [`AlterQueue`], [`QueueInfo`] and [`QueueList`]: those that hold a [`QueueConfig`].
pub const QUEUE_VERSION: u16 = 2;

/// Appends one of them.
pub fn write_config<T>(value: &T, out: &mut Vec<u8>)
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    write_open_as(QUEUE_VERSION, value, out);
}

/// Reads one of them. Errors: another version, damage.
pub fn read_config<T>(bytes: &[u8]) -> Result<T, ControlError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>> + Deserialize<T, HighDeserializer<Failure>>,
{
    read_open_as(QUEUE_VERSION, bytes)
}

open! {
    /// Creates a queue, and its topic if that isn't there.
    CreateQueue {
        /// As a topic's.
        name: String,
        /// What it reads; empty = the topic of the same name.
        topic: String,
        /// Of a topic that has to be created; at least 1.
        partition_count: u32,
        /// Of a topic that has to be created.
        durability: Durability,
        /// Settings.
        config: QueueConfig,
    }
    /// Gives a queue other settings, all of them.
    AlterQueue {
        /// Which.
        name: String,
        /// All of them. `from_beginning` has no effect any more.
        config: QueueConfig,
    }
    /// Names a queue.
    QueueName {
        /// The name.
        name: String,
    }
    /// Asks for queues.
    ListQueues {
        /// `None` = every queue.
        names: Option<Vec<String>>,
    }
    /// The queues found; one that was asked for and doesn't exist is missing.
    QueueList {
        /// Indexed by shard: the port (same host) of the core that owns it, 0 = the bootstrap port.
        shard_ports: Vec<u16>,
        /// In order of name.
        queues: Vec<QueueInfo>,
    }
    /// A queue as the catalog has it.
    QueueInfo {
        /// Never reused.
        queue: u32,
        /// Its name.
        name: String,
        /// What it reads.
        topic: String,
        /// The topic's partitions, in order of index.
        partitions: Vec<PartitionPlace>,
        /// Settings.
        config: QueueConfig,
    }
    /// Something about a queue in one partition that isn't on the way of messages.
    QueueRequest {
        /// Which.
        queue: u32,
        /// Where.
        partition: u32,
        /// What.
        call: QueueCall,
    }
    /// A queue in one partition, in numbers. The states of a message add up to `enqueued`.
    QueueState {
        /// First offset not settled.
        floor: u64,
        /// Messages that it ever had: everything in the partition since its beginning.
        enqueued: u64,
        /// Can be delivered now.
        ready: u64,
        /// Wait for their time, or to be tried again.
        delayed: u64,
        /// Delivered and not settled.
        in_flight: u64,
        /// Acknowledged, or purged by hand.
        acked: u64,
        /// Sent to the dead-letter topic.
        dead_lettered: u64,
        /// Dropped without having been acknowledged: expired, delivered too often without a dead-letter topic, pushed out,
        /// gone from the log, or left out by the filter.
        dropped: u64,
        /// Of them in flight or tried again: deliveries after the first since the start.
        redelivered: u64,
        /// Consumers that have asked.
        consumers: u32,
        /// Receives that wait.
        waiting: u32,
    }
    /// A message that waits for its time.
    Delayed {
        /// Which.
        offset: u64,
        /// When, ms since the Unix epoch.
        due_ms: i64,
        /// Deliveries so far: 0 = it was published with a delay.
        deliveries: u32,
    }
}

/// What can be asked of a queue.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum QueueCall {
    /// → [`QueueAnswer::State`].
    Describe,
    /// Every message that isn't in flight is settled → [`QueueAnswer::Count`], when durable.
    Purge,
    /// Goes on from an offset, whatever was settled before; what is in flight can't be settled any more. → [`QueueAnswer::Count`]
    /// of messages now before it, when durable.
    Seek { offset: u64 },
    /// Messages waiting for their time, by that, from `after` (time, offset) on → [`QueueAnswer::Delayed`].
    ListDelayed { after: Option<(i64, u64)>, max: u32 },
    /// A waiting message can be delivered now → [`QueueAnswer::Count`] 0 or 1, when durable.
    DeliverNow { offset: u64 },
    /// A waiting message is settled → [`QueueAnswer::Count`] 0 or 1, when durable.
    Cancel { offset: u64 },
    /// Messages that aren't settled, from an offset on: their offsets, as ready or not → [`QueueAnswer::Unsettled`].
    ListUnsettled { from: u64, max: u32 },
    /// A consumer of this connection leaves; what it has in flight comes back → [`QueueAnswer::Count`] of that.
    Leave { consumer: u32 },
}

/// Answers to [`QueueCall`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum QueueAnswer {
    /// In numbers.
    State(QueueState),
    /// So many messages.
    Count(u64),
    /// In order of time.
    Delayed(Vec<Delayed>),
    /// In order of offset: `(offset, deliveries)`.
    Unsettled(Vec<(u64, u32)>),
}

fixed! {
    /// Asks for messages of a queue in one partition, 40 bytes. Answered when there is one, or when the wait is over.
    QueueReceive / ArchivedQueueReceive [40] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// Consumers of higher priority are served first; others only while those wait for nothing.
        consumer_priority: i16,
        /// From the catalog.
        queue: u32,
        /// From the catalog.
        partition: u32,
        /// Chosen by the client, unique on its connection: who may settle what is delivered.
        consumer: u32,
        /// At most so many; 1 to [`RECEIVE_MESSAGES_MAX`].
        max_messages: u32,
        /// At most so many bytes of messages, except that one is always delivered whole.
        max_bytes: u32,
        /// Answer empty after so many ms; at most [`RECEIVE_WAIT_MAX_MS`].
        max_wait_ms: u32,
        /// 0.
        reserved: u32,
        /// 0.
        reserved_too: u64,
    }

    /// Before the messages of an answer to [`QueueReceive`], 16 bytes; [`Deliveries`] reads those.
    QueueReceived / ArchivedQueueReceived [16] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// Where they are from.
        partition: u32,
        /// Messages that follow.
        count: u32,
        /// 0.
        reserved_too: u32,
    }

    /// Before the settlements of a request, 16 bytes.
    QueueSettle / ArchivedQueueSettle [16] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// Which.
        queue: u32,
        /// Where.
        partition: u32,
        /// Who received them.
        consumer: u32,
    }

    /// Before the acknowledgements of a request in a transaction, 32 bytes. The messages stay in flight until that is decided:
    /// committed, they are acknowledged; aborted, they are as they were.
    QueueStage / ArchivedQueueStage [32] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// Epoch of the producer: which transaction.
        producer_epoch: u16,
        /// Which.
        queue: u32,
        /// Where.
        partition: u32,
        /// Who received them.
        consumer: u32,
        /// Whose transaction.
        producer_id: i64,
        /// 0.
        reserved: u64,
    }

    /// Answer to a settle request, 16 bytes, once it is durable.
    QueueSettled / ArchivedQueueSettled [16] {
        /// [`CONTROL_VERSION`].
        version: u16,
        /// 0.
        reserved: u16,
        /// Messages settled.
        settled: u32,
        /// Single messages named that this consumer doesn't hold (any more): another may have them, or they are settled.
        refused: u32,
        /// 0.
        reserved_too: u32,
    }
}

/// Some messages of one consumer and what becomes of them, 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The first offset …
    pub first: u64,
    /// … and how many offsets; those that the consumer doesn't hold are passed over.
    pub count: u32,
    /// What.
    pub verb: Verb,
    /// [`Verb::Requeue`]: not before so many ms, on top of what the queue's settings say. [`Verb::Extend`]: so many ms from now.
    pub delay_ms: u64,
}

/// What becomes of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// It is done.
    Ack = 0,
    /// It comes back, at its old place.
    Requeue = 1,
    /// It goes to the dead-letter topic, or away.
    Reject = 2,
    /// It stays, with a new deadline. Not logged: a restart brings it back anyway.
    Extend = 3,
}

impl Verb {
    /// The verb of that number.
    pub fn from_number(number: u8) -> Option<Verb> {
        [Verb::Ack, Verb::Requeue, Verb::Reject, Verb::Extend].into_iter().find(|verb| *verb as u8 == number)
    }
}

impl Settlement {
    /// Size on the wire: `[first u64][delay_ms u64][count u32][verb u8][0; 3]`, little-endian.
    pub const BYTES: usize = 24;

    /// The bytes on the wire.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.delay_ms.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20] = self.verb as u8;
        bytes
    }

    /// Reads one; `None` = too short, or an unknown verb.
    pub fn read(bytes: &[u8]) -> Option<Settlement> {
        let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let count = u32::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
        Some(Settlement { first: word(0)?, delay_ms: word(8)?, count, verb: Verb::from_number(*bytes.get(20)?)? })
    }
}

/// One message as a queue delivers it, borrowed.
///
/// On the wire `[offset u64][append_time_ms i64][timestamp_ms i64][key_len i32][value_len i32][headers_len u32][deliveries u16]
/// [flags u16]`, little-endian, 40 bytes; then key, headers and value, padded with zeros to a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryView<'a> {
    /// Its place in the partition.
    pub offset: u64,
    /// When the broker appended it, ms since the Unix epoch.
    pub append_time_ms: i64,
    /// As the publisher set it, ms since the Unix epoch.
    pub timestamp_ms: i64,
    /// Deliveries, this one included; 32,767 = that many or more. After a crash it may be one too many for each crash.
    pub deliveries: u16,
    /// `None` = null.
    pub key: Option<&'a [u8]>,
    /// `None` = null.
    pub value: Option<&'a [u8]>,
    /// Encoded, read with [`crate::record::headers`].
    pub headers: &'a [u8],
}

impl<'a> DeliveryView<'a> {
    /// Bytes before the key.
    pub const HEADER_BYTES: usize = 40;

    /// What it takes on the wire.
    pub fn wire_bytes(&self) -> usize {
        align_up(Self::HEADER_BYTES + self.key.map_or(0, <[u8]>::len) + self.headers.len() + self.value.map_or(0, <[u8]>::len))
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.wire_bytes();
        let length = |part: Option<&[u8]>| part.map_or(-1, |part| part.len() as i32);
        let mut head = [0; DeliveryView::HEADER_BYTES];
        head[..8].copy_from_slice(&self.offset.to_le_bytes());
        head[8..16].copy_from_slice(&self.append_time_ms.to_le_bytes());
        head[16..24].copy_from_slice(&self.timestamp_ms.to_le_bytes());
        head[24..28].copy_from_slice(&length(self.key).to_le_bytes());
        head[28..32].copy_from_slice(&length(self.value).to_le_bytes());
        head[32..36].copy_from_slice(&(self.headers.len() as u32).to_le_bytes());
        head[36..38].copy_from_slice(&self.deliveries.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(self.key.unwrap_or_default());
        out.extend_from_slice(self.headers);
        out.extend_from_slice(self.value.unwrap_or_default());
        out.resize(end, 0);
    }

    /// Reads the one at the start of `bytes`, and says how many bytes it takes; `None` = impossible lengths.
    pub fn read(bytes: &'a [u8]) -> Option<(DeliveryView<'a>, usize)> {
        let head: &[u8; DeliveryView::HEADER_BYTES] = bytes.first_chunk()?;
        let word = |at: usize| u64::from_le_bytes(*head[at..].first_chunk().unwrap_or(&[0; 8]));
        let half = |at: usize| i32::from_le_bytes(*head[at..].first_chunk().unwrap_or(&[0; 4]));
        let (key_len, value_len) = (half(24), half(28));
        if key_len < -1 || value_len < -1 {
            return None;
        }
        let (key_bytes, value_bytes, headers_bytes) = (key_len.max(0) as usize, value_len.max(0) as usize, half(32) as u32 as usize);
        let end = Self::HEADER_BYTES.checked_add(key_bytes)?.checked_add(headers_bytes)?.checked_add(value_bytes)?;
        let body = bytes.get(Self::HEADER_BYTES..end)?;
        let (key, rest) = body.split_at(key_bytes);
        let (headers, value) = rest.split_at(headers_bytes);
        let view = DeliveryView {
            offset: word(0),
            append_time_ms: word(8) as i64,
            timestamp_ms: word(16) as i64,
            deliveries: u16::from_le_bytes([head[36], head[37]]),
            key: (key_len >= 0).then_some(key),
            value: (value_len >= 0).then_some(value),
            headers,
        };
        Some((view, align_up(end).min(bytes.len())))
    }
}

/// The messages behind a [`QueueReceived`]. `None` as an item = the bytes are malformed from here on.
#[derive(Clone, Debug)]
pub struct Deliveries<'a> {
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Deliveries<'a> {
    /// `bytes`: what follows the head, which says how many.
    pub fn new(bytes: &'a [u8], count: u32) -> Deliveries<'a> {
        Deliveries { bytes, left: count }
    }
}

impl<'a> Iterator for Deliveries<'a> {
    type Item = Option<DeliveryView<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let read = DeliveryView::read(self.bytes);
        match read {
            Some((_, bytes)) => self.bytes = &self.bytes[bytes..],
            None => self.left = 0,
        }
        Some(read.map(|(view, _)| view))
    }
}

/// What a queue looks at in a record's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueHeaders<'a> {
    /// Not before, ms since the Unix epoch.
    pub due_ms: Option<i64>,
    /// Higher goes first.
    pub priority: u8,
    /// After it was appended.
    pub ttl_ms: Option<u64>,
    /// To filter by.
    pub tag: Option<&'a [u8]>,
    /// The publisher's.
    pub message_id: Option<&'a [u8]>,
}

impl<'a> QueueHeaders<'a> {
    /// Reads encoded headers. What has no sense is passed over: it is the publisher's loss, and nobody else's.
    pub fn read(encoded: &'a [u8]) -> QueueHeaders<'a> {
        let mut found = QueueHeaders::default();
        for (header, value) in crate::record::headers(encoded).map_while(|header| header) {
            let value = value.unwrap_or_default();
            match header {
                name::DUE_MS => found.due_ms = value.try_into().ok().map(i64::from_le_bytes).or(found.due_ms),
                name::PRIORITY => found.priority = value.first().copied().unwrap_or(found.priority),
                name::TTL_MS => found.ttl_ms = value.try_into().ok().map(u64::from_le_bytes).or(found.ttl_ms),
                name::TAG => found.tag = Some(value),
                name::MESSAGE_ID => found.message_id = Some(value),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HeadersBuilder;

    #[test]
    fn deliveries_round_trip_and_stop_where_they_are_damaged() {
        let first =
            DeliveryView { offset: 7, append_time_ms: 1, timestamp_ms: -2, deliveries: 3, key: None, value: Some(b""), headers: b"" };
        let second = DeliveryView { offset: 8, key: Some(b"key"), value: Some(b"value"), headers: b"heads", ..first };
        let mut bytes = Vec::new();
        first.write(&mut bytes);
        second.write(&mut bytes);
        assert_eq!(bytes.len(), first.wire_bytes() + second.wire_bytes());
        let read: Vec<_> = Deliveries::new(&bytes, 2).collect();
        assert_eq!(read, [Some(first), Some(second)]);
        let cut: Vec<_> = Deliveries::new(&bytes[..bytes.len() - 8], 2).collect();
        assert_eq!(cut, [Some(first), None]);
    }

    #[test]
    fn settlements_round_trip_and_unknown_verbs_are_refused() {
        let settlement = Settlement { first: u64::MAX, count: 9, verb: Verb::Requeue, delay_ms: 1 << 40 };
        let mut bytes = settlement.to_bytes();
        assert_eq!(Settlement::read(&bytes), Some(settlement));
        bytes[20] = 4;
        assert_eq!(Settlement::read(&bytes), None);
        assert_eq!(Settlement::read(&bytes[..20]), None);
    }

    #[test]
    fn headers_that_queues_look_at() {
        let mut headers = HeadersBuilder::default();
        headers.push(name::DUE_MS, Some(&5i64.to_le_bytes())).push(b"p", Some(b"x")).push(name::PRIORITY, Some(&[9]));
        headers.push(name::TTL_MS, Some(b"short"));
        let found = QueueHeaders::read(headers.as_bytes());
        assert_eq!(found, QueueHeaders { due_ms: Some(5), priority: 9, ..QueueHeaders::default() });
    }

    #[test]
    fn settings_keep_their_bytes() {
        let config = QueueConfig {
            dead_letter: Some("dead".into()),
            backoff: Backoff::Linear { ms: 5, cap_ms: 12 },
            max_length: Some(7),
            filter: "a = 1".into(),
            max_bytes: Some(8),
            expires_ms: Some(9),
            from_last: Some(1),
            dedup_window_ms: Some(3),
            ..QueueConfig::default()
        };
        let create = CreateQueue { name: "q".into(), topic: "t".into(), partition_count: 2, durability: Durability::Written, config };
        let mut bytes = Vec::new();
        write_config(&create, &mut bytes);
        assert_eq!(read_config::<CreateQueue>(&bytes), Ok(create));
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), CREATE_QUEUE_V2, "the layout has changed: it needs a new version");
        bytes[0] = 1;
        assert_eq!(read_config::<CreateQueue>(&bytes), Err(ControlError::UnknownVersion { got: 1 }));
    }

    /// Length and CRC32C of the message above.
    const CREATE_QUEUE_V2: (usize, u32) = (149, 3_642_957_721);

    #[test]
    fn waits_grow_as_they_should() {
        let waits = |backoff: Backoff| [1, 2, 3, 70].map(|deliveries| backoff.wait_ms(deliveries));
        assert_eq!(waits(Backoff::None), [0; 4]);
        assert_eq!(waits(Backoff::Fixed { ms: 5 }), [5; 4]);
        assert_eq!(waits(Backoff::Linear { ms: 5, cap_ms: 12 }), [5, 10, 12, 12]);
        assert_eq!(waits(Backoff::Exponential { ms: 5, cap_ms: 1000 }), [5, 10, 20, 1000]);
    }

    proptest::proptest! {
        /// Random bytes are refused or read; they never panic.
        #[test]
        fn random_bytes_never_panic(input in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Deliveries::new(&input, 5).count();
            let _ = Settlement::read(&input);
            let _ = QueueHeaders::read(&input);
            let _ = QueueReceive::read(&input);
            let _ = read_config::<CreateQueue>(&input);
            let _ = crate::control::read_open::<QueueRequest>(&input);
        }
    }
}
