//! Worlds with a volume that is large: what is done with it takes several steps, and commits and power cuts come between.

use super::disk::SimDisk;
use super::model::{Model, Stamp};
use super::world::{BLOCK_SECTORS, SECTOR};
use crate::disk::{Disk, flush_data};
use crate::error::{Error, Result};
use crate::metadata::Metadata;
use crate::units::{VirtualBlock, VolumeId};

/// Puts a volume into a fresh pool, every block of it mapped: as many leaves as these fill, so that its deletion takes as many steps.
/// Each of its blocks has a stamp of its own, from `first_stamp` on.
pub(super) fn add_large_volume(
    metadata: &mut Metadata<SimDisk>,
    data: &SimDisk,
    model: &mut Model,
    id: VolumeId,
    stamps: std::ops::Range<Stamp>,
) -> Result<()> {
    let io = |error: std::io::Error| Error::io("the data disk", &error);
    metadata.create_volume(id)?;
    let block_bytes = BLOCK_SECTORS * SECTOR;
    for (block, stamp) in stamps.clone().enumerate() {
        let target = metadata.reserve_block(None)?;
        let bytes = stamp.to_le_bytes().repeat(block_bytes as usize / 8);
        data.write_at(target.0 * block_bytes, &bytes).map_err(io)?;
        metadata.map(id, VirtualBlock(block as u64), target);
    }
    let flushed = flush_data(data).map_err(io)?;
    metadata.commit(flushed)?;
    let sectors = stamps.flat_map(|stamp| std::iter::repeat_n(stamp, BLOCK_SECTORS as usize));
    model.create_begins(id, sectors.collect());
    model.command_ends(&[id], true);
    Ok(())
}
