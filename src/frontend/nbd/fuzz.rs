//! Clients that are nearly right, by the thousand: a seed makes a handshake and a transmission with mistakes in them, and they
//! are played to the real state machines, in memory, with bytes in any portions and requests that end in any order.
//!
//! What must hold for every seed: no panic; an end after a bounded number of reads and steps; no more memory than
//! [`session`](super::session) promises; and of the requests that came whole, each gets one reply, with its cookie, and
//! nothing else gets any. Which those are is reckoned here, from the bytes alone. A seed that fails is named and fails again:
//! `UTHIN_NBD_FUZZ_SEEDS=17..18 cargo test --lib nbd::fuzz`.

use super::contexts::Contexts;
use super::handshake::tests::{Script, TWO, choice, contexts, option};
use super::handshake::{Patience, TlsMode, negotiate};
use super::headers::{RequestHeader, Style};
use super::options::PAYLOAD_LIMIT_BYTES;
use super::protocol::{
    ChunkKind, Command, Errno, OPTION_REPLY_MAGIC, ReplyKind, SIMPLE_REPLY_MAGIC, command_flags, take_u16,
    take_u32, take_u64,
};
use super::session::bench::Bench;
use super::session::{Closing, MEMORY_LIMIT_BYTES, REQUESTS_LIMIT, Session};
use super::validate::{Terms, check};
use crate::engine::IoError;
use crate::units::BlockSize;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::collections::BTreeMap;

/// Seeds that run when none are asked for.
const SEEDS: std::ops::Range<u64> = 0..500;
/// A volume of an odd size, so that its end is inside a block.
const SIZE_BYTES: u64 = (3 << 40) + 7 * 512;
/// Turns in which a transmission must come to its end. Each lets bytes in, ends a step, or lets go of what was sent.
const TURNS: usize = 50_000;
/// What a session may hold beside the limit, when it holds one request only: the largest, or the largest list of extents.
const SINGLE_BYTES: usize = 33 << 20;

fn seeds() -> std::ops::Range<u64> {
    let Ok(asked) = std::env::var("UTHIN_NBD_FUZZ_SEEDS") else { return SEEDS };
    let (first, end) = asked.split_once("..").expect("UTHIN_NBD_FUZZ_SEEDS=FIRST..END");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Runs `one` for every seed; a panic names its seed.
fn for_each_seed(one: fn(&mut SmallRng)) {
    for seed in seeds() {
        let played = std::panic::catch_unwind(|| one(&mut SmallRng::seed_from_u64(seed)));
        assert!(played.is_ok(), "seed {seed}: UTHIN_NBD_FUZZ_SEEDS={seed}..{}", seed + 1);
    }
}

/// One in `of`.
fn seldom(random: &mut SmallRng, of: u32) -> bool {
    random.random_range(0..of) == 0
}

fn pick<T: Clone>(random: &mut SmallRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

/// Changes, cuts or lengthens.
fn spoil(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    match random.random_range(0..4) {
        0 => bytes.truncate(random.random_range(0..bytes.len() + 1)),
        1 => bytes.extend((0..random.random_range(1..40)).map(|at| at as u8)),
        _ => {
            for _ in 0..random.random_range(1..4) {
                if !bytes.is_empty() {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = pick(random, &[0, 1, 2, 0x7f, 0x80, 0xff, bytes[at] ^ 1]);
                }
            }
        }
    }
}

/// An option, mostly a right one.
fn any_option(random: &mut SmallRng) -> Vec<u8> {
    let name = pick(random, &["v1", "v1", "v1", "v2", "", "nobody", "busy"]);
    let queries = pick(
        random,
        &[
            &["base:allocation"][..],
            &["uthin:mapping", "base:allocation"],
            &["uthin:"],
            &[],
            &["x-y:z", "base:"],
        ],
    );
    let mut bytes = match random.random_range(0..11) {
        0 => option(3, &[]),
        1 => option(5, &[]),
        2 => option(6, &choice(name, &[0, 1, 2, 3])),
        3 | 4 => option(8, &[]),
        5 => option(9, &contexts(name, queries)),
        6 | 7 => option(10, &contexts(name, queries)),
        8 | 9 => option(11, &[]),
        _ => {
            let length = pick(random, &[0, 1, 300, 65_536, 65_537, 200_000]);
            option(random.random_range(0..20), &vec![b'x'; length])
        }
    };
    if seldom(random, 6) {
        spoil(random, &mut bytes);
    }
    bytes
}

fn any_handshake(random: &mut SmallRng) -> Vec<u8> {
    let flags = pick(random, &[3_u32, 3, 3, 3, 1, 0, 2, 4]);
    let mut bytes = flags.to_be_bytes().to_vec();
    for _ in 0..random.random_range(0..8) {
        bytes.extend(any_option(random));
    }
    match random.random_range(0..10) {
        0 => bytes.extend(option(1, b"v1")),
        1 => bytes.extend(option(2, &[])),
        2 => {}
        _ => bytes.extend(option(7, &choice("v1", &[3]))),
    }
    bytes
}

/// A request, mostly of this style, its fields mostly sensible; `cookie` stays as it is.
fn any_request(random: &mut SmallRng, style: Style, cookie: u64) -> Vec<u8> {
    let command = pick(random, &[0_u16, 0, 1, 1, 1, 3, 4, 5, 6, 7, 7, 2, 8, 0xffff]);
    // Seldom enough that most runs have a middle.
    let command = if command == 2 && !seldom(random, 4) { 0 } else { command };
    let offset_bytes = match random.random_range(0..8) {
        0 => pick(random, &[SIZE_BYTES - 512, SIZE_BYTES, u64::MAX - 511, 1, 511]),
        1 => 0,
        _ => random.random_range(0..SIZE_BYTES / 512) * 512,
    };
    let longest = if style == Style::Extended { u64::MAX } else { 0xffff_fe00 };
    let length_bytes = match random.random_range(0..16) {
        0 => pick(random, &[0, 1, 513, longest, 1 << 31]),
        1 if command != 1 => random.random_range(0..SIZE_BYTES / 512) * 512,
        2 if seldom(random, 8) => u64::from(PAYLOAD_LIMIT_BYTES) + pick(random, &[0, 512]),
        3 => random.random_range(1..4096) * 512,
        _ => random.random_range(1..20) * 512,
    };
    let length_bytes = if style == Style::Extended { length_bytes } else { length_bytes & 0xffff_ffff };
    let mut flags = pick(random, &[0, 0, 0, 1, 2, 4, 8, 16, 0xffff, 64]);
    if style == Style::Extended && (command == 1) != seldom(random, 12) {
        flags |= command_flags::PAYLOAD_LEN;
    }
    let mut header = RequestHeader { flags, command, cookie, offset_bytes, length_bytes };
    let mut payload = Vec::new();
    if style == Style::Extended && command == 7 && seldom(random, 2) {
        header.flags |= command_flags::PAYLOAD_LEN;
        payload.extend(header.length_bytes.to_be_bytes());
        for _ in 0..pick(random, &[1, 1, 2, 0, 3]) {
            payload.extend(random.random_range(1..4_u32).to_be_bytes());
        }
        if seldom(random, 8) {
            spoil(random, &mut payload);
        }
        header.length_bytes = payload.len() as u64;
    }
    // What no server takes does not come whole either: what does come is taken for its beginning.
    let missing = header.payload_bytes(style).saturating_sub(payload.len() as u64);
    let missing = if missing > u64::from(PAYLOAD_LIMIT_BYTES) + 512 { 1000 } else { missing as usize };
    payload.extend(std::iter::repeat_n(0x5a, missing));
    let mut bytes = header.encode(style);
    bytes.extend(payload);
    bytes
}

/// Replies that requests in a stream are entitled to: for each cookie, how many, and how long a simple read's data are.
type Due = BTreeMap<u64, (usize, usize)>;

/// Reckons from the bytes alone what is due. `true`: the client said goodbye, or something that ends the session.
fn due(mut bytes: &[u8], terms: &Terms) -> (Due, bool) {
    let mut due = Due::new();
    loop {
        let Some(header) = RequestHeader::decode(terms.style, bytes) else { return (due, false) };
        let Ok(header) = header else { return (due, true) };
        let payload_bytes = header.payload_bytes(terms.style);
        if header.command == Command::Disconnect.number() {
            return (due, true);
        }
        let is_sound_write = header.command == 1 && check(&header, terms).is_ok();
        let limit = if terms.style == Style::Extended { u64::from(PAYLOAD_LIMIT_BYTES) } else { 64 << 20 };
        if payload_bytes > limit && !is_sound_write {
            return (due, true);
        }
        let Some(rest) = bytes.get(terms.style.request_bytes() + payload_bytes as usize..) else {
            return (due, false);
        };
        bytes = rest;
        let reads = header.command == 0 && check(&header, terms).is_ok();
        let entry =
            due.entry(header.cookie).or_insert((0, if reads { header.length_bytes as usize } else { 0 }));
        entry.0 += 1;
    }
}

/// Takes replies off what was sent, and off what is due. Every message must be whole.
fn settle(mut bytes: &[u8], terms: &Terms, due: &mut Due) {
    while !bytes.is_empty() {
        let magic = take_u32(&mut bytes).expect("a magic");
        let (cookie, is_last, length) = if magic == SIMPLE_REPLY_MAGIC {
            assert_ne!(terms.style, Style::Extended);
            let error = take_u32(&mut bytes).expect("an error");
            assert!(error == 0 || Errno::from_number(error).is_some());
            let cookie = take_u64(&mut bytes).expect("a cookie");
            let data = if error == 0 && terms.style == Style::Simple { due[&cookie].1 } else { 0 };
            (cookie, true, data)
        } else {
            assert!(terms.style.has_chunks());
            let flags = take_u16(&mut bytes).expect("flags");
            assert!(take_u16(&mut bytes).and_then(ChunkKind::from_number).is_some());
            let cookie = take_u64(&mut bytes).expect("a cookie");
            let length = if terms.style == Style::Extended {
                take_u64(&mut bytes).expect("an offset");
                take_u64(&mut bytes).expect("a length")
            } else {
                u64::from(take_u32(&mut bytes).expect("a length"))
            };
            (cookie, flags == 1, length as usize)
        };
        bytes = &bytes[length..];
        if is_last {
            let entry = due.get_mut(&cookie).expect("a reply to nothing");
            assert!(entry.0 > 0, "two replies to {cookie}");
            entry.0 -= 1;
        }
    }
}

fn play_transmission(random: &mut SmallRng, terms: Terms, input: Vec<u8>) {
    let (mut due, says_goodbye) = due(&input, &terms);
    let mut bench = Bench::with(0, terms.style);
    bench.session = Session::new(terms);
    bench.volume.is_hollow = true;
    bench.socket.incoming = input;
    let fails = seldom(random, 8);
    let mut is_over = false;
    for _ in 0..TURNS {
        bench.socket.blocked = seldom(random, 4);
        let portion = pick(random, &[1, 31, 100, 5000, 1 << 20, usize::MAX]);
        // At least a part of the whole, so that megabytes do not take for ever.
        bench.socket.arrive(portion.max(bench.socket.incoming.len() / 200));
        bench.take_in();
        let steps = bench.volume.steps.len();
        for _ in 0..random.random_range(0..3).min(steps) {
            bench.volume.fail = (fails && seldom(random, 3))
                .then(|| pick(random, &[IoError::Io, IoError::NoSpace, IoError::Gone]));
            let left = bench.volume.steps.len();
            if left > 0 {
                bench.end(random.random_range(0..left));
            }
        }
        if !bench.socket.blocked {
            bench.socket.unsent_bytes = 0;
            for buffer in std::mem::take(&mut bench.socket.sent_buffers) {
                bench.session.sent(buffer, &mut bench.volume);
            }
            settle(&std::mem::take(&mut bench.socket.sent), &terms, &mut due);
        }
        let memory_bytes = bench.session.memory_bytes();
        assert!(bench.session.in_flight() <= REQUESTS_LIMIT);
        assert!(memory_bytes <= MEMORY_LIMIT_BYTES.max(SINGLE_BYTES), "{memory_bytes} bytes");
        assert!(bench.volume.bytes_out <= memory_bytes, "buffers are reckoned with");
        let has_read_all = bench.socket.incoming.is_empty() || bench.session.closing().is_some();
        if has_read_all && steps == 0 && !bench.socket.blocked && !bench.session.is_starved() {
            assert_eq!(bench.session.in_flight(), 0);
            is_over = true;
            break;
        }
    }
    assert!(is_over, "it does not end");
    assert_eq!(bench.session.closing().is_some(), says_goodbye);
    assert!(!matches!(bench.session.closing(), Some(Closing::Asked)));
    assert!(due.values().all(|(left, _)| *left == 0), "without a reply: {due:?}");
}

#[test]
fn handshakes_that_lead_anywhere() {
    for_each_seed(|random| {
        let mut input = any_handshake(random);
        if seldom(random, 10) {
            let mut noise = vec![0; 300];
            random.fill(&mut noise[..]);
            input.extend(noise);
        }
        let tls = pick(random, &[TlsMode::Unavailable, TlsMode::Offered, TlsMode::Required]);
        let step = pick(random, &[1, 7, 4096, usize::MAX]);
        let length = input.len();
        let mut script = Script::new(input, step);
        script.tls = tls;
        let agreed = negotiate(&mut script, &TWO, Patience::default());
        // Each read or write waits once at most, and takes a byte at least.
        assert!(script.limits.len() <= length + 2 + script.output.len() + 64);
        assert!(
            script.output.len() <= 18 + (length / 16 + 1) * 8192,
            "answers are no longer than options can make them"
        );
        let Some(agreed) = agreed.ok().flatten() else { return };
        let mut output = &script.output[18..];
        // Everything before the answer to EXPORT_NAME, which has no header, is whole replies.
        while output.get(..8) == Some(&OPTION_REPLY_MAGIC.to_be_bytes()) {
            let mut head = &output[12..];
            assert!(take_u32(&mut head).and_then(ReplyKind::from_number).is_some());
            let data_bytes = take_u32(&mut head).expect("a length") as usize;
            output = &head[data_bytes..];
        }
        assert!([0, 10, 134].contains(&output.len()));
        assert!(agreed.style.has_chunks() || agreed.contexts.is_empty());
    });
}

#[test]
fn transmissions_that_go_anywhere() {
    for_each_seed(|random| {
        let style = pick(random, &[Style::Simple, Style::Structured, Style::Extended, Style::Extended]);
        let chosen =
            if style.has_chunks() && !seldom(random, 4) { Contexts::all() } else { Contexts::default() };
        let terms = Terms {
            origin_bytes: 0,
            size_bytes: SIZE_BYTES,
            read_only: seldom(random, 8),
            style,
            contexts: chosen,
            block_size: BlockSize::MIN,
        };
        let mut input = Vec::new();
        for cookie in 0..random.random_range(1..40) {
            let mut request = any_request(random, style, cookie);
            // A changed byte may be a cookie's, by which simple replies are told apart.
            if style != Style::Simple && seldom(random, 12) {
                spoil(random, &mut request);
            }
            input.extend(request);
        }
        play_transmission(random, terms, input);
    });
}

#[test]
fn what_a_handshake_has_led_to_is_transmitted() {
    for_each_seed(|random| {
        let mut input = any_handshake(random);
        let handshake_bytes = input.len();
        let guess = pick(random, &[Style::Simple, Style::Structured, Style::Extended]);
        for cookie in 0..random.random_range(0..10) {
            input.extend(any_request(random, guess, cookie));
        }
        let mut script = Script::new(input, usize::MAX);
        let Ok(Some(agreed)) = negotiate(&mut script, &TWO, Patience::default()) else { return };
        assert!(script.at <= handshake_bytes, "what follows belongs to the transmission");
        let terms = Terms {
            origin_bytes: 0,
            size_bytes: SIZE_BYTES,
            read_only: agreed.facts.read_only,
            style: agreed.style,
            contexts: agreed.contexts,
            block_size: agreed.facts.block_size,
        };
        // What was left of the handshake's own bytes is noise to the transmission, and its cookies may be equal: with simple
        // replies nothing can be told then.
        if terms.style != Style::Simple || script.at == handshake_bytes {
            play_transmission(random, terms, script.input.split_off(script.at));
        }
    });
}
