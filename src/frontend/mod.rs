//! Doors, sans-IO: bytes and time in, requests and bytes out. No socket, clock or shard inside.
//!
//! A connection's driver (`net::connection`) feeds what it has read to [`Session::receive`] until that asks
//! for more, hands each request to the router, gives every answer to [`Session::reply`], and sends what has
//! gathered in the [`Outbox`]. A message may ask more than once: a request that consumes nothing is followed by
//! another call with the same input; what a session wants to know besides, it says in [`Session::poll_request`].

pub mod kafka;
pub mod native;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Range;

use crate::request::{FetchData, Fetched, Now, Reply, Request};
use crate::router::letter::OwnedRequest;
use crate::shard::Catalog;

/// What a session may look at: the time, and the topics as this core knows them.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Read once per step.
    pub now: Now,
    /// This core's copy.
    pub catalog: &'a Catalog,
    /// What is left for answers.
    pub memory_bytes: usize,
}

/// The addresses of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// At which the peer has reached this broker.
    pub local: IpAddr,
    /// The peer's.
    pub peer: IpAddr,
}

/// What a session made of its input.
#[derive(Debug)]
pub enum Received<'a> {
    /// Not a whole request yet. `needed_bytes`: total length of the one that has begun, 0 if unknown.
    More { needed_bytes: usize },
    /// One request, which took `consumed_bytes` of the input; its answer carries `id`. 0 bytes: the message goes
    /// on; the same input comes again.
    Request { consumed_bytes: usize, id: u64, request: Request<'a> },
    /// Input consumed without a request (answered by the session itself, or nothing to answer).
    Handled { consumed_bytes: usize },
}

/// Framing is lost or the peer broke the rules: send what is in the outbox, then close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    /// For the log: what was expected, what came.
    pub message: String,
}

/// One connection's side of a protocol.
pub trait Session {
    /// Takes the request at the start of `input`. Answers that need no shard go to `out` at once.
    fn receive<'a>(&mut self, input: &'a [u8], view: &View<'_>, out: &mut Outbox) -> Result<Received<'a>, ProtocolError>;
    /// Turns an answer into bytes. `moved`: it came by way of another core.
    fn reply(&mut self, id: u64, reply: Reply, moved: bool, view: &View<'_>, out: &mut Outbox);
    /// The next request of the session's own making; its answer carries the id. Asked for after `receive` and `reply`.
    fn poll_request(&mut self) -> Option<(u64, OwnedRequest)> {
        None
    }
    /// The frames of the answer with this id and head must come as [`FetchData::Owned`]: the session reads them.
    fn reads_frames(&self, _id: u64, _head: &Fetched) -> bool {
        false
    }
    /// Its answers are in memory and not in the log: the driver charges them.
    fn makes_answers(&self) -> bool {
        false
    }
    /// Memory in answers that wait for others, beside the outbox; the driver charges it.
    fn held_bytes(&self) -> usize {
        0
    }
    /// Why the connection is to be closed once the outbox is sent, if it is.
    fn closing(&self) -> Option<&str> {
        None
    }
    /// Requests received and not answered yet; the driver reads no more while this is at the session's limit.
    fn in_flight(&self) -> usize;
    /// Of those, the ones that are of no use to a peer that sends no more: messages that it couldn't settle.
    fn idle_in_flight(&self) -> usize {
        0
    }
    /// It may have been given messages of queues, which come back when it goes.
    fn holds_messages(&self) -> bool {
        false
    }
    /// Most requests unanswered at a time.
    fn max_in_flight(&self) -> usize;
    /// Before the peer has introduced itself its input is limited and timed (DESIGN: 16 KiB, 5 s).
    fn is_established(&self) -> bool;
}

/// What waits to be sent on one connection, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Pieces in order; bytes are appended to the last piece while it is `Bytes`.
    pub pieces: VecDeque<Piece>,
    /// Bytes in all pieces.
    pub len_bytes: usize,
}

/// Part of an outbox.
#[derive(Debug)]
pub enum Piece {
    /// Encoded replies.
    Bytes(Vec<u8>),
    /// Parts of something that was copied out of the log, in order; the rest isn't sent.
    Ranges { bytes: Vec<u8>, ranges: Vec<Range<usize>> },
    /// Frames of a fetch reply, sent from where they lie. `bytes`: their total.
    Frames { data: FetchData, bytes: u32, shard: u16 },
}

impl Outbox {
    /// The byte piece at the end, to append to; keep `len_bytes` right through [`Outbox::push_bytes`] instead where possible.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.len_bytes += bytes.len();
        if let Some(Piece::Bytes(tail)) = self.pieces.back_mut() {
            tail.extend_from_slice(bytes);
        } else {
            self.pieces.push_back(Piece::Bytes(bytes.to_vec()));
        }
    }

    /// Encoded bytes after everything pushed so far, not copied.
    pub fn push_vec(&mut self, bytes: Vec<u8>) {
        self.len_bytes += bytes.len();
        self.pieces.push_back(Piece::Bytes(bytes));
    }

    /// Parts of `bytes` after everything pushed so far, not copied. None of them is empty.
    pub fn push_ranges(&mut self, bytes: Vec<u8>, ranges: Vec<Range<usize>>) {
        self.len_bytes += ranges.iter().map(ExactSizeIterator::len).sum::<usize>();
        self.pieces.push_back(Piece::Ranges { bytes, ranges });
    }

    /// Frames after everything pushed so far.
    pub fn push_frames(&mut self, data: FetchData, bytes: u32, shard: u16) {
        self.len_bytes += bytes as usize;
        self.pieces.push_back(Piece::Frames { data, bytes, shard });
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}
