//! Mappings that wait in memory, by volume and virtual block, until they go into the trees in sorted batches.

use crate::units::{DataBlock, Mapping, VirtualBlock, VolumeId};
use std::collections::BTreeMap;
use std::ops::Range;

/// The waiting mappings of one volume, packed.
pub(super) type VolumePending = BTreeMap<u64, u64>;

#[derive(Default)]
pub(super) struct Pending {
    volumes: BTreeMap<VolumeId, VolumePending>,
    mappings: usize,
}

impl Pending {
    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.mappings
    }

    /// The volumes that have some.
    pub fn volumes(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    pub fn get(&self, volume: VolumeId, block: VirtualBlock) -> Option<Mapping> {
        self.volumes.get(&volume)?.get(&block.0).map(|packed| Mapping::unpack(*packed))
    }

    /// Adds a mapping; the data block of the one that it takes the place of.
    pub fn insert(&mut self, volume: VolumeId, block: VirtualBlock, mapping: Mapping) -> Option<DataBlock> {
        let old = self.volumes.entry(volume).or_default().insert(block.0, mapping.pack());
        self.mappings += usize::from(old.is_none());
        old.map(|packed| Mapping::unpack(packed).block)
    }

    /// Takes out what one volume has.
    pub fn take(&mut self, volume: VolumeId) -> VolumePending {
        let taken = self.volumes.remove(&volume).unwrap_or_default();
        self.mappings -= taken.len();
        taken
    }

    /// A volume's mappings of virtual blocks in `range`, in ascending order.
    pub fn range(&self, volume: VolumeId, range: Range<u64>) -> impl Iterator<Item = (u64, Mapping)> {
        let range = range.start..range.end.max(range.start);
        let found = self.volumes.get(&volume).map(|pending| pending.range(range));
        found.into_iter().flatten().map(|(block, packed)| (*block, Mapping::unpack(*packed)))
    }

    /// A volume's highest block.
    pub fn last(&self, volume: VolumeId) -> Option<u64> {
        Some(*self.volumes.get(&volume)?.last_key_value()?.0)
    }
}
