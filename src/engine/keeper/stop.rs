//! How the pool steps down when something fails: to read-only where what is durable is known, else to "failed".
//!
//! What must hold: nothing is acknowledged any more that was not durable before; no reader gets other bytes than the ones
//! that its volume held when the pool stopped; what the failed transaction did that nobody was told of, is undone.
//!
//! The metadata goes back to its last commit, and the map tables, which lanes read, stay as they are: they know what was
//! acknowledged since. Where a table does not know a page that has changed since then, the metadata's word for it would be
//! one of the past, and so a read there is an error. No block is handed out any more, so what tables point at stays.

use super::*;
use crate::engine::sizes::PAGE_BLOCKS;
use std::collections::HashSet;

/// Why the pool takes no more changes.
pub(super) enum Stop {
    /// It was opened for reading: its metadata asks for a check.
    OpenedReadOnly(Error),
    /// Something has failed. What is durable is known, and can be read.
    ReadOnly(Error),
    /// What is durable is not known, or it was closed.
    Failed(Error),
}

/// What has failed, which decides how far down the pool steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// A flush of the data disk. What the metadata says is as sound as ever.
    Data,
    /// A change or commit of the metadata: a checker is to look at it before the next.
    Metadata,
    /// The data disk has become smaller: what is missing cannot be told from what was never written.
    Truncated,
    /// The metadata disk has: what is missing may be anything.
    MetadataTruncated,
}

/// What was done since the last commit.
#[derive(Default)]
pub(super) struct Uncommitted {
    /// Pages in which blocks were mapped, by number.
    mapped: HashSet<(VolumeId, u64)>,
    /// Blocks that were unmapped.
    unmapped: Vec<(VolumeId, Range<u64>)>,
    deleted: Vec<Arc<Volume>>,
    rolled_back: Vec<VolumeId>,
}

impl Uncommitted {
    pub fn map(&mut self, volume: VolumeId, block: VirtualBlock) {
        self.mapped.insert((volume, block.0 / PAGE_BLOCKS));
    }

    pub fn unmap(&mut self, volume: VolumeId, blocks: Range<u64>) {
        self.unmapped.push((volume, blocks));
    }

    pub fn delete(&mut self, volume: Arc<Volume>) {
        self.deleted.push(volume);
    }

    /// To be called with all else committed.
    pub fn roll_back(&mut self, volume: VolumeId) {
        self.rolled_back.push(volume);
    }

    pub fn has_changed(&self, volume: VolumeId, page: &Range<u64>) -> bool {
        let meets = |blocks: &Range<u64>| blocks.start < page.end && page.start < blocks.end;
        self.mapped.contains(&(volume, page.start / PAGE_BLOCKS))
            || self.unmapped.iter().any(|(other, blocks)| *other == volume && meets(blocks))
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Whether the pool takes changes.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// What changes are answered when the pool takes none.
    pub(super) fn refusal(&self) -> Option<Error> {
        let refused = |what, cause: &Error| {
            let hint = cause.next_step().unwrap_or("close it, and open it again: everything flushed is safe");
            let message = format!("the pool {what} and takes no more changes: {}", cause.message());
            Error::new(ErrorKind::Failed, message).hint(hint)
        };
        Some(match self.stopped.as_ref()? {
            Stop::OpenedReadOnly(why) => why.clone(),
            Stop::ReadOnly(why) => refused("is read-only", why),
            Stop::Failed(why) => refused("has failed", why),
        })
    }

    /// Opened for reading: see [`Metadata::open_to_serve`].
    pub(super) fn stop_at_opening(&mut self) {
        if let Err(why) = self.metadata.require_writable() {
            let hint = format!(
                "close the pool, run `uthin-fsck check --clear-needs-check-flag {}` (`uthin-fsck repair` if it \
                 finds damage), and open it again",
                self.metadata.disk_name()
            );
            let why = Error::new(why.kind(), why.message()).hint(hint);
            self.volumes.values().for_each(|volume| volume.refuse_changes());
            self.partial.settler.refuse_changes();
            self.stopped = Some(Stop::OpenedReadOnly(why));
        }
    }

    /// A lane asks something of a pool that takes no changes.
    pub(super) fn handle_stopped(&mut self, from: Asker, ask: Ask, out: &mut Outbox) {
        match (&self.stopped, ask) {
            (Some(Stop::OpenedReadOnly(_) | Stop::ReadOnly(_)), Ask::Load(id, block)) => {
                self.on_load(from, id, block, out);
            }
            (_, Ask::GiveUp) => {} // everybody who waited was told
            // Nobody has written anything.
            (Some(Stop::OpenedReadOnly(_)), Ask::Flush) => out.reply(from, Reply::Done),
            (
                _,
                Ask::Load(..)
                | Ask::Fill(..)
                | Ask::Publish(..)
                | Ask::PublishPart(..)
                | Ask::PutUnits(..)
                | Ask::AwaitUnits(..)
                | Ask::Settle
                | Ask::Abandon(..)
                | Ask::Unmap(..)
                | Ask::Flush
                | Ask::Thaw(_)
                | Ask::AwaitSpace(_),
            ) => out.reply(from, Reply::Failed(IoError::Io)),
        }
    }

    /// Steps down: on record, logged, and everybody who waits is told. The first failure is the one that counts.
    pub(super) fn stop(&mut self, failure: Failure, error: Error, out: &mut Outbox) {
        if self.is_stopped() {
            return;
        }
        let error = self.with_way_back(failure, error);
        match failure {
            // Records may name data that are lost.
            Failure::Data | Failure::Truncated => self.journal.distrust(),
            // What it holds is brought in when the pool is opened again.
            Failure::Metadata | Failure::MetadataTruncated => {}
        }
        let fallen_back = match failure {
            Failure::Data => self.fall_back(false),
            Failure::Metadata => self.fall_back(true),
            Failure::Truncated | Failure::MetadataTruncated => Err(error.clone()),
        };
        // With those that are back.
        self.volumes.values().for_each(|volume| volume.refuse_changes());
        self.partial.settler.refuse_changes();
        self.stopped = Some(match fallen_back {
            Ok(()) => {
                tracing::error!("the pool is read-only from now on: {error}");
                Stop::ReadOnly(error)
            }
            Err(second) => {
                tracing::error!("the pool has failed and takes no more changes: {error}");
                if second != error {
                    tracing::error!("it cannot go on read-only: {second}");
                }
                Stop::Failed(error)
            }
        });
        self.tell_who_waits(out);
    }

    fn with_way_back(&self, failure: Failure, error: Error) -> Error {
        if error.next_step().is_some() && error.kind() != ErrorKind::Corrupt {
            return error;
        }
        let metadata = self.metadata.disk_name();
        let hint = match failure {
            Failure::Data | Failure::Truncated => {
                format!("close the pool, find out about {}, and open it again", self.data.name())
            }
            Failure::MetadataTruncated => {
                return error.hint(format!(
                    "close the pool, and see with `uthin-fsck repair -i {metadata}` what is left of it, or take a backup"
                ));
            }
            Failure::Metadata => format!(
                "close the pool, find out about the disk, run `uthin-fsck check --clear-needs-check-flag {metadata}`, \
                 and open it again"
            ),
        };
        error.hint(format!("{hint}: everything flushed is safe"))
    }

    /// Back to the last commit, as far as nobody was told of what came after.
    fn fall_back(&mut self, needs_check: bool) -> Result<()> {
        self.metadata.retire(needs_check)?;
        for volume in std::mem::take(&mut self.uncommitted.deleted) {
            volume.reopen();
            self.deletions.retain(|id| *id != volume.id());
            self.volumes.insert(volume.id(), volume);
        }
        let there: HashSet<VolumeId> = self.metadata.volumes()?.into_iter().map(|(id, _)| id).collect();
        self.volumes.retain(|id, _| there.contains(id));
        for id in std::mem::take(&mut self.uncommitted.rolled_back) {
            self.reload_table(id)?;
        }
        Ok(())
    }

    fn tell_who_waits(&mut self, out: &mut Outbox) {
        let stopped = self.refusal().expect("the pool has just stopped");
        let flushers = self.take_flushers();
        let mut tell = |asker: Asker| out.fail(asker, IoError::Io, &stopped);
        flushers.for_each(&mut tell);
        self.space_waiters.take_all().for_each(&mut tell);
        self.partial.take_waiting().for_each(&mut tell);
        self.thaws.drain(..).for_each(|(_, asker)| tell(asker));
        self.unmaps.drain(..).for_each(|unmap| tell(unmap.asker));
        for filling in std::mem::take(&mut self.filling).into_values() {
            filling.waiting_fills.into_iter().for_each(&mut tell);
            filling.waiting_unmaps.into_iter().for_each(|unmap| tell(unmap.asker));
        }
        let numbers = self.committed_answers.drain(..).map(|(number, _)| number);
        let numbers = numbers.chain(self.freezes.drain(..).map(|freeze| freeze.number));
        out.answers.extend(numbers.map(|number| (number, Err(stopped.clone()))));
    }
}
