//! What a journal holds, brought into the metadata that it belongs to.
//!
//! Each commit on the way says how far it has got, and the last one that there is no journal any more. Whoever is cut off in
//! between begins where the last of them ended: the journal itself is only read.

use super::{BootId, JournalRecord, commit, distrust, page_offset};
use crate::disk::{Disk, flush_data};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    JOURNAL_HEADER_BYTES, JOURNAL_PAGE_BYTES, JOURNAL_SLOT_BYTES, JournalHeader, JournalMark, JournalPlace,
    SLOTS_PER_PAGE,
};
use crate::metadata::{Access, Base, Metadata, Partial};

/// Records that one transaction brings in: what it takes in memory is bounded. In tests few, so that there are several.
const BATCH_RECORDS: usize = if cfg!(test) { 2 } else { 64 * 1024 };

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
/// says can never have followed what the metadata hold. `NeedsCheck`: the metadata were opened for reading, because they ask for
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
        .hint(
            "put the file `journal` back into the pool's directory; without it what was flushed last is lost",
        )
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
    let records = scan(disk, mark, after_power_cut)?;
    metadata.begin_replay();
    let commit = |metadata: &mut Metadata<M>| {
        // What could not be flushed may be lost, and what names it then counts no more.
        let flushed = flush_data(data).map_err(|error| {
            let error = Error::io(format_args!("{}: flushing the data disk", data.name()), &error);
            match distrust(disk, mark.id) {
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
    metadata.set_journal(None);
    commit(metadata)?;
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
        .hint("put the right file back; without it what was flushed last is lost")
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
    Ok(header)
}

/// The records that count and are not in the trees yet, with their slots.
fn scan(disk: &dyn Disk, mark: JournalMark, only_flushed: bool) -> Result<Vec<(u64, JournalRecord)>> {
    let name = disk.name();
    let slots =
        (disk.size_bytes() / JOURNAL_PAGE_BYTES as u64).saturating_sub(1).saturating_mul(SLOTS_PER_PAGE);
    let (mut found, mut flushed) = (Vec::new(), 0);
    let mut page = vec![0; JOURNAL_PAGE_BYTES];
    let mut slot = 0;
    'pages: while slot < slots.min(u64::from(u32::MAX)) {
        disk.read_at(page_offset(slot), &mut page)
            .map_err(|error| Error::io(format_args!("{name}: reading the journal"), &error))?;
        let (bytes, _) = page.as_chunks::<JOURNAL_SLOT_BYTES>();
        for bytes in bytes {
            let place = JournalPlace { id: mark.id, generation: mark.generation, slot };
            let Some(record) = JournalRecord::decode(bytes, place) else { break 'pages };
            slot += 1;
            if record == JournalRecord::Flushed {
                flushed = found.len();
                slot = slot.next_multiple_of(SLOTS_PER_PAGE);
                break;
            }
            if place.slot >= mark.from {
                found.push((place.slot, record));
            }
        }
    }
    if only_flushed {
        found.truncate(flushed);
    }
    Ok(found)
}

/// Does once more what a record says. After `NoMetadataSpace` it may be tried again.
fn carry_out<M: Disk>(metadata: &mut Metadata<M>, record: JournalRecord) -> Result<()> {
    match record {
        JournalRecord::Map { volume, block, target, partial } => {
            let partial =
                partial.map(|(base, units)| Partial { base: base.map_or(Base::Zeros, Base::Block), units });
            metadata.map_again(volume, block, target, partial)
        }
        JournalRecord::Unmap { volume, blocks: (begin, end) } => metadata.unmap_again(volume, begin..end),
        JournalRecord::Units { block, units } => metadata.add_units_again(block, units),
        JournalRecord::Flushed => Ok(()),
    }
}
