//! A dump's XML read as a stream, whoever wrote it: thin_dump, `uthin-fsck dump`, or an editor.
//!
//! Every error says line and column. What does not belong there is refused, not skipped: a mapping that was misread would
//! be somebody's data.

mod plain;

use super::stream::{PoolRecord, Run, Sink, VolumeRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::format::SUPERBLOCK_VERSION;
use crate::units::{SnapTime, VolumeId};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

/// No element of a dump comes near this, nor does a comment.
const EVENT_BYTES_LIMIT: u64 = 1 << 20;

/// Reads XML from `input` into `sink`.
pub(super) fn restore(input: &mut dyn BufRead, sink: &mut dyn Sink) -> Result<()> {
    let mut xml = Xml {
        reader: Reader::from_reader(Lines::new(input)),
        sink,
        inside: Vec::new(),
        names: HashMap::new(),
        is_done: false,
        begins_at: (1, 1),
    };
    let mut buffer = Vec::with_capacity(1 << 12);
    let mut is_between_elements = false;
    loop {
        // Behind text the reader stands within the markup that ended it.
        if is_between_elements {
            xml.plain_elements()?;
        }
        buffer.clear();
        xml.begins_at = xml.reader.get_mut().begin_event();
        let event = xml.reader.read_event_into(&mut buffer);
        is_between_elements = matches!(event, Ok(Event::Start(_) | Event::Empty(_) | Event::End(_)));
        let more = match event {
            Ok(event) => xml.event(&event),
            Err(quick_xml::Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(invalid(error))
            }
            Err(quick_xml::Error::Io(error)) => return Err(Error::io("reading the XML", &error)),
            Err(error) => Err(invalid(error)),
        };
        if !more.map_err(|error| xml.locate(error))? {
            return Ok(());
        }
    }
}

/// An element that others can be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Element {
    Superblock,
    Device,
    Def,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Element::Superblock => "superblock",
            Element::Device => "device",
            Element::Def => "def",
        }
    }
}

struct Xml<'a> {
    reader: Reader<Lines<'a>>,
    sink: &'a mut dyn Sink,
    inside: Vec<Element>,
    /// Numbers for the names of shared parts.
    names: HashMap<String, u64>,
    is_done: bool,
    /// Line and column where what was read last begins.
    begins_at: (u64, u64),
}

impl Xml<'_> {
    /// Takes the mappings and references that come next, as far as they are written as every tool writes them. Nearly all of a
    /// dump is of these: to take them without a general reader of XML halves the time that a restore takes.
    fn plain_elements(&mut self) -> Result<()> {
        if !matches!(self.inside.last(), Some(Element::Device | Element::Def)) {
            return Ok(());
        }
        let lines = self.reader.get_mut();
        let Ok(buffer) = lines.input.fill_buf() else { return Ok(()) }; // the reader will meet it again, and tell
        let (mut taken, mut outcome) = (0, Ok(()));
        while let Some((begin, element, end)) = plain::element(&buffer[taken..]) {
            outcome = match element {
                plain::Element::Mapping(run) => self.sink.run(&run),
                plain::Element::Reference(name) => match self.names.get(name) {
                    Some(number) => self.sink.shared(*number),
                    None => break,
                },
            };
            if outcome.is_err() {
                taken += begin;
                break;
            }
            taken += end;
        }
        lines.consume(taken);
        self.begins_at = lines.place();
        outcome.map_err(|error| self.locate(error))
    }

    /// Takes an event; answers whether there are more.
    fn event(&mut self, event: &Event<'_>) -> Result<bool> {
        match event {
            Event::Empty(tag) => {
                if !self.leaf(tag)? {
                    self.start(tag)?;
                    self.end()?;
                }
            }
            Event::Start(tag) => self.start(tag)?,
            Event::End(_) => self.end()?,
            Event::Text(text) if text.bytes().all(|byte| byte.is_ascii_whitespace()) => {}
            Event::Text(_) | Event::CData(_) | Event::GeneralRef(_) => {
                return Err(invalid("text where only elements can be"));
            }
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {}
            Event::Eof if self.is_done => return Ok(false),
            Event::Eof => {
                let open = self
                    .inside
                    .last()
                    .map_or("<superblock> begins".to_owned(), |element| format!("</{}>", element.name()));
                return Err(invalid(format_args!("the file ends before {open}")).hint("was it cut short?"));
            }
        }
        Ok(true)
    }

    /// An element without content; `false` for one that could have some.
    fn leaf(&mut self, tag: &BytesStart<'_>) -> Result<bool> {
        require_known_attributes(tag)?;
        let name = tag.name();
        match name.as_ref() {
            "single_mapping" => {
                let [begin, data_begin, time] = numbers(tag, ["origin_block", "data_block", "time"])?;
                self.mapping(&Run { begin, data_begin, length: 1, time: number_32("time", time)? })?;
            }
            "range_mapping" => {
                let names = ["origin_begin", "data_begin", "length", "time"];
                let [begin, data_begin, length, time] = numbers(tag, names)?;
                self.mapping(&Run { begin, data_begin, length, time: number_32("time", time)? })?;
            }
            "ref" => {
                self.require_inside(&[Element::Device, Element::Def])?;
                let name = required(tag, "name")?;
                let number = *self.names.get(&name).ok_or_else(|| {
                    invalid(format_args!("a reference to {name:?}, which no <def> before it names"))
                })?;
                self.sink.shared(number)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mapping(&mut self, run: &Run) -> Result<()> {
        match self.inside.last() {
            Some(Element::Device | Element::Def) => self.sink.run(run),
            Some(Element::Superblock) | None => Err(invalid("a mapping outside of <device> and <def>")),
        }
    }

    fn require_inside(&self, places: &[Element]) -> Result<()> {
        if self.inside.last().is_some_and(|element| places.contains(element)) {
            return Ok(());
        }
        let names: Vec<_> = places.iter().map(|element| format!("<{}>", element.name())).collect();
        Err(invalid(format_args!("an element that belongs into {}", names.join(" or "))))
    }

    fn start(&mut self, tag: &BytesStart<'_>) -> Result<()> {
        require_known_attributes(tag)?;
        let name = tag.name();
        let element = match name.as_ref() {
            "superblock" if self.inside.is_empty() && !self.is_done => {
                self.sink.begin_pool(&pool_of(tag)?)?;
                Element::Superblock
            }
            "device" => {
                self.require_inside(&[Element::Superblock])?;
                self.sink.begin_volume(&volume_of(tag)?)?;
                Element::Device
            }
            "def" => {
                self.require_inside(&[Element::Superblock])?;
                let name = required(tag, "name")?;
                let number = self.names.len() as u64;
                if self.names.insert(name.clone(), number).is_some() {
                    return Err(invalid(format_args!("a second <def> of the name {name:?}")));
                }
                self.sink.begin_shared(number)?;
                Element::Def
            }
            "single_mapping" | "range_mapping" | "ref" => {
                return Err(invalid("a mapping with content, where it ends in \"/>\""));
            }
            other => {
                return Err(invalid(format_args!("<{other}>, which no dump of a thin pool has here")));
            }
        };
        self.inside.push(element);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        // The reader has matched names already.
        match self.inside.pop() {
            Some(Element::Device) => self.sink.end_volume(),
            Some(Element::Def) => self.sink.end_shared(),
            Some(Element::Superblock) => {
                self.is_done = true;
                self.sink.end_pool()
            }
            None => Err(invalid("an end without a beginning")),
        }
    }

    /// Puts line and column before the words of an error about the input.
    fn locate(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Invalid | ErrorKind::Unsupported => {
                let (line, column) = self.begins_at;
                error.context(format_args!("line {line}, column {column}"))
            }
            ErrorKind::Corrupt
            | ErrorKind::NeedsCheck
            | ErrorKind::Io
            | ErrorKind::Busy
            | ErrorKind::NotFound
            | ErrorKind::Exists
            | ErrorKind::NoDataSpace
            | ErrorKind::NoMetadataSpace
            | ErrorKind::WrongState
            | ErrorKind::Failed => error,
        }
    }
}

fn pool_of(tag: &BytesStart<'_>) -> Result<PoolRecord> {
    let names = ["time", "transaction", "data_block_size", "nr_data_blocks"];
    let [time, transaction_id, sectors, data_blocks] = numbers(tag, names)?;
    let version = optional(tag, "version")?
        .map_or(Ok(u64::from(SUPERBLOCK_VERSION)), |text| number("version", &text))?;
    Ok(PoolRecord {
        uuid: optional(tag, "uuid")?.unwrap_or_default(),
        time: SnapTime(number_32("time", time)?),
        transaction_id,
        flags: 0, // what is built anew needs no check, whatever it was made from
        version: number_32("version", version)?,
        data_block_sectors: number_32("data_block_size", sectors)?,
        data_blocks,
    })
}

fn volume_of(tag: &BytesStart<'_>) -> Result<VolumeRecord> {
    let names = ["dev_id", "mapped_blocks", "transaction", "creation_time", "snap_time"];
    let [id, mapped_blocks, transaction_id, created, snapshotted] = numbers(tag, names)?;
    let id = VolumeId::new(id)
        .ok_or_else(|| invalid(format_args!("dev_id {id}, where the largest is {}", VolumeId::MAX)))?;
    Ok(VolumeRecord {
        id,
        mapped_blocks,
        transaction_id,
        creation_time: number_32("creation_time", created)?,
        snapshotted_time: number_32("snap_time", snapshotted)?,
    })
}

/// Refuses attributes that an element of a dump has not, and any that is there twice: somebody means something by them.
fn require_known_attributes(tag: &BytesStart<'_>) -> Result<()> {
    let name = tag.name();
    let known: &[&str] = match name.as_ref() {
        "superblock" => &[
            "uuid",
            "time",
            "transaction",
            "flags",
            "version",
            "data_block_size",
            "nr_data_blocks",
            "metadata_snap",
        ],
        "device" => &["dev_id", "mapped_blocks", "transaction", "creation_time", "snap_time"],
        "def" | "ref" => &["name"],
        "single_mapping" => &["origin_block", "data_block", "time"],
        "range_mapping" => &["origin_begin", "data_begin", "length", "time"],
        _ => return Ok(()), // the element itself is refused
    };
    let mut seen = 0_u32;
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(invalid)?;
        let key = attribute.key;
        let index = known.iter().position(|known| *known == key.as_ref()).ok_or_else(|| {
            invalid(format_args!("<{}> with an attribute {}, which it has not", name.as_ref(), key.as_ref()))
        })?;
        if seen & 1 << index != 0 {
            return Err(invalid(format_args!("the attribute {} twice", known[index])));
        }
        seen |= 1 << index;
    }
    Ok(())
}

/// The attributes of these names, all of which must be there as numbers.
#[inline]
fn numbers<const N: usize>(tag: &BytesStart<'_>, names: [&str; N]) -> Result<[u64; N]> {
    let (mut values, mut seen) = ([0; N], [false; N]);
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(invalid)?;
        if let Some(index) = names.iter().position(|name| *name == attribute.key.as_ref()) {
            values[index] = number(names[index], &attribute.value)?;
            seen[index] = true;
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(missing) => Err(invalid(format_args!("no attribute {}", names[missing]))),
        None => Ok(values),
    }
}

/// A plain decimal number.
#[inline]
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { sum.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

fn number(name: &str, text: &str) -> Result<u64> {
    digits(text.as_bytes()).ok_or_else(|| not_a_number(name, text))
}

fn not_a_number(name: &str, text: &str) -> Error {
    invalid(format_args!("{name}={text:?} is no number that fits"))
}

fn number_32(name: &str, number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| not_a_number(name, &number.to_string()))
}

fn optional(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.map_err(invalid)?;
        if attribute.key.as_ref() == name {
            let text = quick_xml::escape::unescape(&attribute.value).map_err(invalid)?;
            return Ok(Some(text.into_owned()));
        }
    }
    Ok(None)
}

fn required(tag: &BytesStart<'_>, name: &str) -> Result<String> {
    optional(tag, name)?.ok_or_else(|| invalid(format_args!("no attribute {name}")))
}

fn invalid(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, message.to_string())
}

/// Passes bytes through and counts lines.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    /// Bytes consumed, lines ended in them, and where the last line began.
    consumed: u64,
    lines: u64,
    line_begin: u64,
    /// Bytes consumed when what is being read began.
    event_begin: u64,
}

impl<'a> Lines<'a> {
    fn new(input: &'a mut dyn BufRead) -> Self {
        Lines { input, consumed: 0, lines: 0, line_begin: 0, event_begin: 0 }
    }

    /// Here begins an element, or words between two; answers the place.
    fn begin_event(&mut self) -> (u64, u64) {
        self.event_begin = self.consumed;
        self.place()
    }

    /// Line and column, from 1, of the next byte.
    fn place(&self) -> (u64, u64) {
        (self.lines + 1, self.consumed - self.line_begin + 1)
    }
}

impl io::Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Lines<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // Whoever reads it keeps all of it in memory.
        if self.consumed - self.event_begin > EVENT_BYTES_LIMIT {
            let message = "more than a mebibyte without the end of an element";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // The buffer is still there: filling it again reads nothing.
        if let Ok(buffer) = self.input.fill_buf() {
            for index in memchr::memchr_iter(b'\n', &buffer[..count.min(buffer.len())]) {
                self.lines += 1;
                self.line_begin = self.consumed + index as u64 + 1;
            }
        }
        self.consumed += count as u64;
        self.input.consume(count);
    }
}
