//! Changes that a journal tells of: once more, exactly as they were, on top of the commit that they followed.
//!
//! - What a record names comes from a file: each is compared with what is here, and refused (`Corrupt`) if it can never have
//!   followed it.
//! - Metadata that were opened with such a journal are changed by nobody else before [`Metadata::begin_replay`]: what the journal
//!   names as free must still be so.
//! - The mark says which records are in the trees; with the commit that moves it on they are, and never come again.

use super::budget::Ask;
use super::partial::is_at;
use super::{Base, JournalMark, Metadata, Partial, Progress};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{DataBlock, Mapping, VirtualBlock, VolumeId};
use std::ops::Range;

impl<D: Disk> Metadata<D> {
    /// What a journal holds on top of this state, as far as the next commit will say.
    pub fn journal(&self) -> Option<JournalMark> {
        self.journal
    }

    /// What the next commit is to say of a journal.
    pub fn set_journal(&mut self, mark: Option<JournalMark>) {
        self.journal = mark;
    }

    /// Whether a journal holds changes that have to be brought in before anything else is changed.
    pub fn awaits_replay(&self) -> bool {
        self.awaits_replay
    }

    /// From now on changes are taken: those of the journal first.
    pub fn begin_replay(&mut self) {
        (self.awaits_replay, self.replays) = (false, true);
    }

    /// All changes of the journal are made: who makes others leaves room for those that must never fail.
    pub fn end_replay(&mut self) {
        self.replays = false;
    }

    /// As [`Metadata::map`] or [`Metadata::map_partial`], of this data block. `Corrupt` if that can never have happened here;
    /// `NoMetadataSpace`, when nothing has been changed.
    pub fn map_again(
        &mut self,
        volume: VolumeId,
        block: VirtualBlock,
        target: DataBlock,
        partial: Option<Partial>,
    ) -> Result<()> {
        self.require_changeable()?;
        let current = self.lookup(volume, block).map_err(as_record)?;
        if let Some(partial) = partial {
            self.check_partial(block, current, partial)?;
        }
        (self.checked_reservations, self.checked_partials) = (0, 0);
        self.afford(&partial.map_or(Ask::mappings(1), |_| Ask::partials(1)))?;
        if !self.data.reserve_exactly(&mut self.space, target)? {
            return Err(wrong(format!("data block {} is not free", target.0)));
        }
        match partial {
            Some(partial) => {
                self.partials.allow(target);
                self.map_partial(volume, block, target, partial);
            }
            None => {
                self.map(volume, block, target);
            }
        }
        Ok(())
    }

    /// Whether a partial block may take the place of `current`, at `block`. Whether an origin shows where nothing is mapped, is for
    /// the record to say: nothing here does.
    fn check_partial(
        &mut self,
        block: VirtualBlock,
        current: Option<Mapping>,
        partial: Partial,
    ) -> Result<()> {
        if !self.is_proper(partial.units) || partial.base.is_out_of_reach(self.geometry().block_size) {
            return Err(wrong(format!("{partial:?} is no partial block")));
        }
        let fits = match partial.base {
            Base::Zeros => current.is_none(),
            Base::Origin(_) => current.is_none() && is_at(partial.base, block),
            Base::Block(base) => current.is_some_and(|mapping| mapping.block == base),
        };
        if !fits {
            let (base, was) = (partial.base, current.map(|mapping| mapping.block));
            return Err(wrong(format!(
                "{base:?} is the base at virtual block {}, and {was:?} was there",
                block.0
            )));
        }
        match current {
            Some(Mapping { block, .. }) if self.partial_of(block)?.is_some() => {
                Err(wrong(format!("the base, data block {}, is partial", block.0)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// As [`Metadata::unmap_range`], all of it. After `NoMetadataSpace` a part may be done, and doing it again does no harm.
    pub fn unmap_again(&mut self, volume: VolumeId, blocks: Range<u64>) -> Result<()> {
        let mut left = blocks;
        while let Progress::More(next) =
            self.unmap_range(volume, left.clone(), u64::MAX).map_err(as_record)?
        {
            left.start = next;
        }
        Ok(())
    }

    /// Units that have come to a partial block. One that is partial no more is passed over.
    pub fn add_units_again(&mut self, block: DataBlock, units: u64) -> Result<()> {
        if units & !self.geometry().block_size.all_units() != 0 {
            return Err(wrong(format!("{units:#x} are no units of a block")));
        }
        match self.partial_of(block)? {
            Some(partial) => self.put_units(&[(block, partial.units | units)]),
            None => Ok(()),
        }
    }
}

/// What a record names is not there: that is the record's mistake.
fn as_record(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound { wrong(error.message().to_owned()) } else { error }
}

fn wrong(what: String) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}
