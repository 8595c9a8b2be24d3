//! The way back: which volumes have data in a region of the data device, and where.
//!
//! Each leaf is read once, however many volumes share it, in the order of the disk and by all processors; what in it touches the
//! region is kept. Then the volumes are gone through, each only where its tree has something of that. The lines come in the order
//! of the data, and volumes that share much have far more lines than there are mappings: so each turn through the volumes takes the
//! next lines only, as many as fit into bounded memory, and leaves alone whatever lies elsewhere.

use crate::check::ahead::in_parallel;
use crate::check::dump::{Plan, Text};
use crate::check::forest::{Descent, Forest, LeafPlace, Refuse, Union, read_leaves_with};
use crate::check::source::Source;
use crate::error::{Error, Result};
use crate::format::MappingRecord;
use crate::units::MetaBlock;
use std::collections::HashMap;
use std::ops::Range;

/// Lines that are worked out in one turn.
const LINES: usize = 1 << 20;

/// Neighbouring data blocks that a volume has as neighbouring virtual ones. The order of the fields is that of the output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Found {
    data: u64,
    length: u64,
    volume: u64,
    begin: u64,
}

impl Found {
    /// Takes in what follows, if it does.
    fn join(&mut self, hit: &Hit) -> bool {
        let follows = hit.follows(self.begin + self.length, self.data + self.length);
        self.length += if follows { hit.length } else { 0 };
        follows
    }
}

/// The same inside a leaf, whichever volumes have that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hit {
    begin: u64,
    data: u64,
    length: u64,
}

impl Hit {
    fn follows(&self, key: u64, data: u64) -> bool {
        self.begin == key && self.data == data
    }
}

/// What touches the region, by leaf. Leaves that do not are not in it.
type Hits = HashMap<MetaBlock, Box<[Hit]>>;

/// Writes what lies in the regions, of every volume that has it (thin_rmap tells only the first of those that share a leaf).
pub(in crate::check) fn rmap(
    source: Source<'_>,
    plan: &Plan,
    regions: &[Range<u64>],
    text: &mut Text<'_>,
) -> Result<()> {
    rmap_in_turns(source, plan, regions, LINES, text)
}

/// As [`rmap`], with at most about twice `lines` lines in memory.
pub(in crate::check) fn rmap_in_turns(
    source: Source<'_>,
    plan: &Plan,
    regions: &[Range<u64>],
    lines: usize,
    text: &mut Text<'_>,
) -> Result<()> {
    let mut forest = Forest::<MappingRecord>::new(source);
    let mut union = Union::default();
    for volume in &plan.volumes {
        union.add(&mut forest, volume.root, &mut Refuse)?;
    }
    let hits = hits(source, &union, &joined(regions))?;
    drop(union);
    let mut spans = HashMap::new();
    let mut window = 0..u64::MAX;
    while window.start < u64::MAX {
        let mut turn = Turn::new(&hits, &mut spans, window, lines);
        for volume in &plan.volumes {
            turn.volume = volume.record.id.get();
            forest.descend(volume.root, &mut Refuse, &mut turn)?;
            turn.close(None);
        }
        turn.found.sort_unstable();
        for Found { data, length, volume, begin } in &turn.found {
            text.line(
                &["data ", "..", " -> thin(", ") ", "..", "\n"],
                [*data, data + length, *volume, *begin, begin + length],
            )?;
        }
        window = turn.window.end..u64::MAX;
    }
    text.flush()
}

/// Reads every leaf, for what touches the regions, which ascend and do not touch each other.
fn hits(source: Source<'_>, union: &Union, regions: &[Range<u64>]) -> Result<Hits> {
    #[derive(Default)]
    struct Part {
        hits: Vec<(MetaBlock, Box<[Hit]>)>,
        fault: Option<(MetaBlock, Error)>,
    }
    let places: Vec<LeafPlace> = union.leaves().map(|leaf| leaf.place).collect();
    let parts = in_parallel(&places, |places, part: &mut Part, batch| {
        let mut number = places[0].number;
        let mut touching: Vec<Hit> = Vec::new();
        let read =
            read_leaves_with::<MappingRecord>(source, places, batch, &mut Refuse, &mut |leaf, entries| {
                number = leaf.number;
                for (begin, record) in entries.iter() {
                    let data = record.mapping().block.0;
                    if !is_in(regions, data) {
                        continue;
                    }
                    match touching.last_mut() {
                        // No other region begins where one ends.
                        Some(last)
                            if last.begin + last.length == begin && last.data + last.length == data =>
                        {
                            last.length += 1;
                        }
                        Some(_) | None => touching.push(Hit { begin, data, length: 1 }),
                    }
                }
                if !touching.is_empty() {
                    part.hits.push((number, touching.as_slice().into()));
                    touching.clear();
                }
                Ok(())
            });
        // The first on the disk is told of, whichever processor met it.
        if let Err(error) = read
            && part.fault.as_ref().is_none_or(|(other, _)| number < *other)
        {
            part.fault = Some((number, error));
        }
    });
    let mut hits = Hits::new();
    let mut faults = Vec::new();
    for part in parts {
        hits.extend(part.hits);
        faults.extend(part.fault);
    }
    match faults.into_iter().min_by_key(|(number, _)| *number) {
        Some((_, error)) => Err(error),
        None => Ok(hits),
    }
}

/// What all hits below a node have in common.
#[derive(Clone, Copy)]
struct Span {
    /// The lowest data block, and the highest first one of a hit.
    data: (u64, u64),
    first: Hit,
    last: Hit,
}

impl Span {
    fn of(hits: &[Hit]) -> Option<Span> {
        hits.iter().map(|hit| Span { data: (hit.data, hit.data), first: *hit, last: *hit }).reduce(Span::and)
    }

    /// Together with the next one by key.
    fn and(self, next: Span) -> Span {
        let data = (self.data.0.min(next.data.0), self.data.1.max(next.data.1));
        Span { data, first: self.first, last: next.last }
    }
}

/// One turn through the volumes, for the lines that begin with data blocks of a window.
struct Turn<'a> {
    hits: &'a Hits,
    /// Of internal nodes that were gone through; `None` for those without hits.
    spans: &'a mut HashMap<MetaBlock, Option<Span>>,
    /// Becomes smaller when there is too much in it.
    window: Range<u64>,
    lines: usize,
    /// So many lines are too many.
    limit: usize,
    found: Vec<Found>,
    volume: u64,
    /// What the volume's next hit may go on with.
    open: Option<Found>,
    /// What was met so far below the nodes that are entered.
    entered: Vec<Option<Span>>,
}

impl<'a> Turn<'a> {
    fn new(
        hits: &'a Hits,
        spans: &'a mut HashMap<MetaBlock, Option<Span>>,
        window: Range<u64>,
        lines: usize,
    ) -> Self {
        let (found, entered) = (Vec::new(), Vec::new());
        Turn { hits, spans, window, lines, limit: 2 * lines, found, volume: 0, open: None, entered }
    }

    /// Ends what is open, and goes on with `next`.
    fn close(&mut self, next: Option<Found>) {
        if let Some(done) = std::mem::replace(&mut self.open, next).filter(|run| self.is_wanted(run)) {
            self.found.push(done);
            if self.found.len() >= self.limit {
                self.narrow();
            }
        }
    }

    fn is_wanted(&self, run: &Found) -> bool {
        self.window.contains(&run.data)
    }

    fn found_of(&self, hit: &Hit) -> Found {
        Found { data: hit.data, length: hit.length, volume: self.volume, begin: hit.begin }
    }

    /// Leaves all but the first lines to a later turn: always whole data blocks, and one at least.
    fn narrow(&mut self) {
        let (_, pivot, _) = self.found.select_nth_unstable(self.lines);
        let pivot = pivot.data;
        let has_less = self.found.iter().any(|found| found.data < pivot);
        self.window.end = if has_less { pivot } else { pivot + 1 };
        let end = self.window.end;
        self.found.retain(|found| found.data < end);
        self.limit = 2 * self.lines.max(self.found.len());
    }

    /// Whether there is nothing below a node that this turn wants. Then it is passed by.
    fn passes_by(&mut self, span: &Span) -> bool {
        let is_elsewhere = span.data.0 >= self.window.end || span.data.1 < self.window.start;
        let goes_on = self.open.is_some_and(|mut run| self.is_wanted(&run) && run.join(&span.first));
        if !is_elsewhere || goes_on {
            return false;
        }
        // What follows may go on with its last hit; then it is not wanted either.
        let last = self.found_of(&span.last);
        self.close(Some(last));
        true
    }

    fn meet(&mut self, span: Option<Span>) {
        if let (Some(above), Some(span)) = (self.entered.last_mut(), span) {
            *above = Some(above.map_or(span, |before| before.and(span)));
        }
    }
}

impl Descent for Turn<'_> {
    fn enter(&mut self, place: &LeafPlace) -> Result<bool> {
        let is_entered = match self.spans.get(&place.number).copied() {
            None => true,
            Some(None) => false,
            Some(Some(span)) => {
                let is_entered = !self.passes_by(&span);
                if !is_entered {
                    self.meet(Some(span));
                }
                is_entered
            }
        };
        if is_entered {
            self.entered.push(None);
        }
        Ok(is_entered)
    }

    fn leave(&mut self, place: &LeafPlace) -> Result<()> {
        let span = self.entered.pop().flatten();
        self.spans.insert(place.number, span);
        self.meet(span);
        Ok(())
    }

    fn leaf(&mut self, place: LeafPlace) -> Result<()> {
        let hits = self.hits;
        let Some(hits) = hits.get(&place.number) else { return Ok(()) };
        for hit in hits {
            if !self.open.as_mut().is_some_and(|run| run.join(hit)) {
                let next = self.found_of(hit);
                self.close(Some(next));
            }
        }
        self.meet(Span::of(hits));
        Ok(())
    }
}

/// The regions in order, those that touch joined.
fn joined(regions: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = regions.to_vec();
    sorted.sort_by_key(|region| region.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for region in sorted {
        match joined.last_mut() {
            Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
            Some(_) | None => joined.push(region),
        }
    }
    joined
}

fn is_in(regions: &[Range<u64>], block: u64) -> bool {
    let next = regions.partition_point(|region| region.start <= block);
    next > 0 && regions[next - 1].contains(&block)
}
