//! What every sector of every volume may hold: now, and after a power cut.
//!
//! A sector's value is a stamp that its write wrote to it, 0 for zeros. Where requests in flight overlap, and where a
//! snapshot was taken while a sector was being written, it may have one of several values until somebody looks.
//!
//! A snapshot is a moment: for each sector that somebody looks at, the model narrows down when it can have been. A write
//! whose bytes are in it began before that moment, and one whose bytes are not (though it came to an end) ended after it.
//! All snapshots of a command share the moment.

use crate::units::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A sector's content.
pub type Stamp = u64;

/// From here on, stamps are those of external origins: what shows through where nothing is mapped.
pub const FIRST_SHOWN_STAMP: Stamp = 1 << 60;

/// One sector: what was acknowledged since the last flush that is known to cover it.
#[derive(Clone, Debug)]
struct SectorHistory {
    /// When it was acknowledged, and the values it may be. The first entry is durable; the last is now.
    acknowledged: Vec<(u64, BTreeSet<Stamp>)>,
    /// What it was before, and when it was replaced: for reads that began before that.
    past: Vec<(u64, BTreeSet<Stamp>)>,
    /// Writes in flight: when they began, and what they write.
    in_flight: Vec<(u64, Stamp)>,
    /// What was written since a write was last in flight alone, or none: any of these may have come last.
    rivals: BTreeSet<Stamp>,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct ModelVolume {
    sectors: Vec<SectorHistory>,
    /// What was cut off by a new size that is not durable, and its size before that.
    resized: Option<(Vec<SectorHistory>, usize)>,
    /// For a snapshot: which moment it is of, and for each sector what it may have held then.
    taken: Option<(usize, Vec<Vec<Candidate>>)>,
}

/// A content that a snapshot's sector may have.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    stamp: Stamp,
    /// When its write began and ended; 0 if it was there before.
    begun: u64,
    ended: u64,
    /// When a write ended that began after it.
    replaced: u64,
}

/// A snapshot being taken.
#[derive(Debug)]
struct Taking {
    origin: VolumeId,
    moment: usize,
    sectors: Vec<Vec<Candidate>>,
}

/// When snapshots were taken, as far as is known: not before the first, not after the second.
#[derive(Clone, Copy, Debug)]
struct Moment(u64, u64);

/// The model of the pool.
#[derive(Default)]
pub struct Model {
    volumes: BTreeMap<VolumeId, ModelVolume>,
    clock: u64,
    creating: BTreeMap<VolumeId, Vec<Stamp>>,
    taking: BTreeMap<VolumeId, Taking>,
    /// The volume that is being rolled back, and what it will hold.
    rolling: Option<(VolumeId, Taking)>,
    deleting: BTreeMap<VolumeId, ModelVolume>,
    /// Of these, the ones whose deletion has been acknowledged, and goes on in the background.
    vanishing: BTreeSet<VolumeId>,
    moments: Vec<Moment>,
}

impl ModelVolume {
    fn holding(values: impl Iterator<Item = BTreeSet<Stamp>>, at: u64) -> Self {
        let sector = |values| SectorHistory {
            acknowledged: vec![(at, values)],
            past: Vec::new(),
            in_flight: Vec::new(),
            rivals: BTreeSet::new(),
        };
        ModelVolume { sectors: values.map(sector).collect(), resized: None, taken: None }
    }

    fn slice_mut(&mut self, range: Range<u64>) -> &mut [SectorHistory] {
        &mut self.sectors[range.start as usize..range.end as usize]
    }
}

impl SectorHistory {
    fn now(&self) -> &BTreeSet<Stamp> {
        &self.acknowledged.last().expect("a sector always has a value").1
    }

    /// The first `count` of what was acknowledged will not come up again, but for reads under way.
    fn make_past(&mut self, count: usize) {
        let replaced: Vec<u64> = self.acknowledged[1..=count].iter().map(|(at, _)| *at).collect();
        let gone = self.acknowledged.drain(..count).zip(replaced);
        self.past.extend(gone.map(|((_, values), replaced)| (replaced, values)));
    }

    /// What a read that began at `begun` and ends now may see.
    fn since(&self, begun: u64) -> BTreeSet<Stamp> {
        let past = self.past.iter().filter(|(replaced, _)| *replaced > begun).map(|(_, values)| values);
        let later = self.acknowledged.iter().map(|(_, values)| values);
        let in_flight = self.in_flight.iter().map(|(_, stamp)| stamp);
        past.chain(later).flatten().chain(in_flight).chain(&self.rivals).copied().collect()
    }

    /// What it may hold when the process has died: what was acknowledged last, or what was under way.
    fn after_kill(&self) -> BTreeSet<Stamp> {
        let in_flight = self.in_flight.iter().map(|(_, stamp)| stamp);
        let rivals = self.rivals.iter().filter(|_| !self.in_flight.is_empty());
        self.now().iter().chain(in_flight).chain(rivals).copied().collect()
    }

    fn after_power_cut(&self) -> BTreeSet<Stamp> {
        let in_flight = self.in_flight.iter().map(|(_, stamp)| stamp);
        self.acknowledged.iter().flat_map(|(_, values)| values).chain(in_flight).copied().collect()
    }
}

impl Candidate {
    fn there(stamp: Stamp) -> Self {
        Candidate { stamp, begun: 0, ended: 0, replaced: u64::MAX }
    }
}

impl Moment {
    /// A sector of a snapshot was seen to hold `stamp`.
    fn narrow(&mut self, candidates: &[Candidate], stamp: Stamp) -> Result<(), String> {
        // Zeros have many sources, and so has what every discard brings back; other stamps have one.
        let has_one_source = (1..FIRST_SHOWN_STAMP).contains(&stamp);
        let source = candidates.iter().find(|candidate| candidate.stamp == stamp && has_one_source);
        if let Some(source) = source {
            *self = Moment(self.0.max(source.begun), self.1.min(source.replaced));
        }
        if self.0 > self.1 {
            let Moment(first, last) = self;
            return Err(format!("{stamp} makes it no moment: not before {first}, not after {last}"));
        }
        Ok(())
    }
}

impl Taking {
    fn values(&self) -> impl Iterator<Item = BTreeSet<Stamp>> {
        self.sectors.iter().map(|candidates| candidates.iter().map(|candidate| candidate.stamp).collect())
    }
}

impl Model {
    /// The volumes there are for sure.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.keys().copied()
    }

    /// Size of a volume that is there for sure.
    pub fn sectors_of(&self, id: VolumeId) -> u64 {
        self.volumes[&id].sectors.len() as u64
    }

    /// Whether the volume is there for sure.
    pub fn has(&self, id: VolumeId) -> bool {
        self.volumes.contains_key(&id)
    }

    /// Whether a volume of this number exists or is coming or going.
    pub fn knows(&self, id: VolumeId) -> bool {
        self.volumes.contains_key(&id)
            || self.creating.contains_key(&id)
            || self.taking.contains_key(&id)
            || self.deleting.contains_key(&id)
    }

    /// Something that changes `range` has been issued; each sector will hold what `stamp` says. The moment of that.
    pub fn write_begins(&mut self, id: VolumeId, range: Range<u64>, stamp: impl Fn(u64) -> Stamp) -> u64 {
        self.clock += 1;
        let begun = self.clock;
        let volume = self.volumes.get_mut(&id).expect("written volumes exist");
        for (at, sector) in range.clone().zip(volume.slice_mut(range.clone())) {
            sector.in_flight.push((begun, stamp(at)));
        }
        for taking in self.takings_of(id) {
            let sectors = &mut taking.sectors[range.start as usize..range.end as usize];
            for (at, candidates) in range.clone().zip(sectors) {
                let (ended, replaced) = (u64::MAX, u64::MAX);
                candidates.push(Candidate { stamp: stamp(at), begun, ended, replaced });
            }
        }
        begun
    }

    /// The write that began at `begun` has ended. If it failed, its sectors may hold either from now on.
    pub fn write_ends(&mut self, id: VolumeId, range: Range<u64>, begun: u64, ok: bool) {
        self.clock += 1;
        let clock = self.clock;
        for taking in self.takings_of(id) {
            for candidate in taking.sectors[range.start as usize..range.end as usize].iter_mut().flatten() {
                if candidate.begun == begun {
                    candidate.ended = clock;
                } else if ok && candidate.ended < begun {
                    candidate.replaced = candidate.replaced.min(clock);
                }
            }
        }
        for sector in self.volumes.get_mut(&id).expect("written volumes exist").slice_mut(range) {
            let at = sector.in_flight.iter().position(|(other, _)| *other == begun);
            let (_, stamp) = sector.in_flight.remove(at.expect("the write was begun"));
            let mut values = BTreeSet::from([stamp]);
            values.extend(&sector.rivals);
            if !ok {
                values.extend(sector.now());
            }
            if sector.in_flight.is_empty() {
                sector.rivals.clear();
            } else {
                sector.rivals.extend(&values);
            }
            sector.acknowledged.push((clock, values));
        }
    }

    fn takings_of(&mut self, origin: VolumeId) -> impl Iterator<Item = &mut Taking> {
        let rolling = self.rolling.as_mut().map(|(_, taking)| taking);
        self.taking.values_mut().chain(rolling).filter(move |taking| taking.origin == origin)
    }

    /// The moment that a flush beginning now covers.
    pub fn flush_begins(&mut self) -> u64 {
        self.clock
    }

    /// A flush has ended that began at `covers`: what was acknowledged before is durable.
    pub fn flush_ends(&mut self, covers: u64) {
        for volume in self.volumes.values_mut() {
            for sector in &mut volume.sectors {
                let newest = sector.acknowledged.iter().rposition(|(at, _)| *at <= covers).unwrap_or(0);
                sector.make_past(newest);
            }
        }
    }

    /// A forced write to `range` has just ended well: what it wrote, or what came after it, is durable.
    pub fn force(&mut self, id: VolumeId, range: Range<u64>) {
        for sector in self.volumes.get_mut(&id).expect("written volumes exist").slice_mut(range) {
            sector.make_past(sector.acknowledged.len() - 1);
        }
    }

    /// No read is under way that began before `clock`.
    pub fn forget_before(&mut self, clock: u64) {
        for sector in self.volumes.values_mut().flat_map(|volume| &mut volume.sectors) {
            sector.past.retain(|(replaced, _)| *replaced > clock);
        }
    }

    /// Whether `id` is being deleted.
    pub fn is_being_deleted(&self, id: VolumeId) -> bool {
        self.deleting.contains_key(&id)
    }

    /// Whether `id` is being deleted and nobody is to see it any more.
    pub fn is_vanishing(&self, id: VolumeId) -> bool {
        self.vanishing.contains(&id)
    }

    /// The deletion of `id` has been acknowledged, and is not finished.
    pub fn goes_on_being_deleted(&mut self, id: VolumeId) {
        assert!(self.deleting.contains_key(&id), "volume {id} is being deleted");
        self.vanishing.insert(id);
    }

    /// All deletions have come to their end, durably.
    pub fn deletions_ended(&mut self) {
        let vanishing = std::mem::take(&mut self.vanishing);
        self.deleting.retain(|id, _| !vanishing.contains(id));
    }

    /// A read that began at `begun` has seen `stamps` in `range`. Says which sector is wrong.
    pub fn check_read(
        &mut self,
        id: VolumeId,
        range: Range<u64>,
        begun: u64,
        stamps: &[Stamp],
    ) -> Result<(), String> {
        if self.rolling.as_ref().is_some_and(|(rolling, _)| *rolling == id) {
            return Ok(()); // it may see the old or the new
        }
        let first = range.start;
        let volume = self.volumes.get_mut(&id).expect("read volumes exist");
        let taken = volume.taken.take();
        for (at, (sector, stamp)) in volume.slice_mut(range).iter_mut().zip(stamps).enumerate() {
            let (changed, _) = sector.acknowledged.last().expect("a sector always has a value");
            if !sector.in_flight.is_empty() || *changed > begun {
                // It was being written at the same time: several are right, but not what was never there.
                let allowed = sector.since(begun);
                if !allowed.contains(stamp) && *stamp != Stamp::MAX {
                    let at = first + at as u64;
                    return Err(format!(
                        "volume {id} sector {at}: read {stamp}, might be one of {allowed:?}"
                    ));
                }
                continue;
            }
            if !sector.now().contains(stamp) {
                let at = first + at as u64;
                return Err(format!("volume {id} sector {at}: read {stamp}, may be {sector:?}"));
            }
            // That is what it holds now. Until a flush, a power cut may still bring up what it might have held.
            let (at_clock, values) = (*changed, BTreeSet::from([*stamp]));
            if *sector.now() != values {
                sector.acknowledged.push((at_clock, values));
            }
            // What it did not have then came later.
            if let Some((moment, candidates)) = &taken
                && let Some(candidates) = candidates.get(first as usize + at)
            {
                let at = first as usize + at;
                let narrowed = self.moments[*moment].narrow(candidates, *stamp);
                narrowed.map_err(|wrong| format!("snapshot {id} sector {at}: {wrong}"))?;
            }
        }
        volume.taken = taken;
        Ok(())
    }

    /// A volume has another size from now on. What has come to it holds what `behind` says.
    pub fn resize(&mut self, id: VolumeId, sectors: u64, behind: impl Fn(u64) -> Stamp) {
        let clock = self.clock;
        let volume = self.volumes.get_mut(&id).expect("resized volumes exist");
        let before = volume.sectors.len();
        let cut_off = volume.sectors.split_off(before.min(sectors as usize));
        let come = (before as u64..sectors).map(|sector| BTreeSet::from([behind(sector)]));
        volume.sectors.extend(ModelVolume::holding(come, clock).sectors);
        volume.resized = Some((cut_off, before));
    }

    /// The new size is durable, or there is none.
    pub fn resize_ends(&mut self, id: VolumeId) {
        self.volumes.get_mut(&id).expect("resized volumes exist").resized = None;
    }

    /// The power was cut before the new size was durable.
    pub fn undo_resize(&mut self, id: VolumeId) {
        let volume = self.volumes.get_mut(&id).expect("resized volumes exist");
        let (cut_off, before) = volume.resized.take().expect("it has another size");
        volume.sectors.truncate(before);
        volume.sectors.extend(cut_off);
    }

    /// A volume has been asked for that holds these.
    pub fn create_begins(&mut self, id: VolumeId, stamps: Vec<Stamp>) {
        self.creating.insert(id, stamps);
    }

    /// Snapshots have been asked for, all of one moment: origin and snapshot, each.
    pub fn snapshots_begin(&mut self, pairs: &[(VolumeId, VolumeId)]) {
        self.moments.push(Moment(0, u64::MAX));
        for (origin, id) in pairs {
            let taking = self.taking_of(*origin);
            self.taking.insert(*id, taking);
        }
    }

    /// A roll-back has been asked for: `volume` gets what `to` holds (where that is smaller, what `behind` says), `keep` what it
    /// held, all of one moment.
    pub fn roll_back_begins(
        &mut self,
        volume: VolumeId,
        to: VolumeId,
        keep: VolumeId,
        behind: impl Fn(u64) -> Stamp,
    ) {
        self.snapshots_begin(&[(volume, keep)]);
        let mut taking = self.taking_of(to);
        let rest = taking.sectors.len() as u64..self.sectors_of(volume);
        taking.sectors.extend(rest.map(|sector| vec![Candidate::there(behind(sector))]));
        self.rolling = Some((volume, taking));
    }

    /// What a snapshot of `origin` may come to hold, at the newest moment.
    fn taking_of(&self, origin: VolumeId) -> Taking {
        let candidates = |sector: &SectorHistory| {
            let replaced = u64::MAX;
            let coming = |(begun, stamp): &(u64, Stamp)| Candidate {
                stamp: *stamp,
                begun: *begun,
                ended: u64::MAX,
                replaced,
            };
            let now = sector.now().iter().copied().map(Candidate::there);
            now.chain(sector.in_flight.iter().map(coming)).collect()
        };
        let sectors = self.volumes[&origin].sectors.iter().map(candidates).collect();
        Taking { origin, moment: self.moments.len() - 1, sectors }
    }

    /// A deletion has been asked for: nobody uses the volume any more.
    pub fn delete_begins(&mut self, id: VolumeId) {
        let volume = self.volumes.remove(&id).expect("deleted volumes exist");
        self.deleting.insert(id, volume);
    }

    /// The command that makes, snapshots or deletes `ids` was answered.
    pub fn command_ends(&mut self, ids: &[VolumeId], ok: bool) {
        self.clock += 1;
        for id in ids {
            if let Some(stamps) = self.creating.remove(id).filter(|_| ok) {
                let values = stamps.into_iter().map(|stamp| BTreeSet::from([stamp]));
                self.volumes.insert(*id, ModelVolume::holding(values, self.clock));
            }
            if let Some(taking) = self.taking.remove(id).filter(|_| ok) {
                let mut volume = ModelVolume::holding(taking.values(), self.clock);
                volume.taken = Some((taking.moment, taking.sectors));
                self.volumes.insert(*id, volume);
            }
            if let Some(volume) = self.deleting.remove(id).filter(|_| !ok) {
                self.volumes.insert(*id, volume);
            }
            if let Some((_, taking)) = self.rolling.take_if(|(volume, _)| volume == id).filter(|_| ok) {
                self.roll_back(*id, taking);
            }
        }
    }

    /// A volume holds something else, durably. What is being written lands before that, after it, or (in several blocks) partly.
    fn roll_back(&mut self, id: VolumeId, taking: Taking) {
        let volume = self.volumes.get_mut(&id).expect("volumes that are rolled back exist");
        for (sector, values) in volume.sectors.iter_mut().zip(taking.values()) {
            if !sector.in_flight.is_empty() {
                sector.rivals.extend(&values);
            }
            sector.acknowledged.push((self.clock, values));
            sector.make_past(sector.acknowledged.len() - 1);
        }
        volume.taken = Some((taking.moment, taking.sectors));
    }

    /// The power was cut before the command for `ids` was answered; the transaction id says whether it `happened`.
    pub fn cut_off(&mut self, ids: &[VolumeId], happened: bool) {
        self.clock += 1;
        for id in ids {
            if self.deleting.contains_key(id) {
                if !happened {
                    let volume = self.deleting.remove(id).expect("it is there");
                    self.volumes.insert(*id, volume);
                }
            } else if happened {
                self.command_ends(&[*id], true);
            } else {
                self.creating.remove(id);
                self.taking.remove(id);
                self.rolling = None;
            }
        }
    }

    /// The pool was opened after a power cut and holds `found`: each volume's sectors. Checks that this may be, and takes
    /// it as what is durable now.
    pub fn after_power_cut(&mut self, found: &BTreeMap<VolumeId, Vec<Stamp>>) -> Result<(), String> {
        self.check_found(found, SectorHistory::after_power_cut)?;
        self.clock += 1;
        let clock = self.clock;
        // What is half deleted is deleted again, and may be cut off again.
        self.deleting.retain(|id, _| found.contains_key(id));
        self.vanishing = self.deleting.keys().copied().collect();
        let deleting = &self.deleting;
        self.volumes = found
            .iter()
            .filter(|(id, _)| !deleting.contains_key(id))
            .map(|(id, stamps)| {
                (*id, ModelVolume::holding(stamps.iter().map(|s| BTreeSet::from([*s])), clock))
            })
            .collect();
        self.moments.clear();
        Ok(())
    }

    /// The pool was opened after its process had died, and holds `found`. With `strict`, everything acknowledged must be there.
    /// Nothing is more durable than it was.
    pub fn after_kill(&mut self, found: &BTreeMap<VolumeId, Vec<Stamp>>, strict: bool) -> Result<(), String> {
        self.check_found(
            found,
            if strict { SectorHistory::after_kill } else { SectorHistory::after_power_cut },
        )?;
        self.clock += 1;
        let clock = self.clock;
        self.deleting.retain(|id, _| found.contains_key(id));
        self.vanishing = self.deleting.keys().copied().collect();
        for (id, volume) in &mut self.volumes {
            volume.taken = None;
            for (sector, stamp) in volume.sectors.iter_mut().zip(&found[id]) {
                // What was under way may have got as far as a cache.
                let possible = sector.after_kill();
                let other = possible.iter().any(|value| !sector.now().contains(value));
                if other {
                    sector.acknowledged.push((clock, possible));
                }
                sector.in_flight.clear();
                sector.rivals.clear();
                sector.past.clear();
                sector.acknowledged.push((clock, BTreeSet::from([*stamp])));
            }
        }
        self.moments.clear();
        Ok(())
    }

    /// Whether the pool may hold that.
    fn check_found(
        &mut self,
        found: &BTreeMap<VolumeId, Vec<Stamp>>,
        allowed: impl Fn(&SectorHistory) -> BTreeSet<Stamp>,
    ) -> Result<(), String> {
        for id in self.volumes.keys() {
            if !found.contains_key(id) {
                return Err(format!("volume {id} is lost"));
            }
        }
        for (id, stamps) in found {
            let allowed: Vec<BTreeSet<Stamp>> = if let Some(volume) = self.volumes.get(id) {
                volume.sectors.iter().map(&allowed).collect()
            } else if self.deleting.contains_key(id) {
                continue; // half deleted: nobody reads it any more
            } else {
                return Err(format!("volume {id} came from nowhere"));
            };
            for (sector, (stamp, allowed)) in stamps.iter().zip(&allowed).enumerate() {
                if !allowed.contains(stamp) {
                    return Err(format!("volume {id} sector {sector}: holds {stamp}, may be {allowed:?}"));
                }
            }
        }
        for (id, volume) in &self.volumes {
            let Some((moment, candidates)) = &volume.taken else { continue };
            for (at, (stamp, candidates)) in found[id].iter().zip(candidates).enumerate() {
                let narrowed = self.moments[*moment].narrow(candidates, *stamp);
                narrowed.map_err(|wrong| format!("snapshot {id} sector {at}: {wrong}"))?;
            }
        }
        Ok(())
    }
}
