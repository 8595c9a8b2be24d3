//! `uthin pool check`: a pool that nobody serves, one that is being served, and one that is damaged.

mod cli_common;

use cli_common::{POOL, Place, eventually};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

fn pool() -> Place {
    let place = Place::with_pool("256M");
    place.ok(&["volume", "create", "./p/a", "--size", "64M"]);
    place
}

#[test]
fn says_what_the_checker_says_of_a_pool_that_nobody_serves() {
    let place = pool();
    for options in [&["pool", "check", POOL][..], &["pool", "check", POOL, "--online"]] {
        let said = place.ok(options);
        assert!(said.contains("volumes   1, with 0 mappings") && said.ends_with("\nclean\n"), "{said}");
    }
    assert_eq!(place.json(&["pool", "check", POOL])["verdict"], "clean");
    place.fails(&["pool", "check", "./none"], 5, "none");
}

#[test]
fn a_pool_that_is_being_served_is_checked_as_it_is_at_this_moment() {
    let place = pool();
    let _daemon = place.serve(&[]);
    let mut client = place.connect("a");
    client.write(0, &[7; 1 << 20]).expect("written");
    place.fails(&["pool", "check", POOL], 6, "is being served").hint();
    let report = place.json(&["pool", "check", POOL, "--online"]);
    let names = report["volume_names"].as_object().expect("names by number");
    assert!(names.values().eq(["a"]) && report["verdict"] == "clean", "{report}");
    assert_eq!(report["volumes"][0]["mapped_blocks"], 16, "what was written a moment ago: {report}");
    let said = place.ok(&["pool", "check", POOL, "--online"]);
    assert!(said.contains("data      not counted\n"), "counts change all the time: {said}");
    assert!(!said.contains("journal") && said.ends_with("\nclean\n"), "it is all of that moment: {said}");
    let held = |place: &Place| place.json(&["pool", "status", POOL])["held_root"].clone();
    assert!(held(&place).is_null(), "it is released");

    // One that is there is looked at, and stays.
    place.ok(&["pool", "metadata-snapshot", POOL]);
    client.write(1 << 20, &[8; 1 << 20]).expect("written");
    let report = place.json(&["pool", "check", POOL, "--online"]);
    assert_eq!(report["volumes"][0]["mapped_blocks"], 16, "the snapshot is older: {report}");
    assert!(held(&place).is_u64());
}

#[test]
fn a_pool_too_damaged_to_be_opened_can_be_checked() {
    let place = pool();
    let metadata = place.path("p/metadata");
    let superblock = std::fs::read(&metadata).expect("there");
    let root = u64::from_le_bytes(superblock[320..328].try_into().expect("8 bytes"));
    let file = std::fs::OpenOptions::new().write(true).open(&metadata).expect("there");
    file.write_all_at(&[0x55; 64], root * 4096 + 1000).expect("written");
    let outcome = place.run(&["pool", "check", POOL]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stdout.contains("bad checksum") && outcome.stdout.contains("DAMAGED"), "{outcome:?}");
}

/// Nobody reads what it prints, so that it is still at it when the signal comes.
#[test]
fn an_interrupted_check_lets_the_metadata_snapshot_go() {
    let place = pool();
    for number in 0..60 {
        place.ok(&["volume", "create", &format!("./p/volume-{number}"), "--size", "64M"]);
    }
    let _daemon = place.serve(&[]);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a small one");
    let mut command = place.command(&["pool", "check", POOL, "--online", "--json"]);
    let mut checker = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("uthin starts");
    drop(command); // and with it the pipe's end
    let held = || !place.json(&["pool", "status", POOL])["held_root"].is_null();
    eventually("the metadata snapshot is held", held);
    eventually("the check prints", || rustix::io::ioctl_fionread(&reader).expect("bytes in the pipe") > 0);

    let pid = rustix::process::Pid::from_child(&checker);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    eventually("it is let go", || !held());
    let mut exit = None;
    eventually("it ends", || {
        exit = checker.try_wait().expect("a child");
        exit.is_some()
    });
    assert_eq!(exit.and_then(|status| status.code()), Some(1));
    let mut said = String::new();
    checker.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(said.contains("interrupted; the metadata snapshot made for the check is released"), "{said}");
}
