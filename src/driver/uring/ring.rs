//! The ring: entries in, completions out, one system call a turn.

use crate::disk::FileDisk;
use crate::error::Result;
use io_uring::squeue;
use std::sync::Arc;

/// Where lanes and streams push their operations: a [`Ring`], or the ring of somebody else (a ublk queue's).
pub trait Submit {
    /// Queues an entry; it reaches the kernel with the next submission. Never fails and never loses one.
    ///
    /// # Safety
    ///
    /// What the entry points at stays valid, and is not touched otherwise, until its completion was taken.
    unsafe fn push(&mut self, entry: squeue::Entry);

    /// How entries name the data file from now on: registered, where that works. The ring keeps the file open.
    fn data_file(&mut self, file: &Arc<FileDisk>) -> DataFile;
}

/// A file as an entry names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataFile {
    /// An index among the ring's registered files.
    Registered(u32),
    /// A file descriptor, open for as long as the ring.
    Plain(std::os::fd::RawFd),
}

/// The end of an operation. Exists once for each, and goes to its owner.
#[derive(Debug)]
pub struct Completion {
    user_data: u64,
    result: i32,
}

impl Completion {
    /// A completion that came from another ring.
    ///
    /// # Safety
    ///
    /// The kernel has reported exactly this for an entry that was pushed, and it is passed on once.
    pub unsafe fn from_parts(user_data: u64, result: i32) -> Self {
        Completion { user_data, result }
    }
    /// The number that the entry carried.
    pub fn user_data(&self) -> u64 {
        self.user_data
    }
    /// What came out: usually a count of bytes, or a negative errno.
    pub fn result(&self) -> i32 {
        self.result
    }
}

/// An `io_uring`, to be used only on the thread that made it.
pub struct Ring {}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Ring {
    /// A ring for `entries` new operations a turn (more are queued); any number can be in flight.
    /// `Unsupported` when the kernel has no io_uring or forbids it.
    pub fn new(entries: u32) -> Result<Ring> {
        todo!()
    }
    /// Submits what was pushed and waits until `want` completions are there, or a signal came. One system call.
    pub fn submit_and_wait(&mut self, want: usize) -> Result<()> {
        todo!()
    }
    /// A completion that has come, without a system call.
    pub fn next_completion(&mut self) -> Option<Completion> {
        todo!()
    }
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Submit for Ring {
    unsafe fn push(&mut self, entry: squeue::Entry) {
        todo!()
    }
    fn data_file(&mut self, file: &Arc<FileDisk>) -> DataFile {
        todo!()
    }
}
