//! Changes that a journal tells of: once more, exactly as they were, on top of the commit that they followed.
//!
//! - What a record names comes from a file: each is compared with what is here, and refused (`Corrupt`) if it can never have
//!   followed it.
//! - Metadata that were opened with such a journal are changed by nobody else before [`Metadata::begin_replay`]: what the journal
//!   names as free must still be so.
//! - The mark says which records are in the trees; with the commit that moves it on they are, and never come again.

use super::budget::Ask;
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
            self.check_partial(current, partial)?;
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

    /// Whether a partial block may take the place of `current`.
    fn check_partial(&mut self, current: Option<Mapping>, partial: Partial) -> Result<()> {
        if !self.is_proper(partial.units) {
            return Err(wrong(format!("{:#x} are no units of a partial block", partial.units)));
        }
        let base = current.map_or(Base::Zeros, |mapping| Base::Block(mapping.block));
        if base != partial.base {
            return Err(wrong(format!("{:?} is the base, and {base:?} was there", partial.base)));
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
