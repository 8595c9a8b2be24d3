//! Which pages of map tables stay in memory.

use super::*;
use crate::engine::pages::{PAGE_BYTES, Pages};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Weak;

/// Pages that leave together at least: one epoch for all of them.
const BATCH_PAGES: u64 = 64;

/// Pages that lanes may still be looking at.
struct Leaving {
    /// Once all lanes have passed it, they can go.
    epoch: Epoch,
    pages: Vec<(Weak<Volume>, u64)>,
}

/// The pages of all map tables, and the hand of the clock that picks those to go.
pub(super) struct MapMemory {
    pages: Arc<Pages>,
    budget_bytes: u64,
    /// Where the hand stands: a volume, and a page's number in it; `None`: at the beginning of all.
    hand: Option<(VolumeId, u64)>,
    /// One batch at a time. So a page that is brought back stays at least until all lanes have passed: who asked for it finds it.
    leaving: Option<Leaving>,
}

impl MapMemory {
    pub fn new(pages: Arc<Pages>, budget_bytes: u64) -> Self {
        MapMemory { pages, budget_bytes, hand: None, leaving: None }
    }

    pub fn pages(&self) -> Arc<Pages> {
        self.pages.clone()
    }

    pub fn used_bytes(&self) -> u64 {
        self.pages.used_bytes()
    }

    /// Whether pages wait for lanes to pass.
    pub fn waits_for_lanes(&self) -> bool {
        self.leaving.is_some()
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Lets pages go that all lanes have passed, and has others begin to leave while there are too many. What is used all the
    /// time stays, and so may more than the budget while a lane is stuck with a slow disk.
    pub(super) fn keep_to_map_budget(&mut self) {
        let memory = &mut self.map_memory;
        if let Some(leaving) = memory.leaving.take_if(|leaving| self.epochs.all_past(leaving.epoch)) {
            for (volume, page) in leaving.pages {
                if let Some(volume) = volume.upgrade() {
                    volume.table.let_go(page);
                }
            }
        }
        let excess_bytes = memory.used_bytes().saturating_sub(memory.budget_bytes);
        if excess_bytes == 0 || memory.leaving.is_some() {
            return;
        }
        let enough =
            excess_bytes.div_ceil(PAGE_BYTES).max(BATCH_PAGES.min(memory.budget_bytes / PAGE_BYTES / 4));
        let pages = pick(&self.volumes, &mut memory.hand, enough as usize);
        if !pages.is_empty() {
            memory.leaving = Some(Leaving { epoch: self.epochs.retire(), pages });
        }
    }
}

/// Passes the hand on until there are enough, at most twice around: the first time may only take marks away.
fn pick(
    volumes: &BTreeMap<VolumeId, Arc<Volume>>,
    hand: &mut Option<(VolumeId, u64)>,
    enough: usize,
) -> Vec<(Weak<Volume>, u64)> {
    let mut picked = Vec::new();
    let (hand_volume, mut from) = hand.take().unzip();
    let rest = volumes.range((hand_volume.map_or(Unbounded, Included), Unbounded));
    for (id, volume) in rest.chain(volumes).chain(volumes) {
        let from = from.take().filter(|_| Some(*id) == hand_volume).unwrap_or(0);
        let mut leaving = Vec::new();
        let next = volume.table.sweep(from, enough - picked.len(), &mut leaving);
        picked.extend(leaving.into_iter().map(|page| (Arc::downgrade(volume), page)));
        if picked.len() >= enough {
            *hand = Some((*id, next.unwrap_or(u64::MAX)));
            break;
        }
    }
    picked
}
