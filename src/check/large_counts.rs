//! The counts of a space map that its bitmaps have no room for, as its tree of them has them: eight bytes each, by bitmap.

use super::counts::{Counts, PAGE_ENTRIES};
use crate::format::{BITMAP_PLAIN_ENTRIES, Bitmap};
use std::collections::BTreeMap;

/// The lower bit of every two.
const LOWER_BITS: u64 = 0x5555_5555_5555_5555;

#[derive(Clone, Copy)]
struct Large {
    /// In its bitmap.
    offset: u16,
    /// Whether a bitmap has asked for it.
    is_taken: bool,
    count: u32,
}

/// Large counts, taken by the bitmaps that ask for them.
#[derive(Default)]
pub(super) struct LargeCounts {
    pages: BTreeMap<u64, Vec<Large>>,
}

impl LargeCounts {
    /// Adds one. Blocks must ascend.
    pub(super) fn push(&mut self, block: u64, count: u32) {
        let offset = (block % PAGE_ENTRIES) as u16;
        self.pages.entry(block / PAGE_ENTRIES).or_default().push(Large { offset, is_taken: false, count });
    }

    /// Takes the count of a block, if there is one.
    pub(super) fn take(&mut self, block: u64) -> Option<u32> {
        let offset = (block % PAGE_ENTRIES) as u16;
        let page = self.pages.get_mut(&(block / PAGE_ENTRIES))?;
        let found = page.binary_search_by_key(&offset, |large| large.offset).ok()?;
        let is_first = !std::mem::replace(&mut page[found].is_taken, true);
        is_first.then_some(page[found].count)
    }

    /// Takes all counts of a bitmap's blocks.
    pub(super) fn take_page(&mut self, index: u64) {
        self.pages.remove(&index);
    }

    /// Whether there is a count for each block that a bitmap asks one for, and for no other, and each is what was counted.
    pub(super) fn is_page(&self, index: u64, bitmap: Bitmap<'_>, counts: &Counts) -> bool {
        let mut left = self.pages.get(&index).map_or(&[][..], Vec::as_slice).iter();
        for (word, plain) in (0_u64..).zip(bitmap.plain_words()) {
            let mut asking = plain & plain >> 1 & LOWER_BITS;
            while asking != 0 {
                let entry = word * BITMAP_PLAIN_ENTRIES as u64 + u64::from(asking.trailing_zeros() / 2);
                let is_right = left.next().is_some_and(|large| {
                    let counted = counts.get(index * PAGE_ENTRIES + entry);
                    u64::from(large.offset) == entry && u64::from(large.count) == counted && counted > 2
                });
                if !is_right {
                    return false;
                }
                asking &= asking - 1;
            }
        }
        left.next().is_none()
    }

    /// How many nobody has asked for, and the first block of those.
    pub(super) fn left(&self) -> (usize, Option<u64>) {
        let left = |page: &[Large]| page.iter().filter(|large| !large.is_taken).count();
        let first = self.pages.iter().find_map(|(index, page)| {
            let first = page.iter().find(|large| !large.is_taken)?;
            Some(index * PAGE_ENTRIES + u64::from(first.offset))
        });
        (self.pages.values().map(|page| left(page)).sum(), first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_left() {
        let mut large = LargeCounts::default();
        for (block, count) in [(3, 5), (9, 6), (PAGE_ENTRIES, 7), (PAGE_ENTRIES + 1, 8)] {
            large.push(block, count);
        }
        assert_eq!((large.take(9), large.take(9), large.take(4)), (Some(6), None, None));
        assert_eq!(large.left(), (3, Some(3)));
        assert_eq!(large.take(3), Some(5));
        assert_eq!(large.left(), (2, Some(PAGE_ENTRIES)));
        large.take_page(1);
        assert_eq!(large.left(), (0, None));
    }
}
