//! What the kernel is told of a volume: its size, what it can be asked for, and in which pieces.

use super::Options;
use super::abi::{self, DeviceInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, SECTOR_BYTES};

/// The most bytes of one read or write; the kernel splits what is longer.
pub(super) const REQUEST_BYTES_LIMIT: u32 = 512 << 10;
/// The most sectors that the block layer puts into one request without data (`UINT_MAX >> 9`).
const SECTORS_LIMIT: u64 = (u32::MAX >> 9) as u64;
/// In `ublksrv_flags`, which the driver keeps and does not read: the device is one of ours. Two bytes are its [`Mark`].
const OURS: u64 = u64::from_be_bytes(*b"uthin\0\0\x01");
const MARK_SHIFT: u32 = 8;

/// By what a device is known again, beside its number, which somebody else's may have by then.
pub type Mark = u16;

/// The mark of a device of ours.
pub(super) fn mark_of(info: &DeviceInfo) -> Option<Mark> {
    let mark = (info.ublksrv_flags >> MARK_SHIFT) as Mark;
    (info.ublksrv_flags == OURS | u64::from(mark) << MARK_SHIFT).then_some(mark)
}

/// The kernel lends the pages of requests to the queues' rings, and what is not done there, the daemon copies.
pub(super) const LENDS: u32 = abi::UBLK_F_AUTO_BUF_REG | abi::UBLK_F_USER_COPY;

/// What can be asked for at most.
const QUEUES_LIMIT: u16 = 64;

/// Refuses what cannot be, before anything is made. `size_bytes` is the volume's.
pub(super) fn check(options: &Options, size_bytes: u64) -> Result<()> {
    let invalid = |what: String, hint: &str| Err(Error::new(ErrorKind::Invalid, what).hint(hint));
    if !(1..=QUEUES_LIMIT).contains(&options.queues) {
        let what = format!("a device cannot have {} queues", options.queues);
        return invalid(
            what,
            &format!("1 to {QUEUES_LIMIT} are possible; as many as there are CPUs is enough"),
        );
    }
    if options.depth == 0 || u32::from(options.depth) > abi::UBLK_MAX_QUEUE_DEPTH {
        let what = format!("a queue cannot be {} requests deep", options.depth);
        return invalid(what, &format!("1 to {} are possible", abi::UBLK_MAX_QUEUE_DEPTH));
    }
    let (logical, physical) = (options.logical_block_bytes, options.physical_block_bytes);
    if ![512, 4096].contains(&logical) || ![512, 4096].contains(&physical) || logical > physical {
        let what =
            format!("a device cannot have logical blocks of {logical} and physical ones of {physical} bytes");
        return invalid(what, "both are 512 or 4096, the logical ones not larger than the physical ones");
    }
    if !size_bytes.is_multiple_of(u64::from(logical)) {
        let what =
            format!("the volume's {size_bytes} bytes are no whole number of blocks of {logical} bytes");
        return invalid(what, "take logical blocks of 512 bytes, or resize the volume");
    }
    Ok(())
}

/// The device to be added. One that has a mark outlives its daemon: requests wait for the next one, which gets those again that this one has
/// not answered.
pub(super) fn device_info(options: &Options, mark: Option<Mark>) -> DeviceInfo {
    let outlives = match mark {
        Some(_) => abi::UBLK_F_USER_RECOVERY | abi::UBLK_F_USER_RECOVERY_REISSUE,
        None => 0,
    };
    let lends = if options.zero_copy { LENDS } else { 0 };
    DeviceInfo {
        nr_hw_queues: options.queues,
        queue_depth: options.depth,
        max_io_buf_bytes: REQUEST_BYTES_LIMIT,
        dev_id: abi::NO_DEVICE,
        ublksrv_pid: std::process::id() as i32,
        flags: u64::from(abi::UBLK_F_CMD_IOCTL_ENCODE | outlives | lends),
        ublksrv_flags: OURS | u64::from(mark.unwrap_or(0)) << MARK_SHIFT,
        ..DeviceInfo::default()
    }
}

/// The block device's limits. Discards unmap whole blocks and nothing else, which their granularity says; a volatile cache,
/// or no FLUSH would ever come.
pub(super) fn of_volume(options: &Options, size_bytes: u64, block_size: BlockSize) -> abi::ublk_params {
    let mut params = abi::ublk_params {
        types: abi::UBLK_PARAM_TYPE_BASIC | abi::UBLK_PARAM_TYPE_DISCARD,
        ..Default::default()
    };
    let shift = |bytes: u32| bytes.trailing_zeros() as u8;
    let basic = &mut params.basic;
    basic.attrs = abi::UBLK_ATTR_VOLATILE_CACHE | abi::UBLK_ATTR_FUA;
    if options.read_only {
        basic.attrs |= abi::UBLK_ATTR_READ_ONLY;
    }
    basic.logical_bs_shift = shift(options.logical_block_bytes);
    basic.physical_bs_shift = shift(options.physical_block_bytes);
    basic.io_min_shift = basic.physical_bs_shift;
    // A shift can tell of powers of two only; for other block sizes, of the largest that divides them.
    basic.io_opt_shift = block_size.bytes().trailing_zeros() as u8;
    basic.max_sectors = REQUEST_BYTES_LIMIT / SECTOR_BYTES as u32;
    basic.dev_sectors = size_bytes / SECTOR_BYTES;
    let block_sectors = u64::from(block_size.sectors());
    // Whole blocks: a split inside one would leave it mapped.
    let most = (SECTORS_LIMIT / block_sectors * block_sectors) as u32;
    let discard = &mut params.discard;
    discard.discard_granularity = block_size.bytes().min(u64::from(u32::MAX)) as u32;
    discard.max_discard_sectors = most;
    discard.max_write_zeroes_sectors = most;
    discard.max_discard_segments = 1;
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { read_only: true, ..Options::default() }
    }

    #[test]
    fn devices_of_ours_are_known_by_their_marks() {
        let options = Options::default();
        let info = device_info(&options, None);
        assert_eq!((mark_of(&info), info.flags & u64::from(abi::UBLK_F_USER_RECOVERY)), (Some(0), 0));
        let info = device_info(&options, Some(0xabcd));
        assert_eq!(mark_of(&info), Some(0xabcd));
        assert_ne!(info.flags & u64::from(abi::UBLK_F_USER_RECOVERY), 0);
        let zero_copy = Options { zero_copy: true, ..options };
        assert_eq!(device_info(&zero_copy, None).flags, u64::from(abi::UBLK_F_CMD_IOCTL_ENCODE | LENDS));
        assert_eq!(mark_of(&DeviceInfo { ublksrv_flags: 0xabcd << 8, ..DeviceInfo::default() }), None);
    }

    #[test]
    fn limits_follow_the_block_size() {
        for sectors in [128, 384, 2048, 2_097_152] {
            let block_size = BlockSize::from_sectors(sectors).expect("a block size");
            let params = of_volume(&options(), 1 << 30, block_size);
            let discard = params.discard;
            assert_eq!(u64::from(discard.discard_granularity), sectors * 512);
            assert!(u64::from(discard.max_discard_sectors).is_multiple_of(sectors));
            assert!(
                discard.max_discard_sectors > 0 && u64::from(discard.max_discard_sectors) <= SECTORS_LIMIT
            );
            assert_eq!(discard.max_discard_segments, 1, "the driver takes no others");
            assert_eq!(1 << params.basic.io_opt_shift, (sectors * 512) & (sectors * 512).wrapping_neg());
        }
        let basic = of_volume(&options(), 1 << 30, BlockSize::MIN).basic;
        assert_eq!(basic.attrs, 1 | 4 | 8, "read-only, cache, FUA");
        assert_eq!((basic.logical_bs_shift, basic.physical_bs_shift, basic.dev_sectors), (9, 12, 1 << 21));
        assert_eq!(u64::from(basic.max_sectors) * 512, u64::from(REQUEST_BYTES_LIMIT));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let base = Options::default();
        assert!(check(&base, 1 << 20).is_ok());
        for (wrong, size) in [
            (Options { queues: 0, ..base }, 1 << 20),
            (Options { queues: 65, ..base }, 1 << 20),
            (Options { depth: 0, ..base }, 1 << 20),
            (Options { depth: 4097, ..base }, 1 << 20),
            (Options { logical_block_bytes: 1024, ..base }, 1 << 20),
            (Options { logical_block_bytes: 4096, physical_block_bytes: 512, ..base }, 1 << 20),
            (Options { logical_block_bytes: 4096, ..base }, (1 << 20) + 512),
        ] {
            let error = check(&wrong, size).expect_err("impossible");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.next_step().is_some(), "{error}");
        }
    }
}
