//! Control commands to the driver, each with a time limit.
//!
//! A command goes through a small ring of its own to `/dev/ublk-control`. The kernel may take long over one (START waits for
//! the queues and reads the partition table, STOP for requests under way), and so nobody but a device's own thread sends
//! any. What a command points at is this module's until the kernel is through with it: after a time-out it is leaked, and the
//! control takes no more commands.

use super::abi::{self, DeviceInfo, NO_DEVICE};
use crate::disk::AlignedBuffer;
use crate::error::{Error, ErrorKind};
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The driver's control device.
pub const CONTROL_PATH: &str = "/dev/ublk-control";
/// How long a command may take that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same of one that only waits, and whose end nobody needs to know.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// Room for a device's path in front of a command's own bytes.
const PATH_BYTES: usize = 32;

/// A way to the driver. Used on one thread.
pub(super) struct Control {
    file: File,
    ring: IoUring<squeue::Entry128>,
    is_privileged: bool,
    /// Devices that ordinary users have made, as far as has been seen.
    ordinary: BTreeSet<u32>,
    /// A command is under way that nobody waits for any more.
    is_stuck: bool,
}

/// What a command carries besides a number.
enum Payload<'a> {
    Nothing,
    /// Read by the kernel, written by it, or both.
    Bytes(&'a mut [u8]),
}

impl Control {
    /// Opens the control device. Why it may not be there or not be ours is told by [`super::requirements`].
    pub(super) fn open() -> io::Result<Control> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH)?;
        let ring = IoUring::<squeue::Entry128>::builder().build(4)?;
        let is_privileged = rustix::process::geteuid().is_root();
        Ok(Control { file, ring, is_privileged, ordinary: BTreeSet::new(), is_stuck: false })
    }

    /// What the driver can do: `UBLK_F_…` bits. Kernels before 6.5 do not know the question.
    pub(super) fn features(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.ask(abi::UBLK_U_CMD_GET_FEATURES, NO_DEVICE, 0, Payload::Bytes(&mut bytes), PATIENCE)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Makes a device; the kernel fills its number and flags into `info`. Nothing but `/dev/ublkcN` is there after that.
    pub(super) fn add(&mut self, info: &mut DeviceInfo) -> io::Result<()> {
        if !self.is_privileged {
            info.flags |= u64::from(abi::UBLK_F_UNPRIVILEGED_DEV);
        }
        let (command, number) = (abi::UBLK_U_CMD_ADD_DEV, info.dev_id);
        self.ask(command, number, 0, Payload::Bytes(bytes_of(info)), PATIENCE).map(drop)
    }

    /// What the driver knows of a device, whoever made it.
    pub(super) fn info(&mut self, number: u32) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        self.ask(abi::UBLK_U_CMD_GET_DEV_INFO2, number, 0, Payload::Bytes(bytes_of(&mut info)), PATIENCE)?;
        match info.flags & u64::from(abi::UBLK_F_UNPRIVILEGED_DEV) {
            0 => self.ordinary.remove(&number),
            _ => self.ordinary.insert(number),
        };
        Ok(info)
    }

    /// Says what the block device is to be like.
    pub(super) fn set_params(&mut self, number: u32, params: &abi::ublk_params) -> io::Result<()> {
        let mut params = *params;
        params.len = abi::ublk_params::BYTES as u32;
        let command = abi::UBLK_U_CMD_SET_PARAMS;
        self.ask(command, number, 0, Payload::Bytes(bytes_of(&mut params)), PATIENCE).map(drop)
    }

    /// Makes the block device: all queues must be fetching, and requests come before this returns.
    pub(super) fn start(&mut self, number: u32, patience: Duration) -> io::Result<()> {
        let process = u64::from(std::process::id());
        self.ask(abi::UBLK_U_CMD_START_DEV, number, process, Payload::Nothing, patience).map(drop)
    }

    /// Has a device that an earlier daemon served wait for new queues. `EBUSY` while the kernel has not noticed the end of that one,
    /// or has not collected what it left.
    pub(super) fn begin_recovery(&mut self, number: u32) -> io::Result<()> {
        self.ask(abi::UBLK_U_CMD_START_USER_RECOVERY, number, 0, Payload::Nothing, PATIENCE).map(drop)
    }

    /// Lets it go on, with us: all queues must be fetching. What the earlier daemon had not answered comes once more.
    pub(super) fn end_recovery(&mut self, number: u32, patience: Duration) -> io::Result<()> {
        let process = u64::from(std::process::id());
        let command = abi::UBLK_U_CMD_END_USER_RECOVERY;
        self.ask(command, number, process, Payload::Nothing, patience).map(drop)
    }

    /// Takes the block device away, once its requests are answered; then every fetch comes back as aborted.
    pub(super) fn stop(&mut self, number: u32, patience: Duration) -> io::Result<()> {
        self.ask(abi::UBLK_U_CMD_STOP_DEV, number, 0, Payload::Nothing, patience).map(drop)
    }

    /// Removes a stopped device. It is gone when nobody has a file of it open; to be waited for or not.
    pub(super) fn delete(&mut self, number: u32, waits: bool) -> io::Result<()> {
        // The driver knows but the waiting way for an ordinary user's device. It goes also when nobody waits any more.
        let (command, patience) = match (waits, self.is_ordinary(number)) {
            (true, _) => (abi::UBLK_U_CMD_DEL_DEV, PATIENCE),
            (false, true) => (abi::UBLK_U_CMD_DEL_DEV, IMPATIENCE),
            (false, false) => (abi::UBLK_U_CMD_DEL_DEV_ASYNC, PATIENCE),
        };
        match self.ask(command, number, 0, Payload::Nothing, patience) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !waits => Ok(()),
            result => result.map(drop),
        }
    }

    fn is_ordinary(&self, number: u32) -> bool {
        !self.is_privileged || self.ordinary.contains(&number)
    }

    /// Gives a live device another size.
    pub(super) fn resize(&mut self, number: u32, size_bytes: u64) -> io::Result<()> {
        let sectors = size_bytes / crate::units::SECTOR_BYTES;
        self.ask(abi::UBLK_U_CMD_UPDATE_SIZE, number, sectors, Payload::Nothing, PATIENCE).map(drop)
    }

    /// Sends a command and waits for its end; what the kernel has written is in the payload then.
    fn ask(
        &mut self,
        command: u32,
        number: u32,
        data: u64,
        payload: Payload<'_>,
        patience: Duration,
    ) -> io::Result<i32> {
        if self.is_stuck {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "an earlier command does not come back"));
        }
        let own: &mut [u8] = match payload {
            Payload::Nothing => &mut [],
            Payload::Bytes(bytes) => bytes,
        };
        // Of an ordinary user's device everybody shows by its path that its file is his to open, root too. Of another one the path is taken for what
        // belongs behind it.
        let needs_path = match command {
            abi::UBLK_U_CMD_ADD_DEV | abi::UBLK_U_CMD_GET_FEATURES => false,
            abi::UBLK_U_CMD_GET_DEV_INFO2 => true,
            _ => self.is_ordinary(number),
        };
        let path = if needs_path { format!("{}{number}", super::CHARACTER_DEVICE) } else { String::new() };
        let first = if needs_path { PATH_BYTES } else { 0 };
        let length = first + own.len();
        let mut buffer = AlignedBuffer::zeroed(length);
        buffer[..path.len()].copy_from_slice(path.as_bytes());
        buffer[first..].copy_from_slice(own);
        let address = if length == 0 { 0 } else { buffer.start().as_ptr() as u64 };
        let bytes = abi::control_command(number, data, address, length as u16, first as u16);
        let file = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(file, command).cmd(bytes).build();
        // SAFETY: the buffer lives until the command's completion was taken, or for ever.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("one command at a time fits into the ring");
        match self.wait(patience) {
            Ok(result) if result >= 0 => {
                own.copy_from_slice(&buffer[first..]);
                Ok(result)
            }
            Ok(result) => Err(io::Error::from_raw_os_error(-result)),
            Err(error) => {
                self.is_stuck = true;
                std::mem::forget(buffer);
                Err(error)
            }
        }
    }

    /// The result of the command that was pushed.
    fn wait(&mut self, patience: Duration) -> io::Result<i32> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let time = types::Timespec::from(left);
            let waited = self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time));
            if let Some(completion) = self.ring.completion().next() {
                return Ok(completion.result());
            }
            match waited {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {}
                Err(error) => return Err(error),
            }
            if left.is_zero() {
                let what = format!("the driver has not answered for {} s", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
    }
}

/// An error of a control command, in words.
pub(super) fn failed(doing: &str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::new(ErrorKind::Busy, format!("ublk: {doing}: {error}"))
            .hint("the kernel's log (dmesg) may say why; `uthin export --list POOL` tells what became of it"),
        _ => Error::io(format!("ublk: {doing}"), error),
    }
}

/// A structure of the driver's as bytes, to be read and written.
fn bytes_of<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: `Plain` says that so many bytes from the beginning are numbers', and that any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), T::BYTES) }
}

/// A C structure of numbers only, without padding before its last one.
///
/// # Safety
///
/// What it says holds.
unsafe trait Plain: Sized {
    /// Where its last number ends.
    const BYTES: usize;
}

// SAFETY: numbers in an order that needs no padding; the header spells its gaps out as `pad` members.
unsafe impl Plain for DeviceInfo {
    const BYTES: usize = size_of::<DeviceInfo>();
}
// SAFETY: two numbers, and structures without padding one after the other; the test adds them up.
unsafe impl Plain for abi::ublk_params {
    const BYTES: usize = std::mem::offset_of!(abi::ublk_params, zoned) + 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use libublk_rs_sys as sys;

    #[test]
    fn what_goes_to_the_kernel_has_no_padding() {
        let (basic, discard) = (4 + 4 + 4 + 4 + 8 + 8, 4 * 4 + 2 + 2);
        assert_eq!(size_of::<sys::ublk_param_basic>(), basic);
        assert_eq!(size_of::<sys::ublk_param_discard>(), discard);
        assert_eq!(size_of::<sys::ublk_param_devt>(), 4 * 4);
        assert_eq!(size_of::<sys::ublk_param_zoned>(), 3 * 4 + 20);
        assert_eq!(abi::ublk_params::BYTES, 4 + 4 + basic + discard + 16 + 32);
        assert_eq!(size_of::<DeviceInfo>(), 4 * 2 + 2 * 4 + 4 + 4 + 2 * 8 + 2 * 4 + 2 * 8);
    }

    #[test]
    fn a_time_out_is_told_as_such() {
        let error = failed("stopping", &io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.next_step().is_some());
        let error = failed("stopping", &io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}
