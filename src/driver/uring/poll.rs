//! Looking for completions for a short while before sleeping.
//!
//! A thread that sleeps is back 30 to 70 µs after its completion on a virtual machine, about as long as the disk takes for
//! one transfer; and a disk that interrupts once for many transfers then finds lane and client asleep in turn. With
//! several requests in flight a completion is near, so that looking costs less than sleeping would lose. With a single
//! one in flight it costs a CPU and gains next to nothing, so nobody does then (docs/performance.md has the figures).

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a thread looks at most before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);
/// Looks between two readings of the clock.
const LOOKS: usize = 16;

/// Threads of this process that look right now.
static LOOKING: AtomicUsize = AtomicUsize::new(0);
/// How many may: half of the CPUs stay with those who have something to do.
static LIMIT: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2)));

/// Looks until `is_there`, or until it has been long enough, or not at all if others look already.
pub(super) fn look_for(mut is_there: impl FnMut() -> bool) {
    if LOOKING.fetch_add(1, Relaxed) < *LIMIT {
        let begun = Instant::now();
        while !(0..LOOKS).any(|_| is_there()) && begun.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    }
    LOOKING.fetch_sub(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_something_is_there_and_when_nothing_comes() {
        let mut looks = 0;
        look_for(|| {
            looks += 1;
            looks == 5
        });
        assert!(looks <= 5, "it went on after it had found something");
        let begun = Instant::now();
        look_for(|| false);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(LOOKING.load(Relaxed), 0);
    }
}
