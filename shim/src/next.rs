//! The next definition of each hooked symbol: the C library's, or that of a library preloaded below this one.
//!
//! Where there is none (older libraries, musl), the system call itself.

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::sys::{self, Errno, Result};

/// A hooked symbol.
#[derive(Clone, Copy)]
enum Symbol {
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

impl Symbol {
    #[inline(never)]
    fn name(self) -> *const c_char {
        match self {
            Self::Mount => c"mount",
            Self::Umount => c"umount",
            Self::Umount2 => c"umount2",
            Self::Syscall => c"syscall",
            Self::Fsopen => c"fsopen",
            Self::Fsmount => c"fsmount",
            Self::MoveMount => c"move_mount",
            Self::OpenTree => c"open_tree",
            Self::MountSetattr => c"mount_setattr",
        }
        .as_ptr()
    }

    fn number(self) -> c_long {
        match self {
            Self::Mount => libc::SYS_mount,
            Self::Umount | Self::Umount2 => libc::SYS_umount2,
            Self::Fsopen => sys::SYS_FSOPEN,
            Self::Fsmount => sys::SYS_FSMOUNT,
            Self::MoveMount => sys::SYS_MOVE_MOUNT,
            Self::OpenTree => sys::SYS_OPEN_TREE,
            Self::MountSetattr => sys::SYS_MOUNT_SETATTR,
            // None, so that the kernel refuses it: `syscall` has its own fallback.
            Self::Syscall => -1,
        }
    }
}

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

fn found(symbol: Symbol) -> usize {
    FOUND
        .get(symbol as usize)
        .map_or(ABSENT, |slot| slot.load(Relaxed))
}

#[inline(never)]
fn find(symbol: Symbol) -> usize {
    let mut address = found(symbol);
    if address != UNKNOWN {
        return address;
    }
    address = ABSENT;
    let dlsym = sys::dlsym_address();
    if dlsym != 0 {
        type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
        // SAFETY: the address of dlsym, which has this type.
        let dlsym = unsafe { core::mem::transmute::<usize, Dlsym>(dlsym) };
        // SAFETY: a pseudo handle and a string.
        address = unsafe { dlsym(libc::RTLD_NEXT, symbol.name()) } as usize;
        address = address.max(ABSENT);
    }
    if let Some(slot) = FOUND.get(symbol as usize) {
        slot.store(address, Relaxed);
    }
    address
}

/// Which symbol the caller used. The same one is called next: a library below this one may make `mount` of
/// `syscall`, and would come back here for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Own,
    Syscall,
}

/// Calls the next definition, or the system call. All arguments are integers and pointers, each in a register
/// of its own on x86_64 and aarch64, so one type serves all symbols.
#[inline(never)]
fn call(via: Via, symbol: Symbol, [a, b, c, d, e]: [usize; 5]) -> Result<usize> {
    type Next = unsafe extern "C" fn(usize, usize, usize, usize, usize) -> c_int;
    let number = symbol.number();
    let result = match via {
        Via::Syscall => syscall(number, [a, b, c, d, e, 0]),
        Via::Own => match find(symbol) {
            // SAFETY: the arguments are the caller's own, or made to the same rules.
            ABSENT => return sys::check(unsafe { sys::raw5(number, a, b, c, d, e) }),
            address => {
                // SAFETY: the address of this symbol, which can be called like that.
                let next = unsafe { core::mem::transmute::<usize, Next>(address) };
                // SAFETY: as above.
                c_long::from(unsafe { next(a, b, c, d, e) })
            }
        },
    };
    match result {
        ..0 => Err(Errno::new(sys::errno() as usize)),
        result => Ok(result as usize),
    }
}

pub fn mount(
    via: Via,
    source: *const c_char,
    target: *const c_char,
    kind: *const c_char,
    flags: c_ulong,
    data: *const c_void,
) -> Result<usize> {
    let (source, target, kind) = (source as usize, target as usize, kind as usize);
    call(
        via,
        Symbol::Mount,
        [source, target, kind, flags as usize, data as usize],
    )
}

pub fn umount(via: Via, target: *const c_char) -> Result<usize> {
    // The second argument is for the system call, where there is no such function.
    call(via, Symbol::Umount, [target as usize, 0, 0, 0, 0])
}

pub fn umount2(via: Via, target: *const c_char, flags: c_int) -> Result<usize> {
    call(
        via,
        Symbol::Umount2,
        [target as usize, flags as usize, 0, 0, 0],
    )
}

pub fn fsopen(via: Via, kind: *const c_char, flags: c_uint) -> Result<usize> {
    call(
        via,
        Symbol::Fsopen,
        [kind as usize, flags as usize, 0, 0, 0],
    )
}

pub fn fsmount(via: Via, fd: c_int, flags: c_uint, attributes: c_uint) -> Result<usize> {
    call(
        via,
        Symbol::Fsmount,
        [fd as usize, flags as usize, attributes as usize, 0, 0],
    )
}

pub fn move_mount(
    via: Via,
    from_fd: c_int,
    from: *const c_char,
    to_fd: c_int,
    to: *const c_char,
    flags: c_uint,
) -> Result<usize> {
    let (from, to, flags) = (from as usize, to as usize, flags as usize);
    call(
        via,
        Symbol::MoveMount,
        [from_fd as usize, from, to_fd as usize, to, flags],
    )
}

pub fn open_tree(via: Via, dir: c_int, path: *const c_char, flags: c_uint) -> Result<usize> {
    call(
        via,
        Symbol::OpenTree,
        [dir as usize, path as usize, flags as usize, 0, 0],
    )
}

pub fn mount_setattr(
    via: Via,
    dir: c_int,
    path: *const c_char,
    flags: c_uint,
    attributes: *const c_void,
    size: usize,
) -> Result<usize> {
    let (path, flags, attributes) = (path as usize, flags as usize, attributes as usize);
    call(
        via,
        Symbol::MountSetattr,
        [dir as usize, path, flags, attributes, size],
    )
}

/// A system call that is none of ours, with the C library's result and errno. Never looks the symbol up: any
/// program may be here at any time, with the loader's lock held by somebody who waits for it.
pub fn syscall(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    let address = found(Symbol::Syscall);
    if address > ABSENT {
        type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;
        // SAFETY: the address of syscall, which has this type.
        let next = unsafe { core::mem::transmute::<usize, Syscall>(address) };
        // SAFETY: the caller's own arguments.
        return unsafe { next(number, a, b, c, d, e, f) };
    }
    // SAFETY: the caller's own arguments.
    match unsafe { sys::raw6(number, a, b, c, d, e, f) } {
        error @ -4095..0 => {
            sys::set_errno(-error as c_int);
            -1
        }
        result => result as c_long,
    }
}
