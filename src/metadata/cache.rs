//! The block cache: metadata blocks in memory, verified when read, sealed when written.
//!
//! - A *dirty* block was made in this transaction and stays until it is written ([`Cache::write_dirty`]) or forgotten. It is
//!   the only kind that changes. That is how a block reachable from the last commit is never overwritten: blocks read
//!   from the disk are *clean*, and there is no way to change one.
//! - Clean blocks are let go, least recently used first (second chance), when they exceed their budget.
//!
//! Left to others: which block numbers are free ([`super::meta_map`]).

use super::ahead;
use crate::checksum::BlockKind;
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, Result};
use crate::format::{Block, NodeHeader};
use crate::units::{META_BLOCK_BYTES, MetaBlock};

/// What clean blocks may take by default, in bytes.
pub(super) const DEFAULT_CLEAN_BYTES: usize = 64 << 20;
/// Blocks that a walk down a few trees needs at once; a smaller budget would thrash.
const LEAST_CLEAN_BLOCKS: usize = 64;
/// The most bytes written at once.
const RUN_BYTES: usize = 1 << 20;
/// Slots are allocated this many at a time: large enough to go back to the system when freed.
const CHUNK_BLOCKS: usize = 64;
/// In [`Cache::places`]: not cached.
const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Clean,
    Dirty,
}

struct Slot {
    number: MetaBlock,
    kind: BlockKind,
    state: State,
    /// Used since the hand last passed.
    used: bool,
}

pub(super) struct Cache {
    slots: Vec<Slot>,
    /// The bytes of the slots. Boxed, so that growing moves nothing.
    chunks: Vec<Box<[Block]>>,
    /// The slot of every block number.
    places: Vec<u32>,
    free_slots: Vec<u32>,
    /// The slots that were made dirty in this transaction; those since forgotten are still among them.
    dirty_slots: Vec<u32>,
    hand: usize,
    clean: usize,
    dirty: usize,
    clean_limit: usize,
}

impl Cache {
    /// An empty cache for a device of `total_blocks`.
    pub fn new(total_blocks: u64, clean_bytes: usize) -> Self {
        Cache {
            slots: Vec::new(),
            chunks: Vec::new(),
            places: vec![
                NOWHERE;
                usize::try_from(total_blocks).expect("the format's limit is far below 2^32")
            ],
            free_slots: Vec::new(),
            dirty_slots: Vec::new(),
            hand: 0,
            clean: 0,
            dirty: 0,
            clean_limit: limit_of(clean_bytes),
        }
    }

    /// Makes room for the numbers of a device that has grown.
    pub fn grow(&mut self, total_blocks: u64) {
        let places = usize::try_from(total_blocks).expect("the format's limit is far below 2^32");
        self.places.resize(places, NOWHERE);
    }

    /// Sets what clean blocks may take.
    pub fn set_clean_bytes(&mut self, clean_bytes: usize) {
        self.clean_limit = limit_of(clean_bytes);
        self.trim();
    }

    /// Blocks that wait to be written.
    pub fn dirty_blocks(&self) -> usize {
        self.dirty
    }

    /// Whether the block was made in this transaction. False for numbers that do not exist.
    pub fn is_dirty(&self, number: MetaBlock) -> bool {
        self.find(number).is_some_and(|slot| self.slots[slot].state == State::Dirty)
    }

    fn find(&self, number: MetaBlock) -> Option<usize> {
        let place = *self.places.get(usize::try_from(number.0).ok()?)?;
        (place != NOWHERE).then_some(place as usize)
    }

    fn block(&self, slot: usize) -> &Block {
        &self.chunks[slot / CHUNK_BLOCKS][slot % CHUNK_BLOCKS]
    }

    fn block_mut(&mut self, slot: usize) -> &mut Block {
        &mut self.chunks[slot / CHUNK_BLOCKS][slot % CHUNK_BLOCKS]
    }

    /// The block, read and verified if need be. `Corrupt`: it does not exist, is damaged, or is used as another kind too.
    pub fn get(&mut self, disk: &impl Disk, number: MetaBlock, kind: BlockKind) -> Result<&Block> {
        let slot = match self.find(number) {
            Some(slot) => slot,
            None => self.load(disk, number, kind)?,
        };
        let state = &mut self.slots[slot];
        if state.kind != kind {
            let what = format!("found a block of kind {:?}, expected {kind:?}", state.kind);
            return Err(Error::corrupt(number, what));
        }
        state.used = true;
        Ok(self.block(slot))
    }

    fn load(&mut self, disk: &impl Disk, number: MetaBlock, kind: BlockKind) -> Result<usize> {
        if number.0 >= self.places.len() as u64 {
            let what = format!("found a reference to it, expected one below {}", self.places.len());
            return Err(Error::corrupt(number, what));
        }
        while self.clean >= self.clean_limit {
            self.evict_one();
        }
        let slot = self.take_slot();
        let block = self.block_mut(slot);
        let read = disk
            .read_at(number.offset_bytes(), &mut block.0)
            .map_err(|error| {
                Error::io(format_args!("cannot read metadata block {number} of {}", disk.name()), &error)
            })
            .and_then(|()| verify(block, number, kind));
        if let Err(error) = read {
            self.free_slots.push(slot as u32);
            return Err(error);
        }
        self.occupy(slot, number, kind, State::Clean);
        Ok(slot)
    }

    /// Reads blocks that will be asked for, as many at a time as half of the budget holds: those behind are left to who asks for them, and so is
    /// whatever cannot be read or is damaged.
    pub fn read_ahead(&mut self, disk: &impl Disk, numbers: &[MetaBlock], kind: BlockKind) {
        let is_wanted =
            |number: &&MetaBlock| number.0 < self.places.len() as u64 && self.find(**number).is_none();
        let mut wanted: Vec<_> = numbers.iter().filter(is_wanted).copied().collect();
        wanted.truncate(self.clean_limit / 2);
        wanted.sort_unstable();
        wanted.dedup();
        for (number, block) in ahead::read(disk, &wanted, kind) {
            while self.clean >= self.clean_limit {
                self.evict_one();
            }
            let slot = self.take_slot();
            *self.block_mut(slot) = *block;
            self.occupy(slot, number, kind, State::Clean);
        }
    }

    /// A dirty block to be changed. That it is one is for the caller to know.
    pub fn dirty_mut(&mut self, number: MetaBlock) -> &mut Block {
        let slot = self.find(number).expect("a block being changed is cached");
        assert!(
            self.slots[slot].state == State::Dirty,
            "block {number} is changed without having been shadowed"
        );
        self.block_mut(slot)
    }

    /// Makes a dirty block with arbitrary content under a number that was free.
    pub fn create(&mut self, number: MetaBlock, kind: BlockKind) -> &mut Block {
        // A clean block may linger under the number: what was there before it was freed.
        let slot = match self.find(number) {
            Some(slot) => {
                assert!(self.slots[slot].state == State::Clean, "block {number} is made twice");
                self.vacate(slot);
                slot
            }
            None => self.take_slot(),
        };
        self.occupy(slot, number, kind, State::Dirty);
        self.dirty_slots.push(slot as u32);
        self.block_mut(slot)
    }

    /// Lets go of a dirty block that nothing references any more. A clean one is left to age.
    pub fn forget_dirty(&mut self, number: MetaBlock) {
        if let Some(slot) = self.find(number)
            && self.slots[slot].state == State::Dirty
        {
            self.vacate(slot);
            self.free_slots.push(slot as u32);
        }
    }

    /// Writes all dirty blocks, in order of their numbers, neighbours together, after which they are clean.
    /// Durable only after a flush. After an error some are written and all are still dirty.
    pub fn write_dirty(&mut self, disk: &impl Disk) -> Result<()> {
        let mut dirty: Vec<(MetaBlock, usize)> = Vec::with_capacity(self.dirty);
        for slot in self.dirty_slots.iter().map(|slot| *slot as usize) {
            let Slot { number, state, .. } = self.slots[slot];
            if state == State::Dirty {
                dirty.push((number, slot));
            }
        }
        dirty.sort_unstable();
        // A slot forgotten and used again is listed twice.
        dirty.dedup();
        for (number, slot) in &dirty {
            let kind = self.slots[*slot].kind;
            self.block_mut(*slot).seal(*number, kind);
        }
        let mut staging = AlignedBuffer::zeroed(RUN_BYTES.min(dirty.len() * META_BLOCK_BYTES));
        for run in dirty.chunk_by(|a, b| a.0.0 + 1 == b.0.0) {
            for part in run.chunks(RUN_BYTES / META_BLOCK_BYTES) {
                self.write_run(disk, part, &mut staging)?;
            }
        }
        for (_, slot) in &dirty {
            self.slots[*slot].state = State::Clean;
        }
        self.clean += self.dirty;
        self.dirty = 0;
        self.dirty_slots.clear();
        self.trim();
        Ok(())
    }

    fn write_run(&self, disk: &impl Disk, run: &[(MetaBlock, usize)], staging: &mut [u8]) -> Result<()> {
        let bytes = match run {
            [(_, slot)] => &self.block(*slot).0[..],
            _ => {
                for ((_, slot), place) in run.iter().zip(staging.chunks_exact_mut(META_BLOCK_BYTES)) {
                    place.copy_from_slice(&self.block(*slot).0);
                }
                &staging[..run.len() * META_BLOCK_BYTES]
            }
        };
        let first = run[0].0;
        disk.write_at(first.offset_bytes(), bytes).map_err(|error| {
            let count = run.len();
            Error::io(
                format_args!("cannot write {count} metadata blocks from {first} on to {}", disk.name()),
                &error,
            )
        })
    }

    fn occupy(&mut self, slot: usize, number: MetaBlock, kind: BlockKind, state: State) {
        self.slots[slot] = Slot { number, kind, state, used: true };
        self.places[number.0 as usize] = slot as u32;
        match state {
            State::Clean => self.clean += 1,
            State::Dirty => self.dirty += 1,
            State::Free => unreachable!("nothing is put into a slot to be free"),
        }
    }

    /// Takes what is in the slot out of the books; the slot is the caller's.
    fn vacate(&mut self, slot: usize) {
        let old = &mut self.slots[slot];
        match old.state {
            State::Clean => self.clean -= 1,
            State::Dirty => self.dirty -= 1,
            State::Free => unreachable!("a free slot is not vacated"),
        }
        self.places[old.number.0 as usize] = NOWHERE;
        old.state = State::Free;
    }

    fn take_slot(&mut self) -> usize {
        if let Some(slot) = self.free_slots.pop() {
            return slot as usize;
        }
        let first = self.slots.len();
        self.chunks.push(vec![Block::ZERO; CHUNK_BLOCKS].into_boxed_slice());
        let nothing =
            || Slot { number: MetaBlock(u64::MAX), kind: BlockKind::Node, state: State::Free, used: false };
        self.slots.extend(std::iter::repeat_with(nothing).take(CHUNK_BLOCKS));
        self.free_slots.extend((first + 1..first + CHUNK_BLOCKS).rev().map(|slot| slot as u32));
        first
    }

    /// Lets go of the next clean block that was not used since the hand last passed it. There must be a clean block.
    fn evict_one(&mut self) {
        loop {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let slot = &mut self.slots[self.hand];
            if slot.state != State::Clean {
                continue;
            }
            if std::mem::take(&mut slot.used) {
                continue;
            }
            self.vacate(self.hand);
            self.free_slots.push(self.hand as u32);
            return;
        }
    }

    /// Returns to the budget after a commit. When a large transaction has left far more slots than the budget fills, what
    /// is in the surplus goes too, and its memory goes back to the system.
    fn trim(&mut self) {
        while self.clean > self.clean_limit {
            self.evict_one();
        }
        if self.slots.len() <= 2 * self.clean_limit + CHUNK_BLOCKS {
            return;
        }
        for slot in self.clean_limit.next_multiple_of(CHUNK_BLOCKS)..self.slots.len() {
            if self.slots[slot].state == State::Clean {
                self.vacate(slot);
                self.free_slots.push(slot as u32);
            }
        }
        let used = self.slots.iter().rposition(|slot| slot.state != State::Free).map_or(0, |last| last + 1);
        let chunks = used.div_ceil(CHUNK_BLOCKS);
        self.chunks.truncate(chunks);
        self.slots.truncate(chunks * CHUNK_BLOCKS);
        self.free_slots.retain(|slot| (*slot as usize) < chunks * CHUNK_BLOCKS);
        self.hand = 0;
    }
}

fn limit_of(clean_bytes: usize) -> usize {
    (clean_bytes / META_BLOCK_BYTES).max(LEAST_CLEAN_BLOCKS)
}

/// What is asked of a block when it is read.
pub(super) fn verify(block: &Block, number: MetaBlock, kind: BlockKind) -> Result<()> {
    block.verify(number, kind)?;
    if kind == BlockKind::Node { require_sound_node(block, number) } else { Ok(()) }
}

/// What is asked of any node: a header in order, the capacity that we write too, ascending keys.
fn require_sound_node(block: &Block, number: MetaBlock) -> Result<()> {
    let header = NodeHeader::decode(block);
    let kind = header
        .check(header.value_size.get() as usize)
        .map_err(|fault| Error::corrupt(number, format_args!("the B-tree node is damaged: {fault}")))?;
    if !header.has_usual_capacity() {
        let what = format!("found a {kind:?} node with room for {} entries", header.max_entries);
        return Err(Error::corrupt(number, what).hint(
            "the node was written by a program that fills nodes differently; dump and restore the metadata",
        ));
    }
    if !header.keys_of(block).is_sorted_by(|a, b| a.get() < b.get()) {
        return Err(Error::corrupt(
            number,
            "found keys out of order in a B-tree node, expected ascending ones",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    fn write_bitmap(disk: &MemoryDisk, number: u64, fill: u8) {
        let mut block = Block([fill; META_BLOCK_BYTES]);
        block.seal(MetaBlock(number), BlockKind::Bitmap);
        disk.write_at(MetaBlock(number).offset_bytes(), &block.0).unwrap();
    }

    #[test]
    fn clean_blocks_stay_within_their_budget_and_dirty_ones_stay() {
        let disk = MemoryDisk::zeroed(4096 * 1000);
        (1..1000).for_each(|number| write_bitmap(&disk, number, number as u8));
        let mut cache = Cache::new(1000, 0);
        cache.create(MetaBlock(0), BlockKind::Bitmap).0[100] = 0x77;
        for round in 0..3 {
            for number in 1..1000 {
                let block = cache.get(&disk, MetaBlock(number), BlockKind::Bitmap).unwrap();
                assert_eq!(block.0[4095], number as u8, "round {round}");
            }
            assert_eq!(cache.clean, LEAST_CLEAN_BLOCKS);
            assert_eq!(cache.chunks.len(), 2);
        }
        assert_eq!(cache.get(&disk, MetaBlock(0), BlockKind::Bitmap).unwrap().0[100], 0x77);
    }

    #[test]
    fn dirty_blocks_are_written_sealed_and_memory_goes_back() {
        let disk = MemoryDisk::zeroed(4096 * 2000);
        let mut cache = Cache::new(2000, 0);
        for number in (0..2000).filter(|number| number % 5 != 0) {
            cache.create(MetaBlock(number), BlockKind::Bitmap).0[4095] = number as u8;
        }
        cache.forget_dirty(MetaBlock(7));
        cache.write_dirty(&disk).unwrap();
        assert!(cache.dirty == 0 && cache.clean <= LEAST_CLEAN_BLOCKS);
        assert!(cache.chunks.len() <= 2, "{} chunks", cache.chunks.len());
        for number in 0..2000 {
            let written = number % 5 != 0 && number != 7;
            let mut block = Block::ZERO;
            disk.read_at(number * 4096, &mut block.0).unwrap();
            assert_eq!(block.verify(MetaBlock(number), BlockKind::Bitmap).is_ok(), written, "{number}");
            assert_eq!(cache.get(&disk, MetaBlock(number), BlockKind::Bitmap).is_ok(), written, "{number}");
        }
    }

    #[test]
    fn damage_is_an_error_that_names_the_block() {
        let disk = MemoryDisk::zeroed(4096 * 10);
        write_bitmap(&disk, 3, 1);
        let mut cache = Cache::new(10, 0);
        let message = |result: Result<&Block>| result.map(|_| ()).unwrap_err().message().to_owned();
        assert!(
            message(cache.get(&disk, MetaBlock(4), BlockKind::Node))
                .starts_with("metadata block 4: bad checksum")
        );
        assert!(message(cache.get(&disk, MetaBlock(10), BlockKind::Node)).contains("expected one below 10"));
        cache.get(&disk, MetaBlock(3), BlockKind::Bitmap).unwrap();
        assert!(message(cache.get(&disk, MetaBlock(3), BlockKind::Node)).contains("expected Node"));
    }
}
