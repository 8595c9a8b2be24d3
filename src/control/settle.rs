//! Settling: making whole blocks of partial ones, so that the pool is one that dm-thin knows.

use super::api::SCHEMA;
use super::service::Service;
use crate::engine::Command;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long settling may take unless somebody says so.
pub const SETTLE_SECONDS: u64 = 60;
/// How often it is looked at how a daemon gets on.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The body of `POST /v1/pool/settle`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettlePool {
    /// How long it may take at the most.
    pub seconds: u64,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolSettled {
    /// [`SCHEMA`].
    pub schema: String,
    /// Partial blocks at the beginning.
    pub before: u64,
    /// Those that are left.
    pub left: u64,
}

impl Service {
    /// Makes partial blocks whole until none are left, or the time is over. Blocks that clients write meanwhile are whole at once.
    pub(super) fn settle_partial(&self, request: SettlePool) -> Result<PoolSettled> {
        let deadline = Instant::now().checked_add(Duration::from_secs(request.seconds));
        let before = self.pool_status()?.partial_blocks;
        let settled = self.settle_until(deadline);
        if before > 0 {
            self.executor.run(Command::Settle(false))?;
        }
        Ok(PoolSettled { schema: SCHEMA.to_owned(), before, left: settled? })
    }

    fn settle_until(&self, deadline: Option<Instant>) -> Result<u64> {
        loop {
            let left = self.pool_status()?.partial_blocks;
            if left == 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(left);
            }
            self.executor.run(Command::Settle(true))?;
            if self.is_served() {
                std::thread::sleep(LOOK_INTERVAL);
            }
            // What holds all its units is a whole block from a commit on.
            self.executor.run(Command::Commit)?;
        }
    }

    /// As the last thing before the pool is closed. That blocks are left is no reason not to close it.
    pub(super) fn settle_at_the_end(&self, seconds: u64) {
        match self.settle_partial(SettlePool { seconds }) {
            Ok(PoolSettled { left: 0, .. }) => {}
            Ok(PoolSettled { before, left, .. }) => tracing::warn!(
                "{left} of {before} partial blocks are not settled: until they are (`uthin pool settle`), only uthin \
                 opens this pool"
            ),
            // A pool that has failed says so by itself.
            Err(error) => tracing::debug!("partial blocks are not settled: {error}"),
        }
    }
}
