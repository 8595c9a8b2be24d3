//! The checksum that begins every metadata block: CRC-32C of bytes 4..4096, salted by the kind of block.

use crate::units::META_BLOCK_BYTES;

/// What a metadata block is, as far as its checksum tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockKind {
    /// Block 0, or the copy that a metadata snapshot holds.
    Superblock,
    /// A node of any B-tree.
    Node,
    /// The metadata space map's index block.
    Index,
    /// A bitmap of either space map.
    Bitmap,
}

impl BlockKind {
    /// All kinds, for recognising an unknown block.
    pub const ALL: [BlockKind; 4] =
        [BlockKind::Superblock, BlockKind::Node, BlockKind::Index, BlockKind::Bitmap];

    fn salt(self) -> u32 {
        match self {
            BlockKind::Superblock => 160_774,
            BlockKind::Node => 121_107,
            BlockKind::Index => 160_478,
            BlockKind::Bitmap => 240_779,
        }
    }
}

/// The checksum that `block` must carry in its first four bytes to be a `kind`.
pub fn of_block(block: &[u8; META_BLOCK_BYTES], kind: BlockKind) -> u32 {
    // The kernel does not complement the register at the end; the crate, as the standard says, does.
    !crc32c::crc32c(&block[4..]) ^ kind.salt()
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_is_the_standard_castagnoli_one() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
