//! Names under which mount(8) and umount(8) call spc: `mount.TYPE` and `umount.TYPE`.

use std::collections::BTreeSet;

use crate::kinds;

/// Type whose helper `mount.spc` mounts any kind, as `mount -t spc.KIND`.
///
/// Users need the type for kinds whose own helper belongs to the host, and for types that mount(8)
/// would otherwise mount itself, such as `ext4`.
const GENERIC: &str = "spc";

/// Returns all names to create.
///
/// There is a `mount.TYPE` and a `umount.TYPE` for each type of the table of kinds that a program
/// mounts, and for each `mount.TYPE` in `programs`, the file names of the image's programs.
pub fn all(programs: &[String]) -> BTreeSet<String> {
    let (mount_types, shown_types) = kinds::types_with_programs();
    let of_image = programs
        .iter()
        .filter_map(|name| name.strip_prefix("mount."))
        .filter(|name| !name.is_empty());
    let types: Vec<&str> = mount_types.iter().copied().chain(of_image).collect();
    let mounts = types.iter().chain([&GENERIC]);
    // umount(8) looks for a helper by the type in the mount table, so `umount.fuse` would be called
    // for every FUSE file system of the host, also for those that spc did not mount.
    let umounts = types
        .iter()
        .chain(&shown_types)
        .filter(|name| **name != "fuse");
    let mounts = mounts.map(|name| format!("mount.{name}"));
    mounts
        .chain(umounts.map(|name| format!("umount.{name}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_with_a_program_has_mount_and_umount_names() {
        let names = all(&["mount.lowntfs".into(), "sshfs".into(), "mount.".into()]);
        for name in [
            "mount.glusterfs",
            "umount.glusterfs",
            "umount.fuse.glusterfs",
            "mount.nfs",
            "mount.nfs4",
            "umount.nfs4",
            "mount.ceph",
            "mount.fuse.ceph-fuse",
            "umount.fuse.ceph-fuse",
            "mount.cifs",
            "mount.smb3",
            "mount.fuse",
            "mount.fuse.sshfs",
            "mount.lowntfs",
            "mount.spc",
        ] {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
    }

    #[test]
    fn types_that_the_host_mounts_itself_have_no_names() {
        let names = all(&[]);
        for name in [
            "mount.ext4",
            "mount.xfs",
            "mount.tmpfs",
            "mount.overlay",
            "mount.auto",
            "mount.bind",
            "mount.*",
            "mount.fuse.*",
            "umount.fuse",
            "umount.ext4",
            "umount.spc",
            "mount.fuse.glusterfs",
        ] {
            assert!(!names.contains(name), "{name}");
        }
    }
}
