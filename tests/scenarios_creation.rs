//! dm-thin's own scenarios of creation and deletion, through the real binary and its clients. `docs/scenarios.md` has the list.

mod cli_common;
mod common;

use cli_common::control::message;
use cli_common::nbd::NO_SPACE;
use cli_common::{POOL, Place, eventually};
use common::oracle;
use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

const BLOCK: usize = 65_536;
/// As many as dm-thin's suites make.
const LOTS: u32 = 1000;

fn accepted(place: &Place) {
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

fn pool_in_memory() -> Place {
    let place = Place::in_memory();
    place.ok(&["pool", "create", POOL, "--size", "64M"]);
    place
}

/// Metadata blocks in use; with all volumes gone, a pool has as many as when it was new.
fn metadata_used(place: &Place) -> u64 {
    place.json(&["pool", "status", POOL])["metadata"]["used_bytes"].as_u64().expect("a number")
}

/// Deletes volumes 0 to `LOTS` and finds the pool empty.
fn delete_all(place: &Place, used_when_new: u64) {
    (0..LOTS).for_each(|number| message(place, &format!("delete {number}")));
    assert!(place.names().is_empty());
    eventually("everything is free", || place.used_bytes() == 0 && metadata_used(place) == used_when_new);
}

#[test]
fn lots_of_empty_thins() {
    let place = pool_in_memory();
    let daemon = place.serve(&[]);
    let used_when_new = metadata_used(&place);
    (0..LOTS).for_each(|number| message(&place, &format!("create_thin {number}")));
    daemon.kill();
    accepted(&place);
    let daemon = place.serve(&[]);
    let begin = Instant::now();
    assert_eq!(place.names().len(), LOTS as usize);
    assert!(begin.elapsed() < Duration::from_secs(5), "listed in {:?}", begin.elapsed());
    delete_all(&place, used_when_new);
    daemon.kill();
    accepted(&place);
}

#[test]
fn lots_of_empty_snaps() {
    let place = pool_in_memory();
    let daemon = place.serve(&[]);
    let used_when_new = metadata_used(&place);
    message(&place, "create_thin 0");
    (1..LOTS).for_each(|number| message(&place, &format!("create_snap {number} 0")));
    assert_eq!(place.names().len(), LOTS as usize);
    delete_all(&place, used_when_new);
    daemon.kill();
    accepted(&place);
}

/// Each of the one before. All of them show what the first held.
#[test]
fn lots_of_recursive_snaps() {
    let place = pool_in_memory();
    place.ok(&["pool", "message", POOL, "--size", "1M", "create_thin 0"]);
    let used_when_new = metadata_used(&place);
    let daemon = place.serve(&[]);
    place.connect("0").write(5 * BLOCK as u64, &[7; BLOCK]).expect("written");
    (1..LOTS).for_each(|number| message(&place, &format!("create_snap {number} {}", number - 1)));
    assert_eq!(place.used_bytes(), BLOCK as u64);
    for number in [1, LOTS / 2, LOTS - 1] {
        let mut client = place.connect(&number.to_string());
        assert_eq!(client.read(5 * BLOCK as u64, BLOCK), Ok(vec![7; BLOCK]), "{number}");
        client.write(5 * BLOCK as u64, &[number as u8; 512]).expect("written");
    }
    assert_eq!(place.connect("0").read(5 * BLOCK as u64, 512), Ok(vec![7; 512]));
    assert_eq!(place.used_bytes(), 4 * BLOCK as u64);
    daemon.kill();
    accepted(&place);
    let daemon = place.serve(&[]);
    delete_all(&place, used_when_new - 4096); // one volume's tree of its own is not there any more
    daemon.kill();
    accepted(&place);
}

#[test]
fn create_delete_cycle() {
    let place = pool_in_memory();
    let daemon = place.serve(&[]);
    let used_when_new = metadata_used(&place);
    for _ in 0..LOTS {
        message(&place, "create_thin 0");
        message(&place, "delete 0");
    }
    eventually("everything is free", || metadata_used(&place) == used_when_new);
    daemon.kill();
    accepted(&place);
}

/// Twenty at a time, each written, so that blocks go round as numbers do.
#[test]
fn create_delete_rolling() {
    let place = Place::with_pool("64M");
    let daemon = place.serve(&[]);
    let mut living = VecDeque::new();
    for number in 0..200_u32 {
        place.ok(&["pool", "message", POOL, "--size", "1M", &format!("create_thin {number}")]);
        let mut client = place.connect(&number.to_string());
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "volume {number} is blank");
        client.write(0, &[number as u8; 512]).expect("there is space");
        living.push_back((number, client));
        if living.len() > 20 {
            let (oldest, mut client) = living.pop_front().expect("there are some");
            assert_eq!(client.read(0, 512), Ok(vec![oldest as u8; 512]));
            drop(client);
            place.delete(&oldest.to_string());
        }
    }
    eventually("deleted blocks are free", || place.used_bytes() == 20 * BLOCK as u64);
    drop(living);
    daemon.kill();
    accepted(&place);
}

#[test]
fn delete_provisioned_thin() {
    let place = Place::with_pool("64M");
    place.ok(&["volume", "create", "./p/v", "--size", "16M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..16_u64).for_each(|step| client.write(step << 20, &[1; 1 << 20]).expect("there is space"));
    assert_eq!((place.used_bytes(), place.mapped_bytes("v")), (16 << 20, 16 << 20));
    drop(client);
    place.delete("v");
    eventually("everything is free", || place.used_bytes() == 0);
    let stored = || fs::metadata(place.path("p/data")).expect("there").blocks();
    eventually("the filesystem has its space back", || stored() == 0);
    daemon.kill();
    accepted(&place);
}

#[test]
fn delete_after_out_of_space() {
    let place = Place::with_pool("4M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    let written = (0..).take_while(|step| client.write(step << 16, &[1; BLOCK]).is_ok()).count();
    assert_eq!((written, place.mode().as_str()), (64, "out_of_data_space"));
    drop(client);
    place.delete("v");
    eventually("it can be written again", || place.mode() == "rw" && place.used_bytes() == 0);
    place.ok(&["volume", "create", "./p/w", "--size", "4M"]);
    let mut client = place.connect("w");
    assert_eq!(client.write(0, &[2; 4 << 20]), Ok(()), "all of it once more");
    assert_eq!(client.write(0, &[3; BLOCK]), Ok(()));
    daemon.kill();
    accepted(&place);
}

/// Blocks of 256 MiB: the rest of a block reads zeros, all of it can be written, and a snapshot costs a copy of it.
#[test]
fn huge_block_size() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "1G", "--block-size", "256M"]);
    place.ok(&["volume", "create", "./p/v", "--size", "512M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(300 << 20, &[1; 512]).expect("there is space");
    assert_eq!(place.used_bytes(), 256 << 20);
    assert_eq!(client.read((300 << 20) - 512, 1536), Ok([[0; 512], [1; 512], [0; 512]].concat()));
    assert_eq!(client.read(511 << 20, 1 << 20), Ok(vec![0; 1 << 20]));
    (0..16_u64).for_each(|step| client.write(step << 24, &[2; 1 << 24]).expect("there is space"));
    assert_eq!(place.used_bytes(), 512 << 20);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    client.write(1 << 20, &[3; 512]).expect("there is space");
    client.flush().expect("flushed");
    assert_eq!(place.used_bytes(), 768 << 20);
    assert_eq!(client.read(200 << 20, 512), Ok(vec![2; 512]), "copied");
    assert_eq!(place.connect("s").read(1 << 20, 512), Ok(vec![2; 512]));
    assert_eq!(client.write(300 << 20, &[3; 512]), Ok(()), "the last block");
    place.ok(&["volume", "snapshot", "./p/v", "s2"]);
    assert_eq!(client.write(0, &[4; 512]), Err(NO_SPACE), "there is none for another copy");
    daemon.kill();
    accepted(&place);
}

#[test]
fn largest_block_size_succeeds() {
    let place = Place::empty();
    let create = |size: &str| {
        ["pool", "create", POOL, "--size", "4G", "--no-zero", "--block-size", size].map(String::from)
    };
    for (size, why) in [("32K", "64K"), ("1025M", "1G"), ("65K", "64")] {
        let words = create(size);
        place.fails(&words.iter().map(String::as_str).collect::<Vec<_>>(), 2, why);
    }
    let words = create("1G");
    place.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    place.ok(&["volume", "create", "./p/v", "--size", "3G"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    for at in [0, (1 << 30) - 512, (3 << 30) - 512] {
        client.write(at, &[9; 512]).expect("there is space");
        assert_eq!(client.read(at, 512), Ok(vec![9; 512]));
    }
    assert_eq!(place.used_bytes(), 2 << 30);
    client.trim(0, 1 << 30).expect("discarded");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    drop(client);
    daemon.kill();
    accepted(&place);
}
