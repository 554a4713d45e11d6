//! What the container must have been given, besides capabilities and a way to the host's namespace.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where mount helpers and FUSE programs are looked for, in this order.
pub const PROGRAM_DIRS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The first of these programs that the container has; the first name goes before the first directory.
pub fn program<S: AsRef<Path>>(names: &[S]) -> Option<PathBuf> {
    let places = names.iter().flat_map(|name| {
        let dirs = PROGRAM_DIRS.iter().map(Path::new);
        dirs.map(move |dir| dir.join(name))
    });
    places.into_iter().find(|path| {
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
    })
}

/// Opens `/dev/fuse`, as every FUSE file system does first.
///
/// # Errors
/// It is not there, or the container may not use it.
pub fn fuse() -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|e| {
        Error::system("cannot open /dev/fuse").because(e).hint(
            "start the container with --device=/dev/fuse, or --privileged; on the host, try: modprobe fuse",
        )
    })
}

/// What to do about being denied what a capability allows: something else confines the container.
pub fn confinement() -> Option<String> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    if !is_whole(&read("/proc/self/uid_map")) {
        return Some("the container is in a user namespace of its own: run it as root of the host, with --userns=host".into());
    }
    let option = lifting(&read("/proc/self/attr/current"))?;
    Some(format!(
        "the host's security module forbids it: start the container with {option}"
    ))
}

/// Whether every user of this namespace is the same one of the host (user_namespaces(7)).
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// By the label of a process: `PROFILE (enforce)` is AppArmor's, `USER:ROLE:TYPE:LEVEL` SELinux's.
fn lifting(label: &str) -> Option<&'static str> {
    let label = label.trim_end_matches(['\0', '\n']);
    if label.ends_with(" (enforce)") {
        return Some("--security-opt apparmor=unconfined");
    }
    (label.split(':').nth(2)? == "container_t").then_some("--security-opt label=disable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_own_users_are_all_mapped_to_themselves() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0     100000      65536\n") && !is_whole(""));
    }

    #[test]
    fn a_confined_process_is_told_by_its_label() {
        assert_eq!(
            lifting("docker-default (enforce)\n"),
            Some("--security-opt apparmor=unconfined")
        );
        assert_eq!(
            lifting("system_u:system_r:container_t:s0:c1,c2\0"),
            Some("--security-opt label=disable")
        );
        for free in ["unconfined\n", "system_u:system_r:spc_t:s0\0", ""] {
            assert_eq!(lifting(free), None, "{free:?}");
        }
    }
}
