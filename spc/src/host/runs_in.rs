//! Environment of this process: a container of the image, a client root file system, or the host.

use std::sync::OnceLock;
use std::{fs, io};

use crate::error::{Error, Result};

/// File in each client root file system that holds its name.
pub const NAME_FILE: &str = "/spc/client";

/// Environment in which this process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunsIn {
    /// Client root file system with this name, in a mount namespace of its own.
    ClientRoot(String),
    /// Container of the image.
    Container,
    /// Host, which has no client programs.
    Host,
}

static DETECTED: OnceLock<RunsIn> = OnceLock::new();

/// Detects the environment of this process. Call it before anything else: a wrong guess could
/// change the wrong system.
///
/// # Errors
/// Fails if `/spc` cannot be read.
pub fn detect() -> Result<()> {
    let detected = inspect().map_err(|e| {
        Error::system("cannot find out whether this is a container of the image: /spc").because(e)
    })?;
    DETECTED.get_or_init(|| detected);
    Ok(())
}

/// Returns the environment that [`detect`] found. Without such a call, inspects `/spc`, and takes an
/// error for the container.
pub fn current() -> RunsIn {
    let detected = DETECTED.get().cloned();
    detected.unwrap_or_else(|| inspect().unwrap_or(RunsIn::Container))
}

/// Inspects `/spc`, a directory that the image has and no host has.
fn inspect() -> io::Result<RunsIn> {
    match fs::read_to_string(NAME_FILE) {
        Ok(name) => return Ok(RunsIn::ClientRoot(name)),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error),
    }
    match fs::metadata("/spc") {
        Ok(found) if found.is_dir() => Ok(RunsIn::Container),
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(RunsIn::Host),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
