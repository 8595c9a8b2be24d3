//! The memory that a lane has among the buffers of its ring.
//!
//! For direct I/O the kernel has to find and hold the pages of a buffer each time, but not those of a buffer that is registered with the ring.
//! A lane that has shown that it is used registers two slabs, which its [pool of buffers](BufferPool) hands out before others: small
//! buffers for requests once it has taken [`REQUESTS_FROM`] buffers, scratch buffers and the zeros after [`FILLS_FROM`] fills. So a client that comes
//! for a few requests costs nothing. Where memory cannot be registered (before Linux 5.19, or when no more may be locked), all goes on as
//! without.

use super::ring::Submit;
use crate::disk::{AlignedBuffer, Slab};
use crate::driver::BufferPool;
use crate::driver::buffers::zeros;

/// The buffers that were taken from a lane that is worth a slab of small ones.
const REQUESTS_FROM: u32 = 128;
/// Small buffers: as many requests as a fast client keeps in flight, of the size that most are of.
const REQUEST_BUFFERS: (usize, usize) = (4 << 10, 64);
/// The fills of a lane that is worth a slab of scratch buffers.
const FILLS_FROM: u32 = 16;
/// Scratch buffers: as many, if they are no larger than usual. Each is at least as long as a pool's class of buffers.
const SCRATCH_BUFFERS: usize = 16;
/// What they take together at most.
const SCRATCH_BYTES: usize = 1 << 20;
/// The zeros that most fills want.
const ZEROS_BYTES: usize = 64 << 10;

/// The first bytes of a buffer, which are among the ring's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Their index there.
    pub index: u16,
    /// How many they are.
    pub length_bytes: u64,
}

/// What a lane has registered, and when it is time for more.
#[derive(Default)]
pub(super) struct Slabs {
    requests: u32,
    fills: u32,
    /// Whether it was tried.
    has_small: bool,
    has_scratch: bool,
    slabs: Vec<(Slab, u16)>,
    zeros: Option<Registered>,
}

impl Slabs {
    /// A buffer was taken for a request.
    pub(super) fn count_request(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }

    /// A scratch buffer was taken, or zeros are written.
    pub(super) fn count_fill(&mut self) {
        self.fills = self.fills.saturating_add(1);
    }

    /// Registers what it is time for. `scratch_bytes`: the length of a scratch buffer.
    pub(super) fn grow(&mut self, scratch_bytes: usize, buffers: &mut BufferPool, ring: &mut impl Submit) {
        if self.requests >= REQUESTS_FROM && !self.has_small {
            self.has_small = true;
            let (length_bytes, count) = REQUEST_BUFFERS;
            self.add(length_bytes, count, buffers, ring);
        }
        if self.fills >= FILLS_FROM && !self.has_scratch {
            self.has_scratch = true;
            let length_bytes = scratch_bytes.next_power_of_two();
            self.add(length_bytes, SCRATCH_BUFFERS.min(SCRATCH_BYTES / length_bytes), buffers, ring);
            let index = ring.register(zeros().start(), ZEROS_BYTES);
            self.zeros = index.map(|index| Registered { index, length_bytes: ZEROS_BYTES as u64 });
        }
    }

    fn add(&mut self, length_bytes: usize, count: usize, buffers: &mut BufferPool, ring: &mut impl Submit) {
        let (slab, pieces) = Slab::cut(length_bytes, count);
        let (start, length) = slab.memory();
        if let Some(index) = ring.register(start, length) {
            buffers.keep(pieces);
            self.slabs.push((slab, index));
        }
    }

    /// What of a buffer is registered.
    pub(super) fn find(&self, buffer: &AlignedBuffer) -> Option<Registered> {
        let (_, index) = self.slabs.iter().find(|(slab, _)| slab.has(buffer))?;
        Some(Registered { index: *index, length_bytes: buffer.len() as u64 })
    }

    /// What of the zeros is registered.
    pub(super) fn zeros(&self) -> Option<Registered> {
        self.zeros
    }
}

#[cfg(test)]
#[path = "registered_tests.rs"]
mod tests;
