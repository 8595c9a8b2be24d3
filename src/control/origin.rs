//! External origins: which file or device is behind which volume, and whether it is still the one that it was.
//!
//! The catalog keeps an origin's path, its size, and of a file when it was last modified. Where that is not what is found
//! now, the volume would show what nobody has written to it: nobody gets it until a person says that it is right
//! ([`super::api::SetVolume`]). All else goes on: an origin is needed only by who reads or writes its volumes.

use super::api::OriginInfo;
use super::catalog::{Catalog, VolumeEntry};
use super::service::{NO_PANIC, Service};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::driver::Pool;
use crate::engine::{Behind, Command, Origin, VolumeLease};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SECTOR_BYTES, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// What the catalog says of an external origin. Two that are equal are the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalOrigin {
    /// A file or block device: absolute, and otherwise as the user gave it, so that a stable name stays stable.
    pub path: String,
    /// Its size, a multiple of 512, not 0.
    pub size_bytes: u64,
    /// When the file was last modified; `None` for a device, which does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_unix_nanoseconds: Option<i64>,
}

impl ExternalOrigin {
    /// What is at `path` now, opened for reading only, with a lock that readers share. `pool` is the directory of the pool
    /// that it is for. `Invalid` for a path that is not absolute, for what is neither file nor device, has no proper size, or
    /// belongs to the pool; `NotFound`; `Busy` when somebody may write it, as far as locks tell.
    pub fn examine(path: &str, pool: &Path) -> Result<(ExternalOrigin, Origin)> {
        if !Path::new(path).is_absolute() {
            let message = format!("the external origin's path `{path}` is not absolute");
            return Err(Error::new(ErrorKind::Invalid, message).hint("give it from the root on"));
        }
        for own in ["data", "metadata"] {
            let own = pool.join(own);
            if identity(Path::new(path)).is_some_and(|origin| identity(&own) == Some(origin)) {
                let message = format!("{path} is {}, and a pool cannot stand on itself", own.display());
                return Err(Error::new(ErrorKind::Invalid, message).hint("give a file or device of its own"));
            }
        }
        let disk = open(path)?;
        let size_bytes = disk.size_bytes();
        if !is_size(size_bytes) {
            let whole = size_bytes.max(1).next_multiple_of(SECTOR_BYTES);
            let message = format!(
                "{path} has {size_bytes} bytes: an external origin has a multiple of {SECTOR_BYTES}, not 0"
            );
            return Err(Error::new(ErrorKind::Invalid, message)
                .hint(format!("`truncate -s {whole} {path}` fills it up with zeros")));
        }
        let modified_unix_nanoseconds = modified(&found(&disk)?);
        let origin = ExternalOrigin { path: path.to_owned(), size_bytes, modified_unix_nanoseconds };
        Ok((origin, Origin::new(Arc::new(disk))))
    }

    /// Opens it if it is what it was, or says what has become of it and what to do.
    pub fn open(&self) -> Result<Origin> {
        // A client learns of it, and nothing of the pool has failed.
        let unavailable = |what: &str| {
            Error::new(ErrorKind::Io, format!("external origin {}: {what}", self.path)).hint(format!(
                "bring it back as it was and connect again; if it is elsewhere now, or was changed and is right: uthin \
                 volume set POOL/VOLUME --origin {}",
                self.path
            ))
        };
        let opened = open(&self.path).and_then(|disk| Ok((found(&disk)?, disk)));
        let (found, disk) = opened.map_err(|error| unavailable(error.message()))?;
        match self.difference(disk.size_bytes(), modified(&found)) {
            Some(difference) => Err(unavailable(&difference)),
            None => Ok(Origin::new(Arc::new(disk))),
        }
    }

    /// What is wrong with it, as far as a look from outside tells; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        match std::fs::metadata(&self.path) {
            Err(error) => Some(error.to_string()),
            // Its size is known to who opens it.
            Ok(found) if found.file_type().is_block_device() => self.difference(self.size_bytes, None),
            Ok(found) if found.is_file() => self.difference(found.len(), modified(&found)),
            Ok(_) => Some("it is neither a file nor a block device".to_owned()),
        }
    }

    fn difference(&self, size_bytes: u64, modified_unix_nanoseconds: Option<i64>) -> Option<String> {
        if size_bytes != self.size_bytes {
            return Some(format!("it has {size_bytes} bytes now, and had {}", self.size_bytes));
        }
        let (was, is) = (self.modified_unix_nanoseconds, modified_unix_nanoseconds);
        match (was, is) {
            (Some(was), Some(is)) if was != is => {
                Some("it was modified since a volume was put on it".to_owned())
            }
            (Some(_), Some(_)) | (None, None) => None,
            (Some(_), None) => Some("it was a file and is a device now".to_owned()),
            (None, Some(_)) => Some("it was a device and is a file now".to_owned()),
        }
    }

    /// For users.
    pub fn info(&self) -> OriginInfo {
        OriginInfo { path: self.path.clone(), size_bytes: self.size_bytes, problem: self.problem() }
    }

    /// What is wrong with one that was read from a catalog.
    pub fn check(&self) -> Result<(), String> {
        if !Path::new(&self.path).is_absolute() {
            return Err(format!("the external origin's path `{}` is not absolute", self.path));
        }
        match is_size(self.size_bytes) {
            true => Ok(()),
            false => Err(format!("an external origin cannot have {} bytes", self.size_bytes)),
        }
    }
}

/// Opens the origins of volumes, each once. Who lacks his is told when somebody wants to open the volume; `tell` the log now.
pub fn open_all<'a>(
    entries: impl Iterator<Item = &'a VolumeEntry>,
    tell: &dyn Fn(&VolumeEntry, &Error),
) -> HashMap<VolumeId, Behind> {
    let mut opened: HashMap<&ExternalOrigin, Behind> = HashMap::new();
    let mut behind = HashMap::new();
    for entry in entries {
        let Some(origin) = &entry.external_origin else { continue };
        let known = opened.entry(origin).or_insert_with(|| match origin.open() {
            Ok(origin) => Behind::Origin(origin),
            Err(error) => {
                tell(entry, &error);
                Behind::Unavailable(error)
            }
        });
        behind.insert(entry.id, known.clone());
    }
    behind
}

/// An origin that is to take another's place.
pub(super) struct Moved {
    /// For which volume somebody said so.
    volume: VolumeId,
    /// `None`: the catalog has lost it, and nobody knows who shares it.
    was: Option<ExternalOrigin>,
    is: ExternalOrigin,
    origin: Origin,
    /// The volumes that it has yet to be put behind.
    volumes: Vec<VolumeId>,
}

impl Moved {
    /// Brings it into `entries`, which are to take the place of others in the catalog, and adds those of all who share it.
    pub(super) fn amend(&self, catalog: &Catalog, entries: &mut Vec<VolumeEntry>) {
        let is_theirs = |entry: &&VolumeEntry| match &self.was {
            Some(was) => entry.external_origin.as_ref() == Some(was),
            None => entry.id == self.volume,
        };
        let listed: HashSet<_> = entries.iter().map(|entry| entry.id).collect();
        let others = catalog.volumes.iter().filter(|entry| !listed.contains(&entry.id));
        entries.extend(others.filter(is_theirs).cloned());
        for entry in entries.iter_mut().filter(|entry| is_theirs(&&**entry)) {
            entry.external_origin = Some(self.is.clone());
        }
    }
}

impl Service {
    /// What is at `path` is to take the place of a volume's origin, and of that of all who share it. `WrongState` if it has
    /// none, `Invalid` for another size, `Busy` when a client has one of the volumes open.
    pub(super) fn plan_origin(&self, volume: &VolumeEntry, path: &str) -> Result<Moved> {
        let Some(was) = volume.external_origin.clone() else {
            return self.find_origin_again(volume, path);
        };
        let (is, origin) = ExternalOrigin::examine(path, self.directory())?;
        if is.size_bytes != was.size_bytes {
            let message =
                format!("{path} has {} bytes, and {} had {}", is.size_bytes, was.path, was.size_bytes);
            return Err(
                Error::new(ErrorKind::Invalid, message).hint("give a file or device of the same contents")
            );
        }
        let catalog = self.catalog.read().expect(NO_PANIC);
        let sharers = catalog.volumes.iter().filter(|entry| entry.external_origin.as_ref() == Some(&was));
        let sharers: Vec<_> = sharers.collect();
        sharers.iter().try_for_each(|entry| self.require_no_device_waits(entry))?;
        let volumes: Vec<VolumeId> = sharers.iter().map(|entry| entry.id).collect();
        for found in self.engine_volumes()? {
            if found.openers > 0 && volumes.contains(&found.id) {
                let name = catalog
                    .by_id(found.id)
                    .map_or_else(|| found.id.to_string(), |entry| entry.name.to_string());
                let message = format!("volume `{name}` is in use by {} client(s)", found.openers);
                return Err(Error::new(ErrorKind::Busy, message).hint("disconnect them first"));
            }
        }
        Ok(Moved { volume: volume.id, was: Some(was), is, origin, volumes })
    }

    /// Puts a volume back on its origin, which the catalog has lost. Only what the volume maps tells that it had one.
    fn find_origin_again(&self, volume: &VolumeEntry, path: &str) -> Result<Moved> {
        self.require_no_device_waits(volume)?;
        let (is, origin) = ExternalOrigin::examine(path, self.directory())?;
        let command = Command::SetOrigin { volume: volume.id, origin: origin.clone() };
        self.executor.run(command).map_err(|error| match error.kind() {
            ErrorKind::WrongState => {
                let message = format!("volume `{}` was made without an external origin", volume.name);
                Error::new(ErrorKind::WrongState, message)
                    .hint("make a new one on it: uthin volume create POOL/VOLUME --origin FILE")
            }
            _ => error,
        })?;
        Ok(Moved { volume: volume.id, was: None, is, origin, volumes: Vec::new() })
    }

    /// From here on clients get it; the catalog has it already.
    pub(super) fn put_behind(&self, moved: Moved) {
        for volume in moved.volumes {
            let origin = moved.origin.clone();
            if let Err(error) = self.executor.run(Command::SetOrigin { volume, origin }) {
                tracing::warn!("volume {volume} stays on its origin until the pool is opened again: {error}");
            }
        }
    }

    /// Opens a volume of `pool` for a client. If its external origin could not be had, perhaps it is back.
    pub fn open_volume(&self, pool: &Pool, volume: VolumeId) -> Result<VolumeLease> {
        match pool.open_volume(volume) {
            Err(error) if error.kind() == ErrorKind::Io => {
                self.reopen_origin(volume)?;
                pool.open_volume(volume)
            }
            opened => opened,
        }
    }

    /// Tries once more to have all origins for the want of which volumes are not served; whether one of them is back.
    pub(super) fn reopen_origins(&self) -> Result<bool> {
        let lacking = self.engine_volumes()?.into_iter().filter(|volume| volume.lacks_origin);
        let lacking: HashSet<VolumeId> = lacking.map(|volume| volume.id).collect();
        let entries: Vec<VolumeEntry> = {
            let catalog = self.catalog.read().expect(NO_PANIC);
            catalog.volumes.iter().filter(|entry| lacking.contains(&entry.id)).cloned().collect()
        };
        let behind = open_all(entries.iter(), &|entry, error| {
            tracing::debug!("partial blocks of volume {} cannot be settled: {error}", entry.name);
        });
        let mut is_any_back = false;
        for (volume, behind) in behind {
            if let Behind::Origin(origin) = behind {
                is_any_back |= self.put_back(volume, origin).is_ok();
            }
        }
        Ok(is_any_back)
    }

    /// Tries once more to have the origin of a volume that was not served for the want of it.
    fn reopen_origin(&self, volume: VolumeId) -> Result<()> {
        let known = self
            .catalog
            .read()
            .expect(NO_PANIC)
            .by_id(volume)
            .and_then(|entry| entry.external_origin.clone());
        let Some(known) = known else { return Ok(()) };
        self.put_back(volume, known.open()?)
    }

    fn put_back(&self, volume: VolumeId, origin: Origin) -> Result<()> {
        match self.executor.run(Command::SetOrigin { volume, origin }) {
            // Another client was faster.
            Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
            done => done.map(drop),
        }
    }
}

fn open(path: &str) -> Result<FileDisk> {
    FileDisk::open(Path::new(path), OpenMode::ReadOnly)
}

fn found(disk: &FileDisk) -> Result<Metadata> {
    disk.file()
        .metadata()
        .map_err(|source| Error::io(format!("looking at {}", disk.path().display()), &source))
}

fn is_size(size_bytes: u64) -> bool {
    size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES)
}

/// `None` for a device.
fn modified(found: &Metadata) -> Option<i64> {
    found.is_file().then(|| found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()))
}

/// By which to know a file or device under another name; `None` if there is nothing.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    let is_device = found.file_type().is_block_device();
    Some(if is_device { (0, found.rdev()) } else { (found.dev(), found.ino()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::time::{Duration, UNIX_EPOCH};

    fn file(directory: &tempfile::TempDir, name: &str, size_bytes: u64) -> String {
        let path = directory.path().join(name);
        File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("made");
        path.to_str().expect("text").to_owned()
    }

    #[test]
    fn what_is_examined_can_be_opened_until_it_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = file(&directory, "base", 1536);
        let (known, origin) = ExternalOrigin::examine(&path, directory.path()).expect("a proper origin");
        assert_eq!((known.size_bytes, origin.size_bytes()), (1536, 1536));
        assert_eq!((known.check(), known.problem()), (Ok(()), None));
        assert!(known.open().is_ok(), "readers share it");
        assert!(FileDisk::open(Path::new(&path), OpenMode::ReadWrite).is_err(), "with no writer");

        let says = |known: &ExternalOrigin, what: &str| {
            let error = known.open().expect_err("it is not what it was");
            assert!(error.message().contains(what) && error.message().contains(&path), "{error}");
            assert!(error.next_step().is_some_and(|hint| hint.contains("--origin")), "{error}");
            assert!(known.problem().is_some_and(|problem| problem.contains(what)), "{:?}", known.problem());
        };
        let file = File::options().write(true).open(&path).expect("there");
        let before = file.metadata().and_then(|found| found.modified()).expect("known");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(7)).expect("set");
        says(&known, "modified since");
        file.set_modified(before).expect("set");
        assert!(known.open().is_ok());
        says(&ExternalOrigin { modified_unix_nanoseconds: None, ..known.clone() }, "it was a device");
        file.set_len(2048).expect("set");
        says(&known, "it has 2048 bytes now, and had 1536");
        fs::remove_file(&path).expect("removed");
        says(&known, "o such file");
        fs::create_dir(&path).expect("made");
        assert!(known.open().is_err() && known.problem().is_some());
    }

    #[test]
    fn what_cannot_be_an_origin_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = |path: &str, kind, says: &str| {
            let error = ExternalOrigin::examine(path, directory.path()).expect_err("no origin");
            assert!(error.kind() == kind && error.message().contains(says), "{error}");
        };
        refused("base", ErrorKind::Invalid, "not absolute");
        refused("/nowhere/base", ErrorKind::NotFound, "/nowhere/base");
        refused("/dev/null", ErrorKind::Invalid, "neither a file nor a block device");
        refused(&file(&directory, "empty", 0), ErrorKind::Invalid, "not 0");
        refused(&file(&directory, "odd", 1000), ErrorKind::Invalid, "1000 bytes");
        let data = file(&directory, "data", 1 << 20);
        refused(&data, ErrorKind::Invalid, "cannot stand on itself");
        let link = directory.path().join("link");
        fs::hard_link(&data, &link).expect("linked");
        refused(link.to_str().expect("text"), ErrorKind::Invalid, "cannot stand on itself");
        let written = file(&directory, "written", 512);
        let _writer = FileDisk::open(Path::new(&written), OpenMode::ReadWrite).expect("nobody has it");
        refused(&written, ErrorKind::Busy, "in use");
    }

    #[test]
    fn a_catalog_s_origin_is_checked() {
        let good = ExternalOrigin { path: "/a".into(), size_bytes: 512, modified_unix_nanoseconds: None };
        assert_eq!(good.check(), Ok(()));
        for (path, size_bytes) in [("a", 512), ("", 512), ("/a", 0), ("/a", 513)] {
            let path = path.to_owned();
            assert!(ExternalOrigin { path, size_bytes, ..good.clone() }.check().is_err());
        }
    }
}
