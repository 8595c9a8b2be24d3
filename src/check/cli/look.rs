//! `uthin-fsck explain`, `map` and `damage`: for who looks into metadata, and for tests.

use super::{CLEAN, Terminal, open_metadata, open_pool, require_metadata, to_json};
use crate::check::dump::{State, plan, superblock_of};
use crate::check::source::Source;
use crate::check::tools::explain::{Explained, explain};
use crate::check::tools::picture::{as_svg, as_text, cells};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, Result};
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use clap::ValueEnum;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct ExplainArguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// The metadata block's number.
    block: u64,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run_explain(arguments: &ExplainArguments, terminal: &mut Terminal<'_>) -> u8 {
    let explained = open_metadata(&arguments.metadata)
        .and_then(|disk| explain(Source::new(&disk), MetaBlock(arguments.block)));
    match explained {
        Ok(explained) => {
            terminal.say(&if arguments.json { to_json(&explained) } else { words(&explained) });
            CLEAN
        }
        Err(error) => terminal.failed_on(&arguments.metadata, error, arguments.json),
    }
}

fn words(explained: &Explained) -> String {
    let mut text = format!("block {}: {}\n", explained.block, explained.is);
    for pointer in &explained.pointed_at_by {
        let note = if pointer.is_in_use { "" } else { ", which is not in use any more" };
        text += &format!("  named by block {} as {}{note}\n", pointer.from, pointer.by);
    }
    text + if explained.is_in_use {
        "in use\n"
    } else {
        "not in use: nothing that the superblock reaches names it\n"
    }
}

#[derive(clap::Args)]
pub(super) struct MapArguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// An SVG picture instead of letters.
    #[arg(long)]
    svg: bool,
    /// Cells in a line.
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u16).range(1..=1000))]
    columns: u16,
    /// Lines.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rows: u16,
}

pub(super) fn run_map(arguments: &MapArguments, terminal: &mut Terminal<'_>) -> u8 {
    match picture(arguments) {
        Ok(text) => {
            terminal.say(&text);
            CLEAN
        }
        Err(error) => terminal.failed_on(&arguments.metadata, error, false),
    }
}

fn picture(arguments: &MapArguments) -> Result<String> {
    let disk = open_pool(&arguments.metadata)?;
    let source = Source::new(&disk);
    let plan = plan(source, &superblock_of(source, State::Live)?)?;
    let columns = usize::from(arguments.columns);
    let cells = cells(source, &plan, u64::from(arguments.columns) * u64::from(arguments.rows))?;
    Ok(if arguments.svg { as_svg(&plan, &cells, columns) } else { as_text(&plan, &cells, columns) })
}

#[derive(clap::Args)]
pub(super) struct DamageArguments {
    /// The metadata, which is damaged in place: a copy.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// The block to damage.
    #[arg(long)]
    block: u64,
    /// How.
    #[arg(long, value_enum)]
    fault: Fault,
    /// The other block, for `swap` and `copy`.
    #[arg(long, required_if_eq_any = [("fault", "swap"), ("fault", "copy")])]
    other: Option<u64>,
    /// The bit of the block, for `flip`.
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(..32768))]
    bit: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Fault {
    /// All zeros.
    Zero,
    /// One bit the other way round.
    Flip,
    /// Exchanged with another block.
    Swap,
    /// Replaced by another block, sealed with this one's number: sound in itself, of another time or place.
    Copy,
    /// Sealed with the wrong number.
    Number,
}

pub(super) fn run_damage(arguments: &DamageArguments, terminal: &mut Terminal<'_>) -> u8 {
    match damage(arguments) {
        Ok(()) => CLEAN,
        Err(error) => terminal.failed_on(&arguments.metadata, error, false),
    }
}

fn damage(arguments: &DamageArguments) -> Result<()> {
    require_metadata(&arguments.metadata)?;
    let disk = FileDisk::open(&arguments.metadata, OpenMode::ReadWrite)?.through_page_cache()?;
    let source = Source::new(&disk);
    let number = MetaBlock(arguments.block);
    let other = MetaBlock(arguments.other.unwrap_or(arguments.block));
    let mut block = source.raw(number)?;
    let mut replacement = source.raw(other)?;
    let write = |number: MetaBlock, bytes: &[u8; META_BLOCK_BYTES]| {
        let failed = |error: std::io::Error| Error::io(format_args!("{}: writing", disk.name()), &error);
        disk.write_at(number.offset_bytes(), bytes).map_err(failed)
    };
    match arguments.fault {
        Fault::Zero => write(number, &[0; META_BLOCK_BYTES]),
        Fault::Flip => {
            block.0[arguments.bit as usize / 8] ^= 1 << (arguments.bit % 8);
            write(number, &block.0)
        }
        Fault::Swap => write(number, &replacement.0).and_then(|()| write(other, &block.0)),
        Fault::Copy => {
            if let Some(kind) = replacement.kind() {
                replacement.seal(number, kind);
            }
            write(number, &replacement.0)
        }
        Fault::Number => {
            if let Some(kind) = block.kind() {
                block.seal(MetaBlock(number.0 + 1), kind);
            }
            write(number, &block.0)
        }
    }
}
