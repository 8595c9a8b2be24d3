//! The map of one volume in memory: read by lanes without locks, written by the keeper.
//!
//! A radix tree over packed mappings (`block << 24 | time`, as on disk); pages of 512 blocks are loaded on first touch, so
//! a table costs memory only for what is used: about 8 bytes a block. A page with nothing mapped costs a bit, so that who
//! reads all of a huge empty volume does not fill the memory. A lookup is a few acquire loads. Only the keeper calls what
//! changes it.
//!
//! Pages that nobody has used for a while go when memory is to be saved, in two steps. A page that is *leaving* is not
//! there for lanes, who ask the keeper for it; the keeper still changes it, and may bring it back as it is. Once all lanes
//! have passed that epoch, it is forgotten. The first step is needed because the table may know more than the disk: that a
//! block has become exclusive. Whoever forgot that while a lane is writing the block in place would have it copied.

use super::pages::{HOLE, PageSlot, Pages, Shelves};
use super::sizes::{DIRECTORY_PAGES, PAGE_BLOCKS};
use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::units::{Mapping, VirtualBlock};
use std::ops::Range;
use std::sync::Arc;

/// The pages of a stretch of blocks.
struct Directory {
    /// One a page, see [`PageState`].
    states: Box<[AtomicU32]>,
    /// Loaded, and nothing was mapped in it. The page, once there is one, knows better.
    holes: Bits,
    /// Somebody has looked at it lately.
    used: Bits,
}

/// One bit a page.
struct Bits([AtomicU64; DIRECTORY_PAGES.div_ceil(64) as usize]);

impl Bits {
    fn none() -> Self {
        Bits(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    #[inline]
    fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    fn set(&self, page: u64) {
        self.0[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::Release);
    }

    fn clear(&self, page: u64) {
        self.0[(page / 64) as usize].fetch_and(!(1 << (page % 64)), Ordering::Release);
    }
}

/// Where a page is, packed into 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PageState {
    Absent,
    Here(PageSlot),
    /// Only the keeper looks at it.
    Leaving(PageSlot),
}

/// The bit of a packed state that says "leaving".
const LEAVING: u32 = 1 << 31;

impl PageState {
    #[inline]
    fn unpack(raw: u32) -> Self {
        match (raw & !LEAVING).checked_sub(1).map(PageSlot) {
            None => PageState::Absent,
            Some(slot) if raw & LEAVING == 0 => PageState::Here(slot),
            Some(slot) => PageState::Leaving(slot),
        }
    }

    fn pack(self) -> u32 {
        match self {
            PageState::Absent => 0,
            PageState::Here(PageSlot(slot)) => slot + 1,
            PageState::Leaving(PageSlot(slot)) => LEAVING | (slot + 1),
        }
    }
}

impl Directory {
    fn new() -> Self {
        Directory {
            states: (0..DIRECTORY_PAGES).map(|_| AtomicU32::new(0)).collect(),
            holes: Bits::none(),
            used: Bits::none(),
        }
    }

    #[inline]
    fn state(&self, page: u64) -> PageState {
        PageState::unpack(self.states[page as usize].load(Ordering::Acquire))
    }

    fn set_state(&self, page: u64, state: PageState) {
        self.states[page as usize].store(state.pack(), Ordering::Release);
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
    pages: Arc<Pages>,
    directories: Shelves<Box<Directory>>,
}

impl Drop for MapTable {
    /// Nobody looks at it any more.
    fn drop(&mut self) {
        for (_, directory) in self.directories.iter() {
            for page in 0..DIRECTORY_PAGES {
                match directory.state(page) {
                    PageState::Absent => {}
                    PageState::Here(slot) | PageState::Leaving(slot) => self.pages.give_back(slot),
                }
            }
        }
    }
}

impl MapTable {
    /// A table of which nothing is loaded, and whose pages will be some of `pages`.
    pub fn new(pages: Arc<Pages>) -> Self {
        MapTable { pages, directories: Shelves::default() }
    }

    /// Looks `block` up.
    #[inline]
    pub fn get(&self, block: VirtualBlock) -> Lookup {
        let Some((directory, page)) = self.directory(block) else { return Lookup::NotLoaded };
        match directory.state(page) {
            PageState::Here(slot) => {
                if !directory.used.get(page) {
                    directory.used.set(page);
                }
                self.entry(slot, block)
            }
            PageState::Absent if directory.holes.get(page) => Lookup::Hole,
            PageState::Absent | PageState::Leaving(_) => Lookup::NotLoaded,
        }
    }

    /// Keeper only: as [`MapTable::get`], and looks into pages that are leaving as well.
    pub fn get_kept(&self, block: VirtualBlock) -> Lookup {
        match self.directory(block).map(|(directory, page)| directory.state(page)) {
            Some(PageState::Leaving(slot)) => self.entry(slot, block),
            Some(PageState::Here(_) | PageState::Absent) | None => self.get(block),
        }
    }

    #[inline]
    fn directory(&self, block: VirtualBlock) -> Option<(&Directory, u64)> {
        let page = block.0 / PAGE_BLOCKS;
        Some((self.directories.get(page / DIRECTORY_PAGES)?, page % DIRECTORY_PAGES))
    }

    #[inline]
    fn entry(&self, slot: PageSlot, block: VirtualBlock) -> Lookup {
        match self.pages.get(slot)[(block.0 % PAGE_BLOCKS) as usize].load(Ordering::Acquire) {
            HOLE => Lookup::Hole,
            raw => Lookup::Mapped(Mapping::unpack(raw)),
        }
    }

    /// Keeper only: installs a page, unless it is there. `mappings` lie inside it.
    pub fn load_page(&self, page: Range<u64>, mappings: &[(VirtualBlock, Mapping)]) {
        if self.bring_back(VirtualBlock(page.start)) {
            return;
        }
        let number = page.start / PAGE_BLOCKS;
        let directory = self.directories.get_or_init(number / DIRECTORY_PAGES, || Box::new(Directory::new()));
        let number = number % DIRECTORY_PAGES;
        if mappings.is_empty() {
            return directory.holes.set(number);
        }
        let slot = self.pages.take();
        for (block, mapping) in mappings {
            self.pages.get(slot)[(block.0 - page.start) as usize].store(pack(*mapping), Ordering::Relaxed);
        }
        directory.used.set(number);
        directory.set_state(number, PageState::Here(slot));
    }

    /// Keeper only: whether the page that holds `block` is there now, perhaps because it was about to leave and stays.
    pub fn bring_back(&self, block: VirtualBlock) -> bool {
        let Some((directory, page)) = self.directory(block) else { return false };
        match directory.state(page) {
            PageState::Absent => directory.holes.get(page),
            PageState::Here(_) => true,
            PageState::Leaving(slot) => {
                directory.used.set(page);
                directory.set_state(page, PageState::Here(slot));
                true
            }
        }
    }

    /// Keeper only: changes one block, if its page is loaded.
    pub fn set(&self, block: VirtualBlock, mapping: Option<Mapping>) {
        let Some((directory, page)) = self.directory(block) else { return };
        let slot = match directory.state(page) {
            PageState::Here(slot) | PageState::Leaving(slot) => slot,
            PageState::Absent if directory.holes.get(page) && mapping.is_some() => {
                let slot = self.pages.take();
                directory.set_state(page, PageState::Here(slot));
                slot
            }
            PageState::Absent => return,
        };
        let entry = &self.pages.get(slot)[(block.0 % PAGE_BLOCKS) as usize];
        entry.store(mapping.map_or(HOLE, pack), Ordering::Release);
    }

    /// Keeper only: unmaps `range` wherever it is loaded.
    pub fn clear(&self, range: Range<u64>) {
        for page in self.loaded_pages(range.clone()) {
            for block in page.start.max(range.start)..page.end.min(range.end) {
                self.set(VirtualBlock(block), None);
            }
        }
    }

    /// Keeper only: the pages that are loaded (those that are leaving among them) and have a block in `range`, in ascending
    /// order.
    pub fn loaded_pages(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut loaded = Vec::new();
        if range.is_empty() {
            return loaded;
        }
        let (first, last) = (range.start / PAGE_BLOCKS, (range.end - 1) / PAGE_BLOCKS);
        let wanted = first / DIRECTORY_PAGES..=last / DIRECTORY_PAGES;
        for (number, directory) in self.directories.iter().filter(|(number, _)| wanted.contains(number)) {
            let begin = number * DIRECTORY_PAGES;
            for page in first.max(begin)..=last.min(begin + DIRECTORY_PAGES - 1) {
                let in_directory = page - begin;
                if directory.state(in_directory) != PageState::Absent || directory.holes.get(in_directory) {
                    loaded.push(page_of(VirtualBlock(page * PAGE_BLOCKS)));
                }
            }
        }
        loaded
    }

    /// Keeper only: passes the hand of the clock over the pages from number `from` on. A page that was used since the hand
    /// last came by loses that mark; one that was not begins to leave, and its number is added to `leaving`, until there are
    /// `enough`. Returns the number to go on from, `None` at the end of the table.
    pub fn sweep(&self, from: u64, enough: usize, leaving: &mut Vec<u64>) -> Option<u64> {
        let first = from / DIRECTORY_PAGES;
        for (number, directory) in self.directories.iter().skip_while(|(number, _)| *number < first) {
            let begin = number * DIRECTORY_PAGES;
            for page in from.max(begin)..begin + DIRECTORY_PAGES {
                if leaving.len() >= enough {
                    return Some(page);
                }
                let in_directory = page - begin;
                match directory.state(in_directory) {
                    PageState::Here(_) if directory.used.get(in_directory) => {
                        directory.used.clear(in_directory)
                    }
                    PageState::Here(slot) => {
                        directory.set_state(in_directory, PageState::Leaving(slot));
                        leaving.push(page);
                    }
                    PageState::Absent | PageState::Leaving(_) => {}
                }
            }
        }
        None
    }

    /// Keeper only, when all lanes have passed the epoch in which the page began to leave: it goes, unless it was brought
    /// back.
    pub fn let_go(&self, page: u64) {
        let Some((directory, page)) = self.directory(VirtualBlock(page * PAGE_BLOCKS)) else { return };
        if let PageState::Leaving(slot) = directory.state(page) {
            directory.holes.clear(page); // first: an absent page is what this says
            directory.set_state(page, PageState::Absent);
            self.pages.give_back(slot);
        }
    }
}

/// The blocks of the page that holds `block`.
pub fn page_of(block: VirtualBlock) -> Range<u64> {
    let begin = block.0 - block.0 % PAGE_BLOCKS;
    begin..begin.saturating_add(PAGE_BLOCKS)
}

fn pack(mapping: Mapping) -> u64 {
    let raw = mapping.pack();
    assert_ne!(raw, HOLE, "a mapping that looks like a hole");
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pages::PAGE_BYTES;
    use crate::units::{DataBlock, SnapTime};

    fn table() -> MapTable {
        MapTable::new(Arc::default())
    }

    fn mapping(block: u64) -> Mapping {
        Mapping { block: DataBlock(block), time: SnapTime(3) }
    }

    #[test]
    fn pages_are_unknown_until_loaded_and_then_follow_the_keeper() {
        let table = table();
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
        let table = table();
        for page in 0..2 * DIRECTORY_PAGES {
            table.load_page(page_of(VirtualBlock(page * PAGE_BLOCKS)), &[]);
        }
        let pages = || table.pages.used_bytes() / PAGE_BYTES;
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
        let table = table();
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
        let table = table();
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

    fn of_pages(numbers: Range<u64>) -> MapTable {
        let table = table();
        for page in numbers {
            let block = VirtualBlock(page * PAGE_BLOCKS + 5);
            table.load_page(page_of(block), &[(block, mapping(block.0))]);
        }
        table
    }

    fn sweep(table: &MapTable, from: u64, enough: usize) -> (Vec<u64>, Option<u64>) {
        let mut leaving = Vec::new();
        let next = table.sweep(from, enough, &mut leaving);
        (leaving, next)
    }

    #[test]
    fn the_hand_passes_over_what_was_used_and_takes_the_rest() {
        let table = of_pages(0..4);
        assert_eq!(sweep(&table, 0, 9), (vec![], None), "all have just been loaded");
        table.get(VirtualBlock(PAGE_BLOCKS + 1));
        assert_eq!(sweep(&table, 0, 2), (vec![0, 2], Some(3)));
        assert_eq!(sweep(&table, 3, 2), (vec![3], None));
        assert_eq!(sweep(&table, 0, 1), (vec![1], Some(2)));
        assert_eq!(sweep(&table, 0, 1), (vec![], None), "they are on their way");
    }

    #[test]
    fn a_leaving_page_is_gone_for_lanes_and_comes_back_as_it_was() {
        let table = of_pages(0..1);
        let (lost, kept) = (VirtualBlock(5), VirtualBlock(6));
        sweep(&table, 0, 1);
        assert_eq!(sweep(&table, 0, 1).0, [0]);
        assert_eq!(table.get(lost), Lookup::NotLoaded);
        table.set(kept, Some(mapping(60))); // known to the keeper alone
        assert_eq!((table.get(kept), table.get_kept(kept)), (Lookup::NotLoaded, Lookup::Mapped(mapping(60))));
        table.load_page(page_of(lost), &[]);
        assert_eq!(table.get(kept), Lookup::Mapped(mapping(60)));
        table.let_go(0);
        assert_eq!(table.get(lost), Lookup::Mapped(mapping(5)), "it was brought back");
    }

    #[test]
    fn a_page_that_has_left_is_unknown_even_if_it_began_as_a_hole() {
        let table = table();
        let pages = table.pages.clone();
        table.load_page(0..PAGE_BLOCKS, &[]);
        table.set(VirtualBlock(5), Some(mapping(5)));
        assert_eq!(pages.used_bytes(), PAGE_BYTES);
        assert_eq!(sweep(&table, 0, 1).0, [0], "nobody has looked at it");
        table.let_go(0);
        assert_eq!((table.get(VirtualBlock(5)), pages.used_bytes()), (Lookup::NotLoaded, 0));
        assert!(!table.bring_back(VirtualBlock(5)));
        table.load_page(0..PAGE_BLOCKS, &[(VirtualBlock(7), mapping(7))]);
        assert_eq!(table.get(VirtualBlock(5)), Lookup::Hole);
        assert_eq!(table.get(VirtualBlock(7)), Lookup::Mapped(mapping(7)));
        drop(table);
        assert_eq!(pages.used_bytes(), 0);
    }
}
