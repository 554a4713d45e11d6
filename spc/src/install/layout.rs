//! List of all files and links that an installation needs on the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::install::apply::{Content, Wanted};
use crate::install::location::{InstallLocation, InstallMethod};
use crate::install::manifest::Manifest;
use crate::install::sysext_paths;
use crate::install::tree::below;

/// Path on the host for kubelet's `--experimental-mounter-path`.
pub const MOUNTER: &str = "/var/lib/spc/mounter";

/// Entries to create, and paths where the host has its own.
#[derive(Debug, Default)]
pub struct Layout {
    /// Entries to create.
    pub wanted: Vec<Wanted>,
    /// Paths that belong to the host and are left alone.
    pub foreign: Vec<PathBuf>,
}

/// Files that an installation needs besides the names.
pub struct Extras<'a> {
    /// Contents of the program, for copies of it.
    pub program: &'a [u8],
    /// Paths of the FlexVolume drivers for kubelet, if they are wanted.
    pub drivers: &'a [PathBuf],
}

/// Returns the layout for the host whose root is at `root`.
///
/// `manifest` lists what spc made there before. Other files at the same paths belong to the host.
pub fn layout(
    root: &Path,
    location: &InstallLocation,
    names: &BTreeSet<String>,
    extras: &Extras<'_>,
    manifest: &Manifest,
) -> Layout {
    let mut layout = Layout::default();
    if let Some(copy) = &location.program_copy {
        layout.wanted.push(Wanted {
            path: copy.clone(),
            content: Content::Program(extras.program.to_vec()),
            optional: false,
        });
    }
    // The host's own file of that name is where the name is visible, not where it is created.
    let mut link = |dir: &Path, name: &str| {
        let path = dir.join(name);
        let visible = if dir == location.names_dir {
            &location.visible_dir
        } else {
            dir
        }
        .join(name);
        if location.program_copy.as_ref() == Some(&path) {
            return;
        }
        let ours = manifest
            .at(&path)
            .is_some_and(|entry| entry.is_at(&below(root, &visible)));
        let target = std::fs::read_link(below(root, &visible)).ok();
        if target.as_ref() != Some(&location.program)
            && !ours
            && below(root, &visible).symlink_metadata().is_ok()
        {
            layout.foreign.push(visible);
            return;
        }
        layout.wanted.push(Wanted {
            path,
            content: Content::Link(location.program.clone()),
            optional: true,
        });
    };
    for name in names {
        link(&location.names_dir, name);
    }
    link(&location.command_dir, "spc");
    layout.wanted.push(Wanted {
        path: MOUNTER.into(),
        content: Content::Link(location.program.clone()),
        optional: false,
    });
    if location.method == InstallMethod::Extension {
        layout.wanted.push(sysext_paths::release());
    }
    for path in extras.drivers {
        layout.wanted.push(Wanted {
            path: path.clone(),
            content: Content::Program(extras.program.to_vec()),
            optional: false,
        });
    }
    layout
}

#[cfg(test)]
mod tests {
    use super::super::location::PROGRAM;
    use super::super::tests::Tree;
    use super::*;
    use std::os::unix::fs::symlink;

    const NO_EXTRAS: Extras<'_> = Extras {
        program: b"program",
        drivers: &[],
    };

    fn names() -> BTreeSet<String> {
        ["mount.ceph", "mount.nfs"].map(str::to_owned).into()
    }

    fn paths(layout: &Layout) -> Vec<&str> {
        let paths = layout.wanted.iter().map(|entry| entry.path.to_str());
        paths.map(Option::unwrap).collect()
    }

    #[test]
    fn an_extension_does_not_hide_the_programs_of_the_host() {
        let tree = Tree::new("layout");
        tree.write("usr/bin/mount.nfs", "native");
        let location = InstallLocation {
            names_dir: sysext_paths::tree(Path::new("/usr/bin")),
            visible_dir: "/usr/bin".into(),
            method: InstallMethod::Extension,
            command_dir: sysext_paths::tree(Path::new("/usr/bin")),
            program: PROGRAM.into(),
            program_copy: None,
        };
        let empty = Manifest::default();
        let first = layout(tree.path(), &location, &names(), &NO_EXTRAS, &empty);
        assert_eq!(first.foreign, [Path::new("/usr/bin/mount.nfs")]);
        assert_eq!(
            paths(&first),
            [
                "/var/lib/extensions/spc/usr/bin/mount.ceph",
                "/var/lib/extensions/spc/usr/bin/spc",
                MOUNTER,
                "/var/lib/extensions/spc/usr/lib/extension-release.d/extension-release.spc",
            ]
        );
        // After the merge, the names of spc are visible in the host's directory.
        symlink(PROGRAM, tree.path().join("usr/bin/mount.ceph")).unwrap();
        let again = layout(tree.path(), &location, &names(), &NO_EXTRAS, &empty);
        assert_eq!(again.wanted, first.wanted);
    }

    #[test]
    fn a_copy_of_the_program_replaces_the_link_to_it() {
        let tree = Tree::new("copy");
        let location = InstallLocation {
            names_dir: "/sbin".into(),
            visible_dir: "/sbin".into(),
            method: InstallMethod::Direct,
            command_dir: "/sbin".into(),
            program: "/sbin/spc".into(),
            program_copy: Some("/sbin/spc".into()),
        };
        let drivers = ["/plugins/spc~spc/spc".into()];
        let extras = Extras {
            drivers: &drivers,
            ..NO_EXTRAS
        };
        let layout = layout(
            tree.path(),
            &location,
            &names(),
            &extras,
            &Manifest::default(),
        );
        assert_eq!(
            paths(&layout),
            [
                "/sbin/spc",
                "/sbin/mount.ceph",
                "/sbin/mount.nfs",
                MOUNTER,
                "/plugins/spc~spc/spc"
            ]
        );
        let copies = layout
            .wanted
            .iter()
            .filter(|t| t.content == Content::Program(b"program".to_vec()));
        assert_eq!(copies.count(), 2);
        let links = layout
            .wanted
            .iter()
            .filter(|t| t.content == Content::Link("/sbin/spc".into()));
        assert_eq!(links.count(), 3);
    }
}
