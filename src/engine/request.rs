//! What frontends, lanes, drivers and the keeper say to each other.

use super::origin::Origin;
use super::volume::Volume;
use crate::units::{DataBlock, VirtualBlock, VolumeId};
use std::ops::Range;
use std::sync::Arc;

/// A frontend's name for a request; unique among those in flight on one lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Tag(pub u64);

/// A lane's name for one step-by-step piece of work (a request's part inside one block).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Fill the request's buffer.
    Read,
    /// Write the request's buffer; with `fua`, complete only when it is durable.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Unmap the blocks that lie wholly inside the range; the rest is left alone. They read zeros, or the volume's
    /// external origin.
    Discard,
    /// Make the range read zeros.
    WriteZeroes {
        /// Force unit access.
        fua: bool,
        /// Whole blocks may be unmapped, unless an external origin would show; else every block of the range is mapped
        /// afterwards.
        may_unmap: bool,
    },
    /// Every write that was acknowledged before this began is durable when it completes.
    Flush,
    /// Tell what the range is made of; the answer is [`Action::Extents`].
    Extents,
    /// Make partial blocks whole, a stretch of one if there is one to be settled now. Of no bytes, and of the volume that
    /// [`Keeper::settling`](super::Keeper::settling) has for it.
    Settle,
}

/// A request of any length inside one volume. Offset and length are multiples of 512 and inside the volume (the frontend
/// has checked); both are 0 for a flush. A buffer of `length_bytes` goes with a read or write; the driver keeps it by tag.
#[derive(Clone)]
pub struct Request {
    /// The frontend's name for it.
    pub tag: Tag,
    /// The volume, open.
    pub volume: Arc<Volume>,
    /// What to do.
    pub kind: Kind,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub length_bytes: u64,
}

/// Why a request failed, as block protocols tell it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoError {
    /// No space: ENOSPC.
    NoSpace,
    /// A device failed, or the pool takes no changes any more: EIO.
    Io,
    /// The volume is being deleted, or the pool closed: ESHUTDOWN.
    Gone,
}

/// A place that data moves to or from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// The request's own buffer, from this byte on.
    Request(Tag, u64),
    /// The op's scratch buffer, [`CHUNK_BYTES`] long, from its first byte. It comes into being, with any content, at
    /// its first mention and goes with [`Action::DropScratch`].
    Scratch(OpId),
    /// Zeros (as a source only).
    Zeros,
}

/// The most bytes that move through a scratch buffer or out of [`Place::Zeros`] in one action.
pub const CHUNK_BYTES: u64 = 256 * 1024;

/// What a lane wants done. Actions of one batch take effect in order as far as they touch the same buffer: `ZeroScratch`
/// and `PatchScratch` are done at once by the driver, reads and writes are started and answered by `Lane::io_done`.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Read from the data disk; answered by `Lane::io_done(op, …)`. `into` is not `Zeros`.
    ReadData {
        /// Whose.
        op: OpId,
        /// Byte on the data disk.
        disk_offset_bytes: u64,
        /// Number of bytes.
        length_bytes: u64,
        /// Where to.
        into: Place,
    },
    /// Read from a volume's external origin; answered by `Lane::io_done(op, …)`. `into` is not `Zeros`.
    ReadOrigin {
        /// Whose.
        op: OpId,
        /// What to read from.
        origin: Origin,
        /// Byte in it. All that is asked for lies before its end.
        offset_bytes: u64,
        /// Number of bytes.
        length_bytes: u64,
        /// Where to.
        into: Place,
    },
    /// Write to the data disk; answered by `Lane::io_done(op, …)`.
    WriteData {
        /// Whose.
        op: OpId,
        /// Byte on the data disk.
        disk_offset_bytes: u64,
        /// Number of bytes.
        length_bytes: u64,
        /// Where from.
        from: Place,
    },
    /// Zero a part of a read request's buffer, now.
    ZeroRequest {
        /// Whose.
        tag: Tag,
        /// First byte in the buffer.
        offset_bytes: u64,
        /// Number of bytes.
        length_bytes: u64,
    },
    /// Zero the first bytes of the op's scratch buffer, now.
    ZeroScratch {
        /// Whose.
        op: OpId,
        /// Number of bytes.
        length_bytes: u64,
    },
    /// Copy from the request's buffer (or zeros) into the op's scratch buffer, now.
    PatchScratch {
        /// Whose.
        op: OpId,
        /// First byte in the scratch buffer.
        at_bytes: u64,
        /// Number of bytes.
        length_bytes: u64,
        /// `Request` or `Zeros`.
        from: Place,
    },
    /// The op is through with its scratch buffer, if it had one.
    DropScratch {
        /// Whose.
        op: OpId,
    },
    /// Put a question to the keeper; answered by `Lane::reply(op, …)`.
    Ask {
        /// Whose.
        op: OpId,
        /// What.
        ask: Ask,
    },
    /// Tell the keeper [`Ask::GiveUp`], which is no question of its own.
    GiveUp {
        /// Whose question is taken back.
        op: OpId,
    },
    /// The answer to [`Kind::Extents`]; comes right before its `Complete`.
    Extents {
        /// Whose.
        tag: Tag,
        /// Neighbours differ in state; lengths add up to the request's.
        extents: Vec<Extent>,
    },
    /// The request is finished; its tag and buffer are the frontend's again.
    Complete {
        /// Whose.
        tag: Tag,
        /// How it went.
        result: Result<(), IoError>,
    },
}

/// A stretch of a volume in one state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// Length in bytes.
    pub length_bytes: u64,
    /// Its state.
    pub state: ExtentState,
}

/// What a stretch of a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExtentState {
    /// Unmapped: reads zeros, a write needs space.
    Hole,
    /// Unmapped: reads the external origin, a write needs space.
    Origin,
    /// Mapped, seen by this volume only: a write goes in place.
    Exclusive,
    /// Mapped and perhaps shared with other volumes: a write needs space.
    Shared,
}

/// What a lane asks of the keeper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Nobody waits for this op any more: if it waits for space, or for its volume to be thawed, answer it with `Failed`. Has no
    /// answer of its own.
    GiveUp,
    /// Load the map page that holds this block. Answer: `Again`.
    Load(VolumeId, VirtualBlock),
    /// A data block to put this block's next contents in. Answer: `Fill` or `FillPart`, `Again` if somebody else did it meanwhile, or
    /// `NoSpaceNow`.
    Fill(VolumeId, VirtualBlock),
    /// The fill is written: map it. Answer: `Done`.
    Publish(VolumeId, VirtualBlock, DataBlock),
    /// The fill has written these units and no others, after `FillPart`: map it as a partial block. Answer: `Done`.
    PublishPart(VolumeId, VirtualBlock, DataBlock, u64),
    /// The fill failed: forget it. Answer: `Done`.
    Abandon(VolumeId, VirtualBlock, DataBlock),
    /// Unmap these blocks, on behalf of somebody for whom the volume ends at this byte, or behind them: if it has become larger since, a
    /// block in which he saw its end stays. Answer: `Done`.
    Unmap(VolumeId, Range<u64>, u64),
    /// These units of a partial block are written, and the pool keeps a journal: say that they are there. Answer: `Done`.
    PutUnits(DataBlock, u64),
    /// Wait until nobody else is writing these units of a partial block. Answer: `Again`.
    AwaitUnits(DataBlock, u64),
    /// A partial block to make whole. Answer: `Settle`, or `Done` when there is none that has to be now.
    Settle,
    /// Make everything acknowledged durable. Answer: `Done`.
    Flush,
    /// Wait until the volume is not frozen. Answer: `Again`.
    Thaw(VolumeId),
    /// After `NoSpaceNow`, and holding no epoch: wait until there may be space for this volume. Answer: `Again`, or
    /// `Failed(NoSpace)` when there is nothing left to wait for.
    AwaitSpace(VolumeId),
}

/// What the rest of a fresh block is filled with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FillSource {
    /// Zeros.
    Zeros,
    /// The old, shared block's bytes.
    Block(DataBlock),
    /// The bytes of the volume's external origin, and zeros past its end.
    Origin,
    /// Nothing: the pool does not zero fresh blocks.
    Nothing,
}

/// The keeper's answer to a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Look at the map again.
    Again,
    /// Write the block's whole new contents to `target`, then publish.
    Fill {
        /// A data block reserved for this.
        target: DataBlock,
        /// What the bytes are that the request does not write.
        source: FillSource,
    },
    /// As `Fill`, but the units that the request touches will do, after `PublishPart`; all of them, and `Publish`, will too.
    FillPart {
        /// A data block reserved for this.
        target: DataBlock,
        /// Where the other units are: zeros, the volume's external origin, or a block that is not partial itself.
        source: FillSource,
    },
    /// Make units of a partial block whole that are not there.
    Settle {
        /// The block.
        block: DataBlock,
        /// The external origin that its other units are in, if they are in one.
        origin: Option<Origin>,
    },
    /// There is no block for the fill; let go of the epoch and ask `AwaitSpace`.
    NoSpaceNow,
    /// Done.
    Done,
    /// Cannot be done.
    Failed(IoError),
}

/// Who asked the keeper.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Asker {
    /// An op of a lane.
    Lane(LaneId, OpId),
    /// A command of the control plane, by the number that its sender gave it.
    Command(u64),
}

/// A lane's seat in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LaneId(pub u16);
