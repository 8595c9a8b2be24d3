//! A volume while its pool is open: the part that lanes share with the keeper.

use super::map_table::MapTable;
use crate::units::{Mapping, SnapTime, VolumeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The bit of [`Volume::openers`] that says: nobody may open it any more.
const CLOSED: u32 = 1 << 31;

/// One volume. The keeper changes it, lanes look.
pub struct Volume {
    id: VolumeId,
    size_bytes: AtomicU64,
    pub(super) table: MapTable,
    snapshotted: AtomicU32,
    frozen: AtomicBool,
    ignores_discards: AtomicBool,
    /// Clients that have it open, and [`CLOSED`].
    openers: AtomicU32,
}

impl Volume {
    pub(super) fn new(id: VolumeId, size_bytes: u64, snapshotted: SnapTime) -> Self {
        Volume {
            id,
            size_bytes: AtomicU64::new(size_bytes),
            table: MapTable::default(),
            snapshotted: AtomicU32::new(snapshotted.0),
            frozen: AtomicBool::new(false),
            ignores_discards: AtomicBool::new(false),
            openers: AtomicU32::new(0),
        }
    }

    /// Its number in the metadata.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its size in bytes, a multiple of 512.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(super) fn set_size_bytes(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// dm-thin's rule: what was mapped before the volume's last snapshot may be shared.
    pub(super) fn is_shared(&self, mapping: Mapping) -> bool {
        mapping.time.0 < self.snapshotted.load(Ordering::Acquire)
    }

    pub(super) fn set_snapshotted(&self, time: SnapTime) {
        self.snapshotted.store(time.0, Ordering::Release);
    }

    /// Whether changes have to wait. Sequentially consistent with the epochs: a lane that has entered its epoch and
    /// sees "not frozen" here is waited for by whoever freezes later.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Whether discards do nothing.
    pub fn ignores_discards(&self) -> bool {
        self.ignores_discards.load(Ordering::Relaxed)
    }

    pub(super) fn set_ignores_discards(&self, ignores: bool) {
        self.ignores_discards.store(ignores, Ordering::Relaxed);
    }

    /// Number of clients that have it open.
    pub fn openers(&self) -> u32 {
        self.openers.load(Ordering::SeqCst) & !CLOSED
    }

    /// Opens it; `None` once it is being deleted.
    pub fn open(self: &Arc<Self>) -> Option<VolumeLease> {
        let before = self.openers.fetch_add(1, Ordering::SeqCst);
        let lease = VolumeLease { volume: self.clone() };
        (before & CLOSED == 0).then_some(lease)
    }

    /// Sees to it that nobody opens it from now on; `false`, changing nothing, while somebody has it open.
    pub(super) fn close_if_unused(&self) -> bool {
        self.openers.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes [`Volume::close_if_unused`] back.
    pub(super) fn reopen(&self) {
        self.openers.fetch_and(!CLOSED, Ordering::SeqCst);
    }
}

/// A client's hold on a volume: while there is one, the volume cannot be deleted.
pub struct VolumeLease {
    volume: Arc<Volume>,
}

impl VolumeLease {
    /// The volume, for requests.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }
}

impl Drop for VolumeLease {
    fn drop(&mut self) {
        self.volume.openers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_volume_cannot_be_closed_and_a_closed_one_not_opened() {
        let volume = Arc::new(Volume::new(VolumeId::MAX, 1 << 20, SnapTime(0)));
        let lease = volume.open().expect("nobody closed it");
        assert_eq!(volume.openers(), 1);
        assert!(!volume.close_if_unused());
        drop(lease);
        assert!(volume.close_if_unused());
        assert!(volume.open().is_none());
        assert_eq!(volume.openers(), 0);
        volume.reopen();
        assert!(volume.open().is_some());
    }
}
