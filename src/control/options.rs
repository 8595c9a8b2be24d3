//! How a pool is to be run: kept in its catalog, in force whenever somebody opens it. A lost catalog means the defaults.

use super::api::SetPool;
use crate::engine::{Discard, JournalMode, SmallWrites, WhenFull};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The options of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolOptions {
    /// What becomes of the space of freed blocks.
    pub discard: Discard,
    /// Whether the unwritten rest of a fresh block is zeroed.
    pub zero_new_blocks: bool,
    /// What the first write to a shared or fresh block does with the rest of it. Left away where it is dm-thin's way, so that
    /// older programs read it.
    #[serde(skip_serializing_if = "is_copy")]
    pub small_writes: SmallWrites,
    /// Whether a daemon keeps a journal. Left away where it does not, for the same reason.
    #[serde(skip_serializing_if = "is_none")]
    pub journal: JournalMode,
    /// With less free space than this the pool asks for attention.
    pub low_water: FreeSpace,
    /// What becomes of writes that need a block when none is free.
    pub when_full: WhenFull,
    /// With less free space than this no volumes and snapshots are made: of data, and, if it is a part, of metadata too.
    pub min_free: FreeSpace,
}

/// An amount of free space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreeSpace {
    /// Of the whole space, 0 to 100.
    Percent(u8),
    /// As it is.
    Bytes(u64),
}

impl FreeSpace {
    /// The amount, of that much space.
    pub fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            FreeSpace::Percent(percent) => {
                // Less than `total_bytes`, unless it is more than all of it.
                u64::try_from(u128::from(total_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
            FreeSpace::Bytes(bytes) => bytes,
        }
    }

    /// `Invalid` for more than all.
    pub fn check(self) -> Result<()> {
        match self {
            FreeSpace::Percent(101..) => {
                Err(Error::new(ErrorKind::Invalid, "no more than 100% of the space can be free")
                    .hint("a share like 10%, or an amount like 4G; 0 for none"))
            }
            FreeSpace::Percent(_) | FreeSpace::Bytes(_) => Ok(()),
        }
    }
}

fn is_copy(small_writes: &SmallWrites) -> bool {
    *small_writes == SmallWrites::Copy
}

fn is_none(journal: &JournalMode) -> bool {
    *journal == JournalMode::None
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            discard: Discard::Passdown,
            zero_new_blocks: true,
            small_writes: SmallWrites::Copy,
            journal: JournalMode::None,
            low_water: FreeSpace::Percent(10),
            when_full: WhenFull::default(),
            min_free: FreeSpace::Percent(0),
        }
    }
}

impl PoolOptions {
    /// Of a pool that is made here. (One that dm-thin has made, or whose catalog is lost, is run as dm-thin would.)
    pub fn of_a_new_pool() -> Self {
        PoolOptions { journal: JournalMode::File, ..Self::default() }
    }

    /// Whether nobody has chosen anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with options that were read, in words.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let amounts = [self.low_water, self.min_free];
        amounts.iter().try_for_each(|amount| amount.check()).map_err(|error| error.message().to_owned())
    }

    /// With what is mentioned in `request` as it says there.
    #[must_use]
    pub fn changed_by(self, request: &SetPool) -> Self {
        PoolOptions {
            discard: request.discard.unwrap_or(self.discard),
            zero_new_blocks: request.zero_new_blocks.unwrap_or(self.zero_new_blocks),
            small_writes: request.small_writes.unwrap_or(self.small_writes),
            journal: request.journal.unwrap_or(self.journal),
            low_water: request.low_water.unwrap_or(self.low_water),
            when_full: request.when_full.unwrap_or(self.when_full),
            min_free: request.min_free.unwrap_or(self.min_free),
        }
    }
}

/// What becomes of a volume's writes that need a block when none is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeWhenFull {
    /// What becomes of all.
    Pool,
    /// [`WhenFull::Error`].
    Error,
    /// [`WhenFull::Queue`].
    Queue(u32),
}

impl VolumeWhenFull {
    /// The volume's own policy, if it is to have one.
    pub fn policy(self) -> Option<WhenFull> {
        match self {
            VolumeWhenFull::Pool => None,
            VolumeWhenFull::Error => Some(WhenFull::Error),
            VolumeWhenFull::Queue(seconds) => Some(WhenFull::Queue(seconds)),
        }
    }
}
