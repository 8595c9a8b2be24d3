//! What the control plane asks of the keeper, and what it is told.

use super::origin::Origin;
use crate::error::Error;
use crate::metadata::{Usage, VolumeDetails};
use crate::units::{BlockSize, SnapTime, TransactionId, VirtualBlock, VolumeId};
use std::ops::Range;

/// A step of the transaction id that is committed together with a command's change, or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdStep {
    /// What the id must be now.
    pub from: TransactionId,
    /// What it will be.
    pub to: TransactionId,
}

/// What becomes of a write that needs a block when none is free and none can be hoped for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// "No space" at once: dm-thin's `error_if_no_space`.
    #[default]
    Error,
    /// It waits for so many seconds (0: without end), in case the pool grows or something is deleted; then "no space" for
    /// it, and for all that come until there is some: dm-thin's `queue_if_no_space` with its timeout.
    Queue(u32),
}

/// What becomes of discards and of the space of freed blocks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Discards unmap, and the space of freed blocks is given back to the filesystem or device that holds the data.
    #[default]
    Passdown,
    /// Discards unmap; freed blocks keep their space there.
    NoPassdown,
    /// Discards do nothing, and freed blocks keep their space: dm-thin's `ignore_discard`.
    Ignore,
}

impl Discard {
    /// Whether freed blocks are given back.
    pub fn passes_down(self) -> bool {
        match self {
            Discard::Passdown => true,
            Discard::NoPassdown | Discard::Ignore => false,
        }
    }

    /// Whether discards do nothing.
    pub fn ignores(self) -> bool {
        match self {
            Discard::Ignore => true,
            Discard::Passdown | Discard::NoPassdown => false,
        }
    }
}

/// What the first write to a shared block, or to a fresh one that is zeroed, does with the rest of the block.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmallWrites {
    /// It is copied, or zeroed, at once: dm-thin's way.
    #[default]
    Copy,
    /// It is left where it is, and the block becomes a partial one: 4 KiB written are 4 KiB. Until all such blocks are settled,
    /// the pool is none that dm-thin knows.
    Partial,
}

/// Whether a pool keeps a journal while it is served.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// A flush is a metadata transaction, and the death of the process loses what nobody has flushed: dm-thin's way.
    #[default]
    None,
    /// In a file beside the metadata. While the pool is served, and after its death until it is opened again, the pool is none
    /// that dm-thin knows.
    File,
}

/// How a running pool is to behave from now on; `None` leaves a thing as it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Behaviour {
    /// What becomes of discards that begin from now on, and of blocks freed from now on.
    pub discard: Option<Discard>,
    /// Whether the rest of a fresh block that a write does not cover is zeroed.
    pub zero_new_blocks: Option<bool>,
    /// What becomes of the rest of a block with the first write to it.
    pub small_writes: Option<SmallWrites>,
    /// What a full pool does, also with what waits already.
    pub when_full: Option<WhenFull>,
}

/// A command of the control plane. Every change is durable when its answer arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Add an empty volume. Answer: `Done`.
    CreateVolume {
        /// Its number, not in use.
        volume: VolumeId,
        /// Its size, a multiple of 512.
        size_bytes: u64,
        /// What shows where it has no block; `None`: zeros. Its snapshots have the same.
        origin: Option<Origin>,
        /// The id's step.
        step: IdStep,
    },
    /// Snapshot one or several volumes at one moment: no write is in one snapshot and missing in another that was
    /// acknowledged before it. Answer: `Done`.
    Snapshot {
        /// Origin and snapshot, each.
        pairs: Vec<(VolumeId, VolumeId)>,
        /// The id's step.
        step: IdStep,
    },
    /// Give a volume the contents that another has at this moment, and what it held until then to a new volume: the way
    /// there and back. Its changes wait meanwhile; the two share from then on. Answer: `Done`.
    RollBack {
        /// The volume that changes.
        volume: VolumeId,
        /// The volume, a snapshot mostly, whose contents it gets; no larger than it, and with the same external origin.
        to: VolumeId,
        /// A number not in use, for what it held.
        keep: VolumeId,
        /// The id's step.
        step: IdStep,
    },
    /// Change a volume's size; nothing of it is in the metadata. Smaller only when no client has it open (`Busy`) and no
    /// block past the new end is mapped (`WrongState`, with the end of what is). Answer: `Done`. What is cut off inside a block
    /// stays in it, and is there again when the volume becomes larger.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// Its new size, a multiple of 512.
        size_bytes: u64,
    },
    /// Put an external origin behind a volume in place of the one that it has, or that could not be had; which, is not in
    /// the metadata. `Busy` while a client has it open; `WrongState` if nothing there says either that it has one. Answer: `Done`.
    SetOrigin {
        /// The volume.
        volume: VolumeId,
        /// With the same contents.
        origin: Origin,
    },
    /// Unmap whole blocks of a volume, like a client's discard. Answer: `Done`.
    Unmap {
        /// The volume.
        volume: VolumeId,
        /// Virtual blocks.
        blocks: Range<u64>,
    },
    /// Delete a volume. `Busy` while a client has it open. Answer: `Deleting`.
    Delete {
        /// The volume.
        volume: VolumeId,
        /// The id's step; `None` to go on with a deletion that an earlier run began.
        step: Option<IdStep>,
    },
    /// Make the pool larger while it works. A file is extended, a device has grown already. `Invalid` for less than there
    /// is, `Io` when the disk is not that large. Answer: `Done`.
    Grow {
        /// Bytes for data in all (what is no whole block at the end stays unused); `None`: all that the disk has.
        data_bytes: Option<u64>,
        /// Bytes for metadata in all; `None`: all that the disk has.
        metadata_bytes: Option<u64>,
    },
    /// Behave so from now on. Answer: `Done`.
    Configure(Behaviour),
    /// What a full pool does with writes of this volume from now on, also with those that wait; `None`: as with the
    /// pool's. Answer: `Done`.
    ConfigureVolume {
        /// The volume.
        volume: VolumeId,
        /// Its own policy.
        when_full: Option<WhenFull>,
    },
    /// Change nothing but the transaction id. `WrongState` when it is not what the caller believes. Answer: `Done`.
    SetTransactionId(IdStep),
    /// Keep the metadata as it is now for readers beside the pool: dm-thin's metadata snapshot. `Exists` when one is held.
    /// Answer: `Done`; [`PoolStatus::held_root`] says where it is.
    HoldMetadata,
    /// Let it go. `NotFound` when none is held. Answer: `Done`.
    ReleaseMetadata,
    /// Make all partial blocks whole, as fast as it goes, and no new ones; `false`: no longer. Answer: `Settling`, at once;
    /// [`PoolStatus::partial_blocks`] tells how it gets on.
    Settle(bool),
    /// Answer: `Status`.
    Status,
    /// Answer: `Volumes`.
    Volumes,
    /// Count in the background what volumes share, if what is known of it is not of this moment; [`Command::Volumes`] tells
    /// the result. Answer: `Counting`, at once.
    CountShared,
    /// Commit now. Answer: `Done`.
    Commit,
    /// Finish: waits for running requests, commits, and refuses everything from then on. Answer: `Done`.
    Close,
}

/// The answer to a [`Command`].
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// Done, durably.
    Done,
    /// The volume is gone for everybody; `finished` tells whether its blocks are free already or are being freed in the
    /// background ([`PoolStatus::deleting`] lists those).
    Deleting {
        /// Whether nothing is left to do.
        finished: bool,
    },
    /// See [`Command::Status`].
    Status(Box<PoolStatus>),
    /// See [`Command::Volumes`]; in order of ids, those being deleted left out.
    Volumes(Vec<VolumeInfo>),
    /// See [`Command::CountShared`]: whether a count is under way. If not, what is known is of this moment, or it is too soon
    /// after a long count for another one.
    Counting(bool),
    /// See [`Command::Settle`].
    Settling(Settling),
}

/// How making all partial blocks whole gets on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settling {
    /// There is something to be done, or a deletion that takes some of them along.
    GetsOn,
    /// Those that are left after a commit cannot be made whole, because the external origin that shows in them cannot be had, or
    /// nothing tells which it is. A volume that maps one of them; `None`: none does.
    Stuck(Option<VolumeId>),
    /// Those that are left cannot be made whole, because their bases could not be read, or they could not be written.
    Failing,
}

/// The state a pool is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Everything works.
    Write,
    /// No free data block is left; reads, overwrites, discards and deletions work.
    OutOfDataSpace,
    /// Nothing can be changed, because of this: the metadata asked for a check when the pool was opened, or something has
    /// failed since. What is mapped can be read.
    ReadOnly(Error),
    /// Failed stop, because of this: what is durable is not known.
    Failed(Error),
}

/// The pool as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolStatus {
    /// What works.
    pub mode: Mode,
    /// Whether the metadata carries the flag by which a checker must look at it before it is changed.
    pub needs_check: bool,
    /// The transaction id.
    pub transaction_id: TransactionId,
    /// The snapshot clock.
    pub time: SnapTime,
    /// Size of a data block.
    pub block_size: BlockSize,
    /// How full it is.
    pub usage: Usage,
    /// Whether something was refused for lack of metadata space, and there has not been more since. Some may be free: what
    /// is refused is what might need more than that.
    pub out_of_metadata_space: bool,
    /// For who looks from time to time: how often it was full.
    pub times_full: TimesFull,
    /// The metadata snapshot's block, if one is held.
    pub held_root: Option<u64>,
    /// What becomes of discards and freed blocks.
    pub discard: Discard,
    /// Free blocks whose space the data disk still has, until there is time to tell it.
    pub to_give_back: u64,
    /// Whether fresh blocks are zeroed.
    pub zero_new_blocks: bool,
    /// What becomes of the rest of a block with the first write to it.
    pub small_writes: SmallWrites,
    /// Blocks of which only a part is there.
    pub partial_blocks: u64,
    /// What becomes of writes that need a block when there is none.
    pub when_full: WhenFull,
    /// Whether requests have waited for as long as `when_full` says, so that those that come now do not wait.
    pub queue_expired: bool,
    /// Requests that wait for one now.
    pub waiting_for_space: usize,
    /// Number of volumes, those being deleted left out.
    pub volumes: usize,
    /// Volumes being deleted in the background.
    pub deleting: Vec<VolumeId>,
    /// Counts of what volumes share that came to their end ([`Command::CountShared`]).
    pub counts: u64,
    /// Bytes of map tables in memory.
    pub map_bytes: u64,
    /// Whether changes are recorded in a journal.
    pub journal: JournalStatus,
    /// Files that are there only as long as the pool has them open.
    pub removed: Removed,
}

/// Which of a pool's files have lost their names: somebody has removed them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// The metadata.
    pub metadata: bool,
    /// The data.
    pub data: bool,
}

/// What a pool has of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum JournalStatus {
    /// None: changes are durable with a commit, and the death of the process loses those since the last.
    #[default]
    Off,
    /// Changes since the last commit are in it.
    On {
        /// What they take.
        used_bytes: u64,
        /// What they may take.
        total_bytes: u64,
    },
    /// The pool was not closed, and what its journal holds is not brought in yet.
    Pending,
    /// The pool was not closed, and its journal is not where it should be.
    Missing,
    /// None any more: it could not be written.
    Failed,
}

/// How often something was refused for lack of space after there had been some, since the pool was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimesFull {
    /// Writes that need a data block.
    pub data: u64,
    /// Whatever needs metadata.
    pub metadata: u64,
}

/// One volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Its number.
    pub id: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// As the metadata has it.
    pub details: VolumeDetails,
    /// Its highest mapped block.
    pub highest_mapped: Option<VirtualBlock>,
    /// Number of clients that have it open.
    pub openers: u32,
    /// Its external origin cannot be had.
    pub lacks_origin: bool,
    /// What becomes of its writes on a full pool, if that is not what becomes of all.
    pub when_full: Option<WhenFull>,
    /// Whether its requests have waited for as long as they may, so that those that come now do not wait.
    pub queue_expired: bool,
    /// Its requests that wait for a free block now.
    pub waiting_for_space: usize,
    /// What of it is shared, as last counted ([`Command::CountShared`]); `None` before that.
    pub sharing: Option<SharingInfo>,
}

/// What of a volume is shared, at one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharingInfo {
    /// Data blocks that it mapped.
    pub mapped_blocks: u64,
    /// Of these, those that its deletion would have freed.
    pub exclusive_blocks: u64,
    /// How long ago that was.
    pub age_seconds: u64,
    /// Whether nothing at all has changed in the pool since: then it is so now.
    pub is_current: bool,
}
