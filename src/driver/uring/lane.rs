//! A lane on a ring: does the engine's actions, any number of requests at a time.
//!
//! - A request's buffer, and an op's scratch buffer, is the lane's while anything is in flight on it: each counts its
//!   transfers, and is let go only at 0.
//! - Questions wait for the end of the turn and go to the keeper in one batch. The lane knows which are unanswered; when
//!   the keeper has ended, it answers those itself, with a failure.
//! - An eventfd is read all the time; the keeper (or a [`Waker`]) writes to it to end the thread's wait.

use super::bursts::Bursts;
use super::lent::{Lent, LentMoved, Memory, Named, is_about_memory};
use super::registered::{Registered, Slabs};
use super::ring::{Completion, DataFile, Ring, Submit};
use super::transfer::{Direction, Outcome, Side, Transfer, Transfers, Wanted};
use crate::disk::{AlignedBuffer, Disk, FileDisk};
use crate::driver::buffers::zeros;
use crate::driver::hash::{NumberMap, NumberSet};
use crate::driver::inbox::Ended;
use crate::driver::pool::{Seat, Shared};
use crate::driver::{BufferPool, told_to_clients};
use crate::engine::{
    Action, Ask, CHUNK_BYTES, Extent, IoError, Lane, LaneId, OpId, Origin, Place, Reply, Request, Tag,
};
use crate::error::Result;
use crate::units::BlockSize;
use io_uring::{opcode, types};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Marks a lane's operations in `user_data`; then come 16 bits of its number and 47 of the transfer's.
const LANE_BIT: u64 = 1 << 63;
const NUMBER_SHIFT: u32 = 47;
/// The number, in place of a transfer's, of the eventfd's read.
const BELL: u64 = (1 << NUMBER_SHIFT) - 1;
/// What a lane's buffers take at most, free ones included, unless one turn needs more.
const BUFFERS_BYTES: usize = 64 << 20;

/// A finished request.
pub struct Finished {
    /// The frontend's name for it, free again.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
    /// The buffer that came with the request. After a failed read its content is anything: do not send it.
    pub buffer: Option<AlignedBuffer>,
    /// The answer to [`Kind::Extents`](crate::engine::Kind::Extents).
    pub extents: Option<Vec<Extent>>,
}

/// Ends the wait of a lane's thread, from any thread.
#[derive(Clone)]
pub struct Waker {
    lane: LaneId,
    shared: Arc<Shared>,
}

impl Waker {
    /// Makes `Ring::submit_and_wait` of the lane's thread return, now or at its next call.
    pub fn wake(&self) {
        self.shared.inbox(self.lane).ring();
    }
}

/// Memory and what is in flight on it.
struct Held {
    memory: Memory,
    transfers: u32,
    /// A copy to or from it has failed, and so does its request.
    has_failed: bool,
}

impl Held {
    fn new(memory: Memory) -> Held {
        Held { memory, transfers: 0, has_failed: false }
    }
}

/// Whether the eventfd is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bell {
    Idle,
    Read,
    /// Being read for the last time.
    Leaving,
}

/// A seat in the pool, with everything that its requests have in flight. Used with one ring, on that ring's thread, from
/// the first request on. Before it is dropped it must be [drained](UringLane::drain). Lanes that share a ring must be of
/// one pool.
pub struct UringLane {
    lane: Lane,
    seat: Seat,
    data: Arc<FileDisk>,
    data_file: Option<DataFile>,
    /// External origins that were read from, kept open: one usually, as a client is there for one volume.
    origins: Vec<Arc<FileDisk>>,
    /// Requests begun and not completed.
    running: usize,
    requests: NumberMap<Tag, Held>,
    scratch: NumberMap<OpId, Held>,
    /// The length of a scratch buffer: no fill moves more than a block at a time.
    scratch_bytes: usize,
    transfers: Transfers,
    bursts: Bursts,
    buffers: BufferPool,
    slabs: Slabs,

    /// Reused by every call; empty between calls.
    actions: Vec<Action>,
    replies: Vec<(OpId, Reply)>,

    asks: Vec<(OpId, Ask)>,
    /// Ops whose question was not answered yet.
    waiting: NumberSet<OpId>,
    ended: Option<Ended>,

    extents: Option<Vec<Extent>>,
    finished: VecDeque<Finished>,
    bell: Bell,
    bell_count: AlignedBuffer,
    failures: u64,
    lent_moved: LentMoved,
}

impl UringLane {
    pub(in crate::driver) fn new(lane: Lane, block_size: BlockSize, seat: Seat, data: Arc<FileDisk>) -> Self {
        let buffers = BufferPool::new(BUFFERS_BYTES, seat.shared.buffers.clone());
        let scratch_bytes = CHUNK_BYTES.min(block_size.bytes()) as usize;
        UringLane {
            lane,
            seat,
            data,
            data_file: None,
            origins: Vec::new(),
            running: 0,
            requests: NumberMap::default(),
            scratch: NumberMap::default(),
            scratch_bytes,
            transfers: Transfers::default(),
            bursts: Bursts::default(),
            buffers,
            slabs: Slabs::default(),
            actions: Vec::new(),
            replies: Vec::new(),
            asks: Vec::new(),
            waiting: NumberSet::default(),
            ended: None,
            extents: None,
            finished: VecDeque::new(),
            bell: Bell::Idle,
            bell_count: AlignedBuffer::zeroed(8),
            failures: 0,
            lent_moved: LentMoved::default(),
        }
    }

    /// Takes a request on. Its tag must not be in flight (so a client's own cookie is no good as a tag). A read or write
    /// brings a buffer of at least its length, from [`UringLane::take_buffer`] best, that begins at its first byte;
    /// the others bring `None`.
    pub fn begin(&mut self, request: Request, buffer: Option<AlignedBuffer>, ring: &mut impl Submit) {
        let memory = buffer.map(|buffer| {
            let registered = self.slabs.find(&buffer);
            Memory::Buffer(buffer, registered)
        });
        self.begin_with(request, memory, ring);
    }

    /// Like [`UringLane::begin`], for a read or write with a buffer that the frontend has [registered](Submit::register) with this ring, or its
    /// first bytes.
    pub fn begin_registered(
        &mut self,
        request: Request,
        buffer: AlignedBuffer,
        registered: Registered,
        ring: &mut impl Submit,
    ) {
        assert!(registered.length_bytes <= buffer.len() as u64, "what is registered is the buffer");
        self.begin_with(request, Some(Memory::Buffer(buffer, Some(registered))), ring);
    }

    /// Like [`UringLane::begin`], for a read or write whose bytes are in memory that the ring was lent. It finishes without a buffer.
    pub fn begin_lent(&mut self, request: Request, lent: Lent, ring: &mut impl Submit) {
        self.begin_with(request, Some(Memory::Lent(lent)), ring);
    }

    fn begin_with(&mut self, request: Request, memory: Option<Memory>, ring: &mut impl Submit) {
        if let Some(memory) = memory {
            assert!(memory.length_bytes() >= request.length_bytes, "a request's buffer holds the request");
            let before = self.requests.insert(request.tag, Held::new(memory));
            assert!(before.is_none(), "two requests in flight have the tag {:?}", request.tag);
        }
        self.slabs.grow(self.scratch_bytes, &mut self.buffers, ring);
        self.running += 1;
        self.lane.begin(request, &mut self.actions);
        self.execute(ring);
    }

    /// What has moved to and from lent memory since the lane was made.
    pub fn lent_moved(&self) -> LentMoved {
        self.lent_moved
    }

    /// See [`Lane::hang_up`].
    pub fn hang_up(&mut self, ring: &mut impl Submit) {
        self.lane.hang_up(&mut self.actions);
        self.execute(ring);
    }

    /// Whether a completion is this lane's.
    pub fn owns(&self, completion: &Completion) -> bool {
        completion.user_data() & !BELL == self.user_data(0)
    }

    /// Takes in one of its completions.
    pub fn complete(&mut self, completion: Completion, ring: &mut impl Submit) {
        debug_assert!(self.owns(&completion));
        self.seat.inbox().is_awake();
        match completion.user_data() & BELL {
            BELL => self.bell_rang(&completion, ring),
            slot => {
                self.bursts.end();
                self.moved(slot as usize, completion.result(), ring);
                while let Some(slot) = self.bursts.next() {
                    self.push(slot, ring);
                }
            }
        }
    }

    /// To be called once a turn, before [`UringLane::next_finished`] and the wait: asks the keeper the turn's questions
    /// in one go, takes in what it has answered, and sees to it that its next answer ends the wait.
    pub fn before_wait(&mut self, ring: &mut impl Submit) {
        self.listen(ring);
        self.bursts.turn();
        loop {
            if !self.asks.is_empty() {
                // An answer that is given at once rings nobody.
                self.seat.inbox().is_awake();
                self.seat.shared.ask(self.seat.lane, &mut self.asks, self.running == 1);
            }
            let ended = self.seat.inbox().take_or_sleep(&mut self.replies);
            if self.replies.is_empty() && (ended.is_none() || self.waiting.is_empty()) {
                return;
            }
            self.take_replies(ended);
            self.execute(ring);
        }
    }

    /// The next finished request.
    pub fn next_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Requests begun whose [`Finished`] was not taken yet.
    pub fn in_flight(&self) -> usize {
        self.running + self.finished.len()
    }

    /// A buffer for a request: at least `length_bytes` long, with any content.
    pub fn take_buffer(&mut self, length_bytes: usize) -> AlignedBuffer {
        self.slabs.count_request();
        self.buffers.take(length_bytes)
    }

    #[cfg(test)]
    pub(super) fn registered(&self, buffer: &AlignedBuffer) -> Option<Registered> {
        self.slabs.find(buffer)
    }

    /// Whether operations on the first bytes of a request's buffer name it by an index.
    #[cfg(test)]
    pub(super) fn is_registered(&self, tag: Tag) -> bool {
        self.memory(Place::Request(tag, 0), 0, 1).index.is_some()
    }

    /// Whether buffers of so many bytes more can be had within what all lanes may take.
    pub fn has_room(&self, more_bytes: usize) -> bool {
        self.buffers.has_room(more_bytes)
    }

    /// To be called before the wait for a client that has nothing under way: buffers are for others meanwhile.
    pub fn rest(&mut self) {
        self.buffers.rest();
    }

    /// The lane's buffers, to give back what a finished request or the stream returned.
    pub fn buffers(&mut self) -> &mut BufferPool {
        &mut self.buffers
    }

    /// Ends the wait of this lane's thread from other threads.
    pub fn waker(&self) -> Waker {
        Waker { lane: self.seat.lane, shared: self.seat.shared.clone() }
    }

    /// Waits until every request is finished and nothing is in flight; the finished ones are there to be taken or
    /// dropped. Completions of others go to `others`.
    pub fn drain(&mut self, ring: &mut Ring, mut others: impl FnMut(Completion, &mut Ring)) -> Result<()> {
        loop {
            self.before_wait(ring);
            if self.running == 0 {
                break;
            }
            self.turn(ring, &mut others)?;
        }
        self.bell = Bell::Leaving;
        self.seat.inbox().ring();
        while self.bell != Bell::Idle {
            self.turn(ring, &mut others)?;
        }
        Ok(())
    }

    fn turn(&mut self, ring: &mut Ring, others: &mut impl FnMut(Completion, &mut Ring)) -> Result<()> {
        ring.submit_and_wait(1)?;
        while let Some(completion) = ring.next_completion() {
            if self.owns(&completion) {
                self.complete(completion, ring);
            } else {
                others(completion, ring);
            }
        }
        Ok(())
    }

    fn user_data(&self, number: u64) -> u64 {
        LANE_BIT | u64::from(self.seat.lane.0) << NUMBER_SHIFT | number
    }

    /// Sees to it that the eventfd is being read.
    fn listen(&mut self, ring: &mut impl Submit) {
        if self.bell != Bell::Idle {
            return;
        }
        let bell = self.seat.inbox().bell().expect("the bell was made when the seat was taken");
        let memory = self.bell_count.start().as_ptr();
        let read = opcode::Read::new(types::Fd(bell.as_raw_fd()), memory, 8).build();
        // SAFETY: the 8 bytes are the lane's and nobody else touches them; they are leaked if it goes too early. The
        // eventfd is as old as the pool, which the seat keeps alive.
        unsafe { ring.push(read.user_data(self.user_data(BELL))) };
        self.bell = Bell::Read;
    }

    fn bell_rang(&mut self, completion: &Completion, ring: &mut impl Submit) {
        if completion.result() < 0 {
            tracing::warn!("reading a lane's eventfd failed: errno {}", -completion.result());
        }
        let was = std::mem::replace(&mut self.bell, Bell::Idle);
        if was == Bell::Read {
            self.listen(ring);
        }
    }

    /// The operation of a transfer has ended.
    fn moved(&mut self, slot: usize, result: i32, ring: &mut impl Submit) {
        let side = self.transfers.get_mut(slot).side;
        let unit_bytes = if self.disk(side).is_direct() { FileDisk::SECTOR_BYTES as u64 } else { 1 };
        let result = match self.transfers.get_mut(slot).advance(result, unit_bytes) {
            Outcome::More => return self.start(slot, ring),
            Outcome::Done => self.arrived(slot),
            Outcome::Failed(error) if self.takes_detour(slot, &error) => return self.start(slot, ring),
            Outcome::Failed(error) => {
                self.report(slot, &error);
                Err(told_to_clients(&error))
            }
        };
        let mut transfer = self.transfers.remove(slot);
        if let Some(detour) = transfer.detour.take() {
            self.buffers.give(detour);
        }
        if let Some(held) = self.held(transfer.place) {
            held.transfers -= 1;
        }
        for op in &transfer.ops {
            self.lane.io_done(*op, result, &mut self.actions);
        }
        self.transfers.recycle(transfer.ops);
        self.execute(ring);
    }

    /// All bytes of a transfer have moved: those of lent memory are counted, and brought there if they went another way.
    fn arrived(&mut self, slot: usize) -> Result<(), IoError> {
        let transfer = self.transfers.get_mut(slot);
        let Place::Request(tag, first) = transfer.place else { return Ok(()) };
        let Memory::Lent(lent) = &self.requests.get(&tag).expect(IN_FLIGHT).memory else { return Ok(()) };
        let Some(detour) = &transfer.detour else {
            self.lent_moved.in_place_bytes += transfer.length_bytes;
            return Ok(());
        };
        if transfer.direction == Direction::Read {
            self.lent_moved.copied_bytes += transfer.length_bytes;
            let bytes = &detour[..transfer.length_bytes as usize];
            return lent.write(first, bytes).map_err(|error| cannot_copy(&error));
        }
        Ok(())
    }

    /// Whether a transfer that has failed is to begin anew through a buffer, because lent memory is not what the disk can take. The bytes
    /// of a write are in it then.
    fn takes_detour(&mut self, slot: usize, error: &std::io::Error) -> bool {
        let transfer = self.transfers.get_mut(slot);
        let Place::Request(tag, first) = transfer.place else { return false };
        let Memory::Lent(lent) = &self.requests.get(&tag).expect(IN_FLIGHT).memory else { return false };
        if transfer.detour.is_some() || !is_about_memory(error) {
            return false;
        }
        let mut detour = self.buffers.take(transfer.length_bytes as usize);
        if transfer.direction == Direction::Write {
            self.lent_moved.copied_bytes += transfer.length_bytes;
            if lent.read(first, &mut detour[..transfer.length_bytes as usize]).is_err() {
                self.buffers.give(detour);
                return false;
            }
        }
        transfer.go_through(detour);
        true
    }

    /// Logs the first failure, and then ever fewer: a dead disk fails everything.
    fn report(&mut self, slot: usize, error: &std::io::Error) {
        self.failures += 1;
        if !self.failures.is_power_of_two() {
            return;
        }
        let transfer = self.transfers.get_mut(slot);
        let (side, offset_bytes, length_bytes) =
            (transfer.side, transfer.disk_offset_bytes, transfer.length_bytes);
        let doing = match (transfer.direction, side) {
            (Direction::Read, Side::Data) => "reading the data disk",
            (Direction::Read, Side::Origin(_)) => "reading an external origin",
            (Direction::Write, Side::Data | Side::Origin(_)) => "writing the data disk",
        };
        let (disk, failures) = (self.disk(side).name(), self.failures);
        tracing::error!(disk, offset_bytes, length_bytes, failures, "{doing} failed: {error}");
    }

    fn disk(&self, side: Side) -> &Arc<FileDisk> {
        match side {
            Side::Data => &self.data,
            Side::Origin(number) => &self.origins[number],
        }
    }

    /// Whether external origins are kept open.
    pub(in crate::driver) fn keeps_origins(&self) -> bool {
        !self.origins.is_empty()
    }

    /// Lets external origins go, while no request is running: a lane that is there for all volumes would meet ever more of them. The
    /// ring is the lane's alone.
    pub(in crate::driver) fn forget_origins(&mut self, ring: &mut Ring) {
        assert_eq!(self.running, 0, "nothing is read any more");
        self.origins.clear();
        self.data_file = None;
        ring.forget_files();
    }

    /// The side that an origin is on, for this lane.
    fn side_of(&mut self, origin: &Origin) -> Side {
        let file = origin.disk().clone().into_file().expect("a pool that rings serve has files for origins");
        let known = self.origins.iter().position(|known| Arc::ptr_eq(known, &file));
        Side::Origin(known.unwrap_or_else(|| {
            self.origins.push(file);
            self.origins.len() - 1
        }))
    }

    fn take_replies(&mut self, ended: Option<Ended>) {
        for (op, reply) in self.replies.drain(..) {
            assert!(self.waiting.remove(&op), "the keeper answers what it was asked");
            self.lane.reply(op, reply, &mut self.actions);
        }
        // Those were the last: what is unanswered now stays so.
        self.ended = self.ended.or(ended);
        if let Some(ended) = self.ended {
            self.asks.clear();
            for op in std::mem::take(&mut self.waiting) {
                self.lane.reply(op, Reply::Failed(ended.io_error()), &mut self.actions);
            }
        }
    }

    /// Does what the lane wants.
    fn execute(&mut self, ring: &mut impl Submit) {
        let mut actions = std::mem::take(&mut self.actions);
        // The last read or write, which the next may adjoin.
        let mut open = None;
        for action in actions.drain(..) {
            match action {
                Action::ReadData { op, disk_offset_bytes, length_bytes, into } => {
                    let (direction, side) = (Direction::Read, Side::Data);
                    let wanted = Wanted { direction, side, disk_offset_bytes, length_bytes, place: into, op };
                    open = Some(self.transfer(open, wanted, ring));
                }
                Action::ReadOrigin { op, origin, offset_bytes: disk_offset_bytes, length_bytes, into } => {
                    let (direction, side) = (Direction::Read, self.side_of(&origin));
                    let wanted = Wanted { direction, side, disk_offset_bytes, length_bytes, place: into, op };
                    open = Some(self.transfer(open, wanted, ring));
                }
                Action::WriteData { op, disk_offset_bytes, length_bytes, from } => {
                    let (direction, side) = (Direction::Write, Side::Data);
                    let wanted = Wanted { direction, side, disk_offset_bytes, length_bytes, place: from, op };
                    open = Some(self.transfer(open, wanted, ring));
                }
                Action::ZeroRequest { tag, offset_bytes, length_bytes } => {
                    self.copy(Place::Zeros, Place::Request(tag, offset_bytes), 0, length_bytes);
                }
                Action::ZeroScratch { op, length_bytes } => {
                    self.copy(Place::Zeros, Place::Scratch(op), 0, length_bytes);
                }
                Action::PatchScratch { op, at_bytes, length_bytes, from } => {
                    self.copy(from, Place::Scratch(op), at_bytes, length_bytes);
                }
                Action::DropScratch { op } => {
                    if let Some(held) = self.scratch.remove(&op) {
                        self.let_go(held);
                    }
                }
                Action::Ask { op, ask } => {
                    assert!(self.waiting.insert(op), "an op asks one question at a time");
                    self.asks.push((op, ask));
                }
                Action::GiveUp { op } => self.asks.push((op, Ask::GiveUp)),
                Action::Extents { extents, .. } => self.extents = Some(extents),
                Action::Complete { tag, result } => self.completed(tag, result),
            }
        }
        if let Some(slot) = open {
            self.start(slot, ring);
        }
        self.actions = actions;
    }

    /// A new transfer, or more of the open one, which is started when it ends here.
    fn transfer(&mut self, open: Option<usize>, wanted: Wanted, ring: &mut impl Submit) -> usize {
        if let Some(slot) = open {
            if self.transfers.get_mut(slot).absorb(wanted) {
                return slot;
            }
            self.start(slot, ring);
        }
        match wanted.place {
            Place::Request(..) => {}
            Place::Scratch(op) => self.make_scratch(op),
            Place::Zeros => self.slabs.count_fill(),
        }
        if let Some(held) = self.held(wanted.place) {
            held.transfers += 1;
        }
        let ops = self.transfers.spare_ops();
        self.transfers.insert(Transfer::new(wanted, ops))
    }

    /// Starts the next operation of a transfer, when it is its turn.
    fn start(&mut self, slot: usize, ring: &mut impl Submit) {
        if self.bursts.begin(slot) {
            self.push(slot, ring);
        }
    }

    /// Pushes the next operation of a transfer.
    fn push(&mut self, slot: usize, ring: &mut impl Submit) {
        let transfer = self.transfers.get_mut(slot);
        let (direction, side, place) = (transfer.direction, transfer.side, transfer.place);
        let operation = transfer.next_operation();
        assert!(direction == Direction::Write || place != Place::Zeros, "nobody reads into the zeros");
        let length = operation.length_bytes;
        let memory = match &self.transfers.get_mut(slot).detour {
            None => self.memory(place, operation.at_bytes, u64::from(length)),
            Some(detour) => {
                assert!(
                    operation.at_bytes + u64::from(length) <= detour.len() as u64,
                    "it holds the transfer"
                );
                // SAFETY: inside the buffer, as was just checked.
                let address = unsafe { detour.start().as_ptr().add(operation.at_bytes as usize) };
                Named { address, index: None, is_lent: false }
            }
        };
        let file = match side {
            Side::Data => *self.data_file.get_or_insert_with(|| ring.data_file(&self.data)),
            Side::Origin(number) => ring.data_file(&self.origins[number]),
        };
        let entry = match file {
            DataFile::Registered(index) => entry!(types::Fixed(index), direction, memory, operation),
            DataFile::Plain(file) => entry!(types::Fd(file), direction, memory, operation),
        };
        // SAFETY: `memory` checked that the bytes lie inside a buffer, which counts this transfer and is kept (or leaked)
        // until that is 0 again; the zeros live for ever and are only read. A detour is kept likewise. Lent memory is the kernel's, which checks
        // the index and where in it the bytes lie.
        unsafe { ring.push(entry.user_data(self.user_data(slot as u64))) };
    }

    /// The buffer of a place, `None` for the zeros.
    fn held(&mut self, place: Place) -> Option<&mut Held> {
        match place {
            Place::Request(tag, _) => Some(self.requests.get_mut(&tag).expect(IN_FLIGHT)),
            Place::Scratch(op) => Some(self.scratch.get_mut(&op).expect(IN_FLIGHT)),
            Place::Zeros => None,
        }
    }

    fn make_scratch(&mut self, op: OpId) {
        let (buffers, slabs, length) = (&mut self.buffers, &mut self.slabs, self.scratch_bytes);
        self.scratch.entry(op).or_insert_with(|| {
            slabs.count_fill();
            let buffer = buffers.take(length);
            let registered = slabs.find(&buffer);
            Held::new(Memory::Buffer(buffer, registered))
        });
    }

    /// Where `length_bytes` from `at_bytes` of a place on are in memory. They lie inside their buffer.
    fn memory(&self, place: Place, at_bytes: u64, length_bytes: u64) -> Named {
        let (held, first) = match place {
            Place::Request(tag, first) => (Some(self.requests.get(&tag).expect(IN_FLIGHT)), first),
            Place::Scratch(op) => (Some(self.scratch.get(&op).expect(IN_FLIGHT)), 0),
            Place::Zeros => (None, 0),
        };
        let held_bytes = held.map_or(zeros().len() as u64, |held| held.memory.length_bytes());
        let begin = first
            .checked_add(at_bytes)
            .filter(|begin| begin.checked_add(length_bytes).is_some_and(|end| end <= held_bytes));
        let begin = begin.expect("data moves inside its buffer");
        let (buffer, registered) = match held.map(|held| &held.memory) {
            None => (zeros(), self.slabs.zeros()),
            Some(Memory::Buffer(buffer, registered)) => (buffer, *registered),
            Some(Memory::Lent(lent)) => {
                let address = std::ptr::without_provenance_mut((lent.address + begin) as usize);
                return Named { address, index: Some(lent.index), is_lent: true };
            }
        };
        let registered = registered.filter(|registered| begin + length_bytes <= registered.length_bytes);
        let index = registered.map(|registered| registered.index);
        // SAFETY: `begin` is at most the buffer's length, as was just checked.
        let address = unsafe { buffer.start().as_ptr().add(begin as usize) };
        Named { address, index, is_lent: false }
    }

    /// Copies (or zeroes) within the lane's buffers, now.
    fn copy(&mut self, from: Place, to: Place, at_bytes: u64, length_bytes: u64) {
        if let Place::Scratch(op) = to {
            self.make_scratch(op);
        }
        assert!(to != Place::Zeros, "nobody writes to the zeros");
        let Named { address: target, is_lent, .. } = self.memory(to, at_bytes, length_bytes);
        let length = length_bytes as usize;
        if let (true, Place::Request(tag, first)) = (is_lent, to) {
            assert!(from == Place::Zeros, "only zeros are put into a request");
            return self.zero_lent(tag, first, length);
        }
        if from == Place::Zeros {
            // SAFETY: the range lies inside a buffer of this lane. No reference to it exists: those are made only after
            // the buffer was handed out.
            return unsafe { target.write_bytes(0, length) };
        }
        let Named { address: source, is_lent, .. } = self.memory(from, 0, length_bytes);
        if let (true, Place::Request(tag, first)) = (is_lent, from) {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts_mut(target, length) };
            return self.copy_lent(tag, first, bytes);
        }
        // SAFETY: as above, for both; a request's and a scratch buffer are different allocations. `copy` would not mind
        // if they were not.
        unsafe { target.copy_from(source, length) }
    }

    /// Zeroes a part of a request that is in lent memory.
    fn zero_lent(&mut self, tag: Tag, first: u64, length: usize) {
        let held = self.requests.get_mut(&tag).expect(IN_FLIGHT);
        let Memory::Lent(lent) = &held.memory else { unreachable!("it was told to be lent") };
        let zeros = zeros();
        for done in (0..length).step_by(zeros.len()) {
            let step = zeros.len().min(length - done);
            if let Err(error) = lent.write(first + done as u64, &zeros[..step]) {
                cannot_copy(&error);
                held.has_failed = true;
            }
        }
        self.lent_moved.copied_bytes += length as u64;
    }

    /// Copies a part of a request that is in lent memory. If that fails, zeros stand for it: what was in `bytes` is nobody's to see, and goes to
    /// the disk with the rest of its block.
    fn copy_lent(&mut self, tag: Tag, first: u64, bytes: &mut [u8]) {
        let held = self.requests.get_mut(&tag).expect(IN_FLIGHT);
        let Memory::Lent(lent) = &held.memory else { unreachable!("it was told to be lent") };
        if let Err(error) = lent.read(first, bytes) {
            cannot_copy(&error);
            held.has_failed = true;
            bytes.fill(0);
        }
        self.lent_moved.copied_bytes += bytes.len() as u64;
    }

    fn let_go(&mut self, held: Held) {
        assert_eq!(held.transfers, 0, "a buffer is let go when nothing is in flight on it");
        if let Memory::Buffer(buffer, _) = held.memory {
            self.buffers.give(buffer);
        }
    }

    fn completed(&mut self, tag: Tag, result: Result<(), IoError>) {
        let (mut result, mut buffer) = (result, None);
        if let Some(held) = self.requests.remove(&tag) {
            assert_eq!(held.transfers, 0, "a request completes when nothing is in flight on its buffer");
            if held.has_failed {
                result = result.and(Err(IoError::Io));
            }
            if let Memory::Buffer(held, _) = held.memory {
                buffer = Some(held);
            }
        }
        self.running -= 1;
        self.finished.push_back(Finished { tag, result, buffer, extents: self.extents.take() });
    }
}

/// The entry for an operation of a transfer. A macro, because the two ways to name a file have no type in common.
macro_rules! entry {
    ($file:expr, $direction:expr, $memory:expr, $operation:expr) => {{
        let (Named { address, index, .. }, length) = ($memory, $operation.length_bytes);
        let offset = $operation.disk_offset_bytes;
        match ($direction, index) {
            (Direction::Read, None) => opcode::Read::new($file, address, length).offset(offset).build(),
            (Direction::Read, Some(index)) => {
                opcode::ReadFixed::new($file, address, length, index).offset(offset).build()
            }
            (Direction::Write, None) => opcode::Write::new($file, address, length).offset(offset).build(),
            (Direction::Write, Some(index)) => {
                opcode::WriteFixed::new($file, address, length, index).offset(offset).build()
            }
        }
    }};
}
use entry;

fn cannot_copy(error: &std::io::Error) -> IoError {
    tracing::error!("copying a request's bytes failed: {error}");
    told_to_clients(error)
}

const IN_FLIGHT: &str = "the engine names only buffers of what it runs";

impl Drop for UringLane {
    fn drop(&mut self) {
        if self.running == 0 && self.transfers.in_flight() == 0 && self.bell == Bell::Idle {
            return;
        }
        // The kernel may still use these, and the epoch of what runs stays shown: nobody else can sit here.
        std::mem::forget(std::mem::take(&mut self.requests));
        std::mem::forget(std::mem::take(&mut self.scratch));
        std::mem::forget(std::mem::take(&mut self.transfers));
        std::mem::forget(std::mem::replace(&mut self.bell_count, AlignedBuffer::zeroed(0)));
        self.seat.is_lost = true;
        assert!(std::thread::panicking(), "a lane is drained before it is dropped");
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
