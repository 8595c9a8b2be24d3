//! B-trees over shadowed blocks (format §4).
//!
//! A tree is its root's block; every change answers with the root's new place. Whoever changes a tree makes sure first
//! that everything above its root has been shadowed (see [`super::space`]). What always holds:
//!
//! - Nodes other than a root are at least a third full, leaves are equally deep, keys ascend, and a parent's key is not above
//!   its child's first key and above the last key of the child before (format §4.3).
//! - What a tree names is counted: an insertion takes over the reference that comes with the value, an overwrite leaves
//!   the old value's reference to the caller, a removal releases it.
//!
//! Reading is here, [`Inserter`] inserts in batches, `remove` removes ranges.

mod insert;
mod remove;
#[cfg(test)]
pub(super) mod tests;

pub(super) use insert::Inserter;

use super::space::{DEPTH_LIMIT, References, Space, Span, TreeValue, require_depth};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::{Entries, Node};
use crate::units::MetaBlock;
use std::ops::ControlFlow;

/// Takes the entries of one leaf that are in the range asked for.
pub(super) type LeafVisitor<'a, V> = &'a mut dyn FnMut(Entries<'_, V>) -> ControlFlow<()>;

impl<D: Disk> Space<D> {
    /// The value of `key`.
    pub fn lookup<V: TreeValue>(&mut self, root: MetaBlock, key: u64) -> Result<Option<V>> {
        self.lookup_if(root, key, |_, _| true)
    }

    /// The value of `key`, if every node that leads to it has a single holder.
    pub fn lookup_unshared<V: TreeValue>(&mut self, root: MetaBlock, key: u64) -> Result<Option<V>> {
        self.lookup_if(root, key, |references, block| references.metadata.count(block.0) == 1)
    }

    /// The value of `key`, if the nodes that lead to it are as wanted.
    fn lookup_if<V: TreeValue>(
        &mut self,
        root: MetaBlock,
        key: u64,
        wanted: impl Fn(&References, MetaBlock) -> bool,
    ) -> Result<Option<V>> {
        let (mut block, mut span) = (root, Span::ALL);
        for depth in 0.. {
            require_depth(block, depth)?;
            if !wanted(&self.references, block) {
                return Ok(None);
            }
            match self.node::<V>(block, span)? {
                Node::Leaf(entries) => return Ok(entries.find(key).map(|index| entries.values[index])),
                Node::Internal(entries) => {
                    let Some(index) = entries.floor(key) else { return Ok(None) };
                    (block, span) = step(entries, index, span);
                }
            }
        }
        unreachable!("the depth limit ends the loop")
    }

    /// The first key of a tree that is not below `key`, if there is one.
    pub fn first_key_from<V: TreeValue>(
        &mut self,
        root: MetaBlock,
        root_span: Span,
        key: u64,
    ) -> Result<Option<u64>> {
        let (mut block, mut span) = (root, root_span);
        // Where to go on when there is nothing that high under `block`: the next subtree to the right.
        let mut next: Option<(MetaBlock, Span)> = None;
        for depth in 0.. {
            require_depth(block, depth / 2)?;
            match self.node::<V>(block, span)? {
                Node::Internal(entries) if !entries.is_empty() => {
                    let index = entries.floor(key).unwrap_or(0);
                    if index + 1 < entries.len() {
                        next = Some(step(entries, index + 1, span));
                    }
                    (block, span) = step(entries, index, span);
                }
                Node::Leaf(entries) if entries.lower_bound(key) < entries.len() => {
                    return Ok(Some(entries.key(entries.lower_bound(key))));
                }
                Node::Internal(_) | Node::Leaf(_) => match next.take() {
                    Some(right) => (block, span) = right,
                    None => return Ok(None),
                },
            }
        }
        unreachable!("the depth limit ends the loop")
    }

    /// The highest key.
    pub fn last_key<V: TreeValue>(&mut self, root: MetaBlock) -> Result<Option<u64>> {
        let (mut block, mut span) = (root, Span::ALL);
        for depth in 0.. {
            require_depth(block, depth)?;
            match self.node::<V>(block, span)? {
                Node::Leaf(entries) => return Ok(entries.key_span().map(|(_, last)| last)),
                Node::Internal(entries) if entries.is_empty() => return Ok(None),
                Node::Internal(entries) => (block, span) = step(entries, entries.len() - 1, span),
            }
        }
        unreachable!("the depth limit ends the loop")
    }

    /// Brings into memory what [`Space::last_key`] of these trees will look at, all of a level at once. What cannot be read is left to that.
    pub fn read_ahead_last<V: TreeValue>(&mut self, roots: &[MetaBlock]) {
        let mut level = roots.to_vec();
        for _ in 0..DEPTH_LIMIT {
            self.cache.read_ahead(&self.disk, &level, BlockKind::Node);
            let last_child = |block: MetaBlock| match self.node::<V>(block, Span::ALL) {
                Ok(Node::Internal(entries)) => Some(MetaBlock(entries.values.last()?.get())),
                Ok(Node::Leaf(_)) | Err(_) => None,
            };
            level = level.into_iter().filter_map(last_child).collect();
            if level.is_empty() {
                return;
            }
        }
    }

    /// Shows `visit` every leaf that has entries in `range`, cut to it, in ascending order, until it breaks off.
    pub fn visit_leaves<V: TreeValue>(
        &mut self,
        root: MetaBlock,
        range: Span,
        visit: LeafVisitor<'_, V>,
    ) -> Result<ControlFlow<()>> {
        self.visit_under(root, Span::ALL, 0, range, visit)
    }

    fn visit_under<V: TreeValue>(
        &mut self,
        block: MetaBlock,
        span: Span,
        depth: usize,
        range: Span,
        visit: LeafVisitor<'_, V>,
    ) -> Result<ControlFlow<()>> {
        if let Some(children) = self.children::<V>(block, span, depth)? {
            for (child_span, child) in children {
                if child_span.meets(range)
                    && self.visit_under(child, child_span, depth + 1, range, visit)?.is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        let Node::Leaf(entries) = self.node::<V>(block, span)? else {
            unreachable!("an internal node has children")
        };
        let inside = entries.lower_bound(range.first)..entries.floor(range.last).map_or(0, |last| last + 1);
        if inside.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        Ok(visit(Entries { keys: &entries.keys[inside.clone()], values: &entries.values[inside] }))
    }

    /// All entries of a tree, for trees that are small.
    pub fn entries<V: TreeValue>(&mut self, root: MetaBlock) -> Result<Vec<(u64, V)>> {
        let mut all = Vec::new();
        let _ = self.visit_leaves::<V>(root, Span::ALL, &mut |entries| {
            all.extend(entries.iter());
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Levels of nodes, 1 for a lone leaf.
    pub fn height<V: TreeValue>(&mut self, root: MetaBlock) -> Result<usize> {
        let (mut block, mut span) = (root, Span::ALL);
        for depth in 0.. {
            match self.children::<V>(block, span, depth)? {
                None => return Ok(depth + 1),
                Some(children) => (span, block) = children[0],
            }
        }
        unreachable!("the depth limit ends the loop")
    }

    /// Number of nodes, shared or not, for trees that are small. Does not read leaves.
    pub fn count_nodes<V: TreeValue>(&mut self, root: MetaBlock) -> Result<u64> {
        let height = self.height::<V>(root)?;
        self.count_under::<V>(root, Span::ALL, height, &mut |_, _| true)
    }

    /// Number of nodes at and below `block`, `height` levels of them, as far as `counted` (given the block and the number so
    /// far) says; what is below a node that does not count does not count either. Does not read leaves.
    pub fn count_under<V: TreeValue>(
        &mut self,
        block: MetaBlock,
        span: Span,
        height: usize,
        counted: &mut dyn FnMut(&Self, MetaBlock) -> bool,
    ) -> Result<u64> {
        if !counted(self, block) {
            return Ok(0);
        }
        let mut nodes = 1;
        // The leaves' level is where the leftmost one is.
        if height > 1 {
            for (span, child) in self.children::<V>(block, span, 0)?.unwrap_or_default() {
                nodes += self.count_under::<V>(child, span, height - 1, counted)?;
            }
        }
        Ok(nodes)
    }
}

/// The `index`-th child of an internal node, and the keys that may be under it.
fn step(entries: Entries<'_, zerocopy::little_endian::U64>, index: usize, span: Span) -> (MetaBlock, Span) {
    let last = entries.keys.get(index + 1).map_or(span.last, |key| key.get() - 1);
    (entries.child(index), Span { first: entries.key(index), last })
}
