#![no_main]

#[path = "../src/kafka_session.rs"]
mod kafka_session;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kafka_session::run(bytes));
