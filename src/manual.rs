//! Completion scripts and man pages, made of the same definitions as the parsers, and so never behind them.

use crate::error::{Error, ErrorKind, Result};
use clap::Command;
use clap_complete::Shell;
use std::fs;
use std::path::Path;

/// A script by which `shell` completes the commands and options of `program`.
pub(crate) fn completion(mut program: Command, shell: Shell) -> String {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a man page for `program` and each of its commands into `directory`, which is made if it is missing.
pub(crate) fn write_man_pages(program: Command, directory: &Path) -> Result<()> {
    let shown = directory.display();
    fs::create_dir_all(directory).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
            Error::new(ErrorKind::Invalid, format!("{shown}: no directory"))
                .hint("give a directory for the pages, for example /usr/local/share/man/man1")
        }
        _ => Error::io(format_args!("{shown}: making the directory"), &error),
    })?;
    clap_mangen::generate_to(program, directory)
        .map_err(|error| Error::io(format_args!("{shown}: writing man pages"), &error))
}
