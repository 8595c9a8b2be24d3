//! The `uthin` command.
fn main() {}
