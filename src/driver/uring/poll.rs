//! Looking for completions for a short while before sleeping.
//!
//! A thread that sleeps is back 30 to 70 µs after its completion on a virtual machine, about as long as the disk takes for
//! one transfer; and a disk that interrupts once for many transfers then finds lane and client asleep in turn. With
//! several requests in flight a completion is near, so that looking costs less than sleeping would lose. With a single
//! one in flight it costs a CPU and gains next to nothing, so nobody does then, nor when there are more such threads than
//! half of the CPUs (docs/performance.md has the figures).

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a thread looks at most before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);
/// Looks between two readings of the clock.
const LOOKS: usize = 16;

/// Threads of this process that have so much in flight.
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// With more of them than this nobody looks: each has a client that wants a CPU as well.
static LIMIT: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2)));

/// Whether a thread is one of the busy ones.
#[derive(Default)]
pub(super) struct Busy(bool);

impl Busy {
    pub(super) fn set(&mut self, is_busy: bool) {
        match (self.0, is_busy) {
            (false, true) => drop(BUSY.fetch_add(1, Relaxed)),
            (true, false) => drop(BUSY.fetch_sub(1, Relaxed)),
            (false, false) | (true, true) => {}
        }
        self.0 = is_busy;
    }

    /// For a busy thread: looks until `is_there`, or until it has been long enough, or not at all if too many are busy.
    pub(super) fn look_for(&self, mut is_there: impl FnMut() -> bool) {
        debug_assert!(self.0, "who has little in flight does not look");
        if BUSY.load(Relaxed) > *LIMIT {
            return;
        }
        let begun = Instant::now();
        while !(0..LOOKS).any(|_| is_there()) && begun.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_something_is_there_and_when_nothing_comes_and_leaves_it_when_many_are_busy() {
        let mut looks = 0;
        let mut busy = Busy::default();
        busy.set(true);
        busy.look_for(|| {
            looks += 1;
            looks == 5
        });
        assert!(looks <= 5, "it went on after it had found something");
        let begun = Instant::now();
        busy.look_for(|| false);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let others: Vec<_> = (0..*LIMIT)
            .map(|_| {
                let mut other = Busy::default();
                [true, true, false, true].into_iter().for_each(|is_busy| other.set(is_busy));
                other
            })
            .collect();
        busy.look_for(|| panic!("they want the CPUs"));
        drop(others);
        busy.set(false);
        assert!(BUSY.load(Relaxed) < 1000, "no more have gone than came");
    }
}
