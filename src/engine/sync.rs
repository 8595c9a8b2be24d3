//! What lanes and the keeper share without waiting for each other is made of these: the standard library's atomics, and locks that
//! are held for a moment. The model checker (`tests/loom`) puts its own in their place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard};
