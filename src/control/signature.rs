//! Whether a disk looks as if it held something: asked before a pool is made on it.

use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, Result};

/// How much of the disk's beginning is looked at.
pub(crate) const LOOK_BYTES: u64 = 256 * 1024;

/// What is found where, and what it means.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (32, &27_022_010_u64.to_le_bytes(), "thin pool metadata"),
    (0, b"uthin journal\n", "the journal of a pool"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"hsqs", "a squashfs filesystem"),
    (0, b"dmvdo001", "a VDO volume"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (54, b"FAT", "a FAT filesystem"),
    (82, b"FAT32", "a FAT filesystem"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (516, b"!Stra0tis\x86\xff\x02^\x41rh", "a Stratis block device"),
    (1080, &0xef53_u16.to_le_bytes(), "an ext2, ext3 or ext4 filesystem"),
    (1024, &0xf2f5_2010_u32.to_le_bytes(), "an F2FS filesystem"),
    (1024, &0xe0f5_e1e2_u32.to_le_bytes(), "an EROFS filesystem"),
    (0, &0xa92b_4efc_u32.to_le_bytes(), "a member of an MD array"),
    (4096, &0xa92b_4efc_u32.to_le_bytes(), "a member of an MD array"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs filesystem"),
    (32_769, b"CD001", "an ISO 9660 filesystem"),
    (65_600, b"_BHRfS_M", "a btrfs filesystem"),
    (131_072, &0x00ba_b10c_u64.to_le_bytes(), "a ZFS pool member"),
    // Last: many of the above begin with a boot sector too.
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// What `disk` seems to hold, if it holds something that is known here.
pub(crate) fn known_content(disk: &impl Disk) -> Result<Option<&'static str>> {
    let bytes = beginning(disk)?;
    let holds = |(offset, magic, _): &&(usize, &[u8], &str)| {
        bytes.get(*offset..offset + magic.len()).is_some_and(|found| found == *magic)
    };
    Ok(SIGNATURES.iter().find(holds).map(|(_, _, meaning)| *meaning))
}

/// Whether the first bytes are all zeros, [`LOOK_BYTES`] at most; of the first 4 KiB the kernel demands it of metadata devices that it
/// formats.
pub(crate) fn begins_with_zeros(disk: &impl Disk, bytes: u64) -> Result<bool> {
    Ok(beginning(disk)?.iter().take(bytes as usize).all(|byte| *byte == 0))
}

fn beginning(disk: &impl Disk) -> Result<AlignedBuffer> {
    let length = disk.size_bytes().min(LOOK_BYTES) / 512 * 512;
    let mut bytes = AlignedBuffer::zeroed(length as usize);
    disk.read_at(0, &mut bytes)
        .map_err(|source| Error::io(format!("reading the beginning of {}", disk.name()), &source))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn every_signature_is_found_where_it_belongs() {
        for (offset, magic, meaning) in SIGNATURES {
            let disk = MemoryDisk::zeroed(1 << 20);
            assert_eq!(known_content(&disk), Ok(None));
            disk.write_at(*offset as u64, magic).expect("inside");
            assert_eq!(known_content(&disk), Ok(Some(*meaning)));
        }
    }

    #[test]
    fn a_tiny_disk_can_be_looked_at() {
        assert_eq!(known_content(&MemoryDisk::zeroed(0)), Ok(None));
        assert_eq!(
            known_content(&MemoryDisk::from_bytes(b"XFSB".repeat(128))),
            Ok(Some("an XFS filesystem"))
        );
    }

    #[test]
    fn zeros_are_asked_of_the_first_4_kib_only() {
        let disk = MemoryDisk::zeroed(8192);
        disk.write_at(4096, &[1]).expect("inside");
        assert_eq!(begins_with_zeros(&disk, 4096), Ok(true));
        disk.write_at(4095, &[1]).expect("inside");
        assert_eq!(begins_with_zeros(&disk, 4096), Ok(false));
    }
}
