//! What lanes and the keeper share without locks is made of these: the standard library's atomics. The model checker
//! (`tests/loom`) puts its own in their place.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
