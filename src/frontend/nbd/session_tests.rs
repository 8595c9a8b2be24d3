//! Sessions against a socket and a volume in memory: bytes arrive in any portions, steps end in any order.

use super::*;
use crate::frontend::nbd::options::PAYLOAD_LIMIT_BYTES;
use crate::frontend::nbd::protocol::{
    Command, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, command_flags as flags, take_u16, take_u32, take_u64,
};
use crate::units::BlockSize;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BLOCK: u64 = 65_536;

/// A socket whose bytes arrive when the test says so.
#[derive(Default)]
struct Socket {
    incoming: Vec<u8>,
    received: Vec<u8>,
    filling: Option<(AlignedBuffer, Range<usize>)>,
    filled: Option<AlignedBuffer>,
    sent: Vec<u8>,
    sent_buffers: Vec<AlignedBuffer>,
    unsent_bytes: usize,
    /// The client does not read.
    blocked: bool,
}

impl Socket {
    const STAGING: usize = 256 << 10;

    /// Lets up to `count` bytes arrive; returns how many did.
    fn arrive(&mut self, count: usize) -> usize {
        let mut left = count.min(self.incoming.len());
        if let Some((mut buffer, range)) = self.filling.take() {
            let part = left.min(range.len());
            buffer[range.start..range.start + part].copy_from_slice(&self.incoming[..part]);
            self.incoming.drain(..part);
            if part == range.len() {
                self.filled = Some(buffer);
            } else {
                self.filling = Some((buffer, range.start + part..range.end));
            }
            return part;
        }
        if self.filled.is_some() {
            return 0;
        }
        left = left.min(Self::STAGING - self.received.len());
        self.received.extend(self.incoming.drain(..left));
        left
    }

    fn queued(&mut self, bytes: &[u8]) {
        self.sent.extend_from_slice(bytes);
        if self.blocked {
            self.unsent_bytes += bytes.len();
        }
    }
}

impl Wire for Socket {
    fn received(&self) -> &[u8] {
        &self.received
    }
    fn consume(&mut self, count: usize) {
        self.received.drain(..count);
    }
    fn receive_into(&mut self, mut buffer: AlignedBuffer, range: Range<usize>) {
        assert!(self.filling.is_none() && self.filled.is_none(), "one at a time");
        let part = self.received.len().min(range.len());
        buffer[range.start..range.start + part].copy_from_slice(&self.received[..part]);
        self.received.drain(..part);
        if part == range.len() {
            self.filled = Some(buffer);
        } else {
            self.filling = Some((buffer, range.start + part..range.end));
        }
    }
    fn take_filled(&mut self) -> Option<AlignedBuffer> {
        self.filled.take()
    }
    fn send_bytes(&mut self, bytes: &[u8]) {
        self.queued(bytes);
    }
    fn send_buffer(&mut self, buffer: AlignedBuffer, range: Range<usize>) {
        self.queued(&buffer[range]);
        self.sent_buffers.push(buffer);
    }
    fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }
}

struct Step {
    tag: Tag,
    kind: Kind,
    range: Range<u64>,
    buffer: Option<AlignedBuffer>,
}

/// A volume in memory whose steps end when the test says so.
struct Volume {
    bytes: Vec<u8>,
    mapped: Vec<bool>,
    steps: Vec<Step>,
    begun: Vec<(Kind, Range<u64>)>,
    buffers_out: usize,
    /// What others leave, `None` for enough.
    room_bytes: Option<usize>,
    fail: Option<IoError>,
}

impl Volume {
    fn new(blocks: usize) -> Self {
        Volume {
            bytes: vec![0; blocks * BLOCK as usize],
            mapped: vec![false; blocks],
            steps: Vec::new(),
            begun: Vec::new(),
            buffers_out: 0,
            room_bytes: None,
            fail: None,
        }
    }

    /// Ends a step.
    fn end(&mut self, index: usize) -> Finished {
        let Step { tag, kind, range, mut buffer } = self.steps.remove(index);
        if let Some(error) = self.fail {
            return Finished { tag, result: Err(error), buffer, extents: None };
        }
        let bytes = range.start as usize..range.end as usize;
        let touched = (range.start / BLOCK) as usize..range.end.div_ceil(BLOCK) as usize;
        let whole = BlockSize::MIN.whole_blocks_inside(range.clone());
        let mut extents = None;
        match kind {
            Kind::Flush => {}
            Kind::Read => {
                buffer.as_mut().expect("a buffer")[..bytes.len()].copy_from_slice(&self.bytes[bytes]);
            }
            Kind::Write { .. } => {
                let length = bytes.len();
                self.bytes[bytes].copy_from_slice(&buffer.as_ref().expect("a buffer")[..length]);
                self.mapped[touched].fill(true);
            }
            Kind::WriteZeroes { may_unmap: false, .. } => {
                self.bytes[bytes].fill(0);
                self.mapped[touched].fill(true);
            }
            Kind::Discard | Kind::WriteZeroes { may_unmap: true, .. } => {
                if kind != Kind::Discard {
                    self.bytes[bytes].fill(0);
                }
                for block in whole {
                    let start = (block * BLOCK) as usize;
                    self.bytes[start..start + BLOCK as usize].fill(0);
                    self.mapped[block as usize] = false;
                }
            }
            Kind::Extents => extents = Some(self.extents(range)),
        }
        Finished { tag, result: Ok(()), buffer, extents }
    }

    fn extents(&self, range: Range<u64>) -> Vec<Extent> {
        let mut found: Vec<Extent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let block = at / BLOCK;
            let length_bytes = ((block + 1) * BLOCK).min(range.end) - at;
            let state = match self.mapped[block as usize] {
                false => ExtentState::Hole,
                true if block.is_multiple_of(2) => ExtentState::Exclusive,
                true => ExtentState::Shared,
            };
            match found.last_mut().filter(|last| last.state == state) {
                Some(last) => last.length_bytes += length_bytes,
                None => found.push(Extent { length_bytes, state }),
            }
            at += length_bytes;
        }
        found
    }
}

impl Backend for Volume {
    fn take_buffer(&mut self, length_bytes: usize) -> AlignedBuffer {
        self.buffers_out += 1;
        let mut buffer = AlignedBuffer::zeroed(length_bytes.next_power_of_two());
        buffer.fill(0xee);
        buffer
    }
    fn has_room(&self, more_bytes: usize) -> bool {
        self.room_bytes.is_none_or(|room_bytes| more_bytes <= room_bytes)
    }
    fn give_buffer(&mut self, _: AlignedBuffer) {
        self.buffers_out -= 1;
    }
    fn begin(&mut self, tag: Tag, kind: Kind, range: Range<u64>, buffer: Option<AlignedBuffer>) {
        assert!(self.steps.iter().all(|step| step.tag != tag), "tags in flight are unique");
        self.begun.push((kind, range.clone()));
        self.steps.push(Step { tag, kind, range, buffer });
    }
}

/// A session with everything around it.
struct Bench {
    session: Session,
    socket: Socket,
    volume: Volume,
}

impl Bench {
    fn new(blocks: usize, structured: bool) -> Self {
        let terms = Terms {
            size_bytes: blocks as u64 * BLOCK,
            read_only: false,
            structured,
            allocation: structured,
            block_size: BlockSize::MIN,
            origin_bytes: 0,
        };
        Bench { session: Session::new(terms), socket: Socket::default(), volume: Volume::new(blocks) }
    }

    fn request(&mut self, command: Command, flags: u16, range: Range<u64>, cookie: u64) {
        let length_bytes = (range.end - range.start) as u32;
        let header = RequestHeader {
            flags,
            command: command.number(),
            cookie,
            offset_bytes: range.start,
            length_bytes,
        };
        self.socket.incoming.extend(header.encode());
    }

    fn write(&mut self, flags: u16, offset: u64, payload: &[u8], cookie: u64) {
        self.request(Command::Write, flags, offset..offset + payload.len() as u64, cookie);
        self.socket.incoming.extend(payload);
    }

    fn take_in(&mut self) {
        self.session.take_in(&mut self.socket, &mut self.volume);
    }

    /// Lets everything arrive that there is room for.
    fn receive(&mut self) {
        loop {
            let arrived = self.socket.arrive(usize::MAX);
            self.take_in();
            if arrived == 0 {
                return;
            }
        }
    }

    fn end(&mut self, index: usize) {
        let finished = self.volume.end(index);
        self.session.finished(finished, &mut self.socket, &mut self.volume);
        if !self.socket.blocked {
            for buffer in self.socket.sent_buffers.drain(..) {
                self.session.sent(buffer, &mut self.volume);
            }
        }
    }

    /// Receives and ends until nothing moves; returns the replies.
    fn run(&mut self) -> Vec<Reply> {
        self.receive();
        while !self.volume.steps.is_empty() {
            self.end(0);
            self.receive();
        }
        if !self.socket.blocked {
            assert_eq!((self.session.in_flight(), self.session.memory_bytes), (0, 0));
            assert_eq!(self.volume.buffers_out, usize::from(self.socket.filling.is_some()));
        }
        self.replies()
    }

    fn replies(&mut self) -> Vec<Reply> {
        parse(&std::mem::take(&mut self.socket.sent), &self.session.terms)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Reply {
    Done(u64),
    Error(u64, u32, String),
    /// Cookie, offset and data.
    Data(u64, u64, Vec<u8>),
    Extents(u64, Vec<(u32, u32)>),
}

/// Takes replies apart. Simple ones with data are told by their cookie: its low 32 bits are the length then.
fn parse(mut bytes: &[u8], terms: &Terms) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some(magic) = take_u32(&mut bytes) {
        if magic == SIMPLE_REPLY_MAGIC {
            let error = take_u32(&mut bytes).expect("error");
            let cookie = take_u64(&mut bytes).expect("cookie");
            let length = (cookie & 0xffff_ffff) as usize;
            replies.push(match error {
                0 if !terms.structured && length > 0 => {
                    let (data, rest) = bytes.split_at(length);
                    bytes = rest;
                    Reply::Data(cookie, 0, data.to_vec())
                }
                0 => Reply::Done(cookie),
                error => Reply::Error(cookie, error, String::new()),
            });
            continue;
        }
        assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
        assert!(terms.structured);
        assert_eq!(take_u16(&mut bytes), Some(1), "every chunk is its reply's last");
        let kind = take_u16(&mut bytes).expect("kind");
        let cookie = take_u64(&mut bytes).expect("cookie");
        let length = take_u32(&mut bytes).expect("length") as usize;
        let (mut payload, rest) = bytes.split_at(length);
        bytes = rest;
        replies.push(match ChunkKind::from_number(kind).expect("a known kind") {
            ChunkKind::OffsetData => {
                let offset = take_u64(&mut payload).expect("offset");
                Reply::Data(cookie, offset, payload.to_vec())
            }
            ChunkKind::Error => {
                let error = take_u32(&mut payload).expect("error");
                assert_eq!(take_u16(&mut payload).map(usize::from), Some(payload.len()));
                Reply::Error(cookie, error, String::from_utf8(payload.to_vec()).expect("UTF-8"))
            }
            ChunkKind::BlockStatus => {
                assert_eq!(take_u32(&mut payload), Some(ALLOCATION_CONTEXT_ID));
                let mut extents = Vec::new();
                while let Some(length) = take_u32(&mut payload) {
                    extents.push((length, take_u32(&mut payload).expect("flags")));
                }
                Reply::Extents(cookie, extents)
            }
        });
    }
    replies
}

fn errors(replies: &[Reply]) -> Vec<(u64, u32)> {
    let error = |reply: &Reply| match reply {
        Reply::Error(cookie, error, _) => Some((*cookie, *error)),
        _ => None,
    };
    replies.iter().filter_map(error).collect()
}

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
        RequestHeader { flags: 0, command: 77, cookie: 5, offset_bytes: 0, length_bytes: 9 }.encode(),
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
    let block = BLOCK as u32;
    let whole = vec![(block - 512, 3), (3 * block, 0), (2 * block, 3), (block, 0), (block - 512, 3)];
    assert_eq!(
        replies,
        [
            Reply::Extents(1, whole),
            Reply::Extents(2, vec![(3 * block, 0)]),
            Reply::Extents(3, vec![(block, 3)])
        ]
    );
}

#[test]
fn one_extent_is_looked_for_wider_and_wider() {
    let blocks = 20_000;
    let mut bench = Bench::new(blocks, true);
    let end = blocks as u64 * BLOCK;
    bench.volume.mapped[10_000] = true;
    bench.request(Command::BlockStatus, flags::REQ_ONE, 0..end, 1);
    assert_eq!(bench.run(), [Reply::Extents(1, vec![(10_000 * BLOCK as u32, 3)])]);
    let looks: Vec<u64> = bench.volume.begun.iter().map(|(_, range)| range.end / BLOCK).collect();
    assert_eq!(looks, [256, 256 * 9, 256 * 73]);
    bench.request(Command::BlockStatus, flags::REQ_ONE, 10_000 * BLOCK..end, 2);
    assert_eq!(bench.run(), [Reply::Extents(2, vec![(BLOCK as u32, 0)])]);
    assert_eq!(bench.volume.begun.len(), 4);
}

/// A request of the property test: command, sector, sectors, flags.
fn any_request() -> impl Strategy<Value = (u16, u64, u32, u16)> {
    let length = prop_oneof![4 => 0..40_u32, 1 => 100..300_u32];
    let flags = prop_oneof![6 => Just(0_u16), 2 => Just(1), 1 => 0..64_u16];
    (prop::sample::select(vec![0_u16, 0, 1, 1, 1, 3, 4, 6, 7, 9]), 0..1024_u64, length, flags)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked, in whatever portions it arrives and in whatever order it ends: each request gets one reply, of
    /// the kind that validation promised, nothing leaks, and what is read is what was written (requests that overlap
    /// are not in flight together).
    #[test]
    fn every_request_gets_its_reply(
        structured: bool,
        requests in prop::collection::vec(any_request(), 1..40),
        moves in prop::collection::vec((1..3000_usize, any::<prop::sample::Index>()), 1..200),
        one_at_a_time: bool,
    ) {
        let mut bench = Bench::new(8, structured);
        let mut model = vec![0_u8; 8 * BLOCK as usize];
        let mut expected = BTreeMap::new();
        let mut replies = Vec::new();
        for (number, (command, sector, sectors, flags)) in requests.into_iter().enumerate() {
            let reads = command == Command::Read.number();
            // As `parse` needs it.
            let cookie = (number as u64) << 32 | if reads { u64::from(sectors) * 512 } else { 0 };
            let (offset_bytes, length_bytes) = match command {
                3 => (0, 0),
                _ => (sector * 512, sectors * 512),
            };
            let header = RequestHeader { flags, command, cookie, offset_bytes, length_bytes };
            bench.socket.incoming.extend(header.encode());
            let payload = vec![number as u8 + 1; header.payload_bytes() as usize];
            bench.socket.incoming.extend(&payload);
            let operation = check(&header, &bench.session.terms);
            let range = offset_bytes as usize..offset_bytes as usize + length_bytes as usize;
            match operation {
                Ok(Operation::Write { .. }) => model[range.clone()].copy_from_slice(&payload),
                Ok(Operation::WriteZeroes { .. }) => model[range.clone()].fill(0),
                Ok(Operation::Trim { .. }) => {
                    for block in BlockSize::MIN.whole_blocks_inside(range.start as u64..range.end as u64) {
                        model[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].fill(0);
                    }
                }
                Ok(Operation::Read | Operation::Flush | Operation::BlockStatus { .. } | Operation::Disconnect)
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
            let (Reply::Done(cookie) | Reply::Error(cookie, ..) | Reply::Data(cookie, ..) | Reply::Extents(cookie, _)) =
                &reply;
            let (operation, data) = expected.remove(cookie).expect("one reply each");
            match (operation, reply) {
                (Err(refusal), Reply::Error(_, error, _)) => prop_assert_eq!(refusal.error.number(), error),
                (Ok(Operation::Read), Reply::Data(_, _, found)) => {
                    prop_assert!(data.is_none_or(|data| data == found));
                }
                (Ok(Operation::BlockStatus { .. }), Reply::Extents(_, extents)) => {
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
    ) {
        let mut bench = Bench::new(8, true);
        for at in 0..headers {
            // A right magic, and whatever bytes there are for the rest.
            bench.socket.incoming.extend(crate::frontend::nbd::protocol::REQUEST_MAGIC.to_be_bytes());
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
