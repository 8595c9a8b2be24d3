//! The control plane's commands: volumes come and go, snapshots are taken of frozen volumes, the pool tells its state.

use super::super::command::{Behaviour, Removed};
use super::*;
use crate::engine::origin::Origin;
use crate::units::{META_BLOCK_BYTES, SnapTime};

/// Steps of giving freed space back at a close: a million ranges, which may take half a minute.
const CLOSE_STEPS: usize = 1 << 15;

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// A command of the control plane; `number` comes back with its answer.
    pub fn command(&mut self, number: u64, command: Command, out: &mut Outbox) {
        if let Command::Status = command {
            return out.answers.push((number, Ok(Answer::Status(Box::new(self.status())))));
        }
        if let Some(refusal) = self.refusal() {
            return out.answers.push((number, self.command_stopped(command, refusal)));
        }
        let result = match command {
            Command::CreateVolume { volume, size_bytes, origin, step } => {
                let behind = origin.map_or(Behind::Zeros, Behind::Origin);
                self.create_volume(volume, size_bytes, behind, step, out)
            }
            Command::Snapshot { pairs, step } => {
                return self.freeze(number, Frozen::Snapshots(pairs), step, out);
            }
            Command::RollBack { volume, to, keep, step } => {
                return self.freeze(number, Frozen::RollBack { volume, to, keep }, step, out);
            }
            Command::Grow { data_bytes, metadata_bytes } => self.grow(data_bytes, metadata_bytes, out),
            Command::Configure(behaviour) => {
                self.configure(behaviour);
                Ok(Answer::Done)
            }
            Command::ConfigureVolume { volume, when_full } => self.configure_volume(volume, when_full),
            Command::SetTransactionId(step) => self.check_step(step).and_then(|()| {
                self.change(out, |metadata| metadata.set_transaction_id(step.from, step.to))?;
                Ok(Answer::Done)
            }),
            Command::HoldMetadata => self.hold_metadata(out),
            Command::ReleaseMetadata => self.change(out, Metadata::release_snapshot).map(|()| Answer::Done),
            Command::Settle(all) => {
                return out.answers.push((number, Ok(Answer::Settling(self.settle_all(all)))));
            }
            Command::Resize { volume, size_bytes } => self.resize(volume, size_bytes),
            Command::SetOrigin { volume, origin } => self.set_origin(volume, origin),
            Command::Unmap { volume, blocks } => {
                let asker = Asker::Command(number);
                let unmap = Unmap { asker, volume, left: blocks, end_bytes: u64::MAX };
                return self.unmap_step(unmap, out);
            }
            Command::Delete { volume, step } => self.delete(volume, step, out),
            Command::CountShared => {
                self.want_sharing();
                return out.answers.push((number, Ok(Answer::Counting(self.counts()))));
            }
            Command::Volumes => {
                let volumes = self.volume_infos().map(Answer::Volumes);
                return out.answers.push((number, volumes));
            }
            Command::Commit => Ok(Answer::Done),
            Command::Close => {
                let closed = self.close(out);
                return out.answers.push((number, closed));
            }
            Command::Status => unreachable!("answered above, also by a pool that takes no changes"),
        };
        match result {
            Ok(answer) => self.committed_answers.push((number, answer)),
            Err(error) => out.answers.push((number, Err(error))),
        }
    }

    /// What a pool that takes no changes can still do; the rest is answered with `refusal`.
    fn command_stopped(&mut self, command: Command, refusal: Error) -> Result<Answer> {
        let is_readable = matches!(self.stopped, Some(Stop::OpenedReadOnly(_) | Stop::ReadOnly(_)));
        match command {
            Command::Volumes if is_readable => self.volume_infos().map(Answer::Volumes),
            Command::CountShared if is_readable => Ok(Answer::Counting(false)),
            Command::Configure(behaviour) if is_readable => {
                self.configure(behaviour);
                Ok(Answer::Done)
            }
            Command::ConfigureVolume { volume, when_full } if is_readable => {
                self.configure_volume(volume, when_full)
            }
            Command::Close if matches!(self.stopped, Some(Stop::OpenedReadOnly(_))) => {
                self.end();
                Ok(Answer::Done)
            }
            Command::CreateVolume { .. }
            | Command::Snapshot { .. }
            | Command::RollBack { .. }
            | Command::Resize { .. }
            | Command::SetOrigin { .. }
            | Command::Unmap { .. }
            | Command::Delete { .. }
            | Command::Grow { .. }
            | Command::Configure(_)
            | Command::ConfigureVolume { .. }
            | Command::SetTransactionId(_)
            | Command::HoldMetadata
            | Command::ReleaseMetadata
            | Command::Settle(_)
            | Command::Status
            | Command::Volumes
            | Command::CountShared
            | Command::Commit
            | Command::Close => Err(refusal),
        }
    }

    pub(super) fn create_volume(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        behind: Behind,
        step: IdStep,
        out: &mut Outbox,
    ) -> Result<Answer> {
        self.check_step(step)?;
        self.change(out, |metadata| metadata.create_volume(id))?;
        self.journal.is_behind = true;
        self.change(out, |metadata| metadata.set_transaction_id(step.from, step.to))?;
        let time = self.metadata.time();
        self.volumes.insert(id, self.new_volume(id, size_bytes, time, behind));
        Ok(Answer::Done)
    }

    /// A volume that has just come to be, or was found.
    pub(super) fn new_volume(
        &self,
        id: VolumeId,
        size_bytes: u64,
        snapshotted: SnapTime,
        behind: Behind,
    ) -> Arc<Volume> {
        let (pages, partials) = (self.map_memory.pages(), self.partial.table.clone());
        let volume = Volume::new(id, size_bytes, snapshotted, behind, pages, partials);
        volume.set_ignores_discards(self.discard.ignores());
        Arc::new(volume)
    }

    /// See [`Command::Configure`].
    fn configure(&mut self, behaviour: Behaviour) {
        let Behaviour { discard, zero_new_blocks, small_writes, when_full } = behaviour;
        self.partial.small_writes = small_writes.unwrap_or(self.partial.small_writes);
        if let Some(discard) = discard {
            self.discard = discard;
            self.volumes.values().for_each(|volume| volume.set_ignores_discards(discard.ignores()));
        }
        self.zero_new_blocks = zero_new_blocks.unwrap_or(self.zero_new_blocks);
        if let Some(when_full) = when_full {
            self.when_full = when_full;
            self.space_waiters.begin_anew();
        }
    }

    /// See [`Command::ConfigureVolume`].
    fn configure_volume(&mut self, id: VolumeId, when_full: Option<WhenFull>) -> Result<Answer> {
        self.open_volume(id)?;
        match when_full {
            Some(policy) => self.volumes_when_full.insert(id, policy),
            None => self.volumes_when_full.remove(&id),
        };
        self.space_waiters.begin_anew_for(id);
        Ok(Answer::Done)
    }

    /// The compare of the compare-and-swap, before anything is changed.
    pub(super) fn check_step(&self, step: IdStep) -> Result<()> {
        let now = self.metadata.transaction_id();
        if now == step.from {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongState,
            format!("the pool's transaction id is {now}, not {} as the caller believes", step.from),
        )
        .hint("somebody else has changed the pool; read its state again"))
    }

    /// Freezes the volumes that `what` needs to be still, and waits.
    pub(super) fn freeze(&mut self, number: u64, what: Frozen, step: IdStep, out: &mut Outbox) {
        if let Err(error) = self.check_frozen(&what, step) {
            return out.answers.push((number, Err(error)));
        }
        for volume in what.volumes() {
            self.volumes[&volume].set_frozen(true);
        }
        let epoch = self.epochs.retire();
        self.freezes.push_back(Freeze { number, what, step, epoch });
    }

    /// Whether it can be done, as far as can be told before.
    fn check_frozen(&mut self, what: &Frozen, step: IdStep) -> Result<()> {
        self.check_step(step)?;
        for id in what.volumes() {
            self.open_volume(id)?;
        }
        for (_, new) in what.new_volumes() {
            if self.metadata.details(new)?.is_some() {
                return Err(Error::new(ErrorKind::Exists, format!("volume {new} exists already")));
            }
        }
        if let Frozen::RollBack { volume, to, .. } = what {
            // Else what neither maps would change to what neither held.
            if !self.open_volume(*volume)?.behind().is_like(self.open_volume(*to)?.behind()) {
                let what = format!("volumes {volume} and {to} have different external origins");
                return Err(
                    Error::new(ErrorKind::Invalid, what).hint("take a snapshot of the other one instead")
                );
            }
            let (has, needs) = (self.open_volume(*volume)?.size_bytes(), self.open_volume(*to)?.size_bytes());
            if needs > has {
                let what = format!("volume {volume} has {has} bytes, fewer than the {needs} of volume {to}");
                return Err(Error::new(ErrorKind::Invalid, what).hint("make it larger first"));
            }
        }
        Ok(())
    }

    fn open_volume(&self, id: VolumeId) -> Result<&Arc<Volume>> {
        self.volumes.get(&id).ok_or_else(|| no_such_volume(id))
    }

    /// Does what waited for volumes that have drained now. It is durable with the commit that follows.
    pub(super) fn take_drained(&mut self, out: &mut Outbox) -> Vec<Freeze> {
        let mut taken = Vec::new();
        // In order: the transaction ids of two commands follow each other.
        while self.freezes.front().is_some_and(|freeze| self.epochs.all_past(freeze.epoch)) {
            let freeze = self.freezes.pop_front().expect("there is a front");
            match self.take(&freeze, out) {
                Ok(()) => {
                    self.committed_answers.push((freeze.number, Answer::Done));
                    taken.push(freeze);
                }
                Err(error) => {
                    self.thaw(&freeze, out);
                    out.answers.push((freeze.number, Err(error)));
                }
            }
        }
        taken
    }

    fn take(&mut self, freeze: &Freeze, out: &mut Outbox) -> Result<()> {
        self.check_frozen(&freeze.what, freeze.step)?;
        if let Frozen::RollBack { volume, to, .. } = freeze.what {
            self.check_readable(volume, to)?;
            if self.is_dirty() {
                self.commit(out)?; // what the volume holds now is what stepping down would lead back to
            }
        }
        self.take_snapshots(&freeze.what.new_volumes(), out)?;
        if let Frozen::RollBack { volume, to, keep } = freeze.what
            && let Err(error) = self.replace_contents(volume, to)
        {
            if is_refusal(&error) {
                self.forget_snapshots(&[(volume, keep)], out);
            } else {
                self.stop(Failure::Metadata, error.clone(), out);
            }
            return Err(error);
        }
        self.change(out, |metadata| metadata.set_transaction_id(freeze.step.from, freeze.step.to))
    }

    /// Whether what [`Keeper::replace_contents`] will read can be read: found out later it would be the end of the pool.
    fn check_readable(&mut self, volume: VolumeId, to: VolumeId) -> Result<()> {
        let pages = self.open_volume(volume)?.table.loaded_pages(0..u64::MAX);
        pages.into_iter().try_for_each(|page| self.metadata.for_each_mapping(to, page, &mut |_, _| {}))
    }

    fn take_snapshots(&mut self, pairs: &[(VolumeId, VolumeId)], out: &mut Outbox) -> Result<()> {
        for (taken, (origin, snapshot)) in pairs.iter().enumerate() {
            // Only the first may commit for space: the others belong into the same transaction.
            let result = match taken {
                0 => self.change(out, |metadata| metadata.snapshot(*origin, *snapshot)),
                _ => self.metadata.snapshot(*origin, *snapshot),
            };
            let time = match result {
                Ok(time) => time,
                Err(error) => {
                    self.forget_snapshots(&pairs[..taken], out);
                    return Err(error);
                }
            };
            self.journal.is_behind = true;
            let origin = &self.volumes[origin];
            origin.set_snapshotted(time);
            // What the origin does not map shows through here as it does there.
            let volume = self.new_volume(*snapshot, origin.size_bytes(), time, origin.behind().clone());
            self.volumes.insert(*snapshot, volume);
        }
        Ok(())
    }

    /// Points `volume`, of which a snapshot has just been taken, at what `to` holds. Lanes that read meanwhile see the old
    /// or the new, and what they see stays where it is until they have passed by.
    fn replace_contents(&mut self, volume: VolumeId, to: VolumeId) -> Result<()> {
        let time = self.metadata.replace_mappings(volume, to)?;
        self.uncommitted.roll_back(volume);
        // First: then nobody takes a new mapping for his own.
        self.volumes[&volume].set_snapshotted(time);
        self.volumes[&to].set_snapshotted(time);
        // What only the one with an origin that cannot be had did map, the other maps, too.
        self.partial.table.try_again();
        self.reload_table(volume)
    }

    /// Brings what is loaded of a volume's map in step with the metadata.
    pub(super) fn reload_table(&mut self, id: VolumeId) -> Result<()> {
        let volume = &self.volumes[&id];
        for page in volume.table.loaded_pages(0..u64::MAX) {
            let mut mapped = HashMap::new();
            self.metadata.for_each_mapping(volume.id(), page.clone(), &mut |block, mapping| {
                mapped.insert(block, mapping);
            })?;
            for block in page.map(VirtualBlock) {
                volume.table.set(block, mapped.get(&block).copied());
            }
        }
        Ok(())
    }

    /// All or none: takes back the first ones of a group. They only share their origins' roots, and go as easily.
    fn forget_snapshots(&mut self, pairs: &[(VolumeId, VolumeId)], out: &mut Outbox) {
        for (_, snapshot) in pairs {
            self.volumes.remove(snapshot);
            self.forget_sharing_of(*snapshot);
            if let Err(error) = self.metadata.delete_volume(*snapshot, usize::MAX) {
                return self.stop(Failure::Metadata, error, out);
            }
        }
    }

    /// Lets volumes' changes go on, unless another command still waits for them.
    pub(super) fn thaw(&mut self, freeze: &Freeze, out: &mut Outbox) {
        for id in freeze.what.volumes() {
            if self.freezes.iter().any(|other| other.what.volumes().contains(&id)) {
                continue;
            }
            if let Some(volume) = self.volumes.get(&id) {
                volume.set_frozen(false);
            }
            self.thaws.retain(|(volume, asker)| {
                if *volume == id {
                    out.reply(*asker, Reply::Again);
                }
                *volume != id
            });
        }
    }

    /// More room; see [`Command::Grow`]. The disks first: metadata never names what is not there.
    fn grow(
        &mut self,
        data_bytes: Option<u64>,
        metadata_bytes: Option<u64>,
        out: &mut Outbox,
    ) -> Result<Answer> {
        let has = self.metadata.usage().metadata_total * META_BLOCK_BYTES as u64;
        if let Some(bytes) = metadata_bytes.filter(|bytes| *bytes < has) {
            let what = format!("the metadata has {has} bytes and cannot have {bytes}");
            return Err(Error::new(ErrorKind::Invalid, what).hint("a pool only grows"));
        }
        self.metadata.grow_disk(metadata_bytes.unwrap_or(0))?;
        self.change(out, Metadata::grow_metadata)?;
        self.journal.is_behind = true;

        let block_bytes = self.block_size().bytes();
        if let Some(bytes) = data_bytes {
            // A file that was extended in vain would stay so.
            self.change(out, |metadata| metadata.check_grown_data(bytes / block_bytes))?;
        }
        let bytes = data_bytes.unwrap_or(0);
        self.data.grow(bytes).map_err(|error| {
            Error::io(format_args!("{}: cannot have {bytes} bytes", self.data.name()), &error)
        })?;
        let blocks = data_bytes.unwrap_or(self.data.size_bytes()) / block_bytes;
        self.change(out, |metadata| metadata.grow_data(blocks))?;
        self.ahead.grow(blocks);
        self.journal.is_behind = true;
        self.starved = None;
        self.out_of_data_space = false;
        self.space_waiters.begin_anew();
        self.deletions_stalled = false;
        Ok(Answer::Done)
    }

    fn hold_metadata(&mut self, out: &mut Outbox) -> Result<Answer> {
        if self.metadata.is_dirty() && self.metadata.held_root().is_none() {
            self.commit(out)?;
        }
        self.change(out, Metadata::reserve_snapshot)?;
        Ok(Answer::Done)
    }

    /// A volume's new size; see [`Command::Resize`].
    fn resize(&mut self, id: VolumeId, size_bytes: u64) -> Result<Answer> {
        let volume = self.open_volume(id)?.clone();
        if size_bytes < volume.size_bytes() {
            let block_bytes = self.block_size().bytes();
            let mapped = self
                .metadata
                .highest_mapped(id)?
                .map_or(0, |block| block.0.saturating_add(1).saturating_mul(block_bytes));
            if mapped > size_bytes.next_multiple_of(block_bytes) {
                let what =
                    format!("volume {id} has data up to byte {mapped}, past its new end at {size_bytes}");
                return Err(Error::new(ErrorKind::WrongState, what)
                    .hint("shrink what is on it first, and discard what is past the new end"));
            }
            if !volume.close_if_unused() {
                return Err(in_use(&volume));
            }
            volume.set_size_bytes(size_bytes);
            volume.reopen();
        }
        volume.set_size_bytes(size_bytes);
        Ok(Answer::Done)
    }

    /// Another origin behind a volume; see [`Command::SetOrigin`]. Nobody looks at it, so it can begin anew.
    fn set_origin(&mut self, id: VolumeId, origin: Origin) -> Result<Answer> {
        let volume = self.open_volume(id)?.clone();
        refuse_frozen(&volume)?;
        if matches!(volume.behind(), Behind::Zeros) && !self.shows_origin(id)? {
            let what = format!("nothing says that volume {id} stands on an external origin");
            return Err(Error::new(ErrorKind::WrongState, what));
        }
        if !volume.close_if_unused() {
            return Err(in_use(&volume));
        }
        let behind = Behind::Origin(origin);
        let anew = self.new_volume(id, volume.size_bytes(), volume.snapshotted(), behind);
        self.volumes.insert(id, anew);
        self.partial.table.try_again();
        Ok(Answer::Done)
    }

    pub(super) fn delete(&mut self, id: VolumeId, step: Option<IdStep>, out: &mut Outbox) -> Result<Answer> {
        if let Some(step) = step {
            self.check_step(step)?;
        }
        let volume = self.open_volume(id)?.clone();
        refuse_frozen(&volume)?;
        if !volume.close_if_unused() {
            return Err(in_use(&volume));
        }
        let nodes = self.delete_step_nodes;
        match self.change(out, |metadata| metadata.delete_volume(id, nodes)) {
            Ok(progress) => {
                self.uncommitted.delete(volume);
                if let Some(step) = step {
                    self.change(out, |metadata| metadata.set_transaction_id(step.from, step.to))?;
                }
                self.volumes.remove(&id);
                self.volumes_when_full.remove(&id);
                self.forget_sharing_of(id);
                if progress == Progress::Done {
                    return Ok(Answer::Deleting { finished: true });
                }
                self.deletions.push_back(id);
                Ok(Answer::Deleting { finished: false })
            }
            Err(error) => {
                volume.reopen();
                Err(error)
            }
        }
    }

    pub(super) fn close(&mut self, out: &mut Outbox) -> Result<Answer> {
        let busy = !self.filling.is_empty() || !self.unmaps.is_empty() || !self.freezes.is_empty();
        if busy {
            return Err(Error::new(ErrorKind::Busy, "requests are still running on the pool"));
        }
        self.end_journal();
        self.commit(out)?;
        // Nobody reads any more. What the data disk is not told now, it is told never: holes of a sparse file.
        let freed: Vec<_> = self.limbo.drain(..).flat_map(|(_, freed)| freed).collect();
        freed.into_iter().for_each(|range| self.reusable(range));
        let mut steps = 0;
        while self.to_give_back() > 0 && steps < CLOSE_STEPS {
            self.give_back(Pace::Alone);
            steps += 1;
        }
        if self.to_give_back() > 0 {
            tracing::warn!(
                "{} freed blocks, too scattered to be given back now, keep their space: `uthin-fsck trim` gives it back",
                self.to_give_back()
            );
        }
        self.give_back_ahead();
        self.end();
        out.replies
            .extend(self.space_waiters.take_all().map(|waiter| (waiter, Reply::Failed(IoError::Gone))));
        Ok(Answer::Done)
    }

    fn end(&mut self) {
        self.stopped = Some(Stop::Failed(Error::new(ErrorKind::Failed, "the pool is closed")));
    }

    pub(super) fn status(&self) -> PoolStatus {
        let mode = match &self.stopped {
            Some(Stop::OpenedReadOnly(why) | Stop::ReadOnly(why)) => Mode::ReadOnly(why.clone()),
            Some(Stop::Failed(why)) => Mode::Failed(why.clone()),
            None if self.out_of_data_space => Mode::OutOfDataSpace,
            None => Mode::Write,
        };
        PoolStatus {
            mode,
            needs_check: self.metadata.needs_check(),
            transaction_id: self.metadata.transaction_id(),
            time: self.metadata.time(),
            block_size: self.block_size(),
            usage: self.metadata.usage(),
            out_of_metadata_space: self.is_out_of_metadata_space(),
            times_full: self.times_full,
            held_root: self.metadata.held_root().map(|MetaBlock(block)| block),
            discard: match self.discard {
                Discard::Passdown if self.cannot_discard => Discard::NoPassdown,
                discard => discard,
            },
            to_give_back: self.to_give_back(),
            zero_new_blocks: self.zero_new_blocks,
            small_writes: self.partial.small_writes,
            partial_blocks: self.metadata.partial_blocks(),
            when_full: self.when_full,
            queue_expired: self.pool_queue_has_expired(),
            waiting_for_space: self.space_waiters.count(),
            volumes: self.volumes.len(),
            map_bytes: self.map_memory.used_bytes(),
            deleting: self.deletions.iter().copied().collect(),
            counts: self.sharing_counts(),
            journal: self.journal.status(),
            removed: Removed { metadata: self.metadata.is_disk_removed(), data: self.data.is_removed() },
        }
    }

    pub(super) fn volume_infos(&mut self) -> Result<Vec<VolumeInfo>> {
        let mut infos = Vec::with_capacity(self.volumes.len());
        self.metadata.look_up_highest(self.volumes.keys().copied());
        for (id, volume) in &self.volumes {
            let details = self.metadata.details(*id)?.expect("every open volume is in the metadata");
            infos.push(VolumeInfo {
                id: *id,
                size_bytes: volume.size_bytes(),
                details,
                highest_mapped: self.metadata.highest_mapped(*id)?,
                openers: volume.openers(),
                lacks_origin: matches!(volume.behind(), Behind::Unavailable(_)),
                when_full: self.volumes_when_full.get(id).copied(),
                queue_expired: self.queue_has_expired(*id),
                waiting_for_space: self.space_waiters.of_volume(*id),
                sharing: self.sharing_of(*id),
            });
        }
        Ok(infos)
    }
}

pub(super) fn no_such_volume(id: VolumeId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no volume {id}"))
}

fn refuse_frozen(volume: &Volume) -> Result<()> {
    if !volume.is_frozen() {
        return Ok(());
    }
    let message = format!("a snapshot of volume {} is being taken", volume.id());
    Err(Error::new(ErrorKind::Busy, message).hint("try again"))
}

fn in_use(volume: &Volume) -> Error {
    let message = format!("volume {} is in use by {} client(s)", volume.id(), volume.openers());
    Error::new(ErrorKind::Busy, message).hint("disconnect them first")
}
