//! The protocol's numbers, and its messages as bytes. Pure: no input, however short or odd, makes it panic.
//!
//! All integers are big-endian. Names follow the protocol document, in words; of extended headers it speaks in its branch
//! `extension-ext-header`. The messages of the transmission are in [`super::headers`].

/// `NBDMAGIC`, the first thing that a server says.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: a server that knows options, and the head of every option that a client sends.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The head of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The head of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The head of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// The head of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// The head of a chunk of an extended reply.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string (an export's name, a query, a message) that the protocol allows.
pub const STRING_LIMIT_BYTES: usize = 4096;

/// Flags that server and client exchange before the options.
pub mod handshake_flags {
    /// Both: options are answered one by one.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// Both: no 124 zeros after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What an export can do, as a client is told at the end of the handshake.
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Everything that writes is refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A FLUSH on one connection covers what was acknowledged on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The flag FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// A BLOCK_STATUS may name the contexts that it wants.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Flags of a command.
pub mod command_flags {
    /// Complete only when durable. Allowed with every command.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES: leave the range mapped.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: only if it is quicker than a write.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// With extended headers: the length is that of a payload, which follows.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Defines an enum whose values are the protocol's numbers, and the way back from a number.
macro_rules! numbers {
    ($(#[$meta:meta])* $name:ident: $number:ty { $($(#[$doc:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// The number on the wire.
            pub const fn number(self) -> $number {
                match self { $($name::$variant => $value,)* }
            }
            /// `None` for a number that we do not know.
            #[allow(dead_code, reason = "only tests read what the server sends")]
            pub const fn from_number(number: $number) -> Option<Self> {
                $(if number == $value { return Some($name::$variant); })*
                None
            }
        }
    };
}

numbers! {
    /// What a client may ask for during the handshake.
    OptionKind: u32 {
        /// Choose an export and begin; errors cannot be told.
        ExportName = 1,
        /// End the session.
        Abort = 2,
        /// Name all exports.
        List = 3,
        /// Encrypt from here on.
        StartTls = 5,
        /// Describe an export.
        Info = 6,
        /// Choose an export and begin.
        Go = 7,
        /// Use structured replies.
        StructuredReply = 8,
        /// Name the metadata contexts.
        ListMetaContext = 9,
        /// Choose metadata contexts.
        SetMetaContext = 10,
        /// Use extended headers.
        ExtendedHeaders = 11,
    }
}

numbers! {
    /// The kinds of reply to an option.
    ReplyKind: u32 {
        /// Accepted; the last reply.
        Ack = 1,
        /// An export.
        Server = 2,
        /// A fact about an export.
        Info = 3,
        /// A metadata context.
        MetaContext = 4,
        /// We do not know the option.
        ErrorUnsupported = (1 << 31) + 1,
        /// We know it and do not allow it.
        ErrorPolicy = (1 << 31) + 2,
        /// Its data make no sense.
        ErrorInvalid = (1 << 31) + 3,
        /// Begin TLS first.
        ErrorTlsRequired = (1 << 31) + 5,
        /// There is no such export.
        ErrorUnknown = (1 << 31) + 6,
        /// We are about to stop.
        ErrorShutdown = (1 << 31) + 7,
        /// Its data are too long.
        ErrorTooBig = (1 << 31) + 9,
        /// Extended headers were chosen, and nothing less will be used.
        ErrorExtendedHeaders = (1 << 31) + 10,
    }
}

numbers! {
    /// Facts about an export that INFO and GO tell.
    InfoKind: u16 {
        /// Size and transmission flags.
        Export = 0,
        /// Its canonical name.
        Name = 1,
        /// For people.
        Description = 2,
        /// Minimum, preferred and maximum size of requests.
        BlockSize = 3,
    }
}

numbers! {
    /// Commands that we know.
    Command: u16 {
        /// Read.
        Read = 0,
        /// Write; the data follow the header.
        Write = 1,
        /// Finish what runs, and close.
        Disconnect = 2,
        /// Make durable what was acknowledged.
        Flush = 3,
        /// The range is no longer needed.
        Trim = 4,
        /// The range will be needed soon.
        Cache = 5,
        /// Make the range read zeros.
        WriteZeroes = 6,
        /// Tell what the range is made of.
        BlockStatus = 7,
    }
}

numbers! {
    /// Errors that a reply may carry.
    Errno: u32 {
        /// Not permitted: the export is read-only.
        Permission = 1,
        /// A device failed.
        Io = 5,
        /// The request is wrong.
        Invalid = 22,
        /// No space.
        NoSpace = 28,
        /// Too long.
        Overflow = 75,
        /// Not quicker than a write.
        NotSupported = 95,
        /// The export is going away.
        Shutdown = 108,
    }
}

numbers! {
    /// Chunks of a structured or extended reply.
    ChunkKind: u16 {
        /// Nothing: it is done.
        None = 0,
        /// Bytes of the export.
        OffsetData = 1,
        /// A list of extents.
        BlockStatus = 5,
        /// A list of extents with 64-bit lengths.
        BlockStatusExtended = 6,
        /// An error, with a message.
        Error = (1 << 15) + 1,
    }
}

/// This chunk is the reply's last.
pub const CHUNK_DONE: u16 = 1 << 0;

/// The first `N` bytes of `bytes`, and the rest; `None` when there are fewer.
pub fn split_array<const N: usize>(bytes: &[u8]) -> Option<(&[u8; N], &[u8])> {
    bytes.split_first_chunk::<N>()
}

/// Takes a big-endian `u16` off the front.
pub fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let (head, rest) = split_array::<2>(bytes)?;
    *bytes = rest;
    Some(u16::from_be_bytes(*head))
}

/// Takes a big-endian `u32` off the front.
pub fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (head, rest) = split_array::<4>(bytes)?;
    *bytes = rest;
    Some(u32::from_be_bytes(*head))
}

/// Takes a big-endian `u64` off the front.
pub fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (head, rest) = split_array::<8>(bytes)?;
    *bytes = rest;
    Some(u64::from_be_bytes(*head))
}

/// The head of an option: its number as sent, and the length of its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// The number, known or not.
    pub number: u32,
    /// Bytes of data that follow.
    pub length_bytes: u32,
}

impl OptionHeader {
    /// Length on the wire.
    pub const BYTES: usize = 16;

    /// `None` when the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        let magic = take_u64(&mut rest)?;
        let header = OptionHeader { number: take_u32(&mut rest)?, length_bytes: take_u32(&mut rest)? };
        (magic == OPTION_MAGIC).then_some(header)
    }

    /// As a client sends it.
    #[cfg(test)]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.number.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }
}

/// Appends a reply to `option` whose data are `parts`, one after the other.
pub fn push_option_reply(out: &mut Vec<u8>, option: u32, kind: ReplyKind, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length =
        u32::try_from(length).expect("replies are bounded by the lengths of strings, far below 4 GiB");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.number().to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_their_replies() {
        let header = OptionHeader { number: 7, length_bytes: 6 };
        let mut bytes = header.encode();
        assert_eq!(&bytes[..8], b"IHAVEOPT");
        assert_eq!(OptionHeader::decode(&bytes), Some(header));
        bytes[0] = b'i';
        assert_eq!(OptionHeader::decode(&bytes), None);
        let mut out = Vec::new();
        push_option_reply(&mut out, 3, ReplyKind::ErrorInvalid, &[b"no", b"!"]);
        let expected =
            [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0x80, 0, 0, 3, 0, 0, 0, 3, b'n', b'o', b'!'];
        assert_eq!(out, expected);
    }

    #[test]
    fn numbers_lead_back_to_what_they_came_from() {
        for number in 0..=u16::MAX {
            if let Some(command) = Command::from_number(number) {
                assert_eq!(command.number(), number);
            }
        }
        assert_eq!(Command::from_number(8), None, "RESIZE is not supported");
        assert_eq!(OptionKind::from_number(4), None, "PEEK_EXPORT was withdrawn");
        assert_eq!(OptionKind::from_number(10), Some(OptionKind::SetMetaContext));
        assert_eq!(MAGIC.to_be_bytes(), *b"NBDMAGIC");
    }

    #[test]
    fn taking_from_too_few_bytes_takes_nothing() {
        let mut short: &[u8] = &[1, 2, 3];
        assert_eq!(take_u32(&mut short), None);
        assert_eq!(take_u64(&mut short), None);
        assert_eq!(take_u16(&mut short), Some(0x102));
        assert_eq!(take_u16(&mut short), None);
        assert_eq!(short, [3]);
    }
}
