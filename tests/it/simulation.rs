//! The log on the simulated disk: everything happens, every planted mistake is caught, one seed is one history.
//!
//! Long suites: `cargo run --profile checked --example simulate -- --seeds 0..1000000`.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ringmain::log::Plant;
use ringmain::simulation::{PLANTS, Summary, run};

/// Runs the seeds on all cores until one finds something: what, or the sum of what happened.
fn search(seeds: std::ops::Range<u64>, plant: Option<Plant>) -> Result<Summary, String> {
    let next = AtomicU64::new(seeds.start);
    let found = AtomicBool::new(false);
    let result = Mutex::new(Ok(Summary::default()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, |count| count.get()) {
            scope.spawn(|| {
                let mut sum = Summary::default();
                while !found.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let wrong = match panic::catch_unwind(AssertUnwindSafe(|| run(seed, plant, false))) {
                        Ok(Ok(summary)) => {
                            sum.add(&summary);
                            continue;
                        }
                        Ok(Err(violation)) => violation.to_string(),
                        Err(_) => format!("seed {seed}: a panic"),
                    };
                    found.store(true, Ordering::Relaxed);
                    *result.lock().unwrap() = Err(wrong);
                }
                if let Ok(total) = result.lock().unwrap().as_mut() {
                    total.add(&sum);
                }
            });
        }
    });
    result.into_inner().unwrap()
}

fn check_plant(name: &str) {
    let plant = PLANTS.iter().find(|(other, _)| *other == name).expect("a plant of that name").1;
    match search(0..1_000, Some(plant)) {
        Ok(_) => panic!("{name} isn't caught within 1,000 seeds"),
        Err(caught) => println!("{name}: {caught}"),
    }
}

#[test]
fn ten_thousand_lives_keep_every_promise_and_see_everything() {
    let total = search(1_000_000..1_010_000, None).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(total.never_seen(), Vec::<&str>::new(), "{total:?}");
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..20 {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first, second);
    }
}

#[test]
fn ack_before_flush_is_caught() {
    check_plant("ack-before-flush");
}

#[test]
fn salt_unchecked_is_caught() {
    check_plant("salt-unchecked");
}

#[test]
fn missing_mark_group_is_caught() {
    check_plant("no-mark-group");
}

#[test]
fn early_recycling_is_caught() {
    check_plant("recycle-early");
}

#[test]
fn sequences_across_epochs_are_caught() {
    check_plant("sequences-across-epochs");
}
