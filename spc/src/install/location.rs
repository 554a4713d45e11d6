//! Choice of the directory on the host in which mount(8), and with it systemd, finds the names.

use std::path::{Path, PathBuf};

use crate::client::root::HOME;
use crate::error::{Error, Result};
use crate::install::tree::below;

/// Path on the host of the program in the current client root file system.
pub const PROGRAM: &str = "/var/lib/spc/current/usr/bin/spc";

/// First directory in which mount(8) of util-linux looks for helpers. The others are below it.
const SBIN: &str = "/sbin";

/// Directories of the default `PATH` that are often writable on hosts with a read-only `/usr`.
const ON_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/opt/bin", "/opt/sbin"];

/// Checks of a directory of the host, replaced in tests.
pub trait HostProbe {
    /// Returns whether files can be created in `dir`.
    fn is_writable(&self, dir: &Path) -> bool;
    /// Returns whether programs in `dir` can be run: it is not mounted noexec.
    fn allows_exec(&self, dir: &Path) -> bool;
}

/// How mount(8) finds the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallMethod {
    /// The names are in a directory that mount(8) searches.
    Direct,
    /// The names are in an extension that systemd-sysext merges into `/usr`.
    Extension,
    /// The administrator has to add a line to a file first.
    Line {
        /// Text of the line.
        line: String,
        /// Path of the file.
        file: &'static str,
    },
}

/// Directories and paths of an installation on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallLocation {
    /// Directory in which the names are created.
    pub names_dir: PathBuf,
    /// Directory in which mount(8) finds the names. Differs from `names_dir` when they are merged
    /// or overlaid.
    pub visible_dir: PathBuf,
    /// How the names get from `names_dir` to `visible_dir`.
    pub method: InstallMethod,
    /// Directory in which the link `spc` is created.
    pub command_dir: PathBuf,
    /// Target of the links.
    pub program: PathBuf,
    /// Where to create a copy of the program, if the one in the client root file system cannot be
    /// run.
    pub program_copy: Option<PathBuf>,
}

/// Features of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFeatures {
    /// Whether systemd-sysext can be used, and systemd merges extensions at boot.
    pub extensions: bool,
}

/// Chooses the location on the host whose root is at `root`.
///
/// # Errors
/// No writable directory allows programs to be run.
pub fn choose(
    root: &Path,
    features: HostFeatures,
    probe: &impl HostProbe,
) -> Result<InstallLocation> {
    let sbin = resolve(root, SBIN);
    let writable = |dir: &Path| probe.is_writable(&below(root, dir));
    let dir_on_path = || {
        let dirs = ON_PATH.iter().map(|dir| resolve(root, dir));
        dirs.into_iter().find(|dir| writable(dir))
    };
    // mount(8) also looks in `/sbin` on hosts where the directory did not exist at first.
    let can_be_made = !below(root, &sbin).exists() && writable(Path::new("/"));
    let (names_dir, method, command_dir) = if writable(&sbin) || can_be_made {
        (sbin.clone(), InstallMethod::Direct, Some(sbin.clone()))
    } else if uses_path(root)
        && let Some(dir) = dir_on_path()
    {
        let line = format!("export PATH=\"{}:$PATH\"", dir.display());
        let file = "/etc/profile";
        (dir.clone(), InstallMethod::Line { line, file }, Some(dir))
    } else if features.extensions && sbin.starts_with("/usr") {
        (
            crate::install::sysext_paths::tree(&sbin),
            InstallMethod::Extension,
            Some(sbin.clone()),
        )
    } else {
        let names_dir = Path::new(HOME).join("sbin");
        // overlayfs shows the first layer where both have a name. The names of spc are only those
        // that the host lacks, so none of the host's is hidden.
        let line = format!(
            "overlay {sbin} overlay ro,lowerdir={}:{sbin},x-systemd.requires-mounts-for={HOME} 0 0",
            names_dir.display(),
            sbin = sbin.display()
        );
        let file = "/etc/fstab";
        (names_dir, InstallMethod::Line { line, file }, dir_on_path())
    };
    let (program, program_copy) = if probe.allows_exec(&below(root, HOME)) {
        (PathBuf::from(PROGRAM), None)
    } else {
        let merges = method == InstallMethod::Extension;
        let visible_dir = command_dir
            .clone()
            .filter(|dir| merges || probe.allows_exec(&below(root, dir)));
        let visible_dir = visible_dir.ok_or_else(|| no_exec_error(method.clone()))?;
        // A file of an extension is created in another directory than it is visible in.
        let copy_dir = if merges { &names_dir } else { &visible_dir };
        (visible_dir.join("spc"), Some(copy_dir.join("spc")))
    };
    let visible_dir = if uses_path(root) {
        names_dir.clone()
    } else {
        sbin
    };
    let command_dir = match method {
        InstallMethod::Extension => names_dir.clone(),
        _ => command_dir.unwrap_or_else(|| names_dir.clone()),
    };
    Ok(InstallLocation {
        names_dir,
        visible_dir,
        method,
        command_dir,
        program,
        program_copy,
    })
}

fn no_exec_error(method: InstallMethod) -> Error {
    let other = match method {
        InstallMethod::Line { .. } => "and so is every other writable directory of the PATH",
        _ => "and so is the directory of the names",
    };
    Error::system(format!("programs in {HOME} cannot be run on the host"))
        .because(format!("it is mounted noexec, {other}"))
        .hint("on the host: mount -o remount,exec /var, and take noexec out of /etc/fstab")
}

/// Returns whether the host's mount(8) is busybox's, which looks for helpers in the `PATH`.
fn uses_path(root: &Path) -> bool {
    let mount = resolve(root, "/bin/mount");
    mount.file_name().is_some_and(|name| name == "busybox")
}

/// Resolves the symbolic links in a path of the host. Returns `path` itself if it does not exist,
/// or leads outside `root`.
fn resolve(root: &Path, path: &str) -> PathBuf {
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

    /// Host with a list of directories that cannot be written, and one of directories mounted
    /// noexec.
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

    impl HostProbe for Host<'_> {
        fn is_writable(&self, dir: &Path) -> bool {
            dir.is_dir() && !self.below(dir, self.read_only)
        }
        fn allows_exec(&self, dir: &Path) -> bool {
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

    fn choose_on(
        tree: &Tree,
        extensions: bool,
        read_only: &[&str],
        no_exec: &[&str],
    ) -> Result<InstallLocation> {
        let host = Host {
            tree,
            read_only,
            no_exec,
        };
        choose(tree.path(), HostFeatures { extensions }, &host)
    }

    #[test]
    fn names_go_to_sbin_where_it_is_writable() {
        let tree = tree("direct", &["usr/sbin", "usr/bin"], &[("sbin", "usr/sbin")]);
        let found = choose_on(&tree, true, &[], &[]).unwrap();
        assert_eq!(found.names_dir, Path::new("/usr/sbin"));
        assert_eq!(
            (found.method, found.program_copy),
            (InstallMethod::Direct, None)
        );
        assert_eq!(found.program, Path::new(PROGRAM));
    }

    #[test]
    fn sbin_is_created_where_it_is_missing() {
        let tree = tree("none", &["bin"], &[]);
        let found = choose_on(&tree, false, &[], &[]).unwrap();
        assert_eq!(
            (found.names_dir.to_str(), found.method),
            (Some("/sbin"), InstallMethod::Direct)
        );
        assert_ne!(
            choose_on(&tree, false, &[""], &[]).unwrap().method,
            InstallMethod::Direct
        );
    }

    #[test]
    fn an_extension_uses_the_directory_behind_the_sbin_link() {
        let merged = tree(
            "merged",
            &["usr/bin", "opt/bin"],
            &[("sbin", "usr/sbin"), ("usr/sbin", "bin")],
        );
        let found = choose_on(&merged, true, &["usr"], &[]).unwrap();
        // A directory `usr/sbin` in the extension would hide the link and with it the host's
        // programs.
        assert_eq!(
            found.names_dir,
            Path::new("/var/lib/extensions/spc/usr/bin")
        );
        assert_eq!(found.method, InstallMethod::Extension);
        assert_eq!(found.command_dir, found.names_dir);
        // With `/var` mounted noexec, the names lead to the copy where it is merged.
        let found = choose_on(&merged, true, &["usr"], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/usr/bin/spc"));
        assert_eq!(found.program_copy.unwrap(), found.names_dir.join("spc"));
    }

    #[test]
    fn a_read_only_usr_without_extensions_needs_a_line_in_fstab() {
        let tree = tree(
            "line",
            &["usr/sbin", "usr/bin", "usr/local/bin", "opt/bin"],
            &[("sbin", "usr/sbin")],
        );
        let found = choose_on(&tree, false, &["usr"], &[]).unwrap();
        assert_eq!(found.names_dir, Path::new("/var/lib/spc/sbin"));
        assert_eq!(found.command_dir, Path::new("/opt/bin"));
        let InstallMethod::Line { line, file } = found.method else {
            panic!("{found:?}")
        };
        assert!(
            line.starts_with("overlay /usr/sbin overlay ro,lowerdir=/var/lib/spc/sbin:/usr/sbin,")
        );
        assert_eq!(file, "/etc/fstab");
        let found = choose_on(&tree, false, &["usr"], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/opt/bin/spc"));
        assert_eq!(
            found.program_copy.as_deref(),
            Some(Path::new("/opt/bin/spc"))
        );
        let error = choose_on(&tree, false, &["usr"], &["var", "opt"]).unwrap_err();
        assert!(error.to_string().contains("noexec"), "{error}");
    }

    #[test]
    fn with_busybox_names_go_to_the_path() {
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
        let found = choose_on(&tree, false, &["usr/sbin", "usr/bin"], &[]).unwrap();
        assert_eq!(found.names_dir, Path::new("/usr/local/sbin"));
        let InstallMethod::Line { line, .. } = found.method else {
            panic!("{found:?}")
        };
        assert_eq!(line, "export PATH=\"/usr/local/sbin:$PATH\"");
        assert_eq!(
            choose_on(&tree, false, &[], &[]).unwrap().method,
            InstallMethod::Direct
        );
    }

    #[test]
    fn with_var_noexec_a_copy_of_the_program_is_beside_the_names() {
        let tree = tree("noexec", &["usr/sbin"], &[("sbin", "usr/sbin")]);
        let found = choose_on(&tree, false, &[], &["var"]).unwrap();
        assert_eq!(found.program, Path::new("/usr/sbin/spc"));
        assert_eq!(
            found.program_copy.as_deref(),
            Some(Path::new("/usr/sbin/spc"))
        );
        assert!(choose_on(&tree, false, &[], &["var", "usr"]).is_err());
    }
}
