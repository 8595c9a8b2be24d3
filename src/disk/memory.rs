//! A disk in memory, for tests and tools. Keeps everything, loses nothing, fails only past its end.

use super::Disk;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes in memory. Clones share them, as two handles of one file would.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl MemoryDisk {
    /// A disk of `size_bytes` zeros.
    pub fn zeroed(size_bytes: u64) -> Self {
        Self::from_bytes(vec![0; usize::try_from(size_bytes).expect("a disk in memory fits into memory")])
    }

    /// A disk that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        MemoryDisk { bytes: Arc::new(Mutex::new(bytes)) }
    }

    /// A copy of all its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("nobody panics while holding the bytes")
    }
}

/// The part of `bytes` that a request names, or `UnexpectedEof`.
fn range_of(bytes: &mut [u8], offset_bytes: u64, length: usize) -> io::Result<&mut [u8]> {
    let begin = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
    begin
        .checked_add(length)
        .and_then(|end| bytes.get_mut(begin..end))
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the disk"))
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.lock().len() as u64
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        let mut bytes = self.lock();
        let size = usize::try_from(size_bytes).expect("a disk in memory fits into memory").max(bytes.len());
        bytes.resize(size, 0);
        Ok(())
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut bytes = self.lock();
        buffer.copy_from_slice(range_of(&mut bytes, offset_bytes, buffer.len())?);
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, source: &[u8]) -> io::Result<()> {
        let mut bytes = self.lock();
        range_of(&mut bytes, offset_bytes, source.len())?.copy_from_slice(source);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        let mut bytes = self.lock();
        let length = usize::try_from(length_bytes).unwrap_or(usize::MAX);
        range_of(&mut bytes, offset_bytes, length)?.fill(0);
        Ok(())
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}
