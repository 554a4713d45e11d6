//! Requirements of the container besides capabilities and access to the host's namespace: programs,
//! `/dev/fuse`, and no confinement by a security module.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::host::runs_in::{self, RunsIn};

/// Directories that are searched for mount helpers and FUSE programs, in this order.
pub const PROGRAM_DIRS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Returns the path of the first of these programs that the container has. All directories are
/// searched for the first name, then for the next.
pub fn find_program<S: AsRef<Path>>(names: &[S]) -> Option<PathBuf> {
    let paths = names.iter().flat_map(|name| {
        let dirs = PROGRAM_DIRS.iter().map(Path::new);
        dirs.map(move |dir| dir.join(name))
    });
    paths.into_iter().find(|path| {
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
    })
}

/// Path of the device that every FUSE daemon opens first.
const FUSE: &str = "/dev/fuse";

/// Checks that a FUSE daemon that this process starts can use `/dev/fuse`.
///
/// In a client root file system the daemon starts in a cgroup on the host, whose devices are not
/// restricted. This process itself may be in the cgroup of a container that may not open the
/// device, so only its presence counts.
///
/// # Errors
/// Fails if the device is missing, or the container may not use it.
pub fn check_fuse() -> Result<()> {
    match runs_in::current() {
        RunsIn::ClientRoot(_) => fs::symlink_metadata(FUSE).map(drop).map_err(|e| {
            Error::system(format!("the host has no {FUSE}"))
                .because(e)
                .hint("on the host, try: modprobe fuse")
        }),
        RunsIn::Container | RunsIn::Host => open_fuse(),
    }
}

/// Checks that this process can open `/dev/fuse`.
///
/// # Errors
/// Fails if the device is missing, or the container may not use it.
pub fn open_fuse() -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(FUSE);
    opened.map(drop).map_err(|e| {
        // The rules for devices refuse with EPERM.
        let is_denied = e.raw_os_error() == Some(Errno::ACCESS.raw_os_error());
        let denied = is_denied.then(hint).flatten();
        Error::system(format!("cannot open {FUSE}")).because(e).hint(denied.unwrap_or_else(|| {
            "start the container with --device=/dev/fuse, or --privileged; on the host, try: modprobe fuse".into()
        }))
    })
}

/// Returns a hint for an action that was denied although the container has the capability for it.
/// The cause is then a user namespace or a security module.
pub fn hint() -> Option<String> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    if !maps_all_users(&read("/proc/self/uid_map")) {
        return Some("the container is in a user namespace of its own: run it as root of the host, with --userns=host".into());
    }
    security_hint(&read("/proc/self/attr/current"))
}

/// Returns whether a uid map maps every user to itself, as in the host's namespace
/// (user_namespaces(7)).
fn maps_all_users(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Hint for root that may not read files of spc on the host.
pub const LABEL_HINT: &str = "SELinux forbids it: on the host, install the policy module /usr/share/spc/selinux/spc.cil of the image (semodule -i), then run: restorecon -R /var/lib/spc; the files get the type spc_lib_t";

/// Returns whether this process sees a host that enforces SELinux, on which a file of spc has
/// another type than the policy module of the image gives it.
pub fn lacks_label(file: &Path) -> bool {
    let enforced = fs::read("/sys/fs/selinux/enforce").is_ok_and(|value| value == b"1");
    let mut label = [0; 256];
    let label = match rustix::fs::lgetxattr(file, "security.selinux", &mut label) {
        Ok(length) => String::from_utf8_lossy(&label[..length]),
        Err(_) => return false,
    };
    enforced && label.split(':').nth(2) != Some("spc_lib_t")
}

/// AppArmor profile for the container, and its file in the image.
const APPARMOR: (&str, &str) = ("spc", "/usr/share/spc/apparmor/spc");

/// Returns a hint for a process with this label, if a security module confines it. AppArmor labels
/// read `PROFILE (enforce)`, SELinux labels `USER:ROLE:TYPE:LEVEL`.
fn security_hint(label: &str) -> Option<String> {
    let label = label.trim_end_matches(['\0', '\n']);
    let (fitting, file) = APPARMOR;
    if let Some(profile) = label.strip_suffix(" (enforce)") {
        let forbids = format!("the AppArmor profile {profile} of the container forbids it");
        return Some(match profile == fitting {
            true => format!("{forbids}: load the profile of this image on the host: {file}"),
            false => format!(
                "{forbids}: load {file} of the image on the host, and start the container with --security-opt apparmor={fitting}; or start it with --security-opt apparmor=unconfined"
            ),
        });
    }
    let kind = label.split(':').nth(2)?;
    kind.starts_with("container_").then(|| {
        format!("the SELinux type {kind} of the container forbids it: start the container with --security-opt label=disable")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_uid_map_maps_all_users() {
        assert!(maps_all_users("         0          0 4294967295\n"));
        assert!(!maps_all_users("         0     100000      65536\n") && !maps_all_users(""));
    }

    #[test]
    fn label_of_a_confined_process_selects_the_hint() {
        let hint = |label: &str| security_hint(label).unwrap_or_default();
        let other = hint("docker-default (enforce)\n");
        assert!(other.contains("docker-default") && other.contains("apparmor=spc;"));
        let own = hint("spc (enforce)\n");
        assert!(own.contains(APPARMOR.1) && !own.contains("--security-opt"));
        for kind in ["container_t", "container_init_t"] {
            let hint = hint(&format!("system_u:system_r:{kind}:s0:c1,c2\0"));
            assert!(hint.contains(kind) && hint.contains("label=disable"));
        }
        for free in [
            "unconfined\n",
            "spc (complain)\n",
            "system_u:system_r:spc_t:s0\0",
            "",
        ] {
            assert_eq!(security_hint(free), None, "{free:?}");
        }
    }
}
