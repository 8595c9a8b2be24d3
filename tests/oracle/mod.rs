//! Independent checkers for the tests: thin-provisioning-tools 1.1 or newer (fetched by `tools/oracle`, run as black
//! boxes), and `verify.py` beside this file, which shares no code with the crate.

#![allow(dead_code, reason = "each test binary uses the part it needs")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What a checker made of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    /// Nothing to say against it.
    Clean,
    /// Sound, with counts above their references.
    Leaks,
    /// Anything else.
    Damage,
}

/// The directory of `thin_check`, `thin_dump` and `thin_restore`.
pub fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let output = run(&mut Command::new(project("tools/oracle")));
        assert!(output.status.success(), "tools/oracle: {}", words_of(&output));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}

/// `thin_check`'s opinion, which knows no leaks: it refuses them.
pub fn thin_check(metadata: &Path) -> (Opinion, String) {
    let output = run(Command::new(tools().join("thin_check")).arg(metadata));
    (if output.status.success() { Opinion::Clean } else { Opinion::Damage }, words_of(&output))
}

/// `verify.py`'s opinion.
pub fn verify(metadata: &Path) -> (Opinion, String) {
    let output = run(Command::new("python3").arg(project("tests/oracle/verify.py")).arg(metadata));
    let opinion = match output.status.code() {
        Some(0) => Opinion::Clean,
        Some(3) => Opinion::Leaks,
        _ => Opinion::Damage,
    };
    (opinion, words_of(&output))
}

/// Fails the test unless both checkers find the metadata clean.
pub fn assert_clean(metadata: &Path) {
    for (checker, (opinion, words)) in [("thin_check", thin_check(metadata)), ("verify.py", verify(metadata))]
    {
        assert_eq!(opinion, Opinion::Clean, "{checker} on {}:\n{words}", metadata.display());
    }
}

/// The XML that `thin_dump` makes of the metadata.
pub fn thin_dump(metadata: &Path) -> String {
    let output = run(Command::new(tools().join("thin_dump")).arg(metadata));
    assert!(output.status.success(), "thin_dump: {}", words_of(&output));
    String::from_utf8(output.stdout).expect("XML is UTF-8")
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn words_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}
