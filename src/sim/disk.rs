//! A disk with a volatile cache and a plug that can be pulled.
//!
//! A write goes to the cache; a flush makes the cache durable. When the power is cut, each unflushed sector keeps any one
//! of the values written to it since the last flush, or none of them: writes are torn and reordered at will. What a flush
//! failed to make durable can be read, but no later flush makes it durable: who tries again and believes it is found out.
//! Some of it may have become durable all the same, in any of the versions that were written; and of a write that fails, a part may
//! have been done.

use super::chance::Chance;
use crate::disk::Disk;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// A virtual disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    name: &'static str,
}

struct Inner {
    durable: Vec<u8>,
    /// As of the last flush: what came after may be gone with the power.
    flushed_size: usize,
    /// What was written to each sector since the last flush, oldest first.
    cache: BTreeMap<u64, Vec<Sector>>,
    /// What a failed flush left behind.
    doomed: BTreeMap<u64, Sector>,
    /// Writes and flushes until the power goes; `None`: it stays.
    operations_left: Option<u64>,
    /// Operations, reads included, until one fails, for once; `None`: none does.
    until_fault: Option<u64>,
    /// The same for a second one, counted from the first.
    until_second_fault: Option<u64>,
    /// What the next fault will be.
    fault: Fault,
    /// What is wrong with this operation.
    wrong_now: Option<Fault>,
    /// Where a write should have gone that went to another place.
    strayed_from: Option<u64>,
    has_failed: bool,
    /// Operations that failed since the power came.
    faults: u64,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<u64>,
    /// Writes and flushes so far, and with the reads.
    operations: u64,
    operations_and_reads: u64,
    /// Decides how much is done of what fails.
    chance: Chance,
}

/// How an operation goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Fault {
    /// It fails without having done anything.
    #[default]
    Error,
    /// It reads a wrong bit.
    Flip,
    /// It writes to the block beside.
    Stray,
}

impl SimDisk {
    /// A disk of `size_bytes` zeros.
    ///
    /// `seed` decides how much is done of what fails.
    pub fn new(name: &'static str, size_bytes: usize, seed: u64) -> Self {
        let inner = Inner {
            durable: vec![0; size_bytes],
            flushed_size: size_bytes,
            cache: BTreeMap::new(),
            doomed: BTreeMap::new(),
            operations_left: None,
            until_fault: None,
            until_second_fault: None,
            fault: Fault::Error,
            wrong_now: None,
            strayed_from: None,
            has_failed: false,
            faults: 0,
            bad: BTreeSet::new(),
            operations: 0,
            operations_and_reads: 0,
            chance: Chance::new(seed),
        };
        SimDisk { inner: Arc::new(Mutex::new(inner)), name }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the disk is locked")
    }

    /// The power goes after this many more writes and flushes; the one after fails, and so does everything then. Where it is
    /// gone already, it stays away.
    pub fn cut_power_after(&self, operations: u64) {
        let mut inner = self.lock();
        if inner.operations_left != Some(0) {
            inner.operations_left = Some(operations);
        }
    }

    /// The power does not go after all.
    pub fn keep_power(&self) {
        self.lock().operations_left = None;
    }

    /// Whether the power is gone.
    pub fn is_off(&self) -> bool {
        self.lock().operations_left == Some(0)
    }

    /// After this many more reads, writes and flushes, one fails without having done anything; and after `then` more,
    /// another.
    pub fn fail_after(&self, operations: u64, then: Option<u64>) {
        let mut inner = self.lock();
        (inner.until_fault, inner.until_second_fault) = (Some(operations), then);
    }

    /// After this many more reads, writes and flushes, what one reads has a wrong bit. (Nothing, if it is no read.)
    pub fn flip_after(&self, operations: u64) {
        let mut inner = self.lock();
        (inner.until_fault, inner.fault) = (Some(operations), Fault::Flip);
    }

    /// After this many more reads, writes and flushes, one writes to the 4 KiB beside those that were meant, and says that all
    /// is well. (Nothing, if it is no write.)
    pub fn stray_after(&self, operations: u64) {
        let mut inner = self.lock();
        (inner.until_fault, inner.fault) = (Some(operations), Fault::Stray);
    }

    /// Where the write was to go that went to another place, in bytes.
    pub fn strayed_from(&self) -> Option<u64> {
        self.lock().strayed_from
    }

    /// This sector cannot be read any more, until somebody writes it.
    pub fn spoil(&self, sector: u64) {
        self.lock().bad.insert(sector);
    }

    /// Operations that failed since the power came.
    pub fn faults(&self) -> u64 {
        self.lock().faults
    }

    /// Whether one has failed since the power came.
    pub fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    /// Writes and flushes that were done.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Reads, writes and flushes that were done.
    pub fn operations_and_reads(&self) -> u64 {
        self.lock().operations_and_reads
    }

    /// The power is cut, and comes back: `choose(n)` picks one of `0..n` for each unflushed sector.
    pub fn power_cycle(&self, choose: &mut dyn FnMut(usize) -> usize) {
        let mut inner = self.lock();
        for (sector, versions) in std::mem::take(&mut inner.cache) {
            let kept = choose(versions.len() + 1);
            if let Some(bytes) = versions.get(kept) {
                let at = sector as usize * SECTOR;
                inner.durable[at..at + SECTOR].copy_from_slice(bytes);
            }
        }
        if inner.durable.len() > inner.flushed_size && choose(2) == 0 {
            let size = inner.flushed_size;
            inner.durable.truncate(size);
        }
        inner.flushed_size = inner.durable.len();
        inner.operations_left = None;
        (inner.has_failed, inner.faults, inner.doomed) = (false, 0, BTreeMap::new());
        inner.until_second_fault = None;
    }

    /// All bytes as a reader sees them now.
    pub fn to_bytes(&self) -> Vec<u8> {
        let inner = self.lock();
        let mut bytes = vec![0; inner.durable.len()];
        inner.read(0, &mut bytes).expect("reading the whole disk");
        bytes
    }

    /// What a reader sees, without a read that could fail.
    pub fn peek(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.lock().read(offset_bytes, buffer)
    }

    /// Forgets that an operation has failed, and what a flush then left behind.
    pub fn forget_failure(&self) {
        let mut inner = self.lock();
        (inner.has_failed, inner.faults, inner.doomed) = (false, 0, BTreeMap::new());
    }

    /// The process that used it has died, and the operating system goes on: all that was written can be read.
    pub fn outlive(&self) {
        let mut inner = self.lock();
        (inner.has_failed, inner.faults) = (false, 0);
        inner.until_second_fault = None;
    }

    /// Whether there is anything that a flush has failed to make durable.
    pub fn has_doomed(&self) -> bool {
        !self.lock().doomed.is_empty()
    }

    /// A read, or any other operation; fails when it is its turn to.
    fn count(inner: &mut Inner) -> io::Result<()> {
        inner.wrong_now = None;
        match &mut inner.until_fault {
            Some(0) => {
                inner.until_fault = inner.until_second_fault.take();
                let fault = std::mem::take(&mut inner.fault);
                if fault != Fault::Stray {
                    inner.has_failed = true;
                    inner.faults += 1;
                }
                if fault == Fault::Error {
                    return Err(io::Error::other("a fault"));
                }
                inner.wrong_now = Some(fault);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        inner.operations_and_reads += 1;
        Ok(())
    }

    fn count_operation(inner: &mut Inner) -> io::Result<()> {
        match &mut inner.operations_left {
            Some(0) => return Err(io::Error::other("the power is off")),
            Some(left) => *left -= 1,
            None => {}
        }
        Self::count(inner)?;
        inner.operations += 1;
        Ok(())
    }
}

impl Inner {
    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = sectors(offset_bytes, buffer.len())?;
        let at = offset_bytes as usize;
        let durable = self.durable.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(durable);
        let mut overlay = |sector: &u64, bytes: &Sector| {
            let at = (sector - range.start) as usize * SECTOR;
            buffer[at..at + SECTOR].copy_from_slice(bytes);
        };
        self.doomed.range(range.clone()).for_each(|(sector, bytes)| overlay(sector, bytes));
        for (sector, versions) in self.cache.range(range.clone()) {
            overlay(sector, versions.last().expect("a cached sector has a version"));
        }
        Ok(())
    }
}

fn sectors(offset_bytes: u64, length: usize) -> io::Result<std::ops::Range<u64>> {
    if !offset_bytes.is_multiple_of(SECTOR as u64) || !length.is_multiple_of(SECTOR) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not aligned to a sector"));
    }
    let first = offset_bytes / SECTOR as u64;
    Ok(first..first + (length / SECTOR) as u64)
}

impl Disk for SimDisk {
    fn size_bytes(&self) -> u64 {
        self.lock().durable.len() as u64
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        let mut inner = self.lock();
        Self::count_operation(&mut inner)?;
        let size = inner.durable.len().max(size_bytes as usize);
        inner.durable.resize(size, 0);
        Ok(())
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.lock();
        Self::count(&mut inner)?;
        let range = sectors(offset_bytes, buffer.len())?;
        if inner.bad.range(range).next().is_some() {
            return Err(io::Error::other("a bad sector"));
        }
        inner.read(offset_bytes, buffer)?;
        if inner.wrong_now == Some(Fault::Flip)
            && let Some(byte) = buffer.first_mut()
        {
            *byte ^= 1;
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        let mut range = sectors(offset_bytes, bytes.len())?;
        if range.end * SECTOR as u64 > inner.durable.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let counted = Self::count_operation(&mut inner);
        let is_partly_done = counted.is_err() && inner.operations_left != Some(0) && inner.chance.one_in(2);
        if !is_partly_done {
            counted?;
        }
        if inner.wrong_now == Some(Fault::Stray) {
            inner.strayed_from = Some(offset_bytes);
            range = sectors(offset_bytes ^ 4096, bytes.len())?;
        }
        for (sector, bytes) in range.zip(bytes.chunks_exact(SECTOR)) {
            if is_partly_done && inner.chance.one_in(2) {
                continue;
            }
            let bytes: Sector = bytes.try_into().expect("a chunk is a sector");
            inner.cache.entry(sector).or_default().push(bytes);
            inner.bad.remove(&sector);
        }
        match is_partly_done {
            true => Err(io::Error::other("a fault, half-way")),
            false => Ok(()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let counted = Self::count_operation(&mut inner);
        for (sector, versions) in std::mem::take(&mut inner.cache) {
            let last = *versions.last().expect("a cached sector has a version");
            if counted.is_err() && inner.has_failed {
                inner.doomed.insert(sector, last);
                let survivor = inner.chance.below(2 * versions.len() as u64) as usize;
                if let Some(bytes) = versions.get(survivor) {
                    let at = sector as usize * SECTOR;
                    inner.durable[at..at + SECTOR].copy_from_slice(bytes);
                }
            } else if counted.is_err() {
                inner.cache.insert(sector, versions); // the power is off: what is kept is decided when it comes back
            } else {
                let at = sector as usize * SECTOR;
                inner.durable[at..at + SECTOR].copy_from_slice(&last);
                inner.doomed.remove(&sector);
            }
        }
        counted?;
        inner.flushed_size = inner.durable.len();
        Ok(())
    }

    /// So that space is had ahead, and given back.
    fn has_own_space(&self) -> bool {
        false
    }

    /// Scribbles: whoever relies on a discarded block's content is found out.
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.write_at(offset_bytes, &vec![0xdd; length_bytes as usize])
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }
}
