//! `uthin export`, `unexport` and `doctor` through the real binary, as far as a machine without ublk goes: what it lacks is said,
//! and nothing is left behind. What devices do is tested on a kernel that has them (tests/vm/scenarios/ublk-*).

mod cli_common;

use cli_common::{POOL, Place};
use rustix::process::Signal;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

fn place_with_volume() -> Place {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    place
}

fn machine_has_ublk() -> bool {
    Path::new("/dev/ublk-control").exists()
}

/// The findings of `doctor --json`, and its exit code.
fn doctor(place: &Place) -> (serde_json::Value, i32) {
    let outcome = place.run(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(value["schema"], "uthin/v1");
    (value["ublk"].clone(), outcome.code)
}

#[test]
fn the_doctor_says_what_is_missing_and_how_to_get_it() {
    let place = Place::empty();
    let (found, code) = doctor(&place);
    let findings = found["findings"].as_array().expect("a list");
    let is_missing = |finding: &serde_json::Value| finding["state"] == "missing";
    assert_eq!(found["usable"], !findings.iter().any(is_missing));
    assert_eq!(code, i32::from(found["usable"] == false));
    for finding in findings {
        assert_eq!(finding["hint"].is_string(), finding["state"] != "ok", "{finding}");
    }
    let module =
        findings.iter().find(|finding| finding["check"] == "module").expect("it looks for the module");
    let text = place.run(&["doctor"]).stdout;
    assert!(text.contains(module["message"].as_str().expect("text")), "{text}");
    if !machine_has_ublk() {
        assert!(is_missing(module));
        assert!(module["message"].as_str().is_some_and(|message| message.contains("ublk_drv")), "{module}");
        assert!(text.contains("MISSING") && text.contains("NBD works without"), "{text}");
    }
}

#[test]
fn without_a_daemon_there_are_no_devices() {
    let place = place_with_volume();
    let outcome = place.fails(&["export", "./p/v", "--ublk"], 5, "nobody serves the pool");
    assert!(outcome.hint().contains("uthin serve"));
    place.fails(&["unexport", "./p/v"], 5, "volume `v` is not exported");
    place.fails(&["export", "./p/none", "--ublk"], 5, "there is no volume `none`");
    assert_eq!(place.json(&["export", "--list", POOL])["exports"], serde_json::json!([]));
    assert_eq!(place.ok(&["export", "--list", "-H"]), "", "no pool in the usual place");
}

#[test]
fn what_cannot_be_meant_is_refused_as_usage() {
    let place = place_with_volume();
    let usage = |arguments: &[&str]| {
        let outcome = place.run(arguments);
        assert_eq!((outcome.code, &*outcome.stdout), (2, ""), "{outcome:?}");
    };
    usage(&["export", "./p/v"]);
    usage(&["export", "--ublk"]);
    usage(&["export", "./p/v", "--ublk", "--list"]);
    usage(&["export", "--list", POOL, "--queues", "2"]);
    usage(&["export", "./p/v", "--ublk", "-H"]);
    usage(&["export", "--list", POOL, "--zero-copy"]);
    usage(&["unexport", "./p/v", "--force", "--wait"]);
    usage(&["export", "p", "--ublk"]);
    let _daemon = place.serve(&[]);
    place.fails(&["export", "./p/v", "--ublk", "--queues", "0"], 2, "0 queues");
    place.fails(&["export", "./p/v", "--ublk", "--depth", "5000"], 2, "5000 requests");
    let outcome = place.fails(&["export", "./p/v", "--ublk", "--logical-block", "1K"], 2, "1024");
    assert!(outcome.hint().contains("512 or 4096"));
    place.ok(&["volume", "create", "./p/odd", "--size", "1049088"]);
    place.fails(&["export", "./p/odd", "--ublk", "--logical-block", "4K"], 2, "no whole number of blocks");
}

#[test]
fn a_machine_without_ublk_refuses_and_serves_on() {
    if machine_has_ublk() {
        return; // tests/vm/scenarios/ublk-basic.py tells this story with the module taken away
    }
    let place = place_with_volume();
    let daemon = place.serve(&[]);
    let outcome = place.fails(&["export", "./p/v", "--ublk"], 1, "cannot make ublk devices");
    assert!(outcome.hint().contains("uthin doctor"), "{outcome:?}");
    assert!(!place.path("p/dev").exists());
    place.ok(&["volume", "delete", "./p/v"]);
    assert_eq!(daemon.signal(Signal::TERM), 0);

    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    let outcome = place.fails(&["serve", POOL, "--ublk", "v"], 1, "exporting volume `v`");
    assert!(outcome.hint().contains("uthin doctor"), "{outcome:?}");
    let left = place.files("p");
    assert!(!left.iter().any(|name| name.ends_with(".sock") || name == "dev"), "{left:?}");
    assert_eq!(place.names(), ["v"], "the pool was closed and is free");
}

#[test]
fn a_new_daemon_removes_the_links_of_a_killed_one() {
    let place = place_with_volume();
    std::fs::create_dir(place.path("p/dev")).expect("made");
    symlink("/dev/ublkb4711", place.path("p/dev/v")).expect("linked");
    let daemon = place.serve(&[]);
    assert!(!place.path("p/dev").exists());
    assert_eq!(daemon.signal(Signal::TERM), 0);
}

/// systemd's protocol: datagrams to the socket that `$NOTIFY_SOCKET` names.
#[test]
fn a_service_manager_is_told() {
    let place = place_with_volume();
    let socket = UnixDatagram::bind(place.path("notify")).expect("bound");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("set");
    let told = || {
        let mut words = [0; 100];
        let length = socket.recv(&mut words).expect("it says something");
        String::from_utf8_lossy(&words[..length]).trim().to_owned()
    };
    let mut command = place.command(&["serve", POOL]);
    let daemon = place.serve_by(command.env("NOTIFY_SOCKET", place.path("notify")));
    assert_eq!(told(), "READY=1");
    assert_eq!(daemon.signal(Signal::TERM), 0);
    assert_eq!(told(), "STOPPING=1");
}
