//! Memory from the kernel in regions, and a thread that makes them ready.
//!
//! The first touch of a page has the kernel clear it, and the host of a virtual machine find one: 4.5 ms for 2 MiB on the machine
//! where that was measured (2026-11-21), in which a core thread did nothing else, sixteen times a second at 7,000 commits a second.
//! So the next regions are touched by another thread; who is faster than that touches its own.

use std::io;
use std::ptr::NonNull;
#[cfg(not(miri))]
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::BLOCK_BYTES;
#[cfg(not(miri))]
use super::probe::{HugePages, huge_pages};
use super::schedule;

/// Unit of mapping: one huge page.
pub const REGION_BYTES: usize = 2 << 20;

/// Regions that an arena may have ahead, 16 MiB.
const AHEAD_MAX: usize = 8;

/// The thread that touches regions, for every core of the process; each arena has [`AHEAD_MAX`] requests with it at most. Ends with the last handle and [`Supply`].
#[derive(Clone, Debug)]
pub struct Supplier {
    requests: Sender<SyncSender<Option<Mapping>>>,
}

impl Supplier {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, when it starts no thread.
    pub fn start() -> io::Result<Supplier> {
        let (requests, asked) = channel::<SyncSender<Option<Mapping>>>();
        thread::Builder::new().name("memory".into()).spawn(move || {
            // Core threads don't wait for it, and it mustn't keep them waiting: refused, it costs them some milliseconds at times.
            let _ = schedule::stand_back();
            for answer in asked {
                // Where the system has none, who asked finds out by itself, when it needs some.
                let memory = Mapping::new(REGION_BYTES).ok().map(|mut memory| {
                    memory.advise_huge_pages();
                    memory.touch();
                    memory
                });
                // It may have gone: then the memory goes too.
                let _ = answer.try_send(memory);
            }
        })?;
        Ok(Supplier { requests })
    }

    /// For one arena.
    pub fn supply(&self) -> Supply {
        let (answer, ready) = sync_channel(AHEAD_MAX);
        Supply { requests: self.requests.clone(), answer, ready, asked: 0, ahead: 1 }
    }
}

/// Regions for one arena, made ready before they are needed. Nothing here blocks.
#[derive(Debug)]
pub struct Supply {
    requests: Sender<SyncSender<Option<Mapping>>>,
    answer: SyncSender<Option<Mapping>>,
    ready: Receiver<Option<Mapping>>,
    /// Asked for and not taken yet.
    asked: usize,
    /// As many as that should be: more when they came too late.
    ahead: usize,
}

impl Supply {
    /// A region that was asked for, if one is ready. All of its pages are there.
    pub fn take(&mut self) -> Option<Mapping> {
        match self.ready.try_recv() {
            Ok(memory) => {
                self.asked -= 1;
                memory
            }
            Err(_) => {
                self.ahead = if self.asked > 0 { (self.ahead * 2).min(AHEAD_MAX) } else { self.ahead };
                None
            }
        }
    }

    /// Has regions made ready, as long as the arena has room for `room_bytes` more.
    pub fn ask(&mut self, room_bytes: usize) {
        while self.asked < self.ahead.min(room_bytes / REGION_BYTES) && self.requests.send(self.answer.clone()).is_ok() {
            self.asked += 1;
        }
    }
}

/// Memory from the kernel, at a multiple of [`REGION_BYTES`]; goes back when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Its first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Has the kernel find every page now.
    fn touch(&mut self) {
        for at in (0..self.bytes).step_by(BLOCK_BYTES) {
            // SAFETY: `at < bytes`; nobody else has the mapping.
            unsafe { self.start.as_ptr().add(at).write_volatile(0) };
        }
    }
}

// SAFETY: it owns its memory, which belongs to the process and to no thread.
unsafe impl Send for Mapping {}

#[cfg(not(miri))]
impl Mapping {
    /// Fresh zeroed pages. `bytes`: a multiple of [`REGION_BYTES`].
    pub fn new(bytes: usize) -> io::Result<Mapping> {
        let exact = Mapping { start: map_anonymous(bytes)?, bytes };
        if exact.start.addr().get().is_multiple_of(REGION_BYTES) {
            return Ok(exact);
        }
        drop(exact);
        // Older kernels align by pages only: take one region more and give the ends back.
        let wide = map_anonymous(bytes + REGION_BYTES)?;
        let head = wide.addr().get().next_multiple_of(REGION_BYTES) - wide.addr().get();
        // SAFETY: `head < REGION_BYTES`, and `head + bytes <= bytes + REGION_BYTES`: both addresses are in the mapping.
        let (start, end) = unsafe { (wide.add(head), wide.add(head + bytes)) };
        for (from, len) in [(wide, head), (end, REGION_BYTES - head)] {
            if len > 0 {
                // SAFETY: a page-aligned part of the mapping just made that nobody knows of.
                unsafe { rustix::mm::munmap(from.as_ptr().cast(), len) }?;
            }
        }
        Ok(Mapping { start, bytes })
    }

    /// Whether it may have huge pages now.
    pub fn advise_huge_pages(&self) -> bool {
        static OFF: LazyLock<bool> = LazyLock::new(|| matches!(huge_pages(), HugePages::Never | HugePages::Missing));
        // SAFETY: the range is this mapping; the advice changes the size of pages, not what is in them.
        let advised = unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.bytes, rustix::mm::Advice::LinuxHugepage) };
        advised.is_ok() && !*OFF
    }
}

#[cfg(not(miri))]
fn map_anonymous(bytes: usize) -> io::Result<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: a new private mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with these bounds, and unmapped only here. A mapping is dropped when all pieces of it have
        // come back, and a piece comes back when its last buffer, slice, chunk or operation in flight is gone.
        let result = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(result.is_ok());
    }
}

/// The interpreter can't split mappings; ordinary memory of the same alignment serves it.
#[cfg(miri)]
impl Mapping {
    fn layout(bytes: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(bytes, REGION_BYTES).expect("a multiple of the region size")
    }

    pub fn new(bytes: usize) -> io::Result<Mapping> {
        // SAFETY: `bytes` isn't zero.
        let start = unsafe { std::alloc::alloc_zeroed(Mapping::layout(bytes)) };
        NonNull::new(start).map(|start| Mapping { start, bytes }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    pub fn advise_huge_pages(&self) -> bool {
        true
    }
}

#[cfg(miri)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), Mapping::layout(self.bytes)) };
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Takes so many regions as they become ready.
    fn take(supply: &mut Supply, count: usize) -> Vec<Mapping> {
        let patience = Instant::now() + Duration::from_secs(20);
        let mut taken = Vec::new();
        while taken.len() < count {
            assert!(Instant::now() < patience, "{} regions of {count}", taken.len());
            taken.extend(supply.take());
            thread::yield_now();
        }
        taken
    }

    #[test]
    fn regions_are_made_ahead_within_the_room_there_is() {
        let supplier = Supplier::start().unwrap();
        let (mut supply, mut other) = (supplier.supply(), supplier.supply());
        assert!(supply.take().is_none(), "nobody asked");
        assert_eq!(supply.ahead, 1);
        supply.ask(REGION_BYTES - 1);
        assert_eq!(supply.asked, 0, "there is no room for one");
        supply.ask(8 * REGION_BYTES);
        supply.ask(8 * REGION_BYTES);
        other.ask(8 * REGION_BYTES);
        assert_eq!((supply.asked, other.asked), (1, 1));
        let taken: Vec<Mapping> = [take(&mut supply, 1), take(&mut other, 1)].into_iter().flatten().collect();
        assert!(taken.iter().all(|memory| memory.start().addr().get().is_multiple_of(REGION_BYTES) && memory.bytes() == REGION_BYTES));
        assert_eq!(supply.asked, 0);
    }

    #[test]
    fn who_waits_in_vain_asks_for_more_next_time() {
        // Nobody answers.
        let (requests, asked) = channel();
        let mut supply = Supplier { requests }.supply();
        for ahead in [1, 2, 4, 8, 8] {
            supply.ask(3 * REGION_BYTES);
            assert_eq!((supply.ahead, supply.asked), (ahead, ahead.min(3)));
            assert!(supply.take().is_none());
        }
        assert_eq!(asked.try_iter().count(), 3);
    }

    #[test]
    fn touched_pages_are_there() {
        let mut memory = Mapping::new(REGION_BYTES).unwrap();
        memory.touch();
        let mut pages = vec![0u8; REGION_BYTES / BLOCK_BYTES];
        // SAFETY: the range is the mapping; the vector has a byte for each of its pages.
        let result = unsafe { libc::mincore(memory.start().as_ptr().cast(), REGION_BYTES, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        assert!(pages.iter().all(|page| page & 1 == 1), "a page isn't there");
    }
}
