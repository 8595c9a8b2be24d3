//! What comes from outside, as arbitrary bytes: each target takes any input, and a panic is a bug.
//!
//! `fuzz/` (its own workspace, for `cargo fuzz`) gives these functions what libFuzzer thinks of; the tests here give them seeds and
//! mutations of seeds, the same ones every time, and measure memory beside (`UTHIN_FUZZ=N` for N inputs of each target). Only tests and
//! `cargo fuzz` compile this.

pub mod control;
#[cfg(test)]
mod memory;
pub mod metadata;
#[cfg(test)]
mod tests;

pub use crate::frontend::nbd::fuzz::{handshake as nbd_handshake, transmission as nbd_transmission};

/// A target's name, what takes an input, and how much memory it may take for an input of so many bytes.
pub struct Target {
    /// As its file in `fuzz/fuzz_targets` is called.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// The most bytes that it has at a time, beside the input.
    pub memory_bytes_limit: fn(usize) -> usize,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "format", run: metadata::format, memory_bytes_limit: |_| 64 << 10 },
    // The image, what was read of it, and what was changed.
    Target { name: "metadata", run: metadata::open_and_walk, memory_bytes_limit: |_| 8 << 20 },
    Target { name: "check", run: metadata::check_image, memory_bytes_limit: |_| 8 << 20 },
    Target { name: "nbd_handshake", run: nbd_handshake, memory_bytes_limit: |input| (1 << 20) + 600 * input },
    Target {
        name: "nbd_transmission",
        run: nbd_transmission,
        memory_bytes_limit: |input| (160 << 20) + 4 * input,
    },
    Target { name: "control", run: control::connection, memory_bytes_limit: |input| (2 << 20) + 4 * input },
    Target { name: "catalog", run: control::catalog, memory_bytes_limit: |input| (64 << 10) + 200 * input },
];

/// Gives `input` to the target of that name.
///
/// # Panics
///
/// If there is none; and where there is a bug.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is such a target");
    (target.run)(input);
}
