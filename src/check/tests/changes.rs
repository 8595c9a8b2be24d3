//! One deliberate change at a time to fixture 04, checksums mended: what hurts is reported, what does not is not.

use super::*;

type Change = fn(&mut Image);

const LEAF_FLAGS: usize = 4;
const NUMBER: usize = 8;
const ENTRIES: usize = 16;
const VALUE_SIZE: usize = 24;
const PADDING: usize = 28;

/// Bytes of the superblock.
const DATA_ALLOCATED: usize = 72;
const METADATA_TOTAL: usize = 192;
const METADATA_ALLOCATED: usize = 200;

fn data_index(image: &Image) -> u64 {
    image.superblock().data_space_map.bitmap_root.get()
}

fn data_bitmap(image: &Image, index: usize) -> u64 {
    image.child(data_index(image), index)
}

fn metadata_index(image: &Image) -> u64 {
    image.superblock().metadata_space_map.bitmap_root.get()
}

fn metadata_bitmap(image: &Image) -> u64 {
    image.u64_at(metadata_index(image), 16)
}

fn count_at(image: &Image, bitmap: u64, entry: usize) -> InlineCount {
    Bitmap::new(&image.blocks[bitmap as usize]).get(entry)
}

fn set_count(image: &mut Image, bitmap: u64, entry: usize, count: u32) {
    let mut changed = image.blocks[bitmap as usize].clone();
    crate::format::BitmapMut::new(&mut changed).set(entry, InlineCount::of(count));
    image.put(bitmap, 16 + entry / 4, &changed.0[16 + entry / 4..][..1]);
}

/// Changes the first entry of the data bitmap 0 with count `from`.
fn change_data_count(image: &mut Image, from: u32, to: u32) -> u64 {
    let bitmap = data_bitmap(image, 0);
    let entry = (0..BITMAP_ENTRIES).find(|entry| count_at(image, bitmap, *entry) == InlineCount::of(from));
    let entry = entry.expect("there is such a block");
    set_count(image, bitmap, entry, to);
    entry as u64
}

/// Moves a leaf's values to where they are with room for so many entries.
fn relayout(image: &mut Image, leaf: u64, max_entries: usize) {
    let (from, entries) = (image.value_offset(leaf, 0), image.entries_of(leaf));
    let values = image.blocks[leaf as usize].0[from..from + 8 * entries].to_vec();
    image.put_u32(leaf, 20, max_entries as u32);
    image.put(leaf, 32 + 8 * max_entries, &values);
}

/// Makes the large counts of the data one entry: this one.
fn put_large_count(image: &mut Image, block: u64, count: u32) {
    let tree = image.superblock().data_space_map.large_counts_root.get();
    image.put_u32(tree, ENTRIES, 1);
    image.put_u64(tree, Image::key_offset(0), block);
    let offset = image.value_offset(tree, 0);
    image.put_u32(tree, offset, count);
}

/// Empties most of the first leaf, counts and details kept in step.
fn underfull(image: &mut Image) {
    let [leaf, _] = image.first_leaves();
    let (entries, keep) = (image.entries_of(leaf), 20);
    let index = data_index(image);
    for i in keep..entries {
        let block = image.child(leaf, i) >> 24;
        let (at, entry) = ((block as usize) / BITMAP_ENTRIES, (block as usize) % BITMAP_ENTRIES);
        let bitmap = data_bitmap(image, at);
        let count = count_at(image, bitmap, entry).exact().expect("no large counts in this image");
        set_count(image, bitmap, entry, count - 1);
        if count == 1 {
            let free = image.value_offset(index, at) + 8;
            image.put_u32(index, free, image.u32_at(index, free) + 1);
            let before = image.value_offset(index, at) + 12;
            image.put_u32(index, before, image.u32_at(index, before).min(entry as u32));
            image.put_u64(0, DATA_ALLOCATED, image.u64_at(0, DATA_ALLOCATED) - 1);
        }
    }
    image.put_u32(leaf, ENTRIES, keep as u32);
    let details = image.superblock().details_root.0;
    let mapped = image.value_offset(details, 0);
    image.put_u64(details, mapped, image.u64_at(details, mapped) - (entries - keep) as u64);
}

/// The change, the verdict it must get, and words that a finding must have.
const CHANGES: &[(&str, Change, Verdict, &str)] = &[
    ("none", |_| (), Verdict::Clean, ""),
    (
        "parent key lower",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, Image::key_offset(0), i.key(root, 0) - 1);
        },
        Verdict::Clean,
        "",
    ),
    (
        "second parent key lower",
        |i| {
            let (root, [leaf, _]) = (i.first_volume_root(), i.first_leaves());
            i.put_u64(root, Image::key_offset(1), i.key(leaf, i.entries_of(leaf) - 1) + 1);
        },
        Verdict::Clean,
        "",
    ),
    (
        "parent key higher than the child's first",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, Image::key_offset(1), i.key(root, 1) + 1);
        },
        Verdict::Damage,
        "its first key 253 is below 254",
    ),
    (
        "child's last key equals the next parent key",
        |i| {
            let (root, [leaf, _]) = (i.first_volume_root(), i.first_leaves());
            i.put_u64(root, Image::key_offset(1), i.key(leaf, i.entries_of(leaf) - 1));
        },
        Verdict::Damage,
        "is not below 252, where its next sibling begins",
    ),
    (
        "child's last key above the next parent key",
        |i| {
            let (root, [leaf, _]) = (i.first_volume_root(), i.first_leaves());
            i.put_u64(root, Image::key_offset(1), i.key(leaf, i.entries_of(leaf) - 2));
        },
        Verdict::Damage,
        "where its next sibling begins",
    ),
    ("flags 3", |i| i.put_u32(i.first_leaves()[0], LEAF_FLAGS, 3), Verdict::Damage, "flags 0x3"),
    ("flags 0x82", |i| i.put_u32(i.first_leaves()[0], LEAF_FLAGS, 0x82), Verdict::Damage, "flags 0x82"),
    ("leaf called internal", |i| i.put_u32(i.first_leaves()[0], LEAF_FLAGS, 1), Verdict::Damage, "refers to"),
    ("padding of a node", |i| i.put_u32(i.first_leaves()[0], PADDING, 7), Verdict::Clean, ""),
    ("block number", |i| i.put_u64(i.first_leaves()[0], NUMBER, 99), Verdict::Damage, "block number 99"),
    ("value size", |i| i.put_u32(i.first_leaves()[0], VALUE_SIZE, 4), Verdict::Damage, "values of 4 bytes"),
    ("room for 251", |i| relayout(i, i.first_leaves()[0], 251), Verdict::Damage, "room for 251"),
    ("room for 249", |i| relayout(i, i.first_leaves()[0], 249), Verdict::Damage, "room for 249"),
    ("room for 254", |i| relayout(i, i.first_leaves()[0], 254), Verdict::Damage, "room for 254"),
    (
        "room for 249 in a root",
        |i| relayout(i, i.superblock().mapping_root.0, 249),
        Verdict::Clean,
        "room for 249",
    ),
    ("too many entries", |i| i.put_u32(i.first_leaves()[0], ENTRIES, 253), Verdict::Damage, "253 entries"),
    (
        "a key twice",
        |i| {
            let [leaf, _] = i.first_leaves();
            i.put_u64(leaf, Image::key_offset(5), i.key(leaf, 4));
        },
        Verdict::Damage,
        "do not strictly increase",
    ),
    (
        "keys swapped",
        |i| {
            let [leaf, _] = i.first_leaves();
            let (low, high) = (i.key(leaf, 4), i.key(leaf, 5));
            i.put_u64(leaf, Image::key_offset(4), high);
            i.put_u64(leaf, Image::key_offset(5), low);
        },
        Verdict::Damage,
        "do not strictly increase",
    ),
    (
        "mapping in the future",
        |i| {
            let [leaf, _] = i.first_leaves();
            i.put_u64(leaf, i.value_offset(leaf, 0), i.child(leaf, 0) >> 24 << 24 | 0x1234);
        },
        Verdict::Damage,
        "after the pool's own",
    ),
    (
        "snapshot in the future",
        |i| {
            let details = i.superblock().details_root.0;
            i.put_u32(details, i.value_offset(details, 0) + 20, 77);
        },
        Verdict::Damage,
        "snapshotted at 77",
    ),
    (
        "mapped blocks",
        |i| {
            let details = i.superblock().details_root.0;
            i.put_u64(details, i.value_offset(details, 0), 26_710);
        },
        Verdict::Damage,
        "26710 mapped blocks by its details, 26709 were found",
    ),
    (
        "volume without details",
        |i| {
            i.put_u32(i.superblock().details_root.0, ENTRIES, 1);
        },
        Verdict::Damage,
        "volume 1 has a tree of mappings, but no details",
    ),
    (
        "details without a volume",
        |i| {
            let details = i.superblock().details_root.0;
            i.put_u64(details, Image::key_offset(2), 999);
            i.put(details, i.value_offset(details, 2), &[0; 24]);
            i.put_u32(details, ENTRIES, 3);
        },
        Verdict::Damage,
        "volume 999 has details, but no tree",
    ),
    (
        "volume number",
        |i| {
            let volumes = i.superblock().mapping_root.0;
            i.put_u64(volumes, Image::key_offset(1), 1 << 24);
        },
        Verdict::Damage,
        "volume number 16777216",
    ),
    ("allocated data blocks", |i| i.put_u64(0, DATA_ALLOCATED, 34_440), Verdict::Damage, "34440"),
    ("allocated metadata blocks", |i| i.put_u64(0, METADATA_ALLOCATED, 280), Verdict::Damage, "280"),
    (
        "free data entries",
        |i| {
            let index = data_index(i);
            i.put_u32(index, i.value_offset(index, 0) + 8, 1);
        },
        Verdict::Damage,
        "1 entries are free by the index, 254 by the bitmap",
    ),
    (
        "hidden free data entries",
        |i| {
            let index = data_index(i);
            i.put_u32(index, i.value_offset(index, 0) + 12, 16_320);
        },
        Verdict::Damage,
        "hides free entry 204",
    ),
    ("free metadata entries", |i| i.put_u32(metadata_index(i), 24, 1), Verdict::Damage, "1 entries are free"),
    (
        "hidden free metadata entries",
        |i| {
            i.put_u32(metadata_index(i), 28, 16_000);
        },
        Verdict::Damage,
        "hides free entry 1",
    ),
    ("unused index entry", |i| i.put_u64(metadata_index(i), 16 + 16 * 200, 5), Verdict::Clean, "not in use"),
    ("padding of the index", |i| i.put_u32(metadata_index(i), 4, 5), Verdict::Clean, ""),
    ("count past the end", |i| set_count(i, data_bitmap(i, 6), 16_319, 1), Verdict::Damage, "past the end"),
    ("data count 0 to 1", |i| _ = change_data_count(i, 0, 1), Verdict::Damage, "nothing refers"),
    ("data count 0 to 2", |i| _ = change_data_count(i, 0, 2), Verdict::Damage, "count 2, and nothing refers"),
    (
        "data count 1 to 2",
        |i| _ = change_data_count(i, 1, 2),
        Verdict::Leaks,
        "data block 67: count 2, but 1",
    ),
    ("data count 1 to 0", |i| _ = change_data_count(i, 1, 0), Verdict::Damage, "count 0, but 1 references"),
    ("data count 2 to 1", |i| _ = change_data_count(i, 2, 1), Verdict::Damage, "count 1, but 2 references"),
    (
        "data count 2 to large, none stored",
        |i| {
            change_data_count(i, 2, 3);
        },
        Verdict::Damage,
        "has no large count",
    ),
    (
        "metadata count 0 to 1",
        |i| {
            let bitmap = metadata_bitmap(i);
            let free =
                (0..).find(|entry| count_at(i, bitmap, *entry) == InlineCount::Free).expect("there is one");
            set_count(i, bitmap, free, 1);
        },
        Verdict::Damage,
        "nothing refers",
    ),
    (
        "metadata count 1 to 2",
        |i| {
            set_count(i, metadata_bitmap(i), i.first_leaves()[0] as usize, 2);
        },
        Verdict::Leaks,
        "metadata block 372: count 2, but 1",
    ),
    (
        "metadata count 1 to 0",
        |i| {
            set_count(i, metadata_bitmap(i), i.first_leaves()[0] as usize, 0);
        },
        Verdict::Damage,
        "count 0, but 1 references",
    ),
    (
        "large count of 2",
        |i| {
            let block = change_data_count(i, 2, 3);
            put_large_count(i, block, 2);
        },
        Verdict::Damage,
        "large count of only 2",
    ),
    ("large count that nobody asks for", |i| put_large_count(i, 0, 2), Verdict::Leaks, "no bitmap asks for"),
    ("version 1", |i| i.put_u32(0, 40, 1), Verdict::Damage, "version 1"),
    ("version 3", |i| i.put_u32(0, 40, 3), Verdict::Damage, "version 3"),
    ("magic", |i| i.put_u64(0, 32, 1), Verdict::Damage, "magic"),
    ("superblock's number", |i| i.put_u64(0, NUMBER, 9), Verdict::Damage, "block number 9"),
    ("size at format time", |i| i.put_u64(0, 344, 1), Verdict::Clean, ""),
    ("incompatible feature", |i| i.put_u32(0, 360, 4), Verdict::Damage, "features 0x4"),
    ("feature that forbids writing", |i| i.put_u32(0, 356, 4), Verdict::Clean, "forbid writing"),
    ("needs check", |i| i.put_u32(0, 4, 1), Verdict::Clean, "needs_check"),
    ("block size 0", |i| i.put_u32(0, 336, 0), Verdict::Damage, "block size of 0"),
    ("pool time", |i| i.put_u32(0, 44, 0), Verdict::Damage, "after the pool's own"),
    ("held root outside", |i| i.put_u64(0, 56, 1 << 40), Verdict::Damage, "metadata snapshot"),
    ("held root that is a node", |i| i.put_u64(0, 56, i.first_leaves()[0]), Verdict::Damage, "B-tree node"),
    ("metadata larger than the device", |i| i.put_u64(0, METADATA_TOTAL, 2049), Verdict::Damage, "cut short"),
    ("metadata larger than can be", |i| i.put_u64(0, METADATA_TOTAL, u64::MAX), Verdict::Damage, "more than"),
    ("data larger than the map", |i| i.put_u64(0, 64, u64::MAX), Verdict::Damage, "7 of "),
    (
        "data smaller than the map",
        |i| i.put_u64(0, 64, 16_320),
        Verdict::Damage,
        "where the last one needed is 0",
    ),
    (
        "the same bitmap twice",
        |i| {
            let index = data_index(i);
            i.put_u64(index, i.value_offset(index, 1), data_bitmap(i, 0));
        },
        Verdict::Damage,
        "and an earlier one as well",
    ),
    (
        "data block outside",
        |i| {
            let [leaf, _] = i.first_leaves();
            i.put_u64(leaf, i.value_offset(leaf, 0), 100_005 << 24);
        },
        Verdict::Damage,
        "mapped, with 100005, to a data block past the end",
    ),
    (
        "node checksum",
        |i| {
            let leaf = i.first_leaves()[0] as usize;
            i.blocks[leaf].0[4000] ^= 1;
        },
        Verdict::Damage,
        "bad checksum",
    ),
    (
        "bitmap checksum",
        |i| {
            let bitmap = data_bitmap(i, 0) as usize;
            i.blocks[bitmap].0[4000] ^= 1;
        },
        Verdict::Damage,
        "bad checksum",
    ),
    ("superblock checksum", |i| i.blocks[0].0[4000] ^= 1, Verdict::Damage, "bad checksum"),
    ("leaf with too few entries", underfull, Verdict::Damage, "20 entries, fewer than the 84"),
    (
        "child missing",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, i.value_offset(root, 0), 1 << 30);
        },
        Verdict::Damage,
        "refers to metadata block 1073741824",
    ),
    (
        "child is its parent",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, i.value_offset(root, 0), root);
        },
        Verdict::Damage,
        "its own descendant",
    ),
    (
        "child of another tree",
        |i| i.put_u64(0, 328, i.first_leaves()[0]),
        Verdict::Damage,
        "another kind of tree",
    ),
    (
        "child is a bitmap",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, i.value_offset(root, 0), data_bitmap(i, 0));
        },
        Verdict::Damage,
        "is a bitmap",
    ),
    (
        "the same child twice",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, i.value_offset(root, 1), i.child(root, 0));
        },
        Verdict::Damage,
        "its first key 21 is below 253",
    ),
    (
        "child at another depth",
        |i| {
            let root = i.first_volume_root();
            i.put_u64(root, i.value_offset(root, 1), i.child(i.superblock().mapping_root.0, 1));
        },
        Verdict::Damage,
        "levels below it",
    ),
    (
        "internal node without children",
        |i| i.put_u32(i.first_volume_root(), ENTRIES, 0),
        Verdict::Damage,
        "without",
    ),
    (
        "trees swapped",
        |i| {
            let superblock = i.superblock();
            i.put_u64(0, 320, superblock.details_root.0);
            i.put_u64(0, 328, superblock.mapping_root.0);
        },
        Verdict::Damage,
        "values of 24 bytes",
    ),
];

#[test]
fn changes_that_hurt_are_reported_and_others_are_not() {
    let original = Image::fixture("04");
    for (name, change, verdict, words) in CHANGES {
        let mut image = original.clone();
        change(&mut image);
        let (found, lines) = match image.check() {
            Ok(report) => (report.verdict, report.to_lines()),
            Err(error) => (Verdict::Damage, error.to_string()),
        };
        assert_eq!(found, *verdict, "{name}:\n{lines}");
        assert!(lines.contains(words), "{name}: no {words:?} in\n{lines}");
    }
}

/// A pool whose metadata was copied only in part.
#[test]
fn cut_short() {
    let image = Image::fixture("04");
    for blocks in [1, 2, 100, 600, 1000] {
        let short = Image { blocks: image.blocks[..blocks].to_vec() };
        let report = short.check().unwrap();
        assert_eq!(report.verdict, Verdict::Damage);
        assert!(report.to_lines().contains("cut short"), "{}", report.to_lines());
    }
    // The last block in use is 663: nothing is lost but the promise of free blocks.
    let end = *image.used_blocks().last().unwrap() as usize + 1;
    let report = Image { blocks: image.blocks[..end].to_vec() }.check().unwrap();
    assert_eq!(report.findings.len(), 1, "{}", report.to_lines());
}
