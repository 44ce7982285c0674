#![no_main]

#[path = "../src/native_control.rs"]
mod native_control;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| native_control::run(bytes));
