//! One queue of a device: a thread with a ring, a lane, and a buffer for each tag (none with zero copy).
//!
//! A tag is always in one of three places. In the kernel's hands: a command waits for the next request (or takes an answer
//! there), and the tag's buffer is the kernel's, which puts a write's bytes into it. In the lane: the request runs. Or ended:
//! the device goes away and no more requests come for the tag. The thread is through when all tags have ended, or when it is told to let go:
//! then it answers what it has begun, and leaves the rest to another daemon, to which the kernel gives it again.
//!
//! - The buffers are made once. Nothing is allocated for a request.
//! - What the lane has begun is waited for, however the queue ends; buffers that the kernel may still have are leaked.

use super::abi::{self, Descriptor};
use super::params::REQUEST_BYTES_LIMIT;
use super::request::{Terms, errno_of, understand};
use crate::disk::AlignedBuffer;
use crate::driver::uring::{Completion, Finished, Lent, Registered, Ring, Submit, UringLane};
use crate::engine::{Kind, Request, Tag, Volume};
use crate::error::{Error, Result};
use crate::units::BlockSize;
use io_uring::{opcode, types};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Zeros that are written rather than unmapped go in steps of so many data blocks at most: they have no buffers, but each
/// block takes some hundred bytes in lane and keeper.
const ZEROES_STEP_BLOCKS: u64 = 64;

/// What of a tag's buffer is [registered](Registered) with the ring, so that the kernel need not look for its pages: enough for most requests, and
/// little enough for all tags of a device. And from which request on: tags of a device that is hardly used take no memory.
const REGISTERED_BYTES: usize = 16 << 10;
const REGISTERED_FROM: u8 = 8;
/// Tags of a queue of which that is so.
const REGISTERED_TAGS: u16 = 256;

/// What a queue is made of.
pub(super) struct Plan {
    pub(super) number: u16,
    pub(super) depth: u16,
    /// `/dev/ublkcN`, open.
    pub(super) device: Arc<File>,
    pub(super) volume: Arc<Volume>,
    pub(super) lane: UringLane,
    pub(super) block_size: BlockSize,
    pub(super) read_only: bool,
    /// Whether the kernel lends the ring the pages of requests.
    pub(super) zero_copy: bool,
    /// What its thread is told.
    pub(super) told: Arc<Told>,
    /// What it tells.
    pub(super) tells: Arc<Tells>,
}

/// What a queue's thread tells of itself: see [`crate::driver::uring::LentMoved`]. Each number for itself.
#[derive(Default)]
pub(super) struct Tells {
    pub(super) in_place_bytes: AtomicU64,
    pub(super) copied_bytes: AtomicU64,
}

/// What a queue's thread is told, by whoever wakes its lane then.
#[derive(Default)]
pub(super) struct Told {
    /// To end, although commands wait in the kernel.
    pub(super) to_end: AtomicBool,
    /// To let requests wait no longer: who waits for space in the pool gets an error.
    pub(super) to_hang_up: AtomicBool,
    /// To leave the device to another daemon.
    pub(super) to_let_go: AtomicBool,
}

/// Runs a queue to its end. `ready` is called once all tags wait in the kernel.
pub(super) fn run(plan: Plan, ready: impl FnOnce()) -> Result<()> {
    let mut queue = Queue::new(plan)?;
    let served = queue.serve(ready);
    if served.is_ok() && queue.leaving.is_some() {
        return Ok(());
    }
    let drained = queue.drain();
    served.and(drained)
}

/// A tag.
struct Slot {
    /// Except while the lane has it, and with zero copy.
    buffer: Option<AlignedBuffer>,
    registered: Option<Registered>,
    /// Requests with the buffer, up to [`REGISTERED_FROM`].
    uses: u8,
    work: Work,
}

impl Slot {
    fn new(buffer: Option<AlignedBuffer>) -> Slot {
        Slot { buffer, registered: None, uses: 0, work: Work::None }
    }
}

#[derive(Clone)]
enum Work {
    /// None: the tag waits in the kernel, or has ended.
    None,
    /// A request of so many bytes, all of which the lane does at once.
    Whole { bytes: i32 },
    /// There have to be zeros from here on.
    Zeroes { left: Range<u64>, fua: bool, may_unmap: bool },
}

struct Queue {
    number: u16,
    device: Arc<File>,
    volume: Arc<Volume>,
    block_size: BlockSize,
    read_only: bool,
    zero_copy: bool,
    told: Arc<Told>,
    tells: Arc<Tells>,
    /// Not dropped when the queue lets go.
    ring: ManuallyDrop<Ring>,
    lane: UringLane,
    descriptors: Descriptors,
    slots: Vec<Slot>,
    /// Tags that wait in the kernel.
    waiting: usize,
    /// Once it lets go.
    leaving: Option<Leaving>,
}

/// What a queue leaves to the daemon that comes next.
#[derive(Default)]
struct Leaving {
    /// Tags whose requests have come and are not begun.
    tags: Vec<u16>,
    /// An answer that the kernel gets at the very last.
    held: Option<(u16, i32)>,
}

impl Queue {
    fn new(plan: Plan) -> Result<Queue> {
        let Plan { number, depth, device, volume, lane, block_size, read_only, zero_copy, told, tells } =
            plan;
        let mut ring = Ring::new(u32::from(depth) * 2)?;
        if zero_copy {
            ring.make_room_for_lent(depth)?;
        }
        let ring = ManuallyDrop::new(ring);
        let descriptors = Descriptors::map(&device, number, depth)?;
        let slot = |_| {
            if zero_copy {
                return Ok(Slot::new(None));
            }
            let buffer = AlignedBuffer::untouched(REQUEST_BYTES_LIMIT as usize)
                .map_err(|error| Error::io("ublk: a queue's buffers", &error))?;
            Ok(Slot::new(Some(buffer)))
        };
        let slots = (0..depth).map(slot).collect::<Result<Vec<_>>>()?;
        let waiting = 0;
        Ok(Queue {
            number,
            device,
            volume,
            block_size,
            read_only,
            zero_copy,
            told,
            tells,
            ring,
            lane,
            descriptors,
            slots,
            waiting,
            leaving: None,
        })
    }

    /// Serves until all tags have ended. An error is the ring's, or the driver refused a command.
    fn serve(&mut self, ready: impl FnOnce()) -> Result<()> {
        for tag in 0..self.slots.len() as u16 {
            self.submit(tag, abi::UBLK_U_IO_FETCH_REQ, 0);
        }
        self.ring.submit_and_wait(0)?;
        self.take_completions()?;
        ready();
        loop {
            if self.told.to_let_go.load(Ordering::SeqCst) {
                return self.let_go();
            }
            if self.told.to_hang_up.load(Ordering::SeqCst) {
                self.lane.hang_up(&mut *self.ring);
            }
            self.move_on();
            self.tell();
            if self.waiting == 0 && self.lane.in_flight() == 0 {
                return Ok(());
            }
            if self.told.to_end.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.waiting == self.slots.len() {
                self.lane.rest();
            }
            self.ring.submit_and_wait(1)?;
            self.take_completions()?;
        }
    }

    /// Answers what the lane has, so that another daemon can have the queue. What comes now, or fails now, is left to that one.
    ///
    /// The kernel notices that we are gone by the tags that wait in it, and if there is none, only when its own patience is over. So the
    /// first answer is held back until nothing more is taken from the kernel: its tag waits then, whatever else has come.
    fn let_go(&mut self) -> Result<()> {
        self.leaving = Some(Leaving::default());
        // Who waits for space may do so there.
        self.lane.hang_up(&mut *self.ring);
        loop {
            self.move_on();
            if self.lane.in_flight() > 0 {
                self.ring.submit_and_wait(1)?;
                self.take_completions()?;
                continue;
            }
            // Also the lane's bell is silent then: nothing more is taken from the kernel.
            let mut arrivals = Vec::new();
            self.lane.drain(&mut self.ring, |completion, _| arrivals.push(completion))?;
            arrivals.iter().try_for_each(|completion| self.arrived(completion))?;
            let leaving = self.leaving.as_mut().expect("it was set above");
            if self.waiting > 0 || leaving.held.is_some() {
                break;
            }
            // Each is tried once: what fails here is left all the same.
            let Some(tag) = leaving.tags.pop() else { break };
            self.begin(tag);
        }
        let held = self.leaving.as_mut().and_then(|leaving| leaving.held.take());
        if let Some((tag, answer)) = held {
            self.submit(tag, abi::UBLK_U_IO_COMMIT_AND_FETCH_REQ, answer);
        }
        self.ring.submit()
    }

    fn take_completions(&mut self) -> Result<()> {
        while let Some(completion) = self.ring.next_completion() {
            if self.lane.owns(&completion) {
                self.lane.complete(completion, &mut *self.ring);
            } else {
                self.arrived(&completion)?;
            }
        }
        Ok(())
    }

    /// Does all that can be done without waiting.
    fn move_on(&mut self) {
        loop {
            self.lane.before_wait(&mut *self.ring);
            let mut has_begun = false;
            while let Some(finished) = self.lane.next_finished() {
                has_begun |= self.finished(finished);
            }
            // What was begun just now may have questions for the keeper.
            if !has_begun {
                return;
            }
        }
    }

    fn tell(&self) {
        if self.zero_copy {
            let moved = self.lane.lent_moved();
            self.tells.in_place_bytes.store(moved.in_place_bytes, Ordering::Relaxed);
            self.tells.copied_bytes.store(moved.copied_bytes, Ordering::Relaxed);
        }
    }

    /// Hands a tag to the kernel: to wait for its first request, or with the answer to the last.
    fn submit(&mut self, tag: u16, command: u32, result: i32) {
        let slot = &mut self.slots[usize::from(tag)];
        slot.work = Work::None;
        let address = match (&slot.buffer, self.zero_copy) {
            (Some(buffer), false) => buffer.start().as_ptr() as u64,
            (None, true) => 0,
            (None, false) | (Some(_), true) => unreachable!("the lane has given back what it was given"),
        };
        let bytes = abi::io_command(self.number, tag, result, address);
        let lend_as = self.zero_copy.then(|| abi::lend_as(tag));
        let entry = opcode::UringCmd16::new(types::Fd(self.device.as_raw_fd()), command).cmd(bytes);
        let entry = entry.addr(lend_as).build();
        // SAFETY: with zero copy no memory is named. Else the slot keeps the buffer, and nobody touches it, until the command's completion says whose it is; it is
        // leaked if that does not come. The device is open for as long as the queue.
        unsafe { self.ring.push(entry.user_data(u64::from(tag))) };
        self.waiting += 1;
    }

    /// A tag came back from the kernel.
    fn arrived(&mut self, completion: &Completion) -> Result<()> {
        self.waiting -= 1;
        let tag = completion.user_data() as u16;
        match completion.result() {
            0 => {
                match &mut self.leaving {
                    Some(leaving) => leaving.tags.push(tag),
                    None => self.begin(tag),
                }
                Ok(())
            }
            abi::ABORTED => Ok(()),
            other => {
                let error = std::io::Error::from_raw_os_error(-other);
                Err(Error::io(format!("ublk: the driver refuses a command of queue {}", self.number), &error))
            }
        }
    }

    /// Begins the request that came with a tag.
    fn begin(&mut self, tag: u16) {
        let descriptor = self.descriptors.read(tag);
        let terms = Terms { size_bytes: self.volume.size_bytes(), read_only: self.read_only };
        let wanted = match understand(&descriptor, terms) {
            Ok(wanted) => wanted,
            Err(errno) => {
                let Descriptor { op_flags, start_sector, nr_sectors, .. } = descriptor;
                tracing::warn!(
                    op_flags,
                    start_sector,
                    nr_sectors,
                    errno,
                    "refused a request of the kernel's"
                );
                return self.submit(tag, abi::UBLK_U_IO_COMMIT_AND_FETCH_REQ, -errno);
            }
        };
        let slot = &mut self.slots[usize::from(tag)];
        match wanted.kind {
            Kind::WriteZeroes { fua, may_unmap } => {
                slot.work = Work::Zeroes { left: wanted.range, fua, may_unmap };
                self.write_zeroes(tag);
            }
            Kind::Read | Kind::Write { .. } => {
                slot.work = Work::Whole { bytes: (wanted.range.end - wanted.range.start) as i32 };
                if !self.zero_copy {
                    return self.start_with_buffer(tag, wanted.kind, wanted.range);
                }
                let is_lent = descriptor.op_flags & abi::UBLK_IO_F_NEED_REG_BUF == 0;
                let lent = Lent {
                    index: if is_lent { tag } else { Lent::NOT_THERE },
                    address: 0,
                    file: self.device.clone(),
                    file_offset_bytes: abi::request_offset(self.number, tag),
                    length_bytes: wanted.range.end - wanted.range.start,
                };
                let request = self.request(tag, wanted.kind, wanted.range);
                self.lane.begin_lent(request, lent, &mut *self.ring);
            }
            Kind::Discard | Kind::Flush | Kind::Extents | Kind::Settle => {
                slot.work = Work::Whole { bytes: 0 };
                self.start(tag, wanted.kind, wanted.range);
            }
        }
    }

    /// The next step of zeros; only the last needs force, which covers all that was acknowledged.
    fn write_zeroes(&mut self, tag: u16) {
        let (block_bytes, origin_bytes) = (self.block_size.bytes(), self.volume.origin_bytes());
        let slot = &mut self.slots[usize::from(tag)];
        let Work::Zeroes { left, fua, may_unmap } = &mut slot.work else { unreachable!("it writes zeros") };
        let end = match *may_unmap && left.start >= origin_bytes {
            true => left.end, // one operation, whatever its length
            // Ends between blocks: none is zeroed in two parts, which may mean to fill it first.
            false => ((left.start / block_bytes + ZEROES_STEP_BLOCKS) * block_bytes).min(left.end),
        };
        let range = left.start..end;
        let kind = Kind::WriteZeroes { fua: *fua && end == left.end, may_unmap: *may_unmap };
        left.start = end;
        self.start(tag, kind, range);
    }

    fn start(&mut self, tag: u16, kind: Kind, range: Range<u64>) {
        let request = self.request(tag, kind, range);
        self.lane.begin(request, None, &mut *self.ring);
    }

    fn start_with_buffer(&mut self, tag: u16, kind: Kind, range: Range<u64>) {
        let request = self.request(tag, kind, range);
        let slot = &mut self.slots[usize::from(tag)];
        let buffer = slot.buffer.take().expect("the kernel has filled it, or leaves that to us");
        if slot.uses < REGISTERED_FROM && tag < REGISTERED_TAGS {
            slot.uses += 1;
            if slot.uses == REGISTERED_FROM {
                let index = self.ring.register(buffer.start(), REGISTERED_BYTES);
                slot.registered =
                    index.map(|index| Registered { index, length_bytes: REGISTERED_BYTES as u64 });
            }
        }
        match slot.registered {
            Some(registered) => {
                self.lane.begin_registered(request, buffer, registered, &mut *self.ring);
            }
            None => self.lane.begin(request, Some(buffer), &mut *self.ring),
        }
    }

    fn request(&self, tag: u16, kind: Kind, range: Range<u64>) -> Request {
        Request {
            tag: Tag(u64::from(tag)),
            volume: self.volume.clone(),
            kind,
            offset_bytes: range.start,
            length_bytes: range.end - range.start,
        }
    }

    /// A step of a request has ended; whether another was begun.
    fn finished(&mut self, finished: Finished) -> bool {
        let tag = finished.tag.0 as u16;
        let slot = &mut self.slots[usize::from(tag)];
        if finished.buffer.is_some() {
            slot.buffer = finished.buffer;
        }
        let answer = match (finished.result, &slot.work) {
            (Err(_), _) if self.leaving.is_some() => return false,
            (Ok(()), Work::Zeroes { left, .. }) if self.leaving.is_some() && !left.is_empty() => {
                return false;
            }
            (Err(error), _) => -errno_of(error),
            (Ok(()), Work::Zeroes { left, .. }) if !left.is_empty() => {
                self.write_zeroes(tag);
                return true;
            }
            (Ok(()), Work::Zeroes { .. }) => 0,
            (Ok(()), Work::Whole { bytes }) => *bytes,
            (Ok(()), Work::None) => unreachable!("the lane finishes what was begun"),
        };
        if let Some(leaving) = &mut self.leaving
            && leaving.held.is_none()
        {
            leaving.held = Some((tag, answer));
            return false;
        }
        self.submit(tag, abi::UBLK_U_IO_COMMIT_AND_FETCH_REQ, answer);
        false
    }

    /// Waits for what the lane has begun. What comes from the kernel meanwhile is dropped: the device is going away.
    fn drain(&mut self) -> Result<()> {
        let waiting = &mut self.waiting;
        self.lane.drain(&mut self.ring, |_, _| *waiting -= 1)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What the kernel has put aside for a thread's ring when that is closed, it does elsewhere, while it cancels the commands that wait (6.12):
        // a request that is just coming is lost in between, and the device waits for it for ever. When the thread ends first, the kernel does the
        // one after the other. So who lets go leaves the ring to the end of the process, which is near.
        if self.leaving.is_none() {
            // SAFETY: nobody uses it any more.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
        if self.waiting == 0 {
            return;
        }
        // The kernel may still put a request's bytes into these.
        for slot in &mut self.slots {
            std::mem::forget(slot.buffer.take());
        }
    }
}

/// The descriptors of a queue's requests, which the kernel writes before it hands a tag over.
struct Descriptors {
    start: NonNull<Descriptor>,
    bytes: usize,
    depth: u16,
}

impl Descriptors {
    fn map(device: &File, queue: u16, depth: u16) -> Result<Descriptors> {
        let page = rustix::param::page_size();
        let bytes = (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(page);
        let offset = abi::descriptors_offset(queue);
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: the system chooses a place where nothing is.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, flags, device, offset) };
        let start = start.map_err(|errno| Error::io("ublk: mapping a queue's descriptors", &errno.into()))?;
        let start = NonNull::new(start.cast()).expect("the system maps nothing at address 0");
        Ok(Descriptors { start, bytes, depth })
    }

    /// The request that a tag came with. To be called after its completion, and before the tag is handed back.
    fn read(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "the kernel hands out the tags that it was given");
        // SAFETY: `depth` descriptors are mapped; this one the kernel wrote before the completion that was taken, and it
        // leaves it alone until the tag is handed back. All of it is numbers.
        unsafe { self.start.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nothing refers to it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
