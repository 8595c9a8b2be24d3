//! `uthin-fsck restore`, alias `thin_restore`.

use super::progress::Progress;
use super::{CLEAN, Terminal, open_output, require_different};
use crate::check::build::{Builder, Built, Overrides};
use crate::check::restore::restore;
use crate::check::stream::Sink;
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// What is read of the XML at once.
const INPUT_BYTES: usize = 1 << 18;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The XML.
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Where the metadata goes: a device, or a file that is there already. All of it is overwritten.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    overrides: OverrideArguments,
}

/// What the input says that is replaced.
#[derive(clap::Args)]
pub(super) struct OverrideArguments {
    /// The size of a data block in sectors.
    #[arg(long, value_name = "SECTORS")]
    data_block_size: Option<u64>,
    /// The size of the data device in blocks.
    #[arg(long, value_name = "NUM")]
    nr_data_blocks: Option<u64>,
    /// The user-space transaction id.
    #[arg(long, value_name = "NUM")]
    transaction_id: Option<u64>,
}

impl OverrideArguments {
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            transaction_id: self.transaction_id,
            data_block_sectors: self.data_block_size,
            data_blocks: self.nr_data_blocks,
        }
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match build(arguments) {
        Ok(built) => {
            if !arguments.quiet {
                terminal.remark(&remarks(&built));
            }
            CLEAN
        }
        Err(error) => terminal.failed(&error, false),
    }
}

fn build(arguments: &Arguments) -> Result<Built> {
    let input = open_xml(&arguments.input)?;
    require_different(&arguments.input, &arguments.output)?;
    let output = open_output(&arguments.output)?;
    let mut builder = Builder::new(&output, arguments.overrides.overrides());
    let size_bytes = input.metadata().map_or(0, |found| found.len());
    let progress = Progress::new("restoring", size_bytes, arguments.quiet);
    parse(&arguments.input, progress.reading(input), &mut builder)?;
    Ok(builder.into_built())
}

/// Opens a file of XML.
pub(super) fn open_xml(path: &Path) -> Result<File> {
    let shown = path.display();
    File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("{shown}: no such file")),
        _ => Error::io(format_args!("{shown}: opening"), &error),
    })
}

/// Reads the XML of `path` into `sink`; what is wrong with it is told with the file's name.
pub(super) fn parse(path: &Path, input: impl Read, sink: &mut dyn Sink) -> Result<()> {
    let mut input = BufReader::with_capacity(INPUT_BYTES, input);
    restore(&mut input, sink).map_err(|error| match error.kind() {
        ErrorKind::Invalid | ErrorKind::Unsupported => error.context(path.display()),
        _ => error,
    })
}

/// What is worth saying of a device that was built.
pub(super) fn remarks(built: &Built) -> String {
    let Built { volumes, mapped_blocks, metadata_blocks_used, .. } = built;
    format!("{volumes} volumes, {mapped_blocks} mappings, {metadata_blocks_used} metadata blocks\n")
        + &caveats(built)
}

/// What is not as it was in the input.
pub(super) fn caveats(built: &Built) -> String {
    let mut text = String::new();
    if let Some(block) = built.disputed {
        text += &format!(
            "data block {block} is mapped more than once, by somebody as his own: all volumes are marked as snapshotted, so \
             that writes copy\n"
        );
    }
    for (volume, promised, found) in &built.miscounted {
        text += &format!("volume {volume} has {found} mappings, where {promised} were promised\n");
    }
    text
}
