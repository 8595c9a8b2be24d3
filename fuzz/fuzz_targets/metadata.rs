//! `cargo +nightly fuzz run metadata`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("metadata", input));
