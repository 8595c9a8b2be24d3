//! dm-thin's own scenarios of snapshots, through the real binary and an NBD client. `docs/scenarios.md` has the list.

mod cli_common;
mod common;

use cli_common::control::ask;
use cli_common::nbd::Client;
use cli_common::{Daemon, POOL, Place, eventually};
use common::oracle;
use std::fs;
use std::process::Command;

const BLOCK: u64 = 65_536;
/// Blocks of the volume `v`.
const BLOCKS: u64 = 32;
const VOLUME_BYTES: usize = (BLOCKS * BLOCK) as usize;

/// A pool with a volume `v`, served, and a client of it.
fn served(pool_size: &str) -> (Place, Daemon, Client) {
    let place = Place::with_pool(pool_size);
    place.ok(&["volume", "create", "./p/v", "--size", "2M"]);
    let daemon = place.serve(&[]);
    let client = place.connect("v");
    (place, daemon, client)
}

/// Bytes that tell their sector and their writer.
fn stamped(seed: u8) -> Vec<u8> {
    (0..VOLUME_BYTES).map(|at| (at / 512 * 7) as u8 ^ seed).collect()
}

/// Writes all of it in requests of `step` bytes.
fn wipe(client: &mut Client, bytes: &[u8], step: usize) {
    for (number, part) in bytes.chunks(step).enumerate() {
        client.write((number * step) as u64, part).expect("there is space");
    }
}

fn holds(client: &mut Client, bytes: &[u8]) -> bool {
    client.read(0, bytes.len()).expect("read") == bytes
}

fn ends_well(place: &Place, daemon: Daemon) {
    daemon.kill();
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

/// A snapshot costs nothing, and as much as its origin once all sharing is broken.
#[test]
fn space_use() {
    let (place, daemon, mut client) = served("16M");
    wipe(&mut client, &stamped(1), 1 << 20);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    assert_eq!(place.used_bytes(), BLOCKS * BLOCK);
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &[2; 512]).expect("there is space");
    }
    assert_eq!(place.used_bytes(), 2 * BLOCKS * BLOCK);
    wipe(&mut client, &stamped(3), 4096);
    assert_eq!(place.used_bytes(), 2 * BLOCKS * BLOCK, "what is exclusive is written in place");
    assert!(holds(&mut place.connect("s"), &stamped(1)));
    ends_well(&place, daemon);
}

/// The origin, and the first and the last snapshot, are what they were after all the others came.
#[test]
fn many_snapshots_of_same_volume() {
    let (place, daemon, mut client) = served("16M");
    wipe(&mut client, &stamped(1), 1 << 20);
    place.ok(&["volume", "snapshot", "./p/v", "s0"]);
    client.write(0, &[9; 512]).expect("there is space");
    for number in 1..401 {
        let body = format!("{{\"name\": \"s{number}\"}}");
        let (status, answer) = ask(&place, "POST", "/v1/volumes/v/snapshot", &body);
        assert_eq!(status, 201, "{answer}");
    }
    assert_eq!(place.names().len(), 402);
    let changed = [&[9; 512], &stamped(1)[512..]].concat();
    assert!(holds(&mut client, &changed) && holds(&mut place.connect("s400"), &changed));
    assert!(holds(&mut place.connect("s0"), &stamped(1)));
    wipe(&mut client, &stamped(2), 65_536);
    assert!(holds(&mut client, &stamped(2)) && holds(&mut place.connect("s400"), &changed));
    assert_eq!(place.used_bytes(), (2 * BLOCKS + 1) * BLOCK);
    ends_well(&place, daemon);
}

/// Six volumes share all blocks, and all are overwritten at the same time.
#[test]
fn parallel_io_to_shared_thins() {
    let (place, daemon, mut client) = served("16M");
    wipe(&mut client, &stamped(0), 1 << 20);
    let names: Vec<_> = (1..=6).map(|number| format!("s{number}")).collect();
    for name in &names {
        place.ok(&["volume", "snapshot", "./p/v", name]);
    }
    std::thread::scope(|scope| {
        for (number, name) in names.iter().enumerate() {
            let mut client = place.connect(name);
            scope.spawn(move || {
                assert!(holds(&mut client, &stamped(0)), "before");
                // Small writes, so that each block is copied before it is overwritten.
                wipe(&mut client, &stamped(number as u8 + 1), [512, 4096, 12_800][number % 3]);
                client.flush().expect("flushed");
            });
        }
    });
    for (number, name) in names.iter().enumerate() {
        assert!(holds(&mut place.connect(name), &stamped(number as u8 + 1)), "{name}");
    }
    assert!(holds(&mut client, &stamped(0)), "the origin");
    assert_eq!(place.used_bytes(), 7 * BLOCKS * BLOCK);
    ends_well(&place, daemon);
}

/// Six sharers of each block, which is more than the two bits of a bitmap count; wiped one after the other, the counts come down again.
#[test]
fn ref_count_tree() {
    let (place, daemon, mut client) = served("16M");
    wipe(&mut client, &stamped(0), 1 << 20);
    let names: Vec<_> = (1..=5).map(|number| format!("s{number}")).collect();
    names.iter().for_each(|name| drop(place.ok(&["volume", "snapshot", "./p/v", name])));
    client.flush().expect("flushed");
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there")); // nothing is under way
    for (number, name) in names.iter().enumerate() {
        let mut snapshot = place.connect(name);
        wipe(&mut snapshot, &stamped(9), 1 << 20);
        snapshot.flush().expect("flushed");
        assert_eq!(place.used_bytes(), (number as u64 + 2) * BLOCKS * BLOCK);
        oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
    }
    assert!(holds(&mut client, &stamped(0)));
    names.iter().for_each(|name| place.delete(name));
    eventually("what they had is free", || place.used_bytes() == BLOCKS * BLOCK);
    ends_well(&place, daemon);
}

/// A volume changes a little, a snapshot is taken, and so on: each snapshot is its step, also after every second one is gone.
#[test]
fn many_snaps_with_changes() {
    let (place, daemon, mut client) = served("64M");
    let mut contents = vec![0; VOLUME_BYTES];
    let mut steps = Vec::new();
    for step in 0..40_usize {
        for at in [step * 37 % 4000, step * 101 % 4000, 5] {
            let bytes = [step as u8 + 1; 1024];
            client.write(at as u64 * 512, &bytes).expect("there is space");
            contents[at * 512..at * 512 + 1024].copy_from_slice(&bytes);
        }
        if step % 7 == 3 {
            let block = step % BLOCKS as usize;
            client.trim(block as u64 * BLOCK, BLOCK as usize).expect("discarded");
            contents[block * BLOCK as usize..][..BLOCK as usize].fill(0);
        }
        place.ok(&["volume", "snapshot", "./p/v", &format!("s{step}")]);
        steps.push(contents.clone());
    }
    let all_hold = |place: &Place, which: &dyn Fn(usize) -> bool| {
        for (step, contents) in steps.iter().enumerate().filter(|(step, _)| which(*step)) {
            assert!(holds(&mut place.connect(&format!("s{step}")), contents), "step {step}");
        }
    };
    all_hold(&place, &|_| true);
    (0..40).step_by(2).for_each(|step| place.delete(&format!("s{step}")));
    wipe(&mut client, &stamped(1), 1 << 20);
    all_hold(&place, &|step| step % 2 == 1);
    daemon.kill();
    let daemon = place.serve(&[]);
    all_hold(&place, &|step| step % 2 == 1);
    ends_well(&place, daemon);
}

#[test]
fn try_and_create_duplicates() {
    let (place, daemon, mut client) = served("16M");
    client.write(0, &[1; 512]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    place.ok(&["pool", "message", POOL, "create_snap 7 0"]);
    client.write(0, &[2; 512]).expect("there is space");
    place.fails(&["volume", "create", "./p/v", "--size", "2M"], 5, "exists").hint();
    place.fails(&["volume", "snapshot", "./p/v", "s"], 5, "exists").hint();
    place.fails(&["pool", "message", POOL, "create_snap 7 0"], 5, "EEXIST");
    place.fails(&["pool", "message", POOL, "create_thin 0"], 5, "EEXIST");
    assert_eq!(place.connect("s").read(0, 512), Ok(vec![1; 512]), "it is still the first one");
    assert_eq!(place.connect("7").read(0, 512), Ok(vec![1; 512]));
    assert_eq!(place.names(), ["7", "s", "v"]);
    ends_well(&place, daemon);
}

/// Changes of a snapshot do not show in its origin, whatever their size and place.
#[test]
fn pattern_stomper_snap() {
    stomp("s", "v");
}

/// Changes of the origin do not show in its snapshot.
#[test]
fn pattern_stomper_origin() {
    stomp("v", "s");
}

fn stomp(changes: &str, rests: &str) {
    let (place, daemon, mut client) = served("16M");
    wipe(&mut client, &stamped(5), 1 << 20);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let (mut changing, mut resting) = (place.connect(changes), place.connect(rests));
    let mut contents = stamped(5);
    for (round, length) in [512_usize, 4096, 65_536, 100_352].into_iter().enumerate() {
        for at in (round * 512..VOLUME_BYTES - length).step_by(5 * length.max(16_384)) {
            let bytes = vec![0x40 + round as u8; length];
            changing.write(at as u64, &bytes).expect("there is space");
            contents[at..at + length].copy_from_slice(&bytes);
        }
        assert!(holds(&mut resting, &stamped(5)), "requests of {length} bytes to {changes}");
        assert!(holds(&mut changing, &contents));
    }
    ends_well(&place, daemon);
}

/// What a pool says of itself while it is filled and emptied is what was written, to the block.
#[test]
fn pool_utilization_block() {
    let (place, daemon, mut client) = served("16M");
    let dm_used = || {
        let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
        let words: Vec<_> = line.split(' ').collect();
        let used = words[2].split('/').next().expect("used/total");
        used.parse::<u64>().expect("a number")
    };
    for block in 0..BLOCKS {
        client.write(block * BLOCK + 512, &[1; 512]).expect("there is space");
        assert_eq!(dm_used(), block + 1);
    }
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &[2; 512]).expect("there is space");
        assert_eq!((dm_used(), place.used_bytes()), (BLOCKS + block + 1, (BLOCKS + block + 1) * BLOCK));
    }
    drop(client);
    place.delete("v");
    eventually("half is free", || dm_used() == BLOCKS);
    place.ok(&["volume", "delete", "./p/s"]);
    eventually("all is free", || dm_used() == 0);
    ends_well(&place, daemon);
}

/// A filesystem in a volume: changed after a snapshot, both of them are whole, and the snapshot's files are those of its moment.
#[test]
fn ext4_create_snap_break_sharing() {
    let place = Place::with_pool("256M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let tool = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        text
    };
    let path = |name: &str| place.path(name).to_str().expect("text").to_owned();
    let uri = |volume: &str| format!("nbd+unix:///{volume}?socket={}", path("p/nbd.sock"));
    let (image, copy) = (path("image"), path("copy"));
    let files = |step: u8| {
        let folder = place.path("files");
        fs::create_dir_all(&folder).expect("made");
        (0..20).for_each(|number| {
            fs::write(folder.join(format!("{number}")), vec![step; 100_000]).expect("written");
        });
        tool("mkfs.ext4", &["-q", "-F", "-d", folder.to_str().expect("text"), &image, "64M"]);
        tool("nbdcopy", &[&image, &uri("v")]);
    };
    let is_whole = |volume: &str, step: u8| {
        tool("nbdcopy", &[&uri(volume), &copy]);
        tool("e2fsck", &["-fn", &copy]);
        tool("debugfs", &["-R", &format!("dump /7 {}", path("seven")), &copy]);
        assert_eq!(fs::read(place.path("seven")).expect("there"), vec![step; 100_000], "{volume}");
    };
    files(1);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    is_whole("s", 1);
    files(2);
    is_whole("v", 2);
    is_whole("s", 1);
    ends_well(&place, daemon);
}
