//! Where names have to be so that they are found: by mount(8) and thereby by systemd, and by people.

use std::path::{Path, PathBuf};

use crate::client::root::HOME;
use crate::error::{Error, Result};
use crate::install::tree::below;

/// The program in the client root that is current, on the host.
pub const PROGRAM: &str = "/var/lib/spc/current/usr/bin/spc";

/// The first directory in which mount(8) of util-linux looks for helpers; the others are below it.
const SBIN: &str = "/sbin";

/// Where a person's shell finds programs and hosts with a read-only `/usr` let something be put.
const ON_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/opt/bin", "/opt/sbin"];

/// What can be told of a directory of the host.
pub trait Look {
    /// Whether something can be made in it.
    fn is_writable(&self, dir: &Path) -> bool;
    /// Whether programs in it can be run.
    fn runs(&self, dir: &Path) -> bool;
}

/// How names are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// They are in a directory in which they are looked for.
    Direct,
    /// They are in a tree that systemd-sysext merges into `/usr`.
    Extension,
    /// They are not, until somebody adds this line to this file.
    Line {
        /// The line.
        line: String,
        /// The file.
        file: &'static str,
    },
}

/// Where names go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory in which they are made.
    pub names: PathBuf,
    /// The directory in which they are to be seen.
    pub shown: PathBuf,
    /// How they get there.
    pub how: How,
    /// The directory of `spc` itself.
    pub command: PathBuf,
    /// What the names lead to.
    pub program: PathBuf,
    /// Where a copy of the program has to be, if the one in the client root cannot be run.
    pub copy: Option<PathBuf>,
}

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Has {
    /// systemd-sysext, and a first process that merges extensions at boot.
    pub extensions: bool,
}

/// The place on a host whose root is at `root`.
///
/// # Errors
/// There is none where the program can be run.
pub fn find(root: &Path, has: Has, look: &impl Look) -> Result<Place> {
    let sbin = real(root, SBIN);
    let writable = |dir: &Path| look.is_writable(&below(root, dir));
    let on_path = || {
        let dirs = ON_PATH.iter().map(|dir| real(root, dir));
        dirs.into_iter().find(|dir| writable(dir))
    };
    // Hosts that have none are asked for it all the same.
    let can_be_made = !below(root, &sbin).exists() && writable(Path::new("/"));
    let (names, how, command) = if writable(&sbin) || can_be_made {
        (sbin.clone(), How::Direct, Some(sbin.clone()))
    } else if uses_path(root)
        && let Some(dir) = on_path()
    {
        let line = format!("export PATH=\"{}:$PATH\"", dir.display());
        let file = "/etc/profile";
        (dir.clone(), How::Line { line, file }, Some(dir))
    } else if has.extensions && sbin.starts_with("/usr") {
        (
            crate::install::sysext_paths::tree(&sbin),
            How::Extension,
            Some(sbin.clone()),
        )
    } else {
        let names = Path::new(HOME).join("sbin");
        // What is earlier in the list is seen where both have a name; ours are only those that the host has not.
        let line = format!(
            "overlay {sbin} overlay ro,lowerdir={}:{sbin},x-systemd.requires-mounts-for={HOME} 0 0",
            names.display(),
            sbin = sbin.display()
        );
        let file = "/etc/fstab";
        (names, How::Line { line, file }, on_path())
    };
    let runs = look.runs(&below(root, HOME));
    let (program, copy) = if runs {
        (PathBuf::from(PROGRAM), None)
    } else {
        let seen = command
            .clone()
            .filter(|dir| how == How::Extension || look.runs(&below(root, dir)));
        let seen = seen.ok_or_else(|| no_exec(how.clone()))?;
        // What an extension brings is seen elsewhere than where it is made.
        let made = if how == How::Extension { &names } else { &seen };
        (seen.join("spc"), Some(made.join("spc")))
    };
    let shown = if uses_path(root) { names.clone() } else { sbin };
    let command = match how {
        How::Extension => names.clone(),
        _ => command.unwrap_or_else(|| names.clone()),
    };
    Ok(Place {
        names,
        shown,
        how,
        command,
        program,
        copy,
    })
}

fn no_exec(how: How) -> Error {
    let what = match how {
        How::Line { .. } => "and no other writable directory of the host is without it",
        _ => "and so is the place of the names",
    };
    Error::system(format!("nothing on the host may be run from {HOME}"))
        .because(format!("it is mounted noexec, {what}"))
        .hint("on the host: mount -o remount,exec /var, and take noexec out of /etc/fstab")
}

/// Whether the host's mount(8) is busybox's, which looks for helpers wherever programs are.
fn uses_path(root: &Path) -> bool {
    let mount = real(root, "/bin/mount");
    mount.file_name().is_some_and(|name| name == "busybox")
}

/// A path of the host without links in it, as far as it exists.
fn real(root: &Path, path: &str) -> PathBuf {
    let found = below(root, path).canonicalize().ok();
    let found = found.and_then(|real| {
        let root = root.canonicalize().ok()?;
        Some(Path::new("/").join(real.strip_prefix(root).ok()?))
    });
    found.unwrap_or_else(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;
    use std::os::unix::fs::symlink;

    /// A host on which these directories cannot be written, and nothing be run from those.
    struct Host<'a> {
        tree: &'a Tree,
        read_only: &'a [&'a str],
        no_exec: &'a [&'a str],
    }

    impl Host<'_> {
        fn below(&self, dir: &Path, list: &[&str]) -> bool {
            let dir = dir.strip_prefix(self.tree.path()).unwrap();
            list.iter().any(|top| dir.starts_with(top))
        }
    }

    impl Look for Host<'_> {
        fn is_writable(&self, dir: &Path) -> bool {
            dir.is_dir() && !self.below(dir, self.read_only)
        }
        fn runs(&self, dir: &Path) -> bool {
            !self.below(dir, self.no_exec)
        }
    }

    fn tree(name: &str, dirs: &[&str], links: &[(&str, &str)]) -> Tree {
        let tree = Tree::new(name);
        for dir in dirs {
            std::fs::create_dir_all(tree.path().join(dir)).unwrap();
        }
        for (link, to) in links {
            symlink(to, tree.path().join(link)).unwrap();
        }
        tree
    }

    fn place(tree: &Tree, extensions: bool, read_only: &[&str], no_exec: &[&str]) -> Result<Place> {
        let host = Host {
            tree,
            read_only,
            no_exec,
        };
        find(tree.path(), Has { extensions }, &host)
    }

    #[test]
    fn the_place_where_mount_looks() {
        let tree = tree("direct", &["usr/sbin", "usr/bin"], &[("sbin", "usr/sbin")]);
        let found = place(&tree, true, &[], &[]).unwrap();
        assert_eq!(found.names, Path::new("/usr/sbin"));
        assert_eq!((found.how, found.copy), (How::Direct, None));
        assert_eq!(found.program, Path::new(PROGRAM));
    }

    #[test]
    fn a_host_without_the_place_gets_it() {
        let tree = tree("none", &["bin"], &[]);
        let found = place(&tree, false, &[], &[]).unwrap();
        assert_eq!(
            (found.names.to_str(), found.how),
            (Some("/sbin"), How::Direct)
        );
        assert_ne!(place(&tree, false, &[""], &[]).unwrap().how, How::Direct);
    }

    #[test]
    fn a_read_only_usr_is_extended_where_the_names_really_are() {
        let merged = tree(
            "merged",
            &["usr/bin", "opt/bin"],
            &[("sbin", "usr/sbin"), ("usr/sbin", "bin")],
        );
        let found = place(&merged, true, &["usr"], &[]).unwrap();
        // A directory `usr/sbin` in the tree would hide the link, and with it all the host's programs.
        assert_eq!(found.names, Path::new("/var/lib/extensions/spc/usr/bin"));
        assert_eq!(found.how, How::Extension);
        assert_eq!(found.command, found.names);
        // Nothing can be run from /var: the copy is seen where it is merged.
        let found = place(&merged, true, &["usr"], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/usr/bin/spc"));
        assert_eq!(found.copy.unwrap(), found.names.join("spc"));
    }

    #[test]
    fn without_extensions_there_is_a_line_to_add() {
        let tree = tree(
            "line",
            &["usr/sbin", "usr/bin", "usr/local/bin", "opt/bin"],
            &[("sbin", "usr/sbin")],
        );
        let found = place(&tree, false, &["usr"], &[]).unwrap();
        assert_eq!(found.names, Path::new("/var/lib/spc/sbin"));
        assert_eq!(found.command, Path::new("/opt/bin"));
        let How::Line { line, file } = found.how else {
            panic!("{found:?}")
        };
        assert!(
            line.starts_with("overlay /usr/sbin overlay ro,lowerdir=/var/lib/spc/sbin:/usr/sbin,")
        );
        assert_eq!(file, "/etc/fstab");
        let found = place(&tree, false, &["usr"], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/opt/bin/spc"));
        assert_eq!(found.copy.as_deref(), Some(Path::new("/opt/bin/spc")));
        let error = place(&tree, false, &["usr"], &["var", "opt"]).unwrap_err();
        assert!(error.to_string().contains("noexec"), "{error}");
    }

    #[test]
    fn busybox_finds_helpers_on_the_path() {
        let tree = tree(
            "busybox",
            &["usr/sbin", "usr/bin", "usr/local/sbin"],
            &[
                ("sbin", "usr/sbin"),
                ("bin", "usr/bin"),
                ("usr/bin/mount", "busybox"),
            ],
        );
        tree.write("usr/bin/busybox", "");
        let found = place(&tree, false, &["usr/sbin", "usr/bin"], &[]).unwrap();
        assert_eq!(found.names, Path::new("/usr/local/sbin"));
        let How::Line { line, .. } = found.how else {
            panic!("{found:?}")
        };
        assert_eq!(line, "export PATH=\"/usr/local/sbin:$PATH\"");
        assert_eq!(place(&tree, false, &[], &[]).unwrap().how, How::Direct);
    }

    #[test]
    fn where_nothing_runs_from_var_a_copy_is_beside_the_names() {
        let tree = tree("noexec", &["usr/sbin"], &[("sbin", "usr/sbin")]);
        let found = place(&tree, false, &[], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/usr/sbin/spc"));
        assert_eq!(found.copy.as_deref(), Some(Path::new("/usr/sbin/spc")));
        assert!(place(&tree, false, &[], &["var", "usr"]).is_err());
    }
}
