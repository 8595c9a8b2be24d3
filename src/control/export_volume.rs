//! Volumes as block devices, for users: by name, in step with what else becomes of the volume.

use super::api::{ExportInfo, ExportList, ExportVolume, SCHEMA, UnexportVolume, Unexported};
use super::catalog::VolumeEntry;
use super::exports::Exports;
use super::name::VolumeName;
use super::service::{NO_PANIC, Service};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use std::sync::Arc;

impl Service {
    /// Says who makes block devices of volumes; once.
    pub fn export_with(&self, exports: Arc<Exports>) {
        let set = self.block_devices.set(exports);
        assert!(set.is_ok(), "a daemon begins to serve once");
    }

    /// Takes all block devices away: before the pool is closed.
    pub fn unexport_all(&self) {
        if let Some(exports) = self.block_devices.get() {
            exports.close();
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
        let id = self.catalog.read().expect(NO_PANIC).require(name)?.id;
        let exports = self.block_devices.get().ok_or_else(|| {
            Error::new(
                ErrorKind::WrongState,
                "nobody serves the pool, and a block device lives as long as its daemon",
            )
            .hint("`uthin serve POOL` first, or `uthin serve POOL --ublk VOLUME`")
        })?;
        let now = || self.catalog.read().expect(NO_PANIC).by_id(id).map(|entry| entry.name.clone());
        exports
            .export(id, request, |pool| self.open_volume(pool, id), || self.is_read_only(id), now)
            .map_err(|error| error.context(format!("exporting volume `{name}`")))
    }

    /// See [`super::api::PoolApi::unexport`].
    pub(super) fn unexport_volume(&self, name: &VolumeName, request: &UnexportVolume) -> Result<Unexported> {
        let id = self.catalog.read().expect(NO_PANIC).require(name)?.id;
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
