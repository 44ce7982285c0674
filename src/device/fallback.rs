//! The disk for kernels and containers without io_uring: a writer and a reader thread per core.
//!
//! ```text
//! submit ─▶ table + lane queue ── kick ─▶ channel ─▶ writer | reader thread ─▶ results + wake ── poll ─▶ completions
//! ```
//!
//! The in-flight table on the core's thread owns buffers and descriptors, as it does for the ring; the threads
//! get addresses. Neighbouring durable writes that wait together become one `pwritev2`, hence one flush.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::io::Errno;

use super::in_flight::{Intake, Reaped, Table, Transfer};
use super::janitor::{JanitorHandle, unpin_thread};
use super::volume::{Directory, OpenFile};
use super::wake::Waker;
use super::{Completion, Disk, Operation, Token};

/// Operations given to one thread at a time; more wait on the core's side.
const LANE_DEPTH: usize = 64;

/// Writes joined into one call at most.
const JOINED_WRITES: usize = 16;

/// A [`Disk`] on two threads. Used by one core thread.
pub struct ThreadDisk {
    intake: Intake,
    table: Table,
    writer: Lane,
    reader: Lane,
    results: Arc<Results>,
}

/// One thread and the operations on their way to it.
struct Lane {
    queue: VecDeque<Job>,
    /// `None` only while dropping.
    sender: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// One operation as its thread sees it.
struct Job {
    slot: u32,
    open: Arc<OpenFile>,
    work: Work,
}

enum Work {
    Write { start: *const u8, len: usize, position: u64, durable: bool },
    Read { start: *mut u8, len: usize, position: u64 },
    Flush,
}

// SAFETY: the pointers are the only part of a job that isn't `Send` by itself. They lead into a `Slice` or `Buffer` that
// the core's table holds from before the job is sent until its result has been taken from `Results`, which the thread
// fills after its last access; dropping the disk joins the threads before it drops the table. Meanwhile the core doesn't
// touch a `Buffer` (it is out of reach in the table) and nobody writes a `Slice`. Reference counts stay on the core.
unsafe impl Send for Job {}

/// What the threads have finished. Bounded by what the lanes hold.
#[derive(Debug)]
struct Results {
    finished: Mutex<Vec<(u32, Result<usize, i32>)>>,
    /// Length of `finished`, so that polling in vain takes no lock.
    count: AtomicUsize,
    /// The disk is being dropped: begin nothing more.
    stop: AtomicBool,
    waker: Waker,
}

impl ThreadDisk {
    /// `waker`: from [`Waker::stream`] (or `eventfd`, where the core can wait for one). Call it on the core's thread.
    pub fn new(janitor: &JanitorHandle, waker: Waker) -> io::Result<ThreadDisk> {
        let intake = Intake::new(janitor, waker.clone());
        let results = Results { finished: Mutex::default(), count: AtomicUsize::new(0), stop: AtomicBool::new(false), waker };
        let results = Arc::new(results);
        let writer = Lane::start("disk writer", intake.directory(), &results, run_writer)?;
        let reader = Lane::start("disk reader", intake.directory(), &results, run_reader)?;
        Ok(ThreadDisk { intake, table: Table::default(), writer, reader, results })
    }

    fn enqueue(&mut self, slot: u32) {
        let entry = self.table.get_mut(slot);
        let (lane, work) = match &mut entry.transfer {
            Transfer::Write { position, data, durable } => {
                (&mut self.writer, Work::Write { start: data.as_ptr(), len: data.len(), position: *position, durable: *durable })
            }
            Transfer::Read { position, into, filled, .. } => {
                let (start, len) = into.raw_parts();
                let work = Work::Read { start: start.wrapping_add(*filled), len: len - *filled, position: *position + *filled as u64 };
                (&mut self.reader, work)
            }
            Transfer::Flush => (&mut self.writer, Work::Flush),
        };
        lane.queue.push_back(Job { slot, open: entry.open.clone(), work });
    }
}

impl Disk for ThreadDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        if let Some(slot) = self.intake.submit(token, operation, &mut self.table) {
            self.enqueue(slot);
        }
    }

    fn kick(&mut self) {
        self.writer.send();
        self.reader.send();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        if self.results.count.load(Ordering::Acquire) > 0 {
            let finished = self.results.take();
            for (slot, result) in finished {
                match self.table.remove(slot).reaped(result) {
                    Reaped::Done(done) => completions.push(done),
                    Reaped::Again(entry) => {
                        let slot = self.table.insert(entry);
                        self.enqueue(slot);
                    }
                }
            }
            self.kick();
        }
        self.intake.poll(completions);
    }

    fn in_flight(&self) -> usize {
        self.table.len() + self.intake.in_flight()
    }
}

impl Drop for ThreadDisk {
    /// Waits for the calls the threads are in; what they haven't begun is never begun.
    fn drop(&mut self) {
        self.results.stop.store(true, Ordering::Release);
        for lane in [&mut self.writer, &mut self.reader] {
            lane.sender = None;
        }
        for lane in [&mut self.writer, &mut self.reader] {
            let joined = lane.thread.take().map(JoinHandle::join);
            assert!(!matches!(joined, Some(Err(_))), "a disk thread panicked");
        }
    }
}

impl fmt::Debug for ThreadDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadDisk({} in flight)", self.in_flight())
    }
}

impl Lane {
    fn start(
        name: &str,
        directory: &Arc<Directory>,
        results: &Arc<Results>,
        run: fn(&Directory, &Receiver<Job>, &Results),
    ) -> io::Result<Lane> {
        let (sender, receiver) = mpsc::sync_channel(LANE_DEPTH);
        let (directory, results) = (directory.clone(), results.clone());
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            unpin_thread();
            run(&directory, &receiver, &results);
        })?;
        Ok(Lane { queue: VecDeque::new(), sender: Some(sender), thread: Some(thread) })
    }

    /// Never blocks: what the channel doesn't take goes with the next `poll` that finds results.
    fn send(&mut self) {
        let Some(sender) = &self.sender else { return };
        while let Some(job) = self.queue.pop_front() {
            match sender.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => return self.queue.push_front(job),
                Err(TrySendError::Disconnected(_)) => panic!("a disk thread is gone"),
            }
        }
    }
}

impl Results {
    fn put(&self, results: impl IntoIterator<Item = (u32, Result<usize, i32>)>) {
        let mut finished = self.finished.lock().expect("no panic while held");
        finished.extend(results);
        self.count.store(finished.len(), Ordering::Release);
        drop(finished);
        self.waker.wake();
    }

    fn take(&self) -> Vec<(u32, Result<usize, i32>)> {
        let mut finished = self.finished.lock().expect("no panic while held");
        self.count.store(0, Ordering::Release);
        std::mem::take(&mut finished)
    }
}

fn run_reader(_: &Directory, jobs: &Receiver<Job>, results: &Results) {
    for job in jobs {
        if results.stop.load(Ordering::Acquire) {
            return;
        }
        let Work::Read { start, len, position } = job.work else { unreachable!("the reader's lane takes reads") };
        // SAFETY: see `Job`: `len` bytes of a buffer that is the table's, and this thread's alone until the result is put.
        let into = unsafe { slice::from_raw_parts_mut(start, len) };
        let result = rustix::io::pread(&job.open, into, position).map_err(Errno::raw_os_error);
        results.put([(job.slot, result)]);
    }
}

fn run_writer(directory: &Directory, jobs: &Receiver<Job>, results: &Results) {
    let mut next = None;
    loop {
        let Some(job) = next.take().or_else(|| jobs.recv().ok()) else { return };
        if results.stop.load(Ordering::Acquire) {
            return;
        }
        match job.work {
            Work::Flush => results.put([(job.slot, rustix::fs::fdatasync(&job.open).map(|()| 0).map_err(Errno::raw_os_error))]),
            Work::Write { durable: false, position, .. } => {
                let result = rustix::io::pwrite(&job.open, bytes(&job), position).map_err(Errno::raw_os_error);
                results.put([(job.slot, result)]);
            }
            Work::Write { durable: true, position, .. } => {
                let mut joined = vec![job];
                while joined.len() < JOINED_WRITES {
                    next = jobs.try_recv().ok();
                    match next.take_if(|next| follows(&joined[joined.len() - 1], next)) {
                        Some(job) => joined.push(job),
                        None => break,
                    }
                }
                let pieces: Vec<IoSlice<'_>> = joined.iter().map(|job| IoSlice::new(bytes(job))).collect();
                let result = directory.write_durable(&joined[0].open, &pieces, position).map_err(Errno::raw_os_error);
                results.put(shares(&joined, result));
            }
            Work::Read { .. } => unreachable!("the writer's lane takes no reads"),
        }
    }
}

/// The bytes of a write.
fn bytes(job: &Job) -> &[u8] {
    let Work::Write { start, len, .. } = job.work else { return &[] };
    // SAFETY: see `Job`: a slice the core's table keeps alive until this job's result is put, which needs the job, so
    // after the borrow ends. Sealed bytes are never written.
    unsafe { slice::from_raw_parts(start, len) }
}

/// Whether `next` continues `job` where it ends.
fn follows(job: &Job, next: &Job) -> bool {
    match (&job.work, &next.work) {
        (Work::Write { position, len, .. }, Work::Write { position: next_position, durable: true, .. }) => {
            Arc::ptr_eq(&job.open, &next.open) && position + *len as u64 == *next_position
        }
        _ => false,
    }
}

/// What of a joined write's result belongs to each of its parts, in order.
fn shares(joined: &[Job], result: Result<usize, i32>) -> impl Iterator<Item = (u32, Result<usize, i32>)> {
    let mut left = result;
    joined.iter().map(move |job| {
        let share = left.map(|left| left.min(bytes(job).len()));
        left = left.map(|left| left - share.unwrap_or(0));
        (job.slot, share)
    })
}
