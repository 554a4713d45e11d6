//! NFS: `mount.nfs SERVER:/PATH TARGET`, nfs(5). Version 4 needs nothing beside it; version 3 with locking needs
//! rpcbind and rpc.statd in the network that the mount uses, which mount.nfs has started by its door `start-statd`.

use crate::error::{Error, Result};
use crate::host::modules::Module;
use crate::host::service::{Ready, Service};
use crate::kinds::model::{Asked, Maker, Need, PLAIN, Shared, Telling, mount_helper};

/// The kernel asks for the module of a version by itself, and on a minimal host in vain.
pub const MODULES: [Module; 3] = [
    Module::of("nfs"),
    Module::part("nfsv4"),
    Module::part("nfsv3"),
];

/// What it needs besides.
pub const NEEDS: [Need; 2] = [
    Need::program(&["mount.nfs"], "nfs-common"),
    Need::HostNetwork,
];

/// What version 3 with locking needs.
pub const NEEDS_OF_3: [Need; 5] = [
    Need::program(&["mount.nfs"], "nfs-common"),
    Need::program(&["rpcbind"], "rpcbind"),
    Need::program(&["rpc.statd"], "nfs-common"),
    Need::Capabilities(&["NET_BIND_SERVICE", "SETUID", "SETGID", "SETPCAP", "KILL"]),
    Need::HostNetwork,
];

/// `mount.nfs SOURCE TARGET -v -o OPTIONS`: it is verbose, for otherwise it tells nothing when its time is over.
pub fn helper(asked: &Asked<'_>) -> Result<Maker> {
    let place = match asked.source.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => asked.source.split_once(':'),
    };
    if !place.is_some_and(|(server, path)| !server.is_empty() && path.starts_with('/')) {
        return Err(Error::usage(format!("bad source: {}", asked.source))
            .hint("an NFS source is SERVER:/PATH, with the path as the server exports it"));
    }
    if let Some(flavors) = asked.options.value("sec")
        && flavors.split(':').any(|flavor| flavor.starts_with("krb5"))
    {
        return Err(
            Error::usage(format!("cannot mount with sec={flavors}: Kerberos is not set up in this container"))
                .because("no rpc.gssd runs in it, and it has no keytab")
                .hint("mount with sec=sys, if the server allows it; Kerberos needs rpc.gssd and a keytab where the mount is made"),
        );
    }
    if asked.options.has("bg") {
        return Err(Error::usage(
            "bad option bg: a mount is there when spc ends, or it has failed",
        )
        .hint("leave it out; --timeout says how long to try"));
    }
    let mut helper = mount_helper(asked);
    helper.args.push("-v".into());
    Ok(Maker::Helper(helper))
}

/// It says in which attempts it had no luck, and what came back each time.
pub const TELLING: Telling = Telling {
    line,
    hints: &[
        (
            "access denied by server",
            "look whether the server exports this path, and to this host's address: exportfs -v there",
        ),
        (
            "rpc.statd is not running",
            "locks of NFSv3 need rpcbind and rpc.statd: do what is said above, or mount with vers=4 or nolock",
        ),
        (
            "reason given by server: No such file or directory",
            "look what the server exports, and to whom: exportfs -v there; with NFSv4, paths begin at the export with fsid=0 if there is one",
        ),
        (
            "Failed to resolve server",
            "check the server's name; the container asks the servers of its own /etc/resolv.conf",
        ),
        (
            "Program not registered",
            "rpcbind on the server knows no NFS server of this version: check that it runs, and what it offers: rpcinfo -p SERVER",
        ),
        (
            "not supported",
            "leave out vers= and proto= to take what the server offers, or choose what it has: rpcinfo SERVER",
        ),
        (
            "incorrect mount option",
            "nfs(5) tells which options there are, and which go together",
        ),
        ("Connection refused", UNREACHABLE),
        ("No route to host", UNREACHABLE),
        ("timed out", UNREACHABLE),
        ("unreachable", UNREACHABLE),
    ],
    ..PLAIN
};

const UNREACHABLE: &str = "check that the server runs, and that this host can reach its port 2049; NFSv3 needs port 111 and that of mountd as well";

/// What is not about a failure is left out.
fn line(line: &str) -> Option<&str> {
    let text = line.split_once(": ").map_or(line, |(_, text)| text);
    let progress = ["timeout set for", "trying ", "prog "];
    (!progress.iter().any(|start| text.starts_with(start))).then_some(line)
}

/// What to do where they cannot be started.
const HINT: &str = "start the container with --cap-add=NET_BIND_SERVICE --cap-add=SETUID --cap-add=SETGID --cap-add=SETPCAP --cap-add=KILL, or mount with vers=4 or nolock";

/// The kernel's lock manager, which is at work until a mount that was taken away has lost its last user.
const LOCKD: (u32, u32) = (100_021, 4);

/// What NFSv3 with locking needs, in the order of their start.
pub const SERVICES: [Shared; 2] = [
    shared(RPCBIND, None),
    // Rpcbind stays as long as it does, and cannot be asked while it is itself about to be ended.
    shared(STATD, Some(LOCKD)),
];

const RPCBIND: Service = Service {
    name: "rpcbind",
    program: "rpcbind",
    // What it knew at its last end, the kernel's lock manager above all, it knows again: so a container may restart.
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
    // Whether the host has restarted is not for a daemon to tell that comes and goes with mounts.
    args: &["--foreground", "--no-notify", "--no-syslog"],
    ready: Ready::Rpc {
        program: 100_024,
        version: 1,
    },
    hint: HINT,
};

const fn shared(service: Service, client: Option<(u32, u32)>) -> Shared {
    Shared {
        service,
        kinds: &["nfs"],
        helpers: &["mount.nfs"],
        needed_by: locks_by_nlm,
        through: None,
        client,
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
    use crate::options::Options;

    fn made(source: &str, options: &str) -> Result<Maker> {
        let (options, secrets) = Options::and_secrets([options])?;
        helper(&Asked {
            fs_type: "nfs",
            source,
            options: &options,
            secrets: &secrets,
            log_name: "mnt-data",
            kernel_lacks: &|_| None,
        })
    }

    #[test]
    fn a_source_names_a_server_and_a_path() {
        for good in ["a:/", "192.0.2.1:/x/y", "[2001:db8::1]:/x", "a,b:/x"] {
            assert!(made(good, "vers=4.1").is_ok(), "{good}");
        }
        for bad in ["a", ":/x", "a:", "a:x", "/x", "2001:db8::1:/x", "[]:/x"] {
            assert!(made(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        for (options, reason) in [
            ("sec=krb5p", "rpc.gssd"),
            ("sec=sys:krb5", "Kerberos"),
            ("vers=3,bg", "bg"),
        ] {
            let error = made("a:/x", options).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.hint_text().is_some());
        }
        assert!(made("a:/x", "sec=sys").is_ok());
    }

    #[test]
    fn progress_is_not_told() {
        assert_eq!(line("mount.nfs4: timeout set for Tue Nov 24"), None);
        let told = "mount.nfs: mount(2): Connection refused";
        assert_eq!(line(told), Some(told));
    }

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
