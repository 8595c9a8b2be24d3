//! The ring: entries in, completions out, one system call a turn.

use super::poll::Busy;
use crate::disk::FileDisk;
use crate::error::{Error, ErrorKind, Result};
use io_uring::{IoUring, squeue};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Files that can be registered with a ring.
const REGISTERED_FILES: u32 = 16;

/// Pieces of our own memory that can be among a ring's buffers, beyond one for each of its entries.
const REGISTERED_BUFFERS: u32 = 16;

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

    /// Puts memory of ours among the ring's buffers, where the kernel has its pages at hand, and returns its index there; `None` where that cannot be
    /// had, or not once more. It stays there for as long as the ring: the memory behind the index is this, whatever comes to its address
    /// later. It takes memory (that of untouched pages, too), which counts as locked.
    fn register(&mut self, start: NonNull<u8>, length_bytes: usize) -> Option<u16>;
}

/// A file as an entry names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataFile {
    /// An index among the ring's registered files.
    Registered(u32),
    /// A file descriptor, open for as long as the ring.
    Plain(RawFd),
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
pub struct Ring {
    ring: IoUring,
    /// What did not fit into the submission queue yet, in order.
    backlog: VecDeque<squeue::Entry>,
    /// By their indices, if files can be registered.
    files: Vec<Arc<FileDisk>>,
    registers_files: bool,
    entries: u32,
    /// Where the table of the ring's buffers is free, and its end; `None` before there is one.
    free_buffers: Option<Range<u32>>,
    busy: Busy,
    /// The kernel accepts submissions from the ring's own thread only.
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// A ring for `entries` new operations a turn (more are queued); any number can be in flight.
    /// `Unsupported` when the kernel has no io_uring or forbids it.
    pub fn new(entries: u32) -> Result<Ring> {
        let ring = build(entries).map_err(|error| cannot_build(&error))?;
        // Not there in a ring of an old kernel: then files go by their descriptors.
        let registers_files = ring.submitter().register_files_sparse(REGISTERED_FILES).is_ok();
        let (backlog, files) = (VecDeque::new(), Vec::new());
        let (free_buffers, busy) = (None, Busy::default());
        Ok(Ring { ring, backlog, files, registers_files, entries, free_buffers, busy, not_send: PhantomData })
    }

    /// Makes room for so many pieces of [lent](super::Lent) memory among the ring's buffers, from index 0 on. Once, before anything is registered.
    /// `Unsupported` where the kernel cannot (before 5.19).
    pub fn make_room_for_lent(&mut self, count: u16) -> Result<()> {
        assert!(self.free_buffers.is_none(), "lent memory comes first");
        self.make_buffer_table(count).map_err(|error| {
            Error::new(ErrorKind::Unsupported, format!("io_uring: no room for lent memory: {error}"))
                .hint("raise the limit of locked memory (ulimit -l)")
        })
    }

    fn make_buffer_table(&mut self, lent: u16) -> io::Result<()> {
        let end = u32::from(lent) + self.entries + REGISTERED_BUFFERS;
        self.free_buffers = Some(0..0); // not tried again
        self.ring.submitter().register_buffers_sparse(end)?;
        self.free_buffers = Some(u32::from(lent)..end);
        Ok(())
    }

    /// Puts memory of this process among the ring's buffers, as the kernel does with what it lends.
    ///
    /// # Safety
    ///
    /// It stays there for as long as the ring, and nobody minds what becomes of its bytes.
    #[cfg(test)]
    pub(super) unsafe fn lend(&mut self, index: u16, memory: *mut u8, length: usize) {
        let vector = libc::iovec { iov_base: memory.cast(), iov_len: length };
        // SAFETY: as the caller says.
        let put = unsafe { self.ring.submitter().register_buffers_update(index.into(), &[vector], None) };
        put.expect("there is room for it");
    }

    /// Takes so many buffers more, and then does as a kernel that cannot, or where no more memory may be locked.
    #[cfg(test)]
    pub(super) fn refuse_buffers_after(&mut self, count: u32) {
        self.make_buffer_table(0).expect("this kernel can");
        self.free_buffers = Some(0..count);
    }

    /// Lets all files go, while nothing is under way with one. Names of them mean nothing any more.
    pub fn forget_files(&mut self) {
        let registered = self.files.len().min(REGISTERED_FILES as usize);
        self.files.clear();
        let nothing = vec![-1; registered];
        if self.registers_files
            && registered > 0
            && self.ring.submitter().register_files_update(0, &nothing).is_err()
        {
            self.registers_files = false;
        }
    }

    /// Submits what was pushed and waits until `want` completions are there, or a signal came. One system call.
    pub fn submit_and_wait(&mut self, want: usize) -> Result<()> {
        self.busy.set(false);
        self.enter(want)
    }

    fn enter(&mut self, want: usize) -> Result<()> {
        loop {
            self.refill();
            let is_last = self.backlog.is_empty();
            match self.ring.submit_and_wait(if is_last { want } else { 0 }) {
                Ok(_) if is_last => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) if is_last => return Ok(()),
                    Some(libc::EINTR) => {}
                    // The kernel has no room for more completions or requests: the caller takes some away first.
                    Some(libc::EBUSY | libc::EAGAIN) if !self.ring.completion().is_empty() => return Ok(()),
                    Some(libc::EAGAIN) => std::thread::yield_now(),
                    Some(_) | None => return Err(Error::io("io_uring: submitting operations", &error)),
                },
            }
        }
    }

    /// Submits what was pushed, and takes nothing from the kernel.
    pub fn submit(&mut self) -> Result<()> {
        loop {
            self.refill();
            let count = self.ring.submission().len();
            if count == 0 {
                return Ok(());
            }
            // SAFETY: no argument is passed.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(count as u32, 0, 0, None) };
            match entered.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) | Err((Some(libc::EINTR), _)) => {}
                Err((Some(libc::EAGAIN | libc::EBUSY), _)) => std::thread::yield_now(),
                Err((_, error)) => return Err(Error::io("io_uring: submitting operations", &error)),
            }
        }
    }

    /// Like [`Ring::submit_and_wait`] for one completion, which is expected within some 100 µs: looks out for it, at the price
    /// of a busy CPU, before it sleeps, unless too many threads do so.
    pub fn submit_and_look(&mut self) -> Result<()> {
        self.busy.set(true);
        self.enter(0)?;
        if self.ring.completion().is_empty() {
            let ring = &mut self.ring;
            // Completions wait outside the queue, until they are fetched, when the kernel defers its work.
            self.busy.look_for(|| !ring.completion().is_empty() || ring.submission().taskrun());
        }
        self.enter(1)
    }

    /// A completion that has come, without a system call.
    pub fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        Some(Completion { user_data: entry.user_data(), result: entry.result() })
    }

    /// Moves the backlog into the submission queue, as far as there is room.
    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry keeps what it points at until its completion.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }
}

impl Submit for Ring {
    unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            return self.backlog.push_back(entry);
        }
        // SAFETY: the caller keeps what the entry points at until its completion.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        // Full: an error here comes again with the next wait, which tells it.
        let _ = self.ring.submit();
        self.backlog.push_back(entry);
        self.refill();
    }

    fn data_file(&mut self, file: &Arc<FileDisk>) -> DataFile {
        let descriptor = file.file().as_raw_fd();
        let known = self.files.iter().position(|known| Arc::ptr_eq(known, file));
        let index = known.unwrap_or(self.files.len());
        let slot = u32::try_from(index).expect("a ring has few files");
        let is_registered = match known {
            Some(_) => self.registers_files && slot < REGISTERED_FILES,
            None => {
                self.files.push(file.clone());
                let fits = self.registers_files && slot < REGISTERED_FILES;
                if fits && self.ring.submitter().register_files_update(slot, &[descriptor]).is_err() {
                    self.registers_files = false;
                }
                fits && self.registers_files
            }
        };
        if is_registered { DataFile::Registered(slot) } else { DataFile::Plain(descriptor) }
    }

    fn register(&mut self, start: NonNull<u8>, length_bytes: usize) -> Option<u16> {
        if self.free_buffers.is_none() && self.make_buffer_table(0).is_err() {
            return None;
        }
        let index = self.free_buffers.as_mut()?.next()?;
        let vector = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length_bytes };
        // SAFETY: the kernel holds on to the pages by itself, and touches them only for an entry that names this index, whose pusher answers for it.
        let put = unsafe { self.ring.submitter().register_buffers_update(index, &[vector], None) };
        if put.is_err() {
            // More than may be locked, most likely: so will be what comes next.
            self.free_buffers = Some(0..0);
            return None;
        }
        u16::try_from(index).ok()
    }
}

/// The best ring that the kernel has: completions are worked off when we wait (6.1), or at least without interrupting
/// us (5.19), or as it was in the beginning.
fn build(entries: u32) -> io::Result<IoUring> {
    let completions = entries.saturating_mul(4);
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let mut plain = IoUring::builder();
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for builder in [&mut deferred, &mut cooperative, &mut plain] {
        result = builder.setup_clamp().setup_cqsize(completions).build(entries);
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {} // flags it does not know
            Ok(_) | Err(_) => return result,
        }
    }
    result
}

fn cannot_build(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => {
            Error::new(ErrorKind::Unsupported, format!("the kernel does not let us use io_uring: {error}"))
                .hint(
                    "Linux 5.15 or later is needed, /proc/sys/kernel/io_uring_disabled must be 0, \
                 and a container's seccomp profile must allow io_uring_setup",
                )
        }
        Some(libc::ENOMEM) => {
            Error::io("io_uring: making a ring", error).hint("raise the limit of locked memory (ulimit -l)")
        }
        Some(_) | None => Error::io("io_uring: making a ring", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::AlignedBuffer;
    use io_uring::{opcode, types};

    fn nop(number: u64) -> squeue::Entry {
        opcode::Nop::new().build().user_data(number)
    }

    #[test]
    fn any_number_of_entries_comes_back_once() {
        let mut ring = Ring::new(8).unwrap();
        let mut seen = vec![0; 1000];
        for turn in 0..10 {
            for number in turn * 100..(turn + 1) * 100 {
                // SAFETY: a no-op points at nothing.
                unsafe { ring.push(nop(number)) };
            }
            ring.submit_and_wait(1).unwrap();
            while let Some(completion) = ring.next_completion() {
                assert_eq!(completion.result(), 0);
                seen[completion.user_data() as usize] += 1;
            }
        }
        while seen.contains(&0) {
            ring.submit_and_wait(1).unwrap();
            while let Some(completion) = ring.next_completion() {
                seen[completion.user_data() as usize] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count == 1));
    }

    #[test]
    fn without_a_wish_it_does_not_wait() {
        let mut ring = Ring::new(8).unwrap();
        ring.submit_and_wait(0).unwrap();
        assert!(ring.next_completion().is_none());
    }

    #[test]
    fn files_are_registered_once_and_beyond_the_table_go_by_descriptor() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut ring = Ring::new(8).unwrap();
        for index in 0..REGISTERED_FILES + 2 {
            let disk = FileDisk::create(&directory.path().join(index.to_string()), 4096).unwrap();
            let disk = Arc::new(disk);
            let name = ring.data_file(&disk);
            assert_eq!(ring.data_file(&disk), name);
            assert_eq!(name == DataFile::Plain(disk.file().as_raw_fd()), index >= REGISTERED_FILES);
            let buffer = AlignedBuffer::zeroed(4096);
            let memory = buffer.start().as_ptr();
            let read = match name {
                DataFile::Registered(index) => opcode::Read::new(types::Fixed(index), memory, 4096).build(),
                DataFile::Plain(file) => opcode::Read::new(types::Fd(file), memory, 4096).build(),
            };
            // SAFETY: the buffer lives until the completion is taken below.
            unsafe { ring.push(read) };
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.next_completion().unwrap().result(), 4096);
            if index == REGISTERED_FILES + 1 {
                ring.forget_files();
                assert_eq!(Arc::strong_count(&disk), 1, "who forgets a file lets it be closed");
                assert_eq!(ring.data_file(&disk), DataFile::Registered(0));
            }
        }
    }
}
