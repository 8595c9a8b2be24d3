//! References counted during the walk, one counter a block, by any number of threads at once.
//!
//! In pages of one bitmap's entries, allocated when first touched: two bits a block; a byte a block more once one of the
//! page has more than three references, and four bytes more once one has more than 258. Mappings lie anywhere on a data device,
//! so what counting costs is misses of the processor's caches: that is why it begins with two bits. Memory is bounded by the
//! length given to [`Counts::new`], whatever is counted.
//!
//! A count is the sum of its parts, and a part is only added to when the one before it is full. So no thread has to
//! wait for another, and nothing moves when a page grows.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// Entries in a page: those of a bitmap.
pub(super) const PAGE_ENTRIES: u64 = 16_320;
/// Bytes of a page's two bits a block: as many as a bitmap has.
const NARROW_BYTES: usize = (PAGE_ENTRIES / 4) as usize;

/// The most that two bits hold.
const NARROW_LIMIT: u8 = 3;

/// Counters of a page. Relaxed operations will do: nothing else is published by them, and who reads joined all threads before.
#[derive(Default)]
struct Page {
    /// Two bits a block, four blocks a byte.
    narrow: OnceLock<Box<[AtomicU8]>>,
    wide: OnceLock<Box<[AtomicU8]>>,
    widest: OnceLock<Box<[AtomicU32]>>,
}

impl Page {
    fn get(&self, offset: usize) -> u64 {
        let narrow = self.narrow.get().map_or(0, |bytes| narrow_of(bytes[offset / 4].load(Relaxed), offset));
        let wide = self.wide.get().map_or(0, |bytes| bytes[offset].load(Relaxed));
        let widest = self.widest.get().map_or(0, |words| words[offset].load(Relaxed));
        u64::from(narrow) + u64::from(wide) + u64::from(widest)
    }

    #[inline]
    fn add(&self, offset: usize) {
        let narrow = &self.narrow.get_or_init(|| zeros(NARROW_BYTES))[offset / 4];
        let one = 1 << (offset % 4 * 2);
        let mut byte = narrow.load(Relaxed);
        while narrow_of(byte, offset) < NARROW_LIMIT {
            match narrow.compare_exchange_weak(byte, byte + one, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => byte = other,
            }
        }
        self.add_widely(offset);
    }

    fn add_widely(&self, offset: usize) {
        let wide = &self.wide.get_or_init(|| zeros(PAGE_ENTRIES as usize))[offset];
        if wide.fetch_update(Relaxed, Relaxed, |count| count.checked_add(1)).is_err() {
            // No device holds as many references to one block as would overflow this.
            self.widest.get_or_init(|| zeros(PAGE_ENTRIES as usize))[offset].fetch_add(1, Relaxed);
        }
    }

    fn copy(&self) -> Self {
        let bytes = |bytes: &[AtomicU8]| bytes.iter().map(|byte| byte.load(Relaxed).into()).collect();
        let words = |words: &[AtomicU32]| words.iter().map(|word| word.load(Relaxed).into()).collect();
        let page = Page::default();
        drop(self.narrow.get().map(|found| page.narrow.set(bytes(found))));
        drop(self.wide.get().map(|found| page.wide.set(bytes(found))));
        drop(self.widest.get().map(|found| page.widest.set(words(found))));
        page
    }
}

fn narrow_of(byte: u8, offset: usize) -> u8 {
    byte >> (offset % 4 * 2) & NARROW_LIMIT
}

fn zeros<T: Default>(length: usize) -> Box<[T]> {
    (0..length).map(|_| T::default()).collect()
}

/// Reference counts of the blocks `0..length`.
pub(super) struct Counts {
    length: u64,
    pages: Vec<Page>,
}

impl Clone for Counts {
    fn clone(&self) -> Self {
        Counts { length: self.length, pages: self.pages.iter().map(Page::copy).collect() }
    }
}

impl Counts {
    /// All zero. The caller bounds `length` by something it has seen, not by a number that a device claims.
    pub(super) fn new(length: u64) -> Self {
        let pages = usize::try_from(length.div_ceil(PAGE_ENTRIES)).expect("the caller bounds the length");
        Counts { length, pages: zeros(pages).into_vec() }
    }

    /// Whether there is such a block.
    #[inline]
    pub(super) fn has(&self, block: u64) -> bool {
        block < self.length
    }

    /// One reference more. `false`, and nothing happens, when there is no such block.
    #[must_use]
    #[inline]
    pub(super) fn add(&self, block: u64) -> bool {
        if !self.has(block) {
            return false;
        }
        let (page, offset) = place_of(block);
        self.pages[page].add(offset);
        true
    }

    /// One reference less to a block that has one.
    pub(super) fn subtract(&mut self, block: u64) {
        let (page, offset) = place_of(block);
        let page = &mut self.pages[page];
        if let Some(count) = page.widest.get_mut().map(|words| words[offset].get_mut())
            && *count > 0
        {
            *count -= 1;
            return;
        }
        if let Some(count) = page.wide.get_mut().map(|bytes| bytes[offset].get_mut())
            && *count > 0
        {
            *count -= 1;
            return;
        }
        let bytes = page.narrow.get_mut().expect("the block has a reference");
        let byte = bytes[offset / 4].get_mut();
        assert!(narrow_of(*byte, offset) > 0, "the block has a reference");
        *byte -= 1 << (offset % 4 * 2);
    }

    /// Pages of [`PAGE_ENTRIES`] blocks.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    fn page(&self, index: u64) -> Option<&Page> {
        self.pages.get(usize::try_from(index).ok()?)
    }

    /// Hands every block of a page that has references to `each`, by its place in the page, with its count.
    pub(super) fn each_in_page(&self, index: u64, each: &mut dyn FnMut(usize, u64)) {
        let Some(page) = self.page(index).filter(|page| page.narrow.get().is_some()) else { return };
        for entry in 0..PAGE_ENTRIES as usize {
            match page.get(entry) {
                0 => {}
                count => each(entry, count),
            }
        }
    }

    /// A page's counts as plain numbers of two bits, as [`crate::format::Bitmap::plain_words`] has them; 3 is 3 or more.
    pub(super) fn plain_words(&self, index: u64) -> impl Iterator<Item = u64> + '_ {
        let bytes = self.page(index).and_then(|page| page.narrow.get());
        (0..NARROW_BYTES).step_by(8).map(move |at| {
            let byte = |i: usize| bytes.map_or(0, |bytes| bytes[at + i].load(Relaxed));
            u64::from_le_bytes(std::array::from_fn(byte))
        })
    }

    /// Whether any block has more than one reference.
    pub(super) fn has_shared(&self) -> bool {
        const SHARED: u64 = 0xaaaa_aaaa_aaaa_aaaa;
        (0..self.pages()).any(|page| self.plain_words(page).any(|word| word & SHARED != 0))
    }

    /// The references counted so far; 0 for what does not exist.
    pub(super) fn get(&self, block: u64) -> u64 {
        if !self.has(block) {
            return 0;
        }
        let (page, offset) = place_of(block);
        self.pages[page].get(offset)
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
        for _ in 0..258 {
            assert!(counts.add(7));
        }
        assert!(!counts.add(PAGE_ENTRIES + 1));
        assert!(!counts.add(u64::MAX));
        assert_eq!((counts.get(PAGE_ENTRIES), counts.get(7), counts.get(8)), (1000, 258, 0));
        assert!(counts.add(7));
        assert_eq!((counts.get(7), counts.get(u64::MAX)), (259, 0));
        let copy = counts.clone();
        for left in (0..259).rev() {
            counts.subtract(7);
            assert_eq!(counts.get(7), left);
        }
        assert!(counts.add(7));
        let mut found = Vec::new();
        counts.each_in_page(0, &mut |entry, count| found.push((entry, count)));
        counts.each_in_page(1, &mut |entry, count| found.push((entry, count)));
        assert_eq!(found, [(7, 1), (0, 1000)]);
        assert_eq!((copy.get(7), copy.get(PAGE_ENTRIES)), (259, 1000));
        assert_eq!(counts.plain_words(0).next(), Some(1 << 14));
        assert_eq!(counts.plain_words(1).collect::<Vec<_>>()[..2], [3, 0]);
    }

    #[test]
    fn a_page_grows_without_losing_its_neighbours() {
        let mut counts = Counts::new(PAGE_ENTRIES);
        for block in 0..8 {
            (0..block).for_each(|_| assert!(counts.add(block)));
            let found: Vec<_> = (0..8).map(|block| counts.get(block)).collect();
            let expected: Vec<_> = (0..8).map(|other| if other <= block { other } else { 0 }).collect();
            assert_eq!(found, expected);
            assert_eq!(counts.has_shared(), block > 1);
        }
        counts.subtract(1);
        assert_eq!((counts.get(0), counts.get(1), counts.get(2)), (0, 0, 2));
    }

    #[test]
    fn threads_lose_nothing() {
        let counts = Counts::new(64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..64 * 200 {
                        assert!(counts.add(round % 64));
                    }
                });
            }
        });
        assert!((0..64).all(|block| counts.get(block) == 800));
    }
}
