//! Lanes on real files, with a real keeper on its thread.

use super::*;
use crate::driver::testing::{BLOCK, Bench, Client, id, nobody};
use crate::engine::{Command, ExtentState, Kind, Volume};
use proptest::prelude::*;
use std::time::Duration;
use tempfile::TempDir;

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|index| (index / 512 * 31 + seed * 7 + index % 5) as u8).collect()
}

#[test]
fn reads_what_it_wrote_across_blocks_and_zeros_elsewhere() {
    for parent in ["/dev/shm", "/var/tmp"] {
        let metadata = crate::disk::MemoryDisk::zeroed(8 << 20);
        let bench = Bench::with(metadata, TempDir::new_in(parent).unwrap(), 64, 1);
        bench.create(1, 32 * BLOCK);
        let lease = bench.pool.open_volume(id(1)).unwrap();
        let mut client = bench.client();
        let bytes = pattern(5 * BLOCK, 1);
        client.write(lease.volume(), 3 * BLOCK - 512, &bytes).unwrap();
        let mut expected = vec![0; 12 * BLOCK as usize];
        let begin = 3 * BLOCK as usize - 512;
        expected[begin..begin + bytes.len()].copy_from_slice(&bytes);
        assert!(client.read(lease.volume(), 0, 12 * BLOCK).unwrap() == expected);
        assert_eq!(client.read(lease.volume(), 3 * BLOCK, 512).unwrap(), bytes[512..1024]);
        client.end();
        bench.pool.close().unwrap();
    }
}

#[test]
fn neighbours_in_volume_and_on_disk_move_in_one_operation() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    // Filled in order, so the blocks are neighbours on the disk as well.
    for block in 0..16 {
        client.write(lease.volume(), block * BLOCK, &pattern(BLOCK, block)).unwrap();
    }
    client.begin(lease.volume(), Kind::Read, 512, 16 * BLOCK - 512, Some(&vec![0; 16 * BLOCK as usize]));
    let operations = client.lane.transfers.in_flight();
    let read = client.finish_all().remove(0);
    assert_eq!(operations, 1);
    let expected: Vec<u8> = (0..16).flat_map(|block| pattern(BLOCK, block)).collect();
    assert!(read.buffer.unwrap()[..16 * BLOCK as usize - 512] == expected[512..]);
    client.end();
}

#[test]
fn extents_come_with_their_own_request() {
    let bench = Bench::new(64, 1);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.write(lease.volume(), 2 * BLOCK, &pattern(BLOCK, 1)).unwrap();
    client.begin(lease.volume(), Kind::Read, 0, 512, Some(&[0; 512]));
    let tag = client.begin(lease.volume(), Kind::Extents, BLOCK, 3 * BLOCK, None);
    for finished in client.finish_all() {
        finished.result.unwrap();
        let states = finished.extents.map(|extents| {
            extents.iter().map(|extent| (extent.length_bytes, extent.state)).collect::<Vec<_>>()
        });
        let expected =
            vec![(BLOCK, ExtentState::Hole), (BLOCK, ExtentState::Exclusive), (BLOCK, ExtentState::Hole)];
        assert_eq!(states, (finished.tag == tag).then_some(expected));
    }
    client.end();
}

#[test]
fn draining_finishes_what_is_in_flight() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    for block in 0..32 {
        let bytes = pattern(4096, block);
        client.begin(lease.volume(), Kind::Write { fua: true }, block * BLOCK + 512, 4096, Some(&bytes));
    }
    let Client { mut lane, mut ring, .. } = client;
    lane.drain(&mut ring, nobody).unwrap();
    let finished: Vec<Finished> = std::iter::from_fn(|| lane.next_finished()).collect();
    assert_eq!((finished.len(), lane.in_flight()), (32, 0));
    assert!(finished.iter().all(|finished| finished.result.is_ok()));
    drop(lane);
    let mut client = bench.client();
    for block in 0..32 {
        assert_eq!(client.read(lease.volume(), block * BLOCK + 512, 4096).unwrap(), pattern(4096, block));
    }
    client.end();
    bench.pool.close().unwrap();
}

#[test]
fn a_lane_can_be_used_again_after_draining() {
    let bench = Bench::new(64, 1);
    bench.create(1, BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    for round in 0..3 {
        client.write(lease.volume(), 0, &pattern(512, round)).unwrap();
        client.request(lease.volume(), Kind::Flush, 0, 0).unwrap();
        client.lane.drain(&mut client.ring, nobody).unwrap();
    }
    client.end();
}

#[test]
fn another_thread_can_wake_it() {
    let bench = Bench::new(64, 1);
    let mut client = bench.client();
    let waker = client.lane.waker();
    for _ in 0..2 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            // Without the call this would wait for ever.
            assert!(client.turn().is_empty());
        });
    }
    client.end();
}

#[test]
fn a_disk_that_lost_its_end_fails_requests_and_nothing_else() {
    let bench = Bench::new(64, 1);
    bench.create(1, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    for block in 0..32 {
        client.write(lease.volume(), block * BLOCK, &pattern(BLOCK, block)).unwrap();
    }
    let data = bench.directory.path().join("data");
    std::fs::OpenOptions::new().write(true).open(data).unwrap().set_len(4 * BLOCK + 512).unwrap();
    assert_eq!(client.read(lease.volume(), 0, 4 * BLOCK).unwrap()[..512], pattern(BLOCK, 0)[..512]);
    assert_eq!(client.read(lease.volume(), 0, 32 * BLOCK), Err(IoError::Io));
    assert_eq!(client.read(lease.volume(), 20 * BLOCK, 512), Err(IoError::Io));
    assert_eq!(client.read(lease.volume(), 512, 512).unwrap(), pattern(BLOCK, 0)[512..1024]);
    client.end();
}

#[test]
fn two_lanes_write_while_snapshots_are_taken() {
    let bench = Bench::new(512, 2);
    bench.create(0, 32 * BLOCK);
    let lease = bench.pool.open_volume(id(0)).unwrap();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (bench, volume) = (&bench, lease.volume());
            scope.spawn(move || {
                let mut client = bench.client();
                for round in 1..=20 {
                    for block in (0..32).filter(|block| block % 2 == half) {
                        // The same byte all over the block: a snapshot must never see two.
                        let bytes = vec![round; BLOCK as usize];
                        client.begin(volume, Kind::Write { fua: false }, block * BLOCK, BLOCK, Some(&bytes));
                    }
                    for finished in client.finish_all() {
                        finished.result.unwrap();
                        client.lane.buffers().give(finished.buffer.unwrap());
                    }
                }
                client.end();
            });
        }
        for snapshot in 1..=6 {
            bench.snapshot(0, snapshot);
        }
    });
    let mut client = bench.client();
    for volume in 0..=6 {
        let lease = bench.pool.open_volume(id(volume)).unwrap();
        for block in 0..32 {
            let bytes = client.read(lease.volume(), block * BLOCK, BLOCK).unwrap();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "volume {volume}, block {block}");
            assert!(volume > 0 || bytes[0] == 20);
        }
    }
    client.end();
    bench.pool.close().unwrap();
}

/// A request on the volume `volume % number of volumes`, in units of 512 bytes.
#[derive(Clone, Copy, Debug)]
struct Deed {
    volume: usize,
    kind: DeedKind,
    at: u64,
    length: u64,
}

#[derive(Clone, Copy, Debug)]
enum DeedKind {
    Read,
    Write {
        fua: bool,
    },
    Discard,
    WriteZeroes {
        may_unmap: bool,
    },
    Flush,
    Snapshot,
    /// Waits until everything that was begun is finished.
    Wait,
}

const VOLUME_BYTES: u64 = 12 * BLOCK - 1536;

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let kind = prop_oneof![
        4 => Just(DeedKind::Read),
        6 => any::<bool>().prop_map(|fua| DeedKind::Write { fua }),
        1 => Just(DeedKind::Discard),
        1 => any::<bool>().prop_map(|may_unmap| DeedKind::WriteZeroes { may_unmap }),
        1 => Just(DeedKind::Flush),
        1 => Just(DeedKind::Snapshot),
        2 => Just(DeedKind::Wait),
    ];
    let length = prop_oneof![1_u64..16, 100_u64..300, 300_u64..900];
    let deed = (0_usize..4, kind, 0..VOLUME_BYTES / 512, length).prop_map(|(volume, kind, at, length)| {
        let length = length.min(VOLUME_BYTES / 512 - at);
        Deed { volume, kind, at: at * 512, length: length * 512 }
    });
    proptest::collection::vec(deed, 1..80)
}

/// The volumes as they must be, and what is in flight.
struct Model {
    volumes: Vec<(Arc<Volume>, Vec<u8>)>,
    /// Ranges that requests in flight touch: others stay away, as their order would be anybody's guess.
    busy: Vec<(usize, std::ops::Range<u64>)>,
    reads: Vec<(Tag, Vec<u8>)>,
}

impl Model {
    fn is_busy(&self, volume: usize, range: &std::ops::Range<u64>) -> bool {
        let overlaps = |other: &std::ops::Range<u64>| other.start < range.end && range.start < other.end;
        self.busy.iter().any(|(other, busy)| *other == volume && overlaps(busy))
    }

    fn wait(&mut self, client: &mut Client) {
        for finished in client.finish_all() {
            assert_eq!(finished.result, Ok(()));
            let Some(buffer) = finished.buffer else { continue };
            if let Some((_, expected)) = self.reads.iter().find(|(tag, _)| *tag == finished.tag) {
                assert!(buffer[..expected.len()] == expected[..], "a read is wrong");
            }
            client.lane.buffers().give(buffer);
        }
        self.busy.clear();
        self.reads.clear();
    }

    fn begin(&mut self, client: &mut Client, deed: Deed, seed: u64) {
        let index = deed.volume % self.volumes.len();
        let range = deed.at..deed.at + deed.length;
        if self.is_busy(index, &range) {
            self.wait(client);
        }
        let (volume, bytes) = &mut self.volumes[index];
        let bytes = &mut bytes[range.start as usize..range.end as usize];
        let (kind, buffer) = match deed.kind {
            DeedKind::Read => (Kind::Read, Some(vec![0x5a; bytes.len()])),
            DeedKind::Write { fua } => {
                bytes.copy_from_slice(&pattern(deed.length, seed));
                (Kind::Write { fua }, Some(bytes.to_vec()))
            }
            DeedKind::Discard => {
                // Whole blocks; the volume's short last block counts as whole.
                let end = if range.end == VOLUME_BYTES { 12 * BLOCK } else { range.end };
                let whole = range.start.div_ceil(BLOCK) * BLOCK..(end / BLOCK * BLOCK).min(VOLUME_BYTES);
                if whole.start < whole.end {
                    bytes[(whole.start - range.start) as usize..(whole.end - range.start) as usize].fill(0);
                }
                (Kind::Discard, None)
            }
            DeedKind::WriteZeroes { may_unmap } => {
                bytes.fill(0);
                (Kind::WriteZeroes { fua: false, may_unmap }, None)
            }
            DeedKind::Flush | DeedKind::Snapshot | DeedKind::Wait => unreachable!("not about a range"),
        };
        let expected = matches!(kind, Kind::Read).then(|| bytes.to_vec());
        let tag = client.begin(volume, kind, deed.at, deed.length, buffer.as_deref());
        self.reads.extend(expected.map(|expected| (tag, expected)));
        self.busy.push((index, range));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Many requests at a time on volumes and their snapshots: everybody reads what the model says.
    #[test]
    fn equals_a_model(deeds in deeds(), in_shared_memory: bool) {
        let parent = if in_shared_memory { "/dev/shm" } else { "/var/tmp" };
        let metadata = crate::disk::MemoryDisk::zeroed(8 << 20);
        let bench = Bench::with(metadata, TempDir::new_in(parent).unwrap(), 60, 1);
        bench.create(0, VOLUME_BYTES);
        let mut leases = vec![bench.pool.open_volume(id(0)).unwrap()];
        let mut client = bench.client();
        let first = (leases[0].volume().clone(), vec![0; VOLUME_BYTES as usize]);
        let mut model = Model { volumes: vec![first], busy: Vec::new(), reads: Vec::new() };
        for (seed, deed) in deeds.into_iter().enumerate() {
            match deed.kind {
                DeedKind::Wait => model.wait(&mut client),
                DeedKind::Flush => {
                    let volume = model.volumes[0].0.clone();
                    client.begin(&volume, Kind::Flush, 0, 0, None);
                }
                DeedKind::Snapshot if model.volumes.len() < 4 => {
                    model.wait(&mut client);
                    let (origin, number) = (deed.volume % model.volumes.len(), model.volumes.len());
                    bench.snapshot(origin as u64, number as u64);
                    leases.push(bench.pool.open_volume(id(number as u64)).unwrap());
                    let bytes = model.volumes[origin].1.clone();
                    model.volumes.push((leases[number].volume().clone(), bytes));
                }
                DeedKind::Snapshot => {}
                DeedKind::Read
                | DeedKind::Write { .. }
                | DeedKind::Discard
                | DeedKind::WriteZeroes { .. } => model.begin(&mut client, deed, seed as u64),
            }
        }
        model.wait(&mut client);
        for (volume, bytes) in &model.volumes {
            prop_assert!(client.read(volume, 0, VOLUME_BYTES).unwrap() == *bytes);
        }
        client.end();
        bench.pool.command(Command::Commit).unwrap();
        drop(leases);
        bench.pool.close().unwrap();
    }
}
