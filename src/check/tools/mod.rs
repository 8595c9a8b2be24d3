//! The smaller tools: each a question to a sound pool, answered without changing it.

pub(super) mod delta;
pub(super) mod list;
pub(super) mod rmap;
pub(super) mod size;
