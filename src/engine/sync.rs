//! What the epochs are made of: the standard library's atomics. The model checker
//! (`tests/loom`) puts its own in their place.

pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
