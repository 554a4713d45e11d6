//! Requirements of each kind on the container and the host, for `spc doctor --kind`. Data only:
//! `doctor/requirements.rs` makes the checks.

use crate::error::{Error, Result};
use crate::host::modules::{FUSE, Module};
use crate::kinds::model::{Kind, Need};
use crate::kinds::nfs;
use crate::kinds::table::{DEFAULT_ROW, TABLE};

/// Requirements of one kind.
#[derive(Debug)]
pub struct Needs {
    /// Name of the kind as it was requested.
    pub kind: String,
    /// Replacement for `{}` in the names of programs and packages, such as `NAME` for
    /// `fuse.NAME`.
    pub program: String,
    /// Kernel modules.
    pub modules: &'static [Module],
    /// Other requirements.
    pub parts: &'static [Need],
}

/// Names that `--kind` accepts besides the types: a version of NFS, the family of FUSE, and the two
/// protocols that attach block devices.
const NAMES_BESIDES_TYPES: [Kind; 4] = [
    Kind {
        name: "nfs3",
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS_OF_3,
        ..DEFAULT_ROW
    },
    Kind {
        name: "fuse",
        modules: &[FUSE],
        needs: &[Need::Fuse],
        ..DEFAULT_ROW
    },
    Kind {
        name: "rbd",
        modules: &super::block::rbd::MODULES,
        needs: &[
            Need::program(&["rbd"], "ceph-common"),
            Need::HostNetwork,
            Need::WritableSys,
            Need::HostDevices,
        ],
        ..DEFAULT_ROW
    },
    Kind {
        name: "iscsi",
        modules: &super::block::iscsi::MODULES,
        needs: &[
            Need::program(&["iscsiadm"], "open-iscsi"),
            Need::program(&["iscsid"], "open-iscsi"),
            Need::HostNetwork,
            Need::WritableSys,
            Need::HostDevices,
        ],
        ..DEFAULT_ROW
    },
];

/// Requirements of a kind, by its name in the table, by an alias, or by `fuse.PROGRAM`.
///
/// # Errors
/// Fails if no kind has this name.
pub fn needs(kind: &str) -> Result<Needs> {
    let fits = |row: &&Kind| match row.name.strip_suffix('*') {
        Some(prefix) => {
            !prefix.is_empty() && kind.strip_prefix(prefix).is_some_and(|r| !r.is_empty())
        }
        None => row.name == kind || row.aliases.contains(&kind),
    };
    let rows = || TABLE.iter().chain(&NAMES_BESIDES_TYPES);
    let Some(row) = rows().find(fits) else {
        let known: Vec<_> = rows()
            .filter(|row| row.name != "*")
            .map(|row| row.name)
            .collect();
        return Err(Error::usage(format!("unknown kind: {kind}"))
            .hint(format!("known: {}", known.join(", "))));
    };
    let prefix = row.name.strip_suffix('*').unwrap_or_default();
    Ok(Needs {
        kind: kind.into(),
        program: kind.strip_prefix(prefix).unwrap_or(kind).into(),
        modules: row.modules,
        parts: row.needs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_each_of_its_names() {
        for (kind, program) in [
            ("fuse.bindfs", "bindfs"),
            ("smb", "smb"),
            ("fuse", "fuse"),
            ("iscsi", "iscsi"),
        ] {
            assert_eq!(needs(kind).unwrap().program, program);
        }
        assert_eq!(needs("smb").unwrap().parts, needs("cifs").unwrap().parts);
        assert_eq!(
            needs("sshfs").unwrap().parts,
            needs("fuse.sshfs").unwrap().parts
        );
        for kind in ["nosuch", "fuse.", "*", ""] {
            let error = needs(kind).unwrap_err().to_string();
            assert!(
                error.contains("known: glusterfs, nfs, nfs4, ceph"),
                "{error}"
            );
        }
    }

    #[test]
    fn each_kind_needs_its_modules_and_programs() {
        let disk = "network /sys /dev";
        let fuse = "{} /dev/fuse";
        for (kind, modules, parts) in [
            ("gluster", "fuse", "glusterfs-client /dev/fuse"),
            ("nfs", "nfs nfsv4 nfsv3", "nfs-common network"),
            ("nfs4", "nfs nfsv4 nfsv3", "nfs-common network"),
            (
                "nfs3",
                "nfs nfsv4 nfsv3",
                "nfs-common rpcbind nfs-common capabilities network",
            ),
            ("cephfs", "ceph", "ceph-common network"),
            ("ceph-fuse", "fuse", "ceph-fuse /dev/fuse"),
            ("smb", "cifs", "cifs-utils network"),
            ("smb3", "cifs", "cifs-utils network"),
            ("sshfs", "fuse", "sshfs openssh-client /dev/fuse"),
            ("s3fs", "fuse", fuse),
            ("fuse.x", "fuse", fuse),
            ("fuse", "fuse", "/dev/fuse"),
            ("rbd", "rbd", &format!("ceph-common {disk}")),
            (
                "iscsi",
                "iscsi_tcp sd_mod dm_multipath",
                &format!("open-iscsi open-iscsi {disk}"),
            ),
            ("overlay", "overlay", ""),
            ("ext4", "ext4", ""),
            ("xfs", "xfs", ""),
            ("tmpfs", "", ""),
        ] {
            let found = needs(kind).unwrap();
            let names: Vec<_> = found.modules.iter().map(|module| module.name).collect();
            assert_eq!(names.join(" "), modules, "{kind}");
            let words = found.parts.iter().map(|part| match part {
                Need::Program { package, .. } => package,
                Need::Fuse => "/dev/fuse",
                Need::Capabilities(_) => "capabilities",
                Need::HostNetwork => "network",
                Need::WritableSys => "/sys",
                Need::HostDevices => "/dev",
            });
            assert_eq!(words.collect::<Vec<_>>().join(" "), parts, "{kind}");
        }
    }

    #[test]
    fn each_fuse_type_requires_the_fuse_device() {
        for row in TABLE {
            let fuse = row
                .expected_types
                .iter()
                .all(|shown| shown.starts_with("fuse"))
                && !row.expected_types.is_empty();
            let required = row.needs.contains(&Need::Fuse);
            assert!(!fuse || required, "{}", row.name);
            assert!(row.name != "*" || row.needs.is_empty());
        }
    }
}
