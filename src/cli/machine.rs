//! `uthin doctor`.

use super::{print, print_json};
use crate::control::api::SCHEMA;
use crate::error::Result;
use crate::frontend::ublk::{Finding, State, findings, remove_waiting};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    ublk: Ublk,
}

#[derive(Serialize)]
struct Ublk {
    /// Whether nothing is missing.
    usable: bool,
    findings: Vec<Finding>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Take away block device N of uthin's, which waits for a daemon that nobody will start again: its requests fail
    #[arg(long, value_name = "N")]
    remove_device: Option<u32>,
}

pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode> {
    if let Some(number) = args.remove_device {
        remove_waiting(number)?;
    }
    let findings = findings();
    let usable = findings.iter().all(|found| found.state != State::Missing);
    let text = shown(&findings, usable);
    match json {
        true => print_json(&Answer { schema: SCHEMA, ublk: Ublk { usable, findings } })?,
        false => print(&text)?,
    }
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(findings: &[Finding], usable: bool) -> String {
    let mut text = String::new();
    for Finding { check, state, message, hint } in findings {
        let word = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "MISSING",
        };
        text += &format!("{word:8} {:15} {message}\n", check.replace('_', " "));
        text.extend(hint.iter().map(|hint| format!("{:25}hint: {hint}\n", "")));
    }
    text += match usable {
        true => "volumes can be block devices (ublk) and NBD exports\n",
        false => "volumes cannot be block devices (ublk) here; NBD works without\n",
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_stand_below_what_they_are_for() {
        let found = |state, hint: Option<&str>| Finding {
            check: "open_files".to_owned(),
            state,
            message: "at most 7".to_owned(),
            hint: hint.map(str::to_owned),
        };
        let text = shown(&[found(State::Ok, None), found(State::Missing, Some("more"))], false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok       open files      at most 7");
        assert_eq!(lines[1], "MISSING  open files      at most 7");
        assert_eq!(lines[2].trim(), "hint: more");
        assert!(lines[3].contains("NBD works"));
    }
}
