//! What others know of the volumes that a pool is adopted with: names and sizes, which dm-thin's metadata has no room for.

use crate::control::options::PoolOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

/// No backup is larger: LVM's and Docker's take some hundred bytes for each volume.
const FILE_BYTES_LIMIT: u64 = 256 << 20;

/// Everything that a backup says.
#[derive(Debug)]
pub(super) struct Backup {
    /// What messages call it.
    pub(super) whence: String,
    /// By their numbers.
    pub(super) volumes: BTreeMap<VolumeId, Known>,
    /// What it says of the pool itself.
    pub(super) pool: Option<PoolFacts>,
}

/// What a backup says of one volume.
#[derive(Debug)]
pub(super) struct Known {
    /// Its name, as it is there.
    pub(super) name: String,
    /// Its size.
    pub(super) size_bytes: u64,
    /// The pool's transaction ids in which it may have been made: one of the same number that was made in another is
    /// another volume.
    pub(super) made_in: Option<RangeInclusive<u64>>,
    /// Whether nobody may write it.
    pub(super) read_only: bool,
    /// When it was made.
    pub(super) created_unix_seconds: Option<u64>,
    /// The volume it is a snapshot of.
    pub(super) origin: Option<VolumeId>,
    /// Where what is not mapped comes from, if that is a device outside the pool.
    pub(super) external_origin: Option<String>,
}

/// What a backup says of the pool.
#[derive(Debug)]
pub(super) struct PoolFacts {
    pub(super) name: String,
    pub(super) block_size_bytes: u64,
    pub(super) transaction_id: u64,
    pub(super) options: PoolOptions,
}

/// The whole of a file that is not absurdly large.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let context = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("{} does not exist", path.display()))
                .hint("name a backup that is there")
        }
        _ => Error::io(format!("reading {}", path.display()), &source),
    };
    let file = File::open(path).map_err(context)?;
    // A FIFO or a terminal would be waited for.
    if !file.metadata().map_err(context)?.is_file() {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is no regular file", path.display()))
            .hint("name the backup's file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut bytes).map_err(context)?;
    if bytes.len() as u64 > FILE_BYTES_LIMIT {
        let what = format!("{} has more than {FILE_BYTES_LIMIT} bytes", path.display());
        return Err(Error::new(ErrorKind::Invalid, what).hint("it is no backup of names and sizes"));
    }
    Ok(bytes)
}
