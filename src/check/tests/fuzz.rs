//! Mutated images through check, dump, repair and the smaller tools: no panic, no hang, and what a repair makes is sound.
//!
//! Most images are of a few dozen blocks, so that a machine gets through a million of them; some are what the kernel wrote.
//!
//! `UTHIN_FSCK_FUZZ=N` takes the first N seeds, `UTHIN_FSCK_FUZZ=FIRST..END` those, instead of a few hundred.

use super::*;
use crate::check::build::{Builder, Overrides};
use crate::check::dump::{Selection, State, Text, XmlSink, dump, plan, superblock_of};
use crate::check::forest::{Collect, Refuse};
use crate::check::repair::{SaneSink, salvage};
use crate::check::restore::restore;
use crate::check::source::Source;
use crate::check::tools::explain::explain;
use crate::check::tools::list::taken;
use crate::check::tools::picture::cells;
use crate::check::tools::rmap::rmap_in_turns;
use crate::error::ErrorKind;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::ops::Range;
use std::time::{Duration, Instant};

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("UTHIN_FSCK_FUZZ") else { return 0..400 };
    let (first, end) = asked.split_once("..").unwrap_or(("0", &asked));
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{asked}: no number of images"));
    number(first)..number(end)
}

/// What a process may have, whatever image it is given: the test's own images included.
const MEMORY_LIMIT_KIB: u64 = 1 << 20;
/// No image of this size may take longer, on the slowest machine.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// One image in so many is of a fixture.
const FIXTURES_ONE_IN: u64 = 50;

/// The most memory that the process has had.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
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
    let report = check(&disk, &CheckOptions::default());
    let in_order = look_in_order(&disk, &CheckOptions::default(), false).map(|looked| looked.report);
    match (report, in_order) {
        (Ok(report), Ok(in_order)) => assert_eq!(report, in_order, "judging ahead changes nothing"),
        (Err(error), Err(in_order)) => assert_eq!(error.to_string(), in_order.to_string()),
        (report, in_order) => panic!("{report:?}, but in order {in_order:?}"),
    }
    let source = Source::new(&disk);
    if let Ok(plan) = superblock_of(source, State::Live).and_then(|superblock| plan(source, &superblock)) {
        let mut xml = Vec::new();
        drop(dump(source, &plan, &Selection::default(), &mut Refuse, &mut XmlSink::new(&mut xml)));
        drop(taken(source, &plan, plan.pool.data_blocks));
        drop(cells(source, &plan, 100));
        let mut lines = Vec::new();
        drop(rmap_in_turns(source, &plan, &[0..500, 800..u64::MAX], 100, &mut Text::new(&mut lines)));
    }
    drop(explain(source, MetaBlock(image.blocks.len() as u64 / 2)));
    let overrides = Overrides { data_block_sectors: Some(128), ..Overrides::default() };
    let Ok(salvage) = salvage(source, &overrides, None, false) else { return false };
    let output = MemoryDisk::zeroed((image.blocks.len() as u64 + 200) * 4096);
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
        // More data blocks than metadata of this size can count.
        Err(error) if error.kind() == ErrorKind::NoMetadataSpace => false,
        Err(error) => panic!("a repair that was planned must go through: {error}"),
    }
}

/// A superblock that has fewer blocks than the disk: what lies behind them is nobody's, however sound.
#[test]
fn a_pool_smaller_than_its_disk_goes_through_all_tools() {
    let whole = small::with_metadata_snapshot();
    for blocks in 1..whole.blocks.len() as u64 {
        let mut image = whole.clone();
        image.put_u64(0, 192, blocks);
        all_tools(&image);
    }
}

#[test]
fn mutated_images_go_through_all_tools() {
    let small = [small::pool(), small::with_metadata_snapshot(), small::pool(), small::deep()];
    let names = ["04", "09", "11", "15", "17", "18", "19"];
    let fixtures = names.iter().map(|name| Image::fixture(name));
    let originals: Vec<_> = small.into_iter().chain(fixtures).collect();
    let used: Vec<_> = originals.iter().map(Image::used_blocks).collect();
    let (mut repaired, mut slowest) = (0, (Duration::ZERO, 0));
    for seed in seeds() {
        let begin = Instant::now();
        let mut random = SmallRng::seed_from_u64(seed);
        let which = match seed % FIXTURES_ONE_IN {
            0 => random.random_range(4..originals.len()),
            1 | 2 => 3,
            _ => random.random_range(0..3),
        };
        let mut image = originals[which].clone();
        for _ in 0..random.random_range(1..12) {
            mutate(&mut image, &mut random, &used[which]);
        }
        if random.random_range(0..8) == 0 {
            image.blocks.truncate(random.random_range(1..image.blocks.len()));
        }
        repaired += u64::from(all_tools(&image));
        slowest = slowest.max((begin.elapsed(), seed));
        assert!(slowest.0 < TIME_LIMIT, "seed {seed} took {:?}", slowest.0);
    }
    let images = seeds().end - seeds().start;
    let peak = peak_memory_kib();
    eprintln!("{images} images, {repaired} repaired; slowest {slowest:?}; peak {peak} KiB");
    assert!(repaired * 3 > images, "many can be repaired: {repaired}");
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
}

#[test]
fn mangled_xml_restores_to_something_sound_or_not_at_all() {
    let disk = MemoryDisk::from_bytes(Image::fixture("15").bytes());
    let source = Source::new(&disk);
    let plan = plan(source, &superblock_of(source, State::Live).unwrap()).unwrap();
    let mut xml = Vec::new();
    dump(source, &plan, &Selection::default(), &mut Refuse, &mut XmlSink::new(&mut xml)).unwrap();
    let mut random = SmallRng::seed_from_u64(8);
    for _ in 0..(seeds().end - seeds().start) / 3 {
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
