//! Half a queue at a time for a disk that reports everything at once.
//!
//! Some virtual disks work off what they are given and interrupt only when nothing is left: a client that keeps 16 requests in
//! flight then waits for all 16, answers with 16 more, and disk and client take turns instead of working at the same
//! time. Such a disk is known by what a turn finds: everything that was in flight has ended. When that goes on, the disk gets
//! at most half of what there is to do, and works on it while the client gets the other half; as soon as ends come one
//! by one, as they do from a disk that works on many at a time, it gets everything again.

use std::collections::VecDeque;

/// A burst has at least so many operations. Fewer end together by chance.
const LEAST: usize = 4;
/// So many bursts more than gain the disk only a half; the other is its share again when there were as many fewer.
const SURE: u32 = 16;
/// What a turn of single ends takes from the count of bursts.
const DOUBT: u32 = 4;

/// What of a lane's operations is in flight on the disk, and what waits for its turn.
#[derive(Default)]
pub(super) struct Bursts {
    in_flight: usize,
    waiting: VecDeque<usize>,
    /// In flight when the lane went to sleep last, and ended since.
    before: usize,
    ended: usize,
    /// The most there was to do at a time since the last burst.
    most: usize,
    count: u32,
    /// How many may be in flight, when the disk has shown that it reports in bursts.
    limit: Option<usize>,
}

impl Bursts {
    /// Whether an operation goes to the disk now. If not, it comes out of [`Bursts::next`] later.
    pub(super) fn begin(&mut self, operation: usize) -> bool {
        let goes = self.limit.is_none_or(|limit| self.in_flight < limit);
        if goes {
            self.in_flight += 1;
        } else {
            self.waiting.push_back(operation);
        }
        self.most = self.most.max(self.in_flight + self.waiting.len());
        goes
    }

    /// An operation has ended.
    pub(super) fn end(&mut self) {
        self.in_flight -= 1;
        self.ended += 1;
    }

    /// An operation that has waited and goes to the disk now.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.limit.is_some_and(|limit| self.in_flight >= limit) {
            return None;
        }
        let operation = self.waiting.pop_front()?;
        self.in_flight += 1;
        Some(operation)
    }

    /// A turn is over: learns from what it has seen.
    pub(super) fn turn(&mut self) {
        let (before, ended) = (self.before, std::mem::take(&mut self.ended));
        self.before = self.in_flight;
        if ended == 0 || before < LEAST {
            return;
        }
        if ended == before {
            self.count = (self.count + 1).min(2 * SURE);
        } else {
            self.count = self.count.saturating_sub(DOUBT);
        }
        let most = std::mem::take(&mut self.most);
        self.limit = match (self.count, self.limit) {
            (0, _) => None,
            (SURE.., _) | (_, Some(_)) => Some((most / 2).max(LEAST)),
            (_, None) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with a client that always has `depth` operations under way; each turn ends as many as `ends` says.
    fn turns(bursts: &mut Bursts, depth: usize, turns: usize, ends: impl Fn(usize) -> usize) {
        for _ in 0..turns {
            while bursts.in_flight + bursts.waiting.len() < depth {
                bursts.begin(0);
            }
            bursts.turn();
            for _ in 0..ends(bursts.in_flight).min(bursts.in_flight) {
                bursts.end();
                while bursts.next().is_some() {}
            }
        }
    }

    #[test]
    fn a_disk_that_ends_all_at_once_gets_half_at_a_time() {
        let mut bursts = Bursts::default();
        turns(&mut bursts, 16, 15, |in_flight| in_flight);
        assert_eq!(bursts.limit, None, "not yet sure");
        turns(&mut bursts, 16, 10, |in_flight| in_flight);
        assert_eq!((bursts.limit, bursts.in_flight), (Some(8), 8), "the other half was next");
        turns(&mut bursts, 64, 3, |in_flight| in_flight);
        assert_eq!(bursts.limit, Some(32), "the client asks for more");
        turns(&mut bursts, 5, 70, |in_flight| in_flight);
        assert_eq!(bursts.limit, Some(LEAST));
    }

    #[test]
    fn a_disk_that_ends_one_by_one_gets_everything() {
        let mut bursts = Bursts::default();
        turns(&mut bursts, 16, 100, |_| 1);
        assert_eq!(bursts.limit, None);
        turns(&mut bursts, 16, 100, |in_flight| in_flight);
        assert_eq!(bursts.limit, Some(8));
        turns(&mut bursts, 16, 8 + 1, |_| 1);
        assert_eq!(bursts.limit, None, "it has changed its ways");
        turns(&mut bursts, 16, 2, |_| 1);
        assert_eq!((bursts.in_flight, bursts.waiting.len()), (15, 0));
    }

    #[test]
    fn whatever_ends_when_everything_comes_to_its_turn_once() {
        let mut chance = 1_u64;
        let mut draw = |below: u64| {
            chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (chance >> 33) % below
        };
        let mut bursts = Bursts::default();
        let (mut flying, mut next, mut ended) = (Vec::new(), 0, 0);
        let mut was_limited = false;
        for _ in 0..20_000 {
            for _ in 0..draw(20) {
                if bursts.begin(next) {
                    flying.push(next);
                }
                next += 1;
            }
            bursts.turn();
            was_limited |= bursts.limit.is_some();
            let ends = if draw(40) == 0 { draw(1 + flying.len() as u64) as usize } else { flying.len() };
            for _ in 0..ends {
                flying.swap_remove(draw(flying.len() as u64) as usize);
                ended += 1;
                bursts.end();
                while let Some(operation) = bursts.next() {
                    flying.push(operation);
                }
            }
            assert_eq!(flying.len(), bursts.in_flight);
            assert!(
                bursts.waiting.is_empty() || bursts.in_flight > 0,
                "nobody would ever look at them again"
            );
        }
        assert!(was_limited, "the case this is about never came up");
        while flying.pop().is_some() {
            ended += 1;
            bursts.end();
            while let Some(operation) = bursts.next() {
                flying.push(operation);
            }
        }
        assert_eq!((ended, bursts.waiting.len()), (next, 0));
    }
}
