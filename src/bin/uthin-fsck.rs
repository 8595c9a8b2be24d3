//! The `uthin-fsck` command.
fn main() {}
