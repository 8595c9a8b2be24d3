//! `cargo +nightly fuzz run format`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("format", input));
