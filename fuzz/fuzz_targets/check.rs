//! `cargo +nightly fuzz run check`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("check", input));
