//! How large the parts of map tables are. The model checker (`tests/loom`) has smaller ones.

/// Blocks in a page.
pub const PAGE_BLOCKS: u64 = 512;
/// Pages that are allocated together.
pub(super) const CHUNK_PAGES: u64 = 64;
/// Pages in a directory.
pub(super) const DIRECTORY_PAGES: u64 = 512;
