//! The journal, as the keeper sees it: which changes are recorded, and what becomes of it when it is full or fails.
//!
//! A record says what has happened on top of the last commit and the records before it, and nothing else. So there must be
//! [room](Keeper::make_room) for it before anything is changed: whatever a commit has made durable is recorded no more, and what was
//! done without a record (a volume that has come, a pool that has grown) has to be durable before a record may build on it.
//! It is written before lanes can see what it says, lest one build on that and be acknowledged first.

use super::*;
use crate::engine::command::JournalStatus;
use crate::journal::{Journal, JournalRecord};

/// What the keeper knows of its journal.
#[derive(Default)]
pub(super) struct JournalWork {
    /// `None`: there is none, or it has failed.
    pub journal: Option<Journal>,
    /// The last one, while no commit has said yet that there is none any more: its records still count.
    former: Option<Journal>,
    /// Something was done since the last commit that is not recorded and that a record may build on.
    pub is_behind: bool,
    pub has_failed: bool,
}

impl JournalWork {
    /// Whether a record can be added, and so whether a flush needs no commit.
    fn can_flush(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.has_room() && !self.is_behind)
    }

    pub fn has_records(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::has_records)
    }

    /// Whether a commit is due that makes it empty.
    pub fn is_large(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_large)
    }

    /// A commit is through.
    pub fn committed(&mut self, was_emptied: bool) {
        self.is_behind = false;
        self.former = None;
        if was_emptied && let Some(journal) = &mut self.journal {
            journal.committed();
        }
    }

    /// See [`Journal::distrust`]: of the one that the superblock names, if there is one.
    pub fn distrust(&mut self) {
        if let Some(journal) = self.journal.as_mut().or(self.former.as_mut()) {
            journal.distrust();
        }
    }

    pub fn status(&self) -> JournalStatus {
        match &self.journal {
            Some(journal) => {
                let (used_bytes, total_bytes) = journal.usage();
                JournalStatus::On { used_bytes, total_bytes }
            }
            None if self.has_failed => JournalStatus::Failed,
            None => JournalStatus::Off,
        }
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Records what changes from now on. The metadata name this journal, durably, and nothing was asked of the keeper yet.
    pub fn use_journal(&mut self, journal: Journal) {
        assert_eq!(
            self.metadata.journal().map(|mark| mark.generation),
            Some(0),
            "it was begun for these metadata"
        );
        self.partial.table.is_recorded.store(true, std::sync::atomic::Ordering::Relaxed);
        self.journal.journal = Some(journal);
    }

    /// Before a change that will be recorded: sees to it that it can be. `false`: the pool has stopped.
    pub(super) fn make_room(&mut self, out: &mut Outbox) -> bool {
        let is_ready = self.journal.journal.is_none() || self.journal.can_flush();
        is_ready || self.commit(out).is_ok()
    }

    /// Records what has just been done and nobody else can see yet. `false`: the pool has stopped.
    pub(super) fn record(&mut self, record: JournalRecord, out: &mut Outbox) -> bool {
        match self.append(record) {
            Ok(()) => true,
            Err(error) => self.give_journal_up(&error, out),
        }
    }

    fn append(&mut self, record: JournalRecord) -> std::io::Result<()> {
        self.journal.journal.as_mut().map_or(Ok(()), |journal| journal.append(record))
    }

    /// Without a journal all is durable with a commit, and this one says that there is none any more. `false`: the pool has stopped.
    pub(super) fn give_journal_up(&mut self, error: &std::io::Error, out: &mut Outbox) -> bool {
        let Some(name) = self.journal.journal.as_ref().map(Journal::name) else { return !self.is_stopped() };
        tracing::error!("{name}: {error}; the pool goes on without a journal until it is opened again");
        self.journal.has_failed = true;
        self.end_journal();
        self.commit(out).is_ok()
    }

    /// The next commit says that there is none any more.
    pub(super) fn end_journal(&mut self) {
        self.metadata.set_journal(None);
        self.journal.former = self.journal.journal.take();
        if let Some(journal) = &mut self.journal.former {
            journal.release();
        }
    }

    /// Whether whoever waits for a flush can be served by [`Keeper::flush_journal`].
    pub(super) fn can_flush_journal(&self) -> bool {
        self.journal.can_flush()
    }

    /// Makes everything durable that was acknowledged, without a commit: data first, then the records that name it.
    pub(super) fn flush_journal(&mut self, out: &mut Outbox) -> Result<()> {
        let data_first = match self.flush_data() {
            Ok(data_first) => data_first,
            Err(error) => {
                let (failure, error) = self.data_flush_failed(&error);
                self.stop(failure, error, out);
                return Err(self.refusal().expect("the pool has just stopped"));
            }
        };
        let flushed = self.journal.journal.as_mut().map_or(Ok(()), |journal| journal.flush(data_first));
        match flushed {
            Ok(()) => {
                out.replies.extend(self.take_flushers().map(|asker| (asker, Reply::Done)));
                Ok(())
            }
            // The commit answers those who wait.
            Err(error) if self.give_journal_up(&error, out) => Ok(()),
            Err(_) => Err(self.refusal().expect("the pool has just stopped")),
        }
    }

    /// What has failed with a flush of the data disk, and the error to tell of.
    pub(super) fn data_flush_failed(&self, error: &std::io::Error) -> (Failure, Error) {
        let error = Error::io(format_args!("{}: flushing the data disk", self.data.name()), error);
        let has_shrunk = self.data.check_size().is_err();
        (if has_shrunk { Failure::Truncated } else { Failure::Data }, error)
    }

    /// See [`Ask::PutUnits`].
    pub(super) fn put_units(&mut self, from: Asker, block: DataBlock, units: u64, out: &mut Outbox) {
        if !self.make_room(out) {
            return out.reply(from, Reply::Failed(IoError::Io));
        }
        let recorded = self.append(JournalRecord::Units { block, units });
        // Before a commit that makes durable what could not be recorded.
        self.partial.table.put(block, units);
        let is_safe = match recorded {
            Ok(()) => true,
            Err(error) => self.give_journal_up(&error, out),
        };
        out.reply(from, if is_safe { Reply::Done } else { Reply::Failed(IoError::Io) });
    }
}
