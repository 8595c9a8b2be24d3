//! The keeper: the only one who changes metadata, map tables and reference counts. Plain blocking Rust, fed by an inbox.
//!
//! What must hold:
//!
//! - A block is handed out for a fill by one ask at a time; everybody else who wants to change that virtual block waits
//!   until the fill is published or abandoned.
//! - A fill is published only after its bytes are written, and a commit flushes the data disk before it makes published
//!   mappings durable.
//! - Blocks that a commit freed may be handed out again when every lane has passed the epoch of that commit; the data disk is told of
//!   those that are free still, and never of one that was handed out (`freed`).
//! - A block that was shared is overwritten in place only when its other holders are gone durably, and every lane that may
//!   be reading it for one of them has passed.
//! - A block's units that were added to a partial one become durable after their bytes (`partial`).
//! - A snapshot is taken when its origin is frozen and every change that began before has finished. The origin thaws
//!   when the snapshot is durable.
//! - With a journal, a change is recorded before a lane can see it (`journal`).
//! - A flush covers what was acknowledged when it was asked for, also if it is done while the keeper answers others (`flush`).
//! - After a failed flush or metadata change nothing is acknowledged any more that needs either (`stop`).

mod ahead;
mod commands;
mod flush;
mod freed;
mod journal;
mod map_memory;
mod partial;
mod settle;
mod sharing;
mod space;
mod stop;

use super::command::{
    Answer, Command, Discard, IdStep, Mode, PoolStatus, SharingInfo, SmallWrites, TimesFull, VolumeInfo,
    WhenFull,
};
use super::epochs::{Epoch, Epochs};
use super::map_table::{Lookup, page_of};
use super::origin::Behind;
use super::request::{Ask, Asker, FillSource, IoError, Reply};
use super::volume::Volume;
use crate::disk::{DataFlushes, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::JournalRecord;
use crate::metadata::{Base, Metadata, Partial, Progress};
use crate::units::{BlockSize, DataBlock, Mapping, MetaBlock, VirtualBlock, VolumeId};
use ahead::Ahead;
use flush::FlushBeside;
pub use flush::{FlushDone, FlushJob};
use freed::FreedRanges;
pub use freed::Pace;
use journal::JournalWork;
use map_memory::MapMemory;
use partial::PartialWork;
use space::SpaceWaiters;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use stop::{Failure, Stop, Uncommitted};

/// Mappings that wait in memory before they are brought into the trees without a commit.
const PENDING_MAPPINGS_LIMIT: usize = 64 * 1024;

/// What map tables may take: of 2 TiB in blocks of 64 KiB.
pub const DEFAULT_MAP_BYTES: u64 = 256 << 20;

/// The most bytes of a volume whose size nobody knows: its highest key is whatever the disk says.
const SHOWN_BYTES_LIMIT: u64 = 1 << 50;

/// How a pool behaves.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// Zero the rest of a fresh block that a write does not cover.
    pub zero_new_blocks: bool,
    /// What the first write to a shared or zeroed block does with the rest of it.
    pub small_writes: SmallWrites,
    /// What becomes of discards and freed blocks.
    pub discard: Discard,
    /// What becomes of writes that need a block when there is none.
    pub when_full: WhenFull,
    /// The same for volumes that have a policy of their own.
    pub volumes_when_full: HashMap<VolumeId, WhenFull>,
    /// Seats for lanes.
    pub lanes: usize,
    /// The volumes' sizes; one that is missing here gets the size up to its highest mapped block.
    pub volume_sizes: HashMap<VolumeId, u64>,
    /// What shows where volumes have no block; zeros for those that are not here.
    pub behind: HashMap<VolumeId, Behind>,
    /// Bytes of map tables that are kept in memory: 8 a block that is in use.
    pub map_bytes: u64,
    /// Tree nodes that one step of a background deletion may touch.
    pub delete_step_nodes: usize,
    /// Mappings that one step of a long discard may remove.
    pub unmap_step_mappings: u64,
    /// The most partial blocks, if the metadata have room for so many.
    pub partial_blocks_limit: u64,
}

impl Default for KeeperOptions {
    /// One lane, and all else as a new pool has it.
    fn default() -> Self {
        KeeperOptions {
            zero_new_blocks: true,
            small_writes: SmallWrites::default(),
            discard: Discard::default(),
            when_full: WhenFull::default(),
            volumes_when_full: HashMap::new(),
            lanes: 1,
            volume_sizes: HashMap::new(),
            behind: HashMap::new(),
            map_bytes: DEFAULT_MAP_BYTES,
            delete_step_nodes: 1024, // some ten milliseconds of work
            unmap_step_mappings: 64 * 1024,
            partial_blocks_limit: partial::LIMIT_BLOCKS,
        }
    }
}

/// What the keeper has to say after a call.
#[derive(Default)]
pub struct Outbox {
    /// Answers to lanes (never to `Asker::Command`).
    pub replies: Vec<(Asker, Reply)>,
    /// Answers to commands, by their numbers.
    pub answers: Vec<(u64, Result<Answer>)>,
}

impl Outbox {
    fn reply(&mut self, to: Asker, reply: Reply) {
        debug_assert!(matches!(to, Asker::Lane(..)), "commands get answers, not replies");
        self.replies.push((to, reply));
    }

    /// A discard has failed; it may be a command's.
    fn fail(&mut self, asker: Asker, why: IoError, error: &Error) {
        match asker {
            Asker::Lane(..) => self.reply(asker, Reply::Failed(why)),
            Asker::Command(number) => self.answers.push((number, Err(error.clone()))),
        }
    }
}

/// What is left to do after [`Keeper::settle`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Nothing until the next message or tick.
    Idle,
    /// Something waits for lanes to finish running requests: look again soon (within a fraction of a millisecond).
    WaitsForLanes,
    /// Background work is left: call again as soon as the inbox is empty.
    HasWork,
}

/// A fill under way, and who waits for its end.
struct Filling {
    target: DataBlock,
    /// What its missing units will be read from, if it may be a partial block.
    base: Option<Base>,
    waiting_fills: Vec<Asker>,
    waiting_unmaps: Vec<Unmap>,
}

/// A discard on its way through the trees.
struct Unmap {
    asker: Asker,
    volume: VolumeId,
    left: Range<u64>,
    /// Where the volume ended when it was asked for, or anything behind the blocks.
    end_bytes: u64,
}

/// What is done with volumes while nothing changes them.
enum Frozen {
    /// Snapshots: origin and snapshot, each.
    Snapshots(Vec<(VolumeId, VolumeId)>),
    /// A volume gets the contents of another, and a new one what it held.
    RollBack { volume: VolumeId, to: VolumeId, keep: VolumeId },
}

impl Frozen {
    /// The volumes whose changes wait.
    fn volumes(&self) -> Vec<VolumeId> {
        match self {
            Frozen::Snapshots(pairs) => pairs.iter().map(|(origin, _)| *origin).collect(),
            Frozen::RollBack { volume, to, .. } => vec![*volume, *to],
        }
    }

    /// The volumes that come into being: origin and snapshot, each.
    fn new_volumes(&self) -> Vec<(VolumeId, VolumeId)> {
        match self {
            Frozen::Snapshots(pairs) => pairs.clone(),
            Frozen::RollBack { volume, keep, .. } => vec![(*volume, *keep)],
        }
    }
}

/// A command that waits for its volumes to drain.
struct Freeze {
    number: u64,
    what: Frozen,
    step: IdStep,
    /// Changes that began in this epoch or before must have finished.
    epoch: Epoch,
}

/// The keeper of one pool.
pub struct Keeper<M: Disk, D: Disk> {
    metadata: Metadata<M>,
    data: D,
    epochs: Arc<Epochs>,
    zero_new_blocks: bool,
    discard: Discard,
    /// The data disk knows no discard.
    cannot_discard: bool,
    volumes: BTreeMap<VolumeId, Arc<Volume>>,
    map_memory: MapMemory,

    partial: PartialWork,
    filling: BTreeMap<(VolumeId, VirtualBlock), Filling>,
    unmaps: VecDeque<Unmap>,
    freezes: VecDeque<Freeze>,
    thaws: Vec<(VolumeId, Asker)>,
    deletions: VecDeque<VolumeId>,
    delete_step_nodes: usize,
    unmap_step_mappings: u64,
    /// The last step of a deletion lacked metadata space; the next tick tries again.
    deletions_stalled: bool,

    journal: JournalWork,

    /// Who gets an answer from the next commit, or flush of the journal.
    flushes: Vec<Asker>,
    /// A flush that is done while others are answered.
    flush_beside: Option<FlushBeside>,
    data_flushes: Arc<DataFlushes>,
    committed_answers: Vec<(u64, Answer)>,
    /// Who waits for free blocks.
    space_waiters: SpaceWaiters,
    /// A fill found no space (of this kind), and nothing has happened since that may have made some.
    starved: Option<ErrorKind>,
    when_full: WhenFull,
    volumes_when_full: HashMap<VolumeId, WhenFull>,
    /// The last fill found no free data block, and none was on its way.
    out_of_data_space: bool,
    /// Something was refused for lack of metadata space, when so many blocks were free.
    lacking_metadata: Option<u64>,
    /// How often these two began.
    times_full: TimesFull,

    /// What commits freed, and the epoch that lanes must have passed.
    limbo: VecDeque<(Epoch, Vec<Range<u64>>)>,
    /// The last commit by which blocks lost holders: until all lanes have passed this epoch, one may still be reading a
    /// block for a volume that has it no more.
    holders_lost: Option<Epoch>,
    /// Freed by commits, out of everybody's reach, not handed out again, with their space on the data disk.
    freed: FreedRanges,
    ahead: Ahead,
    /// Somebody has asked something since [`Keeper::was_anybody_there`].
    was_asked: bool,

    /// Commits so far that changed something.
    commits: u64,
    sharing: sharing::Sharing,

    /// How often a lane was told that the map cannot be read.
    unreadable: u64,
    /// For who has to step down.
    uncommitted: Uncommitted,
    /// Why the pool takes no more changes.
    stopped: Option<Stop>,
}

impl<M: Disk, D: Disk> Keeper<M, D> {
    /// Takes over opened metadata and the data disk that belongs to it. `Invalid` when the disk is smaller than the
    /// metadata says.
    pub fn new(mut metadata: Metadata<M>, data: D, options: KeeperOptions) -> Result<Self> {
        let geometry = metadata.geometry();
        let needed = geometry.data_blocks.saturating_mul(geometry.block_size.bytes());
        if data.size_bytes() < needed {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{}: the data disk has {} bytes, the metadata was made for {needed} ({} blocks of {} bytes)",
                    data.name(),
                    data.size_bytes(),
                    geometry.data_blocks,
                    geometry.block_size.bytes()
                ),
            )
            .hint("give it back its size (truncate -s, or the right device) before opening the pool"));
        }
        let map_memory = MapMemory::new(Arc::default(), options.map_bytes);
        let partial = PartialWork::new(&mut metadata, &options)?;
        let mut volumes = BTreeMap::new();
        for (id, details) in metadata.volumes()? {
            let size_bytes = match options.volume_sizes.get(&id) {
                Some(size_bytes) => *size_bytes,
                None => metadata.highest_mapped(id)?.map_or(0, |block| {
                    block
                        .0
                        .saturating_add(1)
                        .saturating_mul(geometry.block_size.bytes())
                        .min(SHOWN_BYTES_LIMIT)
                }),
            };
            let behind = options.behind.get(&id).cloned().unwrap_or_default();
            let (snapshotted, partials) = (details.snapshotted_time, partial.table.clone());
            let volume = Volume::new(id, size_bytes, snapshotted, behind, map_memory.pages(), partials);
            volume.set_ignores_discards(options.discard.ignores());
            volumes.insert(id, Arc::new(volume));
        }
        let ahead = Ahead::new(&data, geometry.data_blocks, geometry.block_size);
        let mut keeper = Keeper {
            ahead,
            metadata,
            data,
            epochs: Arc::new(Epochs::new(options.lanes)),
            zero_new_blocks: options.zero_new_blocks,
            discard: options.discard,
            cannot_discard: false,
            volumes,
            map_memory,
            partial,
            filling: BTreeMap::new(),
            unmaps: VecDeque::new(),
            freezes: VecDeque::new(),
            thaws: Vec::new(),
            deletions: VecDeque::new(),
            delete_step_nodes: options.delete_step_nodes,
            unmap_step_mappings: options.unmap_step_mappings,
            deletions_stalled: false,
            journal: JournalWork::default(),
            flushes: Vec::new(),
            flush_beside: None,
            data_flushes: Arc::default(),
            committed_answers: Vec::new(),
            space_waiters: SpaceWaiters::default(),
            starved: None,
            when_full: options.when_full,
            volumes_when_full: options.volumes_when_full,
            out_of_data_space: false,
            lacking_metadata: None,
            times_full: TimesFull::default(),
            limbo: VecDeque::new(),
            holders_lost: None,
            freed: FreedRanges::default(),
            was_asked: false,
            commits: 0,
            sharing: sharing::Sharing::default(),
            unreadable: 0,
            uncommitted: Uncommitted::default(),
            stopped: None,
        };
        keeper.stop_at_opening();
        Ok(keeper)
    }

    /// For making lanes.
    pub fn epochs(&self) -> Arc<Epochs> {
        self.epochs.clone()
    }

    /// Size of a data block.
    pub fn block_size(&self) -> BlockSize {
        self.metadata.geometry().block_size
    }

    /// An open volume, `None` if there is none or it is being deleted.
    pub fn volume(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.get(&id).cloned()
    }

    /// A lane's question.
    pub fn handle(&mut self, from: Asker, ask: Ask, out: &mut Outbox) {
        self.was_asked |= !matches!(ask, Ask::Settle); // which is asked when nobody else asks for anything
        if self.is_stopped() {
            return self.handle_stopped(from, ask, out);
        }
        match ask {
            Ask::Load(volume, block) => self.on_load(from, volume, block, out),
            Ask::Fill(volume, block) => self.on_fill(from, volume, block, out),
            Ask::Publish(volume, block, target) => self.on_publish(from, volume, block, (target, None), out),
            Ask::PublishPart(volume, block, target, units) => {
                self.on_publish(from, volume, block, (target, Some(units)), out);
            }
            Ask::PutUnits(block, units) => self.put_units(from, block, units, out),
            Ask::AwaitUnits(block, units) => self.await_units(from, block, units, out),
            Ask::Settle => self.on_settle(from, out),
            Ask::Abandon(volume, block, target) => {
                self.metadata.release_block(target);
                self.there_again(target.0..target.0 + 1);
                self.end_filling(volume, block, target, out);
                out.reply(from, Reply::Done);
            }
            Ask::Unmap(volume, left, end_bytes) => {
                self.unmap_step(Unmap { asker: from, volume, left, end_bytes }, out);
            }
            Ask::Flush => self.flushes.push(from),
            Ask::Thaw(volume) => match self.volumes.get(&volume) {
                Some(open) if open.is_frozen() => self.thaws.push((volume, from)),
                Some(_) => out.reply(from, Reply::Again),
                None => out.reply(from, Reply::Failed(IoError::Gone)),
            },
            Ask::AwaitSpace(volume) => self.space_waiters.add(volume, from),
            Ask::GiveUp => self.give_up(from, out),
        }
    }

    fn on_load(&mut self, from: Asker, id: VolumeId, block: VirtualBlock, out: &mut Outbox) {
        let Some(volume) = self.volumes.get(&id) else {
            return out.reply(from, Reply::Failed(IoError::Gone));
        };
        if volume.table.bring_back(block) {
            return out.reply(from, Reply::Again);
        }
        let page = page_of(block);
        if self.is_stopped() && self.uncommitted.has_changed(id, &page) {
            return out.reply(from, Reply::Failed(IoError::Io)); // the metadata says what it was before
        }
        let mut mappings = Vec::new();
        let read = self.metadata.for_each_mapping(id, page.clone(), &mut |block, mapping| {
            mappings.push((block, mapping));
        });
        match read {
            Ok(()) => {
                volume.table.load_page(page, &mappings);
                out.reply(from, Reply::Again);
                self.keep_to_map_budget();
            }
            // Nothing was changed: the rest of the pool goes on.
            Err(error) => self.map_is_unreadable(from, id, block, &error, out),
        }
    }

    /// Tells the lane, and the log of the first time, and then ever fewer: clients ask for every block.
    fn map_is_unreadable(
        &mut self,
        from: Asker,
        id: VolumeId,
        block: VirtualBlock,
        error: &Error,
        out: &mut Outbox,
    ) {
        self.unreadable += 1;
        if self.unreadable.is_power_of_two() {
            let times = self.unreadable;
            tracing::error!(volume = %id, block = block.0, times, "cannot read the map: {error}");
        }
        out.reply(from, Reply::Failed(IoError::Io));
    }

    fn on_fill(&mut self, from: Asker, id: VolumeId, block: VirtualBlock, out: &mut Outbox) {
        if let Some(filling) = self.filling.get_mut(&(id, block)) {
            return filling.waiting_fills.push(from);
        }
        let Some(volume) = self.volumes.get(&id) else {
            return out.reply(from, Reply::Failed(IoError::Gone));
        };
        // Also where the map in memory says it: a leaf that cannot be read is found now, when nothing has been changed, and not by the commit.
        let current = match self.metadata.lookup(id, block) {
            Ok(current) => current,
            Err(error) => return self.map_is_unreadable(from, id, block, &error, out),
        };
        // Somebody else may have done the work between the lane's look at the map and now.
        if current.is_some_and(|mapping| !volume.is_shared(mapping)) {
            return out.reply(from, Reply::Again);
        }
        // The map in memory may know better than the metadata, see below; and then somebody may be writing in place.
        if matches!(volume.table.get_kept(block), Lookup::Mapped(mapping) if !volume.is_shared(mapping)) {
            return out.reply(from, Reply::Again);
        }
        self.holders_lost = self.holders_lost.filter(|epoch| !self.epochs.all_past(*epoch));
        if let Some(mapping) = current
            && self.holders_lost.is_none()
        {
            match self.metadata.is_exclusive(id, block) {
                // Whoever shared it is gone. The disk keeps the old time, which is right for everybody: it says "perhaps".
                Ok(true) => {
                    let mapping = Mapping { time: self.metadata.time(), ..mapping };
                    volume.table.set(block, Some(mapping));
                    return out.reply(from, Reply::Again);
                }
                Ok(false) => {}
                Err(error) => return self.map_is_unreadable(from, id, block, &error, out),
            }
        }
        let block_bytes = self.metadata.geometry().block_size.bytes();
        let source = match current {
            Some(mapping) => FillSource::Block(mapping.block),
            None if block.0.saturating_mul(block_bytes) < volume.origin_bytes() => FillSource::Origin,
            None if self.zero_new_blocks => FillSource::Zeros,
            None => FillSource::Nothing,
        };
        let base = self.partial.base_for(source, block, self.metadata.partial_blocks_limit());
        // What has been freed has its space, and need not give it back.
        let wanted = self.freed.first().map(DataBlock);
        let reserved = match base {
            Some(_) => self.metadata.reserve_partial_block(wanted),
            None => self.metadata.reserve_block(wanted).map(|target| (target, false)),
        };
        let (target, base) = match reserved {
            Ok((target, may_be_partial)) => (target, base.filter(|_| may_be_partial)),
            Err(error) if is_no_space(&error) => {
                self.starved = Some(error.kind());
                self.partial.want_space();
                return out.reply(from, Reply::NoSpaceNow);
            }
            Err(error) => {
                tracing::error!("cannot allocate: {error}");
                return out.reply(from, Reply::Failed(IoError::Io));
            }
        };
        if self.partial.table.knows(target) {
            // What lanes know of it would be taken for the new block's.
            let what = format!("data block {} is free by the space map, and a partial block", target.0);
            self.stop(Failure::Metadata, Error::new(ErrorKind::Corrupt, what), out);
            return out.reply(from, Reply::Failed(IoError::Io));
        }
        let has_space = self.freed.remove(target.0);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != target) {
            self.freed.remove(wanted.0); // its bitmap cannot be read: the next may be had
        }
        self.ahead.handed_out(target, has_space);
        self.out_of_data_space = false;
        self.lacking_metadata = None;
        self.space_waiters.begin_anew();
        self.partial.note_fill();
        let filling = Filling { target, base, waiting_fills: Vec::new(), waiting_unmaps: Vec::new() };
        self.filling.insert((id, block), filling);
        let reply = match base {
            Some(_) => Reply::FillPart { target, source },
            None => Reply::Fill { target, source },
        };
        out.reply(from, reply);
    }

    fn on_publish(
        &mut self,
        from: Asker,
        id: VolumeId,
        block: VirtualBlock,
        (target, units): (DataBlock, Option<u64>),
        out: &mut Outbox,
    ) {
        if !self.make_room(out) {
            return out.reply(from, Reply::Failed(IoError::Io)); // who waited for the fill was told as well
        }
        let (mapping, partial) = match units {
            Some(units) => {
                let (mapping, partial) = self.publish_part(id, block, target, units);
                (mapping, Some(partial))
            }
            None => (self.metadata.map(id, block, target), None),
        };
        let record = published(id, block, target, partial);
        if !self.record(record, out) {
            return out.reply(from, Reply::Failed(IoError::Io));
        }
        let volume = self.volumes.get(&id).expect("a volume with a request in flight is open and cannot go");
        volume.table.set(block, Some(mapping));
        self.uncommitted.map(id, block);
        out.reply(from, Reply::Done);
        self.end_filling(id, block, target, out);
        self.keep_to_map_budget(); // the page may be new
    }

    fn end_filling(&mut self, id: VolumeId, block: VirtualBlock, target: DataBlock, out: &mut Outbox) {
        let filling = self.filling.remove(&(id, block)).expect("a fill ends that was begun");
        assert_eq!(filling.target, target, "a fill ends with the block that it was given");
        for waiting in filling.waiting_fills {
            out.reply(waiting, Reply::Again);
        }
        self.unmaps.extend(filling.waiting_unmaps);
    }

    /// One bounded step of a discard.
    fn unmap_step(&mut self, mut unmap: Unmap, out: &mut Outbox) {
        let id = unmap.volume;
        let Some(volume) = self.volumes.get(&id).cloned() else {
            return out.fail(unmap.asker, IoError::Gone, &commands::no_such_volume(id));
        };
        if volume.size_bytes() > unmap.end_bytes {
            // What was past the end then is somebody's data now.
            let whole = self.block_size().whole_blocks_in(unmap.end_bytes);
            unmap.left.end = unmap.left.end.min(whole);
        }
        if unmap.left.is_empty() {
            return self.unmapped(unmap.asker, out);
        }
        let left = unmap.left.clone();
        // A fill inside the range lands first: it has the old block in its hands. What is before it need not wait for it,
        // and must not: while others write to holes there is always a fill under way somewhere in a long range.
        let blocks = (id, VirtualBlock(left.start))..(id, VirtualBlock(left.end));
        let end = match self.filling.range_mut(blocks).next() {
            Some(((_, block), filling)) if block.0 == left.start => {
                return filling.waiting_unmaps.push(unmap);
            }
            Some(((_, block), _)) => block.0,
            None => left.end,
        };
        let left = left.start..end;
        if !self.make_room(out) {
            let refusal = self.refusal().expect("the pool has just stopped");
            return out.fail(unmap.asker, IoError::Io, &refusal);
        }
        let most = self.unmap_step_mappings;
        let step = self.change(out, |metadata| metadata.unmap_range(id, left.clone(), most));
        let gone = match &step {
            Ok(Progress::Done) => left.start..left.end,
            Ok(Progress::More(next)) => left.start..*next,
            Err(_) => left.start..left.start,
        };
        if !gone.is_empty() && !self.record(JournalRecord::unmap(id, gone), out) {
            let refusal = self.refusal().expect("the pool has just stopped");
            return out.fail(unmap.asker, IoError::Io, &refusal);
        }
        match step {
            Ok(Progress::Done) => {
                volume.table.clear(left.clone());
                self.uncommitted.unmap(id, left);
                unmap.left.start = end;
                if unmap.left.is_empty() {
                    self.unmapped(unmap.asker, out);
                } else {
                    self.unmaps.push_back(unmap);
                }
            }
            Ok(Progress::More(next)) => {
                volume.table.clear(left.start..next);
                self.uncommitted.unmap(id, left.start..next);
                unmap.left.start = next;
                self.unmaps.push_back(unmap);
            }
            Err(error) if is_no_space(&error) => out.fail(unmap.asker, IoError::NoSpace, &error),
            Err(error) => out.fail(unmap.asker, IoError::Io, &error),
        }
    }

    fn unmapped(&mut self, asker: Asker, out: &mut Outbox) {
        match asker {
            Asker::Lane(..) => out.reply(asker, Reply::Done),
            Asker::Command(number) => self.committed_answers.push((number, Answer::Done)),
        }
    }

    /// Changes the metadata. If that lacks space, commits, which makes freed blocks usable, and tries once more. A refusal
    /// has changed nothing; after any other error the state in memory cannot be trusted, and the pool steps down.
    fn change<T>(
        &mut self,
        out: &mut Outbox,
        mut operation: impl FnMut(&mut Metadata<M>) -> Result<T>,
    ) -> Result<T> {
        let mut result = operation(&mut self.metadata);
        if result.as_ref().is_err_and(is_no_space) && self.is_dirty() {
            self.commit(out)?;
            result = operation(&mut self.metadata);
        }
        result.map_err(|error| {
            if is_refusal(&error) {
                self.note_lack(error.kind());
                return error;
            }
            self.stop(Failure::Metadata, error, out);
            self.refusal().expect("the pool has just stopped")
        })
    }
}

/// The record of a fill that is published.
fn published(
    volume: VolumeId,
    block: VirtualBlock,
    target: DataBlock,
    partial: Option<Partial>,
) -> JournalRecord {
    let partial = partial.map(|Partial { base, units }| (base, units));
    JournalRecord::Map { volume, block, target, partial }
}

fn is_no_space(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NoDataSpace | ErrorKind::NoMetadataSpace)
}

/// Whether a metadata operation was refused before it changed anything.
fn is_refusal(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::Failed | ErrorKind::NeedsCheck => false,
        ErrorKind::Unsupported
        | ErrorKind::Busy
        | ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::NoDataSpace
        | ErrorKind::NoMetadataSpace
        | ErrorKind::Invalid
        | ErrorKind::WrongState => true,
    }
}

#[cfg(test)]
mod journal_tests;
#[cfg(test)]
mod partial_tests;
#[cfg(test)]
mod stop_tests;
#[cfg(test)]
mod tests;
