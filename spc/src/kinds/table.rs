//! The rows of the table. A FUSE program that deserves one has `..FUSE_PROGRAM`.

use crate::error::Result;
use crate::host::modules::{FUSE, Module};
use crate::kinds::model::{Asked, Kind, Maker, Need, PLAIN, Shown, Source, mount_helper};
use crate::kinds::servers::{self, Servers};
use crate::kinds::{block, ceph, fuse, gluster, nfs, smb, source};

/// What a row need not say: a `mount.TYPE` that shows as its type, with nothing of its own.
pub(super) const ROW: Kind = Kind {
    name: "",
    maker: helper_of_type,
    shows: &["{}"],
    source: Source::Any,
    telling: PLAIN,
    fits: source::none,
    modules: &[],
    needs: &[],
    also: &[],
    shows_source: Shown::AsAsked,
    without_modules: None,
    servers: Servers::None,
    clientless: false,
};

const CEPH_FUSE: Kind = Kind {
    maker: ceph::fuse,
    shows: &["fuse.ceph-fuse"],
    telling: ceph::TELLING,
    modules: &[FUSE],
    needs: &[Need::program(&["ceph-fuse"], "ceph-fuse"), Need::Fuse],
    shows_source: Shown::As("ceph-fuse"),
    servers: Servers::All(servers::COLON),
    ..ROW
};

/// A FUSE program; `fuse.PROGRAM` shows where the program says nothing else.
const FUSE_PROGRAM: Kind = Kind {
    maker: fuse::program,
    shows: &["fuse", "fuse.*", "fuseblk"],
    modules: &[FUSE],
    needs: &[Need::program(&["{}"], "{}"), Need::Fuse],
    ..ROW
};

/// A share of an SMB server.
const SMB: Kind = Kind {
    maker: smb::helper,
    telling: smb::TELLING,
    modules: &[Module::of("cifs")],
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
        maker: gluster::helper,
        shows: &["fuse.glusterfs"],
        telling: gluster::TELLING,
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
        maker: nfs::helper,
        shows: &["nfs", "nfs4"],
        telling: nfs::TELLING,
        fits: source::nfs,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::Chosen(servers::COLON, servers::NFSD),
        ..ROW
    },
    Kind {
        name: "nfs4",
        maker: nfs::helper,
        telling: nfs::TELLING,
        modules: &nfs::MODULES,
        needs: &nfs::NEEDS,
        servers: Servers::Chosen(servers::COLON, servers::NFSD),
        ..ROW
    },
    Kind {
        name: "ceph",
        maker: ceph::kernel,
        telling: ceph::TELLING,
        fits: source::ceph,
        // Names of hosts become addresses, and the cluster's id is filled in.
        shows_source: Shown::Unknown,
        without_modules: Some("fuse.ceph-fuse"),
        modules: &[Module::of("ceph")],
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
        maker: fuse::sshfs,
        telling: fuse::SSHFS,
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
        maker: fuse::s3fs,
        telling: fuse::S3FS,
        also: &["s3fs"],
        ..FUSE_PROGRAM
    },
    Kind {
        name: "fuse.*",
        ..FUSE_PROGRAM
    },
    Kind {
        name: "tmpfs",
        maker: kernel,
        clientless: true,
        ..ROW
    },
    Kind {
        name: "overlay",
        maker: kernel,
        modules: &[Module::of("overlay")],
        ..ROW
    },
    Kind {
        name: "ext4",
        maker: kernel,
        modules: &[Module::of("ext4")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    Kind {
        name: "xfs",
        maker: kernel,
        modules: &[Module::of("xfs")],
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    // What is on an attached device, whichever of ours it is.
    Kind {
        name: "auto",
        maker: kernel,
        shows: &["ext4", "xfs", "ext3", "ext2"],
        fits: block::fits,
        source: Source::BlockDevice,
        servers: Servers::All(servers::PORTALS),
        ..ROW
    },
    Kind {
        name: "bind",
        maker: bind,
        shows: &[],
        clientless: true,
        ..ROW
    },
    // Any other type is mounted by its `mount.TYPE`, if the image has one, as mount(8) does it.
    Kind {
        name: "*",
        shows: &["{}", "fuse.{}", "fuse"],
        ..ROW
    },
];

// Every maker has the table's signature.
#[allow(clippy::unnecessary_wraps)]
fn kernel(_: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Kernel)
}

#[allow(clippy::unnecessary_wraps)]
fn bind(asked: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Bind {
        recursive: asked.options.has("rbind"),
    })
}

#[allow(clippy::unnecessary_wraps)]
fn helper_of_type(asked: &Asked<'_>) -> Result<Maker> {
    Ok(Maker::Helper(mount_helper(asked)))
}
