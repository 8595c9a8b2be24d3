//! Names of volumes, from a catalog that lies beside the metadata. Metadata know numbers only.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The most that is read of a file that may be anything.
const CATALOG_BYTES_LIMIT: u64 = 64 << 20;

/// What of a catalog is wanted here; the rest may be of any version.
#[derive(Deserialize)]
struct Catalog {
    volumes: Vec<Named>,
    /// The generation of `catalog.log` that goes on from here.
    log: Option<u64>,
}

/// The same of a line of the log.
#[derive(Deserialize)]
struct Line {
    log: u64,
    number: u64,
    changes: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Named {
    id: u64,
    name: String,
}

/// The volumes' names, as far as they are known.
#[derive(Default)]
pub(super) struct Names(BTreeMap<u64, String>);

impl Names {
    /// Those in `catalog.json` and `catalog.log` beside `metadata`. Without one, or with one that cannot be read, there are no names: a check
    /// of metadata depends on nothing else.
    pub(super) fn beside(metadata: &Path) -> Self {
        let Ok(catalog) = serde_json::from_slice::<Catalog>(&read(&metadata.with_file_name("catalog.json")))
        else {
            return Names::default();
        };
        let mut volumes = catalog.volumes;
        if let Some(generation) = catalog.log {
            add_logged(&read(&metadata.with_file_name("catalog.log")), generation, &mut volumes);
        }
        // Shown on a terminal, whoever wrote the file.
        let is_shown = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic());
        Names(volumes.into_iter().filter(|one| is_shown(&one.name)).map(|one| (one.id, one.name)).collect())
    }

    /// A volume's name.
    pub(super) fn get(&self, volume: u64) -> Option<&str> {
        self.0.get(&volume).map(String::as_str)
    }

    /// `volume 3`, and its name if there is one.
    pub(super) fn volume(&self, volume: u64) -> String {
        self.get(volume)
            .map_or_else(|| format!("volume {volume}"), |name| format!("volume {volume} ({name})"))
    }

    /// By number, for JSON.
    pub(super) fn all(&self) -> &BTreeMap<u64, String> {
        &self.0
    }
}

/// What is in a file; nothing, if it cannot be read or is none that is meant.
fn read(path: &Path) -> Vec<u8> {
    let is_small =
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= CATALOG_BYTES_LIMIT);
    if is_small { fs::read(path).unwrap_or_default() } else { Vec::new() }
}

/// Adds the names that a log tells, the later ones behind the earlier. A line is a checksum, a blank and JSON; the first that is not
/// the next of that generation is the end. Which volumes there are the metadata know: what was planned and never made does no harm.
fn add_logged(log: &[u8], generation: u64, volumes: &mut Vec<Named>) {
    for (bytes, number) in log.split(|byte| *byte == b'\n').zip(1..) {
        let Some((checksum, json)) = bytes.split_at_checked(9) else { return };
        let is_whole = checksum == format!("{:08x} ", crc32c::crc32c(json)).as_bytes();
        let line = serde_json::from_slice::<Line>(json).ok().filter(|_| is_whole);
        let Some(line) = line.filter(|line| line.log == generation && line.number == number) else { return };
        line.changes.iter().for_each(|change| add_named(change, volumes));
    }
}

/// Adds whatever has a number and a name, wherever in a change it is.
fn add_named(value: &serde_json::Value, volumes: &mut Vec<Named>) {
    match value {
        serde_json::Value::Array(values) => values.iter().for_each(|value| add_named(value, volumes)),
        serde_json::Value::Object(fields) => match Named::deserialize(value) {
            Ok(named) => volumes.push(named),
            Err(_) => fields.values().for_each(|value| add_named(value, volumes)),
        },
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}
