//! How large metadata should be, by thin_metadata_size's rule: leaves half full, a block for each volume, one more.

use crate::error::{Error, ErrorKind, Result};
use crate::format::capacity;
use crate::units::{BlockSize, META_BLOCK_BYTES, META_BLOCKS_LIMIT};

/// Bytes of metadata for a pool of `pool_bytes` in blocks of `block_bytes` with up to `volumes` volumes.
pub(in crate::check) fn metadata_bytes(block_bytes: u64, pool_bytes: u64, volumes: u64) -> Result<u64> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let size = BlockSize::from_bytes(block_bytes).ok_or_else(|| {
        invalid(format!("a block size of {block_bytes} bytes; it must be a multiple of 64 KiB, up to 1 GiB"))
    })?;
    if pool_bytes < block_bytes {
        return Err(invalid("the pool is smaller than one of its blocks".to_owned()));
    }
    let mappings_in_a_leaf = capacity(8) as u64 / 2;
    let leaves = size.whole_blocks_in(pool_bytes).div_ceil(mappings_in_a_leaf);
    let blocks = leaves.saturating_add(volumes).saturating_add(1).min(META_BLOCKS_LIMIT);
    Ok(blocks * META_BLOCK_BYTES as u64)
}
