//! dm-thin's own scenarios of discards, through the real binary and an NBD client. `docs/scenarios.md` has the list.

mod cli_common;
mod common;

use cli_common::nbd::Client;
use cli_common::{Daemon, POOL, Place, eventually};
use common::oracle;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BLOCK: u64 = 65_536;
/// Blocks of the volume `v`.
const BLOCKS: u64 = 64;

/// A pool with a volume `v`, served, and a client of it.
fn served() -> (Place, Daemon, Client) {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let daemon = place.serve(&[]);
    let client = place.connect("v");
    (place, daemon, client)
}

fn write_blocks(client: &mut Client, blocks: impl IntoIterator<Item = u64>, byte: u8) {
    for block in blocks {
        client.write(block * BLOCK, &[byte; BLOCK as usize]).expect("there is space");
    }
}

fn trim_blocks(client: &mut Client, first: u64, count: u64) {
    client.trim(first * BLOCK, (count * BLOCK) as usize).expect("discarded");
}

fn read_byte(client: &mut Client, block: u64) -> u8 {
    let bytes = client.read(block * BLOCK, BLOCK as usize).expect("read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is of one byte");
    bytes[0]
}

/// Blocks that the pool has in use, once what was discarded has been passed on.
fn used_becomes(place: &Place, blocks: u64) {
    eventually("the pool has what was discarded", || place.used_bytes() == blocks * BLOCK);
}

/// Bytes that the data file takes on its filesystem.
fn stored_bytes(place: &Place) -> u64 {
    fs::metadata(place.path("p/data")).expect("there").blocks() * 512
}

fn ends_well(place: &Place, daemon: Daemon) {
    daemon.kill();
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

#[test]
fn discard_empty_device() {
    let (place, daemon, mut client) = served();
    trim_blocks(&mut client, 0, BLOCKS);
    client.flush().expect("flushed");
    assert_eq!((place.used_bytes(), place.mapped_bytes("v")), (0, 0));
    assert_eq!(read_byte(&mut client, 5), 0);
    ends_well(&place, daemon);
}

/// All of one volume goes; another one is not touched.
#[test]
fn discard_fully_provisioned_device() {
    let (place, daemon, mut client) = served();
    place.ok(&["volume", "create", "./p/w", "--size", "4M"]);
    let mut other = place.connect("w");
    for block in 0..BLOCKS {
        write_blocks(&mut client, [block], 1);
        write_blocks(&mut other, [block], 2);
    }
    assert_eq!(place.used_bytes(), 2 * BLOCKS * BLOCK);
    trim_blocks(&mut client, 0, BLOCKS);
    used_becomes(&place, BLOCKS);
    assert_eq!((place.mapped_bytes("v"), place.mapped_bytes("w")), (0, BLOCKS * BLOCK));
    for block in 0..BLOCKS {
        assert_eq!((read_byte(&mut client, block), read_byte(&mut other, block)), (0, 2));
    }
    ends_well(&place, daemon);
}

/// Blocks that were written in no order lie everywhere in the data file.
#[test]
fn discard_a_fragmented_device() {
    let (place, daemon, mut client) = served();
    let mut blocks: Vec<_> = (0..BLOCKS).collect();
    let mut chance = SmallRng::seed_from_u64(3);
    (1..blocks.len()).for_each(|at| blocks.swap(at, chance.random_range(0..=at)));
    write_blocks(&mut client, blocks.iter().copied().step_by(2), 1);
    let mapped = BLOCKS / 2;
    assert_eq!(place.mapped_bytes("v"), mapped * BLOCK);
    trim_blocks(&mut client, 0, BLOCKS);
    used_becomes(&place, 0);
    assert_eq!(place.mapped_bytes("v"), 0);
    eventually("the space goes back", || stored_bytes(&place) == 0);
    ends_well(&place, daemon);
}

#[test]
fn discard_single_block() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..3, 1);
    trim_blocks(&mut client, 1, 1);
    used_becomes(&place, 2);
    assert_eq!([0, 1, 2].map(|block| read_byte(&mut client, block)), [1, 0, 1]);
    ends_well(&place, daemon);
}

#[test]
fn discard_alternate_blocks() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..BLOCKS, 1);
    (0..BLOCKS).step_by(2).for_each(|block| trim_blocks(&mut client, block, 1));
    used_becomes(&place, BLOCKS / 2);
    (0..BLOCKS).for_each(|block| assert_eq!(u64::from(read_byte(&mut client, block)), block % 2));
    ends_well(&place, daemon);
}

/// A discard unmaps whole blocks only: of parts of blocks nothing changes.
#[test]
fn discard_partial_blocks() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..4, 1);
    client.trim(0, BLOCK as usize - 512).expect("discarded");
    client.trim(BLOCK + 512, BLOCK as usize - 512).expect("discarded");
    client.trim(2 * BLOCK + 4096, 4096).expect("discarded");
    client.trim(3 * BLOCK - 512, 1024).expect("discarded");
    client.flush().expect("flushed");
    assert_eq!((place.used_bytes(), place.mapped_bytes("v")), (4 * BLOCK, 4 * BLOCK));
    client.trim(512, 3 * BLOCK as usize).expect("discarded");
    used_becomes(&place, 2); // the two in the middle
    assert_eq!([1, 2].map(|block| read_byte(&mut client, block)), [0, 0]);
    assert_eq!(client.read(0, 512), Ok(vec![1; 512]));
    assert_eq!(client.read(4 * BLOCK - 512, 512), Ok(vec![1; 512]));
    ends_well(&place, daemon);
}

#[test]
fn discard_same_blocks() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..8, 1);
    for _ in 0..1000 {
        trim_blocks(&mut client, 0, 4);
    }
    used_becomes(&place, 4);
    assert_eq!(read_byte(&mut client, 4), 1);
    ends_well(&place, daemon);
}

/// Any sectors: exactly the blocks that a range covers whole are gone.
#[test]
fn discard_random_sectors() {
    let (place, daemon, mut client) = served();
    let mut chance = SmallRng::seed_from_u64(11);
    write_blocks(&mut client, 0..BLOCKS, 1);
    let mut mapped = [true; BLOCKS as usize];
    for _ in 0..100 {
        let sectors = BLOCKS * BLOCK / 512;
        let first = chance.random_range(0..sectors);
        let count = chance.random_range(1..=(sectors - first).min(400));
        client.trim(first * 512, (count * 512) as usize).expect("discarded");
        (first.div_ceil(128)..(first + count) / 128).for_each(|block| mapped[block as usize] = false);
    }
    let left = mapped.iter().filter(|is_mapped| **is_mapped).count() as u64;
    assert!(left > 0 && left < BLOCKS, "{left} of {BLOCKS} are left");
    used_becomes(&place, left);
    for (block, is_mapped) in mapped.into_iter().enumerate() {
        assert_eq!(read_byte(&mut client, block as u64), u8::from(is_mapped), "block {block}");
    }
    ends_well(&place, daemon);
}

#[test]
fn discard_past_the_end_fails() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, [BLOCKS - 1], 1);
    for (at, length) in [(BLOCKS * BLOCK, 512), ((BLOCKS - 1) * BLOCK, 2 * BLOCK), (1 << 50, BLOCK)] {
        assert!(client.trim(at, length as usize).is_err(), "{length} bytes at {at}");
    }
    assert_eq!((read_byte(&mut client, BLOCKS - 1), place.used_bytes()), (1, BLOCK));
    ends_well(&place, daemon);
}

/// A shared block stays for whom it is shared with, and with it what the filesystem holds.
#[test]
fn discard_to_a_shared_block_doesnt_get_passed_down() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, [0], 1);
    client.flush().expect("flushed");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let stored = stored_bytes(&place);
    trim_blocks(&mut client, 0, 1);
    client.flush().expect("flushed");
    std::thread::sleep(Duration::from_millis(1500)); // longer than the next commit takes to come
    assert_eq!((place.used_bytes(), stored_bytes(&place)), (BLOCK, stored));
    assert_eq!((place.mapped_bytes("v"), place.mapped_bytes("s")), (0, BLOCK));
    assert_eq!((read_byte(&mut client, 0), read_byte(&mut place.connect("s"), 0)), (0, 1));
    ends_well(&place, daemon);
}

/// Sharing has ended by a write to the origin, or by the snapshot's deletion.
#[test]
fn discard_to_a_previously_shared_block_does_get_passed_down() {
    for deletes in [false, true] {
        let (place, daemon, mut client) = served();
        write_blocks(&mut client, [0], 1);
        place.ok(&["volume", "snapshot", "./p/v", "s"]);
        if deletes {
            place.ok(&["volume", "delete", "./p/s"]);
        } else {
            write_blocks(&mut client, [0], 2);
            used_becomes(&place, 2);
        }
        trim_blocks(&mut client, 0, 1);
        used_becomes(&place, u64::from(!deletes));
        let left = if deletes { 0 } else { BLOCK };
        eventually("the filesystem has it back", || stored_bytes(&place) <= left);
        ends_well(&place, daemon);
    }
}

#[test]
fn discard_origin_does_not_effect_snap() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..BLOCKS, 7);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    trim_blocks(&mut client, 0, BLOCKS);
    write_blocks(&mut client, 0..8, 9);
    client.flush().expect("flushed");
    assert_eq!(place.used_bytes(), (BLOCKS + 8) * BLOCK);
    let mut snapshot = place.connect("s");
    (0..BLOCKS).for_each(|block| assert_eq!(read_byte(&mut snapshot, block), 7));
    // And the other way round.
    trim_blocks(&mut snapshot, 0, BLOCKS);
    used_becomes(&place, 8);
    assert_eq!([0, 7, 8].map(|block| read_byte(&mut client, block)), [9, 9, 0]);
    ends_well(&place, daemon);
}

/// Nobody flushes: a commit comes by itself, and a daemon that is killed then has not lost it.
#[test]
fn discard_triggers_commit() {
    let (place, daemon, mut client) = served();
    write_blocks(&mut client, 0..4, 1);
    client.flush().expect("flushed");
    trim_blocks(&mut client, 0, BLOCKS);
    std::thread::sleep(Duration::from_secs(2));
    daemon.kill();
    assert_eq!((place.used_bytes(), place.mapped_bytes("v")), (0, 0));
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

/// A writer and a reader go on in one half while the other is written and discarded again and again.
#[test]
fn discard_with_background_io() {
    let (place, daemon, mut client) = served();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let background = scope.spawn(|| {
            let mut other = place.connect("v");
            let mut round = 1_u8;
            while !is_over.load(Ordering::Relaxed) {
                write_blocks(&mut other, (BLOCKS / 2..BLOCKS).step_by(3), round);
                for block in (BLOCKS / 2..BLOCKS).step_by(3) {
                    assert_eq!(read_byte(&mut other, block), round);
                }
                round = round % 250 + 1;
            }
            round
        });
        for round in 0..20 {
            write_blocks(&mut client, 0..BLOCKS / 2, 100 + round);
            assert_eq!(read_byte(&mut client, 3), 100 + round);
            trim_blocks(&mut client, 0, BLOCKS / 2);
            assert_eq!(read_byte(&mut client, 3), 0);
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(background.join().expect("it went well") > 1);
    });
    used_becomes(&place, (BLOCKS / 2).div_ceil(3));
    ends_well(&place, daemon);
}

#[test]
fn discard_after_out_of_space() {
    let place = Place::with_pool("4M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    let written = (0..).take_while(|block| client.write(block * BLOCK, &[1; 65_536]).is_ok()).count();
    assert_eq!((written as u64, place.mode().as_str()), (BLOCKS, "out_of_data_space"));
    trim_blocks(&mut client, 0, 1024);
    eventually("it can be written again", || place.mode() == "rw" && place.used_bytes() == 0);
    write_blocks(&mut client, 100..100 + BLOCKS, 2);
    assert_eq!(place.used_bytes(), BLOCKS * BLOCK);
    ends_well(&place, daemon);
}

/// Blocks that are freed while the pool is full, from several sides at once, go to those who wait for them: none is lost, none is had
/// twice. (The kernel lost some, a685557: its mode fell back between the two.)
#[test]
fn discard_races_with_running_out_of_space() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "4M", "--when-full", "queue:20"]);
    place.ok(&["volume", "create", "./p/v", "--size", "8M"]);
    let daemon = place.serve(&[]);
    // Each fills a part of its own with twice what there is for it, and takes away what it wrote before.
    std::thread::scope(|scope| {
        for part in 0..4_u64 {
            let place = &place;
            scope.spawn(move || {
                let mut client = place.connect("v");
                let block_of = |step: u64| part * 32 + step % 32;
                for step in 0..200 {
                    if step >= 15 {
                        trim_blocks(&mut client, block_of(step - 15), 1);
                        assert_eq!(read_byte(&mut client, block_of(step - 15)), 0);
                    }
                    write_blocks(&mut client, [block_of(step)], (step % 250) as u8 + 1);
                    if step > 0 {
                        assert_eq!(read_byte(&mut client, block_of(step - 1)), ((step - 1) % 250) as u8 + 1);
                    }
                }
            });
        }
    });
    used_becomes(&place, 4 * 15);
    assert_eq!(place.mode(), "rw");
    ends_well(&place, daemon);
}

/// `ignore` leaves everything as it was; what a pool passes down may be changed in use, and holds from then on.
#[test]
fn enable_passdown_and_disable_passdown() {
    let (place, daemon, mut client) = served();
    place.ok(&["pool", "set", POOL, "--discard", "nopassdown"]);
    write_blocks(&mut client, 0..8, 1);
    client.flush().expect("flushed");
    let stored = stored_bytes(&place);
    trim_blocks(&mut client, 0, 4);
    used_becomes(&place, 4);
    assert_eq!(stored_bytes(&place), stored);
    place.ok(&["pool", "set", POOL, "--discard", "passdown"]);
    trim_blocks(&mut client, 4, 4);
    used_becomes(&place, 0);
    eventually("the space goes back", || stored_bytes(&place) <= stored - 4 * BLOCK);
    assert_eq!(read_byte(&mut client, 0), 0);
    ends_well(&place, daemon);
}
