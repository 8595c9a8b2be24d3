//! Whether two paths lead to the same bytes, by whatever names: links, device nodes, and loop devices over a file.

use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR_BYTES;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Loop devices over loop devices that are looked through.
const DEPTH_LIMIT: u32 = 8;
/// What the kernel puts behind the name of a file that is gone.
const GONE: &str = " (deleted)";

/// Refuses an output that is the input.
pub(super) fn require_different(input: &Path, output: &Path) -> Result<()> {
    let (from, to) = (places(input), places(output));
    if !from.iter().any(|one| to.iter().any(|other| one.overlaps(other))) {
        return Ok(());
    }
    let (input, output) = (input.display(), output.display());
    let message = if input.to_string() == output.to_string() {
        format!("{output} is the input as well: it would be destroyed")
    } else {
        format!("{output} is the input as well, under another name than {input}: it would be destroyed")
    };
    Err(Error::new(ErrorKind::Invalid, message).hint("give another file or device as the output"))
}

/// What a file is that may have many names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Identity {
    /// By file system and inode.
    File(u64, u64),
    /// By its number.
    Device(u64),
}

/// Bytes of a file or device.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    of: Identity,
    bytes: Range<u64>,
}

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        self.of == other.of && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}

/// Where what is written to a path ends up: there, and in the file below a loop device. Nothing for what is not there.
fn places(path: &Path) -> Vec<Place> {
    let (mut found, mut path, mut bytes) = (Vec::new(), path.to_owned(), 0..u64::MAX);
    for _ in 0..DEPTH_LIMIT {
        let Ok(metadata) = fs::metadata(&path) else { break };
        if !metadata.file_type().is_block_device() {
            found.push(Place { of: Identity::File(metadata.dev(), metadata.ino()), bytes });
            break;
        }
        found.push(Place { of: Identity::Device(metadata.rdev()), bytes: bytes.clone() });
        let Some((backing, below)) = below_loop(metadata.rdev()) else { break };
        // Where in it is only asked of the loop device itself: further down, all of it counts.
        bytes = if found.len() == 1 { below } else { 0..u64::MAX };
        path = backing;
    }
    found
}

/// The file below a loop device, or below a partition of one, and where in it the device is.
fn below_loop(device: u64) -> Option<(PathBuf, Range<u64>)> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let mut folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let number_in = |folder: &Path, name: &str| -> u64 {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let mut part = 0..u64::MAX;
    if folder.join("partition").exists() {
        let begin = number_in(&folder, "start").saturating_mul(SECTOR_BYTES);
        part = begin..begin.saturating_add(number_in(&folder, "size").saturating_mul(SECTOR_BYTES));
        folder.pop();
    }
    let folder = folder.join("loop");
    let backing = fs::read_to_string(folder.join("backing_file")).ok()?;
    let backing = backing.trim_end_matches('\n');
    let (begin, size) = (number_in(&folder, "offset"), number_in(&folder, "sizelimit"));
    let end = if size == 0 { u64::MAX } else { begin.saturating_add(size) };
    let bytes = begin.saturating_add(part.start)..end.min(begin.saturating_add(part.end));
    Some((backing.strip_suffix(GONE).unwrap_or(backing).into(), bytes))
}
