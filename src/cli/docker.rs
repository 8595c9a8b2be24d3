//! `pool status --format docker`: what `docker info` prints of its devicemapper driver, for scripts that read that.
//!
//! Every key is there, in Docker's order, sizes in powers of 1000 with four digits. What has no counterpart here says so:
//! there is no udev and no removal that could be deferred, deletion is always finished in the background, and the base
//! device is the volume `base`, if there is one.

use crate::control::api::PoolInfo;
use std::path::Path;

/// The block, one line a key. `base_bytes` is the size of the volume that new ones are snapshots of; 0 if there is none.
pub(super) fn block(pool: &PoolInfo, base_bytes: u64) -> String {
    // Docker shows the device, not the link to it.
    let file = |name: &str| {
        let path = Path::new(&pool.path).join(name);
        path.canonicalize().unwrap_or(path).display().to_string()
    };
    let minimum_free_bytes = pool.options.min_free.bytes_of(pool.data.total_bytes);
    let lines = [
        ("Pool Name", pool.pool.clone()),
        ("Pool Blocksize", human(pool.block_size_bytes)),
        ("Base Device Size", human(base_bytes)),
        // Whatever clients have put on their volumes: nobody has looked.
        ("Backing Filesystem", "<unknown>".to_owned()),
        ("Udev Sync Supported", "false".to_owned()),
        ("Data file", file("data")),
        ("Metadata file", file("metadata")),
        ("Data Space Used", human(pool.data.used_bytes)),
        ("Data Space Total", human(pool.data.total_bytes)),
        ("Data Space Available", human(pool.data.free_bytes)),
        ("Metadata Space Used", human(pool.metadata.used_bytes)),
        ("Metadata Space Total", human(pool.metadata.total_bytes)),
        ("Metadata Space Available", human(pool.metadata.free_bytes)),
        ("Thin Pool Minimum Free Space", human(minimum_free_bytes)),
        ("Deferred Removal Enabled", "false".to_owned()),
        ("Deferred Deletion Enabled", "true".to_owned()),
        ("Deferred Deleted Device Count", pool.deleting.len().to_string()),
        ("Library Version", format!("uthin {}", env!("CARGO_PKG_VERSION"))),
    ];
    lines.iter().map(|(key, value)| format!(" {key}: {value}\n")).collect()
}

/// As Docker writes sizes: powers of 1000, four digits, no zeros at the end of a fraction.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        0.0..10.0 => 3,
        10.0..100.0 => 2,
        100.0..1000.0 => 1,
        _ => 0,
    };
    let number = format!("{value:.decimals$}");
    let number =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_docker_does() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (65_536, "65.54kB"),
            (10_737_418_240, "10.74GB"),
            (107_374_182_400, "107.4GB"),
            (2_147_483_648, "2.147GB"),
            (1_042_000_000, "1.042GB"),
            (999_999, "1000kB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
