//! Links on the host to the image's man pages and shell completions, where the host has directories
//! for them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::root;
use crate::install::apply::{Content, Wanted};
use crate::install::location::{HostProbe, InstallLocation, InstallMethod};
use crate::install::sysext_paths;
use crate::install::tree::below;

/// Directory in the image, and the directories in which hosts look for the same files.
const DIRECTORIES: [(&str, &[&str]); 4] = [
    ("/usr/share/man/man8", &["/usr/share/man/man8"]),
    (
        "/usr/share/bash-completion/completions",
        &["/usr/share/bash-completion/completions"],
    ),
    (
        "/usr/share/zsh/vendor-completions",
        &[
            "/usr/share/zsh/vendor-completions",
            "/usr/share/zsh/site-functions",
        ],
    ),
    (
        "/usr/share/fish/vendor_completions.d",
        &["/usr/share/fish/vendor_completions.d"],
    ),
];

/// Returns the absolute paths of spc's own pages and completions in the image whose root is at
/// `image`, sorted.
pub fn of_image(image: &Path) -> Vec<PathBuf> {
    let in_dir = |(dir, _): &(&str, _)| {
        let entries = fs::read_dir(below(image, dir))
            .into_iter()
            .flatten()
            .flatten();
        let dir = PathBuf::from(dir);
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ours = names.filter(|name| is_ours(name));
        ours.map(|name| dir.join(name)).collect::<Vec<_>>()
    };
    let mut pages: Vec<PathBuf> = DIRECTORIES.iter().flat_map(in_dir).collect();
    pages.sort();
    pages
}

fn is_ours(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let own = stem.strip_prefix('_').unwrap_or(stem);
    own == "spc" || own.starts_with("spc-") || name.starts_with("mount.spc.")
}

/// Returns the links to create on the host whose root is at `root`.
///
/// A page is left out where the host has no directory for it, or no writable one.
pub fn links(
    root: &Path,
    location: &InstallLocation,
    pages: &[PathBuf],
    probe: &impl HostProbe,
) -> Vec<Wanted> {
    let link = |page: &PathBuf| {
        let (dir, name) = (page.parent()?, page.file_name()?);
        let (_, dirs) = DIRECTORIES
            .iter()
            .find(|(image, _)| Path::new(image) == dir)?;
        let dir = dirs.iter().find(|dir| below(root, dir).is_dir())?;
        let dir = match location.method {
            InstallMethod::Extension => sysext_paths::tree(Path::new(dir)),
            _ if probe.is_writable(&below(root, dir)) => PathBuf::from(dir),
            _ => return None,
        };
        Some(Wanted {
            path: dir.join(name),
            content: Content::Link(below(Path::new(root::CURRENT), page)),
            optional: true,
        })
    };
    pages.iter().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::super::location::PROGRAM;
    use super::super::tests::Tree;
    use super::*;
    use crate::install::extension;

    struct Writable(bool);

    impl HostProbe for Writable {
        fn is_writable(&self, _: &Path) -> bool {
            self.0
        }
        fn allows_exec(&self, _: &Path) -> bool {
            true
        }
    }

    fn location(method: InstallMethod) -> InstallLocation {
        InstallLocation {
            names_dir: "/sbin".into(),
            visible_dir: "/sbin".into(),
            method,
            command_dir: "/sbin".into(),
            program: PROGRAM.into(),
            program_copy: None,
        }
    }

    #[test]
    fn pages_are_linked_only_into_existing_writable_directories_or_the_extension() {
        let (image, host) = (Tree::new("image"), Tree::new("pages"));
        for page in [
            "man/man8/spc.8",
            "man/man8/spc-mount.8",
            "man/man8/mount.spc.8",
            "man/man8/mount.nfs.8",
            "man/man8/spcial.8",
            "zsh/vendor-completions/_spc",
            "fish/vendor_completions.d/spc.fish",
        ] {
            image.write(&format!("usr/share/{page}"), "");
        }
        let pages = of_image(image.path());
        assert_eq!(pages.len(), 5, "{pages:?}");
        host.write("usr/share/man/man8/x", "");
        host.write("usr/share/zsh/site-functions/x", "");
        let made = links(
            host.path(),
            &location(InstallMethod::Direct),
            &pages,
            &Writable(true),
        );
        let paths: Vec<_> = made
            .iter()
            .map(|thing| thing.path.to_str().unwrap())
            .collect();
        assert_eq!(
            paths,
            [
                "/usr/share/man/man8/mount.spc.8",
                "/usr/share/man/man8/spc-mount.8",
                "/usr/share/man/man8/spc.8",
                "/usr/share/zsh/site-functions/_spc",
            ]
        );
        let to = "/var/lib/spc/current/usr/share/zsh/vendor-completions/_spc";
        assert_eq!(made[3].content, Content::Link(to.into()));
        assert!(
            links(
                host.path(),
                &location(InstallMethod::Direct),
                &pages,
                &Writable(false)
            )
            .is_empty()
        );
        let made = links(
            host.path(),
            &location(InstallMethod::Extension),
            &pages,
            &Writable(false),
        );
        assert!(made.iter().all(|thing| extension::contains(&thing.path)));
        assert_eq!(made.len(), 4);
    }
}
