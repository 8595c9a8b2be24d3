//! What a disk is: a place of fixed size that keeps bytes. Knows nothing of the format.
//!
//! What was written before a successful [`Disk::flush`] survives power loss; anything written since may be kept, lost
//! or torn at sector granularity. A failed flush is final: nobody may retry it and believe the second answer.

mod buffer;
mod file;
mod ioctl;
mod lock;
mod memory;

pub use buffer::{AlignedBuffer, Slab};
pub use file::{FileDisk, OpenMode};
pub use memory::MemoryDisk;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A place that keeps bytes. All faults of simulated disks hide behind this trait.
pub trait Disk: Send + Sync {
    /// The size in bytes, as of opening or the last [`Disk::grow`].
    fn size_bytes(&self) -> u64;

    /// Takes `size_bytes` at least into use: a file is extended (with zeros that take no space), a device must have grown
    /// by itself. `UnexpectedEof` when it has not; then nothing has changed.
    fn grow(&self, size_bytes: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset_bytes` on. Reading past the end is `UnexpectedEof`.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset_bytes`. Writing past the end is `UnexpectedEof`; nothing grows.
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything durable whose write returned before this call.
    fn flush(&self) -> io::Result<()>;

    /// Gives the range's space back; what it reads afterwards is undefined. `Unsupported` where the disk cannot.
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()>;

    /// Sees to it that writing to these bytes cannot fail for want of space; changes none of them. `StorageFull` or
    /// `QuotaExceeded` when there is not enough, `Unsupported` where it cannot be promised. A disk whose space is all its own
    /// has nothing to do.
    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// Whether its space is all its own, so that there is nothing to set aside.
    fn has_own_space(&self) -> bool {
        true
    }

    /// Looks whether the disk is still as large as it was when it was opened; `UnexpectedEof` if it has shrunk.
    fn check_size(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether it has lost its name, so that its bytes are gone as soon as nobody has it open any more.
    fn is_removed(&self) -> bool {
        false
    }

    /// The open file, for a driver that does its I/O by itself; `None` for a disk that is none.
    fn into_file(self: Arc<Self>) -> Option<Arc<FileDisk>> {
        None
    }

    /// What to call the disk in messages: a path, usually.
    fn name(&self) -> String;
}

impl<T: Disk + ?Sized> Disk for Arc<T> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        (**self).grow(size_bytes)
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        (**self).discard(offset_bytes, length_bytes)
    }
    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        (**self).set_aside(bytes)
    }
    fn has_own_space(&self) -> bool {
        (**self).has_own_space()
    }
    fn check_size(&self) -> io::Result<()> {
        (**self).check_size()
    }
    fn is_removed(&self) -> bool {
        (**self).is_removed()
    }
    fn name(&self) -> String {
        (**self).name()
    }
}

impl<T: Disk + ?Sized> Disk for &T {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        (**self).grow(size_bytes)
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        (**self).discard(offset_bytes, length_bytes)
    }
    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        (**self).set_aside(bytes)
    }
    fn has_own_space(&self) -> bool {
        (**self).has_own_space()
    }
    fn check_size(&self) -> io::Result<()> {
        (**self).check_size()
    }
    fn is_removed(&self) -> bool {
        (**self).is_removed()
    }
    fn name(&self) -> String {
        (**self).name()
    }
}

/// Proof that the data disk was flushed. A metadata commit asks for one, so that the order "data first, then the
/// mappings that point at it" cannot be forgotten. Made only by [`flush_data`] and [`DataFlushes`].
#[derive(Debug)]
pub struct DataFlushed(());

/// Flushes the data disk and returns the proof.
pub fn flush_data(data: &impl Disk) -> io::Result<DataFlushed> {
    data.flush().map(DataFlushed)
}

/// Flushes of one data disk by several threads, one after the other. When one has failed, all that follow fail: the system tells only
/// once of what is lost, and the other thread must not take its own answer for the whole truth.
#[derive(Debug, Default)]
pub struct DataFlushes {
    /// The error that all are told.
    failed: Mutex<Option<(io::ErrorKind, String)>>,
}

impl DataFlushes {
    /// Waits for those before it, flushes the data disk and returns the proof.
    pub fn flush(&self, data: &impl Disk) -> io::Result<DataFlushed> {
        let mut failed = self.failed.lock().expect("nobody panics while flushing");
        if let Some((kind, text)) = &*failed {
            return Err(io::Error::new(*kind, text.clone()));
        }
        let flushed = flush_data(data);
        if let Err(error) = &flushed {
            *failed = Some((error.kind(), error.to_string()));
        }
        flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// Fails once, as the system tells of what is lost.
    struct FailsOnce(AtomicBool);

    impl Disk for FailsOnce {
        fn size_bytes(&self) -> u64 {
            0
        }
        fn grow(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            if self.0.swap(true, Relaxed) { Ok(()) } else { Err(io::Error::other("lost")) }
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn name(&self) -> String {
            "fails once".to_owned()
        }
    }

    #[test]
    fn a_flush_after_one_that_has_failed_is_not_believed() {
        let disk = FailsOnce(AtomicBool::new(false));
        let flushes = DataFlushes::default();
        for _ in 0..2 {
            assert_eq!(flushes.flush(&disk).expect_err("lost").to_string(), "lost");
        }
        assert!(flush_data(&disk).is_ok(), "by itself it would be");
    }
}
