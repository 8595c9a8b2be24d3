//! Sessions against a socket and a volume in memory: bytes arrive in any portions, steps end in any order.

use super::bench::{BLOCK, Bench, Reply, allocation, errors};
use super::*;
use crate::frontend::nbd::protocol::{
    Command, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, command_flags as flags,
};
use crate::units::BlockSize;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn a_write_comes_back() {
    for structured in [false, true] {
        // Copied out of the receive buffer, and received in place.
        for length in [512, COPIED_PAYLOAD_BYTES, COPIED_PAYLOAD_BYTES + 512, 300 << 10] {
            let mut bench = Bench::new(8, structured);
            let payload: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
            bench.write(0, 512, &payload, 7 << 32);
            assert_eq!(bench.run(), [Reply::Done(7 << 32)]);
            let cookie = length as u64;
            bench.request(Command::Read, 0, 512..512 + length as u64, cookie);
            let offset = if structured { 512 } else { 0 };
            assert_eq!(bench.run(), [Reply::Data(cookie, offset, payload)]);
        }
    }
}

#[test]
fn force_and_flush_reach_the_engine() {
    let mut bench = Bench::new(2048, true);
    bench.write(flags::FUA, 0, &[1; 512], 1);
    bench.request(Command::Flush, 0, 0..0, 2);
    bench.request(Command::Trim, 0, 0..BLOCK, 3);
    bench.request(Command::Trim, flags::FUA, 0..BLOCK, 4);
    bench.request(Command::WriteZeroes, flags::FUA | flags::FAST_ZERO, 0..BLOCK, 5);
    assert_eq!(bench.run().len(), 5);
    bench.request(Command::WriteZeroes, flags::FUA | flags::NO_HOLE, 512..(10 << 20), 6);
    assert_eq!(bench.run(), [Reply::Done(6)]);
    let mib = 1_u64 << 20;
    let zeroes = |fua| Kind::WriteZeroes { fua, may_unmap: false };
    let expected = [
        (Kind::Write { fua: true }, 0..512),
        (Kind::Flush, 0..0),
        (Kind::Discard, 0..BLOCK),
        (Kind::Discard, 0..BLOCK),
        (Kind::WriteZeroes { fua: true, may_unmap: true }, 0..BLOCK),
        // The second step of the TRIM with force.
        (Kind::Flush, 0..0),
        // No more than 64 blocks at a time, and each block at once.
        (zeroes(false), 512..4 * mib),
        (zeroes(false), 4 * mib..8 * mib),
        (zeroes(true), 8 * mib..10 * mib),
    ];
    assert_eq!(bench.volume.begun, expected);
}

#[test]
fn zeros_over_an_external_origin_go_in_steps_up_to_its_end() {
    let mut bench = Bench::new(2048, true);
    bench.session.terms.origin_bytes = 5 << 20;
    bench.request(Command::WriteZeroes, flags::FUA, 0..100 << 20, 1);
    assert_eq!(bench.run(), [Reply::Done(1)]);
    let zeroes = |fua| Kind::WriteZeroes { fua, may_unmap: true };
    let mib = 1 << 20;
    let expected =
        [(zeroes(false), 0..4 * mib), (zeroes(false), 4 * mib..8 * mib), (zeroes(true), 8 * mib..100 * mib)];
    assert_eq!(bench.volume.begun, expected);
}

#[test]
fn nobody_waits_for_zeros_that_a_client_who_left_has_asked_for() {
    for (closing, steps) in [(Closing::Asked, 1), (Closing::Disconnect, 3)] {
        let mut bench = Bench::new(2048, true);
        bench.request(Command::WriteZeroes, flags::NO_HOLE, 0..10 << 20, 1);
        bench.receive();
        bench.session.close(closing);
        let replies = bench.run();
        assert_eq!(bench.volume.begun.len(), steps);
        match steps {
            1 => assert_eq!(errors(&replies), [(1, 108)]),
            _ => assert_eq!(replies, [Reply::Done(1)]),
        }
    }
}

#[test]
fn wrong_requests_are_answered_and_the_next_ones_served() {
    let mut bench = Bench::new(4, true);
    bench.write(0, 4 * BLOCK, &[1; 100_000 / 512 * 512], 1);
    bench.write(1 << 7, 0, &[2; 512], 2);
    bench.request(Command::Read, 0, 1..513, 3);
    bench.request(Command::BlockStatus, 0, 0..0, 4);
    bench.socket.incoming.extend(
        RequestHeader { flags: 0, command: 77, cookie: 5, offset_bytes: 0, length_bytes: 9 }
            .encode(Style::Structured),
    );
    bench.request(Command::Read, 0, 0..512, 6);
    let replies = bench.run();
    assert_eq!(errors(&replies), [(1, 28), (2, 22), (3, 22), (4, 22), (5, 22)]);
    assert_eq!(replies[5], Reply::Data(6, 0, vec![0; 512]), "nothing was written");
    assert_eq!(replies[4], Reply::Error(5, 22, "unknown command".into()));
    assert!(bench.session.closing().is_none());
    assert_eq!(bench.volume.begun.len(), 1);
}

#[test]
fn an_oversized_write_is_skipped_or_ends_the_connection() {
    let mut bench = Bench::new(2048, false);
    let length = PAYLOAD_LIMIT_BYTES as usize + 512;
    bench.write(0, 0, &vec![1; length], 1);
    bench.request(Command::Flush, 0, 0..0, 2 << 32);
    assert_eq!(bench.run(), [Reply::Error(1, 22, String::new()), Reply::Done(2 << 32)]);
    bench.request(Command::Write, 0, 0..(64 << 20) + 512, 3);
    bench.request(Command::Flush, 0, 0..0, 4 << 32);
    assert_eq!(bench.run(), []);
    assert!(matches!(bench.session.closing(), Some(Closing::Broken(_))));
}

#[test]
fn bad_magic_ends_the_connection_after_what_runs() {
    let mut bench = Bench::new(4, true);
    bench.request(Command::Read, 0, 0..512, 1);
    bench.socket.incoming.extend([0x25; 28]);
    bench.request(Command::Read, 0, 0..512, 2);
    assert_eq!(bench.run(), [Reply::Data(1, 0, vec![0; 512])]);
    assert!(matches!(bench.session.closing(), Some(Closing::Broken(what)) if what.contains("25, 25")));
}

#[test]
fn disconnect_waits_for_what_runs() {
    let mut bench = Bench::new(4, true);
    bench.write(0, 0, &[1; 512], 1);
    bench.request(Command::Disconnect, 0, 0..0, 2);
    bench.write(0, 512, &[1; 512], 3);
    bench.receive();
    assert_eq!((bench.session.closing(), bench.session.in_flight()), (Some(&Closing::Disconnect), 1));
    assert_eq!(bench.run(), [Reply::Done(1)]);
}

#[test]
fn errors_of_the_engine_are_told() {
    for (error, number) in [(IoError::NoSpace, 28), (IoError::Io, 5), (IoError::Gone, 108)] {
        let mut bench = Bench::new(4, true);
        bench.volume.fail = Some(error);
        bench.write(0, 0, &[1; 512], 1);
        bench.request(Command::Read, 0, 0..512, 2);
        bench.request(Command::Trim, flags::FUA, 0..512, 3);
        bench.request(Command::BlockStatus, flags::REQ_ONE, 0..512, 4);
        let mut found = errors(&bench.run());
        found.sort_unstable();
        assert_eq!(found, [(1, number), (2, number), (3, number), (4, number)]);
    }
}

#[test]
fn requests_are_limited_in_number_and_memory() {
    let mut bench = Bench::new(2048, true);
    for cookie in 0..300 {
        bench.request(Command::Read, 0, 0..512, cookie);
    }
    bench.receive();
    assert_eq!(bench.session.in_flight(), REQUESTS_LIMIT);
    assert!(bench.session.is_starved());
    bench.end(0);
    bench.take_in();
    assert_eq!(bench.session.in_flight(), REQUESTS_LIMIT);
    assert_eq!(bench.run().len(), 300);
    assert!(!bench.session.is_starved());

    for cookie in 0..5 {
        bench.request(Command::Read, 0, 0..u64::from(PAYLOAD_LIMIT_BYTES), cookie);
    }
    bench.request(Command::Flush, 0, 0..0, 5);
    bench.receive();
    assert_eq!(bench.volume.begun.split_off(300).len(), 2, "64 MiB");
    assert_eq!(bench.run().len(), 6);
}

#[test]
fn when_others_leave_no_room_requests_go_one_by_one() {
    let mut bench = Bench::new(2048, true);
    bench.volume.room_bytes = Some(0);
    for cookie in 0..5 {
        bench.request(Command::Read, 0, 0..1 << 20, cookie);
    }
    bench.request(Command::Flush, 0, 0..0, 5);
    bench.receive();
    assert_eq!((bench.session.in_flight(), bench.session.is_starved()), (1, true));
    assert_eq!(bench.run().len(), 6);
    bench.volume.room_bytes = None;
    for cookie in 0..5 {
        bench.request(Command::Read, 0, 0..1 << 20, cookie);
    }
    bench.receive();
    assert_eq!(bench.session.in_flight(), 5);
    assert_eq!(bench.run().len(), 5);
}

#[test]
fn parts_of_blocks_count_for_the_memory_that_their_fills_take() {
    let mut bench = Bench::new(2048, true);
    let scratch = BLOCK.min(crate::engine::CHUNK_BYTES) as usize;
    for (cookie, (range, parts)) in
        [(0..BLOCK, 0), (512..BLOCK, 1), (0..512, 1), (512..1024, 2), (512..4 * BLOCK + 512, 2)]
            .into_iter()
            .enumerate()
    {
        bench.request(Command::WriteZeroes, 0, range.clone(), cookie as u64);
        bench.receive();
        assert_eq!(bench.session.memory_bytes, parts * scratch, "{range:?}");
        assert_eq!(bench.run().len(), 1);
        assert_eq!(bench.session.memory_bytes, 0);
    }
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut bench = Bench::new(2048, true);
    bench.socket.blocked = true;
    for cookie in 0..100 {
        bench.request(Command::Read, 0, 0..1 << 20, cookie);
    }
    bench.receive();
    while !bench.volume.steps.is_empty() {
        bench.end(0);
        bench.take_in();
    }
    assert!(bench.session.is_starved(), "replies that were not sent hold their memory");
    assert_eq!((bench.session.in_flight(), bench.volume.begun.len()), (0, 64));
    assert_eq!(bench.session.memory_bytes, MEMORY_LIMIT_BYTES);
    for buffer in std::mem::take(&mut bench.socket.sent_buffers) {
        bench.session.sent(buffer, &mut bench.volume);
    }
    bench.take_in();
    assert_eq!(bench.volume.begun.len(), 64, "there is memory, but still too much to send");
    bench.socket.blocked = false;
    bench.socket.unsent_bytes = 0;
    assert_eq!(bench.run().len(), 100);
}

#[test]
fn block_status_merges_what_means_the_same() {
    let mut bench = Bench::new(8, true);
    bench.volume.mapped = vec![false, true, true, true, false, false, true, false];
    bench.request(Command::BlockStatus, 0, 512..8 * BLOCK - 512, 1);
    bench.request(Command::BlockStatus, flags::REQ_ONE, BLOCK..8 * BLOCK, 2);
    bench.request(Command::BlockStatus, flags::REQ_ONE, 4 * BLOCK..5 * BLOCK, 3);
    let replies = bench.run();
    let block = BLOCK;
    let whole = vec![(block - 512, 3), (3 * block, 0), (2 * block, 3), (block, 0), (block - 512, 3)];
    assert_eq!(
        replies,
        [allocation(1, whole), allocation(2, vec![(3 * block, 0)]), allocation(3, vec![(block, 3)])]
    );
}

#[test]
fn one_extent_is_looked_for_wider_and_wider() {
    let blocks = 20_000;
    let mut bench = Bench::new(blocks, true);
    let end = blocks as u64 * BLOCK;
    bench.volume.mapped[10_000] = true;
    bench.request(Command::BlockStatus, flags::REQ_ONE, 0..end, 1);
    assert_eq!(bench.run(), [allocation(1, vec![(10_000 * BLOCK, 3)])]);
    let looks: Vec<u64> = bench.volume.begun.iter().map(|(_, range)| range.end / BLOCK).collect();
    assert_eq!(looks, [256, 256 * 9, 256 * 73]);
    bench.request(Command::BlockStatus, flags::REQ_ONE, 10_000 * BLOCK..end, 2);
    assert_eq!(bench.run(), [allocation(2, vec![(BLOCK, 0)])]);
    assert_eq!(bench.volume.begun.len(), 4);
}

#[test]
fn each_context_is_told_in_a_chunk_of_its_own() {
    for style in [Style::Structured, Style::Extended] {
        let mut bench = Bench::with(4, style);
        bench.session.terms.contexts = Contexts::all();
        // Exclusive, shared, exclusive, unmapped.
        bench.volume.mapped = vec![true, true, true, false];
        bench.request(Command::BlockStatus, 0, 0..4 * BLOCK, 1);
        bench.request(Command::BlockStatus, flags::REQ_ONE, BLOCK..4 * BLOCK, 2);
        let mapping = vec![(BLOCK, 0), (BLOCK, 5), (BLOCK, 0), (BLOCK, 3)];
        let whole = Reply::Status(1, vec![(1, vec![(3 * BLOCK, 0), (BLOCK, 3)]), (2, mapping)]);
        let one = Reply::Status(2, vec![(1, vec![(BLOCK, 0)]), (2, vec![(BLOCK, 5)])]);
        assert_eq!(bench.run(), [whole, one]);
    }
}

#[test]
fn a_status_with_a_payload_tells_what_it_names() {
    let mut bench = Bench::with(4, Style::Extended);
    bench.session.terms.contexts = Contexts::all();
    bench.volume.mapped[1] = true;
    let named = |bench: &mut Bench, payload: &[u8], cookie| {
        let range = 0..payload.len() as u64;
        bench.request(Command::BlockStatus, flags::PAYLOAD_LEN, range, cookie);
        bench.socket.incoming.extend(payload);
    };
    let payload = |length: u64, ids: &[u8]| {
        let mut payload = length.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend([0, 0, 0, *id]));
        payload
    };
    named(&mut bench, &payload(2 * BLOCK, &[2]), 1);
    named(&mut bench, &payload(4 * BLOCK, &[2, 1]), 2);
    named(&mut bench, &payload(BLOCK, &[3]), 3);
    named(&mut bench, &payload(BLOCK, &[]), 4);
    named(&mut bench, &payload(5 * BLOCK, &[1]), 5);
    named(&mut bench, &[7; 5], 6);
    named(&mut bench, &[7; 4096], 7);
    named(&mut bench, &[], 8);
    bench.request(Command::Flush, 0, 0..0, 9);
    // A header at a time, so that payloads are waited for.
    let mut replies = Vec::new();
    while bench.socket.arrive(9) > 0 {
        bench.take_in();
        while !bench.volume.steps.is_empty() {
            bench.end(0);
        }
        replies.extend(bench.replies());
    }
    let told = [
        Reply::Status(1, vec![(2, vec![(BLOCK, 3), (BLOCK, 5)])]),
        Reply::Status(
            2,
            vec![
                (1, vec![(BLOCK, 3), (BLOCK, 0), (2 * BLOCK, 3)]),
                (2, vec![(BLOCK, 3), (BLOCK, 5), (2 * BLOCK, 3)]),
            ],
        ),
    ];
    assert_eq!(replies[..2], told);
    assert_eq!(errors(&replies), (3..9).map(|cookie| (cookie, 22)).collect::<Vec<_>>());
    assert_eq!(replies[8], Reply::Done(9), "what was sent with the refused ones was passed over");
}

#[test]
fn extended_requests_and_replies_are_32_bytes() {
    let mut bench = Bench::with(8, Style::Extended);
    bench.write(flags::FUA, 512, &[7; 100 << 10], 1);
    bench.request(Command::Read, flags::DF, 512..1024, 2);
    bench.request(Command::Trim, flags::FUA, 0..BLOCK, 3);
    bench.request(Command::Cache, 0, 0..8 * BLOCK, 4);
    bench.request(Command::WriteZeroes, 0, 0..1 << 40, 5);
    bench.receive();
    while !bench.volume.steps.is_empty() {
        bench.end(0);
        bench.receive();
    }
    let sent = std::mem::take(&mut bench.socket.sent);
    let head = |kind: u16, cookie: u64, offset: u64, length: u64| {
        let mut bytes = vec![0x6e, 0x8a, 0x27, 0x8c, 0, 1];
        bytes.extend(kind.to_be_bytes());
        [cookie, offset, length].iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        bytes
    };
    // The refused one is answered at once.
    let message = b"beyond the end of the export";
    let error = [&[0, 0, 0, 28, 0, message.len() as u8][..], message].concat();
    let refused = [head(0x8001, 5, 0, error.len() as u64), error].concat();
    assert!(sent.windows(refused.len()).any(|window| window == refused));
    let read = [head(1, 2, 512, 8 + 512), 512_u64.to_be_bytes().to_vec()].concat();
    for whole in [head(0, 1, 512, 0), read, head(0, 3, 0, 0), head(0, 4, 0, 0)] {
        assert!(sent.windows(whole.len()).any(|window| window == whole), "{whole:02x?}");
    }
    assert_eq!(sent.len(), refused.len() + 3 * 32 + 40 + 512);
}

#[test]
fn an_extended_payload_above_the_limit_ends_the_connection() {
    let mut bench = Bench::with(2048, Style::Extended);
    bench.write(0, 0, &vec![1; PAYLOAD_LIMIT_BYTES as usize], 1);
    // No command takes one of these, but it is no reason to leave.
    bench.request(Command::Read, flags::PAYLOAD_LEN, 0..u64::from(PAYLOAD_LIMIT_BYTES), 2);
    bench.socket.incoming.extend(vec![1; PAYLOAD_LIMIT_BYTES as usize]);
    bench.request(Command::Flush, 0, 0..0, 3);
    let replies = bench.run();
    assert_eq!(errors(&replies), [(2, 22)]);
    assert!(replies.contains(&Reply::Done(1)) && replies.contains(&Reply::Done(3)));
    bench.request(Command::Write, 0, 0..u64::from(PAYLOAD_LIMIT_BYTES) + 512, 4);
    assert_eq!(bench.run(), []);
    assert!(matches!(bench.session.closing(), Some(Closing::Broken(_))));
}

#[test]
fn long_ranges_go_in_steps() {
    let end = 200_000 * BLOCK;
    let mut bench = Bench::with(0, Style::Extended);
    // What is behind it does not matter here, and would be 13 GB.
    bench.volume.is_hollow = true;
    bench.session.terms.size_bytes = end;
    bench.request(Command::Trim, flags::FUA, 512..end, 1);
    bench.request(Command::WriteZeroes, flags::FUA, 0..end, 2);
    bench.request(Command::Cache, 0, 0..end, 3);
    bench.request(Command::BlockStatus, 0, 0..end, 4);
    let replies = bench.run();
    assert_eq!(replies.len(), 4);
    assert!(replies.contains(&allocation(4, vec![(end, 3)])), "one extent, though longer than 4 GiB");
    let step = UNMAP_STEP_BLOCKS * BLOCK;
    let mut begun = bench.volume.begun;
    begun.sort_by_key(|(kind, range)| (format!("{kind:?}"), range.start));
    let zeroes = |fua| Kind::WriteZeroes { fua, may_unmap: true };
    let steps = [0..step, step..2 * step, 2 * step..3 * step, 3 * step..end];
    for (at, range) in steps.into_iter().enumerate() {
        let is_last = range.end == end;
        assert!(begun.contains(&(zeroes(is_last), range.clone())));
        assert_eq!(begun.iter().filter(|begun| **begun == (Kind::Extents, range.clone())).count(), 2);
        let trimmed = if at == 0 { 512..range.end } else { range };
        assert!(begun.contains(&(Kind::Discard, trimmed)));
    }
    assert_eq!(begun.iter().filter(|begun| begun.0 == Kind::Flush).count(), 1);
}

/// A request of the property test: command, sector, sectors, flags.
fn any_request() -> impl Strategy<Value = (u16, u64, u32, u16)> {
    let length = prop_oneof![4 => 0..40_u32, 1 => 100..300_u32];
    let flags = prop_oneof![6 => Just(0_u16), 2 => Just(1), 1 => 0..64_u16];
    (prop::sample::select(vec![0_u16, 0, 1, 1, 1, 3, 4, 5, 6, 7, 9]), 0..1024_u64, length, flags)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked, in whatever portions it arrives and in whatever order it ends: each request gets one reply, of
    /// the kind that validation promised, nothing leaks, and what is read is what was written (requests that overlap
    /// are not in flight together).
    #[test]
    fn every_request_gets_its_reply(
        style in prop::sample::select(vec![Style::Simple, Style::Structured, Style::Extended]),
        requests in prop::collection::vec(any_request(), 1..40),
        moves in prop::collection::vec((1..3000_usize, any::<prop::sample::Index>()), 1..200),
        one_at_a_time: bool,
    ) {
        let mut bench = Bench::with(8, style);
        let mut model = vec![0_u8; 8 * BLOCK as usize];
        let mut expected = BTreeMap::new();
        let mut replies = Vec::new();
        for (number, (command, sector, sectors, flags)) in requests.into_iter().enumerate() {
            let reads = command == Command::Read.number();
            // As `parse` needs it.
            let cookie = (number as u64) << 32 | if reads { u64::from(sectors) * 512 } else { 0 };
            let (offset_bytes, length_bytes) = match command {
                3 => (0, 0),
                _ => (sector * 512, u64::from(sectors) * 512),
            };
            let carries = style == Style::Extended && command == Command::Write.number();
            let flags = flags ^ if carries { flags::PAYLOAD_LEN } else { 0 };
            let header = RequestHeader { flags, command, cookie, offset_bytes, length_bytes };
            bench.socket.incoming.extend(header.encode(style));
            let payload = vec![number as u8 + 1; header.payload_bytes(style) as usize];
            bench.socket.incoming.extend(&payload);
            let operation = match names_contexts(&header, &bench.session.terms) {
                true => without_payload(&header, &payload, &bench.session.terms).map(|_| unreachable!("it is repetitive")),
                false => check(&header, &bench.session.terms),
            };
            let range = offset_bytes as usize..offset_bytes as usize + length_bytes as usize;
            match operation {
                Ok(Operation::Write { .. }) => model[range.clone()].copy_from_slice(&payload),
                Ok(Operation::WriteZeroes { .. }) => model[range.clone()].fill(0),
                Ok(Operation::Trim { .. }) => {
                    for block in BlockSize::MIN.whole_blocks_inside(range.start as u64..range.end as u64) {
                        model[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(0);
                    }
                }
                Ok(
                    Operation::Read
                    | Operation::Flush
                    | Operation::Cache
                    | Operation::BlockStatus { .. }
                    | Operation::Disconnect,
                )
                | Err(_) => {}
            }
            let data = (one_at_a_time && operation == Ok(Operation::Read)).then(|| model[range].to_vec());
            expected.insert(cookie, (operation, data));
            if one_at_a_time {
                replies.extend(bench.run());
            }
        }
        for (count, index) in moves {
            bench.socket.arrive(count);
            bench.take_in();
            if !bench.volume.steps.is_empty() && count % 2 == 0 {
                let index = index.index(bench.volume.steps.len());
                bench.end(index);
            }
        }
        replies.extend(bench.run());
        prop_assert_eq!(replies.len(), expected.len());
        for reply in replies {
            let (Reply::Done(cookie) | Reply::Error(cookie, ..) | Reply::Data(cookie, ..) | Reply::Status(cookie, _)) =
                &reply;
            let (operation, data) = expected.remove(cookie).expect("one reply each");
            match (operation, reply) {
                (Err(refusal), Reply::Error(_, error, _)) => prop_assert_eq!(refusal.error.number(), error),
                (Ok(Operation::Read), Reply::Data(_, _, found)) => {
                    prop_assert!(data.is_none_or(|data| data == found));
                }
                (Ok(Operation::BlockStatus { .. }), Reply::Status(_, told)) => {
                    prop_assert_eq!(told.len(), 1);
                    let extents = &told[0].1;
                    prop_assert!(!extents.is_empty() && extents.iter().all(|extent| extent.0 > 0));
                }
                (Ok(_), Reply::Done(_)) => {}
                (operation, reply) => prop_assert!(false, "{operation:?} was answered {reply:?}"),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400), headers in 0..4_usize, portion in 1..100_usize,
        extended: bool,
    ) {
        let style = if extended { Style::Extended } else { Style::Structured };
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut bench = Bench::with(8, style);
        for at in 0..headers {
            // A right magic, and whatever bytes there are for the rest.
            bench.socket.incoming.extend(magic.to_be_bytes());
            bench.socket.incoming.extend(bytes.iter().cycle().skip(at * 24).take(24.min(bytes.len())));
        }
        bench.socket.incoming.extend(&bytes);
        while bench.socket.arrive(portion) > 0 {
            bench.take_in();
            if !bench.volume.steps.is_empty() {
                bench.end(0);
            }
        }
        bench.run();
    }
}
