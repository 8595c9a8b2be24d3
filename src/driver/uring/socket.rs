//! A stream socket on a ring, with buffers that it owns: a frontend parses and answers without `unsafe`.
//!
//! Receiving: small things (headers, short payloads, many of them in one receive) arrive in a staging buffer, large
//! payloads go from the socket straight into a request's buffer. Sending: pieces are queued and go out in batches, one
//! `sendmsg` at a time, each with all that was queued while the one before it was under way. At most one receive and one
//! send are in flight.

use super::outgoing::Outgoing;
use super::ring::{Completion, Ring, Submit};
use crate::disk::AlignedBuffer;
use crate::error::{Error, ErrorKind, Result};
use io_uring::{opcode, types};
use rustix::fs::OFlags;
use rustix::net::{Shutdown, SocketType, sockopt};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// Marks a stream's operations in `user_data`; below it are 16 bits of its number and what kind of operation it is.
const STREAM_BIT: u64 = 1 << 62;
const NUMBER_SHIFT: u32 = 8;
const KIND_MASK: u64 = (1 << NUMBER_SHIFT) - 1;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// When there is less room than this behind what is staged, that is moved to the front.
const ROOM_LEAST_BYTES: usize = 64 * 1024;
/// The most that one receive asks for.
const RECEIVE_BYTES: usize = 1 << 30;

/// How a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamState {
    /// Works.
    Open,
    /// The peer sends nothing more; what was received is still there, and sending may still work.
    Ended,
    /// Broken, or shut down by us. `errno` says why, 0 after [`SocketStream::shutdown`]. Nothing is sent any more.
    Failed {
        /// The system's error number.
        errno: i32,
    },
}

/// The receive in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Receiving {
    Nothing,
    /// Into the staging buffer.
    Staging,
    /// Into the buffer that is being filled.
    Filling,
}

/// A buffer on its way from [`SocketStream::receive_into`] to [`SocketStream::take_filled`].
struct Filling {
    buffer: AlignedBuffer,
    /// What is still missing.
    missing: Range<usize>,
}

/// A connected stream socket (TCP or Unix).
pub struct SocketStream {
    socket: OwnedFd,
    number: u16,
    state: StreamState,
    receiving: Receiving,
    is_paused: bool,
    staging: AlignedBuffer,
    /// What has arrived in `staging` and was not consumed.
    staged: Range<usize>,
    filling: Option<Filling>,
    /// What is queued, and what is being sent.
    queue: Outgoing,
    flying: Outgoing,
    is_sending: bool,
    returned: Vec<AlignedBuffer>,
}

impl SocketStream {
    /// Bytes that arrive at once at most; a request header and a payload below this can be parsed from
    /// [`SocketStream::received`].
    pub const STAGING_BYTES: usize = 256 * 1024;

    /// Takes a connected socket over (TCP: without Nagle's delay). `number` tells it from the other streams of its ring.
    pub fn new(socket: OwnedFd, number: u16) -> Result<Self> {
        let failed = |doing: &str, errno: rustix::io::Errno| Error::io(doing, &errno.into());
        let kind = sockopt::socket_type(&socket).map_err(|errno| failed("looking at a socket", errno))?;
        if kind != SocketType::STREAM {
            return Err(Error::new(ErrorKind::Invalid, "a connection must be a stream socket"));
        }
        // A ring waits for a socket by itself, unless the socket says that nobody may wait for it.
        let flags = rustix::fs::fcntl_getfl(&socket).map_err(|errno| failed("looking at a socket", errno))?;
        rustix::fs::fcntl_setfl(&socket, flags - OFlags::NONBLOCK)
            .map_err(|errno| failed("making a socket wait", errno))?;
        // Answers are sent in one piece: nothing is gained by waiting for more. Other sockets have no such option.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        Ok(SocketStream {
            socket,
            number,
            state: StreamState::Open,
            receiving: Receiving::Nothing,
            is_paused: false,
            staging: AlignedBuffer::zeroed(Self::STAGING_BYTES),
            staged: 0..0,
            filling: None,
            queue: Outgoing::default(),
            flying: Outgoing::default(),
            is_sending: false,
            returned: Vec::new(),
        })
    }

    /// How it is.
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// Whether a completion is this stream's.
    pub fn owns(&self, completion: &Completion) -> bool {
        completion.user_data() & !KIND_MASK == self.user_data(0)
    }

    /// Takes in one of its completions.
    pub fn complete(&mut self, completion: Completion, ring: &mut impl Submit) {
        debug_assert!(self.owns(&completion));
        match completion.user_data() & KIND_MASK {
            RECEIVE => self.has_received(completion.result()),
            SEND => self.has_sent(completion.result(), ring),
            other => unreachable!("a stream has no operation {other}"),
        }
    }

    /// What has arrived and was not consumed.
    pub fn received(&self) -> &[u8] {
        // SAFETY: the range lies inside the staging buffer, and was written before; a receive in flight writes behind it.
        unsafe {
            let begin = self.staging.start().as_ptr().add(self.staged.start);
            std::slice::from_raw_parts(begin, self.staged.len())
        }
    }

    /// Drops the first `count` bytes of [`SocketStream::received`].
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.staged.len(), "only what was received can be consumed");
        self.staged.start += count;
    }

    /// Fills `range` of `buffer` with the next bytes of the stream, those of [`SocketStream::received`] first. The buffer
    /// comes back by [`SocketStream::take_filled`]; nothing is `received` meanwhile. One at a time. If the stream ends
    /// before, the buffer comes back by [`SocketStream::take_sent`].
    pub fn receive_into(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        assert!(self.filling.is_none(), "a stream fills one buffer at a time");
        assert!(range.start <= range.end && range.end <= buffer.len(), "the range lies inside the buffer");
        self.filling = Some(Filling { buffer, missing: range });
        self.move_staged();
        if self.state != StreamState::Open {
            self.give_up_filling();
        }
    }

    /// Whether a [`SocketStream::receive_into`] is under way (its buffer was not taken yet).
    pub fn is_filling(&self) -> bool {
        self.filling.is_some()
    }

    /// The buffer of [`SocketStream::receive_into`], once it is filled.
    pub fn take_filled(&mut self) -> Option<AlignedBuffer> {
        self.filling.take_if(|filling| filling.missing.is_empty()).map(|filling| filling.buffer)
    }

    /// Stops receiving: what the peer sends from now on stays in the socket (but for a receive that is in flight). For
    /// backpressure; `false` goes on.
    pub fn pause_receiving(&mut self, paused: bool) {
        self.is_paused = paused;
    }

    /// Queues bytes to be sent, copying them: headers.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        if self.can_send() {
            self.queue.push_bytes(bytes);
        }
    }

    /// Queues `range` of `buffer` to be sent. The buffer comes back by [`SocketStream::take_sent`].
    pub fn send_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= buffer.len(), "the range lies inside the buffer");
        if self.can_send() && !range.is_empty() {
            self.queue.push_buffer(buffer, range);
        } else {
            self.returned.push(buffer);
        }
    }

    /// A buffer of [`SocketStream::send_buffer`] that is no longer needed: sent, or never to be sent.
    pub fn take_sent(&mut self) -> Option<AlignedBuffer> {
        self.returned.pop()
    }

    /// Bytes queued and not yet taken by the socket.
    pub fn unsent_bytes(&self) -> usize {
        self.queue.unsent_bytes() + self.flying.unsent_bytes()
    }

    /// To be called once a turn, before the wait: starts the next receive and the next send if none is under way.
    pub fn before_wait(&mut self, ring: &mut impl Submit) {
        if self.receiving == Receiving::Nothing && self.state == StreamState::Open && !self.is_paused {
            self.start_receive(ring);
        }
        if !self.is_sending && self.can_send() && self.queue.unsent_bytes() > 0 {
            std::mem::swap(&mut self.queue, &mut self.flying);
            self.start_send(ring);
        }
    }

    /// Breaks the connection off both ways, so that nothing waits for the peer any more.
    pub fn shutdown(&mut self) {
        // It fails when the peer has broken it off already; then nothing waits either.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        if !matches!(self.state, StreamState::Failed { .. }) {
            self.fail(0);
        }
    }

    /// Whether nothing is in flight; only then may it be dropped.
    pub fn is_idle(&self) -> bool {
        self.receiving == Receiving::Nothing && !self.is_sending
    }

    /// Shuts down and waits until nothing is in flight. Completions of others go to `others`.
    pub fn drain(&mut self, ring: &mut Ring, mut others: impl FnMut(Completion, &mut Ring)) -> Result<()> {
        self.shutdown();
        while !self.is_idle() {
            ring.submit_and_wait(1)?;
            while let Some(completion) = ring.next_completion() {
                if self.owns(&completion) {
                    self.complete(completion, ring);
                } else {
                    others(completion, ring);
                }
            }
        }
        Ok(())
    }

    fn user_data(&self, kind: u64) -> u64 {
        STREAM_BIT | u64::from(self.number) << NUMBER_SHIFT | kind
    }

    fn can_send(&self) -> bool {
        match self.state {
            StreamState::Open | StreamState::Ended => true,
            StreamState::Failed { .. } => false,
        }
    }

    fn start_receive(&mut self, ring: &mut impl Submit) {
        let file = types::Fd(self.socket.as_raw_fd());
        let missing = self.filling.as_ref().filter(|filling| !filling.missing.is_empty());
        let (memory, length, flags) = if let Some(Filling { buffer, missing }) = missing {
            self.receiving = Receiving::Filling;
            // SAFETY: the range lies inside the buffer: `receive_into` has checked it.
            let memory = unsafe { buffer.start().as_ptr().add(missing.start) };
            // The kernel collects all of it, and we are not woken for every segment.
            (memory, missing.len().min(RECEIVE_BYTES), libc::MSG_WAITALL)
        } else {
            self.make_room();
            if self.staged.end == Self::STAGING_BYTES {
                return; // the frontend consumes something first
            }
            self.receiving = Receiving::Staging;
            // SAFETY: the end of what is staged lies inside the staging buffer.
            let memory = unsafe { self.staging.start().as_ptr().add(self.staged.end) };
            (memory, Self::STAGING_BYTES - self.staged.end, 0)
        };
        let receive = opcode::Recv::new(file, memory, length as u32).flags(flags).build();
        // SAFETY: the bytes are the stream's, nobody else looks at them until the completion, and they are leaked if it
        // goes too early.
        unsafe { ring.push(receive.user_data(self.user_data(RECEIVE))) };
    }

    /// Moves what is staged to the front of the staging buffer, when it pays. No receive is in flight.
    fn make_room(&mut self) {
        let staged = self.staged.clone();
        if staged.is_empty() {
            self.staged = 0..0;
        } else if staged.start > 0 && Self::STAGING_BYTES - staged.end < ROOM_LEAST_BYTES {
            self.staging.copy_within(staged.clone(), 0);
            self.staged = 0..staged.len();
        }
    }

    fn has_received(&mut self, result: i32) {
        let into = std::mem::replace(&mut self.receiving, Receiving::Nothing);
        let count = match usize::try_from(result) {
            Ok(0) => return self.has_ended(),
            Ok(count) => count,
            Err(_) if result == -libc::EINTR || result == -libc::EAGAIN => return,
            Err(_) => return self.fail(-result),
        };
        match into {
            Receiving::Staging => {
                self.staged.end += count;
                self.move_staged();
            }
            Receiving::Filling => {
                let filling = self.filling.as_mut().expect("it stays until it is filled");
                filling.missing.start += count;
                if !self.can_send() {
                    self.give_up_filling(); // we broke off meanwhile
                }
            }
            Receiving::Nothing => unreachable!("a receive ended that nobody began"),
        }
    }

    /// Moves staged bytes on into the buffer that is being filled.
    fn move_staged(&mut self) {
        let Some(filling) = &mut self.filling else { return };
        let count = self.staged.len().min(filling.missing.len());
        let missing = filling.missing.start..filling.missing.start + count;
        // SAFETY: the first `count` bytes that are staged, which no receive in flight writes to.
        let staged = unsafe {
            std::slice::from_raw_parts(self.staging.start().as_ptr().add(self.staged.start), count)
        };
        filling.buffer[missing].copy_from_slice(staged);
        filling.missing.start += count;
        self.staged.start += count;
    }

    fn has_ended(&mut self) {
        if self.state == StreamState::Open {
            self.state = StreamState::Ended;
        }
        self.give_up_filling();
    }

    /// Returns a buffer that will not be filled. No receive into it is in flight.
    fn give_up_filling(&mut self) {
        if let Some(filling) = self.filling.take_if(|filling| !filling.missing.is_empty()) {
            self.returned.push(filling.buffer);
        }
    }

    fn start_send(&mut self, ring: &mut impl Submit) {
        self.is_sending = true;
        let message = self.flying.message();
        let file = types::Fd(self.socket.as_raw_fd());
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let send = opcode::SendMsg::new(file, message).flags(flags).build();
        // SAFETY: the message and all that it points at belong to `flying`, which is not touched while it is in flight,
        // and leaked if the stream goes too early.
        unsafe { ring.push(send.user_data(self.user_data(SEND))) };
    }

    fn has_sent(&mut self, result: i32, ring: &mut impl Submit) {
        self.is_sending = false;
        if !self.can_send() {
            return self.flying.give_up(&mut self.returned);
        }
        match usize::try_from(result) {
            Ok(0) => self.fail(libc::EPIPE),
            Ok(count) => self.flying.advance(count, &mut self.returned),
            Err(_) if result == -libc::EINTR || result == -libc::EAGAIN => {}
            Err(_) => self.fail(-result),
        }
        if self.can_send() && self.flying.unsent_bytes() > 0 {
            self.start_send(ring);
        }
    }

    /// Nothing goes any more; what is not in flight comes back.
    fn fail(&mut self, errno: i32) {
        self.state = StreamState::Failed { errno };
        self.queue.give_up(&mut self.returned);
        if !self.is_sending {
            self.flying.give_up(&mut self.returned);
        }
        if self.receiving != Receiving::Filling {
            self.give_up_filling();
        }
    }
}

impl Drop for SocketStream {
    fn drop(&mut self) {
        if self.is_idle() {
            return;
        }
        // The kernel may still use these.
        std::mem::forget(std::mem::replace(&mut self.staging, AlignedBuffer::zeroed(0)));
        std::mem::forget(std::mem::take(&mut self.flying));
        std::mem::forget(self.filling.take());
        assert!(std::thread::panicking(), "a stream is drained before it is dropped");
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
