//! What was put on the host, entry by entry, so that exactly that can be taken away again: `/var/lib/spc/installed.json`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error, Result};
use crate::install::tree::below;

/// Everything of ours is there that is not a name somewhere else.
pub use crate::client::root::HOME as DIR;

/// The manifest's name in it.
const FILE: &str = "installed.json";

/// What is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the launcher.
    pub version: String,
    /// The client root that the names lead to.
    pub root: String,
    /// Everything that was made, in the order in which it was made.
    pub entries: Vec<Entry>,
    /// The service that merges extensions was switched on for ours.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switched_on: bool,
}

/// One thing that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub path: PathBuf,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What a thing is, as far as is needed to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Link(PathBuf),
    /// A file with this content, by its hash.
    File(u64),
}

impl What {
    /// Whether this is what is there now.
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

/// FNV-1a: tells a file that somebody changed, and need not withstand somebody who wants to hide it.
pub fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Manifest {
    /// Reads it; none where nothing is installed.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let file = below(root, DIR).join(FILE);
        let fail = |cause: Cause| {
            Error::system(format!("cannot read {DIR}/{FILE} on the host"))
                .because(cause)
                .hint("move it away and run `spc install` again: names of ours are known as such without it")
        };
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| fail(e.to_string().into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error.into())),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        let dir = below(root, DIR);
        let fail = |e: std::io::Error| {
            Error::system(format!("cannot write {DIR}/{FILE} on the host")).because(e)
        };
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::system("cannot write JSON").because(e))?;
        let new = dir.join(format!("{FILE}.new"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(fail)?;
        let file = fs::File::create(&new).map_err(fail)?;
        std::io::Write::write_all(&mut &file, &text).map_err(fail)?;
        // It has to be there after a loss of power if what it lists is.
        file.sync_all().map_err(fail)?;
        fs::rename(&new, dir.join(FILE)).map_err(fail)
    }

    /// Removes it, and what a dead command began to write.
    ///
    /// # Errors
    /// It cannot be removed.
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

    /// What was made at a path.
    pub fn at(&self, path: &Path) -> Option<&What> {
        let found = self.entries.iter().find(|entry| entry.path == path);
        found.map(|entry| &entry.what)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn a_manifest_is_written_whole_and_read_again() {
        let tree = Tree::new("manifest");
        assert_eq!(Manifest::read(tree.path()).unwrap(), None);
        let manifest = Manifest {
            version: "1.2.3".into(),
            root: "abc".into(),
            entries: vec![
                Entry {
                    path: "/sbin".into(),
                    what: What::Directory,
                },
                Entry {
                    path: "/sbin/spc".into(),
                    what: What::Link("/x".into()),
                },
                Entry {
                    path: "/sbin/f".into(),
                    what: What::File(7),
                },
            ],
            switched_on: true,
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
    fn a_thing_is_known_again() {
        let tree = Tree::new("known");
        let (link, file) = (tree.path().join("l"), tree.path().join("f"));
        std::os::unix::fs::symlink("/to", &link).unwrap();
        fs::write(&file, "text").unwrap();
        assert!(What::Link("/to".into()).is_at(&link));
        assert!(!What::Link("/else".into()).is_at(&link));
        assert!(What::File(hash_of(b"text")).is_at(&file));
        assert!(!What::File(hash_of(b"other")).is_at(&file));
        // A link to a file with the same content is another thing.
        assert!(!What::File(hash_of(b"text")).is_at(&link));
        assert!(What::Directory.is_at(tree.path()) && !What::Directory.is_at(&file));
    }
}
