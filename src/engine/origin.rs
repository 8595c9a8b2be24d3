//! External origins: read-only disks outside the pool that show wherever a volume has no block of its own.
//!
//! dm-thin's semantics: what is unmapped reads from the origin, and zeros past its end; the first write to a block copies
//! the rest of it from there; a discard brings the origin back. An origin must not change while a volume stands on it.
//! Nothing of it is in the metadata: the control plane knows which volume has which.

use crate::disk::Disk;
use crate::error::Error;
use crate::units::SECTOR_BYTES;
use std::fmt;
use std::sync::Arc;

/// An open origin; clones are the same one.
#[derive(Clone)]
pub struct Origin(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    size_bytes: u64,
}

impl Origin {
    /// An origin as large as `disk` is now, in whole sectors. A pool that is served by rings needs a
    /// [`FileDisk`](crate::disk::FileDisk).
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        let size_bytes = disk.size_bytes() / SECTOR_BYTES * SECTOR_BYTES;
        Origin(Arc::new(Inner { disk, size_bytes }))
    }

    /// Its size in bytes, a multiple of 512. What lies beyond reads zeros.
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// The disk, to be read from.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.0.disk
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Origin {}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin({}, {} bytes)", self.disk().name(), self.size_bytes())
    }
}

/// What shows where a volume has no block of its own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Behind {
    /// Zeros.
    #[default]
    Zeros,
    /// This, and zeros past its end.
    Origin(Origin),
    /// An origin that cannot be had, because of this: nobody may open the volume.
    Unavailable(Error),
}

impl Behind {
    /// Whether two volumes show the same, as far as can be told here: an origin that was opened twice is one.
    pub(super) fn is_like(&self, other: &Behind) -> bool {
        match (self, other) {
            (Behind::Zeros, Behind::Zeros) => true,
            (Behind::Zeros, Behind::Origin(_) | Behind::Unavailable(_))
            | (Behind::Origin(_) | Behind::Unavailable(_), Behind::Zeros) => false,
            (Behind::Origin(one), Behind::Origin(two)) => {
                one == two || (one.disk().name(), one.size_bytes()) == (two.disk().name(), two.size_bytes())
            }
            (Behind::Unavailable(_), Behind::Origin(_) | Behind::Unavailable(_))
            | (Behind::Origin(_), Behind::Unavailable(_)) => true,
        }
    }
}
