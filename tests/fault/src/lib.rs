//! Injects faults into the mount calls of libc. Preloaded after the shim it lies below it: what the
//! shim carries to the host meets the fault there.
//!
//! `SPC_FAULT` says what happens, one fault or several separated by blanks:
//! - `CALL=ERRNO`: the call fails with this errno, a number, and is not made;
//! - `CALL=delay:MS`: the call is made after so many milliseconds;
//! - `CALL=kill`: the process that makes it is killed before it is made;
//! - `CALL=die`: the process that makes it is killed when it is made, and learns nothing of it;
//! - `CALL=lie`: the call is not made, and success is reported.
//!
//! CALL is `mount`, `umount`, `umount2`, `fsopen`, `fsconfig`, `fsmount`, `move_mount`, `open_tree` or
//! `mount_setattr`.

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
    let what = all
        .split_whitespace()
        .find_map(|one| one.strip_prefix(call)?.strip_prefix('='))?;
    match (what, what.strip_prefix("delay:")) {
        ("kill", _) => Some(Fault::Kill),
        ("die", _) => Some(Fault::Die),
        ("lie", _) => Some(Fault::Lie),
        (_, Some(ms)) => Some(Fault::Delay(Duration::from_millis(ms.parse().ok()?))),
        (errno, None) => Some(Fault::Fail(errno.parse().ok()?)),
    }
}

/// The result of a call with this fault.
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
    // SAFETY: a signal to the process that we are. A child that shares its parent's memory is one of its own.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// One hook: the fault if there is one, else the next definition of the same symbol.
macro_rules! faulty {
    ($call:ident, $hook:ident, ($($arg:ident: $type:ty),*)) => {
        hook! {
            unsafe fn $call($($arg: $type),*) -> c_int => $hook {
                // SAFETY: the caller's own arguments go on unchanged.
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
