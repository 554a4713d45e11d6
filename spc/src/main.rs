//! Entry point of the `spc` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    spc::frontends::main()
}
