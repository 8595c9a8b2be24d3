//! Two volumes held side by side: what is the same, what differs, what only one has. In thin_delta's XML, to the
//! byte, but for one thing: in the verbose form the data blocks of a range follow each other. There thin_delta joins what
//! follows each other in the volume only, and says where the first block is.

use crate::check::dump::{Text, pool_record};
use crate::check::forest::{Forest, LeafPlace, Refuse, read_leaves};
use crate::check::source::{BATCH_BLOCKS, Source};
use crate::error::Result;
use crate::format::{MappingRecord, Superblock};
use crate::units::MetaBlock;
use std::collections::VecDeque;

/// A volume to compare: how it was named, and its tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::check) struct Side {
    /// The volume's number, unless only its root was given.
    pub(in crate::check) volume: Option<u64>,
    pub(in crate::check) root: MetaBlock,
}

/// Neighbouring virtual blocks of one kind of difference; data blocks as far as there are any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    kind: Kind,
    begin: u64,
    left: u64,
    right: u64,
    length: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Same,
    Different,
    LeftOnly,
    RightOnly,
}

impl Kind {
    fn tag(self) -> &'static str {
        match self {
            Kind::Same => "same",
            Kind::Different => "different",
            Kind::LeftOnly => "left_only",
            Kind::RightOnly => "right_only",
        }
    }
}

impl Stretch {
    /// Whether `next` goes on where this ends.
    fn is_continued_by(&self, next: &Stretch) -> bool {
        let goes_on = |from: u64, to: u64| from + self.length == to;
        self.kind == next.kind
            && goes_on(self.begin, next.begin)
            && match self.kind {
                Kind::Same | Kind::LeftOnly => goes_on(self.left, next.left),
                Kind::RightOnly => goes_on(self.right, next.right),
                Kind::Different => goes_on(self.left, next.left) && goes_on(self.right, next.right),
            }
    }
}

/// Writes the difference.
pub(in crate::check) fn delta(
    source: Source<'_>,
    superblock: &Superblock,
    sides: [Side; 2],
    is_verbose: bool,
    text: &mut Text<'_>,
) -> Result<()> {
    let mut forest = Forest::<MappingRecord>::new(source);
    let mut cursor = |side: &Side| -> Result<Cursor<'_>> {
        let mut leaves = Vec::new();
        forest.leaves(side.root, &mut Refuse, &mut leaves)?;
        Ok(Cursor { source, leaves: leaves.into(), entries: VecDeque::new() })
    };
    let mut left = cursor(&sides[0])?;
    let mut right = cursor(&sides[1])?;
    let pool = pool_record(superblock);
    text.words(&format!(
        "<superblock uuid=\"{}\" time=\"{}\" transaction=\"{}\" data_block_size=\"{}\" nr_data_blocks=\"{}\">\n",
        pool.uuid, pool.time.0, pool.transaction_id, pool.data_block_sectors, pool.data_blocks
    ))?;
    let named = |name: &str, side: &Side| match side.volume {
        Some(volume) => format!("{name}=\"{volume}\""),
        None => format!("{name}_root=\"{}\"", side.root),
    };
    text.words(&format!("  <diff {} {}>\n", named("left", &sides[0]), named("right", &sides[1])))?;
    let mut writer = Writer { text, is_verbose, open: None, stretch: None };
    loop {
        let stretch = match (left.peek()?, right.peek()?) {
            (None, None) => break,
            (Some((key, left_at)), other) if other.is_none_or(|(other, _)| key < other) => {
                left.advance();
                Stretch { kind: Kind::LeftOnly, begin: key, left: left_at, right: 0, length: 1 }
            }
            (Some((key, left_at)), Some((other, right_at))) if key == other => {
                left.advance();
                right.advance();
                let kind = if left_at == right_at { Kind::Same } else { Kind::Different };
                Stretch { kind, begin: key, left: left_at, right: right_at, length: 1 }
            }
            (_, Some((key, right_at))) => {
                right.advance();
                Stretch { kind: Kind::RightOnly, begin: key, left: 0, right: right_at, length: 1 }
            }
            (Some(_), None) => break, // taken by the second arm
        };
        writer.push(stretch)?;
    }
    writer.finish()?;
    text.words("  </diff>\n</superblock>")?;
    text.flush()
}

/// The mappings of one volume, one after the other.
struct Cursor<'a> {
    source: Source<'a>,
    leaves: VecDeque<LeafPlace>,
    entries: VecDeque<(u64, u64)>,
}

impl Cursor<'_> {
    /// The next virtual block and its data block.
    fn peek(&mut self) -> Result<Option<(u64, u64)>> {
        while self.entries.is_empty() && !self.leaves.is_empty() {
            let count = self.leaves.len().min(BATCH_BLOCKS);
            let batch: Vec<_> = self.leaves.drain(..count).collect();
            let entries = &mut self.entries;
            read_leaves::<MappingRecord>(self.source, &batch, &mut Refuse, &mut |_, found| {
                entries.extend(found.iter().map(|(key, record)| (key, record.mapping().block.0)));
                Ok(())
            })?;
        }
        Ok(self.entries.front().copied())
    }

    fn advance(&mut self) {
        self.entries.pop_front();
    }
}

struct Writer<'a, 'b> {
    text: &'a mut Text<'b>,
    is_verbose: bool,
    /// The element that is open, of the verbose form.
    open: Option<Kind>,
    stretch: Option<Stretch>,
}

impl Writer<'_, '_> {
    fn push(&mut self, next: Stretch) -> Result<()> {
        // Without data blocks only the virtual ones need to go on.
        let continues = |stretch: &Stretch| match self.is_verbose {
            true => stretch.is_continued_by(&next),
            false => stretch.kind == next.kind && stretch.begin + stretch.length == next.begin,
        };
        match &mut self.stretch {
            Some(stretch) if continues(stretch) => {
                stretch.length += 1;
                Ok(())
            }
            _ => match self.stretch.replace(next) {
                Some(done) => self.write(&done),
                None => Ok(()),
            },
        }
    }

    fn write(&mut self, stretch: &Stretch) -> Result<()> {
        let Stretch { kind, begin, left, right, length } = *stretch;
        if !self.is_verbose {
            let tag = kind.tag();
            return self
                .text
                .line(&[&format!("    <{tag} begin=\""), "\" length=\"", "\"/>\n"], [begin, length]);
        }
        if self.open != Some(kind) {
            self.close()?;
            self.text.words(&format!("    <{}>\n", kind.tag()))?;
            self.open = Some(kind);
        }
        match kind {
            Kind::Different => self.text.line(
                &[
                    "      <range begin=\"",
                    "\" left_data_begin=\"",
                    "\" right_data_begin=\"",
                    "\" length=\"",
                    "\"/>\n",
                ],
                [begin, left, right, length],
            ),
            Kind::Same | Kind::LeftOnly | Kind::RightOnly => {
                let data = if kind == Kind::RightOnly { right } else { left };
                self.text.line(
                    &["      <range begin=\"", "\" data_begin=\"", "\" length=\"", "\"/>\n"],
                    [begin, data, length],
                )
            }
        }
    }

    fn close(&mut self) -> Result<()> {
        match self.open.take() {
            Some(kind) => self.text.words(&format!("    </{}>\n", kind.tag())),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(stretch) = self.stretch.take() {
            self.write(&stretch)?;
        }
        self.close()
    }
}
