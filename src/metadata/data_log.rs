//! Changes of data blocks' reference counts, collected in core until they are applied in sorted batches.
//!
//! A batch touches each bitmap once, however scattered the changes were. That a block is named at all matters too: one
//! that came and went within the transaction nets to zero and is freed nevertheless.

use super::space::require_data_block;
use crate::error::Result;
use crate::units::{DataBlock, MetaBlock};

/// What happened to one data block's count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub block: u64,
    /// References more, or less.
    pub delta: i64,
}

pub(super) struct DataLog {
    data_blocks: u64,
    /// `block << 1 | what`: increments sort behind decrements of the same block.
    entries: Vec<u64>,
    fresh: u64,
    shared: u64,
    lost_holders: bool,
}

const DECREMENT: u64 = 0;
const INCREMENT: u64 = 1;

impl DataLog {
    /// For a data device of that many blocks.
    pub fn new(data_blocks: u64) -> Self {
        DataLog { data_blocks, entries: Vec::new(), fresh: 0, shared: 0, lost_holders: false }
    }

    /// The data device has grown.
    pub fn grow(&mut self, data_blocks: u64) {
        self.data_blocks = data_blocks;
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many changes are first references to reserved blocks.
    pub fn fresh(&self) -> u64 {
        self.fresh
    }

    /// How many changes are references added to blocks that had some: each may make a count large.
    pub fn shared(&self) -> u64 {
        self.shared
    }

    /// The first reference to a reserved block.
    pub fn first_reference(&mut self, block: DataBlock) {
        self.entries.push(block.0 << 1 | INCREMENT);
        self.fresh += 1;
    }

    /// A reserved block was mapped and replaced before any tree had it: nothing references it, and it counts as freed.
    pub fn come_and_gone(&mut self, block: DataBlock) {
        self.entries.extend([block.0 << 1 | INCREMENT, block.0 << 1 | DECREMENT]);
    }

    /// One more leaf, number `leaf`, names the block. `Corrupt` if there is no such block.
    pub fn increment(&mut self, block: DataBlock, leaf: MetaBlock) -> Result<()> {
        require_data_block(block, self.data_blocks, leaf)?;
        self.entries.push(block.0 << 1 | INCREMENT);
        self.shared += 1;
        Ok(())
    }

    /// One leaf less names the block. `Corrupt` if there is no such block.
    pub fn decrement(&mut self, block: DataBlock, leaf: MetaBlock) -> Result<()> {
        require_data_block(block, self.data_blocks, leaf)?;
        self.entries.push(block.0 << 1 | DECREMENT);
        self.lost_holders = true;
        Ok(())
    }

    /// Whether any block has lost a holder in this transaction, applied or not.
    pub fn has_lost_holders(&self) -> bool {
        self.lost_holders
    }

    /// Notes that the transaction is over.
    pub fn committed(&mut self) {
        self.lost_holders = false;
    }

    /// All changes in order of their blocks, one for each block. The log is empty afterwards.
    pub fn take(&mut self) -> Vec<Change> {
        let mut entries = std::mem::take(&mut self.entries);
        (self.fresh, self.shared) = (0, 0);
        entries.sort_unstable();
        let by_block = entries.chunk_by(|a, b| a >> 1 == b >> 1);
        by_block
            .map(|same| {
                let increments = same.len() - same.partition_point(|entry| entry & 1 == DECREMENT);
                Change { block: same[0] >> 1, delta: 2 * increments as i64 - same.len() as i64 }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_out_sorted_and_summed_and_zero_sums_stay() {
        let mut log = DataLog::new(100);
        let leaf = MetaBlock(9);
        log.first_reference(DataBlock(7));
        log.decrement(DataBlock(7), leaf).unwrap();
        for _ in 0..3 {
            log.increment(DataBlock(2), leaf).unwrap();
        }
        log.decrement(DataBlock(2), leaf).unwrap();
        log.decrement(DataBlock(50), leaf).unwrap();
        assert_eq!((log.len(), log.fresh(), log.shared()), (7, 1, 3));
        assert!(log.increment(DataBlock(100), leaf).unwrap_err().message().contains("block 9"));
        let change = |block, delta| Change { block, delta };
        assert_eq!(log.take(), [change(2, 2), change(7, 0), change(50, -1)]);
        assert!(log.is_empty() && log.fresh() == 0);
    }
}
