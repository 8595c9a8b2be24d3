//! A lane: turns requests into actions, one step at a time. A pure state machine: it never touches bytes, threads or files.
//!
//! A request is split into *ops*, one for each block it touches (or one for all blocks to unmap). An op looks at the map,
//! and either moves data in place or asks the keeper for a *fill*: a reserved block whose whole new contents the op
//! writes before the keeper publishes it. What must hold:
//!
//! - An op looks at the map only after it has entered an epoch, and leaves it when it is finished (`Presence`).
//! - An op that changes anything checks, inside its epoch, that its volume is not frozen.
//! - An op that waits without bound (frozen volume, no space) holds no epoch, and starts from the beginning afterwards.
//! - Data goes in place only where nothing else can see the block: mapped, and not shared.
//!
//! Blocks of which only a part is there are the business of `partial`.

mod partial;

use super::epochs::{Epoch, Epochs, Presence};
use super::map_table::Lookup;
use super::origin::Origin;
use super::request::{
    Action, Ask, CHUNK_BYTES, Extent, ExtentState, FillSource, IoError, Kind, LaneId, OpId, Place, Reply,
    Request, Tag,
};
use super::volume::{Changes, Volume};
use crate::units::{BlockSize, DataBlock, VirtualBlock};
use partial::Seen;
use std::ops::Range;
use std::sync::Arc;

/// One client's (connection's, queue's) path into the pool.
pub struct Lane {
    presence: Presence,
    block_size: BlockSize,
    requests: Slab<Running>,
    ops: Slab<Op>,
    has_hung_up: bool,
}

/// A request under way.
struct Running {
    request: Request,
    /// Ops that are not finished, and one while the request is still being split.
    ops_left: usize,
    result: Result<(), IoError>,
    /// What [`Kind::Extents`] has found so far.
    extents: Vec<Extent>,
    /// The external origin that [`Kind::Settle`] reads from, which is of no volume.
    origin: Option<Origin>,
}

/// One step-by-step piece of a request.
#[derive(Clone, Copy)]
struct Op {
    request: usize,
    work: Work,
    step: Step,
    epoch: Option<Epoch>,
}

#[derive(Clone, Copy)]
enum Work {
    /// Move data between the request and one block.
    Move(Piece),
    /// Unmap the blocks `begin..end`.
    Unmap { begin: u64, end: u64 },
    /// Make everything durable.
    Flush,
    /// Fill a stretch of a partial block.
    Settle,
    /// Describe the volume from this byte on.
    Describe { next_byte: u64 },
}

/// The part of a request inside one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    block: VirtualBlock,
    /// First byte inside the block.
    at_bytes: u64,
    length_bytes: u64,
    /// First byte inside the request's buffer.
    request_bytes: u64,
}

impl Piece {
    fn end_bytes(self) -> u64 {
        self.at_bytes + self.length_bytes
    }
}

/// Where an op stands.
#[derive(Clone, Copy)]
enum Step {
    /// The keeper has been asked; its answer leads on.
    Asked,
    /// What shows of the external origin is being read.
    ReadingOrigin,
    /// Data moves in place; `moved_bytes` of the piece are done when this move is.
    InPlace { block: DataBlock, moved_bytes: u64 },
    /// Data of a partial block is being read; `done_bytes` of the piece are there when this read has ended.
    ReadingParts { seen: Seen, done_bytes: u64 },
    /// A chunk of the old block, or of the external origin, is being read.
    Reading { fill: Fill, chunk_bytes: u64 },
    /// The block is being written; everything below `fill.written_bytes` is there when this write is.
    Writing { fill: Fill },
    /// The keeper has been asked to map the filled block.
    Publishing,
    /// The keeper has been asked to say that these units are there.
    Putting { fill: Fill, units: u64 },
    /// The keeper has been asked to forget the block, because of this.
    Abandoning(IoError),
}

/// A block on its way: a fresh one, or units of a partial one.
#[derive(Clone, Copy)]
struct Fill {
    target: DataBlock,
    source: FillSource,
    /// The source, if that is a partial block.
    above: Option<Seen>,
    written_bytes: u64,
    end_bytes: u64,
    ending: Ending,
}

/// What comes when all is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// The fresh block is whole, and the keeper maps it.
    Publish,
    /// The fresh block holds these units, and the keeper maps it.
    PublishPart(u64),
    /// These units of a partial block are there.
    Put(u64),
}

/// What a fill has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FillStep {
    /// The guest's bytes as they are: `length_bytes` from the present place on.
    Guest { length_bytes: u64 },
    /// Filler only, or filler with the guest's bytes patched in.
    Chunk { length_bytes: u64, patched: bool },
}

impl Lane {
    /// A lane in seat `id` of `epochs`, which nobody else holds.
    pub fn new(id: LaneId, epochs: Arc<Epochs>, block_size: BlockSize) -> Self {
        Lane {
            presence: Presence::new(id, epochs),
            block_size,
            requests: Slab::new(),
            ops: Slab::new(),
            has_hung_up: false,
        }
    }

    /// Gone with its requests, as when the process dies.
    #[cfg(test)]
    pub fn die(mut self) {
        self.requests = Slab::new();
    }

    /// Nobody waits for the requests' ends any more: what waits without bound gives up, and nothing that changes anything begins
    /// anew, lest it overwrite what others have written meanwhile. What is under way ends.
    pub fn hang_up(&mut self, out: &mut Vec<Action>) {
        if std::mem::replace(&mut self.has_hung_up, true) {
            return;
        }
        for (op, slot) in self.ops.slots.iter().enumerate() {
            if slot
                .as_ref()
                .is_some_and(|Op { step, epoch, .. }| matches!(step, Step::Asked) && epoch.is_none())
            {
                out.push(Action::GiveUp { op: op_id(op) });
            }
        }
    }

    /// Whether no request is running.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes a request on; what is to be done is appended to `out`.
    pub fn begin(&mut self, request: Request, out: &mut Vec<Action>) {
        let (kind, offset, length) = (request.kind, request.offset_bytes, request.length_bytes);
        let size_bytes = request.volume.size_bytes();
        let end = offset.checked_add(length).filter(|end| *end <= size_bytes);
        let end = end.expect("the frontend has checked that a request lies inside its volume");
        let ignores_discards = request.volume.ignores_discards();
        let running = Running { request, ops_left: 1, result: Ok(()), extents: Vec::new(), origin: None };
        let request = self.requests.insert(running);
        match kind {
            Kind::Read | Kind::Write { .. } => self.begin_pieces(request, offset..end, offset, out),
            Kind::WriteZeroes { may_unmap, .. } => {
                // Zeros in a block that the volume ends in are written: it may be larger before they are there.
                let whole = self.block_size.whole_blocks_inside(offset..end);
                let size = self.block_size.bytes();
                // Where an external origin would show, zeros have to be there.
                let origin_bytes = self.requests.get(request).request.volume.origin_bytes();
                let begin = whole.start.max(self.block_size.blocks_to_hold(origin_bytes));
                if !may_unmap || begin >= whole.end {
                    self.begin_pieces(request, offset..end, offset, out);
                } else {
                    self.begin_pieces(request, offset..begin * size, offset, out);
                    self.begin_op(request, Work::Unmap { begin, end: whole.end }, out);
                    self.begin_pieces(request, whole.end * size..end, offset, out);
                }
            }
            Kind::Discard => {
                let covered = self.block_size.blocks_covered(offset..end, size_bytes);
                if !covered.is_empty() && !ignores_discards {
                    self.begin_op(request, Work::Unmap { begin: covered.start, end: covered.end }, out);
                }
            }
            Kind::Flush => self.begin_op(request, Work::Flush, out),
            Kind::Settle => self.begin_op(request, Work::Settle, out),
            Kind::Extents => self.begin_op(request, Work::Describe { next_byte: offset }, out),
        }
        self.op_finished(request, Ok(()), out);
    }

    /// Begins an op for each block that `bytes` of the volume touch; `origin` is the byte where the request begins.
    fn begin_pieces(&mut self, request: usize, bytes: Range<u64>, origin: u64, out: &mut Vec<Action>) {
        let size = self.block_size.bytes();
        let mut byte = bytes.start;
        while byte < bytes.end {
            let at_bytes = byte % size;
            let length_bytes = (size - at_bytes).min(bytes.end - byte);
            let block = VirtualBlock(byte / size);
            let piece = Piece { block, at_bytes, length_bytes, request_bytes: byte - origin };
            self.begin_op(request, Work::Move(piece), out);
            byte += length_bytes;
        }
    }

    fn begin_op(&mut self, request: usize, work: Work, out: &mut Vec<Action>) {
        self.requests.get_mut(request).ops_left += 1;
        let op = self.ops.insert(Op { request, work, step: Step::Asked, epoch: None });
        self.start(op, out);
    }

    /// Enters an epoch and looks at the map; parks a change of a frozen volume, which then holds no epoch and so cannot
    /// hold up the snapshot that it waits for.
    fn start(&mut self, op: usize, out: &mut Vec<Action>) {
        if matches!(self.ops.get(op).work, Work::Flush) {
            return self.ask(op, Ask::Flush, out);
        }
        let epoch = self.presence.enter();
        self.ops.get_mut(op).epoch = Some(epoch);
        let changes = self.changes(op);
        let request = &self.requests.get(self.ops.get(op).request).request;
        match request.volume.changes() {
            Changes::Frozen if changes => {
                let volume = request.volume.id();
                self.leave_epoch(op);
                self.ask(op, Ask::Thaw(volume), out);
            }
            Changes::Refused if changes => self.finish(op, Err(IoError::Io), out),
            Changes::Allowed | Changes::Frozen | Changes::Refused => self.advance(op, out),
        }
    }

    fn leave_epoch(&mut self, op: usize) {
        if let Some(epoch) = self.ops.get_mut(op).epoch.take() {
            self.presence.leave(epoch);
        }
    }

    fn ask(&mut self, op: usize, ask: Ask, out: &mut Vec<Action>) {
        self.ops.get_mut(op).step = Step::Asked;
        out.push(Action::Ask { op: op_id(op), ask });
    }

    /// Whether it is part of a request that changes something.
    fn changes(&self, op: usize) -> bool {
        match self.requests.get(self.ops.get(op).request).request.kind {
            Kind::Write { .. } | Kind::Discard | Kind::WriteZeroes { .. } | Kind::Settle => true,
            Kind::Read | Kind::Flush | Kind::Extents => false,
        }
    }

    /// Looks at the map and takes the next step. Called at the start and after every `Again`.
    fn advance(&mut self, op: usize, out: &mut Vec<Action>) {
        let Op { request, work, .. } = *self.ops.get(op);
        let Request { ref volume, kind, tag, offset_bytes, length_bytes } =
            self.requests.get(request).request;
        let id = volume.id();
        let piece = match work {
            Work::Move(piece) => piece,
            Work::Unmap { begin, end } => {
                return self.ask(op, Ask::Unmap(id, begin..end, offset_bytes + length_bytes), out);
            }
            Work::Flush => return self.ask(op, Ask::Flush, out),
            Work::Describe { next_byte } => return self.describe(op, next_byte, out),
            Work::Settle => return self.ask(op, Ask::Settle, out),
        };
        let writes = match kind {
            Kind::Write { .. } | Kind::WriteZeroes { .. } => true,
            Kind::Read => false,
            Kind::Discard | Kind::Flush | Kind::Extents | Kind::Settle => unreachable!("these move no data"),
        };
        let zeroes_hole = matches!(kind, Kind::WriteZeroes { may_unmap: true, .. })
            && self.volume_byte(piece) >= volume.origin_bytes();
        match volume.table.get(piece.block) {
            Lookup::NotLoaded => self.ask(op, Ask::Load(id, piece.block), out),
            Lookup::Hole if !writes => self.read_hole(op, piece, out),
            Lookup::Hole if zeroes_hole => self.finish(op, Ok(()), out), // it reads zeros as it is
            Lookup::Mapped(mapping) if !writes => {
                if let Some(seen) = self.look_closer(op, mapping.block) {
                    return self.read_parts(op, piece, seen, 0, out);
                }
                self.ops.get_mut(op).step =
                    Step::InPlace { block: mapping.block, moved_bytes: piece.length_bytes };
                out.push(Action::ReadData {
                    op: op_id(op),
                    disk_offset_bytes: self.disk_offset(mapping.block, piece.at_bytes),
                    length_bytes: piece.length_bytes,
                    into: Place::Request(tag, piece.request_bytes),
                });
            }
            Lookup::Mapped(mapping) if !volume.is_shared(mapping) => {
                self.write_own(op, piece, mapping.block, out);
            }
            Lookup::Hole | Lookup::Mapped(_) => self.ask(op, Ask::Fill(id, piece.block), out),
        }
    }

    /// Where a piece begins in its volume.
    fn volume_byte(&self, piece: Piece) -> u64 {
        piece.block.0 * self.block_size.bytes() + piece.at_bytes
    }

    /// Reads what shows where nothing is mapped: the external origin, if there is one, and zeros.
    fn read_hole(&mut self, op: usize, piece: Piece, out: &mut Vec<Action>) {
        let begin = self.volume_byte(piece);
        let request = &self.requests.get(self.ops.get(op).request).request;
        let tag = request.tag;
        let origin_bytes = request.volume.origin_bytes().saturating_sub(begin).min(piece.length_bytes);
        if origin_bytes < piece.length_bytes {
            out.push(Action::ZeroRequest {
                tag,
                offset_bytes: piece.request_bytes + origin_bytes,
                length_bytes: piece.length_bytes - origin_bytes,
            });
        }
        if origin_bytes == 0 {
            return self.finish(op, Ok(()), out);
        }
        self.ops.get_mut(op).step = Step::ReadingOrigin;
        self.read_origin(op, begin, origin_bytes, Place::Request(tag, piece.request_bytes), out);
    }

    fn read_origin(
        &self,
        op: usize,
        offset_bytes: u64,
        length_bytes: u64,
        into: Place,
        out: &mut Vec<Action>,
    ) {
        let origin = self.origin_of(op).expect("who is told to read an origin has one").clone();
        out.push(Action::ReadOrigin { op: op_id(op), origin, offset_bytes, length_bytes, into });
    }

    /// What shows through where a block is not, or a unit of one.
    fn origin_of(&self, op: usize) -> Option<&Origin> {
        let running = self.requests.get(self.ops.get(op).request);
        running.origin.as_ref().or_else(|| running.request.volume.origin())
    }

    /// How many of the bytes from byte `begin` of the volume on are in its external origin; zeros follow. `None`: it has none, and
    /// who was told that one shows does not know what it is.
    fn bytes_of_origin(&self, op: usize, begin: u64, length_bytes: u64) -> Option<u64> {
        self.origin_of(op).map(|origin| origin.size_bytes().saturating_sub(begin).min(length_bytes))
    }

    /// Writes the piece (zeros: the next chunk of it) where its block is. `moved_bytes` of it are there already.
    fn write_in_place(
        &mut self,
        op: usize,
        piece: Piece,
        block: DataBlock,
        moved_bytes: u64,
        out: &mut Vec<Action>,
    ) {
        let left = piece.length_bytes - moved_bytes;
        let (from, length_bytes) = match self.guest_bytes(op) {
            Some(tag) => (Place::Request(tag, piece.request_bytes + moved_bytes), left),
            None => (Place::Zeros, left.min(CHUNK_BYTES)),
        };
        self.ops.get_mut(op).step = Step::InPlace { block, moved_bytes: moved_bytes + length_bytes };
        out.push(Action::WriteData {
            op: op_id(op),
            disk_offset_bytes: self.disk_offset(block, piece.at_bytes + moved_bytes),
            length_bytes,
            from,
        });
    }

    /// Whose buffer a writing op takes its bytes from; `None`: they are zeros.
    fn guest_bytes(&self, op: usize) -> Option<Tag> {
        let request = &self.requests.get(self.ops.get(op).request).request;
        matches!(request.kind, Kind::Write { .. }).then_some(request.tag)
    }

    fn disk_offset(&self, block: DataBlock, at_bytes: u64) -> u64 {
        block.0 * self.block_size.bytes() + at_bytes
    }

    /// Describes the volume from `next_byte` on, as far as its map is loaded.
    fn describe(&mut self, op: usize, mut next_byte: u64, out: &mut Vec<Action>) {
        let size = self.block_size.bytes();
        let Running { request, extents, .. } = self.requests.get_mut(self.ops.get(op).request);
        let end = request.offset_bytes + request.length_bytes;
        let origin_end = request.volume.origin_bytes();
        while next_byte < end {
            let block = VirtualBlock(next_byte / size);
            let mut state_end = end.min((block.0 + 1) * size);
            let state = match request.volume.table.get(block) {
                Lookup::NotLoaded => {
                    let ask = Ask::Load(request.volume.id(), block);
                    self.ops.get_mut(op).work = Work::Describe { next_byte };
                    return self.ask(op, ask, out);
                }
                Lookup::Hole if next_byte < origin_end => {
                    state_end = state_end.min(origin_end);
                    ExtentState::Origin
                }
                Lookup::Hole => ExtentState::Hole,
                Lookup::Mapped(mapping) if request.volume.is_shared(mapping) => ExtentState::Shared,
                Lookup::Mapped(_) => ExtentState::Exclusive,
            };
            let length_bytes = state_end - next_byte;
            match extents.last_mut() {
                Some(last) if last.state == state => last.length_bytes += length_bytes,
                Some(_) | None => extents.push(Extent { length_bytes, state }),
            }
            next_byte += length_bytes;
        }
        out.push(Action::Extents { tag: request.tag, extents: std::mem::take(extents) });
        self.finish(op, Ok(()), out);
    }

    /// The keeper's answer to an `Ask` of `op`.
    pub fn reply(&mut self, op: OpId, reply: Reply, out: &mut Vec<Action>) {
        let op = op.0 as usize;
        let Op { work, step, epoch, .. } = *self.ops.get(op);
        match (step, reply) {
            (Step::Asked, Reply::Again | Reply::NoSpaceNow) if self.has_hung_up && self.changes(op) => {
                self.finish(op, Err(IoError::Gone), out);
            }
            (Step::Asked, Reply::Again) if epoch.is_none() => self.start(op, out), // was parked
            (Step::Asked, Reply::Again) => self.advance(op, out),
            (Step::Asked, Reply::Fill { target, source }) => {
                let Work::Move(piece) = work else { unreachable!("only moves ask for fills") };
                // Without zeroing, the guest's bytes are all that is written.
                let (written_bytes, end_bytes) = match source {
                    FillSource::Nothing => (piece.at_bytes, piece.end_bytes()),
                    FillSource::Zeros | FillSource::Block(_) | FillSource::Origin => {
                        (0, self.block_size.bytes())
                    }
                };
                let above = match source {
                    FillSource::Block(block) => self.look_closer(op, block),
                    FillSource::Zeros | FillSource::Origin | FillSource::Nothing => None,
                };
                let ending = Ending::Publish;
                self.fill(op, piece, Fill { target, source, above, written_bytes, end_bytes, ending }, out);
            }
            (Step::Asked, Reply::FillPart { target, source }) => {
                let Work::Move(piece) = work else { unreachable!("only moves ask for fills") };
                self.fill_part(op, piece, (target, source), out);
            }
            (Step::Asked, Reply::Settle { block, origin }) => self.settle(op, block, origin, out),
            (Step::Asked, Reply::NoSpaceNow) => {
                self.leave_epoch(op);
                let volume = self.volume_of(op).id();
                self.ask(op, Ask::AwaitSpace(volume), out);
            }
            (Step::Asked | Step::Publishing, Reply::Done) => self.finish(op, Ok(()), out),
            (Step::Putting { .. }, Reply::Done) => {
                out.push(Action::DropScratch { op: op_id(op) });
                self.finish(op, Ok(()), out);
            }
            (Step::Putting { fill, units }, Reply::Failed(error)) => {
                self.give_units_back(op, fill, units, Err(error), out);
            }
            (Step::Abandoning(error), Reply::Done | Reply::Failed(_)) => self.finish(op, Err(error), out),
            (Step::Asked | Step::Publishing, Reply::Failed(error)) => self.finish(op, Err(error), out),
            (
                Step::ReadingOrigin
                | Step::InPlace { .. }
                | Step::ReadingParts { .. }
                | Step::Reading { .. }
                | Step::Writing { .. }
                | Step::Publishing
                | Step::Putting { .. }
                | Step::Abandoning(_),
                reply,
            ) => unreachable!("the keeper answered {reply:?} to nothing"),
        }
    }

    /// A read or write of `op` has ended. Exactly one call for each `ReadData` and `WriteData`.
    pub fn io_done(&mut self, op: OpId, result: Result<(), IoError>, out: &mut Vec<Action>) {
        let op = op.0 as usize;
        let Op { work, step, .. } = *self.ops.get(op);
        let Work::Move(piece) = work else { unreachable!("only moves do data I/O") };
        match (step, result) {
            (Step::ReadingOrigin, result) => self.finish(op, result, out),
            (Step::InPlace { .. } | Step::ReadingParts { .. }, Err(error)) => {
                self.finish(op, Err(error), out)
            }
            (Step::ReadingParts { seen, done_bytes }, Ok(())) => {
                self.read_parts(op, piece, seen, done_bytes, out)
            }
            (Step::InPlace { moved_bytes, .. }, Ok(())) if moved_bytes == piece.length_bytes => {
                self.finish(op, Ok(()), out)
            }
            (Step::InPlace { block, moved_bytes }, Ok(())) => {
                self.write_in_place(op, piece, block, moved_bytes, out)
            }
            (
                Step::Reading { fill: fill @ Fill { ending: Ending::Put(units), .. }, .. }
                | Step::Writing { fill: fill @ Fill { ending: Ending::Put(units), .. } },
                Err(_),
            ) if self.settles(op) => self.leave_unsettled(op, fill, units, out),
            (Step::Reading { fill, .. } | Step::Writing { fill }, Err(error)) => {
                self.give_fill_up(op, piece, fill, error, out);
            }
            (Step::Reading { fill, chunk_bytes }, Ok(())) => {
                self.write_chunk(op, piece, fill, chunk_bytes, out)
            }
            (Step::Writing { fill }, Ok(())) => self.fill(op, piece, fill, out),
            (
                Step::Asked | Step::Publishing | Step::Putting { .. } | Step::Abandoning(_),
                Ok(()) | Err(_),
            ) => {
                unreachable!("an I/O ended that nobody began")
            }
        }
    }

    fn volume_of(&self, op: usize) -> &Volume {
        &self.requests.get(self.ops.get(op).request).request.volume
    }

    /// A fill cannot be done.
    fn give_fill_up(&mut self, op: usize, piece: Piece, fill: Fill, error: IoError, out: &mut Vec<Action>) {
        if let Ending::Put(units) = fill.ending {
            return self.give_units_back(op, fill, units, Err(error), out);
        }
        self.ops.get_mut(op).step = Step::Abandoning(error);
        let ask = Ask::Abandon(self.volume_of(op).id(), piece.block, fill.target);
        out.push(Action::Ask { op: op_id(op), ask });
    }

    /// Goes on with a fill from `fill.written_bytes` on.
    fn fill(&mut self, op: usize, piece: Piece, fill: Fill, out: &mut Vec<Action>) {
        let guest = self.guest_bytes(op);
        if fill.written_bytes == fill.end_bytes {
            let (volume, block, target) = (self.volume_of(op).id(), piece.block, fill.target);
            let ask = match fill.ending {
                Ending::Publish => Ask::Publish(volume, block, target),
                Ending::PublishPart(units) => Ask::PublishPart(volume, block, target, units),
                Ending::Put(units) => return self.put_units(op, fill, units, out),
            };
            self.ops.get_mut(op).step = Step::Publishing;
            return out.push(Action::Ask { op: op_id(op), ask });
        }
        let (source, source_end) = match fill.above {
            Some(seen) => seen.source_at(self.block_size, fill.written_bytes),
            None => (fill.source, u64::MAX),
        };
        match (next_fill_step(piece, &fill, source_end, guest.is_some()), source) {
            (FillStep::Guest { length_bytes }, _) => {
                let at = piece.request_bytes + fill.written_bytes - piece.at_bytes;
                let from = guest.map_or(Place::Zeros, |tag| Place::Request(tag, at));
                self.write_fill(op, fill, length_bytes, from, out);
            }
            (FillStep::Chunk { length_bytes, .. }, FillSource::Block(block)) => {
                self.ops.get_mut(op).step = Step::Reading { fill, chunk_bytes: length_bytes };
                out.push(Action::ReadData {
                    op: op_id(op),
                    disk_offset_bytes: self.disk_offset(block, fill.written_bytes),
                    length_bytes,
                    into: Place::Scratch(op_id(op)),
                });
            }
            (FillStep::Chunk { length_bytes, patched }, FillSource::Origin) => {
                let begin = piece.block.0 * self.block_size.bytes() + fill.written_bytes;
                let Some(origin_bytes) = self.bytes_of_origin(op, begin, length_bytes) else {
                    return self.give_fill_up(op, piece, fill, IoError::Io, out);
                };
                if origin_bytes == 0 {
                    return self.fill_with_zeros(op, piece, fill, length_bytes, patched, out);
                }
                if origin_bytes < length_bytes {
                    out.push(Action::ZeroScratch { op: op_id(op), length_bytes });
                }
                self.ops.get_mut(op).step = Step::Reading { fill, chunk_bytes: length_bytes };
                self.read_origin(op, begin, origin_bytes, Place::Scratch(op_id(op)), out);
            }
            (FillStep::Chunk { length_bytes, patched }, FillSource::Zeros | FillSource::Nothing) => {
                self.fill_with_zeros(op, piece, fill, length_bytes, patched, out);
            }
        }
    }

    /// Writes a chunk of a fresh block: zeros, with the guest's bytes in it if it is `patched`.
    fn fill_with_zeros(
        &mut self,
        op: usize,
        piece: Piece,
        fill: Fill,
        length_bytes: u64,
        patched: bool,
        out: &mut Vec<Action>,
    ) {
        if !patched || self.guest_bytes(op).is_none() {
            return self.write_fill(op, fill, length_bytes, Place::Zeros, out);
        }
        out.push(Action::ZeroScratch { op: op_id(op), length_bytes });
        self.write_chunk(op, piece, fill, length_bytes, out);
    }

    /// Patches the guest's bytes into the filler in the scratch buffer and writes that.
    fn write_chunk(&mut self, op: usize, piece: Piece, fill: Fill, length_bytes: u64, out: &mut Vec<Action>) {
        let begin = fill.written_bytes.max(piece.at_bytes);
        let end = (fill.written_bytes + length_bytes).min(piece.end_bytes());
        if begin < end {
            let at = piece.request_bytes + begin - piece.at_bytes;
            out.push(Action::PatchScratch {
                op: op_id(op),
                at_bytes: begin - fill.written_bytes,
                length_bytes: end - begin,
                from: self.guest_bytes(op).map_or(Place::Zeros, |tag| Place::Request(tag, at)),
            });
        }
        self.write_fill(op, fill, length_bytes, Place::Scratch(op_id(op)), out);
    }

    fn write_fill(
        &mut self,
        op: usize,
        mut fill: Fill,
        length_bytes: u64,
        from: Place,
        out: &mut Vec<Action>,
    ) {
        let disk_offset_bytes = self.disk_offset(fill.target, fill.written_bytes);
        fill.written_bytes += length_bytes;
        self.ops.get_mut(op).step = Step::Writing { fill };
        out.push(Action::WriteData { op: op_id(op), disk_offset_bytes, length_bytes, from });
    }

    /// Ends an op.
    fn finish(&mut self, op: usize, result: Result<(), IoError>, out: &mut Vec<Action>) {
        self.leave_epoch(op);
        if let Work::Move(_) = self.ops.get(op).work {
            match self.ops.get(op).step {
                Step::Publishing | Step::Abandoning(_) => out.push(Action::DropScratch { op: op_id(op) }),
                Step::Asked
                | Step::ReadingOrigin
                | Step::InPlace { .. }
                | Step::ReadingParts { .. }
                | Step::Reading { .. }
                | Step::Writing { .. }
                | Step::Putting { .. } => {}
            }
        }
        let request = self.ops.remove(op).request;
        self.op_finished(request, result, out);
    }

    /// Counts a finished op; after a request's last one comes the flush of a forced write, and then its completion.
    fn op_finished(&mut self, request: usize, result: Result<(), IoError>, out: &mut Vec<Action>) {
        let running = self.requests.get_mut(request);
        running.ops_left -= 1;
        running.result = running.result.and(result);
        if running.ops_left > 0 {
            return;
        }
        if running.result.is_ok() && takes_force(&mut running.request.kind) {
            return self.begin_op(request, Work::Flush, out);
        }
        let Running { request, result, .. } = self.requests.remove(request);
        out.push(Action::Complete { tag: request.tag, result });
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        assert!(self.is_idle() || std::thread::panicking(), "a lane was dropped with requests in flight");
    }
}

fn op_id(op: usize) -> OpId {
    OpId(op as u64)
}

/// Whether a request that has moved its data must still be flushed; says so once.
fn takes_force(kind: &mut Kind) -> bool {
    match kind {
        Kind::Write { fua } | Kind::WriteZeroes { fua, .. } => std::mem::take(fua),
        Kind::Read | Kind::Discard | Kind::Flush | Kind::Extents | Kind::Settle => false,
    }
}

/// What to write next of a block on its way; what is there to fill it with ends at `source_end`. The guest's bytes go straight
/// from the request where nothing need be read for them: up to the fill's end, or for at least a chunk.
fn next_fill_step(piece: Piece, fill: &Fill, source_end: u64, has_buffer: bool) -> FillStep {
    let Fill { written_bytes, end_bytes, .. } = *fill;
    let inside_guest = (piece.at_bytes..piece.end_bytes()).contains(&written_bytes);
    let guest_left = piece.end_bytes().saturating_sub(written_bytes);
    if inside_guest && (piece.end_bytes() == end_bytes || guest_left >= CHUNK_BYTES) {
        let length_bytes = if has_buffer { guest_left } else { guest_left.min(CHUNK_BYTES) };
        return FillStep::Guest { length_bytes };
    }
    let length_bytes = CHUNK_BYTES.min(end_bytes.min(source_end) - written_bytes);
    let patched = written_bytes < piece.end_bytes() && piece.at_bytes < written_bytes + length_bytes;
    FillStep::Chunk { length_bytes, patched }
}

/// Values under small stable numbers, without an allocation once it has grown.
struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    fn new() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
    fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(value);
                index
            }
            None => {
                self.slots.push(Some(value));
                self.slots.len() - 1
            }
        }
    }
    fn get(&self, index: usize) -> &T {
        self.slots[index].as_ref().expect("the slot is taken")
    }
    fn get_mut(&mut self, index: usize) -> &mut T {
        self.slots[index].as_mut().expect("the slot is taken")
    }
    fn remove(&mut self, index: usize) -> T {
        self.free.push(index);
        self.slots[index].take().expect("the slot is taken")
    }
    fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
