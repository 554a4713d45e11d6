//! The result of an installation, and the form in which `spc install` prints it.

use std::path::PathBuf;

use serde::Serialize;

use crate::install::apply::Applied;
use crate::install::layout::MOUNTER;
use crate::install::manifest::{Manifest, What};
use crate::install::place::{How, Place};

/// What was done.
pub(crate) struct Laid {
    pub(crate) place: Place,
    pub(crate) applied: Applied,
    pub(crate) manifest: Manifest,
    pub(crate) driver: Option<PathBuf>,
    pub(crate) kept: Vec<PathBuf>,
}

impl Laid {
    pub(crate) fn told(self, before: Option<String>, changed: bool) -> Installed {
        let names = self.manifest.entries.iter().filter_map(|entry| {
            let inside = [&self.place.names, &self.place.command]
                .contains(&&entry.path.parent()?.to_owned());
            let name = entry.path.file_name()?.to_string_lossy().into_owned();
            (inside && entry.what != What::Directory).then_some(name)
        });
        Installed {
            names: names.collect(),
            version: OWN.into(),
            before,
            root: self.manifest.root.clone(),
            directory: self.place.shown.clone(),
            kept: self.kept,
            add: match self.place.how {
                How::Line { line, file } => Some(Add { line, file }),
                How::Direct | How::Extension => None,
            },
            driver: self.driver,
            mounter: MOUNTER.into(),
            changed,
        }
    }
}

/// The version of this program.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

/// What is installed then.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// The version.
    pub version: String,
    /// The version that was installed before.
    pub before: Option<String>,
    /// The client root that the names lead to.
    pub root: String,
    /// Where the names are found, or will be.
    pub directory: PathBuf,
    /// The names there.
    pub names: Vec<String>,
    /// Names that the host has itself; they stay what they are.
    pub kept: Vec<PathBuf>,
    /// What somebody has to add before mount(8) finds the names.
    pub add: Option<Add>,
    /// The driver for kubelet.
    pub driver: Option<PathBuf>,
    /// What kubelet's flag for a mounter can name.
    pub mounter: PathBuf,
    /// Whether anything was changed.
    pub changed: bool,
}

/// A line that somebody has to add to a file.
#[derive(Debug, Serialize)]
pub struct Add {
    /// The line.
    pub line: String,
    /// The file.
    pub file: &'static str,
}
