//! Full pools, damaged pools, and pools that cannot be: refusals that say what is wrong, and ways back that work.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod common;

use common::{Random, check, fixture, fixture_names, oracle};
use uthin::checksum::BlockKind;
use uthin::disk::{Disk, MemoryDisk, flush_data};
use uthin::error::{Error, ErrorKind};
use uthin::format::{Block, Superblock};
use uthin::metadata::{Access, Geometry, Metadata, Progress};
use uthin::units::{BlockSize, MetaBlock, SnapTime, VirtualBlock, VolumeId};

fn id(raw: u64) -> VolumeId {
    VolumeId::new(raw).unwrap()
}

fn format(metadata_blocks: u64, data_blocks: u64) -> uthin::error::Result<Metadata<MemoryDisk>> {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
    Metadata::format(MemoryDisk::zeroed(metadata_blocks * 4096), geometry)
}

fn commit(metadata: &mut Metadata<MemoryDisk>) {
    for range in metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap() {
        metadata.make_reusable(range);
    }
}

/// Maps until there is no space, committing as a pool does: now and then, and when refused. At the brink a commit gives back
/// enough for a few more, again and again; after `limit` refusals that is enough of it.
fn fill(
    metadata: &mut Metadata<MemoryDisk>,
    volume: u64,
    limit: u32,
    keys: &mut dyn FnMut() -> u64,
) -> Error {
    let (mut refusals, mut refused) = (0, false);
    for step in 1.. {
        match metadata.reserve_block(None) {
            Ok(block) => {
                metadata.map(id(volume), VirtualBlock(keys()), block);
                refused = false;
            }
            Err(error) if refused || refusals == limit => return error,
            Err(_) => {
                (refused, refusals) = (true, refusals + 1);
                commit(metadata);
            }
        }
        if step % 500 == 0 {
            commit(metadata);
        }
    }
    unreachable!("every device is full at last")
}

#[test]
fn a_small_metadata_device_is_usable_to_near_its_reserve() {
    for (sharing, least_percent) in [(false, 80), (true, 78)] {
        let mut metadata = format(1024, 1_000_000).unwrap();
        metadata.create_volume(id(0)).unwrap();
        let mut random = Random::new(5);
        for _ in 0..2000 {
            let block = metadata.reserve_block(None).unwrap();
            metadata.map(id(0), VirtualBlock(random.below(1 << 24)), block);
        }
        for snapshot in (1..4).filter(|_| sharing) {
            metadata.snapshot(id(0), id(snapshot)).unwrap();
        }
        let error = fill(&mut metadata, 0, u32::MAX, &mut || random.below(1 << 24));
        assert_eq!(error.kind(), ErrorKind::NoMetadataSpace, "{error}");
        let usage = metadata.usage();
        let percent = 100 * usage.metadata_allocated / usage.metadata_total;
        assert!(percent >= least_percent, "sharing {sharing}: refused at {percent} %");
        assert!(usage.metadata_allocated + usage.metadata_reserve <= usage.metadata_total);
    }
}

#[test]
fn a_full_pool_can_be_emptied() {
    for seed in 0..12 {
        let disk = MemoryDisk::zeroed([200, 300, 500, 1000][seed as usize % 4] * 4096);
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 300_000 };
        let mut metadata = Metadata::format(disk.clone(), geometry).unwrap();
        let mut random = Random::new(seed);
        let mut volumes = 0;
        // Volumes and snapshots as long as they are taken, each written to, until nothing goes any more.
        while metadata.create_volume(id(volumes)).is_ok() && volumes < 6 {
            volumes += 1;
            for _ in 0..400 {
                let Ok(block) = metadata.reserve_block(None) else { break };
                metadata.map(id(volumes - 1), VirtualBlock(random.below(100_000)), block);
            }
            commit(&mut metadata);
            if metadata.snapshot(id(volumes - 1), id(volumes)).is_ok() {
                volumes += 1;
            }
            commit(&mut metadata);
        }
        let error = fill(&mut metadata, 0, 100, &mut || random.below(1 << 22));
        assert_eq!(error.kind(), ErrorKind::NoMetadataSpace, "{error}");
        check::check(&disk.to_bytes());
        let full = metadata.usage();
        // Discards work while the reserve lasts, and deletion always.
        metadata.unmap_range(id(0), 0..1 << 20, 10_000).unwrap();
        commit(&mut metadata);
        for volume in 0..volumes {
            while metadata.delete_volume(id(volume), 1 + random.below(50) as usize).unwrap() != Progress::Done
            {
                if random.one_in(2) {
                    commit(&mut metadata);
                }
            }
            commit(&mut metadata);
            check::check(&disk.to_bytes());
        }
        let empty = metadata.usage();
        assert_eq!(empty.data_allocated, 0);
        assert!(empty.metadata_allocated < 30, "{empty:?} after {full:?}");
        oracle::accepts(&disk.to_bytes());
        metadata.create_volume(id(1)).unwrap();
    }
}

#[test]
fn too_small_a_device_is_refused_with_the_size_that_it_takes() {
    for data_blocks in [1, 1000, 1_000_000, 100_000_000] {
        let error = format(4, data_blocks).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let words: Vec<&str> = error.message().split(' ').collect();
        let needed: u64 = words[words.iter().position(|word| *word == "least").unwrap() + 1].parse().unwrap();
        // That size will do: for the pool, and for a volume with a block in it.
        assert!(format(needed / 4096 - 1, data_blocks).is_err());
        let mut metadata = format(needed / 4096, data_blocks).unwrap();
        metadata.create_volume(id(0)).unwrap();
        let block = metadata.reserve_block(None).unwrap();
        metadata.map(id(0), VirtualBlock(7), block);
        commit(&mut metadata);
        assert_eq!(metadata.delete_volume(id(0), 100).unwrap(), Progress::Done);
    }
    for data_blocks in [0, 1 << 40, u64::MAX] {
        assert_eq!(format(1000, data_blocks).map(|_| ()).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn a_device_that_is_no_pool_is_refused_with_what_was_found() {
    type Damage = fn(&mut Superblock, &mut Vec<u8>);
    let cases: [(Damage, ErrorKind, &str); 11] = [
        (|_, bytes| bytes[..4096].fill(0), ErrorKind::Invalid, "not formatted"),
        (|_, bytes| bytes[32] ^= 1, ErrorKind::Corrupt, "found magic 0x19c52bb, expected 0x19c52ba"),
        (|_, bytes| bytes[400] ^= 1, ErrorKind::Corrupt, "block 0: bad checksum for a superblock"),
        (|s, b| reseal(s, b, 5), ErrorKind::Corrupt, "carries block number 5, expected 0"),
        (
            |s, b| change(s, b, |s| s.version = 1),
            ErrorKind::Unsupported,
            "found metadata version 1, expected 2",
        ),
        (|s, b| change(s, b, |s| s.incompat_flags = 8), ErrorKind::Unsupported, "incompatible features 0x8"),
        (
            |s, b| change(s, b, |s| s.compat_ro_flags = 2),
            ErrorKind::Unsupported,
            "features 0x2, expected none",
        ),
        (|s, b| change(s, b, |s| s.flags |= 1), ErrorKind::NeedsCheck, "needs_check"),
        (
            |_, bytes| bytes.truncate(2047 * 4096),
            ErrorKind::Invalid,
            "8384512 bytes, but the metadata was made for 8388608",
        ),
        (|_, bytes| bytes.truncate(100), ErrorKind::Invalid, "found 100 bytes"),
        (
            |s, b| change(s, b, |s| s.metadata_space_map.total_blocks.set(0)),
            ErrorKind::Corrupt,
            "space map of 0 blocks",
        ),
    ];
    for (damage, kind, words) in cases {
        let mut bytes = fixture("04-snap-diverged");
        let mut superblock = superblock_of(&bytes);
        damage(&mut superblock, &mut bytes);
        let error = Metadata::open(MemoryDisk::from_bytes(bytes), Access::ReadWrite).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(words), "{words} in {error}");
        assert!(
            error.message().starts_with("cannot open the metadata on memory: "),
            "the disk is named: {error}"
        );
    }
    // What forbids only writing does not forbid reading.
    for change_flags in [|s: &mut Superblock| s.compat_ro_flags = 2, |s: &mut Superblock| s.flags |= 1] {
        let mut bytes = fixture("04-snap-diverged");
        let mut superblock = superblock_of(&bytes);
        change(&mut superblock, &mut bytes, change_flags);
        let mut metadata = Metadata::open(MemoryDisk::from_bytes(bytes), Access::ReadOnly).unwrap();
        assert_eq!(metadata.volumes().unwrap().len(), 2);
        assert_eq!(metadata.create_volume(id(9)).unwrap_err().kind(), ErrorKind::WrongState);
        assert_eq!(metadata.reserve_block(None).unwrap_err().kind(), ErrorKind::WrongState);
    }
}

fn superblock_of(bytes: &[u8]) -> Superblock {
    let mut block = Block::ZERO;
    block.0.copy_from_slice(&bytes[..4096]);
    Superblock::decode(&block)
}

fn reseal(superblock: &mut Superblock, bytes: &mut [u8], number: u64) {
    bytes[..4096].copy_from_slice(&superblock.encode(MetaBlock(number)).0);
}

fn change(superblock: &mut Superblock, bytes: &mut [u8], change: impl Fn(&mut Superblock)) {
    change(superblock);
    reseal(superblock, bytes, 0);
}

#[test]
fn the_clock_is_not_let_run_over() {
    let mut bytes = fixture("02-seq");
    let mut superblock = superblock_of(&bytes);
    change(&mut superblock, &mut bytes, |s| s.time = SnapTime(SnapTime::MAX.0 - 1));
    let mut metadata = Metadata::open(MemoryDisk::from_bytes(bytes), Access::ReadWrite).unwrap();
    assert_eq!(metadata.snapshot(id(0), id(1)).unwrap(), SnapTime::MAX);
    let error = metadata.snapshot(id(0), id(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    commit(&mut metadata);
}

#[test]
fn unknown_and_known_volumes_are_told_apart() {
    let mut metadata = format(200, 1000).unwrap();
    metadata.create_volume(id(5)).unwrap();
    metadata.snapshot(id(5), id(6)).unwrap();
    let not_found = [
        metadata.lookup(id(7), VirtualBlock(0)).map(|_| ()),
        metadata.for_each_mapping(id(7), 0..10, &mut |_, _| ()),
        metadata.highest_mapped(id(7)).map(|_| ()),
        metadata.snapshot(id(7), id(8)).map(|_| ()),
        metadata.delete_volume(id(7), 10).map(|_| ()),
        metadata.unmap_range(id(7), 0..10, 10).map(|_| ()),
    ];
    for result in not_found {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(metadata.snapshot(id(5), id(6)).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(metadata.details(id(7)).unwrap(), None);
    assert_eq!(metadata.unmap_range(id(5), 10..10, 10).unwrap(), Progress::Done);
    assert_eq!(metadata.highest_mapped(id(5)).unwrap(), None);
    commit(&mut metadata);
}

/// Whatever bytes are on the device, nothing panics: every operation answers or refuses.
#[test]
fn damaged_metadata_never_panics() {
    let names: Vec<String> = fixture_names()
        .into_iter()
        .filter(|name| ["04", "07", "08", "09", "15", "17", "18"].contains(&&name[..2]))
        .collect();
    let (mut random, mut refused, mut noticed) = (Random::new(11), 0, 0);
    for round in 0..350 {
        let mut bytes = fixture(&names[round % names.len()]);
        for _ in 0..1 + random.below(6) {
            damage(&mut bytes, &mut random);
        }
        let disk = MemoryDisk::from_bytes(bytes);
        let Ok(mut metadata) = Metadata::open(disk, Access::ReadWrite) else {
            refused += 1;
            continue;
        };
        noticed += u32::from(work_on(&mut metadata, &mut random));
    }
    assert!(refused > 0 && noticed > 50, "{refused} refused, damage noticed in {noticed}");
}

/// Changes some bytes of some block and makes its checksum right again, so that the damage is seen by what it means.
fn damage(bytes: &mut [u8], random: &mut Random) {
    let (blocks, _) = bytes.as_chunks_mut::<4096>();
    let number = loop {
        let number = random.below(blocks.len() as u64);
        if Block(blocks[number as usize])
            .kind()
            .is_some_and(|kind| kind != BlockKind::Superblock || random.one_in(20))
        {
            break number;
        }
    };
    let mut block = Block(blocks[number as usize]);
    let kind = block.kind().unwrap();
    for _ in 0..1 + random.below(3) {
        let at = if random.one_in(2) { random.below(80) } else { random.below(4096) } as usize;
        block.0[at] = match random.below(3) {
            0 => random.next() as u8,
            1 => block.0[at] ^ 1,
            _ => 0,
        };
    }
    if random.one_in(6) {
        // A number of an existing block in the place of another.
        let at = 32 + 8 * random.below(500) as usize;
        block.0[at..at + 8].copy_from_slice(&random.below(300).to_le_bytes());
    }
    block.seal(MetaBlock(number), kind);
    blocks[number as usize] = block.0;
}

/// Random work; whether it came upon the damage.
fn work_on<D: Disk>(metadata: &mut Metadata<D>, random: &mut Random) -> bool {
    let mut noticed = false;
    let mut failed = |error: Option<Error>| {
        noticed |= error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Corrupt);
        error.is_some()
    };
    let volumes = metadata.volumes();
    let volumes: Vec<VolumeId> = volumes.unwrap_or_default().into_iter().map(|(volume, _)| volume).collect();
    for _ in 0..30 {
        let volume =
            volumes.get(random.below(volumes.len().max(1) as u64) as usize).copied().unwrap_or(id(0));
        let begin = random.below(30_000);
        let failed = match random.below(8) {
            0 => failed(metadata.unmap_range(volume, begin..begin + random.below(9000), 500).err()),
            1 => failed(metadata.delete_volume(volume, 30).err()),
            2 => failed(metadata.snapshot(volume, id(random.below(1000))).err()),
            3 => failed(metadata.for_each_mapping(volume, 0..u64::MAX, &mut |_, _| ()).err()),
            4 => failed(metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).err()),
            5 => failed(metadata.highest_mapped(volume).err()) | failed(metadata.details(volume).err()),
            _ => {
                metadata.lookup(volume, VirtualBlock(begin)).is_ok() && {
                    (0..50).any(|i| match metadata.reserve_block(None) {
                        Ok(block) => {
                            metadata.map(volume, VirtualBlock(begin + i * 3), block);
                            false
                        }
                        Err(error) => failed(Some(error)),
                    })
                }
            }
        };
        if failed && random.one_in(3) && metadata.abort().is_err() {
            break;
        }
    }
    noticed
}
