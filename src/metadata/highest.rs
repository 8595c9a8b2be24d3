//! The highest mapped block of each volume: remembered until the volume's tree changes, and looked up for many volumes at once.
//!
//! It takes a node of every volume, and who opens or lists a pool wants those of all of them: of 100,000 volumes that is as many reads, one
//! after the other, each time.

use super::Metadata;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::MappingRecord;
use crate::units::{VirtualBlock, VolumeId};
use std::collections::BTreeMap;

/// So many volumes are looked up at once: their nodes are in memory together.
const BATCH: usize = 1024;

/// What is known of the volumes' trees, without what waits in memory to go there.
#[derive(Default)]
pub(super) struct Highest(BTreeMap<VolumeId, Option<u64>>);

impl Highest {
    /// The volume's tree is about to change, or has.
    pub fn forget(&mut self, volume: VolumeId) {
        self.0.remove(&volume);
    }
}

impl<D: Disk> Metadata<D> {
    /// The highest mapped block of a volume. `NotFound`.
    pub fn highest_mapped(&mut self, volume: VolumeId) -> Result<Option<VirtualBlock>> {
        self.require_sound()?;
        let in_tree = match self.highest.0.get(&volume) {
            Some(known) => *known,
            None => {
                let root = self.root_of(volume)?;
                let found = self.space.last_key::<MappingRecord>(root)?;
                self.highest.0.insert(volume, found);
                found
            }
        };
        Ok(in_tree.max(self.pending.last(volume)).map(VirtualBlock))
    }

    /// Looks up at once what [`Metadata::highest_mapped`] will be asked of these volumes. What cannot be read is told then.
    pub fn look_up_highest(&mut self, volumes: impl IntoIterator<Item = VolumeId>) {
        let is_unknown = |volume: &VolumeId| !self.highest.0.contains_key(volume);
        let unknown: Vec<_> = volumes.into_iter().filter(is_unknown).collect();
        for batch in unknown.chunks(BATCH) {
            if self.require_sound().is_err() {
                return;
            }
            let roots: Vec<_> = batch.iter().filter_map(|volume| self.root_of(*volume).ok()).collect();
            self.space.read_ahead_last::<MappingRecord>(&roots);
            for volume in batch {
                let _ = self.highest_mapped(*volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{MemoryDisk, flush_data};
    use crate::metadata::{Access, Geometry, Progress};
    use crate::units::BlockSize;
    use std::io;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// Counts the reads.
    struct Counted(MemoryDisk, AtomicU64);

    impl Disk for Counted {
        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }
        fn grow(&self, size_bytes: u64) -> io::Result<()> {
            self.0.grow(size_bytes)
        }
        fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.1.fetch_add(1, Relaxed);
            self.0.read_at(offset_bytes, buffer)
        }
        fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.write_at(offset_bytes, bytes)
        }
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
        fn discard(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
            self.0.discard(offset_bytes, length_bytes)
        }
        fn name(&self) -> String {
            "counted".to_owned()
        }
    }

    fn id(number: u64) -> VolumeId {
        VolumeId::new(number).unwrap()
    }

    fn fresh(metadata_blocks: u64) -> (MemoryDisk, Metadata<MemoryDisk>) {
        let disk = MemoryDisk::zeroed(metadata_blocks * 4096);
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: 100_000 };
        (disk.clone(), Metadata::format(disk, geometry).unwrap())
    }

    fn commit<D: Disk>(metadata: &mut Metadata<D>) {
        metadata.commit(flush_data(&MemoryDisk::zeroed(0)).unwrap()).unwrap();
    }

    fn map(metadata: &mut Metadata<MemoryDisk>, volume: u64, blocks: Range<u64>) {
        for block in blocks {
            let reserved = metadata.reserve_block(None).unwrap();
            metadata.map(id(volume), VirtualBlock(block), reserved);
        }
    }

    /// Asks of each volume, after which all of it is remembered, and compares with what is mapped.
    fn highest_of(metadata: &mut Metadata<MemoryDisk>, volumes: Range<u64>) -> Vec<Option<u64>> {
        let told = |metadata: &mut Metadata<MemoryDisk>, volume| {
            metadata.highest_mapped(id(volume)).unwrap().map(|block| block.0)
        };
        let all: Vec<_> = volumes.clone().map(|volume| told(metadata, volume)).collect();
        for (volume, told) in volumes.zip(&all) {
            let mut last = None;
            metadata.for_each_mapping(id(volume), 0..u64::MAX, &mut |block, _| last = Some(block.0)).unwrap();
            assert_eq!(*told, last, "volume {volume}");
        }
        all
    }

    #[test]
    fn whatever_changes_a_volume_changes_what_is_remembered_of_it() {
        let (_, mut metadata) = fresh(4000);
        metadata.create_volume(id(0)).unwrap();
        assert_eq!(highest_of(&mut metadata, 0..1), [None]);
        map(&mut metadata, 0, 10..700);
        assert_eq!(highest_of(&mut metadata, 0..1), [Some(699)], "it waits in memory");
        commit(&mut metadata);
        assert_eq!(highest_of(&mut metadata, 0..1), [Some(699)]);
        metadata.snapshot(id(0), id(1)).unwrap();
        assert_eq!(highest_of(&mut metadata, 0..2), [Some(699), Some(699)]);
        map(&mut metadata, 1, 800..801);
        metadata.apply_pending().unwrap();
        assert_eq!(highest_of(&mut metadata, 0..2), [Some(699), Some(800)]);
        assert_eq!(metadata.unmap_range(id(0), 300..900, u64::MAX).unwrap(), Progress::Done);
        assert_eq!(highest_of(&mut metadata, 0..2), [Some(299), Some(800)]);
        metadata.abort().unwrap();
        assert_eq!(highest_of(&mut metadata, 0..1), [Some(699)]);
        metadata.snapshot(id(0), id(1)).unwrap();
        map(&mut metadata, 0, 900..901);
        commit(&mut metadata);
        metadata.snapshot(id(0), id(2)).unwrap();
        assert_eq!(highest_of(&mut metadata, 0..3), [Some(900), Some(699), Some(900)]);
        metadata.replace_mappings(id(0), id(1)).unwrap();
        assert_eq!(highest_of(&mut metadata, 0..3), [Some(699), Some(699), Some(900)]);
        assert_eq!(metadata.delete_volume(id(2), usize::MAX).unwrap(), Progress::Done);
        assert!(metadata.highest_mapped(id(2)).is_err());
        metadata.create_volume(id(2)).unwrap();
        assert_eq!(highest_of(&mut metadata, 0..3), [Some(699), Some(699), None]);
    }

    #[test]
    fn many_volumes_are_looked_up_with_few_reads_and_what_is_damaged_is_told_when_asked() {
        const VOLUMES: u64 = 3000;
        let (disk, mut metadata) = fresh(16_000);
        for volume in 0..VOLUMES {
            metadata.create_volume(id(volume)).unwrap();
            // Some have more than one node.
            let length = if volume.is_multiple_of(500) { 300 } else { 1 };
            map(&mut metadata, volume, volume..volume + length);
        }
        commit(&mut metadata);
        let end = |volume: u64| volume + if volume.is_multiple_of(500) { 299 } else { 0 };
        let damaged = metadata.root_of(id(1234)).unwrap();
        disk.write_at(damaged.offset_bytes(), &[0x55; 4096]).unwrap();
        let counted = Arc::new(Counted(disk, AtomicU64::new(0)));
        let mut metadata = Metadata::open(counted.clone(), Access::ReadOnly).unwrap();
        // Hardly more than the nodes of one batch.
        metadata.set_cache_bytes(2200 * 4096);
        let reads = |work: &mut dyn FnMut()| {
            let before = counted.1.load(Relaxed);
            work();
            counted.1.load(Relaxed) - before
        };
        let found = reads(&mut || metadata.look_up_highest((0..VOLUMES).map(id)));
        assert!(found < VOLUMES / 10, "{found} reads for {VOLUMES} volumes");
        let again = reads(&mut || {
            for volume in (0..VOLUMES).filter(|volume| *volume != 1234) {
                assert_eq!(metadata.highest_mapped(id(volume)).unwrap(), Some(VirtualBlock(end(volume))));
            }
        });
        assert_eq!(again, 0);
        let error = metadata.highest_mapped(id(1234)).unwrap_err();
        assert!(error.message().contains(&damaged.to_string()), "{error}");
    }
}
