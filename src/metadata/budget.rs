//! Worst cases: how many metadata blocks an operation, and the commit after it, can take.
//!
//! Running out of metadata blocks half-way has destroyed pools, so nothing is begun that might. The bounds are simple
//! rather than tight; each is argued where it is computed, all from the shape that format §4.3 guarantees. Within one
//! transaction a block is spent for good when it is allocated (what it replaces comes back only with the commit), so what
//! is compared is
//!
//! ```text
//! blocks available  >=  what is outstanding  +  the operation  +  the commit  +  what must stay for others
//! ```
//!
//! What must stay: after a mapping, the reserve, or room for an unmap and a delete, whichever is more; after an unmap, room
//! for a delete; after a delete, nothing. So deletion, which gives space back, always works; at worst it takes a commit first.

use super::partial::Partials;
use super::scarcity::Scarce;
use super::space::Space;
use super::tally::{Tally, TreeKind};
use super::{DataMap, Metadata};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    DetailsRecord, IndexEntry, LargeCount, MappingRecord, PartialRecord, RootRecord, capacity,
    smallest_occupancy,
};

/// Entries of an internal node, and the fewest that one other than a root has.
const FANOUT: u64 = capacity(size_of::<u64>()) as u64;
const LEAST_FANOUT: u64 = smallest_occupancy(FANOUT as usize) as u64;
/// Nodes at one level that removing a range may copy: two at the ends, and the neighbours that these are merged or
/// evened out with, twice each, since merging takes an entry from the level above.
const REMOVAL_NODES_PER_LEVEL: u64 = 6;

/// Metadata blocks kept back for deletions and commits, as the kernel does it (format §8.1).
pub(super) fn reserve(total_blocks: u64) -> u64 {
    (total_blocks / 10).min(4096)
}

/// Totals over all volumes, from which the size of their trees follows.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Shape {
    pub volumes: u64,
    /// Mappings of all volumes, those shared counted for each.
    pub mappings: u64,
    /// Volumes in the metadata snapshot, if one is held.
    pub held_volumes: u64,
    /// Their mappings.
    pub held_mappings: u64,
}

/// What an operation takes at worst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Mappings to be reserved.
    mappings: u64,
    /// Of these, those that may become partial blocks.
    partials: u64,
    /// Volumes to be added.
    volumes: u64,
    /// Ranges to be removed from a volume's tree.
    unmaps: u64,
    /// Volumes to be removed.
    deletes: u64,
    /// Bitmaps to be added to the data space map.
    bitmaps: u64,
}

impl Ask {
    const NOTHING: Ask = Ask { mappings: 0, partials: 0, volumes: 0, unmaps: 0, deletes: 0, bitmaps: 0 };

    pub fn mappings(mappings: u64) -> Self {
        Ask { mappings, ..Self::NOTHING }
    }
    pub fn partials(count: u64) -> Self {
        Ask { mappings: count, partials: count, ..Self::NOTHING }
    }
    pub fn new_volume() -> Self {
        Ask { volumes: 1, ..Self::NOTHING }
    }
    pub fn unmap() -> Self {
        Ask { unmaps: 1, ..Self::NOTHING }
    }
    pub fn delete() -> Self {
        Ask { deletes: 1, ..Self::NOTHING }
    }
    /// A block for the copy of the superblock. From then on every node has another holder: the next change of a volume copies
    /// what it would have had to itself, which is what a new volume's bound allows for.
    pub fn metadata_snapshot() -> Self {
        Ask { volumes: 1, ..Self::NOTHING }
    }
    pub fn more_data(bitmaps: u64) -> Self {
        Ask { bitmaps, ..Self::NOTHING }
    }

    /// The operations for which this one must leave room.
    fn with_successors(self) -> Self {
        if !self.may_use_reserve() {
            Ask { unmaps: self.unmaps + 1, deletes: self.deletes + 1, ..self }
        } else if self.unmaps > 0 {
            Ask { deletes: self.deletes + 1, ..self }
        } else {
            self
        }
    }

    fn adds_nodes(self) -> bool {
        self.mappings + self.volumes + self.unmaps + self.bitmaps > 0
    }

    pub fn may_use_reserve(self) -> bool {
        self.mappings + self.volumes + self.bitmaps == 0
    }
}

impl<D: Disk> Metadata<D> {
    /// Makes sure that an operation can be carried through. Brings pending work into the trees if it helps: what it takes
    /// is then known, and mostly far less than the worst case. `NoMetadataSpace`.
    pub(super) fn afford(&mut self, ask: &Ask) -> Result<()> {
        self.require_backing(ask)?;
        if self.can_make_room(ask) || self.back_until(|this| this.can_afford(ask)) {
            return Ok(());
        }
        if self.pending.len() > 0 || !self.space.references.data.is_empty() {
            self.apply_pending()?;
            self.change(Self::apply_counts)?;
            if self.can_afford(ask) {
                return Ok(());
            }
        }
        if let Some(error) = self.lacks_backing() {
            return Err(error);
        }
        let metadata = &self.space.references.metadata;
        let what = format!(
            "too few free metadata blocks: {} of {} are free, {} of them kept back",
            metadata.available(),
            metadata.total(),
            reserve(metadata.total())
        );
        Err(Error::new(ErrorKind::NoMetadataSpace, what).hint(
            "commit, which gives back replaced blocks; then grow the metadata device, or delete volumes",
        ))
    }

    /// As [`Metadata::can_afford`], at the cost of a count that is under way, if it must be.
    pub(super) fn can_make_room(&mut self, ask: &Ask) -> bool {
        self.can_afford(ask) || (self.end_count() && self.can_afford(ask))
    }

    /// Whether the operation can be carried through from the present state.
    pub(super) fn can_afford(&self, ask: &Ask) -> bool {
        let may_be_refused = !ask.may_use_reserve();
        if may_be_refused && (self.is_bare() || self.space.scarcity.refuses(Scarce::MetadataSpace)) {
            return false;
        }
        let state = self.outlook();
        let available = self.space.references.metadata.available();
        if self.replays {
            // What must stay for others was asked when it was done for the first time, and may be in use by now.
            return state.worst_case(ask) <= available;
        }
        let kept = if ask.may_use_reserve() { 0 } else { reserve(self.space.references.metadata.total()) };
        let need = |ask: &Ask| state.worst_case(ask) + state.growth(ask);
        (need(ask) + kept).max(need(&ask.with_successors())) <= available
    }

    /// The most partial blocks that are to be there: so many that their tree never has more than a quarter of all metadata, however empty
    /// its nodes are, nor its growth, which is counted once more ([`Outlook::growth`]). The rest is for mappings.
    pub fn partial_blocks_limit(&self) -> u64 {
        self.space.references.metadata.total() / 4 * (leaf_capacity::<PartialRecord>() / 3)
    }

    /// Whether all that is outstanding, and the commit, can be carried through: what every check is there to keep true.
    pub(super) fn is_covered(&self) -> bool {
        self.outlook().worst_case(&Ask::NOTHING) <= self.space.references.metadata.available()
    }

    fn outlook(&self) -> Outlook {
        let outstanding = self.pending.len() as u64 + self.data.reserved();
        let partials = &self.partials;
        Outlook::new(&self.space, &self.data, self.shape, outstanding, partials)
    }
}

/// Everything that worst cases depend on.
struct Outlook {
    shape: Shape,
    /// Mappings reserved or pending.
    outstanding: u64,
    /// Entries of the tree of partial blocks, and those that may come with what is outstanding.
    partials: u64,
    outstanding_partials: u64,
    /// Entries at the last commit.
    committed_partials: u64,
    data_blocks: u64,
    data_allocated: u64,
    bitmaps: u64,
    unchanged_bitmaps: u64,
    index_nodes: u64,
    large_data_nodes: u64,
    large_metadata_entries: u64,
    metadata_bitmaps: u64,
    metadata_allocated: u64,
    /// References added to data blocks that had some, not applied yet.
    logged_increments: u64,
    tally: Tally,
}

/// What a number of operations takes.
#[derive(Clone, Copy, Default)]
struct Cost {
    blocks: u64,
    /// References added to data blocks that have some.
    data_increments: u64,
    /// References added to metadata blocks that have some.
    metadata_increments: u64,
}

impl Outlook {
    fn new<D: Disk>(
        space: &Space<D>,
        data: &DataMap,
        shape: Shape,
        outstanding: u64,
        partials: &Partials,
    ) -> Self {
        let metadata = &space.references.metadata;
        Outlook {
            shape,
            outstanding,
            partials: partials.in_tree(),
            outstanding_partials: partials.outstanding(),
            committed_partials: partials.committed,
            data_blocks: data.total(),
            data_allocated: data.allocated() + space.references.data.fresh(),
            bitmaps: data.bitmaps(),
            unchanged_bitmaps: data.unchanged_bitmaps(),
            index_nodes: data.index_nodes(),
            large_data_nodes: data.large_nodes(),
            large_metadata_entries: metadata.large_entries_at_most(),
            metadata_bitmaps: metadata.bitmaps.len() as u64,
            metadata_allocated: metadata.allocated(),
            logged_increments: space.references.data.shared(),
            tally: space.tally,
        }
    }

    /// Blocks for all that is outstanding, the operation, and the commit.
    fn worst_case(&self, ask: &Ask) -> u64 {
        let operations = self.operations(ask);
        operations.blocks + self.commit(ask, operations)
    }

    /// By how much more blocks the trees of large counts and of partial blocks may have afterwards. All their nodes must be affordable again in
    /// the next transaction, so growth is asked for twice.
    fn growth(&self, ask: &Ask) -> u64 {
        if !ask.adds_nodes() {
            return 0;
        }
        // What is outstanding has asked already; only who adds to it asks for all of it again.
        let before =
            if ask.mappings + ask.volumes > 0 { Cost::default() } else { self.operations(&Ask::NOTHING) };
        let large_counts =
            self.commit(ask, self.operations(ask)).saturating_sub(self.commit(&Ask::NOTHING, before));
        large_counts + self.partial_growth(ask)
    }

    /// The same for the tree of partial blocks, by which it outgrows the last commit's.
    fn partial_growth(&self, ask: &Ask) -> u64 {
        let leaf = leaf_capacity::<PartialRecord>();
        let old = self.tally.committed(TreeKind::Partials).all().max(self.committed_partials.div_ceil(leaf));
        match self.partials_at_most(ask) {
            0 => 0,
            _ if ask.may_use_reserve() => 0,
            entries => nodes_for(entries, leaf).saturating_sub(old),
        }
    }

    /// Can a block have three holders, and so a large count? Each volume holds a block at most once, and so does the
    /// metadata snapshot for each of the volumes that it remembers. Partial blocks hold their bases besides.
    fn counts_can_be_large(&self, ask: &Ask) -> bool {
        self.partials_at_most(ask) > 0 || self.shape.volumes + ask.volumes + self.shape.held_volumes > 2
    }

    /// All partial blocks that there can be.
    fn partials_at_most(&self, ask: &Ask) -> u64 {
        self.partials + self.outstanding_partials + ask.partials
    }

    /// All mappings that there can be, those shared counted for each volume.
    fn mappings_at_most(&self, ask: &Ask) -> u64 {
        // A snapshot's are as many as its origin's, which are some volume's.
        let snapshots = if ask.volumes == 0 { 0 } else { self.shape.mappings.min(self.data_blocks) };
        self.shape.mappings + self.outstanding + ask.mappings + snapshots
    }

    fn operations(&self, ask: &Ask) -> Cost {
        let volumes = self.shape.volumes + ask.volumes;
        let upper = levels(volumes, leaf_capacity::<RootRecord>());
        let details = levels(volumes, leaf_capacity::<DetailsRecord>());
        // A volume's mappings name different data blocks.
        let in_one_volume = self.mappings_at_most(ask).min(self.data_blocks);
        let lower = levels(in_one_volume, leaf_capacity::<MappingRecord>());

        let mut cost = self.mapping(ask, lower, upper, details);
        // An entry in both trees, with a split at every level; for a snapshot the origin's details besides.
        cost.blocks += ask.volumes * (2 * (upper + details) + 2 + 1 + details);
        let removals = REMOVAL_NODES_PER_LEVEL * ask.unmaps;
        cost.blocks += removals * lower + (upper + details) * ask.unmaps;
        cost.blocks += REMOVAL_NODES_PER_LEVEL * ask.deletes * (upper + details);
        if self.counts_can_be_large(ask) {
            cost.data_increments += removals * FANOUT + self.outstanding_partials + ask.partials;
            cost.metadata_increments += removals * FANOUT * (lower - 1) + ask.volumes;
            let upper_nodes = upper * (ask.volumes + ask.unmaps + REMOVAL_NODES_PER_LEVEL * ask.deletes);
            cost.metadata_increments += upper_nodes * FANOUT;
        }
        cost
    }

    /// Mappings inserted anywhere. Each copies its leaf, and then either a sibling to move entries to, or makes the other
    /// half of a split; likewise above. A root that is split takes one block more. That is the bound for few mappings.
    ///
    /// For many: a transaction makes no more nodes of a kind than there are of it in the end, since one that was made and
    /// given up in the same transaction can be used again; and those made already need not be made again. But a mapping that
    /// is only reserved may have to wait for a later transaction, for which there are fewer free blocks by as many nodes as
    /// the trees have grown. In all they cannot grow to more than there are in the end either, so that comes on top.
    fn mapping(&self, ask: &Ask, lower: u64, upper: u64, details: u64) -> Cost {
        let mappings = self.outstanding + ask.mappings;
        if mappings == 0 {
            return Cost::default();
        }
        // The nodes of the metadata snapshot are counted with the others.
        let volumes = self.shape.volumes + ask.volumes + self.shape.held_volumes;
        let all_mappings = self.mappings_at_most(ask).saturating_add(self.shape.held_mappings);
        // Every node has 84 entries, but for one at each level of each volume.
        let leaves = all_mappings / LEAST_FANOUT + volumes;
        let internal = all_mappings / (LEAST_FANOUT * LEAST_FANOUT - LEAST_FANOUT) + volumes * lower;
        let (made, old) = (self.tally.made(TreeKind::Mappings), self.tally.committed(TreeKind::Mappings));
        let leaves = (2 * mappings).min((2 * leaves).saturating_sub(made.leaves + old.leaves));
        let internal =
            ((2 * lower - 1) * mappings).min((2 * internal).saturating_sub(made.internal + old.internal));
        // Mappings change the entries of volumes, but add none.
        let made = |tree| self.tally.made(tree).all();
        let upper_nodes =
            nodes_for(volumes, leaf_capacity::<RootRecord>()).saturating_sub(made(TreeKind::Roots));
        let upper_nodes = upper_nodes.min(mappings * upper);
        let details_nodes =
            nodes_for(volumes, leaf_capacity::<DetailsRecord>()).saturating_sub(made(TreeKind::Details));
        let blocks = leaves + internal + upper_nodes + details_nodes.min(mappings * details);
        if !self.counts_can_be_large(ask) {
            return Cost { blocks, ..Cost::default() };
        }
        Cost {
            blocks,
            data_increments: FANOUT * mappings.min(leaves),
            metadata_increments: FANOUT * (internal + upper_nodes),
        }
    }

    /// The commit: every bitmap of the data that is not written yet, all nodes of the index and of both trees of large
    /// counts, and the metadata's own bitmaps with their index block.
    fn commit(&self, ask: &Ask, cost: Cost) -> u64 {
        let large_data_nodes = self.large_data_nodes_after(ask, cost.data_increments);
        // New bitmaps, and an index as wide as it may have to be for them.
        let added =
            if ask.bitmaps == 0 { 0 } else { ask.bitmaps + index_nodes_for(self.bitmaps + ask.bitmaps) };
        let blocks = self.unchanged_bitmaps
            + self.index_nodes
            + added
            + large_data_nodes.saturating_sub(self.tally.made(TreeKind::LargeCounts).all())
            + self.partial_nodes(ask)
            + self.metadata_bitmaps
            + 1;
        let metadata_entries = (self.large_metadata_entries + cost.metadata_increments)
            .min(self.metadata_allocated + cost.blocks + blocks);
        blocks + nodes_for(metadata_entries, leaf_capacity::<LargeCount>())
    }

    /// Nodes of the tree of partial blocks that are still to be made: the commit may have to write any entry, and every node
    /// is made once.
    fn partial_nodes(&self, ask: &Ask) -> u64 {
        match self.partials_at_most(ask) {
            0 => 0,
            entries => nodes_for(entries, leaf_capacity::<PartialRecord>())
                .saturating_sub(self.tally.made(TreeKind::Partials).all()),
        }
    }

    /// Nodes of the tree of data blocks' large counts, once so many references were added besides those logged. No more
    /// than one split for each, nor more than the entries can fill: each stands for a block with three references.
    fn large_data_nodes_after(&self, ask: &Ask, increments: u64) -> u64 {
        let added = self.logged_increments + increments;
        if added == 0 || !self.counts_can_be_large(ask) {
            return self.large_data_nodes;
        }
        let leaf = leaf_capacity::<LargeCount>();
        let references = self.mappings_at_most(ask) + self.shape.held_mappings + self.partials_at_most(ask);
        let blocks = self.data_allocated + self.outstanding + ask.mappings;
        let entries = (self.large_data_nodes * leaf + added).min(references / 3).min(blocks);
        let by_splits = self.large_data_nodes + added + levels(entries, leaf);
        by_splits.min(nodes_for(entries, leaf)).max(self.large_data_nodes)
    }
}

fn leaf_capacity<V>() -> u64 {
    capacity(size_of::<V>()) as u64
}

/// The most nodes that a tree with so many entries has, if every node but the root is as empty as it may be.
fn nodes_for(entries: u64, leaf_capacity: u64) -> u64 {
    let mut level = (entries / (leaf_capacity / 3)).max(1);
    let mut nodes = level;
    while level > 1 {
        level = (level / LEAST_FANOUT).max(1);
        nodes += level;
    }
    nodes
}

/// The most levels that such a tree has.
fn levels(entries: u64, leaf_capacity: u64) -> u64 {
    // A tree of two levels has at least two leaves, one of three levels two nodes of 84 leaves, and so on.
    let least_entries =
        std::iter::successors(Some(2 * (leaf_capacity / 3)), |least| least.checked_mul(LEAST_FANOUT));
    1 + least_entries.take_while(|least| entries >= *least).count() as u64
}

/// The most nodes of an index tree over a device of that many data blocks, for sizing a metadata device.
pub(super) fn index_nodes_for(bitmaps: u64) -> u64 {
    nodes_for(bitmaps, leaf_capacity::<IndexEntry>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_and_widest_trees_are_those_with_nodes_a_third_full() {
        let mapping = leaf_capacity::<MappingRecord>();
        assert_eq!([0, 167, 168, 2 * 84 * 84 - 1, 2 * 84 * 84].map(|n| levels(n, mapping)), [1, 1, 2, 2, 3]);
        assert_eq!(levels(u64::MAX, mapping), 10);
        assert_eq!([0, 84, 168, 84 * 84].map(|n| nodes_for(n, mapping)), [1, 1, 3, 85]);
    }

    #[test]
    fn the_reserve_is_the_kernels() {
        assert_eq!([1024, 2048, 40_960, 4_161_600].map(reserve), [102, 204, 4096, 4096]);
    }
}
