//! The superblock (format §3): block 0, from which everything else hangs, and its copy in a metadata snapshot.
//!
//! Bytes that mean nothing to us (unknown flags, the uuid, the tail) are kept as they were read.

use super::block::Block;
use super::records::{SPACE_MAP_ROOT_BYTES, SpaceMapRoot};
use crate::checksum::BlockKind;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, META_BLOCK_BYTES, MetaBlock, SnapTime, TransactionId};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

/// What bytes 32..40 of a superblock hold.
pub const SUPERBLOCK_MAGIC: u64 = 27_022_010;
/// The one version of the format that we know.
pub const SUPERBLOCK_VERSION: u32 = 2;
/// Bit of [`Superblock::flags`]: a checker must look at the metadata before it is changed.
pub const FLAG_NEEDS_CHECK: u32 = 1;
/// Bit of [`Superblock::incompat_flags`], ours: the pool has partial blocks ([`super::PartialRecord`]), and who takes its
/// mappings for whole blocks reads what nobody has written. Set exactly while the tree of them is not empty. From the top,
/// because the kernel will give out its bits from the bottom.
pub const FEATURE_PARTIAL_BLOCKS: u32 = 1 << 29;
/// The same, of programs before this one, which kept no sum of the entries: they would leave it as it was.
const FEATURE_PARTIAL_BLOCKS_WITHOUT_SUM: u32 = 1 << 31;
/// Bit of [`Superblock::incompat_flags`], ours: a journal beside the metadata holds changes on top of this commit
/// ([`Superblock::journal`]), and who does not bring them in loses what was promised to be durable.
pub const FEATURE_JOURNAL: u32 = 1 << 30;
/// Size of a metadata block in sectors, the only one there is.
pub const METADATA_BLOCK_SECTORS: u32 = 8;

/// A space map root with the zeros behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PaddedRoot {
    root: SpaceMapRoot,
    padding: [u8; SPACE_MAP_ROOT_BYTES - size_of::<SpaceMapRoot>()],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U32,
    flags: U32,
    number: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    time: U32,
    transaction_id: U64,
    held_root: U64,
    data_space_map: PaddedRoot,
    metadata_space_map: PaddedRoot,
    mapping_root: U64,
    details_root: U64,
    data_block_sectors: U32,
    metadata_block_sectors: U32,
    metadata_blocks_at_format: U64,
    compat_flags: U32,
    compat_ro_flags: U32,
    incompat_flags: U32,
    /// Ours, with [`FEATURE_PARTIAL_BLOCKS`]; else it means nothing.
    partial_root: U64,
    /// Ours, with [`FEATURE_JOURNAL`]; else they mean nothing.
    journal_id: U64,
    journal_generation: U64,
    journal_from: U64,
    /// Ours, with [`FEATURE_PARTIAL_BLOCKS`]; else it means nothing.
    partial_sum: U64,
    tail: [u8; META_BLOCK_BYTES - 404],
}

/// Where the partial blocks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialTree {
    /// Root of the tree of partial blocks.
    pub root: MetaBlock,
    /// The sum of all its entries' [`super::PartialRecord::summand`], without the carry. What a leaf says is in no other count, so
    /// only by this an older leaf, which is sound, is known to be none of the last commit.
    pub sum: u64,
}

/// Which records of which journal are not in the trees yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalMark {
    /// The number by which journal and superblock know each other; another one each time that a journal is begun.
    pub id: u64,
    /// Steps with every commit, which empties the journal.
    pub generation: u64,
    /// The first slot of this generation whose record is not in the trees; 0 unless a replay has got so far.
    pub from: u64,
}

/// A superblock's fields. What is read by [`Superblock::decode`] and given to [`Superblock::encode`] unchanged yields the
/// same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Bits; [`FLAG_NEEDS_CHECK`] is the only one known.
    pub flags: u32,
    /// Whatever was found there; the kernel writes zeros.
    pub uuid: [u8; 16],
    /// [`SUPERBLOCK_MAGIC`].
    pub magic: u64,
    /// [`SUPERBLOCK_VERSION`].
    pub version: u32,
    /// The pool's clock, incremented once per snapshot.
    pub time: SnapTime,
    /// The user-space transaction id.
    pub transaction_id: TransactionId,
    /// The block of the metadata snapshot; 0 = none.
    pub held_root: u64,
    /// Of the data device. All zeros in a metadata snapshot.
    pub data_space_map: SpaceMapRoot,
    /// Of the metadata device. All zeros in a metadata snapshot.
    pub metadata_space_map: SpaceMapRoot,
    /// Root of the upper mapping tree.
    pub mapping_root: MetaBlock,
    /// Root of the details tree.
    pub details_root: MetaBlock,
    /// Size of a data block in sectors.
    pub data_block_sectors: u32,
    /// [`METADATA_BLOCK_SECTORS`].
    pub metadata_block_sectors: u32,
    /// Size of the metadata device in blocks when it was formatted; stale after it has grown.
    pub metadata_blocks_at_format: u64,
    /// Feature bits that anyone may ignore.
    pub compat_flags: u32,
    /// Feature bits that forbid writing to who does not know them.
    pub compat_ro_flags: u32,
    /// Feature bits that forbid opening to who does not know them.
    pub incompat_flags: u32,
    /// With [`FEATURE_PARTIAL_BLOCKS`]: the tree of partial blocks. Without: whatever was found there, zeros mostly.
    pub partial_fields: PartialTree,
    /// With [`FEATURE_JOURNAL`]: what the journal holds on top of this commit. Without: whatever was found there, zeros mostly.
    pub journal_fields: JournalMark,
    rest: Rest,
}

/// The bytes of a superblock that mean nothing to us.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rest {
    after_data_root: [u8; SPACE_MAP_ROOT_BYTES - size_of::<SpaceMapRoot>()],
    after_metadata_root: [u8; SPACE_MAP_ROOT_BYTES - size_of::<SpaceMapRoot>()],
    tail: Box<[u8]>,
}

impl Superblock {
    /// One for a new pool, with zeros for roots and space maps.
    pub fn new(data_block_size: BlockSize, metadata_blocks: u64) -> Self {
        let mut superblock = Self::decode(&Block::ZERO);
        superblock.magic = SUPERBLOCK_MAGIC;
        superblock.version = SUPERBLOCK_VERSION;
        superblock.data_block_sectors = data_block_size.sectors();
        superblock.metadata_block_sectors = METADATA_BLOCK_SECTORS;
        superblock.metadata_blocks_at_format = metadata_blocks;
        superblock
    }

    /// The fields of any block, without judging them.
    pub fn decode(block: &Block) -> Self {
        let raw: &Raw = transmute_ref!(&block.0);
        Superblock {
            flags: raw.flags.get(),
            uuid: raw.uuid,
            magic: raw.magic.get(),
            version: raw.version.get(),
            time: SnapTime(raw.time.get()),
            transaction_id: TransactionId(raw.transaction_id.get()),
            held_root: raw.held_root.get(),
            data_space_map: raw.data_space_map.root,
            metadata_space_map: raw.metadata_space_map.root,
            mapping_root: MetaBlock(raw.mapping_root.get()),
            details_root: MetaBlock(raw.details_root.get()),
            data_block_sectors: raw.data_block_sectors.get(),
            metadata_block_sectors: raw.metadata_block_sectors.get(),
            metadata_blocks_at_format: raw.metadata_blocks_at_format.get(),
            compat_flags: raw.compat_flags.get(),
            compat_ro_flags: raw.compat_ro_flags.get(),
            incompat_flags: raw.incompat_flags.get(),
            partial_fields: PartialTree {
                root: MetaBlock(raw.partial_root.get()),
                sum: raw.partial_sum.get(),
            },
            journal_fields: JournalMark {
                id: raw.journal_id.get(),
                generation: raw.journal_generation.get(),
                from: raw.journal_from.get(),
            },
            rest: Rest {
                after_data_root: raw.data_space_map.padding,
                after_metadata_root: raw.metadata_space_map.padding,
                tail: raw.tail.as_slice().into(),
            },
        }
    }

    /// The tree of partial blocks, if there are any.
    pub fn partial_tree(&self) -> Option<PartialTree> {
        (self.incompat_flags & FEATURE_PARTIAL_BLOCKS != 0).then_some(self.partial_fields)
    }

    /// Says where the tree of partial blocks is: with one the feature, without one zeros.
    pub fn set_partial_tree(&mut self, tree: Option<PartialTree>) {
        if self.partial_tree() == tree {
            return; // what means nothing stays
        }
        self.partial_fields = tree.unwrap_or(PartialTree { root: MetaBlock(0), sum: 0 });
        self.incompat_flags &= !FEATURE_PARTIAL_BLOCKS;
        self.incompat_flags |= tree.map_or(0, |_| FEATURE_PARTIAL_BLOCKS);
    }

    /// What a journal holds on top of this commit; `None`: there is nothing but what the trees say.
    pub fn journal(&self) -> Option<JournalMark> {
        (self.incompat_flags & FEATURE_JOURNAL != 0).then_some(self.journal_fields)
    }

    /// Says which journal is to be looked at: with one the feature, without one zeros.
    pub fn set_journal(&mut self, mark: Option<JournalMark>) {
        if self.journal() == mark {
            return; // what means nothing stays
        }
        self.journal_fields = mark.unwrap_or(JournalMark { id: 0, generation: 0, from: 0 });
        self.incompat_flags &= !FEATURE_JOURNAL;
        self.incompat_flags |= mark.map_or(0, |_| FEATURE_JOURNAL);
    }

    /// What a metadata snapshot keeps of it: everything but the space maps, which go on without it (format §7.3).
    pub fn for_metadata_snapshot(&self) -> Self {
        let mut copy = self.clone();
        copy.held_root = 0;
        (copy.data_space_map, copy.metadata_space_map) =
            (SpaceMapRoot::new_zeroed(), SpaceMapRoot::new_zeroed());
        // The live one goes on, and is of all blocks that either has.
        copy.set_partial_tree(None);
        copy.set_journal(None);
        copy.rest.after_data_root.fill(0);
        copy.rest.after_metadata_root.fill(0);
        copy
    }

    /// The fields of a block that must be a sound superblock of a version and with features that we know.
    ///
    /// `Corrupt`: magic, checksum, own number, or a field that cannot be. `Unsupported`: version, or incompatible
    /// features. Left to the caller: read-only features, needs_check, and whether the roots are where they can be.
    pub fn read(block: &Block, number: MetaBlock) -> Result<Self> {
        let superblock = Self::decode(block);
        if superblock.magic != SUPERBLOCK_MAGIC {
            return Err(Error::corrupt(
                number,
                format_args!(
                    "no superblock of a thin pool: found magic {:#x}, expected {SUPERBLOCK_MAGIC:#x}",
                    superblock.magic
                ),
            ));
        }
        block.verify(number, BlockKind::Superblock)?;
        superblock.require_known_version(number)?;
        superblock.require_sane_fields(number)?;
        Ok(superblock)
    }

    fn require_known_version(&self, number: MetaBlock) -> Result<()> {
        if self.version != SUPERBLOCK_VERSION {
            let what = format!(
                "metadata block {number}: found metadata version {}, expected {SUPERBLOCK_VERSION}",
                self.version
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let unknown = self.incompat_flags & !(FEATURE_PARTIAL_BLOCKS | FEATURE_JOURNAL);
        if unknown != 0 {
            let what =
                format!("metadata block {number}: found incompatible features {unknown:#x}, expected none");
            let hint = match unknown {
                FEATURE_PARTIAL_BLOCKS_WITHOUT_SUM => {
                    "an uthin before this one has left partial blocks: `uthin pool settle` of that one makes whole blocks of them"
                }
                _ => "the metadata was written by a newer program; open it with that one",
            };
            return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
        }
        Ok(())
    }

    fn require_sane_fields(&self, number: MetaBlock) -> Result<()> {
        if self.data_block_size().is_none() {
            return Err(Error::corrupt(
                number,
                format_args!(
                    "found a data block size of {} sectors, expected a multiple of {} up to {}",
                    self.data_block_sectors,
                    BlockSize::MIN.sectors(),
                    BlockSize::MAX.sectors()
                ),
            ));
        }
        if self.metadata_block_sectors != METADATA_BLOCK_SECTORS {
            return Err(Error::corrupt(
                number,
                format_args!(
                    "found a metadata block size of {} sectors, expected {METADATA_BLOCK_SECTORS}",
                    self.metadata_block_sectors
                ),
            ));
        }
        if self.partial_tree().is_some_and(|tree| tree.root == MetaBlock::SUPERBLOCK) {
            let what = "found the feature of partial blocks without their tree, expected its root";
            return Err(Error::corrupt(number, what));
        }
        if self.time > SnapTime::MAX {
            return Err(Error::corrupt(
                number,
                format_args!("found pool time {}, expected at most {}", self.time.0, SnapTime::MAX.0),
            ));
        }
        Ok(())
    }

    /// The size of a data block, if it is one that can be.
    pub fn data_block_size(&self) -> Option<BlockSize> {
        BlockSize::from_sectors(u64::from(self.data_block_sectors))
    }

    /// Whether a checker must look at the metadata before it is changed.
    pub fn needs_check(&self) -> bool {
        self.flags & FLAG_NEEDS_CHECK != 0
    }

    /// The block's bytes, sealed with `number` (0, or the copy's own in a metadata snapshot).
    pub fn encode(&self, number: MetaBlock) -> Block {
        let mut tail = [0; META_BLOCK_BYTES - 404];
        tail.copy_from_slice(&self.rest.tail);
        let raw = Raw {
            checksum: U32::ZERO,
            flags: U32::new(self.flags),
            number: U64::new(number.0),
            uuid: self.uuid,
            magic: U64::new(self.magic),
            version: U32::new(self.version),
            time: U32::new(self.time.0),
            transaction_id: U64::new(self.transaction_id.0),
            held_root: U64::new(self.held_root),
            data_space_map: PaddedRoot { root: self.data_space_map, padding: self.rest.after_data_root },
            metadata_space_map: PaddedRoot {
                root: self.metadata_space_map,
                padding: self.rest.after_metadata_root,
            },
            mapping_root: U64::new(self.mapping_root.0),
            details_root: U64::new(self.details_root.0),
            data_block_sectors: U32::new(self.data_block_sectors),
            metadata_block_sectors: U32::new(self.metadata_block_sectors),
            metadata_blocks_at_format: U64::new(self.metadata_blocks_at_format),
            compat_flags: U32::new(self.compat_flags),
            compat_ro_flags: U32::new(self.compat_ro_flags),
            incompat_flags: U32::new(self.incompat_flags),
            partial_root: U64::new(self.partial_fields.root.0),
            journal_id: U64::new(self.journal_fields.id),
            journal_generation: U64::new(self.journal_fields.generation),
            journal_from: U64::new(self.journal_fields.from),
            partial_sum: U64::new(self.partial_fields.sum),
            tail,
        };
        let mut block = Block(transmute!(raw));
        block.seal(number, BlockKind::Superblock);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_format_says() {
        assert_eq!(std::mem::offset_of!(Raw, magic), 32);
        assert_eq!(std::mem::offset_of!(Raw, data_space_map), 64);
        assert_eq!(std::mem::offset_of!(Raw, metadata_space_map), 192);
        assert_eq!(std::mem::offset_of!(Raw, mapping_root), 320);
        assert_eq!(std::mem::offset_of!(Raw, metadata_blocks_at_format), 344);
        assert_eq!(std::mem::offset_of!(Raw, partial_root), 364);
        assert_eq!(std::mem::offset_of!(Raw, journal_id), 372);
        assert_eq!(std::mem::offset_of!(Raw, partial_sum), 396);
        assert_eq!(std::mem::offset_of!(Raw, tail), 404);
        assert_eq!(size_of::<Raw>(), META_BLOCK_BYTES);
    }

    #[test]
    fn bytes_that_mean_nothing_to_us_are_kept() {
        let mut block = Superblock::new(BlockSize::MIN, 1024).encode(MetaBlock::SUPERBLOCK);
        for byte in [5, 7, 16, 31, 96, 191, 224, 319, 352, 364, 511, 4095] {
            block.0[byte] = 0xa5;
        }
        block.seal(MetaBlock::SUPERBLOCK, BlockKind::Superblock);
        let superblock = Superblock::read(&block, MetaBlock::SUPERBLOCK).unwrap();
        assert_eq!(superblock.encode(MetaBlock::SUPERBLOCK).0, block.0);
    }

    #[test]
    fn the_feature_is_there_exactly_with_its_tree() {
        let plain = Superblock::new(BlockSize::MIN, 1024);
        let mut superblock = plain.clone();
        let tree = PartialTree { root: MetaBlock(77), sum: 0x1234 };
        superblock.set_partial_tree(Some(tree));
        let block = superblock.encode(MetaBlock(0));
        assert_eq!(block.0[360..372], [0, 0, 0, 0x20, 77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block.0[396..404], [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
        let read = Superblock::read(&block, MetaBlock(0)).unwrap();
        assert_eq!(read.partial_tree(), Some(tree));
        assert_eq!(read.for_metadata_snapshot().partial_tree(), None);
        superblock.set_partial_tree(None);
        assert_eq!(superblock, plain);
        superblock.incompat_flags = FEATURE_PARTIAL_BLOCKS;
        let error = Superblock::read(&superblock.encode(MetaBlock(0)), MetaBlock(0)).unwrap_err();
        assert!(error.message().contains("without their tree"), "{error}");
        superblock.incompat_flags = FEATURE_PARTIAL_BLOCKS_WITHOUT_SUM;
        let error = Superblock::read(&superblock.encode(MetaBlock(0)), MetaBlock(0)).unwrap_err();
        assert!(error.message().contains("incompatible features 0x80000000"), "{error}");
        assert!(error.next_step().is_some_and(|hint| hint.contains("pool settle")), "{error}");
    }

    #[test]
    fn refuses_what_it_does_not_know_and_says_what() {
        type Change = fn(&mut Superblock);
        let cases: [(Change, ErrorKind, &str); 6] = [
            (|s| s.magic += 1, ErrorKind::Corrupt, "found magic 0x19c52bb, expected 0x19c52ba"),
            (|s| s.version = 3, ErrorKind::Unsupported, "found metadata version 3, expected 2"),
            (|s| s.incompat_flags = 4, ErrorKind::Unsupported, "found incompatible features 0x4"),
            (|s| s.data_block_sectors = 100, ErrorKind::Corrupt, "data block size of 100 sectors"),
            (|s| s.metadata_block_sectors = 16, ErrorKind::Corrupt, "metadata block size of 16 sectors"),
            (|s| s.time = SnapTime(1 << 24), ErrorKind::Corrupt, "found pool time 16777216"),
        ];
        for (change, kind, words) in cases {
            let mut superblock = Superblock::new(BlockSize::MIN, 1024);
            change(&mut superblock);
            let error = Superblock::read(&superblock.encode(MetaBlock(0)), MetaBlock(0)).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(words), "{error}");
            assert!(error.message().contains("block 0"), "{error}");
        }
        let block = Superblock::new(BlockSize::MIN, 1024).encode(MetaBlock(9));
        assert!(Superblock::read(&block, MetaBlock(0)).is_err());
    }
}
