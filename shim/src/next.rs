//! The next definition of each hooked symbol: the C library's, or that of a library preloaded below this one.
//!
//! Where there is none (older libraries, musl), the system call itself.

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::sys::{self, Errno, Result};

/// A hooked symbol.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Symbol {
    Mount,
    Umount,
    Umount2,
    Syscall,
    Fsopen,
    Fsmount,
    MoveMount,
    OpenTree,
    MountSetattr,
}

const NAMES: [&core::ffi::CStr; 9] = [
    c"mount",
    c"umount",
    c"umount2",
    c"syscall",
    c"fsopen",
    c"fsmount",
    c"move_mount",
    c"open_tree",
    c"mount_setattr",
];
const UNKNOWN: usize = 0;
const ABSENT: usize = 1;
static FOUND: [AtomicUsize; 9] = [const { AtomicUsize::new(UNKNOWN) }; 9];

/// Looks up what every C library has. Not the rest: a failed `dlsym` allocates.
pub fn warm() {
    for symbol in [
        Symbol::Mount,
        Symbol::Umount,
        Symbol::Umount2,
        Symbol::Syscall,
    ] {
        find(symbol);
    }
}

fn find(symbol: Symbol) -> usize {
    let Some((slot, name)) = FOUND.get(symbol as usize).zip(NAMES.get(symbol as usize)) else {
        return ABSENT;
    };
    let found = slot.load(Relaxed);
    if found != UNKNOWN {
        return found;
    }
    let mut found = ABSENT;
    let dlsym = sys::dlsym_address();
    if dlsym != 0 {
        type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
        // SAFETY: the address of dlsym, which has this type.
        let dlsym = unsafe { core::mem::transmute::<usize, Dlsym>(dlsym) };
        // SAFETY: a pseudo handle and a string.
        let address = unsafe { dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        if !address.is_null() {
            found = address as usize;
        }
    }
    slot.store(found, Relaxed);
    found
}

fn check(result: c_long) -> Result<usize> {
    if result < 0 {
        Err(Errno(sys::errno()))
    } else {
        Ok(result as usize)
    }
}

fn check_raw(result: isize) -> Result<usize> {
    if result < 0 {
        Err(Errno(-result as c_int))
    } else {
        Ok(result as usize)
    }
}

/// Calls the next definition with this type, or the system call with the same arguments.
macro_rules! next {
    ($symbol:expr, $number:expr, fn($($name:ident: $type:ty),* $(,)?) -> $result:ty) => {
        match find($symbol) {
            // SAFETY: the arguments are the caller's own or made to the same rules.
            ABSENT => check_raw(unsafe { sys::raw($number, args![$($name),*]) }),
            address => {
                // SAFETY: the address of this symbol, which has this type.
                let next = unsafe {
                    core::mem::transmute::<usize, unsafe extern "C" fn($($type),*) -> $result>(address)
                };
                // SAFETY: as above.
                check(c_long::from(unsafe { next($($name),*) }))
            }
        }
    };
}

macro_rules! args {
    ($a:expr, $b:expr) => { [$a as usize, $b as usize, 0, 0, 0, 0] };
    ($a:expr, $b:expr, $c:expr) => { [$a as usize, $b as usize, $c as usize, 0, 0, 0] };
    ($a:expr, $b:expr, $c:expr, $d:expr, $e:expr) => {
        [$a as usize, $b as usize, $c as usize, $d as usize, $e as usize, 0]
    };
}

pub fn mount(
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: c_ulong,
    data: *const c_void,
) -> Result<usize> {
    next!(
        Symbol::Mount,
        libc::SYS_mount,
        fn(
            source: *const c_char,
            target: *const c_char,
            kind: *const c_char,
            flags: c_ulong,
            data: *const c_void,
        ) -> c_int
    )
}

pub fn umount(target: *const c_char) -> Result<usize> {
    match find(Symbol::Umount) {
        ABSENT => umount2(target, 0),
        address => {
            // SAFETY: the address of this symbol, which has this type.
            let next = unsafe {
                core::mem::transmute::<usize, unsafe extern "C" fn(*const c_char) -> c_int>(address)
            };
            // SAFETY: the argument is the caller's own.
            check(c_long::from(unsafe { next(target) }))
        }
    }
}

pub fn umount2(target: *const c_char, flags: c_int) -> Result<usize> {
    next!(
        Symbol::Umount2,
        libc::SYS_umount2,
        fn(target: *const c_char, flags: c_int) -> c_int
    )
}

pub fn fsopen(kind: *const c_char, flags: c_uint) -> Result<usize> {
    next!(
        Symbol::Fsopen,
        sys::SYS_FSOPEN,
        fn(kind: *const c_char, flags: c_uint) -> c_int
    )
}

pub fn fsmount(fd: c_int, flags: c_uint, attributes: c_uint) -> Result<usize> {
    next!(
        Symbol::Fsmount,
        sys::SYS_FSMOUNT,
        fn(fd: c_int, flags: c_uint, attributes: c_uint) -> c_int
    )
}

pub fn move_mount(
    from_fd: c_int,
    from: *const c_char,
    to_fd: c_int,
    to: *const c_char,
    flags: c_uint,
) -> Result<usize> {
    next!(
        Symbol::MoveMount,
        sys::SYS_MOVE_MOUNT,
        fn(
            from_fd: c_int,
            from: *const c_char,
            to_fd: c_int,
            to: *const c_char,
            flags: c_uint,
        ) -> c_int
    )
}

pub fn open_tree(dir: c_int, path: *const c_char, flags: c_uint) -> Result<usize> {
    next!(
        Symbol::OpenTree,
        sys::SYS_OPEN_TREE,
        fn(dir: c_int, path: *const c_char, flags: c_uint) -> c_int
    )
}

pub fn mount_setattr(
    dir: c_int,
    path: *const c_char,
    flags: c_uint,
    attributes: *const c_void,
    size: usize,
) -> Result<usize> {
    next!(
        Symbol::MountSetattr,
        sys::SYS_MOUNT_SETATTR,
        fn(
            dir: c_int,
            path: *const c_char,
            flags: c_uint,
            attributes: *const c_void,
            size: usize,
        ) -> c_int
    )
}

/// A system call that is none of ours, with the C library's result and errno. Never looks the symbol up: any
/// program may be here at any time, with the loader's lock held by somebody who waits for it.
pub fn syscall(number: c_long, a: [usize; 6]) -> c_long {
    let found = FOUND
        .get(Symbol::Syscall as usize)
        .map_or(ABSENT, |slot| slot.load(Relaxed));
    if found > ABSENT {
        type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;
        // SAFETY: the address of syscall, which has this type.
        let next = unsafe { core::mem::transmute::<usize, Syscall>(found) };
        let [a1, a2, a3, a4, a5, a6] = a;
        // SAFETY: the caller's own arguments.
        return unsafe { next(number, a1, a2, a3, a4, a5, a6) };
    }
    // SAFETY: the caller's own arguments.
    match check_raw(unsafe { sys::raw(number, a) }) {
        Ok(result) => result as c_long,
        Err(Errno(error)) => {
            sys::set_errno(error);
            -1
        }
    }
}
