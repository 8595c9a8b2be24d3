//! On real files: in the temporary directory (direct I/O, usually) and in shared memory.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const SECTOR: u64 = FileDisk::SECTOR_BYTES as u64;

/// A directory on each kind of filesystem at hand.
fn directories() -> Vec<TempDir> {
    let mut directories = vec![TempDir::new().unwrap()];
    directories.extend(TempDir::new_in("/dev/shm").ok());
    directories.extend(TempDir::new_in("/var/tmp").ok());
    directories
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn kind(result: Result<FileDisk>) -> ErrorKind {
    result.map(|_| ()).unwrap_err().kind()
}

#[test]
fn keeps_what_is_written_also_from_unaligned_memory() {
    for directory in directories() {
        let disk = FileDisk::create(&directory.path().join("disk"), 4 << 20).unwrap();
        assert_eq!(disk.size_bytes(), 4 << 20);
        assert!(!disk.is_device());
        let bytes = pattern(3 << 20, 1);
        for shift in [0, 1, 511] {
            let source = [vec![0; shift], bytes.clone()].concat();
            disk.write_at(SECTOR, &source[shift..]).unwrap();
            let mut read = vec![0; shift + bytes.len()];
            disk.read_at(SECTOR, &mut read[shift..]).unwrap();
            assert!(read[shift..] == bytes, "shift {shift} in {}", directory.path().display());
            disk.write_at(SECTOR, &vec![0; bytes.len()]).unwrap();
        }
        disk.flush().unwrap();
    }
}

#[test]
fn nothing_grows_and_the_end_is_the_end() {
    for directory in directories() {
        let path = directory.path().join("disk");
        let disk = FileDisk::create(&path, 8 * SECTOR).unwrap();
        let sectors = vec![7; 2 * SECTOR as usize];
        disk.write_at(6 * SECTOR, &sectors).unwrap();
        for offset in [7 * SECTOR, 8 * SECTOR, u64::MAX - SECTOR + 1] {
            let refused = disk.write_at(offset, &sectors).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
            let refused = disk.read_at(offset, &mut sectors.clone()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
            let refused = disk.discard(offset, 2 * SECTOR).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 * SECTOR);
    }
}

#[test]
fn direct_io_takes_whole_sectors_only() {
    for directory in directories() {
        let disk = FileDisk::create(&directory.path().join("disk"), 1 << 20).unwrap();
        let mut bytes = AlignedBuffer::zeroed(1000);
        let results = [disk.read_at(0, &mut bytes), disk.write_at(1, &bytes[..512])];
        for result in results {
            match disk.is_direct() {
                true => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput),
                false => result.unwrap(),
            }
        }
    }
}

#[test]
fn discard_gives_space_back_and_keeps_the_size() {
    use std::os::unix::fs::MetadataExt;
    for directory in directories() {
        let path = directory.path().join("disk");
        let disk = FileDisk::create(&path, 1 << 20).unwrap();
        disk.write_at(0, &pattern(1 << 20, 3)).unwrap();
        disk.flush().unwrap();
        let before = std::fs::metadata(&path).unwrap();
        match disk.discard(65_536, 1 << 19) {
            Ok(()) => {
                let mut read = vec![1; 1 << 19];
                disk.read_at(65_536, &mut read).unwrap();
                assert!(read.iter().all(|byte| *byte == 0));
                assert!(std::fs::metadata(&path).unwrap().blocks() < before.blocks());
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
        disk.discard(4096, 0).unwrap();
        let mut edge = vec![0; 512];
        disk.read_at(65_536 - 512, &mut edge).unwrap();
        assert_eq!(edge, pattern(1 << 20, 3)[65_536 - 512..65_536]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn what_is_set_aside_takes_space_and_keeps_its_bytes() {
    use std::os::unix::fs::MetadataExt;
    for directory in directories() {
        let path = directory.path().join("disk");
        let disk = FileDisk::create(&path, 1 << 20).unwrap();
        let bytes = pattern(8 << 10, 5);
        disk.write_at(64 << 10, &bytes).unwrap();
        match disk.set_aside(0..1 << 19) {
            Ok(()) => {
                let blocks = std::fs::metadata(&path).unwrap().blocks();
                assert!(
                    ((1 << 10)..(3 << 9)).contains(&blocks),
                    "{blocks} in {}",
                    directory.path().display()
                );
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
        let mut read = vec![1; 80 << 10];
        disk.read_at(0, &mut read).unwrap();
        assert!(read[64 << 10..72 << 10] == bytes && read[..64 << 10].iter().all(|byte| *byte == 0));
        assert_eq!(disk.set_aside(1 << 10..(1 << 20) + 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_new_file_is_sparse_and_must_not_exist() {
    use std::os::unix::fs::MetadataExt;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    drop(FileDisk::create(&path, 1 << 30).unwrap());
    assert!(std::fs::metadata(&path).unwrap().blocks() < 100);
    assert_eq!(kind(FileDisk::create(&path, 1 << 20)), ErrorKind::Exists);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30, "it was left alone");
    assert_eq!(FileDisk::open(&path, OpenMode::ReadWrite).unwrap().size_bytes(), 1 << 30);
}

#[test]
fn a_file_that_cannot_be_made_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    assert_eq!(kind(FileDisk::create(&path, 1 << 63)), ErrorKind::Io);
    assert!(!path.exists());
    assert_eq!(kind(FileDisk::create(&directory.path().join("no/disk"), 512)), ErrorKind::NotFound);
}

#[test]
fn refuses_what_is_no_disk() {
    let directory = TempDir::new().unwrap();
    assert_eq!(kind(FileDisk::open(directory.path(), OpenMode::ReadOnly)), ErrorKind::Invalid);
    assert_eq!(kind(FileDisk::open(Path::new("/dev/zero"), OpenMode::ReadWrite)), ErrorKind::Invalid);
    assert_eq!(kind(FileDisk::open(&directory.path().join("none"), OpenMode::ReadOnly)), ErrorKind::NotFound);
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(kind(FileDisk::open(&socket, OpenMode::ReadOnly)), ErrorKind::Invalid);
}

#[test]
fn small_files_open_too() {
    let directory = TempDir::new().unwrap();
    for size in [0_u64, 100, 512, 1000, 5000] {
        let path = directory.path().join(size.to_string());
        std::fs::write(&path, vec![9; size as usize]).unwrap();
        let disk = FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
        assert_eq!(disk.size_bytes(), size);
        if size >= 512 {
            disk.read_at(0, &mut [0; 512]).unwrap();
        }
    }
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let first = FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
    let second = FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
    assert!(second.write_at(0, &[0; 512]).is_err());
    let refused = FileDisk::open(&path, OpenMode::ReadWrite).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.message().contains("in use"), "{refused}");
    drop((first, second));
    let _writer = FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(kind(FileDisk::open(&path, OpenMode::ReadOnly)), ErrorKind::Busy);
}

/// Ends the process that it holds with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that holds an exclusive lock on a file until its input ends.
fn hold_lock(path: &Path) -> Ended {
    let child = Command::new("flock")
        .args(["--exclusive", "--no-fork"])
        .arg(path)
        .args(["sh", "-c", "echo held; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Ended(child.expect("util-linux's flock is installed"));
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}

#[test]
fn a_conflict_names_the_other_process() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let mut holder = hold_lock(&path);
    let refused = FileDisk::open(&path, OpenMode::ReadWrite).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.next_step().is_some());
    let place = std::fs::read_to_string("/proc/locks").unwrap();
    if place.contains(&format!(" {} ", holder.0.id())) {
        let owner = format!("process {} (sh)", holder.0.id());
        assert!(refused.message().contains(&owner), "{refused}");
    }
    holder.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.0.wait().unwrap();
    FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
}

#[test]
fn a_lock_dies_with_its_process() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let holder = hold_lock(&path);
    assert_eq!(kind(FileDisk::open(&path, OpenMode::ReadOnly)), ErrorKind::Busy);
    drop(holder);
    FileDisk::open(&path, OpenMode::ReadOnly).unwrap();
}

/// The file is still open after the process that locked it has ended, as with an io_uring that has something under way.
#[test]
fn a_lock_that_a_dead_process_left_is_waited_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let script = r#"exec 9<>"$1"; flock -n 9 || exit 1; sleep 1 >&- 2>&- &"#;
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(&path).status().unwrap();
    assert!(status.success(), "flock is in the package util-linux");
    let begin = std::time::Instant::now();
    FileDisk::open(&path, OpenMode::ReadWrite).unwrap();
    assert!(begin.elapsed().as_millis() > 300, "the lock was there");
}

/// A loop device, where this process may make one.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then(|| LoopDevice { path: path.into() })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn a_block_device_is_a_disk_too() {
    use std::os::unix::fs::MetadataExt;
    let directory = TempDir::new_in("/var/tmp").unwrap();
    let backing = directory.path().join("backing");
    drop(FileDisk::create(&backing, 8 << 20).unwrap());
    let Some(device) = LoopDevice::over(&backing) else {
        return eprintln!("no loop device can be made here: block devices are not tested");
    };
    let disk = FileDisk::open(&device.path, OpenMode::ReadWrite).unwrap();
    assert_eq!((disk.size_bytes(), disk.is_device()), (8 << 20, true));
    let bytes = pattern(1 << 20, 5);
    disk.write_at(SECTOR, &bytes).unwrap();
    disk.flush().unwrap();
    let mut read = vec![0; 1 << 20];
    disk.read_at(SECTOR, &mut read).unwrap();
    assert!(read == bytes);
    assert_eq!(disk.read_at(8 << 20, &mut [0; 512]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let before = std::fs::metadata(&backing).unwrap().blocks();
    disk.discard(0, 8 << 20).unwrap();
    disk.flush().unwrap();
    assert!(std::fs::metadata(&backing).unwrap().blocks() < before);

    // Twice from here: the lock tells. By somebody who has it exclusively without a lock: the kernel tells.
    let refused = FileDisk::open(&device.path, OpenMode::ReadWrite).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.message().ends_with("by this process itself"), "{refused}");
    drop(disk);
    let other = open_file(&device.path, OFlags::RDWR | OFlags::EXCL).unwrap();
    let refused = FileDisk::open(&device.path, OpenMode::ReadWrite).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.next_step().unwrap().contains("lsblk"), "{refused}");
    drop(other);
    FileDisk::open(&device.path, OpenMode::ReadWrite).unwrap();
}
