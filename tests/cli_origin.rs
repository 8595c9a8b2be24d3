//! Volumes on external origins, through the real binary, with real NBD clients (nbdcopy, nbdinfo, qemu-io). The first four
//! are dm-thin's own scenarios, external-origin/snap-*: what is stamped on one side is verified on both.

mod cli_common;
mod common;

use cli_common::{POOL, Place};
use common::oracle;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

const BLOCK: usize = 65_536;
const MIB: usize = 1 << 20;

/// Bytes that differ from sector to sector and with `seed`, and are never 0.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at / 512 * 31 + at % 7) as u8).wrapping_add(seed) | 1).collect()
}

/// A client's output. One that is missing fails its test with the package that has it.
fn client(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout").args(["--kill-after=5", "120", program]).args(arguments).output();
    let output = output.expect("timeout starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_ne!(output.status.code(), Some(127), "{program} is missing: apt-get install {package}");
    assert!(output.status.success(), "{program} {arguments:?} failed:\n{text}");
    text
}

fn uri(place: &Place, volume: &str) -> String {
    format!("nbd+unix:///{volume}?socket={}", place.path("p/nbd.sock").display())
}

/// All that a client sees of a volume.
fn contents(place: &Place, volume: &str) -> Vec<u8> {
    let copy = place.path("copy");
    client("libnbd-bin", "nbdcopy", &[&uri(place, volume), copy.to_str().expect("text")]);
    fs::read(copy).expect("there")
}

/// A place with a pool and an origin `base` of these bytes.
fn place_with_origin(origin: &[u8]) -> (Place, PathBuf) {
    let place = Place::with_pool("16M");
    let base = place.path("base");
    fs::write(&base, origin).expect("written");
    (place, base)
}

/// What a volume of `size` on `origin` shows before anybody has written to it.
fn shown(origin: &[u8], size: usize) -> Vec<u8> {
    origin.iter().copied().chain(std::iter::repeat(0)).take(size).collect()
}

fn accepted(place: &Place) {
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

/// Stamps and verifies a volume of `size` bytes on an origin of `origin_length`, and the origin beside it.
fn stamped_and_verified(origin_length: usize, size: Option<usize>) {
    let origin = pattern(3, origin_length);
    let (place, base) = place_with_origin(&origin);
    let text = size.map(|size| format!("--size={size}"));
    let create = ["volume", "create", "./p/v", "--origin", "base"];
    place.ok(&[&create[..], &text.as_deref().into_iter().collect::<Vec<_>>()].concat());
    let size = size.unwrap_or(origin_length);
    let mut expected = shown(&origin, size);
    let daemon = place.serve(&[]);
    assert!(contents(&place, "v") == expected);

    // Parts of blocks, at both sides of the origin's end and across it, and a whole block.
    let mut guest = place.connect("v");
    let places = [
        (512, 4096),
        (BLOCK - 512, 1024),
        (2 * BLOCK, BLOCK),
        (origin_length.saturating_sub(1024), 512),
        (origin_length.saturating_sub(512), 1024),
        (origin_length + 512, 512),
        (origin_length.next_multiple_of(BLOCK) + 4096, 512),
        (size - 512, 512),
    ];
    for (number, (at, length)) in places.into_iter().enumerate() {
        if at + length <= size {
            let stamp = pattern(100 + number as u8, length);
            guest.write(at as u64, &stamp).expect("there is space");
            expected[at..at + length].copy_from_slice(&stamp);
            assert!(contents(&place, "v") == expected, "after {length} bytes at {at}");
        }
    }
    guest.flush().expect("flushed");
    drop(guest);
    daemon.kill();
    let daemon = place.serve(&[]);
    assert!(contents(&place, "v") == expected, "it survives the daemon's death");

    // All of it is stamped, and the origin is not touched.
    let image = pattern(77, size);
    fs::write(place.path("image"), &image).expect("written");
    client("libnbd-bin", "nbdcopy", &[place.path("image").to_str().expect("text"), &uri(&place, "v")]);
    assert!(contents(&place, "v") == image);
    assert!(fs::read(&base).expect("there") == origin);

    // A discard brings the origin back.
    place.connect("v").trim(0, size).expect("discarded");
    assert!(contents(&place, "v") == shown(&origin, size));
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(place.json(&["pool", "status", POOL])["data"]["used_bytes"], 0);
    accepted(&place);
}

#[test]
fn snap_equal_size() {
    stamped_and_verified(MIB, None);
}

#[test]
fn snap_smaller_than_origin() {
    stamped_and_verified(MIB, Some(5 * BLOCK));
    stamped_and_verified(MIB, Some(5 * BLOCK + 1536));
}

#[test]
fn snap_bigger_than_origin() {
    stamped_and_verified(4 * BLOCK, Some(MIB));
}

#[test]
fn snap_fractional_tail_block() {
    stamped_and_verified(100 << 10, Some(MIB));
    stamped_and_verified(3 * BLOCK + 1536, None);
}

#[test]
fn a_large_block_is_copied_in_chunks_up_to_the_origin_s_end() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "16M", "--block-size", "1M"]);
    let origin = pattern(5, 700 << 10);
    fs::write(place.path("base"), &origin).expect("written");
    place.ok(&["volume", "create", "./p/v", "--origin", "base", "--size", "2M"]);
    let _daemon = place.serve(&[]);
    let mut expected = shown(&origin, 2 * MIB);
    for at in [300 << 10, (700 << 10) - 512] {
        place.connect("v").write(at as u64, &[9; 1024]).expect("there is space");
        expected[at..at + 1024].fill(9);
        assert!(contents(&place, "v") == expected, "{at}");
    }
}

#[test]
fn zeros_are_zeros_where_the_origin_would_show() {
    let origin = pattern(8, 5 * BLOCK + 1024);
    let (place, _) = place_with_origin(&origin);
    place.ok(&["volume", "create", "./p/v", "--origin", "base", "--size", "1M"]);
    let daemon = place.serve(&[]);
    let mut expected = shown(&origin, MIB);
    let mapped = |place: &Place| place.json(&["volume", "status", "./p/v"])["mapped_bytes"].clone();
    // Whole blocks, parts of blocks, across the end, and behind it, where a hole will do.
    client("qemu-utils", "qemu-io", &["-f", "raw", "-c", "write -z -u 64k 128k", &uri(&place, "v")]);
    expected[BLOCK..3 * BLOCK].fill(0);
    let mut guest = place.connect("v");
    guest.zero(3 * BLOCK as u64 + 512, 512).expect("there is space");
    expected[3 * BLOCK + 512..3 * BLOCK + 1024].fill(0);
    assert!(contents(&place, "v") == expected);
    assert_eq!(mapped(&place), 3 * BLOCK);
    guest.zero(5 * BLOCK as u64 + 1024, MIB - 5 * BLOCK - 1024).expect("nothing to do");
    assert_eq!(mapped(&place), 3 * BLOCK, "there is no origin");
    guest.zero(5 * BLOCK as u64, MIB - 5 * BLOCK).expect("there is space");
    expected[5 * BLOCK..].fill(0);
    assert!(contents(&place, "v") == expected);
    assert_eq!(mapped(&place), 4 * BLOCK);
    // And the other way round: what was written is zeroed by unmapping only where zeros show.
    guest.write(0, &pattern(1, MIB)).expect("there is space");
    guest.zero(0, MIB).expect("there is space");
    assert!(contents(&place, "v").iter().all(|byte| *byte == 0));
    assert_eq!(mapped(&place), 6 * BLOCK);
    guest.flush().expect("flushed");
    drop(guest);
    daemon.kill();
    let _daemon = place.serve(&[]);
    assert!(contents(&place, "v").iter().all(|byte| *byte == 0));
}

#[test]
fn clients_are_told_zeros_only_where_there_are_zeros() {
    let (place, _) = place_with_origin(&pattern(2, 2 * BLOCK + 1024));
    place.ok(&["volume", "create", "./p/v", "--origin", "base", "--size", "1M"]);
    let _daemon = place.serve(&[]);
    place.connect("v").write(4 * BLOCK as u64, &[1; BLOCK]).expect("there is space");
    let map = client("libnbd-bin", "nbdinfo", &["--map", "--json", &uri(&place, "v")]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let runs: Vec<_> = map
        .as_array()
        .expect("a list")
        .iter()
        .map(|run| (run["length"].as_u64().expect("a number"), run["type"].as_u64().expect("a number")))
        .collect();
    let (shown, block) = (2 * BLOCK as u64 + 1024, BLOCK as u64);
    let expected = [(shown, 0), (4 * block - shown, 3), (block, 0), (MIB as u64 - 5 * block, 3)];
    assert_eq!(runs, expected);
}

#[test]
fn snapshots_have_their_volume_s_origin_and_keep_it_through_everything() {
    let origin = pattern(4, 4 * BLOCK);
    let (place, base) = place_with_origin(&origin);
    let made = place.json(&["volume", "create", "./p/v", "--origin", "base"]);
    let base = base.to_str().expect("text").to_owned();
    assert_eq!(
        (&made["size_bytes"], &made["external_origin"]["path"]),
        (&(4 * BLOCK).into(), &base.clone().into())
    );
    let daemon = place.serve(&[]);
    let write = |volume: &str, block: usize, byte: u8| {
        place.connect(volume).write((block * BLOCK) as u64, &[byte; 512]).expect("there is space");
    };
    let stamped = |stamps: &[(usize, u8)]| {
        let mut bytes = origin.clone();
        stamps.iter().for_each(|(block, byte)| bytes[block * BLOCK..][..512].fill(*byte));
        bytes
    };
    write("v", 0, 1);
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    write("v", 1, 2);
    write("s", 2, 3);
    assert!(contents(&place, "v") == stamped(&[(0, 1), (1, 2)]));
    assert!(contents(&place, "s") == stamped(&[(0, 1), (2, 3)]));
    place.ok(&["volume", "create", "./p/plain", "--size", "256K"]);
    place.ok(&["volume", "snapshot", "./p/v", "g1", "--group", "plain=g2"]);
    place.ok(&["volume", "rename", "./p/s", "t"]);
    place.ok(&["volume", "rollback", "./p/v", "t", "--keep", "kept"]);
    place.fails(&["volume", "rollback", "./p/v", "plain"], 2, "different external origins").hint();
    place.fails(&["volume", "rollback", "./p/plain", "v"], 2, "different external origins").hint();
    daemon.kill();
    let check = || {
        assert!(contents(&place, "v") == stamped(&[(0, 1), (2, 3)]));
        assert!(contents(&place, "t") == stamped(&[(0, 1), (2, 3)]));
        assert!(contents(&place, "kept") == stamped(&[(0, 1), (1, 2)]));
        assert!(contents(&place, "g1") == stamped(&[(0, 1), (1, 2)]));
        assert!(contents(&place, "g2").iter().all(|byte| *byte == 0));
    };
    let daemon = place.serve(&[]);
    check();
    write("g1", 3, 7);
    assert!(contents(&place, "g1") == stamped(&[(0, 1), (1, 2), (3, 7)]));
    place.connect("g1").trim(3 * BLOCK as u64, BLOCK).expect("discarded");
    check();
    // Without a daemon as well.
    daemon.signal(rustix::process::Signal::TERM);
    place.ok(&["volume", "snapshot", "./p/g1", "last"]);
    place.ok(&["volume", "delete", "./p/g1"]);
    place.ok(&["volume", "snapshot", "./p/last", "g1"]);
    let columns = ["volume", "list", POOL, "-H", "-o", "name,external_origin"];
    let (on, off) = (["g1", "kept", "last", "t", "v"], ["g2", "plain"]);
    let mut lines: Vec<_> = on.map(|name| format!("{name}\t{base}\n")).into_iter().collect();
    lines.extend(off.map(|name| format!("{name}\t-\n")));
    lines.sort();
    assert_eq!(place.ok(&columns), lines.concat());
    let daemon = place.serve(&[]);
    check();
    for name in on.into_iter().chain(off) {
        place.ok(&["volume", "delete", &format!("./p/{name}")]);
    }
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(place.json(&["pool", "status", POOL])["data"]["used_bytes"], 0);
    accepted(&place);
}

#[test]
fn a_snapshot_that_a_message_made_has_its_volume_s_origin_for_good() {
    let base = pattern(5, 1 << 20);
    let (place, _) = place_with_origin(&base);
    place.ok(&["volume", "create", "./p/v", "--origin", "base"]);
    let id = place.json(&["volume", "status", "./p/v"])["id"].to_string();
    place.ok(&["pool", "message", POOL, &format!("create_snap 77 {id}")]);
    let volumes = place.json(&["volume", "list", POOL]);
    let made = volumes["volumes"].as_array().expect("volumes").iter().find(|volume| volume["id"] == 77);
    let made = made.expect("it was made")["name"].as_str().expect("a name").to_owned();
    let _daemon = place.serve(&[]);
    assert!(contents(&place, &made) == base, "after the pool was opened again");
}

#[test]
fn a_volume_grows_over_its_origin_and_past_it() {
    let origin = pattern(6, 6 * BLOCK + 512);
    let (place, _) = place_with_origin(&origin);
    place.ok(&["volume", "create", "./p/v", "--origin", "base", "--size", "192K"]);
    let _daemon = place.serve(&[]);
    place.connect("v").write(BLOCK as u64, &[1; BLOCK]).expect("there is space");
    place.ok(&["volume", "resize", "./p/v", "--size", "1M"]);
    let mut expected = shown(&origin, MIB);
    expected[BLOCK..2 * BLOCK].fill(1);
    assert!(contents(&place, "v") == expected);
    place.ok(&["volume", "resize", "./p/v", "--size", "64K", "--discard-rest"]);
    place.ok(&["volume", "resize", "./p/v", "--size", "1M"]);
    assert!(contents(&place, "v") == shown(&origin, MIB));
}

#[test]
fn an_origin_is_shown() {
    let (place, base) = place_with_origin(&pattern(1, MIB));
    let base = base.to_str().expect("text").to_owned();
    let said = place.ok(&["volume", "create", "./p/v", "--origin", "./base", "--label", "a=b"]);
    assert_eq!(said, format!("volume v made: 1M on {base}\n"));
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let expected = serde_json::json!({ "path": base, "size_bytes": MIB, "problem": null });
    let volumes = place.json(&["volume", "list", POOL]);
    let [s, v] = [&volumes["volumes"][0], &volumes["volumes"][1]];
    assert_eq!((&v["external_origin"], &v["origin"]), (&expected, &serde_json::Value::Null));
    assert_eq!((&s["external_origin"], &s["origin"]), (&expected, &"v".into()));
    assert_eq!(place.ok(&["volume", "list", POOL, "-H", "-o", "name,origin"]), format!("s\tv\nv\t{base}\n"));
    let mut shown = place.json(&["volume", "status", "./p/v"]);
    shown.as_object_mut().expect("an object").remove("schema");
    shown["sharing"]["as_of"] = v["sharing"]["as_of"].clone(); // counted anew, perhaps in the next second
    assert_eq!(&shown, v);
    let text = place.ok(&["volume", "status", "./p/v"]);
    let line = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .split_whitespace()
            .last()
            .expect("a word")
            .to_owned()
    };
    assert_eq!((line(&text, "external origin"), line(&text, "labels")), (base, "a=b".to_owned()));
    assert_eq!(place.ok(&["volume", "status", "./p/v", "-H", "-o", "size"]), "1M\n");
    place.fails(&["volume", "status", "./p/x"], 5, "there is no volume `x`").hint();
}

fn modify(path: &Path) {
    let file = File::options().write(true).open(path).expect("there");
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("set");
}

#[test]
fn a_volume_whose_origin_is_gone_or_changed_is_not_served_and_all_others_are() {
    let origin = pattern(1, 4 * BLOCK);
    let (place, base) = place_with_origin(&origin);
    place.ok(&["volume", "create", "./p/v", "--origin", "base"]);
    place.ok(&["volume", "create", "./p/plain", "--size", "1M"]);
    fs::rename(&base, place.path("elsewhere")).expect("moved");
    let daemon = place.serve(&[]);
    let log = fs::read_to_string(place.path("serve.log")).expect("there");
    assert!(log.contains("external origin") && log.contains("o such file"), "{log}");
    let refused = |says: &str| {
        let socket = place.path("p/nbd.sock");
        assert!(cli_common::nbd::Client::connect(&socket, "v").is_err());
        let output = Command::new("qemu-img").args(["info", &uri(&place, "v")]).output();
        let output = output.expect("qemu-img: apt-get install qemu-utils");
        assert!(!output.status.success());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(says) && told.contains("volume `v`: external origin"), "{told}");
        let problem = place.json(&["volume", "status", "./p/v"])["external_origin"]["problem"].to_string();
        assert!(problem.contains(says), "{problem}");
    };
    refused("o such file");
    // The rest of the pool goes on, and so does what needs no origin.
    place.connect("plain").write(0, &[1; 512]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    place.ok(&["volume", "rename", "./p/s", "t"]);
    // It is back, and whoever connects gets the volume.
    fs::rename(place.path("elsewhere"), &base).expect("moved");
    assert!(contents(&place, "v") == origin && contents(&place, "t") == origin);
    daemon.signal(rustix::process::Signal::TERM);

    modify(&base);
    let daemon = place.serve(&[]);
    refused("modified");
    place.fails(&["volume", "set", "./p/plain", "--origin", "base"], 5, "without an external origin").hint();
    fs::write(place.path("other"), pattern(9, 5 * BLOCK)).expect("written");
    place.fails(&["volume", "set", "./p/v", "--origin", "other"], 2, "bytes, and").hint();
    place.fails(&["volume", "set", "./p/v", "--origin", "none"], 5, "none").hint();
    let said = place.ok(&["volume", "set", "./p/v", "--origin", "base"]);
    assert!(said.ends_with(&format!(", on {}\n", base.display())), "{said}");
    assert!(contents(&place, "v") == origin && contents(&place, "t") == origin, "for all that share it");
    // Elsewhere: not while a client is there.
    fs::rename(&base, place.path("elsewhere")).expect("moved");
    let guest = place.connect("t");
    place.fails(&["volume", "set", "./p/v", "--origin", "elsewhere"], 6, "volume `t` is in use").hint();
    drop(guest);
    daemon.signal(rustix::process::Signal::TERM);
    place.ok(&["volume", "set", "./p/v", "--origin", "elsewhere", "--label", "moved=yes"]);
    let daemon = place.serve(&[]);
    assert!(contents(&place, "v") == origin && contents(&place, "t") == origin);
    daemon.signal(rustix::process::Signal::TERM);

    File::options()
        .write(true)
        .open(place.path("elsewhere"))
        .and_then(|file| file.set_len(512))
        .expect("cut off");
    let daemon = place.serve(&[]);
    refused("it has 512 bytes now, and had 262144");
    place.ok(&["volume", "delete", "./p/v"]);
    place.ok(&["volume", "delete", "./p/t"]);
    daemon.signal(rustix::process::Signal::TERM);
    accepted(&place);
}

#[test]
fn an_origin_that_is_cut_off_while_it_is_used_reads_errors_and_never_zeros() {
    let origin = pattern(1, 4 * BLOCK);
    let (place, base) = place_with_origin(&origin);
    place.ok(&["volume", "create", "./p/v", "--origin", "base"]);
    let _daemon = place.serve(&[]);
    let mut guest = place.connect("v");
    File::options().write(true).open(&base).and_then(|file| file.set_len(BLOCK as u64)).expect("cut off");
    assert_eq!(guest.read(0, BLOCK), Ok(origin[..BLOCK].to_vec()));
    assert_eq!(guest.read(2 * BLOCK as u64, 512), Err(cli_common::nbd::IO));
    assert_eq!(guest.write(2 * BLOCK as u64, &[1; 512]), Err(cli_common::nbd::IO));
    assert_eq!(guest.write(2 * BLOCK as u64, &[1; BLOCK]), Ok(()), "a whole block needs nothing of it");
    assert_eq!(guest.read(2 * BLOCK as u64, BLOCK), Ok(vec![1; BLOCK]));
    assert_eq!(place.json(&["volume", "status", "./p/v"])["mapped_bytes"], BLOCK);
}

#[test]
fn what_cannot_be_an_origin_is_refused_and_changes_nothing() {
    let (place, _) = place_with_origin(&pattern(1, 1000));
    let catalog = fs::read(place.path("p/catalog.json")).expect("there");
    let create = |origin: &str, code, says: &str| {
        place.fails(&["volume", "create", "./p/v", "--origin", origin], code, says).hint();
    };
    create("base", 2, "1000 bytes");
    create("none", 5, "none");
    create("p", 2, "a directory");
    create("p/data", 2, "cannot stand on itself");
    create("p/metadata", 2, "cannot stand on itself");
    place.fails(&["volume", "create", "./p/v"], 2, "--size");
    place.fails(&["volume", "create", "./p/v", "--origin", "base", "--size", "1000"], 2, "multiple");
    // Another pool's data, while that is in use.
    place.ok(&["pool", "create", "./q", "--size", "1M"]);
    let mut other = place.command(&["serve", "./q"]);
    let other = place.serve_by(&mut other);
    create("q/data", 6, "in use");
    other.signal(rustix::process::Signal::TERM);
    let daemon = place.serve(&[]);
    create("p/data", 2, "cannot stand on itself");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!((fs::read(place.path("p/catalog.json")).expect("there"), place.names().len()), (catalog, 0));
}

#[test]
fn an_origin_is_shared_by_pools_and_not_with_a_writer() {
    let origin = pattern(1, 4 * BLOCK);
    let (place, _) = place_with_origin(&origin);
    place.ok(&["pool", "create", "./q", "--size", "1M"]);
    for pool in ["./p", "./q"] {
        place.ok(&["volume", "create", &format!("{pool}/v"), "--origin", "base"]);
    }
    let _one = place.serve(&[]);
    let mut other = place.command(&["serve", "./q"]);
    let _other = place.serve_by(&mut other);
    assert!(contents(&place, "v") == origin);
    let writer = ["pool", "create", "./r", "--data", "base", "--force"];
    place.fails(&writer, 6, "in use");
}
