//! The keeper with a journal, and what a process finds that comes after it.

use super::tests::{ask, asker, fill, id, settle};
use super::*;
use crate::disk::{MemoryDisk, flush_data};
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

    /// The same, as they are now.
    fn copied(&self) -> Disks {
        let copy = |disk: &MemoryDisk| MemoryDisk::from_bytes(disk.to_bytes());
        Disks {
            metadata: copy(&self.metadata),
            data: copy(&self.data),
            journal: copy(&self.journal),
            options: self.options.clone(),
        }
    }

    /// As a daemon does it: what there is is brought in, and a journal begun.
    fn open(&self, number: u64) -> Result<Keeper<MemoryDisk, MemoryDisk>> {
        self.open_in(number, BOOT)
    }

    /// The same in another run of the system.
    fn open_in(&self, number: u64, boot: BootId) -> Result<Keeper<MemoryDisk, MemoryDisk>> {
        let mut metadata = Metadata::open(self.metadata.clone(), Access::ReadWrite)?;
        recover(&mut metadata, &self.data, Some(&self.journal), boot)?;
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

/// Of the blocks 0 to 2, those that are there when the power has gone now.
fn left_by_a_power_cut(disks: &Disks) -> Vec<u64> {
    let mut keeper = disks.copied().open_in(2, BootId([2; 16])).unwrap();
    (0..3).filter(|block| mapped(&mut keeper, *block).is_some()).collect()
}

#[test]
fn fills_go_on_beside_a_flush_and_are_not_of_it() {
    let disks = Disks::new(8);
    let mut keeper = disks.open(1).unwrap();
    let mut out = Outbox::default();
    write(&mut keeper, 0);
    assert_eq!(ask(&mut keeper, 3, Ask::Flush), []);
    let data = keeper.begin_flush().expect("somebody waits");
    write(&mut keeper, 1);
    assert_eq!(ask(&mut keeper, 4, Ask::Flush), []);
    assert!(keeper.begin_flush().is_none(), "one at a time");
    assert_eq!(settle(&mut keeper), []);
    let journal = keeper.flush_ended(data.run(), &mut out).expect("the journal is left");
    assert!(matches!(journal, FlushJob::Journal(_)) && out.replies.is_empty());
    write(&mut keeper, 2);
    assert!(keeper.flush_ended(journal.run(), &mut out).is_none());
    assert_eq!(out.replies, [(asker(3), Reply::Done)]);
    assert_eq!(left_by_a_power_cut(&disks), [0]);
    assert_eq!(settle(&mut keeper), [(asker(4), Reply::Done)]);
    assert_eq!(left_by_a_power_cut(&disks), [0, 1, 2]);
}

#[test]
fn a_commit_beside_a_flush_answers_who_waits_for_it() {
    let disks = Disks::new(8);
    // While the data disk is flushed, and while the journal's is.
    for flushes_journal in [false, true] {
        let mut keeper = disks.copied().open(1).unwrap();
        let mut out = Outbox::default();
        write(&mut keeper, 0);
        ask(&mut keeper, 3, Ask::Flush);
        let mut job = keeper.begin_flush().expect("somebody waits");
        if flushes_journal {
            job = keeper.flush_ended(job.run(), &mut out).expect("the journal is left");
        }
        keeper.command(7, Command::Commit, &mut out);
        keeper.settle(&mut out);
        assert_eq!((out.replies, out.answers), (vec![(asker(3), Reply::Done)], vec![(7, Ok(Answer::Done))]));
        write(&mut keeper, 1);
        let mut out = Outbox::default();
        assert!(keeper.flush_ended(job.run(), &mut out).is_none() && out.replies.is_empty());
        // What came after the commit is not durable by that.
        ask(&mut keeper, 4, Ask::Flush);
        let data = keeper.begin_flush().expect("somebody waits");
        let journal = keeper.flush_ended(data.run(), &mut out).expect("the journal is left");
        assert!(keeper.flush_ended(journal.run(), &mut out).is_none());
        assert_eq!(out.replies, [(asker(4), Reply::Done)]);
    }
}

#[test]
fn who_waits_for_a_flush_is_told_of_a_failure_once() {
    let failed = || std::io::Error::other("a fault");
    let begun = || {
        let mut keeper = Disks::new(8).open(1).unwrap();
        write(&mut keeper, 0);
        ask(&mut keeper, 3, Ask::Flush);
        let data = keeper.begin_flush().expect("somebody waits");
        (keeper, data)
    };
    let told = [(asker(3), Reply::Failed(IoError::Io))];
    let (mut keeper, _) = begun();
    let mut out = Outbox::default();
    assert!(keeper.flush_ended(FlushDone::Data(Err(failed())), &mut out).is_none());
    assert_eq!(out.replies, told);
    assert!(matches!(keeper.status().mode, Mode::ReadOnly(_)));
    // The journal's: the pool goes on without.
    let (mut keeper, data) = begun();
    let mut out = Outbox::default();
    keeper.flush_ended(data.run(), &mut out).expect("the journal is left");
    assert!(keeper.flush_ended(FlushDone::Journal(Err(failed())), &mut out).is_none());
    assert_eq!(out.replies, [(asker(3), Reply::Done)]);
    assert_eq!(keeper.status().journal, crate::engine::JournalStatus::Failed);
    // The pool has stopped meanwhile.
    let (mut keeper, data) = begun();
    let mut out = Outbox::default();
    let error = Error::new(ErrorKind::Io, "another fault");
    keeper.stop(Failure::Metadata, error, &mut out);
    assert_eq!(out.replies, told);
    assert!(keeper.flush_ended(data.run(), &mut out).is_none());
    assert_eq!(out.replies, told);
}

/// Before a commit that nobody waits for: nothing is answered, and nothing is left.
#[test]
fn a_flush_ahead_of_a_commit_is_none_that_anybody_waits_for() {
    let disks = Disks::new(8);
    let mut keeper = disks.open(1).unwrap();
    assert!(keeper.begin_flush_ahead().is_none(), "there is nothing to commit");
    write(&mut keeper, 0);
    let data = keeper.begin_flush_ahead().expect("a block was mapped");
    ask(&mut keeper, 3, Ask::Flush);
    let mut out = Outbox::default();
    assert!(keeper.flush_ended(data.run(), &mut out).is_none() && out.replies.is_empty());
    keeper.tick(&mut out);
    assert_eq!(out.replies, [(asker(3), Reply::Done)]);
    assert_eq!(left_by_a_power_cut(&disks), [0]);
}
