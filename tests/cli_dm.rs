//! What device-mapper's users know, asked here: messages with the kernel's errors, table lines, status lines.

mod cli_common;
mod common;

use cli_common::{POOL, Place};
use std::fs;

fn message(place: &Place, text: &str) -> String {
    place.ok(&["pool", "message", POOL, text])
}

fn refused(place: &Place, text: &str, code: i32, errno: &str) {
    let outcome = place.fails(&["pool", "message", POOL, text], code, errno);
    assert!(outcome.stderr.starts_with(&format!("uthin: `{}`: ", text.trim())), "{outcome:?}");
    outcome.hint();
}

/// Transaction id and held root of the kernel's status line.
fn id_and_root(place: &Place) -> (String, String) {
    let line = place.ok(&["pool", "status", POOL, "--format", "dm"]);
    let words: Vec<_> = line.split(' ').collect();
    (words[0].to_owned(), words[3].to_owned())
}

/// The sequence that was put to Linux 6.12, with its answers; with a daemon and without.
#[test]
fn messages_answer_as_the_kernel_does() {
    for served in [false, true] {
        let place = Place::with_faithful_pool("64M");
        let daemon = served.then(|| place.serve(&[]));
        assert!(
            message(&place, "create_thin 0").contains("volume 0 has no size yet: uthin volume resize ./p/0")
        );
        refused(&place, "create_thin 0", 5, "File exists (EEXIST)");
        for text in [
            "create_thin",
            "create_thin 0 1",
            "create_thin 16777216",
            "create_thin -1",
            "create_thin 0x10",
            "create_thin abc",
            "create_snap 16777216 0",
            "set_transaction_id 5 x",
            "reserve_metadata_snap 1",
            "bogus",
        ] {
            refused(&place, text, 2, "Invalid argument (EINVAL)");
        }
        message(&place, "create_thin 16777215");
        assert_eq!(
            message(&place, "create_snap 1 0"),
            "volume 1 has no size yet: uthin volume resize ./p/1 --size SIZE\n"
        );
        refused(&place, "create_snap 1 0", 5, "File exists (EEXIST)");
        refused(&place, "create_snap 2 99", 5, "No data available (ENODATA)");
        refused(&place, "delete 99", 5, "No data available (ENODATA)");
        assert_eq!(message(&place, "delete 1"), "");
        assert_eq!(id_and_root(&place).0, "0", "messages leave the sender's transaction id alone");
        refused(&place, "set_transaction_id 1 2", 5, "Invalid argument (EINVAL)");
        message(&place, "set_transaction_id 0 5");
        assert_eq!(id_and_root(&place), ("5".to_owned(), "-".to_owned()));
        message(&place, "reserve_metadata_snap");
        assert_ne!(id_and_root(&place).1, "-");
        refused(&place, "reserve_metadata_snap", 6, "Device or resource busy (EBUSY)");
        message(&place, "release_metadata_snap");
        refused(&place, "release_metadata_snap", 5, "Invalid argument (EINVAL)");
        message(&place, "CREATE_THIN 3");
        // As `dmsetup message POOL 0 ...` is written, in several words.
        place.ok(&["pool", "message", POOL, "--size", "1M", "0", "create_thin", "4"]);
        assert_eq!(place.names(), ["0", "16777215", "3", "4"]);
        drop(daemon);
        assert_eq!(place.notes(), "[]", "catalog and metadata are in step");
        common::oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
    }
}

#[test]
fn a_volume_made_by_message_is_one_like_any_other() {
    let place = Place::with_faithful_pool("64M");
    let made = place.json(&["pool", "message", POOL, "--size", "1M", "create_thin 7"]);
    assert_eq!(
        (&made["volume"], &made["size_bytes"], &made["transaction_id"]),
        (&"7".into(), &(1 << 20).into(), &0.into())
    );
    place.fails(&["pool", "message", POOL, "--size", "1M", "delete 7"], 2, "a size is for create_thin alone");
    place.fails(&["pool", "message", POOL, "--size", "1000", "create_thin 8"], 2, "multiples of 512");
    let daemon = place.serve(&[]);
    let mut client = place.connect("7");
    client.write(0, &[7; 65_536]).expect("written");
    refused(&place, "delete 7", 6, "Device or resource busy (EBUSY)");
    message(&place, "create_snap 8 7");
    client.write(0, &[8; 65_536]).expect("written");
    assert_eq!(place.connect("8").read(0, 512), Ok(vec![7; 512]), "a snapshot as large as its origin");
    drop(client);
    place.ok(&["volume", "rename", "./p/7", "web"]);
    place.ok(&["volume", "create", "./p/next", "--size", "1M"]);
    assert_eq!(id_and_root(&place).0, "1", "what is made by name steps the id");
    refused(&place, "create_thin 7", 5, "volume 7 exists, and is called `web`");
    // By number, whatever it is called; once the last client's hold has ended.
    let deleted = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        place.run(&["pool", "message", POOL, "delete 7"]).code == 0
    });
    assert!(deleted);
    assert_eq!(place.names(), ["8", "next"]);
    daemon.kill();
    assert_eq!((place.names(), place.notes()), (vec!["8".to_owned(), "next".to_owned()], "[]".to_owned()));
    common::oracle::accepts(&fs::read(place.path("p/metadata")).expect("there"));
}

#[test]
fn a_pool_that_cannot_be_changed_supports_no_messages() {
    let place = Place::with_fixture("10-needs-check");
    for text in ["create_thin 9", "bogus"] {
        place.fails(&["pool", "message", POOL, text], 5, "Operation not supported (EOPNOTSUPP)").hint();
    }
}

#[test]
fn table_lines_are_those_of_the_kernels_targets() {
    let place = Place::empty();
    place.ok(&[
        "pool",
        "create",
        POOL,
        "--size",
        "1G",
        "--block-size",
        "128K",
        "--low-water",
        "64M",
        "--when-full",
        "queue",
    ]);
    place.ok(&["volume", "create", "./p/v", "--size", "3M"]);
    let path = |name: &str| place.path("p").canonicalize().expect("there").join(name).display().to_string();
    let (metadata, data) = (path("metadata"), path("data"));
    let line = |features: &str| format!("0 2097152 thin-pool {metadata} {data} 256 512 {features} \n");
    assert_eq!(place.ok(&["pool", "table", POOL]), line("0"));
    for (set, features) in [
        (vec!["--no-zero"], "1 skip_block_zeroing"),
        (vec!["--discard", "nopassdown"], "2 skip_block_zeroing no_discard_passdown"),
        (
            vec!["--discard", "ignore", "--when-full", "error"],
            "3 skip_block_zeroing ignore_discard error_if_no_space",
        ),
    ] {
        place.ok(&[&["pool", "set", POOL], &set[..]].concat());
        assert_eq!(place.ok(&["pool", "table", POOL]), line(features));
    }
    assert_eq!(place.ok(&["volume", "table", "./p/v"]), "0 6144 thin /dev/mapper/p 0\n");
    assert_eq!(place.ok(&["volume", "table", "./p/v", "--pool-device", "254:7"]), "0 6144 thin 254:7 0\n");
    let json = place.json(&["volume", "table", "./p/v"]);
    assert_eq!((&json["length_sectors"], &json["target"]), (&6144.into(), &"thin".into()));
    assert_eq!(place.json(&["pool", "table", POOL])["start_sectors"], 0);
    place.fails(&["volume", "table", "./p/x"], 5, "there is no volume `x`").hint();
}

#[test]
fn the_status_line_of_a_thin_volume_is_the_kernels() {
    let place = Place::with_pool("64M");
    place.ok(&["volume", "create", "./p/v", "--size", "8M"]);
    let line = || place.ok(&["volume", "status", "./p/v", "--format", "dm"]);
    assert_eq!(line(), "0 -\n");
    let daemon = place.serve(&[]);
    let mut client = place.connect("v");
    client.write(0, &[1; 512]).expect("written");
    client.write(65_536 * 9, &[1; 512]).expect("written");
    client.flush().expect("flushed");
    assert_eq!(line(), "256 1279\n");
    assert_eq!(client.trim(65_536 * 9, 65_536), Ok(()));
    client.flush().expect("flushed");
    assert_eq!(line(), "128 127\n");
    let status = place.json(&["volume", "status", "./p/v"]);
    assert_eq!((&status["mapped_end_bytes"], &status["name"]), (&65_536.into(), &"v".into()));
    assert_eq!(place.ok(&["volume", "status", "./p/v", "-H", "-o", "name,mapped_end"]), "v\t64K\n");
    assert!(
        place
            .ok(&["volume", "status", "./p/v"])
            .lines()
            .any(|line| line.split_whitespace().eq(["size", "8M"]))
    );
    drop((client, daemon));
    assert_eq!(line(), "128 127\n");
    place.fails(&["volume", "status", "./p/x"], 5, "there is no volume `x`").hint();
    place.fails(&["volume", "status", "./p/v", "--json", "--format", "dm"], 2, "--format");
}

/// What the kernel still had in memory when its status was asked is not on the disk.
fn is_of_another_moment(name: &str) -> bool {
    name.contains("crashed") || name.contains("needs-check")
}

/// The fixtures' own status files have the lines of their thin volumes, and the tables that say which number each has.
#[test]
fn a_kernel_made_volumes_line_is_the_kernels() {
    let mut compared = 0;
    for name in common::fixture_names().iter().filter(|name| !is_of_another_moment(name)) {
        let path = format!("{}/tests/fixtures/{name}.status", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).expect("there");
        let Some((status, table)) = text.split_once("# table") else { continue };
        let lines = |text: &str| -> Vec<(String, String)> {
            let thin = text.lines().filter_map(|line| line.split_once(": ")).filter_map(|(device, line)| {
                let (_, arguments) = line.split_once(" thin ")?;
                Some((device.to_owned(), arguments.trim_end().to_owned()))
            });
            thin.collect()
        };
        let numbers: std::collections::HashMap<_, _> = lines(table).into_iter().collect();
        let place = Place::with_fixture(name);
        // Some have hundreds.
        for (device, kernels) in lines(status).into_iter().take(20) {
            let Some((_, id)) = numbers.get(&device).and_then(|arguments| arguments.split_once(' ')) else {
                continue;
            };
            if kernels == "Fail" {
                continue;
            }
            let ours = place.ok(&["volume", "status", &format!("./p/{id}"), "--format", "dm"]);
            assert_eq!(ours.trim_end(), kernels, "{name}: volume {id}");
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared} lines compared");
}
