//! Routes by which a mount gets to the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Route by which a mount gets to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The shim redirects the helper's mount(2) call to the host.
    Preload,
    /// The helper mounts in the container; spc clones the finished mount and attaches it on the
    /// host.
    Graft,
    /// spc mounts in the host's namespace without a helper.
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
