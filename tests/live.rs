//! The daemon under load from real clients, killed with SIGKILL: the stories are in `tests/live/*.py`.

use std::path::Path;
use std::process::Command;

/// What a story ends with where the system does not allow what it needs.
const CANNOT: i32 = 77;

/// Runs a story. One that cannot be told here says so, and counts as passed.
fn story(script: &str, arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_uthin")).parent().expect("a binary lies in a directory");
    // The system's interpreter: Debian's libnbd module belongs to it.
    let output = Command::new("/usr/bin/python3")
        .arg(root.join("tests/live").join(script))
        .args(arguments)
        .env("UTHIN_BIN_DIR", binaries)
        .output()
        .expect("python3 starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!("{stdout}");
    if output.status.code() == Some(CANNOT) {
        return eprintln!("{script} {arguments:?} is not tested");
    }
    assert!(output.status.success(), "{script}: {}\n{stdout}\n{stderr}", output.status);
}

#[test]
fn twenty_kills_lose_no_acknowledged_flush() {
    story("torture.py", &["20"]);
}

#[test]
fn ten_kills_lose_no_acknowledged_flush_of_partial_blocks() {
    story("torture.py", &["10", "20261122", "partial"]);
}

#[test]
fn ten_kills_lose_no_acknowledged_write_of_a_pool_with_a_journal() {
    story("torture.py", &["10", "20261123", "partial", "journal"]);
}

#[test]
fn snapshots_every_second_for_a_minute_equal_a_model_of_their_moment() {
    story("snapshots.py", &["60"]);
}

#[test]
fn a_full_tmpfs_refuses_data_and_nothing_else() {
    story("full.py", &["tmpfs"]);
}

#[test]
fn a_full_ext4_refuses_data_and_nothing_else() {
    story("full.py", &["ext4"]);
}
