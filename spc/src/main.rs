//! Command line of the launcher.

use std::process::ExitCode;

fn main() -> ExitCode {
    spc::doors::cli::main()
}
