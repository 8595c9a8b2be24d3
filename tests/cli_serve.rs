//! `uthin serve` and the commands that go through it, with a client of its own, through the real binary.

mod cli_common;

use cli_common::control::{ask, http};
use cli_common::{POOL, Place, eventually, nbd};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A pool with a volume `v` of 64 MiB.
fn place_with_volume(size: &str) -> Place {
    let place = Place::with_pool(size);
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    place
}

/// The same in a pool without a journal.
fn faithful_place_with_volume() -> Place {
    let place = Place::with_faithful_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    place
}

#[test]
fn a_volume_is_written_snapshotted_and_read_back_and_all_is_there_later() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    let control = std::fs::metadata(place.path("p/control.sock")).expect("there");
    assert!(control.file_type().is_socket());
    assert_eq!(control.permissions().mode() & 0o777, 0o600);
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(status["served_by"]["pid"], daemon.pid());
    let uri = place.json(&["volume", "list", POOL])["volumes"][0]["exports"][0].as_str().map(str::to_owned);
    let socket = place.path("p/nbd.sock").canonicalize().expect("there");
    assert_eq!(uri, Some(format!("nbd+unix:///v?socket={}", socket.display())));

    let mut client = place.connect("v");
    assert_eq!(client.size_bytes, 64 << 20);
    client.write(1 << 20, &[1; 100 * 512]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    client.write(1 << 20, &[2; 512]).expect("there is space");
    client.flush().expect("flushed");
    let mut snapshot = place.connect("s");
    assert_eq!(snapshot.read(1 << 20, 1024), Ok(vec![1; 1024]));
    assert_eq!(client.read(1 << 20, 1024), Ok([[2; 512], [1; 512]].concat()));
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let volumes = place.json(&["volume", "list", POOL]);
    assert_eq!((&volumes["volumes"][1]["name"], &volumes["volumes"][1]["open"]), (&"v".into(), &1.into()));
    drop((client, snapshot));

    assert_eq!(place.ok(&["pool", "close", POOL]), "pool ./p closed\n");
    assert_eq!(daemon.wait(), 0);
    assert_eq!(
        place.files("p"),
        ["catalog.json", "catalog.json.new", "data", "journal", "metadata"],
        "no socket is left"
    );
    assert_eq!(place.ok(&["pool", "close", POOL]), "pool ./p was not being served\n");
    assert_eq!(place.names(), ["s", "v"]);
    let daemon = place.serve(&[]);
    assert_eq!(place.connect("s").read(1 << 20, 512), Ok(vec![1; 512]));
    assert_eq!(place.connect("v").read(1 << 20, 512), Ok(vec![2; 512]));
    assert_eq!(daemon.signal(Signal::TERM), 0);
    assert_eq!(place.files("p"), ["catalog.json", "catalog.json.new", "data", "journal", "metadata"]);
    assert_eq!(place.serve(&[]).signal(Signal::INT), 0);
}

/// One client writes a number to `a` and then to `b`: in no group may `b` be ahead of `a`.
#[test]
fn a_group_is_taken_at_one_moment_while_a_client_writes() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/a", "--size", "1M"]);
    place.ok(&["volume", "create", "./p/b", "--size", "1M"]);
    let _daemon = place.serve(&[]);
    let (mut a, mut b) = (place.connect("a"), place.connect("b"));
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Relaxed) {
                let number = written.load(Relaxed) + 1;
                a.write(4096, &[number.to_le_bytes(); 64].concat()).expect("there is space");
                b.write(65_536, &[number.to_le_bytes(); 64].concat()).expect("there is space");
                written.store(number, Relaxed);
            }
        });
        for round in 0..8 {
            let before = written.load(Relaxed);
            eventually("the client is at it", || written.load(Relaxed) > before + 2);
            let group = format!("b=b{round}");
            place.ok(&["volume", "snapshot", "./p/a", &format!("a{round}"), "--group", &group]);
        }
        stop.store(true, Relaxed);
        writer.join().expect("it writes to the end");
    });
    let number_in = |volume: String, offset_bytes: u64| {
        let bytes = place.connect(&volume).read(offset_bytes, 512).expect("it reads");
        assert!(bytes.chunks(8).all(|chunk| chunk == &bytes[..8]), "a request is in it whole");
        u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
    };
    let mut last = 0;
    for round in 0..8 {
        let (in_a, in_b) = (number_in(format!("a{round}"), 4096), number_in(format!("b{round}"), 65_536));
        assert!(in_a == in_b || in_a == in_b + 1, "round {round}: a has {in_a}, b has {in_b}");
        assert!(in_a >= last, "what was acknowledged before is in it");
        last = in_a;
    }
    assert!(last > 16, "the client was at it: {last}");
}

#[test]
fn a_volume_is_renamed_under_its_clients() {
    let place = faithful_place_with_volume();
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[1; 512]).expect("there is space");
    place.ok(&["volume", "rename", "./p/v", "w"]);
    client.write(512, &[2; 512]).expect("its client stays");
    assert!(nbd::Client::connect(&place.path("p/nbd.sock"), "v").is_err(), "the old name is gone");
    assert_eq!(place.connect("w").read(0, 1024), Ok([[1; 512], [2; 512]].concat()));
    let uri = place.json(&["volume", "list", POOL])["volumes"][0]["exports"][0].to_string();
    assert!(uri.contains("/w?"), "{uri}");
    place.fails(&["volume", "delete", "./p/w"], 6, "volume `w` is in use").hint();
    place.fails(&["volume", "rename", "./p/v", "x"], 5, "there is no volume `v`").hint();
    daemon.kill();
    assert_eq!((place.names(), place.notes()), (vec!["w".to_owned()], "[]".to_owned()));
}

#[test]
fn a_read_only_volume_is_read_and_not_written() {
    let place = place_with_volume("1G");
    let _daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[1; 512]).expect("there is space");
    place.ok(&["volume", "snapshot", "./p/v", "s", "--read-only"]);
    let mut reader = place.connect("s");
    assert_eq!((client.is_read_only, reader.is_read_only), (false, true));
    assert_eq!(reader.read(0, 512), Ok(vec![1; 512]));
    assert_eq!(reader.write(0, &[2; 512]), Err(nbd::NOT_PERMITTED));
    assert_eq!(reader.trim(0, 65_536), Err(nbd::NOT_PERMITTED));
    // One that writes keeps its volume writable; one that reads does not keep it read-only.
    place.fails(&["volume", "set", "./p/v", "--read-only"], 6, "volume `v` is in use by a client").hint();
    client.write(512, &[2; 512]).expect("nothing has changed for it");
    assert!(!place.connect("v").is_read_only);
    place.ok(&["volume", "set", "./p/s", "--read-write"]);
    assert_eq!(reader.write(0, &[2; 512]), Err(nbd::NOT_PERMITTED), "it opened the volume for reading");
    assert_eq!(place.connect("s").write(0, &[2; 512]), Ok(()));
    drop((client, reader));
    eventually("the client's hold ends", || place.run(&["volume", "set", "./p/v", "--read-only"]).code == 0);
    assert_eq!(place.connect("v").write(0, &[3; 512]), Err(nbd::NOT_PERMITTED));
    assert_eq!(place.connect("v").read(0, 1024), Ok([[1; 512], [2; 512]].concat()));
}

#[test]
fn commands_go_through_the_daemon_and_a_second_daemon_does_not() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    place.ok(&["volume", "create", "./p/w", "--size", "1G"]);
    assert_eq!(place.connect("w").size_bytes, 1 << 30, "an export at once");
    place.fails(&["volume", "create", "./p/w", "--size", "1G"], 5, "exists already").hint();
    place.fails(&["volume", "create", "./p/x", "--size", "1000"], 2, "multiples of 512").hint();
    place.fails(&["volume", "delete", "./p/x"], 5, "there is no volume `x`");
    place.fails(&["volume", "snapshot", "./p/x", "y"], 5, "there is no volume `x`");
    place.ok(&["volume", "delete", "./p/w"]);
    assert!(nbd::Client::connect(&place.path("p/nbd.sock"), "w").is_err(), "no export any more");
    assert_eq!(place.names(), ["v"]);
    let outcome = place.fails(&["serve", POOL], 6, "in use by");
    assert!(outcome.stderr.contains(&daemon.pid().to_string()), "{outcome:?}");
    assert!(place.path("p/control.sock").exists(), "the first one's socket stays");
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_volume_in_use_is_not_deleted() {
    let place = place_with_volume("1G");
    let _daemon = place.serve(&[]);
    let mut client = place.connect("v");
    let outcome = place.fails(&["volume", "delete", "./p/v"], 6, "volume `v` is in use by a client");
    outcome.hint();
    client.write(0, &[1; 512]).expect("nothing has changed for it");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    place.ok(&["volume", "delete", "./p/s"]);
    drop(client);
    eventually("the client's hold ends", || place.run(&["volume", "delete", "./p/v"]).code == 0);
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_killed_daemon_leaves_a_pool_that_opens_and_what_was_flushed() {
    let place = faithful_place_with_volume();
    for round in 1..=3_u8 {
        let daemon = place.serve(&[]);
        let mut client = place.connect("v");
        client.write(u64::from(round) << 20, &[round; 4096]).expect("there is space");
        client.flush().expect("flushed");
        place.ok(&["volume", "snapshot", "./p/v", &format!("s{round}")]);
        daemon.kill();
        assert!(place.path("p/control.sock").exists(), "nobody has removed it");
        // Sockets of the dead do not keep commands from the pool.
        assert_eq!(place.names().len(), usize::from(round) + 1);
        assert_eq!(place.notes(), "[]");
        place.ok(&["volume", "create", &format!("./p/w{round}"), "--size", "1M"]);
        place.ok(&["volume", "delete", &format!("./p/w{round}")]);
    }
    let daemon = place.serve(&[]);
    for round in 1..=3_u8 {
        assert_eq!(place.connect("v").read(u64::from(round) << 20, 4096), Ok(vec![round; 4096]));
        let mut snapshot = place.connect(&format!("s{round}"));
        assert_eq!(snapshot.read(u64::from(round) << 20, 4096), Ok(vec![round; 4096]));
        assert_eq!(
            snapshot.read(u64::from(round + 1) << 20, 512),
            Ok(vec![0; 512]),
            "a later write is not in it"
        );
    }
    daemon.kill();
    assert_eq!(place.ok(&["pool", "close", POOL]), "pool ./p was not being served\n");
}

#[test]
fn a_full_pool_tells_the_client_and_deleting_makes_room() {
    let place = Place::with_pool("4M");
    place.ok(&["volume", "create", "./p/v", "--size", "64M"]);
    place.ok(&["volume", "create", "./p/w", "--size", "64M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    place.connect("w").write(0, &[9; 65_536]).expect("there is space");
    let written =
        (0..100_u64).take_while(|block| client.write(block << 16, &[1; 65_536]).is_ok()).count() as u64;
    assert_eq!(written, 63);
    assert_eq!(client.write(written << 16, &[1; 512]), Err(nbd::NO_SPACE));
    assert_eq!(client.write(0, &[2; 512]), Ok(()), "an overwrite needs no space");
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(client.read((written - 1) << 16, 512), Ok(vec![1; 512]));
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["mode"], &status["data"]["free_bytes"]), (&"out_of_data_space".into(), &0.into()));
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    assert!(line.contains(" 64/64 - out_of_data_space "), "{line}");
    // Volumes come and go on a full pool.
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    assert_eq!(client.write(0, &[3; 512]), Err(nbd::NO_SPACE), "a shared block must be copied");
    place.ok(&["volume", "delete", "./p/s"]);
    eventually("the first client's hold ends", || place.run(&["volume", "delete", "./p/w"]).code == 0);
    eventually("a block is free", || client.write(written << 16, &[1; 512]).is_ok());
    assert_eq!(place.json(&["pool", "status", POOL])["mode"], "rw");
    assert_eq!(client.trim(0, 10 << 16), Ok(()));
    client.flush().expect("flushed");
    eventually("discarded blocks are free", || client.write(63 << 16, &[1; 65_536]).is_ok());
    drop(client);
    assert_eq!(daemon.signal(Signal::TERM), 0);
    let place_after = place.json(&["pool", "status", POOL]);
    assert_eq!(place_after["data"]["used_bytes"], (63 - 10 + 1 + 1 - i32::from(written == 63)) * 65_536);
}

#[test]
fn the_space_of_a_deleted_volume_goes_back_to_the_filesystem_or_not() {
    for (discard, word, goes) in
        [("passdown", "discard_passdown", true), ("nopassdown", "no_discard_passdown", false)]
    {
        let place = place_with_volume("1G");
        let daemon = place.serve(&["--discard", discard]);
        assert!(place.ok(&["pool", "status", POOL, "--format", "dm"]).contains(&format!(" {word} ")));
        let mut client = place.connect("v");
        (0..32_u64).for_each(|step| client.write(step << 20, &[1; 1 << 20]).expect("there is space"));
        client.flush().expect("flushed");
        drop(client);
        let stored = || std::fs::metadata(place.path("p/data")).expect("there").blocks() * 512;
        assert!(stored() >= 32 << 20);
        eventually("the client's hold ends", || place.run(&["volume", "delete", "./p/v"]).code == 0);
        if goes {
            eventually("the file shrinks", || stored() < 1 << 20);
        }
        place.ok(&["pool", "close", POOL]);
        assert_eq!(daemon.wait(), 0);
        assert_eq!(stored() < 1 << 20, goes);
        assert_eq!(place.json(&["pool", "status", POOL])["data"]["used_bytes"], 0);
    }
}

#[test]
fn listeners_are_where_they_were_asked_for() {
    let place = place_with_volume("1G");
    let elsewhere = place.path("elsewhere.sock");
    let address = format!("unix:{}", elsewhere.display());
    let daemon = place.serve(&["--nbd", &address, "--nbd", "tcp:127.0.0.1:0"]);
    let status = place.json(&["pool", "status", POOL]);
    let exports: Vec<_> =
        status["exports"].as_array().expect("a list").iter().filter_map(|uri| uri.as_str()).collect();
    assert_eq!(exports.len(), 2);
    assert!(exports[1].starts_with("nbd://127.0.0.1:") && !exports[1].contains(":0/"), "{exports:?}");
    assert!(nbd::Client::connect(&elsewhere, "v").is_ok());
    assert!(!place.path("p/nbd.sock").exists());
    assert_eq!(daemon.signal(Signal::TERM), 0);
    assert!(!elsewhere.exists());
    place.fails(&["serve", POOL, "--nbd", "unix:/nodir/x"], 5, "the directory does not exist").hint();
    let long = format!("unix:{}", place.path(&"x".repeat(108)).display());
    place.fails(&["serve", POOL, "--nbd", &long], 2, "");
    let busy = place.serve(&["--nbd", &address]);
    let other = Place::with_pool("1G");
    other.fails(&["serve", POOL, "--nbd", &address], 6, "elsewhere.sock");
    assert!(!other.path("p/control.sock").exists(), "a daemon that cannot start leaves nothing");
    other.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    busy.kill();
}

#[test]
fn a_data_file_that_somebody_truncates_is_noticed_and_never_reads_as_zeros() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    (0..32).for_each(|step| client.write(step << 20, &[1; 1 << 20]).expect("there is space"));
    client.flush().expect("flushed");
    let data = std::fs::OpenOptions::new().write(true).open(place.path("p/data")).expect("there");
    data.set_len(1 << 20).expect("truncated");
    assert_eq!(client.read(20 << 20, 65_536), Err(nbd::IO));
    assert_eq!(client.read((1 << 20) - 512, 1024), Err(nbd::IO), "half of it is there");
    assert_eq!(client.read(0, 512), Ok(vec![1; 512]), "what is there can be read");
    assert_eq!(client.flush(), Err(nbd::IO));
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(status["mode"], "fail");
    assert!(status["failure"]["message"].to_string().contains("somebody has truncated it"), "{status}");
    assert!(status["failure"]["hint"].is_string(), "{status}");
    assert_eq!(place.names(), ["v"], "a failed pool has its volumes still");
    let log = std::fs::read_to_string(place.path("serve.log")).expect("there");
    assert!(log.contains("p/data") && log.contains("and had 1073741824"), "{log}");
    assert!(log.contains("the file ends before this place"), "{log}");
    drop(client);
    daemon.kill();
    place.fails(&["serve", POOL], 5, "the pool was made with 1073741824").hint();
}

#[test]
fn a_truncated_data_file_is_noticed_without_anybody_asking() {
    let place = place_with_volume("1G");
    let _daemon = place.serve(&[]);
    let data = std::fs::OpenOptions::new().write(true).open(place.path("p/data")).expect("there");
    data.set_len((1 << 30) - 512).expect("truncated");
    eventually("the pool fails", || place.json(&["pool", "status", POOL])["mode"] == "fail");
}

#[test]
fn a_limit_to_the_size_of_files_fails_a_write_and_not_the_daemon() {
    let place = place_with_volume("1G");
    let script = format!("ulimit -f 81920; exec {} serve {POOL}", env!("CARGO_BIN_EXE_uthin")); // of 512 bytes
    let daemon = place.serve_by(std::process::Command::new("sh").args(["-c", &script]));
    let mut client = place.connect("v");
    client.write(0, &[1; 512]).expect("below the limit");
    let too_large = (0..1024).find(|block| client.write(block * 65_536, &[1; 65_536]).is_err());
    assert!(too_large.is_some_and(|block| block > 600), "40 MiB are allowed, failed at {too_large:?}");
    assert_eq!(client.read(65_536, 512), Ok(vec![1; 512]));
    client.flush().expect("what was written is durable");
    drop(client);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
}

#[test]
fn a_truncated_metadata_file_is_noticed_and_not_written_to() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[1; 65_536]).expect("there is space");
    let path = place.path("p/metadata");
    let metadata = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
    metadata.set_len(8192).expect("truncated");
    eventually("the pool fails", || place.json(&["pool", "status", POOL])["mode"] == "fail");
    let status = place.json(&["pool", "status", POOL]);
    assert!(status["failure"]["message"].to_string().contains("somebody has truncated it"), "{status}");
    let hint = status["failure"]["hint"].to_string();
    assert!(hint.contains("uthin-fsck repair") && !hint.contains("is safe"), "{status}");
    assert_eq!(client.write(1 << 20, &[1; 512]), Err(nbd::IO));
    assert_eq!(client.flush(), Err(nbd::IO));
    drop(client);
    assert_ne!(daemon.signal(rustix::process::Signal::TERM), 0, "it has failed");
    assert_eq!(std::fs::metadata(&path).expect("there").len(), 8192, "nothing was written to it");
}

#[test]
fn clients_that_say_nothing_keep_nobody_from_the_control_socket_and_not_the_daemon_from_its_end() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    let connect = || UnixStream::connect(place.path("p/control.sock")).expect("it listens");
    let silent: Vec<_> = (0..100).map(|_| connect()).collect();
    let files = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("there").count();
    eventually("they are accepted", || files() > 60);
    assert!(files() < 64 + 40, "{} files are open", files());
    let begin = Instant::now();
    assert_eq!(place.names(), ["v"]);
    assert!(begin.elapsed() < Duration::from_secs(15), "it took {:?}", begin.elapsed());
    let mut late: Vec<_> = (0..100).map(|_| connect()).collect();
    late.iter_mut().for_each(|stream| stream.write_all(b"POST /v1/close HTTP/1.1\r\nHost").expect("sent"));
    let begin = Instant::now();
    assert_eq!(daemon.signal(Signal::TERM), 0);
    assert!(begin.elapsed() < Duration::from_secs(10), "it took {:?}", begin.elapsed());
    drop(silent);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let place = place_with_volume("1G");
    let _daemon = place.serve(&[]);
    let request = "POST /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{";
    let (status, body) = http(&place, request);
    assert!(status == 408 && body.contains("has not come"), "{status} {body}");
}

#[test]
fn the_control_socket_keeps_to_its_documentation() {
    let place = place_with_volume("1G");
    let daemon = place.serve(&[]);
    let code = |(status, answer): (u16, serde_json::Value)| {
        assert!(answer["error"]["message"].is_string(), "{answer}");
        (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    let (status, mut pool) = ask(&place, "GET", "/v1/pool", "");
    assert_eq!((status, &pool["schema"]), (200, &"uthin/v1".into()));
    let mut told = place.json(&["pool", "status", POOL]);
    for answer in [&mut pool, &mut told] {
        let free = answer["data"]["filesystem_free_bytes"].take();
        assert!(free.is_u64(), "{free}: and others write to that filesystem");
    }
    assert_eq!(pool, told, "the command line says the same");
    let (status, set) = ask(&place, "PATCH", "/v1/pool", r#"{"zero_new_blocks": true}"#);
    assert_eq!(
        (status, &set["options"]["zero_new_blocks"], &set["in_force"]),
        (200, &true.into(), &true.into())
    );
    assert_eq!(code(ask(&place, "PATCH", "/v1/pool", r#"{"discard": "perhaps"}"#)), is(400, "invalid"));
    let (status, set) = ask(&place, "PATCH", "/v1/pool", r#"{"low_water": {"percent": 20}}"#);
    assert_eq!((status, &set["options"]["low_water"]["percent"]), (200, &20.into()));
    assert_eq!(
        code(ask(&place, "PATCH", "/v1/pool", r#"{"low_water": {"percent": 101}}"#)),
        is(400, "invalid")
    );
    let (status, made) = ask(&place, "POST", "/v1/volumes", r#"{"name": "w", "size_bytes": 1024}"#);
    assert_eq!((status, &made["name"], &made["size_bytes"]), (201, &"w".into(), &1024.into()));
    let (status, made) = ask(&place, "POST", "/v1/volumes/w/snapshot", r#"{"name": "s"}"#);
    assert_eq!((status, &made["origin"]), (201, &"w".into()));
    let group = r#"{"snapshots": [{"origin": "w", "name": "s2"}, {"origin": "v", "name": "t2"}]}"#;
    let (status, made) = ask(&place, "POST", "/v1/snapshots", group);
    assert_eq!((status, &made["snapshots"][1]["origin"]), (201, &"v".into()));
    assert_eq!(code(ask(&place, "POST", "/v1/snapshots", r#"{"snapshots": []}"#)), is(400, "invalid"));
    for name in ["s2", "t2"] {
        assert_eq!(ask(&place, "DELETE", &format!("/v1/volumes/{name}"), "").0, 200);
    }
    let (status, renamed) = ask(&place, "POST", "/v1/volumes/w/rename", r#"{"name": "w2"}"#);
    assert_eq!((status, &renamed["old_name"], &renamed["name"]), (200, &"w".into(), &"w2".into()));
    let rename = |from: &str| ask(&place, "POST", &format!("/v1/volumes/{from}/rename"), r#"{"name": "w"}"#);
    assert_eq!(rename("w2").0, 200);
    assert_eq!(code(rename("w2")), is(404, "not-found"));
    assert_eq!(code(rename("v")), is(409, "exists"));
    let (status, set) = ask(&place, "PATCH", "/v1/volumes/w", r#"{"labels": {"a": "1", "b": "2"}}"#);
    assert_eq!((status, &set["labels"]), (200, &serde_json::json!({ "a": "1", "b": "2" })));
    let (status, set) = ask(&place, "PATCH", "/v1/volumes/w", r#"{"labels": {"a": null}}"#);
    assert_eq!((status, &set["labels"]), (200, &serde_json::json!({ "b": "2" })));
    assert_eq!(ask(&place, "PATCH", "/v1/volumes/w", "{}").1["labels"]["b"], "2");
    assert_eq!(code(ask(&place, "PATCH", "/v1/volumes/w", r#"{"label": {}}"#)), is(400, "invalid"));
    assert_eq!(code(ask(&place, "PATCH", "/v1/volumes/w", r#"{"labels": {" ": ""}}"#)), is(400, "invalid"));
    assert_eq!(code(ask(&place, "PATCH", "/v1/volumes/x", "{}")), is(404, "not-found"));
    place.ok(&["volume", "set", "./p/w", "--label", "through=it"]);
    let (status, list) = ask(&place, "GET", "/v1/volumes", "");
    assert_eq!((status, list["volumes"].as_array().map(Vec::len)), (200, Some(3)));
    let (status, deleted) = ask(&place, "DELETE", "/v1/volumes/w", "");
    assert_eq!((status, &deleted["finished"]), (200, &true.into()));

    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "s", "size_bytes": 512}"#)),
        is(409, "exists")
    );
    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "7", "size_bytes": 512}"#)),
        is(400, "invalid")
    );
    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "a/b", "size_bytes": 512}"#)),
        is(400, "invalid")
    );
    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "x", "size_bytes": 5}"#)),
        is(400, "invalid")
    );
    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "x", "size_bytes": -5}"#)),
        is(400, "invalid")
    );
    assert_eq!(
        code(ask(&place, "POST", "/v1/volumes", r#"{"name": "x", "size_bytes": 512, "y": 1}"#)),
        is(400, "invalid")
    );
    assert_eq!(code(ask(&place, "POST", "/v1/volumes", "no JSON")), is(400, "invalid"));
    assert_eq!(code(ask(&place, "POST", "/v1/volumes", "")), is(400, "invalid"));
    assert_eq!(code(ask(&place, "POST", "/v1/volumes/x/snapshot", r#"{"name": "y"}"#)), is(404, "not-found"));
    assert_eq!(code(ask(&place, "POST", "/v1/volumes/-x/snapshot", r#"{"name": "y"}"#)), is(400, "invalid"));
    assert_eq!(code(ask(&place, "DELETE", "/v1/volumes/%2e%2e%2fx", "")), is(400, "invalid"));
    assert_eq!(code(ask(&place, "DELETE", "/v1/volumes/x", "")), is(404, "not-found"));
    assert_eq!(code(ask(&place, "DELETE", "/v1/pool", "")), is(405, "invalid"));
    assert_eq!(code(ask(&place, "GET", "/", "")), is(404, "not-found"));
    let client = place.connect("v");
    assert_eq!(code(ask(&place, "DELETE", "/v1/volumes/v", "")), is(409, "busy"));
    drop(client);

    let large = format!(r#"{{"name": "{}", "size_bytes": 512}}"#, "x".repeat(70_000));
    assert_eq!(code(ask(&place, "POST", "/v1/volumes", &large)), is(413, "invalid"));
    assert_eq!(http(&place, "\0\0\0 nonsense\r\n\r\n").0, 400);
    // Clients that say nothing, or half of it, are nobody's problem: neither now nor when the daemon ends.
    let _silent = UnixStream::connect(place.path("p/control.sock")).expect("a daemon listens");
    let mut half = UnixStream::connect(place.path("p/control.sock")).expect("a daemon listens");
    half.write_all(b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").expect("written");
    assert_eq!(ask(&place, "GET", "/v1/pool", "").0, 200);
    let (status, closed) = ask(&place, "POST", "/v1/close", "");
    assert_eq!((status, &closed["pid"]), (200, &daemon.pid().into()));
    assert_eq!(daemon.wait(), 0);
    assert_eq!(place.names(), ["s", "v"]);
}

#[test]
fn many_clients_of_the_control_socket_at_once() {
    let place = faithful_place_with_volume();
    let daemon = place.serve(&[]);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..6 {
                    let name = format!("w{worker}-{round}");
                    place.ok(&["volume", "snapshot", "./p/v", &name]);
                    assert!(place.names().contains(&name));
                    if round % 2 == 0 {
                        place.ok(&["volume", "delete", &format!("./p/{name}")]);
                    }
                }
            });
        }
    });
    assert_eq!(place.names().len(), 1 + 8 * 3);
    daemon.kill();
    assert_eq!(place.names().len(), 1 + 8 * 3);
    assert_eq!(place.notes(), "[]");
    assert_eq!(place.json(&["pool", "status", POOL])["transaction_id"], 1 + 8 * 9);
}

#[test]
fn a_pool_deep_down_has_a_control_socket_all_the_same() {
    let place = Place::empty();
    let deep = format!("./{}/{}", "d".repeat(90), "e".repeat(90));
    std::fs::create_dir_all(place.path(&deep)).expect("made");
    let pool = format!("{deep}/p");
    place.ok(&["pool", "create", &pool, "--size", "1G"]);
    let outcome = place.fails(&["serve", &pool], 2, "socket");
    assert!(outcome.hint().contains("--nbd"), "{outcome:?}");
    let socket = place.path("n.sock");
    let mut daemon = place
        .command(&["serve", &pool, "--nbd", &format!("unix:{}", socket.display())])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut ready = [0; 6];
    daemon.stdout.take().expect("piped").read_exact(&mut ready).expect("it is ready");
    assert_eq!(&ready, b"ready\n");
    place.ok(&["volume", "create", &format!("{pool}/v"), "--size", "1M"]);
    assert!(nbd::Client::connect(&socket, "v").is_ok());
    place.ok(&["pool", "close", &pool]);
    assert!(daemon.wait().expect("ours").success());
}

/// A limit on the size of files stands in for a disk that fails: writes beyond it do.
#[test]
fn a_disk_that_fails_leaves_a_readable_pool_and_a_check_puts_it_right() {
    let place = faithful_place_with_volume();
    let script = format!("trap '' XFSZ; ulimit -f 200; exec {} serve {POOL}", env!("CARGO_BIN_EXE_uthin"));
    let daemon = place.serve_by(std::process::Command::new("sh").args(["-c", &script]));
    let mut client = place.connect("v");
    client.write(0, &[7; 512]).expect("the first bytes of the data file are below the limit");
    client.flush().expect("flushed");
    let failed =
        (0..100).map(|number| place.run(&["volume", "create", &format!("./p/w{number}"), "--size", "1M"]));
    let failed: Vec<_> = failed.skip_while(|outcome| outcome.code == 0).take(2).collect();
    assert_eq!(failed.iter().map(|outcome| outcome.code).collect::<Vec<_>>(), [1, 1], "{failed:?}");
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["mode"], &status["needs_check"]), (&"ro".into(), &true.into()));
    assert!(
        status["failure"]["message"].as_str().is_some_and(|message| message.contains("metadata")),
        "{status}"
    );
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    assert!(line.contains(" ro ") && line.contains(" needs_check "), "{line}");
    assert!(place.ok(&["pool", "status", POOL]).contains("--clear-needs-check-flag"), "the way back is told");
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
    for refused in [client.write(0, &[8; 512]), client.flush(), client.trim(0, 65_536), client.zero(0, 512)] {
        assert_eq!(refused, Err(nbd::IO));
    }
    drop(client);
    assert!(place.connect("v").is_read_only, "for those who come now");
    let made = status["volumes"].as_u64().expect("a number");
    let names = place.names();
    assert_eq!(names.len() as u64, made, "{names:?}");
    place.fails(&["pool", "close", POOL], 1, "read-only");
    assert_eq!(daemon.wait(), 1, "what was not flushed is lost, and the daemon says so");
    assert_eq!(place.names(), names, "what was acknowledged is there");
    place.fails(&["volume", "create", "./p/again", "--size", "1M"], 5, "needs_check").hint();
    let checked = std::process::Command::new(env!("CARGO_BIN_EXE_uthin-fsck"))
        .args(["check", "--clear-needs-check-flag"])
        .arg(place.path("p/metadata"))
        .output()
        .expect("it starts");
    assert!(checked.status.success(), "{checked:?}");
    place.ok(&["volume", "create", "./p/again", "--size", "1M"]);
    assert_eq!(place.serve(&[]).signal(Signal::TERM), 0);
    assert_eq!(place.names().len(), names.len() + 1);
}
