//! Ranges of freed blocks that wait until the data disk is told: neighbours are joined, so that what was freed block by block goes in few
//! pieces.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges.
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
