//! The journal: what has changed since the last commit, in a file beside the metadata, so that a flush needs no commit and the
//! death of the process loses nothing.
//!
//! What must hold:
//!
//! - A record is written before anybody is told of what it says, and before anybody else can build on it. It then is where the
//!   death of the process does not reach: in the file's page cache, or further.
//! - Records follow each other without a gap, and each is known as one of this journal, this generation and this slot. The
//!   first slot without one is the end, torn or not written.
//! - A flush first makes the data durable that the records name, then adds a record that says up to which it is, then makes that durable. After a
//!   power cut only those count: of the rest, the operating system may have written a record of its
//!   own accord whose data it had not. After the death of the process alone, all count ([`BootId`]).
//! - One flush at a time. Records may be added beside it; what they say is not of that flush.
//! - What a flush has made durable shares its page with nothing that is written later.
//! - While metadata name a journal, its header says that it is in use, and nobody begins another in its place: two pools may have been given
//!   one device by mistake. It says so no more shortly before the commit that names it no longer.
//! - A commit makes it empty: the superblock that it writes names the next generation. Nothing of that is written before the
//!   superblock is durable, and nothing in the file has to be made so for it.
//!
//! Who fails to write or flush it gives it up: a commit without one makes everything durable that it held. `replay` brings in
//! what a journal holds; the keeper says what is recorded, and when.

mod replay;

pub use crate::format::{BootId, JournalRecord};
pub use replay::{Recovered, recover};

use crate::disk::{DataFlushed, Disk, flush_data};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    JOURNAL_HEADER_BYTES, JOURNAL_PAGE_BYTES, JOURNAL_SLOT_BYTES, JournalHeader, JournalMark, JournalPlace,
    SLOTS_PER_PAGE,
};
use crate::metadata::Metadata;
use std::io;
use std::sync::Arc;

/// What is written at a time at the least.
const SECTOR_BYTES: usize = 512;
/// The least that a journal can be: its header, and a page of records.
pub const BYTES_MIN: u64 = 2 * JOURNAL_PAGE_BYTES as u64;

/// A journal that is being written.
pub struct Journal {
    disk: Arc<dyn Disk>,
    header: JournalHeader,
    generation: u64,
    /// The slot that is written next.
    next: u64,
    /// The page that it is in, as far as it is written.
    page: Box<[u8; JOURNAL_PAGE_BYTES]>,
    /// The slot behind the last change that is recorded.
    end: u64,
    /// Changes before this slot are durable.
    durable_end: u64,
    /// A record says that data are durable up to there, and is not durable itself.
    marked: Option<FlushPoint>,
}

/// Up to where a flush reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushPoint {
    generation: u64,
    /// The slot behind the last change.
    end: u64,
}

/// `Invalid` for a disk that is too small for a journal.
pub fn require_size(disk: &(impl Disk + ?Sized)) -> Result<()> {
    if disk.size_bytes() >= BYTES_MIN {
        return Ok(());
    }
    let what = format!("{}: {} bytes are too few for a journal", disk.name(), disk.size_bytes());
    Err(Error::new(ErrorKind::Invalid, what).hint(format!("it takes {BYTES_MIN} at least")))
}

/// Makes `disk` a journal that nobody uses, so that it is known for one. Durable when it returns.
pub fn prepare(disk: &dyn Disk, id: u64) -> Result<()> {
    require_size(disk)?;
    let header = JournalHeader { id, boot: BootId::UNKNOWN, slots: slots_of(disk), in_use: false };
    write_durably(disk, header)
}

/// What is at the beginning of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing: its first 4 KiB are zeros.
    Nothing,
    /// The journal of that number.
    Journal {
        /// Its number.
        id: u64,
        /// Its pool was not closed, or does without it.
        in_use: bool,
    },
    /// A journal, by its first bytes, that cannot be read.
    Unreadable,
    /// Something else.
    Other,
}

/// Looks at the beginning of `disk`.
pub fn look(disk: &dyn Disk) -> Result<Found> {
    let name = disk.name();
    let mut beginning = [0; JOURNAL_PAGE_BYTES];
    disk.read_at(0, &mut beginning)
        .map_err(|error| Error::io(format_args!("{name}: reading what is there"), &error))?;
    let (header, _) = beginning.split_first_chunk().expect("a page is longer than a header");
    Ok(match JournalHeader::decode(header) {
        Ok(JournalHeader { id, in_use, .. }) => Found::Journal { id, in_use },
        Err(_) if JournalHeader::begins(header) => Found::Unreadable,
        Err(_) if beginning.iter().all(|byte| *byte == 0) => Found::Nothing,
        Err(_) => Found::Other,
    })
}

/// Begins a journal on `disk`, which holds another one, or nothing: metadata without one get one, with a commit. `id` is a number that
/// no journal of this pool has had. Nobody uses the pool yet.
///
/// `Invalid`: it is too small. `WrongState`: it holds something else.
pub fn begin<M: Disk>(
    metadata: &mut Metadata<M>,
    data: &impl Disk,
    disk: Arc<dyn Disk>,
    id: u64,
    boot: BootId,
) -> Result<Journal> {
    assert!(metadata.journal().is_none(), "a pool has one journal");
    require_size(&*disk)?;
    let name = disk.name();
    if look(&*disk)? == Found::Other {
        // What somebody keeps there by mistake is not written over.
        return Err(Error::new(ErrorKind::WrongState, format!("{name} is no journal and is not empty"))
            .hint(
                "is it the right file? If nobody needs it, remove it, or clear a device's first 4096 bytes",
            ));
    }
    let header = JournalHeader { id, boot, slots: slots_of(&*disk), in_use: true };
    // Durable before the superblock names it: who does not find it there knows that the file is another one.
    write_durably(&*disk, header)?;
    let journal = Journal {
        disk,
        header,
        generation: 0,
        next: 0,
        page: Box::new([0; JOURNAL_PAGE_BYTES]),
        end: 0,
        durable_end: 0,
        marked: None,
    };
    metadata.set_journal(Some(journal.mark()));
    let flushed = flush_data(data)
        .map_err(|error| Error::io(format_args!("{}: flushing the data disk", data.name()), &error))?;
    commit(metadata, flushed)?;
    Ok(journal)
}

impl Journal {
    /// What the superblock says while the journal holds what it does.
    fn mark(&self) -> JournalMark {
        JournalMark { id: self.header.id, generation: self.generation, from: 0 }
    }

    /// What the superblock is to say of a commit that makes the journal empty.
    pub fn next_mark(&self) -> JournalMark {
        JournalMark { generation: self.generation + 1, ..self.mark() }
    }

    /// The superblock that says so is durable.
    pub fn committed(&mut self) {
        self.generation += 1;
        (self.next, self.end, self.durable_end, self.marked) = (0, 0, 0, None);
    }

    /// How many there are.
    fn slots(&self) -> u64 {
        u64::from(self.header.slots)
    }

    /// Whether anything is in it.
    pub fn has_records(&self) -> bool {
        self.next > 0
    }

    /// Whether there is room for a record and for the flush behind it.
    pub fn has_room(&self) -> bool {
        self.next + 2 <= self.slots()
    }

    /// Whether it is time to make it empty.
    pub fn is_large(&self) -> bool {
        self.next > self.slots() - self.slots() / 4
    }

    /// Bytes of it that are in use, and that there are.
    pub fn usage(&self) -> (u64, u64) {
        (self.next * JOURNAL_SLOT_BYTES as u64, self.slots() * JOURNAL_SLOT_BYTES as u64)
    }

    /// What to call it.
    pub fn name(&self) -> String {
        self.disk.name()
    }

    /// Adds a change, for which there is room. After an error nothing more may be added.
    pub fn append(&mut self, change: JournalRecord) -> io::Result<()> {
        self.write(change)?;
        self.end = self.next;
        Ok(())
    }

    fn write(&mut self, record: JournalRecord) -> io::Result<()> {
        assert!(self.next < self.slots(), "who adds a record has looked whether there is room");
        let place = JournalPlace { id: self.header.id, generation: self.generation, slot: self.next };
        let at = (self.next % SLOTS_PER_PAGE) as usize * JOURNAL_SLOT_BYTES;
        if at == 0 {
            self.page.fill(0);
        }
        self.page[at..at + JOURNAL_SLOT_BYTES].copy_from_slice(&record.encode(place, self.marked.is_some()));
        let sector = at / SECTOR_BYTES * SECTOR_BYTES;
        let offset_bytes = page_offset(self.next) + sector as u64;
        self.disk.write_at(offset_bytes, &self.page[sector..sector + SECTOR_BYTES])?;
        self.next += 1;
        Ok(())
    }

    /// Up to where a flush reaches that begins now; `None`: all there is is durable.
    pub fn flush_point(&self) -> Option<FlushPoint> {
        (self.end > self.durable_end).then_some(FlushPoint { generation: self.generation, end: self.end })
    }

    /// The data is durable, says `_data_first`, that changes up to `point` name: adds a record of that. Answers the disk that is to be flushed
    /// now, which makes both durable; `None`: a commit has made the journal empty. After an error nothing more may be added.
    pub fn mark_flush(
        &mut self,
        point: FlushPoint,
        _data_first: DataFlushed,
    ) -> io::Result<Option<Arc<dyn Disk>>> {
        if point.generation != self.generation {
            return Ok(None);
        }
        assert!(self.marked.is_none(), "one flush at a time");
        self.write(JournalRecord::Flushed { until: point.end })?;
        self.marked = Some(point);
        self.next = self.next.next_multiple_of(SLOTS_PER_PAGE).min(self.slots());
        Ok(Some(self.disk.clone()))
    }

    /// The disk was flushed after [`Journal::mark_flush`].
    pub fn flushed(&mut self, point: FlushPoint) {
        if self.marked == Some(point) {
            self.marked = None;
            self.durable_end = point.end;
        }
    }

    /// Makes durable what it holds; the data that it names is, says `data_first`. After an error nothing more may be added.
    pub fn flush(&mut self, data_first: DataFlushed) -> io::Result<()> {
        let Some(point) = self.flush_point() else { return Ok(()) };
        if let Some(disk) = self.mark_flush(point, data_first)? {
            disk.flush()?;
            self.flushed(point);
        }
        Ok(())
    }

    /// Says that it is not in use any more: the next commit will not name it. If that cannot be said, its place stays taken until somebody
    /// clears it.
    pub fn release(&mut self) {
        self.header.in_use = false;
        if let Err(error) = write_header(&*self.disk, self.header).and_then(|()| self.disk.flush()) {
            tracing::warn!("{}: a journal that is over cannot be marked as such: {error}", self.name());
        }
    }

    /// The data that records name may be lost although the operating system goes on: what was not flushed counts no more, as
    /// after a power cut.
    pub fn distrust(&mut self) {
        self.header.boot = BootId::UNKNOWN;
        self.distrust_later().carry_out();
    }

    /// The same for who has no access to the journal when it comes to that, and tells who has.
    pub fn distrust_later(&self) -> Distrust {
        Distrust { disk: self.disk.clone(), header: self.header }
    }
}

/// See [`Journal::distrust_later`].
pub struct Distrust {
    disk: Arc<dyn Disk>,
    header: JournalHeader,
}

impl Distrust {
    /// What was not flushed counts no more.
    pub fn carry_out(&self) {
        if let Err(error) = distrust(&*self.disk, self.header) {
            tracing::error!("{}: records whose data may be lost cannot be marked: {error}", self.disk.name());
        }
    }
}

/// As many as there is room for.
fn slots_of(disk: &(impl Disk + ?Sized)) -> u32 {
    let pages = disk.size_bytes() / JOURNAL_PAGE_BYTES as u64 - 1;
    u32::try_from(pages * SLOTS_PER_PAGE).unwrap_or(u32::MAX)
}

fn write_durably(disk: &dyn Disk, header: JournalHeader) -> Result<()> {
    let name = disk.name();
    write_header(disk, header)
        .and_then(|()| disk.flush())
        .map_err(|error| Error::io(format_args!("{name}: writing the journal's header"), &error))
}

fn distrust(disk: &dyn Disk, header: JournalHeader) -> io::Result<()> {
    let header = JournalHeader { boot: BootId::UNKNOWN, ..header };
    // Once more: a disk that has failed and a journal that fails once should not be enough to believe what is lost.
    write_header(disk, header).or_else(|_| write_header(disk, header))
}

fn write_header(disk: &dyn Disk, header: JournalHeader) -> io::Result<()> {
    let bytes: [u8; JOURNAL_HEADER_BYTES] = header.encode();
    disk.write_at(0, &bytes)
}

/// Where the page begins that a slot is in.
fn page_offset(slot: u64) -> u64 {
    (1 + slot / SLOTS_PER_PAGE) * JOURNAL_PAGE_BYTES as u64
}

/// Commits; nobody uses the pool, so what that frees can be had at once.
fn commit<M: Disk>(metadata: &mut Metadata<M>, data_first: DataFlushed) -> Result<()> {
    let freed = metadata.commit(data_first)?;
    freed.into_iter().for_each(|range| metadata.make_reusable(range));
    Ok(())
}

#[cfg(test)]
mod tests;
