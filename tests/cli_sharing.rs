//! What of a volume is its own: told by `volume list` and `volume status`, live and without a daemon, and agreed on by the fsck.

mod cli_common;

use cli_common::{POOL, Place};
use std::collections::BTreeMap;
use std::process::Command;

const BLOCK: u64 = 65_536;

/// Blocks that are each volume's own, and shared ones, by its name. All of this moment.
fn sharing(place: &Place) -> BTreeMap<String, (u64, u64)> {
    let list = place.json(&["volume", "list", POOL]);
    let of = |volume: &serde_json::Value| {
        let sharing = &volume["sharing"];
        assert_eq!(sharing["current"], true, "{volume}");
        let blocks = |name: &str| sharing[name].as_u64().expect("a number") / BLOCK;
        let (own, shared) = (blocks("exclusive_bytes"), blocks("shared_bytes"));
        assert_eq!(volume["mapped_bytes"], (own + shared) * BLOCK);
        (volume["name"].as_str().expect("text").to_owned(), (own, shared))
    };
    list["volumes"].as_array().expect("a list").iter().map(of).collect()
}

/// The same from the metadata alone, by other code, by volume number.
fn sharing_by_fsck(place: &Place) -> Vec<(u64, u64)> {
    let output = Command::new(env!("CARGO_BIN_EXE_uthin-fsck"))
        .args(["ls", "--no-headers", "--format", "EXCLUSIVE_BLOCKS,SHARED_BLOCKS"])
        .arg(place.path("p/metadata"))
        .output()
        .expect("it starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let number = |word: &str| word.parse().expect("a number");
    let line = |line: &str| {
        let words: Vec<u64> = line.split_whitespace().map(number).collect();
        (words[0], words[1])
    };
    text.lines().map(line).collect()
}

fn expect(place: &Place, expected: &[(&str, u64, u64)]) {
    let expected = expected.iter().map(|(name, own, shared)| ((*name).to_owned(), (*own, *shared)));
    assert_eq!(sharing(place), expected.collect());
}

#[test]
fn what_deleting_a_volume_would_free_is_told_and_true() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let daemon = place.serve(&[]);
    let mut guest = place.connect("v");
    let write = |guest: &mut cli_common::nbd::Client, block: u64, blocks: u64| {
        guest.write(block * BLOCK, &vec![7; (blocks * BLOCK) as usize]).expect("there is space");
    };
    write(&mut guest, 0, 16);
    expect(&place, &[("v", 16, 0)]);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    expect(&place, &[("s", 0, 16), ("v", 0, 16)]);
    write(&mut guest, 0, 4);
    write(&mut guest, 20, 1);
    // What v has replaced is s's alone.
    expect(&place, &[("s", 4, 12), ("v", 5, 12)]);
    place.ok(&["volume", "snapshot", "./p/v", "t"]);
    write(&mut guest, 4, 1);
    expect(&place, &[("s", 4, 12), ("t", 0, 17), ("v", 1, 16)]);
    guest.trim(20 * BLOCK, BLOCK as usize).expect("discarded");
    expect(&place, &[("s", 4, 12), ("t", 1, 16), ("v", 1, 15)]);
    let used = |place: &Place| {
        place.json(&["pool", "status", POOL])["data"]["used_bytes"].as_u64().expect("a number")
    };
    let before = used(&place);
    place.ok(&["volume", "delete", "./p/s"]);
    // A number says what a deletion frees, and another volume's grows with it: block 4 was s's and t's.
    expect(&place, &[("t", 2, 15), ("v", 1, 15)]);
    assert_eq!(before - used(&place), 4 * BLOCK);
    place.ok(&["volume", "rollback", "./p/v", "t", "--keep", "kept", "--force"]);
    expect(&place, &[("kept", 1, 15), ("t", 0, 17), ("v", 0, 17)]);
    // While it is held, a metadata snapshot keeps what would be freed.
    place.ok(&["pool", "metadata-snapshot", POOL]);
    expect(&place, &[("kept", 0, 16), ("t", 0, 17), ("v", 0, 17)]);
    place.ok(&["pool", "metadata-snapshot", POOL, "--release"]);
    let live = sharing(&place);
    drop(guest);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(sharing(&place), live, "without a daemon as well");
    let mut by_fsck = sharing_by_fsck(&place);
    by_fsck.sort_unstable();
    let mut listed: Vec<_> = live.into_values().collect();
    listed.sort_unstable();
    assert_eq!(by_fsck, listed);
}

#[test]
fn the_numbers_are_shown_with_their_moment() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let daemon = place.serve(&[]);
    place.connect("v").write(0, &[1; 3 * BLOCK as usize]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    place.connect("v").write(0, &[2; BLOCK as usize]).expect("there is space");
    let table = place.ok(&["volume", "list", POOL, "-o", "name,mapped,exclusive,shared"]);
    let expected =
        "NAME  MAPPED  EXCLUSIVE  SHARED\ns       192K        64K    128K\nv       192K        64K    128K\n";
    assert_eq!(table, expected);
    let shown = place.json(&["volume", "status", "./p/s"]);
    let as_of = shown["sharing"]["as_of"].as_str().expect("text").to_owned();
    assert!(as_of.starts_with("20") && as_of.ends_with('Z'), "{as_of}");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(
        place.ok(&["volume", "status", "./p/v", "-H", "-p", "-o", "exclusive,shared"]),
        "65536\t131072\n"
    );
}

#[test]
fn a_number_under_load_is_never_of_another_time_than_it_says() {
    let place = Place::with_pool("64M");
    place.ok(&["volume", "create", "./p/v", "--size", "32M"]);
    let daemon = place.serve(&[]);
    place.connect("v").write(0, &vec![1; 16 << 20]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let socket = place.path("p/nbd.sock");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut guest = cli_common::nbd::Client::connect(&socket, "v").expect("it is served");
            for block in (0..256).cycle().take_while(|_| !stop.load(std::sync::atomic::Ordering::Relaxed)) {
                guest.write(block * BLOCK, &[3; BLOCK as usize]).expect("there is space");
                guest.flush().expect("flushed");
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    });
    let mut last = 0;
    for _ in 0..20 {
        let list = place.json(&["volume", "list", POOL]);
        let blocks = |volume: usize, name: &str| {
            list["volumes"][volume]["sharing"][name].as_u64().expect("counted") / BLOCK
        };
        // At any one moment: what v has replaced is its own, what it replaced is s's, and the rest is both's.
        let (s, v) = (
            (blocks(0, "exclusive_bytes"), blocks(0, "shared_bytes")),
            (blocks(1, "exclusive_bytes"), blocks(1, "shared_bytes")),
        );
        assert_eq!((s, s.0 + s.1), (v, 256), "{list}");
        assert!(s.0 >= last);
        last = s.0;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("it has written");
    assert!(last > 0);
    daemon.signal(rustix::process::Signal::TERM);
}
