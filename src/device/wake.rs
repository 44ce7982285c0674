//! How other threads wake a core: a byte or a count on a descriptor the core's runtime reads.
//!
//! ```text
//! other thread:  fill an inbox ─▶ wake()          core:  read the descriptor ─▶ rearm() ─▶ drain every inbox
//! ```
//! In this order nothing is missed, and of many wakes between two reads only the first costs a system call.

use std::io;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::EventfdFlags;

/// Wakes one core thread; for mailboxes, the janitor, the admin thread and the disk's helpers.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// A wake is on its way that the core hasn't acknowledged by `rearm`.
    pending: AtomicBool,
    end: End,
}

#[derive(Debug)]
enum End {
    Eventfd(OwnedFd),
    Stream(UnixStream),
}

impl Waker {
    /// For a core with rings: an eventfd that the log's ring signals too. The core reads 8 bytes from the returned
    /// descriptor. It is blocking: on a non-blocking one the runtime's read would fail at once instead of waiting.
    pub fn eventfd() -> io::Result<(Waker, OwnedFd)> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let reader = fd.try_clone()?;
        Ok((Waker::new(End::Eventfd(fd)), reader))
    }

    /// For a core on epoll, which can't wait for an eventfd as a file: the core reads bytes from the returned socket.
    pub fn stream() -> io::Result<(Waker, UnixStream)> {
        let (writer, reader) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        reader.set_nonblocking(true)?;
        Ok((Waker::new(End::Stream(writer)), reader))
    }

    fn new(end: End) -> Waker {
        Waker { shared: Arc::new(Shared { pending: AtomicBool::new(false), end }) }
    }

    /// Makes the core's descriptor readable, unless an earlier wake still does. Call it *after* filling the inbox.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // A full socket or counter is readable already, and a core that has closed its end needs no waking.
        let _ = match &self.shared.end {
            End::Eventfd(fd) => rustix::io::write(fd, &1u64.to_ne_bytes()).map_err(io::Error::from),
            End::Stream(stream) => (&mut &*stream).write(&[1]),
        };
    }

    /// The core calls this after reading its descriptor and *before* it drains its inboxes.
    pub fn rearm(&self) {
        // A swap, not a store: it reads from the wakes it covers, so what was put into inboxes before them is visible.
        self.shared.pending.swap(false, Ordering::AcqRel);
    }

    /// To be registered with a ring; `None` for a socket.
    pub fn as_eventfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.shared.end {
            End::Eventfd(fd) => Some(fd.as_fd()),
            End::Stream(_) => None,
        }
    }
}

/// For blocking callers (tools, tests): waits until the core's descriptor is readable, empties it and rearms.
/// Returns whether it was readable in time.
pub fn wait(waker: &Waker, reader: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    let mut fds = [PollFd::new(&reader, PollFlags::IN)];
    let readable = match poll(&mut fds, Some(&timeout)) {
        Ok(count) => count > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(error) => return Err(error.into()),
    };
    if readable {
        // One read empties an eventfd; of a socket at most a few bytes are left, which cost a spurious wake.
        let mut bytes = [0; 64];
        match rustix::io::read(reader, &mut bytes[..]) {
            Err(error) if error != rustix::io::Errno::WOULDBLOCK => return Err(error.into()),
            _ => waker.rearm(),
        }
    }
    Ok(readable)
}
