//! Inserting in batches.
//!
//! An [`Inserter`] keeps the path of shadowed nodes from the root to the leaf of the last key, with the last key that
//! belongs under each. Ascending keys mostly stay in that leaf or near it; nothing above is looked at again.
//!
//! A full node first tries to move entries to a sibling, which costs nothing but a copy, then is split. A run of ascending
//! keys fills nodes: the part that more keys will follow into is left small, and moves over to its left neighbour when it
//! has become full itself. Descending keys likewise.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::{EntryBytes, Node, NodeKind, capacity, smallest_occupancy};
use crate::metadata::space::{Space, Span, TreeValue, kind_of, require_depth};
use crate::units::MetaBlock;
use std::marker::PhantomData;
use zerocopy::little_endian::U64;

/// An inner node or leaf on the way to the current key.
struct Step {
    block: MetaBlock,
    span: Span,
    /// Index of the child that the way goes on in.
    child: usize,
}

/// Where in a full node the new entry wants to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Front,
    Middle,
    Back,
}

/// Inserts into one tree, fastest in ascending order of keys.
pub(in crate::metadata) struct Inserter<'a, D: Disk, V> {
    space: &'a mut Space<D>,
    root: MetaBlock,
    path: Vec<Step>,
    values: PhantomData<V>,
}

impl<'a, D: Disk, V: TreeValue> Inserter<'a, D, V> {
    /// For the tree at `root`, all above which has been shadowed. [`Inserter::root`] says where the root is afterwards.
    pub fn new(space: &'a mut Space<D>, root: MetaBlock) -> Self {
        Inserter { space, root, path: Vec::new(), values: PhantomData }
    }

    /// Where the root is now.
    pub fn root(&self) -> MetaBlock {
        self.root
    }

    /// Makes `value` the value of `key`; what it was before, whose reference is now the caller's.
    pub fn insert(&mut self, key: u64, value: V) -> Result<Option<V>> {
        loop {
            let leaf = self.descend(key)?;
            let Node::Leaf(entries) = self.space.node::<V>(leaf, Span::ALL)? else {
                unreachable!("the way down ends at a leaf")
            };
            let index = entries.lower_bound(key);
            if index < entries.len() && entries.key(index) == key {
                let old = entries.values[index];
                self.space.node_mut(leaf).set_value(index, value);
                return Ok(Some(old));
            }
            if entries.len() < capacity(size_of::<V>()) {
                self.space.node_mut(leaf).insert(index, key, value);
                return Ok(None);
            }
            self.make_room(self.path.len() - 1, key)?;
        }
    }

    /// Makes the way to `key` changeable without changing anything; its value.
    pub fn prepare(&mut self, key: u64) -> Result<Option<V>> {
        let leaf = self.descend(key)?;
        match self.space.node::<V>(leaf, Span::ALL)? {
            Node::Leaf(entries) => Ok(entries.find(key).map(|index| entries.values[index])),
            Node::Internal(_) => unreachable!("the way down ends at a leaf"),
        }
    }

    /// Goes to the leaf for `key`, shadowing what is not ours yet, and lowering first keys that are above it.
    fn descend(&mut self, key: u64) -> Result<MetaBlock> {
        while self.path.last().is_some_and(|step| key < step.span.first || key > step.span.last) {
            self.path.pop();
        }
        if self.path.is_empty() {
            self.root = self.space.shadow::<V>(self.root)?;
            self.path.push(Step { block: self.root, span: Span::ALL, child: 0 });
        }
        loop {
            let depth = self.path.len() - 1;
            let step = self.path.last_mut().expect("the root is on the path");
            let (block, span) = (step.block, step.span);
            require_depth(block, depth)?;
            let (index, lowered, child, child_span) = match self.space.node::<V>(block, span)? {
                Node::Leaf(_) => return Ok(block),
                Node::Internal(entries) if entries.is_empty() => {
                    return Err(Error::corrupt(block, "found an internal B-tree node without entries"));
                }
                Node::Internal(entries) => {
                    let floor = entries.floor(key);
                    let index = floor.unwrap_or(0);
                    let (child, mut child_span) = super::step(entries, index, span);
                    child_span.first = child_span.first.min(key);
                    (index, floor.is_none(), child, child_span)
                }
            };
            step.child = index;
            let ours = self.space.shadow::<V>(child)?;
            if lowered || ours != child {
                let mut node = self.space.node_mut(block);
                if lowered {
                    node.set_key(index, key);
                }
                node.set_child(index, ours);
            }
            self.path.push(Step { block: ours, span: child_span, child: 0 });
        }
    }

    /// Makes room in or above the full node at `level` of the path. The caller goes down again and looks.
    fn make_room(&mut self, level: usize, key: u64) -> Result<()> {
        let side = self.side(level, key)?;
        if level == 0 {
            return self.grow(side);
        }
        if !self.shift_to_sibling(level, side)? {
            let parent = self.path[level - 1].block;
            if self.space.node_mut(parent).is_full() {
                return self.make_room(level - 1, key);
            }
            self.split(level, side)?;
        }
        self.path.truncate(level);
        Ok(())
    }

    fn side(&mut self, level: usize, key: u64) -> Result<Side> {
        let step = &self.path[level];
        Ok(match self.space.node::<V>(step.block, Span::ALL)? {
            Node::Leaf(entries) => match entries.lower_bound(key) {
                0 => Side::Front,
                index if index == entries.len() => Side::Back,
                _ => Side::Middle,
            },
            // A child's new sibling goes behind it.
            Node::Internal(entries) => match step.child {
                0 => Side::Front,
                index if index + 1 == entries.len() => Side::Back,
                _ => Side::Middle,
            },
        })
    }

    /// How many of a full node's entries stay in, or go to, the left one of two.
    fn left_share(side: Side, capacity: usize) -> usize {
        match side {
            Side::Front => smallest_occupancy(capacity),
            Side::Middle => capacity / 2,
            Side::Back => capacity - smallest_occupancy(capacity),
        }
    }

    /// Moves entries to a neighbour that is not shared and has room worth the copy. Whether it did.
    fn shift_to_sibling(&mut self, level: usize, side: Side) -> Result<bool> {
        let (parent, index) = (self.path[level - 1].block, self.path[level - 1].child);
        let full = self.space.node_mut(self.path[level].block).len();
        let smallest = smallest_occupancy(full);
        if side != Side::Front
            && index > 0
            && let Some(room) = self.room_in(parent, index - 1)?
        {
            let moved = if side == Side::Back { room.min(full - smallest) } else { room / 2 };
            self.space.even_out::<V>(parent, index - 1, full - room + moved)?;
            return Ok(true);
        }
        if side != Side::Back
            && let Some(room) = self.room_in(parent, index + 1)?
        {
            let moved = if side == Side::Front { room.min(full - smallest) } else { room / 2 };
            self.space.even_out::<V>(parent, index, full - moved)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The room in a child that entries can be moved to: `None` if there is no such child, others see it, or it has so little
    /// room that it would soon be full again.
    fn room_in(&mut self, parent: MetaBlock, index: usize) -> Result<Option<usize>> {
        let Node::Internal(entries) = self.space.node::<V>(parent, Span::ALL)? else {
            unreachable!("a parent is internal")
        };
        if index >= entries.len() {
            return Ok(None);
        }
        let child = entries.child(index);
        if self.space.references.metadata.count(child.0) != 1 {
            return Ok(None);
        }
        let node = self.space.node::<V>(child, Span::ALL)?;
        let capacity = match node {
            Node::Internal(_) => capacity(size_of::<u64>()),
            Node::Leaf(_) => capacity(size_of::<V>()),
        };
        let room = capacity - node.keys().len();
        Ok((room >= capacity / 6).then_some(room))
    }

    /// Splits the node at `level` in two; there is room in its parent.
    fn split(&mut self, level: usize, side: Side) -> Result<()> {
        let (parent, index) = (self.path[level - 1].block, self.path[level - 1].child);
        let node = self.path[level].block;
        let entries = self.space.node_mut(node).len();
        let left = Self::left_share(side, entries);
        let moved = self.space.node_mut(node).copy_bytes(left..entries);
        let right = self.space.new_node_like::<V>(node, &moved)?;
        self.space.node_mut(node).remove(left..entries);
        let first = moved.first_key().expect("both parts have entries");
        self.space.node_mut(parent).insert(index + 1, first, child_value(right));
        Ok(())
    }

    /// Moves the full root's entries to two new nodes; the root becomes their parent and stays where it is.
    fn grow(&mut self, side: Side) -> Result<()> {
        let root = self.root;
        let entries = self.space.node_mut(root).len();
        let left = Self::left_share(side, entries);
        let parts = [0..left, left..entries].map(|part| self.space.node_mut(root).copy_bytes(part));
        let mut children = Vec::with_capacity(parts.len());
        for part in &parts {
            let first = part.first_key().expect("both parts have entries");
            children.push((first, self.space.new_node_like::<V>(root, part)?));
        }
        let mut node = self.space.reset_node::<V>(root, NodeKind::Internal);
        for (index, (first, child)) in children.into_iter().enumerate() {
            node.insert(index, first, child_value(child));
        }
        self.path.truncate(1);
        Ok(())
    }
}

/// A child block as an internal node's value.
fn child_value(block: MetaBlock) -> U64 {
    U64::new(block.0)
}

impl<D: Disk> Space<D> {
    /// A new node of the same kind as `model` with these entries.
    fn new_node_like<V: TreeValue>(&mut self, model: MetaBlock, entries: &EntryBytes) -> Result<MetaBlock> {
        let kind = kind_of(self.cache.dirty_mut(model));
        let block = self.new_node::<V>(kind)?;
        self.node_mut(block).insert_bytes(0, entries);
        Ok(block)
    }
}
