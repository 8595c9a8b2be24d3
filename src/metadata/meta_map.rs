//! The metadata space map: how often every metadata block is referenced.
//!
//! The counts live in core, so that asking costs nothing; bitmaps, index block and tree of large counts are written from
//! them at commit. A block is allocated only if its count is 0 now *and* was 0 at the last commit (format §6.6), because
//! a block freed in this transaction is still part of the state that a crash leads back to.
//!
//! Left to others: what the references are ([`super::space`]), and writing ([`super::commit`]).

use crate::error::{Error, Result};
use crate::format::BITMAP_ENTRIES;
use crate::units::MetaBlock;
use std::collections::BTreeSet;

/// From here on a count is in the tree of large counts.
const LARGE: u32 = 3;
const WORD_BITS: usize = 64;
const WORDS_PER_BITMAP: usize = BITMAP_ENTRIES / WORD_BITS;

pub(super) struct MetaMap {
    counts: Vec<u32>,
    /// One bit a block: not to be allocated, because its count is not 0 or was not at the last commit.
    blocked: Vec<u64>,
    /// One bit a block: its count was not 0 at the last commit.
    committed: Vec<u64>,
    /// One bit a block: it belongs to an earlier commit that is still read, and is blocked for that. Empty: there is none.
    pinned: Vec<u64>,
    available: u64,
    /// Blocks at the end of the device, all free, that operations must not count on ([`super::backing`]).
    withheld: u64,
    allocated: u64,
    /// No word of `blocked` below this one has a clear bit.
    cursor: usize,
    /// Whether a bitmap differs from its written form.
    changed_bitmaps: Vec<bool>,
    /// Blocks whose count was or became large in this transaction.
    large_changes: BTreeSet<u64>,
    /// Blocks with a large count, now.
    large_entries: u64,
    /// Whether a block with several holders has lost one in this transaction.
    lost_holders: bool,
    /// Where the bitmaps were written last; `None` for a new one.
    pub bitmaps: Vec<Option<MetaBlock>>,
    /// Where the index block was written last; `None` if never.
    pub index_block: Option<MetaBlock>,
    /// Root of the tree of large counts.
    pub large_root: MetaBlock,
}

impl MetaMap {
    /// The map of a device that is about to be formatted: only the superblock is in use.
    pub fn for_format(total_blocks: u64) -> Self {
        let mut counts =
            vec![0; usize::try_from(total_blocks).expect("the format's limit is far below 2^32")];
        counts[0] = 1;
        let bitmaps = counts.len().div_ceil(BITMAP_ENTRIES);
        let mut map = Self::committed_state(counts, vec![None; bitmaps], None, MetaBlock(0));
        map.changed_bitmaps.fill(true);
        map
    }

    /// The map as the last commit left it.
    pub fn committed_state(
        counts: Vec<u32>,
        bitmaps: Vec<Option<MetaBlock>>,
        index_block: Option<MetaBlock>,
        large_root: MetaBlock,
    ) -> Self {
        let mut committed = vec![u64::MAX; bitmaps.len() * WORDS_PER_BITMAP];
        for (word, counts) in committed.iter_mut().zip(counts.chunks(WORD_BITS)) {
            *word = used_bits(counts);
        }
        // Never the superblock, whatever its count says.
        committed[0] |= 1;
        let allocated = counts.iter().filter(|count| **count > 0).count() as u64;
        MetaMap {
            blocked: committed.clone(),
            available: committed.iter().map(|word| u64::from(word.count_zeros())).sum(),
            committed,
            pinned: Vec::new(),
            withheld: 0,
            allocated,
            cursor: 0,
            changed_bitmaps: vec![false; bitmaps.len()],
            large_changes: BTreeSet::new(),
            large_entries: counts.iter().filter(|count| **count >= LARGE).count() as u64,
            lost_holders: false,
            counts,
            bitmaps,
            index_block,
            large_root,
        }
    }

    /// Adds blocks to the end of the device, which can be allocated at once: nothing durable names them before the commit.
    pub fn grow(&mut self, total_blocks: u64) {
        let old = self.counts.len();
        let new = usize::try_from(total_blocks).expect("the format's limit is far below 2^32");
        self.counts.resize(new, 0);
        let bitmaps = new.div_ceil(BITMAP_ENTRIES);
        self.bitmaps.resize(bitmaps, None);
        self.changed_bitmaps.resize(bitmaps, true);
        for bits in [&mut self.committed, &mut self.blocked] {
            bits.resize(bitmaps * WORDS_PER_BITMAP, u64::MAX);
            for block in old..new {
                bits[block / WORD_BITS] &= !(1 << (block % WORD_BITS));
            }
        }
        if self.is_pinned() {
            self.pinned.resize(bitmaps * WORDS_PER_BITMAP, 0);
            for block in old..new {
                self.pinned[block / WORD_BITS] &= !(1 << (block % WORD_BITS));
            }
        }
        self.available += (new - old) as u64;
        self.cursor = self.cursor.min(old / WORD_BITS);
    }

    /// Blocks of the device.
    pub fn total(&self) -> u64 {
        self.counts.len() as u64
    }

    /// Blocks with a count above 0.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Blocks that this transaction can still allocate and count on.
    pub fn available(&self) -> u64 {
        self.available.saturating_sub(self.withheld)
    }

    /// Up to where blocks are counted on: from the first that is free on, they are allocated in order.
    pub fn counted_on(&self) -> u64 {
        self.total() - self.withheld
    }

    /// Counts on blocks below `end` only; all from there on are free.
    pub fn count_on(&mut self, end: u64) {
        debug_assert!(end > self.last_allocated(), "blocks in use are counted on");
        self.withheld = self.total().saturating_sub(end);
    }

    /// The last block with a count above 0.
    pub fn last_allocated(&self) -> u64 {
        self.counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u64
    }

    /// How many entries the tree of large counts has at most, before and after the next commit: those now, and those that
    /// it has to lose yet.
    pub fn large_entries_at_most(&self) -> u64 {
        self.large_entries + self.large_changes.len() as u64
    }

    /// The count of a block. `Corrupt` if there is no such block, or it is free although something references it.
    pub fn referenced(&self, block: MetaBlock) -> Result<u32> {
        match usize::try_from(block.0).ok().and_then(|index| self.counts.get(index)) {
            None => {
                let what = format!("found a reference to it, expected one below {}", self.total());
                Err(Error::corrupt(block, what))
            }
            Some(0) => Err(Error::corrupt(block, "found a reference to it, but its reference count is 0")
                .hint("the space map is wrong: check and repair the metadata before using it")),
            Some(count) => Ok(*count),
        }
    }

    /// The count of a block, 0 for blocks that do not exist.
    pub fn count(&self, block: u64) -> u32 {
        usize::try_from(block).ok().and_then(|index| self.counts.get(index)).copied().unwrap_or(0)
    }

    /// The counts that a bitmap holds, in order.
    pub fn counts_of_bitmap(&self, bitmap: usize) -> &[u32] {
        let begin = bitmap * BITMAP_ENTRIES;
        &self.counts[begin..self.counts.len().min(begin + BITMAP_ENTRIES)]
    }

    /// Takes the first block that is free now and was at the last commit, with a count of 1.
    pub fn allocate(&mut self) -> Option<MetaBlock> {
        while *self.blocked.get(self.cursor)? == u64::MAX {
            self.cursor += 1;
        }
        let bit = self.blocked[self.cursor].trailing_ones() as usize;
        let index = self.cursor * WORD_BITS + bit;
        self.blocked[self.cursor] |= 1 << bit;
        self.available -= 1;
        self.allocated += 1;
        self.counts[index] = 1;
        self.changed_bitmaps[index / BITMAP_ENTRIES] = true;
        Some(MetaBlock(index as u64))
    }

    /// One reference more to a block that has some.
    pub fn increment(&mut self, block: MetaBlock) -> Result<()> {
        let old = self.referenced(block)?;
        let new = old
            .checked_add(1)
            .ok_or_else(|| Error::corrupt(block, "found the largest reference count that there is"))?;
        self.set(block, old, new);
        Ok(())
    }

    /// One reference less; the number left.
    pub fn decrement(&mut self, block: MetaBlock) -> Result<u32> {
        let old = self.referenced(block)?;
        self.set(block, old, old - 1);
        self.lost_holders |= old > 1;
        Ok(old - 1)
    }

    /// Whether a block with several holders has lost one in this transaction: then a count of 1 does not mean that the
    /// last commit has a single holder too.
    pub fn has_lost_holders(&self) -> bool {
        self.lost_holders
    }

    /// From here on, what the last commit uses is not allocated, until [`MetaMap::unpin`].
    pub fn pin(&mut self) {
        self.unpin();
        self.pinned = self.committed.clone();
    }

    /// Whether an earlier commit is kept as it is.
    pub fn is_pinned(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// Lets go what only the pinned commit used; whether that is anything.
    pub fn unpin(&mut self) -> bool {
        let mut found = false;
        for (word, pinned) in std::mem::take(&mut self.pinned).into_iter().enumerate() {
            let counts = self.counts.chunks(WORD_BITS).nth(word).unwrap_or_default();
            let idle = match pinned & !self.committed[word] {
                0 => 0,
                candidates => candidates & !used_bits(counts),
            };
            if idle != 0 {
                self.blocked[word] &= !idle;
                self.available += u64::from(idle.count_ones());
                self.cursor = self.cursor.min(word);
                found = true;
            }
        }
        found
    }

    /// One bit a block: it has several holders.
    pub fn shared_bits(&self) -> Vec<u64> {
        let bits = |counts: &[u32]| {
            let shared = counts.iter().enumerate().filter(|(_, count)| **count > 1);
            shared.fold(0, |bits, (bit, _)| bits | 1 << bit)
        };
        self.counts.chunks(WORD_BITS).map(bits).collect()
    }

    fn is_pinned_bit(&self, word: usize, bit: u64) -> bool {
        self.pinned.get(word).is_some_and(|pinned| pinned & bit != 0)
    }

    fn set(&mut self, block: MetaBlock, old: u32, new: u32) {
        let index = block.0 as usize;
        self.counts[index] = new;
        self.changed_bitmaps[index / BITMAP_ENTRIES] = true;
        if old >= LARGE || new >= LARGE {
            self.large_changes.insert(block.0);
            self.large_entries = self.large_entries + u64::from(new >= LARGE) - u64::from(old >= LARGE);
        }
        if new == 0 {
            self.allocated -= 1;
            let (word, bit) = (index / WORD_BITS, 1 << (index % WORD_BITS));
            if self.committed[word] & bit == 0 && !self.is_pinned_bit(word, bit) {
                self.blocked[word] &= !bit;
                self.available += 1;
                self.cursor = self.cursor.min(word);
            }
        }
    }

    /// The blocks whose entry in the tree of large counts may have to change, with their counts, in ascending order.
    pub fn take_large_changes(&mut self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.large_changes).into_iter().map(|block| (block, self.count(block))).collect()
    }

    /// The bitmaps that differ from their written form.
    pub fn changed_bitmaps(&self) -> Vec<usize> {
        (0..self.changed_bitmaps.len()).filter(|bitmap| self.changed_bitmaps[*bitmap]).collect()
    }

    /// Notes that the state is the committed one now: what this transaction freed can be allocated by the next.
    pub fn committed(&mut self) {
        for bitmap in self.changed_bitmaps() {
            let begin = bitmap * WORDS_PER_BITMAP;
            let counts = &self.counts[bitmap * BITMAP_ENTRIES..];
            for (index, counts) in counts.chunks(WORD_BITS).take(WORDS_PER_BITMAP).enumerate() {
                self.committed[begin + index] = used_bits(counts);
                self.blocked[begin + index] = used_bits(counts);
            }
            self.changed_bitmaps[bitmap] = false;
        }
        self.committed[0] |= 1;
        self.blocked[0] |= 1;
        self.available = self.total() - self.allocated;
        for (word, pinned) in self.pinned.iter().enumerate() {
            let idle = pinned & !self.committed[word];
            self.blocked[word] |= idle;
            self.available -= u64::from(idle.count_ones());
        }
        self.cursor = 0;
        self.lost_holders = false;
    }
}

/// A bit for every count above 0, and for what is past the last count.
fn used_bits(counts: &[u32]) -> u64 {
    let free = counts.iter().enumerate().filter(|(_, count)| **count == 0);
    free.fold(u64::MAX, |bits, (bit, _)| bits & !(1 << bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(total: u64) -> MetaMap {
        MetaMap::for_format(total)
    }

    #[test]
    fn what_a_transaction_freed_is_not_allocated_in_it() {
        let mut map = map(100);
        let first: Vec<_> = (0..10).map(|_| map.allocate().unwrap().0).collect();
        assert_eq!(first, (1..11).collect::<Vec<_>>());
        map.committed();
        assert_eq!(map.decrement(MetaBlock(3)), Ok(0));
        assert_eq!(map.allocate(), Some(MetaBlock(11)));
        // Not part of the last commit: free again at once.
        assert_eq!(map.decrement(MetaBlock(11)), Ok(0));
        assert_eq!(map.allocate(), Some(MetaBlock(11)));
        assert_eq!((map.available(), map.allocated()), (100 - 12, 11));
        map.committed();
        assert_eq!(map.available(), 100 - 11);
        assert_eq!(map.allocate(), Some(MetaBlock(3)));
    }

    #[test]
    fn what_is_pinned_is_not_allocated_until_it_is_let_go() {
        let mut map = map(200);
        assert!((0..10).all(|_| map.allocate().is_some()));
        map.committed();
        map.pin();
        map.decrement(MetaBlock(3)).unwrap();
        map.committed();
        map.decrement(MetaBlock(4)).unwrap();
        map.committed();
        assert_eq!((map.available(), map.allocated()), (200 - 11, 9));
        assert_eq!(map.allocate(), Some(MetaBlock(11)), "3 and 4 are read");
        // Not pinned, and not part of the last commit: free again at once.
        map.decrement(MetaBlock(11)).unwrap();
        map.grow(40_000);
        assert_eq!(map.available(), 40_000 - 11);
        map.decrement(MetaBlock(5)).unwrap();
        assert!(map.unpin() && !map.is_pinned());
        assert_eq!(map.available(), 40_000 - 9, "5 still belongs to the last commit");
        assert_eq!([map.allocate(), map.allocate()], [Some(MetaBlock(3)), Some(MetaBlock(4))]);
        assert_eq!(map.allocate(), Some(MetaBlock(11)));
        assert!(!map.unpin());
    }

    #[test]
    fn it_ends_at_the_last_block_and_counts_down_to_it() {
        let mut map = map(BITMAP_ENTRIES as u64 + 70);
        let mut taken = 0;
        while map.allocate().is_some() {
            taken += 1;
            assert_eq!(map.available(), map.total() - 1 - taken);
        }
        assert_eq!((taken, map.available()), (map.total() - 1, 0));
        assert_eq!(map.changed_bitmaps(), [0, 1]);
    }

    #[test]
    fn references_that_cannot_be_are_corrupt() {
        let mut map = map(10);
        assert!(map.increment(MetaBlock(10)).unwrap_err().message().contains("expected one below 10"));
        assert!(map.decrement(MetaBlock(5)).unwrap_err().message().contains("its reference count is 0"));
        let block = map.allocate().unwrap();
        (0..2).for_each(|_| map.increment(block).unwrap());
        assert_eq!(map.large_entries_at_most(), 2);
        map.decrement(block).unwrap();
        assert_eq!((map.large_entries, map.take_large_changes()), (0, vec![(block.0, 2)]));
    }
}
