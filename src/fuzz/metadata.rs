//! Bytes as blocks of metadata, and as damage to a small pool.

use crate::check::{CheckOptions, check};
use crate::checksum::BlockKind;
use crate::disk::{MemoryDisk, flush_data};
use crate::format::{
    Bitmap, Block, DetailsRecord, IndexEntry, LargeCount, MappingRecord, MetadataIndex, Node, NodeHeader,
    NodeValue, RootRecord, Superblock,
};
use crate::metadata::{Access, Geometry, Metadata};
use crate::units::{BlockSize, MetaBlock, VirtualBlock, VolumeId};
use std::hint::black_box;
use std::sync::OnceLock;

/// Every decoder on one block, whatever it is.
pub fn format(input: &[u8]) {
    let mut block = Block::ZERO;
    let length = input.len().min(block.0.len());
    block.0[..length].copy_from_slice(&input[..length]);
    for kind in [BlockKind::Superblock, BlockKind::Node, BlockKind::Bitmap, BlockKind::Index] {
        black_box(block.verify(MetaBlock(block.stored_number()), kind).is_ok());
    }
    let superblock = Superblock::decode(&block);
    black_box((superblock.data_block_size(), superblock.needs_check(), superblock.for_metadata_snapshot()));
    if let Ok(superblock) = Superblock::read(&block, MetaBlock(0)) {
        assert_eq!(
            superblock.encode(MetaBlock(0)).0,
            block.0,
            "what is taken for a superblock is written as it was"
        );
    }
    node::<RootRecord>(&block);
    node::<MappingRecord>(&block);
    node::<DetailsRecord>(&block);
    node::<IndexEntry>(&block);
    node::<LargeCount>(&block);
    let bitmap = Bitmap::new(&block);
    let free = bitmap.iter().filter(|count| count.exact() == Some(0)).count();
    assert_eq!(free, bitmap.free_entries() as usize);
    assert_eq!(free, bitmap.free_mask().iter().map(|word| word.count_ones() as usize).sum::<usize>());
    black_box((bitmap.first_free(), MetadataIndex::of(&block)));
}

fn node<V: NodeValue>(block: &Block) {
    black_box(NodeHeader::decode(block).check(size_of::<V>()).is_ok());
    let Ok(node) = Node::<V>::parse(block) else { return };
    match node {
        Node::Internal(entries) => {
            for index in 0..entries.len() {
                black_box(entries.child(index));
            }
            black_box((entries.floor(7), entries.key_span(), entries.keys_ascend()));
        }
        Node::Leaf(entries) => {
            for (key, _) in entries.iter() {
                black_box(key);
            }
            black_box((entries.find(7), entries.lower_bound(u64::MAX), entries.keys_ascend()));
        }
    }
}

const DATA_BLOCKS: u64 = 4000;

fn number(raw: u64) -> VolumeId {
    VolumeId::new(raw).expect("it is small")
}

/// A pool with three volumes, of which one is a snapshot, two levels of nodes, and a metadata snapshot.
fn pool() -> MemoryDisk {
    let geometry = Geometry { block_size: BlockSize::MIN, data_blocks: DATA_BLOCKS };
    let disk = MemoryDisk::zeroed(1 << 20);
    let mut metadata = Metadata::format(disk.clone(), geometry).expect("there is space");
    metadata.create_volume(number(0)).expect("it is new");
    metadata.create_volume(number(7)).expect("it is new");
    let fill = |metadata: &mut Metadata<MemoryDisk>, volume, step: u64| {
        for block in 0..600 {
            let reserved = metadata.reserve_block(None).expect("there is space");
            metadata.map(number(volume), VirtualBlock(block * step), reserved);
        }
        metadata.commit(flush_data(&MemoryDisk::zeroed(0)).expect("memory")).expect("memory");
    };
    fill(&mut metadata, 0, 3);
    metadata.snapshot(number(0), number(1)).expect("there is space");
    fill(&mut metadata, 0, 7);
    metadata.reserve_snapshot().expect("there is space");
    fill(&mut metadata, 7, 1);
    disk
}

/// The pool's blocks, and which of them are in use.
fn blocks() -> &'static (Vec<Block>, Vec<usize>) {
    static BLOCKS: OnceLock<(Vec<Block>, Vec<usize>)> = OnceLock::new();
    BLOCKS.get_or_init(|| {
        let bytes = pool().to_bytes();
        let blocks: Vec<_> = bytes.as_chunks::<4096>().0.iter().map(|bytes| Block(*bytes)).collect();
        let used = (0..blocks.len()).filter(|at| blocks[*at].kind().is_some()).collect();
        (blocks, used)
    })
}

/// The pool with damage: every 8 bytes of the input are one, up to 64. Checksums are made right again unless a damage is to them.
fn damaged(input: &[u8]) -> MemoryDisk {
    let (blocks, used) = blocks();
    let mut image = blocks.clone();
    for damage in input.as_chunks::<8>().0.iter().take(64) {
        let [which, also, low, high, how, value, more, most] = damage.map(usize::from);
        let at = used[(which | also << 8) % used.len()];
        let offset = (low | high << 8) % 4096;
        let kind = blocks[at].kind().expect("it is in use");
        match how % 8 {
            0 => image[at].0[offset] = value as u8,
            1 => image[at].0[offset] ^= 1 << (value % 8),
            2 | 3 => {
                let number = (value | more << 8 | most << 24) as u64;
                image[at].0[offset / 8 * 8..][..8].copy_from_slice(&number.to_le_bytes());
            }
            4 => {
                image[at].0[offset / 4 * 4..][..4].copy_from_slice(&[value as u8, more as u8, most as u8, 0])
            }
            5 => image[at] = blocks[used[(value | more << 8) % used.len()]].clone(),
            6 => image.swap(at, used[(value | more << 8) % used.len()]),
            _ => image[at] = Block::ZERO,
        }
        if how < 224 {
            let kind = image[at].kind().unwrap_or(kind);
            image[at].seal(MetaBlock(at as u64), kind);
        }
    }
    MemoryDisk::from_bytes(image.iter().flat_map(|block| block.0).collect())
}

/// Opens a damaged pool, walks all of it and works on it: every operation answers or refuses.
pub fn open_and_walk(input: &[u8]) {
    let opened = Metadata::open(damaged(input), Access::ReadWrite);
    assert!(opened.is_ok() || input.len() >= 8, "without damage it opens");
    let Ok(mut metadata) = opened else { return };
    let mut listed: Vec<_> = metadata.volumes().unwrap_or_default().into_iter().map(|(id, _)| id).collect();
    listed.truncate(20);
    listed.extend([0, 1, 7].map(number));
    for volume in listed {
        let mut mappings = 0_u64;
        let _ = metadata.for_each_mapping(volume, 0..u64::MAX, &mut |_, _| mappings += 1);
        let _ = (metadata.details(volume), metadata.highest_mapped(volume));
        for block in [0, 1, 599, 4200, u64::MAX >> 28] {
            let _ = metadata.lookup(volume, VirtualBlock(block));
            let _ = metadata.is_exclusive(volume, VirtualBlock(block));
        }
        if let Ok(reserved) = metadata.reserve_block(None) {
            metadata.map(volume, VirtualBlock(5), reserved);
        }
        let _ = metadata.unmap_range(volume, 100..900, 1000);
    }
    let _ = metadata.snapshot(number(0), number(2));
    let _ = metadata.delete_volume(number(1), 1000);
    let _ = metadata.release_snapshot();
    if metadata.commit(flush_data(&MemoryDisk::zeroed(0)).expect("memory")).is_err() {
        let _ = metadata.abort();
    }
}

/// The checker on the same damage: it always has an opinion.
pub fn check_image(input: &[u8]) {
    let disk = damaged(input);
    let report = check(&disk, &CheckOptions::default());
    if input.len() < 8 {
        assert!(report.expect("memory can be read").is_clean(), "without damage there is none");
    }
}
