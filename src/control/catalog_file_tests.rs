//! Tests of the catalog's files: what was kept is read back, whatever a crash or a full filesystem does to them.

use super::super::catalog::{Operation, Pending};
use super::super::label::Labels;
use super::super::name::VolumeName;
use super::super::options::PoolOptions;
use super::*;
use crate::error::ErrorKind;
use crate::units::{TransactionId, VolumeId};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;

fn id(raw: u64) -> VolumeId {
    VolumeId::new(raw).expect("a number")
}

fn entry(name: &str, number: u64) -> VolumeEntry {
    VolumeEntry {
        name: VolumeName::parse(name).expect("a name"),
        id: id(number),
        size_bytes: 1 << 30,
        created_unix_seconds: Some(1_700_000_000),
        created_in_transaction: Some(1),
        origin: None,
        labels: Labels::new(),
        read_only: false,
        external_origin: None,
    }
}

fn begin(catalog: &Catalog, operation: Operation) -> Change {
    Change::Begin(Pending { transaction_id: catalog.transaction_id + 1, operation })
}

/// A directory for the files, and the catalog as it is in memory.
struct Kept {
    directory: tempfile::TempDir,
    store: LoggedCatalog,
    catalog: Catalog,
}

impl Kept {
    fn new(log_bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = CatalogFile::at(directory.path().join("catalog.json"));
        let catalog = Catalog::empty(TransactionId(0));
        file.save(&catalog).expect("saved");
        let store = LoggedCatalog { log_bytes_min: log_bytes, ..LoggedCatalog::new(file) };
        Kept { directory, store, catalog }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn keep(&mut self, changes: &[Change], durability: Durability) {
        self.store.keep(&self.catalog, changes, durability).expect("kept");
        changes.iter().for_each(|change| self.catalog.apply(change).expect("it can be made"));
    }

    /// The two steps of the catalog in an operation.
    fn carry_out(&mut self, operation: Operation) {
        let begin = begin(&self.catalog, operation);
        self.keep(&[begin], Durability::Now);
        self.keep(&[Change::Done], Durability::WithTheNext);
    }

    fn create(&mut self, name: &str, number: u64) {
        self.carry_out(Operation::Create(entry(name, number)));
    }

    fn load(&self) -> Result<Loaded> {
        self.store.file.load().map(|loaded| loaded.expect("there is a catalog"))
    }

    fn loaded(&self) -> Catalog {
        self.load().expect("it is sound").catalog
    }

    fn log(&self) -> Vec<u8> {
        fs::read(self.path("catalog.log")).expect("there is a log")
    }
}

/// Where the lines of a log end.
fn ends(log: &[u8]) -> Vec<usize> {
    log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect()
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = CatalogFile::at(directory.path().join("catalog.json"));
    assert_eq!(file.load(), Ok(None));
    let mut catalog = Catalog::empty(TransactionId(1));
    file.save(&catalog).expect("saved");
    catalog.insert(entry("a", 3));
    file.save(&catalog).expect("saved over");
    assert_eq!(file.load(), Ok(Some(Loaded { catalog, changes_in_log: None })));
}

#[test]
fn a_replacement_that_fails_leaves_the_old_file() {
    let mut kept = Kept::new(4096);
    fs::remove_file(kept.path("catalog.json.new")).expect("there is a reserve");
    fs::create_dir(kept.path("catalog.json.new")).expect("in the way of the new file");
    let change = begin(&kept.catalog, Operation::Create(entry("a", 0)));
    let error = kept.store.file.save(&Catalog::empty(TransactionId(1))).expect_err("in the way");
    assert_eq!(error.kind(), ErrorKind::Io);
    kept.store.keep(&kept.catalog, &[change], Durability::Now).expect_err("there is no log yet");
    assert_eq!(kept.loaded(), kept.catalog);
    fs::remove_dir(kept.path("catalog.json.new")).expect("removed");
    kept.create("a", 0);
    assert_eq!(kept.loaded(), kept.catalog);
}

#[test]
fn backups_keep_what_was_lost_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = CatalogFile::at(directory.path().join("catalog.json"));
    file.save_backup(&Catalog::empty(TransactionId(6)), &[entry("x", 8)]).expect("saved");
    file.save_backup(&Catalog::empty(TransactionId(9)), &[entry("x", 8), entry("y", 9)]).expect("saved");
    let bytes = fs::read(directory.path().join("catalog.json.bak")).expect("written");
    let backup: Backup = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(backup.lost, [entry("x", 8), entry("y", 9)]);
    assert_eq!(backup.replaced.transaction_id, 9);
}

#[test]
fn the_file_stays_as_it_is_while_the_log_grows_and_says_everything_at_the_end() {
    let mut kept = Kept::new(LOG_BYTES_MIN);
    kept.create("v", 0);
    let whole = fs::read(kept.path("catalog.json")).expect("there");
    for number in 1..200 {
        kept.create(&format!("s{number}"), number);
    }
    assert_eq!(fs::read(kept.path("catalog.json")).expect("there"), whole, "nothing is rewritten");
    let loaded = kept.load().expect("sound");
    assert_eq!((loaded.changes_in_log, &loaded.catalog), (Some(199 * 2 + 1), &kept.catalog));
    kept.store.finish(&kept.catalog).expect("finished");
    assert!(!kept.path("catalog.log").exists());
    assert_eq!(kept.load(), Ok(Loaded { catalog: kept.catalog.clone(), changes_in_log: None }));
    let text = fs::read_to_string(kept.path("catalog.json")).expect("text");
    assert!(
        text.contains("\"schema\": 1") && !text.contains("\"log\""),
        "it can be read by who knows no log"
    );
}

#[test]
fn a_log_that_is_full_begins_anew_and_what_it_held_before_means_nothing() {
    let mut kept = Kept::new(4096);
    let mut generations = BTreeSet::new();
    for number in 0..300 {
        kept.create(&format!("v{number}"), number);
        if number > 60 {
            kept.carry_out(Operation::Delete(
                VolumeName::parse(&format!("v{}", number - 50)).expect("a name"),
            ));
            kept.keep(&[Change::Freed(BTreeSet::from([id(number - 50)]))], Durability::Now);
        }
        assert_eq!(kept.loaded(), kept.catalog, "{number}");
        let whole: serde_json::Value =
            serde_json::from_slice(&fs::read(kept.path("catalog.json")).expect("there")).expect("JSON");
        generations.insert(whole["log"].as_u64().expect("there is a log"));
    }
    assert!(generations.len() > 5, "{generations:?}");
    // As after a crash between the new whole and the first line: all lines are of another generation.
    let path = kept.path("catalog.json");
    let text = fs::read_to_string(&path).expect("text");
    let last = generations.last().expect("there is one");
    fs::write(&path, text.replace(&last.to_string(), &(last + 1).to_string())).expect("written");
    let loaded = kept.load().expect("sound");
    assert_eq!(loaded.changes_in_log, Some(0));
    assert_eq!(
        loaded.catalog,
        Catalog::parse(text.as_bytes(), &path)
            .map(|mut whole| {
                whole.take_log();
                whole
            })
            .expect("sound")
    );
}

#[test]
fn a_line_that_is_torn_at_any_byte_is_the_end() {
    let mut kept = Kept::new(4096);
    kept.create("a", 0);
    let before = kept.catalog.clone();
    let begin = begin(&kept.catalog, Operation::Create(entry("b", 1)));
    kept.keep(&[begin], Durability::Now);
    let log = kept.log();
    let [.., start, end] = ends(&log)[..] else { panic!("there are two lines") };
    let path = kept.path("catalog.log");
    for at in start..end {
        // What is behind has not been written: zeros, or what was there before.
        for behind in [&[0][..], b"}", b"\n"] {
            let mut torn = log.clone();
            torn[at..end].iter_mut().enumerate().for_each(|(i, byte)| *byte = behind[i % behind.len()]);
            if torn == log {
                continue;
            }
            fs::write(&path, &torn).expect("written");
            assert_eq!(kept.loaded(), before, "{at}");
            fs::write(&path, &torn[..at]).expect("written");
            assert_eq!(kept.loaded(), before, "{at}");
        }
    }
    fs::write(&path, &log[..end]).expect("written");
    assert_eq!(kept.loaded(), kept.catalog);
}

#[test]
fn what_no_crash_can_have_torn_is_damage() {
    let mut kept = Kept::new(8192);
    for (name, number) in [("a", 0), ("b", 1), ("c", 2)] {
        kept.create(name, number);
    }
    let log = kept.log();
    // Done, begin, done, begin, done: each begin was synced, and with it what was before.
    let ends = ends(&log);
    assert_eq!(ends.len(), 5);
    let path = kept.path("catalog.log");
    let mut start = 0;
    for (line, end) in ends.iter().enumerate() {
        for at in [start, start + 8, (start + end) / 2, end - 2] {
            let mut damaged = log.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).expect("written");
            let loaded = kept.load();
            // The first three were durable when the last was written.
            let is_told = line < 4 && kept_says(&loaded, &format!("line {} is damaged", line + 1));
            assert!(is_told || (line >= 3 && loaded.is_ok()), "{line} {at}: {loaded:?}");
            assert_eq!(is_told, line < 4, "{line} {at}");
        }
        start = *end;
    }
    fs::remove_file(&path).expect("removed");
    let error = kept.load().expect_err("the file goes on there");
    assert!(error.kind() == ErrorKind::Corrupt && error.message().contains("no such file"), "{error}");
    assert!(error.next_step().is_some_and(|hint| hint.contains("\"log\"")), "{error}");
}

fn kept_says(loaded: &Result<Loaded>, what: &str) -> bool {
    loaded.as_ref().is_err_and(|error| {
        error.kind() == ErrorKind::Corrupt && error.message().contains(what) && error.next_step().is_some()
    })
}

#[test]
fn changes_that_cannot_be_are_told_of_with_their_line() {
    for (content, says) in [
        (
            "{\"begin\":{\"transaction_id\":7,\"operation\":{\"delete\":\"x\"}}}",
            "the one after 1 was expected",
        ),
        ("{\"begin\":{\"transaction_id\":2,\"operation\":{\"delete\":\"x\"}}}", "`x`, which does not exist"),
        ("\"dropped\"", "none was under way"),
        ("{\"freed\":[3]}", "had not begun"),
        ("{\"entries\":[{\"name\":\"b\",\"id\":9,\"size_bytes\":512}]}", "no volume 9"),
        ("\"invented\"", "unknown variant"),
    ] {
        let mut kept = Kept::new(4096);
        kept.create("a", 0);
        let log = kept.log();
        let end = ends(&log)[0];
        let generation = next_of(&log);
        let json = format!("{{\"log\":{generation},\"number\":2,\"durable\":0,\"changes\":[{content}]}}");
        let line = format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes()));
        let file = fs::OpenOptions::new().write(true).open(kept.path("catalog.log")).expect("there");
        file.write_all_at(line.as_bytes(), end as u64).expect("written");
        let loaded = kept.load();
        assert!(kept_says(&loaded, "line 2: ") && kept_says(&loaded, says), "{says}: {loaded:?}");
    }
}

/// The generation of a log's first line.
fn next_of(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(&log[16..64]).into_owned();
    text.split(',').next().expect("there is a first").to_owned()
}

#[test]
fn a_log_that_fails_is_given_up_and_the_whole_is_written_with_the_next_change() {
    let mut kept = Kept::new(4096);
    kept.create("a", 0);
    let was = kept.catalog.clone();
    {
        // A file that takes no writes.
        let mut state = kept.store.state.lock().expect("whole");
        let State::Log(open) = std::mem::replace(&mut *state, State::Unknown) else {
            panic!("there is a log")
        };
        *state = State::Log(Open { log: open.log.failing(), ..open });
    }
    let change = begin(&kept.catalog, Operation::Create(entry("b", 1)));
    let error = kept.store.keep(&kept.catalog, &[change], Durability::Now).expect_err("it cannot be written");
    assert!(error.message().contains("catalog.log") && error.next_step().is_some(), "{error}");
    assert_eq!(kept.loaded(), was);
    let generation = next_of(&kept.log());
    kept.create("c", 1);
    assert_eq!(kept.loaded(), kept.catalog);
    assert_ne!(next_of(&kept.log()), generation);
}

#[test]
fn every_generation_is_higher_than_what_the_file_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("catalog.log");
    let now = next_generation(&path);
    assert!(now > 1_700_000_000_000_000, "microseconds since 1970");
    fs::write(&path, "00000000 {\"log\":9000000000000000,\"numb").expect("written");
    assert_eq!(next_generation(&path), 9_000_000_000_000_001);
    for text in ["", "00000000 {\"log\":", "00000000 {\"log\":x", "00000000 {\"log\":99999999999999999999,"] {
        fs::write(&path, text).expect("written");
        assert!((now..now + 1_000_000_000).contains(&next_generation(&path)), "{text}");
    }
}

#[test]
fn the_whole_that_a_log_leads_to_has_its_space() {
    use std::os::unix::fs::MetadataExt;
    let mut kept = Kept::new(LOG_BYTES_MIN);
    let allocated = |path: PathBuf| fs::metadata(path).expect("there").blocks() * 512;
    for number in 0..600 {
        kept.create(&format!("volume-{number}"), number);
        if number % 50 == 0 {
            let whole_bytes = kept.catalog.to_bytes().len() as u64;
            assert!(allocated(kept.path("catalog.json.new")) >= whole_bytes, "{number}");
            assert!(allocated(kept.path("catalog.json")) >= whole_bytes, "{number}: the one after");
        }
    }
}

/// A change, made of numbers as it fits the catalog; `None` if it does not.
fn change_of(catalog: &Catalog, kind: u8, which: u64) -> Option<Vec<Change>> {
    let name = |which: u64| VolumeName::parse(&format!("v{}", which % 12)).expect("a name");
    let known = catalog.find(&name(which)).cloned();
    let free = |count| catalog.free_ids(count).expect("there are many");
    let changes = match (kind % 7, &catalog.pending) {
        (0, Some(_)) => vec![Change::Done],
        (1, Some(_)) => vec![Change::Dropped],
        (2, _) if known.is_none() => {
            vec![begin(
                catalog,
                Operation::Create(VolumeEntry { name: name(which), ..entry("x", free(1)[0].get()) }),
            )]
        }
        (3, _) => vec![begin(catalog, Operation::Delete(known?.name))],
        (4, _) => {
            let renamed = VolumeEntry { name: name(which / 12), ..known? };
            let taken = catalog.find(&renamed.name).is_some();
            // What the pending operation is about stays as it is: changes come one after the other.
            if taken || catalog.pending.is_some() {
                return None;
            }
            vec![Change::Entries(vec![renamed])]
        }
        (5, None) => vec![Change::Freed(catalog.deleting.clone())],
        (6, _) => {
            vec![Change::Options(PoolOptions { zero_new_blocks: which.is_multiple_of(2), ..catalog.options })]
        }
        _ => return None,
    };
    Some(changes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever changes come, and wherever the log ends and begins anew: what is read is what is in memory.
    #[test]
    fn what_is_in_memory_is_what_is_kept(
        steps in proptest::collection::vec((any::<u8>(), 0u64..144, any::<bool>()), 1..120),
        log_bytes in 300u64..3000,
    ) {
        let mut kept = Kept::new(log_bytes);
        for (kind, which, now) in steps {
            let Some(changes) = change_of(&kept.catalog, kind, which) else { continue };
            kept.keep(&changes, if now { Durability::Now } else { Durability::WithTheNext });
            prop_assert_eq!(&kept.loaded(), &kept.catalog);
        }
        kept.store.finish(&kept.catalog).expect("finished");
        prop_assert_eq!(kept.load().expect("sound"), Loaded { catalog: kept.catalog, changes_in_log: None });
    }

    #[test]
    fn no_log_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..4096) {
        let mut kept = Kept::new(4096);
        kept.create("a", 0);
        kept.create("b", 1);
        let mut log = kept.log();
        let at = at.min(log.len() - bytes.len());
        log[at..at + bytes.len()].copy_from_slice(&bytes);
        fs::write(kept.path("catalog.log"), log).expect("written");
        let _ = kept.load();
    }
}
