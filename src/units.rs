//! Newtypes for every kind of number in a thin pool, and the arithmetic between them.
//!
//! A bare `u64` never says whether it counts sectors, bytes or blocks, nor of which device; these types do.
//! Ranges and limits are those of the on-disk format (dm-thin metadata version 2).

use std::fmt;
use std::ops::Range;

/// Bytes in a sector, the unit of sizes in device-mapper.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes in a metadata block.
pub const META_BLOCK_BYTES: usize = 4096;
/// The most metadata blocks that the format can manage (255 bitmaps of 16,320 entries).
pub const META_BLOCKS_LIMIT: u64 = 255 * 16_320;

/// A thin volume's number in the metadata: 0 ..= [`VolumeId::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VolumeId(u32);

impl VolumeId {
    /// The largest number, 2^24 - 1.
    pub const MAX: VolumeId = VolumeId((1 << 24) - 1);

    /// `None` when `raw` is above [`VolumeId::MAX`].
    pub fn new(raw: u64) -> Option<Self> {
        (raw <= u64::from(Self::MAX.0)).then_some(VolumeId(raw as u32))
    }

    /// The plain number, as keys of the metadata's trees hold it.
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of a block inside a volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VirtualBlock(pub u64);

/// Index of a block on the data device, below [`DataBlock::LIMIT`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DataBlock(pub u64);

impl DataBlock {
    /// One past the largest index that a mapping can hold (40 bits).
    pub const LIMIT: u64 = 1 << 40;
}

/// Index of a 4 KiB block on the metadata device. 0 is the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MetaBlock(pub u64);

impl MetaBlock {
    /// The superblock's place.
    pub const SUPERBLOCK: MetaBlock = MetaBlock(0);

    /// Where the block begins on the metadata device.
    pub fn offset_bytes(self) -> u64 {
        self.0 * META_BLOCK_BYTES as u64
    }
}

impl fmt::Display for MetaBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The pool's snapshot clock, 0 ..= [`SnapTime::MAX`]. A mapping made before its volume's last snapshot may be shared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SnapTime(pub u32);

impl SnapTime {
    /// The last usable time: a mapping has 24 bits for it.
    pub const MAX: SnapTime = SnapTime((1 << 24) - 1);
}

/// The user-space transaction id by which a catalog of names keeps step with the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TransactionId(pub u64);

impl TransactionId {
    /// The id after this one.
    pub fn next(self) -> Self {
        TransactionId(self.0.wrapping_add(1))
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a virtual block's data is, and when it was put there. On disk: `block << 24 | time`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapping {
    /// The data block.
    pub block: DataBlock,
    /// The pool's time when the mapping was made.
    pub time: SnapTime,
}

impl Mapping {
    /// The on-disk value. Panics when block or time is out of range, which no value from [`Mapping::unpack`] is.
    pub fn pack(self) -> u64 {
        assert!(
            self.time <= SnapTime::MAX && self.block.0 < DataBlock::LIMIT,
            "{self:?} does not fit its 64 bits"
        );
        (self.block.0 << 24) | u64::from(self.time.0)
    }

    /// Any 64 bits are a mapping; whether the block exists is for the caller to check.
    pub fn unpack(raw: u64) -> Self {
        Mapping { block: DataBlock(raw >> 24), time: SnapTime((raw & 0xff_ffff) as u32) }
    }
}

/// The size of a data block: 64 KiB to 1 GiB in steps of 64 KiB, not necessarily a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 64 KiB, the least, the step and the default.
    pub const MIN: BlockSize = BlockSize(128);
    /// 1 GiB.
    pub const MAX: BlockSize = BlockSize(2_097_152);

    /// `None` unless `sectors` is 128 ..= 2,097,152 and a multiple of 128.
    pub fn from_sectors(sectors: u64) -> Option<Self> {
        let in_range = (u64::from(Self::MIN.0)..=u64::from(Self::MAX.0)).contains(&sectors);
        (in_range && sectors.is_multiple_of(u64::from(Self::MIN.0))).then_some(BlockSize(sectors as u32))
    }

    /// As [`BlockSize::from_sectors`], for a size in bytes.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        bytes.is_multiple_of(SECTOR_BYTES).then(|| Self::from_sectors(bytes / SECTOR_BYTES)).flatten()
    }

    /// The size in sectors.
    pub fn sectors(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) * SECTOR_BYTES
    }

    /// Bytes of a unit, of which a partial block knows for each whether it is there: the least power of two by which a block
    /// has no more than 64 of them, and 4 KiB at the least. The last unit of a block may be shorter.
    pub fn unit_bytes(self) -> u64 {
        self.bytes().div_ceil(64).next_power_of_two().max(META_BLOCK_BYTES as u64)
    }

    /// All units of a block, a bit each, the first unit's the lowest.
    pub fn all_units(self) -> u64 {
        u64::MAX >> (64 - self.bytes().div_ceil(self.unit_bytes()))
    }

    /// The units that a range of bytes inside a block touches; none for an empty range.
    pub fn units_touched(self, bytes: Range<u64>) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let (first, last) = (bytes.start / self.unit_bytes(), (bytes.end - 1) / self.unit_bytes());
        u64::MAX >> (63 - (last - first)) << first
    }

    /// A range of bytes inside a block, its ends moved out to those of units.
    pub fn unit_range(self, bytes: Range<u64>) -> Range<u64> {
        let unit = self.unit_bytes();
        bytes.start / unit * unit..(bytes.end.div_ceil(unit) * unit).min(self.bytes())
    }

    /// How many blocks it takes to hold `size_bytes`, the last one perhaps in part.
    pub fn blocks_to_hold(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.bytes())
    }

    /// How many whole blocks fit into `size_bytes`.
    pub fn whole_blocks_in(self, size_bytes: u64) -> u64 {
        size_bytes / self.bytes()
    }

    /// The virtual blocks that lie wholly inside the byte range: start rounded up, end rounded down. May be empty.
    pub fn whole_blocks_inside(self, bytes: Range<u64>) -> Range<u64> {
        let begin = bytes.start.div_ceil(self.bytes());
        begin..(bytes.end / self.bytes()).max(begin)
    }

    /// The blocks that `bytes` of a volume of `size_bytes` cover: the whole ones, and a short last one when `bytes`
    /// reaches the volume's end, because nobody can see the rest of it.
    pub fn blocks_covered(self, bytes: Range<u64>, size_bytes: u64) -> Range<u64> {
        let end =
            if bytes.end == size_bytes { self.blocks_to_hold(size_bytes) * self.bytes() } else { bytes.end };
        self.whole_blocks_inside(bytes.start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_packs_as_the_format_says() {
        let raw = 0x2d3d000000;
        let mapping = Mapping::unpack(raw);
        assert_eq!(mapping, Mapping { block: DataBlock(11581), time: SnapTime(0) });
        assert_eq!(mapping.pack(), raw);
        let extreme = Mapping { block: DataBlock(DataBlock::LIMIT - 1), time: SnapTime::MAX };
        assert_eq!(extreme.pack(), u64::MAX);
        assert_eq!(Mapping::unpack(u64::MAX), extreme);
    }

    #[test]
    fn block_sizes_are_64_kib_to_1_gib_in_steps_of_64_kib() {
        for good in [65_536, 196_608, 524_288, 1 << 30] {
            assert_eq!(BlockSize::from_bytes(good).map(BlockSize::bytes), Some(good));
        }
        for bad in [0, 512, 32_768, 65_536 + 512, 100_000, (1 << 30) + 65_536, u64::MAX] {
            assert_eq!(BlockSize::from_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn whole_blocks_inside_rounds_inwards() {
        let size = BlockSize::MIN;
        let block = size.bytes();
        assert_eq!(size.whole_blocks_inside(0..block), 0..1);
        assert_eq!(size.whole_blocks_inside(1..3 * block), 1..3);
        assert!(size.whole_blocks_inside(1..block).is_empty());
        assert!(size.whole_blocks_inside(1..2 * block - 1).is_empty());
    }

    #[test]
    fn a_short_last_block_is_covered_by_what_reaches_the_end() {
        let (size, block) = (BlockSize::MIN, BlockSize::MIN.bytes());
        let end = 2 * block + 512;
        assert_eq!(size.blocks_covered(2 * block..end, end), 2..3);
        assert_eq!(size.blocks_covered(1..end, end), 1..3);
        assert!(size.blocks_covered(2 * block + 1..end, end).is_empty(), "its first byte is left out");
        assert_eq!(size.blocks_covered(0..end, end + 512), 0..2, "does not reach the end");
        assert_eq!(size.blocks_covered(block..2 * block, 2 * block), 1..2, "no short block");
    }

    #[test]
    fn a_block_has_at_most_64_units() {
        let units = |bytes| {
            let size = BlockSize::from_bytes(bytes).unwrap();
            (size.unit_bytes(), size.all_units().count_ones())
        };
        assert_eq!(units(64 << 10), (4096, 16));
        assert_eq!(units(256 << 10), (4096, 64));
        assert_eq!(units(320 << 10), (8192, 40));
        assert_eq!(units(640 << 10), (16384, 40));
        assert_eq!(units((8 << 20) + (64 << 10)), (256 << 10, 33));
        assert_eq!(units(1 << 30), (16 << 20, 64));
        for sectors in (128..=200 * 128).step_by(128) {
            let size = BlockSize::from_sectors(sectors).unwrap();
            assert!(size.bytes().div_ceil(size.unit_bytes()) <= 64);
            assert_eq!(size.units_touched(0..size.bytes()), size.all_units());
        }
    }

    #[test]
    fn units_are_those_that_a_range_touches() {
        let size = BlockSize::MIN;
        assert_eq!(size.units_touched(0..1), 1);
        assert_eq!(size.units_touched(4095..4097), 3);
        assert_eq!(size.units_touched(8192..12288), 4);
        assert_eq!(size.units_touched(61440..65536), 1 << 15);
        assert_eq!(size.units_touched(512..512), 0);
        assert_eq!(size.unit_range(4608..8192), 4096..8192);
        assert_eq!(size.unit_range(4608..8193), 4096..12288);
        let short = BlockSize::from_bytes((8 << 20) + (64 << 10)).unwrap();
        assert_eq!(short.unit_range((8 << 20) + 512..(8 << 20) + 1024), 8 << 20..(8 << 20) + (64 << 10));
        assert_eq!(BlockSize::MAX.units_touched(0..1 << 30), u64::MAX);
    }

    #[test]
    fn volume_ids_end_at_24_bits() {
        assert_eq!(VolumeId::new((1 << 24) - 1), Some(VolumeId::MAX));
        assert_eq!(VolumeId::new(1 << 24), None);
    }
}
