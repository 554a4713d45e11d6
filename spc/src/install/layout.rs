//! All that is to be on a host, from the place of the names and what was asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::install::apply::{Make, Wanted};
use crate::install::manifest::Manifest;
use crate::install::place::{How, Place};
use crate::install::sysext_paths;
use crate::install::tree::below;

/// What kubelet's flag for a mounter can name.
pub const MOUNTER: &str = "/var/lib/spc/mounter";

/// What is to be there, and what the host has of its own at those names.
#[derive(Debug, Default)]
pub struct Layout {
    /// What is to be made.
    pub wanted: Vec<Wanted>,
    /// The host's own, which stay.
    pub foreign: Vec<PathBuf>,
}

/// What goes on a host besides its names.
pub struct Extras<'a> {
    /// The program's bytes, for copies of it.
    pub program: &'a [u8],
    /// The driver for kubelet.
    pub driver: Option<&'a Path>,
}

/// The layout of a host whose root is at `root`; `manifest` says what it has of ours.
pub fn layout(
    root: &Path,
    place: &Place,
    names: &BTreeSet<String>,
    extras: &Extras<'_>,
    manifest: &Manifest,
) -> Layout {
    let mut layout = Layout::default();
    if let Some(copy) = &place.copy {
        layout.wanted.push(Wanted {
            path: copy.clone(),
            make: Make::Program(extras.program.to_vec()),
            optional: false,
        });
    }
    // Where a name is made and where it is seen may be two places, and the host's own is where it is seen.
    let mut link = |dir: &Path, name: &str| {
        let path = dir.join(name);
        let seen = if dir == place.names {
            &place.shown
        } else {
            dir
        }
        .join(name);
        if place.copy.as_ref() == Some(&path) {
            return;
        }
        let ours = manifest
            .at(&path)
            .is_some_and(|was| was.is_at(&below(root, &seen)));
        let to = std::fs::read_link(below(root, &seen)).ok();
        if to.as_ref() != Some(&place.program)
            && !ours
            && below(root, &seen).symlink_metadata().is_ok()
        {
            layout.foreign.push(seen);
            return;
        }
        layout.wanted.push(Wanted {
            path,
            make: Make::Link(place.program.clone()),
            optional: true,
        });
    };
    for name in names {
        link(&place.names, name);
    }
    link(&place.command, "spc");
    layout.wanted.push(Wanted {
        path: MOUNTER.into(),
        make: Make::Link(place.program.clone()),
        optional: false,
    });
    if place.how == How::Extension {
        layout.wanted.push(sysext_paths::release());
    }
    if let Some(path) = extras.driver {
        layout.wanted.push(Wanted {
            path: path.into(),
            make: Make::Program(extras.program.to_vec()),
            optional: false,
        });
    }
    layout
}

#[cfg(test)]
mod tests {
    use super::super::place::PROGRAM;
    use super::super::tests::Tree;
    use super::*;
    use std::os::unix::fs::symlink;

    const NO_EXTRAS: Extras<'_> = Extras {
        program: b"program",
        driver: None,
    };

    fn names() -> BTreeSet<String> {
        ["mount.ceph", "mount.nfs"].map(str::to_owned).into()
    }

    fn paths(layout: &Layout) -> Vec<&str> {
        let paths = layout.wanted.iter().map(|thing| thing.path.to_str());
        paths.map(Option::unwrap).collect()
    }

    #[test]
    fn an_extension_does_not_hide_the_hosts_own() {
        let tree = Tree::new("layout");
        tree.write("usr/bin/mount.nfs", "native");
        let place = Place {
            names: sysext_paths::tree(Path::new("/usr/bin")),
            shown: "/usr/bin".into(),
            how: How::Extension,
            command: sysext_paths::tree(Path::new("/usr/bin")),
            program: PROGRAM.into(),
            copy: None,
        };
        let empty = Manifest::default();
        let first = layout(tree.path(), &place, &names(), &NO_EXTRAS, &empty);
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
        // Merged, ours are seen where the host's own are.
        symlink(PROGRAM, tree.path().join("usr/bin/mount.ceph")).unwrap();
        let again = layout(tree.path(), &place, &names(), &NO_EXTRAS, &empty);
        assert_eq!(again.wanted, first.wanted);
    }

    #[test]
    fn a_copy_stands_where_the_command_would_be() {
        let tree = Tree::new("copy");
        let place = Place {
            names: "/sbin".into(),
            shown: "/sbin".into(),
            how: How::Direct,
            command: "/sbin".into(),
            program: "/sbin/spc".into(),
            copy: Some("/sbin/spc".into()),
        };
        let driver = Path::new("/plugins/spc~spc/spc");
        let extras = Extras {
            driver: Some(driver),
            ..NO_EXTRAS
        };
        let layout = layout(tree.path(), &place, &names(), &extras, &Manifest::default());
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
            .filter(|t| t.make == Make::Program(b"program".to_vec()));
        assert_eq!(copies.count(), 2);
        let links = layout
            .wanted
            .iter()
            .filter(|t| t.make == Make::Link("/sbin/spc".into()));
        assert_eq!(links.count(), 3);
    }
}
