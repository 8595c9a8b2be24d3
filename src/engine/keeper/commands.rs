//! The control plane's commands: volumes come and go, snapshots are taken of frozen volumes, the pool tells its state.

use super::*;

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// A command of the control plane; `number` comes back with its answer.
    pub fn command(&mut self, number: u64, command: Command, out: &mut Outbox) {
        if let Command::Status = command {
            return out.answers.push((number, Ok(Answer::Status(Box::new(self.status())))));
        }
        if let Some(error) = &self.failed {
            return out.answers.push((number, Err(failed_stop(error))));
        }
        let result = match command {
            Command::CreateVolume { volume, size_bytes, step } => {
                self.create_volume(volume, size_bytes, step, out)
            }
            Command::Snapshot { pairs, step } => return self.begin_snapshot(number, pairs, step, out),
            Command::Delete { volume, step } => self.delete(volume, step, out),
            Command::Volumes => {
                let volumes = self.volume_infos().map(Answer::Volumes);
                return out.answers.push((number, volumes));
            }
            Command::Commit => Ok(Answer::Done),
            Command::Close => {
                let closed = self.close(out);
                return out.answers.push((number, closed));
            }
            Command::Status => unreachable!("answered above, also by a failed pool"),
        };
        match result {
            Ok(answer) => self.committed_answers.push((number, answer)),
            Err(error) => out.answers.push((number, Err(error))),
        }
    }

    pub(super) fn create_volume(
        &mut self,
        id: VolumeId,
        size_bytes: u64,
        step: IdStep,
        out: &mut Outbox,
    ) -> Result<Answer> {
        self.check_step(step)?;
        self.change(out, |metadata| metadata.create_volume(id))?;
        self.change(out, |metadata| metadata.set_transaction_id(step.from, step.to))?;
        let time = self.metadata.time();
        self.volumes.insert(id, Arc::new(Volume::new(id, size_bytes, self.block_size(), time)));
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

    pub(super) fn begin_snapshot(
        &mut self,
        number: u64,
        pairs: Vec<(VolumeId, VolumeId)>,
        step: IdStep,
        out: &mut Outbox,
    ) {
        if let Err(error) = self.check_snapshot(&pairs, step) {
            return out.answers.push((number, Err(error)));
        }
        for (origin, _) in &pairs {
            self.volumes[origin].set_frozen(true);
        }
        let epoch = self.epochs.retire();
        self.freezes.push_back(Freeze { number, pairs, step, epoch });
    }

    pub(super) fn check_snapshot(&mut self, pairs: &[(VolumeId, VolumeId)], step: IdStep) -> Result<()> {
        self.check_step(step)?;
        for (origin, snapshot) in pairs {
            if !self.volumes.contains_key(origin) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no volume {origin} to snapshot"),
                ));
            }
            if self.metadata.details(*snapshot)?.is_some() {
                return Err(Error::new(ErrorKind::Exists, format!("volume {snapshot} exists already")));
            }
        }
        Ok(())
    }

    /// Takes the snapshots whose origins have drained. They are durable with the commit that follows.
    pub(super) fn take_drained_snapshots(&mut self, out: &mut Outbox) -> Vec<Freeze> {
        let mut taken = Vec::new();
        // In order: the transaction ids of two snapshots follow each other.
        while self.freezes.front().is_some_and(|freeze| self.epochs.all_past(freeze.epoch)) {
            let freeze = self.freezes.pop_front().expect("there is a front");
            match self.take_snapshot(&freeze, out) {
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

    pub(super) fn take_snapshot(&mut self, freeze: &Freeze, out: &mut Outbox) -> Result<()> {
        self.check_snapshot(&freeze.pairs, freeze.step)?;
        for (taken, (origin, snapshot)) in freeze.pairs.iter().enumerate() {
            // Only the first may commit for space: the others belong into the same transaction.
            let result = match taken {
                0 => self.change(out, |metadata| metadata.snapshot(*origin, *snapshot)),
                _ => self.metadata.snapshot(*origin, *snapshot),
            };
            let time = match result {
                Ok(time) => time,
                Err(error) => {
                    self.forget_snapshots(&freeze.pairs[..taken], out);
                    return Err(error);
                }
            };
            let origin = &self.volumes[origin];
            origin.set_snapshotted(time);
            let volume = Volume::new(*snapshot, origin.size_bytes(), self.block_size(), time);
            self.volumes.insert(*snapshot, Arc::new(volume));
        }
        self.change(out, |metadata| metadata.set_transaction_id(freeze.step.from, freeze.step.to))
    }

    /// All or none: takes back the first ones of a group. They only share their origins' roots, and go as easily.
    pub(super) fn forget_snapshots(&mut self, pairs: &[(VolumeId, VolumeId)], out: &mut Outbox) {
        for (_, snapshot) in pairs {
            self.volumes.remove(snapshot);
            if let Err(error) = self.metadata.delete_volume(*snapshot, usize::MAX) {
                return self.fail(error, out);
            }
        }
    }

    /// Lets an origin's changes go on, unless another snapshot of it still waits.
    pub(super) fn thaw(&mut self, freeze: &Freeze, out: &mut Outbox) {
        for (origin, _) in &freeze.pairs {
            let origins = |other: &Freeze| other.pairs.iter().any(|(other, _)| other == origin);
            if self.freezes.iter().any(origins) {
                continue;
            }
            if let Some(volume) = self.volumes.get(origin) {
                volume.set_frozen(false);
            }
            self.thaws.retain(|(volume, asker)| {
                if volume == origin {
                    out.reply(*asker, Reply::Again);
                }
                volume != origin
            });
        }
    }

    pub(super) fn delete(&mut self, id: VolumeId, step: Option<IdStep>, out: &mut Outbox) -> Result<Answer> {
        if let Some(step) = step {
            self.check_step(step)?;
        }
        let volume =
            self.volumes.get(&id).cloned().ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no volume {id} to delete"))
            })?;
        if volume.is_frozen() {
            return Err(Error::new(ErrorKind::Busy, format!("a snapshot of volume {id} is being taken"))
                .hint("try again"));
        }
        if !volume.close_if_unused() {
            let message = format!("volume {id} is in use by {} client(s)", volume.openers());
            return Err(Error::new(ErrorKind::Busy, message).hint("disconnect them first"));
        }
        match self.change(out, |metadata| metadata.delete_volume(id, DELETE_STEP_NODES)) {
            Ok(progress) => {
                if let Some(step) = step {
                    self.change(out, |metadata| metadata.set_transaction_id(step.from, step.to))?;
                }
                self.volumes.remove(&id);
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
        self.commit(out)?;
        // Nobody reads any more. What the data disk is not told now, it is told never: holes of a sparse file.
        self.discards.extend(self.limbo.drain(..).flat_map(|(_, freed)| freed));
        while !self.discards.is_empty() {
            self.discard_step();
        }
        self.failed = Some(Error::new(ErrorKind::Failed, "the pool is closed"));
        out.replies.extend(self.space_waiters.drain(..).map(|waiter| (waiter, Reply::Failed(IoError::Gone))));
        Ok(Answer::Done)
    }

    pub(super) fn status(&self) -> PoolStatus {
        let mode = match &self.failed {
            Some(error) => Mode::Failed(error.clone()),
            None if self.out_of_data_space => Mode::OutOfDataSpace,
            None => Mode::Write,
        };
        PoolStatus {
            mode,
            transaction_id: self.metadata.transaction_id(),
            time: self.metadata.time(),
            block_size: self.block_size(),
            usage: self.metadata.usage(),
            held_root: self.metadata.held_root().map(|MetaBlock(block)| block),
            discard_passdown: self.discard_passdown,
            zero_new_blocks: self.zero_new_blocks,
            volumes: self.volumes.len(),
            deleting: self.deletions.iter().copied().collect(),
        }
    }

    pub(super) fn volume_infos(&mut self) -> Result<Vec<VolumeInfo>> {
        let mut infos = Vec::with_capacity(self.volumes.len());
        for (id, volume) in &self.volumes {
            let details = self.metadata.details(*id)?.expect("every open volume is in the metadata");
            infos.push(VolumeInfo {
                id: *id,
                size_bytes: volume.size_bytes(),
                details,
                highest_mapped: self.metadata.highest_mapped(*id)?,
                openers: volume.openers(),
            });
        }
        Ok(infos)
    }
}
