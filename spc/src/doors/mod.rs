//! The ways in. Each turns what it is given into a request and leads into the pipeline.

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;

use crate::client::{self, Place, enter, root};
use crate::error::Result;
use crate::host::{Host, Settings};
use crate::log;

pub mod argv;
pub mod cli;
pub mod pages;
pub mod show;
mod statd;

/// Acts as what the program was called as.
pub fn main() -> ExitCode {
    enter::take_over();
    if client::place() == Place::Host
        && !is_own_errand()
        && let Err(error) = hand_over()
    {
        log::error(&format!("spc: {error}"));
        return ExitCode::from(error.class().exit_code());
    }
    let called = std::env::args_os().next().unwrap_or_default();
    match Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("start-statd") => statd::main(),
        _ => cli::main(),
    }
}

/// Whether another `spc` has started this one on the host, for what is done there, or nothing is asked that needs a client.
fn is_own_errand() -> bool {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    let Some(first) = words.next() else {
        return false;
    };
    let about_itself = [
        "completions",
        "help",
        "man",
        "pages",
        "--help",
        "-h",
        "--version",
        "-V",
    ];
    first == "keep"
        || first == "adopt"
        || Path::new(&called).ends_with("spc") && about_itself.iter().any(|word| first == *word)
}

/// On the host itself nothing can be done: becomes the `spc` of the installed client root.
fn hand_over() -> Result<Infallible> {
    let settings = Settings::read()?;
    let id = root::own()?;
    enter::same_again(&Host::open(&settings)?, &settings, &id)
}
