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
    /// Those in `catalog.json` beside `metadata`. Without one, or with one that cannot be read, there are no names: a check
    /// of metadata depends on nothing else.
    pub(super) fn beside(metadata: &Path) -> Self {
        let catalog = metadata.with_file_name("catalog.json");
        let is_small =
            fs::metadata(&catalog).is_ok_and(|found| found.is_file() && found.len() <= CATALOG_BYTES_LIMIT);
        let bytes = if is_small { fs::read(&catalog).unwrap_or_default() } else { Vec::new() };
        let volumes = serde_json::from_slice::<Catalog>(&bytes).map_or(Vec::new(), |catalog| catalog.volumes);
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
