//! Pools beside a model: random work in many shapes, committed, aborted, reopened, at the brink of full.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod common;

use common::model::{Habits, Play};
use common::{fixture, fixture_names};
use uthin::disk::MemoryDisk;
use uthin::metadata::{Geometry, Metadata};
use uthin::units::BlockSize;

const ORDINARY: Habits = Habits {
    virtual_blocks: 20_000,
    volumes: 12,
    longest_run: 300,
    removes_one_in: 5,
    interrupts: true,
    grows: false,
};

fn fresh(metadata_blocks: u64, data_blocks: u64) -> MemoryDisk {
    let disk = MemoryDisk::zeroed(metadata_blocks * 4096);
    Metadata::format(disk.clone(), Geometry { block_size: BlockSize::MIN, data_blocks }).unwrap();
    disk
}

fn play(disk: MemoryDisk, habits: Habits, seed: u64, rounds: u64, steps: u64) -> Play {
    let mut play = Play::begin(disk, habits, seed);
    for _ in 0..rounds {
        for _ in 0..1 + play.random.below(steps) {
            play.step();
        }
        play.commit();
        play.check();
    }
    play.check_thoroughly();
    play
}

#[test]
fn ordinary_pools_agree_with_the_model() {
    let (mut operations, mut counts) = (0, 0);
    for seed in 0..6 {
        let play = play(fresh(4000, 200_000), ORDINARY, seed, 25, 80);
        assert_eq!(play.refusals, 0, "seed {seed}");
        operations += play.operations;
        counts += play.counts;
    }
    assert!(operations > 300_000 && counts > 6, "{operations} operations, {counts} counts");
}

#[test]
fn many_snapshots_agree_with_the_model() {
    let habits =
        Habits { volumes: 300, virtual_blocks: 3000, longest_run: 60, removes_one_in: 12, ..ORDINARY };
    for seed in 10..14 {
        let play = play(fresh(12_000, 50_000), habits, seed, 20, 150);
        assert_eq!(play.refusals, 0, "seed {seed}");
    }
}

#[test]
fn small_trees_agree_with_the_model_at_every_step() {
    let habits = Habits {
        volumes: 3,
        virtual_blocks: 700,
        longest_run: 90,
        removes_one_in: 3,
        interrupts: true,
        grows: false,
    };
    for seed in 20..30 {
        play(fresh(1000, 20_000), habits, seed, 150, 2);
    }
}

#[test]
fn kernel_written_pools_agree_with_the_model() {
    let habits = Habits { virtual_blocks: 60_000, volumes: 400, ..ORDINARY };
    for (seed, name) in fixture_names().into_iter().enumerate().filter(|(_, name)| name != "10-needs-check") {
        let rounds = if name.contains("siblings") || name.contains("chain") || name.contains("random") {
            4
        } else {
            8
        };
        let play = play(MemoryDisk::from_bytes(fixture(&name)), habits, seed as u64, rounds, 60);
        assert!(play.operations > 100 || name == "02-seq", "{name}: {} operations", play.operations);
    }
}

#[test]
fn pools_at_the_brink_refuse_and_never_fail_half_way() {
    let (mut refusals, mut operations, mut given_up) = (0, 0, 0);
    for seed in 100..130 {
        let metadata_blocks = [180, 256, 300, 400, 700, 1024][seed as usize % 6];
        let habits = Habits {
            virtual_blocks: [200_000, 5000, 30_000][seed as usize % 3],
            volumes: [2, 6, 40][(seed / 3) as usize % 3],
            longest_run: 400,
            removes_one_in: [20, 6][(seed / 2) as usize % 2],
            interrupts: seed % 5 == 0,
            grows: false,
        };
        let play = play(fresh(metadata_blocks, 100_000), habits, seed, 30, 60);
        refusals += play.refusals;
        operations += play.operations;
        given_up += play.counts_given_up;
    }
    assert!(refusals > 1000 && operations > 50_000, "{refusals} refusals, {operations} operations");
    assert!(given_up > 0, "a count takes space from nobody who needs it");
}

#[test]
fn growing_pools_agree_with_the_model() {
    let habits = Habits { grows: true, removes_one_in: 20, ..ORDINARY };
    for seed in 50..56 {
        let play = play(fresh(150, 16_000), habits, seed, 60, 100);
        let usage = play.metadata.usage();
        assert!(usage.metadata_total > 150 && usage.data_total > 16_000, "seed {seed}: {usage:?}");
    }
}
