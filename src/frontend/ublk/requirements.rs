//! What ublk takes on this machine: what is there, what is missing, and how to get it.

use super::control::{CONTROL_PATH, Control, failed};
use super::{BLOCK_DEVICE, abi};
use crate::driver::uring::Ring;
use crate::error::{Error, ErrorKind, Result};
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::io;
use std::path::Path;

/// The first kernel whose driver takes today's commands and tells its features.
const KERNEL_NEEDED: (u32, u32) = (6, 5);
/// Files that a device takes in the daemon, beside two for each queue.
const FILES_PER_DEVICE: u64 = 4;
/// With fewer files than this a daemon cannot serve many devices.
const FILES_WANTED: u64 = 1024;

/// How a requirement stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is met.
    Ok,
    /// ublk works without it, less well or less safely.
    Warning,
    /// ublk does not work without it.
    Missing,
}

/// One requirement, and how it stands here.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Which: `kernel`, `io_uring`, `module`, `control_device`, `driver`, `zero_copy`, `devices`, `waiting_devices`, `open_files`, `locked_memory`, `io_flusher`.
    pub check: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    fn new(check: &str, state: State, message: impl Into<String>) -> Finding {
        Finding { check: check.to_owned(), state, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Finding {
        self.hint = Some(hint.into());
        self
    }
}

/// Looks at everything. What depends on something that is missing is left out.
pub fn findings() -> Vec<Finding> {
    let mut found = vec![kernel(&release()), io_uring()];
    let module = module();
    let is_there = module.state != State::Missing;
    found.push(module);
    if is_there {
        let (control, driver) = control_device();
        found.push(control);
        found.extend(driver);
        found.extend(device_count());
        found.extend(waiting_devices());
    }
    found.extend([open_files(), locked_memory(), io_flusher()]);
    found
}

/// Refuses a device of so many queues that cannot be made, before anything is: the first thing that is missing.
pub fn check(queues: u16) -> Result<()> {
    let missing = [kernel(&release()), module()].into_iter().find(|found| found.state == State::Missing);
    if let Some(Finding { message, hint, .. }) = missing {
        return Err(unsupported(&message, hint.as_deref()));
    }
    let (control, _) = control_device();
    match control.state {
        State::Missing => Err(unsupported(&control.message, control.hint.as_deref())),
        State::Ok | State::Warning => enough_files(FILES_PER_DEVICE + 2 * u64::from(queues)),
    }
}

fn unsupported(message: &str, hint: Option<&str>) -> Error {
    let error =
        Error::new(ErrorKind::Unsupported, format!("this machine cannot make ublk devices: {message}"));
    let all = "`uthin doctor` tells all that is missing; NBD works without";
    error.hint(hint.map_or_else(|| all.to_owned(), |hint| format!("{hint}; {all}")))
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_NEEDED {
        return Finding::new("kernel", State::Ok, format!("Linux {release}"));
    }
    let (major, minor) = KERNEL_NEEDED;
    Finding::new("kernel", State::Missing, format!("Linux {release} is too old for ublk")).hint(format!(
        "Linux {major}.{minor} or newer is needed: Debian 13, or Debian 12 with the kernel of its backports"
    ))
}

fn io_uring() -> Finding {
    match Ring::new(4) {
        Ok(_) => Finding::new("io_uring", State::Ok, "works"),
        Err(error) => Finding::new("io_uring", State::Missing, error.message())
            .hint(error.next_step().unwrap_or("allow io_uring to this user")),
    }
}

fn module() -> Finding {
    if Path::new(CONTROL_PATH).exists() || Path::new("/sys/class/misc/ublk-control").exists() {
        return Finding::new("module", State::Ok, "ublk_drv is loaded");
    }
    let folder = format!("/lib/modules/{}", release());
    let mentions = |file: &str| {
        fs::read_to_string(Path::new(&folder).join(file)).is_ok_and(|text| text.contains("/ublk_drv.ko"))
    };
    if mentions("modules.dep") {
        return Finding::new("module", State::Missing, "ublk_drv is not loaded")
            .hint("modprobe ublk_drv (for every boot: echo ublk_drv > /etc/modules-load.d/ublk.conf)");
    }
    if mentions("modules.builtin") {
        return Finding::new("module", State::Missing, "ublk_drv is part of the kernel, but its device is not to be seen")
            .hint("a container must be given /dev/ublk-control and the devices that appear: run uthin outside of it");
    }
    Finding::new("module", State::Missing, "ublk_drv is not there: this kernel comes without it").hint(
        "take a kernel with CONFIG_BLK_DEV_UBLK (Debian's and Ubuntu's have it as a module), or serve NBD",
    )
}

/// Refuses a device with zero copy where it cannot be had.
pub(super) fn check_zero_copy() -> Result<()> {
    let mut control = Control::open().map_err(|error| cannot_open(&error))?;
    let features = control.features().map_err(|error| failed("asking the driver what it can do", &error))?;
    zero_copy(features).map_err(|why| no_zero_copy(&why))
}

pub(super) fn no_zero_copy(why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("there is no zero copy here: {why}"))
        .hint("leave --zero-copy out: the device is the same without it, and the kernel copies")
}

/// Whether the driver lends requests, to us; or why not.
fn zero_copy(features: u64) -> std::result::Result<(), String> {
    let lends = u64::from(super::params::LENDS);
    if features & lends != lends {
        return Err(format!("Linux {} does not lend requests to rings, 6.16 and newer do", release()));
    }
    if !rustix::process::geteuid().is_root() {
        return Err("the driver lends requests to root's daemons only".to_owned());
    }
    Ok(())
}

/// The control device, and what the driver says of itself if it can be asked.
fn control_device() -> (Finding, Vec<Finding>) {
    match Control::open() {
        Ok(mut control) => {
            let driver = match control.features() {
                Ok(features) => {
                    let message = match zero_copy(features) {
                        Ok(()) => "can be had (export --zero-copy)".to_owned(),
                        Err(why) => format!("not here: {why}; devices work without"),
                    };
                    vec![driver(features), Finding::new("zero_copy", State::Ok, message)]
                }
                Err(error) => {
                    let message = format!("it does not answer: {error}");
                    let found = Finding::new("driver", State::Missing, message);
                    vec![found.hint("a newer kernel may be needed; dmesg may say more")]
                }
            };
            let found = Finding::new("control_device", State::Ok, format!("{CONTROL_PATH} can be opened"));
            (found, driver)
        }
        Err(error) => {
            let error = cannot_open(&error);
            let found = Finding::new("control_device", State::Missing, error.message());
            (found.hint(error.next_step().unwrap_or_default()), Vec::new())
        }
    }
}

fn driver(features: u64) -> Finding {
    if features & u64::from(abi::UBLK_F_CMD_IOCTL_ENCODE) == 0 {
        return Finding::new("driver", State::Missing, "the driver is too old")
            .hint("Linux 6.5 or newer is needed");
    }
    match features & u64::from(abi::UBLK_F_UPDATE_SIZE) {
        0 => Finding::new(
            "driver",
            State::Ok,
            "works; a device keeps its size until it is exported again (Linux 6.16 can change it)",
        ),
        _ => Finding::new("driver", State::Ok, "works; devices can be resized in use"),
    }
}

/// Numbers of the devices that exist, whoever made them.
pub(super) fn devices() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/sys/class/ublk-char") else { return Vec::new() };
    let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix("ublkc")?.parse().ok();
    entries.flatten().filter_map(|entry| number(entry.file_name())).collect()
}

fn devices_limit() -> Option<u64> {
    fs::read_to_string("/sys/module/ublk_drv/parameters/ublks_max").ok()?.trim().parse().ok()
}

fn device_count() -> Option<Finding> {
    let (limit, count) = (devices_limit()?, devices().len() as u64);
    let message = format!("{count} of at most {limit}");
    Some(match count < limit {
        true => Finding::new("devices", State::Ok, message),
        false => Finding::new("devices", State::Warning, message)
            .hint("echo 1024 > /sys/module/ublk_drv/parameters/ublks_max (newer kernels count only ordinary users' devices)"),
    })
}

/// Devices whose requests wait, because the daemon that should serve them is not there.
fn waiting_devices() -> Option<Finding> {
    let waiting: Vec<_> =
        super::left::waiting().iter().map(|number| format!("{BLOCK_DEVICE}{number}")).collect();
    let message = format!("waiting for their daemon: {}", waiting.join(" "));
    (!waiting.is_empty()).then(|| {
        Finding::new("waiting_devices", State::Warning, message).hint(
            "serve the pool again: it takes them up, or lets their requests fail where something was lost. If the pool is gone for good: \
             uthin doctor --remove-device N",
        )
    })
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile).maximum;
    let message = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {limit}"));
    if limit.is_none_or(|limit| limit >= FILES_WANTED) {
        return Finding::new("open_files", State::Ok, message);
    }
    Finding::new("open_files", State::Warning, message).hint(format!(
        "a device takes {FILES_PER_DEVICE} and 2 for each queue: raise it (ulimit -n, LimitNOFILE=)"
    ))
}

/// Refuses a device for which there are not enough files, before anything is made.
fn enough_files(needed: u64) -> Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return Ok(()) };
    let open = open.count() as u64;
    if open + needed <= limit {
        return Ok(());
    }
    let what = format!("the daemon has {open} files open, needs {needed} more, and {limit} are the most");
    Err(Error::new(ErrorKind::Busy, what).hint("raise the limit of open files (ulimit -n, LimitNOFILE=)"))
}

/// Whether this process may lock any amount of memory: then it can do so without failing later.
pub fn may_lock_memory() -> bool {
    let by_capability = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK));
    by_capability || getrlimit(Resource::Memlock).current.is_none()
}

fn locked_memory() -> Finding {
    if may_lock_memory() {
        return Finding::new("locked_memory", State::Ok, "no limit");
    }
    Finding::new("locked_memory", State::Warning, "limited: the daemon's memory is not locked").hint(
        "where the machine swaps: run as root, or raise it (ulimit -l unlimited, LimitMEMLOCK=infinity)",
    )
}

fn io_flusher() -> Finding {
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    if may {
        return Finding::new(
            "io_flusher",
            State::Ok,
            "the daemon can tell the kernel that it writes for others",
        );
    }
    Finding::new("io_flusher", State::Warning, "the kernel cannot be told that the daemon writes for others")
        .hint("under memory pressure the kernel may wait for the daemon in the daemon: give it CAP_SYS_RESOURCE")
}

/// Why the control device could not be opened.
pub(super) fn cannot_open(error: &io::Error) -> Error {
    let what = format!("{CONTROL_PATH}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Unsupported, what)
            .hint("modprobe ublk_drv; in a container, give it the device"),
        io::ErrorKind::PermissionDenied => Error::new(ErrorKind::Unsupported, what)
            .hint("run as root, or install the udev rules that come with uthin (dist/udev) and join the group `uthin`"),
        _ => Error::new(ErrorKind::Unsupported, what).hint("dmesg may say more"),
    }
}

/// Why the driver made no device.
pub(super) fn cannot_add(error: &io::Error) -> Error {
    let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
    match devices_limit() {
        Some(limit) if is_refused && devices().len() as u64 >= limit => {
            let what = format!("there are {limit} ublk devices, and the driver allows no more");
            Error::new(ErrorKind::Busy, what)
                .hint("echo 1024 > /sys/module/ublk_drv/parameters/ublks_max, or unexport a volume")
        }
        _ => failed("making a device", error)
            .hint(format!("`uthin doctor` looks for what is missing; {BLOCK_DEVICE}* shows what is there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, state) in [
            ("6.5.0", State::Ok),
            ("6.12.38+deb13-amd64", State::Ok),
            ("10.0-rc1", State::Ok),
            ("6.4.16", State::Missing),
            ("6.1.0-37-amd64", State::Missing),
            ("5.15.0", State::Missing),
            ("strange", State::Missing),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn what_is_missing_comes_with_a_way_to_get_it() {
        for found in findings() {
            assert_eq!(found.hint.is_none(), found.state == State::Ok, "{found:?}");
            assert!(!found.message.is_empty());
        }
        if let Err(error) = check(1) {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.next_step().is_some_and(|hint| hint.contains("uthin doctor")));
        }
    }

    #[test]
    fn why_the_control_device_is_not_ours() {
        let hint = |errno| {
            let error = cannot_open(&io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            error.next_step().unwrap_or_default().to_owned()
        };
        assert!(hint(libc::ENOENT).contains("modprobe"));
        assert!(hint(libc::EACCES).contains("udev"));
    }
}
