//! The log of a catalog: the changes made since `catalog.json` was written, so that a change costs the same however many
//! volumes there are.
//!
//! A line is a checksum (CRC-32C, eight hexadecimal digits), a blank, JSON, and a line feed:
//!
//! ```text
//! 0fa1b2c3 {"log":1790000000000000,"number":3,"durable":1,"changes":[{"begin":{…}}]}
//! ```
//!
//! What must hold:
//!
//! - A line belongs to the whole that names its generation, `log`. No generation is used twice, so what an earlier one has
//!   left in the file means nothing, wherever it lies.
//! - Lines are numbered from 1 on, and each is written where the one before ended: over space that was allocated before, so that
//!   deletions are kept also when the filesystem is full.
//! - A line is written whole or not at all, as far as readers can see: without its checksum it is none. The first that
//!   is none is the end: a crash has torn it, or it was never written.
//! - `durable` is the number of a line that was durable when this one was written. If that line or one before it is none, then
//!   no crash has torn it: the file is damaged, and that is said.
//! - After a failed write or fsync nothing is ever added: nobody knows what is on the disk. The whole is written instead.

use super::catalog::Catalog;
use super::change::Change;
use super::replace::{set_aside, sync_directory_of};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What holds a line's checksum and its generation.
const LINE_BEGIN_BYTES: usize = 64;

/// How long a line may take to be on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// No longer than the call.
    Now,
    /// Until the next that is durable.
    WithTheNext,
}

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    log: u64,
    number: u64,
    durable: u64,
    changes: &'a [Change],
}

/// Of a line, what says where it belongs.
#[derive(Clone, Copy, Deserialize)]
struct Header {
    log: u64,
    number: u64,
    durable: u64,
}

/// Of a line, what it says.
#[derive(Deserialize)]
struct Content {
    changes: Vec<Change>,
}

impl Line<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("a change has nothing that JSON cannot hold");
        format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
    }
}

/// The JSON of a line without its line feed; `None` if that is none.
fn json_of(line: &[u8]) -> Option<&[u8]> {
    let (checksum, json) = (line.get(..8)?, line.get(8..)?.strip_prefix(b" ")?);
    let checksum = std::str::from_utf8(checksum).ok()?;
    // `from_str_radix` takes a sign.
    let is_hexadecimal = checksum.bytes().all(|digit| digit.is_ascii_hexdigit());
    let wanted = u32::from_str_radix(checksum, 16).ok().filter(|_| is_hexadecimal)?;
    (crc32c::crc32c(json) == wanted).then_some(json)
}

fn header_of(line: &[u8]) -> Option<Header> {
    serde_json::from_slice(json_of(line)?).ok()
}

/// The first line, and what is behind it. What no line feed ends is no line.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Brings the lines of that generation into `catalog`, and says how many there were; or, in words, what is wrong with them.
pub(super) fn replay(mut bytes: &[u8], log: u64, catalog: &mut Catalog) -> Result<u64, String> {
    let mut last = 0;
    while let Some((line, rest)) = split_line(bytes)
        && let Some(json) = json_of(line)
        && header_of(line).is_some_and(|header| header.log == log && header.number == last + 1)
    {
        last += 1;
        let wrong = |what: String| format!("line {last}: {what}");
        let content: Content = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        content.changes.iter().try_for_each(|change| catalog.apply(change)).map_err(wrong)?;
        bytes = rest;
    }
    while let Some((line, rest)) = split_line(bytes) {
        let header = header_of(line).filter(|header| header.log == log);
        if let Some(header) = header.filter(|header| header.durable > last) {
            return Err(format!(
                "line {} is damaged: it was written before line {}, which is whole",
                last + 1,
                header.number
            ));
        }
        bytes = rest;
    }
    Ok(last)
}

/// A generation that no line in the file at `path` is of.
pub(super) fn next_generation(path: &Path) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0));
    // Every generation begins at the file's begin, and is higher than the one before, whatever the clock says.
    let mut begin = [0; LINE_BEGIN_BYTES];
    let has = File::open(path).and_then(|file| file.read_at(&mut begin, 0)).unwrap_or(0);
    let digits = begin[..has].get(9..).and_then(|begin| begin.strip_prefix(b"{\"log\":")).unwrap_or(b"");
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let last = std::str::from_utf8(&digits[..end]).ok().and_then(|digits| digits.parse::<u64>().ok());
    now.max(last.map_or(0, |last| last.saturating_add(1)))
}

/// A log that is being written. Whoever writes holds the pool's lock.
pub(super) struct Log {
    file: File,
    generation: u64,
    capacity_bytes: u64,
    /// Where the next line begins.
    end_bytes: u64,
    /// The number of the last line, and of the last that is durable.
    last: u64,
    durable: u64,
}

impl Log {
    /// Begins a generation in the file at `path`, with space for `capacity_bytes`, or for what there is if the filesystem has no
    /// more. What the file holds stays until the first line is written.
    pub(super) fn begin(path: &Path, generation: u64, capacity_bytes: u64) -> io::Result<Self> {
        let is_new = !path.try_exists()?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let has = file.metadata()?.len();
        let capacity_bytes = match extend(&file, has, capacity_bytes) {
            Ok(()) => has.max(capacity_bytes),
            Err(error) if has == 0 => return Err(error),
            Err(_) => has,
        };
        if is_new {
            // The whole that names it must not be there without it.
            sync_directory_of(path)?;
        }
        Ok(Log { file, generation, capacity_bytes, end_bytes: 0, last: 0, durable: 0 })
    }

    /// The bytes of a line that says this, to be given to [`Log::append`] next; `None` if there is no space for it.
    pub(super) fn line(&self, changes: &[Change]) -> Option<Vec<u8>> {
        let line = Line { log: self.generation, number: self.last + 1, durable: self.durable, changes };
        let bytes = line.to_bytes();
        (self.end_bytes + bytes.len() as u64 <= self.capacity_bytes).then_some(bytes)
    }

    /// Writes a line. After an error the log must not be used any more.
    pub(super) fn append(mut self, line: &[u8], durability: Durability) -> io::Result<Self> {
        self.file.write_all_at(line, self.end_bytes)?;
        self.end_bytes += line.len() as u64;
        self.last += 1;
        if durability == Durability::Now {
            self.file.sync_data()?;
            self.durable = self.last;
        }
        Ok(self)
    }
}

/// Makes the file longer, with zeros that are written: a line then changes nothing but its own bytes, which are faster to sync.
fn extend(file: &File, has: u64, wanted: u64) -> io::Result<()> {
    if has >= wanted {
        return Ok(());
    }
    set_aside(file, wanted)?;
    let zeros = vec![0; (wanted - has).min(1 << 20) as usize];
    let mut at = has;
    while at < wanted {
        let count = (wanted - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..count as usize], at)?;
        at += count;
    }
    file.sync_all()
}

/// What the pool's owner is told of a log that cannot be.
pub(super) fn wrong_log(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{}: {what}", path.display())).hint(
        "restore it from a backup together with catalog.json; to go on without the changes that it held, take `\"log\": …` out \
         of catalog.json: volumes made since appear by their numbers",
    )
}

#[cfg(test)]
impl Log {
    /// As if the disk had begun to fail: a file that takes no writes.
    pub(super) fn failing(self) -> Self {
        Log { file: File::open("/dev/null").expect("it is everywhere"), ..self }
    }
}
