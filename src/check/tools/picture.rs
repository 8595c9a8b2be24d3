//! Where on the data device what lies: cells of equally many blocks, each with its owner, its sharing and its age.

use crate::check::counts::PAGE_ENTRIES;
use crate::check::dump::{Plan, Sharing};
use crate::check::forest::{Forest, Refuse, read_leaves};
use crate::check::source::Source;
use crate::error::Result;
use crate::format::MappingRecord;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

/// Part of the data device.
#[derive(Clone, PartialEq, Debug, Default)]
pub(in crate::check) struct Cell {
    /// Mappings into it, shared leaves counted once.
    pub(in crate::check) mapped: u64,
    /// Of those, mappings in leaves that several volumes have.
    shared: u64,
    /// Sum of the times of the mappings.
    times: u64,
    /// Mappings by volume, of leaves that one volume has.
    volumes: BTreeMap<u64, u64>,
}

impl Cell {
    /// The volume that has most of what is not shared.
    pub(in crate::check) fn owner(&self) -> Option<u64> {
        self.volumes.iter().max_by_key(|(_, count)| **count).map(|(volume, _)| *volume)
    }

    /// Whether most of it is shared.
    pub(in crate::check) fn is_shared(&self) -> bool {
        self.shared * 2 > self.mapped
    }

    fn age(&self, now: u32) -> f64 {
        let mean = self.times as f64 / self.mapped.max(1) as f64;
        1.0 - mean / f64::from(now.max(1))
    }
}

/// The data device in `count` cells at most.
pub(in crate::check) fn cells(source: Source<'_>, plan: &Plan, count: u64) -> Result<Vec<Cell>> {
    let blocks = plan.pool.data_blocks.clamp(1, source.device_blocks().max(1) * PAGE_ENTRIES);
    let per_cell = blocks.div_ceil(count);
    let mut cells = vec![Cell::default(); blocks.div_ceil(per_cell) as usize];
    let mut forest = Forest::<MappingRecord>::new(source);
    let (mut sharing, mut leaves, mut seen) = (Sharing::default(), Vec::new(), HashSet::new());
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        sharing.add(&leaves);
    }
    for volume in &plan.volumes {
        leaves.clear();
        forest.leaves(volume.root, &mut Refuse, &mut leaves)?;
        leaves.retain(|leaf| sharing.users(leaf.number) == 1 || seen.insert(leaf.number));
        let id = volume.record.id.get();
        read_leaves::<MappingRecord>(source, &leaves, &mut Refuse, &mut |leaf, entries| {
            let is_shared = sharing.users(leaf.number) > 1;
            for (_, record) in entries.iter() {
                let mapping = record.mapping();
                let index = usize::try_from(mapping.block.0 / per_cell).unwrap_or(usize::MAX);
                let Some(cell) = cells.get_mut(index) else { continue };
                cell.mapped += 1;
                cell.times += u64::from(mapping.time.0);
                if is_shared {
                    cell.shared += 1;
                } else {
                    *cell.volumes.entry(id).or_default() += 1;
                }
            }
            Ok(())
        })?;
    }
    Ok(cells)
}

/// A letter for each volume, in their order; many volumes share letters.
fn letter(plan: &Plan, volume: u64) -> char {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let index = plan.volumes.iter().position(|other| other.record.id.get() == volume).unwrap_or(0);
    char::from(LETTERS[index % LETTERS.len()])
}

/// Lines of letters: one for the volume that has most of a cell, `#` where most is shared, `.` where nothing is.
pub(in crate::check) fn as_text(plan: &Plan, cells: &[Cell], columns: usize) -> String {
    let sign = |cell: &Cell| match cell.owner() {
        _ if cell.mapped == 0 => '.',
        Some(owner) if !cell.is_shared() => letter(plan, owner),
        Some(_) | None => '#',
    };
    let mut text = String::new();
    for row in cells.chunks(columns) {
        text.extend(row.iter().map(sign));
        text.push('\n');
    }
    for volume in plan.volumes.iter().take(columns) {
        let id = volume.record.id.get();
        writeln!(text, "{} volume {id}", letter(plan, id)).expect("a string takes everything");
    }
    text + "# shared by volumes, . free\n"
}

/// A picture: a colour for each volume, grey for what is shared, paler the older.
pub(in crate::check) fn as_svg(plan: &Plan, cells: &[Cell], columns: usize) -> String {
    const SIDE: usize = 8;
    let rows = cells.len().div_ceil(columns);
    let (width, height) = (columns * SIDE, rows * SIDE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.mapped > 0) {
        let (x, y) = (index % columns * SIDE, index / columns * SIDE);
        let (hue, saturation, name) = match cell.owner() {
            // Neighbouring numbers far apart on the colour wheel.
            Some(owner) if !cell.is_shared() => (owner * 137 % 360, 70, format!("volume {owner}")),
            Some(_) | None => (0, 0, "shared".to_owned()),
        };
        let lightness = 40.0 + 40.0 * cell.age(plan.pool.time.0);
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" \
             fill=\"hsl({hue},{saturation}%,{lightness:.0}%)\"><title>{name}, {} mappings</title></rect>",
            cell.mapped
        )
        .expect("a string takes everything");
    }
    svg + "</svg>\n"
}
