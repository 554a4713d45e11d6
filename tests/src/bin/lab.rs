//! The `lab` program; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lab::cli::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
