//! `uthin-fsck check`, alias `thin_check`: words, JSON and exit status of a check.

use super::{CLEAN, DAMAGE, FAILED, LEAKS, Terminal, open_metadata, to_json};
use crate::check::report::{Report, Severity, Verdict};
use crate::check::{CheckOptions, check};
use crate::error::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Touched parts of volumes that are listed for one finding on a terminal; all are in the JSON.
const TOUCHED_SHOWN: usize = 4;

#[derive(clap::Args)]
pub(super) struct Arguments {
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

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    let report = match check_file(&arguments.metadata) {
        Ok(report) => report,
        Err(error) => return terminal.failed(&error, arguments.json),
    };
    if arguments.json {
        terminal.say(&report_json(&arguments.metadata, &report));
    } else if !arguments.quiet {
        terminal.say(&report_text(&arguments.metadata, &report));
    }
    match report.verdict {
        Verdict::Clean => CLEAN,
        // Leaks are safe, and no machine should fail to boot over one.
        Verdict::Leaks if terminal.is_compatible => CLEAN,
        Verdict::Leaks => LEAKS,
        Verdict::Damage if terminal.is_compatible => FAILED,
        Verdict::Damage => DAMAGE,
    }
}

fn check_file(path: &Path) -> Result<Report> {
    check(&open_metadata(path)?, &CheckOptions::default())
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
