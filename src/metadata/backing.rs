//! The space behind the metadata disk. A sparse file on a filesystem that is full has blocks and no place to write them:
//! a commit would fail half-way, and with it the pool, deletions included, which alone give space back.
//!
//! So the disk is asked to set space aside ([`Disk::set_aside`]) before blocks are counted on:
//!
//! - All of a small disk ([`WHOLE_BYTES`]) at once. Of a larger one the part that is in use and [`AHEAD_BYTES`] more, and
//!   more when an operation asks for it. Blocks are allocated from the front, so that a prefix is enough.
//! - Blocks beyond are withheld from the budget. What adds mappings or volumes is refused when the disk has no space for
//!   more; the reserve for deletions lies in the part that is backed.
//! - A disk that had not even space for the first part (a sparse file made by others, say) is *bare*: until it has, nothing
//!   that adds is begun, and deletions go on as far as they get.
//! - A disk that cannot promise anything is used as it is, with a warning.

use super::Metadata;
use super::budget::Ask;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::units::META_BLOCK_BYTES;
use std::io;

/// A metadata disk up to this size is backed as a whole.
const WHOLE_BYTES: u64 = 64 << 20;
/// What a larger one has in advance, and by how much it grows.
const AHEAD_BYTES: u64 = 64 << 20;

/// What is known of the space behind the disk. How far it reaches is for the metadata map to remember.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Backing {
    /// Blocks that are counted on have their space, or nobody can say.
    #[default]
    Sound,
    /// There was no space for more when last asked.
    Short,
    /// Not even blocks in use are certain of space for what replaces them.
    Bare,
}

impl<D: Disk> Metadata<D> {
    /// For a disk that is being formatted: without space there is no pool.
    pub(super) fn back_new(&mut self) -> Result<()> {
        self.back();
        match self.backing {
            Backing::Sound => Ok(()),
            Backing::Short | Backing::Bare => Err(self.no_space_behind()),
        }
    }

    /// Sets aside what this disk should have at least.
    pub(super) fn back(&mut self) {
        let map = &self.space.references.metadata;
        let total = map.total();
        let ahead = AHEAD_BYTES / META_BLOCK_BYTES as u64;
        let is_small = total * META_BLOCK_BYTES as u64 <= WHOLE_BYTES;
        let end = if is_small { total } else { (map.last_allocated() + 1 + ahead).min(total) };
        let was = self.backing;
        self.backing = match self.set_aside(end) {
            Ok(()) => Backing::Sound,
            Err(error) => {
                if was != Backing::Bare {
                    tracing::warn!(
                        "{}: there is no space for its {} bytes of metadata: {error}; nothing is added to the pool until \
                         there is, and deleting volumes may fail: free space on its filesystem",
                        self.space.disk.name(),
                        end * META_BLOCK_BYTES as u64
                    );
                }
                Backing::Bare
            }
        };
    }

    /// Takes a device into use that has grown to `total` blocks, as far as a first part of it has space behind it. Without
    /// space, or on an error, nothing has changed.
    pub(super) fn take_grown(&mut self, total: u64) -> Result<()> {
        let map = &self.space.references.metadata;
        let end = (map.counted_on() + AHEAD_BYTES / META_BLOCK_BYTES as u64).min(total);
        let end = self.set_aside_on_disk(end, total).map_err(|_| self.no_space_behind())?;
        self.backing = Backing::Sound;
        self.space.cache.grow(total);
        let map = &mut self.space.references.metadata;
        map.grow(total);
        map.count_on(end);
        Ok(())
    }

    /// Backs more and more until `is_enough`, or until there is no space for more.
    pub(super) fn back_until(&mut self, is_enough: impl Fn(&Self) -> bool) -> bool {
        let step = AHEAD_BYTES / META_BLOCK_BYTES as u64;
        loop {
            let map = &self.space.references.metadata;
            let (now, total) = (map.counted_on(), map.total());
            if now == total {
                return false;
            }
            if let Err(error) = self.set_aside((now + step).min(total)) {
                if self.backing == Backing::Sound {
                    tracing::warn!("{}: no space for more metadata: {error}", self.space.disk.name());
                    self.backing = Backing::Short;
                }
                return false;
            }
            self.backing = Backing::Sound;
            if is_enough(self) {
                return true;
            }
        }
    }

    /// `NoMetadataSpace` for what adds to a pool whose disk is bare.
    pub(super) fn require_backing(&mut self, ask: &Ask) -> Result<()> {
        if !self.is_bare() || ask.may_use_reserve() {
            return Ok(());
        }
        self.back();
        match self.backing {
            Backing::Bare => Err(self.no_space_behind()),
            Backing::Sound | Backing::Short => Ok(()),
        }
    }

    /// Whether nothing is added until there is space. What a journal holds is: its space was set aside when that was done for the first
    /// time, and nobody remembers up to where.
    pub(super) fn is_bare(&self) -> bool {
        self.backing == Backing::Bare && !self.replays
    }

    /// Whether it is for want of space behind the disk that an operation is not affordable.
    pub(super) fn lacks_backing(&self) -> Option<Error> {
        match self.backing {
            Backing::Short => Some(self.no_space_behind()),
            Backing::Sound | Backing::Bare => None,
        }
    }

    fn no_space_behind(&self) -> Error {
        let what = format!("{}: its filesystem has no space for more metadata", self.space.disk.name());
        Error::new(ErrorKind::NoMetadataSpace, what).hint("free space there, or delete volumes")
    }

    /// Has the blocks below `end` backed, and counts on them.
    fn set_aside(&mut self, end: u64) -> io::Result<()> {
        let total = self.space.references.metadata.total();
        let end = self.set_aside_on_disk(end, total)?;
        self.space.references.metadata.count_on(end);
        Ok(())
    }

    /// Has the blocks below `end` backed; up to where they can be counted on. An error means that there is no space.
    fn set_aside_on_disk(&self, end: u64, total: u64) -> io::Result<u64> {
        match self.space.disk.set_aside(0..end * META_BLOCK_BYTES as u64) {
            Ok(()) => Ok(end),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Err(error)
            }
            Err(error) => {
                // Once: from here on every block is counted on.
                tracing::warn!(
                    "{}: cannot set space aside: {error}; should its filesystem get full, the pool will fail stop",
                    self.space.disk.name()
                );
                Ok(total)
            }
        }
    }
}

#[cfg(test)]
#[path = "backing_tests.rs"]
mod tests;
