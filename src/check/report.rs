//! What a check found, for programs and people.
//!
//! Findings are collected, not fatal at the first; past [`CheckOptions::findings_limit`](super::CheckOptions) they are
//! only counted, so that a thoroughly damaged device cannot fill the memory with words.

use crate::units::{MetaBlock, VolumeId};
use serde::Serialize;
use std::fmt::{self, Display};
use std::ops::Range;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing, wrong for nobody.
    Note,
    /// Space that nothing uses is taken: repairable, and safe to go on with.
    Leak,
    /// Something that the format promises does not hold.
    Damage,
}

/// The verdict over a whole device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything holds.
    Clean,
    /// Leaks only.
    Leaks,
    /// Damage.
    Damage,
}

/// Part of a volume that a finding touches, in virtual blocks. `end` is one past the last; `None` for no bound.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Touched {
    /// The volume's number.
    #[serde(serialize_with = "volume_number")]
    pub volume: VolumeId,
    /// First virtual block.
    pub begin: u64,
    /// One past the last virtual block that can be lost, if there is a bound.
    pub end: Option<u64>,
}

fn volume_number<S: serde::Serializer>(volume: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(volume.get())
}

fn block_number<S: serde::Serializer>(block: &Option<MetaBlock>, serializer: S) -> Result<S::Ok, S::Error> {
    block.map(|block| block.0).serialize(serializer)
}

fn block_numbers<S: serde::Serializer>(blocks: &[MetaBlock], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(blocks.iter().map(|block| block.0))
}

/// One thing found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The metadata block it was found in, if it was in one.
    #[serde(serialize_with = "block_number")]
    pub block: Option<MetaBlock>,
    /// The structure it was found in, in words: `mappings of volume 3`.
    pub place: String,
    /// The blocks from the structure's root to `block`, without it.
    #[serde(serialize_with = "block_numbers")]
    pub path: Vec<MetaBlock>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// Which parts of which volumes it makes unreadable or doubtful.
    pub touches: Vec<Touched>,
}

/// How much of a space is in use, as its space map's root says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Space {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks with a count above 0.
    pub allocated: u64,
    /// Blocks with a count above their references: leaked in whole or in part.
    pub over_counted: u64,
    /// Blocks with a count above 0 and no reference at all.
    pub unreferenced: u64,
}

/// What the superblock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SuperblockSummary {
    /// The user-space transaction id.
    pub transaction_id: u64,
    /// The pool's snapshot clock.
    pub time: u64,
    /// Bytes in a data block.
    pub block_size_bytes: u64,
    /// Whether the flag is set by which the pool asks for a check.
    pub needs_check: bool,
    /// The metadata snapshot's block, if one is held.
    pub metadata_snapshot: Option<u64>,
    /// Metadata blocks that are not allocated, which is known without reading the space map.
    #[serde(skip)]
    pub metadata_free_blocks: u64,
}

/// A volume as the details tree has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct VolumeSummary {
    /// Its number.
    pub id: u64,
    /// Mapped blocks, as its details say.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The pool's time when it was created.
    pub creation_time: u64,
    /// The pool's time when it last took part in a snapshot.
    pub snapshotted_time: u64,
}

/// The outcome of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The worst of all findings, those omitted included.
    pub verdict: Verdict,
    /// The live superblock.
    pub superblock: SuperblockSummary,
    /// The volumes that could be read, by number.
    pub volumes: Vec<VolumeSummary>,
    /// The data device.
    pub data: Space,
    /// The metadata device.
    pub metadata: Space,
    /// Blocks of which only a part is there: a pool that was not settled (`uthin pool settle`).
    pub partial_blocks: u64,
    /// Whether a journal holds changes on top of the commit that was checked: a pool that was not closed.
    pub journal: bool,
    /// Distinct B-tree nodes read.
    pub nodes: u64,
    /// What was found, in the order of the walk.
    pub findings: Vec<Finding>,
    /// How many more findings there were than `findings` has room for.
    pub findings_omitted: u64,
}

impl Report {
    /// Whether there is neither damage nor leak.
    pub fn is_clean(&self) -> bool {
        self.verdict == Verdict::Clean
    }

    /// All findings in lines, for a failing test.
    pub fn to_lines(&self) -> String {
        self.findings.iter().map(|finding| format!("{finding}\n")).collect()
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Leak => "leak",
            Severity::Damage => "damage",
        };
        write!(f, "{severity}: {}", self.place)?;
        if let Some(block) = self.block {
            write!(f, ", metadata block {block}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A finding as the walk makes it.
pub(super) struct Found<'a> {
    pub(super) severity: Severity,
    pub(super) block: Option<MetaBlock>,
    pub(super) path: &'a [MetaBlock],
    /// The keys below `block` that are concerned, if not all of them.
    pub(super) keys: Option<Range<u64>>,
}

/// Collects findings while a check runs.
pub(super) struct Findings {
    kept: Vec<(Finding, Option<Range<u64>>)>,
    limit: usize,
    omitted: u64,
    damages: u64,
    worst: Severity,
}

impl Findings {
    pub(super) fn new(limit: usize) -> Self {
        Findings { kept: Vec::new(), limit, omitted: 0, damages: 0, worst: Severity::Note }
    }

    /// Notes one.
    pub(super) fn add(&mut self, found: Found<'_>, place: impl Display, message: impl Display) {
        self.worst = self.worst.max(found.severity);
        self.damages += u64::from(found.severity == Severity::Damage);
        if self.kept.len() >= self.limit {
            self.omitted += 1;
            return;
        }
        let message = message.to_string();
        // The format names the block in its messages; a finding names it itself.
        let own = found.block.and_then(|block| message.strip_prefix(&format!("metadata block {block}: ")));
        let finding = Finding {
            severity: found.severity,
            block: found.block,
            place: place.to_string(),
            path: found.path.to_vec(),
            message: own.map_or(message.clone(), str::to_owned),
            touches: Vec::new(),
        };
        self.kept.push((finding, found.keys));
    }

    /// One that is about no particular block, or about `block` as a whole.
    pub(super) fn note(
        &mut self,
        severity: Severity,
        block: Option<MetaBlock>,
        place: impl Display,
        message: impl Display,
    ) {
        self.add(Found { severity, block, path: &[], keys: None }, place, message);
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self.worst {
            Severity::Note => Verdict::Clean,
            Severity::Leak => Verdict::Leaks,
            Severity::Damage => Verdict::Damage,
        }
    }

    /// How many places are damaged.
    pub(super) fn damages(&self) -> u64 {
        self.damages
    }

    /// The findings kept so far, with the keys that each concerns.
    pub(super) fn kept_mut(&mut self) -> &mut [(Finding, Option<Range<u64>>)] {
        &mut self.kept
    }

    pub(super) fn into_parts(self) -> (Vec<Finding>, u64) {
        (self.kept.into_iter().map(|(finding, _)| finding).collect(), self.omitted)
    }
}
