//! What clients send, right or not, played to the real state machines: in memory, with bytes in any portions and requests that end in
//! any order. `fuzz_tests.rs` makes clients that are nearly right, by the thousand; `cargo fuzz` makes any.
//!
//! What must hold for every input: no panic; an end after a bounded number of reads and steps; no more memory than
//! [`session`](super::session) promises; and of the requests that came whole, each gets one reply, with its cookie, and
//! nothing else gets any. Which those are is reckoned here, from the bytes alone.

use super::contexts::Contexts;
use super::handshake::bench::{Script, TWO};
use super::handshake::{Patience, TlsMode, negotiate};
use super::headers::{RequestHeader, Style};
use super::options::PAYLOAD_LIMIT_BYTES;
use super::protocol::{
    ChunkKind, Command, Errno, OPTION_REPLY_MAGIC, ReplyKind, SIMPLE_REPLY_MAGIC, take_u16, take_u32,
    take_u64,
};
use super::session::bench::Bench;
use super::session::{Closing, MEMORY_LIMIT_BYTES, REQUESTS_LIMIT, Session};
use super::validate::{Terms, check};
use crate::engine::IoError;
use crate::units::BlockSize;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::collections::BTreeMap;

/// The handshake on any bytes: the first two say how they arrive and whether there is TLS, the rest is what the client says.
pub fn handshake(input: &[u8]) {
    let [how, step, said @ ..] = input else { return };
    let mut script = Script::new(said.to_vec(), if *step == 0 { usize::MAX } else { usize::from(*step) });
    script.tls = [TlsMode::Unavailable, TlsMode::Offered, TlsMode::Required][usize::from(how % 3)];
    play_handshake(script);
}

/// A transmission of any bytes: the first eight are the seed of how they arrive and requests end, and what the terms are.
pub fn transmission(input: &[u8]) {
    let Some((seed, requests)) = input.split_first_chunk::<8>() else { return };
    let mut random = SmallRng::seed_from_u64(u64::from_le_bytes(*seed));
    let style = pick(&mut random, &[Style::Simple, Style::Structured, Style::Extended]);
    let mut terms = any_terms(&mut random, style);
    // A simple reply does not say how long it is: equal cookies could not be told apart.
    if style == Style::Simple && has_equal_cookies(requests, &terms) {
        terms.style = Style::Structured;
    }
    play_transmission(&mut random, terms, requests.to_vec());
}

fn has_equal_cookies(requests: &[u8], terms: &Terms) -> bool {
    due(requests, terms).0.values().any(|(count, _)| *count > 1)
}

/// A volume of an odd size, so that its end is inside a block.
const SIZE_BYTES: u64 = (3 << 40) + 7 * 512;
/// Turns in which a transmission must come to its end. Each lets bytes in, ends a step, or lets go of what was sent.
const TURNS: usize = 50_000;
/// What a session may hold beside the limit, when it holds one request only: the largest, or the largest list of extents.
const SINGLE_BYTES: usize = 33 << 20;

/// One in `of`.
fn seldom(random: &mut SmallRng, of: u32) -> bool {
    random.random_range(0..of) == 0
}

fn pick<T: Clone>(random: &mut SmallRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

fn any_terms(random: &mut SmallRng, style: Style) -> Terms {
    let chosen = if style.has_chunks() && !seldom(random, 4) { Contexts::all() } else { Contexts::default() };
    Terms {
        origin_bytes: 0,
        size_bytes: SIZE_BYTES,
        read_only: seldom(random, 8),
        style,
        contexts: chosen,
        block_size: BlockSize::MIN,
    }
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

fn play_handshake(mut script: Script) {
    let length = script.input.len();
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

#[cfg(test)]
#[path = "fuzz_tests.rs"]
pub(crate) mod tests;
