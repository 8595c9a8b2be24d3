//! Devices that a daemon has left: those that went with it, of which only the number is there, and those that wait for the next one.

use super::control::{Control, failed};
use super::device::block_device;
use super::params::{Mark, mark_of};
use super::{CHARACTER_DEVICE, Options, abi, requirements};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Where the driver is to be seen, when it is loaded.
const DRIVER: &str = "/sys/module/ublk_drv";

/// How long the driver may take to end the requests of a device that is taken away: nobody is at work on them, which it may have to
/// notice first.
const END_PATIENCE: Duration = Duration::from_secs(90);

/// The way to a device that waits for a daemon, and is like that. `NotFound`: it is not there, or another one has its number.
pub(super) fn find(number: u32, mark: Mark, options: Option<Options>) -> Result<Control> {
    let device = block_device(number);
    let mut control = match Control::open() {
        Ok(control) => control,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !Path::new(DRIVER).exists() => {
            let what = format!("{} is not there any more: no driver is loaded", device.display());
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        Err(error) => return Err(requirements::cannot_open(&error)),
    };
    let gone = |what: &str| Error::new(ErrorKind::NotFound, format!("{} {what}", device.display()));
    let info = match control.info(number) {
        Ok(info) => info,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            return Err(gone("is not there any more"));
        }
        Err(error) => return Err(failed("asking for a device", &error)),
    };
    let outlives = info.flags & u64::from(abi::UBLK_F_USER_RECOVERY) != 0;
    if mark_of(&info) != Some(mark) || !outlives {
        return Err(gone("is another device by now"));
    }
    if options.is_some_and(|it| (it.queues, it.depth) != (info.nr_hw_queues, info.queue_depth)) {
        return Err(gone("is another device by now: it has other queues"));
    }
    if u32::from(info.state) == abi::UBLK_S_DEV_DEAD {
        return Err(gone("was never there, or was stopped"));
    }
    Ok(control)
}

/// `NotFound` if there is no such device any more; other errors say that it cannot be told.
pub fn look_for(number: u32, mark: Mark) -> Result<()> {
    find(number, mark, None).map(drop)
}

/// Takes a device away that waits for a daemon: its requests fail. Also `Ok` when it is not there.
pub fn remove(number: u32, mark: Mark) -> Result<()> {
    let mut control = match find(number, mark, None) {
        Ok(control) => control,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let device = block_device(number);
    let doing = format!("taking {} away", device.display());
    control.stop(number, END_PATIENCE).map_err(|error| failed(&doing, &error))?;
    // Not waited for: whoever has it mounted may keep it for ever.
    control.delete(number, false).map_err(|error| failed(&doing, &error))
}

/// Removes devices that a daemon of ours left behind when it was killed: the kernel has stopped them, and keeps their
/// numbers. What cannot be done is logged.
pub fn remove_left_overs() {
    for number in requirements::devices() {
        // One for each: it may be left waiting.
        let Ok(mut control) = Control::open() else { return };
        let Ok(info) = control.info(number) else { continue };
        let is_dead = u32::from(info.state) == abi::UBLK_S_DEV_DEAD && mark_of(&info).is_some();
        if !is_dead || is_alive(info.ublksrv_pid) {
            continue;
        }
        match control.delete(number, false) {
            Ok(()) => tracing::info!("removed {CHARACTER_DEVICE}{number}, left by a daemon that was killed"),
            Err(error) => tracing::warn!("removing {CHARACTER_DEVICE}{number}: {error}"),
        }
    }
}

/// User and group of whoever made a device, if that is an ordinary user: what udev's rules give the files of the device to.
/// `name` is that of either file, without the folder.
pub fn owner(name: &str) -> Result<Option<(u32, u32)>> {
    let number = name.strip_prefix("ublkc").or_else(|| name.strip_prefix("ublkb"));
    let number = number.and_then(|number| number.parse().ok()).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("`{name}` is no device of ublk"))
            .hint("they are called ublkc0 and ublkb0")
    })?;
    let mut control = Control::open().map_err(|error| requirements::cannot_open(&error))?;
    let info = control.info(number).map_err(|error| failed("asking for a device's owner", &error))?;
    let is_ordinary = info.flags & u64::from(abi::UBLK_F_UNPRIVILEGED_DEV) != 0;
    Ok(is_ordinary.then_some((info.owner_uid, info.owner_gid)))
}

/// Whether there is such a process; who cannot be told counts as alive. The driver notes -1 for one whose device it has
/// stopped, which to kill(2) would mean everybody.
fn is_alive(process: i32) -> bool {
    let process = Some(process).filter(|process| *process > 0).and_then(rustix::process::Pid::from_raw);
    process.is_some_and(|process| rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH))
}

/// Numbers of the block devices of ours that wait for a daemon.
pub(super) fn waiting() -> Vec<u32> {
    let Ok(mut control) = Control::open() else { return Vec::new() };
    requirements::devices().into_iter().filter(|number| waits(&mut control, *number).is_some()).collect()
}

/// The mark of a device of ours, if it waits for a daemon.
fn waits(control: &mut Control, number: u32) -> Option<Mark> {
    let info = control.info(number).ok()?;
    let is_quiet = u32::from(info.state) == abi::UBLK_S_DEV_QUIESCED;
    // Who has it, or is just taking it up, has the file open, and the driver lets nobody else have it.
    let is_free =
        || File::options().read(true).write(true).open(format!("{CHARACTER_DEVICE}{number}")).is_ok();
    mark_of(&info).filter(|_| is_quiet && is_free())
}

/// Takes a device away that waits for a daemon which nobody will start again. `WrongState`: it is none of ours that waits.
pub fn remove_waiting(number: u32) -> Result<()> {
    let mut control = Control::open().map_err(|error| requirements::cannot_open(&error))?;
    let mark = waits(&mut control, number).ok_or_else(|| {
        let what =
            format!("{} is no device of uthin's that waits for a daemon", block_device(number).display());
        Error::new(ErrorKind::WrongState, what).hint("`uthin doctor` names those that do")
    })?;
    remove(number, mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_stands_for_everybody() {
        assert!(is_alive(std::process::id() as i32));
        assert!(!is_alive(-1), "the driver has stopped its device");
        assert!(!is_alive(0));
        assert!(!is_alive(i32::MAX), "no system has so many");
    }

    #[test]
    fn owners_are_asked_for_by_the_names_of_files() {
        for name in ["ublk0", "ublkc", "ublkb-1", "sda", "ublkbx"] {
            assert_eq!(owner(name).expect_err("no device").kind(), ErrorKind::Invalid, "{name}");
        }
    }
}
