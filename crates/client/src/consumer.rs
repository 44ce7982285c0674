//! The consumer without sockets or clock: fetches out, batches of records in.
//!
//! A fetch reply's first 32 bytes say where the next fetch begins, so it is asked for while the rest is still
//! coming in, as long as `fetch_ahead_bytes` isn't used up. Replies of one partition are handed out in
//! the order of their offsets.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use ringmain_wire::control::{
    CONTROL_VERSION, CommitOffset, EARLIEST, FetchReply, FetchRequest, LATEST, ListOffsets, ListOffsetsReply, MetadataReply,
    MetadataRequest, ReadOffset, ReadOffsetReply, TRANSCODE, read_open, write_open,
};
use ringmain_wire::frame::{self, HEADER_BYTES};
use ringmain_wire::{ErrorCode, Format, Frame, Op, Records};

use crate::error::{BrokerError, ConnectionError, ConsumeError, MetadataError};
use crate::links::{Action, Heard, LinkConfig, Links, Machine, TopicMap};
use crate::session::{Reply, ReplyBody};

/// Where a consumer begins in each partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// At the first record still stored.
    #[default]
    Beginning,
    /// Behind the last record: only what comes from now on.
    End,
    /// At this offset.
    Offset(u64),
    /// At the first record whose timestamp (ms since the Unix epoch) is at least this.
    Timestamp(i64),
    /// Where this consumer's name last committed; where it never did, at the beginning.
    Committed,
}

/// What to do when the position isn't in the partition (any more).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// [`ConsumeError::OutOfRange`].
    #[default]
    Fail,
    /// Go on at the first record still stored.
    Beginning,
    /// Go on behind the last record.
    End,
}

/// What a consumer reads and how far ahead it fetches.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// Where to begin. Default: the beginning.
    pub from: StartFrom,
    /// Under which name offsets are committed and read, 1 to 255 bytes; needed for committing only. Default none.
    pub name: Option<String>,
    /// Indexes of the partitions to read; `None` (default) = all, those added later included.
    pub partitions: Option<Vec<u32>>,
    /// Most bytes of one fetch reply; a larger batch still comes whole. Default 1 MiB.
    pub fetch_max_bytes: u32,
    /// The broker holds a fetch until so many bytes are there or `max_wait` is over. Default 1.
    pub fetch_min_bytes: u32,
    /// Bytes asked for or received and not handed out yet, over all partitions. At least one fetch is always
    /// made. Default 8 MiB.
    pub fetch_ahead_bytes: usize,
    /// Most fetches without a complete answer per partition; at least 1. Default 4.
    pub fetches_ahead: usize,
    /// How long the broker may hold a fetch that finds nothing; at least 1 ms. Default 500 ms.
    pub max_wait: Duration,
    /// What to do when the position isn't in the partition. Default: fail.
    pub out_of_range: OutOfRange,
    /// How connections are made and kept; its back-off also paces repeats.
    pub links: LinkConfig,
}

impl Default for ConsumerConfig {
    fn default() -> ConsumerConfig {
        ConsumerConfig {
            from: StartFrom::Beginning,
            name: None,
            partitions: None,
            fetch_max_bytes: 1 << 20,
            fetch_min_bytes: 1,
            fetch_ahead_bytes: 8 << 20,
            fetches_ahead: 4,
            max_wait: Duration::from_millis(500),
            out_of_range: OutOfRange::Fail,
            links: LinkConfig::default(),
        }
    }
}

/// One record, borrowed from a [`RecordBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumedRecord<'a> {
    /// Index of the partition within the topic.
    pub partition_index: u32,
    /// Its position in the partition.
    pub offset: u64,
    /// Milliseconds since the Unix epoch, as the producer set it.
    pub timestamp_ms: i64,
    /// `None` = null.
    pub key: Option<&'a [u8]>,
    /// `None` = null (a tombstone).
    pub value: Option<&'a [u8]>,
    /// Encoded; read with [`ringmain_wire::record::headers`].
    pub headers: &'a [u8],
}

/// Records of one partition, consecutive, checked, at least one: what one fetch brought.
#[derive(Debug)]
pub struct RecordBatch {
    partition_index: u32,
    body: ReplyBody,
    frames: Vec<FrameSpan>,
    next_offset: u64,
    record_count: u64,
    high_watermark: u64,
}

#[derive(Clone, Debug)]
struct FrameSpan {
    /// The frame's body within the reply.
    body: Range<usize>,
    base_offset: u64,
    record_count: u32,
    /// Records at the front that lie before the position.
    skip: u32,
}

impl RecordBatch {
    /// Index of the partition within the topic.
    pub fn partition_index(&self) -> u32 {
        self.partition_index
    }

    /// The records, in the order of their offsets.
    pub fn records(&self) -> impl Iterator<Item = ConsumedRecord<'_>> {
        self.frames.iter().flat_map(|span| {
            let records = Records::new(&self.body[span.body.clone()], span.record_count).into_iter().flatten();
            // Every record was read once when the batch was made, so nothing is dropped here.
            records.zip(span.base_offset..).skip(span.skip as usize).filter_map(|(record, offset)| {
                let record = record.ok()?;
                Some(ConsumedRecord {
                    partition_index: self.partition_index,
                    offset,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                })
            })
        })
    }

    /// How many records there are; at least 1.
    pub fn record_count(&self) -> u64 {
        self.record_count
    }

    /// Where the consumer goes on after this batch.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// First offset that wasn't readable yet when the broker answered.
    pub fn high_watermark(&self) -> u64 {
        self.high_watermark
    }

    /// Bytes of the reply it came in.
    pub fn fetched_bytes(&self) -> usize {
        self.body.len()
    }
}

/// Where a consumer is in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Index of the partition within the topic.
    pub partition_index: u32,
    /// Next offset to be handed out; `None` = the broker wasn't heard yet.
    pub next_offset: Option<u64>,
    /// First offset that wasn't readable yet at the last answer; `None` = no answer yet.
    pub high_watermark: Option<u64>,
    /// First offset still stored at the last answer; `None` = no answer yet.
    pub log_start: Option<u64>,
    /// The last offset that was committed by this consumer since it began.
    pub committed: Option<u64>,
}

/// The consumer's state. See the module's text for its rules, [`Machine`] for how to drive it.
#[derive(Debug)]
pub struct ConsumerMachine {
    config: ConsumerConfig,
    topic: TopicMap,
    links: Links<Purpose>,
    partitions: Vec<Partition>,
    /// Complete replies in the order of their arrival.
    arrived: VecDeque<Arrived>,
    errors: VecDeque<ConsumeError>,
    commit_error: Option<ConsumeError>,
    /// Indexes of the partitions, the one that fetched longest ago first.
    order: VecDeque<u32>,
    next_fetch_id: u64,
    /// Bytes asked for or received and not handed out yet.
    reserved_bytes: usize,
    metadata_wanted: bool,
    metadata_asked: bool,
    metadata_not_before: Option<Instant>,
    end: Option<MetadataError>,
    looked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    Metadata,
    Fetch { partition_index: u32, id: u64 },
    ListOffsets { partition_index: u32, seek: u64 },
    ReadOffset { partition_index: u32, seek: u64 },
    Commit { partition_index: u32, offset: u64 },
}

#[derive(Debug)]
struct Partition {
    read: bool,
    start: Start,
    /// Counts the seeks: answers to look-ups of an earlier one are stale.
    seek: u64,
    /// Next offset to hand out.
    position: u64,
    /// Where the next fetch begins; `None` = the head of the last fetch hasn't arrived.
    fetch_from: Option<u64>,
    fetches: VecDeque<Fetch>,
    high_watermark: Option<u64>,
    log_start: Option<u64>,
    failures: u32,
    retry_at: Option<Instant>,
    /// A stopping error was reported: nothing is fetched until it was taken.
    halted: bool,
    commit: Option<u64>,
    commit_asked: bool,
    committed: Option<u64>,
    /// Batches of another protocol have come: the broker is asked to turn them into native ones.
    transcode: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// To be looked up.
    Unknown(StartFrom),
    /// Being looked up; asked again from the same place if the answer is lost.
    Asked(StartFrom),
    Known,
}

/// What came of trying to ask something for a partition.
enum Asked {
    Yes,
    Nothing,
    NoBudget,
}

#[derive(Debug)]
struct Fetch {
    id: u64,
    from: u64,
    reserved_bytes: usize,
    head: Option<FetchReply>,
    body: Option<ReplyBody>,
}

#[derive(Debug)]
struct Arrived {
    partition_index: u32,
    fetch: Fetch,
}

impl ConsumerMachine {
    /// A consumer of `topic`. Errors: `NoSuchPartition`, `NoName` (start at the committed offsets of nobody).
    pub fn new(config: ConsumerConfig, topic: TopicMap) -> Result<ConsumerMachine, ConsumeError> {
        let partition_count = topic.partitions.len() as u32;
        if let Some(index) = config.partitions.iter().flatten().copied().find(|index| *index >= partition_count) {
            return Err(ConsumeError::NoSuchPartition { index, partition_count });
        }
        if config.from == StartFrom::Committed && config.name.is_none() {
            return Err(ConsumeError::NoName);
        }
        let config = ConsumerConfig {
            fetches_ahead: config.fetches_ahead.max(1),
            fetch_max_bytes: config.fetch_max_bytes.max(1),
            max_wait: config.max_wait.max(Duration::from_millis(1)),
            ..config
        };
        let mut machine = ConsumerMachine {
            links: Links::new(config.links.clone()),
            partitions: Vec::new(),
            arrived: VecDeque::new(),
            errors: VecDeque::new(),
            commit_error: None,
            order: VecDeque::new(),
            next_fetch_id: 0,
            reserved_bytes: 0,
            metadata_wanted: false,
            metadata_asked: false,
            metadata_not_before: None,
            end: None,
            looked_at: None,
            topic,
            config,
        };
        machine.add_partitions(machine.config.from);
        Ok(machine)
    }

    fn add_partitions(&mut self, from: StartFrom) {
        for index in self.partitions.len()..self.topic.partitions.len() {
            let read = self.config.partitions.as_ref().is_none_or(|chosen| chosen.contains(&(index as u32)));
            let mut partition = Partition {
                read,
                start: Start::Unknown(from),
                seek: 0,
                position: 0,
                fetch_from: None,
                fetches: VecDeque::new(),
                high_watermark: None,
                log_start: None,
                failures: 0,
                retry_at: None,
                halted: false,
                commit: None,
                commit_asked: false,
                committed: None,
                transcode: false,
            };
            if let StartFrom::Offset(offset) = from {
                partition.begin_at(offset);
            }
            self.partitions.push(partition);
            self.order.push_front(index as u32);
        }
    }

    /// The next records, if some have arrived. Records count as handed out, and will be committed, from here on.
    ///
    /// Errors: see [`ConsumeError`]; each is given once, and asking again makes the consumer try again.
    pub fn poll_batch(&mut self) -> Result<Option<RecordBatch>, ConsumeError> {
        if let Some(error) = &self.end {
            return Err(ConsumeError::Topic(error.clone()));
        }
        if let Some(error) = self.errors.pop_front() {
            return Err(error);
        }
        // Whoever comes back after an error had the chance to seek: try again.
        self.partitions.iter_mut().for_each(|partition| partition.halted = false);
        while let Some(Arrived { partition_index, fetch }) = self.arrived.pop_front() {
            self.reserved_bytes -= fetch.reserved_bytes;
            let partition = &mut self.partitions[partition_index as usize];
            let (Some(head), Some(body)) = (fetch.head, fetch.body) else { continue };
            let partition_id = self.topic.partitions[partition_index as usize].partition;
            match open_reply(partition_index, partition_id, partition.position, &head, body) {
                Ok(opened) => {
                    partition.position = opened.batch.next_offset;
                    if opened.cut {
                        // What follows the good frames is bad: fetch it again, to report it or to find it mended.
                        self.restart(partition_index);
                    }
                    if opened.batch.record_count > 0 {
                        return Ok(Some(opened.batch));
                    }
                }
                Err(ConsumeError::UnsupportedFormat { format, .. }) if format == Format::Kafka as u8 && !partition.transcode => {
                    partition.transcode = true;
                    self.restart(partition_index);
                }
                Err(error) => {
                    partition.halted = true;
                    self.restart(partition_index);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Whether complete replies wait for [`ConsumerMachine::poll_batch`]; they may turn out to hold no records.
    pub fn has_arrivals(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Takes back the memory of a batch that was read, for the next replies.
    pub fn recycle(&mut self, batch: RecordBatch) {
        let port = self.topic.partitions[batch.partition_index as usize].port;
        if let Some(session) = self.links.session(port) {
            session.recycle(batch.body);
        }
    }

    /// Goes on at `offset` in one partition; what was fetched ahead there is dropped.
    ///
    /// Errors: `NoSuchPartition`.
    pub fn seek(&mut self, partition_index: u32, offset: u64) -> Result<(), ConsumeError> {
        let partition_count = self.partitions.len() as u32;
        let partition = self.partitions.get_mut(partition_index as usize).filter(|partition| partition.read);
        let partition = partition.ok_or(ConsumeError::NoSuchPartition { index: partition_index, partition_count })?;
        partition.begin_at(offset);
        partition.halted = false;
        self.restart(partition_index);
        Ok(())
    }

    /// Forgets what was fetched or asked for beyond the position of a partition.
    fn restart(&mut self, partition_index: u32) {
        let partition = &mut self.partitions[partition_index as usize];
        for fetch in partition.fetches.drain(..) {
            self.reserved_bytes -= fetch.reserved_bytes;
        }
        partition.fetch_from = (partition.start == Start::Known).then_some(partition.position);
        self.arrived.retain(|arrived| {
            let keep = arrived.partition_index != partition_index;
            if !keep {
                self.reserved_bytes -= arrived.fetch.reserved_bytes;
            }
            keep
        });
    }

    /// Asks for the positions reached so far to be committed under the configured name. Done when
    /// [`ConsumerMachine::commits_open`] is 0. Partitions that didn't move since are left out.
    ///
    /// Errors: `NoName`.
    pub fn begin_commit(&mut self) -> Result<(), ConsumeError> {
        if self.config.name.is_none() {
            return Err(ConsumeError::NoName);
        }
        for partition in self.partitions.iter_mut().filter(|partition| partition.read && partition.start == Start::Known) {
            if partition.committed != Some(partition.position) {
                partition.commit = Some(partition.position);
            }
        }
        Ok(())
    }

    /// Partitions whose commit isn't answered yet.
    pub fn commits_open(&self) -> usize {
        self.partitions.iter().filter(|partition| partition.commit.is_some()).count()
    }

    /// The first commit that was refused since the last call.
    pub fn take_commit_error(&mut self) -> Option<ConsumeError> {
        self.commit_error.take()
    }

    /// Gives up commits that aren't answered yet.
    pub fn abandon_commits(&mut self) {
        self.partitions.iter_mut().for_each(|partition| partition.commit = None);
    }

    /// Where this consumer is, per partition it reads.
    pub fn positions(&self) -> impl Iterator<Item = Position> {
        self.partitions.iter().enumerate().filter(|(_, partition)| partition.read).map(|(index, partition)| Position {
            partition_index: index as u32,
            next_offset: (partition.start == Start::Known).then_some(partition.position),
            high_watermark: partition.high_watermark,
            log_start: partition.log_start,
            committed: partition.committed,
        })
    }

    /// Whether every partition was read up to the high watermark that its last answer named.
    pub fn at_end(&self) -> bool {
        self.positions().all(|p| p.next_offset.zip(p.high_watermark).is_some_and(|(next, end)| next >= end))
    }

    /// The last problem with a connection, until one is ready again.
    pub fn connection_problem(&self) -> Option<&ConnectionError> {
        self.links.problem()
    }

    /// The topic as known now.
    pub fn topic(&self) -> &TopicMap {
        &self.topic
    }

    /// What one fetch asks for, so that the budget reaches round all partitions.
    fn fetch_bytes(&self) -> u32 {
        let read = self.partitions.iter().filter(|partition| partition.read).count().max(1);
        let share = u32::try_from(self.config.fetch_ahead_bytes / read).unwrap_or(u32::MAX);
        share.max(LEAST_FETCH_BYTES).min(self.config.fetch_max_bytes)
    }

    /// Queues requests for the partitions on `port` while the session and the budget have room.
    fn fill(&mut self, port: u16, now: Instant) {
        let max_bytes = self.fetch_bytes();
        let mut claimed_bytes = 0;
        for index in self.order.clone() {
            let index = index as usize;
            let other = self.topic.partitions[index].port;
            if other != port {
                // Budget goes to whoever fetched longest ago, also when another connection is being filled.
                let wants = self.partitions[index].wants_fetch(now, &self.config);
                if wants && self.links.ready_session(other).is_some_and(|session| session.has_room()) {
                    claimed_bytes += max_bytes as usize;
                }
                continue;
            }
            loop {
                if self.links.ready_session(port).is_none_or(|session| !session.has_room()) {
                    return;
                }
                match self.ask(index, port, max_bytes, claimed_bytes, now) {
                    Asked::Yes => {}
                    Asked::Nothing => break,
                    Asked::NoBudget => {
                        claimed_bytes = self.config.fetch_ahead_bytes;
                        break;
                    }
                }
            }
        }
    }

    /// Makes the next request for a partition.
    fn ask(&mut self, index: usize, port: u16, max_bytes: u32, claimed_bytes: usize, now: Instant) -> Asked {
        let partition_index = index as u32;
        let partition_id = self.topic.partitions[index].partition;
        let partition = &mut self.partitions[index];
        if !partition.read || partition.retry_at.is_some_and(|at| at > now) {
            return Asked::Nothing;
        }
        let Some(session) = self.links.ready_session(port) else { return Asked::Nothing };
        let mut body = Vec::new();
        if let (Some(offset), false, Some(name)) = (partition.commit, partition.commit_asked, &self.config.name) {
            let metadata = String::new();
            write_open(&CommitOffset { consumer: name.clone(), partition: partition_id, offset, metadata }, &mut body);
            session.request(Op::CommitOffset, Purpose::Commit { partition_index, offset }, now, Duration::ZERO, &body);
            partition.commit_asked = true;
            return Asked::Yes;
        }
        if partition.halted {
            return Asked::Nothing;
        }
        let seek = partition.seek;
        if let Start::Unknown(from) = partition.start {
            partition.start = Start::Asked(from);
            let timestamp_ms = match (from, &self.config.name) {
                (StartFrom::Committed, Some(name)) => {
                    write_open(&ReadOffset { consumer: name.clone(), partition: partition_id }, &mut body);
                    session.request(Op::ReadOffset, Purpose::ReadOffset { partition_index, seek }, now, Duration::ZERO, &body);
                    return Asked::Yes;
                }
                (StartFrom::End, _) => LATEST,
                (StartFrom::Timestamp(timestamp_ms), _) => timestamp_ms.max(0),
                _ => EARLIEST,
            };
            let request = ListOffsets { version: CONTROL_VERSION, reserved: 0, partition: partition_id, timestamp_ms };
            session.request(Op::ListOffsets, Purpose::ListOffsets { partition_index, seek }, now, Duration::ZERO, &request.to_bytes());
            return Asked::Yes;
        }
        let Some(from) = partition.fetch_from.filter(|_| partition.fetches.len() < self.config.fetches_ahead) else {
            return Asked::Nothing;
        };
        let taken_bytes = self.reserved_bytes + claimed_bytes;
        if taken_bytes > 0 && taken_bytes + max_bytes as usize > self.config.fetch_ahead_bytes {
            return Asked::NoBudget;
        }
        self.order.retain(|other| *other != partition_index);
        self.order.push_back(partition_index);
        // The first answer of a partition says where its end is: nobody should have to wait for that.
        let max_wait = if partition.high_watermark.is_some() { self.config.max_wait } else { Duration::ZERO };
        let id = self.next_fetch_id;
        self.next_fetch_id += 1;
        let request = FetchRequest {
            version: CONTROL_VERSION,
            reserved: 0,
            partition: partition_id,
            offset: from,
            min_bytes: self.config.fetch_min_bytes,
            max_bytes,
            max_wait_ms: u32::try_from(max_wait.as_millis()).unwrap_or(u32::MAX),
            flags: if partition.transcode { TRANSCODE } else { 0 },
        };
        session.request(Op::Fetch, Purpose::Fetch { partition_index, id }, now, max_wait, &request.to_bytes());
        partition.retry_at = None;
        partition.fetch_from = None;
        let reserved_bytes = max_bytes as usize;
        partition.fetches.push_back(Fetch { id, from, reserved_bytes, head: None, body: None });
        self.reserved_bytes += reserved_bytes;
        Asked::Yes
    }

    fn ask_metadata(&mut self, port: u16, now: Instant) {
        if !self.metadata_wanted || self.metadata_asked || self.metadata_not_before.is_some_and(|at| at > now) || port != 0 {
            return;
        }
        let Some(session) = self.links.ready_session(port) else { return };
        let mut body = Vec::new();
        write_open(&MetadataRequest { topics: Some(vec![self.topic.name.clone()]) }, &mut body);
        session.request(Op::Metadata, Purpose::Metadata, now, Duration::ZERO, &body);
        (self.metadata_wanted, self.metadata_asked, self.metadata_not_before) = (false, true, Some(now + METADATA_PAUSE));
    }

    fn on_head(&mut self, context: Purpose, head: FetchReply, body_bytes: u32) {
        let Purpose::Fetch { partition_index, id } = context else { return };
        let partition = &mut self.partitions[partition_index as usize];
        let Some(at) = partition.fetches.iter().position(|fetch| fetch.id == id) else { return };
        let is_last = at + 1 == partition.fetches.len();
        let fetch = &mut partition.fetches[at];
        fetch.head = Some(head);
        self.reserved_bytes = self.reserved_bytes - fetch.reserved_bytes + body_bytes as usize;
        fetch.reserved_bytes = body_bytes as usize;
        partition.high_watermark = Some(head.high_watermark);
        partition.log_start = Some(head.log_start);
        if is_last && head.next_offset >= fetch.from {
            partition.fetch_from = Some(head.next_offset);
        }
    }

    fn on_reply(&mut self, reply: Reply<Purpose>, now: Instant) {
        self.metadata_wanted |= reply.moved;
        match reply.context {
            Purpose::Metadata => self.on_metadata(reply.result),
            Purpose::Fetch { partition_index, id } => self.on_fetched(partition_index, id, reply.result, now),
            Purpose::ListOffsets { partition_index, seek } => {
                let offset = reply.result.and_then(|body| {
                    ListOffsetsReply::read(&body).map(|found| found.offset).map_err(|error| unreadable(Op::ListOffsets, &error))
                });
                self.on_looked_up(partition_index, seek, offset.map(Some), now);
            }
            Purpose::ReadOffset { partition_index, seek } => {
                let offset = reply.result.and_then(|body| {
                    read_open::<ReadOffsetReply>(&body).map(|found| found.offset).map_err(|error| unreadable(Op::ReadOffset, &error))
                });
                self.on_looked_up(partition_index, seek, offset, now);
            }
            Purpose::Commit { partition_index, offset } => {
                let backoff = self.links.backoff(self.partitions[partition_index as usize].failures + 1);
                let partition = &mut self.partitions[partition_index as usize];
                partition.commit_asked = false;
                match reply.result {
                    Ok(_) => {
                        partition.committed = Some(offset);
                        partition.commit = partition.commit.filter(|wanted| *wanted != offset);
                    }
                    Err(error) if error.code.is_retriable() => {
                        partition.failures += 1;
                        partition.retry_at = Some(now + backoff);
                    }
                    Err(error) => {
                        partition.commit = None;
                        self.commit_error.get_or_insert(ConsumeError::Broker { partition_index, error });
                    }
                }
            }
        }
    }

    fn on_metadata(&mut self, result: Result<ReplyBody, BrokerError>) {
        self.metadata_asked = false;
        let found = result.ok().and_then(|body| read_open::<MetadataReply>(&body).ok());
        match found.map(|reply| TopicMap::find(&reply, &self.topic.name).and_then(|newer| self.topic.update(newer))) {
            // A partition added since is read from its beginning: nothing in it was seen.
            Some(Ok(())) => self.add_partitions(StartFrom::Beginning),
            Some(Err(error)) => self.end = Some(error),
            None => self.metadata_wanted = true,
        }
    }

    fn on_looked_up(&mut self, partition_index: u32, seek: u64, offset: Result<Option<u64>, BrokerError>, now: Instant) {
        let partition = &mut self.partitions[partition_index as usize];
        let Start::Asked(from) = partition.start else { return };
        if partition.seek != seek {
            return;
        }
        match offset {
            Ok(Some(offset)) => {
                partition.begin_at(offset);
                partition.failures = 0;
                partition.committed = (from == StartFrom::Committed).then_some(offset);
                self.restart(partition_index);
            }
            Ok(None) => partition.start = Start::Unknown(StartFrom::Beginning),
            Err(error) => {
                partition.start = Start::Unknown(from);
                self.on_refused(partition_index, error, now);
            }
        }
    }

    fn on_fetched(&mut self, partition_index: u32, id: u64, result: Result<ReplyBody, BrokerError>, now: Instant) {
        let partition = &mut self.partitions[partition_index as usize];
        let Some(fetch) = partition.fetches.iter_mut().find(|fetch| fetch.id == id) else { return };
        match result {
            Ok(body) => {
                fetch.body = Some(body);
                partition.failures = 0;
            }
            Err(error) if error.code == ErrorCode::OffsetOutOfRange => {
                let offset = fetch.from;
                if self.arrived.iter().any(|arrived| arrived.partition_index == partition_index) {
                    // What lies before is handed out first; the question is asked again then.
                    partition.retry_at = Some(now + self.links.backoff(1));
                    return self.restart_after_arrived(partition_index);
                }
                let from = match self.config.out_of_range {
                    OutOfRange::Fail => None,
                    OutOfRange::Beginning => Some(StartFrom::Beginning),
                    OutOfRange::End => Some(StartFrom::End),
                };
                match from {
                    Some(from) => {
                        partition.seek += 1;
                        partition.start = Start::Unknown(from);
                    }
                    None => {
                        partition.halted = true;
                        self.errors.push_back(ConsumeError::OutOfRange { partition_index, offset });
                    }
                }
                return self.restart_after_arrived(partition_index);
            }
            Err(error) => {
                self.restart_after_arrived(partition_index);
                return self.on_refused(partition_index, error, now);
            }
        }
        while partition.fetches.front().is_some_and(|fetch| fetch.body.is_some()) {
            let Some(fetch) = partition.fetches.pop_front() else { break };
            self.arrived.push_back(Arrived { partition_index, fetch });
        }
    }

    /// Asks again for everything of a partition that hasn't arrived whole.
    fn restart_after_arrived(&mut self, partition_index: u32) {
        let partition = &mut self.partitions[partition_index as usize];
        let first = partition.fetches.front().map(|fetch| fetch.from);
        for fetch in partition.fetches.drain(..) {
            self.reserved_bytes -= fetch.reserved_bytes;
        }
        if partition.start == Start::Known {
            partition.fetch_from = first.or(partition.fetch_from);
        } else {
            partition.fetch_from = None;
        }
    }

    fn on_refused(&mut self, partition_index: u32, error: BrokerError, now: Instant) {
        let backoff = self.links.backoff(self.partitions[partition_index as usize].failures + 1);
        let partition = &mut self.partitions[partition_index as usize];
        partition.failures += 1;
        partition.retry_at = Some(now + backoff);
        self.metadata_wanted |= error.code == ErrorCode::UnknownPartition;
        if !error.code.is_retriable() {
            partition.halted = true;
            self.errors.push_back(ConsumeError::Broker { partition_index, error });
        }
    }

    fn on_lost(&mut self, lost: Vec<Purpose>) {
        self.metadata_wanted = true;
        let mut fetching = BTreeSet::new();
        for purpose in lost {
            match purpose {
                Purpose::Metadata => self.metadata_asked = false,
                Purpose::Fetch { partition_index, id } => {
                    if self.partitions[partition_index as usize].fetches.iter().any(|fetch| fetch.id == id) {
                        fetching.insert(partition_index);
                    }
                }
                Purpose::ListOffsets { partition_index, seek } | Purpose::ReadOffset { partition_index, seek } => {
                    let partition = &mut self.partitions[partition_index as usize];
                    if let (Start::Asked(from), true) = (partition.start, partition.seek == seek) {
                        partition.start = Start::Unknown(from);
                    }
                }
                Purpose::Commit { partition_index, .. } => self.partitions[partition_index as usize].commit_asked = false,
            }
        }
        fetching.into_iter().for_each(|index| self.restart_after_arrived(index));
    }
}

impl Partition {
    /// Whether only budget and connection stand between this partition and its next fetch.
    fn wants_fetch(&self, now: Instant, config: &ConsumerConfig) -> bool {
        let may = self.read && !self.halted && self.start == Start::Known && self.retry_at.is_none_or(|at| at <= now);
        may && self.fetch_from.is_some() && self.fetches.len() < config.fetches_ahead
    }

    fn begin_at(&mut self, offset: u64) {
        self.seek += 1;
        self.start = Start::Known;
        self.position = offset;
        self.fetch_from = Some(offset);
    }
}

fn unreadable(op: Op, error: &dyn std::fmt::Display) -> BrokerError {
    BrokerError { op, code: ErrorCode::Unknown, number: 0, message: format!("the answer can't be read: {error}") }
}

struct Opened {
    batch: RecordBatch,
    /// Something after the good frames is bad.
    cut: bool,
}

/// Checks a whole fetch reply: frames, checksums, records. A bad frame behind good ones cuts the batch before it.
fn open_reply(partition_index: u32, partition_id: u32, position: u64, head: &FetchReply, body: ReplyBody) -> Result<Opened, ConsumeError> {
    let bad = |problem: String| ConsumeError::BadReply { partition_index, offset: position, problem };
    if head.partition != partition_id {
        return Err(bad(format!("the reply is for partition number {}, {partition_id} was asked for", head.partition)));
    }
    let (mut frames, mut record_count, mut next_offset, mut cut) = (Vec::new(), 0, position, None);
    let mut at_bytes = FetchReply::BYTES;
    for frame in frame::frames(&body[FetchReply::BYTES..]) {
        let checked = frame.map_err(|error| ConsumeError::Frame { partition_index, offset: next_offset, error });
        let spanned = checked.and_then(|frame| {
            let span = check_frame(partition_index, partition_id, next_offset, at_bytes, &frame)?;
            at_bytes += frame.padded_bytes();
            Ok((span, frame.end_offset().0))
        });
        match spanned {
            Ok((Some(span), end)) => {
                record_count += u64::from(span.record_count - span.skip);
                frames.push(span);
                next_offset = end;
            }
            Ok((None, end)) => next_offset = next_offset.max(end),
            Err(error) => {
                cut = Some(error);
                break;
            }
        }
    }
    match cut {
        Some(error) if frames.is_empty() => return Err(error),
        None if head.next_offset < next_offset => {
            return Err(bad(format!("the reply says that {} comes next, its frames end at {next_offset}", head.next_offset)));
        }
        // An offset beyond the frames: a gap that a crash left in a partition that isn't durable.
        None => next_offset = head.next_offset,
        Some(_) => {}
    }
    let high_watermark = head.high_watermark;
    Ok(Opened { cut: cut.is_some(), batch: RecordBatch { partition_index, body, frames, next_offset, record_count, high_watermark } })
}

/// Where a frame's records are; `None` = nothing in it is for the caller.
fn check_frame(
    partition_index: u32,
    partition_id: u32,
    position: u64,
    at_bytes: usize,
    frame: &Frame<'_>,
) -> Result<Option<FrameSpan>, ConsumeError> {
    let bad = |error| ConsumeError::Frame { partition_index, offset: position, error };
    frame.verify_header().map_err(bad)?;
    let offset = frame.base_offset().0;
    let record_count = frame.header.producer.record_count;
    let next_offset = offset.checked_add(u64::from(record_count));
    let next_offset = next_offset.ok_or_else(|| ConsumeError::BadReply {
        partition_index,
        offset: position,
        problem: format!("offset {offset} is impossible"),
    })?;
    if frame.partition().0 != partition_id {
        let problem = format!("a batch of partition number {} came, {partition_id} was asked for", frame.partition());
        return Err(ConsumeError::BadReply { partition_index, offset: position, problem });
    }
    if next_offset <= position {
        return Ok(None);
    }
    frame.verify_body().map_err(bad)?;
    if frame.header.producer.flags & frame::flags::CONTROL != 0 {
        return Ok(None);
    }
    if frame.header.producer.format != Format::Native as u8 {
        return Err(ConsumeError::UnsupportedFormat { partition_index, offset, next_offset, format: frame.header.producer.format });
    }
    let inconsistent = |error| ConsumeError::Records { partition_index, offset, next_offset, error };
    for record in Records::new(frame.body(), record_count).map_err(inconsistent)? {
        record.map_err(inconsistent)?;
    }
    let skip = position.saturating_sub(offset) as u32;
    let body = at_bytes + HEADER_BYTES..at_bytes + frame.len_bytes();
    Ok(Some(FrameSpan { body, base_offset: offset, record_count, skip }))
}

impl Machine for ConsumerMachine {
    fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.links.want_none();
        if self.end.is_none() {
            for (partition, place) in self.partitions.iter().zip(&self.topic.partitions) {
                if partition.read {
                    self.links.want(place.port);
                }
            }
            if self.metadata_wanted {
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
                Heard::Ready(_) => {}
                Heard::FetchHead { context, head, body_bytes } => self.on_head(context, head, body_bytes),
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
        let of_partitions = self.partitions.iter().filter_map(|partition| partition.retry_at);
        let of_metadata = self.metadata_not_before.filter(|_| self.metadata_wanted && !self.metadata_asked);
        let ahead = |at: &Instant| self.looked_at.is_none_or(|looked_at| *at > looked_at);
        of_partitions.chain(of_metadata).filter(ahead).chain(self.links.poll_timeout()).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.looked_at = Some(now);
        for (port, error) in self.links.overdue(now) {
            let lost = self.links.fail(port, error, now);
            self.on_lost(lost);
        }
    }
}

/// Least size of a fetch when many partitions share the budget.
const LEAST_FETCH_BYTES: u32 = 64 << 10;
/// Least pause between two requests for metadata.
const METADATA_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
