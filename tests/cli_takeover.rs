//! `uthin serve --takeover`, and what the file `devices.json` of an earlier daemon does, through the real binary, as far as a machine
//! without ublk goes. That devices go on under another daemon is tested on a kernel that has them (tests/vm/scenarios/ublk-recovery).

mod cli_common;

use cli_common::control::ask;
use cli_common::nbd::Client;
use cli_common::{Daemon, POOL, Place, eventually};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A place with a pool made with these options and a volume `v` of 64 MiB.
fn place_with_volume(options: &[&str]) -> Place {
    let place = Place::empty();
    place.ok(&[&["pool", "create", POOL, "--size", "1G"], options].concat());
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    place
}

fn served_by(place: &Place) -> serde_json::Value {
    place.json(&["pool", "status", POOL])["served_by"]["pid"].clone()
}

/// Another daemon in place of this one, which ends well.
fn taken_over(place: &Place, old: Daemon, options: &[&str]) -> Daemon {
    let new = place.serve(&[&["--takeover"], options].concat());
    assert_eq!(old.wait(), 0, "the old daemon has lost nothing");
    assert_eq!(served_by(place), new.pid());
    new
}

/// `uthin serve` must refuse, in bounded time; what it says.
fn refused(place: &Place, options: &[&str], code: i32, says: &str) -> String {
    let mut command = place.command(&[&["serve", POOL], options].concat());
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    while process.try_wait().expect("ours").is_none() {
        if Instant::now() > deadline {
            process.kill().expect("ours");
            process.wait().expect("ours");
            panic!("{options:?}: it serves");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = process.wait_with_output().expect("ours");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{options:?}: {said}");
    assert!(said.contains(says) && !said.contains("panicked"), "{options:?}: {said}");
    said
}

/// The same for a takeover, of which the running daemon must not have noticed anything.
fn goes_on(
    place: &Place,
    daemon: &Daemon,
    client: &mut Client,
    options: &[&str],
    code: i32,
    says: &str,
) -> String {
    let files = place.files("p");
    let said = refused(place, &[&["--takeover"], options].concat(), code, says);
    assert_eq!(served_by(place), daemon.pid(), "{options:?}");
    assert_eq!(client.read(0, 512).map(|bytes| bytes[0]), Ok(7), "{options:?}: its client stays");
    assert_eq!(place.files("p"), files, "{options:?}");
    said
}

#[test]
fn a_daemon_is_replaced_and_every_byte_is_there() {
    for options in [&["--journal", "none"][..], &[], &["--small-writes", "partial"]] {
        let place = place_with_volume(options);
        let mut daemon = place.serve(&[]);
        let mut expected = vec![0; 8 * MIB];
        for round in 1..=3_u8 {
            let mut client = place.connect("v");
            for (at, is_flushed) in [(0, true), (MIB, false)] {
                let at = at + usize::from(round) * 2 * MIB;
                let bytes = vec![round + u8::from(is_flushed) * 100; 100 * 512];
                client.write(at as u64, &bytes).expect("there is space");
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
                if is_flushed {
                    client.flush().expect("flushed");
                }
            }
            daemon = taken_over(&place, daemon, &[]);
            assert!(client.is_let_go(), "it has to come again");
            assert_eq!(place.notes(), "[]", "the pool was closed, nothing had to be put right");
            let found = place.connect("v").read(0, expected.len()).expect("it reads");
            assert!(found == expected, "{options:?}, round {round}");
            let journal = place.json(&["pool", "status", POOL])["journal"]["state"].clone();
            assert_eq!(journal, if options.contains(&"none") { "none" } else { "on" });
        }
        place.ok(&["pool", "close", POOL]);
        assert_eq!(daemon.wait(), 0);
        assert!(!place.files("p").iter().any(|name| name.ends_with(".sock")), "{:?}", place.files("p"));
        let marks = fs::read(place.path("p/metadata")).expect("there")[360..512].to_vec();
        assert_eq!(marks, vec![0; 152], "{options:?}: plain dm-thin metadata");
    }
}

/// A client writes numbers, one after the other, into places that come round again; it has each answer before the next.
#[test]
fn a_takeover_under_load_loses_nothing_that_was_acknowledged() {
    const PLACES: u64 = 1024;
    for options in [&["--journal", "none"][..], &[]] {
        let place = place_with_volume(options);
        let mut old = place.serve(&[]);
        let mut acknowledged = 0_u64;
        for round in 0..3 {
            let mut client = place.connect("v");
            let (new, done) = std::thread::scope(|scope| {
                let writer = scope.spawn(move || {
                    let write = |number: &u64| {
                        let bytes = [number.to_le_bytes(); 512].concat();
                        client.write_if_served(number % PLACES * 4096, &bytes)
                    };
                    (acknowledged + 1..).take_while(write).last()
                });
                std::thread::sleep(Duration::from_millis(100));
                let new = taken_over(&place, old, &[]);
                (new, writer.join().expect("it ends with its connection"))
            });
            old = new;
            acknowledged = done.expect("it was served for a while");
            let mut reader = place.connect("v");
            for slot in 0..PLACES {
                let bytes = reader.read(slot * 4096, 4096).expect("it reads");
                let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
                let last = (0..=acknowledged).rev().find(|number| number % PLACES == slot).unwrap_or(0);
                // Whether the one was done that had no answer is open. The next round begins with it.
                let is_open = slot == (acknowledged + 1) % PLACES;
                let is_right = number == last || is_open && number == acknowledged + 1;
                assert!(is_right, "{options:?}, round {round}: {slot} has {number}, not {last}");
                assert!(is_open || bytes.chunks(8).all(|chunk| chunk == &bytes[..8]), "a write is whole");
            }
        }
    }
}

#[test]
fn a_pool_that_nobody_serves_is_served() {
    let place = place_with_volume(&["--journal", "file"]);
    let first = place.serve(&["--takeover"]);
    assert_eq!(served_by(&place), first.pid());
    place.connect("v").write(0, &[5; 4096]).expect("there is space");
    first.kill();
    assert!(place.path("p/control.sock").exists(), "nobody has removed it");
    let second = place.serve(&["--takeover"]);
    assert_eq!(served_by(&place), second.pid());
    assert_eq!(place.connect("v").read(0, 4096), Ok(vec![5; 4096]));
    assert_eq!(second.signal(Signal::TERM), 0);
}

#[test]
fn the_new_daemon_s_options_are_in_force() {
    let place = place_with_volume(&["--journal", "file"]);
    let daemon = place.serve(&["--discard", "ignore"]);
    // No device stands in the way: it is closing, and serving anew.
    let daemon = taken_over(&place, daemon, &["--journal", "none"]);
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["journal"]["state"], &status["discard"]), (&"none".into(), &"passdown".into()));
    let other = place.path("other.sock");
    let address = format!("unix:{}", other.display());
    let daemon = taken_over(&place, daemon, &["--nbd", &address]);
    assert!(Client::connect(&other, "v").is_ok() && !place.path("p/nbd.sock").exists());
    // The same address once more, which is the old daemon's until it ends.
    let daemon = taken_over(&place, daemon, &["--nbd", &address]);
    assert!(Client::connect(&other, "v").is_ok());
    assert_eq!(daemon.signal(Signal::TERM), 0);
}

#[test]
fn what_cannot_be_served_takes_nothing_over() {
    let place = place_with_volume(&["--journal", "file"]);
    fs::create_dir(place.path("empty")).expect("made");
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[7; 512]).expect("there is space");
    let mut refuses = |options: &[&str], code, says| {
        let said = goes_on(&place, &daemon, &mut client, options, code, says);
        assert!(said.contains("hint:"), "{options:?}: {said}");
    };
    refuses(&["--ublk", "none"], 5, "there is no volume `none`");
    refuses(&["--ublk", "v", "--ublk", "none"], 5, "there is no volume `none`");
    refuses(&["--tls-certificates", "./nowhere"], 5, "nowhere");
    refuses(&["--tls-certificates", "./empty"], 5, "empty");
    refuses(&["--hook", "./nowhere"], 2, "--hook ./nowhere");
    refuses(&["--nbd", "tcp:0.0.0.0:0"], 2, "0.0.0.0");
    refuses(&["--nbd", "unix:/nodir/x"], 5, "the directory does not exist");
    if !Path::new("/dev/ublk-control").exists() {
        refuses(&["--ublk", "v"], 1, "cannot make ublk devices");
    }
    client.write(0, &[8; 512]).expect("nothing has changed for it");
    drop(client);
    assert_eq!(daemon.signal(Signal::TERM), 0);
}

#[test]
fn a_volume_that_is_not_there_keeps_a_first_daemon_from_its_start_too() {
    let place = place_with_volume(&["--journal", "none"]);
    let files = place.files("p");
    refused(&place, &["--ublk", "none"], 5, "there is no volume `none`");
    refused(&place, &["--takeover", "--ublk", "none"], 5, "there is no volume `none`");
    assert_eq!(place.files("p"), files, "nothing is left");
    assert_eq!(place.serve(&[]).signal(Signal::TERM), 0);
}

#[test]
fn a_pool_that_has_failed_stays_with_its_daemon() {
    let place = place_with_volume(&[]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[7; 512]).expect("there is space");
    client.write(32 << 20, &[1; 1 << 20]).expect("there is space");
    client.flush().expect("flushed");
    let data = fs::OpenOptions::new().write(true).open(place.path("p/data")).expect("there");
    data.set_len(65_536).expect("truncated");
    eventually("the pool fails", || place.json(&["pool", "status", POOL])["mode"] == "fail");
    goes_on(&place, &daemon, &mut client, &[], 1, "cannot be handed over");
    assert_eq!(place.json(&["pool", "status", POOL])["mode"], "fail", "it still tells what was wrong");
}

/// A limit on the size of files stands in for a metadata disk that fails.
#[test]
fn a_pool_that_can_only_be_read_stays_with_its_daemon() {
    let place = place_with_volume(&["--journal", "none"]);
    let script = format!("trap '' XFSZ; ulimit -f 200; exec {} serve {POOL}", env!("CARGO_BIN_EXE_uthin"));
    let daemon = place.serve_by(std::process::Command::new("sh").args(["-c", &script]));
    let mut client = place.connect("v");
    client.write(0, &[7; 512]).expect("the first bytes of the data file are below the limit");
    client.flush().expect("flushed");
    let create = |number: i32| place.run(&["volume", "create", &format!("./p/w{number}"), "--size", "1M"]);
    assert!((0..100).any(|number| create(number).code != 0), "the metadata meet the limit");
    assert_eq!(place.mode(), "ro");
    goes_on(&place, &daemon, &mut client, &[], 1, "cannot be handed over");
    assert_eq!(place.mode(), "ro");
}

#[test]
fn the_control_socket_hands_over_and_knows_no_other_words() {
    let place = place_with_volume(&[]);
    let daemon = place.serve(&[]);
    for wrong in [r#"{"hand_over": 1}"#, r#"{"handover": true}"#, "true", "{"] {
        let (status, answer) = ask(&place, "POST", "/v1/close", wrong);
        assert_eq!((status, &answer["error"]["code"]), (400, &"invalid".into()), "{wrong}: {answer}");
    }
    assert_eq!(served_by(&place), daemon.pid());
    let mut daemon = daemon;
    for body in [r#"{"hand_over": true}"#, r#"{"hand_over": false}"#, "{}", "null", ""] {
        let (status, closed) = ask(&place, "POST", "/v1/close", body);
        assert_eq!((status, &closed["pid"]), (200, &daemon.pid().into()), "{body}");
        assert_eq!(daemon.wait(), 0);
        assert!(
            !place.files("p").iter().any(|name| name.ends_with(".sock")),
            "{body}: {:?}",
            place.files("p")
        );
        daemon = place.serve(&[]);
    }
}

// --- devices.json ---

/// The number of a device that no test machine has.
const NUMBER: u32 = 4711;

fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux has it").trim().to_owned()
}

/// `devices.json` as a daemon leaves it that had a device of the volume with this number.
fn devices(place: &Place, boot: &str, volume: &serde_json::Value, kept: serde_json::Value) -> String {
    let device = json!({
        "number": NUMBER, "mark": 513, "volume": volume, "queues": 1, "depth": 128,
        "logical_block_bytes": 512, "physical_block_bytes": 4096, "read_only": false, "kept": kept,
    });
    let metadata = identity_of_metadata(place);
    json!({ "schema": "uthin/devices/v1", "boot": boot, "metadata": metadata, "devices": [device] })
        .to_string()
}

/// Device and inode: by which a pool is known from its copies.
fn identity_of_metadata(place: &Place) -> [u64; 2] {
    let found = fs::metadata(place.path("p/metadata")).expect("there");
    [found.dev(), found.ino()]
}

fn number_of(place: &Place, volume: &str) -> serde_json::Value {
    place.json(&["volume", "status", &format!("./p/{volume}")])["id"].clone()
}

/// With each of these files, commands and daemons do their work; a daemon leaves no file behind. `logged`: what it says.
fn keeps_nobody_from_the_pool(files: &[(String, Option<&str>)], place: &Place) {
    for (number, (text, logged)) in files.iter().enumerate() {
        // A command that looks changes nothing; one that changes the pool does its work.
        fs::write(place.path("p/devices.json"), text).expect("written");
        assert!(place.names().contains(&"v".to_owned()), "{text}");
        assert_eq!(fs::read_to_string(place.path("p/devices.json")).expect("there"), *text);
        place.ok(&["volume", "create", &format!("./p/w{number}"), "--size", "1M"]);
        for options in [&["--journal", "none"][..], &[], &["--takeover"]] {
            fs::write(place.path("p/devices.json"), text).expect("written");
            let daemon = place.serve(options);
            let left = place.files("p").into_iter().find(|name| name.starts_with("devices.json"));
            assert_eq!(left, None, "{options:?}: {text}");
            assert_eq!(place.json(&["export", "--list", POOL])["exports"], json!([]));
            assert!(!place.notes().contains("ublkb"), "nothing waits any more: {}", place.notes());
            place.connect("v").write(0, &[1; 512]).expect("there is space");
            assert_eq!(daemon.signal(Signal::TERM), 0);
            let log = fs::read_to_string(place.path("serve.log")).expect("there");
            assert!(logged.is_none_or(|words| log.contains(words)), "{options:?}: {text}: {log}");
            place.ok(&["volume", "set", "./p/v", "--read-only"]);
            place.ok(&["volume", "set", "./p/v", "--read-write"]);
        }
    }
    assert_eq!(place.names().len(), 1 + files.len());
}

#[test]
fn a_file_of_devices_that_says_nothing_is_replaced() {
    let place = place_with_volume(&[]);
    let (v, boot) = (number_of(&place, "v"), this_boot());
    let of_this_boot = |schema: &str, devices: serde_json::Value| {
        let metadata = identity_of_metadata(&place);
        json!({ "schema": schema, "boot": boot, "metadata": metadata, "devices": devices }).to_string()
    };
    let files = [
        (devices(&place, "01234567-89ab-cdef-0123-456789abcdef", &v, "metadata".into()), None),
        (String::new(), Some("devices.json")),
        ("{".to_owned(), Some("devices.json")),
        ("\0\0\0\0".to_owned(), Some("devices.json")),
        (of_this_boot("uthin/devices/v1", json!([])), None),
        (of_this_boot("uthin/devices/v1", json!([3])), Some("devices.json")),
        (of_this_boot("uthin/other/v1", json!([])), Some("devices.json")),
    ];
    keeps_nobody_from_the_pool(&files, &place);
}

#[test]
fn a_device_that_is_not_there_is_forgotten() {
    let place = place_with_volume(&[]);
    let (v, boot) = (number_of(&place, "v"), this_boot());
    let files = [
        (devices(&place, &boot, &v, "metadata".into()), Some("ublkb4711")),
        (devices(&place, &boot, &v, "unknown".into()), Some("ublkb4711")),
        (devices(&place, &boot, &v, json!({ "journal": 12345 })), Some("ublkb4711")),
        (devices(&place, &boot, &9999.into(), "metadata".into()), Some("ublkb4711")),
    ];
    keeps_nobody_from_the_pool(&files, &place);
}

#[test]
fn commands_leave_alone_what_a_device_stands_on_that_waits() {
    let place = place_with_volume(&[]);
    fs::write(place.path("base"), vec![3; 4 * MIB]).expect("written");
    fs::write(place.path("moved"), vec![3; 4 * MIB]).expect("written");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    place.ok(&["volume", "create", "./p/on", "--origin", "base"]);
    let text = devices(&place, &this_boot(), &number_of(&place, "v"), "metadata".into());
    fs::write(place.path("p/devices.json"), &text).expect("written");
    let number = number_of(&place, "v").to_string();
    let delete = format!("delete {number}");
    for words in [
        &["volume", "delete", "./p/v"][..],
        &["volume", "resize", "./p/v", "--size", "1M"],
        &["volume", "resize", "./p/v", "--size", "1M", "--discard-rest"],
        &["volume", "rollback", "./p/v", "s"],
        &["volume", "set", "./p/v", "--read-only"],
        &["pool", "message", POOL, &delete],
    ] {
        let outcome = place.fails(words, 6, "/dev/ublkb4711");
        assert!(outcome.hint().contains("serve the pool"), "{outcome:?}");
    }
    // Whatever its users do not see.
    place.ok(&["volume", "snapshot", "./p/v", "t"]);
    place.ok(&["volume", "resize", "./p/v", "--size", "65M"]);
    place.ok(&["volume", "set", "./p/v", "--label", "a=b"]);
    place.ok(&["volume", "delete", "./p/s"]);
    place.ok(&["volume", "set", "./p/on", "--origin", "moved"]);
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    let found: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("p/devices.json")).expect("it waits still"))
            .expect("JSON");
    assert_eq!(found, serde_json::from_str::<serde_json::Value>(&text).expect("JSON"));
    let volume = place.json(&["volume", "status", "./p/v"]);
    assert_eq!((&volume["size_bytes"], &volume["read_only"]), (&(65 * MIB).into(), &false.into()));
    assert!(place.notes().contains("/dev/ublkb4711"), "{}", place.notes());

    // The origin of the one with a device.
    let text = devices(&place, &this_boot(), &number_of(&place, "on"), "metadata".into());
    fs::write(place.path("p/devices.json"), text).expect("written");
    place.fails(&["volume", "set", "./p/on", "--origin", "base"], 6, "/dev/ublkb4711").hint();
    place.ok(&["volume", "delete", "./p/v"]);
}

#[test]
fn a_journal_that_is_brought_in_leaves_its_devices_waiting() {
    let place = place_with_volume(&["--journal", "file"]);
    let daemon = place.serve(&[]);
    place.connect("v").write(0, &[9; 4096]).expect("there is space");
    daemon.kill();
    // As if it had been exported. The superblock names the journal.
    let metadata = fs::read(place.path("p/metadata")).expect("there");
    let journal = u64::from_le_bytes(metadata[372..380].try_into().expect("8 bytes"));
    let text = devices(&place, &this_boot(), &number_of(&place, "v"), json!({ "journal": journal }));
    fs::write(place.path("p/devices.json"), text).expect("written");
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    let found: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("p/devices.json")).expect("it waits")).expect("JSON");
    assert_eq!(found["devices"][0]["kept"], "metadata", "{found}");
    place.fails(&["volume", "delete", "./p/v"], 6, "/dev/ublkb4711").hint();
    let _daemon = place.serve(&[]);
    assert_eq!(place.connect("v").read(0, 4096), Ok(vec![9; 4096]));
}
