//! The map of one volume in memory: read by lanes without locks, written by the keeper.
//!
//! A radix tree over packed mappings (`block << 24 | time`, as on disk); pages of 512 blocks are loaded on first touch, so
//! a table costs memory only for what is used: about 8 bytes a block. A page with nothing mapped costs a bit, so that who
//! reads all of a huge empty volume does not fill the memory. The table has no end: shelf *n* has room for 2^*n*
//! directories, and a volume that grows finds the next shelf empty. A lookup is six acquire loads at most.
//! Only the keeper calls what changes it.

use super::sync::{AtomicU64, OnceLock, Ordering};
use crate::units::{Mapping, VirtualBlock};
use std::ops::{Range, RangeInclusive};

/// Blocks in a page.
pub const PAGE_BLOCKS: u64 = 512;
/// Pages in a directory.
const DIRECTORY_PAGES: u64 = 512;
/// No mapping packs to this: the data block would be the last of 2^40 at the last time of all, and the format's limit on
/// data devices (2^40 blocks of 64 KiB) lies far beyond what a 16 GiB metadata device can map.
const HOLE: u64 = u64::MAX;

type Page = Box<[AtomicU64]>;

/// The pages of a stretch of blocks.
struct Directory {
    pages: Box<[OnceLock<Page>]>,
    /// One bit a page: loaded, and nothing was mapped in it. The page, once there is one, knows better.
    holes: [AtomicU64; (DIRECTORY_PAGES / 64) as usize],
}

impl Directory {
    fn new() -> Self {
        Directory {
            pages: (0..DIRECTORY_PAGES).map(|_| OnceLock::new()).collect(),
            holes: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn is_hole(&self, page: u64) -> bool {
        self.holes[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }
}

/// What the table knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Nothing: the keeper must load the page.
    NotLoaded,
    /// It is not mapped.
    Hole,
    /// It is mapped here.
    Mapped(Mapping),
}

type Shelf = Box<[OnceLock<Box<Directory>>]>;

/// Shelves for all blocks that a `u64` can number.
const SHELVES: usize = (u64::MAX / (PAGE_BLOCKS * DIRECTORY_PAGES)).ilog2() as usize + 2;

/// The map of one volume.
pub struct MapTable {
    shelves: [OnceLock<Shelf>; SHELVES],
}

impl Default for MapTable {
    /// A table of which nothing is loaded.
    fn default() -> Self {
        MapTable { shelves: std::array::from_fn(|_| OnceLock::new()) }
    }
}

impl MapTable {
    /// Looks `block` up.
    #[inline]
    pub fn get(&self, block: VirtualBlock) -> Lookup {
        match self.entry(block) {
            Some(entry) => match entry.load(Ordering::Acquire) {
                HOLE => Lookup::Hole,
                raw => Lookup::Mapped(Mapping::unpack(raw)),
            },
            None => match self.directory(block) {
                Some((directory, page)) if directory.is_hole(page) => Lookup::Hole,
                Some(_) | None => Lookup::NotLoaded,
            },
        }
    }

    #[inline]
    fn directory(&self, block: VirtualBlock) -> Option<(&Directory, u64)> {
        let page = block.0 / PAGE_BLOCKS;
        let (shelf, place) = place_of(page / DIRECTORY_PAGES);
        let directory = self.shelves[shelf].get()?[place].get()?;
        Some((directory, page % DIRECTORY_PAGES))
    }

    #[inline]
    fn entry(&self, block: VirtualBlock) -> Option<&AtomicU64> {
        let (directory, page) = self.directory(block)?;
        let page = directory.pages[page as usize].get()?;
        Some(&page[(block.0 % PAGE_BLOCKS) as usize])
    }

    /// Keeper only: installs a page, unless it is there. `mappings` lie inside it.
    pub fn load_page(&self, page: Range<u64>, mappings: &[(VirtualBlock, Mapping)]) {
        let number = page.start / PAGE_BLOCKS;
        let (shelf, place) = place_of(number / DIRECTORY_PAGES);
        let shelf =
            self.shelves[shelf].get_or_init(|| (0..1_u64 << shelf).map(|_| OnceLock::new()).collect());
        let directory = shelf[place].get_or_init(|| Box::new(Directory::new()));
        let number = number % DIRECTORY_PAGES;
        if mappings.is_empty() {
            directory.holes[(number / 64) as usize].fetch_or(1 << (number % 64), Ordering::Release);
            return;
        }
        directory.pages[number as usize].get_or_init(|| {
            let entries = empty_page();
            for (block, mapping) in mappings {
                entries[(block.0 - page.start) as usize].store(pack(*mapping), Ordering::Relaxed);
            }
            entries // published by the OnceLock's release
        });
    }

    /// Keeper only: changes one block, if its page is loaded.
    pub fn set(&self, block: VirtualBlock, mapping: Option<Mapping>) {
        if let (Some(_), Some((directory, page))) = (mapping, self.directory(block))
            && directory.is_hole(page)
        {
            directory.pages[page as usize].get_or_init(empty_page);
        }
        if let Some(entry) = self.entry(block) {
            entry.store(mapping.map_or(HOLE, pack), Ordering::Release);
        }
    }

    /// Keeper only: unmaps `range` wherever it is loaded.
    pub fn clear(&self, range: Range<u64>) {
        for page in self.loaded_pages(range.clone()) {
            for block in page.start.max(range.start)..page.end.min(range.end) {
                self.set(VirtualBlock(block), None);
            }
        }
    }

    /// The pages that are loaded and have a block in `range`, in ascending order.
    pub fn loaded_pages(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut loaded = Vec::new();
        if range.is_empty() {
            return loaded;
        }
        let (first, last) = (range.start / PAGE_BLOCKS, (range.end - 1) / PAGE_BLOCKS);
        for (number, directory) in self.directories(first / DIRECTORY_PAGES..=last / DIRECTORY_PAGES) {
            let begin = number * DIRECTORY_PAGES;
            for page in first.max(begin)..=last.min(begin + DIRECTORY_PAGES - 1) {
                let in_directory = page - begin;
                if directory.pages[in_directory as usize].get().is_some() || directory.is_hole(in_directory) {
                    loaded.push(page_of(VirtualBlock(page * PAGE_BLOCKS)));
                }
            }
        }
        loaded
    }

    fn directories(&self, numbers: RangeInclusive<u64>) -> impl Iterator<Item = (u64, &Directory)> {
        let shelves = self.shelves.iter().enumerate().filter_map(|(at, shelf)| Some((at, shelf.get()?)));
        let all = shelves.flat_map(|(at, shelf)| {
            let first = (1_u64 << at) - 1;
            shelf.iter().enumerate().map(move |(place, directory)| (first + place as u64, directory))
        });
        all.filter(move |(number, _)| numbers.contains(number))
            .filter_map(|(number, directory)| Some((number, &**directory.get()?)))
    }
}

/// The blocks of the page that holds `block`.
pub fn page_of(block: VirtualBlock) -> Range<u64> {
    let begin = block.0 - block.0 % PAGE_BLOCKS;
    begin..begin.saturating_add(PAGE_BLOCKS)
}

/// Where the directory of that number is: on which shelf, and its place there.
#[inline]
fn place_of(directory: u64) -> (usize, usize) {
    let shelf = (directory + 1).ilog2();
    (shelf as usize, (directory + 1 - (1 << shelf)) as usize)
}

fn empty_page() -> Page {
    (0..PAGE_BLOCKS).map(|_| AtomicU64::new(HOLE)).collect()
}

fn pack(mapping: Mapping) -> u64 {
    let raw = mapping.pack();
    assert_ne!(raw, HOLE, "a mapping that looks like a hole");
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{DataBlock, SnapTime};

    fn mapping(block: u64) -> Mapping {
        Mapping { block: DataBlock(block), time: SnapTime(3) }
    }

    #[test]
    fn pages_are_unknown_until_loaded_and_then_follow_the_keeper() {
        let table = MapTable::default();
        assert_eq!(table.get(VirtualBlock(600)), Lookup::NotLoaded);
        table.set(VirtualBlock(600), Some(mapping(1))); // not loaded: loading will bring it
        assert_eq!(table.get(VirtualBlock(600)), Lookup::NotLoaded);
        table.load_page(page_of(VirtualBlock(600)), &[(VirtualBlock(600), mapping(1))]);
        assert_eq!(table.get(VirtualBlock(600)), Lookup::Mapped(mapping(1)));
        assert_eq!(table.get(VirtualBlock(601)), Lookup::Hole);
        assert_eq!(table.get(VirtualBlock(0)), Lookup::NotLoaded);
        table.set(VirtualBlock(601), Some(mapping(2)));
        assert_eq!(table.get(VirtualBlock(601)), Lookup::Mapped(mapping(2)));
        assert_eq!(page_of(VirtualBlock(1299)), 1024..1536);
    }

    #[test]
    fn empty_pages_take_no_memory_until_something_is_mapped() {
        let table = MapTable::default();
        for page in 0..2 * DIRECTORY_PAGES {
            table.load_page(page_of(VirtualBlock(page * PAGE_BLOCKS)), &[]);
        }
        let pages = || {
            let directories = table.directories(0..=u64::MAX);
            directories
                .flat_map(|(_, directory)| &directory.pages)
                .filter(|page| page.get().is_some())
                .count()
        };
        assert_eq!((table.get(VirtualBlock(5)), pages()), (Lookup::Hole, 0));
        table.set(VirtualBlock(6), None);
        table.clear(0..PAGE_BLOCKS * 3);
        assert_eq!((table.get(VirtualBlock(6)), pages()), (Lookup::Hole, 0));
        table.set(VirtualBlock(70 * PAGE_BLOCKS + 5), Some(mapping(1)));
        table.load_page(page_of(VirtualBlock(70 * PAGE_BLOCKS)), &[]);
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 5)), Lookup::Mapped(mapping(1)));
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 6)), Lookup::Hole);
        assert_eq!(pages(), 1);
        table.set(VirtualBlock(70 * PAGE_BLOCKS + 5), None);
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 5)), Lookup::Hole);
    }

    #[test]
    fn clear_unmaps_loaded_pages_and_skips_the_rest() {
        let table = MapTable::default();
        for page in [0, 1, 3] {
            let range = page_of(VirtualBlock(page * PAGE_BLOCKS));
            let all: Vec<_> = range.clone().map(|block| (VirtualBlock(block), mapping(block))).collect();
            table.load_page(range, &all);
        }
        table.clear(510..1540);
        assert_eq!(table.get(VirtualBlock(509)), Lookup::Mapped(mapping(509)));
        for block in [510, 511, 512, 1023, 1536, 1539] {
            assert_eq!(table.get(VirtualBlock(block)), Lookup::Hole, "{block}");
        }
        assert_eq!(table.get(VirtualBlock(1030)), Lookup::NotLoaded);
        assert_eq!(table.get(VirtualBlock(1540)), Lookup::Mapped(mapping(1540)));
    }

    #[test]
    fn directories_have_places_of_their_own_up_to_the_last_block() {
        let places: Vec<_> = (0..8).map(place_of).collect();
        assert_eq!(places, [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0)]);
        assert!(place_of(u64::MAX / (PAGE_BLOCKS * DIRECTORY_PAGES)).0 < SHELVES);
        let table = MapTable::default();
        assert_eq!(table.get(VirtualBlock(u64::MAX)), Lookup::NotLoaded);
        let far = VirtualBlock(PAGE_BLOCKS * DIRECTORY_PAGES * 6 + 700);
        for block in [far, VirtualBlock(3)] {
            table.load_page(page_of(block), &[(block, mapping(1))]);
            assert_eq!(table.get(block), Lookup::Mapped(mapping(1)));
        }
        assert_eq!(table.loaded_pages(0..u64::MAX), [0..512, page_of(far)]);
        assert_eq!(table.loaded_pages(1..far.0), [0..512, page_of(far)]);
        assert_eq!(table.loaded_pages(512..far.0).len(), 1);
        assert_eq!(table.loaded_pages(5..5), []);
    }
}
