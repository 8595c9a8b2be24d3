//! `uthin volume` without a daemon, and every state that a catalog can be in, through the real binary.

mod cli_common;

use cli_common::{POOL, Place};
use std::fs;
use uthin::disk::{FileDisk, OpenMode};

#[test]
fn volumes_are_made_listed_and_deleted() {
    let place = Place::with_pool("1G");
    assert_eq!(place.ok(&["volume", "create", "./p/v1", "--size", "4G"]), "volume v1 made: 4G\n");
    assert_eq!(place.ok(&["vol", "snap", "./p/v1", "s1"]), "snapshot s1 made of v1\n");
    let list = place.json(&["volume", "list", POOL]);
    let volumes = list["volumes"].as_array().expect("a list");
    assert_eq!(volumes.len(), 2);
    let (s1, v1) = (&volumes[0], &volumes[1]);
    assert_eq!((&s1["name"], &s1["origin"], &s1["id"]), (&"s1".into(), &"v1".into(), &1.into()));
    assert_eq!(
        (&v1["size_bytes"], &v1["mapped_bytes"], &v1["open"]),
        (&(4_u64 << 30).into(), &0.into(), &0.into())
    );
    assert!(v1["created"].as_str().is_some_and(|text| text.starts_with("20") && text.ends_with('Z')));
    assert_eq!(v1["exports"], serde_json::json!([]), "nobody serves it");
    let table = place.ok(&["vol", "ls", POOL, "-o", "name,size,origin"]);
    assert_eq!(table, "NAME  SIZE  ORIGIN\ns1      4G  v1\nv1      4G  -\n");
    assert_eq!(
        place.ok(&["volume", "list", POOL, "-H", "-p", "-o", "name,size"]),
        "s1\t4294967296\nv1\t4294967296\n"
    );
    assert_eq!(place.ok(&["volume", "rm", "./p/v1"]), "volume v1 deleted\n");
    assert_eq!(place.names(), ["s1"]);
    assert_eq!(place.json(&["volume", "list", POOL])["volumes"][0]["origin"], serde_json::Value::Null);
    let made = place.json(&["volume", "create", "./p/v1", "--size", "512"]);
    assert_eq!((&made["name"], &made["id"]), (&"v1".into(), &2.into()), "numbers are used again late");
    assert_eq!(place.json(&["volume", "delete", "./p/s1"])["finished"], true);
    assert_eq!(place.json(&["pool", "status", POOL])["transaction_id"], 5);
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let catalog = fs::read(place.path("p/catalog.json")).expect("there");
    place.fails(&["volume", "create", "./p/v", "--size", "1G"], 5, "a volume `v` exists already").hint();
    place.fails(&["volume", "snapshot", "./p/v", "v"], 5, "exists already");
    place.fails(&["volume", "snapshot", "./p/x", "y"], 5, "there is no volume `x`").hint();
    place.fails(&["volume", "delete", "./p/x"], 5, "there is no volume `x`").hint();
    place.fails(&["volume", "snapshot", "./p/v", "./p/s"], 2, "slash").hint();
    for size in ["0", "1", "511", "513", "1.5K1", "8P", "15E", "-1"] {
        place.fails(&["volume", "create", "./p/w", &format!("--size={size}")], 2, "");
    }
    let outcome = place.fails(&["volume", "create", "./p/w", "--size", "1000"], 2, "multiples of 512");
    assert!(outcome.hint().contains("512"));
    for name in ["7", "007", ".w", "-w", "w w", "ä", &"w".repeat(128)] {
        place.fails(&["volume", "create", &format!("./p/{name}"), "--size", "1G"], 2, "");
    }
    place.fails(&["volume", "snapshot", "./p/v", "7"], 2, "number");
    let json = place.run(&["volume", "delete", "./p/x", "--json"]);
    let failure: serde_json::Value = serde_json::from_str(&json.stderr).expect("JSON");
    assert_eq!((&failure["error"]["code"], json.code), (&"not-found".into(), 5));
    assert_eq!(fs::read(place.path("p/catalog.json")).expect("there"), catalog);
    assert_eq!(place.names(), ["v"]);
    place.ok(&["volume", "create", &format!("./p/{}", "w".repeat(127)), "--size", "4P"]);
}

#[test]
fn a_group_is_made_whole_or_not_at_all() {
    let place = Place::with_pool("1G");
    for name in ["a", "b", "c"] {
        place.ok(&["volume", "create", &format!("./p/{name}"), "--size", "1M"]);
    }
    let said = place.ok(&["volume", "snapshot", "./p/a", "a1", "--group", "b=b1,c=c1"]);
    assert_eq!(said, "snapshot a1 made of a\nsnapshot b1 made of b\nsnapshot c1 made of c\n");
    assert_eq!(place.json(&["pool", "status", POOL])["transaction_id"], 4, "one step for all");
    let made = place.json(&["volume", "snapshot", "./p/c", "c2", "--group", "b=b2", "--group", "a=a2"]);
    assert_eq!((&made["snapshots"][0]["name"], &made["snapshots"][2]["origin"]), (&"c2".into(), &"a".into()));
    let before = place.names();
    for (arguments, code, says) in [
        (["./p/a", "a3", "--group", "x=x3"], 5, "there is no volume `x`"),
        (["./p/a", "a3", "--group", "b=b1"], 5, "a volume `b1` exists already"),
        (["./p/a", "a3", "--group", "b=a3"], 2, "would be called `a3`"),
        (["./p/a", "a3", "--group", "a=a4"], 2, "volume `a` is in the group twice"),
        (["./p/a", "a3", "--group", "a3=a4"], 5, "there is no volume `a3`"),
    ] {
        place.fails(&[&["volume", "snapshot"], &arguments[..]].concat(), code, says).hint();
    }
    for bad in ["b", "b=", "=b3", "b=7", "./p/b=b3", "b=b3,", "b=b3=c"] {
        place.fails(&["volume", "snapshot", "./p/a", "a3", "--group", bad], 2, "");
    }
    let many = vec!["b=n"; 200].join(",");
    place.fails(&["volume", "snapshot", "./p/a", "a3", "--group", &many], 2, "1 to 200 snapshots").hint();
    assert_eq!((place.names(), place.notes()), (before, "[]".to_owned()));
}

#[test]
fn a_volume_gets_another_name() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/a", "--size", "1M"]);
    place.ok(&["volume", "snapshot", "./p/a", "s"]);
    assert_eq!(place.ok(&["volume", "rename", "./p/a", "b"]), "volume a renamed to b\n");
    let list = place.json(&["volume", "list", POOL]);
    assert_eq!((&list["volumes"][0]["name"], &list["volumes"][1]["origin"]), (&"b".into(), &"b".into()));
    let renamed = place.json(&["volume", "rename", "./p/b", "c"]);
    assert_eq!(
        (&renamed["name"], &renamed["old_name"], &renamed["id"]),
        (&"c".into(), &"b".into(), &0.into())
    );
    place.fails(&["volume", "rename", "./p/c", "s"], 5, "a volume `s` exists already").hint();
    place.fails(&["volume", "rename", "./p/c", "c"], 5, "a volume `c` exists already").hint();
    place.fails(&["volume", "rename", "./p/b", "d"], 5, "there is no volume `b`").hint();
    place.fails(&["volume", "rename", "./p/c", "7"], 2, "number").hint();
    place.fails(&["volume", "rename", "./p/c", "./p/d"], 2, "slash").hint();
    assert_eq!(place.names(), ["c", "s"]);
    assert_eq!(place.json(&["pool", "status", POOL])["transaction_id"], 2, "the metadata did not change");
    place.ok(&["volume", "create", "./p/a", "--size", "1M"]);
}

#[test]
fn a_volume_that_had_a_number_gets_a_name() {
    let place = Place::with_fixture("04-snap-diverged");
    assert_eq!(place.run(&["volume", "rename", "./p/1", "found"]).code, 0);
    assert_eq!((place.names(), place.notes()), (vec!["0".to_owned(), "found".to_owned()], "[]".to_owned()));
}

#[test]
fn labels_are_set_shown_and_taken_away() {
    let place = Place::with_pool("1G");
    let made =
        place.json(&["volume", "create", "./p/v", "--size", "1M", "--label", "team=db", "--label", "a/b="]);
    assert_eq!(made["labels"], serde_json::json!({ "a/b": "", "team": "db" }));
    let said = place.ok(&["volume", "set", "./p/v", "--label", "team=web, mail", "--unlabel", "a/b"]);
    assert_eq!(said, "volume v: read-write, labels team=web, mail\n");
    place.ok(&["volume", "set", "./p/v", "--label", "x=y=z"]);
    let list = place.json(&["volume", "list", POOL]);
    assert_eq!(list["volumes"][0]["labels"], serde_json::json!({ "team": "web, mail", "x": "y=z" }));
    assert_eq!(place.ok(&["volume", "list", POOL, "-H", "-o", "labels"]), "team=web, mail,x=y=z\n");
    place.ok(&["volume", "rename", "./p/v", "w"]);
    place.ok(&["volume", "snapshot", "./p/w", "s"]);
    assert_eq!(place.ok(&["volume", "list", POOL, "-H", "-o", "labels"]), "-\nteam=web, mail,x=y=z\n");
    let catalog = fs::read(place.path("p/catalog.json")).expect("there");
    place.fails(&["volume", "set", "./p/w", "--label", "n=1", "--unlabel", "b"], 5, "no label `b`").hint();
    place.fails(&["volume", "set", "./p/w", "--label", "x=1", "--unlabel", "x"], 2, "given twice").hint();
    place.fails(&["volume", "set", "./p/none", "--label", "x=1"], 5, "there is no volume").hint();
    place.fails(&["volume", "set", "./p/w"], 2, "--label");
    for bad in ["x", "=x", "-x=1", "x y=1", "x=\n"] {
        place.fails(&["volume", "set", "./p/w", &format!("--label={bad}")], 2, "");
    }
    let many: Vec<_> = (0..63).map(|number| format!("--label=k{number}=")).collect();
    let many: Vec<_> =
        ["volume", "set", "./p/w"].into_iter().chain(many.iter().map(String::as_str)).collect();
    place.fails(&many, 2, "at most 64 labels").hint();
    assert_eq!(fs::read(place.path("p/catalog.json")).expect("there"), catalog, "all or nothing");
    let cleared = place.json(&["volume", "set", "./p/w", "--unlabel", "x", "--unlabel", "team"]);
    assert_eq!((&cleared["labels"], &cleared["name"]), (&serde_json::json!({}), &"w".into()));
}

#[test]
fn a_volume_is_made_read_only_and_writable_again() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1M"]);
    place.ok(&["volume", "create", "./p/w", "--size", "1M"]);
    let made = place.json(&["volume", "snapshot", "./p/v", "s", "--read-only"]);
    assert_eq!(made["read_only"], true);
    place.ok(&["volume", "snapshot", "./p/v", "v1", "--read-only", "--group", "w=w1"]);
    place.ok(&["volume", "snapshot", "./p/s", "t"]);
    let access = || place.ok(&["volume", "list", POOL, "-H", "-o", "name,access"]);
    assert_eq!(
        access(),
        "s\tread-only\nt\tread-write\nv\tread-write\nv1\tread-only\nw\tread-write\nw1\tread-only\n"
    );
    let said = place.ok(&["volume", "set", "./p/s", "--read-write"]);
    assert_eq!(said, "volume s: read-write, labels none\n");
    assert_eq!(place.json(&["volume", "set", "./p/t", "--read-only"])["read_only"], true);
    assert!(access().starts_with("s\tread-write\nt\tread-only\n"), "{}", access());
    place.fails(&["volume", "set", "./p/t", "--read-only", "--read-write"], 2, "cannot be used with");
    place.ok(&["volume", "delete", "./p/t"]);
}

#[test]
fn a_pool_in_use_by_another_process_is_refused_with_its_name() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let me = std::process::id().to_string();
    for file in ["p/metadata", "p/data"] {
        let _lock = FileDisk::open(&place.path(file), OpenMode::ReadWrite).expect("nobody has it");
        for arguments in [
            &["volume", "list", POOL][..],
            &["volume", "delete", "./p/v"],
            &["serve", POOL],
            &["pool", "close", POOL],
        ] {
            let outcome = place.fails(arguments, 6, "in use by");
            assert!(outcome.stderr.contains(&me), "{outcome:?}");
            outcome.hint();
        }
    }
    // Readers do not keep each other out.
    let _lock = FileDisk::open(&place.path("p/metadata"), OpenMode::ReadOnly).expect("nobody has it");
    assert_eq!(place.names(), ["v"]);
    place.fails(&["volume", "delete", "./p/v"], 6, "in use by");
}

#[test]
fn commands_at_the_same_time_wait_for_each_other() {
    let place = Place::with_pool("1G");
    let names: Vec<_> = (0..3).map(|number| format!("v{number}")).collect();
    let running: Vec<_> = names
        .iter()
        .map(|name| {
            place
                .command(&["volume", "create", &format!("./p/{name}"), "--size", "1M"])
                .spawn()
                .expect("started")
        })
        .collect();
    for mut child in running {
        assert!(child.wait().expect("ours").success());
    }
    assert_eq!(place.names(), names);
}

#[test]
fn without_a_catalog_volumes_appear_by_their_numbers() {
    let place = Place::with_fixture("04-snap-diverged");
    assert_eq!(place.names(), ["0", "1"]);
    assert!(place.notes().contains("there is no catalog"));
    assert_eq!(place.files("p"), ["data", "metadata"], "looking writes nothing");
    let list = place.json(&["volume", "list", POOL]);
    assert_eq!(list["volumes"][0]["created"], serde_json::Value::Null);
    // 7,670,272 sectors are mapped at the most, of 7,680,000: rounded up to whole blocks.
    assert_eq!(list["volumes"][0]["size_bytes"], 7_670_272_u64 * 512);
    let outcome = place.run(&["volume", "snapshot", "./p/1", "rescued"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("there is no catalog"), "it is told once: {outcome:?}");
    assert_eq!(place.names(), ["0", "1", "rescued"]);
    assert_eq!(place.notes(), "[]", "from now on there is one");
    place.ok(&["volume", "delete", "./p/0"]);
    place.ok(&["volume", "create", "./p/new", "--size", "1G"]);
    assert_eq!(place.names(), ["1", "new", "rescued"]);
}

#[test]
fn a_lost_catalog_costs_names_and_nothing_else() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    fs::remove_file(place.path("p/catalog.json")).expect("removed");
    place.ok(&["volume", "create", "./p/w", "--size", "1G"]);
    assert_eq!(place.names(), ["0", "w"]);
}

#[test]
fn a_stale_catalog_keeps_certain_names_and_a_copy_of_the_rest() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/stays", "--size", "1G"]);
    place.ok(&["volume", "create", "./p/goes", "--size", "1G"]);
    let old = fs::read(place.path("p/catalog.json")).expect("there");
    place.ok(&["volume", "delete", "./p/goes"]);
    place.ok(&["volume", "create", "./p/new", "--size", "2G"]);
    fs::write(place.path("p/catalog.json"), &old).expect("restored from a backup");
    assert_eq!(place.names(), ["2", "stays"]);
    assert_eq!(fs::read(place.path("p/catalog.json")).expect("there"), old, "looking writes nothing");
    let outcome = place.run(&["volume", "snapshot", "./p/stays", "s"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.stderr.contains("the catalog belongs to transaction 2 and the metadata is at 4"),
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("volume `goes` (number 1) is not in the metadata"), "{outcome:?}");
    assert_eq!(place.names(), ["2", "s", "stays"]);
    let backup: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("p/catalog.json.bak")).expect("kept")).expect("JSON");
    assert_eq!(backup["lost"][0]["name"], "goes");
    assert_eq!(backup["replaced"]["transaction_id"], 2);
}

#[test]
fn a_catalog_that_is_none_is_refused_with_its_place_and_kept() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let good = fs::read_to_string(place.path("p/catalog.json")).expect("there");
    for (bad, says) in [
        (String::new(), "line 1 column 0"),
        ("{".to_owned(), "line 1 column 1"),
        (good.replacen("\"id\": 0", "\"id\": \"zero\"", 1), "expected u64 at line"),
        (good.replacen("\"schema\": 1", "\"schema\": 9", 1), "layout version 9"),
        ("\u{0}".repeat(100), "line 1"),
    ] {
        assert_ne!(bad, good);
        fs::write(place.path("p/catalog.json"), &bad).expect("written");
        for arguments in [&["volume", "list", POOL][..], &["volume", "delete", "./p/v"], &["serve", POOL]] {
            place.fails(arguments, 1, says).hint();
        }
        assert_eq!(
            fs::read_to_string(place.path("p/catalog.json")).expect("there"),
            bad,
            "it was not touched"
        );
    }
    fs::write(place.path("p/catalog.json"), good).expect("repaired");
    assert_eq!(place.names(), ["v"]);
}

/// The catalog as a crash leaves it: between its first writing and the metadata's commit, or between that and the second.
#[test]
fn an_operation_that_was_interrupted_is_finished_or_forgotten() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    let path = place.path("p/catalog.json");
    let read =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON") };
    let write = |catalog: &serde_json::Value| fs::write(&path, catalog.to_string()).expect("written");
    let before = read();
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    let after = read();
    let entry = after["volumes"][1].clone();
    let pending = |id: u64, operation: serde_json::Value| serde_json::json!({ "transaction_id": id, "operation": operation });

    // The metadata has the snapshot, the catalog only knew that it was to be.
    let mut crashed = before.clone();
    crashed["pending"] = pending(2, serde_json::json!({ "snapshot": [entry] }));
    write(&crashed);
    assert_eq!(place.names(), ["s", "v"]);
    assert!(
        place.notes().contains("snapshot `s` was interrupted after it had happened"),
        "{}",
        place.notes()
    );
    place.ok(&["volume", "delete", "./p/s"]);

    // The metadata does not have it.
    let mut crashed = read();
    let mut planned = entry.clone();
    planned["id"] = 9.into();
    crashed["pending"] = pending(4, serde_json::json!({ "create": planned }));
    write(&crashed);
    assert_eq!(place.names(), ["v"]);
    assert!(place.notes().contains("volume `s` was interrupted before it happened"), "{}", place.notes());
    place.ok(&["volume", "create", "./p/s", "--size", "1G"]);
    assert_eq!((place.names(), place.notes()), (vec!["s".to_owned(), "v".to_owned()], "[]".to_owned()));

    // A deletion of which the metadata's part has begun: the next open goes on with it.
    let mut crashed = read();
    let volumes = crashed["volumes"].as_array_mut().expect("a list");
    let gone = volumes.iter().position(|volume| volume["name"] == "s").expect("there");
    let id = volumes.remove(gone)["id"].clone();
    crashed["deleting"] = serde_json::json!([id]);
    write(&crashed);
    assert_eq!(place.names(), ["v"], "nobody sees it");
    assert_eq!(place.json(&["pool", "status", POOL])["deleting"], serde_json::json!([id]));
    place.ok(&["volume", "create", "./p/w", "--size", "1G"]);
    assert_eq!(place.json(&["pool", "status", POOL])["deleting"], serde_json::json!([]));
    assert_eq!(place.names(), ["v", "w"]);
    assert!(read().get("deleting").is_none(), "{}", read());
}

#[test]
fn many_kernel_made_volumes_are_all_there() {
    let place = Place::with_fixture("17-many-devices");
    let names = place.names();
    assert!(names.len() > 100, "{}", names.len());
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_digit())));
    place.ok(&["volume", "delete", &format!("./p/{}", names[0])]);
    assert_eq!(place.names().len(), names.len() - 1);
}

#[test]
fn a_catalog_that_cannot_be_written_stops_the_operation_before_it_begins() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/v", "--size", "1G"]);
    // In the way of the new file.
    fs::remove_file(place.path("p/catalog.json.new")).expect("removed");
    fs::create_dir(place.path("p/catalog.json.new")).expect("made");
    for arguments in [
        &["volume", "create", "./p/w", "--size", "1G"][..],
        &["volume", "snapshot", "./p/v", "s"],
        &["volume", "rename", "./p/v", "w"],
        &["volume", "delete", "./p/v"],
    ] {
        place.fails(arguments, 1, "nothing was changed").hint();
        assert_eq!((place.names(), place.notes()), (vec!["v".to_owned()], "[]".to_owned()));
    }
    fs::remove_dir(place.path("p/catalog.json.new")).expect("removed");
    place.ok(&["volume", "snapshot", "./p/v", "s"]);
    assert_eq!(place.json(&["pool", "status", POOL])["transaction_id"], 2);
}

#[test]
fn a_catalog_that_is_a_directory_is_told_of_with_a_way_on() {
    let place = Place::with_pool("1G");
    fs::remove_file(place.path("p/catalog.json")).expect("removed");
    fs::create_dir(place.path("p/catalog.json")).expect("made");
    let outcome = place.fails(&["volume", "list", POOL], 1, "it is not a regular file");
    assert!(outcome.hint().contains("move"), "{outcome:?}");
    fs::remove_dir(place.path("p/catalog.json")).expect("removed");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_catalog_that_makes_a_volume_smaller_than_what_is_mapped_is_told_of() {
    let place = Place::with_fixture("02-seq");
    let names = place.names();
    place.ok(&["volume", "set", &format!("./p/{}", names[0]), "--label", "a=b"]);
    let path = place.path("p/catalog.json");
    let mut catalog: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    catalog["volumes"][0]["size_bytes"] = 65_536.into();
    fs::write(&path, catalog.to_string()).expect("written");
    assert!(place.notes().contains("has 65536 bytes, and"), "{}", place.notes());
    assert_eq!(place.names(), names);
}

/// Commands killed at any moment: each has happened whole or not at all, and the names are those of the volumes.
#[test]
fn killed_commands_leave_names_and_volumes_in_step() {
    let place = Place::with_pool("1G");
    place.ok(&["volume", "create", "./p/origin", "--size", "1G"]);
    let mut model = std::collections::BTreeSet::from(["origin".to_owned()]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut interrupted = 0;
    for round in 0..60 {
        let name = format!("v{}", random(4));
        let target = format!("./p/{name}");
        let arguments = match (model.contains(&name), random(2)) {
            (true, _) => vec!["volume", "delete", &target],
            (false, 0) => vec!["volume", "create", &target, "--size", "1M"],
            (false, _) => vec!["volume", "snapshot", "./p/origin", &name],
        };
        let mut after = model.clone();
        if !after.remove(&name) {
            after.insert(name.clone());
        }
        let quiet = std::process::Stdio::null;
        let mut process = place.command(&arguments).stdout(quiet()).stderr(quiet()).spawn().expect("started");
        std::thread::sleep(std::time::Duration::from_micros(random(12_000)));
        let _ = process.kill();
        let finished = process.wait().expect("ours").success();
        let found: std::collections::BTreeSet<_> = place.names().into_iter().collect();
        assert!(found == after || (found == model && !finished), "round {round}: {arguments:?}: {found:?}");
        interrupted += u32::from(!finished);
        model = found;
    }
    assert!(interrupted > 0, "no command was interrupted: the moments are chosen badly");
    let status = place.json(&["pool", "status", POOL]);
    assert_eq!(status["volumes"], model.len());
    place.ok(&["volume", "create", "./p/last", "--size", "1M"]);
    assert_eq!(place.notes(), "[]");
}
