//! Buffers that are used again and again, by size class, so that the hot path neither allocates nor zeroes.

use crate::disk::AlignedBuffer;
use crate::engine::CHUNK_BYTES;
use std::sync::OnceLock;

/// The smallest class, 4 KiB, as a power of two.
const SMALLEST: u32 = 12;
/// The largest class, 32 MiB: the most that an NBD client sends at once.
const LARGEST: u32 = 25;
const CLASSES: usize = (LARGEST - SMALLEST + 1) as usize;

/// Free buffers of one thread. A buffer's length is its class: the power of two at or above what was asked for.
pub struct BufferPool {
    free: [Vec<AlignedBuffer>; CLASSES],
    held_bytes: usize,
    limit_bytes: usize,
}

impl BufferPool {
    /// Keeps at most `limit_bytes` of free buffers; what is given back beyond that goes to the system.
    pub fn new(limit_bytes: usize) -> Self {
        BufferPool { free: [const { Vec::new() }; CLASSES], held_bytes: 0, limit_bytes }
    }

    /// A buffer of **at least** `length_bytes`, with any content: what an earlier request left in it, perhaps.
    pub fn take(&mut self, length_bytes: usize) -> AlignedBuffer {
        let Some(class) = class_for(length_bytes) else { return AlignedBuffer::zeroed(length_bytes) };
        match self.free[class].pop() {
            Some(buffer) => {
                self.held_bytes -= buffer.len();
                buffer
            }
            None => AlignedBuffer::zeroed(1 << (class as u32 + SMALLEST)),
        }
    }

    /// Gives a buffer back, wherever it came from.
    pub fn give(&mut self, buffer: AlignedBuffer) {
        let fits = self.held_bytes + buffer.len() <= self.limit_bytes;
        // A buffer that was made elsewhere may be no class's; one would get too little from it.
        let class = class_for(buffer.len()).filter(|_| fits && buffer.len().is_power_of_two());
        if let Some(class) = class
            && buffer.len() == 1 << (class as u32 + SMALLEST)
        {
            self.held_bytes += buffer.len();
            self.free[class].push(buffer);
        }
    }

    /// Bytes in free buffers.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

/// `None` beyond the largest.
fn class_for(length_bytes: usize) -> Option<usize> {
    let power = length_bytes.max(1).checked_next_power_of_two()?.ilog2().max(SMALLEST);
    (power <= LARGEST).then_some((power - SMALLEST) as usize)
}

/// [`CHUNK_BYTES`] zeros that nobody writes to.
pub(super) fn zeros() -> &'static AlignedBuffer {
    static ZEROS: OnceLock<AlignedBuffer> = OnceLock::new();
    ZEROS.get_or_init(|| AlignedBuffer::zeroed(CHUNK_BYTES as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_large_enough() {
        let mut pool = BufferPool::new(1 << 20);
        for length in [0, 1, 4096, 4097, 65_536, 100_000, (32 << 20) + 1] {
            assert!(pool.take(length).len() >= length, "{length}");
        }
        let mut buffer = pool.take(5000);
        assert_eq!(buffer.len(), 8192);
        buffer[0] = 77;
        pool.give(buffer);
        assert_eq!(pool.held_bytes(), 8192);
        assert_eq!(pool.take(8192)[0], 77);
        assert_eq!(pool.held_bytes(), 0);
    }

    #[test]
    fn holds_no_more_than_its_limit_and_no_odd_sizes() {
        let mut pool = BufferPool::new(10_000);
        for length in [8192, 8192, 6000, 512, 64 << 20] {
            pool.give(AlignedBuffer::zeroed(length));
        }
        assert_eq!(pool.held_bytes(), 8192);
    }
}
