//! The `uthin` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    uthin::cli::main()
}
