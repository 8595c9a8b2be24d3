//! The leaves of one volume, or of a part that volumes share, from mappings in order.
//!
//! A leaf is written when it is full and more than a leaf is waiting behind it, so that the last two can share what is
//! left. A shared part keeps its leaves where their size allows it: a leaf below a root has at least a third of its
//! capacity. Where it does not, mappings before, after or of the part itself move into leaves of the volume's own.

use super::output::Output;
use super::tree::{node_sizes, write_node};
use crate::check::counts::Counts;
use crate::check::stream::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{MappingRecord, Node, NodeKind, capacity, smallest_occupancy};
use crate::units::{DataBlock, MetaBlock, SnapTime};
use std::collections::HashMap;
use std::fmt;

const CAPACITY: usize = capacity(8);
const FEWEST: usize = smallest_occupancy(CAPACITY);

/// A leaf that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    pub(super) first_key: u64,
    pub(super) last_key: u64,
    pub(super) number: MetaBlock,
    pub(super) entries: usize,
    /// The latest time in it.
    pub(super) youngest: SnapTime,
    /// Whether it is a part's.
    pub(super) is_shared: bool,
}

/// Where leaves go, and what is counted on the way.
pub(super) struct Ground<'a, 'b> {
    pub(super) output: &'a mut Output<'b>,
    /// References to data blocks by the leaves written.
    pub(super) data: &'a mut Counts,
    pub(super) data_blocks: u64,
    /// What is mapped by somebody as his own.
    pub(super) own: &'a mut Own,
    /// From this time on, mappings are the volume's own; `None` in a part.
    pub(super) own_since: Option<SnapTime>,
}

/// Data blocks that somebody maps as his own: at the time of his last snapshot or later, so that dm-thin would write to them in place.
#[derive(Default)]
pub(super) struct Own {
    blocks: Vec<u64>,
    /// Leaves of parts in which some are, each with one.
    leaves: HashMap<MetaBlock, DataBlock>,
}

impl Own {
    /// For so many data blocks.
    pub(super) fn new(data_blocks: u64) -> Self {
        Own { blocks: vec![0; data_blocks.div_ceil(64) as usize], leaves: HashMap::new() }
    }

    fn note(&mut self, block: DataBlock) {
        self.blocks[(block.0 / 64) as usize] |= 1 << (block.0 % 64);
    }

    /// Notes what is a volume's own, since it was last snapshotted, in a leaf that it has from a part: nothing in any sound pool.
    pub(super) fn note_leaf(&mut self, output: &Output<'_>, leaf: &Leaf, since: SnapTime) -> Result<()> {
        if !leaf.is_shared || leaf.youngest < since || self.leaves.contains_key(&leaf.number) {
            return Ok(());
        }
        for (_, record) in entries_of(output, leaf.number)? {
            let mapping = record.mapping();
            if mapping.time >= since {
                self.note(mapping.block);
                self.leaves.entry(leaf.number).or_insert(mapping.block);
            }
        }
        Ok(())
    }

    /// A block that is somebody's own and not his alone, by all references to data blocks and to leaves.
    pub(super) fn disputed(&self, counts: &Counts, leaf_counts: &Counts) -> Option<DataBlock> {
        let is_disputed = |block: &u64| counts.get(*block) > 1;
        let of_word = |(index, word): (usize, &u64)| {
            let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
            bits.map(|bit| index as u64 * 64 + bit).find(is_disputed)
        };
        let found = if counts.has_shared() { self.blocks.iter().enumerate().find_map(of_word) } else { None };
        let in_leaves = self.leaves.iter().filter(|(leaf, _)| leaf_counts.get(leaf.0) > 1);
        found.map(DataBlock).or(in_leaves.map(|(_, block)| *block).min())
    }
}

/// Leaves being written.
#[derive(Default)]
pub(super) struct Leaves {
    done: Vec<Leaf>,
    waiting: Vec<(u64, MappingRecord)>,
    last_key: Option<u64>,
    /// The shared leaf that everything so far comes from, if nothing else was seen.
    is_all_of: Option<Leaf>,
    mapped_blocks: u64,
}

impl Leaves {
    /// Takes a run of mappings.
    pub(super) fn push(&mut self, ground: &mut Ground<'_, '_>, run: &Run) -> Result<()> {
        self.require_order(run.begin)?;
        let data_end = run.data_begin.checked_add(run.length);
        if run.length == 0 || run.begin.checked_add(run.length).is_none() {
            return Err(invalid(format_args!("a run of {} blocks from {} on", run.length, run.begin)));
        }
        if data_end.is_none_or(|end| end > ground.data_blocks.min(DataBlock::LIMIT)) {
            let message =
                format_args!("data block {} is past the end, {} blocks", run.data_begin, ground.data_blocks);
            return Err(invalid(message).hint("--nr-data-blocks says how large the data device is"));
        }
        self.is_all_of = None;
        self.last_key = Some(run.begin + (run.length - 1));
        self.mapped_blocks += run.length;
        for index in 0..run.length {
            let (key, mapping) = run.mapping(index);
            self.wait(ground, key.0, MappingRecord::new(mapping))?;
        }
        Ok(())
    }

    /// Takes a part that other volumes have as well, by its leaves.
    pub(super) fn push_shared(&mut self, ground: &mut Ground<'_, '_>, part: &[Leaf]) -> Result<()> {
        for leaf in part {
            self.require_order(leaf.first_key)?;
            let is_first = self.last_key.is_none();
            self.last_key = Some(leaf.last_key);
            self.mapped_blocks += leaf.entries as u64;
            let is_short = (1..FEWEST).contains(&self.waiting.len());
            if is_short || leaf.entries < FEWEST {
                self.swallow(ground, leaf)?;
            } else {
                self.write_waiting(ground)?;
                self.done.push(*leaf);
            }
            self.is_all_of = (is_first && self.done.is_empty()).then_some(*leaf);
        }
        Ok(())
    }

    fn require_order(&self, key: u64) -> Result<()> {
        match self.last_key {
            Some(last) if key <= last => {
                Err(invalid(format_args!("virtual block {key} comes after {last}: they must ascend")))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn wait(&mut self, ground: &mut Ground<'_, '_>, key: u64, record: MappingRecord) -> Result<()> {
        self.waiting.push((key, record));
        if self.waiting.len() == 2 * CAPACITY {
            self.write_first(ground, CAPACITY)?;
        }
        Ok(())
    }

    /// Copies the entries of a leaf to those that are waiting.
    fn swallow(&mut self, ground: &mut Ground<'_, '_>, leaf: &Leaf) -> Result<()> {
        for (key, record) in entries_of(ground.output, leaf.number)? {
            self.wait(ground, key, record)?;
        }
        Ok(())
    }

    fn write_first(&mut self, ground: &mut Ground<'_, '_>, count: usize) -> Result<()> {
        let entries = &self.waiting[..count];
        let number = write_node(ground.output, NodeKind::Leaf, entries)?;
        let mut youngest = SnapTime(0);
        for (_, record) in entries {
            let mapping = record.mapping();
            assert!(ground.data.add(mapping.block.0), "the range was looked at when it came in");
            youngest = youngest.max(mapping.time);
            if ground.own_since.is_some_and(|since| mapping.time >= since) {
                ground.own.note(mapping.block);
            }
        }
        self.done.push(Leaf {
            first_key: entries[0].0,
            last_key: entries[count - 1].0,
            number,
            entries: count,
            youngest,
            is_shared: false,
        });
        self.waiting.drain(..count);
        Ok(())
    }

    fn write_waiting(&mut self, ground: &mut Ground<'_, '_>) -> Result<()> {
        for size in node_sizes(self.waiting.len(), CAPACITY) {
            self.write_first(ground, size)?;
        }
        Ok(())
    }

    /// Writes what is left. Answers the leaves, which have no references yet, and the mappings in them.
    pub(super) fn finish(mut self, ground: &mut Ground<'_, '_>) -> Result<(Vec<Leaf>, u64)> {
        if let (Some(leaf), true) = (self.is_all_of, self.done.is_empty()) {
            return Ok((vec![leaf], self.mapped_blocks));
        }
        if (1..FEWEST).contains(&self.waiting.len())
            && let Some(leaf) = self.done.pop()
        {
            // Own leaves never leave so few behind: this one is shared.
            let mut joined = entries_of(ground.output, leaf.number)?;
            joined.append(&mut self.waiting);
            self.waiting = joined;
        }
        self.write_waiting(ground)?;
        Ok((self.done, self.mapped_blocks))
    }
}

/// The entries of a leaf that was written.
pub(super) fn entries_of(output: &Output<'_>, number: MetaBlock) -> Result<Vec<(u64, MappingRecord)>> {
    let block = output.read(number)?;
    match Node::<MappingRecord>::parse(&block) {
        Ok(Node::Leaf(entries)) => Ok(entries.iter().collect()),
        Ok(Node::Internal(_)) | Err(_) => Err(Error::corrupt(number, "reads back as something else")),
    }
}

fn invalid(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, message.to_string())
}
