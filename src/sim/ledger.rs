//! What the control plane remembers of a pool beside the transaction id, and what of it must be there after a power cut.

use super::model::Model;
use super::options::Outcome;
use super::origins::Origins;
use super::world::{BLOCK_SECTORS, SECTOR};
use crate::engine::PoolStatus;
use crate::units::VolumeId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// The control plane's book, kept where the power does not reach it.
pub(super) struct Ledger {
    /// Sizes of volumes in sectors: nothing of them is in the metadata.
    sizes: BTreeMap<VolumeId, u64>,
    /// How many data blocks the pool may have; one number, but after a command that failed.
    data_totals: BTreeSet<u64>,
    /// Metadata blocks that it has at least: a disk may be larger than what was asked for last.
    metadata_total: u64,
    /// Whether a metadata snapshot is held.
    is_held: bool,
}

/// What a command promises beside volumes.
#[derive(Clone, Debug)]
pub(super) enum Promise {
    /// Nothing.
    None,
    /// A volume has so many sectors.
    Size { volume: VolumeId, sectors: u64, before: u64 },
    /// These sectors are unmapped, durably.
    Unmapped { volume: VolumeId, sectors: Range<u64>, begun: u64, to_the_end: bool },
    /// The pool has so many blocks; more of metadata, perhaps.
    Grown { data_blocks: u64, metadata_blocks: u64 },
    /// A metadata snapshot is held, or none.
    Held(bool),
}

impl Ledger {
    /// Of a fresh pool.
    pub fn new(data_blocks: u64) -> Self {
        let data_totals = BTreeSet::from([data_blocks]);
        Ledger { sizes: BTreeMap::new(), data_totals, metadata_total: 0, is_held: false }
    }

    /// A volume of that many sectors has been made, or is about to be.
    pub fn set_sectors(&mut self, id: VolumeId, sectors: u64) {
        self.sizes.insert(id, sectors);
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

    /// A command was answered: what it promises is durable, or was not done.
    pub fn is_answered(
        &mut self,
        promise: Promise,
        ok: bool,
        model: &mut Model,
        outcome: &mut Outcome,
    ) -> Option<(VolumeId, u64)> {
        match promise {
            Promise::None => {}
            Promise::Size { volume, sectors, before } => {
                model.resize_ends(volume);
                self.sizes.insert(volume, if ok { sectors } else { before });
                outcome.enlarged += u64::from(ok && before < sectors);
                outcome.shrunk += u64::from(ok && before > sectors);
            }
            Promise::Unmapped { volume, sectors, begun, to_the_end } => {
                model.write_ends(volume, sectors.clone(), begun, ok);
                if ok {
                    model.force(volume, sectors.clone());
                    return to_the_end.then_some((volume, sectors.start / BLOCK_SECTORS));
                }
            }
            Promise::Grown { data_blocks, metadata_blocks } if ok => {
                self.data_totals = BTreeSet::from([data_blocks]);
                self.metadata_total = self.metadata_total.max(metadata_blocks);
            }
            Promise::Held(is_held) if ok => self.is_held = is_held,
            Promise::Grown { data_blocks, .. } => drop(self.data_totals.insert(data_blocks)),
            Promise::Held(_) => {}
        }
        None
    }

    /// The power was cut, or the process killed, before a command was answered.
    pub fn is_cut_off(
        &mut self,
        promise: Promise,
        status: &PoolStatus,
        model: &mut Model,
        origins: &Origins,
    ) {
        match promise {
            Promise::None | Promise::Unmapped { .. } => {}
            // A larger size is in the book before anybody sees it (a keeper that had stopped never did), a smaller one when nobody can
            // write behind it any more.
            Promise::Size { volume, sectors, before } if sectors >= before => {
                if model.sectors_of(volume) < sectors {
                    model.resize(volume, sectors, |sector| origins.stamp(volume, sector));
                }
                model.resize_ends(volume);
            }
            Promise::Size { volume, .. } => model.undo_resize(volume),
            Promise::Grown { data_blocks, .. } => drop(self.data_totals.insert(data_blocks)),
            Promise::Held(_) => self.is_held = status.held_root.is_some(),
        }
    }

    /// Whether the pool has what it should. What it has is what it will have.
    pub fn check(&mut self, status: &PoolStatus) -> Result<(), String> {
        let usage = status.usage;
        if !self.data_totals.contains(&usage.data_total) {
            return Err(format!(
                "the pool has {} data blocks, may have {:?}",
                usage.data_total, self.data_totals
            ));
        }
        if usage.metadata_total < self.metadata_total {
            return Err(format!(
                "the pool has {} metadata blocks, and had {}",
                usage.metadata_total, self.metadata_total
            ));
        }
        if status.held_root.is_some() != self.is_held {
            return Err(format!("a metadata snapshot is held: {:?}, and {}", status.held_root, self.is_held));
        }
        self.data_totals = BTreeSet::from([usage.data_total]);
        Ok(())
    }
}
