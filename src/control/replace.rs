//! Replacing a small file as a whole, so that a crash leaves the old one or the new one, and so that a full filesystem
//! does not keep the file from being replaced.
//!
//! Beside the file `F` there is `F.new`: as large, and filled with what `F` was before. The next content is written over
//! that, padded to its size, and the two change places (an exchange of names is one atomic step). So nothing is allocated
//! for as long as the content fits, with some room to grow. What must hold:
//!
//! - `F.new` is overwritten only while the directory is durably so that it is not `F`: the directory is synced after the
//!   exchange, and once more before the overwriting, in case whoever exchanged them was killed in between.
//! - A failed fsync is never retried: `F.new` goes then, and the old file stays.
//! - Content may be followed by blanks; whoever reads it must not mind.

use crate::error::{Error, Result};
use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Room that a file has at least for content to grow into while the filesystem is full: that of a deletion by far.
const ROOM_BYTES: u64 = 4096;
/// Files are as large as a multiple of this.
const STEP_BYTES: u64 = 16 * 1024;

/// The size of a file with so much content.
fn size_for(content_bytes: u64) -> u64 {
    (content_bytes + ROOM_BYTES).next_multiple_of(STEP_BYTES)
}

/// Where the next content of a file is written.
pub(super) fn reserve_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Replaces the file, durably. After an error the old or the new content is there.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let reserve = reserve_of(path);
    let replaced = sync_directory_of(path)
        .and_then(|()| {
            let mut file = open(&reserve)?;
            write(&mut file, content)?;
            Ok(file)
        })
        .and_then(|file| {
            let exchanged = file.sync_all().and_then(|()| exchange(&reserve, path));
            exchanged.and_then(|()| sync_directory_of(path)).inspect_err(|_| {
                // Perhaps it still is the file, as far as the disk knows: it must not be overwritten.
                let _ = fs::remove_file(&reserve);
            })
        });
    replaced.map_err(|source| {
        Error::io(format!("replacing {}", path.display()), &source).hint(
            "see to room and permissions there, then try again: the old catalog or the new one is in place, and the pool \
             can be opened with either",
        )
    })?;
    if let Err(error) = keep_reserve(path) {
        tracing::warn!("{error}");
    }
    Ok(())
}

/// Sees to it that content of so many bytes will find its space, the next time and the time after that: `F` and `F.new` take
/// turns. `Err`: there may not be so much.
pub(super) fn reserve_for(path: &Path, content_bytes: u64) -> Result<()> {
    let (reserve, wanted) = (reserve_of(path), size_for(content_bytes));
    open(&reserve)
        .and_then(|file| set_aside(&file, wanted))
        .and_then(|()| set_aside_behind(&OpenOptions::new().write(true).open(path)?, wanted))
        .map_err(|source| {
            let what = format!("keeping space for {content_bytes} bytes of {}", path.display());
            Error::io(what, &source).hint("free space there; volumes can be deleted")
        })
}

/// As [`replace()`], with a temporary file in place of a reserve, and no blanks behind the content.
pub(super) fn replace_plainly(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = reserve_of(path);
    let replaced = || {
        let mut file = open(&temporary)?;
        file.set_len(0)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory_of(path)
    };
    replaced().map_err(|source| {
        // It may be renamed already; what matters is that no half-written file is left.
        let _ = fs::remove_file(&temporary);
        Error::io(format!("replacing {}", path.display()), &source).hint("see to room and permissions there")
    })
}

/// Sees to it that the next replacing finds its space. An error is no harm yet.
pub(super) fn keep_reserve(path: &Path) -> Result<()> {
    let reserve = reserve_of(path);
    let content_bytes = match fs::metadata(path) {
        // It was written with room; a file that somebody else has written has none.
        Ok(metadata) => metadata.len().max(STEP_BYTES).next_multiple_of(STEP_BYTES),
        Err(_) => STEP_BYTES,
    };
    let kept = open(&reserve).and_then(|file| match file.metadata()?.len() {
        has if has >= content_bytes => Ok(()),
        _ => set_aside(&file, content_bytes),
    });
    kept.map_err(|source| {
        Error::io(format!("keeping space for the next {} in {}", path.display(), reserve.display()), &source)
            .hint("free space there: should the filesystem get full, volumes may not be deleted")
    })
}

fn open(reserve: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(reserve)
}

/// Writes the content and blanks behind it.
fn write(file: &mut File, content: &[u8]) -> io::Result<()> {
    let (content_bytes, wanted) = (content.len() as u64, size_for(content.len() as u64));
    let mut has = file.metadata()?.len();
    if has / 4 > wanted {
        file.set_len(wanted)?;
        has = wanted;
    }
    if has < wanted {
        match set_aside(file, wanted) {
            Ok(()) => has = wanted,
            // This is what the room is for.
            Err(_) if has >= content_bytes => {}
            Err(error) => return Err(error),
        }
    }
    file.write_all(content)?;
    let blanks = vec![b' '; (has - content_bytes) as usize];
    file.write_all(&blanks)
}

/// Allocates without changing what is there. Where the filesystem cannot, writing will.
pub(super) fn set_aside(file: &File, size_bytes: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, size_bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let has = file.metadata()?.len();
                let zeros = vec![0; size_bytes.saturating_sub(has) as usize];
                return std::os::unix::fs::FileExt::write_all_at(file, &zeros, has);
            }
            done => return Ok(done?),
        }
    }
}

/// As [`set_aside`], behind what is to be read. Where the filesystem cannot, there is nothing to be done.
fn set_aside_behind(file: &File, size_bytes: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            done => return Ok(done?),
        }
    }
}

/// The new file takes the old one's name, and the other way round if there is an old one and the filesystem knows how.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(new, old),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in the directory of a file durable.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn content(path: &Path) -> String {
        fs::read_to_string(path).expect("text").trim_end().to_owned()
    }

    #[test]
    fn two_files_take_turns_and_nothing_is_allocated() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        replace(&path, b"1").expect("replaced");
        replace(&path, b"2").expect("replaced");
        let inodes = || [&path, &reserve_of(&path)].map(|path| fs::metadata(path).expect("there").ino());
        let [first, second] = inodes();
        for round in 3..7 {
            replace(&path, format!("{round}").as_bytes()).expect("replaced");
            assert_eq!(content(&path), round.to_string());
        }
        assert_eq!(inodes(), [first, second]);
        replace(&path, b"7").expect("replaced");
        assert_eq!(inodes(), [second, first]);
        assert_eq!(fs::metadata(&path).expect("there").len(), STEP_BYTES);
    }

    #[test]
    fn files_grow_and_shrink_with_their_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for length in [10, 100_000, 70_000, 200_000, 10, 10] {
            let text = "x".repeat(length);
            replace(&path, text.as_bytes()).expect("replaced");
            assert_eq!(content(&path), text);
            let [has, reserve] =
                [&path, &reserve_of(&path)].map(|path| fs::metadata(path).expect("there").len());
            assert!(has >= size_for(length as u64) && reserve >= has, "{length}: {has}, {reserve}");
        }
        assert_eq!(fs::metadata(&path).expect("there").len(), STEP_BYTES);
    }

    #[test]
    fn what_is_reserved_is_there_for_both_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        replace(&path, b"1").expect("replaced");
        reserve_for(&path, 1 << 20).expect("there is space");
        let allocated = |path: &Path| fs::metadata(path).expect("there").blocks() * 512;
        assert!(allocated(&reserve_of(&path)) > 1 << 20);
        assert!(allocated(&path) > 1 << 20, "it is the reserve after the next replacing");
        assert_eq!((content(&path).as_str(), fs::metadata(&path).expect("there").len()), ("1", STEP_BYTES));
    }

    #[test]
    fn a_file_that_somebody_else_has_written_gets_its_reserve() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "y".repeat(20_000)).expect("written");
        keep_reserve(&path).expect("there is space");
        assert_eq!(fs::metadata(reserve_of(&path)).expect("there").len(), 32 * 1024);
        assert_eq!(content(&path).len(), 20_000);
    }
}
