//! `uthin-fsck restore`: what a dump said is what the restored device says, to us and to the tools of others.

mod fsck_common;

use fsck_common::expanded::expanded;
use fsck_common::{empty_device, fixture_names, folder, oracle, ours, text, theirs, unpack};
use oracle::Opinion;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SMALL: &str = r#"<superblock uuid="" time="3" transaction="9" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="5" mapped_blocks="0" transaction="1" creation_time="2" snap_time="3">
  </device>
  <device dev_id="6" mapped_blocks="3" transaction="1" creation_time="2" snap_time="3">
    <range_mapping origin_begin="7" data_begin="9" length="2" time="1"/>
    <single_mapping origin_block="9" data_block="11" time="2"/>
  </device>
</superblock>"#;

fn written(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("written");
    path
}

fn restored(folder: &TempDir, xml: &Path) -> PathBuf {
    let output = empty_device(folder, "restored", 4096);
    ours(&["restore", "-q", "-i", text(xml), "-o", text(&output)]).good();
    output
}

#[track_caller]
fn dumped(path: &Path) -> String {
    String::from_utf8(ours(&["dump", text(path)]).good()).expect("XML is UTF-8")
}

#[test]
fn dump_and_restore_keep_everything_through_us_and_through_others() {
    let folder = folder();
    for name in fixture_names() {
        let xml = dumped(&unpack(&folder, &name));
        let file = written(&folder, "dump.xml", &xml);
        let output = restored(&folder, &file);
        assert_eq!(
            oracle::thin_check(&output).0,
            Opinion::Clean,
            "{name}: {}",
            oracle::thin_check(&output).1
        );
        assert_eq!(oracle::verify(&output).0, Opinion::Clean, "{name}: {}", oracle::verify(&output).1);
        ours(&["check", "-q", text(&output)]).good();
        assert!(expanded(&dumped(&output)) == expanded(&xml), "{name}");
        assert!(expanded(&oracle::thin_dump(&output)) == expanded(&xml), "{name}");

        let by_others = empty_device(&folder, "by-others", 4096);
        theirs("thin_restore", &["-q", "-i", text(&file), "-o", text(&by_others)]).good();
        assert!(expanded(&dumped(&by_others)) == expanded(&xml), "{name}");
        let used = |path: &Path| {
            let report = ours(&["check", "--json", text(path)]).good();
            serde_json::from_slice::<serde_json::Value>(&report).expect("JSON")["metadata"]["allocated"]
                .as_u64()
        };
        assert!(used(&output) <= used(&by_others), "{name}: packed as densely");
    }
}

#[test]
fn a_dump_without_shared_parts_comes_back_to_the_byte() {
    let folder = folder();
    let file = written(&folder, "small.xml", SMALL);
    assert_eq!(dumped(&restored(&folder, &file)), SMALL);
}

#[test]
fn shared_parts_of_every_size_beside_own_mappings_of_every_size() {
    let folder = folder();
    let sizes = [1_u64, 50, 83, 84, 85, 251, 252, 253, 335, 336, 600];
    for own in [0, 1, 83, 84, 300] {
        let (mut parts, mut body, mut mapped, mut key) = (String::new(), String::new(), 0, 0);
        let mappings = |key: &mut u64, count: u64| {
            let first = *key;
            *key += 2 * count;
            let line = |i: u64| {
                let at = first + 2 * i;
                format!("<single_mapping origin_block=\"{at}\" data_block=\"{at}\" time=\"0\"/>\n")
            };
            (0..count).map(line).collect::<String>()
        };
        for (name, size) in sizes.iter().enumerate() {
            parts += &format!("<def name=\"part {name}\">\n{}</def>\n", mappings(&mut key, *size));
            body += &format!("<ref name=\"part {name}\"/>\n");
            body += &mappings(&mut key, own);
            mapped += size + own;
        }
        let device = |id: u64| {
            format!(
                "<device dev_id=\"{id}\" mapped_blocks=\"{mapped}\" transaction=\"0\" creation_time=\"0\" \
                 snap_time=\"1\">\n{body}</device>\n"
            )
        };
        let only = "<device dev_id=\"9\" mapped_blocks=\"50\" transaction=\"0\" creation_time=\"0\" \
                    snap_time=\"1\">\n<ref name=\"part 1\"/>\n</device>\n";
        let xml = format!(
            "<superblock uuid=\"\" time=\"1\" transaction=\"0\" version=\"2\" data_block_size=\"128\" \
             nr_data_blocks=\"100000\">\n{parts}{}{}{only}</superblock>\n",
            device(1),
            device(2)
        );
        let output = restored(&folder, &written(&folder, "parts.xml", &xml));
        oracle::assert_clean(&output);
        assert!(expanded(&dumped(&output)) == expanded(&xml), "{own} of its own between the parts");
    }
}

#[test]
fn what_the_xml_says_can_be_overridden() {
    let folder = folder();
    let file = written(&folder, "small.xml", SMALL);
    let output = empty_device(&folder, "output", 64);
    let options = ["--data-block-size", "256", "--nr-data-blocks", "12", "--transaction-id", "77"];
    ours(&[&["restore", "-i", text(&file), "-o", text(&output)], &options[..]].concat()).good();
    let head = "time=\"3\" transaction=\"77\" version=\"2\" data_block_size=\"256\" nr_data_blocks=\"12\"";
    assert!(dumped(&output).contains(head));
    let errors =
        ours(&["restore", "-i", text(&file), "-o", text(&output), "--nr-data-blocks", "11"]).refused();
    assert!(errors.contains("data block 11 is past the end"), "{errors}");
}

#[test]
fn malformed_xml_is_told_with_line_and_column() {
    let folder = folder();
    let output = empty_device(&folder, "output", 64);
    let cases = [
        ("<single_mapping", "<sngle_mapping", "line 6, column 5: <sngle_mapping>"),
        ("data_block=\"11\"", "", "line 6, column 5: no attribute data_block"),
        ("data_block=\"11\"", "data_block=\"1x\"", "line 6, column 5: data_block=\"1x\" is no number"),
        ("data_block=\"11\"", "data_block=\"99999999999999999999\"", "is no number that fits"),
        ("origin_block=\"9\"", "origin_block=\"8\"", "line 6, column 5: virtual block 8 comes after 8"),
        ("data_block=\"11\"", "data_block=\"1000\"", "line 6, column 5: data block 1000 is past the end"),
        (
            "time=\"2\"/",
            "time=\"2\" colour=\"red\"/",
            "line 6, column 5: <single_mapping> with an attribute colour",
        ),
        ("time=\"2\"/", "time=\"2\" time=\"2\"/", "line 6, column 5: the attribute time twice"),
        ("time=\"2\"/", "time=\"4\"/", "line 6, column 5: a mapping with a time after the pool's own"),
        ("length=\"2\"", "length=\"0\"", "line 5, column 5: a run of 0 blocks"),
        ("length=\"2\"", "length=\"2\" length=\"2\"", "the attribute length twice"),
        ("dev_id=\"6\"", "dev_id=\"5\"", "line 4, column 3: a second volume of the same number"),
        ("dev_id=\"6\"", "dev_id=\"16777216\"", "line 4, column 3: dev_id 16777216, where the largest is"),
        ("version=\"2\"", "version=\"3\"", "line 1, column 1: metadata version 3, expected 2"),
        ("data_block_size=\"128\"", "data_block_size=\"100\"", "line 1, column 1: a data block size of 100"),
        ("\n</superblock>", "", "the file ends before </superblock>"),
        ("  </device>\n</superblock>", "</superblock>", "line 7, column 1: "),
        ("<single_mapping", "words <single_mapping", "line 5, column 73: text where only elements can be"),
        ("<single_mapping", "<ref name=\"x\"/><single_mapping", "a reference to \"x\", which no <def>"),
    ];
    for (from, to, words) in cases {
        assert!(SMALL.contains(from), "{from}");
        let file = written(&folder, "bad.xml", SMALL.replacen(from, to, 1));
        let errors = ours(&["restore", "-i", text(&file), "-o", text(&output)]).refused();
        assert!(errors.contains(words), "{from} -> {to}: {errors}");
        assert!(errors.contains("bad.xml: line ") && errors.lines().count() <= 2, "{errors}");
        let told = ours(&["check", text(&output)]);
        assert_eq!(told.status, 1, "half a restore is nobody's pool: {}", told.text());
    }
}

#[test]
fn outputs_that_cannot_be_are_refused_and_inputs_stay() {
    let folder = folder();
    let file = written(&folder, "small.xml", SMALL);
    let refused =
        |input: &Path, output: &Path| ours(&["restore", "-i", text(input), "-o", text(output)]).refused();
    assert!(refused(&file, &file).contains("is the input as well"));
    assert_eq!(fs::read_to_string(&file).expect("it is there"), SMALL);
    let missing = folder.path().join("none");
    assert!(refused(&missing, &file).contains("no such file"));
    assert!(refused(&file, &missing).contains("truncate --size"));
    // Has no end, and nothing in it ends.
    let errors = refused(Path::new("/dev/zero"), &empty_device(&folder, "for-zeros", 64));
    assert!(errors.contains("line 1, column 1: more than a mebibyte without the end"), "{errors}");
    assert!(refused(&file, folder.path()).contains("a directory"));
    let small = empty_device(&folder, "too-small", 8);
    assert!(refused(&file, &small).contains("too small: 8 metadata blocks"));
    let xml = dumped(&unpack(&folder, "03-random-runs"));
    let large = written(&folder, "large.xml", xml);
    let medium = empty_device(&folder, "half-enough", 500);
    assert!(refused(&large, &medium).contains("too small: 500 metadata blocks"));
    assert_eq!(ours(&["check", text(&medium)]).status, 1, "nobody's pool");
}
