//! Paths inside the systemd-sysext extension.

use std::path::{Path, PathBuf};

use crate::install::apply::{Make, Wanted};

/// Where systemd-sysext looks for trees; its name is that of the extension.
pub(crate) const TREE: &str = "/var/lib/extensions/spc";

/// The program.
pub(crate) const SYSEXT: &str = "systemd-sysext";

/// The service that merges at boot.
pub(crate) const SERVICE: &str = "systemd-sysext.service";

/// Where a directory of the host is in the tree.
pub fn tree(dir: &Path) -> PathBuf {
    Path::new(TREE).join(dir.strip_prefix("/").unwrap_or(dir))
}

/// What makes a tree an extension: it fits every release, for it has nothing but links, or a static program.
pub fn release() -> Wanted {
    Wanted {
        path: Path::new(TREE).join("usr/lib/extension-release.d/extension-release.spc"),
        make: Make::Text("ID=_any\n".into()),
        optional: false,
    }
}
