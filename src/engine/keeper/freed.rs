//! What becomes of freed blocks, once no lane can reach them: they may be handed out at once, and before others, because they have their
//! space; what nobody wants gives it back to the data disk, piece by piece.
//!
//! A filesystem that makes a hole in a file lets all other I/O on that file end first and wait meanwhile. So this is done a little
//! at a time while there is other I/O, and the caller sees to it that time passes in between.

use super::*;
use std::ops::Range;

/// Ranges that one step gives back when nobody is there.
const STEP_RANGES: usize = 32;
/// Bytes of one range, at the most, while nobody is there and while somebody is.
const STEP_BYTES_ALONE: u64 = 1 << 30;
const STEP_BYTES_BESIDE: u64 = 16 << 20;

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
        self.starved = None;
        self.out_of_data_space = false;
        if self.passes_down() {
            self.freed.add(blocks);
        }
    }

    /// Whether there is freed space to be given back with [`Keeper::give_back_step`]. What a deletion frees is scattered until it is through:
    /// not before that.
    pub fn gives_back(&self) -> bool {
        !self.freed.is_empty() && !self.gets_on_deleting() && !self.is_stopped()
    }

    /// Whether lanes have work under way.
    pub fn is_anybody_there(&self) -> bool {
        self.epochs.is_anybody_there()
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
        for _ in 0..ranges {
            if !self.passes_down() {
                self.freed = FreedRanges::default(); // it is so since
            }
            let Some(range) = self.freed.take(most) else { return };
            self.pass_down(&range);
        }
    }

    pub(super) fn passes_down(&self) -> bool {
        self.discard.passes_down() && !self.cannot_discard
    }

    /// Tells the data disk of blocks that hold nothing.
    pub(super) fn pass_down(&mut self, blocks: &Range<u64>) {
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
    /// Where the next is looked for: what is below has time to grow together.
    next: u64,
}

impl FreedRanges {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a range of which nothing is there yet.
    pub fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
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
        true
    }

    /// Takes the next range away, or as many of its blocks as are asked for at the most.
    pub fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let above = self.ranges.range(self.next..).next();
        let (start, end) =
            above.or_else(|| self.ranges.first_key_value()).map(|(start, end)| (*start, *end))?;
        self.ranges.remove(&start);
        self.next = end.min(start.saturating_add(most));
        if self.next < end {
            self.ranges.insert(self.next, end);
        }
        Some(start..self.next)
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
        assert_eq!(all(&mut freed, 100), [5..9, 10..40, 50..51]);
        assert!(freed.is_empty());
    }

    #[test]
    fn long_ranges_go_in_pieces_and_the_hand_goes_round() {
        let mut freed = FreedRanges::default();
        freed.add(0..10);
        freed.add(20..45);
        assert_eq!((freed.take(10), freed.take(10)), (Some(0..10), Some(20..30)));
        freed.add(0..2); // below the hand: later
        freed.add(18..20);
        assert_eq!(all(&mut freed, 10), [30..40, 40..45, 0..2, 18..20]);
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
        assert_eq!(freed.first(), Some(11));
        freed.add(15..16);
        assert_eq!(all(&mut freed, 100), [11..19]);
        assert!(freed.first().is_none() && !freed.remove(11));
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
