//! Partial blocks, as the keeper sees them: which units become durable, who waits for somebody else's, which are made whole.
//!
//! Lanes say that units are there ([`Partials`]), a commit makes that durable. A block that holds all its units is an ordinary
//! one from the commit on that says so; what lanes know of it is forgotten when all have passed. Making blocks whole is work for
//! a lane ([`Kind::Settle`](crate::engine::Kind::Settle)), which asks here for one when it has nothing else to do.

use super::*;
use crate::engine::command::{Settling, SmallWrites};
use crate::engine::origin::Origin;
use crate::engine::partials::Partials;
use crate::units::SnapTime;
use std::sync::atomic::Ordering::Relaxed;

/// More there are not: what they take in memory is bounded, as is what they take of the metadata ([`Metadata::partial_blocks_limit`]).
/// Beyond, fills copy.
pub(super) const LIMIT_BLOCKS: u64 = 5 << 18;
/// Ticks with next to no fills after which the pool counts as idle.
const IDLE_TICKS: u32 = 2;
/// Fills between two ticks, up to which nobody is disturbed: a log that is written now and then.
const FEW_FILLS: u32 = 16;
/// Ticks for which there is a hurry after somebody found no space: a base may be what is missing, and he may come again.
const WANTED_TICKS: u32 = 10;
/// Entries that one search for a block to settle looks at.
const SEARCH_ENTRIES: u32 = 4096;
/// Volumes that one search looks into for a block whose rest is in an external origin, but for the last block.
const SEARCH_VOLUMES: usize = 1024;
/// Ticks after which it is tried once more to settle what could not be: an origin may be back.
const ROUND_TICKS: u32 = 64;

/// What the keeper knows of them besides the table.
pub(super) struct PartialWork {
    pub table: Arc<Partials>,
    pub small_writes: SmallWrites,
    /// Somebody wants all of them made whole, and no new ones.
    pub settles_all: bool,
    /// No volume: what requests to settle are made to.
    pub settler: Arc<Volume>,
    /// Who waits until nobody writes these units.
    waiting: Vec<(DataBlock, u64, Asker)>,
    /// Blocks that became whole with the commit that ended this epoch.
    whole: VecDeque<(Epoch, Vec<DataBlock>)>,
    all_units: u64,
    /// The entry at which the search for blocks to settle goes on.
    next_entry: u32,
    /// The most that there may be.
    limit: u64,
    /// Fills since the last tick.
    fills: u32,
    /// Ticks since more than a few fills were begun.
    idle_ticks: u32,
    /// Ticks for which space is still wanted.
    wanted_ticks: u32,
    /// Ticks, in all.
    ticks: u32,
    /// The volume with an origin that mapped the last such block: most likely the next one's, too.
    last_shown: Option<VolumeId>,
}

impl PartialWork {
    /// With those that the metadata has.
    pub fn new<M: Disk>(metadata: &mut Metadata<M>, options: &KeeperOptions) -> Result<Self> {
        let all_units = metadata.geometry().block_size.all_units();
        let table = Arc::new(Partials::new(all_units));
        let mut on_origins = 0_u64;
        for (block, partial) in metadata.partials()? {
            on_origins += u64::from(matches!(partial.base, Base::Origin(_)));
            table.add(block, partial);
        }
        if on_origins > 0 && options.behind.is_empty() {
            // As after the loss of the catalog.
            tracing::error!(
                "{on_origins} partial blocks show an external origin, and no volume has one: what they do not hold cannot be read \
                 until `uthin volume set --origin` says which it was"
            );
        }
        let settler =
            Volume::new(VolumeId::MAX, 0, SnapTime(0), Behind::Zeros, Arc::default(), table.clone());
        Ok(PartialWork {
            table,
            small_writes: options.small_writes,
            settles_all: false,
            settler: Arc::new(settler),
            waiting: Vec::new(),
            whole: VecDeque::new(),
            all_units,
            next_entry: 0,
            limit: options.partial_blocks_limit,
            fills: 0,
            idle_ticks: 0,
            wanted_ticks: 0,
            ticks: 0,
            last_shown: None,
        })
    }

    /// What the rest of a fresh block can be left to, if it can: the metadata have room for `limit` partial blocks.
    pub fn base_for(&self, source: FillSource, block: VirtualBlock, limit: u64) -> Option<Base> {
        let may_be_more = self.table.count() < limit.min(self.limit);
        if self.small_writes == SmallWrites::Copy || self.settles_all || !may_be_more {
            return None;
        }
        match source {
            FillSource::Zeros => Some(Base::Zeros),
            FillSource::Origin => Some(Base::Origin(block)),
            // A base is never partial, not even one that has just become whole: that may not be durable.
            FillSource::Block(block) if !self.table.knows(block) => Some(Base::Block(block)),
            FillSource::Block(_) | FillSource::Nothing => None,
        }
    }

    /// A fill has been begun: somebody is busy, unless it is one of a few.
    pub fn note_fill(&mut self) {
        self.fills = self.fills.saturating_add(1);
        if self.fills > FEW_FILLS {
            self.idle_ticks = 0;
        }
    }

    /// Something was refused for want of space, and bases may be what is missing.
    pub fn want_space(&mut self) {
        self.wanted_ticks = WANTED_TICKS;
    }

    /// Whether they are to be made whole although clients are busy.
    fn is_in_a_hurry(&self, limit: u64) -> bool {
        let many = limit.min(self.limit) / 5 * 4;
        self.settles_all || self.wanted_ticks > 0 || self.table.count() > many
    }

    pub fn waits_for_lanes(&self) -> bool {
        !self.waiting.is_empty() || !self.whole.is_empty()
    }

    pub fn tick(&mut self) {
        self.idle_ticks = self.idle_ticks.saturating_add(1);
        self.fills = 0;
        self.wanted_ticks = self.wanted_ticks.saturating_sub(1);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(ROUND_TICKS) {
            self.table.try_again();
        }
    }

    /// Everybody who waits for units.
    pub fn take_waiting(&mut self) -> impl Iterator<Item = Asker> {
        self.waiting.drain(..).map(|(_, _, asker)| asker)
    }

    /// Notes which blocks have become whole with the commit that is through.
    pub fn committed(&mut self, units: &[(DataBlock, u64)], epochs: &Epochs) {
        let whole = units.iter().filter(|(_, units)| *units == self.all_units);
        let whole: Vec<_> = whole.map(|(block, _)| *block).collect();
        if !whole.is_empty() {
            self.whole.push_back((epochs.retire(), whole));
        }
    }

    /// Forgets the blocks that have become whole and that no lane looks at as partial ones any more.
    pub fn forget_whole(&mut self, epochs: &Epochs) {
        self.forget_whole_while(|epoch| epochs.all_past(epoch));
    }

    /// The same of those that have become so in this epoch, which all lanes have passed, and before.
    pub fn forget_whole_until(&mut self, past: Epoch) {
        self.forget_whole_while(|epoch| epoch <= past);
    }

    fn forget_whole_while(&mut self, is_past: impl Fn(Epoch) -> bool) {
        while self.whole.front().is_some_and(|(epoch, _)| is_past(*epoch)) {
            let (_, whole) = self.whole.pop_front().expect("there is a front");
            whole.into_iter().for_each(|block| self.table.remove(block));
        }
    }

    /// Whether it will be forgotten as one that has become whole: then it must not begin anew as a partial one.
    fn is_to_be_forgotten(&self, block: DataBlock) -> bool {
        self.whole.iter().any(|(_, whole)| whole.contains(&block))
    }
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// What requests of [`Kind::Settle`](crate::engine::Kind::Settle) are made to.
    pub fn settling(&self) -> Arc<Volume> {
        self.partial.settler.clone()
    }

    /// Whether a partial block has units that are missing and that nobody is writing, if they can be had.
    pub fn has_unsettled(&self) -> bool {
        self.partial.table.unsettled(0, u32::MAX).0.is_some()
    }

    /// See [`Command::Settle`].
    pub(super) fn settle_all(&mut self, all: bool) -> Settling {
        let begins = !std::mem::replace(&mut self.partial.settles_all, all);
        if all && begins {
            self.partial.table.try_again();
        }
        // A fill that was told so before makes one more partial block.
        let is_filling = self.filling.values().any(|filling| filling.base.is_some());
        match self.partial.table.has_unsettled() || is_filling || self.gets_on_deleting() {
            true => Settling::GetsOn,
            false => self.what_is_stuck(),
        }
    }

    /// By a block that is stuck, if there is one. An origin that shows in it is that of the volume which maps it, whether the volume knows
    /// it or not.
    fn what_is_stuck(&mut self) -> Settling {
        let stuck = self.partial.table.stuck();
        let base = stuck.and_then(|block| self.partial.table.get(block)).map(|partial| partial.base);
        let (Some(block), Some(base)) = (stuck, base) else { return Settling::Stuck(None) };
        let Base::Origin(shown) = base else { return Settling::Failing };
        let mut maps = |id: &VolumeId| {
            let mapping = self.metadata.lookup(*id, shown).ok().flatten();
            mapping.is_some_and(|mapping| mapping.block == block)
        };
        Settling::Stuck(self.volumes.keys().copied().find(|id| maps(id)))
    }

    /// Whether a partial block that the volume maps shows an external origin, which is then the volume's.
    pub(super) fn shows_origin(&mut self, id: VolumeId) -> Result<bool> {
        for (block, partial) in self.metadata.partials()? {
            if let Base::Origin(shown) = partial.base
                && self.metadata.lookup(id, shown)?.is_some_and(|mapping| mapping.block == block)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there is anything to commit.
    pub(super) fn is_dirty(&self) -> bool {
        self.metadata.is_dirty() || self.partial.table.is_dirty() || self.journal.has_records()
    }

    /// See [`Ask::AwaitUnits`].
    pub(super) fn await_units(&mut self, from: Asker, block: DataBlock, units: u64, out: &mut Outbox) {
        match self.partial.table.is_claimed(block, units) {
            true => self.partial.waiting.push((block, units, from)),
            false => out.reply(from, Reply::Again),
        }
    }

    /// Wakes those whose units nobody else writes any more.
    pub(super) fn settle_units(&mut self, out: &mut Outbox) {
        let PartialWork { waiting, table, .. } = &mut self.partial;
        waiting.retain(|(block, units, asker)| {
            let is_claimed = table.is_claimed(*block, *units);
            if !is_claimed {
                out.reply(*asker, Reply::Again);
            }
            is_claimed
        });
    }

    /// See [`Ask::Settle`].
    pub(super) fn on_settle(&mut self, from: Asker, out: &mut Outbox) {
        let work = &self.partial;
        let is_urgent =
            work.is_in_a_hurry(self.metadata.partial_blocks_limit()) || !self.space_waiters.is_empty();
        work.table.hurry.store(is_urgent, Relaxed);
        let is_at_leisure = work.small_writes == SmallWrites::Copy || work.idle_ticks >= IDLE_TICKS;
        if !is_urgent && !is_at_leisure {
            return out.reply(from, Reply::Done);
        }
        let mut looks = 0;
        while looks < SEARCH_VOLUMES {
            let work = &mut self.partial;
            let (found, next) = work.table.unsettled(work.next_entry, SEARCH_ENTRIES);
            work.next_entry = next;
            let Some(block) = found else { break };
            let origin = match work.table.get(block).map(|partial| partial.base) {
                Some(Base::Origin(shown)) => match self.origin_of(block, shown, &mut looks) {
                    Some(origin) => Some(origin),
                    None => {
                        self.partial.table.set_stuck(block);
                        continue;
                    }
                },
                Some(Base::Zeros | Base::Block(_)) | None => None,
            };
            return out.reply(from, Reply::Settle { block, origin });
        }
        out.reply(from, Reply::Done);
    }

    /// The origin that shows where a partial block does not hold its units: that of a volume which maps it, at `shown`, and whose
    /// origin can be had. `None` if there is none: what shows there nobody can tell.
    fn origin_of(&mut self, block: DataBlock, shown: VirtualBlock, looks: &mut usize) -> Option<Origin> {
        *looks += 1;
        let last = self.partial.last_shown.and_then(|id| self.volumes.get(&id));
        for volume in last.into_iter().chain(self.volumes.values()) {
            *looks += 1;
            let Some(origin) = volume.origin() else { continue };
            match self.metadata.lookup(volume.id(), shown) {
                Ok(Some(mapping)) if mapping.block == block => {
                    self.partial.last_shown = Some(volume.id());
                    return Some(origin.clone());
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(volume = %volume.id(), "cannot look for data block {}: {error}", block.0);
                }
            }
        }
        tracing::debug!("data block {} cannot be settled: the origin that shows in it is not there", block.0);
        None
    }

    /// See [`Ask::PublishPart`].
    pub(super) fn publish_part(
        &mut self,
        id: VolumeId,
        block: VirtualBlock,
        target: DataBlock,
        units: u64,
    ) -> (Mapping, Partial) {
        let filling = self.filling.get(&(id, block)).expect("what is published is being filled");
        let base = filling.base.expect("only who was told so fills a part");
        let partial = Partial { base, units };
        debug_assert!(!self.partial.is_to_be_forgotten(target));
        // First: whoever sees the mapping must see this.
        self.partial.table.add(target, partial);
        (self.metadata.map_partial(id, block, target, partial), partial)
    }
}
