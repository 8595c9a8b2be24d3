//! Every single bit of a small pool, flipped: as a disk flips it, and as one that mends the checksum would.
//!
//! `UTHIN_FSCK_FLIPS=all` takes every bit; else every so many.

use super::*;
use crate::format::NodeHeader;

/// Of so many bits one is taken, another one in each block, unless all are asked for.
const STRIDE: usize = 251;

fn bits(block: usize) -> impl Iterator<Item = (usize, u8)> {
    let is_all = std::env::var("UTHIN_FSCK_FLIPS").is_ok_and(|which| which == "all");
    let stride = if is_all { 1 } else { STRIDE };
    (block % stride..4096 * 8).step_by(stride).map(|bit| (bit / 8, 1 << (bit % 8)))
}

/// The pool on a disk, to be changed in place.
struct Flipped {
    image: Image,
    disk: MemoryDisk,
}

impl Flipped {
    fn new(image: Image) -> Self {
        let disk = MemoryDisk::from_bytes(image.bytes());
        Flipped { image, disk }
    }

    fn outcome(&self, number: usize, block: &Block) -> Result<Report> {
        let put = |block: &Block| self.disk.write_at(number as u64 * 4096, &block.0).unwrap();
        put(block);
        let outcome = check(&self.disk, &CheckOptions::default());
        put(&self.image.blocks[number]);
        outcome
    }
}

/// In a block that is in use every flip is told of; in one that is not, none changes what is told.
#[test]
fn every_flip_is_found_or_in_a_block_that_nobody_uses() {
    for image in [small::pool(), small::with_metadata_snapshot()] {
        let used = image.used_blocks();
        let before = image.check().unwrap();
        let pool = Flipped::new(image);
        let (mut found, mut harmless) = (0, 0);
        for number in 0..pool.image.blocks.len() {
            let is_used = used.contains(&(number as u64));
            for (byte, mask) in bits(number) {
                let mut block = pool.image.blocks[number].clone();
                block.0[byte] ^= mask;
                match pool.outcome(number, &block) {
                    Err(_) => assert!(is_used && number == 0, "block {number}, byte {byte}"),
                    Ok(report) if is_used => {
                        assert_eq!(report.verdict, Verdict::Damage, "block {number}, byte {byte}, {mask:#x}");
                        found += 1;
                    }
                    Ok(report) => {
                        assert_eq!(report, before, "block {number}, byte {byte}");
                        harmless += 1;
                    }
                }
            }
        }
        assert!(found > 2000 && harmless > 1500, "{found} {harmless}");
    }
}

/// What of a block a check cannot judge, and why a change there does no harm, or cannot be known.
fn free_bytes(image: &Image, number: u64) -> Vec<(std::ops::Range<usize>, &'static str)> {
    let block = &image.blocks[number as usize];
    match block.kind().unwrap() {
        BlockKind::Superblock if number > 0 => vec![
            (0..8, "the checksum and flags, which only the live one's mean something"),
            (16..32, "uuid: nothing reads it"),
            (44..48, "its clock, ahead of all that it maps"),
            (48..56, "transaction id: a number of whoever uses the pool"),
            (64..320, "a metadata snapshot has no space maps: nothing reads them"),
            (336..340, "size of a data block: that of the live superblock counts"),
            (344..360, "as in the live one"),
            (364..4096, "behind the last field"),
        ],
        BlockKind::Superblock => vec![
            (0..4, "the checksum"),
            (4..8, "flags: needs_check is told; others mean nothing"),
            (16..32, "uuid: nothing reads it"),
            (44..48, "the pool's clock, ahead of all that is mapped: the next snapshot's time is later"),
            (48..56, "transaction id: a number of whoever uses the pool"),
            (
                64..66,
                "number of data blocks, if it fits bitmaps and mappings: the data device knows, and is asked at opening",
            ),
            (64 + 32..64 + 128, "behind the root of the data space map"),
            (192..194, "number of metadata blocks, if it fits bitmap and trees: the device may be larger"),
            (192 + 32..192 + 128, "behind the root of the metadata space map"),
            (336..340, "size of a data block: of those that can be, which one, only the data know"),
            (344..352, "metadata blocks at the time of the format: out of date after the first growth"),
            (352..360, "features that may be ignored, which is told"),
            (364..4096, "behind the last field, which is told"),
        ],
        BlockKind::Index => {
            let entries =
                image.superblock().metadata_space_map.total_blocks.get().div_ceil(BITMAP_ENTRIES as u64);
            vec![
                (0..4, "the checksum"),
                (4..8, "padding"),
                (16 + 12..16 + 16, "where to begin looking for a free block: too low costs time only"),
                (16 + 16 * entries as usize..4096, "entries for metadata that are not there, which is told"),
            ]
        }
        BlockKind::Bitmap => vec![(0..4, "the checksum"), (4..8, "padding")],
        BlockKind::Node => {
            let header = NodeHeader::decode(block);
            let (entries, room) = (header.entries.get() as usize, header.max_entries.get() as usize);
            let (size, values) = (header.value_size.get() as usize, 32 + 8 * room);
            let mut free = vec![
                (0..4, "the checksum"),
                (28..32, "padding"),
                (32 + 8 * entries..values, "keys past the last entry"),
                (values + size * entries..4096, "values past the last entry"),
            ];
            match (header.flags.get(), size) {
                // A tree with the volumes, or with mappings, whose keys may be others.
                (_, 8) => free.push((
                    32..32 + 8 * entries,
                    "keys: an order that can be, which one, only the data know",
                )),
                (_, 24) => (0..entries).for_each(|entry| {
                    let at = values + 24 * entry;
                    free.push((at + 8..at + 16, "transaction id at creation: for the user"));
                    free.push((at + 16..at + 24, "times up to the pool's: for the user"));
                }),
                (_, 16) => (0..entries).for_each(|entry| {
                    let at = values + 16 * entry;
                    free.push((
                        at + 12..at + 16,
                        "where to begin looking for a free block: too low costs time only",
                    ));
                }),
                _ => {}
            }
            if header.flags.get() == 2 && size == 8 {
                (0..entries).for_each(|entry| {
                    let at = values + 8 * entry;
                    free.push((
                        at..at + 3,
                        "time of a mapping, up to the pool's: which one, only history knows",
                    ));
                });
            }
            free
        }
    }
}

/// With the checksum mended only what the format leaves free goes unnoticed.
#[test]
fn every_flip_under_a_mended_checksum_is_found_or_of_bytes_that_are_free() {
    let pool = Flipped::new(small::with_metadata_snapshot());
    let (mut unnoticed, mut harmful) = (0, Vec::new());
    for number in pool.image.used_blocks() {
        let kind = pool.image.blocks[number as usize].kind().unwrap();
        let free = free_bytes(&pool.image, number);
        for (byte, mask) in bits(number as usize) {
            let mut block = pool.image.blocks[number as usize].clone();
            block.0[byte] ^= mask;
            let checksum = crate::checksum::of_block(&block.0, kind);
            block.0[..4].copy_from_slice(&checksum.to_le_bytes());
            let is_found = pool
                .outcome(number as usize, &block)
                .map_or(true, |report| report.verdict != Verdict::Clean || !report.findings.is_empty());
            if !is_found {
                match free.iter().any(|(bytes, _)| bytes.contains(&byte)) {
                    true => unnoticed += 1,
                    false => harmful.push(format!("block {number} ({kind:?}), byte {byte}, {mask:#x}")),
                }
            }
        }
    }
    assert!(harmful.is_empty(), "{harmful:#?}");
    assert!(unnoticed > 300, "{unnoticed}");
}

#[test]
fn a_metadata_snapshot_that_names_a_journal_is_damaged() {
    let pool = Flipped::new(small::with_metadata_snapshot());
    let number = pool.image.superblock().held_root;
    let mut block = pool.image.blocks[number as usize].clone();
    block.0[363] ^= 0x40; // the feature, the highest bit but one
    let checksum = crate::checksum::of_block(&block.0, BlockKind::Superblock);
    block.0[..4].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(pool.outcome(number as usize, &block).unwrap().verdict, Verdict::Damage);
}
