//! The epochs, the map tables and the table of partial blocks, as they are in `src/engine`, under loom: it runs each of the tests once for every order in
//! which the threads' steps can take effect (up to `LOOM_MAX_PREEMPTIONS` changes of thread where none is needed), by the rules of
//! the C11 memory model.

#![cfg(test)]
#![allow(dead_code, reason = "the production files have more than the models need")]

#[path = "../../../src/units.rs"]
mod units;

#[path = "../../../src/format/base.rs"]
mod base;

/// As in production.
mod metadata {
    pub use crate::base::Base;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Partial {
        pub base: Base,
        pub units: u64,
    }
}

/// As `crate::engine` has it, but for what stands behind `sync`, and sizes. (The tests in there are run elsewhere.)
#[path = "../../../src/engine"]
mod engine {
    pub mod epochs;
    pub mod map_table;
    pub mod pages;
    pub mod partials;

    /// Loom follows every single atomic.
    pub mod sizes {
        pub const PAGE_BLOCKS: u64 = 2;
        pub const CHUNK_PAGES: u64 = 2;
        pub const DIRECTORY_PAGES: u64 = 2;
        pub const PARTIALS_PAGE_BLOCKS: u64 = 2;
        pub const PARTIALS_CHUNK_ENTRIES: u64 = 1;
    }

    pub mod request {
        /// As in production.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct LaneId(pub u16);
    }

    pub mod sync {
        pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
        pub use loom::sync::{Mutex, MutexGuard};
    }

    mod models {
        use super::epochs::{Epochs, Presence};
        use super::map_table::{Lookup, MapTable, page_of};
        use super::pages::Pages;
        use super::partials::{Claim, Partials};
        use super::request::LaneId;
        use crate::metadata::{Base, Partial};
        use crate::units::{DataBlock, Mapping, SnapTime, VirtualBlock};
        use loom::sync::Arc as LoomArc;
        use loom::sync::atomic::{AtomicU64, Ordering};
        use loom::thread;
        use std::sync::Arc;

        fn model(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
            builder.check(test);
        }

        /// A lane looks at the map and uses what it finds; the keeper maps something else and reuses the old block when all have
        /// passed. Nobody uses a block that was reused.
        #[test]
        fn nothing_is_reused_under_a_lane() {
            model(3, || {
                let epochs = Arc::new(Epochs::new(1));
                // The map: one entry. And the blocks: what each holds.
                let map = LoomArc::new(AtomicU64::new(0));
                let blocks = LoomArc::new([AtomicU64::new(10), AtomicU64::new(11)]);
                let lane = {
                    let (epochs, map, blocks) = (epochs.clone(), map.clone(), blocks.clone());
                    thread::spawn(move || {
                        let mut presence = Presence::new(LaneId(0), epochs);
                        for _ in 0..2 {
                            let epoch = presence.enter();
                            let found = map.load(Ordering::Acquire);
                            assert_eq!(
                                blocks[found as usize].load(Ordering::Relaxed),
                                10 + found,
                                "it was reused"
                            );
                            presence.leave(epoch);
                        }
                    })
                };
                map.store(1, Ordering::Release);
                let epoch = epochs.retire();
                if epochs.all_past(epoch) {
                    blocks[0].store(99, Ordering::Relaxed);
                }
                lane.join().unwrap();
                assert!(epochs.all_past(epoch), "who has finished holds nothing up");
            });
        }

        /// A lane whose work overlaps from one epoch into the next holds up the older one for as long as it runs.
        #[test]
        fn the_oldest_piece_of_work_counts() {
            model(3, || {
                let epochs = Arc::new(Epochs::new(1));
                let running = LoomArc::new(AtomicU64::new(0));
                let lane = {
                    let (epochs, running) = (epochs.clone(), running.clone());
                    thread::spawn(move || {
                        let mut presence = Presence::new(LaneId(0), epochs);
                        let first = presence.enter();
                        running.store(first_of(&first), Ordering::Relaxed);
                        let second = presence.enter();
                        presence.leave(second);
                        // Over for who sees that it has left.
                        running.store(0, Ordering::Relaxed);
                        presence.leave(first);
                    })
                };
                let epoch = epochs.retire();
                let began = running.load(Ordering::Relaxed);
                if epochs.all_past(epoch) && began != 0 && began <= first_of(&epoch) {
                    assert_eq!(running.load(Ordering::Relaxed), 0, "it still runs");
                }
                lane.join().unwrap();
            });
        }

        fn first_of(epoch: &super::epochs::Epoch) -> u64 {
            let shown = format!("{epoch:?}");
            shown.trim_start_matches("Epoch(").trim_end_matches(')').parse().unwrap()
        }

        /// A volume is frozen as the keeper does it: a change that a lane has begun before is waited for, and one that it begins
        /// later sees that the volume is frozen.
        #[test]
        fn no_change_slips_past_a_freeze() {
            model(3, || {
                let epochs = Arc::new(Epochs::new(1));
                let frozen = LoomArc::new(AtomicU64::new(0));
                let changed = LoomArc::new(AtomicU64::new(0));
                let lane = {
                    let (epochs, frozen, changed) = (epochs.clone(), frozen.clone(), changed.clone());
                    thread::spawn(move || {
                        let mut presence = Presence::new(LaneId(0), epochs);
                        let epoch = presence.enter();
                        if frozen.load(Ordering::SeqCst) == 0 {
                            changed.store(1, Ordering::Relaxed);
                        }
                        presence.leave(epoch);
                    })
                };
                frozen.store(1, Ordering::SeqCst);
                let epoch = epochs.retire();
                let seen = epochs.all_past(epoch).then(|| changed.load(Ordering::Relaxed));
                lane.join().unwrap();
                if let Some(seen) = seen {
                    assert_eq!(changed.load(Ordering::Relaxed), seen, "it changed after the snapshot");
                }
            });
        }

        const MINE: VirtualBlock = VirtualBlock(0);
        const THEIRS: VirtualBlock = VirtualBlock(5);

        fn mapping(block: u64) -> Mapping {
            Mapping { block: DataBlock(block), time: SnapTime(0) }
        }

        fn load(table: &MapTable, at: VirtualBlock, data_block: u64) {
            table.load_page(page_of(at), &[(at, mapping(data_block))]);
        }

        /// A page leaves and is taken for another volume, while a lane looks things up: it finds its own volume's mapping, or that it
        /// has to ask for it, and never the other volume's, or a hole.
        #[test]
        fn a_page_that_left_shows_nobody_what_it_has_become() {
            model(3, || {
                let epochs = Arc::new(Epochs::new(1));
                let pages = Arc::new(Pages::default());
                let tables = [MapTable::new(pages.clone()), MapTable::new(pages)];
                load(&tables[0], MINE, 7);
                // Their directory is there; the page itself is to be the one that leaves.
                tables[1].load_page(page_of(VirtualBlock(THEIRS.0 + 2)), &[]);
                let tables = Arc::new(tables);
                let lane = {
                    let (epochs, tables) = (epochs.clone(), tables.clone());
                    thread::spawn(move || {
                        let mut presence = Presence::new(LaneId(0), epochs);
                        let epoch = presence.enter();
                        let found = tables[0].get(MINE);
                        assert!(
                            matches!(found, Lookup::NotLoaded) || found == Lookup::Mapped(mapping(7)),
                            "{found:?}"
                        );
                        presence.leave(epoch);
                    })
                };
                let mut leaving = Vec::new();
                for _ in 0..2 {
                    tables[0].sweep(0, 1, &mut leaving); // first its mark goes, then it
                }
                let epoch = epochs.retire();
                if leaving == [0] && epochs.all_past(epoch) {
                    tables[0].let_go(0);
                    load(&tables[1], THEIRS, 9);
                    assert_eq!(tables[1].get(THEIRS), Lookup::Mapped(mapping(9)));
                }
                lane.join().unwrap();
            });
        }

        /// A page is loaded, and changed, while a lane looks it up: it finds nothing, or all that was loaded; and what it found once
        /// it does not lose again.
        #[test]
        fn a_page_comes_whole_and_follows_the_keeper() {
            model(3, || {
                let table = MapTable::new(Arc::new(Pages::default()));
                load(&table, VirtualBlock(2), 1); // its directory, and the memory, are there
                let table = Arc::new(table);
                let lane = {
                    let table = table.clone();
                    thread::spawn(move || {
                        let mut newest = 0;
                        for _ in 0..2 {
                            let found = match table.get(MINE) {
                                Lookup::NotLoaded => 0,
                                Lookup::Hole => panic!("half of a page"),
                                Lookup::Mapped(mapping) => mapping.block.0,
                            };
                            assert!(newest <= found && [0, 7, 8].contains(&found), "{newest}, then {found}");
                            newest = found;
                        }
                    })
                };
                load(&table, MINE, 7);
                table.set(MINE, Some(mapping(8)));
                lane.join().unwrap();
                assert_eq!(table.get(MINE), Lookup::Mapped(mapping(8)));
            });
        }

        const BLOCK: DataBlock = DataBlock(0);

        fn with_one_unit() -> Arc<Partials> {
            let partials = Partials::new(0b111);
            partials.add(BLOCK, Partial { base: Base::Zeros, units: 0b1 });
            Arc::new(partials)
        }

        fn units_of(partials: &Partials) -> u64 {
            partials.get(BLOCK).map_or(0b111, |partial| partial.units)
        }

        /// Two lanes write units that are not there, one of them the same: it has one writer, who is the only one to touch its
        /// bytes until they are there.
        #[test]
        fn a_unit_has_one_writer_until_it_is_there() {
            model(3, || {
                let partials = with_one_unit();
                let bytes = LoomArc::new(AtomicU64::new(0));
                let write = |units: u64, partials: Arc<Partials>, bytes: LoomArc<AtomicU64>| match partials
                    .claim(BLOCK, units)
                {
                    Claim::Won(won) => {
                        if won & 0b10 != 0 {
                            assert_eq!(bytes.load(Ordering::Relaxed), 0, "somebody else has written it");
                            bytes.store(units, Ordering::Relaxed);
                        } else if units & 0b10 != 0 {
                            assert_ne!(bytes.load(Ordering::Relaxed), 0, "it counts as there, and is not");
                        }
                        partials.put(BLOCK, won);
                        won
                    }
                    Claim::Lost(taken) => {
                        assert_eq!(taken, 0b10);
                        0
                    }
                };
                let lane = {
                    let (partials, bytes) = (partials.clone(), bytes.clone());
                    thread::spawn(move || write(0b10, partials, bytes))
                };
                let mine = write(0b110, partials.clone(), bytes);
                let theirs = lane.join().unwrap();
                assert_eq!(mine & theirs, 0);
                assert_eq!((mine | theirs) & 0b10, 0b10);
                assert_eq!(units_of(&partials), 0b1 | mine | theirs);
            });
        }

        /// Units come while the keeper commits and others read: what is there has its bytes for everybody, and what was acknowledged
        /// before the keeper took the list is on it, or was on the one before.
        #[test]
        fn what_is_acknowledged_is_on_the_list() {
            model(3, || {
                let partials = with_one_unit();
                let bytes = LoomArc::new([AtomicU64::new(0), AtomicU64::new(0)]);
                let acknowledged = LoomArc::new(AtomicU64::new(0));
                let lane = {
                    let (partials, bytes, acknowledged) =
                        (partials.clone(), bytes.clone(), acknowledged.clone());
                    thread::spawn(move || {
                        for (at, unit) in [0b10, 0b100].into_iter().enumerate() {
                            assert_eq!(partials.claim(BLOCK, unit), Claim::Won(unit));
                            bytes[at].store(1, Ordering::Relaxed);
                            partials.put(BLOCK, unit);
                            acknowledged.fetch_add(unit, Ordering::Release);
                        }
                    })
                };
                let mut durable = 0b1;
                for _ in 0..2 {
                    let promised = acknowledged.load(Ordering::Acquire);
                    let listed = partials.take_dirty().into_iter().fold(0, |all, (_, units)| all | units);
                    durable |= listed;
                    assert_eq!(promised & !durable, 0, "acknowledged, and on no list");
                    for (at, unit) in [0b10, 0b100].into_iter().enumerate() {
                        let is_there = (listed | units_of(&partials)) & unit != 0;
                        assert!(
                            !is_there || bytes[at].load(Ordering::Relaxed) == 1,
                            "it counts as there, and is not"
                        );
                    }
                }
                lane.join().unwrap();
                durable |= partials.take_dirty().into_iter().fold(0, |all, (_, units)| all | units);
                assert_eq!(durable, 0b111);
            });
        }

        /// A lane that finds a mapping to a partial block finds what is missing of it as well, while such blocks come and go.
        #[test]
        fn a_partial_block_is_never_taken_for_a_whole_one() {
            model(3, || {
                let epochs = Arc::new(Epochs::new(1));
                let partials = Arc::new(Partials::new(0b111));
                let map = LoomArc::new(AtomicU64::new(0)); // a block's number and 1; 0: a hole
                let lane = {
                    let (epochs, partials, map) = (epochs.clone(), partials.clone(), map.clone());
                    thread::spawn(move || {
                        let mut presence = Presence::new(LaneId(0), epochs);
                        let epoch = presence.enter();
                        if let Some(block) = map.load(Ordering::Acquire).checked_sub(1) {
                            let found = partials.get(DataBlock(block)).expect("it is a partial block");
                            assert_eq!(
                                found,
                                Partial { base: Base::Block(DataBlock(block + 10)), units: 1 << block }
                            );
                        }
                        presence.leave(epoch);
                    })
                };
                let add = |block: u64| {
                    partials.add(
                        DataBlock(block),
                        Partial { base: Base::Block(DataBlock(block + 10)), units: 1 << block },
                    );
                    map.store(block + 1, Ordering::Release);
                };
                add(0);
                map.store(0, Ordering::Release); // it was discarded
                let epoch = epochs.retire();
                if epochs.all_past(epoch) {
                    partials.remove(DataBlock(0));
                    add(1); // in the same entry
                }
                lane.join().unwrap();
            });
        }
    }
}
