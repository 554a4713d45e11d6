//! Paths of the extension that systemd-sysext(8) merges into `/usr`.

use std::path::{Path, PathBuf};

use crate::install::apply::{Content, Wanted};

/// Directory of the extension, whose last component is the name of the extension.
pub(crate) const TREE: &str = "/var/lib/extensions/spc";

/// Name of the program that merges extensions.
pub(crate) const SYSEXT: &str = "systemd-sysext";

/// Unit that merges extensions at boot.
pub(crate) const SERVICE: &str = "systemd-sysext.service";

/// Returns the path in the extension that corresponds to a directory of the host.
pub fn tree(dir: &Path) -> PathBuf {
    Path::new(TREE).join(dir.strip_prefix("/").unwrap_or(dir))
}

/// Returns the extension-release file, which makes the directory an extension.
///
/// `ID=_any` lets it match every release of the host (os-release(5)): the extension contains only
/// links and a static program.
pub fn release() -> Wanted {
    Wanted {
        path: Path::new(TREE).join("usr/lib/extension-release.d/extension-release.spc"),
        content: Content::Text("ID=_any\n".into()),
        optional: false,
    }
}
