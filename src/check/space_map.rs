//! Both space maps: their own blocks are read and counted, then every stored count is compared with the references found.

use super::ahead::in_parallel;
use super::counts::{Counts, PAGE_ENTRIES};
use super::large_counts::LargeCounts;
use super::report::{Severity, Space};
use super::source::Source;
use super::walk::{Place, Walk};
use crate::checksum::BlockKind;
use crate::format::{Bitmap, IndexEntry, InlineCount, LargeCount, MetadataIndex, SpaceMapRoot};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MapKind {
    Data,
    Metadata,
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapKind::Data => "data",
            MapKind::Metadata => "metadata",
        })
    }
}

impl MapKind {
    fn index_place(self) -> Place {
        match self {
            MapKind::Data => Place::DataIndex,
            MapKind::Metadata => Place::MetadataIndex,
        }
    }

    fn large_counts_place(self) -> Place {
        match self {
            MapKind::Data => Place::DataLargeCounts,
            MapKind::Metadata => Place::MetadataLargeCounts,
        }
    }

    fn bitmap_place(self, index: u64) -> Place {
        match self {
            MapKind::Data => Place::DataBitmap(index),
            MapKind::Metadata => Place::MetadataBitmap(index),
        }
    }

    fn counts<'a>(self, walk: &'a Walk<'_>) -> &'a Counts {
        match self {
            MapKind::Data => &walk.data_counts,
            MapKind::Metadata => &walk.metadata_counts,
        }
    }
}

/// What a space map says, its own blocks counted, its bitmaps not read yet.
pub(super) struct SpaceMap {
    kind: MapKind,
    total_blocks: u64,
    allocated_blocks: u64,
    bitmaps: BTreeMap<u64, IndexEntry>,
    large_counts: LargeCounts,
    /// Whether all of it could be read so far.
    is_whole: bool,
    /// Whether there may be references to data blocks that the walk of the volumes did not see.
    is_data_incomplete: bool,
}

impl SpaceMap {
    /// Reads index and large counts, and counts the references to all blocks of the map.
    pub(super) fn read(walk: &mut Walk<'_>, kind: MapKind, root: &SpaceMapRoot) -> Self {
        let was_incomplete = std::mem::replace(&mut walk.is_incomplete, false);
        let (total_blocks, allocated_blocks) = (root.total_blocks.get(), root.allocated_blocks.get());
        let index_root = MetaBlock(root.bitmap_root.get());
        let bitmaps = match kind {
            MapKind::Data => {
                walk.tree::<IndexEntry>(index_root, Place::DataIndex);
                walk.entries::<IndexEntry>(index_root, Place::DataIndex).into_iter().collect()
            }
            MapKind::Metadata => read_metadata_index(walk, index_root, total_blocks),
        };
        let large_root = MetaBlock(root.large_counts_root.get());
        walk.tree::<LargeCount>(large_root, kind.large_counts_place());
        let mut large_counts = LargeCounts::default();
        walk.each_entry::<LargeCount>(large_root, kind.large_counts_place(), &mut |block, count| {
            large_counts.push(block, count.0.get());
        });
        let mut map = SpaceMap {
            kind,
            total_blocks,
            allocated_blocks,
            bitmaps,
            large_counts,
            is_whole: true,
            is_data_incomplete: was_incomplete,
        };
        map.reference_bitmaps(walk);
        map.is_whole = !walk.is_incomplete;
        walk.is_incomplete |= was_incomplete;
        map
    }

    /// Counts the references to the bitmaps and requires one for every 16,320 blocks.
    fn reference_bitmaps(&mut self, walk: &mut Walk<'_>) {
        let needed = self.total_blocks.div_ceil(PAGE_ENTRIES);
        let mut seen = HashSet::new();
        let place = self.kind.index_place();
        for (index, entry) in &self.bitmaps {
            let number = entry.bitmap();
            if !seen.insert(number) {
                let message = format_args!("block {number} is the bitmap {index} and an earlier one as well");
                walk.findings.note(Severity::Damage, None, place, message);
            }
            walk.reference(number, self.kind.bitmap_place(*index));
        }
        let beyond = self.bitmaps.split_off(&needed);
        if let Some(index) = beyond.keys().next() {
            let message =
                format_args!("a bitmap {index}, where the last one needed is {}", needed.wrapping_sub(1));
            walk.findings.note(Severity::Damage, None, place, message);
        }
        let present = self.bitmaps.len() as u64;
        if present < needed {
            let missing = (0..).zip(self.bitmaps.keys()).find(|(wanted, index)| wanted != *index);
            let first = missing.map_or(present, |(wanted, _)| wanted);
            let message =
                format_args!("{present} of {needed} bitmaps are there; the first one missing is {first}");
            walk.findings.note(Severity::Damage, None, place, message);
            walk.is_incomplete = true;
        }
    }

    /// Reads every bitmap and compares every count with the references found.
    pub(super) fn compare(mut self, walk: &mut Walk<'_>) -> Space {
        let bitmaps = std::mem::take(&mut self.bitmaps);
        let mut tally = Tally::new(self.kind);
        let sound = if walk.judges_ahead { self.sound_bitmaps(walk, &bitmaps) } else { Vec::new() };
        let mut sound = sound.into_iter().peekable();
        for (index, entry) in bitmaps {
            if let Some((_, allocated)) = sound.next_if(|(sound, _)| *sound == index) {
                tally.allocated += allocated;
                self.large_counts.take_page(index);
                continue;
            }
            let (number, place) = (entry.bitmap(), self.kind.bitmap_place(index));
            // A bitmap past the end of the device was reported when its reference was counted.
            let exists = walk.metadata_counts.get(number.0) > 0;
            match exists.then(|| walk.read(number, place, BlockKind::Bitmap)).flatten() {
                Some(block) => self.compare_bitmap(walk, &mut tally, (index, entry), Bitmap::new(&block)),
                None => self.is_whole = false,
            }
        }
        tally.end_run(walk);
        if self.is_whole && tally.allocated != self.allocated_blocks {
            let message = format_args!(
                "{} blocks are allocated by the superblock, {} by the bitmaps",
                self.allocated_blocks, tally.allocated
            );
            walk.findings.note(Severity::Damage, None, self.kind.index_place(), message);
        }
        if self.is_whole {
            self.report_unused_large_counts(walk);
        }
        let is_incomplete = match self.kind {
            MapKind::Data => self.is_data_incomplete,
            MapKind::Metadata => walk.is_incomplete,
        };
        tally.report_leaks(walk, is_incomplete);
        Space {
            blocks: self.total_blocks,
            allocated: self.allocated_blocks,
            over_counted: if is_incomplete { 0 } else { tally.over_counted },
            unreferenced: if is_incomplete { 0 } else { tally.unreferenced },
        }
    }

    /// The bitmaps with nothing odd about them, by index, each with the blocks that are allocated in it: judged by all processors.
    /// What is odd is left to [`SpaceMap::compare_bitmap`], which tells of it.
    fn sound_bitmaps(&self, walk: &Walk<'_>, bitmaps: &BTreeMap<u64, IndexEntry>) -> Vec<(u64, u64)> {
        let source = Source::new(walk.disk);
        let counts = self.kind.counts(walk);
        let bitmaps: Vec<_> = bitmaps.iter().map(|(index, entry)| (*index, *entry)).collect();
        let found = in_parallel(&bitmaps, |bitmaps, found: &mut Vec<(u64, u64)>, batch| {
            let numbers: Vec<_> = bitmaps.iter().map(|(_, entry)| entry.bitmap()).collect();
            let read = source.batch(&numbers, BlockKind::Bitmap, batch, &mut |at, block| {
                let (index, entry) = bitmaps[at];
                let has_reference = walk.metadata_counts.get(numbers[at].0) > 0;
                if let (Ok(block), true) = (block, has_reference) {
                    let allocated = self.allocated_if_sound((index, entry), Bitmap::new(block), counts);
                    found.extend(allocated.map(|allocated| (index, allocated)));
                }
                Ok(())
            });
            read.expect("what is handed out is the only one to end it, and does not");
        });
        let mut found = found.concat();
        found.sort_unstable();
        found
    }

    /// The blocks allocated in a bitmap if it says what was counted, and the index says what it says; `None` for any other.
    fn allocated_if_sound(
        &self,
        (index, entry): (u64, IndexEntry),
        bitmap: Bitmap<'_>,
        counts: &Counts,
    ) -> Option<u64> {
        let free = bitmap.free_entries();
        let is_index_right =
            entry.free.get() == free && entry.none_free_before.get() as usize <= bitmap.first_free();
        // Nothing was counted past the end of the device, so what is there must be free.
        let is_same = || bitmap.plain_words().eq(counts.plain_words(index));
        let has_large_counts = || self.large_counts.is_page(index, bitmap, counts);
        (is_index_right && is_same() && has_large_counts()).then(|| PAGE_ENTRIES - u64::from(free))
    }

    fn compare_bitmap(
        &mut self,
        walk: &mut Walk<'_>,
        tally: &mut Tally,
        (index, entry): (u64, IndexEntry),
        bitmap: Bitmap<'_>,
    ) {
        let (number, place) = (entry.bitmap(), self.kind.bitmap_place(index));
        let (found, stored) = (bitmap.free_entries(), entry.free.get());
        if found != stored {
            let message = format_args!("{stored} entries are free by the index, {found} by the bitmap");
            walk.findings.note(Severity::Damage, Some(number), place, message);
        }
        let (first_free, none_before) = (bitmap.first_free() as u64, u64::from(entry.none_free_before.get()));
        if none_before > first_free {
            let message =
                format_args!("the index hides free entry {first_free}: none before {none_before}, it says");
            walk.findings.note(Severity::Damage, Some(number), place, message);
        }
        let begin = index * PAGE_ENTRIES;
        let end = (self.total_blocks - begin).min(PAGE_ENTRIES);
        let mut past_the_end = 0;
        for (block, inline) in (begin..).zip(bitmap.iter()) {
            if block >= begin + end {
                past_the_end += u64::from(inline != InlineCount::Free);
                continue;
            }
            tally.allocated += u64::from(inline != InlineCount::Free);
            let references = self.kind.counts(walk).get(block);
            match self.exact(block, inline) {
                Ok(Some(count)) => {
                    tally.compare(walk, (number, place), block, (u64::from(count), references))
                }
                // Its large count may be in a part of the tree that could not be read, and was reported.
                Ok(None) => {}
                Err(message) => walk.findings.note(Severity::Damage, Some(number), place, message),
            }
        }
        if past_the_end > 0 {
            let message = format_args!(
                "{past_the_end} entries past the end of the device are not free: lost when the device grows"
            );
            walk.findings.note(Severity::Leak, Some(number), place, message);
        }
    }

    /// The count of a block, if it is known, or what is wrong with the way it is stored.
    fn exact(&mut self, block: u64, inline: InlineCount) -> Result<Option<u32>, String> {
        if let Some(count) = inline.exact() {
            return Ok(Some(count));
        }
        match self.large_counts.take(block) {
            Some(count) if count > 2 => Ok(Some(count)),
            Some(count) => Err(format!("{} block {block} has a large count of only {count}", self.kind)),
            None if self.is_whole => Err(format!("{} block {block} has no large count", self.kind)),
            None => Ok(None),
        }
    }

    /// Entries of the large counts that no bitmap asks for.
    fn report_unused_large_counts(&self, walk: &mut Walk<'_>) {
        let (unused, first) = self.large_counts.left();
        if let Some(first) = first {
            let message =
                format_args!("{unused} large counts that no bitmap asks for, the first for block {first}");
            walk.findings.note(Severity::Leak, None, self.kind.large_counts_place(), message);
        }
    }
}

/// The index block of the metadata space map: as many entries as the device needs.
fn read_metadata_index(walk: &mut Walk<'_>, root: MetaBlock, total_blocks: u64) -> BTreeMap<u64, IndexEntry> {
    let place = Place::MetadataIndex;
    if !walk.reference(root, place) {
        return BTreeMap::new();
    }
    let Some(block) = walk.read(root, place, BlockKind::Index) else { return BTreeMap::new() };
    let needed = usize::try_from(total_blocks.div_ceil(PAGE_ENTRIES)).unwrap_or(usize::MAX);
    let entries = &MetadataIndex::of(&block).entries;
    let is_used = |entry: &IndexEntry| {
        (entry.bitmap.get(), entry.free.get(), entry.none_free_before.get()) != (0, 0, 0)
    };
    if entries.iter().skip(needed).any(is_used) {
        walk.findings.note(Severity::Note, Some(root), place, "entries that are not in use are not zero");
    }
    (0..).zip(entries.iter().take(needed).copied()).collect()
}

/// The metadata device must have the blocks that its own space map speaks of. Looked at before the map is read.
pub(super) fn require_possible_size(walk: &mut Walk<'_>, total_blocks: u64) {
    let place = Place::Superblock;
    let device_blocks = walk.device_blocks();
    if total_blocks == 0 {
        let message = "the pool's metadata has no blocks at all";
        walk.findings.note(Severity::Damage, Some(MetaBlock::SUPERBLOCK), place, message);
    } else if total_blocks > META_BLOCKS_LIMIT {
        let message =
            format_args!("{total_blocks} metadata blocks, more than the {META_BLOCKS_LIMIT} that can be");
        walk.findings.note(Severity::Damage, Some(MetaBlock::SUPERBLOCK), place, message);
    } else if total_blocks > device_blocks {
        let kib = total_blocks.saturating_mul(META_BLOCK_BYTES as u64) / 1024;
        let message = format_args!(
            "the pool's metadata has {total_blocks} blocks ({kib} KiB), but only {device_blocks} are here: cut short?"
        );
        walk.findings.note(Severity::Damage, Some(MetaBlock::SUPERBLOCK), place, message);
    }
}

/// Neighbouring blocks whose counts are wrong in the same way.
struct Run {
    bitmap: (MetaBlock, Place),
    begin: u64,
    end: u64,
    count: u64,
    references: u64,
}

/// What the comparison of one map adds up to.
struct Tally {
    kind: MapKind,
    allocated: u64,
    over_counted: u64,
    unreferenced: u64,
    run: Option<Run>,
    /// Runs with counts above their references: leaks, if the walk saw every reference.
    leaks: Vec<Run>,
    leaks_omitted: u64,
}

/// Runs of leaks that are kept until it is known whether they are any.
const LEAK_RUNS_LIMIT: usize = 10_000;

impl Tally {
    fn new(kind: MapKind) -> Self {
        Tally {
            kind,
            allocated: 0,
            over_counted: 0,
            unreferenced: 0,
            run: None,
            leaks: Vec::new(),
            leaks_omitted: 0,
        }
    }

    fn compare(
        &mut self,
        walk: &mut Walk<'_>,
        bitmap: (MetaBlock, Place),
        block: u64,
        (count, references): (u64, u64),
    ) {
        if count == references {
            return;
        }
        self.over_counted += u64::from(count > references);
        self.unreferenced += u64::from(references == 0);
        match &mut self.run {
            Some(run)
                if run.end == block
                    && (run.count, run.references) == (count, references)
                    && run.bitmap.0 == bitmap.0 =>
            {
                run.end += 1;
            }
            _ => {
                self.end_run(walk);
                self.run = Some(Run { bitmap, begin: block, end: block + 1, count, references });
            }
        }
    }

    fn end_run(&mut self, walk: &mut Walk<'_>) {
        let Some(run) = self.run.take() else { return };
        if run.count < run.references {
            let message = format_args!(
                "{}: count {}, but {} references: too low to keep what is in use from being given away",
                self.blocks_of(&run),
                run.count,
                run.references
            );
            walk.findings.note(Severity::Damage, Some(run.bitmap.0), run.bitmap.1, message);
        } else if self.leaks.len() < LEAK_RUNS_LIMIT {
            self.leaks.push(run);
        } else {
            self.leaks_omitted += 1;
        }
    }

    fn blocks_of(&self, run: &Run) -> String {
        if run.end - run.begin == 1 {
            format!("{} block {}", self.kind, run.begin)
        } else {
            format!("{} blocks {} to {}", self.kind, run.begin, run.end - 1)
        }
    }

    fn report_leaks(&self, walk: &mut Walk<'_>, is_incomplete: bool) {
        if self.over_counted == 0 {
            return;
        }
        if is_incomplete {
            let message = format_args!(
                "{} {} blocks have counts above the references found; with parts unreadable, that says nothing",
                self.over_counted, self.kind
            );
            walk.findings.note(Severity::Note, None, self.kind.index_place(), message);
            return;
        }
        for run in &self.leaks {
            let message = match run.references {
                0 => format!("{}: count {}, and nothing refers to them", self.blocks_of(run), run.count),
                references => {
                    format!("{}: count {}, but {references} references", self.blocks_of(run), run.count)
                }
            };
            walk.findings.note(Severity::Leak, Some(run.bitmap.0), run.bitmap.1, message);
        }
        if self.leaks_omitted > 0 {
            let message = format_args!("and {} more runs of leaked blocks", self.leaks_omitted);
            walk.findings.note(Severity::Leak, None, self.kind.index_place(), message);
        }
    }
}
