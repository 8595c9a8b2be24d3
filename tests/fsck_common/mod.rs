//! What the tests of `uthin-fsck` share: fixtures unpacked, the program run, the tools of others run beside it.

#![allow(dead_code, reason = "each test binary uses the part it needs")]

pub mod expanded;
#[path = "../oracle/mod.rs"]
pub mod oracle;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use uthin::format::Block;
use uthin::units::MetaBlock;

/// What a program answered.
pub struct Told {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub errors: String,
}

impl Told {
    fn of(output: Output) -> Self {
        Told {
            status: output.status.code().expect("not killed"),
            out: output.stdout,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The standard output of a success.
    #[track_caller]
    pub fn good(self) -> Vec<u8> {
        assert_eq!(self.status, 0, "{}{}", self.text(), self.errors);
        self.out
    }

    /// The words of a failure, which begin with the program's name and are no panic.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_eq!(self.status, 1, "{}{}", self.text(), self.errors);
        assert!(self.errors.starts_with("uthin-fsck: "), "{}", self.errors);
        self.errors
    }
}

/// The program itself.
pub fn fsck() -> Command {
    Command::new(env!("CARGO_BIN_EXE_uthin-fsck"))
}

/// Runs `uthin-fsck` with words and paths.
pub fn ours<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Told {
    Told::of(fsck().args(arguments).output().expect("it starts"))
}

/// Runs one of the tools of others.
pub fn theirs<S: AsRef<std::ffi::OsStr>>(tool: &str, arguments: &[S]) -> Told {
    Told::of(Command::new(oracle::tools().join(tool)).args(arguments).output().expect("it starts"))
}

/// Full names of all fixtures.
pub fn fixture_names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let names = files.map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<_> =
        names.filter_map(|name| Some(name.strip_suffix(".bin.zst")?.to_owned())).collect();
    names.sort();
    assert_eq!(names.len(), 20);
    names
}

/// Unpacks a fixture, by its full name, into `folder`.
pub fn unpack(folder: &TempDir, name: &str) -> PathBuf {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.bin.zst"));
    let mut decoder = zstd::Decoder::new(fs::File::open(packed).expect("a fixture")).expect("zstd");
    decoder.window_log_max(31).expect("a legal window");
    let path = folder.path().join(name);
    std::io::copy(&mut decoder, &mut fs::File::create(&path).expect("a file")).expect("it unpacks");
    path
}

/// A directory that goes away with the test.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A sparse file of so many metadata blocks.
pub fn empty_device(folder: &TempDir, name: &str, blocks: u64) -> PathBuf {
    let path = folder.path().join(name);
    fs::File::create(&path).and_then(|file| file.set_len(blocks * 4096)).expect("a sparse file");
    path
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Changes a block of an image in place and seals it again as what it was.
pub fn change(path: &Path, number: u64, change: impl FnOnce(&mut Block)) {
    let mut bytes = fs::read(path).expect("it is there");
    let place = number as usize * 4096;
    let mut block = Block(*bytes[place..].first_chunk().expect("a block"));
    let kind = block.kind().expect("it was sound");
    change(&mut block);
    block.seal(MetaBlock(number), kind);
    bytes[place..place + 4096].copy_from_slice(&block.0);
    fs::write(path, bytes).expect("written");
}
