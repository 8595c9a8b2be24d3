//! What the control plane remembers of a pool beside the transaction id, and what of it must be there after a power cut.

use super::world::{BLOCK_SECTORS, SECTOR};
use crate::units::VolumeId;
use std::collections::{BTreeMap, HashMap};

/// The control plane's book, kept where the power does not reach it.
#[derive(Default)]
pub(super) struct Ledger {
    /// Sizes of volumes in sectors: nothing of them is in the metadata.
    sizes: BTreeMap<VolumeId, u64>,
}

impl Ledger {
    /// A volume of that many blocks has been made, or is about to be.
    pub fn set_blocks(&mut self, id: VolumeId, blocks: u64) {
        self.sizes.insert(id, blocks * BLOCK_SECTORS);
    }

    /// A snapshot is about to be taken.
    pub fn inherit(&mut self, from: VolumeId, to: VolumeId) {
        let sectors = self.sizes[&from];
        self.sizes.insert(to, sectors);
    }

    /// For the keeper of a pool that is opened.
    pub fn volume_sizes(&self) -> HashMap<VolumeId, u64> {
        self.sizes.iter().map(|(id, sectors)| (*id, sectors * SECTOR)).collect()
    }
}
