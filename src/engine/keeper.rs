//! The keeper: the only one who changes metadata, map tables and reference counts.

use super::command::{Answer, Command};
use super::epochs::Epochs;
use super::request::{Ask, Asker, Reply};
use super::volume::Volume;
use crate::disk::Disk;
use crate::error::Result;
use crate::metadata::Metadata;
use crate::units::VolumeId;
use std::collections::HashMap;
use std::sync::Arc;

/// How a pool behaves.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// Zero the rest of a fresh block that a write does not cover.
    pub zero_new_blocks: bool,
    /// Give freed blocks back to the data device.
    pub discard_passdown: bool,
    /// Seats for lanes.
    pub lanes: usize,
    /// The volumes' sizes; one that is missing here gets the size up to its highest mapped block.
    pub volume_sizes: HashMap<VolumeId, u64>,
}

/// What the keeper has to say after a call.
#[derive(Default)]
pub struct Outbox {
    /// Answers to lanes (never to `Asker::Command`).
    pub replies: Vec<(Asker, Reply)>,
    /// Answers to commands, by their numbers.
    pub answers: Vec<(u64, Result<Answer>)>,
}

/// What is left to do after [`Keeper::settle`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Nothing until the next message or tick.
    Idle,
    /// Something waits for lanes to finish running requests: look again soon (within a fraction of a millisecond).
    WaitsForLanes,
    /// Background work is left: call again as soon as the inbox is empty.
    HasWork,
}

/// The keeper of one pool.
pub struct Keeper<M: Disk, D: Disk> {
    metadata: Metadata<M>,
    data: D,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Takes over opened metadata and the data disk that belongs to it.
    pub fn new(metadata: Metadata<M>, data: D, options: KeeperOptions) -> Result<Self> {
        todo!()
    }
    /// For making lanes.
    pub fn epochs(&self) -> Arc<Epochs> {
        todo!()
    }
    /// An open volume, `None` if there is none or it is being deleted.
    pub fn volume(&self, id: VolumeId) -> Option<Arc<Volume>> {
        todo!()
    }
    /// A lane's question.
    pub fn handle(&mut self, from: Asker, ask: Ask, out: &mut Outbox) {
        todo!()
    }
    /// A command of the control plane; `number` comes back with its answer.
    pub fn command(&mut self, number: u64, command: Command, out: &mut Outbox) {
        todo!()
    }
    /// To be called whenever the inbox is empty: group commit for everybody who waits for one, snapshots whose volumes
    /// have drained, background work, one bounded step a call.
    pub fn settle(&mut self, out: &mut Outbox) -> Settled {
        todo!()
    }
    /// To be called about once a second: commits what nobody asked to be flushed.
    pub fn tick(&mut self, out: &mut Outbox) {
        todo!()
    }
}
