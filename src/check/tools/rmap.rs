//! The way back: which volumes have data in a region of the data device, and where.

use crate::check::dump::{Plan, Text};
use crate::check::forest::{Forest, Refuse, read_leaves};
use crate::check::source::Source;
use crate::error::Result;
use crate::format::MappingRecord;
use std::ops::Range;

/// Neighbouring data blocks that a volume has as neighbouring virtual ones. The order of the fields is that of the output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Found {
    data: u64,
    length: u64,
    volume: u64,
    begin: u64,
}

/// Writes what lies in the regions, of every volume that has it (thin_rmap tells only the first of those that share a leaf).
pub(in crate::check) fn rmap(
    source: Source<'_>,
    plan: &Plan,
    regions: &[Range<u64>],
    text: &mut Text<'_>,
) -> Result<()> {
    let regions = joined(regions);
    let mut forest = Forest::<MappingRecord>::new(source);
    let mut found: Vec<Found> = Vec::new();
    let mut leaves = Vec::new();
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        let id = volume.record.id.get();
        let mut open: Option<Found> = None;
        read_leaves::<MappingRecord>(source, &leaves, &mut Refuse, &mut |_, entries| {
            for (key, record) in entries.iter() {
                let block = record.mapping().block.0;
                let Some(region) = region_of(&regions, block) else { continue };
                match &mut open {
                    Some(run)
                        if run.begin + run.length == key
                            && run.data + run.length == block
                            && region.contains(&run.data) =>
                    {
                        run.length += 1;
                    }
                    _ => found.extend(open.replace(Found { data: block, volume: id, begin: key, length: 1 })),
                }
            }
            Ok(())
        })?;
        found.extend(open);
    }
    found.sort_unstable();
    for Found { data, length, volume, begin } in found {
        text.line(
            &["data ", "..", " -> thin(", ") ", "..", "\n"],
            [data, data + length, volume, begin, begin + length],
        )?;
    }
    text.flush()
}

/// The regions in order, those that touch joined.
fn joined(regions: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = regions.to_vec();
    sorted.sort_by_key(|region| region.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for region in sorted {
        match joined.last_mut() {
            Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
            Some(_) | None => joined.push(region),
        }
    }
    joined
}

fn region_of(regions: &[Range<u64>], block: u64) -> Option<&Range<u64>> {
    let index = regions.partition_point(|region| region.start <= block).checked_sub(1)?;
    Some(&regions[index]).filter(|region| region.contains(&block))
}
