//! The native door: an [`Envelope`] and a body in, the same out.
//!
//! A request body is borrowed from the connection's input buffer all the way into the log; only control
//! messages with lists in them are copied out. Replies may leave in another order than requests came.
//!
//! An error inside a request is answered and the connection stays; when the length of a request can't be
//! trusted, framing is lost and the connection closes after an error reply.

mod encode;
mod group;
mod queue;
#[cfg(test)]
mod tests;
mod transaction;
pub mod transcode;

use std::collections::VecDeque;

use ringmain_wire::control::{
    self, ControlError, CreateTopic, FetchRequest, Hello, HelloReply, ListOffsets, MetadataRequest, StatsRequest,
};
use ringmain_wire::envelope::flags;
use ringmain_wire::group::ListGroups;
use ringmain_wire::record::{BATCH_PREFIX_BYTES, RECORD_HEADER_BYTES};
use ringmain_wire::{
    Envelope, ErrorCode, Format, Frame, FrameError, FrameHeader, Offset, Op, PROTOCOL_VERSION, PartitionId, ProducerId, frame,
};
use rkyv::Portable;
use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;

use crate::frontend::kafka::records::first_since;
use crate::frontend::{Outbox, ProtocolError, Received, Session, View};
use crate::request::{Failure, Fetch, FetchData, Fetched, Reply, Request};
use crate::router::letter::OwnedRequest;

/// Largest request, envelope included, before the peer has said hello (DESIGN, invariant 13).
pub const HELLO_LIMIT_BYTES: usize = 16 << 10;
/// Default of [`NativeConfig::max_request_bytes`]: the default `max.message.bytes` and room for a control message.
pub const DEFAULT_MAX_REQUEST_BYTES: u32 = ringmain_wire::DEFAULT_MAX_MESSAGE_BYTES + (64 << 10);
/// Default of [`NativeConfig::max_in_flight`].
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 1024;
const CLIENT_NAME_MAX_BYTES: usize = 256;
const OPEN_PREFIX_BYTES: usize = 4;

/// What every native connection of a broker is told and held to.
#[derive(Clone, Copy, Debug)]
pub struct NativeConfig {
    /// Identifies the data directory.
    pub cluster_id: u64,
    /// Largest request body. At least the largest `max.message.bytes` any topic may have.
    pub max_request_bytes: u32,
    /// Most requests unanswered on one connection.
    pub max_in_flight: u32,
}

/// One native connection.
#[derive(Debug)]
pub struct NativeSession {
    config: NativeConfig,
    established: bool,
    /// Requests handed out and not answered, by id; grows to the connection's own peak, at most `max_in_flight`.
    pending: Vec<Pending>,
    /// Ids free to be used again.
    free: Vec<u32>,
    /// Some request wanted batches made anew, or messages of a queue.
    makes_answers: bool,
    /// Receives, and the like for transactions to check, handed out and not answered.
    receives: usize,
    /// There were any.
    has_received: bool,
    /// Batches to be looked into before a request is answered.
    asks: VecDeque<(u64, OwnedRequest)>,
}

/// What a reply needs to know of its request.
#[derive(Clone, Copy, Debug)]
struct Pending {
    correlation: u64,
    op: u16,
    waiting: bool,
    /// A fetch that wants batches of other protocols as native ones.
    transcodes: bool,
    /// The request asks for the first record since this time: which partition, and the batch that has it, once that is known.
    time: Option<TimeQuery>,
}

#[derive(Clone, Copy, Debug)]
struct TimeQuery {
    partition: PartitionId,
    since_ms: i64,
    found: Option<(Offset, i64)>,
}

impl NativeSession {
    /// A connection that hasn't said hello.
    pub fn new(config: NativeConfig) -> NativeSession {
        NativeSession {
            config,
            established: false,
            pending: Vec::new(),
            free: Vec::new(),
            makes_answers: false,
            receives: 0,
            has_received: false,
            asks: VecDeque::new(),
        }
    }

    fn begin(&mut self, envelope: &Envelope, body: &[u8]) -> u64 {
        let is_fetch = envelope.op == Op::Fetch as u16;
        let transcodes = is_fetch && FetchRequest::read(body).is_ok_and(|fetch| fetch.flags & control::TRANSCODE != 0);
        let is_receive = envelope.op == Op::QueueReceive as u16;
        self.receives += usize::from(is_receive || envelope.op == Op::TransactionsToCheck as u16);
        self.has_received |= is_receive;
        self.makes_answers |= transcodes || is_receive;
        let list = if envelope.op == Op::ListOffsets as u16 { ListOffsets::read(body).ok() } else { None };
        let time = list.filter(|list| list.timestamp_ms >= 0).map(|list| TimeQuery {
            partition: PartitionId(list.partition),
            since_ms: list.timestamp_ms,
            found: None,
        });
        let pending = Pending { correlation: envelope.correlation, op: envelope.op, waiting: true, transcodes, time };
        if let Some(id) = self.free.pop() {
            self.pending[id as usize] = pending;
            return u64::from(id);
        }
        self.pending.push(pending);
        self.pending.len() as u64 - 1
    }

    /// Answers an introduction. `Err` = refused: the answer says why, the connection closes.
    fn hello(&mut self, envelope: &Envelope, body: &[u8], out: &mut Outbox) -> Result<(), Failure> {
        let hello: Hello = control::read_open(body).map_err(control_failure)?;
        if hello.protocol_version == 0 {
            return Err(Failure::new(
                ErrorCode::UnsupportedVersion,
                format!("protocol version 0 does not exist; this broker speaks 1 to {PROTOCOL_VERSION}"),
            ));
        }
        if hello.client_name.len() > CLIENT_NAME_MAX_BYTES {
            return Err(Failure::new(
                ErrorCode::InvalidArgument,
                format!("the client name has {} bytes; at most {CLIENT_NAME_MAX_BYTES} are allowed", hello.client_name.len()),
            ));
        }
        if !hello.auth_mechanism.is_empty() {
            return Err(Failure::new(ErrorCode::Unauthenticated, "this broker serves no authentication mechanism; connect without one"));
        }
        self.established = true;
        let reply = HelloReply {
            protocol_version: hello.protocol_version.min(PROTOCOL_VERSION),
            broker_version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: self.config.cluster_id,
            max_request_bytes: self.config.max_request_bytes,
            max_in_flight: self.config.max_in_flight,
        };
        encode::open(envelope.op, flags::REPLY, envelope.correlation, &reply, out);
        Ok(())
    }

    fn before_hello(&mut self, envelope: &Envelope, body: &[u8], out: &mut Outbox) -> Result<(), ProtocolError> {
        let answer = match Op::from_number(envelope.op) {
            Some(Op::Hello) => self.hello(envelope, body, out),
            _ => Err(Failure::new(ErrorCode::MalformedRequest, format!("the first request must be hello (op 1), got op {}", envelope.op))),
        };
        answer.map_err(|failure| refuse(envelope, failure, out))
    }
}

impl Session for NativeSession {
    fn receive<'a>(&mut self, input: &'a [u8], _view: &View<'_>, out: &mut Outbox) -> Result<Received<'a>, ProtocolError> {
        let Some(envelope) = Envelope::read(input) else {
            return Ok(Received::More { needed_bytes: 0 });
        };
        let body_bytes = envelope.len as usize;
        let consumed_bytes = Envelope::BYTES + body_bytes;
        if !self.established && consumed_bytes > HELLO_LIMIT_BYTES {
            let message = format!("a request of {consumed_bytes} bytes before hello; at most {HELLO_LIMIT_BYTES} are taken");
            return Err(refuse(&envelope, Failure::new(ErrorCode::MalformedRequest, message), out));
        }
        if body_bytes > self.config.max_request_bytes as usize {
            let message = format!("a request body of {body_bytes} bytes; this broker takes at most {}", self.config.max_request_bytes);
            return Err(refuse(&envelope, Failure::new(ErrorCode::MessageTooLarge, message), out));
        }
        let Some(body) = input.get(Envelope::BYTES..consumed_bytes) else {
            return Ok(Received::More { needed_bytes: consumed_bytes });
        };
        if !self.established {
            self.before_hello(&envelope, body, out)?;
            return Ok(Received::Handled { consumed_bytes });
        }
        match parse(&envelope, body) {
            Ok(request) => Ok(Received::Request { consumed_bytes, id: self.begin(&envelope, body), request }),
            Err(failure) => {
                encode::error(envelope.op, flags::REPLY, envelope.correlation, &failure, out);
                Ok(Received::Handled { consumed_bytes })
            }
        }
    }

    fn reply(&mut self, id: u64, mut reply: Reply, moved: bool, view: &View<'_>, out: &mut Outbox) {
        let pending = &mut self.pending[id as usize];
        assert!(pending.waiting, "request {id} answered twice");
        pending.waiting = false;
        let Pending { correlation, op, transcodes, .. } = *pending;
        self.receives -= usize::from(op == Op::QueueReceive as u16 || op == Op::TransactionsToCheck as u16);
        if let Some(query) = &mut pending.time {
            match query.answer(reply) {
                Ok(answer) => reply = answer,
                Err(fetch) => {
                    pending.waiting = true;
                    self.asks.push_back((id, OwnedRequest::Fetch(fetch)));
                    return;
                }
            }
        }
        if let Reply::Fetched { head, data: FetchData::Owned(bytes) } = &mut reply
            && (transcodes || !head.aborted.is_empty())
        {
            match transcode::native_frames(bytes, transcodes, head, view.memory_bytes) {
                Ok(frames) => *bytes = frames,
                Err(failure) => reply = Reply::Failed(failure),
            }
        }
        self.free.push(id as u32);
        encode::reply(op, correlation, reply, moved, out);
    }

    fn poll_request(&mut self) -> Option<(u64, OwnedRequest)> {
        self.asks.pop_front()
    }

    fn reads_frames(&self, id: u64, head: &Fetched) -> bool {
        self.pending.get(id as usize).is_some_and(|pending| pending.transcodes || pending.time.is_some()) || !head.aborted.is_empty()
    }

    fn makes_answers(&self) -> bool {
        self.makes_answers
    }

    fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    fn idle_in_flight(&self) -> usize {
        self.receives
    }

    fn holds_messages(&self) -> bool {
        self.has_received
    }

    fn max_in_flight(&self) -> usize {
        self.config.max_in_flight as usize
    }

    fn is_established(&self) -> bool {
        self.established
    }
}

impl TimeQuery {
    /// The answer, or what has to be read before: a shard knows which batch it is, and of another protocol's batch no more.
    fn answer(&mut self, reply: Reply) -> Result<Reply, Fetch> {
        match (reply, self.found) {
            (Reply::Offset { offset, timestamp_ms, found: true }, None) => {
                self.found = Some((offset, timestamp_ms));
                // The first batch comes whole, whatever the limit.
                Err(Fetch { partition: self.partition, from: offset, min_bytes: 0, max_bytes: 1, max_wait_ms: 0, committed_only: true })
            }
            (Reply::Fetched { data: FetchData::Owned(bytes), .. }, Some((from, at_ms))) => {
                let frames = frame::frames(&bytes).map_while(Result::ok).filter(|frame| frame.end_offset() > from);
                // The batch itself is near enough where its records can't be read.
                let exact = frames.map_while(|frame| first_since(&frame, from, self.since_ms).ok()).flatten().next();
                let (offset, timestamp_ms) = exact.unwrap_or((from, at_ms));
                Ok(Reply::Offset { offset, timestamp_ms, found: true })
            }
            (reply, _) => Ok(reply),
        }
    }
}

/// Answers with an error and says that the connection must close.
fn refuse(envelope: &Envelope, failure: Failure, out: &mut Outbox) -> ProtocolError {
    encode::error(envelope.op, flags::REPLY, envelope.correlation, &failure, out);
    ProtocolError { message: failure.message }
}

/// Body → request, by op.
fn parse<'a>(envelope: &Envelope, body: &'a [u8]) -> Result<Request<'a>, Failure> {
    if envelope.flags & flags::REPLY != 0 {
        return Err(Failure::new(ErrorCode::MalformedRequest, "the request is flagged as a reply"));
    }
    let Some(op) = Op::from_number(envelope.op) else {
        return Err(Failure::new(
            ErrorCode::UnsupportedOp,
            format!("op {} is not known to this broker; it may be older than the client", envelope.op),
        ));
    };
    match op {
        Op::Produce => produce(body),
        Op::Fetch => {
            let fetch = FetchRequest::read(exactly::<{ FetchRequest::BYTES }>(body)?).map_err(control_failure)?;
            Ok(Request::Fetch(Fetch {
                partition: PartitionId(fetch.partition),
                from: Offset(fetch.offset),
                min_bytes: fetch.min_bytes,
                max_bytes: fetch.max_bytes,
                max_wait_ms: fetch.max_wait_ms,
                committed_only: true,
            }))
        }
        Op::ListOffsets => {
            let list = ListOffsets::read(exactly::<{ ListOffsets::BYTES }>(body)?).map_err(control_failure)?;
            if list.timestamp_ms < control::EARLIEST {
                return Err(Failure::new(
                    ErrorCode::InvalidArgument,
                    format!("timestamp {}: ms since 1970, -1 (latest) or -2 (earliest) are allowed", list.timestamp_ms),
                ));
            }
            Ok(Request::ListOffset { partition: PartitionId(list.partition), timestamp_ms: list.timestamp_ms, committed_only: true })
        }
        Op::CommitOffset => {
            let commit = access_open::<control::ArchivedCommitOffset>(body)?;
            Ok(Request::CommitOffset {
                consumer: commit.consumer.as_str(),
                partition: PartitionId(commit.partition.to_native()),
                offset: Offset(commit.offset.to_native()),
                metadata: commit.metadata.as_str(),
            })
        }
        Op::ReadOffset => {
            let read = access_open::<control::ArchivedReadOffset>(body)?;
            Ok(Request::ReadOffset { consumer: read.consumer.as_str(), partition: PartitionId(read.partition.to_native()) })
        }
        Op::Metadata => {
            let metadata: MetadataRequest = control::read_open(body).map_err(control_failure)?;
            Ok(Request::Metadata { topics: metadata.topics })
        }
        Op::CreateTopic => {
            let create: CreateTopic = control::read_open(body).map_err(control_failure)?;
            Ok(Request::CreateTopic(create))
        }
        Op::AlterTopic => Ok(Request::AlterTopic(control::read_open(body).map_err(control_failure)?)),
        Op::DeleteTopic => Ok(Request::DeleteTopic { name: access_open::<control::ArchivedTopicName>(body)?.name.as_str() }),
        Op::DescribeTopic => Ok(Request::DescribeTopic { name: access_open::<control::ArchivedTopicName>(body)?.name.as_str() }),
        Op::Stats => {
            let _: StatsRequest = control::read_open(body).map_err(control_failure)?;
            Ok(Request::Stats)
        }
        Op::InitProducer => {
            exactly::<0>(body)?;
            Ok(Request::InitProducer)
        }
        Op::Group => group::parse(body),
        Op::ListGroups => {
            let _: ListGroups = control::read_open(body).map_err(control_failure)?;
            Ok(Request::ListGroups)
        }
        Op::Transaction => transaction::parse(body),
        Op::ListTransactions => transaction::parse_list(body),
        Op::TransactionsToCheck => transaction::parse_to_check(body),
        Op::CreateQueue => queue::create(body),
        Op::AlterQueue => queue::alter(body),
        Op::DeleteQueue => Ok(Request::DeleteQueue { name: access_open::<ringmain_wire::queue::ArchivedQueueName>(body)?.name.as_str() }),
        Op::ListQueues => queue::list(body),
        Op::QueueReceive => queue::receive(body),
        Op::QueueSettle => queue::settle(body),
        Op::QueueStage => queue::stage(body),
        Op::Queue => queue::call(body),
        Op::Hello => Err(Failure::new(ErrorCode::MalformedRequest, "hello was said before on this connection")),
    }
}

/// One frame that fills `body`: whole, undamaged, native. The records' structure isn't walked.
fn produce(body: &[u8]) -> Result<Request<'_>, Failure> {
    let frame = Frame::parse(body).map_err(|error| frame_failure(error, body))?;
    if frame.len_bytes() != body.len() {
        let message = format!("the frame has {} bytes, the request's body {}", frame.len_bytes(), body.len());
        return Err(Failure::new(ErrorCode::CorruptFrame, message));
    }
    frame.verify_body().map_err(|error| frame_failure(error, body))?;
    let producer = &frame.header.producer;
    let refused = |message: String| Err(Failure::new(ErrorCode::InvalidBatch, message));
    if producer.format != Format::Native as u8 {
        return refused(format!("format {} does not come through the native door", producer.format));
    }
    if producer.flags & !(frame::flags::QUEUE_HEADERS | frame::flags::TRANSACTIONAL) != 0 {
        return refused(format!("frame flags {:#04x} are the broker's own or not served yet", producer.flags));
    }
    if producer.producer_id < ProducerId::NONE.0 {
        return refused(format!("producer id {} is impossible; -1 = none", producer.producer_id));
    }
    // Each record takes at least its header: an absurd count would burn offsets.
    let least_bytes = BATCH_PREFIX_BYTES as u64 + u64::from(producer.record_count) * RECORD_HEADER_BYTES as u64;
    if (frame.body().len() as u64) < least_bytes {
        return refused(format!(
            "{} records need at least {least_bytes} bytes, the body has {}",
            producer.record_count,
            frame.body().len()
        ));
    }
    Ok(Request::Produce { frame })
}

fn frame_failure(error: FrameError, body: &[u8]) -> Failure {
    let code = match error {
        // The format lies under the producer's checksum: if that is right, the producer meant it.
        FrameError::BadFormat { .. } if body_crc_matches(body) => ErrorCode::InvalidBatch,
        _ => ErrorCode::CorruptFrame,
    };
    Failure::new(code, error.to_string())
}

fn body_crc_matches(body: &[u8]) -> bool {
    let sealed = FrameHeader::read(body).map(|header| header.producer.body_crc);
    sealed == body.get(frame::BODY_CRC_FROM..).map(crc32c::crc32c)
}

fn control_failure(error: ControlError) -> Failure {
    let code = match error {
        ControlError::UnknownVersion { .. } => ErrorCode::UnsupportedVersion,
        ControlError::Truncated | ControlError::Malformed => ErrorCode::MalformedRequest,
    };
    Failure::new(code, error.to_string())
}

/// `body` if it has exactly `N` bytes.
fn exactly<const N: usize>(body: &[u8]) -> Result<&[u8], Failure> {
    if body.len() == N {
        return Ok(body);
    }
    Err(Failure::new(ErrorCode::MalformedRequest, format!("the body has {} bytes, expected {N}", body.len())))
}

/// An open message that fills `body`, read where it lies.
fn access_open<T>(body: &[u8]) -> Result<&T, Failure>
where
    T: Portable + for<'b> CheckBytes<HighValidator<'b, rkyv::rancor::Failure>>,
{
    let (prefix, archive) = body.split_at_checked(OPEN_PREFIX_BYTES).ok_or_else(|| control_failure(ControlError::Truncated))?;
    let version = u16::from_le_bytes([prefix[0], prefix[1]]);
    if version != control::CONTROL_VERSION {
        return Err(control_failure(ControlError::UnknownVersion { got: version }));
    }
    rkyv::access::<T, rkyv::rancor::Failure>(archive).map_err(|_| control_failure(ControlError::Malformed))
}
