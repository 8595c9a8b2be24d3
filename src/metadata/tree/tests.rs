//! Trees against a model, alone and shared, with shape and counts looked at in full.

use super::super::cache::Cache;
use super::super::data_log::DataLog;
use super::super::meta_map::MetaMap;
use super::super::space::{References, Space, Span, TreeValue};
use super::Inserter;
use crate::disk::{Disk, MemoryDisk};
use crate::error::ErrorKind;
use crate::format::{DetailsRecord, LargeCount, MappingRecord, Node, NodeKind, capacity, smallest_occupancy};
use crate::units::{DataBlock, Mapping, MetaBlock, SnapTime};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use zerocopy::little_endian::{U32, U64};

/// A value made from a number, for any kind of tree.
trait TestValue: TreeValue + PartialEq + std::fmt::Debug {
    fn make(number: u64) -> Self;
}

impl TestValue for DetailsRecord {
    fn make(number: u64) -> Self {
        DetailsRecord {
            mapped_blocks: U64::new(number),
            transaction_id: U64::new(!number),
            creation_time: U32::new(number as u32),
            snapshotted_time: U32::new(7),
        }
    }
}

impl TestValue for LargeCount {
    fn make(number: u64) -> Self {
        LargeCount(U32::new(number as u32))
    }
}

const DATA_BLOCKS: u64 = 1 << 20;

impl TestValue for MappingRecord {
    fn make(number: u64) -> Self {
        MappingRecord::new(Mapping { block: DataBlock(number % DATA_BLOCKS), time: SnapTime(3) })
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(limit)) >> 64) as u64
    }
}

fn space(blocks: u64) -> Space<MemoryDisk> {
    let references = References { metadata: MetaMap::for_format(blocks), data: DataLog::new(DATA_BLOCKS) };
    Space::new(MemoryDisk::zeroed(blocks * 4096), Cache::new(blocks, 1 << 20), references)
}

/// What a commit does to blocks: they are not ours any more.
fn end_transaction(space: &mut Space<MemoryDisk>) {
    space.cache.write_dirty(&space.disk).unwrap();
    space.references.metadata.committed();
    space.tally.commit();
}

/// The trees of a test, which may share nodes.
struct Forest<V> {
    space: Space<MemoryDisk>,
    trees: Vec<(MetaBlock, BTreeMap<u64, V>)>,
    /// References of data blocks by the changes logged so far.
    data: HashMap<u64, i64>,
}

impl<V: TestValue> Forest<V> {
    fn new(blocks: u64) -> Self {
        let mut space = space(blocks);
        let root = space.new_node::<V>(NodeKind::Leaf).unwrap();
        Forest { space, trees: vec![(root, BTreeMap::new())], data: HashMap::new() }
    }

    fn insert(&mut self, tree: usize, mut keys: Vec<u64>, random: &mut Random) {
        let (root, model) = &mut self.trees[tree];
        if random.below(3) > 0 {
            keys.sort_unstable();
        }
        let mut inserter = Inserter::new(&mut self.space, *root);
        let mut replaced = Vec::new();
        let mut added = Vec::new();
        for key in keys {
            let value = V::make(random.below(u64::MAX));
            let old = inserter.insert(key, value).unwrap();
            assert_eq!(old, model.insert(key, value), "key {key}");
            replaced.extend(old);
            added.push(value);
        }
        *root = inserter.root();
        // The references that come with insertions, and go with what they replace, are the caller's business.
        let references = &mut self.space.references;
        added.into_iter().for_each(|value| value.retain(references, MetaBlock(0)).unwrap());
        replaced.into_iter().for_each(|value| value.release(references, MetaBlock(0)).unwrap());
    }

    fn remove(&mut self, tree: usize, range: Span) {
        let (root, model) = &mut self.trees[tree];
        *root = self.space.remove_range::<V>(*root, range).unwrap();
        model.retain(|key, _| !(range.first..=range.last).contains(key));
    }

    fn share(&mut self, tree: usize) {
        let (root, model) = self.trees[tree].clone();
        self.space.references.metadata.increment(root).unwrap();
        self.trees.push((root, model));
    }

    fn drop_tree(&mut self, tree: usize) {
        let (root, _) = self.trees.swap_remove(tree);
        self.space.drop_tree::<V>(root, Span::ALL, 0).unwrap();
    }

    /// Looks at every node of every tree: contents, shape, and the counts of all blocks.
    fn check(&mut self) {
        let (mut metadata, mut data) = (HashMap::from([(0, 1)]), HashMap::new());
        for (root, model) in &self.trees {
            let mut found = Vec::new();
            let seen = metadata.contains_key(&root.0);
            *metadata.entry(root.0).or_insert(0) += 1;
            walk::<V>(&mut self.space, *root, true, seen, &mut (&mut metadata, &mut data, &mut found));
            assert!(found.iter().map(|(key, value)| (key, value)).eq(model.iter()), "contents");
        }
        for block in 0..self.space.references.metadata.total() {
            let expected = metadata.get(&block).copied().unwrap_or(0);
            assert_eq!(self.space.references.metadata.count(block), expected, "count of block {block}");
        }
        for change in self.space.references.data.take() {
            *self.data.entry(change.block).or_insert(0) += change.delta;
        }
        self.data.retain(|_, count| *count != 0);
        if V::TREE == MappingRecord::TREE {
            assert_eq!(self.data, data);
        }
    }

    fn leaves_and_entries(&mut self, tree: usize) -> (u64, u64) {
        let (mut leaves, mut entries) = (0, 0);
        let _ = self
            .space
            .visit_leaves::<V>(self.trees[tree].0, Span::ALL, &mut |leaf| {
                leaves += 1;
                entries += leaf.len() as u64;
                ControlFlow::Continue(())
            })
            .unwrap();
        (leaves, entries)
    }
}

type Found<'a, V> = (&'a mut HashMap<u64, u32>, &'a mut HashMap<u64, i64>, &'a mut Vec<(u64, V)>);

/// Walks a node; what is below one that was seen before adds to the contents only. Answers with its height and keys.
fn walk<V: TestValue>(
    space: &mut Space<MemoryDisk>,
    block: MetaBlock,
    is_root: bool,
    seen: bool,
    found: &mut Found<'_, V>,
) -> (usize, Option<(u64, u64)>) {
    let (entries, children) = match space.node::<V>(block, Span::ALL).unwrap() {
        Node::Leaf(leaf) => (leaf.iter().collect::<Vec<_>>(), None),
        Node::Internal(internal) => (
            Vec::new(),
            Some(internal.iter().map(|(key, child)| (key, MetaBlock(child.get()))).collect::<Vec<_>>()),
        ),
    };
    let Some(children) = children else {
        assert!(
            is_root || entries.len() >= smallest_occupancy(capacity(size_of::<V>())),
            "{} entries",
            entries.len()
        );
        if !seen && V::TREE == MappingRecord::TREE {
            for (_, value) in &entries {
                let mapping =
                    MappingRecord(zerocopy::FromBytes::read_from_bytes(value.as_bytes()).unwrap()).mapping();
                *found.1.entry(mapping.block.0).or_insert(0) += 1;
            }
        }
        let span = entries.first().map(|(first, _)| (*first, entries[entries.len() - 1].0));
        found.2.extend(entries);
        return (1, span);
    };
    assert!(
        children.len() >= if is_root { 2 } else { smallest_occupancy(252) },
        "{} children",
        children.len()
    );
    let (mut height, mut span) = (None, None);
    for (index, (key, child)) in children.iter().enumerate() {
        let child_seen = seen || found.0.contains_key(&child.0);
        if !seen {
            *found.0.entry(child.0).or_insert(0) += 1;
        }
        let (child_height, child_span) = walk::<V>(space, *child, false, child_seen, found);
        assert_eq!(*height.get_or_insert(child_height), child_height, "leaves are equally deep");
        let (first, last) = child_span.expect("a child is not empty");
        assert!(*key <= first, "a parent's key is not above its child's first");
        if let Some((next, _)) = children.get(index + 1) {
            assert!(last < *next, "a child does not reach into the next");
        }
        span = Some((span.map_or(first, |(first, _): (u64, u64)| first), last));
    }
    (height.expect("there are children") + 1, span)
}

/// Random batches, ranges, sharing and dropping.
fn play<V: TestValue>(seed: u64, steps: u64, keys: u64, check_every: u64) -> u64 {
    let mut random = Random(seed | 1);
    let mut forest = Forest::<V>::new(20_000);
    let mut operations = 0;
    for step in 0..steps {
        let tree = random.below(forest.trees.len() as u64) as usize;
        let base = random.below(keys);
        match random.below(16) {
            0 if forest.trees.len() < 5 => forest.share(tree),
            1 if forest.trees.len() > 1 => forest.drop_tree(tree),
            2 => end_transaction(&mut forest.space),
            3..7 => {
                let length = [1, 1, 20, 500, keys][random.below(5) as usize];
                let before = forest.trees[tree].1.len();
                forest.remove(tree, Span { first: base, last: base + random.below(length) });
                operations += (before - forest.trees[tree].1.len()) as u64 + 1;
            }
            pattern => {
                let count = 1 + random.below(if step % 5 == 0 { 900 } else { 60 });
                let batch: Vec<u64> = match pattern {
                    7..10 => (0..count).map(|_| random.below(keys)).collect(),
                    10..13 => (0..count).map(|i| base + i).collect(),
                    _ => (0..count).map(|i| base.saturating_sub(i)).collect(),
                };
                operations += count;
                forest.insert(tree, batch, &mut random);
            }
        }
        if step % check_every == 0 {
            forest.check();
        }
        if step % 50 == 0 {
            let tree = tree.min(forest.trees.len() - 1);
            look_up(&mut forest, tree, base);
        }
    }
    forest.check();
    while !forest.trees.is_empty() {
        forest.drop_tree(0);
    }
    forest.check();
    assert_eq!(forest.space.references.metadata.allocated(), 1, "everything is given back");
    operations
}

fn look_up<V: TestValue>(forest: &mut Forest<V>, tree: usize, key: u64) {
    let (root, model) = &forest.trees[tree];
    let space = &mut forest.space;
    for key in key..key + 30 {
        assert_eq!(space.lookup::<V>(*root, key).unwrap(), model.get(&key).copied());
        let next = model.range(key..).next().map(|(key, _)| *key);
        assert_eq!(space.first_key_from::<V>(*root, Span::ALL, key).unwrap(), next);
    }
    assert_eq!(space.last_key::<V>(*root).unwrap(), model.last_key_value().map(|(key, _)| *key));
    let mut ranged = Vec::new();
    let range = Span { first: key, last: key + 2000 };
    let _ = space
        .visit_leaves::<V>(*root, range, &mut |entries| {
            ranged.extend(entries.iter());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(ranged.iter().map(|(key, value)| (key, value)).eq(model.range(key..=key + 2000)));
}

#[test]
fn small_trees_agree_with_a_model_at_every_step() {
    for seed in 1..9 {
        play::<DetailsRecord>(seed, 400, 1200, 1);
        play::<MappingRecord>(100 + seed, 300, 1500, 1);
    }
}

#[test]
fn large_trees_agree_with_a_model() {
    let mut operations = 0;
    for seed in 1..4 {
        operations += play::<DetailsRecord>(seed, 2500, 60_000, 250);
        operations += play::<MappingRecord>(10 + seed, 2500, 100_000, 250);
        operations += play::<LargeCount>(20 + seed, 2500, 40_000, 250);
    }
    assert!(operations > 1_000_000, "{operations}");
}

#[test]
fn runs_of_keys_fill_their_leaves() {
    for (name, keys, least_percent) in [
        ("ascending", (0..100_000).collect::<Vec<u64>>(), 97),
        // Less than when ascending: a sorted batch in front of all others does not descend.
        ("descending", (0..100_000).rev().collect(), 85),
        ("random", (0..100_000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect(), 75),
    ] {
        // In batches of any size, even one by one.
        for batch in [1, 1000, 100_000] {
            let mut forest = Forest::<MappingRecord>::new(4000);
            for batch in keys.chunks(batch) {
                forest.insert(0, batch.to_vec(), &mut Random(2));
            }
            let (leaves, entries) = forest.leaves_and_entries(0);
            let percent = 100 * entries / (leaves * capacity(8) as u64);
            assert!(percent >= least_percent, "{name} by {batch}: {percent} % full");
            forest.check();
        }
    }
}

#[test]
fn removing_a_range_drops_subtrees_without_copying_them() {
    let mut forest = Forest::<MappingRecord>::new(20_000);
    forest.insert(0, (0..300_000).collect(), &mut Random(5));
    forest.share(0);
    end_transaction(&mut forest.space);
    let before = forest.space.references.metadata.allocated();
    forest.remove(0, Span { first: 1000, last: 290_000 });
    let made = forest.space.references.metadata.allocated() - before;
    assert!(made <= 12, "{made} nodes copied for two ends of three levels");
    forest.check();
    forest.remove(1, Span::ALL);
    forest.check();
}

#[test]
fn cycles_and_wrong_ranges_end_in_an_error() {
    let mut forest = Forest::<MappingRecord>::new(1000);
    forest.insert(0, (0..1000).collect(), &mut Random(5));
    let root = forest.trees[0].0;
    let last_child = match forest.space.node::<MappingRecord>(root, Span::ALL).unwrap() {
        Node::Internal(internal) => internal.len() - 1,
        Node::Leaf(_) => panic!("a thousand keys are no leaf"),
    };
    // The last child is its own parent now.
    forest.space.node_mut(root).set_child(last_child, root);
    let space = &mut forest.space;
    for error in [
        space.lookup::<MappingRecord>(root, 999).unwrap_err(),
        space.last_key::<MappingRecord>(root).unwrap_err(),
        space.visit_leaves::<MappingRecord>(root, Span::ALL, &mut |_| ControlFlow::Continue(())).unwrap_err(),
        space.remove_range::<MappingRecord>(root, Span { first: 900, last: 2000 }).unwrap_err(),
        Inserter::<_, MappingRecord>::new(space, root).insert(999, MappingRecord::make(1)).unwrap_err(),
        space.drop_tree::<MappingRecord>(root, Span::ALL, 0).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("expected"), "{error}");
    }
    // One whose only entry is itself never leaves its range; the depth gives it away.
    let mut forest = Forest::<MappingRecord>::new(1000);
    let root = forest.trees[0].0;
    let mut node = forest.space.reset_node::<MappingRecord>(root, NodeKind::Internal);
    node.insert(0, 0, U64::new(root.0));
    let space = &mut forest.space;
    for error in [
        space.lookup::<MappingRecord>(root, 999).unwrap_err(),
        space.height::<MappingRecord>(root).unwrap_err(),
        space.count_nodes::<MappingRecord>(root).unwrap_err(),
        space.first_key_from::<MappingRecord>(root, Span::ALL, 5).unwrap_err(),
        space.visit_leaves::<MappingRecord>(root, Span::ALL, &mut |_| ControlFlow::Continue(())).unwrap_err(),
        Inserter::<_, MappingRecord>::new(space, root).insert(999, MappingRecord::make(1)).unwrap_err(),
    ] {
        assert!(error.message().contains("levels below its root"), "{error}");
    }
    assert!(forest.space.disk.size_bytes() > 0);
}
