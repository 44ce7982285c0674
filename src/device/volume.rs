//! The segment files of a data directory, and blocking access to them.
//!
//! ```text
//! DIR/lock                    held by the process that uses the directory
//! DIR/segments/0000002a.seg   a segment file
//! DIR/segments/0000002b.tmp   one being made; deleted at the next start
//! ```
//!
//! A file is opened once per process, by [`Directory`], and locked on that very descriptor: a write of a killed
//! process that is still on its way holds its descriptor and thereby the lock, so whoever has the lock reads
//! what will stay. All threads share the descriptor, and with it the mode (direct or buffered).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{BLOCK_BYTES, FileId, SegmentFile, Volume};

/// A start waits so long for the locks of a dying process.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two tries to lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// One write of zeros. Large enough to keep the device busy, small enough not to delay commits: beside 100 MB/s of pieces of 1 MiB the
/// p99 of a flushed 64 KiB write was 831 µs, of 256 KiB 370 µs, alone 301 µs (2026-11-21, with a bare program).
const ZERO_PIECE_BYTES: usize = 256 << 10;

/// … while the log writes about as fast as zeros can be made for it: then small pieces are what it waits for. With them alone 0.87 GB/s of
/// payload were written where it had been 1.3 GB/s (medians of 3, `bench produce --batch 1000`, 2026-11-21).
const ZERO_PIECE_HURRIED_BYTES: usize = 1 << 20;

/// Zeros written between two flushes, so that a long fill doesn't end in one long flush.
const ZERO_FLUSH_BYTES: u64 = 8 << 20;

static ZEROS: LazyLock<AlignedBytes> = LazyLock::new(|| AlignedBytes::zeroed(ZERO_PIECE_HURRIED_BYTES));

/// The data directory's files. One per process and directory; shared by all threads.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// DIR/segments, for names relative to it and for flushing it.
    segments: OwnedFd,
    _lock: File,
    patience: Duration,
    direct_io: DirectIo,
    /// Every segment file opened so far.
    files: Mutex<HashMap<FileId, Arc<OpenFile>>>,
    next_id: AtomicU32,
    /// Files that were there at the start and may be blank have lower numbers than this; those from here on were looked at.
    blank_below: Mutex<u32>,
    /// Sum of the lengths of all segment files.
    held_bytes: AtomicU64,
    /// `held_bytes` may not exceed it.
    limit_bytes: AtomicU64,
    zero_filled_bytes: AtomicU64,
    /// When the last fill ended, and how long it took.
    last_fill: Mutex<Option<(Instant, Duration)>>,
    /// The kernel (or its imitation) doesn't know RWF_DSYNC.
    dsync_refused: AtomicBool,
}

/// A segment file's only descriptor, locked.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// How the files are read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectIo {
    /// Past the page cache. Addresses and positions must be multiples of these (0 = the kernel doesn't tell).
    Direct { memory_align_bytes: u32, offset_align_bytes: u32 },
    /// Through the page cache, because the file system refuses the other.
    Buffered { reason: String },
}

impl Directory {
    /// Opens or makes the directory and locks it. `waiting` is called once if another process holds the lock, with the
    /// reason in words; after [`LOCK_PATIENCE`] the error is `WouldBlock`.
    pub fn open(path: &Path, waiting: &mut dyn FnMut(&str)) -> io::Result<Arc<Directory>> {
        Directory::open_with_patience(path, LOCK_PATIENCE, waiting)
    }

    /// As `open`, but a directory that was never used is `NotFound` and stays as it is. For the offline tools.
    pub fn open_existing(path: &Path, waiting: &mut dyn FnMut(&str)) -> io::Result<Arc<Directory>> {
        fs::metadata(path.join("segments"))?;
        Directory::open(path, waiting)
    }

    /// As `open`, with another patience, for this lock and those of the files.
    pub fn open_with_patience(path: &Path, patience: Duration, waiting: &mut dyn FnMut(&str)) -> io::Result<Arc<Directory>> {
        let segments_path = path.join("segments");
        fs::create_dir_all(&segments_path)?;
        let lock = File::options().create(true).truncate(false).read(true).write(true).open(path.join("lock"))?;
        lock_file(lock.as_fd(), patience, &mut || waiting(&format!("{} is locked by another process", path.display())))?;
        let segments = File::open(&segments_path)?;
        let (mut held_bytes, mut next_id) = (0, 0);
        for entry in fs::read_dir(&segments_path)? {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str() {
                Some(name) if name.ends_with(".tmp") => fs::remove_file(entry.path())?,
                Some(name) => {
                    let Some(file) = parse_name(name) else { continue };
                    held_bytes += entry.metadata()?.len();
                    next_id = next_id.max(file.0 + 1);
                }
                None => continue,
            }
        }
        File::open(path)?.sync_all()?;
        let direct_io = probe_direct_io(&segments)?;
        Ok(Arc::new(Directory {
            path: path.to_owned(),
            segments: segments.into(),
            _lock: lock,
            patience,
            direct_io,
            files: Mutex::default(),
            next_id: AtomicU32::new(next_id),
            blank_below: Mutex::new(next_id),
            held_bytes: AtomicU64::new(held_bytes),
            limit_bytes: AtomicU64::new(u64::MAX),
            zero_filled_bytes: AtomicU64::new(0),
            last_fill: Mutex::new(None),
            dsync_refused: AtomicBool::new(false),
        }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How its files are read and written.
    pub fn direct_io(&self) -> &DirectIo {
        &self.direct_io
    }

    /// Makes creating and extending files fail as on a full disk when all of them together would exceed it.
    pub fn set_limit_bytes(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Size of the file system.
    pub fn filesystem_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.segments)?;
        Ok(stat.f_blocks * stat.f_frsize)
    }

    /// What new files can still take: free for this user, and below the limit.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.segments)?;
        let below_limit = self.limit_bytes.load(Ordering::Relaxed).saturating_sub(self.held_bytes.load(Ordering::Relaxed));
        Ok(below_limit.min(stat.f_bavail * stat.f_frsize))
    }

    /// The file system's name, or its magic number.
    pub fn filesystem_name(&self) -> io::Result<String> {
        Ok(filesystem_name(rustix::fs::fstatfs(&self.segments)?.f_type as u64))
    }

    /// Zeros written since the start by `create` and `extend`.
    pub fn zero_filled_bytes(&self) -> u64 {
        self.zero_filled_bytes.load(Ordering::Relaxed)
    }

    /// The file's descriptor: opened and locked at the first call, then shared. The first call may wait for the lock.
    pub fn file(&self, file: FileId) -> io::Result<Arc<OpenFile>> {
        let mut files = self.files.lock().expect("no panic while held");
        if let Some(open) = files.get(&file) {
            return Ok(open.clone());
        }
        let open = self.open_file(&file.to_string(), OFlags::empty())?;
        lock_file(open.as_fd(), self.patience, &mut || ())?;
        let open = Arc::new(OpenFile { file: open });
        files.insert(file, open.clone());
        Ok(open)
    }

    /// Every segment file, in order of id; opens and locks all of them.
    pub fn list(&self) -> io::Result<Vec<SegmentFile>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path.join("segments"))? {
            let Some(file) = entry?.file_name().to_str().and_then(parse_name) else { continue };
            found.push(SegmentFile { file, written_bytes: written_bytes(&self.file(file)?.file)? });
        }
        found.sort_by_key(|segment| segment.file);
        Ok(found)
    }

    /// A new file of zeros: written, flushed, renamed into place, directory flushed.
    pub fn create(&self, written_bytes: u64) -> io::Result<SegmentFile> {
        let written_bytes = whole_blocks(written_bytes);
        let file = FileId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let temporary = format!("{:08x}.tmp", file.0);
        self.reserve(written_bytes)?;
        let made = self.create_as(&temporary, written_bytes).and_then(|made| self.publish(&temporary, file, made));
        if made.is_err() {
            self.held_bytes.fetch_sub(written_bytes, Ordering::Relaxed);
            // Nobody has seen it under either name; what can't be deleted now goes at the next start.
            let _ = rustix::fs::unlinkat(&self.segments, &temporary, AtFlags::empty());
        }
        made?;
        Ok(SegmentFile { file, written_bytes })
    }

    /// A file that was made ahead before this start and never written to, so that no shard can own it. Each is given once.
    ///
    /// What a start lives on when the disk is full: the janitor keeps such files for it.
    pub fn take_blank(&self) -> io::Result<Option<SegmentFile>> {
        let mut below = self.blank_below.lock().expect("no panic while held");
        let mut block = AlignedBytes::zeroed(BLOCK_BYTES);
        while *below > 0 {
            *below -= 1;
            let file = FileId(*below);
            let open = match self.file(file) {
                Ok(open) => open,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let written_bytes = written_bytes(&open.file)?;
            if written_bytes < BLOCK_BYTES as u64 {
                continue;
            }
            open.file.read_exact_at(&mut block, 0)?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(Some(SegmentFile { file, written_bytes }));
            }
        }
        Ok(None)
    }

    fn create_as(&self, temporary: &str, written_bytes: u64) -> io::Result<File> {
        let made = self.open_file(temporary, OFlags::CREATE | OFlags::EXCL)?;
        lock_file(made.as_fd(), self.patience, &mut || ())?;
        self.fill(&made, 0, written_bytes)?;
        made.sync_all()?;
        Ok(made)
    }

    /// Gives a new file its name. The table is held meanwhile: whoever finds the name in the directory must find this
    /// descriptor in the table, because a second one would wait for the lock that this one holds.
    fn publish(&self, temporary: &str, file: FileId, made: File) -> io::Result<()> {
        let mut files = self.files.lock().expect("no panic while held");
        rustix::fs::renameat(&self.segments, temporary, &self.segments, file.to_string())?;
        if let Err(error) = rustix::fs::fsync(&self.segments) {
            let _ = rustix::fs::unlinkat(&self.segments, file.to_string(), AtFlags::empty());
            return Err(error.into());
        }
        files.insert(file, Arc::new(OpenFile { file: made }));
        Ok(())
    }

    /// Appends zeros up to `to_bytes`, flushed. On an error the file has its old length.
    pub fn extend(&self, file: FileId, to_bytes: u64) -> io::Result<SegmentFile> {
        let open = self.file(file)?;
        let from = written_bytes(&open.file)?;
        let to = whole_blocks(to_bytes).max(from);
        self.reserve(to - from)?;
        if let Err(error) = self.fill(&open.file, from, to) {
            self.held_bytes.fetch_sub(to - from, Ordering::Relaxed);
            open.file.set_len(from)?;
            return Err(error);
        }
        Ok(SegmentFile { file, written_bytes: to })
    }

    /// Deletes the file. Its blocks are free when nobody uses its descriptor any more.
    pub fn remove(&self, file: FileId) -> io::Result<()> {
        let held_bytes = rustix::fs::statat(&self.segments, file.to_string(), AtFlags::empty())?.st_size as u64;
        rustix::fs::unlinkat(&self.segments, file.to_string(), AtFlags::empty())?;
        self.held_bytes.fetch_sub(held_bytes, Ordering::Relaxed);
        self.files.lock().expect("no panic while held").remove(&file);
        Ok(())
    }

    /// Charges `bytes` of a longer or new file; `StorageFull` if they can't fit. Cheaper than finding out by filling
    /// the disk, and it leaves the last bytes to others.
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.free_bytes()? {
            return Err(Errno::NOSPC.into());
        }
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Zeros from `from` to `to`, flushed.
    fn fill(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        let began = Instant::now();
        // The last fill took longer than there was nothing to fill since.
        let last = self.last_fill.lock().expect("no panic while held").take();
        let is_hurried = last.is_some_and(|(ended, took)| began - ended < took);
        let piece_bytes = if is_hurried { ZERO_PIECE_HURRIED_BYTES } else { ZERO_PIECE_BYTES };
        let mut position = from;
        while position < to {
            let piece = &ZEROS[..piece_bytes.min((to - position) as usize)];
            file.write_all_at(piece, position)?;
            position += piece.len() as u64;
            self.zero_filled_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if position == to || (position - from).is_multiple_of(ZERO_FLUSH_BYTES) {
                file.sync_data()?;
            }
        }
        *self.last_fill.lock().expect("no panic while held") = Some((Instant::now(), began.elapsed()));
        Ok(())
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let mode = match self.direct_io {
            DirectIo::Direct { .. } => OFlags::DIRECT,
            DirectIo::Buffered { .. } => OFlags::empty(),
        };
        let flags = flags | mode | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.segments, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// One positioned write of all pieces that is on stable media when it returns; may be short.
    pub(super) fn write_durable(&self, file: &OpenFile, pieces: &[io::IoSlice<'_>], position: u64) -> rustix::io::Result<usize> {
        if !self.dsync_refused.load(Ordering::Relaxed) {
            match rustix::io::pwritev2(file, pieces, position, ReadWriteFlags::DSYNC) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if self.flag_is_refused(file) => {
                    self.dsync_refused.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        let written = rustix::io::pwritev(file, pieces, position)?;
        rustix::fs::fdatasync(file)?;
        Ok(written)
    }

    /// Whether the flag is what the kernel doesn't like, rather than the write: an empty write with it tells.
    fn flag_is_refused(&self, file: &OpenFile) -> bool {
        rustix::io::pwritev2(file, &[], 0, ReadWriteFlags::DSYNC).is_err()
    }
}

/// Blocking access to a [`Directory`]; one per thread that wants it.
#[derive(Debug)]
pub struct FileVolume {
    directory: Arc<Directory>,
    /// For callers whose memory isn't aligned; made when first needed.
    bounce: Option<AlignedBytes>,
}

impl FileVolume {
    /// Blocking access to `directory`.
    pub fn new(directory: Arc<Directory>) -> FileVolume {
        FileVolume { directory, bounce: None }
    }

    /// The directory it works on.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    fn bounce(&mut self) -> &mut AlignedBytes {
        self.bounce.get_or_insert_with(|| AlignedBytes::zeroed(ZERO_PIECE_BYTES))
    }
}

impl Volume for FileVolume {
    fn list(&mut self) -> io::Result<Vec<SegmentFile>> {
        self.directory.list()
    }

    fn read(&mut self, file: FileId, position: u64, into: &mut [u8]) -> io::Result<()> {
        check_blocks(position, into.len())?;
        let open = self.directory.file(file)?;
        if is_aligned(into) {
            return open.file.read_exact_at(into, position);
        }
        let mut position = position;
        for piece in into.chunks_mut(ZERO_PIECE_BYTES) {
            let bounce = &mut self.bounce()[..piece.len()];
            open.file.read_exact_at(bounce, position)?;
            piece.copy_from_slice(bounce);
            position += piece.len() as u64;
        }
        Ok(())
    }

    fn write_durable(&mut self, file: FileId, position: u64, data: &[u8]) -> io::Result<()> {
        check_blocks(position, data.len())?;
        let open = self.directory.file(file)?;
        if is_aligned(data) {
            return write_all_durable(&self.directory, &open, data, position);
        }
        let directory = self.directory.clone();
        let mut position = position;
        for piece in data.chunks(ZERO_PIECE_BYTES) {
            let bounce = &mut self.bounce()[..piece.len()];
            bounce.copy_from_slice(piece);
            write_all_durable(&directory, &open, bounce, position)?;
            position += piece.len() as u64;
        }
        Ok(())
    }

    fn create(&mut self, written_bytes: u64) -> io::Result<SegmentFile> {
        match self.directory.create(written_bytes) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.directory.take_blank()?.ok_or(error),
            made => made,
        }
    }

    fn extend(&mut self, file: FileId, to_bytes: u64) -> io::Result<SegmentFile> {
        self.directory.extend(file, to_bytes)
    }

    fn flush(&mut self, file: FileId) -> io::Result<()> {
        self.directory.file(file)?.file.sync_data()
    }

    fn remove(&mut self, file: FileId) -> io::Result<()> {
        self.directory.remove(file)
    }
}

fn write_all_durable(directory: &Directory, file: &OpenFile, data: &[u8], position: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match directory.write_durable(file, &[io::IoSlice::new(&data[done..])], position + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Bytes at a multiple of [`BLOCK_BYTES`], for whoever has no arena.
pub struct AlignedBytes {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> AlignedBytes {
        let memory = vec![0; len + BLOCK_BYTES];
        let start = memory.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - memory.as_ptr().addr();
        AlignedBytes { memory, start, len }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES)
}

fn check_blocks(position: u64, len: usize) -> io::Result<()> {
    if position.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes at {position} aren't whole blocks")))
}

fn whole_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES as u64)
}

/// The file's length in whole blocks: a part of one is left by an interrupted extension.
fn written_bytes(file: &File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    Ok(len - len % BLOCK_BYTES as u64)
}

/// `0000002a.seg` → 0x2a.
fn parse_name(name: &str) -> Option<FileId> {
    let digits = name.strip_suffix(".seg")?;
    let known = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    known.then(|| u32::from_str_radix(digits, 16).ok().map(FileId)).flatten()
}

/// `waiting` is called once, when the lock isn't free at first.
fn lock_file(file: BorrowedFd<'_>, patience: Duration, waiting: &mut dyn FnMut()) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut said = false;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                if !said {
                    waiting();
                    said = true;
                }
                std::thread::sleep(LOCK_RETRY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tries a direct write and read of one block in the directory: some file systems accept the flag and refuse the I/O.
fn probe_direct_io(segments: &File) -> io::Result<DirectIo> {
    const NAME: &str = "direct-io.tmp";
    let buffered = |reason: String| Ok(DirectIo::Buffered { reason });
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(segments, NAME, flags | OFlags::DIRECT, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file.into(),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            // The name exists now, refused or not.
            let _ = rustix::fs::unlinkat(segments, NAME, AtFlags::empty());
            return buffered("the file system refuses O_DIRECT".into());
        }
        Err(error) => return Err(error.into()),
    };
    let tried = try_direct_io(&file);
    let mask = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let statx = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, mask);
    rustix::fs::unlinkat(segments, NAME, AtFlags::empty())?;
    let (memory_align_bytes, offset_align_bytes) = match statx {
        Ok(statx) if statx.stx_mask & libc::STATX_DIOALIGN != 0 => (statx.stx_dio_mem_align, statx.stx_dio_offset_align),
        _ => (0, 0),
    };
    if memory_align_bytes.max(offset_align_bytes) as usize > BLOCK_BYTES {
        return buffered(format!("direct I/O needs multiples of {} bytes here", memory_align_bytes.max(offset_align_bytes)));
    }
    match tried {
        // A full disk says nothing about direct I/O.
        Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(DirectIo::Direct { memory_align_bytes, offset_align_bytes }),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => buffered("the file system refuses direct writes".into()),
        Err(error) => Err(error.into()),
    }
}

fn try_direct_io(file: &File) -> rustix::io::Result<()> {
    let mut block = AlignedBytes::zeroed(BLOCK_BYTES);
    rustix::io::pwrite(file, &block, 0)?;
    rustix::io::pread(file, &mut block[..], 0)?;
    Ok(())
}

/// From the numbers in `linux/magic.h`.
fn filesystem_name(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}
