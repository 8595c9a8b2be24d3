//! Bytes and values of one 4 KiB metadata block: pure, and never panicking on any input.
//!
//! Every kind of block of dm-thin metadata version 2 has a file here: [`Superblock`], [`Node`] (of any B-tree),
//! [`Bitmap`] (of either space map), [`MetadataIndex`]; the records inside them are in `records`. All integers are
//! little-endian. What must hold:
//!
//! - Reading takes any 4,096 bytes: what is wrong comes back as a fault with what was found and expected.
//! - What is read and written back unchanged is the same bytes, fields unknown to us included.
//!
//! Left to others: where blocks are (I/O), and everything that takes two blocks to see, such as key ranges between a
//! node and its parent, reference counts, and reachability.

mod base;
mod bitmap;
mod block;
mod index;
mod journal;
mod node;
mod node_mut;
mod records;
mod superblock;

pub use base::Base;
pub use bitmap::{BITMAP_ENTRIES, BITMAP_PLAIN_ENTRIES, Bitmap, BitmapMut, InlineCount};
pub use block::Block;
pub use index::{INDEX_ENTRIES, MetadataIndex};
pub use journal::{
    BootId, JOURNAL_HEADER_BYTES, JOURNAL_PAGE_BYTES, JOURNAL_SLOT_BYTES, JournalHeader, JournalPlace,
    JournalRecord, SLOTS_PER_PAGE,
};
pub use node::{Entries, Node, NodeFault, NodeHeader, NodeKind, NodeValue, capacity, smallest_occupancy};
pub use node_mut::{EntryBytes, NodeMut};
pub use records::{
    DetailsRecord, IndexEntry, LargeCount, MappingRecord, PartialRecord, RootRecord, SPACE_MAP_ROOT_BYTES,
    SpaceMapRoot,
};
pub use superblock::{
    FEATURE_JOURNAL, FEATURE_PARTIAL_BLOCKS, FLAG_NEEDS_CHECK, JournalMark, METADATA_BLOCK_SECTORS,
    PartialTree, SUPERBLOCK_MAGIC, SUPERBLOCK_VERSION, Superblock,
};

#[cfg(test)]
pub(crate) mod golden_tests;
