//! What is sound, judged ahead of the walk by all processors, with reads in the order of the disk.
//!
//! - Only what is sound in every respect is judged here. Whatever is odd is left to the walk, which judges it by itself and
//!   tells of it, so findings are the walk's alone, in its order, whatever threads there are.
//! - What is judged here the walk meets: its references are those that the walk would have counted. So only nodes of
//!   mappings are entered that the walk will enter: below roots of volumes, through internal nodes that can be read. Blocks of
//!   the tree of volumes itself, and whatever the walk has met already, are left alone.
//! - Each block is read once to see what it is; an internal node once more for every round that it waits for its children,
//!   which is once in any sound tree of two levels.

use super::counts::Counts;
use super::forest::{Collect, Forest, read_leaves};
use super::nodes::{Nodes, Subtree, Visited};
use super::source::{BATCH_BLOCKS, Batch, Source};
use super::walk::{Tree, Walk, children_of, youngest_of};
use crate::checksum::BlockKind;
use crate::format::{Block, Entries, MappingRecord, Node, NodeHeader, RootRecord, smallest_occupancy};
use crate::units::{MetaBlock, SnapTime};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;

/// What a thread takes at a time.
const PIECE: usize = BATCH_BLOCKS;
/// More would wait for memory, not compute.
const THREADS_LIMIT: usize = 16;

/// Judges the mappings of all volumes in the tree below `volumes_root`.
pub(super) fn judge_mappings(walk: &mut Walk<'_>, volumes_root: MetaBlock) {
    // A pool may say that it has fewer blocks than the disk: the walk enters no others.
    let source = Source::first(walk.disk, walk.nodes.blocks());
    let (own, roots) = volumes(source, volumes_root);
    if own.iter().any(|number| walk.nodes.get(*number).is_some_and(|visited| !is_of_volumes(visited))) {
        return; // what the walk has met as something else it will not enter
    }
    let unseen = Unseen::new(walk.nodes.blocks());
    for number in own {
        unseen.take(&walk.nodes, number);
    }
    let mut next: Vec<_> = roots.into_iter().filter(|root| unseen.take(&walk.nodes, *root)).collect();
    let mut internals = Vec::new();
    while !next.is_empty() {
        next.sort_unstable();
        let (nodes, ground) = (&walk.nodes, Ground::of(walk));
        let found = in_parallel(&next, |numbers, found: &mut Level, batch| {
            found.look(source, numbers, batch, ground, &|number| unseen.take(nodes, number));
        });
        next = Vec::new();
        for mut level in found {
            for (number, subtree) in level.leaves {
                walk.nodes.insert(number, Visited::Read(subtree));
            }
            internals.append(&mut level.internals);
            next.append(&mut level.next);
        }
    }
    judge_internals(walk, source, internals);
}

/// Judges internal nodes whose children are sound, from the leaves up.
fn judge_internals(walk: &mut Walk<'_>, source: Source<'_>, mut waiting: Vec<MetaBlock>) {
    loop {
        waiting.sort_unstable();
        let this: &Walk<'_> = walk;
        let found = in_parallel(&waiting, |numbers, found: &mut Vec<(MetaBlock, Subtree)>, batch| {
            each_node(source, numbers, batch, &mut |number, block| {
                found.extend(sound_internal(this, block).map(|subtree| (number, subtree)));
            });
        });
        let before = walk.nodes.met();
        for (number, subtree) in found.into_iter().flatten() {
            walk.nodes.insert(number, Visited::Read(subtree));
        }
        if walk.nodes.met() == before {
            return;
        }
        waiting.retain(|number| walk.nodes.get(*number).is_none());
    }
}

fn is_of_volumes(visited: &Visited) -> bool {
    matches!(visited, Visited::Read(subtree) if subtree.tree == Tree::Volumes)
}

/// The blocks of the tree of volumes, and the roots in it. Damage is for the walk to find.
fn volumes(source: Source<'_>, root: MetaBlock) -> (Vec<MetaBlock>, Vec<MetaBlock>) {
    let (mut leaves, mut damage, mut roots) = (Vec::new(), Collect::default(), Vec::new());
    let mut forest = Forest::<RootRecord>::new(source);
    let told = "damage is collected, and nothing else ends it";
    forest.leaves(root, &mut damage, &mut leaves).expect(told);
    read_leaves(source, &leaves, &mut damage, &mut |_, entries: Entries<'_, RootRecord>| {
        roots.extend(entries.values.iter().map(|root| root.root()));
        Ok(())
    })
    .expect(told);
    let own = forest.looked_at().chain(leaves.iter().map(|leaf| leaf.number)).collect();
    (own, roots)
}

/// Blocks that nobody has taken yet.
struct Unseen {
    blocks: u64,
    seen: Vec<AtomicU64>,
}

impl Unseen {
    fn new(blocks: u64) -> Self {
        Unseen { blocks, seen: (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Takes a block; `false` when it was taken, is in the table, or is none.
    fn take(&self, nodes: &Nodes, number: MetaBlock) -> bool {
        if number.0 >= self.blocks || nodes.get(number).is_some() {
            return false;
        }
        let (word, bit) = (&self.seen[(number.0 / 64) as usize], 1 << (number.0 % 64));
        // Most children of a shared node were taken long ago: looking first keeps the line in every processor's cache.
        word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0
    }
}

/// What leaves of mappings are judged by.
#[derive(Clone, Copy)]
struct Ground<'a> {
    data_counts: &'a Counts,
    data_blocks: u64,
    now: SnapTime,
}

impl<'a> Ground<'a> {
    fn of(walk: &'a Walk<'_>) -> Self {
        Ground { data_counts: &walk.data_counts, data_blocks: walk.data_blocks, now: walk.now }
    }
}

/// What one thread has found on one level of the trees.
#[derive(Default)]
struct Level {
    leaves: Vec<(MetaBlock, Subtree)>,
    internals: Vec<MetaBlock>,
    /// Children that nobody had taken.
    next: Vec<MetaBlock>,
}

impl Level {
    fn look(
        &mut self,
        source: Source<'_>,
        numbers: &[MetaBlock],
        batch: &mut Batch,
        ground: Ground<'_>,
        take: &dyn Fn(MetaBlock) -> bool,
    ) {
        each_node(source, numbers, batch, &mut |number, block| match Node::<MappingRecord>::parse(block) {
            Ok(Node::Leaf(entries)) => {
                let subtree = sound_leaf(block, entries, ground);
                self.leaves.extend(subtree.map(|subtree| (number, subtree)));
            }
            Ok(Node::Internal(entries)) if entries.keys_ascend() => {
                self.internals.push(number);
                let children = entries.values.iter().map(|child| MetaBlock(child.get()));
                self.next.extend(children.filter(|child| take(*child)));
            }
            Ok(Node::Internal(_)) | Err(_) => {}
        });
    }
}

/// A leaf with nothing odd about it, its references to data counted; `None`, and nothing was counted, for any other.
fn sound_leaf(block: &Block, entries: Entries<'_, MappingRecord>, ground: Ground<'_>) -> Option<Subtree> {
    let header = NodeHeader::decode(block);
    let is_there = |record: &MappingRecord| record.mapping().block.0 < ground.data_blocks;
    let youngest = youngest_of(entries);
    let is_sound = header.has_usual_capacity()
        && entries.keys_ascend()
        && entries.values.iter().all(is_there)
        && youngest <= ground.now;
    if !is_sound {
        return None;
    }
    for record in entries.values {
        // A block without a bitmap is reported with the space map; here there is nothing to count.
        let _ = ground.data_counts.add(record.mapping().block.0);
    }
    let mut leaf = Subtree::new(Tree::Mappings, entries.len(), header.max_entries.get() as usize);
    leaf.extend(entries.key_span(), entries.len() as u32, youngest);
    Some(leaf)
}

/// An internal node with nothing odd about it and sound children, its references counted; `None`, and nothing was counted, for any
/// other.
fn sound_internal(walk: &Walk<'_>, block: &Block) -> Option<Subtree> {
    let Ok(Node::Internal(entries)) = Node::<MappingRecord>::parse(block) else { return None };
    let header = NodeHeader::decode(block);
    if entries.is_empty() || !header.has_usual_capacity() || !entries.keys_ascend() {
        return None;
    }
    let mut sum = Subtree::new(Tree::Mappings, entries.len(), header.max_entries.get() as usize);
    let mut depth_below = None;
    for (child, keys) in children_of(entries) {
        let Some(Visited::Read(subtree)) = walk.nodes.get(child) else { return None };
        let depth = *depth_below.get_or_insert(subtree.depth);
        let fewest = smallest_occupancy(usize::from(subtree.own_capacity));
        let is_sound = subtree.tree == Tree::Mappings
            && subtree.fits(&keys, depth)
            && usize::from(subtree.own_entries) >= fewest;
        if !is_sound {
            return None;
        }
        sum.extend(subtree.span(), subtree.entries, subtree.youngest);
        sum.depth = depth.checked_add(1)?;
    }
    for child in entries.values {
        let is_there = walk.metadata_counts.add(child.get());
        debug_assert!(is_there, "it is in the table");
    }
    Some(sum)
}

/// Reads blocks, which ascend, and hands those that are sound nodes to `each`.
fn each_node(
    source: Source<'_>,
    numbers: &[MetaBlock],
    batch: &mut Batch,
    each: &mut dyn FnMut(MetaBlock, &Block),
) {
    let read = source.batch(numbers, BlockKind::Node, batch, &mut |index, block| {
        if let Ok(block) = block {
            each(numbers[index], block);
        }
        Ok(())
    });
    read.expect("what is handed out is the only one to end it, and does not");
}

/// Does `work` on pieces of a list, each thread with a result of its own. A short list is one thread's.
pub(super) fn in_parallel<T: Sync, R: Default + Send>(
    list: &[T],
    work: impl Fn(&[T], &mut R, &mut Batch) + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let run = || {
        let (mut result, mut batch) = (R::default(), Batch::new(list.len()));
        while let Some(piece) = list.chunks(PIECE).nth(next.fetch_add(1, Relaxed)) {
            work(piece, &mut result, &mut batch);
        }
        result
    };
    let processors = thread::available_parallelism().map_or(1, usize::from).min(THREADS_LIMIT);
    let threads = list.len().div_ceil(PIECE).min(processors);
    if threads <= 1 {
        return vec![run()];
    }
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        started.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    })
}
