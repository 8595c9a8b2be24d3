//! `uthin-fsck metadata_size`, alias `thin_metadata_size`.

use super::{CLEAN, Terminal};
use crate::check::tools::size::metadata_bytes;
use clap::ValueEnum;
use std::str::FromStr;

/// Letters of units: their bytes, their names, and what else they are called. Small letters are binary, large ones decimal.
const UNITS: [(char, u64, &str, &str); 14] = [
    ('b', 1, "bytes", "byte"),
    ('s', 512, "sectors", "sector"),
    ('k', 1 << 10, "kibibytes", "KiB"),
    ('K', 1_000, "kilobytes", "kB"),
    ('m', 1 << 20, "mebibytes", "MiB"),
    ('M', 1_000_000, "megabytes", "MB"),
    ('g', 1 << 30, "gibibytes", "GiB"),
    ('G', 1_000_000_000, "gigabytes", "GB"),
    ('t', 1 << 40, "tebibytes", "TiB"),
    ('T', 1_000_000_000_000, "terabytes", "TB"),
    ('p', 1 << 50, "pebibytes", "PiB"),
    ('P', 1_000_000_000_000_000, "petabytes", "PB"),
    ('e', 1 << 60, "exbibytes", "EiB"),
    ('E', 1_000_000_000_000_000_000, "exabytes", "EB"),
];

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Size of a data block; a number without a unit is in sectors.
    #[arg(short, long, value_name = "SIZE")]
    block_size: Size,
    /// Size of the data device.
    #[arg(short = 's', long, value_name = "SIZE")]
    pool_size: Size,
    /// The most volumes and snapshots there will be.
    #[arg(short, long, value_name = "NUM")]
    max_thins: u64,
    /// The unit of the answer: b, s, k, m, g, t, p, e, or K, M, G, T, P, E for powers of ten; KiB and kilobyte will do as well.
    #[arg(short, long, default_value = "s")]
    unit: Unit,
    /// The number alone, or with the unit's letter or name.
    #[arg(short, long, value_enum, value_name = "OPT", num_args = 0..=1, require_equals = true, default_missing_value = "none")]
    numeric_only: Option<Numeric>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Numeric {
    None,
    Short,
    Long,
}

/// Bytes.
#[derive(Clone, Copy)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" => 512,
            letter => letter.parse::<Unit>()?.bytes,
        };
        let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is no whole number"))?;
        number.checked_mul(unit).map(Size).ok_or_else(|| "too large".to_owned())
    }
}

#[derive(Clone, Copy)]
struct Unit {
    letter: char,
    bytes: u64,
    name: &'static str,
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_meant = |(letter, _, name, other): &(char, u64, &str, &str)| {
            text.chars().eq([*letter]) || text == *other || name.strip_suffix('s') == Some(text)
        };
        let found = UNITS.into_iter().find(is_meant);
        let (letter, bytes, name, _) = found.ok_or_else(|| format!("{text:?} is no unit"))?;
        Ok(Unit { letter, bytes, name })
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &mut Terminal<'_>) -> u8 {
    let Arguments { block_size, pool_size, max_thins, unit, numeric_only } = arguments;
    match metadata_bytes(block_size.0, pool_size.0, *max_thins) {
        Ok(bytes) => {
            let number = in_unit(bytes, unit.bytes);
            terminal.say(&match numeric_only {
                None => format!("{number} {}\n", unit.name),
                Some(Numeric::None) => format!("{number}\n"),
                Some(Numeric::Short) => format!("{number}{}\n", unit.letter),
                Some(Numeric::Long) => format!("{number}{}\n", unit.name),
            });
            CLEAN
        }
        Err(error) => terminal.failed(&error, false),
    }
}

/// Whole numbers as they are, large ones with two digits behind the point, small ones in full.
fn in_unit(bytes: u64, unit: u64) -> String {
    let exact = bytes as f64 / unit as f64;
    if bytes.is_multiple_of(unit) {
        (bytes / unit).to_string()
    } else if exact >= 1.0 {
        format!("{exact:.2}")
    } else {
        exact.to_string()
    }
}
