//! Small pools with everything that a pool can have, for tests that look at a great many of them.

use super::*;
use crate::check::build::{Builder, Overrides};
use crate::check::restore::restore;
use crate::format::SpaceMapRoot;
use std::fmt::Write;
use zerocopy::FromZeros;

/// Blocks of the device of a small pool.
const BLOCKS: u64 = 40;

/// A pool with leaves that volumes share, trees of one and two levels, an empty volume, blocks with more than three references,
/// and two bitmaps of data.
pub(super) fn pool() -> Image {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"3\" transaction=\"6\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"20000\">",
    );
    for (name, begin, data_begin) in [("a", 0, 0), ("b", 252, 16_200)] {
        write!(
            xml,
            "<def name=\"{name}\"><range_mapping origin_begin=\"{begin}\" data_begin=\"{data_begin}\" length=\"252\" time=\"1\"/></def>"
        )
        .unwrap();
    }
    for (volume, parts, own) in [(1, "ab", 100), (2, "ab", 90), (5, "a", 95), (8, "", 12), (9, "", 0)] {
        write!(
            xml,
            "<device dev_id=\"{volume}\" mapped_blocks=\"{}\" transaction=\"{volume}\" creation_time=\"2\" snap_time=\"3\">",
            252 * parts.len() + own
        )
        .unwrap();
        parts.chars().for_each(|part| write!(xml, "<ref name=\"{part}\"/>").unwrap());
        for index in 0..own {
            // The first ten are everybody's.
            let data = if index < 10 { 17_000 + index } else { 1000 + 1000 * volume + 3 * index };
            let begin = 600 + 2 * index;
            write!(xml, "<single_mapping origin_block=\"{begin}\" data_block=\"{data}\" time=\"2\"/>")
                .unwrap();
        }
        xml += "</device>";
    }
    xml += "</superblock>";
    built(&xml, BLOCKS)
}

/// The same with a metadata snapshot.
pub(super) fn with_metadata_snapshot() -> Image {
    let mut image = pool();
    let mut held = image.superblock();
    let number = MetaBlock(*image.used_blocks().last().unwrap() + 1);
    let mut live = held.clone();
    live.held_root = number.0;
    // As the kernel does it.
    (held.data_space_map, held.metadata_space_map) = (SpaceMapRoot::new_zeroed(), SpaceMapRoot::new_zeroed());
    image.blocks[number.0 as usize] = held.encode(number);
    image.blocks[0] = live.encode(MetaBlock::SUPERBLOCK);
    let disk = MemoryDisk::from_bytes(image.bytes());
    // It has references now that the space map does not know of.
    let mend = MendOptions { space_maps: true, ..MendOptions::default() };
    let (report, _) = check_and_mend(&disk, &CheckOptions::default(), mend).unwrap();
    assert!(report.is_clean(), "{}", report.to_lines());
    Image::of(&disk)
}

/// A pool with one volume whose tree has three levels.
pub(super) fn deep() -> Image {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"64000\">\
         <device dev_id=\"0\" mapped_blocks=\"63756\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">",
    );
    write!(xml, "<range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{}\" time=\"0\"/>", 253 * 252)
        .unwrap();
    xml += "</device></superblock>";
    built(&xml, 280)
}

fn built(xml: &str, blocks: u64) -> Image {
    let disk = MemoryDisk::zeroed(blocks * 4096);
    restore(&mut xml.as_bytes(), &mut Builder::new(&disk, Overrides::default())).unwrap();
    let image = Image::of(&disk);
    assert!(image.check().unwrap().is_clean());
    image
}

#[test]
fn small_pools_have_what_they_should() {
    let image = pool();
    assert!(image.superblock().data_space_map.total_blocks.get() > BITMAP_ENTRIES as u64);
    let large = image.superblock().data_space_map.large_counts_root.get();
    assert_eq!(image.entries_of(large), 10);
    let report = with_metadata_snapshot().check().unwrap();
    assert!(report.superblock.metadata_snapshot.is_some());
    let deep = deep();
    let middle = deep.child(deep.first_volume_root(), 0);
    assert_eq!(deep.u32_at(middle, 4), 1, "an internal node below the root");
}
