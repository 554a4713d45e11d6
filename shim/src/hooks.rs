//! The exported symbols. `exports.txt` lists them; each collects its arguments for the dispatcher.

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

use crate::call::Call;
use crate::dispatch::{dispatch, fsmount as do_fsmount, fsopen as do_fsopen};
use crate::next::{self, Via};
use crate::sys;

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn mount(
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: c_ulong,
    data: *const c_void,
) -> c_int {
    dispatch(
        Via::Own,
        &Call::Mount {
            source,
            target,
            kind,
            flags,
            data,
        },
    ) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn umount(target: *const c_char) -> c_int {
    dispatch(
        Via::Own,
        &Call::Unmount {
            target,
            flags: None,
        },
    ) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn umount2(target: *const c_char, flags: c_int) -> c_int {
    dispatch(
        Via::Own,
        &Call::Unmount {
            target,
            flags: Some(flags),
        },
    ) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn fsopen(kind: *const c_char, flags: c_uint) -> c_int {
    do_fsopen(Via::Own, kind, flags) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn fsmount(context: c_int, flags: c_uint, attributes: c_uint) -> c_int {
    do_fsmount(Via::Own, context, flags, attributes) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn move_mount(
    from_fd: c_int,
    from: *const c_char,
    to_fd: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    dispatch(
        Via::Own,
        &Call::MoveMount {
            from_fd,
            from,
            to_fd,
            to,
            flags,
        },
    ) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn open_tree(dir: c_int, path: *const c_char, flags: c_uint) -> c_int {
    dispatch(Via::Own, &Call::OpenTree { dir, path, flags }) as c_int
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn mount_setattr(
    dir: c_int,
    path: *const c_char,
    flags: c_uint,
    attributes: *const c_void,
    size: usize,
) -> c_int {
    dispatch(
        Via::Own,
        &Call::MountSetattr {
            dir,
            path,
            flags,
            attributes,
            size,
        },
    ) as c_int
}

/// Variadic in C; on x86_64 and aarch64 seven fixed arguments arrive in the same places.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let result = match number {
        libc::SYS_mount => dispatch(
            Via::Syscall,
            &Call::Mount {
                source: a as *const c_char,
                target: b as *const c_char,
                kind: c as *const c_char,
                flags: d as c_ulong,
                data: e as *const c_void,
            },
        ),
        libc::SYS_umount2 => dispatch(
            Via::Syscall,
            &Call::Unmount {
                target: a as *const c_char,
                flags: Some(b as c_int),
            },
        ),
        sys::SYS_FSOPEN => do_fsopen(Via::Syscall, a as *const c_char, b as c_uint),
        sys::SYS_FSMOUNT => do_fsmount(Via::Syscall, a as c_int, b as c_uint, c as c_uint),
        sys::SYS_MOVE_MOUNT => dispatch(
            Via::Syscall,
            &Call::MoveMount {
                from_fd: a as c_int,
                from: b as *const c_char,
                to_fd: c as c_int,
                to: d as *const c_char,
                flags: e as c_uint,
            },
        ),
        sys::SYS_OPEN_TREE => dispatch(
            Via::Syscall,
            &Call::OpenTree {
                dir: a as c_int,
                path: b as *const c_char,
                flags: c as c_uint,
            },
        ),
        sys::SYS_MOUNT_SETATTR => dispatch(
            Via::Syscall,
            &Call::MountSetattr {
                dir: a as c_int,
                path: b as *const c_char,
                flags: c as c_uint,
                attributes: d as *const c_void,
                size: e,
            },
        ),
        _ => return next::syscall(number, [a, b, c, d, e, f]),
    };
    result as c_long
}
