//! A pool's mappings out of damaged metadata: what can still be read, and nothing else.
//!
//! With a sound superblock its roots are taken; without one, or where a root is gone, every block is looked at and the trees
//! found are ranked ([`roots`]). What is planned here is a dump like any other, which `build` makes a new device of: counts
//! are never believed. What must hold: a mapping that comes out was in the tree it comes from, under the same volume and
//! virtual block; what is left out is told of, by volume and range.

mod census;
mod roots;
mod sane;

pub(in crate::check) use roots::Candidate;
pub(in crate::check) use sane::SaneSink;

use super::build::Overrides;
use super::dump::{Plan, VolumePlan, pool_record};
use super::forest::LeafPlace;
use super::open;
use super::source::{Source, without_journal};
use super::stream::{PoolRecord, VolumeRecord};
use super::tools::explain::words_for;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{SUPERBLOCK_VERSION, Superblock};
use crate::units::{DataBlock, MetaBlock, SnapTime, VolumeId};
use census::{Census, Sum};
use roots::{Reader, Volumes};
use serde::Serialize;

/// Where to look instead of where the superblock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub(super) mapping: MetaBlock,
    pub(super) details: Option<MetaBlock>,
}

/// Part of a volume that is lost, or of the trees of volumes (`volume` is `None`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Loss {
    pub(super) volume: Option<u64>,
    pub(super) begin: u64,
    /// One past the last, if there is a bound.
    pub(super) end: Option<u64>,
    pub(super) why: String,
}

/// What a repair will do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Salvage {
    pub(super) plan: Plan,
    /// Why the superblock, or its roots, were not taken; `None` when they were.
    pub(super) superblock_fault: Option<String>,
    pub(super) root: Root,
    /// All pairs of trees, the best first, when they had to be searched for.
    pub(super) candidates: Vec<Candidate>,
    pub(super) losses: Vec<Loss>,
    /// Metadata blocks that the volumes' trees take at least.
    pub(super) fewest_blocks: u64,
    /// What was made up, in words.
    pub(super) assumptions: Vec<String>,
}

/// Finds out what can be read of the metadata. `root` is used whatever the superblock says; `search` ranks all candidates
/// even when the superblock is sound.
pub(super) fn salvage(
    source: Source<'_>,
    overrides: &Overrides,
    root: Option<Root>,
    search: bool,
) -> Result<Salvage> {
    let (superblock, number_fault) = superblock_to_believe(source);
    if let Err(error) = &superblock
        && error.kind() == ErrorKind::Unsupported
    {
        return Err(error.clone());
    }
    let by_superblock =
        superblock.as_ref().ok().map(|superblock| superblock.data_space_map.total_blocks.get());
    // What the superblock's device has not may still be on a larger one, if somebody says so. A smaller one is refused below.
    let said = overrides.data_blocks.unwrap_or(0);
    let data_limit =
        by_superblock.filter(|blocks| *blocks > 0).map_or(DataBlock::LIMIT, |blocks| blocks.max(said));
    let census = Census::take(source, data_limit);
    let copies = census.superblocks.clone();
    let mut reader = Reader::new(source, census, data_limit);

    if let Some(root) = root {
        require_usable(source, &mut reader, root)?;
    }
    let (by_superblock, fault) = usable_root(&mut reader, &superblock);
    let fault = fault.or(number_fault);
    let must_search = search || (root.is_none() && by_superblock.is_none());
    let mut candidates = if must_search { reader.candidates()? } else { Vec::new() };
    // What the superblock names is what was in use.
    let is_named = |candidate: &Candidate| {
        by_superblock.is_some_and(|root| {
            candidate.mapping_root == root.mapping.0
                && candidate.details_root == root.details.map(|details| details.0)
        })
    };
    candidates.sort_by_key(|candidate| !is_named(candidate));
    let best = candidates.first().map(|candidate| Root {
        mapping: MetaBlock(candidate.mapping_root),
        details: candidate.details_root.map(MetaBlock),
    });
    let root = root.or(by_superblock).or(best).ok_or_else(|| {
        let why = fault.clone().unwrap_or_default();
        let beginning = source.raw(MetaBlock::SUPERBLOCK).ok();
        let looks_like = beginning.and_then(|block| open::looks_like(&block.0));
        Error::new(ErrorKind::Corrupt, format!("{why}, and no tree of volumes was found anywhere")).hint(
            looks_like
                .unwrap_or("is this the metadata, in full? `uthin-fsck explain` says what single blocks are"),
        )
    })?;
    let mut assumptions = Vec::new();
    if superblock.as_ref().is_ok_and(|superblock| superblock.partial_tree().is_some()) {
        let words = "partial blocks are whole ones: where nothing was written to them, they show what was in their place before";
        assumptions.push(words.to_owned());
    }
    if superblock.is_ok() && by_superblock.is_none() {
        let words = "the tree of volumes is an older one: what was written since is lost, and data blocks freed since may \
                     be another volume's by now";
        assumptions.push(words.to_owned());
    }
    let volumes = reader.volumes(root.mapping, root.details)?;
    let (plan, losses) = {
        let mut salvage =
            Salvaging { reader: &mut reader, losses: Vec::new(), assumptions: &mut assumptions };
        let trees = salvage.volumes(&volumes)?;
        let pool = salvage.pool(superblock.as_ref().ok(), &copies, overrides, &trees)?;
        (salvage.plan(pool, trees), salvage.losses)
    };
    let roots: Vec<_> =
        plan.volumes.iter().map(|volume| (volume.root, volume.record.mapped_blocks)).collect();
    let fewest_blocks = reader.fewest_blocks(&roots)?;
    Ok(Salvage { plan, superblock_fault: fault, root, candidates, losses, fewest_blocks, assumptions })
}

/// The superblock, or one that is sound but for the block number that it carries, with words about that.
fn superblock_to_believe(source: Source<'_>) -> (Result<Superblock>, Option<String>) {
    let superblock = source.superblock(MetaBlock::SUPERBLOCK);
    let Err(error) = &superblock else { return (superblock, None) };
    if error.kind() == ErrorKind::Unsupported {
        return (superblock, None);
    }
    let carried = source.raw(MetaBlock::SUPERBLOCK).and_then(|block| {
        let number = MetaBlock(block.stored_number());
        Superblock::read(&block, number)
    });
    match carried {
        Ok(carried) => {
            let fault = error.message().to_owned();
            (source.of_whole_blocks(carried).and_then(without_journal), Some(fault))
        }
        Err(_) => (superblock, None),
    }
}

/// Refuses roots that somebody gives and that are none: what would be read from there, nobody has ever written.
fn require_usable(source: Source<'_>, reader: &mut Reader<'_>, root: Root) -> Result<()> {
    let refused = |number: MetaBlock, of: &str| {
        let is = source.raw(number).map(|block| words_for(number, &block));
        let is = is.unwrap_or_else(|error| {
            error.message().trim_start_matches(&format!("metadata block {number}: ")).to_owned()
        });
        let message = format!("--root: no tree of {of} begins in block {number}: {is}");
        Err(Error::new(ErrorKind::Invalid, message)
            .hint("without --root, `uthin-fsck repair --dry-run` shows the candidates"))
    };
    if !reader.can_be_volumes(root.mapping) {
        return refused(root.mapping, "volumes");
    }
    match root.details {
        Some(details) if !reader.is_details(details) => refused(details, "details"),
        Some(_) | None => Ok(()),
    }
}

/// The superblock's roots, if both are what they should be; otherwise why not.
fn usable_root(reader: &mut Reader<'_>, superblock: &Result<Superblock>) -> (Option<Root>, Option<String>) {
    let superblock = match superblock {
        Ok(superblock) => superblock,
        Err(error) => return (None, Some(error.message().to_owned())),
    };
    let (mapping, details) = (superblock.mapping_root, superblock.details_root);
    if !reader.can_be_volumes(mapping) {
        return (None, Some(format!("the superblock's root of the volumes, block {mapping}, is none")));
    }
    if !reader.is_details(details) {
        let fault = format!("the superblock's root of the details, block {details}, is none");
        return (Some(Root { mapping, details: None }), Some(fault));
    }
    (Some(Root { mapping, details: Some(details) }), None)
}

/// A volume, as far as it can be read.
struct Readable {
    record: Option<VolumeRecord>,
    id: VolumeId,
    root: MetaBlock,
    sum: Sum,
}

struct Salvaging<'a, 'b> {
    reader: &'a mut Reader<'b>,
    losses: Vec<Loss>,
    assumptions: &'a mut Vec<String>,
}

impl Salvaging<'_, '_> {
    fn lose(&mut self, volume: Option<u64>, place: &LeafPlace, why: &str) {
        let end = (place.keys.end < u64::MAX).then_some(place.keys.end);
        self.losses.push(Loss { volume, begin: place.keys.start, end, why: why.to_owned() });
    }

    fn volumes(&mut self, found: &Volumes) -> Result<Vec<Readable>> {
        for (place, why) in &found.lost {
            self.lose(None, place, why);
        }
        for id in found.details.keys().filter(|id| !found.roots.contains_key(id)) {
            let whole = LeafPlace { number: MetaBlock(0), keys: 0..u64::MAX };
            self.lose(Some(*id), &whole, "its details are there, its tree of mappings is not");
        }
        let mut readable = Vec::new();
        for (number, root) in &found.roots {
            let Some(id) = VolumeId::new(*number) else { continue };
            let tree = self.reader.tree(*root)?.clone();
            for (place, why) in &tree.lost {
                self.lose(Some(*number), place, why);
            }
            let record = found.details.get(number).map(|details| VolumeRecord::of(id, details));
            readable.push(Readable { record, id, root: *root, sum: tree.sum });
        }
        Ok(readable)
    }

    /// What the superblock says, or would have to say.
    fn pool(
        &mut self,
        superblock: Option<&Superblock>,
        copies: &[(MetaBlock, Superblock)],
        overrides: &Overrides,
        volumes: &[Readable],
    ) -> Result<PoolRecord> {
        let mut pool = match superblock {
            Some(superblock) => PoolRecord { flags: 0, ..pool_record(superblock) },
            None => self.pool_without_superblock(copies, overrides, volumes)?,
        };
        overrides.apply(&mut pool)?;
        let data_end = volumes.iter().map(|volume| volume.sum.data_end).max().unwrap_or(0);
        if let Some(said) = overrides.data_blocks.filter(|said| *said < data_end) {
            let message = format!(
                "a data device of {said} blocks is too small: {data_end} at least are needed for what is mapped"
            );
            return Err(Error::new(ErrorKind::Invalid, message)
                .hint(format!("--nr-data-blocks {data_end}, or more, loses nothing")));
        }
        if pool.data_blocks < data_end {
            pool.data_blocks = data_end;
            self.assumptions.push(format!(
                "the data device has {data_end} blocks, as many as are mapped; --nr-data-blocks says how many it has"
            ));
        }
        Ok(pool)
    }

    fn pool_without_superblock(
        &mut self,
        copies: &[(MetaBlock, Superblock)],
        overrides: &Overrides,
        volumes: &[Readable],
    ) -> Result<PoolRecord> {
        let records = || volumes.iter().filter_map(|volume| volume.record.as_ref());
        let times = records().flat_map(|record| [record.creation_time, record.snapshotted_time]);
        let mapped = volumes.iter().map(|volume| volume.sum.newest.0);
        let copy = copies.iter().max_by_key(|(_, copy)| copy.transaction_id);
        let latest = times.chain(mapped).chain(copy.map(|(_, copy)| copy.time.0)).max().unwrap_or(0);
        // Without details nobody knows what is shared: then everything is, to be safe.
        let is_all_known = volumes.iter().all(|volume| volume.record.is_some());
        let time = SnapTime(if is_all_known { latest } else { latest + 1 }.min(SnapTime::MAX.0));
        let transactions = records().map(|record| record.transaction_id);
        let transaction_id = transactions.max().map_or(0, |latest| latest.saturating_add(1));
        if overrides.transaction_id.is_none() {
            self.assumptions
                .push(format!("the transaction id is {transaction_id}; --transaction-id says what it is"));
        }
        let sectors = match (overrides.data_block_sectors, copy) {
            (Some(_), _) => 0,
            (None, Some((number, copy))) => {
                let words = "the size of a data block is that in the metadata snapshot";
                self.assumptions
                    .push(format!("{words}, block {number}: {} sectors", copy.data_block_sectors));
                copy.data_block_sectors
            }
            (None, None) => {
                let message = "the superblock is gone, and with it the size of a data block";
                return Err(Error::new(ErrorKind::Corrupt, message).hint(
                    "give --data-block-size SECTORS: the third number of the pool's table; `lvs -o chunk_size` shows it too",
                ));
            }
        };
        Ok(PoolRecord {
            uuid: String::new(),
            time,
            transaction_id,
            flags: 0,
            version: SUPERBLOCK_VERSION,
            data_block_sectors: sectors,
            data_blocks: 0,
        })
    }

    fn plan(&mut self, pool: PoolRecord, volumes: Vec<Readable>) -> Plan {
        let time = pool.time.0;
        let plan_of = |volume: Readable| {
            let mut record = volume.record.unwrap_or_else(|| {
                self.assumptions
                    .push(format!("volume {} has no details: all its blocks count as shared", volume.id));
                VolumeRecord {
                    id: volume.id,
                    mapped_blocks: 0,
                    transaction_id: 0,
                    creation_time: time,
                    snapshotted_time: time,
                }
            });
            record.mapped_blocks = volume.sum.mapped_blocks;
            record.creation_time = record.creation_time.min(time);
            record.snapshotted_time = record.snapshotted_time.min(time);
            VolumePlan { record, root: volume.root }
        };
        let volumes = volumes.into_iter().map(plan_of).collect();
        Plan { pool, volumes }
    }
}
