//! `cargo +nightly fuzz run nbd_transmission`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| uthin::fuzz::run("nbd_transmission", input));
