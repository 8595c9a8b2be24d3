//! Pools of others, adopted: what the kernel wrote is read back over NBD, names and sizes come from backups, and nothing is
//! written before the pool is served.

mod cli_common;
mod common;

use cli_common::{POOL, Place};
use common::{Dump, dump_of, fixture};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const ADOPT: [&str; 7] = ["pool", "adopt", POOL, "--metadata", "meta", "--data", "disk"];

/// A place with the kernel's metadata in `meta`, and as much room in `disk` as that needs.
fn place_with(name: &str) -> (Place, Dump) {
    let (place, dump) = (Place::empty(), dump_of(name));
    fs::write(place.path("meta"), fixture(name)).expect("written");
    let disk = File::create(place.path("disk")).expect("made");
    disk.set_len(dump.data_blocks * dump.data_block_sectors * 512).expect("sparse");
    (place, dump)
}

/// The same, where data blocks begin with their number plus 1.
fn place_with_data(name: &str) -> (Place, Dump) {
    let (place, dump) = place_with(name);
    let block_bytes = dump.data_block_sectors * 512;
    let disk = File::options().write(true).open(place.path("disk")).expect("there");
    for (_, data_block, _) in dump.volumes.values().flat_map(|volume| &volume.mappings) {
        let stamp = (data_block + 1).to_le_bytes();
        disk.write_all_at(&stamp, data_block * block_bytes).expect("written");
    }
    // The daemon reads past the page cache, which would otherwise be written out piece by piece.
    disk.sync_all().expect("on the disk");
    (place, dump)
}

fn adopt(place: &Place, more: &[&str]) -> serde_json::Value {
    place.json(&[&ADOPT[..], more].concat())
}

fn refused(place: &Place, more: &[&str], code: i32, says: &str) -> String {
    let outcome = place.fails(&[&ADOPT[..], more].concat(), code, says);
    assert!(!place.path("p").exists(), "nothing is left behind");
    assert!(place.files(".").iter().all(|name| !name.starts_with('.')), "{:?}", place.files("."));
    outcome.hint().to_owned()
}

fn end_of(mappings: &[(u64, u64, u64)], block_bytes: u64) -> u64 {
    mappings.iter().map(|(block, _, _)| (block + 1) * block_bytes).max().unwrap_or(0)
}

#[test]
fn what_the_kernel_wrote_is_read_through_a_client() {
    for name in ["17-many-devices", "15-bs192k"] {
        let (place, dump) = place_with_data(name);
        let (metadata, data) =
            (fs::read(place.path("meta")).unwrap(), fs::metadata(place.path("disk")).unwrap());
        let adopted = adopt(&place, &[]);
        assert_eq!(adopted["transaction_id"], dump.transaction);
        let volumes = adopted["volumes"].as_array().expect("a list");
        assert_eq!(volumes.len(), dump.volumes.len());
        let block_bytes = dump.data_block_sectors * 512;
        for (volume, (id, dumped)) in volumes.iter().zip(&dump.volumes) {
            assert_eq!((&volume["name"], &volume["id"]), (&id.to_string().into(), &(*id).into()));
            assert_eq!(volume["size_bytes"], end_of(&dumped.mappings, block_bytes), "volume {id}");
            assert_eq!(
                (&volume["size_from"], &volume["mapped_bytes"]),
                (&"mapped".into(), &(dumped.mapped_blocks * block_bytes).into())
            );
        }
        assert_eq!(place.notes(), "[]", "catalog and metadata are in step from the beginning");
        assert!(fs::read(place.path("meta")).unwrap() == metadata, "nothing is written");
        let now = fs::metadata(place.path("disk")).unwrap();
        assert_eq!((now.modified().unwrap(), now.len()), (data.modified().unwrap(), data.len()));

        let daemon = place.serve(&[]);
        for (id, dumped) in &dump.volumes {
            let mut client = place.connect(&id.to_string());
            assert_eq!(client.size_bytes, end_of(&dumped.mappings, block_bytes));
            let mut next = 0;
            // Not all of the larger ones: enough of each.
            let step = 1 + dumped.mappings.len() / 500;
            for (block, data_block, _) in dumped.mappings.iter().step_by(step) {
                if *block > next && !dumped.mappings.iter().any(|(mapped, ..)| *mapped == next) {
                    let hole = client.read(next * block_bytes, 512).expect("read");
                    assert!(
                        hole.iter().all(|byte| *byte == 0),
                        "{name}: block {next} of volume {id} is a hole"
                    );
                }
                let bytes = client.read(block * block_bytes, 512).expect("read");
                let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
                assert_eq!(stamp, data_block + 1, "{name}: block {block} of volume {id}");
                next = block + 1;
            }
        }
        assert_eq!(daemon.signal(rustix::process::Signal::TERM), 0);
        common::oracle::accepts(&fs::read(place.path("meta")).unwrap());
    }
}

#[test]
fn names_and_sizes_may_be_given() {
    let (place, dump) = place_with("04-snap-diverged");
    let end = end_of(&dump.volumes[&1].mappings, 65_536);
    assert!(end > 1 << 20);
    for (more, says) in [
        (vec!["--size", "1=1M"], "volume 1 has data up to byte"),
        (vec!["--size", "1=100"], "multiples of 512"),
        (vec!["--size", "1M", "--size", "2M"], "is given twice"),
        (vec!["--size", "1=20G", "--size", "1=20G"], "is given twice"),
        (vec!["--name", "0=a", "--name", "1=a"], "is given twice"),
        (vec!["--name", "0=7"], "it is a number"),
        (vec!["--name", "x=a"], "`x` is no volume's number"),
        (vec!["--name", "web"], "names no volume"),
    ] {
        refused(&place, &more, 2, says);
    }
    let hint = refused(&place, &["--name", "7=web"], 5, "the metadata has no volume 7");
    assert!(hint.contains("uthin-fsck ls meta"), "{hint}");
    refused(&place, &["--size", "7=1G"], 5, "the metadata has no volume 7");
    let adopted =
        adopt(&place, &["--name", "1=web", "--size", "1=20G", "--size", "64K", "--when-full", "queue"]);
    let volume = |index: usize| adopted["volumes"][index].clone();
    assert_eq!((&volume(0)["name"], &volume(0)["size_from"]), (&"0".into(), &"mapped".into()));
    assert_eq!((&volume(1)["name"], &volume(1)["size_bytes"]), (&"web".into(), &(20_u64 << 30).into()));
    assert_eq!(place.json(&["pool", "status", POOL])["options"]["when_full"]["queue"], 60);
    // As any other pool from here on, and not twice.
    place.ok(&["volume", "snapshot", "./p/web", "s"]);
    place.ok(&["volume", "rename", "./p/0", "root"]);
    assert_eq!(place.names(), ["root", "s", "web"]);
    place.fails(&ADOPT, 5, "is a pool already");
    common::oracle::accepts(&fs::read(place.path("meta")).unwrap());
}

#[test]
fn what_does_not_fit_or_is_not_sound_is_refused() {
    let (place, dump) = place_with("04-snap-diverged");
    // Data of another pool.
    let disk = File::options().write(true).open(place.path("disk")).expect("there");
    disk.set_len(dump.data_blocks * 65_536 - 512).expect("cut");
    let hint = refused(&place, &[], 5, "the pool was made with 6553600000");
    assert!(hint.contains("do not belong together"), "{hint}");
    disk.set_len(dump.data_blocks * 65_536 + 65_536).expect("longer");
    // The two mistaken for each other, or one for both.
    let swapped = ["pool", "adopt", POOL, "--metadata", "disk", "--data", "meta"];
    place.fails(&swapped, 5, "no pool's metadata");
    place.fails(&["pool", "adopt", POOL, "--metadata", "meta", "--data", "meta"], 2, "cannot hold both");
    place.fails(&["pool", "adopt", POOL, "--metadata", "gone", "--data", "disk"], 5, "gone").hint();
    // Damage, features, and the flag.
    let sound = fs::read(place.path("meta")).unwrap();
    let with = |offset: usize, byte: u8, keep_checksum: bool| {
        let mut bytes = sound.clone();
        bytes[offset] ^= byte;
        if !keep_checksum {
            let sum = crc32c::crc32c(&bytes[4..4096]) ^ 0xffff_ffff ^ 160_774;
            bytes[..4].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(place.path("meta"), bytes).expect("written");
    };
    with(372 * 4096 + 40, 1, true);
    let hint = refused(&place, &[], 1, "meta is damaged");
    assert!(hint.contains("uthin-fsck check meta") && hint.contains("repair"), "{hint}");
    with(356, 4, false);
    refused(&place, &[], 1, "read-only compatible features");
    with(360, 4, false);
    refused(&place, &[], 1, "incompatible");
    with(4, 1, false);
    let hint = refused(&place, &[], 5, "needs_check");
    assert!(hint.contains("uthin-fsck check --clear-needs-check-flag meta"), "{hint}");
    with(4, 0, false);
    let adopted = adopt(&place, &[]);
    assert!(
        adopted["notes"].to_string().contains("65536 bytes more than the metadata knows of"),
        "{adopted}"
    );
    // In use: by the pool that has just been made of it.
    let daemon = place.serve(&[]);
    place.fails(&["pool", "adopt", "./q", "--metadata", "meta", "--data", "disk"], 6, "is in use by");
    drop(daemon);
}

/// A backup as LVM writes it, of a group of one pool, with what is behind.
fn lvm_backup(pool: &str, volumes: &str) -> String {
    format!(
        r#"# Generated by LVM2 version 2.03.16(2) (2022-05-18): Sat Nov 21 12:00:00 2026

contents = "Text Format Volume Group"
version = 1

description = "vgcfgbackup -f \"b\" vg0"

creation_host = "host"	# Linux host 6.1.0
creation_time = 1795262400	# Sat Nov 21 12:00:00 2026

vg0 {{
	id = "QUXG5D-Zcs9-CkfD-k2DH-cYnW-8IkB-zSXwRT"
	seqno = 9
	format = "lvm2"			# informational
	status = ["RESIZEABLE", "READ", "WRITE"]
	flags = []
	extent_size = 8192		# 4 Megabytes
	max_lv = 0
	max_pv = 0
	metadata_copies = 0

	physical_volumes {{

		pv0 {{
			id = "GhgYCe-RcQx-ZJk3-fVdc-cdTM-j9Pw-JN8n8F"
			device = "/dev/sda"	# Hint only

			status = ["ALLOCATABLE"]
			flags = []
			dev_size = 41943040	# 20 Gigabytes
			pe_start = 2048
			pe_count = 5119	# 19.9961 Gigabytes
		}}
	}}

	logical_volumes {{
{pool}
{volumes}
	}}
}}
"#
    )
}

fn lvm_pool(name: &str, chunk_sectors: u64, transaction: u64, more: &str) -> String {
    format!(
        r#"		{name} {{
			id = "pGHBx8-CVqb-d1eQ-vPWf-dBVq-zVbs-NDBTCc"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1

			segment1 {{
				start_extent = 0
				extent_count = 256	# 1024 Megabytes

				type = "thin-pool"
				metadata = "{name}_tmeta"
				pool = "{name}_tdata"
				transaction_id = {transaction}
				chunk_size = {chunk_sectors}	# 64 Kilobytes
				{more}
			}}
		}}
"#
    )
}

fn lvm_thin(name: &str, id: u64, transaction: u64, status: &str, segments: &[u64], more: &str) -> String {
    let mut text = format!(
        "\t\t{name} {{\n\t\t\tid = \"x\"\n\t\t\tstatus = [{status}]\n\t\t\tflags = []\n\t\t\tcreation_time = 1700000000\n\
         \t\t\tsegment_count = {}\n",
        segments.len()
    );
    for (index, extents) in segments.iter().enumerate() {
        text += &format!(
            "\t\t\tsegment{} {{\n\t\t\t\tstart_extent = 0\n\t\t\t\textent_count = {extents}\n\t\t\t\ttype = \"thin\"\n\
             \t\t\t\tthin_pool = \"pool\"\n\t\t\t\ttransaction_id = {transaction}\n\t\t\t\tdevice_id = {id}\n\t\t\t\t{more}\n\t\t\t}}\n",
            index + 1
        );
    }
    text + "\t\t}\n"
}

const READ_WRITE: &str = r#""READ", "WRITE", "VISIBLE""#;

#[test]
fn lvms_backup_names_volumes_and_sizes() {
    // Both volumes of this pool were made in transaction 0; its id is 7 now.
    let (place, _) = place_with("04-snap-diverged");
    let linear = "\t\tplain {\n\t\t\tsegment1 {\n\t\t\t\textent_count = 3\n\t\t\t\ttype = \"striped\"\n\t\t\t}\n\t\t}\n";
    let volumes = lvm_thin("root", 0, 0, READ_WRITE, &[1024], "")
        + linear
        + &lvm_thin("root.snap", 1, 0, r#""READ", "VISIBLE""#, &[1024, 1], "origin = \"root\"")
        + &lvm_thin("gone", 5, 3, READ_WRITE, &[1], "");
    let text =
        lvm_backup(&lvm_pool("pool", 128, 7, "discards = \"nopassdown\"\nzero_new_blocks = 1"), &volumes);
    fs::write(place.path("b"), &text).expect("written");
    let adopted = adopt(&place, &["--lvm", "b"]);
    let expected = serde_json::json!([
        {"name": "root", "id": 0, "size_bytes": 4_u64 << 30, "size_from": "backup", "mapped_bytes": 26_709 * 65_536, "read_only": false},
        {"name": "root.snap", "id": 1, "size_bytes": (4_u64 << 30) + (4 << 20), "size_from": "backup", "mapped_bytes": 26_718 * 65_536, "read_only": true},
    ]);
    assert_eq!(adopted["volumes"], expected, "{adopted}");
    assert_eq!(adopted["notes"].as_array().map(Vec::len), Some(1), "{adopted}");
    assert!(adopted["notes"][0].as_str().is_some_and(|note| note.contains("not in the metadata: gone (5)")));
    let options = &place.json(&["pool", "status", POOL])["options"];
    assert_eq!((&options["discard"], &options["when_full"]["queue"]), (&"nopassdown".into(), &60.into()));
    let list = place.json(&["volume", "list", POOL]);
    assert_eq!(
        (&list["volumes"][1]["origin"], &list["volumes"][1]["created"]),
        (&"root".into(), &"2023-11-14T22:13:20Z".into())
    );
    let daemon = place.serve(&[]);
    let client = place.connect("root.snap");
    assert_eq!((client.size_bytes, client.is_read_only), ((4 << 30) + (4 << 20), true));
    drop((client, daemon));
}

#[test]
fn what_lvms_backup_says_of_another_time_is_told() {
    let (place, _) = place_with("04-snap-diverged");
    let volumes = lvm_thin("root", 0, 5, READ_WRITE, &[1], "")
        + &lvm_thin("ext", 1, 0, READ_WRITE, &[1], "external_origin = \"golden\"");
    let pools = lvm_pool("pool", 128, 9, "") + &lvm_pool("other", 256, 1, "");
    let text = lvm_backup(&pools, &volumes);
    fs::write(place.path("b"), &text).expect("written");
    let hint = refused(&place, &["--lvm", "b"], 2, "several thin pools");
    assert!(hint.ends_with("pool, other"), "{hint}");
    refused(&place, &["--lvm", "b", "--lvm-pool", "third"], 5, "has no thin pool `third`");
    refused(
        &place,
        &["--lvm", "b", "--lvm-pool", "vg0/other"],
        5,
        "chunks of 131072 bytes, and the metadata blocks of 65536",
    );
    let adopted = adopt(&place, &["--lvm", "b", "--lvm-pool", "vg0/pool"]);
    let notes = adopted["notes"].to_string();
    for says in [
        "b is of transaction 9, and the metadata of 7",
        "volume 0 was made in transaction 0, and `root`, which has its number in the backup, was not",
        "volume `ext` has 4194304 bytes, and",
        "has the external origin `golden`",
    ] {
        assert!(notes.contains(says), "{says:?} is not in {notes}");
    }
    assert_eq!(
        (&adopted["volumes"][0]["name"], &adopted["volumes"][1]["read_only"]),
        (&"0".into(), &true.into())
    );
    assert_eq!(
        place.json(&["volume", "list", POOL])["volumes"][1]["labels"]["lvm-external-origin"],
        "golden"
    );
}

#[test]
fn an_external_origin_of_lvms_shows_again_when_it_is_given() {
    let (place, dump) = place_with_data("04-snap-diverged");
    let golden: Vec<u8> = (0..4 << 20).map(|byte: u32| (byte / 512 + 7) as u8).collect();
    fs::write(place.path("golden"), &golden).expect("written");
    let volumes = lvm_thin("root", 0, 0, READ_WRITE, &[1024], "external_origin = \"golden\"")
        + &lvm_thin("root.snap", 1, 0, READ_WRITE, &[1024], "external_origin = \"golden\"");
    fs::write(place.path("b"), lvm_backup(&lvm_pool("pool", 128, 7, ""), &volumes)).expect("written");
    refused(&place, &["--lvm", "b", "--origin", "0=nowhere"], 5, "the external origin of volume 0");
    refused(&place, &["--lvm", "b", "--origin", "9=golden"], 5, "no volume 9");
    refused(&place, &["--lvm", "b", "--origin", "0=golden", "--origin", "0=golden"], 2, "given twice");
    refused(&place, &["--lvm", "b", "--origin", "golden"], 2, "gives no volume an origin");
    refused(&place, &["--lvm", "b", "--origin", "0=disk"], 6, "disk");
    let adopted = adopt(&place, &["--lvm", "b", "--origin", "0=golden"]);
    let is_read_only = |volume: usize| &adopted["volumes"][volume]["read_only"];
    assert_eq!((is_read_only(0), is_read_only(1)), (&false.into(), &true.into()));
    assert_eq!(adopted["notes"].as_array().map(Vec::len), Some(1), "{adopted}");
    assert!(adopted["notes"][0].as_str().is_some_and(|note| note.contains("--origin 1=PATH")), "{adopted}");

    let _daemon = place.serve(&[]);
    let block_bytes = dump.data_block_sectors * 512;
    let mapped: Vec<_> = dump.volumes[&0].mappings.iter().map(|(block, _, _)| *block).collect();
    let hole = (0..golden.len() as u64 / block_bytes).find(|block| !mapped.contains(block));
    let mut client = place.connect("root");
    let Some(hole) = hole else { panic!("the beginning of the volume is mapped: {mapped:?}") };
    let at = (hole * block_bytes) as usize;
    let length = block_bytes as usize;
    assert!(client.read(at as u64, length).expect("read") == golden[at..][..length]);
    let (block, data_block, _) = dump.volumes[&0].mappings[0];
    assert_eq!(client.read(block * block_bytes, 512).expect("read")[..8], (data_block + 1).to_le_bytes());
}

#[test]
fn a_bad_backup_is_one_error_with_its_line() {
    let (place, _) = place_with("04-snap-diverged");
    let good = lvm_backup(&lvm_pool("pool", 128, 7, ""), &lvm_thin("root", 0, 0, READ_WRITE, &[1024], ""));
    let line_of = |word: &str| 1 + good.lines().position(|line| line.contains(word)).expect("there");
    let double = lvm_thin("root", 0, 0, READ_WRITE, &[1], "") + &lvm_thin("two", 0, 0, READ_WRITE, &[1], "");
    let broken = [
        (good.replace("seqno = 9", "seqno 9"), line_of("seqno"), "after `seqno`, not `9`"),
        (good[..good.len() - 4].to_owned(), good.lines().count() - 1, "cut off"),
        (
            good.replace("device_id = 0", "device_id = -1"),
            line_of("device_id"),
            "a device_id of 0 to 16777215",
        ),
        (good.replace("extent_count = 1024", ""), line_of("\troot {"), "without extent_count"),
        (
            good.replace("extent_count = 1024", "extent_count = 9223372036854775807"),
            line_of("\troot {"),
            "larger than can be",
        ),
        (good.replace("chunk_size = 128", ""), line_of("\tpool {"), "thin pool `pool`: it has no chunk_size"),
        (
            good.replace("extent_size = 8192", "extent_size = 0"),
            line_of("vg0 {"),
            "extent_size that cannot be",
        ),
        ("hello = 1\n".to_owned(), 1, "0 volume groups"),
        (
            lvm_backup(&lvm_pool("pool", 128, 7, ""), &double),
            line_of("\troot {") + 16,
            "which `root` has already",
        ),
    ];
    for (text, line, says) in broken {
        fs::write(place.path("b"), &text).expect("written");
        let outcome = place.fails(&[&ADOPT[..], &["--lvm", "b"]].concat(), 1, says);
        assert!(outcome.stderr.contains(&format!("b:{line}: ")), "line {line}: {outcome:?}");
        outcome.hint();
        assert!(!place.path("p").exists());
    }
    fs::write(place.path("b"), lvm_backup("", "")).expect("written");
    refused(&place, &["--lvm", "b"], 5, "has no thin pool");
    refused(&place, &["--lvm", "none"], 5, "none does not exist");
    refused(&place, &["--lvm", "."], 2, "no regular file");
}

#[test]
fn dockers_files_name_volumes_and_sizes() {
    let (place, _) = place_with("04-snap-diverged");
    let hash = "5f0a".repeat(16);
    fs::create_dir_all(place.path("devicemapper/metadata")).expect("made");
    let put = |name: &str, text: &str| {
        fs::write(place.path(&format!("devicemapper/metadata/{name}")), text).expect("written")
    };
    put(
        "base",
        r#"{"device_id":0,"size":10737418240,"transaction_id":1,"initialized":true,"deleted":false}"#,
    );
    put(
        &hash,
        r#"{"device_id":1,"size":21474836480,"transaction_id":1,"initialized":false,"deleted":false}"#,
    );
    put(
        &format!("{hash}-init"),
        r#"{"device_id":2,"size":10737418240,"transaction_id":3,"initialized":false,"deleted":false}"#,
    );
    put("deviceset-metadata", r#"{"next_device_id":3,"BaseDeviceUUID":"x","BaseDeviceFilesystem":"xfs"}"#);
    put("transaction-metadata", r#"{"open_transaction_id":7,"device_hash":"x","device_id":2}"#);
    put(".tmp123", "half");
    for directory in ["devicemapper", "devicemapper/metadata"] {
        let adopted = adopt(&place, &["--docker", directory, "--name", "1=web"]);
        let volumes = &adopted["volumes"];
        assert_eq!(
            (&volumes[0]["name"], &volumes[0]["size_bytes"]),
            (&"base".into(), &10_737_418_240_u64.into())
        );
        assert_eq!(
            (&volumes[1]["name"], &volumes[1]["size_bytes"]),
            (&"web".into(), &21_474_836_480_u64.into())
        );
        assert!(
            adopted["notes"].to_string().contains(&format!("not in the metadata: {hash}-init (2)")),
            "{adopted}"
        );
        fs::remove_dir_all(place.path("p")).expect("there");
    }
    assert_eq!(adopt(&place, &["--docker", "devicemapper"])["volumes"][1]["name"], hash);
    fs::remove_dir_all(place.path("p")).expect("there");
    for (text, says) in [
        ("{\n\"device_id\": 7", "/z:2: EOF"),
        (r#"{"size":1}"#, "/z:1: missing field `device_id`"),
        (r#"{"device_id":16777216,"size":512}"#, "not 16777216"),
        (r#"{"device_id":-1,"size":512}"#, "/z:1: invalid value"),
        (r#"{"device_id":1,"size":512}"#, "the device_id 1, which"),
    ] {
        put("z", text);
        refused(&place, &["--docker", "devicemapper"], 1, says);
    }
    put("z", r#"{"device_id":9,"size":512}"#);
    put(&hash, r#"{"device_id":1,"size":513,"transaction_id":1}"#);
    let hint = refused(&place, &["--docker", "devicemapper"], 1, "by the backup it has 513 bytes");
    assert!(hint.contains("--size 1=SIZE"));
    refused(&place, &["--docker", "none"], 5, "none is no directory");
    fs::create_dir(place.path("empty")).expect("made");
    refused(&place, &["--docker", "empty"], 5, "describes no volume");
}
