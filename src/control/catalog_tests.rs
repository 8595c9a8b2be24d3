//! Tests of the catalog: bytes in, bytes out, damage.

use super::*;
use proptest::prelude::*;

fn entry(name: &str, id: u64) -> VolumeEntry {
    VolumeEntry {
        name: VolumeName::parse(name).expect("a name"),
        id: VolumeId::new(id).expect("a number"),
        size_bytes: 1 << 30,
        created_unix_seconds: Some(1_700_000_000),
        created_in_transaction: Some(1),
        origin: None,
        labels: Labels::new(),
        read_only: false,
        external_origin: None,
    }
}

fn sample() -> Catalog {
    let mut catalog = Catalog::empty(TransactionId(6));
    catalog.insert(entry("b", 3));
    catalog.insert(VolumeEntry { origin: VolumeId::new(3), ..entry("a", 1) });
    catalog.insert(entry("5", 5));
    catalog.deleting.insert(VolumeId::new(4).expect("a number"));
    catalog.pending = Some(Pending {
        transaction_id: 7,
        operation: Operation::Snapshot(vec![entry("s", 6), entry("t", 7)]),
    });
    catalog
}

fn parse(text: &str) -> Result<Catalog> {
    Catalog::parse(text.as_bytes(), Path::new("p/catalog.json"))
}

#[test]
fn what_is_written_is_read_back() {
    let catalog = sample();
    let ids: Vec<_> = catalog.volumes.iter().map(|entry| entry.id.get()).collect();
    assert_eq!(ids, [1, 3, 5], "in order of numbers");
    assert_eq!(Catalog::parse(&catalog.to_bytes(), Path::new("x")), Ok(catalog));
}

#[test]
fn wrong_bytes_are_refused_with_their_place() {
    let error = parse("{\n  \"schema\": 1,\n  oops").expect_err("no JSON");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.message().contains("p/catalog.json: ") && error.message().contains("line 3 column 3"),
        "{error}"
    );
    assert!(error.next_step().is_some());
    let good = String::from_utf8(sample().to_bytes()).expect("JSON is text");
    for (from, to, says) in [
        ("\"transaction_id\": 6", "\"transaction_id\": -6", "line 3"),
        ("\"transaction_id\": 6", "\"transaction_id\": 6, \"extra\": 1", "unknown field `extra`"),
        ("\"id\": 3", "\"id\": 16777216", "16777216 is no volume number"),
        ("\"id\": 3", "\"id\": 1", "two volumes have the number 1"),
        ("\"name\": \"b\"", "\"name\": \"a\"", "two volumes are called `a`"),
        ("\"name\": \"b\"", "\"name\": \"../b\"", "no name for a volume"),
        ("\"name\": \"5\"", "\"name\": \"6\"", "the number of another"),
        ("\"size_bytes\": 1073741824", "\"size_bytes\": 1073741825", "not a multiple of 512"),
        ("    4\n", "    3\n", "both in use and being deleted"),
        ("\"transaction_id\": 7", "\"transaction_id\": 9", "the one after 6 was expected"),
        ("\"id\": 6", "\"id\": 4", "exists already"),
        ("\"schema\": 1", "\"schema\": 0", "version 0"),
        ("\"schema\": 1", "\"schema\": \"x\"", "line 2"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = parse(&good.replacen(from, to, 1)).expect_err(to);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{to}");
        assert!(error.message().contains(says), "{to}: {error}");
    }
}

#[test]
fn a_newer_layout_is_refused_whatever_else_it_holds() {
    let error = parse("{\"schema\": 3, \"entries\": {}}").expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("version 3"), "{error}");
}

#[test]
fn numbers_are_used_again_as_late_as_possible() {
    let mut catalog = sample();
    let next = |catalog: &Catalog, count| {
        catalog.free_ids(count).map(|ids| ids.into_iter().map(VolumeId::get).collect::<Vec<_>>())
    };
    assert_eq!(next(&catalog, 2), Ok(vec![6, 7]));
    catalog.next_volume_id = VolumeId::MAX.get();
    assert_eq!(next(&catalog, 4), Ok(vec![VolumeId::MAX.get(), 0, 2, 6]));
    catalog.next_volume_id = u64::MAX;
    assert_eq!(next(&catalog, 1).map(|ids| ids.len()), Ok(1));
    // Once around, it goes on behind the last one: it does not look at all the others again.
    catalog.next_volume_id = VolumeId::MAX.get();
    for id in [VolumeId::MAX.get(), 0, 2, 6] {
        assert_eq!(next(&catalog, 1), Ok(vec![id]));
        catalog.insert(entry(&format!("v{id}"), id));
    }
    assert_eq!(catalog.next_volume_id, 7);
}

#[test]
fn the_pending_operation_is_brought_in() {
    let mut catalog = sample();
    assert_eq!(catalog.apply_pending().as_deref(), Some("creation of snapshot `s`, `t`"));
    assert_eq!((catalog.transaction_id, catalog.volumes.len(), catalog.next_volume_id), (7, 5, 8));
    catalog.pending = Some(Pending {
        transaction_id: 8,
        operation: Operation::Delete(VolumeName::parse("s").expect("a name")),
    });
    assert!(catalog.apply_pending().is_some());
    assert!(catalog.by_id(VolumeId::new(6).expect("a number")).is_none());
    assert!(catalog.deleting.contains(&VolumeId::new(6).expect("a number")));
    assert_eq!(catalog.apply_pending(), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Catalog::parse(&bytes, Path::new("x"));
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0usize..2000, byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = sample().to_bytes();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if let Ok(catalog) = Catalog::parse(&bytes, Path::new("x")) {
            prop_assert_eq!(catalog.check(), Ok(()));
            let mut applied = catalog;
            applied.apply_pending();
            prop_assert_eq!(applied.check(), Ok(()), "a sound catalog stays sound");
        }
    }
}
