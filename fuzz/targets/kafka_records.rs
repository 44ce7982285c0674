#![no_main]

#[path = "../src/kafka_records.rs"]
mod kafka_records;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kafka_records::run(bytes));
