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

use super::contexts::Contexts;
use super::headers::{
    Asked, RequestHeader, Style, extended_chunk, extended_data, push_error, push_status, simple_reply,
    structured_data,
};
use super::options::PAYLOAD_LIMIT_BYTES;
use super::protocol::{CHUNK_DONE, ChunkKind, Errno};
use super::status::Status;
use super::validate::{
    Operation, Refusal, STATUS_PAYLOAD_LIMIT_BYTES, Terms, check, names_contexts, without_payload,
};
use crate::disk::AlignedBuffer;
use crate::driver::uring::Finished;
use crate::engine::{CHUNK_BYTES, IoError, Kind, Tag};
use std::collections::HashMap;
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
/// A refused write's payload up to this is received and dropped; a longer one ends the connection. With extended headers that
/// is the payload's limit itself: a server "SHOULD initiate hard disconnect" beyond it.
const SKIPPED_PAYLOAD_BYTES: u64 = 64 << 20;
/// Zeros that are written rather than unmapped go in steps of so many data blocks at most, so that a 4 GiB request is not
/// 65,536 operations at a time: they have no buffers, but each takes some hundred bytes in lane and keeper.
const ZEROES_STEP_BLOCKS: u64 = 64;
/// What is unmapped goes in steps of so many data blocks, so that whoever leaves does not have the rest of a long range unmapped,
/// and the pool takes in no more at a time than compact requests can ask for.
const UNMAP_STEP_BLOCKS: u64 = 65_536;

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
    Skipped { left_bytes: usize, asked: Asked, refusal: Refusal },
    /// Nothing is read any more.
    Closed(Closing),
}

/// A request under way: which, and what comes after its present step.
#[derive(Clone, Copy)]
struct Slot {
    asked: Asked,
    work: Work,
    /// What its fills may take in the lane.
    scratch_bytes: usize,
}

#[derive(Clone, Copy)]
enum Work {
    Free,
    Read {
        length_bytes: u32,
    },
    /// A write, a flush, or the last step of something else: what remains is to reply.
    Last,
    /// A flush comes after it.
    TrimThenFlush,
    /// More of it has to be done from here on.
    Stepped {
        what: Stepped,
        left_begin: u64,
        left_end: u64,
    },
    /// The rest is in [`Session::statuses`].
    Status,
}

/// What is done in steps.
#[derive(Clone, Copy)]
enum Stepped {
    Trim { fua: bool },
    Zeroes { fua: bool, may_unmap: bool },
}

impl Stepped {
    /// Data blocks of a step. Over an external origin zeros have to be written.
    fn step_blocks(self, is_over_origin: bool) -> u64 {
        match self {
            Stepped::Zeroes { may_unmap, .. } if is_over_origin || !may_unmap => ZEROES_STEP_BLOCKS,
            Stepped::Trim { .. } | Stepped::Zeroes { .. } => UNMAP_STEP_BLOCKS,
        }
    }
}

/// A longer list of extents is not kept for the next one.
const SCRATCH_KEPT_BYTES: usize = 64 << 10;

/// In a slot that nobody uses.
const NOTHING: Asked = Asked { cookie: 0, offset_bytes: 0 };

/// The transmission phase of one connection.
pub struct Session {
    terms: Terms,
    intake: Intake,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Descriptions under way, by slot.
    statuses: HashMap<usize, Status>,
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
            slots: vec![Slot { asked: NOTHING, work: Work::Free, scratch_bytes: 0 }; REQUESTS_LIMIT],
            free: (0..REQUESTS_LIMIT).rev().collect(),
            statuses: HashMap::new(),
            memory_bytes: 0,
            starved: false,
            begun: false,
            scratch: Vec::new(),
        }
    }

    /// Requests that run.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// What its requests are reckoned to hold, unsent replies included.
    #[cfg(any(test, fuzzing))]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
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
            Intake::Skipped { left_bytes, asked, refusal } => {
                let count = wire.received().len().min(*left_bytes);
                wire.consume(count);
                *left_bytes -= count;
                if *left_bytes > 0 {
                    return false;
                }
                let (asked, refusal) = (*asked, *refusal);
                self.intake = Intake::Header;
                self.reply_error(asked, refusal.error, refusal.message, wire);
                true
            }
        }
    }

    fn header(&mut self, wire: &mut impl Wire, backend: &mut impl Backend) -> bool {
        let header = match RequestHeader::decode(self.terms.style, wire.received()) {
            None => return false,
            Some(Ok(header)) => header,
            Some(Err(magic)) => {
                self.close(Closing::Broken(format!("a request begins with {magic:02x?}")));
                return false;
            }
        };
        if wire.unsent_bytes() > UNSENT_LIMIT_BYTES {
            self.starved = true;
            return false;
        }
        if names_contexts(&header, &self.terms) {
            return self.named_status(&header, wire, backend);
        }
        let operation = match check(&header, &self.terms) {
            Ok(operation) => operation,
            Err(refusal) => return self.refuse(&header, refusal, wire),
        };
        if !self.has_room_for(operation, &header, backend) {
            return false;
        }
        let header_bytes = self.terms.style.request_bytes();
        if let Operation::Write { fua } = operation {
            let length = header.length_bytes as usize;
            if length > COPIED_PAYLOAD_BYTES {
                let buffer = self.take_buffer(length, backend);
                wire.consume(header_bytes);
                wire.receive_into(buffer, 0..length);
                self.intake = Intake::Payload { header, fua };
                return true;
            }
            let Some(payload) = wire.received().get(header_bytes..header_bytes + length) else {
                return false;
            };
            let mut buffer = self.take_buffer(length, backend);
            buffer[..length].copy_from_slice(payload);
            wire.consume(header_bytes + length);
            self.begin_write(&header, fua, buffer, backend);
            return true;
        }
        wire.consume(header_bytes);
        self.begin(operation, &header, backend);
        true
    }

    /// A BLOCK_STATUS with a payload, which is short or refused.
    fn named_status(
        &mut self,
        header: &RequestHeader,
        wire: &mut impl Wire,
        backend: &mut impl Backend,
    ) -> bool {
        let header_bytes = self.terms.style.request_bytes();
        // One that is too long is refused for its length alone: none of it is waited for.
        let payload_bytes = usize::try_from(header.length_bytes)
            .map_or(0, |bytes| if bytes > STATUS_PAYLOAD_LIMIT_BYTES { 0 } else { bytes });
        let Some(payload) = wire.received().get(header_bytes..header_bytes + payload_bytes) else {
            return false;
        };
        let meant = without_payload(header, payload, &self.terms)
            .and_then(|(bare, terms)| Ok((bare, check(&bare, &terms)?)));
        let (bare, operation) = match meant {
            Ok(meant) => meant,
            Err(refusal) => return self.refuse(header, refusal, wire),
        };
        if !self.has_room_for(operation, &bare, backend) {
            return false;
        }
        wire.consume(header_bytes + payload_bytes);
        self.begin(operation, &bare, backend);
        true
    }

    /// Whether the request can be begun now; if not, it is looked at again when something has ended.
    fn has_room_for(&mut self, operation: Operation, header: &RequestHeader, backend: &impl Backend) -> bool {
        let cost_bytes = self.cost_bytes(operation, header) + self.scratch_bytes(operation, header);
        self.starved = !self.has_room(cost_bytes, backend);
        !self.starved
    }

    /// Answers a request that is not carried out, after its payload.
    fn refuse(&mut self, header: &RequestHeader, refusal: Refusal, wire: &mut impl Wire) -> bool {
        let RequestHeader { command, flags, offset_bytes, length_bytes, cookie } = *header;
        tracing::debug!(command, flags, offset_bytes, length_bytes, refusal.message, "refused a request");
        let payload_bytes = header.payload_bytes(self.terms.style);
        let limit_bytes = match self.terms.style {
            Style::Simple | Style::Structured => SKIPPED_PAYLOAD_BYTES,
            Style::Extended => u64::from(PAYLOAD_LIMIT_BYTES),
        };
        if payload_bytes > limit_bytes {
            self.close(Closing::Broken(format!("a payload of {payload_bytes} bytes")));
            return false;
        }
        wire.consume(self.terms.style.request_bytes());
        let asked = Asked { cookie, offset_bytes };
        self.intake = Intake::Skipped { left_bytes: payload_bytes as usize, asked, refusal };
        true
    }

    /// What a request holds while it runs.
    fn cost_bytes(&self, operation: Operation, header: &RequestHeader) -> usize {
        match operation {
            // Buffers come in powers of two.
            Operation::Read | Operation::Write { .. } => (header.length_bytes as usize).next_power_of_two(),
            Operation::BlockStatus { .. } | Operation::Cache => {
                Status::cost_bytes(header.length_bytes, self.terms.block_size)
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
                let end = header.offset_bytes + header.length_bytes;
                let ends =
                    [header.offset_bytes, end].map(|edge| usize::from(!edge.is_multiple_of(block_bytes)));
                (ends[0] + ends[1]) * block_bytes.min(CHUNK_BYTES).next_power_of_two() as usize
            }
            Operation::Read
            | Operation::Cache
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
        let end = header.offset_bytes + header.length_bytes;
        let slot = self.take_slot(header, Work::Last);
        self.reckon_scratch(slot, Operation::Write { fua }, header);
        self.step(slot, Kind::Write { fua }, header.offset_bytes..end, Some(buffer), backend);
    }

    /// Begins everything but a write.
    fn begin(&mut self, operation: Operation, header: &RequestHeader, backend: &mut impl Backend) {
        let RequestHeader { offset_bytes, length_bytes, .. } = *header;
        match operation {
            Operation::Write { .. } => unreachable!("a write is begun with its payload"),
            Operation::Disconnect => self.close(Closing::Disconnect),
            Operation::Read => {
                let length = u32::try_from(length_bytes).expect("validation keeps reads at 32 MiB");
                let buffer = self.take_buffer(length as usize, backend);
                let slot = self.take_slot(header, Work::Read { length_bytes: length });
                let range = offset_bytes..offset_bytes + length_bytes;
                self.step(slot, Kind::Read, range, Some(buffer), backend);
            }
            Operation::Flush => {
                let slot = self.take_slot(header, Work::Last);
                self.step(slot, Kind::Flush, 0..0, None, backend);
            }
            Operation::Trim { fua } => {
                let slot = self.take_slot(header, Work::Last);
                let range = offset_bytes..offset_bytes + length_bytes;
                self.step_on(slot, Stepped::Trim { fua }, range, backend);
            }
            Operation::WriteZeroes { fua, may_unmap } => {
                let slot = self.take_slot(header, Work::Last);
                self.reckon_scratch(slot, operation, header);
                let range = offset_bytes..offset_bytes + length_bytes;
                self.step_on(slot, Stepped::Zeroes { fua, may_unmap }, range, backend);
            }
            // Bytes are not cached. What a first access waits for is the map, and looking at it loads it.
            Operation::Cache => self.begin_status(header, Contexts::default(), false, backend),
            Operation::BlockStatus { one, contexts } => self.begin_status(header, contexts, one, backend),
        }
    }

    fn begin_status(
        &mut self,
        header: &RequestHeader,
        contexts: Contexts,
        one: bool,
        backend: &mut impl Backend,
    ) {
        let range = header.offset_bytes..header.offset_bytes + header.length_bytes;
        let mut status = Status::new(range, contexts, one, self.terms.block_size);
        self.memory_bytes += status.cost_bytes;
        let slot = self.take_slot(header, Work::Status);
        self.step(slot, Kind::Extents, status.next_look(), None, backend);
        self.statuses.insert(slot, status);
    }

    /// The next step of something long. Only the last needs force, which covers all that was acknowledged.
    fn step_on(&mut self, slot: usize, what: Stepped, range: Range<u64>, backend: &mut impl Backend) {
        let block_bytes = self.terms.block_size.bytes();
        let step_blocks = what.step_blocks(range.start < self.terms.origin_bytes);
        // Ends between blocks: none is zeroed in two parts, which may mean to fill it first, or not unmapped for being in two.
        let step_end = (range.start / block_bytes + step_blocks).saturating_mul(block_bytes).min(range.end);
        let is_last = step_end == range.end;
        let kind = match what {
            Stepped::Trim { .. } => Kind::Discard,
            Stepped::Zeroes { fua, may_unmap } => Kind::WriteZeroes { fua: fua && is_last, may_unmap },
        };
        self.slots[slot].work = match what {
            _ if !is_last => Work::Stepped { what, left_begin: step_end, left_end: range.end },
            Stepped::Trim { fua: true } => Work::TrimThenFlush,
            Stepped::Trim { fua: false } | Stepped::Zeroes { .. } => Work::Last,
        };
        self.step(slot, kind, range.start..step_end, None, backend);
    }

    fn take_slot(&mut self, header: &RequestHeader, work: Work) -> usize {
        let slot = self.free.pop().expect("has_room saw a free slot, and nothing took it since");
        let asked = Asked { cookie: header.cookie, offset_bytes: header.offset_bytes };
        self.slots[slot] = Slot { asked, work, scratch_bytes: 0 };
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
        let Slot { asked, work, .. } = self.slots[index];
        if let Err(error) = result {
            if let Some(buffer) = buffer {
                self.give_buffer(buffer, backend);
            }
            self.release(index);
            let (error, message) = describe(error);
            return self.reply_error(asked, error, message, wire);
        }
        match work {
            Work::Free => unreachable!("a step ended that was not begun"),
            Work::Read { length_bytes } => {
                let buffer = buffer.expect("a read's buffer comes back");
                self.reply_data(asked, length_bytes, buffer, wire);
            }
            Work::Last => {
                if let Some(buffer) = buffer {
                    self.give_buffer(buffer, backend);
                }
                self.reply_done(asked, wire);
            }
            Work::TrimThenFlush => {
                self.slots[index].work = Work::Last;
                return self.step(index, Kind::Flush, 0..0, None, backend);
            }
            Work::Stepped { what, left_begin, left_end } => match self.closing() {
                None | Some(Closing::Disconnect) => {
                    return self.step_on(index, what, left_begin..left_end, backend);
                }
                // Gigabytes may be left, and nobody is there who wants them.
                Some(Closing::Asked | Closing::Broken(_)) => {
                    self.reply_error(asked, Errno::Shutdown, "the connection is being closed", wire);
                }
            },
            Work::Status => {
                let status = self.statuses.get_mut(&index).expect("it was put there when the request began");
                if !status.extend(&extents.expect("a description brings its extents")) {
                    let look = status.next_look();
                    return self.step(index, Kind::Extents, look, None, backend);
                }
                self.reply_status(asked, index, wire);
            }
        }
        self.release(index);
    }

    fn release(&mut self, slot: usize) {
        self.memory_bytes -= std::mem::take(&mut self.slots[slot].scratch_bytes);
        if let Work::Status = std::mem::replace(&mut self.slots[slot].work, Work::Free) {
            let status = self.statuses.remove(&slot).expect("it was put there when the request began");
            self.memory_bytes -= status.cost_bytes;
        }
        self.free.push(slot);
    }

    fn reply_done(&mut self, asked: Asked, wire: &mut impl Wire) {
        match self.terms.style {
            Style::Simple | Style::Structured => wire.send_bytes(&simple_reply(asked.cookie, None)),
            Style::Extended => wire.send_bytes(&extended_chunk(asked, CHUNK_DONE, ChunkKind::None, 0)),
        }
    }

    fn reply_error(&mut self, asked: Asked, error: Errno, message: &str, wire: &mut impl Wire) {
        self.scratch.clear();
        push_error(&mut self.scratch, self.terms.style, asked, error, message);
        wire.send_bytes(&self.scratch);
    }

    fn reply_data(&mut self, asked: Asked, length_bytes: u32, buffer: AlignedBuffer, wire: &mut impl Wire) {
        match self.terms.style {
            Style::Simple => wire.send_bytes(&simple_reply(asked.cookie, None)),
            Style::Structured => {
                let head = structured_data(asked, length_bytes);
                wire.send_bytes(&head.expect("validation keeps reads at 32 MiB"));
            }
            Style::Extended => wire.send_bytes(&extended_data(asked, length_bytes)),
        }
        wire.send_buffer(buffer, 0..length_bytes as usize);
    }

    /// A chunk for each context that is to be told; a CACHE tells none.
    fn reply_status(&mut self, asked: Asked, slot: usize, wire: &mut impl Wire) {
        let status = &self.statuses[&slot];
        let Some(last) = status.contexts().iter().last() else { return self.reply_done(asked, wire) };
        for context in status.contexts().iter() {
            self.scratch.clear();
            let of = (context, context == last);
            push_status(&mut self.scratch, self.terms.style, asked, of, status.extents());
            wire.send_bytes(&self.scratch);
        }
        if self.scratch.capacity() > SCRATCH_KEPT_BYTES {
            self.scratch = Vec::new();
        }
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

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "the fuzz targets take a part of what tests do"))]
#[path = "session_bench.rs"]
pub(super) mod bench;

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
