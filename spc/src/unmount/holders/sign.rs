//! The ways in which a process keeps a mount busy.

use std::path::{Path, PathBuf};

use crate::error::show;

/// What a process does with a file or directory of a mount.
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

/// Something that keeps a mount busy, as soon as it is found.
pub(crate) enum Sign {
    Process {
        pid: i32,
        name: String,
        does: Use,
        with: PathBuf,
    },
    Below(PathBuf, String),
    Loop(String, PathBuf),
    /// That was all.
    End,
}
