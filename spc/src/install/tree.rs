//! Paths below the root directory that an installation changes: `/` on the host, a temporary
//! directory in tests.

use std::path::{Path, PathBuf};

/// Joins an absolute path of the host to `root`, the directory where the host's root is.
pub(crate) fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}
