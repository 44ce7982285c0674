#![no_main]

#[path = "../src/kafka_request.rs"]
mod kafka_request;

libfuzzer_sys::fuzz_target!(|message: &[u8]| kafka_request::run(message));
