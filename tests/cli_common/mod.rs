//! What the tests of the command line share: a place for pools, commands and their outcome, a daemon, a small NBD client.

#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod control;
pub mod nbd;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Waits for something that a daemon does in its own time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A directory for the files of one test.
pub struct Place {
    directory: tempfile::TempDir,
}

/// A pool's name on the command line is `./p` unless a test wants more of them: commands run inside the place.
pub const POOL: &str = "./p";

impl Place {
    /// An empty place.
    pub fn empty() -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("uthin-cli.");
        let directory = match std::env::var_os("UTHIN_TEST_DIR") {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        Place { directory: directory.expect("there is a place for temporary files") }
    }

    /// An empty place in memory, where the system has one: for tests of large numbers, in which the disk's time is all there is.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        match tempfile::Builder::new().prefix("uthin-cli.").tempdir_in(memory) {
            Ok(directory) => Place { directory },
            Err(_) => Self::empty(),
        }
    }

    /// A place with a pool of that size at `./p`.
    pub fn with_pool(size: &str) -> Self {
        let place = Self::empty();
        place.ok(&["pool", "create", POOL, "--size", size]);
        place
    }

    /// A place with a pool of that size at `./p` that has no journal: of a daemon that was killed it has what was committed, as dm-thin's have.
    pub fn with_faithful_pool(size: &str) -> Self {
        let place = Self::empty();
        place.ok(&["pool", "create", POOL, "--size", size, "--journal", "none"]);
        place
    }

    /// A place whose pool has a copy of the kernel-made metadata `name`, and as much data space as that needs. No catalog.
    pub fn with_fixture(name: &str) -> Self {
        let place = Self::empty();
        std::fs::create_dir(place.path("p")).expect("made");
        let packed =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.bin.zst"));
        let packed = std::fs::read(&packed).unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
        let bytes = zstd::decode_all(&packed[..]).expect("the fixture is sound");
        let block_bytes = u64::from(u32::from_le_bytes(bytes[336..340].try_into().expect("4 bytes"))) * 512;
        let data_blocks = u64::from_le_bytes(bytes[64..72].try_into().expect("8 bytes"));
        std::fs::write(place.path("p/metadata"), bytes).expect("written");
        let data = std::fs::File::create(place.path("p/data")).expect("made");
        data.set_len(data_blocks * block_bytes).expect("sparse");
        place
    }

    /// A path in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// The command, to be run here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uthin"));
        command.args(arguments).current_dir(self.directory.path()).env("UTHIN_DIR", self.path("base"));
        command.env_remove("UTHIN_LOG");
        command
    }

    /// Runs a command.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(arguments, self.command(arguments).output().expect("the command starts"))
    }

    /// Runs a command that succeeds; what it prints.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout
    }

    /// Runs a command that fails with `code`, says `message` on stderr with a hint, and nothing on stdout.
    pub fn fails(&self, arguments: &[&str], code: i32, message: &str) -> Outcome {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(outcome.stderr.contains(message), "{message:?} is not in {outcome:?}");
        assert_eq!(outcome.stdout, "", "{outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        outcome
    }

    /// Runs a command with `--json`; what it prints.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["schema"], "uthin/v1", "{value}");
        value
    }

    /// Names of the pool's volumes.
    pub fn names(&self) -> Vec<String> {
        let text = self.ok(&["volume", "list", POOL, "-H", "-o", "name"]);
        text.lines().map(str::to_owned).collect()
    }

    /// What opening had to put right, according to the status.
    pub fn notes(&self) -> String {
        self.json(&["pool", "status", POOL])["notes"].to_string()
    }

    /// Bytes of data blocks that the pool has in use.
    pub fn used_bytes(&self) -> u64 {
        self.json(&["pool", "status", POOL])["data"]["used_bytes"].as_u64().expect("a number")
    }

    /// Bytes of the blocks that a volume maps.
    pub fn mapped_bytes(&self, volume: &str) -> u64 {
        let status = self.json(&["volume", "status", &format!("{POOL}/{volume}")]);
        status["mapped_bytes"].as_u64().expect("a number")
    }

    /// The pool's mode.
    pub fn mode(&self) -> String {
        self.json(&["pool", "status", POOL])["mode"].as_str().expect("a word").to_owned()
    }

    /// Deletes a volume as soon as the last client's hold on it has ended.
    pub fn delete(&self, volume: &str) {
        let name = format!("{POOL}/{volume}");
        eventually("the clients' hold ends", || self.run(&["volume", "delete", &name]).code == 0);
    }

    /// Names of the files in a directory, in order.
    pub fn files(&self, relative: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(relative)).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Starts a daemon, and waits until it is ready.
    pub fn serve(&self, options: &[&str]) -> Daemon {
        self.serve_by(&mut self.command(&[&["serve", POOL], options].concat()))
    }

    /// As [`Place::serve`], by a command that becomes a daemon.
    pub fn serve_by(&self, command: &mut Command) -> Daemon {
        // A new file: an earlier daemon may still write to its own.
        let _ = std::fs::remove_file(self.path("serve.log"));
        let log = std::fs::File::create(self.path("serve.log")).expect("made");
        let command = command.current_dir(self.directory.path()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().expect("the daemon starts");
        let stdout = process.stdout.take().expect("it is piped");
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(Duration::from_secs(30)).unwrap_or_default();
        let daemon = Daemon { process: Some(process) };
        let log = std::fs::read_to_string(self.path("serve.log")).unwrap_or_default();
        assert_eq!(line, "ready\n", "{log}");
        daemon
    }

    /// Connects to a volume on the pool's own NBD socket.
    pub fn connect(&self, volume: &str) -> nbd::Client {
        nbd::Client::connect(&self.path("p/nbd.sock"), volume).expect("the volume is an export")
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub arguments: Vec<String>,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    fn of(arguments: &[&str], output: Output) -> Self {
        Outcome {
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// The line that says what to do next.
    pub fn hint(&self) -> &str {
        let hint = self.stderr.lines().find_map(|line| line.trim_start().strip_prefix("hint: "));
        hint.unwrap_or_else(|| panic!("there is no hint: {self:?}"))
    }
}

/// A running daemon; killed when it is dropped.
pub struct Daemon {
    process: Option<Child>,
}

impl Daemon {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it runs");
        process.wait().expect("it was ours");
    }

    /// Sends a signal, and waits for its exit code.
    pub fn signal(mut self, signal: rustix::process::Signal) -> i32 {
        let process = self.process.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).expect("it runs");
        self.wait_for(Duration::from_secs(30))
    }

    /// Waits for its exit code.
    pub fn wait(mut self) -> i32 {
        self.wait_for(Duration::from_secs(30))
    }

    fn wait_for(&mut self, patience: Duration) -> i32 {
        let mut process = self.process.take().expect("it runs");
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = process.try_wait().expect("it is ours") {
                return status.code().unwrap_or(-1);
            }
            if Instant::now() > deadline {
                let _ = process.kill();
                let _ = process.wait();
                panic!("the daemon does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
