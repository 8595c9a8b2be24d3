//! Metadata written by the kernel, opened: it reads as `thin_dump` and the status line say, and what is done to it leaves it
//! sound.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod common;

use common::{check, dump_of, fixture, fixture_names, pool_status_of};
use uthin::checksum::BlockKind;
use uthin::disk::{MemoryDisk, flush_data};
use uthin::error::ErrorKind;
use uthin::format::{Block, Superblock};
use uthin::metadata::{Access, Geometry, Metadata};
use uthin::units::{BlockSize, MetaBlock, VolumeId};

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

/// What the superblock holds beyond what we know goes from commit to commit.
#[test]
fn what_is_not_ours_in_the_superblock_is_kept() {
    let mut bytes = fixture("12-grown");
    let mut block = Block::ZERO;
    block.0.copy_from_slice(&bytes[..4096]);
    // Flags but needs_check, uuid, padding of a space map root, compatible features, the tail.
    let foreign = [5, 7, 16, 31, 100, 191, 230, 352, 355, 364, 511, 4095];
    foreign.iter().for_each(|at| block.0[*at] = 0xa5);
    block.seal(MetaBlock::SUPERBLOCK, BlockKind::Superblock);
    bytes[..4096].copy_from_slice(&block.0);
    let disk = MemoryDisk::from_bytes(bytes);
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    metadata.create_volume(VolumeId::MAX).unwrap();
    metadata.commit(flush_data(&disk).unwrap()).unwrap();
    let after = disk.to_bytes();
    assert!(foreign.iter().all(|at| after[*at] == 0xa5));
    assert_ne!(after[..4096], block.0);
    let kept = Superblock::decode(&block).metadata_blocks_at_format;
    assert_eq!(check::check(&after).superblock.metadata_blocks_at_format, kept, "stale, and left so");
}

#[test]
fn a_fresh_pool_takes_as_many_blocks_as_the_kernels() {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 1_000_000 };
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
