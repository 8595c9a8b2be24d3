//! Adopting a pool that somebody else has made: LVM's, Docker's, containerd's, or one whose directory was lost.
//!
//! A directory is made around the metadata and data, which stay where they are; nothing is written to either. Names and
//! sizes, which the metadata does not have, come from the user, from a backup ([`lvm`], [`docker`]), or from what is mapped.
//! What must hold: metadata that are damaged, need to be checked, have features that nobody here knows or do not fit the
//! data are refused; what is in use by anybody is refused; a backup never names a volume that is certainly another.

mod backup;
mod docker;
mod lvm;
mod lvm_text;

use super::api::{SCHEMA, SetPool};
use super::catalog::{Catalog, VolumeEntry};
use super::catalog_file::CatalogFile;
use super::create::refuse_same;
use super::journal;
use super::label::{LabelKey, LabelValue, Labels};
use super::name::{PoolRef, VolumeName};
use super::open::{as_found, check_data_size};
use super::options::PoolOptions;
use super::origin::ExternalOrigin;
use super::pool_dir::PoolDir;
use super::reconcile::{size_to_show, volume_bytes_limit, whole_blocks};
use super::service::check_volume_size;
use super::staging::Staging;
use crate::check::{CheckOptions, Verdict, check};
use crate::disk::{Disk, FileDisk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{Access, Metadata, VolumeDetails};
use crate::units::{BlockSize, META_BLOCK_BYTES, SECTOR_BYTES, VolumeId};
use backup::{Backup, Known};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// The label of a volume whose unmapped parts LVM takes from a device outside the pool.
const EXTERNAL_ORIGIN_LABEL: &str = "lvm-external-origin";
/// Volumes that one note names; of the others it says how many.
const NAMED_IN_A_NOTE: usize = 8;

/// What is to be adopted, and what is known about it.
#[derive(Clone, Debug, Default)]
pub struct Adopt {
    /// The metadata: a file or device.
    pub metadata: PathBuf,
    /// The data.
    pub data: PathBuf,
    /// A device or file to keep the journal on, instead of a new file, if there is to be one.
    pub journal: Option<PathBuf>,
    /// Sizes of volumes, by number; a multiple of 512, and no less than what is mapped.
    pub sizes: BTreeMap<VolumeId, u64>,
    /// The size of volumes of which nothing else is known; larger where more is mapped.
    pub default_size_bytes: Option<u64>,
    /// Names of volumes, by number.
    pub names: BTreeMap<VolumeId, VolumeName>,
    /// External origins of volumes, by number: absolute paths.
    pub origins: BTreeMap<VolumeId, String>,
    /// A backup of LVM's metadata.
    pub lvm: Option<PathBuf>,
    /// The name of the thin pool in it, when there are several.
    pub lvm_pool: Option<String>,
    /// The metadata directory of Docker's devicemapper driver.
    pub docker: Option<PathBuf>,
    /// How the pool is to be run, where it is not to be as the backup says, or as new pools are.
    pub options: SetPool,
}

/// Where a volume's size is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SizeFrom {
    /// The command.
    Given,
    /// The backup.
    Backup,
    /// The end of its highest mapped block: the volume may have been larger.
    Mapped,
}

/// An adopted volume.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct AdoptedVolume {
    /// Its name; its number if nobody knows one.
    pub name: VolumeName,
    /// Its number in the metadata.
    pub id: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Where that is from.
    pub size_from: SizeFrom,
    /// Bytes of data blocks that it maps.
    pub mapped_bytes: u64,
    /// Whether clients can only read it.
    pub read_only: bool,
}

/// What has been adopted.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Adopted {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The pool's directory, absolute.
    pub path: String,
    /// Size of a data block.
    pub block_size_bytes: u64,
    /// Bytes for data.
    pub data_bytes: u64,
    /// Bytes for metadata.
    pub metadata_bytes: u64,
    /// The metadata's transaction id.
    pub transaction_id: u64,
    /// The volumes, in order of their numbers.
    pub volumes: Vec<AdoptedVolume>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Adopts a pool. `Exists` when there is one at that place; `Busy`, `Corrupt`, `NeedsCheck`, `Unsupported` or `WrongState`
/// for metadata and data that cannot be served as they are; `Invalid` for names and sizes that cannot be.
pub fn adopt(pool: &PoolRef, wanted: &Adopt) -> Result<Adopted> {
    let dir = PoolDir::of(pool);
    let devices = [
        ("data", Some(&*wanted.data)),
        ("metadata", Some(&*wanted.metadata)),
        ("a journal", wanted.journal.as_deref()),
    ];
    refuse_same(&devices).map_err(|error| error.hint("name another device or file for each"))?;
    let backup = match (&wanted.lvm, &wanted.docker) {
        (Some(file), _) => Some(lvm::read(file, wanted.lvm_pool.as_deref())?),
        (None, Some(directory)) => Some(docker::read(directory)?),
        (None, None) => None,
    };
    let mut notes = Vec::new();
    let (mut metadata, data) = open_sound(wanted, &mut notes)?;
    let block_size = metadata.geometry().block_size;
    let transaction_id = metadata.transaction_id();
    if let Some(backup) = &backup {
        compare_pools(backup, block_size, transaction_id.0, &mut notes)?;
    }
    let found = metadata.volumes()?;
    refuse_unknown_numbers(wanted, &found)?;
    let origins = examine_origins(wanted, dir.path())?;
    let mut plan = Plan { wanted, origins, backup, block_size, names: HashSet::new(), notes };
    plan.names.extend(wanted.names.values().cloned());
    let mut catalog = Catalog::empty(transaction_id);
    catalog.options = plan.options();
    let mut volumes = Vec::with_capacity(found.len());
    metadata.look_up_highest(found.iter().map(|(id, _)| *id));
    for (id, details) in &found {
        let mapped_end = size_to_show(*id, block_size, &mut |id| metadata.highest_mapped(id))?;
        let (entry, size_from) = plan.entry(*id, details, mapped_end)?;
        volumes.push(AdoptedVolume {
            name: entry.name.clone(),
            id: id.get(),
            size_bytes: entry.size_bytes,
            size_from,
            mapped_bytes: details.mapped_blocks.saturating_mul(block_size.bytes()),
            read_only: entry.read_only,
        });
        catalog.insert(entry);
    }
    plan.note_what_is_missing(&found);
    let mut notes = plan.notes;
    let sizes_mapped = volumes.iter().filter(|volume| volume.size_from == SizeFrom::Mapped).count();
    if sizes_mapped > 0 {
        notes.push(format!(
            "{sizes_mapped} volumes are as large as what is mapped in them, and may have been larger: \
             `uthin volume resize` makes them so"
        ));
    }
    if metadata.held_root().is_some() {
        notes.push(format!(
            "a metadata snapshot is held, and keeps space: `uthin pool metadata-snapshot {} --release` lets it go",
            dir.shown()
        ));
    }
    let (geometry, usage) = (metadata.geometry(), metadata.usage());
    make_directory(&dir, pool.is_name(), wanted, &catalog)?;
    drop((metadata, data));
    Ok(Adopted {
        schema: SCHEMA,
        path: dir.absolute()?.to_string_lossy().into_owned(),
        block_size_bytes: block_size.bytes(),
        data_bytes: geometry.data_blocks.saturating_mul(block_size.bytes()),
        metadata_bytes: usage.metadata_total * META_BLOCK_BYTES as u64,
        transaction_id: transaction_id.0,
        volumes,
        notes,
    })
}

/// Opens both, locked against everybody else, once the metadata is known to be whole. Nothing is written.
fn open_sound(wanted: &Adopt, notes: &mut Vec<String>) -> Result<(Metadata<FileDisk>, FileDisk)> {
    let open = |path: &Path, mode| {
        refuse_loop_backing(path)?;
        FileDisk::open(path, mode)
    };
    // For writing, although nothing is written: it keeps out whoever has the device or the lock.
    let disk = open(&wanted.metadata, OpenMode::ReadWrite)?.through_page_cache()?;
    let name = disk.name();
    let data = open(&wanted.data, OpenMode::ReadWrite)?;
    let report = check(&disk, &CheckOptions::default()).map_err(|error| as_found(error, &name))?;
    match report.verdict {
        Verdict::Clean => {}
        Verdict::Leaks => notes.push(format!(
            "{} data blocks are counted too often: safe, and `uthin-fsck check --auto-repair {name}` gives them back",
            report.data.over_counted
        )),
        Verdict::Damage => {
            let first = report.findings.iter().find(|finding| finding.severity == crate::check::Severity::Damage);
            let first = first.map_or_else(String::new, |finding| format!(": {}", finding.message));
            let what = format!("{name} is damaged{first}");
            return Err(Error::new(ErrorKind::Corrupt, what).hint(format!(
                "`uthin-fsck check {name}` tells all; `uthin-fsck repair -i {name} -o NEW` makes sound metadata to adopt"
            )));
        }
    }
    let metadata = Metadata::open(disk, Access::ReadOnly).map_err(|error| as_found(error, &name))?;
    metadata.require_writable().map_err(|error| {
        let error = error.context(&name);
        match error.kind() {
            ErrorKind::NeedsCheck => error.hint(format!(
                "it has just been checked and is sound: `uthin-fsck check --clear-needs-check-flag {name}`, then adopt it"
            )),
            _ => error,
        }
    })?;
    if metadata.journal().is_some() {
        let what = format!("{name}: a journal holds changes on top of the metadata");
        return Err(Error::new(ErrorKind::WrongState, what)
            .hint(
                "serve and close the pool that it belongs to first: that brings them in. If its directory is gone, make one with three \
                 links, `metadata`, `data` and `journal`, to what they were on, and serve that: its volumes have their numbers for names",
            ));
    }
    check_data_size(&metadata, &data).map_err(|error| {
        error.hint("these two do not belong together, or the data was cut off: name the right devices")
    })?;
    let geometry = metadata.geometry();
    let rest =
        data.size_bytes().saturating_sub(geometry.data_blocks.saturating_mul(geometry.block_size.bytes()));
    if rest >= geometry.block_size.bytes() {
        notes.push(format!(
            "{} has {rest} bytes more than the metadata knows of: `uthin pool grow` takes them into use",
            data.name()
        ));
    }
    Ok((metadata, data))
}

/// A file behind a loop device is in use without a lock that would show: Docker's default is just that.
fn refuse_loop_backing(path: &Path) -> Result<()> {
    // What is not there is told of when it is opened; without /sys nobody can tell.
    let (Ok(path), Ok(devices)) = (path.canonicalize(), std::fs::read_dir("/sys/block")) else {
        return Ok(());
    };
    for device in devices.flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let Ok(backing) = std::fs::read_to_string(device.path().join("loop/backing_file")) else { continue };
        if Path::new(backing.trim_end_matches('\n')) == path {
            let what = format!("{} is in use by /dev/{name}", path.display());
            return Err(Error::new(ErrorKind::Busy, what)
                .hint(format!("stop what uses it, and detach it: losetup -d /dev/{name}")));
        }
    }
    Ok(())
}

/// Whether the backup can be this pool's.
fn compare_pools(
    backup: &Backup,
    block_size: BlockSize,
    transaction_id: u64,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(pool) = &backup.pool else { return Ok(()) };
    if pool.block_size_bytes != block_size.bytes() {
        let what = format!(
            "{}: thin pool `{}` has chunks of {} bytes, and the metadata blocks of {}",
            backup.whence,
            pool.name,
            pool.block_size_bytes,
            block_size.bytes()
        );
        return Err(Error::new(ErrorKind::WrongState, what)
            .hint("it is the backup of another pool, or the metadata is: name those that belong together"));
    }
    if pool.transaction_id != transaction_id {
        notes.push(format!(
            "{} is of transaction {}, and the metadata of {transaction_id}: volumes made or deleted between are not as it says",
            backup.whence, pool.transaction_id
        ));
    }
    Ok(())
}

/// A number that is mistyped must not pass unnoticed.
fn refuse_unknown_numbers(wanted: &Adopt, found: &[(VolumeId, VolumeDetails)]) -> Result<()> {
    let unknown = wanted
        .sizes
        .keys()
        .chain(wanted.names.keys())
        .chain(wanted.origins.keys())
        .find(|id| found.binary_search_by_key(*id, |(id, _)| *id).is_err());
    let Some(id) = unknown else { return Ok(()) };
    let what = format!("the metadata has no volume {id}");
    Err(Error::new(ErrorKind::NotFound, what)
        .hint(format!("`uthin-fsck ls {}` lists the volumes", wanted.metadata.display())))
}

fn examine_origins(wanted: &Adopt, pool: &Path) -> Result<BTreeMap<VolumeId, ExternalOrigin>> {
    let examine = |(id, path): (&VolumeId, &String)| {
        let (origin, _) = ExternalOrigin::examine(path, pool)
            .map_err(|error| error.context(format!("the external origin of volume {id}")))?;
        Ok((*id, origin))
    };
    wanted.origins.iter().map(examine).collect()
}

fn make_directory(dir: &PoolDir, is_name: bool, wanted: &Adopt, catalog: &Catalog) -> Result<()> {
    let mut staging = Staging::begin(dir, is_name)?;
    let made = staging
        .link("metadata", &wanted.metadata)
        .and_then(|()| staging.link("data", &wanted.data))
        .and_then(|()| match &wanted.journal {
            None => Ok(()),
            Some(device) => journal::link(&mut staging, device, false),
        })
        .and_then(|()| {
            let file = CatalogFile::at(staging.at("catalog.json"));
            staging.at("catalog.json.new");
            file.save(catalog)
        });
    made.map_err(|error| staging.under_final_name(&error, dir))?;
    staging.finish(dir)
}

/// Names and sizes in the making.
struct Plan<'a> {
    wanted: &'a Adopt,
    origins: BTreeMap<VolumeId, ExternalOrigin>,
    backup: Option<Backup>,
    block_size: BlockSize,
    /// Names that are taken.
    names: HashSet<VolumeName>,
    notes: Vec<String>,
}

impl Plan<'_> {
    fn options(&self) -> PoolOptions {
        let base = self.backup.as_ref().and_then(|backup| backup.pool.as_ref()).map(|pool| pool.options);
        base.unwrap_or_default().changed_by(&self.wanted.options)
    }

    fn entry(
        &mut self,
        id: VolumeId,
        details: &VolumeDetails,
        mapped_end: u64,
    ) -> Result<(VolumeEntry, SizeFrom)> {
        let known = self.take_known(id, details);
        let name = self.name(id, known.as_ref());
        let (size_bytes, size_from) = self.size(id, &name, known.as_ref(), mapped_end)?;
        let mut entry = VolumeEntry {
            external_origin: self.origins.get(&id).cloned(),
            when_full: None,
            name,
            id,
            size_bytes,
            created_unix_seconds: None,
            created_in_transaction: Some(details.transaction_id.0),
            origin: None,
            labels: Labels::new(),
            read_only: false,
        };
        if let Some(known) = known {
            entry.created_unix_seconds = known.created_unix_seconds;
            entry.origin = known.origin;
            entry.read_only = known.read_only;
            self.mark_external_origin(&mut entry, known.external_origin)?;
        }
        Ok((entry, size_from))
    }

    /// What the backup says of the volume, if it is about this one.
    fn take_known(&mut self, id: VolumeId, details: &VolumeDetails) -> Option<Known> {
        let known = self.backup.as_mut()?.volumes.remove(&id)?;
        let made = details.transaction_id.0;
        match &known.made_in {
            Some(range) if !range.contains(&made) => {
                self.notes.push(format!(
                    "volume {id} was made in transaction {made}, and `{}`, which has its number in the backup, was not: \
                     it keeps its number (--name {id}={} if it is the same)",
                    known.name, known.name
                ));
                None
            }
            Some(_) | None => Some(known),
        }
    }

    fn name(&mut self, id: VolumeId, known: Option<&Known>) -> VolumeName {
        if let Some(name) = self.wanted.names.get(&id) {
            return name.clone();
        }
        let Some(known) = known else { return VolumeName::of_unknown(id) };
        let problem = match VolumeName::parse_new(&known.name) {
            Ok(name) if self.names.insert(name.clone()) => return name,
            Ok(_) => "another volume has that name".to_owned(),
            Err(error) => error.message().to_owned(),
        };
        self.notes.push(format!("volume {id} keeps its number instead of `{}`: {problem}", known.name));
        VolumeName::of_unknown(id)
    }

    fn size(
        &mut self,
        id: VolumeId,
        name: &VolumeName,
        known: Option<&Known>,
        mapped_end: u64,
    ) -> Result<(u64, SizeFrom)> {
        let limit = volume_bytes_limit(self.block_size);
        if let Some(size_bytes) = self.wanted.sizes.get(&id).copied() {
            check_volume_size(size_bytes, limit).map_err(|error| error.context(format!("volume {id}")))?;
            if mapped_end > whole_blocks(size_bytes, self.block_size) {
                let what = format!(
                    "volume {id} has data up to byte {mapped_end}, and cannot have {size_bytes} bytes"
                );
                return Err(Error::new(ErrorKind::Invalid, what).hint("give its size as it was"));
            }
            return Ok((size_bytes, SizeFrom::Given));
        }
        if let Some(known) = known {
            let size_bytes = known.size_bytes;
            if !size_bytes.is_multiple_of(SECTOR_BYTES) || size_bytes > limit {
                let what = format!("volume {id}: by the backup it has {size_bytes} bytes, which cannot be");
                return Err(Error::new(ErrorKind::Corrupt, what)
                    .hint(format!("say how large it is: --size {id}=SIZE")));
            }
            if mapped_end > whole_blocks(size_bytes, self.block_size) {
                self.notes.push(format!(
                    "volume `{name}` has {size_bytes} bytes, and {mapped_end} are mapped: what is beyond cannot be reached"
                ));
            }
            return Ok((size_bytes, SizeFrom::Backup));
        }
        match self.wanted.default_size_bytes {
            Some(size_bytes) => {
                check_volume_size(size_bytes, limit)?;
                // Where more is mapped, the volume was larger.
                let is_more = mapped_end > whole_blocks(size_bytes, self.block_size);
                Ok(if is_more { (mapped_end, SizeFrom::Mapped) } else { (size_bytes, SizeFrom::Given) })
            }
            None => Ok((mapped_end, SizeFrom::Mapped)),
        }
    }

    /// Where nothing is mapped, such a volume shows another device. Without that it would show zeros: so nobody writes it.
    fn mark_external_origin(&mut self, entry: &mut VolumeEntry, origin: Option<String>) -> Result<()> {
        let Some(origin) = origin.filter(|_| entry.external_origin.is_none()) else { return Ok(()) };
        self.notes.push(format!(
            "volume `{}` has the external origin `{origin}`, whose data shows where nothing is mapped: as it was not given \
             (--origin {}=PATH), the volume reads zeros there, and is read-only for that reason",
            entry.name, entry.id
        ));
        entry.read_only = true;
        entry.labels.insert(LabelKey::parse(EXTERNAL_ORIGIN_LABEL)?, LabelValue::parse(&origin)?);
        Ok(())
    }

    /// Volumes of which the backup knows and the metadata does not.
    fn note_what_is_missing(&mut self, found: &[(VolumeId, VolumeDetails)]) {
        let Some(backup) = &self.backup else { return };
        // What was taken out for a volume of that number has been told of.
        let missing: Vec<_> = backup
            .volumes
            .iter()
            .filter(|(id, _)| found.binary_search_by_key(*id, |(id, _)| *id).is_err())
            .map(|(id, known)| format!("{} ({id})", known.name))
            .collect();
        if missing.is_empty() {
            return;
        }
        let named = missing.iter().take(NAMED_IN_A_NOTE).cloned().collect::<Vec<_>>().join(", ");
        let more = missing.len().saturating_sub(NAMED_IN_A_NOTE);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.notes.push(format!(
            "of the volumes in {}, these are not in the metadata: {named}{rest}",
            backup.whence
        ));
    }
}
