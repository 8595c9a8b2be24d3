//! Both space maps, written from the references counted.

use super::output::Output;
use super::tree::write_tree;
use crate::check::counts::{Counts, PAGE_ENTRIES};
use crate::checksum::BlockKind;
use crate::error::Result;
use crate::format::{
    Bitmap, BitmapMut, Block, IndexEntry, InlineCount, LargeCount, MetadataIndex, SpaceMapRoot,
};
use crate::units::MetaBlock;
use zerocopy::little_endian::{U32, U64};

/// Bitmaps that so many blocks take.
pub(super) fn bitmaps_for(blocks: u64) -> u64 {
    blocks.div_ceil(PAGE_ENTRIES)
}

/// Writes the data space map.
pub(super) fn write_data_map(output: &mut Output<'_>, counts: &Counts, blocks: u64) -> Result<SpaceMapRoot> {
    let mut entries = Vec::new();
    let mut allocated = 0;
    for index in 0..bitmaps_for(blocks) {
        let (block, taken) = bitmap_of(counts, index);
        let number = output.allocate()?;
        entries.push((index, index_entry(number, &block)));
        allocated += taken;
        output.put(number, block, BlockKind::Bitmap)?;
        output.reference(number);
    }
    let bitmap_root = write_tree(output, &entries)?;
    output.reference(bitmap_root);
    let large_counts_root = write_large_counts(output, counts)?;
    Ok(root_of(blocks, allocated, bitmap_root, large_counts_root))
}

/// Writes the metadata space map, the last that is allocated: it counts its own blocks too.
pub(super) fn write_metadata_map(output: &mut Output<'_>) -> Result<SpaceMapRoot> {
    // None of the map's own blocks has a large count.
    let counts = output.counts.clone();
    let large_counts_root = write_large_counts(output, &counts)?;
    let blocks = output.blocks();
    let numbers = (0..bitmaps_for(blocks)).map(|_| output.allocate()).collect::<Result<Vec<_>>>()?;
    let index_number = output.allocate()?;
    numbers.iter().chain([&index_number]).for_each(|number| output.reference(*number));
    let counts = output.counts.clone();
    let mut index_block = Block::ZERO;
    let mut allocated = 0;
    let entries = &mut MetadataIndex::of_mut(&mut index_block).entries;
    for ((index, number), entry) in (0..).zip(numbers).zip(entries) {
        let (block, taken) = bitmap_of(&counts, index);
        *entry = index_entry(number, &block);
        allocated += taken;
        output.put(number, block, BlockKind::Bitmap)?;
    }
    output.put(index_number, index_block, BlockKind::Index)?;
    Ok(root_of(blocks, allocated, index_number, large_counts_root))
}

fn root_of(
    blocks: u64,
    allocated: u64,
    bitmap_root: MetaBlock,
    large_counts_root: MetaBlock,
) -> SpaceMapRoot {
    SpaceMapRoot {
        total_blocks: U64::new(blocks),
        allocated_blocks: U64::new(allocated),
        bitmap_root: U64::new(bitmap_root.0),
        large_counts_root: U64::new(large_counts_root.0),
    }
}

/// One bitmap, and how many of its blocks are in use.
fn bitmap_of(counts: &Counts, index: u64) -> (Block, u64) {
    let mut block = Block::ZERO;
    let mut bitmap = BitmapMut::initialise(&mut block);
    let mut taken = 0;
    counts.each_in_page(index, &mut |entry, count| {
        bitmap.set(entry, InlineCount::of(u32::try_from(count).unwrap_or(u32::MAX)));
        taken += 1;
    });
    (block, taken)
}

fn index_entry(number: MetaBlock, block: &Block) -> IndexEntry {
    let bitmap = Bitmap::new(block);
    IndexEntry {
        bitmap: U64::new(number.0),
        free: U32::new(bitmap.free_entries()),
        none_free_before: U32::new(bitmap.first_free() as u32),
    }
}

/// The tree of the counts that do not fit into a bitmap.
fn write_large_counts(output: &mut Output<'_>, counts: &Counts) -> Result<MetaBlock> {
    let mut entries = Vec::new();
    for index in 0..counts.pages() {
        counts.each_in_page(index, &mut |entry, count| {
            if count > 2 {
                // More references than this do not fit onto a device of the largest size.
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                entries.push((index * PAGE_ENTRIES + entry as u64, LargeCount(U32::new(count))));
            }
        });
    }
    let root = write_tree(output, &entries)?;
    output.reference(root);
    Ok(root)
}
