//! Power cuts and failing disks: after each the pool is as it was before a commit or as it was after it, whole.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod common;

use common::disks::TornDisk;
use common::{Random, check, fixture, oracle};
use std::collections::BTreeMap;
use uthin::disk::{MemoryDisk, flush_data};
use uthin::error::ErrorKind;
use uthin::metadata::{Access, Geometry, Metadata};
use uthin::units::{BlockSize, DataBlock, Mapping, TransactionId, VirtualBlock, VolumeId};

type Contents = BTreeMap<u64, Vec<(u64, Mapping)>>;

fn id(raw: u64) -> VolumeId {
    VolumeId::new(raw).unwrap()
}

fn contents(bytes: &[u8]) -> (u64, Contents) {
    let pool = check::check(bytes);
    let volumes = pool.volumes.into_iter().map(|(volume, checked)| (volume, checked.mappings)).collect();
    (pool.superblock.transaction_id.0, volumes)
}

/// A pool with two volumes that share, and holes.
fn prepared() -> Vec<u8> {
    let disk = MemoryDisk::zeroed(300 * 4096);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 40_000 };
    let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
    metadata.create_volume(id(1)).unwrap();
    map(&mut metadata, 1, (0..1500).map(|i| i * 3));
    metadata.snapshot(id(1), id(2)).unwrap();
    metadata.commit(flush_data(&disk).unwrap()).unwrap();
    map(&mut metadata, 2, (0..300).map(|i| i * 7));
    metadata.commit(flush_data(&disk).unwrap()).unwrap();
    disk.to_bytes()
}

fn map<D: uthin::disk::Disk>(metadata: &mut Metadata<D>, volume: u64, blocks: impl Iterator<Item = u64>) {
    for block in blocks {
        let reserved = metadata.reserve_block(None).unwrap();
        metadata.map(id(volume), VirtualBlock(block), reserved);
    }
}

/// A transaction that does a bit of everything.
fn transaction<D: uthin::disk::Disk>(metadata: &mut Metadata<D>) {
    map(metadata, 1, 2000..2100);
    metadata.unmap_range(id(2), 100..900, u64::MAX).unwrap();
    metadata.snapshot(id(2), id(3)).unwrap();
    map(metadata, 3, 0..50);
    metadata.create_volume(id(4)).unwrap();
    metadata.set_transaction_id(TransactionId(0), TransactionId(9)).unwrap();
}

#[test]
fn a_power_cut_at_every_write_of_a_commit_leaves_the_old_state_or_the_new() {
    let start = prepared();
    let old = contents(&start);
    let disk = TornDisk::from_bytes(start.clone());
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    let opening = disk.operations();
    transaction(&mut metadata);
    metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    let new = contents(&disk.current_bytes());
    assert_ne!(old, new);
    let operations = disk.operations() - opening;
    assert!(operations >= 5, "blocks, flush, superblock, flush: {operations}");

    let mut random = Random::new(7);
    let (mut olds, mut news) = (0, 0);
    for cut_at in 0..=operations {
        for torn in 0..40 {
            let disk = TornDisk::from_bytes(start.clone());
            let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
            transaction(&mut metadata);
            disk.fail_after(cut_at);
            let result = metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap());
            assert_eq!(result.is_ok(), cut_at >= operations, "{cut_at}");
            // The cut comes with the disk's next operation: whatever was not flushed may be kept, lost, or torn.
            let bytes = disk.after_power_cut(&mut || match torn {
                0 => false,
                1 => true,
                _ => random.one_in(2),
            });
            let found = contents(&bytes);
            assert!(found == old || found == new, "cut at {cut_at}: neither the old state nor the new");
            olds += u32::from(found == old);
            news += u32::from(found == new);
            if cut_at == operations {
                assert!(found == new, "an acknowledged commit is durable");
            }
            // What is found can be gone on with.
            let mut again = Metadata::open(MemoryDisk::from_bytes(bytes.clone()), Access::ReadWrite).unwrap();
            map(&mut again, 1, 5000..5010);
            again.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
        }
    }
    assert!(olds > 50 && news > 50, "{olds} times the old state, {news} times the new");
}

#[test]
fn formatting_is_all_or_nothing() {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 100_000 };
    let old = prepared();
    let whole = TornDisk::from_bytes(old.clone());
    Metadata::format(whole.clone(), geometry).unwrap();
    let mut random = Random::new(3);
    for cut_at in 0..whole.operations() {
        for _ in 0..20 {
            let disk = TornDisk::from_bytes(old.clone());
            disk.fail_after(cut_at);
            assert!(Metadata::format(disk.clone(), geometry).is_err());
            let bytes = disk.after_power_cut(&mut || random.one_in(2));
            match Metadata::open(MemoryDisk::from_bytes(bytes.clone()), Access::ReadWrite) {
                Err(error) => assert!(error.message().contains("not formatted"), "{error}"),
                Ok(metadata) => {
                    check::check(&bytes);
                    let blocks = metadata.geometry().data_blocks;
                    assert!(
                        blocks == 100_000 || cut_at <= 1,
                        "the old pool is gone once the new one is written"
                    );
                }
            }
        }
    }
}

#[test]
fn after_a_failed_write_abort_goes_back_and_work_goes_on() {
    let start = prepared();
    let old = contents(&start);
    let disk = TornDisk::from_bytes(start);
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    transaction(&mut metadata);
    disk.fail_after(1);
    let error = metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.message().contains("torn"), "the disk is named: {error}");
    // Fail stop: nothing works, not even reading.
    assert_eq!(metadata.details(id(1)).unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(metadata.create_volume(id(7)).unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::Failed);
    let again = metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Failed);
    disk.heal();
    metadata.abort().unwrap();
    assert!(!metadata.is_dirty());
    assert_eq!(metadata.transaction_id(), TransactionId(0));
    assert_eq!(metadata.details(id(3)).unwrap(), None);
    transaction(&mut metadata);
    metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    let new = contents(&disk.current_bytes());
    assert!(new != old && new.0 == 9);
    oracle::accepts(&disk.current_bytes());
}

#[test]
fn after_a_failed_flush_or_superblock_only_reopening_helps() {
    let disk = TornDisk::from_bytes(prepared());
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    let opening = disk.operations();
    transaction(&mut metadata);
    metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    let operations = disk.operations() - opening;
    // The last three operations: flush, superblock, flush.
    for from_end in 1..=3 {
        let disk = TornDisk::from_bytes(prepared());
        let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
        transaction(&mut metadata);
        disk.fail_after(operations - from_end);
        let error = metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        disk.heal();
        let refused = metadata.abort().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Failed);
        assert!(refused.next_step().unwrap().contains("reopen"));
        assert_eq!(metadata.details(id(1)).unwrap_err().kind(), ErrorKind::Failed);
        Metadata::open(disk, Access::ReadWrite).unwrap();
    }
}

#[test]
fn what_a_commit_freed_stays_withheld_until_it_is_made_reusable_even_over_an_abort() {
    let disk = MemoryDisk::zeroed(1000 * 4096);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 1000 };
    let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
    metadata.create_volume(id(1)).unwrap();
    map(&mut metadata, 1, 0..1000);
    assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::NoDataSpace);
    metadata.commit(flush_data(&disk).unwrap()).unwrap();
    metadata.unmap_range(id(1), 100..400, u64::MAX).unwrap();
    // Freed now is not free then: a crash would lead back to the state that uses it.
    assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::NoDataSpace);
    let freed = metadata.commit(flush_data(&disk).unwrap()).unwrap();
    assert!(matches!(&freed[..], [range] if *range == (100..400)), "coalesced: {freed:?}");
    assert_eq!(metadata.usage().data_allocated, 700);
    for _ in 0..2 {
        assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::NoDataSpace);
        metadata.create_volume(id(2)).unwrap();
        metadata.abort().unwrap();
    }
    metadata.make_reusable(200..202);
    let mut again = [metadata.reserve_block(None).unwrap(), metadata.reserve_block(None).unwrap()];
    again.sort();
    assert_eq!(again, [DataBlock(200), DataBlock(201)]);
    assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::NoDataSpace);
    // A block that came and went within a transaction is freed by its commit like any other.
    metadata.map(id(1), VirtualBlock(100), again[0]);
    metadata.map(id(1), VirtualBlock(100), again[1]);
    let freed = metadata.commit(flush_data(&disk).unwrap()).unwrap();
    assert!(matches!(&freed[..], [range] if *range == (200..201)), "{freed:?}");
    let reserved = metadata_after(&mut metadata, 200);
    metadata.release_block(reserved);
    assert_eq!(metadata.usage().data_allocated, 701);
}

/// The only block left once `freed` is made reusable.
fn metadata_after<D: uthin::disk::Disk>(metadata: &mut Metadata<D>, freed: u64) -> DataBlock {
    metadata.make_reusable(freed..freed + 1);
    let block = metadata.reserve_block(None).unwrap();
    assert_eq!(block, DataBlock(freed));
    block
}

#[test]
fn an_idle_commit_writes_nothing() {
    let disk = TornDisk::from_bytes(fixture("04-snap-diverged"));
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    metadata.volumes().unwrap();
    assert_eq!(metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap(), vec![]);
    let opening = 1; // a flush of what was there
    assert_eq!(disk.operations(), opening);
    metadata.set_transaction_id(TransactionId(7), TransactionId(8)).unwrap();
    assert!(metadata.is_dirty());
    metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    assert_eq!(disk.operations(), opening + 2, "the superblock and a flush");
    assert_eq!(contents(&disk.current_bytes()).0, 8);
}
