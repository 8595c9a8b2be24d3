//! `uthin-fsck dump` beside thin_dump: the same bytes from every fixture, with every option that both have.

mod fsck_common;

use fsck_common::{change, fixture_names, folder, fsck, ours, text, theirs, unpack};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

/// Options that thin_dump has as well.
const OPTIONS: [&[&str]; 6] = [
    &[],
    &["-f", "human_readable"],
    &["--skip-mappings"],
    &["--dev-id", "0"],
    &["--dev-id", "37", "--dev-id", "0", "--dev-id", "1"],
    &["-m"],
];

#[test]
fn writes_what_thin_dump_writes_to_the_byte() {
    let folder = folder();
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        for options in OPTIONS {
            let arguments: Vec<_> = options.iter().copied().chain([text(&path)]).collect();
            let expected = theirs("thin_dump", &arguments);
            let found = ours(&[&["dump"], &arguments[..]].concat());
            assert_eq!(found.status == 0, expected.status == 0, "{name} {options:?}: {}", found.errors);
            assert!(found.out == expected.out, "{name} {options:?}:\n{}", found.text());
        }
    }
}

#[test]
fn a_metadata_snapshot_may_be_named_by_its_block() {
    let folder = folder();
    let path = unpack(&folder, "09-held-root");
    let by_itself = ours(&["dump", "--metadata-snap", text(&path)]).good();
    assert_eq!(ours(&["dump", "-m=177", text(&path)]).good(), by_itself);
    let errors = ours(&["dump", "-m=178", text(&path)]).refused();
    assert!(errors.contains("metadata block 178"), "{errors}");
    let without = unpack(&folder, "04-snap-diverged");
    let errors = ours(&["dump", "-m", text(&without)]).refused();
    assert!(errors.contains("no current metadata snap"), "{errors}");
}

#[test]
fn json_lines_say_the_same_as_the_xml() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let xml = String::from_utf8(ours(&["dump", text(&path)]).good()).expect("XML is UTF-8");
    let lines = String::from_utf8(ours(&["dump", "-f", "json-lines", text(&path)]).good()).expect("UTF-8");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    let count = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!(count("run"), xml.matches("_mapping ").count());
    assert_eq!(count("ref"), xml.matches("<ref ").count());
    assert_eq!(count("shared"), xml.matches("<def ").count());
    assert_eq!(count("volume"), 51);
    assert_eq!((count("pool"), count("end")), (1, 1));
    assert_eq!(lines[0]["data_blocks"], 200_000);
}

#[test]
fn goes_by_the_name_of_thin_dump() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let expected = theirs("thin_dump", &[text(&path)]).good();
    let by_name = fsck().arg0("/sbin/thin_dump").arg(&path).output().expect("it starts");
    assert_eq!(by_name.stdout, expected);
    assert_eq!(ours(&["thin_dump", text(&path)]).good(), expected);
    let version = fsck().arg0("thin_dump").arg("-V").output().expect("it starts").stdout;
    assert!(version.starts_with(b"1.1.0 "), "LVM reads a number from the beginning");
}

#[test]
fn writes_to_a_file_but_never_to_its_input() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let before = fs::read(&path).expect("it is there");
    let output = folder.path().join("dump.xml");
    assert_eq!(ours(&["dump", "-o", text(&output), text(&path)]).good(), b"");
    assert_eq!(fs::read(&output).expect("written"), ours(&["dump", text(&path)]).good());
    let link = folder.path().join("link");
    fs::hard_link(&path, &link).expect("a link");
    for same in [&path, &link] {
        let errors = ours(&["dump", "-o", text(same), text(&path)]).refused();
        assert!(errors.contains("is the input as well"), "{errors}");
    }
    assert!(fs::read(&path).expect("it is there") == before);
}

#[test]
fn damage_ends_it_with_the_block_and_nothing_that_looks_whole() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[372 * 4096 + 100] ^= 1;
    fs::write(&path, bytes).expect("written");
    let told = ours(&["dump", text(&path)]);
    assert!(!told.text().contains("</superblock>"));
    let errors = told.refused();
    assert!(errors.contains("metadata block 372: bad checksum"), "{errors}");
}

#[test]
fn keys_outside_of_what_the_parent_says_are_damage() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    // The first key of the second leaf's parent entry: above the leaf's own first key.
    change(&path, 343, |root| root.0[40..48].copy_from_slice(&254_u64.to_le_bytes()));
    let errors = ours(&["dump", text(&path)]).refused();
    assert!(errors.contains("keys do not lie in the range"), "{errors}");
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let folder = folder();
    let path = unpack(&folder, "06-siblings200");
    let mut child =
        fsck().arg("dump").arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "that is no failure");
}

#[test]
fn the_live_superblock_is_no_metadata_snapshot() {
    let folder = folder();
    let path = unpack(&folder, "09-held-root");
    let errors = ours(&["dump", "--metadata-snap=0", text(&path)]).refused();
    assert!(errors.contains("block 0 is the live superblock"), "{errors}");
}

#[test]
fn flags_that_mean_nothing_are_left_out_as_thin_dump_does() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    for flags in [1, 2, 3, 0x8000_0000_u32] {
        change(&path, 0, |superblock| superblock.0[4..8].copy_from_slice(&flags.to_le_bytes()));
        let expected = theirs("thin_dump", &[text(&path)]).text();
        assert!(!expected.is_empty() && ours(&["dump", text(&path)]).text() == expected, "{flags:#x}");
    }
}
