//! The partial blocks of a pool in memory: read by lanes without locks, added and taken away by the keeper, filled by both.
//!
//! Looked up by data block: a radix table of 32-bit numbers, in pages of 512 that exist where there are partial blocks, leads to
//! an entry of 40 bytes. So a million of them that lie together take about 44 MB. A pool that has none costs a lane one relaxed load.
//! What must hold:
//!
//! - An entry is there before lanes can see a mapping to its block, and until every lane has passed the epoch in which the
//!   block was freed or became whole: who has read an old mapping must not take the block for a whole one.
//! - Whoever writes a unit that is not there has *claimed* it: one at a time, for the whole unit. A unit is *there* once all its
//!   bytes are written; then it stays claimed for ever.
//! - A unit that is there is on the dirty list before the write is acknowledged. The keeper takes the list before it flushes
//!   the data disk, so that no unit becomes durable before its bytes.
//!
//! The life of an entry, with the functions that move it on and who calls them:
//!
//! ```text
//! keeper: add          lanes: claim, write, put          keeper: a commit              keeper: remove,
//! (a fill of a part)   (until no unit is missing)        (the tree has no entry now)   when all lanes have passed
//!      |                        |                               |                              |
//!   none -----> partial -----------------> whole in memory ---------> whole durably ----------> none
//!                  |      may be no base         may be no base           may be no base   |  may be one
//!                  |                                                                       |
//!                  `--- freed (the last mapping is gone; after the commit) ---> nobody's --'
//! ```
//!
//! What is nobody's is still read by who has seen the old mapping, and given to no settler.

use super::pages::Shelves;
use super::sizes::{PARTIALS_CHUNK_ENTRIES as CHUNK_ENTRIES, PARTIALS_PAGE_BLOCKS as PAGE_BLOCKS};
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use super::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard};
use crate::metadata::{Base, Partial};
use crate::units::DataBlock;
use std::ops::Range;

/// The block of an entry that nobody has, or that is on its way out.
const NOBODY: u64 = u64::MAX;

/// One partial block.
struct Entry {
    block: AtomicU64,
    /// As [`Base::pack`] has it.
    base: AtomicU64,
    /// Units that are there.
    there: AtomicU64,
    /// Those, and the ones that are being written.
    claimed: AtomicU64,
    /// On the dirty list.
    dirty: AtomicBool,
    /// In this round it was found that it cannot be settled.
    stuck: AtomicU32,
}

/// The table.
pub(super) struct Partials {
    all_units: u64,
    /// Entries in use.
    entries: AtomicU64,
    /// For each block the number of its entry, from 1 on; 0: none.
    pages: Shelves<Box<[AtomicU32]>>,
    chunks: Shelves<Box<[Entry]>>,
    stock: Mutex<Stock>,
    dirty: Mutex<Vec<u32>>,
    /// See [`Partials::try_again`]; from 1 on.
    round: AtomicU32,
    /// Stretches that were made whole.
    pub settled: AtomicU64,
    /// That is not to be slow.
    pub hurry: AtomicBool,
    /// The keeper records what comes: lanes leave it to it to say that units are there.
    pub is_recorded: AtomicBool,
}

#[derive(Default)]
struct Stock {
    free: Vec<u32>,
    /// Entries there have ever been.
    made: u32,
}

/// How an attempt to claim units went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// They are the caller's, those that were not there: it writes them as a whole.
    Won(u64),
    /// Somebody else is writing some of these.
    Lost(u64),
}

impl Default for Partials {
    /// None, of as many units as there can be.
    fn default() -> Self {
        Partials::new(u64::MAX)
    }
}

impl Partials {
    /// None, in a pool whose blocks have these units.
    pub fn new(all_units: u64) -> Self {
        Partials {
            all_units,
            entries: AtomicU64::new(0),
            pages: Shelves::default(),
            chunks: Shelves::default(),
            stock: Mutex::default(),
            dirty: Mutex::default(),
            round: AtomicU32::new(1),
            settled: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            is_recorded: AtomicBool::new(false),
        }
    }

    /// How many there are, those among them that are on their way out.
    pub fn count(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// What the block holds and where the rest is; `None`: it holds everything. Later looks see the same units or more.
    #[inline]
    pub fn get(&self, block: DataBlock) -> Option<Partial> {
        // Whoever has read the mapping to a partial block sees its entry counted, because that came first.
        if self.entries.load(Relaxed) == 0 {
            return None;
        }
        let entry = self.entry(block)?;
        let units = entry.there.load(Acquire);
        (units != self.all_units).then(|| Partial { base: Base::unpack(entry.base.load(Relaxed)), units })
    }

    /// Whether it has an entry, even if it holds everything by now.
    pub fn knows(&self, block: DataBlock) -> bool {
        self.entry(block).is_some()
    }

    fn entry(&self, block: DataBlock) -> Option<&Entry> {
        let page = self.pages.get(block.0 / PAGE_BLOCKS)?;
        let number = page[(block.0 % PAGE_BLOCKS) as usize].load(Acquire).checked_sub(1)?;
        Some(self.numbered(number))
    }

    fn numbered(&self, number: u32) -> &Entry {
        let number = u64::from(number);
        let chunk = self.chunks.get(number / CHUNK_ENTRIES).expect("an entry that was handed out");
        &chunk[(number % CHUNK_ENTRIES) as usize]
    }

    /// Claims those of `units` that are not there, all or none.
    pub fn claim(&self, block: DataBlock, units: u64) -> Claim {
        let Some(entry) = self.entry(block) else { return Claim::Won(0) };
        let mut claimed = entry.claimed.load(Acquire);
        loop {
            let missing = units & !entry.there.load(Acquire);
            let taken = claimed & missing;
            if taken != 0 {
                // They may be there by now.
                let taken = taken & !entry.there.load(Acquire);
                if taken != 0 {
                    return Claim::Lost(taken);
                }
                continue;
            }
            // What is claimed stays so until it is there, or given back: nobody has written these meanwhile.
            match entry.claimed.compare_exchange(claimed, claimed | missing, AcqRel, Acquire) {
                Ok(_) => return Claim::Won(missing),
                Err(other) => claimed = other,
            }
        }
    }

    /// Claimed units that could not be written.
    pub fn give_back(&self, block: DataBlock, units: u64) {
        if let Some(entry) = self.entry(block) {
            entry.claimed.fetch_and(!units, AcqRel);
        }
    }

    /// Claimed units that are written, and about to be acknowledged.
    pub fn put(&self, block: DataBlock, units: u64) {
        let Some(page) = self.pages.get(block.0 / PAGE_BLOCKS) else { return };
        let number = page[(block.0 % PAGE_BLOCKS) as usize].load(Acquire);
        let number = number.checked_sub(1).expect("an entry stays while somebody writes its block");
        let entry = self.numbered(number);
        entry.there.fetch_or(units, AcqRel);
        // Under the lock: else somebody who finds it on the list, where it is not yet, acknowledges what the keeper does not see.
        let mut dirty = self.dirty();
        if !entry.dirty.swap(true, AcqRel) {
            dirty.push(number);
        }
    }

    /// Whether others are writing some of these units.
    pub fn is_claimed(&self, block: DataBlock, units: u64) -> bool {
        self.entry(block)
            .is_some_and(|entry| entry.claimed.load(Acquire) & !entry.there.load(Acquire) & units != 0)
    }

    /// The units that are neither there nor being written.
    pub fn unclaimed(&self, block: DataBlock) -> u64 {
        self.entry(block).map_or(0, |entry| self.all_units & !entry.claimed.load(Acquire))
    }

    /// Keeper only, before lanes can see a mapping to the block.
    pub fn add(&self, block: DataBlock, partial: Partial) {
        let number = self.take_entry();
        let entry = self.numbered(number);
        entry.block.store(block.0, Relaxed);
        entry.base.store(partial.base.pack(), Relaxed);
        entry.stuck.store(0, Relaxed);
        entry.there.store(partial.units, Relaxed);
        entry.claimed.store(partial.units, Relaxed);
        entry.dirty.store(false, Relaxed);
        self.entries.fetch_add(1, Relaxed);
        let page = self
            .pages
            .get_or_init(block.0 / PAGE_BLOCKS, || (0..PAGE_BLOCKS).map(|_| AtomicU32::new(0)).collect());
        let before = page[(block.0 % PAGE_BLOCKS) as usize].swap(number + 1, Release);
        assert_eq!(before, 0, "data block {} becomes partial twice", block.0);
    }

    fn take_entry(&self) -> u32 {
        let mut stock = self.stock();
        stock.free.pop().unwrap_or_else(|| {
            let number = stock.made;
            stock.made = number.checked_add(1).expect("so many entries do not fit into any memory");
            self.chunks.get_or_init(u64::from(number) / CHUNK_ENTRIES, || {
                let nobody = || Entry {
                    block: AtomicU64::new(NOBODY),
                    base: AtomicU64::new(0),
                    there: AtomicU64::new(0),
                    claimed: AtomicU64::new(0),
                    dirty: AtomicBool::new(false),
                    stuck: AtomicU32::new(0),
                };
                std::iter::repeat_with(nobody).take(CHUNK_ENTRIES as usize).collect()
            });
            number
        })
    }

    /// Keeper only, when all lanes have passed the epoch in which the block was freed or became whole.
    pub fn remove(&self, block: DataBlock) {
        let Some(page) = self.pages.get(block.0 / PAGE_BLOCKS) else { return };
        let Some(number) = page[(block.0 % PAGE_BLOCKS) as usize].swap(0, AcqRel).checked_sub(1) else {
            return;
        };
        self.numbered(number).block.store(NOBODY, Relaxed);
        self.stock().free.push(number);
        self.entries.fetch_sub(1, Relaxed);
    }

    /// Keeper only: these blocks are free from the commit on that is through. Who looks at one already goes on; nobody begins to
    /// settle it, because who begins from now on is not waited for.
    pub fn freed(&self, blocks: Range<u64>) {
        self.for_each_in(blocks, |block| {
            if let Some(entry) = self.entry(block) {
                entry.block.store(NOBODY, Relaxed);
            }
        });
    }

    /// As [`Partials::remove`], of all blocks in a range.
    pub fn remove_range(&self, blocks: Range<u64>) {
        self.for_each_in(blocks, |block| self.remove(block));
    }

    /// The blocks in a range that may have an entry.
    fn for_each_in(&self, blocks: Range<u64>, each: impl Fn(DataBlock)) {
        let mut block = blocks.start;
        while block < blocks.end && self.count() > 0 {
            let page_end = (block / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            if self.pages.get(block / PAGE_BLOCKS).is_some() {
                (block..page_end.min(blocks.end)).for_each(|block| each(DataBlock(block)));
            }
            block = page_end;
        }
    }

    /// Whether units have come since [`Partials::take_dirty`].
    pub fn is_dirty(&self) -> bool {
        !self.dirty().is_empty()
    }

    /// Whether a block on the dirty list holds all its units: its base loses a reference with the next commit.
    pub fn has_become_whole(&self) -> bool {
        self.dirty().iter().any(|number| self.numbered(*number).there.load(Acquire) == self.all_units)
    }

    /// Keeper only: the blocks that units have been added to, with all that they hold now, in ascending order. Whoever flushes
    /// the data disk afterwards makes those units durable.
    pub fn take_dirty(&self) -> Vec<(DataBlock, u64)> {
        let dirty = std::mem::take(&mut *self.dirty());
        let mut taken = Vec::with_capacity(dirty.len());
        for number in dirty {
            let entry = self.numbered(number);
            // First: what comes from here on puts it on the list anew.
            entry.dirty.swap(false, AcqRel);
            let block = entry.block.load(Relaxed);
            if block != NOBODY {
                taken.push((DataBlock(block), entry.there.load(Acquire)));
            }
        }
        taken.sort_unstable();
        // An entry that was given up and used again may have been on the list twice.
        taken.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            kept.1 |= if is_same { later.1 } else { 0 };
            is_same
        });
        taken
    }

    /// What the rest of a block is read from cannot be had: nobody tries to settle it in this round.
    pub fn set_stuck(&self, block: DataBlock) {
        if let Some(entry) = self.entry(block) {
            entry.stuck.store(self.round.load(Relaxed), Relaxed);
        }
    }

    /// A new round: what could not be settled may be settled now.
    pub fn try_again(&self) {
        self.round.fetch_add(1, Relaxed);
    }

    /// Whether there is an entry of which units are missing, and that may be settled.
    pub fn has_unsettled(&self) -> bool {
        let round = self.round.load(Relaxed);
        (0..self.stock().made).any(|number| {
            let entry = self.numbered(number);
            entry.block.load(Relaxed) != NOBODY
                && entry.there.load(Acquire) != self.all_units
                && entry.stuck.load(Relaxed) != round
        })
    }

    /// Keeper only: a block that is stuck in this round.
    pub fn stuck(&self) -> Option<DataBlock> {
        let round = self.round.load(Relaxed);
        let stuck = |number| {
            let entry = self.numbered(number);
            let block = entry.block.load(Relaxed);
            let is_whole = entry.there.load(Acquire) == self.all_units;
            let is_stuck = block != NOBODY && !is_whole && entry.stuck.load(Relaxed) == round;
            is_stuck.then_some(DataBlock(block))
        };
        (0..self.stock().made).find_map(stuck)
    }

    /// Keeper only: a block of which units are missing that nobody is writing, and that is not stuck, from entry number `from` on;
    /// and the number after it. Looks at so many at the most.
    pub fn unsettled(&self, from: u32, looks: u32) -> (Option<DataBlock>, u32) {
        let made = self.stock().made;
        let round = self.round.load(Relaxed);
        let mut number = if from < made { from } else { 0 };
        for _ in 0..looks.min(made) {
            let entry = self.numbered(number);
            let block = DataBlock(entry.block.load(Relaxed));
            number = if number + 1 < made { number + 1 } else { 0 };
            let is_stuck = entry.stuck.load(Relaxed) == round;
            if block.0 != NOBODY && !is_stuck && self.unclaimed(block) != 0 {
                return (Some(block), number);
            }
        }
        (None, number)
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().expect("nobody panics while holding this lock")
    }

    fn dirty(&self) -> MutexGuard<'_, Vec<u32>> {
        self.dirty.lock().expect("nobody panics while holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0xffff;

    fn partial(units: u64) -> Partial {
        Partial { base: Base::Block(DataBlock(3)), units }
    }

    #[test]
    fn an_entry_is_40_bytes_and_used_again() {
        assert_eq!(size_of::<Entry>(), 40);
        let partials = Partials::new(ALL);
        assert_eq!(partials.get(DataBlock(700)), None);
        partials.add(DataBlock(700), partial(1));
        partials.add(DataBlock(701), Partial { base: Base::Zeros, units: 2 });
        assert_eq!((partials.get(DataBlock(700)), partials.count()), (Some(partial(1)), 2));
        assert_eq!(partials.get(DataBlock(701)), Some(Partial { base: Base::Zeros, units: 2 }));
        assert_eq!(partials.get(DataBlock(699)), None);
        partials.remove_range(0..701);
        assert!(!partials.knows(DataBlock(700)) && partials.count() == 1);
        partials.add(DataBlock(5), partial(4));
        assert_eq!(partials.stock().made, 2);
        partials.remove_range(0..u64::MAX);
        assert_eq!(partials.count(), 0);
    }

    #[test]
    fn one_writer_at_a_time_has_a_unit_that_is_not_there() {
        let partials = Partials::new(ALL);
        let block = DataBlock(9);
        partials.add(block, partial(0b1));
        assert_eq!(partials.claim(block, 0b11), Claim::Won(0b10), "what is there needs no claim");
        assert_eq!(partials.claim(block, 0b110), Claim::Lost(0b10));
        assert_eq!(partials.claim(block, 0b100), Claim::Won(0b100), "nothing of the lost claim stayed");
        partials.give_back(block, 0b100);
        assert!(!partials.is_claimed(block, 0b100) && partials.is_claimed(block, 0b10));
        partials.put(block, 0b10);
        assert_eq!(partials.claim(block, 0b111), Claim::Won(0b100));
        assert_eq!(partials.get(block), Some(partial(0b11)));
        assert_eq!(partials.unclaimed(block), ALL & !0b111);
    }

    #[test]
    fn what_was_added_since_the_last_look_is_on_the_list() {
        let partials = Partials::new(ALL);
        for block in [9, 4] {
            partials.add(DataBlock(block), partial(0b1));
        }
        assert!(!partials.is_dirty());
        partials.put(DataBlock(9), 0b10);
        partials.put(DataBlock(4), ALL);
        partials.put(DataBlock(9), 0b100);
        assert_eq!(partials.take_dirty(), [(DataBlock(4), ALL), (DataBlock(9), 0b111)]);
        assert!(!partials.is_dirty());
        assert_eq!(partials.get(DataBlock(4)), None, "it is whole");
        assert!(partials.knows(DataBlock(4)));
        partials.put(DataBlock(9), 0b1000);
        partials.remove(DataBlock(9));
        assert_eq!(partials.take_dirty(), [], "it is gone");
    }

    /// Writers of the same units at once: each unit has one writer until it is there, and what has been acknowledged when the
    /// list is taken is in what the list says, or was before.
    #[test]
    fn threads_write_each_unit_once_and_the_list_forgets_none() {
        for round in 0..200 {
            let partials = Partials::new(ALL);
            let block = DataBlock(9);
            partials.add(block, partial(0b1));
            let writers: Vec<AtomicU64> = (0..16).map(|_| AtomicU64::new(0)).collect();
            let (acknowledged, seen) = (AtomicU64::new(0b1), AtomicU64::new(0b1));
            std::thread::scope(|scope| {
                for thread in 0..3_u64 {
                    let (partials, writers, acknowledged) = (&partials, &writers, &acknowledged);
                    scope.spawn(move || {
                        let mut random = (round * 3 + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
                        while acknowledged.load(Acquire) != ALL {
                            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            let wanted = 0b111 << ((random >> 40) % 14) & ALL;
                            let Claim::Won(units) = partials.claim(block, wanted) else { continue };
                            for unit in (0..16).filter(|unit| units >> unit & 1 == 1) {
                                assert_eq!(
                                    writers[unit].fetch_add(1, AcqRel),
                                    0,
                                    "unit {unit} is written twice"
                                );
                            }
                            if random >> 60 == 0 {
                                units_are_free_again(units, writers);
                                partials.give_back(block, units);
                                continue;
                            }
                            if units != 0 {
                                partials.put(block, units);
                            }
                            acknowledged.fetch_or(units, AcqRel);
                        }
                    });
                }
                while seen.load(Relaxed) != ALL {
                    let expected = acknowledged.load(Acquire);
                    for (_, units) in partials.take_dirty() {
                        seen.fetch_or(units, Relaxed);
                    }
                    assert_eq!(expected & !seen.load(Relaxed), 0, "acknowledged, and not on the list");
                }
            });
            assert!(partials.get(block).is_none());
            // The last to come may have found its units taken already.
            assert!(partials.take_dirty().iter().all(|(_, units)| *units == ALL));
        }
    }

    fn units_are_free_again(units: u64, writers: &[AtomicU64]) {
        (0..16).filter(|unit| units >> unit & 1 == 1).for_each(|unit| writers[unit].store(0, Release));
    }

    #[test]
    fn the_settler_goes_round() {
        let partials = Partials::new(ALL);
        assert_eq!(partials.unsettled(7, 10), (None, 0));
        for block in [9, 4, 30] {
            partials.add(DataBlock(block), partial(0b1));
        }
        partials.claim(DataBlock(4), ALL);
        assert_eq!(partials.unsettled(0, 10), (Some(DataBlock(9)), 1));
        assert_eq!(partials.unsettled(1, 10), (Some(DataBlock(30)), 0));
        assert_eq!(partials.unsettled(1, 1), (None, 2));
        partials.freed(0..10);
        assert_eq!(partials.unsettled(0, 10), (Some(DataBlock(30)), 0));
        assert!(partials.get(DataBlock(9)).is_some(), "somebody may be reading it");
    }
}
