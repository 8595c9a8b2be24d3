//! How large the parts of map tables, and of the table of partial blocks, are. The model checker (`tests/loom`) has smaller ones.

/// Blocks in a page.
pub const PAGE_BLOCKS: u64 = 512;
/// Pages that are allocated together.
pub(super) const CHUNK_PAGES: u64 = 64;
/// Pages in a directory.
pub(super) const DIRECTORY_PAGES: u64 = 512;
/// Partial blocks of a page of their table.
pub(super) const PARTIALS_PAGE_BLOCKS: u64 = 512;
/// Entries of that table that are allocated together.
pub(super) const PARTIALS_CHUNK_ENTRIES: u64 = 64;
