//! A volume while its pool is open: the part that lanes share with the keeper.

use crate::units::VolumeId;

/// One open volume.
pub struct Volume {
    id: VolumeId,
    size_bytes: u64,
}

impl Volume {
    /// Its number in the metadata.
    pub fn id(&self) -> VolumeId {
        self.id
    }
    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
