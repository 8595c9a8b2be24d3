//! What a partial block leaves where it is: part of the value of an entry in the tree of partial blocks, and of a journal's record.

use crate::units::{BlockSize, DataBlock, VirtualBlock};

/// Where the units of a partial block are that it does not hold itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Base {
    /// They are zeros.
    Zeros,
    /// In this data block, at the same place.
    Block(DataBlock),
    /// In the external origin of whichever volume maps the block, which it does at this place.
    Origin(VirtualBlock),
}

/// Says of a packed base that it is an origin. Who does not know that takes it for a data block past the end of any device.
const ORIGIN_BIT: u64 = 1 << 63;

impl Base {
    /// 0: zeros; [`ORIGIN_BIT`] and the virtual block's number; else the data block's number and one.
    pub fn pack(self) -> u64 {
        match self {
            Base::Zeros => 0,
            Base::Block(block) => block.0 + 1,
            Base::Origin(block) => ORIGIN_BIT | block.0,
        }
    }

    /// Of any number.
    pub fn unpack(packed: u64) -> Self {
        match packed.checked_sub(1) {
            None => Base::Zeros,
            Some(_) if packed & ORIGIN_BIT != 0 => Base::Origin(VirtualBlock(packed & !ORIGIN_BIT)),
            Some(block) => Base::Block(DataBlock(block)),
        }
    }

    /// The data block, if it is one: a reference to it goes with the base.
    pub fn block(self) -> Option<DataBlock> {
        match self {
            Base::Block(block) => Some(block),
            Base::Zeros | Base::Origin(_) => None,
        }
    }

    /// Whether it is an origin at a place that no volume reaches.
    pub fn is_out_of_reach(self, size: BlockSize) -> bool {
        match self {
            Base::Origin(block) => block.0 >= u64::MAX / size.bytes(),
            Base::Zeros | Base::Block(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_what_it_was_packed_from() {
        let bases = [
            (Base::Zeros, 0),
            (Base::Block(DataBlock(0)), 1),
            (Base::Block(DataBlock(DataBlock::LIMIT - 1)), DataBlock::LIMIT),
            (Base::Origin(VirtualBlock(0)), 1 << 63),
            (Base::Origin(VirtualBlock((1 << 48) - 1)), (1 << 63) + (1 << 48) - 1),
        ];
        for (base, packed) in bases {
            assert_eq!((base.pack(), Base::unpack(packed)), (packed, base));
        }
        // What knows no origins sees the data block of that number less one, which no device has.
        assert!(Base::Origin(VirtualBlock(0)).pack() > DataBlock::LIMIT);
        assert!(Base::unpack(u64::MAX).is_out_of_reach(BlockSize::MIN));
        assert!(!Base::Origin(VirtualBlock((1 << 48) - 2)).is_out_of_reach(BlockSize::MIN));
        assert!(Base::Origin(VirtualBlock((1 << 48) - 1)).is_out_of_reach(BlockSize::MIN));
    }
}
