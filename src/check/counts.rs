//! References counted during the walk, one counter a block.
//!
//! In pages of one bitmap's entries, allocated when first touched: two bits a block, a byte a block once one of the page has
//! more than three references, and a table for what does not fit a byte. Mappings lie anywhere on a data device, so what
//! counting costs is misses of the processor's caches: that is why it is two bits. Memory is bounded by the length given to
//! [`Counts::new`]: at most a byte a block, but for the table.

use std::collections::HashMap;

/// Entries in a page: those of a bitmap.
pub(super) const PAGE_ENTRIES: u64 = 16_320;

/// A byte that says: look into the table.
const IN_TABLE: u8 = u8::MAX;
/// The most references that two bits hold.
const NARROW_LIMIT: u8 = 3;

#[derive(Clone)]
enum Page {
    Empty,
    /// Two bits a block, four blocks a byte.
    Narrow(Box<[u8]>),
    /// A byte a block.
    Wide(Box<[u8]>),
}

impl Page {
    /// What the page itself has of a count.
    fn get(&self, offset: usize) -> u8 {
        match self {
            Page::Empty => 0,
            Page::Narrow(bytes) => bytes[offset / 4] >> (offset % 4 * 2) & NARROW_LIMIT,
            Page::Wide(bytes) => bytes[offset],
        }
    }

    /// The page's bytes, one a block.
    fn widen(&mut self) -> &mut [u8] {
        if !matches!(self, Page::Wide(_)) {
            *self = Page::Wide((0..PAGE_ENTRIES as usize).map(|offset| self.get(offset)).collect());
        }
        match self {
            Page::Wide(bytes) => bytes,
            Page::Empty | Page::Narrow(_) => unreachable!("it was made wide above"),
        }
    }
}

/// Reference counts of the blocks `0..length`.
#[derive(Clone)]
pub(super) struct Counts {
    length: u64,
    pages: Vec<Page>,
    large: HashMap<u64, u64>,
}

impl Counts {
    /// All zero. The caller bounds `length` by something it has seen, not by a number that a device claims.
    pub(super) fn new(length: u64) -> Self {
        let pages = usize::try_from(length.div_ceil(PAGE_ENTRIES)).expect("the caller bounds the length");
        Counts { length, pages: vec![Page::Empty; pages], large: HashMap::new() }
    }

    /// One reference more. `false`, and nothing happens, when there is no such block.
    #[must_use]
    #[inline]
    pub(super) fn add(&mut self, block: u64) -> bool {
        if block >= self.length {
            return false;
        }
        let (page, offset) = place_of(block);
        if let Page::Narrow(bytes) = &mut self.pages[page] {
            let (byte, shift) = (&mut bytes[offset / 4], offset % 4 * 2);
            if *byte >> shift & NARROW_LIMIT < NARROW_LIMIT {
                *byte += 1 << shift;
                return true;
            }
        }
        self.add_slowly(block);
        true
    }

    /// To a page that is empty, or too narrow, or wide.
    fn add_slowly(&mut self, block: u64) {
        let (page, offset) = place_of(block);
        let page = &mut self.pages[page];
        if let Page::Empty = page {
            let mut bytes = vec![0; (PAGE_ENTRIES / 4) as usize];
            bytes[offset / 4] = 1 << (offset % 4 * 2);
            *page = Page::Narrow(bytes.into());
            return;
        }
        match &mut page.widen()[offset] {
            &mut IN_TABLE => *self.large.entry(block).or_insert(u64::from(IN_TABLE)) += 1,
            count => {
                *count += 1;
                if *count == IN_TABLE {
                    self.large.insert(block, u64::from(IN_TABLE));
                }
            }
        }
    }

    /// One reference less to a block that has one.
    pub(super) fn subtract(&mut self, block: u64) {
        let (page, offset) = place_of(block);
        let count = &mut self.pages[page].widen()[offset];
        if *count == IN_TABLE {
            let large = self.large.get_mut(&block).expect("the byte says so");
            *large -= 1;
            if *large < u64::from(IN_TABLE) {
                *count = *large as u8;
                self.large.remove(&block);
            }
        } else {
            *count = count.checked_sub(1).expect("the block has a reference");
        }
    }

    /// Pages of [`PAGE_ENTRIES`] blocks.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Hands every block of a page that has references to `each`, by its place in the page, with its count.
    pub(super) fn each_in_page(&self, index: u64, each: &mut dyn FnMut(usize, u64)) {
        let Some(page) = usize::try_from(index).ok().and_then(|index| self.pages.get(index)) else { return };
        if let Page::Empty = page {
            return;
        }
        for entry in 0..PAGE_ENTRIES as usize {
            match page.get(entry) {
                0 => {}
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
        match self.pages[page].get(offset) {
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

    #[test]
    fn a_page_grows_without_losing_its_neighbours() {
        let mut counts = Counts::new(PAGE_ENTRIES);
        for block in 0..8 {
            (0..block).for_each(|_| assert!(counts.add(block)));
            let found: Vec<_> = (0..8).map(|block| counts.get(block)).collect();
            let expected: Vec<_> = (0..8).map(|other| if other <= block { other } else { 0 }).collect();
            assert_eq!(found, expected);
        }
        counts.subtract(1);
        assert_eq!((counts.get(0), counts.get(1), counts.get(2)), (0, 0, 2));
    }
}
