//! uthin: dm-thin in userspace.
//!
//! A thin pool in the kernel's on-disk format (dm-thin metadata version 2), served as block devices without the
//! kernel target. Rooms, each importing only from those above it (a test enforces it):
//!
//! `units`, `error`, `checksum`, `manual` → `disk` → `format` → `metadata` → `journal` → `engine` → `driver` → `frontend` → `check` →
//! `control` → `cli`.
//!
//! Four rules hold the engine together:
//!
//! 1. Only the keeper changes the map.
//! 2. Lanes read it without locks and, while a request runs, show the epoch in which it began.
//! 3. What the keeper retires in epoch *e* is reused only when every lane has finished what it began in *e* or earlier
//!    and, for blocks, when the unmapping is durable.
//! 4. Who waits without bound (for a frozen volume, for space) holds no epoch.

pub mod check;
pub mod checksum;
pub mod cli;
pub mod control;
pub mod disk;
pub mod driver;
pub mod engine;
pub mod error;
pub mod format;
pub mod frontend;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod journal;
mod manual;
pub mod metadata;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod units;
