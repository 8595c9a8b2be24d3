//! A full structural check of a metadata device, against every invariant that a writer has to keep (format §12). Reads with
//! `uthin::format` only and shares nothing with `uthin::metadata`. Panics with what is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use uthin::checksum::BlockKind;
use uthin::format::{
    BITMAP_ENTRIES, Bitmap, Block, DetailsRecord, IndexEntry, InlineCount, LargeCount, MappingRecord,
    MetadataIndex, Node, NodeHeader, NodeValue, RootRecord, SpaceMapRoot, Superblock, capacity,
    smallest_occupancy,
};
use uthin::units::{Mapping, MetaBlock};

/// What a sound device holds.
pub struct Pool {
    pub superblock: Superblock,
    pub volumes: BTreeMap<u64, CheckedVolume>,
    /// Data blocks whose count is above their references: block, count, references.
    pub data_counts_too_high: Vec<(u64, u32, u32)>,
    /// Data blocks that a metadata snapshot names.
    pub held_blocks: HashSet<u64>,
    /// Leaves of volumes' trees, and their entries: for judging how full they are.
    pub mapping_leaves: u64,
    pub leaf_entries: u64,
}

pub struct CheckedVolume {
    pub details: DetailsRecord,
    pub mappings: Vec<(u64, Mapping)>,
}

struct Walk<'a> {
    blocks: &'a [Block],
    kinds: HashMap<u64, BlockKind>,
    metadata: Vec<u32>,
    data: Vec<u32>,
    seen: HashMap<u64, Seen>,
    mapping_leaves: u64,
    leaf_entries: u64,
}

/// What a node that was walked already holds, and how deep it is.
#[derive(Clone, Copy)]
struct Seen {
    span: Option<(u64, u64)>,
    height: u32,
    entries: u64,
}

/// Checks a whole device and returns what it holds.
pub fn check(bytes: &[u8]) -> Pool {
    let (chunks, rest) = bytes.as_chunks::<4096>();
    assert!(rest.is_empty(), "a device of whole blocks");
    let blocks: Vec<Block> = chunks.iter().map(|chunk| Block(*chunk)).collect();
    let superblock = Superblock::read(&blocks[0], MetaBlock(0)).expect("a sound superblock");
    assert!(superblock.compat_ro_flags == 0, "no read-only features");
    let (data_root, metadata_root) = (superblock.data_space_map, superblock.metadata_space_map);
    assert!(
        metadata_root.total_blocks.get() <= blocks.len() as u64,
        "the metadata space map fits the device"
    );
    let mut walk = Walk {
        blocks: &blocks,
        kinds: HashMap::from([(0, BlockKind::Superblock)]),
        metadata: vec![0; metadata_root.total_blocks.get() as usize],
        data: vec![0; data_root.total_blocks.get() as usize],
        seen: HashMap::new(),
        mapping_leaves: 0,
        leaf_entries: 0,
    };
    walk.metadata[0] += 1;
    let volumes = walk.volumes(&superblock, &superblock);
    let held_blocks = if superblock.held_root == 0 { HashSet::new() } else { walk.held_root(&superblock) };
    let data_counts_too_high = walk.data_map(&data_root);
    walk.metadata_map(&metadata_root);
    Pool {
        volumes,
        data_counts_too_high,
        held_blocks,
        mapping_leaves: walk.mapping_leaves,
        leaf_entries: walk.leaf_entries,
        superblock,
    }
}

/// A leaf's value, and what it references.
trait CheckedValue: NodeValue {
    const IS_MAPPING: bool = false;
    fn reference(self, _walk: &mut Walk<'_>, _live: &Superblock) {}
}
impl CheckedValue for DetailsRecord {}
impl CheckedValue for IndexEntry {}
impl CheckedValue for LargeCount {}
impl CheckedValue for MappingRecord {
    const IS_MAPPING: bool = true;
    fn reference(self, walk: &mut Walk<'_>, _live: &Superblock) {
        walk.data[self.mapping().block.0 as usize] += 1;
    }
}
impl CheckedValue for RootRecord {
    fn reference(self, walk: &mut Walk<'_>, live: &Superblock) {
        walk.walk_tree::<MappingRecord>(self.root().0, live);
    }
}

impl<'a> Walk<'a> {
    fn block(&mut self, number: u64, kind: BlockKind) -> &'a Block {
        let block = &self.blocks[number as usize];
        block.verify(MetaBlock(number), kind).unwrap();
        let known = *self.kinds.entry(number).or_insert(kind);
        assert_eq!(known, kind, "block {number} is used as two kinds");
        block
    }

    fn held_root(&mut self, superblock: &Superblock) -> HashSet<u64> {
        let number = superblock.held_root;
        let copy = Superblock::read(self.block(number, BlockKind::Superblock), MetaBlock(number)).unwrap();
        self.metadata[number as usize] += 1;
        assert_eq!(copy.data_space_map, SpaceMapRoot::ZERO);
        assert_eq!(copy.held_root, 0);
        let held = self.volumes(&copy, superblock);
        held.values().flat_map(|volume| volume.mappings.iter().map(|(_, mapping)| mapping.block.0)).collect()
    }

    fn volumes(&mut self, roots: &Superblock, live: &Superblock) -> BTreeMap<u64, CheckedVolume> {
        // Entries of a shared upper leaf are references once, those of two leaves twice: the walk sees to that.
        self.walk_tree::<RootRecord>(roots.mapping_root.0, live);
        self.walk_tree::<DetailsRecord>(roots.details_root.0, live);
        let upper = self.entries::<RootRecord>(roots.mapping_root.0);
        let details = self.entries::<DetailsRecord>(roots.details_root.0);
        assert!(
            upper.iter().map(|(key, _)| key).eq(details.iter().map(|(key, _)| key)),
            "both trees, same volumes"
        );
        let mut volumes = BTreeMap::new();
        for ((volume, root), (_, details)) in upper.into_iter().zip(details) {
            assert!(volume < 1 << 24, "volume {volume}");
            let root = root.root().0;
            let mapped = details.mapped_blocks.get();
            assert_eq!(self.seen[&root].entries, mapped, "mapped blocks of volume {volume}");
            assert!(details.creation_time.get() <= roots.time.0, "volume {volume} is from the future");
            assert!(details.snapshotted_time.get() <= roots.time.0, "volume {volume} is from the future");
            let mappings = self.entries::<MappingRecord>(root);
            let mappings: Vec<_> =
                mappings.into_iter().map(|(key, record)| (key, record.mapping())).collect();
            for (key, mapping) in &mappings {
                assert!(mapping.time <= live.time, "volume {volume}, block {key}: mapped in the future");
            }
            volumes.insert(volume, CheckedVolume { details, mappings });
        }
        volumes
    }

    /// Counts one reference to a tree and all that it holds, each node once.
    fn walk_tree<V: CheckedValue>(&mut self, root: u64, live: &Superblock) -> Seen {
        self.walk_node::<V>(root, true, live)
    }

    fn walk_node<V: CheckedValue>(&mut self, number: u64, is_root: bool, live: &Superblock) -> Seen {
        self.metadata[number as usize] += 1;
        if let Some(seen) = self.seen.get(&number) {
            return *seen;
        }
        let block = self.block(number, BlockKind::Node);
        let header = NodeHeader::decode(block);
        assert!(header.has_usual_capacity() && header.padding.get() == 0, "node {number}: {header:?}");
        let node = Node::<V>::parse(block).unwrap_or_else(|fault| panic!("node {number}: {fault}"));
        let entries = node.keys().len();
        let smallest = smallest_occupancy(header.max_entries.get() as usize);
        assert!(
            is_root || entries >= smallest,
            "node {number} has {entries} entries, at least {smallest} expected"
        );
        assert!(node.keys().windows(2).all(|pair| pair[0] < pair[1]), "keys of node {number} ascend");
        let seen = match node {
            Node::Leaf(leaf) => {
                for (_, value) in leaf.iter() {
                    value.reference(self, live);
                }
                if V::IS_MAPPING {
                    self.mapping_leaves += 1;
                    self.leaf_entries += entries as u64;
                }
                Seen { span: leaf.key_span(), height: 1, entries: entries as u64 }
            }
            Node::Internal(internal) => {
                assert!(entries >= 1, "internal node {number} has children");
                let mut below = Vec::new();
                for (index, child) in internal.values.iter().enumerate() {
                    let seen = self.walk_node::<V>(child.get(), false, live);
                    let (first, last) = seen.span.expect("a child is not empty");
                    assert!(
                        internal.key(index) <= first,
                        "node {number}: key {index} above its child's first"
                    );
                    if let Some(next) = internal.keys.get(index + 1) {
                        assert!(last < next.get(), "node {number}: child {index} reaches into the next one");
                    }
                    below.push(seen);
                }
                let height = below[0].height;
                assert!(
                    below.iter().all(|seen| seen.height == height),
                    "leaves below {number} are equally deep"
                );
                Seen {
                    span: Some((below[0].span.unwrap().0, below.last().unwrap().span.unwrap().1)),
                    height: height + 1,
                    entries: below.iter().map(|seen| seen.entries).sum(),
                }
            }
        };
        self.seen.insert(number, seen);
        seen
    }

    fn entries<V: NodeValue>(&self, root: u64) -> Vec<(u64, V)> {
        match Node::<V>::parse(&self.blocks[root as usize]).unwrap() {
            Node::Leaf(leaf) => leaf.iter().collect(),
            Node::Internal(internal) => {
                internal.values.iter().flat_map(|child| self.entries::<V>(child.get())).collect()
            }
        }
    }

    fn data_map(&mut self, root: &SpaceMapRoot) -> Vec<(u64, u32, u32)> {
        let live = Superblock::decode(&self.blocks[0]);
        self.walk_tree::<IndexEntry>(root.bitmap_root.get(), &live);
        self.walk_tree::<LargeCount>(root.large_counts_root.get(), &live);
        let index = self.entries::<IndexEntry>(root.bitmap_root.get());
        let keys: Vec<_> = index.iter().map(|(key, _)| *key).collect();
        let bitmaps = root.total_blocks.get().div_ceil(BITMAP_ENTRIES as u64);
        assert_eq!(keys, (0..bitmaps).collect::<Vec<_>>(), "keys of the data index");
        let index: Vec<_> = index.into_iter().map(|(_, entry)| entry).collect();
        for entry in &index {
            self.metadata[entry.bitmap.get() as usize] += 1;
        }
        let expected = std::mem::take(&mut self.data);
        self.counts("data", root, &index, &expected)
    }

    fn metadata_map(&mut self, root: &SpaceMapRoot) {
        let live = Superblock::decode(&self.blocks[0]);
        let number = root.bitmap_root.get();
        self.metadata[number as usize] += 1;
        let index = MetadataIndex::of(self.block(number, BlockKind::Index)).entries;
        self.walk_tree::<LargeCount>(root.large_counts_root.get(), &live);
        let bitmaps = (root.total_blocks.get() as usize).div_ceil(BITMAP_ENTRIES);
        for entry in &index[..bitmaps] {
            self.metadata[entry.bitmap.get() as usize] += 1;
        }
        assert!(
            index[bitmaps..].iter().all(|entry| entry.bitmap.get() == 0),
            "unused index entries are zero"
        );
        let expected = std::mem::take(&mut self.metadata);
        let too_high = self.counts("metadata", root, &index[..bitmaps], &expected);
        assert_eq!(too_high, [], "metadata counts above references");
    }

    /// Compares a space map with the references found; the blocks whose count is too high.
    fn counts(
        &mut self,
        name: &str,
        root: &SpaceMapRoot,
        index: &[IndexEntry],
        expected: &[u32],
    ) -> Vec<(u64, u32, u32)> {
        let large: HashMap<u64, u32> = self
            .entries::<LargeCount>(root.large_counts_root.get())
            .into_iter()
            .map(|(key, count)| (key, count.0.get()))
            .collect();
        let (mut large_seen, mut allocated, mut too_high) = (0, 0, Vec::new());
        for (number, entry) in index.iter().enumerate() {
            let bitmap = Bitmap::new(self.block(entry.bitmap.get(), BlockKind::Bitmap));
            assert_eq!(entry.free.get(), bitmap.free_entries(), "{name} bitmap {number}: free");
            assert!(
                entry.none_free_before.get() as usize <= bitmap.first_free(),
                "{name} bitmap {number}: none free before"
            );
            for (position, inline) in bitmap.iter().enumerate() {
                let block = (number * BITMAP_ENTRIES + position) as u64;
                if block >= root.total_blocks.get() {
                    assert_eq!(inline, InlineCount::Free, "{name} bits past the end");
                    continue;
                }
                let count = inline.exact().unwrap_or_else(|| {
                    large_seen += 1;
                    let count =
                        *large.get(&block).unwrap_or_else(|| panic!("{name} block {block}: no large count"));
                    assert!(count > 2, "{name} block {block}: large count {count}");
                    count
                });
                allocated += u64::from(count > 0);
                let references = expected[block as usize];
                assert!(count >= references, "{name} block {block}: count {count}, {references} references");
                if count > references {
                    too_high.push((block, count, references));
                }
            }
        }
        assert_eq!(large_seen, large.len(), "{name}: large counts without a bitmap entry");
        assert_eq!(root.allocated_blocks.get(), allocated, "{name}: allocated blocks");
        too_high
    }
}

/// The capacities that trees are written with, for tests of how full nodes are.
pub fn mapping_capacity() -> u64 {
    capacity(8) as u64
}
