//! What LVM knows of a thin pool: names, sizes, device ids. Read from a file that `vgcfgbackup` has written.
//!
//! In the section of the volume group are `extent_size` (in sectors) and `logical_volumes`. A pool is a logical volume
//! whose segment is of type `thin-pool`, with `chunk_size` (in sectors) and `transaction_id`; a thin volume's is of type
//! `thin`, with `thin_pool` (a name), `device_id`, `transaction_id` (the pool's when it was made), and perhaps `origin` or
//! `external_origin`. Sizes are the sum of the segments' `extent_count`.

use super::backup::{Backup, Known, PoolFacts};
use super::lvm_text::{Section, parse, wrong};
use crate::control::api::Discard;
use crate::control::options::PoolOptions;
use crate::engine::WhenFull;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{SECTOR_BYTES, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// How long LVM's pools let writes wait unless they were told to give errors: the kernel module's own patience.
const QUEUE_SECONDS: u32 = 60;

/// Reads the file. `pool` is the thin pool's name in it, which may be left away if there is but one.
pub(super) fn read(path: &Path, pool: Option<&str>) -> Result<Backup> {
    let bytes = super::backup::read_file(path)?;
    let whence = path.display().to_string();
    let root = parse(&bytes, &whence)?;
    let groups: Vec<_> =
        root.sections().filter(|(_, _, section)| section.value("extent_size").is_some()).collect();
    let [(group_name, line, group)] = groups[..] else {
        let what = format!("it describes {} volume groups, where one was expected", groups.len());
        return Err(wrong(&whence, 1, &what));
    };
    let group = Group { whence: &whence, name: group_name, line, section: group };
    let volumes = group.volumes()?;
    let pool = choose_pool(&group, &volumes, pool)?;
    group.backup(&volumes, pool)
}

struct Group<'a> {
    whence: &'a str,
    name: &'a str,
    line: u64,
    section: &'a Section,
}

/// A logical volume with its first segment.
struct Logical<'a> {
    name: &'a str,
    line: u64,
    section: &'a Section,
    segment: &'a Section,
    extents: u64,
}

impl Logical<'_> {
    fn is(&self, kind: &str) -> bool {
        // Types may carry flags behind a `+`.
        self.segment.text("type").and_then(|words| words.split('+').next()) == Some(kind)
    }
}

impl<'a> Group<'a> {
    fn volumes(&self) -> Result<Vec<Logical<'a>>> {
        let Some(all) = self.section.section("logical_volumes") else { return Ok(Vec::new()) };
        all.sections().map(|(name, line, section)| self.volume(name, line, section)).collect()
    }

    fn volume(&self, name: &'a str, line: u64, section: &'a Section) -> Result<Logical<'a>> {
        let wrong = |what: &str| wrong(self.whence, line, &format!("logical volume `{name}`: {what}"));
        let mut segments = section.sections().filter(|(key, _, _)| key.starts_with("segment"));
        let (_, _, segment) = segments.next().ok_or_else(|| wrong("it has no segment"))?;
        let extents = |segment: &Section| {
            segment.number("extent_count").ok_or_else(|| wrong("a segment without extent_count"))
        };
        let first = extents(segment)?;
        let extents = segments.try_fold(first, |sum, (_, _, segment)| {
            sum.checked_add(extents(segment)?).ok_or_else(|| wrong("it is larger than can be"))
        })?;
        Ok(Logical { name, line, section, segment, extents })
    }

    fn backup(&self, volumes: &[Logical<'a>], pool: &Logical<'a>) -> Result<Backup> {
        let extent_sectors =
            self.section.number("extent_size").filter(|sectors| *sectors > 0).ok_or_else(|| {
                wrong(self.whence, self.line, "the volume group has an extent_size that cannot be")
            })?;
        let thin: Vec<_> = volumes
            .iter()
            .filter(|volume| volume.is("thin") && volume.segment.text("thin_pool") == Some(pool.name))
            .collect();
        let mut by_name = HashMap::new();
        for volume in &thin {
            let line = volume.segment.value("device_id").map_or(volume.line, |(line, _)| line);
            let id = volume.segment.number("device_id").and_then(VolumeId::new).ok_or_else(|| {
                let what = format!(
                    "logical volume `{}`: a device_id of 0 to {} was expected",
                    volume.name,
                    VolumeId::MAX
                );
                wrong(self.whence, line, &what)
            })?;
            by_name.insert(volume.name, id);
        }
        let mut known = BTreeMap::new();
        for volume in thin {
            let id = by_name[volume.name];
            let bytes =
                extent_sectors.checked_mul(SECTOR_BYTES).and_then(|one| one.checked_mul(volume.extents));
            let wrong = |what: &str| {
                wrong(self.whence, volume.line, &format!("logical volume `{}`: {what}", volume.name))
            };
            let entry = Known {
                name: volume.name.to_owned(),
                size_bytes: bytes.ok_or_else(|| wrong("it is larger than can be"))?,
                // The id in force when the message to make it was sent; a step to either side is allowed for.
                made_in: volume
                    .segment
                    .number("transaction_id")
                    .map(|id| id.saturating_sub(1)..=id.saturating_add(1)),
                read_only: !volume.section.lists("status", "WRITE"),
                created_unix_seconds: volume.section.number("creation_time").filter(|seconds| *seconds > 0),
                origin: volume.segment.text("origin").and_then(|name| by_name.get(name).copied()),
                external_origin: volume.segment.text("external_origin").map(str::to_owned),
            };
            if let Some(other) = known.insert(id, entry) {
                return Err(wrong(&format!("it has the device_id {id}, which `{}` has already", other.name)));
            }
        }
        Ok(Backup { whence: self.whence.to_owned(), volumes: known, pool: Some(facts(self, pool)?) })
    }
}

fn choose_pool<'a, 'b>(
    group: &Group<'_>,
    volumes: &'b [Logical<'a>],
    wanted: Option<&str>,
) -> Result<&'b Logical<'a>> {
    // `VG/POOL`, as LVM's commands write it, will do as well.
    let wanted = wanted.map(|name| name.strip_prefix(&format!("{}/", group.name)).unwrap_or(name));
    let pools: Vec<_> = volumes.iter().filter(|volume| volume.is("thin-pool")).collect();
    let names = pools.iter().map(|pool| pool.name).collect::<Vec<_>>().join(", ");
    match (wanted, &pools[..]) {
        (_, []) => {
            let what = format!("{}: volume group `{}` has no thin pool", group.whence, group.name);
            Err(Error::new(ErrorKind::NotFound, what).hint("give the backup of the pool's volume group"))
        }
        (None, [one]) => Ok(*one),
        (None, _) => {
            let what = format!("{}: volume group `{}` has several thin pools", group.whence, group.name);
            Err(Error::new(ErrorKind::Invalid, what).hint(format!("say which with --lvm-pool: {names}")))
        }
        (Some(name), _) => pools.iter().copied().find(|pool| pool.name == name).ok_or_else(|| {
            let what = format!("{}: volume group `{}` has no thin pool `{name}`", group.whence, group.name);
            Error::new(ErrorKind::NotFound, what).hint(format!("its thin pools are {names}"))
        }),
    }
}

fn facts(group: &Group<'_>, pool: &Logical<'_>) -> Result<PoolFacts> {
    let needed = |key: &str| {
        pool.segment.number(key).ok_or_else(|| {
            wrong(group.whence, pool.line, &format!("thin pool `{}`: it has no {key}", pool.name))
        })
    };
    let discard = match pool.segment.text("discards") {
        Some("nopassdown") => Discard::NoPassdown,
        Some("ignore") => Discard::Ignore,
        Some(_) | None => Discard::Passdown,
    };
    let errors =
        pool.section.lists("flags", "ERROR_WHEN_FULL") || pool.section.lists("status", "ERROR_WHEN_FULL");
    Ok(PoolFacts {
        name: format!("{}/{}", group.name, pool.name),
        block_size_bytes: needed("chunk_size")?.saturating_mul(SECTOR_BYTES),
        transaction_id: needed("transaction_id")?,
        options: PoolOptions {
            discard,
            // LVM leaves the line away where it does not zero.
            zero_new_blocks: pool.segment.number("zero_new_blocks").is_some_and(|zero| zero != 0),
            when_full: if errors { WhenFull::Error } else { WhenFull::Queue(QUEUE_SECONDS) },
            ..PoolOptions::default()
        },
    })
}
