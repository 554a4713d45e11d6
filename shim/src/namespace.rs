//! The host's mount namespace, and whether it is another one than the caller's.

use core::ffi::CStr;

use spc_shim_config::Config;

use crate::outcome::Step;
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::text::{Text, name};

/// No namespace but the caller's own was found.
const ONLY_OWN: Errno = Errno::NOLINK;

/// Makes the host's root this process's root and current directory: enters the first candidate that is not the
/// caller's own namespace.
///
/// Two namespaces are told apart by the mount that is their root, because /proc may not know this process. The
/// own root is found by entering the own namespace, which also leaves a chroot of the caller, where the
/// candidates need not be.
pub fn enter_host(config: &Config, path: &mut Text, step: &mut Step) -> Result<()> {
    *step = Step::Setns;
    let own = enter(sys::pidfd_of_self()?)?;
    let mut error = Errno::NOENT;
    for candidate in config.namespaces() {
        *step = Step::Namespace;
        path.set(candidate);
        match sys::open_read(path.as_name()) {
            Ok(namespace) => {
                *step = Step::Setns;
                if enter(namespace)? != own {
                    return Ok(());
                }
                error = ONLY_OWN;
            }
            Err(Errno::NOENT) => {}
            Err(other) if error != ONLY_OWN => error = other,
            Err(_) => {}
        }
    }
    *step = Step::Namespace;
    Err(error)
}

/// Enters a mount namespace. Answers with the id of the mount that is its root.
#[inline(never)]
fn enter(namespace: Fd) -> Result<u64> {
    sys::enter_mount_namespace(namespace)?;
    sys::mount_id(CWD, name(c"/"))
}

/// Whether the next child would be the first process of a new PID namespace: it would end with that child, and
/// the caller could never fork again.
pub fn child_would_be_init() -> bool {
    let exists = |path: &'static CStr| sys::statx_follow(name(path), 0).is_ok();
    // Not there as long as nobody is in it.
    !exists(c"/proc/self/ns/pid_for_children") && exists(c"/proc/self/ns/pid")
}
