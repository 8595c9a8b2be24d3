//! `cargo +nightly fuzz run catalog`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("catalog", input));
