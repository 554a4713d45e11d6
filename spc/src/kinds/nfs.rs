//! NFS: `mount.nfs SERVER:/PATH TARGET`, nfs(5).
//!
//! Version 4 needs no service. Version 3 with locks needs rpcbind and rpc.statd in the network
//! namespace of the mount. mount.nfs runs `start-statd` to start them, which is the program spc.

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::host::service::{Ready, Service};
use crate::kinds::model::{
    DEFAULT_DIAGNOSTICS, Diagnostics, KindInput, MountMethod, Need, SharedService, mount_helper,
};

/// Modules of the client. The kernel requests the module of a version itself, but a minimal host
/// has no modprobe(8) for that.
pub const MODULES: [Module; 3] = [
    Module::new("nfs"),
    Module::auxiliary("nfsv4"),
    Module::auxiliary("nfsv3"),
];

/// Requirements besides the modules.
pub const NEEDS: [Need; 2] = [
    Need::program(&["mount.nfs"], "nfs-common"),
    Need::HostNetwork,
];

/// Requirements of version 3 with locks.
pub const NEEDS_OF_3: [Need; 5] = [
    Need::program(&["mount.nfs"], "nfs-common"),
    Need::program(&["rpcbind"], "rpcbind"),
    Need::program(&["rpc.statd"], "nfs-common"),
    Need::Capabilities(&["NET_BIND_SERVICE", "SETUID", "SETGID", "SETPCAP", "KILL"]),
    Need::HostNetwork,
];

/// Builds `mount.nfs SOURCE TARGET -v -o OPTIONS`. Without `-v`, a mount.nfs that is killed at the
/// limit has printed nothing.
///
/// # Errors
/// Fails if the source is not `SERVER:PATH`, and for Kerberos and `bg`, which cannot work.
pub fn helper(input: &KindInput<'_>) -> Result<MountMethod> {
    let parts = match input.source.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => input.source.split_once(':'),
    };
    // mount.nfs passes a path without a slash to the server. A colon in it is a part of an IPv6
    // address without brackets.
    let is_path = |path: &str| path.starts_with('/') || !path.contains(':');
    let is_server = |server: &str| !server.is_empty() && !server.contains('/');
    if !parts.is_some_and(|(server, path)| is_server(server) && is_path(path)) {
        return Err(Error::usage(format!("bad source: {}", input.source))
            .hint("an NFS source is SERVER:/PATH, with the path as the server exports it, and an IPv6 address in brackets"));
    }
    // The kernel joins the lists of several such options.
    let is_kerberos = |flavors: &&str| flavors.split(':').any(|one| one.starts_with("krb5"));
    if let Some(flavors) = input.options.values("sec").find(is_kerberos) {
        return Err(
            Error::usage(format!("cannot mount with sec={flavors}: Kerberos is not set up in this container"))
                .because("no rpc.gssd runs in it, and it has no keytab")
                .hint("mount with sec=sys, if the server allows it; Kerberos needs rpc.gssd and a keytab where the mount is made"),
        );
    }
    // mount.nfs ignores a value of it.
    if input.options.has_key("bg") {
        return Err(
            Error::usage("bad option bg: spc does not mount in the background")
                .hint("leave it out; --timeout sets how long to try"),
        );
    }
    let mut helper = mount_helper(input);
    helper.args.push("-v".into());
    helper.starts_services = true;
    Ok(MountMethod::Helper(helper))
}

/// Diagnostics of mount.nfs, which prints each attempt with its result.
pub const DIAGNOSTICS: Diagnostics = Diagnostics {
    line,
    hints: &[
        (
            "access denied by server",
            "check whether the server exports this path, and to this host's address: exportfs -v there",
        ),
        (
            "rpc.statd is not running",
            "locks of NFSv3 need rpcbind and rpc.statd: follow the message above, or mount with vers=4 or nolock",
        ),
        (
            "reason given by server: No such file or directory",
            "check what the server exports, and to whom: exportfs -v there; with NFSv4, paths begin at the export with fsid=0 if there is one",
        ),
        (
            "Failed to resolve server",
            "check the server's name; it is resolved with the container's /etc/resolv.conf",
        ),
        (
            "Program not registered",
            "rpcbind on the server knows no NFS server of this version: check that it runs, and which versions it offers: rpcinfo -p SERVER",
        ),
        (
            "not supported",
            "leave out vers= and proto= to use what the server offers, or choose from its list: rpcinfo SERVER",
        ),
        (
            "incorrect mount option",
            "nfs(5) lists the options, and which of them exclude each other",
        ),
        ("Connection refused", UNREACHABLE),
        ("No route to host", UNREACHABLE),
        ("timed out", UNREACHABLE),
        ("unreachable", UNREACHABLE),
    ],
    ..DEFAULT_DIAGNOSTICS
};

const UNREACHABLE: &str = "check that the server runs, and that this host can reach its port 2049; NFSv3 needs port 111 and that of mountd as well";

/// Drops progress messages.
fn line(line: &str) -> Option<&str> {
    let text = line.split_once(": ").map_or(line, |(_, text)| text);
    let progress = ["timeout set for", "trying ", "prog "];
    (!progress.iter().any(|start| text.starts_with(start))).then_some(line)
}

/// Hint where rpcbind or rpc.statd cannot be started.
const HINT: &str = "start the container with --cap-add=NET_BIND_SERVICE --cap-add=SETUID --cap-add=SETGID --cap-add=SETPCAP --cap-add=KILL, or mount with vers=4 or nolock";

/// Sun RPC program and version of lockd, the kernel's lock manager (NLM version 4). It stays
/// registered until the last user of a detached mount is gone.
const LOCKD: (u32, u32) = (100_021, 4);

/// Services of version 3 with locks, in the order of their start.
pub const SERVICES: [SharedService; 2] = [
    // No RPC client: rpcbind runs as long as rpc.statd, and does not answer queries about lockd
    // while it is being stopped.
    shared(RPCBIND, None),
    shared(STATD, Some(LOCKD)),
];

const RPCBIND: Service = Service {
    name: "rpcbind",
    program: "rpcbind",
    // `-w` restores the registrations of the last run, so that a restarted container finds the
    // kernel's lockd.
    args: &["-f", "-w"],
    ready: Ready::Rpc {
        program: 100_000,
        version: 2,
    },
    hint: HINT,
};

const STATD: Service = Service {
    name: "rpc.statd",
    program: "rpc.statd",
    // `--no-notify`: the start of rpc.statd with a mount does not mean that the host has restarted.
    args: &["--foreground", "--no-notify", "--no-syslog"],
    ready: Ready::Rpc {
        program: 100_024,
        version: 1,
    },
    hint: HINT,
};

const fn shared(service: Service, rpc_client: Option<(u32, u32)>) -> SharedService {
    SharedService {
        service,
        kinds: &["nfs"],
        helpers: &["mount.nfs"],
        needed_by: locks_by_nlm,
        session_prefix: None,
        rpc_client,
    }
}

/// Returns whether a mount locks files on the server with NLM, as version 3 does unless its locks
/// are local.
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
    use crate::options::Options;

    fn method(source: &str, options: &str) -> Result<MountMethod> {
        let (options, secrets) = Options::parse_with_secrets([options])?;
        helper(&KindInput {
            fs_type: "nfs",
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        })
    }

    #[test]
    fn a_source_without_server_or_path_is_refused() {
        for good in [
            "a:/",
            "192.0.2.1:/x/y",
            "[2001:db8::1]:/x",
            "a,b:/x",
            "a:",
            "a:tag",
            "[2001:db8::1]:tag",
        ] {
            assert!(method(good, "vers=4.1").is_ok(), "{good}");
        }
        for bad in ["a", ":/x", "/x", "/x:y", "2001:db8::1:/x", "[]:/x"] {
            assert!(method(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn kerberos_and_bg_are_refused_with_the_reason() {
        for (options, reason) in [
            ("sec=krb5p", "rpc.gssd"),
            ("sec=sys:krb5", "Kerberos"),
            ("vers=3,bg", "bg"),
            ("bg=1", "bg"),
            ("sec=krb5,sec=sys", "Kerberos"),
        ] {
            let error = method("a:/x", options).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.hint_text().is_some());
        }
        assert!(method("a:/x", "sec=sys").is_ok());
    }

    #[test]
    fn progress_messages_are_dropped_and_errors_kept() {
        assert_eq!(line("mount.nfs4: timeout set for Tue Nov 24"), None);
        let error = "mount.nfs: mount(2): Connection refused";
        assert_eq!(line(error), Some(error));
    }

    #[test]
    fn services_are_needed_only_by_version_3_with_locks_on_the_server() {
        let v3 =
            "rw,vers=3,rsize=1048576,hard,proto=tcp,mountvers=3,local_lock=none,addr=192.0.2.1";
        assert!(locks_by_nlm("nfs", v3));
        assert!(!locks_by_nlm("nfs4", "rw,vers=4.2,local_lock=none"));
        assert!(!locks_by_nlm("nfs", "rw,vers=3,nolock,local_lock=all"));
        assert!(!locks_by_nlm("fuse.glusterfs", v3));
    }
}
