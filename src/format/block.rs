//! A metadata block as bytes: checksum and own number, which every kind of block has in the same places.

use crate::checksum::{self, BlockKind};
use crate::error::{Error, Result};
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The bytes of one metadata block, aligned as direct I/O wants them.
///
/// Bytes 0..4 are the checksum of the rest ([`crate::checksum`], format §2), bytes 8..16 the block's own number.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; META_BLOCK_BYTES]);

impl Block {
    /// All zeros: a block that was never written.
    pub const ZERO: Block = Block([0; META_BLOCK_BYTES]);

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The checksum that the block carries.
    pub fn stored_checksum(&self) -> u32 {
        u32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// The number that the block says it has.
    pub fn stored_number(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[8 + i]))
    }

    /// What the block is by its checksum alone; `None` for a block that is damaged or was never written.
    pub fn kind(&self) -> Option<BlockKind> {
        let stored = self.stored_checksum();
        BlockKind::ALL.into_iter().find(|kind| checksum::of_block(&self.0, *kind) == stored)
    }

    /// Requires the checksum of a `kind` and the number under which the block was read.
    pub fn verify(&self, number: MetaBlock, kind: BlockKind) -> Result<()> {
        let (found, expected) = (self.stored_checksum(), checksum::of_block(&self.0, kind));
        if found != expected {
            let is = match self.kind() {
                Some(other) => format!("; by its checksum it is a {}", name_of(other)),
                None if self.is_zero() => "; it is all zeros".to_owned(),
                None => String::new(),
            };
            return Err(Error::corrupt(
                number,
                format_args!(
                    "bad checksum for a {}: found {found:#010x}, expected {expected:#010x}{is}",
                    name_of(kind)
                ),
            ));
        }
        match self.stored_number() {
            found if found == number.0 => Ok(()),
            found => Err(Error::corrupt(
                number,
                format_args!("the {} carries block number {found}, expected {number}", name_of(kind)),
            )),
        }
    }

    /// Writes number and checksum, after which [`Block::verify`] accepts the block.
    pub fn seal(&mut self, number: MetaBlock, kind: BlockKind) {
        self.0[8..16].copy_from_slice(&number.0.to_le_bytes());
        let checksum = checksum::of_block(&self.0, kind);
        self.0[..4].copy_from_slice(&checksum.to_le_bytes());
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:?}, number {})", self.kind(), self.stored_number())
    }
}

fn name_of(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Superblock => "superblock",
        BlockKind::Node => "B-tree node",
        BlockKind::Index => "metadata index block",
        BlockKind::Bitmap => "bitmap",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_block_verifies_only_as_what_it_is() {
        let mut block = Block::ZERO;
        assert_eq!(block.kind(), None);
        block.0[100] = 7;
        for kind in BlockKind::ALL {
            block.seal(MetaBlock(42), kind);
            assert_eq!(block.kind(), Some(kind));
            assert_eq!(block.verify(MetaBlock(42), kind), Ok(()));
            let wrong_number = block.verify(MetaBlock(43), kind).unwrap_err();
            assert!(
                wrong_number.message().contains("carries block number 42, expected 43"),
                "{wrong_number}"
            );
            for other in BlockKind::ALL.into_iter().filter(|other| *other != kind) {
                assert!(block.verify(MetaBlock(42), other).unwrap_err().message().contains(name_of(kind)));
            }
        }
    }

    #[test]
    fn every_byte_is_under_the_checksum() {
        let mut block = Block::ZERO;
        block.seal(MetaBlock(1), BlockKind::Node);
        for byte in 0..META_BLOCK_BYTES {
            block.0[byte] ^= 0x10;
            assert!(block.verify(MetaBlock(1), BlockKind::Node).is_err(), "byte {byte}");
            block.0[byte] ^= 0x10;
        }
        assert_eq!(block.verify(MetaBlock(1), BlockKind::Node), Ok(()));
    }
}
