//! Making a transaction durable (format §7.1).

use super::data_map::{index_entry, write_large_counts};
use super::open::{flush, write_superblock};
use super::space::Space;
use super::{Freed, Metadata, State};
use crate::checksum::BlockKind;
use crate::disk::{DataFlushed, Disk};
use crate::error::Result;
use crate::format::{BitmapMut, IndexEntry, InlineCount, MetadataIndex, SpaceMapRoot};
use crate::units::MetaBlock;
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

impl<D: Disk> Metadata<D> {
    /// Commits what there is to commit. The order is the promise:
    ///
    /// 1. The data disk was flushed, says `_data_first`: no mapping becomes durable before the data that it names.
    /// 2. Pending mappings into the trees (details follow at once), logged counts into the data space map; blocks that nobody
    ///    references any more lose their entries among the partial ones.
    /// 3. The metadata space map, last, because everything before allocates. From here on no block is allocated.
    /// 4. Every dirty block to its place, none of which the last commit uses; flush.
    /// 5. The superblock, in place; flush. Before this the old state is the durable one, after it the new.
    pub(super) fn commit_transaction(&mut self, _data_first: DataFlushed) -> Result<Freed> {
        self.apply_pending()?;
        if !self.is_dirty() {
            return Ok(Freed::new());
        }
        self.change(|this| {
            this.apply_counts()?;
            this.write_transaction()
        })
    }

    /// Steps 3 to 5.
    pub(super) fn write_transaction(&mut self) -> Result<Freed> {
        let mut superblock = self.superblock.clone();
        // Letting the metadata snapshot go changes counts and no block.
        let counts_changed = !self.space.references.metadata.changed_bitmaps().is_empty();
        if self.space.cache.dirty_blocks() > 0 || counts_changed || self.has_grown {
            self.data.write_index(&mut self.space)?;
            superblock.metadata_space_map = write_metadata_map(&mut self.space)?;
            superblock.data_space_map = self.data.root();
            superblock.mapping_root = self.mapping_root;
            superblock.details_root = self.details_root;
            superblock.set_partial_tree(self.partials.tree());
            self.space.cache.write_dirty(&self.space.disk)?;
            self.final_step(|this| flush(&this.space.disk))?;
        }
        superblock.time = self.time;
        superblock.transaction_id = self.transaction_id;
        superblock.held_root = self.held_root;
        superblock.set_journal(self.journal);
        self.final_step(|this| {
            write_superblock(&this.space.disk, &superblock.encode(MetaBlock::SUPERBLOCK))
        })?;
        self.superblock = superblock;
        self.space.references.metadata.committed();
        self.space.references.data.committed();
        self.space.tally.commit();
        self.has_grown = false;
        let freed = self.data.committed();
        self.partials.commit();
        if self.walk.is_some() && !self.is_covered() {
            self.end_count();
        }
        Ok(freed)
    }

    /// A step whose failure leaves open what the disk holds: it is never tried again.
    fn final_step(&mut self, step: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let result = step(self);
        if result.is_err() {
            self.state = State::Unknown;
        }
        result
    }
}

/// Brings the metadata space map into blocks of its own.
///
/// Writing it changes it: each bitmap goes to a new block, which changes the bitmap that has this block's count, and so on.
/// Blocks are taken for all that has changed until nothing new has; only then is anything filled in.
fn write_metadata_map<D: Disk>(space: &mut Space<D>) -> Result<SpaceMapRoot> {
    let large = space.references.metadata.take_large_changes();
    let large_root = write_large_counts(space, space.references.metadata.large_root, &large)?;
    space.references.metadata.large_root = large_root;

    let old_index = space.references.metadata.index_block;
    let old_entries: Option<MetadataIndex> = match old_index {
        Some(block) => Some(*MetadataIndex::of(space.cache.get(&space.disk, block, BlockKind::Index)?)),
        None => None,
    };
    let index_block = replace_block(space, old_index)?;
    let mut moved = vec![false; space.references.metadata.bitmaps.len()];
    loop {
        let changed = space.references.metadata.changed_bitmaps();
        let Some(bitmap) = changed.into_iter().find(|bitmap| !moved[*bitmap]) else { break };
        let old = space.references.metadata.bitmaps[bitmap];
        let new = replace_block(space, old)?;
        space.references.metadata.bitmaps[bitmap] = Some(new);
        moved[bitmap] = true;
    }

    let mut entries = old_entries.map_or([IndexEntry::new_zeroed(); _], |index| index.entries);
    for bitmap in (0..moved.len()).filter(|bitmap| moved[*bitmap]) {
        entries[bitmap] = fill_bitmap(space, bitmap);
    }
    let block = space.cache.create(index_block, BlockKind::Index);
    block.0.fill(0);
    MetadataIndex::of_mut(block).entries = entries;
    let map = &mut space.references.metadata;
    map.index_block = Some(index_block);
    Ok(SpaceMapRoot {
        total_blocks: U64::new(map.total()),
        allocated_blocks: U64::new(map.allocated()),
        bitmap_root: U64::new(index_block.0),
        large_counts_root: U64::new(large_root.0),
    })
}

/// A new block in place of one that the last commit uses.
fn replace_block<D: Disk>(space: &mut Space<D>, old: Option<MetaBlock>) -> Result<MetaBlock> {
    let new = space.allocate()?;
    if let Some(old) = old {
        space.release_block(old)?;
    }
    Ok(new)
}

/// Writes the counts of a bitmap into its block; the entry that leads to it.
fn fill_bitmap<D: Disk>(space: &mut Space<D>, bitmap: usize) -> IndexEntry {
    let number = space.references.metadata.bitmaps[bitmap].expect("the bitmap has just been given a block");
    let block = space.cache.create(number, BlockKind::Bitmap);
    let mut bits = BitmapMut::initialise(block);
    for (entry, count) in space.references.metadata.counts_of_bitmap(bitmap).iter().enumerate() {
        if *count > 0 {
            bits.set(entry, InlineCount::of(*count));
        }
    }
    index_entry(number, block)
}
