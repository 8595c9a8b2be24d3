//! The limits of docs/nbd.md, measured at a daemon: what clients that ask for much and read nothing make it hold.

mod cli_common;

use cli_common::Place;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What a connection takes beside its requests, and what the allocator and the keeper keep: generous, and far less than what is
/// refused here.
const SLACK_BYTES: u64 = 48 * MIB;

/// Resident memory of a process in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has some");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// In transmission, structured or extended.
fn connect(place: &Place, is_extended: bool) -> UnixStream {
    let mut stream = UnixStream::connect(place.path("p/nbd.sock")).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let option = |number: u32, data: &[u8]| {
        [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let hello = [
        &3_u32.to_be_bytes()[..],
        &option(if is_extended { 11 } else { 8 }, &[]),
        &option(7, b"\0\0\0\x01v\0\0"),
    ];
    stream.write_all(&hello.concat()).expect("it listens");
    // Greeting, one reply, and three to GO: export, block sizes, done.
    let mut answer = [0; 18 + 20 + 20 + 12 + 20 + 14 + 20];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(answer[answer.len() - 8..], [0, 0, 0, 1, 0, 0, 0, 0], "GO is acknowledged");
    stream
}

fn request(is_extended: bool, command: u16, offset: u64, length: u64) -> Vec<u8> {
    let magic = if is_extended { 0x21e4_1c71_u32 } else { 0x2560_9513 };
    let flags = if is_extended && command == 1 { 1_u16 << 5 } else { 0 };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend([7; 8]);
    bytes.extend(offset.to_be_bytes());
    match is_extended {
        true => bytes.extend(length.to_be_bytes()),
        false => bytes.extend((length as u32).to_be_bytes()),
    }
    bytes
}

/// The most that the daemon holds while `clients` each ask for `asked_mib` MiB and read nothing.
fn most_held(clients: usize, asked_mib: u64) -> u64 {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let daemon = place.serve(&[]);
    let before = resident_bytes(daemon.pid());
    let streams: Vec<UnixStream> = (0..clients)
        .map(|number| {
            let is_extended = number % 2 == 0;
            let mut stream = connect(&place, is_extended);
            let reads: Vec<u8> =
                (0..asked_mib).flat_map(|at| request(is_extended, 0, at % 1000 * MIB, MIB)).collect();
            stream.write_all(&reads).expect("requests fit the socket");
            stream
        })
        .collect();
    // Until it holds no more for a while.
    let (mut most, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(1500) {
        let held = resident_bytes(daemon.pid()).saturating_sub(before);
        if held > most {
            (most, since) = (held, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It serves others meanwhile.
    let mut other = connect(&place, true);
    other.write_all(&request(true, 0, 0, 512)).expect("it listens");
    let mut reply = [0; 40 + 512];
    other.read_exact(&mut reply).expect("it answers");
    drop(streams);
    drop(other);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
    most
}

#[test]
fn a_connection_holds_what_the_page_says() {
    let most = most_held(1, 256);
    assert!(most <= 64 * MIB + SLACK_BYTES, "{} MiB", most / MIB);
    assert!(most >= 32 * MIB, "{} MiB: it was not asked for much", most / MIB);
}

#[test]
fn all_connections_together_hold_what_the_page_says() {
    let most = most_held(16, 256);
    assert!(most <= (512 + 16 * 8) * MIB + SLACK_BYTES, "{} MiB", most / MIB);
    assert!(most >= 256 * MIB, "{} MiB: they were not asked for much", most / MIB);
}

#[test]
fn long_lists_of_extents_do_not_add_up() {
    let place = Place::with_pool("1G");
    // As many blocks as a list can describe, and many lists.
    place.ok(&["volume", "create", "./p/v", "--size", "64T"]);
    let daemon = place.serve(&[]);
    let mut stream = UnixStream::connect(place.path("p/nbd.sock")).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let option = |number: u32, data: &[u8]| {
        [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let query = b"\0\0\0\x01v\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0duthin:mapping";
    let hello =
        [&3_u32.to_be_bytes()[..], &option(11, &[]), &option(10, query), &option(7, b"\0\0\0\x01v\0\0")];
    stream.write_all(&hello.concat()).expect("it listens");
    let mut answer = [0; 18 + 20 + (20 + 19) + (20 + 17) + 20 + 20 + 12 + 20 + 14 + 20];
    stream.read_exact(&mut answer).expect("it answers");
    let before = resident_bytes(daemon.pid());
    let count = 64;
    for _ in 0..count {
        stream.write_all(&request(true, 7, 0, 64 << 40)).expect("it listens");
    }
    for _ in 0..2 * count {
        let mut head = [0; 32 + 8 + 16];
        stream.read_exact(&mut head).expect("it answers");
        assert_eq!(head[..4], [0x6e, 0x8a, 0x27, 0x8c]);
        assert_eq!(head[6..8], [0, 6], "64-bit extents");
        assert_eq!(head[24..32], [0, 0, 0, 0, 0, 0, 0, 24], "one extent");
        // As far as one request looks: 2^20 blocks of 64 KiB.
        assert_eq!(head[40..48], (64_u64 << 30).to_be_bytes());
        assert_eq!(head[48..56], [0, 0, 0, 0, 0, 0, 0, 3]);
    }
    let held = resident_bytes(daemon.pid()).saturating_sub(before);
    assert!(held <= 64 * MIB + SLACK_BYTES, "{} MiB", held / MIB);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
}
