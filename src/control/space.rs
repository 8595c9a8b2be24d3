//! How much space a pool has and where, as its status tells it.

use super::options::FreeSpace;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the parts of a pool are: files of its directory, or what is linked from there. `None`: not there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PoolPlaces {
    /// The metadata.
    pub metadata: Option<PathBuf>,
    /// The data.
    pub data: Option<PathBuf>,
    /// The journal, also one that is not in use.
    pub journal: Option<PathBuf>,
}

impl PoolPlaces {
    /// Of the pool in this directory.
    pub(super) fn of(directory: &Path) -> Self {
        let place = |name| {
            let path = directory.join(name);
            std::fs::read_link(&path).ok().or_else(|| path.exists().then_some(path))
        };
        PoolPlaces { metadata: place("metadata"), data: place("data"), journal: place("journal") }
    }
}

/// Space on the data disk, in whole blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DataSpace {
    /// In all.
    pub total_bytes: u64,
    /// Mapped by some volume.
    pub used_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// What the filesystem has left that holds the data as a file, for who is not root; absent for a device. A sparse file may promise more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem_free_bytes: Option<u64>,
    /// How often a write that needs a block found none after others had found one, since the daemon was started.
    #[serde(default)]
    pub times_full: u64,
}

/// Space on the metadata disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MetadataSpace {
    /// In all.
    pub total_bytes: u64,
    /// In use, the reserve not counted.
    pub used_bytes: u64,
    /// Neither in use nor reserved.
    pub free_bytes: u64,
    /// Kept back so that deletions and commits always go through.
    pub reserve_bytes: u64,
    /// Something was refused for lack of it, and there has not been more since; some may be free, but not enough.
    #[serde(default)]
    pub is_full: bool,
    /// How often that began, since the daemon was started.
    #[serde(default)]
    pub times_full: u64,
}

impl MetadataSpace {
    /// Whether what needs some is refused.
    pub(super) fn has_none(&self) -> bool {
        self.is_full || self.free_bytes == 0
    }
}

impl DataSpace {
    /// Words about a filesystem with less space than the pool counts on, once that is below the pool's low water mark.
    pub(super) fn overcommitment(&self, low_water: FreeSpace) -> Option<String> {
        let left_bytes = self.filesystem_free_bytes?;
        let is_low = left_bytes < self.free_bytes.min(low_water.bytes_of(self.total_bytes));
        is_low.then(|| {
            format!(
                "the filesystem that holds the data has {left_bytes} bytes left, the pool counts on {}: when it is full, writes that \
                 need space fail",
                self.free_bytes
            )
        })
    }
}

/// What the filesystem has left that holds `data`, if that is a file.
pub(super) fn filesystem_free_bytes(data: &Path) -> Option<u64> {
    let is_file = std::fs::metadata(data).is_ok_and(|found| found.is_file());
    let found = is_file.then(|| rustix::fs::statvfs(data).ok()).flatten()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_is_told_of_when_it_has_less_than_both_the_pool_and_its_mark() {
        let space = |filesystem_free_bytes, free_bytes| DataSpace {
            total_bytes: 100 << 30,
            used_bytes: 0,
            free_bytes,
            filesystem_free_bytes,
            times_full: 0,
        };
        let words = |filesystem, free| space(filesystem, free).overcommitment(FreeSpace::Percent(10));
        assert_eq!(words(None, 100 << 30), None);
        assert_eq!(words(Some(11 << 30), 100 << 30), None);
        assert_eq!(words(Some(9 << 30), 8 << 30), None);
        let told = words(Some(9 << 30), 100 << 30).unwrap();
        assert!(told.contains("has 9663676416 bytes left, the pool counts on 107374182400:"), "{told}");
        assert_eq!(filesystem_free_bytes(Path::new("/dev/null")), None);
        assert!(filesystem_free_bytes(Path::new("/proc/self/exe")).is_some());
    }
}
