//! The fixed-size records inside blocks: the values of the B-trees' leaves, and the space map root.

use super::base::Base;
use crate::units::{Mapping, MetaBlock};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Leaf value of the upper mapping tree (key: volume): the root of that volume's own tree (format §1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RootRecord(pub U64);

impl RootRecord {
    /// For this root.
    pub fn new(root: MetaBlock) -> Self {
        RootRecord(U64::new(root.0))
    }

    /// The block that it names.
    pub fn root(self) -> MetaBlock {
        MetaBlock(self.0.get())
    }
}

/// Leaf value of a volume's tree (key: virtual block): a packed [`Mapping`] (format §5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MappingRecord(pub U64);

impl MappingRecord {
    /// For this mapping.
    pub fn new(mapping: Mapping) -> Self {
        MappingRecord(U64::new(mapping.pack()))
    }

    /// What it says. Whether the data block exists is for the caller to check.
    pub fn mapping(self) -> Mapping {
        Mapping::unpack(self.0.get())
    }
}

/// Leaf value of the details tree (key: volume; format §5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DetailsRecord {
    /// Mappings in the volume's tree.
    pub mapped_blocks: U64,
    /// The pool's transaction id when the volume was created.
    pub transaction_id: U64,
    /// The pool's time when the volume was created; for a snapshot, after the increment.
    pub creation_time: U32,
    /// The pool's time of the last snapshot it took part in.
    pub snapshotted_time: U32,
}

/// Where a bitmap is, and hints about it (format §6.3): leaf value of the data space map's index tree (key: index of the
/// bitmap), and element of the metadata index block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndexEntry {
    /// The bitmap's block.
    pub bitmap: U64,
    /// Entries with count 0 out of [`super::BITMAP_ENTRIES`], those past the end of the device included.
    pub free: U32,
    /// No entry below this one is free.
    pub none_free_before: U32,
}

impl IndexEntry {
    /// The bitmap's block.
    pub fn bitmap(self) -> MetaBlock {
        MetaBlock(self.bitmap.get())
    }
}

/// Leaf value of a tree of large counts (key: block): a count of 3 or more (format §6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LargeCount(pub U32);

/// Leaf value of the tree of partial blocks (key: data block), an extension of ours: which units of the block hold bytes
/// (format: `docs/decisions/0018-partial-blocks.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PartialRecord {
    /// Where the other units are: a packed [`Base`].
    pub base: U64,
    /// The units that are in the block itself, a bit each.
    pub mask: U64,
}

impl PartialRecord {
    /// For this base and these units.
    pub fn new(base: Base, mask: u64) -> Self {
        PartialRecord { base: U64::new(base.pack()), mask: U64::new(mask) }
    }

    /// Where the other units are. Whether that exists is for the caller to check.
    pub fn base(self) -> Base {
        Base::unpack(self.base.get())
    }

    /// What the entry of this data block adds to the sum of all ([`super::PartialTree::sum`]): a number that hardly another entry
    /// has.
    pub fn summand(self, block: u64) -> u64 {
        [block, self.base.get(), self.mask.get()].into_iter().fold(0, |mixed, word| {
            // Each step can be undone, so that no two values of one field give the same, and changes about half of all bits.
            let mixed = (mixed ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        })
    }
}

/// Bytes that the superblock has for a space map root. The record is shorter; the rest is zero.
pub const SPACE_MAP_ROOT_BYTES: usize = 128;

/// What the superblock says of a space map (format §6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpaceMapRoot {
    /// Blocks of the device that it describes.
    pub total_blocks: U64,
    /// Blocks with a count above 0.
    pub allocated_blocks: U64,
    /// Data: root of the tree of [`IndexEntry`]; metadata: the index block.
    pub bitmap_root: U64,
    /// Root of the tree of [`LargeCount`].
    pub large_counts_root: U64,
}

impl SpaceMapRoot {
    /// All zeros, as in the superblock's copy that a metadata snapshot holds.
    pub const ZERO: SpaceMapRoot = SpaceMapRoot {
        total_blocks: U64::ZERO,
        allocated_blocks: U64::ZERO,
        bitmap_root: U64::ZERO,
        large_counts_root: U64::ZERO,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DataBlock;

    /// The numbers are on disks.
    #[test]
    fn what_an_entry_adds_to_the_sum_is_what_it_always_was() {
        let zeros = PartialRecord::new(Base::Zeros, 1);
        let block = PartialRecord::new(Base::Block(DataBlock(8)), 0xff00);
        let found = [zeros.summand(0), zeros.summand(1), block.summand(0)];
        assert_eq!(found, [3400964856525257824, 7806873273932414515, 6385028497589577601]);
    }
}
