//! The disks of a world, and the journal that it keeps on one of them.

use super::disk::SimDisk;
use super::world::World;
use crate::error::Result;
use crate::journal::{self, BootId, Journal};
use crate::metadata::Metadata;
use std::sync::Arc;

impl World {
    /// The run of the operating system.
    pub(super) fn boot_id(&self) -> BootId {
        BootId(u128::from(self.boot).to_le_bytes())
    }

    pub(super) fn journal_disk(&self) -> &SimDisk {
        self.journal_disk.as_ref().expect("a mishap of a journal comes in a world that has one")
    }

    /// A journal for what has just been opened.
    pub(super) fn begin_journal(&mut self, metadata: &mut Metadata<SimDisk>) -> Result<Journal> {
        self.journals += 1;
        let disk = Arc::new(self.journal_disk().clone());
        journal::begin(metadata, &self.data_disk, disk, self.journals, self.boot_id())
    }

    /// All there are.
    pub(super) fn disks(&self) -> impl Iterator<Item = &SimDisk> {
        [&self.metadata_disk, &self.data_disk].into_iter().chain(&self.journal_disk)
    }

    /// Whether the power is gone.
    pub(super) fn is_off(&self) -> bool {
        self.disks().any(SimDisk::is_off)
    }

    /// Whether any disk has failed since the power came.
    pub(super) fn has_failed_disk(&self) -> bool {
        self.disks().any(SimDisk::has_failed) || self.has_stopped
    }
}
