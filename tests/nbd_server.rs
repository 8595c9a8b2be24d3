//! The NBD server over a real pool and real sockets, against clients that behave badly and one that does not.

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "nbd/harness.rs"]
mod harness;

use harness::{Client, LANES, MIB, PANICS, Served, greet, option, replies};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uthin::frontend::nbd::{Address, Limits, Patience};
use uthin::units::BlockSize;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

fn served() -> Served {
    let mut served = Served::new(64 * MIB);
    served.volume("v1", 32 * MIB);
    served
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect()
}

/// Waits until something holds; fails after ten seconds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_written_is_read_by_everybody() {
    let served = served();
    for structured in [false, true] {
        let mut first = served.connect("v1", structured);
        let mut second = served.connect("", !structured);
        assert_eq!((first.size_bytes, second.size_bytes), (32 * MIB, 32 * MIB));
        for length in [512, 4096, 65_536, 65_536 + 512, 8 << 20] {
            let payload = pattern(length, length as u8 ^ u8::from(structured));
            assert_eq!(first.write(3 * 512, &payload), 0);
            assert!(second.read(3 * 512, length as u32).expect("it is there") == payload);
            assert_eq!(second.read(3 * 512 + length as u64, 512), first.read(3 * 512 + length as u64, 512));
        }
        assert_eq!(first.read(32 * MIB - 512, 512), Ok(vec![0; 512]));
    }
    served.close();
}

#[test]
fn many_requests_at_once_each_get_their_reply() {
    let served = served();
    let mut client = served.connect("v1", true);
    let mut bytes = Vec::new();
    for cookie in 0..1000_u64 {
        let payload = pattern(4096, cookie as u8);
        bytes.extend(Client::request_bytes(WRITE, 0, cookie, cookie * 4096, 4096));
        bytes.extend(payload);
    }
    let mut writer = client.stream.try_clone().expect("a socket");
    let sender = std::thread::spawn(move || writer.write_all(&bytes).expect("the server listens"));
    let mut cookies: Vec<u64> =
        (0..1000).map(|_| client.reply(0)).map(|reply| (reply.cookie, reply.error).0).collect();
    sender.join().expect("it has sent all");
    cookies.sort_unstable();
    assert_eq!(cookies, (0..1000).collect::<Vec<_>>());
    for cookie in [0, 1, 500, 999] {
        assert!(client.read(cookie * 4096, 4096).expect("it is there") == pattern(4096, cookie as u8));
    }
    served.close();
}

#[test]
fn equal_cookies_in_flight_are_the_clients_business() {
    let served = served();
    let mut client = served.connect("v1", true);
    let request = Client::request_bytes(READ, 0, 7, 0, 512);
    client.stream.write_all(&request.repeat(50)).expect("the server listens");
    assert!((0..50).all(|_| client.reply(0).cookie == 7));
    served.close();
}

#[test]
fn zeroes_trims_and_status_agree() {
    let served = served();
    let mut client = served.connect("v1", true);
    let status = |client: &mut Client| {
        client.send(BLOCK_STATUS, 0, 9, 0, 1 << 20);
        let words: Vec<u32> = client
            .reply(0)
            .data
            .chunks(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("4")))
            .collect();
        words[1..].chunks(2).map(|extent| (extent[0] >> 16, extent[1])).collect::<Vec<_>>()
    };
    assert_eq!(status(&mut client), [(16, 3)]);
    assert_eq!(client.write(65_536, &pattern(4 * 65_536, 1)), 0);
    assert_eq!(status(&mut client), [(1, 3), (4, 0), (11, 3)]);
    for (command, flags) in [(TRIM, FUA), (WRITE_ZEROES, FUA | NO_HOLE), (WRITE_ZEROES, 0), (FLUSH, 0)] {
        let range = match command {
            FLUSH => (0, 0),
            TRIM => (65_536, 65_536),
            _ if flags & NO_HOLE != 0 => (8 * 65_536, 65_536),
            _ => (3 * 65_536 - 512, 65_536 + 1024),
        };
        client.send(command, flags, 3, range.0, range.1);
        assert_eq!(client.reply(0).error, 0);
    }
    assert_eq!(status(&mut client), [(2, 3), (1, 0), (1, 3), (1, 0), (3, 3), (1, 0), (7, 3)]);
    let written = pattern(4 * 65_536, 1);
    assert!(client.read(65_536, 65_536).expect("readable") == vec![0; 65_536]);
    let expected = [&written[65_536..2 * 65_536 - 512], &[0; 512]].concat();
    assert!(client.read(2 * 65_536, 65_536).expect("readable") == expected);
    served.close();
}

#[test]
fn bad_requests_get_errors_and_others_go_on() {
    let mut served = served();
    served.snapshot("v1", "s1");
    let mut good = served.connect("v1", true);
    assert_eq!(good.write(0, &pattern(4096, 1)), 0);
    for structured in [false, true] {
        let mut client = served.connect("v1", structured);
        let size = client.size_bytes;
        let mut error = |command, flags, offset, length: u32| {
            client.send(command, flags, 5, offset, length);
            if command == WRITE {
                client.stream.write_all(&vec![1; length as usize]).expect("the server listens");
            }
            client.reply(0).error
        };
        assert_eq!(error(READ, 0, size, 512), 22);
        assert_eq!(error(WRITE, 0, size, 512), 28);
        assert_eq!(error(WRITE, 0, u64::MAX - 511, 512), 28);
        assert_eq!(error(WRITE_ZEROES, 0, size - 512, 1024), 28);
        assert_eq!(error(TRIM, 0, size - 512, 1024), 22);
        assert_eq!(error(READ, 0, 1, 512), 22);
        assert_eq!(error(READ, 0, 0, 0), 22);
        assert_eq!(error(WRITE, 0, 0, 100), 22);
        assert_eq!(error(WRITE, 0, 0, (32 << 20) + 512), 28, "beyond the end, before too long");
        assert_eq!(error(5, 0, size, 512), 22);
        assert_eq!(error(5, 1 << 2, 0, 512), 22, "CACHE has no flags");
        assert_eq!(error(5, 0, 0, 512), 0);
        assert_eq!(error(8, 0, 0, 512), 22);
        assert_eq!(error(4242, 0, 0, 512), 22);
        assert_eq!(error(READ, 0x8000, 0, 512), 22);
        assert_eq!(error(FLUSH, 0, 512, 0), 22);
        assert_eq!(error(WRITE_ZEROES, 1 << 4, 0, 512), 95);
        assert_eq!(client.read(0, 4096), Ok(pattern(4096, 1)), "it is still there, and so is the connection");
    }
    let mut snapshot = served.connect("s1", true);
    assert_eq!(snapshot.flags & 0b11, 0b11, "read-only");
    assert_eq!(snapshot.write(0, &[1; 512]), 1);
    assert_eq!(good.read(0, 4096), Ok(pattern(4096, 1)));
    served.close();
}

#[test]
fn what_breaks_the_protocol_ends_that_connection_only() {
    let served = served();
    let mut good = served.connect("v1", false);
    let endless = Client::request_bytes(WRITE, 0, 1, 0, u32::MAX);
    let old = [&0x1256_0953_u32.to_be_bytes()[..], &[0; 24]].concat();
    for bytes in [endless, old, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), vec![0xff; 5000]] {
        let mut bad = served.connect("v1", true);
        // The server may be gone before it has taken everything.
        let _ = bad.stream.write_all(&bytes);
        assert!(bad.is_hung_up());
        assert_eq!(good.write(512, &bytes.repeat(512)[..512]), 0);
    }
    for greeting in [
        &[0_u8, 0, 0, 4][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6],
    ] {
        let mut stream = UnixStream::connect(served.socket()).expect("it listens");
        stream.write_all(greeting).expect("it listens");
        let mut rest = Vec::new();
        // Reset or end, but no more than the greeting.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() <= 18);
    }
    eventually("the bad connections are gone", || served.server.connections() == 1);
    served.close();
}

#[test]
fn a_panic_ends_one_connection() {
    let served = served();
    let mut good = served.connect("v1", true);
    for _ in 0..3 {
        let mut stream = greet(&served.socket());
        stream.write_all(&option(1, PANICS.as_bytes())).expect("it listens");
        let mut byte = [0];
        assert!(!matches!(stream.read(&mut byte), Ok(1..)), "hung up");
    }
    eventually("only the good one is left", || served.server.connections() == 1);
    assert_eq!(good.write(0, &[1; 512]), 0);
    served.close();
}

#[test]
fn slow_handshakes_are_given_up() {
    let patience = Patience { message: Duration::from_millis(100), total: Duration::from_millis(600) };
    let limits = Limits { patience, ..Limits::default() };
    let mut served = Served::with(16 * MIB, BlockSize::MIN, &[], limits);
    served.volume("v1", MIB);
    let hung_up_after = |bytes: &[u8]| {
        let mut stream = greet(&served.socket());
        stream.write_all(bytes).expect("it listens");
        let begun = Instant::now();
        let mut byte = [0];
        assert!(!matches!(stream.read(&mut byte), Ok(1..)), "hung up");
        begun.elapsed()
    };
    let (stuck, thinking) = (hung_up_after(b"IHAVEOPT"), hung_up_after(b""));
    assert!(
        stuck >= Duration::from_millis(90) && thinking >= Duration::from_millis(500),
        "{stuck:?} {thinking:?}"
    );
    assert!(thinking < Duration::from_secs(10));
    // Once in transmission a client may take its time.
    let mut client = served.connect("v1", true);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(client.write(0, &[1; 512]), 0);
    served.close();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let served = served();
    for turn in 0..20_u64 {
        let mut client = served.connect("v1", turn % 2 == 0);
        client.send_write(FUA, 1, turn * 65_536, &pattern(65_536, 1));
        client.send(READ, 0, 2, 0, 8 << 20);
        // In the middle of a header, or of a payload, or with replies unread.
        match turn % 3 {
            0 => client.stream.write_all(&[0x25, 0x60]).expect("it listens"),
            1 => {
                client.send(WRITE, 0, 3, 0, 1 << 20);
                client.stream.write_all(&[7; 1000]).expect("it listens");
            }
            _ => {}
        }
    }
    eventually("the connections are gone", || served.server.connections() == 0);
    let mut client = served.connect("v1", true);
    assert_eq!(client.read(19 * 65_536, 65_536).expect("readable").len(), 65_536);
    served.close();
}

#[test]
fn a_client_that_does_not_read_stops_nobody() {
    let served = served();
    let mut stuck = served.connect("v1", false);
    let mut requests = stuck.stream.try_clone().expect("a socket");
    let bytes = Client::request_bytes(READ, 0, 1, 0, 8 << 20).repeat(100);
    let sender = std::thread::spawn(move || requests.write_all(&bytes));
    let mut good = served.connect("v1", true);
    for turn in 0..50 {
        assert_eq!(good.write(turn * 4096, &pattern(4096, turn as u8)), 0);
    }
    // It reads after all, and gets everything.
    for _ in 0..100 {
        assert_eq!(stuck.reply(8 << 20).error, 0);
    }
    sender.join().expect("no panic").expect("all was taken");
    served.close();
}

#[test]
fn a_full_pool_tells_enospc() {
    let mut served = Served::new(MIB);
    served.volume("big", 16 * MIB);
    let mut client = served.connect("big", true);
    assert_eq!(client.write(0, &vec![1; MIB as usize]), 0);
    client.send_write(0, 4, 2 * MIB, &[1; 512]);
    let reply = client.reply(0);
    assert_eq!((reply.cookie, reply.error), (4, 28));
    assert!(String::from_utf8_lossy(&reply.data).contains("no free space"), "{reply:?}");
    assert_eq!(client.write(0, &[2; 512]), 0, "what is mapped can be written");
    client.send(TRIM, FUA, 5, 0, MIB as u32);
    assert_eq!(client.reply(0).error, 0);
    eventually("the blocks are free again", || client.write(2 * MIB, &[3; 512]) == 0);
    served.close();
}

#[test]
fn options_over_a_real_socket() {
    let mut served = served();
    served.volume("v2", MIB);
    let mut stream = greet(&served.socket());
    let mut ask = |number: u32, data: &[u8]| {
        stream.write_all(&option(number, data)).expect("it listens");
        replies(&mut stream)
    };
    let names: Vec<Vec<u8>> = ask(3, &[]).into_iter().map(|reply| reply.1).collect();
    assert_eq!(names, [&b"\0\0\0\x02v1"[..], b"\0\0\0\x02v2", b""]);
    assert_eq!(ask(5, &[])[0].0, (1 << 31) + 2, "there are no certificates");
    assert_eq!(ask(0x1234, &[1; 3000])[0].0, (1 << 31) + 1);
    let unknown = ask(7, b"\0\0\0\x04nope\0\0");
    assert_eq!(unknown, [((1 << 31) + 6, b"there is no volume `nope`".to_vec())]);
    let ambiguous = ask(6, b"\0\0\0\0\0\0");
    assert_eq!(ambiguous, [((1 << 31) + 6, b"name an export: there are v1, v2".to_vec())]);
    assert_eq!(ask(2, &[])[0].0, 1);
    served.close();
}

#[test]
fn connections_are_limited_and_seats_come_back() {
    let limits = Limits { connections: LANES, ..Limits::default() };
    let mut served = Served::with(16 * MIB, BlockSize::MIN, &[], limits);
    served.volume("v1", MIB);
    for _ in 0..3 {
        let mut clients: Vec<Client> = (0..LANES).map(|_| served.connect("v1", true)).collect();
        // One more is told why not, whatever it asks for, and may leave as it came.
        let mut one_more = greet(&served.socket());
        for (number, data) in [(3, &[][..]), (6, b"\0\0\0\x02v1\0\0"), (7, b"\0\0\0\x02v1\0\0")] {
            one_more.write_all(&option(number, data)).expect("the server listens");
            let [(kind, words)] = &replies(&mut one_more)[..] else { panic!("it is one refusal") };
            let words = String::from_utf8_lossy(words);
            assert_eq!(*kind, (1 << 31) + 2, "{words}");
            assert!(words.contains(&format!("{LANES} clients are connected")), "{words}");
        }
        one_more.write_all(&option(2, &[])).expect("the server listens");
        assert_eq!(replies(&mut one_more), [(1, Vec::new())]);
        assert_eq!(served.server.connections(), LANES);
        assert_eq!(clients[LANES - 1].write(0, &[1; 512]), 0);
        let mut last = clients.pop().expect("there are many");
        last.send(DISCONNECT, 0, 0, 0, 0);
        assert!(last.is_hung_up());
        drop(clients);
        eventually("all have gone", || served.server.connections() == 0);
    }
    served.close();
}

#[test]
fn stopping_finishes_what_runs_and_ends_everybody() {
    let limits = Limits { stop_grace: Duration::from_millis(300), ..Limits::default() };
    let mut served = Served::with(64 * MIB, BlockSize::MIN, &[], limits);
    served.volume("v1", 32 * MIB);
    let mut idle = served.connect("v1", true);
    let mut haggling = greet(&served.socket());
    let mut deaf = served.connect("v1", false);
    for cookie in 0..8 {
        deaf.send(READ, 0, cookie, 0, 8 << 20);
    }
    let mut busy = served.connect("v1", true);
    busy.send_write(FUA, 1, 0, &pattern(4 << 20, 5));
    assert_eq!(busy.reply(0).error, 0);
    let begun = Instant::now();
    served.server.stop();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(served.server.connections(), 0);
    assert!(idle.is_hung_up() && busy.is_hung_up());
    let mut byte = [0];
    assert!(!matches!(haggling.read(&mut byte), Ok(1..)));
    assert!(!served.socket().exists());
    served.pool.close().expect("every seat is free");
    served.server.stop();
}

#[test]
fn stopping_under_load_frees_every_seat() {
    for turn in 0..6_u64 {
        let mut served = served();
        let acknowledged: Arc<[AtomicU64; 4]> = Arc::default();
        let clients: Vec<_> = (0..4_u64)
            .map(|number| {
                let mut client = served.connect("v1", number % 2 == 0);
                let acknowledged = acknowledged.clone();
                std::thread::spawn(move || {
                    let (command, flags) =
                        [(WRITE, 0), (WRITE, FUA), (TRIM, 0), (WRITE_ZEROES, NO_HOLE)][number as usize];
                    let payload = vec![number as u8; if command == WRITE { 65_536 * 3 } else { 0 }];
                    for cookie in 0.. {
                        let offset = (cookie * 7 + number) % 100 * 65_536;
                        let header = Client::request_bytes(command, flags, cookie, offset, 65_536 * 3);
                        let mut reply = [0; 16];
                        let sent =
                            client.stream.write_all(&header).and_then(|()| client.stream.write_all(&payload));
                        if sent.and_then(|()| client.stream.read_exact(&mut reply)).is_err() {
                            break;
                        }
                        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
                        acknowledged[number as usize].fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        eventually("all are served", || acknowledged.iter().all(|count| count.load(Ordering::Relaxed) > 0));
        std::thread::sleep(Duration::from_millis(10 * turn));
        served.server.stop();
        served.pool.close().expect("every seat is free, and nothing runs");
        for client in clients {
            client.join().expect("it was told no error");
        }
    }
}

#[test]
fn those_who_wait_to_be_refused_are_few() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let mut served = Served::with(16 * MIB, BlockSize::MIN, &[], limits);
    served.volume("v1", MIB);
    let mut client = served.connect("v1", true);
    let refused: Vec<UnixStream> = (0..8).map(|_| greet(&served.socket())).collect();
    let mut one_more = UnixStream::connect(served.socket()).expect("it listens");
    let mut byte = [0];
    assert!(!matches!(one_more.read(&mut byte), Ok(1..)), "closed without a word");
    assert_eq!(client.write(0, &[1; 512]), 0);
    drop(refused);
    eventually("there is room for another refusal", || {
        let mut one_more = UnixStream::connect(served.socket()).expect("it listens");
        matches!(one_more.read(&mut [0]), Ok(1))
    });
    drop(client);
    served.close();
}

#[test]
fn as_many_clients_as_may_be_there_all_do_their_work() {
    let mut served = Served::with(256 * MIB, BlockSize::MIN, &[], Limits::default());
    served.volume("v1", 64 * MIB);
    let count = Limits::default().connections as u64;
    assert_eq!(count, LANES as u64);
    let (connected, all_there) = std::sync::mpsc::channel();
    let (clients, leave): (Vec<_>, Vec<_>) = (0..count)
        .map(|number| {
            let (socket, connected) = (served.socket(), connected.clone());
            let (leave, may_leave) = std::sync::mpsc::channel::<()>();
            let work = move || {
                let mut client = Client::connect(&socket, "v1", number % 2 == 0);
                connected.send(()).expect("somebody waits");
                // Their blocks lie between each other's, and what they write beside each other's in a block.
                for turn in 0..15_u64 {
                    let at = (turn * count + number) * 65_536;
                    assert_eq!(client.write(at + 512, &pattern(60_000 / 512 * 512, number as u8)), 0);
                    let shared = 63 * MIB + number * 4096;
                    assert_eq!(client.write(shared, &pattern(4096, (number + turn) as u8)), 0);
                    if turn % 5 == 0 {
                        client.send(FLUSH, 0, 9, 0, 0);
                        assert_eq!(client.reply(0).error, 0);
                    }
                    let back = client.read(at + 512, 60_000 / 512 * 512).expect("it is there");
                    assert!(back == pattern(60_000 / 512 * 512, number as u8));
                    let back = client.read(shared, 4096).expect("it is there");
                    assert!(back == pattern(4096, (number + turn) as u8));
                }
                let _ = may_leave.recv();
            };
            (std::thread::spawn(work), leave)
        })
        .unzip();
    for _ in 0..count {
        all_there.recv_timeout(Duration::from_secs(60)).expect("there is room for all");
    }
    // In the middle of it.
    let mut one_more = greet(&served.socket());
    one_more.write_all(&option(7, b"\0\0\0\x02v1\0\0")).expect("the server listens");
    let (kind, words) = replies(&mut one_more).pop().expect("an answer");
    assert_eq!(kind, (1 << 31) + 2);
    let words = String::from_utf8_lossy(&words);
    assert!(words.contains("64 clients are connected, and no more are allowed"), "{words}");
    drop(leave);
    for client in clients {
        client.join().expect("it found what it wrote");
    }
    served.close();
}

#[test]
fn extended_headers_over_a_real_socket() {
    let mut served = served();
    served.snapshot("v1", "s1");
    let mut stream = greet(&served.socket());
    let query = b"\0\0\0\x02v1\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0duthin:mapping";
    let options = [option(11, &[]), option(10, query), option(7, b"\0\0\0\x02v1\0\0")];
    for (bytes, count) in options.iter().zip([1, 3, 3]) {
        stream.write_all(bytes).expect("the server listens");
        assert_eq!(replies(&mut stream).len(), count);
    }
    let request = |flags: u16, command: u16, offset: u64, length: u64| {
        let head = [0x21, 0xe4, 0x1c, 0x71];
        let words = [7_u64, offset, length].map(u64::to_be_bytes).concat();
        [&head[..], &flags.to_be_bytes(), &command.to_be_bytes(), &words].concat()
    };
    let mut ask = |request: Vec<u8>, reply_bytes: usize| {
        stream.write_all(&request).expect("the server listens");
        let mut reply = vec![0; reply_bytes];
        stream.read_exact(&mut reply).expect("the server answers");
        reply
    };
    let head = |flags: u16, kind: u16, offset: u64, length: u64| {
        let words = [7_u64, offset, length].map(u64::to_be_bytes).concat();
        [&[0x6e, 0x8a, 0x27, 0x8c][..], &flags.to_be_bytes(), &kind.to_be_bytes(), &words].concat()
    };
    let payload = pattern(131_072, 5);
    let write = [request(1 << 5 | FUA, WRITE, 65_536, 131_072), payload.clone()].concat();
    assert_eq!(ask(write, 32), head(1, 0, 65_536, 0));
    let read = ask(request(0, READ, 65_536, 131_072), 40 + 131_072);
    assert_eq!(read[..40], [head(1, 1, 65_536, 131_080), 65_536_u64.to_be_bytes().to_vec()].concat());
    assert!(read[40..] == payload);
    let extents = |context: u8, extents: &[(u64, u64)]| {
        let list =
            extents.iter().flat_map(|extent| [extent.0.to_be_bytes(), extent.1.to_be_bytes()].concat());
        [&[0, 0, 0, context, 0, 0, 0, extents.len() as u8][..], &list.collect::<Vec<_>>()].concat()
    };
    let told = [(65_536, 3), (131_072, 0), (32 * MIB - 3 * 65_536, 3)];
    let whole = request(0, BLOCK_STATUS, 0, 32 * MIB);
    let expected = [head(0, 6, 0, 56), extents(1, &told), head(1, 6, 0, 56), extents(2, &told)].concat();
    assert_eq!(ask(whole, 2 * (32 + 56)), expected);
    let named =
        [request(1 << 5, BLOCK_STATUS, 0, 12), 65_536_u64.to_be_bytes().to_vec(), vec![0, 0, 0, 2]].concat();
    assert_eq!(ask(named, 32 + 24), [head(1, 6, 0, 24), extents(2, &[(65_536, 3)])].concat());
    assert_eq!(ask(request(0, TRIM, 0, 32 * MIB), 32), head(1, 0, 0, 0));
    assert_eq!(ask(request(0, 5, 0, 32 * MIB), 32), head(1, 0, 0, 0));
    // A WRITE whose payload is not announced has none.
    let refused = ask(request(0, WRITE, 512, 512), 38);
    assert_eq!(refused[4..8], [0, 1, 0x80, 1]);
    assert_eq!(refused[16..24], 512_u64.to_be_bytes());
    assert_eq!(refused[32..36], [0, 0, 0, 22]);
    drop(stream);
    served.close();
}

#[test]
fn tcp_on_both_loopback_addresses() {
    let address = |host: &str| format!("tcp:{host}:0").parse::<Address>().expect("an address");
    let more = [address("127.0.0.1"), address("[::1]")];
    let mut served = Served::with(16 * MIB, BlockSize::MIN, &more, Limits::default());
    served.volume("v1", MIB);
    let addresses = served.server.addresses().to_vec();
    assert_eq!(addresses.len(), 3);
    for address in &addresses[1..] {
        let Address::Tcp { host, port, .. } = address else { panic!("{address} is TCP") };
        assert_ne!(*port, 0);
        let mut stream = TcpStream::connect((host.as_str(), *port)).expect("it listens");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("it greets");
        stream.write_all(&[&[0, 0, 0, 3][..], &option(1, b"v1")].concat()).expect("it listens");
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer[..8], MIB.to_be_bytes());
        // A flush, and then an end that the server has to notice.
        stream.write_all(&Client::request_bytes(FLUSH, 0, 1, 0, 0)).expect("it listens");
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).expect("it answers");
        assert_eq!(reply[4..8], [0; 4]);
    }
    eventually("the connections are gone", || served.server.connections() == 0);
    served.close();
}
