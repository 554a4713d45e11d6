//! The ways in. Each turns what it is given into a request and leads into the pipeline.

use std::path::Path;
use std::process::ExitCode;

pub mod argv;
pub mod cli;
pub mod pages;
pub mod show;
mod statd;

/// Acts as what the program was called as.
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    match Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("start-statd") => statd::main(),
        _ => cli::main(),
    }
}
