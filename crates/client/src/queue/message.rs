//! Messages on their way in and out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmain_wire::queue::{DeliveryView, QueueHeaders, name};
use ringmain_wire::record::{HeadersBuilder, headers};

use super::ReplyTo;
use super::request::{CORRELATION_ID, REPLY_TO};
use crate::producer::Record;
use crate::session::ReplyBody;

/// A message to publish: a record and the headers that queues look at.
///
/// ```
/// use std::time::Duration;
/// use ringmain_client::queue::Outgoing;
///
/// let message = Outgoing::new(b"one espresso").key(b"table 7").priority(5).ttl(Duration::from_secs(600)).tag("coffee");
/// let record = message.record(); // for Producer::send
/// assert_eq!(record.value, Some(&b"one espresso"[..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Outgoing<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    timestamp_ms: Option<i64>,
    partition: Option<u32>,
    headers: HeadersBuilder,
}

impl<'a> Outgoing<'a> {
    /// A message with this value and nothing else.
    pub fn new(value: &'a [u8]) -> Outgoing<'a> {
        Outgoing { value: Some(value), ..Outgoing::default() }
    }

    /// Messages of one key stay in order in a key-ordered queue.
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Index of the partition within the topic, rather than by key.
    pub fn partition(mut self, index: u32) -> Self {
        self.partition = Some(index);
        self
    }

    /// The record's own time, ms since the Unix epoch.
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Not delivered before this time, ms since the Unix epoch.
    pub fn due_ms(mut self, due_ms: i64) -> Self {
        self.headers.push(name::DUE_MS, Some(&due_ms.to_le_bytes()));
        self
    }

    /// Not delivered before so much later than now, by this machine's clock.
    pub fn delay(self, delay: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.due_ms(i64::try_from((now + delay).as_millis()).unwrap_or(i64::MAX))
    }

    /// Higher goes first, in a queue with levels of priority.
    pub fn priority(mut self, priority: u8) -> Self {
        self.headers.push(name::PRIORITY, Some(&[priority]));
        self
    }

    /// Expires so long after it was appended.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.headers.push(name::TTL_MS, Some(&ms.to_le_bytes()));
        self
    }

    /// A word to filter by: `TAGS` in a queue's filter.
    pub fn tag(mut self, tag: &str) -> Self {
        self.headers.push(name::TAG, Some(tag.as_bytes()));
        self
    }

    /// The publisher's own name for the message.
    pub fn message_id(mut self, id: &str) -> Self {
        self.headers.push(name::MESSAGE_ID, Some(id.as_bytes()));
        self
    }

    /// A header; names may repeat. `name`: at most 65,535 bytes, longer ones are cut.
    pub fn header(mut self, name: &[u8], value: Option<&[u8]>) -> Self {
        self.headers.push(&name[..name.len().min(usize::from(u16::MAX))], value);
        self
    }

    /// Where an answer is expected.
    pub fn reply_to(self, to: &ReplyTo) -> Self {
        self.header(REPLY_TO, Some(to.place().as_bytes())).header(CORRELATION_ID, Some(to.correlation.as_bytes()))
    }

    /// For [`Producer::send`](crate::Producer::send).
    pub fn record(&self) -> Record<'_> {
        Record {
            key: self.key,
            value: self.value,
            headers: self.headers.as_bytes(),
            timestamp_ms: self.timestamp_ms,
            partition: self.partition,
        }
    }
}

/// A message that a queue has delivered. Cheap to clone; keeps the whole answer alive that it came in.
#[derive(Clone)]
pub struct Message {
    body: Arc<ReplyBody>,
    at: u32,
    partition_index: u32,
    /// Of the connection it came over.
    epoch: u32,
}

/// Why and whence a message is in a dead-letter topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// `rejected`, `delivery-limit`, `expired`, `queue-full`.
    pub reason: String,
    /// The queue it was in.
    pub queue: String,
    /// Where, as `topic:partition:offset`, the partition counted from 0: the same message has the same place, also if it comes twice.
    pub place: String,
    /// When, ms since the Unix epoch.
    pub time_ms: i64,
    /// How often it had been delivered.
    pub deliveries: u64,
}

impl Message {
    /// The one at byte `at` of a body that was read through before.
    pub(super) fn new(body: Arc<ReplyBody>, at: usize, partition_index: u32, epoch: u32) -> Message {
        Message { body, at: at as u32, partition_index, epoch }
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Its parts.
    pub fn view(&self) -> DeliveryView<'_> {
        let nothing = DeliveryView { offset: 0, append_time_ms: 0, timestamp_ms: 0, deliveries: 0, key: None, value: None, headers: &[] };
        // Read once when it arrived, so there is one.
        self.body.get(self.at as usize..).and_then(DeliveryView::read).map_or(nothing, |(view, _)| view)
    }

    /// Index of the partition within the topic.
    pub fn partition_index(&self) -> u32 {
        self.partition_index
    }

    /// Its position in the partition.
    pub fn offset(&self) -> u64 {
        self.view().offset
    }

    /// `None` = null.
    pub fn key(&self) -> Option<&[u8]> {
        self.view().key
    }

    /// `None` = null.
    pub fn value(&self) -> Option<&[u8]> {
        self.view().value
    }

    /// Deliveries, this one included.
    pub fn deliveries(&self) -> u16 {
        self.view().deliveries
    }

    /// Whether somebody may have seen it before.
    pub fn is_redelivered(&self) -> bool {
        self.deliveries() > 1
    }

    /// As the publisher set it, ms since the Unix epoch.
    pub fn timestamp_ms(&self) -> i64 {
        self.view().timestamp_ms
    }

    /// When the broker appended it, ms since the Unix epoch.
    pub fn append_time_ms(&self) -> i64 {
        self.view().append_time_ms
    }

    /// Every header that can be read, in order, those for queues included.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        headers(self.view().headers).map_while(|header| header)
    }

    /// The last header of that name; `None` = it isn't there, or is null.
    pub fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.headers().filter(|(found, _)| *found == name).last().and_then(|(_, value)| value)
    }

    /// What a queue looks at: due time, priority, tag, message id.
    pub fn queue_headers(&self) -> QueueHeaders<'_> {
        QueueHeaders::read(self.view().headers)
    }

    /// Whether and why it was dead-lettered.
    pub fn dead_letter(&self) -> Option<DeadLetter> {
        let text = |name| self.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
        Some(DeadLetter {
            reason: text(name::DEAD_REASON)?,
            queue: text(name::DEAD_QUEUE).unwrap_or_default(),
            place: text(name::DEAD_PLACE).unwrap_or_default(),
            time_ms: text(name::DEAD_TIME).and_then(|time| time.parse().ok()).unwrap_or_default(),
            deliveries: text(name::DEAD_COUNT).and_then(|count| count.parse().ok()).unwrap_or_default(),
        })
    }

    /// Where an answer to it is expected.
    pub fn reply_to(&self) -> Option<ReplyTo> {
        ReplyTo::read(self.header(REPLY_TO)?, self.header(CORRELATION_ID)?)
    }

    /// The same message to publish again, without what was said about its death, its delay and its time to live. Its message id becomes an
    /// ordinary header, `message-id`: a topic that recognises messages by their ids would take it for the one that it was.
    pub fn again(&self) -> Outgoing<'_> {
        let view = self.view();
        let left_out =
            [name::DEAD_REASON, name::DEAD_QUEUE, name::DEAD_PLACE, name::DEAD_TIME, name::DEAD_COUNT, name::DUE_MS, name::TTL_MS];
        let mut outgoing = Outgoing { key: view.key, value: view.value, timestamp_ms: Some(view.timestamp_ms), ..Outgoing::default() };
        for (name, value) in headers(view.headers).map_while(|header| header).filter(|(name, _)| !left_out.contains(name)) {
            outgoing.headers.push(if name == name::MESSAGE_ID { ID_BEFORE } else { name }, value);
        }
        outgoing
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        f.debug_struct("Message")
            .field("partition_index", &self.partition_index)
            .field("offset", &view.offset)
            .field("deliveries", &view.deliveries)
            .field("value_bytes", &view.value.map(<[u8]>::len))
            .finish_non_exhaustive()
    }
}

/// What the id of a message is called once it is published again.
const ID_BEFORE: &[u8] = b"message-id";
