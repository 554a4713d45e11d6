//! Rows of the table. A FUSE program with rules of its own takes its defaults from
//! [`FUSE_PROGRAM`].

use crate::error::{Error, Result};
use crate::host::modules::{FUSE, Module};
use crate::kinds::model::{
    DEFAULT_DIAGNOSTICS, Kind, KindInput, MountMethod, Need, ShownSource, Source, mount_helper,
};
use crate::kinds::servers::{self, Servers};
use crate::kinds::{block, ceph, fuse, gluster, nfs, smb, source};

/// Defaults of a row: a helper `mount.TYPE`, whose mount has the type TYPE in the mount table.
pub(super) const DEFAULT_ROW: Kind = Kind {
    name: "",
    method: helper_of_type,
    expected_types: &["{}"],
    source: Source::Any,
    diagnostics: DEFAULT_DIAGNOSTICS,
    source_fit: source::none,
    modules: &[],
    needs: &[],
    aliases: &[],
    shows_source: ShownSource::Requested,
    fallback: None,
    servers: Servers::None,
    clientless: false,
};

const CEPH_FUSE: Kind = Kind {
    method: ceph::fuse,
    expected_types: &["fuse.ceph-fuse"],
    diagnostics: ceph::DIAGNOSTICS,
    modules: &[FUSE],
    needs: &[Need::program(&["ceph-fuse"], "ceph-fuse"), Need::Fuse],
    shows_source: ShownSource::Always("ceph-fuse"),
    servers: Servers::All(servers::COLON),
    ..DEFAULT_ROW
};

/// Defaults of a FUSE program. Its mount shows as `fuse.SUBTYPE`, or as `fuse` or `fuseblk`.
const FUSE_PROGRAM: Kind = Kind {
    method: fuse::program,
    expected_types: &["fuse", "fuse.*", "fuseblk"],
    modules: &[FUSE],
    needs: &[Need::program(&["{}"], "{}"), Need::Fuse],
    ..DEFAULT_ROW
};

/// Common part of the rows for SMB.
const SMB: Kind = Kind {
    method: smb::helper,
    diagnostics: smb::DIAGNOSTICS,
    modules: &[Module::new("cifs")],
    needs: &[
        Need::program(&["mount.cifs"], "cifs-utils"),
        Need::HostNetwork,
    ],
    servers: Servers::OneOf(servers::SLASHES, servers::SMBD),
    ..DEFAULT_ROW
};

pub(super) const TABLE: &[Kind] = &[
    Kind {
        name: "glusterfs",
        method: gluster::helper,
        expected_types: &["fuse.glusterfs"],
        diagnostics: gluster::DIAGNOSTICS,
        source_fit: source::glusterfs,
        modules: &[FUSE],
        needs: &[
            Need::program(&["mount.glusterfs"], "glusterfs-client"),
            Need::Fuse,
        ],
        aliases: &["gluster"],
        servers: Servers::OneOf(servers::VOLUME, servers::GLUSTERD),
        ..DEFAULT_ROW
    },
    Kind {
        name: "nfs",
        method: nfs::helper,
        expected_types: &["nfs", "nfs4"],
        diagnostics: nfs::DIAGNOSTICS,
        source_fit: source::nfs,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::OneOf(servers::COLON, servers::NFSD),
        ..DEFAULT_ROW
    },
    Kind {
        name: "nfs4",
        method: nfs::helper,
        diagnostics: nfs::DIAGNOSTICS,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::OneOf(servers::COLON, servers::NFSD),
        ..DEFAULT_ROW
    },
    Kind {
        name: "ceph",
        method: ceph::kernel,
        diagnostics: ceph::DIAGNOSTICS,
        source_fit: source::ceph,
        // mount.ceph resolves host names, and fills in the id of the cluster.
        shows_source: ShownSource::Unknown,
        fallback: Some("fuse.ceph-fuse"),
        modules: &[Module::new("ceph")],
        needs: &[
            Need::program(&["mount.ceph"], "ceph-common"),
            Need::HostNetwork,
        ],
        aliases: &["cephfs"],
        servers: Servers::All(servers::COLON),
        ..DEFAULT_ROW
    },
    Kind {
        name: "fuse.ceph-fuse",
        ..CEPH_FUSE
    },
    Kind {
        name: "fuse.ceph",
        ..CEPH_FUSE
    },
    Kind {
        name: "ceph-fuse",
        ..CEPH_FUSE
    },
    Kind {
        name: "cifs",
        source_fit: source::cifs,
        aliases: &["smb"],
        ..SMB
    },
    Kind {
        name: "smb3",
        ..SMB
    },
    Kind {
        name: "fuse.sshfs",
        method: fuse::sshfs,
        diagnostics: fuse::SSHFS_DIAGNOSTICS,
        source_fit: source::sshfs,
        needs: &[
            Need::program(&["sshfs"], "sshfs"),
            Need::program(&["ssh"], "openssh-client"),
            Need::Fuse,
        ],
        aliases: &["sshfs"],
        servers: Servers::OneOf(servers::LOGIN, servers::SSHD),
        ..FUSE_PROGRAM
    },
    Kind {
        name: "fuse.s3fs",
        method: fuse::s3fs,
        diagnostics: fuse::S3FS_DIAGNOSTICS,
        aliases: &["s3fs"],
        ..FUSE_PROGRAM
    },
    Kind {
        name: "fuse.*",
        ..FUSE_PROGRAM
    },
    Kind {
        name: "tmpfs",
        method: kernel,
        clientless: true,
        ..DEFAULT_ROW
    },
    Kind {
        name: "overlay",
        method: kernel,
        modules: &[Module::new("overlay")],
        ..DEFAULT_ROW
    },
    Kind {
        name: "ext4",
        method: kernel,
        modules: &[Module::new("ext4")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..DEFAULT_ROW
    },
    Kind {
        name: "xfs",
        method: kernel,
        modules: &[Module::new("xfs")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..DEFAULT_ROW
    },
    // Takes the type that is found on the attached device.
    Kind {
        name: "auto",
        method: kernel,
        expected_types: &["ext4", "xfs", "ext3", "ext2"],
        source_fit: block::fits,
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..DEFAULT_ROW
    },
    Kind {
        name: "bind",
        method: bind,
        expected_types: &[],
        clientless: true,
        ..DEFAULT_ROW
    },
    // Runs `mount.TYPE` for any other type, as mount(8) does.
    Kind {
        name: "*",
        expected_types: &["{}", "fuse.{}", "fuse"],
        ..DEFAULT_ROW
    },
];

#[allow(
    clippy::unnecessary_wraps,
    reason = "all mount methods have one signature"
)]
fn kernel(_: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Kernel)
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "all mount methods have one signature"
)]
fn bind(input: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Bind {
        recursive: input.options.has("rbind"),
    })
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "all mount methods have one signature"
)]
fn helper_of_type(input: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Helper(mount_helper(input)))
}

/// Finds the first row whose name is the type, or whose name ends with `*` and is a prefix of it.
pub(super) fn row(fs_type: &str) -> Result<&'static Kind> {
    let fits = |kind: &&Kind| match kind.name.strip_suffix('*') {
        Some(prefix) => fs_type
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty()),
        None => kind.name == fs_type,
    };
    let kind = TABLE.iter().find(fits);
    // The last row takes every name.
    kind.ok_or_else(|| Error::usage("no type is given"))
}
