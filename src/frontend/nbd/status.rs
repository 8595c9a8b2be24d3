//! A BLOCK_STATUS (or CACHE) under way: how far the volume was looked at, and what was found. Pure.
//!
//! The map is looked at in steps, each a request of its own to the engine. What must hold:
//!
//! - A step describes at most [`STEP_BLOCKS`] blocks, so the engine's answer has at most that many extents.
//! - A reply has at most as many extents as two steps can bring, and a request looks at no more than [`LOOK_BLOCKS`] blocks:
//!   what a client asks for beyond that it asks for again, as the protocol allows ("the server MAY return less data than
//!   requested"), and always at least one extent further on.
//! - Neighbours differ in what the chosen contexts say of them.

use super::contexts::Contexts;
use crate::engine::{Extent, ExtentState};
use crate::units::BlockSize;
use std::ops::Range;

/// The most blocks that one step describes.
pub const STEP_BLOCKS: u64 = 65_536;
/// The most blocks that one request looks at.
pub const LOOK_BLOCKS: u64 = 16 * STEP_BLOCKS;
/// Data blocks in which one extent's end is looked for at first, and how much wider each next look is. A fragmented volume
/// would otherwise be read to the end of the request for each of its extents.
const FIRST_LOOK_BLOCKS: u64 = 256;
const NEXT_LOOK_FACTOR: u64 = 8;
/// What an extent takes while a request runs: in the engine's list, in ours, in what a context makes of it, and in two chunks.
const EXTENT_BYTES: u64 = 80;

/// A description of a range under way.
#[derive(Debug)]
pub struct Status {
    /// What is to be told. Empty: nothing, the look itself is what was asked for.
    contexts: Contexts,
    /// Whether the first extent is enough.
    one: bool,
    /// What was found so far, in order, from the range's beginning on.
    extents: Vec<Extent>,
    /// How far it was looked at.
    known_end: u64,
    /// Where looking ends.
    end: u64,
    block_bytes: u64,
    /// Blocks of the next look.
    look_blocks: u64,
    /// What it was reckoned at.
    pub cost_bytes: usize,
}

impl Status {
    /// A description of `range`, which is not empty.
    pub fn new(range: Range<u64>, contexts: Contexts, one: bool, block_size: BlockSize) -> Status {
        let block_bytes = block_size.bytes();
        // Ends between blocks, like every step.
        let most = (range.start / block_bytes).saturating_add(LOOK_BLOCKS).saturating_mul(block_bytes);
        let cost_bytes = Status::cost_bytes(range.end - range.start, block_size);
        Status {
            contexts,
            one,
            extents: Vec::new(),
            known_end: range.start,
            end: range.end.min(most),
            block_bytes,
            look_blocks: if one { FIRST_LOOK_BLOCKS } else { STEP_BLOCKS },
            cost_bytes,
        }
    }

    /// What a description of so many bytes may take in memory.
    pub fn cost_bytes(length_bytes: u64, block_size: BlockSize) -> usize {
        // A step that is not the first adds to what those before it have found.
        let blocks = block_size.blocks_to_hold(length_bytes).saturating_add(1).min(2 * STEP_BLOCKS);
        (blocks * EXTENT_BYTES) as usize
    }

    /// What is told.
    pub fn contexts(&self) -> Contexts {
        self.contexts
    }

    /// What to look at next.
    pub fn next_look(&mut self) -> Range<u64> {
        let first_block = self.known_end / self.block_bytes;
        let look_end = first_block.saturating_add(self.look_blocks).saturating_mul(self.block_bytes);
        self.look_blocks = (self.look_blocks * NEXT_LOOK_FACTOR).min(STEP_BLOCKS);
        self.known_end..look_end.min(self.end)
    }

    /// Takes in what a look has found; `true` when nothing more need be looked at.
    pub fn extend(&mut self, found: &[Extent]) -> bool {
        assert!(!found.is_empty(), "extents add up to the range that was asked for, which is not empty");
        for extent in found {
            self.known_end += extent.length_bytes;
            let meaning = self.contexts.meaning_of(extent.state);
            match self.extents.last_mut() {
                Some(last) if self.contexts.meaning_of(last.state) == meaning => {
                    last.length_bytes += extent.length_bytes;
                }
                Some(_) if self.one => return true,
                Some(_) | None => self.extents.push(*extent),
            }
        }
        self.known_end >= self.end || self.extents.len() as u64 >= STEP_BLOCKS
    }

    /// What was found: length in bytes and state, neighbours of different meaning.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = (u64, ExtentState)> {
        self.extents.iter().map(|extent| (extent.length_bytes, extent.state))
    }
}

#[cfg(test)]
mod tests {
    use super::super::contexts::Context;
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 65_536;

    fn extent(blocks: u64, state: ExtentState) -> Extent {
        Extent { length_bytes: blocks * BLOCK, state }
    }

    #[test]
    fn steps_are_bounded_and_end_between_blocks() {
        let mut status = Status::new(512..1 << 50, Contexts::all(), false, BlockSize::MIN);
        let mut at = 512;
        for step in 1..=LOOK_BLOCKS / STEP_BLOCKS {
            let look = status.next_look();
            assert_eq!(look, at..step * STEP_BLOCKS * BLOCK);
            at = look.end;
            let length_bytes = look.end - look.start;
            let is_last = step == LOOK_BLOCKS / STEP_BLOCKS;
            assert_eq!(status.extend(&[Extent { length_bytes, state: ExtentState::Hole }]), is_last);
        }
        let expected = [(LOOK_BLOCKS * BLOCK - 512, ExtentState::Hole)];
        assert_eq!(status.extents().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_extent_is_looked_for_wider_and_wider() {
        let mut status = Status::new(0..1 << 50, Contexts::all(), true, BlockSize::MIN);
        let mut looks = Vec::new();
        loop {
            let look = status.next_look();
            looks.push((look.end - look.start) / BLOCK);
            if status.extend(&[extent(looks[looks.len() - 1], ExtentState::Hole)]) {
                break;
            }
        }
        assert_eq!(looks[..5], [256, 2048, 16_384, 65_536, 65_536]);
        assert_eq!(looks.iter().sum::<u64>(), LOOK_BLOCKS);
        assert_eq!(status.extents().len(), 1);
    }

    #[test]
    fn states_that_mean_the_same_are_one_extent() {
        let found = [
            extent(1, ExtentState::Shared),
            extent(2, ExtentState::Exclusive),
            extent(1, ExtentState::Hole),
            extent(1, ExtentState::Shared),
        ];
        let lengths = |contexts: &[Context], one| {
            let contexts = contexts.iter().copied().collect();
            let mut status = Status::new(0..5 * BLOCK, contexts, one, BlockSize::MIN);
            assert!(status.extend(&found));
            status.extents().map(|(bytes, _)| bytes / BLOCK).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[Context::Allocation], false), [3, 1, 1]);
        assert_eq!(lengths(&[Context::Mapping], false), [1, 2, 1, 1]);
        assert_eq!(lengths(&Context::ALL, true), [1]);
        assert_eq!(lengths(&[Context::Allocation], true), [3]);
        assert_eq!(lengths(&[], false), [5], "a look for its own sake finds one thing");
    }

    #[test]
    fn lists_stay_within_what_was_reckoned() {
        let mut status = Status::new(0..1 << 60, Contexts::all(), false, BlockSize::MIN);
        let step: Vec<Extent> = (0..STEP_BLOCKS)
            .map(|at| extent(1, if at % 2 == 0 { ExtentState::Hole } else { ExtentState::Shared }))
            .collect();
        // Nearly nothing at first, then as much as can be.
        assert!(!status.extend(&[extent(STEP_BLOCKS, ExtentState::Exclusive)]));
        assert!(status.extend(&step));
        assert!(status.extents().len() as u64 * EXTENT_BYTES <= status.cost_bytes as u64);
    }

    proptest! {
        /// Whatever is found, in whatever steps: what is told adds up, and neighbours differ.
        #[test]
        fn what_is_told_is_what_was_found(
            runs in prop::collection::vec((1..2000_u64, 0..3_u8), 1..50), begin in 0..1000_u64, one: bool, both: bool,
        ) {
            let state = |number: u8| [ExtentState::Hole, ExtentState::Shared, ExtentState::Exclusive][number as usize];
            let blocks: Vec<ExtentState> = runs.iter().flat_map(|(count, number)| {
                std::iter::repeat_n(state(*number), *count as usize)
            }).collect();
            let end = begin + blocks.len() as u64;
            let contexts = if both { Contexts::all() } else { [Context::Allocation].into_iter().collect() };
            let mut status = Status::new(begin * BLOCK..end * BLOCK, contexts, one, BlockSize::MIN);
            loop {
                let look = status.next_look();
                prop_assert!(!look.is_empty());
                let found: Vec<Extent> = (look.start / BLOCK..look.end / BLOCK)
                    .map(|block| extent(1, blocks[(block - begin) as usize])).collect();
                if status.extend(&found) { break }
            }
            let told: Vec<(u64, ExtentState)> = status.extents().collect();
            prop_assert!(told.windows(2).all(|pair| contexts.meaning_of(pair[0].1) != contexts.meaning_of(pair[1].1)));
            let mut at = 0;
            for (bytes, state) in &told {
                for block in &blocks[at..at + (bytes / BLOCK) as usize] {
                    prop_assert_eq!(contexts.meaning_of(*block), contexts.meaning_of(*state));
                }
                at += (bytes / BLOCK) as usize;
            }
            if one {
                prop_assert_eq!(told.len(), 1);
                let next = blocks.get(at).map(|block| contexts.meaning_of(*block));
                prop_assert!(next.is_none() || next != Some(contexts.meaning_of(told[0].1)));
            } else {
                prop_assert_eq!(at, blocks.len());
            }
        }
    }
}
