//! The one descent that every tool but the check itself uses: from a tree's root to its leaves, in the order of their keys.
//!
//! [`Forest::leaves`] reads internal nodes only, each once however many volumes share it, and says which leaves there are
//! and which keys each is responsible for. [`read_leaves`] then reads those, in batches. A [`Descent`] of its own decides what
//! it enters: a [`Union`] enters nothing without a need twice. What must hold:
//!
//! - Any bytes are taken. A node is entered only if its keys lie in the range that its parent has for it, so the ranges
//!   below a node are disjoint, and no descent is deeper than `DEPTH_LIMIT`: every walk ends.
//! - Damage goes to the caller's [`Damage`], who ends the walk with an error or goes on without that part.

use super::source::{BATCH_BLOCKS, Batch, Source};
use crate::checksum::BlockKind;
use crate::error::{Error, Result};
use crate::format::{Entries, Node, NodeValue};
use crate::units::MetaBlock;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

/// No sound tree is deeper: five levels hold more entries than the largest metadata device has room for.
const DEPTH_LIMIT: u32 = 12;

/// A leaf, and the keys that it is responsible for. `keys.end` of the last one is `u64::MAX`, which no key needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LeafPlace {
    pub(super) number: MetaBlock,
    pub(super) keys: Range<u64>,
}

/// Who is told of damage: the place, and what is wrong there. An error ends the walk, `Ok` goes on without that part.
pub(super) trait Damage {
    fn at(&mut self, place: &LeafPlace, error: Error) -> Result<()>;
}

/// The first damage ends it.
pub(super) struct Refuse;

impl Damage for Refuse {
    fn at(&mut self, _: &LeafPlace, error: Error) -> Result<()> {
        Err(error)
    }
}

/// Every damage is kept, and the walk goes on without that part.
#[derive(Default)]
pub(super) struct Collect {
    pub(super) found: Vec<(LeafPlace, Error)>,
}

impl Damage for Collect {
    fn at(&mut self, place: &LeafPlace, error: Error) -> Result<()> {
        self.found.push((place.clone(), error));
        Ok(())
    }
}

/// What goes down a tree, in the order of its keys.
pub(super) trait Descent {
    /// Whether to go on below an internal node.
    fn enter(&mut self, _: &LeafPlace) -> Result<bool> {
        Ok(true)
    }
    /// An internal node that was entered is done.
    fn leave(&mut self, _: &LeafPlace) -> Result<()> {
        Ok(())
    }
    /// A leaf: a block of the device, not read yet.
    fn leaf(&mut self, place: LeafPlace) -> Result<()>;
}

impl Descent for Vec<LeafPlace> {
    fn leaf(&mut self, place: LeafPlace) -> Result<()> {
        self.push(place);
        Ok(())
    }
}

/// The leaves of several trees, each once. A node that two trees have is entered for both, to see what they share, and by no
/// other. Memory: 24 bytes for each metadata block.
#[derive(Default)]
pub(super) struct Union {
    /// By block number.
    met: Vec<Met>,
    trees: u32,
}

/// A node that some tree has.
#[derive(Clone)]
struct Met {
    /// The keys that every tree has it for.
    keys: Range<u64>,
    /// The first tree, counted from 1 on; 0 for a block that none has.
    tree: u32,
    is_leaf: bool,
    is_shared: bool,
}

/// A leaf of a union.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct UnionLeaf {
    /// Where it is, with the keys that every tree has it for.
    pub(super) place: LeafPlace,
    /// The first of the trees that have it.
    pub(super) tree: usize,
    /// Whether there are others.
    pub(super) is_shared: bool,
}

impl Union {
    /// Takes in all leaves of the next tree.
    pub(super) fn add<V: NodeValue>(
        &mut self,
        forest: &mut Forest<'_, V>,
        root: MetaBlock,
        damage: &mut dyn Damage,
    ) -> Result<()> {
        self.trees += 1;
        forest.descend(root, damage, self)
    }

    /// All leaves, in the order of the disk.
    pub(super) fn leaves(&self) -> impl Iterator<Item = UnionLeaf> + '_ {
        let leaves = (0..).map(MetaBlock).zip(&self.met).filter(|(_, met)| met.is_leaf);
        leaves.map(|(number, met)| UnionLeaf {
            place: LeafPlace { number, keys: met.keys.clone() },
            tree: met.tree as usize - 1,
            is_shared: met.is_shared,
        })
    }

    /// Takes a node in; whether that says anything new of what is below it.
    fn meet(&mut self, place: &LeafPlace, is_leaf: bool) -> bool {
        const UNMET: Met = Met { keys: 0..u64::MAX, tree: 0, is_leaf: false, is_shared: false };
        let at = place.number.0 as usize;
        if at >= self.met.len() {
            self.met.resize(at + 1, UNMET);
        }
        let met = &mut self.met[at];
        let keys = met.keys.start.max(place.keys.start)..met.keys.end.min(place.keys.end);
        let is_new = met.tree == 0 || !met.is_shared || met.keys != keys;
        met.is_shared = met.tree != 0;
        met.tree = if met.is_shared { met.tree } else { self.trees };
        met.keys = keys;
        // What is taken for both is read, and refused, as a leaf.
        met.is_leaf |= is_leaf;
        is_new
    }
}

impl Descent for Union {
    fn enter(&mut self, place: &LeafPlace) -> Result<bool> {
        Ok(self.meet(place, false))
    }

    fn leaf(&mut self, place: LeafPlace) -> Result<()> {
        self.meet(&place, true);
        Ok(())
    }
}

/// An internal node.
struct Internal {
    /// Levels of nodes below it; at least 1.
    height: u32,
    children: Box<[(u64, MetaBlock)]>,
}

/// What a block turned out to be.
#[derive(Clone)]
enum Known {
    Leaf,
    Internal(Rc<Internal>),
    Bad(Error),
    /// Being looked at right now: who meets it again goes in a circle.
    Open,
}

/// Trees with leaves of one kind, and their internal nodes as far as they were needed.
pub(super) struct Forest<'a, V> {
    source: Source<'a>,
    known: HashMap<MetaBlock, Known>,
    values: PhantomData<V>,
}

impl<'a, V: NodeValue> Forest<'a, V> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Forest { source, known: HashMap::new(), values: PhantomData }
    }

    /// The blocks that were looked at so far: all internal nodes, and some leaves.
    pub(super) fn looked_at(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        self.known.keys().copied()
    }

    /// Appends the leaves below `root` to `found`, by key.
    pub(super) fn leaves(
        &mut self,
        root: MetaBlock,
        damage: &mut dyn Damage,
        found: &mut Vec<LeafPlace>,
    ) -> Result<()> {
        self.descend(root, damage, found)
    }

    /// Takes `descent` through the tree below `root`, by key.
    pub(super) fn descend(
        &mut self,
        root: MetaBlock,
        damage: &mut dyn Damage,
        descent: &mut dyn Descent,
    ) -> Result<()> {
        let place = LeafPlace { number: root, keys: 0..u64::MAX };
        match self.look(root, 0) {
            Known::Leaf => descent.leaf(place),
            Known::Internal(node) => self.below(&place, &node, node.height, damage, descent),
            Known::Bad(error) => damage.at(&place, error),
            Known::Open => unreachable_circle(&place, damage),
        }
    }

    fn below(
        &mut self,
        place: &LeafPlace,
        node: &Internal,
        height: u32,
        damage: &mut dyn Damage,
        descent: &mut dyn Descent,
    ) -> Result<()> {
        let fault = |what: &str| Error::corrupt(place.number, what);
        let (first, last) = (node.children[0].0, node.children[node.children.len() - 1].0);
        if node.height != height {
            return damage.at(place, fault("not as many levels below it as below its siblings"));
        }
        if first < place.keys.start || last >= place.keys.end {
            return damage.at(place, fault("its keys do not lie in the range that its parent has for it"));
        }
        if !descent.enter(place)? {
            return Ok(());
        }
        for (index, (begin, child)) in node.children.iter().enumerate() {
            let end = node.children.get(index + 1).map_or(place.keys.end, |next| next.0);
            let child = LeafPlace { number: *child, keys: *begin..end };
            if height == 1 {
                // Who keeps tables by block number relies on this.
                match self.source.require_on_disk(child.number) {
                    Ok(()) => descent.leaf(child)?,
                    Err(error) => damage.at(&child, error)?,
                }
                continue;
            }
            match self.look(child.number, 0) {
                Known::Internal(node) => self.below(&child, &node, height - 1, damage, descent)?,
                Known::Leaf => damage.at(&child, Error::corrupt(child.number, "a leaf too near the root"))?,
                Known::Bad(error) => damage.at(&child, error)?,
                Known::Open => unreachable_circle(&child, damage)?,
            }
        }
        descent.leave(place)
    }

    /// What a block is. An internal node's height is that of its first child that can be read.
    fn look(&mut self, number: MetaBlock, depth: u32) -> Known {
        if let Some(known) = self.known.get(&number) {
            return known.clone();
        }
        self.known.insert(number, Known::Open);
        let known = if depth > DEPTH_LIMIT {
            Known::Bad(Error::corrupt(
                number,
                format_args!("deeper than {DEPTH_LIMIT} levels, as no tree can be"),
            ))
        } else {
            self.read(number, depth).unwrap_or_else(Known::Bad)
        };
        self.known.insert(number, known.clone());
        known
    }

    fn read(&mut self, number: MetaBlock, depth: u32) -> Result<Known> {
        let block = self.source.block(number, BlockKind::Node)?;
        let node = Node::<V>::parse(&block).map_err(|fault| Error::corrupt(number, fault))?;
        let entries = match node {
            Node::Leaf(_) => return Ok(Known::Leaf),
            Node::Internal(entries) => entries,
        };
        require_ascending(number, entries.keys_ascend())?;
        if entries.is_empty() {
            return Err(Error::corrupt(number, "an internal node without children"));
        }
        let children: Box<[_]> = entries.iter().map(|(key, child)| (key, MetaBlock(child.get()))).collect();
        drop(block); // a deep descent need not hold every block on its way
        for (_, child) in &children {
            let height = match self.look(*child, depth + 1) {
                Known::Leaf => 1,
                Known::Internal(node) => node.height + 1,
                Known::Bad(_) | Known::Open => continue,
            };
            return Ok(Known::Internal(Rc::new(Internal { height, children })));
        }
        Err(Error::corrupt(number, "none of its children can be read"))
    }

    /// All entries below `root`, for trees that are small.
    pub(super) fn entries(&mut self, root: MetaBlock, damage: &mut dyn Damage) -> Result<Vec<(u64, V)>> {
        let mut places = Vec::new();
        self.leaves(root, damage, &mut places)?;
        let mut found = Vec::new();
        read_leaves(self.source, &places, damage, &mut |_, entries: Entries<'_, V>| {
            found.extend(entries.iter());
            Ok(())
        })?;
        Ok(found)
    }
}

fn unreachable_circle(place: &LeafPlace, damage: &mut dyn Damage) -> Result<()> {
    damage.at(place, Error::corrupt(place.number, "the node is its own descendant"))
}

fn require_ascending(number: MetaBlock, do_ascend: bool) -> Result<()> {
    if do_ascend { Ok(()) } else { Err(Error::corrupt(number, "its keys do not strictly increase")) }
}

/// Reads leaves and hands the entries of each sound one to `each`, in the order given.
pub(super) fn read_leaves<V: NodeValue>(
    source: Source<'_>,
    places: &[LeafPlace],
    damage: &mut dyn Damage,
    each: &mut dyn FnMut(&LeafPlace, Entries<'_, V>) -> Result<()>,
) -> Result<()> {
    read_leaves_with(source, places, &mut Batch::new(places.len()), damage, each)
}

/// As [`read_leaves`], into room that is there already.
pub(super) fn read_leaves_with<V: NodeValue>(
    source: Source<'_>,
    places: &[LeafPlace],
    buffer: &mut Batch,
    damage: &mut dyn Damage,
    each: &mut dyn FnMut(&LeafPlace, Entries<'_, V>) -> Result<()>,
) -> Result<()> {
    let mut numbers = [MetaBlock(0); BATCH_BLOCKS];
    for places in places.chunks(BATCH_BLOCKS) {
        for (number, place) in numbers.iter_mut().zip(places) {
            *number = place.number;
        }
        source.batch(&numbers[..places.len()], BlockKind::Node, buffer, &mut |index, block| {
            let place = &places[index];
            match block.and_then(|block| leaf_of::<V>(place, block)) {
                Ok(entries) => each(place, entries),
                Err(error) => damage.at(place, error),
            }
        })?;
    }
    Ok(())
}

/// The entries of a block that must be a leaf with keys in its place's range.
fn leaf_of<'a, V: NodeValue>(place: &LeafPlace, block: &'a crate::format::Block) -> Result<Entries<'a, V>> {
    let fault = |what: &str| Error::corrupt(place.number, what);
    match Node::<V>::parse(block).map_err(|found| Error::corrupt(place.number, found))? {
        Node::Internal(_) => Err(fault("an internal node where a leaf was expected")),
        Node::Leaf(entries) => {
            require_ascending(place.number, entries.keys_ascend())?;
            match entries.key_span() {
                Some((first, last)) if first < place.keys.start || last >= place.keys.end => {
                    Err(fault("its keys do not lie in the range that its parent has for it"))
                }
                Some(_) | None => Ok(entries),
            }
        }
    }
}
