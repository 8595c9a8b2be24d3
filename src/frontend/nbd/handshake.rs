//! The handshake: fixed newstyle, over a blocking socket, before a connection's ring exists.
//!
//! Each option is read as a whole, answered as a whole, and bounded in length and time. A refused option leaves the
//! session as it was (but a failed SET_META_CONTEXT, which by the protocol clears the choice). Nothing is read beyond the
//! option that ends the handshake: what follows belongs to the transmission.

use super::contexts::Contexts;
use super::headers::Style;
use super::options::{Choice, ContextQuery, Facts, Refusal, as_string};
use super::protocol::{
    MAGIC, OPTION_MAGIC, OptionHeader, OptionKind, ReplyKind, handshake_flags, push_option_reply,
};
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The longest data of an option that are looked at; enough for every sensible one (INFO with the longest name and a
/// request for every fact, a hundred queries).
const DATA_LIMIT_BYTES: u32 = 64 << 10;
/// Longer data up to this are skipped and refused; beyond, the connection ends.
const SKIP_LIMIT_BYTES: u32 = 1 << 20;
/// Zeros after the answer to EXPORT_NAME, for clients that did not ask to be spared.
const PADDING_BYTES: usize = 124;
/// Names that an error message enumerates.
const NAMES_IN_MESSAGE: usize = 20;

/// How long a handshake may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To receive the rest of a message that has begun, or to get rid of a reply.
    pub message: Duration,
    /// Everything, the client's thinking included.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { message: Duration::from_secs(10), total: Duration::from_secs(60) }
    }
}

/// A blocking socket.
pub trait Channel: Read + Write {
    /// A read or write from now on fails with `WouldBlock` or `TimedOut` when it has waited this long. Not zero.
    fn limit_wait(&mut self, limit: Duration) -> io::Result<()>;
    /// How it stands with TLS.
    fn tls_mode(&self) -> TlsMode;
    /// Everything from the next byte on, in both directions, is TLS's. Called where that is offered or required.
    fn begin_tls(&mut self) -> io::Result<()>;
}

/// How a connection stands with TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    /// There is none.
    Unavailable,
    /// The client may begin it.
    Offered,
    /// The client must begin it before it does anything else.
    Required,
    /// It has begun.
    Active,
}

/// Who knows the exports.
pub trait Host {
    /// What the transmission works on.
    type Entered;
    /// The names of all exports.
    fn list(&self) -> Result<Vec<String>>;
    /// What there is to know of an export. The name is not empty.
    fn describe(&self, name: &str) -> Result<Facts>;
    /// Opens an export for transmission. The name is not empty.
    fn enter(&self, name: &str) -> Result<(Facts, Self::Entered)>;
}

/// What a handshake led to.
#[derive(Debug)]
pub struct Agreed<E> {
    /// What the client was told.
    pub facts: Facts,
    /// How requests and replies are laid out.
    pub style: Style,
    /// What BLOCK_STATUS tells.
    pub contexts: Contexts,
    /// The open export.
    pub entered: E,
}

/// Carries the handshake through. `None`: the client wanted no transmission. `Invalid`: it broke the protocol in a way
/// that leaves nothing but to hang up; `Io`: the socket failed, or the client was too slow.
pub fn negotiate<C: Channel, H: Host>(
    channel: &mut C,
    host: &H,
    patience: Patience,
) -> Result<Option<Agreed<H::Entered>>> {
    let deadline = Instant::now() + patience.total;
    let line = Line { channel, patience, deadline };
    let mut haggling =
        Haggling { line, host, style: Style::Simple, chosen: None, fixed: false, no_zeroes: false };
    haggling.greet()?;
    loop {
        match haggling.option()? {
            Next::Option => {}
            Next::End => return Ok(None),
            Next::Transmission(agreed) => return Ok(Some(agreed)),
        }
    }
}

/// What comes after an option.
enum Next<E> {
    Option,
    End,
    Transmission(Agreed<E>),
}

/// A handshake under way.
struct Haggling<'a, C, H> {
    line: Line<'a, C>,
    host: &'a H,
    style: Style,
    /// The contexts that were chosen, and the export that they were chosen for.
    chosen: Option<(String, Contexts)>,
    /// Whether the client said FIXED_NEWSTYLE.
    fixed: bool,
    no_zeroes: bool,
}

impl<C: Channel, H: Host> Haggling<'_, C, H> {
    fn greet(&mut self) -> Result<()> {
        let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        let mut greeting = Vec::with_capacity(18);
        greeting.extend_from_slice(&MAGIC.to_be_bytes());
        greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting.extend_from_slice(&flags.to_be_bytes());
        self.line.send(&greeting)?;
        let mut answer = [0; 4];
        if !self.line.receive_or_end(&mut answer)? {
            return Err(broken("the client left without a word"));
        }
        let answer = u32::from_be_bytes(answer);
        if answer & !u32::from(flags) != 0 {
            return Err(broken(format!("client flags {answer:#x}: there are none but {flags:#x}")));
        }
        // A client without FIXED_NEWSTYLE may send nothing but EXPORT_NAME; there is no harm in answering more. But there is
        // no TLS for it.
        self.fixed = answer & u32::from(handshake_flags::FIXED_NEWSTYLE) != 0;
        if !self.fixed && self.line.channel.tls_mode() == TlsMode::Required {
            return Err(broken("TLS is required here, and the client does not speak fixed newstyle"));
        }
        self.no_zeroes = answer & u32::from(handshake_flags::NO_ZEROES) != 0;
        Ok(())
    }

    /// One option, from its head to the last reply.
    fn option(&mut self) -> Result<Next<H::Entered>> {
        let mut head = [0; OptionHeader::BYTES];
        if !self.line.receive_or_end(&mut head)? {
            return Ok(Next::End);
        }
        let Some(OptionHeader { number, length_bytes }) = OptionHeader::decode(&head) else {
            return Err(broken("an option does not begin with IHAVEOPT"));
        };
        let option = OptionKind::from_number(number);
        let is_premature = self.line.channel.tls_mode() == TlsMode::Required
            && !matches!(option, Some(OptionKind::StartTls | OptionKind::Abort));
        if is_premature {
            return self.before_tls(option, number, length_bytes);
        }
        if length_bytes > DATA_LIMIT_BYTES {
            return self.too_long(option, number, length_bytes);
        }
        let data = self.line.receive(length_bytes as usize)?;
        let Some(option) = option else {
            return self.refuse(number, &unsupported(number));
        };
        match option {
            OptionKind::ExportName => self.export_name(&data),
            OptionKind::Go => self.go(&data),
            OptionKind::Abort => self.conclude(option, Ok(Vec::new())).map(|_| Next::End),
            OptionKind::List => {
                let answer = without_data(option, &data).and_then(|()| self.list());
                self.conclude(option, answer)
            }
            OptionKind::StartTls => self.start_tls(&data),
            OptionKind::Info => {
                let answer = self.info(&data);
                self.conclude(option, answer)
            }
            OptionKind::StructuredReply => {
                let answer = without_data(option, &data).and_then(|()| self.structure());
                self.conclude(option, answer)
            }
            OptionKind::ExtendedHeaders => {
                let answer = without_data(option, &data).map(|()| Vec::new());
                if answer.is_ok() {
                    self.style = Style::Extended;
                }
                self.conclude(option, answer)
            }
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                let answer = self.contexts(option, &data);
                self.conclude(option, answer)
            }
        }
    }

    /// Gets rid of an option's data that are longer than any sensible ones.
    fn too_long(
        &mut self,
        option: Option<OptionKind>,
        number: u32,
        length_bytes: u32,
    ) -> Result<Next<H::Entered>> {
        // EXPORT_NAME has no error reply, and skipping has an end.
        if length_bytes > SKIP_LIMIT_BYTES || option == Some(OptionKind::ExportName) {
            return Err(broken(format!("option {number} with {length_bytes} bytes of data")));
        }
        self.line.skip(length_bytes as usize)?;
        match option {
            Some(OptionKind::Abort) => self.conclude(OptionKind::Abort, Ok(Vec::new())).map(|_| Next::End),
            Some(option) => {
                if option == OptionKind::SetMetaContext {
                    self.chosen = None;
                }
                let what =
                    format!("{option:?}: {length_bytes} bytes of data; this server takes {DATA_LIMIT_BYTES}");
                self.refuse(number, &Refusal::new(ReplyKind::ErrorTooBig, what))
            }
            None => self.refuse(number, &unsupported(number)),
        }
    }

    /// An option that nobody gets an answer to without TLS.
    fn before_tls(
        &mut self,
        option: Option<OptionKind>,
        number: u32,
        length_bytes: u32,
    ) -> Result<Next<H::Entered>> {
        if length_bytes > SKIP_LIMIT_BYTES || option == Some(OptionKind::ExportName) {
            return Err(broken(format!("option {number} with {length_bytes} bytes of data, before TLS")));
        }
        self.line.skip(length_bytes as usize)?;
        let what = "this server wants TLS from everybody who comes over TCP; send STARTTLS first";
        self.refuse(number, &Refusal::new(ReplyKind::ErrorTlsRequired, what))
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<Next<H::Entered>> {
        let granted = without_data(OptionKind::StartTls, data).and_then(|()| {
            let refuse = |kind, what: &str| Err(Refusal::new(kind, what));
            match self.line.channel.tls_mode() {
                TlsMode::Unavailable => refuse(
                    ReplyKind::ErrorPolicy,
                    "this server has no certificates; use a Unix socket or a tunnel, or give it some",
                ),
                TlsMode::Active => refuse(ReplyKind::ErrorInvalid, "TLS has begun already"),
                TlsMode::Offered | TlsMode::Required if !self.fixed => {
                    refuse(ReplyKind::ErrorPolicy, "TLS is for clients that speak fixed newstyle")
                }
                TlsMode::Offered | TlsMode::Required => Ok(Vec::new()),
            }
        });
        let is_granted = granted.is_ok();
        self.conclude(OptionKind::StartTls, granted)?;
        if is_granted {
            self.line.channel.begin_tls().map_err(|error| Error::io("beginning TLS", &error))?;
            // Whoever listened in may have said what was agreed on so far.
            self.style = Style::Simple;
            self.chosen = None;
        }
        Ok(Next::Option)
    }

    fn list(&self) -> Result<Vec<u8>, Refusal> {
        let mut replies = Vec::new();
        for name in self.host.list()? {
            let length = (name.len() as u32).to_be_bytes();
            let parts = [&length[..], name.as_bytes()];
            push_option_reply(&mut replies, OptionKind::List.number(), ReplyKind::Server, &parts);
        }
        Ok(replies)
    }

    /// STRUCTURED_REPLY.
    fn structure(&mut self) -> Result<Vec<u8>, Refusal> {
        if self.style == Style::Extended {
            let what = "extended headers were agreed on, which take the place of structured replies";
            return Err(Refusal::new(ReplyKind::ErrorExtendedHeaders, what));
        }
        self.style = Style::Structured;
        Ok(Vec::new())
    }

    fn info(&self, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let choice = Choice::parse(OptionKind::Info, data)?;
        let facts = self.host.describe(&self.resolve(choice.name)?)?;
        let mut replies = Vec::new();
        facts.push_info(&mut replies, OptionKind::Info, choice.wants, self.flags(&facts));
        Ok(replies)
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT; the latter clears the choice first, whatever comes of it.
    fn contexts(&mut self, option: OptionKind, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let sets = option == OptionKind::SetMetaContext;
        if sets {
            self.chosen = None;
        }
        if !self.style.has_chunks() {
            let what =
                "metadata contexts need structured replies; send STRUCTURED_REPLY or EXTENDED_HEADERS first";
            return Err(Refusal::new(ReplyKind::ErrorInvalid, what));
        }
        let query = ContextQuery::parse(option, data)?;
        let facts = self.host.describe(&self.resolve(query.name)?)?;
        let mut replies = Vec::new();
        for context in query.contexts.iter() {
            let id = if sets { context.id() } else { 0 };
            let parts = [&id.to_be_bytes()[..], context.name().as_bytes()];
            push_option_reply(&mut replies, option.number(), ReplyKind::MetaContext, &parts);
        }
        if sets {
            self.chosen = Some((facts.name, query.contexts));
        }
        Ok(replies)
    }

    fn go(&mut self, data: &[u8]) -> Result<Next<H::Entered>> {
        let entered = Choice::parse(OptionKind::Go, data).and_then(|choice| {
            let entered = self.host.enter(&self.resolve(choice.name)?)?;
            Ok((choice.wants, entered))
        });
        let (wants, (facts, entered)) = match entered {
            Ok(entered) => entered,
            Err(refusal) => return self.refuse(OptionKind::Go.number(), &refusal),
        };
        let mut replies = Vec::new();
        facts.push_info(&mut replies, OptionKind::Go, wants, self.flags(&facts));
        self.conclude(OptionKind::Go, Ok(replies))?;
        Ok(Next::Transmission(self.agree(facts, entered)))
    }

    /// The old way in: an error can only be told by hanging up.
    fn export_name(&mut self, data: &[u8]) -> Result<Next<H::Entered>> {
        if self.style == Style::Extended {
            return Err(broken("EXPORT_NAME after EXTENDED_HEADERS, which asks for GO"));
        }
        let entered = as_string(OptionKind::ExportName, "export name", data)
            .and_then(|name| Ok(self.host.enter(&self.resolve(name)?)?));
        let (facts, entered) = entered.map_err(|refusal| broken(refusal.message))?;
        let mut answer = facts.size_bytes.to_be_bytes().to_vec();
        answer.extend_from_slice(&self.flags(&facts).to_be_bytes());
        if !self.no_zeroes {
            answer.resize(answer.len() + PADDING_BYTES, 0);
        }
        self.line.send(&answer)?;
        Ok(Next::Transmission(self.agree(facts, entered)))
    }

    fn agree(&self, facts: Facts, entered: H::Entered) -> Agreed<H::Entered> {
        let contexts = self.contexts_of(&facts);
        Agreed { facts, style: self.style, contexts, entered }
    }

    /// What was chosen for this export.
    fn contexts_of(&self, facts: &Facts) -> Contexts {
        let chosen = self.chosen.as_ref().filter(|(name, _)| *name == facts.name);
        chosen.map_or(Contexts::default(), |(_, contexts)| *contexts)
    }

    fn flags(&self, facts: &Facts) -> u16 {
        facts.transmission_flags(self.style, self.contexts_of(facts))
    }

    /// The name itself, or for no name the only one that there is.
    fn resolve(&self, name: &str) -> Result<String, Refusal> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        let mut names = self.host.list()?;
        if names.len() == 1 {
            return Ok(names.remove(0));
        }
        let more = names.len().saturating_sub(NAMES_IN_MESSAGE);
        names.truncate(NAMES_IN_MESSAGE);
        let what = match (names.is_empty(), more) {
            (true, _) => "there is no export yet; create a volume first".to_owned(),
            (false, 0) => format!("name an export: there are {}", names.join(", ")),
            (false, more) => format!("name an export: there are {} and {more} more", names.join(", ")),
        };
        Err(Refusal::new(ReplyKind::ErrorUnknown, what))
    }

    /// Sends what an option led to: its replies and the acknowledgement, or the refusal alone.
    fn conclude(&mut self, option: OptionKind, answer: Result<Vec<u8>, Refusal>) -> Result<Next<H::Entered>> {
        match answer {
            Ok(mut replies) => {
                push_option_reply(&mut replies, option.number(), ReplyKind::Ack, &[]);
                self.line.send(&replies)?;
                Ok(Next::Option)
            }
            Err(refusal) => self.refuse(option.number(), &refusal),
        }
    }

    fn refuse(&mut self, option: u32, refusal: &Refusal) -> Result<Next<H::Entered>> {
        tracing::debug!(option, message = refusal.message, "refused an option");
        let mut reply = Vec::new();
        push_option_reply(&mut reply, option, refusal.kind, &[refusal.text().as_bytes()]);
        self.line.send(&reply)?;
        Ok(Next::Option)
    }
}

fn without_data(option: OptionKind, data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() {
        return Ok(());
    }
    let what = format!("{option:?} takes no data, {} bytes came", data.len());
    Err(Refusal::new(ReplyKind::ErrorInvalid, what))
}

fn unsupported(option: u32) -> Refusal {
    Refusal::new(ReplyKind::ErrorUnsupported, format!("this server does not know option {option}"))
}

fn broken(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

/// The socket, with the patience that is left.
struct Line<'a, C> {
    channel: &'a mut C,
    patience: Patience,
    /// When the whole handshake must be over.
    deadline: Instant,
}

impl<C: Channel> Line<'_, C> {
    /// Allows the next call to wait until `until`, or the deadline if that is earlier.
    fn arm(&mut self, until: Instant) -> Result<()> {
        let left = until.min(self.deadline).saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::Io, "the client took too long over its handshake"));
        }
        self.channel.limit_wait(left).map_err(|error| Error::io("handshake", &error))
    }

    /// Receives up to `bytes.len()` bytes, at least one; 0 is the end of the stream.
    fn receive_some(&mut self, bytes: &mut [u8], until: Instant) -> Result<usize> {
        loop {
            self.arm(until)?;
            match self.channel.read(bytes) {
                Ok(count) => return Ok(count),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(Error::io("receiving the handshake", &error)),
            }
        }
    }

    /// Fills `bytes`. `false` when the client left before the first of them; it has until the deadline to send that.
    fn receive_or_end(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let first = self.receive_some(bytes, self.deadline)?;
        if first == 0 {
            return Ok(false);
        }
        self.receive_rest(bytes, first)?;
        Ok(true)
    }

    /// Fills `bytes` from `filled` on.
    fn receive_rest(&mut self, bytes: &mut [u8], mut filled: usize) -> Result<()> {
        let until = Instant::now() + self.patience.message;
        while filled < bytes.len() {
            match self.receive_some(&mut bytes[filled..], until)? {
                0 => return Err(broken("the client left in the middle of a message")),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// `length_bytes` bytes of data.
    fn receive(&mut self, length_bytes: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length_bytes];
        self.receive_rest(&mut data, 0)?;
        Ok(data)
    }

    /// Receives and drops.
    fn skip(&mut self, mut length_bytes: usize) -> Result<()> {
        let mut bin = [0; 4096];
        while length_bytes > 0 {
            let part = length_bytes.min(bin.len());
            self.receive_rest(&mut bin[..part], 0)?;
            length_bytes -= part;
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        let until = Instant::now() + self.patience.message;
        while !bytes.is_empty() {
            self.arm(until)?;
            match self.channel.write(bytes) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "the client takes no more bytes")),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(Error::io("answering the handshake", &error)),
            }
        }
        Ok(())
    }
}

/// Whether to look again: interrupted, or the wait was cut short (then the next `arm` says if time is up).
pub fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(any(test, fuzzing))]
#[path = "handshake_bench.rs"]
pub(super) mod bench;

#[cfg(test)]
#[path = "handshake_tests.rs"]
pub(super) mod tests;
