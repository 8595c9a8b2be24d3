//! A simulated world for the engine: virtual disks that lose power, lanes and the keeper stepped in an order that a seed
//! decides, and a model that knows for every sector which values it may hold. Tests only.
//!
//! The lanes, the keeper and the metadata code are those of production; only the disks and the scheduler are not.

mod chance;
mod clients;
mod commands;
mod disk;
mod disks;
mod flushes;
mod habits;
mod large;
mod ledger;
mod model;
mod options;
mod origins;
mod recovery;
mod rest;
mod story;
mod world;

pub use disk::SimDisk;
pub use options::{Mishap, Outcome, WorldOptions};
pub use world::World;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Scarce;

    fn run(options: WorldOptions) -> Outcome {
        let mishap = options.mishap;
        let outcome = World::new(options).expect("a fresh pool").run();
        outcome.unwrap_or_else(|wrong| panic!("{mishap:?}, {wrong}"))
    }

    /// Small worlds in which everything that can go wrong once goes wrong: the power at every write and flush, an error at
    /// every read, write and flush (and a second one soon after), a wrong bit in every block that is read, every metadata
    /// write at the wrong place, no space wherever some is asked for.
    #[test]
    fn no_single_mishap_breaks_a_promise() {
        let scripts = std::env::var("UTHIN_SIM_SCRIPTS").map_or(6, |count| count.parse().expect("a number"));
        let (mut mishaps, mut survived, mut strays_found) = (0, 0, 0);
        for seed in 1..=scripts {
            let whole = run(WorldOptions::small(seed, None));
            let (operations, with_reads) = (whole.operations, whole.operations_and_reads);
            let scarce = [Scarce::DataBlock, Scarce::MetadataSpace, Scarce::MetadataBlock];
            let scarcity = |what| (0..whole.asked[what as usize]).map(move |at| Mishap::Scarcity(what, at));
            let all = (0..operations[0])
                .map(Mishap::MetadataPower)
                .chain((0..operations[1]).map(Mishap::DataPower))
                .chain((0..with_reads[0]).map(Mishap::MetadataFault))
                .chain((0..with_reads[1]).map(Mishap::DataFault))
                .chain((0..with_reads[0]).map(|at| Mishap::MetadataFaults(at, (at + seed) % 5)))
                .chain((0..with_reads[0]).map(Mishap::MetadataFlip))
                .chain((0..with_reads[0]).map(Mishap::MetadataStray))
                .chain(scarce.into_iter().flat_map(scarcity))
                .chain((0..whole.journal_operations.0).map(Mishap::JournalPower))
                .chain((0..whole.journal_operations.1).map(Mishap::JournalFault))
                .chain((0..500).step_by(7).filter(|_| whole.journal_operations.0 > 0).map(Mishap::Kill));
            for mishap in all {
                let outcome = run(WorldOptions::small(seed, Some(mishap)));
                survived += outcome.power_cuts.min(1).max(outcome.strays_found);
                strays_found += outcome.strays_found;
                mishaps += 1;
            }
        }
        println!("{mishaps} mishaps; {strays_found} writes astray were found by the checker");
        assert!(
            mishaps > 200 * scripts && strays_found > 5 * scripts && survived == mishaps,
            "{survived} of {mishaps}"
        );
    }

    /// A slice of every run of the test suite; `UTHIN_SIM_SEEDS=FIRST..END` runs others.
    #[test]
    fn no_seed_breaks_a_promise() {
        let seeds = std::env::var("UTHIN_SIM_SEEDS").unwrap_or_else(|_| "1..301".to_owned());
        let (first, end) = seeds.split_once("..").expect("UTHIN_SIM_SEEDS is FIRST..END");
        let seeds = first.parse::<u64>().expect("a number")..end.parse::<u64>().expect("a number");
        let mut total = Outcome::default();
        let (begin, count) = (std::time::Instant::now(), seeds.end - seeds.start);
        for seed in seeds {
            let world = World::new(WorldOptions::of(seed)).expect("a fresh pool");
            match world.run() {
                Ok(outcome) => total.add(outcome),
                Err(wrong) => panic!("{wrong}"),
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        println!("{count} seeds in {seconds:.0} s, {:.1} a second: {total:?}", count as f64 / seconds);
        if count < 300 {
            return; // somebody looks at a few: they need not show everything
        }
        assert!(total.power_cuts > 0 && total.snapshots > 0 && total.no_space > 0 && total.flushes > 0);
        assert!(total.flushes_beside > 0);
        assert!(total.roll_backs > 0 && total.grown_blocks > 0 && total.origin_reads > 0);
        assert!(
            total.partial_fills > 0 && total.unit_waits > 0 && total.settled > 0 && total.settled_pools > 0
        );
        assert!(total.settled_from_origins > 0 && total.missing_origins > 0);
        assert!(total.strict_kills > 0 && total.power_replays > 0 && total.replays > total.power_replays);
        assert!(total.cut_openings > 0 && total.failed_journals > 0);
        assert!(total.long_deletions > 0 && total.resumed_deletions > 0);
        assert!(total.enlarged > 0 && total.shrunk > 0 && total.unmapped > 0);
        assert!(total.clients_left > 0 && total.abandoned > 0);
        assert!(total.read_only > 0 && total.double_faults > 0 && total.configured > 0);
    }
}
