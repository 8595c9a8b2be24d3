//! The memory that map tables are made of: pages of packed mappings, taken and given back by number.
//!
//! Who looks a page up by its number needs no lock, and a number that is out of date leads to a page of somebody else's but
//! never out of bounds. So nothing here is unsafe; that no lane follows such a number is the keeper's business, who gives
//! a page back only when all lanes have passed the epoch in which it was taken out of its table.

use super::sizes::{CHUNK_PAGES, PAGE_BLOCKS};
use super::sync::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Bytes in a page.
pub const PAGE_BYTES: u64 = PAGE_BLOCKS * 8;
/// No mapping packs to this: the data block would be the last of 2^40 at the last time of all, and the format's limit on
/// data devices (2^40 blocks of 64 KiB) lies far beyond what a 16 GiB metadata device can map.
pub(super) const HOLE: u64 = u64::MAX;

/// A page's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageSlot(pub u32);

/// The pages of all map tables of a pool. They grow in number and are used again; their memory is never given back.
#[derive(Default)]
pub struct Pages {
    chunks: Shelves<Box<[AtomicU64]>>,
    stock: Mutex<Stock>,
}

#[derive(Default)]
struct Stock {
    free: Vec<PageSlot>,
    /// Pages there have ever been.
    made: u32,
}

impl Pages {
    /// Bytes in pages that tables have.
    pub fn used_bytes(&self) -> u64 {
        let stock = self.stock();
        (u64::from(stock.made) - stock.free.len() as u64) * PAGE_BYTES
    }

    /// The entries of a page.
    #[inline]
    pub(super) fn get(&self, PageSlot(slot): PageSlot) -> &[AtomicU64] {
        let (chunk, page) = (u64::from(slot) / CHUNK_PAGES, u64::from(slot) % CHUNK_PAGES);
        let begin = (page * PAGE_BLOCKS) as usize;
        &self.chunks.get(chunk).expect("a page that was handed out")[begin..begin + PAGE_BLOCKS as usize]
    }

    /// Keeper only: a page of holes. Whoever publishes its number releases what was written to it.
    pub(super) fn take(&self) -> PageSlot {
        let mut stock = self.stock();
        let slot = stock.free.pop().unwrap_or_else(|| {
            let slot = PageSlot(stock.made);
            stock.made = stock.made.checked_add(1).expect("16 TiB of map do not fit into any memory");
            self.chunks.get_or_init(u64::from(slot.0) / CHUNK_PAGES, || {
                (0..CHUNK_PAGES * PAGE_BLOCKS).map(|_| AtomicU64::new(HOLE)).collect()
            });
            slot
        });
        drop(stock);
        self.get(slot).iter().for_each(|entry| entry.store(HOLE, Ordering::Relaxed));
        slot
    }

    /// A page that nobody can look at any more.
    pub(super) fn give_back(&self, slot: PageSlot) {
        self.stock().free.push(slot);
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().expect("nobody panics while holding this lock")
    }
}

type Shelf<T> = Box<[OnceLock<T>]>;

/// An array without an end that grows without a lock and without moving what is in it: shelf *n* has room for 2^*n* things.
pub(super) struct Shelves<T> {
    shelves: [OnceLock<Shelf<T>>; SHELVES],
}

/// Enough for the directories of all blocks that a `u64` can number, at 2^18 blocks each.
const SHELVES: usize = 64 - 18 + 1;

impl<T> Default for Shelves<T> {
    fn default() -> Self {
        Shelves { shelves: [const { OnceLock::new() }; SHELVES] }
    }
}

impl<T> Shelves<T> {
    #[inline]
    pub fn get(&self, index: u64) -> Option<&T> {
        let (shelf, place) = place_of(index);
        self.shelves[shelf].get()?[place].get()
    }

    pub fn get_or_init(&self, index: u64, make: impl FnOnce() -> T) -> &T {
        let (shelf, place) = place_of(index);
        let shelf =
            self.shelves[shelf].get_or_init(|| (0..1_u64 << shelf).map(|_| OnceLock::new()).collect());
        shelf[place].get_or_init(make)
    }

    /// What is there, with its index, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let shelves = self.shelves.iter().enumerate().filter_map(|(at, shelf)| Some((at, shelf.get()?)));
        shelves.flat_map(|(at, shelf)| {
            let first = (1_u64 << at) - 1;
            shelf
                .iter()
                .enumerate()
                .filter_map(move |(place, thing)| Some((first + place as u64, thing.get()?)))
        })
    }
}

/// On which shelf, and its place there.
#[inline]
fn place_of(index: u64) -> (usize, usize) {
    let shelf = (index + 1).ilog2();
    (shelf as usize, (index + 1 - (1 << shelf)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_have_places_of_their_own_up_to_the_last() {
        let places: Vec<_> = (0..8).map(place_of).collect();
        assert_eq!(places, [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0)]);
        assert!(place_of(u64::MAX >> 18).0 < SHELVES);
        let shelves = Shelves::default();
        for index in [900, 0, 3] {
            assert_eq!(*shelves.get_or_init(index, || index), index);
        }
        assert_eq!(*shelves.get_or_init(3, || 4), 3, "it is there already");
        assert_eq!((shelves.get(1), shelves.get(900)), (None, Some(&900)));
        assert_eq!(shelves.iter().collect::<Vec<_>>(), [(0, &0), (3, &3), (900, &900)]);
    }

    #[test]
    fn pages_are_used_again_and_begin_as_holes() {
        let pages = Pages::default();
        let slots: Vec<_> = (0..=CHUNK_PAGES).map(|_| pages.take()).collect();
        assert_eq!(pages.used_bytes(), (CHUNK_PAGES + 1) * PAGE_BYTES);
        for slot in &slots {
            pages.get(*slot)[7].store(u64::from(slot.0), Ordering::Relaxed);
        }
        let read = |slot: PageSlot| pages.get(slot)[7].load(Ordering::Relaxed);
        assert!(slots.iter().all(|slot| read(*slot) == u64::from(slot.0)), "each has its own memory");
        pages.give_back(slots[5]);
        assert_eq!(pages.used_bytes(), CHUNK_PAGES * PAGE_BYTES);
        assert_eq!((pages.take(), read(slots[5])), (slots[5], HOLE));
    }
}
