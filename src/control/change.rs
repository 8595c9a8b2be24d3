//! Changes of a catalog as values: what happens to the one in memory, and, read from the log, to the one on disk.
//!
//! There is no other way to change the catalog of an open pool, so what is replayed after a crash is what was there before it.

use super::catalog::{Catalog, Operation, Pending, VolumeEntry, check_entry, volume_ids};
use super::options::PoolOptions;
use crate::units::VolumeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// An operation begins. In place of one that is pending: that did not happen.
    Begin(Pending),
    /// The pending operation has happened.
    Done,
    /// The pending operation has not happened.
    Dropped,
    /// Other entries in the place of those that have their numbers.
    Entries(Vec<VolumeEntry>),
    /// Other options of the pool.
    Options(PoolOptions),
    /// Volumes whose deletion is through, durably.
    Freed(#[serde(with = "volume_ids")] BTreeSet<VolumeId>),
}

impl Change {
    /// The most bytes by which the change, or what follows from it, makes `catalog.json` longer. Of those that concern no
    /// entry a few hundred at a time are pending, which every file has room for.
    pub(super) fn growth_bytes(&self) -> u64 {
        /// The deepest that an entry is indented.
        const INDENT_BYTES: usize = 16;
        let of_entry = |entry: &VolumeEntry| {
            let text = serde_json::to_string_pretty(entry).expect("an entry is JSON");
            (text.len() + (text.lines().count() + 1) * INDENT_BYTES) as u64
        };
        match self {
            Change::Begin(pending) => pending.operation.new_volumes().iter().map(of_entry).sum(),
            Change::Entries(entries) => entries.iter().map(of_entry).sum(),
            Change::Done | Change::Dropped | Change::Options(_) | Change::Freed(_) => 0,
        }
    }
}

impl Catalog {
    /// Makes the change, or says, in words, why this catalog cannot be changed so.
    pub fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Begin(pending) => {
                self.check_pending(pending)?;
                self.pending = Some(pending.clone());
            }
            Change::Done => {
                self.apply_pending().ok_or("an operation has happened, and none was under way")?;
            }
            Change::Dropped => {
                self.pending.take().ok_or("an operation has not happened, and none was under way")?;
            }
            Change::Entries(entries) => {
                for entry in entries {
                    check_entry(entry)?;
                    self.volumes.replace(entry.clone())?;
                }
            }
            Change::Options(options) => {
                options.check()?;
                self.options = *options;
            }
            Change::Freed(ids) => {
                for id in ids {
                    if !self.deleting.remove(id) {
                        return Err(format!("the deletion of volume {id} is through, and had not begun"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether that operation can be the pending one.
    pub(super) fn check_pending(&self, pending: &Pending) -> Result<(), String> {
        let is_free = pending.operation == Operation::SetTransactionId;
        let next = crate::units::TransactionId(self.transaction_id).next().0;
        if !is_free && pending.transaction_id != next {
            return Err(format!(
                "the pending transaction is {}, and the one after {} was expected",
                pending.transaction_id, self.transaction_id
            ));
        }
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for entry in pending.operation.new_volumes() {
            check_entry(entry)?;
            let is_new = self.find(&entry.name).is_none() && names.insert(&entry.name);
            if !is_new || self.has_number(entry.id) || !ids.insert(entry.id) {
                return Err(format!(
                    "the pending volume `{}` (number {}) exists already",
                    entry.name, entry.id
                ));
            }
        }
        match &pending.operation {
            Operation::Delete(name) if self.find(name).is_none() => {
                Err(format!("the pending operation deletes `{name}`, which does not exist"))
            }
            Operation::Delete(_)
            | Operation::Create(_)
            | Operation::Snapshot(_)
            | Operation::SetTransactionId => Ok(()),
        }
    }
}
