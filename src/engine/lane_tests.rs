//! A lane alone, with the test in the place of driver and keeper.

use super::super::map_table::page_of;
use super::super::origin::{Behind, Origin};
use super::super::partials::Partials;
use super::*;
use crate::disk::MemoryDisk;
use crate::metadata::{Base, Partial};
use crate::units::{Mapping, SnapTime, VolumeId};

const BLOCK: u64 = 65_536;

struct Bench {
    lane: Lane,
    epochs: Arc<Epochs>,
    volume: Arc<Volume>,
    out: Vec<Action>,
}

fn bench(block_size: BlockSize, blocks: u64) -> Bench {
    bench_before(Behind::Zeros, block_size, blocks)
}

/// With an origin of so many bytes.
fn bench_over(origin_bytes: u64) -> (Bench, Origin) {
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(origin_bytes)));
    (bench_before(Behind::Origin(origin.clone()), BlockSize::MIN, 6), origin)
}

fn bench_before(behind: Behind, block_size: BlockSize, blocks: u64) -> Bench {
    let epochs = Arc::new(Epochs::new(1));
    let id = VolumeId::new(7).expect("a small number");
    let volume = Volume::new(
        id,
        blocks * block_size.bytes() - 512,
        SnapTime(5),
        behind,
        Arc::default(),
        Arc::new(Partials::new(block_size.all_units())),
    );
    // Block 0 is a hole, 1 exclusive, 2 shared; the pages of the rest are loaded as holes.
    let mapping = |block, time| Mapping { block: DataBlock(block), time: SnapTime(time) };
    let known = [(VirtualBlock(1), mapping(11, 5)), (VirtualBlock(2), mapping(12, 4))];
    volume.table.load_page(page_of(VirtualBlock(0)), &known);
    let lane = Lane::new(LaneId(0), epochs.clone(), block_size);
    Bench { lane, epochs, volume: Arc::new(volume), out: Vec::new() }
}

impl Bench {
    fn begin(&mut self, kind: Kind, offset_bytes: u64, length_bytes: u64) -> Vec<Action> {
        let request = Request { tag: Tag(1), volume: self.volume.clone(), kind, offset_bytes, length_bytes };
        self.lane.begin(request, &mut self.out);
        std::mem::take(&mut self.out)
    }
    fn reply(&mut self, op: OpId, reply: Reply) -> Vec<Action> {
        self.lane.reply(op, reply, &mut self.out);
        std::mem::take(&mut self.out)
    }
    fn io_done(&mut self, op: OpId, result: Result<(), IoError>) -> Vec<Action> {
        self.lane.io_done(op, result, &mut self.out);
        std::mem::take(&mut self.out)
    }
    fn id(&self) -> VolumeId {
        self.volume.id()
    }
}

fn complete() -> Action {
    Action::Complete { tag: Tag(1), result: Ok(()) }
}

fn failed(error: IoError) -> Action {
    Action::Complete { tag: Tag(1), result: Err(error) }
}

fn op_of(action: &Action) -> OpId {
    match action {
        Action::ReadData { op, .. }
        | Action::ReadOrigin { op, .. }
        | Action::WriteData { op, .. }
        | Action::Ask { op, .. }
        | Action::GiveUp { op } => *op,
        other => panic!("{other:?} has no op"),
    }
}

#[test]
fn a_read_of_a_hole_is_zeros_and_of_a_mapped_block_one_read() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Read, BLOCK - 1024, 2048);
    let read = Action::ReadData {
        op: op_of(&out[1]),
        disk_offset_bytes: 11 * BLOCK,
        length_bytes: 1024,
        into: Place::Request(Tag(1), 1024),
    };
    let zeros = Action::ZeroRequest { tag: Tag(1), offset_bytes: 0, length_bytes: 1024 };
    assert_eq!(out, [zeros, read]);
    assert_eq!(bench.io_done(op_of(&out[1]), Ok(())), [complete()]);
    assert!(bench.lane.is_idle());
}

#[test]
fn a_write_goes_in_place_only_where_nobody_else_sees_the_block() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Write { fua: false }, BLOCK + 512, 512);
    assert!(
        matches!(out[..], [Action::WriteData { disk_offset_bytes, .. }] if disk_offset_bytes == 11 * BLOCK + 512)
    );
    assert_eq!(bench.io_done(op_of(&out[0]), Ok(())), [complete()]);

    let out = bench.begin(Kind::Write { fua: false }, 2 * BLOCK, 512);
    let op = op_of(&out[0]);
    assert_eq!(out, [Action::Ask { op, ask: Ask::Fill(bench.id(), VirtualBlock(2)) }]);
    let fill = Reply::Fill { target: DataBlock(20), source: FillSource::Block(DataBlock(12)) };
    let out = bench.reply(op, fill);
    assert!(
        matches!(out[..], [Action::ReadData { disk_offset_bytes, length_bytes: BLOCK, .. }] if disk_offset_bytes == 12 * BLOCK)
    );
    let out = bench.io_done(op, Ok(()));
    assert!(matches!(out[0], Action::PatchScratch { at_bytes: 0, length_bytes: 512, .. }));
    assert!(
        matches!(out[1], Action::WriteData { disk_offset_bytes, length_bytes: BLOCK, .. } if disk_offset_bytes == 20 * BLOCK)
    );
    let out = bench.io_done(op, Ok(()));
    assert_eq!(out, [Action::Ask { op, ask: Ask::Publish(bench.id(), VirtualBlock(2), DataBlock(20)) }]);
    assert_eq!(bench.reply(op, Reply::Done), [Action::DropScratch { op }, complete()]);
}

#[test]
fn a_write_of_a_whole_block_reads_nothing() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Write { fua: false }, 2 * BLOCK, BLOCK);
    let op = op_of(&out[0]);
    let out =
        bench.reply(op, Reply::Fill { target: DataBlock(20), source: FillSource::Block(DataBlock(12)) });
    let from = Place::Request(Tag(1), 0);
    let write = Action::WriteData { op, disk_offset_bytes: 20 * BLOCK, length_bytes: BLOCK, from };
    assert_eq!(out, [write]);
    bench.io_done(op, Ok(()));
    bench.reply(op, Reply::Done);
    assert!(bench.lane.is_idle());
}

#[test]
fn a_failed_fill_is_abandoned_and_fails_the_write() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Write { fua: true }, 0, 512);
    let op = op_of(&out[0]);
    bench.reply(op, Reply::Fill { target: DataBlock(20), source: FillSource::Zeros });
    let out = bench.io_done(op, Err(IoError::NoSpace));
    assert_eq!(out, [Action::Ask { op, ask: Ask::Abandon(bench.id(), VirtualBlock(0), DataBlock(20)) }]);
    assert_eq!(
        bench.reply(op, Reply::Done),
        [Action::DropScratch { op }, failed(IoError::NoSpace)],
        "as told"
    );
}

#[test]
fn a_forced_write_is_flushed_before_it_completes() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Write { fua: true }, BLOCK, 512);
    let out = bench.io_done(op_of(&out[0]), Ok(()));
    assert!(matches!(out[..], [Action::Ask { ask: Ask::Flush, .. }]));
    assert_eq!(bench.reply(op_of(&out[0]), Reply::Done), [complete()]);
}

#[test]
fn who_waits_without_bound_holds_no_epoch() {
    let mut bench = bench(BlockSize::MIN, 4);
    bench.volume.set_frozen(true);
    let frozen = bench.begin(Kind::Write { fua: false }, 0, 512);
    let op = op_of(&frozen[0]);
    assert_eq!(frozen, [Action::Ask { op, ask: Ask::Thaw(bench.id()) }]);
    assert!(
        bench.epochs.all_past(bench.epochs.retire()),
        "a parked write holds up the snapshot it waits for"
    );

    bench.volume.set_frozen(false);
    assert!(matches!(bench.reply(op, Reply::Again)[..], [Action::Ask { ask: Ask::Fill(..), .. }]));
    assert!(!bench.epochs.all_past(bench.epochs.retire()), "a running write is waited for");
    assert_eq!(bench.reply(op, Reply::NoSpaceNow), [Action::Ask { op, ask: Ask::AwaitSpace(bench.id()) }]);
    assert!(
        bench.epochs.all_past(bench.epochs.retire()),
        "who waits for space holds up what would free some"
    );
    assert_eq!(bench.reply(op, Reply::Failed(IoError::NoSpace)), [failed(IoError::NoSpace)]);
}

#[test]
fn a_discard_unmaps_the_blocks_that_lie_wholly_inside() {
    let mut bench = bench(BlockSize::MIN, 4);
    assert_eq!(bench.begin(Kind::Discard, 512, BLOCK), [complete()], "no whole block");
    let out = bench.begin(Kind::Discard, 512, 3 * BLOCK);
    let op = op_of(&out[0]);
    assert_eq!(out, [Action::Ask { op, ask: Ask::Unmap(bench.id(), 1..3, 3 * BLOCK + 512) }]);
    assert_eq!(bench.reply(op, Reply::Done), [complete()]);
    // The last block is short, and the request reaches the volume's end.
    let out = bench.begin(Kind::Discard, 3 * BLOCK, BLOCK - 512);
    assert!(matches!(&out[..], [Action::Ask { ask: Ask::Unmap(_, blocks, _), .. }] if *blocks == (3..4)));
    bench.reply(op_of(&out[0]), Reply::Done);
}

#[test]
fn zeroes_unmap_whole_blocks_and_write_the_edges() {
    let mut bench = bench(BlockSize::MIN, 4);
    let zeroes = Kind::WriteZeroes { fua: false, may_unmap: true };
    let out = bench.begin(zeroes, BLOCK + 512, 2 * BLOCK);
    let edge = Action::WriteData {
        op: op_of(&out[0]),
        disk_offset_bytes: 11 * BLOCK + 512,
        length_bytes: BLOCK - 512,
        from: Place::Zeros,
    };
    assert_eq!(out[0], edge);
    assert!(matches!(&out[1], Action::Ask { ask: Ask::Unmap(_, blocks, _), .. } if *blocks == (2..3)));
    assert_eq!(out.len(), 2, "the edge in block 3 is a hole and reads zeros as it is");
    assert!(bench.io_done(op_of(&out[0]), Ok(())).is_empty());
    assert_eq!(bench.reply(op_of(&out[1]), Reply::Done), [complete()]);

    let mapped = Kind::WriteZeroes { fua: false, may_unmap: false };
    let out = bench.begin(mapped, 0, 512);
    assert!(
        matches!(out[..], [Action::Ask { ask: Ask::Fill(..), .. }]),
        "a hole must be mapped when asked for"
    );
    let op = op_of(&out[0]);
    let out = bench.reply(op, Reply::Fill { target: DataBlock(20), source: FillSource::Zeros });
    assert!(matches!(out[..], [Action::WriteData { length_bytes: BLOCK, from: Place::Zeros, .. }]));
    bench.io_done(op, Ok(()));
    bench.reply(op, Reply::Done);
}

#[test]
fn extents_join_neighbours_in_the_same_state() {
    let mut bench = bench(BlockSize::MIN, 4);
    let out = bench.begin(Kind::Extents, 512, 4 * BLOCK - 1024);
    let extent = |length_bytes, state| Extent { length_bytes, state };
    let extents = vec![
        extent(BLOCK - 512, ExtentState::Hole),
        extent(BLOCK, ExtentState::Exclusive),
        extent(BLOCK, ExtentState::Shared),
        extent(BLOCK - 512, ExtentState::Hole),
    ];
    assert_eq!(out, [Action::Extents { tag: Tag(1), extents }, complete()]);
}

/// Every fill writes each byte of its block once, the guest's bytes from the request, whatever the sizes.
#[test]
fn fills_cover_the_block_once() {
    let sizes = [1, 4, 16, 64].map(|n| BlockSize::from_bytes(n * BLOCK).expect("a block size"));
    for (size, source) in sizes.into_iter().flat_map(|size| {
        [FillSource::Zeros, FillSource::Block(DataBlock(12)), FillSource::Nothing]
            .map(|source| (size, source))
    }) {
        let bytes = size.bytes();
        let ranges = [
            0..512,
            0..bytes,
            512..bytes,
            4096..bytes - 512,
            bytes - 512..bytes,
            bytes / 2..bytes / 2 + 4096,
        ];
        for range in ranges {
            assert_eq!(
                written_by_fill(size, source, range.clone()),
                expected(size, source, range.clone()),
                "{range:?}"
            );
        }
    }
}

/// For each sector of the block: how often it was written, and whether the last time with the guest's bytes.
type Sectors = Vec<(u32, bool)>;

fn expected(size: BlockSize, source: FillSource, guest: Range<u64>) -> Sectors {
    let sector = |at: u64| match guest.contains(&(at * 512)) {
        true => (1, true),
        false => (u32::from(source != FillSource::Nothing), false),
    };
    (0..u64::from(size.sectors())).map(sector).collect()
}

fn written_by_fill(size: BlockSize, source: FillSource, guest: Range<u64>) -> Sectors {
    let mut bench = bench(size, 4);
    let mut sectors = vec![(0, false); size.sectors() as usize];
    let mut patched = 0..0;
    let out = bench.begin(Kind::Write { fua: false }, guest.start, guest.end - guest.start);
    let op = op_of(&out[0]);
    let mut out = bench.reply(op, Reply::Fill { target: DataBlock(20), source });
    let base = 20 * size.bytes();
    loop {
        let mut next = Vec::new();
        for action in out {
            match action {
                Action::ZeroScratch { .. } => patched = 0..0,
                Action::ReadData { length_bytes, .. } => {
                    assert!(length_bytes <= CHUNK_BYTES);
                    patched = 0..0;
                    next.extend(bench.io_done(op, Ok(())));
                }
                Action::PatchScratch { at_bytes, length_bytes, .. } => {
                    patched = at_bytes..at_bytes + length_bytes
                }
                Action::WriteData { disk_offset_bytes, length_bytes, from, .. } => {
                    let begin = disk_offset_bytes - base;
                    for at in (0..length_bytes).step_by(512) {
                        let guests = match from {
                            Place::Request(_, first) => {
                                assert_eq!(
                                    first + at,
                                    begin + at - guest.start,
                                    "the right bytes of the request"
                                );
                                true
                            }
                            Place::Scratch(_) => patched.contains(&at),
                            Place::Zeros => false,
                        };
                        let sector = &mut sectors[((begin + at) / 512) as usize];
                        *sector = (sector.0 + 1, guests);
                    }
                    next.extend(bench.io_done(op, Ok(())));
                }
                Action::Ask { ask: Ask::Publish(..), .. } => next.extend(bench.reply(op, Reply::Done)),
                Action::DropScratch { .. } => {}
                Action::Complete { result: Ok(()), .. } => return sectors,
                other => panic!("{other:?}"),
            }
        }
        out = next;
    }
}

#[test]
fn a_hole_reads_the_origin_up_to_its_end_and_zeros_beyond() {
    let (mut bench, origin) = bench_over(3 * BLOCK + 1024);
    let out = bench.begin(Kind::Read, 3 * BLOCK + 512, BLOCK);
    let op = op_of(&out[1]);
    let zeros = |offset_bytes, length_bytes| Action::ZeroRequest { tag: Tag(1), offset_bytes, length_bytes };
    let read = Action::ReadOrigin {
        op,
        origin,
        offset_bytes: 3 * BLOCK + 512,
        length_bytes: 512,
        into: Place::Request(Tag(1), 0),
    };
    assert_eq!(out, [zeros(512, BLOCK - 1024), read, zeros(BLOCK - 512, 512)]);
    assert_eq!(bench.io_done(op, Ok(())), [complete()]);
    let out = bench.begin(Kind::Read, 0, 512);
    assert_eq!(bench.io_done(op_of(&out[0]), Err(IoError::Io)), [failed(IoError::Io)]);
    let out = bench.begin(Kind::Read, BLOCK, 512);
    assert!(matches!(out[..], [Action::ReadData { .. }]), "what is mapped is the volume's own");
    bench.io_done(op_of(&out[0]), Ok(()));
}

#[test]
fn the_first_write_to_a_block_copies_the_origin_and_zeros_the_tail_beyond_its_end() {
    let (mut bench, origin) = bench_over(3 * BLOCK + 1024);
    let fill = Reply::Fill { target: DataBlock(20), source: FillSource::Origin };
    let out = bench.begin(Kind::Write { fua: false }, 3 * BLOCK + 512, 512);
    let op = op_of(&out[0]);
    assert_eq!(out, [Action::Ask { op, ask: Ask::Fill(bench.id(), VirtualBlock(3)) }]);
    let into = Place::Scratch(op);
    let read = Action::ReadOrigin { op, origin, offset_bytes: 3 * BLOCK, length_bytes: 1024, into };
    assert_eq!(bench.reply(op, fill.clone()), [Action::ZeroScratch { op, length_bytes: BLOCK }, read]);
    let from = Place::Request(Tag(1), 0);
    let patch = Action::PatchScratch { op, at_bytes: 512, length_bytes: 512, from };
    let write = Action::WriteData { op, disk_offset_bytes: 20 * BLOCK, length_bytes: BLOCK, from: into };
    assert_eq!(bench.io_done(op, Ok(())), [patch, write]);
    bench.io_done(op, Ok(()));
    assert_eq!(bench.reply(op, Reply::Done), [Action::DropScratch { op }, complete()]);
    // A whole block needs nothing of it.
    let out = bench.begin(Kind::Write { fua: false }, 0, BLOCK);
    let op = op_of(&out[0]);
    let write = Action::WriteData { op, disk_offset_bytes: 20 * BLOCK, length_bytes: BLOCK, from };
    assert_eq!(bench.reply(op, fill.clone()), [write]);
    bench.io_done(op, Ok(()));
    bench.reply(op, Reply::Done);
    // And an origin that cannot be read maps nothing.
    let out = bench.begin(Kind::Write { fua: false }, 0, 512);
    let op = op_of(&out[0]);
    bench.reply(op, fill);
    let abandon = Ask::Abandon(bench.id(), VirtualBlock(0), DataBlock(20));
    assert_eq!(bench.io_done(op, Err(IoError::Io)), [Action::Ask { op, ask: abandon }]);
    assert_eq!(bench.reply(op, Reply::Done), [Action::DropScratch { op }, failed(IoError::Io)]);
}

#[test]
fn a_chunk_past_the_origin_s_end_is_zeros() {
    let size = BlockSize::from_bytes(8 * BLOCK).expect("a block size");
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(512)));
    let mut bench = bench_before(Behind::Origin(origin), size, 4);
    let out = bench.begin(Kind::Write { fua: false }, CHUNK_BYTES + 512, 512);
    let op = op_of(&out[0]);
    let out = bench.reply(op, Reply::Fill { target: DataBlock(0), source: FillSource::Origin });
    assert!(matches!(out[1], Action::ReadOrigin { length_bytes: 512, .. }), "{out:?}");
    bench.io_done(op, Ok(()));
    let out = bench.io_done(op, Ok(()));
    assert_eq!(out[0], Action::ZeroScratch { op, length_bytes: CHUNK_BYTES });
    assert!(matches!(out[1], Action::PatchScratch { at_bytes: 512, .. }));
    assert!(matches!(out[2], Action::WriteData { disk_offset_bytes: CHUNK_BYTES, .. }));
    bench.io_done(op, Ok(()));
    bench.reply(op, Reply::Done);
}

#[test]
fn zeros_are_written_where_the_origin_would_show_and_unmapped_elsewhere() {
    let (mut bench, _) = bench_over(3 * BLOCK + 1024);
    let zeroes = Kind::WriteZeroes { fua: false, may_unmap: true };
    let out = bench.begin(zeroes, 0, 6 * BLOCK - 512);
    // Blocks 0 to 3, of which 1 is the volume's own, and then what no origin is behind.
    let asks: Vec<Ask> = out
        .iter()
        .filter_map(|action| if let Action::Ask { ask, .. } = action { Some(ask.clone()) } else { None })
        .collect();
    let expected = [0, 2, 3].map(|block| fill_of(&bench, block));
    assert_eq!(asks, [&expected[..], &[Ask::Unmap(bench.id(), 4..5, 6 * BLOCK - 512)]].concat());
    assert!(matches!(out[1], Action::WriteData { from: Place::Zeros, length_bytes: BLOCK, .. }));
    let ops: Vec<OpId> = out.iter().map(op_of).collect();
    bench.io_done(ops[1], Ok(()));
    bench.reply(ops[4], Reply::Done);
    for op in [ops[0], ops[2], ops[3]] {
        let out = bench.reply(op, Reply::Fill { target: DataBlock(20), source: FillSource::Origin });
        assert!(matches!(out[..], [Action::WriteData { from: Place::Zeros, length_bytes: BLOCK, .. }]));
        bench.io_done(op, Ok(()));
        bench.reply(op, Reply::Done);
    }
    assert!(bench.lane.is_idle());
    // Parts of blocks: past the end of the origin a hole reads zeros as it is.
    assert_eq!(bench.begin(zeroes, 3 * BLOCK + 1024, 512), [complete()]);
    let out = bench.begin(zeroes, 3 * BLOCK + 512, 1024);
    assert_eq!(out, [Action::Ask { op: op_of(&out[0]), ask: fill_of(&bench, 3) }]);
    bench.reply(op_of(&out[0]), Reply::Failed(IoError::NoSpace));
}

fn fill_of(bench: &Bench, block: u64) -> Ask {
    Ask::Fill(bench.id(), VirtualBlock(block))
}

#[test]
fn a_description_tells_the_origin_from_holes() {
    let (mut bench, _) = bench_over(3 * BLOCK + 1024);
    let out = bench.begin(Kind::Extents, 0, 6 * BLOCK - 512);
    let extent = |length_bytes, state| Extent { length_bytes, state };
    let extents = vec![
        extent(BLOCK, ExtentState::Origin),
        extent(BLOCK, ExtentState::Exclusive),
        extent(BLOCK, ExtentState::Shared),
        extent(1024, ExtentState::Origin),
        extent(3 * BLOCK - 1024 - 512, ExtentState::Hole),
    ];
    assert_eq!(out, [Action::Extents { tag: Tag(1), extents }, complete()]);
}

#[test]
fn who_has_left_waits_for_nothing_and_writes_nothing_anew() {
    for woken_first in [false, true] {
        let mut bench = bench(BlockSize::MIN, 4); // block 0 is a hole
        let op = op_of(&bench.begin(Kind::Write { fua: false }, 0, 512)[0]);
        assert_eq!(
            bench.reply(op, Reply::NoSpaceNow),
            [Action::Ask { op, ask: Ask::AwaitSpace(bench.id()) }]
        );
        let mut out = Vec::new();
        bench.lane.hang_up(&mut out);
        assert_eq!(out, [Action::GiveUp { op }]);
        let answer = if woken_first { Reply::Again } else { Reply::Failed(IoError::Gone) };
        assert_eq!(bench.reply(op, answer), [failed(IoError::Gone)]);
        assert!(bench.lane.is_idle());
        // What it had sent before it left is begun, and does not wait.
        let op = op_of(&bench.begin(Kind::Write { fua: false }, 0, 512)[0]);
        assert_eq!(bench.reply(op, Reply::NoSpaceNow), [failed(IoError::Gone)]);
    }
}

/// Block 1 holds its second unit; the rest shows the origin, which ends 512 bytes into the third.
fn bench_with_partial(behind: Behind) -> Bench {
    let bench = bench_before(behind, BlockSize::MIN, 6);
    let partial = Partial { base: Base::Origin(VirtualBlock(1)), units: 0b10 };
    bench.volume.partials().add(DataBlock(11), partial);
    bench
}

fn units_of_partial(bench: &Bench) -> Option<u64> {
    bench.volume.partials().get(DataBlock(11)).map(|partial| partial.units)
}

const PARTIAL_ORIGIN_BYTES: u64 = BLOCK + 2 * 4096 + 512;

#[test]
fn what_is_missing_of_a_partial_block_is_the_origin_and_zeros_past_its_end() {
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(PARTIAL_ORIGIN_BYTES)));
    let mut bench = bench_with_partial(Behind::Origin(origin.clone()));
    let out = bench.begin(Kind::Read, BLOCK, BLOCK);
    let op = op_of(&out[0]);
    let into = |at| Place::Request(Tag(1), at);
    let from_origin = |offset_bytes, length_bytes, into| Action::ReadOrigin {
        op,
        origin: origin.clone(),
        offset_bytes,
        length_bytes,
        into,
    };
    assert_eq!(out, [from_origin(BLOCK, 4096, into(0))]);
    let read =
        Action::ReadData { op, disk_offset_bytes: 11 * BLOCK + 4096, length_bytes: 4096, into: into(4096) };
    assert_eq!(bench.io_done(op, Ok(())), [read]);
    let zeros = |offset_bytes, length_bytes| Action::ZeroRequest { tag: Tag(1), offset_bytes, length_bytes };
    let tail = [zeros(8192 + 512, BLOCK - 8192 - 512), from_origin(BLOCK + 8192, 512, into(8192))];
    assert_eq!(bench.io_done(op, Ok(())), tail);
    assert_eq!(bench.io_done(op, Ok(())), [complete()]);
    assert_eq!(bench.begin(Kind::Read, BLOCK + 16384, 512), [zeros(0, 512), complete()]);
    let op = op_of(&bench.begin(Kind::Read, BLOCK, 512)[0]);
    assert_eq!(bench.io_done(op, Err(IoError::Io)), [failed(IoError::Io)]);
}

#[test]
fn a_unit_across_the_origin_s_end_is_written_as_a_whole() {
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(PARTIAL_ORIGIN_BYTES)));
    let mut bench = bench_with_partial(Behind::Origin(origin.clone()));
    let out = bench.begin(Kind::Write { fua: false }, BLOCK + 8192 + 1024, 512);
    let op = op_of(&out[1]);
    let into = Place::Scratch(op);
    let read = Action::ReadOrigin { op, origin, offset_bytes: BLOCK + 8192, length_bytes: 512, into };
    assert_eq!(out, [Action::ZeroScratch { op, length_bytes: 4096 }, read]);
    let from = Place::Request(Tag(1), 0);
    let patch = Action::PatchScratch { op, at_bytes: 1024, length_bytes: 512, from };
    let disk_offset_bytes = 11 * BLOCK + 8192;
    let write = Action::WriteData { op, disk_offset_bytes, length_bytes: 4096, from: into };
    assert_eq!(bench.io_done(op, Ok(())), [patch, write]);
    assert_eq!(bench.io_done(op, Ok(())), [Action::DropScratch { op }, complete()]);
    assert_eq!(units_of_partial(&bench), Some(0b110));
}

#[test]
fn a_block_is_settled_from_the_origin_that_the_keeper_names_and_stays_as_it_is_without() {
    let origin = Origin::new(Arc::new(MemoryDisk::zeroed(PARTIAL_ORIGIN_BYTES)));
    // As the keeper's own for settling, the volume has no origin.
    let mut bench = bench_with_partial(Behind::Zeros);
    let told = Reply::Settle { block: DataBlock(11), origin: Some(origin.clone()) };
    for works in [false, true] {
        let out = bench.begin(Kind::Settle, 0, 0);
        let op = op_of(&out[0]);
        assert_eq!(out, [Action::Ask { op, ask: Ask::Settle }]);
        let into = Place::Scratch(op);
        let origin = origin.clone();
        let read = Action::ReadOrigin { op, origin, offset_bytes: BLOCK, length_bytes: 4096, into };
        assert_eq!(bench.reply(op, told.clone()), [read]);
        let end = [Action::DropScratch { op }, complete()];
        let partials = bench.volume.partials();
        if !works {
            let ended = bench.io_done(op, Err(IoError::Io));
            assert_eq!(ended, end, "the pool is not to blame");
            let partials = bench.volume.partials();
            assert_eq!((partials.unsettled(0, 10), partials.has_unsettled()), ((None, 0), false));
            partials.try_again();
            assert_eq!((partials.unsettled(0, 10).0, partials.has_unsettled()), (Some(DataBlock(11)), true));
            continue;
        }
        assert!(partials.is_claimed(DataBlock(11), 0b1));
        let write = Action::WriteData { op, disk_offset_bytes: 11 * BLOCK, length_bytes: 4096, from: into };
        assert_eq!(bench.io_done(op, Ok(())), [write]);
        assert_eq!(bench.io_done(op, Ok(())), end);
    }
    assert_eq!(units_of_partial(&bench), Some(0b11));
}

/// Its base cannot be read, or it cannot be written itself: others are settled meanwhile.
#[test]
fn a_block_that_fails_to_be_settled_is_left_alone_for_now() {
    let mut bench = bench_before(Behind::Zeros, BlockSize::MIN, 6);
    let partial = Partial { base: Base::Block(DataBlock(5)), units: !0b10 & BlockSize::MIN.all_units() };
    bench.volume.partials().add(DataBlock(11), partial);
    for can_be_read in [false, true] {
        let op = op_of(&bench.begin(Kind::Settle, 0, 0)[0]);
        let read = bench.reply(op, Reply::Settle { block: DataBlock(11), origin: None });
        assert!(
            matches!(read[..], [Action::ReadData { disk_offset_bytes, .. }] if disk_offset_bytes == 5 * BLOCK + 4096)
        );
        if can_be_read {
            let write = bench.io_done(op, Ok(()));
            assert!(matches!(write[..], [Action::WriteData { .. }]), "{write:?}");
        }
        assert_eq!(bench.io_done(op, Err(IoError::Io)), [Action::DropScratch { op }, complete()]);
        let partials = bench.volume.partials();
        assert_eq!((partials.has_unsettled(), partials.stuck()), (false, Some(DataBlock(11))));
        partials.try_again();
        assert!(partials.has_unsettled(), "it holds no claim");
    }
}

#[test]
fn without_its_origin_a_partial_block_shows_only_what_it_holds() {
    let mut bench = bench_with_partial(Behind::Zeros);
    assert_eq!(bench.begin(Kind::Read, BLOCK, 512), [failed(IoError::Io)]);
    let out = bench.begin(Kind::Write { fua: false }, BLOCK, 512);
    assert!(matches!(out[0], Action::DropScratch { .. }) && out[1..] == [failed(IoError::Io)], "{out:?}");
    assert!(!bench.volume.partials().is_claimed(DataBlock(11), 0b1));
    let op = op_of(&bench.begin(Kind::Read, BLOCK + 4096, 512)[0]);
    assert_eq!(bench.io_done(op, Ok(())), [complete()]);
    // A whole unit needs nothing of it.
    let op = op_of(&bench.begin(Kind::Write { fua: false }, BLOCK, 4096)[0]);
    assert_eq!(bench.io_done(op, Ok(())), [Action::DropScratch { op }, complete()]);
    assert_eq!(units_of_partial(&bench), Some(0b11));
}
