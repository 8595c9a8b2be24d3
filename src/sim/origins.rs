//! What lies behind volumes outside the pool: in some worlds a few disks that nobody writes, shorter than a volume, as long,
//! or longer, and mostly ending within a block.

use super::chance::Chance;
use super::model::{FIRST_SHOWN_STAMP, Stamp};
use super::world::{BLOCK_SECTORS, SECTOR};
use crate::disk::MemoryDisk;
use crate::engine::{Behind, Origin};
use crate::units::VolumeId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The origins of a world, and which volume has which.
#[derive(Default)]
pub(super) struct Origins {
    origins: Vec<Origin>,
    behind: BTreeMap<VolumeId, usize>,
}

impl Origins {
    /// Those of one seed: none for two seeds of three. Volumes have `volume_sectors`.
    pub fn of(seed: u64, volume_sectors: u64, chance: &mut Chance) -> Self {
        if !seed.is_multiple_of(3) {
            return Self::default();
        }
        let lengths = [
            1 + chance.below(volume_sectors),
            BLOCK_SECTORS * chance.below(volume_sectors / BLOCK_SECTORS) + 1 + chance.below(8),
            volume_sectors + chance.below(2) * BLOCK_SECTORS,
        ];
        let origin = |(number, sectors): (usize, u64)| {
            let stamps = (0..sectors).flat_map(|sector| stamp(number, sector).to_le_bytes().repeat(64));
            Origin::new(Arc::new(MemoryDisk::from_bytes(stamps.collect())))
        };
        let origins = lengths.into_iter().enumerate().map(origin).collect();
        Origins { origins, behind: BTreeMap::new() }
    }

    /// A volume is about to be made: with one of the origins behind it, or without.
    pub fn choose(&mut self, id: VolumeId, chance: &mut Chance) -> Option<Origin> {
        self.behind.remove(&id);
        if self.origins.is_empty() || chance.one_in(4) {
            return None;
        }
        let number = chance.below(self.origins.len() as u64) as usize;
        self.behind.insert(id, number);
        self.of_volume(id).cloned()
    }

    /// A snapshot is about to be taken.
    pub fn inherit(&mut self, from: VolumeId, to: VolumeId) {
        match self.behind.get(&from).copied() {
            Some(number) => self.behind.insert(to, number),
            None => self.behind.remove(&to),
        };
    }

    /// Whether two volumes have the same.
    pub fn are_same(&self, one: VolumeId, other: VolumeId) -> bool {
        self.behind.get(&one) == self.behind.get(&other)
    }

    /// What is behind a volume.
    pub fn of_volume(&self, id: VolumeId) -> Option<&Origin> {
        self.behind.get(&id).map(|number| &self.origins[*number])
    }

    /// What a sector of a volume holds where nothing is mapped.
    pub fn stamp(&self, id: VolumeId, sector: u64) -> Stamp {
        match self.behind.get(&id) {
            Some(number) if sector * SECTOR < self.origins[*number].size_bytes() => stamp(*number, sector),
            Some(_) | None => 0,
        }
    }

    /// For the keeper of a pool that is opened.
    pub fn behind(&self) -> HashMap<VolumeId, Behind> {
        let origin = |number: &usize| Behind::Origin(self.origins[*number].clone());
        self.behind.iter().map(|(id, number)| (*id, origin(number))).collect()
    }
}

fn stamp(number: usize, sector: u64) -> Stamp {
    FIRST_SHOWN_STAMP + ((number as u64) << 32) + sector
}
