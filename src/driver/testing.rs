//! What the driver's tests share: a pool on temporary files and a client that runs a lane.

use super::Pool;
use super::uring::{Completion, Finished, Ring, UringLane};
use crate::disk::{AlignedBuffer, Disk, FileDisk, MemoryDisk};
use crate::engine::{
    Answer, Command, Extent, IdStep, IoError, Keeper, KeeperOptions, Kind, PoolStatus, Request, Tag, Volume,
};
use crate::metadata::{Geometry, Metadata};
use crate::units::{BlockSize, TransactionId, VolumeId};
use std::sync::Arc;
use tempfile::TempDir;

pub(super) const BLOCK: u64 = 65_536;

pub(super) fn id(number: u64) -> VolumeId {
    VolumeId::new(number).unwrap()
}

/// An open pool and where its data file is.
pub(super) struct Bench {
    pub(super) pool: Pool,
    pub(super) directory: TempDir,
}

impl Bench {
    /// In the temporary directory.
    pub(super) fn new(data_blocks: u64, lanes: usize) -> Self {
        Self::with(MemoryDisk::zeroed(8 << 20), TempDir::new().unwrap(), data_blocks, lanes)
    }

    pub(super) fn with<M: Disk + 'static>(
        metadata: M,
        directory: TempDir,
        data_blocks: u64,
        lanes: usize,
    ) -> Self {
        let data = FileDisk::create(&directory.path().join("data"), data_blocks * BLOCK).unwrap();
        let data = Arc::new(data);
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
        let metadata = Metadata::format(metadata, geometry).unwrap();
        let options = KeeperOptions { lanes, ..KeeperOptions::default() };
        let keeper = Keeper::new(metadata, data.clone(), options).unwrap();
        Bench { pool: Pool::start(keeper, data).unwrap(), directory }
    }

    pub(super) fn status(&self) -> PoolStatus {
        match self.pool.command(Command::Status).unwrap() {
            Answer::Status(status) => *status,
            other => panic!("{other:?} is no status"),
        }
    }

    fn step(&self) -> IdStep {
        let TransactionId(now) = self.status().transaction_id;
        IdStep { from: TransactionId(now), to: TransactionId(now + 1) }
    }

    pub(super) fn create(&self, number: u64, size_bytes: u64) {
        let command =
            Command::CreateVolume { volume: id(number), size_bytes, origin: None, step: self.step() };
        assert_eq!(self.pool.command(command).unwrap(), Answer::Done);
    }

    pub(super) fn snapshot(&self, origin: u64, snapshot: u64) {
        let pairs = vec![(id(origin), id(snapshot))];
        let answer = self.pool.command(Command::Snapshot { pairs, step: self.step() });
        assert_eq!(answer.unwrap(), Answer::Done);
    }

    pub(super) fn client(&self) -> Client {
        Client { lane: self.pool.lane().unwrap(), ring: Ring::new(32).unwrap(), next_tag: 0 }
    }
}

/// A lane and its ring.
pub(super) struct Client {
    pub(super) lane: UringLane,
    pub(super) ring: Ring,
    next_tag: u64,
}

pub(super) fn nobody(completion: Completion, _: &mut Ring) {
    panic!("{completion:?} belongs to nobody");
}

impl Client {
    /// Begins a request; `bytes` are what is written, or zeros as many as are read.
    pub(super) fn begin(
        &mut self,
        volume: &Arc<Volume>,
        kind: Kind,
        offset_bytes: u64,
        length_bytes: u64,
        bytes: Option<&[u8]>,
    ) -> Tag {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        let buffer = bytes.map(|bytes| {
            let mut buffer = self.lane.take_buffer(bytes.len());
            buffer[..bytes.len()].copy_from_slice(bytes);
            buffer
        });
        let request = Request { tag, volume: volume.clone(), kind, offset_bytes, length_bytes };
        self.lane.begin(request, buffer, &mut self.ring);
        tag
    }

    /// One turn of a frontend's loop, without waiting if something is finished already.
    pub(super) fn turn(&mut self) -> Vec<Finished> {
        self.lane.before_wait(&mut self.ring);
        let mut finished: Vec<Finished> = std::iter::from_fn(|| self.lane.next_finished()).collect();
        self.ring.submit_and_wait(usize::from(finished.is_empty())).unwrap();
        while let Some(completion) = self.ring.next_completion() {
            assert!(self.lane.owns(&completion));
            self.lane.complete(completion, &mut self.ring);
        }
        finished.extend(std::iter::from_fn(|| self.lane.next_finished()));
        finished
    }

    /// Runs until everything begun is finished.
    pub(super) fn finish_all(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        while self.lane.in_flight() > 0 {
            finished.extend(self.turn());
        }
        finished
    }

    /// The one request that is in flight.
    fn finish(&mut self) -> Finished {
        let mut finished = self.finish_all();
        assert_eq!(finished.len(), 1);
        finished.remove(0)
    }

    pub(super) fn read(
        &mut self,
        volume: &Arc<Volume>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, IoError> {
        self.begin(volume, Kind::Read, offset, length, Some(&vec![0x5a; length as usize]));
        let finished = self.finish();
        let buffer: AlignedBuffer = finished.buffer.unwrap();
        let bytes = buffer[..length as usize].to_vec();
        self.lane.buffers().give(buffer);
        finished.result.map(|()| bytes)
    }

    pub(super) fn write(&mut self, volume: &Arc<Volume>, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        self.begin(volume, Kind::Write { fua: false }, offset, bytes.len() as u64, Some(bytes));
        let finished = self.finish();
        self.lane.buffers().give(finished.buffer.expect("what was brought comes back"));
        finished.result
    }

    pub(super) fn request(
        &mut self,
        volume: &Arc<Volume>,
        kind: Kind,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Extent>, IoError> {
        self.begin(volume, kind, offset, length, None);
        let finished = self.finish();
        finished.result.map(|()| finished.extents.unwrap_or_default())
    }

    /// Ends it as a frontend does.
    pub(super) fn end(mut self) {
        self.lane.drain(&mut self.ring, nobody).unwrap();
    }
}
