//! The door of Kafka's clients: one [`Call`](api::Call) per request, answered in the order in which requests came.
//!
//! ```text
//! bytes ─▶ length, header ─▶ api::open ─▶ Call ─▶ requests to shards … answers ─▶ response, when its turn has come
//! ```
//! Produce requests run side by side; any other request begins when everything before it is answered, and nothing is read
//! behind it until it is answered too. That is Kafka's own rule for a connection (there for Produce as well), so a
//! client finds the topic that it asked to create in the request before; and it bounds what a connection can keep here.
//!
//! A request with an impossible length, an unknown API or bytes that don't decode closes the connection, as Kafka does:
//! its answer's form isn't known. Everything else gets an error code from the one table in `errors`.

pub mod api;
pub mod batch;
pub mod decode;
mod errors;
pub mod records;
#[cfg(test)]
mod tests;
mod topic_config;

use std::collections::VecDeque;
use std::rc::Rc;

use kafka_protocol::messages::ApiKey;

use crate::frontend::{Ends, Outbox, ProtocolError, Received, Session, View};
use crate::request::{Fetched, Reply};
use crate::router::letter::OwnedRequest;
use api::{Answer, Call, Context};
use decode::RequestHeader;

/// Requests unanswered on one connection: enough for a producer's batches in flight.
pub const MAX_CALLS: usize = 16;
/// Bytes of the length before every request and response.
const LENGTH_BYTES: usize = 4;
/// A request has at least API, version and correlation.
const LEAST_REQUEST_BYTES: usize = 8;
/// Low bits of a request's id: which part of a call it is. The bits above number the calls.
const PART_BITS: u32 = 32;
/// Set in the number of a part whose answer isn't needed for the response.
const ASIDE: u32 = 1 << 31;

/// What every Kafka connection of a broker is told and held to.
#[derive(Clone, Debug, Default)]
pub struct KafkaConfig {
    /// Identifies the data directory.
    pub cluster_id: u64,
    /// Largest request, its length excluded.
    pub max_request_bytes: usize,
    /// Where clients are sent. By shard; with one entry, it is for all shards.
    pub nodes: Vec<Node>,
    /// By shard: leader epoch of its partitions, for this run of the broker.
    pub epochs: Vec<u32>,
    /// Which of the nodes connections of this kind have come to.
    pub node: i32,
    /// As clients are told.
    pub data_dir: String,
    /// A topic that a client names in Metadata and that doesn't exist is made.
    pub creates_topics: bool,
    /// Partitions of a topic whose maker doesn't say.
    pub default_partitions: u32,
}

/// One address that clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `None`: the address by which the client has come.
    pub host: Option<String>,
    /// Never 0.
    pub port: u16,
}

/// One connection of a Kafka client.
pub struct KafkaSession {
    config: Rc<KafkaConfig>,
    ends: Ends,
    /// Oldest first; at most [`MAX_CALLS`].
    calls: VecDeque<Slot>,
    /// Number of the first call.
    first_number: u64,
    /// The last call is still taking requests from its message, of so many bytes.
    open_bytes: Option<usize>,
    asks: VecDeque<(u64, OwnedRequest)>,
    established: bool,
    closing: Option<String>,
}

/// A call and what it waits for.
struct Slot {
    correlation: i32,
    key: ApiKey,
    version: i16,
    call: Box<dyn Call>,
    begun: bool,
    /// Requests without an answer.
    waiting: u32,
}

impl Slot {
    /// Numbers what the call asks.
    fn take_asks(&mut self, number: u64, asked: Vec<(u32, OwnedRequest)>, asks: &mut VecDeque<(u64, OwnedRequest)>) {
        self.waiting += asked.iter().filter(|(part, _)| part & ASIDE == 0).count() as u32;
        asks.extend(asked.into_iter().map(|(part, request)| (number << PART_BITS | u64::from(part), request)));
    }
}

impl KafkaSession {
    /// A connection on which nothing has come yet.
    pub fn new(config: Rc<KafkaConfig>, ends: Ends) -> KafkaSession {
        KafkaSession {
            config,
            ends,
            calls: VecDeque::new(),
            first_number: 0,
            open_bytes: None,
            asks: VecDeque::new(),
            established: false,
            closing: None,
        }
    }

    /// The next request inside the message at the start of `input`, which belongs to the last call.
    fn go_on<'a>(&mut self, input: &'a [u8], message_bytes: usize, view: &View<'_>, out: &mut Outbox) -> Received<'a> {
        let number = self.first_number + self.calls.len() as u64 - 1;
        let mut context = Context::new(&self.config, self.ends, view);
        let slot = self.calls.back_mut().expect("an open call is in the queue");
        if let Some((part, request)) = slot.call.next_request(&input[..message_bytes], &mut context) {
            slot.waiting += 1;
            return Received::Request { consumed_bytes: 0, id: number << PART_BITS | u64::from(part), request };
        }
        self.open_bytes = None;
        self.advance(view, out);
        Received::Handled { consumed_bytes: message_bytes }
    }

    /// Lets calls begin whose turn has come, and sends the answers of those that are done.
    fn advance(&mut self, view: &View<'_>, out: &mut Outbox) {
        while self.closing.is_none() {
            let is_last = self.calls.len() == 1;
            let Some(slot) = self.calls.front_mut() else { return };
            if !slot.begun {
                slot.begun = true;
                let mut context = Context::new(&self.config, self.ends, view);
                slot.call.begin(&mut context);
                let asked = context.asks;
                slot.take_asks(self.first_number, asked, &mut self.asks);
            }
            if slot.waiting > 0 || !slot.call.is_ready() || (is_last && self.open_bytes.is_some()) {
                return;
            }
            self.respond(view, out);
        }
    }

    /// Answers the first call.
    fn respond(&mut self, view: &View<'_>, out: &mut Outbox) {
        let Some(Slot { correlation, key, version, call, .. }) = self.calls.pop_front() else { return };
        self.first_number += 1;
        let context = Context::new(&self.config, self.ends, view);
        let mut answer = Answer::default();
        answer.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        answer.bytes.extend_from_slice(&correlation.to_be_bytes());
        if key.response_header_version(version) >= 1 {
            answer.bytes.push(0);
        }
        match call.respond(version, &context, &mut answer) {
            Ok(true) => send(answer, out),
            Ok(false) => {}
            Err(reason) => self.closing = Some(format!("{key:?} version {version}: {reason}")),
        }
    }
}

/// Fills in the length, and puts the batches between what was encoded around them.
fn send(Answer { mut bytes, batches }: Answer, out: &mut Outbox) {
    let length = (bytes.len() - LENGTH_BYTES + batches.iter().map(|(_, batches)| batches.len_bytes).sum::<usize>()) as u32;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    if batches.is_empty() {
        return out.push_vec(bytes);
    }
    let mut sent = 0;
    for (at, batches) in batches {
        out.push_bytes(&bytes[sent..at]);
        out.push_ranges(batches.bytes, batches.ranges);
        sent = at;
    }
    out.push_bytes(&bytes[sent..]);
}

impl Session for KafkaSession {
    fn receive<'a>(&mut self, input: &'a [u8], view: &View<'_>, out: &mut Outbox) -> Result<Received<'a>, ProtocolError> {
        if let Some(message_bytes) = self.open_bytes {
            return Ok(self.go_on(input, message_bytes, view, out));
        }
        let broken = |message: String| Err(ProtocolError { message });
        let Some(length) = input.first_chunk().map(|length| i32::from_be_bytes(*length)) else {
            return Ok(Received::More { needed_bytes: 0 });
        };
        let fits = |length: &usize| (LEAST_REQUEST_BYTES..=self.config.max_request_bytes).contains(length);
        let Some(request_bytes) = usize::try_from(length).ok().filter(fits) else {
            return broken(format!("a request of {length} bytes; {LEAST_REQUEST_BYTES} to {} are taken", self.config.max_request_bytes));
        };
        let message_bytes = LENGTH_BYTES + request_bytes;
        let Some(request) = input.get(LENGTH_BYTES..message_bytes) else {
            // What kind of request it is must be plausible before there is room for it.
            if let Some(key) = input.get(LENGTH_BYTES..LENGTH_BYTES + 2) {
                api::check_key(i16::from_be_bytes([key[0], key[1]])).map_err(|message| ProtocolError { message })?;
                self.established = true;
            }
            return Ok(Received::More { needed_bytes: message_bytes });
        };
        let opened = RequestHeader::read(request).map_err(|error| error.to_string()).and_then(|(header, body)| {
            api::open(&header, body, &Context::new(&self.config, self.ends, view)).map(|opened| (header, opened))
        });
        let (header, opened) = match opened {
            Ok(opened) => opened,
            Err(message) => return broken(message),
        };
        self.established = true;
        let has_parts = opened.call.has_parts();
        self.calls.push_back(Slot {
            correlation: header.start.correlation_id,
            key: opened.key,
            version: opened.version,
            call: opened.call,
            begun: has_parts,
            waiting: 0,
        });
        if has_parts {
            self.open_bytes = Some(message_bytes);
            return Ok(self.go_on(input, message_bytes, view, out));
        }
        self.advance(view, out);
        Ok(Received::Handled { consumed_bytes: message_bytes })
    }

    fn reply(&mut self, id: u64, reply: Reply, _moved: bool, view: &View<'_>, out: &mut Outbox) {
        let (number, part) = (id >> PART_BITS, id as u32);
        let mut context = Context::new(&self.config, self.ends, view);
        let Some(slot) = number.checked_sub(self.first_number).and_then(|at| self.calls.get_mut(at as usize)) else { return };
        if part & ASIDE == 0 {
            slot.waiting -= 1;
            slot.call.answer(part, reply, &mut context);
        } else {
            slot.call.answer_aside(part & !ASIDE, reply, &mut context);
        }
        let asked = context.asks;
        slot.take_asks(number, asked, &mut self.asks);
        self.advance(view, out);
    }

    fn poll_request(&mut self) -> Option<(u64, OwnedRequest)> {
        self.asks.pop_front()
    }

    fn reads_frames(&self, _id: u64, _head: &Fetched) -> bool {
        true
    }

    fn makes_answers(&self) -> bool {
        true
    }

    fn held_bytes(&self) -> usize {
        self.calls.iter().map(|slot| slot.call.held_bytes()).sum()
    }

    fn closing(&self) -> Option<&str> {
        self.closing.as_deref()
    }

    /// A call that still takes requests from its message doesn't count: reading is how it gets on.
    fn in_flight(&self) -> usize {
        match self.calls.back() {
            Some(slot) if !slot.call.has_parts() => MAX_CALLS,
            _ => self.calls.len() - usize::from(self.open_bytes.is_some()),
        }
    }

    fn max_in_flight(&self) -> usize {
        MAX_CALLS
    }

    fn is_established(&self) -> bool {
        self.established
    }
}
