//! The tree of partial blocks: data blocks of which only some units are there, the others are in a *base*. An extension of
//! uthin's, marked in the superblock as an incompatible feature. What a sound one has:
//!
//! - a superblock that names it exactly if it has the feature, and no tree without entries;
//! - entries for blocks that something maps, each with some units and not all;
//! - bases that are on the device and no partial blocks themselves. Each entry is one more reference to its base.

use super::walk::{LeafValue, Place, Tree, Walk};
use crate::format::{Entries, PartialRecord, Superblock};
use crate::units::MetaBlock;
use std::collections::HashSet;

impl LeafValue for PartialRecord {
    const TREE: Tree = Tree::Partials;
    fn on_leaf(_: &mut Walk<'_>, _: MetaBlock, _: Place, _: Entries<'_, Self>) {}
}

/// The tree, as far as it can be read.
pub(super) struct Partials {
    root: MetaBlock,
    entries: Vec<(u64, PartialRecord)>,
}

impl Partials {
    /// Walks the tree and counts the references to bases.
    pub(super) fn count(walk: &mut Walk<'_>, superblock: &Superblock) -> Option<Partials> {
        // A feature without a tree is reported with the superblock.
        let root = superblock.partial_tree().filter(|root| *root != MetaBlock::SUPERBLOCK)?;
        walk.tree::<PartialRecord>(root, Place::Partials)?;
        let entries = walk.entries::<PartialRecord>(root, Place::Partials);
        for base in entries.iter().filter_map(|(_, record)| record.base()) {
            let _ = walk.data_counts.add(base.0);
        }
        Some(Partials { root, entries })
    }

    /// Judges the entries, once all mappings are counted; answers how many there are.
    pub(super) fn check(self, walk: &mut Walk<'_>, superblock: &Superblock) -> u64 {
        let Partials { root, entries } = self;
        if entries.is_empty() {
            walk.damage(root, Place::Partials, "it has no entries, and should not be there");
        }
        let blocks: HashSet<u64> = entries.iter().map(|(block, _)| *block).collect();
        let all = superblock.data_block_size().map_or(u64::MAX, |size| size.all_units());
        for (block, record) in &entries {
            for message in faults(walk, (*block, record), all, &blocks) {
                walk.damage(root, Place::Partials, message);
            }
        }
        entries.len() as u64
    }
}

/// What is wrong with an entry, where a whole block has the units `all`, and `blocks` are those with entries.
fn faults(
    walk: &Walk<'_>,
    (block, record): (u64, &PartialRecord),
    all: u64,
    blocks: &HashSet<u64>,
) -> Vec<String> {
    let (units, data_blocks, mut wrong) = (record.mask.get(), walk.data_blocks, Vec::new());
    if block >= data_blocks {
        wrong.push(format!("data block {block} is past the end, {data_blocks} blocks"));
    } else if walk.data_counts.get(block) == 0 && !walk.is_incomplete {
        wrong.push(format!("data block {block} is partial, and nothing maps it"));
    }
    if units == 0 {
        wrong.push(format!("data block {block} has none of its units"));
    } else if units & !all != 0 {
        wrong.push(format!("data block {block} has units {units:#x}, and there are only {all:#x}"));
    } else if units == all {
        wrong.push(format!("data block {block} has all of its units, and is no partial block"));
    }
    match record.base() {
        Some(base) if base.0 >= data_blocks => wrong.push(format!(
            "the base of data block {block} is {}, past the end, {data_blocks} blocks",
            base.0
        )),
        Some(base) if blocks.contains(&base.0) => {
            wrong.push(format!("the base of data block {block} is {}, a partial block itself", base.0));
        }
        Some(_) | None => {}
    }
    wrong
}
