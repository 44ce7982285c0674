//! The async runtime, and the only file that names it: tasks, timers, and waiting until a descriptor is ready.
//!
//! Sockets are read and written by plain non-blocking calls once the runtime says they are ready. That keeps the
//! seam this narrow, works the same on io_uring and epoll, lets all connections of a core share one read buffer,
//! lets a reply go from the log's chunk to the socket without an owned copy, and makes every wait safe to
//! abandon: a wait that is dropped owns neither a buffer nor an accepted socket.
//!
//! Two habits of the runtime shape the core's loop:
//! * A task that wakes itself while it runs is put at the *front* of the queue and starves the others. So
//!   nothing here wakes itself; it asks a neighbour task to (see `net::core`).
//! * With `DEFER_TASKRUN` such a task would even keep completions away for ever, so that flag isn't set.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

/// How the runtime waits for sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// An io_uring of the runtime's own, beside the log's.
    Uring,
    /// epoll.
    Epoll,
}

/// Entries of the runtime's ring. Waits that don't fit go in by an earlier system call.
const RING_ENTRIES: u32 = 1024;

/// Runs `main` and the tasks it spawns on the calling thread, until `main` is done.
///
/// Tasks that haven't ended by then never do: what they hold goes with the process. The runtime can't drop a
/// descriptor once it isn't running, so it is left alone instead of being dropped.
pub fn run<F: Future>(driver: Driver, main: F) -> io::Result<F::Output> {
    match driver {
        Driver::Uring => {
            let mut runtime = ManuallyDrop::new(uring_builder(true).enable_timer().build().or_else(|error| {
                // Linux before 6.0 doesn't know the flags.
                if error.raw_os_error() == Some(libc::EINVAL) { uring_builder(false).enable_timer().build() } else { Err(error) }
            })?);
            Ok(runtime.block_on(main))
        }
        Driver::Epoll => {
            let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().with_entries(RING_ENTRIES);
            Ok(ManuallyDrop::new(builder.enable_timer().build()?).block_on(main))
        }
    }
}

fn uring_builder(with_flags: bool) -> monoio::RuntimeBuilder<monoio::IoUringDriver> {
    let mut ring = io_uring06::IoUring::builder();
    if with_flags {
        ring.setup_single_issuer().setup_coop_taskrun();
    }
    monoio::RuntimeBuilder::new().with_entries(RING_ENTRIES).uring_builder(ring)
}

/// Starts a task on this core. It runs until it ends; there is no handle.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(task));
}

/// Waits `duration`, rounded up to milliseconds, or until `signal` is raised if that comes first.
pub async fn sleep_or(duration: Duration, signal: &Signal) {
    let mut sleep = pin!(monoio::time::sleep(duration));
    let mut raised = pin!(signal.wait());
    poll_fn(|context| {
        if raised.as_mut().poll(context).is_ready() || sleep.as_mut().poll(context).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for a descriptor. Holds a duplicate: the descriptor itself stays with the caller, who reads and writes it.
pub struct Readiness {
    // Any descriptor that can be polled will do; the runtime has no neutral type.
    inner: monoio::net::TcpStream,
}

impl Readiness {
    /// For a socket, listener, pipe or eventfd. Call it on the core's thread, inside [`run`].
    pub fn new(duplicate: OwnedFd) -> io::Result<Readiness> {
        Ok(Readiness { inner: monoio::net::TcpStream::from_std(TcpStream::from(duplicate))? })
    }

    /// Until there is something to read: bytes, a connection, the end, an error.
    pub async fn readable(&self) -> io::Result<()> {
        // Not relaxed: on epoll the readiness known from before may be used up by calls the runtime didn't see.
        self.inner.readable(false).await
    }

    /// As `readable`, or until `signal` is raised.
    pub async fn readable_or(&self, signal: &Signal) -> io::Result<()> {
        let mut readable = pin!(self.readable());
        let mut raised = pin!(signal.wait());
        poll_fn(|context| {
            if raised.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            readable.as_mut().poll(context)
        })
        .await
    }

    /// Until some bytes can be written, or an error.
    pub async fn writable(&self) -> io::Result<()> {
        self.inner.writable(false).await
    }
}

/// Wakes one waiting task of the same core. Raised several times before the task waits, it wakes once.
#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the waiting task, or lets the next wait return at once.
    pub fn raise(&self) {
        if !self.raised.replace(true)
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
    }

    /// Until the signal is raised; lowers it.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if waiting.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
                *waiting = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
