//! The disk on a ring of its own, beside the runtime's.
//!
//! ```text
//! submit ─▶ table + queue ── kick ─▶ ring ─▶ kernel ─▶ completion queue + eventfd ── poll ─▶ completions
//! ```
//!
//! The in-flight table owns buffer and descriptor of every operation until its completion is reaped; the ring
//! is drained before the table goes. Completions signal the core's eventfd, the one other threads use too.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::in_flight::{Intake, Reaped, Table, Transfer};
use super::janitor::JanitorHandle;
use super::wake::Waker;
use super::{Completion, Disk, Operation, Token};

/// Operations in the ring at a time.
pub const RING_DEPTH: u32 = 256;

/// What the kernel accepted at the ring's creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFlags {
    /// Only one thread submits: saves locking (Linux 6.0).
    pub single_issuer: bool,
    /// Completions wait for the core's next system call instead of interrupting it (Linux 5.19).
    pub cooperative: bool,
}

impl fmt::Display for RingFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.single_issuer, self.cooperative) {
            (true, _) => "SINGLE_ISSUER | COOP_TASKRUN",
            (false, true) => "COOP_TASKRUN",
            (false, false) => "no flags",
        })
    }
}

/// A ring with the best flags this kernel knows, for the calling thread.
pub(super) fn build_ring(depth: u32) -> io::Result<(IoUring, RingFlags)> {
    let choices =
        [(true, true), (false, true), (false, false)].map(|(single_issuer, cooperative)| RingFlags { single_issuer, cooperative });
    let mut refused = None;
    for flags in choices {
        let mut builder = IoUring::builder();
        if flags.single_issuer {
            builder.setup_single_issuer();
        }
        if flags.cooperative {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        match builder.build(depth) {
            Ok(ring) => return Ok((ring, flags)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// A [`Disk`] on io_uring. Made, used and dropped by one core thread.
pub struct UringDisk {
    ring: IoUring,
    flags: RingFlags,
    intake: Intake,
    table: Table,
    /// Slots that aren't in the ring yet.
    queue: VecDeque<u32>,
    /// Entries pushed to the ring whose completion isn't reaped. At most `RING_DEPTH`, so no completion overflows.
    in_ring: u32,
    waker: Waker,
}

impl UringDisk {
    /// `waker`: from [`Waker::eventfd`]; its descriptor becomes readable at every completion. Call it on the core's thread.
    pub fn new(janitor: &JanitorHandle, waker: Waker) -> io::Result<UringDisk> {
        UringDisk::with_depth(janitor, waker, RING_DEPTH)
    }

    pub(super) fn with_depth(janitor: &JanitorHandle, waker: Waker, depth: u32) -> io::Result<UringDisk> {
        let eventfd = waker.as_eventfd().ok_or(io::ErrorKind::InvalidInput)?;
        let (ring, flags) = build_ring(depth)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let intake = Intake::new(janitor, waker.clone());
        Ok(UringDisk { ring, flags, intake, table: Table::default(), queue: VecDeque::new(), in_ring: 0, waker })
    }

    /// What the kernel accepted.
    pub fn flags(&self) -> RingFlags {
        self.flags
    }

    /// Moves queued entries into the ring, as many as it holds. Returns whether something waits for the kernel.
    fn fill_ring(&mut self) -> bool {
        let mut ring = self.ring.submission();
        while self.in_ring < ring.capacity() as u32 && !ring.is_full() {
            let Some(slot) = self.queue.pop_front() else { break };
            let entry = submission(&mut self.table, slot);
            // SAFETY: buffer and descriptor in `entry` belong to the table's slot, which is emptied only when the completion
            // with this slot's number has been reaped (`reap`), or never (`drop` waits for it, or leaks the table). Until
            // then nobody can reach the buffer: it was moved into the table, and a `Slice`'s other holders only read.
            let pushed = unsafe { ring.push(&entry) };
            pushed.expect("not full");
            self.in_ring += 1;
        }
        !ring.is_empty()
    }

    fn enter(&mut self) {
        match self.ring.submit() {
            Ok(_) => {}
            // The kernel is short of memory or was interrupted: entries stay in the ring. Make sure there is a next turn.
            Err(error) if is_transient(&error) => self.waker.wake(),
            // No way to learn what becomes of operations in flight: only a restart recovers.
            Err(error) => panic!("io_uring_enter: {error}"),
        }
    }

    /// Returns how many the kernel had finished.
    fn reap(&mut self, completions: &mut Vec<Completion>) -> u32 {
        let before = self.in_ring;
        for completion in self.ring.completion() {
            self.in_ring -= 1;
            let entry = self.table.remove(completion.user_data() as u32);
            let result = match completion.result() {
                count @ 0.. => Ok(count as usize),
                error => Err(-error),
            };
            match entry.reaped(result) {
                Reaped::Done(done) => completions.push(done),
                Reaped::Again(entry) => self.queue.push_front(self.table.insert(entry)),
            }
        }
        before - self.in_ring
    }
}

impl Disk for UringDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        if let Some(slot) = self.intake.submit(token, operation, &mut self.table) {
            self.queue.push_back(slot);
        }
    }

    fn kick(&mut self) {
        if self.fill_ring() {
            self.enter();
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let ring = self.ring.submission();
        // Finished operations may wait for a system call of this thread to be posted, and refused ones for another try.
        let wants_kernel = ring.taskrun() || ring.cq_overflow() || !ring.is_empty();
        drop(ring);
        if wants_kernel {
            self.enter();
        }
        if self.reap(completions) > 0 {
            self.kick();
        }
        self.intake.poll(completions);
    }

    fn in_flight(&self) -> usize {
        self.table.len() + self.intake.in_flight()
    }
}

impl Drop for UringDisk {
    /// Waits for what the kernel has; what it hasn't got yet is never begun.
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while self.in_ring > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(_) => {
                    // The kernel may still write into these buffers: they must stay mapped for ever.
                    std::mem::forget(std::mem::take(&mut self.table));
                    return;
                }
            }
            self.reap(&mut completions);
        }
    }
}

impl fmt::Debug for UringDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringDisk({}, {} in flight)", self.flags, self.in_flight())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// The kernel's form of the operation in `slot`.
fn submission(table: &mut Table, slot: u32) -> squeue::Entry {
    let entry = table.get_mut(slot);
    let fd = Fd(entry.open.as_fd().as_raw_fd());
    let submission = match &mut entry.transfer {
        Transfer::Write { position, data, durable } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(fd, data.as_ptr(), data.len() as u32).offset(*position).rw_flags(flags).build()
        }
        Transfer::Read { position, into, filled, .. } => {
            let (start, len) = into.raw_parts();
            // `filled < len`: a full read isn't asked again.
            let rest = start.wrapping_add(*filled);
            opcode::Read::new(fd, rest, (len - *filled) as u32).offset(*position + *filled as u64).build()
        }
        Transfer::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
    };
    submission.user_data(slot.into())
}
