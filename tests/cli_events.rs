//! What keeps a pool from filling up unnoticed: the minimum of free space, events, the hook; and options that change in use.

mod cli_common;

use cli_common::nbd::NO_SPACE;
use cli_common::{POOL, Place, eventually};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const BLOCK: u64 = 65_536;

/// `uthin events --json`, line by line.
struct Listener {
    process: Child,
    lines: mpsc::Receiver<serde_json::Value>,
}

impl Listener {
    fn start(place: &Place, more: &[&str]) -> Self {
        let mut command = place.command(&[&["events", POOL, "--json"], more].concat());
        let mut process = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        Listener { process, lines }
    }

    /// The next event.
    fn next(&self) -> serde_json::Value {
        let event: serde_json::Value = self.lines.recv_timeout(Duration::from_secs(20)).expect("an event");
        assert_eq!(event["schema"], "uthin/v1");
        event
    }

    fn is(&self, word: &str) -> serde_json::Value {
        let event = self.next();
        assert_eq!(event["event"], word, "{event}");
        event
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn with_less_than_the_minimum_free_no_volumes_are_made() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "16M", "--min-free", "50%"]);
    place.ok(&["volume", "create", "./p/v", "--size", "32M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..128).for_each(|block| client.write(block * BLOCK, &[1; 512]).expect("there is space"));
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    client.write(128 * BLOCK, &[1; 512]).expect("data are not guarded");
    let says = "8323072 bytes are free for data, 65536 fewer than the minimum of 50% (8388608 bytes)";
    let outcome = place.fails(&["volume", "create", "./p/w", "--size", "1M"], 7, says);
    assert!(
        outcome.stderr.contains("volume `w` is not made: ") && outcome.hint().contains("--min-free"),
        "{outcome:?}"
    );
    place.fails(&["volume", "snapshot", "./p/v", "t"], 7, "snapshot `t` is not made: ");
    place.fails(&["volume", "snapshot", "./p/v", "t", "--group", "s=u"], 7, says);
    // What gives space back is not guarded, nor is the way back, nor what the kernel would do.
    place.ok(&["pool", "message", POOL, "create_thin 9"]);
    place.ok(&["volume", "rollback", "./p/v", "s", "--force"]);
    drop(client);
    for (minimum, code) in [("51%", 7), ("8M", 7), ("7M", 0), ("49%", 0)] {
        place.ok(&["pool", "set", POOL, "--min-free", minimum]);
        let made =
            place.run(&["volume", "create", &format!("./p/x{minimum}").replace('%', ""), "--size", "1M"]);
        assert_eq!(made.code, code, "{made:?}");
    }
    assert!(
        place.ok(&["pool", "status", POOL, "--format", "docker"]).contains("Minimum Free Space: 8.221MB")
    );
    assert_eq!(place.ok(&["pool", "status", POOL, "-H", "-o", "min_free"]), "49%\n");
    drop(daemon);
    // Metadata, by a part only.
    place.ok(&["pool", "set", POOL, "--min-free", "0%"]);
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "16M", "--min-free", "90%"]);
    place.fails(&["volume", "create", "./p/w", "--size", "1M"], 7, "bytes are free for metadata, ");
    place.ok(&["pool", "set", POOL, "--min-free", "16M"]);
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    place.fails(&["pool", "set", POOL, "--min-free", "101%"], 2, "no more than 100%").hint();
}

#[test]
fn a_listener_hears_of_everything_once() {
    let place = Place::with_pool("4M");
    place.fails(&["events", POOL], 5, "is not being served").hint();
    let daemon = place.serve(&[]);
    let listener = Listener::start(&place, &["--past"]);
    place.ok(&["volume", "create", "./p/v", "--size", "8M"]);
    let made = listener.is("volume-created");
    assert_eq!((&made["volume"], &made["id"], &made["number"]), (&"v".into(), &0.into(), &1.into()));
    let mut client = place.connect("v");
    (0..60).for_each(|block| client.write(block * BLOCK, &[1; 512]).expect("there is space"));
    let low = listener.is("data-low");
    assert!(low["free_bytes"].as_u64().is_some_and(|free| (4 * BLOCK..7 * BLOCK).contains(&free)), "{low}");
    assert_eq!(low["total_bytes"], 64 * BLOCK);
    (60..64).for_each(|block| client.write(block * BLOCK, &[1; 512]).expect("there is space"));
    assert_eq!(client.write(64 * BLOCK, &[1; 512]), Err(NO_SPACE));
    // The pool is full before anybody is refused.
    let [one, other] = [listener.next(), listener.next()];
    let mode = if one["event"] == "mode" { &one } else { &other };
    assert_eq!(mode["mode"], "out_of_data_space");
    assert!([&one, &other].iter().any(|event| event["event"] == "data-full"), "{one} {other}");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    listener.is("volume-created");
    place.ok(&["volume", "delete", "./p/s"]);
    let gone = listener.is("volume-deleted");
    assert_eq!((&gone["volume"], &gone["id"]), (&"s".into(), &1.into()));
    assert_eq!(client.trim(0, 32 * BLOCK as usize), Ok(()));
    client.flush().expect("flushed");
    let mut words = [listener.next()["event"].to_string(), listener.next()["event"].to_string()];
    words.sort();
    assert_eq!(words, ["\"data-ok\"", "\"mode\""]);
    // Who comes late hears what is kept, in words; and the end.
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| place.ok(&["events", POOL, "--past"]));
        std::thread::sleep(Duration::from_millis(300));
        drop(client);
        assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
        late.join().expect("it ends")
    });
    let words: Vec<_> = late.lines().map(|line| line.split_once(' ').expect("a time").1).collect();
    assert!(words[0] == "volume-created v" && words[1].starts_with("data-low "), "{words:?}");
    assert!(words[1].ends_with(" of 4M free"), "{words:?}");
    assert_eq!(words.last(), Some(&"closing"));
    listener.is("closing");
}

#[test]
fn a_listener_notices_a_daemon_that_is_killed_and_a_reader_that_leaves() {
    let place = Place::with_pool("4M");
    let daemon = place.serve(&[]);
    let mut listener = Listener::start(&place, &[]);
    std::thread::sleep(Duration::from_millis(300));
    daemon.kill();
    let status = listener.process.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let daemon = place.serve(&[]);
    let mut listening =
        place.command(&["events", POOL, "--past"]).stdout(Stdio::piped()).spawn().expect("it starts");
    drop(listening.stdout.take());
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    eventually("it ends", || listening.try_wait().expect("ours").is_some());
    assert_eq!(listening.wait().expect("ours").code(), Some(0));
    drop(daemon);
}

#[test]
fn the_hook_runs_for_each_event_and_holds_up_nothing() {
    let place = Place::with_pool("4M");
    let hook = place.path("hook");
    fs::write(&hook, format!(
        "#!/bin/sh\necho \"$UTHIN_EVENT $UTHIN_VOLUME $UTHIN_POOL $UTHIN_EVENT_JSON\" >> {}\n[ \"$UTHIN_VOLUME\" != slow ] || sleep 3\n",
        place.path("heard").display()
    )).expect("written");
    place.fails(&["serve", POOL, "--hook", "./hook"], 2, "it is no program").hint();
    place.fails(&["serve", POOL, "--hook", "./none"], 2, "--hook ./none").hint();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("ours");
    let daemon = place.serve(&["--hook", "./hook"]);
    let begun = Instant::now();
    for name in ["slow", "b", "c"] {
        place.ok(&["volume", "create", &format!("./p/{name}"), "--size", "1M"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "it is not waited for");
    let heard = || fs::read_to_string(place.path("heard")).unwrap_or_default();
    eventually("all are told, one after the other", || heard().lines().count() == 3);
    let path = place.path("p").canonicalize().expect("there").display().to_string();
    let first = heard().lines().next().expect("a line").to_owned();
    assert!(
        first.starts_with(&format!("volume-created slow {path} {{\"schema\":\"uthin/v1\",\"number\":1,")),
        "{first}"
    );
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
}

#[test]
fn discards_are_ignored_passed_down_or_not_as_told_while_it_runs() {
    let place = Place::with_pool("16M");
    place.ok(&["volume", "create", "./p/v", "--size", "16M"]);
    let daemon = place.serve(&["--discard", "ignore"]);
    let word = || place.json(&["pool", "status", POOL])["discard"].as_str().expect("a word").to_owned();
    let mapped =
        || place.json(&["volume", "list", POOL])["volumes"][0]["mapped_bytes"].as_u64().expect("a number");
    let stored =
        || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(place.path("p/data")).expect("there")) * 512;
    let mut client = place.connect("v");
    (0..16).for_each(|block| client.write(block * BLOCK, &vec![1; BLOCK as usize]).expect("written"));
    client.flush().expect("flushed");
    assert_eq!(word(), "ignore");
    assert!(place.ok(&["pool", "status", POOL, "--format", "dm"]).contains(" ignore_discard "));
    assert_eq!(client.trim(0, 4 * BLOCK as usize), Ok(()), "it is a hint, and is not taken");
    client.flush().expect("flushed");
    assert_eq!((mapped(), client.read(0, 512)), (16 * BLOCK, Ok(vec![1; 512])));
    let full = stored();
    place.ok(&["pool", "set", POOL, "--discard", "nopassdown"]);
    assert_eq!((word(), client.trim(0, 4 * BLOCK as usize)), ("nopassdown".to_owned(), Ok(())));
    client.flush().expect("flushed");
    assert_eq!((mapped(), stored(), client.read(0, 512)), (12 * BLOCK, full, Ok(vec![0; 512])));
    let set = place.json(&["pool", "set", POOL, "--discard", "passdown"]);
    assert_eq!((&set["in_force"], word().as_str()), (&true.into(), "passdown"));
    assert_eq!(client.trim(4 * BLOCK, 4 * BLOCK as usize), Ok(()));
    client.flush().expect("flushed");
    eventually("the space goes back", || stored() <= full - 4 * BLOCK);
    assert_eq!(mapped(), 8 * BLOCK);
    // Zeros that may be holes are zeros in any mode; and the rest changes in use as well.
    place.ok(&["pool", "set", POOL, "--no-zero", "--when-full", "queue:5", "--low-water", "20%"]);
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["zero_new_blocks"], &status["when_full"]["queue"]), (&false.into(), &5.into()));
    drop((client, daemon));
    assert_eq!(word(), "passdown", "it is kept");
}
