//! How fast freed space goes back to the data disk: at once while nobody has anything to do there, and beside others for a twentieth of the
//! time, because a filesystem that makes a hole in a file stops all other I/O on it meanwhile (docs/performance.md has the figures).

use crate::disk::Disk;
use crate::engine::{Keeper, Pace};
use std::time::{Duration, Instant};

/// How long nobody must have been seen with something to do. Who has one request at a time is often not seen.
const QUIET: Duration = Duration::from_millis(100);
/// Beside others, ranges are given back for so long, and at least one.
const STEP: Duration = Duration::from_micros(100);
/// The pause after that is as many times as long as it took, and no shorter than this.
const PAUSES: u32 = 20;
const LEAST_PAUSE: Duration = Duration::from_millis(2);

#[derive(Default)]
pub(super) struct GivingBack {
    /// When the next step may be.
    next: Option<Instant>,
    /// Until when somebody is taken to be there.
    beside_until: Option<Instant>,
    /// There was something left at the last look.
    has_begun: bool,
}

impl GivingBack {
    /// Has the keeper do a step if it is time for one. Answers how soon to come again; `None` if there is nothing left. To be called whenever
    /// the keeper has been at work.
    pub fn step<M: Disk, D: Disk>(&mut self, keeper: &mut Keeper<M, D>, now: Instant) -> Option<Duration> {
        let has_begun = std::mem::replace(&mut self.has_begun, keeper.gives_back());
        // Nobody has looked before there was something to do.
        if keeper.was_anybody_there() || !has_begun {
            self.beside_until = Some(now + QUIET);
        }
        if !self.has_begun {
            return None;
        }
        if let Some(next) = self.next.filter(|next| now < *next) {
            return Some(next - now);
        }
        if self.beside_until.is_none_or(|until| until <= now) {
            keeper.give_back_step(Pace::Alone);
            return Some(Duration::ZERO);
        }
        let begun = Instant::now();
        keeper.give_back_step(Pace::Beside);
        while begun.elapsed() < STEP && keeper.gives_back() {
            keeper.give_back_step(Pace::Beside);
        }
        let took = begun.elapsed();
        self.next = Some(now + took + pause_after(took));
        Some(pause_after(took))
    }
}

fn pause_after(took: Duration) -> Duration {
    (took * PAUSES).max(LEAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::engine::{Ask, Asker, Command, IdStep, KeeperOptions, LaneId, OpId, Outbox, Reply, Settled};
    use crate::metadata::{Geometry, Metadata};
    use crate::units::{BlockSize, TransactionId, VirtualBlock, VolumeId};

    const BLOCKS: u64 = 1024;

    struct Pool {
        keeper: Keeper<MemoryDisk, MemoryDisk>,
        volume: VolumeId,
    }

    impl Pool {
        fn new() -> Self {
            let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: BLOCKS };
            let metadata = Metadata::format(MemoryDisk::zeroed(8 << 20), geometry).unwrap();
            let data = MemoryDisk::zeroed(BLOCKS * BlockSize::MIN.bytes());
            let mut keeper = Keeper::new(metadata, data, KeeperOptions::default()).unwrap();
            let volume = VolumeId::new(0).unwrap();
            let step = IdStep { from: TransactionId(0), to: TransactionId(1) };
            let size_bytes = BLOCKS * BlockSize::MIN.bytes();
            let create = Command::CreateVolume { volume, size_bytes, origin: None, step };
            keeper.command(0, create, &mut Outbox::default());
            keeper.settle(&mut Outbox::default());
            Pool { keeper, volume }
        }

        fn ask(&mut self, ask: Ask) -> Reply {
            let mut out = Outbox::default();
            self.keeper.handle(Asker::Lane(LaneId(0), OpId(0)), ask, &mut out);
            out.replies.pop().map(|(_, reply)| reply).expect("an answer at once")
        }

        /// Every other of so many blocks is written, and then freed again: as many ranges, of which the disk is to be told. What was asked for that is
        /// forgotten.
        fn free(&mut self, ranges: u64) {
            let fills: Vec<_> =
                (0..2 * ranges).map(|block| self.ask(Ask::Fill(self.volume, VirtualBlock(block)))).collect();
            for (block, fill) in (0..).zip(fills) {
                let target = match fill {
                    Reply::Fill { target, .. } => target,
                    Reply::Again => continue, // it is there from the time before
                    other => panic!("{other:?}"),
                };
                self.ask(Ask::Publish(self.volume, VirtualBlock(block), target));
            }
            (0..ranges).for_each(|range| {
                drop(self.ask(Ask::Unmap(self.volume, 2 * range..2 * range + 1, u64::MAX)))
            });
            let mut out = Outbox::default();
            self.keeper.command(1, Command::Commit, &mut out);
            while self.keeper.settle(&mut out) != Settled::Idle {}
            self.keeper.was_anybody_there();
        }
    }

    #[test]
    fn once_nobody_has_been_there_for_a_while_all_of_it_goes_at_once() {
        let mut pool = Pool::new();
        pool.free(300);
        let (mut giving_back, now) = (GivingBack::default(), Instant::now());
        let pause = giving_back.step(&mut pool.keeper, now).expect("it has begun");
        assert!(pause >= LEAST_PAUSE, "nobody has looked before");
        let (mut steps, later) = (0, now + QUIET + pause);
        while let Some(pause) = giving_back.step(&mut pool.keeper, later) {
            assert_eq!(pause, Duration::ZERO);
            steps += 1;
        }
        assert!(steps <= 300_u32.div_ceil(32), "32 a step, and not {steps} steps");
    }

    #[test]
    fn beside_others_it_is_a_twentieth_of_the_time() {
        assert_eq!(pause_after(Duration::from_millis(7)), Duration::from_millis(140));
        assert_eq!(pause_after(Duration::from_micros(3)), LEAST_PAUSE);
    }

    #[test]
    fn beside_others_there_is_a_pause_also_before_what_is_freed_next() {
        let mut pool = Pool::new();
        let (mut giving_back, now) = (GivingBack::default(), Instant::now());
        pool.free(1);
        pool.ask(Ask::Load(pool.volume, VirtualBlock(0)));
        let pause = giving_back.step(&mut pool.keeper, now).expect("it has begun");
        assert!(pause >= LEAST_PAUSE);
        assert_eq!(giving_back.step(&mut pool.keeper, now), None, "that was all");
        pool.free(1);
        let left = giving_back.step(&mut pool.keeper, now).expect("something is left");
        assert!(left > Duration::ZERO && pool.keeper.gives_back(), "not yet");
        assert!(
            giving_back.step(&mut pool.keeper, now + 2 * pause + QUIET).is_some()
                && !pool.keeper.gives_back()
        );
    }

    #[test]
    fn who_was_there_is_not_forgotten_at_once() {
        let mut pool = Pool::new();
        let (mut giving_back, now) = (GivingBack::default(), Instant::now());
        pool.free(500);
        let mut step =
            |pool: &mut Pool, after| giving_back.step(&mut pool.keeper, now + after).expect("much is left");
        step(&mut pool, Duration::ZERO);
        pool.ask(Ask::Load(pool.volume, VirtualBlock(0)));
        assert!(step(&mut pool, 2 * QUIET) >= LEAST_PAUSE);
        assert!(step(&mut pool, 3 * QUIET - LEAST_PAUSE) > Duration::ZERO, "he may be there still");
        assert_eq!(step(&mut pool, 100 * QUIET), Duration::ZERO, "nobody has been there for a while");
    }
}
