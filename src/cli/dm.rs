//! What device-mapper's own tools know: messages, table lines and a thin volume's status line.
//!
//! Table lines are those of the kernel's targets on the same metadata and data, as `dmsetup table` prints them and
//! `dmsetup create` takes them; a block device is told by its numbers, a file by its path (it would need a loop device).

use super::{change, look, print, print_json};
use crate::control::api::{Discard, MessageRequest, PoolInfo, SCHEMA, VolumeInfo};
use crate::control::name::{PoolRef, VolumeRef};
use crate::engine::WhenFull;
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR_BYTES;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// `uthin pool message`: prints nothing when all is well, as `dmsetup message` does, but for a volume without a size.
pub(super) fn message(pool: &PoolRef, words: &[String], size_bytes: Option<u64>, json: bool) -> Result<()> {
    // `dmsetup message` has a sector before the message, which means nothing to a pool.
    let words = match words {
        [sector, rest @ ..] if sector == "0" && !rest.is_empty() => rest,
        all => all,
    };
    let request = MessageRequest { message: words.join(" "), size_bytes };
    let done = change(pool, |pool| pool.message(&request)).map_err(|error| match error.kind() {
        // A pool that cannot be changed is not even opened.
        ErrorKind::NeedsCheck => {
            let what =
                format!("`{}`: Operation not supported (EOPNOTSUPP): {}", request.message, error.message());
            let told = Error::new(ErrorKind::NeedsCheck, what);
            error.next_step().map_or(told.clone(), |hint| told.hint(hint))
        }
        _ => error,
    })?;
    if json {
        return print_json(&done);
    }
    match (&done.volume, done.size_bytes) {
        (Some(name), Some(0)) => print(&format!(
            "volume {name} has no size yet: uthin volume resize {}/{name} --size SIZE\n",
            pool.text()
        )),
        _ => Ok(()),
    }
}

/// `uthin pool table`.
pub(super) fn pool_table(pool: &PoolRef, json: bool) -> Result<()> {
    let info = look(pool, |pool| pool.status())?;
    let length_sectors = info.data.total_bytes / SECTOR_BYTES;
    print_line(length_sectors, "thin-pool", &pool_arguments(&info), json)
}

fn pool_arguments(info: &PoolInfo) -> String {
    let low_water_blocks = info.options.low_water.bytes_of(info.data.total_bytes) / info.block_size_bytes;
    let mut features = Vec::new();
    if !info.zero_new_blocks {
        features.push("skip_block_zeroing");
    }
    match info.discard {
        Discard::Passdown => {}
        Discard::NoPassdown => features.push("no_discard_passdown"),
        Discard::Ignore => features.push("ignore_discard"),
    }
    match info.when_full {
        WhenFull::Error => features.push("error_if_no_space"),
        WhenFull::Queue(_) => {}
    }
    let directory = Path::new(&info.path);
    let mut text = format!(
        "{} {} {} {low_water_blocks} {} ",
        device(&directory.join("metadata")),
        device(&directory.join("data")),
        info.block_size_bytes / SECTOR_BYTES,
        features.len()
    );
    features.iter().for_each(|feature| text += &format!("{feature} "));
    text
}

/// `MAJOR:MINOR` of a block device, the path of what is none.
fn device(path: &Path) -> String {
    let numbers =
        std::fs::metadata(path).ok().filter(|file| file.file_type().is_block_device()).map(|file| {
            let device = file.rdev();
            format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
        });
    let canonical = || path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string();
    numbers.unwrap_or_else(canonical)
}

/// `uthin volume table`.
pub(super) fn volume_table(volume: &VolumeRef, pool_device: Option<&str>, json: bool) -> Result<()> {
    let (info, pool) =
        look(&volume.pool, |pool| Ok((find(pool.volumes()?.volumes, volume)?, pool.status()?)))?;
    let pool_device = pool_device.map_or_else(|| format!("/dev/mapper/{}", pool.pool), str::to_owned);
    print_line(info.size_bytes / SECTOR_BYTES, "thin", &format!("{pool_device} {}", info.id), json)
}

fn print_line(length_sectors: u64, target: &str, arguments: &str, json: bool) -> Result<()> {
    if json {
        return print_json(&serde_json::json!({
            "schema": SCHEMA,
            "start_sectors": 0,
            "length_sectors": length_sectors,
            "target": target,
            "arguments": arguments,
        }));
    }
    print(&format!("0 {length_sectors} {target} {arguments}\n"))
}

/// The volume of that name in the list.
pub(super) fn find(volumes: Vec<VolumeInfo>, wanted: &VolumeRef) -> Result<VolumeInfo> {
    volumes.into_iter().find(|info| info.name == wanted.volume).ok_or_else(|| {
        let what = format!("there is no volume `{}` in this pool", wanted.volume);
        Error::new(ErrorKind::NotFound, what).hint("`uthin volume list POOL` shows the volumes")
    })
}

/// The kernel's status line of a thin target, what follows `START LENGTH thin `: mapped sectors, and the highest one.
pub(super) fn thin_line(info: &VolumeInfo) -> String {
    match (info.mapped_bytes, info.mapped_end_bytes) {
        // What has mappings has a last one, if it can be read.
        (Some(1..), Some(0)) => "Error".to_owned(),
        (Some(mapped), Some(0)) => format!("{} -", mapped / SECTOR_BYTES),
        (Some(mapped), Some(end)) => format!("{} {}", mapped / SECTOR_BYTES, end / SECTOR_BYTES - 1),
        // A pool that can tell nothing of its volumes has failed.
        (Some(_), None) | (None, _) => "Fail".to_owned(),
    }
}
