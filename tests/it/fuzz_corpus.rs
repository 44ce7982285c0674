//! Everything that fuzzing has found worth keeping, and the beginnings it was given, through the same functions again.

#[path = "../../fuzz/src/kafka_records.rs"]
mod kafka_records;
#[path = "../../fuzz/src/kafka_request.rs"]
mod kafka_request;
#[path = "../../fuzz/src/kafka_session.rs"]
mod kafka_session;
#[path = "../../fuzz/src/native_control.rs"]
mod native_control;
#[path = "../../fuzz/src/native_frames.rs"]
mod native_frames;
#[path = "../../fuzz/src/native_session.rs"]
mod native_session;

use std::path::Path;

/// Runs of one target, about: each input and so many of its cuts.
const RUNS: usize = 300_000;

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(inputs.len() > 100, "{target}: {} inputs", inputs.len());
    for path in &inputs {
        let input = std::fs::read(path).unwrap();
        // Named first, so that a panic has a culprit.
        eprintln!("{}", path.display());
        for len in (0..=input.len()).rev().take(RUNS.div_ceil(inputs.len())) {
            run(&input[..len]);
        }
    }
}

#[test]
fn kafka_requests() {
    replay("kafka_request", kafka_request::run);
}

#[test]
fn kafka_sessions() {
    replay("kafka_session", kafka_session::run);
}

#[test]
fn kafka_batches() {
    replay("kafka_records", kafka_records::run);
}

#[test]
fn native_frames_of_every_kind() {
    replay("native_frames", native_frames::run);
}

#[test]
fn native_messages() {
    replay("native_control", native_control::run);
}

#[test]
fn native_sessions() {
    replay("native_session", native_session::run);
}
