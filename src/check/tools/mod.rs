//! The smaller tools: each a question to a sound pool. None changes its metadata.

pub(super) mod delta;
pub(super) mod explain;
pub(super) mod list;
pub(super) mod picture;
pub(super) mod rmap;
pub(super) mod shrink;
pub(super) mod size;
pub(super) mod trim;
