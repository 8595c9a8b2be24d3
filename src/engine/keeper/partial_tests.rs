//! How many partial blocks there may be, and when they are made whole: the keeper, with a test in place of the lanes.

use super::super::command::Settling;
use super::tests::{ask, asker, id, settle};
use super::*;
use crate::disk::MemoryDisk;
use crate::metadata::Geometry;
use crate::units::BlockSize;

type Tested = Keeper<MemoryDisk, MemoryDisk>;

/// A pool of so many data blocks with the volume 0, on which small writes are to be small.
fn pool(data_blocks: u64, metadata_bytes: u64, partial_blocks_limit: u64) -> Tested {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
    let mut metadata = Metadata::format(MemoryDisk::zeroed(metadata_bytes), geometry).unwrap();
    metadata.create_volume(id(0)).unwrap();
    let data_bytes = data_blocks * BlockSize::MIN.bytes();
    let options = KeeperOptions {
        small_writes: SmallWrites::Partial,
        volume_sizes: HashMap::from([(id(0), 4 * data_bytes)]),
        partial_blocks_limit,
        ..KeeperOptions::default()
    };
    Keeper::new(metadata, MemoryDisk::zeroed(data_bytes), options).unwrap()
}

/// A first write to this block of the volume: the data block, if it could be a small one.
fn write(keeper: &mut Tested, block: u64) -> Option<DataBlock> {
    let block = VirtualBlock(block);
    let mut told = ask(keeper, 1, Ask::Fill(id(0), block));
    if matches!(told[..], [(_, Reply::NoSpaceNow)]) {
        keeper.tick(&mut Outbox::default()); // a commit gives back what was replaced
        told = ask(keeper, 1, Ask::Fill(id(0), block));
    }
    match told[..] {
        [(_, Reply::FillPart { target, .. })] => {
            ask(keeper, 1, Ask::PublishPart(id(0), block, target, 0b1));
            Some(target)
        }
        [(_, Reply::Fill { target, .. })] => {
            ask(keeper, 1, Ask::Publish(id(0), block, target));
            None
        }
        ref other => panic!("{other:?}"),
    }
}

fn is_given_one_to_settle(keeper: &mut Tested) -> bool {
    match ask(keeper, 2, Ask::Settle)[..] {
        [(_, Reply::Settle { .. })] => true,
        [(_, Reply::Done)] => false,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn there_are_as_many_as_the_limit_allows_and_a_hurry_shortly_before() {
    let mut keeper = pool(16, 8 << 20, 5);
    for block in 0..5 {
        assert!(!is_given_one_to_settle(&mut keeper), "{block} are few, and clients are busy");
        assert!(write(&mut keeper, block).is_some());
    }
    assert!(is_given_one_to_settle(&mut keeper) && keeper.settling().is_in_a_hurry());
    assert_eq!((write(&mut keeper, 5), keeper.status().partial_blocks), (None, 5));
}

/// Whoever maps every block still can, with as much metadata as a pool is given: the tree of partial blocks does not take what mappings need.
#[test]
fn metadata_have_room_for_some_partial_blocks_and_for_all_mappings() {
    const BLOCKS: u64 = 1 << 16;
    let mut keeper = pool(BLOCKS, 64 * BLOCKS, u64::MAX);
    let mut is_small = true;
    for number in 0..BLOCKS {
        // Here and there.
        let target = write(&mut keeper, number * 40_503 % BLOCKS);
        assert!(is_small || target.is_none(), "once there is no room for more, there is none");
        is_small = target.is_some();
        settle(&mut keeper);
        if number.is_multiple_of(1000) {
            keeper.tick(&mut Outbox::default());
        }
    }
    let (partial, limit) = (keeper.status().partial_blocks, keeper.metadata.partial_blocks_limit());
    assert!(!is_small && partial == limit, "{partial} of {limit}");
    assert_eq!(keeper.metadata.usage().data_allocated, BLOCKS);
}

#[test]
fn a_write_now_and_then_does_not_keep_them_from_being_settled() {
    let mut keeper = pool(256, 8 << 20, u64::MAX);
    let mut block = 0;
    let mut write_for_ticks = |keeper: &mut Tested, writes| {
        for _ in 0..4 {
            for _ in 0..writes {
                write(keeper, block);
                block += 1;
            }
            keeper.tick(&mut Outbox::default());
        }
    };
    write_for_ticks(&mut keeper, 1);
    assert!(is_given_one_to_settle(&mut keeper) && !keeper.settling().is_in_a_hurry());
    write_for_ticks(&mut keeper, 40);
    assert!(!is_given_one_to_settle(&mut keeper));
    write_for_ticks(&mut keeper, 1);
    assert!(is_given_one_to_settle(&mut keeper));
}

/// Bases may be all that a full pool has to give.
#[test]
fn a_write_without_space_hurries_the_settler_although_it_does_not_wait() {
    let mut keeper = pool(40, 8 << 20, u64::MAX);
    (0..40).for_each(|block| assert!(write(&mut keeper, block).is_some()));
    assert!(!is_given_one_to_settle(&mut keeper));
    assert_eq!(ask(&mut keeper, 1, Ask::Fill(id(0), VirtualBlock(50))), [(asker(1), Reply::NoSpaceNow)]);
    assert!(is_given_one_to_settle(&mut keeper) && keeper.settling().is_in_a_hurry());
    for _ in 0..20 {
        keeper.tick(&mut Outbox::default());
    }
    assert!(is_given_one_to_settle(&mut keeper), "nobody is busy");
    assert!(!keeper.settling().is_in_a_hurry(), "and nobody has come again");
}

/// The base, or the block itself, is on a bad part of the data disk.
#[test]
fn what_cannot_be_read_or_written_is_told_from_what_lacks_an_origin() {
    let mut keeper = pool(16, 8 << 20, u64::MAX);
    let target = write(&mut keeper, 0).expect("a small write");
    let partials = keeper.partial.table.clone();
    let mut settle_all = |all| {
        let mut out = Outbox::default();
        keeper.command(0, Command::Settle(all), &mut out);
        out.answers.pop().expect("answered at once").1.expect("it works")
    };
    assert_eq!(settle_all(true), Answer::Settling(Settling::GetsOn));
    partials.set_stuck(target);
    assert_eq!(settle_all(true), Answer::Settling(Settling::Failing));
    settle_all(false);
    assert_eq!(settle_all(true), Answer::Settling(Settling::GetsOn), "it is tried once more");
}

#[test]
fn who_waits_for_space_has_no_commit_made_for_every_write_of_others() {
    let mut keeper = pool(2, 8 << 20, u64::MAX);
    keeper.when_full = WhenFull::Queue(60);
    let target = write(&mut keeper, 0).expect("a small write");
    write(&mut keeper, 1);
    keeper.tick(&mut Outbox::default());
    let waiter = asker(7);
    assert_eq!(ask(&mut keeper, 7, Ask::Fill(id(0), VirtualBlock(2))), [(waiter, Reply::NoSpaceNow)]);
    assert_eq!(ask(&mut keeper, 7, Ask::AwaitSpace(id(0))), []);
    let before = keeper.commits;
    for unit in 1..9 {
        keeper.partial.table.claim(target, 1 << unit);
        keeper.partial.table.put(target, 1 << unit);
        assert_eq!(settle(&mut keeper), []);
    }
    assert_eq!(keeper.commits, before);
    let mut out = Outbox::default();
    keeper.tick(&mut out);
    keeper.settle(&mut out);
    assert_eq!((keeper.commits, &out.replies[..]), (before + 1, &[(waiter, Reply::Again)][..]));
}

#[test]
fn who_does_not_wait_is_refused_although_others_write_and_served_when_a_block_has_become_whole() {
    let mut keeper = pool(2, 8 << 20, u64::MAX);
    keeper.when_full = WhenFull::Error;
    let target = write(&mut keeper, 0).expect("a small write");
    write(&mut keeper, 1);
    keeper.tick(&mut Outbox::default());
    let waiter = asker(7);
    let units = |units| {
        move |keeper: &mut Tested| {
            keeper.partial.table.claim(target, units);
            keeper.partial.table.put(target, units);
            assert_eq!(ask(keeper, 7, Ask::Fill(id(0), VirtualBlock(2))), [(waiter, Reply::NoSpaceNow)]);
            assert_eq!(ask(keeper, 7, Ask::AwaitSpace(id(0))), []);
        }
    };
    units(0b10)(&mut keeper);
    assert_eq!(settle(&mut keeper), [(waiter, Reply::Failed(IoError::NoSpace))]);
    let before = keeper.commits;
    units((1 << 16) - 4)(&mut keeper);
    assert_eq!(settle(&mut keeper), [(waiter, Reply::Again)], "its base may be free now");
    assert_eq!(keeper.commits, before + 1);
}
