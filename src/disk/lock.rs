//! Who holds a lock: the exclusive lock on a disk and the name of its owner.
//!
//! The lock is `flock`'s: it belongs to the open file, so it goes with the process however that ends, and a second open
//! in the same process conflicts as well. It is advisory: it keeps out uthin's processes, not other programs.

use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Not for somebody who is there.
    None,
    /// For a second: udev locks a block device while it looks at it, which it does whenever a writer has closed it.
    ForUdev,
}

impl Patience {
    /// How long to wait for a lock that `owners` have, as far as that can be seen.
    fn with(self, owners: &[Owner]) -> Duration {
        match self {
            // Whoever took it has died. An io_uring keeps its files open for a while after its process is gone, and the next daemon
            // may be started at once.
            Patience::None | Patience::ForUdev if owners.is_empty() => Duration::from_secs(5),
            Patience::None => Duration::ZERO,
            Patience::ForUdev => Duration::from_secs(1),
        }
    }
}

/// Locks `file` for as long as it is open, against other writers or (`exclusive`) against everybody. `Busy`, at once if the process
/// that has it is alive.
pub(super) fn lock(file: &File, path: &Path, patience: Patience, exclusive: bool) -> Result<()> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let begin = Instant::now();
    loop {
        match retry(|| flock(file, operation)) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let owners = file
                    .metadata()
                    .map(|metadata| owners(metadata.dev(), metadata.ino()))
                    .unwrap_or_default();
                if begin.elapsed() >= patience.with(&owners) {
                    return Err(busy(&owners, path));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(Error::io(format_args!("{}: locking", path.display()), &error.into())),
        }
    }
}

/// Repeats a system call that a signal has interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

fn busy(owners: &[Owner], path: &Path) -> Error {
    let (by, hint) = match owners.first() {
        Some(owner) if owner.pid == std::process::id() => (
            "by this process itself".to_owned(),
            "name each file once: metadata, data and every other pool's files must differ".to_owned(),
        ),
        Some(owner) => {
            (format!("by {owner}"), format!("end process {} first, or use another file", owner.pid))
        }
        None => (
            "by another process".to_owned(),
            format!("`fuser -v {}` as root tells which; end that process first", path.display()),
        ),
    };
    Error::new(ErrorKind::Busy, format!("{} is in use {by}", path.display())).hint(hint)
}

/// A process that holds a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Owner {
    pid: u32,
    command: Option<String>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.command {
            Some(command) => write!(f, "process {} ({command})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// Who holds a `flock` on this inode, as far as this process may see. The process that took the lock may have ended and
/// left it to a child; then its number tells nothing, and it is left out.
fn owners(device: u64, inode: u64) -> Vec<Owner> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut owners = Vec::new();
    for pid in holders(&locks, device, inode) {
        let Ok(command) = std::fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        let command = Some(command.trim().to_owned()).filter(|command| !command.is_empty());
        owners.push(Owner { pid, command });
    }
    owners
}

/// The process numbers in the text of `/proc/locks` that hold a `flock` on this inode. A line:
/// `3: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`, with the device in hexadecimal; one that waits has `->` after its
/// number. On some filesystems the file's device is not the one that is locked; then nobody is found.
fn holders(locks: &str, device: u64, inode: u64) -> Vec<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    let mut holders = Vec::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, "FLOCK", _, _, pid, at, ..] = words[..]
            && at == place
            && let Ok(pid) = pid.parse()
        {
            holders.push(pid);
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 700 fd:01:42 0 EOF
2: FLOCK  ADVISORY  WRITE 1234 fd:01:42 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 fd:01:42 0 EOF
3: FLOCK  ADVISORY  READ 1235 00:2a:42 0 EOF
4: FLOCK  ADVISORY  READ -1 fd:01:42 0 EOF
gibberish
";

    #[test]
    fn finds_the_holder_of_an_inode_and_not_who_waits() {
        let device = rustix::fs::makedev(0xfd, 1);
        assert_eq!(holders(LOCKS, device, 42), [1234]);
        assert_eq!(holders(LOCKS, rustix::fs::makedev(0, 0x2a), 42), [1235]);
        assert_eq!(holders(LOCKS, device, 43), [0_u32; 0]);
    }

    #[test]
    fn names_a_process() {
        let owner = Owner { pid: 7, command: Some("uthin".to_owned()) };
        assert_eq!(owner.to_string(), "process 7 (uthin)");
        assert_eq!(Owner { pid: 7, command: None }.to_string(), "process 7");
    }
}
