//! `uthin-fsck delta`, alias `thin_delta`.

use super::beside::open_state;
use super::{CLEAN, Terminal};
use crate::check::dump::{State, Text, superblock_of};
use crate::check::forest::{Forest, Refuse};
use crate::check::source::Source;
use crate::check::tools::delta::{Side, delta};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{RootRecord, Superblock};
use crate::units::MetaBlock;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// The first volume.
    #[arg(
        long,
        value_name = "ID",
        alias = "snap1",
        required_unless_present = "root1",
        conflicts_with = "root1"
    )]
    thin1: Option<u64>,
    /// The second volume.
    #[arg(
        long,
        value_name = "ID",
        alias = "snap2",
        required_unless_present = "root2",
        conflicts_with = "root2"
    )]
    thin2: Option<u64>,
    /// The block in which the first volume's mappings begin.
    #[arg(long, value_name = "BLOCK")]
    root1: Option<u64>,
    /// The block in which the second volume's mappings begin.
    #[arg(long, value_name = "BLOCK")]
    root2: Option<u64>,
    /// The volumes as the metadata snapshot has them.
    #[arg(short, long)]
    metadata_snap: bool,
    /// Data blocks too.
    #[arg(long)]
    verbose: bool,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match write(arguments, terminal) {
        Ok(()) => CLEAN,
        Err(error) => terminal.failed_on(&arguments.metadata, error, false),
    }
}

fn write(arguments: &Arguments, terminal: &mut Terminal<'_>) -> Result<()> {
    let state = if arguments.metadata_snap { State::Snapshot } else { State::Live };
    let disk = open_state(&arguments.metadata, state)?;
    let source = Source::new(&*disk);
    let superblock = superblock_of(source, state)?;
    let sides = [
        side(source, &superblock, arguments.thin1, arguments.root1)?,
        side(source, &superblock, arguments.thin2, arguments.root2)?,
    ];
    delta(source, &superblock, sides, arguments.verbose, &mut Text::new(terminal.out))
}

fn side(source: Source<'_>, superblock: &Superblock, volume: Option<u64>, root: Option<u64>) -> Result<Side> {
    if let Some(root) = root {
        return Ok(Side { volume: None, root: MetaBlock(root) });
    }
    let id = volume.ok_or_else(|| Error::new(ErrorKind::Invalid, "neither volume nor root"))?;
    let volumes = Forest::<RootRecord>::new(source).entries(superblock.mapping_root, &mut Refuse)?;
    let (_, root) = volumes.into_iter().find(|(number, _)| *number == id).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("no volume {id}")).hint("`uthin-fsck ls` lists the volumes")
    })?;
    Ok(Side { volume, root: root.root() })
}
