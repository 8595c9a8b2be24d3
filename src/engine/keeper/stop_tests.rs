//! How a pool steps down, with disks that fail once, and then no more.

use super::tests::{ask, asker, fill, id, settle};
use super::*;
use crate::check::{CheckOptions, MendOptions, Verdict, check_and_mend};
use crate::disk::MemoryDisk;
use crate::journal::{BootId, Recovered, begin, recover};
use crate::metadata::{Access, Geometry};
use crate::units::{BlockSize, TransactionId};
use std::sync::atomic::{AtomicU32, Ordering};

/// A disk of which some flushes fail, beginning now.
#[derive(Clone)]
struct Failing {
    disk: Arc<MemoryDisk>,
    flushes: Arc<AtomicU32>,
}

impl Failing {
    fn new(size_bytes: u64) -> Self {
        Failing { disk: Arc::new(MemoryDisk::zeroed(size_bytes)), flushes: Arc::default() }
    }

    fn fail_flushes(&self, count: u32) {
        self.flushes.store(count, Ordering::Relaxed);
    }
}

impl Disk for Failing {
    fn grow(&self, size_bytes: u64) -> std::io::Result<()> {
        self.disk.grow(size_bytes)
    }
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.disk.read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.disk.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> std::io::Result<()> {
        let left =
            self.flushes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() { Err(std::io::Error::other("on fire")) } else { Ok(()) }
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> std::io::Result<()> {
        self.disk.discard(offset_bytes, length_bytes)
    }
    fn name(&self) -> String {
        "/pools/p/metadata".to_owned()
    }
}

type Tested = Keeper<Failing, Failing>;

const BLOCKS: u64 = 64;
/// A volume of two pages of the map.
const VOLUME_BLOCKS: u64 = 1024;

fn step(from: u64) -> IdStep {
    IdStep { from: TransactionId(from), to: TransactionId(from + 1) }
}

fn sizes() -> HashMap<VolumeId, u64> {
    (0..2).map(|number| (id(number), VOLUME_BLOCKS * BlockSize::MIN.bytes())).collect()
}

fn open(metadata: &Failing, data: &Failing) -> Tested {
    let opened = Metadata::open_to_serve(metadata.clone()).unwrap();
    Keeper::new(opened, data.clone(), KeeperOptions { volume_sizes: sizes(), ..KeeperOptions::default() })
        .unwrap()
}

/// Volumes 0 and 1; of volume 0 the blocks 0 and 600 are mapped and durable.
fn pool() -> (Failing, Failing, Tested) {
    let (metadata, data) = (Failing::new(8 << 20), Failing::new(BLOCKS * BlockSize::MIN.bytes()));
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: BLOCKS };
    drop(Metadata::format(metadata.clone(), geometry).unwrap());
    let mut keeper = open(&metadata, &data);
    for number in 0..2 {
        let size_bytes = VOLUME_BLOCKS * BlockSize::MIN.bytes();
        let command =
            Command::CreateVolume { volume: id(number), size_bytes, origin: None, step: step(number) };
        assert_eq!(run(&mut keeper, command), Ok(Answer::Done));
    }
    write(&mut keeper, 0);
    write(&mut keeper, 600);
    assert_eq!(run(&mut keeper, Command::Commit), Ok(Answer::Done));
    (metadata, data, keeper)
}

fn run(keeper: &mut Tested, command: Command) -> Result<Answer> {
    let mut out = Outbox::default();
    keeper.command(0, command, &mut out);
    while out.answers.is_empty() {
        keeper.settle(&mut out);
    }
    out.answers.remove(0).1
}

/// Maps a block of volume 0 as a lane does, but for the bytes.
fn write(keeper: &mut Tested, block: u64) {
    assert_eq!(load(keeper, block), Reply::Again);
    let target = fill(keeper, 1, block);
    let published = ask(keeper, 1, Ask::Publish(id(0), VirtualBlock(block), target));
    assert_eq!(published, [(asker(1), Reply::Done)]);
}

fn load(keeper: &mut Tested, block: u64) -> Reply {
    ask(keeper, 2, Ask::Load(id(0), VirtualBlock(block)))[0].1.clone()
}

fn flush(keeper: &mut Tested) -> Vec<(Asker, Reply)> {
    let answered = ask(keeper, 3, Ask::Flush);
    if answered.is_empty() { settle(keeper) } else { answered }
}

const REFUSED: Reply = Reply::Failed(IoError::Io);

#[test]
fn a_failed_commit_leaves_a_readable_pool_that_asks_for_a_check() {
    // The flush of the commit; that and the one of the mark.
    for failing in 1..=2 {
        let (metadata, data, mut keeper) = pool();
        write(&mut keeper, 5);
        metadata.fail_flushes(failing);
        assert_eq!(flush(&mut keeper), [(asker(3), REFUSED)]);
        let status = keeper.status();
        if failing == 2 {
            assert!(matches!(status.mode, Mode::Failed(_)), "{status:?}");
            assert_eq!(load(&mut keeper, 600), REFUSED);
            continue;
        }
        let Mode::ReadOnly(why) = status.mode else { panic!("{:?}", status.mode) };
        assert!(why.next_step().unwrap().contains("--clear-needs-check-flag /pools/p/metadata"), "{why}");
        assert!(status.needs_check && keeper.metadata.access() == Access::ReadOnly);
        // What clients were told is still what they see, and nothing new comes to it.
        let volume = keeper.volume(id(0)).unwrap();
        assert!(matches!(volume.table.get(VirtualBlock(5)), Lookup::Mapped(_)));
        assert!(volume.refuses_changes());
        for refused in [
            Ask::Fill(id(0), VirtualBlock(7)),
            Ask::Unmap(id(0), 0..1, u64::MAX),
            Ask::Flush,
            Ask::AwaitSpace(id(0)),
        ] {
            assert_eq!(ask(&mut keeper, 4, refused), [(asker(4), REFUSED)]);
        }
        let snapshot = Command::Snapshot { pairs: vec![(id(0), id(7))], step: step(2) };
        assert_eq!(run(&mut keeper, snapshot).unwrap_err().kind(), ErrorKind::Failed);
        assert_eq!(run(&mut keeper, Command::Close).unwrap_err().kind(), ErrorKind::Failed);

        // The next opening serves it for reading, as of the last commit, until a checker has looked.
        let mut keeper = open(&metadata, &data);
        assert!(matches!(keeper.status().mode, Mode::ReadOnly(why) if why.kind() == ErrorKind::NeedsCheck));
        assert_eq!(load(&mut keeper, 0), Reply::Again);
        let volume = keeper.volume(id(0)).unwrap();
        assert!(matches!(volume.table.get(VirtualBlock(0)), Lookup::Mapped(_)));
        assert_eq!(volume.table.get(VirtualBlock(5)), Lookup::Hole);
        assert_eq!(flush(&mut keeper), [(asker(3), Reply::Done)], "nobody has written anything");
        let refused = run(&mut keeper, Command::Delete { volume: id(0), step: Some(step(2)) });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NeedsCheck);
        assert_eq!(run(&mut keeper, Command::Close), Ok(Answer::Done));
        drop(keeper);
        let mend = MendOptions { needs_check: true, ..MendOptions::default() };
        let (report, mended) = check_and_mend(&metadata, &CheckOptions::default(), mend).unwrap();
        assert!(report.verdict == Verdict::Clean && mended.needs_check, "{:?}", report.findings);
        let mut keeper = open(&metadata, &data);
        assert_eq!(keeper.status().mode, Mode::Write);
        write(&mut keeper, 5);
        assert_eq!(flush(&mut keeper), [(asker(3), Reply::Done)]);
    }
}

#[test]
fn a_failed_flush_of_the_data_disk_does_not_touch_the_metadata() {
    let (metadata, data, mut keeper) = pool();
    write(&mut keeper, 5);
    data.fail_flushes(1);
    assert_eq!(flush(&mut keeper), [(asker(3), REFUSED)]);
    let status = keeper.status();
    assert!(matches!(status.mode, Mode::ReadOnly(_)) && !status.needs_check, "{status:?}");
    assert_eq!(flush(&mut keeper), [(asker(3), REFUSED)], "it is not tried again");
    let mut keeper = open(&metadata, &data);
    assert_eq!(keeper.status().mode, Mode::Write);
    write(&mut keeper, 5);
    assert_eq!(flush(&mut keeper), [(asker(3), Reply::Done)]);
}

#[test]
fn what_has_changed_since_the_last_commit_is_not_shown_as_it_was_then() {
    let (metadata, data, keeper) = pool();
    drop(keeper);
    let mut keeper = open(&metadata, &data);
    // Nobody has looked at the page of block 600, and it is discarded.
    assert_eq!(load(&mut keeper, 0), Reply::Again);
    let discarded = ask(&mut keeper, 5, Ask::Unmap(id(0), 512..VOLUME_BLOCKS, u64::MAX));
    assert_eq!(discarded, [(asker(5), Reply::Done)]);
    metadata.fail_flushes(1);
    assert_eq!(flush(&mut keeper), [(asker(3), REFUSED)]);
    assert!(matches!(keeper.status().mode, Mode::ReadOnly(_)));
    assert_eq!(load(&mut keeper, 600), REFUSED, "the client was told that it is gone");
    assert_eq!(load(&mut keeper, 3), Reply::Again);
    assert_eq!(ask(&mut keeper, 2, Ask::Load(id(1), VirtualBlock(600))), [(asker(2), Reply::Again)]);
}

#[test]
fn volumes_that_were_coming_or_going_are_as_of_the_last_commit() {
    let (metadata, _data, mut keeper) = pool();
    let mut out = Outbox::default();
    let create = Command::CreateVolume { volume: id(5), size_bytes: 512, origin: None, step: step(2) };
    keeper.command(7, create, &mut out);
    keeper.command(8, Command::Delete { volume: id(1), step: Some(step(3)) }, &mut out);
    assert!(keeper.volume(id(1)).is_none());
    metadata.fail_flushes(1);
    keeper.settle(&mut out);
    assert_eq!(out.answers.len(), 2);
    assert!(out.answers.iter().all(|(_, answer)| answer.is_err()), "{:?}", out.answers);
    let Ok(Answer::Volumes(volumes)) = run(&mut keeper, Command::Volumes) else { panic!("it can be read") };
    assert_eq!(volumes.iter().map(|volume| volume.id).collect::<Vec<_>>(), [id(0), id(1)]);
    assert_eq!(volumes[1].size_bytes, VOLUME_BLOCKS * BlockSize::MIN.bytes());
    let back = keeper.volume(id(1)).unwrap();
    assert!(back.open().is_ok() && back.refuses_changes(), "it can be read again");
    let status = keeper.status();
    assert_eq!((status.transaction_id, status.deleting), (TransactionId(2), vec![]));
}

#[test]
fn a_foreign_superblock_is_not_overwritten_by_the_mark() {
    let (metadata, _data, mut keeper) = pool();
    let before = keeper.metadata.transaction_id();
    // Somebody else serves the same disk.
    let mut other = Metadata::open(metadata.clone(), Access::ReadWrite).unwrap();
    other.set_transaction_id(before, TransactionId(77)).unwrap();
    let flushed = crate::disk::flush_data(&MemoryDisk::zeroed(512)).unwrap();
    other.commit(flushed).unwrap();
    let mut out = Outbox::default();
    keeper.stop(Failure::Metadata, Error::new(ErrorKind::Io, "a read failed"), &mut out);
    assert!(matches!(keeper.status().mode, Mode::Failed(_)));
    let found = Metadata::open(metadata, Access::ReadWrite).unwrap();
    assert_eq!(found.transaction_id(), TransactionId(77));
}

#[test]
fn volumes_wait_for_space_by_policies_of_their_own() {
    let (_metadata, _data, mut keeper) = pool();
    for block in 0..BLOCKS {
        if keeper.metadata.usage().data_allocated == BLOCKS {
            break;
        }
        if !matches!(keeper.volume(id(0)).unwrap().table.get(VirtualBlock(block)), Lookup::Mapped(_)) {
            write(&mut keeper, block);
        }
    }
    let starve = |keeper: &mut Tested, op, volume| {
        let asked = ask(keeper, op, Ask::Fill(id(volume), VirtualBlock(900)));
        assert_eq!(asked, [(asker(op), Reply::NoSpaceNow)]);
        assert_eq!(ask(keeper, op, Ask::AwaitSpace(id(volume))), []);
    };
    let own = |when_full| Command::ConfigureVolume { volume: id(1), when_full };
    let no_space = |op| vec![(asker(op), Reply::Failed(IoError::NoSpace))];
    assert_eq!(run(&mut keeper, own(Some(WhenFull::Queue(2)))), Ok(Answer::Done));
    starve(&mut keeper, 10, 0);
    starve(&mut keeper, 11, 1);
    assert_eq!(settle(&mut keeper), no_space(10), "the pool's policy is not to wait");
    let Ok(Answer::Volumes(volumes)) = run(&mut keeper, Command::Volumes) else { panic!("volumes") };
    let told: Vec<_> = volumes
        .iter()
        .map(|volume| (volume.when_full, volume.waiting_for_space, volume.queue_expired))
        .collect();
    assert_eq!(told, [(None, 0, false), (Some(WhenFull::Queue(2)), 1, false)]);
    keeper.tick(&mut Outbox::default());
    assert_eq!(settle(&mut keeper), []);
    keeper.tick(&mut Outbox::default());
    assert_eq!(settle(&mut keeper), no_space(11), "it has waited for two seconds");
    starve(&mut keeper, 12, 1);
    assert_eq!(settle(&mut keeper), no_space(12), "and now does not wait");
    assert!(!keeper.status().queue_expired, "the pool's own policy has nothing to do with it");
    assert_eq!(run(&mut keeper, own(Some(WhenFull::Queue(0)))), Ok(Answer::Done));
    starve(&mut keeper, 13, 1);
    (0..5).for_each(|_| keeper.tick(&mut Outbox::default()));
    assert_eq!(settle(&mut keeper), [], "without end");
    keeper.command(0, own(None), &mut Outbox::default());
    assert_eq!(settle(&mut keeper), [(asker(13), Reply::Again)], "it is to try again after the commit");
    starve(&mut keeper, 13, 1);
    assert_eq!(settle(&mut keeper), no_space(13), "as the pool again");
    let other = run(&mut keeper, Command::ConfigureVolume { volume: id(9), when_full: None });
    assert_eq!(other.unwrap_err().kind(), ErrorKind::NotFound);
}

/// The flush of the commit that ends the journal fails, and the file goes on to name what that has lost.
#[test]
fn records_of_a_journal_that_ends_count_no_more_once_their_data_may_be_lost() {
    let (metadata, data, keeper) = pool();
    drop(keeper);
    let mut opened = Metadata::open_to_serve(metadata.clone()).unwrap();
    let (disk, boot) = (MemoryDisk::zeroed(64 << 10), BootId([1; 16]));
    let journal = begin(&mut opened, &data, Arc::new(disk.clone()), 1, boot).unwrap();
    let options = KeeperOptions { volume_sizes: sizes(), ..KeeperOptions::default() };
    let mut keeper = Keeper::new(opened, data.clone(), options).unwrap();
    keeper.use_journal(journal);
    write(&mut keeper, 5);
    data.fail_flushes(1);
    assert!(run(&mut keeper, Command::Close).is_err());
    drop(keeper);
    let mut opened = Metadata::open_to_serve(metadata).unwrap();
    let recovered = recover(&mut opened, &data, Some(&disk), boot).unwrap();
    assert_eq!(recovered, Some(Recovered { records: 0, after_power_cut: true }));
    assert_eq!(opened.lookup(id(0), VirtualBlock(5)).unwrap(), None);
}
