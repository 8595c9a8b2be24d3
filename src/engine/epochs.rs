//! When may what the keeper took away be reused? When nobody can still be looking at it.
//!
//! The keeper counts epochs. A lane shows the epoch in which its oldest running piece of work began. What was retired in
//! epoch *e* is out of everybody's reach once every lane's oldest epoch is above *e*: a piece of work that begins later
//! reads the map as it is after the retirement.

use super::request::LaneId;
use super::sync::{AtomicU64, Ordering::SeqCst, fence};
use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::utils::CachePadded;

/// A lane that runs nothing.
const IDLE: u64 = u64::MAX;

/// An epoch's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u64);

/// The pool's epochs, shared by the keeper and all lanes.
pub struct Epochs {
    now: CachePadded<AtomicU64>,
    oldest: Box<[CachePadded<AtomicU64>]>,
}

impl Epochs {
    /// For lanes 0 .. `lanes`.
    pub fn new(lanes: usize) -> Self {
        let oldest = (0..lanes).map(|_| CachePadded::new(AtomicU64::new(IDLE))).collect();
        Epochs { now: CachePadded::new(AtomicU64::new(1)), oldest }
    }

    /// Number of lanes there can be.
    pub fn lanes(&self) -> usize {
        self.oldest.len()
    }

    /// Keeper: ends the present epoch and returns it. Call it after the map was changed.
    pub fn retire(&self) -> Epoch {
        fence(SeqCst);
        Epoch(self.now.fetch_add(1, SeqCst))
    }

    /// Keeper: whether any lane has work under way.
    pub fn is_anybody_there(&self) -> bool {
        self.oldest.iter().any(|oldest| oldest.load(SeqCst) != IDLE)
    }

    /// Keeper: whether all work that began in `epoch` or earlier has finished.
    pub fn all_past(&self, epoch: Epoch) -> bool {
        fence(SeqCst);
        self.oldest.iter().all(|oldest| oldest.load(SeqCst) > epoch.0)
    }
}

/// One lane's side of it: how many pieces of work it runs in which epoch.
pub(super) struct Presence {
    lane: LaneId,
    epochs: Arc<Epochs>,
    /// Epochs with work, oldest first, with the number of pieces; the front is never 0.
    running: VecDeque<(Epoch, u64)>,
}

impl Presence {
    pub(super) fn new(lane: LaneId, epochs: Arc<Epochs>) -> Self {
        Presence { lane, epochs, running: VecDeque::new() }
    }

    /// A piece of work begins; to be called before it looks at the map.
    pub(super) fn enter(&mut self) -> Epoch {
        let now = Epoch(self.epochs.now.load(SeqCst));
        match self.running.back_mut() {
            Some((epoch, count)) if *epoch == now => *count += 1,
            _ => {
                if self.running.is_empty() {
                    self.show(now.0);
                }
                self.running.push_back((now, 1));
            }
        }
        now
    }

    /// A piece of work that began in `epoch` is finished.
    pub(super) fn leave(&mut self, epoch: Epoch) {
        let entry = self.running.iter_mut().find(|(running, _)| *running == epoch);
        entry.expect("who leaves has entered").1 -= 1;
        let oldest_before = self.running.front().map(|(epoch, _)| *epoch);
        while self.running.front().is_some_and(|(_, count)| *count == 0) {
            self.running.pop_front();
        }
        let oldest = self.running.front().map(|(epoch, _)| *epoch);
        if oldest != oldest_before {
            self.show(oldest.map_or(IDLE, |epoch| epoch.0));
        }
    }

    fn show(&self, oldest: u64) {
        self.epochs.oldest[usize::from(self.lane.0)].store(oldest, SeqCst);
        // Pairs with the fence of `all_past`: either the keeper sees this epoch, or this lane sees the keeper's change.
        fence(SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retired_things_wait_for_the_work_that_began_before() {
        let epochs = Arc::new(Epochs::new(2));
        let mut lane = Presence::new(LaneId(0), epochs.clone());
        let first = lane.enter();
        let second = lane.enter();
        let retired = epochs.retire();
        assert!(!epochs.all_past(retired));
        let later = lane.enter();
        assert!(later > first);
        lane.leave(first);
        assert!(!epochs.all_past(retired), "one of two is still running");
        lane.leave(second);
        assert!(epochs.all_past(retired), "only later work is left");
        assert!(epochs.is_anybody_there());
        lane.leave(later);
        assert!(epochs.all_past(epochs.retire()) && !epochs.is_anybody_there());
    }

    #[test]
    fn work_may_end_in_any_order() {
        let epochs = Arc::new(Epochs::new(1));
        let mut lane = Presence::new(LaneId(0), epochs.clone());
        let old = lane.enter();
        let first = epochs.retire();
        let new = lane.enter();
        let second = epochs.retire();
        lane.leave(new);
        assert!(!epochs.all_past(first) && !epochs.all_past(second));
        lane.leave(old);
        assert!(epochs.all_past(first) && epochs.all_past(second));
    }
}
