//! The map of one volume in memory: read by lanes without locks, written by the keeper.
//!
//! A radix tree of three levels over packed mappings (`block << 24 | time`, as on disk); pages of 512 blocks are loaded on
//! first touch, so a table costs memory only for what is used: about 8 bytes a block touched. A lookup is four
//! acquire loads at most. Only the keeper calls [`MapTable::load_page`] and [`MapTable::set`].

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
type Directory = Box<[OnceLock<Page>]>;

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
            None => Lookup::NotLoaded,
            Some(entry) => match entry.load(Ordering::Acquire) {
                HOLE => Lookup::Hole,
                raw => Lookup::Mapped(Mapping::unpack(raw)),
            },
        }
    }

    #[inline]
    fn entry(&self, block: VirtualBlock) -> Option<&AtomicU64> {
        let page = block.0 / PAGE_BLOCKS;
        let directory = self.directories[(page / DIRECTORY_PAGES) as usize].get()?;
        let page = directory[(page % DIRECTORY_PAGES) as usize].get()?;
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
        let directory = self.directories[(number / DIRECTORY_PAGES) as usize]
            .get_or_init(|| (0..DIRECTORY_PAGES).map(|_| OnceLock::new()).collect());
        directory[(number % DIRECTORY_PAGES) as usize].get_or_init(|| {
            let entries: Page = (0..PAGE_BLOCKS).map(|_| AtomicU64::new(HOLE)).collect();
            for (block, mapping) in mappings {
                entries[(block.0 - page.start) as usize].store(pack(*mapping), Ordering::Relaxed);
            }
            entries // published by the OnceLock's release
        });
    }

    /// Keeper only: changes one block, if its page is loaded.
    pub fn set(&self, block: VirtualBlock, mapping: Option<Mapping>) {
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
