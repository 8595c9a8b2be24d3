//! The catalog: names, sizes and origins of a pool's volumes, which dm-thin's metadata has no room for.
//!
//! Kept in the file `catalog.json`, replaced as a whole ([`super::replace`]), so that a crash leaves the old one or the new
//! one, and without new space, so that volumes can be deleted on a full filesystem. It keeps step with the metadata by the metadata's transaction id T:
//!
//! 1. the catalog is written with `pending`: the operation, and the id T+1 that the metadata will then have;
//! 2. the metadata does the operation and steps its id from T to T+1, in one commit;
//! 3. the catalog is written with the operation done, at T+1.
//!
//! What the metadata knows nothing of (a name, a label) changes in one step: the catalog is replaced by one at the same
//! id. There is nothing for it to fall out of step with, and the replacing is atomic.
//!
//! Whoever opens the pool compares the ids ([`super::reconcile`]): metadata at T, the operation did not happen; at T+1, it
//! did. Everything read from the file is checked here; bytes that are no catalog are an error and never a panic.

use super::api::SnapshotPair;
use super::label::{self, Labels};
use super::name::VolumeName;
use super::options::PoolOptions;
use super::origin::ExternalOrigin;
use super::replace;
use crate::engine::WhenFull;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SECTOR_BYTES, TransactionId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The version of the file's layout that this code reads and writes.
pub const SCHEMA: u64 = 1;

/// No catalog is larger than this: 2^24 volumes do not come to it. Keeps a wrong file from eating all memory.
const FILE_BYTES_LIMIT: u64 = 8 << 30;

/// What the catalog says of one volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeEntry {
    /// Its name.
    pub name: VolumeName,
    /// Its number in the metadata.
    #[serde(with = "volume_id")]
    pub id: VolumeId,
    /// Its size, a multiple of 512.
    pub size_bytes: u64,
    /// When it was made; `None` for one that was found in the metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_unix_seconds: Option<u64>,
    /// The metadata's transaction id before and during its making: with the number it tells a volume from a later one
    /// of the same number. `None` for one that was found in the metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_in_transaction: Option<u64>,
    /// The number of the volume it is a snapshot of.
    #[serde(default, with = "optional_volume_id", skip_serializing_if = "Option::is_none")]
    pub origin: Option<VolumeId>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether clients can only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What shows wherever it has no block of its own; `None`: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_origin: Option<ExternalOrigin>,
    /// What becomes of its writes on a full pool; `None`: what becomes of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
}

/// An operation under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// Making an empty volume.
    Create(VolumeEntry),
    /// Making snapshots at one moment.
    Snapshot(Vec<VolumeEntry>),
    /// Deleting the volume of this name.
    Delete(VolumeName),
    /// Setting the metadata's transaction id to the pending one, and nothing else.
    SetTransactionId,
}

/// An operation under way, and the metadata's transaction id by which to know that it happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The id once it has happened.
    pub transaction_id: u64,
    /// What.
    pub operation: Operation,
}

/// The catalog of one pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    schema: u64,
    /// The metadata's transaction id that this catalog belongs to.
    pub transaction_id: u64,
    /// Where to look for a number for the next volume: numbers are used again as late as possible.
    pub next_volume_id: u64,
    /// How the pool is to be run.
    #[serde(default, skip_serializing_if = "PoolOptions::is_default")]
    pub options: PoolOptions,
    /// The volumes, in order of their numbers.
    pub volumes: Vec<VolumeEntry>,
    /// Numbers of deleted volumes that the metadata may still hold.
    #[serde(default, with = "volume_ids", skip_serializing_if = "BTreeSet::is_empty")]
    pub deleting: BTreeSet<VolumeId>,
    /// The operation that was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

impl Catalog {
    /// Of a pool without volumes.
    pub fn empty(transaction_id: TransactionId) -> Self {
        Catalog {
            schema: SCHEMA,
            transaction_id: transaction_id.0,
            next_volume_id: 0,
            options: PoolOptions::default(),
            volumes: Vec::new(),
            deleting: BTreeSet::new(),
            pending: None,
        }
    }

    /// The volume of that name.
    pub fn find(&self, name: &VolumeName) -> Option<&VolumeEntry> {
        self.volumes.iter().find(|entry| entry.name == *name)
    }

    /// The volume of that name, or `NotFound`.
    pub fn require(&self, name: &VolumeName) -> Result<&VolumeEntry> {
        self.find(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no volume `{name}` in this pool"))
                .hint("`uthin volume list POOL` shows the volumes")
        })
    }

    /// The volume of that number.
    pub fn by_id(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.volumes.binary_search_by_key(&id, |entry| entry.id).ok().map(|index| &self.volumes[index])
    }

    /// `Exists` if a volume has that name.
    pub fn require_free(&self, name: &VolumeName) -> Result<()> {
        match self.find(name) {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("a volume `{name}` exists already"))
                .hint("choose another name, or delete it first")),
        }
    }

    /// Changes the entry of a volume: anything but its number. `NotFound` if there is none of that name.
    pub fn require_mut(&mut self, name: &VolumeName) -> Result<&mut VolumeEntry> {
        let id = self.require(name)?.id;
        Ok(self.volumes.iter_mut().find(|entry| entry.id == id).expect("it has just been found"))
    }

    /// Adds a volume whose name and number are free.
    pub fn insert(&mut self, entry: VolumeEntry) {
        let place = self.volumes.partition_point(|other| other.id < entry.id);
        self.next_volume_id = self.next_volume_id.max(entry.id.get() + 1);
        self.volumes.insert(place, entry);
    }

    /// `count` numbers that no volume has, nor one that is being deleted.
    pub fn free_ids(&self, count: usize) -> Result<Vec<VolumeId>> {
        let taken: HashSet<u64> = self
            .volumes
            .iter()
            .map(|entry| entry.id)
            .chain(self.deleting.iter().copied())
            .map(VolumeId::get)
            .collect();
        let limit = VolumeId::MAX.get() + 1;
        let free: Vec<_> = (0..limit)
            .map(|step| (self.next_volume_id % limit + step) % limit)
            .filter(|id| !taken.contains(id))
            .take(count)
            .filter_map(VolumeId::new)
            .collect();
        if free.len() < count {
            let message = format!("all {limit} volume numbers are in use");
            return Err(Error::new(ErrorKind::NoMetadataSpace, message).hint("delete volumes"));
        }
        Ok(free)
    }

    /// The entry of an empty volume that is about to be made. `Exists` if the name is taken.
    pub fn plan_volume(
        &self,
        name: VolumeName,
        size_bytes: u64,
        labels: Labels,
        external_origin: Option<ExternalOrigin>,
    ) -> Result<VolumeEntry> {
        self.require_free(&name)?;
        Ok(VolumeEntry {
            name,
            id: self.free_ids(1)?[0],
            size_bytes,
            created_unix_seconds: Some(super::time::now_unix_seconds()),
            created_in_transaction: Some(self.transaction_id),
            origin: None,
            labels,
            read_only: false,
            external_origin,
            when_full: None,
        })
    }

    /// The entries of snapshots that are about to be made together, each with its origin's number. `NotFound` for an
    /// origin, `Exists` for a name.
    pub fn plan_snapshots(&self, pairs: &[SnapshotPair]) -> Result<Vec<(VolumeId, VolumeEntry)>> {
        let ids = self.free_ids(pairs.len())?;
        let created = super::time::now_unix_seconds();
        let plan = |(SnapshotPair { origin, name, read_only }, id): (&SnapshotPair, VolumeId)| {
            let origin = self.require(origin)?;
            self.require_free(name)?;
            let entry = VolumeEntry {
                name: name.clone(),
                id,
                size_bytes: origin.size_bytes,
                created_unix_seconds: Some(created),
                created_in_transaction: Some(self.transaction_id),
                origin: Some(origin.id),
                labels: Labels::new(),
                read_only: *read_only,
                external_origin: origin.external_origin.clone(),
                when_full: None,
            };
            Ok((origin.id, entry))
        };
        pairs.iter().zip(ids).map(plan).collect()
    }

    /// Brings the pending operation, if there is one, into the list of volumes. Returns what it was, in words.
    pub fn apply_pending(&mut self) -> Option<String> {
        let pending = self.pending.take()?;
        self.transaction_id = pending.transaction_id;
        let words = pending.operation.describe();
        match pending.operation {
            Operation::Create(entry) => self.insert(entry),
            Operation::Snapshot(entries) => entries.into_iter().for_each(|entry| self.insert(entry)),
            Operation::SetTransactionId => {}
            Operation::Delete(name) => {
                if let Some(index) = self.volumes.iter().position(|entry| entry.name == name) {
                    self.deleting.insert(self.volumes.remove(index).id);
                }
            }
        }
        Some(words)
    }

    /// Understands a catalog's bytes; `whence` is what messages call them.
    pub fn parse(bytes: &[u8], whence: &Path) -> Result<Self> {
        let wrong = |what: String| {
            Error::new(ErrorKind::Corrupt, format!("{}: {what}", whence.display())).hint(
                "restore the file from a backup, or move it away: the volumes then appear by their numbers",
            )
        };
        /// The part that every version of the layout has.
        #[derive(Deserialize)]
        struct Header {
            schema: u64,
        }
        let header: Header = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if header.schema > SCHEMA {
            let message = format!(
                "{}: layout version {}, and this uthin knows versions up to {SCHEMA}",
                whence.display(),
                header.schema
            );
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("use the uthin that wrote it, or a newer one"));
        }
        if header.schema == 0 {
            return Err(wrong("layout version 0 does not exist".to_owned()));
        }
        let mut catalog: Catalog = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        catalog.volumes.sort_by_key(|entry| entry.id);
        catalog.check().map_err(wrong)?;
        Ok(catalog)
    }

    /// What serde cannot see: that names and numbers are there once, sizes can be, and the pending operation fits.
    fn check(&self) -> Result<(), String> {
        for amount in [self.options.low_water, self.options.min_free] {
            amount.check().map_err(|error| error.message().to_owned())?;
        }
        let mut names = HashSet::new();
        let mut ids: HashSet<VolumeId> = HashSet::new();
        for entry in &self.volumes {
            check_entry(entry)?;
            if !names.insert(&entry.name) {
                return Err(format!("two volumes are called `{}`", entry.name));
            }
            if !ids.insert(entry.id) {
                return Err(format!("two volumes have the number {}", entry.id));
            }
        }
        if let Some(id) = self.deleting.iter().find(|id| ids.contains(id)) {
            return Err(format!("volume {id} is both in use and being deleted"));
        }
        ids.extend(&self.deleting);
        let Some(pending) = &self.pending else { return Ok(()) };
        let is_free = pending.operation == Operation::SetTransactionId;
        if !is_free && pending.transaction_id != TransactionId(self.transaction_id).next().0 {
            return Err(format!(
                "the pending transaction is {}, and the one after {} was expected",
                pending.transaction_id, self.transaction_id
            ));
        }
        for entry in pending.operation.new_volumes() {
            check_entry(entry)?;
            if !names.insert(&entry.name) || !ids.insert(entry.id) {
                return Err(format!(
                    "the pending volume `{}` (number {}) exists already",
                    entry.name, entry.id
                ));
            }
        }
        match &pending.operation {
            Operation::Delete(name) if self.find(name).is_none() => {
                Err(format!("the pending operation deletes `{name}`, which does not exist"))
            }
            Operation::Delete(_)
            | Operation::Create(_)
            | Operation::Snapshot(_)
            | Operation::SetTransactionId => Ok(()),
        }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a catalog has nothing that JSON cannot hold");
        bytes.push(b'\n');
        bytes
    }
}

fn check_entry(entry: &VolumeEntry) -> Result<(), String> {
    if !entry.size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(format!("volume `{}`: size {} is not a multiple of 512", entry.name, entry.size_bytes));
    }
    label::check_count(&entry.labels)
        .map_err(|error| format!("volume `{}`: {}", entry.name, error.message()))?;
    if let Some(origin) = &entry.external_origin {
        origin.check().map_err(|what| format!("volume `{}`: {what}", entry.name))?;
    }
    if entry.name.is_number() && entry.name.as_str() != entry.id.to_string() {
        return Err(format!("volume number {} is called `{}`, the number of another", entry.id, entry.name));
    }
    Ok(())
}

impl Operation {
    /// The volumes that it makes.
    pub fn new_volumes(&self) -> &[VolumeEntry] {
        match self {
            Operation::Create(entry) => std::slice::from_ref(entry),
            Operation::Snapshot(entries) => entries,
            Operation::Delete(_) | Operation::SetTransactionId => &[],
        }
    }

    /// In words, for notes: "creation of volume `a`".
    pub fn describe(&self) -> String {
        match self {
            Operation::Create(entry) => format!("creation of volume `{}`", entry.name),
            Operation::Snapshot(entries) => {
                let names: Vec<_> = entries.iter().map(|entry| format!("`{}`", entry.name)).collect();
                format!("creation of snapshot {}", names.join(", "))
            }
            Operation::Delete(name) => format!("deletion of volume `{name}`"),
            Operation::SetTransactionId => "setting of the transaction id".to_owned(),
        }
    }
}

/// Where a catalog is kept: a file, or memory in tests of crashes.
pub trait CatalogStore: Send + Sync {
    /// Replaces what is kept, durably; after an error the old or the new one is there.
    fn save(&self, catalog: &Catalog) -> Result<()>;
}

/// The catalog file of a pool directory. Whoever writes holds the pool's lock.
pub struct CatalogFile {
    path: PathBuf,
}

impl CatalogFile {
    /// The file at `path`, which need not exist.
    pub fn at(path: PathBuf) -> Self {
        CatalogFile { path }
    }

    /// What is kept; `None` if there is no file.
    pub fn load(&self) -> Result<Option<Catalog>> {
        match read_limited(&self.path) {
            Ok(bytes) => Catalog::parse(&bytes, &self.path).map(Some),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io(format!("reading {}", self.path.display()), &source).hint(
                "the file holds the volumes' names and sizes: restore it, or move what is there away, and the volumes \
                 appear by their numbers",
            )),
        }
    }

    /// Sees to it that the next [`CatalogStore::save`] finds its space, also on a filesystem that is full by then.
    pub fn keep_reserve(&self) -> Result<()> {
        replace::keep_reserve(&self.path)
    }

    /// Writes `catalog.json.bak`: the catalog that is about to be replaced, with the volumes that are dropped from it and
    /// those that earlier backups had listed as lost.
    pub fn save_backup(&self, replaced: &Catalog, lost: &[VolumeEntry]) -> Result<()> {
        let path = self.path.with_extension("json.bak");
        let mut all_lost: Vec<VolumeEntry> = read_limited(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Backup>(&bytes).ok())
            .map_or_else(Vec::new, |earlier| earlier.lost);
        all_lost.extend(lost.iter().filter(|entry| !all_lost.contains(entry)).cloned().collect::<Vec<_>>());
        let backup = Backup { replaced: replaced.clone(), lost: all_lost };
        let bytes = serde_json::to_vec_pretty(&backup).expect("a catalog has nothing that JSON cannot hold");
        replace::replace_plainly(&path, &bytes)
    }
}

/// What `catalog.json.bak` holds.
#[derive(Serialize, Deserialize)]
struct Backup {
    replaced: Catalog,
    lost: Vec<VolumeEntry>,
}

impl CatalogStore for CatalogFile {
    fn save(&self, catalog: &Catalog) -> Result<()> {
        replace::replace(&self.path, &catalog.to_bytes())
    }
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    if file.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut bytes)? as u64 > FILE_BYTES_LIMIT {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

mod volume_id {
    use super::VolumeId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &VolumeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(id.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VolumeId, D::Error> {
        let raw = u64::deserialize(deserializer)?;
        VolumeId::new(raw).ok_or_else(|| {
            D::Error::custom(format!("{raw} is no volume number: the last is {}", VolumeId::MAX))
        })
    }
}

mod optional_volume_id {
    use super::{VolumeId, volume_id};
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "volume_id")] VolumeId);

    pub(super) fn serialize<S: Serializer>(id: &Option<VolumeId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => volume_id::serialize(id, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<VolumeId>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

mod volume_ids {
    use super::{VolumeId, volume_id};
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeSet;

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "volume_id")] VolumeId);

    pub(super) fn serialize<S: Serializer>(
        ids: &BTreeSet<VolumeId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| id.get()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<VolumeId>, D::Error> {
        Ok(Vec::<Wrapped>::deserialize(deserializer)?.into_iter().map(|wrapped| wrapped.0).collect())
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
