//! `thin_check` 1.1 or newer, where there is one: a second opinion beside our own check, which needs nothing.

use std::path::PathBuf;
use std::process::Command;

/// The tool, from `UTHIN_ORACLE` (a directory) or from where `tools/oracle` unpacks it.
fn thin_check() -> Option<PathBuf> {
    let folder = match std::env::var_os("UTHIN_ORACLE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/oracle/root/usr/sbin"),
    };
    Some(folder.join("thin_check")).filter(|tool| tool.exists())
}

/// Requires that `thin_check`, if there is one, finds nothing wrong.
pub fn accepts(metadata: &[u8]) {
    let Some(tool) = thin_check() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), metadata).unwrap();
    let output = Command::new(&tool).arg(file.path()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} refuses the metadata: {words}", tool.display());
}
