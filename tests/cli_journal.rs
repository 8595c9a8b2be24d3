//! Pools with a journal, through the real binaries: nothing acknowledged is lost with the daemon, and nothing of the
//! journal is left once the pool is closed.

mod cli_common;

use cli_common::{Daemon, POOL, Place, eventually};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

const BLOCK: usize = 65_536;
const SIZE: usize = 32 * BLOCK;

/// Where everything that is ours is in the superblock: the features, and what they lead to.
fn our_bytes(place: &Place) -> Vec<u8> {
    fs::read(place.path("p/metadata")).expect("there")[360..512].to_vec()
}

/// `uthin-fsck` with these words about the pool's metadata: exit status, and all that it says.
fn fsck(place: &Place, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uthin-fsck"));
    let output = command.args(words).current_dir(place.path("p")).output().expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("not killed"), String::from_utf8_lossy(&said).into_owned())
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512 * 7 + at % 251 + seed * 31) as u8).collect()
}

fn state(place: &Place) -> String {
    let status = place.json(&["pool", "status", POOL]);
    status["journal"]["state"].as_str().expect("a word").to_owned()
}

/// What is on a volume.
#[derive(Clone)]
struct Content(Vec<u8>);

impl Content {
    fn write(&mut self, client: &mut cli_common::nbd::Client, at: usize, bytes: &[u8]) {
        client.write(at as u64, bytes).expect("written");
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn check(&self, place: &Place, volume: &str) {
        let read = place.connect(volume).read(0, self.0.len()).expect("read");
        let wrong = read.iter().zip(&self.0).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "{volume}: the first wrong byte");
    }
}

/// A served pool with a journal, a volume, and a snapshot of it.
fn pool(options: &[&str]) -> (Place, Daemon, Content, Content) {
    let place = Place::empty();
    place.ok(&[&["pool", "create", POOL, "--size", "64M"], options].concat());
    place.ok(&["volume", "create", "./p/v", "--size", &SIZE.to_string()]);
    let daemon = place.serve(&[]);
    let mut volume = Content(vec![0; SIZE]);
    volume.write(&mut place.connect("v"), 0, &pattern(1, 16 * BLOCK));
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let snapshot = volume.clone();
    (place, daemon, volume, snapshot)
}

/// Writes of all kinds, none of them flushed.
fn change(place: &Place, volume: &mut Content, round: usize) {
    let mut client = place.connect("v");
    for number in 0..12 {
        let at = (number * 5 + round * 3) % 28 * BLOCK + number * 4096;
        volume.write(&mut client, at, &pattern(100 * round + number, 4096));
    }
    volume.write(&mut client, (3 + round) * BLOCK - 512, &pattern(round, BLOCK + 1024));
}

#[test]
fn a_killed_daemon_loses_no_acknowledged_write() {
    for small_writes in ["copy", "partial"] {
        let (place, mut daemon, mut volume, snapshot) = pool(&["--small-writes", small_writes]);
        assert_eq!(state(&place), "on");
        for round in 0..6 {
            change(&place, &mut volume, round);
            daemon.kill();
            assert_ne!(our_bytes(&place)[3] & 0x40, 0, "the kernel must refuse it");
            let (code, said) = fsck(&place, &["check", "metadata"]);
            assert_eq!((code, said.contains("journal")), (0, true), "{said}");
            daemon = place.serve(if round % 3 == 2 { &["--journal", "none"] } else { &[] });
            volume.check(&place, "v");
            snapshot.check(&place, "s");
            if round % 3 == 2 {
                assert_eq!(state(&place), "none");
                place.ok(&["pool", "close", POOL]);
                assert_eq!(daemon.wait(), 0);
                assert_eq!(our_bytes(&place), vec![0; 152], "closed: plain dm-thin metadata");
                daemon = place.serve(&[]);
            }
        }
        place.ok(&["pool", "close", POOL]);
        assert_eq!(daemon.wait(), 0);
        assert_eq!(our_bytes(&place), vec![0; 152], "closed: plain dm-thin metadata");
        assert_eq!(fsck(&place, &["dump", "metadata"]).0, 0);
    }
}

#[test]
fn a_flush_is_no_transaction() {
    let (place, daemon, mut volume, _) = pool(&[]);
    let mut client = place.connect("v");
    // About once a second all is committed, and the journal is empty.
    eventually("a flush that leaves the superblock alone", || {
        let at = 20 * BLOCK;
        client.trim(at as u64, BLOCK).expect("trimmed");
        let before = fs::read(place.path("p/metadata")).expect("there")[..4096].to_vec();
        volume.write(&mut client, at, &pattern(7, 4096));
        client.flush().expect("flushed");
        let used = place.json(&["pool", "status", POOL])["journal"]["used_bytes"].as_u64().expect("a number");
        used > 0 && fs::read(place.path("p/metadata")).expect("there")[..4096] == before
    });
    volume.0[20 * BLOCK + 4096..21 * BLOCK].fill(0);
    daemon.kill();
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
}

#[test]
fn commands_bring_the_journal_in_and_onlookers_say_that_there_is_one() {
    let (place, daemon, mut volume, _) = pool(&[]);
    change(&place, &mut volume, 1);
    daemon.kill();
    assert!(place.notes().contains("its journal may hold changes"), "{}", place.notes());
    assert_eq!(state(&place), "pending");
    assert!(place.ok(&["pool", "status", POOL]).contains("not closed, and not served"));
    // It is not there, and another file is in its place: nobody can serve it so.
    let (journal, elsewhere) = (place.path("p/journal"), place.path("elsewhere"));
    fs::rename(&journal, &elsewhere).expect("moved");
    for says in ["is missing", "is not the one that holds its changes"] {
        let status = place.json(&["pool", "status", POOL]);
        assert_eq!((&status["journal"]["state"], &status["health"]), (&"missing".into(), &"critical".into()));
        assert!(place.notes().contains(says), "{}", place.notes());
        fs::write(&journal, vec![7; 1 << 20]).expect("written");
    }
    fs::rename(&elsewhere, &journal).expect("moved back");
    assert_eq!(state(&place), "pending");
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    assert!(place.ok(&["pool", "status", POOL]).contains("when served"));
    assert_eq!(our_bytes(&place), vec![0; 152]);
    assert!(!place.notes().contains("journal"));
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
}

#[test]
fn what_takes_the_metadata_for_all_refuses_and_says_what_to_do() {
    let (place, daemon, mut volume, _) = pool(&[]);
    change(&place, &mut volume, 1);
    daemon.kill();
    fs::File::create(place.path("p/repaired")).and_then(|file| file.set_len(4 << 20)).expect("made");
    for words in [
        &["dump", "metadata"][..],
        &["ls", "metadata"],
        &["delta", "--snap1", "0", "--snap2", "1", "metadata"],
        &["rmap", "--region", "0..1000", "metadata"],
        &["repair", "-i", "metadata", "-o", "repaired"],
        &["trim", "--metadata-dev", "metadata", "--data-dev", "data"],
    ] {
        let (code, said) = fsck(&place, words);
        assert!(
            code == 1 && said.contains("journal") && said.contains("uthin pool close"),
            "{words:?}: {code} {said}"
        );
    }
    let found = place.run(&["pool", "doctor", POOL]).stdout;
    assert!(found.contains("journal"), "{found}");
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
}

#[test]
fn a_journal_that_is_cut_off_or_is_another_file_is_refused() {
    let (place, daemon, mut volume, _) = pool(&[]);
    change(&place, &mut volume, 1);
    daemon.kill();
    let whole = fs::read(place.path("p/journal")).expect("read");
    for bytes in [0, 4096, 8192, whole.len() - 4096] {
        fs::write(place.path("p/journal"), &whole[..bytes]).expect("written");
        let refusal = place.run(&["serve", POOL]);
        assert!(refusal.code != 0 && refusal.stderr.contains("is not the journal"), "{bytes}: {refusal:?}");
        assert!(refusal.hint().contains("put the right file"), "{refusal:?}");
    }
    fs::write(place.path("p/journal"), &whole).expect("written");
    let daemon = place.serve(&[]);
    volume.check(&place, "v");
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);

    // A link that points to the wrong file.
    fs::write(place.path("p/journal"), "dear diary\n".repeat(100_000)).expect("written");
    let before = fs::read(place.path("p/journal")).expect("read");
    let refusal = place.run(&["serve", POOL]);
    assert!(refusal.code != 0 && refusal.stderr.contains("is no journal and is not empty"), "{refusal:?}");
    assert!(fs::read(place.path("p/journal")).expect("read") == before);
}

#[test]
fn a_journal_that_is_missing_or_another_s_is_an_error_with_a_way_out() {
    let (place, daemon, mut volume, snapshot) = pool(&[]);
    change(&place, &mut volume, 1);
    daemon.kill();
    fs::rename(place.path("p/journal"), place.path("mine")).expect("renamed");
    let refusal = place.run(&["serve", POOL]);
    assert!(refusal.code != 0 && refusal.stderr.contains("journal is missing"), "{refusal:?}");
    assert!(refusal.hint().contains("--forget-journal"), "{refusal:?}");
    fs::write(place.path("p/journal"), vec![0; 1 << 20]).expect("written");
    let refusal = place.run(&["serve", POOL]);
    assert!(refusal.code != 0 && refusal.stderr.contains("is not the journal"), "{refusal:?}");
    let told = place.run(&["pool", "doctor", POOL]);
    assert!(told.code != 0 && told.stdout.contains("is not the one that holds its changes"), "{told:?}");
    assert_ne!(place.run(&["volume", "create", "./p/w", "--size", "1M"]).code, 0);
    fs::rename(place.path("mine"), place.path("p/journal")).expect("renamed");
    let daemon = place.serve(&[]);
    volume.check(&place, "v");
    daemon.kill();

    fs::remove_file(place.path("p/journal")).expect("removed");
    let (code, said) = fsck(&place, &["check", "--forget-journal", "metadata"]);
    assert_eq!((code, said.contains("the journal is forgotten")), (0, true), "{said}");
    assert_eq!(our_bytes(&place), vec![0; 152]);
    let _daemon = place.serve(&[]);
    snapshot.check(&place, "s");
    assert!(place.path("p/journal").exists(), "another one is made");
}

#[test]
fn a_pool_can_be_given_a_journal_and_rid_of_it() {
    let place = Place::with_faithful_pool("64M");
    let daemon = place.serve(&[]);
    assert_eq!(state(&place), "none");
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    assert!(!place.path("p/journal").exists());
    let said = place.ok(&["pool", "set", POOL, "--journal", "file"]);
    assert!(said.contains("journal file"), "{said}");
    let daemon = place.serve(&[]);
    assert_eq!(state(&place), "on");
    let table = place.ok(&["pool", "status", POOL]);
    assert!(table.lines().any(|line| line.split_whitespace().eq(["journal", "on"])), "{table}");
    place.ok(&["pool", "set", POOL, "--journal", "none"]);
    assert_eq!(state(&place), "on", "until the pool is served anew");
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    let _daemon = place.serve(&[]);
    assert_eq!(state(&place), "none");
}

#[test]
fn a_pool_that_is_made_has_a_journal_and_an_adopted_one_none() {
    let place = Place::with_pool("64M");
    place.serve(&[]).signal(Signal::TERM);
    for (pool, options, expected) in [
        ("./q", &[][..], "none"),
        ("./r", &["--journal", "file"], "on"),
        ("./s", &["--journal", "./j"], "on"),
    ] {
        fs::File::create(place.path("j")).and_then(|file| file.set_len(1 << 20)).expect("made");
        let adopt = ["pool", "adopt", pool, "--metadata", "./p/metadata", "--data", "./p/data"];
        place.ok(&[&adopt[..], options].concat());
        let daemon = place.serve_by(&mut place.command(&["serve", pool]));
        assert_eq!(place.json(&["pool", "status", pool])["journal"]["state"], expected, "{options:?}");
        assert_eq!(daemon.signal(Signal::TERM), 0);
    }
    assert_eq!(fs::read_link(place.path("s/journal")).expect("a link"), place.path("j"));
}

#[test]
fn a_journal_on_a_device_is_linked_and_looked_at_first() {
    let place = Place::empty();
    let sparse = |name: &str, size_bytes| {
        fs::File::create(place.path(name)).and_then(|file| file.set_len(size_bytes)).expect("made");
    };
    let create = |journal, more: &[&str]| {
        [&["pool", "create", POOL, "--size", "64M", "--journal", journal], more].concat().join(" ")
    };
    let refused = |journal, more: &[&str], code, says| {
        let words = create(journal, more);
        let refusal = place.fails(&words.split(' ').collect::<Vec<_>>(), code, says);
        refusal.hint();
        assert!(!place.path("p").exists(), "{refusal:?}");
    };
    sparse("j", 1 << 20);
    sparse("m", 16 << 20);
    sparse("short", 4096);
    fs::write(place.path("full"), vec![7; 1 << 20]).expect("written");
    refused("maybe", &[], 2, "`maybe` is no place for a journal");
    refused("./none", &[], 5, "none");
    refused("./short", &[], 2, "too few for a journal");
    refused("./full", &[], 5, "holds something unknown");
    // As another pool's data, of which nothing is left where its first volume was.
    sparse("late", 4 << 20);
    fs::File::options()
        .write(true)
        .open(place.path("late"))
        .and_then(|file| file.write_all_at(&[7], 3 << 20))
        .expect("written");
    refused("./late", &[], 5, "it is not all zeros");
    refused("./m", &["--metadata", "./m"], 2, "both metadata and a journal");
    assert_eq!(fs::read(place.path("full")).expect("there"), vec![7; 1 << 20], "it was not touched");

    fs::create_dir(place.path("way")).expect("made");
    let words = ["pool", "create", "./way/../by", "--size", "64M", "--journal", "./way/../j"];
    place.ok(&words);
    assert_eq!(fs::read_link(place.path("by/journal")).expect("a link"), place.path("j"));
    fs::remove_file(place.path("j")).expect("removed");
    sparse("j", 1 << 20);

    place.ok(&["pool", "create", "./other", "--size", "64M"]);
    std::os::unix::fs::symlink("other/data", place.path("link")).expect("linked");
    for path in ["./other/data", "./link"] {
        refused(path, &[], 5, "belongs to the pool");
        refused(path, &["--force"], 5, "belongs to the pool");
        refused("file", &["--metadata", path], 5, "belongs to the pool");
    }
    // Its own data, and data that it has by a link.
    sparse("disk", 64 << 20);
    place.ok(&["pool", "create", "./linked", "--data", "./disk"]);
    for data in ["./other/data", "./linked/data"] {
        place.fails(&["pool", "create", POOL, "--data", data], 5, "belongs to the pool").hint();
    }

    place.ok(&create("./j", &["--metadata", "./m"]).split(' ').collect::<Vec<_>>());
    assert_eq!(fs::read_link(place.path("p/journal")).expect("a link"), place.path("j"));
    place.ok(&["volume", "create", "./p/v", "--size", &SIZE.to_string()]);
    let mut daemon = place.serve(&[]);
    let status = place.json(&["pool", "status", POOL]);
    let place_of = |part: &str| status["places"][part].as_str().map(PathBuf::from);
    assert_eq!(
        ["metadata", "data", "journal"].map(place_of),
        ["m", "p/data", "j"].map(|path| Some(place.path(path)))
    );
    let told = place.ok(&["pool", "status", POOL, "-H", "-o", "journal_path"]);
    assert_eq!(told.trim(), place.path("j").to_str().expect("UTF-8"));
    assert_eq!(
        (&status["journal"]["state"], status["journal"]["total_bytes"].as_u64() < Some(1 << 20)),
        (&"on".into(), true)
    );
    let mut volume = Content(vec![0; SIZE]);
    for round in 0..3 {
        volume.write(&mut place.connect("v"), (round * 5 + 1) * BLOCK, &pattern(round, 2 * BLOCK));
        daemon.kill();
        daemon = place.serve(&[]);
        volume.check(&place, "v");
    }
    for words in [
        &["pool", "set", POOL, "--journal", "./full"][..],
        &["serve", POOL, "--takeover", "--journal", "./full"],
    ] {
        let refusal = place.fails(words, 2, "only a pool that is being made");
        assert!(refusal.hint().contains("put a link"), "{refusal:?}");
    }
    daemon.kill();

    // Gone while it is needed, and gone when nobody needs it.
    fs::rename(place.path("j"), place.path("away")).expect("renamed");
    let refusal = place.fails(&["serve", POOL], 5, "which is not there");
    assert!(refusal.hint().contains("--forget-journal"), "{refusal:?}");
    fs::rename(place.path("away"), place.path("j")).expect("renamed");
    place.serve(&[]).signal(Signal::TERM);
    fs::rename(place.path("j"), place.path("away")).expect("renamed");
    let refusal = place.fails(&["serve", POOL], 5, "which is not there");
    assert!(refusal.hint().contains("remove the link"), "{refusal:?}");
    let told = place.run(&["pool", "doctor", POOL]);
    assert!(told.code != 0 && told.stdout.contains("which is not there"), "{told:?}");
    fs::remove_file(place.path("p/journal")).expect("removed");
    let daemon = place.serve(&[]);
    volume.check(&place, "v");
    assert!(place.path("p/journal").metadata().expect("there").is_file());
    assert_eq!(daemon.signal(Signal::TERM), 0);

    // Another pool's journal is not taken by accident.
    let other = ["pool", "create", "./q", "--size", "64M", "--journal", "./away"];
    assert!(place.fails(&other, 5, "holds the journal of a pool").hint().contains("--force"));
    place.ok(&[&other[..], &["--force"]].concat());
    assert_eq!(place.serve_by(&mut place.command(&["serve", "./q"])).signal(Signal::TERM), 0);
}

#[test]
fn a_device_whose_journal_somebody_needs_is_not_begun_again() {
    let place = Place::empty();
    fs::File::create(place.path("j")).and_then(|file| file.set_len(1 << 20)).expect("made");
    let serve = |pool: &str| place.serve_by(&mut place.command(&["serve", pool]));
    for pool in ["./p", "./q"] {
        place.ok(&["pool", "create", pool, "--size", "64M"]);
        place.ok(&["volume", "create", &format!("{pool}/v"), "--size", &SIZE.to_string()]);
        std::os::unix::fs::symlink(place.path("j"), place.path(pool).join("journal")).expect("linked");
    }
    let daemon = serve(POOL);
    let mut volume = Content(vec![0; SIZE]);
    volume.write(&mut place.connect("v"), BLOCK, &pattern(1, 2 * BLOCK));
    daemon.kill();
    let before = fs::read(place.path("j")).expect("read");
    let refusal = place.fails(&["serve", "./q"], 5, "holds the journal of a pool that was not closed");
    assert!(refusal.hint().contains("serve and close the pool"), "{refusal:?}");
    let create = ["pool", "create", "./r", "--size", "64M", "--journal", "./j"];
    place.fails(&create, 5, "holds the journal of a pool that was not closed").hint();
    assert!(fs::read(place.path("j")).expect("read") == before, "it was not touched");

    // Brought in by a command, it is needed no more, nor after an orderly end.
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    assert_eq!(serve("./q").signal(Signal::TERM), 0);
    let daemon = serve(POOL);
    volume.check(&place, "v");
    place.fails(&["serve", "./q"], 6, "in use").hint();
    assert_eq!(daemon.signal(Signal::TERM), 0);
    assert_eq!(serve("./q").signal(Signal::TERM), 0);
    place.fails(&create, 5, "holds the journal of a pool").hint();
}

#[test]
fn what_is_behind_the_link_is_looked_at_each_time() {
    let place = Place::empty();
    let make = |name: &str, at: u64, bytes: &[u8]| {
        let file = fs::File::create(place.path(name)).expect("made");
        file.set_len(1 << 20).and_then(|()| file.write_all_at(bytes, at)).expect("written");
    };
    make("j", 0, &[]);
    place.ok(&["pool", "create", POOL, "--size", "64M", "--journal", "./j"]);
    assert_eq!(place.serve(&[]).signal(Signal::TERM), 0);
    make("array", 4096, b"\xfc\x4e\x2b\xa9");
    make("data", 100 << 10, &[0x77]);
    make("damaged", 0, b"uthin journal\n\x1a\0 and then something");
    for (other, says) in [("array", "a member of an MD array"), ("damaged", "a journal that is damaged")] {
        fs::remove_file(place.path("p/journal")).expect("removed");
        std::os::unix::fs::symlink(place.path(other), place.path("p/journal")).expect("linked");
        let before = fs::read(place.path(other)).expect("read");
        place.fails(&["serve", POOL], 5, says).hint();
        assert!(fs::read(place.path(other)).expect("read") == before, "it was not touched");
    }
    for (other, says) in
        [("array", "MD array"), ("data", "not all zeros"), ("damaged", "the journal of a pool")]
    {
        let create = ["pool", "create", "./q", "--size", "64M", "--journal", &format!("./{other}")];
        assert!(place.fails(&create, 5, says).hint().contains("--force"));
        place.ok(&[&create[..], &["--force"]].concat());
        assert_eq!(place.serve_by(&mut place.command(&["serve", "./q"])).signal(Signal::TERM), 0);
        fs::remove_dir_all(place.path("q")).expect("removed");
    }
}

#[test]
fn metadata_that_are_older_than_the_journal_are_refused() {
    let (place, daemon, mut volume, _) = pool(&[]);
    change(&place, &mut volume, 1);
    fs::copy(place.path("p/metadata"), place.path("older")).expect("copied");
    for round in 2..5 {
        change(&place, &mut volume, round);
        place.ok(&["volume", "snapshot", "./p/v", &format!("s{round}")]);
        volume.write(&mut place.connect("v"), (round + 10) * BLOCK, &pattern(round, BLOCK));
    }
    daemon.kill();
    fs::rename(place.path("p/metadata"), place.path("newer")).expect("renamed");
    fs::copy(place.path("older"), place.path("p/metadata")).expect("copied");
    let refusal = place.fails(&["serve", POOL], 1, "has gone on from later metadata");
    assert!(refusal.hint().contains("an older copy"), "{refusal:?}");
    fs::rename(place.path("newer"), place.path("p/metadata")).expect("renamed");
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
}
