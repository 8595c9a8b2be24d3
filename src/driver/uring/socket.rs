//! A stream socket on a ring, with buffers that it owns: a frontend parses and answers without `unsafe`.
//!
//! Receiving: small things (headers, short payloads, many of them in one receive) arrive in a staging buffer, large
//! payloads go from the socket straight into a request's buffer. Sending: pieces are queued and go out in batches, one
//! `sendmsg` at a time. At most one receive and one send are in flight.

use super::ring::{Completion, Ring, Submit};
use crate::disk::AlignedBuffer;
use crate::error::Result;
use std::ops::Range;
use std::os::fd::OwnedFd;

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

/// A connected stream socket (TCP or Unix).
pub struct SocketStream {}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl SocketStream {
    /// Bytes that arrive at once at most; a request header and a payload below this can be parsed from
    /// [`SocketStream::received`].
    pub const STAGING_BYTES: usize = 256 * 1024;

    /// Takes a connected socket over (TCP: without Nagle's delay). `number` tells it from the other streams of its ring.
    pub fn new(socket: OwnedFd, number: u16) -> Result<Self> {
        todo!()
    }
    /// How it is.
    pub fn state(&self) -> StreamState {
        todo!()
    }
    /// Whether a completion is this stream's.
    pub fn owns(&self, completion: &Completion) -> bool {
        todo!()
    }
    /// Takes in one of its completions.
    pub fn complete(&mut self, completion: Completion, ring: &mut impl Submit) {
        todo!()
    }

    /// What has arrived and was not consumed.
    pub fn received(&self) -> &[u8] {
        todo!()
    }
    /// Drops the first `count` bytes of [`SocketStream::received`].
    pub fn consume(&mut self, count: usize) {
        todo!()
    }
    /// Fills `range` of `buffer` with the next bytes of the stream, those of [`SocketStream::received`] first. The buffer
    /// comes back by [`SocketStream::take_filled`]; nothing is `received` meanwhile. One at a time.
    pub fn receive_into(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        todo!()
    }
    /// Whether a [`SocketStream::receive_into`] is under way (its buffer was not taken yet).
    pub fn is_filling(&self) -> bool {
        todo!()
    }
    /// The buffer of [`SocketStream::receive_into`], once it is filled.
    pub fn take_filled(&mut self) -> Option<AlignedBuffer> {
        todo!()
    }
    /// Stops receiving: what the peer sends from now on stays in the socket. For backpressure; `false` goes on.
    pub fn pause_receiving(&mut self, paused: bool) {
        todo!()
    }

    /// Queues bytes to be sent, copying them: headers.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        todo!()
    }
    /// Queues `range` of `buffer` to be sent. The buffer comes back by [`SocketStream::take_sent`].
    pub fn send_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        todo!()
    }
    /// A buffer of [`SocketStream::send_buffer`] that is no longer needed: sent, or never to be sent.
    pub fn take_sent(&mut self) -> Option<AlignedBuffer> {
        todo!()
    }
    /// Bytes queued and not yet taken by the socket.
    pub fn unsent_bytes(&self) -> usize {
        todo!()
    }

    /// To be called once a turn, before the wait: starts the next receive and the next send if none is under way.
    pub fn before_wait(&mut self, ring: &mut impl Submit) {
        todo!()
    }
    /// Breaks the connection off both ways, so that nothing waits for the peer any more.
    pub fn shutdown(&mut self) {
        todo!()
    }
    /// Whether nothing is in flight; only then may it be dropped.
    pub fn is_idle(&self) -> bool {
        todo!()
    }
    /// Shuts down and waits until nothing is in flight. Completions of others go to `others`.
    pub fn drain(&mut self, ring: &mut Ring, others: impl FnMut(Completion, &mut Ring)) -> Result<()> {
        todo!()
    }
}
