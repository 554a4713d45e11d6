//! What both of kubelet's doors know of kubelet: where its directories are, by the paths that it gives.

use std::ffi::OsStr;
use std::path::{Component, Path};

use crate::error::{Error, Result};

/// How many of a target's last parts are below kubelet's directory, where no symbolic link is followed: what pods own
/// lies there. Kubelet's directory may be anywhere; targets in it are `pods/UID/volumes/PLUGIN/NAME`, or
/// `plugins/kubernetes.io/…` for what pods share. 0 for any other.
pub fn depth(target: &Path) -> usize {
    let parts: Vec<_> = target.components().map(Component::as_os_str).collect();
    let is = |at: usize, name: &str| parts.get(at).is_some_and(|part| *part == OsStr::new(name));
    let begins = |at: &usize| {
        is(*at, "pods") && is(at + 2, "volumes") && parts.len() == at + 5
            || is(*at, "plugins") && is(at + 1, "kubernetes.io") && parts.len() > at + 2
    };
    // The last one: a directory above may be called so as well.
    (1..parts.len())
        .rev()
        .find(begins)
        .map_or(0, |at| parts.len() - at)
}

/// Kubelet names its targets in full, from the root on, and straight.
///
/// # Errors
/// This one is not, so somebody else wrote it.
pub fn check(target: &Path) -> Result<()> {
    let straight = |part: Component<'_>| !matches!(part, Component::ParentDir | Component::CurDir);
    if target.is_absolute() && target.components().all(straight) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "bad target {}: not a plain path from the root on",
        crate::error::show(target)
    ))
    .hint("kubelet names volumes as /var/lib/kubelet/pods/UID/volumes/PLUGIN/NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_kubelets_directory() {
        for (target, below) in [
            (
                "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~nfs/data",
                5,
            ),
            ("/data/k/pods/1-2/volumes/x~spc/pods", 5),
            ("/pods/1-2/volumes/x~spc/data", 5),
            ("/pods/1-2/volumes/k/pods/1-2/volumes/x~spc/data", 5),
            ("/k/plugins/kubernetes.io/flexvolume/x/spc/mounts/pv", 7),
            ("/var/lib/kubelet/pods/1-2/volumes/x~spc", 0),
            ("/var/lib/kubelet/pods/1-2/other/x~spc/data", 0),
            ("/mnt/data", 0),
            ("/", 0),
        ] {
            assert_eq!(depth(Path::new(target)), below, "{target}");
        }
    }

    #[test]
    fn targets_are_plain() {
        assert!(check(Path::new("/var/lib/kubelet/pods/1/volumes/a~b/c")).is_ok());
        for bad in ["", "mnt", "/mnt/../etc", "./mnt"] {
            assert!(check(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
