//! Settling: making whole blocks of partial ones, so that the pool is one that dm-thin knows.

use super::api::SCHEMA;
use super::service::{NO_PANIC, Service};
use crate::engine::{Answer, Command, Settling};
use crate::error::Result;
use crate::units::VolumeId;
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
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How settling ended.
enum End {
    /// So many are left, as far as the time went.
    Left(u64),
    /// So many are left, and cannot be settled; a volume that has one of them, if one does.
    Stuck(u64, Option<VolumeId>),
    /// So many are left, and could not be read or written.
    Failing(u64),
}

impl Service {
    /// Makes partial blocks whole until none are left, or the time is over. Blocks that clients write meanwhile are whole at once.
    pub(super) fn settle_partial(&self, request: SettlePool) -> Result<PoolSettled> {
        let deadline = Instant::now().checked_add(Duration::from_secs(request.seconds));
        let before = self.pool_status()?.partial_blocks;
        let mut has_begun = false;
        let settled = self.settle_until(deadline, &mut has_begun).and_then(|end| match end {
            // Also where something else fails: that one is found first says nothing of the others.
            End::Stuck(..) | End::Failing(_) if self.reopen_origins()? => {
                self.settle_until(deadline, &mut has_begun)
            }
            end => Ok(end),
        });
        let taken_back = if has_begun { self.executor.run(Command::Settle(false)).map(drop) } else { Ok(()) };
        let end = settled?;
        taken_back?;
        let (left, why) = match end {
            End::Left(left) => (left, None),
            End::Stuck(left, volume) => (left, Some(self.why_stuck(volume))),
            End::Failing(left) => (left, Some(why_failing())),
        };
        let (problem, hint) = why.unzip();
        Ok(PoolSettled { schema: SCHEMA.to_owned(), before, left, problem, hint })
    }

    /// `has_begun`: the keeper was asked to, which is to be taken back.
    fn settle_until(&self, deadline: Option<Instant>, has_begun: &mut bool) -> Result<End> {
        let mut how = Settling::GetsOn;
        loop {
            let left = self.pool_status()?.partial_blocks;
            match how {
                Settling::Stuck(volume) if left > 0 => return Ok(End::Stuck(left, volume)),
                Settling::Failing if left > 0 => return Ok(End::Failing(left)),
                Settling::GetsOn | Settling::Stuck(_) | Settling::Failing => {}
            }
            if left == 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(End::Left(left));
            }
            *has_begun = true;
            if let Answer::Settling(now) = self.executor.run(Command::Settle(true))? {
                how = now;
            }
            if self.is_served() {
                std::thread::sleep(LOOK_INTERVAL);
            }
            // What holds all its units is a whole block from a commit on.
            self.executor.run(Command::Commit)?;
        }
    }

    /// What keeps partial blocks from being settled, of which `volume` has one, and what to do: only with their volumes' external
    /// origins they can be made whole.
    fn why_stuck(&self, volume: Option<VolumeId>) -> (String, String) {
        let entry = volume.and_then(|id| self.catalog.read().expect(NO_PANIC).by_id(id).cloned());
        let Some(entry) = entry else {
            let problem = "no volume maps them any more, only a metadata snapshot";
            let hint =
                "`uthin pool metadata-snapshot POOL --release`, when no tool reads it: they go with it";
            return (problem.to_owned(), hint.to_owned());
        };
        let name = &entry.name;
        let Some(origin) = &entry.external_origin else {
            let problem =
                format!("volume `{name}` stands on an external origin, and the catalog has lost which it is");
            let hint = format!("`uthin volume set POOL/{name} --origin FILE` says it; then settle again");
            return (problem, hint);
        };
        let problem =
            origin.problem().or_else(|| origin.open().err().map(|error| error.message().to_owned()));
        let problem = problem.unwrap_or_else(|| "it cannot be read (see the log)".to_owned());
        let problem = format!("volume `{name}`: external origin {}: {problem}", origin.path);
        let hint = format!(
            "bring it back as it was, or say where it is now (`uthin volume set POOL/{name} --origin FILE`), and settle again"
        );
        (problem, hint)
    }

    /// As long as clients are still there; how many of the seconds are left for [`Service::settle_at_the_end`], which tells how it went.
    pub(super) fn settle_before_the_end(&self, seconds: u64) -> u64 {
        let begun = Instant::now();
        if let Err(error) = self.settle_partial(SettlePool { seconds }) {
            tracing::debug!("partial blocks are not settled: {error}");
        }
        seconds.saturating_sub(begun.elapsed().as_secs())
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

/// What keeps those from being settled whose rest is in the pool, and what to do.
fn why_failing() -> (String, String) {
    let problem = "the data disk could not be read or written (see the log)";
    let hint = "make room if its filesystem is full, else see to the disk; then settle again. What cannot be read is lost to the volumes that \
                map it; a copy of the rest can be had over NBD";
    (problem.to_owned(), hint.to_owned())
}
