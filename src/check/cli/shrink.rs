//! `uthin-fsck shrink`, alias `thin_shrink`: a pool made to fit a smaller data device, while it is not in use.

use super::dump::with_output;
use super::progress::Progress;
use super::restore::{self, open_xml, parse};
use super::{CLEAN, Terminal, lock_output, open_output, open_pool, require_different};
use crate::check::build::{Builder, Built, Overrides};
use crate::check::dump::{Selection, State, XmlSink, dump, plan, superblock_of};
use crate::check::forest::Refuse;
use crate::check::source::Source;
use crate::check::stream::Sink;
use crate::check::tools::shrink::{Moved, Moves, Survey};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Superblock;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The mappings as XML; with --binary the metadata.
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Where the new XML goes; with --binary the new metadata, to a device or a file that is there already.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The data: a file or block device. Blocks are copied inside it.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// How many data blocks the pool is to have.
    #[arg(long, value_name = "NUM")]
    nr_blocks: u64,
    /// Metadata in and out, instead of XML.
    #[arg(long)]
    binary: bool,
    /// Leave the data as they are, for those who only want to know how long the rest takes.
    #[arg(long)]
    no_copy: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match shrink(arguments, terminal) {
        Ok((moves, built)) => {
            if !arguments.quiet {
                terminal.remark(&remarks(arguments, &moves));
                terminal.remark(&built.map(|built| restore::caveats(&built)).unwrap_or_default());
            }
            CLEAN
        }
        Err(error) => terminal.failed(&error, false),
    }
}

fn shrink(arguments: &Arguments, terminal: &mut Terminal<'_>) -> Result<(Moves, Option<Built>)> {
    for output in [&arguments.output, &arguments.data] {
        require_different(&arguments.input, output)?;
    }
    require_different(&arguments.data, &arguments.output)?;
    // Locked, so nobody uses the pool meanwhile.
    let mode = if arguments.no_copy { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let data = FileDisk::open(&arguments.data, mode)?;
    if arguments.binary {
        let input = open_pool(&arguments.input)?;
        if !arguments.no_copy {
            require_no_snapshot(&superblock_of(Source::new(&input), State::Live)?)
                .map_err(|error| error.context(input.name()))?;
        }
        let output = open_output(&arguments.output)?;
        let read = |sink: &mut dyn Sink| read_metadata(Source::new(&input), sink);
        let moves = move_data(arguments, &data, &read)?;
        let mut builder = Builder::new(&output, Overrides::default());
        read(&mut Moved::new(&moves, &mut builder))?;
        return Ok((moves, Some(builder.into_built())));
    }
    let read = |sink: &mut dyn Sink| parse(&arguments.input, open_xml(&arguments.input)?, sink);
    // Asked before the data are moved, though the output is written after.
    drop(lock_output(&arguments.output)?);
    let moves = move_data(arguments, &data, &read)?;
    with_output(Some(&arguments.output), &arguments.input, terminal, |out| {
        read(&mut Moved::new(&moves, &mut XmlSink::new(out)))
    })?;
    Ok((moves, None))
}

/// Refuses a pool with a metadata snapshot: copies go to blocks that nothing live refers to, and its volumes may.
fn require_no_snapshot(superblock: &Superblock) -> Result<()> {
    if superblock.held_root == 0 {
        return Ok(());
    }
    let message = format!(
        "a metadata snapshot is held, in block {}: the copies could overwrite data that only it refers to",
        superblock.held_root
    );
    Err(Error::new(ErrorKind::Invalid, message)
        .hint("let it go first: `uthin pool metadata-snapshot POOL --release`; of the kernel's pool, dmsetup message POOL 0 release_metadata_snap"))
}

/// Finds out what has to move, and copies it. Nothing refers to the copies yet.
fn move_data(
    arguments: &Arguments,
    data: &FileDisk,
    read: &dyn Fn(&mut dyn Sink) -> Result<()>,
) -> Result<Moves> {
    let mut survey = Survey::new(data);
    read(&mut survey)?;
    let moves = survey.moves(arguments.nr_blocks)?;
    if !arguments.no_copy {
        let progress = Progress::new("copying", moves.copied_bytes(), arguments.quiet);
        moves.copy(data, &mut |bytes| progress.more(bytes))?;
    }
    Ok(moves)
}

fn read_metadata(source: Source<'_>, sink: &mut dyn Sink) -> Result<()> {
    let plan = plan(source, &superblock_of(source, State::Live)?)?;
    dump(source, &plan, &Selection::default(), &mut Refuse, sink)
}

fn remarks(arguments: &Arguments, moves: &Moves) -> String {
    let copied = if arguments.no_copy { "would have moved" } else { "moved" };
    let (data, bytes) = (arguments.data.display(), moves.data_bytes());
    let next = if arguments.no_copy {
        "the output does not fit the data: they were not copied".to_owned()
    } else if arguments.binary {
        format!(
            "once {} is the pool's metadata, {data} may be cut to {bytes} bytes",
            arguments.output.display()
        )
    } else {
        format!("once {} is restored, {data} may be cut to {bytes} bytes", arguments.output.display())
    };
    format!("{} data blocks {copied}\n{next}\n", moves.blocks())
}
