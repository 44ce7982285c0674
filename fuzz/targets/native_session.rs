#![no_main]

#[path = "../src/native_session.rs"]
mod native_session;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| native_session::run(bytes));
