//! `uthin-fsck ls`, alias `thin_ls`: a table of volumes.

use super::beside::open_state;
use super::{CLEAN, Terminal, to_json};
use crate::check::dump::{Plan, State, VolumePlan, plan, superblock_of};
use crate::check::source::Source;
use crate::check::tools::list::{Taken, taken};
use crate::error::Result;
use crate::units::SECTOR_BYTES;
use clap::ValueEnum;
use std::path::PathBuf;

/// A column.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Field {
    Dev,
    MappedBlocks,
    ExclusiveBlocks,
    SharedBlocks,
    HighestBlock,
    MappedSectors,
    ExclusiveSectors,
    SharedSectors,
    MappedBytes,
    ExclusiveBytes,
    SharedBytes,
    Mapped,
    Exclusive,
    Shared,
    Transaction,
    CreateTime,
    SnapTime,
}

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The metadata: a file or block device.
    #[arg(value_name = "FILE")]
    metadata: PathBuf,
    /// Columns, separated by commas.
    #[arg(
        short = 'o',
        long = "format",
        value_name = "FIELDS",
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        default_value = "DEV,MAPPED,CREATE_TIME,SNAP_TIME"
    )]
    fields: Vec<Field>,
    /// Without the line of titles.
    #[arg(long)]
    no_headers: bool,
    /// The volumes as the metadata snapshot has them.
    #[arg(short, long)]
    metadata_snap: bool,
    /// Everything, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    match table(arguments) {
        Ok(text) => {
            terminal.say(&text);
            CLEAN
        }
        Err(error) => terminal.failed_on(&arguments.metadata, error, arguments.json),
    }
}

fn table(arguments: &Arguments) -> Result<String> {
    let state = if arguments.metadata_snap { State::Snapshot } else { State::Live };
    let disk = open_state(&arguments.metadata, state)?;
    let source = Source::new(&*disk);
    let plan = plan(source, &superblock_of(source, state)?)?;
    let needs_mappings = |field: &Field| match field {
        Field::ExclusiveBlocks
        | Field::SharedBlocks
        | Field::HighestBlock
        | Field::ExclusiveSectors
        | Field::SharedSectors
        | Field::ExclusiveBytes
        | Field::SharedBytes
        | Field::Exclusive
        | Field::Shared => true,
        Field::Dev
        | Field::MappedBlocks
        | Field::MappedSectors
        | Field::MappedBytes
        | Field::Mapped
        | Field::Transaction
        | Field::CreateTime
        | Field::SnapTime => false,
    };
    let taken = match arguments.json || arguments.fields.iter().any(needs_mappings) {
        true => {
            let live = superblock_of(source, State::Live)?;
            taken(source, &plan, live.data_space_map.total_blocks.get())?
        }
        false => vec![Taken::default(); plan.volumes.len()],
    };
    Ok(if arguments.json { json(&plan, &taken) } else { text(arguments, &plan, &taken) })
}

fn text(arguments: &Arguments, plan: &Plan, taken: &[Taken]) -> String {
    let title =
        |field: &Field| field.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let mut rows = Vec::new();
    if !arguments.no_headers {
        rows.push(arguments.fields.iter().map(title).collect::<Vec<_>>());
    }
    for (volume, taken) in plan.volumes.iter().zip(taken) {
        rows.push(arguments.fields.iter().map(|field| cell(*field, plan, volume, taken)).collect());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..arguments.fields.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$} "));
        cells.collect::<String>() + "\n"
    };
    rows.iter().map(line).collect()
}

fn cell(field: Field, plan: &Plan, volume: &VolumePlan, taken: &Taken) -> String {
    let record = &volume.record;
    let sectors = u64::from(plan.pool.data_block_sectors);
    let (mapped, exclusive) = (record.mapped_blocks, taken.exclusive_blocks);
    let shared = mapped.saturating_sub(exclusive);
    let in_sectors = |blocks: u64| blocks.saturating_mul(sectors);
    let in_bytes = |blocks: u64| in_sectors(blocks).saturating_mul(SECTOR_BYTES);
    match field {
        Field::Dev => record.id.to_string(),
        Field::MappedBlocks => mapped.to_string(),
        Field::ExclusiveBlocks => exclusive.to_string(),
        Field::SharedBlocks => shared.to_string(),
        Field::HighestBlock => taken.highest_block.unwrap_or(0).to_string(),
        Field::MappedSectors => in_sectors(mapped).to_string(),
        Field::ExclusiveSectors => in_sectors(exclusive).to_string(),
        Field::SharedSectors => in_sectors(shared).to_string(),
        Field::MappedBytes => in_bytes(mapped).to_string(),
        Field::ExclusiveBytes => in_bytes(exclusive).to_string(),
        Field::SharedBytes => in_bytes(shared).to_string(),
        Field::Mapped => short(in_bytes(mapped)),
        Field::Exclusive => short(in_bytes(exclusive)),
        Field::Shared => short(in_bytes(shared)),
        Field::Transaction => record.transaction_id.to_string(),
        Field::CreateTime => record.creation_time.to_string(),
        Field::SnapTime => record.snapshotted_time.to_string(),
    }
}

/// A size in the largest unit that leaves up to 8192 of them. Below 1024 of them to the nearest, above rounded down, as
/// thin_ls has it.
fn short(bytes: u64) -> String {
    if bytes == 0 {
        return "0b".to_owned();
    }
    let mut unit = 1_u64;
    for name in ["", "KiB", "MiB", "GiB", "TiB"] {
        if bytes <= 8192 * unit {
            let rounds_up = bytes < 1024 * unit && bytes % unit * 2 >= unit && unit > 1;
            return format!("{}{name}", bytes / unit + u64::from(rounds_up));
        }
        unit *= 1024;
    }
    format!("{}PiB", bytes / unit)
}

fn json(plan: &Plan, taken: &[Taken]) -> String {
    let volume = |(volume, taken): (&VolumePlan, &Taken)| {
        let record = &volume.record;
        serde_json::json!({
            "id": record.id.get(),
            "mapped_blocks": record.mapped_blocks,
            "exclusive_blocks": taken.exclusive_blocks,
            "shared_blocks": record.mapped_blocks.saturating_sub(taken.exclusive_blocks),
            "highest_block": taken.highest_block,
            "transaction_id": record.transaction_id,
            "creation_time": record.creation_time,
            "snapshotted_time": record.snapshotted_time,
        })
    };
    let volumes: Vec<_> = plan.volumes.iter().zip(taken).map(volume).collect();
    let block_bytes = u64::from(plan.pool.data_block_sectors) * SECTOR_BYTES;
    to_json(&serde_json::json!({ "schema": "uthin/v1", "block_size_bytes": block_bytes, "volumes": volumes }))
}
