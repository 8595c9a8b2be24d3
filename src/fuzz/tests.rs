//! A bounded run of every target: seeds that are sound, mutated, the same ones every time.

use super::memory::most_bytes_in;
use super::{TARGETS, Target};
use crate::format::Block;
use crate::format::golden_tests::fixture;
use crate::frontend::nbd::fuzz::tests::{any_handshake, any_transmission};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Inputs of a target when no number is asked for, and the time after which there are enough.
const INPUTS: u64 = 2000;
const ENOUGH: Duration = Duration::from_secs(8);
/// Nothing that comes in may keep us busy for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Method, resource, body.
const REQUESTS: [(&str, &str, &str); 13] = [
    ("GET", "/v1/pool", ""),
    ("GET", "/v1/volumes", ""),
    ("GET", "/v1/exports", ""),
    ("POST", "/v1/volumes", r#"{"name": "v2", "size_bytes": 1073741824}"#),
    ("POST", "/v1/volumes/v/snapshot", r#"{"name": "s", "read_only": true}"#),
    ("POST", "/v1/snapshots", r#"{"snapshots": [{"origin": "v", "name": "s"}]}"#),
    ("PATCH", "/v1/volumes/v", r#"{"labels": {"key": "x", "other": null}}"#),
    ("POST", "/v1/volumes/v/resize", r#"{"size_bytes": 99999999999999}"#),
    ("POST", "/v1/pool/grow", r#"{"data_bytes": 1048576}"#),
    ("POST", "/v1/pool/message", r#"{"message": "create_snap 1 0"}"#),
    ("GET", "/v1/events?after=0&wait=0", ""),
    ("PATCH", "/v1/pool", r#"{"discard": "ignore", "when_full": {"queue": 5}, "low_water": {"percent": 1}}"#),
    ("DELETE", "/v1/volumes/%76", ""),
];

/// As it goes over the socket.
fn request((method, resource, body): (&str, &str, &str)) -> Vec<u8> {
    let length = body.len();
    format!("{method} {resource} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

const CATALOGS: [&[u8]; 3] = [
    br#"{"schema": 1, "transaction_id": 5, "next_volume_id": 4, "volumes": [{"name": "v", "id": 0, "size_bytes": 512, "created_in_transaction": 0}]}"#,
    br#"{"schema": 1, "transaction_id": 5, "next_volume_id": 4, "volumes": [{"name": "v", "id": 3, "size_bytes": 1048576, "created_unix_seconds": 1795295580, "created_in_transaction": 1, "origin": 2, "labels": {"a": "b"}, "read_only": true}], "deleting": [1, 2]}"#,
    br#"{"schema": 1, "transaction_id": 5, "next_volume_id": 4, "volumes": [{"name": "v", "id": 0, "size_bytes": 512, "created_in_transaction": 0}], "pending": {"transaction_id": 6, "operation": {"delete": "v"}}, "options": {"low_water": {"percent": 10}}}"#,
];

fn noise(random: &mut SmallRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

/// Something sound, or nearly so.
fn seed(target: &Target, random: &mut SmallRng) -> Vec<u8> {
    match target.name {
        "format" => {
            static BLOCKS: LazyLock<Vec<Block>> = LazyLock::new(|| {
                let blocks = ["04-snap-diverged", "09-held-root"].map(fixture).concat();
                blocks.into_iter().filter(|block| block.kind().is_some()).collect()
            });
            BLOCKS[random.random_range(0..BLOCKS.len())].0.to_vec()
        }
        "metadata" | "check" => {
            let length = 8 * [0, 1, 1, 2, 6][random.random_range(0..5)];
            noise(random, length)
        }
        "nbd_handshake" => [noise(random, 2), any_handshake(random)].concat(),
        "nbd_transmission" => [noise(random, 8), any_transmission(random)].concat(),
        "control" => request(REQUESTS[random.random_range(0..REQUESTS.len())]),
        "catalog" => CATALOGS[random.random_range(0..CATALOGS.len())].to_vec(),
        other => panic!("what is sound for {other}?"),
    }
}

/// Changes bytes, numbers in text, or the length; or puts a part in another place.
fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..8) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\r'][random.random_range(0..8)],
        3 => {
            let part = bytes[at..bytes.len().min(at + 40)].to_vec();
            bytes.splice(at..at, part);
        }
        4 => {
            let end = bytes.len().min(at + random.random_range(1..30));
            bytes.drain(at..end);
        }
        5 => {
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                let numbers: [&[u8]; 5] = [b"18446744073709551615", b"-1", b"1e9", b"4294967296", b"00"];
                bytes.splice(at + digit..=at + digit, numbers[random.random_range(0..5)].iter().copied());
            }
        }
        6 => {
            let nests = b"[".repeat(random.random_range(1..300));
            bytes.splice(at..at, nests);
        }
        _ => (0..random.random_range(1..8)).for_each(|step| {
            if let Some(byte) = bytes.get_mut(at + step) {
                *byte = random.random();
            }
        }),
    }
}

fn bounded_run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is such a target");
    let asked = std::env::var("UTHIN_FUZZ").ok().and_then(|count| count.parse::<u64>().ok());
    (target.run)(&[]); // what is made once is not an input's
    let (begin, mut most) = (Instant::now(), 0);
    for number in 0..asked.unwrap_or(INPUTS) {
        if asked.is_none() && begin.elapsed() > ENOUGH {
            break;
        }
        let random = &mut SmallRng::seed_from_u64(number);
        let mut input = seed(target, random);
        (0..random.random_range(0..4)).for_each(|_| mutate(random, &mut input));
        let began = Instant::now();
        let run = || (target.run)(&input);
        let mut bytes = 0;
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bytes = most_bytes_in(run)));
        assert!(
            played.is_ok(),
            "{name}: input {number}, {} bytes: {:?}",
            input.len(),
            String::from_utf8_lossy(&input)
        );
        let limit = (target.memory_bytes_limit)(input.len());
        assert!(
            bytes <= limit,
            "{name}: input {number} of {} bytes took {bytes}, at most {limit}",
            input.len()
        );
        assert!(began.elapsed() < PATIENCE, "{name}: input {number} took {:?}", began.elapsed());
        most = most.max(bytes);
    }
    eprintln!("{name}: at most {most} bytes, {:?}", begin.elapsed());
}

#[test]
fn any_block_is_decoded_or_refused() {
    bounded_run("format");
}

#[test]
fn any_damaged_pool_is_walked_or_refused() {
    bounded_run("metadata");
}

#[test]
fn any_damaged_pool_is_checked() {
    bounded_run("check");
}

#[test]
fn any_handshake_comes_to_an_end() {
    bounded_run("nbd_handshake");
}

#[test]
fn any_transmission_comes_to_an_end() {
    bounded_run("nbd_transmission");
}

#[test]
fn any_client_of_the_control_socket_is_answered_or_hung_up_on() {
    bounded_run("control");
}

#[test]
fn any_catalog_is_taken_or_refused() {
    bounded_run("catalog");
}

/// What mutations begin with gets past the first hurdle.
#[test]
fn what_is_sound_is_taken() {
    for bytes in CATALOGS {
        crate::control::catalog::Catalog::parse(bytes, std::path::Path::new("catalog.json"))
            .expect("it is sound");
    }
    for words in REQUESTS {
        // The second one ends the connection, so that nobody has to be patient.
        let both =
            [&request(words)[..], b"GET /v1/end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat();
        let answer = super::control::answer_to(&both, Duration::from_secs(5));
        let answer = String::from_utf8_lossy(&answer);
        let is_taken = answer.starts_with("HTTP/1.1 ") && !answer.contains("HTTP/1.1 400");
        assert!(is_taken, "{words:?}: {answer}");
    }
}

/// `fuzz/` has a program for each target.
#[test]
fn every_target_is_one_of_cargo_fuzz() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let Ok(entries) = std::fs::read_dir(folder) else { panic!("{folder} is not there") };
    let mut files: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    let mut names: Vec<_> = TARGETS.iter().map(|target| format!("{}.rs", target.name)).collect();
    files.sort();
    names.sort();
    assert_eq!(files, names);
}
