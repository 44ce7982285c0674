//! The only home of `unsafe`: aligned memory, the log's ring, and the files behind them.
//!
//! One contract, three implementations:
//! [`uring`] (a raw io_uring beside the runtime's own), [`fallback`] (a writer and a reader thread per
//! core, for containers that forbid io_uring) and [`sim`] (a seeded disk that tears, loses and refuses).
//!
//! * [`Disk`] is what a running shard uses: operations go in with a [`Token`], completions come out.
//! * [`Volume`] is what start-up, the janitor and `ringmain log` use: the same files, blocking.
//! * [`Arena`] hands out the memory for both, aligned to [`BLOCK_BYTES`], in huge pages where it can.
//!
//! A buffer given to the kernel has been moved into the operation and can't be touched until its
//! completion gives it back.

pub mod arena;
pub mod fallback;
mod in_flight;
pub mod janitor;
pub mod probe;
pub mod region;
pub mod schedule;
pub mod sim;
pub mod uring;
pub mod volume;
pub mod wake;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

pub use arena::{Arena, ArenaFull, Buffer, Chunk, Slice};

/// Unit of direct I/O: positions, lengths and addresses are multiples of it.
pub const BLOCK_BYTES: usize = 4096;

/// A segment file of the data directory: `segments/<id, 8 hex digits>.seg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.seg", self.0)
    }
}

/// Chosen by the submitter, comes back with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What a shard asks of its disk. Positions and lengths are multiples of [`BLOCK_BYTES`].
#[derive(Debug)]
pub enum Operation {
    /// Overwrites part of `file`. `durable`: completes only when the bytes are on stable media (RWF_DSYNC).
    Write { file: FileId, position: u64, data: Slice, durable: bool },
    /// Fills all of `into` from `file`.
    Read { file: FileId, position: u64, into: Buffer },
    /// Makes earlier completed writes to `file` durable (fdatasync).
    Flush { file: FileId },
    /// Takes a file from the pool, or creates one; `at_least_bytes` 0 may take the reserve kept for a full disk. Its first `written_bytes` (at least `at_least_bytes`) are
    /// written blocks; the content is unspecified.
    Acquire { at_least_bytes: u64 },
    /// Writes zeros from the file's written end up to `to_bytes`, durably. The shard never writes beyond the written end.
    Extend { file: FileId, to_bytes: u64 },
    /// Gives the file back to the pool. The caller has made its content dead durably.
    Release { file: FileId },
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// The result; buffers come back in it.
    pub outcome: Outcome,
}

/// Results, one variant per operation.
#[derive(Debug)]
pub enum Outcome {
    /// All bytes written (and flushed, if `durable`).
    Written(Result<(), Fault>),
    /// All of the buffer is filled. On a fault the buffer is gone.
    Read(Result<Buffer, Fault>),
    /// Flushed.
    Flushed(Result<(), Fault>),
    /// A file to write.
    Acquired(Result<SegmentFile, Fault>),
    /// The file's new written end.
    Extended(Result<SegmentFile, Fault>),
    /// Back in the pool.
    Released,
}

/// A segment file and how much of it has ever been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Which.
    pub file: FileId,
    /// Length of written (zero-filled or used) blocks = the file's length.
    pub written_bytes: u64,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fewer bytes than asked were transferred.
    Short { wanted_bytes: u64, got_bytes: u64 },
    /// No space for a new or longer file. Only from `Acquire` and `Extend`; never fences a shard.
    DiskFull,
    /// The kernel's error number.
    Os(i32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Short { wanted_bytes, got_bytes } => write!(f, "short transfer: {got_bytes} of {wanted_bytes} bytes"),
            Fault::DiskFull => f.write_str("no space left on the file system"),
            Fault::Os(code) => write!(f, "{}", io::Error::from_raw_os_error(*code)),
        }
    }
}

impl std::error::Error for Fault {}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Fault::DiskFull,
            Some(code) => Fault::Os(code),
            None => Fault::Os(libc::EIO),
        }
    }
}

/// The files of a running shard: operations in, completions out, in any order.
pub trait Disk {
    /// Takes an operation; its completion comes out of `poll` later. Never blocks; operations beyond the
    /// ring's depth wait in a queue of the disk's own (its length is bounded by what the log has in flight).
    fn submit(&mut self, token: Token, operation: Operation);
    /// Hands everything submitted since the last call to the kernel.
    fn kick(&mut self);
    /// Moves finished operations to `completions`.
    fn poll(&mut self, completions: &mut Vec<Completion>);
    /// Operations submitted and not yet polled.
    fn in_flight(&self) -> usize;
}

/// The same files, blocking: for start-up, the janitor and the offline tools.
pub trait Volume {
    /// Every segment file, in order of id.
    fn list(&mut self) -> io::Result<Vec<SegmentFile>>;
    /// Fills `into` from `position`; a file that ends earlier is `UnexpectedEof`. Aligned.
    fn read(&mut self, file: FileId, position: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes and flushes. Aligned.
    fn write_durable(&mut self, file: FileId, position: u64, data: &[u8]) -> io::Result<()>;
    /// A new file with `written_bytes` zeros: written, flushed, renamed into place, directory flushed.
    fn create(&mut self, written_bytes: u64) -> io::Result<SegmentFile>;
    /// Appends zeros up to `to_bytes`, flushed.
    fn extend(&mut self, file: FileId, to_bytes: u64) -> io::Result<SegmentFile>;
    /// Flushes earlier writes of anybody to `file`.
    fn flush(&mut self, file: FileId) -> io::Result<()>;
    /// Deletes the file.
    fn remove(&mut self, file: FileId) -> io::Result<()>;
}
