//! A pool as plain maps, and a random user who does the same to it and to the real one, looking at every answer.

use super::check::{Pool, check};
use super::{Random, oracle};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use uthin::disk::{Disk, MemoryDisk, flush_data};
use uthin::error::{Error, ErrorKind, Result};
use uthin::metadata::{Access, Count, Metadata, Progress, VolumeDetails};
use uthin::units::{DataBlock, SnapTime, TransactionId, VirtualBlock, VolumeId};

/// Data block and time by virtual block.
type Mappings = BTreeMap<u64, (u64, u32)>;

#[derive(Clone, PartialEq, Debug)]
struct ModelVolume {
    transaction_id: u64,
    creation_time: u32,
    snapshotted_time: u32,
    mappings: Mappings,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Model {
    volumes: BTreeMap<u64, ModelVolume>,
    time: u32,
    transaction_id: u64,
}

impl Model {
    fn of(pool: &Pool) -> Self {
        let volume = |checked: &super::check::CheckedVolume| ModelVolume {
            transaction_id: checked.details.transaction_id.get(),
            creation_time: checked.details.creation_time.get(),
            snapshotted_time: checked.details.snapshotted_time.get(),
            mappings: checked.mappings.iter().map(|(key, m)| (*key, (m.block.0, m.time.0))).collect(),
        };
        Model {
            volumes: pool.volumes.iter().map(|(id, checked)| (*id, volume(checked))).collect(),
            time: pool.superblock.time.0,
            transaction_id: pool.superblock.transaction_id.0,
        }
    }

    fn data_blocks(&self) -> HashSet<u64> {
        self.volumes.values().flat_map(|volume| volume.mappings.values().map(|(block, _)| *block)).collect()
    }
}

/// What the user likes to do.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Virtual blocks that are used, from 0.
    pub virtual_blocks: u64,
    /// The most volumes at a time.
    pub volumes: usize,
    /// The longest run mapped at once.
    pub longest_run: u64,
    /// One in so many steps removes something; the larger, the fuller the pool.
    pub removes_one_in: u64,
    /// Whether to cut the power and to abort at times.
    pub interrupts: bool,
    /// Whether the disks grow at times.
    pub grows: bool,
}

/// The real pool, the model, and what the user has in hand.
pub struct Play {
    pub disk: MemoryDisk,
    pub metadata: Metadata<MemoryDisk>,
    pub random: Random,
    habits: Habits,
    model: Model,
    committed: Model,
    committed_blocks: HashSet<u64>,
    reserved: BTreeSet<u64>,
    /// Blocks mapped since the commit, whatever became of them.
    taken: HashSet<u64>,
    withheld: HashSet<u64>,
    /// Blocks that leaked before: never free.
    leaked: HashSet<u64>,
    /// Blocks that the metadata snapshot holds, now and as committed, if there is one.
    held: Option<HashSet<u64>>,
    committed_held: Option<HashSet<u64>>,
    /// A count of what is shared: the commit that it is of, and what the metadata snapshot held then.
    counting: Option<(Model, Option<HashSet<u64>>)>,
    /// Counts that came to their end, and those that were ended.
    pub counts: u64,
    pub counts_given_up: u64,
    /// Mappings made, removed and looked up.
    pub operations: u64,
    /// How often there was no metadata or data space.
    pub refusals: u64,
}

impl Play {
    /// Begins with what is on the disk.
    pub fn begin(disk: MemoryDisk, habits: Habits, seed: u64) -> Self {
        let pool = check(&disk.to_bytes());
        let model = Model::of(&pool);
        let leaked = pool.data_counts_too_high.iter().map(|(block, ..)| *block).collect();
        let held = (pool.superblock.held_root != 0).then_some(pool.held_blocks);
        Play {
            metadata: Metadata::open(disk.clone(), Access::ReadWrite).unwrap(),
            disk,
            random: Random::new(seed),
            habits,
            committed: model.clone(),
            committed_blocks: model.data_blocks(),
            model,
            reserved: BTreeSet::new(),
            taken: HashSet::new(),
            withheld: HashSet::new(),
            leaked,
            committed_held: held.clone(),
            held,
            counting: None,
            counts: 0,
            counts_given_up: 0,
            operations: 0,
            refusals: 0,
        }
    }

    /// One thing that a user does. Refusals for lack of space are the only errors.
    pub fn step(&mut self) {
        let result = if self.random.one_in(self.habits.removes_one_in) {
            match self.random.below(4) {
                0 => self.delete(),
                _ => self.unmap(),
            }
        } else {
            match self.random.below(20) {
                0 => self.create(),
                1 | 2 => self.snapshot(),
                3 => self.read(),
                4 if self.habits.interrupts && self.random.one_in(10) => self.interrupt(),
                5 => self.set_transaction_id(),
                6 if self.random.one_in(4) => self.metadata.apply_pending(),
                7 => self.replace(),
                8 if self.random.one_in(8) => self.hold_or_release(),
                9 if self.habits.grows && self.random.one_in(10) => self.grow(),
                _ => self.write(),
            }
        };
        if let Err(error) = result {
            assert!(is_full(&error), "{error}");
            self.refusals += 1;
        }
        if self.random.one_in(4) {
            self.count();
        }
    }

    /// Goes on with a count, whatever has become of the pool since it began.
    fn count(&mut self) {
        let Some((model, held)) = &self.counting else { return };
        let found = match self.metadata.count_step(1 + self.random.below(60) as usize).unwrap() {
            Count::More => return,
            Count::Done(found) => found,
            Count::GivenUp => {
                (self.counting, self.counts_given_up) = (None, self.counts_given_up + 1);
                return;
            }
        };
        let mut holders: HashMap<u64, usize> = HashMap::new();
        let blocks = model.volumes.values().flat_map(|volume| volume.mappings.values());
        blocks.for_each(|(block, _)| *holders.entry(*block).or_default() += 1);
        let is_held = |block: &u64| held.as_ref().is_some_and(|held| held.contains(block));
        let is_own = |block: &u64| holders[block] == 1 && !self.leaked.contains(block) && !is_held(block);
        assert_eq!(found.len(), model.volumes.len());
        for ((volume, expected), (number, sharing)) in model.volumes.iter().zip(found) {
            let own = expected.mappings.values().filter(|(block, _)| is_own(block)).count() as u64;
            assert_eq!((*volume, expected.mappings.len() as u64), (number.get(), sharing.mapped_blocks));
            match held {
                None => assert_eq!(sharing.exclusive_blocks, own, "volume {volume}"),
                // It holds nodes, and so perhaps more than it names.
                Some(_) => assert!(sharing.exclusive_blocks <= own, "volume {volume}"),
            }
        }
        (self.counting, self.counts) = (None, self.counts + 1);
    }

    fn pick(&mut self) -> Option<u64> {
        let index = self.random.below(self.model.volumes.len().max(1) as u64) as usize;
        self.model.volumes.keys().nth(index).copied()
    }

    fn fresh_id(&mut self) -> u64 {
        loop {
            let id = if self.random.one_in(4) { self.random.below(1 << 24) } else { self.random.below(64) };
            if !self.model.volumes.contains_key(&id) {
                return id;
            }
        }
    }

    fn create(&mut self) -> Result<()> {
        if self.model.volumes.len() >= self.habits.volumes {
            return Ok(());
        }
        let new = self.fresh_id();
        self.metadata.create_volume(id(new))?;
        let (time, transaction_id) = (self.model.time, self.model.transaction_id);
        let volume = ModelVolume {
            transaction_id,
            creation_time: time,
            snapshotted_time: time,
            mappings: Mappings::new(),
        };
        self.model.volumes.insert(new, volume);
        assert_eq!(self.metadata.create_volume(id(new)).unwrap_err().kind(), ErrorKind::Exists);
        Ok(())
    }

    fn snapshot(&mut self) -> Result<()> {
        let Some(origin) = self.pick() else { return Ok(()) };
        if self.model.volumes.len() >= self.habits.volumes {
            return Ok(());
        }
        let new = self.fresh_id();
        let time = self.metadata.snapshot(id(origin), id(new))?;
        self.model.time += 1;
        assert_eq!(time.0, self.model.time);
        let volume = self.model.volumes.get_mut(&origin).unwrap();
        volume.snapshotted_time = time.0;
        let transaction_id = self.model.transaction_id;
        let copy = ModelVolume { transaction_id, creation_time: time.0, ..volume.clone() };
        self.model.volumes.insert(new, copy);
        Ok(())
    }

    /// Gives a volume the mappings of another; its own go to a new one.
    fn replace(&mut self) -> Result<()> {
        let (Some(volume), Some(origin)) = (self.pick(), self.pick()) else { return Ok(()) };
        if self.model.volumes.len() >= self.habits.volumes || volume == origin {
            return Ok(());
        }
        let kept = self.fresh_id();
        let before = self.metadata.snapshot(id(volume), id(kept))?;
        self.model.time = before.0;
        let model = self.model.volumes.get_mut(&volume).unwrap();
        model.snapshotted_time = before.0;
        let copy = ModelVolume {
            transaction_id: self.model.transaction_id,
            creation_time: before.0,
            ..model.clone()
        };
        self.model.volumes.insert(kept, copy);
        let time = self.metadata.replace_mappings(id(volume), id(origin))?;
        self.model.time = time.0;
        let source = self.model.volumes.get_mut(&origin).unwrap();
        source.snapshotted_time = time.0;
        let mappings = source.mappings.clone();
        let model = self.model.volumes.get_mut(&volume).unwrap();
        (model.mappings, model.snapshotted_time) = (mappings, time.0);
        Ok(())
    }

    /// A metadata snapshot comes or goes.
    fn hold_or_release(&mut self) -> Result<()> {
        if self.held.is_some() {
            if self.random.one_in(2) {
                self.commit();
            }
            self.metadata.release_snapshot()?;
            self.held = None;
            assert_eq!(self.metadata.release_snapshot().unwrap_err().kind(), ErrorKind::NotFound);
            if self.random.one_in(2) {
                self.commit(); // often nothing else has changed
                self.check();
            }
            return Ok(());
        }
        if self.metadata.is_dirty() {
            assert_eq!(self.metadata.reserve_snapshot().unwrap_err().kind(), ErrorKind::WrongState);
            self.commit();
        }
        let held = self.metadata.reserve_snapshot()?;
        assert_eq!(self.metadata.held_root(), Some(held));
        assert_eq!(self.metadata.reserve_snapshot().unwrap_err().kind(), ErrorKind::Exists);
        self.held = Some(self.committed_blocks.clone());
        Ok(())
    }

    fn grow(&mut self) -> Result<()> {
        let old = self.metadata.geometry().data_blocks;
        if self.random.one_in(2) {
            self.disk.grow(self.disk.size_bytes() + self.random.below(300) * 4096).unwrap();
            let blocks = self.metadata.grow_metadata()?;
            assert_eq!(self.metadata.usage().metadata_total, blocks);
            assert_eq!(blocks, self.disk.size_bytes() / 4096);
        } else {
            let new = old + self.random.below(30_000);
            self.metadata.grow_data(new)?;
            assert_eq!(self.metadata.usage().data_total, new);
            let smaller = self.metadata.grow_data(new - 1).unwrap_err();
            assert_eq!(smaller.kind(), ErrorKind::Invalid);
        }
        Ok(())
    }

    /// Whether the one mapping of a block is not only alone now but was so at the commit.
    fn check_exclusive(&mut self, volume: u64) -> Result<()> {
        let holders = |model: &Model| {
            let mut holders: HashMap<u64, usize> = HashMap::new();
            let blocks = model.volumes.values().flat_map(|volume| volume.mappings.values());
            blocks.for_each(|(block, _)| *holders.entry(*block).or_default() += 1);
            holders
        };
        let (now, committed) = (holders(&self.model), holders(&self.committed));
        let keys: Vec<(u64, u64)> =
            self.model.volumes[&volume].mappings.iter().map(|(key, (block, _))| (*key, *block)).collect();
        for (key, block) in keys {
            let alone = |holders: &HashMap<u64, usize>| holders.get(&block).is_none_or(|count| *count == 1);
            let held = [&self.held, &self.committed_held];
            let is_held = held.into_iter().flatten().any(|held| held.contains(&block));
            let is_alone = alone(&now) && alone(&committed) && !is_held && !self.leaked.contains(&block);
            let found = self.metadata.is_exclusive(id(volume), VirtualBlock(key))?;
            assert!(is_alone || !found, "block {key} of volume {volume} is shared");
            if !self.metadata.is_dirty() && self.held.is_none() {
                assert_eq!(found, is_alone, "block {key} of volume {volume}");
            }
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let Some(volume) = self.pick() else { return Ok(()) };
        let budget = 1 + self.random.below(60) as usize;
        loop {
            match self.metadata.delete_volume(id(volume), budget) {
                Ok(Progress::Done) => break,
                Ok(Progress::More(())) => {
                    let left = self.mappings_of(volume);
                    let model = &mut self.model.volumes.get_mut(&volume).unwrap().mappings;
                    assert!(left.len() < model.len(), "each step removes something");
                    model.retain(|key, _| left.contains_key(key));
                    assert_eq!(*model, left, "what is left was there");
                    if self.random.one_in(4) {
                        return Ok(());
                    }
                }
                Err(error) if is_full(&error) => {
                    // In the same transaction as much else it may be refused, right after a commit it may not.
                    self.commit();
                    self.refusals += 1;
                    if self.metadata.delete_volume(id(volume), usize::MAX).unwrap() == Progress::Done {
                        break;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.model.volumes.remove(&volume);
        let gone = self.metadata.delete_volume(id(volume), budget).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        Ok(())
    }

    fn unmap(&mut self) -> Result<()> {
        let Some(volume) = self.pick() else { return Ok(()) };
        let begin = self.random.below(self.habits.virtual_blocks);
        let longest = if self.random.one_in(4) { self.habits.virtual_blocks } else { 64 };
        let end = if self.random.one_in(50) { u64::MAX } else { begin + self.random.below(longest) };
        let budget = 1 + self.random.below(700);
        let mut next = begin;
        loop {
            let progress = self.metadata.unmap_range(id(volume), next..end, budget)?;
            let model = &mut self.model.volumes.get_mut(&volume).unwrap().mappings;
            let until = match progress {
                Progress::Done => end,
                Progress::More(until) => until,
            };
            let removed: Vec<u64> = model.range(next..until).map(|(key, _)| *key).collect();
            removed.iter().for_each(|key| {
                model.remove(key);
            });
            assert!(removed.len() as u64 <= budget);
            self.operations += removed.len() as u64;
            match progress {
                Progress::Done => return Ok(()),
                Progress::More(until) => next = until,
            }
        }
    }

    fn write(&mut self) -> Result<()> {
        let Some(volume) = self.pick() else { return self.create() };
        let begin = self.random.below(self.habits.virtual_blocks);
        let length = 1 + self.random.below(self.habits.longest_run);
        let stride = if self.random.one_in(3) { 1 + self.random.below(400) } else { 1 };
        let down = self.random.one_in(4);
        for i in 0..length {
            let reserved = self.metadata.reserve_block(None)?;
            // What is mapped now was mapped at the commit, or has been taken since.
            let in_use = [&self.committed_blocks, &self.taken, &self.withheld, &self.leaked];
            let held = self.committed_held.iter();
            let free = in_use.into_iter().chain(held).all(|blocks| !blocks.contains(&reserved.0));
            assert!(free && self.reserved.insert(reserved.0), "{reserved:?} is not free");
            if self.random.one_in(20) {
                // Kept in hand, perhaps beyond the commit.
                continue;
            }
            let chosen = self.random.below(self.reserved.len() as u64) as usize;
            let block =
                if self.random.one_in(8) { *self.reserved.iter().nth(chosen).unwrap() } else { reserved.0 };
            self.reserved.remove(&block);
            if self.random.one_in(30) {
                self.metadata.release_block(DataBlock(block));
                continue;
            }
            let key = if down { begin.saturating_sub(i * stride) } else { begin + i * stride };
            let mapping = self.metadata.map(id(volume), VirtualBlock(key), DataBlock(block));
            assert_eq!(mapping.time.0, self.model.time);
            self.taken.insert(block);
            let mappings = &mut self.model.volumes.get_mut(&volume).unwrap().mappings;
            mappings.insert(key, (block, self.model.time));
            self.operations += 1;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let Some(volume) = self.pick() else { return Ok(()) };
        for _ in 0..20 {
            let key = self.random.below(self.habits.virtual_blocks);
            let found = self.metadata.lookup(id(volume), VirtualBlock(key))?;
            let expected = self.model.volumes[&volume].mappings.get(&key).copied();
            assert_eq!(found.map(|mapping| (mapping.block.0, mapping.time.0)), expected);
            self.operations += 1;
        }
        let highest = self.metadata.highest_mapped(id(volume))?.map(|block| block.0);
        let model = &self.model.volumes[&volume];
        assert_eq!(highest, model.mappings.last_key_value().map(|(key, _)| *key));
        let details = self.metadata.details(id(volume))?.unwrap();
        let expected = VolumeDetails {
            mapped_blocks: model.mappings.len() as u64,
            transaction_id: TransactionId(model.transaction_id),
            creation_time: SnapTime(model.creation_time),
            snapshotted_time: SnapTime(model.snapshotted_time),
        };
        assert_eq!(details, expected);
        if self.random.one_in(10) {
            self.check_exclusive(volume)?;
        }
        if self.random.one_in(10) {
            assert_eq!(self.mappings_of(volume), self.model.volumes[&volume].mappings);
        }
        Ok(())
    }

    fn mappings_of(&mut self, volume: u64) -> Mappings {
        let mut mappings = Mappings::new();
        let mut previous = None;
        self.metadata
            .for_each_mapping(id(volume), 0..u64::MAX, &mut |block, mapping| {
                assert!(previous < Some(block.0), "ascending");
                previous = Some(block.0);
                mappings.insert(block.0, (mapping.block.0, mapping.time.0));
            })
            .unwrap();
        mappings
    }

    fn set_transaction_id(&mut self) -> Result<()> {
        let (current, new) = (self.model.transaction_id, self.random.below(1000));
        let wrong =
            self.metadata.set_transaction_id(TransactionId(current + 1), TransactionId(new)).unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::Invalid);
        self.metadata.set_transaction_id(TransactionId(current), TransactionId(new))?;
        self.model.transaction_id = new;
        Ok(())
    }

    /// An abort, or the end of the process without a commit.
    fn interrupt(&mut self) -> Result<()> {
        if self.random.one_in(2) {
            self.metadata.abort()?;
        } else {
            self.metadata = Metadata::open(self.disk.clone(), Access::ReadWrite)?;
            self.withheld.clear();
        }
        self.model = self.committed.clone();
        self.held = self.committed_held.clone();
        self.reserved.clear();
        self.taken.clear();
        assert!(!self.metadata.is_dirty());
        Ok(())
    }

    /// Commits and looks at what was freed.
    pub fn commit(&mut self) {
        let freed = self.metadata.commit(flush_data(&self.disk).unwrap()).unwrap();
        assert!(!self.metadata.is_dirty() && self.metadata.pending_mappings() == 0);
        let freed: HashSet<u64> = freed.iter().cloned().flatten().collect();
        let current = self.model.data_blocks();
        let mut expected = std::mem::replace(&mut self.committed_blocks, current);
        expected.extend(&self.taken);
        expected.extend(self.committed_held.iter().flatten());
        expected.retain(|block| !self.committed_blocks.contains(block) && !self.leaked.contains(block));
        expected.retain(|block| self.held.as_ref().is_none_or(|held| !held.contains(block)));
        self.committed_held = self.held.clone();
        assert!(freed == expected, "freed {} blocks, expected {}", freed.len(), expected.len());
        self.withheld.extend(&freed);
        let late = self.random.one_in(3);
        let reusable: Vec<u64> = self.withheld.iter().copied().filter(|_| !late).collect();
        for block in reusable {
            self.metadata.make_reusable(block..block + 1);
            self.withheld.remove(&block);
        }
        self.taken.clear();
        self.committed = self.model.clone();
        if let Some(volume) = self.pick().filter(|_| self.random.one_in(3)) {
            self.check_exclusive(volume).unwrap();
        }
        if self.counting.is_none() && self.random.one_in(2) {
            self.metadata.begin_count().unwrap();
            self.counting = Some((self.committed.clone(), self.committed_held.clone()));
        }
    }

    /// Compares the disk with the model, and looks at its structure.
    pub fn check(&self) -> Pool {
        let bytes = self.disk.to_bytes();
        let pool = check(&bytes);
        assert!(Model::of(&pool) == self.committed, "the disk is what was committed");
        let usage = self.metadata.usage();
        let in_hand = self.taken.len() as u64;
        assert!(usage.data_allocated <= pool.superblock.data_space_map.allocated_blocks.get() + in_hand);
        pool
    }

    /// The same, and asks `thin_check` if there is one.
    pub fn check_thoroughly(&self) -> Pool {
        let pool = self.check();
        // Leaks that were there before are refused there, and rightly.
        if pool.data_counts_too_high.is_empty() {
            oracle::accepts(&self.disk.to_bytes());
        }
        pool
    }
}

fn id(raw: u64) -> VolumeId {
    VolumeId::new(raw).unwrap()
}

fn is_full(error: &Error) -> bool {
    [ErrorKind::NoDataSpace, ErrorKind::NoMetadataSpace].contains(&error.kind())
}
