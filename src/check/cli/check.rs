//! `uthin-fsck check`, alias `thin_check`: words, JSON and exit status of a check.

use super::beside::open_state;
use super::names::Names;
use super::progress::Watched;
use super::{CLEAN, DAMAGE, FAILED, LEAKS, Terminal, require_metadata, to_json};
use crate::check::dump::State;
use crate::check::report::{Report, Severity, Space, Verdict};
use crate::check::{CheckOptions, MendOptions, Mended, Scope, check, check_and_mend};
use crate::disk::{FileDisk, OpenMode};
use crate::error::Result;
use crate::units::MetaBlock;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Touched parts of volumes that are listed for one finding on a terminal; all are in the JSON.
const TOUCHED_SHOWN: usize = 4;
const CHECKING: &str = "checking";

/// What the exit status tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum ExitCodes {
    Fine,
    Compatible,
}

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
    /// Only the superblock.
    #[arg(long, conflicts_with = "auto_repair")]
    super_block_only: bool,
    /// The volumes without their mappings, and no counts.
    #[arg(long, conflicts_with = "auto_repair")]
    skip_mappings: bool,
    /// Leaks do not change the exit status.
    #[arg(long, conflicts_with = "auto_repair")]
    ignore_non_fatal_errors: bool,
    /// `fine` is 3 for leaks only and 4 for damage, `compatible` is thin_check's: 1 for damage, 0 for leaks [default: that of
    /// the name it is called by].
    #[arg(long, value_enum, value_name = "WHICH")]
    exit_codes: Option<ExitCodes>,
    /// Mend leaks and wrong counts in place, when everything else is sound.
    #[arg(long)]
    auto_repair: bool,
    /// When nothing is damaged, take away the flag by which the pool asks for a check.
    #[arg(long)]
    clear_needs_check_flag: bool,
    /// When nothing is damaged, go on without the pool's journal, which is lost: what was written or discarded since the last commit
    /// is then as it was before, flushed or not.
    #[arg(long)]
    forget_journal: bool,
    /// When the partial blocks are not those of the last commit, and nothing else is damaged, go on with those that are there: what was
    /// written to them since may be lost, and blocks that are not among them may show what somebody else has written.
    #[arg(long)]
    accept_partial_blocks: bool,
    /// The volumes of the metadata snapshot instead of the live ones.
    #[arg(short, long, conflicts_with_all = ["auto_repair", "clear_needs_check_flag", "forget_journal", "accept_partial_blocks"])]
    metadata_snap: bool,
    /// The tree of volumes is in this block.
    #[arg(long, value_name = "BLOCK", conflicts_with_all = ["auto_repair", "clear_needs_check_flag", "forget_journal", "accept_partial_blocks", "metadata_snap"])]
    override_mapping_root: Option<u64>,
    /// The details are in this block.
    #[arg(long, value_name = "BLOCK", conflicts_with_all = ["auto_repair", "clear_needs_check_flag", "forget_journal", "accept_partial_blocks", "metadata_snap"])]
    override_details_root: Option<u64>,
}

impl Arguments {
    fn options(&self) -> CheckOptions {
        let scope = match (self.super_block_only, self.skip_mappings) {
            (true, _) => Scope::Superblock,
            (false, true) => Scope::Volumes,
            (false, false) => Scope::Everything,
        };
        CheckOptions {
            scope,
            metadata_snapshot: self.metadata_snap,
            mapping_root: self.override_mapping_root.map(MetaBlock),
            details_root: self.override_details_root.map(MetaBlock),
            ..CheckOptions::default()
        }
    }

    fn look(&self) -> Result<(Report, Mended)> {
        let mend = MendOptions {
            space_maps: self.auto_repair,
            needs_check: self.clear_needs_check_flag,
            journal: self.forget_journal,
            partial_blocks: self.accept_partial_blocks,
        };
        if mend == MendOptions::default() {
            let state = if self.metadata_snap { State::Snapshot } else { State::Live };
            let disk = Watched::new(open_state(&self.metadata, state)?, CHECKING, self.quiet);
            return Ok((check(&disk, &self.options())?, Mended::default()));
        }
        require_metadata(&self.metadata)?;
        let disk = FileDisk::open(&self.metadata, OpenMode::ReadWrite)?.through_page_cache()?;
        let disk = Watched::new(Box::new(disk), CHECKING, self.quiet);
        check_and_mend(&disk, &self.options(), mend)
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    let (report, mended) = match arguments.look() {
        Ok(looked) => looked,
        Err(error) => return terminal.failed_on(&arguments.metadata, error, arguments.json),
    };
    let names = Names::beside(&arguments.metadata);
    if arguments.json {
        terminal.say(&report_json(&arguments.metadata, &report, &names));
    } else if !arguments.quiet {
        terminal.say(&report_text(&arguments.metadata, &report, &names));
        terminal.say(mended_text(mended));
        if mended.journal {
            terminal.say("mended: the journal is forgotten, and what it held is lost\n");
        }
        if mended.partial_blocks {
            terminal.say("mended: the partial blocks are those that were found; what was written to them since may be lost\n");
        }
        if terminal.is_compatible {
            terminal.say(&tool_text(&report));
        }
    }
    if arguments.auto_repair && !mended.space_maps && report.verdict == Verdict::Damage {
        let (name, shown) = (&terminal.name, arguments.metadata.display());
        let words =
            format!("{name}: {shown}: nothing was mended: more is damaged than counts in the space maps\n");
        terminal.remark(&words);
    }
    let by_name = if terminal.is_compatible { ExitCodes::Compatible } else { ExitCodes::Fine };
    let is_compatible = arguments.exit_codes.unwrap_or(by_name) == ExitCodes::Compatible;
    // Leaks are safe, and no machine should fail to boot over one.
    let forgives_leaks = is_compatible || arguments.ignore_non_fatal_errors;
    match report.verdict {
        Verdict::Clean => CLEAN,
        Verdict::Leaks if forgives_leaks => CLEAN,
        Verdict::Leaks => LEAKS,
        Verdict::Damage if is_compatible => FAILED,
        Verdict::Damage => DAMAGE,
    }
}

fn mended_text(mended: Mended) -> &'static str {
    match (mended.space_maps, mended.needs_check) {
        (false, false) => "",
        (true, false) => "mended: the space maps were made anew\n",
        (false, true) => "mended: needs_check was taken away\n",
        (true, true) => "mended: the space maps were made anew, needs_check was taken away\n",
    }
}

/// Lines that scripts for thin_check read.
fn tool_text(report: &Report) -> String {
    let summary = &report.superblock;
    format!(
        "TRANSACTION_ID={}\nMETADATA_FREE_BLOCKS={}\n",
        summary.transaction_id, summary.metadata_free_blocks
    )
}

fn report_json(path: &Path, report: &Report, names: &Names) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        schema: &'a str,
        file: String,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        volume_names: &'a BTreeMap<u64, String>,
        #[serde(flatten)]
        report: &'a Report,
    }
    to_json(&Shown {
        schema: "uthin/v1",
        file: path.display().to_string(),
        volume_names: names.all(),
        report,
    })
}

fn report_text(path: &Path, report: &Report, names: &Names) -> String {
    let mut text = String::new();
    let summary = &report.superblock;
    let mapped: u64 = report.volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.mapped_blocks));
    let kib = summary.block_size_bytes / 1024;
    let lines = [
        ("file", path.display().to_string()),
        ("pool", format!("transaction {}, time {}", summary.transaction_id, summary.time)),
        ("volumes", format!("{}, with {mapped} mappings", report.volumes.len())),
        ("data", in_use(report.data, kib)),
        ("metadata", in_use(report.metadata, 4)),
    ];
    for (title, value) in lines {
        text += &format!("{title:<10}{value}\n");
    }
    if report.partial_blocks > 0 {
        let words = "partial blocks: only uthin opens it until `uthin pool settle`";
        text += &format!("{:<10}{} {words}\n", "partial", report.partial_blocks);
    }
    if report.journal {
        text += &format!("{:<10}holds changes on top of this: serve the pool to bring them in\n", "journal");
    }
    for finding in &report.findings {
        write!(text, "\n{finding}\n").expect("a string takes everything");
        for touched in finding.touches.iter().take(TOUCHED_SHOWN) {
            text += &format!("  touches {}, ", names.volume(touched.volume.get()));
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

fn in_use(space: Space, kib: u64) -> String {
    match space.blocks {
        0 => "not counted".to_owned(),
        blocks => format!("{} of {blocks} blocks of {kib} KiB", space.allocated),
    }
}

/// Where a virtual block begins. Numbers from a damaged device may be anything.
fn bytes(block: u64, kib: u64) -> u128 {
    u128::from(block) * u128::from(kib) * 1024
}

fn verdict_text(report: &Report) -> String {
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let leaked = match (report.data.over_counted, report.metadata.over_counted) {
        (data, 0) => format!("{data} data blocks"),
        (0, metadata) => format!("{metadata} metadata blocks"),
        (data, metadata) => format!("{data} data blocks and {metadata} metadata blocks"),
    };
    match report.verdict {
        Verdict::Clean if report.superblock.needs_check => {
            "clean, though it asks for a check: thin_check --clear-needs-check-flag takes the flag away\n"
                .to_owned()
        }
        Verdict::Clean => "clean\n".to_owned(),
        Verdict::Leaks => {
            format!("leaks only: safe to use, {leaked} take space that nothing needs\n")
        }
        Verdict::Damage => {
            let places = count(Severity::Damage) as u64 + report.findings_omitted;
            format!("DAMAGED in {places} places; do not write to it, and keep a copy before anything else\n")
        }
    }
}
