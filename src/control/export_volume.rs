//! Volumes as block devices, for users: by name, in step with what else becomes of the volume.

use super::api::{ExportInfo, ExportList, ExportVolume, SCHEMA, UnexportVolume, Unexported};
use super::block_devices::{BlockDevices, End};
use super::catalog::{Catalog, VolumeEntry};
use super::lasting_devices::{self, Kept, LastingDevices, Record};
use super::name::VolumeName;
use super::service::{NO_PANIC, Service};
use crate::engine::{JournalStatus, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk;
use crate::units::VolumeId;
use std::sync::Arc;

impl Service {
    /// Says who makes block devices of volumes; once.
    pub fn export_with(&self, exports: Arc<BlockDevices>) {
        let set = self.block_devices.set(exports);
        assert!(set.is_ok(), "a daemon begins to serve once");
    }

    /// Says which block devices outlive their daemon; once.
    pub(super) fn remember_devices(&self, lasting_devices: Arc<LastingDevices>) {
        let set = self.lasting_devices.set(lasting_devices);
        assert!(set.is_ok(), "a pool is opened once");
    }

    /// What there is to say about block devices that wait for a daemon.
    pub(super) fn device_notes(&self, catalog: &Catalog) -> Vec<String> {
        let notes = self
            .lasting_devices
            .get()
            .map(|lasting| lasting_devices::notes(lasting, catalog, self.is_served()));
        notes.into_iter().flatten().map(|note| note.text).collect()
    }

    /// The block device, if the volume is one that waits for a daemon.
    fn waiting_device(&self, id: VolumeId) -> Option<(&LastingDevices, Record)> {
        let lasting = self.lasting_devices.get()?;
        let is_it = |record: &Record| record.volume == id.get() && record.kept == Kept::Metadata;
        Some((lasting, lasting.all().into_iter().find(is_it)?))
    }

    /// `Busy` when the volume is a block device that waits for a daemon: whoever uses it goes on with what was there.
    pub(super) fn require_no_device_waits(&self, volume: &VolumeEntry) -> Result<()> {
        let Some((_, record)) = self.waiting_device(volume.id) else { return Ok(()) };
        let (name, device) = (&volume.name, record.path());
        let what = format!("volume `{name}` is {}, which waits for the pool to be served", device.display());
        let hint = match self.is_served() {
            true => "the log says why it was not taken up; serve the pool anew, or `uthin unexport --force`",
            false => "serve the pool, then unexport it",
        };
        Err(Error::new(ErrorKind::Busy, what).hint(hint))
    }

    /// Takes up the block devices that an earlier daemon left, before anybody else comes.
    pub fn take_devices_up(&self) {
        if let Some(exports) = self.block_devices.get() {
            let name = |id| self.catalog.read().expect(NO_PANIC).by_id(id).map(|entry| entry.name.clone());
            exports.take_up(|pool, id| self.open_volume(pool, id), name);
        }
    }

    /// Ends all block devices, before the pool is closed. Whether all has come to its end.
    pub fn end_devices(&self, end: End) -> bool {
        self.block_devices.get().is_none_or(|exports| exports.close(end))
    }

    /// Whether the pool's block devices can be left to a daemon that comes next: `WrongState` or `Failed` with what stands in the way.
    pub(super) fn require_can_hand_over(&self) -> Result<()> {
        let refuse = |error: Error| Err(error.context("the pool cannot be handed over"));
        match self.pool_status()?.mode {
            Mode::Failed(why) | Mode::ReadOnly(why) => refuse(why),
            Mode::Write | Mode::OutOfDataSpace => {
                let able = self.block_devices.get().map_or(Ok(()), |exports| exports.require_can_hand_over());
                able.or_else(refuse)
            }
        }
    }

    /// See [`super::api::PoolApi::exports`].
    pub(super) fn list_exports(&self) -> ExportList {
        let volume = |id| {
            let catalog = self.catalog.read().expect(NO_PANIC);
            catalog.by_id(id).map(|entry| (entry.name.clone(), entry.size_bytes))
        };
        let mut exports = self.block_devices.get().map_or_else(Vec::new, |exports| exports.list(volume));
        exports.sort_by(|one, other| one.volume.cmp(&other.volume));
        ExportList { schema: SCHEMA.to_owned(), exports }
    }

    /// See [`super::api::PoolApi::export`].
    pub(super) fn export_volume(&self, name: &VolumeName, request: &ExportVolume) -> Result<ExportInfo> {
        let entry = self.catalog.read().expect(NO_PANIC).require(name)?.clone();
        self.require_no_device_waits(&entry)?;
        let id = entry.id;
        let exports = self.block_devices.get().ok_or_else(|| {
            Error::new(
                ErrorKind::WrongState,
                "nobody serves the pool, and a block device lives as long as its daemon",
            )
            .hint("`uthin serve POOL` first, or `uthin serve POOL --ublk VOLUME`")
        })?;
        let status = self.pool_status()?;
        let journal_is_on = matches!(status.journal, JournalStatus::On { .. });
        let now = || self.catalog.read().expect(NO_PANIC).by_id(id).map(|entry| entry.name.clone());
        exports
            .export(
                id,
                request,
                journal_is_on,
                |pool| self.open_volume(pool, id),
                || self.is_read_only(id),
                now,
            )
            .map_err(|error| error.context(format!("exporting volume `{name}`")))
    }

    /// See [`super::api::PoolApi::unexport`].
    pub(super) fn unexport_volume(&self, name: &VolumeName, request: &UnexportVolume) -> Result<Unexported> {
        let entry = self.catalog.read().expect(NO_PANIC).require(name)?.clone();
        let id = entry.id;
        if let (Some((lasting, record)), true) = (self.waiting_device(id), self.is_served()) {
            if !request.force {
                self.require_no_device_waits(&entry)?;
            }
            ublk::remove(record.number, record.mark)?;
            lasting.forget(record.number, record.mark);
            let device = record.path().to_string_lossy().into_owned();
            return Ok(Unexported { schema: SCHEMA.to_owned(), volume: name.clone(), device });
        }
        match self.block_devices.get() {
            Some(exports) => exports.unexport(id, name, request.force),
            None => Err(Error::new(ErrorKind::WrongState, format!("volume `{name}` is not exported"))
                .hint("nobody serves the pool")),
        }
    }

    /// Where a volume is to be had: NBD URIs, and its block device.
    pub(super) fn exports_of(&self, entry: &VolumeEntry) -> Vec<String> {
        let device = self.block_devices.get().and_then(|exports| exports.path_of(entry.id));
        let mut all = self.uris(entry.name.as_str());
        all.extend(device.map(|device| device.to_string_lossy().into_owned()));
        all
    }

    /// Lets the volume's link follow its name.
    pub(super) fn renamed(&self, id: Option<VolumeId>, name: &VolumeName) {
        if let (Some(exports), Some(id)) = (self.block_devices.get(), id) {
            exports.renamed(id, name);
        }
    }

    /// Lets the volume's device follow its size; what a user has to know if it cannot.
    pub(super) fn resized(&self, id: VolumeId, size_bytes: u64) -> Option<String> {
        let refused = self.block_devices.get()?.resized(id, size_bytes).err()?;
        let hint = refused.next_step().map_or_else(String::new, |hint| format!(" ({hint})"));
        Some(format!("{}{hint}", refused.message()))
    }

    /// Why a volume cannot be deleted.
    pub(super) fn in_use(&self, id: VolumeId, name: &VolumeName) -> Error {
        match self.block_devices.get().and_then(|exports| exports.path_of(id)) {
            Some(device) => {
                let what = format!("volume `{name}` is exported as {}", device.display());
                Error::new(ErrorKind::Busy, what).hint(format!("uthin unexport POOL/{name}"))
            }
            None => Error::new(ErrorKind::Busy, format!("volume `{name}` is in use by a client"))
                .hint("disconnect its clients first; `uthin volume list POOL` counts them"),
        }
    }
}
