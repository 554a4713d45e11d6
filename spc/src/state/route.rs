//! How a mount got to the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a mount gets to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The shim carries the helper's own call.
    Preload,
    /// The helper mounts in the container, and the finished mount is moved to the host.
    Graft,
    /// No helper: the kernel makes the mount in the host's namespace.
    Direct,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preload => "preload",
            Self::Graft => "graft",
            Self::Direct => "direct",
        })
    }
}
