//! A seeded disk in memory: the same contract as the real ones, and every way in which it can be met badly.
//!
//! Each file has *stable* pages and *volatile* writes on top. What a crash leaves:
//!
//! ```text
//!                      power_cut                                   process_crash
//! stable               stays                                       stays
//! volatile (completed) per write: lost, landed, torn at 512 bytes  stays
//! in flight            the same                                    lands later, or never; decided by `lock`
//! submitted, no kick   lost                                        lost
//! ```
//!
//! A durable write makes its own bytes stable and nobody else's; a flush makes stable what had completed
//! before it was submitted. After a failed write or flush the bytes concerned can be read until a crash and
//! no later flush saves them, as on Linux; the next process sees what the device really holds of them. Which operations finish in one `poll`, and in which order, is drawn
//! from the seed; so is everything else: one seed, one history.
//!
//! Mistakes of the caller (an unaligned position, a write beyond the written end, two writes in flight over
//! the same bytes, a file given back with reads in it) are bugs, and panic.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem;
use std::ops::Range;
use std::rc::Rc;

use super::{BLOCK_BYTES, Completion, Disk, Fault, FileId, Operation, Outcome, SegmentFile, Token, Volume};

#[cfg(test)]
mod tests;

/// Unit of tearing: what a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// What a disk operation is answered with once the power is cut; blocking calls carry a [`PowerCut`].
pub const POWER_CUT: Fault = Fault::Os(libc::ESHUTDOWN);

const MILLION: u32 = 1_000_000;
/// Length of a file from the reserve.
const RESERVE_FILE_BYTES: u64 = 64 << 10;

/// Chances are per million operations.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// An operation handed over is finished by the next `poll` with this chance.
    pub completion: u32,
    /// Operations finish in the order of submission.
    pub in_order: bool,
    /// An operation takes up to 200 polls longer than its neighbours.
    pub laggard: u32,
    /// A write fails with EIO; some of its bytes may be there.
    pub write_error: u32,
    /// A write transfers only a part.
    pub short_write: u32,
    /// A read fails with EIO.
    pub read_error: u32,
    /// A flush fails with EIO, and the next one is fine although the bytes are lost.
    pub flush_error: u32,
    /// A flush, or the flush in a durable write, is answered and not done. A million is a lying device, less a
    /// device that loses a flush now and then: the next honest flush makes good for it.
    pub flush_lie: u32,
    /// `Acquire` or `Extend` finds no space.
    pub disk_full: u32,
    /// The errors above happen to blocking calls too.
    pub blocking_errors: bool,
    /// Sum of the lengths of all files, at most.
    pub capacity_bytes: u64,
}

impl Default for SimOptions {
    /// Nothing fails; half of the operations finish per poll, in any order.
    fn default() -> SimOptions {
        SimOptions {
            completion: MILLION / 2,
            in_order: false,
            laggard: 0,
            write_error: 0,
            short_write: 0,
            read_error: 0,
            flush_error: 0,
            flush_lie: 0,
            disk_full: 0,
            blocking_errors: false,
            capacity_bytes: u64::MAX,
        }
    }
}

/// What the disk did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Read by operations.
    pub read_bytes: u64,
    /// Read by blocking calls.
    pub blocking_read_bytes: u64,
    /// Written by operations that asked for durability.
    pub durable_bytes: u64,
    /// Written by operations that didn't.
    pub written_bytes: u64,
    /// Written by blocking calls.
    pub blocking_written_bytes: u64,
    /// Zeros written to make or lengthen files.
    pub zeroed_bytes: u64,
    /// Flush operations and calls.
    pub flushes: u64,
    /// Files made.
    pub created_files: u64,
    /// Files taken from the pool, old content and all.
    pub recycled_files: u64,
    /// Writes that a crash lost, …
    pub lost_writes: u64,
    /// … landed whole, …
    pub landed_writes: u64,
    /// … or tore.
    pub torn_writes: u64,
    /// Faults injected.
    pub faults: u64,
    /// Flushes answered and not done.
    pub lies: u64,
    /// Flushes of a file that had already failed one: the log must not try.
    pub flushes_after_error: u64,
}

/// What `fail_next` can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Operation::Write`, `Volume::write_durable`.
    Write,
    /// `Operation::Read`, `Volume::read`.
    Read,
    /// `Operation::Flush`, `Volume::flush`.
    Flush,
    /// `Operation::Acquire`, `Volume::create`.
    Acquire,
    /// `Operation::Extend`, `Volume::extend`.
    Extend,
}

/// The power went while a blocking call ran, or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCut;

impl fmt::Display for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated power was cut")
    }
}

impl std::error::Error for PowerCut {}

/// Whether a blocking call failed because of the cut.
pub fn is_power_cut(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<PowerCut>()) || error.raw_os_error() == Some(libc::ESHUTDOWN)
}

/// xoshiro256**, seeded by splitmix64: small, fast, the same everywhere.
///
/// Source: Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2018).
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// Equal seeds give equal sequences; neighbouring seeds unrelated ones.
    pub fn new(seed: u64) -> Rng {
        let mut at = seed;
        let state = std::array::from_fn(|_| {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = at;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        Rng { state }
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// Uniform in `0..bound`; 0 for 0. The bias of multiply-and-shift is below 2⁻³² for the bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `range`, which isn't empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// An index into something with `count` entries.
    pub fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// True so many times in a million. Draws nothing for 0, so an unused fault doesn't move a history.
    pub fn per_million(&mut self, chance: u32) -> bool {
        chance != 0 && self.below(u64::from(MILLION)) < u64::from(chance)
    }

    /// Any order is as likely as any other.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// Handle to one simulated disk: [`Disk`] and [`Volume`] over the same files. Clones share everything.
#[derive(Clone)]
pub struct SimDisk {
    state: Rc<RefCell<State>>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, options: SimOptions) -> SimDisk {
        let state = State {
            rng: Rng::new(seed),
            options,
            files: BTreeMap::new(),
            next_file: 1,
            pool: Vec::new(),
            pending: Vec::new(),
            adrift: Vec::new(),
            writes: 0,
            operations: 0,
            cut_at: None,
            cut: false,
            stalled: false,
            forced: Vec::new(),
            counters: SimCounters::default(),
        };
        SimDisk { state: Rc::new(RefCell::new(state)) }
    }

    /// A disk of its own with the same files (sharing their pages) and the same future, operations in flight
    /// left out.
    pub fn fork(&self) -> SimDisk {
        let state = self.state.borrow();
        let state = State {
            rng: state.rng.clone(),
            options: state.options.clone(),
            files: state.files.clone(),
            pool: state.pool.clone(),
            pending: Vec::new(),
            adrift: Vec::new(),
            forced: Vec::new(),
            ..*state
        };
        SimDisk { state: Rc::new(RefCell::new(state)) }
    }

    /// Changes chances from now on.
    pub fn set_options(&self, change: impl FnOnce(&mut SimOptions)) {
        change(&mut self.state.borrow_mut().options);
    }

    /// What the disk did so far.
    pub fn counters(&self) -> SimCounters {
        self.state.borrow().counters
    }

    /// Operations and blocking calls begun so far: what `cut_after` counts.
    pub fn operations(&self) -> u64 {
        self.state.borrow().operations
    }

    /// Replaces the pool: the files that nobody's log refers to, found out by whoever opened the directory.
    /// A reserve for the day when the disk is full is made if there is space.
    pub fn set_pool(&self, files: Vec<FileId>) {
        let mut state = self.state.borrow_mut();
        assert!(files.iter().all(|file| state.files.contains_key(file)), "a file of the pool doesn't exist");
        state.pool = files;
        if state.pool.is_empty()
            && let Ok(reserve) = state.create(RESERVE_FILE_BYTES)
        {
            state.pool.push(reserve.file);
        }
    }

    /// Files waiting to be recycled.
    pub fn pool(&self) -> Vec<FileId> {
        self.state.borrow().pool.clone()
    }

    /// The next operation or call of this kind fails so; repeated calls queue up.
    pub fn fail_next(&self, kind: Kind, fault: Fault) {
        self.state.borrow_mut().forced.push((kind, fault));
    }

    /// While stalled nothing completes.
    pub fn stall(&self, stalled: bool) {
        self.state.borrow_mut().stalled = stalled;
    }

    /// Finishes everything handed over, stalled or not.
    pub fn settle(&self, completions: &mut Vec<Completion>) {
        self.state.borrow_mut().poll(completions, MILLION);
    }

    /// The power is cut within the `count`-th operation or blocking call from now (1 = the next): that one
    /// and all later ones fail, and nothing in flight completes.
    pub fn cut_after(&self, count: u64) {
        let mut state = self.state.borrow_mut();
        state.cut_at = Some(state.operations + count.max(1));
    }

    /// Nothing is volatile or in flight: a power cut would change nothing.
    pub fn is_stable(&self) -> bool {
        let state = self.state.borrow();
        state.pending.is_empty() && state.adrift.is_empty() && state.files.values().all(|file| file.volatile.is_empty())
    }

    /// Whether the cut has happened.
    pub fn is_cut(&self) -> bool {
        self.state.borrow().cut
    }

    /// Power fails and comes back: every write that isn't stable is lost, landed or torn, by the seed.
    /// The pool is forgotten.
    pub fn power_cut(&self) {
        let mut state = self.state.borrow_mut();
        state.abandon_pending();
        state.resolve_all();
        state.restart();
    }

    /// The process dies and the machine lives: completed writes stay, those in flight drift until `lock`.
    /// After `cut_after` this stands for a kill at that very call. The pool is forgotten.
    pub fn process_crash(&self) {
        let mut state = self.state.borrow_mut();
        state.abandon_pending();
        state.resolve_doomed();
        state.restart();
    }

    /// Locks the files, which on Linux succeeds only when the last descriptor of the dead process is closed:
    /// what it had in flight has landed by then, or never will.
    pub fn lock(&self) {
        self.state.borrow_mut().drift(1);
    }

    /// Flips one bit of what is stable at `position`.
    pub fn rot(&self, file: FileId, position: u64, bit: u8) {
        let mut state = self.state.borrow_mut();
        let file = state.file(file);
        let (page, at) = split(position);
        let page = Rc::make_mut(file.pages[page].get_or_insert_with(zero_page));
        page[at] ^= 1 << (bit % 8);
    }

    /// Fills `into` with what a reader would see now. Counts as nothing; for tests that look behind the log.
    pub fn peek(&self, file: FileId, position: u64, into: &mut [u8]) {
        self.state.borrow_mut().file(file).read(position, into);
    }

    /// One number for the whole content: ids, lengths and bytes of all files.
    pub fn digest(&self) -> u64 {
        let state = self.state.borrow();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut bytes = vec![0; BLOCK_BYTES];
        for (id, file) in &state.files {
            for page in 0..file.pages.len() {
                file.read((page * BLOCK_BYTES) as u64, &mut bytes);
                for word in bytes.chunks_exact(8) {
                    hash = (hash ^ u64::from_le_bytes(word.try_into().unwrap())).wrapping_mul(0x100_0000_01b3).rotate_left(23);
                }
            }
            hash = (hash ^ u64::from(id.0)).wrapping_mul(0x100_0000_01b3);
            hash = (hash ^ file.pages.len() as u64).wrapping_mul(0x100_0000_01b3);
        }
        hash
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        self.state.borrow_mut().submit(token, operation);
    }

    fn kick(&mut self) {
        let mut state = self.state.borrow_mut();
        if !state.cut {
            state.pending.iter_mut().for_each(|pending| pending.kicked = true);
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let mut state = self.state.borrow_mut();
        if !state.stalled || state.cut {
            let chance = state.options.completion;
            state.poll(completions, chance);
        }
    }

    fn in_flight(&self) -> usize {
        self.state.borrow().pending.len()
    }
}

impl Volume for SimDisk {
    fn list(&mut self) -> io::Result<Vec<SegmentFile>> {
        let mut state = self.state.borrow_mut();
        state.begin_call(None)?;
        Ok(state.files.iter().map(|(&file, content)| SegmentFile { file, written_bytes: content.written_bytes() }).collect())
    }

    fn read(&mut self, file: FileId, position: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        assert_aligned(position, into.len());
        state.begin_call(None)?;
        state.call_fault(Kind::Read)?;
        let content = state.files.get(&file).ok_or(io::ErrorKind::NotFound)?;
        if position + into.len() as u64 > content.written_bytes() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(position, into);
        state.counters.blocking_read_bytes += into.len() as u64;
        Ok(())
    }

    fn write_durable(&mut self, file: FileId, position: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        assert_aligned(position, data.len());
        assert!(position + data.len() as u64 <= state.file(file).written_bytes(), "{file}: write beyond the written end");
        state.begin_call(Some(Adrift::Write { file, position, data: Bytes::from(data) }))?;
        if let Err(fault) = state.call_fault(Kind::Write) {
            state.write_badly(file, position, data, false);
            return Err(fault);
        }
        state.counters.blocking_written_bytes += data.len() as u64;
        state.write_durably(file, position, data);
        Ok(())
    }

    fn create(&mut self, written_bytes: u64) -> io::Result<SegmentFile> {
        let mut state = self.state.borrow_mut();
        assert_aligned(0, written_bytes as usize);
        state.begin_call(Some(Adrift::Create { written_bytes }))?;
        state.call_fault(Kind::Acquire)?;
        state.create(written_bytes).map_err(to_io)
    }

    fn extend(&mut self, file: FileId, to_bytes: u64) -> io::Result<SegmentFile> {
        let mut state = self.state.borrow_mut();
        assert_aligned(0, to_bytes as usize);
        state.begin_call(Some(Adrift::Extend { file, to_bytes }))?;
        state.call_fault(Kind::Extend)?;
        state.extend(file, to_bytes).map_err(to_io)
    }

    fn flush(&mut self, file: FileId) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.begin_call(None)?;
        let mark = state.writes;
        state.count_flush(file);
        let fault = state.call_fault(Kind::Flush);
        state.flush(file, mark, fault.is_err());
        fault
    }

    fn remove(&mut self, file: FileId) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.begin_call(Some(Adrift::Remove { file }))?;
        state.remove(file);
        Ok(())
    }
}

type Page = [u8; BLOCK_BYTES];

fn zero_page() -> Rc<Page> {
    Rc::new([0; BLOCK_BYTES])
}

fn split(position: u64) -> (usize, usize) {
    (position as usize / BLOCK_BYTES, position as usize % BLOCK_BYTES)
}

fn assert_aligned(position: u64, len: usize) {
    assert!(position.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES) && position <= u64::from(u32::MAX) * 4096);
}

fn to_io(fault: Fault) -> io::Error {
    match fault {
        Fault::Short { .. } => io::ErrorKind::WriteZero.into(),
        Fault::DiskFull => io::Error::from_raw_os_error(libc::ENOSPC),
        Fault::Os(code) => io::Error::from_raw_os_error(code),
    }
}

/// Written bytes that no kernel buffer stands behind any more.
type Bytes = Rc<[u8]>;

/// A completed write that isn't stable.
#[derive(Clone)]
struct Volatile {
    position: u64,
    data: Bytes,
    /// Its place among all writes of the disk.
    write: u64,
    /// A write or flush failed over it: no flush will save it.
    doomed: bool,
}

impl Volatile {
    fn range(&self) -> Range<u64> {
        self.position..self.position + self.data.len() as u64
    }
}

#[derive(Clone, Default)]
struct SimFile {
    /// `None` = zeros.
    pages: Vec<Option<Rc<Page>>>,
    /// Oldest first.
    volatile: Vec<Volatile>,
    flush_failed: bool,
}

impl SimFile {
    fn zeros(written_bytes: u64) -> SimFile {
        SimFile { pages: vec![None; written_bytes as usize / BLOCK_BYTES], ..SimFile::default() }
    }

    fn written_bytes(&self) -> u64 {
        (self.pages.len() * BLOCK_BYTES) as u64
    }

    fn read(&self, position: u64, into: &mut [u8]) {
        for (index, out) in into.chunks_mut(BLOCK_BYTES).enumerate() {
            match &self.pages[split(position).0 + index] {
                Some(page) => out.copy_from_slice(&page[..out.len()]),
                None => out.fill(0),
            }
        }
        for write in &self.volatile {
            overlay(position, into, write.position, &write.data);
        }
    }

    /// Makes bytes stable. Positions are multiples of a sector.
    fn land(&mut self, position: u64, data: &[u8]) {
        let mut position = position;
        let mut data = data;
        while !data.is_empty() {
            let (index, at) = split(position);
            let len = data.len().min(BLOCK_BYTES - at);
            let page = self.pages[index].get_or_insert_with(zero_page);
            Rc::make_mut(page)[at..at + len].copy_from_slice(&data[..len]);
            position += len as u64;
            data = &data[len..];
        }
    }

    /// Cuts `range` out of the volatile writes: newer bytes are stable there.
    fn supersede(&mut self, range: Range<u64>) {
        if self.volatile.iter().all(|write| write.range().start >= range.end || write.range().end <= range.start) {
            return;
        }
        for write in mem::take(&mut self.volatile) {
            let own = write.range();
            if own.end <= range.start || own.start >= range.end {
                self.volatile.push(write);
                continue;
            }
            if own.start < range.start {
                let data = Bytes::from(&write.data[..(range.start - own.start) as usize]);
                self.volatile.push(Volatile { data, ..write.clone() });
            }
            if own.end > range.end {
                let data = Bytes::from(&write.data[(range.end - own.start) as usize..]);
                self.volatile.push(Volatile { data, position: range.end, ..write });
            }
        }
    }
}

/// Copies what `data` at `position` has to say about `into` at `into_position`.
fn overlay(into_position: u64, into: &mut [u8], position: u64, data: &[u8]) {
    let start = position.max(into_position);
    let end = (position + data.len() as u64).min(into_position + into.len() as u64);
    if start < end {
        let len = (end - start) as usize;
        let from = (start - position) as usize;
        let to = (start - into_position) as usize;
        into[to..to + len].copy_from_slice(&data[from..from + len]);
    }
}

/// An operation between `submit` and `poll`.
struct Pending {
    token: Token,
    operation: Operation,
    kicked: bool,
    /// Polls to let pass.
    lag: u64,
    /// For a flush: writes up to here had completed when it was submitted.
    mark: u64,
}

/// An effect that outlived its process: it will happen, in part or whole, or not.
enum Adrift {
    Write { file: FileId, position: u64, data: Bytes },
    Create { written_bytes: u64 },
    Extend { file: FileId, to_bytes: u64 },
    Remove { file: FileId },
}

/// What a crash does to the writes it finds.
#[derive(Clone, Copy)]
enum Temper {
    LosesAll,
    LandsAll,
    Mixed,
}

struct State {
    rng: Rng,
    options: SimOptions,
    files: BTreeMap<FileId, SimFile>,
    next_file: u32,
    /// Released files; which of them is taken next is drawn.
    pool: Vec<FileId>,
    pending: Vec<Pending>,
    adrift: Vec<Adrift>,
    writes: u64,
    operations: u64,
    cut_at: Option<u64>,
    cut: bool,
    stalled: bool,
    forced: Vec<(Kind, Fault)>,
    counters: SimCounters,
}

impl State {
    fn file(&mut self, file: FileId) -> &mut SimFile {
        self.files.get_mut(&file).unwrap_or_else(|| panic!("{file} doesn't exist"))
    }

    /// Counts an operation; true if the power is cut by now.
    fn begin(&mut self) -> bool {
        if !self.cut && !self.adrift.is_empty() {
            self.drift(4);
        }
        self.operations += 1;
        self.cut |= self.cut_at.is_some_and(|at| self.operations >= at);
        self.cut
    }

    /// Counts a blocking call; on a cut within it, `effect` may still happen.
    fn begin_call(&mut self, effect: Option<Adrift>) -> io::Result<()> {
        let was_cut = self.cut;
        if !self.begin() {
            return Ok(());
        }
        if !was_cut {
            self.adrift.extend(effect);
        }
        Err(io::Error::other(PowerCut))
    }

    fn call_fault(&mut self, kind: Kind) -> io::Result<()> {
        let drawn = if self.options.blocking_errors { self.drawn_fault(kind) } else { None };
        match self.forced_fault(kind).or(drawn) {
            // A blocking call retries short transfers, and then sees the reason.
            Some(Fault::Short { .. }) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(fault) => Err(to_io(fault)),
            None => Ok(()),
        }
    }

    fn fault(&mut self, kind: Kind) -> Option<Fault> {
        let drawn = self.drawn_fault(kind);
        self.forced_fault(kind).or(drawn)
    }

    fn forced_fault(&mut self, kind: Kind) -> Option<Fault> {
        let index = self.forced.iter().position(|&(wanted, _)| wanted == kind)?;
        self.counters.faults += 1;
        Some(self.forced.remove(index).1)
    }

    fn drawn_fault(&mut self, kind: Kind) -> Option<Fault> {
        let (chance, fault) = match kind {
            Kind::Write => (self.options.write_error, Fault::Os(libc::EIO)),
            Kind::Read => (self.options.read_error, Fault::Os(libc::EIO)),
            Kind::Flush => (self.options.flush_error, Fault::Os(libc::EIO)),
            Kind::Acquire | Kind::Extend => (self.options.disk_full, Fault::DiskFull),
        };
        let hit = self.rng.per_million(chance);
        self.counters.faults += u64::from(hit);
        hit.then_some(fault)
    }

    fn submit(&mut self, token: Token, operation: Operation) {
        assert!(self.pending.iter().all(|other| other.token != token), "{token:?} is in flight already");
        match &operation {
            Operation::Write { file, position, data, .. } => {
                assert_aligned(*position, data.len());
                let end = position + data.len() as u64;
                assert!(end <= self.file(*file).written_bytes(), "{file}: write beyond the written end");
                assert!(!self.pool.contains(file), "{file}: write to a file of the pool");
                for other in &self.pending {
                    if let Operation::Write { file: other, position: start, data: bytes, .. } = &other.operation {
                        let apart = other != file || start + bytes.len() as u64 <= *position || *start >= end;
                        assert!(apart, "{file}: two writes in flight at {position}");
                    }
                }
            }
            Operation::Read { file, position, into } => {
                assert_aligned(*position, into.len());
                assert!(self.files.contains_key(file), "{file}: read of a missing file");
                assert!(!self.pool.contains(file), "{file}: read of a file of the pool");
            }
            Operation::Flush { file } => {
                assert!(self.files.contains_key(file), "{file}: flush of a missing file");
            }
            Operation::Acquire { at_least_bytes } => assert_aligned(0, *at_least_bytes as usize),
            Operation::Extend { file, to_bytes } => {
                assert_aligned(0, *to_bytes as usize);
                assert!(!self.pool.contains(file), "{file}: extends a file of the pool");
            }
            Operation::Release { file } => {
                assert!(self.files.contains_key(file), "{file}: release of a missing file");
                assert!(!self.pool.contains(file), "{file}: released twice");
                let user = self.pending.iter().find(|other| concerns(&other.operation, *file));
                assert!(user.is_none(), "{file}: released with {:?} in flight", user.map(|user| &user.operation));
            }
        }
        self.begin();
        let mark = self.writes;
        let lag = if self.rng.per_million(self.options.laggard) { self.rng.below(200) } else { 0 };
        self.pending.push(Pending { token, operation, kicked: false, lag, mark });
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, chance: u32) {
        let mut finished = Vec::new();
        let mut index = 0;
        while index < self.pending.len() {
            let pending = &mut self.pending[index];
            let is_due = chance == MILLION || pending.lag == 0;
            pending.lag = pending.lag.saturating_sub(u64::from(pending.kicked));
            if self.cut || (pending.kicked && is_due && self.rng.per_million(chance)) {
                finished.push(self.pending.remove(index));
            } else if self.options.in_order {
                break;
            } else {
                index += 1;
            }
        }
        if !self.options.in_order {
            self.rng.shuffle(&mut finished);
        }
        for pending in finished {
            let completion = if self.cut { self.refuse(pending) } else { self.finish(pending) };
            completions.push(completion);
        }
    }

    /// The power is gone: the answer says so, and the effect may still happen.
    fn refuse(&mut self, pending: Pending) -> Completion {
        let token = pending.token;
        let outcome = match &pending.operation {
            Operation::Write { .. } => Outcome::Written(Err(POWER_CUT)),
            Operation::Read { .. } => Outcome::Read(Err(POWER_CUT)),
            Operation::Flush { .. } => Outcome::Flushed(Err(POWER_CUT)),
            Operation::Acquire { .. } => Outcome::Acquired(Err(POWER_CUT)),
            Operation::Extend { .. } => Outcome::Extended(Err(POWER_CUT)),
            Operation::Release { .. } => Outcome::Released,
        };
        self.abandon(pending);
        Completion { token, outcome }
    }

    fn finish(&mut self, pending: Pending) -> Completion {
        let outcome = match pending.operation {
            Operation::Write { file, position, data, durable } => Outcome::Written(self.finish_write(file, position, &data, durable)),
            Operation::Read { file, position, mut into } => match self.fault(Kind::Read) {
                Some(fault) => Outcome::Read(Err(fault)),
                None => Outcome::Read(self.finish_read(file, position, &mut into).map(|()| into)),
            },
            Operation::Flush { file } => {
                self.count_flush(file);
                let fault = self.fault(Kind::Flush);
                self.flush(file, pending.mark, fault.is_some());
                Outcome::Flushed(fault.map_or(Ok(()), Err))
            }
            Operation::Acquire { at_least_bytes } => Outcome::Acquired(match self.fault(Kind::Acquire) {
                Some(fault) => Err(fault),
                None => self.acquire(at_least_bytes),
            }),
            Operation::Extend { file, to_bytes } => Outcome::Extended(match self.fault(Kind::Extend) {
                Some(fault) => Err(fault),
                None => self.extend(file, to_bytes),
            }),
            Operation::Release { file } => {
                self.pool.push(file);
                Outcome::Released
            }
        };
        Completion { token: pending.token, outcome }
    }

    fn finish_write(&mut self, file: FileId, position: u64, data: &[u8], durable: bool) -> Result<(), Fault> {
        let short = self.rng.per_million(self.options.short_write);
        match self.fault(Kind::Write) {
            Some(Fault::Short { .. }) => {}
            Some(fault) => {
                self.write_badly(file, position, data, false);
                return Err(fault);
            }
            None if short => self.counters.faults += 1,
            None => {
                if durable {
                    self.counters.durable_bytes += data.len() as u64;
                    self.write_durably(file, position, data);
                } else {
                    self.counters.written_bytes += data.len() as u64;
                    self.write_volatile(file, position, data, false);
                }
                return Ok(());
            }
        }
        let got_bytes = self.write_badly(file, position, data, true);
        Err(Fault::Short { wanted_bytes: data.len() as u64, got_bytes })
    }

    /// A read that meets a write in flight sees a mixture of before and after.
    fn finish_read(&mut self, file: FileId, position: u64, into: &mut [u8]) -> Result<(), Fault> {
        let State { files, pending, rng, .. } = self;
        let content = files.get(&file).expect("nobody removes a file with reads in flight");
        let wanted_bytes = into.len() as u64;
        let got_bytes = content.written_bytes().saturating_sub(position).min(wanted_bytes);
        if got_bytes < wanted_bytes {
            return Err(Fault::Short { wanted_bytes, got_bytes });
        }
        content.read(position, into);
        for other in pending {
            if let Operation::Write { file: other, position: start, data, .. } = &other.operation
                && *other == file
            {
                for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                    if rng.one_in(2) {
                        overlay(position, into, start + (index * SECTOR_BYTES) as u64, sector);
                    }
                }
            }
        }
        self.counters.read_bytes += wanted_bytes;
        Ok(())
    }

    fn write_volatile(&mut self, file: FileId, position: u64, data: &[u8], doomed: bool) {
        if data.is_empty() {
            return;
        }
        self.writes += 1;
        let write = self.writes;
        self.file(file).volatile.push(Volatile { position, data: Bytes::from(data), write, doomed });
    }

    fn write_durably(&mut self, file: FileId, position: u64, data: &[u8]) {
        if self.rng.per_million(self.options.flush_lie) {
            self.counters.lies += 1;
            return self.write_volatile(file, position, data, false);
        }
        let content = self.file(file);
        content.supersede(position..position + data.len() as u64);
        content.land(position, data);
    }

    /// A write that is answered with an error: a part of it, a prefix if it is `short`, is in the cache.
    /// Returns the length of the prefix.
    fn write_badly(&mut self, file: FileId, position: u64, data: &[u8], short: bool) -> u64 {
        if short || self.rng.one_in(3) {
            let sectors = self.rng.index(data.len() / SECTOR_BYTES);
            self.write_volatile(file, position, &data[..sectors * SECTOR_BYTES], true);
            return (sectors * SECTOR_BYTES) as u64;
        }
        if self.rng.one_in(2) {
            self.write_volatile(file, position, data, true);
        }
        0
    }

    fn count_flush(&mut self, file: FileId) {
        let after_error = self.file(file).flush_failed;
        self.counters.flushes += 1;
        self.counters.flushes_after_error += u64::from(after_error);
    }

    fn flush(&mut self, file: FileId, mark: u64, fails: bool) {
        let lies = !fails && self.rng.per_million(self.options.flush_lie);
        self.counters.lies += u64::from(lies);
        if lies {
            return;
        }
        let content = self.file(file);
        content.flush_failed |= fails;
        for mut write in mem::take(&mut content.volatile) {
            write.doomed |= fails && write.write <= mark;
            if write.doomed || write.write > mark {
                content.volatile.push(write);
            } else {
                // Older writes that stay volatile must not cover these bytes after a crash.
                content.supersede(write.range());
                content.land(write.position, &write.data);
            }
        }
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(SimFile::written_bytes).sum()
    }

    fn create(&mut self, written_bytes: u64) -> Result<SegmentFile, Fault> {
        if self.used_bytes().saturating_add(written_bytes) > self.options.capacity_bytes {
            return Err(Fault::DiskFull);
        }
        let file = FileId(self.next_file);
        self.next_file += 1;
        self.files.insert(file, SimFile::zeros(written_bytes));
        self.counters.created_files += 1;
        self.counters.zeroed_bytes += written_bytes;
        Ok(SegmentFile { file, written_bytes })
    }

    fn extend(&mut self, file: FileId, to_bytes: u64) -> Result<SegmentFile, Fault> {
        let written_bytes = self.file(file).written_bytes();
        let more_bytes = to_bytes.saturating_sub(written_bytes);
        if self.used_bytes().saturating_add(more_bytes) > self.options.capacity_bytes {
            return Err(Fault::DiskFull);
        }
        self.counters.zeroed_bytes += more_bytes;
        let pages = &mut self.file(file).pages;
        pages.resize(pages.len().max(to_bytes as usize / BLOCK_BYTES), None);
        Ok(SegmentFile { file, written_bytes: written_bytes.max(to_bytes) })
    }

    fn acquire(&mut self, at_least_bytes: u64) -> Result<SegmentFile, Fault> {
        // Zero asks for a file of the reserve, whatever its length: on a full disk the last file is for that.
        let reserve = usize::from(at_least_bytes > 0);
        let at_least_bytes = at_least_bytes.max(RESERVE_FILE_BYTES);
        if self.pool.is_empty() || (self.pool.len() <= reserve && self.used_bytes() + at_least_bytes > self.options.capacity_bytes) {
            return self.create(at_least_bytes);
        }
        let start = self.rng.index(self.pool.len());
        self.pool.rotate_left(start);
        let long_enough = self.pool.iter().position(|file| self.files[file].written_bytes() >= at_least_bytes);
        let index = long_enough.unwrap_or(0);
        let file = self.extend(self.pool[index], at_least_bytes)?;
        self.pool.remove(index);
        self.counters.recycled_files += 1;
        Ok(file)
    }

    fn remove(&mut self, file: FileId) {
        let user = self.pending.iter().find(|other| concerns(&other.operation, file));
        assert!(user.is_none(), "{file}: removed with {:?} in flight", user.map(|user| &user.operation));
        assert!(self.files.remove(&file).is_some(), "{file}: removed, and doesn't exist");
        self.pool.retain(|&other| other != file);
    }

    fn abandon_pending(&mut self) {
        for pending in mem::take(&mut self.pending) {
            self.abandon(pending);
        }
    }

    fn abandon(&mut self, pending: Pending) {
        if !pending.kicked {
            return;
        }
        match pending.operation {
            Operation::Write { file, position, data, .. } => {
                self.adrift.push(Adrift::Write { file, position, data: Bytes::from(&data[..]) })
            }
            Operation::Acquire { at_least_bytes } if self.pool.is_empty() => {
                self.adrift.push(Adrift::Create { written_bytes: at_least_bytes.max(RESERVE_FILE_BYTES) })
            }
            Operation::Extend { file, to_bytes } => self.adrift.push(Adrift::Extend { file, to_bytes }),
            Operation::Acquire { .. } | Operation::Read { .. } | Operation::Flush { .. } | Operation::Release { .. } => {}
        }
    }

    fn restart(&mut self) {
        self.pool.clear();
        self.forced.clear();
        self.cut_at = None;
        self.cut = false;
        self.stalled = false;
        for file in self.files.values_mut() {
            file.flush_failed = false;
        }
    }

    /// Every write that isn't stable meets its fate.
    fn resolve_all(&mut self) {
        let temper = match self.rng.below(6) {
            0 => Temper::LosesAll,
            1 => Temper::LandsAll,
            _ => Temper::Mixed,
        };
        let State { files, rng, counters, .. } = self;
        for file in files.values_mut() {
            for write in mem::take(&mut file.volatile) {
                resolve(file, write.position, &write.data, temper, rng, counters);
            }
        }
        for effect in mem::take(&mut self.adrift) {
            match effect {
                Adrift::Write { file, position, data } => {
                    let State { files, rng, counters, .. } = self;
                    if let Some(file) = files.get_mut(&file) {
                        resolve(file, position, &data, temper, rng, counters);
                    }
                }
                other => self.happen(other),
            }
        }
    }

    /// What no flush would have saved shows its true state, and is ordinary from here on.
    fn resolve_doomed(&mut self) {
        let State { files, rng, counters, .. } = self;
        for file in files.values_mut() {
            for write in mem::take(&mut file.volatile) {
                if write.doomed {
                    resolve(file, write.position, &write.data, Temper::Mixed, rng, counters);
                } else {
                    file.volatile.push(write);
                }
            }
        }
    }

    /// Each effect of a dead process is decided with a chance of one in `n`.
    fn drift(&mut self, n: u64) {
        for effect in mem::take(&mut self.adrift) {
            if !self.rng.one_in(n) {
                self.adrift.push(effect);
                continue;
            }
            match effect {
                Adrift::Write { file, position, data } if self.files.contains_key(&file) => {
                    let blocks = data.len() / BLOCK_BYTES;
                    let landed = match self.rng.below(4) {
                        0 => 0,
                        1 => self.rng.index(blocks + 1),
                        _ => blocks,
                    };
                    self.write_volatile(file, position, &data[..landed * BLOCK_BYTES], false);
                }
                other => self.happen(other),
            }
        }
    }

    /// Made, lengthened and deleted files: half of the time.
    fn happen(&mut self, effect: Adrift) {
        if self.rng.one_in(2) {
            return;
        }
        match effect {
            // Without space it just didn't happen.
            Adrift::Create { written_bytes } => _ = self.create(written_bytes),
            Adrift::Extend { file, to_bytes } if self.files.contains_key(&file) => {
                let from = self.file(file).pages.len() as u64;
                let to = to_bytes / BLOCK_BYTES as u64;
                let blocks = from + self.rng.below(to.saturating_sub(from) + 1);
                _ = self.extend(file, blocks * BLOCK_BYTES as u64);
            }
            Adrift::Remove { file } => drop(self.files.remove(&file)),
            Adrift::Extend { .. } | Adrift::Write { .. } => {}
        }
    }
}

fn concerns(operation: &Operation, wanted: FileId) -> bool {
    match operation {
        Operation::Write { file, .. }
        | Operation::Read { file, .. }
        | Operation::Flush { file }
        | Operation::Extend { file, .. }
        | Operation::Release { file } => *file == wanted,
        Operation::Acquire { .. } => false,
    }
}

/// One write at the moment the power fails.
fn resolve(file: &mut SimFile, position: u64, data: &[u8], temper: Temper, rng: &mut Rng, counters: &mut SimCounters) {
    let sectors = data.len() / SECTOR_BYTES;
    let fate = match temper {
        Temper::LosesAll => 0,
        Temper::LandsAll => 1,
        Temper::Mixed => rng.below(4),
    };
    match fate {
        0 => counters.lost_writes += 1,
        1 => {
            file.land(position, data);
            counters.landed_writes += 1;
        }
        2 => {
            file.land(position, &data[..rng.index(sectors + 1) * SECTOR_BYTES]);
            counters.torn_writes += 1;
        }
        _ => {
            for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                if rng.one_in(2) {
                    file.land(position + (index * SECTOR_BYTES) as u64, sector);
                }
            }
            counters.torn_writes += 1;
        }
    }
}
