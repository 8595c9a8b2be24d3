//! What happens to volumes: created, snapshotted, mapped, unmapped, deleted.
//!
//! A volume is an entry in each of two trees, one of which names the root of its own tree of mappings. Changes go
//! top-down (format §4.5): [`Metadata::open_root`] makes the way to the entry ours before anything below is touched.
//! Every operation looks first whether it can be carried out, then asks the budget, and only then changes anything.

use super::budget::Ask;
use super::space::{Space, Span};
use super::tree::Inserter;
use super::{Metadata, Progress, VolumeDetails, span_of};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DetailsRecord, MappingRecord, NodeKind, RootRecord};
use crate::units::{DataBlock, Mapping, MetaBlock, SnapTime, VolumeId};
use std::ops::{ControlFlow, Range};
use zerocopy::little_endian::{U32, U64};

/// So many logged changes of data counts are applied at once, lest the log outgrow the bitmaps.
const LOG_LIMIT: usize = 1 << 20;

/// The part of a volume's mappings that is removed in one step.
struct Part {
    /// Mappings in it.
    mappings: u64,
    /// Its last key.
    last: u64,
    /// Whether anything is left behind it.
    more: bool,
}

impl<D: Disk> Metadata<D> {
    /// Adds an empty volume. `Exists`.
    pub fn create_volume(&mut self, volume: VolumeId) -> Result<()> {
        self.require_changeable()?;
        self.require_absent(volume)?;
        self.afford(&Ask::new_volume())?;
        self.change(|this| {
            let root = this.space.new_node::<MappingRecord>(NodeKind::Leaf)?;
            let (transaction_id, time) = (this.transaction_id, this.time);
            let details = VolumeDetails {
                mapped_blocks: 0,
                transaction_id,
                creation_time: time,
                snapshotted_time: time,
            };
            this.store_root(volume, root)?;
            this.store_details(volume, &details)?;
            this.shape.volumes += 1;
            Ok(())
        })
    }

    /// Adds `snapshot`, which shares everything with `origin` (whose I/O is quiesced). Applies pending mappings first.
    /// Returns the new pool time, which is both volumes' snapshotted time. `Exists`, `NotFound`, `Unsupported` when the
    /// clock is at its end.
    pub fn snapshot(&mut self, origin: VolumeId, snapshot: VolumeId) -> Result<SnapTime> {
        self.require_changeable()?;
        self.require_absent(snapshot)?;
        self.root_of(origin)?;
        self.require_clock()?;
        self.apply_pending_of(origin)?;
        self.afford(&Ask::new_volume())?;
        self.change(|this| {
            let root = this.open_root(origin)?;
            this.space.references.metadata.increment(root)?;
            this.store_root(snapshot, root)?;
            this.time = SnapTime(this.time.0 + 1);
            let mut details = this.details_in_tree(origin)?;
            details.snapshotted_time = this.time;
            this.store_details(origin, &details)?;
            details.creation_time = this.time;
            details.transaction_id = this.transaction_id;
            this.store_details(snapshot, &details)?;
            this.shape.volumes += 1;
            this.shape.mappings += details.mapped_blocks;
            Ok(this.time)
        })
    }

    /// Gives `volume` the mappings of `origin` in place of its own, shared from now on. Its own must be a snapshot's too
    /// (`Invalid`): then this takes no longer than a snapshot does. Applies pending mappings first. Returns the new pool
    /// time, which is both volumes' snapshotted time. `NotFound`, `Unsupported` when the clock is at its end.
    pub fn replace_mappings(&mut self, volume: VolumeId, origin: VolumeId) -> Result<SnapTime> {
        self.require_changeable()?;
        self.require_clock()?;
        self.apply_pending_of(volume)?;
        self.apply_pending_of(origin)?;
        self.root_of(origin)?;
        let old = self.root_of(volume)?;
        if self.space.references.metadata.referenced(old)? == 1 {
            let what = format!("volume {volume} has mappings that no other volume has");
            return Err(Error::new(ErrorKind::Invalid, what).hint("take a snapshot of it first"));
        }
        self.afford(&Ask::new_volume())?;
        self.change(|this| {
            let root = this.open_root(origin)?;
            this.space.references.metadata.increment(root)?;
            let old = this.open_root(volume)?;
            this.store_root(volume, root)?;
            this.space.release_node::<MappingRecord>(old)?;
            this.time = SnapTime(this.time.0 + 1);
            let mut source = this.details_in_tree(origin)?;
            source.snapshotted_time = this.time;
            this.store_details(origin, &source)?;
            let mut details = this.details_in_tree(volume)?;
            this.shape.mappings =
                (this.shape.mappings + source.mapped_blocks).saturating_sub(details.mapped_blocks);
            (details.mapped_blocks, details.snapshotted_time) = (source.mapped_blocks, this.time);
            this.store_details(volume, &details)?;
            Ok(this.time)
        })
    }

    /// Removes a volume, at most about `budget_nodes` tree nodes a call; the volume is gone with the call that answers
    /// `Done`, and consistent (smaller) in every commit before. `NotFound`.
    ///
    /// Works as long as the pool is not full beyond its reserve, at worst in one long step.
    pub fn delete_volume(&mut self, volume: VolumeId, budget_nodes: usize) -> Result<Progress<()>> {
        self.require_changeable()?;
        self.root_of(volume)?;
        self.apply_pending_of(volume)?;
        let root = self.root_of(volume)?;
        if self.exclusive_nodes(root, budget_nodes)? > budget_nodes && self.can_make_room(&Ask::unmap()) {
            let part = self.part_of_nodes(root, budget_nodes)?;
            if part.more {
                self.change(|this| this.remove_part(volume, 0, &part))?;
                return Ok(Progress::More(()));
            }
        }
        self.afford(&Ask::delete())?;
        self.change(|this| this.drop_volume(volume))?;
        Ok(Progress::Done)
    }

    fn drop_volume(&mut self, volume: VolumeId) -> Result<()> {
        let mapped = self.details_in_tree(volume)?.mapped_blocks;
        let root = self.open_root(volume)?;
        // A reference of our own, so that the tree outlives its entry.
        self.space.references.metadata.increment(root)?;
        let key = Span { first: volume.get(), last: volume.get() };
        self.mapping_root = self.space.remove_range::<RootRecord>(self.mapping_root, key)?;
        self.details_root = self.space.remove_range::<DetailsRecord>(self.details_root, key)?;
        self.space.drop_tree::<MappingRecord>(root, Span::ALL, 0)?;
        self.shape.volumes -= 1;
        self.shape.mappings = self.shape.mappings.saturating_sub(mapped);
        self.apply_long_log()
    }

    /// Nodes that only this tree has, counted up to a little above `limit`.
    fn exclusive_nodes(&mut self, root: MetaBlock, limit: usize) -> Result<usize> {
        let height = self.space.height::<MappingRecord>(root)?;
        let mut found = 0;
        let mut counted = |space: &Space<D>, block: MetaBlock| {
            let counts = found <= limit && space.references.metadata.count(block.0) == 1;
            found += usize::from(counts);
            counts
        };
        self.space.count_under::<MappingRecord>(root, Span::ALL, height, &mut counted)?;
        Ok(found)
    }

    /// The first part of a tree, about that many leaves.
    fn part_of_nodes(&mut self, root: MetaBlock, nodes: usize) -> Result<Part> {
        let mut leaves = 0;
        let mut part = Part { mappings: 0, last: 0, more: false };
        let _ = self.space.visit_leaves::<MappingRecord>(root, Span::ALL, &mut |entries| {
            if leaves >= nodes.max(1) {
                part.more = true;
                return ControlFlow::Break(());
            }
            leaves += 1;
            part.mappings += entries.len() as u64;
            part.last = entries.key(entries.len() - 1);
            ControlFlow::Continue(())
        })?;
        Ok(part)
    }

    /// Removes the mappings in `range`, at most about `budget_mappings` of them a call. `More(next)`: call again with
    /// `next..range.end`. `NotFound`.
    pub fn unmap_range(
        &mut self,
        volume: VolumeId,
        range: Range<u64>,
        budget_mappings: u64,
    ) -> Result<Progress<u64>> {
        self.require_changeable()?;
        self.root_of(volume)?;
        let Some(span) = span_of(&range) else { return Ok(Progress::Done) };
        self.apply_pending_of(volume)?;
        let root = self.root_of(volume)?;
        let part = self.part_of_mappings(root, span, budget_mappings.max(1))?;
        if part.mappings == 0 {
            return Ok(Progress::Done);
        }
        self.afford(&Ask::unmap())?;
        let first = range.start;
        self.change(|this| this.remove_part(volume, first, &part))?;
        Ok(if part.more { Progress::More(part.last + 1) } else { Progress::Done })
    }

    /// The first mappings in `span`, as many as `limit` or all.
    fn part_of_mappings(&mut self, root: MetaBlock, span: Span, limit: u64) -> Result<Part> {
        let mut part = Part { mappings: 0, last: span.first, more: false };
        let _ = self.space.visit_leaves::<MappingRecord>(root, span, &mut |entries| {
            let left = limit - part.mappings;
            part.more = entries.len() as u64 > left;
            let taken = left.min(entries.len() as u64);
            if taken > 0 {
                part.mappings += taken;
                part.last = entries.key(taken as usize - 1);
            }
            if part.more { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(part)
    }

    fn remove_part(&mut self, volume: VolumeId, first: u64, part: &Part) -> Result<()> {
        let root = self.open_root(volume)?;
        let root = self.space.remove_range::<MappingRecord>(root, Span { first, last: part.last })?;
        self.store_root(volume, root)?;
        let mut details = self.details_in_tree(volume)?;
        details.mapped_blocks = details.mapped_blocks.checked_sub(part.mappings).ok_or_else(|| {
            let what = format!(
                "found details that say volume {volume} has {} mappings, but {} were removed from it",
                details.mapped_blocks, part.mappings
            );
            Error::corrupt(self.details_root, what)
        })?;
        self.store_details(volume, &details)?;
        self.shape.mappings = self.shape.mappings.saturating_sub(part.mappings);
        self.apply_long_log()
    }

    /// Brings all pending mappings into the trees.
    pub fn apply_pending(&mut self) -> Result<()> {
        self.require_sound()?;
        for volume in self.pending.volumes() {
            self.apply_pending_of(volume)?;
        }
        Ok(())
    }

    /// Brings one volume's pending mappings into its tree. What they may cost was asked for when their blocks were reserved.
    pub(super) fn apply_pending_of(&mut self, volume: VolumeId) -> Result<()> {
        let pending = self.pending.take(volume);
        if pending.is_empty() {
            return Ok(());
        }
        self.change(|this| {
            let root = this.open_root(volume)?;
            let mut added = 0;
            let mut inserter = Inserter::new(&mut this.space, root);
            let mut replaced = Vec::new();
            for (block, packed) in &pending {
                match inserter.insert(*block, MappingRecord(U64::new(*packed)))? {
                    None => added += 1,
                    Some(old) => replaced.push(old.mapping().block),
                }
            }
            let root = inserter.root();
            let log = &mut this.space.references.data;
            pending.values().for_each(|packed| log.first_reference(DataBlock(*packed >> 24)));
            let mut mapped: Vec<_> = pending.values().map(|packed| Mapping::unpack(*packed).block).collect();
            mapped.sort_unstable();
            // Before what was replaced lets go: it may be a base from now on.
            this.add_partials(&mapped)?;
            let log = &mut this.space.references.data;
            // A reserved block is free, so no old mapping names the same one.
            replaced.into_iter().try_for_each(|old| log.decrement(old, root))?;
            this.store_root(volume, root)?;
            let mut details = this.details_in_tree(volume)?;
            details.mapped_blocks += added;
            this.store_details(volume, &details)?;
            this.shape.mappings += added;
            this.apply_long_log()
        })
    }

    pub(super) fn apply_long_log(&mut self) -> Result<()> {
        if self.space.references.data.len() > LOG_LIMIT {
            self.apply_counts()?;
        }
        Ok(())
    }

    /// Refuses what needs a new time when there is none: it would spill into the data block's number (format §5.2).
    fn require_clock(&self) -> Result<()> {
        if self.time < SnapTime::MAX {
            return Ok(());
        }
        let what =
            format!("the pool has taken {} snapshots, the most that its clock can tell apart", self.time.0);
        Err(Error::new(ErrorKind::Unsupported, what).hint("copy the volumes to a new pool"))
    }

    fn require_absent(&mut self, volume: VolumeId) -> Result<()> {
        match self.space.lookup::<RootRecord>(self.mapping_root, volume.get())? {
            None => Ok(()),
            Some(_) => {
                Err(Error::new(ErrorKind::Exists, format!("a volume with the number {volume} exists")))
            }
        }
    }

    /// Makes the way to a volume's entry ours, so that its tree may be changed; the tree's root.
    fn open_root(&mut self, volume: VolumeId) -> Result<MetaBlock> {
        self.highest.forget(volume);
        let mut inserter = Inserter::<D, RootRecord>::new(&mut self.space, self.mapping_root);
        let record = inserter.prepare(volume.get())?;
        self.mapping_root = inserter.root();
        match record {
            Some(record) => Ok(record.root()),
            None => Err(Error::new(ErrorKind::NotFound, format!("no volume with the number {volume}"))),
        }
    }

    fn store_root(&mut self, volume: VolumeId, root: MetaBlock) -> Result<()> {
        self.highest.forget(volume);
        let mut inserter = Inserter::new(&mut self.space, self.mapping_root);
        inserter.insert(volume.get(), RootRecord::new(root))?;
        self.mapping_root = inserter.root();
        Ok(())
    }

    fn details_in_tree(&mut self, volume: VolumeId) -> Result<VolumeDetails> {
        match self.space.lookup::<DetailsRecord>(self.details_root, volume.get())? {
            Some(record) => Ok(super::details_of(&record)),
            None => {
                let what = format!("found no details of volume {volume}, which has mappings");
                Err(Error::corrupt(self.details_root, what))
            }
        }
    }

    fn store_details(&mut self, volume: VolumeId, details: &VolumeDetails) -> Result<()> {
        let record = DetailsRecord {
            mapped_blocks: U64::new(details.mapped_blocks),
            transaction_id: U64::new(details.transaction_id.0),
            creation_time: U32::new(details.creation_time.0),
            snapshotted_time: U32::new(details.snapshotted_time.0),
        };
        let mut inserter = Inserter::new(&mut self.space, self.details_root);
        inserter.insert(volume.get(), record)?;
        self.details_root = inserter.root();
        Ok(())
    }
}
