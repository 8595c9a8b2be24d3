//! The command line of `uthin-fsck`, also under the names that scripts for thin-provisioning-tools use.
//!
//! Every command has its name here and that of the tool it stands in for: as an alias (`uthin-fsck thin_dump …`), and as
//! the name by which the program is called. `uthin-fsck check FILE` exits 0 when clean, 3 for leaks only, 4 for damage, 1
//! when nothing could be said, 2 for wrong usage; under a tool's name the status is that tool's: 0, 1, or 2 for wrong usage. There leaks end
//! in 0 with a warning: they are safe, and no machine should fail to boot over one.

mod beside;
mod check;
mod delta;
mod dump;
mod list;
mod look;
mod names;
mod pack;
mod progress;
mod repair;
mod restore;
mod rmap;
mod same;
mod shrink;
mod size;
mod trim;

use super::dump::{Text, WRITING};
use super::open;
use crate::disk::{FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::manual;
use crate::units::META_BLOCK_BYTES;
use clap::{CommandFactory, Parser, Subcommand};
use same::require_different;
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const CLEAN: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const LEAKS: u8 = 3;
const DAMAGE: u8 = 4;

/// Beginning of the names that scripts for thin-provisioning-tools use.
const TOOL_PREFIX: &[u8] = b"thin_";
/// What a tool's `--version` answers: LVM reads a number from the beginning and asks no less of it.
const TOOL_VERSION: &str = concat!("1.1.0 (uthin ", env!("CARGO_PKG_VERSION"), ")\n");

/// Checks, dumps and mends dm-thin metadata.
#[derive(Parser)]
#[command(name = "uthin-fsck", version, arg_required_else_help = true)]
struct Fsck {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check metadata; nothing is written. Exit status: 0 clean, 3 leaks only, 4 damage, 1 failed, 2 usage; as
    /// thin_check 0 good, or leaks only; 2 usage; 1 anything else.
    #[command(visible_alias = "thin_check")]
    Check(check::Arguments),
    /// Write the mappings as XML, for people, or as JSON lines.
    #[command(visible_alias = "thin_dump")]
    Dump(dump::Arguments),
    /// Save what can still be read of damaged metadata to another file or device.
    #[command(visible_alias = "thin_repair")]
    Repair(repair::Arguments),
    /// Make metadata of a dump's XML.
    #[command(visible_alias = "thin_restore")]
    Restore(restore::Arguments),
    /// What two volumes have in common and what not.
    #[command(visible_alias = "thin_delta")]
    Delta(delta::Arguments),
    /// The volumes, and what each takes, alone and together with others.
    #[command(visible_alias = "thin_ls")]
    Ls(list::Arguments),
    /// Which volumes have data in a region of the data device.
    #[command(visible_alias = "thin_rmap")]
    Rmap(rmap::Arguments),
    /// How large the metadata of a pool should be.
    #[command(name = "metadata_size", visible_alias = "thin_metadata_size")]
    MetadataSize(size::Arguments),
    /// Pack metadata into a small file.
    #[command(visible_alias = "thin_metadata_pack")]
    Pack(pack::Arguments),
    /// Make metadata of a packed file.
    #[command(visible_alias = "thin_metadata_unpack")]
    Unpack(pack::Arguments),
    /// Give free data blocks back to the data device, of a pool that is not in use.
    #[command(visible_alias = "thin_trim")]
    Trim(trim::Arguments),
    /// Make a pool that is not in use fit a smaller data device.
    #[command(visible_alias = "thin_shrink")]
    Shrink(shrink::Arguments),
    /// What a metadata block is, and who points at it.
    Explain(look::ExplainArguments),
    /// A picture of the data device by volume, sharing and age.
    Map(look::MapArguments),
    /// Damage metadata, for tests.
    Damage(look::DamageArguments),
    /// Print a script that completes commands and options in a shell.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write man pages, one for each command, into a directory.
    Man {
        /// The directory, for example /usr/local/share/man/man1.
        directory: PathBuf,
    },
}

/// Where words go, and whose words they are.
struct Terminal<'a> {
    out: &'a mut dyn Write,
    errors: &'a mut dyn Write,
    /// The name in front of an error.
    name: String,
    /// Whether the exit status must be that of the tool of this name.
    is_compatible: bool,
    /// Why the answer could not be written, or not all of it.
    unwritten: Option<io::Error>,
}

impl Terminal<'_> {
    /// Prints. What could not be written is told of when the command has ended.
    fn say(&mut self, text: &str) {
        if let Err(error) = say(self.out, text) {
            self.unwritten.get_or_insert(error);
        }
    }

    /// Words beside the output.
    fn remark(&mut self, text: &str) {
        // There is nobody else to be told.
        drop(say(self.errors, text));
    }

    /// The exit status, for a command that ended with `status`: an answer that is not there is a failure, whatever it was. A reader
    /// that went away is no reason to change the verdict.
    fn finish(&mut self, status: u8) -> u8 {
        match self.unwritten.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.failed(&Error::io(WRITING, &error), false)
            }
            Some(_) | None => status,
        }
    }

    /// As [`Terminal::failed`], for a command about the metadata in `path`: damage of a block is told of with the file's name.
    fn failed_on(&mut self, path: &Path, error: Error, as_json: bool) -> u8 {
        let shown = path.display().to_string();
        let is_of_metadata = match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound => true,
            // The metadata's own blocks are the only ones that are called that.
            ErrorKind::Io => error.message().starts_with("metadata block "),
            _ => false,
        };
        let is_named = error.message().contains(&shown);
        self.failed(&if is_of_metadata && !is_named { error.context(shown) } else { error }, as_json)
    }

    /// Tells of an error; answers the exit status for it. That nobody reads on is none.
    fn failed(&mut self, error: &Error, as_json: bool) -> u8 {
        if Text::has_no_reader(error) {
            return CLEAN;
        }
        let name = &self.name;
        let words = if as_json { error_json(error) } else { format!("{name}: {error}\n") };
        self.remark(&words);
        FAILED
    }
}

/// Parses the process's arguments, does what they say and answers the exit status.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().collect(), &mut io::stdout().lock(), &mut io::stderr().lock()))
}

/// As [`main`], for given arguments (the program's name first) and outputs.
pub fn run(mut arguments: Vec<OsString>, out: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    let called = arguments.first().and_then(|program| Path::new(program).file_name()).map(OsStr::to_owned);
    if let Some(tool) = called.filter(|name| is_tool(name)) {
        arguments.splice(0..1, ["uthin-fsck".into(), tool]);
    }
    let tool = arguments.get(1).filter(|word| is_tool(word)).map(|word| word.to_string_lossy().into_owned());
    let is_compatible = tool.is_some();
    let name = tool.unwrap_or_else(|| "uthin-fsck".to_owned());
    let mut terminal = Terminal { out, errors, name, is_compatible, unwritten: None };
    let status = if is_compatible && asks_for_version(&arguments) {
        terminal.say(TOOL_VERSION);
        CLEAN
    } else {
        match Fsck::try_parse_from(arguments) {
            Ok(fsck) => fsck.command.run(&mut terminal),
            Err(error) => usage(&error, &mut terminal),
        }
    };
    terminal.finish(status)
}

impl Command {
    fn run(&self, terminal: &mut Terminal<'_>) -> u8 {
        match self {
            Command::Check(arguments) => check::run(arguments, terminal),
            Command::Dump(arguments) => dump::run(arguments, terminal),
            Command::Repair(arguments) => repair::run(arguments, terminal),
            Command::Restore(arguments) => restore::run(arguments, terminal),
            Command::Delta(arguments) => delta::run(arguments, terminal),
            Command::Ls(arguments) => list::run(arguments, terminal),
            Command::Rmap(arguments) => rmap::run(arguments, terminal),
            Command::MetadataSize(arguments) => size::run(arguments, terminal),
            Command::Pack(arguments) => pack::run_pack(arguments, terminal),
            Command::Unpack(arguments) => pack::run_unpack(arguments, terminal),
            Command::Trim(arguments) => trim::run(arguments, terminal),
            Command::Shrink(arguments) => shrink::run(arguments, terminal),
            Command::Explain(arguments) => look::run_explain(arguments, terminal),
            Command::Map(arguments) => look::run_map(arguments, terminal),
            Command::Damage(arguments) => look::run_damage(arguments, terminal),
            Command::Completion { shell } => {
                terminal.say(&manual::completion(Fsck::command(), *shell));
                CLEAN
            }
            Command::Man { directory } => match manual::write_man_pages(Fsck::command(), directory) {
                Ok(()) => CLEAN,
                Err(error) => terminal.failed(&error, false),
            },
        }
    }
}

fn is_tool(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TOOL_PREFIX)
}

/// Whether a tool is asked for its version, alone or with whatever else.
fn asks_for_version(arguments: &[OsString]) -> bool {
    let options = arguments.iter().skip(2).take_while(|word| *word != "--");
    options.into_iter().any(|word| word == "-V" || word == "--version")
}

/// clap's words: help and version are no errors.
fn usage(error: &clap::Error, terminal: &mut Terminal<'_>) -> u8 {
    if error.use_stderr() {
        terminal.remark(&error.to_string());
        USAGE
    } else {
        terminal.say(&error.to_string());
        CLEAN
    }
}

fn say(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Opens metadata for reading. What is no metadata for being no file, or too small, gets a hint at what it may be.
fn open_metadata(path: &Path) -> Result<FileDisk> {
    require_metadata(path)?;
    FileDisk::open(path, OpenMode::ReadOnly)?.through_page_cache()
}

/// As [`open_metadata`], for what needs a pool's metadata, damaged or not: anything else is refused as a check refuses it.
fn open_pool(path: &Path) -> Result<FileDisk> {
    let disk = open_metadata(path)?;
    open::require_pool(&disk)?;
    Ok(disk)
}

fn require_metadata(path: &Path) -> Result<()> {
    let shown = path.display();
    let found = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("{shown}: no such file"))
            .hint("give the metadata itself: the file POOL/metadata, or the metadata device"),
        _ => Error::io(shown.to_string(), &error),
    })?;
    if found.is_dir() {
        let error = Error::new(ErrorKind::Invalid, format!("{shown}: a directory, not metadata"));
        let inside = path.join("metadata");
        return Err(if inside.exists() {
            error.hint(format!("for the pool in it, check {}", inside.display()))
        } else {
            error
        });
    }
    if found.is_file() && found.len() < META_BLOCK_BYTES as u64 {
        // Too small even to be read in blocks; a dump of an empty pool is.
        let beginning = std::fs::read(path).map_err(|error| Error::io(shown.to_string(), &error))?;
        let error = open::too_small(&shown.to_string(), found.len());
        return Err(open::looks_like(&beginning).map_or(error.clone(), |words| error.hint(words)));
    }
    Ok(())
}

/// Opens what is to be overwritten with metadata. It must be there: how large it should be is for its owner to say.
fn open_output(path: &Path) -> Result<FileDisk> {
    let opened = FileDisk::open(path, OpenMode::ReadWrite).and_then(FileDisk::through_page_cache);
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let shown = path.display();
            Error::new(ErrorKind::NotFound, format!("{shown}: no such file")).hint(format!(
                "make it first, as large as the metadata may grow: truncate --size 64M {shown}"
            ))
        }
        _ => error,
    })
}

/// A file for text, or for what is packed, and emptied for it. Nobody else may be using it: it could be the metadata of a pool, given
/// by mistake.
struct TextFile {
    file: File,
    /// Holds the lock.
    _locked: Option<FileDisk>,
}

impl TextFile {
    fn create(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format_args!("{}: creating", path.display()), &error);
        let locked = lock_output(path)?;
        let file = File::create(path).map_err(failed)?;
        Ok(TextFile { file, _locked: locked })
    }
}

/// Locks an output that is there already, as metadata are locked; `Busy` when somebody has. Terminals and pipes are nobody's.
fn lock_output(path: &Path) -> Result<Option<FileDisk>> {
    let is_disk = std::fs::metadata(path).is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_file() || kind.is_block_device()
    });
    is_disk.then(|| FileDisk::open(path, OpenMode::ReadWrite)).transpose()
}

fn error_json(error: &Error) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        error: &'a Error,
    }
    to_json(&Shown { error })
}

fn to_json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("strings, numbers and lists can be JSON");
    text.push('\n');
    text
}
