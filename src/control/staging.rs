//! A pool's directory in the making: all of it or nothing.
//!
//! The files are made in a directory beside the final one, which is then renamed: whoever looks sees no pool or a whole
//! one, also after a crash. (An existing empty directory is filled in place: it may be a mount point.) What fails half-way
//! takes away what it made, and nothing else.

use super::name::base_directory;
use super::pool_dir::PoolDir;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::units::META_BLOCK_BYTES;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What has been made so far; dropped before [`Staging::finish`], it takes all of it away.
pub(super) struct Staging {
    /// Where the files are made.
    directory: PathBuf,
    /// Whether that is a directory of ours, to be renamed or removed.
    is_ours: bool,
    made: Vec<PathBuf>,
    /// A device that was blank and has (perhaps) been formatted.
    pub(super) blank_device: Option<PathBuf>,
    finished: bool,
}

impl Staging {
    pub(super) fn begin(dir: &PoolDir, is_name: bool) -> Result<Self> {
        let target = dir.path();
        let (directory, is_ours) = match fs::read_dir(target) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(exists(dir));
                }
                (target.to_owned(), false)
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                (make_beside(target, is_name)?, true)
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotADirectory => return Err(exists(dir)),
            Err(source) => return Err(Error::io(format!("looking at {}", target.display()), &source)),
        };
        Ok(Staging { directory, is_ours, made: Vec::new(), blank_device: None, finished: false })
    }

    /// A path for the file `name`, which goes if the making fails.
    pub(super) fn at(&mut self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        self.made.push(path.clone());
        path
    }

    pub(super) fn file(&mut self, name: &str, size_bytes: u64) -> Result<FileDisk> {
        let path = self.directory.join(name);
        let disk = FileDisk::create(&path, size_bytes)?;
        self.made.push(path.clone());
        // Volumes are as private as disks are.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| Error::io(format!("making {} private", path.display()), &source))?;
        Ok(disk)
    }

    pub(super) fn link(&mut self, name: &str, device: &Path) -> Result<()> {
        let context = |source| Error::io(format!("linking to {}", device.display()), &source);
        // The name that the user gave stays, by which a stable one under /dev/disk/ stays stable; the way to it does not, which may lead
        // through directories that go.
        let absolute = match (device.parent(), device.file_name()) {
            (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
                fs::canonicalize(parent).map(|parent| parent.join(name))
            }
            _ => std::path::absolute(device),
        };
        let absolute = absolute.map_err(context)?;
        let path = self.directory.join(name);
        std::os::unix::fs::symlink(absolute, &path).map_err(context)?;
        self.made.push(path);
        Ok(())
    }

    /// The error, with the files' names as they would have been: the temporary directory is gone when it is read.
    pub(super) fn under_final_name(&self, error: &Error, dir: &PoolDir) -> Error {
        let [temporary, last] = [&self.directory, dir.path()].map(|path| path.display().to_string());
        let told = Error::new(error.kind(), error.message().replace(&temporary, &last));
        error.next_step().map_or(told.clone(), |hint| told.hint(hint))
    }

    pub(super) fn finish(mut self, dir: &PoolDir) -> Result<()> {
        let sync = |path: &Path| File::open(path).and_then(|directory| directory.sync_all());
        let context = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists => exists(dir),
            _ => Error::io(format!("making {}", dir.path().display()), &source),
        };
        sync(&self.directory).map_err(context)?;
        if self.is_ours {
            fs::rename(&self.directory, dir.path()).map_err(context)?;
        }
        // The pool is there, whatever becomes of the rest.
        self.finished = true;
        sync(parent_of(dir.path())).map_err(context)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // As far as it goes: the error that led here is the one to tell.
        for path in &self.made {
            let _ = fs::remove_file(path);
        }
        if self.is_ours {
            let _ = fs::remove_dir(&self.directory);
        }
        if let Some(device) = &self.blank_device
            && let Ok(disk) = FileDisk::open(device, OpenMode::ReadWrite)
        {
            let _ = disk.write_at(0, &[0; META_BLOCK_BYTES]).and_then(|()| disk.flush());
        }
    }
}

fn exists(dir: &PoolDir) -> Error {
    let what = if dir.require().is_ok() {
        "is a pool already"
    } else {
        "exists already and is not an empty directory"
    };
    Error::new(ErrorKind::Exists, format!("{} {what}", dir.path().display()))
        .hint("choose another place for the pool")
}

/// A fresh directory in the same place as `target`, and so on the same filesystem.
fn make_beside(target: &Path, is_name: bool) -> Result<PathBuf> {
    let parent = parent_of(target);
    if is_name {
        let base = base_directory();
        fs::create_dir_all(&base).map_err(|source| {
            Error::io(format!("making {}", base.display()), &source)
                .hint("set UTHIN_DIR, or give a path such as ./pool")
        })?;
    }
    let name = target.file_name().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("{} is no place for a pool", target.display()))
    })?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".new-{}", std::process::id()));
    let temporary = parent.join(temporary);
    match fs::create_dir(&temporary) {
        Ok(()) => Ok(temporary),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound && !parent.exists() => {
            Err(Error::new(ErrorKind::NotFound, format!("the directory {} does not exist", parent.display()))
                .hint("make it first"))
        }
        Err(source) => Err(Error::io(format!("making {}", temporary.display()), &source)),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::super::name::PoolRef;
    use super::*;

    fn staging_in(directory: &tempfile::TempDir, name: &str) -> (PoolDir, Result<Staging>) {
        let pool = PoolRef::parse(directory.path().join(name).to_str().expect("text")).expect("a path");
        let dir = PoolDir::of(&pool);
        let staging = Staging::begin(&dir, false);
        (dir, staging)
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }

    #[test]
    fn what_fails_half_way_takes_away_what_it_made() {
        let place = tempfile::tempdir().expect("a directory");
        let device = place.path().join("device");
        fs::write(&device, vec![7; 8192]).expect("written");
        let (_, staging) = staging_in(&place, "p");
        let mut staging = staging.expect("nothing is there");
        staging.file("data", 1 << 20).expect("made");
        staging.link("metadata", &device).expect("linked");
        staging.blank_device = Some(device.clone());
        drop(staging);
        assert_eq!(names_in(place.path()), ["device"]);
        let bytes = fs::read(&device).expect("it is still there");
        assert!(bytes[..4096].iter().all(|byte| *byte == 0), "it is no pool's metadata any more");
        assert!(bytes[4096..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn an_empty_directory_stays_and_what_somebody_else_puts_there_too() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join("p")).expect("made");
        let (_, staging) = staging_in(&place, "p");
        let mut staging = staging.expect("it is empty");
        staging.file("data", 1 << 20).expect("made");
        fs::write(place.path().join("p/mine"), "mine").expect("written");
        drop(staging);
        assert_eq!(names_in(&place.path().join("p")), ["mine"]);
    }

    #[test]
    fn of_two_that_make_the_same_pool_one_gets_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (dir, first) = staging_in(&place, "p");
        let mut first = first.expect("nothing is there");
        // Somebody else was faster.
        fs::create_dir(place.path().join("p")).expect("made");
        fs::write(place.path().join("p/metadata"), "theirs").expect("written");
        first.file("data", 1 << 20).expect("made");
        assert_eq!(first.finish(&dir).map_err(|error| error.kind()), Err(ErrorKind::Exists));
        assert_eq!(names_in(place.path()), ["p"]);
        assert_eq!(names_in(&place.path().join("p")), ["metadata"]);
    }
}
