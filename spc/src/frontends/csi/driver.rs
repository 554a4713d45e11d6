//! CSI drivers of one process. Kubernetes decides per driver how a pod's group and SELinux label
//! are applied to the files of a volume, so kinds that differ in this have drivers of their own.

use serde::{Deserialize, Serialize};

/// Driver, by the kinds that it mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Shares whose files have owners of their own: NFS, CephFS, GlusterFS.
    Share,
    /// File systems that show one owner for all files: SMB, sshfs, s3fs, other FUSE programs.
    Mapped,
    /// Disks that one node uses at a time: iSCSI, RBD.
    Disk,
}

/// FUSE file systems whose files have owners of their own.
const FUSE_WITH_OWNERS: [&str; 3] = ["fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs"];

impl Driver {
    /// All drivers.
    pub const ALL: [Self; 3] = [Self::Share, Self::Mapped, Self::Disk];

    /// Returns the name in the CSIDriver object and in volumes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Share => "share.spc.csi",
            Self::Mapped => "mapped.spc.csi",
            Self::Disk => "disk.spc.csi",
        }
    }

    /// Returns the driver for volumes of this type and source.
    pub fn for_volume(fs_type: &str, source: &str) -> Self {
        match fs_type {
            _ if source.starts_with("iscsi:") || source.starts_with("rbd:") => Self::Disk,
            "bind" => Self::Share,
            _ if source.starts_with("/dev/") => Self::Disk,
            "cifs" | "smb3" => Self::Mapped,
            fuse if fuse.starts_with("fuse.") && !FUSE_WITH_OWNERS.contains(&fuse) => Self::Mapped,
            _ => Self::Share,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_driver_that_treats_owners_as_they_do() {
        for (fs_type, source, driver) in [
            ("nfs", "h:/x", Driver::Share),
            ("nfs4", "h:/dev/x", Driver::Share),
            ("ceph", "h:/", Driver::Share),
            ("ceph-fuse", "h:/", Driver::Share),
            ("fuse.ceph", "h:/", Driver::Share),
            ("glusterfs", "h:/v", Driver::Share),
            ("tmpfs", "scratch", Driver::Share),
            ("bind", "/dev/shm", Driver::Share),
            ("cifs", "//h/s", Driver::Mapped),
            ("smb3", "//h/s", Driver::Mapped),
            ("fuse.sshfs", "u@h:", Driver::Mapped),
            ("fuse.s3fs", "bucket", Driver::Mapped),
            ("fuse.other", "/srv", Driver::Mapped),
            ("ext4", "iscsi:192.0.2.1/iqn.x:y/0", Driver::Disk),
            ("auto", "rbd:a/b", Driver::Disk),
            ("xfs", "/dev/sdb", Driver::Disk),
        ] {
            assert_eq!(
                Driver::for_volume(fs_type, source),
                driver,
                "{fs_type} {source}"
            );
        }
    }
}
