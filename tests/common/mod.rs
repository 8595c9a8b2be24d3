//! What tests of the metadata share: fixtures, their descriptions, and a full structural check of a metadata device.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its part; a failure here fails the test"
)]

pub mod check;
pub mod disks;
pub mod model;
pub mod oracle;

use std::collections::BTreeMap;
use std::io::Read;

/// All fixtures, by name.
pub fn fixture_names() -> Vec<String> {
    let folder = format!("{}/tests/fixtures", env!("CARGO_MANIFEST_DIR"));
    let files =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        files.filter_map(|name| name.strip_suffix(".bin.zst").map(str::to_owned)).collect();
    names.sort();
    assert!(names.len() >= 20, "only {} fixtures", names.len());
    names
}

/// The bytes of a fixture's metadata device.
pub fn fixture(name: &str) -> Vec<u8> {
    unpack(&format!("{name}.bin.zst"))
}

fn unpack(file: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
    decoder.window_log_max(31).unwrap();
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A volume as `thin_dump` tells it.
#[derive(Default)]
pub struct DumpedVolume {
    pub mapped_blocks: u64,
    pub transaction: u64,
    pub creation_time: u64,
    pub snap_time: u64,
    /// Virtual block, data block, time.
    pub mappings: Vec<(u64, u64, u64)>,
}

/// A pool as `thin_dump` tells it.
pub struct Dump {
    pub time: u64,
    pub transaction: u64,
    pub data_block_sectors: u64,
    pub data_blocks: u64,
    pub volumes: BTreeMap<u64, DumpedVolume>,
}

/// The dump beside a fixture.
pub fn dump_of(name: &str) -> Dump {
    let text = String::from_utf8(unpack(&format!("{name}.xml.zst"))).unwrap();
    let mut dump =
        Dump { time: 0, transaction: 0, data_block_sectors: 0, data_blocks: 0, volumes: BTreeMap::new() };
    let mut current = 0;
    for tag in text.split('<') {
        let attribute = |name: &str| -> u64 {
            let begin = tag.find(&format!(" {name}=\"")).unwrap_or_else(|| panic!("no {name} in {tag}"));
            tag[begin + name.len() + 3..].split('"').next().unwrap().parse().unwrap()
        };
        match tag.split_whitespace().next().unwrap_or_default() {
            "superblock" => {
                dump.time = attribute("time");
                dump.transaction = attribute("transaction");
                dump.data_block_sectors = attribute("data_block_size");
                dump.data_blocks = attribute("nr_data_blocks");
            }
            "device" => {
                current = attribute("dev_id");
                let volume = DumpedVolume {
                    mapped_blocks: attribute("mapped_blocks"),
                    transaction: attribute("transaction"),
                    creation_time: attribute("creation_time"),
                    snap_time: attribute("snap_time"),
                    mappings: Vec::new(),
                };
                assert!(dump.volumes.insert(current, volume).is_none());
            }
            "single_mapping" => {
                let mapping = (attribute("origin_block"), attribute("data_block"), attribute("time"));
                dump.volumes.get_mut(&current).unwrap().mappings.push(mapping);
            }
            "range_mapping" => {
                let (origin, data) = (attribute("origin_begin"), attribute("data_begin"));
                let time = attribute("time");
                let run = (0..attribute("length")).map(|i| (origin + i, data + i, time));
                dump.volumes.get_mut(&current).unwrap().mappings.extend(run);
            }
            _ => {}
        }
    }
    dump
}

/// The words of the pool's line in a fixture's status: `trans_id used/total used/total held mode …`.
pub fn pool_status_of(name: &str) -> Vec<String> {
    let path = format!("{}/tests/fixtures/{name}.status", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with("pool:")).unwrap();
    line.split_whitespace().skip(4).map(str::to_owned).collect()
}

/// A small generator of reproducible numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
