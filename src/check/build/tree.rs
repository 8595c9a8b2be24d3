//! B-trees written from entries in order: every node full but the last two, which share what is left.

use super::output::Output;
use crate::checksum::BlockKind;
use crate::error::Result;
use crate::format::{Block, NodeKind, NodeMut, NodeValue, capacity};
use crate::units::MetaBlock;
use zerocopy::little_endian::U64;

/// Sizes of the nodes for so many entries: full ones first; no node but an only one has fewer than half of `capacity`.
pub(super) fn node_sizes(entries: usize, capacity: usize) -> Vec<usize> {
    let (mut sizes, mut left) = (Vec::new(), entries);
    while left >= 2 * capacity {
        sizes.push(capacity);
        left -= capacity;
    }
    if left > capacity {
        sizes.push(left - left / 2);
        left /= 2;
    }
    if left > 0 {
        sizes.push(left);
    }
    sizes
}

/// Writes one node.
pub(super) fn write_node<V: NodeValue>(
    output: &mut Output<'_>,
    kind: NodeKind,
    entries: &[(u64, V)],
) -> Result<MetaBlock> {
    let mut block = Block::ZERO;
    NodeMut::initialise(&mut block, kind, size_of::<V>()).fill(entries);
    output.write(block, BlockKind::Node)
}

/// Writes a tree and answers its root, to which there is no reference yet.
pub(super) fn write_tree<V: NodeValue>(output: &mut Output<'_>, entries: &[(u64, V)]) -> Result<MetaBlock> {
    if entries.is_empty() {
        return write_node::<V>(output, NodeKind::Leaf, &[]);
    }
    let leaves = write_level(output, NodeKind::Leaf, entries)?;
    write_above(output, leaves)
}

/// Writes the internal nodes above these nodes, if there is more than one; answers the root.
pub(super) fn write_above(output: &mut Output<'_>, mut level: Vec<(u64, MetaBlock)>) -> Result<MetaBlock> {
    while level.len() > 1 {
        for (_, child) in &level {
            output.reference(*child);
        }
        let children: Vec<_> = level.iter().map(|(key, child)| (*key, U64::new(child.0))).collect();
        level = write_level(output, NodeKind::Internal, &children)?;
    }
    Ok(level[0].1)
}

/// Writes one level of nodes: their first keys and places.
fn write_level<V: NodeValue>(
    output: &mut Output<'_>,
    kind: NodeKind,
    entries: &[(u64, V)],
) -> Result<Vec<(u64, MetaBlock)>> {
    let (mut rest, mut nodes) = (entries, Vec::new());
    for size in node_sizes(entries.len(), capacity(size_of::<V>())) {
        let (node, after) = rest.split_at(size);
        nodes.push((node[0].0, write_node(output, kind, node)?));
        rest = after;
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_full_and_none_is_too_empty() {
        assert_eq!(node_sizes(0, 252), [0; 0]);
        assert_eq!(node_sizes(1, 252), [1]);
        assert_eq!(node_sizes(252, 252), [252]);
        assert_eq!(node_sizes(253, 252), [127, 126]);
        assert_eq!(node_sizes(504, 252), [252, 252]);
        for entries in 253..2000 {
            let sizes = node_sizes(entries, 252);
            assert_eq!(sizes.iter().sum::<usize>(), entries);
            assert!(sizes.iter().all(|size| (126..=252).contains(size)), "{sizes:?}");
        }
    }
}
