//! How fast freed space goes back to the data disk: at once while nobody has anything to do there, and beside others in a small part of the
//! time. A filesystem that makes a hole in a file stops all other I/O on it meanwhile: with a snapshot made and deleted ten times a
//! second, clients got a tenth of what they get now.

use crate::disk::Disk;
use crate::engine::{Keeper, Pace};
use std::time::{Duration, Instant};

/// How long nobody must have been seen with something to do. Who has one request at a time is often not seen.
const QUIET: Duration = Duration::from_millis(100);
/// Beside others, a pause is as many times as long as the step before it was, and no shorter than this.
const PAUSES: u32 = 20;
const LEAST_PAUSE: Duration = Duration::from_millis(2);

#[derive(Default)]
pub(super) struct GivingBack {
    /// When the next step may be; `None` while there is nothing to be given back.
    next: Option<Instant>,
    /// Until when somebody is taken to be there.
    beside_until: Option<Instant>,
}

impl GivingBack {
    /// Has the keeper do a step if it is time for one. Answers how soon to come again; `None` if there is nothing left.
    pub fn step<M: Disk, D: Disk>(&mut self, keeper: &mut Keeper<M, D>) -> Option<Duration> {
        if !keeper.gives_back() {
            *self = GivingBack::default();
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.next.filter(|next| now < *next) {
            return Some(next - now);
        }
        if keeper.is_anybody_there() || self.beside_until.is_none() {
            self.beside_until = Some(now + QUIET);
        }
        let pace = if self.beside_until > Some(now) { Pace::Beside } else { Pace::Alone };
        keeper.give_back_step(pace);
        let pause = match pace {
            Pace::Alone => Duration::ZERO,
            Pace::Beside => (now.elapsed() * PAUSES).max(LEAST_PAUSE),
        };
        self.next = Some(Instant::now() + pause);
        Some(pause)
    }
}
