//! Handshakes over byte streams in memory: every option, every way to get it wrong, and arbitrary bytes.

use super::bench::{Names, Script, TWO};
use super::*;
use crate::frontend::nbd::contexts::Context;
use crate::frontend::nbd::protocol::{OPTION_REPLY_MAGIC, take_u16, take_u32, take_u64};
use proptest::prelude::*;

const ONE: Names = Names(&["only"]);

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader { number, length_bytes: data.len() as u32 };
    [&header.encode()[..], data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub fn choice(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((requests.len() as u16).to_be_bytes());
    requests.iter().for_each(|request| data.extend(request.to_be_bytes()));
    data
}

pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// A reply to an option: option, kind's number, data.
type Reply = (u32, u32, Vec<u8>);

struct Outcome {
    result: Result<Option<Agreed<String>>>,
    replies: Vec<Reply>,
    /// Bytes after the last reply (the answer to EXPORT_NAME).
    rest: Vec<u8>,
    /// Bytes of the input that were not read.
    unread: usize,
}

/// Plays client flags and then the options.
fn play(host: &Names, flags: u32, options: &[Vec<u8>]) -> Outcome {
    play_in_steps(host, flags, options, usize::MAX)
}

/// The same where TLS stands like this.
fn play_with_tls(tls: TlsMode, flags: u32, options: &[Vec<u8>]) -> Outcome {
    let input = [flags.to_be_bytes().to_vec(), options.concat()].concat();
    play_script(&TWO, Script { tls, ..Script::new(input, usize::MAX) })
}

fn play_in_steps(host: &Names, flags: u32, options: &[Vec<u8>], step: usize) -> Outcome {
    let input = [flags.to_be_bytes().to_vec(), options.concat()].concat();
    play_script(host, Script::new(input, step))
}

fn play_script(host: &Names, mut script: Script) -> Outcome {
    let result = negotiate(&mut script, host, Patience::default());
    assert!(script.limits.iter().all(|limit| !limit.is_zero() && *limit <= Patience::default().total));
    let mut output = &script.output[..];
    assert_eq!(take_u64(&mut output), Some(MAGIC));
    assert_eq!(take_u64(&mut output), Some(OPTION_MAGIC));
    assert_eq!(take_u16(&mut output), Some(3));
    let mut replies = Vec::new();
    while output.get(..8).is_some_and(|magic| magic == OPTION_REPLY_MAGIC.to_be_bytes()) {
        output = &output[8..];
        let (option, kind) = (take_u32(&mut output).expect("option"), take_u32(&mut output).expect("kind"));
        let length = take_u32(&mut output).expect("length") as usize;
        replies.push((option, kind, output[..length].to_vec()));
        output = &output[length..];
    }
    Outcome { result, replies, rest: output.to_vec(), unread: script.input.len() - script.at }
}

/// The kinds of the replies.
fn kinds(outcome: &Outcome) -> Vec<ReplyKind> {
    outcome.replies.iter().map(|reply| ReplyKind::from_number(reply.1).expect("a known kind")).collect()
}

fn agreed(outcome: Outcome) -> Agreed<String> {
    outcome.result.expect("no error").expect("transmission")
}

/// One option, and then ABORT to see that the session goes on; returns the first option's replies.
fn refused(host: &Names, number: u32, data: &[u8], kind: ReplyKind) -> String {
    let outcome = play(host, 3, &[option(8, &[]), option(number, data), option(2, &[])]);
    assert!(outcome.result.expect("it goes on").is_none());
    let [(8, 1, _), (answered, got, message), (2, 1, _)] = &outcome.replies[..] else {
        panic!("{:?}", outcome.replies);
    };
    assert_eq!((*answered, *got), (number, kind.number()), "{}", String::from_utf8_lossy(message));
    String::from_utf8(message.clone()).expect("messages are UTF-8")
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    for step in [1, 7, usize::MAX] {
        let options = [option(8, &[]), option(7, &choice("v1", &[1, 2, 3])), vec![0x25, 0x60]];
        let outcome = play_in_steps(&TWO, 3, &options, step);
        let infos: Vec<&[u8]> =
            outcome.replies.iter().filter(|reply| reply.1 == 3).map(|reply| &reply.2[..]).collect();
        assert_eq!(infos[0], [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0b1101, 0b1110_1101]);
        assert_eq!(infos[1], [0, 3, 0, 0, 2, 0, 0, 1, 0, 0, 2, 0, 0, 0]);
        assert_eq!(infos[2], b"\0\x01v1");
        assert_eq!(infos[3], b"\0\x02volume v1");
        assert_eq!(outcome.replies.last().map(|reply| reply.1), Some(1));
        assert_eq!(outcome.unread, 2, "what follows GO is left for the transmission");
        let agreed = agreed(outcome);
        assert_eq!((agreed.style, agreed.contexts), (Style::Structured, Contexts::default()));
        assert_eq!(agreed.entered, "v1");
    }
}

#[test]
fn info_does_not_end_the_handshake() {
    let outcome = play(&TWO, 3, &[option(6, &choice("v2", &[])), option(7, &choice("v1", &[]))]);
    assert_eq!(
        kinds(&outcome),
        [ReplyKind::Info, ReplyKind::Info, ReplyKind::Ack, ReplyKind::Info, ReplyKind::Info, ReplyKind::Ack]
    );
    let agreed = agreed(outcome);
    assert_eq!((agreed.facts.name.as_str(), agreed.style), ("v1", Style::Simple));
}

#[test]
fn export_name_is_answered_without_a_header() {
    let padded = play(&TWO, 1, &[option(1, b"v2")]);
    assert_eq!(padded.rest.len(), 8 + 2 + 124);
    assert_eq!(padded.rest[..10], [0, 0, 0, 0, 0x40, 0, 0, 0, 0b1101, 0b0110_1101]);
    assert_eq!(agreed(padded).entered, "v2");
    let short = play(&TWO, 3, &[option(1, b"v2")]);
    assert_eq!(short.rest.len(), 10);
    let old = play(&ONE, 0, &[option(1, b"")]);
    assert_eq!(agreed(old).entered, "only");
    for name in [&b"nobody"[..], b"", b"v1\0", b"\xff", &[b'x'; 5000], &vec![b'x'; 70_000]] {
        let outcome = play(&TWO, 3, &[option(1, name), option(2, &[])]);
        assert_eq!(outcome.result.expect_err("it hangs up").kind(), ErrorKind::Invalid);
        assert!(outcome.replies.is_empty() && outcome.rest.is_empty());
    }
}

#[test]
fn the_default_export_is_the_only_one() {
    assert_eq!(agreed(play(&ONE, 3, &[option(7, &choice("", &[]))])).entered, "only");
    let message = refused(&TWO, 7, &choice("", &[]), ReplyKind::ErrorUnknown);
    assert_eq!(message, "name an export: there are v1, v2");
    let message = refused(&Names(&[]), 6, &choice("", &[]), ReplyKind::ErrorUnknown);
    assert!(message.contains("create a volume"), "{message}");
    let many = Names(&["v"; 30]);
    assert!(refused(&many, 7, &choice("", &[]), ReplyKind::ErrorUnknown).ends_with("v and 10 more"));
}

#[test]
fn lists() {
    let outcome = play(&TWO, 3, &[option(3, &[]), option(2, &[])]);
    assert_eq!(kinds(&outcome), [ReplyKind::Server, ReplyKind::Server, ReplyKind::Ack, ReplyKind::Ack]);
    assert_eq!(outcome.replies[1].2, b"\0\0\0\x02v2");
    assert!(refused(&TWO, 3, b"x", ReplyKind::ErrorInvalid).contains("takes no data"));
}

#[test]
fn contexts_hold_for_the_export_they_were_chosen_for() {
    let set = |name: &str, queries: &[&str]| option(10, &contexts(name, queries));
    let go = option(7, &choice("v1", &[]));
    let allocation =
        |options: &[Vec<u8>]| agreed(play(&TWO, 3, options)).contexts.contains(Context::Allocation);
    let structured = option(8, &[]);
    let chosen = set("v1", &["base:allocation"]);
    assert!(allocation(&[structured.clone(), chosen.clone(), go.clone()]));
    assert!(!allocation(&[structured.clone(), set("v2", &["base:allocation"]), go.clone()]));
    assert!(!allocation(&[chosen.clone(), structured.clone(), go.clone()]), "before structured replies");
    for clearing in [set("v1", &[]), set("v1", &["qemu:x"]), set("nobody", &["base:allocation"])] {
        assert!(!allocation(&[structured.clone(), chosen.clone(), clearing, go.clone()]));
    }
    for clearing in [option(10, b"junk"), option(10, &vec![0; 70_000])] {
        assert!(!allocation(&[structured.clone(), chosen.clone(), clearing, go.clone()]));
    }
    let listed = play(&TWO, 3, &[structured.clone(), chosen.clone(), option(9, &contexts("v1", &[])), go]);
    assert_eq!(listed.replies[1], (10, 4, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(listed.replies[3], (9, 4, b"\0\0\0\0base:allocation".to_vec()));
    assert_eq!(listed.replies[4], (9, 4, b"\0\0\0\0uthin:mapping".to_vec()));
    assert_eq!(
        agreed(listed).contexts.iter().collect::<Vec<_>>(),
        [Context::Allocation],
        "listing leaves it alone"
    );
    let both =
        [structured.clone(), set("v1", &["uthin:mapping", "base:allocation"]), option(7, &choice("v1", &[]))];
    let both = play(&TWO, 3, &both);
    assert_eq!(both.replies[1], (10, 4, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(both.replies[2], (10, 4, b"\0\0\0\x02uthin:mapping".to_vec()));
    assert_eq!(agreed(both).contexts, Contexts::all());
    let by_default =
        [structured, option(10, &contexts("", &["base:allocation"])), option(7, &choice("only", &[]))];
    assert!(!agreed(play(&ONE, 3, &by_default)).contexts.is_empty());
}

#[test]
fn extended_headers_take_precedence() {
    let go = || option(7, &choice("v1", &[]));
    for options in [&[option(11, &[]), go()][..], &[option(8, &[]), option(11, &[]), go()]] {
        let outcome = play(&TWO, 3, options);
        assert_eq!(
            kinds(&outcome)[..options.len() - 1],
            [ReplyKind::Ack, ReplyKind::Ack][..options.len() - 1]
        );
        // DF, and no list of contexts, since none were chosen.
        let info = outcome.replies.iter().find(|reply| reply.1 == 3).expect("a fact");
        assert_eq!(info.2[10..], [0b0_1101, 0b1110_1101]);
        assert_eq!(agreed(outcome).style, Style::Extended);
    }
    let late = play(&TWO, 3, &[option(11, &[]), option(8, &[]), go()]);
    assert_eq!(kinds(&late)[..2], [ReplyKind::Ack, ReplyKind::ErrorExtendedHeaders]);
    assert_eq!(agreed(late).style, Style::Extended);
    let set = option(10, &contexts("v1", &["uthin:mapping"]));
    let chosen = play(&TWO, 3, &[option(11, &[]), set, option(6, &choice("v1", &[])), go()]);
    let infos: Vec<&Reply> = chosen.replies.iter().filter(|reply| reply.1 == 3 && reply.2[1] == 0).collect();
    assert_eq!(infos[0].2[10..], [0b1_1101, 0b1110_1101]);
    assert_eq!(infos[0].2, infos[1].2, "INFO tells what GO tells");
    let agreed = agreed(chosen);
    assert_eq!(agreed.contexts.iter().collect::<Vec<_>>(), [Context::Mapping]);
    let old = play(&TWO, 3, &[option(11, &[]), option(1, b"v1")]);
    assert!(old.result.expect_err("it hangs up").message().contains("EXPORT_NAME"));
}

#[test]
fn where_tls_is_required_nothing_goes_before_it() {
    let go = || option(7, &choice("v1", &[]));
    let tls = || option(5, &[]);
    let early = [option(3, &[]), go(), option(6, b"junk"), option(8, &[]), option(99, &vec![0; 100_000])];
    let late = [tls(), tls(), option(3, &[]), go()];
    let outcome = play_with_tls(TlsMode::Required, 3, &[&early[..], &late].concat());
    let told = kinds(&outcome);
    assert_eq!(told[..5], [ReplyKind::ErrorTlsRequired; 5]);
    assert_eq!(told[5..7], [ReplyKind::Ack, ReplyKind::ErrorInvalid]);
    assert_eq!(told[7..9], [ReplyKind::Server; 2]);
    assert_eq!(agreed(outcome).entered, "v1");
    let hung_up = |flags, options: &[Vec<u8>]| {
        let outcome = play_with_tls(TlsMode::Required, flags, options);
        let error = outcome.result.expect_err("it hangs up");
        assert!(outcome.replies.is_empty() && outcome.rest.is_empty());
        error.to_string()
    };
    assert!(hung_up(3, &[option(1, b"v1")]).contains("before TLS"));
    assert!(hung_up(2, &[tls()]).contains("fixed newstyle"));
    let left = play_with_tls(TlsMode::Required, 3, &[option(2, &[])]);
    assert_eq!(kinds(&left), [ReplyKind::Ack]);
}

#[test]
fn nothing_that_was_agreed_on_before_tls_holds_after_it() {
    let set = option(10, &contexts("v1", &["base:allocation"]));
    let go = || option(7, &choice("v1", &[]));
    for first in [option(8, &[]), option(11, &[])] {
        let options = [first.clone(), set.clone(), option(5, &[]), go()];
        let outcome = agreed(play_with_tls(TlsMode::Offered, 3, &options));
        assert_eq!((outcome.style, outcome.contexts), (Style::Simple, Contexts::default()));
        // A refused one changes nothing.
        let refused =
            agreed(play_with_tls(TlsMode::Offered, 3, &[first, set.clone(), option(5, b"x"), go()]));
        assert!(refused.style.has_chunks() && !refused.contexts.is_empty());
    }
    assert_eq!(agreed(play_with_tls(TlsMode::Offered, 3, &[go()])).entered, "v1", "nobody must");
    let old = play_with_tls(TlsMode::Offered, 2, &[option(5, &[]), go()]);
    assert_eq!(kinds(&old)[0], ReplyKind::ErrorPolicy);
}

#[test]
fn refusals_name_the_error_and_the_session_goes_on() {
    refused(&TWO, 5, &[], ReplyKind::ErrorPolicy);
    refused(&TWO, 5, b"x", ReplyKind::ErrorInvalid);
    refused(&TWO, 4, &[], ReplyKind::ErrorUnsupported);
    refused(&TWO, 12, &[], ReplyKind::ErrorUnsupported);
    refused(&TWO, 11, b"x", ReplyKind::ErrorInvalid);
    refused(&TWO, 0, &[], ReplyKind::ErrorUnsupported);
    refused(&TWO, u32::MAX, b"anything", ReplyKind::ErrorUnsupported);
    refused(&TWO, 99, &vec![7; 100_000], ReplyKind::ErrorUnsupported);
    refused(&TWO, 8, b"x", ReplyKind::ErrorInvalid);
    refused(&TWO, 7, &[], ReplyKind::ErrorInvalid);
    refused(&TWO, 7, &[0xff; 6], ReplyKind::ErrorInvalid);
    refused(&TWO, 6, &vec![0; 100_000], ReplyKind::ErrorTooBig);
    // What nobody knows is not too big for anybody.
    refused(&TWO, 77, &vec![0; 100_000], ReplyKind::ErrorUnsupported);
    refused(&TWO, 7, &choice(&"x".repeat(4097), &[]), ReplyKind::ErrorTooBig);
    refused(&TWO, 9, &contexts("v1", &["noname"]), ReplyKind::ErrorInvalid);
    assert_eq!(refused(&TWO, 7, &choice("v3", &[]), ReplyKind::ErrorUnknown), "no volume `v3`");
    assert_eq!(
        refused(&TWO, 7, &choice("busy", &[]), ReplyKind::ErrorPolicy),
        "all lanes are taken\n  hint: try again"
    );
    refused(&TWO, 6, &choice("going", &[]), ReplyKind::ErrorShutdown);
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"bye", &vec![0; 100_000]] {
        let outcome = play(&TWO, 3, &[option(2, data), option(3, &[])]);
        assert!(outcome.result.as_ref().expect("no error").is_none());
        assert_eq!(kinds(&outcome), [ReplyKind::Ack]);
    }
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let message = |flags: u32, options: &[Vec<u8>]| {
        let error = play(&TWO, flags, options).result.expect_err("it hangs up");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    };
    assert!(message(4, &[]).contains("client flags 0x4"));
    assert!(message(3, &[b"IHAVEOPP00000000".to_vec()]).contains("IHAVEOPT"));
    assert!(message(3, &[option(7, &choice("v1", &[]))[..20].to_vec()]).contains("in the middle"));
    let endless = OptionHeader { number: 6, length_bytes: u32::MAX }.encode().to_vec();
    assert!(message(3, &[endless]).contains("4294967295 bytes"));
    assert!(play(&TWO, 3, &[]).result.expect("leaving between messages is fine").is_none());
}

#[test]
fn a_slow_client_is_given_up() {
    let mut script = Script::new(vec![0, 0, 0, 3], 9);
    let patience = Patience { message: Duration::from_secs(1), total: Duration::ZERO };
    let error = negotiate(&mut script, &TWO, patience).expect_err("no time at all");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.message().contains("too long"), "{error}");
}

/// An option that is nearly right: a known number, data of the right shape with bytes changed.
fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(choice("v1", &[1, 3])),
        Just(contexts("v1", &["base:allocation", "base:", "uthin:mapping"])),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    (0..13_u32, data, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)).prop_map(
        |(number, data, changes)| {
            let mut bytes = option(number, &data);
            for (place, byte) in changes {
                let at = place.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), step in 1..64_usize) {
        for tls in [TlsMode::Unavailable, TlsMode::Offered, TlsMode::Required] {
            let mut script = Script { tls, ..Script::new(bytes.clone(), step) };
            let _ = negotiate(&mut script, &TWO, Patience::default());
        }
    }

    /// Whatever comes, every option that was read whole got exactly one final reply, in order.
    #[test]
    fn nearly_right_options_are_answered_once_each(options in prop::collection::vec(nearly_right(), 0..12)) {
        let outcome = play_in_steps(&TWO, 3, &options, 13);
        let finals = outcome.replies.iter().filter(|reply| reply.1 == 1 || reply.1 > 1 << 31).count();
        prop_assert!(finals <= options.len());
        if outcome.result.is_ok_and(|agreed| agreed.is_none()) && outcome.unread == 0 {
            prop_assert!(finals > 0 || options.is_empty());
        }
    }
}
