//! Memory for everything that touches the disk or a socket, charged to a limit before it is taken.
//!
//! ```text
//! Arena ── allocate ──▶ Buffer (unique, writable) ── freeze ──▶ Slice (shared, read-only)
//!                         └── Chunk::new ──▶ Chunk: │ sealed, shared as Slices │ appended │ free │
//! ```
//!
//! One arena belongs to one core thread: nothing here is `Send`, counts are plain integers. Pieces of up to
//! 2 MiB are cut from 2 MiB *regions*, one size per region; a region whose pieces are all free goes to a short
//! spare list and beyond that back to the kernel. Longer pieces are mappings of their own. New regions for large
//! pieces have been touched by another thread ([`Supply`]).
//! Contents aren't cleared between users: a fresh buffer shows old bytes until it is overwritten.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;

use super::BLOCK_BYTES;
use super::region::{Mapping, REGION_BYTES, Supply};

/// Sizes a piece can have; longer ones are multiples of [`REGION_BYTES`].
const CLASS_BYTES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];

/// From this size on regions ask for huge pages. Below, one small buffer of an idle core would cost 2 MiB.
const HUGE_FROM_BYTES: usize = 256 << 10;

/// Free regions kept of each kind, so that a chunk given back and taken again isn't zeroed by the kernel.
const SPARE_REGIONS: usize = 2;

/// Words of a bitmap with one bit per piece of the smallest class.
const FREE_WORDS: usize = REGION_BYTES / CLASS_BYTES[0] / 64;

const _: () = assert!(CLASS_BYTES[0] == BLOCK_BYTES && CLASS_BYTES[5] == REGION_BYTES);

/// A core thread's memory. Clones share it.
#[derive(Clone)]
pub struct Arena {
    shared: Rc<Shared>,
}

struct Shared {
    limit_bytes: usize,
    pool: RefCell<Pool>,
}

/// The arena's limit (or the kernel) allows no such piece now: wait until something is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaFull {
    /// What the piece would have been charged.
    pub wanted_bytes: usize,
    /// Charged at that time.
    pub used_bytes: usize,
    /// The arena's limit.
    pub limit_bytes: usize,
}

impl fmt::Display for ArenaFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for {} bytes: {} of {} in use", self.wanted_bytes, self.used_bytes, self.limit_bytes)
    }
}

impl std::error::Error for ArenaFull {}

impl Arena {
    /// An empty arena; maps nothing yet.
    pub fn new(limit_bytes: usize) -> Arena {
        Arena { shared: Rc::new(Shared { limit_bytes, pool: RefCell::new(Pool::new(None)) }) }
    }

    /// As `new`; the regions of large pieces come from `supply`, once the first is taken.
    pub fn with_supply(limit_bytes: usize, supply: Supply) -> Arena {
        Arena { shared: Rc::new(Shared { limit_bytes, pool: RefCell::new(Pool::new(Some(supply))) }) }
    }

    /// A buffer of `bytes` rounded up to whole blocks, with unspecified content.
    ///
    /// Charged before it is taken, with the size of its class: 4, 16, 64, 256 KiB, 1, 2 MiB, then multiples of 2 MiB.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, ArenaFull> {
        let mut pool = self.shared.pool.borrow_mut();
        let full = |wanted_bytes, used_bytes| ArenaFull { wanted_bytes, used_bytes, limit_bytes: self.shared.limit_bytes };
        let Some(charge) = charged_bytes(bytes) else { return Err(full(bytes, pool.used_bytes)) };
        if charge > self.shared.limit_bytes.saturating_sub(pool.used_bytes) {
            return Err(full(charge, pool.used_bytes));
        }
        let Ok((start, home)) = pool.take(charge) else { return Err(full(charge, pool.used_bytes)) };
        pool.used_bytes += charge;
        pool.ask_ahead(self.shared.limit_bytes);
        drop(pool);
        let piece = Piece { start, bytes: charge, home: Some(home), arena: self.shared.clone() };
        Ok(Buffer { piece, len: bytes.max(1).next_multiple_of(BLOCK_BYTES) })
    }

    /// Charged to living buffers, slices and chunks.
    pub fn used_bytes(&self) -> usize {
        self.shared.pool.borrow().used_bytes
    }

    /// Never exceeded by `used_bytes`.
    pub fn limit_bytes(&self) -> usize {
        self.shared.limit_bytes
    }

    /// Held from the kernel: used pieces, free pieces of their regions, spare regions. Untouched pages of it cost nothing.
    pub fn mapped_bytes(&self) -> usize {
        self.shared.pool.borrow().mapped_bytes
    }

    /// Whether every region that asked for huge pages so far may have them: the kernel has taken the advice, and the
    /// system's mode isn't `never`.
    pub fn huge_pages(&self) -> bool {
        !self.shared.pool.borrow().huge_refused
    }

    /// Gives the spare regions back to the kernel. For a core that goes idle.
    pub fn trim(&self) {
        let mut pool = self.shared.pool.borrow_mut();
        let spare = pool.spare.iter_mut().flat_map(std::mem::take).count();
        pool.mapped_bytes -= spare * REGION_BYTES;
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} bytes used, {} mapped)", self.used_bytes(), self.limit_bytes(), self.mapped_bytes())
    }
}

/// Memory with one owner. As long as it is given to the kernel it is inside an operation, out of reach.
pub struct Buffer {
    piece: Piece,
    len: usize,
}

impl Buffer {
    /// Ends writing; the memory goes back to its arena with the last slice of it.
    pub fn freeze(self) -> Slice {
        let start = self.piece.start;
        Slice { start, len: self.len, owner: Rc::new(self.piece) }
    }

    /// Address and length for the kernel or another thread; both stay valid, and the memory in place, while the
    /// buffer lives, wherever it is moved to.
    pub(super) fn raw_parts(&mut self) -> (*mut u8, usize) {
        (self.piece.start.as_ptr(), self.len)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece covers `len` bytes (`len` was rounded up into its class), mapped and initialised by the kernel
        // or an earlier user, and belongs to this buffer alone: pieces are handed out once until dropped. Whoever took
        // `raw_parts` for the kernel holds the buffer itself, so it can't be borrowed here meanwhile.
        unsafe { slice::from_raw_parts(self.piece.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes every other borrow, and there is no second owner of the piece.
        unsafe { slice::from_raw_parts_mut(self.piece.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// Bytes that never change while anybody holds them.
#[derive(Clone)]
pub struct Slice {
    owner: Rc<Piece>,
    start: NonNull<u8>,
    len: usize,
}

impl Slice {
    /// Part of it, sharing the memory.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        // SAFETY: `range.start <= self.len`, so the address is inside the piece or one past it.
        let start = unsafe { self.start.add(range.start) };
        Slice { owner: self.owner.clone(), start, len: range.len() }
    }

    /// A copy of all their bytes, one after the other.
    pub fn concat(slices: &[Slice]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        bytes
    }

    /// What the arena charges for the memory that it keeps, bytes.
    pub fn charged_bytes(&self) -> usize {
        self.owner.bytes
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` is inside the piece that `owner` keeps mapped, and initialised. Nobody writes to it:
        // a frozen buffer's piece has no writer any more, and a chunk writes only from its sealed end on, while a slice of
        // it ends there at the latest.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

/// An append buffer of the log.
///
/// ```text
/// 0 ────────── sealed ────────── len ────────── capacity
///   immutable,        may be       never
///   shared as Slices  patched      read
/// ```
/// The kernel may read sealed bytes while the tail grows.
pub struct Chunk {
    memory: Rc<Piece>,
    capacity: usize,
    len: usize,
    sealed: usize,
}

impl Chunk {
    /// An empty chunk as long as the buffer.
    pub fn new(buffer: Buffer) -> Chunk {
        Chunk { capacity: buffer.len, memory: Rc::new(buffer.piece), len: 0, sealed: 0 }
    }

    /// Copies `bytes` behind the last ones. Panics if they don't fit: ask `remaining` first.
    pub fn append(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.remaining(), "{} bytes into {}", bytes.len(), self.remaining());
        // SAFETY: `len + bytes.len() <= capacity`, inside the piece this chunk owns. The target lies at or behind `len`, so
        // no slice covers it (they end at `sealed <= len`), no borrow from `bytes()` is alive (`&mut self`), and the source,
        // an ordinary borrow, can't overlap it.
        unsafe { self.at(self.len).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.len += bytes.len();
    }

    /// Appends `count` zero bytes. Panics if they don't fit.
    pub fn append_zeros(&mut self, count: usize) {
        assert!(count <= self.remaining(), "{count} zeros into {}", self.remaining());
        // SAFETY: as in `append`.
        unsafe { self.at(self.len).write_bytes(0, count) };
        self.len += count;
    }

    /// Overwrites appended bytes that aren't sealed yet.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        let fits = at >= self.sealed && at <= self.len && bytes.len() <= self.len - at;
        assert!(fits, "{} bytes at {at}, sealed {}, appended {}", bytes.len(), self.sealed, self.len);
        // SAFETY: the target is inside the appended bytes and not below `sealed`: no slice covers it, and `&mut self` ends
        // every borrow from `bytes()`.
        unsafe { self.at(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Makes everything before `end` immutable until `reset`. `end` only grows, and stays within the appended bytes.
    pub fn seal_to(&mut self, end: usize) {
        assert!(self.sealed <= end && end <= self.len, "seal to {end}, sealed {}, appended {}", self.sealed, self.len);
        self.sealed = end;
    }

    /// End of the immutable bytes.
    pub fn sealed(&self) -> usize {
        self.sealed
    }

    /// Appended so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Room behind the appended bytes.
    pub fn remaining(&self) -> usize {
        self.capacity - self.len
    }

    /// Length of the buffer.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the arena charges for it, bytes.
    pub fn charged_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Appended bytes, sealed or not.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} appended bytes", self.len);
        // SAFETY: appended bytes are initialised and inside the piece. They are written only through `&mut self`.
        unsafe { slice::from_raw_parts(self.at(range.start), range.len()) }
    }

    /// Sealed bytes, sharing the memory: it outlives the chunk if need be.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.sealed, "{range:?} of {} sealed bytes", self.sealed);
        // SAFETY: the start is inside the piece, so not null.
        let start = unsafe { NonNull::new_unchecked(self.at(range.start)) };
        Slice { owner: self.memory.clone(), start, len: range.len() }
    }

    /// Some slice of it is still held: by a reader, or by an operation in flight.
    pub fn is_shared(&self) -> bool {
        Rc::strong_count(&self.memory) > 1
    }

    /// Empties it for reuse. Panics while it is shared.
    pub fn reset(&mut self) {
        assert!(!self.is_shared(), "a chunk is reused while somebody reads it");
        self.len = 0;
        self.sealed = 0;
    }

    /// Address of byte `at`; the caller has checked `at <= capacity`.
    fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.capacity);
        // SAFETY: `at <= capacity <= piece.bytes`: inside the piece or one past it.
        unsafe { self.memory.start.as_ptr().add(at) }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} sealed, {} appended, {} bytes)", self.sealed, self.len, self.capacity)
    }
}

/// Memory on loan from the pool. Goes back when dropped.
struct Piece {
    start: NonNull<u8>,
    /// What it was charged, = its length.
    bytes: usize,
    /// `None` only inside `drop`.
    home: Option<Home>,
    arena: Rc<Shared>,
}

/// Where a piece comes from.
enum Home {
    Region { class: u8, piece: u16, region: u32 },
    Own(Mapping),
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            self.arena.pool.borrow_mut().put_back(self.bytes, home);
        }
    }
}

/// What a request of `bytes` occupies; `None` = can't be expressed.
fn charged_bytes(bytes: usize) -> Option<usize> {
    match CLASS_BYTES.iter().find(|&&class| bytes <= class) {
        Some(&class) => Some(class),
        None => bytes.checked_next_multiple_of(REGION_BYTES).filter(|&charge| charge <= isize::MAX as usize),
    }
}

struct Pool {
    used_bytes: usize,
    mapped_bytes: usize,
    huge_refused: bool,
    classes: [Class; CLASS_BYTES.len()],
    /// Wholly free regions: [ordinary pages, huge pages].
    spare: [Vec<Mapping>; 2],
    /// Of regions with huge pages.
    supply: Option<Supply>,
    /// The last such region was the last one at hand.
    is_out: bool,
}

/// All regions cut into pieces of one size.
struct Class {
    piece_bytes: usize,
    regions: Vec<Region>,
    /// One bit per region: has a free piece. The lowest is used first, so that the others run empty.
    open: Vec<u64>,
    /// Entries of `regions` without memory.
    vacant: Vec<u32>,
}

struct Region {
    memory: Option<Mapping>,
    /// One bit per free piece.
    free: [u64; FREE_WORDS],
    free_count: usize,
}

impl Pool {
    fn new(supply: Option<Supply>) -> Pool {
        let classes = CLASS_BYTES.map(|piece_bytes| Class { piece_bytes, regions: Vec::new(), open: Vec::new(), vacant: Vec::new() });
        Pool { used_bytes: 0, mapped_bytes: 0, huge_refused: false, classes, spare: [Vec::new(), Vec::new()], supply, is_out: false }
    }

    /// A free piece of exactly `bytes`, a value of `charged_bytes`.
    fn take(&mut self, bytes: usize) -> io::Result<(NonNull<u8>, Home)> {
        let Some(class) = CLASS_BYTES.iter().position(|&class| class == bytes) else {
            let memory = self.map(bytes, true)?;
            return Ok((memory.start(), Home::Own(memory)));
        };
        let region = match self.classes[class].lowest_open() {
            Some(region) => region,
            None => {
                let huge = bytes >= HUGE_FROM_BYTES;
                let memory = match self.spare[huge as usize].pop() {
                    Some(memory) => memory,
                    None => self.next_region(huge)?,
                };
                self.classes[class].add(memory)
            }
        };
        let (start, piece) = self.classes[class].take_piece(region);
        Ok((start, Home::Region { class: class as u8, piece: piece as u16, region: region as u32 }))
    }

    fn next_region(&mut self, huge: bool) -> io::Result<Mapping> {
        if huge {
            self.is_out = true;
            if let Some(memory) = self.supply.as_mut().and_then(Supply::take) {
                self.mapped_bytes += memory.bytes();
                return Ok(memory);
            }
        }
        self.map(REGION_BYTES, huge)
    }

    /// Has the next regions made, as far as there will be a use for them.
    fn ask_ahead(&mut self, limit_bytes: usize) {
        if std::mem::take(&mut self.is_out)
            && let Some(supply) = &mut self.supply
        {
            supply.ask(limit_bytes - self.used_bytes);
        }
    }

    fn put_back(&mut self, bytes: usize, home: Home) {
        self.used_bytes -= bytes;
        match home {
            Home::Own(memory) => self.mapped_bytes -= memory.bytes(),
            Home::Region { class, piece, region } => {
                let class = &mut self.classes[class as usize];
                let Some(memory) = class.put_piece_back(region as usize, piece as usize) else { return };
                let spare = &mut self.spare[(class.piece_bytes >= HUGE_FROM_BYTES) as usize];
                if spare.len() < SPARE_REGIONS {
                    spare.push(memory);
                } else {
                    self.mapped_bytes -= REGION_BYTES;
                }
            }
        }
    }

    fn map(&mut self, bytes: usize, huge: bool) -> io::Result<Mapping> {
        let memory = Mapping::new(bytes)?;
        if huge && !memory.advise_huge_pages() {
            self.huge_refused = true;
        }
        self.mapped_bytes += bytes;
        Ok(memory)
    }
}

impl Class {
    fn lowest_open(&self) -> Option<usize> {
        self.open.iter().position(|&word| word != 0).map(|word| word * 64 + self.open[word].trailing_zeros() as usize)
    }

    fn pieces(&self) -> usize {
        REGION_BYTES / self.piece_bytes
    }

    /// Cuts a region into free pieces; returns its index.
    fn add(&mut self, memory: Mapping) -> usize {
        let mut free = [0; FREE_WORDS];
        for (word, bits) in free.iter_mut().enumerate() {
            *bits = match self.pieces().saturating_sub(word * 64) {
                0 => 0,
                left if left >= 64 => u64::MAX,
                left => (1 << left) - 1,
            };
        }
        let region = Region { memory: Some(memory), free, free_count: self.pieces() };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.regions[index as usize] = region;
                index as usize
            }
            None => {
                self.regions.push(region);
                self.regions.len() - 1
            }
        };
        if self.open.len() <= index / 64 {
            self.open.push(0);
        }
        self.open[index / 64] |= 1 << (index % 64);
        index
    }

    fn take_piece(&mut self, index: usize) -> (NonNull<u8>, usize) {
        let region = &mut self.regions[index];
        let word = region.free.iter().position(|&word| word != 0).expect("an open region has a free piece");
        let piece = word * 64 + region.free[word].trailing_zeros() as usize;
        region.free[word] &= region.free[word] - 1;
        region.free_count -= 1;
        if region.free_count == 0 {
            self.open[index / 64] &= !(1 << (index % 64));
        }
        let memory = region.memory.as_ref().expect("an open region has memory");
        // SAFETY: `piece < REGION_BYTES / piece_bytes`, so the offset is inside the mapping.
        (unsafe { memory.start().add(piece * self.piece_bytes) }, piece)
    }

    /// Returns the region's memory if all of it is free now.
    fn put_piece_back(&mut self, index: usize, piece: usize) -> Option<Mapping> {
        let pieces = self.pieces();
        let region = &mut self.regions[index];
        assert!(region.free[piece / 64] & (1 << (piece % 64)) == 0, "a piece of memory came back twice");
        region.free[piece / 64] |= 1 << (piece % 64);
        region.free_count += 1;
        self.open[index / 64] |= 1 << (index % 64);
        if region.free_count < pieces {
            return None;
        }
        self.open[index / 64] &= !(1 << (index % 64));
        self.vacant.push(index as u32);
        region.memory.take()
    }
}
