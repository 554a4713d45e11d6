//! Creates the wanted files and links on the host and removes those no longer wanted. Files that
//! spc did not make are left alone.
//!
//! Each entry is created under a temporary name and renamed, so it is complete or missing. The
//! manifest lists it before it is created, so a later command can clean up after a crash.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::install::manifest::{Entry, EntryKind, Manifest, hash_of};
use crate::install::tree::below;

/// File or link that an installation needs on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Kind and contents.
    pub content: Content,
    /// Whether to skip the entry, without an error, if the path belongs to the host.
    pub optional: bool,
}

/// Kind and contents of a [`Wanted`] entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Symbolic link to this path.
    Link(PathBuf),
    /// Program with these contents, mode 0755.
    Program(Vec<u8>),
    /// Text file, mode 0644.
    Text(String),
}

impl Content {
    fn kind(&self) -> EntryKind {
        match self {
            Self::Link(to) => EntryKind::Link(to.clone()),
            Self::Program(bytes) => EntryKind::File(hash_of(bytes)),
            Self::Text(text) => EntryKind::File(hash_of(text.as_bytes())),
        }
    }
}

/// Paths of the entries, by what was done with them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Paths that were created or replaced.
    pub made: Vec<PathBuf>,
    /// Paths that were up to date.
    pub same: Vec<PathBuf>,
    /// Paths that belong to the host and were left alone.
    pub foreign: Vec<PathBuf>,
    /// Paths that were removed because no entry wants them any more.
    pub removed: Vec<PathBuf>,
}

/// Creates the wanted entries below `root` and removes entries of `manifest` that are not wanted.
///
/// `manifest` lists what spc made before. The function updates it and writes it to the host.
///
/// # Errors
/// An entry cannot be created or removed, or an entry that is not optional belongs to the host. The
/// manifest on the host then lists all that may have been made.
pub fn apply(root: &Path, wanted: &[Wanted], manifest: &mut Manifest) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut entries = Vec::new();
    let mut to_create = Vec::new();
    for thing in wanted {
        let path = below(root, &thing.path);
        let kind = thing.content.kind();
        let known = manifest.at(&thing.path);
        if kind.is_at(&path) {
            applied.same.push(thing.path.clone());
        } else if path.symlink_metadata().is_err() || known.is_some_and(|old| old.is_at(&path)) {
            to_create.push(thing);
        } else if thing.optional {
            applied.foreign.push(thing.path.clone());
            continue;
        } else {
            return Err(Error::system(format!(
                "{} on the host was not made by spc",
                thing.path.display()
            ))
            .hint("move it away, or choose another directory"));
        }
        for directory in missing(root, &thing.path) {
            push(&mut entries, directory, EntryKind::Directory);
        }
        push(&mut entries, thing.path.clone(), kind);
    }
    // A directory that spc created stays in the manifest while an entry is below it.
    let kept = manifest.entries.iter().filter(|entry| {
        entry.kind == EntryKind::Directory && wanted.iter().any(|w| w.path.starts_with(&entry.path))
    });
    let mut all: Vec<Entry> = kept.cloned().collect();
    for entry in entries {
        push(&mut all, entry.path, entry.kind);
    }
    let unwanted: Vec<Entry> = manifest
        .entries
        .iter()
        .filter(|old| all.iter().all(|new| new.path != old.path))
        .cloned()
        .collect();
    // A crash from here on may leave old and new entries.
    manifest.entries = [unwanted.clone(), all.clone()].concat();
    manifest.write(root)?;
    for thing in to_create {
        create(root, thing)?;
        applied.made.push(thing.path.clone());
    }
    applied.removed = remove(root, &unwanted)?;
    manifest.entries = all;
    manifest.write(root)?;
    Ok(applied)
}

/// Adds an entry, unless there is one for the path.
fn push(entries: &mut Vec<Entry>, path: PathBuf, kind: EntryKind) {
    if entries.iter().all(|entry| entry.path != path) {
        entries.push(Entry { path, kind });
    }
}

/// Returns the missing parent directories of a path, topmost first.
fn missing(root: &Path, path: &Path) -> Vec<PathBuf> {
    let above = path.ancestors().skip(1);
    let mut missing: Vec<PathBuf> = above
        .take_while(|dir| below(root, dir).symlink_metadata().is_err())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

/// Returns the temporary path under which an entry is created.
///
/// The name begins with a dot: kubelet ignores such files when it looks for drivers.
fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Creates an entry and its parent directories, and renames it into place.
fn create(root: &Path, thing: &Wanted) -> Result<()> {
    let path = below(root, &thing.path);
    let new = temporary_path(&path);
    let created = (|| {
        for directory in missing(root, &thing.path) {
            fs::create_dir(below(root, &directory))?;
            fs::set_permissions(below(root, &directory), fs::Permissions::from_mode(0o755))?;
        }
        unlink(&new)?;
        match &thing.content {
            Content::Link(to) => symlink(to, &new)?,
            Content::Program(bytes) => write(&new, bytes, 0o755)?,
            Content::Text(text) => write(&new, text.as_bytes(), 0o644)?,
        }
        fs::rename(&new, &path)
    })();
    created.map_err(|e: std::io::Error| {
        // An error here is ignored: the first error is reported.
        let _ = unlink(&new);
        Error::system(format!(
            "cannot create {} on the host",
            thing.path.display()
        ))
        .because(e)
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // Without it, the rename may reach the disk before the contents.
    file.sync_all()
}

/// Removes a file or a link, if it exists.
///
/// # Errors
/// The file exists and cannot be removed.
pub fn unlink(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes entries in reverse order, and temporary files that a crash left beside them. Returns the
/// removed paths.
///
/// An entry that changed since spc made it is left alone, and so is a directory that is not empty.
///
/// # Errors
/// An entry cannot be removed.
pub fn remove(root: &Path, entries: &[Entry]) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in entries.iter().rev() {
        let path = below(root, &entry.path);
        let fail = |e: std::io::Error| {
            Error::system(format!(
                "cannot remove {} on the host",
                entry.path.display()
            ))
            .because(e)
        };
        if entry.kind != EntryKind::Directory {
            unlink(&temporary_path(&path)).map_err(fail)?;
        }
        if !entry.kind.is_at(&path) {
            continue;
        }
        let result = match entry.kind {
            EntryKind::Directory => fs::remove_dir(&path),
            _ => fs::remove_file(&path),
        };
        match result {
            Ok(()) => removed.push(entry.path.clone()),
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    fn link(path: &str, to: &str) -> Wanted {
        Wanted {
            path: path.into(),
            content: Content::Link(to.into()),
            optional: true,
        }
    }

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn only_entries_made_by_spc_are_removed() {
        let tree = Tree::new("apply");
        let before = tree.listing();
        let mut manifest = Manifest::default();
        tree.write("sbin/mount.nfs", "native");
        let native = tree.listing();
        let wanted = [
            link("/sbin/mount.nfs", "/program"),
            link("/sbin/mount.ceph", "/program"),
            Wanted {
                path: "/opt/a/b/driver".into(),
                content: Content::Program(b"#!".to_vec()),
                optional: false,
            },
        ];
        let applied = apply(tree.path(), &wanted, &mut manifest).unwrap();
        assert_eq!(
            applied.made,
            paths(&["/sbin/mount.ceph", "/opt/a/b/driver"])
        );
        assert_eq!(applied.foreign, paths(&["/sbin/mount.nfs"]));
        assert_eq!(tree.read("sbin/mount.nfs"), "native");
        let mode = fs::metadata(tree.path().join("opt/a/b/driver"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        // The second run changes nothing.
        let listing = tree.listing();
        let applied = apply(tree.path(), &wanted, &mut manifest).unwrap();
        assert!(applied.made.is_empty() && applied.removed.is_empty());
        assert_eq!(tree.listing(), listing);
        assert_eq!(Manifest::read(tree.path()).unwrap(), Some(manifest.clone()));
        // An entry that is no longer wanted is removed, with its directories.
        let applied = apply(tree.path(), &wanted[..2], &mut manifest).unwrap();
        assert_eq!(
            applied.removed,
            paths(&["/opt/a/b/driver", "/opt/a/b", "/opt/a", "/opt"])
        );
        remove(tree.path(), &manifest.entries).unwrap();
        Manifest::remove(tree.path()).unwrap();
        fs::remove_dir(tree.path().join("var/lib/spc")).unwrap();
        fs::remove_dir(tree.path().join("var/lib")).unwrap();
        fs::remove_dir(tree.path().join("var")).unwrap();
        assert_eq!(tree.listing(), native);
        fs::remove_dir_all(tree.path().join("sbin")).unwrap();
        assert_eq!(tree.listing(), before);
    }

    #[test]
    fn a_name_that_a_package_took_over_is_left_alone() {
        let tree = Tree::new("takeover");
        let mut manifest = Manifest::default();
        let wanted = [
            link("/sbin/mount.nfs", "/program"),
            link("/sbin/mount.ceph", "/program"),
        ];
        apply(tree.path(), &wanted, &mut manifest).unwrap();
        // A package of the host installs its own file.
        fs::remove_file(tree.path().join("sbin/mount.nfs")).unwrap();
        tree.write("sbin/mount.nfs", "native");
        let applied = apply(tree.path(), &wanted, &mut manifest).unwrap();
        assert_eq!(applied.foreign, paths(&["/sbin/mount.nfs"]));
        assert_eq!(manifest.at(Path::new("/sbin/mount.nfs")), None);
        remove(tree.path(), &manifest.entries).unwrap();
        assert_eq!(tree.read("sbin/mount.nfs"), "native");
        assert!(!tree.path().join("sbin/mount.ceph").exists());
    }

    #[test]
    fn a_foreign_file_at_a_required_path_is_an_error() {
        let tree = Tree::new("must");
        tree.write("opt/driver", "theirs");
        let wanted = [Wanted {
            path: "/opt/driver".into(),
            content: Content::Text("ours".into()),
            optional: false,
        }];
        let error = apply(tree.path(), &wanted, &mut Manifest::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/opt/driver on the host was not made by spc")
        );
        assert_eq!(tree.read("opt/driver"), "theirs");
    }

    #[test]
    fn an_upgrade_replaces_the_program_without_touching_open_files() {
        let tree = Tree::new("upgrade");
        let mut manifest = Manifest::default();
        let program = |text: &str| Wanted {
            path: "/opt/spc".into(),
            content: Content::Program(text.into()),
            optional: false,
        };
        apply(tree.path(), &[program("one")], &mut manifest).unwrap();
        let running = File::open(tree.path().join("opt/spc")).unwrap();
        apply(tree.path(), &[program("two")], &mut manifest).unwrap();
        assert_eq!(tree.read("opt/spc"), "two");
        // A process that has the old file open keeps it.
        assert_eq!(std::io::read_to_string(running).unwrap(), "one");
    }

    #[test]
    fn files_left_by_a_crash_are_removed() {
        let tree = Tree::new("crash");
        let mut manifest = Manifest::default();
        tree.write("sbin/.spc.new", "half");
        let wanted = [link("/sbin/spc", "/program")];
        // The command died before it created anything; the manifest has old and new entries.
        manifest.entries = vec![
            Entry {
                path: "/sbin/spc".into(),
                kind: EntryKind::Link("/program".into()),
            },
            Entry {
                path: "/sbin/mount.old".into(),
                kind: EntryKind::Link("/program".into()),
            },
        ];
        symlink("/program", tree.path().join("sbin/mount.old")).unwrap();
        let applied = apply(tree.path(), &wanted, &mut manifest).unwrap();
        assert_eq!(applied.removed, paths(&["/sbin/mount.old"]));
        assert!(!tree.path().join("sbin/.spc.new").exists());
        tree.write("sbin/.spc.new", "half");
        remove(tree.path(), &manifest.entries).unwrap();
        assert_eq!(fs::read_dir(tree.path().join("sbin")).unwrap().count(), 0);
    }
}
