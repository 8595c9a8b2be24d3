//! What the format page says of metadata that the kernel wrote, read through this room.

use super::*;
use crate::checksum::BlockKind;
use crate::units::{DataBlock, Mapping, MetaBlock, SnapTime, TransactionId};

/// The blocks of a fixture, a metadata device written by the kernel.
pub(crate) fn fixture(name: &str) -> Vec<Block> {
    let path = format!("{}/tests/fixtures/{name}.bin.zst", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(path).unwrap();
    let mut bytes = Vec::new();
    let mut decoder = zstd::Decoder::new(file).unwrap();
    decoder.window_log_max(31).unwrap();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    let (blocks, rest) = bytes.as_chunks::<4096>();
    assert!(rest.is_empty());
    blocks.iter().map(|block| Block(*block)).collect()
}

#[test]
fn worked_checksums() {
    let blocks = fixture("04-snap-diverged");
    let cases = [
        (0, BlockKind::Superblock, 0x00aa_9bed),
        (372, BlockKind::Node, 0x69bc_c820),
        (343, BlockKind::Node, 0x4c07_4588),
        (663, BlockKind::Index, 0x9dc9_524e),
        (564, BlockKind::Bitmap, 0xc523_fdce),
    ];
    for (number, kind, stored) in cases {
        let block = &blocks[number as usize];
        assert_eq!(block.stored_checksum(), stored);
        assert_eq!(block.kind(), Some(kind));
        assert_eq!(block.verify(MetaBlock(number), kind), Ok(()));
        let mut again = block.clone();
        again.seal(MetaBlock(number), kind);
        assert_eq!(again.0, block.0);
    }
}

#[test]
fn worked_walk() {
    let blocks = fixture("04-snap-diverged");
    let superblock = Superblock::read(&blocks[0], MetaBlock(0)).unwrap();
    assert_eq!((superblock.time, superblock.transaction_id), (SnapTime(1), TransactionId(7)));
    assert_eq!((superblock.held_root, superblock.data_block_sectors), (0, 128));
    assert_eq!((superblock.mapping_root, superblock.details_root), (MetaBlock(563), MetaBlock(661)));
    let data = superblock.data_space_map;
    assert_eq!((data.total_blocks.get(), data.allocated_blocks.get()), (100_000, 34_435));
    assert_eq!((data.bitmap_root.get(), data.large_counts_root.get()), (662, 5));
    let metadata = superblock.metadata_space_map;
    assert_eq!((metadata.total_blocks.get(), metadata.allocated_blocks.get()), (2048, 275));
    assert_eq!((metadata.bitmap_root.get(), metadata.large_counts_root.get()), (663, 2));
    assert_eq!(superblock.encode(MetaBlock(0)).0, blocks[0].0);

    let Node::Leaf(upper) = Node::<RootRecord>::parse(&blocks[563]).unwrap() else { panic!("a leaf") };
    let roots: Vec<_> = upper.iter().map(|(key, value)| (key, value.root().0)).collect();
    assert_eq!(roots, [(0, 343), (1, 565)]);
    let Node::Internal(internal) = Node::<MappingRecord>::parse(&blocks[343]).unwrap() else {
        panic!("internal")
    };
    assert_eq!(internal.len(), 133);
    assert_eq!(
        [0, 1, 2].map(|i| (internal.key(i), internal.child(i).0)),
        [(21, 372), (253, 444), (917, 140)]
    );
    let Node::Leaf(leaf) = Node::<MappingRecord>::parse(&blocks[372]).unwrap() else { panic!("a leaf") };
    assert_eq!(leaf.len(), 151);
    assert_eq!(leaf.values[0].mapping(), Mapping { block: DataBlock(11_581), time: SnapTime(0) });
    assert_eq!(leaf.key(0), 21);
    let Node::Leaf(details) = Node::<DetailsRecord>::parse(&blocks[661]).unwrap() else { panic!("a leaf") };
    let mapped: Vec<_> = details
        .iter()
        .map(|(key, value)| (key, value.mapped_blocks.get(), value.snapshotted_time.get()))
        .collect();
    assert_eq!(mapped, [(0, 26_709, 1), (1, 26_718, 1)]);
    let Node::Leaf(index) = Node::<IndexEntry>::parse(&blocks[662]).unwrap() else { panic!("a leaf") };
    assert_eq!(index.len(), 7);
    let first = index.values[0];
    assert_eq!((first.bitmap.get(), first.free.get(), first.none_free_before.get()), (567, 254, 204));
    let entry = MetadataIndex::of(&blocks[663]).entries[0];
    assert_eq!((entry.bitmap.get(), entry.free.get(), entry.none_free_before.get()), (564, 16_045, 1));
    let bitmap = Bitmap::new(&blocks[564]);
    let counts: Vec<_> = bitmap.iter().take(8).map(|count| count.exact()).collect();
    assert_eq!(counts, [1, 0, 1, 0, 0, 1, 0, 0].map(Some));
    assert_eq!(bitmap.free_entries(), 16_045);
}

#[test]
fn every_block_of_every_kind_in_the_fixtures_parses() {
    for name in ["05-chain50", "09-held-root", "17-many-devices"] {
        let mut nodes = 0;
        for (number, block) in fixture(name).iter().enumerate() {
            let Some(kind) = block.kind() else { continue };
            assert_eq!(block.verify(MetaBlock(number as u64), kind), Ok(()), "{name}: {number}");
            if kind == BlockKind::Node {
                let header = NodeHeader::decode(block);
                assert!(header.has_usual_capacity(), "{name}: {number}");
                assert!(header.check(header.value_size.get() as usize).is_ok(), "{name}: {number}");
                nodes += 1;
            }
        }
        assert!(nodes > 50, "{name} has {nodes} nodes");
    }
}

#[test]
fn no_bytes_make_reading_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = fixture("04-snap-diverged");
    for round in 0..20_000_u64 {
        let mut block = seeds[[0, 372, 343, 661, 662, 663, 564][(round % 7) as usize]].clone();
        for _ in 0..1 + next() % 4 {
            // Mostly the headers: that is where lengths are.
            let at = if next() % 4 == 0 { next() % 4096 } else { next() % 40 };
            block.0[at as usize] = next() as u8;
        }
        let _ = Superblock::read(&block, MetaBlock(0));
        let _ = Node::<LargeCount>::parse(&block).map(|node| node.keys().len());
        let _ = Node::<DetailsRecord>::parse(&block).map(|node| node.keys().len());
        let _ = Node::<IndexEntry>::parse(&block).map(|node| node.keys().len());
        if let Ok(Node::Leaf(entries)) = Node::<MappingRecord>::parse(&block) {
            assert_eq!(entries.keys.len(), entries.values.len());
            let _ = (entries.keys_ascend(), entries.floor(next()), entries.find(next()), entries.key_span());
        }
        let bitmap = Bitmap::new(&block);
        assert!(bitmap.first_free() <= BITMAP_ENTRIES && bitmap.free_entries() as usize <= BITMAP_ENTRIES);
    }
}
