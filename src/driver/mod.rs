//! Who moves bytes and owns threads.
//!
//! [`Pool`] runs the keeper on a thread of its own and hands out lanes; [`uring`] moves the bytes of a lane and of its
//! client's socket on an `io_uring`, any number of requests at a time; [`blocking`] runs keeper and lanes inline on any
//! disk, for tests and tools. Knows nothing of protocols.

pub mod blocking;
mod buffers;
mod desk;
mod give_back;
mod hash;
mod inbox;
mod pool;
mod settler;
#[cfg(test)]
mod testing;
pub mod uring;

pub use buffers::{BufferBudget, BufferPool};
pub use pool::Pool;

use crate::engine::IoError;
use std::io;

/// What a client is told of the data disk's error. A filesystem that has no room left for a sparse file is no space like
/// any other: hypervisors stop a machine on ENOSPC until there is room, and hand it an error that it cannot bear on EIO.
fn told_to_clients(error: &io::Error) -> IoError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => IoError::NoSpace,
        _ => IoError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_filesystem_is_no_space() {
        let told = |errno| told_to_clients(&io::Error::from_raw_os_error(errno));
        assert_eq!([libc::ENOSPC, libc::EDQUOT].map(told), [IoError::NoSpace; 2]);
        assert_eq!([libc::EIO, libc::EFBIG].map(told), [IoError::Io; 2]);
    }
}
