//! The kernel's interface as bytes: what goes into a command, what comes out of a descriptor.
//!
//! Names, numbers and layouts are those of the kernel's `include/uapi/linux/ublk_cmd.h`, taken from the crate
//! `libublk-rs-sys`, which makes them from that file. Numbers that the kernel hands us are taken as they come; what they
//! ask for is judged in [`super::request`].

use libublk_rs_sys as sys;

pub(super) use sys::{
    UBLK_ATTR_FUA, UBLK_ATTR_READ_ONLY, UBLK_ATTR_VOLATILE_CACHE, UBLK_F_AUTO_BUF_REG,
    UBLK_F_CMD_IOCTL_ENCODE, UBLK_F_UNPRIVILEGED_DEV, UBLK_F_UPDATE_SIZE, UBLK_F_USER_COPY,
    UBLK_F_USER_RECOVERY, UBLK_F_USER_RECOVERY_REISSUE, UBLK_IO_F_FUA, UBLK_IO_F_NEED_REG_BUF,
    UBLK_IO_F_NOUNMAP, UBLK_IO_OP_DISCARD, UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ, UBLK_IO_OP_WRITE,
    UBLK_IO_OP_WRITE_ZEROES, UBLK_MAX_QUEUE_DEPTH, UBLK_PARAM_TYPE_BASIC, UBLK_PARAM_TYPE_DISCARD,
    UBLK_S_DEV_DEAD, UBLK_S_DEV_QUIESCED, UBLK_U_CMD_ADD_DEV, UBLK_U_CMD_DEL_DEV, UBLK_U_CMD_DEL_DEV_ASYNC,
    UBLK_U_CMD_END_USER_RECOVERY, UBLK_U_CMD_GET_DEV_INFO2, UBLK_U_CMD_GET_FEATURES, UBLK_U_CMD_SET_PARAMS,
    UBLK_U_CMD_START_DEV, UBLK_U_CMD_START_USER_RECOVERY, UBLK_U_CMD_STOP_DEV, UBLK_U_CMD_UPDATE_SIZE,
    UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ, ublk_params, ublksrv_ctrl_dev_info as DeviceInfo,
    ublksrv_io_desc as Descriptor,
};

/// `UBLK_IO_RES_ABORT`: the answer to a fetch when the device is going away, and no more requests come for its tag.
pub(super) const ABORTED: i32 = -libc::ENODEV;
/// The device number and the queue that stand for none.
pub(super) const NO_DEVICE: u32 = u32::MAX;
const NO_QUEUE: u16 = u16::MAX;

/// A control command's 80 bytes: `struct ublksrv_ctrl_cmd` in the first 32.
pub(super) fn control_command(
    device: u32,
    data: u64,
    address: u64,
    length: u16,
    path_length: u16,
) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&device.to_ne_bytes());
    bytes[4..6].copy_from_slice(&NO_QUEUE.to_ne_bytes());
    bytes[6..8].copy_from_slice(&length.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes[24..26].copy_from_slice(&path_length.to_ne_bytes());
    bytes
}

/// An I/O command's 16 bytes: `struct ublksrv_io_cmd`.
pub(super) fn io_command(queue: u16, tag: u16, result: i32, address: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&queue.to_ne_bytes());
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

/// What goes beside an I/O command, in its entry's `addr`, for the request's pages to be lent to the ring (`struct ublk_auto_buf_reg`): the index
/// there, and that the request is to come even if that fails.
pub(super) fn lend_as(index: u16) -> u64 {
    u64::from(index) | u64::from(sys::UBLK_AUTO_BUF_REG_FALLBACK) << 16
}

/// Where a tag's request can be read and written in the character device.
pub(super) fn request_offset(queue: u16, tag: u16) -> u64 {
    let (queue, tag) = (u64::from(queue) << sys::UBLK_QID_OFF, u64::from(tag) << sys::UBLK_TAG_OFF);
    u64::from(sys::UBLKSRV_IO_BUF_OFFSET) + queue + tag
}

/// Where the descriptors of a queue begin in the character device (`UBLKSRV_CMD_BUF_OFFSET`), whatever its depth.
pub(super) fn descriptors_offset(queue: u16) -> u64 {
    let most = u64::from(UBLK_MAX_QUEUE_DEPTH) * size_of::<Descriptor>() as u64;
    u64::from(sys::UBLKSRV_CMD_BUF_OFFSET) + u64::from(queue) * most
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Commands are put together by hand; this is the header's word on where what goes.
    #[test]
    fn commands_are_laid_out_as_the_header_says() {
        assert_eq!(size_of::<sys::ublksrv_ctrl_cmd>(), 32);
        let places = [
            offset_of!(sys::ublksrv_ctrl_cmd, dev_id),
            offset_of!(sys::ublksrv_ctrl_cmd, queue_id),
            offset_of!(sys::ublksrv_ctrl_cmd, len),
            offset_of!(sys::ublksrv_ctrl_cmd, addr),
            offset_of!(sys::ublksrv_ctrl_cmd, data),
            offset_of!(sys::ublksrv_ctrl_cmd, dev_path_len),
        ];
        assert_eq!(places, [0, 4, 6, 8, 16, 24]);
        assert_eq!(size_of::<sys::ublksrv_io_cmd>(), 16);
        let places = [
            offset_of!(sys::ublksrv_io_cmd, q_id),
            offset_of!(sys::ublksrv_io_cmd, tag),
            offset_of!(sys::ublksrv_io_cmd, result),
            offset_of!(sys::ublksrv_io_cmd, addr),
        ];
        assert_eq!(places, [0, 2, 4, 8]);
        assert_eq!((size_of::<Descriptor>(), descriptors_offset(2)), (24, 2 * 4096 * 24));
        assert_eq!(sys::UBLK_IO_RES_ABORT, ABORTED);
    }

    #[test]
    fn numbers_stand_where_they_belong() {
        let command = control_command(0x0403_0201, 0x55, 0x1122_3344_5566_7788, 0x0908, 0x20);
        assert_eq!(command[..8], [1, 2, 3, 4, 0xff, 0xff, 8, 9]);
        assert_eq!(command[8..16], 0x1122_3344_5566_7788_u64.to_ne_bytes());
        assert_eq!((command[16], command[24], command[32..].iter().max()), (0x55, 0x20, Some(&0)));
        let command = io_command(1, 2, -5, 0x1000);
        assert_eq!(command[..8], [1, 0, 2, 0, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(command[8..], 0x1000_u64.to_ne_bytes());
        assert_eq!(
            (request_offset(0, 0), request_offset(1, 2)),
            (1 << 31, (1 << 31) + (1 << 41) + (2 << 25))
        );
        let places = [offset_of!(sys::ublk_auto_buf_reg, index), offset_of!(sys::ublk_auto_buf_reg, flags)];
        assert_eq!((places, size_of::<sys::ublk_auto_buf_reg>()), ([0, 2], 8));
        assert_eq!(lend_as(0x203).to_le_bytes(), [3, 2, 1, 0, 0, 0, 0, 0]);
    }
}
