//! Every kind of block, damaged in every way: found, named, and repaired with exactly the mappings that survive.

mod fsck_common;

use fsck_common::expanded::{Expanded, expanded};
use fsck_common::{empty_device, folder, oracle, ours, text, unpack};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use uthin::checksum::BlockKind;
use uthin::format::{Block, IndexEntry, LargeCount, MappingRecord, Node, NodeValue, RootRecord, Superblock};
use uthin::units::MetaBlock;

/// An image and where things are in it.
struct Image {
    blocks: Vec<Block>,
}

impl Image {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("it is there");
        Image { blocks: bytes.as_chunks::<4096>().0.iter().map(|block| Block(*block)).collect() }
    }

    fn write(&self, path: &Path) {
        let bytes: Vec<u8> = self.blocks.iter().flat_map(|block| block.0).collect();
        fs::write(path, bytes).expect("written");
    }

    fn superblock(&self) -> Superblock {
        Superblock::decode(&self.blocks[0])
    }

    /// Internal nodes and leaves below a root, that one included.
    fn nodes<V: NodeValue>(&self, root: u64) -> (Vec<u64>, Vec<u64>) {
        let (mut internal, mut leaves, mut waiting) = (Vec::new(), Vec::new(), vec![root]);
        while let Some(number) = waiting.pop() {
            match Node::<V>::parse(&self.blocks[number as usize]).expect("the image is sound") {
                Node::Internal(entries) => {
                    internal.push(number);
                    waiting.extend(entries.iter().map(|(_, child)| child.get()));
                }
                Node::Leaf(_) => leaves.push(number),
            }
        }
        (internal, leaves)
    }

    fn volumes(&self) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        for leaf in self.nodes::<RootRecord>(self.superblock().mapping_root.0).1 {
            if let Ok(Node::Leaf(entries)) = Node::<RootRecord>::parse(&self.blocks[leaf as usize]) {
                found.extend(entries.iter().map(|(id, root)| (id, root.root().0)));
            }
        }
        found
    }

    /// The virtual blocks in all leaves at or below a node.
    fn keys_below(&self, node: u64) -> BTreeSet<u64> {
        let mut keys = BTreeSet::new();
        for leaf in self.nodes::<MappingRecord>(node).1 {
            let node = Node::<MappingRecord>::parse(&self.blocks[leaf as usize]).expect("the image is sound");
            keys.extend(node.keys().iter().map(|key| key.get()));
        }
        keys
    }

    /// A block of each kind that can be damaged.
    fn one_of_each(&self) -> Vec<(&'static str, u64)> {
        let superblock = self.superblock();
        let root = *self.volumes().values().nth(1).expect("two volumes");
        let (internal, leaves) = self.nodes::<MappingRecord>(root);
        let data = superblock.data_space_map;
        let index = match Node::<IndexEntry>::parse(&self.blocks[data.bitmap_root.get() as usize]) {
            Ok(Node::Leaf(entries)) => entries.values[0].bitmap().0,
            Ok(Node::Internal(_)) | Err(_) => panic!("a small pool's index is one leaf"),
        };
        let large = self.nodes::<LargeCount>(data.large_counts_root.get()).1;
        vec![
            ("superblock", 0),
            ("internal", internal[0]),
            ("leaf", leaves[leaves.len() / 2]),
            ("bitmap", index),
            ("index", superblock.metadata_space_map.bitmap_root.get()),
            ("data index", data.bitmap_root.get()),
            ("overflow", large[large.len() / 2]),
            ("details", superblock.details_root.0),
        ]
    }
}

/// Ways to damage a block.
const FAULTS: [&str; 5] = ["zeroed", "bit flip", "stale copy", "swapped", "wrong number"];

fn damage(image: &mut Image, number: u64, fault: &str) {
    let kind = image.blocks[number as usize].kind().expect("it was sound");
    // Another block of the kind, in use or not; of a kind that there is only one of, a node.
    let others = || (1..image.blocks.len() as u64).filter(|other| *other != number);
    let is_alike = |other: &u64| image.blocks[*other as usize].kind() == Some(kind);
    let other = others()
        .filter(is_alike)
        .nth(3)
        .or_else(|| others().find(|other| image.blocks[*other as usize].kind() == Some(BlockKind::Node)));
    let other = other.expect("there are nodes") as usize;
    let at = number as usize;
    match fault {
        "zeroed" => image.blocks[at] = Block::ZERO,
        "bit flip" => image.blocks[at].0[1000] ^= 4,
        // Sound in itself, at its place by its number, and of another time or place.
        "stale copy" => {
            let mut copy = image.blocks[other].clone();
            let kind = copy.kind().expect("it was sound");
            copy.seal(MetaBlock(number), kind);
            image.blocks[at] = copy;
        }
        "swapped" => image.blocks.swap(at, other),
        "wrong number" => image.blocks[at].seal(MetaBlock(number + 1), kind),
        _ => panic!("no such fault"),
    }
}

/// What must be left when nothing below these nodes can be read.
fn survivors(image: &Image, whole: &Expanded, lost: &[u64]) -> BTreeMap<String, Vec<[u64; 4]>> {
    let roots = image.volumes();
    let mut left = BTreeMap::new();
    for (attributes, runs) in &whole.volumes {
        let id = &attributes[0].1;
        let root = roots[&id.parse::<u64>().expect("a number")];
        let (internal, leaves) = image.nodes::<MappingRecord>(root);
        let nodes: BTreeSet<u64> = internal.into_iter().chain(leaves).collect();
        let mut gone = BTreeSet::new();
        for node in lost.iter().filter(|node| nodes.contains(node)) {
            gone.extend(image.keys_below(*node));
        }
        let mut kept: Vec<[u64; 4]> = Vec::new();
        let singles = runs.iter().flat_map(|[begin, data, length, time]| {
            (0..*length).map(move |i| [begin + i, data + i, 1, *time])
        });
        for [key, data, _, time] in singles.filter(|single| !gone.contains(&single[0])) {
            match kept.last_mut() {
                Some(last) if last[0] + last[2] == key && last[1] + last[2] == data && last[3] == time => {
                    last[2] += 1
                }
                _ => kept.push([key, data, 1, time]),
            }
        }
        left.insert(id.clone(), kept);
    }
    left
}

fn mappings(xml: &str) -> BTreeMap<String, Vec<[u64; 4]>> {
    let volumes = expanded(xml).volumes;
    volumes.into_iter().map(|(attributes, runs)| (attributes[0].1.clone(), runs)).collect()
}

#[test]
fn every_kind_of_block_in_every_way() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let good = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    let output = empty_device(&folder, "output", 4096);
    for (what, number) in good.one_of_each() {
        for fault in FAULTS {
            let case = format!("{what}, block {number}, {fault}");
            let mut image = Image { blocks: good.blocks.clone() };
            damage(&mut image, number, fault);
            image.write(&path);
            let before = fs::read(&path).expect("it is there");

            let told = ours(&["check", "--json", text(&path)]);
            // Without a superblock there is nothing to check: that is said in an error.
            let is_gone = number == 0 && matches!(fault, "zeroed" | "stale copy" | "swapped");
            assert_eq!(told.status, if is_gone { 1 } else { 4 }, "{case}: {}", told.text());
            if matches!(what, "leaf" | "internal") {
                named_volumes(&good, number, &told.text(), &case);
            }

            let options = ["--data-block-size", "128", "--nr-data-blocks", "200000", "--transaction-id", "5"];
            let options = if number == 0 { &options[..] } else { &[] };
            let told = ours(&[&["repair", "-i", text(&path), "-o", text(&output)], options].concat());
            assert_eq!(told.status, 0, "{case}: {}", told.errors);
            oracle::assert_clean(&output);
            let lost = if matches!(what, "leaf" | "internal") { vec![number] } else { Vec::new() };
            let found = oracle::thin_dump(&output);
            assert!(mappings(&found) == survivors(&good, &whole, &lost), "{case}: {}", told.errors);
            assert!(what == "details" || !lost.is_empty() || expanded(&found) == whole, "{case}");
            assert!(fs::read(&path).expect("it is there") == before, "{case}: the input was changed");
        }
    }
}

/// The volumes that the check names must be those that have the block.
fn named_volumes(image: &Image, number: u64, report: &str, case: &str) {
    let report: serde_json::Value = serde_json::from_str(report).expect("JSON");
    let mut named = BTreeSet::new();
    for finding in report["findings"].as_array().expect("a list").iter().filter(|f| f["block"] == number) {
        let touches = finding["touches"].as_array().expect("a list");
        named.extend(touches.iter().map(|touched| touched["volume"].as_u64().expect("a number")));
    }
    let has = |root: &u64| {
        let (internal, leaves) = image.nodes::<MappingRecord>(*root);
        internal.contains(&number) || leaves.contains(&number)
    };
    let expected: BTreeSet<u64> =
        image.volumes().iter().filter(|(_, root)| has(root)).map(|(id, _)| *id).collect();
    assert_eq!(named, expected, "{case}");
}

#[test]
fn a_metadata_snapshot_gone_takes_nothing_live_with_it() {
    let folder = folder();
    let path = unpack(&folder, "09-held-root");
    let good = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    let output = empty_device(&folder, "output", 4096);
    for fault in FAULTS {
        let mut image = Image { blocks: good.blocks.clone() };
        damage(&mut image, 177, fault);
        image.write(&path);
        assert_eq!(ours(&["check", "-q", text(&path)]).status, 4, "{fault}");
        ours(&["repair", "-q", "-i", text(&path), "-o", text(&output)]).good();
        oracle::assert_clean(&output);
        assert!(expanded(&oracle::thin_dump(&output)) == whole, "{fault}");
    }
}

/// Cut just before a block of each kind: what lies behind the cut is lost, and nothing else.
#[test]
fn a_device_cut_short_before_each_kind_of_block() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let good = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    let superblock = good.superblock();
    let output = empty_device(&folder, "output", 4096);
    for (what, kept) in good.one_of_each().into_iter().filter(|(_, number)| *number > 0) {
        let bytes: Vec<u8> = good.blocks[..kept as usize].iter().flat_map(|block| block.0).collect();
        fs::write(&path, bytes).expect("written");
        let told = ours(&["check", text(&path)]);
        assert_eq!(told.status, 4, "{what}");
        assert!(told.text().contains("cut short?"), "{what}: {}", told.text());
        let told = ours(&["repair", "-i", text(&path), "-o", text(&output)]);
        if superblock.mapping_root.0 < kept {
            assert_eq!(told.status, 0, "{what}: {}", told.errors);
            oracle::assert_clean(&output);
            let lost: Vec<u64> = (kept..good.blocks.len() as u64).collect();
            assert!(mappings(&oracle::thin_dump(&output)) == survivors(&good, &whole, &lost), "{what}");
        } else if told.status == 0 {
            assert!(
                told.errors.contains("assumed: the tree of volumes is an older one"),
                "{what}: {}",
                told.errors
            );
            oracle::assert_clean(&output);
        } else {
            assert_eq!(told.refused().matches("uthin-fsck: ").count(), 1, "{what}");
        }
    }
}

#[test]
fn a_truncated_device_keeps_what_is_there() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let good = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    let output = empty_device(&folder, "output", 4096);
    for kept in [1300_u64, 1700] {
        let bytes: Vec<u8> = good.blocks[..kept as usize].iter().flat_map(|block| block.0).collect();
        fs::write(&path, bytes).expect("written");
        let told = ours(&["check", text(&path)]);
        assert_eq!(told.status, 4);
        assert!(told.text().contains("cut short?"), "{}", told.text());
        let told = ours(&["repair", "-i", text(&path), "-o", text(&output)]);
        assert_eq!(told.status, 0, "{}", told.errors);
        oracle::assert_clean(&output);
        let lost: Vec<u64> = (kept..good.blocks.len() as u64).collect();
        assert!(mappings(&oracle::thin_dump(&output)) == survivors(&good, &whole, &lost), "{kept}");
    }
}

#[test]
fn without_a_superblock_the_size_of_blocks_must_be_said() {
    let folder = folder();
    let path = unpack(&folder, "16-random-singles");
    let mut image = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    image.blocks[0] = Block::ZERO;
    image.write(&path);
    let output = empty_device(&folder, "output", 2048);
    let errors = ours(&["repair", "-i", text(&path), "-o", text(&output)]).refused();
    assert!(errors.contains("--data-block-size SECTORS"), "{errors}");
    assert!(fs::read(&output).expect("it is there").iter().all(|byte| *byte == 0), "nothing was written");
    let dry = ours(&["repair", "--dry-run", "-i", text(&path), "--data-block-size", "128"]);
    assert!(dry.text().contains("candidates, the best first"), "{}", dry.text());
    assert!(
        dry.text().contains("1 volumes, 26000 mappings can be saved; nothing was written"),
        "{}",
        dry.text()
    );
    ours(&["repair", "-i", text(&path), "-o", text(&output), "--data-block-size", "128"]).good();
    oracle::assert_clean(&output);
    assert!(
        mappings(&oracle::thin_dump(&output))
            .into_values()
            .eq(whole.volumes.into_iter().map(|(_, runs)| runs))
    );
    let dumped = ours(&["dump", "--repair", "--data-block-size", "128", text(&path)]);
    assert!(dumped.errors.contains("assumed: the transaction id is "), "{}", dumped.errors);
    let xml = dumped.good();
    assert!(mappings(&String::from_utf8(xml).expect("UTF-8")).values().flatten().count() > 20_000);
}

#[test]
fn roots_may_be_chosen() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let output = empty_device(&folder, "output", 2048);
    // The state before: block 341 and 560 were the roots of an earlier transaction, as --dry-run shows.
    let dry = ours(&["repair", "--dry-run", "--json", "-i", text(&path)]).good();
    let dry: serde_json::Value = serde_json::from_slice(&dry).expect("JSON");
    let older = dry["candidates"].as_array().expect("a list").iter().find(|c| c["mapping_root"] == 341);
    let older = older.expect("it is one");
    assert_eq!((&older["agrees"], &older["details_root"]), (&true.into(), &560.into()));
    ours(&["repair", "-i", text(&path), "-o", text(&output), "--root", "341,560"]).good();
    oracle::assert_clean(&output);
    let mapped = oracle::thin_dump(&output).matches("mapped_blocks").count();
    assert_eq!(mapped as u64, older["volumes"].as_u64().expect("a number"));
    let errors = ours(&["repair", "-i", text(&path), "-o", text(&path)]).refused();
    assert!(errors.contains("is the input as well"), "{errors}");
}

/// A wrong number would make an empty pool of a full one, or one of what only looks like volumes.
#[test]
fn a_root_that_is_none_is_refused_with_what_is_there() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let output = empty_device(&folder, "output", 2048);
    for (root, words) in [
        ("0", "no tree of volumes begins in block 0: the superblock: transaction 7"),
        ("372", "no tree of volumes begins in block 372: a leaf of mappings"),
        ("343", "no tree of volumes begins in block 343: an internal node: 133 entries"),
        ("564", "no tree of volumes begins in block 564: a bitmap"),
        ("661", "no tree of volumes begins in block 661: a leaf of details"),
        ("2047", "no tree of volumes begins in block 2047: all zeros"),
        ("5000", "no tree of volumes begins in block 5000: past the end"),
        ("563,563", "no tree of details begins in block 563: a leaf of mappings, or of the tree of volumes"),
        ("563,2047", "no tree of details begins in block 2047: all zeros"),
    ] {
        for arguments in [&["-o", text(&output)][..], &["--dry-run"]] {
            let words_of = [&["repair", "-i", text(&path), "--root", root], arguments].concat();
            let errors = ours(&words_of).refused();
            assert!(errors.contains(words) && errors.contains("--dry-run` shows"), "{root}: {errors}");
        }
    }
    assert!(fs::read(&output).expect("it is there").iter().all(|byte| *byte == 0), "nothing was written");
    ours(&["repair", "-i", text(&path), "-o", text(&output), "--root", "563,661"]).good();
}

/// An older state that is whole maps data blocks that are somebody else's by now.
#[test]
fn a_damaged_newest_state_comes_before_an_older_whole_one() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let good = Image::read(&path);
    let whole = expanded(&oracle::thin_dump(&path));
    let mut image = Image { blocks: good.blocks.clone() };
    image.blocks[0] = Block::ZERO;
    image.blocks[372].0[1000] ^= 1;
    image.write(&path);
    let output = empty_device(&folder, "output", 2048);
    let options = ["--data-block-size", "128", "--nr-data-blocks", "100000"];
    ours(&[&["repair", "-i", text(&path), "-o", text(&output)], &options[..]].concat()).good();
    oracle::assert_clean(&output);
    assert!(mappings(&oracle::thin_dump(&output)) == survivors(&good, &whole, &[372]));
}

#[test]
fn an_older_tree_of_volumes_is_told_to_be_one() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let mut image = Image::read(&path);
    let root = image.superblock().mapping_root.0;
    image.blocks[root as usize].0[1000] ^= 1;
    image.write(&path);
    let output = empty_device(&folder, "output", 2048);
    let told = ours(&["repair", "-i", text(&path), "-o", text(&output)]);
    assert_eq!(told.status, 0, "{}", told.errors);
    assert!(told.errors.contains("assumed: the tree of volumes is an older one"), "{}", told.errors);
    oracle::assert_clean(&output);
}

/// A mapping past the end of the data device is none that can be kept; who had it must be told.
#[test]
fn what_is_mapped_past_the_end_is_told_of() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let mut image = Image::read(&path);
    let (volume, root) = image.volumes().into_iter().next().expect("a volume");
    let leaf = image.nodes::<MappingRecord>(root).1[0];
    let key = match Node::<MappingRecord>::parse(&image.blocks[leaf as usize]) {
        Ok(Node::Leaf(entries)) => entries.key(1),
        Ok(Node::Internal(_)) | Err(_) => panic!("it is a leaf"),
    };
    // Values begin behind the header and all keys; the lowest 24 bits are the time.
    let value = 32 + 252 * 8 + 8;
    let block = &mut image.blocks[leaf as usize];
    block.0[value..value + 8].copy_from_slice(&(1_u64 << 50).to_le_bytes());
    block.seal(MetaBlock(leaf), BlockKind::Node);
    image.write(&path);
    let bytes = u64::from(image.superblock().data_block_sectors) * 512;
    let words = format!(
        "lost: volume {volume}, bytes {} to {}: mapped to data block",
        key * bytes,
        (key + 1) * bytes
    );
    let output = empty_device(&folder, "output", 4096);
    let told = ours(&["repair", "-i", text(&path), "-o", text(&output)]);
    assert!(told.status == 0 && told.errors.contains(&words), "{words}: {}", told.errors);
    oracle::assert_clean(&output);
    let told = ours(&["repair", "--dry-run", "--json", "-i", text(&path)]).good();
    let told: serde_json::Value = serde_json::from_slice(&told).expect("JSON");
    let lost = &told["losses"][0];
    assert_eq!(
        (&lost["volume"], &lost["begin"], &lost["end"]),
        (&volume.into(), &key.into(), &(key + 1).into())
    );
}

/// A number that is too small would cost mappings that nothing is wrong with.
#[test]
fn a_data_device_too_small_for_what_is_mapped_is_refused() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let output = empty_device(&folder, "output", 2048);
    let repair =
        |blocks: &str| ours(&["repair", "--nr-data-blocks", blocks, "-i", text(&path), "-o", text(&output)]);
    let errors = repair("1000").refused();
    assert!(fs::read(&output).expect("it is there").iter().all(|byte| *byte == 0), "nothing was written");
    let least = errors.split("--nr-data-blocks ").nth(1).and_then(|rest| rest.split(',').next());
    let least: u64 = least.and_then(|number| number.parse().ok()).expect("it names a number");
    repair(&(least - 1).to_string()).refused();
    assert_eq!(repair(&least.to_string()).status, 0);
    oracle::assert_clean(&output);
    assert!(mappings(&oracle::thin_dump(&output)) == mappings(&oracle::thin_dump(&path)));
    ours(&["dump", "-r", "--nr-data-blocks", "1000", text(&path)]).refused();
}

/// Whoever makes the output larger as they are told must not have to do so again and again.
#[test]
fn an_output_that_is_too_small_is_told_what_it_lacks() {
    let folder = folder();
    for name in ["16-random-singles", "03-random-runs"] {
        let path = unpack(&folder, name);
        let repair = |blocks: u64| {
            let output = empty_device(&folder, "output", blocks);
            ours(&["repair", "-i", text(&path), "-o", text(&output)])
        };
        let errors = repair(16).refused();
        let least = errors.split("at least ").nth(1).and_then(|rest| rest.split(' ').next());
        let least: u64 = least.and_then(|number| number.parse().ok()).expect("it names a number");
        repair(least - 1).refused();
        let told = repair(least);
        assert_eq!(told.status, 0, "{name}: {}", told.errors);
    }
}

/// The roots that such a superblock names are those that were in use, however good an older tree looks.
#[test]
fn a_superblock_with_another_number_is_still_the_superblock() {
    let folder = folder();
    let path = unpack(&folder, "07-discards");
    let whole = mappings(&oracle::thin_dump(&path));
    let mut image = Image::read(&path);
    let superblock = image.superblock();
    image.blocks[0].seal(MetaBlock(1), BlockKind::Superblock);
    image.write(&path);
    let told = ours(&["repair", "--dry-run", "--json", "-i", text(&path)]).good();
    let told: serde_json::Value = serde_json::from_slice(&told).expect("JSON");
    assert_eq!(told["mapping_root"], superblock.mapping_root.0);
    assert_eq!(told["candidates"][0]["mapping_root"], superblock.mapping_root.0);
    assert!(told["superblock_fault"].as_str().is_some_and(|fault| fault.contains("carries block number 1")));
    let output = empty_device(&folder, "output", 4096);
    assert_eq!(ours(&["repair", "-i", text(&path), "-o", text(&output)]).status, 0);
    assert!(mappings(&oracle::thin_dump(&output)) == whole);
}
