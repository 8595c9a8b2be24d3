//! What a session is tested with: a socket and a volume in memory. Bytes arrive when a test says so, in any portions, and
//! steps end in any order.

use super::*;
use crate::engine::{Extent, ExtentState};
use crate::frontend::nbd::contexts::Context;
use crate::frontend::nbd::protocol::{
    Command, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, command_flags as flags,
    take_u16, take_u32, take_u64,
};
use crate::units::BlockSize;

pub const BLOCK: u64 = 65_536;

/// A socket whose bytes arrive when the test says so.
#[derive(Default)]
pub struct Socket {
    pub incoming: Vec<u8>,
    pub received: Vec<u8>,
    pub filling: Option<(AlignedBuffer, Range<usize>)>,
    pub filled: Option<AlignedBuffer>,
    pub sent: Vec<u8>,
    pub sent_buffers: Vec<AlignedBuffer>,
    pub unsent_bytes: usize,
    /// The client does not read.
    pub blocked: bool,
}

impl Socket {
    const STAGING: usize = 256 << 10;

    /// Lets up to `count` bytes arrive; returns how many did.
    pub fn arrive(&mut self, count: usize) -> usize {
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

    pub fn queued(&mut self, bytes: &[u8]) {
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

pub struct Step {
    pub tag: Tag,
    pub kind: Kind,
    pub range: Range<u64>,
    pub buffer: Option<AlignedBuffer>,
}

/// A volume in memory whose steps end when the test says so.
pub struct Volume {
    pub bytes: Vec<u8>,
    pub mapped: Vec<bool>,
    pub steps: Vec<Step>,
    pub begun: Vec<(Kind, Range<u64>)>,
    pub buffers_out: usize,
    /// Their length in all.
    pub bytes_out: usize,
    /// What others leave, `None` for enough.
    pub room_bytes: Option<usize>,
    pub fail: Option<IoError>,
    /// There are no bytes, and what is mapped is as it happens.
    pub is_hollow: bool,
}

impl Volume {
    pub fn new(blocks: usize) -> Self {
        Volume {
            bytes: vec![0; blocks * BLOCK as usize],
            mapped: vec![false; blocks],
            steps: Vec::new(),
            begun: Vec::new(),
            buffers_out: 0,
            bytes_out: 0,
            room_bytes: None,
            fail: None,
            is_hollow: false,
        }
    }

    /// Ends a step.
    pub fn end(&mut self, index: usize) -> Finished {
        let Step { tag, kind, range, mut buffer } = self.steps.remove(index);
        if let Some(error) = self.fail {
            return Finished { tag, result: Err(error), buffer, extents: None };
        }
        if self.is_hollow {
            let extents = (kind == Kind::Extents).then(|| Volume::any_extents(range));
            return Finished { tag, result: Ok(()), buffer, extents };
        }
        let bytes = range.start as usize..range.end as usize;
        let touched = (range.start / BLOCK) as usize..range.end.div_ceil(BLOCK) as usize;
        let whole = BlockSize::MIN.whole_blocks_inside(range.clone());
        let mut extents = None;
        match kind {
            Kind::Flush | Kind::Settle => {}
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

    /// All sorts in a short range, and a hole in a long one.
    pub fn any_extents(range: Range<u64>) -> Vec<Extent> {
        let length_bytes = range.end - range.start;
        if length_bytes > 1000 * BLOCK {
            return vec![Extent { length_bytes, state: ExtentState::Hole }];
        }
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / BLOCK + 1) * BLOCK).min(range.end);
            let state =
                [ExtentState::Hole, ExtentState::Shared, ExtentState::Exclusive][(at / BLOCK % 3) as usize];
            found.push(Extent { length_bytes: end - at, state });
            at = end;
        }
        found
    }

    pub fn extents(&self, range: Range<u64>) -> Vec<Extent> {
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
        self.bytes_out += buffer.len();
        buffer[..length_bytes.min(4096)].fill(0xee);
        buffer
    }
    fn has_room(&self, more_bytes: usize) -> bool {
        self.room_bytes.is_none_or(|room_bytes| more_bytes <= room_bytes)
    }
    fn give_buffer(&mut self, buffer: AlignedBuffer) {
        self.buffers_out -= 1;
        self.bytes_out -= buffer.len();
    }
    fn begin(&mut self, tag: Tag, kind: Kind, range: Range<u64>, buffer: Option<AlignedBuffer>) {
        assert!(self.steps.iter().all(|step| step.tag != tag), "tags in flight are unique");
        self.begun.push((kind, range.clone()));
        self.steps.push(Step { tag, kind, range, buffer });
    }
}

/// A session with everything around it.
pub struct Bench {
    pub session: Session,
    pub socket: Socket,
    pub volume: Volume,
}

impl Bench {
    pub fn new(blocks: usize, structured: bool) -> Self {
        Bench::with(blocks, if structured { Style::Structured } else { Style::Simple })
    }

    /// With `base:allocation`, where that can be.
    pub fn with(blocks: usize, style: Style) -> Self {
        let contexts = Context::Allocation;
        let terms = Terms {
            origin_bytes: 0,
            size_bytes: blocks as u64 * BLOCK,
            read_only: false,
            style,
            contexts: [contexts].into_iter().filter(|_| style.has_chunks()).collect(),
            block_size: BlockSize::MIN,
        };
        Bench { session: Session::new(terms), socket: Socket::default(), volume: Volume::new(blocks) }
    }

    pub fn request(&mut self, command: Command, flags: u16, range: Range<u64>, cookie: u64) {
        let style = self.session.terms.style;
        let carries = style == Style::Extended && command == Command::Write;
        let header = RequestHeader {
            flags: flags | if carries { flags::PAYLOAD_LEN } else { 0 },
            command: command.number(),
            cookie,
            offset_bytes: range.start,
            length_bytes: range.end - range.start,
        };
        self.socket.incoming.extend(header.encode(style));
    }

    pub fn write(&mut self, flags: u16, offset: u64, payload: &[u8], cookie: u64) {
        self.request(Command::Write, flags, offset..offset + payload.len() as u64, cookie);
        self.socket.incoming.extend(payload);
    }

    pub fn take_in(&mut self) {
        self.session.take_in(&mut self.socket, &mut self.volume);
    }

    /// Lets everything arrive that there is room for.
    pub fn receive(&mut self) {
        loop {
            let arrived = self.socket.arrive(usize::MAX);
            self.take_in();
            if arrived == 0 {
                return;
            }
        }
    }

    pub fn end(&mut self, index: usize) {
        let finished = self.volume.end(index);
        self.session.finished(finished, &mut self.socket, &mut self.volume);
        if !self.socket.blocked {
            for buffer in self.socket.sent_buffers.drain(..) {
                self.session.sent(buffer, &mut self.volume);
            }
        }
    }

    /// Receives and ends until nothing moves; returns the replies.
    pub fn run(&mut self) -> Vec<Reply> {
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

    pub fn replies(&mut self) -> Vec<Reply> {
        parse(&std::mem::take(&mut self.socket.sent), &self.session.terms)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Done(u64),
    Error(u64, u32, String),
    /// Cookie, offset and data.
    Data(u64, u64, Vec<u8>),
    /// Cookie, and for each context its number and the extents.
    Status(u64, Vec<(u32, Vec<(u64, u64)>)>),
}

/// What `base:allocation` says, and nothing else.
pub fn allocation(cookie: u64, extents: Vec<(u64, u64)>) -> Reply {
    Reply::Status(cookie, vec![(1, extents)])
}

/// Takes replies apart. Simple ones with data are told by their cookie: its low 32 bits are the length then. Chunks of one
/// reply come one after the other.
pub fn parse(mut bytes: &[u8], terms: &Terms) -> Vec<Reply> {
    let mut replies = Vec::new();
    let mut told = Vec::new();
    while let Some(magic) = take_u32(&mut bytes) {
        if magic == SIMPLE_REPLY_MAGIC {
            assert_ne!(terms.style, Style::Extended);
            let error = take_u32(&mut bytes).expect("error");
            let cookie = take_u64(&mut bytes).expect("cookie");
            let length = (cookie & 0xffff_ffff) as usize;
            replies.push(match error {
                0 if terms.style == Style::Simple && length > 0 => {
                    let (data, rest) = bytes.split_at(length);
                    bytes = rest;
                    Reply::Data(cookie, 0, data.to_vec())
                }
                0 => Reply::Done(cookie),
                error => Reply::Error(cookie, error, String::new()),
            });
            continue;
        }
        let flags = take_u16(&mut bytes).expect("flags");
        let kind = take_u16(&mut bytes).and_then(ChunkKind::from_number).expect("a known kind");
        let cookie = take_u64(&mut bytes).expect("cookie");
        let length = match terms.style {
            Style::Simple => panic!("a chunk that nobody asked for"),
            Style::Structured => {
                assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
                u64::from(take_u32(&mut bytes).expect("length"))
            }
            Style::Extended => {
                assert_eq!(magic, EXTENDED_REPLY_MAGIC);
                take_u64(&mut bytes).expect("offset");
                take_u64(&mut bytes).expect("length")
            }
        };
        let (mut payload, rest) = bytes.split_at(length as usize);
        bytes = rest;
        let is_status = matches!(kind, ChunkKind::BlockStatus | ChunkKind::BlockStatusExtended);
        assert!(
            flags == CHUNK_DONE || (flags == 0 && is_status),
            "only lists of extents are followed by more"
        );
        replies.push(match kind {
            ChunkKind::None => Reply::Done(cookie),
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
                assert_eq!(terms.style, Style::Structured);
                let context = take_u32(&mut payload).expect("a context");
                let mut extents = Vec::new();
                while let Some(length) = take_u32(&mut payload) {
                    extents.push((length.into(), take_u32(&mut payload).expect("flags").into()));
                }
                told.push((context, extents));
                if flags == 0 {
                    continue;
                }
                Reply::Status(cookie, std::mem::take(&mut told))
            }
            ChunkKind::BlockStatusExtended => {
                assert_eq!(terms.style, Style::Extended);
                let context = take_u32(&mut payload).expect("a context");
                let count = take_u32(&mut payload).expect("a count");
                let mut extents = Vec::new();
                while let Some(length) = take_u64(&mut payload) {
                    extents.push((length, take_u64(&mut payload).expect("flags")));
                }
                assert_eq!(count as usize, extents.len());
                told.push((context, extents));
                if flags == 0 {
                    continue;
                }
                Reply::Status(cookie, std::mem::take(&mut told))
            }
        });
    }
    replies
}

pub fn errors(replies: &[Reply]) -> Vec<(u64, u32)> {
    let error = |reply: &Reply| match reply {
        Reply::Error(cookie, error, _) => Some((*cookie, *error)),
        _ => None,
    };
    replies.iter().filter_map(error).collect()
}
