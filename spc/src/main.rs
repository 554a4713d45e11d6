//! Command line of the launcher.
fn main() {}
