//! Opening a pool: lock, metadata, catalog, and what the two have to say to each other.

use super::catalog::Catalog;
use super::catalog_file::Loaded;
use super::journal;
use super::lasting_devices::LastingDevices;
use super::origin;
use super::pool_dir::{PoolDir, PoolDisks};
use super::reconcile::{FoundVolume, Note, Reconciled, reconcile};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::engine::{Behind, WhenFull};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Access, Metadata};
use crate::units::VolumeId;
use std::collections::HashMap;
use std::path::PathBuf;

/// A pool, open and locked, its catalog in step.
pub struct OpenPool {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The metadata.
    pub metadata: Metadata<FileDisk>,
    /// The data disk.
    pub data: FileDisk,
    /// The catalog; on disk as well if opened for reading and writing.
    pub catalog: Catalog,
    /// What had to be put right.
    pub notes: Vec<Note>,
    /// Block devices that wait for the pool to be served.
    pub lasting_devices: LastingDevices,
}

impl OpenPool {
    /// The volumes' sizes, for the keeper.
    pub fn volume_sizes(&self) -> HashMap<VolumeId, u64> {
        // A volume that is being deleted has nothing to show to anybody.
        let deleting = self.catalog.deleting.iter().map(|id| (*id, 0));
        self.catalog.volumes.iter().map(|entry| (entry.id, entry.size_bytes)).chain(deleting).collect()
    }

    /// Volumes with a policy of their own for a full pool.
    pub fn volumes_when_full(&self) -> HashMap<VolumeId, WhenFull> {
        let policies = self.catalog.volumes.iter();
        policies.filter_map(|entry| Some((entry.id, entry.when_full?))).collect()
    }

    /// What shows where volumes have no block, for a keeper with lanes. Opens the external origins.
    pub fn behind(&self) -> HashMap<VolumeId, Behind> {
        origin::open_all(self.catalog.volumes.iter(), &|entry, error| {
            tracing::error!("volume {} and others on this origin are not served: {error}", entry.name);
        })
    }

    /// The same for a keeper that serves nobody, and opens none: whoever settles partial blocks on them has them opened.
    pub fn behind_unopened(&self) -> HashMap<VolumeId, Behind> {
        let why = Error::new(ErrorKind::Io, "external origins are not opened before somebody needs one");
        let on_origins = self.catalog.volumes.iter().filter(|entry| entry.external_origin.is_some());
        on_origins.map(|entry| (entry.id, Behind::Unavailable(why.clone()))).collect()
    }
}

/// Opens the pool. With [`Access::ReadOnly`] nothing is written, whatever would have to be put right.
pub fn open(dir: &PoolDir, access: Access) -> Result<OpenPool> {
    let mode = match access {
        Access::ReadOnly => OpenMode::ReadOnly,
        Access::ReadWrite => OpenMode::ReadWrite,
    };
    open_by(dir, mode, |disk| Metadata::open(disk, access))
}

/// Opens the pool to serve it: nobody else has it, but metadata that asks for a check is opened for reading only.
pub fn open_to_serve(dir: &PoolDir) -> Result<OpenPool> {
    open_by(dir, OpenMode::ReadWrite, Metadata::open_to_serve)
}

fn open_by(
    dir: &PoolDir,
    mode: OpenMode,
    open: impl FnOnce(FileDisk) -> Result<Metadata<FileDisk>>,
) -> Result<OpenPool> {
    let PoolDisks { metadata, data } = dir.open_disks(mode)?;
    let metadata_name = metadata.name();
    let mut metadata = open(metadata).map_err(|error| as_found(error, &metadata_name))?;
    check_data_size(&metadata, &data)?;
    let store = dir.catalog();
    let lasting_devices = LastingDevices::of(dir);
    let journal_note = match mode {
        OpenMode::ReadWrite => {
            let brought_in = journal::recover(dir, &mut metadata, &data)?;
            lasting_devices.judge(brought_in.whole);
            brought_in.note
        }
        OpenMode::ReadOnly | OpenMode::ReadBeside => {
            metadata.journal().map(|mark| journal::not_brought_in(dir, mark.id))
        }
    };
    let (loaded, Reconciled { catalog, mut notes, lost, keep_copy }) = compare(dir, &mut metadata)?;
    notes.extend(journal_note);
    match metadata.access() {
        Access::ReadOnly => {}
        Access::ReadWrite => {
            for note in &notes {
                tracing::warn!("{}: {}", dir.shown(), note.text);
            }
            if let (Some(loaded), true) = (&loaded, keep_copy) {
                store.save_backup(&loaded.catalog, &lost)?;
            }
            let is_so = |loaded: &Loaded| loaded.changes_in_log.is_none() && loaded.catalog == catalog;
            if !loaded.as_ref().is_some_and(is_so) {
                store.save(&catalog)?;
            } else if let Err(error) = store.keep_reserve() {
                tracing::warn!("{error}");
            }
        }
    }
    Ok(OpenPool { path: dir.absolute()?, metadata, data, catalog, notes, lasting_devices })
}

/// The catalog as it is kept, and what it has to say to the metadata. Writes nothing.
pub(super) fn compare(
    dir: &PoolDir,
    metadata: &mut Metadata<FileDisk>,
) -> Result<(Option<Loaded>, Reconciled)> {
    let name = metadata.disk_name();
    let named = |error| as_found(error, &name);
    let loaded = dir.catalog().load()?;
    let found: Vec<_> = metadata
        .volumes()
        .map_err(named)?
        .into_iter()
        .map(|(id, details)| FoundVolume { id, created: details.transaction_id })
        .collect();
    let (metadata_id, block_size) = (metadata.transaction_id(), metadata.geometry().block_size);
    metadata.look_up_highest(found.iter().map(|volume| volume.id));
    let known = loaded.as_ref().map(|loaded| loaded.catalog.clone());
    let reconciled = reconcile(known, metadata_id, &found, block_size, &mut |id| {
        metadata.highest_mapped(id).map_err(named)
    })?;
    Ok((loaded, reconciled))
}

/// Names the disk, where the message does not, and the way on from damage. And a disk that does not fit is a state that
/// the pool is in, not a mistake in the command.
pub(super) fn as_found(error: Error, disk: &str) -> Error {
    let error = if error.message().contains(disk) { error } else { error.context(disk) };
    if error.kind() == ErrorKind::Corrupt && error.next_step().is_none() {
        return error.hint(format!(
            "`uthin-fsck check {disk}` tells what else is damaged; keep a copy before anything"
        ));
    }
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    let found = Error::new(ErrorKind::WrongState, error.message());
    match error.next_step() {
        Some(hint) => found.hint(hint),
        None => found,
    }
}

pub(super) fn check_data_size(metadata: &Metadata<FileDisk>, data: &FileDisk) -> Result<()> {
    let geometry = metadata.geometry();
    let needed_bytes = geometry.data_blocks.saturating_mul(geometry.block_size.bytes());
    if data.size_bytes() >= needed_bytes {
        return Ok(());
    }
    let message = format!(
        "{} has {} bytes, and the pool was made with {needed_bytes} ({} blocks of {} bytes)",
        data.name(),
        data.size_bytes(),
        geometry.data_blocks,
        geometry.block_size.bytes()
    );
    Err(Error::new(ErrorKind::WrongState, message)
        .hint("give it back its size: `truncate -s` for a file, the right device behind the link otherwise"))
}
