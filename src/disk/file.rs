//! Files and block devices as disks: O_DIRECT where the filesystem has it, an exclusive lock, hole punching.
//!
//! - What lies past the size that a file had when it was opened, or was [grown](Disk::grow) to, is `UnexpectedEof`. If
//!   somebody else truncates it, so is what lies past its end for who reads (never zeros), and every flush fails from then on.
//! - With direct I/O, offsets and lengths are multiples of 512 ([`FileDisk::SECTOR_BYTES`]); others are `InvalidInput`.
//!   Memory may lie anywhere: what is not aligned goes through a buffer that is.
//! - One process writes at a time, or several read ([`super::lock`]). A block device is opened exclusively as well,
//!   which keeps out filesystems and device-mapper.

use super::lock::{Patience, lock, retry};
use super::{AlignedBuffer, Disk, ioctl};
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most that one system call moves through a bounce buffer.
const BOUNCE_BYTES: usize = 1 << 20;

/// How a [`FileDisk`] is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Nothing is written, a shared lock is taken.
    ReadOnly,
    /// Nothing is written, and no lock is taken: others may be writing.
    ReadBeside,
    /// An exclusive lock is taken.
    ReadWrite,
}

/// An open, locked file or block device.
pub struct FileDisk {
    file: File,
    path: PathBuf,
    size_bytes: AtomicU64,
    is_device: bool,
    is_direct: bool,
}

impl FileDisk {
    /// What offsets and lengths are multiples of.
    pub const SECTOR_BYTES: usize = 512;

    /// Opens and locks an existing file or block device. `NotFound`, `Busy` (with the process that holds the lock, or for
    /// a device that is mounted or in use by device-mapper), `Invalid` for anything that is neither file nor device.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        // Looked at first: opening a FIFO or a tape does things.
        let metadata = std::fs::metadata(path).map_err(|error| cannot_open(path, &error))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
            return Err(Error::new(ErrorKind::Invalid, format!("{} is {what}", path.display()))
                .hint("give a regular file or a block device"));
        }
        let access = match mode {
            OpenMode::ReadOnly | OpenMode::ReadBeside => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
        };
        let exclusive = match (mode, kind.is_block_device()) {
            (OpenMode::ReadWrite, true) => OFlags::EXCL,
            (OpenMode::ReadWrite, false) | (OpenMode::ReadOnly | OpenMode::ReadBeside, _) => OFlags::empty(),
        };
        let file = match open_file(path, access | exclusive) {
            // Who has it open exclusively may be one of us: then the lock knows its name.
            Err(error) if error.kind() == ErrorKind::Busy => {
                lock(&open_file(path, OFlags::RDONLY)?, path, Patience::None, true)?;
                // It had been a dead process's, perhaps, that the lock has waited for.
                open_file(path, access | exclusive).map_err(|_| error)?
            }
            opened => opened?,
        };
        let patience = if kind.is_block_device() { Patience::ForUdev } else { Patience::None };
        if mode != OpenMode::ReadBeside {
            lock(&file, path, patience, mode == OpenMode::ReadWrite)?;
        }
        Self::new(file, path)
    }

    /// Makes a sparse file of `size_bytes` that must not exist yet, and opens it for reading and writing. `Exists`. The
    /// file's name is durable when this returns.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let file = open_file(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        let made = lock(&file, path, Patience::None, true).and_then(|()| {
            set_size(&file, path, size_bytes)?;
            sync_directory_of(path)?;
            Self::new(file, path)
        });
        if made.is_err() {
            // It is ours, empty, and of no use to anybody; the first error is the one to tell.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// `file` is open and locked.
    fn new(file: File, path: &Path) -> Result<Self> {
        let context = |doing: &str| format!("{}: {doing}", path.display());
        let metadata = file.metadata().map_err(|error| Error::io(context("looking at it"), &error))?;
        let is_device = metadata.file_type().is_block_device();
        let size_bytes =
            present_size(&file).map_err(|error| Error::io(context("finding its size"), &error))?;
        let is_direct = match set_direct(&file, true) {
            Ok(()) if can_read_sectors(&file, size_bytes) => true,
            // No direct I/O, or only in units larger than ours.
            Ok(()) | Err(_) => {
                set_direct(&file, false).map_err(|error| Error::io(context("opening"), &error.into()))?;
                tracing::debug!("{}: no direct I/O, going through the page cache", path.display());
                false
            }
        };
        let size_bytes = AtomicU64::new(size_bytes);
        Ok(FileDisk { file, path: path.to_owned(), size_bytes, is_device, is_direct })
    }

    /// Reads and writes a file through the page cache from here on, as suits many small reads in no order. A device stays
    /// as it is: its cache may hold what a pool has long since overwritten beside it.
    pub fn through_page_cache(self) -> Result<Self> {
        if self.is_device { Ok(self) } else { self.buffered() }
    }

    /// Reads and writes through the page cache from here on, a device too: what is written is then there for whoever opens
    /// it next although this process was killed, and has not waited for the disk.
    pub fn buffered(mut self) -> Result<Self> {
        if self.is_direct {
            set_direct(&self.file, false).map_err(|error| {
                Error::io(format_args!("{}: opening", self.path.display()), &error.into())
            })?;
            self.is_direct = false;
        }
        Ok(self)
    }

    /// The open file, for a ring.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether I/O bypasses the page cache. Then memory must be aligned to [`FileDisk::SECTOR_BYTES`] for whoever uses
    /// [`FileDisk::file`] itself.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    fn check(&self, offset_bytes: u64, length: usize) -> io::Result<()> {
        let end = offset_bytes.checked_add(length as u64);
        let size_bytes = self.size_bytes();
        if end.is_none_or(|end| end > size_bytes) {
            let message =
                format!("bytes {offset_bytes} to {offset_bytes} + {length} lie past the end ({size_bytes})");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let sector = Self::SECTOR_BYTES;
        if self.is_direct && !(offset_bytes.is_multiple_of(sector as u64) && length.is_multiple_of(sector)) {
            let message =
                format!("direct I/O of {length} bytes at {offset_bytes}: not whole sectors of {sector}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(())
    }

    /// Whether a buffer can go to the system as it is.
    fn is_fit(&self, memory: *const u8) -> bool {
        !self.is_direct || memory.addr().is_multiple_of(Self::SECTOR_BYTES)
    }
}

/// Where a file or device ends. (A device's metadata says 0.)
fn present_size(file: &File) -> io::Result<u64> {
    Ok(retry(|| rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)))?)
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        // Else what was cut off would be there again, as a hole.
        self.check_size()?;
        let mut present = present_size(&self.file)?;
        if present < size_bytes && !self.is_device {
            rustix::fs::ftruncate(&self.file, size_bytes)?;
            present = size_bytes;
        }
        if present < size_bytes {
            let message = format!("the device has {present} bytes, not {size_bytes}: it has not grown");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.size_bytes.fetch_max(present, Ordering::AcqRel);
        Ok(())
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset_bytes, buffer.len())?;
        if self.is_fit(buffer.as_ptr()) {
            return self.file.read_exact_at(buffer, offset_bytes);
        }
        let mut bounce = AlignedBuffer::zeroed(buffer.len().min(BOUNCE_BYTES));
        let mut offset_bytes = offset_bytes;
        for piece in buffer.chunks_mut(BOUNCE_BYTES) {
            self.file.read_exact_at(&mut bounce[..piece.len()], offset_bytes)?;
            piece.copy_from_slice(&bounce[..piece.len()]);
            offset_bytes += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset_bytes, bytes.len())?;
        if self.is_fit(bytes.as_ptr()) {
            return self.file.write_all_at(bytes, offset_bytes);
        }
        let mut bounce = AlignedBuffer::zeroed(bytes.len().min(BOUNCE_BYTES));
        let mut offset_bytes = offset_bytes;
        for piece in bytes.chunks(BOUNCE_BYTES) {
            bounce[..piece.len()].copy_from_slice(piece);
            self.file.write_all_at(&bounce[..piece.len()], offset_bytes)?;
            offset_bytes += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // Not repeated after EINTR: whether a second call would still tell of a failed write is nobody's promise.
        rustix::fs::fdatasync(&self.file)?;
        // What was cut off is not durable, whatever the system says.
        self.check_size()
    }

    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        let length = usize::try_from(length_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.check(offset_bytes, length)?;
        if length == 0 {
            return Ok(());
        }
        let done = match self.is_device {
            true => retry(|| ioctl::discard_device(&self.file, offset_bytes, length_bytes)),
            false => retry(|| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, offset_bytes, length_bytes)
            }),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error @ (Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY)) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::from(error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        let length_bytes = bytes.end.saturating_sub(bytes.start);
        self.check(bytes.start, usize::try_from(length_bytes).map_err(|_| io::ErrorKind::InvalidInput)?)?;
        if self.is_device || length_bytes == 0 {
            return Ok(());
        }
        if copies_on_write(&self.file) {
            let message =
                "its filesystem writes every change to a new place, so that no space can be kept for it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        match retry(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, bytes.start, length_bytes)
        }) {
            Ok(()) => Ok(()),
            Err(error @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::from(error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn has_own_space(&self) -> bool {
        self.is_device
    }

    fn check_size(&self) -> io::Result<()> {
        if self.is_device {
            return Ok(());
        }
        let (size_bytes, expected) = (self.file.metadata()?.len(), self.size_bytes());
        if size_bytes >= expected {
            return Ok(());
        }
        let message =
            format!("the file has {size_bytes} bytes now and had {expected}: somebody has truncated it");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    fn is_removed(&self) -> bool {
        !self.is_device && self.file.metadata().is_ok_and(|file| file.nlink() == 0)
    }

    fn into_file(self: Arc<Self>) -> Option<Arc<FileDisk>> {
        Some(self)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

fn open_file(path: &Path, flags: OFlags) -> Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    retry(|| rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode))
        .map(File::from)
        .map_err(|errno| cannot_open(path, &errno.into()))
}

fn cannot_open(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => Error::new(ErrorKind::NotFound, format!("{path}: no such file or device"))
            .hint("check the path; a pool's files are made by creating the pool"),
        Some(Errno::EXIST) => Error::new(ErrorKind::Exists, format!("{path} exists already"))
            .hint("choose another name, or remove it if nothing in it is needed"),
        Some(Errno::BUSY) => Error::new(
            ErrorKind::Busy,
            format!("{path} is in use: mounted, swapped to, or part of another device"),
        )
        .hint(format!("`lsblk {path}` shows by what; unmount it or deactivate that device first")),
        Some(Errno::ACCESS | Errno::PERM) => Error::io(format_args!("{path}: opening"), error)
            .hint("its owner or a privileged user can open it; block devices usually belong to group disk"),
        Some(Errno::ROFS) => Error::io(format_args!("{path}: opening"), error)
            .hint("the filesystem is read-only: remount it, or open the pool for reading only"),
        Some(_) | None => Error::io(format_args!("{path}: opening"), error),
    }
}

fn set_size(file: &File, path: &Path, size_bytes: u64) -> Result<()> {
    retry(|| rustix::fs::ftruncate(file, size_bytes)).map_err(|error| {
        let doing = format!("{}: setting its size to {size_bytes} bytes", path.display());
        let told = Error::io(doing, &error.into());
        match error {
            Errno::FBIG => told.hint("the filesystem has no files as large as that"),
            _ => told,
        }
    })
}

/// Whether overwriting a file takes new space even where it has some. Who cannot say is taken at its word by fallocate.
fn copies_on_write(file: &File) -> bool {
    /// Magic numbers of btrfs, ZFS, bcachefs and NILFS.
    const COPYING: [u32; 4] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e, 0x3434];
    rustix::fs::fstatfs(file).is_ok_and(|found| COPYING.contains(&(found.f_type as u32)))
}

/// Makes a new file's name durable.
fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|error| Error::io(format_args!("{}: making its entry durable", directory.display()), &error))
}

/// Switches direct I/O on or off for a file that is open already: reopening it would give up lock and exclusiveness.
fn set_direct(file: &File, direct: bool) -> rustix::io::Result<()> {
    rustix::fs::fcntl_setfl(file, if direct { OFlags::DIRECT } else { OFlags::empty() })
}

/// Tries whether one sector can be read, at an offset and to memory that are multiples of a sector and no more.
/// A disk with larger sectors refuses, and so do some filesystems on top of one.
fn can_read_sectors(file: &File, size_bytes: u64) -> bool {
    let sector = FileDisk::SECTOR_BYTES;
    let mut buffer = AlignedBuffer::zeroed(2 * sector);
    let offset_bytes = if size_bytes >= 2 * sector as u64 { sector as u64 } else { 0 };
    let read = retry(|| rustix::io::pread(file, &mut buffer[sector..], offset_bytes));
    read.is_ok_and(|count| count == sector || (count as u64) == size_bytes)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
