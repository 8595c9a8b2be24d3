//! A pool that gets full under its clients, as its operator sees it: it is told, writes wait, nothing that is there is in
//! danger, and each of the ways out works while fio goes on.

mod cli_common;
mod common;

use cli_common::{POOL, Place, eventually};
use common::oracle;
use serde_json::Value;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BLOCK: u64 = 65536;

/// A fio that writes a volume, and reads back what it wrote.
fn fio(place: &Place, volume: &str, job: &str) -> Child {
    let socket = place.path("p/nbd.sock");
    let file = place.path(&format!("{volume}.fio"));
    let text = format!(
        "[{volume}]\nioengine=nbd\nuri=nbd+unix:///{volume}?socket={}\nverify=crc32c\nverify_fatal=1\n\
         verify_state_save=0\nrandrepeat=1\nfsync=32\niodepth=8\n{job}\n",
        socket.display()
    );
    fs::write(&file, text).expect("room");
    let out = fs::File::create(place.path(&format!("{volume}.out"))).expect("room");
    let mut command = Command::new("fio");
    command.arg(file).current_dir(place.path("")).stdout(out.try_clone().expect("a file")).stderr(out);
    command.stdin(Stdio::null()).spawn().expect("fio is installed")
}

fn ends_well(place: &Place, volume: &str, mut fio: Child) {
    let status = fio.wait().expect("it is ours");
    let said = fs::read_to_string(place.path(&format!("{volume}.out"))).expect("there");
    assert!(status.success() && said.contains("err= 0"), "{said}");
}

fn wait_for(place: &Place, fio: &mut Child, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = place.json(&["pool", "status", POOL]);
        if is_so(&status) {
            return status;
        }
        assert!(fio.try_wait().expect("it is ours").is_none(), "fio has ended before: {what}; {status}");
        assert!(Instant::now() < deadline, "{what}: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn waits(status: &Value) -> bool {
    status["waiting_for_space"].as_u64() > Some(0)
}

/// Words of what happened so far.
fn events(place: &Place) -> Vec<String> {
    let mut listener = place.command(&["events", POOL, "--json", "--past"]);
    let listener = listener.stdout(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(1500));
    rustix::process::kill_process(rustix::process::Pid::from_child(&listener), rustix::process::Signal::TERM)
        .expect("it runs");
    let said = listener.wait_with_output().expect("it ends").stdout;
    let lines = String::from_utf8(said).expect("text");
    let word = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("JSON");
        let word = event["event"].as_str().expect("a word").to_owned();
        if word == "mode" { format!("mode {}", event["mode"].as_str().expect("a word")) } else { word }
    };
    lines.lines().map(word).collect()
}

#[test]
fn a_pool_that_runs_full_is_told_of_and_helped_without_an_error() {
    let place = Place::empty();
    let options = ["--when-full", "queue:0", "--min-free", "10%", "--low-water", "25%"];
    place.ok(&[&["pool", "create", POOL, "--size", "8M"][..], &options].concat());
    for (volume, size) in [("./p/old", "2M"), ("./p/v", "32M")] {
        place.ok(&["volume", "create", volume, "--size", size]);
    }
    let daemon = place.serve(&[]);
    let mut old = place.connect("old");
    (0..32).for_each(|block| old.write(block * BLOCK, &[7; 512]).expect("there is space"));
    old.flush().expect("durable");

    // 10 MiB into 6 MiB.
    let mut fio = fio(&place, "v", "rw=write\nbs=16k\nsize=10m");
    let status = wait_for(&place, &mut fio, "writes wait", waits);
    assert_eq!((&status["mode"], &status["health"]), (&"out_of_data_space".into(), &"critical".into()));
    assert_eq!(place.run(&["pool", "status", POOL, "--exit-code"]).code, 2);
    let told = events(&place);
    for word in ["data-full", "mode out_of_data_space"] {
        assert_eq!(told.iter().filter(|event| *event == word).count(), 1, "{word}: {told:?}");
    }
    // All else goes on, but nothing new is begun.
    assert_eq!(old.read(5 * BLOCK, 512).expect("read"), [7; 512]);
    old.write(5 * BLOCK, &[8; 512]).expect("in place");
    place.fails(&["volume", "snapshot", "./p/v", "s"], 7, "fewer than the minimum of 10%").hint();
    place.fails(&["volume", "create", "./p/w", "--size", "1M"], 7, "fewer than the minimum of 10%");

    // A discard lets it go on for a while, a deletion for longer, and growing for good.
    old.trim(8 * BLOCK, 4 * BLOCK as usize).expect("discards work");
    drop(old);
    wait_for(&place, &mut fio, "it waits again", |status| waits(status) && status["data"]["free_bytes"] == 0);
    place.ok(&["volume", "delete", "./p/old"]);
    wait_for(&place, &mut fio, "and again", |status| {
        waits(status) && status["data"]["free_bytes"] == 0 && status["volumes"] == 1
    });
    place.ok(&["pool", "grow", POOL, "--size", "16M"]);
    ends_well(&place, "v", fio);
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["mode"], &status["waiting_for_space"]), (&"rw".into(), &0.into()));
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    // The daemon looks at the pool once a second, and tells at once what it is asked to do.
    let after = ["volume-deleted", "mode rw", "data-ok", "volume-created"];
    eventually("all of it is told", || {
        let told = events(&place);
        after.iter().all(|word| told.iter().any(|event| event == word))
    });
    daemon.signal(rustix::process::Signal::TERM);
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

#[test]
fn metadata_that_runs_full_is_told_of_and_helped_without_an_error() {
    let place = Place::empty();
    let options = ["--when-full", "queue:0", "--metadata-size", "2M", "--no-zero"];
    place.ok(&[&["pool", "create", POOL, "--size", "4G"][..], &options].concat());
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    // Many leaves, so that few writes after a snapshot need many blocks of metadata.
    for block in (0..1 << 14).step_by(4) {
        client.write(block * BLOCK + 8192, &[9; 512]).expect("there is space");
    }
    client.flush().expect("durable");
    drop(client);

    let mut fio = fio(&place, "v", "rw=randwrite\nbs=4k\nsize=1g\nio_size=12m\nrate_iops=600");
    let free = |status: &Value| status["metadata"]["free_bytes"].as_u64().expect("a number");
    let mut snapshots = 0;
    let mut snapshot = || {
        let done = place.run(&["volume", "snapshot", "./p/v", &format!("s{snapshots}")]);
        snapshots += i32::from(done.code == 0);
        done
    };
    // Snapshots, until there is metadata neither for another one nor for writes.
    let status = loop {
        let done = snapshot();
        assert!(matches!(done.code, 0 | 7), "{done:?}");
        assert!(done.code == 0 || done.stderr.contains("metadata"), "{done:?}");
        std::thread::sleep(Duration::from_millis(20));
        let status = place.json(&["pool", "status", POOL]);
        if done.code == 7 && waits(&status) {
            break status;
        }
        assert!(fio.try_wait().expect("it is ours").is_none(), "fio has ended before: {status}");
    };
    assert_eq!((&status["mode"], &status["needs_check"]), (&"rw".into(), &false.into()), "{status}");
    assert_eq!(
        (&status["health"], &status["metadata"]["is_full"]),
        (&"critical".into(), &true.into()),
        "{status}"
    );
    assert!(status["data"]["free_bytes"].as_u64() > Some(1 << 30), "it is not the data: {status}");
    eventually("it is told", || events(&place).iter().any(|event| event == "metadata-full"));

    // Deletions let it go on, and growing for good.
    let mut oldest = (0..snapshots).map(|number| format!("./p/s{number}"));
    while waits(&place.json(&["pool", "status", POOL])) {
        place.ok(&["volume", "delete", &oldest.next().expect("enough to delete")]);
    }
    let before = free(&place.json(&["pool", "status", POOL]));
    place.ok(&["pool", "grow", POOL, "--metadata-size", "8M"]);
    ends_well(&place, "v", fio);
    let status = place.json(&["pool", "status", POOL]);
    assert!(free(&status) > before && !waits(&status), "{status}");
    place.ok(&["volume", "snapshot", "./p/v", "after"]);
    eventually("it is told", || events(&place).iter().any(|event| event == "metadata-ok"));
    daemon.signal(rustix::process::Signal::TERM);
    oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

/// A client that left, or was killed, while its writes waited: they are gone with it, and so is its hold on the volume.
#[test]
fn the_writes_of_a_client_that_has_left_wait_no_longer() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "4M", "--when-full", "queue:0"]);
    for volume in ["./p/a", "./p/b"] {
        place.ok(&["volume", "create", volume, "--size", "16M"]);
    }
    let _daemon = place.serve(&[]);
    let mut a = place.connect("a");
    (0..64).for_each(|block| a.write(block * BLOCK, &[1; 65_536]).expect("there is space"));
    a.flush().expect("durable");
    // More of them than there are places for connections.
    for number in 0..80 {
        let waits_now = || wait_until(&place, waits);
        place.connect("b").write_and_leave(number * BLOCK, &[2; 512], number % 2 == 0, waits_now);
        wait_until(&place, |status| !waits(status));
    }
    let mut b = place.connect("b");
    a.trim(0, 65_536).expect("discards work");
    b.write(0, &[3; 512]).expect("there is space again");
    b.flush().expect("durable");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(b.read(0, 512).expect("read"), [3; 512], "what was acknowledged stays");
    drop(b);
    place.ok(&["volume", "delete", "./p/b"]);
}

fn wait_until(place: &Place, is_so: impl Fn(&Value) -> bool) {
    eventually("it comes to that", || is_so(&place.json(&["pool", "status", POOL])));
}
