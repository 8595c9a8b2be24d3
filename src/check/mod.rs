//! fsck for the metadata: walks everything from the superblock, recounts every reference, compares with what is stored.
//!
//! An independent second opinion on what the engine writes: uses `disk` and `format`, never `metadata`. What must hold:
//!
//! - Nothing is written.
//! - Any bytes are taken: no panic, no endless walk (each distinct node is read once, no tree is deeper than
//!   `DEPTH_LIMIT`), and memory bounded by a small multiple of the metadata device's own size, whatever numbers it claims.
//! - Findings are collected, not fatal at the first. Only what makes everything else meaningless is an [`Error`]: a disk
//!   that cannot be read at its beginning, bytes that are no pool's metadata, a version or feature nobody here knows.
//! - A count below its references is damage: a block in use could be handed out again. A count above them is a leak.
//!
//! Left to others: repair, dump, and what the numbers mean to a running pool.

mod build;
pub mod cli;
mod counts;
mod dump;
mod forest;
mod open;
mod report;
mod restore;
mod source;
mod space_map;
mod stream;
mod touches;
mod volumes;
mod walk;

#[cfg(test)]
mod tests;

pub use report::{Finding, Report, Severity, Space, SuperblockSummary, Touched, Verdict, VolumeSummary};

use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::Superblock;
use crate::units::{MetaBlock, SECTOR_BYTES};
use report::Findings;
use space_map::{MapKind, SpaceMap};
use volumes::check_volumes;
use walk::{Place, Walk};

/// What to check, and how much to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckOptions {
    /// Findings past so many are counted, not kept.
    pub findings_limit: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions { findings_limit: 1000 }
    }
}

/// Checks the metadata on `disk`, reading only.
///
/// Everything wrong is in the report. An error means that nothing could be said: `Io` when block 0 cannot be read,
/// `Invalid` when this is no pool's metadata, `Unsupported` for a version or incompatible feature that is not known.
pub fn check(disk: &dyn Disk, options: &CheckOptions) -> Result<Report> {
    let mut findings = Findings::new(options.findings_limit);
    let superblock = open::read_superblock(disk, &mut findings)?;
    let mut walk = Walk::new(disk, &superblock, findings);
    walk.reference(MetaBlock::SUPERBLOCK, Place::Superblock);
    let live = check_volumes(&mut walk, &superblock, false);
    if superblock.held_root != 0 {
        check_held_root(&mut walk, MetaBlock(superblock.held_root));
    }
    touches::attribute(&mut walk, &live.roots);

    let data = SpaceMap::read(&mut walk, MapKind::Data, &superblock.data_space_map);
    let metadata = SpaceMap::read(&mut walk, MapKind::Metadata, &superblock.metadata_space_map);
    // Only now is every reference to a metadata block counted: those of both maps' own blocks came last.
    let data = data.compare(&mut walk);
    let metadata = metadata.compare(&mut walk);

    let nodes = walk.nodes_read();
    let verdict = walk.findings.verdict();
    let (findings, findings_omitted) = walk.findings.into_parts();
    Ok(Report {
        verdict,
        superblock: summary_of(&superblock),
        volumes: live.summaries,
        data,
        metadata,
        nodes,
        findings,
        findings_omitted,
    })
}

/// The metadata snapshot: a copy of an earlier superblock, with trees of its own that share nodes with the live ones.
fn check_held_root(walk: &mut Walk<'_>, number: MetaBlock) {
    if !walk.reference(number, Place::HeldRoot) {
        return;
    }
    let Some(block) = walk.read(number, Place::HeldRoot, BlockKind::Superblock) else { return };
    match Superblock::read(&block, number) {
        Ok(held) => {
            if held.held_root != 0 {
                let message = format!("it names a further metadata snapshot, in block {}", held.held_root);
                walk.damage(number, Place::HeldRoot, message);
            }
            check_volumes(walk, &held, true);
        }
        Err(error) => {
            walk.unreadable(number, Place::HeldRoot, error.message());
        }
    }
}

fn summary_of(superblock: &Superblock) -> SuperblockSummary {
    SuperblockSummary {
        transaction_id: superblock.transaction_id.0,
        time: u64::from(superblock.time.0),
        block_size_bytes: u64::from(superblock.data_block_sectors) * SECTOR_BYTES,
        needs_check: superblock.needs_check(),
        metadata_snapshot: (superblock.held_root != 0).then_some(superblock.held_root),
    }
}
