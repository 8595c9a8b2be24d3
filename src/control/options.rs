//! How a pool is to be run: kept in its catalog, in force whenever somebody opens it. A lost catalog means the defaults.

use super::api::SetPool;
use crate::engine::{Discard, WhenFull};
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
    /// With less free space than this the pool asks for attention.
    pub low_water: LowWater,
    /// What becomes of writes that need a block when none is free.
    pub when_full: WhenFull,
}

/// An amount of free space for data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LowWater {
    /// Of the whole space for data, 0 to 100.
    Percent(u8),
    /// As it is.
    Bytes(u64),
}

impl LowWater {
    /// The amount, in a pool with that much space for data.
    pub fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            LowWater::Percent(percent) => {
                // Less than `total_bytes`, unless it is more than all of it.
                u64::try_from(u128::from(total_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
            LowWater::Bytes(bytes) => bytes,
        }
    }

    /// `Invalid` for more than all.
    pub fn check(self) -> Result<()> {
        match self {
            LowWater::Percent(101..) => {
                Err(Error::new(ErrorKind::Invalid, "a low water mark is 100% of the space at the most")
                    .hint("10% is the default"))
            }
            LowWater::Percent(_) | LowWater::Bytes(_) => Ok(()),
        }
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            discard: Discard::Passdown,
            zero_new_blocks: true,
            low_water: LowWater::Percent(10),
            when_full: WhenFull::default(),
        }
    }
}

impl PoolOptions {
    /// Whether nobody has chosen anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// With what is mentioned in `request` as it says there.
    #[must_use]
    pub fn changed_by(self, request: &SetPool) -> Self {
        PoolOptions {
            discard: request.discard.unwrap_or(self.discard),
            zero_new_blocks: request.zero_new_blocks.unwrap_or(self.zero_new_blocks),
            low_water: request.low_water.unwrap_or(self.low_water),
            when_full: request.when_full.unwrap_or(self.when_full),
        }
    }
}
