//! The tree of partial blocks: data blocks of which only some units are there, the others are in a *base*. An extension of
//! uthin's, marked in the superblock as an incompatible feature. What a sound one has:
//!
//! - a superblock that names it exactly if it has the feature, and no tree without entries;
//! - entries that are those of the last commit, as the sum says that the superblock keeps: nothing else counts units;
//! - entries for blocks that something maps, each with some units and not all;
//! - bases that are on the device and no partial blocks themselves. Each entry is one more reference to its base;
//! - or an external origin as a base, at the place where the block is mapped. Which origin that is, the metadata do not say.

use super::walk::{Below, LeafValue, Misplaced, Place, Tree, Walk};
use crate::format::{Base, Entries, MappingRecord, PartialRecord, PartialTree, Superblock};
use crate::units::{BlockSize, MetaBlock, VolumeId};
use std::collections::{HashMap, HashSet};

impl LeafValue for PartialRecord {
    const TREE: Tree = Tree::Partials;
    fn on_leaf(_: &mut Walk<'_>, _: MetaBlock, _: Place, _: Entries<'_, Self>) {}
}

/// The tree, as far as it can be read.
pub(super) struct Partials {
    tree: PartialTree,
    entries: Vec<(u64, PartialRecord)>,
    /// Whether that is all of it.
    is_whole: bool,
}

/// What there is of partial blocks.
#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) blocks: u64,
    /// The sum of the entries, if the superblock has another.
    pub(super) other_sum: Option<u64>,
}

impl Partials {
    /// Walks the tree and counts the references to bases.
    pub(super) fn count(walk: &mut Walk<'_>, superblock: &Superblock) -> Option<Partials> {
        // A feature without a tree is reported with the superblock.
        let tree = superblock.partial_tree().filter(|tree| tree.root != MetaBlock::SUPERBLOCK)?;
        let was_incomplete = std::mem::take(&mut walk.is_incomplete);
        let subtree = walk.tree::<PartialRecord>(tree.root, Place::Partials);
        let is_whole = !walk.is_incomplete;
        walk.is_incomplete |= was_incomplete;
        subtree?;
        let entries = walk.entries::<PartialRecord>(tree.root, Place::Partials);
        for base in entries.iter().filter_map(|(_, record)| record.base().block()) {
            let _ = walk.data_counts.add(base.0);
        }
        Some(Partials { tree, entries, is_whole })
    }

    /// Judges the entries, once all mappings are counted, which are those of the volumes with these `roots`.
    pub(super) fn check(
        self,
        walk: &mut Walk<'_>,
        superblock: &Superblock,
        roots: &[(VolumeId, MetaBlock)],
    ) -> Counted {
        let Partials { tree: PartialTree { root, sum: expected }, entries, is_whole } = self;
        if entries.is_empty() {
            walk.damage(root, Place::Partials, "it has no entries, and should not be there");
        }
        let blocks: HashSet<u64> = entries.iter().map(|(block, _)| *block).collect();
        for (block, record) in &entries {
            for message in faults(walk, (*block, record), superblock.data_block_size(), &blocks) {
                walk.damage(root, Place::Partials, message);
            }
        }
        check_places(walk, roots, &entries);
        let sum = entries.iter().fold(0_u64, |sum, (block, record)| sum.wrapping_add(record.summand(*block)));
        let other_sum = (is_whole && sum != expected).then_some(sum);
        if let Some(sum) = other_sum {
            let message = format_args!(
                "the entries are not those of the last commit: their sum is {sum:#x}, the superblock has {expected:#x}; if nothing \
                 else is damaged, --accept-partial-blocks goes on with these"
            );
            walk.damage(root, Place::Partials, message);
        }
        Counted { blocks: entries.len() as u64, other_sum }
    }
}

/// Whether blocks with an external origin as their base are mapped where the base is: what shows in them would be another part of it
/// elsewhere. Each node is looked at once, and none if there are no such blocks.
fn check_places(walk: &mut Walk<'_>, roots: &[(VolumeId, MetaBlock)], entries: &[(u64, PartialRecord)]) {
    let origin = |(block, record): &(u64, PartialRecord)| match record.base() {
        Base::Origin(shown) => Some((*block, shown.0)),
        Base::Zeros | Base::Block(_) => None,
    };
    let shown: HashMap<u64, u64> = entries.iter().filter_map(origin).collect();
    if shown.is_empty() {
        return;
    }
    let mut seen = HashSet::new();
    for (volume, root) in roots {
        let place = Place::Mappings { volume: volume.get(), held: false };
        let mut waiting = vec![*root];
        while let Some(number) = waiting.pop() {
            if !seen.insert(number) {
                continue;
            }
            let mut elsewhere = Misplaced::default();
            let below = walk.below::<MappingRecord>(number, place, &mut |entries| {
                for (key, record) in entries.iter() {
                    let block = record.mapping().block.0;
                    if shown.get(&block).is_some_and(|at| *at != key) {
                        elsewhere.add(key, block);
                    }
                }
            });
            if let Some((keys, words)) = elsewhere.words() {
                let message =
                    format_args!("{words} to a partial block whose base is an external origin elsewhere");
                walk.damage_at(&[], (number, Some(keys)), place, message);
            }
            if let Some(Below::Children(children)) = below {
                waiting.extend(children.into_iter().filter(|(_, _, fits)| *fits).map(|(child, _, _)| child));
            }
        }
    }
}

/// What is wrong with an entry, where blocks have this `size`, if that can be told, and `blocks` are those with entries.
fn faults(
    walk: &Walk<'_>,
    (block, record): (u64, &PartialRecord),
    size: Option<BlockSize>,
    blocks: &HashSet<u64>,
) -> Vec<String> {
    let all = size.map_or(u64::MAX, BlockSize::all_units);
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
        Base::Block(base) if base.0 >= data_blocks => wrong.push(format!(
            "the base of data block {block} is {}, past the end, {data_blocks} blocks",
            base.0
        )),
        Base::Block(base) if blocks.contains(&base.0) => {
            wrong.push(format!("the base of data block {block} is {}, a partial block itself", base.0));
        }
        base @ Base::Origin(shown) if size.is_some_and(|size| base.is_out_of_reach(size)) => {
            wrong.push(format!(
                "the base of data block {block} is an external origin at virtual block {}, where no volume is",
                shown.0
            ));
        }
        Base::Block(_) | Base::Zeros | Base::Origin(_) => {}
    }
    wrong
}
