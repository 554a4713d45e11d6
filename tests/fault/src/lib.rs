//! Injects faults into the mount calls of libc. The library is preloaded after the shim, so a call
//! that the shim redirects to the host meets the fault there.
//!
//! `SPC_FAULT` lists the faults, separated by blanks:
//! - `CALL=ERRNO`: fails with this errno, a number, without making the call;
//! - `CALL=delay:MS`: makes the call after this number of milliseconds;
//! - `CALL=kill`: kills the calling process before the call;
//! - `CALL=die`: kills the calling process after the call, before it sees the result;
//! - `CALL=lie`: reports success without making the call.
//!
//! CALL is `mount`, `umount`, `umount2`, `fsopen`, `fsconfig`, `fsmount`, `move_mount`, `open_tree`
//! or `mount_setattr`.

use std::time::Duration;

use libc::{c_char, c_int, c_uint, c_ulong, c_void, size_t};
use redhook::{hook, real};

enum Fault {
    Fail(c_int),
    Delay(Duration),
    Kill,
    Die,
    Lie,
}

fn fault(call: &str) -> Option<Fault> {
    let all = std::env::var("SPC_FAULT").ok()?;
    let fault = all
        .split_whitespace()
        .find_map(|one| one.strip_prefix(call)?.strip_prefix('='))?;
    match (fault, fault.strip_prefix("delay:")) {
        ("kill", _) => Some(Fault::Kill),
        ("die", _) => Some(Fault::Die),
        ("lie", _) => Some(Fault::Lie),
        (_, Some(ms)) => Some(Fault::Delay(Duration::from_millis(ms.parse().ok()?))),
        (errno, None) => Some(Fault::Fail(errno.parse().ok()?)),
    }
}

/// Returns the result of a call with this fault.
fn with(fault: Option<Fault>, make: impl Fn() -> c_int) -> c_int {
    match fault {
        Some(Fault::Fail(errno)) => {
            // SAFETY: the address of this thread's errno is always valid.
            unsafe { *libc::__errno_location() = errno };
            return -1;
        }
        Some(Fault::Lie) => return 0,
        Some(Fault::Delay(time)) => std::thread::sleep(time),
        Some(Fault::Kill) => kill_self(),
        Some(Fault::Die) => {
            make();
            kill_self();
        }
        None => {}
    }
    make()
}

fn kill_self() {
    // SAFETY: the call takes no pointers. The signal goes to the calling process, also if that is a
    // child that shares its parent's memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Defines a hook: applies the fault if there is one, or else calls the symbol's next definition.
macro_rules! faulty {
    ($call:ident, $hook:ident, ($($arg:ident: $type:ty),*)) => {
        hook! {
            unsafe fn $call($($arg: $type),*) -> c_int => $hook {
                // SAFETY: the caller's arguments are passed on unchanged.
                with(fault(stringify!($call)), || unsafe { real!($call)($($arg),*) })
            }
        }
    };
}

#[allow(missing_docs, clippy::missing_safety_doc)]
mod hooks {
    use super::{c_char, c_int, c_uint, c_ulong, c_void, fault, hook, real, size_t, with};

    faulty!(mount, faulty_mount, (source: *const c_char, target: *const c_char, fs: *const c_char, flags: c_ulong, data: *const c_void));
    faulty!(umount, faulty_umount, (target: *const c_char));
    faulty!(umount2, faulty_umount2, (target: *const c_char, flags: c_int));
    faulty!(fsopen, faulty_fsopen, (fs: *const c_char, flags: c_uint));
    faulty!(fsconfig, faulty_fsconfig, (context: c_int, command: c_uint, key: *const c_char, value: *const c_void, aux: c_int));
    faulty!(fsmount, faulty_fsmount, (context: c_int, flags: c_uint, attributes: c_uint));
    faulty!(open_tree, faulty_open_tree, (dir: c_int, path: *const c_char, flags: c_uint));
    faulty!(mount_setattr, faulty_mount_setattr, (dir: c_int, path: *const c_char, flags: c_uint, how: *const c_void, size: size_t));
    faulty!(move_mount, faulty_move_mount, (from: c_int, from_path: *const c_char, to: c_int, to_path: *const c_char, flags: c_uint));
}
