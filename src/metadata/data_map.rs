//! The data space map: how often every data block is referenced, and which may be handed out.
//!
//! Counts live in bitmaps on the metadata device, read through the cache; their changes are collected
//! ([`super::data_log`]) and applied in batches. The index of the bitmaps lives in core, twice: as it is, and as it was at
//! the last commit. A block is handed out only if it is free in the *committed* bitmaps (which stay readable, because
//! nothing of the last commit is overwritten) and in none of three sets:
//!
//! - *reserved*: handed out, not mapped yet. No trace on disk: a crash leaks nothing.
//! - *taken*: mapped in this transaction.
//! - *withheld*: freed by a commit, but I/O that began before may still be under way.

use super::block_set::{BlockSet, PAGE_WORDS};
use super::data_log::Change;
use super::space::{Space, Span};
use super::tree::Inserter;
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::{
    BITMAP_ENTRIES, Bitmap, BitmapMut, Block, IndexEntry, InlineCount, LargeCount, NodeKind, SpaceMapRoot,
};
use crate::units::{DataBlock, MetaBlock};
use std::collections::BTreeSet;
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};

pub(super) struct DataMap {
    total: u64,
    allocated: u64,
    index: Vec<IndexEntry>,
    index_root: MetaBlock,
    index_nodes: u64,
    large_root: MetaBlock,
    large_nodes: u64,
    /// The index at the last commit.
    committed: Vec<IndexEntry>,
    /// Free blocks at the last commit.
    committed_free: u64,
    /// Bitmaps whose index entry is not in the tree yet: those changed since the last commit.
    changed: BTreeSet<usize>,
    reserved: BlockSet,
    taken: BlockSet,
    withheld: BlockSet,
    /// Blocks whose count fell to 0 in this transaction.
    freed: Vec<u64>,
    /// Bitmap and entry at which the search for a free block goes on.
    cursor: (usize, usize),
    /// The blocks of the cursor's bitmap, from the cursor on, that may be handed out. Made when needed.
    window: Option<Box<[u64; PAGE_WORDS]>>,
}

impl DataMap {
    /// The map of a pool being formatted: all free, with bitmaps and trees newly made.
    pub fn format<D: Disk>(space: &mut Space<D>, total: u64) -> Result<Self> {
        let index = (0..bitmaps_for(total)).map(|_| new_bitmap(space)).collect::<Result<Vec<_>>>()?;
        let before = space.references.metadata.allocated();
        let index_root = space.new_node::<IndexEntry>(NodeKind::Leaf)?;
        let mut inserter = Inserter::new(space, index_root);
        for (key, entry) in index.iter().enumerate() {
            inserter.insert(key as u64, *entry)?;
        }
        let index_root = inserter.root();
        let index_nodes = space.references.metadata.allocated() - before;
        let large_root = space.new_node::<LargeCount>(NodeKind::Leaf)?;
        let roots = (index_root, index_nodes, large_root, 1);
        Ok(Self::with(total, 0, index, roots))
    }

    /// The map of the last commit. `Corrupt` when the index does not cover the device exactly.
    pub fn open<D: Disk>(space: &mut Space<D>, root: &SpaceMapRoot) -> Result<Self> {
        let (index_root, large_root) =
            (MetaBlock(root.bitmap_root.get()), MetaBlock(root.large_counts_root.get()));
        let total = root.total_blocks.get();
        let entries = space.entries::<IndexEntry>(index_root)?;
        if entries.len() as u64 != bitmaps_for(total)
            || entries.iter().enumerate().any(|(index, (key, _))| index as u64 != *key)
        {
            let what = format!(
                "found a data space map with {} bitmaps for {total} data blocks, expected those numbered 0 to {}",
                entries.len(),
                bitmaps_for(total).saturating_sub(1)
            );
            return Err(Error::corrupt(index_root, what));
        }
        let index = entries.into_iter().map(|(_, entry)| entry).collect();
        let index_nodes = space.count_nodes::<IndexEntry>(index_root)?;
        let large_nodes = space.count_nodes::<LargeCount>(large_root)?;
        let roots = (index_root, index_nodes, large_root, large_nodes);
        Ok(Self::with(total, root.allocated_blocks.get(), index, roots))
    }

    fn with(
        total: u64,
        allocated: u64,
        index: Vec<IndexEntry>,
        roots: (MetaBlock, u64, MetaBlock, u64),
    ) -> Self {
        let (index_root, index_nodes, large_root, large_nodes) = roots;
        // The last bitmap counts what is past the end of the device as free.
        let tail = index.len() as u64 * BITMAP_ENTRIES as u64 - total;
        let free: u64 = index.iter().map(|entry| u64::from(entry.free.get())).sum();
        DataMap {
            total,
            allocated,
            committed: index.clone(),
            index,
            index_root,
            index_nodes,
            large_root,
            large_nodes,
            committed_free: free.saturating_sub(tail),
            changed: BTreeSet::new(),
            reserved: BlockSet::default(),
            taken: BlockSet::default(),
            withheld: BlockSet::default(),
            freed: Vec::new(),
            cursor: (0, 0),
            window: None,
        }
    }

    /// Adds blocks to the end of the device; they can be handed out at once. A crash before the next commit leads back to the
    /// old end, and to mappings that do not reach beyond it.
    pub fn grow<D: Disk>(&mut self, space: &mut Space<D>, total: u64) -> Result<()> {
        for bitmap in self.index.len()..bitmaps_for(total) as usize {
            let entry = new_bitmap(space)?;
            self.index.push(entry);
            self.committed.push(entry);
            self.changed.insert(bitmap);
        }
        self.committed_free += total - self.total;
        self.total = total;
        self.window = None;
        Ok(())
    }

    /// Blocks of the device.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Blocks with a count above 0, as far as changes have been applied.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Blocks handed out and not mapped yet.
    pub fn reserved(&self) -> u64 {
        self.reserved.len()
    }

    /// Nodes of the tree of large counts.
    pub fn large_nodes(&self) -> u64 {
        self.large_nodes
    }

    /// Bitmaps.
    pub fn bitmaps(&self) -> u64 {
        self.index.len() as u64
    }

    /// Where the bitmaps are.
    pub fn index(&self) -> &[IndexEntry] {
        &self.index
    }

    /// Nodes of the index tree.
    pub fn index_nodes(&self) -> u64 {
        self.index_nodes
    }

    /// Bitmaps that are still where the last commit wrote them.
    pub fn unchanged_bitmaps(&self) -> u64 {
        (self.index.len() - self.changed.len()) as u64
    }

    /// What the superblock is to say.
    pub fn root(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            total_blocks: U64::new(self.total),
            allocated_blocks: U64::new(self.allocated),
            bitmap_root: U64::new(self.index_root.0),
            large_counts_root: U64::new(self.large_root.0),
        }
    }

    /// Hands out a block, `wanted` if that is free; `None` if there is none.
    pub fn reserve<D: Disk>(
        &mut self,
        space: &mut Space<D>,
        wanted: Option<DataBlock>,
    ) -> Result<Option<DataBlock>> {
        // Where its bitmap cannot be read, another will do.
        if let Some(block) = wanted
            && let Ok(true) = self.reserve_exactly(space, block)
        {
            return Ok(wanted);
        }
        let unavailable = self.reserved.len() + self.taken.len() + self.withheld.len();
        if self.committed_free <= unavailable {
            return Ok(None);
        }
        // Once round, and the first bitmap again for what lies before the cursor.
        for _ in 0..=self.index.len() {
            let (bitmap, entry) = self.cursor;
            if self.window.is_none() && self.may_have_free(bitmap) {
                self.window = Some(Box::new(self.window_of(space, bitmap, entry)?));
            }
            let found = self.window.as_mut().and_then(|window| take_first_bit(window, entry / 64));
            if let Some(entry) = found {
                self.cursor = (bitmap, entry);
                let block = (bitmap * BITMAP_ENTRIES + entry) as u64;
                let new = self.reserved.insert(block);
                assert!(new, "data block {block} is handed out twice");
                return Ok(Some(DataBlock(block)));
            }
            self.window = None;
            self.cursor = (if bitmap + 1 < self.index.len() { bitmap + 1 } else { 0 }, 0);
        }
        Ok(None)
    }

    /// Hands out this block, if it may be; whether it did.
    pub fn reserve_exactly<D: Disk>(&mut self, space: &mut Space<D>, block: DataBlock) -> Result<bool> {
        let sets = [&self.reserved, &self.taken, &self.withheld];
        if block.0 >= self.total || sets.iter().any(|set| set.contains(block.0)) {
            return Ok(false);
        }
        let bitmap = self.committed[bitmap_of(block.0)].bitmap();
        let bytes = space.cache.get(&space.disk, bitmap, BlockKind::Bitmap)?;
        let count = Bitmap::new(bytes).get((block.0 % BITMAP_ENTRIES as u64) as usize);
        if count != InlineCount::Free {
            return Ok(false);
        }
        self.reserved.insert(block.0);
        if let Some(window) = self.window.as_mut().filter(|_| self.cursor.0 == bitmap_of(block.0)) {
            let entry = (block.0 % BITMAP_ENTRIES as u64) as usize;
            window[entry / 64] &= !(1 << (entry % 64));
        }
        Ok(true)
    }

    fn may_have_free(&self, bitmap: usize) -> bool {
        let sets = [&self.reserved, &self.taken, &self.withheld];
        self.committed[bitmap].free.get() > sets.iter().map(|set| set.len_in(bitmap)).sum()
    }

    fn window_of<D: Disk>(
        &self,
        space: &mut Space<D>,
        bitmap: usize,
        from_entry: usize,
    ) -> Result<[u64; PAGE_WORDS]> {
        let block = space.cache.get(&space.disk, self.committed[bitmap].bitmap(), BlockKind::Bitmap)?;
        let mut window = Bitmap::new(block).free_mask();
        for set in [&self.reserved, &self.taken, &self.withheld] {
            for (word, bits) in window.iter_mut().zip(set.bits_in(bitmap).into_iter().flatten()) {
                *word &= !bits;
            }
        }
        let end = (self.total - (bitmap * BITMAP_ENTRIES) as u64).min(BITMAP_ENTRIES as u64) as usize;
        clear_bits(&mut window, 0..from_entry);
        clear_bits(&mut window, end..BITMAP_ENTRIES);
        Ok(window)
    }

    /// Those of these blocks that may be handed out, as ranges.
    pub fn free_in<D: Disk>(&self, space: &mut Space<D>, blocks: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut free: Vec<Range<u64>> = Vec::new();
        let mut block = blocks.start;
        while block < blocks.end.min(self.total) {
            let bitmap = bitmap_of(block);
            let mask = self.window_of(space, bitmap, (block % BITMAP_ENTRIES as u64) as usize)?;
            let end = blocks.end.min(self.total).min((bitmap as u64 + 1) * BITMAP_ENTRIES as u64);
            for block in block..end {
                let entry = (block % BITMAP_ENTRIES as u64) as usize;
                match free.last_mut() {
                    _ if mask[entry / 64] >> (entry % 64) & 1 == 0 => {}
                    Some(last) if last.end == block => last.end += 1,
                    _ => free.push(block..block + 1),
                }
            }
            block = end;
        }
        Ok(free)
    }

    /// Takes back a block that was handed out and not mapped.
    pub fn release(&mut self, block: DataBlock) {
        let was = self.reserved.remove(block.0);
        assert!(was, "data block {} was released without having been reserved", block.0);
        self.window = None;
    }

    /// Notes that a block that was handed out is mapped.
    pub fn take(&mut self, block: DataBlock) {
        let was = self.reserved.remove(block.0);
        assert!(was, "data block {} was mapped without having been reserved", block.0);
        self.taken.insert(block.0);
    }

    /// Lets blocks that were freed be handed out again.
    pub fn make_reusable(&mut self, freed: Range<u64>) {
        self.withheld.remove_range(freed);
        self.window = None;
    }

    /// Takes over what must survive an abort: the blocks that old I/O may still reach.
    pub fn keep_withheld(&mut self, old: DataMap) {
        self.withheld = old.withheld;
    }

    /// Applies all logged changes to bitmaps and large counts.
    pub fn apply<D: Disk>(&mut self, space: &mut Space<D>) -> Result<()> {
        let changes = space.references.data.take();
        let mut large = Vec::new();
        for group in changes.chunk_by(|a, b| bitmap_of(a.block) == bitmap_of(b.block)) {
            self.apply_to_bitmap(space, bitmap_of(group[0].block), group, &mut large)?;
        }
        let before = space.references.metadata.allocated();
        self.large_root = write_large_counts(space, self.large_root, &large)?;
        self.large_nodes = self.large_nodes + space.references.metadata.allocated() - before;
        Ok(())
    }

    /// Applies changes within one bitmap. What is to change in the tree of large counts is added to `large`.
    fn apply_to_bitmap<D: Disk>(
        &mut self,
        space: &mut Space<D>,
        bitmap: usize,
        changes: &[Change],
        large: &mut Vec<(u64, u32)>,
    ) -> Result<()> {
        let number = self.index[bitmap].bitmap();
        let mut bytes = space.cache.get(&space.disk, number, BlockKind::Bitmap)?.clone();
        for change in changes {
            let entry = (change.block % BITMAP_ENTRIES as u64) as usize;
            let old = match Bitmap::new(&bytes).get(entry).exact() {
                Some(count) => count,
                None => self.large_count(space, change.block)?,
            };
            let new = u32::try_from(i64::from(old) + change.delta).map_err(|_| {
                let what = format!(
                    "found a reference count of {old} for data block {}, which {:+} references do not fit",
                    change.block, change.delta
                );
                Error::corrupt(number, what).hint("the space map is wrong: check and repair the metadata")
            })?;
            BitmapMut::new(&mut bytes).set(entry, InlineCount::of(new));
            if InlineCount::of(old) == InlineCount::Large || InlineCount::of(new) == InlineCount::Large {
                large.push((change.block, new));
            }
            self.allocated = self.allocated + u64::from(new > 0) - u64::from(old > 0);
            if new == 0 {
                self.freed.push(change.block);
            }
        }
        let number = self.place_bitmap(space, number, &bytes)?;
        self.index[bitmap] = index_entry(number, &bytes);
        self.changed.insert(bitmap);
        Ok(())
    }

    /// How many leaves name a block, as far as changes have been applied.
    pub fn count<D: Disk>(&self, space: &mut Space<D>, block: DataBlock) -> Result<u32> {
        let number = self.index[bitmap_of(block.0)].bitmap();
        let bytes = space.cache.get(&space.disk, number, BlockKind::Bitmap)?;
        match Bitmap::new(bytes).get((block.0 % BITMAP_ENTRIES as u64) as usize).exact() {
            Some(count) => Ok(count),
            None => self.large_count(space, block.0),
        }
    }

    fn large_count<D: Disk>(&self, space: &mut Space<D>, block: u64) -> Result<u32> {
        match space.lookup::<LargeCount>(self.large_root, block)? {
            Some(LargeCount(count)) => Ok(count.get()),
            None => Err(Error::corrupt(
                self.large_root,
                format_args!("found no entry for data block {block}, whose bitmap says that there is one"),
            )),
        }
    }

    /// Writes a bitmap's new bytes: in place if this transaction made the block, else to a new one.
    fn place_bitmap<D: Disk>(
        &self,
        space: &mut Space<D>,
        old: MetaBlock,
        bytes: &Block,
    ) -> Result<MetaBlock> {
        if space.is_ours(old) {
            *space.cache.dirty_mut(old) = bytes.clone();
            return Ok(old);
        }
        match space.references.metadata.referenced(old)? {
            1 => {}
            count => {
                return Err(Error::corrupt(
                    old,
                    format_args!("found {count} references to a bitmap, expected 1"),
                ));
            }
        }
        let new = space.allocate()?;
        *space.cache.create(new, BlockKind::Bitmap) = bytes.clone();
        space.release_block(old)?;
        Ok(new)
    }

    /// Brings the index of changed bitmaps into its tree, as the last step before the metadata's own space map.
    pub fn write_index<D: Disk>(&mut self, space: &mut Space<D>) -> Result<()> {
        let before = space.references.metadata.allocated();
        let mut inserter = Inserter::new(space, self.index_root);
        for bitmap in &self.changed {
            inserter.insert(*bitmap as u64, self.index[*bitmap])?;
        }
        self.index_root = inserter.root();
        self.index_nodes = self.index_nodes + space.references.metadata.allocated() - before;
        Ok(())
    }

    /// Blocks whose count fell to 0 in this transaction so far, in no order.
    pub fn freed(&self) -> &[u64] {
        &self.freed
    }

    /// Notes that the state is the committed one now. The blocks that it freed, which are withheld from now on.
    pub fn committed(&mut self) -> Vec<Range<u64>> {
        for bitmap in std::mem::take(&mut self.changed) {
            let (old, new) = (self.committed[bitmap].free.get(), self.index[bitmap].free.get());
            self.committed_free = (self.committed_free + u64::from(new)).saturating_sub(u64::from(old));
            self.committed[bitmap] = self.index[bitmap];
        }
        self.taken.clear();
        self.window = None;
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        for block in &freed {
            self.withheld.insert(*block);
        }
        freed.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[0] + run.len() as u64).collect()
    }
}

/// A bitmap of free blocks.
fn new_bitmap<D: Disk>(space: &mut Space<D>) -> Result<IndexEntry> {
    let number = space.allocate()?;
    BitmapMut::initialise(space.cache.create(number, BlockKind::Bitmap));
    Ok(IndexEntry {
        bitmap: U64::new(number.0),
        free: U32::new(BITMAP_ENTRIES as u32),
        none_free_before: U32::ZERO,
    })
}

/// Bitmaps that it takes to describe a device.
pub(super) fn bitmaps_for(total: u64) -> u64 {
    total.div_ceil(BITMAP_ENTRIES as u64)
}

fn bitmap_of(block: u64) -> usize {
    (block / BITMAP_ENTRIES as u64) as usize
}

/// The index entry for a bitmap, its hints exact.
pub(super) fn index_entry(number: MetaBlock, bytes: &Block) -> IndexEntry {
    let bitmap = Bitmap::new(bytes);
    IndexEntry {
        bitmap: U64::new(number.0),
        free: U32::new(bitmap.free_entries()),
        none_free_before: U32::new(bitmap.first_free() as u32),
    }
}

/// Brings counts, given in ascending order of their blocks, into a tree of large counts: those below 3 are not in it.
pub(super) fn write_large_counts<D: Disk>(
    space: &mut Space<D>,
    mut root: MetaBlock,
    counts: &[(u64, u32)],
) -> Result<MetaBlock> {
    let is_large = |count: u32| InlineCount::of(count) == InlineCount::Large;
    // Removing first keeps the tree as small as can be at every moment, which is what its budget counts on.
    for (block, _) in counts.iter().filter(|(_, count)| !is_large(*count)) {
        root = space.remove_range::<LargeCount>(root, Span { first: *block, last: *block })?;
    }
    let mut inserter = Inserter::new(space, root);
    for (block, count) in counts.iter().filter(|(_, count)| is_large(*count)) {
        inserter.insert(*block, LargeCount(U32::new(*count)))?;
    }
    Ok(inserter.root())
}

/// Clears and answers with the first set bit, looking from `word` on.
fn take_first_bit(mask: &mut [u64; PAGE_WORDS], word: usize) -> Option<usize> {
    let word = (word..PAGE_WORDS).find(|word| mask[*word] != 0)?;
    let bit = mask[word].trailing_zeros() as usize;
    mask[word] &= mask[word] - 1;
    Some(word * 64 + bit)
}

fn clear_bits(mask: &mut [u64; PAGE_WORDS], range: Range<usize>) {
    for (index, word) in mask.iter_mut().enumerate() {
        let (first, end) = (index * 64, index * 64 + 64);
        let (from, to) = (range.start.clamp(first, end) - first, range.end.clamp(first, end) - first);
        if from < to {
            *word &= !(u64::MAX >> (64 - (to - from)) << from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_range_are_cleared_and_no_others() {
        for range in [0..0, 0..64, 3..5, 60..200, 64..128, 16_300..16_320, 0..16_320] {
            let mut mask = [u64::MAX; PAGE_WORDS];
            clear_bits(&mut mask, range.clone());
            for entry in 0..BITMAP_ENTRIES {
                assert_eq!(
                    mask[entry / 64] >> (entry % 64) & 1 == 0,
                    range.contains(&entry),
                    "{entry} of {range:?}"
                );
            }
        }
    }

    #[test]
    fn first_bits_come_in_order() {
        let mut mask = [0; PAGE_WORDS];
        (mask[1], mask[254]) = (0b101, 1 << 63);
        let taken: Vec<_> = std::iter::from_fn(|| take_first_bit(&mut mask, 0)).collect();
        assert_eq!(taken, [64, 66, 16_319]);
    }
}
