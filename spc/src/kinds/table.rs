//! The rows of the table. A FUSE program that deserves one has `..FUSE_PROGRAM`.

use crate::error::Result;
use crate::host::modules::{FUSE, Module};
use crate::kinds::model::{
    Kind, KindInput, MountMethod, Need, PLAIN, ShownSource, Source, mount_helper,
};
use crate::kinds::servers::{self, Servers};
use crate::kinds::{block, ceph, fuse, gluster, nfs, smb, source};

/// What a row need not say: a `mount.TYPE` that shows as its type, with nothing of its own.
pub(super) const ROW: Kind = Kind {
    name: "",
    method: helper_of_type,
    expected_types: &["{}"],
    source: Source::Any,
    diagnostics: PLAIN,
    fits: source::none,
    modules: &[],
    needs: &[],
    also: &[],
    shows_source: ShownSource::AsAsked,
    without_modules: None,
    servers: Servers::None,
    clientless: false,
};

const CEPH_FUSE: Kind = Kind {
    method: ceph::fuse,
    expected_types: &["fuse.ceph-fuse"],
    diagnostics: ceph::TELLING,
    modules: &[FUSE],
    needs: &[Need::program(&["ceph-fuse"], "ceph-fuse"), Need::Fuse],
    shows_source: ShownSource::As("ceph-fuse"),
    servers: Servers::All(servers::COLON),
    ..ROW
};

/// A FUSE program; `fuse.PROGRAM` shows where the program says nothing else.
const FUSE_PROGRAM: Kind = Kind {
    method: fuse::program,
    expected_types: &["fuse", "fuse.*", "fuseblk"],
    modules: &[FUSE],
    needs: &[Need::program(&["{}"], "{}"), Need::Fuse],
    ..ROW
};

/// A share of an SMB server.
const SMB: Kind = Kind {
    method: smb::helper,
    diagnostics: smb::TELLING,
    modules: &[Module::new("cifs")],
    needs: &[
        Need::program(&["mount.cifs"], "cifs-utils"),
        Need::HostNetwork,
    ],
    servers: Servers::Chosen(servers::SLASHES, servers::SMBD),
    ..ROW
};

pub(super) const TABLE: &[Kind] = &[
    Kind {
        name: "glusterfs",
        method: gluster::helper,
        expected_types: &["fuse.glusterfs"],
        diagnostics: gluster::TELLING,
        fits: source::glusterfs,
        modules: &[FUSE],
        needs: &[
            Need::program(&["mount.glusterfs"], "glusterfs-client"),
            Need::Fuse,
        ],
        also: &["gluster"],
        servers: Servers::Chosen(servers::VOLUME, servers::GLUSTERD),
        ..ROW
    },
    Kind {
        name: "nfs",
        method: nfs::helper,
        expected_types: &["nfs", "nfs4"],
        diagnostics: nfs::TELLING,
        fits: source::nfs,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::Chosen(servers::COLON, servers::NFSD),
        ..ROW
    },
    Kind {
        name: "nfs4",
        method: nfs::helper,
        diagnostics: nfs::TELLING,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::Chosen(servers::COLON, servers::NFSD),
        ..ROW
    },
    Kind {
        name: "ceph",
        method: ceph::kernel,
        diagnostics: ceph::TELLING,
        fits: source::ceph,
        // Names of hosts become addresses, and the cluster's id is filled in.
        shows_source: ShownSource::Unknown,
        without_modules: Some("fuse.ceph-fuse"),
        modules: &[Module::new("ceph")],
        needs: &[
            Need::program(&["mount.ceph"], "ceph-common"),
            Need::HostNetwork,
        ],
        also: &["cephfs"],
        servers: Servers::All(servers::COLON),
        ..ROW
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
        fits: source::cifs,
        also: &["smb"],
        ..SMB
    },
    Kind {
        name: "smb3",
        ..SMB
    },
    Kind {
        name: "fuse.sshfs",
        method: fuse::sshfs,
        diagnostics: fuse::SSHFS,
        fits: source::sshfs,
        needs: &[
            Need::program(&["sshfs"], "sshfs"),
            Need::program(&["ssh"], "openssh-client"),
            Need::Fuse,
        ],
        also: &["sshfs"],
        servers: Servers::Chosen(servers::LOGIN, servers::SSHD),
        ..FUSE_PROGRAM
    },
    Kind {
        name: "fuse.s3fs",
        method: fuse::s3fs,
        diagnostics: fuse::S3FS,
        also: &["s3fs"],
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
        ..ROW
    },
    Kind {
        name: "overlay",
        method: kernel,
        modules: &[Module::new("overlay")],
        ..ROW
    },
    Kind {
        name: "ext4",
        method: kernel,
        modules: &[Module::new("ext4")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    Kind {
        name: "xfs",
        method: kernel,
        modules: &[Module::new("xfs")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    // What is on an attached device, whichever of ours it is.
    Kind {
        name: "auto",
        method: kernel,
        expected_types: &["ext4", "xfs", "ext3", "ext2"],
        fits: block::fits,
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    Kind {
        name: "bind",
        method: bind,
        expected_types: &[],
        clientless: true,
        ..ROW
    },
    // Any other type is mounted by its `mount.TYPE`, if the image has one, as mount(8) does it.
    Kind {
        name: "*",
        expected_types: &["{}", "fuse.{}", "fuse"],
        ..ROW
    },
];

// Every maker has the table's signature.
#[allow(clippy::unnecessary_wraps)]
fn kernel(_: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Kernel)
}

#[allow(clippy::unnecessary_wraps)]
fn bind(asked: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Bind {
        recursive: asked.options.has("rbind"),
    })
}

#[allow(clippy::unnecessary_wraps)]
fn helper_of_type(asked: &KindInput<'_>) -> Result<MountMethod> {
    Ok(MountMethod::Helper(mount_helper(asked)))
}
