//! The launcher.

use std::process::ExitCode;

fn main() -> ExitCode {
    spc::frontends::main()
}
