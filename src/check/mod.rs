//! fsck for the metadata: walks everything from the superblock, recounts every reference, compares with what is stored.
//!
//! An independent second opinion on what the engine writes: uses `disk` and `format`, never `metadata`. What must hold:
//!
//! - A check writes nothing; only what was asked to build, mend or trim does.
//! - Any bytes are taken: no panic, no endless walk (each distinct node is read once, no tree is deeper than
//!   `DEPTH_LIMIT`), and memory bounded by a small multiple of the metadata device's own size, whatever numbers it claims.
//! - Findings are collected, not fatal at the first. Only what makes everything else meaningless is an [`Error`]: a disk
//!   that cannot be read at its beginning, bytes that are no pool's metadata, a version or feature nobody here knows.
//! - A count below its references is damage: a block in use could be handed out again. A count above them is a leak.
//!
//! The check's own walk is in `walk`; what is sound is judged before it in `ahead`, by all processors. The other tools go down trees with `forest`, read blocks with `source`, and hand a
//! pool's mappings on as a `stream`: from `dump`'s descent or `restore`'s XML into text or into `build`, which makes metadata
//! of them. Left to others: what the numbers mean to a running pool.

mod ahead;
mod build;
pub mod cli;
mod counts;
mod dump;
mod exclusive;
mod forest;
mod large_counts;
mod nodes;
mod open;
mod pack;
mod partials;
mod repair;
mod report;
mod restore;
mod source;
mod space_map;
mod stream;
mod tools;
mod touches;
mod volumes;
mod walk;

#[cfg(test)]
mod tests;

pub use report::{Finding, Report, Severity, Space, SuperblockSummary, Touched, Verdict, VolumeSummary};

use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{FLAG_NEEDS_CHECK, PartialTree, Superblock};
use crate::units::{MetaBlock, SECTOR_BYTES};
use counts::Counts;
use partials::Partials;
use report::Findings;
use space_map::{MapKind, SpaceMap};
use volumes::{Volumes, check_volumes};
use walk::{Place, Walk};

/// How much is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// Everything.
    #[default]
    Everything,
    /// The volumes and their details, not their mappings; so no counts either.
    Volumes,
    /// The superblock alone.
    Superblock,
}

/// What to check, and how much to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckOptions {
    /// Findings past so many are counted, not kept.
    pub findings_limit: usize,
    /// How much is looked at.
    pub scope: Scope,
    /// The metadata snapshot's volumes instead of the live ones; no counts.
    pub metadata_snapshot: bool,
    /// The tree of volumes is here, whatever the superblock says.
    pub mapping_root: Option<MetaBlock>,
    /// The details are here, whatever the superblock says.
    pub details_root: Option<MetaBlock>,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions {
            findings_limit: 1000,
            scope: Scope::Everything,
            metadata_snapshot: false,
            mapping_root: None,
            details_root: None,
        }
    }
}

/// Checks the metadata on `disk`, reading only.
///
/// Everything wrong is in the report. An error means that nothing could be said: `Io` when block 0 cannot be read,
/// `Invalid` when this is no pool's metadata, `Unsupported` for a version or incompatible feature that is not known,
/// `NotFound` for a metadata snapshot that is not there.
pub fn check(disk: &dyn Disk, options: &CheckOptions) -> Result<Report> {
    Ok(look(disk, options)?.report)
}

/// A check's outcome, with what a mend of the space maps needs.
struct Looked {
    report: Report,
    /// As it is on the disk, whatever roots were looked at instead.
    superblock: Superblock,
    /// Every reference, if the walk of everything but the space maps found no damage, and both maps are of a size that can be.
    references: Option<build::References>,
    /// The sum of the partial blocks, if nothing but that of the superblock is damaged.
    other_sum: Option<u64>,
}

fn look(disk: &dyn Disk, options: &CheckOptions) -> Result<Looked> {
    look_in_order(disk, options, true)
}

/// Without `judges_ahead`, the walk judges everything by itself: the outcome is the same.
fn look_in_order(disk: &dyn Disk, options: &CheckOptions, judges_ahead: bool) -> Result<Looked> {
    let mut findings = Findings::new(options.findings_limit);
    let stored = open::read_superblock(disk, &mut findings)?;
    if !options.metadata_snapshot {
        open::note_journal(&stored, &mut findings);
    }
    let mut superblock = stored.clone();
    superblock.mapping_root = options.mapping_root.unwrap_or(superblock.mapping_root);
    superblock.details_root = options.details_root.unwrap_or(superblock.details_root);
    let mut walk = Walk::new(disk, &superblock, findings);
    walk.judges_ahead = judges_ahead;
    walk.reference(MetaBlock::SUPERBLOCK, Place::Superblock);
    let mut outcome = Outcome::default();
    if options.metadata_snapshot {
        if superblock.held_root == 0 {
            return Err(Error::new(ErrorKind::NotFound, "no current metadata snap")
                .hint("the message reserve_metadata_snap makes one of a pool in use"));
        }
        let held = MetaBlock(superblock.held_root);
        outcome.volumes =
            check_held_root(&mut walk, held, options.scope).map_or(Vec::new(), |held| held.summaries);
    } else {
        match options.scope {
            Scope::Superblock => {}
            Scope::Volumes => outcome.volumes = check_volumes(&mut walk, &superblock, false, false).summaries,
            Scope::Everything => outcome = check_everything(&mut walk, &superblock),
        }
    }
    let nodes = walk.nodes_read();
    let verdict = walk.findings.verdict();
    let other_sum = outcome.partials.other_sum.filter(|_| walk.findings.damages() == 1);
    let references = outcome.metadata_without_maps.map(|metadata_without_maps| build::References {
        data: walk.data_counts,
        metadata: walk.metadata_counts,
        metadata_without_maps,
    });
    let (findings, findings_omitted) = walk.findings.into_parts();
    let report = Report {
        verdict,
        superblock: summary_of(&superblock),
        volumes: outcome.volumes,
        data: outcome.data,
        metadata: outcome.metadata,
        partial_blocks: outcome.partials.blocks,
        journal: superblock.journal().is_some() && !options.metadata_snapshot,
        nodes,
        findings,
        findings_omitted,
    };
    Ok(Looked { report, superblock: stored, references, other_sum })
}

#[derive(Default)]
struct Outcome {
    volumes: Vec<VolumeSummary>,
    data: Space,
    metadata: Space,
    partials: partials::Counted,
    /// References but for those of the space maps, if nothing was wrong so far.
    metadata_without_maps: Option<Counts>,
}

fn check_everything(walk: &mut Walk<'_>, superblock: &Superblock) -> Outcome {
    let live = check_volumes(walk, superblock, false, true);
    let partials = Partials::count(walk, superblock);
    exclusive::check_exclusive(walk, &live.roots, &live.snapshotted_times());
    if superblock.held_root != 0 {
        check_held_root(walk, MetaBlock(superblock.held_root), Scope::Everything);
    }
    let partials = partials.map(|partials| partials.check(walk, superblock, &live.roots)).unwrap_or_default();
    touches::attribute(walk, &live.roots);
    // A size that cannot be is no reason to write a map of that size.
    space_map::require_possible_size(walk, superblock.metadata_space_map.total_blocks.get());
    let data_blocks = superblock.data_space_map.total_blocks.get();
    let are_data_counted = data_blocks == 0 || walk.data_counts.has(data_blocks - 1);
    let is_sound = walk.findings.verdict() == Verdict::Clean && are_data_counted;
    let metadata_without_maps = is_sound.then(|| walk.metadata_counts.clone());

    let data = SpaceMap::read(walk, MapKind::Data, &superblock.data_space_map);
    let metadata = SpaceMap::read(walk, MapKind::Metadata, &superblock.metadata_space_map);
    // Only now is every reference to a metadata block counted: those of both maps' own blocks came last.
    let data = data.compare(walk);
    let metadata = metadata.compare(walk);
    Outcome { volumes: live.summaries, data, metadata, partials, metadata_without_maps }
}

/// What a mend in place did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mended {
    /// Both space maps were made anew.
    pub space_maps: bool,
    /// The flag by which the pool asks for a check was taken away.
    pub needs_check: bool,
    /// The journal that the superblock named is forgotten.
    pub journal: bool,
    /// The partial blocks are those that were found.
    pub partial_blocks: bool,
}

/// What a mend in place may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MendOptions {
    /// Make both space maps anew when they, and nothing else, are wrong: leaks, or damage.
    pub space_maps: bool,
    /// Take the flag away by which the pool asks for a check, when nothing is damaged.
    pub needs_check: bool,
    /// Go on without the changes in a journal that is lost.
    pub journal: bool,
    /// When nothing else is wrong, take the partial blocks that are there for those of the last commit.
    pub partial_blocks: bool,
}

/// Checks, and mends in place what can be mended without a loss. New space maps go to free blocks and count once the
/// superblock is written, which is one write: a power cut leaves the old state or the new one. The report is that of the
/// state left behind. `Invalid` for a mend of anything but the live state, `Unsupported` for metadata that nobody may write who
/// does not know all their features; then nothing was written.
pub fn check_and_mend(
    disk: &dyn Disk,
    options: &CheckOptions,
    mend: MendOptions,
) -> Result<(Report, Mended)> {
    let is_live =
        !options.metadata_snapshot && options.mapping_root.is_none() && options.details_root.is_none();
    if !is_live {
        return Err(Error::new(ErrorKind::Invalid, "only the live state is mended, from the roots it has"));
    }
    let mut looked = look(disk, options)?;
    if looked.superblock.compat_ro_flags != 0 {
        let message = format!(
            "{}: unknown features {:#x} that forbid writing: nothing was mended",
            disk.name(),
            looked.superblock.compat_ro_flags
        );
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint("the metadata was written by a newer program; mend it with that one"));
    }
    let mut mended = Mended::default();
    let taken = looked.superblock.partial_tree().zip(looked.other_sum).filter(|_| mend.partial_blocks);
    if let Some((PartialTree { root, .. }, sum)) = taken {
        looked.superblock.set_partial_tree(Some(PartialTree { root, sum }));
        build::replace_superblock(disk, &looked.superblock)?;
        mended.partial_blocks = true;
        looked = look(disk, options)?;
    }
    if let (true, Some(references)) = (mend.space_maps && !looked.report.is_clean(), &looked.references) {
        build::replace_space_maps(disk, &mut looked.superblock, references)?;
        mended.space_maps = true;
        looked = look(disk, options)?;
    }
    if mend.needs_check && looked.superblock.needs_check() && looked.report.verdict != Verdict::Damage {
        looked.superblock.flags &= !FLAG_NEEDS_CHECK;
        build::replace_superblock(disk, &looked.superblock)?;
        mended.needs_check = true;
        looked.report.superblock.needs_check = false;
    }
    if mend.journal && looked.superblock.journal().is_some() && looked.report.verdict != Verdict::Damage {
        looked.superblock.set_journal(None);
        build::replace_superblock(disk, &looked.superblock)?;
        mended.journal = true;
        looked = look(disk, options)?;
    }
    Ok((looked.report, mended))
}

/// The metadata snapshot: a copy of an earlier superblock, with trees of its own that share nodes with the live ones.
fn check_held_root(walk: &mut Walk<'_>, number: MetaBlock, scope: Scope) -> Option<Volumes> {
    if !walk.reference(number, Place::HeldRoot) {
        return None;
    }
    let block = walk.read(number, Place::HeldRoot, BlockKind::Superblock)?;
    match Superblock::read(&block, number) {
        Ok(held) => {
            if held.held_root != 0 {
                let message = format!("it names a further metadata snapshot, in block {}", held.held_root);
                walk.damage(number, Place::HeldRoot, message);
            }
            if held.journal().is_some() {
                let message = "it says that a journal holds changes on top of it, which is never so";
                walk.damage(number, Place::HeldRoot, message);
            }
            match scope {
                Scope::Superblock => None,
                Scope::Volumes => Some(check_volumes(walk, &held, true, false)),
                Scope::Everything => Some(check_volumes(walk, &held, true, true)),
            }
        }
        Err(error) => {
            walk.unreadable(number, Place::HeldRoot, error.message());
            None
        }
    }
}

fn summary_of(superblock: &Superblock) -> SuperblockSummary {
    let metadata = &superblock.metadata_space_map;
    SuperblockSummary {
        transaction_id: superblock.transaction_id.0,
        time: u64::from(superblock.time.0),
        block_size_bytes: u64::from(superblock.data_block_sectors) * SECTOR_BYTES,
        needs_check: superblock.needs_check(),
        metadata_snapshot: (superblock.held_root != 0).then_some(superblock.held_root),
        metadata_free_blocks: metadata.total_blocks.get().saturating_sub(metadata.allocated_blocks.get()),
    }
}
