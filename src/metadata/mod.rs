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
//!   The answer may be another after a commit, which gives back what the transaction replaced.
//! - After any other error in a changing method the in-core state is not to be trusted: only [`Metadata::abort`] leads on.
//!
//! The files, from the bottom: `cache` (blocks), `meta_map` (metadata counts), `data_log` and `data_map` (data counts),
//! `space` (shadowing), `tree` (B-trees), `ahead` (many blocks read at once), `volumes` (what volumes are made of), `highest` (where volumes end), `partial` (blocks of which only a part is there), `replay` (what a journal says), `sharing` (what is whose), `budget` (worst cases), `backing` (the disk's own space), `open`,
//! `commit`.

mod ahead;
mod backing;
mod block_set;
mod budget;
mod cache;
mod commit;
mod data_log;
mod data_map;
mod held;
mod highest;
mod meta_map;
mod open;
mod partial;
mod pending;
mod replay;
mod scarcity;
mod sharing;
mod space;
mod tally;
mod tree;
mod volumes;

use crate::disk::{DataFlushed, Disk};
use crate::error::{Error, ErrorKind, Result};
pub use crate::format::JournalMark;
use crate::format::{DetailsRecord, MappingRecord, RootRecord, Superblock};
use crate::units::{
    BlockSize, DataBlock, META_BLOCK_BYTES, META_BLOCKS_LIMIT, Mapping, MetaBlock, SnapTime, TransactionId,
    VirtualBlock, VolumeId,
};
use backing::Backing;
use block_set::BlockSet;
use budget::{Ask, Shape};
use data_map::{DataMap, bitmaps_for};
use highest::Highest;
use partial::Partials;
pub use partial::{Base, Partial};
use pending::Pending;
pub use scarcity::{Scarce, Scarcity};
pub use sharing::{Count, VolumeSharing};
use space::{References, Space, Span};
use std::ops::{ControlFlow, Range};

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
    /// Data blocks with a count above 0, pending mappings included, mere reservations not. A block that lost its last
    /// reference counts until the commit, because until then it is of no use to anybody.
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

/// What may be done with the in-core state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Anything.
    Sound,
    /// An operation failed half-way: abort leads on.
    Broken,
    /// What the disk holds is not known: a flush or the superblock's write failed. Only reopening leads on.
    Unknown,
}

/// The metadata of one pool.
pub struct Metadata<D: Disk> {
    space: Space<D>,
    data: DataMap,
    /// As last committed.
    superblock: Superblock,
    mapping_root: MetaBlock,
    details_root: MetaBlock,
    /// Block of the metadata snapshot; 0: none is held.
    held_root: u64,
    time: SnapTime,
    transaction_id: TransactionId,
    pending: Pending,
    highest: Highest,
    partials: Partials,
    shape: Shape,
    /// Reservations that the last check of the budget allows without another one.
    checked_reservations: u64,
    /// How many of them may be of partial blocks.
    checked_partials: u64,
    /// One of the space maps has grown in this transaction.
    has_grown: bool,
    access: Access,
    state: State,
    backing: Backing,
    cache_bytes: usize,
    /// A count of what is shared, under way.
    walk: Option<sharing::Walk>,
    /// The journal that the next superblock names.
    journal: Option<JournalMark>,
    /// It holds changes that are not here yet.
    awaits_replay: bool,
    /// They are being brought in.
    replays: bool,
}

impl<D: Disk> Metadata<D> {
    /// Writes an empty pool over whatever `disk` holds, commits it, and opens it.
    /// `Invalid` when the disk is too small for the geometry, with the size that it would take.
    pub fn format(disk: D, geometry: Geometry) -> Result<Self> {
        open::format(disk, geometry)
    }

    /// Opens the last committed state.
    ///
    /// `Corrupt` (magic, checksum, block number, with what was expected), `Unsupported` (version, feature words),
    /// `NeedsCheck` (for [`Access::ReadWrite`]), `Invalid` (disk smaller than recorded; all zeros: not formatted).
    pub fn open(disk: D, access: Access) -> Result<Self> {
        open::open(disk, |_| access)
    }

    /// As [`Metadata::open`] for [`Access::ReadWrite`], but for metadata that carries the needs_check flag: that is opened
    /// for [`Access::ReadOnly`], as [`Metadata::access`] tells.
    pub fn open_to_serve(disk: D) -> Result<Self> {
        open::open(disk, |superblock| match superblock.needs_check() {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        })
    }

    /// What may be done with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Sets what unchanged metadata blocks may take in memory (64 MiB unless told). What a transaction changes is in
    /// memory besides, until it is committed.
    pub fn set_cache_bytes(&mut self, bytes: usize) {
        self.cache_bytes = bytes;
        self.space.cache.set_clean_bytes(bytes);
    }

    /// Who decides what there is not enough of.
    #[cfg(test)]
    pub fn set_scarcity(&mut self, scarcity: Scarcity) {
        self.space.scarcity = scarcity;
    }

    /// What the disk is called.
    pub fn disk_name(&self) -> String {
        self.space.disk.name()
    }

    /// See [`Disk::check_size`].
    pub fn check_disk_size(&self) -> std::io::Result<()> {
        self.space.disk.check_size()
    }

    /// See [`Disk::is_removed`].
    pub fn is_disk_removed(&self) -> bool {
        self.space.disk.is_removed()
    }

    /// Block size and number of data blocks.
    pub fn geometry(&self) -> Geometry {
        let block_size = self.superblock.data_block_size().expect("checked when the superblock was read");
        Geometry { block_size, data_blocks: self.data.total() }
    }

    /// The snapshot clock.
    pub fn time(&self) -> SnapTime {
        self.time
    }

    /// The transaction id, as it will be committed.
    pub fn transaction_id(&self) -> TransactionId {
        self.transaction_id
    }

    /// The block of the metadata snapshot, if one is held.
    pub fn held_root(&self) -> Option<MetaBlock> {
        (self.held_root != 0).then_some(MetaBlock(self.held_root))
    }

    /// Whether the flag is set by which a checker must look at the metadata before it is changed; with
    /// [`Access::ReadOnly`] only.
    pub fn needs_check(&self) -> bool {
        self.superblock.needs_check()
    }

    /// Whether it may be opened with [`Access::ReadWrite`]: `NeedsCheck` or `Unsupported` if not.
    pub fn require_writable(&self) -> Result<()> {
        open::require_access(&self.superblock, Access::ReadWrite)
    }

    /// How full the pool is.
    pub fn usage(&self) -> Usage {
        let metadata = &self.space.references.metadata;
        Usage {
            metadata_total: metadata.total(),
            metadata_allocated: metadata.allocated(),
            metadata_reserve: budget::reserve(metadata.total()),
            data_total: self.data.total(),
            data_allocated: self.data.allocated()
                + self.space.references.data.fresh()
                + self.pending.len() as u64,
        }
    }

    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        self.pending.len() > 0
            || !self.space.references.data.is_empty()
            || self.space.cache.dirty_blocks() > 0
            || self.has_grown
            || self.has_new_superblock_fields()
    }

    fn has_new_superblock_fields(&self) -> bool {
        (self.transaction_id, self.time, self.held_root)
            != (self.superblock.transaction_id, self.superblock.time, self.superblock.held_root)
            || self.partials.tree() != self.superblock.partial_tree()
            || self.journal != self.superblock.journal()
    }

    /// All volumes in order of their ids. Applies pending mappings, by which `mapped_blocks` is exact.
    pub fn volumes(&mut self) -> Result<Vec<(VolumeId, VolumeDetails)>> {
        self.apply_pending()?;
        let entries = self.space.entries::<DetailsRecord>(self.details_root)?;
        entries.into_iter().map(|(key, record)| Ok((self.volume_id(key)?, details_of(&record)))).collect()
    }

    fn volume_id(&self, key: u64) -> Result<VolumeId> {
        VolumeId::new(key).ok_or_else(|| {
            let what = format!("found a volume with the number {key}, expected at most {}", VolumeId::MAX);
            Error::corrupt(self.details_root, what)
        })
    }

    /// One volume's details, `None` if there is no such volume. Applies its pending mappings.
    pub fn details(&mut self, volume: VolumeId) -> Result<Option<VolumeDetails>> {
        self.require_sound()?;
        self.apply_pending_of(volume)?;
        let record = self.space.lookup::<DetailsRecord>(self.details_root, volume.get())?;
        Ok(record.as_ref().map(details_of))
    }

    /// The mapping of one block. `NotFound` if there is no such volume.
    pub fn lookup(&mut self, volume: VolumeId, block: VirtualBlock) -> Result<Option<Mapping>> {
        self.require_sound()?;
        if let Some(mapping) = self.pending.get(volume, block) {
            return Ok(Some(mapping));
        }
        let root = self.root_of(volume)?;
        let Some(record) = self.space.lookup::<MappingRecord>(root, block.0)? else { return Ok(None) };
        let mapping = record.mapping();
        space::require_data_block(mapping.block, self.data.total(), root)?;
        Ok(Some(mapping))
    }

    /// Whether a mapped block is the volume's alone, now and in the state that a crash leads back to: then it may be
    /// overwritten in place whatever its time says. `false` means "not for sure": the counts are not asked while
    /// the transaction may have taken holders away that the last commit still has.
    pub fn is_exclusive(&mut self, volume: VolumeId, block: VirtualBlock) -> Result<bool> {
        self.require_sound()?;
        let is_unsure = self.has_lost_holders() || self.space.references.data.shared() > 0;
        if is_unsure || self.pending.get(volume, block).is_some() {
            return Ok(false);
        }
        let Some(root) = self.space.lookup_unshared::<RootRecord>(self.mapping_root, volume.get())? else {
            return Ok(false);
        };
        let Some(record) = self.space.lookup_unshared::<MappingRecord>(root.root(), block.0)? else {
            return Ok(false);
        };
        let data_block = record.mapping().block;
        space::require_data_block(data_block, self.data.total(), root.root())?;
        Ok(self.data.count(&mut self.space, data_block)? == 1)
    }

    /// Whether any block has lost a holder in this transaction, as far as mappings do not wait in memory. Perhaps: also a
    /// metadata block's loss counts.
    pub fn has_lost_holders(&self) -> bool {
        let References { metadata, data } = &self.space.references;
        metadata.has_lost_holders() || data.has_lost_holders()
    }

    /// Calls `visit` for every mapping with a virtual block in `range`, in ascending order.
    pub fn for_each_mapping(
        &mut self,
        volume: VolumeId,
        range: Range<u64>,
        visit: &mut dyn FnMut(VirtualBlock, Mapping),
    ) -> Result<()> {
        self.require_sound()?;
        let root = self.root_of(volume)?;
        let Some(span) = span_of(&range) else { return Ok(()) };
        let data_blocks = self.data.total();
        let mut pending = self.pending.range(volume, range).peekable();
        let mut beyond = None;
        let _ = self.space.visit_leaves::<MappingRecord>(root, span, &mut |entries| {
            for (key, record) in entries.iter() {
                while let Some((block, mapping)) = pending.next_if(|(block, _)| *block < key) {
                    visit(VirtualBlock(block), mapping);
                }
                let mapping = match pending.next_if(|(block, _)| *block == key) {
                    Some((_, newer)) => newer,
                    None => record.mapping(),
                };
                if mapping.block.0 >= data_blocks {
                    beyond = Some(mapping.block);
                    return ControlFlow::Break(());
                }
                visit(VirtualBlock(key), mapping);
            }
            ControlFlow::Continue(())
        })?;
        if let Some(block) = beyond {
            return space::require_data_block(block, data_blocks, root);
        }
        pending.for_each(|(block, mapping)| visit(VirtualBlock(block), mapping));
        Ok(())
    }

    /// Takes a free data block, `wanted` if that is free, in memory only: a crash leaks nothing. Give it to [`Metadata::map`] or
    /// [`Metadata::release_block`]. `NoDataSpace`, and `NoMetadataSpace` when mapping it could not be afforded
    /// without touching the reserve.
    pub fn reserve_block(&mut self, wanted: Option<DataBlock>) -> Result<DataBlock> {
        self.require_changeable()?;
        if self.checked_reservations == 0 {
            self.check_reservations()?;
        }
        let is_refused = self.space.scarcity.refuses(Scarce::DataBlock);
        match if is_refused { None } else { self.data.reserve(&mut self.space, wanted)? } {
            Some(block) => {
                self.checked_reservations -= 1;
                Ok(block)
            }
            None => Err(Error::new(ErrorKind::NoDataSpace, "no free data block in the pool").hint(
                "delete volumes, discard unused space, or grow the pool; what a commit freed comes back soon",
            )),
        }
    }

    /// Asks the budget for a batch of reservations, or for one if a batch is too much.
    fn check_reservations(&mut self) -> Result<()> {
        const BATCH: u64 = 64;
        self.checked_partials = 0;
        if self.can_afford(&Ask::mappings(BATCH)) {
            self.checked_reservations = BATCH;
            return Ok(());
        }
        self.afford(&Ask::mappings(1))?;
        self.checked_reservations = 1;
        Ok(())
    }

    /// Gives back a reserved block that was not mapped.
    pub fn release_block(&mut self, reserved: DataBlock) {
        self.data.release(reserved);
        self.partials.no_longer_allowed(reserved);
    }

    /// Points `block` of `volume` at a reserved data block as of now, in place of what it pointed at. Kept in memory and
    /// applied to the trees in sorted batches; every reader here sees it at once. The volume must exist: else applying
    /// fails, and with it the transaction.
    pub fn map(&mut self, volume: VolumeId, block: VirtualBlock, reserved: DataBlock) -> Mapping {
        self.data.take(reserved);
        self.partials.no_longer_allowed(reserved);
        let mapping = Mapping { block: reserved, time: self.time };
        if let Some(replaced) = self.pending.insert(volume, block, mapping) {
            // It never got into a tree, but I/O may have: it goes the way of all that is freed.
            self.space.references.data.come_and_gone(replaced);
            self.partials.forget_pending(replaced);
        }
        mapping
    }

    /// Mappings that wait in memory.
    pub fn pending_mappings(&self) -> usize {
        self.pending.len()
    }

    /// Compare and swap of the transaction id. `Invalid` when it is not `current`, saying what it is.
    pub fn set_transaction_id(&mut self, current: TransactionId, new: TransactionId) -> Result<()> {
        self.require_changeable()?;
        if self.transaction_id != current {
            let is = self.transaction_id;
            return Err(Error::new(ErrorKind::Invalid, format!("the transaction id is {is}, not {current}")));
        }
        self.transaction_id = new;
        Ok(())
    }

    /// Makes the pool that many data blocks large, of which the new ones can be reserved at once; the data disk has them
    /// already. `Invalid` when it would shrink or the format has no number for the last one; `NoMetadataSpace`.
    pub fn grow_data(&mut self, data_blocks: u64) -> Result<()> {
        self.check_grown_data(data_blocks)?;
        if data_blocks == self.data.total() {
            return Ok(());
        }
        self.change(|this| {
            this.data.grow(&mut this.space, data_blocks)?;
            this.space.references.data.grow(data_blocks);
            this.has_grown = true;
            Ok(())
        })
    }

    /// Refuses what [`Metadata::grow_data`] would refuse, and changes nothing that anybody sees.
    pub fn check_grown_data(&mut self, data_blocks: u64) -> Result<()> {
        self.require_changeable()?;
        let old = self.data.total();
        if data_blocks < old || data_blocks >= DataBlock::LIMIT {
            let what = format!(
                "a pool of {old} data blocks cannot have {data_blocks}, only {old} to {}",
                DataBlock::LIMIT - 1
            );
            return Err(Error::new(ErrorKind::Invalid, what).hint("a pool only grows"));
        }
        match data_blocks == old {
            true => Ok(()),
            false => self.afford(&Ask::more_data(bitmaps_for(data_blocks) - self.data.bitmaps())),
        }
    }

    /// Makes the metadata disk that large, if it is not; for [`Metadata::grow_metadata`].
    pub fn grow_disk(&self, size_bytes: u64) -> Result<()> {
        let disk = &self.space.disk;
        disk.grow(size_bytes).map_err(|error| {
            Error::io(format_args!("{}: cannot have {size_bytes} bytes", disk.name()), &error)
        })
    }

    /// Takes as much of the metadata disk into use as there is and the format allows; returns the number of blocks.
    /// Works in a pool that is out of metadata space. `Invalid` when the disk is smaller than it was.
    pub fn grow_metadata(&mut self) -> Result<u64> {
        self.require_changeable()?;
        let old = self.space.references.metadata.total();
        let new = (self.space.disk.size_bytes() / META_BLOCK_BYTES as u64).min(META_BLOCKS_LIMIT);
        if new < old {
            let what = format!("the metadata disk has room for {new} blocks, and the pool has {old}");
            return Err(Error::new(ErrorKind::Invalid, what).hint("give it back its size"));
        }
        if new > old {
            self.take_grown(new)?;
            self.has_grown = true;
        }
        Ok(new)
    }

    /// Makes the state durable: pending mappings and details into the trees, space maps, every dirty block, flush,
    /// superblock, flush. Returns the data blocks that this commit freed; they are withheld from
    /// [`Metadata::reserve_block`] until [`Metadata::make_reusable`]. With nothing to commit nothing is written.
    ///
    /// After an error: [`Metadata::abort`], or, when that refuses because nobody can know what the disk holds, reopening.
    pub fn commit(&mut self, data_first: DataFlushed) -> Result<Freed> {
        self.require_changeable()?;
        self.commit_transaction(data_first)
    }

    /// Those of these blocks that [`Metadata::reserve_block`] may hand out, as ranges in ascending order.
    pub fn free_blocks_in(&mut self, blocks: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.require_sound()?;
        self.data.free_in(&mut self.space, blocks)
    }

    /// Lets freed blocks be reserved again.
    pub fn make_reusable(&mut self, freed: Range<u64>) {
        self.data.make_reusable(freed);
    }

    /// Throws the transaction away, pending mappings and reservations included, and reads the last commit again. What
    /// earlier commits freed stays withheld. `Failed` when a flush or the write of the superblock failed, because then
    /// what is read need not be what a crash would leave.
    pub fn abort(&mut self) -> Result<()> {
        self.roll_back()
    }

    /// Gives the transaction up for good: the last commit is read again, and nothing can be changed any more
    /// ([`Access::ReadOnly`]). With `needs_check` the superblock of the last commit is first written once more with that
    /// flag, straight into block 0 and flushed. That settles what the disk holds, even where a commit failed at a flush or
    /// at the superblock: of what it wrote, only the superblock leads anywhere, and that is replaced.
    ///
    /// After an error nothing is known, as after that of a commit: only reopening leads on.
    pub fn retire(&mut self, needs_check: bool) -> Result<()> {
        self.access = Access::ReadOnly;
        if needs_check {
            self.mark_as_unchecked()?;
        }
        self.roll_back()
    }

    fn require_sound(&self) -> Result<()> {
        match self.state {
            State::Sound => Ok(()),
            State::Broken => {
                Err(Error::new(ErrorKind::Failed, "an earlier metadata operation failed half-way")
                    .hint("abort the transaction, or reopen the pool"))
            }
            State::Unknown => Err(Error::new(
                ErrorKind::Failed,
                "an earlier commit failed at a flush or at the superblock, so what is durable is not known",
            )
            .hint("check the metadata device and the log, then reopen the pool")),
        }
    }

    fn require_changeable(&self) -> Result<()> {
        self.require_sound()?;
        match self.access {
            Access::ReadWrite if self.awaits_replay => Err(Error::new(
                ErrorKind::WrongState,
                "a journal holds changes on top of the metadata, which must be brought in first",
            )
            .hint("open the pool with its journal: `uthin serve` does so")),
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::new(ErrorKind::WrongState, "the metadata was opened read-only")),
        }
    }

    /// Runs a change that has been found affordable. If it fails the in-core state is not to be trusted any more.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        (self.checked_reservations, self.checked_partials) = (0, 0);
        // Metadata that was opened overfull is not covered, and may still be deleted from.
        let was_covered = cfg!(debug_assertions) && self.is_covered();
        let result = change(self);
        if result.is_err() && self.state == State::Sound {
            self.state = State::Broken;
        }
        debug_assert!(
            result.is_err() || !was_covered || self.is_covered(),
            "the change took more than its bound"
        );
        result
    }

    /// The root of a volume's tree. `NotFound`.
    fn root_of(&mut self, volume: VolumeId) -> Result<MetaBlock> {
        match self.space.lookup::<RootRecord>(self.mapping_root, volume.get())? {
            Some(record) => Ok(record.root()),
            None => Err(Error::new(ErrorKind::NotFound, format!("no volume with the number {volume}"))),
        }
    }
}

fn details_of(record: &DetailsRecord) -> VolumeDetails {
    VolumeDetails {
        mapped_blocks: record.mapped_blocks.get(),
        transaction_id: TransactionId(record.transaction_id.get()),
        creation_time: SnapTime(record.creation_time.get()),
        snapshotted_time: SnapTime(record.snapshotted_time.get()),
    }
}

/// A half-open range as the keys of a tree have it; `None` if it is empty.
fn span_of(range: &Range<u64>) -> Option<Span> {
    (range.start < range.end).then(|| Span { first: range.start, last: range.end - 1 })
}
