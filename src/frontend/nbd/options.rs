//! What the data of options say, and the facts about an export that answer them. Pure.
//!
//! Whoever sends nonsense gets a [`Refusal`]: the error that the protocol names for it, and words for people.

use super::contexts::{Context, Contexts};
use super::headers::Style;
use super::protocol::{
    InfoKind, OptionKind, ReplyKind, STRING_LIMIT_BYTES, push_option_reply, take_u16, take_u32,
    transmission_flags as flags,
};
use crate::error::{Error, ErrorKind};
use crate::units::{BlockSize, SECTOR_BYTES};

/// The most bytes that a READ or WRITE may move: what the protocol's document tells clients that know nothing else.
pub const PAYLOAD_LIMIT_BYTES: u32 = 32 << 20;
/// The least length and alignment of a request.
pub const MIN_BLOCK_BYTES: u32 = SECTOR_BYTES as u32;

/// Why an option was not granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// One of the error replies.
    pub kind: ReplyKind,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal of that kind.
    pub fn new(kind: ReplyKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into() }
    }

    /// The message, cut to what a string may hold.
    pub fn text(&self) -> &str {
        let mut end = self.message.len().min(STRING_LIMIT_BYTES);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        &self.message[..end]
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => ReplyKind::ErrorUnknown,
            ErrorKind::WrongState | ErrorKind::Failed => ReplyKind::ErrorShutdown,
            ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::NeedsCheck
            | ErrorKind::Io
            | ErrorKind::Busy
            | ErrorKind::Exists
            | ErrorKind::NoDataSpace
            | ErrorKind::NoMetadataSpace
            | ErrorKind::Invalid => ReplyKind::ErrorPolicy,
        };
        Refusal::new(kind, error.to_string())
    }
}

fn malformed(option: OptionKind, what: &str) -> Refusal {
    Refusal::new(ReplyKind::ErrorInvalid, format!("{option:?}: {what}"))
}

/// What a client is told about an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its name, never empty.
    pub name: String,
    /// For people.
    pub description: String,
    /// Its size, a multiple of 512.
    pub size_bytes: u64,
    /// Refuse everything that changes it.
    pub read_only: bool,
    /// The pool's data block size.
    pub block_size: BlockSize,
}

impl Facts {
    /// Transmission flags, for a client that has agreed on this style and chosen these contexts.
    pub fn transmission_flags(&self, style: Style, contexts: Contexts) -> u16 {
        let always = flags::HAS_FLAGS
            | flags::SEND_FLUSH
            | flags::SEND_FUA
            | flags::CAN_MULTI_CONN
            | flags::SEND_CACHE;
        let changes = flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO;
        let may_name_contexts = style == Style::Extended && !contexts.is_empty();
        always
            | if self.read_only { flags::READ_ONLY } else { changes }
            | if style.has_chunks() { flags::SEND_DF } else { 0 }
            | if may_name_contexts { flags::BLOCK_STATUS_PAYLOAD } else { 0 }
    }

    /// The size of requests that need no copying: the data block's, as the kernel's target tells it, but a power of two and
    /// no more than a request may be.
    pub fn preferred_bytes(&self) -> u32 {
        let power_of_two = 1_u64 << self.block_size.bytes().trailing_zeros();
        u32::try_from(power_of_two).map_or(PAYLOAD_LIMIT_BYTES, |bytes| bytes.min(PAYLOAD_LIMIT_BYTES))
    }

    /// Appends the INFO replies to `option`; `flags` are the transmission flags.
    pub fn push_info(&self, out: &mut Vec<u8>, option: OptionKind, wants: Wants, flags: u16) {
        let mut push = |kind: InfoKind, parts: [&[u8]; 3]| {
            let number = kind.number().to_be_bytes();
            let [a, b, c] = parts;
            push_option_reply(out, option.number(), ReplyKind::Info, &[&number, a, b, c]);
        };
        push(InfoKind::Export, [&self.size_bytes.to_be_bytes(), &flags.to_be_bytes(), &[]]);
        // Always: the minimum is not the protocol's default, and who does not know the fact skips it.
        let sizes = [MIN_BLOCK_BYTES, self.preferred_bytes(), PAYLOAD_LIMIT_BYTES].map(u32::to_be_bytes);
        push(InfoKind::BlockSize, [&sizes[0], &sizes[1], &sizes[2]]);
        if wants.name {
            push(InfoKind::Name, [self.name.as_bytes(), &[], &[]]);
        }
        if wants.description {
            push(InfoKind::Description, [self.description.as_bytes(), &[], &[]]);
        }
    }
}

/// Facts that a client asked for beside those that everybody is told.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wants {
    /// The canonical name.
    pub name: bool,
    /// The description.
    pub description: bool,
}

/// The data of INFO and GO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice<'a> {
    /// The export's name, perhaps empty.
    pub name: &'a str,
    /// What to tell of it.
    pub wants: Wants,
}

impl<'a> Choice<'a> {
    /// Takes the data apart.
    pub fn parse(option: OptionKind, mut data: &'a [u8]) -> Result<Self, Refusal> {
        let name = take_string(option, "export name", &mut data)?;
        let count = take_u16(&mut data).ok_or_else(|| malformed(option, "ends before its requests"))?;
        if data.len() != usize::from(count) * 2 {
            let what = format!("{count} information requests announced, {} bytes there", data.len());
            return Err(malformed(option, &what));
        }
        let mut wants = Wants::default();
        while let Some(number) = take_u16(&mut data) {
            match InfoKind::from_number(number) {
                Some(InfoKind::Name) => wants.name = true,
                Some(InfoKind::Description) => wants.description = true,
                // Told anyway, or unknown and to be ignored.
                Some(InfoKind::Export | InfoKind::BlockSize) | None => {}
            }
        }
        Ok(Choice { name, wants })
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextQuery<'a> {
    /// The export's name, perhaps empty.
    pub name: &'a str,
    /// Those of our contexts that the queries name.
    pub contexts: Contexts,
}

impl<'a> ContextQuery<'a> {
    /// Takes the data apart. A list without queries names everything, and a namespace everything in it; to choose, a context
    /// must be named. What nobody knows is passed over.
    pub fn parse(option: OptionKind, mut data: &'a [u8]) -> Result<Self, Refusal> {
        let lists = option == OptionKind::ListMetaContext;
        let name = take_string(option, "export name", &mut data)?;
        let count = take_u32(&mut data).ok_or_else(|| malformed(option, "ends before its queries"))?;
        let mut contexts = if lists && count == 0 { Contexts::all() } else { Contexts::default() };
        // Every query takes at least 4 of the data's bytes, so a wrong count ends the loop early.
        for _ in 0..count {
            let query = take_string(option, "query", &mut data)?;
            if !query.contains(':') {
                let names = Context::ALL.map(Context::name).join(" and ");
                let what = format!("query `{query}` has no namespace; we have {names}");
                return Err(malformed(option, &what));
            }
            for context in Context::ALL {
                if query == context.name() || (lists && context.is_in_namespace(query)) {
                    contexts.insert(context);
                }
            }
        }
        if !data.is_empty() {
            return Err(malformed(option, "bytes are left after the last query"));
        }
        Ok(ContextQuery { name, contexts })
    }
}

/// Takes a string with its length before it.
fn take_string<'a>(option: OptionKind, what: &str, data: &mut &'a [u8]) -> Result<&'a str, Refusal> {
    let length =
        take_u32(data).ok_or_else(|| malformed(option, &format!("ends before the length of its {what}")))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > data.len() {
        let rest = data.len();
        return Err(malformed(option, &format!("{what} of {length} bytes announced, {rest} bytes there")));
    }
    let (string, rest) = data.split_at(length);
    *data = rest;
    as_string(option, what, string)
}

/// Bytes as a string of the protocol: UTF-8 without NUL, not too long.
pub fn as_string<'a>(option: OptionKind, what: &str, bytes: &'a [u8]) -> Result<&'a str, Refusal> {
    if bytes.len() > STRING_LIMIT_BYTES {
        let message =
            format!("{option:?}: {what} of {} bytes; the protocol allows {STRING_LIMIT_BYTES}", bytes.len());
        return Err(Refusal::new(ReplyKind::ErrorTooBig, message));
    }
    match std::str::from_utf8(bytes) {
        Ok(string) if !string.contains('\0') => Ok(string),
        Ok(_) => Err(malformed(option, &format!("{what} contains a NUL byte"))),
        Err(_) => Err(malformed(option, &format!("{what} is not UTF-8"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
    }

    fn facts(block_sectors: u64) -> Facts {
        Facts {
            name: "v1".into(),
            description: "a volume".into(),
            size_bytes: 1 << 30,
            read_only: false,
            block_size: BlockSize::from_sectors(block_sectors).expect("a block size"),
        }
    }

    #[test]
    fn choices() {
        let data = [string("v1"), vec![0, 3, 0, 1, 0, 3, 0xff, 0xff]].concat();
        let choice = Choice::parse(OptionKind::Go, &data).expect("it is fine");
        assert_eq!(choice, Choice { name: "v1", wants: Wants { name: true, description: false } });
        for end in 0..data.len() {
            let refusal = Choice::parse(OptionKind::Go, &data[..end]).expect_err("it is cut");
            assert_eq!(refusal.kind, ReplyKind::ErrorInvalid, "{end}: {}", refusal.message);
        }
        let longer = [data, vec![0]].concat();
        assert_eq!(Choice::parse(OptionKind::Go, &longer).expect_err("longer").kind, ReplyKind::ErrorInvalid);
        let name = "x".repeat(STRING_LIMIT_BYTES + 1);
        let refusal =
            Choice::parse(OptionKind::Info, &[string(&name), vec![0, 0]].concat()).expect_err("long");
        assert_eq!(refusal.kind, ReplyKind::ErrorTooBig);
        let bytes = [&[0, 0, 0, 2, 0xc3, 0x28][..], &[0, 0]].concat();
        assert!(Choice::parse(OptionKind::Info, &bytes).expect_err("no UTF-8").message.contains("UTF-8"));
    }

    #[test]
    fn context_queries() {
        let data = |queries: &[&str]| {
            let mut data = [string("v1"), (queries.len() as u32).to_be_bytes().to_vec()].concat();
            queries.iter().for_each(|query| data.extend(string(query)));
            data
        };
        let ids = |contexts: Contexts| contexts.iter().map(Context::id).collect::<Vec<_>>();
        let set = |queries: &[&str]| {
            ContextQuery::parse(OptionKind::SetMetaContext, &data(queries)).map(|query| ids(query.contexts))
        };
        let list = |queries: &[&str]| {
            ContextQuery::parse(OptionKind::ListMetaContext, &data(queries)).map(|query| ids(query.contexts))
        };
        assert_eq!(set(&[]), Ok(vec![]));
        assert_eq!(list(&[]), Ok(vec![1, 2]));
        assert_eq!(set(&["base:", "uthin:"]), Ok(vec![]));
        assert_eq!(list(&["base:"]), Ok(vec![1]));
        assert_eq!(list(&["uthin:"]), Ok(vec![2]));
        assert_eq!(list(&["uthin:mapping", "base:"]), Ok(vec![1, 2]));
        assert_eq!(set(&["qemu:dirty-bitmap:x", "base:allocation", "base:allocation"]), Ok(vec![1]));
        assert_eq!(set(&["uthin:mapping", "base:allocation"]), Ok(vec![1, 2]));
        assert_eq!(list(&["base:allocations", "uthin:map"]), Ok(vec![]));
        assert_eq!(set(&["allocation"]).expect_err("no namespace").kind, ReplyKind::ErrorInvalid);
        let mut lying = data(&["base:allocation"]);
        lying[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
        let refusal = ContextQuery::parse(OptionKind::SetMetaContext, &lying).expect_err("too many");
        assert_eq!(refusal.kind, ReplyKind::ErrorInvalid);
    }

    #[test]
    fn preferred_sizes_are_powers_of_two_that_divide_the_block() {
        assert_eq!(facts(128).preferred_bytes(), 64 << 10);
        assert_eq!(facts(384).preferred_bytes(), 64 << 10, "of 192 KiB");
        assert_eq!(facts(1024).preferred_bytes(), 512 << 10);
        assert_eq!(facts(2_097_152).preferred_bytes(), PAYLOAD_LIMIT_BYTES, "of 1 GiB");
    }

    #[test]
    fn flags_say_what_works() {
        let writable = facts(128);
        let (none, all) = (Contexts::default(), Contexts::all());
        assert_eq!(writable.transmission_flags(Style::Structured, all), 0b0_1101_1110_1101);
        assert_eq!(writable.transmission_flags(Style::Simple, none), 0b0_1101_0110_1101);
        assert_eq!(writable.transmission_flags(Style::Extended, none), 0b0_1101_1110_1101);
        assert_eq!(writable.transmission_flags(Style::Extended, all), 0b1_1101_1110_1101);
        let read_only = Facts { read_only: true, ..writable };
        assert_eq!(read_only.transmission_flags(Style::Simple, none), 0b0_0101_0000_1111);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let refusal = Refusal::new(ReplyKind::ErrorUnknown, format!("x{}", "ä".repeat(STRING_LIMIT_BYTES)));
        assert_eq!(refusal.text().len(), STRING_LIMIT_BYTES - 1);
    }
}
