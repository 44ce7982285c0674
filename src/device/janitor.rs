//! The one thread that makes, lengthens and keeps segment files, so that no core waits for a file system.
//!
//! ```text
//! core: JanitorPort ── request ─▶ channel ─▶ janitor thread ── reply ─▶ the port's inbox + wake
//! ```
//!
//! It owns the *pool* of free files. Requests are served in order; in between it makes files ahead of need.
//! When the disk is full the last `reserve_files` of the pool are kept for requests that say so by asking for
//! no particular size (`at_least_bytes` 0): acknowledgements, deletes and checkpoints must get through, so that
//! space can be freed at all. Nothing remembers that the disk was full: the next request simply tries again.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::volume::Directory;
use super::wake::Waker;
use super::{Completion, Fault, FileId, Outcome, SegmentFile, Token};

/// Requests of one port that are with the janitor at a time; more wait in the port.
const PORT_DEPTH: usize = 64;

/// After a full disk, making files ahead of need pauses for so long.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What the janitor keeps.
#[derive(Clone, Copy, Debug)]
pub struct JanitorOptions {
    /// Length of a file made ahead of need, and the least of any.
    pub file_bytes: u64,
    /// Free files kept for a full disk.
    pub reserve_files: usize,
    /// Free files kept ready on top of the reserve.
    pub spare_files: usize,
    /// Free files beyond this are deleted, shortest first.
    pub free_files_max: usize,
}

impl Default for JanitorOptions {
    fn default() -> JanitorOptions {
        JanitorOptions { file_bytes: 8 << 20, reserve_files: 1, spare_files: 1, free_files_max: 16 }
    }
}

/// What the janitor has done and holds; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JanitorStats {
    /// Zeros written by anybody since the start.
    pub zero_filled_bytes: u64,
    /// Files in the pool, reserve included.
    pub free_files: u64,
    /// Their length.
    pub free_file_bytes: u64,
    /// Files made.
    pub created_files: u64,
    /// Files deleted.
    pub removed_files: u64,
    /// Requests refused with `DiskFull`.
    pub disk_full: u64,
}

#[derive(Debug, Default)]
struct Counters {
    free_files: AtomicU64,
    free_file_bytes: AtomicU64,
    created_files: AtomicU64,
    removed_files: AtomicU64,
    disk_full: AtomicU64,
}

/// The thread; stops, its current request done, when dropped.
#[derive(Debug)]
pub struct Janitor {
    handle: JanitorHandle,
    thread: Option<JoinHandle<()>>,
}

/// Access to the janitor for any thread.
#[derive(Clone, Debug)]
pub struct JanitorHandle {
    sender: Sender<Message>,
    counters: Arc<Counters>,
    directory: Arc<Directory>,
}

#[derive(Debug)]
enum Message {
    Request { token: Token, request: Request, inbox: Arc<Inbox> },
    Give(Vec<SegmentFile>),
    Stop,
}

/// The file operations of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Acquire { at_least_bytes: u64 },
    Extend { file: FileId, to_bytes: u64 },
    Release { file: FileId },
}

#[derive(Debug)]
enum Reply {
    Acquired(Result<SegmentFile, Fault>),
    Extended(Result<SegmentFile, Fault>),
    Released,
}

/// Answers on their way to one core. At most `PORT_DEPTH`.
#[derive(Debug)]
struct Inbox {
    replies: Mutex<VecDeque<(Token, Reply)>>,
    /// Length of `replies`, so that an empty inbox is polled without the lock.
    count: AtomicUsize,
    waker: Waker,
}

impl Janitor {
    /// Starts the thread. It runs wherever the process may, also when started from a pinned thread.
    pub fn start(directory: Arc<Directory>, options: JanitorOptions) -> io::Result<Janitor> {
        let (sender, receiver) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let handle = JanitorHandle { sender, counters: counters.clone(), directory: directory.clone() };
        let mut worker = Worker { directory, options, counters, free: Vec::new(), open: false, pause_until: None };
        let thread = std::thread::Builder::new().name("janitor".into()).spawn(move || {
            unpin_thread();
            worker.run(&receiver);
        })?;
        Ok(Janitor { handle, thread: Some(thread) })
    }

    /// Access for other threads.
    pub fn handle(&self) -> &JanitorHandle {
        &self.handle
    }

    /// Adds files to the pool: after recovery, those no shard uses. The first call, even with none, also allows making
    /// files ahead of need.
    pub fn give(&self, files: Vec<SegmentFile>) {
        // The thread lives as long as `self`.
        let _ = self.handle.sender.send(Message::Give(files));
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        let _ = self.handle.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl JanitorHandle {
    /// A core's connection; answers wake it through `waker`.
    pub fn connect(&self, waker: Waker) -> JanitorPort {
        let inbox = Arc::new(Inbox { replies: Mutex::default(), count: AtomicUsize::new(0), waker });
        JanitorPort { sender: self.sender.clone(), inbox, waiting: VecDeque::new(), asked: 0 }
    }

    /// Readable at any time.
    pub fn stats(&self) -> JanitorStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        JanitorStats {
            zero_filled_bytes: self.directory.zero_filled_bytes(),
            free_files: read(&self.counters.free_files),
            free_file_bytes: read(&self.counters.free_file_bytes),
            created_files: read(&self.counters.created_files),
            removed_files: read(&self.counters.removed_files),
            disk_full: read(&self.counters.disk_full),
        }
    }

    /// The directory whose files it keeps.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }
}

/// A core's connection to the janitor.
#[derive(Debug)]
pub struct JanitorPort {
    sender: Sender<Message>,
    inbox: Arc<Inbox>,
    /// Not yet with the janitor, because `PORT_DEPTH` others are. Bounded by what the log has in flight.
    waiting: VecDeque<(Token, Request)>,
    /// With the janitor, or answered and not polled.
    asked: usize,
}

impl JanitorPort {
    pub(super) fn submit(&mut self, token: Token, request: Request) {
        self.waiting.push_back((token, request));
        self.ask();
    }

    fn ask(&mut self) {
        while self.asked < PORT_DEPTH {
            let Some((token, request)) = self.waiting.pop_front() else { return };
            self.asked += 1;
            if self.sender.send(Message::Request { token, request, inbox: self.inbox.clone() }).is_err() {
                // The janitor stops last of all; whoever still asks gets an answer.
                let fault = Fault::Os(libc::ESHUTDOWN);
                self.inbox.push(token, request.failed(fault));
            }
        }
    }

    pub(super) fn poll(&mut self, completions: &mut Vec<Completion>) {
        if self.inbox.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut replies = self.inbox.replies.lock().expect("no panic while held");
        self.asked -= replies.len();
        self.inbox.count.store(0, Ordering::Release);
        completions.extend(replies.drain(..).map(|(token, reply)| Completion { token, outcome: reply.outcome() }));
        drop(replies);
        self.ask();
    }

    pub(super) fn in_flight(&self) -> usize {
        self.asked + self.waiting.len()
    }
}

impl Inbox {
    fn push(&self, token: Token, reply: Reply) {
        let mut replies = self.replies.lock().expect("no panic while held");
        replies.push_back((token, reply));
        self.count.store(replies.len(), Ordering::Release);
        drop(replies);
        self.waker.wake();
    }
}

impl Request {
    fn failed(self, fault: Fault) -> Reply {
        match self {
            Request::Acquire { .. } => Reply::Acquired(Err(fault)),
            Request::Extend { .. } => Reply::Extended(Err(fault)),
            Request::Release { .. } => Reply::Released,
        }
    }
}

impl Reply {
    fn outcome(self) -> Outcome {
        match self {
            Reply::Acquired(result) => Outcome::Acquired(result),
            Reply::Extended(result) => Outcome::Extended(result),
            Reply::Released => Outcome::Released,
        }
    }
}

/// The state of the janitor's thread.
struct Worker {
    directory: Arc<Directory>,
    options: JanitorOptions,
    counters: Arc<Counters>,
    /// The pool, shortest first.
    free: Vec<SegmentFile>,
    /// Recovery is over: files may be made ahead of need.
    open: bool,
    /// The disk was full when a file was made ahead of need.
    pause_until: Option<Instant>,
}

impl Worker {
    fn run(&mut self, receiver: &Receiver<Message>) {
        loop {
            let message = match self.next(receiver) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    self.make_spare();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match message {
                Message::Request { token, request, inbox } => {
                    let reply = self.serve(request);
                    match reply {
                        // The core is gone; its file isn't.
                        Reply::Acquired(Ok(file)) if Arc::strong_count(&inbox) == 1 => self.keep(file),
                        reply => inbox.push(token, reply),
                    }
                }
                Message::Give(files) => {
                    self.open = true;
                    files.into_iter().for_each(|file| self.keep(file));
                }
                Message::Stop => return,
            }
        }
    }

    /// The next message; `Timeout` = nobody wants anything and a spare file is missing.
    fn next(&self, receiver: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        if !self.open || self.free.len() >= self.options.reserve_files + self.options.spare_files {
            return receiver.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        match self.pause_until.and_then(|until| until.checked_duration_since(Instant::now())) {
            Some(pause) => receiver.recv_timeout(pause),
            None => receiver.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
        }
    }

    fn serve(&mut self, request: Request) -> Reply {
        let result = match request {
            Request::Acquire { at_least_bytes } => self.acquire(at_least_bytes),
            Request::Extend { file, to_bytes } => self.directory.extend(file, to_bytes),
            Request::Release { file } => {
                // A file that can't be looked at isn't kept: the next start finds it.
                if let Ok(file) = self.directory.extend(file, 0) {
                    self.keep(file);
                }
                return Reply::Released;
            }
        };
        let result = result.map_err(Fault::from);
        if result == Err(Fault::DiskFull) {
            self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
        }
        match request {
            Request::Acquire { .. } => Reply::Acquired(result),
            _ => Reply::Extended(result),
        }
    }

    fn acquire(&mut self, at_least_bytes: u64) -> io::Result<SegmentFile> {
        let untouchable = if at_least_bytes == 0 { 0 } else { self.options.reserve_files };
        if self.free.len() > untouchable {
            let longest = self.free[self.free.len() - 1];
            let file = match longest.written_bytes >= at_least_bytes {
                true => longest,
                false => self.directory.extend(longest.file, at_least_bytes)?,
            };
            self.free.pop();
            self.count_free();
            return Ok(file);
        }
        self.create(at_least_bytes.max(self.options.file_bytes))
    }

    fn create(&mut self, bytes: u64) -> io::Result<SegmentFile> {
        let file = self.directory.create(bytes)?;
        self.counters.created_files.fetch_add(1, Ordering::Relaxed);
        Ok(file)
    }

    fn make_spare(&mut self) {
        match self.create(self.options.file_bytes) {
            Ok(file) => {
                self.pause_until = None;
                self.keep(file);
            }
            Err(_) => self.pause_until = Some(Instant::now() + FULL_PAUSE),
        }
    }

    fn keep(&mut self, file: SegmentFile) {
        let at = self.free.partition_point(|other| other.written_bytes <= file.written_bytes);
        self.free.insert(at, file);
        while self.free.len() > self.options.free_files_max {
            let shortest = self.free.remove(0);
            // What can't be deleted is found by the next start.
            if self.directory.remove(shortest.file).is_ok() {
                self.counters.removed_files.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count_free();
    }

    fn count_free(&self) {
        self.counters.free_files.store(self.free.len() as u64, Ordering::Relaxed);
        let bytes = self.free.iter().map(|file| file.written_bytes).sum();
        self.counters.free_file_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Lets the calling thread run on every CPU the process's first thread may use, instead of its parent's only one.
pub(super) fn unpin_thread() {
    let process = rustix::process::getpid();
    // A kernel that refuses leaves the thread where it is: slower, not wrong.
    if let Ok(cpus) = rustix::thread::sched_getaffinity(Some(process)) {
        let _ = rustix::thread::sched_setaffinity(None, &cpus);
    }
}
