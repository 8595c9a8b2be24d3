//! A pool's mappings as a stream: what a dump writes, what a restore and a repair build a new device from.
//!
//! The order of calls: `begin_pool`, every shared part (`begin_shared` … `end_shared`), every volume (`begin_volume` …
//! `end_volume`), `end_pool`. Inside a part or a volume come runs of mappings and references to shared parts, by
//! ascending virtual blocks.

use crate::error::Result;
use crate::format::{DetailsRecord, MappingRecord};
use crate::units::{DataBlock, Mapping, SnapTime, VirtualBlock, VolumeId};
use zerocopy::little_endian::{U32, U64};

/// What a dump says of the pool as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PoolRecord {
    /// Words without a meaning, kept between dump and restore.
    pub(super) uuid: String,
    pub(super) time: SnapTime,
    pub(super) transaction_id: u64,
    pub(super) flags: u32,
    pub(super) version: u32,
    pub(super) data_block_sectors: u32,
    pub(super) data_blocks: u64,
}

/// What a dump says of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VolumeRecord {
    pub(super) id: VolumeId,
    pub(super) mapped_blocks: u64,
    pub(super) transaction_id: u64,
    pub(super) creation_time: u32,
    pub(super) snapshotted_time: u32,
}

impl VolumeRecord {
    pub(super) fn of(id: VolumeId, details: &DetailsRecord) -> Self {
        VolumeRecord {
            id,
            mapped_blocks: details.mapped_blocks.get(),
            transaction_id: details.transaction_id.get(),
            creation_time: details.creation_time.get(),
            snapshotted_time: details.snapshotted_time.get(),
        }
    }

    pub(super) fn details(&self) -> DetailsRecord {
        DetailsRecord {
            mapped_blocks: U64::new(self.mapped_blocks),
            transaction_id: U64::new(self.transaction_id),
            creation_time: U32::new(self.creation_time),
            snapshotted_time: U32::new(self.snapshotted_time),
        }
    }
}

/// Neighbouring virtual blocks that are mapped to neighbouring data blocks, all at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) begin: u64,
    pub(super) data_begin: u64,
    pub(super) length: u64,
    pub(super) time: u32,
}

impl Run {
    /// The `index`-th mapping, which must be inside.
    pub(super) fn mapping(&self, index: u64) -> (VirtualBlock, Mapping) {
        let mapping = Mapping { block: DataBlock(self.data_begin + index), time: SnapTime(self.time) };
        (VirtualBlock(self.begin + index), mapping)
    }
}

/// Takes a pool's stream.
pub(super) trait Sink {
    fn begin_pool(&mut self, pool: &PoolRecord) -> Result<()>;
    fn begin_shared(&mut self, name: u64) -> Result<()>;
    fn end_shared(&mut self) -> Result<()>;
    fn begin_volume(&mut self, volume: &VolumeRecord) -> Result<()>;
    fn end_volume(&mut self) -> Result<()>;
    fn run(&mut self, run: &Run) -> Result<()>;
    fn shared(&mut self, name: u64) -> Result<()>;
    fn end_pool(&mut self) -> Result<()>;
}

/// Joins single mappings to runs.
#[derive(Default)]
pub(super) struct Joiner {
    run: Option<Run>,
}

impl Joiner {
    /// Takes a mapping; answers the run before it, if this one does not continue it.
    #[inline]
    pub(super) fn push(&mut self, key: u64, record: MappingRecord) -> Option<Run> {
        let mapping = record.mapping();
        let (block, time) = (mapping.block.0, mapping.time.0);
        match &mut self.run {
            Some(run)
                if run.begin.wrapping_add(run.length) == key
                    && run.data_begin + run.length == block
                    && run.time == time =>
            {
                run.length += 1;
                None
            }
            _ => self.run.replace(Run { begin: key, data_begin: block, length: 1, time }),
        }
    }

    /// The last run.
    pub(super) fn finish(&mut self) -> Option<Run> {
        self.run.take()
    }
}
