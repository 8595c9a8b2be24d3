//! What a request means, or why it is refused. Everything is checked here, before any of a request is done.

use super::options::{MIN_BLOCK_BYTES, PAYLOAD_LIMIT_BYTES};
use super::protocol::{Command, Errno, RequestHeader, command_flags as flags};
use crate::units::BlockSize;

/// What was agreed on in the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The export's size, as the client was told, a multiple of 512.
    pub size_bytes: u64,
    /// Whether everything that changes it is refused.
    pub read_only: bool,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether BLOCK_STATUS tells `base:allocation`.
    pub allocation: bool,
    /// The pool's data block size.
    pub block_size: BlockSize,
    /// Where the volume's external origin ends; 0 without one. Before that, zeros have to be written.
    pub origin_bytes: u64,
}

/// A request that can be carried out, its range inside the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write {
        /// Reply when it is durable.
        fua: bool,
    },
    /// Make durable.
    Flush,
    /// Unmap.
    Trim {
        /// Reply when it is durable.
        fua: bool,
    },
    /// Zero.
    WriteZeroes {
        /// Reply when it is durable.
        fua: bool,
        /// Blocks may be unmapped.
        may_unmap: bool,
    },
    /// Describe.
    BlockStatus {
        /// One extent only.
        one: bool,
    },
    /// Hang up when all is done.
    Disconnect,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The error that the protocol names for it.
    pub error: Errno,
    /// For people, where replies are structured.
    pub message: &'static str,
}

const fn refuse<T>(error: Errno, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal { error, message })
}

/// Checks a request. A refused write's payload still follows its header.
pub fn check(header: &RequestHeader, terms: &Terms) -> Result<Operation, Refusal> {
    let Some(command) = Command::from_number(header.command) else {
        return refuse(Errno::Invalid, "unknown command");
    };
    check_flags(command, header.flags, terms)?;
    let fua = header.flags & flags::FUA != 0;
    let operation = match command {
        Command::Disconnect => return Ok(Operation::Disconnect),
        Command::Flush if header.offset_bytes != 0 || header.length_bytes != 0 => {
            return refuse(Errno::Invalid, "offset and length of a FLUSH must be 0");
        }
        Command::Flush => return Ok(Operation::Flush),
        Command::Read => Operation::Read,
        Command::Write => Operation::Write { fua },
        Command::Trim => Operation::Trim { fua },
        Command::WriteZeroes => Operation::WriteZeroes { fua, may_unmap: header.flags & flags::NO_HOLE == 0 },
        Command::BlockStatus if !terms.allocation => {
            return refuse(Errno::Invalid, "BLOCK_STATUS needs a metadata context; choose base:allocation");
        }
        Command::BlockStatus => Operation::BlockStatus { one: header.flags & flags::REQ_ONE != 0 },
    };
    check_permission(operation, terms)?;
    check_range(operation, header, terms)?;
    check_length(operation, header, terms)?;
    if header.flags & flags::FAST_ZERO != 0 {
        check_fast_zero(header, terms)?;
    }
    Ok(operation)
}

/// FUA goes with every command, by the protocol; the others only with their own.
fn check_flags(command: Command, found: u16, terms: &Terms) -> Result<(), Refusal> {
    let own = match command {
        Command::Read if terms.structured => flags::DF,
        Command::WriteZeroes => flags::NO_HOLE | flags::FAST_ZERO,
        Command::BlockStatus => flags::REQ_ONE,
        // Nothing would be gained by insisting: the client is leaving.
        Command::Disconnect => u16::MAX,
        Command::Read | Command::Write | Command::Flush | Command::Trim => 0,
    };
    if found & !(own | flags::FUA) != 0 {
        return refuse(Errno::Invalid, "a flag that this command does not have");
    }
    Ok(())
}

fn check_permission(operation: Operation, terms: &Terms) -> Result<(), Refusal> {
    match operation {
        Operation::Write { .. } | Operation::Trim { .. } | Operation::WriteZeroes { .. }
            if terms.read_only =>
        {
            refuse(Errno::Permission, "the export is read-only")
        }
        Operation::Write { .. }
        | Operation::Trim { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Read
        | Operation::Flush
        | Operation::BlockStatus { .. }
        | Operation::Disconnect => Ok(()),
    }
}

fn check_range(operation: Operation, header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let min = u64::from(MIN_BLOCK_BYTES);
    if header.length_bytes == 0 {
        return refuse(Errno::Invalid, "length 0");
    }
    if !header.offset_bytes.is_multiple_of(min) || !u64::from(header.length_bytes).is_multiple_of(min) {
        return refuse(Errno::Invalid, "offset and length must be multiples of 512 bytes");
    }
    let end = header.offset_bytes.checked_add(u64::from(header.length_bytes));
    if end.is_some_and(|end| end <= terms.size_bytes) {
        return Ok(());
    }
    let error = match operation {
        Operation::Write { .. } | Operation::WriteZeroes { .. } => Errno::NoSpace,
        Operation::Read
        | Operation::Trim { .. }
        | Operation::BlockStatus { .. }
        | Operation::Flush
        | Operation::Disconnect => Errno::Invalid,
    };
    refuse(error, "beyond the end of the export")
}

fn check_length(operation: Operation, header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    if header.length_bytes <= PAYLOAD_LIMIT_BYTES {
        return Ok(());
    }
    match operation {
        // The protocol has EOVERFLOW for reads only where replies are structured.
        Operation::Read if terms.structured => refuse(Errno::Overflow, "a READ moves at most 32 MiB"),
        Operation::Read => refuse(Errno::Invalid, "a READ moves at most 32 MiB"),
        Operation::Write { .. } => refuse(Errno::Invalid, "a WRITE moves at most 32 MiB"),
        // These carry no payload and may be as long as the protocol can say.
        Operation::Trim { .. }
        | Operation::WriteZeroes { .. }
        | Operation::BlockStatus { .. }
        | Operation::Flush
        | Operation::Disconnect => Ok(()),
    }
}

/// Zeroing beats writing where whole blocks are unmapped; elsewhere zeros have to be written like any bytes.
fn check_fast_zero(header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let end = header.offset_bytes + u64::from(header.length_bytes);
    let whole = terms.block_size.blocks_covered(header.offset_bytes..end, terms.size_bytes);
    if header.flags & flags::NO_HOLE != 0 || whole.is_empty() || header.offset_bytes < terms.origin_bytes {
        return refuse(Errno::NotSupported, "zeroing this is not faster than writing it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn terms() -> Terms {
        Terms {
            size_bytes: 64 * MIB,
            read_only: false,
            structured: true,
            allocation: true,
            block_size: BlockSize::MIN,
            origin_bytes: 0,
        }
    }

    fn request(command: u16, flags: u16, offset_bytes: u64, length_bytes: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 1, offset_bytes, length_bytes }
    }

    fn error(header: &RequestHeader, terms: &Terms) -> Option<Errno> {
        check(header, terms).err().map(|refusal| refusal.error)
    }

    #[test]
    fn sound_requests_pass() {
        let ok = |command: Command, flags, operation| {
            assert_eq!(check(&request(command.number(), flags, 512, 65_536), &terms()), Ok(operation));
        };
        ok(Command::Read, 0, Operation::Read);
        ok(Command::Read, flags::DF | flags::FUA, Operation::Read);
        ok(Command::Write, flags::FUA, Operation::Write { fua: true });
        ok(Command::Trim, 0, Operation::Trim { fua: false });
        ok(Command::WriteZeroes, flags::NO_HOLE, Operation::WriteZeroes { fua: false, may_unmap: false });
        ok(Command::BlockStatus, flags::REQ_ONE, Operation::BlockStatus { one: true });
        assert_eq!(check(&request(3, flags::FUA, 0, 0), &terms()), Ok(Operation::Flush));
        assert_eq!(check(&request(2, 0xffff, 1, 1), &terms()), Ok(Operation::Disconnect));
    }

    #[test]
    fn ranges() {
        for (command, beyond) in [
            (Command::Read, Errno::Invalid),
            (Command::Write, Errno::NoSpace),
            (Command::Trim, Errno::Invalid),
            (Command::WriteZeroes, Errno::NoSpace),
            (Command::BlockStatus, Errno::Invalid),
        ] {
            let at = |offset, length| error(&request(command.number(), 0, offset, length), &terms());
            assert_eq!(at(64 * MIB - 512, 512), None);
            assert_eq!(at(64 * MIB - 512, 1024), Some(beyond));
            assert_eq!(at(64 * MIB, 512), Some(beyond));
            assert_eq!(at(u64::MAX - 511, 1024), Some(beyond), "no wrapping around");
            assert_eq!(at(0, 0), Some(Errno::Invalid));
            assert_eq!(at(0, 511), Some(Errno::Invalid));
            assert_eq!(at(1, 512), Some(Errno::Invalid));
        }
        assert_eq!(error(&request(3, 0, 512, 0), &terms()), Some(Errno::Invalid));
    }

    #[test]
    fn lengths() {
        let long = 32 * MIB as u32 + 512;
        let at = |command: Command, terms: &Terms| error(&request(command.number(), 0, 0, long), terms);
        assert_eq!(at(Command::Read, &terms()), Some(Errno::Overflow));
        assert_eq!(at(Command::Read, &Terms { structured: false, ..terms() }), Some(Errno::Invalid));
        assert_eq!(at(Command::Write, &terms()), Some(Errno::Invalid));
        for command in [Command::Trim, Command::WriteZeroes, Command::BlockStatus] {
            assert_eq!(at(command, &terms()), None);
        }
        let whole = Terms { size_bytes: 1 << 40, ..terms() };
        assert_eq!(error(&request(6, 0, 0, u32::MAX - 511), &whole), None);
    }

    #[test]
    fn unknown_commands_and_foreign_flags() {
        for command in [5, 8, 0xffff] {
            assert_eq!(error(&request(command, 0, 0, 512), &terms()), Some(Errno::Invalid));
        }
        for (command, foreign) in [
            (Command::Read, flags::NO_HOLE),
            (Command::Write, flags::DF),
            (Command::Write, 1 << 5),
            (Command::Flush, flags::REQ_ONE),
            (Command::Trim, flags::NO_HOLE),
            (Command::WriteZeroes, flags::REQ_ONE),
            (Command::BlockStatus, flags::FAST_ZERO),
        ] {
            let found = error(&request(command.number(), foreign, 0, 512), &terms());
            assert_eq!(found, Some(Errno::Invalid), "{command:?}");
        }
        let simple = Terms { structured: false, allocation: false, ..terms() };
        assert_eq!(error(&request(0, flags::DF, 0, 512), &simple), Some(Errno::Invalid));
        assert_eq!(error(&request(7, 0, 0, 512), &simple), Some(Errno::Invalid));
    }

    #[test]
    fn read_only_exports_are_not_changed() {
        let read_only = Terms { read_only: true, ..terms() };
        for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
            let found = error(&request(command.number(), 0, 0, 512), &read_only);
            assert_eq!(found, Some(Errno::Permission));
        }
        assert_eq!(error(&request(0, 0, 0, 512), &read_only), None);
        assert_eq!(error(&request(3, 0, 0, 0), &read_only), None);
    }

    #[test]
    fn fast_zeroing_is_unmapping() {
        let at = |flags: u16, offset, length| {
            error(&request(6, flags | flags::FAST_ZERO, offset, length), &terms())
        };
        assert_eq!(at(0, 512, 131_072), None);
        assert_eq!(at(0, 512, 65_536), Some(Errno::NotSupported), "no whole block");
        assert_eq!(at(flags::NO_HOLE, 0, 131_072), Some(Errno::NotSupported));
        let odd = Terms { size_bytes: 64 * MIB + 512, ..terms() };
        let tail = |offset| error(&request(6, flags::FAST_ZERO, offset, 512), &odd);
        assert_eq!(tail(64 * MIB), None, "the short last block can be unmapped");
        assert_eq!(tail(64 * MIB - 512), Some(Errno::NotSupported));
    }

    #[test]
    fn zeros_over_an_external_origin_are_not_fast() {
        let over = Terms { origin_bytes: MIB + 512, ..terms() };
        let at = |offset| error(&request(6, flags::FAST_ZERO, offset, 2 * MIB as u32), &over);
        assert_eq!([0, MIB].map(at), [Some(Errno::NotSupported); 2]);
        assert_eq!(at(MIB + 65_536), None, "past its end they are");
    }

    proptest! {
        /// What passes lies inside the export, is aligned, and needs no buffer beyond the limit.
        #[test]
        fn what_passes_can_be_carried_out(
            command in 0..10_u16, flags in 0..64_u16, sector in 0..300_000_u64, skew in 0..2_u64,
            length in prop_oneof![Just(0), 1..200_000_u32, Just(u32::MAX)], structured: bool, read_only: bool,
        ) {
            let header = request(command, flags, sector * 512 + skew, length / 512 * 512);
            let terms = Terms { structured, allocation: structured, read_only, ..terms() };
            let Ok(operation) = check(&header, &terms) else { return Ok(()) };
            match operation {
                Operation::Flush | Operation::Disconnect => {}
                Operation::Read | Operation::Write { .. } => {
                    prop_assert!(header.length_bytes <= PAYLOAD_LIMIT_BYTES);
                }
                Operation::Trim { .. } | Operation::WriteZeroes { .. } | Operation::BlockStatus { .. } => {
                    prop_assert!(header.length_bytes > 0);
                    prop_assert!(header.offset_bytes + u64::from(header.length_bytes) <= terms.size_bytes);
                    prop_assert!(header.offset_bytes.is_multiple_of(512));
                }
            }
        }
    }
}
