//! What the keeper does when its inbox is empty: commits for all who wait, then a step of each background work.

use super::*;
use crate::disk::DataFlushed;
use crate::metadata::Freed;

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// To be called whenever the inbox is empty: group commit for everybody who waits for one, snapshots whose volumes
    /// have drained, background work, one bounded step a call.
    pub fn settle(&mut self, out: &mut Outbox) -> Settled {
        if self.is_stopped() {
            return Settled::Idle;
        }
        if let Some(unmap) = self.unmaps.pop_front() {
            self.unmap_step(unmap, out);
        }
        if self.has_many_pending()
            && let Err(error) = self.metadata.apply_pending()
        {
            self.stop(Failure::Metadata, error, out);
        }
        let taken = self.take_drained(out);
        if self.is_stopped() {
            return Settled::Idle; // what was begun must not be committed by what comes next
        }
        let flushes = self.is_asked_to_flush();
        let wanted = !self.committed_answers.is_empty()
            || (flushes && !self.can_flush_journal())
            || self.journal.is_large();
        let done = if wanted || self.commits_for_space() {
            self.commit(out)
        } else if flushes {
            self.flush_journal(out)
        } else {
            Ok(())
        };
        if done.is_err() {
            return Settled::Idle;
        }
        for freeze in taken {
            self.thaw(&freeze, out);
        }
        self.settle_units(out);
        self.ahead_step();
        self.deletion_step(out);
        self.pass_limbo();
        self.keep_to_map_budget();
        self.settle_space(out);
        self.sharing_step(out);
        self.what_is_left()
    }

    /// Whether somebody waits for a flush, which the next [`Keeper::settle`] does.
    pub fn is_asked_to_flush(&self) -> bool {
        !self.flushes.is_empty() && !self.is_flushing()
    }

    /// Whether something is there to be settled that the last [`Keeper::settle`] may not have seen.
    pub fn wants_to_settle(&self) -> bool {
        let is_waited_for = !self.space_waiters.is_empty() || !self.freezes.is_empty();
        is_waited_for
            || self.has_many_pending()
            || self.is_asked_to_flush()
            || self.journal.is_large()
            || self.what_is_left() == Settled::HasWork
    }

    /// Freed blocks become usable with a commit: worth one when somebody waits for space.
    fn commits_for_space(&self) -> bool {
        !self.space_waiters.is_empty() && self.may_free_with_a_commit()
    }

    /// Not by units that come to partial blocks with every other write, and leave them partial.
    pub(super) fn may_free_with_a_commit(&self) -> bool {
        self.metadata.is_dirty() || self.partial.table.has_become_whole()
    }

    fn has_many_pending(&self) -> bool {
        self.metadata.pending_mappings() >= PENDING_MAPPINGS_LIMIT
    }

    pub(super) fn what_is_left(&self) -> Settled {
        let deletes = self.gets_on_deleting();
        if self.is_stopped() {
            Settled::Idle
        } else if self.commits_for_space()
            || deletes
            || self.ahead.has_work()
            || self.counts()
            || !self.unmaps.is_empty()
        {
            Settled::HasWork
        } else if !self.freezes.is_empty()
            || !self.limbo.is_empty()
            || self.map_memory.waits_for_lanes()
            || self.partial.waits_for_lanes()
        {
            Settled::WaitsForLanes
        } else {
            Settled::Idle
        }
    }

    /// To be called about once a second: commits what nobody asked to be flushed.
    pub fn tick(&mut self, out: &mut Outbox) {
        self.deletions_stalled = false;
        self.sharing_tick();
        self.partial.tick();
        self.ahead_tick();
        if self.starved.is_some() {
            self.space_waiters.tick();
        }
        if !self.is_stopped()
            && let Err(source) = self.data.check_size()
        {
            // Going on would make the file larger again, with holes in place of what clients have written.
            let error = Error::io(self.data.name(), &source).hint(
                "close the pool, restore the file from a backup, and open it again: what was cut off is gone",
            );
            return self.stop(Failure::Truncated, error, out);
        }
        if !self.is_stopped()
            && let Err(error) = self.check_metadata_size()
        {
            return self.stop(Failure::MetadataTruncated, error, out);
        }
        if !self.is_stopped() && self.is_dirty() {
            // A failure is on record, and everybody who waited has been told.
            let _ = self.commit(out);
        }
    }

    /// The one legal order: data, then the metadata that points at it, then whoever waits is told.
    pub(super) fn commit(&mut self, out: &mut Outbox) -> Result<()> {
        // First: the bytes of these units have been written, and the flush makes them durable. Of those that come now, it need not.
        let units = self.partial.table.take_dirty();
        let flushed = self.flush_data().map_err(|error| self.data_flush_failed(&error));
        let empties = self.journal.has_records();
        let freed = flushed.and_then(|data_first| {
            // Before anything is written: a file that was cut off would become as long as before, with a hole in it.
            self.check_metadata_size().map_err(|error| (Failure::MetadataTruncated, error))?;
            self.commit_metadata(data_first, &units).map_err(|error| (Failure::Metadata, error))
        });
        match freed {
            Ok((freed, lost_holders)) => {
                self.journal.committed(empties);
                self.uncommitted = Uncommitted::default();
                self.starved = None;
                self.partial.committed(&units, &self.epochs);
                if lost_holders {
                    self.holders_lost = Some(self.epochs.retire());
                }
                if !freed.is_empty() {
                    freed.iter().for_each(|range| self.partial.table.freed(range.clone()));
                    self.limbo.push_back((self.epochs.retire(), freed));
                }
                out.replies.extend(self.take_flushers().map(|asker| (asker, Reply::Done)));
                out.answers
                    .extend(self.committed_answers.drain(..).map(|(number, answer)| (number, Ok(answer))));
                Ok(())
            }
            Err((failure, error)) => {
                self.stop(failure, error, out);
                Err(self.refusal().expect("the pool has just stopped"))
            }
        }
    }

    fn check_metadata_size(&self) -> Result<()> {
        self.metadata.check_disk_size().map_err(|source| Error::io(self.metadata.disk_name(), &source))
    }

    /// The blocks that this freed, and whether any block has lost a holder.
    fn commit_metadata(
        &mut self,
        data_first: DataFlushed,
        units: &[(DataBlock, u64)],
    ) -> Result<(Freed, bool)> {
        self.metadata.put_units(units)?;
        if let Some(journal) = self.journal.journal.as_ref().filter(|journal| journal.has_records()) {
            // What it holds is in the trees with this commit.
            self.metadata.set_journal(Some(journal.next_mark()));
        }
        if !self.metadata.is_dirty() {
            return Ok((Freed::new(), false));
        }
        // What waits may replace shared blocks.
        self.metadata.apply_pending()?;
        let lost_holders = self.metadata.has_lost_holders();
        self.commits += 1;
        Ok((self.metadata.commit(data_first)?, lost_holders))
    }

    /// Whether a deletion is under way and gets on.
    pub(super) fn gets_on_deleting(&self) -> bool {
        !self.deletions.is_empty() && !self.deletions_stalled
    }

    pub(super) fn deletion_step(&mut self, out: &mut Outbox) {
        if self.deletions_stalled {
            return;
        }
        let Some(id) = self.deletions.pop_front() else { return };
        let nodes = self.delete_step_nodes;
        match self.change(out, |metadata| metadata.delete_volume(id, nodes)) {
            Ok(Progress::Done) => {}
            Ok(Progress::More(())) => self.deletions.push_back(id),
            Err(error) => {
                tracing::warn!(volume = %id, "the deletion does not get on: {error}");
                self.deletions_stalled = true;
                self.deletions.push_front(id);
            }
        }
    }

    /// Moves on what every lane has passed by.
    pub(super) fn pass_limbo(&mut self) {
        self.partial.forget_whole(&self.epochs);
        while self.limbo.front().is_some_and(|(epoch, _)| self.epochs.all_past(*epoch)) {
            let (epoch, freed) = self.limbo.pop_front().expect("there is a front");
            // Before its block can be handed out again: lanes may have gone since the look above.
            self.partial.forget_whole_until(epoch);
            for range in freed {
                self.reusable(range);
            }
        }
    }
}
