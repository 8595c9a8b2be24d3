//! Keeper and lanes inline, on any disk: no threads, no ring. For tests and tools.
//!
//! Reads and writes of the data disk, questions to the keeper and its answers are a list of [pending](Blocking::pending)
//! steps. Methods like [`Blocking::write`] carry them out in order until their request is finished; a test that cares about
//! order starts requests and [picks](Blocking::step) the next step itself.

use crate::disk::Disk;
use crate::engine::{Answer, Command, Extent, IoError, Keeper, Kind, Request, Tag, Volume};
use crate::error::Result;
use crate::units::{BlockSize, VolumeId};
use std::sync::Arc;

/// A pool that runs inline.
pub struct Blocking<M: Disk, D: Disk> {
    keeper: Keeper<M, D>,
    data: D,
}

/// A finished request and the buffer that came with it.
pub struct FinishedRequest {
    /// Its tag.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
    /// Its bytes: those read, or those written.
    pub bytes: Vec<u8>,
    /// The answer to [`Kind::Extents`].
    pub extents: Vec<Extent>,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl<M: Disk, D: Disk + Clone> Blocking<M, D> {
    /// Runs `keeper`, with as many lanes as it has seats. `data` is its data disk.
    pub fn new(keeper: Keeper<M, D>, data: D, block_size: BlockSize) -> Self {
        todo!()
    }
    /// The keeper.
    pub fn keeper(&mut self) -> &mut Keeper<M, D> {
        todo!()
    }
    /// Back to the keeper; nothing may be in flight.
    pub fn into_keeper(self) -> Keeper<M, D> {
        todo!()
    }
    /// An open volume. `NotFound`.
    pub fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        todo!()
    }
    /// A command, to its answer.
    pub fn command(&mut self, command: Command) -> Result<Answer> {
        todo!()
    }
    /// Reads into all of `buffer`.
    pub fn read(
        &mut self,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        buffer: &mut [u8],
    ) -> Result<(), IoError> {
        todo!()
    }
    /// Writes.
    pub fn write(&mut self, volume: &Arc<Volume>, offset_bytes: u64, bytes: &[u8]) -> Result<(), IoError> {
        todo!()
    }
    /// Any request without a buffer: discard, zeroes, flush.
    pub fn request(
        &mut self,
        volume: &Arc<Volume>,
        kind: Kind,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<(), IoError> {
        todo!()
    }
    /// What a range is made of.
    pub fn extents(
        &mut self,
        volume: &Arc<Volume>,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<Vec<Extent>, IoError> {
        todo!()
    }

    /// Begins a request on a lane, with its buffer (empty for those that have none). Nothing is carried out yet.
    pub fn begin(&mut self, lane: usize, request: Request, bytes: Vec<u8>) {
        todo!()
    }
    /// Begins a command; returns its number.
    pub fn begin_command(&mut self, command: Command) -> u64 {
        todo!()
    }
    /// Number of steps that could be carried out next.
    pub fn pending(&self) -> usize {
        todo!()
    }
    /// Carries out the pending step `index`.
    pub fn step(&mut self, index: usize) {
        todo!()
    }
    /// What the driver does when the inbox is empty: `Keeper::settle`.
    pub fn settle(&mut self) -> crate::engine::Settled {
        todo!()
    }
    /// Carries out everything, until nothing is pending and the keeper is idle.
    pub fn run(&mut self) {
        todo!()
    }
    /// The finished requests, in the order in which they finished.
    pub fn take_finished(&mut self) -> Vec<FinishedRequest> {
        todo!()
    }
    /// The answers to commands, by their numbers.
    pub fn take_answers(&mut self) -> Vec<(u64, Result<Answer>)> {
        todo!()
    }
}
