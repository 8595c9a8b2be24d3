//! `uthin-fsck repair`, alias `thin_repair`.

use super::names::Names;
use super::progress::Watched;
use super::restore::{OverrideArguments, remarks};
use super::{CLEAN, Terminal, open_metadata, open_output, require_different, to_json};
use crate::check::build::{Builder, Built};
use crate::check::dump::{Selection, dump};
use crate::check::forest::Collect;
use crate::check::repair::{Candidate, Loss, Root, Salvage, SaneSink, salvage};
use crate::check::source::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::units::MetaBlock;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;

/// Candidates and losses that are shown on a terminal; all are in the JSON.
const SHOWN: usize = 10;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The damaged metadata, which is only read.
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Where the repaired metadata goes: a device, or a file that is there already. All of it is overwritten.
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Say what would be done, with all candidates for the roots, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// The blocks in which the tree of volumes and the details begin, whatever the superblock says.
    #[arg(long, value_name = "BLOCK[,BLOCK]")]
    root: Option<RootArgument>,
    /// Take partial blocks for whole ones: where nothing was written to them they show what was in their place on the data device
    /// before, which may have been another volume's. For a pool that cannot be opened any more to settle it.
    #[arg(long)]
    partial_as_whole: bool,
    /// What is done as one JSON object.
    #[arg(long)]
    json: bool,
    /// Say nothing but errors.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    #[command(flatten)]
    overrides: OverrideArguments,
}

/// `MAPPING_ROOT` or `MAPPING_ROOT,DETAILS_ROOT`.
#[derive(Clone, Copy)]
struct RootArgument(Root);

impl FromStr for RootArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let block = |text: &str| {
            text.trim()
                .parse()
                .map(MetaBlock)
                .map_err(|_| format!("{text:?} is no number of a metadata block"))
        };
        Ok(RootArgument(match text.split_once(',') {
            Some((mapping, details)) => Root { mapping: block(mapping)?, details: Some(block(details)?) },
            None => Root { mapping: block(text)?, details: None },
        }))
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match repair(arguments) {
        Ok((salvage, built)) => {
            if arguments.json {
                terminal.say(&json(&salvage, built.as_ref()));
            } else if !arguments.quiet {
                let names = Names::beside(&arguments.input);
                let text = text(&salvage, built.as_ref(), &names);
                if arguments.dry_run { terminal.say(&text) } else { terminal.remark(&text) }
            }
            CLEAN
        }
        Err(error) => terminal.failed_on(&arguments.input, error, arguments.json),
    }
}

fn repair(arguments: &Arguments) -> Result<(Salvage, Option<Built>)> {
    let input = Watched::new(Box::new(open_metadata(&arguments.input)?), "repairing", arguments.quiet);
    let source = Source::new(&input).taking_partial_blocks(arguments.partial_as_whole);
    let overrides = arguments.overrides.overrides();
    let root = arguments.root.map(|RootArgument(root)| root);
    let output = match (&arguments.output, arguments.dry_run) {
        (Some(path), false) => {
            require_different(&arguments.input, path)?;
            Some(open_output(path)?)
        }
        (Some(_) | None, true) => None,
        (None, false) => return Err(Error::new(ErrorKind::Invalid, "no output")),
    };
    let salvage = salvage(source, &overrides, root, arguments.dry_run)?;
    let Some(output) = output else { return Ok((salvage, None)) };
    let mut builder = Builder::new(&output, overrides);
    builder.expect_blocks(salvage.fewest_blocks);
    dump(
        source,
        &salvage.plan,
        &Selection::default(),
        &mut Collect::default(),
        &mut SaneSink::new(&mut builder),
    )?;
    Ok((salvage, Some(builder.into_built())))
}

fn json(salvage: &Salvage, built: Option<&Built>) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        schema: &'static str,
        superblock_fault: Option<&'a str>,
        mapping_root: u64,
        details_root: Option<u64>,
        data_block_sectors: u32,
        data_blocks: u64,
        transaction_id: u64,
        volumes: Vec<ShownVolume>,
        losses: &'a [Loss],
        assumptions: &'a [String],
        candidates: &'a [Candidate],
        metadata_blocks_used: Option<u64>,
        disputed_data_block: Option<u64>,
    }
    #[derive(Serialize)]
    struct ShownVolume {
        id: u64,
        mapped_blocks: u64,
    }
    let pool = &salvage.plan.pool;
    let volume = |volume: &crate::check::dump::VolumePlan| ShownVolume {
        id: volume.record.id.get(),
        mapped_blocks: volume.record.mapped_blocks,
    };
    to_json(&Shown {
        schema: "uthin/v1",
        superblock_fault: salvage.superblock_fault.as_deref(),
        mapping_root: salvage.root.mapping.0,
        details_root: salvage.root.details.map(|root| root.0),
        data_block_sectors: pool.data_block_sectors,
        data_blocks: pool.data_blocks,
        transaction_id: pool.transaction_id,
        volumes: salvage.plan.volumes.iter().map(volume).collect(),
        losses: &salvage.losses,
        assumptions: &salvage.assumptions,
        candidates: &salvage.candidates,
        metadata_blocks_used: built.map(|built| built.metadata_blocks_used),
        disputed_data_block: built.and_then(|built| built.disputed),
    })
}

fn text(salvage: &Salvage, built: Option<&Built>, names: &Names) -> String {
    let mut text = String::new();
    if let Some(fault) = &salvage.superblock_fault {
        line(&mut text, format_args!("superblock: {fault}"));
    }
    if !salvage.candidates.is_empty() {
        line(&mut text, format_args!("candidates, the best first:"));
        line(
            &mut text,
            format_args!(
                "{:>10} {:>10} {:>8} {:>12} {:>9}  agrees",
                "volumes at", "details at", "volumes", "mappings", "newest"
            ),
        );
        for candidate in salvage.candidates.iter().take(SHOWN) {
            line(&mut text, candidate_line(candidate));
        }
        more(&mut text, salvage.candidates.len(), "candidates");
    }
    let details = salvage.root.details.map_or("none".to_owned(), |root| format!("block {root}"));
    line(
        &mut text,
        format_args!("taken: volumes from block {}, details from {details}", salvage.root.mapping),
    );
    text += &caveats(salvage, names);
    let volumes = &salvage.plan.volumes;
    let mapped: u64 = volumes.iter().map(|volume| volume.record.mapped_blocks).sum();
    match built {
        Some(built) => text += &remarks(built),
        None => line(
            &mut text,
            format_args!("{} volumes, {mapped} mappings can be saved; nothing was written", volumes.len()),
        ),
    }
    text
}

/// What was made up, and what is lost.
pub(super) fn caveats(salvage: &Salvage, names: &Names) -> String {
    let mut text = String::new();
    for assumption in salvage.assumptions.iter().take(SHOWN) {
        line(&mut text, format_args!("assumed: {assumption}"));
    }
    more(&mut text, salvage.assumptions.len(), "assumptions");
    for loss in salvage.losses.iter().take(SHOWN) {
        line(&mut text, loss_line(loss, u64::from(salvage.plan.pool.data_block_sectors) * 512, names));
    }
    more(&mut text, salvage.losses.len(), "losses");
    text
}

fn line(text: &mut String, words: impl std::fmt::Display) {
    writeln!(text, "{words}").expect("a string takes everything");
}

fn more(text: &mut String, count: usize, what: &str) {
    if count > SHOWN {
        line(text, format_args!("and {} more {what}; --json lists them", count - SHOWN));
    }
}

fn candidate_line(candidate: &Candidate) -> String {
    let details = candidate.details_root.map_or("none".to_owned(), |root| root.to_string());
    format!(
        "{:>10} {details:>10} {:>8} {:>12} {:>9}  {}",
        candidate.mapping_root,
        candidate.volumes,
        candidate.mapped_blocks,
        candidate.newest_time,
        match (candidate.agrees, candidate.is_whole) {
            (true, true) => "yes",
            (true, false) => "but for damage",
            (false, _) => "no",
        }
    )
}

fn loss_line(loss: &Loss, block_bytes: u64, names: &Names) -> String {
    let bytes = |block: u64| u128::from(block) * u128::from(block_bytes);
    let end = loss.end.map_or("on".to_owned(), |end| format!("to {}", bytes(end)));
    match loss.volume {
        Some(volume) => {
            format!("lost: {}, bytes {} {end}: {}", names.volume(volume), bytes(loss.begin), loss.why)
        }
        None => format!("lost: volumes from {} on: {}", loss.begin, loss.why),
    }
}
