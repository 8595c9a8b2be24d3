//! The transmission phase as a state machine: bytes received in, requests begun, replies queued. No I/O of its own.
//!
//! A request lives in a slot from its header to its reply; the slot's index is its tag, and the client's cookie, which
//! may be anything, stays in the slot. What must hold:
//!
//! - At most [`REQUESTS_LIMIT`] requests run, and what they take (buffers of replies not yet sent, and the lane's for parts of
//!   blocks, included) is at most [`MEMORY_LIMIT_BYTES`] and what the backend has room for, or a single request's. What
//!   does not fit stays in the socket.
//! - No request is begun while more than [`UNSENT_LIMIT_BYTES`] of replies wait for the client to read them.
//! - Every request that was begun gets one reply; nothing is allocated for a read or write.
//! - A request may take several steps (a TRIM with FUA: discard, then flush), one after the other in its slot.

use super::options::ALLOCATION_CONTEXT_ID;
use super::protocol::{
    ChunkKind, Errno, RequestHeader, allocation_flags, data_chunk, error_chunk, only_chunk, simple_reply,
    split_array,
};
use super::validate::{Operation, Refusal, Terms, check};
use crate::disk::AlignedBuffer;
use crate::driver::uring::Finished;
use crate::engine::{CHUNK_BYTES, Extent, ExtentState, IoError, Kind, Tag};
use std::ops::Range;

/// Requests that run at a time on one connection.
pub const REQUESTS_LIMIT: usize = 256;
/// Memory that they may hold.
pub const MEMORY_LIMIT_BYTES: usize = 64 << 20;
/// Replies that may wait to be sent before no more requests are begun.
pub const UNSENT_LIMIT_BYTES: usize = 16 << 20;
/// A write of at most this is copied out of the receive buffer, so that many arrive with one receive; a longer one is
/// received in place.
const COPIED_PAYLOAD_BYTES: usize = 64 << 10;
/// A refused write's payload up to this is received and dropped; a longer one ends the connection.
const SKIPPED_PAYLOAD_BYTES: u32 = 64 << 20;
/// Zeros that are written rather than unmapped go in steps of so many data blocks at most, so that a 4 GiB request is not
/// 65,536 operations at a time: they have no buffers, but each takes some hundred bytes in lane and keeper.
const ZEROES_STEP_BLOCKS: u64 = 64;
/// Data blocks in which one extent's end is looked for at first, and how much wider each next look is. A fragmented volume
/// would otherwise be read to the end of the request for each of its extents.
const FIRST_LOOK_BLOCKS: u64 = 256;
const NEXT_LOOK_FACTOR: u64 = 8;
/// What an extent takes while a BLOCK_STATUS runs: in the engine's list and in the reply.
const EXTENT_BYTES: u64 = 32;

/// What a session needs of its socket; see `driver::uring::SocketStream`.
pub trait Wire {
    /// What has arrived and was not consumed. Holds at least a header and [`COPIED_PAYLOAD_BYTES`] when full.
    fn received(&self) -> &[u8];
    /// Drops the first bytes of it.
    fn consume(&mut self, count: usize);
    /// Fills the range with the next bytes of the stream.
    fn receive_into(&mut self, buffer: AlignedBuffer, range: Range<usize>);
    /// The buffer, once it is filled.
    fn take_filled(&mut self) -> Option<AlignedBuffer>;
    /// Queues a copy of these bytes.
    fn send_bytes(&mut self, bytes: &[u8]);
    /// Queues a part of a buffer, which comes back to [`Session::sent`].
    fn send_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>);
    /// Bytes queued and not yet taken by the socket.
    fn unsent_bytes(&self) -> usize;
}

/// What a session needs of its lane.
pub trait Backend {
    /// A buffer of at least this length.
    fn take_buffer(&mut self, length_bytes: usize) -> AlignedBuffer;
    /// Whether so many bytes more can be had without taking from others.
    fn has_room(&self, more_bytes: usize) -> bool;
    /// Gives one back.
    fn give_buffer(&mut self, buffer: AlignedBuffer);
    /// Begins a step of a request on the session's volume; its end comes to [`Session::finished`].
    fn begin(&mut self, tag: Tag, kind: Kind, range: Range<u64>, buffer: Option<AlignedBuffer>);
}

/// Why a session reads no more requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closing {
    /// The client said goodbye.
    Disconnect,
    /// The client is gone, or we stop.
    Asked,
    /// The client broke the protocol.
    Broken(String),
}

/// What the next received bytes are.
enum Intake {
    /// A request's header.
    Header,
    /// A write's payload, on its way into a buffer. A slot is kept for it.
    Payload { header: RequestHeader, fua: bool },
    /// What is left of a refused write's payload; the reply comes after it.
    Skipped { left_bytes: usize, cookie: u64, refusal: Refusal },
    /// Nothing is read any more.
    Closed(Closing),
}

/// A request under way: which, and what comes after its present step.
#[derive(Clone, Copy)]
struct Slot {
    cookie: u64,
    work: Work,
    /// What its fills may take in the lane.
    scratch_bytes: usize,
}

#[derive(Clone, Copy)]
enum Work {
    Free,
    Read {
        offset_bytes: u64,
        length_bytes: u32,
    },
    /// A write, a flush, or the last step of something else: what remains is to reply.
    Last,
    /// A flush comes after it.
    TrimThenFlush,
    /// There have to be zeros from here on.
    Zeroes {
        left_begin: u64,
        left_end: u64,
        fua: bool,
        may_unmap: bool,
    },
    Status {
        cost_bytes: usize,
    },
    /// The first extent's end is being looked for.
    FirstExtent(FirstExtent),
}

#[derive(Clone, Copy)]
struct FirstExtent {
    /// Where it begins.
    begin: u64,
    /// How far it is known, and its flags.
    known_end: u64,
    flags: Option<u32>,
    /// Where the request ends.
    end: u64,
    look_bytes: u64,
    cost_bytes: usize,
}

/// The transmission phase of one connection.
pub struct Session {
    terms: Terms,
    intake: Intake,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Bytes of buffers in slots, on their way in or not yet sent, and what status requests are reckoned at.
    memory_bytes: usize,
    /// A request waits in the received bytes for room.
    starved: bool,
    /// A step was begun since [`Session::take_begun`].
    begun: bool,
    /// For replies that are put together.
    scratch: Vec<u8>,
}

impl Session {
    /// A session that knows what was agreed on.
    pub fn new(terms: Terms) -> Self {
        Session {
            terms,
            intake: Intake::Header,
            slots: vec![Slot { cookie: 0, work: Work::Free, scratch_bytes: 0 }; REQUESTS_LIMIT],
            free: (0..REQUESTS_LIMIT).rev().collect(),
            memory_bytes: 0,
            starved: false,
            begun: false,
            scratch: Vec::with_capacity(4096),
        }
    }

    /// Requests that run.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing runs, and no payload is on its way.
    pub fn is_idle(&self) -> bool {
        self.memory_bytes == 0 && self.in_flight() == 0
    }

    /// Why it reads no more, if so. When then nothing is in flight and all is sent, the session is over.
    pub fn closing(&self) -> Option<&Closing> {
        match &self.intake {
            Intake::Closed(closing) => Some(closing),
            Intake::Header | Intake::Payload { .. } | Intake::Skipped { .. } => None,
        }
    }

    /// Reads no more requests; those that run get their replies.
    pub fn close(&mut self, closing: Closing) {
        if self.closing().is_none() {
            self.intake = Intake::Closed(closing);
            self.starved = false;
        }
    }

    /// Whether a received request could not be begun for want of room, so that a finished one is reason to look again.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether a step was begun since this was asked last.
    pub fn take_begun(&mut self) -> bool {
        std::mem::take(&mut self.begun)
    }

    /// Takes in all that was received: begins requests, answers the wrong ones.
    pub fn take_in(&mut self, wire: &mut impl Wire, backend: &mut impl Backend) {
        self.starved = false;
        while self.take_in_one(wire, backend) {}
    }

    /// One header or payload; `false` when there is none yet, or no room.
    fn take_in_one(&mut self, wire: &mut impl Wire, backend: &mut impl Backend) -> bool {
        match &mut self.intake {
            Intake::Closed(_) => false,
            Intake::Header => self.header(wire, backend),
            Intake::Payload { header, fua } => {
                let (header, fua) = (*header, *fua);
                let Some(buffer) = wire.take_filled() else { return false };
                self.intake = Intake::Header;
                self.begin_write(&header, fua, buffer, backend);
                true
            }
            Intake::Skipped { left_bytes, cookie, refusal } => {
                let count = wire.received().len().min(*left_bytes);
                wire.consume(count);
                *left_bytes -= count;
                if *left_bytes > 0 {
                    return false;
                }
                let (cookie, refusal) = (*cookie, *refusal);
                self.intake = Intake::Header;
                self.reply_error(cookie, refusal.error, refusal.message, wire);
                true
            }
        }
    }

    fn header(&mut self, wire: &mut impl Wire, backend: &mut impl Backend) -> bool {
        let Some((bytes, after)) = split_array(wire.received()) else { return false };
        let Some(header) = RequestHeader::decode(bytes) else {
            self.close(Closing::Broken(format!("a request begins with {:02x?}", &bytes[..4])));
            return false;
        };
        if wire.unsent_bytes() > UNSENT_LIMIT_BYTES {
            self.starved = true;
            return false;
        }
        let operation = match check(&header, &self.terms) {
            Ok(operation) => operation,
            Err(refusal) => return self.refuse(&header, refusal, wire),
        };
        let length = header.length_bytes as usize;
        let cost_bytes = self.cost_bytes(operation, &header) + self.scratch_bytes(operation, &header);
        if !self.has_room(cost_bytes, backend) {
            self.starved = true;
            return false;
        }
        if let Operation::Write { fua } = operation {
            if length > COPIED_PAYLOAD_BYTES {
                let buffer = self.take_buffer(length, backend);
                wire.consume(RequestHeader::BYTES);
                wire.receive_into(buffer, 0..length);
                self.intake = Intake::Payload { header, fua };
                return true;
            }
            let Some(payload) = after.get(..length) else { return false };
            let mut buffer = self.take_buffer(length, backend);
            buffer[..length].copy_from_slice(payload);
            wire.consume(RequestHeader::BYTES + length);
            self.begin_write(&header, fua, buffer, backend);
            return true;
        }
        wire.consume(RequestHeader::BYTES);
        self.begin(operation, &header, backend);
        true
    }

    /// Answers a request that is not carried out, after its payload.
    fn refuse(&mut self, header: &RequestHeader, refusal: Refusal, wire: &mut impl Wire) -> bool {
        let RequestHeader { command, flags, offset_bytes, length_bytes, cookie } = *header;
        tracing::debug!(command, flags, offset_bytes, length_bytes, refusal.message, "refused a request");
        if header.payload_bytes() > SKIPPED_PAYLOAD_BYTES {
            self.close(Closing::Broken(format!("a write of {length_bytes} bytes")));
            return false;
        }
        wire.consume(RequestHeader::BYTES);
        self.intake = Intake::Skipped { left_bytes: header.payload_bytes() as usize, cookie, refusal };
        true
    }

    /// What a request holds while it runs.
    fn cost_bytes(&self, operation: Operation, header: &RequestHeader) -> usize {
        match operation {
            // Buffers come in powers of two.
            Operation::Read | Operation::Write { .. } => (header.length_bytes as usize).next_power_of_two(),
            Operation::BlockStatus { .. } => {
                let blocks = self.terms.block_size.blocks_to_hold(u64::from(header.length_bytes)) + 1;
                (blocks * EXTENT_BYTES) as usize
            }
            Operation::Flush
            | Operation::Trim { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Disconnect => 0,
        }
    }

    /// What the lane takes besides, for the blocks at either end that the request covers in part only.
    fn scratch_bytes(&self, operation: Operation, header: &RequestHeader) -> usize {
        match operation {
            Operation::Write { .. } | Operation::WriteZeroes { .. } => {
                let block_bytes = self.terms.block_size.bytes();
                let end = header.offset_bytes + u64::from(header.length_bytes);
                let ends =
                    [header.offset_bytes, end].map(|edge| usize::from(!edge.is_multiple_of(block_bytes)));
                (ends[0] + ends[1]) * block_bytes.min(CHUNK_BYTES).next_power_of_two() as usize
            }
            Operation::Read
            | Operation::BlockStatus { .. }
            | Operation::Flush
            | Operation::Trim { .. }
            | Operation::Disconnect => 0,
        }
    }

    fn has_room(&self, cost_bytes: usize, backend: &impl Backend) -> bool {
        let fits = cost_bytes == 0
            || (self.memory_bytes + cost_bytes <= MEMORY_LIMIT_BYTES && backend.has_room(cost_bytes));
        // A single request is always taken, or it never would be.
        !self.free.is_empty() && (fits || self.is_idle())
    }

    fn take_buffer(&mut self, length: usize, backend: &mut impl Backend) -> AlignedBuffer {
        let buffer = backend.take_buffer(length);
        self.memory_bytes += buffer.len();
        buffer
    }

    fn give_buffer(&mut self, buffer: AlignedBuffer, backend: &mut impl Backend) {
        self.memory_bytes -= buffer.len();
        backend.give_buffer(buffer);
    }

    /// A buffer that was sent, or never will be.
    pub fn sent(&mut self, buffer: AlignedBuffer, backend: &mut impl Backend) {
        self.give_buffer(buffer, backend);
    }

    fn begin_write(
        &mut self,
        header: &RequestHeader,
        fua: bool,
        buffer: AlignedBuffer,
        backend: &mut impl Backend,
    ) {
        let end = header.offset_bytes + u64::from(header.length_bytes);
        let slot = self.take_slot(header.cookie, Work::Last);
        self.reckon_scratch(slot, Operation::Write { fua }, header);
        self.step(slot, Kind::Write { fua }, header.offset_bytes..end, Some(buffer), backend);
    }

    /// Begins everything but a write.
    fn begin(&mut self, operation: Operation, header: &RequestHeader, backend: &mut impl Backend) {
        let RequestHeader { cookie, offset_bytes, length_bytes, .. } = *header;
        let end = offset_bytes + u64::from(length_bytes);
        let range = offset_bytes..end;
        match operation {
            Operation::Write { .. } => unreachable!("a write is begun with its payload"),
            Operation::Disconnect => self.close(Closing::Disconnect),
            Operation::Read => {
                let buffer = self.take_buffer(length_bytes as usize, backend);
                let slot = self.take_slot(cookie, Work::Read { offset_bytes, length_bytes });
                self.step(slot, Kind::Read, range, Some(buffer), backend);
            }
            Operation::Flush => {
                let slot = self.take_slot(cookie, Work::Last);
                self.step(slot, Kind::Flush, 0..0, None, backend);
            }
            Operation::Trim { fua } => {
                let slot = self.take_slot(cookie, if fua { Work::TrimThenFlush } else { Work::Last });
                self.step(slot, Kind::Discard, range, None, backend);
            }
            Operation::WriteZeroes { fua, may_unmap } => {
                let slot = self.take_slot(cookie, Work::Last);
                self.reckon_scratch(slot, operation, header);
                self.write_zeroes(slot, range, fua, may_unmap, backend);
            }
            Operation::BlockStatus { one } => self.begin_status(header, one, backend),
        }
    }

    fn begin_status(&mut self, header: &RequestHeader, one: bool, backend: &mut impl Backend) {
        let cost_bytes = self.cost_bytes(Operation::BlockStatus { one }, header);
        self.memory_bytes += cost_bytes;
        let (begin, end) = (header.offset_bytes, header.offset_bytes + u64::from(header.length_bytes));
        if !one {
            let slot = self.take_slot(header.cookie, Work::Status { cost_bytes });
            return self.step(slot, Kind::Extents, begin..end, None, backend);
        }
        let look_bytes = FIRST_LOOK_BLOCKS * self.terms.block_size.bytes();
        let first = FirstExtent { begin, known_end: begin, flags: None, end, look_bytes, cost_bytes };
        let slot = self.take_slot(header.cookie, Work::FirstExtent(first));
        self.look_further(slot, first, backend);
    }

    fn look_further(&mut self, slot: usize, first: FirstExtent, backend: &mut impl Backend) {
        let look_end = first.known_end.saturating_add(first.look_bytes).min(first.end);
        let look_bytes = first.look_bytes.saturating_mul(NEXT_LOOK_FACTOR);
        self.slots[slot].work = Work::FirstExtent(FirstExtent { look_bytes, ..first });
        self.step(slot, Kind::Extents, first.known_end..look_end, None, backend);
    }

    /// The next step of zeros; only the last needs force, which covers all that was acknowledged.
    fn write_zeroes(
        &mut self,
        slot: usize,
        range: Range<u64>,
        fua: bool,
        may_unmap: bool,
        backend: &mut impl Backend,
    ) {
        let block_bytes = self.terms.block_size.bytes();
        let step_end = match may_unmap && range.start >= self.terms.origin_bytes {
            true => range.end, // one operation, whatever its length
            // Ends between blocks: none is zeroed in two parts, which may mean to fill it first.
            false => ((range.start / block_bytes + ZEROES_STEP_BLOCKS) * block_bytes).min(range.end),
        };
        let is_last = step_end == range.end;
        self.slots[slot].work = match is_last {
            true => Work::Last,
            false => Work::Zeroes { left_begin: step_end, left_end: range.end, fua, may_unmap },
        };
        let kind = Kind::WriteZeroes { fua: fua && is_last, may_unmap };
        self.step(slot, kind, range.start..step_end, None, backend);
    }

    fn take_slot(&mut self, cookie: u64, work: Work) -> usize {
        let slot = self.free.pop().expect("has_room saw a free slot, and nothing took it since");
        self.slots[slot] = Slot { cookie, work, scratch_bytes: 0 };
        slot
    }

    fn reckon_scratch(&mut self, slot: usize, operation: Operation, header: &RequestHeader) {
        let scratch_bytes = self.scratch_bytes(operation, header);
        self.slots[slot].scratch_bytes = scratch_bytes;
        self.memory_bytes += scratch_bytes;
    }

    fn step(
        &mut self,
        slot: usize,
        kind: Kind,
        range: Range<u64>,
        buffer: Option<AlignedBuffer>,
        backend: &mut impl Backend,
    ) {
        self.begun = true;
        backend.begin(Tag(slot as u64), kind, range, buffer);
    }

    /// A step has ended: begins the next, or replies.
    pub fn finished(&mut self, finished: Finished, wire: &mut impl Wire, backend: &mut impl Backend) {
        let Finished { tag, result, buffer, extents } = finished;
        let index = tag.0 as usize;
        let Slot { cookie, work, .. } = self.slots[index];
        if let Err(error) = result {
            if let Some(buffer) = buffer {
                self.give_buffer(buffer, backend);
            }
            self.release(index);
            let (error, message) = describe(error);
            return self.reply_error(cookie, error, message, wire);
        }
        match work {
            Work::Free => unreachable!("a step ended that was not begun"),
            Work::Read { offset_bytes, length_bytes } => {
                let buffer = buffer.expect("a read's buffer comes back");
                self.reply_data(cookie, offset_bytes, length_bytes, buffer, wire);
            }
            Work::Last => {
                if let Some(buffer) = buffer {
                    self.give_buffer(buffer, backend);
                }
                wire.send_bytes(&simple_reply(cookie, None));
            }
            Work::TrimThenFlush => {
                self.slots[index].work = Work::Last;
                return self.step(index, Kind::Flush, 0..0, None, backend);
            }
            Work::Zeroes { left_begin, left_end, fua, may_unmap } => match self.closing() {
                None | Some(Closing::Disconnect) => {
                    return self.write_zeroes(index, left_begin..left_end, fua, may_unmap, backend);
                }
                // Gigabytes may be left, and nobody is there who wants them.
                Some(Closing::Asked | Closing::Broken(_)) => {
                    self.reply_error(cookie, Errno::Shutdown, "the connection is being closed", wire);
                }
            },
            Work::Status { .. } => {
                self.reply_extents(cookie, &extents.expect("a description brings its extents"), wire);
            }
            Work::FirstExtent(first) => {
                let (first, ended) = first.extended(&extents.expect("a description brings its extents"));
                if !ended {
                    return self.look_further(index, first, backend);
                }
                self.reply_first_extent(cookie, first, wire);
            }
        }
        self.release(index);
    }

    fn release(&mut self, slot: usize) {
        self.memory_bytes -= std::mem::take(&mut self.slots[slot].scratch_bytes);
        match std::mem::replace(&mut self.slots[slot].work, Work::Free) {
            Work::Status { cost_bytes } | Work::FirstExtent(FirstExtent { cost_bytes, .. }) => {
                self.memory_bytes -= cost_bytes;
            }
            Work::Free | Work::Read { .. } | Work::Last | Work::TrimThenFlush | Work::Zeroes { .. } => {}
        }
        self.free.push(slot);
    }

    fn reply_error(&mut self, cookie: u64, error: Errno, message: &str, wire: &mut impl Wire) {
        if !self.terms.structured {
            return wire.send_bytes(&simple_reply(cookie, Some(error)));
        }
        wire.send_bytes(&error_chunk(cookie, error, message));
        wire.send_bytes(message.as_bytes());
    }

    fn reply_data(
        &mut self,
        cookie: u64,
        offset_bytes: u64,
        length_bytes: u32,
        buffer: AlignedBuffer,
        wire: &mut impl Wire,
    ) {
        if self.terms.structured {
            let head = data_chunk(cookie, offset_bytes, length_bytes);
            wire.send_bytes(&head.expect("validation keeps reads at 32 MiB"));
        } else {
            wire.send_bytes(&simple_reply(cookie, None));
        }
        wire.send_buffer(buffer, 0..length_bytes as usize);
    }

    /// The whole list, neighbours of one meaning merged.
    fn reply_extents(&mut self, cookie: u64, extents: &[Extent], wire: &mut impl Wire) {
        self.begin_status_chunk();
        let mut runs = extents.iter().map(|extent| (extent.length_bytes, flags_of(extent.state))).peekable();
        while let Some((mut length_bytes, flags)) = runs.next() {
            while let Some((more, _)) = runs.next_if(|next| next.1 == flags) {
                length_bytes += more;
            }
            self.push_extent(length_bytes, flags);
        }
        self.send_status_chunk(cookie, wire);
    }

    fn reply_first_extent(&mut self, cookie: u64, first: FirstExtent, wire: &mut impl Wire) {
        self.begin_status_chunk();
        self.push_extent(first.known_end - first.begin, first.flags.unwrap_or(0));
        self.send_status_chunk(cookie, wire);
    }

    fn begin_status_chunk(&mut self) {
        self.scratch.clear();
        self.scratch.extend_from_slice(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    }

    fn push_extent(&mut self, length_bytes: u64, flags: u32) {
        let length =
            u32::try_from(length_bytes).expect("a request is shorter than 4 GiB, and so are its extents");
        self.scratch.extend_from_slice(&length.to_be_bytes());
        self.scratch.extend_from_slice(&flags.to_be_bytes());
    }

    fn send_status_chunk(&mut self, cookie: u64, wire: &mut impl Wire) {
        let length = u32::try_from(self.scratch.len()).expect("65,537 extents take half a MiB");
        wire.send_bytes(&only_chunk(cookie, ChunkKind::BlockStatus, length));
        wire.send_bytes(&self.scratch);
    }
}

impl FirstExtent {
    /// With what the next look found; `true` when its end is known now.
    fn extended(mut self, found: &[Extent]) -> (FirstExtent, bool) {
        assert!(!found.is_empty(), "extents add up to the range that was asked for, which is not empty");
        for extent in found {
            let flags = flags_of(extent.state);
            if *self.flags.get_or_insert(flags) != flags {
                return (self, true);
            }
            self.known_end += extent.length_bytes;
        }
        (self, self.known_end >= self.end)
    }
}

/// `base:allocation` of an extent. A shared block is allocated: it reads its data, though a write to it takes a block.
fn flags_of(state: ExtentState) -> u32 {
    match state {
        ExtentState::Hole => allocation_flags::HOLE | allocation_flags::ZERO,
        // What shows of an external origin is data, though it lies elsewhere.
        ExtentState::Origin | ExtentState::Exclusive | ExtentState::Shared => 0,
    }
}

fn describe(error: IoError) -> (Errno, &'static str) {
    match error {
        IoError::NoSpace => (
            Errno::NoSpace,
            "no free space in the pool, or on the filesystem under it; delete volumes or discard data",
        ),
        IoError::Io => (Errno::Io, "a device of the pool failed, or the pool has stopped; see its status"),
        IoError::Gone => (Errno::Shutdown, "the volume or its pool is being closed"),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
