//! Volumes rolled back and resized, pools that grow, metadata snapshots: with a daemon and without, seen by an NBD client.

mod cli_common;
mod common;

use cli_common::nbd::{Client, NO_SPACE};
use cli_common::{POOL, Place};
use common::oracle;
use std::fs;

const BLOCK: usize = 65_536;
const MIB: u64 = 1 << 20;

fn write(client: &mut Client, block: u64, byte: u8) {
    client.write(block * BLOCK as u64, &[byte; BLOCK]).expect("written");
}

fn first_bytes(place: &Place, volume: &str, blocks: u64) -> Vec<u8> {
    let mut client = place.connect(volume);
    (0..blocks).map(|block| client.read(block * BLOCK as u64, 512).expect("read")[0]).collect()
}

/// An independent checker has nothing to say against the pool's metadata.
fn accepted(place: &Place) {
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

#[test]
fn a_volume_goes_back_to_a_snapshot_and_forth_again() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    write(&mut client, 0, 1);
    write(&mut client, 1, 1);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    write(&mut client, 1, 2);
    write(&mut client, 2, 2);
    assert_eq!(first_bytes(&place, "v", 4), [1, 2, 2, 0]);
    let busy = place.fails(&["volume", "rollback", "./p/v", "s"], 6, "in use by 1 client");
    assert!(busy.hint().contains("unmount"));
    let said = place.ok(&["volume", "rollback", "./p/v", "s", "--force"]);
    assert_eq!(said, "volume v holds what s holds; what it held before is kept as v.before-rollback-1\n");
    // Also for who had it open, and what is written now is in neither of the others.
    assert_eq!(client.read(BLOCK as u64, 512).expect("read")[0], 1);
    write(&mut client, 0, 3);
    assert_eq!(first_bytes(&place, "v", 4), [3, 1, 0, 0]);
    assert_eq!(first_bytes(&place, "s", 4), [1, 1, 0, 0]);
    assert_eq!(first_bytes(&place, "v.before-rollback-1", 4), [1, 2, 2, 0]);
    drop(client);
    daemon.kill();
    // Undone by the same command, without a daemon; it survived the daemon's death.
    let undone = place.json(&["volume", "rollback", "./p/v", "v.before-rollback-1", "--keep", "third"]);
    assert_eq!((&undone["kept"]["name"], &undone["kept"]["origin"]), (&"third".into(), &"v".into()));
    assert_eq!(place.names(), ["s", "third", "v", "v.before-rollback-1"]);
    let daemon = place.serve(&[]);
    assert_eq!(first_bytes(&place, "v", 4), [1, 2, 2, 0]);
    daemon.signal(rustix::process::Signal::TERM);
    for volume in ["s", "v", "third", "v.before-rollback-1"] {
        place.ok(&["volume", "delete", &format!("./p/{volume}")]);
    }
    assert_eq!(place.json(&["pool", "status", POOL])["data"]["used_bytes"], 0);
    accepted(&place);
}

#[test]
fn a_roll_back_that_cannot_be_changes_nothing() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    place.ok(&["volume", "create", "./p/large", "--size", "2M"]);
    place.ok(&["volume", "snapshot", "./p/v", "s", "--read-only"]);
    let catalog = fs::read(place.path("p/catalog.json")).expect("there");
    for (arguments, code, says) in [
        (vec!["./p/v", "x"], 5, "there is no volume `x`"),
        (vec!["./p/x", "v"], 5, "there is no volume `x`"),
        (vec!["./p/v", "v"], 2, "to itself"),
        (vec!["./p/v", "large"], 2, "fewer than the"),
        (vec!["./p/s", "v"], 5, "is read-only"),
        (vec!["./p/v", "s", "--keep", "large"], 5, "exists already"),
    ] {
        place.fails(&[&["volume", "rollback"], &arguments[..]].concat(), code, says).hint();
    }
    assert_eq!(fs::read(place.path("p/catalog.json")).expect("there"), catalog);
    accepted(&place);
}

#[test]
fn volumes_grow_in_use_and_shrink_with_care() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    assert_eq!(place.ok(&["volume", "resize", "./p/v", "--size", "+2M"]), "volume v: 1M -> 3M\n");
    write(&mut client, 3, 7);
    assert_eq!(client.size_bytes, MIB, "who has it open is not disturbed");
    let mut late = place.connect("v");
    assert_eq!(late.size_bytes, 3 * MIB);
    write(&mut late, 40, 8);
    place.fails(&["volume", "resize", "./p/v", "--size", "1M"], 6, "in use by 2 client").hint();
    drop((client, late));
    let refused = place.fails(&["volume", "resize", "./p/v", "--size", "1M"], 5, "data past its new end");
    assert!(refused.hint().contains("--discard-rest"));
    place.fails(&["volume", "resize", "./p/v", "--size", "0"], 2, "multiples of 512").hint();
    assert_eq!(place.connect("v").size_bytes, 3 * MIB, "nothing has changed");
    place.ok(&["volume", "resize", "./p/v", "--size", "1M", "--discard-rest"]);
    assert_eq!(place.json(&["pool", "status", POOL])["data"]["used_bytes"], BLOCK);
    // What was dropped does not come back.
    place.ok(&["volume", "resize", "./p/v", "--size", "3M"]);
    let mut client = place.connect("v");
    assert_eq!(client.read(40 * BLOCK as u64, 512).expect("read"), [0; 512]);
    assert_eq!(client.read(3 * BLOCK as u64, 512).expect("read"), [7; 512]);
    drop(client);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(place.json(&["volume", "resize", "./p/v", "--size", "512K"])["old_size_bytes"], 3 * MIB);
    accepted(&place);
}

#[test]
fn a_full_pool_grows_and_goes_on() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "256K", "--metadata-size", "1M"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..4).for_each(|block| write(&mut client, block, 1));
    assert_eq!(client.write(4 * BLOCK as u64, &[2; 512]), Err(NO_SPACE));
    assert_eq!(place.json(&["pool", "status", POOL])["mode"], "out_of_data_space");
    place.fails(&["pool", "grow", POOL, "--size", "128K"], 2, "cannot have 131072").hint();
    place.fails(&["pool", "grow", POOL, "--size", "+15E"], 2, "").hint();
    place.fails(&["pool", "grow", POOL, "--metadata-size", "100G"], 2, "the format ends at").hint();
    assert_eq!(fs::metadata(place.path("p/metadata")).expect("there").len(), MIB);
    assert_eq!(place.ok(&["pool", "grow", POOL]), "data: 256K as before\nmetadata: 1M as before\n");
    let said = place.ok(&["pool", "grow", POOL, "--size", "8M", "--metadata-size", "+2M"]);
    assert_eq!(said, "data: 256K -> 8M\nmetadata: 1M -> 3M\n");
    assert_eq!(place.json(&["pool", "status", POOL])["mode"], "rw");
    (4..128).for_each(|block| write(&mut client, block, 2));
    assert_eq!(client.write(128 * BLOCK as u64, &[2; 512]), Err(NO_SPACE));
    drop(client);
    daemon.kill();
    let daemon = place.serve(&[]);
    assert_eq!(first_bytes(&place, "v", 6), [1, 1, 1, 1, 2, 2]);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(fs::metadata(place.path("p/data")).expect("there").len(), 8 * MIB);
    accepted(&place);
    // Files that somebody has made larger are found to be so.
    fs::File::options().write(true).open(place.path("p/data")).expect("there").set_len(9 * MIB).expect("set");
    assert_eq!(place.json(&["pool", "grow", POOL])["data_bytes"], 9 * MIB);
    accepted(&place);
}

#[test]
fn growing_a_pool_does_not_hide_that_its_data_were_cut_off() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..32).for_each(|block| write(&mut client, block, 1));
    drop(client);
    fs::File::options().write(true).open(place.path("p/data")).expect("there").set_len(MIB).expect("set");
    let refused = place.run(&["pool", "grow", POOL, "--size", "32M"]);
    assert!(refused.code != 0 && refused.stderr.contains("truncated"), "{refused:?}");
    assert_eq!(fs::metadata(place.path("p/data")).expect("there").len(), MIB);
    daemon.kill();
}

#[test]
fn a_pool_that_cannot_grow_that_far_is_left_as_it_is() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "1M", "--metadata-size", "512K"]);
    place.fails(&["pool", "grow", POOL, "--size", "8T"], 7, "too few free metadata blocks").hint();
    assert_eq!(fs::metadata(place.path("p/data")).expect("there").len(), MIB);
    assert_eq!(place.ok(&["pool", "grow", POOL]), "data: 1M as before\nmetadata: 512K as before\n");
    accepted(&place);
}

#[test]
fn the_metadata_are_held_for_readers_and_let_go() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    write(&mut client, 0, 1);
    let held = place.json(&["pool", "metadata-snapshot", POOL])["held_root"].as_u64().expect("a block");
    place.fails(&["pool", "metadata-snapshot", POOL], 5, "is held at block").hint();
    assert_eq!(place.json(&["pool", "status", POOL])["held_root"], held);
    write(&mut client, 1, 1);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    client.flush().expect("flushed");
    accepted(&place); // the last commit, as a crash would leave it
    place.ok(&["pool", "metadata-snapshot", POOL, "--release"]);
    place.fails(&["pool", "metadata-snapshot", POOL, "--release"], 5, "no metadata snapshot is held").hint();
    drop(client);
    daemon.signal(rustix::process::Signal::TERM);
    accepted(&place);
}

#[test]
fn writes_wait_for_space_when_they_are_told_to() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "64K", "--when-full", "queue:0"]);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    write(&mut client, 0, 1);
    let waits_until = |mut client: Client, what: &dyn Fn()| {
        let writer = std::thread::spawn(move || client.write(BLOCK as u64, &[2; 512]));
        let status = || place.json(&["pool", "status", POOL]);
        while status()["waiting_for_space"] != 1 {
            assert!(!writer.is_finished(), "it waits");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(status()["mode"], "out_of_data_space");
        assert_eq!(place.connect("v").read(0, 512).expect("read")[0], 1, "others go on");
        what();
        writer.join().expect("no panic")
    };
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    assert!(line.contains(" queue_if_no_space "), "{line}");
    let refused = waits_until(place.connect("v"), &|| {
        place.ok(&["pool", "set", POOL, "--when-full", "error"]);
    });
    assert_eq!(refused, Err(NO_SPACE), "queueing no more");
    place.ok(&["pool", "set", POOL, "--when-full", "queue"]);
    let written = waits_until(place.connect("v"), &|| {
        place.ok(&["pool", "grow", POOL, "--size", "128K"]);
    });
    assert_eq!(written, Ok(()), "grown");
    place.ok(&["pool", "set", POOL, "--when-full", "queue:1"]);
    assert_eq!(place.connect("v").write(2 * BLOCK as u64, &[3; 512]), Err(NO_SPACE), "after a second");
    assert_eq!(place.connect("v").write(2 * BLOCK as u64, &[3; 512]), Err(NO_SPACE), "and then at once");
    place.ok(&["pool", "set", POOL, "--when-full", "queue:0"]);
    // Nobody is waited for at the end.
    let mut late = place.connect("v");
    let writer = std::thread::spawn(move || late.write(2 * BLOCK as u64, &[3; 512]));
    while place.json(&["pool", "status", POOL])["waiting_for_space"] != 1 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(client);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(writer.join().expect("no panic"), Err(NO_SPACE));
    accepted(&place);
    place.fails(&["pool", "set", POOL, "--when-full", "queue:x"], 2, "no way to be full").hint();
}

#[test]
fn a_volume_may_wait_for_space_where_others_do_not() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "64K"]);
    for volume in ["./p/v", "./p/patient"] {
        place.ok(&["volume", "create", volume, "--size", "64M"]);
    }
    let policy = |volume: &str| place.json(&["volume", "status", volume])["when_full"].clone();
    let set = place.json(&["volume", "set", "./p/patient", "--when-full", "queue:0"]);
    assert_eq!(set["when_full"], serde_json::json!({ "queue": 0 }));
    let daemon = place.serve(&[]);
    let (mut client, mut patient) = (place.connect("v"), place.connect("patient"));
    write(&mut client, 0, 1);
    let waits = |place: &Place| {
        while place.json(&["volume", "status", "./p/patient"])["waiting_for_space"] != 1 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let writer = std::thread::spawn(move || patient.write(0, &[2; 512]));
    waits(&place);
    assert_eq!(client.write(BLOCK as u64, &[3; 512]), Err(NO_SPACE), "the pool's policy");
    assert!(!writer.is_finished());
    assert_eq!(policy("./p/v"), serde_json::Value::Null);
    assert_eq!(
        place.ok(&["volume", "status", "./p/patient", "-H", "-o", "when_full"]),
        "queue without end\n"
    );
    place.ok(&["pool", "grow", POOL, "--size", "128K"]);
    assert_eq!(writer.join().expect("no panic"), Ok(()));

    // Changed while one waits, and nobody is waited for at the end.
    let mut patient = place.connect("patient");
    let writer = std::thread::spawn(move || patient.write(BLOCK as u64, &[2; 512]));
    waits(&place);
    place.ok(&["volume", "set", "./p/patient", "--when-full", "pool"]);
    assert_eq!(writer.join().expect("no panic"), Err(NO_SPACE));
    place.ok(&["volume", "set", "./p/patient", "--when-full", "queue"]);
    assert_eq!(policy("./p/patient"), serde_json::json!({ "queue": 60 }));
    let mut patient = place.connect("patient");
    let writer = std::thread::spawn(move || patient.write(BLOCK as u64, &[2; 512]));
    waits(&place);
    drop(client);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(writer.join().expect("no panic"), Err(NO_SPACE));
    assert_eq!(policy("./p/patient"), serde_json::json!({ "queue": 60 }), "it is kept");
    accepted(&place);
    place.fails(&["volume", "set", "./p/v", "--when-full", "queue:x"], 2, "no way to be full").hint();
}
