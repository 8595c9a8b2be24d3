//! Who holds a lock: the exclusive lock on a disk and the name of its owner.
//!
//! The lock is `flock`'s: it belongs to the open file, so it goes with the process however that ends, and a second open
//! in the same process conflicts as well. It is advisory: it keeps out uthin's processes, not other programs.

use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// After so long a wait its reason is logged.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// How long to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Not for somebody who is there.
    None,
    /// For a second: udev locks a block device while it looks at it, which it does whenever a writer has closed it.
    ForUdev,
}

impl Patience {
    /// How long to wait for a lock that `holders` have.
    fn with(self, holders: &Holders) -> Duration {
        match (self, holders) {
            // An io_uring keeps its files open for a while after its process is gone, on a busy machine for a long one, and the
            // next daemon may be started at once.
            (_, Holders::Dead(_)) => Duration::from_secs(60),
            (_, Holders::Unknown) => Duration::from_secs(5),
            (Patience::None, Holders::Alive(_)) => Duration::ZERO,
            (Patience::ForUdev, Holders::Alive(_)) => Duration::from_secs(1),
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
    let mut is_told = false;
    loop {
        match retry(|| flock(file, operation)) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let holders = file
                    .metadata()
                    .map_or(Holders::Unknown, |metadata| holders_of(metadata.dev(), metadata.ino()));
                if begin.elapsed() >= patience.with(&holders) {
                    return Err(busy(&holders, path));
                }
                if begin.elapsed() >= TOLD_AFTER && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!("{} is in use {}; waiting for that", path.display(), holders.words());
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

fn busy(holders: &Holders, path: &Path) -> Error {
    let hint = match holders {
        Holders::Alive(owner) if owner.pid == std::process::id() => {
            "name each file once: metadata, data and every other pool's files must differ".to_owned()
        }
        Holders::Alive(owner) => format!("end process {} first, or use another file", owner.pid),
        Holders::Dead(_) => format!(
            "`fuser -v {}` as root tells whether it has left it to another process; if not, the kernel lets go of it sooner or \
             later: try again",
            path.display()
        ),
        Holders::Unknown => {
            format!("`fuser -v {}` as root tells which; end that process first", path.display())
        }
    };
    Error::new(ErrorKind::Busy, format!("{} is in use {}", path.display(), holders.words())).hint(hint)
}

/// Who has a lock that another process wants.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Holders {
    /// A process that can be seen, and perhaps others.
    Alive(Owner),
    /// The process of this number took it, and is gone: it has left it to a child, or to what the kernel still does for it.
    Dead(u32),
    /// Nobody that this process may see.
    Unknown,
}

impl Holders {
    fn words(&self) -> String {
        match self {
            Holders::Alive(owner) if owner.pid == std::process::id() => "by this process itself".to_owned(),
            Holders::Alive(owner) => format!("by {owner}"),
            Holders::Dead(pid) => {
                format!("by what process {pid}, which has ended, has left behind")
            }
            Holders::Unknown => "by another process".to_owned(),
        }
    }
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

/// Who holds a `flock` on this inode, as far as this process may see.
fn holders_of(device: u64, inode: u64) -> Holders {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut found = Holders::Unknown;
    for pid in holders(&locks, device, inode) {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => match command_of(&stat) {
                Some(command) => return Holders::Alive(Owner { pid, command }),
                None => found = Holders::Dead(pid),
            },
            // Some machines hide other users' processes.
            Err(_) if is_there(pid) => return Holders::Alive(Owner { pid, command: None }),
            Err(_) => found = Holders::Dead(pid),
        }
    }
    found
}

/// Whether there is a process of this number, of whomever.
fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// What a process runs, if it has a name: from the text of `/proc/PID/stat`, which begins with `PID (NAME) STATE`. `None`: it has
/// ended, and nobody has asked yet how.
fn command_of(stat: &str) -> Option<Option<String>> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, command) = head.split_once('(')?;
    let has_ended = rest.starts_with(['Z', 'X']);
    (!has_ended).then(|| Some(command.to_owned()).filter(|command| !command.is_empty()))
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
    fn says_what_is_known_of_a_holder() {
        let path = Path::new("/pools/p/data");
        let alive = Holders::Alive(Owner { pid: 7, command: Some("uthin".to_owned()) });
        for (holders, words) in [
            (alive, "/pools/p/data is in use by process 7 (uthin)"),
            (Holders::Dead(7), "/pools/p/data is in use by what process 7, which has ended, has left behind"),
            (Holders::Unknown, "/pools/p/data is in use by another process"),
        ] {
            let error = busy(&holders, path);
            assert!(error.message().starts_with(words) && error.next_step().is_some(), "{error}");
        }
    }

    #[test]
    fn a_process_is_there_or_not() {
        assert!(is_there(std::process::id()) && is_there(1));
        assert!(!is_there(0) && !is_there(u32::MAX) && !is_there(i32::MAX as u32));
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_has_ended() {
        let uthin = Some(Some("ut) (hin".to_owned()));
        assert_eq!(command_of("7 (ut) (hin) S 1 7 7 0"), uthin);
        assert_eq!(command_of("7 (uthin) Z 1 7 7 0"), None);
        assert_eq!(command_of("7 () R 1"), Some(None));
        assert_eq!(command_of(""), None);
    }

    #[test]
    fn names_a_process() {
        let owner = Owner { pid: 7, command: Some("uthin".to_owned()) };
        assert_eq!(owner.to_string(), "process 7 (uthin)");
        assert_eq!(Owner { pid: 7, command: None }.to_string(), "process 7");
    }
}
