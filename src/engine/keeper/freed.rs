//! What becomes of freed blocks, once no lane can reach them: they may be handed out at once, and before others, because they have their
//! space; what nobody wants gives it back to the data disk, piece by piece.
//!
//! A filesystem that makes a hole in a file lets all other I/O on that file end first and wait meanwhile. So this is done a little
//! at a time while there is other I/O, and the caller sees to it that time passes in between.

use super::*;
use std::ops::Range;

/// Ranges that one step gives back when nobody is there.
const STEP_RANGES: usize = 32;
/// Bytes of one range, at the most (or one block), while nobody is there and while somebody is.
const STEP_BYTES_ALONE: u64 = 1 << 30;
const STEP_BYTES_BESIDE: u64 = 16 << 20;
/// Where nothing is passed down, so many ranges are remembered, only to be handed out before others: what is more is found in the space map.
const REMEMBERED_RANGES: usize = 1 << 16;

/// Whether others have I/O on the data disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// Nobody is held up.
    Alone,
    /// Somebody may be, so it is done in small pieces.
    Beside,
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Nobody can reach these blocks any more.
    pub(super) fn reusable(&mut self, blocks: Range<u64>) {
        self.partial.table.remove_range(blocks.clone());
        self.metadata.make_reusable(blocks.clone());
        self.there_again(blocks);
    }

    /// These blocks are free: who waits for one may have it.
    pub(super) fn there_again(&mut self, blocks: Range<u64>) {
        self.starved = None;
        self.out_of_data_space = false;
        if self.passes_down() || self.freed.ranges.len() < REMEMBERED_RANGES {
            self.freed.add(blocks);
        }
    }

    /// Blocks whose space is to go back.
    pub(super) fn to_give_back(&self) -> u64 {
        if self.passes_down() { self.freed.blocks() } else { 0 }
    }

    /// Whether there is something to do for [`Keeper::give_back_step`]. What a deletion frees is scattered until it is through: not before
    /// that.
    pub fn gives_back(&self) -> bool {
        self.to_give_back() > 0 && !self.gets_on_deleting() && !self.is_stopped()
    }

    /// Whether lanes have work under way, or have asked for something since this was asked last.
    pub fn was_anybody_there(&mut self) -> bool {
        std::mem::take(&mut self.was_asked) || self.epochs.is_anybody_there()
    }

    /// Gives some of what was freed, and has not been handed out again, back to the data disk.
    pub fn give_back_step(&mut self, pace: Pace) {
        if self.gives_back() {
            self.give_back(pace);
        }
    }

    pub(super) fn give_back(&mut self, pace: Pace) {
        let (ranges, bytes) = match pace {
            Pace::Alone => (STEP_RANGES, STEP_BYTES_ALONE),
            Pace::Beside => (1, STEP_BYTES_BESIDE),
        };
        let most = (bytes / self.block_size().bytes()).max(1);
        for done in 0..ranges {
            if done > 0 && self.epochs.is_anybody_there() {
                self.was_asked = true; // as good as: he is gone by the next look
                return;
            }
            if !self.passes_down() {
                return;
            }
            let Some(range) = self.freed.take(most) else { return };
            self.pass_down(&range);
        }
    }

    pub(super) fn passes_down(&self) -> bool {
        self.discard.passes_down() && !self.cannot_discard
    }

    /// Tells the data disk of blocks that hold nothing, if it is to know.
    pub(super) fn pass_down(&mut self, blocks: &Range<u64>) {
        if !self.passes_down() {
            return;
        }
        let block_bytes = self.block_size().bytes();
        let length_bytes = (blocks.end - blocks.start) * block_bytes;
        match self.data.discard(blocks.start * block_bytes, length_bytes) {
            Ok(()) => self.ahead.gave_back(blocks),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!("{}: cannot discard; freed blocks keep their space", self.data.name());
                self.cannot_discard = true;
            }
            // Only space is at stake, not data.
            Err(error) => tracing::warn!("{}: discard failed: {error}", self.data.name()),
        }
    }
}

/// Disjoint ranges of blocks: neighbours are joined, so that what was freed block by block goes in few pieces.
#[derive(Default)]
pub(super) struct FreedRanges {
    /// Begin and end of each.
    ranges: BTreeMap<u64, u64>,
    blocks: u64,
}

impl FreedRanges {
    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Adds a range of which nothing is there yet.
    pub fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        self.blocks += end - start;
        if let Some((before, before_end)) = self.ranges.range(..start).next_back() {
            debug_assert!(*before_end <= start, "{start}..{end} is freed twice");
            if *before_end == start {
                start = *before;
            }
        }
        if let Some(after_end) = self.ranges.remove(&end) {
            end = after_end;
        }
        self.ranges.insert(start, end);
    }

    /// The lowest block.
    pub fn first(&self) -> Option<u64> {
        self.ranges.first_key_value().map(|(start, _)| *start)
    }

    /// Takes a block away; whether it was there.
    pub fn remove(&mut self, block: u64) -> bool {
        let below = self.ranges.range(..=block).next_back().map(|(start, end)| (*start, *end));
        let Some((start, end)) = below.filter(|(_, end)| block < *end) else { return false };
        self.ranges.remove(&start);
        let rest = [(start, block), (block + 1, end)];
        self.ranges.extend(rest.into_iter().filter(|(start, end)| start < end));
        self.blocks -= 1;
        true
    }

    /// Takes the highest range away, or as many of its blocks as are asked for at the most: the lowest are handed out next.
    pub fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let (start, end) = self.ranges.pop_last()?;
        let from = start.max(end.saturating_sub(most));
        if start < from {
            self.ranges.insert(start, from);
        }
        self.blocks -= end - from;
        Some(from..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(freed: &mut FreedRanges, most: u64) -> Vec<Range<u64>> {
        std::iter::from_fn(|| freed.take(most)).collect()
    }

    #[test]
    fn neighbours_are_joined() {
        let mut freed = FreedRanges::default();
        for range in [10..20, 30..40, 25..30, 20..25, 50..51, 5..9] {
            freed.add(range);
        }
        assert_eq!(all(&mut freed, 100), [50..51, 10..40, 5..9]);
        assert_eq!(freed.blocks(), 0);
    }

    #[test]
    fn long_ranges_go_in_pieces_from_the_end() {
        let mut freed = FreedRanges::default();
        freed.add(0..10);
        freed.add(20..45);
        assert_eq!((freed.take(10), freed.take(10)), (Some(35..45), Some(25..35)));
        freed.add(18..20);
        assert_eq!(all(&mut freed, 10), [18..25, 0..10]);
    }

    #[test]
    fn single_blocks_are_taken_out_of_ranges() {
        let mut freed = FreedRanges::default();
        freed.add(10..20);
        assert_eq!(freed.first(), Some(10));
        assert_eq!(
            [9, 10, 15, 19, 20, 15].map(|block| freed.remove(block)),
            [false, true, true, true, false, false]
        );
        assert_eq!((freed.first(), freed.blocks()), (Some(11), 7));
        freed.add(15..16);
        assert_eq!((freed.take(100), freed.take(100)), (Some(11..19), None));
        assert!(freed.first().is_none() && freed.blocks() == 0 && !freed.remove(11));
    }

    #[test]
    fn what_comes_in_any_order_goes_out_once() {
        let mut freed = FreedRanges::default();
        let blocks = |step: u64| (0..1000).map(move |number| number * step % 1000);
        for (added, block) in blocks(377).enumerate() {
            freed.add(block..block + 1);
            assert!(freed.ranges.len() <= added + 1);
        }
        assert_eq!((freed.take(u64::MAX), freed.take(1)), (Some(0..1000), None));
    }
}
