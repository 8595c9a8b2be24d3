//! `docs/scenarios.md` is true: every test that it names exists, and every row of it says something.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a file has a test of that name: its attribute is in one of the few lines before it.
fn has_test(file: &Path, test: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let declaration = format!("fn {test}()");
    (0..lines.len()).any(|at| {
        lines[at].starts_with(&declaration)
            && lines[at.saturating_sub(4)..at].iter().any(|line| line.starts_with("#[test]"))
    })
}

/// Whether what stands between backquotes, and looks like a test, is one. `None`: it does not look like one.
fn exists(words: &str) -> Option<bool> {
    if let Some(name) = words.strip_prefix("vm/") {
        return Some(root().join(format!("tests/vm/scenarios/{name}.py")).exists());
    }
    if let Some(name) = words.strip_prefix("bug/") {
        let bugs = fs::read_to_string(root().join("tests/bugs/bugs.py")).expect("there");
        return Some(bugs.contains(&format!("\n    \"{name}\": (")));
    }
    let (file, test) = words.split_once("::")?;
    let places = [format!("tests/{file}.rs"), format!("src/{file}.rs"), format!("src/{file}/mod.rs")];
    Some(places.iter().any(|place| has_test(&root().join(place), test)))
}

/// The cells of the table's rows: scenario, what must hold, where.
fn rows(text: &str) -> Vec<[&str; 3]> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let cells = lines.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        <[&str; 3]>::try_from(cells).unwrap_or_else(|cells| panic!("three cells: {cells:?}"))
    });
    cells.filter(|[scenario, ..]| *scenario != "scenario" && *scenario != "fix").collect()
}

#[test]
fn every_scenario_has_a_test_or_a_reason() {
    let text = fs::read_to_string(root().join("docs/scenarios.md")).expect("there");
    let rows = rows(&text);
    assert!(rows.len() > 120, "{} rows", rows.len());
    let mut tests = 0;
    for [scenario, what, place] in rows {
        assert!(!scenario.is_empty() && !what.is_empty(), "{scenario}");
        let mut named = 0;
        for words in place.split('`').skip(1).step_by(2) {
            match exists(words) {
                Some(true) => named += 1,
                Some(false) => panic!("{scenario}: there is no test {words}"),
                None => {}
            }
        }
        let has_reason = place.starts_with("n/a") || place.contains("waits: ");
        assert!(named > 0 || has_reason, "{scenario}: neither a test nor a reason");
        tests += named;
    }
    assert!(tests > 150, "{tests} tests");
}

#[test]
fn what_is_no_test_is_seen_to_be_none() {
    assert_eq!(exists("scenarios::every_scenario_has_a_test_or_a_reason"), Some(true));
    for none in ["scenarios::rows", "scenarios::nothing", "nowhere::test", "vm/nothing", "bug/nothing"] {
        assert_eq!(exists(none), Some(false), "{none}");
    }
    assert_eq!(exists("tests/vm"), None);
}
