//! Every mode in a small size, against a broker that can be told to misbehave.

use std::time::Duration;

use super::*;
use crate::fake::{Fake, Fault};

fn options(mode: Mode, fault: Fault) -> BenchOptions {
    let fake = Fake::start(fault, false);
    BenchOptions {
        mode,
        connect: Some(fake.address.to_string()),
        batch: 10,
        connections: Some(2),
        count: Some(1_000),
        preload_bytes: Some(20_000),
        fetch_bytes: 4_000,
        ..BenchOptions::default()
    }
}

fn measured(options: &BenchOptions) -> RunReport {
    measure(options, &Arc::new(Progress::default())).unwrap()
}

/// Runs it and tells what is wrong with it.
fn fault_of(options: &BenchOptions) -> String {
    let report = measured(options);
    assert_eq!(report.verified, report.fault_count == 0);
    report.fault.unwrap_or_default()
}

#[test]
fn produce_counts_exactly_and_is_verified() {
    for (batch, connections, partitions) in [(1, 1, 1), (1, 3, 2), (7, 2, 5), (100, 4, 4)] {
        let report = measured(&BenchOptions {
            batch,
            connections: Some(connections),
            partitions: Some(partitions),
            ..options(Mode::Produce, Fault::None)
        });
        assert_eq!((report.fault.as_deref(), report.verified), (None, true));
        assert_eq!((report.messages, report.recording.as_ref().unwrap().total.len()), (Some(1_000), 1_000));
        assert_eq!((report.size, report.batch, report.connections), (Some(100), Some(batch), Some(connections)));
        assert_eq!((report.broker_cpu_seconds_per_million, report.broker_rss_bytes, report.filesystem), (None, None, None));
        assert_eq!((report.io.as_deref(), report.device_bytes_per_payload_byte), (Some("memory"), Some(2.0)));
    }
}

#[test]
fn produce_with_keys_files_and_every_size_is_verified() {
    let path = std::env::temp_dir().join(format!("ringmain-perf-lines-{}", std::process::id()));
    std::fs::write(&path, "one\r\n\nthree and some more\n").unwrap();
    for changed in [
        BenchOptions { keys: 50, partitions: Some(3), ..options(Mode::Produce, Fault::None) },
        BenchOptions { payload_file: Some(path.clone()), ..options(Mode::Produce, Fault::None) },
        BenchOptions { payload_file: Some(path.clone()), ..options(Mode::Consume, Fault::None) },
        BenchOptions { size: 0, ..options(Mode::Produce, Fault::None) },
        BenchOptions { size: 15, ..options(Mode::Consume, Fault::None) },
        BenchOptions { size: 70_000, count: Some(100), ..options(Mode::Consume, Fault::None) },
        BenchOptions { size: 1_000, keys: 9, ..options(Mode::Consume, Fault::None) },
    ] {
        assert_eq!(fault_of(&changed), "", "{changed:?}");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn produce_by_time_opens_and_closes_its_window() {
    let short = Some(Duration::from_millis(200));
    let report = measured(&BenchOptions {
        count: None,
        warmup: Some(Duration::from_millis(50)),
        duration: short,
        ..options(Mode::Produce, Fault::None)
    });
    assert_eq!(report.fault, None);
    let (messages, rate) = (report.messages.unwrap(), report.messages_per_second.unwrap());
    assert!((report.window_seconds.unwrap() - 0.2).abs() < 0.001 && (rate - messages as f64 / 0.2).abs() < rate * 0.01, "{report:?}");
    assert!(!report.over_time.is_empty());
}

#[test]
fn forgotten_and_repeated_batches_show_in_the_offsets() {
    for partitions in [2, 1] {
        let forget = fault_of(&BenchOptions { partitions: Some(partitions), ..options(Mode::Produce, Fault::Forget { at: 7 }) });
        let repeat = fault_of(&BenchOptions { partitions: Some(partitions), ..options(Mode::Produce, Fault::Repeat { at: 7 }) });
        assert!(forget.starts_with("partition ") && repeat.starts_with("partition "), "{forget} / {repeat}");
    }
}

#[test]
fn refused_batch_ends_the_run_with_its_reason() {
    let error = measure(&options(Mode::Produce, Fault::Refuse { at: 3 }), &Arc::new(Progress::default())).unwrap_err();
    assert!(format!("{error:#}").contains("disk is full"), "{error:#}");
}

#[test]
fn consume_reads_everything_over_and_over() {
    for (connections, partitions) in [(1, 1), (2, 5), (3, 1)] {
        let report = measured(&BenchOptions {
            connections: Some(connections),
            partitions: Some(partitions),
            count: Some(10_000),
            ..options(Mode::Consume, Fault::None)
        });
        assert_eq!(report.fault, None);
        assert!(report.messages.unwrap() >= 10_000 && report.latency_us.p50.is_some());
    }
}

#[test]
fn consumed_data_that_is_wrong_is_noticed() {
    for (fault, words) in [
        (Fault::Lose { at: 5 }, "are missing"),
        (Fault::Swap { at: 5 }, "was next"),
        (Fault::Flip { at: 5 }, "checksum"),
        (Fault::DeliverTwice { at: 1 }, "came again"),
    ] {
        let found = fault_of(&BenchOptions { count: Some(3_000), ..options(Mode::Consume, fault) });
        assert!(found.contains(words), "{fault:?}: {found}");
        let unchecked = fault_of(&BenchOptions { verify: false, count: Some(3_000), ..options(Mode::Consume, fault) });
        assert_eq!(unchecked, "", "{fault:?}");
    }
}

#[test]
fn consume_round_robin_reads_one_partition_while_another_topic_is_written() {
    let changed = BenchOptions {
        connections: None,
        preload_round_robin: Some(2_048),
        produce_rate: Some(20_000.0),
        count: None,
        warmup: Some(Duration::ZERO),
        duration: Some(Duration::from_millis(200)),
        ..options(Mode::Consume, Fault::None)
    };
    let report = measured(&changed);
    assert_eq!((report.fault.as_deref(), report.partitions, report.batch), (None, Some(64), Some(15)));
    let background = report.background.unwrap();
    assert!(background.messages_per_second > 10_000.0, "{background:?}");
}

#[test]
fn end_to_end_receives_every_message_once() {
    for rate in [None, Some(20_000.0)] {
        for (connections, partitions) in [(1, 1), (3, 2), (2, 5)] {
            let report = measured(&BenchOptions {
                rate,
                connections: Some(connections),
                partitions: Some(partitions),
                ..options(Mode::EndToEnd, Fault::None)
            });
            assert_eq!(report.fault, None, "{rate:?} {connections} {partitions}");
            assert!(report.messages.unwrap() >= 1_000 && report.latency_us.p50.is_some());
        }
    }
    for (fault, words) in [(Fault::Swap { at: 5 }, "was next"), (Fault::Flip { at: 5 }, "checksum"), (Fault::Repeat { at: 5 }, "partition")]
    {
        let found = fault_of(&options(Mode::EndToEnd, fault));
        assert!(found.contains(words), "{fault:?}: {found}");
    }
}

#[test]
fn open_loop_keeps_its_rate_and_counts_every_message() {
    for (batch, rate) in [(1, 5_000.0), (100, 50_000.0)] {
        let report = measured(&BenchOptions {
            batch,
            rate: Some(rate),
            count: None,
            warmup: Some(Duration::from_millis(100)),
            duration: Some(Duration::from_millis(400)),
            ..options(Mode::Produce, Fault::None)
        });
        assert_eq!(report.fault, None);
        let expected = rate * 0.4;
        let recorded = report.recording.unwrap().total.len() as f64;
        assert!((recorded - expected).abs() <= 2.0, "{recorded} latencies, {expected} expected");
        assert!((report.messages_per_second.unwrap() - rate).abs() < rate * 0.25);
    }
}

/// At a few messages per second the generator sleeps between them: it mustn't oversleep.
#[test]
fn open_loop_at_a_low_rate_is_on_time() {
    let slow = BenchOptions { batch: 1, rate: Some(200.0), count: Some(60), ..options(Mode::Produce, Fault::None) };
    let report = measured(&slow);
    assert_eq!((report.fault.as_deref(), report.messages), (None, Some(60)));
    assert!(report.latency_us.p50.unwrap() < 1_000.0, "{:?}", report.latency_us);
}

/// A closed loop would record one long latency per request under way; an open loop has to record one for
/// each message that was due.
#[test]
fn open_loop_shows_a_stall_in_the_percentiles() {
    let stall = Fault::Stall { after: Duration::from_millis(200), length: Duration::from_millis(200) };
    let report = measured(&BenchOptions {
        batch: 1,
        in_flight: Some(4),
        rate: Some(5_000.0),
        count: None,
        warmup: Some(Duration::ZERO),
        duration: Some(Duration::from_millis(800)),
        ..options(Mode::Produce, stall)
    });
    assert_eq!(report.fault, None);
    let total = report.recording.unwrap().total;
    // A quarter of the messages were due during the stall; half of those waited for more than half of it.
    let slow = total.count_between(100_000_000, u64::MAX) as f64 / total.len() as f64;
    assert!((0.08..0.3).contains(&slow), "{slow} of {} messages waited for more than 100 ms", total.len());
    assert!(report.latency_us.max.unwrap() > 150_000.0);
}

#[test]
fn ping_answers_one_by_one() {
    let report = measured(&options(Mode::Ping, Fault::None));
    assert_eq!((report.fault.as_deref(), report.messages, report.batch, report.connections), (None, Some(1_000), Some(1), Some(1)));
    assert!(fault_of(&options(Mode::Ping, Fault::Repeat { at: 5 })).contains("was next"));
}

#[test]
fn tour_runs_everything_and_writes_it_down() {
    if let Err(error) = broker::DataDirectory::create(Some(std::path::Path::new("."))) {
        return eprintln!("no tour here: {error:#}");
    }
    let out = std::env::temp_dir().join(format!("ringmain-perf-out-{}", std::process::id()));
    let changed = BenchOptions {
        mode: Mode::Tour,
        count: None,
        duration: Some(Duration::from_millis(60)),
        out: Some(out.clone()),
        directory: Some(".".into()),
        ..options(Mode::Tour, Fault::None)
    };
    let outcome = run(&changed).unwrap();
    assert!(outcome.is_verified(), "{}", report::to_text(&outcome));
    let modes: Vec<&str> = outcome.runs.iter().map(|r| r.mode.as_str()).collect();
    assert_eq!(modes, ["limits", "produce", "produce", "produce", "produce", "consume", "ping", "produce"]);
    assert!(outcome.runs[7].rate.is_some());
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(json["runs"].as_array().map(Vec::len), Some(8));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.matches("<svg").count() >= 1 && page.contains("polyline") && !page.contains("src="), "{page}");
    assert!(std::fs::read_to_string(out.join("01-produce.hgrm")).unwrap().contains("#[Max"));
    assert!(out.join("07-produce.hlog").exists());
    let same = compare::compare(&out, &out, Format::Human).unwrap();
    assert!(same.contains("+0.0 %") && !same.contains("worse"), "{same}");
    std::fs::remove_dir_all(out).unwrap();
}

/// A script in the broker's place says that the fake is ready.
fn script(name: &str, text: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("ringmain-perf-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn broker_is_a_child_and_its_directory_goes_with_it() {
    let fake = Fake::start(Fault::None, false);
    let parent = std::env::current_dir().unwrap().join(format!("perf-test-{}", std::process::id()));
    std::fs::create_dir(&parent).unwrap();
    if let Err(error) = broker::DataDirectory::create(Some(&parent)) {
        eprintln!("no child broker here: {error:#}");
        return std::fs::remove_dir(&parent).unwrap();
    }
    let ready = format!("#!/bin/sh\necho starting >&2\necho 'ready native={} admin=off io=uring shards=1' >&2\nread end\n", fake.address);
    let program = script("ready", &ready);
    let child = BenchOptions {
        connect: None,
        program: Some(program.clone()),
        directory: Some(parent.clone()),
        ..options(Mode::Produce, Fault::None)
    };
    let report = measured(&child);
    assert_eq!((report.fault, report.io.as_deref()), (None, Some("uring")));
    assert!(report.broker_rss_bytes.is_some() && report.broker_cpu_seconds_per_million.is_some() && report.filesystem.is_some());
    std::fs::remove_file(program).unwrap();
    let program = script("refuses", "#!/bin/sh\necho 'error: no ring today' >&2\nexit 1\n");
    let error = measure(&BenchOptions { program: Some(program.clone()), ..child }, &Arc::new(Progress::default())).unwrap_err();
    assert!(format!("{error:#}").contains("no ring today"), "{error:#}");
    std::fs::remove_file(program).unwrap();
    // Nothing is left in it.
    std::fs::remove_dir(parent).unwrap();
}

#[test]
fn interrupted_run_ends_with_an_error() {
    let progress = Arc::new(Progress::default());
    progress.interrupted.store(true, Ordering::Relaxed);
    let error = measure(&options(Mode::Produce, Fault::None), &progress).unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}

#[test]
fn options_that_cannot_run_are_refused_by_name() {
    for (changed, words) in [
        (BenchOptions { batch: 0, ..BenchOptions::default() }, "--batch"),
        (BenchOptions { rate: Some(0.0), ..BenchOptions::default() }, "rate"),
        (BenchOptions { mode: Mode::EndToEnd, size: 8, ..BenchOptions::default() }, "--size"),
        (BenchOptions { size: 1 << 20, batch: 100, ..BenchOptions::default() }, "--batch"),
    ] {
        assert!(changed.check().unwrap_err().to_string().contains(words));
    }
}

/// What the generator itself costs: run with `cargo test --release -p ringmain-perf -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement, not a test"]
fn generator_cost() {
    for (mode, size, batch, connections, in_flight) in [
        (Mode::Produce, 100, 1, 16, 64),
        (Mode::Produce, 100, 100, 16, 8),
        (Mode::Produce, 100, 1_000, 16, 8),
        (Mode::Produce, 100, 1_000, 1, 1),
        (Mode::Produce, 1_024, 128, 16, 8),
        (Mode::Consume, 100, 1, 4, 8),
        (Mode::Consume, 100, 100, 4, 8),
        (Mode::Consume, 100, 1_000, 4, 8),
        (Mode::Consume, 1_024, 128, 4, 8),
    ] {
        let fake = Fake::start(Fault::None, mode == Mode::Produce);
        let report = measured(&BenchOptions {
            mode,
            connect: Some(fake.address.to_string()),
            client_core: Some(0),
            size,
            batch,
            connections: Some(connections),
            in_flight: Some(in_flight),
            warmup: Some(Duration::from_millis(500)),
            duration: Some(Duration::from_secs(2)),
            ..BenchOptions::default()
        });
        let cost = report.client_cpu_seconds_per_million.unwrap();
        println!("{}  client alone: {:.2} M msgs/s, {:.0} MB/s", report::one_line(&report), 1.0 / cost, size as f64 / cost);
    }
}
