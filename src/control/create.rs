//! Making a pool: all of it or nothing.
//!
//! The files are made in a directory beside the final one, which is then renamed: whoever looks sees no pool or a whole
//! one, also after a crash. (An existing empty directory is filled in place: it may be a mount point.) What fails half-way
//! takes away what it made, and nothing else. A device that seems to hold something is refused.

use super::catalog::{Catalog, CatalogStore};
use super::name::{PoolRef, base_directory};
use super::options::PoolOptions;
use super::pool_dir::PoolDir;
use super::signature;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Geometry, Metadata};
use crate::units::{BlockSize, DataBlock, META_BLOCK_BYTES, META_BLOCKS_LIMIT, SECTOR_BYTES, TransactionId};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Metadata bytes that `auto` plans for each data block. A mapping takes about 20; snapshots that diverge need more.
const AUTO_METADATA_BYTES_PER_BLOCK: u64 = 64;
/// The least that `auto` chooses: room for the mappings of many snapshots of a small pool. It is also the most of which
/// all space is set aside at once.
const AUTO_METADATA_BYTES_MIN: u64 = 64 << 20;
/// `auto` chooses a multiple of this.
const AUTO_METADATA_STEP_BYTES: u64 = 1 << 20;
/// From here on, the first write to a block of a snapshot copies so much that it is worth a word.
const LARGE_BLOCK_BYTES: u64 = 1 << 20;

/// What a pool is to be.
#[derive(Clone, Debug)]
pub struct CreatePool {
    /// Bytes for data; with a data device, all of it if `None`.
    pub size_bytes: Option<u64>,
    /// A device or file to keep data on, instead of a new file.
    pub data: Option<PathBuf>,
    /// A device or file to keep metadata on, instead of a new file.
    pub metadata: Option<PathBuf>,
    /// Size of a data block.
    pub block_size_bytes: u64,
    /// Size of the metadata file; chosen by the pool's size if `None`.
    pub metadata_bytes: Option<u64>,
    /// How it is to be run.
    pub options: PoolOptions,
    /// Use devices whatever they hold.
    pub force: bool,
}

/// What a pool has become.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Created {
    /// [`super::api::SCHEMA`].
    pub schema: &'static str,
    /// The pool's directory, absolute.
    pub path: String,
    /// Size of a data block.
    pub block_size_bytes: u64,
    /// Bytes for data, in whole blocks.
    pub data_bytes: u64,
    /// Bytes for metadata.
    pub metadata_bytes: u64,
    /// What is worth knowing about these.
    pub notes: Vec<String>,
}

/// The metadata's size when the user leaves it to us.
pub fn auto_metadata_bytes(data_blocks: u64) -> u64 {
    let planned = data_blocks.saturating_mul(AUTO_METADATA_BYTES_PER_BLOCK).max(AUTO_METADATA_BYTES_MIN);
    let limit = META_BLOCKS_LIMIT * META_BLOCK_BYTES as u64;
    planned.min(limit).next_multiple_of(AUTO_METADATA_STEP_BYTES).min(limit)
}

/// Makes a pool. `Exists`, `Invalid` for sizes that cannot be, `WrongState` for a device that holds something.
pub fn create(pool: &PoolRef, wanted: &CreatePool) -> Result<Created> {
    let dir = PoolDir::of(pool);
    let block_size = BlockSize::from_bytes(wanted.block_size_bytes).ok_or_else(|| {
        let message = format!("a block size of {} bytes is out of range", wanted.block_size_bytes);
        Error::new(ErrorKind::Invalid, message).hint("64K to 1G in steps of 64K; 64K is the default")
    })?;
    refuse_same(wanted)?;
    let mut notes = Vec::new();
    if block_size.bytes() > LARGE_BLOCK_BYTES {
        notes.push(format!(
            "blocks of {} bytes: the first write to a block that a snapshot shares copies all of it",
            block_size.bytes()
        ));
    }
    let mut staging = Staging::begin(&dir, pool.is_name())?;
    let (data, data_blocks) = make_data(wanted, block_size, &mut staging, &mut notes)
        .map_err(|error| staging.under_final_name(&error, &dir))?;
    let metadata_bytes =
        make_metadata(wanted, Geometry { block_size, data_blocks }, &mut staging, &mut notes)
            .map_err(|error| staging.under_final_name(&error, &dir))?;
    let catalog = staging.at("catalog.json");
    staging.at("catalog.json.new");
    let mut empty = Catalog::empty(TransactionId(0));
    empty.options = wanted.options;
    super::catalog::CatalogFile::at(catalog).save(&empty)?;
    drop(data);
    staging.finish(&dir)?;
    Ok(Created {
        schema: super::api::SCHEMA,
        path: dir.absolute()?.to_string_lossy().into_owned(),
        block_size_bytes: block_size.bytes(),
        data_bytes: data_blocks * block_size.bytes(),
        metadata_bytes,
        notes,
    })
}

/// Data and metadata on one device would overwrite each other.
fn refuse_same(wanted: &CreatePool) -> Result<()> {
    let (Some(data), Some(metadata)) = (&wanted.data, &wanted.metadata) else { return Ok(()) };
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some(if found.rdev() != 0 { (0, found.rdev()) } else { (found.dev(), found.ino()) })
    };
    // What is not there is told of when it is opened.
    let (Some(first), Some(second)) = (identity(data), identity(metadata)) else { return Ok(()) };
    if first != second {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("{} cannot hold both data and metadata", data.display()))
        .hint("leave one of them away: it is then kept in a file of the pool's directory"))
}

/// The data disk, locked, and its number of blocks.
fn make_data(
    wanted: &CreatePool,
    block_size: BlockSize,
    staging: &mut Staging,
    notes: &mut Vec<String>,
) -> Result<(FileDisk, u64)> {
    if let Some(size_bytes) = wanted.size_bytes
        && !size_bytes.is_multiple_of(SECTOR_BYTES)
    {
        let message = format!("a pool cannot have {size_bytes} bytes: sizes are multiples of {SECTOR_BYTES}");
        return Err(Error::new(ErrorKind::Invalid, message)
            .hint(format!("{} would do", size_bytes / SECTOR_BYTES * SECTOR_BYTES)));
    }
    let blocks_in = |size_bytes: u64, notes: &mut Vec<String>| {
        let blocks = block_size.whole_blocks_in(size_bytes);
        if blocks == 0 {
            let message = format!("{size_bytes} bytes hold no block of {} bytes", block_size.bytes());
            return Err(Error::new(ErrorKind::Invalid, message).hint("make the pool larger"));
        }
        if blocks >= DataBlock::LIMIT {
            let message = format!("{size_bytes} bytes are more than {} blocks", DataBlock::LIMIT - 1);
            return Err(Error::new(ErrorKind::Invalid, message).hint("choose a larger --block-size"));
        }
        let rest = size_bytes - blocks * block_size.bytes();
        if rest != 0 {
            notes.push(format!("{rest} bytes at the end stay unused: they are no whole block"));
        }
        Ok(blocks)
    };
    let Some(device) = &wanted.data else {
        let size_bytes = wanted.size_bytes.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "the pool's size is missing")
                .hint("give --size, or --data with a device")
        })?;
        let blocks = blocks_in(size_bytes, notes)?;
        return Ok((staging.file("data", blocks * block_size.bytes())?, blocks));
    };
    let disk = open_device(device)?;
    let size_bytes = wanted.size_bytes.unwrap_or(disk.size_bytes());
    if size_bytes > disk.size_bytes() {
        let message =
            format!("{} has {} bytes, {size_bytes} were asked for", device.display(), disk.size_bytes());
        return Err(Error::new(ErrorKind::Invalid, message).hint("leave --size away to use the whole device"));
    }
    if !wanted.force
        && let Some(content) = signature::known_content(&disk)?
    {
        return Err(holds_something(device, content));
    }
    let blocks = blocks_in(size_bytes, notes)?;
    staging.link("data", device)?;
    Ok((disk, blocks))
}

/// Makes and formats the metadata; its size.
fn make_metadata(
    wanted: &CreatePool,
    geometry: Geometry,
    staging: &mut Staging,
    notes: &mut Vec<String>,
) -> Result<u64> {
    let limit = META_BLOCKS_LIMIT * META_BLOCK_BYTES as u64;
    let disk = match &wanted.metadata {
        None => {
            let size_bytes =
                wanted.metadata_bytes.unwrap_or_else(|| auto_metadata_bytes(geometry.data_blocks));
            let whole = size_bytes / META_BLOCK_BYTES as u64 * META_BLOCK_BYTES as u64;
            if whole > limit {
                let message = format!("{size_bytes} bytes of metadata are too many: {limit} are the most");
                return Err(Error::new(ErrorKind::Invalid, message).hint("leave --metadata-size away"));
            }
            staging.file("metadata", whole)?
        }
        Some(device) => {
            if wanted.metadata_bytes.is_some() {
                let message = "--metadata-size is for a metadata file: a device is used as it is";
                return Err(Error::new(ErrorKind::Invalid, message).hint("leave --metadata-size away"));
            }
            let disk = open_device(device)?;
            if !wanted.force {
                if let Some(content) = signature::known_content(&disk)? {
                    return Err(holds_something(device, content));
                }
                if !signature::begins_with_zeros(&disk)? {
                    return Err(holds_something(device, "something unknown: its first 4 KiB are not zeros"));
                }
            }
            if disk.size_bytes() > limit {
                notes.push(format!(
                    "of the metadata device, {limit} bytes are used: the format can manage no more"
                ));
            }
            staging.link("metadata", device)?;
            // With --force there may be something on it, which a refusal must leave alone.
            staging.blank_device = (!wanted.force).then(|| device.clone());
            disk
        }
    };
    let size_bytes = disk.size_bytes().min(limit);
    Metadata::format(disk, geometry)?;
    Ok(size_bytes)
}

fn open_device(path: &Path) -> Result<FileDisk> {
    FileDisk::open(path, OpenMode::ReadWrite).map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            error.hint("give an existing device or file")
        } else {
            error
        }
    })
}

fn holds_something(device: &Path, content: &str) -> Error {
    Error::new(ErrorKind::WrongState, format!("{} holds {content}", device.display()))
        .hint("if it can go, clear the device with `wipefs -a` first, or give --force")
}

/// What has been made so far; dropped before [`Staging::finish`], it takes all of it away.
struct Staging {
    /// Where the files are made.
    directory: PathBuf,
    /// Whether that is a directory of ours, to be renamed or removed.
    is_ours: bool,
    made: Vec<PathBuf>,
    /// A device that was blank and has (perhaps) been formatted.
    blank_device: Option<PathBuf>,
    finished: bool,
}

impl Staging {
    fn begin(dir: &PoolDir, is_name: bool) -> Result<Self> {
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
    fn at(&mut self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        self.made.push(path.clone());
        path
    }

    fn file(&mut self, name: &str, size_bytes: u64) -> Result<FileDisk> {
        let path = self.directory.join(name);
        let disk = FileDisk::create(&path, size_bytes)?;
        self.made.push(path.clone());
        // Volumes are as private as disks are.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| Error::io(format!("making {} private", path.display()), &source))?;
        Ok(disk)
    }

    fn link(&mut self, name: &str, device: &Path) -> Result<()> {
        let context = |source| Error::io(format!("linking to {}", device.display()), &source);
        // The name that the user gave stays, by which a stable one under /dev/disk/ stays stable.
        let absolute = std::path::absolute(device).map_err(context)?;
        let path = self.directory.join(name);
        std::os::unix::fs::symlink(absolute, &path).map_err(context)?;
        self.made.push(path);
        Ok(())
    }

    /// The error, with the files' names as they would have been: the temporary directory is gone when it is read.
    fn under_final_name(&self, error: &Error, dir: &PoolDir) -> Error {
        let [temporary, last] = [&self.directory, dir.path()].map(|path| path.display().to_string());
        let told = Error::new(error.kind(), error.message().replace(&temporary, &last));
        error.next_step().map_or(told.clone(), |hint| told.hint(hint))
    }

    fn finish(mut self, dir: &PoolDir) -> Result<()> {
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
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
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
    use super::*;

    #[test]
    fn auto_metadata_is_generous_and_within_the_format() {
        assert_eq!(auto_metadata_bytes(1), 64 << 20);
        assert_eq!(auto_metadata_bytes(1 << 20), 64 << 20);
        assert_eq!(auto_metadata_bytes(1 << 24), 1 << 30);
        assert_eq!(auto_metadata_bytes((1 << 24) + 1), (1 << 30) + (1 << 20));
        let limit = META_BLOCKS_LIMIT * META_BLOCK_BYTES as u64;
        assert_eq!(auto_metadata_bytes(DataBlock::LIMIT - 1), limit);
        assert_eq!(auto_metadata_bytes(u64::MAX), limit);
    }

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
