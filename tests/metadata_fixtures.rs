//! Metadata written by the kernel, opened: it reads as `thin_dump` and the status line say, and what is done to it leaves it
//! sound.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use common::{Random, check, dump_of, fixture, fixture_names, pool_status_of};
use uthin::disk::{MemoryDisk, flush_data};
use uthin::error::ErrorKind;
use uthin::metadata::{Access, Metadata, Progress};
use uthin::units::{MetaBlock, VolumeId};

fn id(number: u64) -> VolumeId {
    VolumeId::new(number).expect("a small number")
}

#[test]
fn every_fixture_reads_as_described() {
    for name in fixture_names() {
        let disk = MemoryDisk::from_bytes(fixture(&name));
        let before = disk.to_bytes();
        let mut metadata = Metadata::open(disk.clone(), Access::ReadOnly).unwrap();
        let dump = dump_of(&name);
        assert_eq!(u64::from(metadata.time().0), dump.time, "{name}");
        assert_eq!(metadata.transaction_id().0, dump.transaction, "{name}");
        let geometry = metadata.geometry();
        assert_eq!(u64::from(geometry.block_size.sectors()), dump.data_block_sectors, "{name}");
        assert_eq!(geometry.data_blocks, dump.data_blocks, "{name}");

        let volumes = metadata.volumes().unwrap();
        let ids: Vec<_> = volumes.iter().map(|(volume, _)| volume.get()).collect();
        assert_eq!(ids, dump.volumes.keys().copied().collect::<Vec<_>>(), "{name}");
        for (volume, details) in volumes {
            let expected = &dump.volumes[&volume.get()];
            assert_eq!(details.mapped_blocks, expected.mapped_blocks, "{name} {volume}");
            assert_eq!(details.transaction_id.0, expected.transaction, "{name} {volume}");
            assert_eq!(u64::from(details.creation_time.0), expected.creation_time, "{name} {volume}");
            assert_eq!(u64::from(details.snapshotted_time.0), expected.snap_time, "{name} {volume}");
            let mut mappings = Vec::new();
            metadata
                .for_each_mapping(volume, 0..u64::MAX, &mut |block, mapping| {
                    mappings.push((block.0, mapping.block.0, u64::from(mapping.time.0)));
                })
                .unwrap();
            assert_eq!(mappings, expected.mappings, "{name} {volume}");
            let highest = expected.mappings.last().map(|(block, ..)| *block);
            assert_eq!(
                metadata.highest_mapped(volume).unwrap().map(|block| block.0),
                highest,
                "{name} {volume}"
            );
        }
        assert!(!metadata.is_dirty(), "{name}");
        assert_eq!(disk.to_bytes(), before, "{name}: reading writes nothing");
    }
}

#[test]
fn usage_is_what_the_kernel_says() {
    for name in fixture_names() {
        let metadata = Metadata::open(MemoryDisk::from_bytes(fixture(&name)), Access::ReadOnly).unwrap();
        let (usage, status) = (metadata.usage(), pool_status_of(&name));
        // The status of a crashed pool was taken while it ran, after the copy of the metadata.
        if !name.contains("crashed") {
            let used = usage.metadata_allocated + usage.metadata_reserve;
            assert_eq!(format!("{used}/{}", usage.metadata_total), status[1], "{name}");
            assert_eq!(format!("{}/{}", usage.data_allocated, usage.data_total), status[2], "{name}");
        }
        let held = metadata.held_root().map_or("-".to_owned(), |block| block.0.to_string());
        assert_eq!(held, status[3], "{name}");
        let pool = check::check(&fixture(&name));
        assert_eq!(usage.data_allocated, pool.superblock.data_space_map.allocated_blocks.get(), "{name}");
        assert_eq!(
            usage.metadata_allocated,
            pool.superblock.metadata_space_map.allocated_blocks.get(),
            "{name}"
        );
        let too_high = match name.as_str() {
            "14-crashed" => 15,
            "19-leaked" => 10,
            _ => 0,
        };
        assert_eq!(pool.data_counts_too_high.len(), too_high, "{name}");
    }
}

#[test]
fn needs_check_is_refused_for_writing() {
    let disk = MemoryDisk::from_bytes(fixture("10-needs-check"));
    let error = Metadata::open(disk, Access::ReadWrite).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsCheck);
}

/// Random work on a copy of every fixture; afterwards all is sound, and everything untouched is as it was.
#[test]
fn every_fixture_takes_changes_and_stays_sound() {
    for (seed, name) in fixture_names().into_iter().enumerate().filter(|(_, name)| name != "10-needs-check") {
        let before = check::check(&fixture(&name));
        let disk = MemoryDisk::from_bytes(fixture(&name));
        let data = MemoryDisk::zeroed(0);
        let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
        let mut random = Random::new(seed as u64);
        let mut volumes: Vec<VolumeId> = before.volumes.keys().map(|key| id(*key)).collect();
        for round in 0..6 {
            for _ in 0..40 {
                step(&mut metadata, &mut random, &mut volumes);
            }
            for range in metadata.commit(flush_data(&data).unwrap()).unwrap() {
                metadata.make_reusable(range);
            }
            let pool = check::check(&disk.to_bytes());
            assert_eq!(pool.data_counts_too_high, before.data_counts_too_high, "{name}, round {round}");
            assert_eq!(pool.superblock.held_root, before.superblock.held_root, "{name}");
            assert_eq!(
                metadata.usage().data_allocated,
                pool.superblock.data_space_map.allocated_blocks.get()
            );
        }
        let kept = &before.superblock;
        let after = check::check(&disk.to_bytes()).superblock;
        assert_eq!((kept.uuid, kept.flags, kept.compat_flags), (after.uuid, after.flags, after.compat_flags));
        assert_eq!(kept.metadata_blocks_at_format, after.metadata_blocks_at_format);
    }
}

fn step(metadata: &mut Metadata<MemoryDisk>, random: &mut Random, volumes: &mut Vec<VolumeId>) {
    let pick = |random: &mut Random| volumes.get(random.below(volumes.len().max(1) as u64) as usize).copied();
    match (random.below(12), pick(random)) {
        (0, _) => {
            let new = id(random.below(1 << 24));
            if !volumes.contains(&new) && metadata.create_volume(new).is_ok() {
                volumes.push(new);
            }
        }
        (1, Some(origin)) => {
            let new = id(random.below(1 << 24));
            if !volumes.contains(&new) && metadata.snapshot(origin, new).is_ok() {
                volumes.push(new);
            }
        }
        (2, Some(volume)) => {
            if let Ok(Progress::Done) = metadata.delete_volume(volume, 20) {
                volumes.retain(|other| *other != volume);
            }
        }
        (3..6, Some(volume)) => {
            let begin = random.below(60_000);
            let length = if random.one_in(3) { 5000 } else { 1 + random.below(300) };
            let _ = metadata.unmap_range(volume, begin..begin + length, 1000);
        }
        (_, Some(volume)) => {
            let begin = random.below(60_000);
            for block in begin..begin + 1 + random.below(40) {
                match metadata.reserve_block() {
                    Ok(reserved) if random.one_in(10) => metadata.release_block(reserved),
                    Ok(reserved) => {
                        let mapping = metadata.map(volume, uthin::units::VirtualBlock(block), reserved);
                        let found = metadata
                            .lookup(volume, uthin::units::VirtualBlock(block))
                            .expect("a readable map");
                        assert_eq!(found, Some(mapping));
                    }
                    Err(error) => {
                        let full = [ErrorKind::NoDataSpace, ErrorKind::NoMetadataSpace];
                        assert!(full.contains(&error.kind()), "{error}");
                        break;
                    }
                }
            }
        }
        (_, None) => {}
    }
}

#[test]
fn a_fresh_pool_takes_as_many_blocks_as_the_kernels() {
    let geometry =
        uthin::metadata::Geometry { block_size: uthin::units::BlockSize::MIN, data_blocks: 1_000_000 };
    let disk = MemoryDisk::zeroed(1024 * 4096);
    let metadata = Metadata::format(disk.clone(), geometry).unwrap();
    assert_eq!(metadata.usage().metadata_allocated, 70);
    let (ours, kernels) =
        (check::check(&disk.to_bytes()).superblock, check::check(&fixture("01-empty")).superblock);
    assert_eq!(ours.metadata_blocks_at_format, kernels.metadata_blocks_at_format);
    assert_eq!(ours.data_space_map.total_blocks, kernels.data_space_map.total_blocks);
    assert_eq!((ours.time, ours.transaction_id, ours.held_root), (kernels.time, kernels.transaction_id, 0));
    assert_eq!(ours.uuid, kernels.uuid);
    assert_ne!(ours.mapping_root, MetaBlock(0));
}
