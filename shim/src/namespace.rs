//! The host's mount namespace.

use core::ffi::CStr;

use spc_shim_config::Config;

use crate::outcome::Step;
use crate::sys::{self, CWD, Errno, Fd, Result};
use crate::text::{Text, thin};

/// Error if the only mount namespace found is the caller's own.
const ONLY_OWN: Errno = Errno::NOLINK;

/// Enters the first candidate that is not the caller's own mount namespace. The host's root
/// directory becomes root and current directory of this process.
///
/// Two namespaces are distinguished by the ids of their root mounts, because /proc may have no
/// entry for this process. The own root mount is read after entering the own namespace. This also
/// leaves a chroot of the caller, in which the candidates may be missing.
pub fn enter_host(config: &Config, path: &mut Text, step: &mut Step) -> Result<()> {
    *step = Step::Setns;
    let own = enter(sys::pidfd_of_self()?)?;
    let mut error = Errno::NOENT;
    for candidate in config.namespaces() {
        *step = Step::Namespace;
        path.set(candidate);
        match sys::open_read(path.as_thin()) {
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

/// Enters a mount namespace and returns the id of its root mount.
#[inline(never)]
fn enter(namespace: Fd) -> Result<u64> {
    sys::enter_mount_namespace(namespace)?;
    sys::mount_id(CWD, thin(c"/"))
}

/// Whether the next child would be PID 1 of a new PID namespace. The namespace would end with that
/// child, and the caller could never fork again.
pub fn child_would_be_init() -> bool {
    let exists = |path: &'static CStr| sys::statx_follow(thin(path), 0).is_ok();
    // This file appears when the namespace gets its first process.
    !exists(c"/proc/self/ns/pid_for_children") && exists(c"/proc/self/ns/mnt")
}
