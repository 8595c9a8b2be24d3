//! A thread that makes partial blocks whole: a lane like any other, with requests of its own. Which blocks, and whether now, is
//! for the keeper to say; how fast is decided here, so that clients hardly notice.

use super::Pool;
use super::uring::{Completion, Ring, UringLane};
use crate::engine::{Kind, Request, Tag, Volume};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two stretches, of a block of 64 KiB mostly, while nobody is in a hurry: about 16 MiB a second.
const PAUSE: Duration = Duration::from_millis(4);
/// Before it is asked again whether there is something to be done.
const REST: Duration = Duration::from_millis(100);
/// The same while there is no partial block at all.
const LONG_REST: Duration = Duration::from_secs(1);
/// Stretches at a time when somebody waits for it; else it is one.
const HURRIED: u64 = 16;
/// Entries of its ring: each stretch has one transfer at a time.
const RING_ENTRIES: u32 = 2 * HURRIED as u32;

/// The thread.
pub(super) struct Settler {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Settler {
    /// Takes a seat in the pool for as long as it runs. `volume` is the keeper's for settling.
    pub fn start(pool: &Pool, volume: Arc<Volume>) -> Result<Self> {
        let lane = pool.lane()?;
        let ends = Arc::new(AtomicBool::new(false));
        let must_end = ends.clone();
        // A ring is its thread's own.
        let run = move || match Ring::new(RING_ENTRIES) {
            Ok(ring) => Work { lane, ring, volume, ends: must_end, is_idle: true }.run(),
            Err(error) => tracing::error!("partial blocks are not settled: {error}"),
        };
        let thread = std::thread::Builder::new()
            .name("uthin-settler".to_owned())
            .spawn(run)
            .map_err(|error| Error::io("starting the settler's thread", &error))?;
        Ok(Settler { ends, thread })
    }

    /// Ends it, and waits until it has.
    pub fn stop(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the settler's thread has panicked");
        }
    }
}

struct Work {
    lane: UringLane,
    ring: Ring,
    volume: Arc<Volume>,
    ends: Arc<AtomicBool>,
    /// The last look found nothing to be done.
    is_idle: bool,
}

impl Work {
    fn run(mut self) {
        while !self.ends.load(Ordering::Relaxed) {
            if self.is_idle && self.lane.keeps_origins() {
                self.lane.forget_origins(&mut self.ring);
            }
            self.is_idle = true;
            let pause = match self.volume.partial_blocks() {
                0 => LONG_REST,
                _ => match self.settle() {
                    Ok(true) => {
                        self.is_idle = false;
                        if self.volume.is_in_a_hurry() {
                            continue;
                        }
                        PAUSE
                    }
                    Ok(false) => REST,
                    Err(error) => {
                        tracing::error!("partial blocks are not settled any more: {error}");
                        break;
                    }
                },
            };
            std::thread::park_timeout(pause);
        }
        if let Err(error) = self.lane.drain(&mut self.ring, nobody) {
            tracing::error!("the settler's ring: {error}");
        }
    }

    /// A stretch, or as many at a time as the hurry asks for; whether there was one.
    fn settle(&mut self) -> Result<bool> {
        let before = self.volume.settled_stretches();
        let mut running = if self.volume.is_in_a_hurry() { HURRIED } else { 1 };
        for tag in 0..running {
            let (volume, kind) = (self.volume.clone(), Kind::Settle);
            let request = Request { tag: Tag(tag), volume, kind, offset_bytes: 0, length_bytes: 0 };
            self.lane.begin(request, None, &mut self.ring);
        }
        loop {
            self.lane.before_wait(&mut self.ring);
            while self.lane.next_finished().is_some() {
                running -= 1;
            }
            if running == 0 {
                return Ok(self.volume.settled_stretches() != before);
            }
            self.ring.submit_and_wait(1)?;
            while let Some(completion) = self.ring.next_completion() {
                self.lane.complete(completion, &mut self.ring);
            }
        }
    }
}

fn nobody(completion: Completion, _: &mut Ring) {
    tracing::error!("{completion:?} belongs to nobody");
}
