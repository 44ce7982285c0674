#![no_main]

#[path = "../src/native_frames.rs"]
mod native_frames;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| native_frames::run(bytes));
