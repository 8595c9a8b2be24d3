//! dm-thin's own scenarios of commits, metadata snapshots, growing and full pools, through the real binary and an NBD client.
//! `docs/scenarios.md` has the list.

mod cli_common;
mod common;

use cli_common::nbd::{Client, NO_SPACE};
use cli_common::{Daemon, POOL, Place, eventually};
use common::oracle;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: u64 = 65_536;

/// A pool with a volume `v` of 64 MiB, served, and a client of it. Without a journal: every flush is a commit, as dm-thin's are.
fn served(pool_size: &str) -> (Place, Daemon, Client) {
    let place = Place::with_faithful_pool(pool_size);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let client = place.connect("v");
    (place, daemon, client)
}

fn write_block(client: &mut Client, block: u64, byte: u8) {
    client.write(block * BLOCK, &[byte; BLOCK as usize]).expect("there is space");
}

fn accepted(place: &Place) {
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

fn ends_well(place: &Place, daemon: Daemon) {
    daemon.kill();
    accepted(place);
}

/// The whole metadata, as it is on the disk while nothing is under way.
fn metadata(place: &Place) -> Vec<u8> {
    fs::read(place.path("p/metadata")).expect("there")
}

/// Total bytes that the status tells of `data` or `metadata`.
fn total_bytes(place: &Place, of: &str) -> u64 {
    place.json(&["pool", "status", POOL])[of]["total_bytes"].as_u64().expect("a number")
}

/// `thin_dump`'s or another tool's output on the pool's metadata.
fn tool(place: &Place, name: &str, options: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uthin-fsck"));
    let output = command.arg(name).args(options).arg(place.path("p/metadata")).output().expect("it starts");
    assert!(output.status.success(), "{name} {options:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn pool_without_thin_devices_does_not_commit() {
    let place = Place::with_pool("16M");
    let daemon = place.serve(&[]);
    let before = metadata(&place);
    std::thread::sleep(Duration::from_secs(3));
    assert!(metadata(&place) == before, "three seconds, and no commit");
    ends_well(&place, daemon);
}

/// A flush writes metadata if and only if a mapping has changed: a fresh block, or sharing that ended; not for an overwrite.
#[test]
fn commit_if_changed() {
    let (place, daemon, mut client) = served("16M");
    let mut last = metadata(&place);
    let mut commits = |what: &str, expected: bool, client: &mut Client| {
        client.flush().expect("flushed");
        let now = metadata(&place);
        assert_eq!(now != last, expected, "{what}");
        last = now;
    };
    write_block(&mut client, 0, 1);
    commits("a fresh block", true, &mut client);
    commits("nothing", false, &mut client);
    write_block(&mut client, 0, 2);
    commits("an overwrite", false, &mut client);
    client.read(0, 512).expect("read");
    client.read(5 * BLOCK, 512).expect("read");
    commits("reads", false, &mut client);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    commits("a snapshot, which is durable without", true, &mut client);
    write_block(&mut client, 0, 3);
    commits("sharing that ended", true, &mut client);
    client.trim(0, BLOCK as usize).expect("discarded");
    commits("a discard", true, &mut client);
    client.trim(0, BLOCK as usize).expect("discarded");
    commits("a discard of nothing", false, &mut client);
    ends_well(&place, daemon);
}

#[test]
fn hold_release_cycle_empty_pool() {
    let place = Place::with_pool("16M");
    let used = || place.json(&["pool", "status", POOL])["metadata"]["used_bytes"].clone();
    let before = used();
    for served in [false, true] {
        let daemon = served.then(|| place.serve(&[]));
        for _ in 0..20 {
            place.ok(&["pool", "message", POOL, "reserve_metadata_snap"]);
            place.fails(&["pool", "message", POOL, "reserve_metadata_snap"], 6, "EBUSY");
            place.ok(&["pool", "message", POOL, "release_metadata_snap"]);
            place.fails(&["pool", "message", POOL, "release_metadata_snap"], 5, "EINVAL");
        }
        assert_eq!(used(), before);
        drop(daemon);
        accepted(&place);
    }
}

/// What is held is the state of its moment: its blocks are not used again, so that after everything was discarded and written anew the two
/// have no block in common. (Blocks that are mapped all the time are overwritten in place, as the kernel does: it is the metadata that is held.)
#[test]
fn held_dump() {
    let (place, daemon, mut client) = served("16M");
    (0..64).for_each(|block| write_block(&mut client, block, 1));
    client.flush().expect("flushed");
    place.ok(&["pool", "metadata-snapshot", POOL]);
    let blocks = |xml: &str| -> Vec<(u64, u64)> {
        let number = |line: &str, key: &str| {
            let value = line.split(&format!(" {key}=\"")).nth(1)?.split('"').next()?;
            value.parse::<u64>().ok()
        };
        let ranges = xml.lines().filter_map(|line| {
            let begin = number(line, "data_begin").or_else(|| number(line, "data_block"))?;
            Some((begin, begin + number(line, "length").unwrap_or(1)))
        });
        ranges.collect()
    };
    let held = tool(&place, "dump", &["--metadata-snap"]);
    assert_eq!(blocks(&held), [(0, 64)]);
    write_block(&mut client, 0, 2);
    client.trim(0, 64 * BLOCK as usize).expect("discarded");
    (0..64).for_each(|block| write_block(&mut client, block, 2));
    client.flush().expect("flushed");
    assert_eq!(tool(&place, "dump", &["--metadata-snap"]), held, "it is what it was");
    assert_eq!(place.used_bytes(), 128 * BLOCK);
    drop(client);
    daemon.kill();
    accepted(&place); // with a held root
    assert_eq!(tool(&place, "dump", &["--metadata-snap"]), held);
    let live = blocks(&tool(&place, "dump", &[]));
    assert!(!live.is_empty() && live.iter().all(|(begin, _)| *begin >= 64), "{live:?}");
    place.ok(&["pool", "metadata-snapshot", POOL, "--release"]);
    assert_eq!(place.used_bytes(), 64 * BLOCK);
    accepted(&place);
}

/// Reserved and released again and again beside a writer, and read by a tool each time (bz1382654, bz1286500).
#[test]
fn metadata_snap_stress() {
    let (place, daemon, mut client) = served("64M");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut step = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                step += 1;
                match step % 7 {
                    0 => client.trim(step * 5 % 512 * BLOCK, 8 * BLOCK as usize).expect("discarded"),
                    1 => client.flush().expect("flushed"),
                    _ => write_block(&mut client, step * 37 % 512, step as u8),
                }
            }
            client.flush().expect("flushed");
        });
        for round in 0..25 {
            place.ok(&["pool", "metadata-snapshot", POOL]);
            let first = tool(&place, "dump", &["--metadata-snap"]);
            assert_eq!(tool(&place, "dump", &["--metadata-snap"]), first, "round {round}");
            if round % 5 == 0 {
                tool(&place, "ls", &["--metadata-snap"]);
            }
            place.ok(&["pool", "metadata-snapshot", POOL, "--release"]);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    ends_well(&place, daemon);
}

/// The kernel once held what was not committed (0d200ae, 49e99fc, 5bcd4d3): everything that was acknowledged is in it, and survives
/// the daemon's death together with it.
#[test]
fn a_metadata_snapshot_holds_what_was_not_flushed() {
    let (place, daemon, mut client) = served("16M");
    (0..10).for_each(|block| write_block(&mut client, 3 * block, 1));
    place.ok(&["pool", "metadata-snapshot", POOL]);
    write_block(&mut client, 40, 1);
    daemon.kill();
    let held = tool(&place, "dump", &["--metadata-snap"]);
    assert_eq!(held.matches("single_mapping").count(), 10, "{held}");
    assert!(!held.contains("origin_block=\"40\""), "{held}");
    accepted(&place);
    let status = place.json(&["volume", "status", "./p/v"]);
    assert!(status["mapped_bytes"].as_u64().expect("a number") >= 10 * BLOCK, "it was committed with it");
}

/// Totals are exact after each step, data are there, and the checkers are content; served or not.
#[test]
fn metadata_resize_no_io() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "64M", "--metadata-size", "2M"]);
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    for (served, mebibytes) in [(false, 3_u64), (true, 4), (false, 67), (true, 68), (true, 131), (false, 300)]
    {
        let daemon = served.then(|| place.serve(&[]));
        place.ok(&["pool", "grow", POOL, "--metadata-size", &format!("{mebibytes}M")]);
        assert_eq!(total_bytes(&place, "metadata"), mebibytes << 20);
        drop(daemon);
        assert_eq!(total_bytes(&place, "metadata"), mebibytes << 20);
        assert_eq!(total_bytes(&place, "data"), 64 << 20);
        assert_eq!(place.names(), ["v"]);
        tool(&place, "check", &[]);
    }
}

/// Data and metadata grow in steps while a client writes past each old end.
#[test]
fn resize_with_io() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "4M", "--metadata-size", "2M", "--when-full", "queue:30"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = place.connect("v");
            for block in 0..512 {
                write_block(&mut client, block, block as u8 | 1);
                written.store(block + 1, Ordering::Relaxed);
            }
            client.flush().expect("flushed");
        });
        for step in 2..=8_u64 {
            eventually("the writer gets to the end", || {
                written.load(Ordering::Relaxed) >= (step - 1) * 64 || writer.is_finished()
            });
            place.ok(&["pool", "grow", POOL, "--size", &format!("{}M", step * 4)]);
            place.ok(&["pool", "grow", POOL, "--metadata-size", &format!("{}M", step + 1)]);
            assert_eq!(total_bytes(&place, "data"), (step * 4) << 20);
        }
        writer.join().expect("nothing failed");
    });
    daemon.kill();
    accepted(&place);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    for block in 0..512 {
        assert_eq!(client.read(block * BLOCK, 512), Ok(vec![block as u8 | 1; 512]));
    }
    drop((client, daemon));
    assert_eq!(place.used_bytes(), 512 * BLOCK);
}

/// Out of metadata space: what needs some is refused, cleanly and without the needs-check flag; deletions go through; and more metadata
/// make everything work. Then what was refused is done, and all is deleted.
#[test]
fn metadata_resize_after_exhaust() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "64M", "--metadata-size", "512K"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    let mut snapshots = 0_u64;
    let refused = loop {
        let name = format!("s{snapshots}");
        let outcome = place.run(&["volume", "snapshot", "./p/v", &name]);
        if outcome.code != 0 {
            break outcome;
        }
        snapshots += 1;
        if client.write(snapshots * BLOCK, &[snapshots as u8; 512]) == Err(NO_SPACE) {
            break place.run(&["volume", "snapshot", "./p/v", "one-more"]);
        }
        assert!(snapshots < 900, "512 KiB do not get full");
    };
    assert_eq!(refused.code, 7, "{refused:?}");
    refused.hint();
    client.flush().expect("nothing is lost");
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    assert!(line.contains(" rw ") && !line.contains("needs_check"), "{line}");
    place.ok(&["volume", "delete", "./p/s0"]);
    place.ok(&["pool", "grow", POOL, "--metadata-size", "4M"]);
    for number in 0..20 {
        place.ok(&["volume", "snapshot", "./p/v", &format!("later{number}")]);
        write_block(&mut client, 500 + number % 10, number as u8);
    }
    for number in 1..snapshots {
        assert_eq!(client.read(number * BLOCK, 512), Ok(vec![number as u8; 512]));
    }
    drop(client);
    daemon.kill();
    accepted(&place);
    let _daemon = place.serve(&[]);
    place.names().iter().for_each(|name| place.delete(name));
    eventually("everything is free", || place.used_bytes() == 0);
}

/// A data file that has become longer changes nothing until somebody says so.
#[test]
fn extra_data_space_must_not_be_used() {
    let place = Place::with_pool("4M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let data = File::options().write(true).open(place.path("p/data")).expect("there");
    data.set_len(8 << 20).expect("extended");
    for round in 0..2 {
        let daemon = place.serve(&[]);
        let mut client = place.connect("v");
        let written = (0..100).take_while(|block| client.write(block * BLOCK, &[1; 512]).is_ok()).count();
        assert_eq!((written, total_bytes(&place, "data")), (64, 4 << 20), "round {round}");
        drop(client);
        daemon.kill();
    }
    let mut behind = [0; 4096];
    data_of(&place).read_exact_at(&mut behind, 4 << 20).expect("read");
    assert_eq!(behind, [0; 4096]);
    place.ok(&["pool", "grow", POOL]);
    let daemon = place.serve(&[]);
    assert_eq!(total_bytes(&place, "data"), 8 << 20);
    write_block(&mut place.connect("v"), 100, 2);
    ends_well(&place, daemon);
}

fn data_of(place: &Place) -> File {
    File::open(place.path("p/data")).expect("there")
}

/// A writer waits for space; meanwhile what is mapped is read and written, by the same client and by others (bz1095639).
#[test]
fn io_to_provisioned_region_with_oods_held_io() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "4M", "--when-full", "queue:0"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..64).for_each(|block| write_block(&mut client, block, 1));
    std::thread::scope(|scope| {
        let mut other = place.connect("v");
        let waiting = scope.spawn(move || other.write(500 * BLOCK, &[5; 4096]));
        eventually("it waits", || place.json(&["pool", "status", POOL])["waiting_for_space"] == 1);
        for block in 0..64 {
            write_block(&mut client, block, 2);
            assert_eq!(client.read(block * BLOCK, 512), Ok(vec![2; 512]));
        }
        client.flush().expect("flushed");
        assert!(!waiting.is_finished());
        client.trim(0, BLOCK as usize).expect("discarded");
        assert_eq!(waiting.join().expect("it ends"), Ok(()));
    });
    assert_eq!(client.read(500 * BLOCK, 4096), Ok(vec![5; 4096]));
    ends_well(&place, daemon);
}

/// Waiting for space comes to its end with "no space", without the needs-check flag, and nothing else suffers.
#[test]
fn out_of_data_space_times_out() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "4M", "--when-full", "queue:1"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..64).for_each(|block| write_block(&mut client, block, 1));
    assert_eq!(client.write(500 * BLOCK, &[5; 4096]), Err(NO_SPACE));
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    assert!(line.contains(" out_of_data_space ") && !line.contains("needs_check"), "{line}");
    client.flush().expect("flushed");
    daemon.kill();
    accepted(&place);
    place.ok(&["pool", "grow", POOL, "--size", "8M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    write_block(&mut client, 500, 5);
    assert_eq!((place.mode().as_str(), client.read(0, 512)), ("rw", Ok(vec![1; 512])));
    ends_well(&place, daemon);
}

/// A block that is overwritten as a whole with FUA by the write that maps it is durable when that is acknowledged (the kernel forgot the FUA,
/// 4ae280b4): here, that it survives the daemon's death without a flush or a commit's time.
#[test]
fn fua_on_a_full_block_that_provisions() {
    let (place, daemon, mut client) = served("16M");
    for block in 0..20 {
        client.write_fua(block * 3 * BLOCK, &[block as u8 + 1; BLOCK as usize]).expect("there is space");
    }
    daemon.kill();
    accepted(&place);
    assert_eq!(place.mapped_bytes("v"), 20 * BLOCK);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    for block in 0..20 {
        let found = client.read(block * 3 * BLOCK, BLOCK as usize);
        assert!(found == Ok(vec![block as u8 + 1; BLOCK as usize]), "block {block}");
    }
    drop((client, daemon));
}

/// Two pools on one pair of files, or on each other's, destroy each other: refused with the process that has them.
#[test]
fn two_pools_pointing_to_the_same_metadata_fails() {
    let (place, daemon, client) = served("16M");
    fs::create_dir(place.path("q")).expect("made");
    for name in ["metadata", "data"] {
        std::os::unix::fs::symlink(place.path("p").join(name), place.path("q").join(name)).expect("linked");
    }
    let pid = daemon.pid().to_string();
    assert!(place.fails(&["serve", "./q"], 6, "q/metadata").stderr.contains(&pid));
    place.fails(&["volume", "create", "./q/x", "--size", "1M"], 6, &pid);
    drop(client);
    ends_well(&place, daemon);
    place.ok(&["pool", "create", "./r", "--size", "16M"]);
    let (one, two) = (place.serve(&[]), place.serve_by(&mut place.command(&["serve", "./r"])));
    place.ok(&["volume", "create", "./r/v", "--size", "1M"]);
    assert_eq!(place.names(), ["v"], "two pools beside each other");
    drop((one, two));
}

#[test]
fn filling_thin_device_returns_enospc() {
    let place = Place::with_pool("64M");
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..64).for_each(|block| write_block(&mut client, block, 1));
    assert_eq!(client.write(64 * BLOCK, &[1; 512]), Err(NO_SPACE), "past the end");
    assert_eq!(client.write(64 * BLOCK - 512, &[1; 1024]), Err(NO_SPACE), "across it");
    assert_eq!(client.read(64 * BLOCK - 512, 512), Ok(vec![1; 512]));
    assert_eq!(place.mode(), "rw");
    ends_well(&place, daemon);
}
