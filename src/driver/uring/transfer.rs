//! What a lane has in flight on the data disk: reads and writes, merged where they adjoin.
//!
//! One transfer is one run of bytes on the disk and in one buffer. It goes to the kernel in as many operations as it takes,
//! one after the other, and is answered for every op that it was merged from.

use crate::disk::AlignedBuffer;
use crate::engine::{CHUNK_BYTES, OpId, Place};
use std::io;

/// The most that one operation moves; a longer transfer takes several.
const OPERATION_BYTES: u64 = 1 << 30;
/// Attempts without any progress before a transfer is given up.
const FRUITLESS_LIMIT: u32 = 100;

/// A read or a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The disk that something is read from or written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// The data disk.
    Data,
    /// The external origin of this number among those that the lane has met.
    Origin(usize),
}

/// A read or write as the engine wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) direction: Direction,
    pub(super) side: Side,
    pub(super) disk_offset_bytes: u64,
    pub(super) length_bytes: u64,
    pub(super) place: Place,
    pub(super) op: OpId,
}

/// One run of bytes between disk and a buffer.
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) side: Side,
    pub(super) disk_offset_bytes: u64,
    pub(super) length_bytes: u64,
    pub(super) place: Place,
    /// Whose bytes these are, in order.
    pub(super) ops: Vec<OpId>,
    /// A buffer that it moves through in place of lent memory, if that will not do.
    pub(super) detour: Option<AlignedBuffer>,
    /// What has been moved already.
    done_bytes: u64,
    fruitless: u32,
}

/// The next operation of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Operation {
    pub(super) disk_offset_bytes: u64,
    /// From the beginning of the transfer's place.
    pub(super) at_bytes: u64,
    pub(super) length_bytes: u32,
}

/// What a completion means for a transfer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All is moved.
    Done,
    /// Another operation is needed.
    More,
    /// Given up.
    Failed(io::Error),
}

impl Transfer {
    /// A transfer of one op. `ops` is an empty vector, perhaps one used before.
    pub(super) fn new(wanted: Wanted, mut ops: Vec<OpId>) -> Self {
        debug_assert!(ops.is_empty(), "a used vector is emptied first");
        let Wanted { direction, side, disk_offset_bytes, length_bytes, place, op } = wanted;
        ops.push(op);
        let (detour, done_bytes, fruitless) = (None, 0, 0);
        Transfer {
            direction,
            side,
            disk_offset_bytes,
            length_bytes,
            place,
            ops,
            detour,
            done_bytes,
            fruitless,
        }
    }

    /// Begins anew, through this buffer. Only between two operations.
    pub(super) fn go_through(&mut self, detour: AlignedBuffer) {
        (self.detour, self.done_bytes, self.fruitless) = (Some(detour), 0, 0);
    }

    /// Takes the bytes of another op in if they come right after its own, on the disk and in memory. Only before the
    /// transfer was started.
    pub(super) fn absorb(&mut self, wanted: Wanted) -> bool {
        let adjoins_in_memory = match (self.place, wanted.place) {
            (Place::Request(tag, at), Place::Request(next_tag, next)) => {
                tag == next_tag && at + self.length_bytes == next
            }
            // There are so many zeros and no more.
            (Place::Zeros, Place::Zeros) => self.length_bytes + wanted.length_bytes <= CHUNK_BYTES,
            // A scratch buffer is used from its first byte on, so there is nothing before it.
            (
                Place::Request(..) | Place::Scratch(_) | Place::Zeros,
                Place::Request(..) | Place::Scratch(_) | Place::Zeros,
            ) => false,
        };
        let adjoins = self.direction == wanted.direction
            && self.side == wanted.side
            && self.disk_offset_bytes + self.length_bytes == wanted.disk_offset_bytes
            && adjoins_in_memory;
        if adjoins {
            self.length_bytes += wanted.length_bytes;
            self.ops.push(wanted.op);
        }
        adjoins
    }

    /// What to do next.
    pub(super) fn next_operation(&self) -> Operation {
        let left = self.length_bytes - self.done_bytes;
        Operation {
            disk_offset_bytes: self.disk_offset_bytes + self.done_bytes,
            at_bytes: self.done_bytes,
            length_bytes: left.min(OPERATION_BYTES) as u32,
        }
    }

    /// Takes in the result of its operation: a count of bytes, or a negative errno. With direct I/O the next operation
    /// begins at a whole multiple of `unit_bytes`.
    pub(super) fn advance(&mut self, result: i32, unit_bytes: u64) -> Outcome {
        let moved = match u64::try_from(result) {
            Ok(0) if self.length_bytes > 0 => return Outcome::Failed(self.nothing_there()),
            Ok(moved) => moved,
            Err(_) if result == -libc::EINTR || result == -libc::EAGAIN => 0,
            Err(_) => return Outcome::Failed(io::Error::from_raw_os_error(-result)),
        };
        let done_bytes = self.done_bytes + moved;
        if done_bytes >= self.length_bytes {
            return Outcome::Done;
        }
        let done_bytes = done_bytes / unit_bytes * unit_bytes;
        if done_bytes > self.done_bytes {
            self.done_bytes = done_bytes;
            self.fruitless = 0;
            return Outcome::More;
        }
        self.fruitless += 1;
        match self.fruitless {
            FRUITLESS_LIMIT.. => {
                Outcome::Failed(io::Error::other("gave up after many attempts without progress"))
            }
            _ => Outcome::More,
        }
    }

    fn nothing_there(&self) -> io::Error {
        match self.direction {
            Direction::Read => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before this place")
            }
            Direction::Write => io::Error::new(io::ErrorKind::WriteZero, "nothing was written"),
        }
    }
}

/// Transfers under small stable numbers. The vectors of ops are used again.
#[derive(Default)]
pub(super) struct Transfers {
    slots: Vec<Option<Transfer>>,
    free: Vec<usize>,
    spare: Vec<Vec<OpId>>,
}

impl Transfers {
    /// An empty vector for a transfer's ops.
    pub(super) fn spare_ops(&mut self) -> Vec<OpId> {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn insert(&mut self, transfer: Transfer) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(transfer);
                slot
            }
            None => {
                self.slots.push(Some(transfer));
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> &mut Transfer {
        self.slots[slot].as_mut().expect("the transfer is in flight")
    }

    pub(super) fn remove(&mut self, slot: usize) -> Transfer {
        self.free.push(slot);
        self.slots[slot].take().expect("the transfer is in flight")
    }

    /// Takes a finished transfer's vector back.
    pub(super) fn recycle(&mut self, mut ops: Vec<OpId>) {
        ops.clear();
        self.spare.push(ops);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tag;

    const TAG: Tag = Tag(7);

    fn wanted(direction: Direction, disk: u64, length: u64, place: Place, op: u64) -> Wanted {
        let side = Side::Data;
        Wanted { direction, side, disk_offset_bytes: disk, length_bytes: length, place, op: OpId(op) }
    }

    fn read(disk: u64, length: u64, place: Place, op: u64) -> Transfer {
        Transfer::new(wanted(Direction::Read, disk, length, place, op), Vec::new())
    }

    #[test]
    fn merges_what_adjoins_on_disk_and_in_memory() {
        let mut transfer = read(65_536, 4096, Place::Request(TAG, 512), 1);
        assert!(transfer.absorb(wanted(Direction::Read, 69_632, 512, Place::Request(TAG, 4608), 2)));
        assert!(transfer.absorb(wanted(Direction::Read, 70_144, 512, Place::Request(TAG, 5120), 3)));
        assert_eq!(transfer.length_bytes, 5120);
        assert_eq!(transfer.ops, [OpId(1), OpId(2), OpId(3)]);
    }

    #[test]
    fn merges_nothing_else() {
        let next = Place::Request(TAG, 4096);
        let cases = [
            (Direction::Write, 4096, next),
            (Direction::Read, 4608, next),
            (Direction::Read, 0, next),
            (Direction::Read, 4096, Place::Request(TAG, 4608)),
            (Direction::Read, 4096, Place::Request(Tag(8), 4096)),
            (Direction::Read, 4096, Place::Scratch(OpId(2))),
        ];
        for (direction, disk, place) in cases {
            let mut transfer = read(0, 4096, Place::Request(TAG, 0), 1);
            assert!(
                !transfer.absorb(wanted(direction, disk, 512, place, 2)),
                "{direction:?} {disk} {place:?}"
            );
            assert_eq!((transfer.length_bytes, transfer.ops.len()), (4096, 1));
        }
        let mut data = read(0, 4096, Place::Request(TAG, 0), 1);
        let elsewhere = wanted(Direction::Read, 4096, 512, next, 2);
        assert!(!data.absorb(Wanted { side: Side::Origin(0), ..elsewhere }) && data.absorb(elsewhere));
        let mut scratch = read(0, 4096, Place::Scratch(OpId(1)), 1);
        assert!(!scratch.absorb(wanted(Direction::Read, 4096, 4096, Place::Scratch(OpId(1)), 1)));
    }

    #[test]
    fn zeros_merge_up_to_what_there_is() {
        let half = CHUNK_BYTES / 2;
        let zeros = |disk, length, op| wanted(Direction::Write, disk, length, Place::Zeros, op);
        let mut transfer = Transfer::new(zeros(0, half, 1), Vec::new());
        assert!(transfer.absorb(zeros(half, half, 2)));
        assert!(!transfer.absorb(zeros(CHUNK_BYTES, 512, 3)));
    }

    #[test]
    fn goes_on_after_a_short_result_at_a_whole_unit() {
        let mut transfer = read(1 << 20, 8192, Place::Request(TAG, 0), 1);
        assert!(matches!(transfer.advance(1000, 512), Outcome::More));
        let next = Operation { disk_offset_bytes: (1 << 20) + 512, at_bytes: 512, length_bytes: 7680 };
        assert_eq!(transfer.next_operation(), next);
        assert!(matches!(transfer.advance(-libc::EINTR, 512), Outcome::More));
        assert_eq!(transfer.next_operation(), next);
        assert!(matches!(transfer.advance(7680, 512), Outcome::Done));
    }

    #[test]
    fn fails_on_an_error_at_the_end_and_without_progress() {
        let failure = |result| match read(0, 8192, Place::Request(TAG, 0), 1).advance(result, 512) {
            Outcome::Failed(error) => error,
            Outcome::Done | Outcome::More => panic!("{result} is a failure"),
        };
        assert_eq!(failure(-libc::EIO).raw_os_error(), Some(libc::EIO));
        assert_eq!(failure(0).kind(), io::ErrorKind::UnexpectedEof);
        let mut stuck = read(0, 8192, Place::Request(TAG, 0), 1);
        let attempts = (0..1000).take_while(|_| matches!(stuck.advance(-libc::EAGAIN, 512), Outcome::More));
        assert_eq!(attempts.count() as u32, FRUITLESS_LIMIT - 1);
    }

    #[test]
    fn a_long_transfer_takes_several_operations() {
        let mut transfer = read(0, 3 << 30, Place::Request(TAG, 0), 1);
        for turn in 0..3 {
            let operation = transfer.next_operation();
            assert_eq!((operation.at_bytes, operation.length_bytes), (turn << 30, 1 << 30));
            assert_eq!(matches!(transfer.advance(1 << 30, 512), Outcome::Done), turn == 2);
        }
    }
}
