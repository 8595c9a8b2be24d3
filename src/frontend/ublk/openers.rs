//! Who has a block device open. The kernel does not say (before `UBLK_U_CMD_TRY_STOP_DEV`), so we look.

use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whoever looks what is on a new device (udev does) is through by then.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// Holds the device so that nobody can mount it or build on it, and makes sure that nobody has it open. `Busy` with who
/// does after that time, as far as that can be seen: other users' processes cannot by an ordinary user.
pub(super) fn claim(device: &Path, patience: Duration) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let held = match open(device, flags, Mode::empty()) {
        Ok(held) => File::from(held),
        Err(Errno::BUSY) => {
            let (what, hint) = match mounted_at(device) {
                Some(place) => (format!("mounted at {place}"), format!("umount {place}")),
                None => (
                    "in use: mounted elsewhere, or held by device-mapper, md, LVM or as swap".to_owned(),
                    "let go of it there; `lsblk` and /sys/block/*/holders show who has it".to_owned(),
                ),
            };
            return Err(Error::new(ErrorKind::Busy, format!("{} is {what}", device.display())).hint(hint));
        }
        Err(errno) => return Err(Error::io(format!("opening {}", device.display()), &errno.into())),
    };
    let deadline = Instant::now() + patience;
    loop {
        match process_with(device) {
            None => return Ok(held),
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Some((process, command)) => {
                let what = format!("{} is open in process {process} ({command})", device.display());
                return Err(Error::new(ErrorKind::Busy, what).hint(
                    "end that process, or wait for it: --wait; --force takes the device away from it",
                ));
            }
        }
    }
}

/// Lets a filesystem on the device, and who writes to it without one, write what they hold back, as far as they are to be seen from here
/// and for so long at the most. Another process waits for that: were we to, and then be killed, we could never end.
pub(super) fn sync_filesystems(device: &Path, patience: Duration) {
    let mut command = Command::new("sync");
    match mounted_at(device) {
        Some(place) => command.arg("-f").arg(place),
        None => command.arg(device),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = command.spawn().and_then(|child| wait_for(child, patience)) {
        tracing::warn!("{}: writing back what the system holds: {error}", device.display());
    }
}

fn wait_for(mut child: Child, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(status.to_string())),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill()?; // it ends when the device does
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

fn mounted_at(device: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next() == device.to_str()).then(|| words.next().map(unescaped))?
    })
}

/// A place as the kernel lists it: blanks, tabs, line ends and backslashes are there as three octal digits.
fn unescaped(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_owned(), |word, (code, letter)| word.replace(code, letter))
}

/// A process other than this one that has the device open, with its name.
fn process_with(device: &Path) -> Option<(u32, String)> {
    let own = std::process::id();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if process == own {
            continue;
        }
        // Gone by now, or not ours to look at.
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        if files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == device)) {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((process, command.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_they_are_called() {
        assert_eq!(unescaped(r"/mnt/my\040disk\134040"), r"/mnt/my disk\040");
    }

    #[test]
    fn who_has_a_file_open_is_found_and_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().canonicalize().expect("a path");
        assert!(process_with(&path).is_none(), "we ourselves do not count");
        let opened = File::open(&path).expect("it opens");
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(opened)).spawn().expect("sleep");
        let found = process_with(&path);
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert_eq!(found, Some((child.id(), "sleep".to_owned())));
        assert!(process_with(&path).is_none());
    }
}
