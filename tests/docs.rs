//! The transcripts in docs/nbd.md and docs/fsck.md, run from the first to the last in one shell: what a reader types leads to what the
//! page says.
//!
//! A block that begins with ```` ```console ```` is a transcript: lines with `$ ` are commands, the others what they print. A line `...`
//! stands for any number of lines, `...` in a line for anything. The port of docs/nbd.md is any free one here; the files that docs/fsck.md
//! begins with are `metadata` and `leaked`, made by the kernel.

mod cli_common;
mod common;

use cli_common::Place;
use common::fixture;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// The port that the page uses.
const PORT: &str = "10809";
/// How long everything may take.
const PATIENCE_SECONDS: &str = "300";

/// A command, what it should print, and its line in the page.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    expected: Vec<String>,
    line: usize,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_transcript = false;
    for (number, line) in page.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            is_transcript = language == "console";
        } else if !is_transcript {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), expected: Vec::new(), line: number + 1 });
        } else {
            let step = steps.last_mut().expect("a transcript begins with a command");
            step.expected.push(line.to_owned());
        }
    }
    steps
}

/// Whether a line is what the page says, `...` standing for anything.
fn line_matches(expected: &str, found: &str) -> bool {
    let mut parts = expected.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = found.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// Whether lines are what the page says, a line `...` standing for any number of them.
fn matches(expected: &[String], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=found.len()).any(|skipped| matches(rest, &found[skipped..]))
        }
        Some((first, rest)) => {
            found.split_first().is_some_and(|(line, more)| line_matches(first, line) && matches(rest, more))
        }
    }
}

#[test]
fn what_stands_for_anything() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let all = |expected: &str, found: &str| matches(&lines(expected), &found.lines().collect::<Vec<_>>());
    assert!(all("a\nb", "a\nb") && !all("a\nb", "a") && !all("a", "a\nb") && !all("a", "b"));
    assert!(all("...\nb", "a\nb") && all("...\nb", "b") && all("a\n...", "a") && !all("...\nb", "a\nc"));
    assert!(all("size ... bytes", "size 12 bytes") && !all("size ... bytes", "size 12 bits"));
    assert!(
        all("a...", "abc") && all("...c", "abc") && all("a...b...c", "a1b2c") && !all("a...b...c", "a1c")
    );
    assert!(!all("ab...bc", "abc"), "a byte stands for itself once");
    assert_eq!(
        steps("x\n```console\n$ a b\nc\n```\n$ no\n```sh\n$ no\n```"),
        [Step { command: "a b".into(), expected: vec!["c".into()], line: 3 }]
    );
}

/// One shell script of all commands, each with what it prints in a file of its own. What runs in the background is waited for
/// until it says that it is ready.
fn script(steps: &[Step], port: &str) -> String {
    // Nothing outlives it.
    let mut script = "trap 'kill $(jobs -p) 2>/dev/null' EXIT\nout=$PWD\n".to_owned();
    for (number, step) in steps.iter().enumerate() {
        let command = step.command.replace(PORT, port);
        match command.strip_suffix('&') {
            Some(background) => script.push_str(&format!(
                "{{ {background}; }} >$out/out.{number} 2>$out/log.{number} </dev/null &\n\
                 for _ in $(seq 300); do grep -q ready $out/out.{number} && break; sleep 0.1; done\n"
            )),
            None => script.push_str(&format!("{{ {command}\n}} >$out/out.{number} 2>&1 </dev/null\n")),
        }
    }
    script
}

#[test]
fn the_transcripts_of_nbd_are_true() {
    are_true("docs/nbd.md", &Place::empty(), 20);
}

#[test]
fn the_transcripts_of_fsck_are_true() {
    let place = Place::empty();
    for (file, name) in [("metadata", "04-snap-diverged"), ("leaked", "19-leaked")] {
        std::fs::write(place.path(file), fixture(name)).expect("room");
    }
    are_true("docs/fsck.md", &place, 12);
}

/// The transcripts of a page, of which there are at least so many steps, in a place of their own.
fn are_true(page: &str, place: &Place, least: usize) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("there");
    let steps = steps(&text);
    assert!(steps.len() > least, "they are not found any more");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    drop(listener);
    let binaries = Path::new(env!("CARGO_BIN_EXE_uthin")).parent().expect("it is in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let status = Command::new("timeout")
        .args(["--kill-after=5", PATIENCE_SECONDS, "bash", "-c", &script(&steps, &port)])
        .current_dir(place.path(""))
        // The Python that libnbd is for comes first, and tools of an administrator's are not on everybody's path.
        .env("PATH", format!("{}:/usr/bin:{path}:/usr/sbin:/sbin", binaries.display()))
        .env("UTHIN_DIR", place.path("base"))
        .env("LC_ALL", "C")
        .env_remove("UTHIN_LOG")
        .status()
        .expect("timeout starts");
    let mut wrong = String::new();
    for (number, step) in steps.iter().enumerate() {
        let found =
            std::fs::read(place.path(&format!("out.{number}"))).expect("the shell came as far as this");
        let found = String::from_utf8_lossy(&found)
            .replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{PORT}"));
        let lines: Vec<&str> = found.lines().map(str::trim_end).collect();
        let expected: Vec<String> = step.expected.iter().map(|line| line.trim_end().to_owned()).collect();
        if !matches(&expected, &lines) {
            wrong.push_str(&format!("{page}:{}: $ {}\n{found}\n", step.line, step.command));
        }
    }
    assert!(wrong.is_empty(), "what is printed is not what the page says ({status}):\n{wrong}");
    assert!(status.success() || status.code() != Some(124), "the transcripts do not end");
}
