//! `uthin-fsck` as scripts and people meet it: exit codes, words, JSON, bad input; and beside independent checkers.

mod oracle;

use oracle::Opinion;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use uthin::checksum::BlockKind;
use uthin::disk::{FileDisk, OpenMode};
use uthin::format::Block;
use uthin::units::MetaBlock;

fn fsck() -> Command {
    Command::new(env!("CARGO_BIN_EXE_uthin-fsck"))
}

/// Exit status, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().expect("not killed"), text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str], file: &Path) -> (i32, String, String) {
    told(&fsck().args(arguments).arg(file).output().expect("it starts"))
}

fn fixture_names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let names = files.map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<_> =
        names.filter_map(|name| Some(name.strip_suffix(".bin.zst")?.to_owned())).collect();
    names.sort();
    assert_eq!(names.len(), 20);
    names
}

/// Unpacks a fixture, by its full name, into `folder`.
fn unpack(folder: &TempDir, name: &str) -> PathBuf {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.bin.zst"));
    let mut decoder = zstd::Decoder::new(fs::File::open(packed).expect("a fixture")).expect("zstd");
    decoder.window_log_max(31).expect("a legal window");
    let path = folder.path().join(name);
    std::io::copy(&mut decoder, &mut fs::File::create(&path).expect("a file")).expect("it unpacks");
    path
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn agrees_with_independent_checkers_on_what_the_kernel_wrote() {
    let folder = folder();
    for name in fixture_names() {
        let path = unpack(&folder, &name);
        let before = fs::read(&path).expect("it is there");
        let (status, text, errors) = run(&["check"], &path);
        let ours = match status {
            0 => Opinion::Clean,
            3 => Opinion::Leaks,
            _ => Opinion::Damage,
        };
        assert_eq!(errors, "");
        assert_eq!(ours, oracle::verify(&path).0, "{name}:\n{text}");
        let refuses = oracle::thin_check(&path).0 == Opinion::Damage;
        assert_eq!(ours != Opinion::Clean, refuses, "{name}:\n{text}");
        assert!(fs::read(&path).expect("it is there") == before, "{name} was changed");
    }
}

#[test]
fn finds_what_independent_checkers_find() {
    let folder = folder();
    let path = unpack(&folder, "10-needs-check");
    let good = fs::read(&path).expect("it is there");
    // Blocks that the image uses, the superblock first; thin_check does not look at every one of the superblock's bytes.
    let used: Vec<usize> =
        (0..good.len() / 4096).filter(|i| good[i * 4096..][..4].iter().any(|b| *b != 0)).collect();
    for block in used.into_iter().step_by(7) {
        let mut bad = good.clone();
        bad[block * 4096 + 1000] ^= 0x40;
        fs::write(&path, &bad).expect("written");
        let (opinion, words) = oracle::verify(&path);
        let (status, text, _) = run(&["check"], &path);
        assert_eq!(status == 4, opinion == Opinion::Damage, "block {block}: {words}\n{text}");
        assert_eq!(status == 4, oracle::thin_check(&path).0 == Opinion::Damage, "block {block}:\n{text}");
    }
}

#[test]
fn exit_status_and_words_tell_the_verdict() {
    let folder = folder();
    let clean = unpack(&folder, "04-snap-diverged");
    let (status, text, _) = run(&["check"], &clean);
    assert_eq!(status, 0);
    assert!(text.ends_with("\nclean\n"), "{text}");
    assert!(text.contains("2, with 53427 mappings"), "{text}");
    assert!(text.contains("34435 of 100000 blocks of 64 KiB"), "{text}");

    // A block is named once.
    let mut bytes = fs::read(&clean).expect("it is there");
    bytes[8] = 7;
    let misplaced = folder.path().join("misplaced");
    fs::write(&misplaced, bytes).expect("written");
    let (_, text, _) = run(&["check"], &misplaced);
    assert!(text.contains("damage: superblock, metadata block 0: bad checksum"), "{text}");

    let leaked = unpack(&folder, "19-leaked");
    let (status, text, _) = run(&["check"], &leaked);
    assert_eq!(status, 3);
    assert!(text.contains("data blocks 1000 to 1009: count 1, and nothing refers to them"), "{text}");
    assert!(text.contains("safe to use, 10 data blocks"), "{text}");

    let mut bytes = fs::read(&clean).expect("it is there");
    bytes[372 * 4096 + 100] ^= 1;
    fs::write(&clean, bytes).expect("written");
    let (status, text, _) = run(&["check"], &clean);
    assert_eq!(status, 4);
    assert!(text.contains("damage: mappings of volume 0, metadata block 372: bad checksum"), "{text}");
    assert!(text.contains("touches volume 0, bytes 1376256 to 16580608"), "{text}");
    // A catalog beside it knows the name; a damaged one is no reason not to check.
    let catalog = clean.with_file_name("catalog.json");
    fs::write(&catalog, r#"{"schema":1,"more":[],"volumes":[{"id":0,"name":"web","size_bytes":1}]}"#)
        .expect("written");
    let (_, text, _) = run(&["check"], &clean);
    assert!(text.contains("touches volume 0 (web), bytes 1376256 to 16580608"), "{text}");
    let (_, json, _) = run(&["check", "--json"], &clean);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["volume_names"]["0"], "web");
    for broken in ["{", r#"{"volumes":[{"id":0,"name":"\u001b[2J"}]}"#] {
        fs::write(&catalog, broken).expect("written");
        let (status, text, _) = run(&["check"], &clean);
        assert!(status == 4 && text.contains("touches volume 0, bytes"), "{text}");
    }
    assert!(text.contains("DAMAGED in"), "{text}");
    for quiet in ["-q", "--quiet"] {
        assert_eq!(run(&["check", quiet], &clean), (4, String::new(), String::new()));
    }
}

#[test]
fn json_carries_everything() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let (status, text, _) = run(&["check", "--json"], &path);
    assert_eq!(status, 3);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["schema"], "uthin/v1");
    assert_eq!(report["verdict"], "leaks");
    assert_eq!(report["data"]["unreferenced"], 10);
    assert_eq!(report["findings"][0]["severity"], "leak");
    assert_eq!(report["volumes"][0]["mapped_blocks"], 1000);

    let (status, out, errors) = run(&["check", "--json"], Path::new("/nonexistent/metadata"));
    assert_eq!((status, out.as_str()), (1, ""));
    let error: serde_json::Value = serde_json::from_str(&errors).expect("JSON");
    assert_eq!(error["error"]["code"], "not-found");
    assert!(error["error"]["hint"].as_str().is_some_and(|hint| hint.contains("POOL/metadata")));
}

#[test]
fn the_name_thin_check_has_that_tools_exit_codes() {
    let folder = folder();
    let clean = unpack(&folder, "01-empty");
    let leaked = unpack(&folder, "19-leaked");
    let damaged = unpack(&folder, "02-seq");
    let mut bytes = fs::read(&damaged).expect("it is there");
    bytes[4000] ^= 1;
    fs::write(&damaged, bytes).expect("written");

    let by_name = |arguments: &[&str], file: &Path| {
        told(&fsck().arg0("/sbin/thin_check").args(arguments).arg(file).output().expect("it starts"))
    };
    let by_word = |arguments: &[&str], file: &Path| run(&[&["thin_check"], arguments].concat(), file);
    for call in [&by_name as &dyn Fn(&[&str], &Path) -> _, &by_word] {
        for (file, expected) in [(&clean, 0), (&leaked, 0), (&damaged, 1)] {
            assert_eq!(call(&["-q"], file), (expected, String::new(), String::new()));
        }
        let (status, text, _) = call(&[], &leaked);
        assert_eq!(status, 0, "a leak keeps no machine from booting");
        assert!(text.contains("leaks only"), "{text}");
        let (status, _, errors) = call(&[], Path::new("/nonexistent"));
        assert_eq!(status, 1);
        assert!(errors.starts_with("thin_check: /nonexistent: no such file"), "{errors}");
        assert_eq!(call(&["--no-such-option"], &clean).0, 2);
        assert_eq!(call(&["--exit-codes", "fine"], &leaked).0, 3);
        assert_eq!(call(&["--exit-codes", "fine"], &damaged).0, 4);
        assert_eq!(call(&["--exit-codes", "fine", "--ignore-non-fatal-errors"], &leaked).0, 0);
    }
    let compatible = ["check", "-q", "--exit-codes", "compatible"];
    assert_eq!((run(&compatible, &leaked).0, run(&compatible, &damaged).0), (0, 1));
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let status = |arguments: &[&str]| told(&fsck().args(arguments).output().expect("it starts")).0;
    for wrong in [&[][..], &["check"], &["check", "a", "b"], &["mend", "a"], &["check", "-q", "--json", "a"]]
    {
        assert_eq!(status(wrong), 2, "{wrong:?}");
    }
    for right in [&["--help"][..], &["--version"], &["check", "--help"], &["thin_check", "--help"]] {
        assert_eq!(status(right), 0, "{right:?}");
    }
}

/// Makes the superblock one of another version, sound in itself.
fn change_version(path: &Path, version: u8) {
    let mut bytes = fs::read(path).expect("it is there");
    let mut block = Block(*bytes.first_chunk().expect("a block"));
    block.0[40] = version;
    block.seal(MetaBlock::SUPERBLOCK, BlockKind::Superblock);
    bytes[..4096].copy_from_slice(&block.0);
    fs::write(path, bytes).expect("written");
}

#[test]
fn bad_input_gets_one_clear_error() {
    let folder = folder();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    };
    fs::create_dir(folder.path().join("pool")).expect("a directory");
    let inside = file("pool/metadata", &[0; 4096]);
    let unpacked = unpack(&folder, "03-random-runs");
    let newer = unpack(&folder, "01-empty");
    change_version(&newer, 3);
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts").success());
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/03-random-runs.bin.zst");
    let cases = [
        (folder.path().join("none"), "no such file"),
        (folder.path().join("pool"), "check "),
        (inside, "all zeros"),
        (fifo, "neither a file nor a block device"),
        (file("empty", b""), "0 bytes are too few"),
        (file("small", &[1; 4095]), "4095 bytes are too few"),
        (file("small.xml", b"<superblock uuid=\"\" time=\"0\" transaction=\"0\">\n"), "thin_restore"),
        (file("large.xml", &[&b"<superblock"[..], &[b' '; 8192]].concat()), "thin_restore"),
        (file("noise", &[0x5a; 8192]), "neither magic nor checksum"),
        (packed, "compressed with zstd"),
        (newer, "found metadata version 3, expected 2"),
    ];
    for (path, words) in cases {
        let (status, out, errors) = run(&["check"], &path);
        assert_eq!((status, out.as_str()), (1, ""), "{}: {errors}", path.display());
        assert!(errors.starts_with("uthin-fsck: ") && errors.contains(words), "{}: {errors}", path.display());
        assert_eq!(errors.matches("uthin-fsck: ").count(), 1);
    }

    let _held = FileDisk::open(&unpacked, OpenMode::ReadWrite).expect("nobody else has it");
    let (status, _, errors) = run(&["check"], &unpacked);
    assert_eq!(status, 1);
    assert!(errors.contains(&std::process::id().to_string()), "it names the owner: {errors}");
}

#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let mut child =
        fsck().args(["check", "--json"]).arg(path).stdout(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

/// Where the index entry of the first bitmap of metadata is, and the first data bitmap, read from the image.
fn first_data_bitmap(bytes: &[u8]) -> usize {
    let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("eight bytes")) as usize;
    let index_root = number(64 + 16) * 4096;
    // A leaf with 16-byte values: they begin behind 168 keys.
    number(index_root + 32 + 168 * 8)
}

#[test]
fn auto_repair_gives_leaked_blocks_back_and_leaves_everything_else() {
    let folder = folder();
    for name in ["19-leaked", "14-crashed"] {
        let path = unpack(&folder, name);
        let before = oracle::thin_dump(&path);
        assert_eq!(run(&["check", "-q"], &path).0, 3);
        let (status, text, errors) = run(&["check", "--auto-repair"], &path);
        assert_eq!(status, 0, "{text}{errors}");
        assert!(text.contains("mended: the space maps were made anew"), "{text}");
        oracle::assert_clean(&path);
        assert_eq!(oracle::thin_dump(&path), before);
        let kept = fs::read(&path).expect("it is there");
        let (status, text, _) = run(&["check", "--auto-repair"], &path);
        assert_eq!((status, text.contains("mended")), (0, false));
        assert!(fs::read(&path).expect("it is there") == kept, "nothing to mend, nothing written");
    }
}

#[test]
fn auto_repair_mends_damaged_space_maps_but_never_damaged_mappings() {
    let folder = folder();
    let path = unpack(&folder, "05-chain50");
    let good = fs::read(&path).expect("it is there");
    let mut bytes = good.clone();
    bytes[first_data_bitmap(&good) * 4096 + 500] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert_eq!(run(&["check", "-q"], &path).0, 4);
    assert_eq!(run(&["check", "-q", "--auto-repair"], &path).0, 0);
    oracle::assert_clean(&path);

    let path = unpack(&folder, "04-snap-diverged");
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[372 * 4096 + 100] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert_eq!(run(&["check", "-q", "--auto-repair", "--clear-needs-check-flag"], &path).0, 4);
    assert!(fs::read(&path).expect("it is there") == bytes, "damage is for repair, to another device");
}

#[test]
fn needs_check_is_taken_away_from_what_is_sound() {
    let folder = folder();
    let path = unpack(&folder, "10-needs-check");
    let (status, text, _) = run(&["thin_check", "--clear-needs-check-flag"], &path);
    assert_eq!(status, 0);
    assert!(text.contains("needs_check was taken away"), "{text}");
    assert!(!oracle::thin_dump(&path).contains("flags="));
    oracle::assert_clean(&path);
}

#[test]
fn parts_of_a_check_look_at_parts() {
    let folder = folder();
    let path = unpack(&folder, "09-held-root");
    for options in [&["--super-block-only"][..], &["--skip-mappings"], &["-m"], &["-m", "--skip-mappings"]] {
        assert_eq!(run(&[&["check", "-q"], options].concat(), &path).0, 0, "{options:?}");
    }
    let without = unpack(&folder, "19-leaked");
    assert_eq!(run(&["check", "-q", "--ignore-non-fatal-errors"], &without).0, 0);
    let (status, _, errors) = run(&["check", "-m"], &without);
    assert_eq!((status, errors.contains("no current metadata snap")), (1, true));
    // A leaf of mappings: read in full only.
    let mut bytes = fs::read(&path).expect("it is there");
    let (_, text, _) = run(&["check", "--override-mapping-root", "3", "--json"], &path);
    assert!(text.contains("\"verdict\": \"damage\""), "{text}");
    let root = u64::from_le_bytes(*bytes[320..].first_chunk().expect("eight bytes")) as usize;
    let tree = u64::from_le_bytes(*bytes[root * 4096 + 2048..].first_chunk().expect("eight bytes")) as usize;
    bytes[tree * 4096 + 3000] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert_eq!(run(&["check", "-q"], &path).0, 4);
    assert_eq!(run(&["check", "-q", "--skip-mappings"], &path).0, 0);
    bytes[4000] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert_eq!(run(&["check", "-q", "--super-block-only"], &path).0, 4);
}

#[test]
fn every_command_has_a_man_page_and_completes() {
    let folder = folder();
    let program = env!("CARGO_BIN_EXE_uthin-fsck");
    let directory = folder.path().join("share/man1");
    let told = Command::new(program).arg("man").arg(&directory).output().expect("it starts");
    assert!(told.status.success(), "{told:?}");
    for command in ["", "-check", "-repair", "-shrink", "-metadata_size"] {
        let page = fs::read_to_string(directory.join(format!("uthin-fsck{command}.1"))).expect("a page");
        assert!(page.contains(".TH uthin-fsck"), "{page}");
    }
    let told = Command::new(program).args(["man", program]).output().expect("it starts");
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.code() == Some(1) && words.contains("no directory"), "{words}");
    let told = Command::new(program).args(["completion", "bash"]).output().expect("it starts");
    let script = folder.path().join("completion");
    fs::write(&script, &told.stdout).expect("written");
    let line = "source $1; COMP_WORDS=(uthin-fsck shr); COMP_CWORD=1; _uthin__fsck uthin-fsck shr uthin-fsck; echo ${COMPREPLY[@]}";
    let told = Command::new("bash").args(["-c", line, "bash"]).arg(&script).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "shrink", "{told:?}");
}

#[test]
fn thin_check_tells_scripts_what_its_namesake_tells() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    for options in [&[][..], &["--super-block-only"], &["--super-block-only", "--skip-mappings"]] {
        let theirs = Command::new(oracle::tools().join("thin_check")).args(options).arg(&path).output();
        let (_, wanted, _) = told(&theirs.expect("it starts"));
        assert!(wanted.starts_with("TRANSACTION_ID="), "{wanted}");
        let (status, out, errors) = run(&[&["thin_check"], options].concat(), &path);
        assert_eq!(status, 0, "{options:?}: {errors}");
        assert!(out.ends_with(&wanted), "{options:?}: {out}");
    }
    assert_eq!(run(&["thin_check", "-q"], &path).1, "");
    assert!(!run(&["check"], &path).1.contains("TRANSACTION_ID"));
    let (status, out, _) = run(&["thin_check", "-q", "-V"], &path);
    assert!(status == 0 && out.starts_with("1."), "{out}");
}

#[test]
fn leaks_are_counted_in_the_space_that_they_are_in() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let mut bytes = fs::read(&path).expect("it is there");
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("a number"));
    // The last block's count in the metadata space map: index block, bitmap, two bits; and the numbers that go with it.
    let index = number(&bytes, 192 + 16) as usize * 4096;
    let bitmap = number(&bytes, index + 16) as usize * 4096;
    let last = bytes.len() / 4096 - 1;
    // The lower of the two bits comes second.
    bytes[bitmap + 16 + last / 4] |= 2 << (last % 4 * 2);
    bytes[index + 24] -= 1;
    bytes[192 + 8] += 1;
    let kinds = [(bitmap, BlockKind::Bitmap), (index, BlockKind::Index), (0, BlockKind::Superblock)];
    for (place, kind) in kinds {
        let mut block = Block(*bytes[place..].first_chunk().expect("a block"));
        block.seal(MetaBlock(place as u64 / 4096), kind);
        bytes[place..place + 4096].copy_from_slice(&block.0);
    }
    fs::write(&path, bytes).expect("written");
    let (status, text, _) = run(&["check"], &path);
    assert!(status == 3 && text.contains("safe to use, 1 metadata blocks take space"), "{text}");
}
