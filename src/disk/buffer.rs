//! Memory that a device can read and write directly: aligned, zeroed, never moved.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// A zeroed byte buffer aligned to [`AlignedBuffer::ALIGNMENT`]. Its bytes stay where they are while it is moved.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
    source: Source,
}

/// Where the bytes come from, and so where they go.
#[derive(Clone)]
enum Source {
    Allocator,
    /// A mapping of its own, whole pages long.
    Mapping,
    /// A slab, which is there for as long as one of its pieces.
    Slab(Slab),
}

impl AlignedBuffer {
    /// Enough for direct I/O on every disk we know.
    pub const ALIGNMENT: usize = 4096;

    /// `length_bytes` zeros. May be 0. Aborts when memory is out, as `Vec` does.
    pub fn zeroed(length_bytes: usize) -> Self {
        if length_bytes == 0 {
            return AlignedBuffer { start: NonNull::dangling(), length: 0, source: Source::Allocator };
        }
        let layout = Self::layout(length_bytes);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuffer { start, length: length_bytes, source: Source::Allocator }
    }

    /// `length_bytes` zeros, rounded up to whole pages, that take no memory before they are touched: for buffers of which
    /// there must be many and few are used. An error is the system's, when it has no more mappings.
    pub fn untouched(length_bytes: usize) -> std::io::Result<Self> {
        let length = length_bytes.next_multiple_of(Self::ALIGNMENT).max(Self::ALIGNMENT);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a place where nothing is.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::PRIVATE | MapFlags::NORESERVE)?
        };
        // Otherwise the first byte may take 2 MiB. A kernel without huge pages refuses, and needs no telling.
        // SAFETY: the advice changes no byte of the mapping that was made just now.
        let _ = unsafe { madvise(start, length, Advice::LinuxNoHugepage) };
        let start = NonNull::new(start.cast()).expect("the system maps nothing at address 0");
        Ok(AlignedBuffer { start, length, source: Source::Mapping })
    }

    /// Whether it is a piece of a [`Slab`].
    pub fn is_piece(&self) -> bool {
        matches!(self.source, Source::Slab(_))
    }

    /// Where it begins: for a driver that lets a device at the bytes, and so must not make references to them meanwhile.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, Self::ALIGNMENT).expect("a buffer's length is far below isize::MAX")
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        match &self.source {
            Source::Slab(_) => {} // the last piece takes it along
            Source::Allocator if self.length == 0 => {}
            // SAFETY: allocated in `zeroed` with this very layout, and dropped once.
            Source::Allocator => unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) },
            Source::Mapping => {
                // SAFETY: mapped in `untouched` with this very length, and dropped once.
                let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
                debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
            }
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes that live as long as `self`; a dangling start has length 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

/// One piece of memory that several buffers lie in, so that it can be shown to a driver as one.
#[derive(Clone)]
pub struct Slab(Arc<AlignedBuffer>);

impl Slab {
    /// Zeros, in `count` buffers of `piece_bytes` each, a multiple of [`AlignedBuffer::ALIGNMENT`]. The memory goes with the last of them, and of the
    /// slab's clones.
    pub fn cut(piece_bytes: usize, count: usize) -> (Slab, Vec<AlignedBuffer>) {
        assert!(piece_bytes.is_multiple_of(AlignedBuffer::ALIGNMENT), "every piece is aligned");
        let length = piece_bytes.checked_mul(count).expect("a slab's length is far below usize::MAX");
        let whole = Arc::new(AlignedBuffer::zeroed(length));
        let piece = |number| {
            // SAFETY: inside the allocation, of which this is piece `number`.
            let start = unsafe { whole.start.add(number * piece_bytes) };
            AlignedBuffer { start, length: piece_bytes, source: Source::Slab(Slab(whole.clone())) }
        };
        let pieces = (0..count).map(piece).collect();
        (Slab(whole), pieces)
    }

    /// Where it begins, and its length: for a driver.
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        (self.0.start, self.0.length)
    }

    /// Whether a buffer is one of its pieces.
    pub fn has(&self, buffer: &AlignedBuffer) -> bool {
        matches!(&buffer.source, Source::Slab(slab) if Arc::ptr_eq(&slab.0, &self.0))
    }
}

// SAFETY: the buffer owns its bytes and shares them with nobody: the whole of a slab is never looked at, and its pieces do not overlap.
unsafe impl Send for AlignedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_writable() {
        let mut buffer = AlignedBuffer::zeroed(8192);
        assert_eq!(buffer.as_ptr() as usize % AlignedBuffer::ALIGNMENT, 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[8191] = 7;
        assert_eq!(buffer[8191], 7);
        assert!(AlignedBuffer::zeroed(0).is_empty());
    }

    #[test]
    fn pieces_of_a_slab_are_buffers_of_their_own() {
        let (slab, mut pieces) = Slab::cut(4096, 3);
        assert!(pieces.iter().all(|piece| slab.has(piece) && piece.is_piece() && **piece == [0; 4096]));
        pieces[1].fill(7);
        assert_eq!((pieces[0][4095], pieces[1][0], pieces[1][4095], pieces[2][0]), (0, 7, 7, 0));
        let (start, length) = slab.memory();
        assert_eq!((start, length), (pieces[0].start(), 3 * 4096));
        drop(slab);
        drop(pieces.remove(0));
        assert_eq!(pieces[0][17], 7, "the memory is there for as long as one of them");
        assert!(!AlignedBuffer::zeroed(4096).is_piece());
    }

    #[test]
    fn an_untouched_one_is_no_different() {
        let mut buffer = AlignedBuffer::untouched(5000).expect("memory");
        assert_eq!((buffer.len(), buffer.as_ptr() as usize % AlignedBuffer::ALIGNMENT), (8192, 0));
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[8191] = 7;
        assert_eq!(buffer[8191], 7);
        drop(buffer);
        // Address space, not memory.
        let many: Vec<_> = (0..100).map(|_| AlignedBuffer::untouched(1 << 30).expect("space")).collect();
        assert!(many.iter().all(|buffer| buffer[1 << 29] == 0));
    }
}
