//! What the control plane of the world asks for.

use super::habits::Errand;
use super::world::{BLOCK_SECTORS, SECTOR, UNASKED, World};
use crate::engine::{Behaviour, Command, Discard, IdStep, Outbox, SmallWrites, WhenFull};
use crate::metadata::Usage;
use crate::units::{META_BLOCK_BYTES, TransactionId, VolumeId};

/// Sizes that growing pools do not exceed: a world stays crowded.
const DATA_BLOCKS_LIMIT: u64 = 40;
const METADATA_BLOCKS_LIMIT: u64 = 400;

/// A command that was not answered yet.
pub(super) struct UnderWay {
    /// The volumes that it makes, changes or deletes.
    pub volumes: Vec<VolumeId>,
    /// Those that are frozen for it.
    pub origins: Vec<VolumeId>,
    pub step: IdStep,
}

impl World {
    /// Begins a command, if none is under way and the model allows what chance has chosen.
    pub(super) fn begin_command(&mut self) {
        if self.command.is_some() {
            return;
        }
        let ids: Vec<VolumeId> = self.model.volumes().collect();
        let has_room = ids.len() < self.options.volumes;
        let command = match self.habits.command(&mut self.chance) {
            Errand::Create if has_room || ids.is_empty() => Some(self.create()),
            Errand::Snapshot if has_room && !ids.is_empty() => Some(self.snapshot(&ids)),
            Errand::RollBack if has_room => self.roll_back(&ids),
            Errand::Delete if ids.len() > 1 => self.delete(&ids),
            Errand::Grow => Some(self.grow()),
            Errand::Hold => Some(self.hold_or_release()),
            Errand::SetOrigin if !ids.is_empty() => self.set_origin(&ids),
            Errand::Configure => Some(self.configure(&ids)),
            Errand::Create | Errand::Snapshot | Errand::RollBack | Errand::Delete | Errand::SetOrigin => None,
        };
        if let Some(command) = command {
            self.tell(None, format_args!("command {command:?}"));
            let mut out = Outbox::default();
            self.keeper.command(0, command, &mut out);
            self.deliver(out).expect("commands that the model allows are accepted");
        }
    }

    fn under_way(&mut self, volumes: Vec<VolumeId>, origins: Vec<VolumeId>) -> IdStep {
        let from = self.status().transaction_id;
        let step = IdStep { from, to: TransactionId(from.0 + 1) };
        self.command = Some(UnderWay { volumes, origins, step });
        step
    }

    fn one_of(&mut self, ids: &[VolumeId]) -> VolumeId {
        ids[self.chance.below(ids.len() as u64) as usize]
    }

    /// Numbers of volumes to come.
    fn fresh_ids(&self, count: usize) -> Vec<VolumeId> {
        let free = |id: &VolumeId| !self.model.knows(*id) && self.keeper.volume(*id).is_none();
        (0..).filter_map(VolumeId::new).filter(free).take(count).collect()
    }

    fn create(&mut self) -> Command {
        let volume = self.fresh_ids(1)[0];
        let blocks = self.options.volume_blocks;
        let sectors = blocks * BLOCK_SECTORS;
        self.ledger.set_blocks(volume, blocks);
        let step = self.under_way(vec![volume], vec![]);
        let origin = self.origins.choose(volume, &mut self.chance);
        let stamps = (0..sectors).map(|sector| self.origins.stamp(volume, sector)).collect();
        self.model.create_begins(volume, stamps);
        Command::CreateVolume { volume, size_bytes: sectors * SECTOR, origin, step }
    }

    /// One, or two at one moment: of two volumes, or of one twice.
    fn snapshot(&mut self, ids: &[VolumeId]) -> Command {
        let many = if self.chance.one_in(2) { 2 } else { 1 };
        let pairs: Vec<_> = self.fresh_ids(many).into_iter().map(|id| (self.one_of(ids), id)).collect();
        let step = self.under_way(
            pairs.iter().map(|(_, snapshot)| *snapshot).collect(),
            pairs.iter().map(|(origin, _)| *origin).collect(),
        );
        for (origin, snapshot) in &pairs {
            self.origins.inherit(*origin, *snapshot);
            self.ledger.inherit(*origin, *snapshot);
        }
        self.model.snapshots_begin(&pairs);
        self.outcome.snapshots += pairs.len() as u64;
        Command::Snapshot { pairs, step }
    }

    fn roll_back(&mut self, ids: &[VolumeId]) -> Option<Command> {
        if ids.len() < 2 {
            return None;
        }
        let volume = self.one_of(ids);
        let fits = |id: &VolumeId| {
            let is_larger = self.model.sectors_of(*id) > self.model.sectors_of(volume);
            *id != volume && self.origins.are_same(*id, volume) && !is_larger
        };
        let others: Vec<VolumeId> = ids.iter().copied().filter(fits).collect();
        if others.is_empty() {
            return None;
        }
        let (to, keep) = (self.one_of(&others), self.fresh_ids(1)[0]);
        let step = self.under_way(vec![keep, volume], vec![volume, to]);
        self.origins.inherit(volume, keep);
        self.ledger.inherit(volume, keep);
        let origins = &self.origins;
        self.model.roll_back_begins(volume, to, keep, |sector| origins.stamp(volume, sector));
        self.outcome.roll_backs += 1;
        Some(Command::RollBack { volume, to, keep, step })
    }

    /// The origin of a volume that nobody uses is opened anew, as after it was moved; nobody's data changes.
    fn set_origin(&mut self, ids: &[VolumeId]) -> Option<Command> {
        let volume = self.one_of(ids);
        let origin = self.origins.of_volume(volume)?.clone();
        if self.in_flight.values().any(|request| request.volume == volume) {
            return None;
        }
        let from = self.status().transaction_id;
        self.command = Some(UnderWay { volumes: vec![], origins: vec![], step: IdStep { from, to: from } });
        Some(Command::SetOrigin { volume, origin })
    }

    fn delete(&mut self, ids: &[VolumeId]) -> Option<Command> {
        let volume = self.one_of(ids);
        if self.in_flight.values().any(|request| request.volume == volume) {
            return None;
        }
        let step = self.under_way(vec![volume], vec![]);
        self.model.delete_begins(volume);
        self.patient.remove(&volume);
        self.outcome.deletions += 1;
        Some(Command::Delete { volume, step: Some(step) })
    }

    /// The metadata snapshot comes or goes; nobody's data changes.
    fn hold_or_release(&mut self) -> Command {
        let status = self.status();
        let from = status.transaction_id;
        self.command = Some(UnderWay { volumes: vec![], origins: vec![], step: IdStep { from, to: from } });
        match status.held_root {
            Some(_) => Command::ReleaseMetadata,
            None => Command::HoldMetadata,
        }
    }

    /// What can be changed while the pool is in use: the pool's behaviour, or what becomes of one volume's writes when it is
    /// full.
    fn configure(&mut self, ids: &[VolumeId]) -> Command {
        let from = self.status().transaction_id;
        self.command = Some(UnderWay { volumes: vec![], origins: vec![], step: IdStep { from, to: from } });
        self.outcome.configured += 1;
        let policies = [WhenFull::Error, WhenFull::Queue(0), WhenFull::Queue(1), WhenFull::Queue(2)];
        let policy = policies[self.chance.below(4) as usize];
        if !ids.is_empty() && self.chance.one_in(2) {
            let volume = self.one_of(ids);
            let when_full = (!self.chance.one_in(3)).then_some(policy);
            match when_full {
                Some(WhenFull::Queue(0)) => self.patient.insert(volume, self.now),
                Some(_) | None => self.patient.remove(&volume),
            };
            return Command::ConfigureVolume { volume, when_full };
        }
        let discards = [Discard::Passdown, Discard::NoPassdown, Discard::Ignore];
        let discard = discards[self.chance.below(3) as usize];
        let discard = self.chance.one_in(2).then_some(discard);
        let small_writes = match self.is_partial() && self.chance.one_in(3) {
            true => Some(
                [SmallWrites::Copy, SmallWrites::Partial, SmallWrites::Partial]
                    [self.chance.below(3) as usize],
            ),
            false => None,
        };
        Command::Configure(Behaviour {
            discard,
            zero_new_blocks: None,
            small_writes,
            when_full: Some(policy),
        })
    }

    /// Nobody waits for space any more, so that all comes to its end.
    pub(super) fn lose_patience(&mut self) {
        let mut out = Outbox::default();
        let behaviour = Behaviour { when_full: Some(WhenFull::Error), ..Behaviour::default() };
        self.keeper.command(UNASKED, Command::Configure(behaviour), &mut out);
        for volume in self.model.volumes() {
            self.keeper.command(UNASKED, Command::ConfigureVolume { volume, when_full: None }, &mut out);
        }
        self.patient.clear();
        self.deliver(out).expect("answers that nobody asked for");
    }

    fn grow(&mut self) -> Command {
        let Usage { data_total, metadata_total, .. } = self.status().usage;
        let from = self.status().transaction_id;
        self.command = Some(UnderWay { volumes: vec![], origins: vec![], step: IdStep { from, to: from } });
        let data_blocks = (data_total + self.chance.below(3)).min(DATA_BLOCKS_LIMIT.max(data_total));
        let metadata_blocks =
            (metadata_total + self.chance.below(20)).min(METADATA_BLOCKS_LIMIT.max(metadata_total));
        self.outcome.grown_blocks += data_blocks - data_total;
        Command::Grow {
            data_bytes: Some(data_blocks * BLOCK_SECTORS * SECTOR),
            metadata_bytes: Some(metadata_blocks * META_BLOCK_BYTES as u64),
        }
    }
}
