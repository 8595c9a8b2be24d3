//! What volumes take for their own, held against what is counted.
//!
//! A mapping that is as young as its volume's last snapshot, or younger, is the volume's own: dm-thin writes to its data block in place. So
//! in the live trees it must be the only one of its block, which is no base of a partial block either, in a leaf that only this volume has. Everything older is shared as
//! dm-thin sees it, and copied at the next write, whatever the counts.
//!
//! Only a pool that shares something is looked at again, and there only what is young: internal nodes that say so, and their leaves,
//! read in the order of the disk by all processors. A young subtree that is shared is a finding and not entered, so no node is met twice.

use super::ahead::in_parallel;
use super::source::Source;
use super::walk::{Below, Misplaced, Place, Walk};
use crate::checksum::BlockKind;
use crate::format::{MappingRecord, Node};
use crate::units::{MetaBlock, SnapTime, VolumeId};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A leaf that only one volume has, with mappings as young as that volume's last snapshot.
struct YoungLeaf {
    number: MetaBlock,
    volume: VolumeId,
    since: SnapTime,
    path: Arc<[MetaBlock]>,
}

/// Checks the live volumes, once their mappings and the bases of partial blocks are counted, and nothing else is.
pub(super) fn check_exclusive(
    walk: &mut Walk<'_>,
    roots: &[(VolumeId, MetaBlock)],
    snapshotted: &BTreeMap<VolumeId, SnapTime>,
) {
    let shares_data = walk.data_counts.has_shared();
    if !shares_data && !walk.metadata_counts.has_shared() {
        return;
    }
    let (mut leaves, mut told) = (Vec::new(), HashSet::new());
    for (volume, root) in roots {
        // Without details everything is wrong enough.
        let Some(since) = snapshotted.get(volume) else { continue };
        descend(walk, (*volume, *root), *since, &mut leaves, &mut told);
    }
    if shares_data {
        judge(walk, leaves);
    }
}

/// Finds the young leaves of a volume, and young nodes that are not its alone.
fn descend(
    walk: &mut Walk<'_>,
    (volume, root): (VolumeId, MetaBlock),
    since: SnapTime,
    leaves: &mut Vec<YoungLeaf>,
    told: &mut HashSet<MetaBlock>,
) {
    let place = Place::Mappings { volume: volume.get(), held: false };
    let mut waiting: Vec<(MetaBlock, Arc<[MetaBlock]>)> = vec![(root, Arc::new([]))];
    while let Some((number, path)) = waiting.pop() {
        let Some(subtree) = walk.known::<MappingRecord>(number) else { continue };
        if subtree.youngest < since || subtree.entries == 0 {
            continue;
        }
        let references = walk.metadata_counts.get(number.0);
        if references > 1 {
            // Once: the finding will name everybody who has the node.
            if !told.insert(number) {
                continue;
            }
            let message = format_args!(
                "{references} references to it, and a mapping in it is of time {}: volume {volume}, last snapshotted at {}, would \
                 write to its data in place",
                subtree.youngest.0, since.0
            );
            walk.damage_at(&path, (number, None), place, message);
        } else if subtree.depth == 0 {
            leaves.push(YoungLeaf { number, volume, since, path });
        } else if let Some(Below::Children(children)) =
            walk.below::<MappingRecord>(number, place, &mut |_| ())
        {
            let path: Arc<[_]> = path.iter().copied().chain([number]).collect();
            let fitting = children.into_iter().rev().filter(|(_, _, fits)| *fits);
            waiting.extend(fitting.map(|(child, _, _)| (child, Arc::clone(&path))));
        }
    }
}

/// Reports young mappings of data blocks to which others refer, by volume and key.
fn judge(walk: &mut Walk<'_>, mut leaves: Vec<YoungLeaf>) {
    leaves.sort_unstable_by_key(|leaf| leaf.number);
    let source = Source::new(walk.disk);
    let counts = &walk.data_counts;
    let found = in_parallel(&leaves, |leaves, found: &mut Vec<(MetaBlock, Misplaced)>, batch| {
        let numbers: Vec<_> = leaves.iter().map(|leaf| leaf.number).collect();
        let read = source.batch(&numbers, BlockKind::Node, batch, &mut |index, block| {
            // It was sound a moment ago; a disk that has changed its mind answers nothing here.
            let Some(Ok(Node::Leaf(entries))) = block.ok().map(Node::<MappingRecord>::parse) else {
                return Ok(());
            };
            let mut wrong = Misplaced::default();
            for (key, record) in entries.iter() {
                let mapping = record.mapping();
                if mapping.time >= leaves[index].since && counts.get(mapping.block.0) > 1 {
                    wrong.add(key, mapping.block.0);
                }
            }
            found.extend(wrong.words().is_some().then_some((numbers[index], wrong)));
            Ok(())
        });
        read.expect("what is handed out is the only one to end it, and does not");
    });
    let found: BTreeMap<_, _> = found.into_iter().flatten().collect();
    leaves.retain(|leaf| found.contains_key(&leaf.number));
    leaves.sort_unstable_by_key(|leaf| (leaf.volume, found[&leaf.number].first_key()));
    for leaf in leaves {
        let Some((keys, words)) = found[&leaf.number].words() else { continue };
        let message = format_args!(
            "{words} to a data block that others refer to: volume {}, last snapshotted at {}, would write to it in place",
            leaf.volume, leaf.since.0
        );
        let place = Place::Mappings { volume: leaf.volume.get(), held: false };
        walk.damage_at(&leaf.path, (leaf.number, Some(keys)), place, message);
    }
}
