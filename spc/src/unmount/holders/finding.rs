//! Findings of the search for the users of a mount.

use serde::{Deserialize, Serialize};

/// Use that a process makes of a file or directory on a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Use {
    WorksIn,
    HasAsRoot,
    Runs,
    HasOpen,
    HasMapped,
    WaitsFor,
}

impl Use {
    /// Returns the words for an error text.
    pub(crate) fn words(self, path: &str) -> String {
        match self {
            Self::WorksIn => format!("works in {path}"),
            Self::HasAsRoot => format!("has {path} as its root"),
            Self::Runs => format!("runs {path}"),
            Self::HasOpen => format!("has {path} open"),
            Self::HasMapped => format!("has {path} mapped"),
            Self::WaitsFor => format!("waits for {path}"),
        }
    }
}

/// Finding, sent as soon as it is made. Paths are written as in messages.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Finding {
    /// Process that uses the mount.
    Process {
        pid: i32,
        name: String,
        used_as: Use,
        path: String,
    },
    /// Mount below the mount: target and type.
    Below(String, String),
    /// Loop device whose backing file is on the mount: device and file.
    Loop(String, String),
    /// End of a complete search.
    End,
}
