//! The kernel's NFS server, in a virtual machine.

use anyhow::Result;
use std::sync::OnceLock;
use std::time::Instant;

use crate::outer::{Lab, shared};
use crate::roots::Root;
use crate::vm::{Vm, VmOptions};

/// A server. It exports `/data` and, read-only, `/ro` to the lab's network, and `/private` to an
/// unused address.
#[derive(Debug)]
pub struct Knfsd<'lab> {
    vm: Vm<'lab>,
}

impl Lab {
    /// Starts a server. Most tests want [`knfsd`].
    pub fn knfsd(&self) -> Result<Knfsd<'_>> {
        let vm = self.vm(VmOptions {
            root: Root::Storage,
            ..VmOptions::default()
        })?;
        let started = Instant::now();
        vm.sh(EXPORT)?.ok()?;
        let server = Knfsd { vm };
        server.start()?;
        server.vm.say_cost("the kernel's NFS server", started);
        Ok(server)
    }
}

impl<'lab> Knfsd<'lab> {
    /// Directory of the exports on the server's machine.
    pub const EXPORTS: &'static str = "/srv/nfs";

    /// Returns the server's machine.
    pub fn vm(&self) -> &Vm<'lab> {
        &self.vm
    }

    /// Starts the server with all NFS versions.
    pub fn start(&self) -> Result<()> {
        self.vm.sh(START)?.ok().map(drop)
    }

    /// Stops the server. Connections are refused afterwards.
    pub fn stop(&self) -> Result<()> {
        self.vm.sh(STOP)?.ok().map(drop)
    }
}

/// Exports a tmpfs, because the machine's root (an overlay) cannot be exported. A tmpfs has no
/// stable device number for file handles, so each export has an `fsid`.
const EXPORT: &str = "set -e
mkdir -p /srv/nfs
mount -t tmpfs export /srv/nfs
mkdir -p /srv/nfs/data/sub/deeper /srv/nfs/ro /srv/nfs/private
echo served >/srv/nfs/data/file
echo below >/srv/nfs/data/sub/file
echo read >/srv/nfs/ro/file
printf '[exports]\\nrootdir = /srv/nfs\\n' >>/etc/nfs.conf
cat >/etc/exports <<END
/data    192.0.2.0/24(rw,no_root_squash,no_subtree_check,fsid=1)
/ro      192.0.2.0/24(ro,no_root_squash,no_subtree_check,fsid=2)
/private 192.0.2.9(rw,no_subtree_check,fsid=3)
END
modprobe lockd nlm_grace_period=1
modprobe nfsd
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind
rpc.statd --no-notify
";

/// The server ends its grace period at once. By default, clients wait 90 s for it.
const START: &str = "set -e
exportfs -ra
rpc.mountd
rpc.nfsd --grace-time 10 --lease-time 10 4
echo Y >/proc/fs/nfsd/v4_end_grace
";

const STOP: &str = "rpc.nfsd 0 && kill $(pidof rpc.mountd)";

/// Returns the server that all tests of this process share, or `None` where there is no lab.
pub fn knfsd() -> Option<&'static Knfsd<'static>> {
    static SERVER: OnceLock<Knfsd<'static>> = OnceLock::new();
    let lab = shared()?;
    let start = || lab.knfsd().unwrap_or_else(|error| panic!("{error:?}"));
    Some(SERVER.get_or_init(start))
}
