//! Stored batches of many partitions, within the client's limits. All partitions are asked without waiting; if that is too
//! little, every shard concerned tells when there is more, and they are asked again.
//!
//! There are no fetch sessions: every request names its partitions, which clients understand from session id 0.
//!
//! The response is encoded here, by hand, around the stored batches: they are sent from the copy that came from the log.

use ringmain_wire::frame::{self, HEADER_BYTES};
use ringmain_wire::{Format, Offset, PartitionId, ShardId};

use super::metadata::leader_epoch;
use super::{Answer, Batches, Call, Context, TopicParts, check_epoch, place};
use crate::frontend::kafka::decode::{FetchPartition, FetchRequest};
use crate::frontend::kafka::{errors, records};
use crate::request::{Fetch as ShardFetch, FetchData, Fetched, Reply, Watch};
use crate::router::letter::OwnedRequest;

/// Most that one response holds, one batch excepted.
const RESPONSE_MAX_BYTES: usize = 8 << 20;
/// Partitions asked at a time: their answers are in memory together.
const PARTS_AT_A_TIME: usize = 16;
/// Batches that are shorter on average are moved together before they are sent: a send takes 64 pieces and 256 KiB.
const PIECE_LEAST_BYTES: usize = 4096;
/// Longest wait.
const WAIT_MAX_MS: u32 = 30_000;

/// The call.
pub struct Fetch {
    error: i16,
    committed_only: bool,
    min_bytes: usize,
    max_bytes: usize,
    max_wait_ms: u32,
    deadline_us: u64,
    topics: Vec<TopicParts>,
    parts: Vec<Part>,
    /// The first partition that hasn't been asked in this round.
    next: usize,
    unanswered: usize,
    /// Of `max_bytes`: promised to partitions that haven't answered.
    promised_bytes: usize,
    got_bytes: usize,
    /// With what is beside the batches in memory: at most twice as much.
    held_bytes: usize,
    is_watching: bool,
    is_last_round: bool,
}

struct Part {
    index: i32,
    from: Offset,
    max_bytes: usize,
    /// `None` = it has an error.
    place: Option<(PartitionId, ShardId)>,
    error: i16,
    promised_bytes: usize,
    high_watermark: i64,
    last_stable: i64,
    log_start: i64,
    /// Producer id and first offset.
    aborted: Vec<(i64, i64)>,
    batches: Batches,
}

impl Fetch {
    /// Finds the partitions; asks nothing yet.
    pub fn open(request: &FetchRequest<'_>, context: &Context<'_>) -> Fetch {
        let mut parts = Vec::new();
        let topics = request.topics.iter().map(|topic| {
            let known = context.view.catalog.topic(topic.name);
            for wanted in &topic.partitions {
                parts.push(Part::new(wanted, place(known, wanted.index), context));
            }
            TopicParts { name: topic.name.to_owned(), part_count: topic.partitions.len() }
        });
        let topics = topics.collect();
        let bytes = |bytes: i32| usize::try_from(bytes).unwrap_or(0);
        Fetch {
            error: if request.session_id == 0 { errors::NONE } else { errors::FETCH_SESSION_ID_NOT_FOUND },
            committed_only: request.isolation_level == 1,
            min_bytes: bytes(request.min_bytes),
            max_bytes: bytes(request.max_bytes).min(RESPONSE_MAX_BYTES),
            max_wait_ms: u32::try_from(request.max_wait_ms).unwrap_or(0).min(WAIT_MAX_MS),
            deadline_us: 0,
            topics,
            parts,
            next: 0,
            unanswered: 0,
            promised_bytes: 0,
            got_bytes: 0,
            held_bytes: 0,
            is_watching: false,
            is_last_round: false,
        }
    }

    /// Asks as many partitions as may be asked at a time. What is left of the limit goes to those that come first.
    fn ask(&mut self, context: &mut Context<'_>) {
        while self.unanswered < PARTS_AT_A_TIME && self.next < self.parts.len() {
            let number = self.next;
            self.next += 1;
            let left_bytes = self.max_bytes.saturating_sub(self.got_bytes + self.promised_bytes);
            let is_first = self.got_bytes + self.promised_bytes == 0;
            let part = &mut self.parts[number];
            let Some((partition, _)) = part.place else { continue };
            // Whoever gets nothing any more is asked for the state of the partition all the same.
            part.promised_bytes = part.max_bytes.min(left_bytes).max(usize::from(is_first));
            self.promised_bytes += part.promised_bytes;
            self.unanswered += 1;
            let fetch = ShardFetch {
                partition,
                from: part.from,
                min_bytes: 0,
                max_bytes: part.promised_bytes as u32,
                max_wait_ms: 0,
                committed_only: self.committed_only,
            };
            context.ask(number as u32, OwnedRequest::Fetch(fetch));
        }
        if self.unanswered == 0 {
            self.round_ended(context);
        }
    }

    /// Every partition has answered: that is the response, unless it is worth waiting for more.
    fn round_ended(&mut self, context: &mut Context<'_>) {
        let waited = context.view.now.monotonic_us >= self.deadline_us;
        let has_error = self.parts.iter().any(|part| part.error != errors::NONE);
        if self.got_bytes >= self.min_bytes || waited || self.is_last_round || has_error || self.parts.is_empty() {
            return;
        }
        let left_us = self.deadline_us - context.view.now.monotonic_us;
        let max_wait_ms = left_us.div_ceil(1000) as u32;
        let missing_bytes = (self.min_bytes - self.got_bytes) as u32;
        let mut shards: Vec<ShardId> = self.parts.iter().filter_map(|part| part.place).map(|(_, shard)| shard).collect();
        shards.sort_unstable_by_key(|shard| shard.0);
        shards.dedup();
        self.is_watching = true;
        for shard in shards {
            let of_shard = self.parts.iter().filter(|part| part.place.is_some_and(|(_, of)| of == shard));
            let partitions = of_shard.filter_map(|part| {
                let end = if self.committed_only { part.last_stable } else { part.high_watermark };
                part.place.map(|(partition, _)| (partition, Offset(end.max(0) as u64)))
            });
            let watch = Watch { shard, partitions: partitions.collect(), missing_bytes, max_wait_ms, committed_only: self.committed_only };
            context.ask_aside(u32::from(shard.0), OwnedRequest::Watch(watch.into()));
        }
    }

    fn ask_again(&mut self, context: &mut Context<'_>) {
        for part in &mut self.parts {
            part.batches = Batches::default();
            part.aborted = Vec::new();
        }
        (self.next, self.got_bytes, self.held_bytes, self.promised_bytes) = (0, 0, 0, 0);
        self.ask(context);
    }

    fn take(&mut self, number: usize, head: &Fetched, data: FetchData) {
        let Some(part) = self.parts.get_mut(number) else { return };
        part.high_watermark = head.high_watermark.0 as i64;
        part.last_stable = head.last_stable.0 as i64;
        part.log_start = head.log_start.0 as i64;
        let FetchData::Owned(bytes) = data else { return };
        // The first batch of a response goes out however large it is, or its reader would never get past it.
        match Batches::cut(bytes, part.from, part.promised_bytes, self.got_bytes == 0) {
            Ok(batches) => part.batches = batches,
            Err(batches) => (part.batches, part.error) = (batches, errors::CORRUPT_MESSAGE),
        }
        self.got_bytes += part.batches.len_bytes;
        self.held_bytes += part.batches.bytes.len();
        part.aborted = head.aborted.iter().map(|aborted| (aborted.producer_id.0, aborted.first_offset.0 as i64)).collect();
    }
}

impl Batches {
    /// The batches that reach beyond `from`, up to a limit that the first may exceed if `takes_first`. Native ones are made into
    /// batches of Kafka.
    ///
    /// Errors: one can't be read; those before it.
    fn cut(frames: Vec<u8>, from: Offset, limit_bytes: usize, takes_first: bool) -> Result<Batches, Batches> {
        let wanted = || frame::frames(&frames).map_while(Result::ok).filter(|frame| frame.end_offset() > from);
        let fits = |len_bytes: usize, more_bytes: usize| len_bytes + more_bytes <= limit_bytes || (len_bytes == 0 && takes_first);
        if wanted().any(|frame| frame.header.producer.format != Format::Kafka as u8) {
            let (mut bytes, mut is_readable) = (Vec::new(), true);
            for frame in wanted() {
                let before = bytes.len();
                is_readable = records::append_batch(&frame, &mut bytes).is_ok();
                if !is_readable || !fits(before, bytes.len() - before) {
                    bytes.truncate(before);
                    break;
                }
            }
            let len_bytes = bytes.len();
            let batches = Batches { bytes, ranges: std::iter::once(0..len_bytes).collect(), len_bytes }.trimmed();
            return if is_readable { Ok(batches) } else { Err(batches) };
        }
        let (mut ranges, mut len_bytes, mut at_bytes) = (Vec::new(), 0, 0);
        for frame in frame::frames(&frames).map_while(Result::ok) {
            let body = at_bytes + HEADER_BYTES..at_bytes + frame.len_bytes();
            at_bytes += frame.padded_bytes();
            if frame.end_offset() <= from {
                continue;
            }
            if !fits(len_bytes, body.len()) {
                break;
            }
            len_bytes += body.len();
            ranges.push(body);
        }
        Ok(Batches { bytes: frames, ranges, len_bytes }.trimmed())
    }

    /// Moves small batches together: many pieces cost more than copying them. And nothing is kept that is mostly not sent.
    fn trimmed(mut self) -> Batches {
        self.ranges.retain(|range| !range.is_empty());
        if self.len_bytes < self.ranges.len() * PIECE_LEAST_BYTES || self.len_bytes < self.bytes.len() / 2 {
            let mut end = 0;
            for range in std::mem::take(&mut self.ranges) {
                self.bytes.copy_within(range.clone(), end);
                end += range.len();
            }
            self.bytes.truncate(end);
            self.bytes.shrink_to_fit();
            self.ranges.extend((end > 0).then_some(0..end));
        }
        self
    }
}

impl Part {
    fn new(wanted: &FetchPartition, place: Option<(PartitionId, ShardId)>, context: &Context<'_>) -> Part {
        let epoch = place.map_or(-1, |(_, shard)| leader_epoch(shard.0, context.config));
        let error = match (place, check_epoch(wanted.current_leader_epoch, epoch)) {
            (None, _) => errors::UNKNOWN_TOPIC_OR_PARTITION,
            (Some(_), errors::NONE) if wanted.fetch_offset < 0 => errors::OFFSET_OUT_OF_RANGE,
            (Some(_), error) => error,
        };
        Part {
            index: wanted.index,
            from: Offset(wanted.fetch_offset.max(0) as u64),
            max_bytes: usize::try_from(wanted.partition_max_bytes).unwrap_or(0),
            place: place.filter(|_| error == errors::NONE),
            error,
            promised_bytes: 0,
            high_watermark: -1,
            last_stable: -1,
            log_start: -1,
            aborted: Vec::new(),
            batches: Batches::default(),
        }
    }
}

impl Call for Fetch {
    fn begin(&mut self, context: &mut Context<'_>) {
        if self.error != errors::NONE {
            self.parts.clear();
            self.topics.clear();
            return;
        }
        self.deadline_us = context.view.now.monotonic_us + u64::from(self.max_wait_ms) * 1000;
        self.ask(context);
    }

    fn answer(&mut self, number: u32, reply: Reply, context: &mut Context<'_>) {
        let number = number as usize;
        if let Some(part) = self.parts.get(number) {
            self.promised_bytes -= part.promised_bytes;
        }
        match reply {
            Reply::Fetched { head, data } => self.take(number, &head, data),
            // There is no memory for it now, or it has just left memory: the client comes again.
            Reply::Failed(failure) if failure.code == ringmain_wire::ErrorCode::Overloaded => self.is_last_round = true,
            Reply::Failed(failure) => {
                if let Some(part) = self.parts.get_mut(number) {
                    part.error = errors::code(&failure);
                }
            }
            _ => {}
        }
        self.unanswered -= 1;
        self.ask(context);
    }

    fn answer_aside(&mut self, _shard: u32, reply: Reply, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.is_watching, false) {
            return;
        }
        if matches!(reply, Reply::Watched { is_due: true }) {
            self.ask_again(context);
        }
    }

    fn is_ready(&self) -> bool {
        !self.is_watching
    }

    fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut parts = self.parts.into_iter();
        let mut to = Encoder { out, is_flexible: version >= 12 };
        to.put(0i32.to_be_bytes());
        if version >= 7 {
            to.put(self.error.to_be_bytes());
            // No session.
            to.put(0i32.to_be_bytes());
        }
        to.length(Some(self.topics.len()), false);
        for topic in self.topics {
            to.length(Some(topic.name.len()), true);
            to.out.bytes.extend_from_slice(topic.name.as_bytes());
            to.length(Some(topic.part_count), false);
            for part in parts.by_ref().take(topic.part_count) {
                to.part(part, version, self.committed_only);
            }
            to.no_tagged_fields();
        }
        to.no_tagged_fields();
        Ok(true)
    }
}

/// Writes a Fetch response, versions 4 to 12. Source: `FetchResponse.json` of Apache Kafka 4.3.
struct Encoder<'a> {
    out: &'a mut Answer,
    is_flexible: bool,
}

impl Encoder<'_> {
    fn part(&mut self, part: Part, version: i16, committed_only: bool) {
        self.put(part.index.to_be_bytes());
        self.put(part.error.to_be_bytes());
        self.put(part.high_watermark.to_be_bytes());
        self.put(part.last_stable.to_be_bytes());
        if version >= 5 {
            self.put(part.log_start.to_be_bytes());
        }
        self.length(committed_only.then_some(part.aborted.len()), false);
        for (producer_id, first_offset) in part.aborted.iter().filter(|_| committed_only) {
            self.put(producer_id.to_be_bytes());
            self.put(first_offset.to_be_bytes());
            self.no_tagged_fields();
        }
        if version >= 11 {
            // No other replica is nearer.
            self.put((-1i32).to_be_bytes());
        }
        self.length(Some(part.batches.len_bytes), false);
        if part.batches.len_bytes > 0 {
            self.out.batches.push((self.out.bytes.len(), part.batches));
        }
        self.no_tagged_fields();
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out.bytes.extend_from_slice(&bytes);
    }

    /// Of what follows; `None` = null. `is_short`: 16 bits in the classic encoding.
    fn length(&mut self, length: Option<usize>, is_short: bool) {
        if self.is_flexible {
            let mut rest = length.map_or(0, |length| length + 1);
            while rest >= 0x80 {
                self.put([rest as u8 | 0x80]);
                rest >>= 7;
            }
            return self.put([rest as u8]);
        }
        let length = length.map_or(-1, |length| length as i32);
        if is_short { self.put((length as i16).to_be_bytes()) } else { self.put(length.to_be_bytes()) }
    }

    fn no_tagged_fields(&mut self) {
        if self.is_flexible {
            self.put([0]);
        }
    }
}
