//! The ublk server: a volume is a block device of this machine, `/dev/ublkbN`.
//!
//! The kernel's driver (`ublk_drv`) hands requests to us through an `io_uring`. A [`Device`] has a thread for its control
//! commands ([`device`]) and one for each of its queues ([`queue`]), which has a lane of its own in the pool. What must
//! hold:
//!
//! - A device shows a volatile cache, so that FLUSH and FUA come, and both mean what the engine makes of them.
//! - Every request is answered once, and the kernel gets no tag back before.
//! - Nobody waits for the driver without a limit, except the thread whose device it is.
//! - With zero copy the pages of a request are lent to its queue's ring until it is answered. Of a device that outlives its daemon they are not:
//!   whether what a dead daemon had under way can still reach the pages of a request that comes again, depends on the kernel.
//! - A device goes away with us, in order at the end, and when the daemon is killed by the kernel's doing: its requests then fail, because
//!   an acknowledged write that was not flushed may be lost with the daemon.
//! - Where nothing acknowledged is lost with the daemon, a device may outlive it ([`Birth::Outliving`]): requests then wait for the next one, and
//!   those that were under way come to it again. Whoever asks for that keeps account of what became of such devices.
//!
//! Facts come from the kernel's `Documentation/block/ublk.rst` and `include/uapi/linux/ublk_cmd.h`.

mod abi;
mod control;
mod device;
mod left;
mod openers;
mod params;
mod queue;
mod request;
mod requirements;

pub use device::{Birth, Device, Moved};
pub use left::{look_for, owner, remove, remove_left_overs, remove_waiting};
pub use params::Mark;
pub use requirements::{Finding, State, check, findings, may_lock_memory};

/// Where block devices appear, without the number.
pub const BLOCK_DEVICE: &str = "/dev/ublkb";
/// Where character devices appear, without the number.
const CHARACTER_DEVICE: &str = "/dev/ublkc";

/// What a device is to be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Queues, each with a thread: 1 to 64.
    pub queues: u16,
    /// Requests of a queue at a time: 1 to 4096. Each has a buffer of 512 KiB, which takes memory when it is used.
    pub depth: u16,
    /// The smallest unit of a request: 512 or 4096 bytes.
    pub logical_block_bytes: u32,
    /// What is said to be written in one piece: 512 or 4096 bytes.
    pub physical_block_bytes: u32,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether the bytes of requests stay in the pages of whoever made them, as far as they move to and from disks.
    pub zero_copy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queues: 1,
            depth: 128,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            zero_copy: false,
        }
    }
}
