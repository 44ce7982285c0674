//! One connection's protocol state, without the connection: bytes in, replies out, time as an argument.
//!
//! The transport feeds [`Session::receive`] (or reads straight into [`Session::read_buffer`]), takes what
//! happened from [`Session::poll_event`] and the bytes to send from [`Session::poll_transmit`].
//! `Hello` goes out first; requests made before its answer are kept back until then.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::time::{Duration, Instant};

use ringmain_wire::control::{ErrorReply, FetchReply, Hello, HelloReply, read_open, write_open};
use ringmain_wire::envelope::flags;
use ringmain_wire::{Envelope, ErrorCode, MAX_MESSAGE_BYTES_LIMIT, Op, PROTOCOL_VERSION};

use crate::error::{BrokerError, SessionError};

/// Limits and name of a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Free text for the broker's logs, at most 256 bytes. Default `ringmain-client/<version>`.
    pub client_name: String,
    /// Largest reply body taken, in bytes; memory is only used as the bytes arrive. Default: the largest
    /// batch that can be configured (64 MiB) and 64 KiB.
    pub max_reply_bytes: u32,
    /// Most requests without an answer; further ones wait in the caller. The broker's own limit applies too.
    /// Default 256.
    pub max_in_flight: u32,
    /// How long a reply may take before the connection counts as dead; a fetch's own waiting comes on top.
    /// Default 30 s.
    pub request_timeout: Duration,
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig {
            client_name: concat!("ringmain-client/", env!("CARGO_PKG_VERSION")).into(),
            max_reply_bytes: MAX_MESSAGE_BYTES_LIMIT + (64 << 10),
            max_in_flight: 256,
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Something the broker said. `C` is whatever the caller attached to the request.
#[derive(Debug)]
pub enum Event<C> {
    /// The hello is answered; requests go out from now on.
    Ready(HelloReply),
    /// The first 32 bytes of a fetch reply are here: enough to ask for what comes next. The reply follows.
    FetchHead {
        /// Attached to the request.
        context: C,
        /// Where the partition stands and where to fetch next.
        head: FetchReply,
        /// Size of the whole reply body, head included.
        body_bytes: u32,
    },
    /// A request is answered.
    Reply(Reply<C>),
}

/// The answer to one request.
#[derive(Debug)]
pub struct Reply<C> {
    /// Attached to the request.
    pub context: C,
    /// What was asked.
    pub op: Op,
    /// The request reached its partition by way of another core: refresh the metadata.
    pub moved: bool,
    /// The body of the answer, or why there is none.
    pub result: Result<ReplyBody, BrokerError>,
}

/// The body of a reply. Give it back with [`Session::recycle`] to spare an allocation.
#[derive(Default)]
pub struct ReplyBody {
    // Longer than the body when it was used before: keeping the old length avoids zeroing it again.
    bytes: Vec<u8>,
    len: usize,
}

impl ReplyBody {
    /// The bytes as a vector.
    pub fn into_vec(mut self) -> Vec<u8> {
        self.bytes.truncate(self.len);
        self.bytes
    }
}

impl Deref for ReplyBody {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

impl From<Vec<u8>> for ReplyBody {
    fn from(bytes: Vec<u8>) -> ReplyBody {
        ReplyBody { len: bytes.len(), bytes }
    }
}

/// One connection's state; `C` is attached to each request and comes back with its reply.
///
/// After an error from [`Session::poll_event`] nothing more comes; take [`Session::into_lost`] and drop it.
pub struct Session<C> {
    config: SessionConfig,
    ready: Option<HelloReply>,
    out: Vec<u8>,
    out_at: usize,
    /// Bytes at the start of `out` that may leave before the hello is answered.
    hello_bytes: usize,
    hello_deadline: Option<Instant>,
    next_correlation: u64,
    in_flight: VecDeque<InFlight<C>>,
    staging: Vec<u8>,
    staged_from: usize,
    staged_to: usize,
    body: Option<Body>,
    spare: Vec<Vec<u8>>,
    failed: Option<SessionError>,
}

#[derive(Debug)]
struct InFlight<C> {
    correlation: u64,
    op: Op,
    sent_at: Instant,
    deadline: Instant,
    context: C,
}

struct Body {
    envelope: Envelope,
    op: Op,
    bytes: Vec<u8>,
    filled: usize,
    head_seen: bool,
}

impl<C: fmt::Debug> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsent_bytes = self.out.len() - self.out_at;
        f.debug_struct("Session")
            .field("ready", &self.ready)
            .field("in_flight", &self.in_flight)
            .field("unsent_bytes", &unsent_bytes)
            .finish_non_exhaustive()
    }
}

impl<C: Clone> Session<C> {
    /// A session whose hello is waiting to be sent.
    pub fn new(config: SessionConfig, now: Instant) -> Session<C> {
        let mut session = Session {
            ready: None,
            out: Vec::new(),
            out_at: 0,
            hello_bytes: 0,
            hello_deadline: Some(now + config.request_timeout),
            next_correlation: 1,
            in_flight: VecDeque::new(),
            staging: vec![0; STAGING_BYTES],
            staged_from: 0,
            staged_to: 0,
            body: None,
            spare: Vec::new(),
            failed: None,
            config,
        };
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            client_name: session.config.client_name.chars().take(64).collect(),
            auth_mechanism: String::new(),
            auth_data: Vec::new(),
        };
        let mut body = Vec::new();
        write_open(&hello, &mut body);
        session.write_request(Op::Hello, HELLO_CORRELATION, &body);
        session.hello_bytes = session.out.len();
        session
    }

    /// What the broker said to the hello; `None` before.
    pub fn hello(&self) -> Option<&HelloReply> {
        self.ready.as_ref()
    }

    /// Whether another request may be made now: below the limits of requests in flight and of bytes to send.
    pub fn has_room(&self) -> bool {
        let limit = self.ready.as_ref().map_or(u32::MAX, |hello| hello.max_in_flight.max(1)).min(self.config.max_in_flight) as usize;
        self.in_flight.len() < limit && self.unsent_bytes() < UNSENT_LIMIT_BYTES
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes waiting for [`Session::poll_transmit`].
    pub fn unsent_bytes(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// Adds a request. `extra_wait`: how long the broker may hold it on purpose (a fetch's `max_wait_ms`).
    ///
    /// Callers keep to [`Session::has_room`]; the session doesn't refuse.
    pub fn request(&mut self, op: Op, context: C, now: Instant, extra_wait: Duration, body: &[u8]) {
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        self.write_request(op, correlation, body);
        let deadline = now + self.config.request_timeout + extra_wait;
        self.in_flight.push_back(InFlight { correlation, op, sent_at: now, deadline, context });
    }

    fn write_request(&mut self, op: Op, correlation: u64, body: &[u8]) {
        let envelope = Envelope { len: body.len() as u32, op: op as u16, flags: 0, correlation };
        self.out.reserve(Envelope::BYTES + body.len());
        self.out.extend_from_slice(&envelope.to_bytes());
        self.out.extend_from_slice(body);
    }

    /// Moves the bytes that may leave to the end of `out`; whether there were any.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let to = if self.ready.is_some() { self.out.len() } else { self.hello_bytes };
        if self.out_at >= to {
            return false;
        }
        if out.is_empty() && self.out_at == 0 && to == self.out.len() {
            std::mem::swap(out, &mut self.out);
        } else {
            out.extend_from_slice(&self.out[self.out_at..to]);
        }
        self.out_at = to;
        if self.out_at >= self.out.len() {
            self.out.clear();
            self.out_at = 0;
            self.hello_bytes = 0;
        }
        true
    }

    /// Takes bytes from the broker, as they come.
    pub fn receive(&mut self, mut input: &[u8]) {
        while !input.is_empty() && self.failed.is_none() {
            let room = self.read_buffer();
            let n = room.len().min(input.len());
            room[..n].copy_from_slice(&input[..n]);
            self.received(n);
            input = &input[n..];
        }
    }

    /// Where the next bytes from the broker may be put; never empty. Say how many came with [`Session::received`].
    pub fn read_buffer(&mut self) -> &mut [u8] {
        if self.staged_from == self.staged_to {
            (self.staged_from, self.staged_to) = (0, 0);
            if let Some(body) = &mut self.body
                && body.envelope.len as usize - body.filled >= STAGING_BYTES
            {
                body.make_room();
                let to = body.bytes.len().min(body.envelope.len as usize);
                return &mut body.bytes[body.filled..to];
            }
        }
        if self.staged_from > 0 && self.staged_to == self.staging.len() {
            self.staging.copy_within(self.staged_from..self.staged_to, 0);
            (self.staged_from, self.staged_to) = (0, self.staged_to - self.staged_from);
        }
        if self.staged_to == self.staging.len() {
            // Only when events aren't polled: the buffer grows by what is fed, no faster.
            self.staging.resize(self.staging.len() * 2, 0);
        }
        &mut self.staging[self.staged_to..]
    }

    /// The first `n` bytes of the last [`Session::read_buffer`] came from the broker.
    pub fn received(&mut self, n: usize) {
        let direct =
            self.staged_from == self.staged_to && self.body.as_ref().is_some_and(|b| b.envelope.len as usize - b.filled >= STAGING_BYTES);
        match &mut self.body {
            Some(body) if direct => body.filled += n,
            _ => self.staged_to += n,
        }
    }

    /// The next thing the broker said; `None` = more bytes are needed.
    ///
    /// Errors: the bytes aren't the protocol's, or the hello was refused; the connection must be closed.
    pub fn poll_event(&mut self) -> Result<Option<Event<C>>, SessionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.next_event().inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn next_event(&mut self) -> Result<Option<Event<C>>, SessionError> {
        if self.body.is_none() {
            let Some(envelope) = Envelope::read(&self.staging[self.staged_from..self.staged_to]) else { return Ok(None) };
            self.staged_from += Envelope::BYTES;
            self.body = Some(self.begin_body(envelope)?);
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let len = body.envelope.len as usize;
        while body.filled < len && self.staged_from < self.staged_to {
            body.make_room();
            let n = (body.bytes.len().min(len) - body.filled).min(self.staged_to - self.staged_from);
            body.bytes[body.filled..body.filled + n].copy_from_slice(&self.staging[self.staged_from..self.staged_from + n]);
            body.filled += n;
            self.staged_from += n;
        }
        if body.op == Op::Fetch && !body.head_seen && body.envelope.flags & flags::ERROR == 0 && body.filled >= FetchReply::BYTES {
            body.head_seen = true;
            let head = FetchReply::read(&body.bytes[..body.filled]).map_err(|error| SessionError::Malformed { op: Op::Fetch, error })?;
            let (correlation, body_bytes) = (body.envelope.correlation, body.envelope.len);
            let request =
                self.in_flight.iter().find(|r| r.correlation == correlation).ok_or(SessionError::UnknownCorrelation { correlation })?;
            return Ok(Some(Event::FetchHead { context: request.context.clone(), head, body_bytes }));
        }
        if body.filled < len {
            return Ok(None);
        }
        let Some(Body { envelope, op, bytes, .. }) = self.body.take() else { return Ok(None) };
        self.finish(envelope, op, ReplyBody { bytes, len }).map(Some)
    }

    /// Judges an envelope before a byte of its body is stored.
    fn begin_body(&mut self, envelope: Envelope) -> Result<Body, SessionError> {
        if envelope.flags & flags::REPLY == 0 {
            return Err(SessionError::NotAReply { op: envelope.op, flags: envelope.flags });
        }
        let op = match envelope.correlation {
            HELLO_CORRELATION if self.ready.is_none() => Op::Hello,
            correlation => {
                let request = self.in_flight.iter().find(|r| r.correlation == correlation && self.ready.is_some());
                request.ok_or(SessionError::UnknownCorrelation { correlation })?.op
            }
        };
        if envelope.op != op as u16 {
            return Err(SessionError::WrongOp { expected: op, got: envelope.op });
        }
        // Only a fetch may be large; anything else of that size is no answer to what was asked.
        let limit_bytes = self.config.max_reply_bytes;
        if envelope.len > limit_bytes {
            return Err(SessionError::ReplyTooLarge { len: envelope.len, limit_bytes });
        }
        let bytes = if envelope.len as usize >= SPARE_LEAST_BYTES { self.spare.pop().unwrap_or_default() } else { Vec::new() };
        Ok(Body { envelope, op, bytes, filled: 0, head_seen: false })
    }

    fn finish(&mut self, envelope: Envelope, op: Op, body: ReplyBody) -> Result<Event<C>, SessionError> {
        let result = if envelope.flags & flags::ERROR == 0 {
            Ok(body)
        } else {
            let error: ErrorReply = read_open(&body).map_err(|error| SessionError::Malformed { op, error })?;
            Err(BrokerError { op, code: ErrorCode::from_number(error.code), number: error.code, message: error.message })
        };
        if op == Op::Hello {
            let body = result.map_err(SessionError::Refused)?;
            let hello: HelloReply = read_open(&body).map_err(|error| SessionError::Malformed { op, error })?;
            if hello.protocol_version == 0 || hello.protocol_version > PROTOCOL_VERSION {
                return Err(SessionError::VersionTooNew { offered: PROTOCOL_VERSION, got: hello.protocol_version });
            }
            self.ready = Some(hello.clone());
            self.hello_deadline = None;
            return Ok(Event::Ready(hello));
        }
        let correlation = envelope.correlation;
        let at = self.in_flight.iter().position(|r| r.correlation == correlation);
        let request = at.and_then(|at| self.in_flight.remove(at)).ok_or(SessionError::UnknownCorrelation { correlation })?;
        if op == Op::Fetch && result.as_ref().is_ok_and(|body| body.len() < FetchReply::BYTES) {
            return Err(SessionError::Malformed { op, error: ringmain_wire::control::ControlError::Truncated });
        }
        Ok(Event::Reply(Reply { context: request.context, op, moved: envelope.flags & flags::MOVED != 0, result }))
    }

    /// When [`Session::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.in_flight.iter().map(|r| r.deadline).chain(self.hello_deadline).min()
    }

    /// Errors if a request has waited for its answer too long; the connection must be closed then.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.hello_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(SessionError::TimedOut { op: Op::Hello, after: self.config.request_timeout });
        }
        match self.in_flight.iter().find(|r| r.deadline <= now) {
            Some(late) => Err(SessionError::TimedOut { op: late.op, after: now.saturating_duration_since(late.sent_at) }),
            None => Ok(()),
        }
    }

    /// Takes back the memory of a reply; a few are kept for the next large replies.
    pub fn recycle(&mut self, body: ReplyBody) {
        if self.spare.len() < SPARE_COUNT && body.bytes.len() >= SPARE_LEAST_BYTES {
            self.spare.push(body.bytes);
        }
    }

    /// What was attached to the requests that will never be answered, oldest first.
    pub fn into_lost(self) -> impl Iterator<Item = C> {
        self.in_flight.into_iter().map(|r| r.context)
    }
}

impl Body {
    /// Room for at least one more byte, growing with what has arrived rather than with what was announced.
    fn make_room(&mut self) {
        if self.bytes.len() == self.filled {
            let grown = (self.filled * 2).max(FIRST_BODY_BYTES).min(self.envelope.len as usize);
            self.bytes.resize(grown, 0);
        }
    }
}

/// The hello's number; requests count from 1.
const HELLO_CORRELATION: u64 = 0;
/// Small replies and the starts of large ones are read into a buffer of this size.
const STAGING_BYTES: usize = 64 << 10;
/// A body's memory before any of it has arrived; it doubles from there.
const FIRST_BODY_BYTES: usize = 1 << 20;
/// Requests wait in the caller, where they can still be batched, while so much is unsent.
const UNSENT_LIMIT_BYTES: usize = 1 << 20;
/// Recycled bodies kept, and the least size worth keeping.
const SPARE_COUNT: usize = 4;
const SPARE_LEAST_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests;
