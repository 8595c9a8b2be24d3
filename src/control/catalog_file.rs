//! The files of a catalog: `catalog.json`, the readable whole, and `catalog.log`, the changes since.
//!
//! What must hold:
//!
//! - `catalog.json` is replaced as a whole ([`super::replace`]): a crash leaves the old one or the new one.
//! - It says whether it goes on in a log ([`super::catalog_log`]), and in which. So a log means nothing as soon as another whole is
//!   in its place, and none of its lines is written before the whole that names it is durable.
//! - The log is never written without the space for the whole that it leads to: on a filesystem that gets full, volumes can be
//!   deleted, and nothing else is in the way of it.
//! - Whoever opens the pool for changing it begins with a whole that says everything. So does who ends clean.
//! - After an error of a log, the next change writes the whole: what is on the disk in the meantime, with the change that failed or
//!   without, fits the metadata.
//!
//! A whole is as large as there are volumes, and is written again after as many bytes of log: on the average a change costs no
//! more than some times its own size.

use super::catalog::{Catalog, VolumeEntry};
use super::catalog_log::{Durability, Log, next_generation, replay, wrong_log};
use super::change::Change;
use super::replace;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// No file of a catalog is larger than this: 2^24 volumes do not come to it. Keeps a wrong file from eating all memory.
const FILE_BYTES_LIMIT: u64 = 8 << 30;

/// The least space of a log: some thousand changes.
const LOG_BYTES_MIN: u64 = 256 * 1024;

/// Where a catalog is kept: files, or memory in tests of crashes.
pub trait CatalogStore: Send + Sync {
    /// Keeps the changes of `catalog`, all or none, durably unless it may wait. After an error they are kept or not; then
    /// what is kept next takes the place of it.
    fn keep(&self, catalog: &Catalog, changes: &[Change], durability: Durability) -> Result<()>;

    /// The end, with that catalog: sees to it that one file says everything.
    fn finish(&self, catalog: &Catalog) -> Result<()>;
}

/// What was kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// The catalog.
    pub catalog: Catalog,
    /// Changes of it that are in a log: it was not closed clean.
    pub changes_in_log: Option<u64>,
}

/// The catalog of a pool directory. Whoever writes holds the pool's lock. As a store it replaces the file for every change, as
/// a command does well that makes one.
#[derive(Clone)]
pub struct CatalogFile {
    path: PathBuf,
}

impl CatalogFile {
    /// The file at `path`, which need not exist.
    pub fn at(path: PathBuf) -> Self {
        CatalogFile { path }
    }

    /// Device and inode of the directory that it is in.
    fn directory(&self) -> std::io::Result<(u64, u64)> {
        let found = std::fs::metadata(self.path.parent().unwrap_or(&self.path))?;
        Ok((found.dev(), found.ino()))
    }

    /// Where the changes since it was written are.
    fn log_path(&self) -> PathBuf {
        self.path.with_extension("log")
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// What is kept; `None` if there is no file. Writes nothing.
    pub fn load(&self) -> Result<Option<Loaded>> {
        let bytes = match read_limited(&self.path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::io(format!("reading {}", self.path.display()), &source).hint(
                    "the file holds the volumes' names and sizes: restore it, or move what is there away, and the volumes \
                     appear by their numbers",
                ));
            }
        };
        let mut catalog = Catalog::parse(&bytes, &self.path)?;
        let Some(generation) = catalog.take_log() else {
            return Ok(Some(Loaded { catalog, changes_in_log: None }));
        };
        let path = self.log_path();
        let bytes = read_limited(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                wrong_log(&path, "catalog.json goes on there, and there is no such file")
            }
            _ => Error::io(format!("reading {}", path.display()), &source)
                .hint("the file holds the last changes of the volumes' names and sizes: restore it"),
        })?;
        let changes = replay(&bytes, generation, &mut catalog).map_err(|what| wrong_log(&path, &what))?;
        Ok(Some(Loaded { catalog, changes_in_log: Some(changes) }))
    }

    /// Writes the whole, which then says everything. After an error the old or the new one is there.
    pub fn save(&self, catalog: &Catalog) -> Result<()> {
        replace::replace(&self.path, &catalog.to_bytes())?;
        // It means nothing any more; whoever looks into the directory should not have to know.
        match std::fs::remove_file(self.log_path()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("removing {}: {source}", self.log_path().display());
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    /// Sees to it that the next [`CatalogFile::save`] finds its space, also on a filesystem that is full by then.
    pub fn keep_reserve(&self) -> Result<()> {
        replace::keep_reserve(&self.path)
    }

    /// Writes `catalog.json.bak`: the catalog that is about to be replaced, with the volumes that are dropped from it and
    /// those that earlier backups had listed as lost.
    pub fn save_backup(&self, replaced: &Catalog, lost: &[VolumeEntry]) -> Result<()> {
        let path = self.path.with_extension("json.bak");
        let mut all_lost: Vec<VolumeEntry> = read_limited(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Backup>(&bytes).ok())
            .map_or_else(Vec::new, |earlier| earlier.lost);
        all_lost.extend(lost.iter().filter(|entry| !all_lost.contains(entry)).cloned().collect::<Vec<_>>());
        let backup = Backup { replaced: replaced.clone(), lost: all_lost };
        let bytes = serde_json::to_vec_pretty(&backup).expect("a catalog has nothing that JSON cannot hold");
        replace::replace_plainly(&path, &bytes)
    }
}

/// What `catalog.json.bak` holds.
#[derive(Serialize, Deserialize)]
struct Backup {
    replaced: Catalog,
    lost: Vec<VolumeEntry>,
}

impl CatalogStore for CatalogFile {
    fn keep(&self, catalog: &Catalog, changes: &[Change], _: Durability) -> Result<()> {
        self.save(&changed(catalog, changes))
    }

    fn finish(&self, _: &Catalog) -> Result<()> {
        Ok(())
    }
}

fn changed(catalog: &Catalog, changes: &[Change]) -> Catalog {
    let mut catalog = catalog.clone();
    for change in changes {
        catalog.apply(change).expect("changes of a catalog are planned by what is in it");
    }
    catalog
}

/// The catalog of a pool directory for who makes many changes.
pub struct LoggedCatalog {
    file: CatalogFile,
    /// Device and inode of the directory that it is in, if they could be had.
    directory: Option<(u64, u64)>,
    log_bytes_min: u64,
    state: Mutex<State>,
}

/// What the file on disk is.
enum State {
    /// It says everything.
    Whole,
    /// It goes on in a log.
    Log(Open),
    /// A log has failed, or the beginning of one.
    Unknown,
}

/// A log, and the space for the whole that it leads to.
struct Open {
    log: Log,
    /// The whole has no more bytes than this,
    whole_bytes: u64,
    /// and so many have their space.
    reserved_bytes: u64,
}

impl LoggedCatalog {
    /// Of a file that has been saved.
    pub fn new(file: CatalogFile) -> Self {
        let directory = file.directory().ok();
        LoggedCatalog { file, directory, log_bytes_min: LOG_BYTES_MIN, state: Mutex::new(State::Whole) }
    }

    /// `WrongState` if the directory has been moved away: what is in its place now may be another pool, whose catalog is not ours to write.
    fn require_directory(&self) -> Result<()> {
        if self.directory.is_none() || self.file.directory().ok() == self.directory {
            return Ok(());
        }
        let place = self.file.path.parent().unwrap_or(&self.file.path).display();
        Err(Error::new(ErrorKind::WrongState, format!("{place} is not the directory that this daemon has opened"))
            .hint("the pool's directory was moved while it was served: move it back, or end the daemon and serve the pool where it is now"))
    }

    /// Writes the whole, and a log to go on in; without one, if there cannot be one.
    fn begin(&self, catalog: Catalog) -> Result<State> {
        let path = self.file.log_path();
        let generation = next_generation(&path);
        let catalog = catalog.going_on_in(Some(generation));
        let bytes = catalog.to_bytes();
        let whole_bytes = bytes.len() as u64;
        match Log::begin(&path, generation, whole_bytes.max(self.log_bytes_min)) {
            Ok(log) => {
                replace::replace(&self.file.path, &bytes)?;
                Ok(State::Log(Open { log, whole_bytes, reserved_bytes: whole_bytes }))
            }
            Err(source) => {
                tracing::warn!("{}: {source}: changes take longer without it", path.display());
                replace::replace(&self.file.path, &catalog.going_on_in(None).to_bytes())?;
                Ok(State::Whole)
            }
        }
    }
}

impl Open {
    /// Space for the whole as it is after the changes.
    fn reserve(&mut self, file: &CatalogFile, changes: &[Change]) -> Result<()> {
        let whole_bytes = self.whole_bytes + changes.iter().map(Change::growth_bytes).sum::<u64>();
        if whole_bytes > self.reserved_bytes {
            // A good deal at once, or what it takes.
            let plenty = whole_bytes + (whole_bytes / 8).max(LOG_BYTES_MIN);
            self.reserved_bytes = match replace::reserve_for(&file.path, plenty) {
                Ok(()) => plenty,
                Err(_) => replace::reserve_for(&file.path, whole_bytes).map(|()| whole_bytes)?,
            };
        }
        self.whole_bytes = whole_bytes;
        Ok(())
    }
}

impl CatalogStore for LoggedCatalog {
    fn keep(&self, catalog: &Catalog, changes: &[Change], durability: Durability) -> Result<()> {
        self.require_directory()?;
        let mut state = self.state.lock().expect("nobody panics while holding the log");
        if let State::Log(open) = &mut *state
            && let Some(line) = open.log.line(changes)
        {
            open.reserve(&self.file, changes)?;
            let State::Log(Open { log, whole_bytes, reserved_bytes }) =
                std::mem::replace(&mut *state, State::Unknown)
            else {
                unreachable!("it has just been looked at")
            };
            let log = log.append(&line, durability).map_err(|source| {
                Error::io(format!("writing {}", self.file.log_path().display()), &source)
                    .hint("find out about the disk: with the next change, catalog.json is written anew")
            })?;
            *state = State::Log(Open { log, whole_bytes, reserved_bytes });
            return Ok(());
        }
        *state = State::Unknown;
        *state = self.begin(changed(catalog, changes))?;
        Ok(())
    }

    fn finish(&self, catalog: &Catalog) -> Result<()> {
        let mut state = self.state.lock().expect("nobody panics while holding the log");
        if !matches!(*state, State::Whole) {
            // Where it is now, it goes on in its log.
            self.require_directory()?;
            self.file.save(catalog)?;
            *state = State::Whole;
        }
        Ok(())
    }
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    if file.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut bytes)? as u64 > FILE_BYTES_LIMIT {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "catalog_file_tests.rs"]
mod tests;
