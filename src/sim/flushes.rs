//! Flushes beside everything else, as the driver does them.
//!
//! Some are done when they begin and some when they end: so neither what is written meanwhile may be taken for durable, nor what a
//! flush is to make durable before it has ended.

use super::disk::SimDisk;
use super::world::{Event, World};
use crate::engine::{FlushDone, FlushJob, Outbox};

/// A flush that was begun and of whose end the keeper does not know.
pub(super) enum FlushUnderWay {
    /// It will be done when it ends.
    Job(FlushJob<SimDisk>),
    /// The disk has done it.
    Done(FlushDone),
}

impl World {
    /// What the driver does once a second.
    pub(super) fn tick(&mut self) -> Result<(), String> {
        if self.chance.one_in(2)
            && let Some(job) = self.keeper.begin_flush_ahead()
        {
            self.flush_begins(job);
        }
        let mut out = Outbox::default();
        self.keeper.tick(&mut out);
        self.deliver(out)
    }

    /// A flush begins, and ends some time.
    pub(super) fn flush_begins(&mut self, job: FlushJob<SimDisk>) {
        let flush = match self.chance.one_in(2) {
            true => FlushUnderWay::Job(job),
            false => FlushUnderWay::Done(job.run()),
        };
        self.add_event(Event::FlushEnds(flush));
    }

    /// The keeper learns of its end.
    pub(super) fn flush_ends(&mut self, flush: FlushUnderWay) -> Result<(), String> {
        let done = match flush {
            FlushUnderWay::Job(job) => job.run(),
            FlushUnderWay::Done(done) => done,
        };
        self.tell(None, format_args!("a flush beside others ends: {done:?}"));
        let mut out = Outbox::default();
        let next = self.keeper.flush_ended(done, &mut out);
        self.deliver(out)?;
        if let Some(job) = next {
            self.flush_begins(job);
        }
        Ok(())
    }
}
