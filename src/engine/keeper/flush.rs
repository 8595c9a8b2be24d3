//! Flushes beside everything else: whoever drives the keeper does them, and lets others ask it meanwhile.
//!
//! ```text
//! begin_flush     takes those who wait for one, and notes how far the journal has got -> Data
//!   Data            the data disk; what others write and the keeper records meanwhile is not of this flush
//! flush_ended     a record says up to where the data is durable -> Journal
//!   Journal         the journal's disk
//! flush_ended     who waited is answered
//! ```
//!
//! What must hold:
//!
//! - One flush of the journal at a time: who asks for one meanwhile waits for the next.
//! - A commit that comes in between makes durable what they wait for, and answers them. Its own flush of the data disk waits for the one that
//!   is under way, and fails if that has failed ([`DataFlushes`]).
//! - When the pool stops in between, they are told that with all others.

use super::*;
use crate::disk::DataFlushed;
use crate::journal::{Distrust, FlushPoint, Journal};
use std::io;

/// A flush that is under way.
#[derive(Default)]
pub(super) struct FlushBeside {
    /// Who waits for it: nobody, if it was begun for a commit to come, or if they have been answered.
    askers: Vec<Asker>,
    /// What of the journal is to be made durable; `None`: all of it is.
    point: Option<FlushPoint>,
}

/// What somebody is to flush, without keeping the keeper from answering others; then [`Keeper::flush_ended`].
pub enum FlushJob<D> {
    /// The data disk. If that fails, the journal is to know it before anybody else: whoever does this may be killed before the keeper does.
    Data(D, Arc<DataFlushes>, Option<Distrust>),
    /// The journal's.
    Journal(Arc<dyn Disk>),
}

/// What has become of it.
#[derive(Debug)]
pub enum FlushDone {
    /// The data disk was flushed.
    Data(io::Result<DataFlushed>),
    /// The journal's was.
    Journal(io::Result<()>),
}

impl<D: Disk> FlushJob<D> {
    /// Does it.
    pub fn run(self) -> FlushDone {
        match self {
            FlushJob::Data(disk, flushes, journal) => {
                let flushed = flushes.flush(&disk);
                if let (Err(_), Some(journal)) = (&flushed, journal) {
                    journal.carry_out();
                }
                FlushDone::Data(flushed)
            }
            FlushJob::Journal(disk) => FlushDone::Journal(disk.flush()),
        }
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Whether a flush is under way that [`Keeper::begin_flush`] has begun.
    pub fn is_flushing(&self) -> bool {
        self.flush_beside.is_some()
    }

    /// Begins a flush for all who wait for one, if it takes no commit: then [`Keeper::settle`] does it.
    pub fn begin_flush(&mut self) -> Option<FlushJob<D>>
    where
        D: Clone,
    {
        let commits = !self.committed_answers.is_empty() || self.journal.is_large();
        if self.is_stopped() || !self.is_asked_to_flush() || !self.can_flush_journal() || commits {
            return None;
        }
        let point = self.journal.journal.as_ref().and_then(Journal::flush_point);
        let flush = FlushBeside { askers: std::mem::take(&mut self.flushes), point };
        Some(self.flush_data_beside(flush))
    }

    /// Begins a flush of the data disk, if there is anything that the next [`Keeper::tick`] commits: it then has little left to flush.
    pub fn begin_flush_ahead(&mut self) -> Option<FlushJob<D>>
    where
        D: Clone,
    {
        let is_due = !self.is_stopped() && !self.is_flushing() && self.is_dirty();
        is_due.then(|| self.flush_data_beside(FlushBeside::default()))
    }

    fn flush_data_beside(&mut self, flush: FlushBeside) -> FlushJob<D>
    where
        D: Clone,
    {
        self.flush_beside = Some(flush);
        let journal = self.journal.journal.as_ref().map(Journal::distrust_later);
        FlushJob::Data(self.data.clone(), self.data_flushes.clone(), journal)
    }

    /// Goes on with a flush; what is left of it to be done, if anything is.
    pub fn flush_ended(&mut self, done: FlushDone, out: &mut Outbox) -> Option<FlushJob<D>> {
        let FlushBeside { askers, point } = self.flush_beside.take().expect("a flush ends that was begun");
        match done {
            FlushDone::Data(Ok(data_first)) => return self.mark_flushed(askers, point, data_first, out),
            FlushDone::Data(Err(error)) => {
                self.flushes.extend(askers);
                if self.is_stopped() {
                    self.journal.distrust(); // for another reason, which did not
                }
                let (failure, error) = self.data_flush_failed(&error);
                self.stop(failure, error, out);
            }
            FlushDone::Journal(Ok(())) => {
                if let (Some(journal), Some(point)) = (&mut self.journal.journal, point) {
                    journal.flushed(point);
                }
                out.replies.extend(askers.into_iter().map(|asker| (asker, Reply::Done)));
            }
            FlushDone::Journal(Err(error)) => {
                self.flushes.extend(askers);
                if !self.is_stopped() {
                    self.give_journal_up(&error, out); // the commit answers those who wait
                }
            }
        }
        None
    }

    /// The data is durable: of the journal there is something left to flush, or those who wait have what they want.
    fn mark_flushed(
        &mut self,
        askers: Vec<Asker>,
        point: Option<FlushPoint>,
        data_first: DataFlushed,
        out: &mut Outbox,
    ) -> Option<FlushJob<D>> {
        if askers.is_empty() {
            return None;
        }
        let Some(point) = point else {
            out.replies.extend(askers.into_iter().map(|asker| (asker, Reply::Done)));
            return None;
        };
        match self.journal.journal.as_mut().map(|journal| journal.mark_flush(point, data_first)) {
            Some(Ok(Some(disk))) => {
                self.flush_beside = Some(FlushBeside { askers, point: Some(point) });
                return Some(FlushJob::Journal(disk));
            }
            Some(Err(error)) => {
                self.flushes.extend(askers);
                self.give_journal_up(&error, out);
            }
            // There is none any more, or not what was in it: a commit has answered them, or will.
            Some(Ok(None)) | None => self.flushes.extend(askers),
        }
        None
    }

    /// Flushes the data disk, after a flush beside that may be under way.
    pub(super) fn flush_data(&self) -> io::Result<DataFlushed> {
        self.data_flushes.flush(&self.data)
    }

    /// Those who wait for a flush, of whatever kind.
    pub(super) fn take_flushers(&mut self) -> impl Iterator<Item = Asker> + use<M, D> {
        let beside = self.flush_beside.as_mut().map(|flush| std::mem::take(&mut flush.askers));
        std::mem::take(&mut self.flushes).into_iter().chain(beside.unwrap_or_default())
    }
}
