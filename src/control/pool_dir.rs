//! A pool's directory: which file is what, and how the pool's lock is taken.
//!
//! | name | what it is |
//! | --- | --- |
//! | `metadata` | dm-thin metadata: a file with its space set aside, or a symbolic link to a device |
//! | `data` | the data blocks: a sparse file, or a symbolic link to a device |
//! | `catalog.json` | names and sizes ([`super::catalog`]); `catalog.json.bak` keeps what a stale one was replaced by |
//! | `catalog.log` | what has changed since, while a daemon runs ([`super::catalog_log`]) |
//! | `catalog.json.new` | the space for the next catalog ([`super::replace`]) |
//! | `journal` | changes since the last commit, if the pool keeps a journal ([`super::journal`]): a file, or a symbolic link to a device |
//! | `devices.json` | block devices that outlive their daemon, if there are any ([`super::lasting_devices`]); `devices.json.new` while it is written |
//! | `control.sock` | the daemon's control socket, while one runs |
//! | `nbd.sock` | where it serves NBD unless told otherwise |
//! | `dev` | links to the volumes' block devices, while there are any |
//!
//! The lock on `metadata` is the pool's: who holds it may write the other files. `data` is locked too, so that a device
//! is not in two pools. Sockets in a directory whose lock can be had are left-overs of a daemon that was killed.

use super::catalog_file::CatalogFile;
use super::name::PoolRef;
use crate::disk::{FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for a lock that somebody holds: commands that open the pool themselves are through sooner.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The longest path that a socket's address has room for.
pub const SOCKET_PATH_BYTES_LIMIT: usize = 107;

/// The directory of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolDir {
    path: PathBuf,
    shown: String,
}

/// The disks of a pool, open and locked.
pub struct PoolDisks {
    /// dm-thin metadata.
    pub metadata: FileDisk,
    /// Data blocks.
    pub data: FileDisk,
}

impl PoolDir {
    /// The pool that a user names; whether it exists is not looked at.
    pub fn of(pool: &PoolRef) -> Self {
        PoolDir { path: pool.path().to_owned(), shown: pool.text().to_owned() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pool as the user wrote it, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The directory with no symbolic link and no `..` in it.
    pub fn absolute(&self) -> Result<PathBuf> {
        self.path
            .canonicalize()
            .map_err(|source| Error::io(format!("looking at {}", self.path.display()), &source))
    }

    /// The directory of the pool that this file belongs to, if it lies in one.
    pub(super) fn around(file: &Path) -> Option<PathBuf> {
        // It, and what it leads to: a pool's parts may be links.
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let by_name = parent.canonicalize().ok();
        let by_name = by_name.zip(file.file_name()).map(|(parent, name)| parent.join(name));
        [by_name, file.canonicalize().ok()].into_iter().flatten().find_map(|file| {
            let dir = PoolDir { path: file.parent()?.to_owned(), shown: String::new() };
            let is_part = [dir.metadata(), dir.data(), dir.journal()].contains(&file);
            (is_part && dir.catalog().exists()).then_some(dir.path)
        })
    }

    /// The metadata's place.
    pub fn metadata(&self) -> PathBuf {
        self.path.join("metadata")
    }

    /// The data's place.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The journal's place; there may be none.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The list of the block devices that outlive their daemon.
    pub fn devices(&self) -> PathBuf {
        self.path.join("devices.json")
    }

    /// The control socket's place.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The NBD socket's place, unless the user chose another.
    pub fn nbd_socket(&self) -> PathBuf {
        self.path.join("nbd.sock")
    }

    /// Where the links to block devices are.
    pub fn block_devices(&self) -> PathBuf {
        self.path.join("dev")
    }

    /// The catalog.
    pub fn catalog(&self) -> CatalogFile {
        CatalogFile::at(self.path.join("catalog.json"))
    }

    /// Whether there is a pool: `NotFound` or `WrongState` with what is there instead.
    pub fn require(&self) -> Result<()> {
        let not_found = |what: String| Error::new(ErrorKind::NotFound, what);
        match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::WrongState,
                    format!("{} is not a pool: it is not a directory", self.path.display()),
                )
                .hint("name the directory that holds the pool's files"));
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                let error = not_found(format!(
                    "there is no pool `{}`: {} does not exist",
                    self.shown,
                    self.path.display()
                ));
                if let Some(around) = self.path.parent().filter(|around| around.join("catalog.json").exists())
                {
                    let hint = format!(
                        "{} is a pool, and may have a volume of that name: write the pool",
                        around.display()
                    );
                    return Err(error.hint(hint));
                }
                let here = !self.shown.contains('/') && Path::new(&self.shown).join("metadata").exists();
                return Err(match here {
                    true => error.hint(format!("for the pool in this directory write ./{}", self.shown)),
                    false => error.hint(format!("`uthin pool create {} --size SIZE` makes one", self.shown)),
                });
            }
            Err(source) => return Err(Error::io(format!("looking at {}", self.path.display()), &source)),
        }
        for (path, what) in [(self.metadata(), "metadata"), (self.data(), "data")] {
            match std::fs::metadata(&path) {
                Ok(found) if found.is_dir() => {
                    let message = format!("{} is not a pool: {what} is a directory", self.path.display());
                    return Err(Error::new(ErrorKind::WrongState, message).hint(format!(
                        "a pool's directory has files (or links) `metadata` and `data`; put back `{what}`"
                    )));
                }
                Ok(_) => {}
                Err(source) if is_not_there(&source) => {
                    let is_link = std::fs::symlink_metadata(&path).is_ok();
                    let problem = match source.kind() {
                        std::io::ErrorKind::NotFound if is_link => "the device behind it is missing",
                        std::io::ErrorKind::NotFound => "there is no such file",
                        _ => "it is a link that leads back to itself",
                    };
                    return Err(not_found(format!(
                        "{} is not a pool: {what}: {problem}",
                        self.path.display()
                    ))
                    .hint(format!(
                        "a pool's directory has files (or links) `metadata` and `data`; put back `{what}`"
                    )));
                }
                Err(source) => return Err(Error::io(format!("looking at {}", path.display()), &source)),
            }
        }
        Ok(())
    }

    /// Opens and locks both disks, with a moment's patience for whoever has them. `Busy` names that process.
    pub fn open_disks(&self, mode: OpenMode) -> Result<PoolDisks> {
        self.require()?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            // Always in this order, so that of two processes one gets both.
            let disks = FileDisk::open(&self.metadata(), mode)
                .and_then(|metadata| Ok(PoolDisks { metadata, data: FileDisk::open(&self.data(), mode)? }));
            match disks {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.context(format!("pool `{}`", self.shown))),
                Ok(disks) => return Ok(disks),
            }
        }
    }
}

/// Also a link to itself leads nowhere.
fn is_not_there(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// A path to the socket `path` that fits into a socket address. For a long one that is a way through the open directory,
/// which the caller keeps for as long as it uses the path.
pub(super) fn short_socket_path(path: &Path) -> std::io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_LIMIT {
        return Ok((path.to_owned(), None));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = File::open(parent)?;
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((short, Some(directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_at(path: &Path) -> PoolDir {
        PoolDir::of(&PoolRef::parse(path.to_str().expect("text")).expect("a path"))
    }

    #[test]
    fn what_is_no_pool_is_told_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let problem = |path: &Path| pool_at(path).require().expect_err("no pool");
        let error = problem(&directory.path().join("none"));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.next_step().is_some_and(|hint| hint.contains("pool create")));
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert_eq!(problem(&file).kind(), ErrorKind::WrongState);
        assert!(problem(directory.path()).message().contains("metadata: there is no such file"));
        std::fs::write(directory.path().join("metadata"), "").expect("written");
        std::os::unix::fs::symlink("/nowhere/disk", directory.path().join("data")).expect("linked");
        assert!(problem(directory.path()).message().contains("data: the device behind it is missing"));
        std::fs::remove_file(directory.path().join("data")).expect("there");
        std::os::unix::fs::symlink("data", directory.path().join("data")).expect("linked");
        assert!(problem(directory.path()).message().contains("data: it is a link that leads back to itself"));
        std::fs::remove_file(directory.path().join("data")).expect("there");
        std::fs::create_dir(directory.path().join("data")).expect("made");
        let error = problem(directory.path());
        assert_eq!(
            (error.kind(), error.message().contains("data is a directory")),
            (ErrorKind::WrongState, true)
        );
    }

    #[test]
    fn a_socket_with_a_long_path_can_be_used() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).expect("made");
        let socket = deep.join("control.sock");
        assert!(UnixListener::bind(&socket).is_err(), "the path is too long");
        let (path, guard) = short_socket_path(&socket).expect("the directory opens");
        let _listener = UnixListener::bind(&path).expect("bound");
        drop(guard);
        assert!(socket.exists());
        let (path, _guard) = short_socket_path(&socket).expect("the directory opens");
        UnixStream::connect(path).expect("connected");
    }
}
