//! Volumes as block devices of this machine: which there are, and the links to them.
//!
//! `POOL/dev/VOLUME` is a link to the volume's device, for as long as there is one. Links that a killed daemon left behind
//! go when the next one starts, and so do its devices, but for those that outlive their daemon: where all that was acknowledged at one is in
//! the pool ([`super::lasting_devices`]), it goes on. Links that lead elsewhere, and files, are left alone.

use super::api::{ExportInfo, ExportKind, ExportVolume, SCHEMA, Unexported};
use super::lasting_devices::{Kept, LastingDevices, Record};
use super::name::VolumeName;
use crate::driver::Pool;
use crate::engine::VolumeLease;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk::{self, BLOCK_DEVICE, Birth, Device, Mark, Options};
use crate::units::{BlockSize, VolumeId};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

/// How long the end waits for a device that is just coming up.
const COMING_PATIENCE: Duration = Duration::from_secs(60);

/// The block devices of a pool that is served.
pub struct BlockDevices {
    pool: Pool,
    block_size: BlockSize,
    /// `POOL/dev`.
    folder: PathBuf,
    lasting: Arc<LastingDevices>,
    /// The journal that the pool has now, or has had since it is served.
    journal: Option<u64>,
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
    /// Where it is noted that it outlives its daemon, and by which mark.
    noted: Option<(Arc<LastingDevices>, Mark)>,
    /// An earlier daemon made it.
    was_found: bool,
    /// It was taken away.
    is_gone: bool,
}

/// What becomes of block devices when the pool is no longer served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// They go.
    TakeAway,
    /// Those that outlive their daemon wait for the next one.
    LetGo,
    /// The start has failed: those that were there before it wait, the others go.
    AsFound,
}

impl BlockDevices {
    /// None yet; what a killed daemon left behind is removed, but for `lasting`. `journal`: the number of the pool's journal, if it has one.
    pub fn new(
        pool: Pool,
        block_size: BlockSize,
        folder: PathBuf,
        lasting: Arc<LastingDevices>,
        journal: Option<u64>,
    ) -> Self {
        ublk::remove_left_overs();
        let (state, locks_memory) = (Mutex::default(), Once::new());
        let known: Vec<_> = lasting.all().iter().map(Record::path).collect();
        remove_stale_links(&folder, |_, device| known.iter().any(|path| path == device));
        BlockDevices { pool, block_size, folder, lasting, journal, state, locks_memory }
    }

    /// Takes up the devices that an earlier daemon left. One that cannot go on is taken away; one that cannot be taken up now goes on waiting. The
    /// log says why.
    pub fn take_up(
        &self,
        open: impl Fn(&Pool, VolumeId) -> Result<VolumeLease> + Sync,
        name: impl Fn(VolumeId) -> Option<VolumeName> + Sync,
    ) {
        // All at once: each waits for the kernel.
        std::thread::scope(|scope| {
            for record in self.lasting.all() {
                let (open, name) = (&open, &name);
                scope.spawn(move || self.take_up_one(record, open, name));
            }
        });
        let waiting = self.lasting.all().into_iter().filter(|record| record.kept == Kept::Metadata);
        let named = |record: Record| Some(self.folder.join(name(VolumeId::new(record.volume)?)?.as_str()));
        let mut links: Vec<PathBuf> = waiting.filter_map(named).collect();
        links.extend(self.state().devices.values().filter_map(|exported| exported.link.clone()));
        remove_stale_links(&self.folder, |link, _| links.iter().any(|kept| kept == link));
    }

    fn take_up_one(
        &self,
        record: Record,
        open: impl Fn(&Pool, VolumeId) -> Result<VolumeLease>,
        name: impl Fn(VolumeId) -> Option<VolumeName>,
    ) {
        let path = record.path();
        if let Err(error) = ublk::look_for(record.number, record.mark)
            && error.kind() == ErrorKind::NotFound
        {
            tracing::warn!("{error}");
            return self.lasting.forget(record.number, record.mark);
        }
        let volume = VolumeId::new(record.volume).and_then(|id| Some((id, name(id)?)));
        let (id, name, journal) = match (record.kept, self.journal, volume) {
            (Kept::Metadata, Some(journal), Some((id, name))) => (id, name, journal),
            (Kept::Metadata, None, _) => {
                return self.remove_found(record, "the pool is served without a journal");
            }
            (Kept::Metadata, _, None) => {
                return self.remove_found(record, "its volume is not there any more");
            }
            (Kept::Journal(_) | Kept::Unknown, ..) => {
                return self.remove_found(record, "writes that were acknowledged there may be lost");
            }
        };
        let goes_on_waiting = |error| tracing::error!("{} goes on waiting: {error}", path.display());
        let lease = match open(&self.pool, id) {
            Ok(lease) => lease,
            Err(error) => return goes_on_waiting(error),
        };
        match self.start_found(record, lease, journal) {
            Ok(device) => {
                let link = self.link(&name, &path);
                let (device, options) = (Arc::new(device), record.options());
                let noted = Some((self.lasting.clone(), record.mark));
                let exported = Exported { device, options, link, noted, was_found: true, is_gone: false };
                self.state().devices.insert(id, exported);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!("{error}");
                self.lasting.forget(record.number, record.mark);
            }
            // Nothing was done to it.
            Err(error) if self.lasting.all().contains(&record) => goes_on_waiting(error),
            Err(error) => self.remove_found(record, &error.to_string()),
        }
    }

    fn start_found(&self, record: Record, lease: VolumeLease, journal: u64) -> Result<Device> {
        self.locks_memory.call_once(lock_memory);
        let note = |kept| {
            let lasting = self.lasting.clone();
            Box::new(move || lasting.put(record.kept_in(kept))) as Box<dyn FnOnce() -> Result<()> + Send>
        };
        let birth = Birth::Found {
            number: record.number,
            mark: record.mark,
            begins: note(Kept::Unknown),
            goes_on: note(Kept::Journal(journal)),
        };
        Device::start(&self.pool, lease, self.block_size, record.options(), birth)
    }

    /// Takes a device away that an earlier daemon left.
    fn remove_found(&self, record: Record, why: &str) {
        tracing::error!("{} is taken away: {why}", record.path().display());
        match ublk::remove(record.number, record.mark) {
            Ok(()) => self.lasting.forget(record.number, record.mark),
            Err(error) => {
                tracing::error!("{error}; it is tried again when the pool is served the next time");
                if let Err(error) = self.lasting.put(record.kept_in(Kept::Unknown)) {
                    tracing::error!("{error}");
                }
            }
        }
    }

    /// Makes the volume, opened by `open`, a block device, linked under the name that `name` gives. With a `journal` that is written it outlives the
    /// daemon. `Exists` when it is one already.
    pub fn export(
        &self,
        id: VolumeId,
        request: &ExportVolume,
        journal_is_on: bool,
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
        let mark = RandomState::new().hash_one((id.get(), Instant::now())) as Mark;
        let birth = match self.journal.filter(|_| journal_is_on) {
            Some(_) if options.zero_copy => {
                let what = "a pool with a journal has devices that outlive their daemon, and those have no zero copy";
                return Err(Error::new(ErrorKind::WrongState, what)
                    .hint("leave --zero-copy out, or serve the pool with --journal none"));
            }
            Some(journal) => self.outliving(id, options, mark, journal),
            None => Birth::Mortal,
        };
        let device = Device::start(&self.pool, lease, self.block_size, options, birth);
        let device = Arc::new(device.inspect_err(|error| self.forget_unmade(mark, error))?);
        let noted = device.outlives_daemon().then(|| (self.lasting.clone(), mark));
        let named = || name().unwrap_or_else(|| VolumeName::of_unknown(id));
        let linked_as = named();
        let path = device.path();
        {
            let mut state = self.state();
            if state.is_closing {
                drop(state);
                device.stop(true)?;
                if let Some((noted, mark)) = noted {
                    noted.forget(device.number(), mark);
                }
                return Err(closing());
            }
            let link = self.link(&linked_as, &path);
            let exported = Exported { device, options, link, noted, was_found: false, is_gone: false };
            state.devices.insert(id, exported);
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

    /// A device that is noted before its first request comes.
    fn outliving(&self, id: VolumeId, options: Options, mark: Mark, journal: u64) -> Birth {
        let lasting = self.lasting.clone();
        let remember = move |number| lasting.put(Record::new(number, mark, id, options, journal));
        Birth::Outliving { mark, remember: Box::new(remember) }
    }

    /// A device could not be made, after it was noted perhaps. One that has not come up in time may yet do so.
    fn forget_unmade(&self, mark: Mark, error: &Error) {
        if error.kind() == ErrorKind::Busy {
            return;
        }
        for record in self.lasting.all().iter().filter(|record| record.mark == mark) {
            self.lasting.forget(record.number, mark);
        }
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
        if let Some(mut exported) = self.state().devices.remove(&id) {
            exported.is_gone = true;
        }
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

    /// Whether all devices can be left to another daemon: `WrongState` with one that cannot.
    pub fn require_can_hand_over(&self) -> Result<()> {
        let mut state = self.state();
        state.forget_ended();
        let mortal = state.devices.values().find(|exported| !exported.device.outlives_daemon());
        let Some(exported) = mortal else { return Ok(()) };
        let what = format!(
            "{} was made without a journal, and goes with its daemon",
            exported.device.path().display()
        );
        Err(Error::new(ErrorKind::WrongState, what).hint("unexport it first"))
    }

    /// Takes all devices away or lets them go, whoever has them open, and makes no more. Whether all has come to its end.
    pub fn close(&self, end: End) -> bool {
        let devices = {
            let mut state = self.state();
            state.is_closing = true;
            std::mem::take(&mut state.devices)
        };
        // All at once: each waits for requests of its own, and a mounted filesystem is synced.
        let has_failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for mut exported in devices.into_values() {
                let has_failed = &has_failed;
                scope.spawn(move || {
                    if let Err(error) = exported.end(end)
                        && error.kind() != ErrorKind::NotFound
                    {
                        tracing::error!("{error}");
                        has_failed.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        remove_if_empty(&self.folder);
        // Who was making one finds that it must not be, and takes it away again.
        let deadline = Instant::now() + COMING_PATIENCE;
        while !self.state().coming.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        !has_failed.into_inner()
    }

    /// A link to a device. Without one, the volume is as usable; so a failure is only logged.
    fn link(&self, name: &VolumeName, device: &Path) -> Option<PathBuf> {
        let path = self.folder.join(name.as_str());
        if leads_to_device(&path) {
            remove_link(Some(path.clone())); // an earlier daemon made it
        }
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

impl Exported {
    fn end(&mut self, end: End) -> Result<()> {
        let stays = match end {
            End::TakeAway => false,
            End::LetGo => self.device.outlives_daemon(),
            End::AsFound => self.was_found,
        };
        if !stays {
            let stopped = self.device.stop(true);
            self.is_gone = stopped.is_ok();
            return stopped;
        }
        // Device and link are the next daemon's.
        (self.noted, self.link) = (None, None);
        self.device.let_go()
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // In its place may be another pool's: directories are moved.
        let is_ours = |link: &PathBuf| fs::read_link(link).is_ok_and(|to| to == self.device.path());
        remove_link(self.link.take().filter(is_ours));
        // What is still there, because it does not end, is to be found by the next daemon.
        let noted = self.noted.take().filter(|_| self.is_gone || self.device.has_ended());
        if let Some((noted, mark)) = noted {
            noted.forget(self.device.number(), mark);
        }
    }
}

/// A volume whose device is being made, until it is there or cannot be made.
struct Coming<'a> {
    exports: &'a BlockDevices,
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
        zero_copy: request.zero_copy,
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
        outlives_daemon: exported.device.outlives_daemon(),
        zero_copy: exported.device.moved(),
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

/// Removes links to devices of ublk, but for those that `keeps`, told the link and where it leads, wants. Whoever calls has the pool's lock:
/// nobody else serves it.
fn remove_stale_links(folder: &Path, keeps: impl Fn(&Path, &Path) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let link = entry.path();
        if leads_to_device(&link) && !fs::read_link(&link).is_ok_and(|target| keeps(&link, &target)) {
            remove_link(Some(link));
        }
    }
    remove_if_empty(folder);
}

fn leads_to_device(link: &Path) -> bool {
    fs::read_link(link)
        .is_ok_and(|target| target.to_str().is_some_and(|target| target.starts_with(BLOCK_DEVICE)))
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
        remove_stale_links(&folder, |_, _| false);
        fs::create_dir(&folder).expect("made");
        symlink("/dev/ublkb7", folder.join("old")).expect("linked");
        remove_stale_links(&folder, |_, _| false);
        assert!(!folder.exists(), "nothing was left in it");
        fs::create_dir(&folder).expect("made");
        symlink("/dev/ublkb7", folder.join("old")).expect("linked");
        symlink("/dev/ublkb8", folder.join("waiting")).expect("linked");
        symlink("/dev/null", folder.join("theirs")).expect("linked");
        fs::write(folder.join("file"), "").expect("written");
        remove_stale_links(&folder, |_, device| device == Path::new("/dev/ublkb8"));
        let mut left: Vec<_> =
            fs::read_dir(&folder).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["file", "theirs", "waiting"]);
    }
}
