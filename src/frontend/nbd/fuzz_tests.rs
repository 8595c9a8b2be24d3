//! Clients that are nearly right: a seed makes a handshake and a transmission with mistakes in them.
//!
//! A seed that fails is named and fails again: `UTHIN_NBD_FUZZ_SEEDS=17..18 cargo test --lib nbd::fuzz`.

use super::*;
use crate::frontend::nbd::handshake::tests::{choice, contexts, option};
use crate::frontend::nbd::protocol::command_flags;

/// Seeds that run when none are asked for.
const SEEDS: std::ops::Range<u64> = 0..500;

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

pub fn any_handshake(random: &mut SmallRng) -> Vec<u8> {
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
        let mut script = Script::new(input, step);
        script.tls = tls;
        play_handshake(script);
    });
}

/// The requests of one client, all of any one style.
pub fn any_transmission(random: &mut SmallRng) -> Vec<u8> {
    let style = pick(random, &[Style::Simple, Style::Structured, Style::Extended]);
    (0..random.random_range(1..20)).flat_map(|cookie| any_request(random, style, cookie)).collect()
}

#[test]
fn transmissions_that_go_anywhere() {
    for_each_seed(|random| {
        let style = pick(random, &[Style::Simple, Style::Structured, Style::Extended, Style::Extended]);
        let terms = any_terms(random, style);
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

/// Found by `cargo fuzz`: thirteen bytes of 256 MiB, and the session waited for three more before it refused.
#[test]
fn a_list_of_contexts_that_is_too_long_is_not_waited_for() {
    let (flags, command, cookie, length_bytes) = (command_flags::PAYLOAD_LEN, 7, 1, 1 << 28);
    let header = RequestHeader { flags, command, cookie, offset_bytes: 0, length_bytes };
    let seed = b"ccc33\x003c"; // extended headers
    transmission(&[&seed[..], &header.encode(Style::Extended), &[0xfb; 13]].concat());
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
