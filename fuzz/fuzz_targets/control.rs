//! `cargo +nightly fuzz run control`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("control", input));
