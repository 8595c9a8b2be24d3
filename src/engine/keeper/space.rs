//! Who waits for a free block, and for how long: by volume, because each may have a policy of its own.

use super::*;

/// Requests of one volume that wait for a free block.
#[derive(Default)]
pub(super) struct Waiting {
    askers: Vec<Asker>,
    /// Ticks for which some have waited without hope, since the last fill that found a block.
    hopeless_ticks: u32,
}

/// Everybody who waits for a free block.
#[derive(Default)]
pub(super) struct SpaceWaiters(BTreeMap<VolumeId, Waiting>);

impl SpaceWaiters {
    pub fn add(&mut self, volume: VolumeId, asker: Asker) {
        self.0.entry(volume).or_default().askers.push(asker);
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().all(|waiting| waiting.askers.is_empty())
    }

    pub fn count(&self) -> usize {
        self.0.values().map(|waiting| waiting.askers.len()).sum()
    }

    pub fn of_volume(&self, volume: VolumeId) -> usize {
        self.0.get(&volume).map_or(0, |waiting| waiting.askers.len())
    }

    /// A second has passed without hope.
    pub fn tick(&mut self) {
        for waiting in self.0.values_mut().filter(|waiting| !waiting.askers.is_empty()) {
            waiting.hopeless_ticks = waiting.hopeless_ticks.saturating_add(1);
        }
    }

    /// There is hope again: everybody's time begins anew.
    pub fn begin_anew(&mut self) {
        self.0.retain(|_, waiting| !waiting.askers.is_empty());
        self.0.values_mut().for_each(|waiting| waiting.hopeless_ticks = 0);
    }

    /// Another policy: the time of this volume's requests begins anew.
    pub fn begin_anew_for(&mut self, volume: VolumeId) {
        if let Some(waiting) = self.0.get_mut(&volume) {
            waiting.hopeless_ticks = 0;
        }
    }

    /// Whether it was there.
    pub fn remove(&mut self, asker: Asker) -> bool {
        let count = self.count();
        self.0.values_mut().for_each(|waiting| waiting.askers.retain(|other| *other != asker));
        self.count() < count
    }

    /// Everybody.
    pub fn take_all(&mut self) -> impl Iterator<Item = Asker> {
        self.0.values_mut().flat_map(|waiting| waiting.askers.drain(..))
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// What becomes of a volume's writes on a full pool.
    fn when_full_of(&self, volume: VolumeId) -> WhenFull {
        self.volumes_when_full.get(&volume).copied().unwrap_or(self.when_full)
    }

    /// See [`Ask::GiveUp`].
    pub(super) fn give_up(&mut self, from: Asker, out: &mut Outbox) {
        let thaws = self.thaws.len();
        self.thaws.retain(|(_, asker)| *asker != from);
        if self.space_waiters.remove(from) || self.thaws.len() < thaws {
            out.reply(from, Reply::Failed(IoError::Gone));
        }
    }

    /// Wakes those who wait for space when there may be some, or when none can be hoped for.
    pub(super) fn settle_space(&mut self, out: &mut Outbox) {
        if self.space_waiters.is_empty() {
            return;
        }
        let on_its_way = self.may_free_with_a_commit()
            || !self.limbo.is_empty()
            || !self.unmaps.is_empty()
            || self.gets_on_deleting()
            || !self.filling.is_empty();
        match self.starved {
            None => {
                out.replies.extend(self.space_waiters.take_all().map(|waiter| (waiter, Reply::Again)));
            }
            Some(_) if on_its_way => {}
            Some(lack) => {
                self.note_lack(lack);
                self.refuse_who_waits_no_longer(out);
            }
        }
    }

    fn refuse_who_waits_no_longer(&mut self, out: &mut Outbox) {
        let mut waiters = std::mem::take(&mut self.space_waiters);
        for (volume, waiting) in &mut waiters.0 {
            if has_expired(self.when_full_of(*volume), waiting.hopeless_ticks) {
                let refused = waiting.askers.drain(..);
                out.replies.extend(refused.map(|waiter| (waiter, Reply::Failed(IoError::NoSpace))));
            }
        }
        self.space_waiters = waiters;
    }

    /// Remembers what there is not enough of, and none on its way: the next commit would have cured anything less.
    pub(super) fn note_lack(&mut self, lack: ErrorKind) {
        match lack {
            ErrorKind::NoDataSpace => {
                self.times_full.data += u64::from(!self.out_of_data_space);
                self.out_of_data_space = true;
            }
            ErrorKind::NoMetadataSpace => {
                self.times_full.metadata += u64::from(!self.is_out_of_metadata_space());
                self.lacking_metadata = Some(self.free_metadata());
                self.out_of_data_space = false;
            }
            _ => {}
        }
    }

    /// Whether something was refused for lack of metadata space, and there is no more of it now.
    pub(super) fn is_out_of_metadata_space(&self) -> bool {
        self.lacking_metadata.is_some_and(|free| self.free_metadata() <= free)
    }

    fn free_metadata(&self) -> u64 {
        let usage = self.metadata.usage();
        usage.metadata_total.saturating_sub(usage.metadata_allocated + usage.metadata_reserve)
    }

    /// Whether requests of this volume have waited for as long as they may, so that those that come now do not wait.
    pub(super) fn queue_has_expired(&self, volume: VolumeId) -> bool {
        let policy = self.when_full_of(volume);
        let waiting = self.space_waiters.0.get(&volume);
        self.starved.is_some()
            && policy != WhenFull::Error
            && waiting.is_some_and(|waiting| has_expired(policy, waiting.hopeless_ticks))
    }

    /// The same of any volume that has no policy of its own.
    pub(super) fn pool_queue_has_expired(&self) -> bool {
        let mut followers =
            self.space_waiters.0.keys().filter(|volume| !self.volumes_when_full.contains_key(volume));
        followers.any(|volume| self.queue_has_expired(*volume))
    }
}

/// Whether who has waited for so many seconds without hope waits no longer.
fn has_expired(policy: WhenFull, hopeless_ticks: u32) -> bool {
    match policy {
        WhenFull::Error => true,
        WhenFull::Queue(seconds) => seconds != 0 && hopeless_ticks >= seconds,
    }
}
