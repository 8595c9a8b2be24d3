//! What Docker's devicemapper driver knows of its volumes: one JSON file for each in `…/devicemapper/metadata`.
//!
//! A file is called as its volume is: `base` for the one that all are made from, else a layer's or container's hash. In it are
//! `device_id`, `size` (bytes), and `transaction_id`, which is one more than the pool's when it was made. `deviceset-metadata`
//! and `transaction-metadata` are about the whole, and so are files that begin with a dot or end in `.migrated`.

use super::backup::{Backup, Known, read_file};
use crate::error::{Error, ErrorKind, Result};
use crate::units::VolumeId;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of the directory that describe no volume.
const NO_VOLUMES: [&str; 3] = ["deviceset-metadata", "transaction-metadata", "transaction-set"];

/// A volume's file; what else Docker keeps in it means nothing here.
#[derive(Deserialize)]
struct Device {
    device_id: u64,
    size: u64,
    #[serde(default)]
    transaction_id: Option<u64>,
}

/// Reads all files of the directory, or of `metadata` in it.
pub(super) fn read(directory: &Path) -> Result<Backup> {
    let inner = directory.join("metadata");
    let directory = if inner.is_dir() { inner } else { directory.to_owned() };
    let mut volumes: BTreeMap<VolumeId, Known> = BTreeMap::new();
    for path in device_files(&directory)? {
        let (id, known) = device(&path)?;
        if let Some(other) = volumes.insert(id, known) {
            let what =
                format!("{}: it has the device_id {id}, which {} has already", path.display(), other.name);
            return Err(Error::new(ErrorKind::Corrupt, what).hint(HINT));
        }
    }
    if volumes.is_empty() {
        let what = format!("{} describes no volume", directory.display());
        return Err(Error::new(ErrorKind::NotFound, what).hint(HINT));
    }
    Ok(Backup { whence: directory.display().to_string(), volumes, pool: None })
}

const HINT: &str = "give Docker's devicemapper/metadata directory as it is; take away what is not Docker's";

/// In order of names, so that messages do not depend on the filesystem.
fn device_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Error::new(ErrorKind::NotFound, format!("{} is no directory", directory.display())).hint(HINT)
        }
        _ => Error::io(format!("reading {}", directory.display()), &source),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(context)? {
        let entry = entry.map_err(context)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_volume =
            !name.starts_with('.') && !name.ends_with(".migrated") && !NO_VOLUMES.contains(&&*name);
        if is_volume && !entry.path().is_dir() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn device(path: &Path) -> Result<(VolumeId, Known)> {
    let wrong =
        |what: String| Error::new(ErrorKind::Corrupt, format!("{}:{what}", path.display())).hint(HINT);
    let bytes = read_file(path)?;
    let device: Device =
        serde_json::from_slice(&bytes).map_err(|error| wrong(format!("{}: {error}", error.line().max(1))))?;
    let id = VolumeId::new(device.device_id).ok_or_else(|| {
        wrong(format!("1: a device_id of 0 to {} was expected, not {}", VolumeId::MAX, device.device_id))
    })?;
    let known = Known {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        size_bytes: device.size,
        made_in: device.transaction_id.map(|id| id.saturating_sub(1)..=id),
        read_only: false,
        created_unix_seconds: None,
        origin: None,
        external_origin: None,
    };
    Ok((id, known))
}
