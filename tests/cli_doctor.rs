//! The doctor: every kind of misfit is found, said with its exit code, and mended where that loses nothing.

mod cli_common;
mod common;

use cli_common::{POOL, Place, eventually};
use std::fs::{self, File};
use std::os::unix::net::UnixListener;

const DOCTOR: [&str; 3] = ["pool", "doctor", POOL];

/// Code, severity and whether it is mended, of each finding; the command ends with `code`.
fn findings(place: &Place, more: &[&str], code: i32) -> Vec<(String, String, bool)> {
    let arguments = [&DOCTOR[..], more, &["--json"]].concat();
    let outcome = place.run(&arguments);
    assert_eq!(outcome.code, code, "{outcome:?}");
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!((&value["schema"], &value["pools"][0]["pool"]), (&"uthin/v1".into(), &POOL.into()));
    let list = value["pools"][0]["findings"].as_array().expect("a list");
    let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().expect("text").to_owned();
    list.iter().map(|one| (word(one, "code"), word(one, "severity"), one["mended"] == true)).collect()
}

fn one(code: &str, severity: &str, mended: bool) -> Vec<(String, String, bool)> {
    vec![(code.to_owned(), severity.to_owned(), mended)]
}

/// Found with `code`, said in words, mended, and not found again.
fn is_mended(place: &Place, name: &str, severity: &str, code: i32, says: &str) {
    let before = tree(place);
    assert_eq!(findings(place, &[], code), one(name, severity, false));
    assert!(tree(place) == before, "looking writes nothing");
    let outcome = place.run(&DOCTOR);
    assert!(outcome.stdout.contains(says) && outcome.stdout.contains("--mend "), "{outcome:?}");
    assert_eq!(findings(place, &["--mend"], 0), one(name, severity, true));
    assert_eq!(findings(place, &["--mend"], 0), []);
    common::oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

/// Names and contents of the pool's files; of data only the size.
fn tree(place: &Place) -> Vec<(String, u64, Vec<u8>)> {
    let read = |name: &String| {
        let path = place.path("p").join(name);
        let length = fs::metadata(&path).map_or(0, |file| file.len());
        (name.clone(), length, if name == "data" { vec![] } else { fs::read(&path).unwrap_or_default() })
    };
    place.files("p").iter().map(read).collect()
}

fn pool_with_volumes() -> Place {
    let place = Place::with_pool("64M");
    place.ok(&["volume", "create", "./p/a", "--size", "1M"]);
    place.ok(&["volume", "create", "./p/b", "--size", "1M"]);
    assert_eq!(findings(&place, &[], 0), []);
    assert_eq!(place.ok(&DOCTOR), "pool ./p: nothing to mend\n");
    place
}

fn catalog(place: &Place) -> serde_json::Value {
    serde_json::from_slice(&fs::read(place.path("p/catalog.json")).expect("there")).expect("JSON")
}

fn put_catalog(place: &Place, catalog: &serde_json::Value) {
    fs::write(place.path("p/catalog.json"), catalog.to_string()).expect("written");
}

/// Changes block 0 of the metadata, with a right checksum.
fn edit_superblock(place: &Place, edit: impl Fn(&mut [u8])) {
    let path = place.path("p/metadata");
    let mut bytes = fs::read(&path).expect("there");
    edit(&mut bytes[..4096]);
    let sum = crc32c::crc32c(&bytes[4..4096]) ^ 0xffff_ffff ^ 160_774;
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, bytes).expect("written");
}

#[test]
fn names_and_volumes_that_do_not_fit() {
    let place = pool_with_volumes();
    let sound = catalog(&place);
    // A volume without a name.
    let mut less = sound.clone();
    less["volumes"].as_array_mut().expect("a list").pop();
    put_catalog(&place, &less);
    assert_eq!(findings(&place, &[], 3), one("unknown-volume", "warning", false));
    let mut after = one("unknown-volume", "warning", true);
    after.extend(one("no-name", "note", false));
    assert_eq!(findings(&place, &["--mend"], 0), after);
    assert_eq!(place.names(), ["1", "a"]);
    // A name without a volume.
    let mut more = sound.clone();
    let mut gone = more["volumes"][1].clone();
    (gone["name"], gone["id"]) = ("gone".into(), 9.into());
    more["volumes"].as_array_mut().expect("a list").push(gone);
    put_catalog(&place, &more);
    is_mended(&place, "lost-volume", "warning", 3, "volume `gone` (number 9) is not in the metadata");
    assert!(fs::read_to_string(place.path("p/catalog.json.bak")).expect("kept").contains("gone"));
    // Transaction ids apart.
    let mut old = sound.clone();
    old["transaction_id"] = 1.into();
    put_catalog(&place, &old);
    is_mended(&place, "transaction-id", "warning", 3, "belongs to transaction 1 and the metadata is at 2");
    assert_eq!(place.names(), ["a", "b"]);
    // An operation that was interrupted: which id the metadata has says whether it happened.
    let mut pending = sound.clone();
    pending["pending"] = serde_json::json!({"transaction_id": 3, "operation": {"delete": "a"}});
    put_catalog(&place, &pending);
    is_mended(&place, "interrupted", "warning", 3, "was interrupted before it happened");
    // No catalog at all.
    fs::remove_file(place.path("p/catalog.json")).expect("there");
    let codes: Vec<_> = findings(&place, &[], 3).into_iter().map(|(code, _, _)| code).collect();
    assert_eq!(codes, ["no-catalog", "unknown-volume", "unknown-volume"]);
    findings(&place, &["--yes"], 0);
    assert_eq!(place.names(), ["0", "1"]);
    // One that nobody understands stays as it is.
    fs::write(place.path("p/catalog.json"), "{").expect("written");
    assert_eq!(findings(&place, &["--mend"], 4), one("catalog", "problem", false));
    assert_eq!(fs::read(place.path("p/catalog.json")).expect("there"), b"{");
}

#[test]
fn a_size_that_hides_data_is_told() {
    let place = pool_with_volumes();
    let daemon = place.serve(&[]);
    place.connect("a").write(65_536 * 9, &[1; 512]).expect("written");
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    let mut small = catalog(&place);
    small["volumes"][0]["size_bytes"] = 512.into();
    put_catalog(&place, &small);
    assert_eq!(findings(&place, &["--mend"], 3), one("volume-size", "warning", false));
    let mut stale = small.clone();
    stale["transaction_id"] = 0.into();
    put_catalog(&place, &stale);
    let codes: Vec<_> = findings(&place, &["--mend"], 0).into_iter().map(|(code, ..)| code).collect();
    assert_eq!(codes, ["transaction-id", "volume-size"]);
    assert_eq!(place.json(&["volume", "list", POOL])["volumes"][0]["size_bytes"], 10 * 65_536);
}

#[test]
fn what_a_killed_process_leaves_behind() {
    let place = pool_with_volumes();
    for socket in ["control.sock", "nbd.sock"] {
        drop(UnixListener::bind(place.path("p").join(socket)).expect("bound"));
        is_mended(&place, "stale-socket", "warning", 3, "is left of a daemon that was killed");
        assert!(!place.path("p").join(socket).exists());
    }
    let staging = place.path(".p.new-999999999");
    fs::create_dir(&staging).expect("made");
    fs::write(staging.join("data"), "").expect("written");
    fs::write(staging.join("mine"), "").expect("written");
    assert_eq!(findings(&place, &["--mend"], 0), [], "what holds something else is nobody's leftover");
    fs::remove_file(staging.join("mine")).expect("there");
    is_mended(&place, "leftover", "warning", 3, "is left of a pool that was never finished");
    assert!(!staging.exists());
    let alive = place.path(&format!(".p.new-{}", std::process::id()));
    fs::create_dir(alive).expect("made");
    assert_eq!(findings(&place, &["--mend"], 0), [], "it may still be in the making");
}

#[test]
fn metadata_that_asks_for_a_check_leaks_or_is_damaged() {
    let place = Place::with_fixture("10-needs-check");
    let found = findings(&place, &[], 4);
    assert_eq!(found[0], one("needs-check", "problem", false)[0]);
    findings(&place, &["--mend"], 0);
    place.ok(&["volume", "snapshot", "./p/0", "s"]);
    common::oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));

    let place = Place::with_fixture("19-leaked");
    assert!(findings(&place, &[], 3).contains(&one("leaks", "warning", false)[0]));
    findings(&place, &["--mend"], 0);
    common::oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));

    let place = Place::with_fixture("04-snap-diverged");
    let mut bytes = fs::read(place.path("p/metadata")).expect("there");
    bytes[372 * 4096 + 40] ^= 1;
    fs::write(place.path("p/metadata"), &bytes).expect("written");
    let found = findings(&place, &["--mend"], 4);
    assert_eq!(found[0], one("damage", "problem", false)[0]);
    assert!(fs::read(place.path("p/metadata")).expect("there") == bytes, "damage is left alone");
    assert!(!place.path("p/catalog.json").exists());
    edit_superblock(&place, |block| block[32] ^= 1);
    assert_eq!(findings(&place, &["--mend"], 4)[0], one("damage", "problem", false)[0]);
    fs::write(place.path("p/metadata"), [0; 8192]).expect("written");
    assert_eq!(findings(&place, &[], 4), one("metadata", "problem", false));
}

#[test]
fn data_that_are_shorter_than_the_metadata_say() {
    let place = pool_with_volumes();
    let daemon = place.serve(&[]);
    place.connect("a").write(0, &[1; 65_536]).expect("written");
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    let cut = |bytes| {
        File::options().write(true).open(place.path("p/data")).expect("there").set_len(bytes).expect("cut")
    };
    cut(1 << 20);
    is_mended(&place, "data-size", "problem", 4, "has 1048576 bytes, and the pool was made with 67108864");
    assert_eq!(fs::metadata(place.path("p/data")).expect("there").len(), 64 << 20);
    cut(512);
    assert_eq!(findings(&place, &["--mend"], 4), one("data-size", "problem", false));
    assert!(
        place.run(&DOCTOR).stdout.contains("volumes have data up to byte 65536"),
        "and says what is gone"
    );
    cut((64 << 20) + 65_536);
    assert_eq!(findings(&place, &["--mend"], 0), one("data-size", "note", false));
    let metadata = fs::metadata(place.path("p/metadata")).expect("there").len();
    File::options()
        .write(true)
        .open(place.path("p/metadata"))
        .expect("there")
        .set_len(metadata / 2)
        .expect("cut");
    let found = findings(&place, &["--mend"], 4);
    assert!(found.iter().all(|(_, severity, mended)| severity == "problem" && !mended), "{found:?}");
}

#[test]
fn a_deletion_that_was_cut_off_goes_on() {
    let place = pool_with_volumes();
    let mut deleting = catalog(&place);
    deleting["volumes"].as_array_mut().expect("a list").pop();
    deleting["deleting"] = serde_json::json!([1]);
    put_catalog(&place, &deleting);
    is_mended(&place, "deletion", "warning", 3, "volume 1 is deleted, and its blocks are not free yet");
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn a_pool_that_is_served_or_somebodys() {
    let place = pool_with_volumes();
    let daemon = place.serve(&[]);
    assert_eq!(findings(&place, &["--mend"], 0), one("served", "note", false));
    drop(daemon);
    let lock = File::open(place.path("p/metadata")).expect("there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    place.fails(&DOCTOR, 6, "is in use").hint();
    drop(lock);
    place.fails(&["pool", "doctor", "./none"], 5, "there is no pool").hint();
}

#[test]
fn a_file_that_is_removed_under_its_daemon_is_told_while_something_can_be_saved() {
    let place = pool_with_volumes();
    let daemon = place.serve(&[]);
    place.connect("a").write(0, &[7; 4096]).expect("written");
    fs::remove_file(place.path("p/data")).expect("there");
    let outcome = place.run(&["pool", "status", POOL, "--exit-code"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stdout.contains("its data file was removed"), "{outcome:?}");
    assert_eq!(place.json(&["pool", "status", POOL])["removed"], serde_json::json!(["data"]));
    assert_eq!(findings(&place, &[], 4)[0], one("removed", "problem", false)[0]);
    assert_eq!(place.connect("a").read(0, 4096).expect("read"), [7; 4096], "there is still time to copy it");
    eventually("it is told", || {
        fs::read_to_string(place.path("serve.log")).is_ok_and(|log| log.contains("its data file was removed"))
    });
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    place.fails(&["pool", "status", POOL], 5, "data: there is no such file").hint();
}

#[test]
fn an_origin_that_is_gone_is_told_once_for_all_its_volumes() {
    let place = pool_with_volumes();
    let origin = place.path("base.img");
    fs::write(&origin, vec![3; 1 << 20]).expect("written");
    let origin = origin.to_str().expect("text");
    for volume in ["./p/x", "./p/y"] {
        place.ok(&["volume", "create", volume, "--origin", origin]);
    }
    fs::remove_file(origin).expect("there");
    assert_eq!(findings(&place, &[], 3), one("origin", "warning", false));
    let daemon = place.serve(&[]);
    let found = findings(&place, &[], 3);
    assert_eq!(found[0], one("origin", "warning", false)[0], "{found:?}");
    let outcome = place.run(&DOCTOR);
    assert!(outcome.stdout.contains("volume `x` and 1 more cannot be served"), "{outcome:?}");
    drop(daemon);
}

#[test]
fn all_pools_that_have_a_name() {
    let place = Place::empty();
    assert_eq!(place.ok(&["pool", "doctor"]), "");
    place.ok(&["pool", "create", "one", "--size", "16M"]);
    place.ok(&["pool", "create", "two", "--size", "16M"]);
    assert_eq!(place.ok(&["pool", "doctor"]), "pool one: nothing to mend\npool two: nothing to mend\n");
    fs::remove_file(place.path("base/one/data")).expect("there");
    let outcome = place.run(&["pool", "doctor", "--mend"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(
        outcome.stdout.contains("problem: ") && outcome.stdout.ends_with("pool two: nothing to mend\n"),
        "{outcome:?}"
    );
}
