//! Files and block devices as disks: O_DIRECT where the filesystem has it, an exclusive lock, hole punching.

use super::Disk;
use crate::error::Result;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How a [`FileDisk`] is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Nothing is written, a shared lock is taken.
    ReadOnly,
    /// An exclusive lock is taken.
    ReadWrite,
}

/// An open, locked file or block device.
pub struct FileDisk {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl FileDisk {
    /// Opens and locks an existing file or block device. `Busy` names the process that holds the lock.
    pub fn open(_path: &Path, _mode: OpenMode) -> Result<Self> {
        todo!()
    }

    /// Makes a sparse file of `size_bytes` that must not exist yet, and opens it for reading and writing.
    pub fn create(_path: &Path, _size_bytes: u64) -> Result<Self> {
        todo!()
    }

    /// The open file, for a ring.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether I/O bypasses the page cache.
    pub fn is_direct(&self) -> bool {
        todo!()
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_at(&self, _offset_bytes: u64, _buffer: &mut [u8]) -> io::Result<()> {
        todo!()
    }
    fn write_at(&self, _offset_bytes: u64, _bytes: &[u8]) -> io::Result<()> {
        todo!()
    }
    fn flush(&self) -> io::Result<()> {
        todo!()
    }
    fn discard(&self, _offset_bytes: u64, _length_bytes: u64) -> io::Result<()> {
        todo!()
    }
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
