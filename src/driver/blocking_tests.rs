//! The inline driver with a real keeper on disks in memory.

use super::*;
use crate::disk::MemoryDisk;
use crate::driver::testing::{BLOCK, id};
use crate::engine::{ExtentState, IdStep, KeeperOptions};
use crate::metadata::{Geometry, Metadata};
use crate::units::{BlockSize, TransactionId};
use proptest::prelude::*;
use std::collections::BTreeSet;

type Inline = Blocking<MemoryDisk, MemoryDisk>;

fn pool(data_blocks: u64, lanes: usize) -> Inline {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
    let metadata = Metadata::format(MemoryDisk::zeroed(8 << 20), geometry).unwrap();
    let data = MemoryDisk::zeroed(data_blocks * BLOCK);
    let options = KeeperOptions { lanes, ..KeeperOptions::default() };
    Blocking::new(Keeper::new(metadata, data.clone(), options).unwrap(), data)
}

fn step(number: u64) -> IdStep {
    IdStep { from: TransactionId(number), to: TransactionId(number + 1) }
}

fn with_volume(data_blocks: u64, lanes: usize, size_bytes: u64) -> (Inline, Arc<Volume>) {
    let mut pool = pool(data_blocks, lanes);
    let create = Command::CreateVolume { volume: id(0), size_bytes, origin: None, step: step(0) };
    assert_eq!(pool.command(create), Ok(Answer::Done));
    let volume = pool.volume(id(0)).unwrap();
    (pool, volume)
}

#[test]
fn does_every_kind_of_request() {
    let (mut pool, volume) = with_volume(16, 1, 8 * BLOCK);
    pool.write(&volume, BLOCK - 512, &[7; 1024]).unwrap();
    let mut read = vec![1; 2048];
    pool.read(&volume, BLOCK - 1024, &mut read).unwrap();
    assert_eq!(read, [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
    let states = |pool: &mut Inline| -> Vec<(u64, ExtentState)> {
        let extents = pool.extents(&volume, 0, 4 * BLOCK).unwrap();
        extents.iter().map(|extent| (extent.length_bytes / BLOCK, extent.state)).collect()
    };
    assert_eq!(states(&mut pool), [(2, ExtentState::Exclusive), (2, ExtentState::Hole)]);
    let pairs = vec![(id(0), id(1))];
    assert_eq!(pool.command(Command::Snapshot { pairs, step: step(1) }), Ok(Answer::Done));
    assert_eq!(states(&mut pool), [(2, ExtentState::Shared), (2, ExtentState::Hole)]);
    pool.request(&volume, Kind::Discard, 0, BLOCK).unwrap();
    pool.request(&volume, Kind::WriteZeroes { fua: true, may_unmap: false }, 3 * BLOCK, BLOCK).unwrap();
    pool.request(&volume, Kind::Flush, 0, 0).unwrap();
    let expected = [
        (1, ExtentState::Hole),
        (1, ExtentState::Shared),
        (1, ExtentState::Hole),
        (1, ExtentState::Exclusive),
    ];
    assert_eq!(states(&mut pool), expected);
    pool.read(&volume, BLOCK - 512, &mut read[..1024]).unwrap();
    assert_eq!(read[..1024], [vec![0; 512], vec![7; 512]].concat());
    pool.run();
    assert_eq!(pool.pending(), 0);
    assert_eq!(pool.volume(id(9)).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_full_pool_refuses_and_goes_on_when_space_is_free() {
    let (mut pool, volume) = with_volume(4, 1, 8 * BLOCK);
    pool.write(&volume, 0, &vec![1; 4 * BLOCK as usize]).unwrap();
    assert_eq!(pool.write(&volume, 5 * BLOCK, &[2; 512]), Err(IoError::NoSpace));
    pool.write(&volume, 512, &[3; 512]).unwrap();
    pool.request(&volume, Kind::Discard, 0, BLOCK).unwrap();
    pool.write(&volume, 5 * BLOCK, &[2; 512]).unwrap();
}

#[test]
fn closing_is_the_end() {
    let (mut pool, volume) = with_volume(4, 1, 8 * BLOCK);
    pool.write(&volume, 0, &[1; 512]).unwrap();
    assert_eq!(pool.command(Command::Close), Ok(Answer::Done));
    assert!(pool.write(&volume, 2 * BLOCK, &[1; 512]).is_err());
}

const SECTORS: usize = 4 * 128;
const LANES: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Begin a write of these sectors, which nobody else is writing.
    Write {
        lane: usize,
        at: usize,
        length: usize,
    },
    Snapshot,
    Flush {
        lane: usize,
    },
    /// Carry out one of the pending steps.
    Step(usize),
    Settle,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let write = (0..LANES, 0..SECTORS, 1_usize..140).prop_map(|(lane, at, length)| Deed::Write {
        lane,
        at,
        length: length.min(SECTORS - at),
    });
    let deed = prop_oneof![
        4 => write,
        1 => Just(Deed::Snapshot),
        1 => (0..LANES).prop_map(|lane| Deed::Flush { lane }),
        12 => any::<usize>().prop_map(Deed::Step),
        3 => Just(Deed::Settle),
    ];
    proptest::collection::vec(deed, 1..150)
}

/// What every sector holds, and what a snapshot may hold.
struct World {
    pool: Inline,
    volume: Arc<Volume>,
    next: u64,
    acknowledged: Vec<u8>,
    /// Writes in flight.
    writes: HashMap<Tag, (Range<usize>, u8)>,
    snapshots: Vec<Snapshot>,
}

struct Snapshot {
    command: u64,
    /// What it held when it was taken.
    taken: Option<Vec<u8>>,
    may_hold: Vec<BTreeSet<u8>>,
}

impl World {
    fn new() -> Self {
        let (pool, volume) = with_volume(64, LANES, (SECTORS * 512) as u64);
        let (writes, snapshots) = (HashMap::new(), Vec::new());
        World { pool, volume, next: 1, acknowledged: vec![0; SECTORS], writes, snapshots }
    }

    fn tag(&mut self) -> Tag {
        self.next += 1;
        Tag(self.next)
    }

    fn write(&mut self, lane: usize, sectors: Range<usize>) {
        if self.writes.values().any(|(other, _)| other.start < sectors.end && sectors.start < other.end) {
            return;
        }
        let tag = self.tag();
        let byte = (tag.0 % 255) as u8 + 1;
        let length_bytes = (sectors.len() * 512) as u64;
        let offset_bytes = (sectors.start * 512) as u64;
        let kind = Kind::Write { fua: false };
        let volume = self.volume.clone();
        for snapshot in self.snapshots.iter_mut().filter(|snapshot| snapshot.taken.is_none()) {
            snapshot.may_hold[sectors.clone()].iter_mut().for_each(|bytes| _ = bytes.insert(byte));
        }
        self.writes.insert(tag, (sectors, byte));
        let request = Request { tag, volume, kind, offset_bytes, length_bytes };
        self.pool.begin(lane, request, vec![byte; length_bytes as usize]);
    }

    fn snapshot(&mut self) {
        if self.snapshots.iter().any(|snapshot| snapshot.taken.is_none()) || self.snapshots.len() == 8 {
            return;
        }
        let number = self.snapshots.len() as u64 + 1;
        let mut may_hold: Vec<BTreeSet<u8>> =
            self.acknowledged.iter().map(|byte| BTreeSet::from([*byte])).collect();
        for (sectors, byte) in self.writes.values() {
            may_hold[sectors.clone()].iter_mut().for_each(|bytes| _ = bytes.insert(*byte));
        }
        let pairs = vec![(id(0), id(number))];
        let command = self.pool.begin_command(Command::Snapshot { pairs, step: step(number) });
        self.snapshots.push(Snapshot { command, taken: None, may_hold });
    }

    /// Takes in what has finished.
    fn look(&mut self) {
        for finished in self.pool.take_finished() {
            assert_eq!(finished.result, Ok(()));
            if let Some((sectors, byte)) = self.writes.remove(&finished.tag) {
                self.acknowledged[sectors].fill(byte);
            }
        }
        for (command, answer) in self.pool.take_answers() {
            assert_eq!(answer, Ok(Answer::Done));
            let index = self.snapshots.iter().position(|snapshot| snapshot.command == command);
            let index = index.expect("only snapshots are commanded");
            let held = self.read_at_once(index as u64 + 1);
            self.snapshots[index].taken = Some(held);
        }
    }

    /// Reads a whole volume while everything else stands still.
    fn read_at_once(&mut self, number: u64) -> Vec<u8> {
        let (tag, volume) = (self.tag(), self.pool.volume(id(number)).unwrap());
        let length_bytes = (SECTORS * 512) as u64;
        let request = Request { tag, volume, kind: Kind::Read, offset_bytes: 0, length_bytes };
        let mut left = self.pool.pending();
        self.pool.begin(0, request, vec![0xa5; SECTORS * 512]);
        // New steps come last.
        while self.pool.pending() > left {
            self.pool.step(self.pool.pending() - 1);
            left = left.min(self.pool.pending());
        }
        let mut finished = self.pool.take_finished();
        let read = finished.pop().filter(|read| read.tag == tag && finished.is_empty());
        read.expect("a read waits for nobody").bytes
    }

    fn check(mut self) {
        self.pool.run();
        self.look();
        assert!(self.writes.is_empty(), "everything finishes");
        let mut bytes = vec![0; SECTORS * 512];
        self.pool.read(&self.volume, 0, &mut bytes).unwrap();
        for (sector, expected) in self.acknowledged.iter().enumerate() {
            assert!(bytes[sector * 512..(sector + 1) * 512].iter().all(|byte| byte == expected));
        }
        for (index, snapshot) in self.snapshots.iter().enumerate() {
            let volume = self.pool.volume(id(index as u64 + 1)).unwrap();
            // A snapshot has its origin's size.
            self.pool.read(&volume, 0, &mut bytes).unwrap();
            let held = snapshot.taken.as_ref().expect("every command is answered");
            assert!(*held == bytes, "snapshot {index} has changed");
            for (sector, may_hold) in snapshot.may_hold.iter().enumerate() {
                let held = &bytes[sector * 512..(sector + 1) * 512];
                let whole = held.iter().all(|byte| *byte == held[0]);
                assert!(
                    whole && may_hold.contains(&held[0]),
                    "snapshot {index}, sector {sector}: {}",
                    held[0]
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order in which reads, writes, questions and answers take effect.
    #[test]
    fn any_order_of_steps_is_right(deeds in deeds()) {
        let mut world = World::new();
        for deed in deeds {
            match deed {
                Deed::Write { lane, at, length } => world.write(lane, at..at + length),
                Deed::Snapshot => world.snapshot(),
                Deed::Flush { lane } => {
                    let (tag, volume) = (world.tag(), world.volume.clone());
                    let request = Request { tag, volume, kind: Kind::Flush, offset_bytes: 0, length_bytes: 0 };
                    world.pool.begin(lane, request, Vec::new());
                }
                Deed::Step(choice) if world.pool.pending() > 0 => {
                    world.pool.step(choice % world.pool.pending());
                }
                Deed::Step(_) => {}
                Deed::Settle => _ = world.pool.settle(),
            }
            world.look();
        }
        world.check();
    }
}
