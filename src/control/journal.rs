//! The journal of a pool: the file `journal` in its directory, made when a daemon begins one for the first time.
//!
//! Whoever opens a pool to change it brings in what its journal holds. Only a daemon begins one: commands that open a pool by
//! themselves commit what they do.

use super::create::open_device;
use super::open::{OpenPool, as_found};
use super::pool_dir::PoolDir;
use super::reconcile::{Note, NoteKind};
use super::signature;
use super::staging::Staging;
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::engine::JournalStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{self, BootId, Found, Journal, Recovered};
use crate::metadata::Metadata;
use serde::{Deserialize, Serialize};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// Size of a journal: room for half a million changes, or for eight thousand flushes, between two commits.
const JOURNAL_BYTES: u64 = 32 << 20;
/// What is written at a time when one is made, and read at a time of a file that is to become one.
const ZEROS_BYTES: usize = 1 << 20;
/// Of a file so much is looked at, of a device its beginning: another pool's data, which may begin with zeros, are a file more often.
const FILE_LOOK_BYTES: u64 = 1 << 30;

/// How a pool's journal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalState {
    /// There is none.
    #[default]
    None,
    /// Changes are recorded.
    On,
    /// The pool is not served and was not closed: it holds changes that are not shown.
    Pending,
    /// The pool is not served and was not closed, and what holds its last changes is not there or cannot be read: it cannot be served.
    Missing,
    /// It could not be written, and there is none until the pool is served again.
    Failed,
}

/// What `pool status` says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalInfo {
    /// How it is.
    pub state: JournalState,
    /// What the changes since the last commit take.
    pub used_bytes: u64,
    /// What they may take.
    pub total_bytes: u64,
}

impl From<JournalStatus> for JournalInfo {
    fn from(status: JournalStatus) -> Self {
        match status {
            JournalStatus::Off => JournalInfo::default(),
            JournalStatus::Pending => JournalInfo { state: JournalState::Pending, ..JournalInfo::default() },
            JournalStatus::Missing => JournalInfo { state: JournalState::Missing, ..JournalInfo::default() },
            JournalStatus::Failed => JournalInfo { state: JournalState::Failed, ..JournalInfo::default() },
            JournalStatus::On { used_bytes, total_bytes } => {
                JournalInfo { state: JournalState::On, used_bytes, total_bytes }
            }
        }
    }
}

impl JournalState {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            JournalState::None => "none",
            JournalState::On => "on",
            JournalState::Pending => "pending",
            JournalState::Missing => "missing",
            JournalState::Failed => "failed",
        }
    }
}

/// Has the journal of a pool in the making on a device, or in a file that is there: a journal that nobody uses is begun there at once, by
/// which it is known for what it is.
///
/// `Invalid` if it is too small; `WrongState` if it holds something, unless that does not matter.
pub(super) fn link(staging: &mut Staging, device: &Path, force: bool) -> Result<()> {
    let disk = open_device(device)?.buffered()?;
    journal::require_size(&disk)?;
    if !force && let Some(content) = content(&disk)? {
        let path = device.display();
        let clearing = match disk.is_device() {
            true => format!("`wipefs -a`, and `dd if=/dev/zero of={path} bs=256K count=1 conv=notrunc`"),
            false => format!("`truncate -s 0 {path} && truncate -s {} {path}`", disk.size_bytes()),
        };
        return Err(Error::new(ErrorKind::WrongState, format!("{} holds {content}", device.display()))
            .hint(format!("if that can go, clear it: {clearing}; or make the pool with --force")));
    }
    journal::prepare(&disk, new_id()).map_err(|error| {
        error.hint("name one that can be written, or leave `--journal` away, to have a file")
    })?;
    staging.link("journal", device)
}

/// What a disk seems to hold that a journal must not be written over.
fn content(disk: &FileDisk) -> Result<Option<String>> {
    let content = match (journal::look(disk)?, signature::known_content(disk)?) {
        (Found::Journal { in_use: true, .. }, _) => "the journal of a pool that was not closed",
        (_, Some(content)) => content,
        _ if disk.is_device() && signature::begins_with_zeros(disk, signature::LOOK_BYTES)? => {
            return Ok(None);
        }
        _ if disk.is_device() => "something unknown: its first 256 KiB are not zeros",
        _ if has_only_zeros(disk, disk.size_bytes().min(FILE_LOOK_BYTES))? => return Ok(None),
        _ => "something unknown: it is not all zeros",
    };
    Ok(Some(content.to_owned()))
}

fn has_only_zeros(disk: &FileDisk, bytes: u64) -> Result<bool> {
    let mut piece = vec![0; ZEROS_BYTES];
    for at in (0..bytes).step_by(ZEROS_BYTES) {
        let piece = &mut piece[..(bytes - at).min(ZEROS_BYTES as u64) as usize];
        disk.read_at(at, piece).map_err(|source| Error::io(format!("reading {}", disk.name()), &source))?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What became of the journal that a pool's metadata named.
#[derive(Default)]
pub(super) struct BroughtIn {
    /// Its number, if the metadata have all that it held, flushed or not.
    pub whole: Option<u64>,
    /// What there is to say about it.
    pub note: Option<Note>,
}

/// Brings in what the pool's journal holds, if its metadata name one.
pub(super) fn recover(
    dir: &PoolDir,
    metadata: &mut Metadata<FileDisk>,
    data: &FileDisk,
) -> Result<BroughtIn> {
    let Some(mark) = metadata.journal() else { return Ok(BroughtIn::default()) };
    let disk = open_file(dir, OpenMode::ReadWrite).map_err(lost)?;
    let disk = disk.as_ref().map(|disk| disk as &dyn Disk);
    let recovered = journal::recover(metadata, data, disk, boot_id());
    let Some(Recovered { records, after_power_cut }) = recovered.map_err(lost)? else {
        return Ok(BroughtIn::default());
    };
    let whole = (!after_power_cut).then_some(mark.id);
    if records == 0 {
        return Ok(BroughtIn { whole, note: None });
    }
    let rest = if after_power_cut { "; what nobody had flushed may be missing" } else { "" };
    let text = format!("the pool was not closed: {records} changes were brought in from its journal{rest}");
    Ok(BroughtIn { whole, note: Some(Note { kind: NoteKind::Journal, text }) })
}

/// What somebody has to know who only looks at a pool whose journal was not brought in.
pub(super) fn not_brought_in(dir: &PoolDir, id: u64) -> Note {
    let text = match why_lost(dir, id) {
        None => "the pool was not closed: its journal may hold changes that are not shown here, until it is served or changed".to_owned(),
        Some(why) => format!("the pool was not closed, and {why}: it cannot be served (`uthin pool doctor {}` says what to do)", dir.shown()),
    };
    Note { kind: NoteKind::Journal, text }
}

/// Why what the journal of this number holds cannot be brought in, as far as a look at it tells: the rest of a sentence.
pub(super) fn why_lost(dir: &PoolDir, id: u64) -> Option<String> {
    match look(dir) {
        Ok(Some(Found::Journal { id: found, .. })) if found == id => None,
        Ok(Some(_)) => Some("`journal` is not the one that holds its changes".to_owned()),
        Ok(None) => Some("its journal, which holds changes, is missing".to_owned()),
        Err(error) => Some(format!("its journal, which holds changes, cannot be read: {}", error.message())),
    }
}

/// Nobody can bring in what is not there.
fn lost(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::WrongState | ErrorKind::Corrupt => {
            let first =
                error.next_step().unwrap_or("put the right file `journal` back into the pool's directory");
            let hint = format!(
                "{first}. If it is gone for good, `uthin-fsck check --forget-journal` on the pool's metadata goes on \
                 without it: what was written or discarded since they were committed, a second at most unless they are \
                 an older copy, is then as it was before, flushed or not"
            );
            error.hint(hint)
        }
        _ => error,
    }
}

/// The file, open and locked, if it is there.
fn open_file(dir: &PoolDir, mode: OpenMode) -> Result<Option<FileDisk>> {
    match FileDisk::open(&dir.journal(), mode) {
        Ok(disk) => disk.buffered().map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(dir.journal()) {
            Err(_) => Ok(None),
            Ok(device) => {
                let what = format!("the pool's journal is on {}, which is not there", device.display());
                Err(Error::new(ErrorKind::NotFound, what).hint("attach it"))
            }
        },
        Err(error) => Err(error),
    }
}

/// What is where the pool's journal should be, for who only looks; `None`: nothing is.
pub(super) fn look(dir: &PoolDir) -> Result<Option<Found>> {
    match open_file(dir, OpenMode::ReadOnly)? {
        Some(disk) if disk.size_bytes() < journal::BYTES_MIN => Ok(Some(Found::Other)),
        Some(disk) => journal::look(&disk).map(Some),
        None => Ok(None),
    }
}

/// A journal for a pool that has just been opened and that nobody uses yet, and its number.
pub(super) fn begin(dir: &PoolDir, opened: &mut OpenPool) -> Result<(Journal, u64)> {
    const OR_A_FILE: &str = "remove the link `journal` in the pool's directory, to have a file in its place";
    let found = open_file(dir, OpenMode::ReadWrite).map_err(|error| match error.next_step() {
        Some(hint) => {
            let hint = format!("{hint}; or {OR_A_FILE}");
            error.hint(hint)
        }
        None => error,
    });
    let disk = match found? {
        Some(disk) if dir.journal().is_symlink() => {
            require_ours(&disk).map_err(|error| error.hint(format!(
                "serve and close the pool that needs it, or attach the right device. If nobody needs what it holds, clear its beginning: \
                 `dd if=/dev/zero of={} bs=256K count=1 conv=notrunc`; or {OR_A_FILE}", dir.journal().display())))?;
            disk
        }
        Some(disk) => disk,
        None => make_file(dir)?,
    };
    let (name, id) = (disk.name(), new_id());
    let begun = journal::begin(&mut opened.metadata, &opened.data, Arc::new(disk), id, boot_id());
    let journal = begun.map_err(|error| match error.kind() {
        ErrorKind::Io if error.message().starts_with(&name) => {
            error.hint("serve the pool with `--journal none`, or give it another place")
        }
        _ => as_found(error, &name),
    })?;
    Ok((journal, id))
}

/// No journal has had this number before, as good as certainly.
fn new_id() -> u64 {
    RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()))
}

/// `WrongState` for a device that holds anything but a journal that nobody uses: another may be where the pool's was, and two pools
/// may have been given the same one. What this pool's metadata named has been brought in.
fn require_ours(disk: &FileDisk) -> Result<()> {
    let content = match journal::look(disk)? {
        Found::Journal { in_use: false, .. } => return Ok(()),
        Found::Nothing if signature::known_content(disk)?.is_none() => return Ok(()),
        Found::Journal { in_use: true, .. } => "the journal of a pool that was not closed",
        Found::Unreadable => "a journal that is damaged, or of a newer uthin",
        Found::Nothing | Found::Other => {
            signature::known_content(disk)?.unwrap_or("something that is no journal")
        }
    };
    Err(Error::new(ErrorKind::WrongState, format!("{} holds {content}", disk.name())))
}

/// A new file with all its space: written once, so that a flush writes nothing but records. It has its name when it is whole.
fn make_file(dir: &PoolDir) -> Result<FileDisk> {
    let (path, making) = (dir.journal(), dir.journal().with_extension("new"));
    // One that was cut off in the making.
    let _ = fs::remove_file(&making);
    let disk = FileDisk::create(&making, JOURNAL_BYTES)?;
    let made = || {
        fs::set_permissions(&making, fs::Permissions::from_mode(0o600))?;
        let zeros = vec![0; ZEROS_BYTES];
        for piece in 0..JOURNAL_BYTES / ZEROS_BYTES as u64 {
            disk.write_at(piece * ZEROS_BYTES as u64, &zeros)?;
        }
        disk.flush()?;
        fs::rename(&making, &path)?;
        fs::File::open(dir.path())?.sync_all()
    };
    if let Err(source) = made() {
        // Nothing names it yet; the first error is the one to tell.
        let _ = fs::remove_file(&making);
        return Err(Error::io(format_args!("{}: making the pool's journal", path.display()), &source)
            .hint("make room, or serve the pool with `--journal none`"));
    }
    drop(disk);
    FileDisk::open(&path, OpenMode::ReadWrite)?.buffered()
}

/// This run of the operating system.
fn boot_id() -> BootId {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse_boot_id(&text).unwrap_or_else(|| {
        tracing::warn!("this run of the operating system has no number: what was not flushed will not outlive this process");
        BootId::UNKNOWN
    })
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|letter| *letter != '-').collect();
    let number = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())??;
    Some(BootId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_boot_is_read_or_not() {
        let text = "01234567-89ab-cdef-0123-456789abcdef\n";
        let bytes = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        assert_eq!(parse_boot_id(text), Some(BootId([bytes, bytes].concat().try_into().expect("16"))));
        for wrong in
            ["", "0123", "g1234567-89ab-cdef-0123-456789abcdef", "+1234567-89ab-cdef-0123-456789abcde"]
        {
            assert_eq!(parse_boot_id(wrong), None, "{wrong}");
        }
    }
}
