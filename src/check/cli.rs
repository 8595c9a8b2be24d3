//! The command line of `uthin-fsck`, also under the names that scripts for thin-provisioning-tools use.
//!
//! `uthin-fsck check FILE` exits 0 when clean, 3 for leaks only, 4 for damage, 1 when nothing could be said, 2 for wrong
//! usage. Called as `thin_check`, or with that word first, it has that tool's own codes: 0 or 1. There leaks end in 0
//! with a warning: they are safe, and no machine should fail to boot over one.

use super::report::{Report, Severity, Verdict};
use super::{CheckOptions, check, open};
use crate::disk::{FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::units::META_BLOCK_BYTES;
use clap::{Parser, Subcommand};
use serde::Serialize;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const CLEAN: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const LEAKS: u8 = 3;
const DAMAGE: u8 = 4;

/// Touched parts of volumes that are listed for one finding on a terminal; all are in the JSON.
const TOUCHED_SHOWN: usize = 4;

/// Checks dm-thin metadata: every reference recounted, every promise of the format looked at.
#[derive(Parser)]
#[command(name = "uthin-fsck", version, arg_required_else_help = true)]
struct Fsck {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check metadata; nothing is written. Exit status: 0 clean, 3 leaks only, 4 damage, 1 failed, 2 usage.
    Check(CheckArguments),
    /// As `check`, with the exit status of thin-provisioning-tools' thin_check: 0 good, or leaks only; 1 anything else.
    #[command(name = "thin_check")]
    ThinCheck(ThinCheckArguments),
}

#[derive(clap::Args)]
struct CheckArguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Print nothing but errors; the exit status tells.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

#[derive(clap::Args)]
struct ThinCheckArguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// Print nothing but errors; the exit status tells.
    #[arg(short, long)]
    quiet: bool,
}

/// `thin_check` by the name it was called.
#[derive(Parser)]
#[command(name = "thin_check", version)]
struct ThinCheck {
    #[command(flatten)]
    arguments: ThinCheckArguments,
}

/// Parses the process's arguments, does what they say and answers the exit status.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().collect(), &mut io::stdout().lock(), &mut io::stderr().lock()))
}

/// As [`main`], for given arguments (the program's name first) and outputs.
pub fn run(arguments: Vec<OsString>, out: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    if is_called_as(&arguments, "thin_check") {
        return match ThinCheck::try_parse_from(arguments) {
            Ok(ThinCheck { arguments }) => thin_check(&arguments, out, errors),
            Err(error) => usage(&error, FAILED, out, errors),
        };
    }
    let is_thin_check = arguments.get(1).is_some_and(|word| word == "thin_check");
    match Fsck::try_parse_from(arguments) {
        Ok(Fsck { command: Command::Check(arguments) }) => check_command(&arguments, out, errors),
        Ok(Fsck { command: Command::ThinCheck(arguments) }) => thin_check(&arguments, out, errors),
        Err(error) => usage(&error, if is_thin_check { FAILED } else { USAGE }, out, errors),
    }
}

fn is_called_as(arguments: &[OsString], name: &str) -> bool {
    arguments.first().is_some_and(|program| Path::new(program).file_name().is_some_and(|file| file == name))
}

/// clap's words: help and version are no errors.
fn usage(error: &clap::Error, status: u8, out: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    if error.use_stderr() {
        say(errors, &error.to_string());
        status
    } else {
        say(out, &error.to_string());
        CLEAN
    }
}

/// Prints. A reader that went away is no reason to change the verdict.
fn say(out: &mut dyn Write, text: &str) {
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

fn check_command(arguments: &CheckArguments, out: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    let report = match check_file(&arguments.metadata) {
        Ok(report) => report,
        Err(error) => {
            say(errors, &if arguments.json { error_json(&error) } else { format!("uthin-fsck: {error}\n") });
            return FAILED;
        }
    };
    if arguments.json {
        say(out, &report_json(&arguments.metadata, &report));
    } else if !arguments.quiet {
        say(out, &report_text(&arguments.metadata, &report));
    }
    match report.verdict {
        Verdict::Clean => CLEAN,
        Verdict::Leaks => LEAKS,
        Verdict::Damage => DAMAGE,
    }
}

fn thin_check(arguments: &ThinCheckArguments, out: &mut dyn Write, errors: &mut dyn Write) -> u8 {
    match check_file(&arguments.metadata) {
        Ok(report) => {
            if !arguments.quiet {
                say(out, &report_text(&arguments.metadata, &report));
            }
            u8::from(report.verdict == Verdict::Damage)
        }
        Err(error) => {
            say(errors, &format!("thin_check: {error}\n"));
            FAILED
        }
    }
}

/// Opens `path` read-only and checks it.
fn check_file(path: &Path) -> Result<Report> {
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
    let disk = FileDisk::open(path, OpenMode::ReadOnly)?;
    check(&disk, &CheckOptions::default())
}

fn error_json(error: &Error) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        error: &'a Error,
    }
    to_json(&Shown { error })
}

fn report_json(path: &Path, report: &Report) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        schema: &'a str,
        file: String,
        #[serde(flatten)]
        report: &'a Report,
    }
    to_json(&Shown { schema: "uthin/v1", file: path.display().to_string(), report })
}

fn to_json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("strings, numbers and lists can be JSON");
    text.push('\n');
    text
}

fn report_text(path: &Path, report: &Report) -> String {
    let mut text = String::new();
    let summary = &report.superblock;
    let mapped: u64 = report.volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.mapped_blocks));
    let kib = summary.block_size_bytes / 1024;
    let lines = [
        ("file", path.display().to_string()),
        ("pool", format!("transaction {}, time {}", summary.transaction_id, summary.time)),
        ("volumes", format!("{}, with {mapped} mappings", report.volumes.len())),
        ("data", format!("{} of {} blocks of {kib} KiB", report.data.allocated, report.data.blocks)),
        ("metadata", format!("{} of {} blocks of 4 KiB", report.metadata.allocated, report.metadata.blocks)),
    ];
    for (title, value) in lines {
        text += &format!("{title:<10}{value}\n");
    }
    for finding in &report.findings {
        write!(text, "\n{finding}\n").expect("a string takes everything");
        for touched in finding.touches.iter().take(TOUCHED_SHOWN) {
            text += &format!("  touches volume {}, ", touched.volume);
            text += &match touched.end {
                Some(end) => format!("bytes {} to {}\n", bytes(touched.begin, kib), bytes(end, kib)),
                None => format!("from byte {} on\n", bytes(touched.begin, kib)),
            };
        }
        let more = finding.touches.len().saturating_sub(TOUCHED_SHOWN);
        if more > 0 {
            text += &format!("  and {more} more places; --json lists them\n");
        }
    }
    if report.findings_omitted > 0 {
        text += &format!("\nand {} findings more\n", report.findings_omitted);
    }
    text += "\n";
    text += &verdict_text(report);
    text
}

/// Where a virtual block begins. Numbers from a damaged device may be anything.
fn bytes(block: u64, kib: u64) -> u128 {
    u128::from(block) * u128::from(kib) * 1024
}

fn verdict_text(report: &Report) -> String {
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let leaked = report.data.over_counted;
    match report.verdict {
        Verdict::Clean if report.superblock.needs_check => {
            "clean, though it asks for a check: thin_check --clear-needs-check-flag takes the flag away\n"
                .to_owned()
        }
        Verdict::Clean => "clean\n".to_owned(),
        Verdict::Leaks => {
            format!("leaks only: safe to use, {leaked} data blocks take space that nothing needs\n")
        }
        Verdict::Damage => {
            let places = count(Severity::Damage) as u64 + report.findings_omitted;
            format!("DAMAGED in {places} places; do not write to it, and keep a copy before anything else\n")
        }
    }
}
