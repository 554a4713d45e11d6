//! List of everything that `spc install` made on the host, `/var/lib/spc/installed.json`, from
//! which `spc uninstall` removes exactly that.

use std::fs;
use std::hash::Hasher;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error, Result};
use crate::install::tree::below;

/// Directory on the host for everything that spc keeps across reboots.
pub use crate::client::root::HOME as DIR;

/// File name of the manifest in [`DIR`].
const FILE: &str = "installed.json";

/// Contents of the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the launcher.
    pub version: String,
    /// Id of the client root file system that the names lead to.
    pub root: String,
    /// Everything that was made, in the order of creation.
    pub entries: Vec<Entry>,
    /// Whether spc enabled the service that merges extensions. `spc uninstall` then disables it.
    #[serde(
        rename = "switched_on",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub enabled_service: bool,
}

/// File, link or directory that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Kind and contents.
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// Kind of an entry, with enough of its contents to recognise it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Directory.
    Directory,
    /// Symbolic link with this target.
    Link(PathBuf),
    /// Regular file with contents of this hash ([`hash_of`]).
    File(u64),
}

impl EntryKind {
    /// Returns whether `path` is still what the entry describes. Symbolic links are not followed.
    pub fn is_at(&self, path: &Path) -> bool {
        match self {
            Self::Directory => path.symlink_metadata().is_ok_and(|data| data.is_dir()),
            Self::Link(to) => fs::read_link(path).is_ok_and(|link| link == *to),
            Self::File(hash) => {
                path.symlink_metadata().is_ok_and(|data| data.is_file())
                    && fs::read(path).is_ok_and(|bytes| hash_of(&bytes) == *hash)
            }
        }
    }
}

/// Returns the FNV-1a hash of a file's contents.
///
/// The hash detects accidental changes. No protection against deliberate collisions is needed: only
/// root can write these files.
pub fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

impl Manifest {
    /// Reads the manifest of the host whose root is at `root`. Returns `None` if nothing is
    /// installed.
    ///
    /// # Errors
    /// The file exists and cannot be read or parsed.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let file = below(root, DIR).join(FILE);
        let fail = |cause: Cause| {
            Error::system(format!("cannot read {DIR}/{FILE} on the host"))
                .because(cause)
                .hint("move it away and run `spc install` again, which recognises the names of spc without it")
        };
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| fail(e.to_string().into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error.into())),
        }
    }

    /// Writes the manifest completely or not at all, by a rename.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        let dir = below(root, DIR);
        let fail = |e: std::io::Error| {
            Error::system(format!("cannot write {DIR}/{FILE} on the host")).because(e)
        };
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::system("cannot encode the list of installed files").because(e))?;
        let new = dir.join(format!("{FILE}.new"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(fail)?;
        let file = fs::File::create(&new).map_err(fail)?;
        std::io::Write::write_all(&mut &file, &text).map_err(fail)?;
        // After a power loss the manifest must exist if any file in it does.
        file.sync_all().map_err(fail)?;
        fs::rename(&new, dir.join(FILE)).map_err(fail)
    }

    /// Removes the manifest, and a temporary file that a killed command left.
    ///
    /// # Errors
    /// A file exists and cannot be removed.
    pub fn remove(root: &Path) -> Result<()> {
        for name in [FILE.to_owned(), format!("{FILE}.new")] {
            match fs::remove_file(below(root, DIR).join(&name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::system(format!("cannot remove {DIR}/{name}")).because(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the kind of the entry for a path.
    pub fn at(&self, path: &Path) -> Option<&EntryKind> {
        let found = self.entries.iter().find(|entry| entry.path == path);
        found.map(|entry| &entry.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn a_written_manifest_reads_back_and_a_broken_one_is_an_error() {
        let tree = Tree::new("manifest");
        assert_eq!(Manifest::read(tree.path()).unwrap(), None);
        let manifest = Manifest {
            version: "1.2.3".into(),
            root: "abc".into(),
            entries: vec![
                Entry {
                    path: "/sbin".into(),
                    kind: EntryKind::Directory,
                },
                Entry {
                    path: "/sbin/spc".into(),
                    kind: EntryKind::Link("/x".into()),
                },
                Entry {
                    path: "/sbin/f".into(),
                    kind: EntryKind::File(7),
                },
            ],
            enabled_service: true,
        };
        manifest.write(tree.path()).unwrap();
        assert_eq!(Manifest::read(tree.path()).unwrap(), Some(manifest));
        fs::write(tree.path().join("var/lib/spc/installed.json"), "{").unwrap();
        assert!(Manifest::read(tree.path()).is_err());
        Manifest::remove(tree.path()).unwrap();
        Manifest::remove(tree.path()).unwrap();
        assert_eq!(Manifest::read(tree.path()).unwrap(), None);
    }

    #[test]
    fn an_entry_recognises_its_path_only_while_unchanged() {
        let tree = Tree::new("known");
        let (link, file) = (tree.path().join("l"), tree.path().join("f"));
        std::os::unix::fs::symlink("/to", &link).unwrap();
        fs::write(&file, "text").unwrap();
        assert!(EntryKind::Link("/to".into()).is_at(&link));
        assert!(!EntryKind::Link("/else".into()).is_at(&link));
        assert!(EntryKind::File(hash_of(b"text")).is_at(&file));
        assert!(!EntryKind::File(hash_of(b"other")).is_at(&file));
        // A link to a file with the same contents is not that file.
        assert!(!EntryKind::File(hash_of(b"text")).is_at(&link));
        assert!(EntryKind::Directory.is_at(tree.path()) && !EntryKind::Directory.is_at(&file));
    }
}
