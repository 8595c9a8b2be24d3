//! Settling: making whole blocks of partial ones, so that the pool is one that dm-thin knows.

use super::api::SCHEMA;
use super::service::{NO_PANIC, Service};
use crate::engine::{Answer, Command};
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
    /// Why more time would not help, if it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How settling ended.
enum End {
    /// So many are left, as far as the time went.
    Left(u64),
    /// So many are left, and cannot be settled.
    Stuck(u64),
}

impl Service {
    /// Makes partial blocks whole until none are left, or the time is over. Blocks that clients write meanwhile are whole at once.
    pub(super) fn settle_partial(&self, request: SettlePool) -> Result<PoolSettled> {
        let deadline = Instant::now().checked_add(Duration::from_secs(request.seconds));
        let before = self.pool_status()?.partial_blocks;
        let settled = self.settle_until(deadline).and_then(|end| match end {
            End::Stuck(_) if self.reopen_origins()? => self.settle_until(deadline),
            end => Ok(end),
        });
        if before > 0 {
            self.executor.run(Command::Settle(false))?;
        }
        let (left, problem) = match settled? {
            End::Left(left) => (left, None),
            End::Stuck(left) => (left, Some(self.why_stuck())),
        };
        Ok(PoolSettled { schema: SCHEMA.to_owned(), before, left, problem })
    }

    fn settle_until(&self, deadline: Option<Instant>) -> Result<End> {
        let mut gets_on = true;
        loop {
            let left = self.pool_status()?.partial_blocks;
            if left > 0 && !gets_on {
                return Ok(End::Stuck(left));
            }
            if left == 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(End::Left(left));
            }
            gets_on = self.executor.run(Command::Settle(true))? != Answer::Settling(false);
            if self.is_served() {
                std::thread::sleep(LOOK_INTERVAL);
            }
            // What holds all its units is a whole block from a commit on.
            self.executor.run(Command::Commit)?;
        }
    }

    /// What keeps partial blocks from being settled: only with their volumes' external origins they can be made whole.
    fn why_stuck(&self) -> String {
        let catalog = self.catalog.read().expect(NO_PANIC);
        let problems = catalog.volumes.iter().filter_map(|entry| {
            let origin = entry.external_origin.as_ref()?;
            let problem = origin.problem()?;
            Some(format!("volume `{}`: external origin {}: {problem}", entry.name, origin.path))
        });
        problems.into_iter().next().unwrap_or_else(|| {
            "only a metadata snapshot has them, or their volumes' external origin cannot be read (see the log)"
                .to_owned()
        })
    }

    /// As the last thing before the pool is closed. That blocks are left is no reason not to close it.
    pub(super) fn settle_at_the_end(&self, seconds: u64) {
        match self.settle_partial(SettlePool { seconds }) {
            Ok(PoolSettled { left: 0, .. }) => {}
            Ok(PoolSettled { before, left, problem, .. }) => tracing::warn!(
                "{left} of {before} partial blocks are not settled{}: until they are (`uthin pool settle`), only uthin \
                 opens this pool",
                problem.map_or(String::new(), |problem| format!(" ({problem})"))
            ),
            // A pool that has failed says so by itself.
            Err(error) => tracing::debug!("partial blocks are not settled: {error}"),
        }
    }
}
