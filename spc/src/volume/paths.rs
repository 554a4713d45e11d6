//! Targets in kubelet's directory, recognised by their paths.

use std::ffi::OsStr;
use std::path::{Component, Path};

use crate::error::{Error, Result};

/// Returns the number of components of a target below kubelet's directory; 0 if it is not there.
///
/// No symbolic link is followed in these components, because pods own directories there. kubelet's
/// directory may be anywhere. Targets in it are `pods/UID/volumes/PLUGIN/NAME`, for CSI
/// `pods/UID/volumes/kubernetes.io~csi/NAME/mount`, or `plugins/kubernetes.io/…` for volumes that
/// pods share.
pub fn kubelet_tail(target: &Path) -> usize {
    let parts: Vec<_> = target.components().map(Component::as_os_str).collect();
    let is = |at: usize, name: &str| parts.get(at).is_some_and(|part| *part == OsStr::new(name));
    let is_start = |at: &usize| {
        let below = parts.len() - at;
        is(*at, "pods") && is(at + 2, "volumes") && below == 5
            || is(*at, "pods") && is(at + 3, "kubernetes.io~csi") && below == 6
            || is(*at, "plugins") && is(at + 1, "kubernetes.io") && below > 2
    };
    // The last match counts, because directories above may have the same names.
    (1..parts.len())
        .rev()
        .find(is_start)
        .map_or(0, |at| parts.len() - at)
}

/// Returns the name of the FlexVolume driver of a target: DRIVER, if its parent directory is called
/// `VENDOR~DRIVER`.
pub fn driver(target: &Path) -> Option<&str> {
    let plugin = target.parent()?.file_name()?.to_str()?;
    plugin.split_once('~').map(|(_, driver)| driver)
}

/// Checks that a target is absolute and has no `.` or `..`, as kubelet's targets are.
///
/// # Errors
/// The target is relative, or has such a component.
pub fn check(target: &Path) -> Result<()> {
    let plain = |part: Component<'_>| !matches!(part, Component::ParentDir | Component::CurDir);
    if target.is_absolute() && target.components().all(plain) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "bad target {}: not an absolute path without . and ..",
        crate::error::show(target)
    ))
    .hint("kubelet names volumes as /var/lib/kubelet/pods/UID/volumes/PLUGIN/NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_below_the_directory_of_kubelet_are_counted() {
        for (target, below) in [
            (
                "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~nfs/data",
                5,
            ),
            ("/data/k/pods/1-2/volumes/x~spc/pods", 5),
            ("/k/pods/1-2/volumes/kubernetes.io~csi/pv/mount", 6),
            ("/k/pods/1-2/volumes/x~spc/pv/mount", 0),
            ("/pods/1-2/volumes/x~spc/data", 5),
            ("/pods/1-2/volumes/k/pods/1-2/volumes/x~spc/data", 5),
            ("/k/plugins/kubernetes.io/flexvolume/x/spc/mounts/pv", 7),
            ("/a/k/plugins/kubernetes.io/x", 3),
            ("/k/plugins/kubernetes.io", 0),
            ("/srv/plugins/other/data", 0),
            ("/var/lib/kubelet/pods/1-2/volumes/x~spc", 0),
            ("/var/lib/kubelet/pods/1-2/other/x~spc/data", 0),
            ("/mnt/data", 0),
            ("/", 0),
        ] {
            assert_eq!(kubelet_tail(Path::new(target)), below, "{target}");
        }
    }

    #[test]
    fn directory_of_a_volume_names_its_driver() {
        for (target, name) in [
            (
                "/k/pods/1-2/volumes/spc~no-fsgroup/data",
                Some("no-fsgroup"),
            ),
            ("/k/pods/1-2/volumes/spc~spc/a~b", Some("spc")),
            ("/mnt/data", None),
            ("/", None),
        ] {
            assert_eq!(driver(Path::new(target)), name, "{target}");
        }
    }

    #[test]
    fn relative_and_dotted_targets_are_refused() {
        assert!(check(Path::new("/var/lib/kubelet/pods/1/volumes/a~b/c")).is_ok());
        for bad in ["", "mnt", "/mnt/../etc", "./mnt"] {
            assert!(check(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
