//! The settings file that launcher and shim share, read by the same code.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use spc_shim_config::{Broken, Config};

use crate::error::{Error, Result, errno_text};

/// The settings file, in the container and in each client root.
pub const FILE: &str = "/etc/spc/shim.conf";

/// The settings, of which the launcher needs where things are.
pub struct Settings(Box<Config>);

impl Settings {
    /// Reads the file, or takes the built-in settings where there is none, and adds the environment.
    ///
    /// # Errors
    /// The file cannot be read or understood: then the shim refuses mounts, too.
    pub fn read() -> Result<Self> {
        let file = Path::new(FILE);
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(
                    Error::system(format!("cannot read the settings {}", file.display()))
                        .because(errno_text(error))
                        .hint(
                            "make it readable for root, or remove it to use the built-in settings",
                        ),
                );
            }
        };
        let broken = |e: Broken| {
            let place = if e.line == 0 {
                "environment (SPC_*, sysimage)".into()
            } else {
                format!("{} line {}", file.display(), e.line)
            };
            Error::system(format!("broken settings: {place}"))
                .because(e.reason)
                .hint("shim.conf in the image explains each key")
        };
        let mut config = Box::new(Config::parse_file(&text).map_err(broken)?);
        for (name, value) in std::env::vars_os() {
            config
                .add_env(name.as_bytes(), value.as_bytes())
                .map_err(broken)?;
        }
        Ok(Self(config))
    }

    /// Files that may be the host's mount namespace, in the order to try.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        self.0.namespaces().map(path).collect()
    }

    /// Directories of the container at which the host's root may be seen.
    pub fn hosts(&self) -> Vec<PathBuf> {
        self.0.hosts().map(path).collect()
    }

    /// The claims directory.
    pub fn claims(&self) -> PathBuf {
        path(self.0.claims().unwrap_or(b"/spc/targets"))
    }

    /// The socket on which the shim's reports are awaited.
    pub fn report(&self) -> Option<PathBuf> {
        self.0.reports().next().map(path)
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
