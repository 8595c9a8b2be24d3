//! Removing ranges of keys.
//!
//! Subtrees that lie wholly in the range are dropped without being copied: one decrement, and if it was the last
//! reference, a walk that releases what they name. Only the nodes along the two ends of the range are shadowed. They may
//! be left too empty; [`Space::restore_occupancy`] then merges them with neighbours, top-down, until all is well.
//!
//! Why that ends: each pass either merges nodes, of which there are finitely many, or changes nothing but to even out two
//! siblings, after which both are full enough.

use super::step;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::{EntryBytes, Node, NodeKind, NodeMut, capacity, smallest_occupancy};
use crate::metadata::space::{Space, Span, TreeValue, require_depth};
use crate::units::MetaBlock;

/// What becomes of a child when a range is removed from its parent.
enum Fate {
    Whole,
    Part,
    Untouched,
}

impl<D: Disk> Space<D> {
    /// Removes all keys in `range` and releases their values; the root's new place. Everything above it must have been
    /// shadowed. A tree that has no key there is left as it is.
    pub fn remove_range<V: TreeValue>(&mut self, root: MetaBlock, range: Span) -> Result<MetaBlock> {
        if !self.has_keys_in::<V>(root, Span::ALL, range)? {
            return Ok(root);
        }
        let root = self.shadow::<V>(root)?;
        self.prune::<V>(root, Span::ALL, 0, range)?;
        if self.node_mut(root).is_empty() {
            self.reset_node::<V>(root, NodeKind::Leaf);
            return Ok(root);
        }
        // The nodes that may be too empty are on the ways to the two ends.
        while self.restore_occupancy::<V>(root, range.first)?
            || self.restore_occupancy::<V>(root, range.last)?
        {}
        Ok(root)
    }

    fn has_keys_in<V: TreeValue>(&mut self, block: MetaBlock, span: Span, range: Span) -> Result<bool> {
        Ok(self.first_key_from::<V>(block, span, range.first)?.is_some_and(|key| key <= range.last))
    }

    /// Removes `range` at and below a node that is ours; it may be left with too few entries, or none.
    fn prune<V: TreeValue>(&mut self, block: MetaBlock, span: Span, depth: usize, range: Span) -> Result<()> {
        let Some(children) = self.children::<V>(block, span, depth)? else {
            return self.prune_leaf::<V>(block, range);
        };
        // From the end, so that indices stay true.
        for (index, (child_span, child)) in children.into_iter().enumerate().rev() {
            match self.fate::<V>(child, child_span, range)? {
                Fate::Untouched => {}
                Fate::Whole => {
                    self.drop_tree::<V>(child, child_span, depth + 1)?;
                    self.node_mut(block).remove(index..index + 1);
                }
                Fate::Part => {
                    let child = self.shadow_child::<V>(block, index)?;
                    self.prune::<V>(child, child_span, depth + 1, range)?;
                    if self.node_mut(child).is_empty() {
                        self.release_node::<V>(child)?;
                        self.node_mut(block).remove(index..index + 1);
                    }
                }
            }
        }
        Ok(())
    }

    fn fate<V: TreeValue>(&mut self, child: MetaBlock, span: Span, range: Span) -> Result<Fate> {
        if range.covers(span) {
            return Ok(Fate::Whole);
        }
        let part = span.meets(range) && self.has_keys_in::<V>(child, span, range)?;
        Ok(if part { Fate::Part } else { Fate::Untouched })
    }

    fn prune_leaf<V: TreeValue>(&mut self, block: MetaBlock, range: Span) -> Result<()> {
        let bytes = self.cache.dirty_mut(block);
        let Ok(Node::Leaf(entries)) = Node::<V>::parse(bytes) else {
            unreachable!("a leaf that is ours is sound")
        };
        let inside = entries.lower_bound(range.first)..entries.floor(range.last).map_or(0, |last| last + 1);
        for value in &entries.values[inside.clone()] {
            value.release(&mut self.references, block)?;
        }
        NodeMut::new(bytes).remove(inside);
        Ok(())
    }

    /// Goes down the way to `key` and merges or evens out children that are too empty. Whether anything changed; then it is
    /// to be called again, because a merge takes an entry from a node further up.
    fn restore_occupancy<V: TreeValue>(&mut self, root: MetaBlock, key: u64) -> Result<bool> {
        let mut changed = false;
        while self.collapse_root::<V>(root)? {
            changed = true;
        }
        let mut block = root;
        for depth in 0.. {
            require_depth(block, depth)?;
            let (index, siblings) = match self.node::<V>(block, Span::ALL)? {
                Node::Leaf(_) => return Ok(changed),
                Node::Internal(entries) => (entries.floor(key).unwrap_or(0), entries.len()),
            };
            let child = self.child_of::<V>(block, index)?;
            let node = self.node::<V>(child, Span::ALL)?;
            let smallest = smallest_occupancy(capacity_of(&node));
            if node.keys().len() < smallest && siblings > 1 {
                self.combine::<V>(block, index)?;
                changed = true;
            }
            block = match self.node::<V>(block, Span::ALL)? {
                Node::Internal(entries) => entries.child(entries.floor(key).unwrap_or(0)),
                Node::Leaf(_) => unreachable!("an internal node stays one while its children are combined"),
            };
            // Nothing below a node that is not ours was touched.
            if !self.is_ours(block) {
                return Ok(changed);
            }
        }
        unreachable!("the depth limit ends the loop")
    }

    /// Puts the only child of an internal root in its place. Whether there was such a child.
    fn collapse_root<V: TreeValue>(&mut self, root: MetaBlock) -> Result<bool> {
        let child = match self.node::<V>(root, Span::ALL)? {
            Node::Internal(entries) if entries.len() == 1 => entries.child(0),
            Node::Internal(_) | Node::Leaf(_) => return Ok(false),
        };
        self.node::<V>(child, Span::ALL)?;
        let bytes = self.cache.get(&self.disk, child, crate::checksum::BlockKind::Node)?.clone();
        self.give_up_holding::<V>(child)?;
        self.replace_node::<V>(root, &bytes);
        Ok(true)
    }

    /// A node whose entries have been copied into another that is ours loses its holder; if others hold it too, both
    /// reference what it names.
    fn give_up_holding<V: TreeValue>(&mut self, block: MetaBlock) -> Result<()> {
        if self.references.metadata.referenced(block)? > 1 {
            self.retain_targets::<V>(block)?;
        }
        self.release_node::<V>(block)?;
        Ok(())
    }

    /// Merges a child that is too empty with a neighbour, or evens the two out.
    fn combine<V: TreeValue>(&mut self, parent: MetaBlock, index: usize) -> Result<()> {
        let left_index = self.better_neighbour::<V>(parent, index)?.min(index);
        let (left, right) =
            (self.child_of::<V>(parent, left_index)?, self.child_of::<V>(parent, left_index + 1)?);
        let left_len = self.node::<V>(left, Span::ALL)?.keys().len();
        let node = self.node::<V>(right, Span::ALL)?;
        let (right_len, capacity) = (node.keys().len(), capacity_of(&node));
        if left_len + right_len > capacity {
            return self.even_out::<V>(parent, left_index, (left_len + right_len) / 2);
        }
        let left = self.shadow_child::<V>(parent, left_index)?;
        let bytes = self.cache.get(&self.disk, right, crate::checksum::BlockKind::Node)?;
        let moved = EntryBytes::of(bytes, 0..right_len);
        self.give_up_holding::<V>(right)?;
        self.node_mut(left).insert_bytes(left_len, &moved);
        self.node_mut(parent).remove(left_index + 1..left_index + 2);
        Ok(())
    }

    /// The neighbour of a child that costs least to change: one that is ours, else one that nobody else sees.
    fn better_neighbour<V: TreeValue>(&mut self, parent: MetaBlock, index: usize) -> Result<usize> {
        let Node::Internal(entries) = self.node::<V>(parent, Span::ALL)? else {
            unreachable!("a parent is internal")
        };
        let neighbours = [index.checked_sub(1), Some(index + 1).filter(|right| *right < entries.len())];
        let neighbours: Vec<_> = neighbours.into_iter().flatten().map(|i| (i, entries.child(i))).collect();
        let cost = |block: MetaBlock| {
            if self.is_ours(block) { 0 } else { self.references.metadata.count(block.0) }
        };
        let best = neighbours.into_iter().min_by_key(|(_, block)| cost(*block));
        Ok(best.expect("the child has a sibling").0)
    }

    /// Moves entries between the `left`-th child and the next so that the left one has `left_len`, and sets the key between.
    pub(super) fn even_out<V: TreeValue>(
        &mut self,
        parent: MetaBlock,
        left: usize,
        left_len: usize,
    ) -> Result<()> {
        let left_block = self.shadow_child::<V>(parent, left)?;
        let right_block = self.shadow_child::<V>(parent, left + 1)?;
        let old_len = self.node_mut(left_block).len();
        if left_len > old_len {
            let mut right = self.node_mut(right_block);
            let moved = right.copy_bytes(0..left_len - old_len);
            right.remove(0..left_len - old_len);
            self.node_mut(left_block).insert_bytes(old_len, &moved);
        } else {
            let mut left = self.node_mut(left_block);
            let moved = left.copy_bytes(left_len..old_len);
            left.remove(left_len..old_len);
            self.node_mut(right_block).insert_bytes(0, &moved);
        }
        let between = self.node::<V>(right_block, Span::ALL)?.keys()[0].get();
        self.node_mut(parent).set_key(left + 1, between);
        Ok(())
    }

    fn child_of<V: TreeValue>(&mut self, parent: MetaBlock, index: usize) -> Result<MetaBlock> {
        match self.node::<V>(parent, Span::ALL)? {
            Node::Internal(entries) => Ok(step(entries, index, Span::ALL).0),
            Node::Leaf(_) => unreachable!("a parent is internal"),
        }
    }

    /// Makes a child of a node that is ours changeable.
    fn shadow_child<V: TreeValue>(&mut self, parent: MetaBlock, index: usize) -> Result<MetaBlock> {
        let child = self.child_of::<V>(parent, index)?;
        let ours = self.shadow::<V>(child)?;
        if ours != child {
            self.node_mut(parent).set_child(index, ours);
        }
        Ok(ours)
    }
}

fn capacity_of<V: TreeValue>(node: &Node<'_, V>) -> usize {
    match node {
        Node::Internal(_) => capacity(size_of::<u64>()),
        Node::Leaf(_) => capacity(size_of::<V>()),
    }
}
