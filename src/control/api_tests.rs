//! What is reckoned from what a pool says of itself.

use super::*;

pub(in super::super) fn sample() -> PoolInfo {
    PoolInfo {
        schema: SCHEMA.to_owned(),
        pool: "p".to_owned(),
        path: "/p".to_owned(),
        mode: Mode::Rw,
        health: Health::Ok,
        failure: None,
        transaction_id: 0,
        time: 0,
        block_size_bytes: 65_536,
        data: DataSpace {
            total_bytes: 65_536_000_000,
            used_bytes: 0,
            free_bytes: 65_536_000_000,
            filesystem_free_bytes: None,
            times_full: 0,
        },
        metadata: MetadataSpace {
            total_bytes: 1024 * 4096,
            used_bytes: 70 * 4096,
            free_bytes: 852 * 4096,
            reserve_bytes: 102 * 4096,
            is_full: false,
            times_full: 0,
        },
        volumes: 0,
        virtual_bytes: 0,
        deleting: vec![],
        held_root: None,
        discard: Discard::Passdown,
        to_give_back_bytes: 0,
        zero_new_blocks: true,
        small_writes: SmallWrites::Copy,
        partial_blocks: 0,
        when_full: WhenFull::default(),
        queue_expired: false,
        waiting_for_space: 0,
        map_bytes: 0,
        journal: JournalInfo::default(),
        removed: Vec::new(),
        places: PoolPlaces::default(),
        options: PoolOptions::default(),
        needs_check: false,
        served_by: None,
        exports: vec![],
        notes: vec![],
    }
}

#[test]
fn the_dm_line_is_the_kernels() {
    let mut info = sample();
    assert_eq!(info.dm_line(), "0 172/1024 0/1000000 - rw discard_passdown error_if_no_space - 256 ");
    info.held_root = Some(17);
    info.transaction_id = 5;
    info.mode = Mode::OutOfDataSpace;
    info.discard = Discard::NoPassdown;
    info.data.used_bytes = 65_536;
    info.metadata.total_bytes = 16_384 * 4096;
    info.metadata.free_bytes = 10_000 * 4096;
    assert_eq!(
        info.dm_line(),
        "5 6384/16384 1/1000000 17 out_of_data_space no_discard_passdown error_if_no_space - 1024 "
    );
    info.discard = Discard::Ignore;
    info.when_full = WhenFull::Queue(60);
    assert!(info.dm_line().contains(" out_of_data_space ignore_discard queue_if_no_space - "));
    info.queue_expired = true;
    assert!(info.dm_line().contains(" ignore_discard error_if_no_space - "));
    info.needs_check = true;
    info.mode = Mode::Ro;
    assert!(info.dm_line().contains(" ro ") && info.dm_line().contains(" needs_check 1024 "));
    info.mode = Mode::Fail;
    assert_eq!(info.dm_line(), "Fail");
}

#[test]
fn a_pool_asks_for_attention_before_it_is_full() {
    let mut info = sample();
    assert_eq!(info.assess(), Health::Ok);
    info.data.free_bytes = 6_553_600_000;
    assert_eq!(info.assess(), Health::Ok, "10% are the mark");
    info.data.free_bytes -= 65_536;
    assert_eq!(info.assess(), Health::Low);
    info.options.low_water = FreeSpace::Bytes(65_536);
    assert_eq!(info.assess(), Health::Ok);
    info.metadata.free_bytes = 255 * 4096;
    assert_eq!(info.assess(), Health::Low);
    info.metadata.free_bytes = 0;
    assert_eq!(info.assess(), Health::Critical);
    for mode in [Mode::Ro, Mode::OutOfDataSpace, Mode::Fail] {
        assert_eq!(PoolInfo { mode, ..sample() }.assess(), Health::Critical);
    }
    assert_eq!(PoolInfo { needs_check: true, ..sample() }.assess(), Health::Critical);
    let journal = JournalInfo { state: JournalState::Failed, ..JournalInfo::default() };
    assert_eq!(PoolInfo { journal, ..sample() }.assess(), Health::Low);
    let removed = vec!["data".to_owned()];
    assert_eq!(PoolInfo { removed, ..sample() }.assess(), Health::Critical);
    let full = DataSpace { free_bytes: 0, ..sample().data };
    assert_eq!(PoolInfo { data: full, ..sample() }.assess(), Health::Critical);
    assert_eq!(FreeSpace::Percent(100).bytes_of(u64::MAX), u64::MAX);
    assert!(FreeSpace::Percent(100).check().is_ok() && FreeSpace::Percent(101).check().is_err());
}

#[test]
fn json_has_lower_case_words_and_bytes() {
    let json = serde_json::to_value(sample()).expect("JSON");
    assert_eq!(json["schema"], "uthin/v1");
    assert_eq!(json["mode"], "rw");
    assert_eq!(json["discard"], "passdown");
    assert_eq!(json["served_by"], serde_json::Value::Null);
    assert_eq!(json["metadata"]["reserve_bytes"], 102 * 4096);
    let back: PoolInfo = serde_json::from_value(json).expect("our own JSON");
    assert_eq!(back, sample());
}
