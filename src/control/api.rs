//! What the control socket and the command line say to the outside: one set of types for `--json` and for HTTP bodies.
//!
//! Sizes are integers in bytes, enums lower-case words. Every answer carries `"schema": "uthin/v1"`; within that version
//! fields are added, never changed or removed, so readers must not mind fields that they do not know.

use super::journal::{JournalInfo, JournalState};
use super::label::{LabelChanges, Labels};
pub use super::message::{MessageDone, MessageRequest};
use super::name::VolumeName;
use super::options::{FreeSpace, PoolOptions, VolumeWhenFull};
use super::settle::{PoolSettled, SettlePool};
pub use super::space::{DataSpace, MetadataSpace, PoolPlaces};
pub use crate::engine::Discard;
use crate::engine::{JournalMode, SmallWrites, WhenFull};
use crate::error::{Error, Result};
use crate::frontend::ublk::Moved;
use crate::units::META_BLOCK_BYTES;
use serde::{Deserialize, Serialize};

/// The version that every answer carries.
pub const SCHEMA: &str = "uthin/v1";

/// How a pool is doing, as far as clients are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything works.
    Rw,
    /// Not served, and the metadata's needs-check flag forbids to serve it.
    Ro,
    /// No free data block: writes that need one fail; reads, overwrites, discards and deletions work.
    OutOfDataSpace,
    /// Failed stop after an error.
    Fail,
}

impl Mode {
    /// The word that device-mapper and our JSON use.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Rw => "rw",
            Mode::Ro => "ro",
            Mode::OutOfDataSpace => "out_of_data_space",
            Mode::Fail => "fail",
        }
    }
}

/// What a monitor wants to know of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing to do.
    #[default]
    Ok,
    /// Works, and space runs low, or its journal has failed.
    Low,
    /// Full, failed, or not to be changed.
    Critical,
}

impl Health {
    /// The word that JSON uses.
    pub fn word(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Low => "low",
            Health::Critical => "critical",
        }
    }
}

/// The daemon that serves a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServedBy {
    /// Its process.
    pub pid: u32,
    /// Since when, RFC 3339.
    pub since: String,
}

/// A pool: `GET /v1/pool`, `uthin pool status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolInfo {
    /// [`SCHEMA`].
    pub schema: String,
    /// The pool's name: the last part of its path.
    pub pool: String,
    /// Its directory, absolute.
    pub path: String,
    /// What works.
    pub mode: Mode,
    /// Whether somebody has to see to it.
    #[serde(default)]
    pub health: Health,
    /// Why, in modes [`Mode::Fail`] and [`Mode::Ro`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Error>,
    /// The metadata's user-space transaction id.
    pub transaction_id: u64,
    /// The snapshot clock.
    pub time: u32,
    /// Size of a data block.
    pub block_size_bytes: u64,
    /// Space for data.
    pub data: DataSpace,
    /// Space for metadata.
    pub metadata: MetadataSpace,
    /// Number of volumes.
    pub volumes: u64,
    /// Sum of the volumes' sizes.
    pub virtual_bytes: u64,
    /// Numbers of deleted volumes whose blocks are still being freed.
    pub deleting: Vec<u64>,
    /// The metadata block of the metadata snapshot, if one is held.
    pub held_root: Option<u64>,
    /// What becomes of discarded blocks.
    pub discard: Discard,
    /// What has been freed and still has its space below, until there is time to give it back.
    #[serde(default)]
    pub to_give_back_bytes: u64,
    /// Whether the unwritten rest of a fresh block is zeroed.
    pub zero_new_blocks: bool,
    /// What the first write to a shared or fresh block does with the rest of it.
    #[serde(default)]
    pub small_writes: SmallWrites,
    /// Blocks of which only a part is there: while there are any, dm-thin does not know the pool.
    #[serde(default)]
    pub partial_blocks: u64,
    /// What becomes of writes that need a block when none is free.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Whether requests have waited for as long as `when_full` says, so that those that come now do not wait.
    #[serde(default)]
    pub queue_expired: bool,
    /// Requests that wait for space now.
    #[serde(default)]
    pub waiting_for_space: u64,
    /// Bytes of volumes' maps in the daemon's memory.
    #[serde(default)]
    pub map_bytes: u64,
    /// The journal.
    #[serde(default)]
    pub journal: JournalInfo,
    /// Where its parts are.
    #[serde(default)]
    pub places: PoolPlaces,
    /// What is kept with the pool: in force when it is opened next, where the daemon was told otherwise for its own time.
    #[serde(default)]
    pub options: PoolOptions,
    /// Whether the metadata asks to be checked before it is used.
    pub needs_check: bool,
    /// The daemon; `null` when the pool is not served.
    pub served_by: Option<ServedBy>,
    /// Where volumes are to be had: one NBD URI for each listener (each volume has URIs of its own).
    pub exports: Vec<String>,
    /// Of `metadata` and `data` what somebody has removed: it is there only as long as the daemon runs.
    #[serde(default)]
    pub removed: Vec<String>,
    /// What had to be put right when the pool was opened.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl PoolInfo {
    /// What follows for [`PoolInfo::health`] from the rest.
    pub fn assess(&self) -> Health {
        let works = match self.mode {
            Mode::Rw => !self.needs_check,
            Mode::Ro | Mode::OutOfDataSpace | Mode::Fail => false,
        };
        // A pool that nobody serves has no mode that says so.
        let cannot_be_served = self.journal.state == JournalState::Missing;
        let is_lost = !self.removed.is_empty();
        if !works || cannot_be_served || is_lost || self.data.free_bytes == 0 || self.metadata.has_none() {
            return Health::Critical;
        }
        let low_data = self.data.free_bytes < self.options.low_water.bytes_of(self.data.total_bytes);
        let low_metadata = self.metadata.free_bytes < self.metadata_low_water_bytes();
        let has_no_journal = self.journal.state == JournalState::Failed;
        if low_data || low_metadata || has_no_journal { Health::Low } else { Health::Ok }
    }

    /// What to say of each part in [`PoolInfo::removed`].
    pub fn removed_words(&self) -> impl Iterator<Item = String> {
        self.removed.iter().map(|part| {
            format!("its {part} file was removed, and is there only until the daemon ends: copy the volumes to another pool before that")
        })
    }

    /// With less free metadata than this the pool asks for attention.
    pub(super) fn metadata_low_water_bytes(&self) -> u64 {
        self.metadata_low_water_blocks() * META_BLOCK_BYTES as u64
    }

    /// The kernel's own mark: a quarter, 4 MiB at the most.
    fn metadata_low_water_blocks(&self) -> u64 {
        (self.metadata.total_bytes / META_BLOCK_BYTES as u64 / 4).min(1024)
    }

    /// The kernel's status line of a thin-pool target, to the letter: what follows `START LENGTH thin-pool `.
    /// Nine words (one, `Fail`, for a failed pool), each followed by a blank.
    pub fn dm_line(&self) -> String {
        if self.mode == Mode::Fail {
            return "Fail".to_owned();
        }
        let block = META_BLOCK_BYTES as u64;
        let total = self.metadata.total_bytes / block;
        // The kernel's "used" is all that cannot be handed out to mappings: the reserve included.
        let used = total - self.metadata.free_bytes / block;
        format!(
            "{} {used}/{total} {}/{} {} {} {} {} {} {} ",
            self.transaction_id,
            self.data.used_bytes / self.block_size_bytes,
            self.data.total_bytes / self.block_size_bytes,
            self.held_root.map_or_else(|| "-".to_owned(), |block| block.to_string()),
            self.mode.word(),
            match self.discard {
                Discard::Passdown => "discard_passdown",
                Discard::NoPassdown => "no_discard_passdown",
                Discard::Ignore => "ignore_discard",
            },
            match self.when_full {
                WhenFull::Queue(_) if !self.queue_expired => "queue_if_no_space",
                // The kernel changes the word with its timeout, until there is space.
                WhenFull::Queue(_) | WhenFull::Error => "error_if_no_space",
            },
            if self.needs_check { "needs_check" } else { "-" },
            self.metadata_low_water_blocks(),
        )
    }
}

/// The body of `PATCH /v1/pool`: what is not mentioned stays. All of it is in force at once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPool {
    /// What becomes of discards and of the space of freed blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// Whether the unwritten rest of a fresh block is zeroed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_new_blocks: Option<bool>,
    /// What the first write to a shared or fresh block does with the rest of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_writes: Option<SmallWrites>,
    /// Whether a daemon keeps a journal: in force from the next one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalMode>,
    /// With less free space than this the pool asks for attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<FreeSpace>,
    /// What becomes of writes that need a block when none is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// With less free space than this no volumes and snapshots are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_free: Option<FreeSpace>,
}

/// The answer to `PATCH /v1/pool`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolSettings {
    /// [`SCHEMA`].
    pub schema: String,
    /// What is kept with the pool now.
    pub options: PoolOptions,
    /// Whether that is in force now: `false` only where the data disk cannot do it.
    pub in_force: bool,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of data blocks that it maps, shared ones included. This and what else is the pool's to know is `null` when
    /// the pool has failed, or the metadata cannot be read.
    pub mapped_bytes: Option<u64>,
    /// Where the highest block that it maps ends, 0 if it maps none.
    #[serde(default)]
    pub mapped_end_bytes: Option<u64>,
    /// What of it is its own, at a moment that is told. `null` as long as it was not counted.
    #[serde(default)]
    pub sharing: Option<Sharing>,
    /// Name of the volume it is a snapshot of, if that still exists.
    pub origin: Option<VolumeName>,
    /// When it was made, RFC 3339; `null` for a volume that was found in the metadata.
    pub created: Option<String>,
    /// The pool's transaction id when it was made.
    pub transaction_id: Option<u64>,
    /// The snapshot clock when it was made.
    pub creation_time: Option<u32>,
    /// The snapshot clock at its last snapshot.
    pub snapshotted_time: Option<u32>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Whether clients can only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What shows wherever it has no block of its own; `null`: zeros.
    #[serde(default)]
    pub external_origin: Option<OriginInfo>,
    /// What becomes of its writes on a full pool; `null`: what becomes of all, see [`PoolInfo::when_full`].
    #[serde(default)]
    pub when_full: Option<WhenFull>,
    /// Whether its requests have waited for as long as they may, so that those that come now do not wait.
    #[serde(default)]
    pub queue_expired: Option<bool>,
    /// Its requests that wait for a free block now.
    #[serde(default)]
    pub waiting_for_space: Option<u64>,
    /// Number of clients that have it open.
    pub open: Option<u32>,
    /// Where it is to be had: NBD URIs; none when the pool is not served.
    #[serde(default)]
    pub exports: Vec<String>,
}

/// What of a volume was its own, and what shared, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sharing {
    /// Bytes of data blocks that its deletion would have freed.
    pub exclusive_bytes: u64,
    /// Bytes of data blocks that it mapped and shared with other volumes, or with a metadata snapshot.
    pub shared_bytes: u64,
    /// The moment, RFC 3339.
    pub as_of: String,
    /// Whether nothing has changed in the pool since.
    pub current: bool,
}

/// An external origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OriginInfo {
    /// A file or block device, absolute.
    pub path: String,
    /// Its size when a volume was put on it.
    pub size_bytes: u64,
    /// Why nobody gets the volume, in words: it is not there, or not what it was. `null` if nothing is wrong.
    #[serde(default)]
    pub problem: Option<String>,
}

/// All volumes: `GET /v1/volumes`, `uthin volume list --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeList {
    /// [`SCHEMA`].
    pub schema: String,
    /// In order of names.
    pub volumes: Vec<VolumeInfo>,
}

/// The answer to the making of a volume or snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewVolume {
    /// [`SCHEMA`].
    pub schema: String,
    /// Its name.
    pub name: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Name of the volume it is a snapshot of.
    pub origin: Option<VolumeName>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Whether clients can only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What shows wherever it has no block of its own; `null`: zeros.
    #[serde(default)]
    pub external_origin: Option<OriginInfo>,
}

/// The body of `POST /v1/volumes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// The name that it is to have.
    pub name: VolumeName,
    /// Its size, a multiple of 512, not 0. May be missing where there is an external origin: then it is as large as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The path of a file or block device, absolute: what shows wherever the volume has no block of its own. It is only
    /// read, and must not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_origin: Option<String>,
}

/// One origin and the snapshot to be made of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPair {
    /// The volume to snapshot.
    pub origin: VolumeName,
    /// The snapshot's name.
    pub name: VolumeName,
    /// Whether clients can only read the snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The most snapshots in one group: their names fit into a request's body, however long they are.
pub const GROUP_LIMIT: usize = 200;

/// The body of `POST /v1/snapshots`: snapshots at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotGroup {
    /// 1 to [`GROUP_LIMIT`], each of another volume.
    pub snapshots: Vec<SnapshotPair>,
}

/// The answer to `POST /v1/snapshots`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewSnapshots {
    /// [`SCHEMA`].
    pub schema: String,
    /// In the order in which they were asked for.
    pub snapshots: Vec<NewVolume>,
}

/// The body of `POST /v1/volumes/{name}/snapshot`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotVolume {
    /// The snapshot's name.
    pub name: VolumeName,
    /// Whether clients can only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The body of `POST /v1/volumes/{name}/rename`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameVolume {
    /// The name that it is to have.
    pub name: VolumeName,
}

/// The answer to `POST /v1/volumes/{name}/rename`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Renamed {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume's name from now on.
    pub name: VolumeName,
    /// The name that it had, which is free again.
    pub old_name: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
}

/// The body of `PATCH /v1/volumes/{name}`: what is not mentioned stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// Labels to set, or (`null`) to take away.
    #[serde(default, skip_serializing_if = "LabelChanges::is_empty")]
    pub labels: LabelChanges,
    /// Whether clients can only read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Where the external origin of the volume, and of all others on the same, is now (absolute), or that what is there is
    /// right though it was modified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_origin: Option<String>,
    /// What becomes of its writes on a full pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<VolumeWhenFull>,
}

/// The answer to `PATCH /v1/volumes/{name}`: what can be set, as it is now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeSettings {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume's name.
    pub name: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Whether clients can only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What shows wherever it has no block of its own; `null`: zeros.
    #[serde(default)]
    pub external_origin: Option<OriginInfo>,
    /// What becomes of its writes on a full pool; `null`: what becomes of all.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
}

/// The body of `POST /v1/volumes/{name}/roll-back`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBackVolume {
    /// The snapshot whose contents the volume gets.
    pub to: VolumeName,
    /// The name of the new volume that keeps what it held; without one it is `NAME.before-rollback-N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<VolumeName>,
    /// Do it though clients have the volume open, which see its contents change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// The answer to `POST /v1/volumes/{name}/roll-back`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume.
    pub name: VolumeName,
    /// The snapshot that it equals now.
    pub to: VolumeName,
    /// What it held before: the way back.
    pub kept: NewVolume,
}

/// The body of `POST /v1/volumes/{name}/resize`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The size that it is to have, a multiple of 512, not 0.
    pub size_bytes: u64,
    /// Drop what it holds past a smaller end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard_rest: bool,
}

/// The answer to `POST /v1/volumes/{name}/resize`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resized {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume.
    pub name: VolumeName,
    /// Its size from now on; clients that have it open see it when they connect again.
    pub size_bytes: u64,
    /// Its size until now.
    pub old_size_bytes: u64,
    /// What its block device has to do with that, if it cannot follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

/// How a volume is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    /// As a block device of this machine.
    Ublk,
}

/// The body of `POST /v1/volumes/{name}/export`: what is not mentioned is as usual.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportVolume {
    /// As what.
    pub kind: ExportKind,
    /// Queues, each with a thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Requests of a queue at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// The smallest unit of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_block_bytes: Option<u32>,
    /// What is said to be written in one piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_bytes: Option<u32>,
    /// Whether the device can only be read, though the volume can be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether requests are not copied, as far as they move to and from the data disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_copy: bool,
}

impl ExportVolume {
    /// As usual in everything.
    pub fn usual(kind: ExportKind) -> Self {
        ExportVolume {
            kind,
            queues: None,
            depth: None,
            logical_block_bytes: None,
            physical_block_bytes: None,
            read_only: false,
            zero_copy: false,
        }
    }
}

/// A volume that is exported: the answer to `POST /v1/volumes/{name}/export`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportInfo {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume.
    pub volume: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
    /// As what.
    pub kind: ExportKind,
    /// The block device.
    pub device: String,
    /// The link to it, in the pool's directory.
    pub link: Option<String>,
    /// The volume's size.
    pub size_bytes: u64,
    /// Its queues.
    pub queues: u16,
    /// Requests of a queue at a time.
    pub depth: u16,
    /// The smallest unit of a request.
    pub logical_block_bytes: u32,
    /// What is said to be written in one piece.
    pub physical_block_bytes: u32,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether its requests wait for another daemon when this one dies, instead of failing.
    #[serde(default)]
    pub outlives_daemon: bool,
    /// With zero copy: what has moved so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_copy: Option<Moved>,
}

/// All exports: `GET /v1/exports`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportList {
    /// [`SCHEMA`].
    pub schema: String,
    /// In order of names.
    pub exports: Vec<ExportInfo>,
}

/// The body of `POST /v1/volumes/{name}/unexport`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnexportVolume {
    /// Do it though somebody has the device open, who gets errors from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// The answer to `POST /v1/volumes/{name}/unexport`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unexported {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume.
    pub volume: VolumeName,
    /// The block device, which is gone.
    pub device: String,
}

/// The body of `POST /v1/pool/grow`: what is not mentioned becomes as large as its file or device is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowPool {
    /// Space for data in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// Space for metadata in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_bytes: Option<u64>,
}

/// The answer to `POST /v1/pool/grow`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grown {
    /// [`SCHEMA`].
    pub schema: String,
    /// Space for data from now on.
    pub data_bytes: u64,
    /// Space for data until now.
    pub old_data_bytes: u64,
    /// Space for metadata from now on.
    pub metadata_bytes: u64,
    /// Space for metadata until now.
    pub old_metadata_bytes: u64,
}

/// The answer to `POST` and `DELETE` of `/v1/pool/metadata-snapshot`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MetadataSnapshot {
    /// [`SCHEMA`].
    pub schema: String,
    /// The metadata block to read it by; `null`: none is held.
    pub held_root: Option<u64>,
}

/// The answer to `DELETE /v1/volumes/{name}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// [`SCHEMA`].
    pub schema: String,
    /// The volume's name, which is free again.
    pub name: VolumeName,
    /// Whether its blocks are free already; else they are being freed in the background.
    pub finished: bool,
}

/// The body of `POST /v1/close`; there may be none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosePool {
    /// Leave the block devices to a daemon that comes next, instead of taking them away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hand_over: bool,
}

/// The answer to `POST /v1/close`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// [`SCHEMA`].
    pub schema: String,
    /// The daemon, which ends right after this answer.
    pub pid: u32,
}

/// How any failure is told, over HTTP and on stderr with `--json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// `code`, `message` and perhaps `hint`.
    pub error: Error,
}

/// A pool as its users see it: in this process, or behind the control socket of the daemon that serves it.
pub trait PoolApi {
    /// How the pool is doing.
    fn status(&self) -> Result<PoolInfo>;
    /// Changes what is kept with the pool: all that the request mentions, or nothing.
    fn set_pool(&self, request: &SetPool) -> Result<PoolSettings>;
    /// All volumes, in order of names.
    fn volumes(&self) -> Result<VolumeList>;
    /// Makes an empty volume.
    fn create(&self, request: &CreateVolume) -> Result<NewVolume>;
    /// Makes a snapshot.
    fn snapshot(&self, request: &SnapshotPair) -> Result<NewVolume>;
    /// Makes snapshots of several volumes at one moment: all of them or none.
    fn snapshot_group(&self, request: &SnapshotGroup) -> Result<NewSnapshots>;
    /// Gives a volume another name, in use or not.
    fn rename(&self, name: &VolumeName, request: &RenameVolume) -> Result<Renamed>;
    /// Changes a volume's settings: all that the request mentions, or nothing.
    fn set(&self, name: &VolumeName, request: &SetVolume) -> Result<VolumeSettings>;
    /// Gives a volume the contents of one of its snapshots (or of any other volume); what it held goes to a new volume.
    fn roll_back(&self, name: &VolumeName, request: &RollBackVolume) -> Result<RolledBack>;
    /// Changes a volume's size: larger at any time, smaller only when nobody has it open and nothing is behind the new end.
    fn resize(&self, name: &VolumeName, request: &ResizeVolume) -> Result<Resized>;
    /// Makes the pool larger, in use or not.
    fn grow(&self, request: &GrowPool) -> Result<Grown>;
    /// Makes whole blocks of partial ones.
    fn settle(&self, request: &SettlePool) -> Result<PoolSettled>;
    /// Keeps the metadata as it is, for tools that read it beside the running pool.
    fn reserve_metadata_snapshot(&self) -> Result<MetadataSnapshot>;
    /// Lets that go.
    fn release_metadata_snapshot(&self) -> Result<MetadataSnapshot>;
    /// Does what one of dm-thin's messages says.
    fn message(&self, request: &MessageRequest) -> Result<MessageDone>;
    /// The volumes that are block devices, in order of names.
    fn exports(&self) -> Result<ExportList>;
    /// Makes a volume a block device of the machine that serves the pool; returns when it can be opened.
    fn export(&self, name: &VolumeName, request: &ExportVolume) -> Result<ExportInfo>;
    /// Takes that away, if nobody has it open.
    fn unexport(&self, name: &VolumeName, request: &UnexportVolume) -> Result<Unexported>;
    /// Deletes a volume that nobody has open.
    fn delete(&self, name: &VolumeName) -> Result<Deleted>;
}

#[cfg(test)]
pub(super) use tests::sample as sample_pool;

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
