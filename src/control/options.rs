//! How a pool is to be run: kept in its catalog, in force whenever somebody opens it. A lost catalog means the defaults.

use super::api::Discard;
use serde::{Deserialize, Serialize};

/// The options of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolOptions {
    /// What becomes of the space of freed blocks.
    pub discard: Discard,
    /// Whether the unwritten rest of a fresh block is zeroed.
    pub zero_new_blocks: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions { discard: Discard::Passdown, zero_new_blocks: true }
    }
}

impl PoolOptions {
    /// Whether nobody has chosen anything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether freed blocks are given back to what holds the data.
    pub fn discard_passdown(&self) -> bool {
        match self.discard {
            Discard::Passdown => true,
            Discard::NoPassdown => false,
        }
    }
}
