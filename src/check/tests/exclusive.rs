//! Mappings that count as their volume's own and are not: made by builds that are told so, then with the marks taken away again.

use super::super::build::{Builder, Built, Overrides};
use super::super::restore::restore;
use super::*;
use crate::units::SnapTime;

/// Bytes of a volume's last snapshot's time within its details.
const SNAPSHOTTED: usize = 20;

const REFERENCE: &str = "<ref name=\"a\"/>";

fn part(mappings: u64) -> String {
    let mappings: String = (0..mappings).map(|key| mapping(key, key, 0)).collect();
    format!("<def name=\"a\">{mappings}</def>")
}

fn pool(body: &str, time: u32) -> String {
    format!(
        "<superblock uuid=\"\" time=\"{time}\" transaction=\"1\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"1000\">{body}</superblock>"
    )
}

fn built(body: &str) -> (Image, Built) {
    let disk = MemoryDisk::zeroed(1 << 20);
    let mut builder = Builder::new(&disk, Overrides::default());
    restore(&mut pool(body, 1).as_bytes(), &mut builder).unwrap();
    (Image::of(&disk), builder.into_built())
}

fn device(id: u64, mapped: u64, snapshotted: u32, body: &str) -> String {
    format!(
        "<device dev_id=\"{id}\" mapped_blocks=\"{mapped}\" transaction=\"0\" creation_time=\"0\" snap_time=\"{snapshotted}\">{body}</device>"
    )
}

fn mapping(key: u64, data: u64, time: u32) -> String {
    format!("<single_mapping origin_block=\"{key}\" data_block=\"{data}\" time=\"{time}\"/>")
}

/// Says of every volume that it was last snapshotted then.
fn put_snapshotted(image: &mut Image, time: u32) {
    let details = image.superblock().details_root.0;
    for index in 0..image.entries_of(details) {
        image.put_u32(details, image.value_offset(details, index) + SNAPSHOTTED, time);
    }
}

fn findings(image: &Image) -> Vec<String> {
    let report = image.check().unwrap();
    let of_mappings = report.findings.iter().filter(|finding| finding.place.starts_with("mappings of"));
    of_mappings
        .map(|finding| format!("{}: {} {:?}", finding.place, finding.message, finding.touches))
        .collect()
}

#[test]
fn a_block_that_a_volume_has_twice_as_its_own_is_found_and_a_build_marks_it() {
    let twice = mapping(0, 5, 0) + &mapping(1, 6, 1) + &mapping(7, 5, 0);
    let (mut image, built) = built(&device(1, 3, 0, &twice));
    assert_eq!(built.disputed, Some(5));
    assert_eq!(image.check().unwrap().verdict, Verdict::Clean);
    let report = image.check().unwrap();
    assert_eq!((report.superblock.time, report.volumes[0].snapshotted_time), (2, 2));

    put_snapshotted(&mut image, 1);
    assert_eq!(
        image.check().unwrap().verdict,
        Verdict::Clean,
        "older than the last snapshot: a write copies"
    );
    put_snapshotted(&mut image, 0);
    let found = findings(&image);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with(
            "mappings of volume 1: virtual block 0 (and 1 more) is mapped, with 5, to a data block that others refer to: volume 1, last \
             snapshotted at 0, would write to it in place"
        ),
        "{found:#?}"
    );
    assert!(found[0].contains("begin: 0, end: Some(8)"), "{found:#?}");
}

#[test]
fn a_block_of_another_volume_is_nobodys_own() {
    let volumes = device(1, 1, 1, &mapping(3, 9, 0)) + &device(2, 1, 0, &mapping(4, 9, 0));
    let (mut image, built) = built(&volumes);
    assert_eq!(built.disputed, Some(9));
    assert_eq!(image.check().unwrap().verdict, Verdict::Clean);
    put_snapshotted(&mut image, 0);
    let found = findings(&image);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("mappings of volume 1: virtual block 3 is mapped, with 9"), "{found:#?}");
    assert!(found[1].starts_with("mappings of volume 2: virtual block 4 is mapped, with 9"), "{found:#?}");
}

#[test]
fn a_leaf_of_another_volume_is_nobodys_own() {
    let sound = part(200) + &device(1, 200, 1, REFERENCE) + &device(2, 200, 1, REFERENCE);
    let (mut image, made) = built(&sound);
    assert_eq!(made.disputed, None);
    assert_eq!(image.check().unwrap().verdict, Verdict::Clean);
    put_snapshotted(&mut image, 0);
    let found = findings(&image);
    assert_eq!(found.len(), 1, "once, with everybody who has it: {found:#?}");
    assert!(
        found[0].starts_with(
            "mappings of volume 1: 2 references to it, and a mapping in it is of time 0: volume 1, last snapshotted at 0, would write \
             to its data in place"
        ),
        "{found:#?}"
    );
    assert_eq!(found[0].matches("volume: ").count(), 2, "{found:#?}");
}

#[test]
fn a_build_marks_shared_parts_of_every_size_that_count_as_somebodys_own() {
    for size in [1, 20, 83, 84, 200, 252, 300] {
        let part = part(size);
        let both = device(1, size, 0, REFERENCE) + &device(2, size, 1, REFERENCE);
        let (image, made) = built(&(part.clone() + &both));
        assert!(made.disputed.is_some(), "{size}");
        assert_eq!(image.check().unwrap().verdict, Verdict::Clean, "{size}");
        let (image, made) = built(&(part + &device(1, size, 0, REFERENCE)));
        assert_eq!(made.disputed, None, "only one volume has it: {size}");
        let report = image.check().unwrap();
        assert_eq!((report.verdict, report.superblock.time), (Verdict::Clean, 1), "{size}");
    }
}

#[test]
fn at_the_end_of_time_a_build_marks_what_it_can() {
    let twice = device(1, 2, 0, &(mapping(0, 5, 0) + &mapping(1, 5, 0)));
    let disk = MemoryDisk::zeroed(1 << 20);
    let mut builder = Builder::new(&disk, Overrides::default());
    restore(&mut pool(&twice, SnapTime::MAX.0).as_bytes(), &mut builder).unwrap();
    let report = Image::of(&disk).check().unwrap();
    assert_eq!((report.verdict, report.superblock.time), (Verdict::Clean, u64::from(SnapTime::MAX.0)));
}

#[test]
fn a_volume_of_the_future_is_refused() {
    let disk = MemoryDisk::zeroed(1 << 20);
    let mut builder = Builder::new(&disk, Overrides::default());
    let xml = pool(&device(1, 1, 2, &mapping(0, 0, 0)), 1);
    let error = restore(&mut xml.as_bytes(), &mut builder).unwrap_err();
    assert!(error.message().contains("at a time after the pool's own"), "{error}");
}

#[test]
fn the_kernels_snapshots_with_their_times_taken_away_are_found() {
    for name in ["04", "05"] {
        let mut image = Image::fixture(name);
        assert_eq!(image.check().unwrap().verdict, Verdict::Clean, "{name}");
        put_snapshotted(&mut image, 0);
        assert_eq!(image.check().unwrap().verdict, Verdict::Damage, "{name}");
    }
}
