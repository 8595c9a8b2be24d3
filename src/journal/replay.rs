//! What a journal holds, brought into the metadata that it belongs to.
//!
//! Each commit on the way says how far it has got, and the last one that there is no journal any more. Whoever is cut off in
//! between begins where the last of them ended: of the journal itself only its header is written, at the end.

use super::{BootId, JournalRecord, commit, distrust, page_offset, write_header};
use crate::disk::{Disk, flush_data};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    JOURNAL_HEADER_BYTES, JOURNAL_PAGE_BYTES, JOURNAL_SLOT_BYTES, JournalHeader, JournalMark, JournalPlace,
    SLOTS_PER_PAGE,
};
use crate::metadata::{Access, Metadata, Partial};

/// Records that one transaction brings in: what it takes in memory is bounded. In tests few, so that there are several.
const BATCH_RECORDS: usize = if cfg!(test) { 2 } else { 64 * 1024 };

/// How far behind the last record it is looked whether there are others: some pages, for a journal may be large.
const LOOK_AHEAD_SLOTS: u64 = 64 * SLOTS_PER_PAGE;

/// What was brought in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Changes.
    pub records: u64,
    /// The power was cut, or so it must be taken: changes that nobody had flushed are left out.
    pub after_power_cut: bool,
}

/// Brings in what the journal on `disk` holds, if the metadata name one; `None`: they do not. Then they do not any more.
///
/// `disk` is `None` where there is no journal: `NotFound`, if one is needed. `WrongState`: it is another one. `Corrupt`: what it
/// says can never have followed what the metadata hold, or it has gone on from later ones. `NeedsCheck`: the metadata were opened for reading, because they ask for
/// that first.
pub fn recover<M: Disk>(
    metadata: &mut Metadata<M>,
    data: &impl Disk,
    disk: Option<&dyn Disk>,
    boot: BootId,
) -> Result<Option<Recovered>> {
    let Some(mark) = metadata.journal() else { return Ok(None) };
    let disk = disk.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the pool's journal is missing, and holds changes that its metadata do not",
        )
        .hint("put the file `journal` back into the pool's directory")
    })?;
    let name = disk.name();
    if metadata.access() == Access::ReadOnly {
        let what =
            format!("the metadata carry the needs_check flag, and {name} holds changes on top of them");
        return Err(Error::new(ErrorKind::NeedsCheck, what).hint(format!(
            "run `uthin-fsck check --clear-needs-check-flag {}`, then open the pool: its journal is brought in",
            metadata.disk_name()
        )));
    }
    let header = read_header(disk, mark)?;
    let after_power_cut = !header.boot.is_same(boot);
    let records = scan(disk, mark, header, after_power_cut)?;
    metadata.begin_replay();
    let commit = |metadata: &mut Metadata<M>| {
        // What could not be flushed may be lost, and what names it then counts no more.
        let flushed = flush_data(data).map_err(|error| {
            let error = Error::io(format_args!("{}: flushing the data disk", data.name()), &error);
            match distrust(disk, header) {
                Ok(()) => error,
                Err(second) => error.context(format_args!("{name}: {second}, after")),
            }
        })?;
        commit(metadata, flushed)
    };
    let mut batches = records.chunks(BATCH_RECORDS).peekable();
    while let Some(batch) = batches.next() {
        for (slot, record) in batch {
            let at = |error: Error| error.context(format_args!("{name}: record {slot}"));
            match carry_out(metadata, *record) {
                Err(error) if error.kind() == ErrorKind::NoMetadataSpace => {
                    // A commit gives back what was replaced.
                    metadata.set_journal(Some(JournalMark { from: *slot, ..mark }));
                    commit(metadata)?;
                    carry_out(metadata, *record).map_err(at)?;
                }
                done => done.map_err(at)?,
            }
        }
        if let Some(((slot, _), _)) = batches.peek().and_then(|next| next.split_first()) {
            metadata.set_journal(Some(JournalMark { from: *slot, ..mark }));
            commit(metadata)?;
        }
    }
    if header.in_use {
        let freed = JournalHeader { in_use: false, ..header };
        if let Err(error) = write_header(disk, freed).and_then(|()| disk.flush()) {
            tracing::warn!("{name}: a journal that is over cannot be marked as such: {error}");
        }
    }
    metadata.set_journal(None);
    commit(metadata)?;
    metadata.end_replay();
    Ok(Some(Recovered { records: records.len() as u64, after_power_cut }))
}

fn read_header(disk: &dyn Disk, mark: JournalMark) -> Result<JournalHeader> {
    let name = disk.name();
    let mut bytes = [0; JOURNAL_HEADER_BYTES];
    let is_other = |what: String| {
        Error::new(
            ErrorKind::WrongState,
            format!("{name} is not the journal that the pool's metadata name: {what}"),
        )
        .hint("put the right file or device back in its place")
    };
    if disk.size_bytes() < bytes.len() as u64 {
        return Err(is_other(format!("it has {} bytes", disk.size_bytes())));
    }
    disk.read_at(0, &mut bytes)
        .map_err(|error| Error::io(format_args!("{name}: reading the journal's header"), &error))?;
    let header = JournalHeader::decode(&bytes).map_err(is_other)?;
    if header.id != mark.id {
        return Err(is_other(format!("it has the number {:#x}, expected {:#x}", header.id, mark.id)));
    }
    let least_bytes = (1 + u64::from(header.slots).div_ceil(SLOTS_PER_PAGE)) * JOURNAL_PAGE_BYTES as u64;
    if disk.size_bytes() < least_bytes {
        return Err(is_other(format!("it has {} bytes, expected {least_bytes} or more", disk.size_bytes())));
    }
    Ok(header)
}

/// The records that count and are not in the trees yet, with their slots. `Corrupt`: some are missing.
fn scan(
    disk: &dyn Disk,
    mark: JournalMark,
    header: JournalHeader,
    only_flushed: bool,
) -> Result<Vec<(u64, JournalRecord)>> {
    let (mut found, mut flushed_until) = (Vec::new(), 0);
    let mut reader = Reader { disk, mark, page: vec![0; JOURNAL_PAGE_BYTES], at_page: None };
    let slots = u64::from(header.slots);
    reader.require_present()?;
    let mut slot = 0;
    while slot < slots {
        let Some(record) = reader.record(slot)? else {
            reader.require_end(slot, slots, only_flushed)?;
            break;
        };
        match record {
            JournalRecord::Flushed { until } => flushed_until = until,
            _ if slot >= mark.from => found.push((slot, record)),
            _ => {}
        }
        slot = after(slot, record);
    }
    if only_flushed {
        found.retain(|(slot, _)| *slot < flushed_until);
    }
    Ok(found)
}

/// The slot that is written after this one.
fn after(slot: u64, record: JournalRecord) -> u64 {
    match record {
        JournalRecord::Flushed { .. } => (slot + 1).next_multiple_of(SLOTS_PER_PAGE),
        _ => slot + 1,
    }
}

struct Reader<'a> {
    disk: &'a dyn Disk,
    mark: JournalMark,
    page: Vec<u8>,
    /// The one that `page` holds.
    at_page: Option<u64>,
}

impl Reader<'_> {
    /// The record of this journal and generation in a slot.
    fn record(&mut self, slot: u64) -> Result<Option<JournalRecord>> {
        let page = slot / SLOTS_PER_PAGE;
        if self.at_page != Some(page) {
            self.at_page = None;
            self.disk.read_at(page_offset(slot), &mut self.page).map_err(|error| {
                Error::io(format_args!("{}: reading the journal", self.disk.name()), &error)
            })?;
            self.at_page = Some(page);
        }
        let (bytes, _) = self.page.as_chunks::<JOURNAL_SLOT_BYTES>();
        let place = JournalPlace { id: self.mark.id, generation: self.mark.generation, slot };
        Ok(JournalRecord::decode(&bytes[(slot % SLOTS_PER_PAGE) as usize], place))
    }

    /// Nothing is written into a generation before the metadata that begin it are durable: what is there of a later one has followed
    /// later metadata than these.
    fn require_present(&mut self) -> Result<()> {
        self.record(0)?;
        let (slots, _) = self.page.as_chunks::<JOURNAL_SLOT_BYTES>();
        let found = JournalRecord::generation(&slots[0], self.mark.id, 0);
        match found {
            Some(later) if later > self.mark.generation => {
                let what = format!(
                    "{} has gone on from later metadata than these: they are {} commits older",
                    self.disk.name(),
                    later - self.mark.generation
                );
                Err(Error::new(ErrorKind::Corrupt, what)
                    .hint("put the metadata in their place that the pool had last: an older copy lacks what was written since"))
            }
            _ => Ok(()),
        }
    }

    /// There is no record at `end`. Nothing may follow: each was written when those before it were there. After a power cut
    /// (`is_torn`) any that were not flushed may be missing. But what follows the record of a flush was written when that was over, if it does not
    /// say otherwise.
    fn require_end(&mut self, end: u64, slots: u64, is_torn: bool) -> Result<()> {
        let mut is_behind_flush = false;
        for slot in end + 1..slots.min(end + LOOK_AHEAD_SLOTS) {
            let Some(record) = self.record(slot)? else { continue };
            if !is_torn || (is_behind_flush && !self.is_beside_flush(slot)) {
                let what = format!("{}: record {end} is damaged, and {slot} is there", self.disk.name());
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            is_behind_flush |= matches!(record, JournalRecord::Flushed { .. });
        }
        Ok(())
    }

    /// Whether the record in a slot that was just read was written beside a flush.
    fn is_beside_flush(&self, slot: u64) -> bool {
        let (bytes, _) = self.page.as_chunks::<JOURNAL_SLOT_BYTES>();
        JournalRecord::is_beside_flush(&bytes[(slot % SLOTS_PER_PAGE) as usize])
    }
}

/// Does once more what a record says. After `NoMetadataSpace` it may be tried again.
fn carry_out<M: Disk>(metadata: &mut Metadata<M>, record: JournalRecord) -> Result<()> {
    match record {
        JournalRecord::Map { volume, block, target, partial } => {
            let partial = partial.map(|(base, units)| Partial { base, units });
            metadata.map_again(volume, block, target, partial)
        }
        JournalRecord::Unmap { volume, blocks: (begin, end) } => metadata.unmap_again(volume, begin..end),
        JournalRecord::Units { block, units } => metadata.add_units_again(block, units),
        JournalRecord::Flushed { .. } => Ok(()),
    }
}
