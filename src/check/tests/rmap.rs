//! The way back from data to volumes: complete, whatever fits into memory at once, and no block read for every volume anew.

use super::*;
use crate::check::dump::{Plan, State, Text, plan, superblock_of};
use crate::check::forest::{Forest, Refuse, read_leaves};
use crate::check::source::Source;
use crate::check::tools::rmap::rmap_in_turns;
use crate::format::MappingRecord;
use std::ops::Range;
use std::slice::from_ref;
use std::sync::Mutex;

/// A device that counts how often each block is read.
struct Counting {
    disk: MemoryDisk,
    reads: Mutex<Vec<u32>>,
}

impl Counting {
    fn new(image: &Image) -> Self {
        Counting {
            disk: MemoryDisk::from_bytes(image.bytes()),
            reads: Mutex::new(vec![0; image.blocks.len()]),
        }
    }
}

impl Disk for Counting {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let first = (offset_bytes / 4096) as usize;
        self.reads.lock().unwrap()[first..first + buffer.len() / 4096]
            .iter_mut()
            .for_each(|count| *count += 1);
        self.disk.read_at(offset_bytes, buffer)
    }
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> std::io::Result<()> {
        self.disk.grow(size_bytes)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.disk.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.disk.flush()
    }
    fn discard(&self, offset_bytes: u64, length: u64) -> std::io::Result<()> {
        self.disk.discard(offset_bytes, length)
    }
    fn name(&self) -> String {
        self.disk.name()
    }
}

fn plan_of(source: Source<'_>) -> Plan {
    plan(source, &superblock_of(source, State::Live).unwrap()).unwrap()
}

fn found(source: Source<'_>, plan: &Plan, regions: &[Range<u64>], lines: usize) -> String {
    let mut out = Vec::new();
    rmap_in_turns(source, plan, regions, lines, &mut Text::new(&mut out)).unwrap();
    String::from_utf8(out).unwrap()
}

/// The same, volume by volume and mapping by mapping.
fn expected(source: Source<'_>, plan: &Plan, regions: &[Range<u64>]) -> String {
    let mut runs: Vec<[u64; 4]> = Vec::new();
    for volume in &plan.volumes {
        let (id, mut leaves, own) = (volume.record.id.get(), Vec::new(), runs.len());
        Forest::<MappingRecord>::new(source).leaves(volume.root, &mut Refuse, &mut leaves).unwrap();
        read_leaves::<MappingRecord>(source, &leaves, &mut Refuse, &mut |_, entries| {
            for (key, record) in entries.iter() {
                let block = record.mapping().block.0;
                if !regions.iter().any(|region| region.contains(&block)) {
                    continue;
                }
                match runs[own..].last_mut() {
                    Some([data, length, _, begin]) if (*begin + *length, *data + *length) == (key, block) => {
                        *length += 1;
                    }
                    _ => runs.push([block, 1, id, key]),
                }
            }
            Ok(())
        })
        .unwrap();
    }
    runs.sort();
    let line = |[data, length, volume, begin]: &[u64; 4]| {
        format!("data {data}..{} -> thin({volume}) {begin}..{}\n", data + length, begin + length)
    };
    runs.iter().map(line).collect()
}

#[test]
fn a_leaf_is_not_read_for_every_volume_that_shares_it() {
    for image in [small::pool(), Image::fixture("05"), Image::fixture("06")] {
        let disk = Counting::new(&image);
        let source = Source::new(&disk);
        let plan = plan_of(source);
        disk.reads.lock().unwrap().fill(0);
        found(source, &plan, from_ref(&(0..u64::MAX)), 1 << 20);
        // Once to see how many levels a tree has, once for what is in it.
        assert_eq!(disk.reads.lock().unwrap().iter().max(), Some(&2));
    }
}

#[test]
fn the_way_back_is_the_same_in_however_many_turns() {
    for name in ["02", "04", "05", "07", "13", "17", "19", ""] {
        let image = if name.is_empty() { small::pool() } else { Image::fixture(name) };
        let disk = MemoryDisk::from_bytes(image.bytes());
        let source = Source::new(&disk);
        let plan = plan_of(source);
        let several = [900..1000, 17_000..17_003, 950..1300];
        for regions in [from_ref(&(0..u64::MAX)), &several, from_ref(&(3..4))] {
            let expected = expected(source, &plan, regions);
            let count = expected.lines().count();
            for lines in [1 << 20, count / 2, count / 9, 3] {
                if count / lines.max(1) > 300 {
                    continue; // so many turns take long
                }
                assert!(
                    found(source, &plan, regions, lines.max(1)) == expected,
                    "{name} {regions:?} {lines}"
                );
            }
        }
    }
}
