//! The end of a pool's life and the beginning of the next: what the power leaves behind is opened by production code, and
//! must hold what the model allows.

use super::commands::UnderWay;
use super::disk::SimDisk;
use super::model::Stamp;
use super::world::{Event, SECTOR, Source, UNASKED, World, stamps_of};
use crate::check::{CheckOptions, MendOptions, Verdict, check_and_mend};
use crate::disk::{Disk, MemoryDisk};
use crate::engine::{
    Action, Answer, Ask, Asker, Base, Behind, Command, IoError, JournalStatus, Kind, LaneId, Mode, OpId,
    Outbox, Pace, Reply, Request, Settled, Settling, SmallWrites, Tag, VolumeInfo,
};
use crate::error::{Error, ErrorKind};
use crate::journal::{self, Recovered};
use crate::metadata::{Access, Metadata};
use crate::units::VolumeId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// No more faults than that lie in wait.
const OPENINGS_LIMIT: usize = 6;

impl World {
    /// The power goes and comes back; the pool is opened by production code and must hold what the model allows.
    pub(super) fn power_cycle(&mut self) -> Result<(), String> {
        self.die(false)
    }

    /// The process is killed, and the operating system goes on; everything that was acknowledged must be there. If it cannot
    /// be because something else has gone wrong before, the power is cut.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        // What such a flush has left behind is there for readers, until it is not: nothing can be promised on top of that.
        let has_doomed_journal = self.journal_disk.as_ref().is_some_and(SimDisk::has_doomed);
        let is_possible = !self.is_off() && !self.metadata_disk.has_doomed() && !has_doomed_journal;
        self.die(is_possible)?;
        // Neither can be of data, but nobody may see what others have written.
        if is_possible && self.data_disk.has_doomed() { self.die(false) } else { Ok(()) }
    }

    fn die(&mut self, is_killed: bool) -> Result<(), String> {
        self.judge_mode()?;
        let journal = self.status().journal;
        self.outcome.failed_journals += u64::from(journal == JournalStatus::Failed);
        let has_journal = matches!(journal, JournalStatus::On { .. });
        // Records count no more once the data disk has failed a flush, also one that had nothing to do.
        let is_sound = self.data_disk.faults() == 0 && !self.data_disk.has_doomed();
        let mut is_strict = is_killed && has_journal && is_sound;
        self.tell(
            None,
            format_args!("{}", if is_killed { "the process is killed" } else { "the power is cut" }),
        );
        self.patient.clear();
        self.forget_lanes();
        for (_, event) in std::mem::take(&mut self.events) {
            if let Event::Write { lane, offset_bytes, length_bytes, from, .. } = event {
                let bytes = self.source(lane, from, length_bytes);
                for (sector, bytes) in bytes.chunks_exact(SECTOR as usize).enumerate() {
                    if self.chance.one_in(2) {
                        // Fails when the power was off before, and that is right too.
                        let _ = self.data_disk.write_at(offset_bytes + sector as u64 * SECTOR, bytes);
                    }
                }
            }
        }
        if is_killed {
            self.outcome.kills += 1;
            self.disks().for_each(SimDisk::outlive);
        } else {
            self.cut_power();
        }
        self.in_flight.clear();
        self.buffers.clear();
        self.scratch.clear();
        let cuts = self.outcome.power_cuts;
        is_strict &= self.recover()? && cuts == self.outcome.power_cuts;
        self.check_metadata(Verdict::Clean)?;
        if let Some(UnderWay { volumes, step, promise, .. }) = self.command.take() {
            let status = self.status();
            self.ledger.is_cut_off(promise, &status, &mut self.model, &self.origins);
            let id = status.transaction_id;
            if id != step.from && id != step.to {
                return Err(format!("the transaction id is {id}, expected {} or {}", step.from, step.to));
            }
            self.model.cut_off(&volumes, id == step.to);
        }
        let status = self.status();
        self.ledger.check(&status)?;
        let mut found = BTreeMap::new();
        for VolumeInfo { id, .. } in self.volume_infos()? {
            found.insert(id, self.read_volume(id)?);
        }
        let half_deleted: Vec<VolumeId> =
            found.keys().copied().filter(|id| self.model.is_being_deleted(*id)).collect();
        if is_killed && cuts == self.outcome.power_cuts {
            self.outcome.strict_kills += u64::from(is_strict);
            self.model.after_kill(&found, is_strict)?;
        } else {
            self.model.after_power_cut(&found)?;
        }
        self.outcome.resumed_deletions += half_deleted.len() as u64;
        for volume in half_deleted {
            // As the catalog has it: what was being deleted is deleted.
            self.keeper.command(UNASKED, Command::Delete { volume, step: None }, &mut Outbox::default());
        }
        Ok(())
    }

    /// All disks lose what was not flushed, and a new run of the operating system begins.
    fn cut_power(&mut self) {
        self.outcome.power_cuts += 1;
        self.boot += 1;
        let chance = &mut self.chance;
        let mut choose = |n: usize| chance.below(n as u64) as usize;
        self.metadata_disk.power_cycle(&mut choose);
        self.data_disk.power_cycle(&mut choose);
        if let Some(disk) = &self.journal_disk {
            disk.power_cycle(&mut choose);
        }
    }

    /// Opens the pool, and reads all the map. A disk that fails on the way is tried again, and so is a power cut or the death of
    /// the process in the middle of it: nothing may be lost by that. Whether the data disk has done all that it was told, and the journal kept what it held.
    fn recover(&mut self) -> Result<bool, String> {
        let read = |world: &mut Self| {
            world.reopen()?;
            let volumes = world.volume_infos()?;
            volumes.into_iter().try_for_each(|volume| world.read_volume(volume.id).map(drop))
        };
        if self.journal_disk.is_some() && self.chance.one_in(3) {
            self.trouble_opening();
        }
        let mut recovered = read(self);
        while recovered.is_err() && self.is_off() {
            self.outcome.cut_openings += 1;
            self.begin_again();
            self.tell(None, format_args!("the power is cut again"));
            self.cut_power();
            recovered = read(self);
        }
        self.disks().for_each(SimDisk::keep_power);
        let mut is_sound = self.data_disk.faults() == 0;
        for _ in 0..OPENINGS_LIMIT {
            if recovered.is_ok() || !self.has_failed_disk() {
                break;
            }
            self.outcome.cut_openings += u64::from(self.journal_disk.is_some());
            self.begin_again();
            // Where the journal says that it is over, a flush has failed, and what it held is not brought in: records that nobody had flushed are gone.
            is_sound &= !self.journal_disk.as_ref().is_some_and(SimDisk::has_doomed);
            self.disks().for_each(SimDisk::forget_failure);
            recovered = read(self);
            is_sound &= self.data_disk.faults() == 0;
        }
        recovered.map(|()| is_sound)
    }

    /// Something will go wrong while the pool is opened, perhaps.
    fn trouble_opening(&mut self) {
        let after = self.chance.below(24);
        let disk = match self.chance.below(3) {
            0 => &self.metadata_disk,
            1 => &self.data_disk,
            _ => self.journal_disk.as_ref().expect("there is a journal"),
        };
        match self.chance.one_in(2) {
            true => disk.cut_power_after(after),
            false => disk.fail_after(after, None),
        }
    }

    fn begin_again(&mut self) {
        self.forget_lanes();
        self.events.clear();
        self.buffers.clear();
    }

    /// Opens the pool as a daemon does. Metadata that asks for a check is served for reading first; then the checker must
    /// find it sound, and clears the flag.
    fn reopen(&mut self) -> Result<(), String> {
        let wrong = |error: crate::error::Error| format!("reopening after a power cut: {error}");
        match self.start() {
            // A journal is brought in only after that.
            Err(error) if error.kind() == ErrorKind::NeedsCheck => {}
            Err(error) => return Err(wrong(error)),
            Ok(()) => {
                let Mode::ReadOnly(_) = self.status().mode else { return Ok(()) };
                for volume in self.volume_infos()? {
                    self.read_volume(volume.id)?;
                }
            }
        }
        self.outcome.checks += 1;
        self.lanes.clear();
        let mend = MendOptions { needs_check: true, ..MendOptions::default() };
        let (report, mended) = check_and_mend(&self.metadata_disk, &CheckOptions::default(), mend)
            .map_err(|error| format!("checking what asks for it: {error}"))?;
        if report.verdict != Verdict::Clean || !mended.needs_check {
            return Err(format!("what asks for a check is not sound: {:?}", report.findings));
        }
        self.start().map_err(wrong)
    }

    fn start(&mut self) -> Result<(), Error> {
        let mut metadata = Metadata::open_to_serve(self.metadata_disk.clone())?;
        let data = self.data_disk.clone();
        let disk = self.journal_disk.clone();
        let boot = self.boot_id();
        let recovered =
            journal::recover(&mut metadata, &data, disk.as_ref().map(|disk| disk as &dyn Disk), boot)?;
        if let Some(Recovered { records, after_power_cut }) = recovered {
            self.tell(None, format_args!("{records} records are brought in; power cut: {after_power_cut}"));
            self.outcome.replays += u64::from(records > 0);
            self.outcome.power_replays += u64::from(records > 0 && after_power_cut);
        }
        let mut options = self.options.clone();
        if self.is_partial() && self.chance.one_in(4) {
            options.small_writes = SmallWrites::Copy; // the partial blocks that there are stay what they are
        }
        let begins_journal =
            disk.is_some() && !self.chance.one_in(8) && metadata.access() == Access::ReadWrite;
        let journal = begins_journal.then(|| self.begin_journal(&mut metadata)).transpose()?;
        let mut behind = self.origins.behind();
        let misses_origins = metadata.access() == Access::ReadWrite
            && self.is_partial()
            && !behind.is_empty()
            && self.chance.one_in(4);
        if misses_origins {
            let why = Error::new(ErrorKind::Io, "the origin is not there");
            behind.values_mut().for_each(|behind| *behind = Behind::Unavailable(why.clone()));
        }
        self.keeper = Self::keeper(&options, metadata, data, behind, &self.ledger, journal)?;
        if misses_origins {
            self.open_without_origins()?;
        }
        self.has_stopped = false;
        self.seat_lanes();
        Ok(())
    }

    /// A read-only pool is marked if its metadata is to blame, and has the volumes of the last commit.
    fn judge_read_only(&mut self, needs_check: bool, deleting: &[VolumeId]) -> Result<(), String> {
        let (metadata_faults, data_faults) = (self.metadata_disk.faults(), self.data_disk.faults());
        if (metadata_faults == 0) != (data_faults == 0) && needs_check != (metadata_faults > 0) {
            return Err(format!("the pool is read-only, and needs_check is {needs_check}"));
        }
        let wrong = |error: crate::error::Error| format!("what a read-only pool has: {error}");
        let disk = MemoryDisk::from_bytes(self.metadata_disk.to_bytes());
        let durable = Metadata::open(disk, Access::ReadOnly).and_then(|mut metadata| metadata.volumes());
        let durable = durable.map_err(wrong)?.into_iter().map(|(id, _)| id);
        // Where the last step of a deletion was not committed, it goes on when the pool is opened again.
        let durable: Vec<_> =
            durable.filter(|id| !deleting.contains(id) && !self.model.is_vanishing(*id)).collect();
        // Another fault may still lie in wait.
        let Ok(shown) = self.volume_infos() else { return Ok(()) };
        // And where that was begun anew and is undone, the keeper has it, but by its name nobody finds it.
        let is_there = |id: &VolumeId| !self.model.is_vanishing(*id);
        let shown: Vec<_> = shown.into_iter().map(|volume| volume.id).filter(is_there).collect();
        if shown != durable {
            return Err(format!("a read-only pool shows the volumes {shown:?}, and has {durable:?}"));
        }
        Ok(())
    }

    /// How far down the pool has stepped, which must fit what has gone wrong with its disks: one failure leaves it readable.
    fn judge_mode(&mut self) -> Result<(), String> {
        let faults = self.metadata_disk.faults() + self.data_disk.faults();
        self.outcome.disk_faults += faults.min(1);
        self.outcome.double_faults += faults.saturating_sub(1);
        let is_off = self.is_off();
        let status = self.status();
        match status.mode {
            Mode::Write | Mode::OutOfDataSpace => Ok(()),
            Mode::ReadOnly(_) => {
                self.outcome.read_only += 1;
                if is_off { Ok(()) } else { self.judge_read_only(status.needs_check, &status.deleting) }
            }
            Mode::Failed(why) => {
                self.outcome.failed += 1;
                match faults {
                    _ if is_off => Ok(()),
                    0 | 1 => Err(format!("{faults} failures of disks, and the pool has failed: {why}")),
                    _ => Ok(()),
                }
            }
        }
    }

    pub(super) fn volume_infos(&mut self) -> Result<Vec<VolumeInfo>, String> {
        let mut out = Outbox::default();
        self.keeper.command(0, Command::Volumes, &mut out);
        match out.answers.pop() {
            Some((_, Ok(Answer::Volumes(volumes)))) => Ok(volumes),
            other => Err(format!("listing volumes: {other:?}")),
        }
    }

    /// Reads a whole volume while nothing else goes on.
    pub(super) fn read_volume(&mut self, id: VolumeId) -> Result<Vec<Stamp>, String> {
        let volume: Arc<_> = self.keeper.volume(id).ok_or("a listed volume cannot be opened")?;
        let tag = Tag(u64::MAX);
        let length_bytes = volume.size_bytes();
        self.buffers.insert((0, tag), vec![0xee; length_bytes as usize]);
        let request = Request { tag, volume, kind: Kind::Read, offset_bytes: 0, length_bytes };
        let mut actions = Vec::new();
        self.lanes[0].begin(request, &mut actions);
        loop {
            let complete = actions.iter().position(|action| matches!(action, Action::Complete { .. }));
            if let Some(Action::Complete { result, .. }) = complete.map(|at| actions.remove(at)) {
                result.map_err(|error| format!("reading volume {id}: {error:?}"))?;
                self.act(0, actions)?;
                break;
            }
            self.act(0, std::mem::take(&mut actions))?;
            match self.events.pop().ok_or("a read got stuck")?.1 {
                Event::Read { op, from, offset_bytes, length_bytes, into, .. } => {
                    let mut bytes = vec![0; length_bytes as usize];
                    let result = match &from {
                        Source::Data => self.data_disk.peek(offset_bytes, &mut bytes),
                        Source::Origin(origin) => origin.disk().read_at(offset_bytes, &mut bytes),
                    };
                    let result = result.map_err(|_| IoError::Io);
                    let (buffer, at) = self.place(0, into);
                    buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                    self.lanes[0].io_done(op, result, &mut actions);
                }
                Event::Ask(asker, ask) => {
                    let mut out = Outbox::default();
                    self.keeper.handle(asker, ask, &mut out);
                    self.deliver(out)?;
                }
                Event::Reply(_, op, reply) => self.lanes[0].reply(op, reply, &mut actions),
                Event::FlushEnds(flush) => self.flush_ends(flush)?,
                Event::Write { .. } => return Err("a read wrote".to_owned()),
            }
        }
        Ok(stamps_of(&self.buffers.remove(&(0, tag)).expect("the read's buffer")))
    }

    /// Whether it gets on.
    fn ask_to_settle(&mut self, all: bool) -> bool {
        let mut out = Outbox::default();
        self.keeper.command(0, Command::Settle(all), &mut out);
        matches!(out.answers[..], [(0, Ok(Answer::Settling(Settling::GetsOn)))])
    }

    /// For a while the origins cannot be had. Nothing that shows one is settled then; with the origins back all is as before.
    fn open_without_origins(&mut self) -> Result<(), Error> {
        let disk = MemoryDisk::from_bytes(self.metadata_disk.to_bytes());
        let partials: BTreeMap<_, _> =
            Metadata::open(disk, Access::ReadOnly)?.partials()?.into_iter().collect();
        self.ask_to_settle(true);
        for op in 0..8 {
            let mut out = Outbox::default();
            self.keeper.handle(Asker::Lane(LaneId(0), OpId(op)), Ask::Settle, &mut out);
            let [(_, Reply::Settle { block, origin })] = &out.replies[..] else { continue };
            let base = partials.get(block).map(|partial| partial.base);
            if origin.is_some() || matches!(base, Some(Base::Origin(_))) {
                let what = format!("{block:?} on {base:?} is settled, and its origin cannot be had");
                return Err(Error::new(ErrorKind::Failed, what));
            }
        }
        self.ask_to_settle(false);
        for (volume, behind) in self.origins.behind() {
            if let (Behind::Origin(origin), Some(_)) = (behind, self.keeper.volume(volume)) {
                let command = Command::SetOrigin { volume, origin };
                self.keeper.command(UNASKED, command, &mut Outbox::default());
            }
        }
        self.outcome.missing_origins += 1;
        Ok(())
    }

    /// Makes all partial blocks whole; whether it could. Nobody sees a difference.
    fn settle_all(&mut self) -> Result<bool, String> {
        for _ in 0..500 {
            let gets_on = self.ask_to_settle(true);
            if !self.is_powered() {
                return Ok(false);
            }
            if self.status().partial_blocks == 0 {
                self.check_volumes()?;
                return Ok(self.is_powered());
            }
            if !gets_on {
                let status = self.status();
                if status.held_root.is_some() {
                    return Ok(false); // only who maps a block knows its origin, and this may be all that has them
                }
                if !self.options.data_disk_fails() {
                    return Err(format!("{} partial blocks are stuck", status.partial_blocks));
                }
                self.ask_to_settle(false);
                self.outcome.stuck += 1;
            }
            self.begin_settling();
            self.run_dry()?;
        }
        if self.outcome.bad_sectors > 0 {
            return Ok(false); // what cannot be read cannot be copied
        }
        Err(format!("{} partial blocks are never settled", self.status().partial_blocks))
    }

    /// Something is wrong because a metadata write went astray, and nobody was told. Then the checker must say so (but for a
    /// superblock that stayed as it was: that is the last commit, and sound), and production code, which opens what is there,
    /// may refuse it, or show the wrong things, but neither panics nor hangs.
    pub(super) fn end_astray(&mut self, wrong: String) -> Result<(), String> {
        let Some(meant_for) = self.metadata_disk.strayed_from() else { return Err(wrong) };
        if meant_for > 0 && self.check_metadata(Verdict::Clean).is_ok() {
            return Err(format!(
                "{wrong}, after a write for byte {meant_for} had gone astray, which the checker does not see"
            ));
        }
        self.outcome.strays_found += 1;
        self.events.clear();
        self.in_flight.clear();
        self.forget_lanes();
        if self.start().is_err() {
            return Ok(());
        }
        for VolumeInfo { id, .. } in self.volume_infos().unwrap_or_default() {
            match self.read_volume(id) {
                Err(wrong) if wrong.contains("stuck") => return Err(wrong),
                Ok(_) | Err(_) => self.forget_lanes(),
            }
            self.seat_lanes();
            self.keeper.command(UNASKED, Command::Delete { volume: id, step: None }, &mut Outbox::default());
        }
        for _ in 0..1000 {
            if self.settle()? == Settled::Idle {
                return Ok(());
            }
        }
        Err("a damaged pool does not come to rest".to_owned())
    }

    /// Ends in order, and looks at the metadata once more.
    pub(super) fn close(&mut self) -> Result<(), String> {
        while self.settle()? == Settled::HasWork {}
        if self.chance.one_in(2) {
            while self.keeper.gives_back() {
                self.keeper.give_back_step(Pace::Alone);
            }
            let status = self.status();
            if status.mode == Mode::Write && status.to_give_back > 0 {
                return Err(format!("the space of {} freed blocks does not go back", status.to_give_back));
            }
        }
        let is_settled = self.is_partial() && self.chance.one_in(2) && self.settle_all()?;
        let mut out = Outbox::default();
        self.keeper.command(0, Command::Close, &mut out);
        match out.answers.pop() {
            Some((_, Ok(Answer::Done))) => {
                let bytes = self.metadata_disk.to_bytes();
                if is_settled && bytes[360..512].iter().any(|byte| *byte != 0) {
                    return Err("a settled pool has a feature that the kernel does not know".to_owned());
                }
                let metadata = MemoryDisk::from_bytes(bytes);
                let closed = Metadata::open(metadata, Access::ReadOnly).map_err(|error| error.to_string())?;
                if closed.journal().is_some() {
                    return Err("a pool that was closed names a journal".to_owned());
                }
                self.outcome.settled_pools += u64::from(is_settled);
                self.check_metadata(Verdict::Clean)
            }
            Some((_, Err(_))) if self.has_failed() => self.power_cycle(),
            other => Err(format!("closing: {other:?}")),
        }
    }
}
