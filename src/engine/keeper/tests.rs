//! The keeper alone, with a test in place of the lanes.

use super::super::command::{Behaviour, Settling};
use super::super::epochs::Presence;
use super::*;
use crate::disk::{MemoryDisk, flush_data};
use crate::engine::{LaneId, OpId, Origin};
use crate::metadata::Geometry;
use crate::units::{BlockSize, TransactionId};

type Tested = Keeper<MemoryDisk, MemoryDisk>;

pub(super) fn id(number: u64) -> VolumeId {
    VolumeId::new(number).expect("a small number")
}

pub(super) fn asker(op: u64) -> Asker {
    Asker::Lane(LaneId(0), OpId(op))
}

fn full(when_full: WhenFull) -> Behaviour {
    Behaviour { when_full: Some(when_full), ..Behaviour::default() }
}

fn keeper(data_blocks: u64, metadata: Metadata<MemoryDisk>) -> Tested {
    let options = KeeperOptions::default();
    let data = MemoryDisk::zeroed(data_blocks * BlockSize::MIN.bytes());
    Keeper::new(metadata, data, options).unwrap()
}

fn formatted(data_blocks: u64) -> Metadata<MemoryDisk> {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
    Metadata::format(MemoryDisk::zeroed(8 << 20), geometry).unwrap()
}

/// A pool with the volume 0, of 16 blocks.
pub(super) fn pool(data_blocks: u64) -> Tested {
    let mut keeper = keeper(data_blocks, formatted(data_blocks));
    let step = IdStep { from: TransactionId(0), to: TransactionId(1) };
    let size_bytes = 16 * BlockSize::MIN.bytes();
    keeper.command(
        0,
        Command::CreateVolume { volume: id(0), size_bytes, origin: None, step },
        &mut Outbox::default(),
    );
    let mut out = Outbox::default();
    keeper.settle(&mut out);
    assert_eq!(out.answers, [(0, Ok(Answer::Done))]);
    keeper
}

pub(super) fn ask<M: Disk, D: Disk>(keeper: &mut Keeper<M, D>, op: u64, ask: Ask) -> Vec<(Asker, Reply)> {
    let mut out = Outbox::default();
    keeper.handle(asker(op), ask, &mut out);
    out.replies
}

pub(super) fn settle<M: Disk, D: Disk>(keeper: &mut Keeper<M, D>) -> Vec<(Asker, Reply)> {
    let mut out = Outbox::default();
    while keeper.settle(&mut out) == Settled::HasWork {}
    out.replies
}

pub(super) fn fill<M: Disk, D: Disk>(keeper: &mut Keeper<M, D>, op: u64, block: u64) -> DataBlock {
    match ask(keeper, op, Ask::Fill(id(0), VirtualBlock(block)))[..] {
        [(to, Reply::Fill { target, .. })] if to == asker(op) => target,
        ref other => panic!("{other:?}"),
    }
}

/// A pool of one data block, which operation 1 is filling, and for which operation 2 waits.
fn waited_for() -> (Tested, DataBlock) {
    let mut keeper = pool(1);
    let target = fill(&mut keeper, 1, 0);
    let full = ask(&mut keeper, 2, Ask::Fill(id(0), VirtualBlock(1)));
    assert_eq!(full, [(asker(2), Reply::NoSpaceNow)]);
    assert_eq!(ask(&mut keeper, 2, Ask::AwaitSpace(id(0))), []);
    (keeper, target)
}

#[test]
fn an_abandoned_block_goes_to_who_waits_for_space() {
    let (mut keeper, target) = waited_for();
    assert_eq!(settle(&mut keeper), [], "the fill may fail");
    let abandoned = ask(&mut keeper, 1, Ask::Abandon(id(0), VirtualBlock(0), target));
    assert_eq!(abandoned, [(asker(1), Reply::Done)]);
    assert_eq!(settle(&mut keeper), [(asker(2), Reply::Again)]);
    assert_eq!(fill(&mut keeper, 2, 1), target);
}

#[test]
fn who_gives_up_waits_no_longer() {
    let (mut keeper, target) = waited_for();
    assert_eq!(ask(&mut keeper, 2, Ask::GiveUp), [(asker(2), Reply::Failed(IoError::Gone))]);
    assert_eq!(keeper.status().waiting_for_space, 0);
    ask(&mut keeper, 1, Ask::Abandon(id(0), VirtualBlock(0), target));
    assert_eq!(settle(&mut keeper), [], "he has had his answer");
}

#[test]
fn a_freed_block_is_handed_out_before_others_and_what_nobody_wants_gives_its_space_back() {
    let mut keeper = pool(16);
    let holds = |keeper: &Tested, block: DataBlock| {
        let mut bytes = [0];
        keeper.data.read_at(block.0 * BlockSize::MIN.bytes(), &mut bytes).unwrap();
        bytes[0]
    };
    for block in 0..4 {
        let target = fill(&mut keeper, block, block);
        keeper.data.write_at(target.0 * BlockSize::MIN.bytes(), &[7]).unwrap();
        ask(&mut keeper, block, Ask::Publish(id(0), VirtualBlock(block), target));
    }
    ask(&mut keeper, 9, Ask::Unmap(id(0), 1..4, u64::MAX));
    run(&mut keeper, Command::Commit).unwrap();
    settle(&mut keeper);
    let again = fill(&mut keeper, 10, 8);
    assert_eq!((again, holds(&keeper, again)), (DataBlock(1), 7), "it keeps its space");
    assert!(keeper.gives_back());
    keeper.give_back_step(Pace::Beside);
    assert!(!keeper.gives_back(), "what is left is one range");
    assert_eq!([0, 1, 2, 3].map(|block| holds(&keeper, DataBlock(block))), [7, 7, 0, 0]);
}

#[test]
fn beside_others_one_range_goes_back_at_a_time_and_no_more_than_16_mib_of_it() {
    let mut keeper = pool(1024);
    let all = 0..1024;
    keeper.metadata.make_reusable(all); // free they are
    for range in [10..12, 20..22, 100..100 + 512] {
        keeper.there_again(range);
    }
    let left = |keeper: &mut Tested, pace| {
        keeper.give_back_step(pace);
        keeper.to_give_back()
    };
    assert_eq!(left(&mut keeper, Pace::Beside), 4 + 256);
    assert_eq!(left(&mut keeper, Pace::Beside), 4);
    assert_eq!(left(&mut keeper, Pace::Beside), 2);
    keeper.there_again(20..22);
    assert_eq!(left(&mut keeper, Pace::Alone), 0);
}

#[test]
fn a_freed_block_that_was_handed_out_in_vain_gives_its_space_back_all_the_same() {
    let mut keeper = pool(16);
    let target = fill(&mut keeper, 0, 0);
    ask(&mut keeper, 0, Ask::Publish(id(0), VirtualBlock(0), target));
    ask(&mut keeper, 1, Ask::Unmap(id(0), 0..1, u64::MAX));
    run(&mut keeper, Command::Commit).unwrap();
    settle(&mut keeper);
    assert_eq!((keeper.to_give_back(), fill(&mut keeper, 2, 1)), (1, target));
    assert_eq!(keeper.to_give_back(), 0, "it is somebody's");
    ask(&mut keeper, 2, Ask::Abandon(id(0), VirtualBlock(1), target));
    assert_eq!(keeper.to_give_back(), 1);
}

#[test]
fn a_discard_does_what_it_can_before_it_waits_for_a_fill() {
    let mut keeper = pool(16);
    for block in [0, 2] {
        let target = fill(&mut keeper, block, block);
        ask(&mut keeper, block, Ask::Publish(id(0), VirtualBlock(block), target));
    }
    let late = fill(&mut keeper, 9, 8);
    let also_late = fill(&mut keeper, 10, 9);
    assert_eq!(ask(&mut keeper, 11, Ask::Unmap(id(0), 0..16, u64::MAX)), []);
    settle(&mut keeper);
    let mapped = |keeper: &mut Tested| keeper.metadata.details(id(0)).unwrap().unwrap().mapped_blocks;
    assert_eq!(mapped(&mut keeper), 0, "what is before the fill is gone already");
    for (op, block, target) in [(9, 8, late), (10, 9, also_late)] {
        let published = ask(&mut keeper, op, Ask::Publish(id(0), VirtualBlock(block), target));
        assert_eq!(published, [(asker(op), Reply::Done)]);
        let done = if block == 9 { vec![(asker(11), Reply::Done)] } else { vec![] };
        assert_eq!(settle(&mut keeper), done);
    }
    assert_eq!(mapped(&mut keeper), 0, "what the fills mapped went after they had landed");
}

/// What is logged meanwhile.
fn log_of(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

/// A pool whose volume 0 cannot be looked into, because one of its metadata blocks is damaged.
fn pool_with_damaged_map() -> Tested {
    let disk = MemoryDisk::zeroed(8 << 20);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 16 };
    let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
    metadata.create_volume(id(0)).unwrap();
    let target = metadata.reserve_block(None).unwrap();
    metadata.map(id(0), VirtualBlock(3), target);
    metadata.commit(flush_data(&MemoryDisk::default()).unwrap()).unwrap();
    let damaged = (1..64_u64).find_map(|block| {
        let copy = MemoryDisk::from_bytes(disk.to_bytes());
        copy.write_at(block * 4096 + 100, &[0xee; 8]).unwrap();
        let mut metadata = Metadata::open(copy, crate::metadata::Access::ReadWrite).ok()?;
        metadata.volumes().ok()?;
        metadata.lookup(id(0), VirtualBlock(3)).is_err().then_some(metadata)
    });
    let data = MemoryDisk::zeroed(16 * BlockSize::MIN.bytes());
    let volume_sizes = HashMap::from([(id(0), 512 * BlockSize::MIN.bytes())]);
    let options = KeeperOptions { volume_sizes, ..KeeperOptions::default() };
    Keeper::new(damaged.unwrap(), data, options).unwrap()
}

#[test]
fn a_damaged_map_does_not_fill_the_log() {
    let mut keeper = pool_with_damaged_map();
    let log = log_of(|| {
        for op in 0..1000 {
            let block = VirtualBlock(op % 512);
            let question = if op % 2 == 0 { Ask::Load(id(0), block) } else { Ask::Fill(id(0), block) };
            assert_eq!(ask(&mut keeper, op, question), [(asker(op), Reply::Failed(IoError::Io))]);
        }
    });
    let lines: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(lines.len(), 10, "1, 2, 4 up to 512: {log}");
    assert!(lines[9].contains("times=512") && lines[9].contains("metadata block"), "{log}");
}

/// A disk whose flush fails from some moment on.
struct FailingDisk(MemoryDisk, Arc<std::sync::atomic::AtomicBool>);

impl Disk for FailingDisk {
    fn grow(&self, size_bytes: u64) -> std::io::Result<()> {
        self.0.grow(size_bytes)
    }
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> std::io::Result<()> {
        match self.1.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(std::io::Error::other("on fire")),
            false => Ok(()),
        }
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> std::io::Result<()> {
        self.0.discard(offset_bytes, length_bytes)
    }
    fn name(&self) -> String {
        "/pools/p/metadata".to_owned()
    }
}

#[test]
fn a_failed_pool_says_by_which_command_to_look_at_it() {
    let is_failing = Arc::default();
    let disk = FailingDisk(MemoryDisk::zeroed(8 << 20), Arc::clone(&is_failing));
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 16 };
    let metadata = Metadata::format(disk, geometry).unwrap();
    let data = MemoryDisk::zeroed(16 * BlockSize::MIN.bytes());
    let options = KeeperOptions::default();
    let mut keeper = Keeper::new(metadata, data, options).unwrap();
    is_failing.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut out = Outbox::default();
    let step = IdStep { from: TransactionId(0), to: TransactionId(1) };
    keeper.command(0, Command::CreateVolume { volume: id(0), size_bytes: 512, origin: None, step }, &mut out);
    keeper.settle(&mut out);
    keeper.command(1, Command::Commit, &mut out);
    let hints: Vec<_> =
        out.answers.iter().map(|(_, answer)| answer.as_ref().unwrap_err().next_step()).collect();
    assert_eq!(hints.len(), 2);
    for hint in hints {
        assert!(
            hint.unwrap().contains("`uthin-fsck check --clear-needs-check-flag /pools/p/metadata`"),
            "{hint:?}"
        );
    }
    let Mode::Failed(error) = keeper.status().mode else { panic!("it has failed") };
    assert!(error.next_step().unwrap().contains("uthin-fsck check"), "{error}");
}

#[test]
fn a_volume_of_unknown_size_may_have_any_block_mapped() {
    let mut metadata = formatted(4);
    metadata.create_volume(id(0)).unwrap();
    let target = metadata.reserve_block(None).unwrap();
    metadata.map(id(0), VirtualBlock(u64::MAX - 1), target);
    let keeper = keeper(4, metadata);
    assert_eq!(keeper.volume(id(0)).unwrap().size_bytes(), SHOWN_BYTES_LIMIT);
}

/// Runs a command to its answer.
fn run(keeper: &mut Tested, command: Command) -> Result<Answer> {
    let mut out = Outbox::default();
    keeper.command(7, command, &mut out);
    while out.answers.is_empty() {
        keeper.settle(&mut out);
    }
    let (number, answer) = out.answers.remove(0);
    assert_eq!(number, 7);
    answer
}

fn next_step(keeper: &Tested) -> IdStep {
    let from = keeper.metadata.transaction_id();
    IdStep { from, to: from.next() }
}

#[test]
fn a_block_whose_snapshot_is_gone_is_not_copied() {
    let mut keeper = pool(16);
    let target = fill(&mut keeper, 1, 0);
    ask(&mut keeper, 1, Ask::Publish(id(0), VirtualBlock(0), target));
    ask(&mut keeper, 1, Ask::Load(id(0), VirtualBlock(0)));
    let step = next_step(&keeper);
    run(&mut keeper, Command::Snapshot { pairs: vec![(id(0), id(1))], step }).unwrap();
    let wanted = Ask::Fill(id(0), VirtualBlock(0));
    let copies = |keeper: &mut Tested| match ask(keeper, 1, wanted.clone())[..] {
        [(_, Reply::Fill { target, source: FillSource::Block(_) })] => {
            ask(keeper, 1, Ask::Abandon(id(0), VirtualBlock(0), target));
            true
        }
        [(_, Reply::Again)] => false,
        ref other => panic!("{other:?}"),
    };
    assert!(copies(&mut keeper), "the snapshot has it");
    ask(&mut keeper, 2, Ask::Unmap(id(1), 0..1, u64::MAX));
    settle(&mut keeper);
    assert!(copies(&mut keeper), "a power cut now brings the snapshot's block back");
    run(&mut keeper, Command::Commit).unwrap();
    assert!(!copies(&mut keeper), "nobody else has it");
    let volume = keeper.volume(id(0)).unwrap();
    let Lookup::Mapped(mapping) = volume.table.get(VirtualBlock(0)) else { panic!("it is mapped") };
    assert!(mapping.block == target && !volume.is_shared(mapping));
    // The next snapshot shares it again.
    let step = next_step(&keeper);
    run(&mut keeper, Command::Snapshot { pairs: vec![(id(0), id(2))], step }).unwrap();
    assert!(volume.is_shared(mapping) && copies(&mut keeper));
    // So does a deletion that is not durable leave it shared, and one that is does not.
    let step = next_step(&keeper);
    let mut out = Outbox::default();
    keeper.command(8, Command::Delete { volume: id(2), step: Some(step) }, &mut out);
    assert!(out.answers.is_empty() && copies(&mut keeper));
    settle(&mut keeper);
    assert!(!copies(&mut keeper));
}

#[test]
fn a_metadata_snapshot_is_held_and_let_go() {
    let mut keeper = pool(16);
    run(&mut keeper, Command::HoldMetadata).unwrap();
    assert_eq!(run(&mut keeper, Command::HoldMetadata).unwrap_err().kind(), ErrorKind::Exists);
    let target = fill(&mut keeper, 1, 0);
    ask(&mut keeper, 1, Ask::Publish(id(0), VirtualBlock(0), target));
    run(&mut keeper, Command::Commit).unwrap();
    let status = keeper.status();
    assert!(status.held_root.is_some());
    run(&mut keeper, Command::ReleaseMetadata).unwrap();
    assert_eq!(keeper.status().held_root, None);
    assert_eq!(run(&mut keeper, Command::ReleaseMetadata).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_full_pool_queues_for_as_long_as_it_is_told() {
    let mut keeper = pool(1);
    let target = fill(&mut keeper, 1, 0);
    ask(&mut keeper, 1, Ask::Publish(id(0), VirtualBlock(0), target));
    let waits = |keeper: &mut Tested, op: u64| {
        let full = ask(keeper, op, Ask::Fill(id(0), VirtualBlock(op)));
        assert_eq!(full, [(asker(op), Reply::NoSpaceNow)]);
        assert_eq!(ask(keeper, op, Ask::AwaitSpace(id(0))), []);
        settle(keeper)
    };
    let tick = |keeper: &mut Tested| {
        let mut out = Outbox::default();
        keeper.tick(&mut out);
        out.replies.extend(settle(keeper));
        // What a commit has wakened finds nothing.
        let again = |(_, reply): &(Asker, Reply)| *reply == Reply::Again;
        out.replies.iter().filter(|reply| !again(reply)).cloned().collect::<Vec<_>>()
    };
    run(&mut keeper, Command::Commit).unwrap();
    assert_eq!(waits(&mut keeper, 2), [(asker(2), Reply::Failed(IoError::NoSpace))]);
    run(&mut keeper, Command::Configure(full(WhenFull::Queue(3)))).unwrap();
    assert_eq!(waits(&mut keeper, 3), []);
    assert_eq!(keeper.status().waiting_for_space, 1);
    assert_eq!((tick(&mut keeper), tick(&mut keeper)), (vec![], vec![]));
    assert_eq!(tick(&mut keeper), [(asker(3), Reply::Failed(IoError::NoSpace))]);
    assert_eq!(waits(&mut keeper, 4), [(asker(4), Reply::Failed(IoError::NoSpace))], "it has waited enough");
    assert!(keeper.status().queue_expired);
    // Without end, until there is space.
    run(&mut keeper, Command::Configure(full(WhenFull::Queue(0)))).unwrap();
    assert_eq!(waits(&mut keeper, 5), []);
    (0..100).for_each(|_| assert_eq!(tick(&mut keeper), []));
    run(&mut keeper, Command::Grow { data_bytes: Some(2 * BlockSize::MIN.bytes()), metadata_bytes: None })
        .unwrap();
    assert_eq!(keeper.status().waiting_for_space, 0, "it was told to look again");
    assert!(!keeper.status().queue_expired);
    fill(&mut keeper, 5, 5);
    // And those who wait when it is to queue no more are told.
    assert_eq!(waits(&mut keeper, 6), []);
}

#[test]
fn a_discard_up_to_the_end_leaves_what_has_come_behind_it() {
    let mut keeper = pool(8);
    let block = BlockSize::MIN.bytes();
    for (op, number) in [(1, 2), (2, 3)] {
        let target = fill(&mut keeper, op, number);
        ask(&mut keeper, op, Ask::Publish(id(0), VirtualBlock(number), target));
    }
    run(&mut keeper, Command::Resize { volume: id(0), size_bytes: 4 * block - 512 }).unwrap();
    let is_mapped =
        |keeper: &mut Tested, number| keeper.metadata.lookup(id(0), VirtualBlock(number)).unwrap().is_some();
    // It began when the volume ended inside block 3, and gets here when it does not any more: more of that block may have
    // been written.
    run(&mut keeper, Command::Resize { volume: id(0), size_bytes: 4 * block }).unwrap();
    ask(&mut keeper, 3, Ask::Unmap(id(0), 2..4, 4 * block - 512));
    assert_eq!((is_mapped(&mut keeper, 2), is_mapped(&mut keeper, 3)), (false, true));
    assert_eq!(ask(&mut keeper, 4, Ask::Unmap(id(0), 3..4, 4 * block - 512)), [(asker(4), Reply::Done)]);
    assert!(is_mapped(&mut keeper, 3));
    // Whoever sees the new end may.
    ask(&mut keeper, 5, Ask::Unmap(id(0), 3..4, 4 * block));
    assert!(!is_mapped(&mut keeper, 3));
}

#[test]
fn metadata_that_the_next_commit_frees_are_not_a_lack() {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 1 << 16 };
    let mut metadata = Metadata::format(MemoryDisk::zeroed(128 * 4096), geometry).unwrap();
    metadata.create_volume(id(0)).unwrap();
    let options = KeeperOptions {
        volume_sizes: HashMap::from([(id(0), BlockSize::MIN.bytes() << 16)]),
        ..KeeperOptions::default()
    };
    let data = MemoryDisk::zeroed(BlockSize::MIN.bytes() << 16);
    let mut keeper = Keeper::new(metadata, data, options).unwrap();
    run(&mut keeper, Command::Commit).unwrap();
    let mut cured = 0;
    for op in 0.. {
        // A leaf each, so that every commit has copied some and frees as many.
        let block = VirtualBlock((op * 997) % (1 << 16));
        match ask(&mut keeper, op, Ask::Fill(id(0), block))[..] {
            [(_, Reply::Fill { target, .. })] => {
                ask(&mut keeper, op, Ask::Publish(id(0), block, target));
            }
            [(_, Reply::NoSpaceNow)] => {
                assert_eq!(ask(&mut keeper, op, Ask::AwaitSpace(id(0))), []);
                match settle(&mut keeper)[..] {
                    [(_, Reply::Again)] => cured += 1,
                    [(_, Reply::Failed(IoError::NoSpace))] => break,
                    ref other => panic!("{other:?}"),
                }
            }
            ref other => panic!("{other:?}"),
        }
        assert_eq!(keeper.status().times_full.metadata, 0, "after {cured} that a commit has cured");
    }
    assert!(cured > 0);
    assert_eq!(keeper.status().times_full.metadata, 1);
    assert!(keeper.status().out_of_metadata_space);
}

#[test]
fn how_it_behaves_can_change_while_it_runs() {
    let mut keeper = keeper(8, formatted(8));
    let create = |number: u64, from: u64| {
        let step = IdStep { from: TransactionId(from), to: TransactionId(from + 1) };
        Command::CreateVolume { volume: id(number), size_bytes: 1 << 20, origin: None, step }
    };
    run(&mut keeper, create(0, 0)).unwrap();
    let ignore = Behaviour { discard: Some(Discard::Ignore), ..Behaviour::default() };
    run(&mut keeper, Command::Configure(ignore)).unwrap();
    run(&mut keeper, create(1, 1)).unwrap();
    assert_eq!(keeper.status().discard, Discard::Ignore);
    assert!(
        [0, 1].iter().all(|number| keeper.volume(id(*number)).unwrap().ignores_discards()),
        "the new one too"
    );
    let rest = Behaviour {
        discard: Some(Discard::NoPassdown),
        zero_new_blocks: Some(false),
        ..Behaviour::default()
    };
    run(&mut keeper, Command::Configure(rest)).unwrap();
    assert!(!keeper.volume(id(1)).unwrap().ignores_discards());
    let status = keeper.status();
    assert_eq!(
        (status.discard, status.zero_new_blocks, status.when_full),
        (Discard::NoPassdown, false, WhenFull::Error)
    );
    let fill = ask(&mut keeper, 1, Ask::Fill(id(0), VirtualBlock(0)));
    assert!(matches!(fill[..], [(_, Reply::Fill { source: FillSource::Nothing, .. })]), "{fill:?}");
}

#[test]
fn the_transaction_id_is_compared_before_it_is_set() {
    let mut keeper = keeper(8, formatted(8));
    let set = |from: u64, to: u64| {
        Command::SetTransactionId(IdStep { from: TransactionId(from), to: TransactionId(to) })
    };
    run(&mut keeper, set(0, 7)).unwrap();
    assert_eq!(run(&mut keeper, set(0, 8)).unwrap_err().kind(), ErrorKind::WrongState);
    assert_eq!(keeper.status().transaction_id, TransactionId(7));
    run(&mut keeper, set(7, 3)).unwrap();
    assert_eq!(keeper.status().transaction_id, TransactionId(3));
}

/// Volume 0 with blocks 0 and 1, both shared with its snapshot, volume 1; and where block 0 is.
fn pool_with_shared_blocks() -> (Tested, DataBlock) {
    let mut keeper = pool(16);
    let targets = [0, 1].map(|block| {
        let target = fill(&mut keeper, block, block);
        ask(&mut keeper, block, Ask::Publish(id(0), VirtualBlock(block), target));
        ask(&mut keeper, block, Ask::Load(id(0), VirtualBlock(block)));
        target
    });
    let step = next_step(&keeper);
    run(&mut keeper, Command::Snapshot { pairs: vec![(id(0), id(1))], step }).unwrap();
    (keeper, targets[0])
}

#[test]
fn a_block_that_is_somebody_s_alone_is_not_copied_while_it_is_overwritten() {
    let (mut keeper, _) = pool_with_shared_blocks();
    ask(&mut keeper, 2, Ask::Unmap(id(1), 0..1, u64::MAX));
    run(&mut keeper, Command::Commit).unwrap();
    let wanted = Ask::Fill(id(0), VirtualBlock(0));
    assert_eq!(ask(&mut keeper, 1, wanted.clone()), [(asker(1), Reply::Again)]);
    // The first one writes in place now. The second looked at the map before that, and asks after another block has lost a
    // holder: a copy of what is being written would replace it.
    ask(&mut keeper, 2, Ask::Unmap(id(1), 1..2, u64::MAX));
    assert_eq!(ask(&mut keeper, 3, wanted), [(asker(3), Reply::Again)]);
}

#[test]
fn what_only_memory_knows_is_kept_while_somebody_may_act_on_it() {
    let (mut keeper, _) = pool_with_shared_blocks();
    let volume = keeper.volume(id(0)).unwrap();
    ask(&mut keeper, 1, Ask::Load(id(0), VirtualBlock(0)));
    ask(&mut keeper, 2, Ask::Unmap(id(1), 0..1, u64::MAX));
    run(&mut keeper, Command::Commit).unwrap();
    let mut writer = Presence::new(LaneId(0), keeper.epochs());
    let epoch = writer.enter();
    let wanted = Ask::Fill(id(0), VirtualBlock(0));
    assert_eq!(ask(&mut keeper, 1, wanted.clone()), [(asker(1), Reply::Again)]);
    assert_eq!(keeper.status().map_bytes, 4096);

    // It writes in place now, and the page is to make room.
    keeper.map_memory = MapMemory::new(keeper.map_memory.pages(), 0);
    settle(&mut keeper);
    settle(&mut keeper); // the writer has not passed
    assert_eq!(volume.table.get(VirtualBlock(0)), Lookup::NotLoaded);
    ask(&mut keeper, 2, Ask::Unmap(id(1), 1..2, u64::MAX));
    assert_eq!(
        ask(&mut keeper, 3, wanted),
        [(asker(3), Reply::Again)],
        "not a copy of what is being written"
    );
    assert_eq!(ask(&mut keeper, 3, Ask::Load(id(0), VirtualBlock(0))), [(asker(3), Reply::Again)]);
    assert!(matches!(volume.table.get(VirtualBlock(0)), Lookup::Mapped(own) if !volume.is_shared(own)));

    writer.leave(epoch);
    settle(&mut keeper); // once to see that all have passed, and that this page has come back, once to take it again
    settle(&mut keeper);
    assert_eq!((volume.table.get(VirtualBlock(0)), keeper.status().map_bytes), (Lookup::NotLoaded, 0));
}

#[test]
fn a_block_is_not_overwritten_under_who_began_to_read_it_for_another_volume() {
    let (mut keeper, target) = pool_with_shared_blocks();
    // It has looked at the map of the snapshot, and its read of the block is under way.
    let mut reader = Presence::new(LaneId(0), keeper.epochs());
    let epoch = reader.enter();
    ask(&mut keeper, 2, Ask::Unmap(id(1), 0..1, u64::MAX));
    run(&mut keeper, Command::Commit).unwrap();
    let wanted = Ask::Fill(id(0), VirtualBlock(0));
    match ask(&mut keeper, 1, wanted.clone())[..] {
        [(_, Reply::Fill { target: copy, source: FillSource::Block(block) })] => {
            assert_eq!(block, target);
            ask(&mut keeper, 1, Ask::Abandon(id(0), VirtualBlock(0), copy));
        }
        ref other => panic!("the reader would see what is written to the other volume: {other:?}"),
    }
    reader.leave(epoch);
    assert_eq!(ask(&mut keeper, 1, wanted), [(asker(1), Reply::Again)]);
}

#[test]
fn a_volume_with_the_last_block_of_all_mapped_is_not_made_smaller() {
    let mut metadata = formatted(4);
    metadata.create_volume(id(0)).unwrap();
    let target = metadata.reserve_block(None).unwrap();
    metadata.map(id(0), VirtualBlock(u64::MAX), target);
    let mut keeper = keeper(4, metadata);
    let refused = run(&mut keeper, Command::Resize { volume: id(0), size_bytes: 1 << 20 });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::WrongState);
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_rolled_back_to_and_harms_nobody() {
    let disk = MemoryDisk::zeroed(8 << 20);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 16 };
    let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
    for volume in [0, 1] {
        metadata.create_volume(id(volume)).unwrap();
        let target = metadata.reserve_block(None).unwrap();
        metadata.map(id(volume), VirtualBlock(3), target);
    }
    metadata.commit(flush_data(&MemoryDisk::default()).unwrap()).unwrap();
    let damaged = (1..64_u64).find_map(|block| {
        let copy = MemoryDisk::from_bytes(disk.to_bytes());
        copy.write_at(block * 4096 + 100, &[0xee; 8]).unwrap();
        let mut metadata = Metadata::open(copy, crate::metadata::Access::ReadWrite).ok()?;
        metadata.volumes().ok()?;
        let is_damaged = metadata.lookup(id(1), VirtualBlock(3)).is_err();
        (is_damaged && metadata.lookup(id(0), VirtualBlock(3)).is_ok()).then_some(metadata)
    });
    let data = MemoryDisk::zeroed(16 * BlockSize::MIN.bytes());
    let volume_sizes = [0, 1].map(|volume| (id(volume), 16 * BlockSize::MIN.bytes())).into();
    let options = KeeperOptions { volume_sizes, ..KeeperOptions::default() };
    let mut keeper = Keeper::new(damaged.unwrap(), data, options).unwrap();
    ask(&mut keeper, 1, Ask::Load(id(0), VirtualBlock(3)));
    let step = next_step(&keeper);
    let refused = run(&mut keeper, Command::RollBack { volume: id(0), to: id(1), keep: id(2), step });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!((keeper.status().mode, keeper.status().volumes), (Mode::Write, 2));
    assert!(!keeper.volume(id(0)).unwrap().is_frozen());
    run(&mut keeper, Command::Snapshot { pairs: vec![(id(0), id(2))], step }).unwrap();
}

/// A count that takes several steps: of 200 volumes with a block each.
fn pool_with_many_volumes() -> Tested {
    let mut metadata = formatted(300);
    for volume in 0..200 {
        metadata.create_volume(id(volume)).unwrap();
        let target = metadata.reserve_block(None).unwrap();
        metadata.map(id(volume), VirtualBlock(3), target);
    }
    metadata.commit(flush_data(&MemoryDisk::default()).unwrap()).unwrap();
    keeper(300, metadata)
}

/// The count that the keeper knows of a volume.
fn shared(keeper: &mut Tested, volume: u64) -> Option<SharingInfo> {
    let Answer::Volumes(volumes) = run(keeper, Command::Volumes).unwrap() else { panic!("no volumes") };
    volumes.into_iter().find(|info| info.id == id(volume)).expect("it is there").sharing
}

#[test]
fn a_count_is_of_one_commit_and_says_so_when_it_is_old() {
    let mut keeper = pool_with_many_volumes();
    assert_eq!(shared(&mut keeper, 7), None);
    assert_eq!(keeper.settle(&mut Outbox::default()), Settled::Idle, "nobody has asked");
    run(&mut keeper, Command::CountShared).unwrap();
    assert_eq!(keeper.settle(&mut Outbox::default()), Settled::HasWork);
    // Volume 199 comes last; it changes while the others are counted.
    let target = match ask(&mut keeper, 1, Ask::Fill(id(199), VirtualBlock(0)))[..] {
        [(_, Reply::Fill { target, .. })] => target,
        ref other => panic!("{other:?}"),
    };
    ask(&mut keeper, 1, Ask::Publish(id(199), VirtualBlock(0), target));
    run(&mut keeper, Command::Commit).unwrap();
    settle(&mut keeper);
    let found = shared(&mut keeper, 199).expect("it was counted");
    assert_eq!((found.mapped_blocks, found.exclusive_blocks, found.is_current), (1, 1, false));
    run(&mut keeper, Command::CountShared).unwrap();
    settle(&mut keeper);
    let found = shared(&mut keeper, 199).expect("it was counted");
    assert_eq!((found.exclusive_blocks, found.is_current, keeper.status().counts), (2, true, 2));
    // What is of this moment is not counted again.
    run(&mut keeper, Command::CountShared).unwrap();
    assert_eq!(keeper.settle(&mut Outbox::default()), Settled::Idle);
}

#[test]
fn after_a_long_count_there_is_a_rest() {
    let mut keeper = pool_with_many_volumes();
    run(&mut keeper, Command::CountShared).unwrap();
    keeper.settle(&mut Outbox::default());
    keeper.tick(&mut Outbox::default());
    settle(&mut keeper);
    assert_eq!(shared(&mut keeper, 0).map(|found| found.age_seconds), Some(1));
    let step = next_step(&keeper);
    run(&mut keeper, Command::Snapshot { pairs: vec![(id(0), id(200))], step }).unwrap();
    run(&mut keeper, Command::CountShared).unwrap();
    for _ in 0..10 {
        settle(&mut keeper);
        let found = shared(&mut keeper, 0).expect("it was counted");
        assert_eq!((found.exclusive_blocks, found.is_current), (1, false));
        keeper.tick(&mut Outbox::default());
    }
    settle(&mut keeper);
    let found = shared(&mut keeper, 0).expect("it was counted");
    assert_eq!((found.exclusive_blocks, found.is_current, found.age_seconds), (0, true, 0));
}

#[test]
fn a_number_that_is_used_again_has_nothing_of_the_volume_before() {
    let mut keeper = pool_with_many_volumes();
    run(&mut keeper, Command::CountShared).unwrap();
    settle(&mut keeper);
    for is_being_counted in [false, true] {
        if is_being_counted {
            run(&mut keeper, Command::CountShared).unwrap();
            assert_eq!(keeper.settle(&mut Outbox::default()), Settled::HasWork);
        }
        let step = next_step(&keeper);
        run(&mut keeper, Command::Delete { volume: id(3), step: Some(step) }).unwrap();
        let step = next_step(&keeper);
        let create = Command::CreateVolume { volume: id(3), size_bytes: 1 << 20, origin: None, step };
        run(&mut keeper, create).unwrap();
        settle(&mut keeper);
        assert_eq!(shared(&mut keeper, 3), None);
    }
}

/// A block of volume 0 becomes partial over its origin; volume 1 has another one, and nothing mapped.
#[test]
fn what_shows_an_origin_is_settled_from_it_and_from_no_other() {
    let disk = MemoryDisk::zeroed(8 << 20);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 8 };
    let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
    (0..2).for_each(|volume| metadata.create_volume(id(volume)).unwrap());
    let [own, other] = [0, 1].map(|_| Origin::new(Arc::new(MemoryDisk::zeroed(1 << 20))));
    let open = |metadata, of_own: Option<Behind>| {
        let mut behind = HashMap::from([(id(1), Behind::Origin(other.clone()))]);
        behind.extend(of_own.map(|behind| (id(0), behind)));
        let (small_writes, volume_sizes) = (SmallWrites::Partial, HashMap::from([(id(0), 1 << 20)]));
        let options = KeeperOptions { small_writes, volume_sizes, behind, ..KeeperOptions::default() };
        Keeper::new(metadata, MemoryDisk::zeroed(8 << 16), options).unwrap()
    };
    let mut keeper = open(metadata, Some(Behind::Origin(own.clone())));
    let block = VirtualBlock(3);
    let told = ask(&mut keeper, 1, Ask::Fill(id(0), block));
    let [(_, Reply::FillPart { target, source: FillSource::Origin })] = told[..] else { panic!("{told:?}") };
    ask(&mut keeper, 1, Ask::PublishPart(id(0), block, target, 0b1));
    run(&mut keeper, Command::Commit).unwrap();
    let settle_all = |keeper: &mut Tested, all| run(keeper, Command::Settle(all)).unwrap();
    let to_settle = |origin| vec![(asker(2), Reply::Settle { block: target, origin })];
    settle_all(&mut keeper, true);
    assert_eq!(ask(&mut keeper, 2, Ask::Settle), to_settle(Some(own.clone())));
    drop(keeper);

    let missing = Behind::Unavailable(Error::new(ErrorKind::Io, "it is not there"));
    for behind in [Some(missing), None] {
        let mut keeper =
            open(Metadata::open(disk.clone(), crate::metadata::Access::ReadWrite).unwrap(), behind);
        assert_eq!(settle_all(&mut keeper, true), Answer::Settling(Settling::GetsOn), "nobody has looked");
        assert_eq!(ask(&mut keeper, 2, Ask::Settle), [(asker(2), Reply::Done)]);
        assert_eq!(settle_all(&mut keeper, true), Answer::Settling(Settling::Stuck(Some(id(0)))));
        assert!(!keeper.has_unsettled() && keeper.status().partial_blocks == 1);
        run(&mut keeper, Command::SetOrigin { volume: id(0), origin: own.clone() }).unwrap();
        assert_eq!(settle_all(&mut keeper, true), Answer::Settling(Settling::GetsOn));
        assert_eq!(ask(&mut keeper, 2, Ask::Settle), to_settle(Some(own.clone())));
    }
}

/// Of the volume that is deleted nobody has the origin; its blocks go with it, in many steps.
#[test]
fn who_waits_for_all_to_be_settled_waits_for_deletions() {
    let mut metadata = formatted(2000);
    metadata.create_volume(id(0)).unwrap();
    for block in 0..1500 {
        let reserved = metadata.reserve_block(None).unwrap();
        metadata.map(id(0), VirtualBlock(block), reserved);
    }
    let (reserved, may_be_partial) = metadata.reserve_partial_block(None).unwrap();
    assert!(may_be_partial);
    let block = VirtualBlock(1600);
    metadata.map_partial(id(0), block, reserved, Partial { base: Base::Origin(block), units: 1 });
    let missing = Behind::Unavailable(Error::new(ErrorKind::Io, "it is not there"));
    let behind = HashMap::from([(id(0), missing)]);
    let options = KeeperOptions { behind, delete_step_nodes: 1, ..KeeperOptions::default() };
    let mut keeper = Keeper::new(metadata, MemoryDisk::zeroed(2000 << 16), options).unwrap();
    let settle_all = |keeper: &mut Tested| run(keeper, Command::Settle(true)).unwrap();
    settle_all(&mut keeper);
    assert_eq!(ask(&mut keeper, 1, Ask::Settle), [(asker(1), Reply::Done)]);
    assert_eq!(settle_all(&mut keeper), Answer::Settling(Settling::Stuck(Some(id(0)))));

    let deleted = run(&mut keeper, Command::Delete { volume: id(0), step: None }).unwrap();
    assert_eq!(deleted, Answer::Deleting { finished: false });
    let mut steps = 0;
    while !keeper.status().deleting.is_empty() {
        assert_eq!(settle_all(&mut keeper), Answer::Settling(Settling::GetsOn), "step {steps}");
        keeper.settle(&mut Outbox::default());
        steps += 1;
    }
    assert!(steps > 2, "{steps}");
    run(&mut keeper, Command::Commit).unwrap();
    assert_eq!(keeper.status().partial_blocks, 0);
    assert_eq!(settle_all(&mut keeper), Answer::Settling(Settling::Stuck(None)));
}

/// As with the catalog lost: what a volume maps tells that it stood on an origin.
#[test]
fn an_origin_is_put_behind_a_volume_without_one_only_where_it_shows_already() {
    let mut metadata = formatted(8);
    (0..2).for_each(|volume| metadata.create_volume(id(volume)).unwrap());
    let (reserved, _) = metadata.reserve_partial_block(None).unwrap();
    let block = VirtualBlock(3);
    metadata.map_partial(id(0), block, reserved, Partial { base: Base::Origin(block), units: 1 });
    let mut keeper = keeper(8, metadata);
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(1 << 20)));
    let mut set =
        |volume| run(&mut keeper, Command::SetOrigin { volume: id(volume), origin: origin.clone() });
    assert_eq!(set(0).unwrap(), Answer::Done);
    assert_eq!(set(1).unwrap_err().kind(), ErrorKind::WrongState);
    assert!(
        keeper.volume(id(0)).unwrap().origin().is_some() && keeper.volume(id(1)).unwrap().origin().is_none()
    );
}
