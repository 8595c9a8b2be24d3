//! Buffers that are used again and again, by size class, so that the hot path neither allocates nor zeroes.

use crate::disk::AlignedBuffer;
use crate::engine::CHUNK_BYTES;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The smallest class, 4 KiB, as a power of two.
const SMALLEST: u32 = 12;
/// The largest class, 32 MiB: the most that an NBD client sends at once.
const LARGEST: u32 = 25;
const CLASSES: usize = (LARGEST - SMALLEST + 1) as usize;

/// What one thread's buffers may take whatever the others do.
pub const OWN_BYTES: usize = 8 << 20;

/// What the buffers of all threads take together, beyond [`OWN_BYTES`] each.
pub struct BufferBudget {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

impl BufferBudget {
    /// A budget that nothing was taken from.
    pub fn new(limit_bytes: usize) -> Self {
        BufferBudget { limit_bytes, used_bytes: AtomicUsize::new(0) }
    }

    fn used_bytes(&self) -> usize {
        // A sum to go by: nothing else is read or written because of it.
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn is_overdrawn(&self) -> bool {
        self.used_bytes() > self.limit_bytes
    }
}

/// Buffers of one thread: free ones to be used again, and a count of those that are out. A buffer's length is its class:
/// the power of two at or above what was asked for.
pub struct BufferPool {
    free: [Vec<AlignedBuffer>; CLASSES],
    /// Free pieces of slabs, which are handed out before others. They are no part of the next two sums, in or out.
    pieces: [Vec<AlignedBuffer>; CLASSES],
    held_bytes: usize,
    out_bytes: usize,
    /// In slabs.
    kept_bytes: usize,
    limit_bytes: usize,
    shared: Arc<BufferBudget>,
    /// What was taken from the shared budget.
    charged_bytes: usize,
}

impl BufferPool {
    /// Keeps free buffers as long as they, and those that are out, take at most `limit_bytes`, and the shared budget is not
    /// overdrawn. What does not fit goes to the system. Nothing is refused: who takes buffers asks [`BufferPool::has_room`].
    pub fn new(limit_bytes: usize, shared: Arc<BufferBudget>) -> Self {
        let [free, pieces] = [const { [const { Vec::new() }; CLASSES] }; 2];
        BufferPool {
            free,
            pieces,
            held_bytes: 0,
            out_bytes: 0,
            kept_bytes: 0,
            limit_bytes,
            shared,
            charged_bytes: 0,
        }
    }

    /// Whether so much more can be taken without the shared budget being overdrawn. Always, up to [`OWN_BYTES`].
    pub fn has_room(&self, more_bytes: usize) -> bool {
        let charge = (self.out_bytes + self.kept_bytes + more_bytes).saturating_sub(OWN_BYTES);
        let others = self.shared.used_bytes().saturating_sub(self.charged_bytes);
        charge == 0 || others + charge <= self.shared.limit_bytes
    }

    /// A buffer of **at least** `length_bytes`, with any content: what an earlier request left in it, perhaps.
    pub fn take(&mut self, length_bytes: usize) -> AlignedBuffer {
        let class = class_for(length_bytes);
        if let Some(piece) = class.and_then(|class| self.pieces[class].pop()) {
            return piece;
        }
        if let Some(buffer) = class.and_then(|class| self.free[class].pop()) {
            self.held_bytes -= buffer.len();
            self.out_bytes += buffer.len();
            return buffer;
        }
        let length_bytes = class.map_or(length_bytes, |class| 1 << (class as u32 + SMALLEST));
        self.out_bytes += length_bytes;
        self.charge();
        self.shrink(|pool| {
            pool.held_bytes + pool.out_bytes <= pool.limit_bytes && !pool.shared.is_overdrawn()
        });
        AlignedBuffer::zeroed(length_bytes)
    }

    /// Takes over all pieces of a [slab](crate::disk::Slab), for good. Their length is a class's.
    pub fn keep(&mut self, pieces: Vec<AlignedBuffer>) {
        self.kept_bytes += pieces.iter().map(|piece| piece.len()).sum::<usize>();
        pieces.into_iter().for_each(|piece| self.give(piece));
        self.charge();
    }

    /// Gives a buffer back, wherever it came from. Pieces of [slabs](crate::disk::Slab) are kept for good.
    pub fn give(&mut self, buffer: AlignedBuffer) {
        // A buffer that was made elsewhere may be no class's; one would get too little from it.
        let class = class_for(buffer.len()).filter(|class| buffer.len() == 1 << (*class as u32 + SMALLEST));
        if buffer.is_piece() {
            if let Some(class) = class {
                self.pieces[class].push(buffer);
            }
            return;
        }
        self.out_bytes = self.out_bytes.saturating_sub(buffer.len());
        let fits = self.held_bytes + self.out_bytes + buffer.len() <= self.limit_bytes;
        if let Some(class) = class
            && fits
            && !self.shared.is_overdrawn()
        {
            self.held_bytes += buffer.len();
            self.free[class].push(buffer);
        }
        self.charge();
    }

    /// Gives free buffers to the system until no more than [`OWN_BYTES`] are left: nothing is under way.
    pub fn rest(&mut self) {
        self.shrink(|pool| pool.held_bytes <= OWN_BYTES);
    }

    /// Bytes in free buffers.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Frees buffers, the largest first, until it is enough or there are no more.
    fn shrink(&mut self, is_enough: impl Fn(&Self) -> bool) {
        while !is_enough(self) {
            let Some(buffer) = self.free.iter_mut().rev().find_map(Vec::pop) else { return };
            self.held_bytes -= buffer.len();
            self.charge();
        }
    }

    /// Brings the shared budget up to date. Buffers that go to and fro change nothing.
    fn charge(&mut self) {
        let charge = (self.held_bytes + self.out_bytes + self.kept_bytes).saturating_sub(OWN_BYTES);
        let used = &self.shared.used_bytes;
        match charge.checked_sub(self.charged_bytes) {
            Some(0) => {}
            Some(more) => drop(used.fetch_add(more, Ordering::Relaxed)),
            None => drop(used.fetch_sub(self.charged_bytes - charge, Ordering::Relaxed)),
        }
        self.charged_bytes = charge;
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        self.shared.used_bytes.fetch_sub(self.charged_bytes, Ordering::Relaxed);
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

    fn pool(limit_bytes: usize) -> BufferPool {
        BufferPool::new(limit_bytes, Arc::new(BufferBudget::new(1 << 30)))
    }

    #[test]
    fn a_buffer_is_used_again_and_large_enough() {
        let mut odd = pool(1 << 20);
        for length in [0, 1, 4096, 4097, 65_536, 100_000, (32 << 20) + 1] {
            assert!(odd.take(length).len() >= length, "{length}");
        }
        let mut pool = pool(1 << 20);
        let mut buffer = pool.take(5000);
        assert_eq!(buffer.len(), 8192);
        buffer[0] = 77;
        pool.give(buffer);
        assert_eq!(pool.held_bytes(), 8192);
        assert_eq!(pool.take(8192)[0], 77);
        assert_eq!(pool.held_bytes(), 0);
    }

    #[test]
    fn pieces_of_a_slab_go_first_and_are_kept() {
        let mut pool = pool(0);
        let (slab, pieces) = crate::disk::Slab::cut(8192, 2);
        pool.keep(pieces);
        let taken = [8192, 5000, 8192, 4096].map(|length| pool.take(length));
        assert_eq!(taken.each_ref().map(|buffer| slab.has(buffer)), [true, true, false, false]);
        taken.into_iter().for_each(|buffer| pool.give(buffer));
        pool.rest();
        assert_eq!((pool.held_bytes(), slab.has(&pool.take(8192))), (0, true));
        assert!(pool.has_room(OWN_BYTES - 2 * 8192));
        let shared = pool.shared.clone();
        pool.keep(crate::disk::Slab::cut(OWN_BYTES, 1).1);
        assert_eq!(shared.used_bytes(), 2 * 8192, "slabs count");
        drop(pool);
        assert_eq!(shared.used_bytes(), 0);
    }

    #[test]
    fn holds_no_more_than_its_limit_and_no_odd_sizes() {
        let mut pool = pool(10_000);
        for length in [8192, 8192, 6000, 512, 64 << 20] {
            pool.give(AlignedBuffer::zeroed(length));
        }
        assert_eq!(pool.held_bytes(), 8192);
    }

    #[test]
    fn what_is_out_counts_and_free_buffers_make_room() {
        let mut pool = pool(1 << 20);
        let buffers: Vec<_> = (0..8).map(|_| pool.take(128 << 10)).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.held_bytes(), 1 << 20);
        let large = pool.take(512 << 10);
        assert_eq!(pool.held_bytes(), 512 << 10, "free ones of another size went");
        let more = pool.take(1 << 20);
        assert_eq!(pool.held_bytes(), 0, "and all, when that is not enough");
        pool.give(large);
        assert_eq!(pool.held_bytes(), 0);
        pool.give(more);
        assert_eq!(pool.held_bytes(), 1 << 20);
    }

    #[test]
    fn threads_share_what_is_beyond_their_own() {
        let shared = Arc::new(BufferBudget::new(16 << 20));
        let [mut greedy, mut other] = [(); 2].map(|()| BufferPool::new(64 << 20, shared.clone()));
        assert!(greedy.has_room(24 << 20) && !greedy.has_room((24 << 20) + 1));
        let buffers: Vec<_> = (0..24).map(|_| greedy.take(1 << 20)).collect();
        assert!(!greedy.has_room(1) && other.has_room(OWN_BYTES) && !other.has_room(OWN_BYTES + 1));
        let own = other.take(OWN_BYTES);
        other.give(own);
        assert_eq!(other.held_bytes(), OWN_BYTES, "within its own it is free");
        // A single request larger than that is never refused: then nobody keeps free buffers.
        let large = other.take(32 << 20);
        assert_eq!(other.held_bytes(), 0);
        buffers.into_iter().for_each(|buffer| greedy.give(buffer));
        assert!(greedy.held_bytes() < 24 << 20, "{}", greedy.held_bytes());
        drop(large);
        drop(other);
        assert_eq!(shared.used_bytes(), greedy.held_bytes().saturating_sub(OWN_BYTES));
        greedy.rest();
        assert_eq!((greedy.held_bytes() <= OWN_BYTES, shared.used_bytes()), (true, 0));
    }
}
