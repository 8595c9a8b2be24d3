//! A set of data blocks as pages of bits, one page for the blocks of one bitmap. Pages come and go as needed.

use crate::format::BITMAP_ENTRIES;
use std::ops::Range;

/// Words of a page: one bit for every entry of a bitmap.
pub(super) const PAGE_WORDS: usize = BITMAP_ENTRIES / 64;

struct Page {
    bits: [u64; PAGE_WORDS],
    blocks: u32,
}

#[derive(Default)]
pub(super) struct BlockSet {
    pages: Vec<Option<Box<Page>>>,
    blocks: u64,
}

/// Page, word in the page, bit in the word.
fn place(block: u64) -> (usize, usize, u64) {
    let (page, entry) = (block / BITMAP_ENTRIES as u64, (block % BITMAP_ENTRIES as u64) as usize);
    (page as usize, entry / 64, 1 << (entry % 64))
}

impl BlockSet {
    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.blocks
    }

    /// Number of blocks among those of one bitmap.
    pub fn len_in(&self, bitmap: usize) -> u32 {
        self.page(bitmap).map_or(0, |page| page.blocks)
    }

    /// The bits of one bitmap's blocks.
    pub fn bits_in(&self, bitmap: usize) -> Option<&[u64; PAGE_WORDS]> {
        self.page(bitmap).map(|page| &page.bits)
    }

    fn page(&self, bitmap: usize) -> Option<&Page> {
        self.pages.get(bitmap)?.as_deref()
    }

    pub fn contains(&self, block: u64) -> bool {
        let (page, word, bit) = place(block);
        self.page(page).is_some_and(|page| page.bits[word] & bit != 0)
    }

    /// The first one after this block.
    pub fn next_after(&self, block: u64) -> Option<u64> {
        let first_in = |index: usize, from: usize, mask: u64| {
            let bits = self.bits_in(index)?;
            let masked = |word: usize| if word == from { bits[word] & mask } else { bits[word] };
            let word = (from..PAGE_WORDS).find(|word| masked(*word) != 0)?;
            Some((index * BITMAP_ENTRIES + word * 64) as u64 + u64::from(masked(word).trailing_zeros()))
        };
        let (page, word, bit) = place(block);
        let above = !(bit | (bit - 1));
        first_in(page, word, above)
            .or_else(|| (page + 1..self.pages.len()).find_map(|index| first_in(index, 0, u64::MAX)))
    }

    /// Whether it was not there.
    pub fn insert(&mut self, block: u64) -> bool {
        let (index, word, bit) = place(block);
        if index >= self.pages.len() {
            self.pages.resize_with(index + 1, || None);
        }
        let page =
            self.pages[index].get_or_insert_with(|| Box::new(Page { bits: [0; PAGE_WORDS], blocks: 0 }));
        let new = page.bits[word] & bit == 0;
        page.bits[word] |= bit;
        page.blocks += u32::from(new);
        self.blocks += u64::from(new);
        new
    }

    /// Whether it was there.
    pub fn remove(&mut self, block: u64) -> bool {
        let (index, word, bit) = place(block);
        let Some(slot) = self.pages.get_mut(index) else { return false };
        let Some(page) = slot else { return false };
        let there = page.bits[word] & bit != 0;
        page.bits[word] &= !bit;
        page.blocks -= u32::from(there);
        self.blocks -= u64::from(there);
        if page.blocks == 0 {
            *slot = None;
        }
        there
    }

    /// Removes those in `range`, of which any part may be absent.
    pub fn remove_range(&mut self, range: Range<u64>) {
        let end = range.end.min(self.pages.len() as u64 * BITMAP_ENTRIES as u64);
        let mut block = range.start;
        while block < end {
            let (page, ..) = place(block);
            let page_end = end.min((page as u64 + 1) * BITMAP_ENTRIES as u64);
            if self.pages[page].is_some() {
                (block..page_end).for_each(|block| {
                    self.remove(block);
                });
            }
            block = page_end;
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set() {
        let (mut set, mut model) = (BlockSet::default(), BTreeSet::new());
        let mut state = 1_u64;
        for _ in 0..50_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let block = (state >> 33) % 100_000;
            match state >> 60 {
                0..8 => assert_eq!(set.insert(block), model.insert(block)),
                8..15 => assert_eq!(set.remove(block), model.remove(&block)),
                _ => {
                    set.remove_range(block..block + 300);
                    model.retain(|other| !(block..block + 300).contains(other));
                }
            }
            assert_eq!(set.len(), model.len() as u64);
            assert_eq!(set.contains(block), model.contains(&block));
            assert_eq!(set.next_after(block), model.range(block + 1..).next().copied());
        }
        set.remove_range(0..u64::MAX);
        assert!(set.len() == 0 && set.pages.iter().all(Option::is_none));
    }
}
