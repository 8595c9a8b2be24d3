//! A new metadata device from a pool's stream: nodes packed full, all counts made anew.
//!
//! What must hold: the result passes a check whatever the stream was, or there is an error and no superblock. A volume's
//! mapped blocks are counted, not believed. Where several mappings have a data block of which one counts as its volume's own, all
//! volumes count as snapshotted just now: then whoever writes copies first, and no write changes what another reads.

mod leaves;
mod output;
mod space;
mod tree;

use super::counts::{Counts, PAGE_ENTRIES};
use super::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{MappingRecord, RootRecord, SUPERBLOCK_VERSION, Superblock};
use crate::units::{BlockSize, MetaBlock, SnapTime, TransactionId, VolumeId};
use leaves::{Ground, Leaf, Leaves, Own, entries_of};
use output::Output;
use std::collections::{BTreeMap, HashMap};
use tree::{write_above, write_tree};

/// Blocks of any pool but for mappings and bitmaps: superblock, two roots, index root, two roots of large counts, index.
const FIXED_BLOCKS: u64 = 7;

/// What a stream says that is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Overrides {
    pub(super) transaction_id: Option<u64>,
    pub(super) data_block_sectors: Option<u64>,
    pub(super) data_blocks: Option<u64>,
}

impl Overrides {
    pub(super) fn apply(&self, pool: &mut PoolRecord) -> Result<()> {
        if let Some(sectors) = self.data_block_sectors {
            let size = BlockSize::from_sectors(sectors).ok_or_else(|| impossible_block_size(sectors))?;
            pool.data_block_sectors = size.sectors();
        }
        pool.transaction_id = self.transaction_id.unwrap_or(pool.transaction_id);
        pool.data_blocks = self.data_blocks.unwrap_or(pool.data_blocks);
        Ok(())
    }
}

fn impossible_block_size(sectors: u64) -> Error {
    let message = format!(
        "a data block size of {sectors} sectors, where it is a multiple of {} up to {}",
        BlockSize::MIN.sectors(),
        BlockSize::MAX.sectors()
    );
    Error::new(ErrorKind::Invalid, message)
}

/// What was built.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Built {
    pub(super) volumes: u64,
    pub(super) mapped_blocks: u64,
    /// A data block that one of several mappings had as its volume's own: therefore all volumes are stamped as snapshotted.
    pub(super) disputed: Option<u64>,
    /// Volumes whose stream promised another number of mappings than came.
    pub(super) miscounted: Vec<(u64, u64, u64)>,
    pub(super) metadata_blocks_used: u64,
}

/// Builds a device.
pub(super) struct Builder<'a> {
    output: Output<'a>,
    overrides: Overrides,
    /// Blocks of volumes' trees that are known to come.
    expected_blocks: u64,
    pool: Option<PoolRecord>,
    data: Counts,
    own: Own,
    parts: HashMap<u64, Vec<Leaf>>,
    /// What is being taken in: the name of a part or a volume, and its leaves.
    open: Option<(Open, Leaves)>,
    volumes: BTreeMap<VolumeId, (VolumeRecord, MetaBlock)>,
    built: Built,
}

#[derive(Clone, Copy)]
enum Open {
    Part(u64),
    Volume(VolumeRecord),
}

impl Open {
    /// Where its leaves go, and what is counted on the way.
    fn ground<'a, 'b>(
        &self,
        pool: Option<&PoolRecord>,
        output: &'a mut Output<'b>,
        data: &'a mut Counts,
        own: &'a mut Own,
    ) -> Ground<'a, 'b> {
        let own_since = match self {
            Open::Part(_) => None,
            Open::Volume(record) => Some(SnapTime(record.snapshotted_time)),
        };
        Ground { output, data, data_blocks: pool.map_or(0, |pool| pool.data_blocks), own, own_since }
    }
}

impl<'a> Builder<'a> {
    pub(super) fn new(disk: &'a dyn Disk, overrides: Overrides) -> Self {
        Builder {
            output: Output::new(disk),
            overrides,
            expected_blocks: 0,
            pool: None,
            data: Counts::new(0),
            own: Own::default(),
            parts: HashMap::new(),
            open: None,
            volumes: BTreeMap::new(),
            built: Built::default(),
        }
    }

    /// Says how many blocks the volumes' trees will take at least, so that an output that is too small is refused at once, with what
    /// it lacks.
    pub(super) fn expect_blocks(&mut self, blocks: u64) {
        self.expected_blocks = blocks;
    }

    /// What was built, once the stream has ended.
    pub(super) fn into_built(self) -> Built {
        self.built
    }

    fn with_open(
        &mut self,
        take: impl FnOnce(&mut Leaves, &mut Ground<'_, 'a>, &HashMap<u64, Vec<Leaf>>) -> Result<()>,
    ) -> Result<()> {
        let Some((open, leaves)) = &mut self.open else {
            return Err(misplaced("mappings outside of a volume"));
        };
        let (output, data, own) = (&mut self.output, &mut self.data, &mut self.own);
        let mut ground = open.ground(self.pool.as_ref(), output, data, own);
        take(leaves, &mut ground, &self.parts)
    }

    /// Ends what is open.
    fn close(&mut self) -> Result<(Open, Vec<Leaf>, u64)> {
        let Some((open, leaves)) = self.open.take() else {
            return Err(misplaced("an end without a beginning"));
        };
        let (output, data, own) = (&mut self.output, &mut self.data, &mut self.own);
        let mut ground = open.ground(self.pool.as_ref(), output, data, own);
        let (leaves, mapped_blocks) = leaves.finish(&mut ground)?;
        Ok((open, leaves, mapped_blocks))
    }

    fn begin(&mut self, open: Open) -> Result<()> {
        if self.pool.is_none() || self.open.is_some() {
            return Err(misplaced("a volume or shared part inside another"));
        }
        self.open = Some((open, Leaves::default()));
        Ok(())
    }

    /// Leaves of parts that no volume took as they were: their place is free again, their mappings refer to nothing.
    fn forget_unused_parts(&mut self) -> Result<()> {
        for leaf in self.parts.values().flatten() {
            if self.output.counts.get(leaf.number.0) == 0 {
                for (_, record) in entries_of(&self.output, leaf.number)? {
                    self.data.subtract(record.mapping().block.0);
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, pool: &PoolRecord) -> Result<()> {
        self.forget_unused_parts()?;
        let size = BlockSize::from_sectors(u64::from(pool.data_block_sectors))
            .ok_or_else(|| impossible_block_size(u64::from(pool.data_block_sectors)))?;
        let mut superblock = Superblock::new(size, self.output.blocks());
        superblock.time = pool.time;
        superblock.transaction_id = TransactionId(pool.transaction_id);
        self.output.reference(MetaBlock::SUPERBLOCK);

        let mut volumes = std::mem::take(&mut self.volumes);
        if let Some(block) = self.own.disputed(&self.data, &self.output.counts) {
            superblock.time = SnapTime(pool.time.0 + 1).min(SnapTime::MAX);
            for (record, _) in volumes.values_mut() {
                record.snapshotted_time = superblock.time.0;
            }
            self.built.disputed = Some(block.0);
        }
        let roots: Vec<_> =
            volumes.iter().map(|(id, (_, root))| (id.get(), RootRecord::new(*root))).collect();
        let details: Vec<_> = volumes.iter().map(|(id, (record, _))| (id.get(), record.details())).collect();
        superblock.mapping_root = write_tree(&mut self.output, &roots)?;
        superblock.details_root = write_tree(&mut self.output, &details)?;
        self.output.reference(superblock.mapping_root);
        self.output.reference(superblock.details_root);
        superblock.data_space_map = space::write_data_map(&mut self.output, &self.data, pool.data_blocks)?;
        superblock.metadata_space_map = space::write_metadata_map(&mut self.output)?;
        self.built.metadata_blocks_used = superblock.metadata_space_map.allocated_blocks.get();
        self.output.finish(&superblock)
    }
}

fn misplaced(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

impl Sink for Builder<'_> {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()> {
        let mut pool = pool.clone();
        self.overrides.apply(&mut pool)?;
        if pool.version != SUPERBLOCK_VERSION {
            let message = format!("metadata version {}, expected {SUPERBLOCK_VERSION}", pool.version);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if BlockSize::from_sectors(u64::from(pool.data_block_sectors)).is_none() {
            return Err(impossible_block_size(u64::from(pool.data_block_sectors))
                .hint("--data-block-size says what it really is, in sectors"));
        }
        if pool.time > SnapTime::MAX {
            return Err(misplaced("a pool time above 16777215"));
        }
        let bitmaps = space::bitmaps_for(pool.data_blocks) + space::bitmaps_for(self.output.blocks());
        let others = bitmaps.saturating_add(FIXED_BLOCKS - 1);
        self.output.require_room(others.saturating_add(self.expected_blocks))?;
        // The room for bitmaps bounds this.
        debug_assert!(pool.data_blocks <= self.output.blocks() * PAGE_ENTRIES);
        self.data = Counts::new(pool.data_blocks);
        self.own = Own::new(pool.data_blocks);
        self.pool = Some(pool);
        Ok(())
    }

    fn begin_shared(&mut self, name: u64) -> Result<()> {
        if self.parts.contains_key(&name) {
            return Err(misplaced("a second shared part of the same name"));
        }
        self.begin(Open::Part(name))
    }

    fn end_shared(&mut self) -> Result<()> {
        let (open, mut leaves, _) = self.close()?;
        leaves.iter_mut().for_each(|leaf| leaf.is_shared = true);
        if let Open::Part(name) = open {
            self.parts.insert(name, leaves);
        }
        Ok(())
    }

    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()> {
        if self.volumes.contains_key(&volume.id) {
            return Err(misplaced("a second volume of the same number"));
        }
        let now = self.pool.as_ref().map_or(SnapTime::MAX, |pool| pool.time);
        if SnapTime(volume.creation_time.max(volume.snapshotted_time)) > now {
            return Err(misplaced("a volume that was made or snapshotted at a time after the pool's own"));
        }
        self.begin(Open::Volume(*volume))
    }

    fn end_volume(&mut self) -> Result<()> {
        let (open, leaves, mapped_blocks) = self.close()?;
        let Open::Volume(mut record) = open else { return Err(misplaced("an end without a beginning")) };
        for leaf in &leaves {
            self.own.note_leaf(&self.output, leaf, SnapTime(record.snapshotted_time))?;
        }
        if record.mapped_blocks != mapped_blocks {
            self.built.miscounted.push((record.id.get(), record.mapped_blocks, mapped_blocks));
            record.mapped_blocks = mapped_blocks;
        }
        let root = if leaves.is_empty() {
            write_tree::<MappingRecord>(&mut self.output, &[])?
        } else {
            let level = leaves.iter().map(|leaf| (leaf.first_key, leaf.number)).collect();
            write_above(&mut self.output, level)?
        };
        self.output.reference(root);
        self.volumes.insert(record.id, (record, root));
        self.built.volumes += 1;
        self.built.mapped_blocks += mapped_blocks;
        Ok(())
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let time = self.pool.as_ref().map_or(0, |pool| pool.time.0);
        if run.time > time {
            return Err(misplaced("a mapping with a time after the pool's own"));
        }
        self.with_open(|leaves, ground, _| leaves.push(ground, run))
    }

    fn shared(&mut self, name: u64) -> Result<()> {
        self.with_open(|leaves, ground, parts| {
            let part = parts
                .get(&name)
                .ok_or_else(|| misplaced("a reference to a shared part that is not there"))?;
            leaves.push_shared(ground, part)
        })
    }

    fn end_pool(&mut self) -> Result<()> {
        match (self.pool.take(), &self.open) {
            (Some(pool), None) => self.finish(&pool),
            (None, _) | (_, Some(_)) => Err(misplaced("an end of the pool in the middle of it")),
        }
    }
}

/// Writes both space maps of a pool anew, from references counted, and the superblock that names them. Everything else
/// stays as it is, and so does the pool until the superblock is written.
pub(super) fn replace_space_maps(
    disk: &dyn Disk,
    superblock: &mut Superblock,
    references: &References,
) -> Result<()> {
    let blocks = superblock.metadata_space_map.total_blocks.get();
    let data_blocks = superblock.data_space_map.total_blocks.get();
    // The counts are of as many blocks as there are, the superblock's number is whatever it says.
    let is_of_size =
        |counts: &Counts, blocks: u64| !counts.has(blocks) && (blocks == 0 || counts.has(blocks - 1));
    if !is_of_size(&references.metadata, blocks) || !is_of_size(&references.data, data_blocks) {
        let message = format!("{}: the superblock's size of a space map cannot be", disk.name());
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let (kept, in_use) = (references.metadata_without_maps.clone(), references.metadata.clone());
    let mut output = Output::beside(disk, blocks, kept, in_use);
    // Two roots of large counts, the root of the data index and the metadata index. Asked for before anything is written.
    output.require_room(space::bitmaps_for(data_blocks) + space::bitmaps_for(blocks) + 4)?;
    superblock.data_space_map = space::write_data_map(&mut output, &references.data, data_blocks)?;
    superblock.metadata_space_map = space::write_metadata_map(&mut output)?;
    output.finish(superblock)
}

/// What a check counted.
pub(super) struct References {
    pub(super) data: Counts,
    /// All references to metadata blocks.
    pub(super) metadata: Counts,
    /// Those that do not come from the space maps.
    pub(super) metadata_without_maps: Counts,
}

/// Writes the superblock alone.
pub(super) fn replace_superblock(disk: &dyn Disk, superblock: &Superblock) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(format_args!("{}: writing", disk.name()), &error);
    disk.write_at(0, &superblock.encode(MetaBlock::SUPERBLOCK).0).map_err(failed)?;
    disk.flush().map_err(failed)
}
