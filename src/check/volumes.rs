//! The two trees that know the volumes, the upper mapping tree and the details, held against each other.

use super::ahead;
use super::report::{Severity, VolumeSummary};
use super::walk::{Place, Walk};
use crate::format::{DetailsRecord, MappingRecord, RootRecord, Superblock};
use crate::units::{MetaBlock, SnapTime, VolumeId};
use std::collections::BTreeMap;

/// The volumes of one superblock.
pub(super) struct Volumes {
    pub(super) summaries: Vec<VolumeSummary>,
    /// The root of each volume's own tree.
    pub(super) roots: Vec<(VolumeId, MetaBlock)>,
}

impl Volumes {
    /// When each volume with details was last snapshotted.
    pub(super) fn snapshotted_times(&self) -> BTreeMap<VolumeId, SnapTime> {
        let times = self.summaries.iter().filter_map(|volume| {
            Some((VolumeId::new(volume.id)?, SnapTime(u32::try_from(volume.snapshotted_time).ok()?)))
        });
        times.collect()
    }
}

/// Walks everything below a superblock's two volume trees; `held` where it is the metadata snapshot's. Without
/// `with_mappings` the volumes' own trees are left alone.
pub(super) fn check_volumes(
    walk: &mut Walk<'_>,
    superblock: &Superblock,
    held: bool,
    with_mappings: bool,
) -> Volumes {
    let (upper, details) = (Place::Volumes(held), Place::Details(held));
    walk.skip_mappings = !with_mappings;
    if with_mappings && walk.judges_ahead {
        ahead::judge_mappings(walk, superblock.mapping_root);
    }
    walk.tree::<RootRecord>(superblock.mapping_root, upper);
    walk.tree::<DetailsRecord>(superblock.details_root, details);
    let roots: BTreeMap<u64, MetaBlock> = walk
        .entries::<RootRecord>(superblock.mapping_root, upper)
        .into_iter()
        .map(|(volume, root)| (volume, root.root()))
        .collect();
    let records: BTreeMap<u64, DetailsRecord> =
        walk.entries::<DetailsRecord>(superblock.details_root, details).into_iter().collect();

    for volume in roots.keys().filter(|volume| !records.contains_key(volume)) {
        let message = format!("volume {volume} has a tree of mappings, but no details");
        walk.findings.note(Severity::Damage, None, details, message);
    }
    for (volume, record) in &records {
        match roots.get(volume) {
            Some(root) => check_details(walk, superblock, (*volume, *root, held), record),
            None => {
                let message = format!("volume {volume} has details, but no tree of mappings");
                walk.findings.note(Severity::Damage, None, upper, message);
            }
        }
    }
    Volumes {
        summaries: records.iter().map(|(volume, record)| summary_of(*volume, record)).collect(),
        roots: roots.into_iter().filter_map(|(volume, root)| Some((VolumeId::new(volume)?, root))).collect(),
    }
}

fn check_details(
    walk: &mut Walk<'_>,
    superblock: &Superblock,
    (volume, root, held): (u64, MetaBlock, bool),
    record: &DetailsRecord,
) {
    let place = Place::Details(held);
    let mut damage = |message: String| walk.findings.note(Severity::Damage, None, place, message);
    let (created, snapshotted) = (record.creation_time.get(), record.snapshotted_time.get());
    if created.max(snapshotted) > superblock.time.0 {
        damage(format!(
            "volume {volume} was created at time {created} and snapshotted at {snapshotted}, after the pool's own \
             time {}",
            superblock.time.0
        ));
    }
    if let Some(subtree) = walk.known::<MappingRecord>(root) {
        let (found, stored) = (u64::from(subtree.entries), record.mapped_blocks.get());
        if found != stored {
            let message =
                format!("volume {volume} has {stored} mapped blocks by its details, {found} were found");
            walk.findings.note(Severity::Damage, None, place, message);
        }
    }
}

fn summary_of(volume: u64, record: &DetailsRecord) -> VolumeSummary {
    VolumeSummary {
        id: volume,
        mapped_blocks: record.mapped_blocks.get(),
        transaction_id: record.transaction_id.get(),
        creation_time: u64::from(record.creation_time.get()),
        snapshotted_time: u64::from(record.snapshotted_time.get()),
    }
}
