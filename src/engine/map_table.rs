//! The map of one volume in memory: read by lanes without locks, written by the keeper.
//!
//! A radix tree of three levels over packed mappings (`block << 24 | time`, as on disk); pages of 512 blocks are loaded on
//! first touch, so a table costs memory only for what is used: about 8 bytes a block. A page with nothing mapped costs a
//! bit, so that who reads all of a huge empty volume does not fill the memory. A lookup is four acquire loads at most.
//! Only the keeper calls [`MapTable::load_page`] and [`MapTable::set`].

use crate::units::{Mapping, VirtualBlock};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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
            holes: [const { AtomicU64::new(0) }; (DIRECTORY_PAGES / 64) as usize],
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

/// The map of one volume.
pub struct MapTable {
    blocks: u64,
    directories: Box<[OnceLock<Directory>]>,
}

impl MapTable {
    /// A table of `blocks` blocks, of which nothing is loaded.
    pub fn new(blocks: u64) -> Self {
        let directories = blocks.div_ceil(PAGE_BLOCKS * DIRECTORY_PAGES);
        MapTable { blocks, directories: (0..directories).map(|_| OnceLock::new()).collect() }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Looks `block` up, which must be inside the volume.
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
        let directory = self.directories[(page / DIRECTORY_PAGES) as usize].get()?;
        Some((directory, page % DIRECTORY_PAGES))
    }

    #[inline]
    fn entry(&self, block: VirtualBlock) -> Option<&AtomicU64> {
        let (directory, page) = self.directory(block)?;
        let page = directory.pages[page as usize].get()?;
        Some(&page[(block.0 % PAGE_BLOCKS) as usize])
    }

    /// The blocks of the page that holds `block`, cut at the volume's end.
    pub fn page_of(&self, block: VirtualBlock) -> Range<u64> {
        let begin = block.0 - block.0 % PAGE_BLOCKS;
        begin..(begin + PAGE_BLOCKS).min(self.blocks)
    }

    /// Keeper only: installs the page that begins at `page.start`, unless it is there. `mappings` lie inside it.
    pub fn load_page(&self, page: Range<u64>, mappings: &[(VirtualBlock, Mapping)]) {
        let number = page.start / PAGE_BLOCKS;
        let directory = self.directories[(number / DIRECTORY_PAGES) as usize].get_or_init(Directory::new);
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
        let mut block = range.start;
        while block < range.end {
            let page = self.page_of(VirtualBlock(block));
            if self.entry(VirtualBlock(block)).is_some() {
                for block in block..page.end.min(range.end) {
                    self.set(VirtualBlock(block), None);
                }
            }
            block = page.end;
        }
    }
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
        let table = MapTable::new(1300);
        assert_eq!(table.get(VirtualBlock(600)), Lookup::NotLoaded);
        table.set(VirtualBlock(600), Some(mapping(1))); // not loaded: loading will bring it
        assert_eq!(table.get(VirtualBlock(600)), Lookup::NotLoaded);
        table.load_page(table.page_of(VirtualBlock(600)), &[(VirtualBlock(600), mapping(1))]);
        assert_eq!(table.get(VirtualBlock(600)), Lookup::Mapped(mapping(1)));
        assert_eq!(table.get(VirtualBlock(601)), Lookup::Hole);
        assert_eq!(table.get(VirtualBlock(0)), Lookup::NotLoaded);
        table.set(VirtualBlock(601), Some(mapping(2)));
        assert_eq!(table.get(VirtualBlock(601)), Lookup::Mapped(mapping(2)));
        assert_eq!(table.page_of(VirtualBlock(1299)), 1024..1300);
    }

    #[test]
    fn empty_pages_take_no_memory_until_something_is_mapped() {
        let table = MapTable::new(PAGE_BLOCKS * DIRECTORY_PAGES * 2);
        for page in 0..2 * DIRECTORY_PAGES {
            table.load_page(table.page_of(VirtualBlock(page * PAGE_BLOCKS)), &[]);
        }
        let pages = || {
            let directories = table.directories.iter().filter_map(OnceLock::get);
            directories
                .flat_map(|directory| directory.pages.iter())
                .filter(|page| page.get().is_some())
                .count()
        };
        assert_eq!((table.get(VirtualBlock(5)), pages()), (Lookup::Hole, 0));
        table.set(VirtualBlock(6), None);
        table.clear(0..PAGE_BLOCKS * 3);
        assert_eq!((table.get(VirtualBlock(6)), pages()), (Lookup::Hole, 0));
        table.set(VirtualBlock(70 * PAGE_BLOCKS + 5), Some(mapping(1)));
        table.load_page(table.page_of(VirtualBlock(70 * PAGE_BLOCKS)), &[]);
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 5)), Lookup::Mapped(mapping(1)));
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 6)), Lookup::Hole);
        assert_eq!(pages(), 1);
        table.set(VirtualBlock(70 * PAGE_BLOCKS + 5), None);
        assert_eq!(table.get(VirtualBlock(70 * PAGE_BLOCKS + 5)), Lookup::Hole);
    }

    #[test]
    fn clear_unmaps_loaded_pages_and_skips_the_rest() {
        let table = MapTable::new(PAGE_BLOCKS * DIRECTORY_PAGES * 3);
        for page in [0, 1, 3] {
            let range = table.page_of(VirtualBlock(page * PAGE_BLOCKS));
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
}
