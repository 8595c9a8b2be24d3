//! The messages of the transmission as bytes, in each of the three styles that a handshake may lead to. Pure.
//!
//! Sections "Request message", "Simple reply message", "Structured reply chunk message" of the protocol's document and, for
//! [`Style::Extended`], of its branch `extension-ext-header`.

use super::contexts::Context;
use super::protocol::{
    CHUNK_DONE, ChunkKind, Command, EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, Errno, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, STRING_LIMIT_BYTES, STRUCTURED_REPLY_MAGIC, command_flags, take_u16, take_u32,
    take_u64,
};
use crate::engine::ExtentState;

/// How requests and replies are laid out on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies (and simple ones where nothing is told but success).
    Structured,
    /// Extended requests and replies, nothing else.
    Extended,
}

impl Style {
    /// Whether replies come in chunks, which can carry extents and messages.
    pub const fn has_chunks(self) -> bool {
        match self {
            Style::Simple => false,
            Style::Structured | Style::Extended => true,
        }
    }

    /// Length of a request's header.
    pub const fn request_bytes(self) -> usize {
        match self {
            Style::Simple | Style::Structured => RequestHeader::COMPACT_BYTES,
            Style::Extended => RequestHeader::EXTENDED_BYTES,
        }
    }
}

/// A request's header as it came; nothing in it has been checked but the magic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// [`command_flags`].
    pub flags: u16,
    /// A [`Command`]'s number, perhaps.
    pub command: u16,
    /// The client's name for the request, sent back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes: of the export, or, in an extended header with PAYLOAD_LEN, of the payload.
    pub length_bytes: u64,
}

impl RequestHeader {
    /// Length of a compact one on the wire.
    pub const COMPACT_BYTES: usize = 28;
    /// Length of an extended one on the wire.
    pub const EXTENDED_BYTES: usize = 32;

    /// Takes the header off the front of what was received; `None` when that is shorter. An error has the four bytes that are
    /// there instead of the magic.
    pub fn decode(style: Style, mut received: &[u8]) -> Option<Result<Self, [u8; 4]>> {
        received = received.get(..style.request_bytes())?;
        let expected = match style {
            Style::Simple | Style::Structured => REQUEST_MAGIC,
            Style::Extended => EXTENDED_REQUEST_MAGIC,
        };
        let magic = take_u32(&mut received)?;
        if magic != expected {
            return Some(Err(magic.to_be_bytes()));
        }
        Some(Ok(RequestHeader {
            flags: take_u16(&mut received)?,
            command: take_u16(&mut received)?,
            cookie: take_u64(&mut received)?,
            offset_bytes: take_u64(&mut received)?,
            length_bytes: match style {
                Style::Simple | Style::Structured => u64::from(take_u32(&mut received)?),
                Style::Extended => take_u64(&mut received)?,
            },
        }))
    }

    /// As a client sends it.
    #[cfg(any(test, fuzzing))]
    #[cfg_attr(fuzzing, allow(dead_code, reason = "only what is not called there calls it"))]
    pub fn encode(self, style: Style) -> Vec<u8> {
        let mut bytes = Vec::new();
        let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset_bytes.to_be_bytes());
        match style {
            Style::Simple | Style::Structured => bytes.extend((self.length_bytes as u32).to_be_bytes()),
            Style::Extended => bytes.extend(self.length_bytes.to_be_bytes()),
        }
        bytes
    }

    /// Bytes of payload that follow the header, whether or not the request makes sense.
    pub fn payload_bytes(&self, style: Style) -> u64 {
        let has_payload = match style {
            Style::Simple | Style::Structured => self.command == Command::Write.number(),
            Style::Extended => self.flags & command_flags::PAYLOAD_LEN != 0,
        };
        if has_payload { self.length_bytes } else { 0 }
    }
}

/// What a reply repeats of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The client's name for it.
    pub cookie: u64,
    /// Its first byte; only extended replies tell it.
    pub offset_bytes: u64,
}

/// A simple reply's header: no error, or one.
pub fn simple_reply(cookie: u64, error: Option<Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, Errno::number).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a structured reply's chunk.
pub fn structured_chunk(cookie: u64, flags: u16, kind: ChunkKind, length_bytes: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.number().to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length_bytes.to_be_bytes());
    bytes
}

/// The header of an extended reply's chunk.
pub fn extended_chunk(asked: Asked, flags: u16, kind: ChunkKind, length_bytes: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.number().to_be_bytes());
    bytes[8..16].copy_from_slice(&asked.cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&asked.offset_bytes.to_be_bytes());
    bytes[24..].copy_from_slice(&length_bytes.to_be_bytes());
    bytes
}

/// What comes before the data of a structured read that is answered in one chunk: chunk header and offset. `None` when
/// length and offset do not fit a chunk, which no length that [`super::validate`] lets through does.
pub fn structured_data(asked: Asked, length_bytes: u32) -> Option<[u8; 28]> {
    let mut bytes = [0; 28];
    let header =
        structured_chunk(asked.cookie, CHUNK_DONE, ChunkKind::OffsetData, length_bytes.checked_add(8)?);
    bytes[..20].copy_from_slice(&header);
    bytes[20..].copy_from_slice(&asked.offset_bytes.to_be_bytes());
    Some(bytes)
}

/// The same with an extended header.
pub fn extended_data(asked: Asked, length_bytes: u32) -> [u8; 40] {
    let mut bytes = [0; 40];
    let header = extended_chunk(asked, CHUNK_DONE, ChunkKind::OffsetData, u64::from(length_bytes) + 8);
    bytes[..32].copy_from_slice(&header);
    bytes[32..].copy_from_slice(&asked.offset_bytes.to_be_bytes());
    bytes
}

/// Appends a chunk's header; of a style that has chunks.
fn push_chunk(out: &mut Vec<u8>, style: Style, asked: Asked, flags: u16, kind: ChunkKind, length_bytes: u32) {
    match style {
        Style::Simple => unreachable!("simple replies have no chunks"),
        Style::Structured => {
            out.extend_from_slice(&structured_chunk(asked.cookie, flags, kind, length_bytes));
        }
        Style::Extended => {
            out.extend_from_slice(&extended_chunk(asked, flags, kind, u64::from(length_bytes)));
        }
    }
}

/// Appends a reply that says that the request failed.
pub fn push_error(out: &mut Vec<u8>, style: Style, asked: Asked, error: Errno, message: &str) {
    if !style.has_chunks() {
        return out.extend_from_slice(&simple_reply(asked.cookie, Some(error)));
    }
    let message = &message.as_bytes()[..message.len().min(STRING_LIMIT_BYTES)];
    let length = message.len() as u16;
    push_chunk(out, style, asked, CHUNK_DONE, ChunkKind::Error, 6 + u32::from(length));
    out.extend_from_slice(&error.number().to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message);
}

/// Appends what one context says of consecutive extents (length in bytes, state); `is_last` ends the reply. With structured
/// replies a list ends before an extent that 32 bits cannot say the length of, of which there is none in a compact request.
pub fn push_status(
    out: &mut Vec<u8>,
    style: Style,
    asked: Asked,
    (context, is_last): (Context, bool),
    extents: impl Iterator<Item = (u64, ExtentState)>,
) {
    let flags = if is_last { CHUNK_DONE } else { 0 };
    // Neighbours may differ in what another context says of them only.
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for (length_bytes, state) in extents {
        let flags = context.flags_of(state);
        match runs.last_mut() {
            Some(last) if last.1 == flags => last.0 += length_bytes,
            Some(_) | None => runs.push((length_bytes, flags)),
        }
    }
    let count = u32::try_from(runs.len()).expect("a reply has at most 131,072 extents");
    if style == Style::Extended {
        push_chunk(out, style, asked, flags, ChunkKind::BlockStatusExtended, 8 + 16 * count);
        out.extend_from_slice(&context.id().to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        for (length_bytes, flags) in runs {
            out.extend_from_slice(&length_bytes.to_be_bytes());
            out.extend_from_slice(&u64::from(flags).to_be_bytes());
        }
        return;
    }
    push_chunk(out, style, asked, flags, ChunkKind::BlockStatus, 4 + 8 * count);
    out.extend_from_slice(&context.id().to_be_bytes());
    for (length_bytes, flags) in runs {
        let length = u32::try_from(length_bytes).expect("a compact request is shorter than 4 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { cookie: 9, offset_bytes: 512 };

    #[test]
    fn a_compact_request_is_28_bytes_as_the_document_lays_them_out() {
        let bytes: [u8; 28] =
            [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0];
        let header =
            RequestHeader::decode(Style::Simple, &bytes).expect("it is whole").expect("the magic is right");
        let expected = RequestHeader {
            flags: command_flags::FUA,
            command: Command::WriteZeroes.number(),
            cookie: 0x0102_0304_0506_0708,
            offset_bytes: 0x1_0000_0200,
            length_bytes: 0x1_0000,
        };
        assert_eq!(header, expected);
        assert_eq!(header.encode(Style::Structured), bytes);
        assert_eq!(header.payload_bytes(Style::Structured), 0, "only WRITE has a payload");
        let mut wrong = bytes;
        wrong[3] ^= 1;
        assert_eq!(RequestHeader::decode(Style::Simple, &wrong), Some(Err([0x25, 0x60, 0x95, 0x12])));
        assert_eq!(RequestHeader::decode(Style::Simple, &bytes[..27]), None);
        assert!(
            RequestHeader::decode(Style::Extended, &[bytes, bytes].concat())
                .is_some_and(|found| found.is_err())
        );
    }

    #[test]
    fn an_extended_request_is_32_bytes_as_the_document_lays_them_out() {
        let bytes: [u8; 32] = [
            0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0,
            2, 0, 1, 0, 0,
        ];
        let header =
            RequestHeader::decode(Style::Extended, &bytes).expect("it is whole").expect("the magic is right");
        let expected = RequestHeader {
            flags: command_flags::PAYLOAD_LEN,
            command: Command::Write.number(),
            cookie: 0x0102_0304_0506_0708,
            offset_bytes: 0x1_0000_0200,
            length_bytes: 0x2_0001_0000,
        };
        assert_eq!(header, expected);
        assert_eq!(header.encode(Style::Extended), bytes);
        assert_eq!(header.payload_bytes(Style::Extended), 0x2_0001_0000);
        let bare = RequestHeader { flags: 0, ..header };
        assert_eq!(bare.payload_bytes(Style::Extended), 0, "the flag says whether there is a payload");
        assert_eq!(RequestHeader::decode(Style::Extended, &bytes[..31]), None);
        assert!(RequestHeader::decode(Style::Structured, &bytes).is_some_and(|found| found.is_err()));
    }

    #[test]
    fn replies_are_laid_out_as_the_document_says() {
        let simple = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(simple_reply(9, Some(Errno::NoSpace)), simple);
        assert_eq!(simple_reply(9, None)[4..8], [0; 4]);
        let chunk = structured_data(ASKED, 1024).expect("it fits");
        assert_eq!(chunk[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(chunk[16..20], (1024 + 8_u32).to_be_bytes(), "the offset counts");
        assert_eq!(chunk[20..], 512_u64.to_be_bytes());
        assert_eq!(structured_data(ASKED, u32::MAX), None);
        let mut error = Vec::new();
        push_error(&mut error, Style::Structured, ASKED, Errno::Invalid, "no");
        assert_eq!(error[6..8], [0x80, 1]);
        assert_eq!(error[16..], [0, 0, 0, 8, 0, 0, 0, 22, 0, 2, b'n', b'o']);
        error.clear();
        push_error(&mut error, Style::Simple, ASKED, Errno::NoSpace, "no");
        assert_eq!(error, simple);
    }

    #[test]
    fn extended_replies_are_laid_out_as_the_document_says() {
        let done = extended_chunk(ASKED, CHUNK_DONE, ChunkKind::None, 0);
        let expected = [
            0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0,
            0, 0, 0, 0,
        ];
        assert_eq!(done, expected);
        let data = extended_data(ASKED, 1024);
        assert_eq!(data[4..8], [0, 1, 0, 1]);
        assert_eq!(data[24..32], (1024 + 8_u64).to_be_bytes());
        assert_eq!(data[32..], 512_u64.to_be_bytes());
        let mut error = Vec::new();
        push_error(&mut error, Style::Extended, ASKED, Errno::Invalid, "no");
        assert_eq!(error[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 1]);
        assert_eq!(error[24..], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 22, 0, 2, b'n', b'o']);
    }

    #[test]
    fn status_is_laid_out_as_the_document_says() {
        let extents =
            [(65_536, ExtentState::Hole), (512, ExtentState::Shared), (512, ExtentState::Exclusive)];
        let mut chunk = Vec::new();
        push_status(&mut chunk, Style::Structured, ASKED, (Context::Mapping, false), extents.into_iter());
        assert_eq!(chunk[..8], [0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 5]);
        assert_eq!(chunk[16..20], [0, 0, 0, 4 + 3 * 8]);
        assert_eq!(
            chunk[20..],
            [0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 5, 0, 0, 2, 0, 0, 0, 0, 0]
        );
        chunk.clear();
        let long = [(1 << 40, ExtentState::Hole), (512, ExtentState::Shared), (512, ExtentState::Exclusive)];
        push_status(&mut chunk, Style::Extended, ASKED, (Context::Allocation, true), long.into_iter());
        assert_eq!(chunk[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6]);
        assert_eq!(chunk[24..32], [0, 0, 0, 0, 0, 0, 0, 8 + 2 * 16]);
        assert_eq!(
            chunk[32..],
            [
                0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 4,
                0, 0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }
}
