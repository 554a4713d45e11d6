//! Injects faults into the mount calls of libc. Preloaded after the shim it lies below it: what the
//! shim carries to the host meets the fault there.
//!
//! `SPC_FAULT` says what happens, one fault or several separated by blanks:
//! - `CALL=ERRNO`: the call fails with this errno, a number, and is not made;
//! - `CALL=delay:MS`: the call is made after so many milliseconds;
//! - `CALL=lie`: the call is not made, and success is reported.
//!
//! CALL is `mount`, `umount`, `umount2` or `move_mount`.

use std::time::Duration;

use libc::{c_char, c_int, c_uint, c_ulong, c_void};
use redhook::{hook, real};

enum Fault {
    Fail(c_int),
    Delay(Duration),
    Lie,
}

fn fault(call: &str) -> Option<Fault> {
    let all = std::env::var("SPC_FAULT").ok()?;
    let what = all
        .split_whitespace()
        .find_map(|one| one.strip_prefix(call)?.strip_prefix('='))?;
    match (what, what.strip_prefix("delay:")) {
        ("lie", _) => Some(Fault::Lie),
        (_, Some(ms)) => Some(Fault::Delay(Duration::from_millis(ms.parse().ok()?))),
        (errno, None) => Some(Fault::Fail(errno.parse().ok()?)),
    }
}

/// The result to give instead of making the call, if it is not to be made.
fn instead(call: &str) -> Option<c_int> {
    match fault(call)? {
        Fault::Fail(errno) => {
            // SAFETY: the address of this thread's errno is always valid.
            unsafe { *libc::__errno_location() = errno };
            Some(-1)
        }
        Fault::Delay(time) => {
            std::thread::sleep(time);
            None
        }
        Fault::Lie => Some(0),
    }
}

/// One hook: the fault if there is one, else the next definition of the same symbol.
macro_rules! faulty {
    ($call:ident, $hook:ident, ($($arg:ident: $type:ty),*)) => {
        hook! {
            unsafe fn $call($($arg: $type),*) -> c_int => $hook {
                match instead(stringify!($call)) {
                    Some(result) => result,
                    // SAFETY: the caller's own arguments go on unchanged.
                    None => unsafe { real!($call)($($arg),*) },
                }
            }
        }
    };
}

#[allow(missing_docs, clippy::missing_safety_doc)]
mod hooks {
    use super::{c_char, c_int, c_uint, c_ulong, c_void, hook, instead, real};

    faulty!(mount, faulty_mount, (source: *const c_char, target: *const c_char, fs: *const c_char, flags: c_ulong, data: *const c_void));
    faulty!(umount, faulty_umount, (target: *const c_char));
    faulty!(umount2, faulty_umount2, (target: *const c_char, flags: c_int));
    faulty!(move_mount, faulty_move_mount, (from: c_int, from_path: *const c_char, to: c_int, to_path: *const c_char, flags: c_uint));
}
