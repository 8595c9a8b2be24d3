//! Metadata looked at beside the process that uses them: only their metadata snapshot stays as it is.

use super::require_metadata;
use crate::check::dump::State;
use crate::check::source::Source;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::Result;
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Looks at a superblock that may just be being written.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Metadata for reading: locked for their live state; for a metadata snapshot as they are, whoever has them locked.
pub(super) fn open_state(path: &Path, state: State) -> Result<Box<dyn Disk>> {
    match state {
        State::Live => Ok(Box::new(super::open_pool(path)?)),
        State::Snapshot | State::SnapshotAt(_) => Ok(Box::new(Beside::open(path)?)),
    }
}

/// Metadata with their superblock as it was at one moment. Blocks of a metadata snapshot do not change while it is held.
pub(super) struct Beside {
    disk: FileDisk,
    superblock: [u8; META_BLOCK_BYTES],
}

impl Beside {
    /// Opens without a lock, and waits for a sound superblock. One that stays damaged is left for the reader to tell of.
    pub(super) fn open(path: &Path) -> Result<Self> {
        require_metadata(path)?;
        // Past the page cache, which may be behind who writes past it.
        let disk = FileDisk::open(path, OpenMode::ReadBeside)?;
        for look in 1.. {
            let block = Source::new(&disk).raw(MetaBlock::SUPERBLOCK)?;
            if look == LOOKS || block.kind().is_some() {
                return Ok(Beside { disk, superblock: block.0 });
            }
            std::thread::sleep(PAUSE);
        }
        unreachable!("the last look returns")
    }
}

impl Disk for Beside {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset_bytes, buffer)?;
        if let Some(known) = self.superblock.get(usize::try_from(offset_bytes).unwrap_or(usize::MAX)..) {
            let count = known.len().min(buffer.len());
            buffer[..count].copy_from_slice(&known[..count]);
        }
        Ok(())
    }
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn grow(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn name(&self) -> String {
        self.disk.name()
    }
}
