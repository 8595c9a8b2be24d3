//! The persistent map: which data block holds which block of which volume, and how often each block is referenced.
//!
//! Blocking, with a single owner (`&mut self`): no threads, no volumes in use, no data I/O. A transaction builds the next
//! state in free metadata blocks (shadowing) and [`Metadata::commit`] makes it the durable one by overwriting the
//! superblock. What must hold:
//!
//! - A metadata block reachable from the last durable superblock is never overwritten.
//! - A data block is handed out by [`Metadata::reserve_block`] only if its count is 0 now and was 0 at the last commit,
//!   and, if a commit freed it, only after [`Metadata::make_reusable`].
//! - An operation that was accepted cannot run out of metadata space half-way: every method checks its worst case,
//!   with that of the commit after it, before it changes anything, and answers `NoMetadataSpace` instead.
//! - After any other error in a changing method the in-core state is not to be trusted: only [`Metadata::abort`] leads on.

use crate::disk::{DataFlushed, Disk};
use crate::error::Result;
use crate::units::{BlockSize, DataBlock, Mapping, SnapTime, TransactionId, VirtualBlock, VolumeId};
use std::ops::Range;

/// The sizes that a pool is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size of a data block.
    pub block_size: BlockSize,
    /// Data blocks in the pool, below [`DataBlock::LIMIT`].
    pub data_blocks: u64,
}

/// Whether metadata is opened to be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// No method that changes anything may be called. Opens metadata with `needs_check` too.
    ReadOnly,
    /// For serving.
    ReadWrite,
}

/// What the details tree holds of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeDetails {
    /// Mappings in the volume's tree, pending ones included.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: TransactionId,
    /// The pool's time when it was created.
    pub creation_time: SnapTime,
    /// The pool's time of the last snapshot it took part in.
    pub snapshotted_time: SnapTime,
}

/// How full the pool is, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Metadata blocks in all, as the space map has it.
    pub metadata_total: u64,
    /// Metadata blocks with a count above 0 (without the reserve).
    pub metadata_allocated: u64,
    /// Metadata blocks kept back for deletions and commits: min(4096, total / 10).
    pub metadata_reserve: u64,
    /// Data blocks in all.
    pub data_total: u64,
    /// Data blocks with a count above 0, pending mappings included, mere reservations not.
    pub data_allocated: u64,
}

/// Data blocks that nothing references any more, durably. They stay withheld until [`Metadata::make_reusable`].
pub type Freed = Vec<Range<u64>>;

/// Whether an operation done in steps has come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress<T> {
    /// Finished.
    Done,
    /// Call again to go on (from `T`).
    More(T),
}

/// The metadata of one pool.
pub struct Metadata<D: Disk> {
    disk: D,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl<D: Disk> Metadata<D> {
    /// Writes an empty pool over whatever `disk` holds, commits it, and opens it.
    /// `Invalid` when the disk is too small for the geometry, with the size that it would take.
    pub fn format(disk: D, geometry: Geometry) -> Result<Self> {
        todo!()
    }

    /// Opens the last committed state.
    ///
    /// `Corrupt` (magic, checksum, block number, with what was expected), `Unsupported` (version, feature words),
    /// `NeedsCheck` (for [`Access::ReadWrite`]), `Invalid` (disk smaller than recorded; all zeros: not formatted).
    pub fn open(disk: D, access: Access) -> Result<Self> {
        todo!()
    }

    /// Block size and number of data blocks.
    pub fn geometry(&self) -> Geometry {
        todo!()
    }
    /// The snapshot clock.
    pub fn time(&self) -> SnapTime {
        todo!()
    }
    /// The transaction id, as it will be committed.
    pub fn transaction_id(&self) -> TransactionId {
        todo!()
    }
    /// The block of the metadata snapshot, if one is held.
    pub fn held_root(&self) -> Option<crate::units::MetaBlock> {
        todo!()
    }
    /// How full the pool is.
    pub fn usage(&self) -> Usage {
        todo!()
    }
    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        todo!()
    }

    /// All volumes in order of their ids.
    pub fn volumes(&mut self) -> Result<Vec<(VolumeId, VolumeDetails)>> {
        todo!()
    }
    /// One volume's details, `None` if there is no such volume.
    pub fn details(&mut self, volume: VolumeId) -> Result<Option<VolumeDetails>> {
        todo!()
    }
    /// The mapping of one block. `NotFound` if there is no such volume.
    pub fn lookup(&mut self, volume: VolumeId, block: VirtualBlock) -> Result<Option<Mapping>> {
        todo!()
    }
    /// Calls `visit` for every mapping with a virtual block in `range`, in ascending order.
    pub fn for_each_mapping(
        &mut self,
        volume: VolumeId,
        range: Range<u64>,
        visit: &mut dyn FnMut(VirtualBlock, Mapping),
    ) -> Result<()> {
        todo!()
    }
    /// The highest mapped block.
    pub fn highest_mapped(&mut self, volume: VolumeId) -> Result<Option<VirtualBlock>> {
        todo!()
    }

    /// Adds an empty volume. `Exists`.
    pub fn create_volume(&mut self, volume: VolumeId) -> Result<()> {
        todo!()
    }
    /// Adds `snapshot`, which shares everything with `origin` (whose I/O is quiesced). Applies pending mappings first.
    /// Returns the new pool time, which is both volumes' snapshotted time. `Exists`, `NotFound`, `Unsupported` when the
    /// clock is at its end.
    pub fn snapshot(&mut self, origin: VolumeId, snapshot: VolumeId) -> Result<SnapTime> {
        todo!()
    }
    /// Removes a volume, at most about `budget_nodes` tree nodes a call; the volume is gone with the call that answers
    /// `Done`, and consistent (smaller) in every commit before. `NotFound`.
    pub fn delete_volume(&mut self, volume: VolumeId, budget_nodes: usize) -> Result<Progress<()>> {
        todo!()
    }

    /// Takes a free data block, in memory only: a crash leaks nothing. Give it to [`Metadata::map`] or
    /// [`Metadata::release_block`]. `NoDataSpace`, and `NoMetadataSpace` when mapping it could not be afforded
    /// without touching the reserve.
    pub fn reserve_block(&mut self) -> Result<DataBlock> {
        todo!()
    }
    /// Gives back a reserved block that was not mapped.
    pub fn release_block(&mut self, reserved: DataBlock) {
        todo!()
    }
    /// Points `block` of `volume` at a reserved data block as of now, in place of what it pointed at. Kept in memory and
    /// applied to the trees in sorted batches; every reader here sees it at once.
    pub fn map(&mut self, volume: VolumeId, block: VirtualBlock, reserved: DataBlock) -> Mapping {
        todo!()
    }
    /// Mappings that wait in memory.
    pub fn pending_mappings(&self) -> usize {
        todo!()
    }
    /// Brings all pending mappings into the trees.
    pub fn apply_pending(&mut self) -> Result<()> {
        todo!()
    }
    /// Removes the mappings in `range`, at most about `budget_mappings` of them a call. `More(next)`: call again with
    /// `next..range.end`.
    pub fn unmap_range(
        &mut self,
        volume: VolumeId,
        range: Range<u64>,
        budget_mappings: u64,
    ) -> Result<Progress<u64>> {
        todo!()
    }
    /// Compare and swap of the transaction id. `Invalid` when it is not `current`, saying what it is.
    pub fn set_transaction_id(&mut self, current: TransactionId, new: TransactionId) -> Result<()> {
        todo!()
    }

    /// Makes the state durable: pending mappings and details into the trees, space maps, every dirty block, flush,
    /// superblock, flush. Returns the data blocks that this commit freed; they are withheld from
    /// [`Metadata::reserve_block`] until [`Metadata::make_reusable`]. After an error: [`Metadata::abort`] or nothing.
    pub fn commit(&mut self, data_first: DataFlushed) -> Result<Freed> {
        todo!()
    }
    /// Lets freed blocks be reserved again.
    pub fn make_reusable(&mut self, freed: Range<u64>) {
        todo!()
    }
    /// Throws the transaction away, pending mappings and reservations included, and reads the last commit again.
    pub fn abort(&mut self) -> Result<()> {
        todo!()
    }
}
