//! Everything that fuzzing has found worth keeping, and the beginnings it was given, through the same functions again.

#[path = "../../fuzz/src/kafka_request.rs"]
mod kafka_request;
#[path = "../../fuzz/src/kafka_session.rs"]
mod kafka_session;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        // Named first, so that a panic has a culprit; and every cut of it, which costs nothing.
        eprintln!("{}", path.display());
        for len in (0..=input.len()).rev().take(512) {
            run(&input[..len]);
        }
        count += 1;
    }
    assert!(count > 100, "{target}: {count} inputs");
}

#[test]
fn kafka_requests() {
    replay("kafka_request", kafka_request::run);
}

#[test]
fn kafka_sessions() {
    replay("kafka_session", kafka_session::run);
}
