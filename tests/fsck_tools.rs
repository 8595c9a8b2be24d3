//! `ls`, `delta`, `rmap` and `metadata_size` beside the tools they stand in for.

mod fsck_common;

use fsck_common::{fixture_names, folder, ours, text, theirs, unpack};
use std::collections::BTreeMap;

const ALL_FIELDS: &str = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,HIGHEST_BLOCK,MAPPED_SECTORS,\
                          EXCLUSIVE_SECTORS,SHARED_SECTORS,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES,MAPPED,\
                          EXCLUSIVE,SHARED,TRANSACTION,CREATE_TIME,SNAP_TIME";

#[track_caller]
fn same(tool: &str, command: &str, arguments: &[&str]) {
    let expected = theirs(tool, arguments);
    let found = ours(&[&[command], arguments].concat());
    assert_eq!(found.status == 0, expected.status == 0, "{command} {arguments:?}: {}", found.errors);
    assert!(
        found.text() == expected.text(),
        "{command} {arguments:?}:\n{}\n{}",
        expected.text(),
        found.text()
    );
}

#[test]
fn volumes_take_what_thin_ls_says() {
    let folder = folder();
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        for options in [&[][..], &["-o", ALL_FIELDS], &["--no-headers", "-o", "DEV,SHARED"], &["-m"]] {
            same("thin_ls", "ls", &[options, &[text(&path)]].concat());
        }
    }
    let held = unpack(&folder, "09-held-root");
    same("thin_ls", "ls", &["-m", "-o", ALL_FIELDS, text(&held)]);
    let exclusive = ours(&["ls", "-m", "--no-headers", "-o", "EXCLUSIVE_BLOCKS", text(&held)]).text();
    assert!(exclusive.contains("12415"), "{exclusive}");
    let path = unpack(&folder, "04-snap-diverged");
    let listed = ours(&["ls", "--json", text(&path)]).good();
    let listed: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
    assert_eq!(listed["volumes"][1]["exclusive_blocks"], 7726);
}

#[test]
fn differences_are_those_of_thin_delta() {
    let folder = folder();
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        for (one, other) in
            [("0", "1"), ("1", "0"), ("5", "6"), ("37", "74"), ("0", "7"), ("1", "50"), ("100", "101")]
        {
            same("thin_delta", "delta", &["--thin1", one, "--thin2", other, text(&path)]);
            let verbose = ["--verbose", "--snap1", one, "--snap2", other, text(&path)];
            let (expected, found) =
                (theirs("thin_delta", &verbose), ours(&[&["delta"], &verbose[..]].concat()));
            assert!(kinds(&found.text()) == kinds(&expected.text()), "{name} {one} {other}");
        }
    }
    let path = unpack(&folder, "04-snap-diverged");
    same("thin_delta", "delta", &["--root1", "343", "--root2", "565", text(&path)]);
    same("thin_delta", "delta", &["--thin1", "0", "--root2", "565", text(&path)]);
    let path = unpack(&folder, "09-held-root");
    same("thin_delta", "delta", &["-m", "--thin1", "7", "--thin2", "8", text(&path)]);
    let errors = ours(&["delta", "--thin1", "7", "--thin2", "8", text(&path)]).refused();
    assert!(errors.contains("no volume 7") && errors.contains("uthin-fsck ls"), "{errors}");
}

/// The kind of every virtual block of a verbose delta.
fn kinds(xml: &str) -> BTreeMap<u64, String> {
    let (mut kind, mut found) = (String::new(), BTreeMap::new());
    for line in xml.lines().map(str::trim) {
        let number = |name: &str| -> Option<u64> {
            line.split_once(&format!(" {name}=\""))?.1.split('"').next()?.parse().ok()
        };
        match (line.starts_with("<range"), number("begin"), number("length")) {
            (true, Some(begin), Some(length)) => {
                found.extend((begin..begin + length).map(|block| (block, kind.clone())));
            }
            _ => kind = line.to_owned(),
        }
    }
    found
}

#[test]
fn the_way_back_is_that_of_thin_rmap_and_complete() {
    let folder = folder();
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        let has_shared_leaves = theirs("thin_dump", &[text(&path)]).text().contains("<def");
        for regions in [&["0..500"][..], &["3000..3001", "0..500", "400..1000"], &["7..100000000"]] {
            let mut arguments: Vec<_> = regions.iter().flat_map(|region| ["--region", region]).collect();
            arguments.push(text(&path));
            if has_shared_leaves {
                // thin_rmap tells of one of the volumes that share a leaf.
                let expected = theirs("thin_rmap", &arguments).text();
                let found = ours(&[&["rmap"], &arguments[..]].concat()).text();
                assert!(blocks(&expected).is_subset(&blocks(&found)), "{name} {regions:?}");
            } else {
                same("thin_rmap", "rmap", &arguments);
            }
        }
    }
    let path = unpack(&folder, "05-chain50");
    let owners = ours(&["rmap", "--region", "0..1", text(&path)]).text();
    let delta = |volume: &str| {
        ours(&["delta", "--thin1", volume, "--thin2", volume, "--verbose", text(&path)]).text()
    };
    for volume in ["2", "3"] {
        let is_told = owners.contains(&format!("thin({volume})"));
        assert_eq!(is_told, delta(volume).contains("data_begin=\"0\""), "{owners}");
    }
    for wrong in ["20..10", "5", "x..9"] {
        assert_eq!(ours(&["rmap", "--region", wrong, text(&path)]).status, 2);
    }
}

/// Each data block with its volume and virtual block.
fn blocks(text: &str) -> std::collections::BTreeSet<(u64, u64, u64)> {
    let mut found = std::collections::BTreeSet::new();
    for line in text.lines() {
        let numbers: Vec<u64> =
            line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [data, end, volume, begin, _] = numbers[..] else { panic!("{line}") };
        found.extend((0..end - data).map(|i| (data + i, volume, begin + i)));
    }
    found
}

#[test]
fn metadata_sizes_are_those_of_thin_metadata_size() {
    let pools =
        ["-b 64k -s 1t -m 1000", "-b 128 -s 10000000 -m 1", "-b 1m -s 1p -m 99", "-b 64k -s 1t -m 5000000"];
    for pool in pools.iter().chain(&[
        "-b 65k -s 1g -m 1",
        "-b 64k -s 10k -m 1",
        "-b 1M -s 1T -m 1",
        "-b 64KiB -s 1GB -m 9",
        "-b 64kib -s 1g -m 9",
    ]) {
        for unit in [
            "",
            "-u b",
            "-u s",
            "-u k",
            "-u K",
            "-u m",
            "-u M",
            "-u g",
            "-u G",
            "-u E",
            "-u MiB",
            "-u kB",
            "-u sector",
            "-u gigabyte",
            "-u KB",
            "-u x",
        ] {
            for number in ["", "-n", "-n=short", "-n=long"] {
                let line = format!("{pool} {unit} {number}");
                let arguments: Vec<_> = line.split_whitespace().collect();
                let (expected, found) = (
                    theirs("thin_metadata_size", &arguments),
                    ours(&[&["metadata_size"], &arguments[..]].concat()),
                );
                assert_eq!(found.status == 0, expected.status == 0, "{line}: {}", found.errors);
                assert_eq!(found.text().trim_end(), expected.text().trim_end(), "{line}");
            }
        }
    }
}
