//! The journal's bytes: a header, and slots of 64 bytes with one record each. An extension of ours; a file of its own, no
//! part of dm-thin's metadata.
//!
//! - A record carries the number of its journal, its generation and its slot, and a checksum over all of it. So it is known
//!   wherever it is read whether it is one that was written there for this generation: what an older one left behind is none.
//! - A record that was written while a flush of the journal was under way says so: others show that all before them was durable.
//! - The header says in which run of the operating system the journal was begun: by that a reader knows whether the records are
//!   those that were written, or those that a power cut has left of them.
//! - Reading takes any bytes; what a record says is for whoever carries it out to check.

use super::Base;
use crate::units::{DataBlock, VirtualBlock, VolumeId};
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

/// Size of a record with all that belongs to it.
pub const JOURNAL_SLOT_BYTES: usize = 64;
/// Slots are written in pages of this size, after one for the header. What a flush has made durable shares its page with nothing
/// that is written later.
pub const JOURNAL_PAGE_BYTES: usize = 4096;
/// Slots of a page.
pub const SLOTS_PER_PAGE: u64 = (JOURNAL_PAGE_BYTES / JOURNAL_SLOT_BYTES) as u64;
/// Size of the header: a sector, which is written as a whole or not at all.
pub const JOURNAL_HEADER_BYTES: usize = 512;

const MAGIC: [u8; 16] = *b"uthin journal\n\x1a\0";
/// Version 1 knew neither of `until` nor of flushes that records are written beside: in it both are 0, which says what was so then.
const VERSION: u32 = 2;

/// One run of the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// None: who reads this takes no record for good that was not flushed.
    pub const UNKNOWN: BootId = BootId([0; 16]);

    /// Whether `other` is the same run, and known.
    pub fn is_same(self, other: BootId) -> bool {
        self == other && self != Self::UNKNOWN
    }
}

/// The beginning of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalHeader {
    /// The number by which the superblock knows it.
    pub id: u64,
    /// The run of the operating system in which it was begun.
    pub boot: BootId,
    /// Slots that it has: a file with fewer has lost some.
    pub slots: u32,
    /// It may hold what its pool's metadata do not: nobody else takes its place. Journals that were begun before this was said say no.
    pub in_use: bool,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 16],
    version: U32,
    checksum: U32,
    id: U64,
    boot: [u8; 16],
    slots: U32,
    in_use: U32,
    rest: [u8; JOURNAL_HEADER_BYTES - 56],
}

impl JournalHeader {
    /// Its bytes.
    pub fn encode(self) -> [u8; JOURNAL_HEADER_BYTES] {
        let mut raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            checksum: U32::ZERO,
            id: U64::new(self.id),
            boot: self.boot.0,
            slots: U32::new(self.slots),
            in_use: U32::new(self.in_use.into()),
            rest: [0; _],
        };
        raw.checksum = U32::new(crc32fast::hash(raw.as_bytes()));
        transmute!(raw)
    }

    /// Whether these bytes are a journal's, of whatever version, damaged or not.
    pub fn begins(bytes: &[u8; JOURNAL_HEADER_BYTES]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// What these bytes are the header of; why they are none, in words.
    pub fn decode(bytes: &[u8; JOURNAL_HEADER_BYTES]) -> Result<Self, String> {
        let raw: &RawHeader = transmute_ref!(bytes);
        if raw.magic != MAGIC {
            return Err("it does not begin as a journal does".to_owned());
        }
        if !(1..=VERSION).contains(&raw.version.get()) {
            return Err(format!("found version {}, expected 1 to {VERSION}", raw.version.get()));
        }
        let sum = crc32fast::hash(RawHeader { checksum: U32::ZERO, ..*raw }.as_bytes());
        if sum != raw.checksum.get() {
            return Err(format!("found checksum {:#x} in its header, expected {sum:#x}", raw.checksum.get()));
        }
        if raw.slots.get() == 0 {
            return Err("its header says that it has no room for a record".to_owned());
        }
        let in_use = raw.in_use.get() != 0;
        Ok(JournalHeader { id: raw.id.get(), boot: BootId(raw.boot), slots: raw.slots.get(), in_use })
    }
}

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalPlace {
    /// The journal's number.
    pub id: u64,
    /// Which of its generations.
    pub generation: u64,
    /// Slot, from the first page after the header on.
    pub slot: u64,
}

/// What a record says has happened, in the order of the slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalRecord {
    /// A virtual block is at this data block now, which was free.
    Map {
        /// Whose.
        volume: VolumeId,
        /// Which.
        block: VirtualBlock,
        /// Where.
        target: DataBlock,
        /// If it is a partial block: its base and the units that it holds.
        partial: Option<(Base, u64)>,
    },
    /// Virtual blocks are mapped no more.
    Unmap {
        /// Whose.
        volume: VolumeId,
        /// First block, and the one after the last.
        blocks: (u64, u64),
    },
    /// A partial block holds these units, too.
    Units {
        /// The data block.
        block: DataBlock,
        /// Those that have come.
        units: u64,
    },
    /// The data is durable that all records name which are in slots before this one.
    Flushed {
        /// A slot: this record's own, or one before it. 0 is read as its own.
        until: u64,
    },
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32,
    kind: U16,
    /// 1: written beside a flush.
    flags: U16,
    id: U64,
    generation: U64,
    slot: U32,
    volume: U32,
    fields: [U64; 4],
}

const MAP: u16 = 1;
const MAP_PART: u16 = 2;
const UNMAP: u16 = 3;
const UNITS: u16 = 4;
const FLUSHED: u16 = 5;

const BESIDE_FLUSH: u16 = 1;

impl JournalRecord {
    /// The slot's bytes. `beside_flush`: the journal is being flushed, after a record that says so, and it is not known to be over.
    pub fn encode(self, place: JournalPlace, beside_flush: bool) -> [u8; JOURNAL_SLOT_BYTES] {
        let (kind, volume, fields) = match self {
            JournalRecord::Map { volume, block, target, partial: None } => {
                (MAP, volume.get(), [block.0, target.0, 0, 0])
            }
            JournalRecord::Map { volume, block, target, partial: Some((base, units)) } => {
                (MAP_PART, volume.get(), [block.0, target.0, base.pack(), units])
            }
            JournalRecord::Unmap { volume, blocks } => (UNMAP, volume.get(), [blocks.0, blocks.1, 0, 0]),
            JournalRecord::Units { block, units } => (UNITS, 0, [block.0, units, 0, 0]),
            JournalRecord::Flushed { until } => (FLUSHED, 0, [until, 0, 0, 0]),
        };
        let mut raw = Raw {
            checksum: U32::ZERO,
            kind: U16::new(kind),
            flags: U16::new(if beside_flush { BESIDE_FLUSH } else { 0 }),
            id: U64::new(place.id),
            generation: U64::new(place.generation),
            slot: U32::new(u32::try_from(place.slot).expect("a journal has fewer slots")),
            volume: U32::new(u32::try_from(volume).expect("a volume's number has 24 bits")),
            fields: fields.map(U64::new),
        };
        raw.checksum = U32::new(crc32fast::hash(raw.as_bytes()));
        transmute!(raw)
    }

    /// The record that was written to this place; `None`: these bytes are none.
    pub fn decode(bytes: &[u8; JOURNAL_SLOT_BYTES], place: JournalPlace) -> Option<Self> {
        let raw: &Raw = transmute_ref!(bytes);
        let found = (raw.id.get(), raw.generation.get(), u64::from(raw.slot.get()));
        if found != (place.id, place.generation, place.slot) {
            return None;
        }
        if crc32fast::hash(Raw { checksum: U32::ZERO, ..*raw }.as_bytes()) != raw.checksum.get() {
            return None;
        }
        let [first, second, third, fourth] = raw.fields.map(U64::get);
        let volume = VolumeId::new(u64::from(raw.volume.get()))?;
        if raw.flags.get() & !BESIDE_FLUSH != 0 {
            return None;
        }
        Some(match raw.kind.get() {
            kind @ (MAP | MAP_PART) => {
                let partial = (kind == MAP_PART).then_some((Base::unpack(third), fourth));
                JournalRecord::Map { volume, block: VirtualBlock(first), target: DataBlock(second), partial }
            }
            UNMAP => JournalRecord::Unmap { volume, blocks: (first, second) },
            UNITS => JournalRecord::Units { block: DataBlock(first), units: second },
            FLUSHED if first == 0 => JournalRecord::Flushed { until: place.slot },
            FLUSHED if first <= place.slot => JournalRecord::Flushed { until: first },
            _ => return None,
        })
    }

    /// Whether these bytes, which are a record's, were written beside a flush.
    pub fn is_beside_flush(bytes: &[u8; JOURNAL_SLOT_BYTES]) -> bool {
        let raw: &Raw = transmute_ref!(bytes);
        raw.flags.get() & BESIDE_FLUSH != 0
    }

    /// The generation that these bytes are of, if they are a record that was written to this slot of this journal.
    pub fn generation(bytes: &[u8; JOURNAL_SLOT_BYTES], id: u64, slot: u64) -> Option<u64> {
        let raw: &Raw = transmute_ref!(bytes);
        let generation = raw.generation.get();
        Self::decode(bytes, JournalPlace { id, generation, slot }).map(|_| generation)
    }

    /// The unmapping of a range.
    pub fn unmap(volume: VolumeId, blocks: Range<u64>) -> Self {
        JournalRecord::Unmap { volume, blocks: (blocks.start, blocks.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> [JournalRecord; 7] {
        let volume = VolumeId::new(0xff_fffe).expect("a number");
        let (block, target) = (VirtualBlock(7), DataBlock((1 << 40) - 1));
        [
            JournalRecord::Map { volume, block, target, partial: None },
            JournalRecord::Map { volume, block, target, partial: Some((Base::Zeros, 1)) },
            JournalRecord::Map { volume, block, target, partial: Some((Base::Block(DataBlock(0)), 0b110)) },
            JournalRecord::Map { volume, block, target, partial: Some((Base::Origin(block), 0b110)) },
            JournalRecord::unmap(volume, 3..u64::MAX),
            JournalRecord::Units { block: target, units: 1 << 63 },
            JournalRecord::Flushed { until: 70 },
        ]
    }

    #[test]
    fn what_is_written_is_read_at_its_place_and_at_no_other() {
        let place = JournalPlace { id: 9, generation: 3, slot: 70 };
        for (record, beside_flush) in records().into_iter().zip([false, true].into_iter().cycle()) {
            let bytes = record.encode(place, beside_flush);
            assert_eq!(JournalRecord::decode(&bytes, place), Some(record));
            assert_eq!(JournalRecord::is_beside_flush(&bytes), beside_flush);
            assert_eq!(JournalRecord::generation(&bytes, 9, 70), Some(3));
            assert_eq!(
                (JournalRecord::generation(&bytes, 8, 70), JournalRecord::generation(&bytes, 9, 0)),
                (None, None)
            );
            for other in [
                JournalPlace { id: 8, ..place },
                JournalPlace { generation: 2, ..place },
                JournalPlace { generation: 4, ..place },
                JournalPlace { slot: 71, ..place },
            ] {
                assert_eq!(JournalRecord::decode(&bytes, other), None);
            }
        }
    }

    #[test]
    fn every_wrong_bit_is_seen() {
        let place = JournalPlace { id: 9, generation: 3, slot: 70 };
        for record in records() {
            for bit in 0..JOURNAL_SLOT_BYTES * 8 {
                let mut bytes = record.encode(place, false);
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(JournalRecord::decode(&bytes, place), None, "bit {bit}");
            }
        }
        let header = JournalHeader { id: 5, boot: BootId([7; 16]), slots: 640, in_use: false };
        assert_eq!(JournalHeader::decode(&header.encode()), Ok(header));
        let header = JournalHeader { in_use: true, ..header };
        assert_eq!(JournalHeader::decode(&header.encode()), Ok(header));
        assert!(JournalHeader::decode(&JournalHeader { slots: 0, ..header }.encode()).is_err());
        for (version, is_known) in [(0, false), (1, true), (3, false)] {
            let mut raw: RawHeader = transmute!(header.encode());
            (raw.version, raw.checksum) = (U32::new(version), U32::ZERO);
            raw.checksum = U32::new(crc32fast::hash(raw.as_bytes()));
            assert_eq!(JournalHeader::decode(&transmute!(raw)) == Ok(header), is_known, "version {version}");
        }
        for bit in 0..JOURNAL_HEADER_BYTES * 8 {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(JournalHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_flush_that_does_not_say_how_far_it_reaches_reaches_up_to_its_own_place() {
        let place = JournalPlace { id: 9, generation: 3, slot: 70 };
        let bytes = JournalRecord::Flushed { until: 0 }.encode(place, false);
        assert_eq!(JournalRecord::decode(&bytes, place), Some(JournalRecord::Flushed { until: 70 }));
        let later = JournalRecord::Flushed { until: 71 }.encode(place, false);
        assert_eq!(JournalRecord::decode(&later, place), None, "nobody knows what comes");
    }

    #[test]
    fn a_run_that_nobody_knows_is_no_run() {
        assert!(BootId([1; 16]).is_same(BootId([1; 16])) && !BootId([1; 16]).is_same(BootId([2; 16])));
        assert!(!BootId::UNKNOWN.is_same(BootId::UNKNOWN));
    }
}
