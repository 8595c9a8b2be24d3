//! Which blocks are whose: counted in the background over one commit, when somebody has asked and the answer is out of date.
//!
//! A count goes on in small steps between all other work. Its result is kept with the commit that it is of, and is good for
//! as long as that is the last one. After a long count there is a rest of [`REST_FACTOR`] times its length, so that somebody
//! who asks all the time costs a tenth of the keeper's time at the most.

use super::*;
use crate::metadata::{Count, VolumeSharing};

/// Tree nodes that one step looks at: about a millisecond of work.
const STEP_NODES: usize = 64;
/// Ticks of rest for each that a count has taken.
const REST_FACTOR: u64 = 10;

/// What the keeper knows of it.
#[derive(Default)]
pub(super) struct Sharing {
    /// Somebody has asked, and what is known was out of date.
    wanted: bool,
    /// The commit that is being counted, and the tick at which that began.
    under_way: Option<(u64, u64)>,
    known: Option<Known>,
    /// Volumes deleted since the count under way began: their numbers may be others' by the time it is through.
    gone: Vec<VolumeId>,
    /// Counts that came to their end.
    counts: u64,
    /// Ticks so far, and the one before which no count begins.
    ticks: u64,
    rest_until: u64,
}

/// A count that came to its end.
struct Known {
    commit: u64,
    tick: u64,
    volumes: BTreeMap<VolumeId, VolumeSharing>,
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Somebody wants to know: sees to a count if what is known is not of this moment.
    pub(super) fn want_sharing(&mut self) {
        self.sharing.wanted |= !self.is_counted();
    }

    /// A volume is gone, and its number may come again.
    pub(super) fn forget_sharing_of(&mut self, id: VolumeId) {
        if let Some(known) = &mut self.sharing.known {
            known.volumes.remove(&id);
        }
        if self.sharing.under_way.is_some() {
            self.sharing.gone.push(id);
        }
    }

    /// Whether what is known is of the last commit, and nothing has changed since.
    fn is_counted(&self) -> bool {
        let known = self.sharing.known.as_ref();
        known.is_some_and(|known| known.commit == self.commits) && !self.metadata.is_dirty()
    }

    /// What is known of a volume.
    pub(super) fn sharing_of(&self, id: VolumeId) -> Option<SharingInfo> {
        let known = self.sharing.known.as_ref()?;
        let VolumeSharing { mapped_blocks, exclusive_blocks } = *known.volumes.get(&id)?;
        Some(SharingInfo {
            mapped_blocks,
            exclusive_blocks,
            age_seconds: self.sharing.ticks - known.tick,
            is_current: self.is_counted(),
        })
    }

    /// Counts that came to their end.
    pub(super) fn sharing_counts(&self) -> u64 {
        self.sharing.counts
    }

    pub(super) fn sharing_tick(&mut self) {
        self.sharing.ticks += 1;
    }

    /// Whether [`Keeper::sharing_step`] has something to do.
    pub(super) fn counts(&self) -> bool {
        let Sharing { wanted, under_way, ticks, rest_until, .. } = &self.sharing;
        under_way.is_some() || (*wanted && ticks >= rest_until)
    }

    /// Begins a count or goes on with it.
    pub(super) fn sharing_step(&mut self, out: &mut Outbox) {
        if !self.counts() {
            return;
        }
        let (commit, begun) = match self.sharing.under_way {
            Some(under_way) => under_way,
            None => {
                // Of this moment, for who has asked.
                if self.is_dirty() && self.commit(out).is_err() {
                    return;
                }
                self.sharing.wanted = false;
                if let Err(error) = self.metadata.begin_count() {
                    return tracing::warn!("what volumes share cannot be counted: {error}");
                }
                let under_way = (self.commits, self.sharing.ticks);
                self.sharing.under_way = Some(under_way);
                under_way
            }
        };
        let result = match self.metadata.count_step(STEP_NODES) {
            Ok(Count::More) => return,
            Ok(Count::Done(volumes)) => {
                let mut volumes: BTreeMap<_, _> = volumes.into_iter().collect();
                volumes.retain(|id, _| !self.sharing.gone.contains(id));
                self.sharing.counts += 1;
                self.sharing.known = Some(Known { commit, tick: begun, volumes });
                Ok(())
            }
            // Later, perhaps, there is more space.
            Ok(Count::GivenUp) => Ok(()),
            Err(error) => Err(error),
        };
        let took = self.sharing.ticks - begun;
        self.sharing.under_way = None;
        self.sharing.gone.clear();
        self.sharing.rest_until = self.sharing.ticks + took * REST_FACTOR;
        if let Err(error) = result {
            tracing::warn!("what volumes share cannot be counted: {error}");
        }
    }
}
