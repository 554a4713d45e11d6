//! Result of an installation, and the form in which `spc install` prints it.

use std::path::PathBuf;

use serde::Serialize;

use crate::install::apply::Applied;
use crate::install::layout::MOUNTER;
use crate::install::location::{InstallLocation, InstallMethod};
use crate::install::manifest::{EntryKind, Manifest};

/// State of the host after its files were changed.
pub(crate) struct Outcome {
    pub(crate) location: InstallLocation,
    pub(crate) applied: Applied,
    pub(crate) manifest: Manifest,
    pub(crate) drivers: Vec<PathBuf>,
    /// Names that belong to the host and were left alone.
    pub(crate) kept: Vec<PathBuf>,
}

impl Outcome {
    /// Returns the result to print. `before` is the version that was installed before.
    pub(crate) fn into_installed(self, before: Option<String>, changed: bool) -> Installed {
        let names = self.manifest.entries.iter().filter_map(|entry| {
            let inside = [&self.location.names_dir, &self.location.command_dir]
                .contains(&&entry.path.parent()?.to_owned());
            let name = entry.path.file_name()?.to_string_lossy().into_owned();
            (inside && entry.kind != EntryKind::Directory).then_some(name)
        });
        Installed {
            names: names.collect(),
            version: OWN.into(),
            before,
            root: self.manifest.root.clone(),
            directory: self.location.visible_dir.clone(),
            kept: self.kept,
            add: match self.location.method {
                InstallMethod::Line { line, file } => Some(Add { line, file }),
                InstallMethod::Direct | InstallMethod::Extension => None,
            },
            drivers: self.drivers,
            mounter: MOUNTER.into(),
            changed,
        }
    }
}

/// Version of this program.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

/// Result of `spc install`, printed as text or JSON.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// Installed version.
    pub version: String,
    /// Version that was installed before, if any.
    pub before: Option<String>,
    /// Id of the client root file system that the names lead to.
    pub root: String,
    /// Directory in which mount(8) finds the names, now or after `add` is done.
    pub directory: PathBuf,
    /// Names in it, without their directory.
    pub names: Vec<String>,
    /// Paths that belong to the host and were left alone.
    pub kept: Vec<PathBuf>,
    /// Line that the administrator has to add before mount(8) finds the names.
    pub add: Option<Add>,
    /// Paths of the FlexVolume drivers for kubelet.
    pub drivers: Vec<PathBuf>,
    /// Path for kubelet's `--experimental-mounter-path`.
    pub mounter: PathBuf,
    /// Whether anything on the host changed.
    pub changed: bool,
}

/// Line that the administrator has to add to a file.
#[derive(Debug, Serialize)]
pub struct Add {
    /// Text of the line.
    pub line: String,
    /// Path of the file.
    pub file: &'static str,
}
