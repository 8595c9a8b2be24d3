//! The metadata space map's index block (format §6.4): where its bitmaps are.

use super::block::Block;
use super::records::IndexEntry;
use crate::units::META_BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref};

/// Entries of the index block; the unused ones are zero.
pub const INDEX_ENTRIES: usize = 255;

/// The index block. Any block can be seen as one.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetadataIndex {
    checksum: U32,
    padding: U32,
    number: U64,
    /// One for each bitmap of the metadata device, in order.
    pub entries: [IndexEntry; INDEX_ENTRIES],
}

const _: () = assert!(size_of::<MetadataIndex>() == META_BLOCK_BYTES);

impl MetadataIndex {
    /// Sees `block` as an index block.
    pub fn of(block: &Block) -> &Self {
        transmute_ref!(&block.0)
    }

    /// Sees `block` as an index block that may be changed.
    pub fn of_mut(block: &mut Block) -> &mut Self {
        transmute_mut!(&mut block.0)
    }
}
