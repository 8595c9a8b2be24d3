//! `uthin pool create|status|list` and everything a pool's files can be that they should not be, through the real binary.

mod cli_common;

use cli_common::nbd::NOT_PERMITTED;
use cli_common::{POOL, Place};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use uthin::checksum::{BlockKind, of_block};

#[test]
fn a_pool_is_made_in_a_directory_of_private_files_with_space_for_metadata() {
    let place = Place::empty();
    let said = place.ok(&["pool", "create", POOL, "--size", "10G"]);
    assert_eq!(said, "pool ./p made: 10G for data in blocks of 64K, 64M for metadata\n");
    assert_eq!(place.files("p"), ["catalog.json", "catalog.json.new", "data", "metadata"]);
    assert_eq!(place.files("."), ["p"], "nothing is left beside it");
    for (file, bytes, has) in [("p/data", 10 << 30, 0..2 << 20), ("p/metadata", 64 << 20, 64 << 20..65 << 20)]
    {
        let metadata = fs::metadata(place.path(file)).expect("there");
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (bytes, 0o600), "{file}");
        assert!(has.contains(&(metadata.blocks() * 512)), "{file} has {} sectors", metadata.blocks());
    }
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(status["pool"], "p");
    assert_eq!(status["mode"], "rw");
    assert_eq!(status["data"]["free_bytes"], 10_u64 << 30);
    assert_eq!(status["metadata"]["total_bytes"], 64 << 20);
    assert_eq!(status["served_by"], serde_json::Value::Null);
    assert_eq!(status["notes"], serde_json::json!([]));
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    let words: Vec<_> = line.trim_end_matches('\n').split(' ').collect();
    assert_eq!((words[0], words[2]), ("0", "0/163840"));
    assert_eq!(words[3..].join(" "), "- rw discard_passdown error_if_no_space - 1024 ", "ends in a blank");
}

#[test]
fn json_table_and_script_output_say_the_same() {
    let place = Place::empty();
    let made = place.json(&[
        "pool",
        "create",
        POOL,
        "--size",
        "100M",
        "--block-size",
        "128K",
        "--metadata-size",
        "4M",
    ]);
    assert_eq!((&made["data_bytes"], &made["block_size_bytes"]), (&(100 << 20).into(), &(128 << 10).into()));
    assert_eq!(made["metadata_bytes"], 4 << 20);
    let script = place.ok(&["pool", "status", POOL, "-H", "-p", "-o", "pool,block_size,data_size,state"]);
    assert_eq!(script, "p\t131072\t104857600\tclosed\n");
    let table = place.ok(&["pool", "status", POOL]);
    assert!(table.lines().any(|line| line.split_whitespace().eq(["data", "size", "100M"])), "{table}");
    place.fails(&["pool", "status", POOL, "-o", "colour"], 2, "no column `colour`").hint();
    place.fails(&["pool", "status", POOL, "--json", "-p"], 2, "JSON");
    place.fails(&["pool", "status", POOL, "--json", "--format", "dm"], 2, "--format");
}

#[test]
fn options_are_kept_with_the_pool() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "1G", "--discard", "nopassdown", "--no-zero"]);
    let options = |status: &serde_json::Value| (status["discard"].clone(), status["zero_new_blocks"].clone());
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(options(&status), ("nopassdown".into(), false.into()));
    assert_eq!(options(&status["options"]), ("nopassdown".into(), false.into()));
    assert!(place.ok(&["pool", "status", POOL, "--format", "dm"]).contains(" no_discard_passdown "));
    let said = place.ok(&["pool", "set", POOL, "--zero"]);
    assert_eq!(
        said,
        "pool ./p: discard nopassdown, zero new blocks yes, low water 10%, when full error, min free 0%, small writes copy, journal file\n"
    );
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    let daemon = place.serve(&[]);
    assert_eq!(options(&place.json(&["pool", "status", POOL])), ("nopassdown".into(), true.into()));
    let set = place.json(&["pool", "set", POOL, "--discard", "passdown"]);
    assert_eq!((&set["options"]["discard"], &set["in_force"]), (&"passdown".into(), &true.into()));
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(options(&status), ("passdown".into(), true.into()), "at once");
    assert_eq!(options(&status["options"]), ("passdown".into(), true.into()));
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    let daemon = place.serve(&["--no-zero"]);
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(options(&status), ("passdown".into(), false.into()), "--no-zero is for this time");
    place.ok(&["pool", "set", POOL, "--low-water", "5%"]);
    assert_eq!(
        options(&place.json(&["pool", "status", POOL])),
        ("passdown".into(), false.into()),
        "it still is"
    );
    assert_eq!(place.json(&["pool", "set", POOL, "--no-zero"])["in_force"], true);
    daemon.kill();
    assert_eq!(options(&place.json(&["pool", "status", POOL])), ("passdown".into(), false.into()));
    place.fails(&["pool", "set", POOL], 2, "nothing to set").hint();
    place.fails(&["pool", "set", POOL, "--zero", "--no-zero"], 2, "cannot be used with");
    place.fails(&["pool", "set", POOL, "--discard", "perhaps"], 2, "perhaps");
    place.fails(&["pool", "set", "./none", "--zero"], 5, "there is no pool").hint();
}

#[test]
fn a_monitor_is_told_by_the_exit_code() {
    let place = Place::empty();
    place.ok(&["pool", "create", POOL, "--size", "1M", "--low-water", "50%", "--journal", "none"]);
    place.ok(&["volume", "create", "./p/v", "--size", "4M"]);
    let ask = || place.run(&["pool", "status", POOL, "-H", "-o", "health,low_water", "--exit-code"]);
    let said = |code: i32, text: &str| (code, text.to_owned());
    let told = || (ask().code, ask().stdout);
    assert_eq!(told(), said(0, "ok\t50%\n"));
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[1; 8 * 65_536]).expect("there is space");
    client.flush().expect("flushed");
    assert_eq!(told(), said(0, "ok\t50%\n"), "half is free");
    client.write(8 * 65_536, &[1; 65_536]).expect("there is space");
    client.flush().expect("flushed");
    assert_eq!(told(), said(1, "low\t50%\n"));
    assert_eq!(place.json(&["pool", "status", POOL])["health"], "low");
    place.ok(&["pool", "status", POOL]);
    place.ok(&["pool", "set", POOL, "--low-water", "64K"]);
    assert_eq!(told(), said(0, "ok\t64K\n"), "in force at once");
    assert_eq!(place.json(&["pool", "status", POOL])["options"]["low_water"]["bytes"], 65_536);
    (9..16_u64).for_each(|block| client.write(block << 16, &[1; 65_536]).expect("there is space"));
    client.flush().expect("flushed");
    assert_eq!(told(), said(2, "critical\t64K\n"), "it is full");
    drop(client);
    daemon.kill();
    assert_eq!(told(), said(2, "critical\t64K\n"), "also when nobody serves it");
    fs::write(place.path("p/catalog.json"), "{").expect("written");
    assert_eq!(place.fails(&["pool", "status", POOL, "--exit-code"], 2, "line 1").code, 2);
    place.fails(&["pool", "status", POOL], 1, "line 1");
    place.fails(&["pool", "status", "./none", "--exit-code"], 5, "there is no pool");
    for bad in ["101%", "256%", "-1%", "1.5%", "%", "x", "10GB"] {
        place.fails(&["pool", "create", "./q", "--size", "1M", &format!("--low-water={bad}")], 2, "");
    }
    let checked = Place::with_fixture("10-needs-check");
    assert_eq!(checked.run(&["pool", "status", POOL, "--exit-code"]).code, 2);
}

#[test]
fn docker_info_has_all_its_lines() {
    let place = Place::with_pool("10G");
    place.ok(&["volume", "create", "./p/base", "--size", "10G"]);
    place.ok(&["pool", "set", POOL, "--min-free", "10%"]);
    let text = place.ok(&["pool", "status", POOL, "--format", "docker"]);
    let directory = place.path("p").canonicalize().expect("there");
    let directory = directory.display();
    let metadata = |line: &str| line.trim_start().starts_with("Metadata Space");
    let lines: Vec<_> = text.lines().filter(|line| !metadata(line)).collect();
    assert_eq!(
        lines.join("\n"),
        format!(
            " Pool Name: p\n Pool Blocksize: 65.54kB\n Base Device Size: 10.74GB\n Backing Filesystem: <unknown>\n \
             Udev Sync Supported: false\n Data file: {directory}/data\n Metadata file: {directory}/metadata\n \
             Data Space Used: 0B\n Data Space Total: 10.74GB\n Data Space Available: 10.74GB\n \
             Thin Pool Minimum Free Space: 1.074GB\n Deferred Removal Enabled: false\n Deferred Deletion Enabled: true\n \
             Deferred Deleted Device Count: 0\n Library Version: uthin {}",
            env!("CARGO_PKG_VERSION")
        )
    );
    let keys: Vec<_> =
        text.lines().filter(|line| metadata(line)).map(|line| line.split(':').next()).collect();
    let expected = [" Metadata Space Used", " Metadata Space Total", " Metadata Space Available"];
    assert_eq!(keys, expected.map(Some));
    assert!(text.contains(" Metadata Space Total: 67.11MB\n"), "{text}");
    place.fails(&["pool", "status", POOL, "--json", "--format", "docker"], 2, "--format");
}

#[test]
fn shells_get_a_script_that_they_understand() {
    let place = Place::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.ok(&["completion", shell]);
        for word in ["snapshot", "rename", "low-water", "uthin"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = place.ok(&["completion", "bash"]);
    let ask = "COMP_WORDS=(uthin volume ren) COMP_CWORD=2; _uthin uthin ren volume; echo \"${COMPREPLY[*]}\"";
    let bash = std::process::Command::new("bash").args(["-c", &format!("{script}\n{ask}")]).output();
    let answer = bash.expect("bash is there").stdout;
    assert_eq!(String::from_utf8_lossy(&answer), "rename\n");
    place.fails(&["completion", "cmd"], 2, "cmd");
    place.fails(&["completion", "bash", "--json"], 2, "no JSON");
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let place = Place::empty();
    let create = |more: &[&str], code, message: &str| {
        let outcome = place.fails(&[&["pool", "create", POOL], more].concat(), code, message);
        assert_eq!(place.files("."), Vec::<String>::new(), "{outcome:?}");
    };
    create(&[], 2, "--size");
    create(&["--size", "10GB"], 2, "10GB");
    create(&["--size", "-1"], 2, "`-1` is no size: it is less than nothing");
    create(&["--size", "--journal", "none"], 2, "");
    create(&["--size", "1000"], 2, "multiples of 512");
    let outcome = place.fails(&["pool", "create", POOL, "--size", "10"], 2, "multiples of 512");
    assert_eq!(outcome.hint(), "give it with a unit, as in 10G");
    create(&["--size", "32K"], 2, "hold no block");
    create(&["--size", "0"], 2, "hold no block");
    create(&["--size", "16E"], 2, "16E");
    for block_size in ["0", "512", "32K", "65K", "100000", "1G1", "1025M", "2G"] {
        create(&["--size", "10G", "--block-size", block_size], 2, "");
    }
    create(&["--size", "10G", "--metadata-size", "8K"], 2, "./p/metadata is too small");
    create(&["--size", "10G", "--metadata-size", "0"], 2, "");
    create(&["--size", "10G", "--metadata-size", "17G"], 2, "the most");
    create(&["--size", "10G", "--data", "./none"], 5, "none");
    create(&["--data", "./none", "--metadata", "./nor"], 5, "none");
    create(&["--size", "10G", "--data", "/dev/null"], 2, "/dev/null");
    place.fails(&["pool", "create", "./none/p", "--size", "1G"], 5, "does not exist").hint();
    place.fails(&["pool", "create", "-p", "--size", "1G"], 2, "");
    place.fails(&["pool", "create", "a b", "--size", "1G"], 2, "no name for a pool");
    assert_eq!(place.files("."), Vec::<String>::new());
}

#[test]
fn a_size_that_is_no_multiple_of_the_block_size_is_rounded_down_aloud() {
    let place = Place::empty();
    let said = place.ok(&["pool", "create", POOL, "--size", "1000000000"]);
    assert!(said.contains("note: ") && said.contains("stay unused"), "{said}");
    assert_eq!(fs::metadata(place.path("p/data")).expect("there").len(), 1_000_000_000 / 65_536 * 65_536);
}

#[test]
fn an_existing_thing_is_left_alone() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    place.fails(&["pool", "create", POOL, "--size", "1G"], 5, "is a pool already").hint();
    assert_eq!(place.names(), ["v"]);
    fs::create_dir(place.path("full")).expect("made");
    fs::write(place.path("full/file"), "mine").expect("written");
    place.fails(&["pool", "create", "./full", "--size", "1G"], 5, "not an empty directory");
    assert_eq!(place.files("full"), ["file"]);
    fs::write(place.path("file"), "mine").expect("written");
    place.fails(&["pool", "create", "./file", "--size", "1G"], 5, "exists already");
    assert_eq!(fs::read(place.path("file")).expect("there"), b"mine");
    fs::create_dir(place.path("empty")).expect("made");
    place.fails(&["pool", "create", "./empty", "--size", "1G", "--metadata-size", "8K"], 2, "");
    assert_eq!(place.files("empty"), Vec::<String>::new(), "what was made is gone, what was there is not");
    place.ok(&["pool", "create", "./empty", "--size", "1G"]);
}

fn sparse(place: &Place, name: &str, size_bytes: u64) {
    fs::File::create(place.path(name)).expect("made").set_len(size_bytes).expect("sized");
}

#[test]
fn devices_are_linked_and_looked_at_first() {
    let place = Place::empty();
    sparse(&place, "disk", 100 << 20);
    sparse(&place, "small", 16 << 20);
    let create = ["pool", "create", POOL, "--data", "disk", "--metadata", "small"];
    let disk = fs::OpenOptions::new().write(true).open(place.path("disk")).expect("there");
    let small = fs::OpenOptions::new().write(true).open(place.path("small")).expect("there");

    disk.write_all_at(&[0x53, 0xef], 1080).expect("written");
    place.fails(&create, 5, "holds an ext2, ext3 or ext4 filesystem").hint();
    disk.write_all_at(&[0, 0], 1080).expect("written");
    small.write_all_at(&[1], 4000).expect("written");
    place.fails(&create, 5, "not zeros");
    assert_eq!(fs::read(place.path("small")).expect("there")[4000], 1, "it was not touched");
    small.write_all_at(&27_022_010_u64.to_le_bytes(), 32).expect("written");
    place.fails(&create, 5, "holds thin pool metadata");
    place.fails(
        &["pool", "create", POOL, "--data", "disk", "--metadata", "./disk"],
        2,
        "both data and metadata",
    );
    place.fails(&[&create[..], &["--size", "101M"]].concat(), 2, "were asked for");
    place.fails(&[&create[..], &["--metadata-size", "4M"]].concat(), 2, "--metadata-size");
    assert_eq!(place.files("."), ["disk", "small"]);

    place.ok(&[&create[..], &["--force", "--size", "64M"]].concat());
    assert_eq!(fs::read_link(place.path("p/data")).expect("a link"), place.path("disk"));
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(
        (&status["data"]["total_bytes"], &status["metadata"]["total_bytes"]),
        (&(64 << 20).into(), &(16 << 20).into())
    );
    place.fails(
        &["pool", "create", "./q", "--data", "disk", "--metadata", "small"],
        5,
        "holds thin pool metadata",
    );
}

#[test]
fn a_device_that_is_too_small_is_left_alone() {
    let place = Place::empty();
    sparse(&place, "small", 4096);
    place.fails(&["pool", "create", POOL, "--size", "1G", "--metadata", "small"], 2, "");
    assert_eq!(fs::read(place.path("small")).expect("there"), vec![0; 4096]);
    assert_eq!(place.files("."), ["small"]);
    fs::write(place.path("small"), [7; 4096]).expect("written");
    place.fails(&["pool", "create", POOL, "--size", "1G", "--metadata", "small", "--force"], 2, "too small");
    assert_eq!(
        fs::read(place.path("small")).expect("there"),
        vec![7; 4096],
        "--force is no leave to wipe it"
    );
}

#[test]
fn pools_with_names_live_under_one_directory() {
    let place = Place::empty();
    assert_eq!(place.ok(&["pool", "list", "-H"]), "", "nobody has made one yet");
    place.ok(&["pool", "create", "fast", "--size", "1G"]);
    place.ok(&["pool", "create", "slow", "--size", "2G"]);
    place.ok(&["volume", "create", "fast/v", "--size", "1M"]);
    fs::create_dir(place.path("base/no-pool")).expect("made");
    fs::write(place.path("base/slow/metadata"), vec![1; 1 << 20]).expect("written over");
    let lines = place.ok(&["pool", "list", "-H", "-p", "-o", "name,state,volumes,size"]);
    assert_eq!(lines, "fast\tclosed\t1\t1073741824\nslow\tunreadable\t-\t-\n");
    let pools = place.json(&["pool", "ls"]);
    assert_eq!(pools["pools"][0]["state"], "closed");
    assert_eq!(pools["pools"][1]["error"]["code"], "corrupt");
    fs::rename(place.path("base/fast"), place.path("moved")).expect("moved");
    let outcome = place.fails(&["volume", "list", "moved"], 5, "there is no pool `moved`");
    assert!(outcome.hint().contains("./moved"), "{outcome:?}");
}

#[test]
fn what_is_not_a_pool_is_told() {
    let place = Place::empty();
    for arguments in [
        &["pool", "status", "./none"][..],
        &["volume", "list", "./none"],
        &["serve", "./none"],
        &["pool", "close", "./none"],
    ] {
        place.fails(arguments, 5, "there is no pool `./none`").hint();
    }
    fs::create_dir(place.path("dir")).expect("made");
    place.fails(&["pool", "status", "./dir"], 5, "is not a pool: metadata: there is no such file");
    fs::write(place.path("dir/metadata"), "").expect("written");
    place.fails(&["pool", "status", "./dir"], 5, "is not a pool: data: there is no such file");
    fs::write(place.path("dir/data"), "").expect("written");
    place.fails(&["pool", "status", "./dir"], 5, "metadata");
    sparse(&place, "dir/metadata", 1 << 20);
    place.fails(&["pool", "status", "./dir"], 5, "metadata");
    place.fails(&["pool", "status", "./dir/metadata"], 5, "not a directory");
}

/// Changes bytes of block 0 and gives it the right checksum again.
fn forge(place: &Place, offset: usize, bytes: &[u8]) {
    let file = fs::OpenOptions::new().read(true).write(true).open(place.path("p/metadata")).expect("there");
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 0).expect("read");
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
    let checksum = of_block(&block, BlockKind::Superblock);
    block[..4].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&block, 0).expect("written");
}

/// Where the superblock has its read-only compatible feature flags.
const READ_ONLY_FLAGS: usize = 356;

#[test]
fn wrong_metadata_is_refused_with_what_was_expected() {
    // Offset in the superblock, bytes, exit code, what the message says.
    let forgeries: [(usize, &[u8], i32, &str); 7] = [
        (32, &[1], 1, "magic"),
        (8, &[1], 1, "block"),
        (40, &[1], 1, "version"),
        (40, &[3], 1, "version"),
        (READ_ONLY_FLAGS, &[1], 1, "feature"),
        (360, &[0x80], 1, "feature"),
        (336, &[1], 1, ""),
    ];
    for (offset, bytes, code, says) in forgeries {
        let place = Place::with_pool("1G");
        forge(&place, offset, bytes);
        let before = fs::read(place.path("p/metadata")).expect("there");
        for arguments in
            [&["pool", "status", POOL][..], &["volume", "create", "./p/v", "--size", "1M"], &["serve", POOL]]
        {
            // Flags of the read-only kind forbid changes; looking is what they allow.
            if offset == READ_ONLY_FLAGS && arguments[1] == "status" {
                place.ok(arguments);
                continue;
            }
            let outcome = place.fails(arguments, code, "metadata");
            assert!(outcome.stderr.to_lowercase().contains(says), "{offset}: {outcome:?}");
        }
        assert!(before == fs::read(place.path("p/metadata")).expect("there"), "it was not touched");
    }
    let place = Place::with_pool("1G");
    let file = fs::OpenOptions::new().write(true).open(place.path("p/metadata")).expect("there");
    file.write_all_at(&[0xff], 100).expect("written");
    let outcome = place.fails(&["pool", "status", POOL], 1, "checksum");
    assert!(outcome.stderr.contains("metadata block 0"), "{outcome:?}");
    let json = place.run(&["pool", "status", POOL, "--json"]);
    let failure: serde_json::Value = serde_json::from_str(&json.stderr).expect("JSON");
    assert_eq!((&failure["error"]["code"], json.code), (&"corrupt".into(), 1));
}

#[test]
fn disks_smaller_than_recorded_are_refused_and_fine_again_afterwards() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    for (file, less, size) in [("p/data", (1 << 30) - 65_536, 1 << 30), ("p/metadata", 1 << 20, 64 << 20)] {
        let open = || fs::OpenOptions::new().write(true).open(place.path(file)).expect("there");
        open().set_len(less).expect("truncated");
        for arguments in [&["volume", "list", POOL][..], &["volume", "delete", "./p/v"], &["serve", POOL]] {
            let outcome = place.fails(arguments, 5, &less.to_string());
            assert!(outcome.stderr.contains(&size.to_string()) || file == "p/metadata", "{outcome:?}");
            outcome.hint();
        }
        open().set_len(size).expect("extended");
        assert_eq!(place.names(), ["v"]);
    }
}

#[test]
fn metadata_that_needs_a_check_can_be_looked_at_only() {
    let place = Place::with_fixture("10-needs-check");
    let before = fs::read(place.path("p/metadata")).expect("there");
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["needs_check"], &status["mode"]), (&true.into(), &"ro".into()));
    assert!(place.ok(&["pool", "status", POOL, "--format", "dm"]).contains(" ro "));
    assert!(!place.names().is_empty());
    let refused = || {
        let create = ["volume", "create", "./p/v", "--size", "1M"];
        place.fails(&create, 5, "needs_check flag").hint().to_owned()
    };
    refused();
    let daemon = place.serve(&[]);
    assert!(refused().contains("uthin-fsck check --clear-needs-check-flag"), "the way back is told");
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!((&status["needs_check"], &status["mode"]), (&true.into(), &"ro".into()));
    assert!(status["failure"]["hint"].as_str().is_some_and(|hint| hint.contains("--clear-needs-check-flag")));
    assert_eq!(place.run(&["pool", "status", POOL, "--exit-code"]).code, 2);
    place.fails(&["pool", "message", POOL, "create_thin 77"], 5, "EOPNOTSUPP");
    place.fails(&["pool", "set", POOL, "--when-full", "queue"], 5, "read-only");
    let mut client = place.connect(&place.names()[0]);
    assert!(client.is_read_only);
    assert_eq!(client.read(0, 4096).map(|bytes| bytes.len()), Ok(4096));
    assert_eq!(client.flush(), Ok(()));
    for change in [client.write(0, &[1; 512]), client.trim(0, 65536), client.zero(0, 65536)] {
        assert_eq!(change, Err(NOT_PERMITTED));
    }
    drop(client);
    place.ok(&["pool", "close", POOL]);
    assert_eq!(daemon.wait(), 0);
    assert!(before == fs::read(place.path("p/metadata")).expect("there"), "it was not touched");
    assert_eq!(place.files("p"), ["data", "metadata"], "no catalog is written either");
    let cleared = std::process::Command::new(env!("CARGO_BIN_EXE_uthin-fsck"))
        .args(["check", "--clear-needs-check-flag"])
        .arg(place.path("p/metadata"))
        .output()
        .expect("it starts");
    assert!(cleared.status.success(), "{cleared:?}");
    let daemon = place.serve(&[]);
    assert_eq!(place.json(&["pool", "status", POOL])["mode"], "rw");
    assert!(!place.connect(&place.names()[0]).is_read_only);
    drop(daemon);
}

/// The words of the kernel's status line that come from the metadata: not those of the pool's options and mode.
fn facts(line: &str) -> Vec<String> {
    let words: Vec<_> = line.trim_end_matches('\n').split(' ').collect();
    assert_eq!(words.len(), 10, "nine words, each followed by a blank: {line:?}");
    [0, 1, 2, 3, 7, 8].map(|index| words[index].to_owned()).to_vec()
}

#[test]
fn the_dm_line_of_a_kernel_made_pool_is_the_kernels() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut compared = 0;
    for entry in fs::read_dir(&fixtures).expect("there") {
        let file = entry.expect("an entry").file_name().into_string().expect("text");
        let Some(name) = file.strip_suffix(".status") else { continue };
        let status = fs::read_to_string(fixtures.join(&file)).expect("there");
        let Some(line) = status.lines().find(|line| line.starts_with("pool: ")) else { continue };
        let kernels = line.split_once(" thin-pool ").expect("a pool's line").1;
        // Taken before the power was cut.
        if name.contains("crashed") || kernels.trim() == "Fail" {
            continue;
        }
        let place = Place::with_fixture(name);
        let ours = place.ok(&["pool", "status", POOL, "--format", "dm"]);
        assert_eq!(facts(&ours), facts(kernels), "{name}");
        compared += 1;
    }
    assert!(compared >= 15, "{compared} fixtures have a status line");
}

#[test]
fn mistakes_in_the_command_are_usage_errors() {
    let place = Place::empty();
    for arguments in [
        &["pool"][..],
        &["pool", "frobnicate", POOL],
        &["pool", "status"],
        &["pool", "status", POOL, "--frobnicate"],
        &["pool", "status", ""],
        &["pool", "status", ".."],
        &["volume", "create", "./p/v"],
        &["volume", "create", "v", "--size", "1G"],
        &["volume", "delete", "/v"],
        &["serve", POOL, "--nbd", "nowhere"],
        &["serve", POOL, "--nbd", "tcp:127.0.0.1"],
        &["serve", POOL, "--discard", "maybe"],
    ] {
        place.fails(arguments, 2, "");
    }
    let outcome = place.fails(&["pool", "status", "--json"], 2, "");
    let failure: serde_json::Value = serde_json::from_str(&outcome.stderr).expect("JSON");
    assert_eq!(failure["error"]["code"], "invalid");
    assert!(place.ok(&["--help"]).contains("Thin pools"));
    assert!(place.ok(&["--version"]).starts_with("uthin "));
}
