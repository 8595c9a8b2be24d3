//! `uthin pool doctor`.

use super::{print, print_json};
use crate::control::api::SCHEMA;
use crate::control::doctor::{Examined, Finding, Severity, examine, mend};
use crate::control::name::{PoolRef, base_directory};
use crate::error::{Error, Result};
use std::process::ExitCode;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The pool [default: all that have a name]
    #[arg(value_parser = PoolRef::parse)]
    pool: Option<PoolRef>,
    /// Mend what can be mended without a loss; a plain run says what that would do
    #[arg(long, visible_alias = "yes")]
    mend: bool,
}

/// Exits with 0 if nothing is left to do, 3 if something should be seen to, 4 if a pool cannot be served as it is.
pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode> {
    let visit = |pool: &PoolRef| if args.mend { mend(pool) } else { examine(pool) };
    let examined = match &args.pool {
        Some(pool) => vec![visit(pool)?],
        None => {
            let pools = super::pool::named_pools(&base_directory())?;
            // One that cannot be looked at keeps nobody from the others.
            pools.iter().map(|pool| visit(pool).unwrap_or_else(|error| unseen(pool, &error))).collect()
        }
    };
    if json {
        print_json(&serde_json::json!({ "schema": SCHEMA, "pools": examined }))?;
    } else {
        print(&examined.iter().map(shown).collect::<String>())?;
    }
    Ok(ExitCode::from(match examined.iter().filter_map(Examined::worst).max() {
        None | Some(Severity::Note) => 0,
        Some(Severity::Warning) => 3,
        Some(Severity::Problem) => 4,
    }))
}

fn unseen(pool: &PoolRef, error: &Error) -> Examined {
    let path = pool.path().display().to_string();
    Examined {
        pool: pool.text().to_owned(),
        path,
        served_by: None,
        findings: vec![Finding::of_error("pool", error)],
    }
}

fn shown(examined: &Examined) -> String {
    let left =
        examined.findings.iter().filter(|finding| !finding.mended && finding.severity > Severity::Note);
    let mut text = match left.count() {
        0 => format!("pool {}: nothing to mend\n", examined.pool),
        1 => format!("pool {}: 1 thing to see to\n", examined.pool),
        many => format!("pool {}: {many} things to see to\n", examined.pool),
    };
    for finding in &examined.findings {
        let word = match (finding.mended, finding.severity) {
            (true, _) => "mended",
            (false, Severity::Note) => "note",
            (false, Severity::Warning) => "warning",
            (false, Severity::Problem) => "problem",
        };
        text += &format!("  {word}: {} ({})\n", finding.what, finding.code);
        match (&finding.hint, finding.mend) {
            _ if finding.mended => {}
            (Some(hint), _) => text += &format!("    hint: {hint}\n"),
            (None, Some(mend)) => text += &format!("    --mend {mend}\n"),
            (None, None) => {}
        }
    }
    text
}
