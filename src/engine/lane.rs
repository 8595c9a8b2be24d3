//! A lane: turns requests into actions, one step at a time. A pure state machine.

use super::epochs::{Epochs, Presence};
use super::request::{Action, LaneId, OpId, Reply, Request};
use crate::units::BlockSize;
use std::sync::Arc;

/// One client's (connection's, queue's) path into the pool.
pub struct Lane {
    id: LaneId,
    presence: Presence,
    block_size: BlockSize,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Lane {
    /// A lane in seat `id` of `epochs`, which nobody else holds.
    pub fn new(id: LaneId, epochs: Arc<Epochs>, block_size: BlockSize) -> Self {
        Lane { id, presence: Presence::new(id, epochs), block_size }
    }
    /// Takes a request on; what is to be done is appended to `out`.
    pub fn begin(&mut self, request: Request, out: &mut Vec<Action>) {
        todo!()
    }
    /// The keeper's answer to an `Ask` of `op`.
    pub fn reply(&mut self, op: OpId, reply: Reply, out: &mut Vec<Action>) {
        todo!()
    }
    /// A read or write of `op` has ended. Exactly one call for each `ReadData` and `WriteData`.
    pub fn io_done(&mut self, op: OpId, ok: bool, out: &mut Vec<Action>) {
        todo!()
    }
    /// Whether no request is running.
    pub fn is_idle(&self) -> bool {
        todo!()
    }
}
