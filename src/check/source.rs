//! Metadata blocks as tools read them: each verified as what it must be, neighbours on the disk in one read.
//!
//! A batch hands its blocks out in the order asked for, whatever order the disk was read in. Damage of one block is
//! that block's own outcome; nothing is repeated and nothing remembered.

use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, Superblock};
use crate::units::{META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use zerocopy::IntoBytes;

/// Blocks of one read: enough to make a disk stream, little enough to stay in a processor's cache.
pub(super) const BATCH_BLOCKS: usize = 64;

/// The metadata device, for reading.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    disk: &'a dyn Disk,
    blocks_limit: u64,
    /// Whether partial blocks pass for whole ones.
    takes_partial: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        Source { disk, blocks_limit: META_BLOCKS_LIMIT, takes_partial: false }
    }

    /// The same, with partial blocks taken for whole ones if `takes` says so: what such a block does not hold itself is then what
    /// was there before.
    pub(super) fn taking_partial_blocks(self, takes: bool) -> Self {
        Source { takes_partial: takes, ..self }
    }

    /// The first `blocks` of the device, as if it had no more.
    pub(super) fn first(disk: &'a dyn Disk, blocks: u64) -> Self {
        Source { disk, blocks_limit: blocks.min(META_BLOCKS_LIMIT), takes_partial: false }
    }

    /// Whole blocks that are on the disk and that the format could manage.
    pub(super) fn device_blocks(&self) -> u64 {
        (self.disk.size_bytes() / META_BLOCK_BYTES as u64).min(self.blocks_limit)
    }

    /// The block's bytes, whatever they are.
    pub(super) fn raw(&self, number: MetaBlock) -> Result<Box<Block>> {
        let mut block = Box::new(Block::ZERO);
        self.require_on_disk(number)?;
        self.disk
            .read_at(number.offset_bytes(), &mut block.0)
            .map_err(|error| Error::io(format_args!("metadata block {number}: cannot be read"), &error))?;
        Ok(block)
    }

    /// A block that must be a sound `kind`.
    pub(super) fn block(&self, number: MetaBlock, kind: BlockKind) -> Result<Box<Block>> {
        let block = self.raw(number)?;
        block.verify(number, kind)?;
        Ok(block)
    }

    /// The superblock, which must be sound, or its copy in a metadata snapshot. `Unsupported` when the pool has partial blocks,
    /// whose mappings say less than they seem to, or a journal with changes; only a check goes on with these.
    pub(super) fn superblock(&self, number: MetaBlock) -> Result<Superblock> {
        self.superblock_beside(number).and_then(without_journal)
    }

    /// The same for whoever looks at the metadata snapshot that it names, for which a journal means nothing.
    pub(super) fn superblock_beside(&self, number: MetaBlock) -> Result<Superblock> {
        self.of_whole_blocks(Superblock::read(&*self.raw(number)?, number)?)
    }

    /// The superblock, unless the pool has partial blocks that do not pass for whole ones.
    pub(super) fn of_whole_blocks(&self, superblock: Superblock) -> Result<Superblock> {
        if self.takes_partial { Ok(superblock) } else { of_whole_blocks(superblock) }
    }

    /// Requires a block to be one of the device's.
    pub(super) fn require_on_disk(&self, number: MetaBlock) -> Result<()> {
        let blocks = self.device_blocks();
        if number.0 < blocks {
            return Ok(());
        }
        Err(Error::corrupt(number, format_args!("past the end of the metadata, which has {blocks} blocks")))
    }

    /// Reads the whole device in order; what cannot be read is left out.
    pub(super) fn sweep(&self, each: &mut dyn FnMut(MetaBlock, &Block)) {
        let mut buffer = Batch::new(BATCH_BLOCKS);
        let device_blocks = self.device_blocks();
        for begin in (0..device_blocks).step_by(BATCH_BLOCKS) {
            let count = (device_blocks - begin).min(BATCH_BLOCKS as u64) as usize;
            let blocks = &mut buffer.blocks[..count];
            let is_read = self.disk.read_at(MetaBlock(begin).offset_bytes(), blocks.as_mut_bytes()).is_ok();
            for (number, block) in (begin..).map(MetaBlock).zip(blocks.iter()) {
                if is_read {
                    each(number, block);
                } else if let Ok(alone) = self.raw(number) {
                    each(number, &alone);
                }
            }
        }
    }

    /// Reads blocks of one kind and hands each to `each`, with its place in `numbers`. Blocks that
    /// follow each other on the disk are read at once. What `each` answers ends the batch.
    pub(super) fn batch(
        &self,
        numbers: &[MetaBlock],
        kind: BlockKind,
        buffer: &mut Batch,
        each: &mut dyn FnMut(usize, Result<&Block>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < numbers.len() {
            let count = run_length(&numbers[done..]).min(buffer.blocks.len());
            let run = &numbers[done..done + count];
            let blocks = &mut buffer.blocks[..count];
            let is_read = run[count - 1].0 < self.device_blocks()
                && self.disk.read_at(run[0].offset_bytes(), blocks.as_mut_bytes()).is_ok();
            for (index, number) in run.iter().enumerate() {
                if is_read {
                    let block = &buffer.blocks[index];
                    each(done + index, block.verify(*number, kind).map(|()| block))?;
                } else {
                    // One bad sector must not take its neighbours along.
                    let alone = self.block(*number, kind);
                    each(done + index, alone.as_deref().map_err(Clone::clone))?;
                }
            }
            done += count;
        }
        Ok(())
    }
}

/// Room for the blocks of a batch.
pub(super) struct Batch {
    blocks: Box<[Block]>,
}

impl Batch {
    /// For reading so many blocks, as many of them at once as are worth it.
    pub(super) fn new(blocks: usize) -> Self {
        Batch { blocks: vec![Block::ZERO; blocks.clamp(1, BATCH_BLOCKS)].into_boxed_slice() }
    }
}

/// How many of the numbers, from the first on, follow each other.
fn run_length(numbers: &[MetaBlock]) -> usize {
    let follows = numbers.windows(2).take_while(|pair| pair[0].0.checked_add(1) == Some(pair[1].0));
    1 + follows.count()
}

/// The superblock, unless a journal holds changes on top of it: see [`Source::superblock`].
pub(super) fn without_journal(superblock: Superblock) -> Result<Superblock> {
    match superblock.journal() {
        None => Ok(superblock),
        Some(_) => Err(Error::new(
            ErrorKind::Unsupported,
            "a journal holds changes on top of the metadata, which only the pool's own daemon brings in",
        )
        .hint("serve the pool and close it (`uthin serve`, `uthin pool close`), then try again")),
    }
}

/// The superblock, unless the pool has partial blocks: see [`Source::superblock`].
pub(super) fn of_whole_blocks(superblock: Superblock) -> Result<Superblock> {
    match superblock.partial_tree() {
        None => Ok(superblock),
        Some(_) => Err(Error::new(
            ErrorKind::Unsupported,
            "the pool has partial blocks, which only `check` and the pool's own daemon know",
        )
        .hint(
            "`uthin pool settle POOL` makes whole blocks of them; then close the pool and try again. If it cannot be opened any more, \
             `uthin-fsck check` says why, and `uthin-fsck repair --partial-as-whole` saves what it can",
        )),
    }
}
