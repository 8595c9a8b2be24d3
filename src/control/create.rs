//! Making a pool, all of it or nothing ([`super::staging`]). A device that seems to hold something is refused.

use super::catalog::Catalog;
use super::catalog_file::CatalogFile;
use super::journal;
use super::name::PoolRef;
use super::options::PoolOptions;
use super::pool_dir::PoolDir;
use super::signature;
use super::staging::Staging;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Geometry, Metadata};
use crate::units::{BlockSize, DataBlock, META_BLOCK_BYTES, META_BLOCKS_LIMIT, SECTOR_BYTES, TransactionId};
use rustix::fs::{major, minor};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
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
    /// A device or file to keep the journal on, instead of a new file, if there is to be one.
    pub journal: Option<PathBuf>,
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
    refuse_same(&[
        ("data", wanted.data.as_deref()),
        ("metadata", wanted.metadata.as_deref()),
        ("a journal", wanted.journal.as_deref()),
    ])?;
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
    CatalogFile::at(catalog).save(&empty)?;
    // Last: what is written there stays when something else fails.
    if let Some(device) = &wanted.journal {
        journal::link(&mut staging, device, wanted.force)?;
    }
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

/// Two of them on one device would overwrite each other. Each has what it is for, and its device if it is to have one.
pub(super) fn refuse_same(devices: &[(&str, Option<&Path>)]) -> Result<()> {
    let mut seen: Vec<(&str, Region)> = Vec::new();
    for (purpose, device) in devices {
        // What is not there is told of when it is opened.
        let region = |device| Some((device, Region::of(device, Path::new("/sys/dev/block"))?));
        let Some((device, region)) = device.and_then(region) else { continue };
        if let Some((other, _)) = seen.iter().find(|(_, other)| other.meets(&region)) {
            let what = format!("{} cannot hold both {other} and {purpose}", device.display());
            return Err(Error::new(ErrorKind::Invalid, what)
                .hint("leave one of them away: it is then kept in a file of the pool's directory"));
        }
        seen.push((*purpose, region));
    }
    Ok(())
}

/// Where a device's bytes are: a loop device has none of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Region {
    /// Device and number of a file, or 0 and the number of a device.
    holder: (u64, u64),
    bytes: Range<u64>,
}

impl Region {
    /// `None` if it cannot be looked at. `devices` is the kernel's directory of block devices.
    fn of(path: &Path, devices: &Path) -> Option<Region> {
        let holder_of = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some(if found.rdev() != 0 { (0, found.rdev()) } else { (found.dev(), found.ino()) })
        };
        let mut region = Region { holder: holder_of(path)?, bytes: 0..u64::MAX };
        // A loop device may be on another one, but hardly on so many.
        for _ in 0..8 {
            let (0, device) = region.holder else { break };
            let about = devices.join(format!("{}:{}/loop", major(device), minor(device)));
            let told = |what: &str| fs::read_to_string(about.join(what)).ok();
            let number = |what| told(what).and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
            let backing = told("backing_file").and_then(|path| holder_of(Path::new(path.trim_end())));
            let Some(holder) = backing else { break };
            let (offset, limit) = (number("offset"), number("sizelimit"));
            let end = if limit > 0 { region.bytes.end.min(limit) } else { region.bytes.end };
            region = Region { holder, bytes: region.bytes.start + offset..end.saturating_add(offset) };
        }
        Some(region)
    }

    fn meets(&self, other: &Region) -> bool {
        self.holder == other.holder
            && self.bytes.start.max(other.bytes.start) < self.bytes.end.min(other.bytes.end)
    }
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
        return Err(
            Error::new(ErrorKind::Invalid, message).hint(super::service::size_that_would_do(size_bytes))
        );
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
                if !signature::begins_with_zeros(&disk, 4096)? {
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

/// A device or file that is to be a part of a pool in the making. `WrongState` for a file that another pool has in its directory: those of
/// a new one are all zeros, as if nobody needed them.
pub(super) fn open_device(path: &Path) -> Result<FileDisk> {
    if let Some(pool) = PoolDir::around(path) {
        let message = format!("{} belongs to the pool {}", path.display(), pool.display());
        return Err(Error::new(ErrorKind::WrongState, message)
            .hint("name another one; `uthin pool adopt` makes a new directory around an existing pool"));
    }
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
    #[test]
    fn a_loop_device_is_where_its_file_is() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("file");
        fs::write(&file, "").expect("written");
        // Any device will do: what is told of it is ours.
        let device = Path::new("/dev/null");
        let number = fs::metadata(device).expect("there").rdev();
        let about = place.path().join(format!("{}:{}/loop", major(number), minor(number)));
        fs::create_dir_all(&about).expect("made");
        let region = |offset: &str, sizelimit: &str| {
            for (name, text) in [
                ("backing_file", file.to_str().expect("UTF-8")),
                ("offset", offset),
                ("sizelimit", sizelimit),
            ] {
                fs::write(about.join(name), format!("{text}\n")).expect("written");
            }
            Region::of(device, place.path()).expect("it can be looked at")
        };
        let of_file = Region::of(&file, place.path()).expect("it can be looked at");
        assert!(region("0", "0").meets(&of_file) && region("4096", "0").meets(&of_file));
        assert!(!region("0", "4096").meets(&region("4096", "4096")));
        assert!(
            region("0", "4097").meets(&region("4096", "4096"))
                && region("8192", "0").meets(&region("0", "0"))
        );
        fs::remove_dir_all(&about).expect("removed");
        let itself = Region::of(device, place.path()).expect("it can be looked at");
        assert!(!itself.meets(&of_file) && itself.meets(&itself));
    }
}
