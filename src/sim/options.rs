//! What decides how a world goes, and what a run of it did.

use crate::engine::{PAGE_BYTES, SmallWrites};
use crate::metadata::Scarce;

/// One seed in so many has a large volume: such a world takes as long as dozens of little ones.
const LARGE_ONE_IN: u64 = 32;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Decides everything.
    pub seed: u64,
    /// Events to step through.
    pub steps: u64,
    /// Blocks of the data disk: few, so that they are reused soon.
    pub data_blocks: u64,
    /// Blocks of a volume.
    pub volume_blocks: u64,
    /// Whether volumes may end inside a block.
    pub odd_sizes: bool,
    /// Blocks of a volume that is there at first, every one of them mapped; 0: there is none.
    pub large_volume_blocks: u64,
    /// Tree nodes that one step of a deletion may touch.
    pub delete_step_nodes: usize,
    /// Mappings that one step of a discard may remove.
    pub unmap_step_mappings: u64,
    /// The most volumes at a time.
    pub volumes: usize,
    /// Lanes.
    pub lanes: u16,
    /// One command in about so many steps, a multiple of 20, unless one is under way.
    pub steps_between_commands: u64,
    /// One power cut in about so many steps.
    pub steps_between_power_cuts: u64,
    /// One read or write of the data disk in about so many fails, for once; 0: none.
    pub transfers_between_faults: u64,
    /// One of the two disks fails an operation, and perhaps one more soon after, in about so many steps; 0: none.
    pub steps_between_faults: u64,
    /// Whether it writes down what happens.
    pub tells: bool,
    /// Bytes of map tables in memory.
    pub map_bytes: u64,
    /// What the first write to a block does with its rest; where it may leave it, that changes at times.
    pub small_writes: SmallWrites,
    /// The most partial blocks.
    pub partial_blocks_limit: u64,
    /// Whether the pool keeps a journal, and in how many pages. Then its process is killed, too.
    pub journal_pages: Option<u64>,
    /// The one mishap of a world without chance in such things.
    pub mishap: Option<Mishap>,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mishap {
    /// The power goes after so many writes and flushes of the metadata disk.
    MetadataPower(u64),
    /// The power goes after so many writes and flushes of the data disk.
    DataPower(u64),
    /// One read, write or flush of the metadata disk fails, after so many.
    MetadataFault(u64),
    /// One read, write or flush of the data disk fails, after so many.
    DataFault(u64),
    /// One read, write or flush of the metadata disk fails, after so many, and after so many more another.
    MetadataFaults(u64, u64),
    /// What is read of the metadata disk has one wrong bit, after so many reads, writes and flushes.
    MetadataFlip(u64),
    /// What is written to the metadata disk lands beside its place, after so many reads, writes and flushes.
    MetadataStray(u64),
    /// The power goes after so many writes and flushes of the journal.
    JournalPower(u64),
    /// One read, write or flush of the journal fails, after so many.
    JournalFault(u64),
    /// The process is killed in this step.
    Kill(u64),
    /// Some in a row who ask for that go without, after so many.
    Scarcity(Scarce, u64),
}

impl Mishap {
    /// How many go without in a row: enough to find out that waiting does not help.
    pub(super) fn scarce_for(what: Scarce) -> u64 {
        match what {
            Scarce::DataBlock => 4,
            Scarce::MetadataSpace => 12,
            Scarce::MetadataBlock => 1,
        }
    }
}

impl WorldOptions {
    /// A crowded little world, or a large one.
    pub fn of(seed: u64) -> Self {
        if seed.is_multiple_of(LARGE_ONE_IN) { Self::large(seed) } else { Self::crowded(seed) }
    }

    /// A world with a volume whose map has several leaves, and steps that are as short as they can be. Power cuts are many, so that
    /// one comes in the middle of a deletion.
    fn large(seed: u64) -> Self {
        WorldOptions {
            steps: 600,
            data_blocks: 440,
            large_volume_blocks: 400,
            steps_between_commands: 20,
            unmap_step_mappings: 1 + seed / LARGE_ONE_IN % 3 * 40,
            volumes: 3,
            steps_between_power_cuts: 150,
            ..WorldOptions::crowded(seed)
        }
    }

    /// A crowded little world.
    pub fn crowded(seed: u64) -> Self {
        WorldOptions {
            seed,
            steps: 3000,
            data_blocks: 20,
            volume_blocks: 6,
            odd_sizes: seed / 7 % 4 == 1,
            large_volume_blocks: 0,
            delete_step_nodes: 1,
            unmap_step_mappings: [1, 2, 1000][(seed / 2 % 3) as usize],
            volumes: 5,
            lanes: 3,
            steps_between_commands: 80,
            steps_between_power_cuts: 700,
            transfers_between_faults: if seed.is_multiple_of(4) { 60 } else { 0 },
            steps_between_faults: if seed % 5 == 1 { 300 } else { 0 },
            tells: false,
            // A page, or two, or all that there are.
            map_bytes: PAGE_BYTES * [1, 2, 100][(seed % 3) as usize],
            small_writes: if (seed / 3).is_multiple_of(2) { SmallWrites::Partial } else { SmallWrites::Copy },
            partial_blocks_limit: [2, 8, u64::MAX, u64::MAX][(seed / 11 % 4) as usize],
            journal_pages: has_journal(seed).then(|| [1, 2, 8, 40][(seed / 5 % 4) as usize]),
            mishap: None,
        }
    }

    /// Whether a read or a write of the data disk, or of an origin, may fail.
    pub fn data_disk_fails(&self) -> bool {
        self.transfers_between_faults > 0
            || self.steps_between_faults > 0
            || matches!(self.mishap, Some(Mishap::DataFault(_)))
    }

    /// A short script in which nothing goes wrong but, perhaps, one thing.
    pub fn small(seed: u64, mishap: Option<Mishap>) -> Self {
        WorldOptions {
            steps: 500,
            steps_between_power_cuts: 1 << 40,
            transfers_between_faults: 0,
            steps_between_faults: 0,
            mishap,
            ..WorldOptions::crowded(seed)
        }
    }
}

/// Half of the seeds, whatever else follows from their numbers.
fn has_journal(seed: u64) -> bool {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1
}

/// What a run did.
#[derive(Clone, Copy, Default, Debug)]
pub struct Outcome {
    /// Requests completed.
    pub requests: u64,
    /// Of these, refused for lack of space.
    pub no_space: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Flushes begun beside everything else.
    pub flushes_beside: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Volumes rolled back.
    pub roll_backs: u64,
    /// Data blocks added to pools.
    pub grown_blocks: u64,
    /// Clients that left with requests under way.
    pub clients_left: u64,
    /// Requests that were not done because of that.
    pub abandoned: u64,
    /// Volumes that became larger, and smaller.
    pub enlarged: u64,
    /// See there.
    pub shrunk: u64,
    /// Times that the control plane unmapped blocks.
    pub unmapped: u64,
    /// Volumes deleted.
    pub deletions: u64,
    /// Deletions that took several steps, and those that went on after a power cut.
    pub long_deletions: u64,
    /// See there.
    pub resumed_deletions: u64,
    /// Power cuts survived.
    pub power_cuts: u64,
    /// Times that the process was killed.
    pub kills: u64,
    /// Of these, those after which everything acknowledged had to be there.
    pub strict_kills: u64,
    /// Times that a journal held something when the pool was opened.
    pub replays: u64,
    /// Of these, after a power cut.
    pub power_replays: u64,
    /// Times that opening was cut off itself.
    pub cut_openings: u64,
    /// Journals that failed.
    pub failed_journals: u64,
    /// Reads and writes of the data disk that failed although the power was there.
    pub faults: u64,
    /// Sectors of data disks that went bad.
    pub bad_sectors: u64,
    /// Lives of pools in which a disk failed an operation.
    pub disk_faults: u64,
    /// Operations that failed on top of that.
    pub double_faults: u64,
    /// Times that a pool became read-only.
    pub read_only: u64,
    /// Times that a pool failed.
    pub failed: u64,
    /// Worlds that ended because a write had gone astray, which the checker found.
    pub strays_found: u64,
    /// Times that metadata was checked before it was opened again.
    pub checks: u64,
    /// Options changed while the pool was in use.
    pub configured: u64,
    /// Reads of external origins.
    pub origin_reads: u64,
    /// Blocks that became partial.
    pub partial_fills: u64,
    /// Times that somebody waited for units that another was writing.
    pub unit_waits: u64,
    /// Stretches of partial blocks that were settled.
    pub settled: u64,
    /// Stretches of partial blocks that were read from an external origin.
    pub settled_from_origins: u64,
    /// Times that origins could not be had when a pool was opened.
    pub missing_origins: u64,
    /// Times that settling did not get on.
    pub stuck: u64,
    /// Pools that were settled and closed.
    pub settled_pools: u64,
    /// Times that everything came to rest and was looked at.
    pub rests: u64,
    /// Writes and flushes of the metadata disk and of the data disk, and with the reads.
    pub operations: [u64; 2],
    /// The same with the reads.
    pub operations_and_reads: [u64; 2],
    /// Writes and flushes of the journal, and with the reads.
    pub journal_operations: (u64, u64),
    /// How often data blocks, metadata space and metadata blocks were asked for.
    pub asked: [u64; 3],
}

impl Outcome {
    /// Adds another run's figures.
    pub fn add(&mut self, other: Outcome) {
        self.requests += other.requests;
        self.no_space += other.no_space;
        self.flushes += other.flushes;
        self.flushes_beside += other.flushes_beside;
        self.snapshots += other.snapshots;
        self.roll_backs += other.roll_backs;
        self.grown_blocks += other.grown_blocks;
        self.clients_left += other.clients_left;
        self.abandoned += other.abandoned;
        self.enlarged += other.enlarged;
        self.shrunk += other.shrunk;
        self.unmapped += other.unmapped;
        self.deletions += other.deletions;
        self.long_deletions += other.long_deletions;
        self.resumed_deletions += other.resumed_deletions;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.strict_kills += other.strict_kills;
        self.replays += other.replays;
        self.power_replays += other.power_replays;
        self.cut_openings += other.cut_openings;
        self.failed_journals += other.failed_journals;
        self.faults += other.faults;
        self.bad_sectors += other.bad_sectors;
        self.disk_faults += other.disk_faults;
        self.double_faults += other.double_faults;
        self.read_only += other.read_only;
        self.failed += other.failed;
        self.strays_found += other.strays_found;
        self.checks += other.checks;
        self.configured += other.configured;
        self.origin_reads += other.origin_reads;
        self.partial_fills += other.partial_fills;
        self.unit_waits += other.unit_waits;
        self.settled += other.settled;
        self.settled_from_origins += other.settled_from_origins;
        self.stuck += other.stuck;
        self.missing_origins += other.missing_origins;
        self.settled_pools += other.settled_pools;
        self.rests += other.rests;
        for disk in 0..2 {
            self.operations[disk] += other.operations[disk];
            self.operations_and_reads[disk] += other.operations_and_reads[disk];
        }
    }
}
