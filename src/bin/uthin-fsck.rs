//! `uthin-fsck`: checks the metadata of a thin pool. Everything is in the library.

fn main() -> std::process::ExitCode {
    uthin::check::cli::main()
}
