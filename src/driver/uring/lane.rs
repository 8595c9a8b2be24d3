//! A lane on a ring: does the engine's actions, any number of requests at a time.

use super::ring::{Completion, Ring, Submit};
use crate::disk::AlignedBuffer;
use crate::driver::BufferPool;
use crate::engine::{Extent, IoError, Request, Tag};

/// A finished request.
pub struct Finished {
    /// The frontend's name for it, free again.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
    /// The buffer that came with the request. After a failed read its content is anything: do not send it.
    pub buffer: Option<AlignedBuffer>,
    /// The answer to [`Kind::Extents`](crate::engine::Kind::Extents).
    pub extents: Option<Vec<Extent>>,
}

/// Ends the wait of a lane's thread, from any thread.
#[derive(Clone)]
pub struct Waker {}

#[expect(clippy::todo, reason = "skeleton")]
impl Waker {
    /// Makes `Ring::submit_and_wait` of the lane's thread return, now or at its next call.
    pub fn wake(&self) {
        todo!()
    }
}

/// A seat in the pool, with everything that its requests have in flight. Used with one ring, on that ring's thread, from
/// the first request on. Before it is dropped it must be [drained](UringLane::drain).
pub struct UringLane {}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl UringLane {
    /// Takes a request on. Its tag must not be in flight (so a client's own cookie is no good as a tag). A read or write
    /// brings a buffer of at least its length, from [`UringLane::take_buffer`] best, that begins at its first byte;
    /// the others bring `None`.
    pub fn begin(&mut self, request: Request, buffer: Option<AlignedBuffer>, ring: &mut impl Submit) {
        todo!()
    }
    /// Whether a completion is this lane's.
    pub fn owns(&self, completion: &Completion) -> bool {
        todo!()
    }
    /// Takes in one of its completions.
    pub fn complete(&mut self, completion: Completion, ring: &mut impl Submit) {
        todo!()
    }
    /// To be called once a turn, before [`UringLane::next_finished`] and the wait: sends the turn's questions to the keeper
    /// in one go, takes in what it has answered, and sees to it that its next answer ends the wait.
    pub fn before_wait(&mut self, ring: &mut impl Submit) {
        todo!()
    }
    /// The next finished request.
    pub fn next_finished(&mut self) -> Option<Finished> {
        todo!()
    }
    /// Requests begun whose `Finished` was not taken yet.
    pub fn in_flight(&self) -> usize {
        todo!()
    }
    /// A buffer for a request: at least `length_bytes` long, with any content.
    pub fn take_buffer(&mut self, length_bytes: usize) -> AlignedBuffer {
        todo!()
    }
    /// The lane's buffers, to give back what a finished request or the stream returned.
    pub fn buffers(&mut self) -> &mut BufferPool {
        todo!()
    }
    /// Ends the wait of this lane's thread from other threads.
    pub fn waker(&self) -> Waker {
        todo!()
    }
    /// Waits until every request is finished and nothing is in flight; the finished ones are there to be taken or
    /// dropped. Completions of others go to `others`.
    pub fn drain(
        &mut self,
        ring: &mut Ring,
        others: impl FnMut(Completion, &mut Ring),
    ) -> crate::error::Result<()> {
        todo!()
    }
}
