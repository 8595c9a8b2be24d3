//! What a request of the kernel's means, or why it is refused. The kernel is trusted to keep what it was told, and checked.

use super::abi::{self, Descriptor};
use super::params::REQUEST_BYTES_LIMIT;
use crate::engine::{IoError, Kind};
use crate::units::SECTOR_BYTES;
use std::ops::Range;

/// A request that can be carried out: inside the volume, and no longer than its buffer if it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) range: Range<u64>,
}

/// What a volume allows at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
}

/// Reads a descriptor; an error is an errno, as the kernel is told it.
pub(super) fn understand(descriptor: &Descriptor, terms: Terms) -> Result<Wanted, i32> {
    let flags = descriptor.op_flags;
    let fua = flags & abi::UBLK_IO_F_FUA != 0;
    let kind = match flags & 0xff {
        abi::UBLK_IO_OP_READ => Kind::Read,
        abi::UBLK_IO_OP_WRITE => Kind::Write { fua },
        abi::UBLK_IO_OP_FLUSH => return Ok(Wanted { kind: Kind::Flush, range: 0..0 }),
        abi::UBLK_IO_OP_DISCARD => Kind::Discard,
        abi::UBLK_IO_OP_WRITE_ZEROES => {
            Kind::WriteZeroes { fua, may_unmap: flags & abi::UBLK_IO_F_NOUNMAP == 0 }
        }
        _ => return Err(libc::EOPNOTSUPP),
    };
    if terms.read_only && kind != Kind::Read {
        return Err(libc::EPERM);
    }
    let length = u64::from(descriptor.nr_sectors) * SECTOR_BYTES;
    let begin = descriptor.start_sector.checked_mul(SECTOR_BYTES).ok_or(libc::EIO)?;
    let end = begin.checked_add(length).filter(|end| *end <= terms.size_bytes).ok_or(libc::EIO)?;
    let has_data = matches!(kind, Kind::Read | Kind::Write { .. });
    if length == 0 || (has_data && length > u64::from(REQUEST_BYTES_LIMIT)) {
        return Err(libc::EINVAL);
    }
    Ok(Wanted { kind, range: begin..end })
}

/// What the kernel is told of a failure: it has no word for a volume that is going away but "I/O error".
pub(super) fn errno_of(error: IoError) -> i32 {
    match error {
        IoError::NoSpace => libc::ENOSPC,
        IoError::Io | IoError::Gone => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms { size_bytes: 1 << 20, read_only: false };

    fn descriptor(op_flags: u32, start_sector: u64, nr_sectors: u32) -> Descriptor {
        Descriptor { op_flags, start_sector, nr_sectors, addr: 0 }
    }

    #[test]
    fn every_operation_with_its_flags() {
        let fua = abi::UBLK_IO_F_FUA;
        let wanted = |op_flags| understand(&descriptor(op_flags, 8, 16), TERMS);
        let ok = |kind| Ok(Wanted { kind, range: 4096..12288 });
        assert_eq!(wanted(0), ok(Kind::Read));
        assert_eq!(wanted(1), ok(Kind::Write { fua: false }));
        assert_eq!(wanted(1 | fua), ok(Kind::Write { fua: true }));
        assert_eq!(wanted(2), Ok(Wanted { kind: Kind::Flush, range: 0..0 }));
        assert_eq!(wanted(3), ok(Kind::Discard));
        assert_eq!(wanted(5), ok(Kind::WriteZeroes { fua: false, may_unmap: true }));
        let kept = wanted(5 | fua | abi::UBLK_IO_F_NOUNMAP);
        assert_eq!(kept, ok(Kind::WriteZeroes { fua: true, may_unmap: false }));
        for unknown in [4, 10, 255] {
            assert_eq!(wanted(unknown), Err(libc::EOPNOTSUPP));
        }
    }

    #[test]
    fn nothing_beyond_the_end_and_nothing_on_a_read_only_volume() {
        let at = |op, start, sectors| understand(&descriptor(op, start, sectors), TERMS);
        assert!(at(0, 2047, 1).is_ok());
        assert_eq!(at(0, 2047, 2), Err(libc::EIO));
        assert_eq!(at(1, u64::MAX, 1), Err(libc::EIO));
        assert_eq!(at(3, u64::MAX / 512, 1), Err(libc::EIO));
        assert_eq!(at(0, 0, 0), Err(libc::EINVAL));
        assert_eq!(at(0, 0, 1025), Err(libc::EINVAL), "longer than a buffer");
        assert!(at(3, 0, 2048).is_ok(), "a discard has none");
        let read_only = Terms { read_only: true, ..TERMS };
        for op in [1, 3, 5] {
            assert_eq!(understand(&descriptor(op, 0, 1), read_only), Err(libc::EPERM));
        }
        assert!(understand(&descriptor(2, 0, 0), read_only).is_ok());
    }

    proptest! {
        #[test]
        fn what_passes_is_inside_and_fits(op_flags: u32, start: u64, sectors: u32, size in 1..1_u64 << 40) {
            let terms = Terms { size_bytes: size / 512 * 512, read_only: false };
            for start in [start, start % (size / 512 + 1)] {
                let Ok(wanted) = understand(&descriptor(op_flags, start, sectors), terms) else { continue };
                if wanted.kind != Kind::Flush {
                    prop_assert!(wanted.range.start < wanted.range.end && wanted.range.end <= size);
                }
                if matches!(wanted.kind, Kind::Read | Kind::Write { .. }) {
                    prop_assert!(wanted.range.end - wanted.range.start <= u64::from(REQUEST_BYTES_LIMIT));
                }
            }
        }
    }
}
