//! Keeper and lanes inline, on any disk: no threads, no ring. For tests and tools.
//!
//! Reads and writes of the data disk, questions to the keeper and its answers are a list of [pending](Blocking::pending)
//! steps. Methods like [`Blocking::write`] carry them out in order until their request is finished; a test that cares about
//! order [begins](Blocking::begin) requests and [picks](Blocking::step) the next step itself.

use crate::disk::Disk;
use crate::engine::{
    Action, Answer, Ask, Asker, CHUNK_BYTES, Command, Extent, IoError, Keeper, Kind, Lane, LaneId, OpId,
    Origin, Outbox, Pace, Place, Reply, Request, Settled, Tag, Volume,
};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// The tags that this driver gives to requests of its own: beyond those of any test.
const OWN_TAGS: u64 = 1 << 63;

/// A pool that runs inline.
pub struct Blocking<M: Disk, D: Disk> {
    keeper: Keeper<M, D>,
    data: D,
    lanes: Vec<InlineLane>,
    pending: VecDeque<Pending>,
    finished: Vec<FinishedRequest>,
    answers: Vec<(u64, Result<Answer>)>,
    next_tag: u64,
    next_command: u64,
}

/// A lane and the buffers of what it runs.
struct InlineLane {
    lane: Lane,
    requests: HashMap<Tag, Vec<u8>>,
    scratch: HashMap<OpId, Vec<u8>>,
    extents: Vec<Extent>,
}

/// What could happen next.
struct Pending {
    lane: usize,
    op: OpId,
    step: Step,
}

enum Step {
    Read { disk_offset_bytes: u64, length_bytes: u64, into: Place },
    ReadOrigin { origin: Origin, offset_bytes: u64, length_bytes: u64, into: Place },
    Write { disk_offset_bytes: u64, length_bytes: u64, from: Place },
    Ask(Ask),
    Reply(Reply),
}

/// A finished request and the buffer that came with it.
#[derive(Clone, PartialEq, Debug)]
pub struct FinishedRequest {
    /// Its lane.
    pub lane: usize,
    /// Its tag.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
    /// Its bytes: those read, or those written.
    pub bytes: Vec<u8>,
    /// The answer to [`Kind::Extents`].
    pub extents: Vec<Extent>,
}

impl<M: Disk, D: Disk> Blocking<M, D> {
    /// Runs `keeper`, with as many lanes as it has seats. `data` is its data disk.
    pub fn new(keeper: Keeper<M, D>, data: D) -> Self {
        let epochs = keeper.epochs();
        let seats = u16::try_from(epochs.lanes()).expect("a seat's number has 16 bits");
        let lanes = (0..seats)
            .map(|seat| InlineLane {
                lane: Lane::new(LaneId(seat), epochs.clone(), keeper.block_size()),
                requests: HashMap::new(),
                scratch: HashMap::new(),
                extents: Vec::new(),
            })
            .collect();
        Blocking {
            keeper,
            data,
            lanes,
            pending: VecDeque::new(),
            finished: Vec::new(),
            answers: Vec::new(),
            next_tag: OWN_TAGS,
            next_command: 0,
        }
    }

    /// The keeper.
    pub fn keeper(&mut self) -> &mut Keeper<M, D> {
        &mut self.keeper
    }

    /// An open volume. `NotFound`.
    pub fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        self.keeper
            .volume(id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the pool has no volume {id}")))
    }

    /// A command, to its answer.
    pub fn command(&mut self, command: Command) -> Result<Answer> {
        let number = self.begin_command(command);
        loop {
            if let Some(index) = self.answers.iter().position(|(answered, _)| *answered == number) {
                return self.answers.swap_remove(index).1;
            }
            self.go_on("a command");
        }
    }

    /// Reads into all of `buffer`.
    pub fn read(
        &mut self,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        buffer: &mut [u8],
    ) -> Result<(), IoError> {
        let empty = vec![0; buffer.len()];
        let finished = self.finish(volume, Kind::Read, offset_bytes, buffer.len() as u64, empty);
        finished.result.map(|()| buffer.copy_from_slice(&finished.bytes))
    }

    /// Writes.
    pub fn write(&mut self, volume: &Arc<Volume>, offset_bytes: u64, bytes: &[u8]) -> Result<(), IoError> {
        let kind = Kind::Write { fua: false };
        self.finish(volume, kind, offset_bytes, bytes.len() as u64, bytes.to_vec()).result
    }

    /// Any request without a buffer: discard, zeroes, flush.
    pub fn request(
        &mut self,
        volume: &Arc<Volume>,
        kind: Kind,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<(), IoError> {
        self.finish(volume, kind, offset_bytes, length_bytes, Vec::new()).result
    }

    /// What a range is made of.
    pub fn extents(
        &mut self,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<Vec<Extent>, IoError> {
        let finished = self.finish(volume, Kind::Extents, offset_bytes, length_bytes, Vec::new());
        finished.result.map(|()| finished.extents)
    }

    /// Begins a request on lane 0 and runs everything until it is finished.
    fn finish(
        &mut self,
        volume: &Arc<Volume>,
        kind: Kind,
        offset_bytes: u64,
        length_bytes: u64,
        bytes: Vec<u8>,
    ) -> FinishedRequest {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        self.begin(0, Request { tag, volume: volume.clone(), kind, offset_bytes, length_bytes }, bytes);
        loop {
            if let Some(index) = self.finished.iter().position(|finished| finished.tag == tag) {
                return self.finished.swap_remove(index);
            }
            self.go_on("a request");
        }
    }

    /// Carries out the oldest pending step or, if there is none, what the keeper does then.
    fn go_on(&mut self, waiting: &str) {
        if !self.pending.is_empty() {
            return self.step(0);
        }
        let settled = self.settle();
        let stuck = settled == Settled::Idle && self.pending.is_empty();
        if stuck {
            self.tick();
        }
        let progress = !stuck || !self.pending.is_empty() || !self.answers.is_empty();
        assert!(progress, "{waiting} is under way, and nobody has anything left to do");
    }

    /// Begins a request on a lane, with its buffer (empty for those that have none). Nothing is carried out yet.
    /// Tags are below 2^63.
    pub fn begin(&mut self, lane: usize, request: Request, bytes: Vec<u8>) {
        let mut actions = Vec::new();
        let before = self.lanes[lane].requests.insert(request.tag, bytes);
        assert!(before.is_none(), "two requests in flight have the tag {:?}", request.tag);
        self.lanes[lane].lane.begin(request, &mut actions);
        self.take_on(lane, actions);
    }

    /// Begins a command; returns its number, by which [`Blocking::take_answers`] has its answer sooner or later.
    pub fn begin_command(&mut self, command: Command) -> u64 {
        let number = self.next_command;
        self.next_command += 1;
        let mut out = Outbox::default();
        self.keeper.command(number, command, &mut out);
        self.deliver(out);
        number
    }

    /// Number of steps that could be carried out next.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Carries out the pending step `index`.
    pub fn step(&mut self, index: usize) {
        let Pending { lane: number, op, step } = self.pending.remove(index).expect("the step is pending");
        let lane = &mut self.lanes[number];
        let mut actions = Vec::new();
        match step {
            Step::Read { disk_offset_bytes, length_bytes, into } => {
                let read = self.data.read_at(disk_offset_bytes, lane.bytes_mut(into, length_bytes));
                lane.lane.io_done(op, ended("reading", &self.data, read), &mut actions);
            }
            Step::ReadOrigin { origin, offset_bytes, length_bytes, into } => {
                let disk = origin.disk();
                let read = disk.read_at(offset_bytes, lane.bytes_mut(into, length_bytes));
                lane.lane.io_done(op, ended("reading", disk, read), &mut actions);
            }
            Step::Write { disk_offset_bytes, length_bytes, from } => {
                let written = self.data.write_at(disk_offset_bytes, lane.bytes(from, length_bytes));
                lane.lane.io_done(op, ended("writing", &self.data, written), &mut actions);
            }
            Step::Ask(ask) => {
                let mut out = Outbox::default();
                let seat = LaneId(u16::try_from(number).expect("there are no more lanes than seats"));
                self.keeper.handle(Asker::Lane(seat, op), ask, &mut out);
                self.deliver(out);
            }
            Step::Reply(reply) => lane.lane.reply(op, reply, &mut actions),
        }
        self.take_on(number, actions);
    }

    /// What the driver does when the inbox is empty: `Keeper::settle`, and all that was freed goes back.
    pub fn settle(&mut self) -> Settled {
        let mut out = Outbox::default();
        let settled = self.keeper.settle(&mut out);
        while self.keeper.gives_back() {
            self.keeper.give_back_step(Pace::Alone);
        }
        self.deliver(out);
        settled
    }

    /// What the driver does once a second: `Keeper::tick`.
    pub fn tick(&mut self) {
        let mut out = Outbox::default();
        self.keeper.tick(&mut out);
        self.deliver(out);
    }

    /// Carries out everything, until nothing is pending and the keeper is idle.
    pub fn run(&mut self) {
        loop {
            while !self.pending.is_empty() {
                self.step(0);
            }
            let settled = self.settle();
            if settled == Settled::Idle && self.pending.is_empty() {
                return;
            }
        }
    }

    /// The finished requests, in the order in which they finished.
    pub fn take_finished(&mut self) -> Vec<FinishedRequest> {
        std::mem::take(&mut self.finished)
    }

    /// The answers to commands, by their numbers.
    pub fn take_answers(&mut self) -> Vec<(u64, Result<Answer>)> {
        std::mem::take(&mut self.answers)
    }

    fn deliver(&mut self, out: Outbox) {
        self.answers.extend(out.answers);
        for (asker, reply) in out.replies {
            let Asker::Lane(seat, op) = asker else { unreachable!("commands get answers, not replies") };
            self.pending.push_back(Pending { lane: usize::from(seat.0), op, step: Step::Reply(reply) });
        }
    }

    /// Does the actions that are done at once, and notes the others.
    fn take_on(&mut self, number: usize, actions: Vec<Action>) {
        let lane = &mut self.lanes[number];
        for action in actions {
            let (op, step) = match action {
                Action::ReadData { op, disk_offset_bytes, length_bytes, into } => {
                    (op, Step::Read { disk_offset_bytes, length_bytes, into })
                }
                Action::ReadOrigin { op, origin, offset_bytes, length_bytes, into } => {
                    (op, Step::ReadOrigin { origin, offset_bytes, length_bytes, into })
                }
                Action::WriteData { op, disk_offset_bytes, length_bytes, from } => {
                    (op, Step::Write { disk_offset_bytes, length_bytes, from })
                }
                Action::Ask { op, ask } => (op, Step::Ask(ask)),
                Action::GiveUp { op } => (op, Step::Ask(Ask::GiveUp)),
                Action::ZeroRequest { tag, offset_bytes, length_bytes } => {
                    lane.bytes_mut(Place::Request(tag, offset_bytes), length_bytes).fill(0);
                    continue;
                }
                Action::ZeroScratch { op, length_bytes } => {
                    lane.bytes_mut(Place::Scratch(op), length_bytes).fill(0);
                    continue;
                }
                Action::PatchScratch { op, at_bytes, length_bytes, from } => {
                    lane.patch(op, at_bytes, length_bytes, from);
                    continue;
                }
                Action::DropScratch { op } => {
                    lane.scratch.remove(&op);
                    continue;
                }
                Action::Extents { extents, .. } => {
                    lane.extents = extents;
                    continue;
                }
                Action::Complete { tag, result } => {
                    let bytes = lane.requests.remove(&tag).expect("a request completes once");
                    let extents = std::mem::take(&mut lane.extents);
                    self.finished.push(FinishedRequest { lane: number, tag, result, bytes, extents });
                    continue;
                }
            };
            self.pending.push_back(Pending { lane: number, op, step });
        }
    }
}

impl InlineLane {
    fn bytes_mut(&mut self, place: Place, length_bytes: u64) -> &mut [u8] {
        match place {
            Place::Request(tag, offset_bytes) => {
                let buffer = self.requests.get_mut(&tag).expect("the request is in flight");
                &mut buffer[range(offset_bytes, length_bytes)]
            }
            Place::Scratch(op) => &mut self.scratch_of(op)[range(0, length_bytes)],
            Place::Zeros => unreachable!("nothing is read into zeros"),
        }
    }

    fn bytes(&self, place: Place, length_bytes: u64) -> &[u8] {
        static ZEROS: [u8; CHUNK_BYTES as usize] = [0; CHUNK_BYTES as usize];
        match place {
            Place::Request(tag, offset_bytes) => &self.requests[&tag][range(offset_bytes, length_bytes)],
            Place::Scratch(op) => &self.scratch[&op][range(0, length_bytes)],
            Place::Zeros => &ZEROS[range(0, length_bytes)],
        }
    }

    fn scratch_of(&mut self, op: OpId) -> &mut [u8] {
        // Not zeros: nobody may rely on what a fresh scratch buffer holds.
        self.scratch.entry(op).or_insert_with(|| vec![0xa5; CHUNK_BYTES as usize])
    }

    fn patch(&mut self, op: OpId, at_bytes: u64, length_bytes: u64, from: Place) {
        let source = self.bytes(from, length_bytes).to_vec();
        self.scratch_of(op)[range(at_bytes, length_bytes)].copy_from_slice(&source);
    }
}

fn range(offset_bytes: u64, length_bytes: u64) -> Range<usize> {
    let begin = usize::try_from(offset_bytes).expect("buffers fit into memory");
    begin..begin + usize::try_from(length_bytes).expect("buffers fit into memory")
}

fn ended(doing: &str, disk: &impl Disk, result: std::io::Result<()>) -> Result<(), IoError> {
    result.map_err(|error| {
        tracing::error!("{doing} {}: {error}", disk.name());
        super::told_to_clients(&error)
    })
}

#[cfg(test)]
#[path = "blocking_tests.rs"]
mod tests;
