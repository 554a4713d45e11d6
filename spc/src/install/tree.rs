//! Paths below the root of the tree that an installation changes.

use std::path::{Path, PathBuf};

/// A path of the host whose root is at `root`.
pub(crate) fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}
