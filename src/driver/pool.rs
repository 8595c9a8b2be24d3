//! An open pool: the keeper on its thread, the seats of its lanes, and the way to both.

use super::uring::UringLane;
use crate::disk::{Disk, FileDisk};
use crate::engine::{Answer, Command, Keeper, VolumeLease};
use crate::error::Result;
use crate::units::VolumeId;
use std::sync::Arc;

/// A handle to an open pool; clones are handles to the same one. When the last is dropped without [`Pool::close`],
/// the keeper stops where it is, as after a crash: what was flushed is safe, the last second's rest is not.
#[derive(Clone)]
pub struct Pool {}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Pool {
    /// Starts the keeper's thread. `data` is the disk that the keeper was made with.
    pub fn start<M: Disk + 'static>(keeper: Keeper<M, Arc<FileDisk>>, data: Arc<FileDisk>) -> Result<Pool> {
        todo!()
    }
    /// Carries a command out and waits for its answer: on any thread but one that runs a lane's ring.
    /// `Failed` when the keeper has died, `WrongState` when the pool is closed.
    pub fn command(&self, command: Command) -> Result<Answer> {
        todo!()
    }
    /// Opens a volume: until the lease is dropped, it cannot be deleted. `NotFound` when there is none or it is being
    /// deleted. Waits for the keeper, as [`Pool::command`] does.
    pub fn open_volume(&self, id: VolumeId) -> Result<VolumeLease> {
        todo!()
    }
    /// Takes a seat for a lane; the seat is free again when the lane is dropped. `Busy` when all are taken.
    pub fn lane(&self) -> Result<UringLane> {
        todo!()
    }
    /// Commits, stops the keeper and waits for it to end. Requests that come later fail with
    /// [`IoError::Gone`](crate::engine::IoError::Gone). Lanes must finish what they run, or this does not return.
    /// Calling it again does nothing.
    pub fn close(&self) -> Result<()> {
        todo!()
    }
}
