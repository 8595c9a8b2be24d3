//! The keeper with a journal, and what a process finds that comes after it.

use super::tests::{ask, asker, fill, id, settle};
use super::*;
use crate::disk::MemoryDisk;
use crate::journal::{BootId, begin, recover};
use crate::metadata::{Access, Geometry};
use crate::units::{BlockSize, TransactionId};

const BOOT: BootId = BootId([1; 16]);

/// The disks of a pool.
struct Disks {
    metadata: MemoryDisk,
    data: MemoryDisk,
    journal: MemoryDisk,
    options: KeeperOptions,
}

impl Disks {
    /// A pool of so many data blocks, with the volume 0.
    fn new(data_blocks: u64) -> Disks {
        Disks::of(8 << 20, data_blocks, 64, SmallWrites::Copy)
    }

    /// The same with so much metadata, and so many blocks of the volume.
    fn of(metadata_bytes: u64, data_blocks: u64, volume_blocks: u64, small_writes: SmallWrites) -> Disks {
        let metadata = MemoryDisk::zeroed(metadata_bytes);
        let data = MemoryDisk::zeroed(data_blocks * BlockSize::MIN.bytes());
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
        let mut formatted = Metadata::format(metadata.clone(), geometry).unwrap();
        formatted.create_volume(id(0)).unwrap();
        formatted.commit(flush_data(&data).unwrap()).unwrap();
        let volume_sizes = HashMap::from([(id(0), volume_blocks * BlockSize::MIN.bytes())]);
        let options = KeeperOptions { volume_sizes, small_writes, ..KeeperOptions::default() };
        Disks { metadata, data, journal: MemoryDisk::zeroed(64 << 10), options }
    }

    /// As a daemon does it: what there is is brought in, and a journal begun.
    fn open(&self, number: u64) -> Result<Keeper<MemoryDisk, MemoryDisk>> {
        let mut metadata = Metadata::open(self.metadata.clone(), Access::ReadWrite)?;
        recover(&mut metadata, &self.data, Some(&self.journal), BOOT)?;
        let journal = begin(&mut metadata, &self.data, Arc::new(self.journal.clone()), number, BOOT)?;
        let mut keeper = Keeper::new(metadata, self.data.clone(), self.options.clone())?;
        keeper.use_journal(journal);
        Ok(keeper)
    }
}

fn write(keeper: &mut Keeper<MemoryDisk, MemoryDisk>, block: u64) -> DataBlock {
    let target = fill(keeper, 1, block);
    let published = ask(keeper, 1, Ask::Publish(id(0), VirtualBlock(block), target));
    assert_eq!(published, [(asker(1), Reply::Done)]);
    target
}

fn mapped(keeper: &mut Keeper<MemoryDisk, MemoryDisk>, block: u64) -> Option<DataBlock> {
    keeper.metadata.lookup(id(0), VirtualBlock(block)).unwrap().map(|mapping| mapping.block)
}

/// Published in the moment between the command and its commit.
#[test]
fn a_record_names_no_block_by_which_the_pool_is_not_durably_larger() {
    let disks = Disks::new(2);
    let mut keeper = disks.open(1).unwrap();
    let first = [write(&mut keeper, 0), write(&mut keeper, 1)];
    assert_eq!(ask(&mut keeper, 2, Ask::Fill(id(0), VirtualBlock(2))), [(asker(2), Reply::NoSpaceNow)]);
    let grow = Command::Grow { data_bytes: Some(4 * BlockSize::MIN.bytes()), metadata_bytes: None };
    keeper.command(7, grow, &mut Outbox::default());
    let target = write(&mut keeper, 2);
    assert!(!first.contains(&target) && target.0 >= 2);
    drop(keeper);
    let mut keeper = disks.open(2).unwrap();
    assert_eq!([0, 1, 2].map(|block| mapped(&mut keeper, block)), [first[0], first[1], target].map(Some));
}

#[test]
fn a_volume_that_has_just_come_is_durable_before_a_record_names_it() {
    let disks = Disks::new(8);
    let mut keeper = disks.open(1).unwrap();
    let step = IdStep { from: TransactionId(0), to: TransactionId(1) };
    let size_bytes = BlockSize::MIN.bytes();
    let create = Command::CreateVolume { volume: id(5), size_bytes, origin: None, step };
    keeper.command(7, create, &mut Outbox::default());
    let filled = ask(&mut keeper, 1, Ask::Fill(id(5), VirtualBlock(0)));
    let [(_, Reply::Fill { target, .. })] = filled[..] else { panic!("{filled:?}") };
    assert_eq!(ask(&mut keeper, 1, Ask::Publish(id(5), VirtualBlock(0), target)), [(asker(1), Reply::Done)]);
    drop(keeper);
    let mut keeper = disks.open(2).unwrap();
    let found = keeper.metadata.lookup(id(5), VirtualBlock(0)).unwrap();
    assert_eq!(found.map(|mapping| mapping.block), Some(target));
}

#[test]
fn a_flush_leaves_the_superblock_and_a_full_journal_does_not() {
    let disks = Disks::new(64);
    let mut keeper = disks.open(1).unwrap();
    let superblock = |disks: &Disks| disks.metadata.to_bytes()[..4096].to_vec();
    let before = superblock(&disks);
    for block in 0..10 {
        write(&mut keeper, block);
        assert_eq!(ask(&mut keeper, 3, Ask::Flush), []);
        assert_eq!(settle(&mut keeper), [(asker(3), Reply::Done)]);
    }
    assert_eq!(superblock(&disks), before, "no transaction");
    // Each flush takes a page, and there are 15.
    for block in 10..13 {
        write(&mut keeper, block);
        ask(&mut keeper, 3, Ask::Flush);
        assert_eq!(settle(&mut keeper), [(asker(3), Reply::Done)]);
    }
    assert_ne!(superblock(&disks), before, "it was made empty");
    assert!(!keeper.journal.has_records() || keeper.commits > 0);
    drop(keeper);
    let mut keeper = disks.open(2).unwrap();
    assert!((0..13).all(|block| mapped(&mut keeper, block).is_some()));
    // In order, it is gone.
    let mut out = Outbox::default();
    keeper.command(9, Command::Close, &mut out);
    assert_eq!(out.answers, [(9, Ok(Answer::Done))]);
    assert_eq!(disks.metadata.to_bytes()[360..512], [0; 152]);
}
