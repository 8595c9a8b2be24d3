//! Partial blocks beside a model of them: random work, committed, thrown away, reopened, with and without room to spare. What
//! is durable is looked at by the checker each time.

use super::super::{Access, Geometry, Progress};
use super::*;
use crate::check::{CheckOptions, MendOptions, Mended, Severity, Verdict, check, check_and_mend};
use crate::checksum::BlockKind;
use crate::disk::{MemoryDisk, flush_data};
use crate::error::ErrorKind;
use crate::format::{Block, FEATURE_PARTIAL_BLOCKS, NodeMut};
use crate::units::{BlockSize, META_BLOCK_BYTES, TransactionId};

const ALL: u64 = 0xffff;

fn id(number: u64) -> VolumeId {
    VolumeId::new(number).unwrap()
}

fn fresh(metadata_blocks: u64, data_blocks: u64) -> (MemoryDisk, Metadata<MemoryDisk>) {
    let disk = MemoryDisk::zeroed(metadata_blocks * 4096);
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
    let metadata = Metadata::format(disk.clone(), geometry).unwrap();
    (disk, metadata)
}

/// The blocks that it frees, which can be used again at once.
fn commit(metadata: &mut Metadata<MemoryDisk>) -> Vec<u64> {
    let freed = metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    freed.iter().for_each(|range| metadata.make_reusable(range.clone()));
    freed.into_iter().flatten().collect()
}

/// What the checker says, and the superblock's bytes from the feature flags to the end of our field.
fn checked(disk: &MemoryDisk) -> (u64, [u8; 12]) {
    let copy = MemoryDisk::from_bytes(disk.to_bytes());
    let report = check(&copy, &CheckOptions::default()).unwrap();
    assert_eq!(report.verdict, Verdict::Clean, "{:?}", report.findings);
    let bytes = disk.to_bytes();
    (report.partial_blocks, bytes[360..372].try_into().unwrap())
}

/// A partial block on `base`.
fn fill(metadata: &mut Metadata<MemoryDisk>, volume: u64, block: u64, base: Base, units: u64) -> DataBlock {
    let (reserved, may_be_partial) = metadata.reserve_partial_block(None).unwrap();
    assert!(may_be_partial);
    metadata.map_partial(id(volume), VirtualBlock(block), reserved, Partial { base, units });
    reserved
}

/// Puts another record in the place of the first, in the only leaf, and counts it as if it belonged there.
fn replace_first(metadata: &mut Metadata<MemoryDisk>, block: DataBlock, old: Partial, new: PartialRecord) {
    let root = metadata.partials.root.unwrap();
    metadata.space.node_mut(root).set_value(0, new);
    metadata.partials.count_out(block.0, old.record());
    metadata.partials.count_in(block.0, new);
}

fn whole(metadata: &mut Metadata<MemoryDisk>, volume: u64, block: u64) -> DataBlock {
    let reserved = metadata.reserve_block(None).unwrap();
    metadata.map(id(volume), VirtualBlock(block), reserved);
    reserved
}

#[test]
fn a_base_is_held_until_the_last_unit_is_there() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let old = whole(&mut metadata, 0, 7);
    commit(&mut metadata);
    assert_eq!(checked(&disk), (0, [0; 12]));
    metadata.snapshot(id(0), id(1)).unwrap();
    let new = fill(&mut metadata, 0, 7, Base::Block(old), 0b100);
    let zero = fill(&mut metadata, 0, 8, Base::Zeros, 0b1);
    assert_eq!(metadata.partial_blocks(), 2);
    commit(&mut metadata);
    let (count, bytes) = checked(&disk);
    assert_eq!((count, bytes[..4].try_into().unwrap()), (2, FEATURE_PARTIAL_BLOCKS.to_le_bytes()));
    // The snapshot goes, and its block stays.
    assert_eq!(metadata.delete_volume(id(1), 1000).unwrap(), Progress::Done);
    assert_eq!(commit(&mut metadata).len(), 0);
    metadata.put_units(&[(new, 0b1100), (zero, ALL)]).unwrap();
    assert!(metadata.is_dirty());
    commit(&mut metadata);
    assert_eq!(checked(&disk).0, 1);
    let mut reopened = Metadata::open(MemoryDisk::from_bytes(disk.to_bytes()), Access::ReadWrite).unwrap();
    let expected = vec![(new, Partial { base: Base::Block(old), units: 0b1100 })];
    assert_eq!(reopened.partials().unwrap(), expected);
    // With the last unit: nothing of ours is left.
    metadata.put_units(&[(new, ALL), (zero, ALL)]).unwrap();
    assert_eq!(commit(&mut metadata), [old.0]);
    assert_eq!(checked(&disk), (0, [0; 12]));
    assert!(!metadata.is_dirty());
}

/// Nothing here makes one: whose block a base is, is for the keeper to know.
#[test]
fn a_base_that_somebody_would_write_to_in_place_is_found_by_the_check() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let own = whole(&mut metadata, 0, 7);
    fill(&mut metadata, 0, 8, Base::Block(own), 0b1);
    commit(&mut metadata);
    let report = check(&MemoryDisk::from_bytes(disk.to_bytes()), &CheckOptions::default()).unwrap();
    let found: Vec<_> = report.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("virtual block 7 is mapped, with 0, to a data block that others refer to"),
        "{found:?}"
    );
}

#[test]
fn a_block_that_is_freed_takes_its_entry_and_its_base_along() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let old = whole(&mut metadata, 0, 7);
    let new = {
        metadata.snapshot(id(0), id(1)).unwrap();
        fill(&mut metadata, 0, 7, Base::Block(old), 0b100)
    };
    commit(&mut metadata);
    metadata.snapshot(id(0), id(2)).unwrap();
    metadata.delete_volume(id(1), 1000).unwrap();
    metadata.delete_volume(id(0), 1000).unwrap();
    assert_eq!(commit(&mut metadata).len(), 0);
    assert_eq!(checked(&disk).0, 1, "the second snapshot has it");
    assert_eq!(metadata.unmap_range(id(2), 0..100, 100).unwrap(), Progress::Done);
    // Which the keeper may not know yet.
    metadata.put_units(&[(new, 0b110)]).unwrap();
    assert_eq!(commit(&mut metadata), [old.0, new.0]);
    assert_eq!(checked(&disk), (0, [0; 12]));
    // Come and gone in one transaction.
    let base = whole(&mut metadata, 2, 1);
    commit(&mut metadata);
    metadata.snapshot(id(2), id(3)).unwrap();
    let gone = fill(&mut metadata, 2, 1, Base::Block(base), 1);
    metadata.apply_pending().unwrap();
    metadata.unmap_range(id(2), 0..100, 100).unwrap();
    assert_eq!(commit(&mut metadata), [gone.0]);
    assert_eq!(checked(&disk), (0, [0; 12]));
}

#[test]
fn what_is_thrown_away_leaves_no_trace() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let old = whole(&mut metadata, 0, 7);
    metadata.snapshot(id(0), id(1)).unwrap();
    let first = fill(&mut metadata, 0, 7, Base::Block(old), 0b100);
    commit(&mut metadata);
    fill(&mut metadata, 0, 9, Base::Zeros, 0b100);
    metadata.apply_pending().unwrap();
    fill(&mut metadata, 0, 10, Base::Zeros, 0b100);
    metadata.put_units(&[(first, ALL)]).unwrap();
    metadata.abort().unwrap();
    assert_eq!(metadata.partials().unwrap(), [(first, Partial { base: Base::Block(old), units: 0b100 })]);
    let (reserved, _) = metadata.reserve_partial_block(None).unwrap();
    metadata.release_block(reserved);
    metadata.put_units(&[(first, 0b101)]).unwrap();
    commit(&mut metadata);
    assert_eq!(checked(&disk).0, 1);
}

#[test]
fn a_metadata_snapshot_has_no_tree_of_its_own() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let block = fill(&mut metadata, 0, 7, Base::Zeros, 0b100);
    commit(&mut metadata);
    metadata.reserve_snapshot().unwrap();
    commit(&mut metadata);
    assert_eq!(checked(&disk).0, 1);
    metadata.unmap_range(id(0), 0..100, 100).unwrap();
    commit(&mut metadata);
    assert_eq!(checked(&disk).0, 1, "the snapshot has the block");
    metadata.release_snapshot().unwrap();
    assert_eq!(commit(&mut metadata), [block.0]);
    assert_eq!(checked(&disk), (0, [0; 12]));
}

#[test]
fn trees_that_cannot_be_are_refused() {
    type Spoil = fn(&mut PartialRecord);
    let cases: [(Spoil, &str); 5] = [
        (|record| record.mask = 0.into(), "has none of its units"),
        (|record| record.mask = ALL.into(), "has all of its units"),
        (|record| record.mask = 0x1_0000.into(), "and there are only"),
        (|record| record.base = 5000.into(), "past the end"),
        (|record| record.base = u64::MAX.into(), "where no volume is"),
    ];
    for (spoil, words) in cases {
        let (disk, mut metadata) = fresh(1000, 1000);
        metadata.create_volume(id(0)).unwrap();
        let block = fill(&mut metadata, 0, 7, Base::Zeros, 0b100);
        metadata.apply_pending().unwrap();
        let partial = Partial { base: Base::Zeros, units: 0b100 };
        let mut record = partial.record();
        spoil(&mut record);
        replace_first(&mut metadata, block, partial, record);
        commit(&mut metadata);
        let report = check(&disk, &CheckOptions::default()).unwrap();
        let found = |finding: &&crate::check::Finding| finding.severity == Severity::Damage;
        let finding = report.findings.iter().find(found).unwrap_or_else(|| panic!("nothing for {words}"));
        assert!(finding.message.contains(words), "{}", finding.message);
        assert!(!report.to_lines().contains("of the last commit"), "{}", report.to_lines());
        let error = Metadata::open(disk, Access::ReadWrite).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{block:?}: {error}");
    }
}

#[test]
fn an_origin_is_a_base_without_a_reference_at_the_place_of_its_block() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let origin = Base::Origin(VirtualBlock(7));
    let block = fill(&mut metadata, 0, 7, origin, 0b100);
    commit(&mut metadata);
    assert_eq!((checked(&disk).0, metadata.usage().data_allocated), (1, 1));
    metadata.snapshot(id(0), id(1)).unwrap();
    metadata.delete_volume(id(0), 1000).unwrap();
    assert!(commit(&mut metadata).is_empty());
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    assert_eq!(metadata.partials().unwrap(), [(block, Partial { base: origin, units: 0b100 })]);
    metadata.put_units(&[(block, 0b1100)]).unwrap();
    commit(&mut metadata);
    assert_eq!(metadata.partials().unwrap(), [(block, Partial { base: origin, units: 0b1100 })]);
    metadata.put_units(&[(block, ALL)]).unwrap();
    assert!(commit(&mut metadata).is_empty());
    assert_eq!(checked(&disk), (0, [0; 12]));
}

#[test]
fn an_origin_at_another_place_is_found_by_the_check() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let partial = Partial { base: Base::Origin(VirtualBlock(7)), units: 0b100 };
    let first = fill(&mut metadata, 0, 7, partial.base, partial.units);
    fill(&mut metadata, 0, 9, Base::Origin(VirtualBlock(9)), 0b100);
    metadata.apply_pending().unwrap();
    let elsewhere = Partial { base: Base::Origin(VirtualBlock(8)), units: 0b100 };
    replace_first(&mut metadata, first, partial, elsewhere.record());
    commit(&mut metadata);
    metadata.snapshot(id(0), id(1)).unwrap();
    commit(&mut metadata);
    let report = check(&disk, &CheckOptions::default()).unwrap();
    let found: Vec<_> = report.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!((report.verdict, found.len()), (Verdict::Damage, 1), "the leaf is shared: {found:?}");
    let words =
        "virtual block 7 is mapped, with 0, to a partial block whose base is an external origin elsewhere";
    assert_eq!(found[0], words);
}

/// As if the write of the leaf had gone astray: everywhere else is what was committed.
#[test]
fn an_older_leaf_is_known_to_be_none_of_the_last_commit() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    let first = fill(&mut metadata, 0, 7, Base::Zeros, 0b100);
    commit(&mut metadata);
    let second = fill(&mut metadata, 0, 8, Base::Zeros, 0b1);
    metadata.put_units(&[(first, 0b110)]).unwrap();
    commit(&mut metadata);
    let all = metadata.partials().unwrap();
    let leaf = metadata.superblock.partial_tree().unwrap().root.offset_bytes();
    // An entry with fewer units, and one entry less, each in a sound block.
    for keys in [vec![(first, 0b100), (second, 0b1)], vec![(first, 0b110)]] {
        let mut bytes = disk.to_bytes();
        let block = &mut bytes[leaf as usize..][..META_BLOCK_BYTES];
        let mut older = Block::ZERO;
        older.0.copy_from_slice(block);
        let mut node = NodeMut::initialise(&mut older, NodeKind::Leaf, size_of::<PartialRecord>());
        for (index, (key, units)) in keys.iter().enumerate() {
            node.insert(index, key.0, Partial { base: Base::Zeros, units: *units }.record());
        }
        older.seal(MetaBlock(leaf / META_BLOCK_BYTES as u64), BlockKind::Node);
        block.copy_from_slice(&older.0);
        let disk = MemoryDisk::from_bytes(bytes);

        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = Metadata::open(disk.clone(), access).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.message().contains("not those of the last commit"), "{error}");
            assert!(
                error.next_step().is_some_and(|hint| hint.contains("--accept-partial-blocks")),
                "{error}"
            );
        }
        let all_but_that =
            MendOptions { space_maps: true, needs_check: true, journal: true, partial_blocks: false };
        let (report, mended) = check_and_mend(&disk, &CheckOptions::default(), all_but_that).unwrap();
        assert_eq!((report.verdict, mended), (Verdict::Damage, Mended::default()), "{}", report.to_lines());
        let damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
        let [finding] = damage.collect::<Vec<_>>()[..] else { panic!("{}", report.to_lines()) };
        assert!(finding.message.contains("not those of the last commit"), "{finding}");

        let accept = MendOptions { partial_blocks: true, ..MendOptions::default() };
        let (report, mended) = check_and_mend(&disk, &CheckOptions::default(), accept).unwrap();
        assert_eq!((report.verdict, mended.partial_blocks), (Verdict::Clean, true), "{}", report.to_lines());
        let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
        let units: Vec<_> =
            metadata.partials().unwrap().into_iter().map(|(block, partial)| (block, partial.units)).collect();
        assert_eq!(units, keys);
        // It goes on, and ends as if nothing had been.
        metadata.put_units(&[(first, ALL), (second, ALL)]).unwrap();
        commit(&mut metadata);
        assert_eq!(checked(&disk), (0, [0; 12]));
    }
    assert_eq!(metadata.partials().unwrap(), all);
}

/// Taken for good are only partial blocks with nothing else wrong about them.
#[test]
fn partial_blocks_that_cannot_be_are_not_accepted() {
    let (disk, mut metadata) = fresh(1000, 1000);
    metadata.create_volume(id(0)).unwrap();
    fill(&mut metadata, 0, 7, Base::Zeros, 0b100);
    metadata.apply_pending().unwrap();
    let root = metadata.partials.root.unwrap();
    metadata.space.node_mut(root).set_value(0, Partial { base: Base::Zeros, units: ALL }.record());
    commit(&mut metadata);
    let before = disk.to_bytes();
    let accept = MendOptions { partial_blocks: true, ..MendOptions::default() };
    let (report, mended) = check_and_mend(&disk, &CheckOptions::default(), accept).unwrap();
    assert_eq!((report.verdict, mended), (Verdict::Damage, Mended::default()), "{}", report.to_lines());
    assert!(report.to_lines().contains("of the last commit"), "{}", report.to_lines());
    assert!(disk.to_bytes() == before, "nothing is written");
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(limit)) >> 64) as u64
    }
}

/// What a block is filled with, as the engine does it.
fn random_fill(
    metadata: &mut Metadata<MemoryDisk>,
    random: &mut Random,
    volume: VolumeId,
    block: u64,
) -> bool {
    let current = metadata.lookup(volume, VirtualBlock(block)).unwrap();
    let snapshotted = metadata.details(volume).unwrap().unwrap().snapshotted_time;
    let current = match current {
        Some(mapping) if mapping.time >= snapshotted => return true,
        other => other.map(|mapping| mapping.block),
    };
    let is_partial = |metadata: &Metadata<_>, block: DataBlock| {
        metadata.partials.blocks.contains(block.0) || metadata.partials.pending.contains_key(&block.0)
    };
    let base = match current {
        Some(block) if is_partial(metadata, block) => None,
        Some(block) => Some(Base::Block(block)),
        None if block.is_multiple_of(3) => Some(Base::Origin(VirtualBlock(block))),
        None => Some(Base::Zeros),
    };
    match (base.filter(|_| random.below(5) > 0), metadata) {
        (None, metadata) => match metadata.reserve_block(None) {
            Ok(reserved) => {
                metadata.map(volume, VirtualBlock(block), reserved);
                true
            }
            Err(_) => false,
        },
        (Some(base), metadata) => match metadata.reserve_partial_block(None) {
            Ok((reserved, true)) => {
                let units = 1 + random.below(ALL - 1);
                metadata.map_partial(volume, VirtualBlock(block), reserved, Partial { base, units });
                true
            }
            Ok((reserved, false)) => {
                metadata.map(volume, VirtualBlock(block), reserved);
                true
            }
            Err(_) => false,
        },
    }
}

fn play(seed: u64, metadata_blocks: u64, virtual_blocks: u64) -> (u64, u64) {
    let (disk, mut metadata) = fresh(metadata_blocks, 20_000);
    let mut random = Random(seed * 0x9e37_79b9 + 1);
    let (mut refused, mut most) = (0, 0);
    let is_refused = |error: &Error| {
        let refusal = matches!(error.kind(), ErrorKind::NoMetadataSpace | ErrorKind::NoDataSpace);
        assert!(refusal, "seed {seed}: {error}");
        true
    };
    for step in 0..400 {
        let volumes: Vec<_> = metadata.volumes().unwrap().into_iter().map(|(id, _)| id).collect();
        let some = volumes.get(random.below(volumes.len().max(1) as u64) as usize).copied();
        let done = match (random.below(20), some) {
            (0..=9, Some(volume)) => {
                let begin = random.below(virtual_blocks);
                let spread = 1 + random.below(40);
                let all = (0..1 + random.below(60)).all(|number| {
                    random_fill(
                        &mut metadata,
                        &mut random,
                        volume,
                        (begin + number * spread) % virtual_blocks,
                    )
                });
                refused += u64::from(!all);
                Ok(())
            }
            (10 | 11, _) => {
                let mut all = metadata.partials().unwrap();
                all.retain(|_| random.below(3) == 0);
                let more = |units: u64, random: &mut Random| match random.below(3) {
                    0 => ALL,
                    _ => units | (1 << random.below(16)),
                };
                let more: Vec<_> = all
                    .into_iter()
                    .map(|(block, partial)| (block, more(partial.units, &mut random)))
                    .collect();
                metadata.put_units(&more)
            }
            (12, Some(origin)) if volumes.len() < 9 => metadata
                .snapshot(origin, id(100 + step))
                .map(drop)
                .or_else(|error| is_refused(&error).then_some(()).ok_or(error)),
            (13, Some(volume)) if volumes.len() > 2 => {
                metadata.delete_volume(volume, 1 + random.below(50) as usize).map(drop)
            }
            (14, Some(volume)) => {
                let begin = random.below(virtual_blocks);
                let removed = metadata.unmap_range(volume, begin..begin + random.below(200), 100);
                removed.map(drop).or_else(|error| is_refused(&error).then_some(()).ok_or(error))
            }
            (15, _) if random.below(6) == 0 => metadata.abort(),
            (16, _) if random.below(4) == 0 => {
                if metadata.held_root().is_some() {
                    metadata.release_snapshot()
                } else {
                    commit(&mut metadata);
                    metadata
                        .reserve_snapshot()
                        .map(drop)
                        .or_else(|error| is_refused(&error).then_some(()).ok_or(error))
                }
            }
            (17, _) => {
                commit(&mut metadata);
                let (count, _) = checked(&disk);
                assert_eq!(count, metadata.partial_blocks(), "seed {seed}");
                most = most.max(count);
                if random.below(4) == 0 {
                    let before = metadata.partials().unwrap();
                    metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
                    assert_eq!(metadata.partials().unwrap(), before, "seed {seed}");
                }
                Ok(())
            }
            (18, _) => {
                let now = metadata.transaction_id();
                metadata.set_transaction_id(now, TransactionId(now.0 + 1))
            }
            (_, _) if volumes.len() < 6 => metadata
                .create_volume(id(1000 + step))
                .or_else(|error| is_refused(&error).then_some(()).ok_or(error)),
            (_, _) => Ok(()),
        };
        // Deletions always work; at worst after a commit.
        if let Err(error) = done {
            is_refused(&error);
            commit(&mut metadata);
        }
    }
    commit(&mut metadata);
    checked(&disk);
    // Whatever there is can go, however full it is.
    let volumes: Vec<_> = metadata.volumes().unwrap().into_iter().map(|(id, _)| id).collect();
    if metadata.held_root().is_some() {
        metadata.release_snapshot().unwrap();
        commit(&mut metadata);
    }
    for volume in volumes {
        while metadata.delete_volume(volume, 100).unwrap() != Progress::Done {}
        commit(&mut metadata);
    }
    assert_eq!((checked(&disk), metadata.usage().data_allocated), ((0, [0; 12]), 0), "seed {seed}");
    (refused, most)
}

#[test]
fn random_work_keeps_all_promises() {
    let mut most = 0;
    for seed in 1..12 {
        most = most.max(play(seed, 4000, 2000).1);
    }
    assert!(most > 300, "{most} partial blocks at most");
}

#[test]
fn at_the_brink_it_is_refused_and_never_fails_half_way() {
    let (mut refused, mut most) = (0, 0);
    for seed in 20..50 {
        let (these, count) =
            play(seed, [120, 180, 256, 400][seed as usize % 4], [3000, 20_000][seed as usize % 2]);
        (refused, most) = (refused + these, most.max(count));
    }
    assert!(refused > 100 && most > 50, "{refused} refused, {most} partial blocks at most");
}
