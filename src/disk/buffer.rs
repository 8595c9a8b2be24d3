//! Memory that a device can read and write directly: aligned, zeroed, never moved.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A zeroed byte buffer aligned to [`AlignedBuffer::ALIGNMENT`]. Its bytes stay where they are while it is moved.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

impl AlignedBuffer {
    /// Enough for direct I/O on every disk we know.
    pub const ALIGNMENT: usize = 4096;

    /// `length_bytes` zeros. May be 0. Aborts when memory is out, as `Vec` does.
    pub fn zeroed(length_bytes: usize) -> Self {
        if length_bytes == 0 {
            return AlignedBuffer { start: NonNull::dangling(), length: 0 };
        }
        let layout = Self::layout(length_bytes);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuffer { start, length: length_bytes }
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
        if self.length != 0 {
            // SAFETY: allocated in `zeroed` with this very layout, and dropped once.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) }
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

// SAFETY: the buffer owns its bytes and shares them with nobody.
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
}
