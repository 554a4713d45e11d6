//! Where this process runs: in a container of the image, in a client root, or on the host itself.

use std::sync::OnceLock;
use std::{fs, io};

use crate::error::{Error, Result};

/// In a client root: the file that holds its name.
pub const NAME_FILE: &str = "/spc/client";

/// Where this process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunsIn {
    /// In a client namespace, whose root has this name.
    ClientRoot(String),
    /// In a container of the image.
    Container,
    /// On the host itself, which has no client programs.
    Host,
}

static KNOWN: OnceLock<RunsIn> = OnceLock::new();

/// Finds out where this process runs; call it before anything else is done.
///
/// # Errors
/// It cannot be told: to be taken for somewhere else would be worse.
pub fn detect() -> Result<()> {
    let found = look().map_err(|e| {
        Error::system("cannot tell whether this is a container of the image: /spc").because(e)
    })?;
    KNOWN.get_or_init(|| found);
    Ok(())
}

/// Where this process runs.
pub fn current() -> RunsIn {
    let known = KNOWN.get().cloned();
    known.unwrap_or_else(|| look().unwrap_or(RunsIn::Container))
}

/// The image has a directory that no host has.
fn look() -> io::Result<RunsIn> {
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
