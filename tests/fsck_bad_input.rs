//! What is given by mistake: every command that reads metadata says one clear thing, and touches nothing.

mod fsck_common;

use fsck_common::{change, folder, fsck, ours, text, unpack};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use uthin::disk::{FileDisk, OpenMode};

/// Commands that read the metadata in FILE.
const COMMANDS: [&[&str]; 9] = [
    &["check", "FILE"],
    &["check", "--auto-repair", "--clear-needs-check-flag", "FILE"],
    &["dump", "FILE"],
    &["dump", "--repair", "FILE"],
    &["ls", "FILE"],
    &["delta", "--thin1", "0", "--thin2", "1", "FILE"],
    &["rmap", "--region", "0..9", "FILE"],
    &["map", "FILE"],
    &["repair", "--dry-run", "-i", "FILE"],
];

/// What a file holds; nothing for what is none.
fn contents(file: &Path) -> Option<Vec<u8>> {
    file.is_file().then(|| fs::read(file).expect("it can be read"))
}

fn refusals(file: &Path, words: &str) {
    let before = contents(file);
    for command in COMMANDS {
        let arguments: Vec<&str> =
            command.iter().map(|word| if *word == "FILE" { text(file) } else { word }).collect();
        let errors = ours(&arguments).refused();
        assert!(errors.contains(words), "{command:?}: {errors}");
        assert_eq!(errors.matches("uthin-fsck: ").count(), 1, "{command:?}: {errors}");
        assert!(contents(file) == before, "{command:?} has changed its input");
    }
}

/// What cannot be read as metadata, but is some.
#[test]
fn a_pool_that_needs_a_newer_tool() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    for (offset, words) in [(360, "features 0x4"), (40, "version 3, expected 2")] {
        let good = fs::read(&path).expect("it is there");
        let value = if offset == 40 { 3_u32 } else { 4 };
        change(&path, 0, |block| block.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes()));
        refusals(&path, words);
        fs::write(&path, good).expect("written");
    }
}

/// Pipes and character devices would be opened, and waited for, by who does not look first.
#[test]
fn what_is_neither_file_nor_block_device() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("a pipe");
    refusals(&pipe, "neither a file nor a block device");
    refusals(Path::new("/dev/zero"), "neither a file nor a block device");
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("a link");
    refusals(&dangling, "no such file");
}

#[test]
fn what_is_no_file_of_metadata() {
    let folder = folder();
    refusals(&folder.path().join("none"), "no such file");
    refusals(folder.path(), "a directory, not metadata");
    let small = folder.path().join("small");
    fs::write(&small, [7; 4095]).expect("written");
    refusals(&small, "4095 bytes are too few");
    let xml = folder.path().join("dump.xml");
    fs::write(&xml, "<superblock uuid=\"\">").expect("written");
    refusals(&xml, "thin_restore makes metadata of it");
}

#[test]
fn what_a_pool_holds_open() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let _held = FileDisk::open(&path, OpenMode::ReadWrite).expect("nobody else has it");
    refusals(&path, &std::process::id().to_string());
}

#[test]
fn a_metadata_snapshot_can_be_looked_at_beside_its_pool() {
    let folder = folder();
    let path = unpack(&folder, "09-held-root");
    let commands: [&[&str]; 4] =
        [&["check", "-m"], &["dump", "-m"], &["ls", "-m"], &["delta", "-m", "--thin1", "7", "--thin2", "8"]];
    let alone: Vec<_> =
        commands.iter().map(|words| ours(&[words, &[text(&path)][..]].concat()).good()).collect();
    let _held = FileDisk::open(&path, OpenMode::ReadWrite).expect("nobody else has it");
    for (words, alone) in commands.iter().zip(alone) {
        let beside = ours(&[words, &[text(&path)][..]].concat()).good();
        assert!(beside == alone, "{words:?}");
    }
}

#[test]
fn noise_is_refused_or_repaired_from_but_never_touched() {
    let folder = folder();
    let path = folder.path().join("noise");
    let noise: Vec<u8> = (0..64 * 4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&path, &noise).expect("written");
    refusals(&path, "");
    assert!(fs::read(&path).expect("it is there") == noise);
}

/// Everything in one command line that would write to `path` is refused with `status`, and the file stays as it was.
fn leaves(path: &Path, arguments: &[&str], status: i32, words: &str) {
    let before = fs::read(path).expect("it is there");
    let told = ours(&[arguments, &[text(path)]].concat());
    assert_eq!(told.status, status, "{arguments:?}: {}{}", told.text(), told.errors);
    assert!(told.errors.contains(words), "{arguments:?}: {}", told.errors);
    assert!(fs::read(path).expect("it is there") == before, "{arguments:?} has changed its input");
}

/// Roots that somebody wants to look at are not those of the pool: written into the superblock they would be.
#[test]
fn roots_given_by_hand_never_get_into_the_superblock() {
    let folder = folder();
    let path = unpack(&folder, "10-needs-check");
    for root in ["--override-mapping-root", "--override-details-root"] {
        leaves(&path, &["check", "--clear-needs-check-flag", root, "3"], 2, "cannot be used with");
        leaves(&path, &["check", "--auto-repair", root, "3"], 2, "cannot be used with");
    }
}

/// A size that the device has not would be the size of the new space maps, or the length of a list of counts.
#[test]
fn auto_repair_leaves_metadata_of_an_impossible_size_alone() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    let good = fs::read(&path).expect("it is there");
    let blocks = good.len() as u64 / 4096;
    let words = "nothing was mended";
    for size in [0, blocks + 1, blocks * 100, 1 << 40, u64::MAX] {
        change(&path, 0, |block| block.0[192..200].copy_from_slice(&size.to_le_bytes()));
        leaves(&path, &["check", "-q", "--auto-repair"], 4, words);
    }
    for size in [1 << 40, u64::MAX] {
        fs::write(&path, &good).expect("written");
        change(&path, 0, |block| block.0[64..72].copy_from_slice(&u64::to_le_bytes(size)));
        leaves(&path, &["check", "-q", "--auto-repair"], 4, words);
    }
    // Cut short: everything in use is still there, and the superblock says that there was more.
    fs::write(&path, &good[..good.len() - 4096]).expect("written");
    leaves(&path, &["check", "-q", "--auto-repair", "--clear-needs-check-flag"], 4, words);
}

/// Such a feature may mean anything to who writes; who only looks may go on.
#[test]
fn features_that_forbid_writing_forbid_a_mend() {
    let folder = folder();
    let path = unpack(&folder, "19-leaked");
    change(&path, 0, |block| block.0[356..360].copy_from_slice(&4_u32.to_le_bytes()));
    assert_eq!(ours(&["check", text(&path)]).status, 3);
    for option in ["--auto-repair", "--clear-needs-check-flag"] {
        leaves(&path, &["check", option], 1, "unknown features 0x4 that forbid writing");
    }
}

/// The pool's metadata, given as the output by mistake while the pool runs.
#[test]
fn an_output_in_use_is_not_emptied() {
    let folder = folder();
    let (input, used) = (unpack(&folder, "04-snap-diverged"), unpack(&folder, "05-chain50"));
    let xml = folder.path().join("xml");
    fs::write(&xml, ours(&["dump", text(&input)]).good()).expect("written");
    let data = folder.path().join("data");
    fs::File::create(&data).and_then(|file| file.set_len(100_000 * 65536)).expect("a sparse file");
    let before = fs::read(&used).expect("it is there");
    let held = FileDisk::open(&used, OpenMode::ReadWrite).expect("nobody else has it");
    let shrink = ["shrink", "--data", text(&data), "--nr-blocks", "60000", "-i", text(&xml), "-o"];
    for command in [&["dump", text(&input), "-o"][..], &["pack", "-i", text(&input), "-f", "-o"], &shrink] {
        let errors = ours(&[command, &[text(&used)]].concat()).refused();
        assert!(errors.contains(&std::process::id().to_string()), "it names the owner: {errors}");
        assert!(fs::read(&used).expect("it is there") == before, "{command:?} has changed a pool in use");
    }
    drop(held);
    ours(&["dump", text(&input), "-o", text(&used)]).good();
    assert!(fs::read(&used).expect("it is there") == fs::read(&xml).expect("it is there"));
}

/// A dump, a list: what was not written was not answered.
#[test]
fn an_answer_that_could_not_be_written_is_a_failure() {
    let folder = folder();
    let path = unpack(&folder, "04-snap-diverged");
    let size = ["metadata_size", "-b", "64k", "-s", "1g", "-m", "10"];
    let commands: [&[&str]; 7] = [
        &["check", text(&path)],
        &["check", "--json", text(&path)],
        &["ls", text(&path)],
        &["ls", "--json", text(&path)],
        &["explain", text(&path), "3"],
        &["map", text(&path)],
        &size,
    ];
    for command in commands {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device that is full");
        let told = fsck().args(command).stdout(full).output().expect("it starts");
        let errors = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{command:?}: {errors}");
        assert!(errors.starts_with("uthin-fsck: writing the output: "), "{command:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{command:?}: {errors}");
    }
}

/// Which file, and what it is instead: every command says what a check says.
#[test]
fn what_is_no_metadata_is_named_and_guessed_at() {
    let folder = folder();
    let path = folder.path().join("packed");
    fs::write(&path, [&b"\x28\xb5\x2f\xfd"[..], &[7; 16384]].concat()).expect("written");
    for words in [text(&path), "compressed with zstd"] {
        refusals(&path, words);
    }
}

/// A loop device, where this process may make one.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path, options: &[&str]) -> Option<Self> {
        let words = [&["--find", "--show"], options].concat();
        let output = Command::new("losetup").args(words).arg(file).output().ok()?;
        let path = String::from_utf8(output.stdout).expect("a path").trim().to_owned();
        output.status.success().then(|| LoopDevice(path.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// What is written to a loop device is written to the file below it.
#[test]
fn a_loop_device_over_the_input_is_no_output() {
    let folder = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    let path = unpack(&folder, "04-snap-diverged");
    let Some(device) = LoopDevice::over(&path, &[]) else {
        return eprintln!("no loop device can be made here: loop devices are not tested");
    };
    let (other, device_below) = (LoopDevice::over(&path, &[]), device.0.as_path());
    let other = other.as_ref().map_or(device_below, |other| &other.0);
    let before = fs::read(&path).expect("it is there");
    for (from, to) in [(path.as_path(), device_below), (device_below, &path), (device_below, other)] {
        for command in [&["repair"][..], &["pack", "-f"]] {
            let errors = ours(&[command, &["-i", text(from), "-o", text(to)]].concat()).refused();
            assert!(errors.contains("is the input as well"), "{command:?}: {errors}");
        }
        let errors = ours(&["dump", "-o", text(to), text(from)]).refused();
        assert!(errors.contains("is the input as well"), "{errors}");
    }
    assert!(fs::read(&path).expect("it is there") == before);
    // Parts of a file that do not overlap are different.
    let both = folder.path().join("both");
    let size = before.len();
    fs::write(&both, [&before[..], &vec![0; size]].concat()).expect("written");
    let size = size.to_string();
    let first = LoopDevice::over(&both, &["--sizelimit", &size]).expect("one more");
    let second = LoopDevice::over(&both, &["--offset", &size]).expect("one more");
    ours(&["repair", "-i", text(&first.0), "-o", text(&second.0)]).good();
    assert!(fs::read(&both).expect("it is there")[..before.len()] == before);
    ours(&["check", text(&second.0)]).good();
}
