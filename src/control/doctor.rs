//! The doctor: looks at everything about a pool that can fail to fit together, says it, and mends what can be mended without
//! a loss.
//!
//! Looking writes nothing. Mending does what opening the pool would do (the catalog), what `uthin-fsck check` would (leaks,
//! the flag), and removes what nobody uses; it never guesses about data. After it, the pool is looked at again: what is not
//! found any more was mended.

use super::api::{Health, OriginInfo, PoolApi};
use super::client::Client;
use super::direct;
use super::name::{PoolRef, VolumeName};
use super::open::{as_found, compare};
use super::pool_dir::{PoolDir, PoolDisks};
use super::reconcile::{NoteKind, Reconciled};
use crate::check::{CheckOptions, MendOptions, Verdict, check, check_and_mend};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Access, Metadata};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The pool works, and this should be seen to.
    Warning,
    /// The pool cannot be served as it is, or data are in danger.
    Problem,
}

/// Something that the doctor can do.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Mend {
    /// What opening for writing does: brings the catalog into step, goes on with deletions.
    Open,
    /// New space maps.
    SpaceMaps,
    /// Takes the needs-check flag away.
    NeedsCheck,
    /// Makes the data file as long as it was; nothing was mapped behind its present end.
    ExtendData(u64),
    /// A socket at which nobody listens.
    RemoveSocket(PathBuf),
    /// A directory in which a pool was to be made.
    RemoveStaging(PathBuf),
}

impl Mend {
    fn words(&self) -> &'static str {
        match self {
            Mend::Open => "brings the catalog into step, as opening the pool for writing does",
            Mend::SpaceMaps => "makes the space maps anew from what the volumes map",
            Mend::NeedsCheck => "takes the flag away: the metadata is sound",
            Mend::ExtendData(_) => "makes the file as long as it was: nothing is mapped in what is missing",
            Mend::RemoveSocket(_) | Mend::RemoveStaging(_) => "removes it",
        }
    }
}

/// One thing found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What kind of thing, in one word.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What mending it does; `None`: the doctor cannot mend it.
    pub mend: Option<&'static str>,
    /// Whether it has been mended.
    pub mended: bool,
    /// What to do about it.
    pub hint: Option<String>,
    #[serde(skip)]
    how: Option<Mend>,
}

impl Finding {
    fn new(code: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Finding { code, severity, what: what.into(), mend: None, mended: false, hint: None, how: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Finding { hint: Some(hint.into()), ..self }
    }

    fn mend(self, mend: Mend) -> Self {
        Finding { mend: Some(mend.words()), how: Some(mend), ..self }
    }

    /// A problem that an error tells of.
    pub fn of_error(code: &'static str, error: &Error) -> Self {
        let hint = error.next_step().map(str::to_owned);
        Finding { hint, ..Finding::new(code, Severity::Problem, error.message()) }
    }
}

/// What the doctor has to say of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Examined {
    /// The pool, as the user wrote it.
    pub pool: String,
    /// Its directory.
    pub path: String,
    /// The process that serves it.
    pub served_by: Option<u32>,
    /// Everything found.
    pub findings: Vec<Finding>,
}

impl Examined {
    /// The worst of what is left.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().filter(|finding| !finding.mended).map(|finding| finding.severity).max()
    }
}

/// Looks at a pool. An error means that nothing could be said: there is none, or somebody else has it.
pub fn examine(pool: &PoolRef) -> Result<Examined> {
    let dir = PoolDir::of(pool);
    let mut findings = Vec::new();
    let served_by = match Client::find(&dir)? {
        Some(client) => Some(examine_served(&dir, &client, &mut findings)?),
        None => {
            // First of all, for the lock: who has it has every right to a socket and to a catalog in the making.
            let disks = dir.open_disks(OpenMode::ReadOnly)?;
            stale_sockets(&dir, &mut findings);
            examine_disks(&dir, disks, &mut findings);
            examine_space(pool, &mut findings);
            None
        }
    };
    leftovers(&dir, &mut findings);
    let path = dir.absolute()?.to_string_lossy().into_owned();
    Ok(Examined { pool: pool.text().to_owned(), path, served_by, findings })
}

/// Looks at a pool, mends what can be, and looks again. `Busy` when it is served and there is something to mend.
pub fn mend(pool: &PoolRef) -> Result<Examined> {
    let dir = PoolDir::of(pool);
    let before = examine(pool)?;
    let mut done: Vec<&Mend> = Vec::new();
    for mend in before.findings.iter().filter_map(|finding| finding.how.as_ref()) {
        if before.served_by.is_some() && !matches!(mend, Mend::RemoveStaging(_)) {
            return Err(Error::new(ErrorKind::Busy, format!("pool `{}` is being served", dir.shown()))
                .hint(format!("`uthin pool close {}` first", dir.shown())));
        }
        // What cannot be mended keeps the pool from being opened.
        let is_hopeless = |finding: &Finding| finding.severity == Severity::Problem && finding.how.is_none();
        if *mend == Mend::Open && before.findings.iter().any(is_hopeless) {
            continue;
        }
        if !done.contains(&mend) {
            carry_out(pool, &dir, mend)?;
            done.push(mend);
        }
    }
    let mut after = examine(pool)?;
    let is_left = |finding: &Finding| {
        after.findings.iter().any(|left| (left.code, &left.what) == (finding.code, &finding.what))
    };
    let mended: Vec<_> =
        before.findings.into_iter().filter(|finding| finding.how.is_some() && !is_left(finding)).collect();
    after.findings.splice(0..0, mended.into_iter().map(|finding| Finding { mended: true, ..finding }));
    Ok(after)
}

fn carry_out(pool: &PoolRef, dir: &PoolDir, mend: &Mend) -> Result<()> {
    match mend {
        Mend::Open => direct::open_to_change(pool)?.close(),
        Mend::SpaceMaps | Mend::NeedsCheck => {
            let disk = FileDisk::open(&dir.metadata(), OpenMode::ReadWrite)?.through_page_cache()?;
            let options = MendOptions {
                space_maps: *mend == Mend::SpaceMaps,
                needs_check: *mend == Mend::NeedsCheck,
                journal: false,
                partial_blocks: false,
            };
            check_and_mend(&disk, &CheckOptions::default(), options).map(drop)
        }
        Mend::ExtendData(size_bytes) => {
            let disk = FileDisk::open(&dir.data(), OpenMode::ReadWrite)?;
            disk.grow(*size_bytes)
                .and_then(|()| disk.flush())
                .map_err(|source| Error::io(format!("extending {}", disk.name()), &source))
        }
        Mend::RemoveSocket(path) => {
            // Under the lock: a daemon may have begun since we looked.
            let _lock = dir.open_disks(OpenMode::ReadWrite)?;
            std::fs::remove_file(path)
                .map_err(|source| Error::io(format!("removing {}", path.display()), &source))
        }
        Mend::RemoveStaging(path) => std::fs::remove_dir_all(path)
            .map_err(|source| Error::io(format!("removing {}", path.display()), &source)),
    }
}

/// What a daemon says, and what can be seen beside it; the daemon's process.
fn examine_served(dir: &PoolDir, client: &Client, findings: &mut Vec<Finding>) -> Result<u32> {
    let info = client.status()?;
    if let Some(failure) = &info.failure {
        findings.push(Finding::of_error("failed", failure));
    }
    for note in &info.notes {
        findings.push(Finding::new("opened", Severity::Note, format!("when it was opened: {note}")));
    }
    for what in info.removed_words() {
        let hint =
            "nbdcopy, or `qemu-img convert`, from its exports; nothing brings back a file that was removed";
        findings.push(Finding::new("removed", Severity::Problem, what).hint(hint));
    }
    let volumes = client.volumes().map_or_else(|_| Vec::new(), |list| list.volumes);
    let on_origins =
        volumes.iter().filter_map(|volume| Some((&volume.name, volume.external_origin.as_ref()?)));
    origin_findings(dir, on_origins.map(|(name, origin)| (name, origin.clone())), findings);
    let is_stopped = info.failure.is_some() || !info.removed.is_empty();
    space_finding(dir, info.health, is_stopped, findings);
    if let Ok(file) = std::fs::metadata(dir.data())
        && file.is_file()
        && file.len() < info.data.total_bytes
    {
        let what = format!(
            "{} has {} bytes, and the pool has {}",
            dir.data().display(),
            file.len(),
            info.data.total_bytes
        );
        findings.push(
            Finding::new("data-size", Severity::Problem, what)
                .hint("somebody has cut it off: close the pool, and restore the file from a backup"),
        );
    }
    let what = "it is being served: its metadata is not looked at";
    findings.push(
        Finding::new("served", Severity::Note, what)
            .hint(format!("`uthin pool close {}` first, for all of it", dir.shown())),
    );
    Ok(info.served_by.map_or(0, |daemon| daemon.pid))
}

/// Metadata, data and catalog of a pool that nobody has.
fn examine_disks(dir: &PoolDir, disks: PoolDisks, findings: &mut Vec<Finding>) {
    let PoolDisks { metadata, data } = disks;
    let name = metadata.name();
    let sound = match metadata.through_page_cache() {
        Ok(disk) => examine_metadata(&disk, findings).then_some(disk),
        Err(error) => {
            findings.push(Finding::of_error("metadata", &error));
            None
        }
    };
    let Some(disk) = sound else { return };
    let mut metadata = match Metadata::open(disk, Access::ReadOnly) {
        Ok(metadata) => metadata,
        Err(error) => return findings.push(Finding::of_error("metadata", &as_found(error, &name))),
    };
    findings.extend(examine_journal(dir, metadata.journal().map(|mark| mark.id)));
    examine_data(&mut metadata, &data, findings);
    match compare(dir, &mut metadata) {
        Ok((loaded, reconciled)) => {
            if let Some(changes) = loaded.as_ref().and_then(|loaded| loaded.changes_in_log) {
                let what = format!(
                    "it was not closed: {changes} changes are in catalog.log alone, not in catalog.json"
                );
                findings.push(Finding::new("catalog-log", Severity::Note, what).mend(Mend::Open));
            }
            let numbers = loaded.iter().flat_map(|loaded| loaded.catalog.volumes.iter());
            for entry in numbers.filter(|entry| entry.name.is_number()) {
                let what = format!("volume {} has no name but its number", entry.id);
                let hint = format!("`uthin volume rename {}/{} NAME` gives it one", dir.shown(), entry.id);
                findings.push(Finding::new("no-name", Severity::Note, what).hint(hint));
            }
            examine_catalog(&reconciled, findings);
            let volumes = reconciled.catalog.volumes.iter();
            let on_origins =
                volumes.filter_map(|entry| Some((&entry.name, entry.external_origin.as_ref()?.info())));
            origin_findings(dir, on_origins, findings);
        }
        Err(error) => findings.push(Finding::of_error("catalog", &error)),
    }
    if let Some(block) = metadata.held_root() {
        let what = format!("a metadata snapshot is held in block {block}, and keeps what it shows allocated");
        findings.push(Finding::new("metadata-snapshot", Severity::Note, what).hint(format!(
            "`uthin pool metadata-snapshot {} --release`, when no tool reads it",
            dir.shown()
        )));
    }
}

/// Whether the journal is where it is needed: that of this number, or a place for one.
fn examine_journal(dir: &PoolDir, needed: Option<u64>) -> Option<Finding> {
    let problem = |what: String| Finding::new("journal", Severity::Problem, what);
    let Some(id) = needed else {
        let error = super::journal::look(dir).err()?;
        let hint =
            "attach it; or remove the link `journal` in the pool's directory, to have a file in its place";
        return Some(problem(error.message().to_owned()).hint(hint));
    };
    let Some(why) = super::journal::why_lost(dir, id) else {
        let what = "it was not closed: changes since the last commit are in its journal";
        return Some(Finding::new("journal", Severity::Note, what).mend(Mend::Open));
    };
    Some(problem(format!("it was not closed, and {why}")).hint(format!(
        "put the right file `journal`, or the link to the right device, into the pool's directory; if it is gone for good, `uthin-fsck check \
         --forget-journal {}` goes on without what was written since the last commit",
        dir.metadata().display()
    )))
}

/// Whether it can be opened at all.
fn examine_metadata(disk: &FileDisk, findings: &mut Vec<Finding>) -> bool {
    let name = disk.name();
    let report = match check(disk, &CheckOptions::default()) {
        Ok(report) => report,
        Err(error) => {
            findings.push(Finding::of_error("metadata", &as_found(error, &name)));
            return false;
        }
    };
    match report.verdict {
        Verdict::Clean => {}
        Verdict::Leaks => {
            let what = format!(
                "{} data blocks are counted too often: they take space that nothing needs",
                report.data.over_counted
            );
            findings.push(Finding::new("leaks", Severity::Warning, what).mend(Mend::SpaceMaps));
        }
        Verdict::Damage => {
            let is_damage =
                |finding: &&crate::check::Finding| finding.severity == crate::check::Severity::Damage;
            let first =
                report.findings.iter().find(is_damage).map_or(String::new(), |found| format!(": {found}"));
            findings.push(Finding::new("damage", Severity::Problem, format!("{name} is damaged{first}")).hint(format!(
                "keep a copy; `uthin-fsck check {name}` tells all, `uthin-fsck repair -i {name} -o NEW` makes what can be saved"
            )));
        }
    }
    if report.superblock.needs_check {
        let found = Finding::new(
            "needs-check",
            Severity::Problem,
            format!("{name} carries the needs-check flag: it cannot be served"),
        );
        findings.push(match report.verdict {
            Verdict::Clean | Verdict::Leaks => found.mend(Mend::NeedsCheck),
            Verdict::Damage => found.hint("repair the metadata first"),
        });
    }
    true
}

fn examine_data(metadata: &mut Metadata<FileDisk>, data: &FileDisk, findings: &mut Vec<Finding>) {
    let geometry = metadata.geometry();
    let block_bytes = geometry.block_size.bytes();
    let (has, needs) = (data.size_bytes(), geometry.data_blocks.saturating_mul(block_bytes));
    if has >= needs {
        let rest = has - needs;
        if rest >= block_bytes {
            let what = format!("{} has {rest} bytes more than the pool uses", data.name());
            findings.push(
                Finding::new("data-size", Severity::Note, what).hint("`uthin pool grow` takes them into use"),
            );
        }
        return;
    }
    let what = format!("{} has {has} bytes, and the pool was made with {needs}", data.name());
    let found = Finding::new("data-size", Severity::Problem, what);
    let has_journal = metadata.journal().is_some();
    findings.push(match mapped_end(metadata) {
        // Nobody here knows what it says.
        Ok(_) if has_journal => found.hint(
            "the pool was not closed, and its journal may hold mappings of what is missing: restore the file from a backup, or find \
             the right device",
        ),
        Ok(blocks) if !data.is_device() && blocks.saturating_mul(block_bytes) <= has => {
            found.mend(Mend::ExtendData(needs))
        }
        Ok(blocks) if blocks.saturating_mul(block_bytes) > has => found.hint(format!(
            "volumes have data up to byte {}: restore the file from a backup, or find the right device; `truncate -s {needs}` \
             makes the pool usable, with zeros in place of what is gone",
            blocks.saturating_mul(block_bytes)
        )),
        Ok(_) => found.hint("put the right device behind the link, or give it back its size"),
        Err(error) => found.hint(format!("what it should hold cannot be told: {}", error.message())),
    });
}

/// One past the highest data block that any volume maps.
fn mapped_end(metadata: &mut Metadata<FileDisk>) -> Result<u64> {
    let mut end = 0;
    for (id, _) in metadata.volumes()? {
        metadata.for_each_mapping(id, 0..u64::MAX, &mut |_, mapping| {
            end = end.max(mapping.block.0.saturating_add(1));
        })?;
    }
    Ok(end)
}

fn examine_catalog(reconciled: &Reconciled, findings: &mut Vec<Finding>) {
    for note in &reconciled.notes {
        let (code, severity, mend) = match note.kind {
            NoteKind::Interrupted => ("interrupted", Severity::Warning, true),
            NoteKind::TransactionId => ("transaction-id", Severity::Warning, true),
            NoteKind::NoCatalog => ("no-catalog", Severity::Warning, true),
            NoteKind::LostVolume => ("lost-volume", Severity::Warning, true),
            NoteKind::UnknownVolume => ("unknown-volume", Severity::Warning, true),
            NoteKind::VolumeGrown => ("volume-size", Severity::Warning, true),
            NoteKind::VolumeSize => ("volume-size", Severity::Warning, false),
            NoteKind::UnreadableMap => ("unreadable-map", Severity::Problem, false),
            NoteKind::Journal => ("journal", Severity::Note, true),
            NoteKind::BlockDevice => ("block-device", Severity::Note, false),
        };
        let found = Finding::new(code, severity, &note.text);
        findings.push(if mend { found.mend(Mend::Open) } else { found });
    }
    for id in &reconciled.catalog.deleting {
        let what = format!("volume {id} is deleted, and its blocks are not free yet");
        findings.push(Finding::new("deletion", Severity::Warning, what).mend(Mend::Open));
    }
}

/// Whether it runs out of space. What keeps it from being asked has been found by now.
fn examine_space(pool: &PoolRef, findings: &mut Vec<Finding>) {
    let is_stopped = findings.iter().any(|finding| finding.severity == Severity::Problem);
    if let Ok(info) = direct::open_to_look(pool).and_then(|service| service.status()) {
        space_finding(&PoolDir::of(pool), info.health, is_stopped, findings);
    }
}

fn space_finding(dir: &PoolDir, health: Health, is_stopped: bool, findings: &mut Vec<Finding>) {
    let what = match health {
        Health::Ok => return,
        Health::Low => "free space for data or metadata is low",
        Health::Critical if is_stopped => return,
        Health::Critical => "no space for data or metadata is free",
    };
    findings.push(Finding::new("space", Severity::Warning, what).hint(format!(
        "`uthin pool status {}` has the figures, `uthin pool grow` adds to them",
        dir.shown()
    )));
}

/// External origins that are not there, or not what they were: one finding for each, however many volumes stand on it.
fn origin_findings<'a>(
    dir: &PoolDir,
    on_origins: impl Iterator<Item = (&'a VolumeName, OriginInfo)>,
    findings: &mut Vec<Finding>,
) {
    let mut lacking: BTreeMap<(String, String), Vec<&VolumeName>> = BTreeMap::new();
    for (name, origin) in on_origins {
        let Some(problem) = origin.problem else { continue };
        lacking.entry((origin.path, problem)).or_default().push(name);
    }
    for ((path, problem), names) in lacking {
        let others = match names.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let what =
            format!("volume `{}`{others} cannot be served: external origin {path}: {problem}", names[0]);
        findings.push(Finding::new("origin", Severity::Warning, what).hint(format!(
            "bring it back as it was; if it is elsewhere now, or was changed and is right: `uthin volume set {}/{} --origin FILE`",
            dir.shown(),
            names[0]
        )));
    }
}

fn stale_sockets(dir: &PoolDir, findings: &mut Vec<Finding>) {
    for path in [dir.control_socket(), dir.nbd_socket()] {
        if std::fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket()) {
            let what = format!("{} is left of a daemon that was killed", path.display());
            findings
                .push(Finding::new("stale-socket", Severity::Warning, what).mend(Mend::RemoveSocket(path)));
        }
    }
}

/// Directories beside the pool's in which a pool of its name was to be made by a process that is gone.
fn leftovers(dir: &PoolDir, findings: &mut Vec<Finding>) {
    let Ok(path) = dir.absolute() else { return };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!(".{}.new-", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(pid) = file_name.to_string_lossy().strip_prefix(&prefix).map(str::to_owned) else {
            continue;
        };
        if pid.parse::<u32>().is_err() || Path::new("/proc").join(&pid).exists() || !is_staging(&entry.path())
        {
            continue;
        }
        let what = format!("{} is left of a pool that was never finished", entry.path().display());
        findings
            .push(Finding::new("leftover", Severity::Warning, what).mend(Mend::RemoveStaging(entry.path())));
    }
}

/// Whether there is nothing in it but what making a pool puts there, and nobody has it.
fn is_staging(path: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    let known = |name: &std::ffi::OsStr| {
        ["data", "metadata", "catalog.json", "catalog.json.new"].iter().any(|known| name == *known)
    };
    let mut entries = entries.map_while(|entry| entry.ok());
    entries.all(|entry| {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        known(&entry.file_name()) && (is_link || FileDisk::open(&entry.path(), OpenMode::ReadWrite).is_ok())
    })
}
