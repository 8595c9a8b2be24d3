//! `uthin-fsck shrink`: every volume reads what it read before, from a data device that ends earlier.

mod fsck_common;

use fsck_common::expanded::{Expanded, expanded};
use fsck_common::{empty_device, folder, oracle, ours, text, unpack};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const BLOCK_BYTES: u64 = 64 << 10;

fn dumped(path: &Path) -> String {
    String::from_utf8(ours(&["dump", text(path)]).good()).expect("XML is UTF-8")
}

/// Data blocks in use.
fn used(pool: &Expanded) -> BTreeSet<u64> {
    let runs = pool.volumes.iter().flat_map(|(_, runs)| runs);
    runs.flat_map(|[_, data, length, _]| *data..data + length).collect()
}

fn data_blocks(pool: &Expanded) -> u64 {
    let (_, blocks) = pool.pool.iter().find(|(name, _)| name == "nr_data_blocks").expect("it is there");
    blocks.parse().expect("a number")
}

/// A data device in which every block in use begins and ends with its number.
fn tagged(folder: &TempDir, pool: &Expanded) -> PathBuf {
    let path = folder.path().join("data");
    let file = File::create(&path).expect("a file");
    file.set_len(data_blocks(pool) * BLOCK_BYTES).expect("a sparse file");
    for block in used(pool) {
        for place in [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES - 8] {
            file.write_all_at(&block.to_le_bytes(), place).expect("written");
        }
    }
    path
}

/// What the volumes hold: volume, virtual block, time, and the tag of the data.
fn contents(pool: &Expanded, data: &Path) -> Vec<(String, u64, u64, u64)> {
    let file = File::open(data).expect("it is there");
    let tag = |block: u64| {
        let ends = [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES - 8].map(|place| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, place).expect("inside the device");
            u64::from_le_bytes(bytes)
        });
        assert_eq!(ends[0], ends[1], "block {block} is of one piece");
        ends[0]
    };
    let mut found = Vec::new();
    for (volume, runs) in &pool.volumes {
        let (_, number) = &volume[0];
        for [begin, data, length, time] in runs {
            let blocks = (0..*length).map(|index| (number.clone(), begin + index, *time, tag(data + index)));
            found.extend(blocks);
        }
    }
    found
}

fn cut(data: &Path, blocks: u64) {
    File::options().write(true).open(data).and_then(|file| file.set_len(blocks * BLOCK_BYTES)).expect("cut");
}

#[test]
fn what_volumes_read_stays_when_the_end_of_the_data_goes() {
    for (name, extra) in [("17-many-devices", 0), ("17-many-devices", 7), ("08-deleted", 0)] {
        let folder = folder();
        let input = unpack(&folder, name);
        let xml = dumped(&input);
        let before = expanded(&xml);
        let data = tagged(&folder, &before);
        let expected = contents(&before, &data);
        let blocks = used(&before).len() as u64 + extra;
        let blocks_text = blocks.to_string();

        // Metadata to metadata.
        let output = empty_device(&folder, "shrunk", 4096);
        let words = ["shrink", "--binary", "-i", text(&input), "-o", text(&output), "--data", text(&data)];
        let told = ours(&[&words[..], &["--nr-blocks", &blocks_text]].concat());
        let errors = told.errors.clone();
        told.good();
        assert!(errors.contains(&format!("may be cut to {} bytes", blocks * BLOCK_BYTES)), "{errors}");
        cut(&data, blocks);
        oracle::assert_clean(&output);
        let after = expanded(&dumped(&output));
        assert_eq!(data_blocks(&after), blocks);
        assert!(contents(&after, &data) == expected, "{name}, {extra}");

        // XML to XML says the same.
        let data = tagged(&folder, &before);
        let (from, to) = (folder.path().join("from.xml"), folder.path().join("to.xml"));
        fs::write(&from, &xml).expect("written");
        let words = ["thin_shrink", "-i", text(&from), "-o", text(&to), "--data", text(&data)];
        ours(&[&words[..], &["--nr-blocks", &blocks_text]].concat()).good();
        cut(&data, blocks);
        let shrunk = expanded(&fs::read_to_string(&to).expect("written"));
        assert!(shrunk == after, "{name}, {extra}");
        assert!(contents(&shrunk, &data) == expected, "{name}, {extra}");
    }
}

#[test]
fn a_pool_that_ends_early_enough_moves_nothing_and_no_copy_says_so() {
    let folder = folder();
    let input = unpack(&folder, "17-many-devices");
    let before = expanded(&dumped(&input));
    let data = tagged(&folder, &before);
    let last = *used(&before).last().expect("something is mapped");
    let output = empty_device(&folder, "shrunk", 4096);
    let words = ["shrink", "--binary", "-i", text(&input), "-o", text(&output), "--data", text(&data)];
    let told = ours(&[&words[..], &["--nr-blocks", &(last + 1).to_string()]].concat());
    assert!(told.errors.starts_with("0 data blocks moved\n"), "{}", told.errors);
    assert!(expanded(&dumped(&output)).volumes == before.volumes);

    let allocated = || fs::metadata(&data).expect("it is there").blocks();
    let (tags, space) = (contents(&before, &data), allocated());
    let few = used(&before).len().to_string();
    let told = ours(&[&words[..], &["--no-copy", "--nr-blocks", &few]].concat());
    assert!(told.errors.contains("does not fit the data"), "{}", told.errors);
    assert!(contents(&before, &data) == tags && allocated() == space, "nothing was written");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_has_changed() {
    let folder = folder();
    let input = unpack(&folder, "17-many-devices");
    let before = expanded(&dumped(&input));
    let data = tagged(&folder, &before);
    let output = empty_device(&folder, "shrunk", 4096);
    let metadata_bytes = fs::read(&input).expect("it is there");
    let tags = contents(&before, &data);
    let in_use = used(&before).len() as u64;
    let shrink = |input: &Path, output: &Path, data: &Path, blocks: u64| {
        let words = ["shrink", "--binary", "-i", text(input), "-o", text(output), "--data", text(data)];
        ours(&[&words[..], &["--nr-blocks", &blocks.to_string()]].concat()).refused()
    };
    let errors = shrink(&input, &output, &data, in_use - 3);
    assert!(errors.contains("3 more than fit") && errors.contains("fstrim"), "{errors}");
    let errors = shrink(&input, &output, &data, data_blocks(&before) + 1);
    assert!(errors.contains("more than the pool has"), "{errors}");
    let errors = shrink(&input, &input, &data, in_use);
    assert!(errors.contains("input as well"), "{errors}");
    let errors = shrink(&input, &data, &data, in_use);
    assert!(errors.contains("input as well"), "{errors}");
    let errors = shrink(&input, &folder.path().join("nowhere"), &data, in_use);
    assert!(errors.contains("make it first"), "{errors}");
    let short = empty_device(&folder, "short", 16);
    let errors = shrink(&input, &output, &short, in_use);
    assert!(errors.contains("is this the pool's data device?"), "{errors}");
    assert!(fs::read(&input).expect("it is there") == metadata_bytes);
    assert!(contents(&before, &data) == tags, "no block was touched");
    assert!(
        fs::read(&output).expect("it is there").iter().all(|byte| *byte == 0),
        "no metadata were written"
    );
}

/// What only the metadata snapshot refers to looks free to whoever knows the live volumes only.
#[test]
fn a_pool_with_a_metadata_snapshot_keeps_its_data() {
    let folder = folder();
    let input = unpack(&folder, "18-released-held");
    let live = expanded(&dumped(&input));
    let data = tagged(&folder, &live);
    let space = fs::metadata(&data).expect("it is there").blocks();
    let output = empty_device(&folder, "shrunk", 4096);
    let few = used(&live).len().to_string();
    let words = ["shrink", "--binary", "-i", text(&input), "-o", text(&output), "--data", text(&data)];
    let words = [&words[..], &["--nr-blocks", &few]].concat();
    let errors = ours(&words).refused();
    assert!(errors.contains("a metadata snapshot is held") && errors.contains("--release`"), "{errors}");
    assert!(
        fs::read(&output).expect("it is there").iter().all(|byte| *byte == 0),
        "no metadata were written"
    );
    // Where nothing is copied, nothing is overwritten.
    ours(&[&words[..], &["--no-copy"]].concat()).good();
    assert_eq!(fs::metadata(&data).expect("it is there").blocks(), space, "no block was touched");
}
