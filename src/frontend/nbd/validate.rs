//! What a request means, or why it is refused. Everything is checked here, before any of a request is done.

use super::contexts::{Context, Contexts};
use super::headers::{RequestHeader, Style};
use super::options::{MIN_BLOCK_BYTES, PAYLOAD_LIMIT_BYTES};
use super::protocol::{Command, Errno, command_flags as flags, take_u32, take_u64};
use crate::units::BlockSize;

/// What was agreed on in the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The export's size, as the client was told, a multiple of 512.
    pub size_bytes: u64,
    /// Whether everything that changes it is refused.
    pub read_only: bool,
    /// How requests and replies are laid out.
    pub style: Style,
    /// What BLOCK_STATUS tells.
    pub contexts: Contexts,
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
    /// Have what is needed for reading at hand.
    Cache,
    /// Describe.
    BlockStatus {
        /// One extent only.
        one: bool,
        /// What is to be told; not empty.
        contexts: Contexts,
    },
    /// Hang up when all is done.
    Disconnect,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The error that the protocol names for it.
    pub error: Errno,
    /// For people, where replies have chunks.
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
        Command::Cache => Operation::Cache,
        Command::BlockStatus if terms.contexts.is_empty() => {
            return refuse(Errno::Invalid, "BLOCK_STATUS needs a metadata context; choose base:allocation");
        }
        Command::BlockStatus => {
            Operation::BlockStatus { one: header.flags & flags::REQ_ONE != 0, contexts: terms.contexts }
        }
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
        Command::Read if terms.style.has_chunks() => flags::DF,
        Command::Write if terms.style == Style::Extended => flags::PAYLOAD_LEN,
        Command::WriteZeroes => flags::NO_HOLE | flags::FAST_ZERO,
        Command::BlockStatus => flags::REQ_ONE,
        // Nothing would be gained by insisting: the client is leaving.
        Command::Disconnect => u16::MAX,
        Command::Read | Command::Write | Command::Flush | Command::Trim | Command::Cache => 0,
    };
    if command == Command::Write && own & !found != 0 {
        return refuse(
            Errno::Invalid,
            "with extended headers a WRITE says by PAYLOAD_LEN that its data follow",
        );
    }
    if found & !(own | flags::FUA) != 0 {
        return refuse(Errno::Invalid, "a flag that this command does not have");
    }
    Ok(())
}

/// The longest payload of a BLOCK_STATUS that makes sense: a length, and every context that there is.
pub const STATUS_PAYLOAD_LIMIT_BYTES: usize = 8 + 4 * Context::ALL.len();

/// Whether the request is a BLOCK_STATUS that brings a list of the contexts that it is about.
pub fn names_contexts(header: &RequestHeader, terms: &Terms) -> bool {
    terms.style == Style::Extended
        && header.command == Command::BlockStatus.number()
        && header.flags & flags::PAYLOAD_LEN != 0
}

/// What such a request amounts to: a header without payload, and terms with the contexts that it names. Of a payload longer than
/// [`STATUS_PAYLOAD_LIMIT_BYTES`] nothing need be given.
pub fn without_payload(
    header: &RequestHeader,
    mut payload: &[u8],
    terms: &Terms,
) -> Result<(RequestHeader, Terms), Refusal> {
    const MALFORMED: &str =
        "a BLOCK_STATUS' payload is a length and the numbers of contexts that were chosen, each once";
    if header.length_bytes > STATUS_PAYLOAD_LIMIT_BYTES as u64 || !header.length_bytes.is_multiple_of(4) {
        return refuse(Errno::Invalid, MALFORMED);
    }
    let Some(length_bytes) = take_u64(&mut payload) else { return refuse(Errno::Invalid, MALFORMED) };
    let mut contexts = Contexts::default();
    while let Some(id) = take_u32(&mut payload) {
        if !terms.contexts.with_id(id).is_some_and(|context| contexts.insert(context)) {
            return refuse(Errno::Invalid, MALFORMED);
        }
    }
    if contexts.is_empty() {
        return refuse(Errno::Invalid, MALFORMED);
    }
    let header = RequestHeader { flags: header.flags & !flags::PAYLOAD_LEN, length_bytes, ..*header };
    Ok((header, Terms { contexts, ..*terms }))
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
        | Operation::Cache
        | Operation::BlockStatus { .. }
        | Operation::Disconnect => Ok(()),
    }
}

fn check_range(operation: Operation, header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let min = u64::from(MIN_BLOCK_BYTES);
    if header.length_bytes == 0 {
        return refuse(Errno::Invalid, "length 0");
    }
    if !header.offset_bytes.is_multiple_of(min) || !header.length_bytes.is_multiple_of(min) {
        return refuse(Errno::Invalid, "offset and length must be multiples of 512 bytes");
    }
    let end = header.offset_bytes.checked_add(header.length_bytes);
    if end.is_some_and(|end| end <= terms.size_bytes) {
        return Ok(());
    }
    let error = match operation {
        Operation::Write { .. } | Operation::WriteZeroes { .. } => Errno::NoSpace,
        Operation::Read
        | Operation::Trim { .. }
        | Operation::Cache
        | Operation::BlockStatus { .. }
        | Operation::Flush
        | Operation::Disconnect => Errno::Invalid,
    };
    refuse(error, "beyond the end of the export")
}

fn check_length(operation: Operation, header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    if header.length_bytes <= u64::from(PAYLOAD_LIMIT_BYTES) {
        return Ok(());
    }
    match operation {
        // The protocol has EOVERFLOW for reads only where DF is.
        Operation::Read if terms.style.has_chunks() => refuse(Errno::Overflow, "a READ moves at most 32 MiB"),
        Operation::Read => refuse(Errno::Invalid, "a READ moves at most 32 MiB"),
        Operation::Write { .. } => refuse(Errno::Invalid, "a WRITE moves at most 32 MiB"),
        // These carry no payload and may be as long as the protocol can say.
        Operation::Trim { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Cache
        | Operation::BlockStatus { .. }
        | Operation::Flush
        | Operation::Disconnect => Ok(()),
    }
}

/// Zeroing beats writing where whole blocks are unmapped; elsewhere zeros have to be written like any bytes.
fn check_fast_zero(header: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let end = header.offset_bytes + header.length_bytes;
    let whole = terms.block_size.whole_blocks_inside(header.offset_bytes..end);
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
            style: Style::Structured,
            contexts: Contexts::all(),
            block_size: BlockSize::MIN,
            origin_bytes: 0,
        }
    }

    fn request(command: u16, flags: u16, offset_bytes: u64, length_bytes: u64) -> RequestHeader {
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
        ok(
            Command::BlockStatus,
            flags::REQ_ONE,
            Operation::BlockStatus { one: true, contexts: Contexts::all() },
        );
        ok(Command::Cache, flags::FUA, Operation::Cache);
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
            (Command::Cache, Errno::Invalid),
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
        let long = 32 * MIB + 512;
        let at = |command: Command, terms: &Terms| error(&request(command.number(), 0, 0, long), terms);
        assert_eq!(at(Command::Read, &terms()), Some(Errno::Overflow));
        assert_eq!(at(Command::Read, &Terms { style: Style::Simple, ..terms() }), Some(Errno::Invalid));
        assert_eq!(at(Command::Write, &terms()), Some(Errno::Invalid));
        for command in [Command::Trim, Command::WriteZeroes, Command::BlockStatus, Command::Cache] {
            assert_eq!(at(command, &terms()), None);
        }
        let whole = Terms { size_bytes: 1 << 40, ..terms() };
        assert_eq!(error(&request(6, 0, 0, (1 << 32) - 512), &whole), None);
        let extended = Terms { size_bytes: 1 << 50, style: Style::Extended, ..terms() };
        assert_eq!(error(&request(6, 0, 0, 1 << 50), &extended), None);
        assert_eq!(error(&request(6, 0, 512, 1 << 50), &extended), Some(Errno::NoSpace));
        assert_eq!(error(&request(6, 0, 512, u64::MAX - 511), &extended), Some(Errno::NoSpace));
    }

    #[test]
    fn unknown_commands_and_foreign_flags() {
        for command in [8, 9, 0xffff] {
            assert_eq!(error(&request(command, 0, 0, 512), &terms()), Some(Errno::Invalid));
        }
        for (command, foreign) in [
            (Command::Read, flags::NO_HOLE),
            (Command::Write, flags::DF),
            (Command::Write, flags::PAYLOAD_LEN),
            (Command::Cache, flags::DF),
            (Command::Flush, flags::REQ_ONE),
            (Command::Trim, flags::NO_HOLE),
            (Command::WriteZeroes, flags::REQ_ONE),
            (Command::BlockStatus, flags::FAST_ZERO),
        ] {
            let found = error(&request(command.number(), foreign, 0, 512), &terms());
            assert_eq!(found, Some(Errno::Invalid), "{command:?}");
        }
        let simple = Terms { style: Style::Simple, contexts: Contexts::default(), ..terms() };
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
        assert_eq!(error(&request(5, 0, 0, 512), &read_only), None);
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
        assert_eq!(tail(64 * MIB), Some(Errno::NotSupported), "a short last block is no whole one");
        assert_eq!(tail(64 * MIB - 512), Some(Errno::NotSupported));
    }

    #[test]
    fn with_extended_headers_a_flag_says_whether_a_payload_follows() {
        let extended = Terms { style: Style::Extended, ..terms() };
        let at = |command: Command, flags| error(&request(command.number(), flags, 0, 512), &extended);
        assert_eq!(at(Command::Write, flags::PAYLOAD_LEN | flags::FUA), None);
        assert_eq!(at(Command::Write, 0), Some(Errno::Invalid));
        assert_eq!(at(Command::Read, flags::DF), None);
        for command in [Command::Read, Command::Flush, Command::Trim, Command::Cache, Command::WriteZeroes] {
            assert_eq!(at(command, flags::PAYLOAD_LEN), Some(Errno::Invalid), "{command:?}");
        }
    }

    #[test]
    fn a_status_may_name_its_contexts() {
        let extended = Terms { style: Style::Extended, ..terms() };
        let named = |terms: &Terms, ids: &[u32]| {
            let mut payload = (1_u64 << 20).to_be_bytes().to_vec();
            ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
            let header = request(7, flags::PAYLOAD_LEN | flags::REQ_ONE, 512, payload.len() as u64);
            assert!(names_contexts(&header, terms));
            without_payload(&header, &payload, terms).map(|(header, terms)| {
                assert_eq!(
                    (header.flags, header.offset_bytes, header.length_bytes),
                    (flags::REQ_ONE, 512, 1 << 20)
                );
                terms.contexts.iter().map(Context::id).collect::<Vec<_>>()
            })
        };
        assert_eq!(named(&extended, &[2, 1]), Ok(vec![1, 2]));
        assert_eq!(named(&extended, &[2]), Ok(vec![2]));
        for wrong in [&[][..], &[3], &[0], &[1, 1], &[1, 2, 1]] {
            assert_eq!(
                named(&extended, wrong).map_err(|refusal| refusal.error),
                Err(Errno::Invalid),
                "{wrong:?}"
            );
        }
        let one = Terms { contexts: [Context::Mapping].into_iter().collect(), ..extended };
        assert!(named(&one, &[1]).is_err(), "it was not chosen");
        for length in [0, 7, 8, 13, 1 << 40] {
            let header = request(7, flags::PAYLOAD_LEN, 0, length);
            let payload = [0; STATUS_PAYLOAD_LIMIT_BYTES];
            let payload = &payload[..payload.len().min(length as usize)];
            assert!(without_payload(&header, payload, &extended).is_err(), "{length}");
        }
        assert!(!names_contexts(&request(7, 0, 0, 512), &extended));
        assert!(!names_contexts(&request(7, flags::PAYLOAD_LEN, 0, 16), &terms()));
    }

    #[test]
    fn zeros_over_an_external_origin_are_not_fast() {
        let over = Terms { origin_bytes: MIB + 512, ..terms() };
        let at = |offset| error(&request(6, flags::FAST_ZERO, offset, 2 * MIB), &over);
        assert_eq!([0, MIB].map(at), [Some(Errno::NotSupported); 2]);
        assert_eq!(at(MIB + 65_536), None, "past its end they are");
    }

    proptest! {
        /// What passes lies inside the export, is aligned, and needs no buffer beyond the limit.
        #[test]
        fn what_passes_can_be_carried_out(
            command in 0..10_u16, flags in 0..128_u16, sector in 0..300_000_u64, skew in 0..2_u64,
            length in prop_oneof![Just(0), 1..200_000_u64, Just(1 << 32), Just(u64::MAX)], style in 0..3_usize, read_only: bool,
        ) {
            let header = request(command, flags, sector * 512 + skew, length / 512 * 512);
            let style = [Style::Simple, Style::Structured, Style::Extended][style];
            let contexts = if style.has_chunks() { Contexts::all() } else { Contexts::default() };
            let terms = Terms { style, contexts, read_only, ..terms() };
            let Ok(operation) = check(&header, &terms) else { return Ok(()) };
            match operation {
                Operation::Flush | Operation::Disconnect => {}
                Operation::Read | Operation::Write { .. } => {
                    prop_assert!(header.length_bytes <= u64::from(PAYLOAD_LIMIT_BYTES));
                }
                Operation::Trim { .. }
                | Operation::WriteZeroes { .. }
                | Operation::Cache
                | Operation::BlockStatus { .. } => {
                    prop_assert!(header.length_bytes > 0);
                    prop_assert!(header.offset_bytes + header.length_bytes <= terms.size_bytes);
                    prop_assert!(header.offset_bytes.is_multiple_of(512));
                }
            }
        }
    }
}
