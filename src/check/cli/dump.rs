//! `uthin-fsck dump`, alias `thin_dump`.

use super::beside::open_state;
use super::names::Names;
use super::progress::Watched;
use super::repair::caveats;
use super::restore::OverrideArguments;
use super::{CLEAN, Terminal, TextFile, open_metadata};
use crate::check::dump::{
    HumanSink, JsonSink, Selection, State, Text, WRITING, XmlSink, dump, plan, superblock_of,
};
use crate::check::forest::{Collect, Refuse};
use crate::check::repair::{SaneSink, salvage};
use crate::check::source::Source;
use crate::check::stream::Sink;
use crate::error::{ErrorKind, Result};
use crate::units::MetaBlock;
use clap::ValueEnum;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// How a dump is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// As thin_restore and `uthin-fsck restore` take it.
    Xml,
    /// For people.
    #[value(alias = "human_readable")]
    HumanReadable,
    /// One JSON object a line.
    #[value(alias = "json")]
    JsonLines,
}

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// How to write it.
    #[arg(short, long, value_enum, value_name = "TYPE", default_value = "xml")]
    format: Format,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The metadata snapshot instead of the live state; =BLOCK says where it is.
    #[arg(short, long, value_name = "BLOCK", num_args = 0..=1, require_equals = true)]
    metadata_snap: Option<Option<u64>>,
    /// Only this volume; may be given more than once.
    #[arg(long, value_name = "ID")]
    dev_id: Vec<u64>,
    /// The volumes without their mappings.
    #[arg(long)]
    skip_mappings: bool,
    /// What can still be read of damaged metadata.
    #[arg(short, long, conflicts_with = "metadata_snap")]
    repair: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    overrides: OverrideArguments,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match write_dump(arguments, terminal) {
        Ok(()) => CLEAN,
        Err(error) => terminal.failed_on(&arguments.metadata, error, false),
    }
}

/// Which state of the pool `-m` asks for.
pub(super) fn state_of(metadata_snap: Option<Option<u64>>) -> State {
    match metadata_snap {
        None => State::Live,
        Some(None) => State::Snapshot,
        Some(Some(block)) => State::SnapshotAt(MetaBlock(block)),
    }
}

fn write_dump(arguments: &Arguments, terminal: &mut Terminal<'_>) -> Result<()> {
    // A bar would run through what a terminal is shown.
    let state = state_of(arguments.metadata_snap);
    let is_shown = arguments.output.is_none() && std::io::stdout().is_terminal();
    let disk = match arguments.repair {
        // What is left may have no superblock.
        true => Box::new(open_metadata(&arguments.metadata)?),
        false => open_state(&arguments.metadata, state)?,
    };
    let disk = Watched::new(disk, "dumping", arguments.quiet || is_shown);
    let source = Source::new(&disk);
    let selection = Selection {
        volumes: arguments.dev_id.iter().copied().collect(),
        skip_mappings: arguments.skip_mappings,
    };
    if arguments.repair {
        let salvage = salvage(source, &arguments.overrides.overrides(), None, false)?;
        with_output(arguments.output.as_deref(), &arguments.metadata, terminal, |out| {
            let mut sink = sink_of(arguments.format, out);
            dump(source, &salvage.plan, &selection, &mut Collect::default(), &mut SaneSink::new(&mut *sink))
        })?;
        if !arguments.quiet {
            terminal.remark(&caveats(&salvage, &Names::beside(&arguments.metadata)));
        }
        return Ok(());
    }
    let superblock = superblock_of(source, state)?;
    let mut plan = plan(source, &superblock)?;
    arguments.overrides.overrides().apply(&mut plan.pool)?;
    with_output(arguments.output.as_deref(), &arguments.metadata, terminal, |out| {
        let mut sink = sink_of(arguments.format, out);
        dump(source, &plan, &selection, &mut Refuse, &mut *sink)
    })
}

fn sink_of<'a>(format: Format, out: &'a mut dyn Write) -> Box<dyn Sink + 'a> {
    match format {
        Format::Xml => Box::new(XmlSink::new(out)),
        Format::HumanReadable => Box::new(HumanSink::new(out)),
        Format::JsonLines => Box::new(JsonSink::new(out)),
    }
}

/// Runs `write` with the file that was asked for, or standard output. The file is never the input.
pub(super) fn with_output(
    path: Option<&Path>,
    input: &Path,
    terminal: &mut Terminal<'_>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = path else { return write(terminal.out) };
    super::require_different(input, path)?;
    let mut output = TextFile::create(path)?;
    write(&mut output.file).map_err(|error| match error.kind() {
        ErrorKind::Io if error.message().starts_with(WRITING) => error.context(path.display()),
        // Whoever names an output wants all of it there.
        _ if Text::has_no_reader(&error) => error.context(path.display()),
        _ => error,
    })
}
