//! Memory of somebody else's that a ring was lent for a request: a device's requests, which stay in the pages of whoever made them.
//!
//! Operations of the ring reach it by an index among the ring's buffers, and so disks read and write it without a copy. What has to be looked at or
//! put together here goes through a file, which copies.

use super::registered::Registered;
use crate::disk::AlignedBuffer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The bytes of a request, lent until it has finished.
#[derive(Clone)]
pub struct Lent {
    /// Its index among the ring's buffers ([`Ring::make_room_for_lent`](super::Ring::make_room_for_lent)); [`Lent::NOT_THERE`] if the kernel could not
    /// put it there.
    pub index: u16,
    /// What operations call its first byte: 0 for what the kernel has lent.
    pub address: u64,
    /// Where it can be read and written otherwise, and where in there it begins.
    pub file: Arc<File>,
    /// See `file`.
    pub file_offset_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
}

impl Lent {
    /// An index that no ring has: operations fail, and then go by way of the file.
    pub const NOT_THERE: u16 = u16::MAX;

    /// Copies out of it.
    pub(super) fn read(&self, at_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, self.file_offset_bytes + at_bytes)
    }

    /// Copies into it.
    pub(super) fn write(&self, at_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.file_offset_bytes + at_bytes)
    }
}

/// Where the bytes of a request, or of a scratch buffer, are.
pub(super) enum Memory {
    Buffer(AlignedBuffer, Option<Registered>),
    Lent(Lent),
}

impl Memory {
    pub(super) fn length_bytes(&self) -> u64 {
        match self {
            Memory::Buffer(buffer, _) => buffer.len() as u64,
            Memory::Lent(lent) => lent.length_bytes,
        }
    }
}

/// How an operation names its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Named {
    pub(super) address: *mut u8,
    /// The ring's buffer in which it is.
    pub(super) index: Option<u16>,
    /// It is somebody else's: its address means nothing but beside the index.
    pub(super) is_lent: bool,
}

/// What has moved to and from lent memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LentMoved {
    /// Between it and a disk, without a copy.
    pub in_place_bytes: u64,
    /// By a copy.
    pub copied_bytes: u64,
}

/// Whether an operation on lent memory that has failed may succeed on a buffer of ours: the disk wants its memory aligned otherwise, or the
/// kernel could not lend it.
pub(super) fn is_about_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EFAULT | libc::EOPNOTSUPP))
}

#[cfg(test)]
#[path = "lent_tests.rs"]
mod tests;
