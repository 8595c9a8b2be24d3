//! Space for fresh blocks, had from the data disk's filesystem ahead of their first writes and in large pieces.
//!
//! A write into a hole of a sparse file waits until the filesystem has found space for it, in a thread of its own because it may take long,
//! and the file goes to pieces as small as the writes. So the file's space is had a stretch at a time, when the first block of the
//! stretch before is handed out. It is a matter of speed alone: what cannot be had ahead is had by the writes. What has been freed and has
//! gone back is had again when its turn comes; what was had in vain goes back once nobody has wanted a block for a while.

use super::*;
use std::collections::BTreeSet;

/// Bytes of a stretch, in a pool that is not small.
const STRETCH_BYTES: u64 = 16 << 20;
/// Stretches that any pool has.
const STRETCHES: u64 = 256;

/// Ticks without a block handed out after which what is ahead goes back.
const IDLE_TICKS: u32 = 3;

/// What has been had ahead.
pub(super) struct Ahead {
    total_blocks: u64,
    stretch_blocks: u64,
    /// The stretch that the last block was handed out of, if nothing is missing in it and the next.
    current: Option<u64>,
    /// The same, as long as what is ahead was not given back.
    edge: Option<u64>,
    /// Stretches that have their space.
    had: BTreeSet<u64>,
    /// Stretches to be had now, of which the last is the most urgent.
    wanted: Vec<u64>,
    /// The disk has no way to set space aside, or no need.
    is_pointless: bool,
    /// Since a block was handed out.
    idle_ticks: u32,
}

impl Ahead {
    pub fn new(disk: &impl Disk, total_blocks: u64, block_size: BlockSize) -> Self {
        let stretch_bytes = STRETCH_BYTES.min(total_blocks.saturating_mul(block_size.bytes()) / STRETCHES);
        Ahead {
            total_blocks,
            stretch_blocks: (stretch_bytes / block_size.bytes()).max(1),
            current: None,
            edge: None,
            had: BTreeSet::new(),
            wanted: Vec::new(),
            is_pointless: disk.has_own_space(),
            idle_ticks: 0,
        }
    }

    /// Notes that the data disk is as large as this.
    pub fn grow(&mut self, total_blocks: u64) {
        self.total_blocks = total_blocks;
    }

    /// A block was handed out: unless it has its space, its stretch and the next are to have theirs.
    pub fn handed_out(&mut self, block: DataBlock, has_space: bool) {
        self.idle_ticks = 0;
        let stretch = block.0 / self.stretch_blocks;
        if has_space || self.current == Some(stretch) || self.is_pointless {
            return;
        }
        (self.current, self.edge) = (Some(stretch), Some(stretch));
        let is_there = |stretch: &u64| stretch * self.stretch_blocks < self.total_blocks;
        let missing = [stretch + 1, stretch].into_iter().filter(is_there);
        self.wanted = missing.filter(|stretch| !self.had.contains(stretch)).collect();
    }

    /// These blocks have given their space back.
    pub fn gave_back(&mut self, blocks: &Range<u64>) {
        let stretches = blocks.start / self.stretch_blocks..blocks.end.div_ceil(self.stretch_blocks);
        let gone: Vec<u64> = self.had.range(stretches).copied().collect();
        for stretch in gone {
            self.had.remove(&stretch);
            self.current = self.current.filter(|current| *current != stretch);
        }
    }

    fn blocks_of(&self, stretch: u64) -> Range<u64> {
        let begin = stretch * self.stretch_blocks;
        begin..(begin + self.stretch_blocks).min(self.total_blocks)
    }

    pub fn has_work(&self) -> bool {
        !self.wanted.is_empty()
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    pub(super) fn ahead_tick(&mut self) {
        if self.is_stopped() {
            return; // what the metadata has lost is still read
        }
        self.ahead.idle_ticks = self.ahead.idle_ticks.saturating_add(1);
        if self.ahead.idle_ticks == IDLE_TICKS {
            self.give_back_ahead();
        }
    }

    /// Gives back what was had ahead, and holds no block.
    pub(super) fn give_back_ahead(&mut self) {
        self.ahead.wanted.clear();
        let edge = self.ahead.edge.take().filter(|_| self.passes_down());
        for stretch in edge.into_iter().flat_map(|edge| [edge, edge + 1]) {
            let blocks = self.ahead.blocks_of(stretch);
            match self.metadata.free_blocks_in(blocks) {
                Ok(free) => {
                    for range in free {
                        for block in range.clone() {
                            self.freed.remove(block);
                        }
                        self.pass_down(&range);
                    }
                }
                Err(error) => tracing::warn!("space had in vain stays with the pool: {error}"),
            }
        }
    }

    /// Has the space of one stretch set aside.
    pub(super) fn ahead_step(&mut self) {
        let Some(stretch) = self.ahead.wanted.pop() else { return };
        let block_bytes = self.block_size().bytes();
        let blocks = self.ahead.blocks_of(stretch);
        match self.data.set_aside(blocks.start * block_bytes..blocks.end * block_bytes) {
            Ok(()) => {
                self.ahead.had.insert(stretch);
            }
            Err(error) => {
                tracing::debug!("{}: no space ahead of writes: {error}", self.data.name());
                self.ahead.wanted.clear(); // a full filesystem is asked again with the next stretch
                self.ahead.is_pointless = error.kind() == std::io::ErrorKind::Unsupported;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{FileDisk, MemoryDisk};

    const BLOCKS: u64 = 16 << 10;

    /// A pool of 1 GiB, whose stretches are of 4 MiB, on a file.
    fn ahead() -> Ahead {
        let directory = tempfile::TempDir::new().unwrap();
        let disk = FileDisk::create(&directory.path().join("data"), 4096).unwrap();
        let ahead = Ahead::new(&disk, BLOCKS, BlockSize::MIN);
        assert_eq!(ahead.stretch_blocks, 64);
        ahead
    }

    fn have_all(ahead: &mut Ahead) -> Vec<u64> {
        let mut had = Vec::new();
        while let Some(stretch) = ahead.wanted.pop() {
            ahead.had.insert(stretch);
            had.push(stretch);
        }
        had
    }

    #[test]
    fn the_next_stretch_is_had_while_this_one_is_handed_out() {
        let mut ahead = ahead();
        let mut had = Vec::new();
        for block in 0..200 {
            ahead.handed_out(DataBlock(block), false);
            had.push(have_all(&mut ahead));
        }
        assert_eq!((&had[0], &had[64], &had[128], &had[192]), (&vec![0, 1], &vec![2], &vec![3], &vec![4]));
        assert_eq!(had.iter().flatten().count(), 5);
    }

    #[test]
    fn what_was_given_back_is_had_again_when_its_turn_comes() {
        let mut ahead = ahead();
        ahead.handed_out(DataBlock(0), false);
        have_all(&mut ahead);
        ahead.gave_back(&(60..65));
        assert_eq!(have_all(&mut ahead), [0; 0], "not before");
        ahead.handed_out(DataBlock(2), false);
        assert_eq!(have_all(&mut ahead), [0, 1]);
        ahead.gave_back(&(1000..2000));
        ahead.handed_out(DataBlock(3), false);
        assert_eq!(have_all(&mut ahead), [0; 0], "that was elsewhere");
        ahead.handed_out(DataBlock(1000), true);
        assert_eq!(have_all(&mut ahead), [0; 0], "it has its space");
    }

    #[test]
    fn nothing_is_had_behind_the_end_until_the_pool_has_grown() {
        let mut ahead = ahead();
        ahead.handed_out(DataBlock(BLOCKS - 1), false);
        assert_eq!(have_all(&mut ahead), [255]);
        ahead.grow(2 * BLOCKS);
        ahead.handed_out(DataBlock(BLOCKS), false);
        assert_eq!(have_all(&mut ahead), [256, 257]);
    }

    #[test]
    fn where_nothing_is_passed_down_freed_blocks_go_first_after_a_pause_as_well() {
        let mut keeper = super::super::tests::pool(16);
        for (discard, first) in [(Discard::NoPassdown, Some(0)), (Discard::Passdown, None)] {
            keeper.discard = discard;
            keeper.freed = FreedRanges::default();
            keeper.freed.add(0..1);
            keeper.ahead.edge = Some(0);
            keeper.give_back_ahead();
            assert_eq!(keeper.freed.first(), first);
        }
    }

    #[test]
    fn a_disk_of_its_own_is_left_alone() {
        let mut ahead = Ahead::new(&MemoryDisk::zeroed(4096), BLOCKS, BlockSize::MIN);
        ahead.handed_out(DataBlock(0), false);
        assert!(!ahead.has_work());
    }
}
