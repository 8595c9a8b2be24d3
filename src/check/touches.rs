//! Which volumes a damaged block touches, and where: findings in the words that a user can act on.
//!
//! A second descent, only to what was flagged, once for every live volume: a node shared by many volumes was walked
//! once, but its damage is everybody's. Leaves are not read again.

use super::report::{Severity, Touched};
use super::walk::{Below, Place, Walk};
use crate::format::MappingRecord;
use crate::units::{MetaBlock, VolumeId};
use std::collections::HashMap;
use std::ops::Range;

/// Places named in all; a pool with ten thousand snapshots of one damaged volume needs no longer list.
const TOUCHES_LIMIT: usize = 10_000;

/// Adds to every finding about a block of mappings which parts of which of these volumes it touches.
pub(super) fn attribute(walk: &mut Walk<'_>, roots: &[(VolumeId, MetaBlock)]) {
    if !walk.has_flagged() {
        return;
    }
    let (mut found, mut flagged_below) = (Vec::new(), HashMap::new());
    for (volume, root) in roots {
        descend(walk, *volume, *root, &mut flagged_below, &mut found);
        if found.len() > TOUCHES_LIMIT {
            found.truncate(TOUCHES_LIMIT);
            let message =
                format!("damage touches more than {TOUCHES_LIMIT} places in volumes; no more are listed");
            walk.findings.note(Severity::Note, None, Place::Volumes(false), message);
            break;
        }
    }
    let mut by_block: HashMap<MetaBlock, Vec<(VolumeId, Range<u64>)>> = HashMap::new();
    for (block, volume, keys) in found {
        by_block.entry(block).or_default().push((volume, keys));
    }
    for (finding, narrower) in walk.findings.kept_mut() {
        let Some(touched) = finding.block.and_then(|block| by_block.get(&block)) else { continue };
        let parts = touched.iter().filter_map(|(volume, keys)| {
            let only = narrower.clone().unwrap_or(0..u64::MAX);
            let (begin, end) = (keys.start.max(only.start), keys.end.min(only.end));
            (begin < end).then_some(Touched { volume: *volume, begin, end: (end < u64::MAX).then_some(end) })
        });
        finding.touches.extend(parts);
    }
}

/// Collects the flagged blocks below a volume's root, each with the keys that it is responsible for.
fn descend(
    walk: &mut Walk<'_>,
    volume: VolumeId,
    root: MetaBlock,
    flagged_below: &mut HashMap<MetaBlock, bool>,
    found: &mut Vec<(MetaBlock, VolumeId, Range<u64>)>,
) {
    let mut waiting = vec![(root, 0..u64::MAX, true)];
    while let Some((number, keys, can_descend)) = waiting.pop() {
        if walk.is_flagged(number) {
            found.push((number, volume, keys.clone()));
        }
        let has_more = can_descend && is_flagged_below(walk, number, flagged_below);
        if !has_more || found.len() > TOUCHES_LIMIT {
            continue;
        }
        if let Some(Below::Children(children)) = below(walk, number) {
            let clipped = children.into_iter().map(|(child, range, fits)| {
                (child, range.start.max(keys.start)..range.end.min(keys.end), fits)
            });
            waiting.extend(clipped);
        }
    }
}

/// Whether a block below a node was flagged, by whichever volume it was come to. Each node is looked at once.
fn is_flagged_below(walk: &mut Walk<'_>, number: MetaBlock, known: &mut HashMap<MetaBlock, bool>) -> bool {
    if let Some(is_flagged) = known.get(&number) {
        return *is_flagged;
    }
    let mut is_flagged = false;
    if let Some(Below::Children(children)) = below(walk, number) {
        for (child, _, fits) in children {
            // Children that fit have fewer levels below them: this ends.
            is_flagged |= walk.is_flagged(child) || (fits && is_flagged_below(walk, child, known));
        }
    }
    known.insert(number, is_flagged);
    is_flagged
}

/// The children of an internal node that was read before.
fn below(walk: &mut Walk<'_>, number: MetaBlock) -> Option<Below> {
    let is_internal = walk.known::<MappingRecord>(number).is_some_and(|subtree| subtree.depth > 0);
    let place = Place::Mappings { volume: 0, held: false };
    if is_internal { walk.below::<MappingRecord>(number, place, &mut |_| ()) } else { None }
}
