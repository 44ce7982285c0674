//! The producer without sockets or clock: records in, produce requests out, acknowledgements back.
//!
//! Records gather in one open batch per partition. A batch leaves when it is full, when its linger is over or
//! when a flush asks for it, as long as fewer than `max_in_flight` batches of its partition wait for an answer.
//!
//! **Order and repeats.** A batch gets its sequence when it is first sent and keeps it. When a batch has to be
//! sent again (a lost connection, a retriable refusal) nothing more of that partition is sent until all
//! its answers are in or known to be lost; then everything unacknowledged goes out again, first to last, with
//! the same sequences, so the broker can tell repeats from news. A batch's partition never changes, and a
//! partition changes its connection only when nothing of it is in flight.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ringmain_wire::control::{MetadataReply, MetadataRequest, ProduceReply, ProducerGrant, read_open, write_open};
use ringmain_wire::frame::{HEADER_BYTES, Identity, flags};
use ringmain_wire::murmur2::partition_for_key;
use ringmain_wire::queue::QueueHeaders;
use ringmain_wire::record::BATCH_PREFIX_BYTES;
use ringmain_wire::{ErrorCode, Frame, Op, PartitionId, ProducerId, RecordBatchBuilder, Records};

use crate::error::{BrokerError, ConnectionError, DeliveryError, FlushError, ProducerEnd, SendError};
use crate::links::{Action, Heard, LinkConfig, Links, Machine, TopicMap};
use crate::session::Reply;

/// How a producer gathers, sends and repeats.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// How long an open batch waits for more records. 0 = it leaves as soon as the window has room, so batches
    /// still form under load. Default 1 ms.
    pub linger: Duration,
    /// A batch leaves when one more record would make it larger than this, in bytes of the whole frame.
    /// A larger record travels alone. Default 64 KiB.
    pub batch_bytes: usize,
    /// Batches without an answer per partition; at least 1. Default 5.
    ///
    /// Without idempotence only 1 keeps the order when a batch has to be repeated.
    pub max_in_flight: usize,
    /// Whether repeats are recognised by the broker (no duplicates, no reordering). Default true.
    pub idempotent: bool,
    /// Bytes of batches that may wait for their acknowledgement, over all partitions; when full, sending
    /// waits. Default 32 MiB.
    pub buffer_bytes: usize,
    /// How long a batch is repeated, counted from its first record, before it is given up. An idempotent producer that
    /// gives up a batch it has sent ends, because the batch may be stored all the same. Default 120 s.
    pub delivery_timeout: Duration,
    /// Whether a batch that finds a queue full is repeated until there is room, rather than refused at once. Default true.
    pub waits_for_room: bool,
    /// How connections are made and kept; its back-off also paces repeats.
    pub links: LinkConfig,
}

impl Default for ProducerConfig {
    fn default() -> ProducerConfig {
        ProducerConfig {
            linger: Duration::from_millis(1),
            batch_bytes: 64 << 10,
            max_in_flight: 5,
            idempotent: true,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
            waits_for_room: true,
            links: LinkConfig::default(),
        }
    }
}

/// A record to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    /// Decides the partition when none is named, the same way Kafka's clients do; `None` = any partition.
    pub key: Option<&'a [u8]>,
    /// The message; `None` = null (a tombstone).
    pub value: Option<&'a [u8]>,
    /// From [`ringmain_wire::record::HeadersBuilder`], or empty.
    pub headers: &'a [u8],
    /// Milliseconds since the Unix epoch; `None` = now.
    pub timestamp_ms: Option<i64>,
    /// Index of the partition within the topic; `None` = by key.
    pub partition: Option<u32>,
}

/// Names a record that was sent: the `number`-th (from 0) of this producer in that partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Index of the partition within the topic.
    pub partition_index: u32,
    /// Counts this producer's records in this partition.
    pub number: u64,
}

/// What became of one batch. Per partition these come in the order of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Index of the partition within the topic.
    pub partition_index: u32,
    /// [`Receipt::number`] of the batch's first record.
    pub first_number: u64,
    /// Records in the batch; their receipts' numbers are consecutive.
    pub record_count: u32,
    /// Where it is stored, or why it isn't known to be.
    pub result: Result<Stored, DeliveryError>,
}

/// Where and when a batch was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Offset of the batch's first record; `None` = stored by an earlier attempt, so long ago that the broker
    /// no longer remembers where.
    pub base_offset: Option<u64>,
    /// When the broker appended it, ms since the Unix epoch; −1 if not known.
    pub append_time_ms: i64,
    /// Whether an earlier attempt had stored it already.
    pub duplicate: bool,
    /// So many of the batch's last records found a queue full, which passes them on to the topic that it redirects to. See
    /// [`Delivery::is_redirected`].
    pub redirected: u32,
}

impl Delivery {
    /// Whether `receipt` names a record of this batch.
    pub fn covers(&self, receipt: Receipt) -> bool {
        receipt.partition_index == self.partition_index
            && receipt.number >= self.first_number
            && receipt.number - self.first_number < u64::from(self.record_count)
    }

    /// Whether the record that `receipt` names is stored and found a queue over its topic full: that queue passes it on to the topic that it
    /// redirects to. Whoever repeats a batch is told so only of what hasn't been passed on yet.
    pub fn is_redirected(&self, receipt: Receipt) -> bool {
        let redirected = self.result.as_ref().map_or(0, |stored| stored.redirected);
        self.covers(receipt) && receipt.number - self.first_number >= u64::from(self.record_count - redirected.min(self.record_count))
    }

    /// The offset of the record that `receipt` names, if the batch is stored, covers it, and its place is known.
    pub fn offset_of(&self, receipt: Receipt) -> Option<u64> {
        let base = self.result.as_ref().ok()?.base_offset?;
        self.covers(receipt).then(|| base + (receipt.number - self.first_number))
    }
}

/// What a successful [`ProducerMachine::send`] means for the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The record's name.
    pub receipt: Receipt,
    /// When the transport should look again at the latest: now if a batch became full, else when the linger
    /// of the batch that this record opened is over; `None` = no earlier than it knows already.
    pub look_at: Option<Instant>,
}

/// The producer's state. See the module's text for its rules, [`Machine`] for how to drive it.
#[derive(Debug)]
pub struct ProducerMachine {
    config: ProducerConfig,
    topic: TopicMap,
    grant: Option<ProducerGrant>,
    links: Links<Purpose>,
    partitions: Vec<Partition>,
    /// Indexes of partitions with an unacknowledged record.
    active: BTreeSet<u32>,
    /// Where the next round over the partitions begins, so that none is favoured.
    turn: u32,
    sticky: u32,
    sticky_used: bool,
    buffered_bytes: usize,
    open_records: u64,
    acknowledged_records: u64,
    redirected_records: u64,
    failed_records: u64,
    first_failure: Option<DeliveryError>,
    deliveries: VecDeque<Delivery>,
    spare: Vec<RecordBatchBuilder>,
    metadata: Refresh,
    end: Option<ProducerEnd>,
    last_refusal: Option<BrokerError>,
    /// Largest request the broker said it takes, once it did.
    max_request_bytes: u32,
    /// Time of the last `handle_timeout`: what was due by then waits for something else than time.
    looked_at: Option<Instant>,
}

/// Why a request was made.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Metadata,
    Produce { partition_index: u32, batch: u64 },
}

/// When the metadata are asked for again.
#[derive(Debug, Default)]
struct Refresh {
    wanted: bool,
    asked: bool,
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
struct Partition {
    open: Option<Open>,
    /// Closed batches in order; acknowledged ones leave at the front.
    batches: VecDeque<Batch>,
    /// Batches before this index were sent in this round, the others weren't.
    unsent_from: usize,
    /// Number of the first batch in `batches`.
    first_batch: u64,
    in_flight: usize,
    /// Bytes that came and went as batches were split, and aren't counted yet.
    grown_bytes: usize,
    shrunk_bytes: usize,
    /// Where the batches in flight went.
    sent_port: u16,
    /// Something must be sent again: wait for what is in flight, then begin at the first batch.
    rewind: bool,
    /// A batch was refused for good: what follows it gets sequences from here on, at the rewind.
    renumber_from: Option<i32>,
    next_sequence: i32,
    next_number: u64,
    failures: u32,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    builder: RecordBatchBuilder,
    opened_at: Instant,
    first_number: u64,
    flush: bool,
    flags: u8,
}

#[derive(Debug)]
struct Batch {
    builder: RecordBatchBuilder,
    opened_at: Instant,
    first_number: u64,
    /// Of its frame.
    flags: u8,
    sequence: Option<i32>,
    state: BatchState,
    /// Sent when everything before it in its partition was acknowledged.
    sent_first: bool,
    /// Some attempt went without an answer.
    ambiguous: bool,
    /// Some of its messages are stored already: they are sent one by one.
    splits: bool,
}

#[derive(Debug)]
enum BatchState {
    Waiting,
    InFlight,
    Done(Result<Stored, DeliveryError>),
}

impl Batch {
    fn is_done(&self) -> bool {
        matches!(self.state, BatchState::Done(_))
    }

    fn maybe_stored(&self) -> bool {
        self.ambiguous || matches!(self.state, BatchState::InFlight)
    }
}

impl ProducerMachine {
    /// A producer for `topic`. `grant`: the broker's answer to `InitProducer`; needed if the configuration asks
    /// for idempotence, ignored otherwise.
    pub fn new(config: ProducerConfig, topic: TopicMap, grant: Option<ProducerGrant>) -> ProducerMachine {
        let config = ProducerConfig { max_in_flight: config.max_in_flight.max(1), ..config };
        let grant = grant.filter(|_| config.idempotent);
        ProducerMachine {
            links: Links::new(config.links.clone()),
            partitions: topic.partitions.iter().map(|_| Partition::default()).collect(),
            topic,
            grant,
            active: BTreeSet::new(),
            turn: 0,
            sticky: 0,
            sticky_used: false,
            buffered_bytes: 0,
            open_records: 0,
            acknowledged_records: 0,
            redirected_records: 0,
            failed_records: 0,
            first_failure: None,
            deliveries: VecDeque::new(),
            spare: Vec::new(),
            metadata: Refresh::default(),
            end: None,
            last_refusal: None,
            max_request_bytes: u32::MAX,
            looked_at: None,
            config,
        }
    }

    /// No batch becomes larger than the broker takes; it says so in its hello.
    pub fn limit_request_bytes(&mut self, max_request_bytes: u32) {
        self.max_request_bytes = max_request_bytes;
    }

    /// Takes a record. `wall_ms`: now, in ms since the Unix epoch, for records without a timestamp.
    ///
    /// Errors: see [`SendError`]; after `BufferFull` the same record may be offered again when
    /// deliveries have made room.
    pub fn send(&mut self, record: Record<'_>, now: Instant, wall_ms: i64) -> Result<Accepted, SendError> {
        if let Some(end) = &self.end {
            return Err(SendError::Ended(end.clone()));
        }
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let record_bytes = RecordBatchBuilder::record_bytes(length(record.key), length(record.value), record.headers.len());
        let batch_bytes = EMPTY_BATCH_BYTES + record_bytes;
        let limit_bytes = (self.topic.max_message_bytes.min(self.max_request_bytes) as usize).min(self.config.buffer_bytes);
        if batch_bytes > limit_bytes {
            return Err(SendError::RecordTooLarge { batch_bytes, limit_bytes });
        }
        let partition_index = self.partition_for(&record, record_bytes)?;
        let full_bytes = self.config.batch_bytes.min(limit_bytes);
        let partition = &mut self.partitions[partition_index as usize];
        let fits = partition.open.as_ref().is_some_and(|open| open.builder.frame_bytes() + record_bytes <= full_bytes);
        let added_bytes = if fits { record_bytes } else { batch_bytes };
        if self.buffered_bytes + added_bytes > self.config.buffer_bytes {
            // Nothing may wait for more records while a sender waits for room.
            self.begin_flush();
            return Err(SendError::BufferFull { buffered_bytes: self.buffered_bytes, limit_bytes: self.config.buffer_bytes });
        }
        self.buffered_bytes += added_bytes;
        self.open_records += 1;
        self.sticky_used |= record.partition.is_none() && record.key.is_none();
        let closed = !fits && partition.close_open();
        let number = partition.next_number;
        partition.next_number += 1;
        let mut look_at = closed.then_some(now);
        let open = partition.open.get_or_insert_with(|| {
            look_at = look_at.or(Some(now + self.config.linger));
            let builder = self.spare.pop().unwrap_or_default();
            Open { builder, opened_at: now, first_number: number, flush: false, flags: 0 }
        });
        if !record.headers.is_empty() && QueueHeaders::read(record.headers) != QueueHeaders::default() {
            open.flags |= flags::QUEUE_HEADERS;
        }
        open.builder.push(record.timestamp_ms.unwrap_or(wall_ms), record.key, record.value, record.headers);
        if open.builder.frame_bytes() >= full_bytes {
            partition.close_open();
            look_at = Some(now);
        }
        if partition.in_flight >= self.config.max_in_flight {
            // An answer has to come first, and whoever takes it looks again.
            look_at = None;
        }
        self.active.insert(partition_index);
        Ok(Accepted { receipt: Receipt { partition_index, number }, look_at })
    }

    fn partition_for(&mut self, record: &Record<'_>, record_bytes: usize) -> Result<u32, SendError> {
        let partition_count = self.partitions.len() as u32;
        if let Some(index) = record.partition {
            return if index < partition_count { Ok(index) } else { Err(SendError::NoSuchPartition { index, partition_count }) };
        }
        if let Some(key) = record.key {
            return Ok(partition_for_key(key, partition_count));
        }
        // One batch after the other goes to one partition each: as even as single records, in fuller batches.
        let fits = |open: &Open| open.builder.frame_bytes() + record_bytes <= self.config.batch_bytes;
        if self.sticky_used && !self.partitions[self.sticky as usize].open.as_ref().is_some_and(fits) {
            self.sticky = (self.sticky + 1) % partition_count;
            self.sticky_used = false;
        }
        Ok(self.sticky)
    }

    /// Lets every open batch leave without further linger.
    pub fn begin_flush(&mut self) {
        for index in &self.active {
            if let Some(open) = &mut self.partitions[*index as usize].open {
                open.flush = true;
            }
        }
    }

    /// Failures since the last call: `Err` if any record taken before wasn't acknowledged.
    pub fn take_failures(&mut self) -> Result<(), FlushError> {
        let failed_records = std::mem::take(&mut self.failed_records);
        self.first_failure.take().map_or(Ok(()), |first| Err(FlushError { failed_records, first }))
    }

    /// Records taken and neither acknowledged nor given up.
    pub fn open_records(&self) -> u64 {
        self.open_records
    }

    /// Records acknowledged as stored, ever.
    pub fn acknowledged_records(&self) -> u64 {
        self.acknowledged_records
    }

    /// Of them, those that found a queue full, which passes them on to the topic that it redirects to.
    pub fn redirected_records(&self) -> u64 {
        self.redirected_records
    }

    /// Bytes of batches that wait for their acknowledgement.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// What became of the next batch. Keep taking these: they are held until taken.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        self.deliveries.pop_front()
    }

    /// Whether [`ProducerMachine::poll_delivery`] has something to give.
    pub fn has_deliveries(&self) -> bool {
        !self.deliveries.is_empty()
    }

    /// Why the producer ended, if it did.
    pub fn ended(&self) -> Option<&ProducerEnd> {
        self.end.as_ref()
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<&ConnectionError> {
        self.links.problem()
    }

    /// The topic as known now.
    pub fn topic(&self) -> &TopicMap {
        &self.topic
    }

    /// Ends the producer: every batch not acknowledged yet fails with `end`.
    pub fn end(&mut self, end: ProducerEnd) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end.clone());
        for index in std::mem::take(&mut self.active) {
            let partition = &mut self.partitions[index as usize];
            partition.close_open();
            for batch in &mut partition.batches {
                if !batch.is_done() {
                    let maybe_stored = batch.maybe_stored();
                    batch.state = BatchState::Done(Err(DeliveryError::Ended { end: end.clone(), maybe_stored }));
                }
            }
            self.settle(index);
        }
    }

    /// Reports the finished batches at the front of a partition and forgets them.
    fn settle(&mut self, index: u32) {
        let partition = &mut self.partitions[index as usize];
        self.buffered_bytes += std::mem::take(&mut partition.grown_bytes);
        self.buffered_bytes -= std::mem::take(&mut partition.shrunk_bytes);
        while partition.batches.front().is_some_and(Batch::is_done) {
            let Some(Batch { mut builder, first_number, state: BatchState::Done(result), .. }) = partition.batches.pop_front() else {
                break;
            };
            partition.first_batch += 1;
            partition.unsent_from = partition.unsent_from.saturating_sub(1);
            let record_count = builder.record_count();
            self.buffered_bytes -= builder.frame_bytes();
            self.open_records -= u64::from(record_count);
            match &result {
                Ok(stored) => {
                    self.acknowledged_records += u64::from(record_count);
                    self.redirected_records += u64::from(stored.redirected);
                }
                Err(error) => {
                    self.failed_records += u64::from(record_count);
                    self.first_failure.get_or_insert_with(|| error.clone());
                }
            }
            if self.spare.len() < SPARE_BATCHES && builder.frame_bytes() <= self.config.batch_bytes {
                builder.clear();
                self.spare.push(builder);
            }
            self.deliveries.push_back(Delivery { partition_index: index, first_number, record_count, result });
        }
        if partition.batches.is_empty() && partition.open.is_none() {
            self.active.remove(&index);
        }
    }

    /// Queues produce requests for the partitions on `port` while the session and the windows have room.
    fn fill(&mut self, port: u16, now: Instant) {
        let from = self.turn;
        let order: Vec<u32> = self.active.range(from..).chain(self.active.range(..from)).copied().collect();
        let (mut progress, mut full) = (true, false);
        while progress && !full {
            progress = false;
            for index in &order {
                if self.topic.partitions[*index as usize].port != port {
                    continue;
                }
                let Some(session) = self.links.ready_session(port).filter(|session| session.has_room()) else {
                    full = true;
                    // The next round begins with the partition that found no room.
                    self.turn = *index;
                    break;
                };
                let partition_id = PartitionId(self.topic.partitions[*index as usize].partition);
                let partition = &mut self.partitions[*index as usize];
                if !partition.may_send(port, now, &self.config) {
                    continue;
                }
                let (batch, frame) = partition.next_frame(port, partition_id, self.grant.as_ref());
                session.request(Op::Produce, Purpose::Produce { partition_index: *index, batch }, now, Duration::ZERO, frame);
                progress = true;
            }
        }
    }

    fn ask_metadata(&mut self, port: u16, now: Instant) {
        if !self.metadata.wanted || self.metadata.asked || self.metadata.not_before.is_some_and(|at| at > now) || port != 0 {
            return;
        }
        let Some(session) = self.links.ready_session(port) else { return };
        let mut body = Vec::new();
        write_open(&MetadataRequest { topics: Some(vec![self.topic.name.clone()]) }, &mut body);
        session.request(Op::Metadata, Purpose::Metadata, now, Duration::ZERO, &body);
        self.metadata = Refresh { wanted: false, asked: true, not_before: Some(now + METADATA_PAUSE) };
    }

    fn on_reply(&mut self, reply: Reply<Purpose>, now: Instant) {
        match reply.context {
            Purpose::Metadata => {
                self.metadata.asked = false;
                let found = reply.result.ok().and_then(|body| read_open::<MetadataReply>(&body).ok());
                match found.map(|reply| TopicMap::find(&reply, &self.topic.name).and_then(|newer| self.topic.update(newer))) {
                    Some(Ok(())) => self.partitions.resize_with(self.topic.partitions.len(), Partition::default),
                    Some(Err(error)) => self.end(ProducerEnd::Topic(error)),
                    // Refused or unreadable: whatever made us ask will make us ask again.
                    None => self.metadata.wanted = true,
                }
            }
            Purpose::Produce { partition_index, batch } => {
                self.metadata.wanted |= reply.moved;
                let result = match reply.result {
                    Ok(body) => ProduceReply::read(&body).map_err(|error| BrokerError {
                        op: Op::Produce,
                        code: ErrorCode::Unknown,
                        number: 0,
                        message: format!("the acknowledgement can't be read: {error}"),
                    }),
                    Err(error) => Err(error),
                };
                self.on_produced(partition_index, batch, result, now);
            }
        }
    }

    fn on_produced(&mut self, index: u32, number: u64, result: Result<ProduceReply, BrokerError>, now: Instant) {
        let idempotent = self.grant.is_some();
        let backoff = self.links.backoff(self.partitions[index as usize].failures + 1);
        let partition = &mut self.partitions[index as usize];
        partition.in_flight = partition.in_flight.saturating_sub(1);
        let Some(batch) = partition.batch_mut(number).filter(|batch| !batch.is_done()) else { return };
        let error = match result {
            Ok(reply) => {
                let stored = Stored {
                    base_offset: Some(reply.base_offset),
                    append_time_ms: reply.append_time_ms,
                    duplicate: reply.duplicate != 0,
                    redirected: reply.redirected,
                };
                batch.state = BatchState::Done(Ok(stored));
                partition.failures = 0;
                return self.settle(index);
            }
            Err(error) => error,
        };
        match error.code {
            ErrorCode::DuplicateSequence => {
                batch.state = BatchState::Done(Ok(Stored { base_offset: None, append_time_ms: -1, duplicate: true, redirected: 0 }));
                self.settle(index);
            }
            ErrorCode::KnownMessages if batch.builder.record_count() > 1 => {
                (batch.state, batch.splits) = (BatchState::Waiting, true);
                partition.rewind = true;
            }
            // A batch behind one that wasn't stored: refused for its gap, sent again after it.
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer if idempotent && !batch.sent_first => {
                batch.state = BatchState::Waiting;
                partition.rewind = true;
            }
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer if idempotent => {
                self.end(ProducerEnd::SequenceLost { partition_index: index, error });
            }
            ErrorCode::StaleProducerEpoch => self.end(ProducerEnd::Superseded { error }),
            code if code.is_retriable() && (code != ErrorCode::QueueFull || self.config.waits_for_room) => {
                batch.state = BatchState::Waiting;
                batch.ambiguous |= !leaves_no_trace(code);
                partition.rewind = true;
                partition.failures += 1;
                partition.retry_at = Some(now + backoff);
                self.metadata.wanted |= code == ErrorCode::UnknownPartition;
                self.last_refusal = Some(error);
            }
            code if idempotent && (batch.ambiguous || !leaves_no_trace(code)) => {
                batch.ambiguous = true;
                self.end(ProducerEnd::Ambiguous { partition_index: index, reason: error.to_string() });
            }
            code => {
                // It left no trace at the broker, so the batches behind it move up into its place in the sequence.
                let sequence = batch.sequence;
                let maybe_stored = batch.ambiguous || !leaves_no_trace(code);
                batch.state = BatchState::Done(Err(DeliveryError::Refused { error, maybe_stored }));
                if idempotent {
                    partition.rewind = true;
                    partition.renumber_from = match (partition.renumber_from, sequence) {
                        // The lowest of several: they were refused in any order.
                        (Some(a), Some(b)) => Some(if sequence_is_before(b, a) { b } else { a }),
                        (a, b) => a.or(b),
                    };
                }
                self.settle(index);
            }
        }
    }

    /// The requests that were attached to a connection have no answer any more.
    fn on_lost(&mut self, lost: Vec<Purpose>) {
        self.metadata.wanted = true;
        for purpose in lost {
            let Purpose::Produce { partition_index, batch } = purpose else {
                self.metadata.asked = false;
                continue;
            };
            let partition = &mut self.partitions[partition_index as usize];
            partition.in_flight = partition.in_flight.saturating_sub(1);
            let Some(batch) = partition.batch_mut(batch).filter(|batch| !batch.is_done()) else { continue };
            batch.state = BatchState::Waiting;
            batch.ambiguous = true;
            partition.rewind = true;
            if partition.renumber_from.is_some() {
                // Its bytes may still reach the broker under the old sequence while the new one is taken by another.
                let reason = "its connection ended while the sequence was being repaired after a refused batch".to_string();
                self.end(ProducerEnd::Ambiguous { partition_index, reason });
            }
        }
    }

    /// Gives up what has waited for longer than the delivery timeout.
    fn expire(&mut self, now: Instant) {
        let after = self.config.delivery_timeout;
        let overdue = |opened_at: Instant| now.saturating_duration_since(opened_at) >= after;
        for index in self.active.iter().copied().collect::<Vec<_>>() {
            let partition = &mut self.partitions[index as usize];
            if partition.open.as_ref().is_some_and(|open| overdue(open.opened_at)) {
                partition.close_open();
            }
            if !partition.batches.front().is_some_and(|batch| overdue(batch.opened_at)) {
                continue;
            }
            let last_problem =
                self.links.problem().map(ToString::to_string).or_else(|| self.last_refusal.as_ref().map(ToString::to_string));
            let mut ended = None;
            for batch in partition.batches.iter_mut().filter(|batch| overdue(batch.opened_at) && !batch.is_done()) {
                let maybe_stored = batch.maybe_stored();
                let error = DeliveryError::TimedOut { after, maybe_stored, last_problem: last_problem.clone() };
                if self.grant.is_some() && batch.sequence.is_some() && ended.is_none() {
                    ended = Some(ProducerEnd::Ambiguous { partition_index: index, reason: error.to_string() });
                }
                batch.state = BatchState::Done(Err(error));
            }
            // Batches that never got a sequence leave no gap: the producer goes on behind them.
            self.settle(index);
            if let Some(end) = ended {
                self.end(end);
                return;
            }
        }
    }
}

impl Partition {
    /// Makes the open batch the last closed one; whether there was one.
    fn close_open(&mut self) -> bool {
        let Some(Open { builder, opened_at, first_number, flags, .. }) = self.open.take() else { return false };
        let (sequence, state) = (None, BatchState::Waiting);
        self.batches.push_back(Batch {
            builder,
            opened_at,
            first_number,
            flags,
            sequence,
            state,
            sent_first: false,
            ambiguous: false,
            splits: false,
        });
        true
    }

    fn batch_mut(&mut self, number: u64) -> Option<&mut Batch> {
        self.batches.get_mut(usize::try_from(number.checked_sub(self.first_batch)?).ok()?)
    }

    /// Whether [`Partition::next_frame`] may be called; closes the open batch and rewinds where that is due.
    fn may_send(&mut self, port: u16, now: Instant, config: &ProducerConfig) -> bool {
        if self.retry_at.is_some_and(|at| at > now) || self.in_flight >= config.max_in_flight {
            return false;
        }
        if self.in_flight > 0 && (self.rewind || self.sent_port != port) {
            return false;
        }
        if self.rewind {
            self.begin_again();
        }
        while self.batches.get(self.unsent_from).is_some_and(Batch::is_done) {
            self.unsent_from += 1;
        }
        if self.unsent_from < self.batches.len() {
            return true;
        }
        let due = self.open.as_ref().is_some_and(|open| open.flush || open.opened_at + config.linger <= now);
        due && self.close_open()
    }

    /// Nothing is in flight: everything unacknowledged goes out again, in order.
    fn begin_again(&mut self) {
        self.rewind = false;
        self.retry_at = None;
        self.unsent_from = 0;
        self.split();
        if let Some(refused) = self.renumber_from.take() {
            let first = self.batches.iter().find(|batch| !batch.is_done()).and_then(|batch| batch.sequence);
            let mut sequence = first.filter(|first| sequence_is_before(*first, refused)).unwrap_or(refused);
            for batch in self.batches.iter_mut().filter(|batch| !batch.is_done() && batch.sequence.is_some()) {
                batch.sequence = Some(sequence);
                sequence = sequence_after(sequence, batch.builder.record_count());
            }
            self.next_sequence = sequence;
        }
    }

    /// Every record of a batch that is to be split becomes a batch of its own.
    fn split(&mut self) {
        while let Some(at) = self.batches.iter().position(|batch| batch.splits) {
            let Some(mut whole) = self.batches.remove(at) else { return };
            whole.splits = false;
            let bytes = whole.builder.finish(Identity::plain(PartitionId(0)));
            let records = Frame::parse(bytes).ok().and_then(|frame| {
                let records = Records::new(frame.body(), frame.header.producer.record_count).ok()?;
                records.collect::<Result<Vec<_>, _>>().ok()
            });
            let mut singles = Vec::new();
            for (index, record) in (0..).zip(records.unwrap_or_default()) {
                let mut builder = RecordBatchBuilder::new();
                builder.push(record.timestamp_ms, record.key, record.value, record.headers);
                self.grown_bytes += builder.frame_bytes();
                let sequence = whole.sequence.map(|first| if index == 0 { first } else { sequence_after(first, index) });
                let (first_number, opened_at, flags, ambiguous) =
                    (whole.first_number + u64::from(index), whole.opened_at, whole.flags, whole.ambiguous);
                let state = BatchState::Waiting;
                singles.push(Batch {
                    builder,
                    opened_at,
                    first_number,
                    flags,
                    sequence,
                    state,
                    sent_first: false,
                    ambiguous,
                    splits: false,
                });
            }
            self.shrunk_bytes += whole.builder.frame_bytes();
            for single in singles.into_iter().rev() {
                self.batches.insert(at, single);
            }
        }
    }

    /// The next batch to send, sealed, and its number.
    fn next_frame(&mut self, port: u16, partition: PartitionId, grant: Option<&ProducerGrant>) -> (u64, &[u8]) {
        self.retry_at = None;
        self.sent_port = port;
        let at = self.unsent_from;
        let sent_first = self.in_flight == 0 && self.batches.iter().take(at).all(Batch::is_done);
        self.in_flight += 1;
        self.unsent_from += 1;
        let batch = &mut self.batches[at];
        batch.state = BatchState::InFlight;
        batch.sent_first = sent_first;
        let identity = match grant {
            None => Identity { flags: batch.flags, ..Identity::plain(partition) },
            Some(grant) => {
                let sequence = *batch.sequence.get_or_insert_with(|| {
                    let sequence = self.next_sequence;
                    self.next_sequence = sequence_after(sequence, batch.builder.record_count());
                    sequence
                });
                Identity {
                    partition,
                    producer_id: ProducerId(grant.producer_id),
                    producer_epoch: grant.producer_epoch,
                    sequence,
                    flags: batch.flags,
                }
            }
        };
        (self.first_batch + at as u64, batch.builder.finish(identity))
    }

    /// When something becomes due here without a reply coming in.
    fn timeouts(&self, config: &ProducerConfig) -> impl Iterator<Item = Instant> {
        let oldest = self.batches.front().map(|batch| batch.opened_at).or(self.open.as_ref().map(|open| open.opened_at));
        let expiry = oldest.map(|at| at + config.delivery_timeout);
        let idle = self.in_flight < config.max_in_flight && !(self.rewind && self.in_flight > 0);
        let next = match (self.retry_at, &self.open) {
            (Some(at), _) => Some(at),
            (None, Some(open)) if idle && self.unsent_from >= self.batches.len() && !open.flush => Some(open.opened_at + config.linger),
            _ => None,
        };
        expiry.into_iter().chain(next)
    }
}

impl Machine for ProducerMachine {
    fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.links.want_none();
        if self.end.is_none() {
            for index in &self.active {
                self.links.want(self.topic.partitions[*index as usize].port);
            }
            if self.metadata.wanted && !self.active.is_empty() {
                self.links.want(0);
            }
        }
        self.links.poll_action(now)
    }

    fn connected(&mut self, port: u16, now: Instant) {
        self.links.connected(port, now);
    }

    fn disconnected(&mut self, port: u16, error: ConnectionError, now: Instant) {
        let lost = self.links.lost(port, error, now);
        self.on_lost(lost);
    }

    fn read_buffer(&mut self, port: u16) -> &mut [u8] {
        self.links.session(port).map_or(&mut [], |session| session.read_buffer())
    }

    fn received(&mut self, port: u16, n: usize, now: Instant) {
        if let Some(session) = self.links.session(port) {
            session.received(n);
        }
        while let Some(heard) = self.links.poll(port, now) {
            match heard {
                Heard::Ready(hello) => self.max_request_bytes = hello.max_request_bytes,
                Heard::FetchHead { .. } => {}
                Heard::Reply(reply) => self.on_reply(reply, now),
                Heard::Lost(lost) => self.on_lost(lost),
            }
        }
    }

    fn transmit(&mut self, port: u16, now: Instant, out: &mut Vec<u8>) -> bool {
        if self.end.is_none() {
            self.ask_metadata(port, now);
            self.fill(port, now);
        }
        self.links.session(port).is_some_and(|session| session.poll_transmit(out))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let of_partitions = self.active.iter().flat_map(|index| self.partitions[*index as usize].timeouts(&self.config));
        let of_metadata = self.metadata.not_before.filter(|_| self.metadata.wanted && !self.metadata.asked && !self.active.is_empty());
        let ahead = |at: &Instant| self.looked_at.is_none_or(|looked_at| *at > looked_at);
        of_partitions.chain(of_metadata).filter(ahead).chain(self.links.poll_timeout()).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.looked_at = Some(now);
        for (port, error) in self.links.overdue(now) {
            let lost = self.links.fail(port, error, now);
            self.on_lost(lost);
        }
        self.expire(now);
    }
}

/// The sequence of the record after `records` more; wraps after 2³¹ − 1.
fn sequence_after(sequence: i32, records: u32) -> i32 {
    ((sequence as u32).wrapping_add(records) & 0x7fff_ffff) as i32
}

/// Whether `a` comes before `b`, the nearer way round.
fn sequence_is_before(a: i32, b: i32) -> bool {
    let ahead = (b as u32).wrapping_sub(a as u32) & 0x7fff_ffff;
    ahead != 0 && ahead < 0x4000_0000
}

/// Whether a batch refused with this code is certainly not in the log: it is judged before anything is appended.
fn leaves_no_trace(code: ErrorCode) -> bool {
    use ErrorCode::*;
    matches!(
        code,
        MalformedRequest
            | UnsupportedOp
            | CorruptFrame
            | MessageTooLarge
            | UnknownTopic
            | UnknownPartition
            | InvalidArgument
            | LimitExceeded
            | InvalidBatch
            | Overloaded
            | DiskFull
            | QueueFull
            | Unauthenticated
    )
}

/// Bytes of a frame without records.
const EMPTY_BATCH_BYTES: usize = HEADER_BYTES + BATCH_PREFIX_BYTES;
/// Memory of finished batches kept for the next ones.
const SPARE_BATCHES: usize = 16;
/// Least pause between two requests for metadata.
const METADATA_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
