//! Rest: nothing new begins until nothing is under way. Then nobody may have been forgotten, what is durable must be sound,
//! what is counted be right, every sector hold what it should, and what is free be there to be used.

use super::world::World;
use crate::check::{CheckOptions, Verdict, check};
use crate::disk::MemoryDisk;
use crate::engine::{Base, Kind, Settled};
use crate::metadata::{Access, Metadata};
use crate::units::{DataBlock, Mapping, VolumeId};
use std::collections::{HashMap, HashSet};

/// Steps in which everything under way must come to its end once nothing new begins.
const REST_STEPS: u64 = 20_000;

impl World {
    /// With nothing else going on, what is counted is what the metadata says to who adds it up.
    pub(super) fn check_sharing(&mut self) -> Result<(), String> {
        self.count_shared();
        self.run_dry()?;
        if !self.is_powered() {
            return Ok(());
        }
        let wrong = |error: crate::error::Error| format!("adding up what is shared: {error}");
        let disk = MemoryDisk::from_bytes(self.metadata_disk.to_bytes());
        let mut metadata = Metadata::open(disk, Access::ReadOnly).map_err(wrong)?;
        let partials = metadata.partials().map_err(wrong)?;
        let bases: HashSet<Base> = partials.into_iter().map(|(_, partial)| partial.base).collect();
        let mut holders: HashMap<DataBlock, Vec<VolumeId>> = HashMap::new();
        for (id, _) in metadata.volumes().map_err(wrong)? {
            let mut add = |_, mapping: Mapping| holders.entry(mapping.block).or_default().push(id);
            metadata.for_each_mapping(id, 0..u64::MAX, &mut add).map_err(wrong)?;
        }
        let held = metadata.held_root().is_some();
        let blocks_of_bases = bases.iter().filter_map(|base| base.block());
        let used = holders.keys().copied().chain(blocks_of_bases).collect::<HashSet<_>>().len() as u64;
        let counted = self.status().usage.data_allocated;
        if used > counted || (used < counted && !held) {
            return Err(format!("{used} data blocks are in use, and {counted} are counted"));
        }
        let infos = self.volume_infos()?;
        let shown: Vec<VolumeId> = infos.iter().map(|volume| volume.id).collect();
        let durable: Vec<VolumeId> =
            metadata.volumes().map_err(wrong)?.into_iter().map(|(id, _)| id).collect();
        if shown != durable || !shown.iter().copied().eq(self.model.volumes()) {
            return Err(format!("the pool shows the volumes {shown:?}, and has {durable:?}"));
        }
        for volume in infos {
            let is_own = |(block, holders): &(&DataBlock, &Vec<VolumeId>)| {
                holders[..] == [volume.id] && !bases.contains(&Base::Block(**block))
            };
            let own = holders.iter().filter(is_own).count() as u64;
            let found = volume.sharing.ok_or("what is shared was not counted")?;
            // A metadata snapshot holds more or less of it.
            let is_own = found.exclusive_blocks == own || (held && found.exclusive_blocks <= own);
            if !is_own || (found.mapped_blocks, found.is_current) != (volume.details.mapped_blocks, true) {
                return Err(format!(
                    "{own} blocks are volume {}'s own, and {found:?} was counted",
                    volume.id
                ));
            }
        }
        Ok(())
    }

    /// Begins nothing new until nothing is under way. Then nobody may have been forgotten, what is durable must be sound, and
    /// what is free must be there to be used.
    pub(super) fn come_to_rest(&mut self) -> Result<(), String> {
        if self.chance.one_in(3) {
            self.all_clients_leave()?;
            self.run_dry()?; // though nobody loses patience
            self.fill_seats();
        }
        self.lose_patience();
        self.run_dry()?;
        if !self.is_powered() {
            return Ok(());
        }
        self.outcome.rests += 1;
        let deleting = self.status().deleting;
        if !deleting.is_empty() {
            return Err(format!("the deletion of {deleting:?} does not come to its end"));
        }
        self.model.deletions_ended();
        let status = self.status();
        self.ledger.check(&status)?;
        self.check_metadata(Verdict::Clean)?;
        self.check_sharing()?;
        self.check_volumes()?;
        if self.has_failed() { Ok(()) } else { self.use_free_blocks() }
    }

    /// With nothing else going on, every volume holds what it should.
    pub(super) fn check_volumes(&mut self) -> Result<(), String> {
        for id in self.model.volumes().collect::<Vec<_>>() {
            let stamps = match self.read_volume(id) {
                Err(_) if self.has_failed() => return Ok(()),
                read => read?,
            };
            self.model.check_read(id, 0..stamps.len() as u64, u64::MAX, &stamps)?;
        }
        Ok(())
    }

    pub(super) fn run_dry(&mut self) -> Result<(), String> {
        let mut is_through = false;
        for _ in 0..REST_STEPS {
            if !self.is_powered() {
                return Ok(());
            }
            self.now += 1;
            if !self.events.is_empty() {
                self.happen()?;
            } else if self.settle()? == Settled::Idle && self.events.is_empty() {
                self.tick()?;
                is_through = self.settle()? == Settled::Idle && self.events.is_empty();
                if is_through {
                    break;
                }
            }
        }
        let commands = usize::from(self.command.is_some());
        match self.in_flight.len() + commands + self.events.len() {
            0 if is_through || !self.is_powered() => Ok(()),
            0 => Err("the keeper never comes to rest, though nobody wants anything".to_owned()),
            _ if !self.is_powered() => Ok(()),
            _ => Err(format!("{} requests and {commands} commands never end", self.in_flight.len())),
        }
    }

    /// The durable metadata, as another program sees it.
    pub(super) fn check_metadata(&self, worst: Verdict) -> Result<(), String> {
        let disk = MemoryDisk::from_bytes(self.metadata_disk.to_bytes());
        let report = check(&disk, &CheckOptions::default())
            .map_err(|error| format!("checking the metadata: {error}"))?;
        if report.verdict > worst {
            return Err(format!("the metadata is not sound: {:?}", report.findings));
        }
        Ok(())
    }

    /// With nothing else going on, writes that need a block get one as long as any is free.
    pub(super) fn use_free_blocks(&mut self) -> Result<(), String> {
        let ids: Vec<VolumeId> = self.model.volumes().collect();
        for _ in 0..4 {
            let usage = self.status().usage;
            if ids.is_empty() || usage.data_allocated >= usage.data_total || !self.is_powered() {
                break;
            }
            self.has_space = true;
            let id = ids[self.chance.below(ids.len() as u64) as usize];
            let sector = self.chance.below(self.model.sectors_of(id));
            self.begin(id, Kind::Write { fua: false }, sector..sector + 1);
            self.run_dry()?;
        }
        self.has_space = false;
        Ok(())
    }
}
