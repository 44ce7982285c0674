//! What the simulated disk promises, so that a log's tests may rely on it.

use super::*;
use crate::device::Arena;

const FILE_BYTES: u64 = 16 * BLOCK_BYTES as u64;

/// A disk with one file of zeros, and the memory to write to it.
struct Bench {
    disk: SimDisk,
    arena: Arena,
    file: FileId,
    token: u64,
}

impl Bench {
    fn new(seed: u64, options: SimOptions) -> Bench {
        let mut disk = SimDisk::new(seed, options);
        let file = disk.create(FILE_BYTES).unwrap().file;
        Bench { disk, arena: Arena::new(64 << 20), file, token: 0 }
    }

    fn submit(&mut self, operation: Operation) {
        self.token += 1;
        self.disk.submit(Token(self.token), operation);
        self.disk.kick();
    }

    fn write(&mut self, block: u64, blocks: usize, byte: u8, durable: bool) {
        let mut data = self.arena.allocate(blocks * BLOCK_BYTES).unwrap();
        data.fill(byte);
        let operation = Operation::Write { file: self.file, position: block * BLOCK_BYTES as u64, data: data.freeze(), durable };
        self.submit(operation);
    }

    fn settle(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.disk.settle(&mut completions);
        completions
    }

    /// First byte of each sector of a block.
    fn block(&mut self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        self.disk.read(self.file, block * BLOCK_BYTES as u64, &mut bytes).unwrap();
        bytes.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect()
    }
}

/// Runs `step` under many seeds; it returns what it saw. All of `expected` must have been seen, and nothing else.
fn check(seeds: u64, expected: &[&str], mut step: impl FnMut(u64) -> String) {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..seeds {
        let outcome = step(seed);
        assert!(expected.contains(&outcome.as_str()), "seed {seed}: {outcome:?} isn't among {expected:?}");
        seen.insert(outcome);
    }
    assert_eq!(seen, expected.iter().map(|&outcome| outcome.to_owned()).collect());
}

fn describe(sectors: &[u8]) -> &'static str {
    let landed = sectors.iter().filter(|&&byte| byte == 7).count();
    assert!(sectors.iter().all(|&byte| byte == 7 || byte == 0));
    match landed {
        0 => "lost",
        8 => "landed",
        _ if sectors[..landed].iter().all(|&byte| byte == 7) => "prefix",
        _ => "torn",
    }
}

#[test]
fn durable_write_after_completion_survives() {
    check(200, &["landed"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, true);
        assert_eq!(bench.settle().len(), 1);
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn volatile_write_at_power_cut_is_lost_landed_or_torn() {
    check(400, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, false);
        bench.settle();
        assert_eq!(describe(&bench.block(0)), "landed");
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn in_flight_write_at_power_cut_is_lost_landed_or_torn() {
    check(400, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, true);
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn write_never_kicked_is_lost() {
    check(50, &["lost"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        let mut data = bench.arena.allocate(BLOCK_BYTES).unwrap();
        data.fill(7);
        bench.disk.submit(Token(1), Operation::Write { file: bench.file, position: 0, data: data.freeze(), durable: true });
        assert!(bench.settle().is_empty());
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn flush_saves_what_completed_before_it_and_nothing_else() {
    check(400, &["landed lost", "landed landed", "landed prefix", "landed torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, false);
        bench.settle();
        bench.submit(Operation::Flush { file: bench.file });
        bench.write(1, 1, 7, false);
        bench.settle();
        bench.disk.power_cut();
        format!("{} {}", describe(&bench.block(0)), describe(&bench.block(1)))
    });
}

#[test]
fn durable_write_saves_only_its_own_bytes() {
    check(400, &["landed lost", "landed landed", "landed prefix", "landed torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(1, 1, 7, false);
        bench.settle();
        bench.write(0, 1, 7, true);
        bench.settle();
        bench.disk.power_cut();
        format!("{} {}", describe(&bench.block(0)), describe(&bench.block(1)))
    });
}

#[test]
fn older_volatile_write_never_covers_a_durable_one() {
    check(200, &["landed"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 3, 9, false);
        bench.settle();
        bench.write(1, 1, 7, true);
        bench.settle();
        assert_eq!(bench.block(2), [9; 8]);
        bench.disk.power_cut();
        describe(&bench.block(1)).to_owned()
    });
}

#[test]
fn lying_flush_answers_and_saves_nothing() {
    check(400, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions { flush_lie: 1_000_000, ..SimOptions::default() });
        bench.write(0, 1, 7, true);
        assert!(matches!(bench.settle()[0].outcome, Outcome::Written(Ok(()))));
        bench.disk.flush(bench.file).unwrap();
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn flush_error_is_reported_once_and_dooms_the_bytes() {
    check(400, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, false);
        bench.settle();
        bench.disk.fail_next(Kind::Flush, Fault::Os(libc::EIO));
        for expected in [Err(Fault::Os(libc::EIO)), Ok(())] {
            bench.submit(Operation::Flush { file: bench.file });
            let Outcome::Flushed(result) = bench.settle().remove(0).outcome else { panic!() };
            assert_eq!(result, expected);
        }
        assert_eq!(bench.disk.counters().flushes_after_error, 1);
        bench.disk.power_cut();
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn short_write_leaves_at_most_the_prefix_it_names() {
    check(100, &["ok"], |seed| {
        let mut bench = Bench::new(seed, SimOptions { short_write: 1_000_000, ..SimOptions::default() });
        bench.write(0, 1, 7, true);
        let Outcome::Written(Err(Fault::Short { wanted_bytes, got_bytes })) = bench.settle().remove(0).outcome else { panic!() };
        assert!(wanted_bytes == 4096 && got_bytes < 4096);
        let sectors = bench.block(0);
        assert!(sectors.iter().enumerate().all(|(index, &byte)| (byte == 7) == ((index * SECTOR_BYTES) < got_bytes as usize)));
        "ok".to_owned()
    });
}

#[test]
fn process_crash_keeps_completed_writes_and_lets_the_others_drift_until_the_lock() {
    check(400, &["before lost", "before landed", "between landed", "after landed"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.write(0, 1, 7, false);
        bench.settle();
        bench.write(1, 1, 7, true);
        bench.disk.process_crash();
        assert_eq!(describe(&bench.block(0)), "landed");
        let mut at_once = [0; BLOCK_BYTES];
        bench.disk.peek(bench.file, BLOCK_BYTES as u64, &mut at_once);
        let before = at_once[0] == 7;
        bench.disk.list().unwrap();
        bench.disk.list().unwrap();
        bench.disk.peek(bench.file, BLOCK_BYTES as u64, &mut at_once);
        let between = at_once[0] == 7;
        bench.disk.lock();
        let landed = bench.block(1) == [7; 8];
        let digest = bench.disk.digest();
        bench.disk.list().unwrap();
        assert_eq!(digest, bench.disk.digest());
        match (before, between, landed) {
            (true, _, _) => "before landed",
            (_, true, _) => "between landed",
            (_, _, true) => "after landed",
            _ => "before lost",
        }
        .to_owned()
    });
}

#[test]
fn cut_fails_that_operation_and_all_later_ones() {
    check(200, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        let file = bench.file;
        bench.disk.cut_after(2);
        bench.disk.list().unwrap();
        let error = bench.disk.write_durable(file, 0, &[7; BLOCK_BYTES]).unwrap_err();
        assert!(is_power_cut(&error) && bench.disk.is_cut());
        assert!(is_power_cut(&bench.disk.write_durable(file, 4096, &[7; BLOCK_BYTES]).unwrap_err()));
        bench.write(2, 1, 7, true);
        assert!(matches!(bench.settle()[0].outcome, Outcome::Written(Err(POWER_CUT))));
        bench.disk.power_cut();
        assert_eq!((bench.block(1), bench.block(2)), (vec![0; 8], vec![0; 8]));
        describe(&bench.block(0)).to_owned()
    });
}

#[test]
fn released_file_is_acquired_again_with_its_old_content() {
    let mut bench = Bench::new(1, SimOptions::default());
    bench.write(0, 1, 7, true);
    bench.settle();
    bench.submit(Operation::Release { file: bench.file });
    bench.settle();
    bench.submit(Operation::Acquire { at_least_bytes: 2 * FILE_BYTES });
    let Outcome::Acquired(Ok(again)) = bench.settle().remove(0).outcome else { panic!() };
    assert_eq!(again, SegmentFile { file: bench.file, written_bytes: 2 * FILE_BYTES });
    assert_eq!(bench.block(0), [7; 8]);
    assert_eq!(bench.block(16), [0; 8]);
    assert!(bench.disk.pool().is_empty());
    assert_eq!(bench.disk.counters().recycled_files, 1);
}

#[test]
fn full_disk_refuses_new_and_longer_files_until_one_is_removed() {
    let mut bench = Bench::new(1, SimOptions { capacity_bytes: 3 * FILE_BYTES, ..SimOptions::default() });
    let other = bench.disk.create(FILE_BYTES).unwrap().file;
    for (operation, fault) in [
        (Operation::Acquire { at_least_bytes: 2 * FILE_BYTES }, true),
        (Operation::Extend { file: other, to_bytes: 3 * FILE_BYTES }, true),
        (Operation::Extend { file: other, to_bytes: 2 * FILE_BYTES }, false),
    ] {
        bench.submit(operation);
        let full = match bench.settle().remove(0).outcome {
            Outcome::Acquired(result) | Outcome::Extended(result) => result == Err(Fault::DiskFull),
            _ => panic!(),
        };
        assert_eq!(full, fault);
    }
    assert_eq!(bench.disk.create(FILE_BYTES).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    bench.disk.remove(other).unwrap();
    bench.disk.create(FILE_BYTES).unwrap();
}

#[test]
fn completions_come_in_any_order_and_stall_when_told() {
    check(100, &["in order", "out of order"], |seed| {
        let mut bench = Bench::new(seed, SimOptions::default());
        bench.disk.stall(true);
        (0..4).for_each(|block| bench.write(block, 1, 7, true));
        let mut completions = Vec::new();
        (0..100).for_each(|_| bench.disk.poll(&mut completions));
        assert!(completions.is_empty() && bench.disk.in_flight() == 4);
        bench.disk.stall(false);
        (0..100).for_each(|_| bench.disk.poll(&mut completions));
        assert_eq!(bench.disk.in_flight(), 0);
        let tokens: Vec<u64> = completions.iter().map(|completion| completion.token.0).collect();
        if tokens == [1, 2, 3, 4] { "in order" } else { "out of order" }.to_owned()
    });
}

#[test]
fn rot_flips_one_stable_bit() {
    let mut bench = Bench::new(1, SimOptions::default());
    bench.write(3, 1, 7, true);
    bench.settle();
    bench.disk.rot(bench.file, 3 * BLOCK_BYTES as u64 + 512, 3);
    assert_eq!(bench.block(3), [7, 15, 7, 7, 7, 7, 7, 7]);
}

#[test]
fn read_over_a_write_in_flight_sees_a_mixture() {
    check(3000, &["lost", "landed", "prefix", "torn"], |seed| {
        let mut bench = Bench::new(seed, SimOptions { in_order: true, ..SimOptions::default() });
        let into = bench.arena.allocate(BLOCK_BYTES).unwrap();
        bench.submit(Operation::Read { file: bench.file, position: 0, into });
        bench.write(0, 1, 7, true);
        let mut completions = Vec::new();
        while completions.is_empty() {
            bench.disk.poll(&mut completions);
        }
        let Outcome::Read(Ok(bytes)) = &completions[0].outcome else { panic!() };
        describe(&bytes.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect::<Vec<_>>()).to_owned()
    });
}

#[test]
fn fork_shares_no_future() {
    let mut bench = Bench::new(1, SimOptions::default());
    let fork = bench.disk.fork();
    let before = fork.digest();
    bench.write(0, 1, 7, true);
    bench.settle();
    assert_eq!(fork.digest(), before);
    assert_ne!(bench.disk.digest(), before);
}

#[test]
fn same_seed_gives_the_same_history() {
    let history = |seed| {
        let options = SimOptions { write_error: 50_000, short_write: 50_000, flush_lie: 50_000, ..SimOptions::default() };
        let mut bench = Bench::new(seed, options);
        let mut rng = Rng::new(seed);
        let mut completions = Vec::new();
        for step in 0..300 {
            let busy = bench.disk.in_flight() > 3;
            match rng.below(10) {
                0 => bench.disk.power_cut(),
                1 => bench.disk.process_crash(),
                2..6 if !busy => bench.write(step % 16, 1, rng.next_u64() as u8, rng.one_in(2)),
                _ => bench.disk.settle(&mut completions),
            }
            if busy {
                bench.disk.settle(&mut completions);
            }
        }
        (bench.disk.digest(), bench.disk.counters(), format!("{completions:?}").len())
    };
    assert_eq!(history(42), history(42));
    assert_ne!(history(42).0, history(43).0);
}

#[test]
#[should_panic(expected = "beyond the written end")]
fn write_beyond_the_written_end_is_a_bug() {
    Bench::new(1, SimOptions::default()).write(16, 1, 7, true);
}

#[test]
#[should_panic(expected = "in flight")]
fn release_under_a_read_is_a_bug() {
    let mut bench = Bench::new(1, SimOptions::default());
    let into = bench.arena.allocate(BLOCK_BYTES).unwrap();
    bench.submit(Operation::Read { file: bench.file, position: 0, into });
    bench.submit(Operation::Release { file: bench.file });
}
