//! Arena, files, janitor, and both real disks through one `check`.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::fallback::ThreadDisk;
use super::in_flight::{Entry, Reaped, Transfer};
use super::janitor::{Janitor, JanitorHandle, JanitorOptions};
use super::probe::{self, HugePages, Probe, RingRefused};
use super::region::REGION_BYTES;
use super::uring::{RING_DEPTH, UringDisk};
use super::volume::{DirectIo, Directory, FileVolume};
use super::wake::{self, Waker};
use super::*;

const BLOCK: u64 = BLOCK_BYTES as u64;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// ── arena ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn allocation_is_aligned_rounded_and_charged_by_class() {
    let arena = Arena::new(64 * MIB);
    for (asked, len, charged) in [
        (0, 4 * KIB, 4 * KIB),
        (1, 4 * KIB, 4 * KIB),
        (4 * KIB, 4 * KIB, 4 * KIB),
        (4 * KIB + 1, 8 * KIB, 16 * KIB),
        (65 * KIB, 68 * KIB, 256 * KIB),
        (MIB, MIB, MIB),
        (MIB + 1, MIB + 4 * KIB, 2 * MIB),
        (2 * MIB + 1, 2 * MIB + 4 * KIB, 4 * MIB),
        (7 * MIB, 7 * MIB, 8 * MIB),
    ] {
        let buffer = arena.allocate(asked).expect("room");
        assert_eq!((buffer.len(), arena.used_bytes()), (len, charged), "{asked} bytes");
        assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        drop(buffer);
        assert_eq!(arena.used_bytes(), 0);
    }
}

#[test]
fn arena_at_its_limit_refuses_before_it_maps() {
    let arena = Arena::new(2 * MIB + 4 * KIB);
    assert_eq!(arena.mapped_bytes(), 0);
    assert_eq!(arena.allocate(3 * MIB).unwrap_err(), ArenaFull { wanted_bytes: 4 * MIB, used_bytes: 0, limit_bytes: 2 * MIB + 4 * KIB });
    assert_eq!(arena.allocate(usize::MAX).unwrap_err().used_bytes, 0);
    assert_eq!(arena.mapped_bytes(), 0);
    let chunk = arena.allocate(2 * MIB).expect("room");
    let small = arena.allocate(1).expect("room");
    assert!(arena.allocate(1).is_err());
    drop(small);
    assert!(arena.allocate(1).is_ok());
    drop(chunk);
    assert!(arena.allocate(2 * MIB).is_ok());
}

#[test]
fn idle_arena_keeps_a_few_regions_and_trim_gives_them_back() {
    let arena = Arena::new(64 * MIB);
    let chunks: Vec<Buffer> = (0..8).map(|_| arena.allocate(2 * MIB).expect("room")).collect();
    let small: Vec<Buffer> = (0..513).map(|_| arena.allocate(4 * KIB).expect("room")).collect();
    let large = arena.allocate(5 * MIB).expect("room");
    assert_eq!(arena.mapped_bytes(), (16 + 4 + 6) * MIB);
    drop((chunks, small, large));
    assert!(arena.mapped_bytes() <= 4 * REGION_BYTES, "{arena:?}");
    let again = arena.allocate(2 * MIB).expect("room");
    let before = arena.mapped_bytes();
    arena.trim();
    assert_eq!(arena.mapped_bytes(), REGION_BYTES);
    assert!(before > REGION_BYTES);
    drop(again);
    arena.trim();
    assert_eq!((arena.used_bytes(), arena.mapped_bytes()), (0, 0));
}

#[test]
fn buffers_never_overlap() {
    let seed = 7;
    println!("seed {seed}");
    let arena = Arena::new(16 * MIB);
    let mut random = Random(seed);
    let mut held: Vec<(Buffer, u8)> = Vec::new();
    for step in 0..if cfg!(miri) { 100 } else { 4000 } {
        let bytes = [1, 4, 5, 16, 17, 64, 200, 300, 1024, 2048, 2500][random.below(11)] * KIB;
        match arena.allocate(bytes) {
            Ok(mut buffer) => {
                let mark = step as u8;
                let last = buffer.len() - 1;
                (buffer[0], buffer[last / 2], buffer[last]) = (mark, mark, mark);
                held.push((buffer, mark));
            }
            Err(full) => assert!(full.wanted_bytes + full.used_bytes > full.limit_bytes),
        }
        while held.len() > 40 || (!held.is_empty() && random.below(3) == 0) {
            let (buffer, mark) = held.swap_remove(random.below(held.len()));
            let last = buffer.len() - 1;
            assert_eq!([buffer[0], buffer[last / 2], buffer[last]], [mark; 3], "step {step}");
        }
    }
    drop(held);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn slice_keeps_the_memory_until_the_last_one_goes() {
    let arena = Arena::new(MIB);
    let mut buffer = arena.allocate(8 * KIB).expect("room");
    buffer.fill(3);
    buffer[5000] = 9;
    let slice = buffer.freeze();
    let part = slice.slice(4096..8192);
    let copy = part.clone();
    drop((slice, part));
    assert_eq!((copy.len(), copy[904], copy[905]), (4096, 9, 3));
    assert_eq!(copy.slice(904..905).slice(0..1)[0], 9);
    assert_eq!(copy.slice(4096..4096).len(), 0);
    assert_eq!(arena.used_bytes(), 16 * KIB);
    drop(copy);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn arena_outlives_its_handle_through_its_buffers() {
    let arena = Arena::new(MIB);
    let mut buffer = arena.allocate(1).expect("room");
    drop(arena);
    buffer.fill(1);
    assert_eq!(buffer.freeze()[4095], 1);
}

#[test]
fn chunk_grows_behind_sealed_slices() {
    let arena = Arena::new(MIB);
    let mut chunk = Chunk::new(arena.allocate(16 * KIB).expect("room"));
    chunk.append(b"headxxxx");
    chunk.append(&[1; 100]);
    chunk.patch(4, b"ring");
    chunk.append_zeros(4096 - chunk.len());
    chunk.seal_to(4096);
    assert!(!chunk.is_shared());
    let first = chunk.slice(0..4096);
    assert!(chunk.is_shared());
    chunk.append(b"second");
    chunk.patch(4096, b"S");
    assert_eq!((&first[..8], first[8], first[108]), (b"headring".as_slice(), 1, 0));
    assert_eq!(chunk.bytes(4096..4102), b"Second");
    assert_eq!((chunk.len(), chunk.sealed(), chunk.remaining(), chunk.capacity()), (4102, 4096, 16 * KIB - 4102, 16 * KIB));
    // The source of an append may be the chunk's own sealed bytes.
    chunk.append(&first[4..8]);
    assert_eq!(chunk.bytes(4102..4106), b"ring");
    drop(first);
    assert!(!chunk.is_shared());
    chunk.reset();
    assert!(chunk.is_empty() && chunk.sealed() == 0);
    drop(chunk);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn chunk_dropped_while_shared_leaves_its_bytes() {
    let arena = Arena::new(MIB);
    let mut chunk = Chunk::new(arena.allocate(4 * KIB).expect("room"));
    chunk.append(&[7; 4096]);
    chunk.seal_to(4096);
    let slice = chunk.slice(0..4096);
    drop((chunk, arena));
    assert_eq!(*slice, [7; 4096]);
}

fn chunk_of(appended: usize, sealed: usize) -> Chunk {
    let mut chunk = Chunk::new(Arena::new(MIB).allocate(4096).expect("room"));
    chunk.append_zeros(appended);
    chunk.seal_to(sealed);
    chunk
}

#[test]
#[should_panic(expected = "sealed 100")]
fn chunk_patch_below_the_seal_panics() {
    chunk_of(200, 100).patch(99, &[1]);
}

#[test]
#[should_panic(expected = "appended 200")]
fn chunk_patch_beyond_the_end_panics() {
    chunk_of(200, 100).patch(199, &[1, 1]);
}

#[test]
#[should_panic(expected = "sealed bytes")]
fn chunk_slice_of_unsealed_bytes_panics() {
    chunk_of(200, 100).slice(0..101);
}

#[test]
#[should_panic(expected = "seal to 99")]
fn chunk_seal_backwards_panics() {
    chunk_of(200, 100).seal_to(99);
}

#[test]
#[should_panic(expected = "1 bytes into 0")]
fn chunk_append_beyond_capacity_panics() {
    chunk_of(4096, 0).append(&[1]);
}

#[test]
#[should_panic(expected = "while somebody reads it")]
fn chunk_reset_while_shared_panics() {
    let mut chunk = chunk_of(200, 100);
    let _slice = chunk.slice(0..1);
    chunk.reset();
}

// ── wake ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

fn wakers() -> [(Waker, OwnedFd); 2] {
    let (stream, socket) = Waker::stream().expect("a socket pair");
    [Waker::eventfd().expect("an eventfd"), (stream, socket.into())]
}

#[test]
fn wake_is_coalesced_until_rearmed() {
    for (waker, reader) in wakers() {
        let is_awake = || wake::wait(&waker, reader.as_fd(), Duration::ZERO).expect("poll");
        assert!(!is_awake());
        (0..100_000).for_each(|_| waker.wake());
        assert!(is_awake());
        assert!(!is_awake());
        waker.wake();
        assert!(is_awake());
    }
}

#[test]
fn wake_after_filling_an_inbox_is_never_missed() {
    for (waker, reader) in wakers() {
        let inbox = Arc::new(AtomicU64::new(0));
        const COUNT: u64 = 20_000;
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (inbox, waker) = (inbox.clone(), waker.clone());
                std::thread::spawn(move || {
                    for _ in 0..COUNT {
                        inbox.fetch_add(1, Ordering::Relaxed);
                        waker.wake();
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 2 * COUNT {
            assert!(wake::wait(&waker, reader.as_fd(), Duration::from_secs(10)).expect("poll"), "a wake was lost at {seen}");
            seen += inbox.swap(0, Ordering::Relaxed);
        }
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}

// ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A directory under the system's temporary one, deleted when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var_os("RINGMAIN_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = base.join(format!("ringmain-device-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        TempDir(path)
    }

    fn open(&self) -> Arc<Directory> {
        Directory::open(&self.0, &mut |reason| panic!("{reason}")).expect("opens")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("segments")).expect("is there");
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn volume_reads_back_what_it_wrote_also_after_reopening() {
    let dir = TempDir::new();
    let mut volume = FileVolume::new(dir.open());
    let file = volume.create(3 * BLOCK - 1).expect("created");
    assert_eq!(file, SegmentFile { file: FileId(0), written_bytes: 3 * BLOCK });
    let mut bytes = vec![9; 3 * BLOCK_BYTES + 1];
    volume.read(file.file, 0, &mut bytes[1..]).expect("read into unaligned memory");
    assert!(bytes[1..].iter().all(|&byte| byte == 0));

    bytes[1..].fill(5);
    volume.write_durable(file.file, BLOCK, &bytes[1..=2 * BLOCK_BYTES]).expect("written from unaligned memory");
    let extended = volume.extend(file.file, 5 * BLOCK).expect("extended");
    assert_eq!(extended.written_bytes, 5 * BLOCK);
    assert_eq!(volume.extend(file.file, BLOCK).expect("no less"), extended);
    volume.flush(file.file).expect("flushed");
    assert_eq!(volume.directory().zero_filled_bytes(), 5 * BLOCK);
    drop(volume);

    let mut volume = FileVolume::new(dir.open());
    assert_eq!(volume.list().expect("listed"), [extended]);
    let mut aligned = volume::AlignedBytes::zeroed(5 * BLOCK_BYTES);
    volume.read(file.file, 0, &mut aligned).expect("read");
    let blocks: Vec<u8> = aligned.chunks(BLOCK_BYTES).map(|block| block[17]).collect();
    assert_eq!(blocks, [0, 5, 5, 0, 0]);
    let beyond = volume.read(file.file, 4 * BLOCK, &mut bytes[..2 * BLOCK_BYTES]).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(volume.read(file.file, 1, &mut aligned).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(volume.write_durable(file.file, 0, &[1]).unwrap_err().kind(), io::ErrorKind::InvalidInput);

    assert_eq!(volume.create(BLOCK).expect("created").file, FileId(1));
    volume.remove(file.file).expect("removed");
    assert_eq!(dir.names(), ["00000001.seg"]);
    assert_eq!(volume.remove(file.file).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn volume_moves_more_than_its_bounce_buffer_holds() {
    let dir = TempDir::new();
    let mut volume = FileVolume::new(dir.open());
    let file = volume.create(3 * MIB as u64).expect("created").file;
    let mut random = Random(1);
    let mut bytes = vec![0; 1 + 2 * MIB + BLOCK_BYTES];
    bytes.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
    volume.write_durable(file, BLOCK, &bytes[1..]).expect("written");
    let mut back = vec![0; 1 + 2 * MIB + BLOCK_BYTES];
    volume.read(file, BLOCK, &mut back[1..]).expect("read");
    assert!(back[1..] == bytes[1..]);
}

#[test]
fn directory_ignores_strangers_and_deletes_halves() {
    let dir = TempDir::new();
    let segments = dir.0.join("segments");
    fs::create_dir_all(&segments).expect("made");
    for name in ["0000002A.seg", "2a.seg", "0000002a.seg.bak", "0000002b.tmp"] {
        fs::write(segments.join(name), [1; 5000]).expect("written");
    }
    fs::write(segments.join("0000000f.seg"), [1; 5000]).expect("written");
    let mut volume = FileVolume::new(dir.open());
    assert_eq!(volume.list().expect("listed"), [SegmentFile { file: FileId(15), written_bytes: BLOCK }]);
    assert_eq!(volume.create(BLOCK).expect("created").file, FileId(16));
    assert!(!dir.names().contains(&"0000002b.tmp".to_owned()));
    assert!(volume.directory().filesystem_bytes().unwrap() > volume.directory().free_bytes().unwrap());
    assert!(!volume.directory().filesystem_name().unwrap().is_empty());
}

#[test]
fn unused_directory_isnt_touched_by_open_existing() {
    let dir = TempDir::new();
    let refused = Directory::open_existing(&dir.0, &mut |_| ()).unwrap_err();
    assert_eq!((refused.kind(), fs::read_dir(&dir.0).expect("listed").count()), (io::ErrorKind::NotFound, 0));
    drop(dir.open());
    Directory::open_existing(&dir.0, &mut |_| ()).expect("opens");
}

#[test]
fn directory_in_use_is_waited_for_then_refused() {
    let dir = TempDir::new();
    let first = dir.open();
    let mut said = Vec::new();
    let refused = Directory::open_with_patience(&dir.0, Duration::from_millis(60), &mut |reason| said.push(reason.to_owned()));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(said.len() == 1 && said[0].contains("locked by another process"), "{said:?}");

    let dying = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    Directory::open(&dir.0, &mut |_| ()).expect("free after a while");
    dying.join().expect("no panic");
}

#[test]
fn file_is_opened_when_the_last_writer_of_a_killed_process_is_gone() {
    let dir = TempDir::new();
    let file = dir.open().create(BLOCK).expect("created").file;
    // What the kernel holds for a write in flight: the descriptor with its lock, without the process.
    let path = dir.0.join("segments").join(file.to_string());
    let writer = fs::File::options().write(true).open(path).expect("opens");
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let impatient = Directory::open_with_patience(&dir.0, Duration::from_millis(40), &mut |_| ()).expect("opens");
    assert_eq!(impatient.list().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(impatient);
    let patient = dir.open();
    let landing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(writer);
    });
    let start = Instant::now();
    assert_eq!(patient.list().expect("listed").len(), 1);
    assert!(start.elapsed() >= Duration::from_millis(50));
    landing.join().expect("no panic");
}

#[test]
fn start_on_a_full_disk_takes_each_file_made_ahead_once_and_no_used_one() {
    let dir = TempDir::new();
    let used = {
        let directory = dir.open();
        let files = [2, 3, 2].map(|blocks| directory.create(blocks * BLOCK).expect("created").file);
        let mut volume = FileVolume::new(directory);
        volume.write_durable(files[1], 0, &[7; BLOCK as usize]).expect("written");
        files[1]
    };
    let directory = dir.open();
    directory.set_limit_bytes(8 * BLOCK);
    let mut volume = FileVolume::new(directory.clone());
    let made = volume.create(BLOCK).expect("there is room");
    let mut taken = [volume.create(BLOCK), volume.create(BLOCK)].map(|file| file.expect("one made ahead").file);
    taken.sort();
    assert_eq!(taken, [FileId(0), FileId(2)]);
    assert!(!taken.contains(&used) && !taken.contains(&made.file));
    assert_eq!(Fault::from(volume.create(BLOCK).unwrap_err()), Fault::DiskFull);
}

#[test]
fn full_disk_leaves_no_half_file_and_old_lengths() {
    let dir = TempDir::new();
    let directory = dir.open();
    let file = directory.create(4 * BLOCK).expect("created").file;
    directory.set_limit_bytes(8 * BLOCK);
    assert_eq!(Fault::from(directory.create(5 * BLOCK).unwrap_err()), Fault::DiskFull);
    assert_eq!(Fault::from(directory.extend(file, 9 * BLOCK).unwrap_err()), Fault::DiskFull);
    assert_eq!(dir.names(), ["00000000.seg"]);
    assert_eq!(directory.list().unwrap(), [SegmentFile { file, written_bytes: 4 * BLOCK }]);
    assert_eq!(directory.free_bytes().unwrap(), 4 * BLOCK);
    directory.create(4 * BLOCK).expect("exactly fits");
    directory.remove(file).expect("removed");
    assert_eq!(directory.free_bytes().unwrap(), 4 * BLOCK);
}

// ── janitor ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn options(reserve_files: usize, spare_files: usize) -> JanitorOptions {
    JanitorOptions { file_bytes: 16 * BLOCK, reserve_files, spare_files, free_files_max: 4 }
}

/// A disk with its waker, driven like a core drives it.
struct Bench<D> {
    disk: D,
    waker: Waker,
    reader: OwnedFd,
    next_token: u64,
    arrived: HashMap<Token, Outcome>,
}

impl Bench<ThreadDisk> {
    fn threads(janitor: &JanitorHandle) -> Bench<ThreadDisk> {
        let (waker, reader) = Waker::stream().expect("a socket pair");
        Bench::new(ThreadDisk::new(janitor, waker.clone()).expect("threads"), waker, reader.into())
    }
}

impl Bench<UringDisk> {
    /// `None` where rings are forbidden.
    fn ring(janitor: &JanitorHandle, depth: u32) -> Option<Bench<UringDisk>> {
        if let Err(refused) = probe::try_ring() {
            println!("not tested: {refused}");
            return None;
        }
        let (waker, reader) = Waker::eventfd().expect("an eventfd");
        let disk = UringDisk::with_depth(janitor, waker.clone(), depth).expect("a ring");
        Some(Bench::new(disk, waker, reader))
    }
}

impl<D: Disk> Bench<D> {
    fn new(disk: D, waker: Waker, reader: OwnedFd) -> Bench<D> {
        Bench { disk, waker, reader, next_token: 0, arrived: HashMap::new() }
    }

    fn submit(&mut self, operation: Operation) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.disk.submit(token, operation);
        token
    }

    /// Sleeps on the wake descriptor only: a completion that doesn't signal fails the test.
    fn wait(&mut self, token: Token) -> Outcome {
        self.disk.kick();
        let mut completions = Vec::new();
        loop {
            self.disk.poll(&mut completions);
            for Completion { token, outcome } in completions.drain(..) {
                assert!(self.arrived.insert(token, outcome).is_none(), "{token:?} came twice");
            }
            if let Some(outcome) = self.arrived.remove(&token) {
                return outcome;
            }
            assert!(self.disk.in_flight() > 0);
            let awake = wake::wait(&self.waker, self.reader.as_fd(), Duration::from_secs(10)).expect("poll");
            assert!(awake, "{token:?} never woke its core");
        }
    }

    fn run(&mut self, operation: Operation) -> Outcome {
        let token = self.submit(operation);
        self.wait(token)
    }

    fn acquire(&mut self, at_least_bytes: u64) -> Result<SegmentFile, Fault> {
        match self.run(Operation::Acquire { at_least_bytes }) {
            Outcome::Acquired(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn extend(&mut self, file: FileId, to_bytes: u64) -> Result<SegmentFile, Fault> {
        match self.run(Operation::Extend { file, to_bytes }) {
            Outcome::Extended(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, file: FileId) {
        assert!(matches!(self.run(Operation::Release { file }), Outcome::Released));
    }

    fn write(&mut self, file: FileId, position: u64, data: Slice) -> Result<(), Fault> {
        match self.run(Operation::Write { file, position, data, durable: true }) {
            Outcome::Written(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, file: FileId, position: u64, into: Buffer) -> Result<Buffer, Fault> {
        match self.run(Operation::Read { file, position, into }) {
            Outcome::Read(result) => result,
            other => panic!("{other:?}"),
        }
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn janitor_prefers_the_longest_free_file_and_bounds_its_pool() {
    let dir = TempDir::new();
    let directory = dir.open();
    let files: Vec<SegmentFile> = [2, 9, 5].map(|blocks| directory.create(blocks * BLOCK).expect("created")).into();
    let janitor = Janitor::start(directory, options(0, 0)).expect("a thread");
    janitor.give(files.clone());
    let mut bench = Bench::threads(janitor.handle());
    assert_eq!(bench.acquire(BLOCK), Ok(files[1]));
    // None is long enough: the longest is lengthened.
    assert_eq!(bench.acquire(6 * BLOCK), Ok(SegmentFile { file: files[2].file, written_bytes: 6 * BLOCK }));
    assert_eq!(bench.acquire(BLOCK), Ok(files[0]));
    // None is left: one is made, not shorter than usual.
    let made = bench.acquire(BLOCK).expect("made");
    assert_eq!(made, SegmentFile { file: FileId(3), written_bytes: 16 * BLOCK });
    bench.release(files[0].file);
    assert_eq!(bench.extend(made.file, 20 * BLOCK + 1), Ok(SegmentFile { file: made.file, written_bytes: 21 * BLOCK }));
    bench.release(made.file);
    bench.release(files[1].file);
    bench.release(files[2].file);
    assert_eq!(janitor.handle().stats().free_files, 4);
    let fifth = janitor.handle().directory().create(8 * BLOCK).expect("created");
    bench.release(fifth.file);
    let stats = janitor.handle().stats();
    assert_eq!((stats.free_files, stats.free_file_bytes, stats.removed_files), (4, (21 + 9 + 8 + 6) * BLOCK, 1));
    assert_eq!(stats.zero_filled_bytes, (2 + 9 + 5 + 1 + 16 + 5 + 8) * BLOCK);
    assert!(!dir.names().contains(&files[0].file.to_string()));
}

#[test]
fn janitor_makes_reserve_and_spare_after_recovery_only() {
    let dir = TempDir::new();
    let janitor = Janitor::start(dir.open(), options(1, 1)).expect("a thread");
    let mut bench = Bench::threads(janitor.handle());
    let first = bench.acquire(BLOCK).expect("made");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(janitor.handle().stats().free_files, 0);
    janitor.give(Vec::new());
    wait_until("a reserve and a spare file", || janitor.handle().stats().free_files == 2);
    let second = bench.acquire(BLOCK).expect("the spare file");
    assert_ne!(first.file, second.file);
    wait_until("another spare file", || janitor.handle().stats().free_files == 2);
    assert_eq!(janitor.handle().stats().created_files, 4);
}

#[test]
fn full_disk_keeps_the_reserve_for_requests_of_no_size_and_heals() {
    let dir = TempDir::new();
    let directory = dir.open();
    directory.set_limit_bytes(40 * BLOCK);
    let janitor = Janitor::start(directory.clone(), options(1, 1)).expect("a thread");
    janitor.give(Vec::new());
    wait_until("a reserve and a spare file", || janitor.handle().stats().free_files == 2);
    let mut bench = Bench::threads(janitor.handle());
    let file = bench.acquire(BLOCK).expect("the spare file");
    assert_eq!(bench.acquire(BLOCK), Err(Fault::DiskFull));
    assert_eq!(bench.extend(file.file, 30 * BLOCK), Err(Fault::DiskFull));
    assert_eq!(bench.extend(file.file, 24 * BLOCK).expect("still fits").written_bytes, 24 * BLOCK);
    let reserve = bench.acquire(0).expect("the reserve");
    assert_eq!(bench.acquire(0), Err(Fault::DiskFull));
    assert_eq!(janitor.handle().stats().disk_full, 3);
    // Both come back: one fills the reserve, the other serves.
    bench.release(reserve.file);
    assert_eq!(bench.acquire(BLOCK), Err(Fault::DiskFull));
    bench.release(file.file);
    assert_eq!(bench.acquire(BLOCK).expect("recycled").file, file.file);
    assert_eq!(bench.acquire(BLOCK), Err(Fault::DiskFull));
    directory.set_limit_bytes(400 * BLOCK);
    bench.acquire(BLOCK).expect("made");
}

#[test]
fn janitor_serves_more_requests_than_a_port_may_have_with_it() {
    let dir = TempDir::new();
    let janitor = Janitor::start(dir.open(), options(0, 0)).expect("a thread");
    let mut bench = Bench::threads(janitor.handle());
    let file = bench.acquire(BLOCK).expect("made").file;
    let tokens: Vec<Token> = (0..200).map(|_| bench.submit(Operation::Extend { file, to_bytes: BLOCK })).collect();
    assert_eq!(bench.disk.in_flight(), 200);
    for token in tokens {
        assert!(matches!(bench.wait(token), Outcome::Extended(Ok(_))));
    }
    assert_eq!(bench.disk.in_flight(), 0);
    drop(janitor);
    assert_eq!(bench.acquire(BLOCK), Err(Fault::Os(libc::ESHUTDOWN)));
}

// ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A full chunk whose block `n` is filled with `first + n`.
fn numbered(arena: &Arena, blocks: usize, first: u8) -> Chunk {
    let mut chunk = Chunk::new(arena.allocate(blocks * BLOCK_BYTES).expect("room"));
    (0..blocks).for_each(|block| chunk.append(&[first.wrapping_add(block as u8); BLOCK_BYTES]));
    chunk.seal_to(chunk.len());
    chunk
}

fn block(number: usize) -> std::ops::Range<usize> {
    number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES
}

/// What every disk must do.
fn check(mut bench: Bench<impl Disk>) {
    let arena = Arena::new(64 * MIB);
    let file = bench.acquire(64 * BLOCK).expect("a file");
    let other = bench.acquire(64 * BLOCK).expect("a file").file;
    let (file, end) = (file.file, file.written_bytes);

    // Written durably, read back; unwritten blocks of a new file are zero.
    let chunk = numbered(&arena, 64, 100);
    bench.write(file, BLOCK, chunk.slice(0..2 * BLOCK_BYTES)).expect("written");
    let back = bench.read(file, 0, arena.allocate(4 * BLOCK_BYTES).expect("room")).expect("read");
    let marks: Vec<u8> = back.chunks(BLOCK_BYTES).map(|block| block[BLOCK_BYTES - 1]).collect();
    assert_eq!(marks, [0, 100, 101, 0]);
    drop(back);

    // Written without flush, then flushed.
    let data = chunk.slice(block(50));
    let token = bench.submit(Operation::Write { file: other, position: 0, data, durable: false });
    assert!(matches!(bench.wait(token), Outcome::Written(Ok(()))));
    assert!(matches!(bench.run(Operation::Flush { file: other }), Outcome::Flushed(Ok(()))));
    assert_eq!(bench.read(other, 0, arena.allocate(1).expect("room")).expect("read")[0], 150);

    // Many in flight, neighbours and strangers, to two files, while the chunk that feeds them is long gone.
    let mut tokens = Vec::new();
    for n in 0..64 {
        let (target, durable) = (if n % 5 == 0 { other } else { file }, n % 3 != 0);
        tokens.push(bench.submit(Operation::Write { file: target, position: n as u64 * BLOCK, data: chunk.slice(block(n)), durable }));
    }
    drop(chunk);
    assert_eq!(bench.disk.in_flight(), 64);
    for token in tokens {
        assert!(matches!(bench.wait(token), Outcome::Written(Ok(()))));
    }
    // Backwards, none continues the one before it.
    let backwards = numbered(&arena, 16, 100);
    let write = |n| Operation::Write { file, position: n as u64 * BLOCK, data: backwards.slice(block(n)), durable: true };
    let tokens: Vec<Token> = (0..16).rev().filter(|n| n % 5 != 0).map(|n| bench.submit(write(n))).collect();
    for token in tokens {
        assert!(matches!(bench.wait(token), Outcome::Written(Ok(()))));
    }
    drop(backwards);
    let mut reads = HashMap::new();
    for n in (0..64).rev() {
        let target = if n % 5 == 0 { other } else { file };
        let into = arena.allocate(BLOCK_BYTES).expect("room");
        reads.insert(bench.submit(Operation::Read { file: target, position: n as u64 * BLOCK, into }), n);
    }
    for (token, n) in reads {
        let Outcome::Read(Ok(buffer)) = bench.wait(token) else { panic!("block {n} wasn't read") };
        assert!(buffer.iter().all(|&byte| byte == 100 + n as u8), "block {n}");
    }

    // Reads over the end, faults of the kernel, files that aren't there.
    let into = || arena.allocate(2 * BLOCK_BYTES).expect("room");
    let short = bench.read(file, end - BLOCK, into()).unwrap_err();
    assert_eq!(short, Fault::Short { wanted_bytes: 2 * BLOCK, got_bytes: BLOCK });
    assert_eq!(bench.read(file, end, into()).unwrap_err(), Fault::Short { wanted_bytes: 2 * BLOCK, got_bytes: 0 });
    let impossible = bench.write(file, (1 << 63) - BLOCK, into().freeze()).unwrap_err();
    assert!(matches!(impossible, Fault::Os(libc::EFBIG | libc::EINVAL | libc::EOVERFLOW)), "{impossible:?}");
    let missing = FileId(0xdead);
    assert_eq!(bench.read(missing, 0, into()).unwrap_err(), Fault::Os(libc::ENOENT));
    assert_eq!(bench.write(missing, 0, into().freeze()).unwrap_err(), Fault::Os(libc::ENOENT));
    while wake::wait(&bench.waker, bench.reader.as_fd(), Duration::ZERO).expect("poll") {}
    let token = bench.submit(Operation::Flush { file: missing });
    assert!(wake::wait(&bench.waker, bench.reader.as_fd(), Duration::from_secs(1)).expect("poll"), "a fault wakes its core");
    assert!(matches!(bench.wait(token), Outcome::Flushed(Err(Fault::Os(libc::ENOENT)))));

    // Released, it is given out again; lengthened, its new end is written.
    bench.release(file);
    let again = bench.acquire(BLOCK).expect("a file");
    assert_eq!(again.file, file);
    let longer = bench.extend(file, end + 8 * BLOCK).expect("extended").written_bytes;
    assert_eq!(longer, end + 8 * BLOCK);
    assert!(bench.read(file, longer - 2 * BLOCK, into()).expect("read").iter().all(|&byte| byte == 0));

    assert_eq!((bench.disk.in_flight(), bench.arrived.len(), arena.used_bytes()), (0, 0, 0));

    // Dropped with everything in flight, kicked or not: memory comes back only afterwards, and nothing hangs.
    let chunk = numbered(&arena, 64, 0);
    for n in 0..64 {
        bench.submit(Operation::Write { file, position: n as u64 * BLOCK, data: chunk.slice(block(n)), durable: true });
        bench.submit(Operation::Read { file: other, position: n as u64 * BLOCK, into: arena.allocate(1).expect("room") });
        if n == 40 {
            bench.disk.kick();
        }
    }
    drop(chunk);
    drop(bench);
    assert_eq!(arena.used_bytes(), 0);
}

/// Memory that comes back when a disk is dropped is nobody else's any more.
fn check_drop(mut bench: Bench<impl Disk>) {
    let arena = Arena::new(64 * MIB);
    let file = bench.acquire(16 * MIB as u64).expect("a file").file;
    let allocate = |_| arena.allocate(64 * KIB).expect("room");
    // One piece of each region stays, so that the same memory is handed out again.
    let mut buffers: Vec<Buffer> = (0..256).map(allocate).collect();
    let kept: Vec<Buffer> = (0..8).map(|region| buffers.swap_remove(region * 31)).collect();
    let used: Vec<usize> = buffers.iter().map(|buffer| buffer.as_ptr().addr()).collect();
    for (n, into) in buffers.into_iter().enumerate() {
        bench.submit(Operation::Read { file, position: n as u64 * 64 * KIB as u64, into });
    }
    bench.disk.kick();
    drop(bench);
    let mut buffers: Vec<Buffer> = (0..248).map(allocate).collect();
    let reused = buffers.iter().filter(|buffer| used.contains(&buffer.as_ptr().addr())).count();
    assert!(reused > 200, "{reused}");
    // The kernel would read the last ones last.
    buffers.iter_mut().rev().for_each(|buffer| buffer.fill(0xaa));
    std::thread::sleep(Duration::from_millis(50));
    let untouched = buffers.iter().all(|buffer| buffer.iter().all(|&byte| byte == 0xaa));
    assert!(untouched, "written to by a disk that is gone");
    drop(kept);
}

#[test]
fn dropped_ring_leaves_memory_alone() {
    check_with(|janitor| Bench::ring(janitor, RING_DEPTH).into_iter().for_each(check_drop));
}

#[test]
fn dropped_threads_leave_memory_alone() {
    check_with(|janitor| check_drop(Bench::threads(janitor)));
}

fn check_with(make: impl FnOnce(&JanitorHandle)) {
    let dir = TempDir::new();
    let janitor = Janitor::start(dir.open(), options(0, 0)).expect("a thread");
    make(janitor.handle());
}

#[test]
fn ring_does_what_every_disk_does() {
    check_with(|janitor| Bench::ring(janitor, RING_DEPTH).into_iter().for_each(check));
}

#[test]
fn shallow_ring_queues_what_it_cant_hold() {
    check_with(|janitor| Bench::ring(janitor, 4).into_iter().for_each(check));
}

#[test]
fn threads_do_what_every_disk_does() {
    check_with(|janitor| check(Bench::threads(janitor)));
}

#[test]
fn ring_without_an_eventfd_is_refused() {
    check_with(|janitor| {
        let (waker, _reader) = Waker::stream().expect("a socket pair");
        assert_eq!(UringDisk::new(janitor, waker).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
#[should_panic(expected = "aren't whole blocks")]
fn write_of_part_of_a_block_panics() {
    check_with(|janitor| {
        let data = Arena::new(MIB).allocate(1).expect("room").freeze().slice(0..100);
        Bench::threads(janitor).submit(Operation::Write { file: FileId(0), position: 0, data, durable: true });
    });
}

#[test]
#[should_panic(expected = "released with operations in flight")]
fn release_with_operations_in_flight_panics() {
    check_with(|janitor| {
        let mut bench = Bench::threads(janitor);
        let file = bench.acquire(BLOCK).expect("a file").file;
        bench.submit(Operation::Flush { file });
        bench.submit(Operation::Release { file });
    });
}

/// One read of three blocks, fed with the kernel's results in turn: what comes of it.
fn check_read(results: &[Result<usize, i32>], want: Result<usize, Fault>) {
    let dir = TempDir::new();
    let directory = dir.open();
    let file = directory.create(BLOCK).expect("created").file;
    let into = Arena::new(MIB).allocate(3 * BLOCK_BYTES).expect("room");
    let transfer = Transfer::Read { position: 0, into, filled: 0, continued: false };
    let mut entry = Entry { token: Token(1), file, open: directory.file(file).expect("opens"), transfer };
    for (at, &result) in results.iter().enumerate() {
        match entry.reaped(result) {
            Reaped::Again(again) => entry = again,
            Reaped::Done(Completion { outcome: Outcome::Read(outcome), .. }) => {
                assert_eq!((at + 1, outcome.map(|buffer| buffer.len())), (results.len(), want), "{results:?}");
                return;
            }
            Reaped::Done(other) => panic!("{other:?}"),
        }
    }
    panic!("{results:?}: not done");
}

#[test]
fn short_read_is_continued_once() {
    let short = |got_blocks| Err(Fault::Short { wanted_bytes: 3 * BLOCK, got_bytes: got_blocks * BLOCK });
    let blocks = |count| Ok(count * BLOCK_BYTES);
    check_read(&[blocks(3)], Ok(3 * BLOCK_BYTES));
    check_read(&[blocks(1), blocks(2)], Ok(3 * BLOCK_BYTES));
    check_read(&[blocks(1), blocks(1)], short(2));
    check_read(&[blocks(1), blocks(0)], short(1));
    check_read(&[blocks(0)], short(0));
    check_read(&[Ok(100)], Err(Fault::Short { wanted_bytes: 3 * BLOCK, got_bytes: 100 }));
    check_read(&[Err(libc::EIO)], Err(Fault::Os(libc::EIO)));
    check_read(&[blocks(1), Err(libc::EIO)], Err(Fault::Os(libc::EIO)));
    check_read(&[Err(libc::EAGAIN), blocks(3)], Ok(3 * BLOCK_BYTES));
    check_read(&[Err(libc::EINTR), Err(libc::EINTR)], Err(Fault::Os(libc::EINTR)));
}

#[test]
fn short_write_and_full_disk_are_faults_of_the_device() {
    let dir = TempDir::new();
    let directory = dir.open();
    let file = directory.create(BLOCK).expect("created").file;
    for (result, want) in [
        (Ok(BLOCK_BYTES), Fault::Short { wanted_bytes: 2 * BLOCK, got_bytes: BLOCK }),
        (Ok(0), Fault::Short { wanted_bytes: 2 * BLOCK, got_bytes: 0 }),
        // Written blocks are overwritten: there is no such thing as no space for them.
        (Err(libc::ENOSPC), Fault::Os(libc::ENOSPC)),
        (Err(libc::EINTR), Fault::Os(libc::EINTR)),
    ] {
        let data = Arena::new(MIB).allocate(2 * BLOCK_BYTES).expect("room").freeze();
        let transfer = Transfer::Write { position: 0, data, durable: true };
        let entry = Entry { token: Token(1), file, open: directory.file(file).expect("opens"), transfer };
        let Reaped::Done(Completion { outcome: Outcome::Written(Err(fault)), .. }) = entry.reaped(result) else { panic!("{result:?}") };
        assert_eq!(fault, want);
    }
}

// ── probe ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn probe_names_what_it_found() {
    let dir = TempDir::new();
    let directory = dir.open();
    let text = Probe::run(Some(&directory)).expect("runs").to_string();
    for subject in ["kernel: ", "io_uring: ", "huge pages: ", "data directory: ", "locked memory: ", "open files: "] {
        assert!(text.contains(subject), "{text}");
    }
}

#[test]
fn probe_names_cause_and_remedy() {
    let data = Some(("btrfs".into(), DirectIo::Buffered { reason: "the file system refuses O_DIRECT".into() }));
    let probe = Probe {
        kernel: "5.10.0".into(),
        io_uring: Err(RingRefused::Disabled(2)),
        huge_pages: HugePages::Never,
        data,
        memlock_bytes: Some(65536),
        nofile: Some(1024),
    };
    let text = probe.to_string();
    assert_eq!(text.matches("(remedy: ").count(), 6, "{text}");
    assert!(text.contains("io_uring_disabled is 2 (remedy: sysctl kernel.io_uring_disabled=0)"), "{text}");
    assert_eq!(probe::raise_nofile().expect("the soft limit can be raised"), Probe::run(None).expect("runs").nofile);
}

/// Runs `body` on a thread for which the system calls fail with `code`, as a container's seccomp profile makes them.
fn without(calls: &[i64], code: i32, body: impl FnOnce() + Send + 'static) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(code as u32);
    let arch = std::env::consts::ARCH.try_into().expect("a known processor");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a valid filter");
    let program: BpfProgram = filter.try_into().expect("compiles");
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("applies to this thread");
        body();
    });
    thread.join().expect("no panic");
}

#[test]
fn forbidden_ring_is_told_from_a_missing_one() {
    if probe::try_ring().is_err() {
        return;
    }
    without(&[libc::SYS_io_uring_setup], libc::EPERM, || assert_eq!(probe::try_ring(), Err(RingRefused::Forbidden)));
    without(&[libc::SYS_io_uring_setup], libc::ENOSYS, || assert_eq!(probe::try_ring(), Err(RingRefused::Missing)));
    without(&[libc::SYS_io_uring_register], libc::EPERM, || assert_eq!(probe::try_ring(), Err(RingRefused::TooOld)));
}

#[test]
fn durable_write_without_pwritev2_flushes_by_itself() {
    for code in [libc::ENOSYS, libc::EOPNOTSUPP] {
        without(&[libc::SYS_pwritev2], code, || {
            let dir = TempDir::new();
            let mut volume = FileVolume::new(dir.open());
            let file = volume.create(BLOCK).expect("created").file;
            volume.write_durable(file, 0, &[3; BLOCK_BYTES]).expect("written");
            let mut back = [0; BLOCK_BYTES];
            volume.read(file, 0, &mut back).expect("read");
            assert_eq!(back, [3; BLOCK_BYTES]);
        });
    }
}

#[test]
fn helper_thread_of_a_pinned_core_runs_anywhere() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let process = sched_getaffinity(Some(rustix::process::getpid())).expect("is known");
    std::thread::spawn(move || {
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&cpu| process.is_set(cpu)).expect("one at least"));
        sched_setaffinity(None, &one).expect("pinned");
        super::janitor::unpin_thread();
        assert!(sched_getaffinity(None).expect("is known") == process);
    })
    .join()
    .expect("no panic");
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}
