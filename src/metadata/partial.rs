//! Partial blocks: data blocks that hold only some of their units, the others are read from a *base*. An extension of ours.
//!
//! Being partial is a property of the data block, so whatever shares the block shares that. A tree of its own, whose root is
//! in the superblock while it is not empty, names every partial block with its base and the units that it holds. What must hold:
//!
//! - An entry holds one reference to its base, as a mapping would. It comes together with the first mapping of its block.
//! - A base is never partial, so that nothing has to be looked up twice.
//! - A base may be an external origin, of which nothing is known here: each volume that maps the block does so at the place that
//!   the entry names, and has that origin.
//! - Units are added, never taken away. With the last one the entry goes, and its reference.
//! - The sum of all entries is kept as they change, and is in the superblock with the root: by it an older node of the tree that a
//!   write gone astray has left in place is known.
//! - A block whose count falls to 0 loses its entry in the same transaction ([`Metadata::apply_counts`]).
//! - A reference to a base is logged before the mapping that it takes the place of lets go, lest the count be 0 in between.
//!
//! Which units are there durably, is for the caller: it says so ([`Metadata::put_units`]) before the data flush of the commit.

use super::budget::Ask;
use super::space::{References, Span, TreeValue, require_data_block};
use super::tally::TreeKind;
use super::tree::Inserter;
use super::{BlockSet, Metadata};
use crate::disk::Disk;
use crate::error::{Error, Result};
pub use crate::format::Base;
use crate::format::{NodeKind, PartialRecord, PartialTree};
use crate::units::{DataBlock, Mapping, MetaBlock, VirtualBlock, VolumeId};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

/// What is known of a partial block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// Where the other units are.
    pub base: Base,
    /// The units that it holds, as [`crate::units::BlockSize::units_touched`] numbers them: some, and not all.
    pub units: u64,
}

impl Partial {
    fn record(self) -> PartialRecord {
        PartialRecord::new(self.base, self.units)
    }

    fn of(record: PartialRecord) -> Self {
        Partial { base: record.base(), units: record.mask.get() }
    }
}

impl TreeValue for PartialRecord {
    const TREE: TreeKind = TreeKind::Partials;
    fn retain(self, references: &mut References, leaf: MetaBlock) -> Result<()> {
        self.base().block().map_or(Ok(()), |base| references.data.increment(base, leaf))
    }
    fn release(self, references: &mut References, leaf: MetaBlock) -> Result<()> {
        self.base().block().map_or(Ok(()), |base| references.data.decrement(base, leaf))
    }
}

/// The tree of partial blocks, and what waits to get into it.
#[derive(Default)]
pub(super) struct Partials {
    /// `None`: there are no entries.
    pub root: Option<MetaBlock>,
    /// See [`PartialTree::sum`].
    sum: u64,
    /// The blocks that have an entry in the tree.
    blocks: BlockSet,
    /// Of blocks whose mapping waits in memory.
    pending: BTreeMap<u64, Partial>,
    /// Blocks that are handed out and may be mapped as partial ones.
    allowed: HashSet<u64>,
    /// Entries at the last commit.
    pub committed: u64,
    /// How many of the blocks that this transaction freed have been looked at.
    freed_seen: usize,
}

impl Partials {
    /// What the superblock is to say of it.
    pub fn tree(&self) -> Option<PartialTree> {
        self.root.map(|root| PartialTree { root, sum: self.sum })
    }

    /// An entry is in the tree from now on.
    fn count_in(&mut self, block: u64, record: PartialRecord) {
        self.sum = self.sum.wrapping_add(record.summand(block));
    }

    /// An entry is not in the tree any more.
    fn count_out(&mut self, block: u64, record: PartialRecord) {
        self.sum = self.sum.wrapping_sub(record.summand(block));
    }

    /// Entries of the tree.
    pub fn in_tree(&self) -> u64 {
        self.blocks.len()
    }

    /// Entries that may be added to the tree before anything else is asked for.
    pub fn outstanding(&self) -> u64 {
        (self.pending.len() + self.allowed.len()) as u64
    }

    pub fn allow(&mut self, block: DataBlock) {
        self.allowed.insert(block.0);
    }

    /// A block that was handed out is mapped, or given back.
    pub fn no_longer_allowed(&mut self, block: DataBlock) {
        self.allowed.remove(&block.0);
    }

    /// The transaction is over.
    pub fn commit(&mut self) {
        (self.committed, self.freed_seen) = (self.blocks.len(), 0);
    }

    /// A block is replaced before its mapping got anywhere.
    pub fn forget_pending(&mut self, block: DataBlock) {
        self.pending.remove(&block.0);
    }
}

impl<D: Disk> Metadata<D> {
    /// Number of partial blocks.
    pub fn partial_blocks(&self) -> u64 {
        self.partials.in_tree() + self.partials.pending.len() as u64
    }

    /// All partial blocks, in order of their numbers.
    pub fn partials(&mut self) -> Result<Vec<(DataBlock, Partial)>> {
        let mut all = self.partials.pending.clone();
        if let Some(root) = self.partials.root {
            let entries = self.space.entries::<PartialRecord>(root)?;
            all.extend(entries.into_iter().map(|(block, record)| (block, Partial::of(record))));
        }
        Ok(all.into_iter().map(|(block, partial)| (DataBlock(block), partial)).collect())
    }

    /// What is known of a block if it is a partial one.
    pub(super) fn partial_of(&mut self, block: DataBlock) -> Result<Option<Partial>> {
        if let Some(waiting) = self.partials.pending.get(&block.0) {
            return Ok(Some(*waiting));
        }
        match self.partials.root {
            Some(root) if self.partials.blocks.contains(block.0) => {
                Ok(self.space.lookup::<PartialRecord>(root, block.0)?.map(Partial::of))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// As [`Metadata::map`], of a block that was reserved with [`Metadata::reserve_partial_block`] and holds only some units.
    /// The base is none itself, and what `block` is mapped to until now, if it is a block. If it is an origin, it is that at `block`.
    pub fn map_partial(
        &mut self,
        volume: VolumeId,
        block: VirtualBlock,
        reserved: DataBlock,
        partial: Partial,
    ) -> Mapping {
        assert!(self.partials.allowed.contains(&reserved.0), "{reserved:?} was not to be partial");
        assert!(self.is_proper(partial.units), "{partial:?} has all units or none");
        assert!(is_at(partial.base, block), "{partial:?} at {block:?}");
        let mapping = self.map(volume, block, reserved);
        self.partials.pending.insert(reserved.0, partial);
        mapping
    }

    /// Some units, not all, and no others than there are.
    pub(super) fn is_proper(&self, units: u64) -> bool {
        let all = self.geometry().block_size.all_units();
        units != 0 && units != all && units & !all == 0
    }

    /// Notes which units partial blocks hold now; bytes first: the data flush of the commit comes after this. Blocks in
    /// ascending order. Those that are partial no more, or were freed, are passed over; those that hold all units become
    /// ordinary ones.
    pub fn put_units(&mut self, blocks: &[(DataBlock, u64)]) -> Result<()> {
        self.require_changeable()?;
        let all = self.geometry().block_size.all_units();
        let mut changed = Vec::new();
        for (block, units) in blocks {
            if let Some(waiting) = self.partials.pending.get_mut(&block.0) {
                assert_eq!(waiting.units & !units, 0, "a unit of {block:?} has gone");
                waiting.units = *units;
                if *units == all {
                    self.partials.pending.remove(&block.0);
                }
            } else if self.partials.blocks.contains(block.0) {
                changed.push((*block, *units));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.change(|this| {
            let whole = changed.iter().filter(|(_, units)| *units == all);
            this.remove_partials(&whole.map(|(block, _)| block.0).collect::<Vec<_>>())?;
            let Some(root) = this.partials.root else { return Ok(()) };
            let mut inserter = Inserter::<D, PartialRecord>::new(&mut this.space, root);
            for (block, units) in changed.iter().filter(|(_, units)| *units != all) {
                let Some(old) = inserter.prepare(block.0)? else { return Err(lost_entry(root, *block)) };
                if old.mask.get() & !units != 0 {
                    let what = format!("found more units of data block {} than it had", block.0);
                    return Err(Error::corrupt(root, what));
                }
                let new = PartialRecord { mask: (*units).into(), ..old };
                inserter.insert(block.0, new)?;
                this.partials.count_out(block.0, old);
                this.partials.count_in(block.0, new);
            }
            this.partials.root = Some(inserter.root());
            Ok(())
        })
    }

    /// Brings the entries of these blocks, whose mappings go into a volume's tree, into theirs; in ascending order. For
    /// whoever is changing something.
    pub(super) fn add_partials(&mut self, blocks: &[DataBlock]) -> Result<()> {
        let mut added = Vec::new();
        for block in blocks {
            added.extend(self.partials.pending.remove(&block.0).map(|partial| (*block, partial)));
        }
        if added.is_empty() {
            return Ok(());
        }
        let root = match self.partials.root {
            Some(root) => root,
            None => self.space.new_node::<PartialRecord>(NodeKind::Leaf)?,
        };
        let mut inserter = Inserter::new(&mut self.space, root);
        for (block, partial) in &added {
            if inserter.insert(block.0, partial.record())?.is_some() {
                let what = format!("found an entry for data block {}, which was free", block.0);
                return Err(Error::corrupt(root, what));
            }
        }
        let root = inserter.root();
        self.partials.root = Some(root);
        for (block, partial) in added {
            partial.record().retain(&mut self.space.references, root)?;
            self.partials.blocks.insert(block.0);
            self.partials.count_in(block.0, partial.record());
        }
        Ok(())
    }

    /// Takes the entries of these blocks away, in ascending order, and with the last one the tree. Neighbours in the tree go together: a
    /// deletion frees them by the hundred thousand.
    fn remove_partials(&mut self, blocks: &[u64]) -> Result<()> {
        let mut rest = blocks;
        while let (Some(root), [first, ..]) = (self.partials.root, rest) {
            let are_neighbours = |pair: &&[u64]| self.partials.blocks.next_after(pair[0]) == Some(pair[1]);
            let count = 1 + rest.windows(2).take_while(are_neighbours).count();
            let run = rest.split_off(..count).expect("there are so many");
            let span = Span { first: *first, last: run[count - 1] };
            let mut records = Vec::with_capacity(count);
            let _ = self.space.visit_leaves::<PartialRecord>(root, span, &mut |entries| {
                records.extend(entries.iter());
                ControlFlow::Continue(())
            })?;
            if !records.iter().map(|(block, _)| block).eq(run) {
                return Err(lost_entry(root, DataBlock(*first)));
            }
            let root = self.space.remove_range::<PartialRecord>(root, span)?;
            self.partials.root = Some(root);
            for (block, record) in records {
                self.partials.count_out(block, record);
                self.partials.blocks.remove(block);
            }
            if self.partials.blocks.len() == 0 {
                self.space.release_node::<PartialRecord>(root)?;
                self.partials.root = None;
            }
        }
        Ok(())
    }

    /// Brings logged counts into the data space map. Blocks that this frees lose their entries, which may free their bases.
    pub(super) fn apply_counts(&mut self) -> Result<()> {
        loop {
            self.data.apply(&mut self.space)?;
            let freed = &self.data.freed()[self.partials.freed_seen..];
            let mut gone: Vec<u64> =
                freed.iter().copied().filter(|block| self.partials.blocks.contains(*block)).collect();
            self.partials.freed_seen = self.data.freed().len();
            if gone.is_empty() {
                return Ok(());
            }
            gone.sort_unstable();
            self.remove_partials(&gone)?;
        }
    }

    /// Reads the tree that the superblock leads to. `Corrupt` for what would be read wrongly: its entries stand for bytes.
    pub(super) fn load_partials(&mut self) -> Result<()> {
        let Some(PartialTree { root, sum }) = self.superblock.partial_tree() else { return Ok(()) };
        let mut partials = Partials { root: Some(root), ..Partials::default() };
        let (mut wrong, mut blocks, mut bases) = (None, Vec::new(), Vec::new());
        let data_blocks = self.data.total();
        let block_size = self.geometry().block_size;
        let all = block_size.all_units();
        let _ = self.space.visit_leaves::<PartialRecord>(root, Span::ALL, &mut |entries| {
            for (block, record) in entries.iter() {
                let (base, units) = (record.base(), record.mask.get());
                let has_wrong_units = units == 0 || units == all || units & !all != 0;
                if block >= data_blocks || has_wrong_units || base.is_out_of_reach(block_size) {
                    wrong = Some((block, units, base));
                    return ControlFlow::Break(());
                }
                partials.blocks.insert(block);
                partials.count_in(block, record);
                blocks.push(DataBlock(block));
                bases.extend(base.block());
            }
            ControlFlow::Continue(())
        })?;
        for block in bases.iter().copied().chain(blocks) {
            require_data_block(block, data_blocks, root)?;
            if self.data.count(&mut self.space, block)? == 0 {
                let what = format!("found data block {} as partial or as a base, and free", block.0);
                return Err(Error::corrupt(root, what));
            }
        }
        if let Some((block, units, base)) = wrong {
            let what = format!(
                "found data block {block} of {data_blocks} as partial with the units {units:#x} and the base {base:?}"
            );
            return Err(Error::corrupt(root, what));
        }
        if partials.blocks.len() == 0 {
            return Err(Error::corrupt(root, "found an empty tree of partial blocks, expected none"));
        }
        for base in bases {
            if partials.blocks.contains(base.0) {
                let what = format!("found data block {} as a base, and as a partial block itself", base.0);
                return Err(Error::corrupt(root, what));
            }
        }
        if partials.sum != sum {
            let found = partials.sum;
            let what = format!(
                "found partial blocks that are not those of the last commit (sum {found:#x}), expected {sum:#x}"
            );
            return Err(Error::corrupt(root, what).hint(
                "keep a copy; `uthin-fsck check` tells whether anything else is damaged, and with --accept-partial-blocks goes on \
                 with these",
            ));
        }
        partials.commit();
        self.partials = partials;
        Ok(())
    }

    /// As [`Metadata::reserve_block`]; whether the block may be mapped with [`Metadata::map_partial`], too. That costs more
    /// metadata; where there is not enough for it, there may be for a whole one.
    pub fn reserve_partial_block(&mut self, wanted: Option<DataBlock>) -> Result<(DataBlock, bool)> {
        self.require_changeable()?;
        if self.checked_reservations == 0 || self.checked_partials == 0 {
            const BATCH: u64 = 64;
            let checked = [BATCH, 1].into_iter().find(|count| self.can_afford(&Ask::partials(*count)));
            let checked = checked.or_else(|| self.afford(&Ask::partials(1)).is_ok().then_some(1));
            let Some(checked) = checked else {
                self.checked_reservations = 0;
                return Ok((self.reserve_block(wanted)?, false));
            };
            (self.checked_reservations, self.checked_partials) = (checked, checked);
        }
        let block = self.reserve_block(wanted)?;
        self.checked_partials -= 1;
        self.partials.allow(block);
        Ok((block, true))
    }
}

/// Whether a block with this base may be mapped there.
pub(super) fn is_at(base: Base, block: VirtualBlock) -> bool {
    match base {
        Base::Zeros | Base::Block(_) => true,
        Base::Origin(shown) => shown == block,
    }
}

fn lost_entry(root: MetaBlock, block: DataBlock) -> Error {
    Error::corrupt(root, format_args!("found no entry for data block {}, which had one", block.0))
}

#[cfg(test)]
#[path = "partial_tests.rs"]
mod tests;
