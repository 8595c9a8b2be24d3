//! The catalog: names, sizes and origins of a pool's volumes, which dm-thin's metadata has no room for.
//!
//! It is kept in files ([`super::catalog_file`]) and changed by [`Change`](super::change::Change)s alone. It keeps step with the metadata by the
//! metadata's transaction id T:
//!
//! 1. the operation is kept as pending, durably, with the id T+1 that the metadata will then have;
//! 2. the metadata does the operation and steps its id from T to T+1, in one commit;
//! 3. it is kept that the operation is done, and the catalog at T+1. This need not be durable before the next change is: the
//!    metadata's id says as much.
//!
//! What the metadata knows nothing of (a name, a label) changes in one step, at the same id. There is nothing for it to fall
//! out of step with.
//!
//! Whoever opens the pool compares the ids ([`super::reconcile`]): metadata at T, the operation did not happen; at T+1, it
//! did. Everything read from a file is checked here; bytes that are no catalog are an error and never a panic.

use super::api::SnapshotPair;
use super::label::{self, Labels};
use super::name::VolumeName;
use super::options::PoolOptions;
use super::origin::ExternalOrigin;
use super::volumes::Volumes;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SECTOR_BYTES, TransactionId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// The newest version of the file's layout that this code reads.
pub const SCHEMA: u64 = 2;
/// The version of a file that says everything. One that goes on in a log is of version 2: who knows version 1 alone would
/// not look there.
const SCHEMA_WITHOUT_LOG: u64 = 1;

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
    /// The generation of the log that goes on from here; `None` in memory, and where the file says everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<u64>,
    /// The metadata's transaction id that this catalog belongs to.
    pub transaction_id: u64,
    /// Where to look for a number for the next volume: numbers are used again as late as possible.
    pub next_volume_id: u64,
    /// How the pool is to be run.
    #[serde(default, skip_serializing_if = "PoolOptions::is_default")]
    pub options: PoolOptions,
    /// The volumes, in order of their numbers.
    pub volumes: Volumes,
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
            schema: SCHEMA_WITHOUT_LOG,
            log: None,
            transaction_id: transaction_id.0,
            next_volume_id: 0,
            options: PoolOptions::default(),
            volumes: Volumes::default(),
            deleting: BTreeSet::new(),
            pending: None,
        }
    }

    /// The volume of that name.
    pub fn find(&self, name: &VolumeName) -> Option<&VolumeEntry> {
        self.volumes.by_name(name.as_str())
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
        self.volumes.by_id(id)
    }

    /// `Exists` if a volume has that name.
    pub fn require_free(&self, name: &VolumeName) -> Result<()> {
        match self.find(name) {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("a volume `{name}` exists already"))
                .hint("choose another name, or delete it first")),
        }
    }

    /// Whether a volume has that number, or one that is being deleted.
    pub(super) fn has_number(&self, id: VolumeId) -> bool {
        self.volumes.by_id(id).is_some() || self.deleting.contains(&id)
    }

    /// Adds a volume whose name and number are free.
    pub fn insert(&mut self, entry: VolumeEntry) {
        let next = entry.id.get() + 1;
        // Behind the last number it begins anew.
        if next > self.next_volume_id || self.next_volume_id > VolumeId::MAX.get() {
            self.next_volume_id = next;
        }
        self.volumes.insert(entry).expect("its name and its number are free");
    }

    /// `count` numbers that no volume has, nor one that is being deleted.
    pub fn free_ids(&self, count: usize) -> Result<Vec<VolumeId>> {
        let limit = VolumeId::MAX.get() + 1;
        let free: Vec<_> = (0..limit)
            .map(|step| (self.next_volume_id % limit + step) % limit)
            .filter_map(VolumeId::new)
            .filter(|id| !self.has_number(*id))
            .take(count)
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
                if let Some(id) = self.find(&name).map(|entry| entry.id) {
                    self.volumes.remove(id);
                    self.deleting.insert(id);
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
        let catalog: Catalog = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        catalog.check().map_err(wrong)?;
        Ok(catalog)
    }

    /// What serde cannot see: that names and numbers are there once, sizes can be, and the pending operation fits.
    fn check(&self) -> Result<(), String> {
        self.options.check()?;
        self.volumes.iter().try_for_each(check_entry)?;
        if let Some(id) = self.deleting.iter().find(|id| self.volumes.by_id(**id).is_some()) {
            return Err(format!("volume {id} is both in use and being deleted"));
        }
        self.pending.as_ref().map_or(Ok(()), |pending| self.check_pending(pending))
    }

    /// What is said of the log that goes on from here, taken away: in memory there is none.
    pub(super) fn take_log(&mut self) -> Option<u64> {
        self.schema = SCHEMA_WITHOUT_LOG;
        self.log.take()
    }

    /// As it is to be written: with a log of that generation to go on in, or saying everything.
    pub(super) fn going_on_in(self, log: Option<u64>) -> Self {
        let schema = if log.is_some() { SCHEMA } else { SCHEMA_WITHOUT_LOG };
        Catalog { schema, log, ..self }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a catalog has nothing that JSON cannot hold");
        bytes.push(b'\n');
        bytes
    }
}

/// What serde cannot see of one entry.
pub(super) fn check_entry(entry: &VolumeEntry) -> Result<(), String> {
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

pub(super) mod volume_ids {
    use super::{VolumeId, volume_id};
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeSet;

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "volume_id")] VolumeId);

    pub(in crate::control) fn serialize<S: Serializer>(
        ids: &BTreeSet<VolumeId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| id.get()))
    }

    pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<VolumeId>, D::Error> {
        Ok(Vec::<Wrapped>::deserialize(deserializer)?.into_iter().map(|wrapped| wrapped.0).collect())
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
