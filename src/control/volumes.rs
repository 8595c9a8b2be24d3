//! The volumes that a catalog knows, to be found by number and by name, however many there are.
//!
//! What must hold: every entry is under its own number and under its own name, and no number and no name is there twice.
//! So there is no way to change an entry in place: [`Volumes::replace`] puts another there. In JSON it is the list of the
//! entries in order of their numbers.

use super::catalog::VolumeEntry;
use super::name::VolumeName;
use crate::units::VolumeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::collections::BTreeMap;

/// The volumes of one pool.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Volumes {
    entries: BTreeMap<VolumeId, VolumeEntry>,
    ids: BTreeMap<VolumeName, VolumeId>,
    /// The sum of all sizes.
    total_bytes: u128,
}

impl Volumes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in order of their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &VolumeEntry> {
        self.entries.values()
    }

    /// All names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &VolumeName> {
        self.ids.keys()
    }

    /// The sum of the volumes' sizes in bytes.
    pub fn total_bytes(&self) -> u64 {
        u64::try_from(self.total_bytes).unwrap_or(u64::MAX)
    }

    /// The volume of that number.
    pub fn by_id(&self, id: VolumeId) -> Option<&VolumeEntry> {
        self.entries.get(&id)
    }

    /// The volume of that name.
    pub fn by_name(&self, name: &str) -> Option<&VolumeEntry> {
        self.ids.get(name).map(|id| &self.entries[id])
    }

    /// Adds a volume, or says, in words, what of it is there already.
    pub fn insert(&mut self, entry: VolumeEntry) -> Result<(), String> {
        if self.entries.contains_key(&entry.id) {
            return Err(format!("two volumes have the number {}", entry.id));
        }
        if self.ids.contains_key(&entry.name) {
            return Err(format!("two volumes are called `{}`", entry.name));
        }
        self.ids.insert(entry.name.clone(), entry.id);
        self.total_bytes += u128::from(entry.size_bytes);
        self.entries.insert(entry.id, entry);
        Ok(())
    }

    /// Takes a volume out.
    pub fn remove(&mut self, id: VolumeId) -> Option<VolumeEntry> {
        let entry = self.entries.remove(&id)?;
        self.ids.remove(&entry.name);
        self.total_bytes -= u128::from(entry.size_bytes);
        Some(entry)
    }

    /// Puts another entry in the place of the one that has its number, or says, in words, why it cannot be there.
    pub fn replace(&mut self, entry: VolumeEntry) -> Result<(), String> {
        match self.ids.get(&entry.name) {
            Some(other) if *other != entry.id => {
                return Err(format!("two volumes are called `{}`", entry.name));
            }
            Some(_) | None => {}
        }
        match self.remove(entry.id) {
            Some(_) => self.insert(entry),
            None => Err(format!("there is no volume {}", entry.id)),
        }
    }
}

impl Serialize for Volumes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Volumes {
    /// Entries may come in any order: people edit the file.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut volumes = Volumes::default();
        for entry in Vec::<VolumeEntry>::deserialize(deserializer)? {
            volumes.insert(entry).map_err(D::Error::custom)?;
        }
        Ok(volumes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::label::Labels;
    use super::*;

    fn entry(name: &str, id: u64) -> VolumeEntry {
        VolumeEntry {
            name: VolumeName::parse(name).expect("a name"),
            id: VolumeId::new(id).expect("a number"),
            size_bytes: 512 << id,
            created_unix_seconds: None,
            created_in_transaction: None,
            origin: None,
            labels: Labels::new(),
            read_only: false,
            external_origin: None,
        }
    }

    fn names(volumes: &Volumes) -> Vec<&str> {
        volumes.names().map(VolumeName::as_str).collect()
    }

    #[test]
    fn what_is_put_in_is_found_by_number_and_by_name() {
        let mut volumes = Volumes::default();
        for (name, id) in [("b", 7), ("c", 1), ("a", 4)] {
            volumes.insert(entry(name, id)).expect("free");
        }
        assert_eq!((names(&volumes), volumes.len()), (vec!["a", "b", "c"], 3));
        assert_eq!(volumes.iter().map(|entry| entry.id.get()).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!(volumes.by_name("a"), volumes.by_id(VolumeId::new(4).expect("a number")));
        assert_eq!(volumes.total_bytes(), (512 << 1) + (512 << 4) + (512 << 7));
        assert_eq!(
            volumes.remove(VolumeId::new(4).expect("a number")).map(|entry| entry.name.to_string()),
            Some("a".to_owned())
        );
        assert_eq!((volumes.by_name("a"), volumes.total_bytes()), (None, (512 << 1) + (512 << 7)));
    }

    #[test]
    fn nothing_is_there_twice_and_a_refusal_changes_nothing() {
        let mut volumes = Volumes::default();
        volumes.insert(entry("a", 1)).expect("free");
        volumes.insert(entry("b", 2)).expect("free");
        let before = volumes.clone();
        let refused = [
            (volumes.insert(entry("c", 1)), "the number 1"),
            (volumes.insert(entry("a", 3)), "called `a`"),
            (volumes.replace(entry("a", 2)), "called `a`"),
            (volumes.replace(entry("c", 3)), "no volume 3"),
        ];
        for (result, says) in refused {
            assert!(result.as_ref().is_err_and(|what| what.contains(says)), "{says}: {result:?}");
        }
        assert_eq!(volumes, before);
        volumes.replace(entry("c", 2)).expect("its old name is free then");
        volumes.replace(VolumeEntry { size_bytes: 0, ..entry("c", 2) }).expect("and its own it may keep");
        assert_eq!((names(&volumes), volumes.total_bytes()), (vec!["a", "c"], 512 << 1));
    }
}
