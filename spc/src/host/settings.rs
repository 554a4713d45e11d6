//! Settings file that the launcher and the shim share.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use spc_shim_config::{Config, ConfigError};

use crate::error::{Error, Result};

/// Path of the settings file, in the container and in each client root file system.
pub const FILE: &str = "/etc/spc/shim.conf";

/// Settings, of which the launcher uses the paths.
pub struct Settings(Box<Config>);

impl Settings {
    /// Reads the settings file and adds the values of the environment. Without a file, the built-in
    /// settings apply.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if it or the environment is not valid. The shim then
    /// refuses mounts too.
    pub fn read() -> Result<Self> {
        let file = Path::new(FILE);
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(
                    Error::system(format!("cannot read the settings {}", file.display()))
                        .because(error)
                        .hint(
                            "make it readable for root, or remove it to use the built-in settings",
                        ),
                );
            }
        };
        let broken = |e: ConfigError| {
            let source = if e.line == 0 {
                "environment (SPC_*, sysimage)".into()
            } else {
                format!("{} line {}", file.display(), e.line)
            };
            Error::system(format!("broken settings: {source}"))
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

    /// Returns files that may be the host's mount namespace, in the order to try.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        self.0.namespaces().map(path).collect()
    }

    /// Returns directories at which the container may see the host's root.
    pub fn hosts(&self) -> Vec<PathBuf> {
        self.0.host_roots().map(path).collect()
    }

    /// Returns the directory of placeholders and redirects.
    pub fn redirects(&self) -> PathBuf {
        path(self.0.redirects().unwrap_or(b"/spc/targets"))
    }

    /// Returns the socket on which the launcher receives the shim's reports.
    pub fn report(&self) -> Option<PathBuf> {
        self.0.report_sockets().next().map(path)
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
