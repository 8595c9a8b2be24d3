//! The device that a restore or repair writes: blocks in ascending order, each written once, the superblock last.
//!
//! The superblock's place is zeroed before anything else is written: what is left half-way is nobody's pool. Nothing is
//! durable before [`Output::finish`] returns.

use crate::check::counts::Counts;
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, Superblock};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use zerocopy::IntoBytes;

/// Blocks that are collected for one write.
const PENDING_BLOCKS: usize = 256;

/// The metadata device being written.
pub(super) struct Output<'a> {
    disk: &'a dyn Disk,
    blocks: u64,
    /// The next block to be given out; everything before it is written or pending.
    next: u64,
    pending: Vec<Block>,
    /// References to every block given out.
    pub(super) counts: Counts,
    is_begun: bool,
}

impl<'a> Output<'a> {
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        let blocks = (disk.size_bytes() / META_BLOCK_BYTES as u64).min(META_BLOCKS_LIMIT);
        Output {
            disk,
            blocks,
            next: 1,
            pending: Vec::with_capacity(PENDING_BLOCKS),
            counts: Counts::new(blocks),
            is_begun: false,
        }
    }

    /// Blocks of the device, as far as the format can manage them.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The block that will be written next.
    pub(super) fn next(&self) -> MetaBlock {
        MetaBlock(self.next)
    }

    /// Requires room for so many blocks more.
    pub(super) fn require_room(&self, blocks: u64) -> Result<()> {
        if self.next.saturating_add(blocks) <= self.blocks {
            return Ok(());
        }
        let message = format!(
            "{}: too small: {} metadata blocks of 4096 bytes are there, and at least {} are needed",
            self.disk.name(),
            self.blocks,
            self.next.saturating_add(blocks)
        );
        Err(Error::new(ErrorKind::NoMetadataSpace, message)
            .hint("give a larger output; `uthin-fsck metadata_size` says how large is large enough"))
    }

    /// Writes the next block and answers where it is. It has no reference yet.
    pub(super) fn write(&mut self, mut block: Block, kind: BlockKind) -> Result<MetaBlock> {
        self.require_room(1)?;
        let number = MetaBlock(self.next);
        block.seal(number, kind);
        self.pending.push(block);
        self.next += 1;
        if self.pending.len() == PENDING_BLOCKS {
            self.write_pending()?;
        }
        Ok(number)
    }

    /// One reference more to a block that was given out.
    pub(super) fn reference(&mut self, number: MetaBlock) {
        assert!(self.counts.add(number.0), "block {number} was given out here");
    }

    /// A block that was written before.
    pub(super) fn read(&self, number: MetaBlock) -> Result<Block> {
        let first_pending = self.next - self.pending.len() as u64;
        if let Some(index) = number.0.checked_sub(first_pending) {
            return Ok(self.pending[index as usize].clone());
        }
        let mut block = Block::ZERO;
        self.disk
            .read_at(number.offset_bytes(), &mut block.0)
            .map_err(|error| Error::io(format_args!("{}: reading back", self.disk.name()), &error))?;
        block.verify(number, BlockKind::Node)?;
        Ok(block)
    }

    fn write_pending(&mut self) -> Result<()> {
        if !self.is_begun {
            self.put(MetaBlock::SUPERBLOCK, Block::ZERO.as_bytes())?;
            self.is_begun = true;
        }
        let first = MetaBlock(self.next - self.pending.len() as u64);
        self.put(first, self.pending.as_bytes())?;
        self.pending.clear();
        Ok(())
    }

    fn put(&self, number: MetaBlock, bytes: &[u8]) -> Result<()> {
        self.disk.write_at(number.offset_bytes(), bytes).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::io(format_args!("{}: writing", self.disk.name()), error)
    }

    /// Makes everything durable, then the superblock.
    pub(super) fn finish(&mut self, superblock: &Superblock) -> Result<()> {
        self.write_pending()?;
        self.disk.flush().map_err(|error| self.failed(&error))?;
        self.put(MetaBlock::SUPERBLOCK, &superblock.encode(MetaBlock::SUPERBLOCK).0)?;
        self.disk.flush().map_err(|error| self.failed(&error))
    }
}
