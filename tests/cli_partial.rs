//! Pools with partial blocks (`--small-writes partial`), through the real binaries: what they hold, who opens them, and that nothing
//! of it is left once they are settled.

mod cli_common;

use cli_common::{POOL, Place};
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;

const BLOCK: usize = 65_536;
const SIZE: usize = 16 * BLOCK;

/// Where everything that is ours is in the superblock: the features, and what they lead to.
fn our_bytes(place: &Place) -> Vec<u8> {
    fs::read(place.path("p/metadata")).expect("there")[360..512].to_vec()
}

fn partial_blocks(place: &Place) -> u64 {
    place.json(&["pool", "status", POOL])["partial_blocks"].as_u64().expect("a number")
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

/// What is on a volume.
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

/// A served pool whose volume has partial blocks on a snapshot's and on zeros.
fn pool_with_partial_blocks() -> (Place, cli_common::Daemon, Content, Content) {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "64M", "--small-writes", "partial", "--journal", "none"]);
    place.ok(&["volume", "create", "./p/v", "--size", &SIZE.to_string()]);
    let daemon = place.serve(&[]);
    let mut volume = Content(vec![0; SIZE]);
    let mut client = place.connect("v");
    volume.write(&mut client, 0, &pattern(1, 6 * BLOCK));
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let snapshot = Content(volume.0.clone());
    let used = place.used_bytes();
    assert_eq!(used, 6 * BLOCK as u64);
    // A unit, a part of one, across two units, across two blocks, and into fresh blocks.
    for (at, length) in [(0, 4096), (BLOCK + 512, 1024), (2 * BLOCK + 3584, 1024), (4 * BLOCK - 4096, 8192)] {
        volume.write(&mut client, at, &pattern(at, length));
    }
    volume.write(&mut client, 8 * BLOCK + 4096, &pattern(9, 4096));
    volume.write(&mut client, 9 * BLOCK, &pattern(10, BLOCK));
    client.flush().expect("flushed");
    assert_eq!(partial_blocks(&place), 6, "five on the snapshot's, one on zeros");
    volume.check(&place, "v");
    snapshot.check(&place, "s");
    (place, daemon, volume, snapshot)
}

#[test]
fn partial_blocks_survive_a_killed_daemon_and_are_settled_at_the_end() {
    let (place, daemon, mut volume, snapshot) = pool_with_partial_blocks();
    let table = place.ok(&["pool", "status", POOL]);
    assert!(table.lines().any(|line| line.split_whitespace().eq(["small", "writes", "partial"])), "{table}");
    place.ok(&["pool", "check", POOL, "--online"]);
    daemon.kill();
    assert_eq!(our_bytes(&place)[..4], [0, 0, 0, 0x20], "the kernel must refuse it");
    let (code, said) = fsck(&place, &["check", "metadata"]);
    assert_eq!((code, said.contains("6 partial blocks")), (0, true), "{said}");

    // In the other mode it goes on reading them, and makes no new ones.
    let daemon = place.serve(&["--small-writes", "copy"]);
    volume.check(&place, "v");
    snapshot.check(&place, "s");
    let mut client = place.connect("v");
    volume.write(&mut client, 5 * BLOCK + 8192, &pattern(77, 4096));
    volume.write(&mut client, 3 * 4096 + 100 * 512, &pattern(78, 512));
    client.flush().expect("flushed");
    assert!(partial_blocks(&place) <= 6);
    volume.check(&place, "v");
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    assert_eq!(our_bytes(&place), vec![0; 152], "settled, and closed");
    let (code, said) = fsck(&place, &["check", "metadata"]);
    assert_eq!((code, said.contains("partial")), (0, false), "{said}");
    assert_eq!(fsck(&place, &["dump", "metadata"]).0, 0);

    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
    snapshot.check(&place, "s");
}

#[test]
fn a_pool_is_settled_in_use_or_not() {
    let (place, daemon, volume, snapshot) = pool_with_partial_blocks();
    let settled = place.json(&["pool", "settle", POOL]);
    assert_eq!((&settled["before"], &settled["left"]), (&6.into(), &0.into()));
    assert_eq!(partial_blocks(&place), 0);
    volume.check(&place, "v");
    // It stays a pool with small writes.
    place.ok(&["volume", "snapshot", "./p/v", "t"]);
    let mut client = place.connect("v");
    let mut volume = volume;
    volume.write(&mut client, 0, &pattern(5, 4096));
    client.flush().expect("flushed");
    assert_eq!(partial_blocks(&place), 1);
    daemon.kill();

    let said = place.ok(&["pool", "status", POOL, "-H", "-o", "small_writes,partial_blocks"]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["partial", "1"]);
    assert_eq!(place.ok(&["pool", "settle", POOL]), "1 partial blocks made whole, 0 left\n");
    assert_eq!(our_bytes(&place), vec![0; 152]);
    assert_eq!(place.ok(&["pool", "settle", POOL]), "0 partial blocks made whole, 0 left\n");
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
    snapshot.check(&place, "s");
}

#[test]
fn what_takes_mappings_for_whole_blocks_refuses_and_says_what_to_do() {
    let (place, daemon, ..) = pool_with_partial_blocks();
    daemon.kill();
    for file in ["p/repaired", "p/shrunk"] {
        fs::File::create(place.path(file)).and_then(|file| file.set_len(4 << 20)).expect("made");
    }
    // One that carries the wrong number is believed by `repair`.
    fs::copy(place.path("p/metadata"), place.path("p/numbered")).expect("copied");
    assert_eq!(fsck(&place, &["damage", "numbered", "--block", "0", "--fault", "number"]).0, 0);
    for words in [
        &["dump", "metadata"][..],
        &["ls", "metadata"],
        &["delta", "--snap1", "0", "--snap2", "1", "metadata"],
        &["rmap", "--region", "0..1000", "metadata"],
        &["repair", "-i", "metadata", "-o", "repaired"],
        &["repair", "-i", "numbered", "-o", "repaired"],
        &["shrink", "--binary", "-i", "metadata", "-o", "shrunk", "--data", "data", "--nr-blocks", "1000"],
    ] {
        let (code, said) = fsck(&place, words);
        assert!(
            code == 1 && said.contains("partial blocks") && said.contains("uthin pool settle"),
            "{words:?}: {said}"
        );
    }
    assert_eq!(place.ok(&["pool", "settle", POOL]), "6 partial blocks made whole, 0 left\n");
    assert_eq!(fsck(&place, &["dump", "metadata"]).0, 0);
}

#[test]
fn what_is_not_settled_in_time_is_left_for_the_next() {
    let (place, daemon, volume, _) = pool_with_partial_blocks();
    daemon.kill();
    let daemon = place.serve(&["--settle-seconds", "0"]);
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(partial_blocks(&place), 6, "they are no reason not to close");
    place.fails(&["pool", "settle", POOL, "--seconds", "0"], 6, "6 partial blocks are left");
    let _daemon = place.serve(&[]);
    volume.check(&place, "v");
}

/// The origin ends inside a unit of block 5. What is not written of a block shows it, zeros after its end, whether the block is
/// partial, settled, shared, or brought in from a journal; and where it is missing, nothing becomes whole, and nothing is lost.
#[test]
fn blocks_on_an_external_origin_are_partial_ones_too() {
    let place = Place::empty();
    let origin: Vec<u8> = pattern(3, 5 * BLOCK + 4096 + 1024).into_iter().map(|byte| byte | 1).collect();
    fs::write(place.path("base"), &origin).expect("written");
    place.ok(&["pool", "create", POOL, "--size", "64M", "--small-writes", "partial", "--journal", "file"]);
    place.ok(&["volume", "create", "./p/v", "--origin", "base", "--size", &SIZE.to_string()]);
    let mut volume = Content(origin.iter().copied().chain(std::iter::repeat(0)).take(SIZE).collect());
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    // A part of a unit, across blocks, across the origin's end, past it in the same block, and where there is no origin.
    for (at, length) in [
        (512, 1024),
        (3 * BLOCK - 512, 1024),
        (5 * BLOCK + 4096 + 512, 1024),
        (5 * BLOCK + 40_960 + 512, 512),
        (9 * BLOCK + 512, 512),
    ] {
        volume.write(&mut client, at, &pattern(at, length));
        volume.check(&place, "v");
    }
    assert_eq!((partial_blocks(&place), place.used_bytes()), (5, 5 * BLOCK as u64));
    daemon.kill();
    let daemon = place.serve(&[]);
    volume.check(&place, "v");

    // A snapshot has the same origin, and the block that they share.
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let snapshot = Content(volume.0.clone());
    let mut client = place.connect("v");
    for at in [8192, 5 * BLOCK + 8192 + 512, 4 * BLOCK + 12_288] {
        volume.write(&mut client, at, &pattern(at + 7, 1024));
    }
    for (name, content) in [("v", &volume), ("s", &snapshot)] {
        content.check(&place, name);
    }
    daemon.kill();

    // Without the origin only what is on zeros can be settled, by a command and by a daemon; the journal is brought in all the same.
    fs::rename(place.path("base"), place.path("elsewhere")).expect("renamed");
    let said = place.fails(&["pool", "settle", POOL], 5, "partial blocks are left of").stderr;
    assert!(said.contains("external origin") && said.contains("base: No such file"), "{said}");
    let left = partial_blocks(&place);
    assert!(left > 0);
    let (code, said) = fsck(&place, &["check", "metadata"]);
    assert_eq!((code, said.contains(&format!("{left} partial blocks"))), (0, true), "{said}");
    let daemon = place.serve(&[]);
    let begun = std::time::Instant::now();
    place.fails(&["pool", "settle", POOL], 5, &format!("{left} partial blocks are left of {left}: volume"));
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0, "the pool is closed all the same");
    assert!(begun.elapsed().as_secs() < 30, "nobody waits for what does not come");
    assert_eq!(partial_blocks(&place), left);

    // In another place it will do.
    place.ok(&["volume", "set", "./p/v", "--origin", "elsewhere"]);
    let said = place.ok(&["pool", "settle", POOL]);
    assert_eq!(said, format!("{left} partial blocks made whole, 0 left\n"));
    assert_eq!(our_bytes(&place), vec![0; 152]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    volume.write(&mut client, BLOCK + 512, &pattern(55, 1024));
    for (name, content) in [("v", &volume), ("s", &snapshot)] {
        content.check(&place, name);
    }
    daemon.kill();

    // And when it is back, under a daemon that did not find it.
    fs::rename(place.path("elsewhere"), place.path("gone")).expect("renamed");
    let daemon = place.serve(&[]);
    place.fails(&["pool", "settle", POOL], 5, "1 partial blocks are left of 1");
    fs::rename(place.path("gone"), place.path("elsewhere")).expect("renamed");
    assert_eq!(place.ok(&["pool", "settle", POOL]), "1 partial blocks made whole, 0 left\n");
    for (name, content) in [("v", &volume), ("s", &snapshot)] {
        content.check(&place, name);
    }
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    assert_eq!(our_bytes(&place), vec![0; 152]);
}

/// The catalog that knew the origin is lost. Its blocks still say that they show one, and the volume gets it back by name.
#[test]
fn an_origin_that_the_catalog_has_lost_can_be_said_again() {
    let place = Place::empty();
    let origin: Vec<u8> = pattern(5, SIZE).into_iter().map(|byte| byte | 1).collect();
    fs::write(place.path("base"), &origin).expect("written");
    place.ok(&["pool", "create", POOL, "--size", "64M", "--small-writes", "partial"]);
    place.ok(&["volume", "create", "./p/v", "--origin", "base"]);
    place.ok(&["volume", "create", "./p/other", "--size", "64K"]);
    let mut volume = Content(origin);
    let daemon = place.serve(&["--settle-seconds", "0"]);
    let mut client = place.connect("v");
    volume.write(&mut client, 512, &pattern(1, 1024));
    volume.write(&mut client, SIZE - BLOCK, &pattern(2, BLOCK));
    client.flush().expect("flushed");
    drop(client);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    fs::remove_file(place.path("p/catalog.json")).expect("removed");

    let said =
        place.fails(&["pool", "settle", POOL], 5, "1 partial blocks are left of 1: volume `0` stands on");
    assert!(said.hint().contains("uthin volume set POOL/0 --origin FILE"), "{}", said.hint());
    // Only where blocks show one already.
    place.fails(&["volume", "set", "./p/1", "--origin", "base"], 5, "was made without an external origin");
    for is_served in [false, true] {
        let daemon = is_served.then(|| place.serve(&["--settle-seconds", "0"]));
        place.fails(&["pool", "settle", POOL], 5, "the catalog has lost which it is");
        drop(daemon);
    }
    place.ok(&["volume", "set", "./p/0", "--origin", "base"]);
    let daemon = place.serve(&["--settle-seconds", "0"]);
    volume.check(&place, "0");
    assert_eq!(place.ok(&["pool", "settle", POOL]), "1 partial blocks made whole, 0 left\n");
    volume.check(&place, "0");
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    assert_eq!(our_bytes(&place), vec![0; 152]);
}

/// Of two volumes whose origins are gone the one is named that has the blocks; and those that nobody maps any more go with the
/// metadata snapshot that has them.
#[test]
fn what_keeps_blocks_from_being_settled_is_said_of_the_right_volume() {
    let place = Place::empty();
    for name in ["one", "two"] {
        fs::write(place.path(name), vec![7; SIZE]).expect("written");
    }
    place.ok(&["pool", "create", POOL, "--size", "64M", "--small-writes", "partial"]);
    place.ok(&["volume", "create", "./p/a", "--origin", "one"]);
    place.ok(&["volume", "create", "./p/b", "--origin", "two"]);
    let daemon = place.serve(&["--settle-seconds", "0"]);
    let mut client = place.connect("b");
    client.write(512, &[1; 1024]).expect("written");
    client.flush().expect("flushed");
    drop(client);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    for name in ["one", "two"] {
        fs::remove_file(place.path(name)).expect("removed");
    }
    let said = place.fails(&["pool", "settle", POOL], 5, "1 partial blocks are left of 1: volume `b`");
    assert!(said.hint().contains("uthin volume set POOL/b --origin FILE"), "{}", said.hint());
    place.ok(&["pool", "metadata-snapshot", POOL]);
    place.ok(&["volume", "delete", "./p/b"]);
    let said = place.fails(&["pool", "settle", POOL], 5, "only a metadata snapshot");
    assert!(said.hint().contains("--release"), "{}", said.hint());
    place.ok(&["pool", "metadata-snapshot", POOL, "--release"]);
    assert_eq!(partial_blocks(&place), 0);
    assert_eq!(our_bytes(&place), vec![0; 152]);
}

/// As if the write of a leaf had gone astray: the one before it is there, sound.
#[test]
fn a_pool_with_older_partial_blocks_is_refused_until_somebody_accepts_them() {
    let (place, daemon, _, _) = pool_with_partial_blocks();
    daemon.kill();
    let path = place.path("p/metadata");
    let mut bytes = fs::read(&path).expect("there");
    // The sum itself, which is the same for who compares.
    bytes[396] ^= 1;
    let sum = crc32c::crc32c(&bytes[4..4096]);
    let sealed = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
    let before = {
        let mut bytes = bytes.clone();
        bytes[396] ^= 1;
        crc32c::crc32c(&bytes[4..4096])
    };
    bytes[..4].copy_from_slice(&(sum ^ before ^ sealed).to_le_bytes());
    fs::write(&path, &bytes).expect("written");

    let said = place.fails(&["volume", "list", POOL], 1, "not those of the last commit");
    assert!(said.hint().contains("--accept-partial-blocks"), "{}", said.hint());
    let (code, said) = fsck(&place, &["check", "metadata"]);
    assert_eq!((code, said.contains("not those of the last commit")), (4, true), "{said}");
    assert!(said.contains("--accept-partial-blocks"), "{said}");
    let (code, said) = fsck(&place, &["check", "--auto-repair", "metadata"]);
    assert_eq!((code, fs::read(&path).expect("there") == bytes), (4, true), "{said}");
    fs::File::create(place.path("p/saved")).and_then(|file| file.set_len(bytes.len() as u64)).expect("made");
    let repair = ["repair", "-i", "metadata", "-o", "saved"];
    let (code, said) = fsck(&place, &repair);
    assert_eq!((code, said.contains("repair --partial-as-whole")), (1, true), "{said}");
    let (code, said) = fsck(&place, &[&repair[..], &["--partial-as-whole"]].concat());
    assert_eq!((code, said.contains("assumed: partial blocks are whole ones")), (0, true), "{said}");
    let (code, said) = fsck(&place, &["check", "saved"]);
    assert_eq!((code, said.contains("partial")), (0, false), "{said}");

    let (code, said) = fsck(&place, &["check", "--accept-partial-blocks", "metadata"]);
    assert_eq!(
        (code, said.contains("mended: the partial blocks are those that were found")),
        (0, true),
        "{said}"
    );
    place.ok(&["pool", "settle", POOL]);
    assert_eq!(our_bytes(&place), vec![0; 152]);
}

#[test]
fn clients_are_served_while_a_daemon_that_ends_settles() {
    const BLOCKS: u64 = 3000;
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "256M", "--small-writes", "partial"]);
    place.ok(&["volume", "create", "./p/v", "--size", "256M"]);
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    for block in 0..BLOCKS {
        client.write(block * BLOCK as u64, &pattern(block as usize, 4096)).expect("written");
    }
    let is_served = || {
        let mut magic = [0; 8];
        let greeted =
            UnixStream::connect(place.path("p/nbd.sock")).and_then(|mut one| one.read_exact(&mut magic));
        greeted.is_ok() && magic == *b"NBDMAGIC"
    };
    let mut was_served = false;
    std::thread::scope(|scope| {
        let ended = scope.spawn(move || daemon.signal(rustix::process::Signal::TERM));
        while !ended.is_finished() {
            let told = place.run(&["pool", "status", POOL, "-H", "-o", "partial_blocks"]);
            // At leisure it would take many seconds to settle half of them.
            let most_are_settled =
                told.stdout.trim().parse().is_ok_and(|left: u64| left > 0 && left < BLOCKS / 2);
            was_served |= most_are_settled && is_served();
        }
        assert_eq!(ended.join().expect("joined"), 0);
    });
    assert!(was_served, "while most blocks were settled already");
    assert_eq!(our_bytes(&place), vec![0; 152]);
}
