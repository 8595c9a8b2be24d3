//! On a disk whose filesystem has so much space and no more.

use super::super::{Access, Geometry, Progress};
use super::*;
use crate::disk::{MemoryDisk, flush_data};
use crate::format::JournalMark;
use crate::units::{BlockSize, DataBlock, MetaBlock, VirtualBlock, VolumeId};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory, of which the first `space_bytes` have their place. A prefix is all that these tests write.
#[derive(Clone)]
struct SparseDisk {
    memory: MemoryDisk,
    space_bytes: Arc<AtomicU64>,
}

impl SparseDisk {
    fn new(size_bytes: u64, space_bytes: u64) -> Self {
        let space_bytes = Arc::new(AtomicU64::new(space_bytes));
        SparseDisk { memory: MemoryDisk::zeroed(size_bytes), space_bytes }
    }

    fn require_space(&self, end: u64) -> io::Result<()> {
        match end <= self.space_bytes.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl Disk for SparseDisk {
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.memory.grow(size_bytes)
    }
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset_bytes, buffer)
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.require_space(offset_bytes + bytes.len() as u64)?;
        self.memory.write_at(offset_bytes, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        self.memory.discard(offset_bytes, length_bytes)
    }
    fn set_aside(&self, bytes: Range<u64>) -> io::Result<()> {
        self.require_space(bytes.end)
    }
    fn name(&self) -> String {
        "sparse".to_owned()
    }
}

const GEOMETRY: Geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 1000 };
const LARGE_BYTES: u64 = 200 << 20;

fn id(number: u64) -> VolumeId {
    VolumeId::new(number).unwrap()
}

fn commit(metadata: &mut Metadata<SparseDisk>) {
    metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
}

/// Makes volumes, one leaf each, until it is refused; how many there are then.
fn make_volumes(metadata: &mut Metadata<SparseDisk>, mut number: u64) -> (u64, Error) {
    loop {
        match metadata.create_volume(id(number)) {
            Ok(()) => number += 1,
            Err(error) => {
                commit(metadata);
                // The commit gave back what it replaced: that is one try more.
                match metadata.create_volume(id(number)) {
                    Ok(()) => number += 1,
                    Err(_) => return (number, error),
                }
            }
        }
        if number.is_multiple_of(1000) {
            commit(metadata);
        }
    }
}

#[test]
fn a_small_disk_is_backed_as_a_whole_or_is_no_pool() {
    let metadata = Metadata::format(SparseDisk::new(4 << 20, 4 << 20), GEOMETRY).unwrap();
    assert_eq!(metadata.space.references.metadata.counted_on(), 1024);
    let error = Metadata::format(SparseDisk::new(4 << 20, (4 << 20) - 1), GEOMETRY).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoMetadataSpace);
    assert!(error.next_step().is_some());
}

#[test]
fn a_large_disk_is_backed_as_it_fills_and_refuses_what_adds_when_it_cannot_be() {
    let space_bytes = (2 * AHEAD_BYTES) + (16 << 20);
    let disk = SparseDisk::new(LARGE_BYTES, space_bytes);
    let mut metadata = Metadata::format(disk.clone(), GEOMETRY).unwrap();
    let first = metadata.space.references.metadata.counted_on();
    assert!(first * 4096 > AHEAD_BYTES && first * 4096 < AHEAD_BYTES + (1 << 20), "{first} blocks");
    let (volumes, error) = make_volumes(&mut metadata, 0);
    assert_eq!(error.kind(), ErrorKind::NoMetadataSpace);
    assert!(error.message().contains("filesystem has no space"), "{error}");
    assert_eq!(metadata.space.references.metadata.counted_on(), first + 16_384, "one step more");
    let used = metadata.usage().metadata_allocated;
    assert!(used > first && used + 4096 < first + 16_384, "{used} blocks, and the reserve beside");
    // Every volume can go, and none of it needs space that is not there.
    for number in 0..volumes {
        assert_eq!(metadata.delete_volume(id(number), usize::MAX).unwrap(), Progress::Done);
        if number.is_multiple_of(1000) {
            commit(&mut metadata);
        }
    }
    commit(&mut metadata);
    disk.space_bytes.store(LARGE_BYTES, Ordering::Relaxed);
    let (more, error) = make_volumes(&mut metadata, 0);
    assert!(more > volumes, "{more}, {volumes} before");
    assert!(error.message().contains("too few free metadata blocks"), "{error}");
}

#[test]
fn a_bare_disk_takes_deletions_only_until_it_has_space() {
    let disk = SparseDisk::new(8 << 20, 8 << 20);
    let mut metadata = Metadata::format(disk.clone(), GEOMETRY).unwrap();
    (0..10).for_each(|number| metadata.create_volume(id(number)).unwrap());
    commit(&mut metadata);
    drop(metadata);
    // What is written lies in the front part, and has its place.
    disk.space_bytes.store(4 << 20, Ordering::Relaxed);
    let mut metadata = Metadata::open(disk.clone(), Access::ReadWrite).unwrap();
    let refused = [
        metadata.create_volume(id(20)).unwrap_err(),
        metadata.snapshot(id(0), id(20)).map(|_| ()).unwrap_err(),
        metadata.reserve_block(None).map(|_| ()).unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::NoMetadataSpace), "{refused:?}");
    assert_eq!(metadata.delete_volume(id(3), usize::MAX).unwrap(), Progress::Done);
    commit(&mut metadata);
    disk.space_bytes.store(8 << 20, Ordering::Relaxed);
    metadata.create_volume(id(20)).unwrap();
    commit(&mut metadata);
    assert!(metadata.space.references.metadata.last_allocated() < 1024, "blocks come from the front");
    assert_eq!(metadata.space.references.metadata.referenced(MetaBlock(0)), Ok(1));
}

/// The daemon was killed on a full filesystem: what its journal holds had its space, which is part of what a fresh daemon would ask for.
#[test]
fn what_a_journal_holds_is_brought_in_on_a_bare_disk() {
    let disk = SparseDisk::new(LARGE_BYTES, LARGE_BYTES);
    let mut metadata = Metadata::format(disk.clone(), GEOMETRY).unwrap();
    metadata.create_volume(id(0)).unwrap();
    metadata.set_journal(Some(JournalMark { id: 1, generation: 1, from: 0 }));
    commit(&mut metadata);
    disk.space_bytes.store(AHEAD_BYTES, Ordering::Relaxed);
    let mut metadata = Metadata::open(disk, Access::ReadWrite).unwrap();
    assert_eq!(metadata.backing, Backing::Bare);
    metadata.begin_replay();
    metadata.map_again(id(0), VirtualBlock(3), DataBlock(7), None).unwrap();
    metadata.set_journal(None);
    commit(&mut metadata);
    metadata.end_replay();
    assert_eq!(metadata.lookup(id(0), VirtualBlock(3)).unwrap().unwrap().block, DataBlock(7));
    assert_eq!(metadata.create_volume(id(1)).unwrap_err().kind(), ErrorKind::NoMetadataSpace);
    assert_eq!(metadata.delete_volume(id(0), usize::MAX).unwrap(), Progress::Done);
}
