//! NFS-Ganesha, an NFS server in user space, on a host of the lab.

use anyhow::{Context, Result};
use std::sync::OnceLock;
use std::time::Instant;

use crate::gluster::{Cluster, gluster};
use crate::host::{Host, HostOptions};
use crate::outer::{Lab, shared};
use crate::roots::Root;

/// A server with two exports: `/vfs`, the directory [`Ganesha::VFS`] of its host, and `/gluster`, a
/// GlusterFS volume.
#[derive(Debug)]
pub struct Ganesha<'lab> {
    host: Host<'lab>,
}

impl Lab {
    /// Starts a server that exports this volume of a cluster.
    pub fn ganesha(&self, cluster: &Cluster<'_>, volume: &str) -> Result<Ganesha<'_>> {
        let started = Instant::now();
        let host = self.host(HostOptions {
            root: Root::Storage,
            ..HostOptions::default()
        })?;
        let node = cluster.nodes().first().context("no servers")?;
        let exports = format!(
            "{SETTINGS}\
             EXPORT {{ Export_Id = 1; Path = {vfs}; Pseudo = /vfs; {ALLOWED} FSAL {{ Name = VFS; }} }}\n\
             EXPORT {{ Export_Id = 2; Path = /{volume}; Pseudo = /gluster; {ALLOWED}\n\
             FSAL {{ Name = GLUSTER; hostname = {node}; volume = {volume}; }} }}\n",
            vfs = Ganesha::VFS,
            node = node.host().address()
        );
        host.write("/etc/ganesha/ganesha.conf", exports.as_bytes())?;
        host.sh(START)?.ok()?;
        host.say_cost("NFS-Ganesha", started);
        Ok(Ganesha { host })
    }
}

impl<'lab> Ganesha<'lab> {
    /// Directory of the export `/vfs`.
    pub const VFS: &'static str = "/srv/vfs";

    /// Returns the server's host.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }
}

/// By default, the server wants a capability that the machine may lack, and clients wait 90 s after
/// its start. UDP is off, because version 6.5 fails for good after its first datagram.
const SETTINGS: &str = "
NFS_CORE_PARAM { Protocols = 3, 4; Enable_UDP = false; mount_path_pseudo = true; allow_set_io_flusher_fail = true; }
NFSv4 { Graceless = true; Lease_Lifetime = 10; }
";

const ALLOWED: &str = "Access_Type = RW; Squash = No_Root_Squash; SecType = sys;";

/// The VFS back end refuses a tmpfs.
const START: &str = "set -e
ln -sf ../proc/self/mounts /etc/mtab
truncate -s 64M /tmp/disk && mkfs.ext4 -q /tmp/disk && mkdir -p /srv && mount -o loop /tmp/disk /srv && mkdir /srv/vfs
rpcbind && rpc.statd --no-notify
ganesha.nfsd -L /var/log/ganesha.log -p /run/ganesha.pid
for i in $(seq 300); do grep -q 'NFS SERVER INITIALIZED' /var/log/ganesha.log && break; sleep 0.1; done
rpcinfo -T tcp 127.0.0.1 nfs 4 >/dev/null || { tail -n 40 /var/log/ganesha.log >&2; exit 1; }
[ \"$(showmount -e --no-headers 127.0.0.1 | wc -l)\" = 2 ] || { tail -n 40 /var/log/ganesha.log >&2; exit 1; }
";

/// Returns the server that all tests of this process share, with the volume `vol`, or `None` where
/// there is no lab.
pub fn ganesha() -> Option<&'static Ganesha<'static>> {
    static GANESHA: OnceLock<Ganesha<'static>> = OnceLock::new();
    let (lab, cluster) = (shared()?, gluster()?);
    let start = || {
        lab.ganesha(cluster, "vol")
            .unwrap_or_else(|error| panic!("{error:?}"))
    };
    Some(GANESHA.get_or_init(start))
}
