//! The catalog of a pool that is served: its log through kills, damage and full filesystems, with the real daemon.

mod cli_common;

use cli_common::{Daemon, POOL, Place};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

/// One connection to the control socket.
struct Control(BufReader<UnixStream>);

impl Control {
    fn of(place: &Place) -> Self {
        Control(BufReader::new(UnixStream::connect(place.path("p/control.sock")).expect("it listens")))
    }

    /// The status of an answer; `None` when the daemon is gone.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Option<u16> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: uthin\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            let line = line.trim_end().to_ascii_lowercase();
            match line.strip_prefix("content-length: ") {
                _ if line.is_empty() => break,
                Some(bytes) => length = bytes.parse().expect("a number"),
                None => status = status.or_else(|| line.split(' ').nth(1)?.parse().ok()),
            }
        }
        self.0.read_exact(&mut vec![0; length]).ok()?;
        status
    }

    fn snapshot(&mut self, name: &str) -> Option<u16> {
        self.ask("POST", "/v1/volumes/v/snapshot", &format!("{{\"name\":\"{name}\"}}"))
    }

    fn delete(&mut self, name: &str) -> Option<u16> {
        self.ask("DELETE", &format!("/v1/volumes/{name}"), "")
    }
}

/// A pool with a volume `v`, being served.
fn served() -> (Place, Daemon) {
    let place = Place::with_faithful_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let daemon = place.serve(&[]);
    (place, daemon)
}

fn checked(place: &Place) -> (bool, String) {
    let metadata = place.path("p/metadata");
    let output =
        Command::new(env!("CARGO_BIN_EXE_uthin-fsck")).args(["check", "--json"]).arg(&metadata).output();
    let output = output.expect("it starts");
    (output.status.success(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn a_served_pool_keeps_its_changes_in_a_log_and_a_closed_one_in_one_file() {
    let (place, daemon) = served();
    let mut control = Control::of(&place);
    for number in 0..40 {
        assert_eq!(control.snapshot(&format!("s{number}")), Some(201));
    }
    assert_eq!(control.delete("s7"), Some(200));
    let read = |name: &str| fs::read_to_string(place.path(name)).expect("there");
    let whole = read("p/catalog.json");
    assert!(whole.contains("\"log\": ") && !whole.contains("\"s20\""), "{whole}");
    daemon.kill();

    // Who only looks sees all of it, and writes nothing.
    let log = read("p/catalog.log");
    let names = place.names();
    assert_eq!((names.len(), place.notes().as_str()), (40, "[]"));
    let (is_sound, report) = checked(&place);
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert!(is_sound && report["volume_names"]["39"] == "s38", "{report}");
    let doctor = place.run(&["pool", "doctor", POOL]);
    assert!(doctor.stdout.contains("catalog.log"), "{doctor:?}");
    assert_eq!((read("p/catalog.json"), read("p/catalog.log")), (whole, log));

    place.ok(&["volume", "rename", "./p/s3", "renamed"]);
    assert!(!place.path("p/catalog.log").exists());
    assert!(read("p/catalog.json").contains("\"renamed\"") && !read("p/catalog.json").contains("\"log\""));
    let daemon = place.serve(&[]);
    assert_eq!(Control::of(&place).snapshot("last"), Some(201));
    assert!(place.path("p/catalog.log").exists());
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(place.files("p"), ["catalog.json", "catalog.json.new", "data", "metadata"]);
    assert_eq!(place.names().len(), 41);
}

/// What was acknowledged is there after a kill, what was not is there whole or not at all.
#[test]
fn a_daemon_that_is_killed_amid_snapshots_loses_none_that_it_told_of() {
    let (place, daemon) = served();
    let mut daemon = Some(daemon);
    let mut known: BTreeSet<String> = BTreeSet::from(["v".to_owned()]);
    for round in 0..8u64 {
        let mut in_doubt = String::new();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut control = Control::of(&place);
                for number in 0.. {
                    // Of three that are made, one goes again.
                    let name = format!("r{round}-{}", number / 4 * 3 + (number % 4).min(2));
                    in_doubt = name.clone();
                    let (done, is_there) = match number % 4 {
                        3 => (control.delete(&name), known.remove(&name)),
                        _ => (control.snapshot(&name), known.insert(name)),
                    };
                    assert!(is_there, "the model is right");
                    match done {
                        Some(200 | 201) => {}
                        Some(other) => panic!("{other}"),
                        None => return,
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(120 + round * 37));
            daemon.take().expect("it runs").kill();
            asking.join().expect("the asker ends with the daemon");
        });
        let mut found: BTreeSet<String> = place.names().into_iter().collect();
        let is_there = found.remove(&in_doubt);
        known.remove(&in_doubt);
        assert_eq!(found, known, "round {round}");
        assert!(known.len() > 1, "something was made");
        known.extend(is_there.then_some(in_doubt));
        assert!(checked(&place).0, "round {round}");
        daemon = Some(place.serve(&[]));
    }
}

#[test]
fn a_log_that_is_damaged_or_gone_is_told_of_and_there_is_a_way_on() {
    let (place, daemon) = served();
    let mut control = Control::of(&place);
    for number in 0..10 {
        assert_eq!(control.snapshot(&format!("s{number}")), Some(201));
    }
    daemon.kill();
    let log = fs::read(place.path("p/catalog.log")).expect("there");
    let whole = fs::read_to_string(place.path("p/catalog.json")).expect("there");
    let mut damaged = log.clone();
    damaged[300] ^= 1;
    fs::write(place.path("p/catalog.log"), &damaged).expect("written");
    for arguments in [&["volume", "list", POOL][..], &["serve", POOL], &["volume", "delete", "./p/s1"]] {
        assert!(place.fails(arguments, 1, "is damaged").hint().contains("\"log\""));
    }
    assert_eq!(fs::read(place.path("p/catalog.log")).expect("there"), damaged, "it stays as it is");
    fs::remove_file(place.path("p/catalog.log")).expect("removed");
    place.fails(&["volume", "list", POOL], 1, "there is no such file").hint();

    // As the hint says.
    let line = whole.lines().find(|line| line.contains("\"log\"")).expect("there is one");
    fs::write(place.path("p/catalog.json"), whole.replace(line, "")).expect("written");
    assert_eq!(place.names().len(), 11, "those that have lost their names appear by their numbers");

    fs::write(place.path("p/catalog.json"), whole).expect("restored");
    fs::write(place.path("p/catalog.log"), log).expect("restored");
    assert!(place.names().contains(&"s9".to_owned()));
}

/// The usual way of putting a backup in place, but for ending the daemon first.
#[test]
fn a_daemon_whose_directory_was_moved_leaves_alone_what_is_in_its_place() {
    let place = Place::with_pool("64M");
    let moved = place.serve(&[]);
    place.ok(&["volume", "create", "./p/old", "--size", "1M"]);
    fs::rename(place.path("p"), place.path("q")).expect("moved");
    place.ok(&["pool", "create", POOL, "--size", "64M"]);
    place.ok(&["volume", "create", "./p/new", "--size", "1M"]);
    let daemon = place.serve(&[]);
    place
        .fails(&["volume", "create", "./q/late", "--size", "1M"], 5, "is not the directory that this daemon")
        .hint();
    place.ok(&["volume", "create", "./p/newer", "--size", "1M"]);
    place.ok(&["pool", "close", "./q"]);
    assert_eq!(moved.wait(), 0);
    assert_eq!(place.names(), ["new", "newer"]);
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(place.names(), ["new", "newer"]);
    let list = place.json(&["volume", "list", "./q"]);
    assert_eq!(
        (&list["volumes"][0]["name"], list["volumes"].as_array().map(Vec::len)),
        (&"old".into(), Some(1))
    );
}
