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

/// Walks the tree, once all mappings are counted; the number of entries.
pub(super) fn check_partials(walk: &mut Walk<'_>, superblock: &Superblock) -> u64 {
    let Some(root) = superblock.partial_tree().filter(|root| *root != MetaBlock::SUPERBLOCK) else {
        return 0; // a feature without a tree is reported with the superblock
    };
    if walk.tree::<PartialRecord>(root, Place::Partials).is_none() {
        return 0;
    }
    let entries = walk.entries::<PartialRecord>(root, Place::Partials);
    if entries.is_empty() {
        walk.damage(root, Place::Partials, "it has no entries, and should not be there");
    }
    let blocks: HashSet<u64> = entries.iter().map(|(block, _)| *block).collect();
    let all = superblock.data_block_size().map_or(u64::MAX, |size| size.all_units());
    let mut wrong = Vec::new();
    for (block, record) in &entries {
        let units = record.mask.get();
        if *block >= walk.data_blocks {
            wrong.push(format!("data block {block} is past the end, {} blocks", walk.data_blocks));
        } else if walk.data_counts.get(*block) == 0 && !walk.is_incomplete {
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
            None => {}
            Some(base) if base.0 >= walk.data_blocks => wrong.push(format!(
                "the base of data block {block} is {}, past the end, {} blocks",
                base.0, walk.data_blocks
            )),
            Some(base) if blocks.contains(&base.0) => {
                wrong.push(format!("the base of data block {block} is {}, a partial block itself", base.0));
            }
            Some(_) => {}
        }
    }
    for message in wrong {
        walk.damage(root, Place::Partials, message);
    }
    // Only now: what is a base, is not mapped for that.
    for base in entries.iter().filter_map(|(_, record)| record.base()) {
        let _ = walk.data_counts.add(base.0);
    }
    entries.len() as u64
}
