//! A connection in transmission: one thread, one ring for its socket and its data.
//!
//! A turn takes in completions, begins what was received, queues replies to what has finished, and ends in the one system
//! call that submits all of it and waits. Whatever ends the connection, what was begun is waited for: its buffers are the
//! kernel's until then, and a volume is let go only when nothing runs on it.

use super::session::{Backend, Closing, Session, Wire};
use super::validate::Terms;
use crate::disk::AlignedBuffer;
use crate::driver::uring::{Completion, Ring, SocketStream, StreamState, UringLane};
use crate::engine::{Kind, Request, Tag, Volume, VolumeLease};
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// New operations of one turn that go to the kernel without an extra call.
pub const RING_ENTRIES: u32 = 512;

impl Wire for SocketStream {
    fn received(&self) -> &[u8] {
        self.received()
    }
    fn consume(&mut self, count: usize) {
        self.consume(count);
    }
    fn receive_into(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        self.receive_into(buffer, range);
    }
    fn take_filled(&mut self) -> Option<AlignedBuffer> {
        self.take_filled()
    }
    fn send_bytes(&mut self, bytes: &[u8]) {
        self.send_bytes(bytes);
    }
    fn send_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        self.send_buffer(buffer, range);
    }
    fn unsent_bytes(&self) -> usize {
        self.unsent_bytes()
    }
}

/// A lane with its ring and the volume that all its requests are for.
pub struct Channel {
    /// The hold on the volume.
    pub lease: VolumeLease,
    /// The way into the pool.
    pub lane: UringLane,
    /// The thread's ring.
    pub ring: Ring,
}

impl Channel {
    fn volume(&self) -> &Arc<Volume> {
        self.lease.volume()
    }
}

impl Backend for Channel {
    fn take_buffer(&mut self, length_bytes: usize) -> AlignedBuffer {
        self.lane.take_buffer(length_bytes)
    }
    fn has_room(&self, more_bytes: usize) -> bool {
        self.lane.has_room(more_bytes)
    }
    fn give_buffer(&mut self, buffer: AlignedBuffer) {
        self.lane.buffers().give(buffer);
    }
    fn begin(&mut self, tag: Tag, kind: Kind, range: Range<u64>, buffer: Option<AlignedBuffer>) {
        let length_bytes = range.end - range.start;
        let volume = self.volume().clone();
        let request = Request { tag, volume, kind, offset_bytes: range.start, length_bytes };
        self.lane.begin(request, buffer, &mut self.ring);
    }
}

/// With so many requests in flight, the thread looks out for completions before it sleeps; with fewer it costs a CPU and
/// gains nothing (docs/performance.md).
const LOOK_OUT_FROM: usize = 8;

/// Serves until the client leaves or `is_stopping` says that it is time (whoever makes it say so wakes the lane). An
/// error is the ring's; then nothing can be waited for any more.
pub fn serve(
    mut stream: SocketStream,
    mut channel: Channel,
    terms: Terms,
    is_stopping: impl Fn() -> bool,
) -> Result<Closing> {
    let mut session = Session::new(terms);
    loop {
        while let Some(completion) = channel.ring.next_completion() {
            deliver(completion, &mut stream, &mut channel);
        }
        if is_stopping() {
            session.close(Closing::Asked);
        }
        move_on(&mut session, &mut stream, &mut channel);
        if has_left(&session, &stream) {
            channel.lane.hang_up(&mut channel.ring);
            move_on(&mut session, &mut stream, &mut channel);
        }
        if is_over(&session, &stream) {
            break;
        }
        if session.is_idle() && stream.unsent_bytes() == 0 {
            channel.lane.rest();
        }
        stream.pause_receiving(session.closing().is_some());
        stream.before_wait(&mut channel.ring);
        if session.in_flight() >= LOOK_OUT_FROM {
            channel.ring.submit_and_look()?;
        } else {
            channel.ring.submit_and_wait(1)?;
        }
    }
    let Channel { lease, mut lane, mut ring } = channel;
    lane.drain(&mut ring, |completion, ring| stream.complete(completion, ring))?;
    stream.drain(&mut ring, |completion, ring| lane.complete(completion, ring))?;
    drop(lane);
    drop(lease);
    Ok(session.closing().cloned().unwrap_or(Closing::Asked))
}

fn deliver(completion: Completion, stream: &mut SocketStream, channel: &mut Channel) {
    if channel.lane.owns(&completion) {
        channel.lane.complete(completion, &mut channel.ring);
    } else {
        stream.complete(completion, &mut channel.ring);
    }
}

/// Does all that can be done without waiting.
fn move_on(session: &mut Session, stream: &mut SocketStream, channel: &mut Channel) {
    loop {
        session.take_in(stream, channel);
        match stream.state() {
            StreamState::Open => {}
            // All that came was taken in, unless it waits for room.
            StreamState::Ended if session.is_starved() => {}
            StreamState::Ended | StreamState::Failed { .. } => session.close(Closing::Asked),
        }
        session.take_begun();
        channel.lane.before_wait(&mut channel.ring);
        let mut has_freed = false;
        while let Some(finished) = channel.lane.next_finished() {
            session.finished(finished, stream, channel);
            has_freed = true;
        }
        while let Some(buffer) = stream.take_sent() {
            session.sent(buffer, channel);
            has_freed = true;
        }
        // What was begun just now may have questions for the keeper; what was freed may be room for what waits.
        let has_room = has_freed && session.is_starved();
        if !session.take_begun() && !has_room {
            return;
        }
    }
}

/// Whether the client has left. Nobody waits for its requests then, so they must not wait either: not for space, that is without
/// bound, and keep its volume in use and the connection's place taken.
fn has_left(session: &Session, stream: &SocketStream) -> bool {
    let has_said_so = match session.closing() {
        Some(Closing::Disconnect | Closing::Broken(_)) => true,
        Some(Closing::Asked) | None => false,
    };
    has_said_so || !matches!(stream.state(), StreamState::Open)
}

/// Whether nothing is left to do, or nobody left to do it for.
fn is_over(session: &Session, stream: &SocketStream) -> bool {
    let is_broken = match stream.state() {
        StreamState::Open | StreamState::Ended => false,
        StreamState::Failed { .. } => true,
    };
    is_broken || (session.closing().is_some() && session.in_flight() == 0 && stream.unsent_bytes() == 0)
}
