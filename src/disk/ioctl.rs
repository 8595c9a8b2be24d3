//! The one thing that a block device is asked for by ioctl.

use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Asks a block device to discard a range.
pub(super) fn discard_device(file: &File, offset_bytes: u64, length_bytes: u64) -> rustix::io::Result<()> {
    /// `BLKDISCARD`: `_IO(0x12, 119)`.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [offset_bytes, length_bytes];
    // SAFETY: the descriptor is open, and BLKDISCARD reads two 64-bit numbers, which live until it returns.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    match outcome {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
