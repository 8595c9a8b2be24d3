//! What lies under every request, without a client: map lookup, first writes, and ten million random mappings brought into the trees.
//!
//!     cargo bench --bench in_process [-- lookups|first-writes|insertions]     (UTHIN_BENCH_MAPPINGS=1000000 for a shorter run)

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uthin::disk::{FileDisk, MemoryDisk, flush_data};
use uthin::engine::{
    Action, Asker, Command, IdStep, Keeper, KeeperOptions, Kind, Lane, LaneId, Lookup, MapTable, Outbox,
    Request, SmallWrites, Tag, VolumeLease,
};
use uthin::error::Result;
use uthin::metadata::{Access, Geometry, Metadata};
use uthin::units::{BlockSize, DataBlock, Mapping, SnapTime, TransactionId, VirtualBlock, VolumeId};

/// Mappings between two commits: about a second's worth of a busy pool.
const BATCH: u64 = 100_000;
/// Blocks of a volume of 1 TiB.
const TABLE_BLOCKS: u64 = 1 << 24;

/// The transaction id stays as it is.
const STEP: IdStep = IdStep { from: TransactionId(0), to: TransactionId(0) };

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(limit)) >> 64) as u64
    }
}

fn main() -> Result<()> {
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name| only.is_empty() || only.iter().any(|word| word == name);
    if is_wanted("lookups") {
        lookups();
    }
    if is_wanted("first-writes") {
        first_writes()?;
    }
    if is_wanted("insertions") {
        let mappings = std::env::var("UTHIN_BENCH_MAPPINGS").ok().and_then(|text| text.parse().ok());
        insertions(mappings.unwrap_or(10_000_000))?;
    }
    Ok(())
}

fn lookups() {
    let table = MapTable::new(Arc::default());
    for page in 0..TABLE_BLOCKS / 512 {
        let range = page * 512..(page + 1) * 512;
        let mapping = |block| (VirtualBlock(block), Mapping { block: DataBlock(block), time: SnapTime(0) });
        table.load_page(range.clone(), &range.map(mapping).collect::<Vec<_>>());
    }
    let mut random = Random(42);
    for (name, blocks) in [("one page", 512), ("1 TiB", TABLE_BLOCKS)] {
        let count = 20_000_000;
        let begin = Instant::now();
        for _ in 0..count {
            let found = table.get(VirtualBlock(random.below(blocks)));
            assert!(matches!(black_box(found), Lookup::Mapped(_)));
        }
        println!("map lookup, random over {name}: {:.1} ns", per(begin.elapsed(), count));
    }
}

fn per(elapsed: Duration, count: u64) -> f64 {
    elapsed.as_secs_f64() * 1e9 / count as f64
}

/// What lane and keeper do for first writes of 4 KiB: to holes, and to blocks that a snapshot shares; and for overwrites. No byte is moved.
fn first_writes() -> Result<()> {
    const BLOCKS: u64 = 1 << 15;
    for small_writes in [SmallWrites::Copy, SmallWrites::Partial] {
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 4 * BLOCKS };
        let metadata = Metadata::format(MemoryDisk::zeroed(256 << 20), geometry)?;
        let data = MemoryDisk::zeroed(geometry.data_blocks * geometry.block_size.bytes());
        let keeper = Keeper::new(metadata, data, KeeperOptions { small_writes, ..KeeperOptions::default() })?;
        let mut pool = InProcess::new(keeper);
        let size_bytes = BLOCKS * BlockSize::MIN.bytes();
        let id = |number| VolumeId::new(number).expect("a small number");
        pool.command(Command::CreateVolume { volume: id(0), size_bytes, origin: None, step: STEP })?;
        let volume =
            pool.keeper.volume(id(0)).and_then(|volume| volume.open().ok()).expect("it was just made");
        let mut random = Random(42);
        for what in ["to a hole", "in place", "to a shared block"] {
            if what == "to a shared block" {
                let pairs = vec![(id(0), id(1))];
                pool.command(Command::Snapshot { pairs, step: STEP })?;
            }
            let mut order: Vec<u64> = (0..BLOCKS).collect();
            for last in (1..order.len()).rev() {
                order.swap(last, random.below(last as u64 + 1) as usize);
            }
            let begin = Instant::now();
            for block in order {
                pool.write(&volume, block * BlockSize::MIN.bytes());
            }
            let nanos = per(begin.elapsed(), BLOCKS);
            println!("4 KiB {what}, {small_writes:?}: {nanos:.0} ns of lane and keeper");
        }
    }
    Ok(())
}

/// A pool without threads and disks.
struct InProcess {
    keeper: Keeper<MemoryDisk, MemoryDisk>,
    lane: Lane,
    out: Outbox,
    actions: Vec<Action>,
    /// Those that are being done.
    begun: Vec<Action>,
}

impl InProcess {
    fn new(keeper: Keeper<MemoryDisk, MemoryDisk>) -> Self {
        let lane = Lane::new(LaneId(0), keeper.epochs(), keeper.block_size());
        InProcess { keeper, lane, out: Outbox::default(), actions: Vec::new(), begun: Vec::new() }
    }

    fn command(&mut self, command: Command) -> Result<()> {
        self.keeper.command(1, command, &mut self.out);
        while self.out.answers.is_empty() {
            self.keeper.settle(&mut self.out);
        }
        self.out.answers.remove(0).1.map(drop)
    }

    fn write(&mut self, volume: &VolumeLease, offset_bytes: u64) {
        let kind = Kind::Write { fua: false };
        let request =
            Request { tag: Tag(0), volume: volume.volume().clone(), kind, offset_bytes, length_bytes: 4096 };
        self.lane.begin(request, &mut self.actions);
        while !self.actions.is_empty() {
            std::mem::swap(&mut self.actions, &mut self.begun);
            for action in self.begun.drain(..) {
                match action {
                    Action::ReadData { op, .. } | Action::WriteData { op, .. } => {
                        self.lane.io_done(op, Ok(()), &mut self.actions);
                    }
                    Action::Ask { op, ask } => {
                        self.keeper.handle(Asker::Lane(LaneId(0), op), ask, &mut self.out);
                        for (asker, reply) in self.out.replies.drain(..) {
                            let Asker::Lane(_, op) = asker else { continue };
                            self.lane.reply(op, reply, &mut self.actions);
                        }
                    }
                    Action::Complete { result, .. } => result.expect("memory does not fail"),
                    _ => {}
                }
            }
        }
    }
}

fn insertions(mappings: u64) -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let disk = FileDisk::create(&folder.path().join("metadata"), 1 << 30)?;
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 2 * mappings };
    let mut metadata = Metadata::format(disk, geometry)?;
    let volume = VolumeId::new(0).expect("a small number");
    metadata.create_volume(volume)?;
    let mut random = Random(7);
    let data = MemoryDisk::zeroed(0);
    let begin = Instant::now();
    let (mut in_commits, mut made) = (Duration::ZERO, 0);
    while made < mappings {
        let count = BATCH.min(mappings - made);
        for _ in 0..count {
            let block = metadata.reserve_block(None)?;
            metadata.map(volume, VirtualBlock(random.below(1 << 34)), block);
        }
        made += count;
        let commit = Instant::now();
        for freed in metadata.commit(flush_data(&data).expect("memory does not fail"))? {
            metadata.make_reusable(freed);
        }
        in_commits += commit.elapsed();
    }
    let usage = metadata.usage();
    println!(
        "{mappings} random mappings in batches of {BATCH}, each committed: {:.1} s ({:.1} s in commits), {} metadata blocks, peak memory {} MiB",
        begin.elapsed().as_secs_f64(),
        in_commits.as_secs_f64(),
        usage.metadata_allocated,
        peak_memory_bytes() >> 20,
    );
    drop(metadata);
    let begin = Instant::now();
    let disk = FileDisk::open(&folder.path().join("metadata"), uthin::disk::OpenMode::ReadWrite)?;
    let mut metadata = Metadata::open(disk, Access::ReadWrite)?;
    println!("opened again in {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let begin = Instant::now();
    metadata.snapshot(volume, VolumeId::new(1).expect("a small number"))?;
    metadata.commit(flush_data(&data).expect("memory does not fail"))?;
    println!("snapshot and commit: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// The most memory that this process has had, from `/proc`.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}
