//! One connection without its tasks: what has been read and not parsed, what waits to be sent, and the rules for both.
//!
//! *Reading.* All connections of a core share one read buffer. A request that came in part is kept by its
//! connection ([`Input`]); a long one is then read straight into memory of its own, reserved whole before it
//! grows. So an idle connection holds no buffer at all, and nobody holds part of the budget while waiting for more.
//!
//! *Sending.* Pieces of the outbox go to the socket from where they lie: replies from their `Vec`, fetched frames
//! from the log's chunk ([`Output`]). Nothing is borrowed between two sends: an extent that has left the tail cache
//! by the next one is read from the device again. What was read from the device is kept until it is sent, or until
//! others wait for the memory while this peer takes nothing.

use std::io::IoSlice;
use std::net::TcpStream;
use std::ops::Range;
use std::rc::Rc;

use ringmain_wire::{FrameHeader, ShardId};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::runtime::Signal;
use crate::device::Slice;
use crate::frontend::{Outbox, Piece, Session};
use crate::request::{Extent, FetchData};
use crate::router::letter::OwnedRequest;
use crate::router::shards::Shards;

/// Charged for every connection from its beginning, and enough for small partial requests.
pub const BASE_BYTES: usize = 4096;
/// Input of a peer that hasn't introduced itself is limited to so much.
pub const INTRODUCTION_BYTES: usize = 16 << 10;
/// A core's shared read buffer: a fraction of a typical second-level cache.
pub const READ_BYTES: usize = 128 << 10;
/// Requests longer than this are read into a buffer of the connection's own.
const LONG_REQUEST_BYTES: usize = READ_BYTES / 2;
/// Sent in one call at most: about 50 µs of copying.
const SEND_BYTES: usize = 256 << 10;
/// Pieces of one call.
const SEND_PIECES: usize = 64;
/// Above this many unsent bytes a connection isn't read; well above one call's worth, so that sending never runs dry.
pub const OUTBOX_FULL_BYTES: usize = 2 << 20;
/// A reply buffer longer than this isn't kept for reuse.
const SPARE_BYTES: usize = 64 << 10;
/// Reply buffers kept for reuse.
const SPARE_COUNT: usize = 64;

/// A slot of the core's connections, and which of its successive users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    /// Index.
    pub slot: u32,
    /// Grows with every reuse.
    pub generation: u32,
}

/// Memory of one core's connections: charged before anything grows.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: usize,
    used_bytes: usize,
}

impl Budget {
    /// Nothing used.
    pub fn new(limit_bytes: usize) -> Budget {
        Budget { limit_bytes, used_bytes: 0 }
    }

    /// Charges `bytes`, or nothing if they don't fit.
    #[must_use]
    pub fn charge(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.available_bytes();
        if fits {
            self.used_bytes += bytes;
        }
        fits
    }

    /// Gives back what was charged.
    pub fn release(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used_bytes, "released more than was charged");
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// Not charged yet.
    pub fn available_bytes(&self) -> usize {
        self.limit_bytes - self.used_bytes.min(self.limit_bytes)
    }

    /// Charged.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

/// Why a connection isn't read at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// As many requests unanswered as the session allows, or too much unsent.
    Full,
    /// The shard, or the way to it, takes no request now.
    Busy,
    /// The budget has no room for the request that has begun.
    Memory,
    /// Its share of this turn is used up.
    Turn,
}

/// One connection.
pub struct Connection {
    /// Its place.
    pub id: ConnectionId,
    /// Non-blocking.
    pub socket: TcpStream,
    /// Its side of the protocol.
    pub session: Box<dyn Session>,
    /// Received and not parsed.
    pub input: Input,
    /// A request that was refused for the moment, to be tried before anything else is parsed.
    pub stalled: Option<Stalled>,
    /// A request of the session's own making, refused for the moment.
    pub held_ask: Option<(u64, OwnedRequest)>,
    /// Memory of answers that the session holds or that wait to be sent, as far as it is charged.
    pub answer_bytes: usize,
    /// To be sent.
    pub output: Output,
    /// The reader's task waits here while paused.
    pub resume: Rc<Signal>,
    /// Set while the reader's task doesn't read.
    pub pause: Option<Pause>,
    /// The held input may begin with whole requests.
    pub is_unparsed: bool,
    /// No more input comes, or none is wanted: close when everything is answered and sent.
    pub ending: Option<Ending>,
    /// In the core's list of connections with something to send.
    pub is_dirty: bool,
    /// A task waits until the socket takes more.
    pub is_blocked: bool,
    /// In the core's list of connections that keep blocks without sending them.
    pub is_holder: bool,
    /// When it was opened.
    pub opened_us: u64,
    /// When bytes last moved in either direction, or nothing had to.
    pub progress_us: u64,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer sends no more: it still gets its answers.
    PeerDone,
    /// Framing is lost: it gets what is in the outbox.
    Broken,
}

/// A request that was refused for the moment.
#[derive(Debug)]
pub enum Stalled {
    /// Its frame's body is in the unparsed input (range from its start), which `consumed_bytes` leave when it is accepted.
    Frame { id: u64, header: Box<FrameHeader>, body: Range<usize>, consumed_bytes: usize },
    /// It has left the input.
    Owned { id: u64, request: OwnedRequest },
}

/// Bytes received and not parsed.
#[derive(Debug, Default)]
pub struct Input {
    held: Vec<u8>,
    /// Length of the request that `held` begins with, as far as known; else 0.
    needed_bytes: usize,
    /// Length of the last whole request: reads end where requests probably end, so that little is held.
    usual_bytes: usize,
    /// Beyond `BASE_BYTES`.
    charged_bytes: usize,
}

/// Where bytes have been read to.
#[derive(Debug, PartialEq, Eq)]
pub enum Filled {
    /// The shared buffer, from its start.
    Shared { bytes: usize, is_full: bool },
    /// The connection's own.
    Held { is_full: bool },
    /// Nothing there yet.
    Nothing,
    /// The peer sends no more.
    End,
    /// No room for the request that has begun.
    NoMemory,
}

impl Input {
    /// Bytes held.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Takes the held bytes out, to be parsed while the connection is borrowed otherwise. `put_back` follows.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The bytes taken, of which the first `consumed_bytes` are parsed.
    pub fn put_back(&mut self, mut held: Vec<u8>, consumed_bytes: usize) {
        if consumed_bytes >= held.len() {
            held.clear();
        } else if consumed_bytes > 0 {
            held.drain(..consumed_bytes);
        }
        self.held = held;
    }

    /// Total length of the request that begins the unparsed bytes, 0 if unknown; sets how the next read goes.
    pub fn expect(&mut self, needed_bytes: usize) {
        self.needed_bytes = needed_bytes;
    }

    /// The length of a whole request that was parsed.
    pub fn note_request(&mut self, bytes: usize) {
        self.usual_bytes = bytes;
    }

    /// Reads what has arrived, behind the held bytes.
    ///
    /// Errors: the socket's.
    pub fn read(&mut self, socket: &TcpStream, shared: &mut [u8], limit_bytes: usize, budget: &mut Budget) -> Result<Filled, Errno> {
        if self.held.len() + 1 < LONG_REQUEST_BYTES && self.needed_bytes <= LONG_REQUEST_BYTES {
            // What isn't parsed of this read must be held: no more than there is room for.
            let room = BASE_BYTES + self.charged_bytes + budget.available_bytes();
            let end = usual_end(self.held.len(), self.usual_bytes, shared.len()).min(limit_bytes).min(room);
            let from = self.held.len();
            if end <= from {
                return Ok(Filled::NoMemory);
            }
            let count = match receive(socket, &mut shared[from..end])? {
                Received::Bytes(count) => count,
                Received::Nothing => return Ok(Filled::Nothing),
                Received::End => return Ok(Filled::End),
            };
            shared[..from].copy_from_slice(&self.held);
            self.held.clear();
            return Ok(Filled::Shared { bytes: from + count, is_full: from + count == end });
        }
        let wanted = self.needed_bytes.max(self.held.len() + 1);
        if wanted > limit_bytes.max(BASE_BYTES) || !self.reserve(wanted, budget) {
            return Ok(Filled::NoMemory);
        }
        match receive_into(socket, &mut self.held)? {
            Received::Bytes(_) => Ok(Filled::Held { is_full: self.held.len() == self.held.capacity() }),
            Received::Nothing => Ok(Filled::Nothing),
            Received::End => Ok(Filled::End),
        }
    }

    /// Keeps bytes that weren't parsed. They fit: `read` took no more than there was room for.
    pub fn hold(&mut self, bytes: &[u8], budget: &mut Budget) {
        debug_assert!(self.held.is_empty(), "held bytes were moved to the front of the read");
        let is_charged = self.reserve(bytes.len(), budget);
        debug_assert!(is_charged, "a read took more than the budget has room for");
        self.held.extend_from_slice(bytes);
    }

    /// Gives memory back that isn't used: called now and then, so that a busy connection keeps its buffer.
    pub fn trim(&mut self, budget: &mut Budget) {
        if self.held.is_empty() {
            self.held = Vec::new();
            budget.release(std::mem::take(&mut self.charged_bytes));
        }
    }

    /// Gives everything back: the connection has gone.
    pub fn clear(&mut self, budget: &mut Budget) {
        self.held.clear();
        self.trim(budget);
    }

    /// The request that was waited for is there.
    pub fn is_whole(&self) -> bool {
        self.needed_bytes > 0 && self.held.len() >= self.needed_bytes
    }

    /// Holds memory beyond what every connection may have.
    pub fn holds_extra(&self) -> bool {
        self.charged_bytes > 0
    }

    /// Holds memory.
    pub fn holds_any(&self) -> bool {
        self.held.capacity() > 0
    }

    /// Room for `bytes` in all, charged before it is there.
    fn reserve(&mut self, bytes: usize, budget: &mut Budget) -> bool {
        if bytes <= self.held.capacity() {
            return true;
        }
        let wanted = bytes.next_multiple_of(BASE_BYTES);
        let extra = wanted.saturating_sub(BASE_BYTES + self.charged_bytes);
        if !budget.charge(extra) {
            return false;
        }
        self.charged_bytes += extra;
        self.held.reserve_exact(wanted - self.held.len());
        true
    }
}

/// Where a read should end: after a whole number of requests as long as the last one, the first of which has
/// `held_bytes` already. Small requests don't matter: what is left of them is copied in no time.
fn usual_end(held_bytes: usize, usual_bytes: usize, buffer_bytes: usize) -> usize {
    if usual_bytes < BASE_BYTES || usual_bytes > buffer_bytes || held_bytes >= usual_bytes {
        return buffer_bytes;
    }
    buffer_bytes - buffer_bytes % usual_bytes
}

enum Received {
    Bytes(usize),
    Nothing,
    End,
}

fn receive(socket: &TcpStream, buffer: &mut [u8]) -> Result<Received, Errno> {
    match rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Ok(Received::End),
        Ok((count, _)) => Ok(Received::Bytes(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(error) => Err(error),
    }
}

/// Appends what fits into the buffer's spare capacity, of which there is some.
fn receive_into(socket: &TcpStream, buffer: &mut Vec<u8>) -> Result<Received, Errno> {
    match rustix::net::recv(socket, rustix::buffer::spare_capacity(buffer), RecvFlags::DONTWAIT) {
        Ok((0, _)) => Ok(Received::End),
        Ok((count, _)) => Ok(Received::Bytes(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(error) => Err(error),
    }
}

/// What waits to be sent, and how far it has got.
#[derive(Debug, Default)]
pub struct Output {
    /// In order.
    pub outbox: Outbox,
    /// Parts of the front piece that are sent: a `Vec` is one part, a slice or an extent each.
    part: usize,
    /// Bytes sent of the next part.
    sent_bytes: usize,
    cold: Cold,
}

/// A part that has left the tail cache.
#[derive(Debug, Default)]
enum Cold {
    #[default]
    No,
    Reading,
    /// The bytes of the extent that is the next part.
    Read(Vec<Slice>),
}

/// How far a send came.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// Everything.
    All,
    /// One call's worth; there is more.
    More,
    /// What the socket takes for now.
    Blocked,
    /// Up to an extent that must be read from the device: `read_extent` with this connection's ticket, `put_cold` when done.
    Cold(ShardId, Extent),
    /// Nothing: the extent is still being read.
    Waiting,
}

impl Output {
    /// Bytes not sent yet.
    pub fn len_bytes(&self) -> usize {
        self.outbox.len_bytes
    }

    /// Something can be sent now.
    pub fn is_ready(&self) -> bool {
        self.outbox.len_bytes > 0 && !matches!(self.cold, Cold::Reading)
    }

    /// The extent that was asked for.
    pub fn put_cold(&mut self, slices: Vec<Slice>) {
        self.cold = Cold::Read(slices);
    }

    /// The next bytes are being read from the device.
    pub fn is_reading(&self) -> bool {
        matches!(self.cold, Cold::Reading)
    }

    /// Holds memory that readers of the disk share.
    pub fn holds_blocks(&self) -> bool {
        let is_block = |piece: &Piece| matches!(piece, Piece::Frames { data: FetchData::Blocks { .. }, .. });
        matches!(self.cold, Cold::Read(_)) || self.outbox.pieces.iter().any(is_block)
    }

    /// Gives that memory up: what isn't sent yet is read again when the socket takes more.
    pub fn give_up_blocks(&mut self) {
        if matches!(self.cold, Cold::Read(_)) {
            self.cold = Cold::No;
        }
        for piece in &mut self.outbox.pieces {
            if let Piece::Frames { data, .. } = piece
                && let FetchData::Blocks { extents, .. } = data
            {
                *data = FetchData::Extents(std::mem::take(extents));
            }
        }
    }

    /// Sends as much as one call takes. Also tells how many bytes went out.
    ///
    /// Errors: the socket's; the peer has gone.
    pub fn send(&mut self, socket: &TcpStream, shards: &mut Shards, spares: &mut Spares) -> Result<(Sent, usize), Errno> {
        if matches!(self.cold, Cold::Reading) {
            return Ok((Sent::Waiting, 0));
        }
        let mut slices = [IoSlice::new(&[]); SEND_PIECES];
        let gathered = self.gather(shards, &mut slices);
        if gathered.bytes == 0 {
            return Ok(match gathered.cold {
                Some((shard, extent)) => {
                    self.cold = Cold::Reading;
                    (Sent::Cold(shard, extent), 0)
                }
                None => {
                    self.advance(0, shards, spares);
                    (Sent::All, 0)
                }
            });
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = rustix::net::sendmsg(socket, &slices[..gathered.count], &mut SendAncillaryBuffer::default(), flags);
        let count = match result {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok((Sent::Blocked, 0)),
            Err(error) => return Err(error),
        };
        self.advance(count, shards, spares);
        let sent = if count < gathered.bytes {
            Sent::Blocked
        } else if self.outbox.len_bytes == 0 {
            Sent::All
        } else {
            Sent::More
        };
        Ok((sent, count))
    }

    /// Gives everything up: the connection has gone.
    pub fn drop_all(&mut self, shards: &mut Shards, spares: &mut Spares) {
        while let Some(piece) = self.outbox.pieces.pop_front() {
            finish(piece, shards, spares);
        }
        self.outbox.len_bytes = 0;
        self.cold = Cold::No;
        (self.part, self.sent_bytes) = (0, 0);
    }

    /// The next bytes in order, from where they lie.
    fn gather<'a>(&'a self, shards: &'a Shards, slices: &mut [IoSlice<'a>; SEND_PIECES]) -> Gathered {
        let mut to = Gather { slices, count: 0, bytes: 0, skip: self.sent_bytes };
        let mut from = self.part;
        for (index, piece) in self.outbox.pieces.iter().enumerate() {
            match piece {
                Piece::Bytes(bytes) if from == 0 => {
                    to.push(bytes);
                }
                Piece::Bytes(_) => {}
                Piece::Ranges { bytes, ranges } => {
                    for range in ranges.iter().skip(from) {
                        if to.is_full() {
                            break;
                        }
                        to.push(&bytes[range.clone()]);
                    }
                }
                Piece::Frames { data: FetchData::Owned(bytes), .. } => {
                    if from == 0 {
                        to.push(bytes);
                    }
                }
                Piece::Frames { data: FetchData::Blocks { blocks, .. }, .. } => blocks.iter().skip(from).for_each(|block| to.push(block)),
                Piece::Frames { data: FetchData::Extents(extents), shard, .. } => {
                    for (part, extent) in extents.iter().enumerate().skip(from) {
                        if to.is_full() {
                            break;
                        }
                        match (&self.cold, shards.hot_bytes(ShardId(*shard), *extent)) {
                            (Cold::Read(blocks), _) if index == 0 && part == from => blocks.iter().for_each(|block| to.push(block)),
                            (_, Some(bytes)) => to.push(bytes),
                            (_, None) => return Gathered { count: to.count, bytes: to.bytes, cold: Some((ShardId(*shard), *extent)) },
                        }
                    }
                }
            }
            from = 0;
            if to.is_full() {
                break;
            }
        }
        Gathered { count: to.count, bytes: to.bytes, cold: None }
    }

    /// Forgets `count` bytes that were sent, and empty parts behind them.
    fn advance(&mut self, mut count: usize, shards: &mut Shards, spares: &mut Spares) {
        self.outbox.len_bytes -= count;
        while let Some(piece) = self.outbox.pieces.front() {
            while let Some(len) = part_bytes(piece, self.part) {
                let left = len - self.sent_bytes;
                if count < left {
                    self.sent_bytes += count;
                    return;
                }
                count -= left;
                (self.part, self.sent_bytes, self.cold) = (self.part + 1, 0, Cold::No);
            }
            self.part = 0;
            if let Some(piece) = self.outbox.pieces.pop_front() {
                finish(piece, shards, spares);
            }
        }
        debug_assert!(count == 0 && self.outbox.len_bytes == 0, "an empty outbox has nothing left to send");
    }
}

struct Gathered {
    count: usize,
    bytes: usize,
    /// Where it stopped because the bytes aren't in memory.
    cold: Option<(ShardId, Extent)>,
}

/// Slices for one call.
struct Gather<'a, 'b> {
    slices: &'b mut [IoSlice<'a>; SEND_PIECES],
    count: usize,
    bytes: usize,
    /// Bytes of the first part that are sent already.
    skip: usize,
}

impl<'a> Gather<'a, '_> {
    fn push(&mut self, bytes: &'a [u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let bytes = &bytes[skipped..];
        let bytes = &bytes[..bytes.len().min(SEND_BYTES - self.bytes)];
        if !bytes.is_empty() && self.count < SEND_PIECES {
            self.slices[self.count] = IoSlice::new(bytes);
            self.count += 1;
            self.bytes += bytes.len();
        }
    }

    fn is_full(&self) -> bool {
        self.count == SEND_PIECES || self.bytes == SEND_BYTES
    }
}

/// Length of a part of a piece; `None` behind the last.
fn part_bytes(piece: &Piece, part: usize) -> Option<usize> {
    match piece {
        Piece::Bytes(bytes) | Piece::Frames { data: FetchData::Owned(bytes), .. } => (part == 0).then_some(bytes.len()),
        Piece::Ranges { ranges, .. } => ranges.get(part).map(ExactSizeIterator::len),
        Piece::Frames { data: FetchData::Blocks { blocks, .. }, .. } => blocks.get(part).map(|block| block.len()),
        Piece::Frames { data: FetchData::Extents(extents), .. } => extents.get(part).map(|extent| extent.len as usize),
    }
}

/// A piece has been sent, or never will be.
fn finish(piece: Piece, shards: &mut Shards, spares: &mut Spares) {
    match piece {
        Piece::Bytes(bytes) => spares.put(bytes),
        Piece::Frames { data, shard, .. } => shards.release_extents(ShardId(shard), data.extents()),
        Piece::Ranges { .. } => {}
    }
}

/// Reply buffers for reuse, shared by the connections of a core: an idle connection keeps none.
#[derive(Debug, Default)]
pub struct Spares(Vec<Vec<u8>>);

impl Spares {
    /// Gives an empty outbox a buffer to begin with.
    pub fn begin(&mut self, outbox: &mut Outbox) {
        if outbox.pieces.is_empty()
            && let Some(spare) = self.0.pop()
        {
            outbox.pieces.push_back(Piece::Bytes(spare));
        }
    }

    fn put(&mut self, mut bytes: Vec<u8>) {
        if self.0.len() < SPARE_COUNT && (1..=SPARE_BYTES).contains(&bytes.capacity()) {
            bytes.clear();
            self.0.push(bytes);
        }
    }
}
