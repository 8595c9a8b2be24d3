//! Formatting, opening, rolling back.

use super::backing::Backing;
use super::budget::{Shape, index_nodes_for, reserve};
use super::cache::{Cache, DEFAULT_CLEAN_BYTES};
use super::data_log::DataLog;
use super::data_map::{DataMap, bitmaps_for};
use super::highest::Highest;
use super::meta_map::MetaMap;
use super::partial::Partials;
use super::pending::Pending;
use super::space::{References, Space, Span};
use super::tally::Tally;
use super::{Access, Geometry, Metadata, State};
use crate::checksum::BlockKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BITMAP_ENTRIES, Bitmap, Block, DetailsRecord, FLAG_NEEDS_CHECK, INDEX_ENTRIES, InlineCount, LargeCount,
    MetadataIndex, NodeKind, RootRecord, SpaceMapRoot, Superblock,
};
use crate::units::{DataBlock, META_BLOCK_BYTES, META_BLOCKS_LIMIT, MetaBlock};
use std::ops::ControlFlow;

/// Writes an empty pool. See [`Metadata::format`].
pub(super) fn format<D: Disk>(disk: D, geometry: Geometry) -> Result<Metadata<D>> {
    let Geometry { block_size, data_blocks } = geometry;
    if data_blocks == 0 || data_blocks >= DataBlock::LIMIT {
        let what =
            format!("a pool of {data_blocks} data blocks cannot be, only of 1 to {}", DataBlock::LIMIT - 1);
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let total = (disk.size_bytes() / META_BLOCK_BYTES as u64).min(META_BLOCKS_LIMIT);
    require_room(&disk, total, data_blocks)?;
    // What was there before stops being a pool first: a crash half-way leaves something that nobody takes for one.
    write_superblock(&disk, &Block::ZERO)?;

    let references = References { metadata: MetaMap::for_format(total), data: DataLog::new(data_blocks) };
    let mut space = Space::new(disk, Cache::new(total, DEFAULT_CLEAN_BYTES), references);
    let large_root = space.new_node::<LargeCount>(NodeKind::Leaf)?;
    space.references.metadata.large_root = large_root;
    let data = DataMap::format(&mut space, data_blocks)?;
    let mapping_root = space.new_node::<RootRecord>(NodeKind::Leaf)?;
    let details_root = space.new_node::<DetailsRecord>(NodeKind::Leaf)?;
    let superblock = Superblock::new(block_size, total);
    let mut metadata = Metadata {
        space,
        data,
        mapping_root,
        details_root,
        held_root: superblock.held_root,
        time: superblock.time,
        transaction_id: superblock.transaction_id,
        superblock,
        pending: Pending::default(),
        highest: Highest::default(),
        partials: Partials::default(),
        shape: Shape::default(),
        checked_reservations: 0,
        checked_partials: 0,
        has_grown: false,
        access: Access::ReadWrite,
        state: State::Sound,
        backing: Backing::default(),
        cache_bytes: DEFAULT_CLEAN_BYTES,
        walk: None,
        journal: None,
        awaits_replay: false,
        replays: false,
    };
    metadata.back_new()?;
    metadata.write_transaction()?;
    Ok(metadata)
}

/// Refuses a device that could not hold an empty pool of that size and then a first volume.
fn require_room(disk: &impl Disk, total: u64, data_blocks: u64) -> Result<()> {
    let bitmaps = bitmaps_for(data_blocks);
    // Superblock, index block, five roots, and the bitmaps of both maps with the index; then all that changes once more,
    // for the first transaction.
    let index = index_nodes_for(bitmaps);
    let copied = bitmaps + index + 6;
    let fixed = 1 + bitmaps + index + 5 + copied + FIRST_VOLUME_BLOCKS;
    let with_own_bitmaps = fixed + (fixed + fixed / 8).div_ceil(BITMAP_ENTRIES as u64) * 2;
    let needed = (with_own_bitmaps * 10).div_ceil(9).min(with_own_bitmaps + reserve(u64::MAX));
    if total >= needed {
        return Ok(());
    }
    let what = format!(
        "{} is too small for the metadata of {data_blocks} data blocks: it has {} bytes, at least {} are needed",
        disk.name(),
        disk.size_bytes(),
        needed * META_BLOCK_BYTES as u64
    );
    let hint = if needed > META_BLOCKS_LIMIT {
        "no metadata device is large enough: use larger data blocks"
    } else {
        "give the metadata more room, or use larger data blocks"
    };
    Err(Error::new(ErrorKind::Invalid, what).hint(hint))
}

/// Room for the first volume's worst cases beside the commit's.
const FIRST_VOLUME_BLOCKS: u64 = 64;

/// Writes block 0, durably.
pub(super) fn write_superblock(disk: &impl Disk, block: &Block) -> Result<()> {
    let offset_bytes = MetaBlock::SUPERBLOCK.offset_bytes();
    disk.write_at(offset_bytes, &block.0)
        .map_err(|error| Error::io(format_args!("cannot write the superblock of {}", disk.name()), &error))?;
    flush(disk)
}

/// Flushes the metadata disk.
pub(super) fn flush(disk: &impl Disk) -> Result<()> {
    disk.flush().map_err(|error| Error::io(format_args!("cannot flush {}", disk.name()), &error))
}

/// Opens the last committed state, with the access that `choose` takes by the superblock. See [`Metadata::open`].
pub(super) fn open<D: Disk>(disk: D, choose: impl FnOnce(&Superblock) -> Access) -> Result<Metadata<D>> {
    let name = disk.name();
    let open = || {
        let superblock = read_superblock(&disk)?;
        let access = choose(&superblock);
        require_access(&superblock, access)?;
        require_size(&disk, superblock.metadata_space_map.total_blocks.get())?;
        Ok((superblock, access))
    };
    let result = open().and_then(|(superblock, access)| {
        if access == Access::ReadWrite {
            // It may be that of a process which died in its commit, and not be durable yet. What is written next goes where
            // only the commit before it has something.
            flush(&disk)?;
        }
        load(disk, superblock, access, DEFAULT_CLEAN_BYTES)
    });
    result.map_err(|error: Error| error.context(format_args!("cannot open the metadata on {name}")))
}

fn read_superblock(disk: &impl Disk) -> Result<Superblock> {
    let mut block = Block::ZERO;
    if disk.size_bytes() < META_BLOCK_BYTES as u64 {
        let what = format!("found {} bytes, expected at least one block of 4096", disk.size_bytes());
        return Err(Error::new(ErrorKind::Invalid, what).hint("name the right metadata file or device"));
    }
    disk.read_at(MetaBlock::SUPERBLOCK.offset_bytes(), &mut block.0)
        .map_err(|error| Error::io("cannot read the superblock", &error))?;
    if block.is_zero() {
        return Err(Error::new(ErrorKind::Invalid, "metadata block 0 is all zeros: not formatted")
            .hint("create a pool on it, or name the right metadata device"));
    }
    Superblock::read(&block, MetaBlock::SUPERBLOCK)
}

pub(super) fn require_access(superblock: &Superblock, access: Access) -> Result<()> {
    if access == Access::ReadOnly {
        return Ok(());
    }
    if superblock.compat_ro_flags != 0 {
        let what = format!(
            "metadata block 0: found read-only compatible features {:#x}, expected none",
            superblock.compat_ro_flags
        );
        return Err(
            Error::new(ErrorKind::Unsupported, what).hint("open it read-only, or with a newer program")
        );
    }
    if superblock.needs_check() {
        return Err(Error::new(ErrorKind::NeedsCheck, "it carries the needs_check flag")
            .hint("check the metadata, which clears the flag if all is well, and repair it if not"));
    }
    Ok(())
}

fn require_size(disk: &impl Disk, total: u64) -> Result<()> {
    if total == 0 || total > META_BLOCKS_LIMIT {
        let what = format!("found a metadata space map of {total} blocks, expected 1 to {META_BLOCKS_LIMIT}");
        return Err(Error::corrupt(MetaBlock::SUPERBLOCK, what));
    }
    let expected_bytes = total * META_BLOCK_BYTES as u64;
    if disk.size_bytes() < expected_bytes {
        let what = format!(
            "the device has {} bytes, but the metadata was made for {expected_bytes} bytes ({total} blocks)",
            disk.size_bytes()
        );
        return Err(Error::new(ErrorKind::Invalid, what)
            .hint("the file was truncated, or is another pool's: restore its full size before opening it"));
    }
    Ok(())
}

/// Reads the state that a superblock leads to.
fn load<D: Disk>(disk: D, superblock: Superblock, access: Access, cache_bytes: usize) -> Result<Metadata<D>> {
    let total = superblock.metadata_space_map.total_blocks.get();
    let data_blocks = superblock.data_space_map.total_blocks.get();
    if data_blocks >= DataBlock::LIMIT {
        let what = format!("found {data_blocks} data blocks, expected fewer than {}", DataBlock::LIMIT);
        return Err(Error::corrupt(MetaBlock::SUPERBLOCK, what));
    }
    // Reading asks for no counts, so those of an empty device will do until the map is read.
    let references = References { metadata: MetaMap::for_format(1), data: DataLog::new(data_blocks) };
    let mut space = Space::new(disk, Cache::new(total, cache_bytes), references);
    space.references.metadata = load_metadata_map(&mut space, &superblock.metadata_space_map)?;
    let data = DataMap::open(&mut space, &superblock.data_space_map)?;
    let shape = load_shape(&mut space, &superblock, access)?;
    let mut metadata = Metadata {
        space,
        data,
        mapping_root: superblock.mapping_root,
        details_root: superblock.details_root,
        held_root: superblock.held_root,
        time: superblock.time,
        transaction_id: superblock.transaction_id,
        journal: superblock.journal(),
        awaits_replay: superblock.journal().is_some(),
        replays: false,
        superblock,
        pending: Pending::default(),
        highest: Highest::default(),
        partials: Partials::default(),
        shape,
        checked_reservations: 0,
        checked_partials: 0,
        has_grown: false,
        access,
        state: State::Sound,
        backing: Backing::default(),
        cache_bytes,
        walk: None,
    };
    metadata.load_partials()?;
    if access == Access::ReadWrite {
        metadata.back();
    }
    Ok(metadata)
}

fn load_metadata_map<D: Disk>(space: &mut Space<D>, root: &SpaceMapRoot) -> Result<MetaMap> {
    let total = root.total_blocks.get() as usize;
    let (index_block, large_root) =
        (MetaBlock(root.bitmap_root.get()), MetaBlock(root.large_counts_root.get()));
    let large = space.entries::<LargeCount>(large_root)?;
    let index = *MetadataIndex::of(space.cache.get(&space.disk, index_block, BlockKind::Index)?);
    let bitmaps: Vec<MetaBlock> =
        index.entries.iter().take(total.div_ceil(BITMAP_ENTRIES)).map(|entry| entry.bitmap()).collect();
    debug_assert!(bitmaps.len() <= INDEX_ENTRIES);
    let mut counts = Vec::with_capacity(total.next_multiple_of(BITMAP_ENTRIES));
    for number in &bitmaps {
        let block = space.cache.get(&space.disk, *number, BlockKind::Bitmap)?;
        for inline in Bitmap::new(block).iter() {
            counts.push(match inline {
                InlineCount::Large => large_count(&large, counts.len() as u64, *number)?,
                InlineCount::Free => 0,
                InlineCount::One => 1,
                InlineCount::Two => 2,
            });
        }
    }
    counts.truncate(total);
    if counts[0] == 0 {
        let what = "found a metadata space map by which the superblock is free, expected a count of 1";
        return Err(Error::corrupt(bitmaps[0], what));
    }
    let bitmaps = bitmaps.into_iter().map(Some).collect();
    Ok(MetaMap::committed_state(counts, bitmaps, Some(index_block), large_root))
}

fn large_count(large: &[(u64, LargeCount)], block: u64, bitmap: MetaBlock) -> Result<u32> {
    match large.binary_search_by_key(&block, |(key, _)| *key) {
        Ok(found) => Ok(large[found].1.0.get()),
        Err(_) => Err(Error::corrupt(
            bitmap,
            format_args!(
                "found a large reference count for metadata block {block}, but no tree entry that says which"
            ),
        )),
    }
}

/// Totals for the budget, which only matters to who writes.
fn load_shape<D: Disk>(space: &mut Space<D>, superblock: &Superblock, access: Access) -> Result<Shape> {
    if access == Access::ReadOnly {
        return Ok(Shape::default());
    }
    let (volumes, mappings) = totals(space, superblock.details_root)?;
    // A metadata snapshot that cannot be read is no reason to refuse the pool; it then counts as very large.
    let (held_volumes, held_mappings) = match superblock.held_root {
        0 => (0, 0),
        held => held_totals(space, MetaBlock(held)).unwrap_or((u64::from(u32::MAX), DataBlock::LIMIT)),
    };
    Ok(Shape { volumes, mappings, held_volumes, held_mappings })
}

fn held_totals<D: Disk>(space: &mut Space<D>, held: MetaBlock) -> Result<(u64, u64)> {
    let block = space.cache.get(&space.disk, held, BlockKind::Superblock)?;
    let details_root = Superblock::read(block, held)?.details_root;
    totals(space, details_root)
}

/// Volumes and their mappings, by a details tree.
fn totals<D: Disk>(space: &mut Space<D>, details_root: MetaBlock) -> Result<(u64, u64)> {
    let (mut volumes, mut mappings) = (0, 0_u64);
    let _ = space.visit_leaves::<DetailsRecord>(details_root, Span::ALL, &mut |entries| {
        volumes += entries.len() as u64;
        let mapped = entries.iter().map(|(_, details)| details.mapped_blocks.get());
        // Details that cannot be must not overflow what is computed from them.
        mappings = mapped.fold(mappings, u64::saturating_add).min(DataBlock::LIMIT);
        ControlFlow::Continue(())
    })?;
    Ok((volumes, mappings))
}

impl<D: Disk> Metadata<D> {
    /// See [`Metadata::retire`].
    pub(super) fn mark_as_unchecked(&mut self) -> Result<()> {
        if self.state != State::Unknown {
            self.require_own_superblock()?;
        }
        let mut marked = self.superblock.clone();
        marked.flags |= FLAG_NEEDS_CHECK;
        self.state = State::Unknown;
        write_superblock(&self.space.disk, &marked.encode(MetaBlock::SUPERBLOCK))?;
        self.superblock = marked;
        self.state = State::Broken;
        Ok(())
    }

    /// Refuses to go on where somebody else has written the superblock.
    fn require_own_superblock(&mut self) -> Result<()> {
        if read_superblock(&self.space.disk)? == self.superblock {
            return Ok(());
        }
        self.state = State::Unknown;
        let what = "found another superblock than the one last committed";
        Err(Error::corrupt(MetaBlock::SUPERBLOCK, what)
            .hint("something else writes to the metadata device: stop it, and check the metadata"))
    }

    /// See [`Metadata::abort`].
    pub(super) fn roll_back(&mut self) -> Result<()> {
        if self.state == State::Unknown {
            return self.require_sound();
        }
        self.state = State::Broken;
        self.require_own_superblock()?;
        let fresh = {
            let disk = &self.space.disk;
            load(disk, self.superblock.clone(), self.access, self.cache_bytes)?
        };
        let Metadata {
            space: Space { cache, references, .. },
            data,
            mapping_root,
            details_root,
            shape,
            backing,
            partials,
            ..
        } = fresh;
        (self.backing, self.partials) = (backing, partials);
        (self.space.cache, self.space.references) = (cache, references);
        self.space.tally = Tally::default();
        let old = std::mem::replace(&mut self.data, data);
        self.data.keep_withheld(old);
        (self.mapping_root, self.details_root, self.shape) = (mapping_root, details_root, shape);
        (self.time, self.transaction_id) = (self.superblock.time, self.superblock.transaction_id);
        self.held_root = self.superblock.held_root;
        self.journal = self.superblock.journal();
        (self.pending, self.highest) = (Pending::default(), Highest::default());
        (self.checked_reservations, self.checked_partials) = (0, 0);
        self.has_grown = false;
        self.walk = None;
        self.state = State::Sound;
        Ok(())
    }
}
