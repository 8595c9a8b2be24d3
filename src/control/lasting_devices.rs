//! Block devices that outlive their daemon: which volume is behind which, and whether the pool has all that was acknowledged there.
//!
//! The file `devices.json` in the pool's directory tells it to whoever opens the pool next. What must hold:
//!
//! - A device is in the file before its first request comes. So whatever a killed daemon leaves behind is known to the next.
//! - A device goes on only if nothing is lost that was acknowledged there. Each names the journal that has its writes
//!   ([`Kept::Journal`]); whoever opens the pool and brings that journal in, all of it, notes that the metadata have them now
//!   ([`Kept::Metadata`]). Any other outcome (the journal had failed, the system was restarted, another journal has come) is a loss
//!   ([`Kept::Unknown`]), also where it may not be one: such a device is taken away, and its requests fail.
//! - The journal is named before it takes the first of the device's writes.
//!
//! The devices go with this run of the operating system, and so does what the file says; it is not made durable.

use super::catalog::Catalog;
use super::pool_dir::PoolDir;
use super::reconcile::{Note, NoteKind};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::ublk::{BLOCK_DEVICE, Mark, Options};
use crate::units::VolumeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

const SCHEMA: &str = "uthin/devices/v1";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where what was acknowledged at a device is to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// In the metadata, and in the journal of this number on top of them.
    Journal(u64),
    /// In the metadata.
    Metadata,
    /// Some of it may be lost.
    Unknown,
}

/// A device, and what it was made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The N of `/dev/ublkbN`.
    pub number: u32,
    /// By what it is known from others that have the number later.
    pub mark: Mark,
    /// Its volume.
    pub volume: u64,
    queues: u16,
    depth: u16,
    logical_block_bytes: u32,
    physical_block_bytes: u32,
    read_only: bool,
    /// Where its writes are.
    pub kept: Kept,
}

impl Record {
    /// A device that has just been made.
    pub fn new(number: u32, mark: Mark, volume: VolumeId, options: Options, journal: u64) -> Record {
        let Options { queues, depth, logical_block_bytes, physical_block_bytes, read_only, zero_copy } =
            options;
        assert!(!zero_copy, "a device that outlives its daemon has no zero copy");
        Record {
            number,
            mark,
            volume: volume.get(),
            queues,
            depth,
            logical_block_bytes,
            physical_block_bytes,
            read_only,
            kept: Kept::Journal(journal),
        }
    }

    /// The same device, whose writes are there.
    pub fn kept_in(self, kept: Kept) -> Record {
        Record { kept, ..self }
    }

    /// What it is like.
    pub fn options(&self) -> Options {
        let Record { queues, depth, logical_block_bytes, physical_block_bytes, read_only, .. } = *self;
        let zero_copy = false;
        Options { queues, depth, logical_block_bytes, physical_block_bytes, read_only, zero_copy }
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("{BLOCK_DEVICE}{}", self.number))
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    schema: String,
    /// The run of the operating system in which it was written.
    boot: String,
    /// Device and inode of the pool's metadata, or 0 and the number of a block device: a copy of the pool has a copy of this file, and none of the devices.
    metadata: (u64, u64),
    devices: Vec<Record>,
}

/// The file of a pool. Whoever changes it has the pool's lock.
pub struct LastingDevices {
    path: PathBuf,
    metadata: PathBuf,
    /// Of the pool's metadata.
    identity: (u64, u64),
    records: Mutex<Vec<Record>>,
}

impl LastingDevices {
    /// What the file says of this pool in this run of the operating system: nothing, if it is of another one, or cannot be read (that is logged).
    pub fn of(dir: &PoolDir) -> LastingDevices {
        let (path, metadata) = (dir.devices(), dir.metadata());
        let identity = identity_of(&metadata);
        let records = load(&path, identity).unwrap_or_else(|what| {
            tracing::warn!(
                "{}: {what}; block devices that a killed daemon may have left are not known",
                path.display()
            );
            Vec::new()
        });
        LastingDevices { path, metadata, identity, records: Mutex::new(records) }
    }

    /// The pool is open, and what the journal `brought_in` held is in its metadata, all of it. `None`: there was none, or not all
    /// of it counts. If that cannot be written, it holds for this opening, and the next one finds less.
    pub fn judge(&self, brought_in: Option<u64>) {
        let judge = |records: &mut Vec<Record>| {
            for record in records {
                if let Kept::Journal(journal) = record.kept {
                    record.kept = if brought_in == Some(journal) { Kept::Metadata } else { Kept::Unknown };
                }
            }
        };
        if let Err(error) = self.change(judge) {
            tracing::warn!("{error}");
            judge(&mut self.records());
        }
    }

    /// All that there are.
    pub fn all(&self) -> Vec<Record> {
        self.records().clone()
    }

    /// Notes a device, in place of what is known of its number.
    pub fn put(&self, record: Record) -> Result<()> {
        self.change(|records| {
            records.retain(|other| other.number != record.number);
            records.push(record);
        })
    }

    /// Forgets a device, which is gone: its number may be another's by now. If that cannot be written, whoever reads the file finds that out.
    pub fn forget(&self, number: u32, mark: Mark) {
        let is_it = |record: &Record| (record.number, record.mark) == (number, mark);
        if let Err(error) = self.change(|records| records.retain(|record| !is_it(record))) {
            tracing::warn!("{error}");
        }
    }

    /// The pool is closed in order, after the last requests of its devices were answered, and so is its `journal`.
    pub fn journal_is_closed(&self, journal: u64) -> Result<()> {
        self.change(|records| {
            let its = records.iter_mut().filter(|record| record.kept == Kept::Journal(journal));
            its.for_each(|record| record.kept = Kept::Metadata);
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Record>)) -> Result<()> {
        let mut records = self.records();
        let mut changed = records.clone();
        change(&mut changed);
        if changed != *records || (changed.is_empty() && self.path.exists()) {
            self.require_directory()?;
            save(&self.path, self.identity, &changed).map_err(|source| {
                Error::io(format!("writing {}", self.path.display()), &source)
                    .hint("see to room and permissions there")
            })?;
            *records = changed;
        }
        Ok(())
    }

    /// `WrongState` if the pool's directory has been moved away: what is in its place may be another pool, with devices of its own.
    fn require_directory(&self) -> Result<()> {
        if identity_of(&self.metadata) == self.identity {
            return Ok(());
        }
        let message = format!("{} is not what this daemon has opened", self.metadata.display());
        Err(Error::new(ErrorKind::WrongState, message)
            .hint("the pool's directory was moved while it was served: move it back, or end the daemon and serve the pool where it is now"))
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().expect("nobody panics while holding the records")
    }
}

/// By what metadata are known from a copy of them; zeros if they are not there.
fn identity_of(metadata: &Path) -> (u64, u64) {
    let Ok(found) = fs::metadata(metadata) else { return (0, 0) };
    if found.file_type().is_block_device() { (0, found.rdev()) } else { (found.dev(), found.ino()) }
}

fn boot() -> io::Result<String> {
    fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned())
}

fn load(path: &Path, identity: (u64, u64)) -> std::result::Result<Vec<Record>, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let content: Content = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if content.schema != SCHEMA {
        return Err(format!("found schema {:?}, expected {SCHEMA:?}", content.schema));
    }
    if !boot().is_ok_and(|boot| boot == content.boot) {
        return Ok(Vec::new()); // also if nobody can tell which run this is
    }
    if content.metadata != identity && !content.devices.is_empty() {
        let numbers: Vec<_> = content.devices.iter().map(|record| record.number.to_string()).collect();
        return Err(format!(
            "it is about other metadata than the pool has, and the block devices {}; if they wait, they do so for the pool \
             with those metadata (`uthin doctor --remove-device N` ends that)",
            numbers.join(", ")
        ));
    }
    Ok(content.devices)
}

/// The old content or the new one is there, whenever the process ends.
fn save(path: &Path, identity: (u64, u64), records: &[Record]) -> io::Result<()> {
    if records.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let (schema, metadata) = (SCHEMA.to_owned(), identity);
    let content = Content { schema, boot: boot()?, metadata, devices: records.to_vec() };
    let mut text = serde_json::to_vec(&content)?;
    text.push(b'\n');
    let new = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

/// What a user has to know who looks at a pool with volumes whose devices wait.
pub(super) fn notes(devices: &LastingDevices, catalog: &Catalog, is_served: bool) -> Vec<Note> {
    let note = |record: &Record| {
        let id = VolumeId::new(record.volume);
        let name = id.and_then(|id| catalog.by_id(id)).map(|entry| format!("volume `{}`", entry.name));
        let (what, device) = (name.unwrap_or_else(|| format!("volume {}", record.volume)), record.path());
        let text = match record.kept {
            Kept::Journal(_) | Kept::Metadata => {
                format!("{what} is {}, which waits for the pool to be served", device.display())
            }
            Kept::Unknown => format!(
                "{what} was {}; writes that were acknowledged there may be lost, and it goes when the pool is served",
                device.display()
            ),
        };
        Note { kind: NoteKind::BlockDevice, text }
    };
    // Those that a daemon has taken up have its journal.
    let waits = |record: &&Record| !is_served || !matches!(record.kept, Kept::Journal(_));
    devices.all().iter().filter(waits).map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::name::PoolRef;

    fn place() -> (tempfile::TempDir, PoolDir) {
        let folder = tempfile::tempdir().expect("a directory");
        let pool = PoolRef::parse(folder.path().to_str().expect("a path")).expect("a pool's name");
        (folder, PoolDir::of(&pool))
    }

    fn record(number: u32, journal: u64) -> Record {
        let volume = VolumeId::new(7).expect("a number");
        Record::new(number, 513, volume, Options::default(), journal)
    }

    fn kept(devices: &LastingDevices) -> Vec<(u32, Kept)> {
        devices.all().iter().map(|record| (record.number, record.kept)).collect()
    }

    #[test]
    fn what_is_noted_is_found_by_the_next() {
        let (_folder, dir) = place();
        let devices = LastingDevices::of(&dir);
        devices.put(record(3, u64::MAX)).expect("written");
        devices.put(record(4, 11)).expect("written");
        devices.put(record(3, 12)).expect("written");
        assert_eq!(kept(&LastingDevices::of(&dir)), [(4, Kept::Journal(11)), (3, Kept::Journal(12))]);
        assert_eq!(LastingDevices::of(&dir).all()[0].options(), Options::default());
        devices.forget(4, 514);
        assert_eq!(kept(&devices).len(), 2, "another one has the number");
        devices.forget(4, 513);
        devices.forget(3, 513);
        assert!(!dir.devices().exists(), "there is nothing to tell");
    }

    #[test]
    fn a_device_goes_on_only_with_the_journal_that_it_names() {
        let (_folder, dir) = place();
        let judged = |brought_in| {
            LastingDevices::of(&dir).put(record(3, 5)).expect("written");
            LastingDevices::of(&dir).judge(brought_in);
            kept(&LastingDevices::of(&dir))
        };
        assert_eq!(judged(Some(5)), [(3, Kept::Metadata)]);
        assert_eq!(judged(Some(6)), [(3, Kept::Unknown)]);
        assert_eq!(judged(None), [(3, Kept::Unknown)]);
        LastingDevices::of(&dir).judge(Some(5));
        LastingDevices::of(&dir).journal_is_closed(5).expect("written");
        assert_eq!(kept(&LastingDevices::of(&dir)), [(3, Kept::Unknown)], "what is lost is not found again");
        judged(Some(5));
        LastingDevices::of(&dir).judge(None);
        assert_eq!(kept(&LastingDevices::of(&dir)), [(3, Kept::Metadata)], "nothing was acknowledged since");
    }

    #[test]
    fn a_closed_journal_s_writes_are_in_the_metadata() {
        let (_folder, dir) = place();
        let devices = LastingDevices::of(&dir);
        devices.put(record(3, 5)).expect("written");
        devices.put(record(4, 6)).expect("written");
        devices.journal_is_closed(6).expect("written");
        assert_eq!(kept(&LastingDevices::of(&dir)), [(3, Kept::Journal(5)), (4, Kept::Metadata)]);
    }

    #[test]
    fn a_copy_of_the_pool_has_no_devices() {
        let (_folder, dir) = place();
        fs::write(dir.metadata(), "").expect("written");
        LastingDevices::of(&dir).put(record(3, 5)).expect("written");
        assert_eq!(LastingDevices::of(&dir).all().len(), 1);
        let (_other_folder, other) = place();
        for of in [PoolDir::metadata, PoolDir::devices] {
            fs::copy(of(&dir), of(&other)).expect("copied");
        }
        assert!(LastingDevices::of(&other).all().is_empty());
    }

    #[test]
    fn a_daemon_whose_directory_was_moved_leaves_alone_what_is_in_its_place() {
        let (_folder, dir) = place();
        fs::write(dir.metadata(), "").expect("written");
        let moved = LastingDevices::of(&dir);
        moved.put(record(3, 5)).expect("written");
        for of in [PoolDir::metadata, PoolDir::devices] {
            fs::rename(of(&dir), of(&dir).with_extension("moved")).expect("renamed");
        }
        fs::write(dir.metadata(), "another").expect("written");
        LastingDevices::of(&dir).put(record(4, 6)).expect("written");
        assert_eq!(moved.put(record(5, 5)).expect_err("refused").kind(), ErrorKind::WrongState);
        moved.forget(3, 513);
        assert_eq!(kept(&LastingDevices::of(&dir)), [(4, Kept::Journal(6))]);
    }

    #[test]
    fn another_run_of_the_system_and_garbage_are_nothing() {
        let (_folder, dir) = place();
        for text in [
            r#"{"schema":"uthin/devices/v1","boot":"another","metadata":[0,0],"devices":[{"number":0,"mark":1,"volume":1,"queues":1,"depth":1,"logical_block_bytes":512,"physical_block_bytes":512,"read_only":false,"kept":"metadata"}]}"#,
            r#"{"schema":"uthin/devices/v2","boot":"another","metadata":[0,0],"devices":[]}"#,
            "",
            "{",
            "\u{0}\u{0}",
        ] {
            fs::write(dir.devices(), text).expect("written");
            let devices = LastingDevices::of(&dir);
            assert!(devices.all().is_empty(), "{text}");
            devices.judge(None);
            assert!(!dir.devices().exists(), "{text}");
        }
    }
}
