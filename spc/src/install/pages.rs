//! Man pages and completions of the image, for people on the host: only where the host has a place for such files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::root;
use crate::install::apply::{Make, Wanted};
use crate::install::place::{How, Look, Place};
use crate::install::sysext_paths;
use crate::install::tree::below;

/// Where they are in the image, and where hosts look for them.
const PLACES: [(&str, &[&str]); 4] = [
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

/// Ours in the image whose root is at `image`, each with the directory that it is in.
pub fn of_image(image: &Path) -> Vec<PathBuf> {
    let in_place = |(dir, _): &(&str, _)| {
        let entries = fs::read_dir(below(image, dir))
            .into_iter()
            .flatten()
            .flatten();
        let dir = PathBuf::from(dir);
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ours = names.filter(|name| is_ours(name));
        ours.map(|name| dir.join(name)).collect::<Vec<_>>()
    };
    let mut pages: Vec<PathBuf> = PLACES.iter().flat_map(in_place).collect();
    pages.sort();
    pages
}

fn is_ours(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let own = stem.strip_prefix('_').unwrap_or(stem);
    own == "spc" || own.starts_with("spc-") || name.starts_with("mount.spc.")
}

/// Links to them on a host whose root is at `root`.
pub fn links(root: &Path, place: &Place, pages: &[PathBuf], look: &impl Look) -> Vec<Wanted> {
    let link = |page: &PathBuf| {
        let (dir, name) = (page.parent()?, page.file_name()?);
        let (_, dirs) = PLACES.iter().find(|(image, _)| Path::new(image) == dir)?;
        let dir = dirs.iter().find(|dir| below(root, dir).is_dir())?;
        let dir = match place.how {
            How::Extension => sysext_paths::tree(Path::new(dir)),
            _ if look.is_writable(&below(root, dir)) => PathBuf::from(dir),
            _ => return None,
        };
        Some(Wanted {
            path: dir.join(name),
            make: Make::Link(below(Path::new(root::CURRENT), page)),
            optional: true,
        })
    };
    pages.iter().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::super::place::PROGRAM;
    use super::super::tests::Tree;
    use super::*;
    use crate::install::extension;

    struct Writable(bool);

    impl Look for Writable {
        fn is_writable(&self, _: &Path) -> bool {
            self.0
        }
        fn runs(&self, _: &Path) -> bool {
            true
        }
    }

    fn place(how: How) -> Place {
        Place {
            names: "/sbin".into(),
            shown: "/sbin".into(),
            how,
            command: "/sbin".into(),
            program: PROGRAM.into(),
            copy: None,
        }
    }

    #[test]
    fn pages_go_where_the_host_has_pages() {
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
        let made = links(host.path(), &place(How::Direct), &pages, &Writable(true));
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
        assert_eq!(made[3].make, Make::Link(to.into()));
        assert!(links(host.path(), &place(How::Direct), &pages, &Writable(false)).is_empty());
        let made = links(
            host.path(),
            &place(How::Extension),
            &pages,
            &Writable(false),
        );
        assert!(made.iter().all(|thing| extension::has(&thing.path)));
        assert_eq!(made.len(), 4);
    }
}
