//! `explain`, `map` and `damage`.

mod fsck_common;

use fsck_common::{empty_device, folder, ours, text, unpack};
use std::fs;

#[test]
fn explains_blocks_by_what_they_are_and_who_names_them() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let said = |block: &str| ours(&["explain", text(&path), block]).text();
    for (block, words) in [
        ("0", "the superblock: transaction 7, time 1\nin use"),
        ("563", "named by block 0 as tree of volumes\n"),
        ("343", "an internal node: 133 entries, keys 21 to "),
        ("343", "named by block 563 as mappings of volume 0\n"),
        ("372", "named by block 343 as child from key 21 on\n"),
        ("162", "in use"),
        ("661", "a leaf of details: 2 entries, keys 0 to 1\n"),
        ("564", "a bitmap of a space map\n  named by block 663 as bitmap 0\n"),
        ("567", "named by block 662 as bitmap 0\n"),
        ("343", "named by block 341 as mappings of volume 0, which is not in use any more"),
        ("341", "not in use: nothing that the superblock reaches names it"),
        ("2047", "all zeros"),
    ] {
        let found = said(block);
        assert!(found.contains(words), "{block}: {words}\n{found}");
    }
    let errors = ours(&["explain", text(&path), "2048"]).refused();
    assert!(errors.contains("past the end of the metadata, which has 2048 blocks"), "{errors}");
    let json = ours(&["explain", "--json", text(&path), "162"]).good();
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let live = json["pointed_at_by"].as_array().expect("a list").iter().filter(|p| p["is_in_use"] == true);
    assert_eq!(live.count(), 2, "both volumes share the leaf: {json}");
}

/// The first blocks of a data device, mapped in the first moments of a pool, look like numbers of metadata blocks.
#[test]
fn a_mapping_is_not_taken_for_a_pointer() {
    let folder = folder();
    let path = empty_device(&folder, "metadata", 64);
    let xml = folder.path().join("xml");
    let small = "<superblock uuid=\"\" time=\"9\" transaction=\"1\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"9\">\
                 <device dev_id=\"5\" mapped_blocks=\"1\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\
                 <single_mapping origin_block=\"3\" data_block=\"0\" time=\"TIME\"/></device></superblock>";
    for time in 1..10 {
        fs::write(&xml, small.replace("TIME", &time.to_string())).expect("written");
        ours(&["restore", "-i", text(&xml), "-o", text(&path)]).good();
        let (mut is_root, mut is_free) = (false, false);
        for block in 1..64 {
            let said = ours(&["explain", text(&path), &block.to_string()]).text();
            assert!(!said.contains("mappings of volume 3"), "time {time}, block {block}: {said}");
            is_root |= said.contains("as mappings of volume 5\n");
            is_free |= said.contains("not in use");
        }
        assert!(is_root && is_free, "time {time}");
    }
}

#[test]
fn the_map_shows_what_is_free_shared_and_whose() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let drawn = ours(&["map", "--columns", "20", "--rows", "1", text(&path)]).text();
    assert_eq!(drawn, "a...................\na volume 0\n# shared by volumes, . free\n");
    let path = unpack(&folder, "06-siblings200");
    let drawn = ours(&["map", text(&path)]).text();
    assert!(drawn.contains('#') && drawn.contains('.'), "{drawn}");
    let svg = ours(&["map", "--svg", text(&path)]).text();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("shared, "), "{svg:.300}");
}

#[test]
fn damage_does_what_it_says_and_the_check_finds_it() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let good = fs::read(&path).expect("it is there");
    for (fault, words) in [
        (&["zero"][..], "it is all zeros"),
        (&["flip"], "bad checksum"),
        (&["flip", "--bit", "32767"], "bad checksum"),
        (&["swap", "--other", "444"], "carries block number"),
        (&["copy", "--other", "444"], "its last key 916 is not below 253"),
        (&["number"], "carries block number 373, expected 372"),
    ] {
        let arguments = [&["damage", text(&path), "--block", "372", "--fault"], fault].concat();
        ours(&arguments).good();
        let report = ours(&["check", text(&path)]);
        assert_eq!(report.status, 4, "{fault:?}");
        assert!(report.text().contains(words), "{fault:?}: {}", report.text());
        fs::write(&path, &good).expect("written");
    }
}
