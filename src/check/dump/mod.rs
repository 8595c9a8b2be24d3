//! A pool's mappings as text: the XML of thin_dump to the byte, words for people, or a JSON object a line.
//!
//! Reads every leaf once, however many volumes share it. Memory: the internal nodes, and 40 bytes for each leaf.

mod human;
mod json;
mod sharing;
mod text;
mod xml;

pub(in crate::check) use human::HumanSink;
pub(in crate::check) use json::JsonSink;
pub(in crate::check) use sharing::Sharing;
pub(in crate::check) use text::{Text, WRITING};
pub(in crate::check) use xml::XmlSink;

use super::forest::{Damage, Forest, LeafPlace, Refuse, read_leaves};
use super::source::Source;
use super::stream::{Joiner, PoolRecord, Sink, VolumeRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DetailsRecord, MappingRecord, RootRecord, Superblock};
use crate::units::{MetaBlock, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Which state of a pool is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// The live one.
    Live,
    /// The metadata snapshot's, wherever the superblock says it is.
    Snapshot,
    /// The metadata snapshot's in this block.
    SnapshotAt(MetaBlock),
}

/// What to dump.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// Only these volumes; empty for all.
    pub(super) volumes: BTreeSet<u64>,
    /// Whether mappings are left out.
    pub(super) skip_mappings: bool,
}

/// A volume and where its mappings are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VolumePlan {
    pub(super) record: VolumeRecord,
    pub(super) root: MetaBlock,
}

/// What a dump will say, but for the mappings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) pool: PoolRecord,
    pub(super) volumes: Vec<VolumePlan>,
}

/// The superblock of a state of the pool.
pub(super) fn superblock_of(source: Source<'_>, state: State) -> Result<Superblock> {
    let live = source.superblock(MetaBlock::SUPERBLOCK);
    match state {
        State::Live => live,
        State::SnapshotAt(MetaBlock::SUPERBLOCK) => {
            Err(Error::new(ErrorKind::Invalid, "block 0 is the live superblock, no metadata snapshot's")
                .hint("without a block, the one that the superblock names is taken"))
        }
        // What its copy maps may be partial, too, and the live one tells.
        State::SnapshotAt(number) => match live {
            Err(error) if error.kind() == ErrorKind::Unsupported => Err(error),
            Ok(_) | Err(_) => source.superblock(number),
        },
        State::Snapshot => match live?.held_root {
            0 => Err(Error::new(ErrorKind::NotFound, "no current metadata snap")
                .hint("the message reserve_metadata_snap makes one of a pool in use")),
            held => source.superblock(MetaBlock(held)),
        },
    }
}

/// All volumes of a sound pool.
pub(super) fn plan(source: Source<'_>, superblock: &Superblock) -> Result<Plan> {
    let roots: BTreeMap<u64, RootRecord> =
        Forest::new(source).entries(superblock.mapping_root, &mut Refuse)?.into_iter().collect();
    let details: BTreeMap<u64, DetailsRecord> =
        Forest::new(source).entries(superblock.details_root, &mut Refuse)?.into_iter().collect();
    if let Some(odd) =
        roots.keys().chain(details.keys()).find(|id| !(roots.contains_key(id) && details.contains_key(id)))
    {
        let message = format!("volume {odd} is in only one of the two trees of volumes");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let volume = |((id, root), details): ((&u64, &RootRecord), &DetailsRecord)| {
        let id = VolumeId::new(*id)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("volume number {id} is too large")))?;
        Ok(VolumePlan { record: VolumeRecord::of(id, details), root: root.root() })
    };
    let volumes = roots.iter().zip(details.values()).map(volume).collect::<Result<_>>()?;
    Ok(Plan { pool: pool_record(superblock), volumes })
}

/// What the superblock says of the pool.
pub(super) fn pool_record(superblock: &Superblock) -> PoolRecord {
    PoolRecord {
        uuid: String::new(),
        time: superblock.time,
        transaction_id: superblock.transaction_id.0,
        flags: superblock.flags,
        version: superblock.version,
        data_block_sectors: superblock.data_block_sectors,
        data_blocks: superblock.data_space_map.total_blocks.get(),
    }
}

/// Sends what was planned through `sink`.
pub(super) fn dump(
    source: Source<'_>,
    plan: &Plan,
    selection: &Selection,
    damage: &mut dyn Damage,
    sink: &mut dyn Sink,
) -> Result<()> {
    let is_wanted = |volume: &&VolumePlan| {
        selection.volumes.is_empty() || selection.volumes.contains(&volume.record.id.get())
    };
    let volumes: Vec<_> = plan.volumes.iter().filter(is_wanted).collect();
    sink.begin_pool(&plan.pool)?;
    if selection.skip_mappings {
        for volume in volumes {
            sink.begin_volume(&volume.record)?;
            sink.end_volume()?;
        }
        return sink.end_pool();
    }
    let mut forest = Forest::<MappingRecord>::new(source);
    let mut sharing = Sharing::default();
    let mut leaves = Vec::new();
    if volumes.len() > 1 {
        for volume in &volumes {
            leaves.clear();
            forest.leaves(volume.root, damage, &mut leaves)?;
            sharing.add(&leaves);
        }
        for head in sharing.heads() {
            sink.begin_shared(head.0)?;
            send_leaves(source, &sharing.run(head), damage, sink)?;
            sink.end_shared()?;
        }
    }
    for volume in &volumes {
        leaves.clear();
        forest.leaves(volume.root, damage, &mut leaves)?;
        sink.begin_volume(&volume.record)?;
        send_volume(source, &leaves, &sharing, damage, sink)?;
        sink.end_volume()?;
    }
    sink.end_pool()
}

/// The mappings of one volume: what is its own, and references to what it shares.
fn send_volume(
    source: Source<'_>,
    leaves: &[LeafPlace],
    sharing: &Sharing,
    damage: &mut dyn Damage,
    sink: &mut dyn Sink,
) -> Result<()> {
    let is_shared = |leaf: &LeafPlace| sharing.users(leaf.number) > 1;
    let mut rest = leaves;
    while let Some(first) = rest.first() {
        let count = if is_shared(first) {
            sink.shared(first.number.0)?;
            sharing.run(first.number).len().min(rest.len())
        } else {
            let own = rest.iter().position(is_shared).unwrap_or(rest.len());
            send_leaves(source, &rest[..own], damage, sink)?;
            own
        };
        rest = &rest[count..];
    }
    Ok(())
}

fn send_leaves(
    source: Source<'_>,
    leaves: &[LeafPlace],
    damage: &mut dyn Damage,
    sink: &mut dyn Sink,
) -> Result<()> {
    let mut joiner = Joiner::default();
    read_leaves::<MappingRecord>(source, leaves, damage, &mut |_, entries| {
        for (key, record) in entries.iter() {
            if let Some(run) = joiner.push(key, record) {
                sink.run(&run)?;
            }
        }
        Ok(())
    })?;
    joiner.finish().map_or(Ok(()), |run| sink.run(&run))
}
