//! Volumes as block devices of this machine: which there are, and the links to them.
//!
//! `POOL/dev/VOLUME` is a link to the volume's device, for as long as there is one. Links that a killed daemon left behind
//! go when the next one starts, and so do its devices. Links that lead elsewhere, and files, are left alone.

use super::api::{ExportInfo, ExportKind, ExportVolume, SCHEMA, Unexported};
use super::name::VolumeName;
use crate::driver::Pool;
use crate::engine::VolumeLease;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk::{self, BLOCK_DEVICE, Device, Options};
use crate::units::{BlockSize, VolumeId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

/// How long the end waits for a device that is just coming up.
const COMING_PATIENCE: Duration = Duration::from_secs(60);

/// The block devices of a pool that is served.
pub struct Exports {
    pool: Pool,
    block_size: BlockSize,
    /// `POOL/dev`.
    folder: PathBuf,
    state: Mutex<State>,
    locks_memory: Once,
}

#[derive(Default)]
struct State {
    devices: BTreeMap<VolumeId, Exported>,
    /// Volumes whose device is being made.
    coming: Vec<VolumeId>,
    is_closing: bool,
}

struct Exported {
    device: Arc<Device>,
    options: Options,
    link: Option<PathBuf>,
}

impl Exports {
    /// None yet; what a killed daemon left behind is removed.
    pub fn new(pool: Pool, block_size: BlockSize, folder: PathBuf) -> Self {
        ublk::remove_left_overs();
        remove_stale_links(&folder);
        Exports { pool, block_size, folder, state: Mutex::default(), locks_memory: Once::new() }
    }

    /// Makes the volume, opened by `open`, a block device, linked under the name that `name` gives. `Exists` when it is one
    /// already.
    pub fn export(
        &self,
        id: VolumeId,
        request: &ExportVolume,
        open: impl FnOnce(&Pool) -> Result<VolumeLease>,
        is_read_only: impl FnOnce() -> bool,
        name: impl Fn() -> Option<VolumeName>,
    ) -> Result<ExportInfo> {
        self.begin(id)?;
        let _coming = Coming { exports: self, id };
        let lease = open(&self.pool)?;
        // Asked for after the volume was opened: see `Service::is_read_only`.
        let options = options_of(request, is_read_only() || lease.volume().refuses_changes());
        self.locks_memory.call_once(lock_memory);
        let size_bytes = lease.volume().size_bytes();
        let device = Arc::new(Device::start(&self.pool, lease, self.block_size, options)?);
        let named = || name().unwrap_or_else(|| VolumeName::of_unknown(id));
        let linked_as = named();
        let path = device.path();
        {
            let mut state = self.state();
            if state.is_closing {
                drop(state);
                device.stop(true)?;
                return Err(closing());
            }
            let link = self.link(&linked_as, &path);
            state.devices.insert(id, Exported { device, options, link });
        }
        // Whoever has renamed it in between found nothing to rename.
        let name = named();
        if name != linked_as {
            self.renamed(id, &name);
        }
        let gone = || Error::new(ErrorKind::Failed, format!("{} is gone again", path.display()));
        let state = self.state();
        state.devices.get(&id).map(|exported| info(name, id, exported, size_bytes)).ok_or_else(gone)
    }

    fn begin(&self, id: VolumeId) -> Result<()> {
        let mut state = self.state();
        state.forget_ended();
        if state.is_closing {
            return Err(closing());
        }
        if let Some(exported) = state.devices.get(&id) {
            let what = format!("volume {id} is exported already: {}", exported.device.path().display());
            return Err(
                Error::new(ErrorKind::Exists, what).hint("`uthin export --list POOL` shows all exports")
            );
        }
        if state.coming.contains(&id) {
            return Err(Error::new(ErrorKind::Busy, format!("volume {id} is just being exported"))
                .hint("wait for that to end"));
        }
        state.coming.push(id);
        Ok(())
    }

    /// Takes the volume's device away; see [`Device::stop`].
    pub fn unexport(&self, id: VolumeId, name: &VolumeName, force: bool) -> Result<Unexported> {
        let device = {
            let mut state = self.state();
            state.forget_ended();
            let exported = state.devices.get(&id).ok_or_else(|| {
                Error::new(ErrorKind::WrongState, format!("volume `{name}` is not exported"))
                    .hint("`uthin export --list POOL` shows what is")
            })?;
            exported.device.clone()
        };
        if let Err(error) = device.stop(force)
            && !device.has_ended()
        {
            return Err(error);
        }
        self.state().devices.remove(&id);
        remove_if_empty(&self.folder);
        let device = device.path().to_string_lossy().into_owned();
        Ok(Unexported { schema: SCHEMA.to_owned(), volume: name.clone(), device })
    }

    /// The device of a volume.
    pub fn path_of(&self, id: VolumeId) -> Option<PathBuf> {
        let state = self.state();
        let exported = state.devices.get(&id).filter(|exported| !exported.device.has_ended());
        exported.map(|exported| exported.device.path())
    }

    /// All exports; `name` and size of a volume come from the caller.
    pub fn list(&self, volume: impl Fn(VolumeId) -> Option<(VolumeName, u64)>) -> Vec<ExportInfo> {
        let ids: Vec<_> = {
            let mut state = self.state();
            state.forget_ended();
            state.devices.keys().copied().collect()
        };
        // The catalog is not asked under our lock: it asks us under its own.
        let known: Vec<_> = ids.into_iter().filter_map(|id| Some((id, volume(id)?))).collect();
        let state = self.state();
        let describe = |(id, (name, size_bytes))| Some(info(name, id, state.devices.get(&id)?, size_bytes));
        known.into_iter().filter_map(describe).collect()
    }

    /// The volume has another name: so does its link.
    pub fn renamed(&self, id: VolumeId, name: &VolumeName) {
        let mut state = self.state();
        if let Some(exported) = state.devices.get_mut(&id) {
            let path = exported.device.path();
            remove_link(exported.link.take());
            exported.link = self.link(name, &path);
        }
    }

    /// The volume has another size: its device shows it, if the kernel can do that.
    pub fn resized(&self, id: VolumeId, size_bytes: u64) -> Result<()> {
        let device = self.state().devices.get(&id).map(|exported| exported.device.clone());
        device.map_or(Ok(()), |device| device.resize(size_bytes))
    }

    /// Takes all devices away, whoever has them open, and makes no more.
    pub fn close(&self) {
        let devices = {
            let mut state = self.state();
            state.is_closing = true;
            std::mem::take(&mut state.devices)
        };
        // All at once: each waits for requests of its own, and a mounted filesystem is synced.
        std::thread::scope(|scope| {
            for exported in devices.values() {
                scope.spawn(|| {
                    if let Err(error) = exported.device.stop(true)
                        && error.kind() != ErrorKind::NotFound
                    {
                        tracing::error!("{error}");
                    }
                });
            }
        });
        drop(devices);
        remove_if_empty(&self.folder);
        // Who was making one finds that it must not be, and takes it away again.
        let deadline = Instant::now() + COMING_PATIENCE;
        while !self.state().coming.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A link to a device. Without one, the volume is as usable; so a failure is only logged.
    fn link(&self, name: &VolumeName, device: &Path) -> Option<PathBuf> {
        let path = self.folder.join(name.as_str());
        let made = fs::create_dir(&self.folder)
            .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .and_then(|()| symlink(device, &path));
        match made {
            Ok(()) => Some(path),
            Err(error) => {
                tracing::warn!("there is no link {}: {error}", path.display());
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the exports")
    }
}

impl State {
    /// Devices may go without our doing: somebody removes them, or a queue fails.
    fn forget_ended(&mut self) {
        self.devices.retain(|_, exported| !exported.device.has_ended());
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        remove_link(self.link.take());
    }
}

/// A volume whose device is being made, until it is there or cannot be made.
struct Coming<'a> {
    exports: &'a Exports,
    id: VolumeId,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.exports.state().coming.retain(|id| *id != self.id);
    }
}

fn options_of(request: &ExportVolume, read_only: bool) -> Options {
    let default = Options::default();
    Options {
        queues: request.queues.unwrap_or(default.queues),
        depth: request.depth.unwrap_or(default.depth),
        logical_block_bytes: request.logical_block_bytes.unwrap_or(default.logical_block_bytes),
        physical_block_bytes: request.physical_block_bytes.unwrap_or(default.physical_block_bytes),
        read_only: read_only || request.read_only,
    }
}

fn info(name: VolumeName, id: VolumeId, exported: &Exported, size_bytes: u64) -> ExportInfo {
    let options = exported.options;
    ExportInfo {
        schema: SCHEMA.to_owned(),
        volume: name,
        id: id.get(),
        kind: ExportKind::Ublk,
        device: exported.device.path().to_string_lossy().into_owned(),
        link: exported.link.as_ref().map(|link| link.to_string_lossy().into_owned()),
        size_bytes,
        queues: options.queues,
        depth: options.depth,
        logical_block_bytes: options.logical_block_bytes,
        physical_block_bytes: options.physical_block_bytes,
        read_only: options.read_only,
    }
}

fn closing() -> Error {
    Error::new(ErrorKind::WrongState, "the pool is being closed")
}

fn remove_link(link: Option<PathBuf>) {
    if let Some(link) = link
        && let Err(error) = fs::remove_file(&link)
    {
        tracing::warn!("removing {}: {error}", link.display());
    }
}

fn remove_if_empty(folder: &Path) {
    // Where there is no folder, or something in it, it stays as it is.
    let _ = fs::remove_dir(folder);
}

/// Whoever calls has the pool's lock: nobody else serves it.
fn remove_stale_links(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_ours = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_str().is_some_and(|target| target.starts_with(BLOCK_DEVICE)));
        if is_ours {
            remove_link(Some(entry.path()));
        }
    }
    remove_if_empty(folder);
}

/// What serves a block device must not be swapped out to one. Pages are locked as they are touched.
fn lock_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    if !ublk::may_lock_memory() {
        tracing::info!("the daemon's memory is not locked: the limit does not allow it (`uthin doctor`)");
        return;
    }
    if let Err(errno) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        tracing::warn!("the daemon's memory cannot be locked: {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_links_go_and_nothing_else() {
        let place = tempfile::tempdir().expect("a directory");
        let folder = place.path().join("dev");
        remove_stale_links(&folder);
        fs::create_dir(&folder).expect("made");
        symlink("/dev/ublkb7", folder.join("old")).expect("linked");
        remove_stale_links(&folder);
        assert!(!folder.exists(), "nothing was left in it");
        fs::create_dir(&folder).expect("made");
        symlink("/dev/ublkb7", folder.join("old")).expect("linked");
        symlink("/dev/null", folder.join("theirs")).expect("linked");
        fs::write(folder.join("file"), "").expect("written");
        remove_stale_links(&folder);
        let mut left: Vec<_> =
            fs::read_dir(&folder).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["file", "theirs"]);
    }
}
