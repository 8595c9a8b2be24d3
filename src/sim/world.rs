//! The world: lanes, keeper and disks stepped by a seed, power cuts included.

use super::chance::Chance;
use super::clients::is_change;
use super::commands::UnderWay;
use super::disk::SimDisk;
use super::flushes::FlushUnderWay;
use super::habits::{Habits, Wish};
use super::large::add_large_volume;
use super::ledger::{Ledger, Promise};
use super::model::{Model, Stamp};
use super::options::{Mishap, Outcome, WorldOptions};
use super::origins::Origins;
use super::story::{Story, Whose};
use crate::disk::Disk;
use crate::engine::{
    Action, Answer, Ask, Asker, Behind, Command, IoError, Keeper, KeeperOptions, Kind, Lane, LaneId, Mode,
    OpId, Origin, Outbox, Pace, Place, PoolStatus, Reply, Request, Settled, SmallWrites, Tag,
};
use crate::error::Result;
use crate::format::JOURNAL_PAGE_BYTES;
use crate::journal::Journal;
use crate::metadata::{Access, Geometry, Metadata, Scarcity};
use crate::units::{BlockSize, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

pub(super) const SECTOR: u64 = 512;
pub(super) const BLOCK_SECTORS: u64 = 128;
/// The number of commands whose answers nobody waits for.
pub(super) const UNASKED: u64 = 1;
/// Steps by which a slow read or write may be late: enough for a commit, a snapshot and a reuse meanwhile.
const SLOW_STEPS: u64 = 200;
/// Blocks that are looked at after a command.
const WINDOW_BLOCKS: u64 = 16;
/// Steps that a world goes on, about, after a disk has failed an operation.
const STEPS_AFTER_A_FAULT: u64 = 100;

/// Something that will happen.
pub(super) enum Event {
    Read {
        lane: usize,
        op: OpId,
        from: Source,
        offset_bytes: u64,
        length_bytes: u64,
        into: Place,
    },
    Write {
        lane: usize,
        op: OpId,
        offset_bytes: u64,
        length_bytes: u64,
        from: Place,
    },
    Ask(Asker, Ask),
    Reply(usize, OpId, Reply),
    /// A flush beside everything else comes to its end.
    FlushEnds(FlushUnderWay),
}

/// What is read from.
pub(super) enum Source {
    Data,
    Origin(Origin),
}

/// A request in flight.
pub(super) struct InFlight {
    pub volume: VolumeId,
    /// Sectors it names.
    range: Range<u64>,
    /// Sectors it changes; empty for a read or flush.
    changes: Range<u64>,
    kind: Kind,
    /// When it began: for a flush, what it covers.
    begun: u64,
    /// The step in which it began.
    step: u64,
    /// The pool took no changes any more when it began.
    is_too_late: bool,
}

/// A running world.
pub struct World {
    pub(super) options: WorldOptions,
    pub(super) chance: Chance,
    pub(super) habits: Habits,
    pub(super) metadata_disk: SimDisk,
    pub(super) data_disk: SimDisk,
    pub(super) journal_disk: Option<SimDisk>,
    /// Runs of the operating system so far, and journals that were begun.
    pub(super) boot: u64,
    pub(super) journals: u64,
    scarcity: Scarcity,
    /// See [`World::has_failed`].
    pub(super) has_stopped: bool,
    pub(super) keeper: Keeper<SimDisk, SimDisk>,
    pub(super) lanes: Vec<Lane>,
    /// Lanes whose clients have left.
    pub(super) has_left: Vec<bool>,
    pub(super) model: Model,
    pub(super) origins: Origins,
    pub(super) ledger: Ledger,
    /// A volume, and the block behind which nothing of it was mapped a while ago.
    pub(super) trimmed: Option<(VolumeId, u64)>,
    /// What will happen, and the step before which it does not.
    pub(super) events: Vec<(u64, Event)>,
    /// Steps so far.
    pub(super) now: u64,
    pub(super) in_flight: BTreeMap<(usize, Tag), InFlight>,
    pub(super) buffers: HashMap<(usize, Tag), Vec<u8>>,
    pub(super) scratch: HashMap<(usize, OpId), Vec<u8>>,
    pub(super) command: Option<UnderWay>,
    /// Volumes whose writes wait for space without end, and the step since which they do.
    pub(super) patient: BTreeMap<VolumeId, u64>,
    /// What happened, if somebody wants to know.
    story: Option<Story>,
    /// Nothing else goes on and there is a free block: no request may be refused for lack of space.
    pub(super) has_space: bool,
    next_tag: u64,
    next_stamp: Stamp,
    pub(super) outcome: Outcome,
}

impl World {
    /// A fresh pool.
    pub fn new(options: WorldOptions) -> Result<Self> {
        let metadata_disk = SimDisk::new("metadata", 256 * 4096, options.seed);
        let data_bytes = (options.data_blocks * BLOCK_SECTORS * SECTOR) as usize;
        let data_disk = SimDisk::new("data", data_bytes, !options.seed);
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: options.data_blocks };
        let mut metadata = Metadata::format(metadata_disk.clone(), geometry)?;
        let scarcity = Scarcity::default();
        metadata.set_scarcity(scarcity.clone());
        let journal_disk = options.journal_pages.map(|pages| {
            SimDisk::new("journal", (1 + pages as usize) * JOURNAL_PAGE_BYTES, options.seed.rotate_left(1))
        });
        let (mut model, mut ledger) = (Model::default(), Ledger::new(options.data_blocks));
        let large = options.large_volume_blocks;
        if large > 0 {
            let id = VolumeId::new(0).expect("a number in range");
            ledger.set_sectors(id, large * BLOCK_SECTORS);
            add_large_volume(&mut metadata, &data_disk, &mut model, id, 1..large + 1)?;
        }
        let keeper = Self::keeper(&options, metadata, data_disk.clone(), HashMap::new(), &ledger, None)?;
        let mut chance = Chance::new(options.seed);
        let volume_sectors = options.volume_blocks * BLOCK_SECTORS;
        let mut world = World {
            origins: Origins::of(options.seed, volume_sectors, &mut chance),
            habits: match large {
                0 => Habits::of(options.seed, &mut chance),
                _ => Habits::of(options.seed, &mut chance).deleting_much(),
            },
            chance,
            lanes: Vec::new(),
            has_left: Vec::new(),
            keeper,
            metadata_disk,
            data_disk,
            journal_disk,
            boot: 1,
            journals: 0,
            scarcity,
            has_stopped: false,
            model,
            ledger,
            trimmed: None,
            events: Vec::new(),
            now: 0,
            in_flight: BTreeMap::new(),
            buffers: HashMap::new(),
            scratch: HashMap::new(),
            command: None,
            patient: BTreeMap::new(),
            story: options.tells.then(Story::default),
            has_space: false,
            next_tag: 0,
            next_stamp: 1 + large,
            outcome: Outcome::default(),
            options,
        };
        world.seat_lanes();
        if world.journal_disk.is_some() {
            let mut metadata = Metadata::open(world.metadata_disk.clone(), Access::ReadWrite)?;
            metadata.set_scarcity(world.scarcity.clone());
            let journal = world.begin_journal(&mut metadata)?;
            let data = world.data_disk.clone();
            world.keeper =
                Self::keeper(&world.options, metadata, data, HashMap::new(), &world.ledger, Some(journal))?;
            world.seat_lanes();
        }
        match world.options.mishap {
            None => {}
            Some(Mishap::MetadataPower(after)) => world.metadata_disk.cut_power_after(after),
            Some(Mishap::DataPower(after)) => world.data_disk.cut_power_after(after),
            Some(Mishap::MetadataFault(after)) => world.metadata_disk.fail_after(after, None),
            Some(Mishap::DataFault(after)) => world.data_disk.fail_after(after, None),
            Some(Mishap::MetadataFaults(after, then)) => {
                world.metadata_disk.fail_after(after, Some(then));
            }
            Some(Mishap::MetadataFlip(after)) => world.metadata_disk.flip_after(after),
            Some(Mishap::MetadataStray(after)) => world.metadata_disk.stray_after(after),
            Some(Mishap::JournalPower(after)) => world.journal_disk().cut_power_after(after),
            Some(Mishap::JournalFault(after)) => world.journal_disk().fail_after(after, None),
            Some(Mishap::Kill(_)) => {}
            Some(Mishap::Scarcity(what, after)) => {
                world.scarcity.refuse(what, after..after + Mishap::scarce_for(what));
            }
        }
        Ok(world)
    }

    pub(super) fn keeper(
        options: &WorldOptions,
        metadata: Metadata<SimDisk>,
        data: SimDisk,
        behind: HashMap<VolumeId, Behind>,
        ledger: &Ledger,
        journal: Option<Journal>,
    ) -> Result<Keeper<SimDisk, SimDisk>> {
        let lanes = usize::from(options.lanes);
        let (map_bytes, small_writes) = (options.map_bytes, options.small_writes);
        let options = KeeperOptions {
            lanes,
            volume_sizes: ledger.volume_sizes(),
            behind,
            map_bytes,
            small_writes,
            delete_step_nodes: options.delete_step_nodes,
            unmap_step_mappings: options.unmap_step_mappings,
            partial_blocks_limit: options.partial_blocks_limit,
            ..KeeperOptions::default()
        };
        let mut keeper = Keeper::new(metadata, data, options)?;
        if let Some(journal) = journal {
            keeper.use_journal(journal);
        }
        Ok(keeper)
    }

    pub(super) fn seat_lanes(&mut self) {
        let lane = |id| Lane::new(LaneId(id), self.keeper.epochs(), BlockSize::MIN);
        self.lanes = (0..self.options.lanes).map(lane).collect();
        self.has_left = vec![false; self.lanes.len()];
    }

    /// Runs the world to its end. The error names the seed and what was wrong.
    pub fn run(mut self) -> Result<Outcome, String> {
        let seed = self.options.seed;
        let result = self.run_steps().or_else(|wrong| self.end_astray(wrong));
        if result.is_err() {
            self.forget_lanes(); // they have requests in flight
        }
        let disks = [&self.metadata_disk, &self.data_disk];
        self.outcome.operations = disks.map(SimDisk::operations);
        self.outcome.asked = self.scarcity.asked();
        self.outcome.operations_and_reads = disks.map(SimDisk::operations_and_reads);
        if let Some(disk) = &self.journal_disk {
            self.outcome.journal_operations = (disk.operations(), disk.operations_and_reads());
        }
        result.map(|()| self.outcome).map_err(|wrong| match &self.story {
            Some(story) => format!("seed {seed}: {wrong}\n{}", story.of(&wrong)),
            // Once more, exactly as before.
            None => match World::new(WorldOptions { tells: true, ..self.options.clone() }).map(World::run) {
                Ok(Err(told)) => told,
                Ok(Ok(_)) | Err(_) => format!("seed {seed}: {wrong}, and not when it was run again"),
            },
        })
    }

    /// Writes down what happens.
    pub(super) fn tell(&mut self, whose: Whose, text: std::fmt::Arguments<'_>) {
        if let Some(story) = &mut self.story {
            story.tell(self.now, whose, text);
        }
    }

    fn whose(&self, lane: usize, op: OpId) -> Whose {
        self.story.as_ref().and_then(|story| story.whose(lane, op))
    }

    fn run_steps(&mut self) -> Result<(), String> {
        for _ in 0..self.options.steps {
            let kills = self.journal_disk.is_some()
                && match self.options.mishap {
                    Some(Mishap::Kill(step)) => step == self.now,
                    Some(_) => false,
                    None => self.chance.one_in(self.options.steps_between_power_cuts / 2),
                };
            if kills && !self.is_off() {
                self.kill()?;
                self.now += 1;
            } else if self.is_off() || (self.has_failed() && self.chance.one_in(STEPS_AFTER_A_FAULT)) {
                match self.journal_disk.is_some() && self.chance.one_in(2) {
                    true => self.kill()?,
                    false => self.power_cycle()?,
                }
            } else if self.chance.one_in(self.options.steps_between_power_cuts) {
                match self.chance.below(if self.journal_disk.is_some() { 4 } else { 3 }) {
                    3 => {
                        let after = self.chance.below(30);
                        self.journal_disk().cut_power_after(after);
                    }
                    0 => self.metadata_disk.cut_power_after(self.chance.below(30)),
                    1 => self.data_disk.cut_power_after(self.chance.below(30)),
                    _ => self.power_cycle()?,
                }
            } else if self.chance.one_in(self.options.steps_between_power_cuts) {
                self.come_to_rest()?;
            } else {
                if self.options.steps_between_faults > 0
                    && self.chance.one_in(self.options.steps_between_faults)
                {
                    self.arm_fault();
                }
                self.step()?;
            }
        }
        self.come_to_rest()?;
        (0..40).try_for_each(|_| self.step())?;
        self.power_cycle()?; // whatever is in flight is cut off, and everything is read once more
        self.close()
    }

    /// Some operation of a disk will fail soon; half of the time another one will, right after it.
    fn arm_fault(&mut self) {
        let then = self.chance.one_in(2).then(|| self.chance.below(8));
        if self.chance.one_in(3) {
            let sector = self.chance.below(self.options.data_blocks * BLOCK_SECTORS);
            self.data_disk.spoil(sector);
            self.outcome.bad_sectors += 1;
            return self.tell(None, format_args!("sector {sector} of the data disk goes bad"));
        }
        let disk = match &self.journal_disk {
            Some(disk) if self.chance.one_in(3) => disk,
            Some(_) | None if self.chance.one_in(3) => &self.data_disk,
            Some(_) | None => &self.metadata_disk,
        };
        let after = self.chance.below(40);
        disk.fail_after(after, then);
        let name = disk.name();
        self.tell(None, format_args!("disk {name} fails after {after} operations, and after {then:?} more"));
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += 1;
        if self.now.is_multiple_of(256) {
            let begun = self.in_flight.values().map(|request| request.begun).min();
            self.model.forget_before(begun.unwrap_or(u64::MAX));
        }
        match self.chance.below(20) {
            0..=2 if self.in_flight.len() < 12 => self.begin_request(),
            7 | 8 if self.in_flight.len() < 20 && self.command.is_some() => self.begin_request(),
            3 if self.chance.one_in(self.options.steps_between_commands / 20) => self.begin_command(),
            4 | 5 => {
                self.settle()?;
            }
            6 if self.chance.one_in(20) => {
                self.tick()?;
            }
            9 if self.chance.one_in(30) => self.count_shared(),
            10 if self.is_partial() && self.in_flight.len() < 12 => self.begin_settling(),
            11 if self.chance.one_in(self.habits.leaves_one_in) => self.client_leaves()?,
            _ => self.happen()?,
        }
        Ok(())
    }

    /// Whether blocks may be partial in this world.
    pub(super) fn is_partial(&self) -> bool {
        self.options.small_writes == SmallWrites::Partial
    }

    /// The settler is another request, of any lane.
    pub(super) fn begin_settling(&mut self) {
        self.begin(VolumeId::MAX, Kind::Settle, 0..0);
    }

    pub(super) fn count_shared(&mut self) {
        // Answered at once; the count is background work.
        self.keeper.command(u64::MAX, Command::CountShared, &mut Outbox::default());
    }

    /// One of the things that can happen, happens.
    pub(super) fn happen(&mut self) -> Result<(), String> {
        if self.events.is_empty() {
            return self.settle().map(|_| ());
        }
        let due: Vec<usize> = (0..self.events.len()).filter(|at| self.events[*at].0 <= self.now).collect();
        let chosen = match due.len() as u64 {
            0 => self.chance.below(self.events.len() as u64) as usize,
            due_events => due[self.chance.below(due_events) as usize],
        };
        let chosen = self.in_order(chosen);
        let mut actions = Vec::new();
        let whose: Whose;
        let lane = match self.events.swap_remove(chosen).1 {
            Event::Read { lane, op, from, offset_bytes, length_bytes, into } => {
                whose = self.whose(lane, op);
                let mut bytes = vec![0; length_bytes as usize];
                let result = match self.is_faulty() {
                    true => Err(IoError::Io),
                    false => self.read(&from, offset_bytes, &mut bytes),
                };
                let (buffer, at) = self.place(lane, into);
                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                self.tell(whose, format_args!("has read {length_bytes} at {offset_bytes}: {result:?}"));
                self.lanes[lane].io_done(op, result, &mut actions);
                lane
            }
            Event::Write { lane, op, offset_bytes, length_bytes, from } => {
                whose = self.whose(lane, op);
                let bytes = self.source(lane, from, length_bytes);
                let is_faulty = self.is_faulty();
                let done = self.chance.below(bytes.len() as u64 / SECTOR + 1) * SECTOR;
                let result = match is_faulty {
                    true => {
                        // As far as it got.
                        let _ = self.data_disk.write_at(offset_bytes, &bytes[..done as usize]);
                        Err(IoError::Io)
                    }
                    false => self.data_disk.write_at(offset_bytes, &bytes).map_err(|_| IoError::Io),
                };
                self.tell(whose, format_args!("has written {length_bytes} at {offset_bytes}: {result:?}"));
                self.lanes[lane].io_done(op, result, &mut actions);
                lane
            }
            Event::Reply(lane, op, reply) => {
                whose = self.whose(lane, op);
                self.tell(whose, format_args!("is told {reply:?}"));
                self.outcome.settled += u64::from(matches!(reply, Reply::Settle { .. }));
                let shows_origin = matches!(reply, Reply::Settle { origin: Some(_), .. });
                self.outcome.settled_from_origins += u64::from(shows_origin);
                let begins_anew = matches!(reply, Reply::Again | Reply::NoSpaceNow);
                self.lanes[lane].reply(op, reply, &mut actions);
                if begins_anew && self.has_left[lane] && actions.iter().any(is_change) {
                    return Err(format!("a client has left lane {lane}, and goes on: {actions:?}"));
                }
                lane
            }
            Event::Ask(asker, ask) => {
                if let (Asker::Lane(lane, op), Some(_)) = (asker, &self.story) {
                    self.tell(self.whose(usize::from(lane.0), op), format_args!("asks {ask:?}"));
                }
                self.outcome.partial_fills += u64::from(matches!(ask, Ask::PublishPart(..)));
                self.outcome.unit_waits += u64::from(matches!(ask, Ask::AwaitUnits(..)));
                let mut out = Outbox::default();
                self.keeper.handle(asker, ask, &mut out);
                return self.deliver(out);
            }
            Event::FlushEnds(flush) => return self.flush_ends(flush),
        };
        self.note(lane, &actions, whose);
        self.act(lane, actions)
    }

    /// Writes down whose ops these are.
    fn note(&mut self, lane: usize, actions: &[Action], whose: Whose) {
        let Some(story) = &mut self.story else { return };
        for action in actions {
            if let Action::ReadData { op, .. }
            | Action::ReadOrigin { op, .. }
            | Action::WriteData { op, .. }
            | Action::Ask { op, .. }
            | Action::GiveUp { op } = action
            {
                story.begins(lane, *op, whose);
            }
        }
    }

    fn read(&self, from: &Source, offset_bytes: u64, bytes: &mut [u8]) -> Result<(), IoError> {
        let read = match from {
            Source::Data => self.data_disk.read_at(offset_bytes, bytes),
            Source::Origin(origin) => origin.disk().read_at(offset_bytes, bytes),
        };
        read.map_err(|_| IoError::Io)
    }

    /// Whether a read or write fails now.
    fn is_faulty(&mut self) -> bool {
        let between = self.options.transfers_between_faults;
        let faulty = between > 0 && self.chance.one_in(between);
        self.outcome.faults += u64::from(faulty);
        faulty
    }

    /// Whether a disk has failed an operation since the power came, or the pool has found itself without space where some
    /// should have been.
    pub(super) fn has_failed(&self) -> bool {
        self.metadata_disk.has_failed() || self.data_disk.has_failed() || self.has_stopped
    }

    /// Whether nobody has a reason to report an error of a disk.
    pub(super) fn is_powered(&self) -> bool {
        !self.is_off() && !self.has_failed()
    }

    pub(super) fn add_event(&mut self, event: Event) {
        let not_before = match event {
            Event::Read { .. } | Event::Write { .. } if self.chance.one_in(4) => {
                self.now + self.chance.below(SLOW_STEPS)
            }
            Event::Ask(..) if self.chance.one_in(8) => self.now + self.chance.below(SLOW_STEPS / 4),
            Event::FlushEnds(_) => self.now + self.chance.below(SLOW_STEPS / 4),
            Event::Read { .. } | Event::Write { .. } | Event::Ask(..) | Event::Reply(..) => self.now,
        };
        self.events.push((not_before, event));
    }

    /// Whether somebody may be refused what is there.
    pub(super) fn is_scarce(&self) -> bool {
        matches!(self.options.mishap, Some(Mishap::Scarcity(..)))
    }

    pub(super) fn place(&mut self, lane: usize, place: Place) -> (&mut Vec<u8>, usize) {
        match place {
            Place::Request(tag, at) => (self.buffers.get_mut(&(lane, tag)).expect("a buffer"), at as usize),
            Place::Scratch(op) => {
                let scratch = self.scratch.entry((lane, op));
                (scratch.or_insert_with(|| vec![0xee; crate::engine::CHUNK_BYTES as usize]), 0)
            }
            Place::Zeros => panic!("zeros are only a source"),
        }
    }

    pub(super) fn source(&mut self, lane: usize, from: Place, length_bytes: u64) -> Vec<u8> {
        if from == Place::Zeros {
            return vec![0; length_bytes as usize];
        }
        let (buffer, at) = self.place(lane, from);
        buffer[at..at + length_bytes as usize].to_vec()
    }

    pub(super) fn act(&mut self, lane: usize, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            match action {
                Action::ReadData { op, disk_offset_bytes: offset_bytes, length_bytes, into } => {
                    let from = Source::Data;
                    self.add_event(Event::Read { lane, op, from, offset_bytes, length_bytes, into });
                }
                Action::ReadOrigin { op, origin, offset_bytes, length_bytes, into } => {
                    self.outcome.origin_reads += 1;
                    let from = Source::Origin(origin);
                    self.add_event(Event::Read { lane, op, from, offset_bytes, length_bytes, into });
                }
                Action::WriteData { op, disk_offset_bytes: offset_bytes, length_bytes, from } => {
                    self.add_event(Event::Write { lane, op, offset_bytes, length_bytes, from });
                }
                Action::ZeroRequest { tag, offset_bytes, length_bytes } => {
                    let (buffer, at) = self.place(lane, Place::Request(tag, offset_bytes));
                    buffer[at..at + length_bytes as usize].fill(0);
                }
                Action::ZeroScratch { op, length_bytes } => {
                    self.place(lane, Place::Scratch(op)).0[..length_bytes as usize].fill(0);
                }
                Action::PatchScratch { op, at_bytes, length_bytes, from } => {
                    let bytes = self.source(lane, from, length_bytes);
                    let at = at_bytes as usize;
                    self.place(lane, Place::Scratch(op)).0[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Action::DropScratch { op } => {
                    self.scratch.remove(&(lane, op));
                }
                Action::Ask { op, ask } => {
                    self.add_event(Event::Ask(Asker::Lane(LaneId(lane as u16), op), ask));
                }
                Action::GiveUp { op } => {
                    self.add_event(Event::Ask(Asker::Lane(LaneId(lane as u16), op), Ask::GiveUp));
                }
                Action::Extents { .. } => return Err("extents that nobody asked for".to_owned()),
                Action::Complete { tag, result } => self.complete(lane, tag, result)?,
            }
        }
        Ok(())
    }

    fn complete(&mut self, lane: usize, tag: Tag, result: Result<(), IoError>) -> Result<(), String> {
        let done = self.in_flight.remove(&(lane, tag)).ok_or("a request completed twice")?;
        let buffer = self.buffers.remove(&(lane, tag)).unwrap_or_default();
        self.outcome.requests += 1;
        let whose = Some((done.volume, tag));
        self.tell(whose, format_args!("ends: {result:?}"));
        if let Some(story) = &mut self.story {
            story.answered(whose);
        }
        if done.is_too_late && result.is_ok() && !matches!(done.kind, Kind::Read | Kind::Discard) {
            let what = format!("{:?} of volume {}", done.kind, done.volume);
            return Err(format!("{what} was done though the pool takes no changes"));
        }
        let is_patient = self.patient.get(&done.volume).is_some_and(|since| *since < done.step);
        if result == Err(IoError::NoSpace) && matches!(done.kind, Kind::Write { .. }) && is_patient {
            return Err(format!("a write of volume {} was refused that waits without end", done.volume));
        }
        let moves =
            matches!(done.kind, Kind::Read | Kind::Write { .. } | Kind::WriteZeroes { .. } | Kind::Settle);
        match result {
            Ok(()) => {}
            Err(IoError::NoSpace) if !self.has_space || self.is_scarce() => self.outcome.no_space += 1,
            Err(IoError::Gone) if self.has_left[lane] => self.outcome.abandoned += 1,
            Err(IoError::Io) if !self.is_powered() || (moves && self.outcome.faults > 0) => {}
            Err(IoError::Io) if moves && self.outcome.bad_sectors > 0 => {}
            Err(error) => return Err(format!("{:?} of volume {} failed: {error:?}", done.kind, done.volume)),
        }
        match done.kind {
            Kind::Read if result.is_ok() => {
                self.model.check_read(done.volume, done.range, done.begun, &stamps_of(&buffer))?;
            }
            Kind::Flush if result.is_ok() => {
                self.outcome.flushes += 1;
                self.model.flush_ends(done.begun);
            }
            Kind::Read | Kind::Flush | Kind::Extents | Kind::Settle => {}
            Kind::Write { fua } | Kind::WriteZeroes { fua, .. } => {
                self.model.write_ends(done.volume, done.changes.clone(), done.begun, result.is_ok());
                if fua && result.is_ok() {
                    self.model.flush_ends(done.begun);
                    self.model.force(done.volume, done.changes);
                }
            }
            Kind::Discard => self.discard_ends(&done, result.is_ok()),
        }
        Ok(())
    }

    /// A block that the volume ended in when the discard began stays, perhaps, if it has become larger.
    fn discard_ends(&mut self, done: &InFlight, ok: bool) {
        let changes = done.changes.clone();
        let is_larger = self.model.sectors_of(done.volume) > changes.end;
        let whole = changes.end / BLOCK_SECTORS * BLOCK_SECTORS;
        let certain = if is_larger { whole.max(changes.start) } else { changes.end };
        self.model.write_ends(done.volume, changes.start..certain, done.begun, ok);
        self.model.write_ends(done.volume, certain..changes.end, done.begun, false);
    }

    /// What the keeper says becomes events and answers.
    pub(super) fn deliver(&mut self, out: Outbox) -> Result<(), String> {
        if self.is_scarce() {
            self.has_stopped = matches!(self.status().mode, Mode::ReadOnly(_) | Mode::Failed(_));
        }
        for (asker, reply) in out.replies {
            let Asker::Lane(lane, op) = asker else { return Err("a reply to a command".to_owned()) };
            self.add_event(Event::Reply(usize::from(lane.0), op, reply));
        }
        for (number, answer) in out.answers {
            if number == UNASKED {
                continue;
            }
            let UnderWay { volumes, origins, step, promise } =
                self.command.take().ok_or("an answer to no command")?;
            let powered = self.is_powered();
            self.tell(None, format_args!("the command's answer is {answer:?}"));
            match &answer {
                Ok(
                    Answer::Done
                    | Answer::Deleting { .. }
                    | Answer::Status(_)
                    | Answer::Volumes(_)
                    | Answer::Counting(_)
                    | Answer::Settling(_),
                ) => {}
                Err(error) if !powered => drop(error.clone()),
                Err(error) if error.kind() == crate::error::ErrorKind::NoMetadataSpace => {}
                // Data behind the new end.
                Err(error)
                    if error.kind() == crate::error::ErrorKind::WrongState
                        && matches!(promise, Promise::Size { .. }) => {}
                Err(error) => return Err(format!("a command for volumes {volumes:?} failed: {error}")),
            }
            // With the power gone nobody knows: the state after the cut will tell.
            if answer.is_err() && !powered {
                self.command = Some(UnderWay { volumes, origins, step, promise });
                continue;
            }
            let (expected, id) =
                (if answer.is_ok() { step.to } else { step.from }, self.status().transaction_id);
            if id != expected {
                return Err(format!("the transaction id is {id} after a command, expected {expected}"));
            }
            self.look_at_resized(&promise);
            let ok = answer.is_ok();
            let trimmed = self.ledger.is_answered(promise, ok, &mut self.model, &mut self.outcome);
            self.trimmed = trimmed.or(self.trimmed);
            if matches!(answer, Ok(Answer::Deleting { finished: false })) {
                self.outcome.long_deletions += 1;
                if self.chance.one_in(2) {
                    self.metadata_disk.cut_power_after(self.chance.below(20));
                }
                volumes.iter().for_each(|id| self.model.goes_on_being_deleted(*id));
                continue;
            }
            self.model.command_ends(&volumes, answer.is_ok());
            // Look while what was in flight still is: a snapshot must not change any more.
            for id in volumes {
                if self.keeper.volume(id).is_some() && self.model.has(id) {
                    let range = self.window(id);
                    self.begin(id, Kind::Read, range);
                }
            }
        }
        Ok(())
    }

    pub(super) fn settle(&mut self) -> Result<Settled, String> {
        if self.chance.one_in(2)
            && let Some(job) = self.keeper.begin_flush()
        {
            self.outcome.flushes_beside += 1;
            self.flush_begins(job);
        }
        let mut out = Outbox::default();
        let settled = self.keeper.settle(&mut out);
        // Seldom: much of what was freed is handed out again before its space goes back.
        match self.chance.below(8) {
            0 => self.keeper.give_back_step(Pace::Beside),
            1 => self.keeper.give_back_step(Pace::Alone),
            _ => {}
        }
        self.deliver(out)?;
        Ok(settled)
    }

    /// What has come to a volume that became larger is read.
    fn look_at_resized(&mut self, promise: &Promise) {
        if let Promise::Size { volume, .. } = promise {
            let range = self.window(*volume);
            self.begin(*volume, Kind::Read, range);
        }
    }

    /// All of a volume, or as much as a few hundred steps can look at.
    fn window(&mut self, id: VolumeId) -> Range<u64> {
        let sectors = self.model.sectors_of(id);
        let shown = sectors.min(WINDOW_BLOCKS * BLOCK_SECTORS);
        let first = self.chance.below((sectors - shown) / BLOCK_SECTORS + 1) * BLOCK_SECTORS;
        first..first + shown
    }

    fn random_range(&mut self, id: VolumeId) -> Range<u64> {
        let size = self.model.sectors_of(id);
        let favourite = self.habits.favourite_blocks.saturating_mul(BLOCK_SECTORS).min(size);
        let within = if self.chance.one_in(4) { size } else { favourite };
        let begin = match self.chance.below(4) {
            0 => 0, // where many meet
            1 => self.chance.below(within.div_ceil(BLOCK_SECTORS)) * BLOCK_SECTORS,
            2 => self.chance.below(within.div_ceil(8)) * 8,
            _ => self.chance.below(within),
        };
        let length = match self.chance.below(4) {
            0 => 1 + self.chance.below(8),
            1 => 8,
            2 => BLOCK_SECTORS * (1 + self.chance.below(3)),
            _ => 1 + self.chance.below(2 * BLOCK_SECTORS),
        };
        begin..(begin + length).min(size)
    }

    fn begin_request(&mut self) {
        let ids: Vec<VolumeId> = self.model.volumes().collect();
        if ids.is_empty() {
            return;
        }
        let frozen = self.command.as_ref().and_then(|command| command.origins.first().copied());
        let volume = match self.chance.below(4) {
            0 => ids[0],
            // What waits for a snapshot, and what must not slip through, is worth a crowd.
            1 | 2 if frozen.is_some_and(|id| self.model.has(id)) => frozen.expect("just looked"),
            _ => ids[self.chance.below(ids.len() as u64) as usize],
        };
        let range = self.random_range(volume);
        let fua = self.chance.one_in(8);
        let may_unmap = self.chance.one_in(2);
        let (kind, range) = match self.habits.request(&mut self.chance) {
            Wish::Read => (Kind::Read, range),
            Wish::Write => (Kind::Write { fua }, range),
            Wish::Zero => (Kind::WriteZeroes { fua, may_unmap }, range),
            Wish::Discard if self.chance.one_in(4) => {
                (Kind::Discard, range.start..self.model.sectors_of(volume))
            }
            Wish::Discard => (Kind::Discard, range),
            Wish::Flush => (Kind::Flush, 0..0),
        };
        let overlaps = |other: &InFlight| {
            other.volume == volume && other.range.start < range.end && range.start < other.range.end
        };
        // Mostly apart, for then there is one right answer.
        if self.in_flight.values().any(overlaps) && !self.chance.one_in(self.habits.overlaps_one_in) {
            return;
        }
        self.begin(volume, kind, range);
    }

    pub(super) fn begin(&mut self, volume: VolumeId, kind: Kind, range: Range<u64>) {
        let ignored = kind == Kind::Discard
            && self.keeper.volume(volume).is_some_and(|volume| volume.ignores_discards());
        let changes = match kind {
            Kind::Read | Kind::Flush | Kind::Extents | Kind::Settle => 0..0,
            Kind::Discard if ignored => 0..0,
            Kind::Write { .. } | Kind::WriteZeroes { .. } => range.clone(),
            Kind::Discard => {
                let size = self.model.sectors_of(volume);
                let bytes = range.start * SECTOR..range.end * SECTOR;
                let covered = BlockSize::MIN.blocks_covered(bytes, size * SECTOR);
                (covered.start * BLOCK_SECTORS).min(size)..(covered.end * BLOCK_SECTORS).min(size)
            }
        };
        let Some(lane) = self.some_lane() else { return };
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        let stamp = match kind {
            Kind::Write { .. } => self.next_stamp,
            Kind::Read
            | Kind::Flush
            | Kind::Extents
            | Kind::Settle
            | Kind::Discard
            | Kind::WriteZeroes { .. } => 0,
        };
        self.next_stamp += 1;
        let begun = match kind {
            Kind::Read | Kind::Flush | Kind::Extents | Kind::Settle => self.model.flush_begins(),
            Kind::Write { .. } | Kind::WriteZeroes { .. } => {
                self.model.write_begins(volume, changes.clone(), |_| stamp)
            }
            Kind::Discard => {
                let origins = &self.origins;
                self.model.write_begins(volume, changes.clone(), |sector| origins.stamp(volume, sector))
            }
        };
        let length = (range.end - range.start) * SECTOR;
        // What is read must come from somewhere: not from what the buffer held before.
        let held = if kind == Kind::Read { u64::from_le_bytes([0xee; 8]) } else { stamp };
        let buffer = held.to_le_bytes().repeat((length / 8) as usize);
        self.buffers.insert((lane, tag), buffer);
        let whose = Some((volume, tag));
        self.tell(whose, format_args!("begins on lane {lane}: {kind:?} of sectors {range:?}, stamp {stamp}"));
        let is_too_late =
            self.has_failed() && matches!(self.status().mode, Mode::ReadOnly(_) | Mode::Failed(_));
        let step = self.now;
        let request = InFlight { volume, range: range.clone(), changes, kind, begun, step, is_too_late };
        self.in_flight.insert((lane, tag), request);
        let volume = match kind {
            Kind::Settle => self.keeper.settling(),
            _ => self.keeper.volume(volume).expect("the model's volumes exist"),
        };
        let request = Request { tag, volume, kind, offset_bytes: range.start * SECTOR, length_bytes: length };
        let mut actions = Vec::new();
        self.lanes[lane].begin(request, &mut actions);
        self.note(lane, &actions, whose);
        self.act(lane, actions).expect("a request that has just begun");
    }

    pub(super) fn status(&mut self) -> PoolStatus {
        let mut out = Outbox::default();
        self.keeper.command(u64::MAX, Command::Status, &mut out);
        let Some((_, Ok(Answer::Status(status)))) = out.answers.pop() else { panic!("no status") };
        *status
    }

    pub(super) fn forget_lanes(&mut self) {
        // Dead with their requests: the process is gone.
        self.lanes.drain(..).for_each(Lane::die);
    }
}

/// The stamps of `bytes`, a sector each; a torn sector has a stamp that nobody wrote.
pub(super) fn stamps_of(bytes: &[u8]) -> Vec<Stamp> {
    let stamp = |sector: &[u8]| {
        let (words, _) = sector.as_chunks::<8>();
        let first = words[0];
        if words.iter().all(|word| *word == first) { Stamp::from_le_bytes(first) } else { Stamp::MAX }
    };
    bytes.chunks_exact(SECTOR as usize).map(stamp).collect()
}
