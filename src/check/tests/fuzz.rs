//! Mutated images through check, dump, repair and the smaller tools: no panic, no hang, and what a repair makes is sound.
//!
//! `UTHIN_FSCK_FUZZ=N` takes N images instead of a few hundred.

use super::*;
use crate::check::build::{Builder, Overrides};
use crate::check::dump::{Selection, State, XmlSink, dump, plan, superblock_of};
use crate::check::forest::{Collect, Refuse};
use crate::check::repair::{SaneSink, salvage};
use crate::check::restore::restore;
use crate::check::source::Source;
use crate::check::tools::explain::explain;
use crate::check::tools::list::taken;
use crate::check::tools::picture::cells;
use crate::error::ErrorKind;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

fn images() -> u64 {
    std::env::var("UTHIN_FSCK_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(300)
}

/// Numbers that lead somewhere.
fn telling_number(random: &mut SmallRng, blocks: u64) -> u64 {
    match random.random_range(0..7) {
        0 | 1 => random.random_range(0..blocks),
        2 => random.random_range(0..300),
        3 => u64::MAX - random.random_range(0..3),
        4 => 1 << random.random_range(0..64),
        5 => random.random_range(0..blocks) << 24,
        _ => random.random(),
    }
}

/// One change of a kind that disks, or people, make.
fn mutate(image: &mut Image, random: &mut SmallRng, used: &[u64]) {
    let number = used[random.random_range(0..used.len())];
    let other = random.random_range(0..image.blocks.len());
    let blocks = image.blocks.len() as u64;
    let block = &mut image.blocks[number as usize];
    let Some(kind) = block.kind() else { return };
    match random.random_range(0..8) {
        0 => block.0.fill(0),
        1 => block.0[random.random_range(0..4096)] ^= 1 << random.random_range(0..8),
        2 => image.blocks.swap(number as usize, other),
        3 => {
            let mut copy = image.blocks[other].clone();
            copy.seal(MetaBlock(number), kind);
            image.blocks[number as usize] = copy;
        }
        _ => {
            for _ in 0..random.random_range(1..6) {
                let near = random.random_range(0..2) == 0;
                let offset = random.random_range(4..if near { 420 } else { 4088 }) / 4 * 4;
                let value = telling_number(random, blocks);
                block.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            }
            block.seal(MetaBlock(number), kind);
        }
    }
}

/// All tools over one image. Answers whether a repair went through.
fn all_tools(image: &Image) -> bool {
    let disk = MemoryDisk::from_bytes(image.bytes());
    drop(check(&disk, &CheckOptions::default()));
    let source = Source::new(&disk);
    if let Ok(plan) = superblock_of(source, State::Live).and_then(|superblock| plan(source, &superblock)) {
        let mut xml = Vec::new();
        drop(dump(source, &plan, &Selection::default(), &mut Refuse, &mut XmlSink::new(&mut xml)));
        drop(taken(source, &plan));
        drop(cells(source, &plan, 100));
    }
    drop(explain(source, MetaBlock(image.blocks.len() as u64 / 2)));
    let overrides = Overrides { data_block_sectors: Some(128), ..Overrides::default() };
    let Ok(salvage) = salvage(source, &overrides, None, false) else { return false };
    let output = MemoryDisk::zeroed(32 << 20);
    let mut builder = Builder::new(&output, overrides);
    let built = dump(
        source,
        &salvage.plan,
        &Selection::default(),
        &mut Collect::default(),
        &mut SaneSink::new(&mut builder),
    );
    match built {
        Ok(()) => {
            let report = check(&output, &CheckOptions::default()).expect("a repair makes metadata");
            assert!(report.is_clean(), "{}", report.to_lines());
            let promised: u64 = salvage.plan.volumes.iter().map(|volume| volume.record.mapped_blocks).sum();
            let saved: u64 = report.volumes.iter().map(|volume| volume.mapped_blocks).sum();
            assert!(saved <= promised, "{saved} mappings of {promised}");
            true
        }
        // More data blocks than 32 MiB of metadata can count.
        Err(error) if error.kind() == ErrorKind::NoMetadataSpace => false,
        Err(error) => panic!("a repair that was planned must go through: {error}"),
    }
}

#[test]
fn mutated_images_go_through_all_tools() {
    let names = ["04", "09", "11", "15", "17", "18", "19"];
    let originals: Vec<_> = names.iter().map(|name| Image::fixture(name)).collect();
    let used: Vec<_> = originals.iter().map(Image::used_blocks).collect();
    let mut repaired = 0;
    for seed in 0..images() {
        let mut random = SmallRng::seed_from_u64(seed);
        let which = random.random_range(0..names.len());
        let mut image = originals[which].clone();
        for _ in 0..random.random_range(1..12) {
            mutate(&mut image, &mut random, &used[which]);
        }
        if random.random_range(0..8) == 0 {
            image.blocks.truncate(random.random_range(1..image.blocks.len()));
        }
        repaired += u64::from(all_tools(&image));
    }
    assert!(repaired * 2 > images(), "most can be repaired: {repaired}");
}

#[test]
fn mangled_xml_restores_to_something_sound_or_not_at_all() {
    let disk = MemoryDisk::from_bytes(Image::fixture("15").bytes());
    let source = Source::new(&disk);
    let plan = plan(source, &superblock_of(source, State::Live).unwrap()).unwrap();
    let mut xml = Vec::new();
    dump(source, &plan, &Selection::default(), &mut Refuse, &mut XmlSink::new(&mut xml)).unwrap();
    let mut random = SmallRng::seed_from_u64(8);
    for _ in 0..images() / 3 {
        let mut mangled = xml.clone();
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(0..mangled.len());
            match random.random_range(0..4) {
                0 => mangled[at] = b"<>\"/=0123456789 \n&"[random.random_range(0..18)],
                1 => mangled[at] = random.random(),
                2 => drop(mangled.drain(at..(at + random.random_range(1..200)).min(mangled.len()))),
                _ => mangled.truncate(at.max(1)),
            }
            if mangled.is_empty() {
                mangled.push(b' ');
            }
        }
        let output = MemoryDisk::zeroed(4 << 20);
        let mut builder = Builder::new(&output, Overrides::default());
        if restore(&mut &mangled[..], &mut builder).is_ok() {
            let report = check(&output, &CheckOptions::default()).unwrap();
            assert!(report.is_clean(), "{}", report.to_lines());
        }
    }
    let mut noise = vec![0; 5000];
    random.fill_bytes(&mut noise);
    let output = MemoryDisk::zeroed(1 << 20);
    assert!(restore(&mut &noise[..], &mut Builder::new(&output, Overrides::default())).is_err());
}
