//! The walk over all trees: each distinct node is read once, judged, and its references counted.
//!
//! What a subtree holds is remembered by its root block ([`Subtree`]), so that a node shared by a thousand snapshots
//! costs one read; what is sound, [`super::ahead`] has mostly judged before the walk comes to it. Where a child does not fit into its parent (wrong key range or depth), it is reported and left out of
//! what the parent holds. That is also what makes every later descent end: children that fit have disjoint key
//! ranges, so no node is reached twice below the same root, and none below itself.

use super::counts::{Counts, PAGE_ENTRIES};
use super::nodes::{Nodes, Subtree, Visited};
use super::report::{Findings, Found, Severity};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::format::{
    Block, DetailsRecord, Entries, IndexEntry, LargeCount, MappingRecord, Node, NodeHeader, NodeValue,
    RootRecord, Superblock, smallest_occupancy,
};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock, SnapTime, VolumeId};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// No sound tree is deeper: five levels of nodes hold more entries than the largest metadata device has room for.
const DEPTH_LIMIT: usize = 12;

/// Which structure a block belongs to, in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Superblock,
    HeldRoot,
    /// The upper mapping tree; `true` where it is the metadata snapshot's.
    Volumes(bool),
    Details(bool),
    Mappings {
        volume: u64,
        held: bool,
    },
    Partials,
    DataIndex,
    DataLargeCounts,
    DataBitmap(u64),
    MetadataIndex,
    MetadataLargeCounts,
    MetadataBitmap(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |held: bool| if held { " of the metadata snapshot" } else { "" };
        match *self {
            Place::Superblock => write!(f, "superblock"),
            Place::HeldRoot => write!(f, "metadata snapshot"),
            Place::Volumes(held) => write!(f, "tree of volumes{}", of(held)),
            Place::Details(held) => write!(f, "details of volumes{}", of(held)),
            Place::Mappings { volume, held } => write!(f, "mappings of volume {volume}{}", of(held)),
            Place::Partials => write!(f, "partial blocks"),
            Place::DataIndex => write!(f, "index of the data space map"),
            Place::DataLargeCounts => write!(f, "large counts of the data space map"),
            Place::DataBitmap(index) => write!(f, "bitmap {index} of the data space map"),
            Place::MetadataIndex => write!(f, "index of the metadata space map"),
            Place::MetadataLargeCounts => write!(f, "large counts of the metadata space map"),
            Place::MetadataBitmap(index) => write!(f, "bitmap {index} of the metadata space map"),
        }
    }
}

/// What a tree's leaves hold. A node belongs to trees of one kind only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tree {
    Volumes,
    Mappings,
    Details,
    Index,
    LargeCounts,
    Partials,
}

/// A value of some tree's leaves, and what seeing a leaf for the first time means.
pub(super) trait LeafValue: NodeValue {
    const TREE: Tree;
    fn on_leaf(walk: &mut Walk<'_>, number: MetaBlock, place: Place, entries: Entries<'_, Self>);

    /// The latest time of a leaf's mappings; 0 where there are none.
    fn youngest(_: Entries<'_, Self>) -> SnapTime {
        SnapTime(0)
    }
}

/// Where a later descent can go from a node.
pub(super) enum Below {
    Leaf,
    /// Children with the keys that each is responsible for, and whether it can be descended into.
    Children(Vec<(MetaBlock, Range<u64>, bool)>),
}

/// The state of one check.
pub(super) struct Walk<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) findings: Findings,
    /// References to metadata blocks and to data blocks, as far as they were seen.
    pub(super) metadata_counts: Counts,
    pub(super) data_counts: Counts,
    /// Something could not be read, so there may be more references than were counted.
    pub(super) is_incomplete: bool,
    /// Whether the volumes' own trees are left alone.
    pub(super) skip_mappings: bool,
    /// Whether what is sound is judged ahead.
    pub(super) judges_ahead: bool,
    pub(super) data_blocks: u64,
    pub(super) now: SnapTime,
    pub(super) nodes: Nodes,
    flagged: HashSet<MetaBlock>,
    /// From the root of the tree that is being walked to the parent of the node at hand.
    path: Vec<MetaBlock>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(disk: &'a dyn Disk, superblock: &Superblock, findings: Findings) -> Self {
        let on_disk = (disk.size_bytes() / META_BLOCK_BYTES as u64).min(META_BLOCKS_LIMIT);
        // What the space map does not reach cannot be in use; a size that cannot be is reported with that map.
        let of_pool = superblock.metadata_space_map.total_blocks.get();
        let device_blocks = if (1..=on_disk).contains(&of_pool) { of_pool } else { on_disk };
        let data_blocks = superblock.data_space_map.total_blocks.get();
        // A device cannot have bitmaps for more data blocks than this, whatever its superblock says.
        let counted_data_blocks = data_blocks.min(device_blocks * PAGE_ENTRIES);
        Walk {
            disk,
            findings,
            metadata_counts: Counts::new(device_blocks),
            data_counts: Counts::new(counted_data_blocks),
            is_incomplete: false,
            skip_mappings: false,
            judges_ahead: true,
            data_blocks,
            now: superblock.time,
            nodes: Nodes::new(device_blocks),
            flagged: HashSet::new(),
            path: Vec::new(),
        }
    }

    pub(super) fn nodes_read(&self) -> u64 {
        self.nodes.met()
    }

    /// Blocks that are on the disk.
    pub(super) fn device_blocks(&self) -> u64 {
        self.disk.size_bytes() / META_BLOCK_BYTES as u64
    }

    /// Whether anything was reported of any block.
    pub(super) fn has_flagged(&self) -> bool {
        !self.flagged.is_empty()
    }

    pub(super) fn is_flagged(&self, number: MetaBlock) -> bool {
        self.flagged.contains(&number)
    }

    /// Reports damage of a block.
    pub(super) fn damage(&mut self, number: MetaBlock, place: Place, message: impl fmt::Display) {
        self.damage_of_keys(number, place, None, message);
    }

    /// Reports damage that concerns only some of the keys below a block.
    fn damage_of_keys(
        &mut self,
        number: MetaBlock,
        place: Place,
        keys: Option<Range<u64>>,
        message: impl fmt::Display,
    ) {
        self.flagged.insert(number);
        let found = Found { severity: Severity::Damage, block: Some(number), path: &self.path, keys };
        self.findings.add(found, place, message);
    }

    /// Reports damage of a block, or only some keys in it, at the end of a path from the root of its tree.
    pub(super) fn damage_at(
        &mut self,
        path: &[MetaBlock],
        (number, keys): (MetaBlock, Option<Range<u64>>),
        place: Place,
        message: impl fmt::Display,
    ) {
        let above = std::mem::replace(&mut self.path, path.to_vec());
        self.damage_of_keys(number, place, keys, message);
        self.path = above;
    }

    /// As [`Walk::damage`], for what hides whatever is below the block.
    pub(super) fn unreadable(&mut self, number: MetaBlock, place: Place, message: impl fmt::Display) {
        self.is_incomplete = true;
        self.damage(number, place, message);
    }

    /// Counts a reference to a metadata block. `false`, and a finding, when there is no such block.
    pub(super) fn reference(&mut self, number: MetaBlock, place: Place) -> bool {
        let exists = self.metadata_counts.add(number.0);
        if !exists {
            self.is_incomplete = true;
            let parent = self.path.last().copied();
            self.flagged.extend(parent);
            let path = &self.path[..self.path.len().saturating_sub(1)];
            let found = Found { severity: Severity::Damage, block: parent, path, keys: None };
            let message = format_args!("refers to metadata block {number}, past the end of the metadata");
            self.findings.add(found, place, message);
        }
        exists
    }

    /// Reads a block and checks what every kind of block has. `None`, and a finding, when it is not a `kind`.
    pub(super) fn read(&mut self, number: MetaBlock, place: Place, kind: BlockKind) -> Option<Box<Block>> {
        let mut block = Box::new(Block::ZERO);
        let outcome = match self.disk.read_at(number.offset_bytes(), &mut block.0) {
            Ok(()) => block.verify(number, kind).map_err(|error| error.message().to_owned()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        match outcome {
            Ok(()) => Some(block),
            Err(message) => {
                self.unreadable(number, place, message);
                None
            }
        }
    }

    /// Counts the reference to a tree's root and walks what was not walked before. `None` when the root is of no use.
    pub(super) fn tree<V: LeafValue>(&mut self, root: MetaBlock, place: Place) -> Option<Subtree> {
        let above = std::mem::take(&mut self.path);
        let subtree = self.node::<V>(root, place);
        self.path = above;
        subtree
    }

    fn node<V: LeafValue>(&mut self, number: MetaBlock, place: Place) -> Option<Subtree> {
        if !self.reference(number, place) {
            return None;
        }
        let subtree = match self.nodes.get(number) {
            None => self.visit::<V>(number, place)?,
            Some(Visited::Unreadable(tree)) if *tree != V::TREE => self.visit::<V>(number, place)?,
            Some(Visited::Read(subtree)) if subtree.tree == V::TREE => *subtree,
            Some(Visited::Read(_)) => {
                self.unreadable(number, place, "a node of another kind of tree is used here");
                return None;
            }
            Some(Visited::Open) => {
                self.unreadable(number, place, "the node is its own descendant");
                return None;
            }
            Some(Visited::Unreadable(_)) => return None,
        };
        let fewest = smallest_occupancy(usize::from(subtree.own_capacity));
        let is_root = self.path.is_empty();
        let found = usize::from(subtree.own_entries);
        if !is_root && found < fewest {
            let message =
                format_args!("{found} entries, fewer than the {fewest} that a node below a root has");
            self.damage(number, place, message);
        }
        Some(subtree)
    }

    /// Reads and judges a node for the first time.
    fn visit<V: LeafValue>(&mut self, number: MetaBlock, place: Place) -> Option<Subtree> {
        self.nodes.insert(number, Visited::Open);
        let subtree = self.judge::<V>(number, place);
        self.nodes.insert(number, subtree.map_or(Visited::Unreadable(V::TREE), Visited::Read));
        subtree
    }

    fn judge<V: LeafValue>(&mut self, number: MetaBlock, place: Place) -> Option<Subtree> {
        if self.path.len() >= DEPTH_LIMIT {
            self.unreadable(
                number,
                place,
                format_args!("deeper than {DEPTH_LIMIT} levels, as no tree can be"),
            );
            return None;
        }
        let block = self.read(number, place, BlockKind::Node)?;
        let header = NodeHeader::decode(&block);
        let node = match Node::<V>::parse(&block) {
            Ok(node) => node,
            Err(fault) => {
                self.unreadable(number, place, fault);
                return None;
            }
        };
        if !header.has_usual_capacity() {
            let room = header.max_entries.get();
            if self.path.is_empty() {
                let message =
                    format_args!("room for {room} entries, which is unusual; a root has no siblings");
                self.findings.note(Severity::Note, Some(number), place, message);
            } else {
                let message = format_args!("room for {room} entries: its siblings cannot share with it");
                self.damage(number, place, message);
            }
        }
        let own_capacity = header.max_entries.get() as usize;
        match node {
            Node::Leaf(entries) => {
                self.require_ascending(number, place, entries.keys_ascend())?;
                V::on_leaf(self, number, place, entries);
                let mut leaf = Subtree::new(V::TREE, entries.len(), own_capacity);
                // A block has no room for more.
                leaf.extend(entries.key_span(), entries.len() as u32, V::youngest(entries));
                Some(leaf)
            }
            Node::Internal(entries) => {
                self.require_ascending(number, place, entries.keys_ascend())?;
                if entries.is_empty() {
                    self.unreadable(number, place, "an internal node without children");
                    return None;
                }
                let children = children_of(entries);
                drop(block); // a deep descent need not hold every block on its way
                Some(self.internal::<V>(number, place, &children, own_capacity))
            }
        }
    }

    fn require_ascending(&mut self, number: MetaBlock, place: Place, do_ascend: bool) -> Option<()> {
        if !do_ascend {
            self.unreadable(number, place, "its keys do not strictly increase");
        }
        do_ascend.then_some(())
    }

    /// Walks the children of an internal node and sums up those that fit.
    fn internal<V: LeafValue>(
        &mut self,
        number: MetaBlock,
        place: Place,
        children: &[(MetaBlock, Range<u64>)],
        own_capacity: usize,
    ) -> Subtree {
        let mut sum = Subtree::new(V::TREE, children.len(), own_capacity);
        let mut depth_below = None;
        self.path.push(number);
        for (child, keys) in children {
            let Some(subtree) = self.node::<V>(*child, place) else { continue };
            let depth = *depth_below.get_or_insert(subtree.depth);
            if let Some(why) = subtree.misfit(keys, depth) {
                self.unreadable(*child, place, why);
            } else {
                sum.extend(subtree.span(), subtree.entries, subtree.youngest);
            }
        }
        self.path.pop();
        sum.depth = depth_below.map_or(0, |depth| depth + 1);
        sum
    }

    /// What is known below a node, if it was read as one of these trees.
    pub(super) fn known<V: LeafValue>(&self, number: MetaBlock) -> Option<Subtree> {
        match self.nodes.get(number) {
            Some(Visited::Read(subtree)) if subtree.tree == V::TREE => Some(*subtree),
            Some(Visited::Read(_) | Visited::Open | Visited::Unreadable(_)) | None => None,
        }
    }

    /// Reads a node again that was read before and hands the entries of a leaf to `on_leaf`.
    pub(super) fn below<V: LeafValue>(
        &mut self,
        number: MetaBlock,
        place: Place,
        on_leaf: &mut dyn FnMut(Entries<'_, V>),
    ) -> Option<Below> {
        let subtree = self.known::<V>(number)?;
        let block = self.read(number, place, BlockKind::Node)?;
        // It was sound a moment ago; a disk that has changed its mind answers nothing here.
        match Node::<V>::parse(&block).ok()? {
            Node::Leaf(entries) => {
                on_leaf(entries);
                Some(Below::Leaf)
            }
            Node::Internal(entries) => {
                let depth = subtree.depth.checked_sub(1)?;
                let children = children_of(entries).into_iter().map(|(child, keys)| {
                    let fits = self.known::<V>(child).is_some_and(|subtree| subtree.fits(&keys, depth));
                    (child, keys, fits)
                });
                Some(Below::Children(children.collect()))
            }
        }
    }

    /// Hands all entries of a walked tree to `each`, in the order of their keys, what is damaged left out.
    pub(super) fn each_entry<V: LeafValue>(
        &mut self,
        root: MetaBlock,
        place: Place,
        each: &mut dyn FnMut(u64, V),
    ) {
        let mut waiting = vec![root];
        while let Some(number) = waiting.pop() {
            let below = self.below::<V>(number, place, &mut |entries| {
                entries.iter().for_each(|(key, value)| each(key, value));
            });
            if let Some(Below::Children(children)) = below {
                let fitting = children.into_iter().rev().filter(|(_, _, fits)| *fits);
                waiting.extend(fitting.map(|(child, _, _)| child));
            }
        }
    }

    /// All entries of a walked tree that is small.
    pub(super) fn entries<V: LeafValue>(&mut self, root: MetaBlock, place: Place) -> Vec<(u64, V)> {
        let mut found = Vec::new();
        self.each_entry(root, place, &mut |key, value| found.push((key, value)));
        found
    }
}

/// Children with the keys that each is responsible for. The last one's end is `u64::MAX`, which no key needs.
pub(super) fn children_of(
    entries: Entries<'_, zerocopy::little_endian::U64>,
) -> Vec<(MetaBlock, Range<u64>)> {
    let end = |index: usize| entries.keys.get(index + 1).map_or(u64::MAX, |key| key.get());
    (0..entries.len()).map(|index| (entries.child(index), entries.key(index)..end(index))).collect()
}

impl LeafValue for RootRecord {
    const TREE: Tree = Tree::Volumes;

    fn on_leaf(walk: &mut Walk<'_>, number: MetaBlock, place: Place, entries: Entries<'_, Self>) {
        let held = place == Place::Volumes(true);
        for (volume, root) in entries.iter() {
            if VolumeId::new(volume).is_none() {
                let message = format_args!("volume number {volume} is above {}", VolumeId::MAX);
                walk.damage(number, place, message);
            }
            if !walk.skip_mappings {
                walk.tree::<MappingRecord>(root.root(), Place::Mappings { volume, held });
            }
        }
    }
}

/// The latest time of a leaf's mappings.
#[inline]
pub(super) fn youngest_of(entries: Entries<'_, MappingRecord>) -> SnapTime {
    entries.values.iter().map(|record| record.mapping().time).max().unwrap_or(SnapTime(0))
}

impl LeafValue for MappingRecord {
    const TREE: Tree = Tree::Mappings;

    fn youngest(entries: Entries<'_, Self>) -> SnapTime {
        youngest_of(entries)
    }

    fn on_leaf(walk: &mut Walk<'_>, number: MetaBlock, place: Place, entries: Entries<'_, Self>) {
        let (data_blocks, now) = (walk.data_blocks, walk.now);
        let mut outside = Misplaced::default();
        let mut ahead = Misplaced::default();
        for (key, record) in entries.iter() {
            let mapping = record.mapping();
            if mapping.block.0 >= data_blocks {
                outside.add(key, mapping.block.0);
            } else {
                // A block without a bitmap is reported with the space map; here there is nothing to count.
                let _ = walk.data_counts.add(mapping.block.0);
            }
            if mapping.time > now {
                ahead.add(key, u64::from(mapping.time.0));
            }
        }
        if let Some((keys, words)) = outside.words() {
            let message = format_args!("{words} to a data block past the end, {data_blocks} blocks");
            walk.damage_of_keys(number, place, Some(keys), message);
        }
        if let Some((keys, words)) = ahead.words() {
            let message = format_args!("{words} at a time after the pool's own, {}", now.0);
            walk.damage_of_keys(number, place, Some(keys), message);
        }
    }
}

/// Mappings of one leaf with the same fault.
#[derive(Default)]
pub(super) struct Misplaced {
    first: Option<(u64, u64)>,
    last_key: u64,
    more: usize,
}

impl Misplaced {
    pub(super) fn add(&mut self, key: u64, value: u64) {
        self.more += usize::from(self.first.is_some());
        self.first.get_or_insert((key, value));
        self.last_key = key;
    }

    /// The first of them.
    pub(super) fn first_key(&self) -> Option<u64> {
        self.first.map(|(key, _)| key)
    }

    /// Which keys they are among, and words for them.
    pub(super) fn words(&self) -> Option<(Range<u64>, String)> {
        let (key, value) = self.first?;
        let more = if self.more > 0 { format!(" (and {} more)", self.more) } else { String::new() };
        let words = format!("virtual block {key}{more} is mapped, with {value},");
        Some((key..self.last_key.saturating_add(1), words))
    }
}

/// Values that point at nothing the walk would follow.
macro_rules! plain_values {
    ($($value:ty => $tree:expr),*) => {
        $(impl LeafValue for $value {
            const TREE: Tree = $tree;
            fn on_leaf(_: &mut Walk<'_>, _: MetaBlock, _: Place, _: Entries<'_, Self>) {}
        })*
    };
}

plain_values!(DetailsRecord => Tree::Details, IndexEntry => Tree::Index, LargeCount => Tree::LargeCounts);
