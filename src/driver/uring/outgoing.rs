//! A batch of pieces to be sent: short ones are copied, buffers are taken over and returned.
//!
//! A batch is filled, then sent, in as many operations as it takes; nothing is added meanwhile. All memory that an operation
//! points at stays where it is until [`Outgoing::advance`] or [`Outgoing::give_up`].

use crate::disk::AlignedBuffer;
use std::ops::Range;

/// Pieces that one operation sends at most; the kernel's own limit is 1024.
const PIECES_LIMIT: usize = 1024;

enum Piece {
    /// A range of `bytes`.
    Bytes(Range<usize>),
    /// `None` once it was sent and returned.
    Buffer(Option<AlignedBuffer>, Range<usize>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Bytes(range) | Piece::Buffer(_, range) => range.len(),
        }
    }
}

/// A batch.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// The first piece that is not wholly sent, and how much of it is.
    next: usize,
    next_sent_bytes: usize,
    unsent_bytes: usize,
    vectors: Vec<libc::iovec>,
    /// One, in memory that does not move with `self`.
    header: Vec<libc::msghdr>,
}

// SAFETY: the pointers in `vectors` and `header` lead to memory that this batch owns, and are used by the kernel only.
unsafe impl Send for Outgoing {}

impl Outgoing {
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Bytes(last)) => last.end = end,
            Some(Piece::Buffer(..)) | None => self.pieces.push(Piece::Bytes(begin..end)),
        }
        self.unsent_bytes += bytes.len();
    }

    pub(super) fn push_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        self.unsent_bytes += range.len();
        self.pieces.push(Piece::Buffer(Some(buffer), range));
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// What the next operation sends. Valid until the batch is changed; it does not move with `self`.
    pub(super) fn message(&mut self) -> *const libc::msghdr {
        self.vectors.clear();
        let mut skipped = self.next_sent_bytes;
        for piece in &self.pieces[self.next..] {
            let (start, range) = match piece {
                Piece::Bytes(range) => (self.bytes.as_ptr(), range),
                Piece::Buffer(Some(buffer), range) => (buffer.start().as_ptr().cast_const(), range),
                Piece::Buffer(None, _) => unreachable!("an unsent piece has its buffer"),
            };
            // SAFETY: the range lies inside the piece's memory, and less than all of it was sent.
            let begin = unsafe { start.add(range.start + skipped) };
            let length = range.len() - skipped;
            skipped = 0;
            if length > 0 {
                self.vectors.push(libc::iovec { iov_base: begin.cast_mut().cast(), iov_len: length });
            }
            if self.vectors.len() == PIECES_LIMIT {
                break;
            }
        }
        // SAFETY: all zeros is a `msghdr`: without name, vectors and control data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.vectors.as_mut_ptr();
        header.msg_iovlen = self.vectors.len() as _;
        self.header.clear();
        self.header.push(header);
        self.header.as_ptr()
    }

    /// `count` more bytes were sent. Returns the buffers that are through.
    pub(super) fn advance(&mut self, count: usize, returned: &mut Vec<AlignedBuffer>) {
        assert!(count <= self.unsent_bytes, "no more is sent than there was");
        self.unsent_bytes -= count;
        let mut left = self.next_sent_bytes + count;
        while let Some(piece) = self.pieces.get_mut(self.next).filter(|piece| piece.len() <= left) {
            left -= piece.len();
            if let Piece::Buffer(buffer, _) = piece {
                returned.extend(buffer.take());
            }
            self.next += 1;
        }
        self.next_sent_bytes = left;
        if self.unsent_bytes == 0 {
            self.give_up(returned);
        }
    }

    /// Empties the batch, sent or not, and returns its buffers.
    pub(super) fn give_up(&mut self, returned: &mut Vec<AlignedBuffer>) {
        for piece in self.pieces.drain(..) {
            if let Piece::Buffer(Some(buffer), _) = piece {
                returned.push(buffer);
            }
        }
        self.bytes.clear();
        (self.next, self.next_sent_bytes, self.unsent_bytes) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the next operation would send.
    fn sends(batch: &mut Outgoing) -> Vec<u8> {
        batch.message();
        let bytes = batch.vectors.iter().flat_map(|vector| {
            // SAFETY: made by `message`, from memory that lives in the batch.
            unsafe { std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), vector.iov_len) }.to_vec()
        });
        bytes.collect()
    }

    fn buffer(byte: u8) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::zeroed(100);
        buffer.fill(byte);
        buffer
    }

    #[test]
    fn sends_every_byte_once_wherever_it_is_cut() {
        let mut expected = b"header".to_vec();
        expected.extend([1; 10]);
        expected.extend(b"twothree");
        expected.extend([2; 100]);
        for cut in 0..expected.len() {
            for second in [1, 7, 50] {
                let mut batch = Outgoing::default();
                batch.push_bytes(b"header");
                batch.push_buffer(buffer(1), 20..30);
                batch.push_buffer(buffer(9), 5..5);
                batch.push_bytes(b"two");
                batch.push_bytes(b"three");
                batch.push_buffer(buffer(2), 0..100);
                assert_eq!(batch.unsent_bytes(), expected.len());
                let mut returned = Vec::new();
                batch.advance(cut, &mut returned);
                let second = second.min(expected.len() - cut);
                assert!(sends(&mut batch) == expected[cut..]);
                batch.advance(second, &mut returned);
                assert!(sends(&mut batch) == expected[cut + second..]);
                batch.advance(expected.len() - cut - second, &mut returned);
                assert_eq!((batch.unsent_bytes(), returned.len()), (0, 3));
                assert!(sends(&mut batch).is_empty());
            }
        }
    }

    #[test]
    fn many_pieces_take_several_operations_and_headers_join() {
        let mut batch = Outgoing::default();
        for _ in 0..2000 {
            batch.push_bytes(&[3; 8]);
            batch.push_bytes(&[4; 8]);
            batch.push_buffer(buffer(5), 0..1);
        }
        let first = sends(&mut batch);
        assert_eq!((batch.vectors.len(), first.len()), (1024, 512 * 17));
        let mut returned = Vec::new();
        batch.advance(first.len(), &mut returned);
        assert_eq!(returned.len(), 512);
        assert_eq!(batch.unsent_bytes(), 2000 * 17 - first.len());
        batch.give_up(&mut returned);
        assert_eq!((returned.len(), batch.unsent_bytes()), (2000, 0));
    }
}
