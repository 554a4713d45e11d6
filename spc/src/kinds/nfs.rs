//! NFS: `mount.nfs SERVER:/PATH TARGET`, nfs(5). Version 4 needs nothing beside it; version 3 with locking needs
//! rpcbind and rpc.statd in the network that the mount uses, which mount.nfs has started by its door `start-statd`.

use super::Shared;
use crate::host::service::{Ready, Service};

/// What to do where they cannot be started.
const HINT: &str = "start the container with --cap-add=NET_BIND_SERVICE --cap-add=SETUID --cap-add=SETGID --cap-add=KILL, or mount with vers=4 or nolock";

/// What NFSv3 with locking needs, in the order of their start.
pub const SERVICES: [Shared; 2] = [
    shared(Service {
        name: "rpcbind",
        program: "rpcbind",
        args: &["-f"],
        ready: Ready::Rpc {
            program: 100_000,
            version: 2,
        },
        hint: HINT,
    }),
    shared(Service {
        name: "rpc.statd",
        program: "rpc.statd",
        // Whether the host has restarted is not for a daemon to tell that comes and goes with mounts.
        args: &["--foreground", "--no-notify"],
        ready: Ready::Rpc {
            program: 100_024,
            version: 1,
        },
        hint: HINT,
    }),
];

const fn shared(service: Service) -> Shared {
    Shared {
        service,
        kinds: &["nfs"],
        helpers: &["mount.nfs"],
        needed_by: locks_by_nlm,
    }
}

/// Whether a mount keeps its locks on the server by a protocol beside NFS, as versions before 4 do.
fn locks_by_nlm(fs_type: &str, options: &str) -> bool {
    let local = |option| matches!(option, "nolock" | "local_lock=all");
    fs_type == "nfs"
        && !options
            .split(',')
            .any(|o| local(o) || o.starts_with("vers=4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_3_with_locks_on_the_server_needs_services() {
        let v3 =
            "rw,vers=3,rsize=1048576,hard,proto=tcp,mountvers=3,local_lock=none,addr=192.0.2.1";
        assert!(locks_by_nlm("nfs", v3));
        assert!(!locks_by_nlm("nfs4", "rw,vers=4.2,local_lock=none"));
        assert!(!locks_by_nlm("nfs", "rw,vers=3,nolock,local_lock=all"));
        assert!(!locks_by_nlm("fuse.glusterfs", v3));
    }
}
