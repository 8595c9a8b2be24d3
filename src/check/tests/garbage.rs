//! Any bytes: bit flips are found, and nothing makes the checker panic or run away.

use super::*;
use crate::checksum::BlockKind;
use crate::error::ErrorKind;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

fn is_reported(image: &Image) -> bool {
    image.check().map_or(true, |report| report.verdict == Verdict::Damage)
}

#[test]
fn a_flipped_bit_in_any_block_in_use_is_found() {
    let mut random = SmallRng::seed_from_u64(1);
    for name in ["10", "19", "18"] {
        let mut image = Image::fixture(name);
        let used = image.used_blocks();
        assert!(used.len() >= 16);
        for block in used {
            for byte in [0, 4, 8, 16, 20, 24, 32, 4095].into_iter().chain([random.random_range(0..4096)]) {
                let bit = 1_u8 << random.random_range(0..8);
                image.blocks[block as usize].0[byte] ^= bit;
                assert!(is_reported(&image), "{name}: block {block}, byte {byte}, bit {bit:#x}");
                image.blocks[block as usize].0[byte] ^= bit;
            }
        }
        assert!(!is_reported(&image));
    }
}

#[test]
fn what_is_not_in_use_does_not_matter() {
    let mut image = Image::fixture("10");
    let used = image.used_blocks();
    let free: Vec<_> = (0..image.blocks.len() as u64).filter(|block| !used.contains(block)).collect();
    for block in free {
        image.blocks[block as usize].0.fill(0xa5);
    }
    assert!(image.check().unwrap().is_clean());
}

/// Numbers that lead somewhere: small ones, large ones, and those at the edges.
fn telling_number(random: &mut SmallRng, blocks: u64) -> u64 {
    match random.random_range(0..6) {
        0 => random.random_range(0..blocks),
        1 => random.random_range(0..300),
        2 => u64::MAX - random.random_range(0..3),
        3 => 1 << random.random_range(0..64),
        4 => random.random_range(0..blocks) << 24,
        _ => random.random(),
    }
}

/// Sound checksums and numbers over nonsense: the walk must end whatever points wherever.
#[test]
fn nonsense_with_sound_checksums_neither_panics_nor_runs_away() {
    let mut random = SmallRng::seed_from_u64(2);
    for name in ["11", "15", "17", "19"] {
        let original = Image::fixture(name);
        let used = original.used_blocks();
        for _ in 0..400 {
            let mut image = original.clone();
            for _ in 0..random.random_range(1..20) {
                let number = used[random.random_range(0..used.len())];
                let block = &mut image.blocks[number as usize];
                let kind = block.kind().expect("it was sealed");
                let first = if random.random_range(0..4) == 0 { 4 } else { 16 };
                for _ in 0..random.random_range(1..10) {
                    let near_the_start = random.random_range(0..2) == 0;
                    let offset = random.random_range(first..if near_the_start { 420 } else { 4088 }) / 4 * 4;
                    let value = telling_number(&mut random, original.blocks.len() as u64);
                    block.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
                }
                block.seal(MetaBlock(number), kind);
            }
            drop(image.check());
        }
    }
}

/// Nodes that all point at each other: as many paths as there are ways through, each node still read once.
#[test]
fn a_web_of_nodes_ends() {
    const NODES: u64 = 200;
    let mut image = Image::fixture("11");
    let mut random = SmallRng::seed_from_u64(3);
    for round in 0..20 {
        for number in 1..=NODES {
            let mut block = Block::ZERO;
            let entries = random.random_range(1..=252_u32);
            let words = [1, 0, 0, entries, 252, 8];
            for (offset, word) in [4, 8, 12, 16, 20, 24].into_iter().zip(words) {
                block.0[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(word));
            }
            for index in 0..entries as usize {
                let child = if round % 2 == 0 { number % NODES + 1 } else { random.random_range(1..=NODES) };
                block.0[32 + 8 * index..][..8].copy_from_slice(&(index as u64).to_le_bytes());
                block.0[2048 + 8 * index..][..8].copy_from_slice(&child.to_le_bytes());
            }
            block.seal(MetaBlock(number), BlockKind::Node);
            image.blocks[number as usize] = block;
        }
        image.put_u64(0, 320, 1);
        assert!(is_reported(&image));
    }
}

#[test]
fn random_bytes_are_not_metadata() {
    let mut random = SmallRng::seed_from_u64(4);
    for blocks in [1, 2, 64] {
        let mut bytes = vec![0; blocks * 4096];
        random.fill_bytes(&mut bytes);
        let error = check(&MemoryDisk::from_bytes(bytes), &CheckOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[test]
fn what_is_given_instead_of_metadata_is_recognised() {
    let cases: [(&[u8], &str); 5] = [
        (&[], "too few"),
        (&[7; 4095], "4095 bytes are too few"),
        (&[0; 8192], "all zeros"),
        (b"<superblock uuid=\"\" time=\"0\">", "XML dump"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ];
    for (beginning, words) in cases {
        let mut bytes = beginning.to_vec();
        if bytes.len() > 4 && bytes.len() < 100 || bytes.len() == 4 {
            bytes.resize(8192, b' ');
        }
        let error = check(&MemoryDisk::from_bytes(bytes), &CheckOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(words), "{error}");
    }
}
