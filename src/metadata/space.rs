//! Blocks with their references: reading nodes, shadowing them, dropping trees.
//!
//! [`Space::shadow`] is the one function that copies a node, and so the one place that must know what a node's values
//! reference (format §4.5). Whoever changes a tree shadows top-down: only then does a count of 1 mean that nobody else
//! sees the block.
//!
//! Trees are walked with the range of keys that the parents leave to a node, and with a bound on depth, so that damaged
//! metadata (a node that is its own descendant, say) ends in an error and not in a loop.
//!
//! Left to others: the shape of trees ([`super::tree`]), data counts themselves ([`super::data_map`]).

use super::cache::Cache;
use super::data_log::DataLog;
use super::meta_map::MetaMap;
use super::scarcity::{Scarce, Scarcity};
use super::tally::{Tally, TreeKind};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Block, DetailsRecord, IndexEntry, LargeCount, MappingRecord, Node, NodeHeader, NodeKind, NodeMut,
    NodeValue, RootRecord,
};
use crate::units::{DataBlock, MetaBlock};

/// More levels than any tree can have: five of nodes with 84 entries hold over 4 billion.
pub(super) const DEPTH_LIMIT: usize = 12;

/// The keys that may be under a node: both ends belong to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
}

impl Span {
    pub const ALL: Span = Span { first: 0, last: u64::MAX };

    pub fn meets(self, other: Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether all of `other` lies in it.
    pub fn covers(self, other: Span) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

/// The reference counts that values of leaves take part in.
pub(super) struct References {
    pub metadata: MetaMap,
    pub data: DataLog,
}

/// A value of a tree's leaves, and what it references.
pub(super) trait TreeValue: NodeValue {
    /// Which tree.
    const TREE: TreeKind;
    /// One more leaf, number `leaf`, names it.
    fn retain(self, references: &mut References, leaf: MetaBlock) -> Result<()>;
    /// One leaf less names it.
    fn release(self, references: &mut References, leaf: MetaBlock) -> Result<()>;
}

impl TreeValue for MappingRecord {
    const TREE: TreeKind = TreeKind::Mappings;
    fn retain(self, references: &mut References, leaf: MetaBlock) -> Result<()> {
        references.data.increment(self.mapping().block, leaf)
    }
    fn release(self, references: &mut References, leaf: MetaBlock) -> Result<()> {
        references.data.decrement(self.mapping().block, leaf)
    }
}

impl TreeValue for RootRecord {
    const TREE: TreeKind = TreeKind::Roots;
    fn retain(self, references: &mut References, _leaf: MetaBlock) -> Result<()> {
        references.metadata.increment(self.root())
    }
    /// Never the last reference: who removes a volume takes one of its own first, to drop the tree by.
    fn release(self, references: &mut References, leaf: MetaBlock) -> Result<()> {
        match references.metadata.decrement(self.root())? {
            0 => Err(Error::corrupt(
                leaf,
                format_args!("found too few references to its root {}", self.root()),
            )),
            _ => Ok(()),
        }
    }
}

macro_rules! plain_values {
    ($($value:ident: $tree:ident),*) => {$(
        impl TreeValue for $value {
            const TREE: TreeKind = TreeKind::$tree;
            fn retain(self, _: &mut References, _: MetaBlock) -> Result<()> {
                Ok(())
            }
            fn release(self, _: &mut References, _: MetaBlock) -> Result<()> {
                Ok(())
            }
        }
    )*};
}
plain_values!(DetailsRecord: Details, IndexEntry: Index, LargeCount: LargeCounts);

pub(super) struct Space<D> {
    pub disk: D,
    pub cache: Cache,
    pub references: References,
    pub tally: Tally,
    pub scarcity: Scarcity,
}

impl<D: Disk> Space<D> {
    pub fn new(disk: D, cache: Cache, references: References) -> Self {
        Space { disk, cache, references, tally: Tally::default(), scarcity: Scarcity::default() }
    }

    /// A node of a tree, all of whose keys must be in `span`.
    pub fn node<V: TreeValue>(&mut self, block: MetaBlock, span: Span) -> Result<Node<'_, V>> {
        let bytes = self.cache.get(&self.disk, block, BlockKind::Node)?;
        let node = Node::<V>::parse(bytes).map_err(|fault| Error::corrupt(block, fault))?;
        if let ([first, ..], [.., last]) = (node.keys(), node.keys())
            && !span.covers(Span { first: first.get(), last: last.get() })
        {
            let what = format!(
                "found keys {first} to {last} in a B-tree node, expected {} to {}",
                span.first, span.last
            );
            return Err(Error::corrupt(block, what));
        }
        Ok(node)
    }

    /// The children of an internal node with the keys that may be under each, `None` for a leaf. Copied, so that the caller
    /// can go down; `depth` is that of `block`, the root's being 0.
    pub fn children<V: TreeValue>(
        &mut self,
        block: MetaBlock,
        span: Span,
        depth: usize,
    ) -> Result<Option<Vec<(Span, MetaBlock)>>> {
        let Node::Internal(entries) = self.node::<V>(block, span)? else { return Ok(None) };
        if entries.is_empty() {
            return Err(Error::corrupt(block, "found an internal B-tree node without entries"));
        }
        require_depth(block, depth)?;
        // What the first entry's key leaves out below itself belongs to nobody: nothing can be there.
        let ends = entries.keys[1..].iter().map(|key| key.get() - 1).chain([span.last]);
        let children = entries.iter().zip(ends);
        Ok(Some(
            children.map(|((first, child), last)| (Span { first, last }, MetaBlock(child.get()))).collect(),
        ))
    }

    /// A free block, with a count of 1.
    pub fn allocate(&mut self) -> Result<MetaBlock> {
        let is_refused = self.scarcity.refuses(Scarce::MetadataBlock);
        let free = if is_refused { None } else { self.references.metadata.allocate() };
        free.ok_or_else(|| {
            // Every operation has made sure beforehand that this cannot happen; it is no refusal, for things have changed.
            Error::new(ErrorKind::Failed, "no free metadata block in the middle of an operation")
                .hint("this is a bug; the last commit is intact: reopen the pool, and report it")
        })
    }

    /// An empty node.
    pub fn new_node<V: TreeValue>(&mut self, kind: NodeKind) -> Result<MetaBlock> {
        let number = self.allocate()?;
        NodeMut::initialise(self.cache.create(number, BlockKind::Node), kind, value_size::<V>(kind));
        self.tally.add(V::TREE, kind);
        Ok(number)
    }

    /// Empties a node that is ours and makes it one of that kind.
    pub fn reset_node<V: TreeValue>(&mut self, block: MetaBlock, kind: NodeKind) -> NodeMut<'_> {
        let old = kind_of(self.cache.dirty_mut(block));
        self.tally.remove(V::TREE, old, true);
        self.tally.add(V::TREE, kind);
        NodeMut::initialise(self.cache.dirty_mut(block), kind, value_size::<V>(kind))
    }

    /// Makes a node that is ours a copy of another.
    pub fn replace_node<V: TreeValue>(&mut self, block: MetaBlock, bytes: &Block) {
        let old = kind_of(self.cache.dirty_mut(block));
        self.tally.remove(V::TREE, old, true);
        self.tally.add(V::TREE, kind_of(bytes));
        *self.cache.dirty_mut(block) = bytes.clone();
    }

    /// A node that this transaction may change: it was shadowed, or made.
    pub fn node_mut(&mut self, block: MetaBlock) -> NodeMut<'_> {
        NodeMut::new(self.cache.dirty_mut(block))
    }

    /// Whether nobody but one holder sees the block, and this transaction made it.
    pub fn is_ours(&self, block: MetaBlock) -> bool {
        self.references.metadata.count(block.0) == 1 && self.cache.is_dirty(block)
    }

    /// Makes a node changeable for the one holder that the caller stands for: the node itself if it is ours, else a copy,
    /// whose number the caller writes in place of the old one. All above it must have been shadowed before.
    pub fn shadow<V: TreeValue>(&mut self, block: MetaBlock) -> Result<MetaBlock> {
        let holders = self.references.metadata.referenced(block)?;
        if holders == 1 && self.cache.is_dirty(block) {
            return Ok(block);
        }
        if holders > 1 {
            self.retain_targets::<V>(block)?;
        }
        let bytes = self.cache.get(&self.disk, block, BlockKind::Node)?.clone();
        let copy = self.allocate()?;
        self.tally.add(V::TREE, kind_of(&bytes));
        *self.cache.create(copy, BlockKind::Node) = bytes;
        self.release_node::<V>(block)?;
        Ok(copy)
    }

    /// One more node references what this one does.
    pub fn retain_targets<V: TreeValue>(&mut self, block: MetaBlock) -> Result<()> {
        let bytes = self.cache.get(&self.disk, block, BlockKind::Node)?;
        match Node::<V>::parse(bytes).map_err(|fault| Error::corrupt(block, fault))? {
            Node::Internal(entries) => {
                for child in entries.values {
                    self.references.metadata.increment(MetaBlock(child.get()))?;
                }
            }
            Node::Leaf(entries) => {
                for value in entries.values {
                    value.retain(&mut self.references, block)?;
                }
            }
        }
        Ok(())
    }

    /// Drops one reference to a block that is no node.
    pub fn release_block(&mut self, block: MetaBlock) -> Result<()> {
        if self.references.metadata.decrement(block)? == 0 {
            self.cache.forget_dirty(block);
        }
        Ok(())
    }

    /// Drops one reference to a node and nothing else; what the node itself references is the caller's business.
    pub fn release_node<V: TreeValue>(&mut self, block: MetaBlock) -> Result<()> {
        if self.references.metadata.referenced(block)? == 1 {
            let kind = kind_of(self.cache.get(&self.disk, block, BlockKind::Node)?);
            self.tally.remove(V::TREE, kind, self.cache.is_dirty(block));
        }
        self.release_block(block)
    }

    /// Drops one reference to a tree, and with the last one all that it references.
    pub fn drop_tree<V: TreeValue>(&mut self, block: MetaBlock, span: Span, depth: usize) -> Result<()> {
        if self.references.metadata.referenced(block)? == 1 {
            match self.children::<V>(block, span, depth)? {
                Some(children) => {
                    for (span, child) in children {
                        self.drop_tree::<V>(child, span, depth + 1)?;
                    }
                }
                None => {
                    let bytes = self.cache.get(&self.disk, block, BlockKind::Node)?;
                    if let Ok(Node::Leaf(entries)) = Node::<V>::parse(bytes) {
                        for value in entries.values {
                            value.release(&mut self.references, block)?;
                        }
                    }
                }
            }
        }
        self.release_node::<V>(block)
    }
}

/// The kind of a node that has been verified.
pub(super) fn kind_of(node: &Block) -> NodeKind {
    NodeHeader::decode(node).kind().expect("a sound node has a kind")
}

fn value_size<V>(kind: NodeKind) -> usize {
    match kind {
        NodeKind::Internal => size_of::<u64>(),
        NodeKind::Leaf => size_of::<V>(),
    }
}

/// Refuses a tree deeper than any can be: it has a cycle.
pub(super) fn require_depth(block: MetaBlock, depth: usize) -> Result<()> {
    if depth >= DEPTH_LIMIT {
        let what =
            format!("found a B-tree node {depth} levels below its root, expected fewer than {DEPTH_LIMIT}");
        return Err(Error::corrupt(block, what));
    }
    Ok(())
}

/// Refuses a data block past the end of the data device.
pub(super) fn require_data_block(block: DataBlock, data_blocks: u64, leaf: MetaBlock) -> Result<()> {
    if block.0 >= data_blocks {
        let what = format!("found a mapping to data block {}, expected one below {data_blocks}", block.0);
        return Err(Error::corrupt(leaf, what));
    }
    Ok(())
}
