//! Buffers that are used again and again, by size class, so that the hot path neither allocates nor zeroes.

use crate::disk::AlignedBuffer;

/// Free buffers of one thread. A buffer's length is its class: the power of two at or above what was asked for.
pub struct BufferPool {
    held_bytes: usize,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl BufferPool {
    /// Keeps at most `limit_bytes` of free buffers; what is given back beyond that goes to the system.
    pub fn new(limit_bytes: usize) -> Self {
        todo!()
    }
    /// A buffer of **at least** `length_bytes`, with any content: what an earlier request left in it, perhaps.
    pub fn take(&mut self, length_bytes: usize) -> AlignedBuffer {
        todo!()
    }
    /// Gives a buffer back.
    pub fn give(&mut self, buffer: AlignedBuffer) {
        todo!()
    }
}
