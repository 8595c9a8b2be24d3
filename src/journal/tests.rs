//! Journals on disks in memory: what is written is brought in, once, and by nobody else.

use super::*;
use crate::disk::MemoryDisk;
use crate::format::JournalRecord;
use crate::metadata::{Access, Base, Geometry, Partial};
use crate::units::{BlockSize, DataBlock, VirtualBlock, VolumeId};

const BOOT: BootId = BootId([1; 16]);
const OTHER_BOOT: BootId = BootId([2; 16]);
const PAGES: u64 = 4;

struct Pool {
    metadata: MemoryDisk,
    data: MemoryDisk,
    journal: MemoryDisk,
}

fn volume() -> VolumeId {
    VolumeId::new(0).expect("a number")
}

impl Pool {
    /// With one volume, of which nothing is mapped.
    fn new() -> Pool {
        Pool::of(1000)
    }

    /// The same with so many data blocks.
    fn of(data_blocks: u64) -> Pool {
        let geometry = Geometry { block_size: BlockSize::MIN, data_blocks };
        let (disk, data) = (MemoryDisk::zeroed(1 << 20), MemoryDisk::zeroed(data_blocks << 16));
        let mut metadata = Metadata::format(disk.clone(), geometry).expect("there is room");
        metadata.create_volume(volume()).expect("it is new");
        metadata.commit(flush_data(&data).expect("memory")).expect("committed");
        let journal = MemoryDisk::zeroed((1 + PAGES) * JOURNAL_PAGE_BYTES as u64);
        Pool { metadata: disk, data, journal }
    }

    fn open(&self) -> Metadata<MemoryDisk> {
        Metadata::open(self.metadata.clone(), Access::ReadWrite).expect("it is sound")
    }

    fn begin(&self, id: u64) -> Journal {
        begin(&mut self.open(), &self.data, Arc::new(self.journal.clone()), id, BOOT).expect("begun")
    }

    fn recover(&self, boot: BootId) -> Result<(Metadata<MemoryDisk>, Option<Recovered>)> {
        let mut metadata = self.open();
        let recovered = recover(&mut metadata, &self.data, Some(&self.journal), boot)?;
        Ok((metadata, recovered))
    }

    fn flush(&self, journal: &mut Journal) {
        journal.flush(flush_data(&self.data).expect("memory")).expect("flushed");
    }
}

fn map(block: u64) -> JournalRecord {
    let (block, target) = (VirtualBlock(block), DataBlock(block + 100));
    JournalRecord::Map { volume: volume(), block, target, partial: None }
}

fn mapped(metadata: &mut Metadata<MemoryDisk>) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut add =
        |block: VirtualBlock, mapping: crate::units::Mapping| found.push((block.0, mapping.block.0));
    metadata.for_each_mapping(volume(), 0..u64::MAX, &mut add).expect("a volume");
    found
}

fn expected(blocks: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    blocks.map(|block| (block, block + 100)).collect()
}

#[test]
fn what_was_recorded_is_there_and_what_was_not_flushed_only_without_a_power_cut() {
    for (boot, blocks) in [(BOOT, 30), (OTHER_BOOT, 20), (BootId::UNKNOWN, 20)] {
        let pool = Pool::new();
        let mut journal = pool.begin(7);
        (0..20).for_each(|block| journal.append(map(block)).expect("memory"));
        pool.flush(&mut journal);
        pool.flush(&mut journal); // nothing to do
        assert_eq!(journal.next, SLOTS_PER_PAGE);
        (20..30).for_each(|block| journal.append(map(block)).expect("memory"));
        let (mut metadata, recovered) = pool.recover(boot).expect("brought in");
        assert_eq!(recovered, Some(Recovered { records: blocks, after_power_cut: boot != BOOT }));
        assert_eq!(mapped(&mut metadata), expected(0..blocks));
        // Never again.
        let (mut metadata, recovered) = pool.recover(boot).expect("there is nothing");
        assert_eq!((recovered, mapped(&mut metadata)), (None, expected(0..blocks)));
        assert_eq!(pool.metadata.to_bytes()[360..512], [0; 152]);
    }
}

#[test]
fn records_of_an_older_generation_or_journal_are_none() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    let mut metadata = pool.open();
    metadata.begin_replay();
    (0..10).for_each(|block| journal.append(map(block)).expect("memory"));
    // As the keeper does it: all that was recorded is in the trees.
    (0..10).for_each(|block| {
        metadata.map_again(volume(), VirtualBlock(block), DataBlock(block + 100), None).expect("free");
    });
    metadata.set_journal(Some(journal.next_mark()));
    metadata.commit(flush_data(&pool.data).expect("memory")).expect("committed");
    journal.committed();
    (10..13).for_each(|block| journal.append(map(block)).expect("memory"));
    drop(metadata);
    let (mut metadata, recovered) = pool.recover(BOOT).expect("brought in");
    assert_eq!(recovered.map(|recovered| recovered.records), Some(3));
    assert_eq!(mapped(&mut metadata), expected(0..13));
    drop(metadata);
    pool.begin(8);
    assert_eq!(pool.recover(BOOT).expect("sound").1.map(|recovered| recovered.records), Some(0));
}

#[test]
fn another_file_is_refused_and_so_is_none() {
    let pool = Pool::new();
    drop(pool.begin(7));
    let refusal = |disk: Option<&dyn Disk>| {
        let mut metadata = pool.open();
        let error = recover(&mut metadata, &pool.data, disk, BOOT).expect_err("refused");
        assert_eq!(metadata.reserve_block(None).expect_err("not before").kind(), ErrorKind::WrongState);
        error.kind()
    };
    assert_eq!(refusal(None), ErrorKind::NotFound);
    assert_eq!(refusal(Some(&MemoryDisk::zeroed(100))), ErrorKind::WrongState);
    assert_eq!(refusal(Some(&MemoryDisk::zeroed(1 << 20))), ErrorKind::WrongState);
    let other = Pool::new();
    drop(other.begin(8));
    assert_eq!(refusal(Some(&other.journal)), ErrorKind::WrongState);
    assert!(recover(&mut pool.open(), &pool.data, Some(&pool.journal), BOOT).is_ok());
}

/// Sound records that say what cannot be, as no keeper writes them.
#[test]
fn records_that_can_never_have_been_are_refused() {
    let base = |units| Some((Base::Block(DataBlock(5)), units));
    let wrong = [
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(0),
            target: DataBlock(1000),
            partial: None,
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(0),
            target: DataBlock(u64::MAX),
            partial: None,
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(0),
            target: DataBlock(101),
            partial: None,
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(9),
            target: DataBlock(9),
            partial: base(1),
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(9),
            target: DataBlock(9),
            partial: Some((Base::Zeros, 0)),
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(9),
            target: DataBlock(9),
            partial: Some((Base::Zeros, 0xffff)),
        },
        // The origin shows elsewhere, or nowhere.
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(9),
            target: DataBlock(9),
            partial: Some((Base::Origin(VirtualBlock(8)), 1)),
        },
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(u64::MAX >> 1),
            target: DataBlock(9),
            partial: Some((Base::Origin(VirtualBlock(u64::MAX >> 1)), 1)),
        },
        // Something is mapped there.
        JournalRecord::Map {
            volume: volume(),
            block: VirtualBlock(1),
            target: DataBlock(9),
            partial: Some((Base::Origin(VirtualBlock(1)), 1)),
        },
        JournalRecord::Map {
            volume: VolumeId::new(3).expect("a number"),
            block: VirtualBlock(0),
            target: DataBlock(9),
            partial: None,
        },
        JournalRecord::unmap(VolumeId::new(3).expect("a number"), 0..1),
        JournalRecord::Units { block: DataBlock(9), units: 1 << 16 },
    ];
    for record in wrong {
        let pool = Pool::new();
        let mut journal = pool.begin(7);
        journal.append(map(1)).expect("memory");
        journal.append(record).expect("memory");
        let error = pool.recover(BOOT).err().unwrap_or_else(|| panic!("{record:?} is taken"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.message().contains("record 1"), "{error}");
        assert_eq!(mapped(&mut pool.open()), [], "nothing of it is durable");
    }
    // What is merely odd does no harm.
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    for record in [
        JournalRecord::Unmap { volume: volume(), blocks: (7, 3) },
        JournalRecord::unmap(volume(), 0..u64::MAX),
        JournalRecord::Units { block: DataBlock(u64::MAX), units: 1 },
    ] {
        journal.append(record).expect("memory");
    }
    assert!(pool.recover(BOOT).is_ok());
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    for block in 0..100 {
        let partial = (block % 3 == 0).then_some((Base::Origin(VirtualBlock(block)), 1 + block));
        let (block, target) = (VirtualBlock(block), DataBlock(block + 100));
        journal.append(JournalRecord::Map { volume: volume(), block, target, partial }).expect("memory");
        if target.0 % 7 == 0 {
            pool.flush(&mut journal);
        }
        if !journal.has_room() {
            break;
        }
    }
    let (sound, metadata) = (pool.journal.to_bytes(), pool.metadata.to_bytes());
    let mut state = 1_u64;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    for _ in 0..300 {
        let mut bytes = sound.clone();
        match random(3) {
            0 => bytes.truncate(random(sound.len())),
            1 => (0..4).for_each(|_| bytes[random(sound.len())] = random(256) as u8),
            _ => {
                let (from, to) = (random(sound.len() / 64) * 64, random(sound.len() / 64) * 64);
                bytes.copy_within(from..from + 64, to);
            }
        }
        let pool = Pool {
            metadata: MemoryDisk::from_bytes(metadata.clone()),
            data: MemoryDisk::zeroed(1000 << 16),
            journal: MemoryDisk::from_bytes(bytes),
        };
        let boot = if random(2) == 0 { BOOT } else { OTHER_BOOT };
        let _ = pool.recover(boot);
    }
}

#[test]
fn units_come_to_a_partial_block_until_it_is_whole() {
    let (block, target) = (VirtualBlock(3), DataBlock(9));
    for base in [Base::Zeros, Base::Origin(block)] {
        let pool = Pool::new();
        let mut journal = pool.begin(7);
        let records = [
            JournalRecord::Map { volume: volume(), block, target, partial: Some((base, 0b1)) },
            JournalRecord::Units { block: target, units: 0b110 },
            JournalRecord::Units { block: DataBlock(500), units: 0b110 },
        ];
        records.into_iter().for_each(|record| journal.append(record).expect("memory"));
        let (mut metadata, _) = pool.recover(BOOT).expect("brought in");
        assert_eq!(metadata.partials().expect("sound"), [(target, Partial { base, units: 0b111 })]);
        drop(metadata);
        let mut journal = pool.begin(8);
        journal.append(JournalRecord::Units { block: target, units: 0xffff }).expect("memory");
        journal.append(JournalRecord::unmap(volume(), 3..4)).expect("memory");
        let (metadata, _) = pool.recover(BOOT).expect("brought in");
        assert_eq!((metadata.partial_blocks(), metadata.usage().data_allocated), (0, 0));
    }
}

#[test]
fn a_full_journal_has_room_for_its_flush() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    let mut count = 0;
    while journal.has_room() {
        journal.append(map(count)).expect("memory");
        count += 1;
    }
    assert!(journal.is_large());
    pool.flush(&mut journal);
    assert_eq!(count, PAGES * SLOTS_PER_PAGE - 1);
    assert!(!journal.has_room());
    let (mut metadata, _) = pool.recover(OTHER_BOOT).expect("brought in");
    assert_eq!(mapped(&mut metadata), expected(0..count));
}

/// Of a record in the middle, of the last one, and of one before a flush, a bit is wrong.
#[test]
fn a_record_that_is_damaged_is_no_end_where_others_follow() {
    let damaged = |slot: u64, flushes: &[u64], boot: BootId| {
        let pool = Pool::new();
        let mut journal = pool.begin(7);
        for block in 0..30 {
            if flushes.contains(&block) {
                pool.flush(&mut journal);
            }
            journal.append(map(block)).expect("memory");
        }
        let page = SLOTS_PER_PAGE * (slot / SLOTS_PER_PAGE);
        let at = page_offset(page) + (slot - page) * JOURNAL_SLOT_BYTES as u64;
        let mut sector = [0; SECTOR_BYTES];
        let offset = at / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        pool.journal.read_at(offset, &mut sector).expect("it is there");
        sector[(at - offset) as usize + 30] ^= 1;
        pool.journal.write_at(offset, &sector).expect("memory");
        let before = pool.metadata.to_bytes();
        let recovered =
            pool.recover(boot).map(|(_, recovered)| recovered.expect("there is a journal").records);
        if recovered.is_err() {
            assert!(pool.metadata.to_bytes() == before, "another look finds the same");
        }
        recovered.map_err(|error| error.kind())
    };
    assert_eq!(damaged(10, &[], BOOT), Err(ErrorKind::Corrupt));
    assert_eq!(damaged(29, &[], BOOT), Ok(29), "as if it had not been written");
    assert_eq!(damaged(10, &[20], BOOT), Err(ErrorKind::Corrupt));
    // A power cut may take from what was not flushed whatever it likes.
    assert_eq!(damaged(10, &[], OTHER_BOOT), Ok(0));
    assert_eq!(damaged(SLOTS_PER_PAGE + 3, &[10], OTHER_BOOT), Ok(10));
    assert_eq!(damaged(5, &[10], OTHER_BOOT), Err(ErrorKind::Corrupt));
}

#[test]
fn a_file_that_has_lost_its_end_is_refused() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    (0..100).for_each(|block| journal.append(map(block)).expect("memory"));
    for pages in [0, 1, 2, PAGES] {
        let shorter = pool.journal.to_bytes()[..pages as usize * JOURNAL_PAGE_BYTES].to_vec();
        let disk = MemoryDisk::from_bytes(shorter);
        let refused = recover(&mut pool.open(), &pool.data, Some(&disk), BOOT).expect_err("it is too short");
        assert_eq!(refused.kind(), ErrorKind::WrongState, "{pages}: {refused}");
    }
    assert_eq!(pool.recover(BOOT).expect("it is whole").1.map(|recovered| recovered.records), Some(100));
}

#[test]
fn what_is_no_journal_is_not_written_over() {
    let pool = Pool::new();
    let mut metadata = pool.open();
    let disk = MemoryDisk::from_bytes([vec![0; 1000], vec![7; 1 << 20]].concat());
    let before = disk.to_bytes();
    let refused = begin(&mut metadata, &pool.data, Arc::new(disk.clone()), 1, BOOT).err().expect("in use");
    assert_eq!(refused.kind(), ErrorKind::WrongState);
    assert!(disk.to_bytes() == before && metadata.journal().is_none());
}

/// It had been reserved before the commit by which the trees have become so large.
#[test]
fn what_was_recorded_is_brought_in_where_nothing_new_would_be_taken() {
    let pool = Pool::of(1 << 16);
    let mut metadata = pool.open();
    let mut next = (0..).map(|index: u64| VirtualBlock(index * 40_503 % (1 << 16))); // far from each other
    let mut has_just_committed = false;
    loop {
        match metadata.reserve_block(None) {
            Ok(target) => {
                metadata.map(volume(), next.next().expect("endless"), target);
                has_just_committed = false;
            }
            Err(error) if has_just_committed => {
                assert_eq!(error.kind(), ErrorKind::NoMetadataSpace);
                break;
            }
            Err(_) => {
                commit(&mut metadata, flush_data(&pool.data).expect("memory")).expect("committed");
                has_just_committed = true;
            }
        }
    }
    drop(metadata);
    let mut journal = pool.begin(7);
    let block = next.next().expect("endless");
    let target = DataBlock((1 << 16) - 1);
    journal.append(JournalRecord::Map { volume: volume(), block, target, partial: None }).expect("memory");
    let (mut metadata, _) = pool.recover(BOOT).expect("brought in");
    assert_eq!(metadata.lookup(volume(), block).expect("sound").map(|mapping| mapping.block), Some(target));
    assert!(metadata.reserve_block(None).is_err(), "nothing new, as before");
}

#[test]
fn a_journal_says_that_it_is_in_use_while_metadata_may_need_it() {
    let pool = Pool::new();
    assert_eq!(look(&pool.journal).expect("memory"), Found::Nothing);
    prepare(&pool.journal, 3).expect("memory");
    assert_eq!(look(&pool.journal).expect("memory"), Found::Journal { id: 3, in_use: false });
    let mut journal = pool.begin(7);
    assert_eq!(look(&pool.journal).expect("memory"), Found::Journal { id: 7, in_use: true });
    journal.append(map(0)).expect("memory");
    drop(journal);
    pool.recover(BOOT).expect("brought in");
    assert_eq!(look(&pool.journal).expect("memory"), Found::Journal { id: 7, in_use: false });
    let mut journal = pool.begin(8);
    journal.release();
    assert_eq!(look(&pool.journal).expect("memory"), Found::Journal { id: 8, in_use: false });
}

#[test]
fn records_are_trusted_no_more_than_before_when_a_journal_is_released() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    journal.append(map(0)).expect("memory");
    journal.distrust();
    journal.release();
    let (mut metadata, recovered) = pool.recover(BOOT).expect("brought in");
    assert_eq!(recovered.map(|it| (it.records, it.after_power_cut)), Some((0, true)));
    assert_eq!(mapped(&mut metadata), []);
}

#[test]
fn metadata_that_are_older_than_the_journal_are_found_out() {
    let pool = Pool::new();
    let (mut metadata, disk) = (pool.open(), Arc::new(pool.journal.clone()));
    let mut journal = begin(&mut metadata, &pool.data, disk, 7, BOOT).expect("begun");
    journal.append(map(0)).expect("memory");
    pool.flush(&mut journal);
    let older = pool.metadata.to_bytes();
    metadata.set_journal(Some(journal.next_mark()));
    commit(&mut metadata, flush_data(&pool.data).expect("memory")).expect("committed");
    journal.committed();
    journal.append(map(1)).expect("memory");
    drop(metadata);
    let older = Pool {
        metadata: MemoryDisk::from_bytes(older),
        data: pool.data.clone(),
        journal: pool.journal.clone(),
    };
    let refused = older.recover(BOOT).err().expect("they are older");
    assert!(refused.message().contains("1 commits older"), "{refused}");
    assert_eq!(pool.recover(BOOT).expect("the right ones").1.map(|it| it.records), Some(1));
}

/// Of so many records, a flush that begins behind the first ten; the others are written while it goes on, ten before its record and ten
/// after it.
fn flushed_beside(pool: &Pool) -> (Journal, FlushPoint) {
    let mut journal = pool.begin(7);
    (0..10).for_each(|block| journal.append(map(block)).expect("memory"));
    let point = journal.flush_point().expect("there is something");
    (10..20).for_each(|block| journal.append(map(block)).expect("memory"));
    let data_first = flush_data(&pool.data).expect("memory");
    assert!(journal.mark_flush(point, data_first).expect("memory").is_some());
    (20..30).for_each(|block| journal.append(map(block)).expect("memory"));
    (journal, point)
}

#[test]
fn what_is_recorded_beside_a_flush_is_not_of_it() {
    for (boot, blocks) in [(BOOT, 30), (OTHER_BOOT, 10)] {
        let pool = Pool::new();
        let (mut journal, point) = flushed_beside(&pool);
        journal.flushed(point);
        assert!(journal.flush_point().is_some_and(|next| next != point));
        let (mut metadata, recovered) = pool.recover(boot).expect("brought in");
        assert_eq!(recovered, Some(Recovered { records: blocks, after_power_cut: boot != BOOT }));
        assert_eq!(mapped(&mut metadata), expected(0..blocks));
    }
}

#[test]
fn records_beside_a_flush_do_not_say_that_it_is_over() {
    for is_over in [false, true] {
        let pool = Pool::new();
        let (mut journal, point) = flushed_beside(&pool);
        if is_over {
            journal.flushed(point);
            journal.append(map(30)).expect("memory");
        }
        let mut sector = [0; SECTOR_BYTES];
        let offset = JOURNAL_PAGE_BYTES as u64;
        pool.journal.read_at(offset, &mut sector).expect("it is there");
        sector[3 * JOURNAL_SLOT_BYTES] ^= 1;
        pool.journal.write_at(offset, &sector).expect("memory");
        let recovered = pool.recover(OTHER_BOOT).map(|(_, recovered)| recovered.expect("a journal").records);
        let expected = if is_over { Err(ErrorKind::Corrupt) } else { Ok(0) };
        assert_eq!(
            recovered.map_err(|error| error.kind()),
            expected,
            "the power may have taken it: {is_over}"
        );
    }
}

#[test]
fn a_commit_beside_a_flush_leaves_nothing_of_it() {
    let pool = Pool::new();
    let mut metadata = pool.open();
    let mut journal =
        begin(&mut metadata, &pool.data, Arc::new(pool.journal.clone()), 7, BOOT).expect("begun");
    let commit_all = |metadata: &mut Metadata<MemoryDisk>, journal: &mut Journal| {
        metadata.set_journal(Some(journal.next_mark()));
        commit(metadata, flush_data(&pool.data).expect("memory")).expect("committed");
        journal.committed();
    };
    journal.append(map(0)).expect("memory");
    let point = journal.flush_point().expect("there is something");
    commit_all(&mut metadata, &mut journal);
    journal.append(map(1)).expect("memory");
    let data_first = flush_data(&pool.data).expect("memory");
    assert!(journal.mark_flush(point, data_first).expect("memory").is_none());
    // The same with a flush of the journal under way.
    let point = journal.flush_point().expect("there is something");
    let data_first = flush_data(&pool.data).expect("memory");
    assert!(journal.mark_flush(point, data_first).expect("memory").is_some());
    commit_all(&mut metadata, &mut journal);
    journal.append(map(2)).expect("memory");
    journal.flushed(point);
    assert!(journal.flush_point().is_some(), "what came after the commit was not flushed");
}

#[test]
fn records_count_no_more_once_the_data_that_they_name_could_not_be_flushed() {
    let pool = Pool::new();
    let mut journal = pool.begin(7);
    (0..2).for_each(|block| journal.append(map(block)).expect("memory"));
    pool.flush(&mut journal);
    (2..4).for_each(|block| journal.append(map(block)).expect("memory"));
    let data = crate::sim::SimDisk::new("data", 4096, 1);
    data.fail_after(0, None);
    let refused =
        recover(&mut pool.open(), &data, Some(&pool.journal), BOOT).expect_err("nothing is certain");
    assert_eq!(refused.kind(), ErrorKind::Io);
    let (mut metadata, recovered) = pool.recover(BOOT).expect("brought in");
    assert_eq!(recovered, Some(Recovered { records: 2, after_power_cut: true }));
    assert_eq!(mapped(&mut metadata), expected(0..2));
}
