//! The names by which mount(8) asks for us.

use std::collections::BTreeSet;

use crate::kinds;

/// Any kind of ours by `mount -t spc.KIND`, where its own name is somebody else's or means another thing on a host, as
/// `ext4` does.
const GENERIC: &str = "spc";

/// All of them: `mount.TYPE` and `umount.TYPE` for each type of the table that a program of the image makes, and for
/// each whose program is in the image, whose names are in `programs`.
pub fn all(programs: &[String]) -> BTreeSet<String> {
    let (asked, shown) = kinds::with_programs();
    let of_image = programs
        .iter()
        .filter_map(|name| name.strip_prefix("mount."))
        .filter(|name| !name.is_empty());
    let types: Vec<&str> = asked.iter().copied().chain(of_image).collect();
    let mounts = types.iter().chain([&GENERIC]);
    // umount(8) goes by the type that the mount table shows. `umount.fuse` would be asked to unmount every FUSE file
    // system of the host, also those that are none of ours.
    let umounts = types.iter().chain(&shown).filter(|name| **name != "fuse");
    let mounts = mounts.map(|name| format!("mount.{name}"));
    mounts
        .chain(umounts.map(|name| format!("umount.{name}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_with_a_program_has_its_names() {
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
    fn what_a_host_mounts_itself_is_left_to_it() {
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
