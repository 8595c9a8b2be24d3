//! What the control plane of the world asks for.

use super::habits::Errand;
use super::ledger::Promise;
use super::world::{BLOCK_SECTORS, SECTOR, UNASKED, World};
use crate::engine::{Behaviour, Command, Discard, IdStep, Kind, Outbox, SmallWrites, WhenFull};
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
    /// What else there will be when it is answered.
    pub promise: Promise,
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
            Errand::Resize if !ids.is_empty() => self.resize(&ids),
            Errand::Unmap if !ids.is_empty() => Some(self.unmap(&ids)),
            Errand::Create
            | Errand::Snapshot
            | Errand::RollBack
            | Errand::Delete
            | Errand::SetOrigin
            | Errand::Resize
            | Errand::Unmap => None,
        };
        if let Some(command) = command {
            self.tell(None, format_args!("command {command:?}"));
            let mut out = Outbox::default();
            self.keeper.command(0, command, &mut out);
            if let Some((volume, end)) = self.take_new_size() {
                self.write_behind(volume, end);
            }
            self.deliver(out).expect("commands that the model allows are accepted");
        }
    }

    /// A volume's new size is in force before it is answered. Which one, and where it ended before.
    fn take_new_size(&mut self) -> Option<(VolumeId, u64)> {
        let Some(UnderWay { promise: Promise::Size { volume, .. }, .. }) = self.command else { return None };
        let size = self.keeper.volume(volume).expect("volumes that are resized exist").size_bytes();
        let before = self.model.sectors_of(volume);
        let origins = &self.origins;
        self.model.resize(volume, size / SECTOR, |sector| origins.stamp(volume, sector));
        Some((volume, before))
    }

    /// What has come to a block that a volume ended in is used at once, while requests that saw it end there are under way.
    fn write_behind(&mut self, volume: VolumeId, end: u64) {
        let has_come = self.model.sectors_of(volume) > end && !end.is_multiple_of(BLOCK_SECTORS);
        if has_come && self.chance.one_in(2) {
            self.begin(volume, Kind::Write { fua: false }, end..end + 1);
        }
    }

    /// A command that neither makes nor deletes anything, and leaves the transaction id.
    fn stays(&mut self, promise: Promise) {
        let from = self.status().transaction_id;
        let step = IdStep { from, to: from };
        self.command = Some(UnderWay { volumes: vec![], origins: vec![], step, promise });
    }

    fn under_way(&mut self, volumes: Vec<VolumeId>, origins: Vec<VolumeId>) -> IdStep {
        let from = self.status().transaction_id;
        let step = IdStep { from, to: TransactionId(from.0 + 1) };
        self.command = Some(UnderWay { volumes, origins, step, promise: Promise::None });
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
        let sectors = self.options.volume_blocks * BLOCK_SECTORS - self.missing_sectors();
        self.ledger.set_sectors(volume, sectors);
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
        self.stays(Promise::None);
        Some(Command::SetOrigin { volume, origin })
    }

    /// A volume gets another size. A smaller one (when nobody uses it) is refused where blocks behind it are mapped; mostly it is the one
    /// behind which all was unmapped before.
    fn resize(&mut self, ids: &[VolumeId]) -> Option<Command> {
        let volume = self.one_of(ids);
        let (mut volume, mut blocks) = (volume, 1 + self.chance.below(2 * self.options.volume_blocks));
        if let Some((trimmed, begin)) = self.trimmed.take().filter(|(id, _)| self.model.has(*id)) {
            (volume, blocks) = (trimmed, begin.max(1));
        }
        let now = self.model.sectors_of(volume);
        if now > 2 * self.options.volume_blocks * BLOCK_SECTORS && blocks * BLOCK_SECTORS < now {
            blocks = now.div_ceil(BLOCK_SECTORS) + 1; // a large volume stays large
        }
        let mut sectors = blocks * BLOCK_SECTORS;
        if sectors > now {
            sectors = (sectors - self.missing_sectors()).max(now);
            if !now.is_multiple_of(BLOCK_SECTORS) && self.chance.one_in(2) {
                let begin = now - now % BLOCK_SECTORS;
                self.begin(volume, Kind::Discard, begin..now);
            }
        } else if sectors < now && self.in_flight.values().any(|request| request.volume == volume) {
            return None;
        }
        if sectors > now {
            self.ledger.set_sectors(volume, sectors);
        }
        self.stays(Promise::Size { volume, sectors, before: now });
        Some(Command::Resize { volume, size_bytes: sectors * SECTOR })
    }

    /// By how much a volume ends before the end of its last block. None becomes smaller inside a block: what is cut off there would
    /// be there again when it becomes larger.
    fn missing_sectors(&mut self) -> u64 {
        let is_odd = self.options.odd_sizes && self.chance.one_in(2);
        if is_odd { 1 + self.chance.below(BLOCK_SECTORS - 1) } else { 0 }
    }

    /// The control plane unmaps some blocks, or all from one on, past the end too.
    fn unmap(&mut self, ids: &[VolumeId]) -> Command {
        let volume = self.one_of(ids);
        let size = self.model.sectors_of(volume);
        let blocks = size.div_ceil(BLOCK_SECTORS);
        let begin = self.chance.below(blocks);
        let end =
            if self.chance.one_in(2) { u64::MAX } else { begin + 1 + self.chance.below(blocks - begin) };
        let sectors = begin * BLOCK_SECTORS..end.saturating_mul(BLOCK_SECTORS).min(size);
        let origins = &self.origins;
        let begun = self.model.write_begins(volume, sectors.clone(), |sector| origins.stamp(volume, sector));
        self.outcome.unmapped += 1;
        self.stays(Promise::Unmapped { volume, sectors, begun, to_the_end: end == u64::MAX });
        Command::Unmap { volume, blocks: begin..end }
    }

    fn delete(&mut self, ids: &[VolumeId]) -> Option<Command> {
        let is_used = |id: &VolumeId| self.in_flight.values().any(|request| request.volume == *id);
        let unused: Vec<VolumeId> = ids.iter().copied().filter(|id| !is_used(id)).collect();
        let largest = *unused.iter().max_by_key(|id| self.model.sectors_of(**id))?;
        let volume = if self.chance.one_in(2) { largest } else { self.one_of(&unused) };
        let step = self.under_way(vec![volume], vec![]);
        self.model.delete_begins(volume);
        self.patient.remove(&volume);
        self.outcome.deletions += 1;
        Some(Command::Delete { volume, step: Some(step) })
    }

    /// The metadata snapshot comes or goes; nobody's data changes.
    fn hold_or_release(&mut self) -> Command {
        let is_held = self.status().held_root.is_some();
        self.stays(Promise::Held(!is_held));
        if is_held { Command::ReleaseMetadata } else { Command::HoldMetadata }
    }

    /// What can be changed while the pool is in use: the pool's behaviour, or what becomes of one volume's writes when it is
    /// full.
    fn configure(&mut self, ids: &[VolumeId]) -> Command {
        self.stays(Promise::None);
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
        let data_blocks = (data_total + self.chance.below(3)).min(DATA_BLOCKS_LIMIT.max(data_total));
        let metadata_blocks =
            (metadata_total + self.chance.below(20)).min(METADATA_BLOCKS_LIMIT.max(metadata_total));
        self.outcome.grown_blocks += data_blocks - data_total;
        self.stays(Promise::Grown { data_blocks, metadata_blocks });
        Command::Grow {
            data_bytes: Some(data_blocks * BLOCK_SECTORS * SECTOR),
            metadata_bytes: Some(metadata_blocks * META_BLOCK_BYTES as u64),
        }
    }
}
