//! `uthin-fsck trim`, alias `thin_trim`: free data blocks given back, of a pool that is not in use.

use super::{CLEAN, Terminal, require_metadata};
use crate::check::tools::trim::trim;
use crate::disk::{FileDisk, OpenMode};
use crate::error::Result;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The metadata: a file or block device.
    #[arg(long, value_name = "FILE")]
    metadata_dev: PathBuf,
    /// The data: a file or block device.
    #[arg(long, value_name = "FILE")]
    data_dev: PathBuf,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match give_back(arguments) {
        Ok(bytes) => {
            if !arguments.quiet {
                terminal.say(&format!("{bytes} bytes given back\n"));
            }
            CLEAN
        }
        Err(error) => terminal.failed(&error, false),
    }
}

fn give_back(arguments: &Arguments) -> Result<u64> {
    require_metadata(&arguments.metadata_dev)?;
    // For writing, though nothing is written: nobody may use the pool meanwhile.
    let metadata = FileDisk::open(&arguments.metadata_dev, OpenMode::ReadWrite)?.through_page_cache()?;
    let data = FileDisk::open(&arguments.data_dev, OpenMode::ReadWrite)?;
    trim(&metadata, &data)
}
