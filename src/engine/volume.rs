//! A volume while its pool is open: the part that lanes share with the keeper.

use super::map_table::MapTable;
use super::origin::{Behind, Origin};
use super::pages::Pages;
use super::partials::Partials;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{Mapping, SnapTime, VolumeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The bit of [`Volume::openers`] that says: nobody may open it any more.
const CLOSED: u32 = 1 << 31;

/// Whether a volume's contents can be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changes {
    /// They can.
    Allowed,
    /// Not now: a snapshot of it is being taken.
    Frozen,
    /// Not any more: the pool is read-only, or has failed.
    Refused,
}

/// The places of [`Changes`] in [`Volume::changes`].
const ALLOWED: u8 = 0;
const FROZEN: u8 = 1;
const REFUSED: u8 = 2;

/// One volume. The keeper changes it, lanes look.
pub struct Volume {
    id: VolumeId,
    size_bytes: AtomicU64,
    pub(super) table: MapTable,
    partials: Arc<Partials>,
    /// Never changes: who gets another origin becomes another `Volume`.
    behind: Behind,
    snapshotted: AtomicU32,
    changes: AtomicU8,
    ignores_discards: AtomicBool,
    /// Clients that have it open, and [`CLOSED`].
    openers: AtomicU32,
}

impl Volume {
    pub(super) fn new(
        id: VolumeId,
        size_bytes: u64,
        snapshotted: SnapTime,
        behind: Behind,
        pages: Arc<Pages>,
        partials: Arc<Partials>,
    ) -> Self {
        Volume {
            id,
            size_bytes: AtomicU64::new(size_bytes),
            table: MapTable::new(pages),
            partials,
            behind,
            snapshotted: AtomicU32::new(snapshotted.0),
            changes: AtomicU8::new(ALLOWED),
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

    /// The pool's partial blocks.
    pub(super) fn partials(&self) -> &Partials {
        &self.partials
    }

    /// Blocks of the pool that lanes know as partial ones, or did until lately.
    pub fn partial_blocks(&self) -> u64 {
        self.partials.count()
    }

    /// Stretches of partial blocks that were made whole, in all.
    pub fn settled_stretches(&self) -> u64 {
        self.partials.settled.load(Ordering::Relaxed)
    }

    /// Whether making them whole should not be slow.
    pub fn is_in_a_hurry(&self) -> bool {
        self.partials.hurry.load(Ordering::Relaxed)
    }

    /// What shows where it has no block.
    pub(super) fn behind(&self) -> &Behind {
        &self.behind
    }

    /// Its external origin, if it has one.
    pub fn origin(&self) -> Option<&Origin> {
        match &self.behind {
            Behind::Origin(origin) => Some(origin),
            Behind::Zeros | Behind::Unavailable(_) => None,
        }
    }

    /// Where its external origin ends, a multiple of 512; 0 without one. From here on what is not mapped reads zeros.
    pub fn origin_bytes(&self) -> u64 {
        self.origin().map_or(0, Origin::size_bytes)
    }

    /// dm-thin's rule: what was mapped before the volume's last snapshot may be shared.
    pub(super) fn is_shared(&self, mapping: Mapping) -> bool {
        mapping.time.0 < self.snapshotted.load(Ordering::Acquire)
    }

    pub(super) fn snapshotted(&self) -> SnapTime {
        SnapTime(self.snapshotted.load(Ordering::Acquire))
    }

    pub(super) fn set_snapshotted(&self, time: SnapTime) {
        self.snapshotted.store(time.0, Ordering::Release);
    }

    /// Whether changes may begin. Sequentially consistent with the epochs: a lane that has entered its epoch and sees
    /// "allowed" here is waited for by whoever freezes later.
    pub(super) fn changes(&self) -> Changes {
        match self.changes.load(Ordering::SeqCst) {
            ALLOWED => Changes::Allowed,
            FROZEN => Changes::Frozen,
            _ => Changes::Refused,
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.changes() == Changes::Frozen
    }

    /// Only the keeper calls this. Changes that are refused stay refused.
    pub(super) fn set_frozen(&self, frozen: bool) {
        if self.changes() != Changes::Refused {
            self.changes.store(if frozen { FROZEN } else { ALLOWED }, Ordering::SeqCst);
        }
    }

    /// Whether changes are refused from now on, because the pool is read-only or has failed.
    pub fn refuses_changes(&self) -> bool {
        self.changes() == Changes::Refused
    }

    /// For good.
    pub(super) fn refuse_changes(&self) {
        self.changes.store(REFUSED, Ordering::SeqCst);
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

    /// Opens it. `NotFound` once it is being deleted, or why its external origin cannot be had.
    pub fn open(self: &Arc<Self>) -> Result<VolumeLease> {
        if let Behind::Unavailable(why) = &self.behind {
            return Err(why.clone());
        }
        let before = self.openers.fetch_add(1, Ordering::SeqCst);
        let lease = VolumeLease { volume: self.clone() };
        if before & CLOSED != 0 {
            return Err(Error::new(ErrorKind::NotFound, format!("volume {} is being deleted", self.id)));
        }
        Ok(lease)
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
        let volume = Arc::new(Volume::new(
            VolumeId::MAX,
            1 << 20,
            SnapTime(0),
            Behind::Zeros,
            Arc::default(),
            Arc::default(),
        ));
        let lease = volume.open().expect("nobody closed it");
        assert_eq!(volume.openers(), 1);
        assert!(!volume.close_if_unused());
        drop(lease);
        assert!(volume.close_if_unused());
        assert_eq!(volume.open().err().map(|error| error.kind()), Some(ErrorKind::NotFound));
        assert_eq!(volume.openers(), 0);
        volume.reopen();
        assert!(volume.open().is_ok());
    }

    #[test]
    fn nobody_opens_a_volume_whose_origin_cannot_be_had() {
        let why = Error::new(ErrorKind::WrongState, "the origin has gone").hint("bring it back");
        let behind = Behind::Unavailable(why.clone());
        let volume = Arc::new(Volume::new(
            VolumeId::MAX,
            1 << 20,
            SnapTime(0),
            behind,
            Arc::default(),
            Arc::default(),
        ));
        assert_eq!(volume.open().err(), Some(why));
        assert!(volume.close_if_unused(), "it can be deleted");
    }
}
