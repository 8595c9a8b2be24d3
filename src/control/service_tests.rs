//! The three-step protocol under crashes and failures at every step, against metadata made of plain maps.

use super::super::label::Labels;
use super::super::reconcile::{FoundVolume, reconcile};
use super::*;
use crate::metadata::{Usage, VolumeDetails};
use crate::units::{BlockSize, SnapTime};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What survives a crash: the catalog's files and the metadata's last commit.
#[derive(Clone, Default)]
struct Disks {
    catalog: Vec<u8>,
    /// What has changed since, and how much of it is durable.
    log: Vec<Vec<Change>>,
    durable: usize,
    id: u64,
    volumes: BTreeMap<VolumeId, u64>,
    /// Being deleted.
    dying: BTreeSet<VolumeId>,
    /// Of these, gone in core, and with the next commit on disk.
    gone_in_core: BTreeSet<VolumeId>,
}

impl Disks {
    fn commit(&mut self) {
        for id in std::mem::take(&mut self.gone_in_core) {
            self.volumes.remove(&id);
            self.dying.remove(&id);
        }
    }

    /// Without what a power cut takes.
    fn after_power_cut(&self) -> Disks {
        Disks { log: self.log[..self.durable].to_vec(), ..self.clone() }
    }

    fn loaded(&self) -> Option<Catalog> {
        let whole = (!self.catalog.is_empty()).then(|| {
            Catalog::parse(&self.catalog, Path::new("catalog")).expect("only sound catalogs are stored")
        });
        let mut catalog = whole?;
        for change in self.log.iter().flatten() {
            catalog.apply(change).expect("only what fits is kept");
        }
        Some(catalog)
    }

    fn save(&mut self, catalog: &Catalog) {
        self.catalog = catalog.to_bytes();
        (self.log, self.durable) = (vec![], 0);
    }
}

/// Which of the calls to disk or keeper goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Fault {
    at_call: usize,
    /// The call does its work and fails all the same.
    takes_effect: bool,
    /// Everything fails from then on; else only this call does.
    fatal: bool,
}

struct World {
    disks: Disks,
    fault: Option<Fault>,
    calls: usize,
    failed: bool,
    /// The log has failed, or there is none.
    log_failed: bool,
    in_use: BTreeSet<VolumeId>,
    finish_deletions: bool,
}

type Shared = Arc<Mutex<World>>;

impl World {
    fn shared(disks: Disks, fault: Option<Fault>) -> Shared {
        let world = World {
            disks,
            fault,
            calls: 0,
            failed: false,
            log_failed: true,
            in_use: BTreeSet::new(),
            finish_deletions: false,
        };
        Arc::new(Mutex::new(world))
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut Disks) -> Result<T>) -> Result<T> {
        let broken = || Error::new(ErrorKind::Io, "the disk is on fire");
        if self.failed {
            return Err(broken());
        }
        let call = self.calls;
        self.calls += 1;
        match self.fault {
            Some(fault) if fault.at_call == call => {
                self.failed = fault.fatal;
                if fault.takes_effect {
                    let _ = work(&mut self.disks);
                }
                Err(broken())
            }
            _ => work(&mut self.disks),
        }
    }
}

struct Keeper(Shared);
struct Store(Shared);

impl CatalogStore for Store {
    fn keep(&self, catalog: &Catalog, changes: &[Change], durability: Durability) -> Result<()> {
        let mut world = self.0.lock().expect("whole");
        let writes_whole = std::mem::replace(&mut world.log_failed, true);
        world.attempt(|disks| {
            if writes_whole {
                let mut catalog = catalog.clone();
                changes.iter().for_each(|change| catalog.apply(change).expect("it fits"));
                disks.save(&catalog);
            } else {
                disks.log.push(changes.to_vec());
                if durability == Durability::Now {
                    disks.durable = disks.log.len();
                }
            }
            Ok(())
        })?;
        world.log_failed = false;
        Ok(())
    }

    fn finish(&self, catalog: &Catalog) -> Result<()> {
        self.0.lock().expect("whole").attempt(|disks| {
            disks.save(catalog);
            Ok(())
        })
    }
}

fn step_id(disks: &mut Disks, step: Option<IdStep>) -> Result<()> {
    let Some(step) = step else { return Ok(()) };
    if disks.id != step.from.0 {
        return Err(Error::new(ErrorKind::Invalid, "wrong transaction id"));
    }
    disks.id = step.to.0;
    disks.commit();
    Ok(())
}

impl Executor for Keeper {
    fn run(&self, command: Command) -> Result<Answer> {
        let mut world = self.0.lock().expect("whole");
        let in_use = world.in_use.clone();
        let finished = world.finish_deletions;
        match command {
            Command::CreateVolume { volume, step, .. } => world.attempt(|disks| {
                assert!(!disks.volumes.contains_key(&volume), "a number in use is never given out");
                let created = disks.id;
                step_id(disks, Some(step))?;
                disks.volumes.insert(volume, created);
                Ok(Answer::Done)
            }),
            Command::Snapshot { pairs, step } => world.attempt(|disks| {
                step_id(disks, Some(step))?;
                for (origin, snapshot) in pairs {
                    assert!(disks.volumes.contains_key(&origin) && !disks.dying.contains(&origin));
                    assert!(disks.volumes.insert(snapshot, disks.id).is_none());
                }
                Ok(Answer::Done)
            }),
            Command::RollBack { volume, to, keep, step } => world.attempt(|disks| {
                step_id(disks, Some(step))?;
                assert!(disks.volumes.contains_key(&volume) && disks.volumes.contains_key(&to));
                assert!(disks.volumes.insert(keep, disks.id).is_none());
                Ok(Answer::Done)
            }),
            Command::Resize { .. }
            | Command::SetOrigin { .. }
            | Command::Unmap { .. }
            | Command::Grow { .. }
            | Command::Configure(_)
            | Command::ConfigureVolume { .. }
            | Command::HoldMetadata
            | Command::ReleaseMetadata => world.attempt(|_| Ok(Answer::Done)),
            Command::SetTransactionId(step) => world.attempt(|disks| {
                step_id(disks, Some(step))?;
                Ok(Answer::Done)
            }),
            Command::Delete { volume, step } => world.attempt(|disks| {
                if in_use.contains(&volume) {
                    return Err(Error::new(ErrorKind::Busy, "open"));
                }
                if !disks.volumes.contains_key(&volume) {
                    return Err(Error::new(ErrorKind::NotFound, "no such volume"));
                }
                step_id(disks, step)?;
                disks.dying.insert(volume);
                if finished {
                    disks.volumes.remove(&volume);
                    disks.dying.remove(&volume);
                }
                Ok(Answer::Deleting { finished })
            }),
            Command::Settle(_) => Ok(Answer::Settling(engine::Settling::GetsOn)),
            Command::Status => Ok(Answer::Status(Box::new(status_of(&world)))),
            Command::CountShared => Ok(Answer::Counting(false)),
            Command::Volumes if world.failed => Err(Error::new(ErrorKind::Failed, "failed stop")),
            Command::Volumes => Ok(Answer::Volumes(
                world
                    .disks
                    .volumes
                    .iter()
                    .filter(|(id, _)| !world.disks.dying.contains(id))
                    .map(|(id, created)| info_of(*id, *created, in_use.contains(id).into()))
                    .collect(),
            )),
            Command::Commit | Command::Close => world.attempt(|disks| {
                disks.commit();
                Ok(Answer::Done)
            }),
        }
    }
}

fn info_of(id: VolumeId, created: u64, openers: u32) -> engine::VolumeInfo {
    engine::VolumeInfo {
        id,
        size_bytes: 1 << 20,
        details: VolumeDetails {
            mapped_blocks: 3,
            transaction_id: TransactionId(created),
            creation_time: SnapTime(0),
            snapshotted_time: SnapTime(0),
        },
        highest_mapped: None,
        openers,
        lacks_origin: false,
        when_full: None,
        queue_expired: false,
        waiting_for_space: 0,
        sharing: None,
    }
}

fn status_of(world: &World) -> PoolStatus {
    let failed = Error::new(ErrorKind::Failed, "failed stop");
    PoolStatus {
        mode: if world.failed { engine::Mode::Failed(failed) } else { engine::Mode::Write },
        needs_check: false,
        transaction_id: TransactionId(world.disks.id),
        time: SnapTime(0),
        block_size: BlockSize::MIN,
        usage: Usage {
            metadata_total: 1024,
            metadata_allocated: 70,
            metadata_reserve: 102,
            data_total: 1000,
            data_allocated: 10,
        },
        out_of_metadata_space: false,
        times_full: engine::TimesFull::default(),
        held_root: None,
        discard: engine::Discard::Passdown,
        to_give_back: 0,
        zero_new_blocks: true,
        small_writes: engine::SmallWrites::Copy,
        partial_blocks: 0,
        when_full: engine::WhenFull::Error,
        queue_expired: false,
        waiting_for_space: 0,
        volumes: world.disks.volumes.len() - world.disks.dying.len(),
        deleting: world.disks.dying.difference(&world.disks.gone_in_core).copied().collect(),
        counts: 0,
        map_bytes: 0,
        journal: engine::JournalStatus::Off,
        removed: engine::Removed::default(),
    }
}

/// As a process does it that starts after a crash: what was being deleted is forgotten until somebody goes on with it.
fn open(disks: &Disks, fault: Option<Fault>) -> (Shared, Service) {
    let mut disks = disks.clone();
    disks.dying.clear();
    disks.gone_in_core.clear();
    let loaded = disks.loaded();
    let found: Vec<_> = disks
        .volumes
        .iter()
        .map(|(id, created)| FoundVolume { id: *id, created: TransactionId(*created) })
        .collect();
    let reconciled = reconcile(loaded, TransactionId(disks.id), &found, BlockSize::MIN, &mut |_| Ok(None))
        .expect("it can be read");
    assert!(
        reconciled.lost.is_empty() && !reconciled.keep_copy,
        "no crash loses a name: {:?}",
        reconciled.notes
    );
    let world = World::shared(disks, None);
    let service = Service::new(Parts {
        path: PathBuf::from("/pools/p"),
        executor: Box::new(Keeper(world.clone())),
        store: Box::new(Store(world.clone())),
        catalog: reconciled.catalog,
        notes: reconciled.notes,
    });
    service.resume_deletions().expect("nothing is broken yet");
    let mut inside = world.lock().expect("whole");
    (inside.fault, inside.calls) = (fault, 0);
    drop(inside);
    (world, service)
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).expect("a name")
}

fn create(text: &str) -> CreateVolume {
    CreateVolume { name: name(text), size_bytes: Some(1 << 20), labels: Labels::new(), external_origin: None }
}

fn pair(origin: &str, new: &str) -> SnapshotPair {
    SnapshotPair { origin: name(origin), name: name(new), read_only: false }
}

fn names(service: &Service) -> Vec<String> {
    let listed: Vec<_> = service
        .volumes()
        .expect("it can be listed")
        .volumes
        .into_iter()
        .map(|volume| volume.name.to_string())
        .collect();
    assert_eq!(listed, service.volume_names(), "what has a name is there, and the other way round");
    listed
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Snapshot(usize, usize),
    /// A volume, the one whose contents it gets, and a name for what it held.
    RollBack(usize, usize, usize),
    Delete(usize),
    Rename(usize, usize),
    /// The volume of the last number, made by message.
    MessageCreate,
    /// And deleted.
    MessageDelete,
    /// The background work of deletions gets through, without a commit.
    Background,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// A number that no volume gets by itself.
const LAST: &str = "16777215";

fn message(service: &Service, text: &str) -> Result<()> {
    let before = service.status()?.transaction_id;
    service.message(&MessageRequest { message: format!("{text} {LAST}"), size_bytes: None })?;
    assert_eq!(service.status()?.transaction_id, before, "the id is the sender's");
    Ok(())
}

fn perform(world: &Shared, service: &Service, step: &Step) -> Result<()> {
    match step {
        Step::Background => {
            let disks = &mut world.lock().expect("whole").disks;
            disks.gone_in_core = disks.dying.clone();
            Ok(())
        }
        Step::Create(new) => service.create(&create(NAMES[*new])).map(drop),
        Step::MessageCreate => message(service, "create_thin"),
        Step::MessageDelete => message(service, "delete"),
        Step::Snapshot(origin, new) => service.snapshot(&pair(NAMES[*origin], NAMES[*new])).map(drop),
        Step::RollBack(volume, to, keep) => {
            let keep = Some(name(NAMES[*keep]));
            let request = RollBackVolume { to: name(NAMES[*to]), keep, force: false };
            service.roll_back(&name(NAMES[*volume]), &request).map(drop)
        }
        Step::Delete(old) => service.delete(&name(NAMES[*old])).map(drop),
        Step::Rename(old, new) => {
            service.rename(&name(NAMES[*old]), &RenameVolume { name: name(NAMES[*new]) }).map(drop)
        }
    }
}

/// What the names are after the step, if it can be done.
fn expected(before: &[String], step: &Step) -> Option<Vec<String>> {
    let has = |index: &usize| before.iter().any(|name| name == NAMES[*index]);
    let mut after: BTreeSet<String> = before.iter().cloned().collect();
    match step {
        Step::Background => true,
        Step::MessageCreate => after.insert(LAST.to_owned()),
        Step::MessageDelete => after.remove(LAST),
        Step::Create(new) => !has(new) && after.insert(NAMES[*new].to_owned()),
        Step::Snapshot(origin, new) => has(origin) && !has(new) && after.insert(NAMES[*new].to_owned()),
        Step::RollBack(volume, to, keep) => {
            let can = volume != to && has(volume) && has(to) && !has(keep);
            can && after.insert(NAMES[*keep].to_owned())
        }
        Step::Delete(old) => after.remove(NAMES[*old]),
        Step::Rename(old, new) => {
            has(old) && !has(new) && after.remove(NAMES[*old]) && after.insert(NAMES[*new].to_owned())
        }
    }
    .then(|| after.into_iter().collect())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4usize).prop_map(Step::Create),
        3 => (0..4usize, 0..4usize).prop_map(|(origin, new)| Step::Snapshot(origin, new)),
        2 => (0..4usize, 0..4usize, 0..4usize).prop_map(|(volume, to, keep)| Step::RollBack(volume, to, keep)),
        2 => (0..4usize).prop_map(Step::Delete),
        2 => (0..4usize, 0..4usize).prop_map(|(old, new)| Step::Rename(old, new)),
        1 => Just(Step::MessageCreate),
        1 => Just(Step::MessageDelete),
        1 => Just(Step::Background),
    ];
    proptest::collection::vec(step, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever goes wrong wherever: names and volumes agree, and each operation has happened whole or not at all.
    #[test]
    fn names_and_volumes_agree_after_any_fault(
        steps in steps(),
        at_call in 0..30usize,
        takes_effect in any::<bool>(),
        fatal in any::<bool>(),
        finish_deletions in any::<bool>(),
        power_cut in any::<bool>(),
    ) {
        let crashed = |world: &Shared| {
            let disks = &world.lock().expect("whole").disks;
            if power_cut { disks.after_power_cut() } else { disks.clone() }
        };
        let (mut world, mut service) = open(&Disks::default(), Some(Fault { at_call, takes_effect, fatal }));
        world.lock().expect("whole").finish_deletions = finish_deletions;
        let mut model: Vec<String> = vec![];
        for step in &steps {
            let after = expected(&model, step);
            let result = perform(&world, &service, step);
            match (result, after) {
                (Ok(()), Some(after)) => model = after,
                // Of a number whose last owner is still being deleted.
                (Err(error), _) if matches!(step, Step::MessageCreate) && error.kind() == ErrorKind::Exists => {}
                (Ok(()), None) => prop_assert!(false, "{step:?} cannot be done"),
                (Err(error), _) if error.kind() != ErrorKind::Io && error.kind() != ErrorKind::Failed => {
                    prop_assert_eq!(expected(&model, step), None, "{:?}: {}", step, error);
                }
                (Err(_), after) => {
                    // A crash here: the next process finds the state before or after, and works on.
                    let disks = crashed(&world);
                    (world, service) = open(&disks, None);
                    let found = names(&service);
                    prop_assert!(found == model || Some(&found) == after.as_ref(), "{:?} after {:?}", found, step);
                    model = found;
                }
            }
            prop_assert_eq!(&names(&service), &model);
        }
        // A crash at the very end loses nothing either.
        prop_assert_eq!(names(&open(&crashed(&world), None).1), model);
    }
}

#[test]
fn every_call_of_every_operation_can_be_the_last() {
    for step in [Step::Create(1), Step::Snapshot(0, 1), Step::Delete(0)] {
        for (at_call, takes_effect) in [(0, false), (0, true), (1, false), (1, true), (2, false), (2, true)] {
            let (world, service) = open(&Disks::default(), None);
            service.create(&create("a")).expect("no fault");
            let disks = world.lock().expect("whole").disks.clone();
            let (world, service) = open(&disks, Some(Fault { at_call, takes_effect, fatal: true }));
            let result = perform(&world, &service, &step);
            let happened = at_call == 2 || (at_call == 1 && takes_effect);
            assert_eq!(result.is_ok(), at_call == 2, "{step:?}: durable once the metadata has it");
            let disks = world.lock().expect("whole").disks.clone();
            let after = expected(&["a".to_owned()], &step).expect("it can be done");
            let service = open(&disks, None).1;
            assert_eq!(
                names(&service),
                if happened { after } else { vec!["a".to_owned()] },
                "{step:?} {at_call}"
            );
            let interrupted = at_call > 0 || takes_effect;
            let said = !service.status().expect("a status").notes.is_empty();
            assert_eq!(
                said,
                interrupted && !(at_call == 2 && takes_effect),
                "{step:?} {at_call} {takes_effect}"
            );
        }
    }
}

/// What the third step keeps need not be durable: the metadata says as much.
#[test]
fn a_power_cut_after_an_operation_takes_nothing_of_it() {
    for step in [Step::Create(1), Step::Snapshot(0, 1), Step::Delete(0), Step::MessageCreate] {
        let (world, service) = open(&Disks::default(), None);
        service.create(&create("a")).expect("no fault");
        perform(&world, &service, &step).expect("no fault");
        let disks = world.lock().expect("whole").disks.clone();
        assert!(disks.durable < disks.log.len(), "{step:?}: the last of it waits for the next");
        let after = expected(&["a".to_owned()], &step).expect("it can be done");
        let service = open(&disks.after_power_cut(), None).1;
        assert_eq!(names(&service), after, "{step:?}");
        service.create(&create("z")).expect("the next open goes on from there");
    }
}

#[test]
fn a_rename_is_one_writing_and_no_step_of_the_id() {
    for takes_effect in [false, true] {
        let (world, service) = open(&Disks::default(), None);
        service.create(&create("a")).expect("no fault");
        let disks = world.lock().expect("whole").disks.clone();
        let (world, service) = open(&disks, Some(Fault { at_call: 0, takes_effect, fatal: true }));
        perform(&world, &service, &Step::Rename(0, 1)).expect_err("the disk is on fire");
        assert_eq!(service.volume_names(), ["a"], "what failed is not shown");
        let disks = world.lock().expect("whole").disks.clone();
        let service = open(&disks, None).1;
        assert_eq!(names(&service), if takes_effect { ["b"] } else { ["a"] });
        let status = service.status().expect("a status");
        assert_eq!((status.transaction_id, status.notes.len()), (1, 0));
    }
}

#[test]
fn a_refusal_changes_nothing_and_an_uncertain_failure_stops_all_changes() {
    let (world, service) = open(&Disks::default(), None);
    service.create(&create("a")).expect("no fault");
    world.lock().expect("whole").in_use.insert(VolumeId::new(0).expect("a number"));
    let error = service.delete(&name("a")).expect_err("it is open");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.message().contains("`a`"));
    service.create(&create("b")).expect("a refusal is no failure");
    let mut inside = world.lock().expect("whole");
    inside.fault = Some(Fault { at_call: inside.calls + 1, takes_effect: true, fatal: false });
    drop(inside);
    service.create(&create("c")).expect_err("a fault whose outcome is unknown");
    assert_eq!(service.create(&create("d")).expect_err("too late").kind(), ErrorKind::Failed);
    let disks = world.lock().expect("whole").disks.clone();
    assert_eq!(names(&open(&disks, None).1), ["a", "b", "c"]);
}

#[test]
fn unknown_and_duplicate_names_and_bad_sizes_are_refused() {
    let (_, service) = open(&Disks::default(), None);
    service.create(&create("a")).expect("no fault");
    let kind = |result: Result<NewVolume>| result.expect_err("refused").kind();
    assert_eq!(kind(service.create(&create("a"))), ErrorKind::Exists);
    assert_eq!(kind(service.create(&create("7"))), ErrorKind::Invalid);
    assert_eq!(kind(service.snapshot(&pair("x", "y"))), ErrorKind::NotFound);
    assert_eq!(kind(service.snapshot(&pair("a", "a"))), ErrorKind::Exists);
    assert_eq!(service.delete(&name("x")).expect_err("refused").kind(), ErrorKind::NotFound);
    for size_bytes in [0, 511, 513, (1 << 52) + 512, u64::MAX] {
        let result = service.create(&CreateVolume { size_bytes: Some(size_bytes), ..create("z") });
        assert_eq!(kind(result), ErrorKind::Invalid, "{size_bytes}");
    }
    assert_eq!(kind(service.create(&CreateVolume { size_bytes: None, ..create("z") })), ErrorKind::Invalid);
    service.create(&CreateVolume { size_bytes: Some(512), ..create("z") }).expect("the least");
}

#[test]
fn a_finished_deletion_is_forgotten_and_an_unfinished_one_goes_on() {
    let (world, service) = open(&Disks::default(), None);
    service.create(&create("a")).expect("no fault");
    assert!(!service.delete(&name("a")).expect("no fault").finished);
    let disks = world.lock().expect("whole").disks.clone();
    let (world, service) = open(&disks, None);
    assert_eq!(service.status().expect("a status").deleting, [0], "the next process goes on");
    {
        let mut inside = world.lock().expect("whole");
        inside.disks.gone_in_core = inside.disks.dying.clone();
    }
    service.close().expect("nothing is broken");
    assert!(world.lock().expect("whole").disks.volumes.is_empty(), "durably gone before it is forgotten");
    let disks = world.lock().expect("whole").disks.clone();
    assert!(disks.log.is_empty() && disks.loaded().expect("there is one").deleting.is_empty());
}

#[test]
fn status_and_list_say_what_the_catalog_knows() {
    let (_, service) = open(&Disks::default(), None);
    service.create(&create("b")).expect("no fault");
    let made = service.snapshot(&pair("b", "a")).expect("no fault");
    assert_eq!((made.origin, made.id, made.size_bytes), (Some(name("b")), 1, 1 << 20));
    let list = service.volumes().expect("a list").volumes;
    assert_eq!(list[0].name, name("a"), "in order of names");
    assert_eq!((list[0].origin.clone(), list[0].mapped_bytes), (Some(name("b")), Some(3 * 65_536)));
    let status = service.status().expect("a status");
    assert_eq!((status.pool.as_str(), status.path.as_str()), ("p", "/pools/p"));
    assert_eq!((status.transaction_id, status.volumes, status.virtual_bytes), (2, 2, 2 << 20));
    assert_eq!(status.metadata.free_bytes, (1024 - 70 - 102) * 4096);
    assert_eq!(status.dm_line(), "2 172/1024 10/1000 - rw discard_passdown error_if_no_space - 256 ");
    service.delete(&name("b")).expect("no fault");
    assert_eq!(
        service.volumes().expect("a list").volumes[0].origin,
        None,
        "an origin that is gone has no name"
    );
}

#[test]
fn a_failed_pool_still_tells_what_the_catalog_knows() {
    let (world, service) = open(&Disks::default(), None);
    service.create(&create("b")).expect("no fault");
    service.snapshot(&pair("b", "a")).expect("no fault");
    world.lock().expect("whole").failed = true;
    let list = service.volumes().expect("a list").volumes;
    let known: Vec<_> = list.iter().map(|volume| (volume.name.as_str(), volume.size_bytes)).collect();
    assert_eq!(known, [("a", 1 << 20), ("b", 1 << 20)]);
    assert_eq!(list[0].origin, Some(name("b")));
    assert_eq!((list[0].mapped_bytes, list[0].open, list[0].transaction_id), (None, None, None));
    assert_eq!(service.status().expect("a status").mode, Mode::Fail);
}

#[test]
fn a_deletion_is_forgotten_only_when_it_is_durable() {
    for at_call in 0..5 {
        let (world, service) = open(&Disks::default(), None);
        service.create(&create("a")).expect("no fault");
        service.delete(&name("a")).expect("no fault");
        perform(&world, &service, &Step::Background).expect("it is the keeper's");
        {
            let mut inside = world.lock().expect("whole");
            inside.fault = Some(Fault { at_call: inside.calls + at_call, takes_effect: false, fatal: true });
        }
        let made = service.create(&create("b")).is_ok();
        let disks = world.lock().expect("whole").disks.clone();
        // `open` insists that no volume is unknown to the catalog.
        assert_eq!(
            names(&open(&disks, None).1),
            if made { vec!["b".to_owned()] } else { vec![] },
            "{at_call}"
        );
    }
}

#[test]
fn a_client_that_is_just_leaving_is_waited_for() {
    let (world, service) = open(&Disks::default(), None);
    let id = VolumeId::new(0).expect("a number");
    service.create(&create("a")).expect("no fault");
    let leaving = || {
        world.lock().expect("whole").in_use.insert(id);
        let world = world.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            world.lock().expect("whole").in_use.clear();
        })
    };
    let gone = leaving();
    let read_only = SetVolume { read_only: Some(true), ..SetVolume::default() };
    assert!(service.set(&name("a"), &read_only).expect("he has gone").read_only);
    gone.join().expect("no panic");
    let gone = leaving();
    service.delete(&name("a")).expect("he has gone");
    gone.join().expect("no panic");
}

#[test]
fn a_volume_becomes_read_only_when_nobody_can_be_writing() {
    let (world, service) = open(&Disks::default(), None);
    service.create(&create("a")).expect("no fault");
    let id = VolumeId::new(0).expect("a number");
    let set = |read_only| {
        service.set(&name("a"), &SetVolume { read_only: Some(read_only), ..SetVolume::default() })
    };
    world.lock().expect("whole").in_use.insert(id);
    assert_eq!(set(true).expect_err("a client may write").kind(), ErrorKind::Busy);
    assert!(!service.is_read_only(id), "nothing was changed");
    world.lock().expect("whole").in_use.clear();
    assert!(set(true).expect("nobody has it").read_only);
    world.lock().expect("whole").in_use.insert(id);
    assert!(set(true).expect("it is so already").read_only && service.is_read_only(id));
    assert!(!set(false).expect("readers are not disturbed").read_only);
    world.lock().expect("whole").in_use.clear();
    {
        let mut inside = world.lock().expect("whole");
        inside.fault = Some(Fault { at_call: inside.calls, takes_effect: false, fatal: false });
    }
    set(true).expect_err("the catalog cannot be written");
    assert!(!service.is_read_only(id), "what failed is not in force");
}
