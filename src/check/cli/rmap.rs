//! `uthin-fsck rmap`, alias `thin_rmap`.

use super::{CLEAN, Terminal, open_pool};
use crate::check::dump::{State, Text, plan, superblock_of};
use crate::check::source::Source;
use crate::check::tools::rmap::rmap;
use crate::error::Result;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// Data blocks BEGIN..END, the end not among them; may be given more than once.
    #[arg(long = "region", value_name = "BEGIN..END", required = true)]
    regions: Vec<Region>,
}

#[derive(Clone)]
struct Region(Range<u64>);

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number of a block"));
        let (begin, end) = text.split_once("..").ok_or_else(|| "a region is BEGIN..END".to_owned())?;
        let (begin, end) = (number(begin)?, number(end)?);
        if begin < end { Ok(Region(begin..end)) } else { Err("it ends before it begins".to_owned()) }
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match write(arguments, terminal) {
        Ok(()) => CLEAN,
        Err(error) => terminal.failed_on(&arguments.metadata, error, false),
    }
}

fn write(arguments: &Arguments, terminal: &mut Terminal<'_>) -> Result<()> {
    let disk = open_pool(&arguments.metadata)?;
    let source = Source::new(&disk);
    let plan = plan(source, &superblock_of(source, State::Live)?)?;
    let regions: Vec<_> = arguments.regions.iter().map(|Region(region)| region.clone()).collect();
    rmap(source, &plan, &regions, &mut Text::new(terminal.out))
}
