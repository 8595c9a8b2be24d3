//! Seats, closing, and what clients see when the keeper goes.

use super::*;
use crate::disk::MemoryDisk;
use crate::driver::testing::{BLOCK, Bench, id};
use crate::engine::{IoError, Kind};
use crate::units::{DataBlock, VirtualBlock};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.map(|_| ()).unwrap_err().kind()
}

#[test]
fn a_seat_is_free_again_when_its_lane_is_gone() {
    let bench = Bench::new(16, 2);
    let first = bench.client();
    let second = bench.client();
    assert_eq!(kind(bench.pool.lane()), ErrorKind::Busy);
    second.end();
    let third = bench.client();
    assert_eq!(kind(bench.pool.lane()), ErrorKind::Busy);
    first.end();
    third.end();
    bench.pool.close().unwrap();
}

#[test]
fn closes_when_its_clients_are_gone_and_then_refuses_everything() {
    let bench = Bench::new(16, 2);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.write(lease.volume(), 0, &[7; 4096]).unwrap();
    assert_eq!(kind(bench.pool.close()), ErrorKind::Busy);
    client.write(lease.volume(), 4096, &[8; 4096]).unwrap();
    client.end();
    let other = bench.pool.clone();
    assert_eq!(bench.pool.command(Command::Close).unwrap(), Answer::Done);
    other.close().unwrap();
    assert_eq!(kind(other.lane()), ErrorKind::WrongState);
    assert_eq!(kind(other.command(Command::Status)), ErrorKind::WrongState);
    assert_eq!(kind(other.open_volume(id(1))), ErrorKind::WrongState);
}

#[test]
fn an_open_volume_cannot_be_deleted() {
    let bench = Bench::new(16, 1);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let delete = || bench.pool.command(Command::Delete { volume: id(1), step: None });
    assert_eq!(kind(delete()), ErrorKind::Busy);
    drop(lease);
    assert!(matches!(delete().unwrap(), Answer::Deleting { .. }));
    assert_eq!(kind(bench.pool.open_volume(id(1))), ErrorKind::NotFound);
    assert_eq!(kind(bench.pool.open_volume(id(2))), ErrorKind::NotFound);
}

#[test]
fn what_nobody_flushes_is_committed_within_seconds() {
    let bench = Bench::new(16, 1);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.write(lease.volume(), 0, &[7; 4096]).unwrap();
    client.request(lease.volume(), Kind::Discard, 0, BLOCK).unwrap();
    client.end();
    // A freed block can be used again only after a commit: then the whole pool fits.
    let mut client = bench.client();
    let begun = Instant::now();
    while bench.status().usage.data_allocated > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    client.write(lease.volume(), 0, &[1; 8 * BLOCK as usize]).unwrap();
    client.end();
}

/// A metadata disk whose writer panics when it is told to.
struct PanickingDisk {
    inner: MemoryDisk,
    armed: Arc<AtomicBool>,
}

impl Disk for PanickingDisk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.inner.grow(size_bytes)
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        assert!(!self.armed.load(SeqCst), "a panic that the test has ordered");
        self.inner.flush()
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.inner.discard(offset_bytes, length_bytes)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
}

#[test]
fn nobody_hangs_when_the_keeper_panics() {
    let armed = Arc::new(AtomicBool::new(false));
    let disk = PanickingDisk { inner: MemoryDisk::zeroed(8 << 20), armed: armed.clone() };
    let bench = Bench::with(disk, tempfile::TempDir::new().unwrap(), 16, 2);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut idle = bench.client();
    let mut client = bench.client();
    client.write(lease.volume(), 0, &[7; 4096]).unwrap();
    armed.store(true, SeqCst);
    for _ in 0..3 {
        client.begin(lease.volume(), Kind::Flush, 0, 0, None);
    }
    client.begin(lease.volume(), Kind::Read, 0, 4096, Some(&[0; 4096]));
    let finished = client.finish_all();
    assert_eq!(finished.len(), 4);
    let failed = finished.iter().filter(|finished| finished.result == Err(IoError::Io)).count();
    assert_eq!(failed, 3, "the flushes fail, the read needs no keeper");
    // Whoever comes later is told at once: blocks that are mapped can still be read.
    assert_eq!(client.write(lease.volume(), 4 * BLOCK, &[1; 512]), Err(IoError::Io));
    assert_eq!(idle.read(lease.volume(), 0, 512).unwrap(), [7; 512]);
    assert_eq!(idle.request(lease.volume(), Kind::Flush, 0, 0), Err(IoError::Io));
    assert_eq!(kind(bench.pool.command(Command::Commit)), ErrorKind::Failed);
    assert_eq!(kind(bench.pool.lane()), ErrorKind::Failed);
    client.end();
    idle.end();
    assert_eq!(kind(bench.pool.close()), ErrorKind::Failed);
}

#[test]
fn nobody_hangs_when_a_lane_panics_at_the_keeper_s_desk() {
    let bench = Bench::new(16, 2);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.write(lease.volume(), 0, &[7; 4096]).unwrap();
    let shared = &bench.pool.handle.shared;
    let nonsense = Ask::Publish(id(2), VirtualBlock(0), DataBlock(0));
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        shared.ask(LaneId(1), &mut vec![(OpId(0), nonsense)], false);
    }));
    assert!(panicked.is_err(), "it was asked at once, on this thread");
    assert_eq!(client.write(lease.volume(), 4 * BLOCK, &[1; 512]), Err(IoError::Io));
    assert_eq!(client.read(lease.volume(), 0, 512).unwrap(), [7; 512]);
    assert_eq!(kind(bench.pool.command(Command::Commit)), ErrorKind::Failed);
    client.end();
    assert_eq!(kind(bench.pool.close()), ErrorKind::Failed);
}

#[test]
fn a_command_that_waits_is_told_when_the_keeper_panics() {
    let armed = Arc::new(AtomicBool::new(false));
    let disk = PanickingDisk { inner: MemoryDisk::zeroed(8 << 20), armed: armed.clone() };
    let bench = Bench::with(disk, tempfile::TempDir::new().unwrap(), 16, 1);
    bench.create(1, BLOCK);
    armed.store(true, SeqCst);
    let pairs = vec![(id(1), id(2))];
    let step = crate::engine::IdStep {
        from: bench.status().transaction_id,
        to: bench.status().transaction_id.next(),
    };
    assert_eq!(kind(bench.pool.command(Command::Snapshot { pairs, step })), ErrorKind::Failed);
}

#[test]
fn lanes_outlive_an_abandoned_pool_and_are_told() {
    let bench = Bench::new(16, 1);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.write(lease.volume(), 0, &[7; 4096]).unwrap();
    drop(bench);
    assert_eq!(client.request(lease.volume(), Kind::Flush, 0, 0), Err(IoError::Io));
    client.end();
}

#[test]
fn a_lane_that_panicked_does_not_keep_the_pool_from_closing() {
    let bench = Bench::new(16, 2);
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut client = bench.client();
    client.begin(lease.volume(), Kind::Write { fua: false }, 0, 4096, Some(&[1; 4096]));
    let dropped = std::panic::catch_unwind(AssertUnwindSafe(move || drop(client)));
    assert!(dropped.is_err(), "requests in flight must not be lost silently");
    // Its seat is gone, the others work.
    let mut other = bench.client();
    assert_eq!(kind(bench.pool.lane()), ErrorKind::Busy);
    other.write(lease.volume(), 2 * BLOCK, &[3; 4096]).unwrap();
    other.request(lease.volume(), Kind::Flush, 0, 0).unwrap();
    other.end();
    bench.pool.close().unwrap();
}

#[test]
fn many_threads_command_at_once() {
    let bench = Bench::new(64, 1);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    bench.status();
                    bench.pool.command(Command::Commit).unwrap();
                }
            });
        }
    });
    bench.pool.close().unwrap();
}

/// A journal's disk of which one flush takes until somebody says so (or much too long).
struct SlowDisk {
    inner: MemoryDisk,
    armed: Arc<AtomicBool>,
    is_flushing: SyncSender<()>,
    goes_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Disk for SlowDisk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.inner.grow(size_bytes)
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        if self.armed.swap(false, SeqCst) {
            self.is_flushing.send(()).unwrap();
            let _ = self.goes_on.lock().unwrap().recv_timeout(Duration::from_secs(20));
        }
        self.inner.flush()
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.inner.discard(offset_bytes, length_bytes)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
}

#[test]
fn first_writes_go_on_while_a_flush_waits_for_the_disk() {
    let directory = tempfile::TempDir::new().unwrap();
    let data = Arc::new(FileDisk::create(&directory.path().join("data"), 16 * BLOCK).unwrap());
    let geometry = crate::metadata::Geometry { block_size: BlockSize::MIN, data_blocks: 16 };
    let mut metadata = crate::metadata::Metadata::format(MemoryDisk::zeroed(8 << 20), geometry).unwrap();
    let (is_flushing, flushes) = sync_channel(1);
    let (go_on, goes_on) = sync_channel(1);
    let armed = Arc::new(AtomicBool::new(false));
    let journal = SlowDisk {
        inner: MemoryDisk::zeroed(1 << 20),
        armed: armed.clone(),
        is_flushing,
        goes_on: Mutex::new(goes_on),
    };
    let boot = crate::journal::BootId([1; 16]);
    let journal = crate::journal::begin(&mut metadata, &data, Arc::new(journal), 7, boot).unwrap();
    let options = crate::engine::KeeperOptions { lanes: 2, ..Default::default() };
    let mut keeper = Keeper::new(metadata, data.clone(), options).unwrap();
    keeper.use_journal(journal);
    let bench = Bench { pool: Pool::start(keeper, data).unwrap(), directory };
    bench.create(1, 8 * BLOCK);
    let lease = bench.pool.open_volume(id(1)).unwrap();
    let mut writer = bench.client();
    writer.write(lease.volume(), 4 * BLOCK, &[7; 4096]).unwrap(); // its map is there
    armed.store(true, SeqCst);
    std::thread::scope(|scope| {
        let volume = lease.volume();
        let flusher = scope.spawn(|| {
            let mut flusher = bench.client();
            flusher.write(volume, 0, &[7; 4096]).unwrap();
            // Two, so that they are not done on this thread.
            for _ in 0..2 {
                flusher.begin(volume, Kind::Flush, 0, 0, None);
            }
            let finished = flusher.finish_all();
            flusher.end();
            finished.iter().all(|flush| flush.result == Ok(()))
        });
        flushes.recv_timeout(Duration::from_secs(20)).expect("the journal is being flushed");
        writer.write(volume, BLOCK, &[8; 4096]).unwrap();
        writer.write(volume, BLOCK, &[9; 4096]).unwrap();
        assert!(!flusher.is_finished());
        go_on.send(()).unwrap();
        assert!(flusher.join().unwrap());
    });
    writer.end();
    drop(lease);
    bench.pool.close().unwrap();
}
