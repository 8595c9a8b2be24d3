//! How much of every volume is its own: counted over one commit, in steps, while the pool goes on.
//!
//! A mapping is its volume's own if the volume's deletion would free the data block: every node on the way from the superblock
//! to it has a single holder, and so has the block. What is shared as a whole, as between a volume and its fresh snapshot, is
//! passed over at its root; so the nodes looked at are in all hardly more than there are.
//!
//! The count is of *one* commit, though others follow meanwhile: the blocks of that one are *pinned*, which means that they
//! are not allocated, and so read as they were. That takes metadata space. An operation that cannot be afforded for the
//! want of it, and a commit after which what was promised would not be covered, end the count instead: nobody is refused
//! anything because somebody was curious.

use super::space::{Space, Span, require_data_block, require_depth};
use super::{Metadata, details_of};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BITMAP_ENTRIES, Bitmap, DetailsRecord, IndexEntry, InlineCount, MappingRecord, Node, RootRecord,
};
use crate::units::{DataBlock, MetaBlock, VolumeId};
use std::collections::VecDeque;

/// The least that a step is worth: the way down to where the last one ended, and as much again.
const LEAST_STEP_NODES: usize = 2 * super::space::DEPTH_LIMIT;

/// What a volume had at a commit, in data blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeSharing {
    /// Mapped in all.
    pub mapped_blocks: u64,
    /// Of these, the volume's own: its deletion would free them. The others are shared with volumes or a metadata snapshot.
    pub exclusive_blocks: u64,
}

/// How a count has come on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Count {
    /// Something is left.
    More,
    /// All volumes of the commit, in order of their ids.
    Done(Vec<(VolumeId, VolumeSharing)>),
    /// It was ended for want of metadata space, or an abort has ended it.
    GivenUp,
}

/// A count under way.
pub(super) struct Walk {
    /// One bit a metadata block: it had several holders.
    shared: Vec<u64>,
    /// The data space map's bitmaps.
    index: Vec<IndexEntry>,
    data_blocks: u64,
    /// Volumes that are not through, each with the root of its tree; `None` where the way to that is shared already.
    left: VecDeque<(VolumeId, Option<MetaBlock>)>,
    /// Where the first of them goes on.
    next_key: u64,
    found: Vec<(VolumeId, VolumeSharing)>,
}

impl Walk {
    fn is_shared(&self, block: MetaBlock) -> bool {
        // Past the end: whoever reads it says what is wrong.
        self.shared.get((block.0 / 64) as usize).is_some_and(|word| word >> (block.0 % 64) & 1 == 1)
    }
}

impl<D: Disk> Metadata<D> {
    /// Begins a count over the last commit, and forgets an earlier one. There must be nothing to commit (`WrongState`).
    pub fn begin_count(&mut self) -> Result<()> {
        self.end_count();
        if self.is_dirty() {
            return Err(Error::new(ErrorKind::WrongState, "only a commit can be counted"));
        }
        let details = self.space.entries::<DetailsRecord>(self.details_root)?;
        let mut walk = Walk {
            shared: self.space.references.metadata.shared_bits(),
            index: self.data.index().to_vec(),
            data_blocks: self.data.total(),
            left: VecDeque::new(),
            next_key: 0,
            found: Vec::with_capacity(details.len()),
        };
        for (key, record) in details {
            let volume = self.volume_id(key)?;
            let mapped_blocks = details_of(&record).mapped_blocks;
            let root = self.space.lookup_unshared::<RootRecord>(self.mapping_root, key)?;
            walk.left.push_back((volume, root.map(|record| record.root())));
            walk.found.push((volume, VolumeSharing { mapped_blocks, exclusive_blocks: 0 }));
        }
        self.space.references.metadata.pin();
        self.walk = Some(walk);
        Ok(())
    }

    /// Goes on with the count, for about `budget_nodes` tree nodes. An error ends it, and nothing else.
    pub fn count_step(&mut self, budget_nodes: usize) -> Result<Count> {
        let Some(mut walk) = self.walk.take().filter(|_| self.space.references.metadata.is_pinned()) else {
            return Ok(Count::GivenUp);
        };
        let mut nodes_left = budget_nodes.max(LEAST_STEP_NODES);
        while let Some((_, root)) = walk.left.front().copied() {
            let counted = match root {
                Some(root) => self.space.count_own(&mut walk, root, Span::ALL, 0, &mut nodes_left),
                None => Ok(true),
            };
            match counted {
                Ok(true) => (walk.next_key, _) = (0, walk.left.pop_front()),
                Ok(false) => {
                    self.walk = Some(walk);
                    return Ok(Count::More);
                }
                Err(error) => {
                    self.end_count();
                    return Err(error);
                }
            }
        }
        self.end_count();
        Ok(Count::Done(walk.found))
    }

    /// Ends the count, if there is one. Whether that has set blocks free to be allocated.
    pub fn end_count(&mut self) -> bool {
        self.walk = None;
        self.space.references.metadata.unpin()
    }
}

impl<D: Disk> Space<D> {
    /// Counts what is the volume's own at and below `block`, from the key on where the walk stands. `false` when no nodes are
    /// left to spend; then the walk remembers where to go on.
    fn count_own(
        &mut self,
        walk: &mut Walk,
        block: MetaBlock,
        span: Span,
        depth: usize,
        nodes_left: &mut usize,
    ) -> Result<bool> {
        require_depth(block, depth)?;
        if span.last < walk.next_key || walk.is_shared(block) {
            return Ok(true);
        }
        if *nodes_left == 0 {
            walk.next_key = walk.next_key.max(span.first);
            return Ok(false);
        }
        *nodes_left -= 1;
        if let Some(children) = self.children::<MappingRecord>(block, span, depth)? {
            for (span, child) in children {
                if !self.count_own(walk, child, span, depth + 1, nodes_left)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let Node::Leaf(entries) = self.node::<MappingRecord>(block, span)? else {
            unreachable!("an internal node has children")
        };
        let blocks: Vec<DataBlock> = entries.values.iter().map(|record| record.mapping().block).collect();
        let mut own = 0;
        for same in blocks.chunk_by(|one, other| bitmap_of(*one) == bitmap_of(*other)) {
            for block_of_data in same {
                require_data_block(*block_of_data, walk.data_blocks, block)?;
            }
            let number = walk.index[bitmap_of(same[0])].bitmap();
            let bitmap = Bitmap::new(self.cache.get(&self.disk, number, BlockKind::Bitmap)?);
            let is_single = |block: &&DataBlock| {
                bitmap.get((block.0 % BITMAP_ENTRIES as u64) as usize) == InlineCount::One
            };
            own += same.iter().filter(is_single).count() as u64;
        }
        let at = walk.found.len() - walk.left.len();
        walk.found[at].1.exclusive_blocks += own;
        // A leaf is counted once, wherever the next step begins.
        walk.next_key = span.last.saturating_add(1);
        Ok(true)
    }
}

fn bitmap_of(block: DataBlock) -> usize {
    (block.0 / BITMAP_ENTRIES as u64) as usize
}
