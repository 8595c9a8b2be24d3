//! The minimum of free space: no volumes and snapshots are made while less is free than the pool's owner wants to be.

use super::options::FreeSpace;
use super::service::{NO_PANIC, Service};
use crate::error::{Error, ErrorKind, Result};
use crate::units::META_BLOCK_BYTES;

impl Service {
    /// The guard before a new volume: `NoDataSpace` or `NoMetadataSpace` when less is free than the pool's owner wants to be.
    pub(super) fn require_min_free(&self) -> Result<()> {
        let min_free = self.catalog.read().expect(NO_PANIC).options.min_free;
        let status = self.pool_status()?;
        let (usage, block_bytes) = (status.usage, status.block_size.bytes());
        let (data_bytes, meta_bytes) =
            (usage.data_total * block_bytes, usage.metadata_total * META_BLOCK_BYTES as u64);
        let data_free = usage.data_total.saturating_sub(usage.data_allocated) * block_bytes;
        let data_short = min_free.bytes_of(data_bytes).saturating_sub(data_free);
        if data_short > 0 {
            return Err(below_min_free(ErrorKind::NoDataSpace, "data", data_free, data_short, min_free));
        }
        let taken = usage.metadata_allocated + usage.metadata_reserve;
        let meta_free = usage.metadata_total.saturating_sub(taken) * META_BLOCK_BYTES as u64;
        let meta_short = match min_free {
            FreeSpace::Percent(_) => min_free.bytes_of(meta_bytes).saturating_sub(meta_free),
            // A size is meant for data.
            FreeSpace::Bytes(_) => 0,
        };
        if meta_short > 0 {
            return Err(below_min_free(
                ErrorKind::NoMetadataSpace,
                "metadata",
                meta_free,
                meta_short,
                min_free,
            ));
        }
        Ok(())
    }
}

/// The refusal of a new volume, which says how much is missing.
fn below_min_free(kind: ErrorKind, of_what: &str, free: u64, short: u64, min_free: FreeSpace) -> Error {
    let minimum = match min_free {
        FreeSpace::Percent(percent) => format!("{percent}% ({} bytes)", free + short),
        FreeSpace::Bytes(bytes) => format!("{bytes} bytes"),
    };
    let what = format!("{free} bytes are free for {of_what}, {short} fewer than the minimum of {minimum}");
    Error::new(kind, what).hint(
        "delete or discard something, or add space (`uthin pool grow`); `uthin pool set POOL --min-free` sets the minimum",
    )
}
