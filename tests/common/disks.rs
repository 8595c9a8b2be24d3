//! Disks that misbehave as real ones do.

use std::io;
use std::sync::{Arc, Mutex};
use uthin::disk::Disk;

/// A disk that keeps what was written since the last flush apart, so that a test can cut the power: everything unflushed may
/// be kept, lost, or torn at sector granularity.
#[derive(Clone, Default)]
pub struct TornDisk {
    state: Arc<Mutex<TornState>>,
}

#[derive(Default)]
struct TornState {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last flush, in order.
    unflushed: Vec<(usize, Vec<u8>)>,
    /// Writes and flushes so far.
    operations: u64,
    /// The operation at which the disk stops working.
    fail_at: Option<u64>,
}

impl TornDisk {
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let state = TornState { durable: bytes.clone(), current: bytes, ..TornState::default() };
        TornDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Lets the disk fail from the `operation`-th write or flush from now on (0: the next).
    pub fn fail_after(&self, operations: u64) {
        let mut state = self.state.lock().unwrap();
        state.fail_at = Some(state.operations + operations);
    }

    /// Lets the disk work again.
    pub fn heal(&self) {
        self.state.lock().unwrap().fail_at = None;
    }

    pub fn operations(&self) -> u64 {
        self.state.lock().unwrap().operations
    }

    pub fn current_bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().current.clone()
    }

    /// What a power cut now may leave: each sector of each unflushed write is kept if `keep` says so.
    pub fn after_power_cut(&self, keep: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut bytes = state.durable.clone();
        for (offset, written) in &state.unflushed {
            for (index, sector) in written.chunks(512).enumerate() {
                if keep() {
                    let at = offset + index * 512;
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

impl TornState {
    fn step(&mut self) -> io::Result<()> {
        if self.fail_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the disk has failed"));
        }
        self.operations += 1;
        Ok(())
    }
}

impl Disk for TornDisk {
    fn size_bytes(&self) -> u64 {
        self.state.lock().unwrap().current.len() as u64
    }
    fn grow(&self, _size_bytes: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let begin = offset_bytes as usize;
        buffer.copy_from_slice(&state.current[begin..begin + buffer.len()]);
        Ok(())
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        let begin = offset_bytes as usize;
        state.current[begin..begin + bytes.len()].copy_from_slice(bytes);
        state.unflushed.push((begin, bytes.to_vec()));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        for (begin, bytes) in std::mem::take(&mut state.unflushed) {
            state.durable[begin..begin + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
    fn discard(&self, _offset_bytes: u64, _length_bytes: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
    fn name(&self) -> String {
        "torn".to_owned()
    }
}
