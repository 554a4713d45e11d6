//! Findings of the search for the users of a mount.

use std::path::{Path, PathBuf};

use crate::error::show;

/// Use that a process makes of a file or directory on a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) fn words(self, path: &Path) -> String {
        let path = show(path);
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

/// Finding, sent as soon as it is made.
pub(crate) enum Finding {
    /// Process that uses the mount.
    Process {
        pid: i32,
        name: String,
        used_as: Use,
        path: PathBuf,
    },
    /// Mount below the mount: target and type.
    Below(PathBuf, String),
    /// Loop device whose backing file is on the mount: device and file.
    Loop(String, PathBuf),
    /// End of a complete search.
    End,
}
