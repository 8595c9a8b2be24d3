//! Many blocks at once: read by several threads, neighbours together, verified, for who will ask for them one by one.
//!
//! A disk that answers one read after the other in 100 µs answers sixteen at a time in little more. What cannot be read, or is
//! damaged, is left out: whoever asks for it is told.

use super::cache::verify;
use crate::checksum::BlockKind;
use crate::disk::{AlignedBuffer, Disk};
use crate::format::Block;
use crate::units::{META_BLOCK_BYTES, MetaBlock};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// The most blocks in one read, those between included that nobody wants.
const RUN_BLOCKS: u64 = 64;
/// Blocks further apart are read by themselves.
const GAP_BLOCKS: u64 = 8;
/// As many reads at a time as a disk takes with profit.
const THREADS: usize = 16;
/// Fewer reads than this are one thread's.
const RUNS_OF_A_THREAD: usize = 4;
const STACK_BYTES: usize = 128 << 10;

/// The blocks that are wanted, in some order. `wanted` ascends.
pub(super) fn read(disk: &impl Disk, wanted: &[MetaBlock], kind: BlockKind) -> Vec<(MetaBlock, Box<Block>)> {
    let runs = runs_of(wanted);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        let mut buffer = AlignedBuffer::zeroed(RUN_BLOCKS as usize * META_BLOCK_BYTES);
        while let Some(run) = runs.get(next.fetch_add(1, Relaxed)) {
            read_run(disk, run, kind, &mut buffer, &mut found);
        }
        found
    };
    let helpers = (runs.len() / RUNS_OF_A_THREAD).min(THREADS).saturating_sub(1);
    thread::scope(|scope| {
        let helper = |_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).ok();
        // Where there are no more threads to be had, those that are there do it.
        let helpers: Vec<_> = (0..helpers).map_while(helper).collect();
        let mut found = work();
        for helper in helpers {
            found.append(&mut helper.join().expect("nobody panics while reading"));
        }
        found
    })
}

/// What is read at once.
fn runs_of(wanted: &[MetaBlock]) -> Vec<&[MetaBlock]> {
    let mut runs = Vec::new();
    let mut rest = wanted;
    while let [first, ..] = rest {
        let follows =
            |pair: &[MetaBlock]| pair[1].0 - pair[0].0 <= GAP_BLOCKS && pair[1].0 - first.0 < RUN_BLOCKS;
        let more = rest.windows(2).take_while(|pair| follows(pair)).count();
        let (run, others) = rest.split_at(1 + more);
        runs.push(run);
        rest = others;
    }
    runs
}

fn read_run(
    disk: &impl Disk,
    run: &[MetaBlock],
    kind: BlockKind,
    buffer: &mut [u8],
    found: &mut Vec<(MetaBlock, Box<Block>)>,
) {
    let ([first, ..], [.., last]) = (run, run) else { return };
    let bytes = &mut buffer[..(last.0 - first.0 + 1) as usize * META_BLOCK_BYTES];
    if disk.read_at(first.offset_bytes(), bytes).is_err() {
        return;
    }
    for number in run {
        let mut block = Box::new(Block::ZERO);
        let at = (number.0 - first.0) as usize * META_BLOCK_BYTES;
        block.0.copy_from_slice(&bytes[at..at + META_BLOCK_BYTES]);
        if verify(&block, *number, kind).is_ok() {
            found.push((*number, block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn runs_take_in_small_gaps_and_end() {
        let numbers = |list: &[u64]| list.iter().copied().map(MetaBlock).collect::<Vec<_>>();
        let wanted = numbers(&[1, 2, 10, 19, 20]);
        assert_eq!(runs_of(&wanted), [&numbers(&[1, 2, 10])[..], &numbers(&[19, 20])]);
        let wanted: Vec<_> = (5..205).map(MetaBlock).collect();
        assert_eq!(runs_of(&wanted).iter().map(|run| run.len()).collect::<Vec<_>>(), [64, 64, 64, 8]);
        assert!(runs_of(&[]).is_empty());
    }

    #[test]
    fn it_finds_each_that_is_sound() {
        let disk = MemoryDisk::zeroed(4096 * 2000);
        let is_sound = |number: u64| !number.is_multiple_of(7);
        for number in (0..2000).filter(|number| is_sound(*number)) {
            let mut block = Block([number as u8; META_BLOCK_BYTES]);
            block.seal(MetaBlock(number), BlockKind::Bitmap);
            disk.write_at(number * 4096, &block.0).unwrap();
        }
        // The last ones are not there at all, which hides those that are read with them.
        let wanted: Vec<_> = (0..2010).step_by(3).map(MetaBlock).collect();
        let mut found = read(&disk, &wanted, BlockKind::Bitmap);
        found.sort_by_key(|(number, _)| *number);
        let numbers: Vec<_> = found.iter().map(|(number, _)| number.0).collect();
        let expected: Vec<_> = (0..2000).step_by(3).filter(|number| is_sound(*number)).collect();
        assert!(expected.starts_with(&numbers) && numbers.len() > 500, "{numbers:?}");
        assert!(found.iter().all(|(number, block)| block.0[4095] == number.0 as u8));
    }
}
