//! The `heya` command.
fn main() {}
