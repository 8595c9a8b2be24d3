//! The device that a restore or repair writes: each block written once, the superblock last.
//!
//! Blocks are given out in ascending order, so that writes run along the disk: all of them for a new device, the free ones
//! when only the space maps of a pool are made anew. A new device's superblock is zeroed before anything else is written:
//! what is left half-way is nobody's pool. Nothing is durable before [`Output::finish`] returns.

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
    /// Where to look for the next block to be given out.
    next: u64,
    /// Blocks that are in use and stay as they are; `None` when the device is new.
    in_use: Option<Counts>,
    pending: Vec<Block>,
    pending_begin: u64,
    /// References to every block given out, and to those that stay.
    pub(super) counts: Counts,
}

impl<'a> Output<'a> {
    /// A device whose content is of no more use.
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        let blocks = (disk.size_bytes() / META_BLOCK_BYTES as u64).min(META_BLOCKS_LIMIT);
        Self::with(disk, blocks, Counts::new(blocks), None)
    }

    /// The first `blocks` of a device with a pool: `counts` are the references that stay, and what has any in `in_use` is
    /// not given out.
    pub(super) fn beside(disk: &'a dyn Disk, blocks: u64, counts: Counts, in_use: Counts) -> Self {
        Self::with(disk, blocks, counts, Some(in_use))
    }

    fn with(disk: &'a dyn Disk, blocks: u64, counts: Counts, in_use: Option<Counts>) -> Self {
        let pending = Vec::with_capacity(PENDING_BLOCKS);
        Output { disk, blocks, next: 1, in_use, pending, pending_begin: 1, counts }
    }

    /// Blocks of the device, as far as the format can manage them.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Requires room for so many blocks more, as far as that can be said beforehand.
    pub(super) fn require_room(&self, blocks: u64) -> Result<()> {
        let needed = self.next.saturating_add(blocks);
        let has_room = match &self.in_use {
            None => needed <= self.blocks,
            Some(in_use) => {
                let free = (self.next..self.blocks).filter(|block| in_use.get(*block) == 0);
                let wanted = usize::try_from(blocks).unwrap_or(usize::MAX);
                wanted == 0 || free.take(wanted).count() == wanted
            }
        };
        if has_room {
            return Ok(());
        }
        let (name, there) = (self.disk.name(), self.blocks);
        let error = |words: String| Error::new(ErrorKind::NoMetadataSpace, format!("{name}: {words}"));
        Err(match self.in_use {
            None => error(format!(
                "too small: {there} metadata blocks of 4096 bytes are there, and at least {needed} are needed"
            ))
            .hint("give a larger output; `uthin-fsck metadata_size` says how large is large enough"),
            Some(_) => error("too few free metadata blocks to write the space maps anew".to_owned())
                .hint("repair to a larger device instead"),
        })
    }

    /// Gives out a block. It has no reference yet.
    pub(super) fn allocate(&mut self) -> Result<MetaBlock> {
        if let Some(in_use) = &self.in_use {
            while self.next < self.blocks && in_use.get(self.next) > 0 {
                self.next += 1;
            }
        }
        self.require_room(1)?;
        self.next += 1;
        Ok(MetaBlock(self.next - 1))
    }

    /// Writes a block that was given out.
    pub(super) fn put(&mut self, number: MetaBlock, mut block: Block, kind: BlockKind) -> Result<()> {
        let follows = self.pending_begin + self.pending.len() as u64 == number.0;
        if self.pending.len() == PENDING_BLOCKS || !follows {
            self.write_pending()?;
            self.pending_begin = number.0;
        }
        block.seal(number, kind);
        self.pending.push(block);
        Ok(())
    }

    /// Gives out a block and writes it.
    pub(super) fn write(&mut self, block: Block, kind: BlockKind) -> Result<MetaBlock> {
        let number = self.allocate()?;
        self.put(number, block, kind)?;
        Ok(number)
    }

    /// One reference more to a block that was given out.
    pub(super) fn reference(&mut self, number: MetaBlock) {
        assert!(self.counts.add(number.0), "block {number} was given out here");
    }

    /// A node that was written before.
    pub(super) fn read(&self, number: MetaBlock) -> Result<Block> {
        let index = number.0.checked_sub(self.pending_begin).and_then(|index| usize::try_from(index).ok());
        if let Some(block) = index.and_then(|index| self.pending.get(index)) {
            return Ok(block.clone());
        }
        let mut block = Block::ZERO;
        self.disk
            .read_at(number.offset_bytes(), &mut block.0)
            .map_err(|error| Error::io(format_args!("{}: reading back", self.disk.name()), &error))?;
        block.verify(number, BlockKind::Node)?;
        Ok(block)
    }

    fn write_pending(&mut self) -> Result<()> {
        if self.pending_begin == 1 && self.in_use.is_none() {
            self.write_at(MetaBlock::SUPERBLOCK, Block::ZERO.as_bytes())?;
        }
        self.write_at(MetaBlock(self.pending_begin), self.pending.as_bytes())?;
        self.pending_begin += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn write_at(&self, number: MetaBlock, bytes: &[u8]) -> Result<()> {
        self.disk.write_at(number.offset_bytes(), bytes).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::io(format_args!("{}: writing", self.disk.name()), error)
    }

    /// Makes everything durable, then the superblock.
    pub(super) fn finish(&mut self, superblock: &Superblock) -> Result<()> {
        self.write_pending()?;
        self.disk.flush().map_err(|error| self.failed(&error))?;
        self.write_at(MetaBlock::SUPERBLOCK, &superblock.encode(MetaBlock::SUPERBLOCK).0)?;
        self.disk.flush().map_err(|error| self.failed(&error))
    }
}
