//! The shape of the crate, enforced: who may import whom, where `unsafe` may be, how long a file may get.
//!
//! Reads the sources (`scan` takes them apart) and reports every breach with file and line. Code that only tests
//! compile may look anywhere: a room's tests may well use the checker of a later room. The scanner itself is tested on
//! bad samples, so that a rule which no longer sees anything would show.

#[path = "architecture/scan.rs"]
mod scan;

use scan::{Source, scan};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in order: each may import from those before it (and from its own group).
const GROUPS: [&[&str]; 13] = [
    &["units", "error", "checksum", "manual"],
    &["disk"],
    &["format"],
    &["metadata"],
    &["journal"],
    &["engine"],
    &["driver"],
    &["frontend"],
    &["check"],
    &["control"],
    &["sim"],
    &["fuzz"],
    &["cli"],
];

/// What a room may not know although it comes before it.
const MAY_NOT_KNOW: [(&str, &[&str]); 4] = [
    ("frontend", &["metadata", "format"]),
    ("control", &["format"]),
    // An independent second opinion on what the engine writes.
    ("check", &["metadata", "journal", "engine", "driver", "frontend"]),
    // Drives the engine itself, in place of threads and sockets.
    ("sim", &["driver", "frontend", "control"]),
];

/// Files, or folders, in which `unsafe` is allowed: buffers, an ioctl, the ring, what ublk's driver is told and shows, and an allocator
/// that counts for tests.
const UNSAFE_ALLOWED: [&str; 5] =
    ["disk/buffer.rs", "disk/ioctl.rs", "driver/", "frontend/ublk/", "fuzz/memory.rs"];

/// The most lines that a file may have.
const LINES_LIMIT: usize = 900;
/// The most lines of a binary: it parses nothing and decides nothing.
const BINARY_LINES_LIMIT: usize = 40;

fn position(room: &str) -> Option<usize> {
    GROUPS.iter().position(|group| group.contains(&room))
}

/// Why `room` may not import `other`, if it may not.
fn objection(room: &str, other: &str) -> Option<String> {
    let Some(own_position) = position(room) else {
        return Some(format!("`{room}` is no known room; add it to the order in src/lib.rs and here"));
    };
    match position(other) {
        None => Some(format!("`crate::{other}` is no room")),
        Some(there) if there > own_position => {
            Some(format!("`{room}` comes before `{other}` and must not import it"))
        }
        Some(_) => MAY_NOT_KNOW
            .iter()
            .any(|(who, whom)| *who == room && whom.contains(&other))
            .then(|| format!("`{room}` may not know `{other}`")),
    }
}

/// Everything that is wrong with one file; `relative` is its path below src. What `is_for_tests` may import anything.
fn breaches(relative: &str, text: &str, is_for_tests: bool) -> Vec<String> {
    let source = scan(text, depth_of(relative));
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(format!("src/{relative}:{line}: {what}"));
    if !text.starts_with("//!") {
        report(1, "the file does not begin with //! (what it is for, its invariants)".to_owned());
    }
    let lines = text.lines().count();
    let is_binary = relative.starts_with("bin/");
    let limit = if is_binary { BINARY_LINES_LIMIT } else { LINES_LIMIT };
    if lines > limit {
        report(lines, format!("{lines} lines; a file of its kind has at most {limit}"));
    }
    if !UNSAFE_ALLOWED.iter().any(|allowed| relative.starts_with(allowed)) {
        source.unsafe_lines.iter().for_each(|line| report(*line, "`unsafe` outside its places".to_owned()));
    }
    if relative != "lib.rs" && !is_binary && !is_for_tests {
        let room = room_of(relative);
        for import in source.imports.iter().filter(|import| import.room != room) {
            if let Some(why) = objection(room, &import.room) {
                report(import.line, why);
            }
        }
    }
    found
}

/// The first module of a file's path: `disk` for `disk/mod.rs`, `units` for `units.rs`.
fn room_of(relative: &str) -> &str {
    relative.split('/').next().unwrap_or(relative).trim_end_matches(".rs")
}

/// How many modules deep a file is: 1 for `units.rs` and `disk/mod.rs`, 2 for `disk/file.rs`.
fn depth_of(relative: &str) -> usize {
    let parts = relative.split('/').count();
    if relative.ends_with("mod.rs") || relative == "lib.rs" { parts - 1 } else { parts }
}

/// All `.rs` files below `folder`, as paths relative to it with their text.
fn sources_below(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder of the project can be listed") {
            let path = entry.expect("a folder of the project can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(folder).expect("it is below").to_string_lossy().into_owned();
                found.push((relative, fs::read_to_string(&path).expect("a source file is UTF-8")));
            }
        }
    }
    found.sort();
    found
}

fn project(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// Files that only tests compile: declared by `#[cfg(test)] mod NAME;`, whatever lies below them, and files that are
/// called `…_tests.rs`, which a `#[path]` brings in.
fn test_only_files(sources: &[(String, String)]) -> HashSet<String> {
    let mut stems = Vec::new();
    for (relative, text) in sources {
        let folder = match relative.strip_suffix("mod.rs") {
            Some(folder) => folder.to_owned(),
            None if relative == "lib.rs" => String::new(),
            None => format!("{}/", relative.trim_end_matches(".rs")),
        };
        let Source { test_modules, .. } = scan(text, depth_of(relative));
        stems.extend(test_modules.into_iter().map(|name| format!("{folder}{name}")));
    }
    let below = |path: &str, stem: &str| {
        path.strip_prefix(stem).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    let paths = sources.iter().map(|(relative, _)| relative);
    let is_for_tests = |path: &str| path.ends_with("_tests.rs") || stems.iter().any(|stem| below(path, stem));
    paths.filter(|path| is_for_tests(path)).cloned().collect()
}

#[test]
fn sources_keep_to_the_architecture() {
    let sources = sources_below(&project("src"));
    assert!(sources.len() > 5, "the sources were found");
    let test_only = test_only_files(&sources);
    let found: Vec<_> = sources
        .iter()
        .flat_map(|(relative, text)| breaches(relative, text, test_only.contains(relative)))
        .collect();
    assert!(found.is_empty(), "the architecture is broken:\n{}", found.join("\n"));
}

#[test]
fn test_files_say_what_they_are_for() {
    let found: Vec<String> = sources_below(&project("tests"))
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!") || text.lines().count() > LINES_LIMIT)
        .map(|(relative, _)| relative)
        .collect();
    assert!(found.is_empty(), "no //! at the top, or above {LINES_LIMIT} lines: {found:?}");
}

mod the_rules_see {
    use super::{LINES_LIMIT, breaches, test_only_files};

    fn one(relative: &str, body: &str) -> String {
        let found = breaches(relative, &format!("//! A sample.\n{body}"), false);
        assert_eq!(found.len(), 1, "{relative}: {body}: {found:?}");
        found.into_iter().next().expect("there is one")
    }

    fn none(relative: &str, body: &str) {
        let found = breaches(relative, &format!("//! A sample.\n{body}"), false);
        assert!(found.is_empty(), "{relative}: {body}: {found:?}");
    }

    #[test]
    fn imports_against_the_order() {
        assert_eq!(
            one("disk/file.rs", "use crate::engine::Lane;"),
            "src/disk/file.rs:2: `disk` comes before `engine` and must not import it"
        );
        one("units.rs", "fn f() -> crate::disk::MemoryDisk { todo!() }");
        one("format/node.rs", "use crate::{units::MetaBlock, error::{Error, Result}, metadata::Metadata};");
        one("format/node.rs", "use super::super::metadata::Metadata;");
        one("units.rs", "use super::disk::Disk;");
        one("engine/lane.rs", "mod inner { use super::super::super::driver::Ring; }");
        one("driver/mod.rs", "pub(in crate::control) fn f() {}");
        one("units.rs", "use crate::*;");
        none("engine/lane.rs", "use crate::{units::MetaBlock, error::{Error, Result}, metadata::Metadata};");
        none("units.rs", "use crate::error::Result;");
        none("disk/file.rs", "use super::Disk; pub(crate) fn f() {}");
        none("driver/uring.rs", "mod inner { use super::super::Job; }");
    }

    #[test]
    fn what_a_room_may_not_know() {
        assert!(one("frontend/nbd/mod.rs", "use crate::metadata::Metadata;").contains("may not know"));
        one("frontend/mod.rs", "use crate::format::node::Node;");
        one("control/catalog.rs", "use crate::format::Superblock;");
        one("check/mod.rs", "use crate::metadata::Metadata;");
        one("check/walk.rs", "use crate::engine::Engine;");
        none("check/walk.rs", "use crate::format::Superblock; use crate::disk::Disk;");
        one("sim/world.rs", "use crate::driver::Ring;");
        none("sim/world.rs", "use crate::engine::Keeper;");
        none("control/mod.rs", "use crate::metadata::Metadata;");
    }

    #[test]
    fn rooms_nobody_heard_of() {
        one("cellar/mod.rs", "use crate::units::MetaBlock;");
        one("cli/mod.rs", "use crate::cellar::Wine;");
    }

    #[test]
    fn unsafe_outside_its_places() {
        one("engine/lane.rs", "fn f() { unsafe { g() } }");
        one("engine/lane.rs", "#[cfg(test)] mod tests { fn f() { unsafe { g() } } }");
        none("driver/ring.rs", "fn f() { unsafe { g() } }");
        none("engine/lane.rs", "// unsafe\nfn f() -> &'static str { \"unsafe\" }");
    }

    #[test]
    fn not_what_comments_strings_and_tests_say() {
        none("units.rs", "/// As crate::engine says.\n/* use crate::engine; /* nested */ */ fn f() {}");
        none(
            "units.rs",
            r##"fn f() { g(r#"use "crate::engine::X";"#, "\" crate::engine", '"', 'a', b'\''); }"##,
        );
        none(
            "units.rs",
            "#[cfg(test)]\nmod tests { use crate::engine::Lane; mod deeper { use crate::cli; } }",
        );
        one("units.rs", "#[cfg(test)] mod tests { fn f() {} }\nuse crate::engine::Lane;");
        one("units.rs", "#[cfg(not(test))] mod real { use crate::engine::Lane; }");
        one("units.rs", "fn f<'a>(x: &'a str) { crate::engine::go(x) }");
    }

    #[test]
    fn missing_purpose_and_length() {
        assert_eq!(breaches("units.rs", "use std::fmt;\n", false).len(), 1);
        assert_eq!(one("units.rs", &"\n".repeat(LINES_LIMIT)).matches("901 lines").count(), 1);
        assert!(one("bin/uthin.rs", &"\n".repeat(60)).contains("61 lines"));
        none("units.rs", &"\n".repeat(LINES_LIMIT - 1));
    }

    #[test]
    fn files_that_only_tests_compile() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let sources = [
            file("lib.rs", "#[cfg(any(test, feature = \"sim\"))] pub mod sim;"),
            file("sim/world.rs", ""),
            file("disk/mod.rs", "#[cfg(test)] mod torn; mod file;"),
            file("disk/torn.rs", ""),
            file("disk/file.rs", "#[cfg(test)] mod tests;"),
            file("disk/lock.rs", "#[cfg(test)] #[path = \"lock_tests.rs\"] mod tests;"),
            file("disk/lock_tests.rs", ""),
            file("disk/file/tests.rs", ""),
        ];
        let mut found: Vec<_> = test_only_files(&sources).into_iter().collect();
        found.sort();
        assert_eq!(found, ["disk/file/tests.rs", "disk/lock_tests.rs", "disk/torn.rs", "sim/world.rs"]);
    }
}
