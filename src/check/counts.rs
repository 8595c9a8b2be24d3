//! References counted during the walk, one counter a block.
//!
//! A byte a block in pages of one bitmap's entries, allocated when first touched, and a table for what does not fit a
//! byte. Memory is bounded by the length given to [`Counts::new`]: at most a byte a block.

use std::collections::HashMap;

/// Entries in a page: those of a bitmap.
pub(super) const PAGE_ENTRIES: u64 = 16_320;

/// A byte that says: look into the table.
const IN_TABLE: u8 = u8::MAX;

/// Reference counts of the blocks `0..length`.
#[derive(Clone)]
pub(super) struct Counts {
    length: u64,
    pages: Vec<Option<Box<[u8]>>>,
    large: HashMap<u64, u64>,
}

impl Counts {
    /// All zero. The caller bounds `length` by something it has seen, not by a number that a device claims.
    pub(super) fn new(length: u64) -> Self {
        let pages = usize::try_from(length.div_ceil(PAGE_ENTRIES)).expect("the caller bounds the length");
        Counts { length, pages: vec![None; pages], large: HashMap::new() }
    }

    /// One reference more. `false`, and nothing happens, when there is no such block.
    #[must_use]
    pub(super) fn add(&mut self, block: u64) -> bool {
        if block >= self.length {
            return false;
        }
        let (page, offset) = place_of(block);
        let page = self.pages[page].get_or_insert_with(|| vec![0; PAGE_ENTRIES as usize].into());
        match page[offset] {
            IN_TABLE => *self.large.entry(block).or_insert(u64::from(IN_TABLE)) += 1,
            ref mut count => {
                *count += 1;
                if *count == IN_TABLE {
                    self.large.insert(block, u64::from(IN_TABLE));
                }
            }
        }
        true
    }

    /// One reference less to a block that has one.
    pub(super) fn subtract(&mut self, block: u64) {
        let (page, offset) = place_of(block);
        let page = self.pages[page].as_mut().expect("the block has a reference");
        if page[offset] == IN_TABLE {
            let count = self.large.get_mut(&block).expect("the byte says so");
            *count -= 1;
            if *count < u64::from(IN_TABLE) {
                page[offset] = *count as u8;
                self.large.remove(&block);
            }
        } else {
            page[offset] -= 1;
        }
    }

    /// Pages of [`PAGE_ENTRIES`] blocks.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Hands every block of a page that has references to `each`, by its place in the page, with its count.
    pub(super) fn each_in_page(&self, index: u64, each: &mut dyn FnMut(usize, u64)) {
        let Some(Some(page)) = usize::try_from(index).ok().and_then(|index| self.pages.get(index)) else {
            return;
        };
        for (entry, count) in page.iter().enumerate().filter(|(_, count)| **count != 0) {
            match *count {
                IN_TABLE => each(entry, self.get(index * PAGE_ENTRIES + entry as u64)),
                count => each(entry, u64::from(count)),
            }
        }
    }

    /// The references counted so far; 0 for what does not exist.
    pub(super) fn get(&self, block: u64) -> u64 {
        if block >= self.length {
            return 0;
        }
        let (page, offset) = place_of(block);
        match self.pages[page].as_ref().map_or(0, |page| page[offset]) {
            IN_TABLE => self.large.get(&block).copied().unwrap_or(u64::from(IN_TABLE)),
            count => u64::from(count),
        }
    }
}

fn place_of(block: u64) -> (usize, usize) {
    // Below `length`, whose pages were allocated: both fit.
    ((block / PAGE_ENTRIES) as usize, (block % PAGE_ENTRIES) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_past_a_byte_and_only_what_exists() {
        let mut counts = Counts::new(PAGE_ENTRIES + 1);
        for _ in 0..1000 {
            assert!(counts.add(PAGE_ENTRIES));
        }
        for _ in 0..254 {
            assert!(counts.add(7));
        }
        assert!(!counts.add(PAGE_ENTRIES + 1));
        assert!(!counts.add(u64::MAX));
        assert_eq!((counts.get(PAGE_ENTRIES), counts.get(7), counts.get(8)), (1000, 254, 0));
        assert!(counts.add(7));
        assert_eq!(counts.get(7), 255);
        assert!(counts.add(7));
        assert_eq!((counts.get(7), counts.get(u64::MAX)), (256, 0));
        counts.subtract(7);
        counts.subtract(7);
        assert_eq!(counts.get(7), 254);
        let mut found = Vec::new();
        counts.each_in_page(0, &mut |entry, count| found.push((entry, count)));
        counts.each_in_page(1, &mut |entry, count| found.push((entry, count)));
        assert_eq!(found, [(7, 254), (0, 1000)]);
    }
}
