//! Makes what is wanted on the host and takes away what is not wanted any more, never what is somebody else's.
//!
//! Each thing is made under another name and renamed, so it is there whole or not at all, and is listed in the manifest
//! before it is made, so that whatever a crash leaves is known.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::install::manifest::{Entry, Manifest, What, hash_of};
use crate::install::tree::below;

/// A thing that is to be on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub make: Make,
    /// Whether it may be missing because somebody else's is there.
    pub optional: bool,
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// A symbolic link to this.
    Link(PathBuf),
    /// A program with these bytes.
    Program(Vec<u8>),
    /// A text.
    Text(String),
}

impl Make {
    fn what(&self) -> What {
        match self {
            Self::Link(to) => What::Link(to.clone()),
            Self::Program(bytes) => What::File(hash_of(bytes)),
            Self::Text(text) => What::File(hash_of(text.as_bytes())),
        }
    }
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What was made or changed.
    pub made: Vec<PathBuf>,
    /// What was there already.
    pub same: Vec<PathBuf>,
    /// What somebody else has at these places; it stays.
    pub foreign: Vec<PathBuf>,
    /// What was taken away, because it is not wanted any more.
    pub removed: Vec<PathBuf>,
}

/// Brings the host to what is wanted; `manifest` says what it has of ours, and then what it has now.
///
/// # Errors
/// Something cannot be made, or somebody else's is where ours has to be. The manifest on the host lists what was made.
pub fn apply(root: &Path, wanted: &[Wanted], manifest: &mut Manifest) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut entries = Vec::new();
    let mut todo = Vec::new();
    for thing in wanted {
        let path = below(root, &thing.path);
        let what = thing.make.what();
        let known = manifest.at(&thing.path);
        if what.is_at(&path) {
            applied.same.push(thing.path.clone());
        } else if path.symlink_metadata().is_err() || known.is_some_and(|was| was.is_at(&path)) {
            todo.push(thing);
        } else if thing.optional {
            applied.foreign.push(thing.path.clone());
            continue;
        } else {
            return Err(
                Error::system(format!("{} on the host is not ours", thing.path.display()))
                    .hint("move it away, or choose another place"),
            );
        }
        for directory in missing(root, &thing.path) {
            push(&mut entries, directory, What::Directory);
        }
        push(&mut entries, thing.path.clone(), what);
    }
    // Directories that were made once stay ours.
    let kept = manifest.entries.iter().filter(|entry| {
        entry.what == What::Directory && wanted.iter().any(|t| t.path.starts_with(&entry.path))
    });
    let mut all: Vec<Entry> = kept.cloned().collect();
    for entry in entries {
        push(&mut all, entry.path, entry.what);
    }
    let gone: Vec<Entry> = manifest
        .entries
        .iter()
        .filter(|old| all.iter().all(|new| new.path != old.path))
        .cloned()
        .collect();
    // Until all is done, both what was and what will be may be there.
    manifest.entries = [gone.clone(), all.clone()].concat();
    manifest.write(root)?;
    for thing in todo {
        make(root, thing)?;
        applied.made.push(thing.path.clone());
    }
    applied.removed = remove(root, &gone)?;
    manifest.entries = all;
    manifest.write(root)?;
    Ok(applied)
}

fn push(entries: &mut Vec<Entry>, path: PathBuf, what: What) {
    if entries.iter().all(|entry| entry.path != path) {
        entries.push(Entry { path, what });
    }
}

/// The directories above a path that are not there, the topmost first.
fn missing(root: &Path, path: &Path) -> Vec<PathBuf> {
    let above = path.ancestors().skip(1);
    let mut missing: Vec<PathBuf> = above
        .take_while(|dir| below(root, dir).symlink_metadata().is_err())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

/// The name under which a thing is made. kubelet does not look at names that begin with a dot.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn make(root: &Path, thing: &Wanted) -> Result<()> {
    let path = below(root, &thing.path);
    let new = beside(&path);
    let made = (|| {
        for directory in missing(root, &thing.path) {
            fs::create_dir(below(root, &directory))?;
            fs::set_permissions(below(root, &directory), fs::Permissions::from_mode(0o755))?;
        }
        unlink(&new)?;
        match &thing.make {
            Make::Link(to) => symlink(to, &new)?,
            Make::Program(bytes) => write(&new, bytes, 0o755)?,
            Make::Text(text) => write(&new, text.as_bytes(), 0o644)?,
        }
        fs::rename(&new, &path)
    })();
    made.map_err(|e: std::io::Error| {
        // The first error counts.
        let _ = unlink(&new);
        Error::system(format!("cannot make {} on the host", thing.path.display())).because(e)
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // A rename may reach the disk before what was written.
    file.sync_all()
}

/// Removes a file or a link, if it is there.
///
/// # Errors
/// It is there and stays.
pub fn unlink(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes away those of these entries that are still what was made, the last first, and what a crash left beside them.
/// A directory goes when it is empty.
///
/// # Errors
/// One cannot be taken away.
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
        if entry.what != What::Directory {
            unlink(&beside(&path)).map_err(fail)?;
        }
        if !entry.what.is_at(&path) {
            continue;
        }
        let gone = match entry.what {
            What::Directory => fs::remove_dir(&path),
            _ => fs::remove_file(&path),
        };
        match gone {
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
            make: Make::Link(to.into()),
            optional: true,
        }
    }

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_was_made_is_taken_away_and_nothing_else() {
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
                make: Make::Program(b"#!".to_vec()),
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
        // The same again changes nothing.
        let listing = tree.listing();
        let applied = apply(tree.path(), &wanted, &mut manifest).unwrap();
        assert!(applied.made.is_empty() && applied.removed.is_empty());
        assert_eq!(tree.listing(), listing);
        assert_eq!(Manifest::read(tree.path()).unwrap(), Some(manifest.clone()));
        // Less is wanted: the rest goes, directories included.
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
    fn a_name_that_somebody_took_over_stays() {
        let tree = Tree::new("takeover");
        let mut manifest = Manifest::default();
        let wanted = [
            link("/sbin/mount.nfs", "/program"),
            link("/sbin/mount.ceph", "/program"),
        ];
        apply(tree.path(), &wanted, &mut manifest).unwrap();
        // A package of the host brings its own.
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
    fn where_ours_has_to_be_somebody_elses_is_an_error() {
        let tree = Tree::new("must");
        tree.write("opt/driver", "theirs");
        let wanted = [Wanted {
            path: "/opt/driver".into(),
            make: Make::Text("ours".into()),
            optional: false,
        }];
        let error = apply(tree.path(), &wanted, &mut Manifest::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/opt/driver on the host is not ours")
        );
        assert_eq!(tree.read("opt/driver"), "theirs");
    }

    #[test]
    fn an_upgrade_replaces_what_it_made() {
        let tree = Tree::new("upgrade");
        let mut manifest = Manifest::default();
        let program = |text: &str| Wanted {
            path: "/opt/spc".into(),
            make: Make::Program(text.into()),
            optional: false,
        };
        apply(tree.path(), &[program("one")], &mut manifest).unwrap();
        let running = File::open(tree.path().join("opt/spc")).unwrap();
        apply(tree.path(), &[program("two")], &mut manifest).unwrap();
        assert_eq!(tree.read("opt/spc"), "two");
        // Whoever runs the old one goes on doing so.
        assert_eq!(std::io::read_to_string(running).unwrap(), "one");
    }

    #[test]
    fn what_a_crash_left_is_known() {
        let tree = Tree::new("crash");
        let mut manifest = Manifest::default();
        tree.write("sbin/.spc.new", "half");
        let wanted = [link("/sbin/spc", "/program")];
        // It died before anything was made, with both lists in one.
        manifest.entries = vec![
            Entry {
                path: "/sbin/spc".into(),
                what: What::Link("/program".into()),
            },
            Entry {
                path: "/sbin/mount.old".into(),
                what: What::Link("/program".into()),
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
